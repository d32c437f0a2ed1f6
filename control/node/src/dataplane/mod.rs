//! The forwarding plane: eBPF maps and programs, or the same tables in user space.
//!
//! [`Dataplane`] is the one door: the shell applies the core's operations to it, attaches interfaces, reads counters.
//! It is not `Sync`; worker threads get [`SharedTables`], which verify, route and stamp on the same memory.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use weft_abi::{DropReason, GroupIndex, Kind, Label, NextHopIndex, Slot, TagKey, Verdict};
use weft_core::io::{DataplaneOp, ForwardMode};

/// How a plane is opened.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where maps and links are pinned: a folder of this node alone, on a bpffs. Made if missing.
    pub pin_dir: PathBuf,
    /// The UDP port.
    pub port: u16,
    /// Tag key of handshakes.
    pub network_key: TagKey,
    /// Receiving slots, and so links times live epochs.
    pub max_slots: u32,
    /// Next hops.
    pub max_next_hops: u32,
    /// Next-hop groups.
    pub max_groups: u32,
    /// Labels: the highest is one below.
    pub max_labels: u32,
}

/// What was found when a plane was opened.
#[derive(Clone, Debug, Default)]
pub struct Resumed {
    /// Whether tables of an earlier run were taken over, as they are.
    pub tables: bool,
    /// Interfaces that were and are attached.
    pub attached: Vec<AttachReport>,
    /// Why tables of an earlier run were not taken over (they are removed then).
    pub discarded: Option<String>,
}

/// How an interface forwards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachReport {
    /// Its index.
    pub ifindex: u32,
    /// Where packets that arrive there are switched.
    pub mode: ForwardMode,
    /// Why not in a better place.
    pub reason: Option<String>,
}

/// How a next hop is reached, as the neighbour table and the interface tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Interface to send on.
    pub ifindex: u32,
    /// Its address.
    pub source_mac: [u8; 6],
    /// The neighbour's or the gateway's.
    pub destination_mac: [u8; 6],
    /// Largest IP packet in bytes.
    pub mtu: u16,
}

/// What went wrong with the forwarding plane.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// BPF cannot be used here.
    #[error("BPF cannot be used: {what}; {remedy}")]
    Unusable {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A configured size or an index is out of bounds.
    #[error("{what} {value} is beyond the table's end: it must be below {limit}")]
    OutOfBounds {
        /// Which index.
        what: &'static str,
        /// Its value.
        value: u64,
        /// First value that is too large.
        limit: u64,
    },
    /// A call to the kernel failed.
    #[error("{what}: {source}")]
    Kernel {
        /// What was attempted, on what.
        what: String,
        /// The error.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Packets by verdict and by drop reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    /// By [`Verdict`] number.
    pub verdicts: [u64; Verdict::ALL.len()],
    /// By [`DropReason`] number.
    pub drops: [u64; DropReason::ALL.len()],
}

/// What was counted where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counters {
    /// By the XDP program, summed over processors.
    pub kernel: Counts,
    /// By this process's user-space forwarder.
    pub user: Counts,
}

/// What a receiving slot's windows counted, over all lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SlotCounters {
    /// Sum over lanes of the highest sequence number seen: packets the neighbour sent, as far as is known.
    pub highest_seq_sum: u64,
    /// Packets admitted.
    pub received: u64,
    /// Bytes of datagram payload admitted.
    pub bytes: u64,
}

/// What was forwarded or delivered on a label.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LabelCounters {
    /// Packets.
    pub packets: u64,
    /// Bytes of datagram payload, link header included.
    pub bytes: u64,
}

/// A sampled exception of the XDP program.
#[derive(Clone, Debug)]
pub struct PlaneEvent {
    /// Why.
    pub reason: DropReason,
    /// Interface it came in on.
    pub ifindex: u32,
    /// Source and destination of the datagram, where it could be read.
    pub path: Option<(SocketAddr, SocketAddr)>,
    /// Slot and label it named, where they could be read.
    pub slot: Option<(Slot, Label)>,
}

/// A datagram's fate, told by [`SharedTables::receive`]. Ranges are byte ranges of the datagram.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    /// A handshake with a good network tag: the whole datagram.
    Handshake,
    /// Link control: `datagram[16..]`.
    Control { slot: Slot },
    /// A probe of ours came back: `datagram[16..28]`.
    ProbeReply { slot: Slot },
    /// To be sent: `datagram[start..]` has been given the next hop's header and tag; send it from `local` to `remote`
    /// with the traffic class it came with.
    Forward {
        next_hop: NextHopIndex,
        start: usize,
        local: SocketAddr,
        remote: SocketAddr,
    },
    /// An LSP ends here: `datagram[session_at..]` is the session's.
    Deliver {
        slot: Slot,
        label: Label,
        session_at: usize,
    },
    /// A labelled packet could not be forwarded and its sender may be told.
    Exception {
        slot: Slot,
        label: Label,
        counter: u64,
        exception: weft_core::io::Exception,
    },
    /// Dropped and counted.
    Dropped(DropReason),
}

/// The tables, for any thread: verifying, routing and stamping, on the memory the kernel uses too.
pub struct SharedTables {}

impl SharedTables {
    /// Decides about a datagram that arrived on a socket: the whole check, or, where it carries the delivery cookie,
    /// what is left to do after the kernel verified it. `mode` is that of the interface, for exceptions.
    pub fn receive(&self, datagram: &mut [u8], mode: ForwardMode) -> Received {
        let _ = (datagram, mode);
        todo!()
    }

    /// The next hop a lane of a group uses now.
    pub fn select(&self, group: GroupIndex, lane: u8) -> Option<NextHopIndex> {
        let _ = (group, lane);
        todo!()
    }

    /// Source and destination of a next hop, and the largest IP packet in bytes it takes.
    pub fn endpoints(&self, next_hop: NextHopIndex) -> Option<(SocketAddr, SocketAddr, u16)> {
        let _ = next_hop;
        todo!()
    }

    /// Writes link header, sequence number and tag into the first 16 bytes of a datagram of 28 or more.
    pub fn stamp(
        &self,
        next_hop: NextHopIndex,
        lane: u8,
        kind: Kind,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        let _ = (next_hop, lane, kind, datagram);
        todo!()
    }
}

/// The forwarding plane of one node.
pub struct Dataplane {
    shared: Arc<SharedTables>,
}

impl Dataplane {
    /// Loads the XDP program, or takes over what an earlier run left pinned.
    pub fn open_kernel(config: &Config) -> Result<(Self, Resumed), Error> {
        let _ = config;
        todo!()
    }

    /// The same tables in this process's memory alone; every packet goes through [`SharedTables::receive`].
    pub fn open_user(config: &Config) -> Result<Self, Error> {
        let _ = config;
        todo!()
    }

    /// Applies one operation. Applying one again that stands already changes nothing: windows and sequence numbers of
    /// an identical slot or next hop go on.
    pub fn apply(&mut self, op: &DataplaneOp) -> Result<(), Error> {
        let _ = op;
        todo!()
    }

    /// How the kernel sends on a next hop from now on; none: the daemon sends, through its socket.
    pub fn set_egress(
        &mut self,
        next_hop: NextHopIndex,
        egress: Option<Egress>,
    ) -> Result<(), Error> {
        let _ = (next_hop, egress);
        todo!()
    }

    /// This host's addresses: complete set. Datagrams to others pass untouched.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let _ = addresses;
        todo!()
    }

    /// Attaches to an interface: native, else generic, else not at all. Attaching again changes nothing.
    pub fn attach(&mut self, interface: &str, ifindex: u32) -> AttachReport {
        let _ = (interface, ifindex);
        todo!()
    }

    /// Detaches from an interface.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        let _ = ifindex;
        todo!()
    }

    /// What is attached.
    pub fn attached(&self) -> Vec<AttachReport> {
        todo!()
    }

    /// The tables, for worker threads.
    pub fn shared(&self) -> Arc<SharedTables> {
        self.shared.clone()
    }

    /// What a slot's windows counted.
    pub fn slot_counters(&self, slot: Slot) -> SlotCounters {
        let _ = slot;
        todo!()
    }

    /// What was counted on a label.
    pub fn label_counters(&self, label: Label) -> LabelCounters {
        let _ = label;
        todo!()
    }

    /// Packets by verdict and drop reason.
    pub fn counters(&self) -> Counters {
        todo!()
    }

    /// The sampled exceptions since the last call, at most `limit`.
    pub fn take_events(&mut self, limit: usize) -> Vec<PlaneEvent> {
        let _ = limit;
        todo!()
    }

    /// Ends this process's part. With `keep_transit` the pinned program and tables go on forwarding without it;
    /// without, everything is removed from the host.
    pub fn release(self, keep_transit: bool) -> Result<(), Error> {
        let _ = keep_transit;
        todo!()
    }
}

/// Removes whatever a plane pinned under this folder: interfaces are detached, tables freed. Nothing there is fine.
pub fn cleanup(pin_dir: &Path) -> Result<(), Error> {
    let _ = pin_dir;
    todo!()
}

/// Whether the kernel plane can be used by this process here; if not, what is missing and what to do.
pub fn probe() -> Result<(), Error> {
    todo!()
}

/// Least time between two changes of one next hop's egress; [`Dataplane::set_egress`] waits out the rest.
pub const EGRESS_SETTLE: Duration = Duration::from_millis(10);
