//! The replay window of one (slot, lane), free of locks.
//!
//! A ring of words, each holding a block number and the 32 bits of that block. A sequence number belongs to one word
//! only, and a word's block number only grows, so one compare-and-swap decides each packet: no interleaving of
//! processors (or of kernel and daemon) can admit a number twice.

use crate::{Cell64, DropReason};

const WORDS: usize = 64;
/// Sequence numbers in one word.
const BLOCK_BITS: u32 = 32;
/// How often a word is retried when another processor changed it in between.
const RETRIES: usize = 8;

/// A packet at most this far behind the highest sequence number is judged by its bit; older ones are refused.
pub const WINDOW_BITS: u32 = (WORDS as u32 - 1) * BLOCK_BITS;

/// Map value: the window of one lane of one slot. 576 bytes, nine cache lines.
#[repr(C)]
pub struct Window {
    /// Highest sequence number seen. Two processors may leave it a little too low; it only keeps old numbers out that
    /// were never seen.
    highest: Cell64,
    /// Packets the daemon admitted itself; the kernel counts its own per processor.
    admitted: Cell64,
    /// Bytes of datagram payload in these.
    bytes: Cell64,
    /// Keeps neighbouring lanes, which other processors work on, out of this one's cache lines.
    _pad: [u64; 5],
    /// Block number in the upper half, a bit for each admitted number in the lower.
    words: [Cell64; WORDS],
}

impl Window {
    /// Admits a sequence number once. [`DropReason::SeqTooOld`] behind the window, [`DropReason::Replay`] for a number
    /// seen before.
    #[inline(always)]
    pub fn admit(&self, seq: u32) -> Result<(), DropReason> {
        let highest = self.highest.load();
        if u64::from(seq) + u64::from(WINDOW_BITS) <= highest {
            return Err(DropReason::SeqTooOld);
        }
        self.mark(seq)?;
        if u64::from(seq) > highest {
            self.highest.store(u64::from(seq));
        }
        Ok(())
    }

    /// Counts an admitted packet; for user space.
    pub fn count(&self, bytes: u32) {
        self.admitted.fetch_add(1);
        self.bytes.fetch_add(u64::from(bytes));
    }

    #[inline(always)]
    fn mark(&self, seq: u32) -> Result<(), DropReason> {
        let block = u64::from(seq / BLOCK_BITS);
        let bit = 1u64 << (seq % BLOCK_BITS);
        let word = &self.words[(block as usize) & (WORDS - 1)];
        for _ in 0..RETRIES {
            let old = word.load();
            let held = old >> 32;
            if held > block {
                return Err(DropReason::SeqTooOld);
            }
            let bits = if held == block { old & 0xffff_ffff } else { 0 };
            if bits & bit != 0 {
                return Err(DropReason::Replay);
            }
            if word.compare_exchange(old, block << 32 | bits | bit) {
                return Ok(());
            }
        }
        // Eight lost races over one word: that many duplicates at once are a replay.
        Err(DropReason::Replay)
    }

    /// The highest sequence number seen.
    pub fn highest(&self) -> u64 {
        self.highest.load()
    }

    /// Packets and bytes of datagram payload that the daemon admitted.
    pub fn counted(&self) -> (u64, u64) {
        (self.admitted.load(), self.bytes.load())
    }

    /// Empties it, for a new link. Nothing may be admitting meanwhile.
    pub fn reset(&self) {
        self.highest.store(0);
        self.admitted.store(0);
        self.bytes.store(0);
        for word in &self.words {
            word.store(0);
        }
    }
}
