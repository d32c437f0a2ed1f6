//! The writer's side: chain and pool change together.

use std::collections::{BTreeSet, HashSet};
use std::sync::MutexGuard;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use weft_chain::block::LooseTx;
use weft_chain::{Block, Chain, Hash, Header, OutPoint};
use weft_mempool::{Changes, Incoming, Mempool, Summary};
use weft_source::mempool::Delta;
use weft_store::ScriptKey;

use crate::feed::What;
use crate::{Result, View};

/// A block that was written.
#[derive(Debug, Clone)]
pub struct Came {
    /// Its height.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// Its header.
    pub header: Header,
    /// Its transactions in order.
    pub txids: Vec<Hash>,
    /// Coins of earlier blocks, and of its own, that it spent.
    pub spent: Vec<OutPoint>,
    /// Scripts it touched.
    pub scripts: Vec<ScriptKey>,
}

/// A change under way: readers wait or read again. Begin it before the database is written, tell
/// what was written, and drop it.
#[derive(Debug)]
pub struct Change<'a> {
    view: &'a View,
    told: Vec<What>,
    _writing: MutexGuard<'a, ()>,
}

impl View {
    /// Begins a change. There is one at a time.
    pub fn change(&self) -> Change<'_> {
        let writing = self.writing();
        self.0.version.fetch_add(1, Ordering::SeqCst);
        Change {
            view: self,
            told: Vec::new(),
            _writing: writing,
        }
    }

    /// Ids of all unconfirmed transactions.
    pub fn pool_ids(&self) -> HashSet<Hash> {
        self.pool().iter().map(|(id, _)| *id).collect()
    }

    /// Takes in what a node's pool has become; `false`, and nothing, if that was at another block
    /// than the index is at.
    pub fn take_in(&self, delta: Delta) -> Result<bool> {
        let mut change = self.change();
        if self.0.reader.tip()?.map(|(_, hash)| hash) != Some(delta.at) {
            return Ok(false);
        }
        let (changes, added) = {
            let mut pool = self.0.pool.write().unwrap_or_else(PoisonError::into_inner);
            let changes = pool.apply(&delta.gone, delta.new, |at| self.chain_coin(at));
            let added: Vec<Summary> = changes
                .added
                .iter()
                .filter_map(|id| Some((id, pool.get(id)?)))
                .map(|(id, entry)| Summary {
                    txid: *id,
                    fee: entry.fee,
                    vsize: entry.vsize,
                    value: entry
                        .tx()
                        .outputs()
                        .map(|o| o.value)
                        .fold(0, u64::saturating_add),
                })
                .collect();
            (changes, added)
        };
        self.0.emptied.store(false, Ordering::SeqCst);
        let settles = self.0.unsettled.swap(false, Ordering::SeqCst);
        if settles || !changes.is_empty() {
            let mut scripts: Vec<_> = self.keys(&changes.scripts).collect();
            scripts.sort_unstable();
            scripts.dedup();
            change.told.push(What::Pool {
                added: added.into(),
                removed: changes.removed.into(),
                scripts: scripts.into(),
            });
        }
        Ok(true)
    }

    /// Declares the present state one that lasts, where no pool is followed.
    pub fn settle(&self) {
        let mut change = self.change();
        if self.0.unsettled.swap(false, Ordering::SeqCst) {
            change.told.push(What::Pool {
                added: Arc::default(),
                removed: Arc::default(),
                scripts: Arc::default(),
            });
        }
    }

    /// Whether the node's pool is wanted whole, whatever was known of it before.
    pub fn wants_pool(&self) -> bool {
        self.0.unsettled.load(Ordering::SeqCst) || self.0.emptied.load(Ordering::SeqCst)
    }

    /// Empties the pool, before many blocks are written at once.
    pub fn forget_pool(&self) {
        let _change = self.change();
        let mut pool = self.0.pool.write().unwrap_or_else(PoisonError::into_inner);
        *pool = Mempool::new();
        self.0.emptied.store(true, Ordering::SeqCst);
    }

    /// Says that the index has the node's tip.
    pub fn set_caught_up(&self) {
        self.0.caught_up.store(true, Ordering::Relaxed);
    }

    /// A coin that an unconfirmed transaction spends.
    fn chain_coin(&self, at: &OutPoint) -> Option<(u64, Vec<u8>)> {
        match self.0.reader.coin(at) {
            Ok(coin) => coin.map(|coin| (coin.value, coin.script)),
            Err(e) => {
                tracing::warn!("a coin that an unconfirmed transaction spends: {e}");
                None
            }
        }
    }

    fn keys<'a>(&'a self, hashes: &'a BTreeSet<Hash>) -> impl Iterator<Item = ScriptKey> + 'a {
        hashes.iter().map(|hash| self.0.reader.script_key(hash))
    }
}

/// The transactions of a block as they wait again when it leaves. Its coinbase, and Litecoin's
/// HogEx, are nothing without it.
pub fn waiting_again(chain: &dyn Chain, block: &Block) -> Vec<Incoming> {
    let txs = block.txs().filter(|tx| !tx.is_coinbase() && !tx.is_hogex());
    txs.filter_map(|tx| {
        Some(Incoming {
            tx: LooseTx::parse(chain, tx.raw().to_vec()).ok()?,
            fee: None,
            vsize: None,
            time: block.header().time.into(),
        })
    })
    .collect()
}

impl Change<'_> {
    /// A block came on top.
    pub fn came(&mut self, block: Came) {
        let inner = &self.view.0;
        let Changes {
            removed,
            scripts: unconfirmed,
            ..
        } = {
            let mut pool = inner.pool.write().unwrap_or_else(PoisonError::into_inner);
            pool.confirm(&block.txids, &block.spent)
        };
        let mut scripts = block.scripts;
        scripts.extend(self.view.keys(&unconfirmed));
        scripts.sort_unstable();
        scripts.dedup();
        self.told.push(What::BlockCame {
            height: block.height,
            hash: block.hash,
            header: block.header,
            txids: block.txids.into(),
            scripts: scripts.into(),
        });
        if !removed.is_empty() {
            self.told.push(What::Pool {
                added: Arc::default(),
                removed: removed.into(),
                scripts: Arc::default(),
            });
        }
    }

    /// The top block left. `back` are its transactions as far as they are known: they wait in the
    /// pool again, until the node says what became of them.
    pub fn left(
        &mut self,
        height: u32,
        hash: Hash,
        txids: Vec<Hash>,
        mut scripts: Vec<ScriptKey>,
        back: Vec<Incoming>,
    ) {
        let inner = &self.view.0;
        inner.unsettled.store(true, Ordering::SeqCst);
        let changes = {
            let mut pool = inner.pool.write().unwrap_or_else(PoisonError::into_inner);
            pool.apply(&[], back, |at| self.view.chain_coin(at))
        };
        scripts.extend(self.view.keys(&changes.scripts));
        scripts.sort_unstable();
        scripts.dedup();
        self.told.push(What::BlockLeft {
            height,
            hash,
            txids: txids.into(),
            scripts: scripts.into(),
        });
    }

    /// Many blocks came; the last of them is the tip now.
    pub fn jumped(&mut self, height: u32, hash: Hash) {
        self.told.push(What::Jumped { height, hash });
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let inner = &self.view.0;
        let settled = !inner.unsettled.load(Ordering::SeqCst);
        // Told before it can be read, so that nobody reads a state whose number is not known yet.
        inner.feed.push(settled, std::mem::take(&mut self.told));
        inner.version.fetch_add(1, Ordering::SeqCst);
    }
}
