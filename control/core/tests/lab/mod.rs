//! Small networks drawn link by link, with traffic whose every packet is accounted for.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use weft_core::{
    identity::{Identity, NetworkSecret, NodeId},
    io::{Answer, Command, CommandId, ForwardMode, Micros, UnderlayAddress},
    node::{Config, views::LinkState},
    sim::{
        host::{Sent, Stop},
        underlay::LinkModel,
        world::World,
    },
};

pub const PORT: u16 = 7117;

/// A network where each link has a subnet of its own.
pub struct Lab {
    pub world: World,
    links: Vec<(usize, usize)>,
    commands: u64,
}

pub fn identity(number: usize) -> Identity {
    let mut secret = [0x5a; 32];
    secret[..8].copy_from_slice(&(number as u64 + 1).to_be_bytes());
    Identity::from_secret(&secret)
}

pub fn secret() -> NetworkSecret {
    NetworkSecret::from_bytes([0x42; 32])
}

fn ip(link: usize, end: u8) -> IpAddr {
    Ipv4Addr::new(10, (link >> 8) as u8, link as u8, end).into()
}

impl Lab {
    /// Hosts 0..`nodes` with these links; the first of each pair is told of the second.
    pub fn new(
        seed: u64,
        nodes: usize,
        links: &[(usize, usize)],
        tune: impl Fn(usize, &mut Config),
    ) -> Self {
        let mut world = World::new(seed);
        for number in 0..nodes {
            let mut config = Config::new(identity(number), secret());
            config.name = format!("n{number}");
            config.port = PORT;
            let mut addresses = Vec::new();
            for (link, &(a, b)) in links.iter().enumerate() {
                let end = if a == number {
                    config.peers.push(SocketAddr::new(ip(link, 2), PORT));
                    1
                } else if b == number {
                    2
                } else {
                    continue;
                };
                addresses.push(UnderlayAddress {
                    address: ip(link, end),
                    interface: format!("eth{link}"),
                    prefix_len: 30,
                    mtu: 1500,
                    up: true,
                    mode: ForwardMode::UserSpace,
                });
            }
            tune(number, &mut config);
            world.add(config, addresses);
        }
        for link in 0..links.len() {
            let model = LinkModel {
                delay: 1_000,
                jitter: 0,
                ..LinkModel::default()
            };
            world.underlay.set(ip(link, 1), ip(link, 2), model);
            world.underlay.set(ip(link, 2), ip(link, 1), model);
        }
        Self {
            world,
            links: links.to_vec(),
            commands: 0,
        }
    }

    /// 0 – 1 – 2 – … – `nodes`-1.
    pub fn chain(seed: u64, nodes: usize, tune: impl Fn(usize, &mut Config)) -> Self {
        let links: Vec<_> = (1..nodes).map(|i| (i - 1, i)).collect();
        Self::new(seed, nodes, &links, tune)
    }

    pub fn start(&mut self) {
        (0..self.world.hosts.len()).for_each(|number| self.world.start(number, false));
    }

    pub fn id(&self, number: usize) -> NodeId {
        self.world.hosts[number].id
    }

    /// Changes both directions of the links between two hosts.
    pub fn change(&mut self, a: usize, b: usize, change: impl Fn(&mut LinkModel)) {
        for (link, &(x, y)) in self.links.clone().iter().enumerate() {
            if (x, y) == (a, b) || (x, y) == (b, a) {
                for (from, to) in [(1, 2), (2, 1)] {
                    self.world
                        .underlay
                        .get_mut(ip(link, from), ip(link, to))
                        .into_iter()
                        .for_each(&change);
                }
            }
        }
    }

    /// Changes the direction from `a` to `b` alone.
    pub fn change_one_way(&mut self, a: usize, b: usize, change: impl Fn(&mut LinkModel)) {
        for (link, &(x, y)) in self.links.clone().iter().enumerate() {
            let (from, to) = match () {
                () if (x, y) == (a, b) => (1, 2),
                () if (x, y) == (b, a) => (2, 1),
                () => continue,
            };
            self.world
                .underlay
                .get_mut(ip(link, from), ip(link, to))
                .into_iter()
                .for_each(&change);
        }
    }

    /// Runs until a condition holds; fails with the logs after the limit.
    pub fn wait(
        &mut self,
        limit_s: u64,
        what: &str,
        mut done: impl FnMut(&World) -> bool,
    ) -> Micros {
        let start = self.world.now;
        while !done(&self.world) {
            if self.world.now.since(start) >= Micros::from_secs(limit_s) {
                panic!("{what}: not within {limit_s} s\n{}", self.logs());
            }
            self.world.run_ms(5);
        }
        self.world.now.since(start)
    }

    pub fn logs(&self) -> String {
        let mut lines = String::new();
        for (number, host) in self.world.hosts.iter().enumerate() {
            for (at, line) in host
                .log
                .iter()
                .rev()
                .take(30)
                .collect::<Vec<_>>()
                .into_iter()
                .rev()
            {
                lines += &format!("{:>9.3} n{number} {line}\n", at.0 as f64 / 1e6);
            }
        }
        for (number, host) in self.world.hosts.iter().enumerate() {
            let counters = host
                .node
                .as_ref()
                .map(|node| node.counters())
                .unwrap_or_default();
            let told: Vec<_> = counters
                .iter()
                .filter(|(name, _)| !name.contains("hello"))
                .collect();
            lines += &format!("n{number}: {told:?}; host: {:?}\n", host.counts);
        }
        lines
    }

    /// Whether every host sees all others with a path, and all its links up.
    pub fn converged(world: &World) -> bool {
        world
            .hosts
            .iter()
            .filter_map(|h| h.node.as_ref())
            .all(|node| {
                let nodes = node.nodes(world.now);
                nodes.len() == world.hosts.len()
                    && nodes.iter().all(|n| n.cost.is_some())
                    && node
                        .links(world.now)
                        .iter()
                        .all(|l| l.state == LinkState::Up)
            })
    }

    pub fn converge(&mut self) -> Micros {
        self.wait(30, "convergence", Self::converged)
    }

    /// Sends one packet each `interval_ms` from `from` to `to` for some time, and waits for the last ones. Gives the
    /// numbers sent and, by number, when they came.
    pub fn stream(
        &mut self,
        from: usize,
        to: usize,
        interval_ms: u64,
        duration_s: u64,
        mut meanwhile: impl FnMut(&mut Self, Micros),
    ) -> Stream {
        let overlay = self.world.hosts[to].overlay;
        let start = self.world.now;
        let before = self.world.hosts[to].inbox.len();
        let mut sent = BTreeMap::new();
        let mut refused = 0;
        while self.world.now.since(start) < Micros::from_secs(duration_s) {
            let elapsed = self.world.now.since(start);
            meanwhile(self, elapsed);
            let (number, fate) = self.world.send(from, overlay);
            if fate == Sent::Yes {
                sent.insert(number, self.world.now);
            } else {
                refused += 1;
            }
            self.world.run_ms(interval_ms);
        }
        self.world.run_ms(500);
        let mut arrived = BTreeMap::new();
        let mut twice = 0;
        for delivered in &self.world.hosts[to].inbox[before..] {
            if sent.contains_key(&delivered.number) {
                twice += usize::from(arrived.insert(delivered.number, delivered.at).is_some());
            }
        }
        Stream {
            sent,
            arrived,
            refused,
            twice,
            end: self.world.now,
        }
    }

    /// Brings a session up between two hosts, both ways.
    pub fn talk(&mut self, a: usize, b: usize) {
        for (from, to) in [(a, b), (b, a)] {
            let overlay = self.world.hosts[to].overlay;
            let start = self.world.now;
            let mut sent = Vec::new();
            loop {
                sent.push(self.world.send(from, overlay).0);
                self.world.run_ms(50);
                if self.world.hosts[to]
                    .inbox
                    .iter()
                    .any(|d| sent.contains(&d.number))
                {
                    break;
                }
                assert!(
                    self.world.now.since(start) < Micros::from_secs(15),
                    "n{from} cannot talk to n{to}\n{}",
                    self.logs()
                );
            }
        }
    }

    /// Runs a command to its end, or for `limit_s`.
    pub fn command(&mut self, at: usize, command: Command, limit_s: u64) -> Vec<Answer> {
        self.commands += 1;
        let id = self.commands;
        self.world
            .with(at, |host, now| host.command(now, id, command));
        let start = self.world.now;
        loop {
            let answers: Vec<_> = self.world.hosts[at]
                .answers
                .iter()
                .filter(|(_, of, _)| *of == CommandId(id))
                .map(|(_, _, answer)| answer.clone())
                .collect();
            let over = answers.last().is_some_and(|answer| match answer {
                Answer::TraceHop { last, .. } => *last,
                Answer::TraceTimeout { .. } => false,
                _ => true,
            });
            if over || self.world.now.since(start) >= Micros::from_secs(limit_s) {
                return answers;
            }
            self.world.run_ms(1);
        }
    }

    pub fn kill(&mut self, number: usize) {
        self.world.stop(number, Stop::KillDaemon);
    }
}

/// What became of a stream.
pub struct Stream {
    pub sent: BTreeMap<u64, Micros>,
    pub arrived: BTreeMap<u64, Micros>,
    pub refused: usize,
    pub twice: usize,
    pub end: Micros,
}

impl Stream {
    pub fn lost(&self) -> usize {
        self.sent.len() - self.arrived.len()
    }

    /// Longest time without an arrival.
    pub fn longest_silence(&self) -> Micros {
        let times: Vec<_> = self.arrived.values().copied().collect();
        let mut sorted = times;
        sorted.sort();
        sorted
            .windows(2)
            .map(|w| w[1].since(w[0]))
            .max()
            .unwrap_or(Micros(0))
    }

    pub fn assert_whole(&self, lab: &Lab, what: &str) {
        assert!(self.sent.len() > 10, "{what}: too little was sent");
        let loss: Vec<_> = self
            .sent
            .iter()
            .filter(|(n, _)| !self.arrived.contains_key(n))
            .map(|(_, at)| at.0)
            .collect();
        let (refused, twice) = (self.refused, self.twice);
        assert!(
            loss.is_empty() && refused == 0 && twice == 0,
            "{what}: lost {} (sent at {:?} us), refused {refused}, twice {twice}\n{}\n{:?}",
            loss.len(),
            &loss[..loss.len().min(20)],
            lab.logs(),
            lab.world
                .hosts
                .iter()
                .map(|h| &h.counts)
                .collect::<Vec<_>>()
        );
    }
}
