//! Bounds on one client.

use std::time::{Duration, Instant};

/// Bounds on one client.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits {
    /// Longest line in bytes; a longer one ends the connection.
    pub line: usize,
    /// Most requests in one batch.
    pub batch: usize,
    /// Most scripts subscribed to.
    pub subscriptions: usize,
    /// Longest answer to one line, in bytes.
    pub answer: usize,
    /// Cost a client may cause a second in the long run. A question costs 1 and 1 for every 100
    /// rows it reads; a client beyond it is answered later.
    pub cost_per_second: f64,
    /// Cost it may cause at once.
    pub cost_burst: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            line: 2 << 20,
            batch: 1000,
            subscriptions: 50_000,
            answer: 32 << 20,
            cost_per_second: 2000.0,
            cost_burst: 50_000.0,
        }
    }
}

/// How much a client has caused of late.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// What is left; below zero the client waits.
    left: f64,
    at: Instant,
}

impl Budget {
    /// A full one.
    pub fn new(limits: &Limits, now: Instant) -> Self {
        Self {
            left: limits.cost_burst,
            at: now,
        }
    }

    /// Takes a cost off, and says how long the client has to wait for its next answer.
    pub fn spend(&mut self, cost: f64, limits: &Limits, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = now;
        self.left = (self.left + passed * limits.cost_per_second).min(limits.cost_burst) - cost;
        if self.left >= 0.0 {
            return Duration::ZERO;
        }
        let wait = -self.left / limits.cost_per_second.max(1.0);
        Duration::from_secs_f64(wait.min(60.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_refills() {
        let limits = Limits {
            cost_per_second: 10.0,
            cost_burst: 100.0,
            ..Limits::default()
        };
        let start = Instant::now();
        let mut budget = Budget::new(&limits, start);
        assert_eq!(budget.spend(100.0, &limits, start), Duration::ZERO);
        assert_eq!(budget.spend(20.0, &limits, start), Duration::from_secs(2));
        let later = start + Duration::from_secs(3);
        assert_eq!(budget.spend(5.0, &limits, later), Duration::ZERO);
        // Time that was not used is not saved beyond the burst.
        let much_later = later + Duration::from_secs(3600);
        assert_eq!(budget.spend(100.0, &limits, much_later), Duration::ZERO);
        assert!(budget.spend(1.0, &limits, much_later) > Duration::ZERO);
    }
}
