//! One frame from the wire to its fate. The whole of the data path, but for what the kernel alone can do.

use crate::{
    Address, Datagram, DropReason, ETHERNET_LEN, FIXED_LEN, Fixed, Forward, Frame, IPV4_LEN,
    IPV6_LEN, Kind, LINK_LEN, Label, LabelEntry, Outcome, PROBE_ECHO, PROBE_REQUEST, Route,
    TAG_OFFSET, Tables, UDP_LEN, Verdict,
    rewrite::{Onward, encapsulate, fits},
    route::{count_labels, route},
    underlay::{Reject, ipv4, ipv6},
    verify::{admit, admit_handshake, live_link, well_formed},
};

const V4: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
const V6: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;
/// Where the session header begins under a single label.
const FIRST_SESSION: u32 = LINK_LEN as u32 + 4;

/// Decides about a frame, rewrites it where it is sent on, and marks it where it is handed up verified.
///
/// Counts labels; the caller counts the outcome. Nothing but labels, windows and sequence numbers is changed, and
/// these only after the tag has verified.
#[inline(always)]
pub fn switch<T: Tables, F: Frame>(tables: &T, frame: &mut F) -> Outcome {
    let port = tables.port();
    if port == 0 {
        return Outcome::NOT_OURS;
    }
    let Some(ethernet) = frame.bytes::<ETHERNET_LEN>(0) else {
        return Outcome::NOT_OURS;
    };
    match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => match ipv4(frame, port) {
            Ok(datagram) => inspect::<T, F, V4>(tables, frame, &datagram),
            Err(reject) => reject_outcome(tables, reject),
        },
        [0x86, 0xdd] => match ipv6(frame, port) {
            Ok(datagram) => inspect::<T, F, V6>(tables, frame, &datagram),
            Err(reject) => reject_outcome(tables, reject),
        },
        _ => Outcome::NOT_OURS,
    }
}

#[inline(always)]
fn reject_outcome<T: Tables>(tables: &T, reject: Reject) -> Outcome {
    match reject {
        Reject::Pass => Outcome::NOT_OURS,
        Reject::IfLocal(reason, destination) => drop_if_local(tables, destination, reason),
    }
}

/// Dropped if the destination is this host's: a gateway may route other hosts' datagrams to the same port.
#[inline(always)]
fn drop_if_local<T: Tables>(tables: &T, destination: Address, reason: DropReason) -> Outcome {
    if tables.is_local(&destination) {
        Outcome::drop(reason)
    } else {
        Outcome::NOT_OURS
    }
}

// Every way out is a return of its own: results merged from several places hold unset parts, which the verifier
// refuses to see moved about.
#[inline(always)]
fn inspect<T: Tables, F: Frame, const AT: usize>(
    tables: &T,
    frame: &mut F,
    datagram: &Datagram,
) -> Outcome {
    let (len, destination) = (datagram.len, datagram.destination);
    let Some(bytes) = frame.bytes::<FIXED_LEN>(AT) else {
        return drop_if_local(tables, destination, DropReason::TooShort);
    };
    let fixed = Fixed::read(bytes);
    let kind = match well_formed(&fixed, len) {
        Ok(kind) => kind,
        Err(reason) => return drop_if_local(tables, destination, reason),
    };
    if let Kind::Handshake = kind {
        return match admit_handshake(tables, &fixed, len) {
            Err(reason) => drop_if_local(tables, destination, reason),
            Ok(()) if tables.is_local(&destination) => Outcome::up(Verdict::Handshake),
            Ok(()) => Outcome::NOT_OURS,
        };
    }
    let link = match live_link(tables, fixed.slot()) {
        Ok(link) => link,
        Err(reason) => return drop_if_local(tables, destination, reason),
    };
    if link.local() != destination && !tables.is_local(&destination) {
        return Outcome::NOT_OURS;
    }
    if let Err(reason) = admit(tables, link, &fixed, len) {
        return Outcome::drop(reason);
    }

    let lane = fixed.lane();
    let tos = datagram.tos;
    match kind {
        Kind::Labelled => {
            let top = LabelEntry(fixed.top.swap_bytes());
            match route(tables, frame, AT, len, lane, top) {
                Ok(Route::Forward(forward)) => {
                    let onward = Onward {
                        forward,
                        kind,
                        consumed: AT,
                        tos,
                    };
                    send(tables, frame, len, &onward)
                }
                Ok(Route::Deliver { label, session_at }) => {
                    count_labels(tables, frame, AT, len, session_at - FIRST_SESSION, label);
                    mark(tables, frame, AT);
                    Outcome::up(Verdict::Deliver)
                }
                Err(reason) => refuse(tables, frame, AT, kind, reason),
            }
        }
        Kind::Probe if fixed.top as u8 == PROBE_REQUEST => {
            let next_hop = link.echo.load();
            if next_hop == 0 {
                return Outcome::drop(DropReason::NoEcho);
            }
            let top = [PROBE_ECHO, 0, 0, 0];
            let verdict = Verdict::ProbeEchoed;
            let forward = Forward {
                verdict,
                label: Label(0),
                next_hop,
                lane,
                popped: 0,
                top,
                len,
            };
            let onward = Onward {
                forward,
                kind,
                consumed: AT,
                tos,
            };
            send(tables, frame, len, &onward)
        }
        Kind::Probe => {
            mark(tables, frame, AT);
            Outcome::up(Verdict::ProbeReply)
        }
        Kind::Control | Kind::Handshake => {
            mark(tables, frame, AT);
            Outcome::up(Verdict::Control)
        }
    }
}

/// Looks the next hop up and sends the packet, whose datagram payload has `len` bytes.
#[inline(always)]
fn send<T: Tables, F: Frame>(tables: &T, frame: &mut F, len: u32, onward: &Onward) -> Outcome {
    let Onward {
        forward,
        kind,
        consumed,
        ..
    } = onward;
    let (kind, consumed) = (*kind, *consumed);
    let Some(hop) = tables.next_hop(forward.next_hop) else {
        return refuse(tables, frame, consumed, kind, DropReason::NoNextHop);
    };
    let Some(encapsulation) = hop.encapsulation() else {
        return refuse(tables, frame, consumed, kind, DropReason::NoNextHop);
    };
    let (ifindex, mtu, _) = encapsulation.egress();
    if !fits(encapsulation.family(), mtu, forward.len) {
        return refuse(tables, frame, consumed, kind, DropReason::TooBig);
    }
    if ifindex == 0 {
        mark(tables, frame, consumed);
        return Outcome::up(Verdict::Software);
    }
    if let Kind::Labelled = kind {
        count_labels(
            tables,
            frame,
            consumed,
            len,
            forward.passed(),
            forward.label,
        );
    }
    match encapsulate(tables, frame, onward, hop, encapsulation) {
        Ok(()) => Outcome::out(forward.verdict, ifindex),
        Err(reason) => Outcome::drop(reason),
    }
}

/// Not sent on: handed up where the daemon may answer the sender, dropped otherwise.
#[inline(always)]
fn refuse<T: Tables, F: Frame>(
    tables: &T,
    frame: &mut F,
    at: usize,
    kind: Kind,
    reason: DropReason,
) -> Outcome {
    if matches!(kind, Kind::Labelled) && reason.is_handed_up() {
        mark(tables, frame, at);
        Outcome::hand_up(reason)
    } else {
        Outcome::drop(reason)
    }
}

/// Marks a packet as verified: the cookie in place of the tag, no UDP checksum.
#[inline(always)]
fn mark<T: Tables, F: Frame>(tables: &T, frame: &mut F, at: usize) {
    let Some(config) = tables.config() else {
        return;
    };
    let cookie = config.cookie.load().to_ne_bytes();
    // From the UDP checksum to the end of the tag.
    let Some(bytes) = frame.bytes_mut::<{ TAG_OFFSET + 10 }>(at - 2) else {
        return;
    };
    bytes[0] = 0;
    bytes[1] = 0;
    let mut i = 0;
    while i < 8 {
        bytes[TAG_OFFSET + 2 + i] = cookie[i];
        i += 1;
    }
}
