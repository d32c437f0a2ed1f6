//! End-to-end sessions: Noise IK between the two ends of a path, carried in LSP signalling, renewed inside itself.
//!
//! A session has one index for its whole life; each handshake (the first, a rekey, a new one after a restart of the
//! peer) gives it another *epoch* of keys. The responder adds an epoch to receive only and sends under it when the
//! initiator has shown to have the keys: a replayed first message leads to nothing but a half-open epoch that expires,
//! and never displaces one in use. The AEAD of the data path is the responder's choice, which the initiator recomputes
//! from both sides' capabilities, all under the handshake's own encryption: nobody between can lower it.

mod handshake;
mod message;
mod oam;
mod opening;
mod paths;
mod table;

use zeroize::{Zeroize, ZeroizeOnDrop};

pub(crate) use self::table::{Mesh, Sessions};

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
