//! Long lists in pieces: coins and transactions of a script as they were at one moment, read as far
//! as they are wanted, so that a list costs no more memory than a piece of it.

use std::collections::HashSet;

use weft_chain::hash::{self, Hasher};
use weft_chain::{Hash, OutPoint};
use weft_store::{Moment, Touched, TxNum};

use crate::query::{Confirmed, PoolTx, Script, Unspent};
use crate::{Error, Result, View};

/// Rows read at a time where a whole list is gone through.
const PIECE: usize = 1000;

/// What there may be too much of.
pub(crate) const COINS: &str = "the coins of this script";
pub(crate) const TRANSACTIONS: &str = "the transactions of this script";

/// `count`, if it is not above the bound.
fn within(what: &'static str, count: usize, limit: usize) -> Result<usize> {
    match count > limit {
        true => Err(Error::TooMany { what, limit }),
        false => Ok(count),
    }
}

/// A script's unspent outputs in the order of the chain, then those of the pool.
#[derive(Debug)]
pub struct Coins {
    moment: Moment,
    script: Hash,
    limit: usize,
    /// Rows read so far.
    read: usize,
    /// The last coin read; `None` before the first.
    after: Option<(TxNum, u32)>,
    /// Whether all of the chain's have been read.
    chain_done: bool,
    spent: HashSet<OutPoint>,
    made: std::vec::IntoIter<(OutPoint, u64)>,
    /// How many those were at first.
    of_pool: usize,
    /// The last block asked for.
    block: Option<Confirmed>,
}

impl Coins {
    /// Most coins there can be: those of the chain that the pool spends are counted too.
    ///
    /// # Errors
    /// There are more than the bound.
    pub fn count(&self) -> Result<usize> {
        let chain = self.moment.count_unspents(&self.script, self.limit + 1)?;
        let count = chain + self.of_pool;
        within(COINS, count, self.limit)
    }

    /// The next coins, at most `most`; none only at the end.
    ///
    /// # Errors
    /// They are more than the bound by now.
    pub fn next(&mut self, most: usize) -> Result<Vec<Unspent>> {
        while !self.chain_done {
            let found = self.moment.unspents(&self.script, self.after, most)?;
            self.read += found.len();
            within(COINS, self.read, self.limit)?;
            self.chain_done = found.len() < most;
            self.after = found.last().map(|coin| (coin.txnum, coin.outpoint.vout));
            let left = found
                .into_iter()
                .filter(|coin| !self.spent.contains(&coin.outpoint));
            let left: Vec<_> = left
                .map(|coin| Unspent {
                    outpoint: coin.outpoint,
                    value: coin.value,
                    txnum: Some(coin.txnum),
                })
                .collect();
            if !left.is_empty() {
                return Ok(left);
            }
        }
        let pool: Vec<_> = self.made.by_ref().take(most).collect();
        self.read += pool.len();
        within(COINS, self.read, self.limit)?;
        Ok(pool
            .into_iter()
            .map(|(outpoint, value)| Unspent {
                outpoint,
                value,
                txnum: None,
            })
            .collect())
    }

    /// Whether all have been read.
    pub fn at_end(&self) -> bool {
        self.chain_done && self.made.len() == 0
    }

    /// Height, hash and time of the block of a coin.
    pub fn confirmed(&mut self, coin: &Unspent) -> Result<Option<Confirmed>> {
        let Some(txnum) = coin.txnum else {
            return Ok(None);
        };
        let (height, index) = (txnum.height(), txnum.index());
        if self.block.is_none_or(|known| known.height != height) {
            let row = self.moment.header(height)?;
            self.block = row.map(|row| Confirmed {
                height,
                block: row.hash,
                time: row.header.time,
                index,
            });
        }
        Ok(self.block.map(|block| Confirmed { index, ..block }))
    }
}

/// A script's transactions in the order of the chain, then those of the pool.
#[derive(Debug)]
pub struct Transactions {
    moment: Moment,
    script: Hash,
    limit: usize,
    /// Rows read so far.
    read: usize,
    /// Where to go on; `None` when all of the chain's have been read.
    from: Option<TxNum>,
    pool: std::vec::IntoIter<PoolTx>,
    /// How many those were at first.
    of_pool: usize,
}

/// A transaction of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScriptTx {
    /// Of the chain.
    Confirmed(Touched),
    /// Of the pool.
    Pool(PoolTx),
}

impl ScriptTx {
    /// Its id.
    pub fn txid(&self) -> &Hash {
        match self {
            Self::Confirmed(tx) => &tx.txid,
            Self::Pool(tx) => &tx.txid,
        }
    }

    /// The height the Electrum protocol gives it.
    pub fn height(&self) -> i64 {
        match self {
            Self::Confirmed(tx) => tx.txnum.height().into(),
            Self::Pool(tx) => tx.height(),
        }
    }
}

impl Transactions {
    /// How many there are.
    ///
    /// # Errors
    /// There are more than the bound.
    pub fn count(&self) -> Result<usize> {
        let chain = self.moment.count_history(&self.script, self.limit + 1)?;
        let count = chain + self.of_pool;
        within(TRANSACTIONS, count, self.limit)
    }

    /// The next transactions, at most `most`; none only at the end.
    ///
    /// # Errors
    /// They are more than the bound by now.
    pub fn next(&mut self, most: usize) -> Result<Vec<ScriptTx>> {
        if let Some(from) = self.from {
            let found = self.moment.history(&self.script, from, most)?;
            self.read += found.len();
            within(TRANSACTIONS, self.read, self.limit)?;
            let next = |last: &Touched| TxNum::from_low_bits(last.txnum.to_u64() + 1);
            self.from = found.last().filter(|_| found.len() == most).map(next);
            if !found.is_empty() {
                return Ok(found.into_iter().map(ScriptTx::Confirmed).collect());
            }
        }
        let pool: Vec<_> = self.pool.by_ref().take(most).map(ScriptTx::Pool).collect();
        self.read += pool.len();
        within(TRANSACTIONS, self.read, self.limit)?;
        Ok(pool)
    }

    /// Whether all have been read.
    pub fn at_end(&self) -> bool {
        self.from.is_none() && self.pool.len() == 0
    }
}

/// Works out the Electrum protocol's status of a script: SHA-256 of ids and heights.
#[derive(Debug, Default)]
pub(crate) struct Status {
    hasher: Hasher,
    some: bool,
}

impl Status {
    pub(crate) fn push(&mut self, txid: &Hash, height: i64) {
        self.some = true;
        self.hasher.update(hash::hex(txid).as_bytes());
        self.hasher.update(format!(":{height}:").as_bytes());
    }

    /// `None` without any transaction.
    pub(crate) fn finish(self) -> Option<Hash> {
        self.some.then(|| self.hasher.finish())
    }
}

impl View {
    /// A script's unspent outputs, to be read in pieces; with the pool those that it spends are left
    /// out and those that it makes follow.
    pub fn coins(&self, script: &Script, with_pool: bool) -> Result<Coins> {
        self.read(|| {
            let moment = self.reader().moment();
            let (mut spent, mut made) = (HashSet::new(), Vec::new());
            if with_pool {
                let pool = self.pool();
                for (_, entry) in pool.of_script(&script.hash) {
                    spent.extend(entry.tx().inputs().iter().map(|input| input.prevout));
                }
                made = pool.unspent_of_script(&script.hash);
            }
            Ok(Coins {
                moment,
                script: script.hash,
                limit: self.limit(),
                read: 0,
                after: None,
                chain_done: false,
                spent,
                of_pool: made.len(),
                made: made.into_iter(),
                block: None,
            })
        })
    }

    /// A script's transactions, to be read in pieces.
    pub fn transactions(&self, script: &Script) -> Result<Transactions> {
        self.read(|| {
            let pool = self.pool_history(script);
            Ok(Transactions {
                moment: self.reader().moment(),
                script: script.hash,
                limit: self.limit(),
                read: 0,
                from: Some(TxNum::first_of(0)),
                of_pool: pool.len(),
                pool: pool.into_iter(),
            })
        })
    }

    /// Whether the chain has no more coins of a script than the bound.
    pub fn has_few_coins(&self, script: &Script) -> Result<bool> {
        let limit = self.limit();
        let count = self
            .reader()
            .moment()
            .count_unspents(&script.hash, limit + 1)?;
        Ok(count <= limit)
    }

    /// The Electrum protocol's status of a script, `None` without any transaction, and how many
    /// transactions are in it.
    ///
    /// # Errors
    /// There are more than the bound.
    pub fn status(&self, script: &Script) -> Result<(Option<Hash>, usize)> {
        let mut list = self.transactions(script)?;
        let (mut status, mut count) = (Status::default(), 0);
        loop {
            let piece = list.next(PIECE)?;
            count += piece.len();
            if piece.is_empty() {
                return Ok((status.finish(), count));
            }
            piece
                .iter()
                .for_each(|tx| status.push(tx.txid(), tx.height()));
        }
    }
}
