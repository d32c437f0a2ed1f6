//! What the core wants done, done.

use std::{collections::HashMap, sync::Arc};

use tokio::time::Instant;
use weft_abi::{Kind, NextHopIndex};
use weft_core::io::{DataplaneOp, LspIngress, Output, SessionIndex, SessionOp};

use super::{Daemon, SNAPSHOT_GAP};
use crate::{
    data::{
        counters::Counter,
        crypto,
        outbound::{HEAD, finish},
        udp::Address,
    },
    dataplane::Egress,
};

/// Lane of what the core itself sends.
const CORE_LANE: u8 = 0;
/// Bytes of the link header.
const LINK: usize = 16;

impl Daemon {
    /// Does everything the core has to say now.
    pub(super) fn drain(&mut self) {
        while let Some(output) = self.node.poll_output() {
            // What a neighbour does upon a message may be here before this loop is done: workers must know before.
            if matches!(
                output,
                Output::SendDatagram { .. } | Output::SendLink { .. } | Output::SendSession { .. }
            ) {
                self.publish();
            }
            match output {
                Output::SendDatagram { path, datagram } => {
                    let interface = self.resolver.link_for(&path);
                    let to = Address {
                        remote: path.remote,
                        local: path.local.ip(),
                        interface,
                    };
                    self.send(&to, &datagram);
                }
                Output::SendLink {
                    next_hop,
                    kind,
                    body,
                } => self.send_link(next_hop, kind, &body),
                Output::SendSession {
                    session,
                    ingress,
                    ttl,
                    counter,
                    message,
                } => {
                    self.send_session(session, ingress, ttl, counter, &message);
                }
                Output::Dataplane(op) => self.apply_plane(&op),
                Output::Session(op) => {
                    if let SessionOp::Remove { session } = op {
                        self.session_packets.remove(&session);
                    }
                    // A /128 follows the session's LSP and its MTU.
                    self.routes_changed |=
                        matches!(op, SessionOp::SetIngress { .. } | SessionOp::Remove { .. });
                    self.store.apply(op);
                }
                Output::Routes(routes) => {
                    // Without the interface nothing is delivered to this host or taken from it.
                    if let Some(policy) = &mut self.routes {
                        self.store.set_routes(policy.accepted(routes));
                        self.routes_changed = true;
                    }
                }
                Output::Answer { id, answer } => self.answered(id, answer),
                Output::Event(event) => tracing::info!(target: "weft::event", "{event}"),
                Output::StateChanged => {
                    let soonest = self
                        .snapshot_last
                        .map_or_else(Instant::now, |last| last + SNAPSHOT_GAP);
                    self.snapshot_due.get_or_insert(soonest);
                }
            }
        }
    }

    /// Makes visible to the workers what a drain changed.
    pub(super) fn publish(&mut self) {
        self.publish_hops();
        if let Some(table) = self.store.publish() {
            self.shared.sessions.store(Arc::new(table));
            for wake in &self.wakes {
                wake.wake();
            }
        }
    }

    fn publish_hops(&mut self) {
        if std::mem::take(&mut self.hops_changed) {
            self.shared.hops.store(Arc::new(self.hops.clone()));
        }
    }

    /// Applies one operation to the forwarding tables and to what is kept beside them.
    pub(super) fn apply_plane(&mut self, op: &DataplaneOp) {
        // Workers read the tables as they are written. No group may lead them to a next hop whose address they lack.
        if !matches!(
            op,
            DataplaneOp::AddNextHop { .. } | DataplaneOp::RemoveNextHop { .. }
        ) {
            self.publish_hops();
        }
        if let Err(error) = self.plane.apply(op) {
            tracing::error!(%error, ?op, "the forwarding tables did not take a change");
            self.notices.insert(
                "tables",
                format!("the forwarding tables did not take a change: {error}"),
            );
        }
        match op {
            DataplaneOp::AddSlot { slot, .. } if !self.slots.contains(slot) => {
                self.slots.push(*slot)
            }
            DataplaneOp::RemoveSlot { slot } => self.slots.retain(|old| old != slot),
            DataplaneOp::AddNextHop {
                index, path, mtu, ..
            } => {
                let at = index.0 as usize;
                if self.hops.len() <= at {
                    self.hops.resize(at + 1, None);
                }
                let hop = self.resolver.add(*index, *path, *mtu);
                let (interface, egress) = (hop.link, hop.egress);
                self.hops[at] = Some(Address {
                    remote: path.remote,
                    local: path.local.ip(),
                    interface,
                });
                self.hops_changed = true;
                self.to_look.push(*index);
                if egress.is_some() {
                    self.set_egress(*index, egress);
                }
            }
            DataplaneOp::SetNextHopUp { index, up } => self.resolver.set_arrives(*index, *up),
            DataplaneOp::RemoveNextHop { index } => {
                if let Some(hop) = self.hops.get_mut(index.0 as usize) {
                    *hop = None;
                    self.hops_changed = true;
                }
                self.resolver.remove(*index);
            }
            _ => {}
        }
    }

    /// Tells the forwarding plane how a neighbour is reached.
    pub(super) fn set_egress(&mut self, index: NextHopIndex, egress: Option<Egress>) {
        if let Err(error) = self.plane.set_egress(index, egress) {
            tracing::error!(%error, "the forwarding plane did not take how a neighbour is reached");
        }
    }

    fn hop(&self, next_hop: NextHopIndex) -> Option<Address> {
        self.hops.get(next_hop.0 as usize).copied().flatten()
    }

    fn send(&self, to: &Address, datagram: &[u8]) {
        let Some(socket) = self
            .sockets
            .iter()
            .find(|socket| socket.is_ipv6() == to.remote.is_ipv6())
        else {
            self.shared.counters.one(Counter::UdpRefused);
            return;
        };
        match socket.send(to, 0, datagram) {
            Ok(()) => self.shared.counters.one(Counter::UdpTx),
            Err(error) => {
                let counter = match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => Counter::UdpFull,
                    Some(libc::EMSGSIZE) => Counter::UdpTooBig,
                    _ => Counter::UdpRefused,
                };
                self.shared.counters.one(counter);
                tracing::debug!(%error, remote = %to.remote, local = %to.local, "a datagram was not sent");
            }
        }
    }

    fn send_link(&mut self, next_hop: NextHopIndex, kind: Kind, body: &[u8]) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let len = LINK + body.len();
        if let (Some(to), Some(datagram)) = (self.hop(next_hop), buffer.get_mut(..len)) {
            datagram[LINK..].copy_from_slice(body);
            match self
                .shared
                .tables
                .stamp(next_hop, CORE_LANE, kind, datagram)
            {
                Ok(()) => self.send(&to, datagram),
                Err(reason) => tracing::debug!(
                    reason = reason.name(),
                    ?next_hop,
                    "a link message was not sent"
                ),
            }
        }
        self.buffer = buffer;
    }

    fn send_session(
        &mut self,
        session: SessionIndex,
        ingress: Option<LspIngress>,
        ttl: u8,
        counter: u64,
        message: &[u8],
    ) {
        let mut buffer = std::mem::take(&mut self.buffer);
        let sent = (|| {
            let session = self.store.session(session)?;
            let ingress = ingress.or(session.ingress)?;
            let epoch = session.epoch((counter >> crate::data::session::EPOCH_SHIFT) as u8)?;
            let next_hop = self.shared.tables.select(ingress.group, CORE_LANE)?;
            let to = self.hop(next_hop)?;
            buffer.get(..HEAD + message.len() + crypto::TAG)?;
            buffer[HEAD..HEAD + message.len()].copy_from_slice(message);
            let sealed = epoch.seal_message(counter, &mut buffer[HEAD..], message.len())?;
            let len = HEAD + sealed;
            finish(
                &self.shared.tables,
                &mut buffer,
                next_hop,
                CORE_LANE,
                ingress.label,
                ttl,
                counter,
                len,
            )
            .ok()?;
            self.send(&to, &buffer[..len]);
            Some(())
        })();
        if sent.is_none() {
            self.shared.counters.one(Counter::NoLsp);
        }
        self.buffer = buffer;
    }

    /// Packets and bytes sent in sessions, by peer: what the ingress LSPs carried.
    pub(super) fn sent_by_peer(&self) -> HashMap<weft_core::identity::NodeId, (u64, u64)> {
        use std::sync::atomic::Ordering::Relaxed;
        self.store
            .sessions()
            .map(|session| {
                let counters = &session.counters;
                (
                    session.peer,
                    (
                        counters.tx_packets.load(Relaxed),
                        counters.tx_bytes.load(Relaxed),
                    ),
                )
            })
            .collect()
    }
}
