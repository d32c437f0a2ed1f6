//! Hosts, underlay and time: the event loop of a simulation.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use super::{
    host::{Host, Sent, Stop},
    rng::Rng,
    underlay::{Underlay, ip_addresses},
};
use crate::{
    identity::NodeId,
    io::{Micros, UnderlayAddress},
    node::Config,
};

enum What {
    Frame(usize, Vec<u8>),
    Wake(usize),
    Step(usize),
    Second(usize),
}

struct Scheduled {
    at: Micros,
    order: u64,
    what: What,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> Ordering {
        // The heap gives the greatest first.
        (other.at, other.order).cmp(&(self.at, self.order))
    }
}

/// A whole simulated network.
pub struct World {
    /// Virtual time.
    pub now: Micros,
    /// Every host.
    pub hosts: Vec<Host>,
    /// What connects them.
    pub underlay: Underlay,
    /// For what the scenario itself decides.
    pub rng: Rng,
    /// Frames to addresses that no host here has, where there is somewhere to take them; else they are lost.
    pub outside: Option<Vec<Vec<u8>>>,
    queue: BinaryHeap<Scheduled>,
    order: u64,
    hash: u64,
    events: u64,
    by_address: HashMap<IpAddr, usize>,
    by_id: BTreeMap<NodeId, usize>,
    sent: u64,
}

impl World {
    /// An empty world. All chance in it follows from the seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        crate::topology::lsa::memo::enable(true);
        Self {
            now: Micros(1_000_000),
            hosts: Vec::new(),
            underlay: Underlay::new(rng.fork()),
            rng,
            outside: None,
            queue: BinaryHeap::new(),
            order: 0,
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            by_address: HashMap::new(),
            by_id: BTreeMap::new(),
            sent: 0,
        }
    }

    /// Adds a host whose daemon does not run yet; gives its number.
    pub fn add(&mut self, config: Config, addresses: Vec<UnderlayAddress>) -> usize {
        let number = self.hosts.len();
        self.by_address
            .extend(addresses.iter().map(|a| (a.address, number)));
        self.by_id.insert(config.identity.id(), number);
        let rng = self.rng.fork();
        self.hosts.push(Host::new(config, addresses, rng));
        let at = Micros(self.now.0 + 1 + self.rng.below(1_000_000));
        self.schedule(at, What::Second(number));
        number
    }

    /// The number of a node.
    #[must_use]
    pub fn number(&self, id: &NodeId) -> Option<usize> {
        self.by_id.get(id).copied()
    }

    /// Whose an address is.
    #[must_use]
    pub fn owner(&self, ip: &IpAddr) -> Option<usize> {
        self.by_address.get(ip).copied()
    }

    /// Starts a daemon.
    pub fn start(&mut self, number: usize, keep_snapshot: bool) {
        self.note(1, number, &[]);
        self.hosts[number].start(self.now, keep_snapshot);
        self.after(number);
    }

    /// Stops a host.
    pub fn stop(&mut self, number: usize, how: Stop) {
        self.note(2, number, &[]);
        self.hosts[number].stop(how);
    }

    /// Sends one packet of traffic from a host; gives its number (unique in this world) and what became of it.
    pub fn send(&mut self, from: usize, to: Ipv6Addr) -> (u64, Sent) {
        self.sent += 1;
        let number = self.sent;
        let sent = self.hosts[from].send(self.now, to, number);
        self.after(from);
        (number, sent)
    }

    /// Changes a host's addresses.
    pub fn set_addresses(&mut self, number: usize, addresses: Vec<UnderlayAddress>) {
        self.note(5, number, &[]);
        self.by_address.retain(|_, owner| *owner != number);
        self.by_address
            .extend(addresses.iter().map(|a| (a.address, number)));
        self.with(number, |host, now| host.set_addresses(now, addresses));
    }

    /// Does something with a host and carries what it sends.
    pub fn with<T>(&mut self, number: usize, act: impl FnOnce(&mut Host, Micros) -> T) -> T {
        let result = act(&mut self.hosts[number], self.now);
        self.after(number);
        result
    }

    /// Runs to a point in time.
    pub fn run_until(&mut self, end: Micros) {
        while let Some(next) = self.queue.peek()
            && next.at <= end
        {
            let Some(Scheduled { at, what, .. }) = self.queue.pop() else {
                break;
            };
            self.now = self.now.max(at);
            self.events += 1;
            match what {
                What::Frame(number, frame) => {
                    self.note(3, number, &frame);
                    self.hosts[number].receive(self.now, &frame);
                    self.after(number);
                }
                What::Wake(number) => {
                    let host = &mut self.hosts[number];
                    if host.wake == Some(at) {
                        host.wake = None;
                        if host.undone.is_empty()
                            && host
                                .node
                                .as_ref()
                                .and_then(|node| node.poll_timeout())
                                .is_some_and(|due| due <= at)
                        {
                            self.note(4, number, &[]);
                            self.hosts[number].timeout(self.now);
                        }
                        self.after(number);
                    }
                }
                What::Step(number) => {
                    let host = &mut self.hosts[number];
                    if host.step == Some(at) {
                        host.step = None;
                        host.step(self.now);
                        self.after(number);
                    }
                }
                What::Second(number) => {
                    self.hosts[number].second(self.now);
                    self.after(number);
                    self.schedule(Micros(self.now.0 + 1_000_000), What::Second(number));
                }
            }
        }
        self.now = self.now.max(end);
    }

    /// Runs for some milliseconds.
    pub fn run_ms(&mut self, millis: u64) {
        self.run_until(Micros(self.now.0 + millis * 1000));
    }

    /// Runs until a condition that is checked every `step_ms`, for at most `limit_ms`. Gives the time it took.
    pub fn run_while(
        &mut self,
        step_ms: u64,
        limit_ms: u64,
        mut holds: impl FnMut(&mut Self) -> bool,
    ) -> Option<Micros> {
        let start = self.now;
        while holds(self) {
            if self.now.0 - start.0 >= limit_ms * 1000 {
                return None;
            }
            self.run_ms(step_ms);
        }
        Some(Micros(self.now.0 - start.0))
    }

    /// A hash of everything that happened so far: equal for equal seeds.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        self.hash
    }

    /// How many events there were.
    #[must_use]
    pub fn event_count(&self) -> u64 {
        self.events
    }

    fn note(&mut self, kind: u64, number: usize, bytes: &[u8]) {
        let mut mix = |word: u64| {
            self.hash = (self.hash.rotate_left(5) ^ word).wrapping_mul(0x517c_c1b7_2722_0a95)
        };
        mix(kind);
        mix(self.now.0);
        mix(number as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            mix(u64::from_le_bytes(word));
        }
    }

    /// Carries what a host sent and schedules its next wake-up.
    fn after(&mut self, number: usize) {
        for frame in std::mem::take(&mut self.hosts[number].out) {
            let Some((from, to)) = ip_addresses(&frame) else {
                continue;
            };
            if !self.hosts[number].has(from) {
                continue;
            }
            if let Some(outside) = &mut self.outside
                && !self.by_address.contains_key(&to)
            {
                outside.push(frame);
                continue;
            }
            let arrivals = self.underlay.carry(self.now, &frame);
            let Some(receiver) = self
                .by_address
                .get(&to)
                .copied()
                .filter(|to_host| self.hosts[*to_host].has(to))
            else {
                continue;
            };
            for at in arrivals {
                self.schedule(at, What::Frame(receiver, frame.clone()));
            }
        }
        let now = self.now;
        let host = &mut self.hosts[number];
        if !host.undone.is_empty() && host.step.is_none() {
            let at = Micros(now.0 + host.pace.0);
            host.step = Some(at);
            self.schedule(at, What::Step(number));
        }
        let host = &mut self.hosts[number];
        if !host.undone.is_empty() {
            // Busy; the last step looks at the clock again.
            return;
        }
        let Some(due) = host.node.as_ref().and_then(|node| node.poll_timeout()) else {
            return;
        };
        // A time in the past is due at once, but not in this very instant, so that time always advances.
        let due = Micros(due.0.max(now.0 + 1));
        if host.wake.is_none_or(|wake| due < wake) {
            host.wake = Some(due);
            self.schedule(due, What::Wake(number));
        }
    }

    fn schedule(&mut self, at: Micros, what: What) {
        self.order += 1;
        self.queue.push(Scheduled {
            at,
            order: self.order,
            what,
        });
    }
}
