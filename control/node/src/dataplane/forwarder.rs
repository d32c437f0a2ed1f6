//! The user-space forwarder: the decision of `weft-abi` over datagrams that arrived on a socket, or over whole frames.

use std::net::SocketAddr;

use subtle::ConstantTimeEq;
use weft_abi::{
    DropReason, Encapsulation, FIXED_LEN, Fate, Fixed, Forward, Kind, LINK_LEN, Label, LabelEntry,
    MAX_STACK, NextHopIndex, Outcome, PROBE_ECHO, PROBE_REQUEST, Route, SliceFrame, Tables,
    Verdict, Verified, count_labels, route, stamp, switch, underlay_overhead, verify, well_formed,
};
use weft_core::io::{Exception, ForwardMode};

use super::{Received, encapsulation, memory::Memory};

/// Decides about a datagram from a socket.
pub(super) fn receive(memory: &Memory, datagram: &mut [u8], mode: ForwardMode) -> Received {
    let len = datagram.len() as u32;
    let Some(fixed) = datagram.first_chunk::<FIXED_LEN>().map(Fixed::read) else {
        return drop(memory, DropReason::TooShort);
    };
    let arrival = match marked(memory, &fixed, len) {
        Some(verified) => Arrival {
            verified,
            mode,
            counted: true,
        },
        None => match verify(memory, &fixed, len) {
            Ok(verified) => Arrival {
                verified,
                mode,
                counted: false,
            },
            Err(reason) => return drop(memory, reason),
        },
    };
    dispatch(memory, datagram, &fixed, &arrival)
}

/// A verified datagram.
struct Arrival {
    verified: Verified,
    /// How its interface forwards.
    mode: ForwardMode,
    /// Whether the kernel has counted it.
    counted: bool,
}

/// What the kernel verified already: it carries the cookie in place of the tag.
fn marked(memory: &Memory, fixed: &Fixed, len: u32) -> Option<Verified> {
    let cookie = memory.config()?.cookie.load();
    if cookie == 0 || !bool::from(fixed.tag.to_le_bytes().ct_eq(&cookie.to_ne_bytes())) {
        return None;
    }
    match well_formed(fixed, len) {
        // The kernel does not mark handshakes.
        Ok(Kind::Handshake) | Err(_) => None,
        Ok(kind) => Some(Verified {
            kind,
            slot: fixed.slot(),
            lane: fixed.lane(),
        }),
    }
}

fn drop(memory: &Memory, reason: DropReason) -> Received {
    memory.count_drop(reason);
    Received::Dropped(reason)
}

fn dispatch(memory: &Memory, datagram: &mut [u8], fixed: &Fixed, arrival: &Arrival) -> Received {
    let Verified { kind, slot, lane } = arrival.verified;
    let count = |verdict| {
        if !arrival.counted {
            memory.count_verdict(verdict);
        }
    };
    match kind {
        Kind::Handshake => {
            count(Verdict::Handshake);
            Received::Handshake
        }
        Kind::Control => {
            count(Verdict::Control);
            Received::Control { slot }
        }
        Kind::Probe if fixed.top as u8 != PROBE_REQUEST => {
            count(Verdict::ProbeReply);
            Received::ProbeReply { slot }
        }
        Kind::Probe => {
            let next_hop = memory.rx_link(slot).map_or(0, |link| link.echo.load());
            if next_hop == 0 {
                return drop(memory, DropReason::NoEcho);
            }
            let forward = Forward {
                verdict: Verdict::ProbeEchoed,
                label: Label(0),
                next_hop,
                lane,
                popped: 0,
                top: [PROBE_ECHO, 0, 0, 0],
                len: datagram.len() as u32,
            };
            match send(memory, datagram, kind, &forward) {
                Ok(forwarded) => forwarded,
                Err((reason, _)) => drop(memory, reason),
            }
        }
        Kind::Labelled => {
            let top = LabelEntry(fixed.top.swap_bytes());
            let len = datagram.len() as u32;
            let frame = SliceFrame::new(datagram, 0);
            match route(memory, &frame, 0, len, lane, top) {
                Ok(Route::Deliver { label, session_at }) => {
                    count(Verdict::Deliver);
                    if !arrival.counted {
                        let passed = session_at - (LINK_LEN as u32 + 4);
                        count_labels(memory, &frame, 0, len, passed, label);
                    }
                    Received::Deliver {
                        slot,
                        label,
                        session_at: session_at as usize,
                    }
                }
                Ok(Route::Forward(forward)) => match send(memory, datagram, kind, &forward) {
                    Ok(forwarded) => forwarded,
                    Err((reason, mtu)) => refuse(memory, datagram, arrival, top, reason, mtu),
                },
                Err(reason) => refuse(memory, datagram, arrival, top, reason, 0),
            }
        }
    }
}

/// Gives a packet its next hop's header; on refusal also tells the MTU.
fn send(
    memory: &Memory,
    datagram: &mut [u8],
    kind: Kind,
    forward: &Forward,
) -> Result<Received, (DropReason, u16)> {
    let hop = memory
        .next_hop(forward.next_hop)
        .and_then(|hop| hop.snapshot());
    let encapsulation = hop.ok_or((DropReason::NoNextHop, 0))?;
    let (local, remote) =
        encapsulation::endpoints(&encapsulation).ok_or((DropReason::NoNextHop, 0))?;
    let Encapsulation { mtu, family, .. } = encapsulation;
    if forward.len as usize + underlay_overhead(family == 6) > usize::from(mtu) {
        return Err((DropReason::TooBig, mtu));
    }
    if let Kind::Labelled = kind {
        let len = datagram.len() as u32;
        count_labels(
            memory,
            &SliceFrame::new(datagram, 0),
            0,
            len,
            forward.passed(),
            forward.label,
        );
    }
    let start = forward.popped as usize;
    let out = datagram.get_mut(start..).unwrap_or_default();
    let top = out
        .get_mut(LINK_LEN..LINK_LEN + 4)
        .ok_or((DropReason::TooShort, mtu))?;
    top.copy_from_slice(&forward.top);
    let next_hop = NextHopIndex(forward.next_hop);
    stamp(memory, next_hop, forward.lane, kind, out).map_err(|reason| (reason, mtu))?;
    memory.count_verdict(forward.verdict);
    Ok(Received::Forward {
        next_hop,
        start,
        local,
        remote,
    })
}

fn refuse(
    memory: &Memory,
    datagram: &[u8],
    arrival: &Arrival,
    top: LabelEntry,
    reason: DropReason,
    mtu: u16,
) -> Received {
    if !arrival.counted {
        memory.count_drop(reason);
    }
    let exception = match reason {
        DropReason::UnknownLabel => Exception::UnknownLabel,
        DropReason::TtlExpired => Exception::TtlExpired { mode: arrival.mode },
        DropReason::TooBig => Exception::TooBig { mtu },
        DropReason::NoNextHop => Exception::NoNextHop,
        _ => return Received::Dropped(reason),
    };
    let counter = session_counter(datagram, top).unwrap_or_default();
    Received::Exception {
        slot: arrival.verified.slot,
        label: top.label(),
        counter,
        exception,
    }
}

/// The session counter under the label stack that begins with `top`.
fn session_counter(datagram: &[u8], top: LabelEntry) -> Option<u64> {
    let mut entry = top;
    let mut at = LINK_LEN + 4;
    for _ in 0..MAX_STACK {
        let rest = datagram.get(at..)?;
        if entry.bottom() {
            return rest.first_chunk().map(|bytes| u64::from_be_bytes(*bytes));
        }
        entry = LabelEntry::from_bytes(*rest.first_chunk()?);
        at += 4;
    }
    None
}

/// A whole frame that begins at `start` in `buffer`, as the XDP program sees it: the outcome, and where the frame
/// begins afterwards.
pub(super) fn frame(memory: &Memory, buffer: &mut [u8], start: usize) -> (Outcome, usize) {
    let mut frame = SliceFrame::new(buffer, start);
    let outcome = switch(memory, &mut frame);
    let start = frame.start();
    match outcome.fate {
        Fate::Up | Fate::Out => memory.count_verdict(outcome.verdict),
        Fate::Drop | Fate::HandUp => memory.count_drop(outcome.reason),
    }
    (outcome, start)
}

/// Source and destination of a next hop, and its MTU.
pub(super) fn endpoints(
    memory: &Memory,
    next_hop: NextHopIndex,
) -> Option<(SocketAddr, SocketAddr, u16)> {
    let encapsulation = memory.next_hop(next_hop.0)?.snapshot()?;
    let (local, remote) = encapsulation::endpoints(&encapsulation)?;
    Some((local, remote, encapsulation.mtu))
}
