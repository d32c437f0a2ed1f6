//! What wallets may ask of the coin index: the rows of the chain and the mempool as one, where a
//! transaction's bytes are, and what changes.
//!
//! A [`View`] has one writer, which follows the node and announces each block and each change of
//! the mempool by a [`Change`], and any number of readers. A reader sees the chain and the pool as
//! they were together: a confirmed transaction is never in both and never in neither.
//!
//! Balances, coins, history and proofs come from rows. What rows do not have, the bytes of
//! transactions, is read from the node's block files, or asked of the node where there are none
//! (see [`bytes`]); fees and broadcasting are the node's. The crate knows no protocol and no socket.

pub mod bytes;
mod change;
mod error;
pub mod feed;
mod headers;
mod node;
mod pieces;
mod query;
pub mod script;
mod stats;
pub mod tx;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

pub use change::{Came, Change, waiting_again};
pub use error::{Error, Result};
pub use feed::{Feed, Item, Missed, What};
pub use node::{FeeMode, PackageResult, RelayFees};
pub use pieces::{Coins, ScriptTx, Transactions};
pub use query::{
    Balance, ChainTip, Confirmed, History, MerkleProof, PoolTx, Script, Spender, TxFound, Unspent,
};
pub use stats::{ScriptStats, Stats};
use weft_chain::{Chain, Hash};
use weft_mempool::Mempool;
use weft_store::Reader;

/// Bounds of what one question may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Most transactions or coins of a script that are listed; more are refused.
    pub rows: usize,
    /// Bytes of transactions kept in memory.
    pub cache: usize,
    /// Bytes of changes kept for readers who come back.
    pub feed: usize,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            rows: 200_000,
            cache: 32 << 20,
            feed: 32 << 20,
        }
    }
}

/// The index as wallets see it, and how many rows a question may list. Cheap to clone.
#[derive(Debug, Clone)]
pub struct View(Arc<Inner>, usize);

#[derive(Debug)]
struct Inner {
    chain: &'static dyn Chain,
    reader: Reader,
    bounds: Bounds,
    pool: RwLock<Mempool>,
    /// Odd while chain and pool change; see [`View::read`].
    version: AtomicU64,
    writing: Mutex<()>,
    /// A block left, and what it confirmed is not back in the pool yet.
    unsettled: AtomicBool,
    /// The pool was emptied because many blocks came.
    emptied: AtomicBool,
    /// The index has had the node's tip at least once.
    caught_up: AtomicBool,
    /// Wakes whoever follows the node's pool.
    nudged: (Mutex<bool>, Condvar),
    feed: Feed,
    node: RwLock<node::Access>,
    fees: Mutex<node::FeeCache>,
    cache: Mutex<bytes::Cache>,
    proofs: Mutex<headers::Chunks>,
    stats: Mutex<stats::Cache>,
}

impl View {
    /// A view of what `reader` reads, without a node.
    pub fn new(chain: &'static dyn Chain, reader: Reader, bounds: Bounds) -> Self {
        let inner = Inner {
            chain,
            reader,
            bounds,
            pool: RwLock::default(),
            version: AtomicU64::new(0),
            writing: Mutex::default(),
            unsettled: AtomicBool::new(false),
            emptied: AtomicBool::new(false),
            nudged: (Mutex::new(false), Condvar::new()),
            caught_up: AtomicBool::new(false),
            feed: Feed::new(bounds.feed),
            node: RwLock::default(),
            fees: Mutex::default(),
            cache: Mutex::new(bytes::Cache::new(bounds.cache)),
            proofs: Mutex::default(),
            stats: Mutex::default(),
        };
        Self(Arc::new(inner), bounds.rows)
    }

    /// The network.
    pub fn chain(&self) -> &'static dyn Chain {
        self.0.chain
    }

    /// Its bounds.
    pub fn bounds(&self) -> Bounds {
        self.0.bounds
    }

    /// The same for questions that may list so many rows at most.
    #[must_use]
    pub fn within(&self, rows: usize) -> Self {
        Self(self.0.clone(), self.1.min(rows))
    }

    /// Most rows a question may list.
    fn limit(&self) -> usize {
        self.1
    }

    /// The rows. What is read here does not know the mempool.
    pub fn reader(&self) -> &Reader {
        &self.0.reader
    }

    /// What changes.
    pub fn feed(&self) -> &Feed {
        &self.0.feed
    }

    /// Whether the index has had the node's tip since the start.
    pub fn caught_up(&self) -> bool {
        self.0.caught_up.load(Ordering::Relaxed)
    }

    /// The unconfirmed transactions, locked against change: hold it briefly.
    pub fn pool(&self) -> RwLockReadGuard<'_, Mempool> {
        self.0.pool.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` so that everything it reads belongs together: again if chain or pool changed
    /// meanwhile, and after a few times with changes held off.
    pub fn read<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        for _ in 0..4 {
            let before = self.0.version.load(Ordering::SeqCst);
            if before & 1 == 1 {
                drop(self.writing());
                continue;
            }
            let out = work();
            if self.0.version.load(Ordering::SeqCst) == before {
                return out;
            }
        }
        let _held = self.writing();
        work()
    }

    /// Wakes whoever follows the node's pool: something may have changed there.
    pub fn nudge(&self) {
        *lock(&self.0.nudged.0) = true;
        self.0.nudged.1.notify_all();
    }

    /// Waits for [`View::nudge`], at most `limit`.
    pub fn wait_for_nudge(&self, limit: Duration) {
        let (nudged, condvar) = &self.0.nudged;
        let waited = condvar.wait_timeout_while(lock(nudged), limit, |nudged| !*nudged);
        let (mut nudged, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *nudged = false;
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.0
            .writing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a script in [`What`], by its SHA-256.
    pub fn script(&self, hash: Hash) -> Script {
        Script {
            key: self.0.reader.script_key(&hash),
            hash,
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
