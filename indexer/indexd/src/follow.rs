//! Follows the node: asks where its chain leaves ours, takes blocks off down to there, and pulls,
//! prepares and applies what comes after.
//!
//! Blocks are fetched and parsed on one set of threads, prepared on another, and applied in order
//! here. Far from the tip many blocks make one batch; at the tip each is one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tracing::{info, warn};
use weft_chain::hash::hex;
use weft_chain::headers::{HeaderTree, locator_heights};
use weft_chain::{Block, Chain, Hash};
use weft_source::{Ahead, FetchConfig, Source, SourceError, fetch};
use weft_store::{Durability, Prepared, ScriptKey, Store};

use crate::ordered::{Ordered, WorkerEnded};

/// Headers asked for before blocks are pulled.
const MAX_HEADERS: usize = 20_000;
/// Headers kept below the fork, which the rules for the target look back on.
const LOOK_BACK: u32 = 2_200;
/// From this many blocks on they are written in large batches, and scripts touched are not told.
const CATCH_UP: usize = 24;
/// A batch is written at least this often, so that a slow source does not cost much after a crash.
const MAX_BATCH_AGE: Duration = Duration::from_secs(300);

/// Why following failed. Whatever it is, the database holds a state between two blocks.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// The source.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The database, or a block that does not fit it.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
    /// A header that breaks a rule.
    #[error("{place} gave a header that is refused: {source}")]
    Header {
        /// The source.
        place: String,
        /// Which rule.
        source: Box<weft_chain::Error>,
    },
    /// The source's chain leaves ours too far down.
    #[error(
        "{place} is on a chain that leaves the index's at height {fork}, {deep} blocks down; only {depth} can be undone (index.undo_depth)"
    )]
    TooDeep {
        /// The source.
        place: String,
        /// Height of the last common block.
        fork: u32,
        /// Blocks above it.
        deep: u32,
        /// Configured depth.
        depth: u32,
    },
    /// The source has nothing in common with the index.
    #[error("{place} does not know any block of the index, not even the first")]
    NothingInCommon {
        /// The source.
        place: String,
    },
    /// A thread of the pipeline ended.
    #[error(transparent)]
    Worker(#[from] WorkerEnded),
    /// The system gives no threads.
    #[error("cannot start threads: {0}")]
    Threads(#[from] std::io::Error),
}

impl FollowError {
    /// Whether trying again later may help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Source(e) if e.is_temporary())
    }
}

/// What happens, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Blocks were applied that are part of a large batch. Not on disk before [`Event::Written`].
    Progress {
        /// Height reached.
        height: u32,
        /// Height of the source.
        target: u32,
        /// Bytes of the block.
        bytes: u64,
        /// Its transactions.
        txs: u64,
    },
    /// Everything up to this height is on disk.
    Written {
        /// Height.
        height: u32,
        /// Hash of the block.
        hash: Hash,
        /// Scripts that were touched, where the batch was one block; for larger ones nothing is told.
        scripts: Option<Vec<ScriptKey>>,
    },
    /// A block was taken off, on disk.
    Undone {
        /// Height it had.
        height: u32,
        /// Its hash.
        hash: Hash,
        /// Scripts it had touched.
        scripts: Vec<ScriptKey>,
    },
}

/// How a round ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Round {
    /// The index has the source's tip.
    AtTip,
    /// There is more to do.
    More,
    /// It was asked to stop; what was applied is written.
    Stopped,
}

/// Follows a source with a store.
pub struct Follower {
    store: Store,
    chain: &'static dyn Chain,
    source: Arc<dyn Source>,
    tree: HeaderTree,
    workers: Ordered<(Block, u32), weft_store::Result<Prepared>>,
    stop: Arc<AtomicBool>,
    undo_depth: u32,
    batch_started: Instant,
    /// Large batches were written since the files were last merged.
    unsettled: bool,
    fetching: FetchConfig,
}

impl std::fmt::Debug for Follower {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Follower")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

impl Follower {
    /// Starts the threads. `stop` may be set at any time from any thread.
    pub fn new(
        store: Store,
        source: Arc<dyn Source>,
        options: &weft_store::Options,
        stop: Arc<AtomicBool>,
    ) -> Result<Self, FollowError> {
        let chain = source.chain();
        let preparer = store.preparer();
        let threads = options.threads;
        let workers = Ordered::start(
            threads,
            4 * threads + 4,
            move |(block, height): (Block, u32)| preparer.prepare(chain, &block, height),
        )?;
        let fetching = FetchConfig {
            threads: source.parallel().min(threads.max(2)),
            window_bytes: (options.memory / 32).clamp(8 << 20, 64 << 20),
            ..FetchConfig::default()
        };
        Ok(Self {
            tree: HeaderTree::new(chain),
            store,
            chain,
            source,
            workers,
            stop,
            undo_depth: options.undo_depth,
            batch_started: Instant::now(),
            unsettled: false,
            fetching,
        })
    }

    /// The store.
    pub fn store(&mut self) -> &mut Store {
        &mut self.store
    }

    /// The source.
    pub fn source(&self) -> &Arc<dyn Source> {
        &self.source
    }

    /// Goes on with another source of the same network, after the old one failed.
    pub fn set_source(&mut self, source: Arc<dyn Source>) {
        self.source = source;
    }

    /// One round: headers, then all blocks they name. On an error what was applied is written if
    /// that can be done.
    pub fn round(&mut self, sink: &mut dyn FnMut(Event)) -> Result<Round, FollowError> {
        let result = self.try_round(sink);
        self.workers.clear();
        if matches!(result, Ok(Round::AtTip)) && std::mem::take(&mut self.unsettled) {
            self.store.settle();
        }
        if result.is_err() && self.store.pending() > 0 {
            match self.write(sink) {
                Ok(()) => {}
                Err(e) => warn!("what was applied could not be written: {e}"),
            }
        }
        result
    }

    fn try_round(&mut self, sink: &mut dyn FnMut(Event)) -> Result<Round, FollowError> {
        if self.store.tip().is_none() {
            self.first_block(sink)?;
        }
        let (fork, hashes, whole) = self.plan()?;
        self.leave(fork, sink)?;
        if self.store.tip().is_some_and(|tip| tip.height != fork) {
            return Ok(Round::Stopped);
        }
        if hashes.is_empty() {
            if self.store.pending() > 0 {
                self.write(sink)?;
            }
            return Ok(Round::AtTip);
        }
        let tip = self.source.tip()?.height.max(fork + hashes.len() as u32);
        self.store.set_target(tip);
        let catching_up = hashes.len() > CATCH_UP || self.store.pending() > 0;
        if self.store.pending() == 0 {
            self.batch_started = Instant::now();
        }
        let mut stream = fetch(&self.source, hashes, &self.fetching);
        let mut next = fork + 1;
        loop {
            while !self.workers.is_full()
                && let Some(block) = stream.next()
            {
                self.workers.push((block?, next))?;
                next += 1;
            }
            let Some(prepared) = self.workers.pop() else {
                break;
            };
            let prepared = prepared??;
            let (height, bytes, txs) = (
                prepared.height(),
                u64::from(prepared.size()),
                prepared.tx_count() as u64,
            );
            self.store.apply(prepared)?;
            sink(Event::Progress {
                height,
                target: tip,
                bytes,
                txs,
            });
            if !catching_up || self.store.full() || self.batch_started.elapsed() > MAX_BATCH_AGE {
                self.write(sink)?;
            }
            if self.stop.load(Ordering::Relaxed) {
                self.write(sink)?;
                return Ok(Round::Stopped);
            }
        }
        if whole {
            self.write(sink)?;
        }
        Ok(if whole { Round::AtTip } else { Round::More })
    }

    /// Applies the first block of the chain.
    fn first_block(&mut self, sink: &mut dyn FnMut(Event)) -> Result<(), FollowError> {
        let genesis = self.chain.params().genesis_hash();
        for block in fetch(&self.source, vec![genesis], &self.fetching) {
            let prepared = self.store.preparer().prepare(self.chain, &block?, 0)?;
            self.store.apply(prepared)?;
            self.write(sink)?;
        }
        Ok(())
    }

    /// Height of the last block in common, hashes of those that come after it, and whether they
    /// reach the source's tip.
    fn plan(&mut self) -> Result<(u32, Vec<Hash>, bool), FollowError> {
        let source = self.source.clone();
        let place = || source.describe();
        let locator = self.locator()?;
        let Ahead { fork, mut headers } = source.headers(&locator)?;
        let fork = match (fork, headers.first()) {
            (Some(fork), _) => fork,
            (None, Some(first)) => first.header.prev,
            // Nothing new from a peer that does not say where it is.
            (None, None) => match self.store.tip() {
                Some(tip) => tip.hash,
                None => return Err(FollowError::NothingInCommon { place: place() }),
            },
        };
        let fork_height = self
            .height_of(&fork)?
            .ok_or_else(|| FollowError::NothingInCommon { place: place() })?;
        if self.tree.get(&fork).is_none() || self.tree.len() > 4 * MAX_HEADERS {
            self.plant(fork_height)?;
        }
        let mut hashes = Vec::with_capacity(headers.len());
        let mut whole;
        loop {
            let mut last = hashes.last().copied().unwrap_or(fork);
            for full in &headers {
                let refuse = |e| FollowError::Header {
                    place: place(),
                    source: Box::new(e),
                };
                if full.header.prev != last {
                    return Err(refuse(weft_chain::Error::Orphan {
                        header: full.header.hash(),
                        prev: full.header.prev,
                    }));
                }
                self.tree
                    .insert(&full.header, full.auxpow.as_deref())
                    .map_err(refuse)?;
                last = full.header.hash();
                hashes.push(last);
            }
            whole = headers.len() < 2000;
            if whole || hashes.len() >= MAX_HEADERS || self.stop.load(Ordering::Relaxed) {
                break;
            }
            let mut from = vec![last];
            from.extend_from_slice(&locator);
            let more = source.headers(&from)?;
            if more.fork.is_some_and(|at| at != last) {
                // The source changed its mind; what is known so far is asked for again.
                whole = false;
                break;
            }
            headers = more.headers;
        }
        Ok((fork_height, hashes, whole))
    }

    /// Takes blocks off down to `fork`.
    fn leave(&mut self, fork: u32, sink: &mut dyn FnMut(Event)) -> Result<(), FollowError> {
        let Some(tip) = self.store.tip().map(|t| t.height).filter(|tip| *tip > fork) else {
            return Ok(());
        };
        if tip - fork > self.undo_depth {
            let place = self.source.describe();
            return Err(FollowError::TooDeep {
                place,
                fork,
                deep: tip - fork,
                depth: self.undo_depth,
            });
        }
        info!(from = tip, to = fork, "the chain reorganises");
        if self.store.pending() > 0 {
            self.write(sink)?;
        }
        while self.store.tip().is_some_and(|t| t.height > fork)
            && !self.stop.load(Ordering::Relaxed)
        {
            if let Some(undone) = self.store.undo()? {
                sink(Event::Undone {
                    height: undone.height,
                    hash: undone.hash,
                    scripts: undone.scripts,
                });
            }
        }
        Ok(())
    }

    /// Writes what is applied.
    fn write(&mut self, sink: &mut dyn FnMut(Event)) -> Result<(), FollowError> {
        let count = self.store.pending();
        if count == 0 {
            return Ok(());
        }
        let durability = if count > CATCH_UP {
            Durability::Files
        } else {
            Durability::Log
        };
        self.unsettled |= durability == Durability::Files;
        let committed = self.store.commit(durability)?;
        self.batch_started = Instant::now();
        if let Some((height, hash)) = committed.blocks.last() {
            let scripts = (committed.blocks.len() == 1).then_some(committed.scripts);
            sink(Event::Written {
                height: *height,
                hash: *hash,
                scripts,
            });
        }
        Ok(())
    }

    /// Hashes of our chain from the tip down, with growing gaps.
    fn locator(&self) -> Result<Vec<Hash>, FollowError> {
        let Some(tip) = self.store.tip() else {
            return Ok(vec![self.chain.params().genesis_hash()]);
        };
        let reader = self.store.reader();
        let mut out = vec![tip.hash];
        for height in locator_heights(tip.height) {
            // Blocks applied and not written yet are not there; the tip stands for them.
            if let Some(row) = reader
                .header(height)?
                .filter(|row| Some(&row.hash) != out.last())
            {
                out.push(row.hash);
            }
        }
        Ok(out)
    }

    fn height_of(&self, hash: &Hash) -> Result<Option<u32>, FollowError> {
        if let Some(tip) = self.store.tip().filter(|tip| tip.hash == *hash) {
            return Ok(Some(tip.height));
        }
        Ok(self
            .store
            .reader()
            .header_by_hash(hash)?
            .map(|(height, _)| height))
    }

    /// Grows a new tree from the index's headers around `height`.
    fn plant(&mut self, height: u32) -> Result<(), FollowError> {
        if self.store.pending() > 0 {
            self.store.commit(Durability::Files)?;
        }
        let reader = self.store.reader();
        let root = height.saturating_sub(LOOK_BACK);
        let lacking = |height| weft_store::Error::Lacking {
            what: format!("the header at height {height}"),
        };
        let row = reader.header(root)?.ok_or_else(|| lacking(root))?;
        let mut tree = HeaderTree::from_root(self.chain, row.header, root, row.work);
        let tip = self.store.tip().map_or(height, |t| t.height);
        for height in root + 1..=tip {
            let row = reader.header(height)?.ok_or_else(|| lacking(height))?;
            tree.insert_trusted(&row.header)
                .map_err(|e| FollowError::Header {
                    place: format!("the index at height {height}, {}", hex(&row.hash)),
                    source: Box::new(e),
                })?;
        }
        self.tree = tree;
        Ok(())
    }
}
