//! The XDP programs: `weft` switches labels, `weft_pass` passes everything.
//!
//! Entry points only. What is decided, and how packets are rewritten, is in `weft-abi`, which the user-space forwarder
//! shares; here is what the kernel alone can do: maps, packet memory, redirection, counters, events.
#![no_std]
#![no_main]

mod count;
mod events;
mod frame;
mod maps;
mod socket;
mod tables;
mod transmit;

use aya_ebpf::{
    bindings::xdp_action::{XDP_DROP, XDP_PASS},
    helpers::bpf_redirect,
    macros::xdp,
    programs::XdpContext,
};
use weft_abi::{Fate, Verdict, switch};

use crate::{frame::XdpFrame, tables::Maps};

/// Switches labelled packets, hands the mesh's other packets up verified, passes what is not the mesh's; and sends what
/// the daemon laid ready.
#[xdp(frags)]
#[inline(always)]
pub fn weft(ctx: XdpContext) -> u32 {
    if let Some(thread) = transmit::thread(&ctx) {
        return transmit::send(&ctx, thread);
    }
    let mut frame = XdpFrame::new(&ctx);
    let outcome = switch(&Maps, &mut frame);
    match outcome.fate {
        Fate::Up => {
            count::verdict(outcome.verdict);
            if let Verdict::Deliver = outcome.verdict {
                return socket::deliver(&ctx);
            }
            XDP_PASS
        }
        Fate::Out => {
            count::verdict(outcome.verdict);
            // SAFETY: the helper takes plain numbers, and answers XDP_REDIRECT or XDP_ABORTED.
            unsafe { bpf_redirect(outcome.ifindex, 0) as u32 }
        }
        Fate::Drop => {
            count::drop(outcome.reason);
            events::sample(&ctx, outcome.reason);
            XDP_DROP
        }
        Fate::HandUp => {
            count::drop(outcome.reason);
            events::sample(&ctx, outcome.reason);
            XDP_PASS
        }
    }
}

/// Passes everything. A veth pair forwards redirected frames only to an end that runs an XDP program.
#[xdp(frags)]
pub fn weft_pass(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs that declare a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
