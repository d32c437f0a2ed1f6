//! Ping and trace inside a session.

use std::collections::BTreeMap;

use weft_abi::Label;

use super::{
    message::SessionMessage,
    paths,
    table::{Mesh, Sessions, answer_failed},
};
use crate::{
    identity::NodeId,
    io::{Answer, Command, CommandId, ForwardMode, Micros, Output, SessionIndex},
    node::context::Context,
};

/// How long an echo is awaited.
const PING_WAIT: Micros = Micros::from_secs(2);
/// How long one hop of a trace is awaited.
const HOP_WAIT: Micros = Micros::from_millis(1_500);
/// Echoes that wait for a path back, in one session at most.
const MAX_OWED: usize = 16;
/// Pings and traces under way in one session at most.
const MAX_UNDER_WAY: usize = 64;

/// Pings and traces under way.
#[derive(Debug, Default)]
pub(super) struct Oam {
    pings: BTreeMap<u64, (CommandId, Micros)>,
    traces: BTreeMap<u64, Trace>,
    /// Echoes that arrived before there was a path back.
    owed: Vec<u64>,
}

#[derive(Debug)]
struct Trace {
    command: CommandId,
    path: Vec<NodeId>,
    /// 1 for the first node after this one.
    hop: u8,
    counter: u64,
    sent: Micros,
}

impl Oam {
    pub(super) fn deadlines(&self) -> impl Iterator<Item = Micros> {
        let pings = self.pings.values().map(|(_, sent)| *sent + PING_WAIT);
        pings.chain(self.traces.values().map(|t| t.sent + HOP_WAIT))
    }

    pub(super) fn fail_all(self, context: &mut Context<'_>, why: &str) {
        let traces = self.traces.into_values().map(|t| t.command);
        for id in self.pings.into_values().map(|(id, _)| id).chain(traces) {
            answer_failed(context, id, &format!("the session closed: {why}"));
        }
    }
}

impl Sessions {
    /// Runs the commands that waited for the session to come up.
    pub(super) fn run_waiting(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        while let Some(session) = self.sessions.get_mut(&index) {
            // Until the peer has shown that it can answer, it could not.
            let answers = session
                .sending
                .and_then(|e| session.epoch(e))
                .is_some_and(|e| e.confirmed);
            if !session.is_up() || !answers {
                return;
            }
            let Some((id, command, _)) = session.waiting.pop_front() else {
                return;
            };
            if session.oam.pings.len() + session.oam.traces.len() >= MAX_UNDER_WAY {
                answer_failed(
                    context,
                    id,
                    "too many pings and traces are under way to this node",
                );
                continue;
            }
            match command {
                Command::Ping { payload_len, .. } => {
                    self.start_ping(context, index, id, payload_len)
                }
                Command::Trace { .. } => self.start_trace(context, mesh, index, id),
                _ => {}
            }
        }
    }

    /// Answers the echoes that came before there was a path back.
    pub(super) fn pay_owed(&mut self, context: &mut Context<'_>, index: SessionIndex) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if !session.is_up() {
            return;
        }
        for id in std::mem::take(&mut session.oam.owed) {
            self.send(context, index, &SessionMessage::Pong { id }, None);
        }
    }

    fn start_ping(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        id: CommandId,
        payload_len: u16,
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let room = session.ingress.map_or(0, |i| i.inner_mtu.saturating_sub(9));
        if payload_len > room {
            let reason =
                format!("a payload of {payload_len} bytes does not fit the path: at most {room}");
            answer_failed(context, id, &reason);
            return;
        }
        let ping = context.random_u64();
        session.oam.pings.insert(ping, (id, context.now));
        self.send(
            context,
            index,
            &SessionMessage::Ping {
                id: ping,
                padding: payload_len,
            },
            None,
        );
    }

    fn start_trace(
        &mut self,
        context: &mut Context<'_>,
        mesh: &Mesh<'_>,
        index: SessionIndex,
        id: CommandId,
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(source) = session.primary.and_then(|id| mesh.lsps.source(id)) else {
            answer_failed(context, id, &paths::reason(session));
            return;
        };
        let path = source.path.clone();
        let trace = context.random_u64();
        session.oam.traces.insert(
            trace,
            Trace {
                command: id,
                path,
                hop: 0,
                counter: 0,
                sent: context.now,
            },
        );
        self.next_hop(context, index, trace);
    }

    /// Sends the traced packet for the next hop, or ends the trace.
    fn next_hop(&mut self, context: &mut Context<'_>, index: SessionIndex, id: u64) {
        let Some(trace) = self
            .sessions
            .get_mut(&index)
            .and_then(|s| s.oam.traces.get_mut(&id))
        else {
            return;
        };
        trace.hop += 1;
        let (hop, last) = (trace.hop, trace.path.len() - 1);
        if usize::from(hop) > last {
            if let Some(session) = self.sessions.get_mut(&index) {
                session.oam.traces.remove(&id);
            }
            return;
        }
        let counter = self.send_counted(
            context,
            index,
            &SessionMessage::Trace { id },
            None,
            Some(hop),
        );
        if let Some(trace) = self
            .sessions
            .get_mut(&index)
            .and_then(|s| s.oam.traces.get_mut(&id))
        {
            trace.counter = counter.unwrap_or(0);
            trace.sent = context.now;
        }
    }

    /// A hop says that the TTL of one of our packets ran out there.
    #[allow(clippy::too_many_arguments, reason = "the fields of one notice")]
    pub(super) fn on_expired(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        path: &[NodeId],
        hop: usize,
        label: Label,
        counter: u64,
        mode: ForwardMode,
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some((&id, trace)) = session
            .oam
            .traces
            .iter()
            .find(|(_, t)| t.counter == counter && counter != 0)
        else {
            context.out.count("trace_notice_unexpected");
            return;
        };
        // The hop that sealed it must be the one the packet was meant to expire at.
        if usize::from(trace.hop) != hop + 1 || trace.path != path {
            context.out.count("trace_notice_unexpected");
            return;
        }
        let answer = Answer::TraceHop {
            hop: trace.hop,
            node: path[hop + 1],
            label: Some(label),
            rtt: context.now.since(trace.sent),
            mode,
            last: false,
        };
        context.out.push(Output::Answer {
            id: trace.command,
            answer,
        });
        self.next_hop(context, index, id);
    }

    pub(super) fn on_oam(
        &mut self,
        context: &mut Context<'_>,
        mesh: &Mesh<'_>,
        index: SessionIndex,
        label: Label,
        message: SessionMessage,
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        session.last_active = context.now;
        match message {
            SessionMessage::Ping { id, .. } if session.ingress.is_none() => {
                // The first packet of a session is here before the way back is signalled.
                if session.oam.owed.len() < MAX_OWED {
                    session.oam.owed.push(id);
                } else {
                    context.out.count("pongs_without_path");
                }
            }
            SessionMessage::Ping { id, .. } => {
                self.send(context, index, &SessionMessage::Pong { id }, None);
            }
            SessionMessage::Pong { id } => {
                let hops = session
                    .primary
                    .and_then(|id| mesh.lsps.source(id))
                    .map_or(0, |s| s.path.len() - 1);
                let Some((command, sent)) = session.oam.pings.remove(&id) else {
                    context.out.count("pong_unexpected");
                    return;
                };
                let answer = Answer::Pong {
                    rtt: context.now.since(sent),
                    hops: hops as u8,
                };
                context.out.push(Output::Answer {
                    id: command,
                    answer,
                });
            }
            SessionMessage::Trace { id } => {
                let from = mesh.lsps.predecessor_of(label);
                let mode = from.map_or(ForwardMode::UserSpace, |node| mesh.links.mode_of(&node));
                self.send(
                    context,
                    index,
                    &SessionMessage::TraceReply { id, label, mode },
                    None,
                );
            }
            SessionMessage::TraceReply { id, label, mode } => {
                let peer = session.peer;
                let Some(trace) = session.oam.traces.remove(&id) else {
                    context.out.count("pong_unexpected");
                    return;
                };
                let answer = Answer::TraceHop {
                    hop: trace.hop,
                    node: peer,
                    label: Some(label),
                    rtt: context.now.since(trace.sent),
                    mode,
                    last: true,
                };
                context.out.push(Output::Answer {
                    id: trace.command,
                    answer,
                });
            }
            _ => {}
        }
    }

    pub(super) fn tend_oam(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        self.run_waiting(context, mesh, index);
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let reason = paths::reason(session);
        let (late, kept): (Vec<_>, Vec<_>) = std::mem::take(&mut session.waiting)
            .into_iter()
            .partition(|(.., due)| *due <= now);
        session.waiting = kept.into();
        let silent: Vec<_> = session
            .oam
            .pings
            .iter()
            .filter(|(_, (_, sent))| now.since(*sent) >= PING_WAIT)
            .map(|(ping, (id, _))| (*ping, *id))
            .collect();
        silent.iter().for_each(|(ping, _)| {
            session.oam.pings.remove(ping);
        });
        let stuck: Vec<_> = session
            .oam
            .traces
            .iter()
            .filter(|(_, t)| now.since(t.sent) >= HOP_WAIT)
            .map(|(id, t)| {
                (
                    *id,
                    t.command,
                    t.hop,
                    usize::from(t.hop) + 1 == t.path.len(),
                )
            })
            .collect();
        for (id, ..) in late {
            answer_failed(context, id, &reason);
        }
        for (_, id) in silent {
            answer_failed(context, id, "no echo within 2 s");
        }
        for (trace, command, hop, last) in stuck {
            context.out.push(Output::Answer {
                id: command,
                answer: Answer::TraceTimeout { hop },
            });
            if last {
                answer_failed(context, command, "the far end did not answer the trace");
            }
            self.next_hop(context, index, trace);
        }
    }
}
