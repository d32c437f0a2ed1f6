//! To come.

/// Keys of one epoch of a session, for the data path. 32 bytes each whatever the cipher.
#[derive(Clone)]
pub struct SessionKeys {
    /// AEAD in use.
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

impl core::fmt::Debug for SessionKeys {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "SessionKeys({:?}, ..)", self.cipher)
    }
}
