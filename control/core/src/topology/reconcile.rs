//! Range-based set reconciliation over the database: pure functions on ranges of node ids.
//!
//! A range's fingerprint is a hash over the digests of its LSAs in order, so equal fingerprints mean equal contents.
//! LSAs about to expire are left out on both sides.

use super::{lsa::Digest, lsdb::Lsdb};
use crate::{identity::NodeId, io::Micros};

/// Most ranges of one summary.
pub(super) const MAX_RANGES: usize = 16;
/// Most LSAs of one list.
pub(super) const MAX_ITEMS: usize = 16;

/// Node ids from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: NodeId,
    pub(super) last: NodeId,
}

impl Range {
    pub(super) const ALL: Self = Self {
        first: NodeId([0; 32]),
        last: NodeId([0xff; 32]),
    };
}

/// One LSA by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) origin: NodeId,
    pub(super) sequence: u64,
    pub(super) digest: Digest,
}

/// What a database has in a range.
pub(super) fn items(lsdb: &Lsdb, now: Micros, range: Range) -> Vec<Item> {
    lsdb.range(range.first, range.last)
        .filter(|(_, entry)| entry.worth_sending(now))
        .map(|(id, entry)| Item {
            origin: *id,
            sequence: entry.lsa.sequence,
            digest: entry.lsa.digest,
        })
        .collect()
}

pub(super) fn fingerprint(items: &[Item]) -> Digest {
    let digests: Vec<u8> = items.iter().flat_map(|item| item.digest.0).collect();
    Digest::of(&digests)
}

/// Cuts a range into at most [`MAX_RANGES`] of about equally many items: (last id, count, fingerprint) each; together
/// they cover the range.
pub(super) fn split(items: &[Item], range: Range) -> Vec<(NodeId, u32, Digest)> {
    let size = items.len().div_ceil(MAX_RANGES).max(1);
    let mut parts: Vec<_> = items
        .chunks(size)
        .map(|part| {
            let last = part.last().map_or(range.last, |item| item.origin);
            (
                last,
                u32::try_from(part.len()).unwrap_or(u32::MAX),
                fingerprint(part),
            )
        })
        .collect();
    match parts.last_mut() {
        Some(part) => part.0 = range.last,
        None => parts.push((range.last, 0, fingerprint(&[]))),
    }
    parts
}

/// The next id; none after the last.
pub(super) fn successor(id: &NodeId) -> Option<NodeId> {
    let mut bytes = id.0;
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(NodeId(bytes));
        }
    }
    None
}
