//! The route stage: what is done with a verified labelled packet.

use crate::{
    DropReason, FIXED_LEN, Frame, GroupIndex, LINK_LEN, Label, LabelEntry, LfibOp, Tables, Verdict,
};

/// Label entries that are looked at in one packet.
pub const MAX_STACK: usize = 8;

/// How a packet is sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forward {
    /// `Swap`, `Pop` or `ProbeEchoed`.
    pub verdict: Verdict,
    /// The label that decided, to be counted once the packet is sent.
    pub label: Label,
    /// Next hop.
    pub next_hop: u32,
    /// Lane, kept on the way.
    pub lane: u8,
    /// Bytes removed after the link header: the popped label entries.
    pub popped: u32,
    /// Bytes 16..20 of the new packet, as on the wire.
    pub top: [u8; 4],
    /// Bytes of datagram payload of the new packet.
    pub len: u32,
}

/// What is done with a verified labelled packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Sent on.
    Forward(Forward),
    /// The LSP with this label ends here; the session header begins `session_at` bytes into the datagram payload.
    Deliver {
        /// The label it was delivered on.
        label: Label,
        /// Offset of the session counter in the datagram payload, bytes.
        session_at: u32,
    },
}

/// Primary or backup of a lane's bucket in a group, whichever is up.
#[inline(always)]
pub fn select<T: Tables>(tables: &T, group: GroupIndex, lane: u8) -> Option<u32> {
    if group.0 == 0 {
        return None;
    }
    let bucket = tables.bucket(group.0, lane);
    let (primary, backup) = ((bucket >> 32) as u32, bucket as u32);
    if primary != 0 && tables.is_up(primary) {
        Some(primary)
    } else if backup != 0 && tables.is_up(backup) {
        Some(backup)
    } else {
        None
    }
}

/// Walks the label stack of a packet whose datagram payload, `len` bytes, begins at `at` in `frame` with label entry
/// `top`. Changes nothing: it may be asked before the packet has been verified, to have the answer at hand.
#[inline(always)]
pub fn route<T: Tables, F: Frame>(
    tables: &T,
    frame: &F,
    at: usize,
    len: u32,
    lane: u8,
    top: LabelEntry,
) -> Result<Route, DropReason> {
    let mut entry = top;
    let mut popped: u32 = 0;
    for _ in 0..MAX_STACK {
        let label = entry.label();
        let word = tables.lfib(label);
        match word.op() {
            LfibOp::Empty => return Err(DropReason::UnknownLabel),
            LfibOp::Deliver => {
                if !entry.bottom() {
                    return Err(DropReason::NotBottom);
                }
                return Ok(Route::Deliver {
                    label,
                    session_at: popped + LINK_LEN as u32 + 4,
                });
            }
            LfibOp::Swap => {
                if entry.ttl() <= 1 {
                    return Err(DropReason::TtlExpired);
                }
                let Some(next_hop) = select(tables, word.group(), lane) else {
                    return Err(DropReason::NoNextHop);
                };
                let top = entry
                    .with_label(word.out_label())
                    .with_ttl(entry.ttl() - 1)
                    .to_bytes();
                let len = len - popped;
                return Ok(Route::Forward(Forward {
                    verdict: Verdict::Swap,
                    label,
                    next_hop,
                    lane,
                    popped,
                    top,
                    len,
                }));
            }
            LfibOp::Pop => {
                if entry.bottom() {
                    return Err(DropReason::StackEmpty);
                }
                popped += 4;
                if len < FIXED_LEN as u32 + popped {
                    return Err(DropReason::TooShort);
                }
                let Some(next) = frame.bytes::<4>(at + LINK_LEN + popped as usize) else {
                    return Err(DropReason::TooShort);
                };
                let next = LabelEntry::from_bytes(*next);
                if word.group().0 == 0 {
                    entry = next.with_ttl(min(entry.ttl(), next.ttl()));
                    continue;
                }
                if entry.ttl() <= 1 {
                    return Err(DropReason::TtlExpired);
                }
                let Some(next_hop) = select(tables, word.group(), lane) else {
                    return Err(DropReason::NoNextHop);
                };
                let top = next.with_ttl(min(entry.ttl() - 1, next.ttl())).to_bytes();
                let len = len - popped;
                return Ok(Route::Forward(Forward {
                    verdict: Verdict::Pop,
                    label,
                    next_hop,
                    lane,
                    popped,
                    top,
                    len,
                }));
            }
        }
    }
    Err(DropReason::StackTooDeep)
}

impl Forward {
    /// Bytes of the label entries before the one that decided.
    #[inline(always)]
    pub const fn passed(&self) -> u32 {
        match self.verdict {
            Verdict::Pop => self.popped - 4,
            _ => self.popped,
        }
    }
}

/// Counts a packet on every label it was looked up by: the `passed` bytes of entries after its link header, which is
/// at `at`, and `label`, the one that decided.
#[inline(always)]
pub fn count_labels<T: Tables, F: Frame>(
    tables: &T,
    frame: &F,
    at: usize,
    len: u32,
    passed: u32,
    label: Label,
) {
    for entry in 0..MAX_STACK {
        if entry * 4 >= passed as usize {
            break;
        }
        if let Some(bytes) = frame.bytes::<4>(at + LINK_LEN + entry * 4) {
            tables.count_label(LabelEntry::from_bytes(*bytes).label(), len);
        }
    }
    tables.count_label(label, len);
}

#[inline(always)]
fn min(a: u8, b: u8) -> u8 {
    if a < b { a } else { b }
}
