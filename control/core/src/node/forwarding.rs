//! The one owner of the forwarding tables' indices: labels, next-hop groups, next hops and slots.
//!
//! Whatever was freed rests before it is used again, so that packets still on their way, and neighbours that do not
//! know yet, never meet another's entry. Every change of the tables goes out through here.

use std::collections::{BTreeSet, VecDeque};

use weft_abi::{GroupIndex, Label, LfibEntry, NextHopIndex, Slot, TagKey};

use crate::{
    io::{DataplaneOp, Micros, Output, Randomness, UnderlayPath},
    node::{config::Limits, context::Outbox},
};

/// Numbers of a range, handed out once each.
#[derive(Debug)]
struct Allocator {
    first: u32,
    last: u32,
    cursor: u32,
    used: BTreeSet<u32>,
    resting: VecDeque<(Micros, u32)>,
}

impl Allocator {
    fn new(first: u32, last: u32) -> Self {
        Self {
            first,
            last,
            cursor: first,
            used: BTreeSet::new(),
            resting: VecDeque::new(),
        }
    }

    fn capacity(&self) -> usize {
        (self.last - self.first) as usize + 1
    }

    fn next_free(&mut self) -> Option<u32> {
        if self.used.len() >= self.capacity() {
            return None;
        }
        // Walks over runs of used numbers; there is a free one, so it ends.
        while self.used.contains(&self.cursor) {
            self.cursor = if self.cursor == self.last {
                self.first
            } else {
                self.cursor + 1
            };
        }
        let number = self.cursor;
        self.used.insert(number);
        self.cursor = if number == self.last {
            self.first
        } else {
            number + 1
        };
        Some(number)
    }

    /// One that cannot be guessed from the ones before.
    fn random_free(&mut self, rng: &mut dyn Randomness) -> Option<u32> {
        let mut bytes = [0; 4];
        rng.fill(&mut bytes);
        self.cursor = self.first + u32::from_be_bytes(bytes) % (self.last - self.first + 1);
        self.next_free()
    }

    fn claim(&mut self, number: u32) -> bool {
        (self.first..=self.last).contains(&number) && self.used.insert(number)
    }

    fn rest(&mut self, number: u32, until: Micros) {
        self.resting.push_back((until, number));
    }

    fn give_back(&mut self, number: u32) {
        self.used.remove(&number);
    }

    fn rested(&mut self, now: Micros) -> Option<u32> {
        let &(until, number) = self.resting.front()?;
        if until > now {
            return None;
        }
        self.resting.pop_front();
        self.used.remove(&number);
        Some(number)
    }
}

/// The allocators and the way to the tables.
#[derive(Debug)]
pub(crate) struct Forwarding {
    labels: Allocator,
    groups: Allocator,
    next_hops: Allocator,
    slots: Allocator,
    rest: Micros,
}

impl Forwarding {
    pub(crate) fn new(limits: &Limits, rest: Micros) -> Self {
        Self {
            labels: Allocator::new(*limits.labels.start(), *limits.labels.end()),
            groups: Allocator::new(1, limits.groups),
            next_hops: Allocator::new(1, limits.next_hops),
            slots: Allocator::new(1, limits.slots.into()),
            rest,
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        [&self.labels, &self.groups, &self.next_hops, &self.slots]
            .iter()
            .filter_map(|a| a.resting.front().map(|(until, _)| *until))
            .min()
    }

    /// Gives back what has rested.
    pub(crate) fn handle_timeout(&mut self, now: Micros, out: &mut Outbox) {
        while let Some(slot) = self.slots.rested(now) {
            out.push(Output::Dataplane(DataplaneOp::RemoveSlot {
                slot: Slot(slot as u16),
            }));
        }
        while let Some(index) = self.next_hops.rested(now) {
            out.push(Output::Dataplane(DataplaneOp::RemoveNextHop {
                index: NextHopIndex(index),
            }));
        }
        while self.labels.rested(now).is_some() || self.groups.rested(now).is_some() {}
    }

    /// Reserves a slot; it stands in the tables from [`Self::add_slot`] on. Chosen at random, so that after a restart
    /// without a snapshot what neighbours still send to old slots hardly meets new ones.
    pub(crate) fn reserve_slot(&mut self, rng: &mut dyn Randomness) -> Option<Slot> {
        self.slots.random_free(rng).map(|slot| Slot(slot as u16))
    }

    pub(crate) fn claim_slot(&mut self, slot: Slot) -> bool {
        self.slots.claim(slot.0.into())
    }

    /// Gives back a slot that was never added.
    pub(crate) fn unreserve_slot(&mut self, slot: Slot) {
        self.slots.give_back(slot.0.into());
    }

    pub(crate) fn add_slot(
        &mut self,
        out: &mut Outbox,
        slot: Slot,
        key: TagKey,
        path: UnderlayPath,
        echo: Option<NextHopIndex>,
    ) {
        out.push(Output::Dataplane(DataplaneOp::AddSlot {
            slot,
            key,
            path,
            echo,
        }));
    }

    /// Nothing comes on it any more; it is removed when it has rested.
    pub(crate) fn retire_slot(&mut self, now: Micros, out: &mut Outbox, slot: Slot) {
        out.push(Output::Dataplane(DataplaneOp::RetireSlot { slot }));
        self.slots.rest(slot.0.into(), now + self.rest);
    }

    pub(crate) fn reserve_next_hop(&mut self) -> Option<NextHopIndex> {
        self.next_hops.next_free().map(NextHopIndex)
    }

    pub(crate) fn unreserve_next_hop(&mut self, index: NextHopIndex) {
        self.next_hops.give_back(index.0);
    }

    pub(crate) fn claim_next_hop(&mut self, index: NextHopIndex) -> bool {
        self.next_hops.claim(index.0)
    }

    /// Stops its use at once; the index is removed when it has rested.
    pub(crate) fn retire_next_hop(&mut self, now: Micros, out: &mut Outbox, index: NextHopIndex) {
        out.push(Output::Dataplane(DataplaneOp::SetNextHopUp {
            index,
            up: false,
        }));
        self.next_hops.rest(index.0, now + self.rest);
    }

    pub(crate) fn reserve_group(&mut self) -> Option<GroupIndex> {
        self.groups.next_free().map(GroupIndex)
    }

    pub(crate) fn claim_group(&mut self, group: GroupIndex) -> bool {
        self.groups.claim(group.0)
    }

    pub(crate) fn free_group(&mut self, now: Micros, out: &mut Outbox, group: GroupIndex) {
        let none = (NextHopIndex(0), NextHopIndex(0));
        out.push(Output::Dataplane(DataplaneOp::SetGroup {
            group,
            buckets: [none; 16],
        }));
        self.groups.rest(group.0, now + self.rest);
    }

    pub(crate) fn add_label(
        &mut self,
        rng: &mut dyn Randomness,
        out: &mut Outbox,
        entry: LfibEntry,
    ) -> Option<Label> {
        let label = self.labels.random_free(rng).map(Label)?;
        out.push(Output::Dataplane(DataplaneOp::SetLabel { label, entry }));
        Some(label)
    }

    pub(crate) fn claim_label(&mut self, label: Label) -> bool {
        self.labels.claim(label.0)
    }

    pub(crate) fn set_label(&mut self, out: &mut Outbox, label: Label, entry: LfibEntry) {
        out.push(Output::Dataplane(DataplaneOp::SetLabel { label, entry }));
    }

    pub(crate) fn free_label(&mut self, now: Micros, out: &mut Outbox, label: Label) {
        out.push(Output::Dataplane(DataplaneOp::SetLabel {
            label,
            entry: LfibEntry::default(),
        }));
        self.labels.rest(label.0, now + self.rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::noise::test_rng::Seeded;

    #[test]
    fn numbers_rest_before_reuse() {
        let mut allocator = Allocator::new(16, 18);
        let mut rng = Seeded(1, 0);
        let taken: BTreeSet<_> = (0..3)
            .filter_map(|_| allocator.random_free(&mut rng))
            .collect();
        assert_eq!(taken, BTreeSet::from([16, 17, 18]));
        assert_eq!(allocator.random_free(&mut rng), None);
        allocator.rest(17, Micros(10));
        assert_eq!(allocator.rested(Micros(9)), None);
        assert_eq!(allocator.next_free(), None);
        assert_eq!(allocator.rested(Micros(10)), Some(17));
        assert_eq!(allocator.next_free(), Some(17));
        assert!(!allocator.claim(17));
    }
}
