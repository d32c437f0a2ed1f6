//! Giving a packet the headers of its next hop: encapsulation, link header, sequence number, tag.

use crate::{
    DropReason, ETHERNET_LEN, EncapsulationCell, FIXED_LEN, Fixed, Forward, Frame, IPV4_LEN,
    IPV6_LEN, Kind, LINK_LEN, NextHop, NextHopIndex, Slot, TAG_OFFSET, Tables, UDP_LEN, link_word,
    underlay_overhead,
    wire::{chunk, chunk_mut},
};

/// Bytes of a frame before the datagram payload, over IPv4.
pub const UNDERLAY_V4: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
/// Bytes of a frame before the datagram payload, over IPv6.
pub const UNDERLAY_V6: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;
const V4: usize = UNDERLAY_V4;
const V6: usize = UNDERLAY_V6;

/// Whether an IP packet around `len` bytes of datagram payload fits.
#[inline(always)]
pub(crate) fn fits(family: u32, mtu: u16, len: u32) -> bool {
    len + underlay_overhead(family == 6) as u32 <= u32::from(mtu)
}

#[inline(always)]
fn put<const N: usize, const W: usize>(to: &mut [u8; N], at: usize, bytes: [u8; W]) {
    if let Some(chunk) = chunk_mut(to, at) {
        *chunk = bytes;
    }
}

/// Link header and label of a packet that is sent on; the first 28 bytes of its datagram payload begin at `at`.
#[inline(always)]
fn put_link<const N: usize>(
    seq: u32,
    hop: &NextHop,
    forward: &Forward,
    kind: Kind,
    to: &mut [u8; N],
    at: usize,
) {
    let link = link_word(kind, forward.lane, Slot(hop.slot.load() as u16), seq);
    let fixed = Fixed {
        link,
        tag: 0,
        top: u32::from_le_bytes(forward.top),
        rest: u64::from_le_bytes(*chunk(to, at + LINK_LEN + 4)),
    };
    let tag = fixed.expected_tag(hop.key(), forward.len);
    put(to, at, link.to_le_bytes());
    put(to, at + TAG_OFFSET, tag.to_le_bytes());
    put(to, at + LINK_LEN, forward.top);
}

/// Ethernet, IPv6 and UDP headers at the beginning of a frame.
#[inline(always)]
fn put_v6<const N: usize>(
    out: &mut [u8; N],
    encapsulation: &EncapsulationCell,
    tos: u8,
    udp_len: u16,
) {
    let mut word = 0;
    while word < 7 {
        put(out, word * 8, encapsulation.headers(word));
        word += 1;
    }
    let last = encapsulation.headers(7);
    put(
        out,
        56,
        [last[0], last[1], last[2], last[3], last[4], last[5]],
    );
    put(out, ETHERNET_LEN, [0x60 | tos >> 4, tos << 4]);
    put(out, ETHERNET_LEN + 4, udp_len.to_be_bytes());
    put(out, V6 - 4, udp_len.to_be_bytes());
}

/// Ethernet, IPv4 and UDP headers at the beginning of a frame.
#[inline(always)]
fn put_v4<const N: usize>(
    out: &mut [u8; N],
    encapsulation: &EncapsulationCell,
    tos: u8,
    udp_len: u16,
) {
    let mut word = 0;
    while word < 5 {
        put(out, word * 8, encapsulation.headers(word));
        word += 1;
    }
    let last = encapsulation.headers(5);
    put(out, 40, [last[0], last[1]]);
    let ip_len = udp_len.wrapping_add(IPV4_LEN as u16).to_be_bytes();
    let (_, _, ip_sum) = encapsulation.egress();
    let sum = u32::from(ip_sum)
        + u32::from(u16::from_ne_bytes([0, tos]))
        + u32::from(u16::from_ne_bytes(ip_len));
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    put(out, ETHERNET_LEN + 1, [tos]);
    put(out, ETHERNET_LEN + 2, ip_len);
    put(out, ETHERNET_LEN + 10, sum.to_ne_bytes());
    put(out, V4 - 4, udp_len.to_be_bytes());
}

/// Writes the headers of a next hop before a datagram payload of `len` bytes that the daemon lays ready as a whole frame.
/// `out` is the frame up to the payload, [`UNDERLAY_V4`] or [`UNDERLAY_V6`] bytes; false where it is neither.
pub fn wrap(encapsulation: &EncapsulationCell, tos: u8, len: u16, out: &mut [u8]) -> bool {
    let udp_len = len.wrapping_add(UDP_LEN as u16);
    if encapsulation.family() == 6 {
        let Ok(out) = <&mut [u8; V6]>::try_from(out) else {
            return false;
        };
        put_v6(out, encapsulation, tos, udp_len);
    } else {
        let Ok(out) = <&mut [u8; V4]>::try_from(out) else {
            return false;
        };
        put_v4(out, encapsulation, tos, udp_len);
    }
    true
}

/// A verified packet that is to be sent on.
pub(crate) struct Onward {
    pub(crate) forward: Forward,
    pub(crate) kind: Kind,
    /// Bytes of headers before the link header.
    pub(crate) consumed: usize,
    /// Outer traffic class with ECN.
    pub(crate) tos: u8,
}

/// Puts the next hop's headers before what remains of the packet.
#[inline(always)]
pub(crate) fn encapsulate<T: Tables, F: Frame>(
    tables: &T,
    frame: &mut F,
    onward: &Onward,
    hop: &NextHop,
    encapsulation: &EncapsulationCell,
) -> Result<(), DropReason> {
    let Onward {
        forward,
        kind,
        consumed,
        tos,
    } = onward;
    let (kind, consumed, tos) = (*kind, *consumed, *tos);
    let Some(seq) = tables.next_seq(forward.next_hop, forward.lane) else {
        return Err(DropReason::SeqExhausted);
    };
    let v6 = encapsulation.family() == 6;
    let delta = consumed as i32 + forward.popped as i32 - if v6 { V6 as i32 } else { V4 as i32 };
    if delta != 0 && !frame.adjust_head(delta) {
        return Err(DropReason::RewriteFailed);
    }
    let udp_len = (forward.len as u16).wrapping_add(UDP_LEN as u16);
    if v6 {
        let Some(out) = frame.bytes_mut::<{ V6 + FIXED_LEN }>(0) else {
            return Err(DropReason::RewriteFailed);
        };
        put_v6(out, encapsulation, tos, udp_len);
        put_link(seq, hop, forward, kind, out, V6);
    } else {
        let Some(out) = frame.bytes_mut::<{ V4 + FIXED_LEN }>(0) else {
            return Err(DropReason::RewriteFailed);
        };
        put_v4(out, encapsulation, tos, udp_len);
        put_link(seq, hop, forward, kind, out, V4);
    }
    Ok(())
}

/// What [`stamp`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamped {
    /// The sequence number taken.
    pub seq: u32,
}

/// Writes link header, sequence number and tag before a datagram payload that the daemon sends: `payload` holds 16
/// bytes to be overwritten, then what the kind asks for, 28 bytes at least ([`DropReason::TooShort`] otherwise).
pub fn stamp<T: Tables>(
    tables: &T,
    next_hop: NextHopIndex,
    lane: u8,
    kind: Kind,
    payload: &mut [u8],
) -> Result<Stamped, DropReason> {
    let len = payload.len() as u32;
    let Some(fixed) = payload.first_chunk_mut::<FIXED_LEN>() else {
        return Err(DropReason::TooShort);
    };
    let hop = tables
        .next_hop(next_hop.0)
        .filter(|hop| hop.generation.load() != 0);
    let hop = hop.ok_or(DropReason::NoNextHop)?;
    let lane = lane & 0x0f;
    let seq = tables
        .next_seq(next_hop.0, lane)
        .ok_or(DropReason::SeqExhausted)?;
    put(
        fixed,
        0,
        link_word(kind, lane, Slot(hop.slot.load() as u16), seq).to_le_bytes(),
    );
    let tag = Fixed::read(fixed).expected_tag(hop.key(), len);
    put(fixed, TAG_OFFSET, tag.to_le_bytes());
    Ok(Stamped { seq })
}

/// Tags a handshake under the network's key: `payload` is whole but for the tag.
pub fn stamp_handshake(key: [u64; 2], payload: &mut [u8]) -> Result<(), DropReason> {
    let len = payload.len() as u32;
    let Some(fixed) = payload.first_chunk_mut::<FIXED_LEN>() else {
        return Err(DropReason::TooShort);
    };
    let tag = Fixed::read(fixed).expected_tag(key, len);
    put(fixed, TAG_OFFSET, tag.to_le_bytes());
    Ok(())
}
