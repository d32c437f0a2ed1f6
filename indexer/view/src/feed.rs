//! What changed, numbered: a ring of bounded size that readers follow with a cursor of their own.
//!
//! A slow reader costs nothing: nobody queues for it. When it comes back later than the ring
//! reaches it is told so ([`Missed`]) and has to look at the present state instead.

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use tokio::sync::watch;
use weft_chain::{Hash, Header};
use weft_mempool::Summary;
use weft_store::ScriptKey;

use crate::lock;

/// One change.
#[derive(Debug)]
pub struct Item {
    /// Its number, from 1 up without gaps.
    pub seq: u64,
    /// Whether the state after it is one that lasts. After a block left it is not, until the pool
    /// has the block's transactions back: until then statuses are not to be told.
    pub settled: bool,
    /// What changed.
    pub what: What,
}

/// What changed.
#[derive(Debug, Clone)]
pub enum What {
    /// A block came on top.
    BlockCame {
        /// Its height.
        height: u32,
        /// Its hash.
        hash: Hash,
        /// Its header.
        header: Header,
        /// Its transactions in order.
        txids: Arc<[Hash]>,
        /// Scripts touched by it, or by transactions that left the pool because of it.
        scripts: Arc<[ScriptKey]>,
    },
    /// The top block left.
    BlockLeft {
        /// Height it had.
        height: u32,
        /// Its hash.
        hash: Hash,
        /// Its transactions in order.
        txids: Arc<[Hash]>,
        /// Scripts it had touched.
        scripts: Arc<[ScriptKey]>,
    },
    /// Many blocks came at once while the index caught up; any script may have changed.
    Jumped {
        /// Height of the tip now.
        height: u32,
        /// Hash of the tip now.
        hash: Hash,
    },
    /// The pool changed.
    Pool {
        /// Transactions that came.
        added: Arc<[Summary]>,
        /// Transactions that left without being confirmed.
        removed: Arc<[Hash]>,
        /// Scripts whose unconfirmed history changed.
        scripts: Arc<[ScriptKey]>,
    },
}

impl What {
    /// Scripts touched, in order, each once; `None` if it may be any.
    pub fn scripts(&self) -> Option<&[ScriptKey]> {
        match self {
            Self::BlockCame { scripts, .. }
            | Self::BlockLeft { scripts, .. }
            | Self::Pool { scripts, .. } => Some(scripts),
            Self::Jumped { .. } => None,
        }
    }

    fn bytes(&self) -> usize {
        let key = size_of::<ScriptKey>();
        256 + match self {
            Self::BlockCame { txids, scripts, .. } | Self::BlockLeft { txids, scripts, .. } => {
                32 * txids.len() + key * scripts.len()
            }
            Self::Jumped { .. } => 0,
            Self::Pool {
                added,
                removed,
                scripts,
            } => size_of::<Summary>() * added.len() + 32 * removed.len() + key * scripts.len(),
        }
    }
}

/// The changes asked for are no longer, or not yet, there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("changes after number {after} are asked for; those from {first} to {last} are kept")]
pub struct Missed {
    /// Number after which was asked.
    pub after: u64,
    /// First that is kept.
    pub first: u64,
    /// Last there was.
    pub last: u64,
}

/// The ring.
#[derive(Debug)]
pub struct Feed {
    epoch: u64,
    limit: usize,
    ring: Mutex<Ring>,
    last: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Ring {
    items: VecDeque<Arc<Item>>,
    bytes: usize,
    last: u64,
}

impl Feed {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            // Differs from one start to the next.
            epoch: RandomState::new().hash_one(std::process::id()),
            limit,
            ring: Mutex::default(),
            last: watch::Sender::new(0),
        }
    }

    /// Names this series of numbers; another start of the service has another.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Number of the last change, 0 if there was none.
    pub fn last(&self) -> u64 {
        lock(&self.ring).last
    }

    /// Changes after number `after`, at most `most`.
    pub fn after(&self, after: u64, most: usize) -> Result<Vec<Arc<Item>>, Missed> {
        let ring = lock(&self.ring);
        let first = ring.last + 1 - ring.items.len() as u64;
        if after > ring.last || after + 1 < first {
            let last = ring.last;
            return Err(Missed { after, first, last });
        }
        let skip = (after + 1 - first) as usize;
        Ok(ring.items.iter().skip(skip).take(most).cloned().collect())
    }

    /// Tells of the number of the last change whenever there is a new one.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    pub(crate) fn push(&self, settled: bool, what: Vec<What>) {
        if what.is_empty() {
            return;
        }
        let mut ring = lock(&self.ring);
        for what in what {
            ring.last += 1;
            ring.bytes += what.bytes();
            let seq = ring.last;
            ring.items.push_back(Arc::new(Item { seq, settled, what }));
        }
        while ring.bytes > self.limit && ring.items.len() > 1 {
            if let Some(old) = ring.items.pop_front() {
                ring.bytes -= old.what.bytes();
            }
        }
        let last = ring.last;
        drop(ring);
        self.last.send_replace(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ring_keeps_what_fits_and_says_what_is_gone() {
        let feed = Feed::new(10 * 256);
        assert!(feed.after(0, 9).unwrap().is_empty());
        assert!(feed.after(1, 9).is_err());
        for height in 1..=30 {
            let hash = [height as u8; 32];
            feed.push(true, vec![What::Jumped { height, hash }]);
        }
        assert_eq!(feed.last(), 30);
        let kept: Vec<u64> = feed.after(20, 99).unwrap().iter().map(|i| i.seq).collect();
        assert_eq!(kept, (21..=30).collect::<Vec<_>>());
        assert_eq!(
            feed.after(19, 99).unwrap_err(),
            Missed {
                after: 19,
                first: 21,
                last: 30
            }
        );
        assert_eq!(feed.after(25, 2).unwrap().len(), 2);
        assert!(feed.after(30, 9).unwrap().is_empty());
        assert!(feed.after(31, 9).is_err());
        assert_eq!(*feed.watch().borrow(), 30);
    }
}
