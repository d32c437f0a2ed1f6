//! Numbers modulo p = 2³⁰⁷² − 1103717, on any machine.
//!
//! 48 limbs of 64 bits, least significant first; a value may be anything below 2³⁰⁷² and is
//! brought below p only where that shows (bytes, comparison).

use std::fmt;

/// 2³⁰⁷² − p.
pub(super) const C: u64 = 1_103_717;
/// Limbs of 64 bits.
pub(super) const LIMBS: usize = 48;

/// Bytes of a number.
pub(super) const BYTES: usize = 384;

/// A number modulo 2³⁰⁷² − 1103717.
#[derive(Clone)]
pub struct Num3072(pub(super) [u64; LIMBS]);

impl fmt::Debug for Num3072 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Num3072({:016x}…)", self.0[0])
    }
}

impl PartialEq for Num3072 {
    fn eq(&self, other: &Self) -> bool {
        self.reduced() == other.reduced()
    }
}

impl Eq for Num3072 {}

impl Num3072 {
    /// One.
    pub const ONE: Self = {
        let mut limbs = [0; LIMBS];
        limbs[0] = 1;
        Self(limbs)
    };

    /// Reads 384 little-endian bytes.
    pub fn from_bytes(bytes: &[u8; BYTES]) -> Self {
        let mut limbs = [0; LIMBS];
        for (limb, b) in limbs.iter_mut().zip(bytes.chunks_exact(8)) {
            *limb = u64::from_le_bytes(b.try_into().expect("chunks of 8"));
        }
        Self(limbs)
    }

    /// The 384 little-endian bytes of the number below p.
    pub fn to_bytes(&self) -> [u8; BYTES] {
        let mut out = [0; BYTES];
        for (b, limb) in out.chunks_exact_mut(8).zip(self.reduced()) {
            b.copy_from_slice(&limb.to_le_bytes());
        }
        out
    }

    /// Whether it is 0 modulo p, the one number without an inverse.
    pub fn is_zero(&self) -> bool {
        self.reduced() == [0; LIMBS]
    }

    pub(super) fn reduced(&self) -> [u64; LIMBS] {
        let over =
            self.0[0] >= C.wrapping_neg() && self.0[1..].iter().all(|&limb| limb == u64::MAX);
        let mut out = self.0;
        if over {
            // Value − p = value + C − 2^3072; only the lowest limb is left.
            out = [0; LIMBS];
            out[0] = self.0[0].wrapping_add(C);
        }
        out
    }

    /// Multiplies in place.
    #[inline]
    pub fn mul(&mut self, by: &Self) {
        self.0 = fold(&multiply(&self.0, &by.0));
    }

    /// The multiplicative inverse; zero for zero.
    #[must_use]
    pub fn inverse(&self) -> Self {
        Self(super::inverse::inverse(&self.reduced()).unwrap_or([0; LIMBS]))
    }
}

/// Limbs of half a number.
const HALF: usize = LIMBS / 2;

/// The product of two numbers, 96 limbs, by three of half the size (Karatsuba): with
/// a = a₀ + a₁X and b = b₀ + b₁X, what stands at X is a₀b₀ + a₁b₁ − (a₀ − a₁)(b₀ − b₁).
fn multiply(a: &[u64; LIMBS], b: &[u64; LIMBS]) -> [u64; 2 * LIMBS] {
    let (a, b) = (a.as_chunks::<HALF>().0, b.as_chunks::<HALF>().0);
    let ((a_less, a_minus), (b_less, b_minus)) = (distance(a), distance(b));
    let low = multiply_rows(&a[0], &b[0]);
    let high = multiply_rows(&a[1], &b[1]);
    let cross = multiply_rows(&a_less, &b_less);
    let mut out = [0u64; 2 * LIMBS];
    out[..LIMBS].copy_from_slice(&low);
    out[LIMBS..].copy_from_slice(&high);
    // −x = !x + 1 − 2^3072; what that leaves at the top is taken away after the loop.
    let negate = a_minus == b_minus;
    let mask = u64::from(negate).wrapping_neg();
    let mut carry = u128::from(negate);
    let (middle, top) = out[HALF..].split_at_mut(LIMBS);
    for (i, limb) in middle.iter_mut().enumerate() {
        carry += u128::from(low[i]) + u128::from(high[i]) + u128::from(cross[i] ^ mask);
        carry += u128::from(*limb);
        *limb = carry as u64;
        carry >>= 64;
    }
    // From 0 to 2, for a₀b₀ + a₁b₁ − (a₀ − a₁)(b₀ − b₁) = a₀b₁ + a₁b₀.
    let mut carry = (carry as u64).wrapping_sub(u64::from(negate));
    for limb in top {
        let (sum, over) = limb.overflowing_add(carry);
        *limb = sum;
        carry = u64::from(over);
    }
    out
}

/// The distance of the halves of a number, and whether the second is the greater.
#[inline(always)]
fn distance(halves: &[[u64; HALF]]) -> ([u64; HALF], bool) {
    let mut out = [0; HALF];
    let mut minus = false;
    for (o, (a, b)) in out.iter_mut().zip(halves[0].iter().zip(&halves[1])) {
        let (less, under) = a.overflowing_sub(*b);
        let (less, again) = less.overflowing_sub(u64::from(minus));
        *o = less;
        minus = under || again;
    }
    let mask = u64::from(minus).wrapping_neg();
    let mut carry = minus;
    for limb in &mut out {
        (*limb, carry) = (*limb ^ mask).overflowing_add(u64::from(carry));
    }
    (out, minus)
}

/// The product of two halves, row by row.
#[inline(never)]
fn multiply_rows(a: &[u64; HALF], b: &[u64; HALF]) -> [u64; LIMBS] {
    let mut out = [0u64; LIMBS];
    for (i, &x) in a.iter().enumerate() {
        let mut carry = 0u64;
        let (row, top) = out[i..=i + HALF].split_at_mut(HALF);
        for (o, &y) in row.iter_mut().zip(b) {
            let t = u128::from(x) * u128::from(y) + u128::from(*o) + u128::from(carry);
            *o = t as u64;
            carry = (t >> 64) as u64;
        }
        top[0] = carry;
    }
    out
}

/// Brings a product below 2³⁰⁷²: 2³⁰⁷² ≡ C.
#[inline(always)]
fn fold(wide: &[u64; 2 * LIMBS]) -> [u64; LIMBS] {
    let mut out = [0u64; LIMBS];
    let mut carry = 0u64;
    for i in 0..LIMBS {
        let t =
            u128::from(wide[i + LIMBS]) * u128::from(C) + u128::from(wide[i]) + u128::from(carry);
        out[i] = t as u64;
        carry = (t >> 64) as u64;
    }
    // The carry is below 2^21, so the second fold changes little, and a third at most one limb.
    while carry != 0 {
        let mut add = u128::from(carry) * u128::from(C);
        carry = 0;
        for limb in &mut out {
            add += u128::from(*limb);
            *limb = add as u64;
            add >>= 64;
            if add == 0 {
                break;
            }
        }
        carry += add as u64;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = Num3072> {
        let limb = prop_oneof![4 => any::<u64>(), 1 => Just(u64::MAX), 1 => Just(0)];
        prop_oneof![
            prop::collection::vec(limb, LIMBS)
                .prop_map(|v| Num3072(v.try_into().expect("48 limbs"))),
            // Just around p and 2^3072.
            (0..4 * C).prop_map(|n| {
                let mut limbs = [u64::MAX; LIMBS];
                limbs[0] = (2 * C).wrapping_neg().saturating_add(n);
                Num3072(limbs)
            }),
        ]
    }

    /// The inverse by the exponent p − 2, another way to the same number.
    fn fermat(a: &Num3072) -> Num3072 {
        // p − 2 = (2^3051 − 1)·2^21 + (2^21 − 1103719): a run of ones, then 21 bits.
        let tail: u64 = (1 << 21) - (C + 2);
        let mut power = Num3072::ONE;
        for bit in (0..3072).rev() {
            power.mul(&power.clone());
            if bit >= 21 || tail >> bit & 1 == 1 {
                power.mul(a);
            }
        }
        power
    }

    /// A product one limb at a time, as the simplest way to the same number.
    fn plainly(a: &[u64; LIMBS], b: &[u64; LIMBS]) -> [u64; 2 * LIMBS] {
        let mut out = [0u64; 2 * LIMBS];
        for (i, &x) in a.iter().enumerate() {
            for (j, &y) in b.iter().enumerate() {
                let mut add = u128::from(x) * u128::from(y);
                for limb in &mut out[i + j..] {
                    add += u128::from(*limb);
                    *limb = add as u64;
                    add >>= 64;
                }
            }
        }
        out
    }

    #[test]
    fn small_inverses() {
        for n in [1u64, 2, 3, C, C + 1, u64::MAX] {
            let mut a = Num3072::ONE;
            a.0[0] = n;
            let mut one = a.inverse();
            one.mul(&a);
            assert_eq!(one, Num3072::ONE, "{n}");
            // And of −n, that is p − n.
            let mut minus = Num3072([u64::MAX; LIMBS]);
            minus.0[0] = 0u64.wrapping_sub(C).wrapping_sub(n);
            if n.checked_add(C).is_none() {
                minus.0[1] -= 1;
            }
            let mut one = minus.inverse();
            one.mul(&minus);
            assert_eq!(one, Num3072::ONE, "−{n}");
        }
        assert!(Num3072([0; LIMBS]).inverse().is_zero());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
        #[test]
        fn products(a in number(), b in number()) {
            let ones = [u64::MAX; LIMBS];
            for (a, b) in [(&a.0, &b.0), (&a.0, &a.0), (&a.0, &ones), (&ones, &ones)] {
                prop_assert_eq!(multiply(a, b), plainly(a, b));
            }
            // Equal halves: the middle takes nothing away.
            let same: [u64; LIMBS] = std::array::from_fn(|i| a.0[i % HALF]);
            prop_assert_eq!(multiply(&same, &b.0), plainly(&same, &b.0));
            prop_assert_eq!(multiply(&b.0, &same), plainly(&b.0, &same));
        }

        #[test]
        fn ring_laws(a in number(), b in number(), c in number()) {
            let mul = |x: &Num3072, y: &Num3072| { let mut z = x.clone(); z.mul(y); z };
            prop_assert_eq!(mul(&a, &b), mul(&b, &a));
            prop_assert_eq!(mul(&mul(&a, &b), &c), mul(&a, &mul(&b, &c)));
            prop_assert_eq!(Num3072::from_bytes(&a.to_bytes()), a);
        }

        #[test]
        fn inverses(a in number()) {
            let mut one = a.inverse();
            one.mul(&a);
            if a.is_zero() { prop_assert!(one.is_zero()) } else { prop_assert_eq!(one, Num3072::ONE) }
            prop_assert_eq!(a.inverse(), fermat(&a));
        }
    }

    #[test]
    fn p_is_zero() {
        let mut p = [u64::MAX; LIMBS];
        p[0] = C.wrapping_neg();
        assert!(Num3072(p).is_zero());
        assert_eq!(Num3072(p).to_bytes(), [0; BYTES]);
    }
}
