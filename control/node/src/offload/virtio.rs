//! The header before each packet of a TUN queue opened with `IFF_VNET_HDR`: `struct virtio_net_hdr` (virtio 1.2,
//! section 5.1.6; linux/virtio_net.h), 10 bytes, numbers in the byte order of the host.

/// Bytes of the header.
pub const LEN: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_ECN: u8 = 0x80;

/// How a super-packet is to be cut, or was put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Gso {
    /// A packet as it is.
    #[default]
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of one size over either.
    Udp,
}

/// The header's content.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VirtioHeader {
    /// A checksum field that holds the pseudo-header's sum only: where summing starts, and where the field stands from
    /// there.
    pub partial: Option<(u16, u16)>,
    /// Whether and how it is a super-packet.
    pub gso: Gso,
    /// Whether the first of the segments carries TCP's CWR.
    pub ecn: bool,
    /// Bytes of all headers. A hint; never trusted.
    pub header_len: u16,
    /// Bytes of payload in each segment but the last.
    pub gso_size: u16,
}

/// A kind of super-packet that was never asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("super-packets of kind {0:#x} were not asked for")]
pub struct UnknownGso(u8);

impl VirtioHeader {
    /// Reads it.
    #[inline]
    pub fn read(bytes: &[u8; LEN]) -> Result<Self, UnknownGso> {
        let number = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            0 => Gso::None,
            1 => Gso::Tcp4,
            4 => Gso::Tcp6,
            5 => Gso::Udp,
            other => return Err(UnknownGso(other)),
        };
        Ok(Self {
            partial: (bytes[0] & NEEDS_CSUM != 0).then(|| (number(6), number(8))),
            gso,
            ecn: bytes[1] & GSO_ECN != 0,
            header_len: number(2),
            gso_size: number(4),
        })
    }

    /// The bytes.
    #[inline]
    pub fn to_bytes(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        let (start, offset) = self.partial.unwrap_or_default();
        bytes[0] = if self.partial.is_some() {
            NEEDS_CSUM
        } else {
            0
        };
        bytes[1] = match self.gso {
            Gso::None => 0,
            Gso::Tcp4 => 1,
            Gso::Tcp6 => 4,
            Gso::Udp => 5,
        } | if self.ecn { GSO_ECN } else { 0 };
        for (at, number) in [
            (2, self.header_len),
            (4, self.gso_size),
            (6, start),
            (8, offset),
        ] {
            bytes[at..at + 2].copy_from_slice(&number.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for gso in [Gso::None, Gso::Tcp4, Gso::Tcp6, Gso::Udp] {
            for partial in [None, Some((40, 16))] {
                let header = VirtioHeader {
                    partial,
                    gso,
                    ecn: gso == Gso::Tcp4,
                    header_len: 60,
                    gso_size: 1400,
                };
                assert_eq!(VirtioHeader::read(&header.to_bytes()), Ok(header));
            }
        }
        // UFO was never asked for.
        let mut bytes = VirtioHeader::default().to_bytes();
        bytes[1] = 3;
        assert_eq!(VirtioHeader::read(&bytes), Err(UnknownGso(3)));
    }
}
