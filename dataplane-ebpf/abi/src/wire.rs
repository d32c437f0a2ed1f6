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

use crate::{Kind, Label, Slot, siphash::tag_words};

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
    let slot = slot.0.to_be_bytes();
    let seq = seq.to_be_bytes();
    u64::from_le_bytes([
        VERSION << 4 | kind as u8,
        lane << 4,
        slot[0],
        slot[1],
        seq[0],
        seq[1],
        seq[2],
        seq[3],
    ])
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
    pub fn read(b: &[u8; FIXED_LEN]) -> Self {
        Self {
            link: u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            tag: u64::from_le_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
            top: u32::from_le_bytes([b[16], b[17], b[18], b[19]]),
            rest: u64::from_le_bytes([b[20], b[21], b[22], b[23], b[24], b[25], b[26], b[27]]),
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
    #[inline(always)]
    pub fn expected_tag(&self, key: [u64; 2], len: u32) -> u64 {
        tag_words(
            key[0],
            key[1],
            self.link,
            u64::from(self.top) | u64::from(len.swap_bytes()) << 32,
            self.rest,
        )
    }
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
