//! Fixtures: one packet in, one verdict and one packet out, for each verdict and each drop reason, through the loaded
//! XDP program and through the user-space forwarder. What should come out is made by hand here.

mod dataplane_support;

use std::net::SocketAddr;

use dataplane_support::*;
use weft_abi::{
    DropReason, Fate, Kind, Label, LabelEntry, NextHopIndex, Slot, TAG_OFFSET, TagKey, Verdict,
    WINDOW_BITS,
};

/// Session counter and something like ciphertext.
const REST: [u8; 40] = [0xa5; 40];

struct Fixture {
    name: &'static str,
    packet: Vec<u8>,
    /// Bytes before the frame that it may grow into.
    room: usize,
    expected: Expected,
}

enum Expected {
    /// Up, as it came.
    Untouched(Verdict),
    /// Up, with the cookie.
    Marked(Verdict, bool),
    HandedUp(DropReason, bool),
    Drop(DropReason),
    Out(Verdict, Vec<u8>),
}

fn entry(label: u32, bottom: bool, ttl: u8) -> LabelEntry {
    LabelEntry::new(Label(label), 5, bottom, ttl)
}

/// A packet with one label, for lane 3 of a slot.
fn single(slot: u16, seq: u32, label: u32, ttl: u8) -> Datagram {
    Datagram::labelled(slot, 3, seq, &[entry(label, true, ttl)], &REST)
}

fn frame(datagram: &Datagram) -> Vec<u8> {
    let v6 = slot_is_v6(datagram.slot);
    Underlay::incoming(v6).frame(&datagram.bytes(slot_key(datagram.slot)))
}

/// The packet that leaves on `hop` with sequence number `seq`.
fn sent(hop: u32, seq: u32, datagram: Datagram) -> Vec<u8> {
    let tos = Underlay::incoming(false).tos;
    let datagram = Datagram {
        slot: hop_slot(hop),
        seq,
        ..datagram
    };
    Underlay::outgoing(hop, tos).frame(&datagram.bytes(hop_key(hop)))
}

fn check(pair: &mut Pair, fixture: Fixture) {
    let Fixture {
        name,
        packet,
        room,
        expected,
    } = fixture;
    let before = pair.kernel.counters().kernel;
    let tables = pair.kernel.shared().dump();
    let kernel = pair.run_kernel(&packet, room);
    let (user, outcome) = pair.run_user(&packet, room);
    assert_eq!(kernel, user, "{name}: kernel and user space differ");

    let (action, bytes, fate, counted) = match expected {
        Expected::Untouched(verdict) => (PASS, packet, Fate::Up, verdict.name()),
        Expected::Marked(verdict, v6) => (PASS, marked(&packet, v6), Fate::Up, verdict.name()),
        Expected::HandedUp(reason, v6) => (PASS, marked(&packet, v6), Fate::HandUp, reason.name()),
        Expected::Drop(reason) => (DROP, packet, Fate::Drop, reason.name()),
        Expected::Out(verdict, bytes) => (REDIRECT, bytes, Fate::Out, verdict.name()),
    };
    assert_eq!(outcome.name(), counted, "{name}");
    assert_eq!(outcome.fate, fate, "{name}");
    assert_eq!(kernel.action, action, "{name}: action");
    assert_eq!(hex(&kernel.packet), hex(&bytes), "{name}: packet");

    // Exactly one counter moved, the named one.
    let after = pair.kernel.counters().kernel;
    let mut moved = Vec::new();
    for verdict in Verdict::ALL {
        let i = verdict as usize;
        moved.extend(
            (after.verdicts[i] != before.verdicts[i])
                .then_some((verdict.name(), after.verdicts[i] - before.verdicts[i])),
        );
    }
    for reason in DropReason::ALL {
        let i = reason as usize;
        moved.extend(
            (after.drops[i] != before.drops[i])
                .then_some((reason.name(), after.drops[i] - before.drops[i])),
        );
    }
    assert_eq!(moved, [(counted, 1)], "{name}: counters");

    // What did not verify changed no table.
    let unverified = matches!(
        counted,
        "pass"
            | "handshake"
            | "too_short"
            | "bad_length"
            | "ip_options"
            | "fragment"
            | "bad_version"
            | "bad_kind"
            | "bad_reserved"
            | "unknown_slot"
            | "stale_epoch"
            | "bad_tag"
            | "replay"
            | "seq_too_old"
    );
    if unverified && counted != "too_short" || name.starts_with("unverified") {
        assert_eq!(
            tables,
            pair.kernel.shared().dump(),
            "{name}: a table changed"
        );
    }
    pair.assert_same_tables(name);
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Counts up per lane, as a neighbour does.
struct Sequence(u32);

impl Sequence {
    fn next(&mut self) -> u32 {
        self.0 += 1;
        self.0
    }
}

fn run(part: &str, fixtures: impl FnOnce(&mut Sequence) -> Vec<Fixture>) {
    let mut pair = match Pair::open(part) {
        Ok(pair) => pair,
        Err(reason) => skip!("{reason}"),
    };
    for fixture in fixtures(&mut Sequence(0)) {
        check(&mut pair, fixture);
    }
}

fn fixture(name: &'static str, packet: Vec<u8>, expected: Expected) -> Fixture {
    Fixture {
        name,
        packet,
        room: 216,
        expected,
    }
}

#[test]
fn verdicts() {
    run("verdicts", |seq| {
        let mut all = Vec::new();
        let mut v4_seq = 0;
        let mut v6_seq = 0;
        let mut next = |hop: u32| {
            let seq = if hop == HOP_V6 {
                &mut v6_seq
            } else {
                &mut v4_seq
            };
            *seq += 1;
            *seq
        };
        for (slot, family) in [(SLOT_V4, "v4"), (SLOT_V6, "v6")] {
            let v6 = slot_is_v6(slot);
            for (label, name) in [
                (SWAP_V4, "swap to v4"),
                (SWAP_V6, "swap to v6"),
                (SWAP_BACKUP, "swap to backup"),
            ] {
                let hop = hop_of(label);
                let out = single(0, 0, out_label(label), 63);
                let packet = frame(&single(slot, seq.next(), label, 64));
                all.push(fixture(
                    name,
                    packet,
                    Expected::Out(Verdict::Swap, sent(hop, next(hop), out)),
                ));
            }
            for (label, name) in [(POP_V4, "pop to v4"), (POP_V6, "pop to v6")] {
                let hop = hop_of(label);
                for (outer, inner, left) in [(64, 200, 63), (200, 30, 30), (2, 2, 1)] {
                    let stack = [entry(label, false, outer), entry(777, true, inner)];
                    let packet = frame(&Datagram::labelled(slot, 3, seq.next(), &stack, &REST));
                    let out = Datagram::labelled(0, 3, 0, &[entry(777, true, left)], &REST);
                    all.push(fixture(
                        name,
                        packet,
                        Expected::Out(Verdict::Pop, sent(hop, next(hop), out)),
                    ));
                }
            }
            // Two labels of our own, then one to swap: the time to live is the least of all.
            let stack = [
                entry(POP_ON, false, 9),
                entry(POP_ON, false, 60),
                entry(SWAP_V4, true, 50),
            ];
            let packet = frame(&Datagram::labelled(slot, 3, seq.next(), &stack, &REST));
            let out = Datagram::labelled(0, 3, 0, &[entry(out_label(SWAP_V4), true, 8)], &REST);
            let out = sent(HOP_V4, next(HOP_V4), out);
            all.push(fixture(
                "pop and continue",
                packet,
                Expected::Out(Verdict::Swap, out),
            ));
            let stack = [entry(SWAP_V6, false, 9), entry(4000, true, 200)];
            let packet = frame(&Datagram::labelled(slot, 3, seq.next(), &stack, &REST));
            let out = Datagram::labelled(
                0,
                3,
                0,
                &[entry(out_label(SWAP_V6), false, 8), stack[1]],
                &REST,
            );
            let out = sent(HOP_V6, next(HOP_V6), out);
            all.push(fixture(
                "swap above others",
                packet,
                Expected::Out(Verdict::Swap, out),
            ));

            let deliver = Expected::Marked(Verdict::Deliver, v6);
            all.push(fixture(
                "deliver",
                frame(&single(slot, seq.next(), DELIVER, 1)),
                deliver,
            ));
            let stack = [entry(POP_ON, false, 64), entry(DELIVER, true, 64)];
            let packet = frame(&Datagram::labelled(slot, 3, seq.next(), &stack, &REST));
            all.push(fixture(
                "pop and deliver",
                packet,
                Expected::Marked(Verdict::Deliver, v6),
            ));
            let packet = frame(&single(slot, seq.next(), SWAP_SOFTWARE, 64));
            all.push(fixture(
                "software",
                packet,
                Expected::Marked(Verdict::Software, v6),
            ));

            let mut body = [0; 60];
            body[4..12].copy_from_slice(&7u64.to_be_bytes());
            let packet = frame(&Datagram::other(Kind::Control, slot, 0, seq.next(), &body));
            all.push(fixture(
                "control",
                packet,
                Expected::Marked(Verdict::Control, v6),
            ));

            let hop = if v6 { HOP_V6 } else { HOP_V4 };
            let packet = frame(&Datagram::other(Kind::Probe, slot, 3, seq.next(), &body));
            let mut echo = body;
            echo[0] = 1;
            let out = sent(hop, next(hop), Datagram::other(Kind::Probe, 0, 3, 0, &echo));
            all.push(fixture(
                "probe",
                packet,
                Expected::Out(Verdict::ProbeEchoed, out),
            ));
            let packet = frame(&Datagram::other(Kind::Probe, slot, 0, seq.next(), &echo));
            all.push(fixture(
                "probe reply",
                packet,
                Expected::Marked(Verdict::ProbeReply, v6),
            ));

            let hello = Datagram::other(Kind::Handshake, 0, 0, 99, &[7; 100]).bytes(NETWORK_KEY);
            let packet = Underlay::incoming(v6).frame(&hello);
            all.push(fixture(
                "handshake",
                packet.clone(),
                Expected::Untouched(Verdict::Handshake),
            ));
            all.push(fixture(
                "handshake again",
                packet,
                Expected::Untouched(Verdict::Handshake),
            ));

            let mut other = Underlay::incoming(v6);
            other
                .destination
                .set_ip(ip(if v6 { OTHER_V6 } else { OTHER_V4 }));
            let packet = other.frame(&hello);
            all.push(fixture(
                "handshake to another host",
                packet,
                Expected::Untouched(Verdict::Pass),
            ));
            let packet = other.frame(&single(slot, seq.next(), SWAP_V4, 64).bytes(slot_key(slot)));
            all.push(fixture(
                "labelled to another host",
                packet,
                Expected::Untouched(Verdict::Pass),
            ));
            let packet = other.frame(&[1, 2, 3]);
            all.push(fixture(
                "malformed to another host",
                packet,
                Expected::Untouched(Verdict::Pass),
            ));
            let mut port = Underlay::incoming(v6);
            port.destination.set_port(PORT + 1);
            let packet = port.frame(&single(slot, seq.next(), SWAP_V4, 64).bytes(slot_key(slot)));
            all.push(fixture(
                "another port",
                packet,
                Expected::Untouched(Verdict::Pass),
            ));
            let mut packet = frame(&single(slot, seq.next(), SWAP_V4, 64));
            packet[14 + if v6 { 6 } else { 9 }] = 6;
            all.push(fixture("TCP", packet, Expected::Untouched(Verdict::Pass)));
            println!("{family}: {} fixtures so far", all.len());
        }
        // The host got another address; the neighbour sends there already.
        let mut second = Underlay::incoming(false);
        second.destination.set_ip(ip(SECOND_V4));
        let packet =
            second.frame(&single(SLOT_V4, seq.next(), SWAP_V4, 64).bytes(slot_key(SLOT_V4)));
        let out = sent(HOP_V4, next(HOP_V4), single(0, 0, out_label(SWAP_V4), 63));
        all.push(fixture(
            "to our second address",
            packet,
            Expected::Out(Verdict::Swap, out),
        ));
        let echo = Datagram::other(Kind::Probe, SLOT_SOFTWARE_ECHO, 0, 1, &[0; 12]);
        all.push(fixture(
            "probe, echoed by the daemon",
            frame(&echo),
            Expected::Marked(Verdict::Software, false),
        ));
        let mut arp = vec![0xff; 12];
        arp.extend_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
        all.push(fixture("ARP", arp, Expected::Untouched(Verdict::Pass)));
        let vlan = [
            &[9; 12][..],
            &[0x81, 0, 0, 5],
            &frame(&single(SLOT_V4, 1, SWAP_V4, 64))[12..],
        ]
        .concat();
        all.push(fixture("VLAN", vlan, Expected::Untouched(Verdict::Pass)));
        all.push(fixture(
            "an Ethernet header alone",
            vec![9; 14],
            Expected::Untouched(Verdict::Pass),
        ));
        all
    });
}

#[test]
fn drops_before_the_tag() {
    run("before", |_| {
        let mut all = Vec::new();
        for slot in [SLOT_V4, SLOT_V6] {
            let v6 = slot_is_v6(slot);
            let ip_len = if v6 { 40 } else { 20 };
            let good = frame(&single(slot, 500, SWAP_V4, 64));
            let at = 14 + ip_len + 8;
            let mut push =
                |name, packet, reason| all.push(fixture(name, packet, Expected::Drop(reason)));

            for len in 0..28 {
                let packet = Underlay::incoming(v6).frame(&good[at..at + len]);
                push(
                    "unverified: shorter than the fixed part",
                    packet,
                    DropReason::TooShort,
                );
            }
            push(
                "truncated",
                good[..good.len() - 1].to_vec(),
                DropReason::BadLength,
            );
            push(
                "over-long",
                [&good[..], &[0]].concat(),
                DropReason::BadLength,
            );
            let mut packet = good.clone();
            packet[14 + ip_len + 5] += 1;
            push("UDP longer than IP", packet, DropReason::BadLength);
            let mut packet = good.clone();
            packet[14 + ip_len + 4..14 + ip_len + 6].copy_from_slice(&[0, 7]);
            push("UDP shorter than its header", packet, DropReason::BadLength);
            let mut packet = good.clone();
            let ip_len_at = if v6 { 18 } else { 16 };
            packet[ip_len_at + 1] = packet[ip_len_at + 1].wrapping_add(4);
            push("IP longer than the frame", packet, DropReason::BadLength);

            let mutate = |at: usize, to: u8| {
                let mut packet = good.clone();
                packet[at] = to;
                packet
            };
            push("version 2", mutate(at, 0x21), DropReason::BadVersion);
            push("version 0", mutate(at, 0x01), DropReason::BadVersion);
            push("kind 0", mutate(at, 0x10), DropReason::BadKind);
            push("kind 5", mutate(at, 0x15), DropReason::BadKind);
            push(
                "reserved bits",
                mutate(at + 1, 0x31),
                DropReason::BadReserved,
            );
            push("slot 0", mutate(at + 3, 0), DropReason::UnknownSlot);
            push(
                "slot never given out",
                mutate(at + 3, SLOT_UNUSED as u8),
                DropReason::UnknownSlot,
            );
            push(
                "slot beyond the table",
                mutate(at + 2, 0xff),
                DropReason::UnknownSlot,
            );
            push(
                "stale epoch",
                mutate(at + 3, SLOT_RETIRED as u8),
                DropReason::StaleEpoch,
            );
            for byte in 4..20 {
                let packet = mutate(at + byte, good[at + byte] ^ 0x10);
                push("a changed byte", packet, DropReason::BadTag);
            }
            // Without the bottom of the stack the next eight bytes are labels, and covered like the first.
            let stack = [
                LabelEntry::new(Label(SWAP_V4), 0, false, 64),
                LabelEntry::new(Label(SWAP_V4), 0, true, 64),
            ];
            let deep = frame(&Datagram::labelled(slot, 0, 501, &stack, &[0xa5; 40]));
            for byte in 4..28 {
                let mut packet = deep.clone();
                packet[at + byte] ^= 0x10;
                push("a changed byte of a stack", packet, DropReason::BadTag);
            }
            push("another lane", mutate(at + 1, 0x40), DropReason::BadTag);
            let grown = [&good[at..], &[0]].concat();
            push(
                "a longer payload",
                Underlay::incoming(v6).frame(&grown),
                DropReason::BadTag,
            );
            let payload = single(slot, 500, SWAP_V4, 64).bytes(TagKey([0xee; 16]));
            push(
                "a stranger with the neighbour's address",
                Underlay::incoming(v6).frame(&payload),
                DropReason::BadTag,
            );
            let hello =
                Datagram::other(Kind::Handshake, 0, 0, 1, &[7; 100]).bytes(TagKey([0xee; 16]));
            push(
                "a stranger's handshake",
                Underlay::incoming(v6).frame(&hello),
                DropReason::BadTag,
            );
            let body = [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1];
            let control = Datagram::other(Kind::Control, slot, 0, 1, &body);
            push(
                "reserved bytes of control",
                frame(&control),
                DropReason::BadReserved,
            );
            let probe = Datagram::other(Kind::Probe, slot, 0, 1, &body);
            push(
                "reserved bytes of a probe",
                frame(&probe),
                DropReason::BadReserved,
            );
            let probe = Datagram::other(Kind::Probe, slot, 0, 1, &[2; 12]);
            push(
                "a probe neither asking nor answering",
                frame(&probe),
                DropReason::BadReserved,
            );
        }

        let good = frame(&single(SLOT_V4, 500, SWAP_V4, 64));
        let options = [
            &good[..14],
            &[0x46],
            &good[15..34],
            &[1, 1, 1, 1],
            &good[34..],
        ]
        .concat();
        all.push(fixture(
            "IPv4 options",
            options.clone(),
            Expected::Drop(DropReason::IpOptions),
        ));
        let mut packet = options;
        packet[14 + 24 + 3] ^= 1;
        all.push(fixture(
            "IPv4 options, another port",
            packet,
            Expected::Untouched(Verdict::Pass),
        ));
        let mut packet = good.clone();
        packet[20] = 0x20;
        all.push(fixture(
            "first IPv4 fragment",
            packet,
            Expected::Drop(DropReason::Fragment),
        ));
        let mut packet = good.clone();
        packet[20..22].copy_from_slice(&[0x00, 0x09]);
        all.push(fixture(
            "later IPv4 fragment",
            packet,
            Expected::Untouched(Verdict::Pass),
        ));
        let good = frame(&single(SLOT_V6, 500, SWAP_V4, 64));
        for (name, header, reason) in [
            ("hop-by-hop options", 0, DropReason::IpOptions),
            ("routing header", 43, DropReason::IpOptions),
            ("destination options", 60, DropReason::IpOptions),
            ("first IPv6 fragment", 44, DropReason::Fragment),
        ] {
            let extension = [17, 0, 0, 0, 0, 0, 0, 0];
            let mut packet = [&good[..54], &extension[..], &good[54..]].concat();
            packet[20] = header;
            all.push(fixture(name, packet.clone(), Expected::Drop(reason)));
            packet[54 + 8 + 3] ^= 1;
            all.push(fixture(name, packet, Expected::Untouched(Verdict::Pass)));
        }
        let mut packet = [&good[..54], &[17, 0, 0, 8, 0, 0, 0, 0], &good[54..]].concat();
        packet[20] = 44;
        all.push(fixture(
            "later IPv6 fragment",
            packet,
            Expected::Untouched(Verdict::Pass),
        ));
        let chain = [
            60, 0, 0, 0, 0, 0, 0, 0, 43, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0,
            0, 0, 0, 0,
        ];
        let mut packet = [&good[..54], &chain[..], &good[54..]].concat();
        packet[20] = 0;
        all.push(fixture(
            "three extension headers",
            packet,
            Expected::Drop(DropReason::IpOptions),
        ));
        all
    });
}

#[test]
fn stops_after_the_tag() {
    run("after", |seq| {
        let mut all = Vec::new();
        for slot in [SLOT_V4, SLOT_V6] {
            let v6 = slot_is_v6(slot);
            let mut up = |name, datagram: Datagram, reason| {
                all.push(fixture(
                    name,
                    frame(&datagram),
                    Expected::HandedUp(reason, v6),
                ));
            };
            up(
                "unknown label",
                single(slot, seq.next(), UNKNOWN, 64),
                DropReason::UnknownLabel,
            );
            up(
                "reserved label",
                single(slot, seq.next(), 3, 64),
                DropReason::UnknownLabel,
            );
            up(
                "label beyond the table",
                single(slot, seq.next(), 0xf_ffff, 64),
                DropReason::UnknownLabel,
            );
            for ttl in [0, 1] {
                up(
                    "time to live, swap",
                    single(slot, seq.next(), SWAP_V4, ttl),
                    DropReason::TtlExpired,
                );
                let stack = [entry(POP_V4, false, ttl), entry(777, true, 64)];
                let datagram = Datagram::labelled(slot, 3, seq.next(), &stack, &REST);
                up("time to live, pop", datagram, DropReason::TtlExpired);
                let stack = [entry(POP_ON, false, ttl), entry(SWAP_V4, true, 64)];
                let datagram = Datagram::labelled(slot, 3, seq.next(), &stack, &REST);
                up(
                    "time to live of a label of our own",
                    datagram,
                    DropReason::TtlExpired,
                );
            }
            up(
                "no next hop",
                single(slot, seq.next(), SWAP_NOWHERE, 64),
                DropReason::NoNextHop,
            );
            up(
                "no next hop to pop to",
                {
                    let stack = [entry(POP_NOWHERE, false, 64), entry(777, true, 64)];
                    Datagram::labelled(slot, 3, seq.next(), &stack, &REST)
                },
                DropReason::NoNextHop,
            );
            up(
                "next hop never added",
                single(slot, seq.next(), SWAP_MISSING, 64),
                DropReason::NoNextHop,
            );
            up(
                "no group",
                single(slot, seq.next(), SWAP_NO_GROUP, 64),
                DropReason::NoNextHop,
            );
            let fits = SMALL_MTU as usize - 28 - 20;
            let big = |len: usize, seq| {
                Datagram::labelled(slot, 3, seq, &[entry(SWAP_SMALL, true, 64)], &vec![1; len])
            };
            up(
                "one byte too big",
                big(fits + 1, seq.next()),
                DropReason::TooBig,
            );
            let out = big(fits, 0);
            let out = Datagram {
                body: [
                    &entry(out_label(SWAP_SMALL), true, 63).to_bytes()[..],
                    &out.body[4..],
                ]
                .concat(),
                ..out
            };
            let sequence = if v6 { 2 } else { 1 };
            let out = sent(HOP_SMALL, sequence, out);
            all.push(fixture(
                "just small enough",
                frame(&big(fits, seq.next())),
                Expected::Out(Verdict::Swap, out),
            ));

            let mut dropped = |name, datagram: Datagram, reason| {
                all.push(fixture(name, frame(&datagram), Expected::Drop(reason)));
            };
            dropped(
                "sequence numbers used up",
                single(slot, seq.next(), SWAP_EXHAUSTED, 64),
                DropReason::SeqExhausted,
            );
            dropped(
                "nothing under a popped label",
                single(slot, seq.next(), POP_ON, 64),
                DropReason::StackEmpty,
            );
            dropped(
                "nothing under a popped label",
                single(slot, seq.next(), POP_V4, 64),
                DropReason::StackEmpty,
            );
            let stack = [entry(DELIVER, false, 64), entry(777, true, 64)];
            let datagram = Datagram::labelled(slot, 3, seq.next(), &stack, &REST);
            dropped("deliver above others", datagram, DropReason::NotBottom);
            let stack = [entry(POP_ON, false, 64); 9];
            let datagram = Datagram::labelled(slot, 3, seq.next(), &stack, &REST);
            dropped("nine labels", datagram, DropReason::StackTooDeep);
            let stack = [entry(POP_ON, false, 64); 2];
            let datagram = Datagram::labelled(slot, 3, seq.next(), &stack, &[1; 8]);
            dropped("too short after popping", datagram, DropReason::TooShort);
            let datagram = Datagram::other(Kind::Probe, SLOT_SMALL_ECHO, 0, seq.next(), &[0; 100]);
            dropped("an echo that does not fit", datagram, DropReason::TooBig);
            let datagram = Datagram::other(Kind::Probe, SLOT_ONE_WAY, 0, seq.next(), &[0; 12]);
            dropped("no way to echo", datagram, DropReason::NoEcho);
        }
        let packet = frame(&single(SLOT_V4, seq.next(), SWAP_V6, 64));
        let expected = Expected::Drop(DropReason::RewriteFailed);
        all.push(Fixture {
            name: "no room for IPv6",
            packet,
            room: 16,
            expected,
        });
        let packet = frame(&single(SLOT_V4, seq.next(), SWAP_V6, 64));
        let out = single(0, 0, out_label(SWAP_V6), 63);
        let expected = Expected::Out(Verdict::Swap, sent(HOP_V6, 2, out));
        all.push(Fixture {
            name: "just enough room for IPv6",
            packet,
            room: 20,
            expected,
        });
        all
    });
}

#[test]
fn replay_window() {
    run("window", |_| {
        let mut all = Vec::new();
        let mut out_seq = 0;
        let mut accept = |all: &mut Vec<Fixture>, seq: u32| {
            out_seq += 1;
            let out = sent(HOP_V4, out_seq, single(0, 0, out_label(SWAP_V4), 63));
            let packet = frame(&single(SLOT_V4, seq, SWAP_V4, 64));
            all.push(fixture("new", packet, Expected::Out(Verdict::Swap, out)));
        };
        let refuse = |all: &mut Vec<Fixture>, name, seq: u32, reason| {
            all.push(fixture(
                name,
                frame(&single(SLOT_V4, seq, SWAP_V4, 64)),
                Expected::Drop(reason),
            ));
        };
        accept(&mut all, 1);
        refuse(&mut all, "replay of the first", 1, DropReason::Replay);
        accept(&mut all, 0);
        for seq in [100, 99, 101, 63, 64, 65, 31, 32, 33] {
            accept(&mut all, seq);
            refuse(&mut all, "replay after reordering", seq, DropReason::Replay);
        }
        accept(&mut all, 5000);
        accept(&mut all, 5000 - WINDOW_BITS + 1);
        refuse(
            &mut all,
            "behind the window",
            5000 - WINDOW_BITS,
            DropReason::SeqTooOld,
        );
        refuse(&mut all, "far behind the window", 1, DropReason::SeqTooOld);
        refuse(
            &mut all,
            "replay at the window's edge",
            5000 - WINDOW_BITS + 1,
            DropReason::Replay,
        );
        accept(&mut all, u32::MAX);
        refuse(&mut all, "replay of the last", u32::MAX, DropReason::Replay);
        refuse(&mut all, "long ago", 5000, DropReason::SeqTooOld);
        // A copy from another address is a copy all the same.
        let mut elsewhere = Underlay::incoming(false);
        elsewhere.source = SocketAddr::new(ip(OTHER_V4), 9);
        let packet =
            elsewhere.frame(&single(SLOT_V4, u32::MAX, SWAP_V4, 64).bytes(slot_key(SLOT_V4)));
        all.push(fixture(
            "replay from another source",
            packet,
            Expected::Drop(DropReason::Replay),
        ));
        all
    });
}

#[test]
fn a_lane_has_a_window_of_its_own() {
    run("lanes", |_| {
        let mut all = Vec::new();
        for lane in 0..16 {
            let mut datagram = single(SLOT_V4, 7, SWAP_V4, 64);
            datagram.lane = lane;
            let mut out = single(0, 0, out_label(SWAP_V4), 63);
            out.lane = lane;
            all.push(fixture(
                "lane",
                frame(&datagram),
                Expected::Out(Verdict::Swap, sent(HOP_V4, 1, out)),
            ));
        }
        all
    });
}

#[test]
fn next_hops_repair_with_one_write() {
    let mut pair = match Pair::open("repair") {
        Ok(pair) => pair,
        Err(reason) => skip!("{reason}"),
    };
    let set = |pair: &mut Pair, hop, up| {
        let op = weft_core::io::DataplaneOp::SetNextHopUp {
            index: NextHopIndex(hop),
            up,
        };
        pair.kernel.apply(&op).expect("a next hop");
        pair.user.apply(&op).expect("a next hop");
    };
    let run = |pair: &mut Pair, seq, expected| {
        let packet = frame(&single(SLOT_V4, seq, SWAP_V4, 64));
        check(pair, fixture("repair", packet, expected));
    };
    let out = |hop, seq| {
        Expected::Out(
            Verdict::Swap,
            sent(hop, seq, single(0, 0, out_label(SWAP_V4), 63)),
        )
    };
    run(&mut pair, 1, out(HOP_V4, 1));
    set(&mut pair, HOP_V4, false);
    run(&mut pair, 2, out(HOP_V6, 1));
    set(&mut pair, HOP_V6, false);
    run(
        &mut pair,
        3,
        Expected::HandedUp(DropReason::NoNextHop, false),
    );
    set(&mut pair, HOP_V4, true);
    run(&mut pair, 4, out(HOP_V4, 2));
}

#[test]
fn exceptions_are_sampled_with_what_they_were() {
    const PACKETS: u32 = 500;
    let mut pair = match Pair::open("events") {
        Ok(pair) => pair,
        Err(reason) => skip!("{reason}"),
    };
    assert!(pair.kernel.take_events(1000).is_empty());
    let begun = std::time::Instant::now();
    for seq in 1..=PACKETS {
        let mut packet = frame(&single(SLOT_V4, seq, SWAP_V4, 64));
        packet[14 + 20 + 8 + TAG_OFFSET] ^= 1;
        let expected = Expected::Drop(DropReason::BadTag);
        check(&mut pair, fixture("a wrong tag", packet, expected));
    }
    // One in ten milliseconds and processor, and one to begin with.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let most = (begun.elapsed().as_millis() as usize / 10 + 1) * processors;
    let events = pair.kernel.take_events(1000);
    assert!(
        (1..=most).contains(&events.len()),
        "{} events, {most} at most",
        events.len()
    );
    for event in &events {
        assert_eq!(event.reason, DropReason::BadTag);
        let path = event.path.map(|(from, to)| (from.ip(), to.ip()));
        assert_eq!(path, Some((ip(REMOTE_V4), ip(LOCAL_V4))));
        assert_eq!(event.slot, Some((Slot(SLOT_V4), Label(SWAP_V4))));
    }
    assert!(pair.kernel.take_events(1000).is_empty(), "told twice");
}
