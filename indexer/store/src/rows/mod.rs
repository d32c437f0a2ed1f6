//! What the bytes in the database are. This module and its files own every row format: nothing
//! else in the project knows how a key or a value is laid out.
//!
//! | family | key | value | file |
//! |---|---|---|---|
//! | `coins` | txnum (5), vout (1, 3 or 5) | amount, script | [`coin`] |
//! | `script_coins` | script key (10), txnum (5), vout (1, 3 or 5) | amount | [`script`] |
//! | `history` | script key (10), first txnum (5) | the following txnums as differences | [`script`] |
//! | `txids` | first 5 bytes of the txid, txnum (5) | nothing | [`tx`] |
//! | `txs` | height (3), chunk (2) | up to 16 txids with place and length in the block | [`tx`] |
//! | `headers` | 0, height (4) | hash, header, work, commitment, totals | [`block`] |
//! | `headers` | 1, first 8 bytes of the hash, height (4) | nothing | [`block`] |
//! | `undo` | height (4) | the coins the block spent | [`block`] |
//! | `meta` | a name | salt, chain, format; tip with the state of the commitment | [`meta`] |
//!
//! A *txnum* is height and position in the block, so it sorts like the chain, tells height and
//! coinbase-ness without another row, and is the short name of a transaction everywhere. Numbers
//! in keys are big endian so that they sort; numbers in values are variable-length ([`num`]).

pub mod block;
pub mod coin;
pub mod meta;
pub mod num;
pub mod script;
pub mod tx;

pub use num::TxNum;

/// A row whose bytes are not what its format says. With checksums on every block of the database
/// this means a defect of the program or a foreign database, not a failing disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a row of `{family}` is malformed: {what}; key {}", hex(.key))]
pub struct BadRow {
    /// The column family.
    pub family: &'static str,
    /// Which part does not fit.
    pub what: &'static str,
    /// The row's key.
    pub key: Vec<u8>,
}

impl BadRow {
    /// Names the part `what` of the row under `key` in `family`.
    pub fn new(family: &'static str, what: &'static str, key: &[u8]) -> Self {
        Self {
            family,
            what,
            key: key.to_vec(),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut s, b| {
        let _ = write!(s, "{b:02x}");
        s
    })
}
