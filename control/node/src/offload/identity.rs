//! Cutting what was put together gives the packets back: on streams of every kind of segment.

use std::collections::HashMap;

use proptest::prelude::*;

use super::{
    build,
    gro::{Coalescer, Piece, Place, Sink, Takes},
    gso::Cut,
    header::{Ip, u16_at},
    virtio::{Gso, VirtioHeader},
};

const BOTH: Takes = Takes {
    tcp: true,
    udp: true,
};

/// Keeps what was written.
struct Kept<'a> {
    buffers: &'a [Vec<u8>],
    written: Vec<(VirtioHeader, Vec<u8>, usize)>,
}

impl Sink for Kept<'_> {
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], packets: usize) {
        let mut packet = head.to_vec();
        for piece in pieces {
            let buffer = &self.buffers[piece.buffer as usize];
            packet.extend(&buffer[piece.start as usize..][..piece.len as usize]);
        }
        self.written.push((*virtio, packet, packets));
    }
}

fn coalesce(packets: &[Vec<u8>]) -> Vec<(VirtioHeader, Vec<u8>, usize)> {
    // Each stands somewhere in its buffer.
    let buffers: Vec<Vec<u8>> = packets
        .iter()
        .map(|packet| [&[0xee; 28][..], packet].concat())
        .collect();
    let mut kept = Kept {
        buffers: &buffers,
        written: vec![],
    };
    let mut coalescer = Coalescer::new(BOTH);
    for (index, packet) in packets.iter().enumerate() {
        let place = Place {
            buffer: index as u32,
            start: 28,
        };
        coalescer.push(packet, place, &mut kept);
    }
    coalescer.flush(&mut kept);
    kept.written
}

fn cut(written: &[(VirtioHeader, Vec<u8>, usize)]) -> Vec<Vec<u8>> {
    let mut packets = vec![];
    for (header, packet, count) in written {
        if header.gso == Gso::None {
            assert_eq!(*count, 1);
            packets.push(packet.clone());
            continue;
        }
        let cut = Cut::new(header, packet).unwrap();
        assert_eq!(cut.segments(), *count);
        for index in 0..cut.segments() {
            let mut out = vec![0; cut.longest()];
            let len = cut.write(packet, index, &mut out).unwrap();
            out.truncate(len);
            packets.push(out);
        }
    }
    packets
}

/// What belongs to one flow, in order; everything else by addresses and protocol.
fn by_flow(packets: &[Vec<u8>]) -> HashMap<Vec<u8>, Vec<Vec<u8>>> {
    let mut flows: HashMap<_, Vec<_>> = HashMap::new();
    for packet in packets {
        let ip = Ip::parse(packet).unwrap();
        let mut key = ip.addresses(packet).to_vec();
        key.push(ip.protocol);
        key.extend(packet.get(ip.header..ip.header + 4).unwrap_or_default());
        flows.entry(key).or_default().push(packet.clone());
    }
    flows
}

#[derive(Clone, Debug)]
struct Step {
    flow: usize,
    /// One in a few is out of the ordinary.
    odd: u8,
    len: usize,
    value: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let sizes = prop_oneof![
        4 => Just(1000usize),
        1 => Just(999usize),
        1 => Just(0usize),
        1 => Just(1usize),
        1 => 1..1400usize,
        1 => Just(8_900usize),
    ];
    let step = (0..4usize, 0..60u8, sizes, any::<u8>()).prop_map(|(flow, odd, len, value)| Step {
        flow,
        odd,
        len,
        value,
    });
    proptest::collection::vec(step, 1..120)
}

fn stream(steps: &[Step], v6: bool) -> Vec<Vec<u8>> {
    let mut flows: Vec<_> = (0..2u16)
        .map(|flow| build::Tcp {
            v6,
            port: 100 + flow,
            // Both wrap on the way.
            id: 0xfff0,
            sequence: u32::MAX - 20_000,
            options: vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2],
            ..build::Tcp::default()
        })
        .collect();
    let mut datagrams: Vec<_> = (0..2u16)
        .map(|flow| build::Udp {
            v6,
            port: 200 + flow,
            id: 0xfff8,
            ..build::Udp::default()
        })
        .collect();
    let mut packets = vec![];
    for step in steps {
        let payload: Vec<u8> = build::bytes(step.len)
            .iter()
            .map(|b| b ^ step.value)
            .collect();
        if step.flow < 2 {
            let flow = &mut flows[step.flow];
            let flags = flow.flags;
            match step.odd {
                0 => flow.flags |= 0x08,
                1 => flow.flags |= 0x01,
                2 => flow.flags |= 0x02,
                3 => flow.flags |= 0x04,
                4 => (flow.flags, flow.urgent) = (flow.flags | 0x20, 9),
                5 => flow.flags |= 0x80,
                6 => flow.flags |= 0x40,
                7 => flow.acknowledged += u32::from(step.value),
                8 => flow.options[5] = step.value,
                9 => flow.window += u16::from(step.value),
                10 => flow.ip.tos ^= step.value & 3,
                11 => flow.ip.label = u32::from(step.value),
                12 => flow.ip.ttl ^= 1,
                13 => flow.id = flow.id.wrapping_add(u16::from(step.value)),
                14 => flow.sequence = flow.sequence.wrapping_add(u32::from(step.value)),
                15 => flow.ip.df = !flow.ip.df,
                16 => flow.options.clear(),
                17 => flow.options = vec![1; 12],
                _ => {}
            }
            flow.payload = payload;
            let mut packet = flow.packet();
            match step.odd {
                // Damaged on the way to the other end, which must not be hidden.
                18 => *packet.last_mut().unwrap() ^= 1,
                19 if !v6 => packet[11] ^= 1,
                // A fragment.
                20 if !v6 => packet[6] |= 0x20,
                _ => {}
            }
            packets.push(packet);
            if flow.options.is_empty() {
                flow.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
            }
            (flow.flags, flow.urgent) = (flags, 0);
            flow.sequence = flow.sequence.wrapping_add(step.len as u32);
            flow.id = flow.id.wrapping_add(1);
        } else {
            let flow = &mut datagrams[step.flow - 2];
            flow.payload = payload;
            match step.odd {
                0 => flow.ip.tos ^= step.value & 3,
                1 => flow.ip.label = u32::from(step.value),
                2 => flow.ip.ttl ^= 1,
                3 => flow.id = flow.id.wrapping_add(u16::from(step.value)),
                _ => {}
            }
            let mut packet = flow.packet();
            let field = if v6 { 46 } else { 26 };
            match step.odd {
                // No checksum; a wrong one.
                4 => packet[field..field + 2].fill(0),
                5 => packet[field] ^= 0x40,
                _ => {}
            }
            packets.push(packet);
            flow.id = flow.id.wrapping_add(1);
        }
    }
    packets
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, ..ProptestConfig::default() })]

    #[test]
    fn cutting_undoes_putting_together(steps in steps(), v6: bool) {
        let packets = stream(&steps, v6);
        let written = coalesce(&packets);
        prop_assert_eq!(by_flow(&cut(&written)), by_flow(&packets));
        for (_, packet, _) in &written {
            prop_assert!(packet.len() <= 65_535);
        }
    }

    /// The other way round: what the kernel gives as one comes out as one, unless it is longer than a bundle.
    #[test]
    fn putting_together_undoes_cutting(payload in 1..60_000usize, size in 600..9_000usize, v6: bool, udp: bool) {
        let header = VirtioHeader {
            gso: match (udp, v6) {
                (true, _) => Gso::Udp,
                (_, true) => Gso::Tcp6,
                _ => Gso::Tcp4,
            },
            partial: Some((if v6 { 40 } else { 20 }, if udp { 6 } else { 16 })),
            gso_size: size as u16,
            ..VirtioHeader::default()
        };
        let whole = if udp {
            build::Udp { v6, payload: build::bytes(payload), ..build::Udp::default() }.packet()
        } else {
            build::Tcp { v6, flags: 0x18, payload: build::bytes(payload), ..build::Tcp::default() }.packet()
        };
        let packets = cut(&[(header, whole.clone(), payload.div_ceil(size))]);
        for packet in &packets {
            let ip = Ip::parse(packet).unwrap();
            prop_assert_eq!(ip.len, packet.len());
            if !ip.v6 {
                prop_assert!(u16_at(packet, 10).unwrap() != 0);
            }
        }
        let written = coalesce(&packets);
        let bundles = packets.len().div_ceil(super::gro::MAX_PACKETS);
        prop_assert_eq!(written.len(), bundles);
        if let [(got, bytes, _)] = &written[..] && packets.len() > 1 {
            prop_assert_eq!((got.gso, got.gso_size, got.partial), (header.gso, header.gso_size, header.partial));
            // All but the checksums: partial there, whole here.
            let field = usize::from(got.partial.unwrap().0 + got.partial.unwrap().1);
            prop_assert_eq!(&bytes[..field], &whole[..field]);
            prop_assert_eq!(&bytes[field + 2..], &whole[field + 2..]);
        }
    }
}

/// A plain stream makes as few bundles as the kernel would, and equal identifications with DF do not stand in the way.
#[test]
fn streams_go_together() {
    for v6 in [false, true] {
        for fixed in [false, true] {
            let packets: Vec<_> = (0..40u16)
                .map(|index| {
                    build::Tcp {
                        v6,
                        id: if fixed {
                            0
                        } else {
                            0xfff0_u16.wrapping_add(index)
                        },
                        sequence: u32::from(index) * 1400,
                        payload: build::bytes(1400),
                        flags: if index == 39 { 0x18 } else { 0x10 },
                        ..build::Tcp::default()
                    }
                    .packet()
                })
                .collect();
            let written = coalesce(&packets);
            assert_eq!(written.len(), 1);
            if v6 || !fixed {
                assert_eq!(cut(&written), packets);
            }
        }
    }
    // Two flows in turns.
    let packets: Vec<_> = (0..40u16)
        .map(|index| {
            build::Udp {
                port: 1 + index % 2,
                id: index / 2,
                payload: build::bytes(1200),
                ..build::Udp::default()
            }
            .packet()
        })
        .collect();
    assert_eq!(coalesce(&packets).len(), 2);
}

proptest! {
    #[test]
    fn no_bytes_panic(packets in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..120), 1..10), first in proptest::sample::select(vec![0x45u8, 0x46, 0x60])) {
        let packets: Vec<Vec<u8>> = packets
            .into_iter()
            .map(|mut packet| {
                let len = packet.len() as u16;
                if len > 42 {
                    packet[0] = first;
                    if first == 0x60 {
                        packet[4..6].copy_from_slice(&(len - 40).to_be_bytes());
                        packet[6] = 6;
                    } else {
                        packet[2..4].copy_from_slice(&len.to_be_bytes());
                        packet[9] = 17;
                    }
                }
                packet
            })
            .collect();
        let total: usize = coalesce(&packets).iter().map(|(.., count)| count).sum();
        prop_assert_eq!(total, packets.len());
    }
}
