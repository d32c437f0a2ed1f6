//! The values of the maps, byte for byte.
//!
//! All zero bytes are a valid, empty value of each. What changes while packets flow is a [`Cell32`] or [`Cell64`]; the
//! rest is written once, before the word that makes it visible.

use crate::{Address, Cell32, Cell64};

/// Changes with any change of a map's value layout; part of the path maps are pinned under.
pub const LAYOUT_VERSION: u32 = 2;
/// Lanes of a link: each has a sequence and a replay window of its own.
pub const LANES: u32 = 16;
/// Buckets of a next-hop group: a lane stays in one, and so in order.
pub const BUCKETS: usize = 16;
/// Bytes of the frame an event carries at most: all headers of an IPv6 datagram and its fixed part.
pub const EVENT_HEAD_LEN: usize = 90;

/// State of a receiving slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkState {
    /// Not given out.
    Free = 0,
    /// Packets are verified against its key.
    Live = 1,
    /// Its epoch is over; packets are dropped as stale.
    Retired = 2,
}

/// Map `rx_links`, index = slot: one (neighbour link, key epoch) we receive on. 64 bytes.
#[repr(C)]
pub struct RxLink {
    /// A [`LinkState`].
    pub state: Cell32,
    /// Next hop over which probes are echoed; 0 for none.
    pub echo: Cell32,
    /// Tag key, little-endian words.
    pub key: [Cell64; 2],
    /// Our address, which packets are normally sent to.
    pub local: [Cell64; 2],
    /// The neighbour's address when the link was made; for people, packets are not held to it.
    pub remote: [Cell64; 2],
    /// Our port (low 16 bits) and the neighbour's (next 16), host order; for people.
    pub ports: Cell64,
}

impl RxLink {
    /// The tag key's words.
    #[inline(always)]
    pub fn key(&self) -> [u64; 2] {
        [self.key[0].load(), self.key[1].load()]
    }

    /// Our address.
    #[inline(always)]
    pub fn local(&self) -> Address {
        Address([self.local[0].load(), self.local[1].load()])
    }
}

/// What one next hop is sent with. 80 bytes, read and written as ten words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Encapsulation {
    /// Ethernet, IP and UDP headers (42 or 62 bytes), with lengths, traffic class and checksums zero.
    pub headers: [u8; 64],
    /// Interface to send on; 0: the daemon sends it through its socket.
    pub ifindex: u32,
    /// Largest IP packet in bytes.
    pub mtu: u16,
    /// Sum of the IPv4 header's 16-bit words as they are in `headers`, in native order, folded to 16 bits.
    pub ip_sum: u16,
    /// 4 or 6; 0 in an empty slot.
    pub family: u32,
    /// Zero.
    pub reserved: u32,
}

impl Encapsulation {
    /// Number of 64-bit words.
    pub const WORDS: usize = 10;

    /// As words, native order.
    pub fn to_words(&self) -> [u64; Self::WORDS] {
        let mut words = [0; Self::WORDS];
        for (word, bytes) in words.iter_mut().zip(self.headers.as_chunks::<8>().0) {
            *word = u64::from_ne_bytes(*bytes);
        }
        words[8] =
            u64::from(self.ifindex) | u64::from(self.mtu) << 32 | u64::from(self.ip_sum) << 48;
        words[9] = u64::from(self.family);
        words
    }

    /// From words, native order.
    pub fn from_words(words: &[u64; Self::WORDS]) -> Self {
        let mut headers = [0; 64];
        for (bytes, word) in headers.as_chunks_mut::<8>().0.iter_mut().zip(words) {
            *bytes = word.to_ne_bytes();
        }
        Self {
            headers,
            ifindex: words[8] as u32,
            mtu: (words[8] >> 32) as u16,
            ip_sum: (words[8] >> 48) as u16,
            family: words[9] as u32,
            reserved: 0,
        }
    }
}

/// An [`Encapsulation`] in shared memory.
#[repr(C)]
pub struct EncapsulationCell(pub [Cell64; Encapsulation::WORDS]);

impl EncapsulationCell {
    /// Word `index` of the headers, native order.
    #[inline(always)]
    pub fn headers(&self, index: usize) -> [u8; 8] {
        self.0[index].load().to_ne_bytes()
    }

    /// Interface to send on, MTU, sum of the IPv4 header.
    #[inline(always)]
    pub fn egress(&self) -> (u32, u16, u16) {
        let word = self.0[8].load();
        (word as u32, (word >> 32) as u16, (word >> 48) as u16)
    }

    /// 4 or 6.
    #[inline(always)]
    pub fn family(&self) -> u32 {
        self.0[9].load() as u32
    }

    /// Every word.
    pub fn load(&self) -> Encapsulation {
        let mut words = [0; Encapsulation::WORDS];
        for (word, cell) in words.iter_mut().zip(&self.0) {
            *word = cell.load();
        }
        Encapsulation::from_words(&words)
    }

    /// Every word. Nobody may be reading it.
    pub fn store(&self, value: &Encapsulation) {
        for (cell, word) in self.0.iter().zip(value.to_words()) {
            cell.store(word);
        }
    }
}

/// Map `next_hops`: everything needed to send on one link with one key epoch. 192 bytes.
///
/// Written once, but for the encapsulation: that has two slots, of which `generation` names the one in use. A change
/// fills the other one and then counts `generation` up, so a reader sees the old or the new one, whole.
#[repr(C)]
pub struct NextHop {
    /// 0: not in use. Else its lowest bit is the index of the encapsulation in use.
    pub generation: Cell64,
    /// The neighbour's slot for us, host order.
    pub slot: Cell64,
    /// Tag key, little-endian words.
    pub key: [Cell64; 2],
    /// Old and new encapsulation.
    pub encapsulations: [EncapsulationCell; 2],
}

impl NextHop {
    /// The encapsulation in use; none where the next hop is not in use.
    #[inline(always)]
    pub fn encapsulation(&self) -> Option<&EncapsulationCell> {
        let generation = self.generation.load();
        if generation == 0 {
            return None;
        }
        Some(&self.encapsulations[generation as usize & 1])
    }

    /// A whole copy of the encapsulation in use, also while it is being changed.
    pub fn snapshot(&self) -> Option<Encapsulation> {
        loop {
            let generation = self.generation.load();
            if generation == 0 {
                return None;
            }
            let copy = self.encapsulations[generation as usize & 1].load();
            // Unchanged: a writer may have been filling the other slot, never this one.
            if self.generation.load() == generation {
                return Some(copy);
            }
        }
    }

    /// Puts another encapsulation in use. One writer at a time; two changes must be further apart than a reader takes.
    pub fn replace(&self, value: &Encapsulation) {
        let generation = self.generation.load();
        // Generation 0 stands for "not in use", so counting up skips it.
        let next = generation.checked_add(1).unwrap_or(2);
        self.encapsulations[next as usize & 1].store(value);
        self.generation.store(next);
    }

    /// The tag key's words.
    #[inline(always)]
    pub fn key(&self) -> [u64; 2] {
        [self.key[0].load(), self.key[1].load()]
    }
}

/// Map `nh_groups`: a bucket per lane, each `primary << 32 | backup` as next-hop indices, 0 for none. 128 bytes.
#[repr(C)]
pub struct Group {
    /// One word per bucket, each written at once.
    pub buckets: [Cell64; BUCKETS],
}

/// Map `config`, one entry.
#[repr(C)]
pub struct Config {
    /// Tag key of handshakes, little-endian words.
    pub network_key: [Cell64; 2],
    /// What a verified packet carries in place of its tag on its way up to the daemon.
    pub cookie: Cell64,
    /// UDP port, as its two bytes on the wire lie in memory; 0: pass everything.
    pub port: Cell32,
    /// Zero.
    pub reserved: u32,
}

/// Maps `labels` (per processor), index = label: what was forwarded or delivered on it; and `rx_counts` (per
/// processor), index = slot: what was admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PacketCount {
    /// Packets.
    pub packets: u64,
    /// Bytes of datagram payload, link header included.
    pub bytes: u64,
}

/// Frames that a thread of the daemon lays ready for one run of the program.
pub const TX_FRAMES: u32 = 128;
/// Threads that can.
pub const TX_THREADS: u32 = 16;
/// Bytes of such a frame at most.
pub const TX_FRAME_LEN: usize = 2032;

/// Map `tx_frames`, index = thread * [`TX_FRAMES`] + number: a whole frame that the daemon laid ready. 2048 bytes.
#[repr(C)]
pub struct TxFrame {
    /// Its bytes.
    pub len: Cell32,
    /// Interface to send on.
    pub ifindex: Cell32,
    /// Zero.
    pub reserved: [u32; 2],
    /// From the Ethernet header on.
    pub bytes: [u8; TX_FRAME_LEN],
}

/// Map `tx_state`, index = thread. 64 bytes.
#[repr(C)]
pub struct TxState {
    /// Number of the frame that is next.
    pub next: Cell64,
    /// Frames that are laid ready.
    pub ready: Cell64,
    /// Frames that were redirected.
    pub sent: Cell64,
    /// Zero.
    pub reserved: [u64; 5],
}

/// Ring buffer `events`: a sampled exception. 112 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Event {
    /// When, nanoseconds of the monotonic clock.
    pub nanoseconds: u64,
    /// Interface it came in on.
    pub ifindex: u32,
    /// A [`DropReason`](crate::DropReason).
    pub reason: u16,
    /// Bytes of `head` that are filled.
    pub captured: u16,
    /// The frame's first bytes.
    pub head: [u8; EVENT_HEAD_LEN],
    /// Zero.
    pub reserved: [u8; 6],
}

const _: () = {
    assert!(size_of::<RxLink>() == 64);
    assert!(size_of::<crate::Window>() == 576);
    assert!(size_of::<Encapsulation>() == 80 && size_of::<EncapsulationCell>() == 80);
    assert!(size_of::<NextHop>() == 192);
    assert!(size_of::<Group>() == 128);
    assert!(size_of::<Config>() == 32);
    assert!(size_of::<Event>() == 112);
    assert!(size_of::<TxFrame>() == 2048 && size_of::<TxState>() == 64);
};
