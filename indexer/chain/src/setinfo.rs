//! Hashes over the whole coin set in order: `hash_serialized_3` and `hash_serialized_2` of
//! `gettxoutsetinfo`, and its counts.

use sha2::{Digest, Sha256};

use crate::coin::{OutPoint, put_coin};
use crate::hash::sha256;
use crate::wire::{put_compact_size, put_varint};
use crate::{Error, Hash};

/// Counts of `gettxoutsetinfo`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Coins.
    pub coins: u64,
    /// Transactions with at least one coin.
    pub transactions: u64,
    /// Sum of values, smallest units.
    pub amount: u64,
    /// The nodes' measure of size: 50 bytes and the script for each coin.
    pub bogosize: u64,
}

/// Which hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `hash_serialized_2` (nodes up to 25, Litecoin): SHA256d of the best block's hash, then per
    /// transaction its id, VARINT(1), per coin VARINT(vout + 1), script with CompactSize length,
    /// VARINT(value), at the end VARINT(0).
    V2,
    /// `hash_serialized_3` (nodes from 26): SHA256d of all coins as MuHash has them.
    V3,
}

/// A hash over coins that come in order of transaction id (as bytes) and output number.
#[derive(Debug, Clone)]
pub struct SetHash {
    kind: Kind,
    hasher: Sha256,
    last: Option<OutPoint>,
    counts: Counts,
    buffer: Vec<u8>,
}

impl SetHash {
    /// Starts with no coin; `best` is the block whose set it is.
    pub fn new(kind: Kind, best: &Hash) -> Self {
        let mut hasher = Sha256::new();
        if kind == Kind::V2 {
            hasher.update(best);
        }
        Self {
            kind,
            hasher,
            last: None,
            counts: Counts::default(),
            buffer: Vec::with_capacity(256),
        }
    }

    /// Adds the next coin; errs if it does not come after the one before.
    pub fn push(
        &mut self,
        at: &OutPoint,
        code: u32,
        value: u64,
        script: &[u8],
    ) -> Result<(), Error> {
        if self.last.is_some_and(|last| last >= *at) {
            return Err(Error::Malformed {
                what: "coin",
                at: self.counts.coins as usize,
                why: "it does not come after the one before in order of transaction and output",
            });
        }
        let new_tx = self.last.is_none_or(|last| last.txid != at.txid);
        self.buffer.clear();
        match self.kind {
            Kind::V3 => put_coin(&mut self.buffer, at, code, value, script),
            Kind::V2 => {
                if new_tx {
                    if self.last.is_some() {
                        self.buffer.push(0);
                    }
                    self.buffer.extend_from_slice(&at.txid);
                    self.buffer.push(1);
                }
                put_varint(&mut self.buffer, u64::from(at.vout) + 1);
                put_compact_size(&mut self.buffer, script.len() as u64);
                self.buffer.extend_from_slice(script);
                put_varint(&mut self.buffer, value);
            }
        }
        self.hasher.update(&self.buffer);
        self.last = Some(*at);
        self.counts.coins += 1;
        self.counts.transactions += u64::from(new_tx);
        self.counts.amount = self.counts.amount.saturating_add(value);
        self.counts.bogosize += 50 + script.len() as u64;
        Ok(())
    }

    /// The hash and the counts.
    pub fn finish(mut self) -> (Hash, Counts) {
        if self.kind == Kind::V2 && self.last.is_some() {
            self.hasher.update([0]);
        }
        (sha256(&self.hasher.finalize()), self.counts)
    }
}
