//! The maps as the decision sees them.

use aya_ebpf::Global;
use weft_abi::{
    Address, Cell64, Config, LANES, Label, LfibEntry, NextHop, PacketCount, RxLink, Slot, Tables,
    Window,
};

use crate::maps::{
    CONFIG, LABELS, LFIB, LOCAL_ADDRESSES, NEXT_HOP_UP, NEXT_HOPS, NH_GROUPS, RX_COUNTS, RX_LINKS,
    RX_WINDOWS, TX_SEQ,
};

pub struct Maps;

/// A word of a map that other processors and user space write.
#[inline(always)]
fn word(value: Option<*mut u64>) -> Option<&'static Cell64> {
    // SAFETY: map values live as long as the program, and a Cell64 is a u64 that is only accessed whole.
    value.map(|word| unsafe { &*word.cast() })
}

/// Our UDP port as its two bytes lie in memory: set when the program is loaded, and so a constant to the kernel.
#[unsafe(no_mangle)]
static PORT: Global<u16> = Global::new(0);

impl Tables for Maps {
    #[inline(always)]
    fn port(&self) -> u16 {
        PORT.load()
    }

    #[inline(always)]
    fn config(&self) -> Option<&Config> {
        CONFIG.get(0)
    }

    #[inline(always)]
    fn rx_link(&self, slot: Slot) -> Option<&RxLink> {
        RX_LINKS.get(u32::from(slot.0))
    }

    #[inline(always)]
    fn window(&self, slot: Slot, lane: u8) -> Option<&Window> {
        RX_WINDOWS.get(u32::from(slot.0) * LANES + u32::from(lane))
    }

    #[inline(always)]
    fn lfib(&self, label: Label) -> LfibEntry {
        match word(LFIB.get_ptr_mut(label.0)) {
            Some(word) => LfibEntry(word.load()),
            None => LfibEntry::EMPTY,
        }
    }

    #[inline(always)]
    fn bucket(&self, group: u32, lane: u8) -> u64 {
        match NH_GROUPS.get(group) {
            Some(group) => group.buckets[usize::from(lane & 0x0f)].load(),
            None => 0,
        }
    }

    #[inline(always)]
    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        NEXT_HOPS.get(index)
    }

    #[inline(always)]
    fn is_up(&self, index: u32) -> bool {
        match word(NEXT_HOP_UP.get_ptr_mut(index)) {
            Some(word) => word.load() != 0,
            None => false,
        }
    }

    #[inline(always)]
    fn next_seq(&self, next_hop: u32, lane: u8) -> Option<u32> {
        let seq = word(TX_SEQ.get_ptr_mut(next_hop * LANES + u32::from(lane)))?.fetch_add(1) + 1;
        if seq >> 32 == 0 {
            Some(seq as u32)
        } else {
            None
        }
    }

    #[inline(always)]
    fn is_local(&self, address: &Address) -> bool {
        LOCAL_ADDRESSES.get_ptr(address.0).is_some()
    }

    #[inline(always)]
    fn count_admitted(&self, slot: Slot, _: u8, bytes: u32) {
        count(RX_COUNTS.get_ptr_mut(u32::from(slot.0)), bytes);
    }

    #[inline(always)]
    fn count_label(&self, label: Label, bytes: u32) {
        count(LABELS.get_ptr_mut(label.0), bytes);
    }
}

#[inline(always)]
fn count(counter: Option<*mut PacketCount>, bytes: u32) {
    if let Some(counter) = counter {
        // SAFETY: a per-processor value; this processor runs one program at a time.
        let counter: &mut PacketCount = unsafe { &mut *counter };
        counter.packets += 1;
        counter.bytes += u64::from(bytes);
    }
}
