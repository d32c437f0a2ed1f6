//! Label-switched paths: signalling as source, transit and egress; soft state; notices back to the source.
//!
//! A set-up goes hop by hop under the links' control keys, each hop opening one layer of the onion; labels come back
//! from the egress. Between two neighbours an LSP has a random id of its own, chosen by the one before, so that no
//! number is seen twice along a path. Each hop refreshes what it sends on, as long as it is refreshed itself.

pub(crate) mod notice;
pub(crate) mod onion;
mod passing;
mod snapshot;
mod source;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use weft_abi::Label;

use self::{notice::Notice, onion::HopKey};
pub(crate) use self::{
    passing::{Passing, Role},
    source::{Source, SourceState},
};
use crate::{
    identity::NodeId,
    io::{Exception, Micros},
    link::{Links, guard::Bucket},
    message::{LspId, MAX_IDS, Message, NOTICE_LEN, Refusal, SetupResult},
    node::context::{Context, Deadlines},
};

/// How long a hop waits for the answer of the next.
const ANSWER_WAIT: Micros = Micros::from_secs(5);
/// Notices this node seals per second, all LSPs together.
const NOTICES_PER_S: u32 = 200;
/// Label-unknown messages per second.
const UNKNOWN_PER_S: u32 = 50;

/// This node's handle of an LSP that passes or ends here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PassId(pub(crate) u64);

/// This node's handle of an LSP that begins here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SourceId(pub(crate) u64);

/// Whose LSP a successor speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Pass(PassId),
    Source(SourceId),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Pass(PassId),
    Source(SourceId),
    Refresh(NodeId),
}

/// What the LSPs tell the sessions.
#[derive(Debug)]
pub(crate) enum LspEvent {
    /// A set-up succeeded, with the egress's reply.
    Up { id: SourceId, reply: Vec<u8> },
    /// A set-up failed; the edge that is to blame where that is known. The LSP is gone.
    Failed {
        id: SourceId,
        why: Refusal,
        edge: Option<(NodeId, NodeId)>,
    },
    /// An LSP that was up does not carry any more. It still has to be torn down.
    Broken {
        id: SourceId,
        why: &'static str,
        edge: Option<(NodeId, NodeId)>,
    },
    /// The egress lost the session.
    NoSession { id: SourceId },
    /// A hop (counted from 0) reports an expired TTL.
    Expired {
        id: SourceId,
        hop: usize,
        label: Label,
        counter: u64,
        mode: crate::io::ForwardMode,
    },
    /// A hop reports that packets do not fit.
    TooBig { id: SourceId },
    /// An LSP ends here: its set-up awaits the session's word (see [`Lsps::accept`], [`Lsps::refuse`]).
    Arrived { id: PassId, payload: Vec<u8> },
    /// An LSP that ended here is gone.
    Gone { label: Label },
}

/// All LSPs of a node.
#[derive(Debug)]
pub(crate) struct Lsps {
    passing: BTreeMap<PassId, Passing>,
    sources: BTreeMap<SourceId, Source>,
    by_in: BTreeMap<(NodeId, LspId), PassId>,
    by_out: BTreeMap<(NodeId, LspId), Owner>,
    by_label: BTreeMap<Label, PassId>,
    per_neighbour: BTreeMap<NodeId, usize>,
    next_id: u64,
    deadlines: Deadlines<Timer>,
    events: VecDeque<LspEvent>,
    notices: Bucket,
    unknowns: Bucket,
    /// Set-ups each neighbour may still ask for: opening a layer costs an agreement on keys.
    setups: BTreeMap<NodeId, Bucket>,
}

impl Lsps {
    pub(crate) fn new(now: Micros) -> Self {
        Self {
            passing: BTreeMap::new(),
            sources: BTreeMap::new(),
            by_in: BTreeMap::new(),
            by_out: BTreeMap::new(),
            by_label: BTreeMap::new(),
            per_neighbour: BTreeMap::new(),
            next_id: 0,
            deadlines: Deadlines::default(),
            events: VecDeque::new(),
            notices: Bucket::new(NOTICES_PER_S, now),
            unknowns: Bucket::new(UNKNOWN_PER_S, now),
            setups: BTreeMap::new(),
        }
    }

    pub(crate) fn poll_event(&mut self) -> Option<LspEvent> {
        self.events.pop_front()
    }

    pub(crate) fn next_timeout(&self) -> Option<Micros> {
        self.deadlines.next()
    }

    pub(crate) fn passing(&self) -> impl Iterator<Item = &Passing> {
        self.passing.values()
    }

    pub(crate) fn sources(&self) -> impl Iterator<Item = (&SourceId, &Source)> {
        self.sources.iter()
    }

    pub(crate) fn source(&self, id: SourceId) -> Option<&Source> {
        self.sources.get(&id)
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn fresh_out(&self, context: &mut Context<'_>, to: NodeId) -> LspId {
        loop {
            let id = LspId(context.random_u64());
            if !self.by_out.contains_key(&(to, id)) {
                return id;
            }
        }
    }

    pub(crate) fn handle_timeout(&mut self, context: &mut Context<'_>, links: &mut Links) {
        while let Some(timer) = self.deadlines.pop_due(context.now) {
            match timer {
                Timer::Pass(id) => self.on_pass_timer(context, links, id),
                Timer::Source(id) => self.on_source_timer(context, links, id),
                Timer::Refresh(node) => self.send_refreshes(context, links, node),
            }
        }
    }

    /// A message of a neighbour.
    pub(crate) fn handle_message(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        message: Message,
    ) {
        match message {
            Message::LspSetup { id, onion } => self.on_setup(context, links, from, id, &onion),
            Message::LspAnswer { id, result } => self.on_answer(context, links, from, id, result),
            Message::LspRefresh { ids } => self.on_refresh(context, links, from, &ids),
            Message::LspUnknown { ids } => ids
                .iter()
                .for_each(|id| self.on_unknown(context, links, from, *id)),
            Message::LspTeardown { id } => {
                if let Some(pass) = self.by_in.get(&(from, id)).copied() {
                    self.remove_pass(context, links, pass, true);
                }
            }
            Message::LspNotice { id, sealed } => self.on_notice(context, links, from, id, &sealed),
            Message::LabelUnknown { label } => self.on_label_unknown(context, links, from, label),
            _ => {}
        }
    }

    fn on_answer(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        id: LspId,
        result: SetupResult,
    ) {
        match self.by_out.get(&(from, id)) {
            Some(Owner::Pass(pass)) => self.on_pass_answer(context, links, *pass, result),
            Some(Owner::Source(source)) => self.on_source_answer(context, links, *source, result),
            None => {
                context.out.count("lsp_answer_unknown");
                if matches!(result, SetupResult::Up { .. }) {
                    links.send_to(context, &from, &Message::LspTeardown { id });
                }
            }
        }
    }

    /// The successor does not know an LSP this node refreshed.
    fn on_unknown(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        id: LspId,
    ) {
        match self.by_out.get(&(from, id)).copied() {
            Some(Owner::Pass(pass)) => {
                self.notify(context, links, pass, Notice::Forgotten);
                self.remove_pass(context, links, pass, false);
            }
            Some(Owner::Source(source)) => {
                self.break_source(source, "the first hop forgot it", None);
            }
            None => {}
        }
    }

    fn on_label_unknown(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        label: Label,
    ) {
        let owners: Vec<_> = self
            .by_out
            .range((from, LspId(0))..=(from, LspId(u64::MAX)))
            .filter(|(_, owner)| match owner {
                Owner::Pass(id) => self
                    .passing
                    .get(id)
                    .is_some_and(|p| p.out_label() == Some(label)),
                Owner::Source(id) => self.sources.get(id).is_some_and(|s| s.label == Some(label)),
            })
            .map(|((_, id), _)| *id)
            .collect();
        for id in owners {
            self.on_unknown(context, links, from, id);
        }
    }

    fn on_notice(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        id: LspId,
        sealed: &[u8; NOTICE_LEN],
    ) {
        match self.by_out.get(&(from, id)).copied() {
            Some(Owner::Pass(pass)) => {
                if !self.notices.take(context.now) {
                    context.out.count("lsp_notices_limited");
                    return;
                }
                if let Some(p) = self.passing.get(&pass) {
                    let message = Message::LspNotice {
                        id: p.id_in,
                        sealed: *sealed,
                    };
                    let before = p.predecessor;
                    links.send_to(context, &before, &message);
                }
            }
            Some(Owner::Source(source)) => self.on_source_notice(context, source, sealed),
            None => context.out.count("lsp_notice_unknown"),
        }
    }

    /// Refreshes what goes out to one neighbour, and sets the time for the next.
    fn send_refreshes(&mut self, context: &mut Context<'_>, links: &mut Links, node: NodeId) {
        let ids: Vec<_> = self
            .by_out
            .range((node, LspId(0))..=(node, LspId(u64::MAX)))
            .filter(|(_, owner)| match owner {
                Owner::Pass(id) => self.passing.get(id).is_some_and(Passing::is_up),
                Owner::Source(id) => self
                    .sources
                    .get(id)
                    .is_some_and(|s| s.state == SourceState::Up),
            })
            .map(|((_, id), _)| *id)
            .collect();
        let any = self
            .by_out
            .range((node, LspId(0))..=(node, LspId(u64::MAX)))
            .next()
            .is_some();
        for chunk in ids.chunks(MAX_IDS) {
            links.send_to(
                context,
                &node,
                &Message::LspRefresh {
                    ids: chunk.to_vec(),
                },
            );
        }
        if any {
            self.refresh_later(context, node);
        }
    }

    fn refresh_later(&mut self, context: &mut Context<'_>, node: NodeId) {
        let wait = context.jittered(context.config.timers.lsp_refresh);
        self.deadlines.set(Timer::Refresh(node), context.now + wait);
    }

    fn own_out(&mut self, context: &mut Context<'_>, to: NodeId, id: LspId, owner: Owner) {
        let first = self
            .by_out
            .range((to, LspId(0))..=(to, LspId(u64::MAX)))
            .next()
            .is_none();
        self.by_out.insert((to, id), owner);
        if first {
            self.refresh_later(context, to);
        }
    }

    /// Packets reach the neighbour no more (or again).
    pub(crate) fn handle_out_changed(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        node: NodeId,
        up: bool,
    ) {
        let owners: Vec<_> = self
            .by_out
            .range((node, LspId(0))..=(node, LspId(u64::MAX)))
            .map(|(_, owner)| *owner)
            .collect();
        for owner in owners {
            match owner {
                Owner::Pass(id) => {
                    let Some(pass) = self.passing.get_mut(&id) else {
                        continue;
                    };
                    let tell = pass.is_up() && !up && !pass.told_broken;
                    pass.told_broken = !up;
                    if tell {
                        self.notify(context, links, id, Notice::Broken);
                    }
                }
                Owner::Source(id) if !up => {
                    let edge = self.sources.get(&id).and_then(|s| s.edge(0));
                    self.break_source(id, "the link to its first hop is down", edge);
                }
                Owner::Source(_) => {}
            }
        }
    }

    /// The neighbour is gone with its group.
    pub(crate) fn handle_forgotten(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        node: NodeId,
    ) {
        self.setups.remove(&node);
        let concerned: BTreeSet<_> = self
            .passing
            .iter()
            .filter(|(_, p)| p.predecessor == node || p.successor() == Some(node))
            .map(|(id, _)| *id)
            .collect();
        for id in concerned {
            if self
                .passing
                .get(&id)
                .is_some_and(|p| p.successor() == Some(node))
            {
                self.notify(context, links, id, Notice::Broken);
            }
            self.remove_pass(context, links, id, true);
        }
        let sources: Vec<_> = self
            .sources
            .iter()
            .filter(|(_, s)| s.first_hop() == node)
            .map(|(id, _)| *id)
            .collect();
        for id in sources {
            let edge = self.sources.get(&id).and_then(|s| s.edge(0));
            self.break_source(id, "its first hop is gone", edge);
        }
    }

    /// Something the forwarding plane could not forward.
    pub(crate) fn handle_exception(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        label: Label,
        counter: u64,
        exception: Exception,
    ) {
        let Some(id) = self.by_label.get(&label).copied() else {
            context.out.count("exception_unknown_label");
            if self.unknowns.take(context.now) {
                links.send_to(context, &from, &Message::LabelUnknown { label });
            }
            return;
        };
        let Some(pass) = self.passing.get(&id) else {
            return;
        };
        if pass.predecessor != from {
            // Somebody else's label: whoever sends there gets no say in it.
            context.out.count("exception_foreign_label");
            return;
        }
        let notice = match exception {
            Exception::TtlExpired { mode } => Notice::TtlExpired {
                label,
                counter,
                mode,
            },
            Exception::TooBig { mtu } => {
                let payload_mtu = pass
                    .successor()
                    .and_then(|next| links.payload_mtu(&next))
                    .unwrap_or(mtu);
                Notice::TooBig {
                    counter,
                    payload_mtu,
                }
            }
            Exception::NoNextHop => Notice::Broken,
            // By the time it is looked at, the label is there.
            Exception::UnknownLabel => return,
        };
        self.notify(context, links, id, notice);
    }

    /// Tells the source of a passing LSP something.
    fn notify(&mut self, context: &mut Context<'_>, links: &mut Links, id: PassId, notice: Notice) {
        if !self.notices.take(context.now) {
            context.out.count("lsp_notices_limited");
            return;
        }
        let nonce = context.random_u64();
        let Some(pass) = self.passing.get(&id) else {
            return;
        };
        let sealed = notice.seal(&pass.key, nonce);
        let (before, id_in) = (pass.predecessor, pass.id_in);
        context.out.count("lsp_notices_sent");
        links.send_to(context, &before, &Message::LspNotice { id: id_in, sealed });
    }

    /// Tells the sources of all LSPs that end here without a session that there is none (after a restart).
    pub(crate) fn disown_sessions(&mut self, context: &mut Context<'_>, links: &mut Links) {
        let ids: Vec<_> = self
            .passing
            .iter()
            .filter(|(_, p)| matches!(p.role, Role::Egress { .. }))
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            self.notify(context, links, id, Notice::NoSession);
        }
    }

    /// Tears down everything that begins here.
    pub(crate) fn shutdown(&mut self, context: &mut Context<'_>, links: &mut Links) {
        let ids: Vec<_> = self.sources.keys().copied().collect();
        for id in ids {
            self.tear_down(context, links, id);
        }
        let passing: Vec<_> = self.passing.keys().copied().collect();
        for id in passing {
            self.notify(context, links, id, Notice::Broken);
            self.remove_pass(context, links, id, true);
        }
    }
}

fn seal_refusal(key: &HopKey, context: &mut Context<'_>) -> [u8; NOTICE_LEN] {
    let nonce = context.random_u64();
    Notice::Refused.seal(key, nonce)
}
