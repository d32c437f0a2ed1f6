//! Reading what both directions need of IP, TCP and UDP headers. Every access is bounds-checked.

/// Protocol numbers.
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

pub(super) const FIN: u8 = 0x01;
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const PSH: u8 = 0x08;
pub(super) const URG: u8 = 0x20;
pub(super) const CWR: u8 = 0x80;

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes
        .get(at..at + 2)?
        .first_chunk()
        .map(|bytes| u16::from_be_bytes(*bytes))
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes
        .get(at..at + 4)?
        .first_chunk()
        .map(|bytes| u32::from_be_bytes(*bytes))
}

/// Writes where there is room; callers have checked that there is.
#[inline]
pub(super) fn put_u16(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(field) = bytes.get_mut(at..at + 2) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

#[inline]
pub(super) fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    if let Some(field) = bytes.get_mut(at..at + 4) {
        field.copy_from_slice(&value.to_be_bytes());
    }
}

/// An IP packet's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ip {
    pub(super) v6: bool,
    /// Bytes of the IPv4 header with options, or of the fixed IPv6 header.
    pub(super) header: usize,
    /// Protocol, or the first next-header value.
    pub(super) protocol: u8,
    /// Bytes of the packet by its own header.
    pub(super) len: usize,
}

impl Ip {
    /// Reads a whole packet; bytes behind its end are allowed.
    #[inline]
    pub(super) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 if packet.len() >= 20 => {
                let header = usize::from(packet[0] & 15) * 4;
                let len = usize::from(u16_at(packet, 2)?);
                (header >= 20 && len >= header && len <= packet.len()).then_some(Self {
                    v6: false,
                    header,
                    protocol: packet[9],
                    len,
                })
            }
            6 if packet.len() >= 40 => {
                let len = 40 + usize::from(u16_at(packet, 4)?);
                (len <= packet.len()).then_some(Self {
                    v6: true,
                    header: 40,
                    protocol: packet[6],
                    len,
                })
            }
            _ => None,
        }
    }

    /// Both addresses, as they stand in the packet that was parsed.
    #[inline]
    pub(super) fn addresses<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        if self.v6 {
            &packet[8..40]
        } else {
            &packet[12..20]
        }
    }
}
