//! The link header and label entries: offsets, reading, building. All fields in network byte order.
//!
//! ```text
//! 0       version:4 kind:4
//! 1       lane:4 zero:4
//! 2..4    slot
//! 4..8    sequence number
//! 8..16   tag
//! 16..20  label:20 tc:3 s:1 ttl:8 (labelled) | zero (control) | 0 request or 1 echo, then zero (probe)
//! 20..28  session counter (or the next label entries) | AEAD counter (control) | opaque to the echoing side (probe)
//! ```

use crate::{
    Kind, Label, Slot,
    siphash::{tag_14, tag_22},
};

/// Version of the packet format.
pub const VERSION: u8 = 1;
/// Bytes of the link header.
pub const LINK_LEN: usize = 16;
/// Bytes every datagram has at least; one bounds check covers them.
pub const FIXED_LEN: usize = 28;
/// Where the tag begins.
pub const TAG_OFFSET: usize = 8;
/// Byte 16 of a probe that asks.
pub const PROBE_REQUEST: u8 = 0;
/// Byte 16 of a probe that answers.
pub const PROBE_ECHO: u8 = 1;

/// Bytes 0..8 as the little-endian word they are hashed as.
#[inline(always)]
pub const fn link_word(kind: Kind, lane: u8, slot: Slot, seq: u32) -> u64 {
    // Shifted together, not byte by byte: so it stays one word down to the machine's.
    (VERSION << 4 | kind as u8) as u64
        | (lane as u64 & 0x0f) << 12
        | (slot.0.swap_bytes() as u64) << 16
        | (seq.swap_bytes() as u64) << 32
}

/// The 28 bytes every datagram begins with, as the little-endian words they are hashed as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fixed {
    /// Bytes 0..8.
    pub link: u64,
    /// Bytes 8..16.
    pub tag: u64,
    /// Bytes 16..20.
    pub top: u32,
    /// Bytes 20..28.
    pub rest: u64,
}

impl Fixed {
    /// Reads them.
    #[inline(always)]
    pub fn read(bytes: &[u8; FIXED_LEN]) -> Self {
        // Whole words: put together from single bytes they would cost a transit five nanoseconds.
        Self {
            link: u64::from_le_bytes(*chunk(bytes, 0)),
            tag: u64::from_le_bytes(*chunk(bytes, TAG_OFFSET)),
            top: u32::from_le_bytes(*chunk(bytes, LINK_LEN)),
            rest: u64::from_le_bytes(*chunk(bytes, LINK_LEN + 4)),
        }
    }

    /// Format version.
    #[inline(always)]
    pub const fn version(&self) -> u8 {
        (self.link as u8) >> 4
    }

    /// Low nibble of byte 0.
    #[inline(always)]
    pub const fn kind_nibble(&self) -> u8 {
        self.link as u8 & 0x0f
    }

    /// Lane, 0..16.
    #[inline(always)]
    pub const fn lane(&self) -> u8 {
        (self.link >> 12) as u8 & 0x0f
    }

    /// Low nibble of byte 1, which must be zero.
    #[inline(always)]
    pub const fn reserved(&self) -> u8 {
        (self.link >> 8) as u8 & 0x0f
    }

    /// The receiver's slot.
    #[inline(always)]
    pub const fn slot(&self) -> Slot {
        Slot(((self.link >> 16) as u16).swap_bytes())
    }

    /// Sequence number.
    #[inline(always)]
    pub const fn seq(&self) -> u32 {
        ((self.link >> 32) as u32).swap_bytes()
    }

    /// The tag these bytes and a datagram of `len` bytes should carry under `key`.
    ///
    /// It covers what a hop acts on: link header, bytes 16..20 and the length; and bytes 20..28 too unless they belong
    /// to a session, as behind the last label of a stack they do. There the two ends' AEAD covers them.
    #[inline(always)]
    pub fn expected_tag(&self, key: [u64; 2], len: u32) -> u64 {
        let len = u64::from((len as u16).swap_bytes());
        let middle = u64::from(self.top) | len << 32;
        tag(key[0], key[1], self.link, middle, self.rest)
    }
}

/// [`Fixed::expected_tag`] of bytes 0..8, bytes 16..20 with the length, and bytes 20..28.
///
/// Five words, so that eBPF passes them in registers: the program holds this code once.
#[cfg_attr(target_arch = "bpf", inline(never))]
#[cfg_attr(not(target_arch = "bpf"), inline)]
fn tag(k0: u64, k1: u64, link: u64, middle: u64, rest: u64) -> u64 {
    if link & 0x0f == Kind::Labelled as u64 && middle & BOTTOM != 0 {
        tag_14(k0, k1, link, middle)
    } else {
        tag_22(k0, k1, link, middle | rest << 48, rest >> 16)
    }
}

/// The bottom-of-stack bit of a label entry in [`Fixed::top`].
const BOTTOM: u64 = u32::from_le_bytes(LabelEntry(0x100).to_bytes()) as u64;

/// `W` bytes of `N`, from `at` on; `at + W` must not be more than `N`, which is known when this is compiled.
#[inline(always)]
pub(crate) fn chunk<const N: usize, const W: usize>(bytes: &[u8; N], at: usize) -> &[u8; W] {
    match bytes.split_at(at).1.first_chunk() {
        Some(chunk) => chunk,
        None => &[0; W],
    }
}

/// As [`chunk`], to be written.
#[inline(always)]
pub(crate) fn chunk_mut<const N: usize, const W: usize>(
    bytes: &mut [u8; N],
    at: usize,
) -> Option<&mut [u8; W]> {
    bytes.split_at_mut(at).1.first_chunk_mut()
}

/// One label stack entry (RFC 3032).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelEntry(pub u32);

impl LabelEntry {
    /// An entry of its fields; `tc` below 8.
    #[inline(always)]
    pub const fn new(label: Label, tc: u8, bottom: bool, ttl: u8) -> Self {
        Self((label.0 & 0xf_ffff) << 12 | (tc as u32 & 7) << 9 | (bottom as u32) << 8 | ttl as u32)
    }

    /// From the four bytes on the wire.
    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(u32::from_be_bytes(bytes))
    }

    /// As four bytes on the wire.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 4] {
        self.0.to_be_bytes()
    }

    /// The label.
    #[inline(always)]
    pub const fn label(self) -> Label {
        Label(self.0 >> 12)
    }

    /// Traffic class.
    #[inline(always)]
    pub const fn tc(self) -> u8 {
        (self.0 >> 9) as u8 & 7
    }

    /// Whether it is the last entry of the stack.
    #[inline(always)]
    pub const fn bottom(self) -> bool {
        self.0 & 0x100 != 0
    }

    /// Time to live, hops.
    #[inline(always)]
    pub const fn ttl(self) -> u8 {
        self.0 as u8
    }

    /// The same entry with another label.
    #[inline(always)]
    pub const fn with_label(self, label: Label) -> Self {
        Self(self.0 & 0xfff | label.0 << 12)
    }

    /// The same entry with another time to live.
    #[inline(always)]
    pub const fn with_ttl(self, ttl: u8) -> Self {
        Self(self.0 & !0xff | ttl as u32)
    }
}
