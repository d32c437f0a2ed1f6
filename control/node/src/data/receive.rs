//! What becomes of a datagram that reached the socket: the same decision as in the kernel, over the same tables, for
//! datagrams that the kernel did not decide (no XDP there) or only verified (it says so by its cookie).

use std::sync::atomic::{AtomicU64, Ordering};

use weft_abi::{
    DropReason, FIXED_LEN, Fixed, Kind, Label, LabelEntry, LinkState, NextHopIndex, PROBE_ECHO,
    PROBE_REQUEST, Route, SliceFrame, Slot, Tables, Verdict, route, stamp, underlay_overhead,
    verify,
};

/// What is to be done with a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A handshake with a good network tag.
    Handshake,
    /// Link control; its body begins at 16.
    Control(Slot),
    /// A probe of ours came back; its body begins at 16.
    ProbeReply(Slot),
    /// The LSP ends here; the session counter begins at `session_at`.
    Deliver {
        /// Label it came on.
        label: Label,
        /// Offset of the session counter.
        session_at: usize,
    },
    /// Stamped anew, to be sent from `start` on.
    Send {
        /// On this next hop.
        next_hop: NextHopIndex,
        /// Offset of the new datagram.
        start: usize,
    },
    /// Not forwarded, and its sender may be told.
    Exception {
        /// Slot it came on.
        slot: Slot,
        /// Its top label.
        label: Label,
        /// Its session counter.
        counter: u64,
        /// Why.
        reason: DropReason,
        /// The next hop's MTU, where that is why.
        mtu: u16,
    },
    /// Dropped.
    Drop(DropReason),
}

/// Counts what user space decided, by the kernel's names.
#[derive(Debug)]
pub struct UserCounters {
    verdicts: [AtomicU64; Verdict::ALL.len()],
    drops: [AtomicU64; DropReason::ALL.len()],
}

impl Default for UserCounters {
    fn default() -> Self {
        Self {
            verdicts: [const { AtomicU64::new(0) }; Verdict::ALL.len()],
            drops: [const { AtomicU64::new(0) }; DropReason::ALL.len()],
        }
    }
}

impl UserCounters {
    fn verdict(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn drop(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Verdicts by name.
    pub fn verdicts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Verdict::ALL
            .iter()
            .zip(&self.verdicts)
            .map(|(verdict, count)| (verdict.name(), count.load(Ordering::Relaxed)))
    }

    /// Drops by reason.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> {
        DropReason::ALL
            .iter()
            .zip(&self.drops)
            .map(|(reason, count)| (reason.name(), count.load(Ordering::Relaxed)))
    }
}

/// Decides about a datagram and rewrites it where it is sent on. The second value tells whether the kernel had
/// verified it, in which case only what user space adds to the decision is counted.
pub fn receive<T: Tables>(
    tables: &T,
    counters: &UserCounters,
    payload: &mut [u8],
) -> (Outcome, bool) {
    let Some(head) = payload.first_chunk::<FIXED_LEN>() else {
        counters.drop(DropReason::TooShort);
        return (Outcome::Drop(DropReason::TooShort), false);
    };
    let fixed = Fixed::read(head);
    let cookie = tables.config().map_or(0, |config| config.cookie.load());
    // One comparison of two words: its time tells nothing of where they differ.
    let by_kernel = cookie != 0 && fixed.tag == cookie;
    let outcome = decide(tables, payload, fixed, by_kernel).unwrap_or_else(Outcome::Drop);
    match outcome {
        Outcome::Handshake => counters.verdict(Verdict::Handshake),
        // The kernel counted what it handed up, but not what becomes of it here.
        Outcome::Send { .. } if fixed.kind_nibble() == Kind::Probe as u8 => {
            counters.verdict(Verdict::ProbeEchoed)
        }
        Outcome::Send { start, .. } => counters.verdict(if start == 0 {
            Verdict::Swap
        } else {
            Verdict::Pop
        }),
        _ if by_kernel => {}
        Outcome::Control(_) => counters.verdict(Verdict::Control),
        Outcome::ProbeReply(_) => counters.verdict(Verdict::ProbeReply),
        Outcome::Deliver { .. } => counters.verdict(Verdict::Deliver),
        Outcome::Exception { reason, .. } | Outcome::Drop(reason) => counters.drop(reason),
    }
    (outcome, by_kernel)
}

fn decide<T: Tables>(
    tables: &T,
    payload: &mut [u8],
    fixed: Fixed,
    by_kernel: bool,
) -> Result<Outcome, DropReason> {
    let len = u32::try_from(payload.len()).map_err(|_| DropReason::BadLength)?;
    let (kind, slot, lane) = if by_kernel {
        let kind = Kind::from_wire(fixed.kind_nibble()).ok_or(DropReason::BadKind)?;
        (kind, fixed.slot(), fixed.lane())
    } else {
        let verified = verify(tables, &fixed, len)?;
        (verified.kind, verified.slot, verified.lane)
    };
    match kind {
        Kind::Handshake => Ok(Outcome::Handshake),
        Kind::Control => Ok(Outcome::Control(slot)),
        Kind::Probe if payload[16] == PROBE_REQUEST => {
            let link = tables
                .rx_link(slot)
                .filter(|link| link.state.load() == LinkState::Live as u32);
            let next_hop = NextHopIndex(link.map_or(0, |link| link.echo.load()));
            if next_hop.0 == 0 {
                return Err(DropReason::NoEcho);
            }
            payload[16] = PROBE_ECHO;
            stamp(tables, next_hop, lane, Kind::Probe, payload)?;
            Ok(Outcome::Send { next_hop, start: 0 })
        }
        Kind::Probe => Ok(Outcome::ProbeReply(slot)),
        Kind::Labelled => {
            let top = LabelEntry(fixed.top.swap_bytes());
            let counter = u64::from_be_bytes(fixed.rest.to_le_bytes());
            let exception = |reason, mtu| Outcome::Exception {
                slot,
                label: top.label(),
                counter,
                reason,
                mtu,
            };
            let decision = route(tables, &SliceFrame::new(payload, 0), 0, len, lane, top);
            let forward = match decision {
                Ok(Route::Deliver { label, session_at }) => {
                    if !by_kernel {
                        tables.count_label(label, len);
                    }
                    return Ok(Outcome::Deliver {
                        label,
                        session_at: session_at as usize,
                    });
                }
                Ok(Route::Forward(forward)) => forward,
                Err(reason) if reason.is_handed_up() => return Ok(exception(reason, 0)),
                Err(reason) => return Err(reason),
            };
            let hop = tables
                .next_hop(forward.next_hop)
                .and_then(weft_abi::NextHop::snapshot);
            let Some(hop) = hop else {
                return Ok(exception(DropReason::NoNextHop, 0));
            };
            if forward.len as usize + underlay_overhead(hop.family == 6) > usize::from(hop.mtu) {
                return Ok(exception(DropReason::TooBig, hop.mtu));
            }
            let start = forward.popped as usize;
            let packet = payload.get_mut(start..).ok_or(DropReason::TooShort)?;
            packet
                .get_mut(16..20)
                .ok_or(DropReason::TooShort)?
                .copy_from_slice(&forward.top);
            stamp(
                tables,
                NextHopIndex(forward.next_hop),
                lane,
                Kind::Labelled,
                packet,
            )?;
            tables.count_label(forward.label, len);
            Ok(Outcome::Send {
                next_hop: NextHopIndex(forward.next_hop),
                start,
            })
        }
    }
}
