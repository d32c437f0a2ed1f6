//! What can be wrong with bytes that claim to be part of a chain.

use crate::hash::{Hash, hex};

/// Why bytes were refused. Offsets count from the start of what was parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes ended inside an item.
    #[error("{what} ends early: {want} more bytes are needed at offset {at}, {have} are left")]
    Truncated {
        /// What was being read.
        what: &'static str,
        /// Where it began.
        at: usize,
        /// Bytes it needs.
        want: u64,
        /// Bytes there are.
        have: usize,
    },
    /// Bytes are left over after the last item.
    #[error("{what} has {left} bytes too many after offset {at}")]
    Trailing {
        /// What was being read.
        what: &'static str,
        /// Where it ended.
        at: usize,
        /// How many bytes follow.
        left: usize,
    },
    /// A count or length is greater than the bytes that are left could hold.
    #[error("{what} at offset {at} claims {count}, at most {max} are possible")]
    TooMany {
        /// What is counted.
        what: &'static str,
        /// Where the count is.
        at: usize,
        /// The count given.
        count: u64,
        /// The greatest possible.
        max: u64,
    },
    /// A length was not written in its shortest form, or does not fit its type.
    #[error("{what} at offset {at} is not in canonical form")]
    NotCanonical {
        /// Which encoding.
        what: &'static str,
        /// Where it is.
        at: usize,
    },
    /// An item breaks a rule of its format.
    #[error("{what} at offset {at}: {why}")]
    Malformed {
        /// What was being read.
        what: &'static str,
        /// Where it is.
        at: usize,
        /// The rule it breaks.
        why: &'static str,
    },
    /// The Merkle root of the transactions is not the header's.
    #[error("block {}: the header says Merkle root {}, its transactions give {}", hex(.block), hex(.header), hex(.computed))]
    MerkleRoot {
        /// Hash of the block.
        block: Hash,
        /// The header's root.
        header: Hash,
        /// The transactions' root.
        computed: Hash,
    },
    /// Transactions are repeated so that the Merkle root stays the same (CVE-2012-2459).
    #[error("block {}: transactions are duplicated without changing the Merkle root (CVE-2012-2459)", hex(.block))]
    Mutated {
        /// Hash of the block.
        block: Hash,
    },
    /// The witness commitment of the coinbase does not match the witnesses.
    #[error("block {}: witness commitment is {}, the witnesses give {}", hex(.block), hex(.committed), hex(.computed))]
    WitnessCommitment {
        /// Hash of the block.
        block: Hash,
        /// What the coinbase commits to.
        committed: Hash,
        /// What the witnesses give.
        computed: Hash,
    },
    /// A header's hash does not reach the target it claims, or the target is out of range.
    #[error("header {}: {why} (bits {bits:#010x})", hex(.header))]
    ProofOfWork {
        /// Hash of the header.
        header: Hash,
        /// Its compact target.
        bits: u32,
        /// What is wrong.
        why: &'static str,
    },
    /// A header's compact target is not what the chain's rules give at its height.
    #[error("header {} at height {height}: bits are {bits:#010x}, the rules give {want:#010x}", hex(.header))]
    Difficulty {
        /// Hash of the header.
        header: Hash,
        /// Its height.
        height: u32,
        /// Its compact target.
        bits: u32,
        /// The compact target it should have.
        want: u32,
    },
    /// A header's time is not later than the median of the eleven before it.
    #[error("header {} at height {height}: time {time} is not later than {median}, the median of the eleven before", hex(.header))]
    TimeTooOld {
        /// Hash of the header.
        header: Hash,
        /// Its height.
        height: u32,
        /// Its time, seconds of Unix time.
        time: u32,
        /// The median.
        median: u32,
    },
    /// A header names a predecessor that is not known.
    #[error("header {}: its predecessor {} is unknown", hex(.header), hex(.prev))]
    Orphan {
        /// Hash of the header.
        header: Hash,
        /// The predecessor it names.
        prev: Hash,
    },
    /// Something has another hash than the one asked for or written beside it.
    #[error("{what}: hash {} was expected, the bytes give {}", hex(.want), hex(.have))]
    WrongHash {
        /// What was checked.
        what: &'static str,
        /// The hash expected.
        want: Hash,
        /// The hash found.
        have: Hash,
    },
}
