//! The local API: newline-delimited JSON over a Unix stream socket.
//!
//! A client writes one [`Request`] per line, with an id of its choice; the server answers with one or more
//! [`Response`] lines of the same id, the last of which has `last: true`. Several requests may be under way on one
//! connection. An error is always the last answer; a stream may also end with `"ok": null`. A client that no longer
//! wants the rest of a stream closes the connection. A line is at most [`MAX_LINE`] bytes. The socket is created 0660;
//! whoever can open it may do everything.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use serde::{Deserialize, Serialize};

/// Longest line either side accepts, bytes without the newline.
pub const MAX_LINE: usize = 4 * 1024 * 1024;
/// The API version this crate speaks; `Status` carries the server's.
pub const API_VERSION: u32 = 1;

/// One line from client to server.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Request {
    /// Echoed in every answer.
    pub id: u64,
    /// What is wanted.
    #[serde(flatten)]
    pub call: Call,
}

/// The calls. Node arguments are a node id (hex), an overlay address, a node's name, or an unambiguous prefix of an id.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", content = "args", rename_all = "snake_case")]
pub enum Call {
    /// [`Status`].
    Status,
    /// [`HostChange`] list: everything changed on this host.
    Host,
    /// [`Peer`] list: neighbours, configured and heard.
    Peers,
    /// Adds a neighbour until restart (the configuration is not written).
    AddPeer {
        /// `ADDRESS:PORT`.
        address: String,
    },
    /// Ends the links to that address.
    RemovePeer {
        /// `ADDRESS:PORT`.
        address: String,
    },
    /// [`Link`] list: directed links of this node, both directions.
    Links,
    /// [`Node`] list: all nodes of the LSDB.
    Nodes,
    /// [`Lsp`] list: LSPs that begin, pass or end here.
    Lsps,
    /// [`Route`] list: destinations and where they lead.
    Routes,
    /// [`SessionInfo`] list.
    Sessions,
    /// [`Counters`].
    Counters,
    /// Streams `count` [`Pong`]s, one per second by default.
    Ping {
        /// Whom.
        node: String,
        /// How many echoes; `u32::MAX` for as long as the connection stands.
        count: u32,
        /// Milliseconds from one echo to the next.
        interval_ms: u32,
        /// Bytes of padding in each.
        payload_len: u16,
    },
    /// Streams [`TraceHop`]s.
    Trace {
        /// Whereto.
        node: String,
    },
    /// [`Why`]: the path chosen to the node, what it cost, what was refused and why.
    Why {
        /// Whereto.
        node: String,
        /// What the path must satisfy beside.
        #[serde(default)]
        constraints: Constraints,
    },
    /// Stops the daemon.
    Shutdown {
        /// Kernel maps, XDP links and labels stay, for an upgrade; otherwise all changes to the host are undone.
        keep_transit: bool,
    },
}

/// One line from server to client.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Response {
    /// The request's; 0 where the answer is about the connection, or to a line in which no number could be read.
    pub id: u64,
    /// Whether this is the last answer to it.
    pub last: bool,
    /// The answer.
    #[serde(flatten)]
    pub result: Result,
}

/// Success or failure of one answer.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Result {
    /// The value the call documents (JSON null where it returns nothing).
    Ok(serde_json::Value),
    /// What was wrong, where, and what would be right.
    Error(String),
}

/// Constraints of a path (CSPF).
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Constraints {
    /// Nodes the path must pass, in order.
    pub include: Vec<String>,
    /// Nodes it must not pass.
    pub avoid: Vec<String>,
    /// Upper bound of the sum of one-way delays, milliseconds.
    pub max_delay_ms: Option<f64>,
    /// Lower bound of every link's capacity, megabits per second.
    pub min_bandwidth_mbps: Option<f64>,
}

/// The daemon at a glance.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// See [`API_VERSION`].
    pub api_version: u32,
    /// Program version.
    pub version: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// Node id, hex.
    pub node_id: String,
    /// Name from the configuration.
    pub name: String,
    /// Network id, hex.
    pub network_id: String,
    /// This node's overlay address.
    pub overlay_address: Ipv6Addr,
    /// TUN interface name; none for a pure transit.
    pub tun: Option<String>,
    /// UDP port.
    pub port: u16,
    /// Seconds since start.
    pub uptime_s: u64,
    /// Whether forwarding state of an earlier run was taken over.
    pub resumed: bool,
    /// Underlay interfaces and how each forwards.
    pub interfaces: Vec<Interface>,
    /// Neighbours with an established link in at least one direction.
    pub neighbours: usize,
    /// Nodes known.
    pub nodes: usize,
    /// Sessions established.
    pub sessions: usize,
    /// LSPs that begin, pass and end here.
    pub lsps: usize,
    /// What the kernel does for the data path at both ends.
    #[serde(default)]
    pub offloads: Vec<Offload>,
    /// Things that are off or degraded, and why.
    pub notices: Vec<String>,
}

/// One thing the kernel may do for the data path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offload {
    /// Its name.
    pub name: String,
    /// Whether it is used.
    pub on: bool,
    /// Why not; empty where it is.
    pub reason: String,
}

/// An underlay interface.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Up with carrier.
    pub up: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its addresses that links may start from.
    pub addresses: Vec<IpAddr>,
    /// `kernel_native`, `kernel_generic` or `user_space`.
    pub mode: ForwardMode,
    /// Why not a better mode; empty where native.
    pub reason: String,
}

/// Where packets are switched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ForwardMode {
    /// XDP in the driver.
    KernelNative,
    /// XDP on the generic path.
    KernelGeneric,
    /// In `weftd`.
    UserSpace,
}

/// One change to the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HostChange {
    /// `tun`, `address`, `route`, `rule`, `xdp`, `pin`, `socket`.
    pub kind: String,
    /// The thing changed, e.g. an interface, a prefix, a path.
    pub what: String,
    /// How it is undone.
    pub undo: String,
}

/// A neighbour.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    /// Address as configured or heard.
    pub address: SocketAddr,
    /// Its node id, once known.
    pub node_id: Option<String>,
    /// Its name, once known.
    pub name: Option<String>,
    /// `configured`, `heard`, or `added`.
    pub source: String,
    /// `connecting`, `established`, `lost`.
    pub state: String,
    /// Why it is not established, or how long it has been: `12 s`.
    pub detail: String,
    /// Round trip over the neighbour's forwarding plane, milliseconds.
    pub rtt_ms: Option<f64>,
}

/// A directed link of this node.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Link {
    /// `out` (we send) or `in` (we hear).
    pub direction: String,
    /// The neighbour.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Our end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// `up`, `down`, `one_way`.
    pub state: String,
    /// The metric advertised.
    pub cost: u32,
    /// Loss measured by the receiver, 0..=1.
    pub loss: Option<f64>,
    /// Round trip, milliseconds, where there is one.
    pub rtt_ms: Option<f64>,
    /// Jitter, milliseconds.
    pub jitter_ms: Option<f64>,
    /// Capacity, megabits per second.
    pub capacity_mbps: Option<f64>,
    /// MTU in bytes of IP packet.
    pub mtu: u16,
    /// Key epoch, counted from 0.
    pub epoch: u64,
    /// Receiver's slot.
    pub slot: u16,
    /// How packets of it are forwarded at this end.
    pub mode: ForwardMode,
}

/// A node of the LSDB.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    /// Node id, hex.
    pub node_id: String,
    /// Name.
    pub name: String,
    /// Overlay address.
    pub overlay_address: Ipv6Addr,
    /// LSA sequence number.
    pub sequence: u64,
    /// Seconds since the LSA arrived.
    pub age_s: u64,
    /// Whether there is a path to it.
    pub reachable: bool,
    /// Cost of the path.
    pub cost: Option<u32>,
    /// Nodes it sends to.
    pub sends_to: Vec<String>,
    /// Prefixes it advertises.
    pub prefixes: Vec<String>,
}

/// An LSP as seen from here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Lsp {
    /// `ingress`, `transit` or `egress`.
    pub role: String,
    /// At the ingress `primary` or `standby`; empty elsewhere.
    pub protection: String,
    /// `signalling`, `up`, `broken`, `closing`.
    pub state: String,
    /// Label packets carry when they arrive here (not at the ingress).
    pub in_label: Option<u32>,
    /// Label packets carry when they leave (not at the egress).
    pub out_label: Option<u32>,
    /// The node before (not at the ingress).
    pub from: Option<String>,
    /// The node after (not at the egress).
    pub to: Option<String>,
    /// At the ingress the whole path, names or ids.
    pub path: Vec<String>,
    /// Inner MTU, at the ingress.
    pub inner_mtu: Option<u16>,
    /// Seconds since set-up.
    pub age_s: u64,
    /// Packets switched or sent under it.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// A destination.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    /// Overlay address or advertised prefix.
    pub prefix: String,
    /// Node behind it.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Path in use, names or ids, this node first; empty where there is no session.
    pub path: Vec<String>,
    /// Cost of the best path; none where there is no path.
    pub cost: Option<u32>,
    /// MTU of the route, bytes.
    pub mtu: Option<u16>,
    /// Whether it stands in the kernel's table.
    pub installed: bool,
}

/// An end-to-end session.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionInfo {
    /// The other end.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// Its overlay address.
    pub overlay_address: Ipv6Addr,
    /// `establishing`, `up`, `no_path`.
    pub state: String,
    /// AEAD in use.
    pub cipher: String,
    /// Newest key epoch.
    pub epoch: u8,
    /// Seconds since the newest key.
    pub key_age_s: u64,
    /// Packets and bytes sent and received inside.
    pub tx_packets: u64,
    /// See `tx_packets`.
    pub tx_bytes: u64,
    /// See `tx_packets`.
    pub rx_packets: u64,
    /// See `tx_packets`.
    pub rx_bytes: u64,
    /// Largest inner packet.
    pub inner_mtu: Option<u16>,
}

/// All counters, by their names in `weft-abi`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Verdicts of the XDP programs.
    pub xdp: std::collections::BTreeMap<String, u64>,
    /// Drops of the XDP programs, by reason.
    pub xdp_drops: std::collections::BTreeMap<String, u64>,
    /// Verdicts of the user-space forwarder.
    pub user: std::collections::BTreeMap<String, u64>,
    /// Drops of the user-space forwarder, by reason.
    pub user_drops: std::collections::BTreeMap<String, u64>,
    /// Data path of the sessions (TUN, AEAD, queues), and what was dropped there by reason.
    pub sessions: std::collections::BTreeMap<String, u64>,
    /// Control plane: messages by kind, refusals by reason.
    pub control: std::collections::BTreeMap<String, u64>,
}

/// One echo.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pong {
    /// 1, 2, ...
    pub sequence: u32,
    /// Round trip; none when it did not come back in time.
    pub rtt_ms: Option<f64>,
    /// Nodes on the forward path, the egress included.
    pub hops: u8,
    /// Why there is none.
    pub error: Option<String>,
}

/// One hop of a trace.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TraceHop {
    /// 1 for the first node after this one.
    pub hop: u8,
    /// Node id, hex; none after a time-out.
    pub node_id: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Label the packet carried on arrival.
    pub label: Option<u32>,
    /// Round trip.
    pub rtt_ms: Option<f64>,
    /// Where it was switched.
    pub mode: Option<ForwardMode>,
}

/// The reasoning behind a path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Why {
    /// The node asked for.
    pub node_id: String,
    /// Its name.
    pub name: String,
    /// The path CSPF chooses now, hop by hop; empty where there is none.
    pub path: Vec<WhyHop>,
    /// Sum of costs.
    pub cost: Option<u32>,
    /// The disjoint standby path, names or ids.
    pub standby: Vec<String>,
    /// The path in use when it differs (hysteresis, make-before-break), and why.
    pub in_use: Option<String>,
    /// Links and nodes that were considered and not taken.
    pub refused: Vec<Refused>,
    /// Where there is no path: the reason in a sentence.
    pub no_path: Option<String>,
}

/// One link of a chosen path.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyHop {
    /// From node (name or id).
    pub from: String,
    /// To node.
    pub to: String,
    /// Cost of the link.
    pub cost: u32,
    /// What the cost is made of, in words.
    pub because: String,
}

/// Something not taken.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Refused {
    /// `A→B`, or a node.
    pub what: String,
    /// One of the named reasons.
    pub reason: String,
    /// Figures.
    pub detail: String,
}
