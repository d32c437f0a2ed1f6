//! What every state machine is handed: the time, randomness, the way out, the forwarding tables' allocators.

use std::collections::{BTreeMap, VecDeque};

use super::{Config, Event};
use crate::{
    io::{Micros, Output, Randomness},
    node::forwarding::Forwarding,
};

/// Outputs queued for the shell, and the counters.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    queue: VecDeque<Output>,
    counters: BTreeMap<&'static str, u64>,
    state_changed: bool,
    limits_told: BTreeMap<&'static str, Micros>,
}

impl Outbox {
    pub(crate) fn push(&mut self, output: Output) {
        self.queue.push_back(output);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.queue.push_back(Output::Event(event));
    }

    pub(crate) fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    /// Counts a bound that was hit, and says so once a minute.
    pub(crate) fn limit(&mut self, now: Micros, what: &'static str) {
        self.count(what);
        let told = self.limits_told.get(what);
        if told.is_none_or(|at| now.since(*at) >= Micros::from_secs(60)) {
            self.limits_told.insert(what, now);
            self.event(Event::LimitHit { what });
        }
    }

    /// The snapshot is out of date. Told once, after everything else that is queued.
    pub(crate) fn state_changed(&mut self) {
        self.state_changed = true;
    }

    pub(crate) fn pop(&mut self) -> Option<Output> {
        self.queue
            .pop_front()
            .or_else(|| std::mem::take(&mut self.state_changed).then_some(Output::StateChanged))
    }

    pub(crate) fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }
}

/// The surroundings of one call into a state machine.
pub(crate) struct Context<'a> {
    pub(crate) now: Micros,
    pub(crate) config: &'a Config,
    pub(crate) rng: &'a mut dyn Randomness,
    pub(crate) out: &'a mut Outbox,
    pub(crate) forwarding: &'a mut Forwarding,
}

impl Context<'_> {
    pub(crate) fn random_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.rng.fill(&mut bytes);
        u64::from_be_bytes(bytes)
    }

    pub(crate) fn random_u32(&mut self) -> u32 {
        (self.random_u64() >> 32) as u32
    }

    /// A time between three quarters and five quarters of this one.
    pub(crate) fn jittered(&mut self, time: Micros) -> Micros {
        let spread = time.0 / 2;
        Micros(
            time.0 - time.0 / 4
                + if spread == 0 {
                    0
                } else {
                    self.random_u64() % spread
                },
        )
    }
}

/// Deadlines by key: at most one each.
#[derive(Debug, Clone)]
pub(crate) struct Deadlines<K> {
    by_key: BTreeMap<K, Micros>,
    by_time: std::collections::BTreeSet<(Micros, K)>,
}

impl<K> Default for Deadlines<K> {
    fn default() -> Self {
        Self {
            by_key: BTreeMap::new(),
            by_time: std::collections::BTreeSet::new(),
        }
    }
}

impl<K: Ord + Copy> Deadlines<K> {
    pub(crate) fn set(&mut self, key: K, at: Micros) {
        self.clear(&key);
        self.by_key.insert(key, at);
        self.by_time.insert((at, key));
    }

    pub(crate) fn clear(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, *key));
        }
    }

    pub(crate) fn next(&self) -> Option<Micros> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes one key whose time has come.
    pub(crate) fn pop_due(&mut self, now: Micros) -> Option<K> {
        let &(at, key) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(&key);
        Some(key)
    }
}
