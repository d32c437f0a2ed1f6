//! What several tests of the topology need.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use weft_core::{
    identity::{Identity, NetworkId, NodeId},
    io::Micros,
    sim::rng::Rng,
    topology::{
        Topology,
        flooding::FloodTimers,
        lsa::{HearLink, LinkId, Lsa, LsaContent, Measured, SendLink},
        lsdb::Limits,
    },
};

pub const NETWORK: NetworkId = NetworkId([1, 2, 3, 4, 5]);

/// One directed, confirmed link between nodes by number.
#[derive(Clone, Copy, Debug)]
pub struct TestLink {
    pub from: usize,
    pub to: usize,
    pub link: u32,
    pub mtu: u16,
    pub measured: Measured,
}

/// A graph by numbers with the identities behind them.
pub struct TestNet {
    pub identities: Vec<Identity>,
    pub links: Vec<TestLink>,
    pub overload: Vec<bool>,
    /// Claims of one end only: (sender, receiver, whether it is the sender that claims).
    pub claims: Vec<(usize, usize, bool)>,
}

impl TestNet {
    pub fn new(rng: &mut Rng, nodes: usize) -> Self {
        let identities = (0..nodes)
            .map(|_| Identity::from_secret(&rng.secret()))
            .collect();
        Self {
            identities,
            links: Vec::new(),
            overload: vec![false; nodes],
            claims: Vec::new(),
        }
    }

    /// Every ordered pair gets a link with this probability, some of them several.
    pub fn random(rng: &mut Rng, nodes: usize, density: f64) -> Self {
        let mut net = Self::new(rng, nodes);
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| *to != from) {
                if !rng.chance(density) {
                    if rng.chance(0.1) {
                        net.claims.push((from, to, rng.chance(0.5)));
                    }
                    continue;
                }
                for link in 0..=u32::from(rng.chance(0.2)) {
                    let measured = Measured {
                        cost: rng.between(1, 12) as u32,
                        loss_ppm: 0,
                        delay_us: rng.between(1, 12) as u32 * 1000,
                        jitter_us: 0,
                        capacity_kbps: rng.between(1, 5) as u32 * 1000,
                    };
                    let mtu = rng.between(1280, 1285) as u16;
                    net.links.push(TestLink {
                        from,
                        to,
                        link,
                        mtu,
                        measured,
                    });
                }
            }
            net.overload[from] = rng.chance(0.1);
        }
        net
    }

    pub fn id(&self, node: usize) -> NodeId {
        self.identities[node].id()
    }

    pub fn number(&self, id: NodeId) -> usize {
        self.identities
            .iter()
            .position(|identity| identity.id() == id)
            .expect("an id of this net")
    }

    pub fn content(&self, node: usize) -> LsaContent {
        let send = |to, link, mtu| SendLink {
            to,
            link: LinkId(link),
            mtu,
            capability: 0,
        };
        let hear = |from, link, measured| HearLink {
            from,
            link: LinkId(link),
            measured,
        };
        let mut content = LsaContent {
            overload: self.overload[node],
            ..LsaContent::default()
        };
        for l in &self.links {
            if l.from == node {
                content.sends.push(send(self.id(l.to), l.link, l.mtu));
            }
            if l.to == node {
                content
                    .hears
                    .push(hear(self.id(l.from), l.link, l.measured));
            }
        }
        for &(from, to, by_sender) in &self.claims {
            if from == node && by_sender {
                content.sends.push(send(self.id(to), 9, 9000));
            }
            if to == node && !by_sender {
                content.hears.push(hear(
                    self.id(from),
                    9,
                    Measured {
                        cost: 1,
                        ..Measured::UNKNOWN
                    },
                ));
            }
        }
        content
    }

    pub fn lsa(&self, node: usize, sequence: u64) -> Lsa {
        Lsa::sign(
            &self.identities[node],
            &NETWORK,
            sequence,
            1000,
            self.content(node),
        )
    }

    /// The topology as a node that knows everything sees it; LSAs arrive in random order.
    pub fn seen_from(&self, rng: &mut Rng, node: usize) -> Topology {
        let own = self.identities[node].clone();
        let mut topology =
            Topology::new(own, NETWORK, Limits::default(), 0, FloodTimers::default());
        topology.originate(Micros(0), self.content(node));
        let mut others: Vec<_> = (0..self.identities.len())
            .filter(|other| *other != node)
            .collect();
        for at in (1..others.len()).rev() {
            others.swap(at, rng.index(at + 1));
        }
        for other in others {
            let lsa = self.lsa(other, 1);
            assert_eq!(
                topology.restore(Micros(0), [(0, lsa.encoded().as_ref())]),
                1
            );
        }
        topology.update();
        topology
    }
}
