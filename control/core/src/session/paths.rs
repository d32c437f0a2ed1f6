//! The LSPs of sessions: primary and standby, switch-over, make-before-break.

use super::{
    message::{Purpose, SessionMessage, unpad_reply},
    opening::{attach_mac, attach_reply},
    table::{Mesh, Pending, PendingRole, Session, Sessions, forgotten},
};
use crate::{
    identity::NodeId,
    io::{Micros, Output, SessionIndex, SessionOp},
    lsp::{SourceId, SourceState},
    message::Refusal,
    node::{Event, context::Context},
    topology::{
        Topology,
        cspf::{Constraints, TreeUse},
    },
};

/// How long an edge that was found broken is not used, unless the database changes.
const BROKEN: Micros = Micros::from_secs(10);
/// How long an LSP that was replaced stays for packets on their way.
const LINGER: Micros = Micros::from_secs(2);
/// Between attempts to find a standby path.
const STANDBY_RETRY: Micros = Micros::from_secs(10);
/// The same where the topology has changed since.
const STANDBY_AGAIN: Micros = Micros::from_secs(1);
/// A better path must have been there so long while a session is young: its first path was chosen from what was known
/// so far.
const REOPTIMISE_YOUNG: Micros = Micros::from_secs(1);
/// After a change of the topology, paths are looked at again after this: many changes, one look.
const RECHECK: Micros = Micros::from_millis(100);
/// Edges remembered as broken.
const MAX_BROKEN: usize = 1024;

impl Sessions {
    fn constraints(&self, now: Micros) -> Constraints {
        let edges = self.broken.iter().filter(|(_, until)| **until > now);
        Constraints {
            avoid_edges: edges.map(|(edge, _)| *edge).collect(),
            ..Constraints::default()
        }
    }

    fn mark_broken(&mut self, now: Micros, edge: Option<(NodeId, NodeId)>) {
        let Some(edge) = edge else { return };
        self.broken.retain(|_, until| *until > now);
        if self.broken.len() < MAX_BROKEN {
            self.broken.insert(edge, now + BROKEN);
        }
    }

    /// Advertisements changed: what these nodes' neighbours reported is superseded, paths are looked at again.
    pub(crate) fn handle_topology(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        links_changed: bool,
    ) {
        if !links_changed {
            return;
        }
        let indices: Vec<_> = self.sessions.keys().copied().collect();
        for index in indices {
            let Some(session) = self.sessions.get_mut(&index) else {
                continue;
            };
            let soon = context.now + RECHECK;
            session.recheck = Some(session.recheck.map_or(soon, |at| at.min(soon)));
            session.next_standby = session.next_standby.min(context.now + STANDBY_AGAIN);
            if session.active && session.primary.is_none() && session.pending.is_empty() {
                session.next_try = session.next_try.min(context.now + RECHECK);
            }
            self.schedule(context, index);
        }
        let _ = mesh;
    }

    pub(super) fn tend_paths(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let (due, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut session.retiring)
            .into_iter()
            .partition(|(_, at)| *at <= now);
        session.retiring = kept;
        // The last one it had: what was kept in the hope that a break is short.
        let orphaned = !due.is_empty() && session.primary.is_none() && session.retiring.is_empty();
        if orphaned && session.ingress.take().is_some() {
            context.out.push(Output::Session(SessionOp::SetIngress {
                session: index,
                ingress: None,
            }));
        }
        for (id, _) in due {
            self.by_source.remove(&id);
            mesh.lsps.tear_down(context, mesh.links, id);
        }
        self.recheck(context, mesh, index);
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if !session.active || !session.pending.is_empty() {
            return;
        }
        if session.primary.is_none() {
            if session.next_try <= now {
                self.signal_primary(context, mesh, index);
            }
        } else if session.standby.is_none() && session.is_up() && session.next_standby <= now {
            session.next_standby = now + STANDBY_RETRY;
            self.signal_standby(context, mesh, index);
        }
    }

    fn signal_primary(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        let Some(peer) = self.sessions.get(&index).map(|s| s.peer) else {
            return;
        };
        // What was found broken is avoided, unless nothing is left then: the news may be out of date.
        let path = mesh
            .topology
            .path(peer, &self.constraints(now))
            .or_else(|_| mesh.topology.path(peer, &Constraints::default()));
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let wait = context.jittered(Micros(
            (250_000_u64 << session.failures.min(5)).min(5_000_000),
        ));
        session.next_try = now + wait;
        match path {
            Ok(path) => {
                session.no_path = None;
                let begun = self.signal(context, mesh, index, path.nodes(), PendingRole::Primary);
                if let Some(session) = self.sessions.get_mut(&index)
                    && !begun
                {
                    session.failures = session.failures.saturating_add(1);
                }
            }
            Err(why) => {
                session.failures = session.failures.saturating_add(1);
                session.no_path = Some(why.to_string());
                context.out.count("sessions_without_path");
            }
        }
    }

    fn signal_standby(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let Some(session) = self.sessions.get(&index) else {
            return;
        };
        let Some(primary) = session.primary.and_then(|id| mesh.lsps.source(id)) else {
            return;
        };
        // Between neighbours the parallel links of the group are tried first, and any other way is disjoint.
        let constraints = Constraints {
            disjoint_from: primary.path.clone(),
            ..self.constraints(context.now)
        };
        let primary = primary.path.clone();
        if let Ok(path) = mesh.topology.path(session.peer, &constraints) {
            let nodes = path.nodes();
            if nodes != primary {
                self.signal(context, mesh, index, nodes, PendingRole::Standby);
            }
        }
    }

    fn signal(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        path: Vec<NodeId>,
        role: PendingRole,
    ) -> bool {
        let Some(session) = self.sessions.get_mut(&index) else {
            return false;
        };
        let mut nonce = [0; 16];
        let (purpose, open) = if session.must_open || session.attach.is_empty() {
            if role != PendingRole::Primary {
                return false;
            }
            let next = session.free_epoch(session.sending.map_or(1, |e| e.wrapping_add(1)));
            let own_id = session.own_id;
            let first =
                super::handshake::first(context.config, context.rng, &session.peer, own_id, next);
            let Ok((state, noise)) = first else {
                return false;
            };
            (Purpose::Open { noise }, Some(state))
        } else {
            context.rng.fill(&mut nonce);
            let mac = attach_mac(&session.attach[0], session.peer_id, &nonce);
            (
                Purpose::Attach {
                    session: session.peer_id,
                    nonce,
                    mac,
                },
                None,
            )
        };
        let Some(id) = mesh
            .lsps
            .signal(context, mesh.links, path, &purpose.encode())
        else {
            return false;
        };
        self.by_source.insert(id, index);
        if let Some(session) = self.sessions.get_mut(&index) {
            session.pending.insert(id, Pending { role, open, nonce });
        }
        true
    }

    pub(super) fn on_lsp_up(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        id: SourceId,
        reply: &[u8],
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(pending) = session.pending.remove(&id) else {
            return;
        };
        let reply = unpad_reply(reply).unwrap_or_default();
        let right = match pending.open {
            Some(state) => self.on_opened(context, index, state, reply),
            None => {
                use subtle::ConstantTimeEq as _;
                session
                    .attach
                    .iter()
                    .any(|key| bool::from(attach_reply(key, &pending.nonce)[..].ct_eq(reply)))
            }
        };
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if !right {
            // Either somebody on the way answered for the egress, or our opening gave way to the peer's.
            context.out.count("lsp_reply_not_authentic");
            session.failures = session.failures.saturating_add(1);
            self.by_source.remove(&id);
            mesh.lsps.tear_down(context, mesh.links, id);
            return;
        }
        session.failures = 0;
        let path = mesh
            .lsps
            .source(id)
            .map(|s| s.path.clone())
            .unwrap_or_default();
        let (to, standby) = (session.peer, pending.role == PendingRole::Standby);
        context.out.event(Event::LspUp { to, path, standby });
        if standby && session.primary.is_some() {
            session.standby = Some(id);
        } else {
            let why = if pending.role == PendingRole::Better {
                "a better path"
            } else {
                "a new path"
            };
            self.use_as_primary(context, mesh, index, id, why);
        }
    }

    /// Traffic goes over this LSP from now on; the one before lingers for what is on its way.
    fn use_as_primary(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        id: SourceId,
        why: &'static str,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let before = session.primary.replace(id).filter(|old| *old != id);
        if session.standby == Some(id) {
            session.standby = None;
        }
        session.next_standby = now;
        session.better_since = None;
        let switched = before.is_some() || !session.retiring.is_empty();
        for (_, at) in &mut session.retiring {
            *at = (*at).min(now + LINGER);
        }
        session
            .retiring
            .extend(before.map(|old| (old, now + LINGER)));
        // A standby chosen against the path before may share links with this one.
        if let (Some(standby), Some(source)) = (session.standby, mesh.lsps.source(id)) {
            let shares = mesh
                .lsps
                .source(standby)
                .is_none_or(|s| source.path.windows(2).any(|w| s.uses((w[0], w[1]))));
            if shares {
                session.standby = None;
                session.retiring.push((standby, now + LINGER));
            }
        }
        let to = session.peer;
        let path = mesh
            .lsps
            .source(id)
            .map(|s| s.path.clone())
            .unwrap_or_default();
        self.refresh_ingress(context, mesh, index);
        if switched {
            context.out.count("lsp_switches");
            context.out.event(Event::LspSwitched { to, path, why });
        }
        // The peer may be waiting for a first sign over a way back there was none for until now.
        self.send(context, index, &SessionMessage::Ack, None);
        self.tend_confirm(context, mesh, index);
        self.run_waiting(context, mesh, index);
        self.pay_owed(context, index);
    }

    /// Tells the shell what to send on, where that changed.
    pub(super) fn refresh_ingress(
        &mut self,
        context: &mut Context<'_>,
        mesh: &Mesh<'_>,
        index: SessionIndex,
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let ingress = session
            .primary
            .and_then(|id| mesh.lsps.source(id))
            .and_then(|s| s.ingress());
        if ingress.is_some() && ingress != session.ingress {
            session.ingress = ingress;
            context.out.push(Output::Session(SessionOp::SetIngress {
                session: index,
                ingress,
            }));
        }
    }

    pub(super) fn on_lsp_failed(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        id: SourceId,
        why: Refusal,
        edge: Option<(NodeId, NodeId)>,
    ) {
        let now = context.now;
        self.mark_broken(now, edge);
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(pending) = session.pending.remove(&id) else {
            return;
        };
        context.out.count("lsp_setups_failed");
        if pending.role != PendingRole::Primary {
            return;
        }
        session.no_path = Some(format!("set-up failed: {}", why.name()));
        session.failures = session.failures.saturating_add(1);
        let wait = context.jittered(Micros(
            (100_000_u64 << session.failures.min(6)).min(5_000_000),
        ));
        session.next_try = now + wait;
        if edge.is_some() && session.failures < 8 {
            // It is known what to avoid: no reason to wait.
            session.next_try = now;
        }
        if forgotten(why) && pending.open.is_none() {
            session.must_open = true;
        }
    }

    pub(super) fn on_lsp_broken(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        id: SourceId,
        why: &'static str,
        edge: Option<(NodeId, NodeId)>,
    ) {
        let now = context.now;
        self.mark_broken(now, edge);
        let path = mesh
            .lsps
            .source(id)
            .map(|s| s.path.clone())
            .unwrap_or_default();
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let to = session.peer;
        context.out.count("lsps_broken");
        context.out.event(Event::LspBroken {
            to,
            path,
            why: why.to_owned(),
        });
        if session.standby == Some(id) {
            session.standby = None;
            session.next_standby = now;
            session.retiring.push((id, now));
        } else if session.primary == Some(id) {
            self.leave_primary(context, mesh, index, edge);
        }
    }

    /// The primary does not carry any more: the standby takes over at once, or a new path is signalled.
    fn leave_primary(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        edge: Option<(NodeId, NodeId)>,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let usable = session.standby.filter(|id| {
            let source = mesh.lsps.source(*id);
            source.is_some_and(|s| {
                s.state == SourceState::Up && edge.is_none_or(|edge| !s.uses(edge))
            })
        });
        match usable {
            Some(standby) => {
                self.use_as_primary(context, mesh, index, standby, "the path in use broke")
            }
            None => {
                // Where a link broke it stays in use until there is another: the break may be over before that.
                if let Some(old) = session.primary.take() {
                    session.retiring.push((old, now + Micros::from_secs(30)));
                }
                if edge.is_none() {
                    session.ingress = None;
                    context.out.push(Output::Session(SessionOp::SetIngress {
                        session: index,
                        ingress: None,
                    }));
                }
                session.next_try = now;
            }
        }
    }

    /// Looks whether the paths in use still stand, and whether there is a better one.
    fn recheck(&mut self, context: &mut Context<'_>, mesh: &mut Mesh<'_>, index: SessionIndex) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if session.recheck.is_none_or(|at| at > now) {
            return;
        }
        session.recheck = None;
        let broken: Vec<_> = [session.standby, session.primary]
            .into_iter()
            .flatten()
            .filter_map(|id| {
                Some((
                    id,
                    missing_edge(mesh.topology, &mesh.lsps.source(id)?.path)?,
                ))
            })
            .collect();
        for (id, edge) in broken {
            let why = "the database has lost a link of it";
            self.on_lsp_broken(context, mesh, index, id, why, Some(edge));
        }
        self.consider_better(context, mesh, index);
    }

    fn consider_better(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(primary) = session.primary.and_then(|id| mesh.lsps.source(id)) else {
            return;
        };
        let used = cost_of(mesh.topology, &primary.path);
        let best = mesh.topology.cost(TreeUse::Traffic, &session.peer);
        let better = match (used, best) {
            // A fifth less, and by more than half a hop: otherwise the change is not worth it.
            (Some(used), Some(best)) => best.saturating_add(best / 4 + 10) < used,
            _ => false,
        };
        if !better {
            session.better_since = None;
            return;
        }
        let since = *session.better_since.get_or_insert(now);
        let mut wait = context.config.timers.reoptimise;
        if now.since(session.since) < wait {
            wait = wait.min(REOPTIMISE_YOUNG);
        }
        if now.since(since) < wait {
            session.recheck = Some(since + wait);
            return;
        }
        let used_path = primary.path.clone();
        let (peer, busy) = (
            session.peer,
            !session.pending.is_empty() || session.must_open,
        );
        session.recheck = Some(now + wait);
        if busy {
            return;
        }
        if let Ok(path) = mesh.topology.path(peer, &self.constraints(now)) {
            let nodes = path.nodes();
            if nodes != used_path {
                self.signal(context, mesh, index, nodes, PendingRole::Better);
            }
        }
    }
}

/// Cost of a path in the graph as it is; none where a link of it is gone.
fn cost_of(topology: &Topology, path: &[NodeId]) -> Option<u32> {
    path.windows(2)
        .map(|w| edge_cost(topology, w[0], w[1]))
        .sum()
}

fn missing_edge(topology: &Topology, path: &[NodeId]) -> Option<(NodeId, NodeId)> {
    path.windows(2)
        .map(|w| (w[0], w[1]))
        .find(|(from, to)| edge_cost(topology, *from, *to).is_none())
}

fn edge_cost(topology: &Topology, from: NodeId, to: NodeId) -> Option<u32> {
    let edge = topology
        .graph()
        .edges_from(&from)
        .find(|(node, _)| *node == to)?;
    edge.1.first().map(|link| link.measured.cost)
}

/// Why there is no path, for a command that waited for one.
pub(super) fn reason(session: &Session) -> String {
    match &session.no_path {
        Some(why) => format!("no path: {why}"),
        None => "the session did not come up in time: the far end does not answer".to_owned(),
    }
}
