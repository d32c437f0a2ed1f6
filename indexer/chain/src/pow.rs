//! Targets, their compact form, and the work they stand for.

use crate::Hash;

/// A 256-bit number, least significant limb first: what a block's hash must not exceed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target(pub [u64; 4]);

impl PartialOrd for Target {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Target {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.iter().rev().cmp(other.0.iter().rev())
    }
}

impl Target {
    /// Zero: no hash reaches it.
    pub const ZERO: Self = Self([0; 4]);

    /// A hash as the number it is compared by.
    pub fn from_hash(hash: &Hash) -> Self {
        let mut limbs = [0; 4];
        for (limb, bytes) in limbs.iter_mut().zip(hash.chunks_exact(8)) {
            *limb = u64::from_le_bytes(bytes.try_into().expect("chunks of 8"));
        }
        Self(limbs)
    }

    /// Reads the compact form: exponent in the top byte, sign bit, 23 bits of mantissa.
    ///
    /// `None` for zero, negative and overflowing numbers, which no header may carry.
    pub fn from_compact(bits: u32) -> Option<Self> {
        let (size, word) = (bits >> 24, u64::from(bits & 0x007f_ffff));
        if word == 0 || bits & 0x0080_0000 != 0 {
            return None;
        }
        let target = if size <= 3 {
            Self([word >> (8 * (3 - size)), 0, 0, 0])
        } else {
            let shift = 8 * (size - 3);
            let width = 64 - word.leading_zeros();
            if shift + width > 256 {
                return None;
            }
            Self([word, 0, 0, 0]).shift_left(shift)
        };
        (target != Self::ZERO).then_some(target)
    }

    /// The compact form; rounds down to 23 bits of mantissa.
    pub fn to_compact(self) -> u32 {
        let mut size = self.bits().div_ceil(8);
        let mut word = if size <= 3 {
            self.0[0] << (8 * (3 - size))
        } else {
            self.shift_right(8 * (size - 3)).0[0]
        };
        if word & 0x0080_0000 != 0 {
            word >>= 8;
            size += 1;
        }
        word as u32 & 0x007f_ffff | size << 24
    }

    /// Width of the number in bits.
    pub fn bits(&self) -> u32 {
        (0..4)
            .rev()
            .find(|&i| self.0[i] != 0)
            .map_or(0, |i| 64 * i as u32 + 64 - self.0[i].leading_zeros())
    }

    /// Shifts left; what leaves at the top is lost.
    #[must_use]
    pub fn shift_left(self, n: u32) -> Self {
        let (limbs, bits) = ((n / 64) as usize, n % 64);
        let mut out = [0; 4];
        for (i, o) in out.iter_mut().enumerate().skip(limbs) {
            *o = self.0[i - limbs] << bits;
            if bits > 0 && i > limbs {
                *o |= self.0[i - limbs - 1] >> (64 - bits);
            }
        }
        Self(out)
    }

    /// Shifts right.
    #[must_use]
    pub fn shift_right(self, n: u32) -> Self {
        let (limbs, bits) = ((n / 64) as usize, n % 64);
        let mut out = [0; 4];
        for (i, o) in out.iter_mut().enumerate() {
            let Some(&limb) = self.0.get(i + limbs) else {
                break;
            };
            *o = limb >> bits;
            if bits > 0 && i + limbs + 1 < 4 {
                *o |= self.0[i + limbs + 1] << (64 - bits);
            }
        }
        Self(out)
    }

    /// `self * mul / div` with an intermediate of 256 bits, as the nodes compute it. `div` is
    /// not zero.
    #[must_use]
    pub fn scale(self, mul: u32, div: u32) -> Self {
        let mut out = [0; 4];
        let mut carry = 0u128;
        for (o, limb) in out.iter_mut().zip(self.0) {
            carry += u128::from(limb) * u128::from(mul);
            *o = carry as u64;
            carry >>= 64;
        }
        let mut rest = 0u128;
        for limb in out.iter_mut().rev() {
            let n = rest << 64 | u128::from(*limb);
            *limb = (n / u128::from(div.max(1))) as u64;
            rest = n % u128::from(div.max(1));
        }
        Self(out)
    }

    /// Expected number of hashes to reach the target: 2²⁵⁶ / (target + 1), at most `u128::MAX`.
    pub fn work(&self) -> u128 {
        // 2^256 / (t + 1) = (2^256 - 1 - t) / (t + 1) + 1.
        let mut divisor = *self;
        for limb in &mut divisor.0 {
            let (sum, carry) = limb.overflowing_add(1);
            *limb = sum;
            if !carry {
                break;
            }
        }
        if divisor == Self::ZERO {
            return 1;
        }
        let rest = Self(self.0.map(|limb| !limb));
        let shift = rest.bits().saturating_sub(divisor.bits());
        if shift >= 127 {
            return u128::MAX;
        }
        let (mut rest, mut quotient) = (rest, 0u128);
        for bit in (0..=shift).rev() {
            let part = divisor.shift_left(bit);
            if rest >= part {
                rest = rest.minus(&part);
                quotient |= 1 << bit;
            }
        }
        quotient + 1
    }

    fn minus(self, other: &Self) -> Self {
        let (mut out, mut borrow) = ([0; 4], false);
        for (i, o) in out.iter_mut().enumerate() {
            let (d, b1) = self.0[i].overflowing_sub(other.0[i]);
            let (d, b2) = d.overflowing_sub(u64::from(borrow));
            *o = d;
            borrow = b1 || b2;
        }
        Self(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compact_forms() {
        for bits in [
            0x1d00_ffff,
            0x1b04_04cb,
            0x207f_ffff,
            0x1e0f_fff0,
            0x0300_ffff,
            0x1701_2345,
        ] {
            assert_eq!(
                Target::from_compact(bits).expect("valid").to_compact(),
                bits,
                "{bits:#x}"
            );
        }
        for bits in [
            0,
            0x0100_0000,
            0x1d80_ffff,
            0x2300_0100,
            0xff12_3456,
            0x0000_0012,
        ] {
            assert_eq!(Target::from_compact(bits), None, "{bits:#x}");
        }
    }

    #[test]
    fn work_of_known_targets() {
        assert_eq!(
            Target::from_compact(0x1d00_ffff).expect("valid").work(),
            0x1_0001_0001
        );
        assert_eq!(Target::from_compact(0x207f_ffff).expect("valid").work(), 2);
        assert_eq!(
            Target::from_compact(0x1b04_04cb).expect("valid").work(),
            0x3fb3ab764c00
        );
    }
}
