//! What kernel and user space must agree on, bit for bit.
//!
//! `no_std`, no allocation, no `unsafe` beyond the map value casts; compiles for `bpfel-unknown-none` and for the host.
#![no_std]

/// A 20-bit label, allocated by the node that will receive it (RFC 3032). 0..=15 are reserved and never allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Label(pub u32);

/// The receiver's index for one (neighbour link, key epoch); on the wire in every packet. 0 is never allocated.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct Slot(pub u16);

/// Index into the next-hop table. 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct NextHopIndex(pub u32);

/// Index into the next-hop group table. 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(transparent)]
pub struct GroupIndex(pub u32);

/// SipHash key of one directed link and epoch (or of the network, for handshakes).
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub struct TagKey(pub [u8; 16]);

impl core::fmt::Debug for TagKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("TagKey(..)")
    }
}

/// What a datagram is: the low nibble of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A labelled packet.
    Labelled = 1,
    /// Link handshake, tagged under the network's key.
    Handshake = 2,
    /// Link control, encrypted under the link's control keys.
    Control = 3,
    /// Liveness probe, echoed by the forwarding plane.
    Probe = 4,
}

/// What the forwarder does with a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LfibOp {
    /// No entry: packets are dropped as unknown label.
    Empty = 0,
    /// Replace the label and send on the group.
    Swap = 1,
    /// Remove the entry; with a group, send the rest on it (adjacency label), without, continue with the next label.
    Pop = 2,
    /// Hand up to `weftd`: an LSP ends here.
    Deliver = 3,
}

/// One LFIB word: `op:4 | out label:20 | group:24 | policer:16`, from the most significant bit; written at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct LfibEntry(pub u64);
