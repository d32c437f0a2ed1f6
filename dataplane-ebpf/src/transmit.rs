//! Sending what the daemon laid ready as whole frames, without an `sk_buff` for each.
//!
//! The daemon runs the program with live frames (`BPF_PROG_TEST_RUN`, `BPF_F_TEST_XDP_LIVE_FRAMES`) as many times as it
//! laid frames ready: each run fills an empty frame of the kernel's and redirects it. Such a frame came in on the loopback
//! interface, as far as can be seen, and its length tells whose frames are meant: an Ethernet header and one byte for each
//! thread before that one. What stands in it means nothing, for buffers are used again.

use aya_ebpf::{
    bindings::xdp_action::XDP_DROP,
    helpers::{bpf_redirect, bpf_xdp_adjust_tail, bpf_xdp_store_bytes},
    programs::XdpContext,
};
use weft_abi::{ETHERNET_LEN, TX_FRAME_LEN, TX_FRAMES, TX_THREADS, UNDERLAY_V4};

use crate::maps;

/// Index of the loopback interface in every network namespace. Nothing is attached there.
const LOOPBACK: u32 = 1;

/// The thread of the daemon whose run this is; none for a packet that came in.
#[inline(always)]
pub fn thread(ctx: &XdpContext) -> Option<u32> {
    let len = (ctx.data_end() - ctx.data()) as u32;
    let thread = len.wrapping_sub(ETHERNET_LEN as u32);
    // SAFETY: the context is the one the program was called with.
    if thread >= TX_THREADS || unsafe { (*ctx.ctx).ingress_ifindex } != LOOPBACK {
        return None;
    }
    let state = maps::TX_STATE.get(thread)?;
    if state.next.load() < state.ready.load() {
        Some(thread)
    } else {
        None
    }
}

/// Sends the thread's next frame.
#[inline(always)]
pub fn send(ctx: &XdpContext, thread: u32) -> u32 {
    let Some(state) = maps::TX_STATE.get(thread) else {
        return XDP_DROP;
    };
    let number = state.next.load();
    state.next.store(number + 1);
    let number = number as u32 % TX_FRAMES;
    let Some(frame) = maps::TX_FRAMES.get(thread * TX_FRAMES + number) else {
        return XDP_DROP;
    };
    let len = frame.len.load();
    if len < UNDERLAY_V4 as u32 || len > TX_FRAME_LEN as u32 {
        return XDP_DROP;
    }
    let grow = len as i32 - (ETHERNET_LEN as u32 + thread) as i32;
    // SAFETY: the context is the one the program was called with, and the helper reads `len` bytes of the map's value,
    // which has them.
    let filled = unsafe {
        bpf_xdp_adjust_tail(ctx.ctx, grow) == 0
            && bpf_xdp_store_bytes(ctx.ctx, 0, frame.bytes.as_ptr().cast_mut().cast(), len) == 0
    };
    if !filled {
        return XDP_DROP;
    }
    state.sent.store(state.sent.load() + 1);
    // SAFETY: the helper takes plain numbers, and answers XDP_REDIRECT or XDP_ABORTED.
    unsafe { bpf_redirect(frame.ifindex.load(), 0) as u32 }
}
