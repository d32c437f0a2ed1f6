//! The links' relation to the host's addresses: whom to contact from where, roaming, interfaces that go.

use std::net::{IpAddr, SocketAddr};

use weft_abi::{NextHopIndex, TagKey};

use super::{
    Dial, EAGER, EAGER_RETRY, LinkEvent, Links, Neighbour, Timer, YOUNG,
    open::Via,
    state::{LinkKey, MIN_MTU},
};
use crate::{
    io::{DataplaneOp, Micros, Output, UnderlayAddress, UnderlayPath},
    message::Message,
    node::{Event, context::Context, views::PeerSource},
};

/// Paths contacted at most; addresses times peers could be many.
const MAX_DIALS: usize = 4096;

impl Neighbour {
    pub(super) fn new(group: weft_abi::GroupIndex) -> Self {
        let none = NextHopIndex(0);
        Self {
            group,
            links: Default::default(),
            buckets: [(none, none); 16],
            up: false,
            out_up: false,
        }
    }
}

impl Links {
    /// All addresses of this host that links may start from.
    pub(crate) fn handle_underlay(
        &mut self,
        context: &mut Context<'_>,
        addresses: &[UnderlayAddress],
    ) {
        self.addresses = addresses.to_vec();
        let keys: Vec<_> = self.links.keys().copied().collect();
        for key in keys {
            self.follow_addresses(context, key);
        }
        self.redial_all(context);
    }

    fn usable(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == ip && a.up)
    }

    /// A link whose own address went moves to another one, or is down at once.
    fn follow_addresses(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let path = link.path;
        let here = self.addresses.iter().find(|a| a.address == path.local.ip());
        if let Some(here) = here.filter(|a| a.up) {
            let mtu = here.mtu.max(MIN_MTU);
            if mtu != link.own_mtu {
                link.own_mtu = mtu;
                self.rebuild_next_hop(context, key, path);
                self.events.push_back(LinkEvent::Advertise);
            }
            return;
        }
        let peer = link.peer;
        // Where another link carries on there is no need to try our luck from an address that may not lead there.
        let backed = self.links.values().any(|l| {
            l.peer == peer && l.key != key && l.out_up.is_some() && self.usable(l.path.local.ip())
        });
        let candidates = if backed {
            Vec::new()
        } else {
            self.locals_for(path.remote)
        };
        let other = candidates.into_iter().find(|ip| {
            let moved = UnderlayPath {
                local: SocketAddr::new(*ip, path.local.port()),
                remote: path.remote,
            };
            !self.links.values().any(|l| l.path == moved)
        });
        match other {
            Some(ip) => {
                let moved = UnderlayPath {
                    local: SocketAddr::new(ip, path.local.port()),
                    remote: path.remote,
                };
                self.move_link(context, key, moved);
                // The neighbour learns of it from the source address of this.
                self.send_hello(context, key, true);
                self.send_probe_now(key);
            }
            None => {
                self.set_out(context, key, None, "its interface is down");
                self.set_in_down(context, key, "its interface is down");
            }
        }
    }

    fn send_probe_now(&mut self, key: LinkKey) {
        if let Some(link) = self.links.get_mut(&key) {
            link.next_probe = Micros(0);
        }
        self.schedule(key);
    }

    /// The link goes on between other addresses, under the same keys. LSPs over it notice nothing.
    pub(super) fn move_link(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        path: UnderlayPath,
    ) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let (from, peer) = (link.path, link.peer);
        if from == path {
            return;
        }
        link.path = path;
        link.meter.forget_rtt();
        let dial = !self.dials.contains_key(&path);
        let twin = self
            .links
            .values()
            .find(|l| l.key != key && l.peer == peer && l.path == path)
            .map(|l| l.key);
        if dial && self.dials.len() < MAX_DIALS {
            self.dials.insert(
                path,
                Dial {
                    source: PeerSource::Heard,
                    attempts: 0,
                    eager_until: Micros(0),
                    last_failure: None,
                },
            );
        }
        if self
            .dials
            .get(&from)
            .is_some_and(|d| d.source == PeerSource::Heard)
        {
            self.forget_dial(&from);
        }
        self.rebuild_next_hop(context, key, path);
        context.out.count("links_moved");
        context.out.event(Event::LinkMoved {
            node: peer,
            from,
            to: path,
        });
        if let Some(twin) = twin {
            self.close_link(context, twin, "another link moved to its addresses");
        }
        self.send_hello(context, key, true);
        self.events.push_back(LinkEvent::Advertise);
        context.out.state_changed();
    }

    /// New next hops for every epoch of the link, continuing the sequence numbers of the old ones.
    fn rebuild_next_hop(&mut self, context: &mut Context<'_>, key: LinkKey, path: UnderlayPath) {
        let own_mtu = self.mtu_at(&path);
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        link.own_mtu = own_mtu;
        let (mtu, up, peer) = (link.mtu(), link.out_up.is_some(), link.peer);
        let mut old = Vec::new();
        for epoch in &mut link.epochs {
            let Some(index) = context.forwarding.reserve_next_hop() else {
                context.out.limit(context.now, "next_hops_full");
                continue;
            };
            let seq_from = std::mem::replace(&mut epoch.next_hop, index);
            old.push(seq_from);
            context.out.push(Output::Dataplane(DataplaneOp::AddNextHop {
                index,
                path,
                slot: epoch.tx_slot,
                key: TagKey(epoch.frames.keys.tx_tag),
                mtu,
                seq_from,
            }));
            if !up {
                context
                    .out
                    .push(Output::Dataplane(DataplaneOp::SetNextHopUp {
                        index,
                        up: false,
                    }));
            }
            context
                .out
                .push(Output::Dataplane(DataplaneOp::SetSlotPath {
                    slot: epoch.rx_slot,
                    path,
                }));
            context.out.push(Output::Dataplane(DataplaneOp::SetEcho {
                slot: epoch.rx_slot,
                echo: Some(index),
            }));
        }
        self.update_group(context, &peer);
        for index in old {
            context
                .forwarding
                .retire_next_hop(context.now, context.out, index);
        }
        self.schedule(key);
    }

    /// The path's MTU changed, or its next hop can (not) be resolved.
    pub(crate) fn handle_next_hop_state(
        &mut self,
        context: &mut Context<'_>,
        index: NextHopIndex,
        resolved: bool,
        mtu: u16,
    ) {
        let link = self
            .links
            .values_mut()
            .find(|l| l.epochs.iter().any(|e| e.next_hop == index));
        let Some(link) = link else { return };
        let key = link.key;
        let mtu = mtu.max(MIN_MTU);
        if mtu < link.own_mtu {
            link.own_mtu = mtu;
            self.events.push_back(LinkEvent::Advertise);
        }
        if !resolved {
            self.set_out(context, key, None, "its next hop does not resolve");
        }
    }

    /// Addresses of this host to contact a remote one from: those it is on-link of, else all of its kind.
    fn locals_for(&self, remote: SocketAddr) -> Vec<IpAddr> {
        let same_kind = |a: &&UnderlayAddress| {
            let kind = |ip: IpAddr| match ip {
                IpAddr::V4(v4) => (4, v4.is_loopback(), v4.is_link_local()),
                IpAddr::V6(v6) => (6, v6.is_loopback(), v6.is_unicast_link_local()),
            };
            a.up && kind(a.address) == kind(remote.ip())
        };
        let candidates: Vec<_> = self.addresses.iter().filter(same_kind).collect();
        let on_link: Vec<_> = candidates
            .iter()
            .filter(|a| on_link(a, remote.ip()))
            .map(|a| a.address)
            .collect();
        if on_link.is_empty() {
            candidates.iter().map(|a| a.address).collect()
        } else {
            on_link
        }
    }

    fn redial_all(&mut self, context: &mut Context<'_>) {
        let port = context.config.port;
        let targets: Vec<_> = self
            .targets
            .iter()
            .map(|(remote, source)| (*remote, *source))
            .collect();
        let mut wanted = std::collections::BTreeSet::new();
        for (remote, source) in targets {
            let own =
                remote.port() == port && self.addresses.iter().any(|a| a.address == remote.ip());
            if own {
                continue;
            }
            for ip in self.locals_for(remote) {
                let path = UnderlayPath {
                    local: SocketAddr::new(ip, port),
                    remote,
                };
                if self.dials.len() >= MAX_DIALS {
                    context.out.limit(context.now, "dials_full");
                    break;
                }
                wanted.insert(path);
                let fresh = Dial {
                    source,
                    attempts: 0,
                    eager_until: Micros(0),
                    last_failure: None,
                };
                self.dials.entry(path).or_insert(fresh).source = source;
            }
        }
        let obsolete: Vec<_> = self
            .dials
            .iter()
            .filter(|(path, dial)| {
                let linked = self.links.values().any(|l| l.path == **path);
                !linked
                    && (dial.source != PeerSource::Heard || !self.usable(path.local.ip()))
                    && !wanted.contains(path)
            })
            .map(|(path, _)| *path)
            .collect();
        obsolete.iter().for_each(|path| self.forget_dial(path));
        for path in wanted {
            self.redial(context, path);
        }
    }

    pub(super) fn forget_dial(&mut self, path: &UnderlayPath) {
        self.dials.remove(path);
        self.deadlines.clear(&Timer::Dial(*path));
        let index = self
            .initiating
            .iter()
            .find(|(_, i)| i.is_on(path))
            .map(|(index, _)| *index);
        if let Some(index) = index {
            self.initiating.remove(&index);
            self.deadlines.clear(&Timer::Initiating(index));
        }
    }

    /// [`Links::redial`] where a link has just ended.
    pub(super) fn redial_eagerly(
        &mut self,
        context: &mut Context<'_>,
        path: UnderlayPath,
        wait: Micros,
    ) {
        if let Some(dial) = self.dials.get_mut(&path) {
            dial.eager_until = context.now + EAGER;
            dial.attempts = 0;
            let wait = context.jittered(wait);
            self.deadlines.set(Timer::Dial(path), context.now + wait);
        }
    }

    /// Longest time between two attempts on a path.
    pub(super) fn longest_wait(&self, context: &Context<'_>, path: &UnderlayPath) -> Micros {
        let longest = context.config.timers.handshake_retry_max;
        match self.dials.get(path) {
            Some(dial) if context.now < dial.eager_until => longest.min(EAGER_RETRY),
            _ => longest,
        }
    }

    /// Has the path contacted soon, if it is one to contact.
    pub(super) fn redial(&mut self, context: &mut Context<'_>, path: UnderlayPath) {
        let Some(dial) = self.dials.get_mut(&path) else {
            return;
        };
        dial.attempts = 0;
        // A random start: neighbours that boot together do not open to each other at the same instant.
        let wait = context.jittered(Micros(context.config.timers.handshake_retry.0 / 5));
        self.deadlines.set(Timer::Dial(path), context.now + wait);
    }

    pub(super) fn dial(&mut self, context: &mut Context<'_>, path: UnderlayPath) {
        let usable = self.usable(path.local.ip());
        let longest = self.longest_wait(context, &path);
        let Some(dial) = self.dials.get_mut(&path) else {
            return;
        };
        // An unconfirmed link is a handshake under way.
        let linked = self.links.values().any(|l| {
            let young = context.now.since(l.since) < YOUNG;
            l.path == path && (l.alive() || young || l.epochs.iter().all(|e| !e.confirmed))
        });
        if linked || !usable {
            dial.attempts = 0;
            self.deadlines
                .set(Timer::Dial(path), context.now + Micros::from_secs(5));
            return;
        }
        dial.attempts = dial.attempts.saturating_add(1);
        let timers = &context.config.timers;
        let wait = Micros(timers.handshake_retry.0 << dial.attempts.min(10)).min(longest);
        let wait = context.jittered(wait);
        self.deadlines.set(Timer::Dial(path), context.now + wait);
        self.initiate(context, Via::Datagram(path));
    }

    /// Contacts a neighbour from now on.
    pub(crate) fn add_peer(&mut self, context: &mut Context<'_>, remote: SocketAddr) {
        self.targets.entry(remote).or_insert(PeerSource::Added);
        self.redial_all(context);
    }

    /// Ends the links to an address. False where it was not known.
    pub(crate) fn remove_peer(&mut self, context: &mut Context<'_>, remote: SocketAddr) -> bool {
        let known = self.targets.remove(&remote).is_some();
        let paths: Vec<_> = self
            .dials
            .keys()
            .filter(|path| path.remote == remote)
            .copied()
            .collect();
        paths.iter().for_each(|path| self.forget_dial(path));
        let keys: Vec<_> = self
            .links
            .values()
            .filter(|l| l.path.remote == remote)
            .map(|l| l.key)
            .collect();
        for key in &keys {
            self.send(context, *key, &Message::Goodbye);
            self.close_link(context, *key, "removed by command");
        }
        known || !keys.is_empty()
    }
}

fn on_link(address: &UnderlayAddress, remote: IpAddr) -> bool {
    match (address.address, remote) {
        (IpAddr::V4(own), IpAddr::V4(remote)) => {
            let host = 32_u32.saturating_sub(address.prefix_len.into());
            (own.to_bits() ^ remote.to_bits())
                .checked_shr(host)
                .unwrap_or(0)
                == 0
        }
        (IpAddr::V6(own), IpAddr::V6(remote)) => {
            let host = 128_u32.saturating_sub(address.prefix_len.into());
            (own.to_bits() ^ remote.to_bits())
                .checked_shr(host)
                .unwrap_or(0)
                == 0
        }
        _ => false,
    }
}
