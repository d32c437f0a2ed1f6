//! Coins: unspent outputs, and which outputs never become one.

use crate::Hash;
use crate::hash::sha256;
use crate::wire::put_compact_size;

/// Names an output of a transaction.
///
/// Ordered as the coin-set commitments want it: transaction id by its bytes, then the output's
/// position as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutPoint {
    /// The transaction.
    pub txid: Hash,
    /// Position of the output in it, from 0.
    pub vout: u32,
}

impl OutPoint {
    /// What the input of a coinbase transaction names.
    pub const NULL: Self = Self {
        txid: [0; 32],
        vout: u32::MAX,
    };

    /// Whether this is the mark of a coinbase transaction.
    pub fn is_null(&self) -> bool {
        *self == Self::NULL
    }

    /// The 36 bytes of the wire: id, then position little endian.
    pub fn to_bytes(&self) -> [u8; 36] {
        let mut out = [0; 36];
        out[..32].copy_from_slice(&self.txid);
        out[32..].copy_from_slice(&self.vout.to_le_bytes());
        out
    }

    /// Reads [`OutPoint::to_bytes`].
    pub fn from_bytes(bytes: &[u8; 36]) -> Self {
        let (txid, vout) = bytes.split_at(32);
        Self {
            txid: txid.try_into().expect("32 of 36 bytes"),
            vout: u32::from_le_bytes(vout.try_into().expect("4 of 36 bytes")),
        }
    }
}

impl std::fmt::Display for OutPoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", crate::hash::hex(&self.txid), self.vout)
    }
}

/// An unspent output.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Coin {
    /// Smallest units; at most `i64::MAX`, as the wire has it signed.
    pub value: u64,
    /// Height of the block that made it.
    pub height: u32,
    /// Whether a coinbase transaction made it: such a coin matures after 100 blocks.
    pub coinbase: bool,
    /// Output script.
    pub script: Vec<u8>,
}

/// Longest script that can be executed; an output with a longer one is no coin.
pub const MAX_SCRIPT: usize = 10_000;

/// Whether an output with this script never enters the coin set: it begins with `OP_RETURN`
/// (0x6a) or is longer than 10,000 bytes. An empty script is spendable.
#[inline]
pub fn is_unspendable(script: &[u8]) -> bool {
    script.first() == Some(&0x6a) || script.len() > MAX_SCRIPT
}

/// SHA-256 of an output script: the name under which the Electrum protocol knows it (which shows
/// it reversed, as [`crate::hash::hex`] does).
pub fn script_hash(script: &[u8]) -> Hash {
    sha256(script)
}

/// Height and coinbase in one number, as the commitments and the databases have it.
#[inline]
pub fn code(height: u32, coinbase: bool) -> u32 {
    height << 1 | u32::from(coinbase)
}

/// Appends the form of a coin that MuHash and `hash_serialized_3` hash: txid, vout u32, code u32,
/// value i64, all little endian, CompactSize length, script.
pub fn put_coin(out: &mut Vec<u8>, at: &OutPoint, code: u32, value: u64, script: &[u8]) {
    let mut fixed = [0u8; 48];
    fixed[..32].copy_from_slice(&at.txid);
    fixed[32..36].copy_from_slice(&at.vout.to_le_bytes());
    fixed[36..40].copy_from_slice(&code.to_le_bytes());
    fixed[40..48].copy_from_slice(&value.to_le_bytes());
    out.extend_from_slice(&fixed);
    put_compact_size(out, script.len() as u64);
    out.extend_from_slice(script);
}
