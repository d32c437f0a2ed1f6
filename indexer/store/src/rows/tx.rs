//! Families `txids` and `txs`: from a transaction's id to its [`TxNum`] and back, and its place in
//! the block.
//!
//! `txids`: key: first 5 bytes of the id ‖ [`TxNum`] (5); no value. Ids that begin alike are rows
//! side by side; which one is meant is decided by the whole id in `txs`.
//!
//! `txs`: key: height (3) ‖ number of the chunk (2), big endian; value: number of transactions `n`
//! (1 byte, at most [`CHUNK`]) ‖ `n` ids (32) ‖ varint of the first one's offset in the block ‖
//! `n` varints: their lengths in bytes. Transactions follow each other without a gap.

use weft_chain::Hash;

use super::BadRow;
use super::num::{self, TxNum};

/// Name of the family from id to txnum.
pub const TXIDS: &str = "txids";
/// Name of the family from txnum to id.
pub const TXS: &str = "txs";
/// Transactions in a chunk.
pub const CHUNK: usize = 16;
/// Bytes of the id in a key of `txids`.
pub const PREFIX: usize = 5;

/// Key of `txids`.
pub fn txid_key(txid: &Hash, txnum: TxNum) -> [u8; PREFIX + 5] {
    let mut out = [0; PREFIX + 5];
    out[..PREFIX].copy_from_slice(&txid[..PREFIX]);
    out[PREFIX..].copy_from_slice(&txnum.to_bytes());
    out
}

/// Reads the txnum in a key of `txids`.
pub fn read_txid_key(key: &[u8]) -> Result<TxNum, BadRow> {
    match key.split_at_checked(PREFIX) {
        Some((_, rest)) if rest.len() == 5 => {
            Ok(TxNum::from_bytes(rest.try_into().expect("5 bytes")))
        }
        _ => Err(BadRow::new(TXIDS, "the key", key)),
    }
}

/// Key of the chunk that holds `txnum`.
pub fn chunk_key(txnum: TxNum) -> [u8; 5] {
    let first = TxNum::first_of(txnum.height()).to_u64();
    TxNum::from_low_bits(first + u64::from(txnum.index()) / CHUNK as u64).to_bytes()
}

/// Height and position of the first transaction of the chunk with this key.
pub fn read_chunk_key(key: &[u8]) -> Result<TxNum, BadRow> {
    let bad = || BadRow::new(TXS, "the key", key);
    let n = TxNum::from_bytes(key.try_into().map_err(|_| bad())?);
    TxNum::new(n.height(), n.index() * CHUNK as u32).ok_or_else(bad)
}

/// Where a transaction is within its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Bytes before it in the serialised block.
    pub offset: u32,
    /// Its length in bytes.
    pub len: u32,
}

/// Appends a chunk of at most [`CHUNK`] transactions that follow each other.
pub fn put_chunk(out: &mut Vec<u8>, txids: &[Hash], spans: &[Span]) {
    debug_assert!(txids.len() == spans.len() && (1..=CHUNK).contains(&txids.len()));
    out.push(txids.len() as u8);
    txids.iter().for_each(|id| out.extend_from_slice(id));
    num::put_varint(out, spans.first().map_or(0, |s| s.offset.into()));
    spans
        .iter()
        .for_each(|s| num::put_varint(out, s.len.into()));
}

/// A chunk as it is in the database.
#[derive(Debug, Clone, Copy)]
pub struct Chunk<'a> {
    ids: &'a [[u8; 32]],
    rest: &'a [u8],
    key: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Reads the value under `key`.
    pub fn read(key: &'a [u8], mut value: &'a [u8]) -> Result<Self, BadRow> {
        let bad = || BadRow::new(TXS, "the ids", key);
        let n = usize::from(
            *num::take(&mut value, 1)
                .ok_or_else(bad)?
                .first()
                .ok_or_else(bad)?,
        );
        if n == 0 || n > CHUNK {
            return Err(bad());
        }
        let ids = num::take(&mut value, n * 32).ok_or_else(bad)?;
        let (ids, _) = ids.as_chunks::<32>();
        Ok(Self {
            ids,
            rest: value,
            key,
        })
    }

    /// The ids in order.
    pub fn txids(&self) -> &'a [Hash] {
        self.ids
    }

    /// The id at the position of `txnum`.
    pub fn txid(&self, txnum: TxNum) -> Option<&'a Hash> {
        self.ids.get(txnum.index() as usize % CHUNK)
    }

    /// Places in the block, in order.
    pub fn spans(&self) -> Result<Vec<Span>, BadRow> {
        let mut rest = self.rest;
        let mut next = || num::get_varint(&mut rest).and_then(|n| u32::try_from(n).ok());
        let spans = (|| {
            let mut offset = next()?;
            let mut spans = Vec::with_capacity(self.ids.len());
            for _ in self.ids {
                let len = next()?;
                spans.push(Span { offset, len });
                offset = offset.checked_add(len)?;
            }
            Some(spans)
        })();
        spans
            .filter(|_| rest.is_empty())
            .ok_or_else(|| BadRow::new(TXS, "the places in the block", self.key))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn chunks_round_trip(ids in proptest::collection::vec(any::<[u8; 32]>(), 1..=CHUNK), start in 0u32..1 << 22, lens in proptest::collection::vec(60u32..100_000, CHUNK), h in 0u32..=TxNum::MAX_HEIGHT, c in 0u32..4096) {
            let mut offset = start;
            let spans: Vec<_> = ids.iter().zip(&lens).map(|(_, &len)| { let s = Span { offset, len }; offset += len; s }).collect();
            let mut value = Vec::new();
            put_chunk(&mut value, &ids, &spans);
            let first = TxNum::new(h, c * CHUNK as u32).unwrap();
            let key = chunk_key(first);
            prop_assert_eq!(read_chunk_key(&key).unwrap(), first);
            let chunk = Chunk::read(&key, &value).unwrap();
            prop_assert_eq!(chunk.txids(), &ids[..]);
            prop_assert_eq!(chunk.spans().unwrap(), spans);
            for (i, id) in ids.iter().enumerate() {
                let txnum = TxNum::new(h, first.index() + i as u32).unwrap();
                prop_assert_eq!(chunk_key(txnum), key);
                prop_assert_eq!(chunk.txid(txnum), Some(id));
                prop_assert_eq!(read_txid_key(&txid_key(id, txnum)).unwrap(), txnum);
            }
        }

        #[test]
        fn any_bytes_are_answered(key: Vec<u8>, value: Vec<u8>) {
            let _ = read_txid_key(&key);
            let _ = read_chunk_key(&key);
            if let Ok(chunk) = Chunk::read(&key, &value) {
                let _ = chunk.spans();
            }
        }
    }
}
