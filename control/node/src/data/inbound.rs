//! From the underlay to the TUN interface: datagrams are verified, sorted by kind, decrypted in place all that came at
//! once, and passed on in bundles.

use std::{io::IoSlice, sync::atomic::Ordering, time::Instant};

use bytes::Bytes;
use weft_abi::Label;
use weft_core::io::{ForwardMode, UnderlayPath};

use super::{
    counters::Counter,
    crowd::Relief,
    icmp::Limiter,
    packet::{Inner, combine_ecn, mark_congestion},
    session::{Arrival, CLASS_BIT, EPOCH_SHIFT, OpenError, Session, Table},
    shared::{Shared, Up},
    udp::{Address, Socket, TxBatch},
    window::Refusal,
};
use crate::{
    dataplane::Received,
    offload::{
        gro::{Coalescer, MAX_PACKETS, Piece, Place, Sink},
        mss,
        virtio::VirtioHeader,
    },
    tun::Queue,
};

/// What is known of a datagram besides its bytes.
pub(super) struct From {
    pub(super) path: UnderlayPath,
    /// Outer traffic class.
    pub(super) tos: u8,
    /// How its interface forwards.
    pub(super) mode: ForwardMode,
    /// Where it begins in the receive memory.
    pub(super) start: usize,
}

/// Verifies one datagram and does what its kind asks for; what is to be decrypted is put aside for all at once.
pub(super) fn receive(
    shared: &Shared,
    sockets: &[Socket],
    tx: &mut TxBatch,
    exception_limit: &mut Limiter,
    arrivals: &mut Vec<Arrival>,
    from: &From,
    payload: &mut [u8],
) {
    let path = from.path;
    match shared.tables.receive(payload, from.mode) {
        Received::Handshake => {
            shared.hand_up(Up::Handshake {
                path,
                datagram: Bytes::copy_from_slice(payload),
            });
        }
        Received::Control { slot } => {
            let body = payload
                .get(16..)
                .map(Bytes::copy_from_slice)
                .unwrap_or_default();
            shared.hand_up(Up::Control { slot, path, body });
        }
        Received::ProbeReply { slot } => {
            if let Some(body) = payload.get(16..).and_then(<[u8]>::first_chunk) {
                shared.hand_up(Up::ProbeEcho {
                    slot,
                    path,
                    body: *body,
                });
            }
        }
        Received::Exception {
            slot,
            label,
            counter,
            exception,
        } => {
            if exception_limit.take(Instant::now()) {
                shared.hand_up(Up::Exception {
                    slot,
                    label,
                    counter,
                    exception,
                });
            } else {
                shared.counters.one(Counter::ExceptionLimited);
            }
        }
        Received::Forward {
            next_hop,
            start,
            local,
            remote,
        } => {
            let interface = shared.hop(next_hop).map_or(0, |address| address.interface);
            let packet = payload.get(start..).unwrap_or_default();
            if tx.is_full() {
                shared.count_sent(tx.flush(sockets));
            }
            let Some(room) = tx.buffer().get_mut(..packet.len()) else {
                return shared.counters.one(Counter::UdpTooBig);
            };
            room.copy_from_slice(packet);
            let to = Address {
                remote,
                local: local.ip(),
                interface,
            };
            tx.commit(packet.len(), to, from.tos);
            shared.counters.one(Counter::Forwarded);
        }
        Received::Deliver {
            label, session_at, ..
        } => {
            let counter = payload
                .get(session_at..)
                .and_then(<[u8]>::first_chunk)
                .map(|bytes| u64::from_be_bytes(*bytes));
            match counter {
                Some(counter) => arrivals.push(Arrival {
                    counter,
                    start: from.start + session_at + 8,
                    len: payload.len() - session_at - 8,
                    label: label.0,
                    tos: from.tos,
                    outcome: Ok(()),
                }),
                None => shared.counters.one(Counter::Malformed),
            }
        }
        Received::Dropped(_) => {}
    }
}

/// Decrypts what LSPs delivered, all that came at once, and passes it on in bundles, as thinned and marked as the state of
/// the receive queue asks for.
pub(super) fn deliver(
    shared: &Shared,
    table: &Table,
    tun: Option<&Queue>,
    coalescer: &mut Coalescer,
    arrivals: &mut [Arrival],
    memory: &mut [u8],
    relief: Relief,
) {
    let same = |a: &Arrival, b: &Arrival| {
        a.label == b.label && a.counter >> EPOCH_SHIFT == b.counter >> EPOCH_SHIFT
    };
    for run in arrivals.chunk_by_mut(same) {
        open(shared, table, run, memory);
    }
    if relief.mark {
        let (marked, dropped) = relieve(arrivals, memory, relief.drop);
        shared.counters.add(Counter::EcnMarked, marked);
        shared.counters.add(Counter::ReceiveLate, dropped);
    }
    let mut sink = TunSink {
        shared,
        tun,
        memory,
        packets: 0,
    };
    for arrival in arrivals.iter() {
        if arrival.len > 0
            && let Some(packet) = sink.memory.get(arrival.start..arrival.start + arrival.len)
        {
            let place = Place {
                buffer: 0,
                start: arrival.start as u32,
            };
            coalescer.push(packet, place, &mut sink);
        }
    }
    coalescer.flush(&mut sink);
    shared.counters.add(Counter::TunTx, sink.packets);
}

/// More wait than is good: senders that know ECN are asked to slow down, and of the others, where one is to be dropped, the
/// longest packet, which is one of bulk. How many were marked, and dropped.
fn relieve(arrivals: &mut [Arrival], memory: &mut [u8], drop: bool) -> (u64, u64) {
    let (mut marked, mut longest) = (0, None);
    for arrival in arrivals.iter_mut().filter(|arrival| arrival.len > 0) {
        let packet = memory.get_mut(arrival.start..arrival.start + arrival.len);
        if packet.is_some_and(mark_congestion) {
            marked += 1;
        } else if longest
            .as_ref()
            .is_none_or(|longest: &&mut Arrival| longest.len < arrival.len)
        {
            longest = Some(arrival);
        }
    }
    match longest.filter(|_| drop) {
        Some(longest) => {
            longest.len = 0;
            (marked, 1)
        }
        None => (marked, 0),
    }
}

/// Decrypts arrivals on one label under one epoch. Afterwards the length of each is that of the packet for the TUN
/// interface, or 0 where there is none.
fn open(shared: &Shared, table: &Table, run: &mut [Arrival], memory: &mut [u8]) {
    let (label, epoch) = (run[0].label, (run[0].counter >> EPOCH_SHIFT) as u8);
    let session = table
        .delivered_on(label)
        .ok_or(Counter::UnknownDelivery)
        .and_then(|session| {
            let epoch = session.epoch(epoch).ok_or(Counter::UnknownEpoch)?;
            Ok((session, epoch))
        });
    let (session, epoch) = match session {
        Ok(found) => found,
        Err(counter) => {
            shared.counters.add(counter, run.len() as u64);
            run.iter_mut().for_each(|arrival| arrival.len = 0);
            return;
        }
    };
    epoch.open(run, memory);
    let (mut decrypted, mut packets, mut bytes) = (0, 0, 0);
    for arrival in run {
        let result = match arrival.outcome {
            Err(OpenError::BadSeal) => Err(Counter::BadSeal),
            Err(OpenError::Refused(Refusal::Replayed)) => Err(Counter::Replayed),
            Err(OpenError::Refused(Refusal::TooOld)) => Err(Counter::TooOld),
            Ok(()) => {
                decrypted += 1;
                let plain = memory
                    .get_mut(arrival.start..arrival.start + arrival.len)
                    .unwrap_or_default();
                pass_on(shared, table, session, arrival, plain)
            }
        };
        arrival.len = match result {
            Ok(len) => len,
            Err(counter) => {
                shared.counters.one(counter);
                0
            }
        };
        packets += u64::from(arrival.len > 0);
        bytes += arrival.len as u64;
    }
    shared.counters.add(Counter::Decrypted, decrypted);
    let counters = &session.counters;
    counters.rx_packets.fetch_add(packets, Ordering::Relaxed);
    counters.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
}

/// Looks at what was decrypted: the bytes that go to the TUN interface, or 0 where it was a message of the core.
fn pass_on(
    shared: &Shared,
    table: &Table,
    session: &Session,
    arrival: &Arrival,
    plain: &mut [u8],
) -> Result<usize, Counter> {
    if arrival.counter & CLASS_BIT != 0 {
        if plain.first().is_none_or(|byte| byte >> 4 != 0) {
            return Err(Counter::Malformed);
        }
        let message = Bytes::copy_from_slice(plain);
        shared.hand_up(Up::SessionMessage {
            session: session.index,
            label: Label(arrival.label),
            counter: arrival.counter,
            message,
        });
        return Ok(0);
    }
    let inner = Inner::parse(plain).ok_or(Counter::Malformed)?;
    if !session.may_send_from(inner.source) {
        return Err(Counter::InnerSource);
    }
    if !table.is_behind_us(inner.destination) {
        return Err(Counter::InnerDestination);
    }
    let packet = &mut plain[..inner.len];
    if !combine_ecn(packet, arrival.tos) {
        return Err(Counter::EcnDropped);
    }
    // What comes back goes by our own LSP, and only we know what that carries.
    if let Some(ingress) = session.ingress
        && mss::clamp(packet, ingress.inner_mtu, false)
    {
        shared.counters.one(Counter::MssLowered);
    }
    Ok(inner.len)
}

/// Writes packets and bundles to the TUN queue.
struct TunSink<'a> {
    shared: &'a Shared,
    tun: Option<&'a Queue>,
    /// What places are in.
    memory: &'a [u8],
    packets: u64,
}

impl Sink for TunSink<'_> {
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], packets: usize) {
        let counters = &self.shared.counters;
        let Some(tun) = self.tun else {
            return counters.add(Counter::InnerDestination, packets as u64);
        };
        let mut header = virtio.to_bytes();
        // The virtio header's place, the headers, the pieces.
        let mut parts = [IoSlice::new(&[]); 2 + MAX_PACKETS];
        parts[1] = IoSlice::new(head);
        let mut used = 2;
        for (part, piece) in parts[2..].iter_mut().zip(pieces) {
            let start = piece.start as usize;
            let bytes = self.memory.get(start..start + piece.len as usize);
            *part = IoSlice::new(bytes.unwrap_or_default());
            used += 1;
        }
        match tun.write(&mut header, &mut parts[..used]) {
            Ok(()) => {
                self.packets += packets as u64;
                if packets > 1 {
                    counters.one(Counter::TunBundles);
                }
            }
            Err(_) => counters.add(Counter::TunWriteFailed, packets as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Packets of these traffic classes and lengths, in one memory.
    fn packets(of: &[(u16, usize)]) -> (Vec<Arrival>, Vec<u8>) {
        let (mut arrivals, mut memory) = (vec![], vec![]);
        for &(class, len) in of {
            arrivals.push(Arrival {
                counter: 0,
                start: memory.len(),
                len,
                label: 16,
                tos: 0,
                outcome: Ok(()),
            });
            memory.extend_from_slice(&u16::to_be_bytes(class));
            memory.resize(memory.len() + 38, 0);
            memory.resize(memory.len().next_multiple_of(2000), 0);
        }
        (arrivals, memory)
    }

    const NOT: u16 = 0x60_00;
    const ECT1: u16 = 0x60_10;
    const ECT0: u16 = 0x60_20;
    const CE: u16 = 0x60_30;

    #[test]
    fn only_packets_whose_ends_know_ecn_are_marked() {
        let (mut arrivals, mut memory) = packets(&[
            (NOT, 40),
            (ECT0, 40),
            (CE, 40),
            (ECT1, 40),
            // Nothing for the TUN interface.
            (ECT0, 0),
        ]);
        assert_eq!(relieve(&mut arrivals, &mut memory, false), (3, 0));
        let classes = memory
            .chunks(2000)
            .map(|packet| u16::from_be_bytes([packet[0], packet[1]]));
        assert_eq!(classes.collect::<Vec<_>>(), [NOT, CE, CE, CE, ECT0]);
        assert_eq!(arrivals.iter().filter(|a| a.len > 0).count(), 4);
    }

    #[test]
    fn one_packet_of_bulk_is_dropped_and_none_that_was_marked() {
        let (mut arrivals, mut memory) =
            packets(&[(NOT, 60), (ECT0, 1400), (NOT, 1300), (NOT, 1299)]);
        assert_eq!(relieve(&mut arrivals, &mut memory, true), (1, 1));
        let lengths = arrivals.iter().map(|a| a.len);
        assert_eq!(lengths.collect::<Vec<_>>(), [60, 1400, 0, 1299]);
        let (mut arrivals, mut memory) = packets(&[(ECT0, 1400), (ECT1, 60)]);
        assert_eq!(relieve(&mut arrivals, &mut memory, true), (2, 0));
    }
}
