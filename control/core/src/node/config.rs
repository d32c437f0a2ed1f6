//! What a node is told at its start.

use std::{net::IpAddr, net::SocketAddr, ops::RangeInclusive};

use crate::{
    identity::{Identity, NetworkSecret},
    io::Micros,
};

/// A node's configuration. Made with [`Config::new`], then changed field by field, then checked by `Node::new`.
#[derive(Clone, Debug)]
pub struct Config {
    /// Who the node is.
    pub identity: Identity,
    /// What admits it to its network.
    pub network: NetworkSecret,
    /// Name for people: 1..=63 bytes without white space or control characters.
    pub name: String,
    /// UDP port that links start from and come to.
    pub port: u16,
    /// Neighbours to contact.
    pub peers: Vec<SocketAddr>,
    /// Prefixes behind this node, offered to all: network address (no host bits), length.
    pub prefixes: Vec<(IpAddr, u8)>,
    /// Whether LSPs of others may pass here.
    pub transit: bool,
    /// Whether this CPU encrypts AES-GCM in hardware.
    pub hardware_aes: bool,
    /// Capacity of this node's line, kilobits per second, advertised with what it hears; 0 is unknown.
    pub capacity_kbps: u32,
    /// All the intervals.
    pub timers: Timers,
    /// All the bounds.
    pub limits: Limits,
}

impl Config {
    /// The defaults around an identity in a network.
    #[must_use]
    pub fn new(identity: Identity, network: NetworkSecret) -> Self {
        let name = identity.id().short();
        Self {
            identity,
            network,
            name,
            port: 7117,
            peers: Vec::new(),
            prefixes: Vec::new(),
            transit: true,
            hardware_aes: false,
            capacity_kbps: 0,
            timers: Timers::default(),
            limits: Limits::default(),
        }
    }
}

/// Intervals and times to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Between probes on a link that carries traffic.
    pub probe_busy: Micros,
    /// Between probes on an idle link.
    pub probe_idle: Micros,
    /// Probes in a row without an echo after which a link counts as dead.
    pub probe_misses: u32,
    /// Between hellos (with the measurements) on a link.
    pub hello: Micros,
    /// How long a link whose probes are echoed is kept while the neighbour's control plane is silent.
    pub graceful_restart: Micros,
    /// First retransmission of a handshake message; doubles from there.
    pub handshake_retry: Micros,
    /// Longest time between attempts to reach a configured neighbour.
    pub handshake_retry_max: Micros,
    /// Age of link keys at which new ones are made.
    pub link_rekey: Micros,
    /// Age of session keys at which new ones are made.
    pub session_rekey: Micros,
    /// A session without traffic for so long is closed.
    pub session_idle: Micros,
    /// Between refreshes of an LSP by its predecessor.
    pub lsp_refresh: Micros,
    /// An LSP without refresh for so long is forgotten.
    pub lsp_lifetime: Micros,
    /// Retransmission of LSP set-up and session messages.
    pub signalling_retry: Micros,
    /// A label or slot that was freed rests so long before it is used again.
    pub rest: Micros,
    /// A better path must have been there so long before traffic moves to it.
    pub reoptimise: Micros,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            probe_busy: Micros::from_millis(100),
            probe_idle: Micros::from_millis(300),
            probe_misses: 3,
            hello: Micros::from_secs(1),
            graceful_restart: Micros::from_secs(120),
            handshake_retry: Micros::from_millis(500),
            handshake_retry_max: Micros::from_secs(30),
            link_rekey: Micros::from_secs(120),
            session_rekey: Micros::from_secs(120),
            session_idle: Micros::from_secs(300),
            lsp_refresh: Micros::from_secs(30),
            lsp_lifetime: Micros::from_secs(95),
            signalling_retry: Micros::from_millis(400),
            rest: Micros::from_secs(60),
            reoptimise: Micros::from_secs(10),
        }
    }
}

/// Bounds of the tables.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Labels this node allocates, within 16..=1_048_575.
    pub labels: RangeInclusive<u32>,
    /// Links (pairs of addresses) at most.
    pub links: usize,
    /// Receiving slots 1..=this (two per link while keys change, and resting ones).
    pub slots: u16,
    /// Next hops 1..=this.
    pub next_hops: u32,
    /// Next-hop groups 1..=this.
    pub groups: u32,
    /// LSPs one neighbour may set up through or to this node.
    pub lsps_per_neighbour: usize,
    /// LSPs of all neighbours together.
    pub lsps: usize,
    /// LSPs one neighbour may ask for per second.
    pub lsp_setups_per_neighbour_per_s: u32,
    /// Sessions at most.
    pub sessions: usize,
    /// Handshakes of links begun by others and not finished; the same again of sessions.
    pub half_open: usize,
    /// Handshakes begun by others per second before cookies are asked for.
    pub handshakes_per_s: u32,
    /// Handshakes begun from one address (IPv6: one /64) per second.
    pub handshakes_per_source_per_s: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            labels: 16..=1_048_575,
            links: 1024,
            slots: 4095,
            next_hops: 8191,
            groups: 4095,
            lsps_per_neighbour: 8192,
            lsps: 65_536,
            lsp_setups_per_neighbour_per_s: 1000,
            sessions: 4096,
            half_open: 256,
            handshakes_per_s: 200,
            handshakes_per_source_per_s: 20,
        }
    }
}
