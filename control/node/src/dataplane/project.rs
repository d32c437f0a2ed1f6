//! The core's operations, written into the tables. Each is idempotent, and a reader between two stores of one
//! operation sees an entry that is either not in use or whole.

use std::{
    collections::{HashMap, HashSet},
    time::Instant,
};

use weft_abi::{Encapsulation, LANES, LfibEntry, LinkState, NextHopIndex, RxLink, Slot};
use weft_core::io::{DataplaneOp, SEQ_SKIP, UnderlayPath};

use super::{
    EGRESS_SETTLE, Egress, Error, encapsulation,
    memory::{Memory, Region, Shared},
};

/// What a next hop was made of, for remaking its encapsulation.
struct Hop {
    path: UnderlayPath,
    mtu: u16,
    egress: Option<Egress>,
    changed: Option<Instant>,
}

impl Hop {
    /// From when on its encapsulation may be changed again.
    fn due(&self) -> Option<Instant> {
        self.changed.map(|changed| changed + EGRESS_SETTLE)
    }
}

/// What the core has put into the tables. More may stand there after tables of an earlier run were taken over.
#[derive(Default)]
struct Described {
    slots: HashSet<u16>,
    hops: HashSet<u32>,
    groups: HashSet<u32>,
    labels: HashSet<u32>,
}

/// The next hops in use.
#[derive(Default)]
pub(super) struct Projection {
    hops: HashMap<u32, Hop>,
    described: Described,
    /// Next hops whose encapsulation was changed a moment ago and is to be changed again.
    late: HashSet<u32>,
}

/// The entry at an index of the core's choice; index 0 stands for none everywhere.
fn checked<'a, T: Shared>(
    what: &'static str,
    index: u32,
    table: &'a Region<T>,
) -> Result<&'a T, Error> {
    table
        .get(index as usize)
        .filter(|_| index != 0)
        .ok_or(Error::OutOfBounds {
            what,
            value: index.into(),
            limit: table.len() as u64,
        })
}

impl Projection {
    pub(super) fn apply(&mut self, memory: &Memory, op: &DataplaneOp) -> Result<(), Error> {
        match op {
            DataplaneOp::AddSlot {
                slot,
                key,
                path,
                echo,
            } => {
                self.add_slot(memory, *slot, key.words(), path, *echo)?;
                self.described.slots.insert(slot.0);
                Ok(())
            }
            DataplaneOp::SetSlotPath { slot, path } => {
                set_path(link(memory, *slot)?, path);
                Ok(())
            }
            DataplaneOp::SetEcho { slot, echo } => {
                link(memory, *slot)?
                    .echo
                    .store(echo.map_or(0, |echo| echo.0));
                Ok(())
            }
            DataplaneOp::RetireSlot { slot } => {
                link(memory, *slot)?.state.store(LinkState::Retired as u32);
                Ok(())
            }
            DataplaneOp::RemoveSlot { slot } => {
                remove_slot(link(memory, *slot)?);
                self.described.slots.remove(&slot.0);
                Ok(())
            }
            DataplaneOp::AddNextHop {
                index,
                path,
                slot,
                key,
                mtu,
                seq_from,
            } => {
                self.add_next_hop(memory, *index, path, (*slot, key.words()), *mtu, *seq_from)?;
                self.described.hops.insert(index.0);
                Ok(())
            }
            DataplaneOp::SetNextHopUp { index, up } => {
                checked("next hop", index.0, &memory.next_hop_up)?.store(u64::from(*up));
                Ok(())
            }
            DataplaneOp::RemoveNextHop { index } => {
                checked("next hop", index.0, &memory.next_hops)?;
                self.remove_next_hop(memory, index.0);
                Ok(())
            }
            DataplaneOp::SetGroup { group, buckets } => {
                let entry = checked("group", group.0, &memory.groups)?;
                for (word, (primary, backup)) in entry.buckets.iter().zip(buckets) {
                    word.store(u64::from(primary.0) << 32 | u64::from(backup.0));
                }
                self.described.groups.insert(group.0);
                Ok(())
            }
            DataplaneOp::SetLabel { label, entry } => {
                checked("label", label.0, &memory.lfib)?.store(entry.0);
                if *entry == LfibEntry::EMPTY {
                    self.described.labels.remove(&label.0);
                } else {
                    self.described.labels.insert(label.0);
                }
                Ok(())
            }
            DataplaneOp::Restored => {
                self.remove_undescribed(memory);
                Ok(())
            }
        }
    }

    /// Labels first: nothing is removed while something leads to it.
    fn remove_undescribed(&mut self, memory: &Memory) {
        for (label, word) in memory.lfib.iter() {
            if word.load() != 0 && !self.described.labels.contains(&label) {
                word.store(0);
            }
        }
        for (group, entry) in memory.groups.iter() {
            if !self.described.groups.contains(&group) {
                entry.buckets.iter().for_each(|word| word.store(0));
            }
        }
        for (index, hop) in memory.next_hops.iter() {
            let up = memory
                .next_hop_up
                .get(index as usize)
                .is_some_and(|up| up.load() != 0);
            if (up || hop.generation.load() != 0) && !self.described.hops.contains(&index) {
                self.remove_next_hop(memory, index);
            }
        }
        for (slot, link) in memory.rx_links.iter() {
            let described =
                u16::try_from(slot).is_ok_and(|slot| self.described.slots.contains(&slot));
            if link.state.load() != LinkState::Free as u32 && !described {
                remove_slot(link);
            }
        }
    }

    fn remove_next_hop(&mut self, memory: &Memory, index: u32) {
        if let Some(up) = memory.next_hop_up.get(index as usize) {
            up.store(0);
        }
        if let Some(hop) = memory.next_hops.get(index as usize) {
            hop.generation.store(0);
            hop.key.iter().for_each(|word| word.store(0));
        }
        self.hops.remove(&index);
        self.described.hops.remove(&index);
    }

    fn add_slot(
        &mut self,
        memory: &Memory,
        slot: Slot,
        key: [u64; 2],
        path: &UnderlayPath,
        echo: Option<NextHopIndex>,
    ) -> Result<(), Error> {
        let link = link(memory, slot)?;
        if !holds(link, key) {
            link.state.store(LinkState::Free as u32);
            let first = usize::from(slot.0) * LANES as usize;
            for lane in 0..LANES as usize {
                if let Some(window) = memory.rx_windows.get(first + lane) {
                    window.reset();
                }
            }
            link.key[0].store(key[0]);
            link.key[1].store(key[1]);
        }
        set_path(link, path);
        link.echo.store(echo.map_or(0, |echo| echo.0));
        link.state.store(LinkState::Live as u32);
        Ok(())
    }

    fn add_next_hop(
        &mut self,
        memory: &Memory,
        hop: NextHopIndex,
        path: &UnderlayPath,
        far_end: (Slot, [u64; 2]),
        mtu: u16,
        seq_from: NextHopIndex,
    ) -> Result<(), Error> {
        let (slot, key) = far_end;
        let entry = checked("next hop", hop.0, &memory.next_hops)?;
        let fresh = build(path, mtu, None)?;
        let same = entry.generation.load() != 0
            && entry.key() == key
            && entry.slot.load() == u64::from(slot.0);
        if !same {
            if let Some(up) = memory.next_hop_up.get(hop.0 as usize) {
                up.store(0);
            }
            entry.generation.store(0);
            let first = hop.0 as usize * LANES as usize;
            let from = seq_from.0 as usize * LANES as usize;
            for lane in 0..LANES as usize {
                let before = memory.tx_seq.get(from + lane).filter(|_| seq_from.0 != 0);
                if let Some(seq) = memory.tx_seq.get(first + lane) {
                    seq.store(before.map_or(0, |before| before.load() + SEQ_SKIP));
                }
            }
            entry.key[0].store(key[0]);
            entry.key[1].store(key[1]);
            entry.slot.store(u64::from(slot.0));
        }
        // An earlier run's encapsulation is good while it leads the same way; the shell confirms it soon.
        let leads_there = entry.snapshot().is_some_and(|held| {
            encapsulation::endpoints(&held) == encapsulation::endpoints(&fresh) && held.mtu <= mtu
        });
        if !leads_there {
            entry.replace(&fresh);
        }
        if let Some(up) = memory.next_hop_up.get(hop.0 as usize) {
            up.store(1);
        }
        let egress = self
            .hops
            .get(&hop.0)
            .filter(|_| leads_there)
            .and_then(|hop| hop.egress);
        self.hops.insert(
            hop.0,
            Hop {
                path: *path,
                mtu,
                egress,
                changed: None,
            },
        );
        Ok(())
    }

    /// Rewrites a next hop's encapsulation if it differs; a little later where it was rewritten a moment ago.
    pub(super) fn set_egress(
        &mut self,
        memory: &Memory,
        hop: NextHopIndex,
        egress: Option<Egress>,
        usable: impl Fn(&Egress) -> bool,
    ) -> Result<(), Error> {
        let entry = checked("next hop", hop.0, &memory.next_hops)?;
        let Some(state) = self.hops.get_mut(&hop.0) else {
            return Err(Error::UnknownNextHop { index: hop.0 });
        };
        state.egress = egress;
        self.late.remove(&hop.0);
        let kernel = egress.filter(usable);
        let mtu = egress.map_or(state.mtu, |egress| egress.mtu.min(state.mtu));
        let value = build(&state.path, mtu, kernel)?;
        if entry.snapshot() == Some(value) {
            return Ok(());
        }
        // A reader of the encapsulation before last must be done before it is written over.
        if state.due().is_some_and(|due| due > Instant::now()) {
            self.late.insert(hop.0);
            return Ok(());
        }
        entry.replace(&value);
        state.changed = Some(Instant::now());
        Ok(())
    }

    /// When [`Projection::tend`] has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        let late = self.late.iter().filter_map(|hop| self.hops.get(hop));
        late.filter_map(Hop::due).min()
    }

    /// Makes the changes that had to wait.
    pub(super) fn tend(
        &mut self,
        memory: &Memory,
        usable: impl Fn(&Egress) -> bool,
    ) -> Result<(), Error> {
        for index in std::mem::take(&mut self.late) {
            if let Some(egress) = self.hops.get(&index).map(|hop| hop.egress) {
                self.set_egress(memory, NextHopIndex(index), egress, &usable)?;
            }
        }
        Ok(())
    }

    /// Judges every egress again, after `usable` changed.
    pub(super) fn refresh(
        &mut self,
        memory: &Memory,
        usable: impl Fn(&Egress) -> bool,
    ) -> Result<(), Error> {
        let hops: Vec<_> = self
            .hops
            .iter()
            .map(|(index, hop)| (*index, hop.egress))
            .collect();
        for (index, egress) in hops {
            if egress.is_some() {
                self.set_egress(memory, NextHopIndex(index), egress, &usable)?;
            }
        }
        Ok(())
    }
}

fn link(memory: &Memory, slot: Slot) -> Result<&RxLink, Error> {
    checked("slot", u32::from(slot.0), &memory.rx_links)
}

/// Whether a slot is in use with this key.
fn holds(link: &RxLink, key: [u64; 2]) -> bool {
    link.state.load() != LinkState::Free as u32 && link.key() == key
}

/// The slot that an operation gives to another link.
pub(super) fn renewed(memory: &Memory, op: &DataplaneOp) -> Option<Slot> {
    match op {
        DataplaneOp::AddSlot { slot, key, .. } => link(memory, *slot)
            .is_ok_and(|link| !holds(link, key.words()))
            .then_some(*slot),
        _ => None,
    }
}

fn set_path(link: &RxLink, path: &UnderlayPath) {
    let (local, remote) = (
        encapsulation::address(path.local.ip()),
        encapsulation::address(path.remote.ip()),
    );
    for i in 0..2 {
        link.local[i].store(local.0[i]);
        link.remote[i].store(remote.0[i]);
    }
    link.ports
        .store(u64::from(path.local.port()) | u64::from(path.remote.port()) << 16);
}

fn remove_slot(link: &RxLink) {
    link.state.store(LinkState::Free as u32);
    link.echo.store(0);
    link.key.iter().for_each(|word| word.store(0));
}

fn build(path: &UnderlayPath, mtu: u16, egress: Option<Egress>) -> Result<Encapsulation, Error> {
    encapsulation::build(path.local, path.remote, mtu, egress).ok_or(Error::MixedFamilies {
        local: path.local,
        remote: path.remote,
    })
}
