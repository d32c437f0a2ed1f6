//! What kernel and user space must agree on, bit for bit: the packet format, the per-hop tag, the replay window, the
//! forwarding decision, the rewriting of headers and the layout of every map value.
//!
//! `no_std`, no allocation, no panic. The same source compiles for `bpfel-unknown-none` and for the host, so that the
//! XDP program and the user-space forwarder cannot come to differ. The decision is generic over [`Tables`] (eBPF maps,
//! or memory shared with them, or plain memory) and over [`Frame`] (an XDP buffer, or a slice).
//!
//! The order at each hop: length, tag, replay window, LFIB. No table changes before the tag has verified.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(core_intrinsics))]
#![cfg_attr(target_arch = "bpf", allow(internal_features))]

mod atomic;
mod frame;
mod ids;
mod layout;
mod lfib;
mod rewrite;
mod route;
mod siphash;
mod switch;
mod tables;
mod underlay;
mod verdict;
mod verify;
mod window;
mod wire;

pub use atomic::{Cell32, Cell64};
pub use frame::{Frame, SliceFrame};
pub use ids::{GroupIndex, Kind, Label, NextHopIndex, Slot, TagKey};
pub use layout::{
    BUCKETS, Config, EVENT_HEAD_LEN, Encapsulation, EncapsulationCell, Event, Group, LANES,
    LAYOUT_VERSION, LinkState, NextHop, PacketCount, RxLink, TX_FRAME_LEN, TX_FRAMES, TX_THREADS,
    TxFrame, TxState,
};
pub use lfib::{LfibEntry, LfibOp};
pub use rewrite::{Stamped, UNDERLAY_V4, UNDERLAY_V6, stamp, stamp_handshake, wrap};
pub use route::{Forward, MAX_STACK, Route, count_labels, route, select};
pub use siphash::{siphash24, tag_14, tag_22};
pub use switch::switch;
pub use tables::Tables;
pub use underlay::{
    Address, Datagram, ETHERNET_LEN, IPV4_LEN, IPV6_LEN, UDP_LEN, underlay_overhead,
};
pub use verdict::{DropReason, Fate, Outcome, Verdict};
pub use verify::{Verified, verify, well_formed};
pub use window::{WINDOW_BITS, Window};
pub use wire::{
    FIXED_LEN, Fixed, LINK_LEN, LabelEntry, PROBE_ECHO, PROBE_REQUEST, TAG_OFFSET, VERSION,
    link_word,
};
