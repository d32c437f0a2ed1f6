//! Random networks: hosts with addresses, underlay links of all kinds, and who is told of whom.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{rng::Rng, underlay::LinkModel, world::World};
use crate::{
    identity::{Identity, NetworkSecret},
    io::{ForwardMode, Micros, UnderlayAddress},
    node::Config,
};

/// The port every simulated node uses.
pub const PORT: u16 = 7117;

/// What a random network is made of.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Hosts.
    pub nodes: usize,
    /// Pairs connected beyond the tree that connects all.
    pub extra: usize,
    /// Pairs connected in one direction only, beyond these.
    pub one_way: usize,
    /// Share of links that lose packets.
    pub lossy: f64,
    /// Highest loss of those.
    pub max_loss: f64,
    /// Share of pairs with a second link between other interfaces.
    pub parallel: f64,
    /// Changes each node's configuration before it is made.
    pub tune: fn(&mut Config),
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 20,
            extra: 20,
            one_way: 4,
            lossy: 0.2,
            max_loss: 0.03,
            parallel: 0.1,
            tune: |_| {},
        }
    }
}

/// Two hosts by number with the addresses between which packets can pass, and who knows of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adjacency {
    /// The host that was told of the other.
    pub a: usize,
    /// The other.
    pub b: usize,
    /// Address of `a`.
    pub from: IpAddr,
    /// Address of `b`.
    pub to: IpAddr,
    /// Whether packets pass from `b` to `a` as well.
    pub both_ways: bool,
}

/// A world made from a plan, with what is needed to know what should happen in it.
pub struct Net {
    /// The world.
    pub world: World,
    /// Everything that can become links.
    pub adjacencies: Vec<Adjacency>,
}

/// Interfaces of a host: two of IPv4, one of IPv6.
fn addresses(node: usize) -> Vec<UnderlayAddress> {
    let (high, low) = ((node >> 8) as u8, node as u8);
    let make = |address: IpAddr, interface: &str| UnderlayAddress {
        address,
        interface: interface.into(),
        prefix_len: if address.is_ipv4() { 32 } else { 128 },
        mtu: 1500,
        up: true,
        mode: ForwardMode::UserSpace,
    };
    vec![
        make(IpAddr::V4(Ipv4Addr::new(10, high, low, 1)), "eth0"),
        make(
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, node as u16 + 1)),
            "eth0",
        ),
        make(IpAddr::V4(Ipv4Addr::new(172, 16 + high, low, 1)), "eth1"),
    ]
}

impl Net {
    /// Makes the network; nobody runs yet.
    #[must_use]
    pub fn random(seed: u64, plan: &Plan) -> Self {
        let mut world = World::new(seed);
        let mut rng = world.rng.fork();
        let count = plan.nodes;
        let mut pairs = std::collections::BTreeSet::new();
        let mut plans = Vec::new();
        let mut connect =
            |a: usize, b: usize, both_ways: bool, plans: &mut Vec<(usize, usize, bool)>| {
                let new = a != b && pairs.insert((a.min(b), a.max(b)));
                if new {
                    plans.push((a, b, both_ways));
                }
                new
            };
        for node in 1..count {
            // Near ones, so that the network has some depth.
            let other = node - 1 - rng.index(node.min(12));
            connect(node, other, true, &mut plans);
        }
        for (wanted, both_ways) in [(plan.extra, true), (plan.one_way, false)] {
            let mut made = 0;
            for _ in 0..wanted * 20 {
                let a = rng.index(count);
                let b = (a + 1 + rng.index(30)) % count;
                made += usize::from(made < wanted && connect(a, b, both_ways, &mut plans));
            }
        }
        let secret = NetworkSecret::from_bytes(rng.secret());
        let mut configs: Vec<_> = (0..count)
            .map(|node| {
                let mut config = Config::new(Identity::from_secret(&rng.secret()), secret.clone());
                config.name = format!("n{node}");
                config.port = PORT;
                config
            })
            .collect();
        let mut adjacencies = Vec::new();
        for (a, b, both_ways) in plans {
            let v6 = rng.chance(0.3);
            let mut uses = vec![usize::from(v6)];
            if both_ways && rng.chance(plan.parallel) {
                uses.push(2);
            }
            for at in uses {
                let (from, to) = (addresses(a)[at].address, addresses(b)[at].address);
                let lossy = rng.chance(plan.lossy);
                let mut model = || LinkModel {
                    delay: rng.between(500, 20_000),
                    jitter: rng.between(0, 2_000),
                    loss: if lossy {
                        plan.max_loss * rng.below(1000) as f64 / 1000.0
                    } else {
                        0.0
                    },
                    duplication: if lossy { 0.01 } else { 0.0 },
                    rate_kbps: [0, 10_000, 100_000][rng.index(3)],
                    mtu: 1500,
                    up: true,
                };
                world.underlay.set(from, to, model());
                if both_ways {
                    world.underlay.set(to, from, model());
                }
                configs[a].peers.push(SocketAddr::new(to, PORT));
                adjacencies.push(Adjacency {
                    a,
                    b,
                    from,
                    to,
                    both_ways,
                });
            }
        }
        for (node, mut config) in configs.into_iter().enumerate() {
            (plan.tune)(&mut config);
            world.add(config, addresses(node));
        }
        Self { world, adjacencies }
    }

    /// Starts every daemon, spread over some milliseconds.
    pub fn start_all(&mut self, within_ms: u64) {
        let step = within_ms * 1000 / self.world.hosts.len().max(1) as u64;
        for number in 0..self.world.hosts.len() {
            self.world.start(number, false);
            self.world.run_until(Micros(self.world.now.0 + step));
        }
    }

    /// Cuts or restores every direction of a pair of hosts.
    pub fn set_pair(&mut self, a: usize, b: usize, up: bool) {
        for adjacency in &self.adjacencies {
            if (adjacency.a, adjacency.b) == (a, b) || (adjacency.a, adjacency.b) == (b, a) {
                for (from, to) in [
                    (adjacency.from, adjacency.to),
                    (adjacency.to, adjacency.from),
                ] {
                    if let Some(link) = self.world.underlay.get_mut(from, to) {
                        link.up = up;
                    }
                }
            }
        }
    }

    /// Gives a host another address in place of one it has: it moved to another network. Nobody is told.
    pub fn move_host(&mut self, number: usize, old: IpAddr, new: IpAddr) {
        self.world.underlay.rename(old, new);
        for adjacency in &mut self.adjacencies {
            for end in [&mut adjacency.from, &mut adjacency.to] {
                if *end == old {
                    *end = new;
                }
            }
        }
        let mut addresses = self.world.hosts[number].addresses.clone();
        addresses
            .iter_mut()
            .filter(|a| a.address == old)
            .for_each(|a| a.address = new);
        self.world.set_addresses(number, addresses);
    }

    /// All pairs of hosts that are connected in some way.
    #[must_use]
    pub fn pairs(&self) -> Vec<(usize, usize)> {
        let mut pairs: Vec<_> = self.adjacencies.iter().map(|x| (x.a, x.b)).collect();
        pairs.dedup();
        pairs
    }

    /// A random pair of different hosts that run.
    pub fn two_hosts(&mut self, rng: &mut Rng) -> (usize, usize) {
        loop {
            let (a, b) = (
                rng.index(self.world.hosts.len()),
                rng.index(self.world.hosts.len()),
            );
            if a != b && self.world.hosts[a].node.is_some() && self.world.hosts[b].node.is_some() {
                return (a, b);
            }
        }
    }
}
