//! What all clients of a server have to share: threads that may block, and memory for what is long.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

/// What a client may hold of anything long without a share of the memory for all, bytes.
pub const SMALL: usize = 64 << 10;
/// Unit of that memory, bytes.
const UNIT: usize = 1 << 10;

/// Bounds that every server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Questions worked on at once.
    pub workers: usize,
    /// Bytes that long questions and answers of all clients may take together.
    pub memory: usize,
    /// Time after which a client is hung up on that asks nothing.
    pub idle: Duration,
    /// Time that a client may keep the server waiting for it to take an answer, see
    /// [`Patient`](crate::Patient).
    pub write: Duration,
}

/// Threads and memory of a server.
#[derive(Debug)]
pub struct Means {
    workers: Arc<Semaphore>,
    memory: Arc<Semaphore>,
}

/// A share of the memory for all; it goes back with the value.
#[derive(Debug)]
pub struct Share {
    _units: OwnedSemaphorePermit,
}

impl Means {
    /// As much as the bounds say.
    pub fn new(bounds: &Bounds) -> Self {
        Self {
            workers: Arc::new(Semaphore::new(bounds.workers.max(1))),
            memory: Arc::new(Semaphore::new(bounds.memory / UNIT)),
        }
    }

    /// Does work that may block, when its turn comes. `None` if it panicked.
    pub async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        let turn = self.workers.clone().acquire_owned().await;
        let work = spawn_blocking(move || {
            let _turn = turn;
            work()
        });
        work.await.ok()
    }

    /// Memory for something long; `None` if it is all taken.
    pub fn share(&self, bytes: usize) -> Option<Share> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).ok()?;
        let units = self.memory.clone().try_acquire_many_owned(units).ok()?;
        Some(Share { _units: units })
    }
}
