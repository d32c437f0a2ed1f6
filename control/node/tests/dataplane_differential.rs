//! More than a million random and mutated packets through the loaded XDP program and through the user-space forwarder:
//! same action, same bytes, same counters, same tables. Every verdict and every drop reason must have occurred.

mod dataplane_support;

use dataplane_support::*;
use weft_abi::{DropReason, Kind, Label, LabelEntry, Slot, TagKey, Verdict};

const PACKETS: u32 = 1_050_000;
/// Tables and counters are compared after so many packets.
const STEP: u32 = 7_000;
const SEED: u64 = 0x0057_6566_7421;

/// Makes packets that get far more often than random bytes would, and then breaks some.
struct Generator {
    random: Random,
    /// Highest sequence number sent, by slot and lane.
    seqs: [[u32; 16]; MAX_SLOTS as usize],
    /// Frames to repeat.
    recent: Vec<Vec<u8>>,
}

impl Generator {
    fn new() -> Self {
        Self {
            random: Random(SEED),
            seqs: [[0; 16]; MAX_SLOTS as usize],
            recent: Vec::new(),
        }
    }

    fn packet(&mut self) -> Vec<u8> {
        if self.random.one_in(20) && !self.recent.is_empty() {
            let again = self.random.below(self.recent.len() as u64) as usize;
            return self.recent[again].clone();
        }
        let packet = if self.random.one_in(40) {
            self.noise()
        } else {
            self.built()
        };
        if self.recent.len() < 64 {
            self.recent.push(packet.clone());
        } else {
            let at = self.random.below(64) as usize;
            self.recent[at] = packet.clone();
        }
        packet
    }

    /// Random bytes, of which some look like IP.
    fn noise(&mut self) -> Vec<u8> {
        let len = self.random.below(200) as usize + 14;
        let mut packet = self.random.bytes(len);
        match self.random.below(3) {
            0 => packet[12..14].copy_from_slice(&[0x08, 0x00]),
            1 => packet[12..14].copy_from_slice(&[0x86, 0xdd]),
            _ => {}
        }
        packet
    }

    fn seq(&mut self, slot: u16, lane: u8) -> u32 {
        let step = match self.random.below(400) {
            0 => self.random.below(5000) as u32,
            1..50 => 2,
            _ => 1,
        };
        let back = match self.random.below(30) {
            0 => self.random.below(3000) as u32,
            1..4 => self.random.below(40) as u32,
            _ => 0,
        };
        let Some(highest) = self
            .seqs
            .get_mut(usize::from(slot))
            .map(|lanes| &mut lanes[usize::from(lane)])
        else {
            return self.random.word() as u32;
        };
        *highest = highest.wrapping_add(step);
        highest.saturating_sub(back)
    }

    fn stack(&mut self) -> Vec<LabelEntry> {
        let depth = match self.random.below(10) {
            0..6 => 1,
            6..9 => 2,
            _ => self.random.below(11) as usize + 1,
        };
        let mut stack = Vec::new();
        // A stack of our own labels alone, deeper than is looked at.
        let only_ours = depth > 8 && self.random.one_in(2);
        for at in 0..depth {
            let label = match self.random.below(12) {
                _ if only_ours => POP_ON,
                0 => self.random.below(1 << 20) as u32,
                1..5 if at + 1 < depth => POP_ON,
                _ => self.random.pick(&LABELS),
            };
            let ttl = match self.random.below(10) {
                0 => self.random.below(3) as u8,
                _ => self.random.word() as u8,
            };
            // Now and then the bottom is missing, or too high up.
            let bottom = (at + 1 == depth) != self.random.one_in(25);
            stack.push(LabelEntry::new(
                Label(label),
                self.random.word() as u8,
                bottom,
                ttl,
            ));
        }
        stack
    }

    fn built(&mut self) -> Vec<u8> {
        let slot = match self.random.below(60) {
            0 => self.random.word() as u16,
            1 => SLOT_RETIRED,
            2..5 => SLOT_ONE_WAY,
            5..8 => SLOT_SOFTWARE_ECHO,
            8..11 => SLOT_SMALL_ECHO,
            11..35 => SLOT_V6,
            _ => SLOT_V4,
        };
        let lane = self.random.below(16) as u8;
        let kind = self.random.pick(&[
            Kind::Labelled,
            Kind::Labelled,
            Kind::Labelled,
            Kind::Labelled,
            Kind::Labelled,
            Kind::Control,
            Kind::Probe,
            Kind::Probe,
            Kind::Handshake,
        ]);
        let seq = self.seq(slot, lane);
        let len = match self.random.below(40) {
            0 => self.random.below(5000) as usize,
            1..4 => self.random.below(8) as usize,
            _ => self.random.below(120) as usize + 8,
        };
        let rest = self.random.bytes(len);
        let mut datagram = match kind {
            Kind::Labelled => {
                let stack = self.stack();
                Datagram::labelled(slot, lane, seq, &stack, &rest)
            }
            Kind::Handshake => Datagram::other(kind, 0, lane, seq, &rest),
            Kind::Control => Datagram::other(kind, slot, lane, seq, &[&[0; 4][..], &rest].concat()),
            Kind::Probe => {
                let direction = self.random.below(2) as u8;
                Datagram::other(
                    kind,
                    slot,
                    lane,
                    seq,
                    &[&[direction, 0, 0, 0][..], &rest].concat(),
                )
            }
        };
        // Wrong before the tag is made: only the named check can find it.
        match self.random.below(150) {
            0 => datagram.version = self.random.below(16) as u8,
            1 => datagram.kind = self.random.below(16) as u8,
            2 => datagram.reserved = self.random.below(16) as u8,
            3 if !datagram.body.is_empty() => {
                let at = self.random.below(datagram.body.len().min(4) as u64) as usize;
                datagram.body[at] ^= self.random.word() as u8;
            }
            _ => {}
        }
        let key = match datagram.kind {
            2 => NETWORK_KEY,
            _ if self.random.one_in(60) => TagKey([self.random.word() as u8; 16]),
            _ => slot_key(slot),
        };
        let mut payload = datagram.bytes(key);
        if self.random.one_in(30) {
            let at = self.random.below(payload.len() as u64) as usize;
            payload[at] ^= 1 << self.random.below(8);
        }

        // IPv4 slots may be reached over IPv6 and the other way round: the address decides, not the link.
        let v6 = slot_is_v6(slot) != self.random.one_in(20);
        let mut underlay = Underlay::incoming(v6);
        underlay.tos = self.random.word() as u8;
        underlay.ttl = self.random.word() as u8;
        underlay.checksum = self.random.word() as u16;
        match self.random.below(60) {
            0 => underlay
                .destination
                .set_ip(ip(if v6 { OTHER_V6 } else { OTHER_V4 })),
            1 => underlay.destination.set_port(self.random.word() as u16),
            2 => underlay
                .source
                .set_ip(ip(if v6 { OTHER_V6 } else { OTHER_V4 })),
            3 if !v6 => underlay.destination.set_ip(ip(SECOND_V4)),
            _ => {}
        }
        let frame = underlay.frame(&payload);
        self.distort(frame, v6)
    }

    /// Options, fragments, extension headers, wrong lengths, changed bytes.
    fn distort(&mut self, mut frame: Vec<u8>, v6: bool) -> Vec<u8> {
        let headers = if v6 { 62 } else { 42 };
        match self.random.below(120) {
            0 => {
                let at = self.random.below(frame.len().min(headers + 28) as u64) as usize;
                frame[at] ^= self.random.word() as u8;
            }
            1 => frame.truncate(self.random.below(frame.len() as u64).max(14) as usize),
            2 => {
                let more = self.random.below(30) as usize + 1;
                frame.extend(self.random.bytes(more));
            }
            3 if !v6 => {
                let words = self.random.below(10) as usize + 1;
                let options = self.random.bytes(words * 4);
                frame[14] = 0x45 + words as u8;
                frame.splice(34..34, options);
            }
            4 if !v6 => frame[20] = self.random.word() as u8,
            3 | 4 => {
                let mut first = 17;
                for _ in 0..self.random.below(4) + 1 {
                    let kind = self.random.pick(&[0, 43, 44, 60, 60, 51]);
                    let units = if kind == 44 {
                        0
                    } else {
                        self.random.below(3) as u8
                    };
                    let mut header = self.random.bytes(8 + usize::from(units) * 8);
                    (header[0], header[1]) = (first, units);
                    if kind == 44 && !self.random.one_in(3) {
                        (header[2], header[3]) = (0, 1);
                    }
                    frame.splice(54..54, header);
                    first = kind;
                }
                frame[20] = first;
            }
            5 => {
                let at = if v6 { 18 } else { 16 };
                frame[at + 1] = frame[at + 1].wrapping_add(self.random.below(9) as u8);
            }
            6 => {
                let at = headers - 4;
                frame[at + 1] = frame[at + 1].wrapping_sub(self.random.below(9) as u8);
            }
            _ => {}
        }
        frame
    }
}

#[test]
fn kernel_and_user_space_agree() {
    let mut pair = match Pair::open("differential") {
        Ok(pair) => pair,
        Err(reason) => skip!("{reason}"),
    };
    // Slots above those in use must not be hit by chance with a link behind them.
    assert_eq!(pair.kernel.slot_counters(Slot(SLOT_UNUSED)).received, 0);
    let mut generator = Generator::new();
    let mut v6_out = 0;
    let mut v4_out = 0;
    for n in 0..PACKETS {
        let packet = generator.packet();
        // Little room makes the growth from IPv4 to IPv6 fail. The kernel takes no metadata with frames of several
        // buffers, which is how headroom is made small.
        let room = if generator.random.one_in(50) && packet.len() < 3000 {
            16
        } else {
            216
        };
        let kernel = pair.run_kernel(&packet, room);
        let (user, outcome) = pair.run_user(&packet, room);
        if kernel != user {
            let name = outcome.name();
            panic!(
                "packet {n} of seed {SEED:#x} ({name} in user space): {packet:02x?}\n{kernel:02x?}\n{user:02x?}"
            );
        }
        if kernel.action == REDIRECT {
            match kernel.packet[12] {
                0x08 => v4_out += 1,
                _ => v6_out += 1,
            }
        }
        if n % STEP == 0 {
            pair.assert_same_tables(&format!("after packet {n} of seed {SEED:#x}"));
        }
    }
    pair.assert_same_tables("at the end");

    let counts = pair.kernel.counters().kernel;
    for verdict in Verdict::ALL {
        println!(
            "{:>16} {:>9}",
            verdict.name(),
            counts.verdicts[verdict as usize]
        );
    }
    for reason in DropReason::ALL {
        println!("{:>16} {:>9}", reason.name(), counts.drops[reason as usize]);
    }
    let total: u64 = counts.verdicts.iter().chain(&counts.drops).sum();
    assert_eq!(total, u64::from(PACKETS), "every packet is counted once");
    for verdict in Verdict::ALL {
        assert!(
            counts.verdicts[verdict as usize] >= 100,
            "{} hardly occurred",
            verdict.name()
        );
    }
    for reason in DropReason::ALL {
        assert!(
            counts.drops[reason as usize] >= 100,
            "{} hardly occurred",
            reason.name()
        );
    }
    assert!(
        v4_out > 10_000 && v6_out > 10_000,
        "{v4_out} left over IPv4, {v6_out} over IPv6"
    );
}
