//! Sixteen products side by side on AVX2 and FMA.
//!
//! Each of four groups holds four numbers "standing": vector `i` has limb `i` of all four, a whole
//! number kept as a double. A number is 72 limbs of 43 bits, 2³⁰⁹⁶ in all; a limb of a running
//! product may be a little below 0 or above 2⁴³. Doubles, because two fused multiply-adds give
//! both halves of a product of 43 by 43 bits, where the integer multiplication of AVX2 takes only
//! 32 by 32. Three levels of Karatsuba bring 72 × 72 products of limbs down to 27 × 9 × 9. The
//! ChaCha20 blocks of eight elements are computed the same way, so that hardly any bits have to be
//! moved between lanes.

#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::HELD;
use super::chacha::CONSTANTS;
use super::num3072::{C, Num3072};
use crate::Hash;

const LIMBS: usize = 72;
const BITS: usize = 43;
const MASK: u64 = (1 << BITS) - 1;
/// Limbs that are multiplied without Karatsuba.
const BASE: usize = 9;

/// 1.5·2⁵²: in the binade around it the bits of a double count in ones.
const ONES: f64 = 6_755_399_441_055_744.0;
/// 1.5·2⁹⁵: the bits count in 2⁴³.
const LIMB_UNITS: f64 = ONES * (1u64 << BITS) as f64;
/// 1.5·2⁹⁷: the bits count in 2⁴⁵.
const FOLD_UNITS: f64 = ONES * (1u64 << (BITS + 2)) as f64;
/// 2³⁰⁹⁶ = 2²⁴·2³⁰⁷² ≡ 2²⁴·C, below 2⁴⁵.
const FOLD: f64 = (C << 24) as f64;
/// Added to columns so that they are not negative: a multiple of 2⁴³, greater than any of them.
const LIFT: u64 = 1 << 56;

/// Limb `i` of four numbers.
type Row = __m256d;
/// Column `i` of four products.
type Column = __m256i;

/// Sixteen running products.
#[derive(Debug, Clone)]
pub(super) struct Lanes {
    groups: [[Row; LIMBS]; 4],
    room: Room,
}

/// Room for what is on the way, kept so that it need not be cleared for every product.
#[derive(Debug, Clone)]
struct Room {
    /// Key streams of eight elements, see [`keystreams`].
    words: [__m256i; 96],
    /// Four factors.
    factor: [Row; LIMBS],
    /// Four products.
    wide: [Column; 2 * LIMBS],
    /// What the three levels of Karatsuba take away: 72, 36 and 18 columns.
    cross: [Column; LIMBS + LIMBS / 2 + LIMBS / 4],
}

impl Lanes {
    /// Sixteen ones; `None` where the processor lacks the instructions.
    pub(super) fn new() -> Option<Self> {
        // SAFETY: the processor has the features.
        supported().then(|| unsafe { ones() })
    }

    /// Multiplies lane `i` by the element with digest `i`.
    pub(super) fn mul(&mut self, digests: &[Hash; HELD]) {
        // SAFETY: a `Lanes` exists only where `new` found both features.
        unsafe { mul_all(self, digests) }
    }

    /// The sixteen numbers.
    pub(super) fn values(&self) -> impl Iterator<Item = Num3072> + '_ {
        (0..HELD).map(|lane| {
            let (group, lane) = place(lane);
            // SAFETY: a `Lanes` exists only where `new` found both features.
            gather(&unsafe { limbs_of(&self.groups[group], lane) })
        })
    }
}

/// The first 384 bytes of key stream under `key`; `None` where the processor lacks the
/// instructions.
pub(super) fn keystream(key: &Hash) -> Option<[u8; 384]> {
    // SAFETY: the processor has the features.
    supported().then(|| unsafe { blocks(key) })
}

fn supported() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Where element `i` of those held stands: group and lane.
fn place(i: usize) -> (usize, usize) {
    (i / 8 * 2 + i / 2 % 2, i / 4 % 2 * 2 + i % 2)
}

#[target_feature(enable = "avx2,fma")]
fn ones() -> Lanes {
    let mut one = [_mm256_setzero_pd(); LIMBS];
    one[0] = _mm256_set1_pd(1.0);
    let zero = _mm256_setzero_si256();
    Lanes {
        groups: [one; 4],
        room: Room {
            words: [zero; 96],
            factor: one,
            wide: [zero; 2 * LIMBS],
            cross: [zero; LIMBS + LIMBS / 2 + LIMBS / 4],
        },
    }
}

/// The limbs of lane `lane`.
#[target_feature(enable = "avx2,fma")]
fn limbs_of(group: &[Row; LIMBS], lane: usize) -> [i64; LIMBS] {
    group.map(|row| {
        let mut lanes = [0.0; 4];
        // SAFETY: four doubles are 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_pd(lanes.as_mut_ptr(), row) };
        lanes[lane] as i64
    })
}

/// 72 limbs of 43 bits, each within 2⁶¹ of zero, as a number of 64-bit limbs. The sum may be
/// negative down to −2³⁰⁷⁰.
fn gather(limbs: &[i64; LIMBS]) -> Num3072 {
    let mut out = [0u64; 48];
    // From p upwards, so that the sum is not negative: p = 2^3072 − C.
    let mut sum = -i128::from(C);
    let mut at = 0;
    for (n, limb) in out.iter_mut().enumerate() {
        // `sum` counts in 2^(64n); a limb that starts in this word is below 2^(61 + 63).
        while at < LIMBS && BITS * at < 64 * (n + 1) {
            sum += i128::from(limbs[at]) << (BITS * at % 64);
            at += 1;
        }
        *limb = sum as u64;
        sum >>= 64;
    }
    // What stands above 2^3072 comes back as C times as much.
    let mut n = Num3072(out);
    let mut over = sum + 1;
    while over != 0 {
        let mut add = over as u128 * u128::from(C);
        for limb in &mut n.0 {
            add += u128::from(*limb);
            *limb = add as u64;
            add >>= 64;
            if add == 0 {
                break;
            }
        }
        over = add as i128;
    }
    n
}

#[target_feature(enable = "avx2,fma")]
fn mul_all(lanes: &mut Lanes, digests: &[Hash; HELD]) {
    let Lanes { groups, room } = lanes;
    let (pairs, _) = groups.as_chunks_mut::<2>();
    let (eights, _) = digests.as_chunks::<8>();
    for ([even, odd], digests) in pairs.iter_mut().zip(eights) {
        keystreams(digests, &mut room.words);
        limbs::<0>(room);
        mul_group(even, room);
        limbs::<1>(room);
        mul_group(odd, room);
    }
}

/// Word `w` of the key streams (96 words) of eight elements, element `i` in lane `i`.
#[target_feature(enable = "avx2,fma")]
fn keystreams(digests: &[Hash; 8], out: &mut [__m256i; 96]) {
    let mut key = [_mm256_setzero_si256(); 8];
    for (w, vector) in key.iter_mut().enumerate() {
        let lane = |i: usize| {
            let bytes = digests[i][4 * w..].first_chunk().expect("eight words");
            i32::from_le_bytes(*bytes)
        };
        *vector = _mm256_setr_epi32(
            lane(0),
            lane(1),
            lane(2),
            lane(3),
            lane(4),
            lane(5),
            lane(6),
            lane(7),
        );
    }
    let mut state = [_mm256_setzero_si256(); 16];
    for (s, constant) in state.iter_mut().zip(CONSTANTS) {
        *s = _mm256_set1_epi32(constant as i32);
    }
    state[4..12].copy_from_slice(&key);
    for (counter, words) in out.chunks_exact_mut(16).enumerate() {
        state[12] = _mm256_set1_epi32(counter as i32);
        words.copy_from_slice(&block(&state));
    }
}

/// Eight blocks under one key, of which six are used.
#[target_feature(enable = "avx2,fma")]
fn blocks(key: &Hash) -> [u8; 384] {
    let mut state = [_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7); 16];
    for (s, constant) in state.iter_mut().zip(CONSTANTS) {
        *s = _mm256_set1_epi32(constant as i32);
    }
    for (s, bytes) in state[4..12].iter_mut().zip(key.as_chunks().0) {
        *s = _mm256_set1_epi32(i32::from_le_bytes(*bytes));
    }
    state[13..].fill(_mm256_setzero_si256());
    let mut out = [0; 384];
    for (w, word) in block(&state).into_iter().enumerate() {
        let mut lanes = [0u32; 8];
        // SAFETY: eight u32 are 32 bytes; the store needs no alignment.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), word) };
        for (block, lane) in out.chunks_exact_mut(64).zip(lanes) {
            block[4 * w..4 * w + 4].copy_from_slice(&lane.to_le_bytes());
        }
    }
    out
}

/// `x`, but the compiler does not know that, and does not move it past another pin.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn pin(mut x: __m256i) -> __m256i {
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(ymm_reg) x, options(nomem, nostack, preserves_flags));
    }
    x
}

/// ChaCha20 rounds and the final addition: eight blocks.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn block(state: &[__m256i; 16]) -> [__m256i; 16] {
    // Rotations to the left by 16 and by 8 as moves of bytes. Pinned, for a compiler that knows
    // them makes two instructions of the first.
    let by_16 = pin(_mm256_broadcastsi128_si256(_mm_setr_epi8(
        2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13,
    )));
    let by_8 = pin(_mm256_broadcastsi128_si256(_mm_setr_epi8(
        3, 0, 1, 2, 7, 4, 5, 6, 11, 8, 9, 10, 15, 12, 13, 14,
    )));
    let mut x = *state;
    let quarter = |x: &mut [__m256i; 16], a: usize, b: usize, c: usize, d: usize| {
        x[a] = _mm256_add_epi32(x[a], x[b]);
        x[d] = _mm256_shuffle_epi8(_mm256_xor_si256(x[d], x[a]), by_16);
        x[c] = _mm256_add_epi32(x[c], x[d]);
        x[b] = turn::<12, 20>(_mm256_xor_si256(x[b], x[c]));
        x[a] = _mm256_add_epi32(x[a], x[b]);
        x[d] = _mm256_shuffle_epi8(_mm256_xor_si256(x[d], x[a]), by_8);
        x[c] = _mm256_add_epi32(x[c], x[d]);
        x[b] = turn::<7, 25>(_mm256_xor_si256(x[b], x[c]));
    };
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
    for (word, state) in x.iter_mut().zip(state) {
        *word = _mm256_add_epi32(*word, *state);
    }
    x
}

/// Rotates by `LEFT`, which is 32 − `RIGHT`.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn turn<const LEFT: i32, const RIGHT: i32>(x: __m256i) -> __m256i {
    _mm256_or_si256(_mm256_slli_epi32::<LEFT>(x), _mm256_srli_epi32::<RIGHT>(x))
}

/// Counts of a shift, in memory, from where they get to all lanes at no cost.
static COUNTS: [i64; 65] = {
    let mut out = [0; 65];
    let mut n = 0;
    while n < 65 {
        out[n] = n as i64;
        n += 1;
    }
    out
};

/// The limbs of four of eight key streams: lanes 0, 1, 4, 5 (`ODD` 0) or 2, 3, 6, 7 (`ODD` 1).
#[target_feature(enable = "avx2,fma")]
fn limbs<const ODD: usize>(room: &mut Room) {
    let mut wide = [_mm256_setzero_si256(); 49];
    for (q, words) in wide.iter_mut().zip(room.words.chunks_exact(2)) {
        *q = if ODD == 0 {
            _mm256_unpacklo_epi32(words[0], words[1])
        } else {
            _mm256_unpackhi_epi32(words[0], words[1])
        };
    }
    let mask = _mm256_set1_epi64x(MASK as i64);
    let ones = _mm256_set1_pd(ONES);
    for (i, row) in room.factor.iter_mut().enumerate() {
        let (q, bit) = (BITS * i / 64, BITS * i % 64);
        let low = _mm256_srlv_epi64(wide[q], _mm256_set1_epi64x(COUNTS[bit]));
        // A shift by 64 gives zero, as it should.
        let high = _mm256_sllv_epi64(wide[q + 1], _mm256_set1_epi64x(COUNTS[64 - bit]));
        let limb = _mm256_and_si256(_mm256_or_si256(low, high), mask);
        // Below 2^43 < 2^51: exact.
        let biased = _mm256_or_si256(limb, _mm256_castpd_si256(ones));
        *row = _mm256_sub_pd(_mm256_castsi256_pd(biased), ones);
    }
}

/// Columns `K` to `K + W` of a product of nine by nine limbs.
///
/// A column's products are added to `high`, which counts in 2⁴³ and rounds to the nearest; what
/// rounding took away, at most 2⁴² for each, is found without error by a second fused multiply-add
/// and added to `low`. The high part belongs to the next column; that of the last waits in
/// `out[K + W]`. A function of its own, and pinned row by row, for otherwise the compiler mixes the
/// sums until the registers do not suffice.
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn columns<const K: usize, const W: usize>(
    a: &[Row; BASE],
    b: &[Row; BASE],
    out: &mut [Column; 2 * BASE],
) {
    let mut high = [_mm256_set1_pd(LIMB_UNITS); W];
    let mut low = [_mm256_set1_pd(ONES); W];
    macro_rules! rows {
        ($($i:literal)*) => {$(
            for j in 0..W {
                if let Some(&y) = (K + j).checked_sub($i).and_then(|n| b.get(n)) {
                    let x = a[$i];
                    let sum = _mm256_fmadd_pd(x, y, high[j]);
                    let less = _mm256_sub_pd(high[j], sum);
                    high[j] = sum;
                    low[j] = _mm256_add_pd(low[j], _mm256_fmadd_pd(x, y, less));
                }
            }
            for j in 0..W {
                high[j] = _mm256_castsi256_pd(pin(_mm256_castpd_si256(high[j])));
                low[j] = _mm256_castsi256_pd(pin(_mm256_castpd_si256(low[j])));
            }
        )*};
    }
    rows!(0 1 2 3 4 5 6 7 8);
    let mut above = out[K];
    for j in 0..W {
        out[K + j] = _mm256_add_epi64(_mm256_castpd_si256(low[j]), above);
        above = _mm256_castpd_si256(high[j]);
    }
    out[K + W] = above;
}

/// The product of nine by nine limbs, each at most 2⁴⁵ + 2¹⁷ in magnitude, as sums of the bits of
/// doubles: 18 signed columns above what the doubles started from.
///
/// Limbs are from −2¹⁴ to 2⁴³ + 2¹⁴, so that a difference of two is at most 2⁴³ + 2¹⁵, and each of
/// the two levels below doubles that. Nine products are below 9·(2⁴⁵ + 2¹⁷)² < 2⁹⁴, so that `high`
/// stays in its binade of 1.5·2⁹⁵ ± 2⁹⁴.
#[target_feature(enable = "avx2,fma")]
#[inline(never)]
fn product9(a: &[Row; 9], b: &[Row; 9], out: &mut [Column; 18], _: &mut [Column]) {
    out[0] = _mm256_setzero_si256();
    columns::<0, 4>(a, b, out);
    columns::<4, 4>(a, b, out);
    columns::<8, 4>(a, b, out);
    columns::<12, 4>(a, b, out);
    columns::<16, 1>(a, b, out);
}

/// A product by three of half the size: with a = a₀ + a₁X and b = b₀ + b₁X, what stands at X is
/// a₀b₀ + a₁b₁ − (a₀ − a₁)(b₀ − b₁).
macro_rules! karatsuba {
    ($name:ident, $size:literal, $half:literal, $inner:ident) => {
        #[target_feature(enable = "avx2,fma")]
        fn $name(
            a: &[Row; $size],
            b: &[Row; $size],
            out: &mut [Column; 2 * $size],
            room: &mut [Column],
        ) {
            let ([a0, a1], _) = a.as_chunks::<$half>() else {
                unreachable!()
            };
            let ([b0, b1], _) = b.as_chunks::<$half>() else {
                unreachable!()
            };
            let ([low, high], _) = out.as_chunks_mut::<$size>() else {
                unreachable!()
            };
            let (cross, room) = room.split_first_chunk_mut().expect("room for all levels");
            $inner(a0, b0, low, room);
            $inner(a1, b1, high, room);
            let (mut a, mut b) = (*a0, *b0);
            for i in 0..$half {
                a[i] = _mm256_sub_pd(a0[i], a1[i]);
                b[i] = _mm256_sub_pd(b0[i], b1[i]);
            }
            $inner(&a, &b, cross, room);
            for i in 0..$half {
                let both = _mm256_add_epi64(low[$half + i], high[i]);
                let less = _mm256_sub_epi64(both, cross[i]);
                low[$half + i] = _mm256_add_epi64(less, low[i]);
                let less = _mm256_sub_epi64(both, cross[$half + i]);
                high[i] = _mm256_add_epi64(less, high[$half + i]);
            }
        }
    };
}

karatsuba!(product18, 18, 9, product9);
karatsuba!(product36, 36, 18, product18);
karatsuba!(product72, 72, 36, product36);

/// What [`product72`] gives for a product of zero: the starting values of all its sums.
const BIASES: [u64; 2 * LIMBS] = {
    let mut base = [ONES.to_bits().wrapping_add(LIMB_UNITS.to_bits()); 2 * BASE];
    base[0] = ONES.to_bits();
    base[2 * BASE - 1] = LIMB_UNITS.to_bits();
    combined(&base, 1)
};

/// How many products of limbs add to each column.
const PRODUCTS: [u64; 2 * LIMBS] = {
    let mut base = [0; 2 * BASE];
    let mut k = 0;
    while k < 2 * BASE - 1 {
        base[k] = if k < BASE { k + 1 } else { 2 * BASE - 1 - k } as u64;
        k += 1;
    }
    combined(&base, 3)
};

/// Puts columns that are the same in every product of nine by nine limbs together, as
/// [`product72`] does; `cross` times as much of them goes to the middle.
const fn combined(base: &[u64; 2 * BASE], cross: u64) -> [u64; 2 * LIMBS] {
    let mut out = [0u64; 2 * LIMBS];
    let mut size = 2 * BASE;
    let mut k = 0;
    while k < size {
        out[k] = base[k];
        k += 1;
    }
    while size < 2 * LIMBS {
        let old = out;
        k = 0;
        while k < size {
            out[size + k] = old[k];
            k += 1;
        }
        k = 0;
        while k < size {
            out[size / 2 + k] = out[size / 2 + k].wrapping_add(cross.wrapping_mul(old[k]));
            k += 1;
        }
        size *= 2;
    }
    out
}

/// A column less its bias is below 2⁵¹ in magnitude: its low parts are at most 2⁴² for each
/// product; its high parts, in 2⁴³, are a sum of at most 72 products below 2⁸⁶ + 2⁵⁹, less the low
/// parts of the column before.
const _: () = {
    let mut k = 0;
    while k < 2 * LIMBS {
        let low = PRODUCTS[k] << 42;
        let high = 72 * ((1 << 43) + (1 << 16)) + PRODUCTS[k.saturating_sub(1)];
        assert!(low + high < 1 << 51);
        k += 1;
    }
};

/// What to add to a column: to the upper half so that it is a double around [`ONES`], to the lower
/// half so that it counts from [`LIFT`] once the bits of what folds into it are added.
static SHIFTS: [i64; 2 * LIMBS] = {
    let mut out = [0; 2 * LIMBS];
    let mut k = 0;
    while k < 2 * LIMBS {
        let start = if k >= LIMBS {
            ONES.to_bits()
        } else if k == 0 {
            LIFT.wrapping_sub(ONES.to_bits())
        } else {
            LIFT.wrapping_sub(ONES.to_bits())
                .wrapping_sub(FOLD_UNITS.to_bits() << 2)
        };
        out[k] = start.wrapping_sub(BIASES[k]) as i64;
        k += 1;
    }
    out
};

/// Multiplies `a` by `room.factor` in every lane. The limbs of the factor are from 0 to 2⁴³, those
/// of `a` from −2¹⁴ to 2⁴³ + 2¹⁴, before and after.
#[target_feature(enable = "avx2,fma")]
fn mul_group(a: &mut [Row; LIMBS], room: &mut Room) {
    let wide = &mut room.wide;
    product72(a, &room.factor, wide, &mut room.cross);

    let ones = _mm256_set1_pd(ONES);
    let one_bits = _mm256_castpd_si256(ones);
    let fold_units = _mm256_set1_pd(FOLD_UNITS);
    let fold_bits = _mm256_castpd_si256(fold_units);
    let both = _mm256_set1_pd(FOLD_UNITS + ONES);
    let fold = _mm256_set1_pd(FOLD);
    // A number below 2^51 times FOLD, below 2^96: ones and units of 2^45, as bits of doubles.
    let times_fold = |x: __m256i| {
        let x = _mm256_sub_pd(_mm256_castsi256_pd(x), ones);
        let high = _mm256_fmadd_pd(x, fold, fold_units);
        let low = _mm256_fmadd_pd(x, fold, _mm256_sub_pd(both, high));
        (_mm256_castpd_si256(low), _mm256_castpd_si256(high))
    };
    let shifted = |k: usize| _mm256_add_epi64(wide[k], _mm256_set1_epi64x(SHIFTS[k]));

    // The columns from 72 on fold into the columns 0 to 72, which are then below 2^53; columns 0
    // and 1 get more. The last first:
    let (_, high) = times_fold(shifted(2 * LIMBS - 2));
    let (low, over) = times_fold(shifted(2 * LIMBS - 1));
    let last = _mm256_add_epi64(shifted(LIMBS - 1), low);
    let last = _mm256_add_epi64(last, _mm256_slli_epi64::<2>(high));
    // Column 72 is 4 times this, below 2^51, and folds again: below 2^46 and 2^55.
    let over = _mm256_sub_epi64(over, fold_bits);
    let (low, high) = times_fold(_mm256_add_epi64(over, one_bits));
    let low = _mm256_slli_epi64::<2>(_mm256_sub_epi64(low, one_bits));
    let mut more = _mm256_slli_epi64::<4>(_mm256_sub_epi64(high, fold_bits));
    // And so does the carry of column 71, at most 2^10: below 2^55.
    let lift_carry = _mm256_set1_epi64x((LIFT >> BITS) as i64);
    let carry = _mm256_sub_epi64(_mm256_srli_epi64::<{ BITS as i32 }>(last), lift_carry);
    let carry = _mm256_mul_epi32(carry, _mm256_set1_epi64x(C as i64));
    let mut add = _mm256_add_epi64(low, _mm256_slli_epi64::<24>(carry));

    // Every column is now below LIFT in magnitude. Each carries what is above 43 bits to the next,
    // once, which is at most 2^13.
    let mask = _mm256_set1_epi64x(MASK as i64);
    let unlift = _mm256_sub_epi64(one_bits, lift_carry);
    let mut carry = one_bits;
    for (k, row) in a.iter_mut().enumerate() {
        let (low, high) = times_fold(shifted(LIMBS + k));
        let column = _mm256_add_epi64(_mm256_add_epi64(shifted(k), low), add);
        add = _mm256_add_epi64(_mm256_slli_epi64::<2>(high), more);
        more = _mm256_setzero_si256();
        let limb = _mm256_add_epi64(_mm256_and_si256(column, mask), carry);
        carry = _mm256_add_epi64(_mm256_srli_epi64::<{ BITS as i32 }>(column), unlift);
        *row = _mm256_sub_pd(_mm256_castsi256_pd(limb), ones);
    }
}

#[cfg(test)]
mod tests {
    use super::super::element;
    use super::*;
    use crate::hash::sha256;
    use proptest::prelude::*;

    /// Bounds of the limbs of a running product.
    const LEAST: i64 = -(1 << 14);
    const MOST: i64 = (1 << 43) + (1 << 14);

    type Limbs = [i64; LIMBS];

    fn runs(test: &str) -> bool {
        if !supported() {
            eprintln!("SKIPPED {test}: no AVX2 and FMA here");
        }
        supported()
    }

    /// The limbs of a number, all from 0 to 2⁴³.
    fn split(n: &Num3072) -> Limbs {
        std::array::from_fn(|i| {
            let (word, bit) = (BITS * i / 64, BITS * i % 64);
            let high = n.0.get(word + 1).copied().unwrap_or(0);
            let both = u128::from(n.0[word]) | u128::from(high) << 64;
            (both >> bit) as i64 & MASK as i64
        })
    }

    #[target_feature(enable = "avx2,fma")]
    fn rows(numbers: &[Limbs; 4]) -> [Row; LIMBS] {
        std::array::from_fn(|i| {
            let [a, b, c, d] = numbers.map(|limbs| limbs[i] as f64);
            _mm256_setr_pd(a, b, c, d)
        })
    }

    /// Multiplies four by four numbers and checks the products and their limbs; gives the limbs.
    fn check(a: &[Limbs; 4], b: &[Limbs; 4]) -> [Limbs; 4] {
        // SAFETY: only called where the features were found.
        let out = unsafe {
            let mut group = rows(a);
            let mut room = ones().room;
            room.factor = rows(b);
            mul_group(&mut group, &mut room);
            std::array::from_fn(|lane| limbs_of(&group, lane))
        };
        for (out, (a, b)) in out.iter().zip(a.iter().zip(b)) {
            assert!(out.iter().all(|limb| (LEAST..=MOST).contains(limb)));
            let mut want = gather(a);
            want.mul(&gather(b));
            assert_eq!(gather(out).to_bytes(), want.to_bytes());
        }
        out
    }

    /// `limbs[i]` is one bound or the other, so that the differences of all three levels of
    /// Karatsuba grow to the most: the sign of a limb there is that of its level's half.
    fn signs(even: i64, odd: i64) -> Limbs {
        std::array::from_fn(|i| {
            let halves = i / 36 + i / 18 % 2 + i / 9 % 2;
            if halves % 2 == 0 { even } else { odd }
        })
    }

    #[test]
    fn lanes_agree_with_the_portable_product() {
        if !runs("lanes_agree_with_the_portable_product") {
            return;
        }
        let mut lanes = Lanes::new().expect("supported");
        let mut want = vec![Num3072::ONE; HELD];
        for round in 0u8..60 {
            let digests: [Hash; HELD] = std::array::from_fn(|i| sha256(&[round, i as u8]));
            lanes.mul(&digests);
            for (n, digest) in want.iter_mut().zip(&digests) {
                n.mul(&element(digest));
            }
            assert_eq!(lanes.values().collect::<Vec<_>>(), want, "round {round}");
        }
    }

    #[test]
    fn limbs_of_numbers() {
        let mut p = Num3072([u64::MAX; 48]);
        p.0[0] = C.wrapping_neg();
        let random = element(&[7; 32]);
        for n in [Num3072::ONE, Num3072([u64::MAX; 48]), p, random] {
            assert_eq!(gather(&split(&n)).to_bytes(), n.to_bytes());
        }
        // −1 and 2^3096 − 1.
        let mut minus = [0; LIMBS];
        minus[0] = -1;
        let mut want = Num3072([u64::MAX; 48]);
        want.0[0] = (C + 1).wrapping_neg();
        assert_eq!(gather(&minus).to_bytes(), want.to_bytes());
        let mut want = Num3072([0; 48]);
        want.0[0] = (C << 24) - 1;
        assert_eq!(gather(&[MASK as i64; LIMBS]).to_bytes(), want.to_bytes());
        // What is carried out of the top and once more past it.
        let mut limbs = split(&Num3072([u64::MAX; 48]));
        limbs[0] += i64::from(u32::MAX);
        let mut want = Num3072([0; 48]);
        want.0[0] = u64::from(u32::MAX) + C - 1;
        assert_eq!(gather(&limbs).to_bytes(), want.to_bytes());
    }

    #[test]
    fn factors_with_every_bit_set() {
        if !runs("factors_with_every_bit_set") {
            return;
        }
        let all_ones = split(&Num3072([u64::MAX; 48]));
        let more = [MASK as i64; LIMBS];
        let (most, least) = ([MOST; LIMBS], [LEAST; LIMBS]);
        let mut a = [all_ones, more, most, least];
        for _ in 0..40 {
            a = check(&a, &[more; 4]);
            a = check(&a, &[all_ones; 4]);
        }
        let odd = signs(0, MASK as i64);
        let even = signs(MASK as i64, 0);
        let mut a = [signs(MOST, LEAST), signs(LEAST, MOST), most, least];
        check(&a, &[even; 4]);
        check(&a, &[odd; 4]);
        for _ in 0..40 {
            a = check(&a, &[even, odd, odd, even]);
        }
    }

    #[test]
    fn numbers_around_the_modulus() {
        if !runs("numbers_around_the_modulus") {
            return;
        }
        // From p − 4 to 2^3072, and small ones.
        let near = |n: u64| {
            let mut limbs = Num3072([u64::MAX; 48]);
            limbs.0[0] = (C + 4).wrapping_neg() + n;
            split(&limbs)
        };
        let mut numbers: Vec<Limbs> = (0..9).chain(C - 5..C + 4).map(near).collect();
        for n in [0, 1, 2, C, C + 1, u64::MAX] {
            let mut limbs = Num3072([0; 48]);
            limbs.0[0] = n;
            numbers.push(split(&limbs));
        }
        for a in numbers.chunks_exact(4) {
            for b in numbers.chunks_exact(4) {
                let a: [Limbs; 4] = a.try_into().expect("four");
                let mut b: [Limbs; 4] = b.try_into().expect("four");
                for _ in 0..4 {
                    check(&a, &b);
                    b.rotate_left(1);
                }
            }
        }
    }

    fn numbers(least: i64, most: i64) -> impl Strategy<Value = [Limbs; 4]> {
        let limb = prop_oneof![
            4 => least..=most,
            1 => Just(most),
            1 => Just(least),
            1 => Just(0),
            1 => Just(MASK as i64),
        ];
        prop::collection::vec(limb, 4 * LIMBS)
            .prop_map(|v| std::array::from_fn(|n| std::array::from_fn(|i| v[LIMBS * n + i])))
    }

    #[test]
    fn products_of_any_limbs() {
        if !runs("products_of_any_limbs") {
            return;
        }
        let config = ProptestConfig {
            cases: 60,
            ..ProptestConfig::default()
        };
        proptest!(config, |(a in numbers(LEAST, MOST), b in numbers(0, MASK as i64))| {
            let mut a = check(&a, &b);
            for _ in 0..3 {
                a = check(&a, &b);
            }
        });
    }
}
