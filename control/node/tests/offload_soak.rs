//! Millions of packets of mixed flows through everything a path does to them at its ends: cut, encrypted, lost, doubled
//! and reordered on the way, decrypted, put together, and cut again. What each flow brought is hashed at both ends.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hasher as _},
    time::{Duration, Instant},
};

use weft_core::{
    identity::NodeId,
    io::{SessionIndex, SessionOp},
    session::{Cipher, SessionKeys},
};
use weft_node::{
    data::session::{Arrival, Epoch, Store},
    offload::{
        gro::{Coalescer, Piece, Place, Sink, Takes},
        gso::Cut,
        virtio::{Gso, VirtioHeader},
    },
};

/// Packets, unless the time is over before: a slow machine still says how far it came.
const PACKETS: u64 = 3_000_000;
const LIMIT: Duration = Duration::from_secs(40);
/// Less than this and nothing was soaked.
const LEAST: u64 = 300_000;
const FLOWS: u64 = 48;
const BUFFER: usize = 9_216;
const TAG: usize = 16;

/// xorshift64*; the seed is fixed, so a failure comes again.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 32) % limit
    }
}

struct Flow {
    number: u64,
    sequence: u32,
    id: u16,
    size: usize,
}

impl Flow {
    fn tcp(&self) -> bool {
        self.number % 4 < 2
    }

    fn v6(&self) -> bool {
        self.number % 2 == 1
    }

    /// A super-packet of this flow, as the kernel would hand it over.
    fn packet(&mut self, random: &mut Random, out: &mut Vec<u8>) -> VirtioHeader {
        let payload = match random.below(8) {
            0 => 1 + random.below(100),
            1 => self.size as u64,
            _ => 1 + random.below(40 * self.size as u64).min(55_000),
        } as usize;
        let transport = if self.tcp() { 32 } else { 8 };
        let len = transport + payload;
        out.clear();
        let tos = if random.below(20) == 0 { 1 } else { 2 };
        if self.v6() {
            out.extend([0x60, tos << 4, 0, self.number as u8]);
            out.extend((len as u16).to_be_bytes());
            out.extend([if self.tcp() { 6 } else { 17 }, 64]);
            out.extend([0xfd; 31]);
            out.push(self.number as u8);
        } else {
            out.extend([0x45, tos]);
            out.extend((20 + len as u16).to_be_bytes());
            out.extend(self.id.to_be_bytes());
            out.extend([0x40, 0, 64, if self.tcp() { 6 } else { 17 }, 0, 0]);
            out.extend([10, 0, 0, self.number as u8, 10, 0, 1, 1]);
        }
        out.extend((1000 + self.number as u16).to_be_bytes());
        out.extend(80u16.to_be_bytes());
        if self.tcp() {
            out.extend(self.sequence.to_be_bytes());
            out.extend(7u32.to_be_bytes());
            let flags = [0x10, 0x18, 0x90, 0x19][(random.below(40) as usize).min(3)];
            out.extend([0x80, flags, 1, 0, 0, 0, 0, 0]);
            out.extend([1, 1, 8, 10, 0, 0, 0, random.below(3) as u8, 0, 0, 0, 1]);
        } else {
            out.extend((len as u16).to_be_bytes());
            out.extend([0, 0]);
        }
        let mut word = random.next();
        out.extend((0..payload).map(|index| {
            word = word.rotate_left(7) ^ index as u64;
            word as u8
        }));
        self.sequence = self.sequence.wrapping_add(payload as u32);
        self.id = self.id.wrapping_add(payload.div_ceil(self.size) as u16);
        let start = if self.v6() { 40 } else { 20 };
        VirtioHeader {
            partial: Some((start, if self.tcp() { 16 } else { 6 })),
            gso: match (self.tcp(), self.v6()) {
                (true, true) => Gso::Tcp6,
                (true, false) => Gso::Tcp4,
                _ => Gso::Udp,
            },
            gso_size: self.size as u16,
            ..VirtioHeader::default()
        }
    }
}

/// The flow a packet is of, by its source port, and its bytes hashed onto what the flow brought before.
fn note(flows: &mut HashMap<u16, u64>, packet: &[u8]) {
    let at = if packet[0] >> 4 == 6 { 40 } else { 20 };
    let port = u16::from_be_bytes([packet[at], packet[at + 1]]);
    let hash = flows.entry(port).or_default();
    let mut hasher = DefaultHasher::new();
    hasher.write_u64(*hash);
    hasher.write(packet);
    *hash = hasher.finish();
}

struct Far<'a> {
    memory: &'a [u8],
    flows: &'a mut HashMap<u16, u64>,
    packets: u64,
    bundles: u64,
    scratch: Vec<u8>,
}

impl Sink for Far<'_> {
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], packets: usize) {
        self.scratch.clear();
        self.scratch.extend(head);
        for piece in pieces {
            self.scratch
                .extend(&self.memory[piece.start as usize..][..piece.len as usize]);
        }
        self.packets += packets as u64;
        if virtio.gso == Gso::None {
            return note(self.flows, &self.scratch);
        }
        self.bundles += 1;
        let cut = Cut::new(virtio, &self.scratch).unwrap();
        assert_eq!(cut.segments(), packets);
        let mut out = [0; BUFFER];
        for index in 0..packets {
            let len = cut.write(&self.scratch, index, &mut out).unwrap();
            note(self.flows, &out[..len]);
        }
    }
}

fn epoch() -> std::sync::Arc<Epoch> {
    let overlay = "fd00:1:2::/48".parse().unwrap();
    let mut store = Store::new("fd00:1:2::1".parse().unwrap(), overlay, &[]);
    let session = SessionIndex(0);
    let keys = SessionKeys {
        cipher: Cipher::Aes256Gcm,
        tx: [5; 32],
        rx: [5; 32],
    };
    for op in [
        SessionOp::Install {
            session,
            peer: NodeId([2; 32]),
            address: "fd00:1:2::2".parse().unwrap(),
        },
        SessionOp::AddEpoch {
            session,
            epoch: 3,
            keys,
        },
        SessionOp::UseEpoch { session, epoch: 3 },
    ] {
        store.apply(op);
    }
    let table = store.publish().unwrap();
    table.session(session).unwrap().sending().unwrap().clone()
}

#[test]
fn millions_of_packets_arrive_as_they_left() {
    let began = Instant::now();
    let mut random = Random(0x5eed_0001);
    let epoch = epoch();
    let mut flows: Vec<_> = (0..FLOWS)
        .map(|number| Flow {
            number,
            sequence: u32::MAX - 1_000_000,
            id: 0xff00,
            size: [1_388, 1_388, 536, 1_200, 8_800][(number / 4 % 5) as usize],
        })
        .collect();
    let (mut near_hashes, mut far_hashes) = (HashMap::new(), HashMap::new());
    let mut coalescer = Coalescer::new(Takes {
        tcp: true,
        udp: true,
    });
    // The wire: what is under way, each with its counter.
    let mut wire: Vec<(u64, Vec<u8>)> = vec![];
    let mut spare: Vec<Vec<u8>> = vec![];
    let mut memory = vec![0; 64 * BUFFER];
    let mut whole = vec![];
    let (mut packets, mut lost, mut doubled, mut arrived, mut bundles) =
        (0u64, 0u64, 0u64, 0u64, 0u64);
    while packets < PACKETS && began.elapsed() < LIMIT {
        // A few flows at a time, as in any second of a network.
        let flow = (packets / 4_000 * 5 + random.below(5)) % FLOWS;
        let header = flows[flow as usize].packet(&mut random, &mut whole);
        let cut = Cut::new(&header, &whole).unwrap();
        let first = epoch.take(cut.segments()).unwrap();
        for index in 0..cut.segments() {
            packets += 1;
            let mut datagram = spare.pop().unwrap_or_default();
            datagram.resize(BUFFER, 0);
            let len = cut.write(&whole, index, &mut datagram).unwrap();
            let counter = first + index as u64;
            let sealed = epoch.seal(counter, &mut datagram, len).unwrap();
            assert_eq!(sealed, len + TAG);
            datagram.truncate(sealed);
            match random.below(200) {
                0 | 1 => {
                    lost += 1;
                    spare.push(datagram);
                    continue;
                }
                2 => {
                    doubled += 1;
                    wire.push((counter, datagram.clone()));
                }
                _ => {}
            }
            wire.push((counter, datagram));
            // Overtakes some that left before it.
            if random.below(50) == 0 {
                let last = wire.len() - 1;
                let before = last.saturating_sub(random.below(30) as usize);
                wire.swap(before, last);
            }
        }
        while wire.len() >= 128 {
            let mut batch = vec![];
            for (index, (counter, datagram)) in wire.drain(..64).enumerate() {
                let start = index * BUFFER;
                memory[start..start + datagram.len()].copy_from_slice(&datagram);
                batch.push(Arrival {
                    counter,
                    start,
                    len: datagram.len(),
                    label: 1,
                    tos: 0,
                    outcome: Ok(()),
                });
                spare.push(datagram);
            }
            epoch.open(&mut batch, &mut memory);
            let mut far = Far {
                memory: &memory,
                flows: &mut far_hashes,
                packets: 0,
                bundles: 0,
                scratch: vec![],
            };
            for arrival in batch.iter().filter(|arrival| arrival.outcome.is_ok()) {
                let packet = &memory[arrival.start..arrival.start + arrival.len];
                // What came through the wire, in the order in which it did.
                note(&mut near_hashes, packet);
                arrived += 1;
                let place = Place {
                    buffer: 0,
                    start: arrival.start as u32,
                };
                coalescer.push(packet, place, &mut far);
            }
            coalescer.flush(&mut far);
            bundles += far.bundles;
        }
    }
    println!(
        "{packets} packets, {lost} lost, {doubled} doubled, {arrived} arrived, {bundles} bundles, {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert!(packets >= LEAST, "{packets} packets in {LIMIT:?}");
    assert_eq!(near_hashes, far_hashes);
    assert_eq!(near_hashes.len() as u64, FLOWS);
    assert!(arrived > packets * 9 / 10 && bundles > packets / 200);
}
