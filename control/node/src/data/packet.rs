//! Inner IP packets: just what the data path must know of them. Every read is bounds-checked; nothing here trusts a
//! length field.

use std::{
    hash::{BuildHasher, Hasher as _, RandomState},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

/// What the data path reads of an inner packet's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inner {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TOS or traffic class.
    pub tos: u8,
    /// Bytes of the packet by its own header.
    pub len: usize,
}

impl Inner {
    /// Reads the header; none where it is not a whole IPv4 or IPv6 packet (bytes behind it are allowed).
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let header = packet.get(..20)?;
                let header_len = usize::from(header[0] & 15) * 4;
                let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
                if header_len < 20 || len < header_len || len > packet.len() {
                    return None;
                }
                let source: [u8; 4] = header[12..16].try_into().ok()?;
                let destination: [u8; 4] = header[16..20].try_into().ok()?;
                Some(Self {
                    source: Ipv4Addr::from(source).into(),
                    destination: Ipv4Addr::from(destination).into(),
                    tos: header[1],
                    len,
                })
            }
            6 => {
                let header = packet.get(..40)?;
                let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
                if len > packet.len() {
                    return None;
                }
                let source: [u8; 16] = header[8..24].try_into().ok()?;
                let destination: [u8; 16] = header[24..40].try_into().ok()?;
                Some(Self {
                    source: Ipv6Addr::from(source).into(),
                    destination: Ipv6Addr::from(destination).into(),
                    tos: header[0] << 4 | header[1] >> 4,
                    len,
                })
            }
            _ => None,
        }
    }
}

/// Keyed hash of the flow (addresses, protocol, ports) to one of 16 lanes. The key is fresh per process, so that nobody
/// can steer flows onto one lane from outside.
#[derive(Debug, Default)]
pub struct Lanes(RandomState);

impl Lanes {
    /// The lane of a packet that [`Inner::parse`] accepted.
    pub fn lane(&self, packet: &[u8]) -> u8 {
        (self.flow(packet) & 15) as u8
    }

    /// The whole hash of its flow.
    pub fn flow(&self, packet: &[u8]) -> u64 {
        let mut hasher = self.0.build_hasher();
        let (addresses, protocol, transport) = if packet[0] >> 4 == 4 {
            (12..20, packet[9], usize::from(packet[0] & 15) * 4)
        } else {
            (8..40, packet[6], 40)
        };
        hasher.write(packet.get(addresses).unwrap_or(&[]));
        hasher.write_u8(protocol);
        // Fragments beyond the first have no ports: all of a fragmented packet goes by addresses alone.
        let fragmented = packet[0] >> 4 == 4 && (packet[6] & 0x3f != 0 || packet[7] != 0);
        if matches!(protocol, 6 | 17 | 132) && !fragmented {
            hasher.write(packet.get(transport..transport + 4).unwrap_or(&[]));
        }
        hasher.finish()
    }
}

/// Marks congestion on a packet whose ends know ECN (RFC 3168), and tells whether they do.
pub fn mark_congestion(packet: &mut [u8]) -> bool {
    combine_ecn(packet, 3)
}

/// Combines the ECN field of the outer header with the inner one at the end of the tunnel (RFC 6040, section 4.2).
/// False: the packet must be dropped (congestion marked, but its ends do not know ECN).
pub fn combine_ecn(packet: &mut [u8], outer_tos: u8) -> bool {
    const CE: u8 = 3;
    let Some(version) = packet.first().map(|byte| byte >> 4) else {
        return false;
    };
    let inner = match version {
        4 => packet[1] & 3,
        _ => packet[1] >> 4 & 3,
    };
    match (inner, outer_tos & 3) {
        (0, CE) => return false,
        // ECT(0) under ECT(1) becomes ECT(1); anything else keeps the inner field.
        (2, 1) => set_ecn(packet, version, 1),
        (1 | 2, CE) => set_ecn(packet, version, CE),
        _ => {}
    }
    true
}

fn set_ecn(packet: &mut [u8], version: u8, ecn: u8) {
    if version == 4 {
        let old = u16::from_be_bytes([packet[0], packet[1]]);
        packet[1] = packet[1] & !3 | ecn;
        let new = u16::from_be_bytes([packet[0], packet[1]]);
        // RFC 1624: HC' = ~(~HC + ~m + m').
        let checksum = u16::from_be_bytes([packet[10], packet[11]]);
        let mut sum = u32::from(!checksum) + u32::from(!old) + u32::from(new);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        packet[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    } else {
        packet[1] = packet[1] & !0x30 | ecn << 4;
    }
}

/// The Internet checksum (RFC 1071) over parts, each of even length except the last.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([
                pair[0],
                pair.get(1).copied().unwrap_or(0),
            ]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An IPv6 UDP packet.
    pub(in crate::data) fn v6(source: &str, destination: &str, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 40 + payload];
        packet[0] = 0x60;
        packet[4..6].copy_from_slice(&(payload as u16).to_be_bytes());
        packet[6] = 17;
        packet[7] = 64;
        packet[8..24].copy_from_slice(&source.parse::<Ipv6Addr>().unwrap().octets());
        packet[24..40].copy_from_slice(&destination.parse::<Ipv6Addr>().unwrap().octets());
        packet
    }

    /// An IPv4 UDP packet.
    pub(in crate::data) fn v4(source: &str, destination: &str, payload: usize) -> Vec<u8> {
        let mut packet = vec![0; 20 + payload];
        packet[0] = 0x45;
        packet[2..4].copy_from_slice(&(20 + payload as u16).to_be_bytes());
        packet[8] = 64;
        packet[9] = 17;
        packet[12..16].copy_from_slice(&source.parse::<Ipv4Addr>().unwrap().octets());
        packet[16..20].copy_from_slice(&destination.parse::<Ipv4Addr>().unwrap().octets());
        let sum = checksum(&[&packet[..20]]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet
    }

    #[test]
    fn ecn_is_combined_as_rfc_6040_says() {
        // (inner, outer) -> result; none is a drop.
        let table = [
            (0, 0, Some(0)),
            (0, 1, Some(0)),
            (0, 2, Some(0)),
            (0, 3, None),
            (2, 0, Some(2)),
            (2, 1, Some(1)),
            (2, 2, Some(2)),
            (2, 3, Some(3)),
            (1, 0, Some(1)),
            (1, 1, Some(1)),
            (1, 2, Some(1)),
            (1, 3, Some(3)),
            (3, 0, Some(3)),
            (3, 1, Some(3)),
            (3, 2, Some(3)),
            (3, 3, Some(3)),
        ];
        for (inner, outer, want) in table {
            for mut packet in [v4("10.0.0.1", "10.0.0.2", 8), v6("fd00::1", "fd00::2", 8)] {
                let is_v4 = packet[0] >> 4 == 4;
                set_ecn(&mut packet, if is_v4 { 4 } else { 6 }, inner);
                assert_eq!(
                    combine_ecn(&mut packet, outer),
                    want.is_some(),
                    "{inner} {outer}"
                );
                if let Some(want) = want {
                    assert_eq!(
                        Inner::parse(&packet).unwrap().tos & 3,
                        want,
                        "{inner} {outer}"
                    );
                }
                if is_v4 {
                    assert_eq!(checksum(&[&packet[..20]]), 0);
                }
            }
        }
    }

    #[test]
    fn lanes_follow_the_flow() {
        let lanes = Lanes::default();
        let mut used = std::collections::HashSet::new();
        for port in 0..512u16 {
            let mut packet = v6("fd00::1", "fd00::2", 32);
            packet[40..42].copy_from_slice(&port.to_be_bytes());
            let lane = lanes.lane(&packet);
            packet[50] ^= 0xff;
            assert_eq!(lanes.lane(&packet), lane);
            used.insert(lane);
        }
        assert_eq!(used.len(), 16);
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80), tos: u8) {
            if let Some(inner) = Inner::parse(&bytes) {
                proptest::prop_assert!(inner.len <= bytes.len());
                Lanes::default().lane(&bytes);
                combine_ecn(&mut bytes, tos);
            }
        }
    }
}
