//! The short way up: an `AF_XDP` socket of the daemon, where it has one for the queue a packet came in on.

use aya_ebpf::{bindings::xdp_action::XDP_PASS, programs::XdpContext};

use crate::maps::{XSK_PORTS, XSK_PORTS_LEN, XSKS};

/// Redirects to the queue's socket; passes where there is none.
#[inline(always)]
pub fn deliver(ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the one the program was called with.
    let (ifindex, queue) = unsafe { ((*ctx.ctx).ingress_ifindex, (*ctx.ctx).rx_queue_index) };
    let Some(port) = XSK_PORTS.get(ifindex % XSK_PORTS_LEN) else {
        return XDP_PASS;
    };
    let [interface, first, queues, _] = *port;
    if interface != ifindex || queue >= queues {
        return XDP_PASS;
    }
    // Where the socket is gone by now the packet goes the ordinary way.
    match XSKS.redirect(first + queue, XDP_PASS as u64) {
        Ok(action) | Err(action) => action,
    }
}
