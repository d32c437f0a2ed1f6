//! What the tests of the forwarding plane share: frames made by hand, a set of tables with every kind of entry, and a
//! kernel plane and a user-space plane side by side.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, reason = "a module of several test programs")]

pub mod load;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use aya::{TestRun, TestRunOptions};
use weft_abi::{
    DropReason, Fate, GroupIndex, Kind, Label, LabelEntry, LfibEntry, NextHopIndex, Slot, TagKey,
    Verdict, siphash24,
};
use weft_core::io::{DataplaneOp, UnderlayPath};
use weft_node::dataplane::{self, Config, Dataplane, Egress};

/// Prints why a test cannot run, in the form the suite counts, and returns from it.
#[allow(unused_macros, reason = "benchmarks do not skip")]
macro_rules! skip {
    ($($reason:tt)*) => {{
        let thread = std::thread::current();
        println!("SKIPPED {}: {}", thread.name().unwrap_or("a test"), format!($($reason)*).replace('\n', " "));
        return;
    }};
}
#[allow(unused_imports, reason = "benchmarks do not skip")]
pub(crate) use skip;

pub const PORT: u16 = 51_900;
pub const NEIGHBOUR_PORT: u16 = 51_901;
pub const NETWORK_KEY: TagKey = TagKey([0x4e; 16]);
pub const COOKIE: u64 = 0x5eed_c00c_1e5e_edc0;

pub const PASS: u32 = 2;
pub const DROP: u32 = 1;
pub const REDIRECT: u32 = 4;

/// Our addresses, the neighbour's, and one of neither.
pub const LOCAL_V4: &str = "192.0.2.1";
pub const REMOTE_V4: &str = "192.0.2.2";
pub const OTHER_V4: &str = "198.51.100.9";
/// Ours too, but no link's.
pub const SECOND_V4: &str = "192.0.2.77";
pub const LOCAL_V6: &str = "2001:db8::1";
pub const REMOTE_V6: &str = "2001:db8::2";
pub const OTHER_V6: &str = "2001:db8:ffff::9";

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// Tag key of a receiving slot, and of a next hop.
pub fn slot_key(slot: u16) -> TagKey {
    TagKey([slot as u8; 16])
}

pub fn hop_key(hop: u32) -> TagKey {
    TagKey([0x80 | hop as u8; 16])
}

/// The slot a next hop's neighbour knows us by.
pub fn hop_slot(hop: u32) -> u16 {
    0x0100 + hop as u16
}

pub fn path(v6: bool) -> UnderlayPath {
    let (local, remote) = if v6 {
        (LOCAL_V6, REMOTE_V6)
    } else {
        (LOCAL_V4, REMOTE_V4)
    };
    UnderlayPath {
        local: SocketAddr::new(ip(local), PORT),
        remote: SocketAddr::new(ip(remote), NEIGHBOUR_PORT),
    }
}

/// Receiving slots.
pub const SLOT_V4: u16 = 1;
pub const SLOT_V6: u16 = 2;
pub const SLOT_RETIRED: u16 = 3;
/// No way back to its neighbour.
pub const SLOT_ONE_WAY: u16 = 4;
/// Echoes over a next hop that the daemon sends.
pub const SLOT_SOFTWARE_ECHO: u16 = 5;
/// Echoes over a next hop with a small MTU.
pub const SLOT_SMALL_ECHO: u16 = 6;
pub const SLOT_UNUSED: u16 = 9;
pub const MAX_SLOTS: u32 = 10;

/// Next hops, by what is special about them.
pub const HOP_V4: u32 = 1;
pub const HOP_V6: u32 = 2;
pub const HOP_DOWN: u32 = 3;
pub const HOP_SMALL: u32 = 4;
pub const HOP_SOFTWARE: u32 = 5;
pub const HOP_EXHAUSTED: u32 = 6;
/// Marked up but never added.
pub const HOP_MISSING: u32 = 7;
pub const MAX_HOPS: u32 = 8;
pub const IFINDEX_V4: u32 = 104;
pub const IFINDEX_V6: u32 = 106;
pub const MTU: u16 = 9000;
pub const SMALL_MTU: u16 = 120;

/// Labels.
pub const SWAP_V4: u32 = 16;
pub const SWAP_V6: u32 = 17;
pub const POP_V4: u32 = 18;
pub const POP_V6: u32 = 19;
pub const POP_ON: u32 = 20;
pub const DELIVER: u32 = 21;
pub const SWAP_BACKUP: u32 = 22;
pub const SWAP_NOWHERE: u32 = 23;
pub const SWAP_SMALL: u32 = 24;
pub const SWAP_SOFTWARE: u32 = 25;
pub const SWAP_EXHAUSTED: u32 = 26;
pub const SWAP_MISSING: u32 = 27;
pub const SWAP_NO_GROUP: u32 = 28;
pub const POP_NOWHERE: u32 = 29;
pub const UNKNOWN: u32 = 40;
pub const MAX_LABELS: u32 = 64;
pub const LABELS: [u32; 15] = [
    SWAP_V4,
    SWAP_V6,
    POP_V4,
    POP_V6,
    POP_ON,
    DELIVER,
    SWAP_BACKUP,
    SWAP_NOWHERE,
    SWAP_SMALL,
    SWAP_SOFTWARE,
    SWAP_EXHAUSTED,
    SWAP_MISSING,
    SWAP_NO_GROUP,
    POP_NOWHERE,
    UNKNOWN,
];
/// The label a swap label becomes.
pub fn out_label(label: u32) -> u32 {
    0x8_0000 + label
}

const HOP_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn group_of(label: u32) -> u32 {
    match label {
        SWAP_V4 | POP_V4 => 1,
        SWAP_V6 | POP_V6 => 2,
        SWAP_BACKUP => 3,
        SWAP_NOWHERE | POP_NOWHERE => 4,
        SWAP_SMALL => 5,
        SWAP_SOFTWARE => 6,
        SWAP_EXHAUSTED => 7,
        SWAP_MISSING => 8,
        _ => 0,
    }
}

/// The next hop a label's packets leave on.
pub fn hop_of(label: u32) -> u32 {
    match group_of(label) {
        1 => HOP_V4,
        2 | 3 => HOP_V6,
        5 => HOP_SMALL,
        6 => HOP_SOFTWARE,
        7 => HOP_EXHAUSTED,
        8 => HOP_MISSING,
        _ => 0,
    }
}

pub fn hop_is_v6(hop: u32) -> bool {
    hop == HOP_V6
}

pub fn slot_is_v6(slot: u16) -> bool {
    slot == SLOT_V6
}

/// A configuration with a pin folder of its own.
pub fn config(part: &str) -> Config {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let unique = format!(
        "wfdp-{part}-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    );
    Config {
        pin_dir: PathBuf::from("/sys/fs/bpf").join(unique),
        port: PORT,
        network_key: NETWORK_KEY,
        max_slots: MAX_SLOTS,
        max_next_hops: MAX_HOPS,
        max_groups: 10,
        max_labels: MAX_LABELS,
    }
}

/// Operations that make the tables above.
pub fn operations() -> Vec<DataplaneOp> {
    let mut ops = Vec::new();
    for hop in 1..HOP_MISSING {
        let index = NextHopIndex(hop);
        let mtu = if hop == HOP_SMALL { SMALL_MTU } else { MTU };
        let path = path(hop_is_v6(hop));
        ops.push(DataplaneOp::AddNextHop {
            index,
            path,
            slot: Slot(hop_slot(hop)),
            key: hop_key(hop),
            mtu,
            seq_from: NextHopIndex(0),
        });
    }
    for hop in 1..MAX_HOPS {
        ops.push(DataplaneOp::SetNextHopUp {
            index: NextHopIndex(hop),
            up: hop != HOP_DOWN,
        });
    }
    for slot in 1..=SLOT_SMALL_ECHO {
        let echo = match slot {
            SLOT_V6 => Some(HOP_V6),
            SLOT_ONE_WAY => None,
            SLOT_SOFTWARE_ECHO => Some(HOP_SOFTWARE),
            SLOT_SMALL_ECHO => Some(HOP_SMALL),
            _ => Some(HOP_V4),
        };
        let echo = echo.map(NextHopIndex);
        ops.push(DataplaneOp::AddSlot {
            slot: Slot(slot),
            key: slot_key(slot),
            path: path(slot_is_v6(slot)),
            echo,
        });
    }
    ops.push(DataplaneOp::RetireSlot {
        slot: Slot(SLOT_RETIRED),
    });
    for (group, primary, backup) in [
        (1, HOP_V4, HOP_V6),
        (2, HOP_V6, HOP_V4),
        (3, HOP_DOWN, HOP_V6),
        (4, HOP_DOWN, 0),
        (5, HOP_SMALL, 0),
        (6, HOP_SOFTWARE, 0),
        (7, HOP_EXHAUSTED, 0),
        (8, HOP_MISSING, 0),
    ] {
        let buckets = [(NextHopIndex(primary), NextHopIndex(backup)); 16];
        ops.push(DataplaneOp::SetGroup {
            group: GroupIndex(group),
            buckets,
        });
    }
    for label in LABELS {
        let group = GroupIndex(group_of(label));
        let entry = match label {
            UNKNOWN => LfibEntry::EMPTY,
            DELIVER => LfibEntry::DELIVER,
            POP_V4 | POP_V6 | POP_NOWHERE => LfibEntry::pop(group),
            POP_ON => LfibEntry::pop(GroupIndex(0)),
            label => LfibEntry::swap(Label(out_label(label)), group),
        };
        ops.push(DataplaneOp::SetLabel {
            label: Label(label),
            entry,
        });
    }
    ops
}

/// Fills a plane with the tables above.
pub fn fill(plane: &mut Dataplane) {
    for op in operations() {
        plane.apply(&op).expect("the operation fits the tables");
    }
    for hop in 1..HOP_MISSING {
        let ifindex = if hop_is_v6(hop) {
            IFINDEX_V6
        } else {
            IFINDEX_V4
        };
        let egress = Egress {
            ifindex,
            source_mac: OUR_MAC,
            destination_mac: HOP_MAC,
            mtu: MTU,
        };
        let egress = (hop != HOP_SOFTWARE).then_some(egress);
        plane
            .set_egress(NextHopIndex(hop), egress)
            .expect("a next hop in use");
    }
    plane
        .shared()
        .set_last_seq(NextHopIndex(HOP_EXHAUSTED), u64::from(u32::MAX));
    plane
        .set_local_addresses(&[ip(LOCAL_V4), ip(SECOND_V4), ip(LOCAL_V6)])
        .expect("the addresses fit");
}

/// The kernel's plane and the user-space one, filled alike.
pub struct Pair {
    pub kernel: Dataplane,
    pub user: Dataplane,
    config: Config,
}

impl Drop for Pair {
    fn drop(&mut self) {
        dataplane::cleanup(&self.config.pin_dir).ok();
    }
}

/// What became of a packet in one plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Result {
    /// XDP's number for it.
    pub action: u32,
    pub packet: Vec<u8>,
}

impl Pair {
    /// Both planes; the reason where the kernel's cannot be had.
    pub fn open(part: &str) -> std::result::Result<Self, String> {
        let config = config(part);
        if let Err(error) = dataplane::probe() {
            return Err(error.to_string());
        }
        let (mut kernel, _) = match Dataplane::open_kernel(&config) {
            Ok(opened) => opened,
            Err(error @ dataplane::Error::Unusable { .. }) => return Err(error.to_string()),
            Err(error) => panic!("the kernel plane can be opened: {error:?}"),
        };
        fill(&mut kernel);
        let mut user = Dataplane::open_user(&config).expect("a user-space plane");
        fill(&mut user);
        kernel.shared().set_cookie(COOKIE);
        user.shared().set_cookie(COOKIE);
        Ok(Self {
            kernel,
            user,
            config,
        })
    }

    /// A packet through the XDP program; `room` bytes of headroom are all it may use.
    pub fn run_kernel(&mut self, packet: &[u8], room: usize) -> Result {
        // The kernel leaves 256 bytes before the packet, of which an xdp_frame takes 40 and metadata its own length.
        let meta = 216 - room;
        let mut data_in = vec![0; meta];
        data_in.extend_from_slice(packet);
        let mut data_out = vec![0; data_in.len() + 64];
        let mut context = [0u8; 24];
        context[..4].copy_from_slice(&(meta as u32).to_ne_bytes());
        context[4..8].copy_from_slice(&(data_in.len() as u32).to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&data_in),
            data_out: Some(&mut data_out),
            ctx_in: (meta > 0).then_some(&context),
            ..Default::default()
        };
        let program = self.kernel.program().expect("a loaded program");
        let result = program.test_run(options).expect("the program can be run");
        data_out.truncate(result.data_size_out as usize);
        Result {
            action: result.return_value,
            packet: data_out.split_off(meta),
        }
    }

    /// The same packet through the user-space forwarder.
    pub fn run_user(&mut self, packet: &[u8], room: usize) -> (Result, weft_abi::Outcome) {
        let mut buffer = vec![0; room];
        buffer.extend_from_slice(packet);
        let (outcome, start) = self.user.shared().switch_frame(&mut buffer, room);
        let action = match outcome.fate {
            Fate::Up | Fate::HandUp => PASS,
            Fate::Drop => DROP,
            Fate::Out => REDIRECT,
        };
        (
            Result {
                action,
                packet: buffer.split_off(start),
            },
            outcome,
        )
    }

    /// Everything packets can change, of both planes; panics with `context` where they differ.
    pub fn assert_same_tables(&self, context: &str) {
        for ((name, kernel), (_, user)) in self
            .kernel
            .shared()
            .dump()
            .into_iter()
            .zip(self.user.shared().dump())
        {
            // What a window admitted, the kernel counts elsewhere.
            let counted = |i: &usize| name == "rx_windows" && matches!(i % 72, 1 | 2);
            if let Some(at) = (0..kernel.len()).find(|i| kernel[*i] != user[*i] && !counted(i)) {
                panic!(
                    "{context}: table {name}, word {at}: kernel {:#x}, user {:#x}",
                    kernel[at], user[at]
                );
            }
        }
        let (kernel, user) = (self.kernel.counters().kernel, self.user.counters().user);
        for verdict in Verdict::ALL {
            let i = verdict as usize;
            assert_eq!(
                kernel.verdicts[i],
                user.verdicts[i],
                "{context}: verdict {}",
                verdict.name()
            );
        }
        for reason in DropReason::ALL {
            let i = reason as usize;
            assert_eq!(
                kernel.drops[i],
                user.drops[i],
                "{context}: drop reason {}",
                reason.name()
            );
        }
        for slot in 0..MAX_SLOTS as u16 {
            let slot = Slot(slot);
            assert_eq!(
                self.kernel.slot_counters(slot),
                self.user.slot_counters(slot),
                "{context}: {slot:?}"
            );
        }
        for label in 0..MAX_LABELS {
            let label = Label(label);
            assert_eq!(
                self.kernel.label_counters(label),
                self.user.label_counters(label),
                "{context}: {label:?}"
            );
        }
    }
}

/// A datagram payload with a link header: whole but for what the caller mutates.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub version: u8,
    pub kind: u8,
    pub lane: u8,
    pub reserved: u8,
    pub slot: u16,
    pub seq: u32,
    /// Bytes from 16 on.
    pub body: Vec<u8>,
}

impl Datagram {
    pub fn labelled(slot: u16, lane: u8, seq: u32, stack: &[LabelEntry], rest: &[u8]) -> Self {
        let mut body: Vec<u8> = stack.iter().flat_map(|entry| entry.to_bytes()).collect();
        body.extend_from_slice(rest);
        Self {
            version: 1,
            kind: Kind::Labelled as u8,
            lane,
            reserved: 0,
            slot,
            seq,
            body,
        }
    }

    pub fn other(kind: Kind, slot: u16, lane: u8, seq: u32, body: &[u8]) -> Self {
        Self {
            kind: kind as u8,
            ..Self::labelled(slot, lane, seq, &[], body)
        }
    }

    /// The payload with its tag under `key`, made here and not by the code under test.
    pub fn bytes(&self, key: TagKey) -> Vec<u8> {
        let mut bytes = vec![
            self.version << 4 | self.kind,
            self.lane << 4 | self.reserved,
        ];
        bytes.extend_from_slice(&self.slot.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&[0; 8]);
        bytes.extend_from_slice(&self.body);
        retag(&mut bytes, key);
        bytes
    }
}

/// Puts the right tag into a payload of at least 28 bytes.
pub fn retag(bytes: &mut [u8], key: TagKey) {
    if bytes.len() < 28 {
        return;
    }
    let mut hashed = bytes[..8].to_vec();
    hashed.extend_from_slice(&bytes[16..20]);
    hashed.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    let session_follows = bytes[0] & 0x0f == 1 && bytes[18] & 1 == 1;
    if !session_follows {
        hashed.extend_from_slice(&bytes[20..28]);
    }
    let k = key.0;
    let half = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| k[at + i]));
    bytes[8..16].copy_from_slice(&siphash24([half(0), half(8)], &hashed).to_le_bytes());
}

/// The frame around a datagram payload.
#[derive(Clone, Debug)]
pub struct Underlay {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub tos: u8,
    pub ttl: u8,
    pub macs: [u8; 12],
    /// Written into the UDP checksum field.
    pub checksum: u16,
}

impl Underlay {
    /// From our neighbour to us.
    pub fn incoming(v6: bool) -> Self {
        let path = path(v6);
        Self {
            source: path.remote,
            destination: path.local,
            tos: 0xb9,
            ttl: 61,
            macs: [9; 12],
            checksum: 0x1234,
        }
    }

    /// As the forwarding plane sends on a next hop.
    pub fn outgoing(hop: u32, tos: u8) -> Self {
        let path = path(hop_is_v6(hop));
        let mut macs = [0; 12];
        macs[..6].copy_from_slice(&HOP_MAC);
        macs[6..].copy_from_slice(&OUR_MAC);
        Self {
            source: path.local,
            destination: path.remote,
            tos,
            ttl: 64,
            macs,
            checksum: 0,
        }
    }

    pub fn frame(&self, payload: &[u8]) -> Vec<u8> {
        let mut frame = self.macs.to_vec();
        let udp_len = (payload.len() + 8) as u16;
        match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame.extend_from_slice(&[0x08, 0x00]);
                let mut header = vec![0x45, self.tos];
                header.extend_from_slice(&(udp_len + 20).to_be_bytes());
                header.extend_from_slice(&[0, 0, 0x40, 0, self.ttl, 17, 0, 0]);
                header.extend_from_slice(&from.octets());
                header.extend_from_slice(&to.octets());
                let mut sum: u32 = header
                    .chunks(2)
                    .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
                    .sum();
                while sum > 0xffff {
                    sum = (sum & 0xffff) + (sum >> 16);
                }
                header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
                frame.extend_from_slice(&header);
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame.extend_from_slice(&[0x86, 0xdd, 0x60 | self.tos >> 4, self.tos << 4, 0, 0]);
                frame.extend_from_slice(&udp_len.to_be_bytes());
                frame.extend_from_slice(&[17, self.ttl]);
                frame.extend_from_slice(&from.octets());
                frame.extend_from_slice(&to.octets());
            }
            _ => panic!("a frame is of one family"),
        }
        frame.extend_from_slice(&self.source.port().to_be_bytes());
        frame.extend_from_slice(&self.destination.port().to_be_bytes());
        frame.extend_from_slice(&udp_len.to_be_bytes());
        frame.extend_from_slice(&self.checksum.to_be_bytes());
        frame.extend_from_slice(payload);
        frame
    }
}

/// A frame as it goes up after the kernel verified it.
pub fn marked(frame: &[u8], v6: bool) -> Vec<u8> {
    let at = if v6 { 62 } else { 42 };
    let mut marked = frame.to_vec();
    marked[at - 2..at].copy_from_slice(&[0, 0]);
    marked[at + 8..at + 16].copy_from_slice(&COOKIE.to_ne_bytes());
    marked
}

/// SplitMix64: small, seeded, the same everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.word() % limit
    }

    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len.div_ceil(8))
            .flat_map(|_| self.word().to_le_bytes())
            .collect();
        bytes.truncate(len);
        bytes
    }
}
