//! The bytes before a datagram on one next hop, made once and copied by the forwarding plane.

use std::net::{IpAddr, SocketAddr};

use weft_abi::{Address, ETHERNET_LEN, Encapsulation, IPV4_LEN, IPV6_LEN, UDP_LEN};

use super::Egress;

/// Hop limit of every datagram we send.
const TTL: u8 = 64;
const UDP: u8 = 17;

/// An address as tables hold it.
pub(super) fn address(ip: IpAddr) -> Address {
    match ip.to_canonical() {
        IpAddr::V4(ip) => Address::v4(ip.octets()),
        IpAddr::V6(ip) => Address::v6(ip.octets()),
    }
}

/// The headers from `local` to `remote`; without an egress for the daemon's socket. None where the two addresses are
/// not of one family.
pub(super) fn build(
    local: SocketAddr,
    remote: SocketAddr,
    mtu: u16,
    egress: Option<Egress>,
) -> Option<Encapsulation> {
    let mut headers = [0; 64];
    if let Some(egress) = egress {
        headers[..6].copy_from_slice(&egress.destination_mac);
        headers[6..12].copy_from_slice(&egress.source_mac);
    }
    let (family, ip_len) = match (local.ip().to_canonical(), remote.ip().to_canonical()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            headers[12..14].copy_from_slice(&[0x08, 0x00]);
            let ip = &mut headers[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
            ip[0] = 0x45;
            // Don't fragment; the identification of such a packet means nothing (RFC 6864).
            ip[6] = 0x40;
            ip[8] = TTL;
            ip[9] = UDP;
            ip[12..16].copy_from_slice(&from.octets());
            ip[16..20].copy_from_slice(&to.octets());
            (4, IPV4_LEN)
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            headers[12..14].copy_from_slice(&[0x86, 0xdd]);
            let ip = &mut headers[ETHERNET_LEN..ETHERNET_LEN + IPV6_LEN];
            ip[0] = 0x60;
            ip[6] = UDP;
            ip[7] = TTL;
            ip[8..24].copy_from_slice(&from.octets());
            ip[24..40].copy_from_slice(&to.octets());
            (6, IPV6_LEN)
        }
        _ => return None,
    };
    let udp = ETHERNET_LEN + ip_len;
    headers[udp..udp + 2].copy_from_slice(&local.port().to_be_bytes());
    headers[udp + 2..udp + 4].copy_from_slice(&remote.port().to_be_bytes());
    let ip_sum = if family == 4 {
        sum(&headers[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN])
    } else {
        0
    };
    Some(Encapsulation {
        headers,
        ifindex: egress.map_or(0, |egress| egress.ifindex),
        mtu: egress.map_or(mtu, |egress| egress.mtu.min(mtu)),
        ip_sum,
        family,
        reserved: 0,
    })
}

/// Sum of 16-bit words in native order, folded to 16 bits (RFC 1071: the order does not matter, if it is one).
fn sum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words
        .iter()
        .map(|word| u32::from(u16::from_ne_bytes(*word)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Source and destination an encapsulation was built from.
pub(super) fn endpoints(encapsulation: &Encapsulation) -> Option<(SocketAddr, SocketAddr)> {
    let (local, remote, _) = read(&encapsulation.headers)?;
    Some((local, remote))
}

/// Source, destination and offset of the payload of a plain UDP datagram in an Ethernet frame.
pub(super) fn read(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, usize)> {
    let octets = |at: usize| frame.get(at..)?.first_chunk::<16>().copied();
    let short = |at: usize| frame.get(at..)?.first_chunk::<4>().copied();
    let port = |at: usize| {
        frame
            .get(at..)?
            .first_chunk()
            .map(|bytes| u16::from_be_bytes(*bytes))
    };
    let (from, to, udp): (IpAddr, IpAddr, usize) = match frame.get(12..15)? {
        [0x08, 0x00, 0x45] => (
            short(26)?.into(),
            short(30)?.into(),
            ETHERNET_LEN + IPV4_LEN,
        ),
        [0x86, 0xdd, first] if first >> 4 == 6 => (
            octets(22)?.into(),
            octets(38)?.into(),
            ETHERNET_LEN + IPV6_LEN,
        ),
        _ => return None,
    };
    Some((
        (from, port(udp)?).into(),
        (to, port(udp + 2)?).into(),
        udp + UDP_LEN,
    ))
}
