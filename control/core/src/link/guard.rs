//! What stands before the link handshake: the limits per source, cookies under load, the memory of first messages.
//!
//! A handshake datagram that comes this far already carries a tag under the network's key. A first message must also
//! authenticate under the pre-shared key before anything answers it, and it is answered once: who replays a recorded
//! one gets silence, and so does who exceeds the limits. Under load a first message must carry a MAC under a cookie
//! that was sent to its source address.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use subtle::ConstantTimeEq as _;

use crate::{
    identity::derive,
    io::{Micros, Randomness},
};

/// First messages remembered.
const REMEMBERED: usize = 8192;
/// Sources whose rate is watched.
const SOURCES: usize = 4096;
/// How long one cookie secret is used; it is accepted as long again.
const COOKIE_LIFE: Micros = Micros::from_secs(120);

/// A token bucket: `rate` per second, bursts of as many.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    rate: u32,
    tokens_millionths: u64,
    at: Micros,
}

impl Bucket {
    pub(crate) fn new(rate: u32, now: Micros) -> Self {
        Self {
            rate,
            tokens_millionths: u64::from(rate) * 1_000_000,
            at: now,
        }
    }

    pub(crate) fn take(&mut self, now: Micros) -> bool {
        let grown = now.since(self.at).0.saturating_mul(self.rate.into());
        self.tokens_millionths =
            (self.tokens_millionths.saturating_add(grown)).min(u64::from(self.rate) * 1_000_000);
        self.at = now;
        match self.tokens_millionths.checked_sub(1_000_000) {
            Some(left) => {
                self.tokens_millionths = left;
                true
            }
            None => false,
        }
    }

    fn full(&self, now: Micros) -> bool {
        let grown = now.since(self.at).0.saturating_mul(self.rate.into());
        self.tokens_millionths.saturating_add(grown) >= u64::from(self.rate) * 1_000_000
    }
}

/// What is asked before a first message is answered.
#[derive(Debug)]
pub(crate) struct Guard {
    per_source: u32,
    sources: BTreeMap<IpAddr, Bucket>,
    all: Bucket,
    secrets: [[u8; 32]; 2],
    secret_at: Option<Micros>,
    seen: Seen,
}

/// Remembers the last messages of a kind, so that a repeated one is known.
#[derive(Debug)]
pub(crate) struct Seen {
    set: BTreeSet<[u8; 16]>,
    order: VecDeque<[u8; 16]>,
    bound: usize,
}

impl Seen {
    pub(crate) fn new(bound: usize) -> Self {
        Self {
            set: BTreeSet::new(),
            order: VecDeque::new(),
            bound,
        }
    }

    pub(crate) fn contains(&self, hash: &[u8; 16]) -> bool {
        self.set.contains(hash)
    }

    pub(crate) fn insert(&mut self, hash: [u8; 16]) {
        if self.set.insert(hash) {
            self.order.push_back(hash);
        }
        if self.order.len() > self.bound
            && let Some(oldest) = self.order.pop_front()
        {
            self.set.remove(&oldest);
        }
    }
}

impl Guard {
    pub(crate) fn new(per_source: u32, all: u32, now: Micros) -> Self {
        Self {
            per_source,
            sources: BTreeMap::new(),
            all: Bucket::new(all, now),
            secrets: [[0; 32]; 2],
            secret_at: None,
            seen: Seen::new(REMEMBERED),
        }
    }

    /// Whether this source (IPv6: its /64) may cause work now.
    pub(crate) fn admit_source(&mut self, now: Micros, source: IpAddr) -> bool {
        let key = match source {
            IpAddr::V4(_) => source,
            IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() >> 64 << 64).into()),
        };
        if self.sources.len() >= SOURCES && !self.sources.contains_key(&key) {
            self.sources.retain(|_, bucket| !bucket.full(now));
            if self.sources.len() >= SOURCES {
                return false;
            }
        }
        let rate = self.per_source;
        self.sources
            .entry(key)
            .or_insert_with(|| Bucket::new(rate, now))
            .take(now)
    }

    /// Whether more first messages come than are answered without a cookie.
    pub(crate) fn under_load(&mut self, now: Micros) -> bool {
        !self.all.take(now)
    }

    /// The cookie for this source address at this time.
    pub(crate) fn cookie(
        &mut self,
        now: Micros,
        rng: &mut dyn Randomness,
        source: SocketAddr,
    ) -> [u8; 16] {
        self.rotate(now, rng);
        Self::cookie_under(&self.secrets[0], source)
    }

    /// Whether `mac` was made over `message` with a cookie of this source.
    pub(crate) fn cookie_is_right(
        &mut self,
        now: Micros,
        rng: &mut dyn Randomness,
        source: SocketAddr,
        message: &[u8],
        mac: &[u8; 16],
    ) -> bool {
        self.rotate(now, rng);
        let right = |secret| cookie_mac(&Self::cookie_under(secret, source), message).ct_eq(mac);
        bool::from(right(&self.secrets[0]) | right(&self.secrets[1]))
    }

    fn rotate(&mut self, now: Micros, rng: &mut dyn Randomness) {
        let age = self.secret_at.map(|at| now.since(at));
        if age.is_some_and(|age| age < COOKIE_LIFE) {
            return;
        }
        let mut fresh = [0; 32];
        rng.fill(&mut fresh);
        // Where both are too old neither may stay: a second fresh one takes the place nobody has a cookie of.
        self.secrets[1] = self.secrets[0];
        if age.is_none_or(|age| age >= COOKIE_LIFE + COOKIE_LIFE) {
            rng.fill(&mut self.secrets[1]);
        }
        self.secrets[0] = fresh;
        self.secret_at = Some(now);
    }

    fn cookie_under(secret: &[u8; 32], source: SocketAddr) -> [u8; 16] {
        let ip = match source.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        };
        first16(&derive(
            secret,
            "weft cookie of",
            &[&ip, &source.port().to_be_bytes()],
        ))
    }

    /// Whether this first message came before.
    pub(crate) fn seen(&self, hash: &[u8; 16]) -> bool {
        self.seen.contains(hash)
    }

    /// Remembers a first message as answered.
    pub(crate) fn remember(&mut self, hash: [u8; 16]) {
        self.seen.insert(hash);
    }
}

/// What a first message carries once its sender has a cookie.
pub(crate) fn cookie_mac(cookie: &[u8; 16], message: &[u8]) -> [u8; 16] {
    let mut key = [0; 32];
    key[..16].copy_from_slice(cookie);
    first16(&derive(&key, "weft cookie mac", &[message]))
}

/// Names a first message.
pub(crate) fn message_hash(message: &[u8]) -> [u8; 16] {
    first16(&derive(&[0; 32], "weft first message", &[message]))
}

fn first16(hash: &[u8; 32]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::test_rng::Seeded;

    #[test]
    fn sources_are_limited_one_by_one() {
        let mut guard = Guard::new(2, 100, Micros(0));
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        assert!(guard.admit_source(Micros(0), a) && guard.admit_source(Micros(0), a));
        assert!(!guard.admit_source(Micros(0), a));
        assert!(guard.admit_source(Micros(0), b));
        assert!(guard.admit_source(Micros::from_millis(500), a));
        assert!(!guard.admit_source(Micros::from_millis(500), a));
    }

    #[test]
    fn the_table_of_sources_is_bounded() {
        let mut guard = Guard::new(1, 100, Micros(0));
        let admitted = (0..10_000_u32)
            .filter(|i| guard.admit_source(Micros(0), IpAddr::V4((*i).into())))
            .count();
        assert_eq!(admitted, SOURCES);
        assert!(guard.sources.len() <= SOURCES);
        assert!(guard.admit_source(Micros::from_secs(2), IpAddr::from([99, 9, 9, 9])));
    }

    #[test]
    fn a_cookie_serves_its_source_only_and_expires() {
        let mut guard = Guard::new(2, 100, Micros(0));
        let mut rng = Seeded(1, 0);
        let source: SocketAddr = "192.0.2.1:7".parse().unwrap();
        let cookie = guard.cookie(Micros(0), &mut rng, source);
        let mac = cookie_mac(&cookie, b"message");
        let mut right =
            |at, source, message: &[u8]| guard.cookie_is_right(at, &mut rng, source, message, &mac);
        assert!(right(Micros(1), source, b"message"));
        assert!(!right(Micros(1), source, b"massage"));
        assert!(!right(
            Micros(1),
            "192.0.2.1:8".parse().unwrap(),
            b"message"
        ));
        assert!(right(Micros::from_secs(121), source, b"message"));
        assert!(!right(Micros::from_secs(500), source, b"message"));
    }

    #[test]
    fn the_memory_of_first_messages_is_bounded() {
        let mut guard = Guard::new(1, 1, Micros(0));
        (0..20_000_u32).for_each(|i| guard.remember(message_hash(&i.to_be_bytes())));
        assert_eq!(guard.seen.set.len(), REMEMBERED);
        assert!(guard.seen(&message_hash(&19_999_u32.to_be_bytes())));
        assert!(!guard.seen(&message_hash(&0_u32.to_be_bytes())));
    }
}
