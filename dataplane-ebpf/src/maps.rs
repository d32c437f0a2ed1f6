//! The maps. Their value layouts are `weft-abi`'s; the sizes here are placeholders that the loader replaces.
//!
//! What user space shares by mapping it into its memory is `BPF_F_MMAPABLE`.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    btf_maps::{Array, HashMap, PerCpuArray, RingBuf, XskMap},
    macros::btf_map,
};
use weft_abi::{
    Config, DropReason, Group, NextHop, PacketCount, RxLink, TX_THREADS, TxFrame, TxState, Verdict,
    Window,
};

const SHARED: usize = BPF_F_MMAPABLE as usize;

/// One [`Config`].
#[btf_map]
pub static CONFIG: Array<Config, 1, SHARED> = Array::new();

/// By label: the LFIB word.
#[btf_map]
pub static LFIB: Array<u64, 1, SHARED> = Array::new();

/// By group index.
#[btf_map]
pub static NH_GROUPS: Array<Group, 1, SHARED> = Array::new();

/// By next-hop index.
#[btf_map]
pub static NEXT_HOPS: Array<NextHop, 1, SHARED> = Array::new();

/// By next-hop index: 1 up, 0 down.
#[btf_map]
pub static NEXT_HOP_UP: Array<u64, 1, SHARED> = Array::new();

/// By slot.
#[btf_map]
pub static RX_LINKS: Array<RxLink, 1, SHARED> = Array::new();

/// By slot * 16 + lane.
#[btf_map]
pub static RX_WINDOWS: Array<Window, 1, SHARED> = Array::new();

/// By next-hop index * 16 + lane: the last sequence number given out.
#[btf_map]
pub static TX_SEQ: Array<u64, 1, SHARED> = Array::new();

/// This host's addresses, as 16 bytes each.
#[btf_map]
pub static LOCAL_ADDRESSES: HashMap<[u64; 2], u8, 256> = HashMap::new();

/// By verdict.
#[btf_map]
pub static COUNTERS: PerCpuArray<u64, { Verdict::ALL.len() }> = PerCpuArray::new();

/// By drop reason.
#[btf_map]
pub static DROPS: PerCpuArray<u64, { DropReason::ALL.len() }> = PerCpuArray::new();

/// By label.
#[btf_map]
pub static LABELS: PerCpuArray<PacketCount, 1> = PerCpuArray::new();

/// By slot: what was admitted.
#[btf_map]
pub static RX_COUNTS: PerCpuArray<PacketCount, 1> = PerCpuArray::new();

/// By drop reason: when an event was last written, nanoseconds.
#[btf_map]
pub static SAMPLED: PerCpuArray<u64, { DropReason::ALL.len() }> = PerCpuArray::new();

/// Sampled exceptions, each an [`Event`](weft_abi::Event).
#[btf_map]
pub static EVENTS: RingBuf<(), 262144> = RingBuf::new();

/// By interface index modulo the size: which interface, where its sockets begin in [`XSKS`], and how many receive
/// queues have one. Of this process alone, as [`XSKS`] is: never pinned.
#[btf_map]
pub static XSK_PORTS: Array<[u32; 4], { XSK_PORTS_LEN as usize }> = Array::new();
/// Entries of [`XSK_PORTS`].
pub const XSK_PORTS_LEN: u32 = 256;

/// The daemon's `AF_XDP` sockets.
#[btf_map]
pub static XSKS: XskMap<64> = XskMap::new();

/// By thread of the daemon * [`TX_FRAMES`](weft_abi::TX_FRAMES): frames it laid ready. Of this process alone, as
/// [`TX_STATE`] is.
#[btf_map]
pub static TX_FRAMES: Array<TxFrame, 1, SHARED> = Array::new();

/// By thread: how far its run has come.
#[btf_map]
pub static TX_STATE: Array<TxState, { TX_THREADS as usize }, SHARED> = Array::new();
