//! One node: all state machines composed.
//!
//! Links carry messages; the topology floods and finds paths; LSPs are signalled over links; sessions use LSPs. Each
//! tells the others by events that [`Node`] hands on until none is left, so that no module calls upwards.

/// Borrows what a state machine is handed, beside the machines themselves.
macro_rules! context {
    ($node:expr, $now:expr) => {
        Context {
            now: $now,
            config: &$node.config,
            rng: &mut *$node.rng,
            out: &mut $node.out,
            forwarding: &mut $node.forwarding,
        }
    };
}

macro_rules! mesh {
    ($node:expr) => {
        Mesh {
            links: &mut $node.links,
            lsps: &mut $node.lsps,
            topology: &$node.topology,
        }
    };
}

pub mod config;
pub(crate) mod context;
mod event;
pub(crate) mod forwarding;
mod restore;
mod view;
pub mod views;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

pub use config::{Config, Limits, Timers};
pub use event::Event;

use self::{
    context::{Context, Outbox},
    forwarding::Forwarding,
};
use crate::{
    identity::NodeId,
    io::{Answer, Command, CommandId, Input, Micros, Output, Randomness, RouteEntry},
    link::{LinkEvent, Links, open_via_datagram, open_via_routed},
    lsp::Lsps,
    message::{Message, RoutedBody},
    session::{Mesh, Sessions},
    topology::{
        Topology,
        cspf::TreeUse,
        flooding::FloodTimers,
        lsa::{LsaContent, Prefix, checked_name},
        lsdb,
    },
};

/// Hops a routed control message may take.
const ROUTED_HOPS: u8 = 32;
/// Routed messages forwarded for others per second.
const ROUTED_PER_S: u32 = 1000;

/// Why a node cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The configuration is not usable.
    #[error("configuration field `{field}`: {what}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The snapshot is not one, is damaged, or of another node, network or version.
    #[error("snapshot: {0}")]
    Snapshot(String),
}

/// The composition.
pub struct Node {
    config: Config,
    rng: Box<dyn Randomness>,
    out: Outbox,
    forwarding: Forwarding,
    links: Links,
    topology: Topology,
    lsps: Lsps,
    sessions: Sessions,
    routed: crate::link::guard::Bucket,
    prefixes: Vec<Prefix>,
    known: BTreeSet<NodeId>,
    routes: Vec<RouteEntry>,
    graph_version: u64,
    advertise: bool,
    stopped: bool,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

impl Node {
    /// A node that begins from nothing.
    pub fn new(config: Config, rng: Box<dyn Randomness>, now: Micros) -> Result<Self, NodeError> {
        let mut node = Self::build(config, rng, now, 0)?;
        node.settle(now);
        Ok(node)
    }

    fn build(
        config: Config,
        mut rng: Box<dyn Randomness>,
        now: Micros,
        sequence: u64,
    ) -> Result<Self, NodeError> {
        let prefixes = check(&config)?;
        let mut forwarding = Forwarding::new(&config.limits, config.timers.rest);
        let mut out = Outbox::default();
        let context = Context {
            now,
            config: &config,
            rng: &mut *rng,
            out: &mut out,
            forwarding: &mut forwarding,
        };
        let links = Links::new(&context);
        let network = config.network.network_id();
        let topology = Topology::new(
            config.identity.clone(),
            network,
            lsdb::Limits::default(),
            sequence,
            FloodTimers::default(),
        );
        Ok(Self {
            config,
            rng,
            out,
            forwarding,
            links,
            topology,
            lsps: Lsps::new(now),
            sessions: Sessions::new(),
            routed: crate::link::guard::Bucket::new(ROUTED_PER_S, now),
            prefixes,
            known: BTreeSet::new(),
            routes: Vec::new(),
            graph_version: 0,
            advertise: true,
            stopped: false,
        })
    }

    /// This node's id.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.config.identity.id()
    }

    /// The configuration it runs with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Takes one input.
    pub fn handle_input(&mut self, now: Micros, input: Input<'_>) {
        if self.stopped {
            return;
        }
        let mut context = context!(self, now);
        match input {
            Input::Handshake { path, datagram } => {
                open_via_datagram(&mut self.links, &mut context, path, datagram);
            }
            Input::Control { slot, path, body } => {
                self.links
                    .handle_control(&mut context, slot, Some(path), body);
            }
            Input::ProbeEcho {
                slot,
                path: _,
                body,
            } => self.links.handle_echo(&mut context, slot, &body),
            Input::Exception {
                slot,
                label,
                counter,
                exception,
            } => match self.links.node_of(slot) {
                Some(from) => {
                    self.lsps.handle_exception(
                        &mut context,
                        &mut self.links,
                        from,
                        label,
                        counter,
                        exception,
                    );
                }
                None => context.out.count("exception_unknown_slot"),
            },
            Input::SlotCounters {
                slot,
                highest_seq_sum,
                received,
                bytes: _,
            } => {
                self.links
                    .handle_counters(&mut context, slot, highest_seq_sum, received);
            }
            Input::SessionMessage {
                session,
                label,
                counter,
                message,
            } => {
                let mesh = &mut mesh!(self);
                self.sessions
                    .handle_message(&mut context, mesh, session, label, counter, message);
            }
            Input::NoSession { destination } => match self.topology.by_destination(destination) {
                Some(peer) if peer != self.config.identity.id() => {
                    self.sessions.want(&mut context, &mut mesh!(self), peer);
                }
                _ => context.out.count("destination_unknown"),
            },
            Input::SessionActive { session } => self.sessions.handle_active(&mut context, session),
            Input::Underlay { addresses } => self.links.handle_underlay(&mut context, addresses),
            Input::NextHopState {
                next_hop,
                resolved,
                mtu,
            } => {
                self.links
                    .handle_next_hop_state(&mut context, next_hop, resolved, mtu);
            }
            Input::Command { id, command } => self.handle_command(now, id, command),
        }
        self.settle(now);
    }

    fn handle_command(&mut self, now: Micros, id: CommandId, command: Command) {
        let own = self.id();
        let mut context = context!(self, now);
        let failed = |reason: String| Output::Answer {
            id,
            answer: Answer::Failed { reason },
        };
        match command {
            Command::AddPeer { remote } => {
                self.links.add_peer(&mut context, remote);
                context.out.push(Output::Answer {
                    id,
                    answer: Answer::Done,
                });
            }
            Command::RemovePeer { remote } => {
                let known = self.links.remove_peer(&mut context, remote);
                context.out.push(if known {
                    Output::Answer {
                        id,
                        answer: Answer::Done,
                    }
                } else {
                    failed(format!(
                        "{remote} is not a peer: `weft peers` lists those there are"
                    ))
                });
            }
            Command::Ping { to, .. } | Command::Trace { to } => {
                if to == own {
                    context
                        .out
                        .push(failed("that is this node itself".to_owned()));
                } else if self
                    .topology
                    .lsdb()
                    .get(&to)
                    .is_none_or(|entry| entry.withdrawn())
                {
                    context.out.push(failed(format!(
                        "node {} is not known: `weft nodes` lists those",
                        to.short()
                    )));
                } else {
                    self.sessions
                        .command(&mut context, &mut mesh!(self), to, id, command);
                }
            }
            Command::Shutdown => {
                self.shutdown(now);
                self.out.push(Output::Answer {
                    id,
                    answer: Answer::Done,
                });
            }
        }
    }

    fn shutdown(&mut self, now: Micros) {
        self.topology.withdraw(now);
        let mut context = context!(self, now);
        self.sessions.shutdown(&mut context, &mut mesh!(self));
        self.lsps.shutdown(&mut context, &mut self.links);
        self.settle(now);
        let mut context = context!(self, now);
        self.links.shutdown(&mut context);
        while self.links.poll_event().is_some() {}
        self.stopped = true;
    }

    /// Does what is due by `now`. To be called when `poll_timeout` has passed.
    pub fn handle_timeout(&mut self, now: Micros) {
        if self.stopped {
            return;
        }
        let mut context = context!(self, now);
        context.forwarding.handle_timeout(now, context.out);
        self.links.handle_timeout(&mut context);
        self.lsps.handle_timeout(&mut context, &mut self.links);
        self.topology.handle_timeout(now);
        self.sessions.handle_timeout(&mut context, &mut mesh!(self));
        self.settle(now);
    }

    /// The next thing to do; drain until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.out.pop()
    }

    /// When `handle_timeout` is wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        if self.stopped {
            return None;
        }
        let times = [
            self.forwarding.next_timeout(),
            self.links.next_timeout(),
            self.lsps.next_timeout(),
            self.topology.poll_timeout(),
            self.sessions.next_timeout(),
        ];
        times.into_iter().flatten().min()
    }

    /// Hands events from module to module until there are none.
    fn settle(&mut self, now: Micros) {
        // Each round is caused by the one before; a bound keeps a bug from hanging the node.
        for _ in 0..10_000 {
            if let Some(event) = self.links.poll_event() {
                self.on_link_event(now, event);
            } else if let Some(event) = self.lsps.poll_event() {
                let mut context = context!(self, now);
                self.sessions
                    .handle_lsp_event(&mut context, &mut mesh!(self), event);
            } else if let Some((to, message)) = self.topology.poll_transmit(now) {
                let mut context = context!(self, now);
                self.links
                    .send_to(&mut context, &to, &Message::Topology(message.to_vec()));
            } else if std::mem::take(&mut self.advertise) {
                let content = self.advertisement();
                self.topology.originate(now, content);
                self.topology.handle_timeout(now);
            } else if !self.follow_topology(now) {
                return;
            }
        }
        self.out.count("settling_cut_short");
    }

    fn on_link_event(&mut self, now: Micros, event: LinkEvent) {
        let mut context = context!(self, now);
        match event {
            LinkEvent::Message { from, message } => match message {
                Message::Topology(bytes) => {
                    if self.topology.on_message(now, from, &bytes).is_err() {
                        context.out.count("topology_message_refused");
                    }
                }
                Message::Routed { to, hops, body } => {
                    self.on_routed(now, from, to, hops, body);
                }
                message => self
                    .lsps
                    .handle_message(&mut context, &mut self.links, from, message),
            },
            LinkEvent::Routed { to, body } => {
                let own = self.config.identity.id();
                self.forward_routed(now, own, to, ROUTED_HOPS, body);
            }
            LinkEvent::NeighbourUp { node } => {
                if !self.topology.on_neighbour_up(now, node) {
                    context.out.limit(now, "flooding_neighbours_full");
                }
            }
            LinkEvent::NeighbourDown { node } => self.topology.on_neighbour_down(&node),
            LinkEvent::OutChanged { node, up } => {
                self.lsps
                    .handle_out_changed(&mut context, &mut self.links, node, up);
            }
            LinkEvent::NeighbourForgotten { node } => {
                self.lsps
                    .handle_forgotten(&mut context, &mut self.links, node);
            }
            LinkEvent::Advertise => self.advertise = true,
        }
    }

    fn on_routed(&mut self, now: Micros, from: NodeId, to: NodeId, hops: u8, body: RoutedBody) {
        let mut context = context!(self, now);
        if to == context.config.identity.id() {
            match body {
                RoutedBody::Frame { slot, body } => {
                    self.links.handle_control(&mut context, slot, None, &body)
                }
                RoutedBody::Handshake(bytes) => {
                    open_via_routed(&mut self.links, &mut context, &bytes)
                }
            }
            return;
        }
        if hops <= 1 {
            context.out.count("routed_expired");
        } else if !self.routed.take(now) {
            context.out.count("routed_limited");
        } else {
            self.forward_routed(now, from, to, hops - 1, body);
        }
    }

    /// Sends a routed message on, to the next hop of its way, or else to whom it may still get through.
    fn forward_routed(
        &mut self,
        now: Micros,
        from: NodeId,
        to: NodeId,
        hops: u8,
        body: RoutedBody,
    ) {
        let mut context = context!(self, now);
        let message = Message::Routed { to, hops, body };
        match self.topology.control_next_hop(&to) {
            // A next hop that is itself only reached over the mesh would send it in a circle.
            Some(next) if self.links.reaches(&next) => {
                self.links.send_to(&mut context, &next, &message);
            }
            // Links that count as down may only lack the report that is to go over them: a ring of one-way links that
            // was silent for a moment has no other way to come back.
            _ if self.links.try_unproven(&mut context, from, &message) => {
                context.out.count("routed_tried");
            }
            _ => context.out.count("routed_no_way"),
        }
    }

    fn advertisement(&self) -> LsaContent {
        let capability = u8::from(self.config.hardware_aes);
        let (sends, hears) = self.links.advertisement(capability);
        LsaContent {
            name: self.config.name.clone(),
            no_transit: !self.config.transit,
            sends,
            hears,
            prefixes: self.prefixes.clone(),
            ..LsaContent::default()
        }
    }

    /// Brings what depends on the database up to date. False where nothing changed.
    fn follow_topology(&mut self, now: Micros) -> bool {
        let changed = self.topology.update();
        if changed.is_empty() {
            return false;
        }
        for node in &changed {
            let entry = self
                .topology
                .lsdb()
                .get(node)
                .filter(|entry| !entry.withdrawn());
            let known = entry.is_some();
            if known == self.known.contains(node) || *node == self.config.identity.id() {
                continue;
            }
            let name = entry
                .map(|e| e.lsa.content.name.clone())
                .unwrap_or_default();
            if known {
                self.known.insert(*node);
            } else {
                self.known.remove(node);
            }
            self.out.event(Event::NodeKnown {
                node: *node,
                name,
                known,
            });
        }
        let version = self.topology.graph().version();
        let links_changed = std::mem::replace(&mut self.graph_version, version) != version;
        self.update_routes();
        let mut context = context!(self, now);
        self.sessions
            .handle_topology(&mut context, &mut mesh!(self), links_changed);
        true
    }

    fn update_routes(&mut self) {
        let own = self.id();
        let network = self.config.network.network_id();
        let cost = |id: &NodeId| self.topology.cost(TreeUse::Traffic, id);
        let routes: Vec<_> = self
            .topology
            .lsdb()
            .prefixes(cost)
            .into_iter()
            .filter(|(_, _, node, _)| *node != own)
            .map(|(prefix, prefix_len, node, cost)| RouteEntry {
                prefix,
                prefix_len,
                node,
                address: node.overlay_address(&network),
                cost,
            })
            .collect();
        if routes != self.routes {
            self.routes.clone_from(&routes);
            self.out.push(Output::Routes(routes));
        }
    }

    /// Counters by name.
    #[must_use]
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        let mut all = self.out.counters().clone();
        for (name, value) in self.topology.flooding().counters() {
            *all.entry(name).or_default() += value;
        }
        all
    }
}

/// Checks what a configuration must satisfy; returns its prefixes.
fn check(config: &Config) -> Result<Vec<Prefix>, NodeError> {
    let bad = |field, what: String| Err(NodeError::Config { field, what });
    if checked_name(&config.name, false).is_err() {
        return bad(
            "name",
            format!(
                "`{}` is not a name: 1 to 63 bytes without white space",
                config.name
            ),
        );
    }
    if config.port == 0 {
        return bad("port", "0 is no port; the default is 7117".to_owned());
    }
    let (first, last) = (*config.limits.labels.start(), *config.limits.labels.end());
    if first < 16 || last > 0xf_ffff || first > last {
        return bad(
            "labels",
            format!("{first}..={last} is not a range within 16..=1048575"),
        );
    }
    let limits = &config.limits;
    if limits.slots < 4 || limits.next_hops < 4 || limits.groups < 1 {
        return bad(
            "limits",
            "at least 4 slots, 4 next hops and 1 group are needed".to_owned(),
        );
    }
    let timers = &config.timers;
    let shortest = [
        timers.probe_busy,
        timers.probe_idle,
        timers.hello,
        timers.handshake_retry,
        timers.signalling_retry,
    ];
    if shortest.iter().any(|timer| timer.0 < 1_000) || timers.probe_misses == 0 {
        return bad(
            "timers",
            "intervals must be 1 ms or more, and at least one probe may be missed".to_owned(),
        );
    }
    if timers.lsp_lifetime.0 < timers.lsp_refresh.0.saturating_mul(2) {
        return bad(
            "lsp_lifetime",
            "must be at least twice lsp_refresh, or every LSP expires".to_owned(),
        );
    }
    let prefixes = config.prefixes.iter();
    prefixes
        .map(|(address, len)| Prefix::new(*address, *len))
        .collect::<Result<_, _>>()
        .map_err(|error| NodeError::Config {
            field: "prefixes",
            what: error.to_string(),
        })
}
