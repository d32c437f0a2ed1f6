//! One frame from the wire to its fate. The whole of the data path, but for what the kernel alone can do.

use crate::{
    Action, Datagram, DropReason, ETHERNET_LEN, FIXED_LEN, Fixed, Forward, Frame, IPV4_LEN,
    IPV6_LEN, Kind, Label, LabelEntry, PROBE_ECHO, PROBE_REQUEST, Route, Stop, TAG_OFFSET, Tables,
    UDP_LEN, Verdict,
    rewrite::{encapsulate, fits},
    route::route,
    underlay::{Reject, ipv4, ipv6},
    verify::{admit, admit_handshake, live_link, well_formed},
};

const V4: usize = ETHERNET_LEN + IPV4_LEN + UDP_LEN;
const V6: usize = ETHERNET_LEN + IPV6_LEN + UDP_LEN;

/// What the part that knows the address family hands to the part that does not.
enum Admitted {
    Up(Verdict),
    Forward {
        forward: Forward,
        kind: Kind,
        consumed: usize,
        tos: u8,
    },
}

/// Decides about a frame, rewrites it where it is sent on, and marks it where it is handed up verified.
///
/// Counts labels; the caller counts the result. Nothing but labels, windows and sequence numbers is changed, and these
/// only after the tag has verified.
#[inline(always)]
pub fn switch<T: Tables, F: Frame>(tables: &T, frame: &mut F) -> Result<Action, Stop> {
    let Some(config) = tables.config() else {
        return Err(Stop::NotOurs);
    };
    let port = config.port.load() as u16;
    let Some(ethernet) = frame.bytes::<ETHERNET_LEN>(0) else {
        return Err(Stop::NotOurs);
    };
    if port == 0 {
        return Err(Stop::NotOurs);
    }
    let admitted = match [ethernet[12], ethernet[13]] {
        [0x08, 0x00] => {
            let datagram = ipv4(frame, port);
            receive::<T, F, V4>(tables, frame, datagram)
        }
        [0x86, 0xdd] => {
            let datagram = ipv6(frame, port);
            receive::<T, F, V6>(tables, frame, datagram)
        }
        _ => return Err(Stop::NotOurs),
    };
    match admitted? {
        Admitted::Up(verdict) => Ok(Action::Up(verdict)),
        Admitted::Forward {
            forward,
            kind,
            consumed,
            tos,
        } => send(tables, frame, &forward, kind, consumed, tos),
    }
}

#[inline(always)]
fn receive<T: Tables, F: Frame, const AT: usize>(
    tables: &T,
    frame: &mut F,
    datagram: Result<Datagram, Reject>,
) -> Result<Admitted, Stop> {
    let (reason, destination) = match datagram {
        Ok(datagram) => match inspect::<T, F, AT>(tables, frame, &datagram) {
            Ok(admitted) => return Ok(admitted),
            Err(Refused::Stop(stop)) => return Err(stop),
            Err(Refused::IfLocal(reason)) => (reason, datagram.destination),
        },
        Err(Reject::IfLocal(reason, destination)) => (reason, destination),
        Err(Reject::Pass) => return Err(Stop::NotOurs),
    };
    // A gateway may route other hosts' datagrams to the same port: those pass.
    if tables.is_local(&destination) {
        Err(Stop::Drop(reason))
    } else {
        Err(Stop::NotOurs)
    }
}

enum Refused {
    /// Drop if the destination is this host's.
    IfLocal(DropReason),
    /// The destination is this host's.
    Stop(Stop),
}

impl From<Stop> for Refused {
    #[inline(always)]
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

#[inline(always)]
fn inspect<T: Tables, F: Frame, const AT: usize>(
    tables: &T,
    frame: &mut F,
    datagram: &Datagram,
) -> Result<Admitted, Refused> {
    let len = datagram.len;
    let Some(bytes) = frame.bytes::<FIXED_LEN>(AT) else {
        return Err(Refused::IfLocal(DropReason::TooShort));
    };
    let fixed = Fixed::read(bytes);
    let kind = well_formed(&fixed, len).map_err(Refused::IfLocal)?;
    if let Kind::Handshake = kind {
        admit_handshake(tables, &fixed, len).map_err(Refused::IfLocal)?;
        return if tables.is_local(&datagram.destination) {
            Ok(Admitted::Up(Verdict::Handshake))
        } else {
            Err(Refused::Stop(Stop::NotOurs))
        };
    }
    let link = live_link(tables, fixed.slot()).map_err(Refused::IfLocal)?;
    if link.local() != datagram.destination && !tables.is_local(&datagram.destination) {
        return Err(Refused::Stop(Stop::NotOurs));
    }
    admit(tables, link, &fixed, len).map_err(|reason| Refused::Stop(Stop::Drop(reason)))?;

    let lane = fixed.lane();
    let tos = datagram.tos;
    match kind {
        Kind::Labelled => {
            let top = LabelEntry(fixed.top.swap_bytes());
            match route(tables, frame, AT, len, lane, top) {
                Ok(Route::Forward(forward)) => Ok(Admitted::Forward {
                    forward,
                    kind,
                    consumed: AT,
                    tos,
                }),
                Ok(Route::Deliver { label, .. }) => {
                    tables.count_label(label, len);
                    hand_up::<T, F>(tables, frame, AT);
                    Ok(Admitted::Up(Verdict::Deliver))
                }
                Err(reason) if reason.is_handed_up() => {
                    hand_up::<T, F>(tables, frame, AT);
                    Err(Refused::Stop(Stop::HandUp(reason)))
                }
                Err(reason) => Err(Refused::Stop(Stop::Drop(reason))),
            }
        }
        Kind::Probe if fixed.top as u8 == PROBE_REQUEST => {
            let next_hop = link.echo.load();
            if next_hop == 0 {
                return Err(Refused::Stop(Stop::Drop(DropReason::NoEcho)));
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
            Ok(Admitted::Forward {
                forward,
                kind,
                consumed: AT,
                tos,
            })
        }
        Kind::Probe => {
            hand_up::<T, F>(tables, frame, AT);
            Ok(Admitted::Up(Verdict::ProbeReply))
        }
        Kind::Control | Kind::Handshake => {
            hand_up::<T, F>(tables, frame, AT);
            Ok(Admitted::Up(Verdict::Control))
        }
    }
}

#[inline(always)]
fn send<T: Tables, F: Frame>(
    tables: &T,
    frame: &mut F,
    forward: &Forward,
    kind: Kind,
    consumed: usize,
    tos: u8,
) -> Result<Action, Stop> {
    let refuse = |frame: &mut F, reason: DropReason| {
        if matches!(kind, Kind::Labelled) && reason.is_handed_up() {
            hand_up::<T, F>(tables, frame, consumed);
            Err(Stop::HandUp(reason))
        } else {
            Err(Stop::Drop(reason))
        }
    };
    let hop = tables.next_hop(forward.next_hop);
    let Some((hop, encapsulation)) = hop.and_then(|hop| Some((hop, hop.encapsulation()?))) else {
        return refuse(frame, DropReason::NoNextHop);
    };
    let (ifindex, mtu, _) = encapsulation.egress();
    if !fits(encapsulation.family(), mtu, forward.len) {
        return refuse(frame, DropReason::TooBig);
    }
    if ifindex == 0 {
        hand_up::<T, F>(tables, frame, consumed);
        return Ok(Action::Up(Verdict::Software));
    }
    encapsulate(
        tables,
        frame,
        consumed,
        tos,
        kind,
        hop,
        encapsulation,
        forward,
    )
    .map_err(Stop::Drop)?;
    if let Kind::Labelled = kind {
        tables.count_label(forward.label, forward.len + forward.popped);
    }
    Ok(Action::Out(forward.verdict, ifindex))
}

/// Marks a packet as verified: the cookie in place of the tag, no UDP checksum.
#[inline(always)]
fn hand_up<T: Tables, F: Frame>(tables: &T, frame: &mut F, at: usize) {
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
