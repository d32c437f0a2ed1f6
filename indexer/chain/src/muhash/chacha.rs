//! ChaCha20 key stream (RFC 8439 block function, nonce 0, counter from 0).

pub(super) const CONSTANTS: [u32; 4] = [0x6170_7865, 0x3320_646e, 0x7962_2d32, 0x6b20_6574];

/// The first 384 bytes of key stream under `key`: six blocks.
pub(super) fn keystream(key: &[u8; 32]) -> [u8; 384] {
    #[cfg(target_arch = "x86_64")]
    if let Some(stream) = super::avx2::keystream(key) {
        return stream;
    }
    portable(key)
}

fn portable(key: &[u8; 32]) -> [u8; 384] {
    let mut state = [0u32; 16];
    state[..4].copy_from_slice(&CONSTANTS);
    for (word, bytes) in state[4..12].iter_mut().zip(key.as_chunks().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let mut out = [0; 384];
    for block in out.chunks_exact_mut(64) {
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
        for (bytes, (x, word)) in block.chunks_exact_mut(4).zip(x.into_iter().zip(state)) {
            bytes.copy_from_slice(&x.wrapping_add(word).to_le_bytes());
        }
        state[12] += 1;
    }
    out
}

#[inline(always)]
fn quarter(x: &mut [u32; 16], a: usize, b: usize, c: usize, d: usize) {
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(16);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(12);
    x[a] = x[a].wrapping_add(x[b]);
    x[d] = (x[d] ^ x[a]).rotate_left(8);
    x[c] = x[c].wrapping_add(x[d]);
    x[b] = (x[b] ^ x[c]).rotate_left(7);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_stream() {
        for seed in 0..50u8 {
            let key = crate::hash::sha256(&[seed]);
            assert_eq!(keystream(&key), portable(&key));
        }
    }

    #[test]
    fn the_stream_of_the_zero_key() {
        // RFC 8439, A.1, test vectors 1 and 2: blocks 0 and 1 under the zero key and nonce.
        let stream = keystream(&[0; 32]);
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
