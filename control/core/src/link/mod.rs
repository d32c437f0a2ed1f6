//! Links to neighbours: contact, keys, liveness, measurement, roaming, and the next-hop groups that lead to them.
//!
//! One handshake serves both directions of a pair of addresses; each direction then has its own state: *out* is up
//! while something shows that the neighbour hears us (its forwarding plane's echo, or its reports), *in* while we hear
//! it. All pairs of addresses shared with a neighbour stand behind one next-hop group, so a change of keys, of address
//! or of link touches the group and never an LSP.

mod agree;
pub(crate) mod frame;
pub(crate) mod guard;
pub(crate) mod handshake;
pub(crate) mod measure;
mod open;
mod snapshot;
pub(crate) mod state;
mod tick;
mod underlay;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
};

use bytes::Bytes;
use weft_abi::{GroupIndex, Kind, NextHopIndex, Slot};

use self::{
    guard::Guard,
    open::{Initiating, Responding},
    state::{Link, LinkKey, Proof},
};
use crate::{
    identity::NodeId,
    io::{DataplaneOp, ForwardMode, Micros, Output, UnderlayAddress, UnderlayPath},
    message::{Hello, Message, Report, RoutedBody},
    node::{
        Event,
        context::{Context, Deadlines},
        views::PeerSource,
    },
    topology::lsa::{HearLink, SendLink},
};

/// Time after which keys replaced by newer ones are forgotten.
const OLD_KEYS: Micros = Micros::from_secs(5);
/// Links not known to carry anything that a routed message is tried on where it has no other way.
const UNPROVEN_TRIED: usize = 4;
/// A link that is dead both ways is forgotten after this.
const FORGET_LINK: Micros = Micros::from_secs(180);
/// A neighbour without links keeps its group for so long.
const FORGET_NEIGHBOUR: Micros = Micros::from_secs(200);
/// A link without a sign of life in either direction is no reason to call for so long after it began: on one that goes
/// one way, the first report is still on its way round.
const YOUNG: Micros = Micros::from_secs(4);
/// For so long after the end of a link its addresses are tried more often than those nobody ever answered from.
const EAGER: Micros = Micros::from_secs(300);
/// Longest time between attempts then.
const EAGER_RETRY: Micros = Micros::from_secs(3);
/// Hello intervals of silence after which a direction proven by hellos counts as down, in tenths.
const HELLO_TENTHS: u64 = 35;

/// What the links tell the rest of the node.
#[derive(Debug)]
pub(crate) enum LinkEvent {
    /// A message from a neighbour, for another module.
    Message { from: NodeId, message: Message },
    /// To be carried to a node that cannot be reached directly.
    Routed { to: NodeId, body: RoutedBody },
    /// The neighbour can be talked to (directly or not).
    NeighbourUp { node: NodeId },
    /// No more.
    NeighbourDown { node: NodeId },
    /// Packets reach the neighbour (again), or no more: concerns LSPs over it.
    OutChanged { node: NodeId, up: bool },
    /// The neighbour's group is gone; LSPs over it must be, too.
    NeighbourForgotten { node: NodeId },
    /// What this node advertises of its links changed.
    Advertise,
}

/// All pairs of addresses shared with one node.
#[derive(Debug)]
pub(crate) struct Neighbour {
    pub(crate) group: GroupIndex,
    pub(crate) links: BTreeSet<LinkKey>,
    buckets: [(NextHopIndex, NextHopIndex); 16],
    up: bool,
    out_up: bool,
}

/// An address pair this node tries to have a link on.
#[derive(Debug)]
struct Dial {
    source: PeerSource,
    attempts: u32,
    /// A link was here until lately: whoever stood at its other end may be back any moment.
    eager_until: Micros,
    last_failure: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Link(LinkKey),
    Initiating(u32),
    Responding(u32),
    Dial(UnderlayPath),
    Neighbour(NodeId),
}

/// The links of a node.
#[derive(Debug)]
pub(crate) struct Links {
    links: BTreeMap<LinkKey, Link>,
    by_slot: BTreeMap<Slot, LinkKey>,
    neighbours: BTreeMap<NodeId, Neighbour>,
    initiating: BTreeMap<u32, Initiating>,
    responding: BTreeMap<u32, Responding>,
    by_first: BTreeMap<[u8; 16], u32>,
    targets: BTreeMap<SocketAddr, PeerSource>,
    dials: BTreeMap<UnderlayPath, Dial>,
    addresses: Vec<UnderlayAddress>,
    guard: Guard,
    deadlines: Deadlines<Timer>,
    events: VecDeque<LinkEvent>,
    /// Since when this node has done what was due in time: silence counts from then on.
    awake_since: Micros,
    closing: bool,
}

/// A datagram of kind 2.
pub(crate) fn open_via_datagram(
    links: &mut Links,
    context: &mut Context<'_>,
    path: UnderlayPath,
    datagram: &[u8],
) {
    match datagram.get(weft_abi::LINK_LEN..) {
        Some(body) => links.handle_handshake(context, open::Via::Datagram(path), body),
        None => context.out.count("handshake_malformed"),
    }
}

/// A handshake message that came over the mesh.
pub(crate) fn open_via_routed(links: &mut Links, context: &mut Context<'_>, body: &[u8]) {
    links.handle_handshake(context, open::Via::Routed, body);
}

impl Links {
    pub(crate) fn new(context: &Context<'_>) -> Self {
        let limits = &context.config.limits;
        let targets = context
            .config
            .peers
            .iter()
            .map(|peer| (*peer, PeerSource::Configured))
            .collect();
        Self {
            links: BTreeMap::new(),
            by_slot: BTreeMap::new(),
            neighbours: BTreeMap::new(),
            initiating: BTreeMap::new(),
            responding: BTreeMap::new(),
            by_first: BTreeMap::new(),
            targets,
            dials: BTreeMap::new(),
            addresses: Vec::new(),
            guard: Guard::new(
                limits.handshakes_per_source_per_s,
                limits.handshakes_per_s,
                context.now,
            ),
            deadlines: Deadlines::default(),
            events: VecDeque::new(),
            awake_since: context.now,
            closing: false,
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        self.deadlines.next()
    }

    pub(crate) fn neighbour(&self, node: &NodeId) -> Option<&Neighbour> {
        self.neighbours.get(node)
    }

    /// Whether packets reach the neighbour.
    pub(crate) fn reaches(&self, node: &NodeId) -> bool {
        self.neighbours.get(node).is_some_and(|n| n.out_up)
    }

    /// Whether the neighbour's forwarding plane answers while its control plane is silent (it restarts).
    pub(crate) fn restarts(&self, node: &NodeId) -> bool {
        let links = self.neighbours.get(node).into_iter().flat_map(|n| &n.links);
        links
            .filter_map(|key| self.links.get(key))
            .any(|link| link.silent && link.alive())
    }

    /// Largest UDP payload that fits every working link to the neighbour.
    pub(crate) fn payload_mtu(&self, node: &NodeId) -> Option<u16> {
        let links = self
            .neighbours
            .get(node)?
            .links
            .iter()
            .filter_map(|key| self.links.get(key));
        links
            .filter(|link| link.out_up.is_some())
            .map(Link::payload_mtu)
            .min()
    }

    /// The neighbour behind a receiving slot.
    pub(crate) fn node_of(&self, slot: Slot) -> Option<NodeId> {
        self.links
            .get(self.by_slot.get(&slot)?)
            .map(|link| link.peer)
    }

    /// How packets from the neighbour are forwarded at this end.
    pub(crate) fn mode_of(&self, node: &NodeId) -> ForwardMode {
        let key = self.neighbours.get(node).and_then(|n| n.links.first());
        let link = key.and_then(|key| self.links.get(key));
        link.map_or(ForwardMode::UserSpace, |link| self.mode_at(link.path.local))
    }

    fn mode_at(&self, local: SocketAddr) -> ForwardMode {
        self.addresses
            .iter()
            .find(|a| a.address == local.ip())
            .map_or(ForwardMode::UserSpace, |a| a.mode)
    }

    /// What this node advertises of its links.
    pub(crate) fn advertisement(&self, capability: u8) -> (Vec<SendLink>, Vec<HearLink>) {
        let sends = self.links.values().filter(|link| link.out_up.is_some());
        let sends = sends.map(|link| SendLink {
            to: link.peer,
            link: link.key.id(),
            mtu: link.mtu(),
            capability,
        });
        let hears = self
            .links
            .values()
            .filter(|link| link.in_up)
            .filter_map(|link| {
                Some(HearLink {
                    from: link.peer,
                    link: link.peer_link,
                    measured: link.advertised.get()?,
                })
            });
        (sends.collect(), hears.collect())
    }

    /// Sends a message to a neighbour over its best link. False where there is no way.
    pub(crate) fn send_to(
        &mut self,
        context: &mut Context<'_>,
        node: &NodeId,
        message: &Message,
    ) -> bool {
        let Some(neighbour) = self.neighbours.get(node) else {
            context.out.count("control_no_neighbour");
            return false;
        };
        let links = neighbour.links.iter().filter_map(|key| self.links.get(key));
        let best = links
            .min_by_key(|l| (l.out_up.is_none(), !l.in_up, l.out_cost(), l.key))
            .map(|l| l.key);
        best.is_some_and(|key| self.send(context, key, message))
    }

    /// Sends a message directly on links that are not known to carry anything, a few at the most, but not back to
    /// `from`. False where there are none.
    pub(crate) fn try_unproven(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        message: &Message,
    ) -> bool {
        let unproven = self
            .links
            .values_mut()
            .filter(|link| link.out_up.is_none() && link.peer != from)
            .filter_map(|link| link.seal(&message.encode()))
            .take(UNPROVEN_TRIED);
        let mut tried = false;
        for (next_hop, _, bodies) in unproven {
            tried = true;
            context.out.count(sent_name(message));
            for body in bodies {
                context.out.push(Output::SendLink {
                    next_hop,
                    kind: Kind::Control,
                    body: Bytes::from(body),
                });
            }
        }
        tried
    }

    /// Sends a message on one link, routed over the mesh where the link does not carry it.
    pub(crate) fn send(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        message: &Message,
    ) -> bool {
        let Some(link) = self.links.get_mut(&key) else {
            return false;
        };
        let direct = link.out_up.is_some();
        let peer = link.peer;
        let Some((next_hop, slot, bodies)) = link.seal(&message.encode()) else {
            return false;
        };
        context.out.count(sent_name(message));
        for body in bodies {
            if direct {
                context.out.push(Output::SendLink {
                    next_hop,
                    kind: Kind::Control,
                    body: Bytes::from(body),
                });
            } else {
                self.events.push_back(LinkEvent::Routed {
                    to: peer,
                    body: RoutedBody::Frame { slot, body },
                });
            }
        }
        true
    }

    /// A control frame: in a datagram, or (no path) routed over the mesh.
    pub(crate) fn handle_control(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        path: Option<UnderlayPath>,
        body: &[u8],
    ) {
        let Some(key) = self.by_slot.get(&slot).copied() else {
            context.out.count("control_unknown_slot");
            return;
        };
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let now = context.now;
        let Some(epoch) = link.epoch_by_slot(slot) else {
            return;
        };
        let before = epoch.frames.highest_received();
        let plain = match epoch.frames.open(body) {
            Ok(plain) => plain,
            Err(name) => {
                context.out.count(name);
                return;
            }
        };
        let newest_frame = epoch.frames.highest_received() > before;
        let number = epoch.number;
        link.last_control = now;
        if std::mem::take(&mut link.silent) {
            context.out.event(Event::ControlSilent {
                node: link.peer,
                silent: false,
            });
        }
        self.confirm_epoch(context, key, number);
        if let Some(path) = path {
            self.arrived(context, key);
            if newest_frame && self.links.get(&key).is_some_and(|link| link.path != path) {
                self.move_link(context, key, path);
            }
        }
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        match link.reassembly.take(now, plain) {
            Ok(Some(message)) => match Message::decode(&message) {
                Ok(message) => self.handle_message(context, key, message, path.is_some()),
                Err(_) => context.out.count("control_malformed"),
            },
            Ok(None) => {}
            Err(name) => context.out.count(name),
        }
    }

    fn handle_message(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        message: Message,
        direct: bool,
    ) {
        let Some(link) = self.links.get(&key) else {
            return;
        };
        let from = link.peer;
        context.out.count(received_name(&message));
        match message {
            Message::Hello(hello) => self.handle_hello(context, key, hello, direct),
            Message::Goodbye => self.close_link(context, key, "the neighbour says goodbye"),
            Message::Handshake(bytes) => {
                self.handle_handshake(context, open::Via::Link(key), &bytes)
            }
            message => self.events.push_back(LinkEvent::Message { from, message }),
        }
    }

    /// Something authentic came under this epoch: the neighbour has its keys, older ones may go.
    fn confirm_epoch(&mut self, context: &mut Context<'_>, key: LinkKey, number: u64) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let Some(epoch) = link.epochs.iter_mut().find(|e| e.number == number) else {
            return;
        };
        if epoch.confirmed {
            return;
        }
        epoch.confirmed = true;
        epoch.third = None;
        link.meter.new_slot();
        let retire_at = context.now + OLD_KEYS;
        for old in link.epochs.iter_mut().filter(|e| e.number < number) {
            old.retire_at.get_or_insert(retire_at);
        }
        if number >= link.sending {
            link.sending = number;
        }
        let (peer, path) = (link.peer, link.path);
        if number > 0 {
            context.out.event(Event::LinkRekeyed {
                node: peer,
                path,
                epoch: number,
            });
        }
        self.update_group(context, &peer);
        self.schedule(key);
        context.out.state_changed();
    }

    /// Something authentic came directly.
    fn arrived(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        link.last_arrival = context.now;
        if !link.in_up {
            link.in_up = true;
            let measured = link.meter.measured(context.config.capacity_kbps);
            link.advertised.update(context.now, measured);
            let (node, path) = (link.peer, link.path);
            context.out.event(Event::LinkState {
                node,
                path,
                outgoing: false,
                up: true,
                why: "it is heard",
            });
            self.direction_changed(context, key);
        }
    }

    fn set_out(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        up: Option<Proof>,
        why: &'static str,
    ) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let (was, is) = (link.out_up.is_some(), up.is_some());
        link.out_up = up;
        if was == is {
            return;
        }
        link.out_changed = context.now;
        if !is {
            link.down_sequence = link.hello_sequence;
            link.echoes_in_row = 0;
            context.out.count("link_out_down");
        }
        let (node, path) = (link.peer, link.path);
        // The one write that repairs every label comes before everything else.
        for epoch in &link.epochs {
            context
                .out
                .push(Output::Dataplane(DataplaneOp::SetNextHopUp {
                    index: epoch.next_hop,
                    up: is,
                }));
        }
        context.out.event(Event::LinkState {
            node,
            path,
            outgoing: true,
            up: is,
            why,
        });
        self.direction_changed(context, key);
        if !is {
            self.send_hello(context, key, true);
        }
    }

    fn set_in_down(&mut self, context: &mut Context<'_>, key: LinkKey, why: &'static str) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        if !std::mem::replace(&mut link.in_up, false) {
            return;
        }
        link.advertised.clear();
        let (node, path) = (link.peer, link.path);
        context.out.count("link_in_down");
        context.out.event(Event::LinkState {
            node,
            path,
            outgoing: false,
            up: false,
            why,
        });
        self.direction_changed(context, key);
    }

    fn direction_changed(&mut self, context: &mut Context<'_>, key: LinkKey) {
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let peer = link.peer;
        link.down_since = if link.alive() {
            None
        } else {
            link.down_since.or(Some(context.now))
        };
        if !link.alive() {
            link.meter.forget_rtt();
            let path = link.path;
            // Its keys are good, and probes and hellos go on: only a neighbour that lost them has to be called.
            let later = Micros(context.config.timers.handshake_retry.0 * 3);
            self.redial_eagerly(context, path, later);
        }
        self.update_group(context, &peer);
        self.events.push_back(LinkEvent::Advertise);
    }

    fn handle_hello(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        hello: Hello,
        direct: bool,
    ) {
        let now = context.now;
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        // Only what comes directly shows that this node hears the neighbour.
        if direct {
            if link.hello_heard.is_none_or(|heard| hello.sequence > heard) {
                link.hello_heard = Some(hello.sequence);
                link.meter.hello(hello.sent_at, now);
            } else {
                context.out.count("hello_old");
            }
        }
        link.peer_busy = hello.busy;
        if hello.urgent && link.out_up.is_some() {
            // The neighbour doubts the link: so does this node, until an echo says otherwise.
            link.suspect_until = now + Micros::SECOND;
            link.next_probe = link.next_probe.min(now + Micros::MILLISECOND);
        }
        if hello.mtu >= state::MIN_MTU && hello.mtu != link.peer_mtu {
            link.peer_mtu = hello.mtu;
            self.events.push_back(LinkEvent::Advertise);
        }
        if let Some(Report { heard, measured }) = hello.report {
            link.peer_measured = Some(measured);
            let progress = link.reported.is_none_or(|(before, _)| heard > before)
                && heard <= link.hello_sequence;
            if progress {
                link.reported = Some((heard, now));
                // What was sent before the link went down proves nothing.
                if link.out_up.is_none() && heard > link.down_sequence {
                    self.set_out(context, key, Some(Proof::Report), "the neighbour hears it");
                }
            }
        }
        let Some(link) = self.links.get(&key) else {
            return;
        };
        if hello.urgent && now.since(link.last_hello_sent) >= Micros::from_millis(20) {
            self.send_hello(context, key, false);
        }
    }

    /// Sends a hello on the link itself, and over the mesh as well where the link does not (yet) carry.
    fn send_hello(&mut self, context: &mut Context<'_>, key: LinkKey, urgent: bool) {
        let now = context.now;
        let capacity = context.config.capacity_kbps;
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        link.hello_sequence += 1;
        link.last_hello_sent = now;
        let report = match (link.in_up, link.hello_heard) {
            (true, Some(heard)) => Some(Report {
                heard,
                measured: link.meter.measured(capacity),
            }),
            _ => None,
        };
        let hello = Hello {
            sequence: link.hello_sequence,
            sent_at: now.0,
            mtu: link.own_mtu,
            urgent,
            busy: link.busy,
            report,
        };
        let message = Message::Hello(hello);
        let Some((next_hop, slot, bodies)) = link.seal(&message.encode()) else {
            return;
        };
        context.out.count(sent_name(&message));
        let routed = link.out_up.is_none() && link.in_up;
        let peer = link.peer;
        for body in bodies {
            if routed {
                let body = RoutedBody::Frame {
                    slot,
                    body: body.clone(),
                };
                self.events.push_back(LinkEvent::Routed { to: peer, body });
            }
            context.out.push(Output::SendLink {
                next_hop,
                kind: Kind::Control,
                body: Bytes::from(body),
            });
        }
    }

    /// Our probe came back.
    pub(crate) fn handle_echo(&mut self, context: &mut Context<'_>, slot: Slot, body: &[u8; 12]) {
        let Some(key) = self.by_slot.get(&slot).copied() else {
            context.out.count("echo_unknown_slot");
            return;
        };
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let Some(rtt) = link.echo(context.now, body) else {
            context.out.count("echo_unknown");
            return;
        };
        link.meter.round_trip(rtt);
        link.last_echo = Some(context.now);
        let (out_up, echoes) = (link.out_up, link.echoes_in_row);
        let number = link
            .epochs
            .iter()
            .find(|e| e.rx_slot == slot)
            .map(|e| e.number);
        if let Some(number) = number {
            self.confirm_epoch(context, key, number);
        }
        self.arrived(context, key);
        match out_up {
            Some(Proof::Echo) => {}
            // A link that went down must echo three times before it is trusted again; a new one once.
            None if echoes < 3 && self.links.get(&key).is_some_and(|l| l.down_sequence > 0) => {}
            _ => self.set_out(context, key, Some(Proof::Echo), "its probes are echoed"),
        }
    }

    /// Window counters of a receiving slot.
    pub(crate) fn handle_counters(
        &mut self,
        context: &mut Context<'_>,
        slot: Slot,
        highest: u64,
        received: u64,
    ) {
        let Some(key) = self.by_slot.get(&slot).copied() else {
            return;
        };
        let Some(link) = self.links.get_mut(&key) else {
            return;
        };
        let newest_confirmed = link
            .epochs
            .iter()
            .rev()
            .find(|e| e.confirmed)
            .map(|e| e.rx_slot);
        if newest_confirmed != Some(slot) {
            return;
        }
        if highest > 1 << 30 {
            link.rekey_at = link.rekey_at.min(context.now);
        }
        let arrived = link.meter.counters(highest, received);
        link.busy = arrived > 40;
        if arrived > 0 {
            self.arrived(context, key);
        }
        self.schedule(key);
    }

    /// Buckets of the neighbour's group: working links of about the best cost share them, each backed by another.
    fn update_group(&mut self, context: &mut Context<'_>, node: &NodeId) {
        let Some(neighbour) = self.neighbours.get_mut(node) else {
            return;
        };
        let mut candidates: Vec<_> = neighbour
            .links
            .iter()
            .filter_map(|key| self.links.get(key))
            .filter_map(|link| {
                Some((
                    link.out_up.is_none(),
                    link.out_cost(),
                    link.key,
                    link.epoch()?.next_hop,
                ))
            })
            .collect();
        candidates.sort_unstable();
        let up: Vec<_> = candidates.iter().filter(|(down, ..)| !down).collect();
        let none = NextHopIndex(0);
        let mut buckets = [(none, none); 16];
        if let Some(&&(_, best, ..)) = up.first() {
            let shared: Vec<_> = up
                .iter()
                .filter(|(_, cost, ..)| *cost <= best.saturating_add(best / 4 + 10))
                .collect();
            for (i, bucket) in buckets.iter_mut().enumerate() {
                let primary = shared[i % shared.len()].3;
                let backup = up.iter().map(|c| c.3).find(|hop| *hop != primary);
                // Where no other link is up, one that is down may come up before the group is written again.
                let backup =
                    backup.or_else(|| candidates.iter().map(|c| c.3).find(|hop| *hop != primary));
                *bucket = (primary, backup.unwrap_or(none));
            }
        } else if let Some(&(.., hop)) = candidates.first() {
            buckets = [(hop, none); 16];
        }
        if buckets != neighbour.buckets {
            neighbour.buckets = buckets;
            context.out.push(Output::Dataplane(DataplaneOp::SetGroup {
                group: neighbour.group,
                buckets,
            }));
        }
        let out_up = !up.is_empty();
        if out_up != neighbour.out_up {
            neighbour.out_up = out_up;
            self.events.push_back(LinkEvent::OutChanged {
                node: *node,
                up: out_up,
            });
        }
        let alive = neighbour
            .links
            .iter()
            .filter_map(|key| self.links.get(key))
            .any(Link::alive);
        if alive != neighbour.up {
            neighbour.up = alive;
            let node = *node;
            self.events.push_back(if alive {
                LinkEvent::NeighbourUp { node }
            } else {
                LinkEvent::NeighbourDown { node }
            });
        }
    }

    /// Ends a link and forgets its keys.
    fn close_link(&mut self, context: &mut Context<'_>, key: LinkKey, why: &'static str) {
        let Some(link) = self.links.remove(&key) else {
            return;
        };
        self.deadlines.clear(&Timer::Link(key));
        for epoch in &link.epochs {
            self.by_slot.remove(&epoch.rx_slot);
            context
                .forwarding
                .retire_next_hop(context.now, context.out, epoch.next_hop);
            context
                .forwarding
                .retire_slot(context.now, context.out, epoch.rx_slot);
        }
        self.initiating.retain(|_, i| i.via_link() != Some(key));
        let half_open: Vec<_> = self
            .responding
            .iter()
            .filter(|(_, r)| r.via_link() == Some(key))
            .map(|(i, _)| *i)
            .collect();
        for index in half_open {
            self.deadlines.clear(&Timer::Responding(index));
            self.on_responding_timer(context, index);
        }
        if let Some(neighbour) = self.neighbours.get_mut(&link.peer) {
            neighbour.links.remove(&key);
            if neighbour.links.is_empty() {
                self.deadlines
                    .set(Timer::Neighbour(link.peer), context.now + FORGET_NEIGHBOUR);
            }
        }
        self.update_group(context, &link.peer);
        context.out.count("links_closed");
        context.out.event(Event::LinkClosed {
            node: link.peer,
            path: link.path,
            why,
        });
        context.out.state_changed();
        self.events.push_back(LinkEvent::Advertise);
        let heard = self
            .dials
            .get(&link.path)
            .is_some_and(|dial| dial.source == PeerSource::Heard);
        // Where another link stands there (as when this one was replaced by it), nobody is to be called.
        if self.links.values().any(|other| other.path == link.path) {
            return;
        }
        if heard {
            self.forget_dial(&link.path);
        } else {
            let soon = Micros(context.config.timers.handshake_retry.0 / 5);
            self.redial_eagerly(context, link.path, soon);
        }
    }

    fn forget_neighbour(&mut self, context: &mut Context<'_>, node: NodeId) {
        if !self
            .neighbours
            .get(&node)
            .is_some_and(|n| n.links.is_empty())
        {
            return;
        }
        if let Some(neighbour) = self.neighbours.remove(&node) {
            self.events
                .push_back(LinkEvent::NeighbourForgotten { node });
            context
                .forwarding
                .free_group(context.now, context.out, neighbour.group);
        }
    }

    fn schedule(&mut self, key: LinkKey) {
        if let Some(link) = self.links.get(&key) {
            self.deadlines.set(Timer::Link(key), link.deadline());
        }
    }

    /// Says goodbye on every link and closes it.
    pub(crate) fn shutdown(&mut self, context: &mut Context<'_>) {
        self.closing = true;
        let keys: Vec<_> = self.links.keys().copied().collect();
        for key in keys {
            self.send(context, key, &Message::Goodbye);
            self.close_link(context, key, "this node stops");
        }
        self.initiating.clear();
        self.responding.clear();
        self.dials.clear();
        self.deadlines = Deadlines::default();
    }
}

const fn sent_name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "sent_hello",
        Message::Goodbye => "sent_goodbye",
        Message::Handshake(_) => "sent_rekey",
        Message::Topology(_) => "sent_topology",
        Message::Routed { .. } => "sent_routed",
        Message::LspSetup { .. } => "sent_lsp_setup",
        Message::LspAnswer { .. } => "sent_lsp_answer",
        Message::LspRefresh { .. } => "sent_lsp_refresh",
        Message::LspUnknown { .. } => "sent_lsp_unknown",
        Message::LspTeardown { .. } => "sent_lsp_teardown",
        Message::LspNotice { .. } => "sent_lsp_notice",
        Message::LabelUnknown { .. } => "sent_label_unknown",
    }
}

const fn received_name(message: &Message) -> &'static str {
    match message {
        Message::Hello(_) => "received_hello",
        Message::Goodbye => "received_goodbye",
        Message::Handshake(_) => "received_rekey",
        Message::Topology(_) => "received_topology",
        Message::Routed { .. } => "received_routed",
        Message::LspSetup { .. } => "received_lsp_setup",
        Message::LspAnswer { .. } => "received_lsp_answer",
        Message::LspRefresh { .. } => "received_lsp_refresh",
        Message::LspUnknown { .. } => "received_lsp_unknown",
        Message::LspTeardown { .. } => "received_lsp_teardown",
        Message::LspNotice { .. } => "received_lsp_notice",
        Message::LabelUnknown { .. } => "received_label_unknown",
    }
}
