//! Samples of exceptions, for people and for the daemon's log: at most a hundred each second per reason and processor.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::XdpContext};
use weft_abi::{DropReason, EVENT_HEAD_LEN, Event, Frame};

use crate::{
    frame::XdpFrame,
    maps::{EVENTS, SAMPLED},
};

/// Least time between two events of one reason on one processor, nanoseconds.
const INTERVAL: u64 = 10_000_000;
/// All headers of an IPv4 datagram and its fixed part.
const SHORT_HEAD_LEN: usize = 70;

/// Writes an event, unless one like it was written a moment ago.
#[inline(never)]
pub fn sample(ctx: &XdpContext, reason: DropReason) {
    let Some(last) = SAMPLED.get_ptr_mut(reason as u32) else {
        return;
    };
    // SAFETY: the helper takes nothing; the value is this processor's.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: as above.
    unsafe {
        if now - *last < INTERVAL {
            return;
        }
        *last = now;
    }
    let Some(mut entry) = EVENTS.reserve_untyped::<Event>(0) else {
        return;
    };
    let event: *mut Event = entry.as_mut_ptr();
    let frame = XdpFrame::new(ctx);
    // SAFETY: the entry is ours until it is submitted, and every field is written.
    unsafe {
        (*event).nanoseconds = now;
        (*event).ifindex = (*ctx.ctx).ingress_ifindex;
        (*event).reason = reason as u16;
        (*event).reserved = [0; 6];
        (*event).head = [0; EVENT_HEAD_LEN];
        (*event).captured = if let Some(head) = frame.bytes::<EVENT_HEAD_LEN>(0) {
            (*event).head = *head;
            EVENT_HEAD_LEN as u16
        } else if let Some(head) = frame.bytes::<SHORT_HEAD_LEN>(0) {
            let to = &mut (*event).head;
            let mut i = 0;
            while i < SHORT_HEAD_LEN {
                to[i] = head[i];
                i += 1;
            }
            SHORT_HEAD_LEN as u16
        } else {
            0
        };
    }
    entry.submit(0);
}
