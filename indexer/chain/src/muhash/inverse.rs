//! Inverses modulo p by division steps (Bernstein and Yang, "Fast constant-time gcd computation
//! and modular inversion", 2019), in the variable-time form: nothing here is secret.
//!
//! Numbers are signed: 50 limbs of 62 bits, the topmost carrying the sign. 62 division steps are
//! done on the lowest limbs alone and gathered in a matrix, which is then applied to the whole
//! numbers. p = 2³⁰⁷² − C has only two limbs that are not zero, −C and 2³⁴.

use super::num3072::{C, LIMBS};

/// Limbs of 62 bits.
const N: usize = 50;
const BITS: u32 = 62;
const MASK: u64 = (1 << BITS) - 1;
/// Bits of the topmost limb below 2³⁰⁷².
const TOP: u32 = 3072 - BITS * (N as u32 - 1);
/// Rounds after which any number of 3072 bits is done: (49·3072 + 57)/17 steps of the paper's
/// bound, 62 each.
const ROUNDS: usize = (49 * 3072 + 57) / 17 / BITS as usize + 2;

type Limbs = [i64; N];

/// 62 division steps: (f, g) becomes (uf + vg, qf + rg) / 2⁶².
struct Steps {
    u: i64,
    v: i64,
    q: i64,
    r: i64,
}

/// −1/p modulo 2⁶⁴, by Newton's iteration; p ≡ −C.
const INVERSE: u64 = {
    let mut x = C;
    let mut i = 0;
    while i < 6 {
        x = x.wrapping_mul(2u64.wrapping_sub(C.wrapping_mul(x)));
        i += 1;
    }
    x
};

/// The inverse of a number below p; `None` for zero, which has none.
pub(super) fn inverse(x: &[u64; LIMBS]) -> Option<[u64; LIMBS]> {
    let mut f = [0; N];
    f[0] = -(C as i64);
    f[N - 1] = 1 << TOP;
    let mut g = split(x);
    // d·x ≡ f and e·x ≡ g throughout.
    let (mut d, mut e) = ([0; N], [0; N]);
    e[0] = 1;
    let mut eta = -1;
    for _ in 0..ROUNDS {
        let steps = divide(&mut eta, low(&f), low(&g));
        update_de(&mut d, &mut e, &steps);
        update_fg(&mut f, &mut g, &steps);
        if g == [0; N] {
            // f is the greatest common divisor, 1 or −1 unless x was zero.
            let positive = f[0] == 1 && f[1..] == [0; N - 1];
            let negative = f[0] as u64 & MASK == MASK && f[N - 1] < 0;
            return (positive || negative).then(|| join(d, negative));
        }
    }
    None
}

/// The lowest 64 bits of a number.
fn low(n: &Limbs) -> u64 {
    n[0] as u64 | (n[1] as u64) << BITS
}

fn divide(eta: &mut i64, f: u64, g: u64) -> Steps {
    let (mut f, mut g) = (f, g);
    let (mut u, mut v, mut q, mut r) = (1u64, 0u64, 0u64, 1u64);
    let mut left = BITS;
    loop {
        let zeros = (g | u64::MAX << left).trailing_zeros();
        g >>= zeros;
        u <<= zeros;
        v <<= zeros;
        *eta -= i64::from(zeros);
        left -= zeros;
        if left == 0 {
            break;
        }
        // Both are odd. Add the multiple of f to g that clears as many bits as may be cleared
        // before the next exchange.
        let w;
        if *eta < 0 {
            *eta = -*eta;
            (f, g) = (g, f.wrapping_neg());
            (u, q) = (q, u.wrapping_neg());
            (v, r) = (r, v.wrapping_neg());
            let limit = (*eta + 1).min(i64::from(left)) as u32;
            // −g/f modulo 2⁶.
            let m = u64::MAX >> (64 - limit) & 63;
            w = f
                .wrapping_mul(g)
                .wrapping_mul(f.wrapping_mul(f).wrapping_sub(2))
                & m;
        } else {
            let limit = (*eta + 1).min(i64::from(left)) as u32;
            // −g/f modulo 2⁴.
            let m = u64::MAX >> (64 - limit) & 15;
            let inverse = f.wrapping_add((f.wrapping_add(1) & 4) << 1);
            w = inverse.wrapping_neg().wrapping_mul(g) & m;
        }
        g = g.wrapping_add(f.wrapping_mul(w));
        q = q.wrapping_add(u.wrapping_mul(w));
        r = r.wrapping_add(v.wrapping_mul(w));
    }
    Steps {
        u: u as i64,
        v: v as i64,
        q: q as i64,
        r: r as i64,
    }
}

#[inline(always)]
fn product(a: i64, b: i64) -> i128 {
    i128::from(a) * i128::from(b)
}

fn update_fg(f: &mut Limbs, g: &mut Limbs, s: &Steps) {
    let (mut cf, mut cg) = (0i128, 0i128);
    for i in 0..N {
        cf += product(s.u, f[i]) + product(s.v, g[i]);
        cg += product(s.q, f[i]) + product(s.r, g[i]);
        // The lowest 62 bits are zero: that is what the steps were for.
        if i > 0 {
            f[i - 1] = (cf as u64 & MASK) as i64;
            g[i - 1] = (cg as u64 & MASK) as i64;
        }
        cf >>= BITS;
        cg >>= BITS;
    }
    f[N - 1] = cf as i64;
    g[N - 1] = cg as i64;
}

/// The same modulo p; d and e stay between −2p and p.
fn update_de(d: &mut Limbs, e: &mut Limbs, s: &Steps) {
    let (sd, se) = (d[N - 1] >> 63, e[N - 1] >> 63);
    // Multiples of p that make them less negative, and then the lowest 62 bits zero.
    let mut md = (s.u & sd) + (s.v & se);
    let mut me = (s.q & sd) + (s.r & se);
    let mut cd = product(s.u, d[0]) + product(s.v, e[0]);
    let mut ce = product(s.q, d[0]) + product(s.r, e[0]);
    md += (INVERSE.wrapping_mul(cd as u64).wrapping_sub(md as u64) & MASK) as i64;
    me += (INVERSE.wrapping_mul(ce as u64).wrapping_sub(me as u64) & MASK) as i64;
    cd -= product(C as i64, md);
    ce -= product(C as i64, me);
    debug_assert!(cd as u64 & MASK == 0 && ce as u64 & MASK == 0);
    cd >>= BITS;
    ce >>= BITS;
    for i in 1..N {
        cd += product(s.u, d[i]) + product(s.v, e[i]);
        ce += product(s.q, d[i]) + product(s.r, e[i]);
        if i == N - 1 {
            cd += i128::from(md) << TOP;
            ce += i128::from(me) << TOP;
        }
        d[i - 1] = (cd as u64 & MASK) as i64;
        e[i - 1] = (ce as u64 & MASK) as i64;
        cd >>= BITS;
        ce >>= BITS;
    }
    d[N - 1] = cd as i64;
    e[N - 1] = ce as i64;
}

fn split(x: &[u64; LIMBS]) -> Limbs {
    let mut out = [0; N];
    for (i, limb) in out.iter_mut().enumerate() {
        let bit = i * BITS as usize;
        let (at, shift) = (bit / 64, bit % 64);
        let mut value = x[at] >> shift;
        if shift > 0 && at + 1 < LIMBS {
            value |= x[at + 1] << (64 - shift);
        }
        *limb = (value & MASK) as i64;
    }
    out
}

/// A number between −2p and p, negated if asked for, as 64-bit limbs below 2³⁰⁷².
fn join(mut d: Limbs, negate: bool) -> [u64; LIMBS] {
    if negate {
        d.iter_mut().for_each(|limb| *limb = -*limb);
    }
    loop {
        let mut carry = 0i64;
        for limb in &mut d[..N - 1] {
            let sum = *limb + carry;
            *limb = (sum as u64 & MASK) as i64;
            carry = sum >> BITS;
        }
        d[N - 1] += carry;
        if d[N - 1] >= 0 && d[N - 1] >> TOP == 0 {
            break;
        }
        // Below zero: p more. Not below 2^3072, which only a negated one can be: p less.
        let sign = if d[N - 1] < 0 { 1 } else { -1 };
        d[0] -= sign * C as i64;
        d[N - 1] += sign << TOP;
    }
    let mut out = [0u64; LIMBS];
    for (i, limb) in d.iter().enumerate() {
        let bit = i * BITS as usize;
        let (at, shift) = (bit / 64, bit % 64);
        let value = (*limb as u64 as u128) << shift;
        out[at] |= value as u64;
        if let Some(next) = out.get_mut(at + 1) {
            *next |= (value >> 64) as u64;
        }
    }
    out
}
