//! What a node can be asked about itself, as plain data for the local API.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use weft_abi::{Label, Slot};

use crate::{
    identity::NodeId,
    io::{ForwardMode, Micros, SessionIndex},
    session::Cipher,
};

/// Where the knowledge of a neighbour's address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerSource {
    /// It stands in the configuration.
    Configured,
    /// It was added by a command.
    Added,
    /// It contacted this node.
    Heard,
}

/// How far the contact with a neighbour's address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// Handshakes are sent, none answered yet.
    Connecting,
    /// There is a link.
    Established,
    /// There was a link.
    Lost,
}

/// A neighbour's address.
#[derive(Clone, Debug, PartialEq)]
pub struct PeerView {
    /// The address.
    pub remote: SocketAddr,
    /// Who it is, once known.
    pub node: Option<NodeId>,
    /// Its name, once known.
    pub name: Option<String>,
    /// Where the address comes from.
    pub source: PeerSource,
    /// How far it is.
    pub state: PeerState,
    /// Why it is not established, or since when it is.
    pub detail: String,
    /// Round trip over the neighbour's forwarding plane.
    pub rtt: Option<Micros>,
}

/// Which way a link leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// This node sends.
    Out,
    /// This node hears.
    In,
}

/// State of a directed link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// Packets arrive, and its reverse works too.
    Up,
    /// Nothing arrives.
    Down,
    /// Packets arrive, but nothing comes back on the reverse.
    OneWay,
}

/// A directed link of this node.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkView {
    /// Out or in.
    pub direction: Direction,
    /// The neighbour.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Our end.
    pub local: SocketAddr,
    /// Its end.
    pub remote: SocketAddr,
    /// Up, down or one-way.
    pub state: LinkState,
    /// The metric advertised (by the receiver).
    pub cost: u32,
    /// Share of packets lost, 0..=1, measured by the receiver.
    pub loss: Option<f64>,
    /// Round trip, where there is one.
    pub rtt: Option<Micros>,
    /// Mean deviation of the one-way delay, measured by the receiver.
    pub jitter: Option<Micros>,
    /// Capacity in kilobits per second, where known.
    pub capacity_kbps: Option<u32>,
    /// Bytes of IP packet that fit.
    pub mtu: u16,
    /// Key epoch, counted from 0.
    pub epoch: u64,
    /// The receiver's slot.
    pub slot: Slot,
    /// How packets of it are forwarded at this end.
    pub mode: ForwardMode,
}

/// What part an LSP has at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LspRole {
    /// It begins here.
    Ingress,
    /// It passes.
    Transit,
    /// It ends here.
    Egress,
}

/// What an ingress LSP is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It carries the traffic.
    Primary,
    /// It takes over.
    Standby,
}

/// State of an LSP at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LspState {
    /// Set-up is on its way.
    Signalling,
    /// It forwards.
    Up,
    /// A hop of it is gone.
    Broken,
    /// It carries no more traffic and is being torn down.
    Closing,
}

/// An LSP as seen from here.
#[derive(Clone, Debug, PartialEq)]
pub struct LspView {
    /// Begins, passes or ends.
    pub role: LspRole,
    /// At the ingress only.
    pub protection: Option<Protection>,
    /// State.
    pub state: LspState,
    /// Label packets carry on arrival (not at the ingress).
    pub in_label: Option<Label>,
    /// Label packets carry when they leave (not at the egress).
    pub out_label: Option<Label>,
    /// The node before (not at the ingress).
    pub from: Option<NodeId>,
    /// The node after (not at the egress).
    pub to: Option<NodeId>,
    /// At the ingress the whole path, this node first.
    pub path: Vec<NodeId>,
    /// At the ingress: largest inner packet.
    pub inner_mtu: Option<u16>,
    /// Since set-up.
    pub age: Micros,
}

/// A node of the LSDB.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// Sequence number of its LSA.
    pub sequence: u64,
    /// Since the LSA arrived.
    pub age: Micros,
    /// Cost of the best path; none where there is none.
    pub cost: Option<u32>,
    /// Nodes it sends to.
    pub sends_to: Vec<NodeId>,
    /// Prefixes it advertises.
    pub prefixes: Vec<(IpAddr, u8)>,
}

/// A destination.
#[derive(Clone, Debug, PartialEq)]
pub struct RouteView {
    /// Network address.
    pub prefix: IpAddr,
    /// Length in bits.
    pub prefix_len: u8,
    /// The node behind it.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Path in use, this node first; empty without a session.
    pub path: Vec<NodeId>,
    /// Cost of the best path.
    pub cost: Option<u32>,
    /// Inner MTU of the path in use.
    pub mtu: Option<u16>,
}

/// State of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Keys or LSP are on their way.
    Establishing,
    /// Traffic flows.
    Up,
    /// There is no path to the peer now.
    NoPath,
}

/// A session.
#[derive(Clone, Debug, PartialEq)]
pub struct SessionView {
    /// Its index in the shell's table.
    pub index: SessionIndex,
    /// The other end.
    pub node: NodeId,
    /// Its name.
    pub name: String,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// State.
    pub state: SessionState,
    /// AEAD in use, once agreed.
    pub cipher: Option<Cipher>,
    /// Epoch used to send.
    pub epoch: u8,
    /// Age of that epoch's keys.
    pub key_age: Micros,
    /// Largest inner packet.
    pub inner_mtu: Option<u16>,
}

/// One link of a chosen path.
#[derive(Clone, Debug, PartialEq)]
pub struct WhyHop {
    /// Its sender.
    pub from: NodeId,
    /// Its receiver.
    pub to: NodeId,
    /// Its cost.
    pub cost: u32,
    /// What the cost is made of.
    pub because: String,
}

/// Something that was considered and not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// A directed link's ends, or a node and nothing.
    pub what: (NodeId, Option<NodeId>),
    /// Named reason.
    pub reason: &'static str,
    /// Figures.
    pub detail: String,
}

/// Why a path is what it is.
#[derive(Clone, Debug, PartialEq)]
pub struct WhyView {
    /// The node asked for.
    pub node: NodeId,
    /// The path CSPF chooses now; empty where there is none.
    pub path: Vec<WhyHop>,
    /// Sum of costs.
    pub cost: Option<u32>,
    /// The disjoint standby path, this node first; empty where there is none.
    pub standby: Vec<NodeId>,
    /// The path in use where it is another, and why.
    pub in_use: Option<String>,
    /// What was not taken.
    pub refused: Vec<Refused>,
    /// Where there is no path: the reason in a sentence.
    pub no_path: Option<String>,
}

/// What a path must satisfy, by ids.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PathConstraints {
    /// Nodes to pass, in order.
    pub include: Vec<NodeId>,
    /// Nodes not to pass.
    pub avoid: Vec<NodeId>,
    /// Upper bound of the sum of one-way delays.
    pub max_delay: Option<Micros>,
    /// Lower bound of every link's capacity, kilobits per second.
    pub min_capacity_kbps: Option<u32>,
}
