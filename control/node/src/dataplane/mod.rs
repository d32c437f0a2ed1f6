//! The forwarding plane: eBPF maps and programs, or the same tables in user space.
//!
//! [`Dataplane`] is the one door: the shell applies the core's operations to it, attaches interfaces, reads counters.
//! It is not `Sync`; worker threads get [`SharedTables`], which verify, route and stamp on the same memory.

mod encapsulation;
mod forwarder;
mod kernel;
mod memory;
mod project;

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ring::rand::SecureRandom;

use weft_abi::{
    DropReason, EVENT_HEAD_LEN, EncapsulationCell, GroupIndex, Kind, LANES, Label, NextHopIndex,
    Outcome, Slot, TagKey, Verdict,
};
use weft_core::io::{DataplaneOp, ForwardMode};

pub use self::kernel::PassProgram;
use self::{
    kernel::Kernel,
    memory::{Memory, Sizes},
    project::Projection,
};
use crate::data::{
    xdp_send::XdpSender,
    xsk::{MAX_QUEUES, Xsk},
};

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
    /// An index is out of bounds.
    #[error("{what} {value} is beyond the table's end: it must be below {limit}")]
    OutOfBounds {
        /// Which index.
        what: &'static str,
        /// Its value.
        value: u64,
        /// First value that is too large.
        limit: u64,
    },
    /// A configured table size is out of bounds.
    #[error("a table cannot have {value} {what}: it must be 2 to {limit}")]
    BadSize {
        /// Of what.
        what: &'static str,
        /// The size asked for.
        value: u32,
        /// The largest possible.
        limit: u32,
    },
    /// The core named a next hop it had not added.
    #[error("next hop {index} is not in use: it must be added first")]
    UnknownNextHop {
        /// Its index.
        index: u32,
    },
    /// A path between an IPv4 and an IPv6 address.
    #[error("no packet goes from {local} to {remote}: both must be IPv4, or both IPv6")]
    MixedFamilies {
        /// Our address.
        local: SocketAddr,
        /// The neighbour's.
        remote: SocketAddr,
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    Control {
        /// The slot it came in on.
        slot: Slot,
    },
    /// A probe of ours came back: `datagram[16..28]`.
    ProbeReply {
        /// The slot it came in on.
        slot: Slot,
    },
    /// To be sent: `datagram[start..]` has been given the next hop's header and tag; send it from `local` to `remote`
    /// with the traffic class it came with.
    Forward {
        /// Whose header it carries now.
        next_hop: NextHopIndex,
        /// Where the new datagram begins.
        start: usize,
        /// Address to send from.
        local: SocketAddr,
        /// Address to send to.
        remote: SocketAddr,
    },
    /// An LSP ends here: `datagram[session_at..]` is the session's.
    Deliver {
        /// The slot it came in on.
        slot: Slot,
        /// The label it came in with.
        label: Label,
        /// Where the session counter begins.
        session_at: usize,
    },
    /// A labelled packet could not be forwarded and its sender may be told.
    Exception {
        /// The slot it came in on.
        slot: Slot,
        /// The label it came in with.
        label: Label,
        /// Its session counter; 0 where the packet is too short to have one.
        counter: u64,
        /// What happened.
        exception: weft_core::io::Exception,
    },
    /// Dropped and counted.
    Dropped(DropReason),
}

/// The tables, for any thread: verifying, routing and stamping, on the memory the kernel uses too.
pub struct SharedTables {
    memory: Memory,
}

impl SharedTables {
    /// Decides about a datagram that arrived on a socket: the whole check, or, where it carries the delivery cookie,
    /// what is left to do after the kernel verified it. `mode` is that of the interface, for exceptions.
    pub fn receive(&self, datagram: &mut [u8], mode: ForwardMode) -> Received {
        forwarder::receive(&self.memory, datagram, mode)
    }

    /// What the XDP program would do with the frame that begins at `start` in `buffer`, done here. Gives the outcome
    /// and where the frame begins afterwards.
    pub fn switch_frame(&self, buffer: &mut [u8], start: usize) -> (Outcome, usize) {
        forwarder::frame(&self.memory, buffer, start)
    }

    /// The next hop a lane of a group uses now.
    pub fn select(&self, group: GroupIndex, lane: u8) -> Option<NextHopIndex> {
        weft_abi::select(&self.memory, group, lane).map(NextHopIndex)
    }

    /// Source and destination of a next hop, and the largest IP packet in bytes it takes.
    pub fn endpoints(&self, next_hop: NextHopIndex) -> Option<(SocketAddr, SocketAddr, u16)> {
        forwarder::endpoints(&self.memory, next_hop)
    }

    /// The headers of a next hop; none where it is not in use.
    pub fn encapsulation(&self, next_hop: NextHopIndex) -> Option<&EncapsulationCell> {
        let hop = weft_abi::Tables::next_hop(&self.memory, next_hop.0)?;
        hop.encapsulation()
    }

    /// Writes link header, sequence number and tag into the first 16 bytes of a datagram of 28 or more.
    pub fn stamp(
        &self,
        next_hop: NextHopIndex,
        lane: u8,
        kind: Kind,
        datagram: &mut [u8],
    ) -> Result<(), DropReason> {
        weft_abi::stamp(&self.memory, next_hop, lane, kind, datagram).map(|_| ())
    }

    /// Tags a handshake under the network's key: `datagram` is whole but for bytes 8..16. At least 28 bytes.
    pub fn stamp_handshake(&self, datagram: &mut [u8]) -> Result<(), DropReason> {
        let key = self
            .memory
            .config
            .get(0)
            .map(|config| config.network_key.each_ref().map(weft_abi::Cell64::load));
        weft_abi::stamp_handshake(key.unwrap_or_default(), datagram)
    }

    /// What verified packets carry in place of their tag on the way up; never leaves the host.
    pub fn cookie(&self) -> u64 {
        self.memory
            .config
            .get(0)
            .map_or(0, |config| config.cookie.load())
    }

    /// Sets the cookie, for planes that are to mark packets alike. Packets on their way up with the former one are
    /// dropped as `bad_tag`.
    pub fn set_cookie(&self, cookie: u64) {
        if let Some(config) = self.memory.config.get(0) {
            config.cookie.store(cookie);
        }
    }

    /// Continues every lane of a next hop after sequence number `last`.
    pub fn set_last_seq(&self, next_hop: NextHopIndex, last: u64) {
        let first = next_hop.0 as usize * LANES as usize;
        for lane in 0..LANES as usize {
            if let Some(seq) = self.memory.tx_seq.get(first + lane) {
                seq.store(last);
            }
        }
    }

    /// Copies of all tables that packets can change or be changed by, by map name: for tests. They hold keys, so they
    /// belong in no log.
    pub fn dump(&self) -> Vec<(&'static str, Vec<u64>)> {
        let memory = &self.memory;
        vec![
            ("config", memory.config.dump()),
            ("lfib", memory.lfib.dump()),
            ("nh_groups", memory.groups.dump()),
            ("next_hops", memory.next_hops.dump()),
            ("next_hop_up", memory.next_hop_up.dump()),
            ("rx_links", memory.rx_links.dump()),
            ("rx_windows", memory.rx_windows.dump()),
            ("tx_seq", memory.tx_seq.dump()),
        ]
    }

    fn slot_counters(&self, slot: Slot) -> SlotCounters {
        let mut total = SlotCounters::default();
        for lane in 0..LANES as usize {
            if let Some(window) = self
                .memory
                .rx_windows
                .get(usize::from(slot.0) * LANES as usize + lane)
            {
                let (packets, bytes) = window.counted();
                total.highest_seq_sum += window.highest();
                total.received += packets;
                total.bytes += bytes;
            }
        }
        total
    }
}

/// The forwarding plane of one node.
pub struct Dataplane {
    shared: Arc<SharedTables>,
    projection: Projection,
    kernel: Option<Kernel>,
    /// Interfaces that do not take what a native program redirects to them.
    no_redirects: HashSet<u32>,
}

impl Dataplane {
    /// Loads the XDP program, or takes over what an earlier run left pinned.
    pub fn open_kernel(config: &Config) -> Result<(Self, Resumed), Error> {
        let sizes = sizes(config)?;
        let (kernel, memory, resumed) = Kernel::open(&config.pin_dir, config.port, sizes)?;
        let this = Self::new(config, memory, Some(kernel))?;
        Ok((this, resumed))
    }

    /// The same tables in this process's memory alone; every packet goes through [`SharedTables::receive`].
    pub fn open_user(config: &Config) -> Result<Self, Error> {
        let memory = Memory::anonymous(sizes(config)?).map_err(|source| Error::Kernel {
            what: "allocating the forwarding tables".to_owned(),
            source: Box::new(source),
        })?;
        Self::new(config, memory, None)
    }

    fn new(config: &Config, memory: Memory, kernel: Option<Kernel>) -> Result<Self, Error> {
        if let Some(value) = memory.config.get(0) {
            // An earlier run's cookie stays: it never left this host.
            if value.cookie.load() == 0 {
                value.cookie.store(random_cookie()?);
            }
            let [k0, k1] = config.network_key.words();
            value.network_key[0].store(k0);
            value.network_key[1].store(k1);
            value
                .port
                .store(u32::from(u16::from_ne_bytes(config.port.to_be_bytes())));
        }
        let shared = Arc::new(SharedTables { memory });
        Ok(Self {
            shared,
            projection: Projection::default(),
            kernel,
            no_redirects: HashSet::new(),
        })
    }

    /// Whether this is the kernel's plane.
    pub fn is_kernel(&self) -> bool {
        self.kernel.is_some()
    }

    /// Applies one operation. Applying one again that stands already changes nothing: windows and sequence numbers of
    /// an identical slot or next hop go on. A new next hop is sent by the daemon until
    /// [`Dataplane::set_egress`].
    pub fn apply(&mut self, op: &DataplaneOp) -> Result<(), Error> {
        if let (Some(kernel), Some(slot)) =
            (&mut self.kernel, project::renewed(&self.shared.memory, op))
        {
            kernel.reset_admitted(slot)?;
        }
        self.projection.apply(&self.shared.memory, op)
    }

    /// How the kernel sends on a next hop from now on; none: the daemon sends, through its socket. Where a redirect
    /// to that interface would be lost, the daemon goes on sending all the same.
    pub fn set_egress(
        &mut self,
        next_hop: NextHopIndex,
        egress: Option<Egress>,
    ) -> Result<(), Error> {
        let usable = self.usable();
        self.projection
            .set_egress(&self.shared.memory, next_hop, egress, usable)
    }

    /// Interfaces whose driver does not take redirected frames (complete set): what goes out there is sent by the daemon.
    /// True where that changed something.
    pub fn set_no_redirects(&mut self, interfaces: HashSet<u32>) -> bool {
        let changed = self.no_redirects != interfaces;
        if changed {
            self.no_redirects = interfaces;
            self.refresh();
        }
        changed
    }

    /// When [`Dataplane::tend`] is wanted: a next hop's egress changed twice within [`EGRESS_SETTLE`].
    pub fn due(&self) -> Option<std::time::Instant> {
        self.projection.due()
    }

    /// Makes the changes of [`Dataplane::set_egress`] that had to wait.
    pub fn tend(&mut self) -> Result<(), Error> {
        let usable = self.usable();
        self.projection.tend(&self.shared.memory, usable)
    }

    /// This host's addresses: complete set. Datagrams to others pass untouched.
    pub fn set_local_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        let addresses: Vec<_> = addresses
            .iter()
            .map(|ip| encapsulation::address(*ip).0)
            .collect();
        if let Some(kernel) = &mut self.kernel {
            kernel.set_local_addresses(&addresses)?;
        }
        let mut local = self
            .shared
            .memory
            .local
            .write()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        *local = addresses.into_iter().collect();
        Ok(())
    }

    /// Attaches to an interface: native, else generic, else not at all. Attaching again changes nothing.
    pub fn attach(&mut self, interface: &str, ifindex: u32) -> AttachReport {
        let modes = [ForwardMode::KernelNative, ForwardMode::KernelGeneric];
        self.attach_in(interface, ifindex, &modes)
    }

    /// [`Dataplane::attach`] in these modes alone.
    pub fn attach_in(
        &mut self,
        interface: &str,
        ifindex: u32,
        modes: &[ForwardMode],
    ) -> AttachReport {
        let Some(kernel) = &mut self.kernel else {
            return AttachReport {
                ifindex,
                mode: ForwardMode::UserSpace,
                reason: Some("the forwarding plane is in user space".to_owned()),
            };
        };
        let report = kernel.attach(interface, ifindex, modes);
        self.refresh();
        report
    }

    /// Opens AF_XDP sockets for the queues of an attached interface; from then on they get what is delivered there.
    pub fn open_sockets(&mut self, ifindex: u32) -> Result<Vec<Xsk>, Error> {
        let attached = |kernel: &&mut Kernel| {
            kernel
                .attached()
                .iter()
                .any(|report| report.ifindex == ifindex)
        };
        let Some(kernel) = self.kernel.as_mut().filter(attached) else {
            return Err(Error::Kernel {
                what: "opening AF_XDP sockets".to_owned(),
                source: "the XDP program is not attached to the interface".into(),
            });
        };
        let mut sockets = vec![];
        for queue in 0..MAX_QUEUES {
            match Xsk::open(ifindex, queue) {
                Ok(socket) => sockets.push(socket),
                // Beyond the last queue.
                Err(_) if queue > 0 => break,
                Err(error) => {
                    return Err(Error::Kernel {
                        what: "opening an AF_XDP socket".to_owned(),
                        source: Box::new(error),
                    });
                }
            }
        }
        kernel.set_sockets(ifindex, &sockets)?;
        Ok(sockets)
    }

    /// Lets what is delivered on an interface go through the UDP sockets again.
    pub fn close_sockets(&mut self, ifindex: u32) -> Result<(), Error> {
        match &mut self.kernel {
            Some(kernel) => kernel.clear_sockets(ifindex),
            None => Ok(()),
        }
    }

    /// Senders of whole frames for so many threads, as far as there are any: see [`XdpSender`]. Once.
    pub fn open_senders(&mut self, threads: usize) -> Result<Vec<XdpSender>, Error> {
        match &mut self.kernel {
            Some(kernel) => kernel.open_senders(threads),
            None => Ok(vec![]),
        }
    }

    /// Detaches from an interface.
    pub fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        let Some(kernel) = &mut self.kernel else {
            return Ok(());
        };
        let detached = kernel.detach(ifindex);
        self.refresh();
        detached
    }

    /// Whether the kernel can send on an egress. A redirect from native XDP reaches drivers that take such frames: those
    /// that have native XDP themselves, unless they say otherwise. A redirect from generic XDP reaches any interface.
    fn usable(&self) -> impl Fn(&Egress) -> bool + use<> {
        let attached = self.kernel.as_ref().map(Kernel::attached);
        let no_redirects = self.no_redirects.clone();
        move |egress| {
            let Some(attached) = &attached else {
                // Nobody redirects; kept as it was told.
                return true;
            };
            let native = |report: &AttachReport| report.mode == ForwardMode::KernelNative;
            if !attached.iter().any(native) {
                return true;
            }
            let here = |report: &AttachReport| native(report) && report.ifindex == egress.ifindex;
            attached.iter().any(here) && !no_redirects.contains(&egress.ifindex)
        }
    }

    /// Which interfaces the kernel may send on can change with every attachment.
    fn refresh(&mut self) {
        let usable = self.usable();
        if let Err(error) = self.projection.refresh(&self.shared.memory, usable) {
            tracing::warn!(%error, "a next hop keeps its former egress");
        }
    }

    /// What is attached.
    pub fn attached(&self) -> Vec<AttachReport> {
        self.kernel
            .as_ref()
            .map(Kernel::attached)
            .unwrap_or_default()
    }

    /// The tables, for worker threads.
    pub fn shared(&self) -> Arc<SharedTables> {
        self.shared.clone()
    }

    /// What a slot's windows counted.
    pub fn slot_counters(&self, slot: Slot) -> SlotCounters {
        let mut total = self.shared.slot_counters(slot);
        if let Some(kernel) = &self.kernel {
            let (packets, bytes) = kernel.admitted(slot);
            total.received += packets;
            total.bytes += bytes;
        }
        total
    }

    /// What was counted on a label, in the kernel and here.
    pub fn label_counters(&self, label: Label) -> LabelCounters {
        let kernel = self.kernel.as_ref().map(|kernel| kernel.label(label.0));
        let (packets, bytes) = kernel.unwrap_or_default();
        let mut total = LabelCounters { packets, bytes };
        if let Some([packets, bytes]) = self.shared.memory.labels.get(label.0 as usize) {
            total.packets += packets.load();
            total.bytes += bytes.load();
        }
        total
    }

    /// Packets by verdict and drop reason.
    pub fn counters(&self) -> Counters {
        let memory = &self.shared.memory;
        let user = Counts {
            verdicts: memory.verdicts.each_ref().map(weft_abi::Cell64::load),
            drops: memory.drops.each_ref().map(weft_abi::Cell64::load),
        };
        let kernel = self.kernel.as_ref().map(Kernel::counts).unwrap_or_default();
        Counters { kernel, user }
    }

    /// The sampled exceptions since the last call, at most `limit`.
    pub fn take_events(&mut self, limit: usize) -> Vec<PlaneEvent> {
        let mut events = Vec::new();
        while let Some(kernel) = self.kernel.as_mut().filter(|_| events.len() < limit) {
            match kernel.next_event(PlaneEvent::read) {
                Some(event) => events.extend(event),
                None => break,
            }
        }
        events
    }

    /// The loaded XDP program, for running it on packets of one's own making.
    pub fn program(&mut self) -> Option<&mut aya::programs::Xdp> {
        self.kernel.as_mut()?.program().ok()
    }

    /// Ends this process's part. With `keep_transit` the pinned program and tables go on forwarding without it;
    /// without, everything is removed from the host.
    pub fn release(self, keep_transit: bool) -> Result<(), Error> {
        match self.kernel {
            Some(kernel) => kernel.release(keep_transit),
            None => Ok(()),
        }
    }
}

fn sizes(config: &Config) -> Result<Sizes, Error> {
    let bound = |what, value: u32, limit: u32| match value {
        2.. if value <= limit => Ok(value),
        _ => Err(Error::BadSize { what, value, limit }),
    };
    Ok(Sizes {
        slots: bound("slots", config.max_slots, 1 << 16)?,
        next_hops: bound("next hops", config.max_next_hops, 1 << 20)?,
        groups: bound("next-hop groups", config.max_groups, 1 << 24)?,
        labels: bound("labels", config.max_labels, 1 << 20)?,
    })
}

fn random_cookie() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    ring::rand::SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Error::Kernel {
            what: "drawing the delivery cookie".to_owned(),
            source: "the kernel gave no random bytes".into(),
        })?;
    // Zero stands for "none".
    Ok(u64::from_ne_bytes(bytes).max(1))
}

impl PlaneEvent {
    /// From the bytes of a [`weft_abi::Event`]; none where they are not one.
    fn read(bytes: &[u8]) -> Option<Self> {
        let reason = u16::from_ne_bytes(*bytes.get(12..)?.first_chunk()?);
        let captured = usize::from(u16::from_ne_bytes(*bytes.get(14..)?.first_chunk()?));
        let head = bytes.get(16..16 + captured.min(EVENT_HEAD_LEN))?;
        let headers = encapsulation::read(head);
        Some(Self {
            reason: DropReason::from_index(usize::from(reason))?,
            ifindex: u32::from_ne_bytes(*bytes.get(8..)?.first_chunk()?),
            path: headers.map(|(source, destination, _)| (source, destination)),
            slot: headers.and_then(|(.., at)| {
                let fixed = weft_abi::Fixed::read(head.get(at..)?.first_chunk()?);
                Some((
                    fixed.slot(),
                    weft_abi::LabelEntry(fixed.top.swap_bytes()).label(),
                ))
            }),
        })
    }
}

/// Source, destination and offset of the payload of a plain UDP datagram in an Ethernet frame.
pub fn read_frame(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, usize)> {
    encapsulation::read(frame)
}

/// Removes whatever a plane pinned under this folder: interfaces are detached, tables freed. Nothing there is fine.
pub fn cleanup(pin_dir: &Path) -> Result<(), Error> {
    kernel::cleanup(pin_dir)
}

/// Which of the capabilities that loading and attaching takes are not in effect, by `/proc/self/status`; none where that
/// says nothing.
fn missing_capabilities(status: &str) -> Vec<&'static str> {
    const SYS_ADMIN: u64 = 1 << 21;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let Some(held) = line.and_then(|line| u64::from_str_radix(line.trim(), 16).ok()) else {
        return vec![];
    };
    // Before Linux 5.8 the latter two were part of CAP_SYS_ADMIN, which still includes them.
    let held = |bit: u32| held & 1 << bit != 0 || (bit != 12 && held & SYS_ADMIN != 0);
    let wanted = [(12, "CAP_NET_ADMIN"), (39, "CAP_BPF"), (38, "CAP_PERFMON")];
    let missing = wanted.into_iter().filter(|(bit, _)| !held(*bit));
    missing.map(|(_, name)| name).collect()
}

/// Whether the kernel plane can be used by this process here; if not, what is missing and what to do.
pub fn probe() -> Result<(), Error> {
    use aya::maps::{Array, MapError};
    let unusable = |what: String, remedy: &str| {
        Err(Error::Unusable {
            what,
            remedy: remedy.to_owned(),
        })
    };
    let missing =
        missing_capabilities(&std::fs::read_to_string("/proc/self/status").unwrap_or_default());
    if !missing.is_empty() {
        return unusable(
            format!("this process lacks {}", missing.join(", ")),
            "run it as root, or with the capabilities CAP_NET_ADMIN, CAP_BPF and CAP_PERFMON; else weftd forwards in user space",
        );
    }
    match Array::<_, u64>::create(1, 0) {
        Ok(_) => Ok(()),
        Err(MapError::CreateError { io_error, .. }) => match io_error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => unusable(
                "this process may not create BPF maps".to_owned(),
                "run it as root, or with the capabilities CAP_BPF and CAP_NET_ADMIN; else weftd forwards in user space",
            ),
            Some(libc::ENOSYS) => unusable(
                "this kernel has no bpf(2)".to_owned(),
                "use a kernel with CONFIG_BPF_SYSCALL, 5.18 or newer; else weftd forwards in user space",
            ),
            _ => unusable(
                format!("creating a BPF map failed: {io_error}"),
                "see the kernel's log; weftd forwards in user space meanwhile",
            ),
        },
        Err(error) => unusable(
            format!("creating a BPF map failed: {error}"),
            "see the kernel's log",
        ),
    }
}

/// Least time between two changes of one next hop's egress; [`Dataplane::tend`] makes a change that came sooner.
pub const EGRESS_SETTLE: Duration = Duration::from_millis(10);

#[cfg(test)]
mod tests {
    use super::missing_capabilities;

    #[test]
    fn missing_capabilities_are_named() {
        let of = |held: &str| missing_capabilities(&format!("Name:\tweftd\nCapEff:\t{held}\n"));
        assert_eq!(of("000001ffffffffff"), [""; 0]);
        assert_eq!(
            of("0000000000000000"),
            ["CAP_NET_ADMIN", "CAP_BPF", "CAP_PERFMON"]
        );
        assert_eq!(of("0000008000001000"), ["CAP_PERFMON"]);
        assert_eq!(of("0000000000201000"), [""; 0]);
        assert_eq!(missing_capabilities("nothing of it"), [""; 0]);
    }
}
