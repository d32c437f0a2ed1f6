//! End-to-end sessions.

use zeroize::{Zeroize, ZeroizeOnDrop};

/// Keys of one epoch of a session, for the data path. 32 bytes each whatever the cipher. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SessionKeys {
    /// AEAD in use.
    #[zeroize(skip)]
    pub cipher: Cipher,
    /// Key for what this node sends.
    pub tx: [u8; 32],
    /// Key for what this node receives.
    pub rx: [u8; 32],
}

/// AEADs of sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// ChaCha20-Poly1305 (RFC 8439).
    ChaCha20Poly1305,
    /// AES-256-GCM.
    Aes256Gcm,
}

impl Cipher {
    /// The name people know.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
            Self::Aes256Gcm => "AES-256-GCM",
        }
    }
}

impl core::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SessionKeys({:?}, ..)", self.cipher)
    }
}
