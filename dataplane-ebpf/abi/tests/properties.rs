//! Properties: no frame panics, whatever its bytes; nothing unverified changes a table; fields survive packing; the
//! replay window agrees with a plain model, and admits nothing twice from several threads.

use std::{
    collections::HashSet,
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use proptest::prelude::*;
use weft_abi::{
    Address, Cell64, Config, DropReason, Fate, Fixed, GroupIndex, Kind, Label, LabelEntry,
    LfibEntry, LfibOp, NextHop, RxLink, SliceFrame, Slot, Tables, WINDOW_BITS, Window, link_word,
    switch,
};

/// A zeroed value of a map: every layout is valid so.
fn zeroed<T>() -> Box<T> {
    // SAFETY: only called for map values, of which all zero bytes are a valid one.
    unsafe { Box::new(std::mem::zeroed()) }
}

/// One slot, one next hop, every label the same entry.
struct Small {
    config: Box<Config>,
    link: Box<RxLink>,
    window: Box<Window>,
    hop: Box<NextHop>,
    entry: LfibEntry,
    seq: Cell64,
}

const PORT: u16 = 0x1234;

impl Small {
    fn new(entry: u64) -> Self {
        let this = Self {
            config: zeroed(),
            link: zeroed(),
            window: zeroed(),
            hop: zeroed(),
            entry: LfibEntry(entry),
            seq: Cell64::new(0),
        };
        this.link.state.store(1);
        this
    }
}

impl Tables for Small {
    fn port(&self) -> u16 {
        PORT
    }
    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }
    fn rx_link(&self, _: Slot) -> Option<&RxLink> {
        Some(&self.link)
    }
    fn window(&self, _: Slot, _: u8) -> Option<&Window> {
        Some(&self.window)
    }
    fn lfib(&self, _: Label) -> LfibEntry {
        self.entry
    }
    fn bucket(&self, _: u32, _: u8) -> u64 {
        1 << 32
    }
    fn next_hop(&self, _: u32) -> Option<&NextHop> {
        Some(&self.hop)
    }
    fn is_up(&self, _: u32) -> bool {
        true
    }
    fn next_seq(&self, _: u32, _: u8) -> Option<u32> {
        u32::try_from(self.seq.fetch_add(1) + 1).ok()
    }
    fn is_local(&self, _: &Address) -> bool {
        true
    }
    fn count_admitted(&self, _: Slot, _: u8, _: u32) {}
    fn count_label(&self, _: Label, _: u32) {}
}

/// An Ethernet frame with the right lengths and port around `payload`.
fn frame(v6: bool, payload: &[u8]) -> Vec<u8> {
    let udp_len = (payload.len() + 8) as u16;
    let mut frame = vec![0; 12];
    if v6 {
        frame.extend_from_slice(&[0x86, 0xdd, 0x60, 0, 0, 0]);
        frame.extend_from_slice(&udp_len.to_be_bytes());
        frame.extend_from_slice(&[17, 64]);
        frame.extend_from_slice(&[0; 32]);
    } else {
        frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
        frame.extend_from_slice(&(udp_len + 20).to_be_bytes());
        frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
        frame.extend_from_slice(&[0; 8]);
    }
    frame.extend_from_slice(&[0, 9]);
    frame.extend_from_slice(&PORT.to_ne_bytes());
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    frame
}

fn labelled(lane: u8, seq: u32, stack: &[u32], rest: &[u8]) -> Vec<u8> {
    let mut payload = link_word(Kind::Labelled, lane, Slot(1), seq)
        .to_le_bytes()
        .to_vec();
    payload.extend_from_slice(&[0; 8]);
    payload.extend(stack.iter().flat_map(|entry| entry.to_be_bytes()));
    payload.extend_from_slice(rest);
    if let Some(head) = payload.first_chunk::<28>() {
        let tag = Fixed::read(head).expected_tag([0, 0], payload.len() as u32);
        payload[8..16].copy_from_slice(&tag.to_le_bytes());
    }
    payload
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), start in 0usize..220) {
        let tables = Small::new(1 << 60);
        let _ = switch(&tables, &mut SliceFrame::new(&mut bytes, start));
    }

    #[test]
    fn any_payload_is_survived_and_changes_nothing(v6: bool, payload in proptest::collection::vec(any::<u8>(), 0..120)) {
        let tables = Small::new(1 << 60);
        let packet = frame(v6, &payload);
        let mut bytes = packet.clone();
        let outcome = switch(&tables, &mut SliceFrame::new(&mut bytes, 0));
        // Nobody guesses a tag in so few tries.
        prop_assert!(matches!(outcome.fate, Fate::Drop | Fate::Up));
        prop_assert_eq!(tables.window.highest(), 0);
        prop_assert_eq!(tables.seq.load(), 0);
        prop_assert_eq!(packet, bytes);
    }

    #[test]
    fn any_verified_stack_is_survived(
        v6: bool,
        entry: u64,
        generation in 0u64..3,
        stack in proptest::collection::vec(any::<u32>(), 0..12),
        rest in proptest::collection::vec(any::<u8>(), 0..80),
        room in 0usize..60,
    ) {
        let tables = Small::new(entry);
        tables.hop.generation.store(generation);
        let packet = frame(v6, &labelled(3, 7, &stack, &rest));
        let mut bytes = vec![0; room];
        bytes.extend_from_slice(&packet);
        let outcome = switch(&tables, &mut SliceFrame::new(&mut bytes, room));
        if stack.len() * 4 + rest.len() < 12 {
            prop_assert_eq!(outcome.reason, DropReason::TooShort);
        } else {
            prop_assert_eq!(tables.window.highest(), 7, "{}", outcome.name());
        }
    }

    #[test]
    fn label_entries_keep_their_fields(label in 0u32..1 << 20, tc in 0u8..8, bottom: bool, ttl: u8, other in 0u32..1 << 20) {
        let entry = LabelEntry::new(Label(label), tc, bottom, ttl);
        let entry = LabelEntry::from_bytes(entry.to_bytes());
        prop_assert_eq!((entry.label(), entry.tc(), entry.bottom(), entry.ttl()), (Label(label), tc, bottom, ttl));
        let entry = entry.with_label(Label(other)).with_ttl(ttl ^ 0x55);
        prop_assert_eq!((entry.label(), entry.tc(), entry.bottom(), entry.ttl()), (Label(other), tc, bottom, ttl ^ 0x55));
    }

    #[test]
    fn lfib_words_keep_their_fields(label in 0u32..1 << 20, group in 0u32..1 << 24, word: u64) {
        let entry = LfibEntry::swap(Label(label), GroupIndex(group));
        prop_assert_eq!((entry.op(), entry.out_label(), entry.group()), (LfibOp::Swap, Label(label), GroupIndex(group)));
        let entry = LfibEntry::pop(GroupIndex(group));
        prop_assert_eq!((entry.op(), entry.group()), (LfibOp::Pop, GroupIndex(group)));
        // A word of another version is no entry, or one of ours.
        let _ = (LfibEntry(word).op(), LfibEntry(word).out_label(), LfibEntry(word).group());
    }

    #[test]
    fn link_words_keep_their_fields(lane in 0u8..16, slot: u16, seq: u32) {
        let mut bytes = [0; 28];
        bytes[..8].copy_from_slice(&link_word(Kind::Probe, lane, Slot(slot), seq).to_le_bytes());
        let fixed = Fixed::read(&bytes);
        prop_assert_eq!((fixed.version(), fixed.kind_nibble(), fixed.reserved()), (1, 4, 0));
        prop_assert_eq!((fixed.lane(), fixed.slot(), fixed.seq()), (lane, Slot(slot), seq));
        prop_assert_eq!(bytes[2..4].to_vec(), slot.to_be_bytes().to_vec());
        prop_assert_eq!(bytes[4..8].to_vec(), seq.to_be_bytes().to_vec());
    }

    #[test]
    fn the_window_agrees_with_a_model(
        start: u32,
        steps in proptest::collection::vec((0u32..60, 0u32..3000, 0u32..6), 1..400),
    ) {
        let window: Box<Window> = zeroed();
        let mut seen = HashSet::new();
        let mut highest = 0;
        let mut next = start;
        for (forward, back, jump) in steps {
            next = next.saturating_add(if jump == 0 { forward * 200 } else { forward });
            let seq = next.saturating_sub(if jump < 3 { back } else { 0 });
            let expected = if u64::from(seq) + u64::from(WINDOW_BITS) <= u64::from(highest) {
                Err(DropReason::SeqTooOld)
            } else if !seen.insert(seq) {
                Err(DropReason::Replay)
            } else {
                highest = highest.max(seq);
                Ok(())
            };
            prop_assert_eq!(window.admit(seq), expected, "{} with {} highest", seq, highest);
        }
    }
}

#[test]
fn threads_admit_each_number_once() {
    let window: Box<Window> = zeroed();
    let admitted: Vec<AtomicU32> = (0..50_000).map(|_| AtomicU32::new(0)).collect();
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for (seq, count) in admitted.iter().enumerate() {
                    if window.admit(seq as u32).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    assert!(
        admitted
            .iter()
            .all(|count| count.load(Ordering::Relaxed) <= 1)
    );
    assert_eq!(window.admit(49_999), Err(DropReason::Replay));
}
