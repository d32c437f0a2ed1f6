//! Flooding and anti-entropy on an abstract bus in virtual time: loss, duplication, reordering, partition and heal.

mod common;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use bytes::Bytes;
use common::NETWORK;
use weft_core::{
    identity::{Identity, NodeId},
    io::Micros,
    sim::rng::Rng,
    topology::{
        Topology,
        flooding::{FloodTimers, MAX_MESSAGE},
        lsa::{HearLink, LinkId, Lsa, LsaContent, Measured, SendLink},
        lsdb::Limits,
    },
};

const SECOND: u64 = 1_000_000;

/// When it arrives, order among equals, from, to, what.
type Flying = (Micros, u64, usize, usize, Bytes);

struct Bus {
    rng: Rng,
    now: Micros,
    identities: Vec<Identity>,
    nodes: Vec<Topology>,
    numbers: BTreeMap<NodeId, usize>,
    /// Pairs (lower, higher) that can talk.
    pairs: BTreeSet<(usize, usize)>,
    loss: f64,
    duplication: f64,
    max_delay: u64,
    flying: BinaryHeap<Reverse<Flying>>,
    sent: u64,
}

fn timers() -> FloodTimers {
    FloodTimers {
        sync_interval: Micros(10 * SECOND),
        ..FloodTimers::default()
    }
}

impl Bus {
    fn new(seed: u64, count: usize, loss: f64) -> Self {
        let mut rng = Rng::new(seed);
        let identities: Vec<_> = (0..count)
            .map(|_| Identity::from_secret(&rng.secret()))
            .collect();
        let nodes = identities
            .iter()
            .map(|identity| {
                Topology::new(identity.clone(), NETWORK, Limits::default(), 0, timers())
            })
            .collect();
        let numbers = identities
            .iter()
            .enumerate()
            .map(|(number, identity)| (identity.id(), number))
            .collect();
        let mut pairs = BTreeSet::new();
        for node in 1..count {
            pairs.insert((rng.index(node), node));
        }
        for _ in 0..count {
            let (a, b) = (rng.index(count), rng.index(count));
            if a != b {
                pairs.insert((a.min(b), a.max(b)));
            }
        }
        let mut bus = Self {
            rng,
            now: Micros(0),
            identities,
            nodes,
            numbers,
            pairs: BTreeSet::new(),
            loss,
            duplication: 0.1,
            max_delay: 200_000,
            flying: BinaryHeap::new(),
            sent: 0,
        };
        pairs.into_iter().for_each(|(a, b)| bus.connect(a, b));
        bus
    }

    fn content(&self, node: usize, tag: u32) -> LsaContent {
        let measured = Measured {
            capacity_kbps: tag,
            ..Measured::UNKNOWN
        };
        let mut content = LsaContent {
            name: format!("node-{node}"),
            ..LsaContent::default()
        };
        for &(a, b) in &self.pairs {
            let other = if a == node { b } else { a };
            if a == node || b == node {
                let id = self.identities[other].id();
                content.sends.push(SendLink {
                    to: id,
                    link: LinkId(0),
                    mtu: 1500,
                    capability: 0,
                });
                content.hears.push(HearLink {
                    from: id,
                    link: LinkId(0),
                    measured,
                });
            }
        }
        content
    }

    fn originate(&mut self, node: usize, tag: u32) {
        let content = self.content(node, tag);
        self.nodes[node].originate(self.now, content);
    }

    fn connect(&mut self, a: usize, b: usize) {
        self.pairs.insert((a.min(b), a.max(b)));
        let (id_a, id_b) = (self.identities[a].id(), self.identities[b].id());
        assert!(self.nodes[a].on_neighbour_up(self.now, id_b));
        assert!(self.nodes[b].on_neighbour_up(self.now, id_a));
    }

    fn disconnect(&mut self, a: usize, b: usize) {
        self.pairs.remove(&(a.min(b), a.max(b)));
        let (id_a, id_b) = (self.identities[a].id(), self.identities[b].id());
        self.nodes[a].on_neighbour_down(&id_b);
        self.nodes[b].on_neighbour_down(&id_a);
    }

    fn transmit(&mut self, node: usize) {
        while let Some((to, message)) = self.nodes[node].poll_transmit(self.now) {
            assert!(message.len() <= MAX_MESSAGE && !message.is_empty());
            self.sent += 1;
            let to = self.numbers[&to];
            let copies = if self.rng.chance(self.loss) {
                0
            } else {
                1 + u32::from(self.rng.chance(self.duplication))
            };
            for _ in 0..copies {
                let at = Micros(self.now.0 + self.rng.between(1000, self.max_delay));
                let order = self.rng.next_u64();
                self.flying
                    .push(Reverse((at, order, node, to, message.clone())));
            }
        }
    }

    /// Runs for at most `seconds`, or until `done`. Returns whether it was.
    fn run_until(&mut self, seconds: u64, mut done: impl FnMut(&Self) -> bool) -> bool {
        let deadline = Micros(self.now.0 + seconds * SECOND);
        let mut check_at = self.now;
        loop {
            for node in 0..self.nodes.len() {
                if self.nodes[node]
                    .poll_timeout()
                    .is_some_and(|at| at <= self.now)
                {
                    self.nodes[node].handle_timeout(self.now);
                    self.transmit(node);
                    let next = self.nodes[node].poll_timeout();
                    assert!(
                        next.is_none_or(|at| at > self.now),
                        "node {node} wants a timeout it was just given"
                    );
                }
            }
            if self.now >= check_at {
                if done(self) {
                    return true;
                }
                check_at = Micros(self.now.0 + 100_000);
            }
            let timeouts = self.nodes.iter().filter_map(Topology::poll_timeout).min();
            let arrival = self.flying.peek().map(|Reverse((at, ..))| *at);
            let next = [timeouts, arrival]
                .into_iter()
                .flatten()
                .min()
                .expect("there is always a sync to come");
            if next > deadline {
                self.now = deadline;
                return done(self);
            }
            self.now = self.now.max(next);
            while let Some(Reverse((at, ..))) = self.flying.peek()
                && *at <= self.now
            {
                let Some(Reverse((_, _, from, to, message))) = self.flying.pop() else {
                    break;
                };
                let id = self.identities[from].id();
                // Fails where the pair was cut meanwhile.
                let _ = self.nodes[to].on_message(self.now, id, &message);
                self.transmit(to);
            }
        }
    }

    fn component(&self, start: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::from([start]);
        let mut open = vec![start];
        while let Some(at) = open.pop() {
            for &(a, b) in &self.pairs {
                for (from, to) in [(a, b), (b, a)] {
                    if from == at && seen.insert(to) {
                        open.push(to);
                    }
                }
            }
        }
        seen
    }

    /// Every node of a component has the newest LSA of every other.
    fn converged(&self) -> bool {
        (0..self.nodes.len()).all(|node| {
            self.component(node).into_iter().all(|other| {
                let newest = self.nodes[other].lsdb().get(&self.identities[other].id());
                let known = self.nodes[node].lsdb().get(&self.identities[other].id());
                match (newest, known) {
                    (Some(newest), Some(known)) => newest.lsa.digest == known.lsa.digest,
                    _ => false,
                }
            })
        })
    }

    /// Every node says what it last wanted to say.
    fn settled(&self, tags: &[u32]) -> bool {
        tags.iter().enumerate().all(|(node, tag)| {
            let mut wanted = self.content(node, *tag);
            wanted.normalise();
            self.nodes[node]
                .lsdb()
                .get(&self.identities[node].id())
                .is_some_and(|entry| entry.lsa.content == wanted)
        })
    }
}

fn one_life(seed: u64) {
    let mut rng = Rng::new(seed ^ 0xfeed);
    let count = rng.between(4, 24) as usize;
    let loss = [0.0, 0.1, 0.3, 0.5][rng.index(4)];
    let mut bus = Bus::new(seed, count, loss);
    let mut tags = vec![1; count];
    (0..count).for_each(|node| bus.originate(node, 1));
    assert!(
        bus.run_until(120, |bus| bus.settled(&tags) && bus.converged()),
        "seed {seed}: first convergence"
    );

    // Changes all over the place.
    for round in 2..6 {
        for _ in 0..count / 2 {
            let node = rng.index(count);
            tags[node] = round;
            bus.originate(node, round);
        }
        bus.run_until(1, |_| false);
    }
    assert!(
        bus.run_until(120, |bus| bus.settled(&tags) && bus.converged()),
        "seed {seed}: after changes"
    );

    // Partition, with changes on both sides and a restart that lost its memory.
    let side: Vec<bool> = (0..count).map(|_| rng.chance(0.5)).collect();
    let cut: Vec<_> = bus
        .pairs
        .iter()
        .copied()
        .filter(|&(a, b)| side[a] != side[b])
        .collect();
    cut.iter().for_each(|&(a, b)| bus.disconnect(a, b));
    for (node, tag) in tags.iter_mut().enumerate() {
        *tag = 9;
        bus.originate(node, 9);
    }
    assert!(
        bus.run_until(120, |bus| bus.settled(&tags) && bus.converged()),
        "seed {seed}: partitioned"
    );
    let reborn = rng.index(count);
    let neighbours: Vec<_> = bus
        .pairs
        .iter()
        .copied()
        .filter(|&(a, b)| a == reborn || b == reborn)
        .collect();
    neighbours.iter().for_each(|&(a, b)| bus.disconnect(a, b));
    let id = bus.identities[reborn].id();
    let others = bus
        .nodes
        .iter()
        .enumerate()
        .filter(|(node, _)| *node != reborn);
    let remembered = others
        .filter_map(|(_, node)| node.lsdb().get(&id))
        .map(|entry| entry.lsa.sequence)
        .max();
    let identity = bus.identities[reborn].clone();
    bus.nodes[reborn] = Topology::new(identity, NETWORK, Limits::default(), 0, timers());
    cut.iter()
        .chain(&neighbours)
        .for_each(|&(a, b)| bus.connect(a, b));
    for (node, tag) in tags.iter_mut().enumerate() {
        *tag = 10;
        bus.originate(node, 10);
    }
    assert!(
        bus.run_until(120, |bus| bus.settled(&tags) && bus.converged()),
        "seed {seed}: healed"
    );
    assert!(
        bus.nodes[reborn].flooding().sequence() >= remembered.unwrap_or(0),
        "seed {seed}: the sequence falls behind the old one"
    );

    // Quiet again: nothing queued, and only comparisons go on.
    assert!(
        bus.run_until(300, |bus| bus.nodes.iter().all(|n| n.flooding().is_idle())),
        "seed {seed}: quiet"
    );
    let (sent, pairs) = (bus.sent, bus.pairs.len() as u64);
    bus.run_until(30, |_| false);
    let quiet = bus.sent - sent;
    assert!(
        quiet <= pairs * 2 * 3 * 8,
        "seed {seed}: {quiet} messages in 30 s of quiet on {pairs} pairs"
    );
    for node in &bus.nodes {
        assert_eq!(node.lsdb().len(), count);
        assert_eq!(node.flooding().counters().get("flood_malformed"), None);
    }
}

#[test]
fn databases_converge_whatever_the_network_does() {
    let seeds = std::env::var("WEFT_FLOOD_SEEDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(25);
    (0..seeds).for_each(one_life);
}

#[test]
fn the_graph_follows_the_database() {
    let mut bus = Bus::new(5, 30, 0.2);
    (0..30).for_each(|node| bus.originate(node, 1));
    assert!(bus.run_until(60, Bus::converged));
    for _ in 0..200 {
        let node = bus.rng.index(30);
        match bus.rng.below(3) {
            0 => {
                let (a, b) = *bus
                    .pairs
                    .iter()
                    .nth(bus.rng.index(bus.pairs.len()))
                    .expect("connected");
                if bus.pairs.len() > 30 {
                    bus.disconnect(a, b);
                    bus.originate(a, 2);
                    bus.originate(b, 2);
                }
            }
            1 => {
                let other = bus.rng.index(30);
                if other != node && !bus.pairs.contains(&(node.min(other), node.max(other))) {
                    bus.connect(node, other);
                    bus.originate(node, 3);
                    bus.originate(other, 3);
                }
            }
            _ => {
                let tag = bus.rng.between(4, 9) as u32;
                bus.originate(node, tag);
            }
        }
        bus.run_until(1, |_| false);
        bus.nodes.iter_mut().for_each(|node| drop(node.update()));
    }
    assert!(bus.run_until(60, Bus::converged));
    let at = Micros(bus.now.0);
    for node in &mut bus.nodes {
        node.update();
        // A graph made afresh from the same LSAs must be the same.
        let lsas = node.lsdb().export(at);
        let other = Identity::from_secret(&[9; 32]);
        let mut fresh = Topology::new(other, NETWORK, Limits::default(), 0, timers());
        assert_eq!(
            fresh.restore(at, lsas.iter().map(|(age, lsa)| (*age, lsa.as_ref()))),
            30
        );
        let edges = |t: &Topology| {
            let mut edges: Vec<_> = t
                .graph()
                .edges()
                .map(|(a, b, links)| (a, b, links.to_vec()))
                .collect();
            edges.sort_by_key(|(a, b, _)| (*a, *b));
            edges
        };
        assert_eq!(edges(node), edges(&fresh));
        assert_eq!(node.graph().edge_count(), fresh.graph().edge_count());
    }
}

#[test]
fn an_lsa_of_many_messages_arrives() {
    let mut bus = Bus::new(11, 5, 0.3);
    let mut rng = Rng::new(1);
    (0..5).for_each(|node| bus.originate(node, 1));
    let mut content = bus.content(2, 1);
    for _ in 0..120 {
        let id = Identity::from_secret(&rng.secret()).id();
        content.hears.push(HearLink {
            from: id,
            link: LinkId(4),
            measured: Measured::UNKNOWN,
        });
        content.sends.push(SendLink {
            to: id,
            link: LinkId(4),
            mtu: 1500,
            capability: 1,
        });
    }
    bus.nodes[2].originate(bus.now, content);
    assert!(bus.run_until(90, |bus| {
        let big = bus.nodes[2]
            .lsdb()
            .get(&bus.identities[2].id())
            .is_some_and(|e| e.lsa.encoded().len() > 6000);
        big && bus.converged()
    }));
}

#[test]
fn an_unsteady_node_is_damped_and_its_last_word_counts() {
    // What changes: figures only, or what there is.
    for (figures, allowed) in [(true, 4..=5), (false, 9..=13)] {
        let mut bus = Bus::new(2, 4, 0.0);
        (0..4).for_each(|node| bus.originate(node, 1));
        assert!(bus.run_until(30, Bus::converged));
        let before = bus.nodes[0].flooding().sequence();
        let mut last = LsaContent::default();
        for change in 0..2000 {
            last = bus.content(0, if figures { 100 + change } else { 1 });
            if !figures {
                last.name = format!("name-{change}");
            }
            bus.nodes[0].originate(bus.now, last.clone());
            let until = bus.now.0 + 10_000;
            bus.run_until(0, |_| false);
            bus.now = Micros(until);
        }
        let issued = bus.nodes[0].flooding().sequence() - before;
        assert!(
            allowed.contains(&issued),
            "{issued} LSAs in 20 s of constant change"
        );
        last.normalise();
        let id = bus.identities[0].id();
        let said = |bus: &Bus| {
            bus.nodes[3]
                .lsdb()
                .get(&id)
                .is_some_and(|entry| entry.lsa.content == last)
        };
        assert!(bus.run_until(20, |bus| said(bus) && bus.converged()));
    }
}

#[test]
fn news_of_links_does_not_wait_for_figures() {
    let mut bus = Bus::new(2, 4, 0.0);
    (0..4).for_each(|node| bus.originate(node, 1));
    assert!(bus.run_until(30, Bus::converged));
    // Figures change all the time, then a link goes.
    for change in 0..300 {
        bus.originate(0, 100 + change);
        bus.run_until(0, |_| false);
        bus.now = Micros(bus.now.0 + 100_000);
    }
    let mut content = bus.content(0, 400);
    content.hears.clear();
    bus.nodes[0].originate(bus.now, content);
    let id = bus.identities[0].id();
    assert!(bus.run_until(1, |bus| {
        let known = |node: &Topology| {
            node.lsdb()
                .get(&id)
                .is_some_and(|entry| entry.lsa.content.hears.is_empty())
        };
        bus.nodes.iter().all(known)
    }));
}

#[test]
fn a_withdrawn_node_is_gone_everywhere_and_stays_away() {
    let mut bus = Bus::new(4, 8, 0.2);
    (0..8).for_each(|node| bus.originate(node, 1));
    assert!(bus.run_until(30, Bus::converged));
    let gone = bus.identities[3].id();
    let old = bus.nodes[3].lsdb().get(&gone).expect("own").lsa.clone();
    bus.nodes[3].withdraw(bus.now);
    bus.transmit(3);
    assert!(bus.run_until(30, Bus::converged));
    for node in 0..8 {
        bus.nodes[node].update();
        assert!(
            bus.nodes[node]
                .lsdb()
                .get(&gone)
                .expect("remembered")
                .withdrawn()
        );
        assert_eq!(bus.nodes[node].graph().edges_from(&gone).count(), 0);
        // An older LSA that was still under way does not bring it back.
        assert_eq!(
            bus.nodes[node].restore(bus.now, [(1, old.encoded().as_ref())]),
            0
        );
    }
}

#[test]
fn hostile_messages_change_nothing_and_are_counted() {
    let mut rng = Rng::new(77);
    let mut bus = Bus::new(3, 6, 0.0);
    (0..6).for_each(|node| bus.originate(node, 1));
    assert!(bus.run_until(30, Bus::converged));
    let neighbour = bus.nodes[0]
        .flooding()
        .neighbours()
        .next()
        .expect("connected");
    let edges: Vec<_> = bus.nodes[0]
        .lsdb()
        .iter()
        .map(|(id, e)| (*id, e.lsa.digest))
        .collect();
    // Real messages to mutate.
    let mut real = Vec::new();
    for node in 1..6 {
        let entry = bus.nodes[node]
            .lsdb()
            .get(&bus.identities[node].id())
            .expect("own");
        let lsa = Lsa::sign(
            &bus.identities[node],
            &NETWORK,
            entry.lsa.sequence + 5,
            900,
            entry.lsa.content.clone(),
        );
        let mut message = vec![1, 0, 3];
        message.extend((lsa.encoded().len() as u16).to_be_bytes());
        message.extend(lsa.encoded());
        real.push(message);
    }
    for round in 0..3000u64 {
        let mut message = real[rng.index(real.len())].clone();
        if rng.chance(0.3) {
            message = vec![0; rng.index(300)];
            rng.fill(&mut message);
            if let Some(kind) = message.first_mut() {
                *kind = rng.between(0, 8) as u8;
            }
        } else {
            for _ in 0..=rng.index(3) {
                let at = 5 + rng.index(message.len() - 5);
                message[at] ^= 1 << rng.below(8);
            }
            if rng.chance(0.2) {
                message.truncate(rng.index(message.len()));
            }
        }
        if real.contains(&message) {
            continue;
        }
        let now = Micros(bus.now.0 + round * 20_000);
        let _ = bus.nodes[0].on_message(now, neighbour, &message);
        assert!(bus.nodes[0].flooding().queued() < 2000);
    }
    let after: Vec<_> = bus.nodes[0]
        .lsdb()
        .iter()
        .map(|(id, e)| (*id, e.lsa.digest))
        .collect();
    assert_eq!(edges, after);
    let counters = bus.nodes[0].flooding().counters();
    assert!(
        counters["flood_malformed"] > 0 && counters["lsa_bad_signature"] > 0,
        "{counters:?}"
    );
    let stranger = Identity::from_secret(&[1; 32]).id();
    assert!(
        bus.nodes[0]
            .on_message(bus.now, stranger, &real[0])
            .is_err()
    );
    // The same node still takes what is right.
    let later = Micros(bus.now.0 + 3000 * 20_000 + 60 * SECOND);
    assert!(bus.nodes[0].on_message(later, neighbour, &real[0]).is_ok());
}
