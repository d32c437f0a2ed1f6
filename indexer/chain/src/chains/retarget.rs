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
            self.whole_period,
        ))
    }
}

/// The compact target `bits · span / whole`, at most `limit`.
///
/// Litecoin's nodes drop one bit of a target as wide as the limit, whose product would overflow
/// 256 bits; `drop_bit` does the same.
pub(super) fn scale(bits: u32, span: i64, whole: i64, limit: u32, drop_bit: bool) -> u32 {
    let (Some(old), Some(most)) = (Target::from_compact(bits), Target::from_compact(limit)) else {
        return limit;
    };
    let (span, whole) = (
        span.clamp(0, u32::MAX.into()) as u32,
        whole.clamp(1, u32::MAX.into()) as u32,
    );
    let shift = u32::from(drop_bit && old.bits() >= most.bits());
    let new = old.shift_right(shift).scale(span, whole).shift_left(shift);
    if new > most { limit } else { new.to_compact() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::by_name;

    /// One ancestor that matters, at the height asked for.
    struct First {
        height: u32,
        time: u32,
        bits: u32,
    }

    impl Ancestors for First {
        fn ancestor(&self, of: &Ancestor, height: u32) -> Option<Ancestor> {
            assert_eq!(
                height, self.height,
                "which block the period is measured from"
            );
            let header = Header {
                time: self.time,
                bits: self.bits,
                ..of.header
            };
            Some(Ancestor {
                height,
                header,
                ..*of
            })
        }
    }

    fn next(
        network: &str,
        (first, first_time): (u32, u32),
        (height, time): (u32, u32),
        bits: u32,
    ) -> u32 {
        let chain = by_name(network).expect("known");
        let header = Header {
            time,
            bits,
            ..chain.params().genesis
        };
        let prev = Ancestor {
            hash: header.hash(),
            height,
            header,
        };
        let ancestors = First {
            height: first,
            time: first_time,
            bits,
        };
        chain
            .next_bits(&ancestors, &prev, time + 60)
            .expect("known")
    }

    /// Vectors of the nodes' own tests: heights, times and targets of real blocks.
    #[test]
    fn targets_of_real_blocks() {
        for (network, first, prev, bits, want) in [
            (
                "bitcoin",
                (30_240, 1_261_130_161),
                (32_255, 1_262_152_739),
                0x1d00_ffff,
                0x1d00_d86a,
            ),
            (
                "bitcoin",
                (0, 1_231_006_505),
                (2_015, 1_233_061_996),
                0x1d00_ffff,
                0x1d00_ffff,
            ),
            (
                "bitcoin",
                (66_528, 1_279_008_237),
                (68_543, 1_279_297_671),
                0x1c05_a3f4,
                0x1c01_68fd,
            ),
            (
                "bitcoin",
                (44_352, 1_263_163_443),
                (46_367, 1_269_211_443),
                0x1c38_7f6f,
                0x1d00_e1fd,
            ),
            (
                "litecoin",
                (278_207, 1_358_118_740),
                (280_223, 1_358_378_777),
                0x1c0a_c141,
                0x1c09_3f8d,
            ),
            (
                "litecoin",
                (0, 1_317_972_665),
                (2_015, 1_318_480_354),
                0x1e0f_fff0,
                0x1e0f_ffff,
            ),
            (
                "litecoin",
                (576_575, 1_401_682_934),
                (578_591, 1_401_757_934),
                0x1b07_5cf1,
                0x1b01_d73c,
            ),
            (
                "litecoin",
                (999_935, 1_463_690_315),
                (1_001_951, 1_464_900_315),
                0x1b01_5318,
                0x1b05_4c60,
            ),
            (
                "dogecoin",
                (0, 1_386_325_540),
                (239, 1_386_475_638),
                0x1e0f_fff0,
                0x1e0f_ffff,
            ),
            (
                "dogecoin",
                (9_359, 1_386_942_008),
                (9_599, 1_386_954_113),
                0x1c1a_1206,
                0x1c15_ea59,
            ),
            (
                "dogecoin",
                (144_999, 1_395_094_427),
                (145_000, 1_395_094_679),
                0x1b49_9dfd,
                0x1b67_1062,
            ),
            (
                "dogecoin",
                (145_106, 1_395_100_835),
                (145_107, 1_395_101_360),
                0x1b34_39cd,
                0x1b4e_56b3,
            ),
            (
                "dogecoin",
                (149_422, 1_395_380_517),
                (149_423, 1_395_380_447),
                0x1b44_6f21,
                0x1b33_5358,
            ),
        ] {
            assert_eq!(
                next(network, first, prev, bits),
                want,
                "{network} after {}",
                prev.0
            );
        }
    }

    #[test]
    fn test_networks_have_easy_blocks() {
        let chain = by_name("bitcoin-testnet3").expect("known");
        let genesis = chain.params().genesis;
        let prev = Ancestor {
            hash: [0; 32],
            height: 100,
            header: Header {
                bits: 0x1b01_0000,
                ..genesis
            },
        };
        let none = First {
            height: 99,
            time: 0,
            bits: 0x1c00_ffff,
        };
        assert_eq!(
            chain.next_bits(&none, &prev, genesis.time + 1201),
            Some(0x1d00_ffff)
        );
        assert_eq!(
            chain.next_bits(&none, &prev, genesis.time + 1200),
            Some(0x1b01_0000)
        );
        // After an easy block the last real target counts.
        let easy = Ancestor {
            header: genesis,
            ..prev
        };
        assert_eq!(
            chain.next_bits(&none, &easy, genesis.time + 1200),
            Some(0x1c00_ffff)
        );
    }
}
