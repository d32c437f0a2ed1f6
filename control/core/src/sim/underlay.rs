//! The simulated underlay: directed links between addresses, with delay, jitter, loss, rate and MTU.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use super::rng::Rng;
use crate::io::Micros;

/// How long a queue before a link of limited rate may get.
const MAX_QUEUE: u64 = 50_000;

/// One directed link between two addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkModel {
    /// One-way delay, microseconds.
    pub delay: u64,
    /// Uniform addition to it, microseconds; more than the spacing of packets reorders them.
    pub jitter: u64,
    /// Probability of loss.
    pub loss: f64,
    /// Probability that a packet comes twice.
    pub duplication: f64,
    /// Kilobits per second; 0 is without limit.
    pub rate_kbps: u64,
    /// Largest IP packet.
    pub mtu: u16,
    /// Whether it carries anything.
    pub up: bool,
}

impl Default for LinkModel {
    fn default() -> Self {
        Self {
            delay: 2_000,
            jitter: 200,
            loss: 0.0,
            duplication: 0.0,
            rate_kbps: 0,
            mtu: 1500,
            up: true,
        }
    }
}

/// All links.
#[derive(Debug)]
pub struct Underlay {
    links: BTreeMap<(IpAddr, IpAddr), (LinkModel, Micros)>,
    rng: Rng,
    /// Packets carried, lost by chance, and without a link that is up.
    pub counts: [u64; 3],
}

impl Underlay {
    /// Nothing connected yet.
    #[must_use]
    pub fn new(rng: Rng) -> Self {
        Self {
            links: BTreeMap::new(),
            rng,
            counts: [0; 3],
        }
    }

    /// Adds or changes a link.
    pub fn set(&mut self, from: IpAddr, to: IpAddr, model: LinkModel) {
        self.links.insert((from, to), (model, Micros(0)));
    }

    /// An address becomes another one: its links go with it.
    pub fn rename(&mut self, old: IpAddr, new: IpAddr) {
        let swap = |ip: IpAddr| if ip == old { new } else { ip };
        let links = std::mem::take(&mut self.links);
        self.links = links
            .into_iter()
            .map(|((from, to), link)| ((swap(from), swap(to)), link))
            .collect();
    }

    /// A link to change.
    pub fn get_mut(&mut self, from: IpAddr, to: IpAddr) -> Option<&mut LinkModel> {
        self.links.get_mut(&(from, to)).map(|(model, _)| model)
    }

    /// All links.
    pub fn links(&self) -> impl Iterator<Item = (IpAddr, IpAddr, &LinkModel)> {
        self.links
            .iter()
            .map(|((from, to), (model, _))| (*from, *to, model))
    }

    /// When the copies of a frame arrive: none, one or two times.
    pub fn carry(&mut self, now: Micros, frame: &[u8]) -> Vec<Micros> {
        let Some((from, to)) = ip_addresses(frame) else {
            return Vec::new();
        };
        let link = self
            .links
            .get_mut(&(from, to))
            .filter(|(model, _)| model.up);
        let Some((model, free_at)) =
            link.filter(|(model, _)| frame.len() <= usize::from(model.mtu) + 14)
        else {
            self.counts[2] += 1;
            return Vec::new();
        };
        let sent = match model.rate_kbps {
            0 => now,
            rate => {
                let start = now.max(*free_at);
                if start.0 - now.0 > MAX_QUEUE {
                    self.counts[1] += 1;
                    return Vec::new();
                }
                *free_at = Micros(start.0 + frame.len() as u64 * 8_000 / rate);
                *free_at
            }
        };
        if model.loss > 0.0 && self.rng.chance(model.loss) {
            self.counts[1] += 1;
            return Vec::new();
        }
        self.counts[0] += 1;
        let copies = 1 + usize::from(model.duplication > 0.0 && self.rng.chance(model.duplication));
        let (delay, jitter) = (model.delay, model.jitter);
        (0..copies)
            .map(|_| Micros(sent.0 + delay + self.rng.below(jitter + 1)))
            .collect()
    }
}

/// Source and destination of an Ethernet frame.
#[must_use]
pub fn ip_addresses(frame: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| {
        frame
            .get(at..)?
            .first_chunk::<4>()
            .map(|octets| IpAddr::V4(Ipv4Addr::from(*octets)))
    };
    let v6 = |at: usize| {
        frame
            .get(at..)?
            .first_chunk::<16>()
            .map(|octets| IpAddr::V6(Ipv6Addr::from(*octets)))
    };
    match frame.get(12..14)? {
        [0x08, 0x00] => Some((v4(26)?, v4(30)?)),
        [0x86, 0xdd] => Some((v6(22)?, v6(38)?)),
        _ => None,
    }
}

/// Source and destination with ports, and where the UDP payload begins.
#[must_use]
pub fn udp(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, usize)> {
    let (from, to) = ip_addresses(frame)?;
    let at = if from.is_ipv4() { 34 } else { 54 };
    let ports = frame.get(at..)?.first_chunk::<8>()?;
    let port = |high: usize| u16::from_be_bytes([ports[high], ports[high + 1]]);
    Some((
        SocketAddr::new(from, port(0)),
        SocketAddr::new(to, port(2)),
        at + 8,
    ))
}
