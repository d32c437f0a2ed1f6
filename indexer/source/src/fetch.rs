//! Pulls blocks ahead in several threads and delivers them in order, checked and bounded.

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use weft_chain::hash::hex;
use weft_chain::{Block, Error, Hash};

use crate::{Source, SourceError};

/// Bounds of what is pulled ahead.
#[derive(Debug, Clone, Copy)]
pub struct FetchConfig {
    /// Threads; 0 for as many as the source is best asked with.
    pub threads: usize,
    /// Most blocks pulled or being pulled but not yet delivered.
    pub window_blocks: usize,
    /// Bytes of blocks held, after which no more are asked for; exceeded by what is under way.
    pub window_bytes: usize,
    /// How long the next block may take until the source counts as stalled.
    pub stall: Duration,
}

impl Default for FetchConfig {
    fn default() -> Self {
        Self {
            threads: 0,
            window_blocks: 256,
            window_bytes: 64 << 20,
            stall: Duration::from_secs(120),
        }
    }
}

/// What the threads and the consumer share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// A block came, or there is room.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Next block to be asked for.
    next: usize,
    /// Next block to be delivered.
    deliver: usize,
    ready: BTreeMap<usize, Result<Block, SourceError>>,
    /// Bytes in `ready`.
    held: usize,
    /// No more is asked for: the consumer is gone, or a block failed.
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// Blocks in the order they were asked for. The first error ends it.
#[derive(Debug)]
pub struct BlockStream {
    shared: Arc<Shared>,
    total: usize,
    stall: Duration,
    place: String,
    hashes: Arc<[Hash]>,
    failed: bool,
}

/// Pulls the blocks `hashes` from `source`, in this order.
///
/// Each block is parsed, has the hash asked for (so its header is one that was checked) and the
/// Merkle root of its header. Threads that are waiting for an answer when the stream is dropped
/// end when it comes or its time is up.
pub fn fetch(source: &Arc<dyn Source>, hashes: Vec<Hash>, config: &FetchConfig) -> BlockStream {
    let hashes: Arc<[Hash]> = hashes.into();
    let shared = Arc::new(Shared {
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    let threads = if config.threads == 0 {
        source.parallel()
    } else {
        config.threads
    };
    let threads = threads.clamp(1, hashes.len().div_ceil(source.batch().max(1)).max(1));
    let mut failure = None;
    for n in 0..threads {
        let (source, hashes, shared, config) =
            (source.clone(), hashes.clone(), shared.clone(), *config);
        let spawned = thread::Builder::new()
            .name(format!("fetch-{n}"))
            .spawn(move || pull(&*source, &hashes, &shared, &config));
        if let Err(e) = spawned {
            failure = Some(e);
        }
    }
    if let Some(e) = failure {
        let error = SourceError::Unreachable {
            place: source.describe(),
            why: format!("no thread: {e}"),
        };
        let mut state = shared.lock();
        let at = state.deliver;
        state.stop = true;
        state.ready.insert(at, Err(error));
    }
    BlockStream {
        shared,
        total: hashes.len(),
        stall: config.stall,
        place: source.describe(),
        hashes,
        failed: false,
    }
}

/// Takes batches until there are none left.
fn pull(source: &dyn Source, hashes: &[Hash], shared: &Shared, config: &FetchConfig) {
    loop {
        let mut state = shared.lock();
        let range = loop {
            if state.stop || state.next >= hashes.len() {
                return;
            }
            let room = config
                .window_blocks
                .max(1)
                .saturating_sub(state.next - state.deliver);
            // What is next to be delivered is always asked for, however much is held.
            if state.next == state.deliver || (room > 0 && state.held < config.window_bytes) {
                let batch = source.batch().max(1).min(room.max(1));
                let end = hashes.len().min(state.next + batch);
                break state.next..end;
            }
            state = shared
                .changed
                .wait(state)
                .unwrap_or_else(|e| e.into_inner());
        };
        state.next = range.end;
        drop(state);

        let asked = &hashes[range.clone()];
        let mut results: Vec<Result<Block, SourceError>> = match source.blocks(asked) {
            Ok(raw) if raw.len() == asked.len() => raw
                .into_iter()
                .zip(asked)
                .map(|(raw, hash)| check(source, raw, hash))
                .collect(),
            Ok(raw) => vec![Err(SourceError::BadAnswer {
                place: source.describe(),
                what: "blocks",
                why: format!("{} were asked for, {} came", asked.len(), raw.len()),
            })],
            // One of a batch is not there: the ones before it are still wanted.
            Err(_) if asked.len() > 1 => asked.iter().map(|hash| one(source, hash)).collect(),
            Err(e) => vec![Err(e)],
        };
        if let Some(at) = results.iter().position(Result::is_err) {
            results.truncate(at + 1);
        }
        let mut state = shared.lock();
        for (at, result) in range.zip(results) {
            match &result {
                Ok(block) => state.held += block.raw().len(),
                Err(_) => state.stop = true,
            }
            state.ready.insert(at, result);
        }
        drop(state);
        shared.changed.notify_all();
    }
}

fn one(source: &dyn Source, hash: &Hash) -> Result<Block, SourceError> {
    let raw = source.blocks(std::slice::from_ref(hash))?.pop();
    let raw = raw.ok_or_else(|| SourceError::NoBlock {
        place: source.describe(),
        block: *hash,
    })?;
    check(source, raw, hash)
}

/// Makes sure that `raw` is the block with this hash, whole.
pub fn check(source: &dyn Source, raw: Vec<u8>, hash: &Hash) -> Result<Block, SourceError> {
    let refuse = |e| SourceError::chain(source.describe(), e);
    let block = Block::parse(source.chain(), raw).map_err(refuse)?;
    if block.hash() != hash {
        return Err(refuse(Error::WrongHash {
            what: "block",
            want: *hash,
            have: *block.hash(),
        }));
    }
    block.check_merkle().map_err(refuse)?;
    Ok(block)
}

impl Iterator for BlockStream {
    type Item = Result<Block, SourceError>;

    fn next(&mut self) -> Option<Self::Item> {
        let deadline = Instant::now() + self.stall;
        let mut state = self.shared.lock();
        if self.failed || state.deliver >= self.total {
            return None;
        }
        let at = state.deliver;
        let result = loop {
            if let Some(result) = state.ready.remove(&at) {
                break result;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let what = format!("block {}", hex(&self.hashes[at]));
                break Err(SourceError::Stalled {
                    place: self.place.clone(),
                    what,
                    after: self.stall,
                });
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(|e| e.into_inner())
                .0;
        };
        match &result {
            Ok(block) => {
                state.held -= block.raw().len();
                state.deliver += 1;
            }
            Err(_) => {
                state.stop = true;
                self.failed = true;
            }
        }
        drop(state);
        self.shared.changed.notify_all();
        Some(result)
    }
}

impl BlockStream {
    /// Bytes of blocks pulled and not yet delivered.
    pub fn held_bytes(&self) -> usize {
        self.shared.lock().held
    }
}

impl Drop for BlockStream {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.changed.notify_all();
    }
}
