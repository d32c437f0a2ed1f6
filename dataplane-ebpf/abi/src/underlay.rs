//! Finding our datagram in an Ethernet frame: Ethernet, IPv4 or IPv6, UDP.
//!
//! Only the plain forms are forwarded: no VLAN tag, no IPv4 option, no IPv6 extension header, no fragment. What is not
//! plain but addressed to our port is named, so that it can be counted. What is not UDP to our port is not ours.
//! The IPv4 header's checksum is not verified: addresses and lengths are compared with what they must be, and the rest
//! of the header is not used.

use crate::{DropReason, Frame};

/// Bytes of an Ethernet header.
pub const ETHERNET_LEN: usize = 14;
/// Bytes of an IPv4 header without options.
pub const IPV4_LEN: usize = 20;
/// Bytes of an IPv6 header.
pub const IPV6_LEN: usize = 40;
/// Bytes of a UDP header.
pub const UDP_LEN: usize = 8;

const PROTOCOL_UDP: u8 = 17;
const IPV6_HOP_BY_HOP: u8 = 0;
const IPV6_ROUTING: u8 = 43;
const IPV6_FRAGMENT: u8 = 44;
const IPV6_DESTINATION: u8 = 60;
/// Extension headers that are walked to find our port behind them.
const EXTENSIONS: usize = 3;

/// Bytes of IP and UDP header around a datagram's payload.
pub const fn underlay_overhead(ipv6: bool) -> usize {
    if ipv6 {
        IPV6_LEN + UDP_LEN
    } else {
        IPV4_LEN + UDP_LEN
    }
}

/// An IP address; IPv4 as its IPv4-mapped IPv6 address. The 16 bytes as two words in native order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Address(pub [u64; 2]);

impl Address {
    /// From the 16 bytes of an IPv6 address.
    #[inline(always)]
    pub const fn v6(b: [u8; 16]) -> Self {
        Self([
            u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        ])
    }

    /// From the 4 bytes of an IPv4 address.
    #[inline(always)]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self([
            0,
            u64::from_ne_bytes([0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3]]),
        ])
    }

    /// The 16 bytes of the (IPv4-mapped) IPv6 address.
    pub fn octets(self) -> [u8; 16] {
        let [a, b] = self.0.map(u64::to_ne_bytes);
        core::array::from_fn(|i| if i < 8 { a[i] } else { b[i - 8] })
    }
}

/// A datagram to our port whose lengths agree.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Where it was sent to.
    pub destination: Address,
    /// Outer traffic class with ECN.
    pub tos: u8,
    /// Bytes of UDP payload.
    pub len: u32,
}

/// Why a frame holds no datagram for us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reject {
    /// Not ours.
    Pass,
    /// If this address is ours, it is dropped; else it is not ours.
    IfLocal(DropReason, Address),
}

#[inline(always)]
fn be16(high: u8, low: u8) -> u32 {
    u32::from(u16::from_be_bytes([high, low]))
}

/// Whether the UDP header at `at` is sent to `port` (two bytes as in memory).
#[inline(always)]
fn udp_to<F: Frame>(frame: &F, at: usize, port: u16) -> bool {
    match frame.bytes::<4>(at) {
        Some(udp) => u16::from_ne_bytes([udp[2], udp[3]]) == port,
        None => false,
    }
}

/// Our datagram in an Ethernet frame that says it holds IPv4. Its payload begins at byte 42.
#[inline(always)]
pub(crate) fn ipv4<F: Frame>(frame: &F, port: u16) -> Result<Datagram, Reject> {
    const IP: usize = ETHERNET_LEN;
    const UDP: usize = ETHERNET_LEN + IPV4_LEN;
    let Some(ip) = frame.bytes::<IPV4_LEN>(IP) else {
        return Err(Reject::Pass);
    };
    if ip[9] != PROTOCOL_UDP {
        return Err(Reject::Pass);
    }
    let destination = Address::v4([ip[16], ip[17], ip[18], ip[19]]);
    // More fragments, or not the first one. Later fragments have no UDP header to know them by.
    let fragment = be16(ip[6], ip[7]) & 0x3fff;
    if ip[0] != 0x45 {
        let header = usize::from(ip[0] & 0x0f) * 4;
        if ip[0] >> 4 != 4
            || header <= IPV4_LEN
            || fragment & 0x1fff != 0
            || !udp_to(frame, IP + header, port)
        {
            return Err(Reject::Pass);
        }
        return Err(Reject::IfLocal(DropReason::IpOptions, destination));
    }
    if fragment != 0 {
        if fragment & 0x1fff != 0 || !udp_to(frame, UDP, port) {
            return Err(Reject::Pass);
        }
        return Err(Reject::IfLocal(DropReason::Fragment, destination));
    }
    let (tos, ip_len) = (ip[1], be16(ip[2], ip[3]));
    let Some(udp) = frame.bytes::<UDP_LEN>(UDP) else {
        return Err(Reject::Pass);
    };
    if u16::from_ne_bytes([udp[2], udp[3]]) != port {
        return Err(Reject::Pass);
    }
    let udp_len = be16(udp[4], udp[5]);
    if ip_len != udp_len + IPV4_LEN as u32
        || udp_len < UDP_LEN as u32
        || !frame.is_len(ip_len + ETHERNET_LEN as u32)
    {
        return Err(Reject::IfLocal(DropReason::BadLength, destination));
    }
    Ok(Datagram {
        destination,
        tos,
        len: udp_len - UDP_LEN as u32,
    })
}

/// Our datagram in an Ethernet frame that says it holds IPv6. Its payload begins at byte 62.
#[inline(always)]
pub(crate) fn ipv6<F: Frame>(frame: &F, port: u16) -> Result<Datagram, Reject> {
    const IP: usize = ETHERNET_LEN;
    const UDP: usize = ETHERNET_LEN + IPV6_LEN;
    let Some(ip) = frame.bytes::<IPV6_LEN>(IP) else {
        return Err(Reject::Pass);
    };
    if ip[0] >> 4 != 6 {
        return Err(Reject::Pass);
    }
    let destination = Address::v6([
        ip[24], ip[25], ip[26], ip[27], ip[28], ip[29], ip[30], ip[31], ip[32], ip[33], ip[34],
        ip[35], ip[36], ip[37], ip[38], ip[39],
    ]);
    let next = ip[6];
    if next != PROTOCOL_UDP {
        return match behind_extensions(frame, next, port) {
            Some(reason) => Err(Reject::IfLocal(reason, destination)),
            None => Err(Reject::Pass),
        };
    }
    let (tos, ip_len) = (ip[0] << 4 | ip[1] >> 4, be16(ip[4], ip[5]));
    let Some(udp) = frame.bytes::<UDP_LEN>(UDP) else {
        return Err(Reject::Pass);
    };
    if u16::from_ne_bytes([udp[2], udp[3]]) != port {
        return Err(Reject::Pass);
    }
    let udp_len = be16(udp[4], udp[5]);
    if ip_len != udp_len
        || udp_len < UDP_LEN as u32
        || !frame.is_len(ip_len + (IPV6_LEN + ETHERNET_LEN) as u32)
    {
        return Err(Reject::IfLocal(DropReason::BadLength, destination));
    }
    Ok(Datagram {
        destination,
        tos,
        len: udp_len - UDP_LEN as u32,
    })
}

/// Why a datagram to our port behind extension headers is refused; none where no such datagram is found.
#[inline(always)]
fn behind_extensions<F: Frame>(frame: &F, first: u8, port: u16) -> Option<DropReason> {
    let mut next = first;
    let mut at = ETHERNET_LEN + IPV6_LEN;
    let mut reason = DropReason::IpOptions;
    for _ in 0..EXTENSIONS {
        let header = frame.bytes::<8>(at)?;
        match next {
            IPV6_HOP_BY_HOP | IPV6_ROUTING | IPV6_DESTINATION => {
                at += (usize::from(header[1]) + 1) * 8
            }
            IPV6_FRAGMENT => {
                if be16(header[2], header[3]) & 0xfff8 != 0 {
                    return None;
                }
                reason = DropReason::Fragment;
                at += 8;
            }
            _ => return None,
        }
        next = header[0];
        if next == PROTOCOL_UDP {
            return if udp_to(frame, at, port) {
                Some(reason)
            } else {
                None
            };
        }
    }
    None
}
