//! A finished handshake becomes a link, or new keys of one.

use weft_abi::{Slot, TagKey};

use super::{
    Dial, Links, Neighbour, Timer,
    handshake::{HandshakeMessage, Info, LinkKeys},
    open::Via,
    state::{Link, LinkKey, Third},
};
use crate::{
    identity::NodeId,
    io::{DataplaneOp, Micros, Output, UnderlayPath},
    node::{Event, context::Context, views::PeerSource},
    topology::lsa::MAX_PARALLEL_LINKS,
};

/// What a finished handshake is about.
pub(super) struct Agreed {
    pub(super) path: UnderlayPath,
    pub(super) key: LinkKey,
    pub(super) slot: Slot,
    pub(super) info: Info,
    pub(super) keys: LinkKeys,
    /// Of who began: the third message, the way it goes, and when it is repeated.
    pub(super) third: Option<(Via, HandshakeMessage, Third)>,
}

impl Links {
    /// Both sides have the keys (or will, once the third message arrives).
    pub(super) fn agree(&mut self, context: &mut Context<'_>, agreed: Agreed, via: Via) {
        let Agreed {
            path,
            key,
            slot,
            info,
            keys,
            third,
        } = agreed;
        let now = context.now;
        let Some(next_hop) = context.forwarding.reserve_next_hop() else {
            context.out.limit(now, "next_hops_full");
            context.forwarding.unreserve_slot(slot);
            return;
        };
        if let std::collections::btree_map::Entry::Vacant(vacant) = self.neighbours.entry(info.node)
        {
            let Some(group) = context.forwarding.reserve_group() else {
                context.out.limit(now, "groups_full");
                context.forwarding.unreserve_slot(slot);
                context.forwarding.unreserve_next_hop(next_hop);
                return;
            };
            vacant.insert(Neighbour::new(group));
        }
        let own_mtu = self.mtu_at(&path);
        let fresh = !self.links.contains_key(&key);
        if fresh && !self.room_for_link(context, &info.node, path) {
            context.out.limit(now, "links_of_neighbour_full");
            context.forwarding.unreserve_slot(slot);
            context.forwarding.unreserve_next_hop(next_hop);
            return;
        }
        let link = self.links.entry(key).or_insert_with(|| {
            Link::new(
                key,
                info.node,
                info.name.clone(),
                info.link,
                path,
                own_mtu,
                info.mtu,
                now,
            )
        });
        let mtu = link.mtu();
        context.out.push(Output::Dataplane(DataplaneOp::AddNextHop {
            index: next_hop,
            path: link.path,
            slot: info.slot,
            key: TagKey(keys.tx_tag),
            mtu,
            seq_from: weft_abi::NextHopIndex(0),
        }));
        if link.out_up.is_none() {
            context
                .out
                .push(Output::Dataplane(DataplaneOp::SetNextHopUp {
                    index: next_hop,
                    up: false,
                }));
        }
        context.forwarding.add_slot(
            context.out,
            slot,
            TagKey(keys.rx_tag),
            link.path,
            Some(next_hop),
        );
        let (third, repeat) = match third {
            Some((way, message, repeat)) => (Some((way, message)), Some(repeat)),
            None => (None, None),
        };
        link.name.clone_from(&info.name);
        link.push_epoch(now, keys, slot, info.slot, next_hop, repeat);
        // The smaller id renews the keys; the other steps in where it does not.
        let first = context.config.identity.id() < info.node;
        let age = context.config.timers.link_rekey;
        link.rekey_at = now
            + if first {
                age
            } else {
                Micros(age.0 + age.0 / 4)
            };
        self.by_slot.insert(slot, key);
        let node = info.node;
        if let Some(neighbour) = self.neighbours.get_mut(&node) {
            neighbour.links.insert(key);
            self.deadlines.clear(&Timer::Neighbour(node));
        }
        // Whoever gets the third message sends by the new keys at once: the slot for that stands in the tables by now.
        let responder = third.is_none();
        if let Some((way, message)) = third {
            self.send_handshake(context, way, None, &message);
        }
        if fresh {
            self.established(context, key, via);
        }
        self.update_group(context, &node);
        if responder {
            self.send_hello(context, key, true);
        }
        self.schedule(key);
        context.out.state_changed();
    }

    /// Whether a neighbour may have one more link; the one that has been dead for longest makes room.
    fn room_for_link(
        &mut self,
        context: &mut Context<'_>,
        node: &NodeId,
        path: UnderlayPath,
    ) -> bool {
        let Some(neighbour) = self.neighbours.get(node) else {
            return true;
        };
        let links = neighbour.links.iter().filter_map(|key| self.links.get(key));
        // One on the same path is replaced anyway.
        if neighbour.links.len() < MAX_PARALLEL_LINKS || links.clone().any(|l| l.path == path) {
            return true;
        }
        let dead = links.filter_map(|l| Some((l.down_since?, l.key))).min();
        if let Some((_, key)) = dead {
            self.close_link(context, key, "it made room for a new one");
        }
        dead.is_some()
    }

    /// A link there was none for: whatever stood between the same nodes and addresses before is over. A link of another
    /// node at the address stays: with a forged source address anybody in the network could end it otherwise.
    fn established(&mut self, context: &mut Context<'_>, key: LinkKey, via: Via) {
        let Some(link) = self.links.get(&key) else {
            return;
        };
        let (node, path, name) = (link.peer, link.path, link.name.clone());
        let replaced: Vec<_> = self
            .links
            .values()
            .filter(|other| other.key != key && other.peer == node && other.path == path)
            .map(|other| other.key)
            .collect();
        context.out.count("links_established");
        context
            .out
            .event(Event::LinkEstablished { node, name, path });
        self.dials.entry(path).or_insert(Dial {
            source: PeerSource::Heard,
            attempts: 0,
            eager_until: Micros(0),
            last_failure: None,
        });
        for old in replaced {
            self.close_link(context, old, "replaced by a new handshake");
        }
        if let Some(dial) = self.dials.get_mut(&path) {
            dial.attempts = 0;
            dial.last_failure = None;
        }
        if matches!(via, Via::Datagram(_)) {
            self.arrived(context, key);
        }
        self.send_hello(context, key, true);
    }
}
