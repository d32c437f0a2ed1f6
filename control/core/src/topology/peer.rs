//! What flooding keeps for one neighbour: what it is to get, what is under way, what to answer, and at which pace.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::{
    lsa::{Digest, Lsa, MAX_LSA_LEN},
    lsdb::Lsdb,
    reconcile::{self, Item, Range},
};
use crate::{
    identity::NodeId,
    io::Micros,
    wire::{WireError, Writer},
};

const SECOND: u64 = 1_000_000;
/// Longest message to or from a neighbour, bytes: fits an underlay of 1280 with every header around it.
pub const MAX_MESSAGE: usize = 1024;
/// Most LSAs sent to one neighbour and not acknowledged yet.
pub const WINDOW: usize = 64;
pub(super) const MS: u64 = 1_000;
pub(super) const MAX_ACKS: usize = 60;
const MAX_PENDING_ACKS: usize = 512;
const MAX_REPLIES: usize = 128;
const MAX_REASSEMBLIES: usize = 4;
pub(super) const FRAGMENT_LEN: usize = 960;
const MAX_FRAGMENTS: usize = MAX_LSA_LEN.div_ceil(FRAGMENT_LEN);
const ACK_DELAY: u64 = 10 * MS;
const RTO_FIRST: u64 = SECOND;
const RTO_MIN: u64 = 100 * MS;
const RTO_MAX: u64 = 4 * SECOND;
/// Messages a neighbour may get at once, and the time that earns one more.
const PACE_BURST: u64 = 32;
const PACE_INTERVAL: u64 = 2 * MS;
const SYNC_ANSWER_WITHIN: u64 = 2 * SECOND;
pub(super) const SYNC_FAST: u64 = SECOND;
/// LSAs that fail their checks a neighbour may send at once before its LSAs are ignored, and the time that earns one.
const INVALID_BURST: u64 = 16;
const INVALID_INTERVAL: u64 = SECOND;
pub(super) const LSA: u8 = 1;
pub(super) const ACK: u8 = 2;
pub(super) const FRAGMENT: u8 = 3;
pub(super) const SUMMARY: u8 = 4;
pub(super) const LIST: u8 = 5;
pub(super) const REQUEST: u8 = 6;
pub(super) const IN_SYNC: u8 = 7;

#[derive(Debug)]
pub(super) struct Neighbour {
    /// Origins whose LSA it is to get.
    pending: BTreeMap<NodeId, Pending>,
    /// Those of `pending` never sent in their present form, by time of arrival.
    fresh: BTreeSet<(Micros, NodeId)>,
    /// The rest, by when they are sent again.
    again: BTreeSet<(Micros, NodeId)>,
    in_flight: BTreeMap<Digest, NodeId>,
    acks: Vec<Digest>,
    ack_due: Option<Micros>,
    replies: VecDeque<Bytes>,
    reassemblies: VecDeque<Reassembly>,
    sync_at: Micros,
    /// Until when an answer to our summary is awaited.
    sync_answer_by: Option<Micros>,
    sync_backoff: u64,
    srtt: Option<u64>,
    pace: Bucket,
    invalid: Bucket,
}

#[derive(Debug)]
struct Pending {
    due: Micros,
    attempts: u32,
    sent: Option<(Digest, Micros)>,
}

#[derive(Debug)]
struct Reassembly {
    digest: Digest,
    age_s: u16,
    bytes: Vec<u8>,
    have: [bool; MAX_FRAGMENTS],
    missing: usize,
}

/// Tokens that come back with time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bucket {
    /// When it will be full again.
    full_at: u64,
}

impl Bucket {
    pub(super) const FULL: Self = Self { full_at: 0 };

    pub(super) fn available(&self, now: Micros, burst: u64, interval: u64) -> bool {
        self.full_at.saturating_sub(now.0) + interval <= burst * interval
    }

    pub(super) fn take(&mut self, now: Micros, interval: u64) {
        self.full_at = self.full_at.max(now.0) + interval;
    }

    /// When one will be available.
    pub(super) fn next(&self, burst: u64, interval: u64) -> Micros {
        Micros((self.full_at + interval).saturating_sub(burst * interval))
    }
}

impl Neighbour {
    pub(super) fn new(sync_at: Micros) -> Self {
        Self {
            pending: BTreeMap::new(),
            fresh: BTreeSet::new(),
            again: BTreeSet::new(),
            in_flight: BTreeMap::new(),
            acks: Vec::new(),
            ack_due: None,
            replies: VecDeque::new(),
            reassemblies: VecDeque::new(),
            sync_at,
            sync_answer_by: None,
            sync_backoff: SYNC_FAST,
            srtt: None,
            pace: Bucket::FULL,
            invalid: Bucket::FULL,
        }
    }

    pub(super) fn rto(&self) -> u64 {
        self.srtt.map_or(RTO_FIRST, |srtt| {
            (3 * srtt + 2 * ACK_DELAY).clamp(RTO_MIN, RTO_MAX)
        })
    }

    /// Makes sure it gets this origin's LSA.
    pub(super) fn offer(&mut self, now: Micros, origin: NodeId, digest: Digest) {
        match self.pending.get(&origin) {
            // On its way, or waiting to be sent as it then is.
            Some(Pending { sent: None, .. }) => {}
            Some(Pending {
                sent: Some((sent, _)),
                ..
            }) if *sent == digest => {}
            _ => {
                self.drop_pending(&origin);
                self.pending.insert(
                    origin,
                    Pending {
                        due: now,
                        attempts: 0,
                        sent: None,
                    },
                );
                self.fresh.insert((now, origin));
            }
        }
    }

    /// It has an LSA of the origin that makes sending ours pointless.
    pub(super) fn drop_pending(&mut self, origin: &NodeId) {
        if let Some(pending) = self.pending.remove(origin) {
            self.fresh.remove(&(pending.due, *origin));
            self.again.remove(&(pending.due, *origin));
            if let Some((digest, _)) = pending.sent {
                self.in_flight.remove(&digest);
            }
        }
    }

    pub(super) fn acknowledged(&mut self, now: Micros, digest: &Digest) {
        let Some(origin) = self.in_flight.get(digest).copied() else {
            return;
        };
        let Some(pending) = self.pending.get(&origin) else {
            return;
        };
        if let Some((_, at)) = pending.sent.filter(|_| pending.attempts == 1) {
            let sample = now.0.saturating_sub(at.0);
            self.srtt = Some(self.srtt.map_or(sample, |srtt| (7 * srtt + sample) / 8));
        }
        self.drop_pending(&origin);
    }

    pub(super) fn acknowledge(&mut self, now: Micros, digest: Digest) {
        if self.acks.len() < MAX_PENDING_ACKS && !self.acks.contains(&digest) {
            self.acks.push(digest);
            self.ack_due.get_or_insert(Micros(now.0 + ACK_DELAY));
        }
    }

    pub(super) fn reply(&mut self, section: Vec<u8>) -> bool {
        let room = self.replies.len() < MAX_REPLIES;
        if room {
            self.replies.push_back(section.into());
        }
        room
    }

    /// An answer to our summary came: `differs` says whether there is more to do.
    pub(super) fn synced(&mut self, now: Micros, differs: bool, interval: u64) {
        if self.sync_answer_by.take().is_none() {
            return;
        }
        if differs {
            self.sync_at = Micros(now.0 + self.sync_backoff.min(interval));
            self.sync_backoff = (self.sync_backoff * 2).min(interval);
        } else {
            self.sync_backoff = SYNC_FAST;
            self.sync_at = Micros(now.0 + interval);
        }
    }

    pub(super) fn next_event(&self) -> Micros {
        let pace = self.pace.next(PACE_BURST, PACE_INTERVAL);
        let fresh = self
            .fresh
            .first()
            .filter(|_| self.in_flight.len() < WINDOW)
            .map(|(at, _)| *at);
        let again = self.again.first().map(|(at, _)| *at);
        let replies = (!self.replies.is_empty()).then_some(Micros(0));
        let due = [fresh, again, replies, self.ack_due, Some(self.sync_at)]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(self.sync_at);
        due.max(pace)
    }
}

impl Neighbour {
    /// Entries that wait for it, for its answer, or to be answered.
    pub(super) fn queued(&self) -> usize {
        self.pending.len() + self.replies.len() + self.acks.len()
    }

    /// It sent an LSA that is none.
    pub(super) fn sent_invalid(&mut self, now: Micros) {
        self.invalid.take(now, INVALID_INTERVAL);
    }

    /// Whether it sent so many of those that its LSAs are not looked at for now.
    pub(super) fn is_muted(&self, now: Micros) -> bool {
        !self.invalid.available(now, INVALID_BURST, INVALID_INTERVAL)
    }

    /// Takes a part of an LSA; gives the whole with its age once it is complete.
    pub(super) fn on_fragment(
        &mut self,
        digest: Digest,
        age_s: u16,
        total: u16,
        index: u8,
        chunk: &[u8],
    ) -> Result<Option<(u16, Vec<u8>)>, WireError> {
        let (total, index) = (usize::from(total), usize::from(index));
        let count = total.div_ceil(FRAGMENT_LEN);
        let expected = total.saturating_sub(index * FRAGMENT_LEN).min(FRAGMENT_LEN);
        if total > MAX_LSA_LEN || index >= count || chunk.len() != expected {
            return Err(WireError::Value {
                field: "fragment",
                value: index as u64,
            });
        }
        let held = &mut self.reassemblies;
        let at = match held
            .iter()
            .position(|r| r.digest == digest && r.bytes.len() == total)
        {
            Some(at) => at,
            None => {
                if held.len() >= MAX_REASSEMBLIES {
                    held.pop_front();
                }
                held.push_back(Reassembly {
                    digest,
                    age_s,
                    bytes: vec![0; total],
                    have: [false; MAX_FRAGMENTS],
                    missing: count,
                });
                held.len() - 1
            }
        };
        let reassembly = &mut held[at];
        if !std::mem::replace(&mut reassembly.have[index], true) {
            reassembly.bytes[index * FRAGMENT_LEN..][..chunk.len()].copy_from_slice(chunk);
            reassembly.missing -= 1;
        }
        reassembly.age_s = reassembly.age_s.max(age_s);
        if reassembly.missing > 0 {
            return Ok(None);
        }
        let done = held.remove(at).map(|r| (r.age_s, r.bytes));
        Ok(done.filter(|(_, bytes)| Digest::of(bytes) == digest))
    }

    /// Packs what is due into one message.
    pub(super) fn message(
        &mut self,
        now: Micros,
        lsdb: &Lsdb,
        sync_interval: u64,
    ) -> Option<Bytes> {
        if self.sync_at <= now {
            let items = reconcile::items(lsdb, now, Range::ALL);
            self.reply(summary_section(
                false,
                Range::ALL.first,
                &reconcile::split(&items, Range::ALL),
            ));
            // Asked again sooner where no answer comes, but ever more rarely.
            self.sync_answer_by = Some(Micros(now.0 + SYNC_ANSWER_WITHIN));
            self.sync_at = Micros(now.0 + SYNC_ANSWER_WITHIN + self.sync_backoff);
            self.sync_backoff = (self.sync_backoff * 2).min(sync_interval);
        }
        let mut writer = Writer::with_capacity(MAX_MESSAGE);
        self.write_replies(&mut writer);
        loop {
            let again = self.again.first().filter(|(due, _)| *due <= now);
            let fresh = self.fresh.first().filter(|_| self.in_flight.len() < WINDOW);
            let Some(&(_, origin)) = again.or(fresh) else {
                break;
            };
            let Some(entry) = lsdb.get(&origin).filter(|entry| entry.worth_sending(now)) else {
                self.drop_pending(&origin);
                continue;
            };
            let (encoded, age_s) = (entry.lsa.encoded(), entry.age_s(now));
            let len = 1 + 2 + 2 + encoded.len();
            if len <= MAX_MESSAGE {
                if writer.len() + len > MAX_MESSAGE {
                    break;
                }
                writer.u8(LSA).u16(age_s).var_bytes(encoded);
            } else if self.replies.len() + MAX_FRAGMENTS <= MAX_REPLIES {
                for (index, chunk) in encoded.chunks(FRAGMENT_LEN).enumerate() {
                    self.replies
                        .push_back(fragment_section(&entry.lsa, age_s, index, chunk));
                }
                self.write_replies(&mut writer);
            } else {
                break;
            }
            self.mark_sent(now, origin, entry.lsa.digest);
        }
        if !self.acks.is_empty()
            && (!writer.is_empty() || self.ack_due.is_some_and(|due| due <= now))
        {
            let room = MAX_MESSAGE.saturating_sub(writer.len() + 3) / 16;
            let acks: Vec<_> = self
                .acks
                .drain(..self.acks.len().min(room).min(MAX_ACKS))
                .collect();
            if !acks.is_empty() {
                writer.u8(ACK).list(&acks, |writer, digest| {
                    writer.bytes(&digest.0);
                });
            }
            if self.acks.is_empty() {
                self.ack_due = None;
            }
        }
        if writer.is_empty() {
            return None;
        }
        self.pace.take(now, PACE_INTERVAL);
        Some(writer.finish().into())
    }

    pub(super) fn write_replies(&mut self, writer: &mut Writer) {
        while let Some(section) = self.replies.front()
            && writer.len() + section.len() <= MAX_MESSAGE
        {
            writer.bytes(section);
            self.replies.pop_front();
        }
    }

    pub(super) fn mark_sent(&mut self, now: Micros, origin: NodeId, digest: Digest) {
        let rto = self.rto();
        let Some(pending) = self.pending.get_mut(&origin) else {
            return;
        };
        self.fresh.remove(&(pending.due, origin));
        self.again.remove(&(pending.due, origin));
        if let Some((old, _)) = pending.sent.replace((digest, now))
            && old != digest
        {
            self.in_flight.remove(&old);
            pending.attempts = 0;
        }
        pending.due = Micros(now.0 + (rto << pending.attempts.min(6)).min(RTO_MAX));
        pending.attempts += 1;
        self.in_flight.insert(digest, origin);
        self.again.insert((pending.due, origin));
    }
}

fn fragment_section(lsa: &Lsa, age_s: u16, index: usize, chunk: &[u8]) -> Bytes {
    let mut writer = Writer::with_capacity(chunk.len() + 24);
    let total = u16::try_from(lsa.encoded().len()).unwrap_or(u16::MAX);
    writer
        .u8(FRAGMENT)
        .bytes(&lsa.digest.0)
        .u16(age_s)
        .u16(total);
    writer
        .u8(u8::try_from(index).unwrap_or(u8::MAX))
        .var_bytes(chunk);
    writer.finish().into()
}

pub(super) fn summary_section(
    answer: bool,
    first: NodeId,
    ranges: &[(NodeId, u32, Digest)],
) -> Vec<u8> {
    let mut writer = Writer::with_capacity(MAX_MESSAGE);
    writer.u8(SUMMARY).bool(answer).node_id(&first).list(
        ranges,
        |writer, (last, count, fingerprint)| {
            writer.node_id(last).u32(*count).bytes(&fingerprint.0);
        },
    );
    writer.finish()
}

pub(super) fn list_section(range: Range, items: &[Item]) -> Vec<u8> {
    let mut writer = Writer::with_capacity(MAX_MESSAGE);
    writer
        .u8(LIST)
        .node_id(&range.first)
        .node_id(&range.last)
        .list(items, |writer, item| {
            writer
                .node_id(&item.origin)
                .u64(item.sequence)
                .bytes(&item.digest.0);
        });
    writer.finish()
}
