//! Control frames: one epoch's AEAD, its counters and replay window, and fragmentation.
//!
//! ```text
//! 16..20   zero
//! 20..28   counter: generation:32 | number:32
//! 28..     ChaCha20-Poly1305 of: 0 | message          a whole message
//!                                1 | id u16 | index u8 | count u8 | part
//! ```
//! The generation goes up by one each time the keys are taken over from a snapshot, before they are used, so that a
//! counter is never used twice under a key, whatever the snapshot's age.

use std::collections::BTreeMap;

use super::handshake::LinkKeys;
use crate::{
    io::Micros,
    message::MAX_MESSAGE,
    noise::{self, TAG_LEN},
    wire::{Reader, Writer},
};

/// Plaintext in one frame, so that it fits the smallest MTU of IPv6 (1280 - 40 - 8 - 28 - 16), less the fragment head.
const PART: usize = 1280 - 40 - 8 - 28 - TAG_LEN - 5;
const MAX_PARTS: usize = MAX_MESSAGE.div_ceil(PART);
/// Messages being put together at a time, per link.
const PARTIAL: usize = 8;
const PARTIAL_LIFE: Micros = Micros::from_secs(3);

/// Sends and receives frames under one epoch's keys.
#[derive(Debug)]
pub(crate) struct FrameKeys {
    pub(crate) keys: LinkKeys,
    pub(crate) generation: u32,
    number: u32,
    received: ReplayWindow,
}

impl FrameKeys {
    pub(crate) fn new(keys: LinkKeys, generation: u32) -> Self {
        Self {
            keys,
            generation,
            number: 0,
            received: ReplayWindow::default(),
        }
    }

    /// With the receiving side's memory, from a snapshot.
    pub(crate) fn resumed(keys: LinkKeys, generation: u32, highest_received: Option<u64>) -> Self {
        Self {
            keys,
            generation,
            number: 0,
            received: ReplayWindow::beyond(highest_received),
        }
    }

    pub(crate) fn highest_received(&self) -> Option<u64> {
        self.received.highest
    }

    /// Frames sent under these keys; new ones are due long before this wraps.
    pub(crate) fn sent(&self) -> u32 {
        self.number
    }

    /// The bodies (from offset 16) of the frames for one message; empty when the keys are used up.
    pub(crate) fn seal(&mut self, message: &[u8], next_id: &mut u16) -> Vec<Vec<u8>> {
        if message.len() <= PART {
            return self.seal_one(&[&[0], message]).into_iter().collect();
        }
        *next_id = next_id.wrapping_add(1);
        let count = message.len().div_ceil(PART);
        if count > MAX_PARTS {
            debug_assert!(false, "control message of {} bytes", message.len());
            return Vec::new();
        }
        let [high, low] = next_id.to_be_bytes();
        let parts = message.chunks(PART).enumerate();
        parts
            .filter_map(|(i, part)| self.seal_one(&[&[1, high, low, i as u8, count as u8], part]))
            .collect()
    }

    fn seal_one(&mut self, parts: &[&[u8]]) -> Option<Vec<u8>> {
        self.number = self.number.checked_add(1)?;
        let counter = u64::from(self.generation) << 32 | u64::from(self.number);
        let mut data = parts.concat();
        noise::seal(&self.keys.tx_control, counter, &[], &mut data);
        let mut writer = Writer::with_capacity(12 + data.len());
        writer.u32(0).u64(counter).bytes(&data);
        Some(writer.finish())
    }

    /// The plaintext of a frame that is authentic and new.
    pub(crate) fn open(&mut self, body: &[u8]) -> Result<Vec<u8>, &'static str> {
        let mut reader = Reader::new(body);
        let (Ok(0), Ok(counter)) = (reader.u32(), reader.u64()) else {
            return Err("control_malformed");
        };
        if !self.received.is_new(counter) {
            return Err("control_replayed");
        }
        let plain = noise::open(&self.keys.rx_control, counter, &[], reader.rest())
            .ok_or("control_not_authentic")?;
        self.received.mark(counter);
        Ok(plain)
    }
}

/// The last 128 counters received.
#[derive(Debug, Default)]
pub(crate) struct ReplayWindow {
    highest: Option<u64>,
    bits: u128,
}

impl ReplayWindow {
    /// Everything up to `highest` counts as received.
    fn beyond(highest: Option<u64>) -> Self {
        Self {
            highest,
            bits: u128::MAX,
        }
    }

    pub(crate) fn is_new(&self, counter: u64) -> bool {
        match self.highest {
            Some(highest) if counter <= highest => {
                let back = highest - counter;
                back < 128 && self.bits >> back & 1 == 0
            }
            _ => true,
        }
    }

    pub(crate) fn mark(&mut self, counter: u64) {
        match self.highest {
            Some(highest) if counter <= highest => {
                let back = highest - counter;
                if back < 128 {
                    self.bits |= 1 << back;
                }
            }
            Some(highest) => {
                let shift = counter - highest;
                self.bits = if shift < 128 {
                    self.bits << shift | 1
                } else {
                    1
                };
                self.highest = Some(counter);
            }
            None => {
                self.highest = Some(counter);
                self.bits = 1;
            }
        }
    }
}

/// Puts messages together from frames. Bounded in number, size and time.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partial: BTreeMap<u16, Partial>,
}

#[derive(Debug)]
struct Partial {
    since: Micros,
    parts: Vec<Option<Vec<u8>>>,
    missing: usize,
}

impl Reassembly {
    /// Takes a frame's plaintext and returns the message it completes.
    pub(crate) fn take(
        &mut self,
        now: Micros,
        mut plain: Vec<u8>,
    ) -> Result<Option<Vec<u8>>, &'static str> {
        let mut reader = Reader::new(&plain);
        match reader.u8() {
            Ok(0) => {
                plain.remove(0);
                Ok(Some(plain))
            }
            Ok(1) => {
                let (Ok(id), Ok(index), Ok(count)) = (reader.u16(), reader.u8(), reader.u8())
                else {
                    return Err("fragment_malformed");
                };
                let (index, count) = (usize::from(index), usize::from(count));
                if index >= count || count > MAX_PARTS || reader.left() > PART {
                    return Err("fragment_malformed");
                }
                self.partial
                    .retain(|_, p| now.since(p.since) < PARTIAL_LIFE);
                if self.partial.len() >= PARTIAL && !self.partial.contains_key(&id) {
                    return Err("fragments_full");
                }
                let fresh = || Partial {
                    since: now,
                    parts: vec![None; count],
                    missing: count,
                };
                let partial = self.partial.entry(id).or_insert_with(fresh);
                if partial.parts.len() != count {
                    *partial = fresh();
                }
                if partial.parts[index].is_none() {
                    partial.parts[index] = Some(reader.rest().to_vec());
                    partial.missing -= 1;
                }
                if partial.missing > 0 {
                    return Ok(None);
                }
                let done = self
                    .partial
                    .remove(&id)
                    .map(|p| p.parts.into_iter().flatten().flatten().collect());
                Ok(done)
            }
            _ => Err("frame_malformed"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pair() -> (FrameKeys, FrameKeys) {
        let keys = |tx, rx| LinkKeys {
            tx_tag: [0; 16],
            rx_tag: [0; 16],
            tx_control: tx,
            rx_control: rx,
        };
        (
            FrameKeys::new(keys([1; 32], [2; 32]), 0),
            FrameKeys::new(keys([2; 32], [1; 32]), 0),
        )
    }

    #[test]
    fn replays_and_forgeries_are_refused() {
        let (mut a, mut b) = pair();
        let frame = a.seal(b"one", &mut 0).remove(0);
        assert_eq!(b.open(&frame).unwrap(), b"\0one");
        assert_eq!(b.open(&frame), Err("control_replayed"));
        let mut forged = a.seal(b"two", &mut 0).remove(0);
        *forged.last_mut().unwrap() ^= 1;
        assert_eq!(b.open(&forged), Err("control_not_authentic"));
        *forged.last_mut().unwrap() ^= 1;
        assert!(b.open(&forged).is_ok());
        assert_eq!(b.open(&[0; 5]), Err("control_malformed"));
    }

    #[test]
    fn a_resumed_side_neither_reuses_counters_nor_takes_replays() {
        let (mut a, mut b) = pair();
        let old: Vec<_> = (0..5).map(|_| a.seal(b"x", &mut 0).remove(0)).collect();
        old.iter().for_each(|frame| drop(b.open(frame).unwrap()));
        let mut b = FrameKeys::resumed(b.keys.clone(), b.generation + 1, b.highest_received());
        old.iter()
            .for_each(|frame| assert_eq!(b.open(frame), Err("control_replayed")));
        let mut a = FrameKeys::resumed(a.keys.clone(), a.generation + 1, None);
        assert!(
            old.iter()
                .all(|frame| frame[..12] != a.seal(b"x", &mut 0)[0][..12])
        );
        assert!(b.open(&a.seal(b"y", &mut 0)[0]).is_ok());
    }

    proptest! {
        #[test]
        fn messages_of_any_size_survive_any_order(len in 0_usize..MAX_MESSAGE, seed: u64) {
            let (mut a, mut b) = pair();
            let message: Vec<u8> = (0..len).map(|i| (i as u64 ^ seed) as u8).collect();
            let mut frames = a.seal(&message, &mut 0);
            let n = frames.len();
            frames.rotate_left((seed % n.max(1) as u64) as usize);
            let mut reassembly = Reassembly::default();
            let mut done = Vec::new();
            for frame in frames {
                prop_assert!(frame.len() + 16 <= 1280 - 48);
                done.extend(reassembly.take(Micros(0), b.open(&frame).unwrap()).unwrap());
            }
            prop_assert_eq!(done, vec![message]);
        }

        #[test]
        fn any_plaintext_is_handled(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..50)) {
            let mut reassembly = Reassembly::default();
            for mut frame in frames {
                if let Some(first) = frame.first_mut() { *first &= 1; }
                let _ = reassembly.take(Micros(0), frame);
                prop_assert!(reassembly.partial.len() <= PARTIAL);
            }
        }

        #[test]
        fn the_window_agrees_with_a_set(counters in proptest::collection::vec(0_u64..400, 0..200)) {
            let mut window = ReplayWindow::default();
            let (mut seen, mut highest) = (std::collections::BTreeSet::new(), 0);
            for counter in counters {
                let expected = !seen.contains(&counter) && (counter + 128 > highest || seen.is_empty());
                prop_assert_eq!(window.is_new(counter), expected);
                if expected {
                    window.mark(counter);
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
