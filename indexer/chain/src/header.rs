//! Block headers: 80 bytes, the same in every chain here.

use crate::hash::sha256d;
use crate::{Error, Hash};

/// A block header.
///
/// Layout, little endian: version i32, previous block's hash 32, Merkle root 32, time u32, bits
/// u32, nonce u32.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Version, with the chain's flags in it.
    pub version: i32,
    /// Hash of the block before; zero for the genesis block.
    pub prev: Hash,
    /// Root of the Merkle tree of transaction ids.
    pub merkle_root: Hash,
    /// Seconds of Unix time, as the miner claims.
    pub time: u32,
    /// Compact form of the target, see [`crate::pow::Target`].
    pub bits: u32,
    /// Nonce.
    pub nonce: u32,
}

impl Header {
    /// Bytes of a header.
    pub const LEN: usize = 80;

    /// Reads a header; any 80 bytes are one.
    pub fn from_bytes(b: &[u8; 80]) -> Self {
        let word = |at: usize| u32::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
        let hash = |at: usize| {
            let mut h = [0; 32];
            h.copy_from_slice(&b[at..at + 32]);
            h
        };
        Self {
            version: word(0) as i32,
            prev: hash(4),
            merkle_root: hash(36),
            time: word(68),
            bits: word(72),
            nonce: word(76),
        }
    }

    /// Reads the header that `bytes` begin with.
    pub fn from_prefix(bytes: &[u8]) -> Result<Self, Error> {
        let head = bytes.first_chunk::<80>().ok_or(Error::Truncated {
            what: "header",
            at: 0,
            want: 80,
            have: bytes.len(),
        })?;
        Ok(Self::from_bytes(head))
    }

    /// The 80 bytes.
    pub fn to_bytes(&self) -> [u8; 80] {
        let mut b = [0; 80];
        b[..4].copy_from_slice(&self.version.to_le_bytes());
        b[4..36].copy_from_slice(&self.prev);
        b[36..68].copy_from_slice(&self.merkle_root);
        b[68..72].copy_from_slice(&self.time.to_le_bytes());
        b[72..76].copy_from_slice(&self.bits.to_le_bytes());
        b[76..].copy_from_slice(&self.nonce.to_le_bytes());
        b
    }

    /// The hash blocks are known by: SHA256d in every chain here, whatever the proof of work is.
    pub fn hash(&self) -> Hash {
        sha256d(&self.to_bytes())
    }
}
