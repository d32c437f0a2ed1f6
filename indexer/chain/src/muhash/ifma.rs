//! Sixteen products side by side on AVX-512 IFMA.
//!
//! Each of two groups holds eight numbers "standing": vector `i` has limb `i` (52 bits) of all
//! eight. A number is below 2³⁰⁷² + 2⁷⁰, 60 limbs. The ChaCha20 blocks of sixteen elements are
//! computed the same way, so that no bits have to be moved between lanes.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::HELD;
use super::chacha::CONSTANTS;
use super::num3072::{C, Num3072};
use crate::Hash;

const LIMBS: usize = 60;
const MASK: u64 = (1 << 52) - 1;
/// Limbs multiplied by limbs at a time, so that sums stay in registers.
const TILE: usize = 6;

/// Limb `i` of eight numbers.
#[repr(align(64))]
#[derive(Debug, Clone, Copy)]
struct Row([u64; 8]);

/// Sixteen running products.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    groups: [[Row; LIMBS]; 2],
}

impl Lanes {
    /// Sixteen ones; `None` where the processor lacks the instructions.
    pub(super) fn new() -> Option<Self> {
        if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512ifma")) {
            return None;
        }
        let mut one = [Row([0; 8]); LIMBS];
        one[0] = Row([1; 8]);
        Some(Self { groups: [one, one] })
    }

    /// Multiplies lane `i` by the element with digest `i`.
    pub(super) fn mul(&mut self, digests: &[Hash; HELD]) {
        // SAFETY: a `Lanes` exists only where `new` found both features.
        unsafe { mul_all(&mut self.groups, digests) }
    }

    /// The sixteen numbers.
    pub(super) fn values(&self) -> impl Iterator<Item = Num3072> + '_ {
        self.groups
            .iter()
            .flat_map(|group| (0..8).map(move |lane| gather(group, lane)))
    }
}

/// Lane `lane` of a group as a number of 64-bit limbs.
fn gather(group: &[Row; LIMBS], lane: usize) -> Num3072 {
    let mut out = [0u64; 48];
    let mut over = 0u64;
    for (i, row) in group.iter().enumerate() {
        let (limb, bit) = (52 * i / 64, 52 * i % 64);
        let value = u128::from(row.0[lane]) << bit;
        out[limb] |= value as u64;
        let high = (value >> 64) as u64;
        match out.get_mut(limb + 1) {
            Some(next) => *next |= high,
            None => over = high,
        }
    }
    // What stands above 2^3072 comes back as C times as much.
    let mut n = Num3072(out);
    let mut add = u128::from(over) * u128::from(C);
    for limb in &mut n.0 {
        if add == 0 {
            break;
        }
        add += u128::from(*limb);
        *limb = add as u64;
        add >>= 64;
    }
    // A carry out of the top is possible only from a number whose upper limbs are all ones, and
    // leaves a small one; then one more C is due.
    if add != 0 {
        n.0[0] += C;
    }
    n
}

#[target_feature(enable = "avx512f,avx512ifma")]
fn mul_all(groups: &mut [[Row; LIMBS]; 2], digests: &[Hash; HELD]) {
    let words = keystreams(digests);
    for (half, group) in groups.iter_mut().enumerate() {
        let factor = limbs(&words, half);
        mul_group(group, &factor);
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(row: &Row) -> __m512i {
    // SAFETY: a `Row` is 64 bytes, aligned to 64.
    unsafe { _mm512_load_si512(std::ptr::from_ref(row).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn store(row: &mut Row, value: __m512i) {
    // SAFETY: a `Row` is 64 bytes, aligned to 64.
    unsafe { _mm512_store_si512(std::ptr::from_mut(row).cast(), value) }
}

/// Word `w` of the key streams (96 words) of sixteen elements, element `i` in lane `i`.
#[target_feature(enable = "avx512f")]
fn keystreams(digests: &[Hash; HELD]) -> [__m512i; 96] {
    let mut out = [_mm512_setzero_si512(); 96];
    let mut key = [_mm512_setzero_si512(); 8];
    for (w, vector) in key.iter_mut().enumerate() {
        let mut lanes = [0u32; 16];
        for (lane, digest) in lanes.iter_mut().zip(digests) {
            *lane = u32::from_le_bytes([
                digest[4 * w],
                digest[4 * w + 1],
                digest[4 * w + 2],
                digest[4 * w + 3],
            ]);
        }
        // SAFETY: sixteen u32 are 64 bytes; the load needs no alignment.
        *vector = unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) };
    }
    for (counter, block) in out.chunks_exact_mut(16).enumerate() {
        let mut state = [_mm512_setzero_si512(); 16];
        for (s, constant) in state.iter_mut().zip(CONSTANTS) {
            *s = _mm512_set1_epi32(constant as i32);
        }
        state[4..12].copy_from_slice(&key);
        state[12] = _mm512_set1_epi32(counter as i32);
        let mut x = state;
        for _ in 0..10 {
            quarter(&mut x, 0, 4, 8, 12);
            quarter(&mut x, 1, 5, 9, 13);
            quarter(&mut x, 2, 6, 10, 14);
            quarter(&mut x, 3, 7, 11, 15);
            quarter(&mut x, 0, 5, 10, 15);
            quarter(&mut x, 1, 6, 11, 12);
            quarter(&mut x, 2, 7, 8, 13);
            quarter(&mut x, 3, 4, 9, 14);
        }
        for (o, (a, b)) in block.iter_mut().zip(x.into_iter().zip(state)) {
            *o = _mm512_add_epi32(a, b);
        }
    }
    out
}

#[inline]
#[target_feature(enable = "avx512f")]
fn quarter(x: &mut [__m512i; 16], a: usize, b: usize, c: usize, d: usize) {
    x[a] = _mm512_add_epi32(x[a], x[b]);
    x[d] = _mm512_rol_epi32::<16>(_mm512_xor_si512(x[d], x[a]));
    x[c] = _mm512_add_epi32(x[c], x[d]);
    x[b] = _mm512_rol_epi32::<12>(_mm512_xor_si512(x[b], x[c]));
    x[a] = _mm512_add_epi32(x[a], x[b]);
    x[d] = _mm512_rol_epi32::<8>(_mm512_xor_si512(x[d], x[a]));
    x[c] = _mm512_add_epi32(x[c], x[d]);
    x[b] = _mm512_rol_epi32::<7>(_mm512_xor_si512(x[b], x[c]));
}

/// The 52-bit limbs of eight key streams: lanes 0..8 (`half` 0) or 8..16 (`half` 1).
#[target_feature(enable = "avx512f")]
fn limbs(words: &[__m512i; 96], half: usize) -> [Row; LIMBS] {
    let widen = |word: __m512i| {
        _mm512_cvtepu32_epi64(if half == 0 {
            _mm512_castsi512_si256(word)
        } else {
            _mm512_extracti64x4_epi64::<1>(word)
        })
    };
    let mut wide = [_mm512_setzero_si512(); 49];
    for (q, pair) in wide.iter_mut().zip(words.chunks_exact(2)) {
        *q = _mm512_or_si512(widen(pair[0]), _mm512_slli_epi64::<32>(widen(pair[1])));
    }
    let mask = _mm512_set1_epi64(MASK as i64);
    let mut out = [Row([0; 8]); LIMBS];
    for (i, row) in out.iter_mut().enumerate() {
        let (q, bit) = (52 * i / 64, (52 * i % 64) as i64);
        let low = _mm512_srlv_epi64(wide[q], _mm512_set1_epi64(bit));
        // A shift by 64 gives zero, as it should.
        let high = _mm512_sllv_epi64(wide[q + 1], _mm512_set1_epi64(64 - bit));
        store(row, _mm512_and_si512(_mm512_or_si512(low, high), mask));
    }
    out
}

/// `a *= b` in every lane; the limbs of `b` are below 2⁵², its value below 2³⁰⁷².
#[target_feature(enable = "avx512f,avx512ifma")]
fn mul_group(a: &mut [Row; LIMBS], b: &[Row; LIMBS]) {
    // Each sum is of at most 120 numbers below 2^52: no carry is lost before `settle`.
    let mut wide = [Row([0; 8]); 2 * LIMBS];
    for (i, rows) in a.chunks_exact(TILE).enumerate() {
        let mut x = [_mm512_setzero_si512(); TILE];
        for (x, row) in x.iter_mut().zip(rows) {
            *x = load(row);
        }
        for (j, columns) in b.chunks_exact(TILE).enumerate() {
            let sums = &mut wide[TILE * (i + j)..][..2 * TILE];
            let mut s = [_mm512_setzero_si512(); 2 * TILE];
            for (s, row) in s.iter_mut().zip(sums.iter()) {
                *s = load(row);
            }
            for n in 0..TILE {
                let y = load(&columns[n]);
                for m in 0..TILE {
                    s[n + m] = _mm512_madd52lo_epu64(s[n + m], x[m], y);
                }
                for m in 0..TILE {
                    s[n + m + 1] = _mm512_madd52hi_epu64(s[n + m + 1], x[m], y);
                }
            }
            for (row, s) in sums.iter_mut().zip(s) {
                store(row, s);
            }
        }
    }
    settle(&mut wide);

    // 2^3120 = 2^48·2^3072 ≡ 2^48·C = FOLD_HIGH·2^52 + FOLD_LOW.
    const FOLD_LOW: u64 = (C & 15) << 48;
    const FOLD_HIGH: u64 = C >> 4;
    let (fold_low, fold_high) = (
        _mm512_set1_epi64(FOLD_LOW as i64),
        _mm512_set1_epi64(FOLD_HIGH as i64),
    );
    let (low, high) = wide.split_at(LIMBS);
    let zero = _mm512_setzero_si512();
    let mut sums = [zero; LIMBS + 3];
    for (s, row) in sums.iter_mut().zip(low) {
        *s = load(row);
    }
    for (i, row) in high.iter().enumerate() {
        let h = load(row);
        sums[i] = _mm512_madd52lo_epu64(sums[i], h, fold_low);
        sums[i + 1] = _mm512_madd52hi_epu64(sums[i + 1], h, fold_low);
        sums[i + 1] = _mm512_madd52lo_epu64(sums[i + 1], h, fold_high);
        sums[i + 2] = _mm512_madd52hi_epu64(sums[i + 2], h, fold_high);
    }
    // The product is below 2^6145, so `high` below 2^3025 and the sum below 2^3121: limb 60 is 0
    // or 1, and what stands above 2^3072 fits in 49 bits.
    let mask = _mm512_set1_epi64(MASK as i64);
    let mut carry = zero;
    for s in &mut sums {
        *s = _mm512_add_epi64(*s, carry);
        carry = _mm512_srli_epi64::<52>(*s);
        *s = _mm512_and_si512(*s, mask);
    }
    let over = _mm512_or_si512(
        _mm512_srli_epi64::<4>(sums[LIMBS - 1]),
        _mm512_slli_epi64::<48>(sums[LIMBS]),
    );
    sums[LIMBS - 1] = _mm512_and_si512(sums[LIMBS - 1], _mm512_set1_epi64(15));
    let c = _mm512_set1_epi64(C as i64);
    sums[0] = _mm512_madd52lo_epu64(sums[0], over, c);
    sums[1] = _mm512_madd52hi_epu64(sums[1], over, c);
    let mut carry = zero;
    for (row, s) in a.iter_mut().zip(sums) {
        let s = _mm512_add_epi64(s, carry);
        carry = _mm512_srli_epi64::<52>(s);
        store(row, _mm512_and_si512(s, mask));
    }
}

/// Carries what stands above 52 bits of each limb to the next.
#[inline]
#[target_feature(enable = "avx512f")]
fn settle(rows: &mut [Row]) {
    let mask = _mm512_set1_epi64(MASK as i64);
    let mut carry = _mm512_setzero_si512();
    for row in rows {
        let s = _mm512_add_epi64(load(row), carry);
        carry = _mm512_srli_epi64::<52>(s);
        store(row, _mm512_and_si512(s, mask));
    }
}

#[cfg(test)]
mod tests {
    use super::super::element;
    use super::*;
    use crate::hash::sha256;

    #[test]
    fn lanes_agree_with_the_portable_product() {
        let Some(mut lanes) = Lanes::new() else {
            eprintln!("SKIPPED lanes_agree_with_the_portable_product: no AVX-512 IFMA here");
            return;
        };
        let mut want = vec![Num3072::ONE; HELD];
        for round in 0u8..20 {
            let digests: [Hash; HELD] = std::array::from_fn(|i| sha256(&[round, i as u8]));
            lanes.mul(&digests);
            for (n, digest) in want.iter_mut().zip(&digests) {
                n.mul(&element(digest));
            }
            assert_eq!(lanes.values().collect::<Vec<_>>(), want, "round {round}");
        }
    }

    #[test]
    fn factors_with_every_bit_set() {
        if Lanes::new().is_none() {
            eprintln!("SKIPPED factors_with_every_bit_set: no AVX-512 IFMA here");
            return;
        }
        let mut most = [Row([MASK; 8]); LIMBS];
        most[LIMBS - 1] = Row([15; 8]);
        let mut group = most;
        let all_ones = Num3072([u64::MAX; 48]);
        let mut want = all_ones.clone();
        for round in 0..8 {
            // SAFETY: the features were found above.
            unsafe { mul_group(&mut group, &most) };
            want.mul(&all_ones);
            assert_eq!(gather(&group, 3), want, "round {round}");
        }
    }
}
