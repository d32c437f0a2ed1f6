//! The sessions of a node: their life from first wish to last message.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use snow::HandshakeState;
use weft_abi::Label;
use zeroize::Zeroizing;

use super::{Cipher, message::SessionMessage, oam::Oam};
use crate::{
    identity::NodeId,
    io::{Command, CommandId, LspIngress, Micros, Output, SessionIndex, SessionOp},
    link::{Links, guard::Seen},
    lsp::{LspEvent, Lsps, SourceId},
    message::Refusal,
    node::{
        Event,
        context::{Context, Deadlines},
        views::{Protection, SessionState, SessionView},
    },
    topology::Topology,
};

/// How long a half-open epoch or session waits for the initiator's sign.
pub(super) const HALF_OPEN: Micros = Micros::from_secs(10);
/// How long keys are kept after newer ones were confirmed.
pub(super) const OLD_KEYS: Micros = Micros::from_secs(10);
/// Between signs of life on a session.
pub(super) const KEEPALIVE: Micros = Micros::from_secs(10);
/// First messages of handshakes remembered.
const REMEMBERED: usize = 4096;
/// Commands that wait for one session at most.
const MAX_WAITING: usize = 32;
/// A command waits so long for a session.
pub(super) const COMMAND_WAIT: Micros = Micros::from_secs(6);

/// The rest of the node a session works with.
pub(crate) struct Mesh<'a> {
    pub(crate) links: &'a mut Links,
    pub(crate) lsps: &'a mut Lsps,
    pub(crate) topology: &'a Topology,
}

/// Keys of one epoch, as far as they concern signalling.
#[derive(Debug)]
pub(super) struct Epoch {
    pub(super) number: u8,
    /// The peer has shown that it has them.
    pub(super) confirmed: bool,
    pub(super) initiator: bool,
    pub(super) cipher: Cipher,
    pub(super) since: Micros,
    pub(super) sent: u64,
    pub(super) drop_at: Option<Micros>,
}

/// What an LSP being signalled is for.
pub(super) struct Pending {
    pub(super) role: PendingRole,
    /// Of message 1, where it opens the session.
    pub(super) open: Option<Box<HandshakeState>>,
    /// Of the attachment, where it does not.
    pub(super) nonce: [u8; 16],
}

impl std::fmt::Debug for Pending {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pending({:?}, open: {})", self.role, self.open.is_some())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PendingRole {
    Primary,
    Better,
    Standby,
}

/// A rekey begun here.
pub(super) struct Rekey {
    pub(super) state: Box<HandshakeState>,
    pub(super) first: Vec<u8>,
    pub(super) due: Micros,
    pub(super) attempts: u32,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Rekey({} attempts)", self.attempts)
    }
}

/// A sign that is repeated until it is answered.
#[derive(Debug)]
pub(super) struct Confirm {
    pub(super) epoch: u8,
    pub(super) due: Micros,
    pub(super) wait: Micros,
    pub(super) attempts: u32,
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) index: SessionIndex,
    pub(crate) peer: NodeId,
    pub(super) own_id: u64,
    pub(super) peer_id: u64,
    /// Newest first; two are valid while a new opening is not confirmed.
    pub(super) attach: VecDeque<Zeroizing<[u8; 32]>>,
    pub(super) epochs: Vec<Epoch>,
    pub(super) sending: Option<u8>,
    pub(super) must_open: bool,
    /// This end has a reason to have paths: traffic, a command, or a confirmed peer.
    pub(super) active: bool,
    pub(super) rekey: Option<Rekey>,
    pub(super) rekey_answer: Option<(Vec<u8>, Vec<u8>)>,
    pub(super) confirm: Option<Confirm>,
    pub(super) pending: BTreeMap<SourceId, Pending>,
    pub(super) primary: Option<SourceId>,
    pub(super) standby: Option<SourceId>,
    /// No longer used; torn down at the time given.
    pub(super) retiring: Vec<(SourceId, Micros)>,
    pub(super) ingress: Option<LspIngress>,
    pub(super) delivery: BTreeSet<Label>,
    pub(super) since: Micros,
    pub(super) last_active: Micros,
    pub(super) last_heard: Micros,
    pub(super) next_try: Micros,
    pub(super) failures: u32,
    pub(super) next_standby: Micros,
    pub(super) recheck: Option<Micros>,
    pub(super) better_since: Option<Micros>,
    pub(super) no_path: Option<String>,
    pub(super) waiting: VecDeque<(CommandId, Command, Micros)>,
    pub(super) oam: Oam,
}

impl Session {
    pub(super) fn new(index: SessionIndex, peer: NodeId, own_id: u64, now: Micros) -> Self {
        Self {
            index,
            peer,
            own_id,
            peer_id: 0,
            attach: VecDeque::new(),
            epochs: Vec::new(),
            sending: None,
            must_open: true,
            active: false,
            rekey: None,
            rekey_answer: None,
            confirm: None,
            pending: BTreeMap::new(),
            primary: None,
            standby: None,
            retiring: Vec::new(),
            ingress: None,
            delivery: BTreeSet::new(),
            since: now,
            last_active: now,
            last_heard: now,
            next_try: now,
            failures: 0,
            next_standby: now,
            recheck: None,
            better_since: None,
            no_path: None,
            waiting: VecDeque::new(),
            oam: Oam::default(),
        }
    }

    pub(super) fn epoch(&self, number: u8) -> Option<&Epoch> {
        self.epochs.iter().find(|e| e.number == number)
    }

    pub(super) fn is_up(&self) -> bool {
        self.sending.is_some() && self.ingress.is_some()
    }

    pub(super) fn opening(&self) -> bool {
        self.pending.values().any(|p| p.open.is_some())
    }

    /// Smallest of all times something is due.
    fn deadline(&self, timers: &crate::node::Timers) -> Micros {
        let mut at = self.last_active + timers.session_idle;
        let mut sooner = |other: Micros| at = at.min(other);
        if self.active && self.primary.is_none() && self.pending.is_empty() {
            sooner(self.next_try);
        }
        if self.is_up() && self.standby.is_none() && self.pending.is_empty() {
            sooner(self.next_standby);
        }
        if !self.active {
            sooner(self.since + HALF_OPEN);
        }
        self.recheck.into_iter().for_each(&mut sooner);
        self.retiring.iter().for_each(|(_, due)| sooner(*due));
        self.epochs
            .iter()
            .filter_map(|e| e.drop_at)
            .for_each(&mut sooner);
        self.rekey.iter().for_each(|rekey| sooner(rekey.due));
        self.confirm.iter().for_each(|confirm| sooner(confirm.due));
        self.waiting.iter().for_each(|(.., due)| sooner(*due));
        self.oam.deadlines().for_each(&mut sooner);
        if let Some(epoch) = self.sending.and_then(|e| self.epoch(e))
            && self.ingress.is_some()
        {
            if self.rekey.is_none() && self.confirm.is_none() {
                sooner(epoch.since + rekey_age(epoch, timers));
            }
            if self.confirm.is_none() {
                sooner(self.last_heard + KEEPALIVE);
            }
        }
        at
    }
}

/// The end that began an epoch renews it; the other steps in later.
pub(super) fn rekey_age(epoch: &Epoch, timers: &crate::node::Timers) -> Micros {
    let age = timers.session_rekey;
    if epoch.initiator {
        age
    } else {
        Micros(age.0 + age.0 / 4)
    }
}

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    pub(super) sessions: BTreeMap<SessionIndex, Session>,
    pub(super) by_peer: BTreeMap<NodeId, SessionIndex>,
    pub(super) by_own_id: BTreeMap<u64, SessionIndex>,
    pub(super) by_source: BTreeMap<SourceId, SessionIndex>,
    /// Edges found broken before the database says so, and until when that is believed.
    pub(super) broken: BTreeMap<(NodeId, NodeId), Micros>,
    pub(super) firsts: Seen,
    pub(super) deadlines: Deadlines<SessionIndex>,
    next_index: u32,
}

impl Sessions {
    pub(crate) fn new() -> Self {
        Self {
            sessions: BTreeMap::new(),
            by_peer: BTreeMap::new(),
            by_own_id: BTreeMap::new(),
            by_source: BTreeMap::new(),
            broken: BTreeMap::new(),
            firsts: Seen::new(REMEMBERED),
            deadlines: Deadlines::default(),
            next_index: 0,
        }
    }

    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        self.deadlines.next()
    }

    pub(crate) fn of_peer(&self, peer: &NodeId) -> Option<&Session> {
        self.sessions.get(self.by_peer.get(peer)?)
    }

    /// The session with a peer, made where there is none. None at the bound.
    pub(super) fn entry(
        &mut self,
        context: &mut Context<'_>,
        mesh: &Mesh<'_>,
        peer: NodeId,
    ) -> Option<SessionIndex> {
        if let Some(index) = self.by_peer.get(&peer) {
            return Some(*index);
        }
        if self.sessions.len() >= context.config.limits.sessions {
            context.out.limit(context.now, "sessions_full");
            return None;
        }
        self.next_index = (self.next_index + 1..=u32::MAX)
            .chain(1..=self.next_index)
            .find(|i| !self.sessions.contains_key(&SessionIndex(*i)))?;
        let index = SessionIndex(self.next_index);
        let own_id = loop {
            let id = context.random_u64();
            if !self.by_own_id.contains_key(&id) {
                break id;
            }
        };
        let session = Session::new(index, peer, own_id, context.now);
        let address = peer.overlay_address(&context.config.network.network_id());
        context.out.push(Output::Session(SessionOp::Install {
            session: index,
            peer,
            address,
        }));
        context.out.count("sessions_created");
        self.by_peer.insert(peer, index);
        self.by_own_id.insert(own_id, index);
        self.sessions.insert(index, session);
        // LSPs that ended here for this peer before this node restarted.
        for label in mesh.lsps.labels_of(&peer) {
            self.deliver(context, index, label);
        }
        Some(index)
    }

    /// Traffic or a command wants a session with a peer.
    pub(crate) fn want(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        peer: NodeId,
    ) -> Option<SessionIndex> {
        let index = self.entry(context, mesh, peer)?;
        let session = self.sessions.get_mut(&index)?;
        session.last_active = context.now;
        // A half-open one is about to be confirmed by the peer.
        if !session.active && session.epochs.is_empty() {
            session.active = true;
        }
        self.tend(context, mesh, index);
        Some(index)
    }

    pub(crate) fn handle_active(&mut self, context: &mut Context<'_>, index: SessionIndex) {
        if let Some(session) = self.sessions.get_mut(&index) {
            session.last_active = context.now;
        }
    }

    /// Runs a command as soon as the session is up.
    pub(crate) fn command(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        peer: NodeId,
        id: CommandId,
        command: Command,
    ) {
        let Some(index) = self.want(context, mesh, peer) else {
            answer_failed(
                context,
                id,
                "the table of sessions is full: close some or raise the limit",
            );
            return;
        };
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if session.waiting.len() >= MAX_WAITING {
            answer_failed(
                context,
                id,
                "too many commands wait for this session already",
            );
            return;
        }
        session
            .waiting
            .push_back((id, command, context.now + COMMAND_WAIT));
        self.run_waiting(context, mesh, index);
        self.schedule(context, index);
    }

    pub(crate) fn handle_timeout(&mut self, context: &mut Context<'_>, mesh: &mut Mesh<'_>) {
        while let Some(index) = self.deadlines.pop_due(context.now) {
            self.tend(context, mesh, index);
        }
    }

    /// Does whatever is due for a session.
    pub(super) fn tend(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        let timers = &context.config.timers;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if now.since(session.last_active) >= timers.session_idle {
            self.close(context, mesh, index, "it was idle", true);
            return;
        }
        if !session.active && now.since(session.since) >= HALF_OPEN {
            self.close(context, mesh, index, "its initiator never used it", false);
            return;
        }
        self.tend_epochs(context, index);
        self.tend_confirm(context, mesh, index);
        self.tend_rekey(context, mesh, index);
        self.tend_paths(context, mesh, index);
        self.tend_oam(context, mesh, index);
        self.schedule(context, index);
    }

    pub(super) fn schedule(&mut self, context: &Context<'_>, index: SessionIndex) {
        if let Some(session) = self.sessions.get(&index) {
            // Never in the past: what is due and cannot be done now is tried again a little later.
            let at = session
                .deadline(&context.config.timers)
                .max(context.now + Micros::from_millis(10));
            self.deadlines.set(index, at);
        }
    }

    /// Ends a session, with a word to the peer where that is possible.
    pub(super) fn close(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        why: &'static str,
        tell: bool,
    ) {
        if tell {
            self.send(context, index, &SessionMessage::Close, None);
        }
        let Some(session) = self.sessions.remove(&index) else {
            return;
        };
        self.by_peer.remove(&session.peer);
        self.by_own_id.remove(&session.own_id);
        self.deadlines.clear(&index);
        let sources = session
            .pending
            .keys()
            .copied()
            .chain(session.primary)
            .chain(session.standby);
        for source in sources.chain(session.retiring.iter().map(|(id, _)| *id)) {
            self.by_source.remove(&source);
            mesh.lsps.tear_down(context, mesh.links, source);
        }
        for (id, ..) in session.waiting {
            answer_failed(context, id, &format!("the session closed: {why}"));
        }
        session.oam.fail_all(context, why);
        context
            .out
            .push(Output::Session(SessionOp::Remove { session: index }));
        context.out.count("sessions_closed");
        context.out.event(Event::SessionClosed {
            peer: session.peer,
            why,
        });
    }

    /// Encrypts and sends a message in an epoch (the newest in use when none is named). False where it cannot be sent.
    pub(super) fn send(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        message: &SessionMessage,
        epoch: Option<u8>,
    ) -> bool {
        self.send_counted(context, index, message, epoch, None)
            .is_some()
    }

    /// The same, with a TTL other than the LSP's own where one is given; returns the AEAD counter used.
    pub(super) fn send_counted(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        message: &SessionMessage,
        epoch: Option<u8>,
        ttl: Option<u8>,
    ) -> Option<u64> {
        let session = self.sessions.get_mut(&index)?;
        let ingress = session.ingress?;
        let number = epoch.or(session.sending)?;
        let epoch = session.epochs.iter_mut().find(|e| e.number == number)?;
        epoch.sent += 1;
        let counter = u64::from(number) << 56 | 1 << 55 | epoch.sent;
        context.out.count("session_messages_sent");
        context.out.push(Output::SendSession {
            session: index,
            ingress: Some(ingress),
            ttl: ttl.unwrap_or(ingress.ttl),
            counter,
            message: Bytes::from(message.encode()),
        });
        Some(counter)
    }

    pub(super) fn deliver(&mut self, context: &mut Context<'_>, index: SessionIndex, label: Label) {
        if let Some(session) = self.sessions.get_mut(&index) {
            session.delivery.insert(label);
            let labels = session.delivery.iter().copied().collect();
            context.out.push(Output::Session(SessionOp::SetDelivery {
                session: index,
                labels,
            }));
        }
    }

    /// A message of the session, decrypted by the shell.
    pub(crate) fn handle_message(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        label: Label,
        counter: u64,
        bytes: &[u8],
    ) {
        let epoch = (counter >> 56) as u8;
        let Some(session) = self.sessions.get_mut(&index) else {
            context.out.count("session_message_unknown");
            return;
        };
        if session.epoch(epoch).is_none() {
            context.out.count("session_message_stale");
            return;
        }
        session.last_heard = context.now;
        context.out.count("session_messages_received");
        self.on_epoch_heard(context, index, epoch);
        self.run_waiting(context, mesh, index);
        match SessionMessage::decode(bytes) {
            Err(_) => context.out.count("session_message_malformed"),
            Ok(SessionMessage::Confirm) => {
                self.tend(context, mesh, index);
                // Without a way back yet the confirmation is repeated, and answered then.
                self.send(context, index, &SessionMessage::Ack, Some(epoch));
            }
            Ok(SessionMessage::Ack) => {}
            Ok(SessionMessage::RekeyFirst { noise }) => {
                self.on_rekey_first(context, index, epoch, &noise)
            }
            Ok(SessionMessage::RekeySecond { noise }) => {
                self.on_rekey_second(context, mesh, index, &noise)
            }
            Ok(SessionMessage::Close) => {
                self.close(context, mesh, index, "the peer closed it", false)
            }
            Ok(message) => self.on_oam(context, mesh, index, label, message),
        }
        self.schedule(context, index);
    }

    /// What an LSP has to tell.
    pub(crate) fn handle_lsp_event(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        event: LspEvent,
    ) {
        let session_of = |sessions: &Self, id: &SourceId| sessions.by_source.get(id).copied();
        match event {
            LspEvent::Arrived { id, payload } => self.on_arrived(context, mesh, id, &payload),
            LspEvent::Gone { label } => {
                let index = self
                    .sessions
                    .values()
                    .find(|s| s.delivery.contains(&label))
                    .map(|s| s.index);
                if let Some(session) = index.and_then(|index| self.sessions.get_mut(&index)) {
                    session.delivery.remove(&label);
                    let labels = session.delivery.iter().copied().collect();
                    let session = session.index;
                    context
                        .out
                        .push(Output::Session(SessionOp::SetDelivery { session, labels }));
                }
            }
            LspEvent::Up { id, reply } => {
                if let Some(index) = session_of(self, &id) {
                    self.on_lsp_up(context, mesh, index, id, &reply);
                    self.tend(context, mesh, index);
                }
            }
            LspEvent::Failed { id, why, edge } => {
                if let Some(index) = self.by_source.remove(&id) {
                    self.on_lsp_failed(context, index, id, why, edge);
                    self.tend(context, mesh, index);
                }
            }
            LspEvent::Broken { id, why, edge } => {
                if let Some(index) = session_of(self, &id) {
                    self.on_lsp_broken(context, mesh, index, id, why, edge);
                    self.tend(context, mesh, index);
                }
            }
            LspEvent::NoSession { id } => {
                if let Some(index) = session_of(self, &id) {
                    context.out.count("sessions_lost_by_peer");
                    self.on_peer_forgot(context, index);
                    self.tend(context, mesh, index);
                }
            }
            LspEvent::Expired {
                id,
                hop,
                label,
                counter,
                mode,
            } => {
                if let Some(index) = session_of(self, &id) {
                    let path = mesh
                        .lsps
                        .source(id)
                        .map(|s| s.path.clone())
                        .unwrap_or_default();
                    self.on_expired(context, index, &path, hop, label, counter, mode);
                    self.tend(context, mesh, index);
                }
            }
            LspEvent::TooBig { id } => {
                if let Some(index) = session_of(self, &id) {
                    self.refresh_ingress(context, mesh, index);
                }
            }
        }
    }

    /// What part an LSP has.
    pub(crate) fn protection(&self, id: SourceId) -> Option<Protection> {
        let session = self.sessions.get(self.by_source.get(&id)?)?;
        let standby = session.standby == Some(id)
            || session
                .pending
                .get(&id)
                .is_some_and(|p| p.role == PendingRole::Standby);
        Some(if standby {
            Protection::Standby
        } else {
            Protection::Primary
        })
    }

    /// Whether the LSP carries nothing any more.
    pub(crate) fn is_retiring(&self, id: SourceId) -> bool {
        let session = self
            .by_source
            .get(&id)
            .and_then(|index| self.sessions.get(index));
        session.is_some_and(|s| s.retiring.iter().any(|(retiring, _)| *retiring == id))
    }

    /// The path in use to a peer and its inner MTU.
    pub(crate) fn path_to(&self, lsps: &Lsps, peer: &NodeId) -> Option<(Vec<NodeId>, u16)> {
        let source = lsps.source(self.of_peer(peer)?.primary?)?;
        Some((source.path.clone(), source.inner_mtu()))
    }

    pub(crate) fn views(
        &self,
        now: Micros,
        topology: &Topology,
        network: &crate::identity::NetworkId,
    ) -> Vec<SessionView> {
        let view = |s: &Session| {
            let epoch = s.sending.and_then(|number| s.epoch(number));
            SessionView {
                index: s.index,
                node: s.peer,
                name: topology
                    .lsdb()
                    .get(&s.peer)
                    .map(|e| e.lsa.content.name.clone())
                    .unwrap_or_default(),
                address: s.peer.overlay_address(network),
                state: if s.is_up() {
                    SessionState::Up
                } else if s.no_path.is_some() {
                    SessionState::NoPath
                } else {
                    SessionState::Establishing
                },
                cipher: epoch.map(|e| e.cipher),
                epoch: epoch.map_or(0, |e| e.number),
                key_age: epoch.map_or(Micros(0), |e| now.since(e.since)),
                inner_mtu: s.ingress.map(|i| i.inner_mtu),
            }
        };
        self.sessions.values().map(view).collect()
    }

    /// Closes every session, with a word to the peers.
    pub(crate) fn shutdown(&mut self, context: &mut Context<'_>, mesh: &mut Mesh<'_>) {
        let indices: Vec<_> = self.sessions.keys().copied().collect();
        for index in indices {
            self.close(context, mesh, index, "this node stops", true);
        }
    }
}

pub(super) fn answer_failed(context: &mut Context<'_>, id: CommandId, reason: &str) {
    let answer = crate::io::Answer::Failed {
        reason: reason.to_owned(),
    };
    context.out.push(Output::Answer { id, answer });
}

/// Refusals that mean that the peer does not know the session.
pub(super) const fn forgotten(why: Refusal) -> bool {
    matches!(why, Refusal::NoSession)
}
