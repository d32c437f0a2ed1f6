//! Newtypes for what must not be mixed up.

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

impl TagKey {
    /// The two little-endian words SipHash works on.
    #[inline(always)]
    pub const fn words(&self) -> [u64; 2] {
        let k = &self.0;
        [
            u64::from_le_bytes([k[0], k[1], k[2], k[3], k[4], k[5], k[6], k[7]]),
            u64::from_le_bytes([k[8], k[9], k[10], k[11], k[12], k[13], k[14], k[15]]),
        ]
    }
}

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

impl Kind {
    /// The kind with this number on the wire.
    #[inline(always)]
    pub const fn from_wire(nibble: u8) -> Option<Self> {
        match nibble {
            1 => Some(Self::Labelled),
            2 => Some(Self::Handshake),
            3 => Some(Self::Control),
            4 => Some(Self::Probe),
            _ => None,
        }
    }
}
