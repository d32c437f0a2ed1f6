//! What the service is doing: figures that the follower writes, and that metrics, the log and the
//! file for `weft-indexd status` read.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::serve::Listening;

/// Figures of a running service.
#[derive(Debug)]
pub struct Figures {
    /// Height of the last block applied.
    pub height: AtomicU32,
    /// Height of the last block on disk.
    pub written: AtomicU32,
    /// Height of the source.
    pub target: AtomicU32,
    /// Blocks applied since the start.
    pub blocks: AtomicU64,
    /// Their bytes.
    pub bytes: AtomicU64,
    /// Their transactions.
    pub txs: AtomicU64,
    /// Blocks taken off since the start.
    pub undone: AtomicU64,
    /// Times the source failed since the start.
    pub source_errors: AtomicU64,
    /// Times the node's mempool could not be asked for since the start.
    pub pool_errors: AtomicU64,
    started: Instant,
    rate: Mutex<Rate>,
    texts: Mutex<Texts>,
}

#[derive(Debug, Default, Clone)]
struct Texts {
    source: String,
    passed_over: Vec<String>,
    error: Option<String>,
    listening: Vec<Listening>,
}

/// Smoothed speed.
#[derive(Debug, Clone, Copy)]
struct Rate {
    at: Instant,
    bytes: u64,
    blocks: u64,
    /// Blends of what was measured; divided by `trust` they are the rate.
    bytes_per_second: f64,
    blocks_per_second: f64,
    /// How much of the blends has been measured, up to 1: at the start little.
    trust: f64,
}

impl Rate {
    /// Blends in what came in the last `passed` seconds.
    fn measured(&mut self, passed: f64, bytes: u64, blocks: u64) {
        let weight = 1.0 - (-passed / 10.0).exp();
        let blend = |old: &mut f64, now: u64, before: u64| {
            *old += weight * ((now - before) as f64 / passed - *old);
        };
        blend(&mut self.bytes_per_second, bytes, self.bytes);
        blend(&mut self.blocks_per_second, blocks, self.blocks);
        self.trust += weight * (1.0 - self.trust);
        (self.bytes, self.blocks) = (bytes, blocks);
    }
}

/// The file beside the database, rewritten every few seconds by a running service.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Snapshot {
    /// Process id of the service.
    pub pid: u32,
    /// Seconds of Unix time when this was written.
    pub time: u64,
    /// Where blocks come from.
    pub source: String,
    /// Why better sources were not taken.
    pub passed_over: Vec<String>,
    /// What listens where.
    #[serde(default)]
    pub listening: Vec<Listening>,
    /// Height of the last block applied.
    pub height: u32,
    /// Height of the last block on disk.
    pub written: u32,
    /// Height of the source.
    pub target: u32,
    /// Megabytes of blocks a second.
    pub mb_per_second: f64,
    /// Seconds left until the source's tip, as far as the speed of late tells.
    pub seconds_left: Option<u64>,
    /// The last error, if it still stands.
    pub error: Option<String>,
}

impl Default for Figures {
    fn default() -> Self {
        let now = Instant::now();
        Self {
            height: AtomicU32::default(),
            written: AtomicU32::default(),
            target: AtomicU32::default(),
            blocks: AtomicU64::default(),
            bytes: AtomicU64::default(),
            txs: AtomicU64::default(),
            undone: AtomicU64::default(),
            source_errors: AtomicU64::default(),
            pool_errors: AtomicU64::default(),
            started: now,
            rate: Mutex::new(Rate {
                at: now,
                bytes: 0,
                blocks: 0,
                bytes_per_second: 0.0,
                blocks_per_second: 0.0,
                trust: 0.0,
            }),
            texts: Mutex::default(),
        }
    }
}

impl Figures {
    /// Says which source is used.
    pub fn set_source(&self, source: String, passed_over: Vec<String>) {
        let mut texts = self.texts.lock().unwrap_or_else(|e| e.into_inner());
        texts.source = source;
        texts.passed_over = passed_over;
    }

    /// Says what listens where.
    pub fn set_listening(&self, listening: Vec<Listening>) {
        self.texts
            .lock()
            .unwrap_or_else(|e| e.into_inner())
            .listening = listening;
    }

    /// Says what is wrong, or that nothing is any more.
    pub fn set_error(&self, error: Option<String>) {
        self.texts.lock().unwrap_or_else(|e| e.into_inner()).error = error;
    }

    /// Time since the start.
    pub fn uptime(&self) -> Duration {
        self.started.elapsed()
    }

    /// Bytes and blocks a second, smoothed over about ten seconds. To be called about once a second.
    pub fn rate(&self) -> (f64, f64) {
        let mut rate = self.rate.lock().unwrap_or_else(|e| e.into_inner());
        let (now, bytes, blocks) = (
            Instant::now(),
            self.bytes.load(Ordering::Relaxed),
            self.blocks.load(Ordering::Relaxed),
        );
        let passed = now.duration_since(rate.at).as_secs_f64();
        if passed > 0.2 {
            rate.at = now;
            rate.measured(passed, bytes, blocks);
        }
        let trust = rate.trust.max(f64::MIN_POSITIVE);
        (
            rate.bytes_per_second / trust,
            rate.blocks_per_second / trust,
        )
    }

    /// Everything at this moment.
    pub fn snapshot(&self) -> Snapshot {
        let (bytes, blocks) = self.rate();
        let texts = self.texts.lock().unwrap_or_else(|e| e.into_inner()).clone();
        let (height, target) = (
            self.height.load(Ordering::Relaxed),
            self.target.load(Ordering::Relaxed),
        );
        let left = target.saturating_sub(height);
        Snapshot {
            pid: std::process::id(),
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs()),
            source: texts.source,
            passed_over: texts.passed_over,
            listening: texts.listening,
            height,
            written: self.written.load(Ordering::Relaxed),
            target,
            mb_per_second: bytes / 1e6,
            seconds_left: (left > 0 && blocks > 0.01).then(|| (f64::from(left) / blocks) as u64),
            error: texts.error,
        }
    }
}

/// Where the snapshot is kept.
pub fn file(dir: &Path) -> PathBuf {
    dir.join("status.json")
}

impl Snapshot {
    /// Writes the file, as a whole or not at all.
    pub fn write(&self, dir: &Path) -> std::io::Result<()> {
        let (path, new) = (file(dir), dir.join("status.json.new"));
        std::fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(new, path)
    }

    /// Reads the file; `None` if there is none or it was written by something else.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(file(dir)).ok()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Half a second after the start the rate is what it is, not a twentieth of it; later it follows.
    #[test]
    fn the_rate_is_right_from_the_start() {
        let mut rate = Rate {
            at: Instant::now(),
            bytes: 0,
            blocks: 0,
            bytes_per_second: 0.0,
            blocks_per_second: 0.0,
            trust: 0.0,
        };
        let near = |rate: &Rate, want: f64| (rate.bytes_per_second / rate.trust / want - 1.0).abs();
        for n in 1..=2 {
            rate.measured(0.25, n * 250_000, n);
            assert!(near(&rate, 1e6) < 0.01);
        }
        for n in 1..=60 {
            rate.measured(1.0, 500_000 + n * 3_000_000, 2 + n);
        }
        assert!(near(&rate, 3e6) < 0.01);
    }
}
