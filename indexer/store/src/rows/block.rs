//! Families `headers` and `undo`: the active chain and how to go back on it.
//!
//! `headers`, by height: key: 0x00 ‖ height u32 big endian; value: block hash (32) ‖ header (80) ‖
//! work of the chain up to here (16, big endian) ‖ MuHash of the coin set after the block (32; zero
//! where the commitment is off) ‖ varints: bytes of the block, transactions up to here, coins, sum
//! of their amounts, their "bogosize" (script length + 50 each, as Core counts).
//! `headers`, by hash: key: 0x01 ‖ first 8 bytes of the hash ‖ height u32 big endian; no value.
//!
//! `undo`: key: height u32 big endian; value: varint number of coins the block took from earlier
//! blocks, then each: txnum (5), varint vout, amount and script as in `coins`; varint number of scripts
//! of outputs that are no coins after the block (made and spent within it, or never coins), then their
//! script keys (10 each).

use weft_chain::{Hash, Header};

use super::BadRow;
use super::coin::{self, Body};
use super::num::{self, TxNum};
use super::script::{KEY_LEN, ScriptKey};

/// Name of the family of headers.
pub const HEADERS: &str = "headers";
/// Name of the family of undo data.
pub const UNDO: &str = "undo";

/// Totals over the chain up to and including a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Transactions.
    pub txs: u64,
    /// Coins in the set.
    pub coins: u64,
    /// Sum of the coins' amounts, smallest units.
    pub amount: u64,
    /// Sum of script length + 50 over the coins.
    pub bogosize: u64,
}

/// What is kept of a block of the active chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderRow {
    /// Its hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
    /// Work of the chain up to it.
    pub work: u128,
    /// MuHash of the coin set after it, in the order of the wire; `None` where the commitment is off.
    pub muhash: Option<Hash>,
    /// Bytes of the block.
    pub size: u32,
    /// Totals after it.
    pub totals: Totals,
}

/// Key of the header at a height.
pub fn height_key(height: u32) -> [u8; 5] {
    let [a, b, c, d] = height.to_be_bytes();
    [0, a, b, c, d]
}

/// Reads the height of a [`height_key`].
pub fn read_height_key(key: &[u8]) -> Result<u32, BadRow> {
    match *key {
        [0, a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(BadRow::new(HEADERS, "the key", key)),
    }
}

/// What the keys of blocks with hashes like this begin with.
pub fn hash_prefix(hash: &Hash) -> [u8; 9] {
    // The last bytes in the order of the wire are the zeros of the work; the first are random.
    let mut out = [1; 9];
    out[1..].copy_from_slice(&hash[..8]);
    out
}

/// Key by hash.
pub fn hash_key(hash: &Hash, height: u32) -> [u8; 13] {
    let mut out = [0; 13];
    out[..9].copy_from_slice(&hash_prefix(hash));
    out[9..].copy_from_slice(&height.to_be_bytes());
    out
}

/// Reads the height of a [`hash_key`].
pub fn read_hash_key(key: &[u8]) -> Result<u32, BadRow> {
    match *key {
        [1, _, _, _, _, _, _, _, _, a, b, c, d] => Ok(u32::from_be_bytes([a, b, c, d])),
        _ => Err(BadRow::new(HEADERS, "the key", key)),
    }
}

impl HeaderRow {
    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(32 + 80 + 32 + 32 + 24);
        out.extend_from_slice(&self.hash);
        out.extend_from_slice(&self.header.to_bytes());
        out.extend_from_slice(&self.work.to_be_bytes());
        out.extend_from_slice(&self.muhash.unwrap_or_default());
        let t = &self.totals;
        for n in [u64::from(self.size), t.txs, t.coins, t.amount, t.bogosize] {
            num::put_varint(&mut out, n);
        }
        out
    }

    /// Reads the value under `key`.
    pub fn decode(key: &[u8], mut value: &[u8]) -> Result<Self, BadRow> {
        let v = &mut value;
        let row = (|| {
            let hash = num::take_array(v)?;
            let header = Header::from_bytes(&num::take_array(v)?);
            let work = u128::from_be_bytes(num::take_array(v)?);
            let muhash = Some(num::take_array(v)?).filter(|h| *h != [0; 32]);
            let size = u32::try_from(num::get_varint(v)?).ok()?;
            let totals = Totals {
                txs: num::get_varint(v)?,
                coins: num::get_varint(v)?,
                amount: num::get_varint(v)?,
                bogosize: num::get_varint(v)?,
            };
            Some(Self {
                hash,
                header,
                work,
                muhash,
                size,
                totals,
            })
        })();
        row.filter(|_| value.is_empty())
            .ok_or_else(|| BadRow::new(HEADERS, "the value", key))
    }
}

/// A coin a block took from the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentCoin {
    /// Transaction that made it.
    pub txnum: TxNum,
    /// Its position among the outputs.
    pub vout: u32,
    /// Amount and script.
    pub body: Body,
}

/// What going back on a block needs beyond the rows the block made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UndoRow {
    /// Coins of earlier blocks that it spent.
    pub spent: Vec<SpentCoin>,
    /// Scripts of outputs that are no coins after it.
    pub passing: Vec<ScriptKey>,
}

/// Key of the undo data of the block at a height.
pub fn undo_key(height: u32) -> [u8; 4] {
    height.to_be_bytes()
}

/// Reads an [`undo_key`].
pub fn read_undo_key(key: &[u8]) -> Result<u32, BadRow> {
    key.try_into()
        .map(u32::from_be_bytes)
        .map_err(|_| BadRow::new(UNDO, "the key", key))
}

impl UndoRow {
    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(16 + 40 * self.spent.len() + KEY_LEN * self.passing.len());
        num::put_varint(&mut out, self.spent.len() as u64);
        for coin in &self.spent {
            out.extend_from_slice(&coin.txnum.to_bytes());
            num::put_varint(&mut out, coin.vout.into());
            out.extend_from_slice(coin.body.as_bytes());
        }
        num::put_varint(&mut out, self.passing.len() as u64);
        self.passing
            .iter()
            .for_each(|k| out.extend_from_slice(&k.0));
        out
    }

    /// Reads the value under `key`.
    pub fn decode(key: &[u8], mut value: &[u8]) -> Result<Self, BadRow> {
        let v = &mut value;
        let row = (|| {
            let n = num::get_varint(v)?;
            let mut spent = Vec::new();
            for _ in 0..n {
                let txnum = TxNum::from_bytes(num::take_array(v)?);
                let vout = u32::try_from(num::get_varint(v)?).ok()?;
                let start = *v;
                coin::decode_prefix(v)?;
                spent.push(SpentCoin {
                    txnum,
                    vout,
                    body: Body::from_encoded(&start[..start.len() - v.len()]),
                });
            }
            let n = num::get_varint(v)?;
            let mut passing = Vec::new();
            for _ in 0..n {
                passing.push(ScriptKey(num::take_array(v)?));
            }
            Some(Self { spent, passing })
        })();
        row.filter(|_| value.is_empty())
            .ok_or_else(|| BadRow::new(UNDO, "the value", key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    prop_compose! {
        fn spent()(h in 0u32..=TxNum::MAX_HEIGHT, i in 0u32..=TxNum::MAX_INDEX, vout: u32, value in 0u64..=1 << 60, script in proptest::collection::vec(any::<u8>(), 0..80)) -> SpentCoin {
            SpentCoin { txnum: TxNum::new(h, i).unwrap(), vout, body: Body::encode(value, &script, &mut Vec::new()) }
        }
    }

    proptest! {
        #[test]
        fn undo_round_trips(spent in proptest::collection::vec(spent(), 0..20), passing in proptest::collection::vec(any::<[u8; KEY_LEN]>().prop_map(ScriptKey), 0..20), height: u32) {
            let row = UndoRow { spent, passing };
            let key = undo_key(height);
            prop_assert_eq!(read_undo_key(&key).unwrap(), height);
            prop_assert_eq!(UndoRow::decode(&key, &row.encode()).unwrap(), row);
        }

        #[test]
        fn headers_round_trip(hash: [u8; 32], head in proptest::collection::vec(any::<u8>(), 80), work: u128, muhash in proptest::option::of(any::<[u8; 32]>()), size: u32, t: (u64, u64, u64, u64), height: u32) {
            let row = HeaderRow {
                hash, header: Header::from_bytes(&head.try_into().unwrap()), work, muhash, size,
                totals: Totals { txs: t.0, coins: t.1, amount: t.2, bogosize: t.3 },
            };
            let key = height_key(height);
            prop_assert_eq!(read_height_key(&key).unwrap(), height);
            prop_assert_eq!(read_hash_key(&hash_key(&hash, height)).unwrap(), height);
            prop_assert_eq!(HeaderRow::decode(&key, &row.encode()).unwrap(), row);
        }

        #[test]
        fn any_bytes_are_answered(key: Vec<u8>, value: Vec<u8>) {
            let _ = read_height_key(&key);
            let _ = read_hash_key(&key);
            let _ = read_undo_key(&key);
            let _ = HeaderRow::decode(&key, &value);
            let _ = UndoRow::decode(&key, &value);
        }
    }
}
