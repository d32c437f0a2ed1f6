//! Difficulty: how the next target follows from the blocks before.

use crate::pow::Target;
use crate::{Hash, Header};

/// A header and its place.
#[derive(Debug, Clone, Copy)]
pub struct Ancestor {
    /// Its hash.
    pub hash: Hash,
    /// Its height.
    pub height: u32,
    /// The header.
    pub header: Header,
}

/// The headers before one.
pub trait Ancestors {
    /// The ancestor of `of` at `height`; `None` above it, and where it is not known.
    fn ancestor(&self, of: &Ancestor, height: u32) -> Option<Ancestor>;
}

/// Rules of the chains that keep a target for a number of blocks, as Bitcoin and Litecoin do.
#[derive(Debug, Clone, Copy)]
pub(super) struct Periodic {
    /// Blocks of a period.
    pub(super) interval: u32,
    /// Seconds a period should take.
    pub(super) timespan: u32,
    /// Seconds a block should take.
    pub(super) spacing: u32,
    /// Whether a block after twice the spacing may have the easiest target (test networks).
    pub(super) min_difficulty: bool,
    /// Whether the target never changes (regtest).
    pub(super) fixed: bool,
    /// Whether a period's first block rather than its last gives the old target (BIP94).
    pub(super) bip94: bool,
    /// Whether a period is measured from the last block of the one before (Litecoin).
    pub(super) whole_period: bool,
    /// Easiest target.
    pub(super) limit: u32,
}

impl Periodic {
    pub(super) fn next_bits(
        &self,
        ancestors: &dyn Ancestors,
        prev: &Ancestor,
        time: u32,
    ) -> Option<u32> {
        let height = prev.height + 1;
        if !height.is_multiple_of(self.interval) {
            if !self.min_difficulty {
                return Some(prev.header.bits);
            }
            if u64::from(time) > u64::from(prev.header.time) + 2 * u64::from(self.spacing) {
                return Some(self.limit);
            }
            // The last target that was not an exception.
            let mut at = *prev;
            while !at.height.is_multiple_of(self.interval) && at.header.bits == self.limit {
                at = ancestors.ancestor(&at, at.height - 1)?;
            }
            return Some(at.header.bits);
        }
        if self.fixed {
            return Some(prev.header.bits);
        }
        let back = if self.whole_period && height != self.interval {
            self.interval
        } else {
            self.interval - 1
        };
        let first = ancestors.ancestor(prev, prev.height.checked_sub(back)?)?;
        let bits = if self.bip94 {
            ancestors
                .ancestor(prev, height - self.interval)?
                .header
                .bits
        } else {
            prev.header.bits
        };
        let span = i64::from(prev.header.time) - i64::from(first.header.time);
        let whole = i64::from(self.timespan);
        Some(scale(
            bits,
            span.clamp(whole / 4, whole * 4),
            whole,
            self.limit,
        ))
    }
}

/// The compact target `bits · span / whole`, at most `limit`.
///
/// Limits near 2²³⁶ would overflow 256 bits; then one bit is dropped first, as Litecoin's nodes
/// do.
pub(super) fn scale(bits: u32, span: i64, whole: i64, limit: u32) -> u32 {
    let (Some(old), Some(most)) = (Target::from_compact(bits), Target::from_compact(limit)) else {
        return limit;
    };
    let (span, whole) = (
        span.clamp(0, u32::MAX.into()) as u32,
        whole.clamp(1, u32::MAX.into()) as u32,
    );
    let shift = u32::from(old.bits() > 235);
    let new = old.shift_right(shift).scale(span, whole).shift_left(shift);
    if new > most { limit } else { new.to_compact() }
}
