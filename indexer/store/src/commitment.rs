//! The MuHash of the coin set after every block.
//!
//! Each block's coins are multiplied on worker threads. The set's number at the tip is kept
//! divided out; over a batch of blocks the hash at each height needs the inverse of the product of all
//! denominators up to there, and as those products grow by one factor a block, one inversion at
//! the end and one multiplication a block going back give them all.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use weft_chain::hash::sha256;
use weft_chain::muhash::Num3072;
use weft_chain::{Hash, MuBatch, MuHash3072, OutPoint, coin};

use crate::error::{Error, Result};
use crate::rows::TxNum;
use crate::rows::coin::Body;

/// A coin to be taken out of the set.
pub(crate) type Leaving = (OutPoint, TxNum, Body);

struct Job {
    coins: Vec<Leaving>,
    answer: SyncSender<MuHash3072>,
}

/// Threads that multiply.
#[derive(Debug)]
pub(crate) struct Workers {
    jobs: Option<SyncSender<Job>>,
    threads: Vec<JoinHandle<()>>,
}

/// A product that is being computed.
#[derive(Debug)]
pub(crate) struct Pending(Receiver<MuHash3072>);

impl Pending {
    /// Waits for the product.
    pub(crate) fn wait(self) -> Result<MuHash3072> {
        self.0.recv().map_err(|_| Error::Worker)
    }
}

impl Workers {
    /// Starts `count` threads; at most 64 blocks wait for them.
    pub(crate) fn start(count: usize) -> Self {
        let (jobs, queue) = sync_channel::<Job>(64);
        let queue = std::sync::Arc::new(std::sync::Mutex::new(queue));
        let threads = (0..count.max(1))
            .filter_map(|n| {
                let queue = queue.clone();
                std::thread::Builder::new()
                    .name(format!("muhash-{n}"))
                    .spawn(move || work(&queue))
                    .ok()
            })
            .collect();
        Self {
            jobs: Some(jobs),
            threads,
        }
    }

    /// Has the product of `coins` computed as a denominator.
    pub(crate) fn remove(&self, coins: Vec<Leaving>) -> Result<Pending> {
        let (answer, pending) = sync_channel(1);
        let job = Job { coins, answer };
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send(job).ok())
            .ok_or(Error::Worker)?;
        Ok(Pending(pending))
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn work(queue: &std::sync::Mutex<Receiver<Job>>) {
    loop {
        let job = match queue.lock() {
            Ok(queue) => queue.recv(),
            Err(_) => return,
        };
        let Ok(job) = job else { return };
        // Whoever asked may be gone; then nobody misses the answer.
        let _ = job.answer.send(product_of(&job.coins));
    }
}

/// The change that takes `coins` out of a set.
pub(crate) fn product_of(coins: &[Leaving]) -> MuHash3072 {
    let mut batch = MuBatch::new();
    for (outpoint, txnum, body) in coins {
        if let Some((value, script)) = body.decode() {
            batch.remove_coin(
                outpoint,
                coin::code(txnum.height(), txnum.index() == 0),
                value,
                &script,
            );
        }
    }
    batch.finish()
}

/// The set's number at the tip, divided out.
#[derive(Debug, Clone)]
pub(crate) struct SetNumber(Num3072);

impl SetNumber {
    pub(crate) fn empty() -> Self {
        Self(Num3072::ONE)
    }

    pub(crate) fn from_bytes(bytes: &[u8; 384]) -> Self {
        Self(Num3072::from_bytes(bytes))
    }

    pub(crate) fn to_bytes(&self) -> Box<[u8; 384]> {
        Box::new(self.0.to_bytes())
    }

    /// The hash of the set.
    pub(crate) fn hash(&self) -> Hash {
        sha256(&self.0.to_bytes())
    }

    /// Applies the changes of blocks that follow each other; the hash of the set after each.
    pub(crate) fn advance(&mut self, changes: &[MuHash3072]) -> Vec<Hash> {
        if changes.is_empty() {
            return Vec::new();
        }
        let changes: Vec<_> = changes.iter().map(parts).collect();
        let mut numerators = Vec::with_capacity(changes.len());
        let mut denominator = Num3072::ONE;
        for (added, removed) in &changes {
            self.0.mul(added);
            numerators.push(self.0.clone());
            denominator.mul(removed);
        }
        let mut inverse = if denominator == Num3072::ONE {
            Num3072::ONE
        } else {
            denominator.inverse()
        };
        let mut hashes = vec![[0; 32]; changes.len()];
        for (i, (mut number, (_, removed))) in
            numerators.into_iter().zip(&changes).enumerate().rev()
        {
            number.mul(&inverse);
            hashes[i] = sha256(&number.to_bytes());
            if i + 1 == changes.len() {
                self.0 = number;
            }
            inverse.mul(removed);
        }
        hashes
    }

    /// Takes back the change of one block.
    pub(crate) fn retreat(&mut self, change: &MuHash3072) {
        let (mut added, removed) = parts(change);
        if added != Num3072::ONE {
            added = added.inverse();
        }
        self.0.mul(&added);
        self.0.mul(&removed);
    }
}

fn parts(change: &MuHash3072) -> (Num3072, Num3072) {
    let bytes = change.to_bytes();
    let (added, removed) = bytes.split_at(384);
    (
        Num3072::from_bytes(added.try_into().expect("half of 768")),
        Num3072::from_bytes(removed.try_into().expect("half of 768")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `count` blocks that each add 5 coins and take 3 of the block before.
    fn changes(count: u8) -> Vec<MuHash3072> {
        (0..count)
            .map(|h| {
                let mut change = MuHash3072::new();
                (0..5).for_each(|i| change.insert(&[h, i]));
                (0..3)
                    .filter(|_| h > 0)
                    .for_each(|i| change.remove(&[h - 1, i]));
                change
            })
            .collect()
    }

    #[test]
    fn a_batch_gives_what_single_steps_give() {
        let changes = changes(9);
        let (mut whole, mut stepped) = (SetNumber::empty(), SetNumber::empty());
        let mut plain = MuHash3072::new();
        let hashes = whole.advance(&changes);
        for (change, hash) in changes.iter().zip(&hashes) {
            plain.combine(change);
            assert_eq!(stepped.advance(std::slice::from_ref(change)), [*hash]);
            assert_eq!(plain.finalize(), *hash);
        }
        assert_eq!(whole.hash(), stepped.hash());
        for (i, change) in changes.iter().enumerate().rev() {
            whole.retreat(change);
            let before = if i == 0 {
                SetNumber::empty().hash()
            } else {
                hashes[i - 1]
            };
            assert_eq!(whole.hash(), before);
        }
    }
}
