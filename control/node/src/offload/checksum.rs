//! The Internet checksum (RFC 1071), over many bytes at a time.
//!
//! The sum of 16-bit words does not depend on their byte order (RFC 1071, section 2 B), so words are added as the
//! processor reads them, and only the folded result is put into network order.

/// A running one's-complement sum, in the processor's byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Adds bytes. All parts but the last must have an even length.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if bytes.len() >= 128 && std::arch::is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return self.plus(unsafe { wide_avx2(bytes) });
        }
        self.plus(wide(bytes))
    }

    /// Adds one number of the packet.
    #[inline]
    #[must_use]
    pub fn word(self, word: u16) -> Self {
        self.plus(u64::from(word.to_be()))
    }

    /// Takes a checksum field's present value out, so that a later [`Sum::checksum`] is what would replace it.
    #[inline]
    #[must_use]
    pub fn without(self, word: u16) -> Self {
        self.word(!word)
    }

    /// The pseudo-header of TCP and UDP: addresses (of one family) as they stand in the packet, protocol, length of
    /// transport header and payload.
    #[inline]
    #[must_use]
    pub fn pseudo(addresses: &[u8], protocol: u8, len: usize) -> Self {
        Self::default()
            .bytes(addresses)
            .word(u16::from(protocol))
            .word((len >> 16) as u16)
            .word(len as u16)
    }

    #[inline]
    fn plus(self, other: u64) -> Self {
        let (sum, carry) = self.0.overflowing_add(other);
        Self(sum + u64::from(carry))
    }

    /// The sum as a field of a packet: not inverted, as partial checksums are.
    #[inline]
    pub fn folded(self) -> u16 {
        let mut sum = (self.0 & 0xffff_ffff) + (self.0 >> 32);
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// RFC 1624: the checksum after a 16-bit word changed from `old` to `new`.
#[inline]
pub fn adjusted(checksum: u16, old: u16, new: u16) -> u16 {
    Sum::default()
        .word(!checksum)
        .word(!old)
        .word(new)
        .checksum()
}

/// The sum, not folded, 32 bits at a time.
#[inline]
fn wide(bytes: &[u8]) -> u64 {
    let mut sum = 0u64;
    let (words, tail) = bytes.as_chunks::<4>();
    for word in words {
        // No carry is lost in less than 2^32 words.
        sum += u64::from(u32::from_ne_bytes(*word));
    }
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    sum + u64::from(u32::from_ne_bytes(last))
}

/// The same, 64 bytes at a time: halves of 32 bits go to lanes of 64, in four sums that do not wait for each other.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn wide_avx2(bytes: &[u8]) -> u64 {
    use std::arch::x86_64::{
        __m256i, _mm256_add_epi64, _mm256_loadu_si256, _mm256_setzero_si256, _mm256_storeu_si256,
        _mm256_unpackhi_epi32, _mm256_unpacklo_epi32,
    };

    let zero = _mm256_setzero_si256();
    let mut sums = [zero; 4];
    let (chunks, rest) = bytes.as_chunks::<64>();
    for chunk in chunks {
        // SAFETY: both halves of 32 bytes are within the chunk, and the load needs no alignment.
        let (low, high): (__m256i, __m256i) = unsafe {
            (
                _mm256_loadu_si256(chunk.as_ptr().cast()),
                _mm256_loadu_si256(chunk.as_ptr().add(32).cast()),
            )
        };
        sums[0] = _mm256_add_epi64(sums[0], _mm256_unpacklo_epi32(low, zero));
        sums[1] = _mm256_add_epi64(sums[1], _mm256_unpackhi_epi32(low, zero));
        sums[2] = _mm256_add_epi64(sums[2], _mm256_unpacklo_epi32(high, zero));
        sums[3] = _mm256_add_epi64(sums[3], _mm256_unpackhi_epi32(high, zero));
    }
    let all = _mm256_add_epi64(
        _mm256_add_epi64(sums[0], sums[1]),
        _mm256_add_epi64(sums[2], sums[3]),
    );
    let mut lanes = [0u64; 4];
    // SAFETY: four lanes of 64 bits are 32 bytes, and the store needs no alignment.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), all) };
    lanes.iter().sum::<u64>() + wide(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(bytes: &[u8]) -> u16 {
        let mut sum = 0u64;
        for pair in bytes.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    #[test]
    fn the_example_of_rfc_1071() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.folded(), 0xddf2);
    }

    proptest::proptest! {
        #[test]
        fn agrees_with_the_plain_sum(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..3000), cut: u16) {
            let cut = (usize::from(cut) % (bytes.len() + 1)) & !1;
            let sum = Sum::default().bytes(&bytes[..cut]).bytes(&bytes[cut..]);
            proptest::prop_assert_eq!(sum.checksum(), plain(&bytes));
        }

        #[test]
        fn adjusting_is_computing_anew(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 4..64), new: u16) {
            bytes.truncate(bytes.len() & !1);
            // A checksum over nothing but zeros is the one case RFC 1624 excludes.
            bytes[2] |= 1;
            let old = u16::from_be_bytes([bytes[0], bytes[1]]);
            let before = plain(&bytes);
            bytes[..2].copy_from_slice(&new.to_be_bytes());
            proptest::prop_assert_eq!(adjusted(before, old, new), plain(&bytes));
        }
    }
}
