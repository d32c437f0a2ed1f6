//! The LFIB word: what is done with a label.

use crate::{GroupIndex, Label};

/// What the forwarder does with a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LfibOp {
    /// No entry: packets are dropped as unknown label.
    Empty = 0,
    /// Replace the label and send on the group.
    Swap = 1,
    /// Remove the entry; with a group, send the rest on it (adjacency label), without, continue with the next label.
    Pop = 2,
    /// Hand up to `weftd`: an LSP ends here.
    Deliver = 3,
}

/// One LFIB word: `op:4 | out label:20 | group:24 | policer:16`, from the most significant bit; written at once.
///
/// The policer is 0 for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct LfibEntry(pub u64);

impl LfibEntry {
    /// No entry.
    pub const EMPTY: Self = Self(0);
    /// Hand up to `weftd`.
    pub const DELIVER: Self = Self((LfibOp::Deliver as u64) << 60);

    /// Replace the label by `out` and send on `group`.
    pub const fn swap(out: Label, group: GroupIndex) -> Self {
        Self::new(LfibOp::Swap, out, group)
    }

    /// Remove the entry and send the rest on `group`, or continue with the next label where it is 0.
    pub const fn pop(group: GroupIndex) -> Self {
        Self::new(LfibOp::Pop, Label(0), group)
    }

    const fn new(op: LfibOp, out: Label, group: GroupIndex) -> Self {
        Self(
            (op as u64) << 60
                | (out.0 as u64 & 0xf_ffff) << 40
                | (group.0 as u64 & 0xff_ffff) << 16,
        )
    }

    /// The operation; words with an operation this version does not know count as empty.
    #[inline(always)]
    pub const fn op(self) -> LfibOp {
        match self.0 >> 60 {
            1 => LfibOp::Swap,
            2 => LfibOp::Pop,
            3 => LfibOp::Deliver,
            _ => LfibOp::Empty,
        }
    }

    /// The label that replaces the one received.
    #[inline(always)]
    pub const fn out_label(self) -> Label {
        Label((self.0 >> 40) as u32 & 0xf_ffff)
    }

    /// Where it is sent.
    #[inline(always)]
    pub const fn group(self) -> GroupIndex {
        GroupIndex((self.0 >> 16) as u32 & 0xff_ffff)
    }
}
