//! What the decision looks at and counts in.

use crate::{Address, Config, Label, LfibEntry, NextHop, RxLink, Slot, Window};

/// The forwarding tables: eBPF maps, or memory shared with them, or plain memory.
///
/// An index beyond the end of a table reads as an empty entry.
pub trait Tables {
    /// Our UDP port, as its two bytes on the wire lie in memory; 0: everything passes.
    fn port(&self) -> u16;
    /// Keys and cookie.
    fn config(&self) -> Option<&Config>;
    /// A receiving slot.
    fn rx_link(&self, slot: Slot) -> Option<&RxLink>;
    /// The replay window of a lane of a slot.
    fn window(&self, slot: Slot, lane: u8) -> Option<&Window>;
    /// The word of a label.
    fn lfib(&self, label: Label) -> LfibEntry;
    /// The bucket of a lane in a group: `primary << 32 | backup`.
    fn bucket(&self, group: u32, lane: u8) -> u64;
    /// A next hop.
    fn next_hop(&self, index: u32) -> Option<&NextHop>;
    /// Whether a next hop is up.
    fn is_up(&self, index: u32) -> bool;
    /// Takes the next sequence number of a lane of a next hop, counting from 1; none when they are used up.
    fn next_seq(&self, next_hop: u32, lane: u8) -> Option<u32>;
    /// Whether an address is one of this host's.
    fn is_local(&self, address: &Address) -> bool;
    /// Counts a packet of `bytes` bytes of datagram payload that a slot admitted.
    fn count_admitted(&self, slot: Slot, lane: u8, bytes: u32);
    /// Counts a packet of `bytes` bytes of datagram payload on a label.
    fn count_label(&self, label: Label, bytes: u32);
}
