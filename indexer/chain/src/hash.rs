//! SHA-256 and its double, and how hashes are shown.

use sha2::{Digest, Sha256};

/// 32 bytes in the order of the wire. Block hashes, transaction ids and Merkle roots are shown
/// reversed, see [`hex`].
pub type Hash = [u8; 32];

/// The hash that stands for "no block": what a genesis header names as its predecessor.
pub const ZERO: Hash = [0; 32];

/// SHA-256.
pub fn sha256(data: &[u8]) -> Hash {
    Sha256::digest(data).into()
}

/// SHA-256 of what comes in pieces.
#[derive(Debug, Clone, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Appends a piece.
    pub fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    /// Of all pieces.
    pub fn finish(self) -> Hash {
        self.0.finalize().into()
    }
}

/// SHA-256 applied twice.
pub fn sha256d(data: &[u8]) -> Hash {
    sha256d_parts(&[data])
}

/// SHA-256 applied twice to the concatenation of `parts`.
pub fn sha256d_parts(parts: &[&[u8]]) -> Hash {
    let mut h = Sha256::new();
    for part in parts {
        h.update(part);
    }
    sha256(&h.finalize())
}

/// The reversed hexadecimal form in which nodes and wallets show a hash.
pub fn hex(hash: &Hash) -> String {
    use std::fmt::Write;
    hash.iter()
        .rev()
        .fold(String::with_capacity(64), |mut s, b| {
            let _ = write!(s, "{b:02x}");
            s
        })
}

/// Reads the reversed hexadecimal form of [`hex`]; `None` unless it is exactly 64 digits.
pub fn from_hex(text: &str) -> Option<Hash> {
    let text = text.as_bytes();
    if text.len() != 64 {
        return None;
    }
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().rev().zip(text.chunks_exact(2)) {
        let digit = |c: u8| char::from(c).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(out)
}
