//! The AEAD of sessions, in place.
//!
//! Nonces: ChaCha20-Poly1305 (RFC 8439) takes four zero bytes and the counter in little-endian order, AES-256-GCM four
//! zero bytes and the counter in big-endian order, as Noise does. No additional data.

use ring::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey};
use weft_core::session::Cipher;

/// Bytes of the AEAD's tag.
pub const TAG: usize = 16;

/// A key of one direction and epoch.
pub struct Key {
    key: LessSafeKey,
    cipher: Cipher,
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({:?}, ..)", self.cipher)
    }
}

impl Key {
    /// From the 32 bytes the handshake gave.
    pub fn new(cipher: Cipher, bytes: &[u8; 32]) -> Self {
        let algorithm = match cipher {
            Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
            Cipher::Aes256Gcm => &aead::AES_256_GCM,
        };
        // Both algorithms take exactly 32 bytes, which the type guarantees.
        let key = UnboundKey::new(algorithm, bytes).expect("32 bytes are a key of either cipher");
        Self {
            key: LessSafeKey::new(key),
            cipher,
        }
    }

    fn nonce(&self, counter: u64) -> Nonce {
        let mut nonce = [0; aead::NONCE_LEN];
        nonce[4..].copy_from_slice(&match self.cipher {
            Cipher::ChaCha20Poly1305 => counter.to_le_bytes(),
            Cipher::Aes256Gcm => counter.to_be_bytes(),
        });
        Nonce::assume_unique_for_key(nonce)
    }

    /// Encrypts the first `len` bytes and writes the tag behind them; returns the length of both, or none where the
    /// buffer is too short. The counter must never have been used with this key.
    pub fn seal(&self, counter: u64, buffer: &mut [u8], len: usize) -> Option<usize> {
        let (plain, rest) = buffer.split_at_mut_checked(len)?;
        let room = rest.get_mut(..TAG)?;
        let tag = self
            .key
            .seal_in_place_separate_tag(self.nonce(counter), Aad::empty(), plain)
            .ok()?;
        room.copy_from_slice(tag.as_ref());
        Some(len + TAG)
    }

    /// Decrypts ciphertext and tag in place; none where they are not authentic.
    pub fn open<'a>(&self, counter: u64, sealed: &'a mut [u8]) -> Option<&'a mut [u8]> {
        self.key
            .open_in_place(self.nonce(counter), Aad::empty(), sealed)
            .ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_opens_and_altered_does_not() {
        for cipher in [Cipher::ChaCha20Poly1305, Cipher::Aes256Gcm] {
            let key = Key::new(cipher, &[7; 32]);
            let mut buffer = [0; 64];
            buffer[..5].copy_from_slice(b"hello");
            assert_eq!(key.seal(9, &mut buffer, 5), Some(5 + TAG));
            let sealed = buffer[..5 + TAG].to_vec();
            assert_eq!(key.open(9, &mut sealed.clone()).unwrap(), b"hello");
            assert!(key.open(10, &mut sealed.clone()).is_none());
            let mut altered = sealed;
            altered[0] ^= 1;
            assert!(key.open(9, &mut altered).is_none());
            assert_eq!(key.seal(11, &mut [0; 20], 5), None);
        }
    }
}
