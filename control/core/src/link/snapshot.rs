//! Links in a snapshot: what lets a restarted daemon go on under the same keys.

use weft_abi::{GroupIndex, NextHopIndex, Slot, TagKey};

use super::{
    Dial, LinkEvent, Links, Neighbour, Timer,
    frame::FrameKeys,
    handshake::{LinkKeys, MAX_NAME},
    state::{Epoch, Link, LinkKey, MIN_MTU, Proof},
};
use crate::{
    identity::NodeId,
    io::{DataplaneOp, Micros, Output, UnderlayPath},
    node::{context::Context, views::PeerSource},
    topology::lsa::{LinkId, Measured},
    wire::{Reader, WireError, Writer},
};

/// Hellos skipped at a resume: more than were sent since any snapshot that is still of use.
const HELLO_LEAP: u32 = 1 << 20;
const MAX_EPOCHS: usize = 8;

impl Links {
    /// Appends neighbours and links. Links that never got past their first handshake are left out.
    pub(crate) fn save(&self, w: &mut Writer) {
        w.u32(self.neighbours.len() as u32);
        for (node, neighbour) in &self.neighbours {
            w.node_id(node).u32(neighbour.group.0);
        }
        let links: Vec<_> = self
            .links
            .values()
            .filter(|link| link.epochs.iter().any(|e| e.confirmed))
            .collect();
        w.u32(links.len() as u32);
        for link in links {
            w.u32(link.key.0)
                .node_id(&link.peer)
                .text(&link.name)
                .u32(link.peer_link.0);
            w.socket_addr(&link.path.local)
                .socket_addr(&link.path.remote);
            w.u16(link.own_mtu).u16(link.peer_mtu).u64(link.sending);
            w.u8(match link.out_up {
                None => 0,
                Some(Proof::Echo) => 1,
                Some(Proof::Report) => 2,
            });
            w.bool(link.in_up)
                .u32(link.hello_sequence)
                .u32(link.hello_heard.unwrap_or(0));
            save_measured(w, link.advertised.get());
            save_measured(w, link.peer_measured);
            w.list(&link.epochs, |w, e| {
                w.u64(e.number)
                    .u16(e.rx_slot.0)
                    .u16(e.tx_slot.0)
                    .u32(e.next_hop.0)
                    .bool(e.confirmed);
                let keys = &e.frames.keys;
                w.bytes(&keys.tx_tag)
                    .bytes(&keys.rx_tag)
                    .bytes(&keys.tx_control)
                    .bytes(&keys.rx_control);
                w.u32(e.frames.generation);
                w.bool(e.frames.highest_received().is_some())
                    .u64(e.frames.highest_received().unwrap_or(0));
            });
        }
    }

    /// Takes them in again, claims their indices and describes their tables.
    pub(crate) fn load(
        &mut self,
        context: &mut Context<'_>,
        r: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        let now = context.now;
        let taken = |field| WireError::Value { field, value: 0 };
        for _ in 0..r.u32()? {
            let (node, group) = (r.node_id()?, GroupIndex(r.u32()?));
            if !context.forwarding.claim_group(group) {
                return Err(taken("group"));
            }
            self.neighbours.insert(node, Neighbour::new(group));
            self.deadlines
                .set(Timer::Neighbour(node), now + super::FORGET_NEIGHBOUR);
        }
        for _ in 0..r.u32()? {
            let link = load_link(now, r)?;
            if link.path.local.port() != context.config.port {
                return Err(WireError::Value {
                    field: "port",
                    value: link.path.local.port().into(),
                });
            }
            if self.links.contains_key(&link.key) || !self.neighbours.contains_key(&link.peer) {
                return Err(taken("link"));
            }
            for epoch in &link.epochs {
                if !context.forwarding.claim_slot(epoch.rx_slot) {
                    return Err(taken("slot"));
                }
                if !context.forwarding.claim_next_hop(epoch.next_hop) {
                    return Err(taken("next hop"));
                }
            }
            self.describe(context, link);
        }
        let nodes: Vec<NodeId> = self.neighbours.keys().copied().collect();
        for node in nodes {
            self.update_group(context, &node);
        }
        self.events.push_back(LinkEvent::Advertise);
        Ok(())
    }

    fn describe(&mut self, context: &mut Context<'_>, mut link: Link) {
        let now = context.now;
        for epoch in &link.epochs {
            let (index, slot) = (epoch.next_hop, epoch.rx_slot);
            context.out.push(Output::Dataplane(DataplaneOp::AddNextHop {
                index,
                path: link.path,
                slot: epoch.tx_slot,
                key: TagKey(epoch.frames.keys.tx_tag),
                mtu: link.mtu(),
                seq_from: NextHopIndex(0),
            }));
            if link.out_up.is_none() {
                context
                    .out
                    .push(Output::Dataplane(DataplaneOp::SetNextHopUp {
                        index,
                        up: false,
                    }));
            }
            let key = TagKey(epoch.frames.keys.rx_tag);
            context
                .forwarding
                .add_slot(context.out, slot, key, link.path, Some(index));
            self.by_slot.insert(slot, link.key);
        }
        let wait = context.jittered(context.config.timers.link_rekey);
        link.rekey_at = now + Micros(wait.0 / 2);
        let fresh = Dial {
            source: PeerSource::Heard,
            attempts: 0,
            eager_until: Micros(0),
            last_failure: None,
        };
        self.dials.entry(link.path).or_insert(fresh);
        if let Some(neighbour) = self.neighbours.get_mut(&link.peer) {
            neighbour.links.insert(link.key);
            self.deadlines.clear(&Timer::Neighbour(link.peer));
        }
        self.deadlines.set(Timer::Link(link.key), now);
        self.links.insert(link.key, link);
    }
}

fn save_measured(w: &mut Writer, measured: Option<Measured>) {
    w.bool(measured.is_some());
    let m = measured.unwrap_or(Measured::UNKNOWN);
    w.u32(m.cost)
        .u32(m.loss_ppm)
        .u32(m.delay_us)
        .u32(m.jitter_us)
        .u32(m.capacity_kbps);
}

fn load_measured(r: &mut Reader<'_>) -> Result<Option<Measured>, WireError> {
    let known = r.bool("measured")?;
    let measured = Measured {
        cost: r.u32()?,
        loss_ppm: r.u32()?,
        delay_us: r.u32()?,
        jitter_us: r.u32()?,
        capacity_kbps: r.u32()?,
    };
    Ok(known.then_some(measured))
}

fn load_link(now: Micros, r: &mut Reader<'_>) -> Result<Link, WireError> {
    let (key, peer) = (LinkKey(r.u32()?), r.node_id()?);
    let name = r.text("name", MAX_NAME)?.to_owned();
    let peer_link = LinkId(r.u32()?);
    let path = UnderlayPath {
        local: r.socket_addr()?,
        remote: r.socket_addr()?,
    };
    let (own_mtu, peer_mtu, sending) = (r.u16()?.max(MIN_MTU), r.u16()?.max(MIN_MTU), r.u64()?);
    let mut link = Link::new(key, peer, name, peer_link, path, own_mtu, peer_mtu, now);
    link.sending = sending;
    link.out_up = match r.u8()? {
        0 => None,
        1 => Some(Proof::Echo),
        2 => Some(Proof::Report),
        value => {
            return Err(WireError::Value {
                field: "proof",
                value: value.into(),
            });
        }
    };
    link.in_up = r.bool("in")?;
    link.down_since = if link.alive() { None } else { Some(now) };
    link.hello_sequence = r.u32()?.saturating_add(HELLO_LEAP);
    // A link in use proves itself again: what was reported before the restart does not count.
    link.reported = Some((link.hello_sequence, now));
    let heard = r.u32()?;
    link.hello_heard = (heard > 0).then_some(heard);
    if let Some(measured) = load_measured(r)? {
        link.advertised.update(now, measured);
    }
    link.peer_measured = load_measured(r)?;
    link.epochs = r.list("epochs", MAX_EPOCHS, |r| {
        let (number, rx_slot, tx_slot) = (r.u64()?, Slot(r.u16()?), Slot(r.u16()?));
        let (next_hop, confirmed) = (NextHopIndex(r.u32()?), r.bool("confirmed")?);
        let keys = LinkKeys {
            tx_tag: r.array()?,
            rx_tag: r.array()?,
            tx_control: r.array()?,
            rx_control: r.array()?,
        };
        let generation = r.u32()?.checked_add(1);
        let generation = generation.ok_or(WireError::Value {
            field: "generation",
            value: u64::from(u32::MAX),
        })?;
        let highest = if r.bool("received")? {
            Some(r.u64()?)
        } else {
            r.u64().map(|_| None)?
        };
        let frames = FrameKeys::resumed(keys, generation, highest);
        Ok(Epoch {
            number,
            rx_slot,
            tx_slot,
            frames,
            next_hop,
            confirmed,
            third: None,
            since: now,
            retire_at: None,
        })
    })?;
    // Of several epochs the older ones were about to go.
    let newest = link.newest();
    for epoch in link.epochs.iter_mut().filter(|e| e.number != newest) {
        epoch.retire_at = Some(now + super::OLD_KEYS);
    }
    if link.epochs.is_empty() || link.epochs.iter().all(|e| e.number != sending) {
        return Err(WireError::Value {
            field: "epoch in use",
            value: sending,
        });
    }
    Ok(link)
}
