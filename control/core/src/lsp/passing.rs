//! LSPs that pass or end here.

use weft_abi::{Label, LfibEntry};

use super::{
    ANSWER_WAIT, LspEvent, Lsps, Owner, PassId, Timer,
    notice::Notice,
    onion::{self, HopKey, Peeled},
    seal_refusal,
};
use crate::{
    identity::NodeId,
    io::Micros,
    link::{Links, guard::Bucket, state::MIN_MTU},
    message::{LspId, MAX_IDS, Message, Refusal, SetupResult},
    node::context::Context,
};

/// What this node is on an LSP.
#[derive(Debug)]
pub(crate) enum Role {
    /// In the middle. `out_label` is known once the next hop has answered; until then the set-up is kept for repeats.
    Transit {
        successor: NodeId,
        id_out: LspId,
        out_label: Option<Label>,
        onion: Vec<u8>,
        payload_mtu: u16,
        reply: Vec<u8>,
    },
    /// At the end. The reply is known once the session has decided.
    Egress {
        reply: Option<Vec<u8>>,
        peer: Option<NodeId>,
    },
}

/// An LSP that passes or ends here.
#[derive(Debug)]
pub(crate) struct Passing {
    pub(crate) predecessor: NodeId,
    pub(crate) id_in: LspId,
    pub(crate) in_label: Option<Label>,
    pub(crate) role: Role,
    pub(crate) key: HopKey,
    pub(crate) lifetime: Micros,
    pub(crate) since: Micros,
    pub(crate) expires: Micros,
    pub(crate) told_broken: bool,
}

impl Passing {
    pub(crate) fn is_up(&self) -> bool {
        self.in_label.is_some()
    }

    pub(crate) fn successor(&self) -> Option<NodeId> {
        if let Role::Transit { successor, .. } = self.role {
            Some(successor)
        } else {
            None
        }
    }

    pub(crate) fn out_label(&self) -> Option<Label> {
        if let Role::Transit { out_label, .. } = self.role {
            out_label
        } else {
            None
        }
    }
}

/// What an egress says fits: as much as on the link to the predecessor, which limits nothing and does not tell that the
/// path ends here.
fn egress_mtu(links: &Links, predecessor: &NodeId) -> u16 {
    links.payload_mtu(predecessor).unwrap_or(MIN_MTU - 48)
}

impl Lsps {
    pub(super) fn on_setup(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        id: LspId,
        onion: &[u8],
    ) {
        if let Some(pass) = self.by_in.get(&(from, id)).copied() {
            self.repeat(context, links, pass);
            return;
        }
        let limits = &context.config.limits;
        let rate = limits.lsp_setups_per_neighbour_per_s;
        let bucket = self
            .setups
            .entry(from)
            .or_insert_with(|| Bucket::new(rate, context.now));
        if !bucket.take(context.now) {
            context.out.count("lsp_setups_limited");
            refuse_to(context, links, &from, id, Refusal::Full);
            return;
        }
        let used = self.per_neighbour.get(&from).copied().unwrap_or(0);
        if used >= limits.lsps_per_neighbour || self.passing.len() >= limits.lsps {
            context.out.limit(context.now, "lsps_full");
            refuse_to(context, links, &from, id, Refusal::Full);
            return;
        }
        let network = context.config.network.network_id();
        let Ok(layer) = onion::peel(context.rng, &network, &context.config.identity, onion) else {
            context.out.count("lsp_setup_not_for_us");
            refuse_to(context, links, &from, id, Refusal::BadOnion);
            return;
        };
        let now = context.now;
        let longest = context.config.timers.lsp_lifetime.0.saturating_mul(4);
        let lifetime = Micros(
            Micros::from_secs(layer.lifetime_s.into())
                .0
                .clamp(3_000_000, longest.max(3_000_000)),
        );
        let (role, arrived) = match layer.peeled {
            Peeled::Egress { payload } => (
                Role::Egress {
                    reply: None,
                    peer: None,
                },
                Some(payload),
            ),
            Peeled::Forward { successor, onion } => {
                let refusal = if successor == from || successor == context.config.identity.id() {
                    Some(Refusal::BadOnion)
                } else if !context.config.transit {
                    Some(Refusal::NoTransit)
                } else if !links.reaches(&successor) {
                    Some(Refusal::NoLink)
                } else {
                    None
                };
                if let Some(why) = refusal {
                    context.out.count("lsp_setups_refused");
                    let notice = Some(seal_refusal(&layer.key, context));
                    let result = SetupResult::Refused { why, notice };
                    links.send_to(context, &from, &Message::LspAnswer { id, result });
                    return;
                }
                let id_out = self.fresh_out(context, successor);
                let message = Message::LspSetup {
                    id: id_out,
                    onion: onion.clone(),
                };
                links.send_to(context, &successor, &message);
                let role = Role::Transit {
                    successor,
                    id_out,
                    out_label: None,
                    onion,
                    payload_mtu: 0,
                    reply: Vec::new(),
                };
                (role, None)
            }
        };
        let pass = PassId(self.fresh_id());
        if let Role::Transit {
            successor, id_out, ..
        } = role
        {
            self.own_out(context, successor, id_out, Owner::Pass(pass));
        }
        let expires = now + ANSWER_WAIT;
        self.insert_pass(
            pass,
            Passing {
                predecessor: from,
                id_in: id,
                in_label: None,
                role,
                key: layer.key,
                lifetime,
                since: now,
                expires,
                told_broken: false,
            },
        );
        if let Some(payload) = arrived {
            self.events
                .push_back(LspEvent::Arrived { id: pass, payload });
        }
    }

    pub(super) fn insert_pass(&mut self, id: PassId, pass: Passing) {
        self.by_in.insert((pass.predecessor, pass.id_in), id);
        *self.per_neighbour.entry(pass.predecessor).or_default() += 1;
        if let Some(label) = pass.in_label {
            self.by_label.insert(label, id);
        }
        self.deadlines.set(Timer::Pass(id), pass.expires);
        self.passing.insert(id, pass);
    }

    /// The predecessor repeats a set-up: the answer was lost, or has not come yet.
    fn repeat(&mut self, context: &mut Context<'_>, links: &mut Links, id: PassId) {
        let Some(pass) = self.passing.get(&id) else {
            return;
        };
        let (before, id_in) = (pass.predecessor, pass.id_in);
        match (&pass.role, pass.in_label) {
            (
                Role::Transit {
                    payload_mtu, reply, ..
                },
                Some(label),
            ) => {
                let result = SetupResult::Up {
                    label,
                    payload_mtu: *payload_mtu,
                    reply: reply.clone(),
                };
                links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
            }
            (
                Role::Egress {
                    reply: Some(reply), ..
                },
                Some(label),
            ) => {
                let result = SetupResult::Up {
                    label,
                    payload_mtu: egress_mtu(links, &before),
                    reply: reply.clone(),
                };
                links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
            }
            (
                Role::Transit {
                    successor,
                    id_out,
                    onion,
                    ..
                },
                None,
            ) => {
                let (next, message) = (
                    *successor,
                    Message::LspSetup {
                        id: *id_out,
                        onion: onion.clone(),
                    },
                );
                links.send_to(context, &next, &message);
            }
            (Role::Egress { .. }, _) => {}
        }
    }

    pub(super) fn on_pass_answer(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: PassId,
        result: SetupResult,
    ) {
        let Some(pass) = self.passing.get_mut(&id) else {
            return;
        };
        if pass.is_up() {
            return;
        }
        let (before, id_in) = (pass.predecessor, pass.id_in);
        match result {
            SetupResult::Refused { .. } => {
                links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
                self.remove_pass(context, links, id, false);
            }
            SetupResult::Up {
                label,
                payload_mtu,
                reply,
            } => {
                let Role::Transit { successor, .. } = pass.role else {
                    return;
                };
                let group = links.neighbour(&successor).map(|n| n.group);
                let own_mtu = links.payload_mtu(&successor);
                let (Some(group), Some(own_mtu)) = (group, own_mtu) else {
                    self.refuse(context, links, id, Refusal::NoLink);
                    return;
                };
                let entry = LfibEntry::swap(label, group);
                let Some(in_label) = context
                    .forwarding
                    .add_label(context.rng, context.out, entry)
                else {
                    context.out.limit(context.now, "labels_full");
                    self.refuse(context, links, id, Refusal::Full);
                    return;
                };
                let payload_mtu = payload_mtu.min(own_mtu);
                pass.in_label = Some(in_label);
                pass.expires = context.now + pass.lifetime;
                if let Role::Transit {
                    out_label,
                    onion,
                    payload_mtu: mtu,
                    reply: kept,
                    ..
                } = &mut pass.role
                {
                    *out_label = Some(label);
                    *onion = Vec::new();
                    *mtu = payload_mtu;
                    kept.clone_from(&reply);
                }
                self.deadlines.set(Timer::Pass(id), pass.expires);
                self.by_label.insert(in_label, id);
                let result = SetupResult::Up {
                    label: in_label,
                    payload_mtu,
                    reply,
                };
                links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
                context.out.count("lsps_transit");
                context.out.state_changed();
            }
        }
    }

    /// The session takes an LSP that ends here; returns the label its traffic comes with.
    pub(crate) fn accept(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: PassId,
        peer: NodeId,
        reply: Vec<u8>,
    ) -> Option<Label> {
        let pass = self.passing.get_mut(&id)?;
        let Some(label) =
            context
                .forwarding
                .add_label(context.rng, context.out, LfibEntry::DELIVER)
        else {
            context.out.limit(context.now, "labels_full");
            self.refuse(context, links, id, Refusal::Full);
            return None;
        };
        pass.in_label = Some(label);
        pass.expires = context.now + pass.lifetime;
        let (before, id_in) = (pass.predecessor, pass.id_in);
        pass.role = Role::Egress {
            reply: Some(reply.clone()),
            peer: Some(peer),
        };
        self.deadlines.set(Timer::Pass(id), pass.expires);
        self.by_label.insert(label, id);
        let result = SetupResult::Up {
            label,
            payload_mtu: egress_mtu(links, &before),
            reply,
        };
        links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
        context.out.count("lsps_egress");
        context.out.state_changed();
        Some(label)
    }

    /// Refuses a set-up that got this far, under the hop's key.
    pub(crate) fn refuse(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: PassId,
        why: Refusal,
    ) {
        let Some(pass) = self.passing.get(&id) else {
            return;
        };
        let (before, id_in) = (pass.predecessor, pass.id_in);
        let nonce = context.random_u64();
        let notice = Some(Notice::Refused.seal(&pass.key, nonce));
        let result = SetupResult::Refused { why, notice };
        context.out.count("lsp_setups_refused");
        links.send_to(context, &before, &Message::LspAnswer { id: id_in, result });
        self.remove_pass(context, links, id, true);
    }

    pub(super) fn on_refresh(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        from: NodeId,
        ids: &[LspId],
    ) {
        let mut unknown = Vec::new();
        for id in ids {
            let pass = self
                .by_in
                .get(&(from, *id))
                .and_then(|pass| Some((*pass, self.passing.get_mut(pass)?)));
            match pass {
                Some((pass_id, pass)) if pass.is_up() => {
                    pass.expires = context.now + pass.lifetime;
                    // Who refreshes has the answer: it needs no repeating any more.
                    match &mut pass.role {
                        Role::Transit { reply, .. }
                        | Role::Egress {
                            reply: Some(reply), ..
                        } => *reply = Vec::new(),
                        Role::Egress { .. } => {}
                    }
                    self.deadlines.set(Timer::Pass(pass_id), pass.expires);
                }
                Some(_) => {}
                None => unknown.push(*id),
            }
        }
        if !unknown.is_empty() {
            unknown.truncate(MAX_IDS);
            links.send_to(context, &from, &Message::LspUnknown { ids: unknown });
        }
    }

    pub(super) fn on_pass_timer(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: PassId,
    ) {
        let Some(pass) = self.passing.get_mut(&id) else {
            return;
        };
        if context.now < pass.expires {
            let at = pass.expires;
            self.deadlines.set(Timer::Pass(id), at);
        } else if pass.is_up() && links.restarts(&pass.predecessor) {
            // It cannot refresh now, but goes on forwarding: as long as its links are kept, so are its LSPs, and it
            // gets time to refresh them once it is back.
            pass.expires = context.now + pass.lifetime;
            let at = pass.expires;
            self.deadlines.set(Timer::Pass(id), at);
        } else if pass.is_up() {
            context.out.count("lsps_expired");
            self.remove_pass(context, links, id, true);
        } else {
            self.refuse(context, links, id, Refusal::TimedOut);
        }
    }

    /// Forgets an LSP that passes or ends here.
    pub(super) fn remove_pass(
        &mut self,
        context: &mut Context<'_>,
        links: &mut Links,
        id: PassId,
        tell_next: bool,
    ) {
        let Some(pass) = self.passing.remove(&id) else {
            return;
        };
        self.deadlines.clear(&Timer::Pass(id));
        self.by_in.remove(&(pass.predecessor, pass.id_in));
        if let Some(count) = self.per_neighbour.get_mut(&pass.predecessor) {
            *count -= 1;
            if *count == 0 {
                self.per_neighbour.remove(&pass.predecessor);
            }
        }
        if let Some(label) = pass.in_label {
            self.by_label.remove(&label);
            context
                .forwarding
                .free_label(context.now, context.out, label);
            context.out.state_changed();
        }
        match pass.role {
            Role::Transit {
                successor, id_out, ..
            } => {
                self.by_out.remove(&(successor, id_out));
                if tell_next {
                    links.send_to(context, &successor, &Message::LspTeardown { id: id_out });
                }
            }
            Role::Egress { .. } => {
                if let Some(label) = pass.in_label {
                    self.events.push_back(LspEvent::Gone { label });
                }
            }
        }
    }

    /// Labels delivered here for a peer, from before its session was (re-)established.
    pub(crate) fn labels_of(&self, peer: &NodeId) -> Vec<Label> {
        let ends =
            |p: &&Passing| matches!(&p.role, Role::Egress { peer: Some(of), .. } if of == peer);
        self.passing
            .values()
            .filter(ends)
            .filter_map(|p| p.in_label)
            .collect()
    }

    /// The neighbour an LSP with this label comes from.
    pub(crate) fn predecessor_of(&self, label: Label) -> Option<NodeId> {
        self.passing
            .get(self.by_label.get(&label)?)
            .map(|p| p.predecessor)
    }
}

fn refuse_to(context: &mut Context<'_>, links: &mut Links, to: &NodeId, id: LspId, why: Refusal) {
    context.out.count("lsp_setups_refused");
    links.send_to(
        context,
        to,
        &Message::LspAnswer {
            id,
            result: SetupResult::Refused { why, notice: None },
        },
    );
}
