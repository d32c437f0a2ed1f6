//! Putting packets of one flow together, by the rules of the kernel's GRO (`tcp_gro_receive`, `udp_gro_receive_segment`,
//! `inet_gro_receive`, `ipv6_gro_receive`).
//!
//! Two packets go together where cutting the result gives both back: every header field is the same or counts on as it
//! should, both checksums are right (one is written anew over both, and must not vouch for bytes it never covered), and
//! only the last is shorter. A packet with SYN, RST, URG or CWR, a pure acknowledgement, IPv4 options, extension headers
//! or a fragment goes alone. Packets of a flow never overtake each other.
//!
//! Payload is not moved: a bundle is a new header and a list of pieces of the caller's buffers.

use super::{
    checksum::Sum,
    header::{CWR, FIN, Ip, PSH, RST, SYN, TCP, UDP, URG, put_u16, u16_at, u32_at},
    virtio::{Gso, VirtioHeader},
};

/// Flows that are put together at once; beyond, the one begun first is given out.
const FLOWS: usize = 8;
/// Packets in a bundle: what the kernel keeps to for UDP, and pieces that one write takes.
pub const MAX_PACKETS: usize = 64;
/// Bytes of headers: IPv6 and TCP with all options.
const MAX_HEAD: usize = 100;

/// Where a packet begins, in buffers that only the caller knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The buffer.
    pub buffer: u32,
    /// Offset in it.
    pub start: u32,
}

/// Some bytes of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The buffer.
    pub buffer: u32,
    /// Offset in it.
    pub start: u32,
    /// Bytes.
    pub len: u32,
}

/// Takes what is finished: the packet is `head` followed by the pieces.
pub trait Sink {
    /// One packet or bundle of `packets` packets.
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], packets: usize);
}

/// Which bundles the receiver takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Takes {
    /// TCP bundles.
    pub tcp: bool,
    /// UDP bundles.
    pub udp: bool,
}

/// A packet that may go together with others.
struct Candidate {
    ip: Ip,
    tcp: bool,
    payload: usize,
}

struct Flow {
    head: [u8; MAX_HEAD],
    ip: Ip,
    tcp: bool,
    /// Bytes of all headers.
    payload: usize,
    /// Bytes of payload in each packet but the last.
    size: usize,
    /// Of all packets.
    bytes: usize,
    next_sequence: u32,
    /// Whether all have the same IPv4 identification.
    same_id: bool,
    /// The first is the packet whole, the others payload alone.
    pieces: Vec<Piece>,
}

/// Packets that wait for the next of their flow.
pub struct Coalescer {
    takes: Takes,
    open: Vec<Flow>,
    spare: Vec<Vec<Piece>>,
}

impl std::fmt::Debug for Coalescer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Coalescer({} open)", self.open.len())
    }
}

impl Coalescer {
    /// An empty one.
    pub fn new(takes: Takes) -> Self {
        Self {
            takes,
            open: Vec::with_capacity(FLOWS),
            spare: (0..FLOWS)
                .map(|_| Vec::with_capacity(MAX_PACKETS))
                .collect(),
        }
    }

    /// Takes a packet, and gives out what can wait no longer. `packet` is one whole IP packet without bytes behind it.
    pub fn push(&mut self, packet: &[u8], place: Place, sink: &mut impl Sink) {
        let Some(ip) = Ip::parse(packet) else {
            return self.alone(packet, place, sink);
        };
        let Some(candidate) = candidate(&ip, packet, self.takes) else {
            // What stands before it in its flow goes first.
            let addresses = ip.addresses(packet);
            let ports = ports(&ip, packet);
            self.finish_where(sink, |flow| {
                flow.ip.v6 == ip.v6
                    && flow.ip.addresses(&flow.head) == addresses
                    && ports.is_none_or(|ports| {
                        flow.ip.protocol == ip.protocol && flow.ports() == ports
                    })
            });
            return self.alone(packet, place, sink);
        };
        let key = &packet[ip.header..ip.header + 4];
        let found = self.open.iter().position(|flow| {
            flow.tcp == candidate.tcp
                && flow.ip.v6 == ip.v6
                && flow.ports() == key
                && flow.ip.addresses(&flow.head) == ip.addresses(packet)
        });
        if let Some(index) = found {
            let flow = &mut self.open[index];
            if flow.fits(packet, &candidate) {
                let ended = flow.append(packet, &candidate, place);
                if ended {
                    self.finish(index, sink);
                }
                return;
            }
            self.finish(index, sink);
        }
        if candidate.ends(packet) {
            return self.alone(packet, place, sink);
        }
        if self.open.len() == FLOWS {
            self.finish(0, sink);
        }
        self.begin(packet, &candidate, place);
    }

    /// Gives out everything.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        self.finish_where(sink, |_| true);
    }

    fn alone(&mut self, packet: &[u8], place: Place, sink: &mut impl Sink) {
        let piece = Piece {
            buffer: place.buffer,
            start: place.start,
            len: packet.len() as u32,
        };
        sink.write(&VirtioHeader::default(), &[], &[piece], 1);
    }

    fn begin(&mut self, packet: &[u8], candidate: &Candidate, place: Place) {
        let mut head = [0; MAX_HEAD];
        head[..candidate.payload].copy_from_slice(&packet[..candidate.payload]);
        let mut pieces = self.spare.pop().unwrap_or_default();
        pieces.clear();
        pieces.push(Piece {
            buffer: place.buffer,
            start: place.start,
            len: packet.len() as u32,
        });
        let bytes = packet.len() - candidate.payload;
        let sequence = u32_at(packet, candidate.ip.header + 4).unwrap_or_default();
        self.open.push(Flow {
            head,
            ip: candidate.ip,
            tcp: candidate.tcp,
            payload: candidate.payload,
            size: bytes,
            bytes,
            next_sequence: sequence.wrapping_add(bytes as u32),
            same_id: false,
            pieces,
        });
    }

    fn finish_where(&mut self, sink: &mut impl Sink, which: impl Fn(&Flow) -> bool) {
        let mut index = 0;
        while index < self.open.len() {
            if which(&self.open[index]) {
                self.finish(index, sink);
            } else {
                index += 1;
            }
        }
    }

    fn finish(&mut self, index: usize, sink: &mut impl Sink) {
        let mut flow = self.open.remove(index);
        flow.give(sink);
        self.spare.push(flow.pieces);
    }
}

/// The ports of a packet that is no fragment.
fn ports<'a>(ip: &Ip, packet: &'a [u8]) -> Option<&'a [u8]> {
    let fragment = !ip.v6 && u16_at(packet, 6)? & 0x3fff != 0;
    (matches!(ip.protocol, TCP | UDP) && !fragment)
        .then(|| packet.get(ip.header..ip.header + 4))
        .flatten()
}

/// Whether a packet may go together with others at all: its form, and that all its checksums are right.
#[inline]
fn candidate(ip: &Ip, packet: &[u8], takes: Takes) -> Option<Candidate> {
    if ip.len != packet.len() || ip.header != if ip.v6 { 40 } else { 20 } {
        return None;
    }
    let transport = packet.get(ip.header..)?;
    let payload = match ip.protocol {
        TCP if takes.tcp => {
            let &[.., offset, flags] = transport.get(..14)? else {
                return None;
            };
            let header = usize::from(offset >> 4) * 4;
            if header < 20 || flags & (SYN | RST | URG | CWR) != 0 {
                return None;
            }
            ip.header + header
        }
        UDP if takes.udp => {
            // Without a checksum nothing would be known of it once it had one.
            if usize::from(u16_at(transport, 4)?) != transport.len() || u16_at(transport, 6)? == 0 {
                return None;
            }
            ip.header + 8
        }
        _ => return None,
    };
    if payload >= packet.len() || payload > MAX_HEAD {
        return None;
    }
    if !ip.v6 {
        // More fragments, an offset, the reserved bit.
        if u16_at(packet, 6)? & 0xbfff != 0
            || Sum::default().bytes(&packet[..20]).folded() != 0xffff
        {
            return None;
        }
    }
    let sum = Sum::pseudo(ip.addresses(packet), ip.protocol, transport.len()).bytes(transport);
    (sum.folded() == 0xffff).then_some(Candidate {
        ip: *ip,
        tcp: ip.protocol == TCP,
        payload,
    })
}

impl Candidate {
    /// Whether nothing may follow it in a bundle.
    fn ends(&self, packet: &[u8]) -> bool {
        self.tcp && packet[self.ip.header + 13] & (FIN | PSH) != 0
    }
}

impl Flow {
    fn ports(&self) -> &[u8] {
        &self.head[self.ip.header..self.ip.header + 4]
    }

    /// Whether the packet continues the bundle.
    #[inline]
    fn fits(&self, packet: &[u8], candidate: &Candidate) -> bool {
        let len = packet.len() - candidate.payload;
        let head = &self.head[..self.payload];
        if candidate.payload != self.payload
            || len > self.size
            || self.pieces.len() == MAX_PACKETS
            || self.payload + self.bytes + len > usize::from(u16::MAX)
            || self.ip.protocol != candidate.ip.protocol
        {
            return false;
        }
        let same = |range: std::ops::Range<usize>| head[range.clone()] == packet[range];
        let ip = if self.ip.v6 {
            // Class, flow label; hop limit.
            same(0..4) && same(7..8)
        } else {
            // TOS; fragment bits, TTL.
            same(0..2) && same(6..9) && self.counts_on(packet)
        };
        let at = self.ip.header;
        ip && (!self.tcp
            // Acknowledgement and data offset; window; urgent pointer and options; flags but FIN and PSH.
            || same(at + 8..at + 13)
                && same(at + 14..at + 16)
                && same(at + 18..self.payload)
                && (head[at + 13] ^ packet[at + 13]) & !(FIN | PSH) == 0
                && u32_at(packet, at + 4) == Some(self.next_sequence))
    }

    /// Whether the IPv4 identification is the next, or with DF the same throughout.
    fn counts_on(&self, packet: &[u8]) -> bool {
        let (Some(first), Some(id)) = (u16_at(&self.head, 4), u16_at(packet, 4)) else {
            return false;
        };
        let count = self.pieces.len() as u16;
        let next = id == first.wrapping_add(count);
        let same = packet[6] & 0x40 != 0 && id == first;
        if count == 1 {
            next || same
        } else if self.same_id {
            same
        } else {
            next
        }
    }

    /// Adds a packet that fits; whether the bundle is complete with it.
    fn append(&mut self, packet: &[u8], candidate: &Candidate, place: Place) -> bool {
        let len = packet.len() - candidate.payload;
        if self.pieces.len() == 1 && !self.ip.v6 {
            self.same_id = self.head[4..6] == packet[4..6];
        }
        self.pieces.push(Piece {
            buffer: place.buffer,
            start: place.start + candidate.payload as u32,
            len: len as u32,
        });
        self.bytes += len;
        self.next_sequence = self.next_sequence.wrapping_add(len as u32);
        if self.tcp {
            let at = self.ip.header + 13;
            self.head[at] |= packet[at] & (FIN | PSH);
        }
        len < self.size || candidate.ends(packet) || self.pieces.len() == MAX_PACKETS
    }

    fn give(&mut self, sink: &mut impl Sink) {
        if self.pieces.len() == 1 {
            return sink.write(&VirtioHeader::default(), &[], &self.pieces, 1);
        }
        let at = self.ip.header;
        let transport_len = self.payload - at + self.bytes;
        let pseudo = Sum::pseudo(
            self.ip.addresses(&self.head),
            self.ip.protocol,
            transport_len,
        )
        .folded();
        let head = &mut self.head[..self.payload];
        if self.ip.v6 {
            put_u16(head, 4, transport_len as u16);
        } else {
            put_u16(head, 2, (at + transport_len) as u16);
            put_u16(head, 10, 0);
            let checksum = Sum::default().bytes(&head[..at]).checksum();
            put_u16(head, 10, checksum);
        }
        let field = if self.tcp {
            16
        } else {
            put_u16(head, at + 4, transport_len as u16);
            6
        };
        put_u16(head, at + field, pseudo);
        let virtio = VirtioHeader {
            partial: Some((at as u16, field as u16)),
            gso: match (self.tcp, self.ip.v6) {
                (true, false) => Gso::Tcp4,
                (true, true) => Gso::Tcp6,
                (false, _) => Gso::Udp,
            },
            ecn: false,
            header_len: self.payload as u16,
            gso_size: self.size as u16,
        };
        // The first piece was the packet whole.
        if let Some(first) = self.pieces.first_mut() {
            first.start += self.payload as u32;
            first.len -= self.payload as u32;
        }
        sink.write(&virtio, head, &self.pieces, self.pieces.len());
    }
}
