//! The core's operations, written into the tables. Each is idempotent, and a reader between two stores of one
//! operation sees an entry that is either not in use or whole.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use weft_abi::{Encapsulation, LANES, LinkState, NextHopIndex, Slot};
use weft_core::io::{DataplaneOp, UnderlayPath};

use super::{EGRESS_SETTLE, Egress, Error, encapsulation, memory::Memory};

/// What a next hop was made of, for remaking its encapsulation.
struct Hop {
    path: UnderlayPath,
    mtu: u16,
    egress: Option<Egress>,
    changed: Option<Instant>,
}

/// The next hops in use.
#[derive(Default)]
pub(super) struct Projection {
    hops: HashMap<u32, Hop>,
}

fn index<T>(what: &'static str, value: u32, entry: Option<T>, limit: usize) -> Result<T, Error> {
    entry.filter(|_| value != 0).ok_or(Error::OutOfBounds {
        what,
        value: value.into(),
        limit: limit as u64,
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
            } => self.add_slot(memory, *slot, key.words(), path, *echo),
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
                let link = link(memory, *slot)?;
                link.state.store(LinkState::Free as u32);
                link.echo.store(0);
                link.key.each_ref().map(|word| word.store(0));
                Ok(())
            }
            DataplaneOp::AddNextHop {
                index,
                path,
                slot,
                key,
                mtu,
            } => self.add_next_hop(memory, *index, path, *slot, key.words(), *mtu),
            DataplaneOp::SetNextHopUp { index: hop, up } => {
                let limit = memory.next_hop_up.len();
                let word = index(
                    "next hop",
                    hop.0,
                    memory.next_hop_up.get(hop.0 as usize),
                    limit,
                )?;
                word.store(u64::from(*up));
                Ok(())
            }
            DataplaneOp::RemoveNextHop { index: hop } => {
                let limit = memory.next_hops.len();
                let entry = index(
                    "next hop",
                    hop.0,
                    memory.next_hops.get(hop.0 as usize),
                    limit,
                )?;
                if let Some(up) = memory.next_hop_up.get(hop.0 as usize) {
                    up.store(0);
                }
                entry.generation.store(0);
                entry.key.each_ref().map(|word| word.store(0));
                self.hops.remove(&hop.0);
                Ok(())
            }
            DataplaneOp::SetGroup { group, buckets } => {
                let entry = index(
                    "group",
                    group.0,
                    memory.groups.get(group.0 as usize),
                    memory.groups.len(),
                )?;
                for (word, (primary, backup)) in entry.buckets.iter().zip(buckets) {
                    word.store(u64::from(primary.0) << 32 | u64::from(backup.0));
                }
                Ok(())
            }
            DataplaneOp::SetLabel { label, entry } => {
                let word = index(
                    "label",
                    label.0,
                    memory.lfib.get(label.0 as usize),
                    memory.lfib.len(),
                )?;
                word.store(entry.0);
                Ok(())
            }
        }
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
        let same = link.state.load() != LinkState::Free as u32 && link.key() == key;
        if !same {
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
        link.echo.store(echo.map_or(0, |echo| echo.0));
        link.state.store(LinkState::Live as u32);
        Ok(())
    }

    fn add_next_hop(
        &mut self,
        memory: &Memory,
        hop: NextHopIndex,
        path: &UnderlayPath,
        slot: Slot,
        key: [u64; 2],
        mtu: u16,
    ) -> Result<(), Error> {
        let limit = memory.next_hops.len();
        let entry = index(
            "next hop",
            hop.0,
            memory.next_hops.get(hop.0 as usize),
            limit,
        )?;
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
            for lane in 0..LANES as usize {
                if let Some(seq) = memory.tx_seq.get(first + lane) {
                    seq.store(0);
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

    /// Rewrites a next hop's encapsulation if it differs.
    pub(super) fn set_egress(
        &mut self,
        memory: &Memory,
        hop: NextHopIndex,
        egress: Option<Egress>,
        usable: impl Fn(&Egress) -> bool,
    ) -> Result<(), Error> {
        let limit = memory.next_hops.len();
        let entry = index(
            "next hop",
            hop.0,
            memory.next_hops.get(hop.0 as usize),
            limit,
        )?;
        let Some(state) = self.hops.get_mut(&hop.0) else {
            return Err(Error::UnknownNextHop { index: hop.0 });
        };
        state.egress = egress;
        let kernel = egress.filter(usable);
        let mtu = egress.map_or(state.mtu, |egress| egress.mtu.min(state.mtu));
        let value = build(&state.path, mtu, kernel)?;
        if entry.snapshot() == Some(value) {
            return Ok(());
        }
        // A reader of the encapsulation before last must be done by now.
        if let Some(changed) = state.changed {
            std::thread::sleep(
                EGRESS_SETTLE
                    .saturating_sub(changed.elapsed())
                    .min(Duration::from_millis(10)),
            );
        }
        entry.replace(&value);
        state.changed = Some(Instant::now());
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

fn link(memory: &Memory, slot: Slot) -> Result<&weft_abi::RxLink, Error> {
    let entry = memory.rx_links.get(usize::from(slot.0));
    index("slot", u32::from(slot.0), entry, memory.rx_links.len())
}

fn build(path: &UnderlayPath, mtu: u16, egress: Option<Egress>) -> Result<Encapsulation, Error> {
    encapsulation::build(path.local, path.remote, mtu, egress).ok_or(Error::MixedFamilies {
        local: path.local,
        remote: path.remote,
    })
}
