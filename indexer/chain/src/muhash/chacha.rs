//! ChaCha20 key stream (RFC 8439 block function, nonce 0, counter from 0), portable.
//!
//! Eight blocks are computed side by side in arrays of eight words, which compilers turn into
//! vector instructions; six of them are used.

#![allow(unsafe_code)]

pub(super) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// A word of eight blocks.
type Words = [u32; 8];

/// The first 384 bytes of key stream under `key`: six blocks.
pub(super) fn keystream(key: &[u8; 32]) -> [u8; 384] {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has the feature.
        return unsafe { keystream_avx2(key) };
    }
    blocks(key)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn keystream_avx2(key: &[u8; 32]) -> [u8; 384] {
    blocks(key)
}

#[inline(always)]
fn blocks(key: &[u8; 32]) -> [u8; 384] {
    let mut state: [Words; 16] = [[0; 8]; 16];
    for (words, constant) in state.iter_mut().zip(CONSTANTS) {
        *words = [constant; 8];
    }
    for (words, bytes) in state[4..12].iter_mut().zip(key.chunks_exact(4)) {
        *words = [u32::from_le_bytes(bytes.try_into().expect("chunks of 4")); 8];
    }
    state[12] = [0, 1, 2, 3, 4, 5, 6, 7];
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
    let mut out = [0; 384];
    for (block, bytes) in out.chunks_exact_mut(64).enumerate() {
        for (w, bytes) in bytes.chunks_exact_mut(4).enumerate() {
            bytes.copy_from_slice(&x[w][block].wrapping_add(state[w][block]).to_le_bytes());
        }
    }
    out
}

#[inline(always)]
fn add(x: &mut [Words; 16], a: usize, b: usize) {
    let other = x[b];
    for (word, other) in x[a].iter_mut().zip(other) {
        *word = word.wrapping_add(other);
    }
}

#[inline(always)]
fn turn<const N: u32>(x: &mut [Words; 16], a: usize, b: usize) {
    let other = x[b];
    for (word, other) in x[a].iter_mut().zip(other) {
        *word = (*word ^ other).rotate_left(N);
    }
}

#[inline(always)]
fn quarter(x: &mut [Words; 16], a: usize, b: usize, c: usize, d: usize) {
    add(x, a, b);
    turn::<16>(x, d, a);
    add(x, c, d);
    turn::<12>(x, b, c);
    add(x, a, b);
    turn::<8>(x, d, a);
    add(x, c, d);
    turn::<7>(x, b, c);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stream_of_the_zero_key() {
        // RFC 8439, A.1, test vectors 1 and 2: blocks 0 and 1 under the zero key and nonce.
        let stream = keystream(&[0; 32]);
        assert_eq!(stream, blocks(&[0; 32]));
        assert_eq!(
            stream[..8],
            [0x76, 0xb8, 0xe0, 0xad, 0xa0, 0xf1, 0x3d, 0x90]
        );
        assert_eq!(
            stream[64..72],
            [0x9f, 0x07, 0xe7, 0xbe, 0x55, 0x51, 0x38, 0x7a]
        );
    }
}
