//! Cutting a super-packet into packets (what Linux does in `tcp_gso_segment`, `__udp_gso_segment`, `inet_gso_segment`),
//! with every checksum made whole.
//!
//! Headers are repeated as they are, IPv4 options and IPv6 extension headers included. Between segments differ: IP
//! length, the IPv4 identification (counting), TCP's sequence number, FIN and PSH (last segment only), CWR (first only),
//! UDP's length, and the checksums.

use super::{
    checksum::Sum,
    header::{CWR, FIN, Ip, PSH, TCP, UDP, put_u16, put_u32, u16_at, u32_at},
    virtio::{Gso, VirtioHeader},
};

/// Why a packet from the kernel is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not a whole IP packet.
    #[error("not a whole IP packet")]
    Ip,
    /// The virtio header does not fit the packet.
    #[error("the virtio header does not fit the packet")]
    Header,
}

/// Makes a partial checksum whole, in place.
#[inline]
pub fn complete(header: &VirtioHeader, packet: &mut [u8]) -> Result<(), Malformed> {
    let Some((start, offset)) = header.partial else {
        return Ok(());
    };
    let (start, offset) = (usize::from(start), usize::from(offset));
    let ip = Ip::parse(packet).ok_or(Malformed::Ip)?;
    let transport = packet.get_mut(start..ip.len).ok_or(Malformed::Header)?;
    if start < ip.header || offset + 2 > transport.len() {
        return Err(Malformed::Header);
    }
    let mut checksum = Sum::default().bytes(transport).checksum();
    // UDP's field stands 6 bytes in, and 0 there would say that there is none. For TCP both zeros mean the same, but
    // only UDP has it there.
    if checksum == 0 && offset == 6 {
        checksum = 0xffff;
    }
    put_u16(transport, offset, checksum);
    Ok(())
}

/// A super-packet that was checked, and how it is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    ip: Ip,
    tcp: bool,
    /// Where TCP's or UDP's header begins.
    transport: usize,
    /// Where the payload begins.
    payload: usize,
    size: usize,
    /// Sum over the addresses and the protocol.
    pseudo: Sum,
}

impl Cut {
    /// Checks a super-packet; `header.gso` must not be [`Gso::None`].
    #[inline]
    pub fn new(header: &VirtioHeader, packet: &[u8]) -> Result<Self, Malformed> {
        let ip = Ip::parse(packet).ok_or(Malformed::Ip)?;
        let tcp = match header.gso {
            Gso::Tcp4 if !ip.v6 => true,
            Gso::Tcp6 if ip.v6 => true,
            Gso::Udp => false,
            _ => return Err(Malformed::Header),
        };
        let protocol = if tcp { TCP } else { UDP };
        let transport = match header.partial {
            // Behind whatever extension headers there are.
            Some((start, _)) if ip.v6 => usize::from(start),
            Some((start, _)) if usize::from(start) != ip.header => return Err(Malformed::Header),
            None if ip.protocol != protocol => return Err(Malformed::Header),
            _ => ip.header,
        };
        if transport < ip.header || header.gso_size == 0 {
            return Err(Malformed::Header);
        }
        let transport_len = if tcp {
            let offset = packet.get(transport + 12).ok_or(Malformed::Header)?;
            usize::from(offset >> 4) * 4
        } else {
            8
        };
        let payload = transport + transport_len;
        if (tcp && transport_len < 20) || payload > ip.len {
            return Err(Malformed::Header);
        }
        Ok(Self {
            ip,
            tcp,
            transport,
            payload,
            size: usize::from(header.gso_size),
            pseudo: Sum::default()
                .bytes(ip.addresses(packet))
                .word(u16::from(protocol)),
        })
    }

    /// How many packets it makes.
    #[inline]
    pub fn segments(&self) -> usize {
        (self.ip.len - self.payload).div_ceil(self.size).max(1)
    }

    /// Bytes of the longest.
    #[inline]
    pub fn longest(&self) -> usize {
        self.payload + self.size.min(self.ip.len - self.payload)
    }

    /// Bytes of all.
    #[inline]
    pub fn total(&self) -> usize {
        self.segments() * self.payload + self.ip.len - self.payload
    }

    /// Writes one of the packets to the beginning of `out` and gives its length. `packet` must be the one that was
    /// checked; none where `out` is too short or there is no such segment.
    #[inline]
    pub fn write(&self, packet: &[u8], index: usize, out: &mut [u8]) -> Option<usize> {
        let segments = self.segments();
        let from = self.payload + index.checked_mul(self.size)?;
        let last = index + 1 == segments;
        if index >= segments {
            return None;
        }
        let data = packet.get(from..(from + self.size).min(self.ip.len))?;
        let len = self.payload + data.len();
        let out = out.get_mut(..len)?;
        let (head, body) = out.split_at_mut(self.payload);
        head.copy_from_slice(packet.get(..self.payload)?);
        body.copy_from_slice(data);

        if self.ip.v6 {
            put_u16(head, 4, (len - 40) as u16);
        } else {
            put_u16(head, 2, len as u16);
            let id = u16_at(head, 4)?;
            put_u16(head, 4, id.wrapping_add(index as u16));
            put_u16(head, 10, 0);
            let checksum = Sum::default().bytes(&head[..self.ip.header]).checksum();
            put_u16(head, 10, checksum);
        }

        let transport = head.get_mut(self.transport..)?;
        let transport_len = len - self.transport;
        let field = if self.tcp {
            let sequence = u32_at(transport, 4)?;
            put_u32(
                transport,
                4,
                sequence.wrapping_add((index * self.size) as u32),
            );
            let flags = transport.get_mut(13)?;
            if !last {
                *flags &= !(FIN | PSH);
            }
            if index > 0 {
                *flags &= !CWR;
            }
            16
        } else {
            put_u16(transport, 4, transport_len as u16);
            6
        };
        put_u16(transport, field, 0);
        let mut checksum = self
            .pseudo
            .word(transport_len as u16)
            .bytes(transport)
            .bytes(body)
            .checksum();
        if checksum == 0 && !self.tcp {
            checksum = 0xffff;
        }
        put_u16(transport, field, checksum);
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::{super::build, *};

    #[test]
    fn flags_lengths_and_numbers_of_segments() {
        for v6 in [false, true] {
            let whole = build::Tcp {
                v6,
                flags: FIN | PSH | CWR | 0x10,
                sequence: u32::MAX - 100,
                id: 0xffff,
                payload: build::bytes(2_500),
                ..build::Tcp::default()
            };
            let packet = whole.packet();
            let header = VirtioHeader {
                gso: if v6 { Gso::Tcp6 } else { Gso::Tcp4 },
                partial: Some((if v6 { 40 } else { 20 }, 16)),
                gso_size: 1000,
                ..VirtioHeader::default()
            };
            let cut = Cut::new(&header, &packet).unwrap();
            assert_eq!(cut.segments(), 3);
            let mut total = 0;
            for (index, (flags, len)) in [(CWR | 0x10, 1000), (0x10, 1000), (FIN | PSH | 0x10, 500)]
                .into_iter()
                .enumerate()
            {
                let mut out = vec![0; 1500];
                let got = cut.write(&packet, index, &mut out).unwrap();
                let want = build::Tcp {
                    flags,
                    sequence: whole.sequence.wrapping_add(index as u32 * 1000),
                    id: whole.id.wrapping_add(index as u16),
                    payload: whole.payload[index * 1000..][..len].to_vec(),
                    ..whole.clone()
                };
                assert_eq!(out[..got], want.packet());
                total += got;
            }
            assert_eq!(total, cut.total());
            assert_eq!(cut.write(&packet, 3, &mut [0; 1500]), None);
        }
    }

    #[test]
    fn partial_checksums_are_completed() {
        for v6 in [false, true] {
            let udp = build::Udp {
                v6,
                payload: build::bytes(77),
                ..build::Udp::default()
            };
            let want = udp.packet();
            let mut packet = want.clone();
            let transport = if v6 { 40 } else { 20 };
            let addresses = Ip::parse(&packet).unwrap().addresses(&packet).to_vec();
            let partial = Sum::pseudo(&addresses, UDP, packet.len() - transport).folded();
            put_u16(&mut packet, transport + 6, partial);
            let header = VirtioHeader {
                partial: Some((transport as u16, 6)),
                ..VirtioHeader::default()
            };
            complete(&header, &mut packet).unwrap();
            assert_eq!(packet, want);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(
            mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            first in proptest::sample::select(vec![0x45u8, 0x4f, 0x60, 0x00]),
            head: [u8; 10],
            kind in proptest::sample::select(vec![0u8, 1, 4, 5]),
        ) {
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let mut head = head;
            head[1] = kind;
            let header = VirtioHeader::read(&head).unwrap();
            let _ = complete(&header, &mut bytes.clone());
            if let Ok(cut) = Cut::new(&header, &bytes) {
                let mut total = 0;
                for index in 0..=cut.segments() {
                    let mut out = [0; 256];
                    if let Some(len) = cut.write(&bytes, index, &mut out) {
                        proptest::prop_assert!(len <= cut.longest());
                        total += len;
                    }
                }
                proptest::prop_assert_eq!(total, cut.total());
            }
        }
    }
}
