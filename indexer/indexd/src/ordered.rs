//! Work on many items at once, results in the order of the items, with a bound on how far ahead.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Maps items on threads.
#[derive(Debug)]
pub struct Ordered<I, O> {
    jobs: Option<SyncSender<(I, SyncSender<O>)>>,
    threads: Vec<JoinHandle<()>>,
    waiting: VecDeque<Receiver<O>>,
    ahead: usize,
}

/// A worker thread has ended, which only a panic in it can do.
#[derive(Debug, thiserror::Error)]
#[error("a worker thread has ended before its time")]
pub struct WorkerEnded;

impl<I: Send + 'static, O: Send + 'static> Ordered<I, O> {
    /// Starts `threads` threads that apply `work`; at most `ahead` items are under way.
    ///
    /// # Errors
    /// The system gives no threads.
    pub fn start<F>(threads: usize, ahead: usize, work: F) -> std::io::Result<Self>
    where
        F: Fn(I) -> O + Send + Sync + 'static,
    {
        let (jobs, queue) = sync_channel::<(I, SyncSender<O>)>(ahead.max(1));
        let (queue, work) = (Arc::new(Mutex::new(queue)), Arc::new(work));
        let threads = (0..threads.max(1))
            .map(|n| {
                let (queue, work) = (queue.clone(), work.clone());
                std::thread::Builder::new()
                    .name(format!("prepare-{n}"))
                    .spawn(move || {
                        loop {
                            let job = queue.lock().map(|queue| queue.recv());
                            let Ok(Ok((item, answer))) = job else { return };
                            // Nobody waits for it when the pipeline is being taken down.
                            let _ = answer.send(work(item));
                        }
                    })
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            jobs: Some(jobs),
            threads,
            waiting: VecDeque::new(),
            ahead: ahead.max(1),
        })
    }

    /// Gives an item in.
    pub fn push(&mut self, item: I) -> Result<(), WorkerEnded> {
        let (answer, result) = sync_channel(1);
        self.jobs
            .as_ref()
            .and_then(|jobs| jobs.send((item, answer)).ok())
            .ok_or(WorkerEnded)?;
        self.waiting.push_back(result);
        Ok(())
    }

    /// Whether as many items are under way as may be.
    pub fn is_full(&self) -> bool {
        self.waiting.len() >= self.ahead
    }

    /// The result of the oldest item, waited for; `None` if none is under way.
    pub fn pop(&mut self) -> Option<Result<O, WorkerEnded>> {
        Some(self.waiting.pop_front()?.recv().map_err(|_| WorkerEnded))
    }

    /// Forgets what is under way.
    pub fn clear(&mut self) {
        self.waiting.clear();
    }
}

impl<I, O> Drop for Ordered<I, O> {
    fn drop(&mut self) {
        self.jobs = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_the_order() {
        let mut map = Ordered::start(4, 10, |n: u64| {
            // Uneven work, whose result is known.
            let turns = (n * 7919) % 5000;
            (0..turns).map(|_| 1).sum::<u64>() + 2 * n - turns
        })
        .unwrap();
        let mut out = Vec::new();
        for n in 0..1000 {
            if map.is_full() {
                out.push(map.pop().unwrap().unwrap());
            }
            map.push(n).unwrap();
        }
        while let Some(result) = map.pop() {
            out.push(result.unwrap());
        }
        assert_eq!(out, (0..1000).map(|n| 2 * n).collect::<Vec<_>>());
    }

    #[test]
    fn a_panic_is_an_error() {
        let mut map = Ordered::start(1, 2, |n: u32| assert!(n < 5)).unwrap();
        map.push(9).unwrap();
        assert!(map.pop().unwrap().is_err());
    }
}
