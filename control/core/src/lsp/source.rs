//! LSPs that begin here.

use weft_abi::{FIXED_LEN, GroupIndex, Label};

use super::{
    LspEvent, Lsps, Owner, SourceId, Timer,
    notice::Notice,
    onion::{self, HopKey},
};
use crate::{
    identity::NodeId,
    io::{LspIngress, Micros},
    link::Links,
    message::{LspId, Message, NOTICE_LEN, Refusal, SetupResult},
    node::context::Context,
    noise::TAG_LEN,
};

/// Set-ups sent for one LSP before it is given up.
const ATTEMPTS: u32 = 4;
/// TTLs that LSPs begin with: the lowest leaves room for the longest path, several times over.
const TTLS: std::ops::RangeInclusive<u8> = 64..=160;
const _: () = assert!(*TTLS.start() as usize > 2 * onion::MAX_HOPS);

fn random_ttl(context: &mut Context<'_>) -> u8 {
    let many = u32::from(TTLS.end() - TTLS.start()) + 1;
    TTLS.start() + (context.random_u32() % many) as u8
}

/// State of an LSP at its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SourceState {
    Signalling,
    Up,
    Broken,
}

/// An LSP that begins here.
#[derive(Debug)]
pub(crate) struct Source {
    /// This node first, the egress last.
    pub(crate) path: Vec<NodeId>,
    id_out: LspId,
    keys: Vec<HopKey>,
    onion: Vec<u8>,
    attempts: u32,
    wait: Micros,
    pub(crate) state: SourceState,
    pub(crate) label: Option<Label>,
    group: GroupIndex,
    payload_mtu: u16,
    ttl: u8,
    pub(crate) since: Micros,
}

impl Source {
    pub(crate) fn first_hop(&self) -> NodeId {
        self.path[1]
    }

    /// The edge that leads from the hop with this index (0 is this node).
    pub(crate) fn edge(&self, from: usize) -> Option<(NodeId, NodeId)> {
        Some((*self.path.get(from)?, *self.path.get(from + 1)?))
    }

    /// Whether it uses an edge.
    pub(crate) fn uses(&self, edge: (NodeId, NodeId)) -> bool {
        self.path.windows(2).any(|w| (w[0], w[1]) == edge)
    }

    /// Largest inner packet.
    pub(crate) fn inner_mtu(&self) -> u16 {
        self.payload_mtu
            .saturating_sub((FIXED_LEN + TAG_LEN) as u16)
    }

    /// What traffic needs to be sent on it.
    pub(crate) fn ingress(&self) -> Option<LspIngress> {
        let label = self.label.filter(|_| self.state == SourceState::Up)?;
        Some(LspIngress {
            group: self.group,
            label,
            inner_mtu: self.inner_mtu(),
            ttl: self.ttl,
        })
    }
}

impl Lsps {
    /// Signals an LSP along a path (this node first). None where that cannot even begin.
    pub(crate) fn signal(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        path: Vec<NodeId>,
        payload: &[u8],
    ) -> Option<SourceId> {
        let [_, first, ..] = path[..] else {
            return None;
        };
        if !links.reaches(&first) {
            return None;
        }
        let group = links.neighbour(&first)?.group;
        let network = context.config.network.network_id();
        let lifetime =
            u16::try_from(context.config.timers.lsp_lifetime.as_secs()).unwrap_or(u16::MAX);
        let (onion, keys) =
            onion::seal(context.rng, &network, &path[1..], lifetime, payload).ok()?;
        let id_out = self.fresh_out(context, first);
        let id = SourceId(self.fresh_id());
        let ttl = random_ttl(context);
        self.own_out(context, first, id_out, Owner::Source(id));
        self.sources.insert(
            id,
            Source {
                path,
                id_out,
                keys,
                onion,
                attempts: 0,
                wait: context.config.timers.signalling_retry,
                state: SourceState::Signalling,
                label: None,
                group,
                payload_mtu: 0,
                ttl,
                since: context.now,
            },
        );
        context.out.count("lsps_signalled");
        self.send_setup(context, links, id);
        Some(id)
    }

    fn send_setup(&mut self, context: &mut Context<'_>, links: &mut Links, id: SourceId) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        source.attempts += 1;
        let wait = source.wait;
        source.wait = Micros(wait.0 * 2);
        let (first, message) = (
            source.first_hop(),
            Message::LspSetup {
                id: source.id_out,
                onion: source.onion.clone(),
            },
        );
        let wait = context.jittered(wait);
        self.deadlines.set(Timer::Source(id), context.now + wait);
        links.send_to(context, &first, &message);
    }

    pub(super) fn on_source_timer(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: SourceId,
    ) {
        let Some(source) = self.sources.get(&id) else {
            return;
        };
        if source.state != SourceState::Signalling {
            return;
        }
        if source.attempts < ATTEMPTS {
            self.send_setup(context, links, id);
        } else {
            let edge = source.edge(0).filter(|_| source.path.len() == 2);
            self.forget_source(id);
            self.events.push_back(LspEvent::Failed {
                id,
                why: Refusal::TimedOut,
                edge,
            });
        }
    }

    fn forget_source(&mut self, id: SourceId) -> Option<Source> {
        let source = self.sources.remove(&id)?;
        self.deadlines.clear(&Timer::Source(id));
        self.by_out.remove(&(source.first_hop(), source.id_out));
        Some(source)
    }

    pub(super) fn on_source_answer(
        &mut self,
        context: &mut Context<'_>,
        links: &Links,
        id: SourceId,
        result: SetupResult,
    ) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        if source.state != SourceState::Signalling {
            return;
        }
        match result {
            SetupResult::Up {
                label,
                payload_mtu,
                reply,
            } => {
                source.state = SourceState::Up;
                source.label = Some(label);
                source.payload_mtu = payload_mtu.min(
                    links
                        .payload_mtu(&source.first_hop())
                        .unwrap_or(payload_mtu),
                );
                source.onion = Vec::new();
                source.since = context.now;
                self.deadlines.clear(&Timer::Source(id));
                context.out.count("lsps_ingress");
                self.events.push_back(LspEvent::Up { id, reply });
            }
            SetupResult::Refused { why, notice } => {
                // Who refused says so under its own key; without that it was the first hop, or somebody lies.
                let hop = notice
                    .and_then(|sealed| Notice::open(&source.keys, &sealed))
                    .map(|(hop, _)| hop + 1);
                let edge = match why {
                    Refusal::NoLink | Refusal::TimedOut => hop.and_then(|hop| source.edge(hop)),
                    Refusal::Full | Refusal::NoTransit => {
                        hop.and_then(|hop| source.edge(hop.checked_sub(1)?))
                    }
                    Refusal::BadOnion => source.edge(0),
                    Refusal::Refused | Refusal::Collision | Refusal::NoSession => None,
                };
                self.forget_source(id);
                context.out.count("lsps_refused");
                self.events.push_back(LspEvent::Failed { id, why, edge });
            }
        }
    }

    /// The LSP carries nothing any more; told once.
    pub(super) fn break_source(
        &mut self,
        id: SourceId,
        why: &'static str,
        edge: Option<(NodeId, NodeId)>,
    ) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        match source.state {
            SourceState::Signalling => {
                self.forget_source(id);
                self.events.push_back(LspEvent::Failed {
                    id,
                    why: Refusal::NoLink,
                    edge,
                });
            }
            SourceState::Up => {
                source.state = SourceState::Broken;
                self.events.push_back(LspEvent::Broken { id, why, edge });
            }
            SourceState::Broken => {}
        }
    }

    pub(super) fn on_source_notice(
        &mut self,
        context: &mut Context<'_>,
        id: SourceId,
        sealed: &[u8; NOTICE_LEN],
    ) {
        let Some(source) = self.sources.get_mut(&id) else {
            return;
        };
        let Some((hop, notice)) = Notice::open(&source.keys, sealed) else {
            context.out.count("lsp_notice_not_authentic");
            return;
        };
        context.out.count("lsp_notices_received");
        match notice {
            Notice::TtlExpired {
                label,
                counter,
                mode,
            } => {
                self.events.push_back(LspEvent::Expired {
                    id,
                    hop,
                    label,
                    counter,
                    mode,
                });
            }
            Notice::TooBig { payload_mtu, .. } => {
                // A hop may lower what fits, down to what every path carries, and never raise it.
                let payload_mtu = payload_mtu.max(crate::link::state::MIN_MTU - 48);
                if payload_mtu < source.payload_mtu {
                    source.payload_mtu = payload_mtu;
                    self.events.push_back(LspEvent::TooBig { id });
                }
            }
            Notice::Forgotten => self.break_source(id, "a hop forgot it", None),
            Notice::Broken => {
                let edge = source.edge(hop + 1);
                self.break_source(id, "a hop reports its link to the next as down", edge);
            }
            // Only the egress may say this.
            Notice::NoSession if hop + 1 == source.keys.len() => {
                self.events.push_back(LspEvent::NoSession { id })
            }
            Notice::NoSession | Notice::Refused => {}
        }
    }

    /// Ends an LSP that begins here.
    pub(crate) fn tear_down(&mut self, context: &mut Context<'_>, links: &mut Links, id: SourceId) {
        if let Some(source) = self.forget_source(id) {
            links.send_to(
                context,
                &source.first_hop(),
                &Message::LspTeardown { id: source.id_out },
            );
        }
    }
}
