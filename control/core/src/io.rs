//! What goes into a [`Node`](crate::node::Node) and what comes out of it.
//!
//! The shell feeds [`Input`]s with the current time and drains [`Output`]s until there are none, then sleeps until
//! `poll_timeout`. The shell owns sockets, kernel maps and packet payloads in bulk; this crate owns every decision.
//! Sequence numbers, per-hop tags and replay windows of labelled, control and probe packets are the shell's (they are
//! shared with the kernel through the maps): it stamps what leaves and verifies what arrives *before* it becomes input.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use bytes::Bytes;
use weft_abi::{GroupIndex, Label, LfibEntry, NextHopIndex, Slot, TagKey};

use crate::{identity::NodeId, session::SessionKeys};

/// Microseconds on a monotonic clock of unstated origin. Never wall time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// One millisecond.
    pub const MILLISECOND: Self = Self(1_000);
    /// One second.
    pub const SECOND: Self = Self(1_000_000);

    /// So many milliseconds.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis.saturating_mul(1_000))
    }

    /// So many seconds.
    #[must_use]
    pub const fn from_secs(secs: u64) -> Self {
        Self(secs.saturating_mul(1_000_000))
    }

    /// The time from `earlier` to this; zero where that lies ahead.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Self {
        Self(self.0.saturating_sub(earlier.0))
    }

    /// Whole seconds.
    #[must_use]
    pub const fn as_secs(self) -> u64 {
        self.0 / 1_000_000
    }
}

impl std::ops::Add for Micros {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Where all of a node's randomness comes from: the operating system's generator in production, a seeded one in
/// simulations, which then replay exactly.
pub trait Randomness: Send {
    /// Fills the slice with bytes nobody can predict.
    fn fill(&mut self, out: &mut [u8]);
}

impl Randomness for Box<dyn Randomness> {
    fn fill(&mut self, out: &mut [u8]) {
        (**self).fill(out);
    }
}

/// One pair of underlay addresses, as seen from here: the identity of a link's transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnderlayPath {
    /// Our address and port.
    pub local: SocketAddr,
    /// The neighbour's address and port.
    pub remote: SocketAddr,
}

/// Where a packet was switched: what `trace` reports of a hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForwardMode {
    /// XDP in the driver.
    KernelNative,
    /// XDP on the generic path.
    KernelGeneric,
    /// `weftd` itself.
    UserSpace,
}

/// An address of this host that links may start from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnderlayAddress {
    /// The address.
    pub address: IpAddr,
    /// The interface's name, for people.
    pub interface: String,
    /// Length of the address's on-link prefix in bits. A configured neighbour that is on-link from some addresses is
    /// contacted from those alone.
    pub prefix_len: u8,
    /// The interface's MTU in bytes of IP packet.
    pub mtu: u16,
    /// Whether the interface is up with carrier.
    pub up: bool,
    /// How labelled packets that arrive there are forwarded.
    pub mode: ForwardMode,
}

/// What the forwarding plane could not forward and hands up (at a bounded rate).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exception {
    /// The TTL ran out at this node.
    TtlExpired {
        /// Where this node would have switched it.
        mode: ForwardMode,
    },
    /// The packet is longer than the next hop's MTU.
    TooBig {
        /// The next hop's MTU, bytes of IP packet.
        mtu: u16,
    },
    /// The label has no entry here: the sender's LSP is gone.
    UnknownLabel,
    /// Neither primary nor backup next hop is up.
    NoNextHop,
}

/// A request by a person or a program; answered by [`Output::Answer`] with the same id, possibly several times.
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Clone, Debug)]
pub enum Command {
    /// Handshakes with a neighbour at this address from now on (as if it stood in the configuration).
    AddPeer { remote: SocketAddr },
    /// Ends the links to this address and forgets it.
    RemovePeer { remote: SocketAddr },
    /// One echo through the session to `to`; sets the session up where there is none.
    Ping { to: NodeId, payload_len: u16 },
    /// One traced packet per hop of the LSP in use to `to`.
    Trace { to: NodeId },
    /// Says goodbye to neighbours and tears down what this node signalled. The shell stops after draining outputs.
    /// (A stop that keeps transit for the next run is no command: the shell stores the snapshot and goes.)
    Shutdown,
}

/// Ties answers to commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

/// One answer to a [`Command`].
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Done, nothing to tell.
    Done,
    /// An echo came back.
    Pong { rtt: Micros, hops: u8 },
    /// A hop of the traced LSP answered. The last one (the egress) ends the trace.
    TraceHop {
        /// 1 for the first node after this one.
        hop: u8,
        /// Who answered; authenticated by the hop's key from LSP set-up.
        node: NodeId,
        /// The label the packet carried when it arrived there; none where it was not told.
        label: Option<Label>,
        rtt: Micros,
        mode: ForwardMode,
        /// Whether this is the egress.
        last: bool,
    },
    /// A hop did not answer in time.
    TraceTimeout { hop: u8 },
    /// It failed, and why, in words for people: what was wrong, where, what would be right.
    Failed { reason: String },
}

/// What the shell tells the node.
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Debug)]
pub enum Input<'a> {
    /// A whole datagram of kind 2 (link handshake) whose tag verified under the network's key.
    Handshake {
        path: UnderlayPath,
        datagram: &'a [u8],
    },
    /// Link control (kind 3) that passed tag and window: the bytes from offset 16 on (u32 zero, counter, ciphertext).
    Control {
        slot: Slot,
        path: UnderlayPath,
        body: &'a [u8],
    },
    /// Our own probe came back from the neighbour's forwarding plane: the 12 bytes from offset 16 on.
    ProbeEcho {
        slot: Slot,
        path: UnderlayPath,
        body: [u8; 12],
    },
    /// The forwarding plane could not forward a labelled packet: the label entry it arrived with and the 8 bytes of
    /// its session counter.
    Exception {
        slot: Slot,
        label: Label,
        counter: u64,
        exception: Exception,
    },
    /// What the windows of a receiving slot counted, polled about once a second.
    SlotCounters {
        slot: Slot,
        highest_seq_sum: u64,
        received: u64,
        bytes: u64,
    },
    /// A message of the session itself (its plaintext begins with a nibble 0), decrypted by the shell.
    /// `label` is the one it was delivered on; `session` the index from [`SessionOp::Install`]; `counter` the AEAD
    /// counter it came under (its top byte is the epoch).
    SessionMessage {
        session: SessionIndex,
        label: Label,
        counter: u64,
        message: &'a [u8],
    },
    /// Traffic for an overlay address or prefix without a session: set one up.
    NoSession { destination: IpAddr },
    /// Traffic moved over the session since the last such input (keeps it from idling out).
    SessionActive { session: SessionIndex },
    /// All addresses of this host that links may start from, whenever that set changed (and once at the start).
    Underlay { addresses: &'a [UnderlayAddress] },
    /// The path's usable MTU in bytes of IP packet changed, or a next hop could (not) be resolved.
    NextHopState {
        next_hop: NextHopIndex,
        resolved: bool,
        mtu: u16,
    },
    /// A request from the API.
    Command { id: CommandId, command: Command },
}

/// Index of a session in the shell's table; reused only after `SessionOp::Remove`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionIndex(pub u32);

/// How far beyond the sequence numbers of the next hop it continues a new next hop begins: see
/// [`DataplaneOp::AddNextHop`]. More than are sent between the copy and the last use of the old one.
pub const SEQ_SKIP: u64 = 1024;

/// Changes to the forwarding tables (user-space source of truth; kernel maps are its projection).
///
/// The order within one drain is the order to apply; a reader between two of them always sees a usable table.
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Clone, Debug, PartialEq)]
pub enum DataplaneOp {
    /// A receiving slot of a link with its tag key. Windows of all its lanes start empty.
    AddSlot {
        slot: Slot,
        key: TagKey,
        path: UnderlayPath,
        /// The next hop that leads back to this neighbour, over which its probes are echoed; none on a one-way link.
        echo: Option<NextHopIndex>,
    },
    /// The echo next hop of a slot changed (after a rekey of the reverse direction).
    SetEcho {
        slot: Slot,
        echo: Option<NextHopIndex>,
    },
    /// The link moved to other addresses (roaming): the path packets of this slot now come on. Its windows stay.
    SetSlotPath { slot: Slot, path: UnderlayPath },
    /// The epoch is over: what still comes is dropped as `StaleEpoch`.
    RetireSlot { slot: Slot },
    /// The slot may be reused.
    RemoveSlot { slot: Slot },
    /// A next hop, up: everything needed to send on one link with one key epoch. Written once, then only
    /// `SetNextHopUp`. Its sequence numbers start at 1, or, with `seq_from` (the same slot and key on another path,
    /// after roaming; 0 is none), [`SEQ_SKIP`] beyond where that next hop's are, lane by lane.
    AddNextHop {
        index: NextHopIndex,
        path: UnderlayPath,
        slot: Slot,
        key: TagKey,
        mtu: u16,
        seq_from: NextHopIndex,
    },
    /// One write repairs every label that uses it.
    SetNextHopUp { index: NextHopIndex, up: bool },
    /// Nothing uses it any more.
    RemoveNextHop { index: NextHopIndex },
    /// All 16 buckets of a group: (primary, backup).
    SetGroup {
        group: GroupIndex,
        buckets: [(NextHopIndex, NextHopIndex); 16],
    },
    /// Writes one LFIB word. An empty entry removes the label.
    SetLabel { label: Label, entry: LfibEntry },
    /// Ends the description of a resumed node's tables, which began with the first output after `Node::resume`: an
    /// entry that already stands in the (pinned) tables with the same content is left as it is, windows and sequence
    /// numbers included; what stands there and was not described by now is removed.
    Restored,
}

/// What a session's traffic is sent with: the first hop's group and the label the first hop knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LspIngress {
    /// Next-hop group towards the first hop.
    pub group: GroupIndex,
    /// The label the first hop (or the egress, when it is a neighbour) allocated.
    pub label: Label,
    /// Largest inner packet in bytes that fits every link of the LSP.
    pub inner_mtu: u16,
    /// TTL of the label entry. Each LSP has one of its own, so that it does not tell a hop how many came before.
    pub ttl: u8,
}

/// Changes to the shell's session table.
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Clone, Debug)]
pub enum SessionOp {
    /// A new session. Its transmit side is unusable until `UseEpoch` and `SetIngress`.
    Install {
        session: SessionIndex,
        peer: NodeId,
        address: Ipv6Addr,
    },
    /// New keys, for receiving at first: the receiver selects by the counter's epoch byte. Older ones stay until
    /// `DropEpoch`. An epoch that exists already is replaced.
    AddEpoch {
        session: SessionIndex,
        epoch: u8,
        keys: SessionKeys,
    },
    /// Traffic is sent under this epoch from now on (the peer has shown that it has the keys).
    UseEpoch { session: SessionIndex, epoch: u8 },
    /// The receiver forgets this epoch.
    DropEpoch { session: SessionIndex, epoch: u8 },
    /// Labels on which this session's traffic is delivered here (complete set).
    SetDelivery {
        session: SessionIndex,
        labels: Vec<Label>,
    },
    /// The LSP to send on from now on; `None`: queue nothing, drop under the name `no_lsp`.
    SetIngress {
        session: SessionIndex,
        ingress: Option<LspIngress>,
    },
    /// Gone, with its keys.
    Remove { session: SessionIndex },
}

/// What the node wants done.
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
#[derive(Debug)]
pub enum Output {
    /// Send a complete datagram (a handshake, already tagged).
    SendDatagram { path: UnderlayPath, datagram: Bytes },
    /// Send link control (kind 3) or a probe (kind 4) on a next hop: the shell puts the 16-byte link header before
    /// `body` (bytes 16 on), with the next sequence number of lane 0, and tags it. Sent even while the next hop is
    /// marked down (probes find out when it is up again).
    SendLink {
        next_hop: NextHopIndex,
        kind: weft_abi::Kind,
        body: Bytes,
    },
    /// Encrypt and send a message of the session itself (its plaintext begins with a nibble 0), with this TTL, on
    /// `ingress` (or on the session's own when none).
    ///
    /// `counter` is the whole AEAD counter to use: epoch in bits 56..64, bit 55 set (counters with bit 55 clear are
    /// the shell's own, for traffic), a number below. Each of the two spaces has its own replay window at the
    /// receiver. The core knows the counter and so matches `Input::Exception`s that transits report to its traces.
    SendSession {
        session: SessionIndex,
        ingress: Option<LspIngress>,
        ttl: u8,
        counter: u64,
        message: Bytes,
    },
    /// Forwarding tables.
    Dataplane(DataplaneOp),
    /// Session table.
    Session(SessionOp),
    /// Destination prefixes (the peers' advertised ones) that lead to a node: complete set, whenever it changed. Which of
    /// them this host accepts is the shell's to decide.
    Routes(Vec<RouteEntry>),
    /// An answer to a command.
    Answer { id: CommandId, answer: Answer },
    /// Worth a log line; structured.
    Event(crate::node::Event),
    /// The state that must survive a restart changed; the shell calls `Node::snapshot` soon and stores it.
    StateChanged,
}

/// A destination behind a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteEntry {
    /// Network address of the prefix.
    pub prefix: IpAddr,
    /// Its length in bits.
    pub prefix_len: u8,
    /// The node that advertises it.
    pub node: NodeId,
    /// That node's overlay address.
    pub address: Ipv6Addr,
    /// Cost of the path chosen there, for people; none where there is no path now.
    pub cost: Option<u32>,
}
