//! From the TUN interface to the underlay: a packet or super-packet is cut, encrypted, labelled and tagged in one pass into
//! the buffer it is sent from.

use std::{
    net::{IpAddr, Ipv6Addr},
    sync::atomic::Ordering,
};

use weft_abi::{
    DropReason, EncapsulationCell, Kind, Label, LabelEntry, NextHopIndex, underlay_overhead,
};

use super::{
    counters::Counter,
    crypto,
    icmp::Problem,
    packet::Inner,
    session::{Table, Target},
    shared::Shared,
    udp::{Socket, TxBatch},
    xdp_send::{self, XdpSender},
};
use crate::{
    dataplane::SharedTables,
    offload::{
        gso::{self, Cut},
        mss,
        virtio::{Gso, VirtioHeader},
    },
};

/// Bytes before the inner packet: link header, label, session counter.
pub(crate) const HEAD: usize = 28;
/// Bytes around an inner packet in the datagram.
pub(crate) const OVERHEAD: usize = HEAD + crypto::TAG;
/// Why a packet was not sent.
pub(super) enum Refused {
    /// Dropped under this name.
    Drop(Counter),
    /// Dropped under this name, and its sender is told.
    Answer(Counter, Problem),
    /// A session to this node is wanted.
    Wait(Ipv6Addr, IpAddr),
}

/// What is sent with: a batch for the sockets, and frames for XDP. Only one of them holds packets, so none overtakes
/// another.
#[derive(Debug, Default)]
pub(super) struct Outlet {
    pub(super) udp: TxBatch,
    pub(super) xdp: Option<Box<XdpSender>>,
}

impl Outlet {
    /// Sends everything that waits.
    pub(super) fn flush(&mut self, shared: &Shared, sockets: &[Socket]) {
        shared.count_sent(self.udp.flush(sockets));
        if let Some(xdp) = &mut self.xdp {
            shared.count_sent_by_xdp(xdp.flush());
            if let Some(error) = xdp.failure() {
                tracing::warn!(%error, "sending by XDP; packets go through the sockets from now on");
                self.xdp = None;
            }
        }
    }

    /// How a next hop is sent to by XDP, where so many packets, the longest inner one so long, are better sent that way.
    /// What waits for the other way is sent first.
    fn by_xdp<'a>(
        &mut self,
        shared: &'a Shared,
        sockets: &[Socket],
        next_hop: NextHopIndex,
        (packets, longest): (usize, usize),
    ) -> Option<&'a EncapsulationCell> {
        let bulk = |xdp: &XdpSender| packets >= xdp_send::WORTH || !xdp.is_empty();
        let encapsulation = self
            .xdp
            .as_deref()
            .filter(|xdp| bulk(xdp))
            .and_then(|_| shared.tables.encapsulation(next_hop))
            .filter(|encapsulation| {
                let (ifindex, mtu, _) = encapsulation.egress();
                let whole = OVERHEAD + longest + underlay_overhead(encapsulation.family() == 6);
                // What is too long the socket refuses, and counts.
                whole <= usize::from(mtu)
                    && ifindex != 0
                    && shared.xdp_egress.load().contains(&ifindex)
            });
        let other_waits = match encapsulation {
            Some(_) => !self.udp.is_empty(),
            None => self.xdp.as_ref().is_some_and(|xdp| !xdp.is_empty()),
        };
        if other_waits {
            self.flush(shared, sockets);
        }
        encapsulation
    }
}

/// Encrypts and labels a packet, or every segment of a super-packet (`short`: but the first), into the outlet.
pub(super) fn send(
    shared: &Shared,
    table: &Table,
    outlet: &mut Outlet,
    sockets: &[Socket],
    header: &VirtioHeader,
    packet: &mut [u8],
    short: bool,
) -> Result<(), Refused> {
    let inner = Inner::parse(packet).ok_or(Refused::Drop(Counter::Malformed))?;
    if inner.destination.is_multicast() {
        return Err(Refused::Drop(Counter::NoRoute));
    }
    let session = match table.target(inner.destination) {
        Target::Session(session) => session,
        Target::Node(node) if node == table.own => return Err(Refused::Drop(Counter::NoRoute)),
        Target::Node(node) => return Err(Refused::Wait(node, inner.destination)),
        Target::None => return Err(Refused::Answer(Counter::NoRoute, Problem::NoRoute)),
    };
    // Others would drop it: this node may send from its own address and its prefixes only.
    if !table.is_behind_us(inner.source) {
        return Err(Refused::Answer(Counter::InnerSource, Problem::Source));
    }
    let (Some(ingress), Some(epoch)) = (session.ingress, session.sending()) else {
        return Err(Refused::Wait(session.address, inner.destination));
    };
    let malformed = |_| Refused::Drop(Counter::Malformed);
    let cut = match header.gso {
        Gso::None => None,
        _ => Some(Cut::new(header, packet).map_err(malformed)?),
    };
    let longest = cut.as_ref().map_or(packet.len(), Cut::longest);
    if longest > usize::from(ingress.inner_mtu) {
        return Err(Refused::Answer(
            Counter::TooBig,
            Problem::TooBig(ingress.inner_mtu),
        ));
    }
    let lane = shared.lanes.lane(packet);
    let next_hop = shared
        .tables
        .select(ingress.group, lane)
        .ok_or(Refused::Answer(Counter::NoNextHop, Problem::Unreachable))?;
    let address = shared
        .hop(next_hop)
        .ok_or(Refused::Drop(Counter::NoNextHop))?;
    if cut.is_none() {
        if mss::clamp(packet, ingress.inner_mtu, header.partial.is_some()) {
            shared.counters.one(Counter::MssLowered);
        }
        gso::complete(header, packet).map_err(malformed)?;
    }

    let skipped = usize::from(short);
    let segments = cut
        .as_ref()
        .map_or(1, Cut::segments)
        .saturating_sub(skipped);
    if segments == 0 {
        return Ok(());
    }
    let first = epoch
        .take(segments)
        .ok_or(Refused::Drop(Counter::Exhausted))?;
    let by_xdp = outlet.by_xdp(shared, sockets, next_hop, (segments, longest));
    // Cuts, encrypts and labels one packet into a buffer; its length there.
    let write = |index: usize, buffer: &mut [u8]| {
        let room = buffer
            .get_mut(HEAD..)
            .ok_or(Refused::Drop(Counter::Malformed))?;
        let len = match &cut {
            Some(cut) => cut.write(packet, index + skipped, room),
            None => room.get_mut(..packet.len()).map(|room| {
                room.copy_from_slice(packet);
                packet.len()
            }),
        };
        let counter = first + index as u64;
        let sealed = len
            .and_then(|len| epoch.seal(counter, room, len))
            .ok_or(Refused::Drop(Counter::Malformed))?;
        let len = HEAD + sealed;
        let (label, ttl) = (ingress.label, ingress.ttl);
        finish(
            &shared.tables,
            buffer,
            next_hop,
            lane,
            label,
            ttl,
            counter,
            len,
        )
        .map_err(|_| Refused::Drop(Counter::NoNextHop))?;
        Ok(len)
    };
    let mut bytes = 0;
    for index in 0..segments {
        let len = match by_xdp {
            Some(encapsulation) => {
                if outlet.xdp.as_ref().is_some_and(|xdp| xdp.is_full()) {
                    outlet.flush(shared, sockets);
                }
                let xdp = outlet
                    .xdp
                    .as_mut()
                    .ok_or(Refused::Drop(Counter::UdpRefused))?;
                let len = write(index, xdp.payload(encapsulation))?;
                if !xdp.commit(len, encapsulation, inner.tos) {
                    return Err(Refused::Drop(Counter::UdpTooBig));
                }
                len
            }
            None => {
                let udp = &mut outlet.udp;
                if udp.is_full() || udp.free() < OVERHEAD + longest {
                    shared.count_sent(udp.flush(sockets));
                }
                let len = write(index, udp.buffer())?;
                udp.commit(len, address, inner.tos);
                len
            }
        };
        bytes += len - OVERHEAD;
    }
    shared.counters.add(Counter::Encrypted, segments as u64);
    let counters = &session.counters;
    counters
        .tx_packets
        .fetch_add(segments as u64, Ordering::Relaxed);
    counters.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    Ok(())
}

/// Label entry, session counter, link header.
#[expect(clippy::too_many_arguments, reason = "the fields of the header")]
pub(crate) fn finish(
    tables: &SharedTables,
    buffer: &mut [u8],
    next_hop: NextHopIndex,
    lane: u8,
    label: Label,
    ttl: u8,
    counter: u64,
    len: usize,
) -> Result<(), DropReason> {
    let datagram = buffer.get_mut(..len).ok_or(DropReason::TooShort)?;
    let Some(head) = datagram.first_chunk_mut::<HEAD>() else {
        return Err(DropReason::TooShort);
    };
    head[16..20].copy_from_slice(&LabelEntry::new(label, 0, true, ttl).to_bytes());
    head[20..28].copy_from_slice(&counter.to_be_bytes());
    tables.stamp(next_hop, lane, Kind::Labelled, datagram)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use arc_swap::ArcSwap;
    use weft_abi::{Slot, TagKey};
    use weft_client::config::Prefix;
    use weft_core::io::{DataplaneOp, UnderlayPath};

    use super::*;
    use crate::{
        data::{session::Store, udp::Address, xdp_send::WORTH},
        dataplane::{Config, Dataplane, Egress},
    };

    /// Bulk on it may leave by XDP.
    const FAST: NextHopIndex = NextHopIndex(1);
    /// It may not.
    const SLOW: NextHopIndex = NextHopIndex(2);
    const LEN: usize = 1000;

    fn shared() -> (Dataplane, Shared) {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let mut plane = Dataplane::open_user(&Config {
            pin_dir: "/nonexistent".into(),
            port: 7117,
            network_key: TagKey([9; 16]),
            max_slots: 4,
            max_next_hops: 4,
            max_groups: 4,
            max_labels: 32,
        })
        .expect("memory can be had");
        for (index, ifindex) in [(FAST, 7), (SLOW, 8)] {
            let add = DataplaneOp::AddNextHop {
                index,
                path: UnderlayPath {
                    local: address("127.0.0.1:7117"),
                    remote: address("127.0.0.2:7117"),
                },
                slot: Slot(1),
                key: TagKey([1; 16]),
                mtu: 1500,
                seq_from: NextHopIndex(0),
            };
            plane.apply(&add).expect("the tables take it");
            let egress = Egress {
                ifindex,
                source_mac: [2; 6],
                destination_mac: [6; 6],
                mtu: 1500,
            };
            plane
                .set_egress(index, Some(egress))
                .expect("the next hop is there");
        }
        let mut store = Store::new(
            "fd00:1:2::1".parse().expect("an address"),
            "fd00:1:2::/48".parse::<Prefix>().expect("a prefix"),
            &[],
        );
        let (up, _) = crossbeam::channel::bounded(1);
        let shared = Shared {
            tables: plane.shared(),
            sessions: ArcSwap::from_pointee(
                store.publish().expect("a new one was never published"),
            ),
            hops: ArcSwap::default(),
            listening: ArcSwap::default(),
            modes: ArcSwap::default(),
            xdp_egress: ArcSwap::from_pointee([7].into()),
            counters: Default::default(),
            lanes: Default::default(),
            port: 7117,
            up,
            notify: Default::default(),
            stop: false.into(),
        };
        (plane, shared)
    }

    fn outlet() -> Outlet {
        Outlet {
            udp: TxBatch::default(),
            xdp: Some(Box::new(xdp_send::tests::refused())),
        }
    }

    fn lay(outlet: &mut Outlet, hop: &EncapsulationCell) {
        let xdp = outlet.xdp.as_mut().expect("it is there");
        assert!(xdp.commit(LEN, hop, 0));
    }

    #[test]
    fn only_bulk_that_fits_leaves_by_xdp() {
        let (_plane, shared) = shared();
        let by_xdp = |hop, packets, longest| {
            outlet()
                .by_xdp(&shared, &[], hop, (packets, longest))
                .is_some()
        };
        assert!(by_xdp(FAST, WORTH, LEN));
        assert!(!by_xdp(FAST, WORTH - 1, LEN), "too few");
        assert!(!by_xdp(SLOW, WORTH, LEN), "not on that interface");
        let largest = 1500 - OVERHEAD - underlay_overhead(false);
        assert!(by_xdp(FAST, WORTH, largest));
        // The socket refuses it, which is counted.
        assert!(!by_xdp(FAST, WORTH, largest + 1));
    }

    #[test]
    fn packets_of_the_two_ways_do_not_overtake_each_other() {
        let (_plane, shared) = shared();
        let mut outlet = outlet();
        let to = Address {
            remote: ([127, 0, 0, 2], 7117).into(),
            local: [127, 0, 0, 1].into(),
            interface: 0,
        };
        outlet.udp.commit(LEN, to, 0);
        // Few go the way of those that wait; bulk has those sent first.
        assert!(outlet.by_xdp(&shared, &[], FAST, (1, LEN)).is_none());
        assert!(!outlet.udp.is_empty());
        let hop = outlet.by_xdp(&shared, &[], FAST, (WORTH, LEN));
        assert!(outlet.udp.is_empty());
        lay(&mut outlet, hop.expect("it is bulk"));
        // And the other way round.
        let few = outlet.by_xdp(&shared, &[], FAST, (1, LEN));
        lay(&mut outlet, few.expect("others wait there"));
        assert!(outlet.by_xdp(&shared, &[], SLOW, (WORTH, LEN)).is_none());
        assert!(outlet.xdp.is_none_or(|xdp| xdp.is_empty()));
    }

    #[test]
    fn where_the_kernel_refuses_the_sockets_take_over() {
        let (_plane, shared) = shared();
        let mut outlet = outlet();
        let hop = outlet.by_xdp(&shared, &[], FAST, (WORTH, LEN));
        lay(&mut outlet, hop.expect("it is bulk"));
        outlet.flush(&shared, &[]);
        assert!(outlet.xdp.is_none());
        assert_eq!(shared.counters.get(Counter::UdpRefused), 1);
        assert!(outlet.by_xdp(&shared, &[], FAST, (WORTH, LEN)).is_none());
    }
}
