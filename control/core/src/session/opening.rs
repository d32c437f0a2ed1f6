//! Keys of sessions: opening, confirmation, rekey.

use zeroize::Zeroizing;

use super::{
    handshake::{self, Agreed},
    message::{Purpose, SessionMessage, pad_reply},
    table::{Confirm, Epoch, KEEPALIVE, Mesh, OLD_KEYS, Rekey, Sessions, rekey_age},
};
use crate::{
    identity::derive,
    io::{Micros, Output, SessionIndex, SessionOp},
    link::guard::message_hash,
    lsp::PassId,
    message::Refusal,
    node::{Event, context::Context},
};

/// Repetitions of a rekey or confirmation before something is concluded.
const ATTEMPTS: u32 = 5;
/// Epochs a session holds at most.
const MAX_EPOCHS: usize = 4;
/// An opening of ours counts as under way for so long when the peer's comes.
const CROSSING: Micros = Micros::from_secs(3);

/// What shows that an LSP belongs to a session.
pub(super) fn attach_mac(key: &[u8; 32], session: u64, nonce: &[u8; 16]) -> [u8; 16] {
    first16(&derive(
        key,
        "weft attach",
        &[&session.to_be_bytes(), nonce],
    ))
}

/// What shows that the egress took it.
pub(super) fn attach_reply(key: &[u8; 32], nonce: &[u8; 16]) -> [u8; 16] {
    first16(&derive(key, "weft attached", &[nonce]))
}

fn first16(hash: &[u8; 32]) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&hash[..16]);
    short
}

impl Sessions {
    /// An LSP ends here: for a new session, or one more of a session there is.
    pub(super) fn on_arrived(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        id: PassId,
        payload: &[u8],
    ) {
        let outcome = match Purpose::decode(payload) {
            Err(_) => Err(Refusal::BadOnion),
            Ok(Purpose::Open { noise }) => self.on_open(context, mesh, &noise),
            Ok(Purpose::Attach {
                session,
                nonce,
                mac,
            }) => self.on_attach(context, session, &nonce, &mac),
        };
        match outcome {
            Ok((index, reply)) => {
                let reply = pad_reply(reply);
                let Some(peer) = self.sessions.get(&index).map(|s| s.peer) else {
                    return;
                };
                if let Some(label) = mesh.lsps.accept(context, mesh.links, id, peer, reply) {
                    self.deliver(context, index, label);
                }
                self.schedule(context, index);
            }
            Err(why) => {
                context.out.count("session_setups_refused");
                mesh.lsps.refuse(context, mesh.links, id, why);
            }
        }
    }

    fn on_open(
        &mut self,
        context: &mut Context<'_>,
        mesh: &Mesh<'_>,
        noise: &[u8],
    ) -> Result<(SessionIndex, Vec<u8>), Refusal> {
        let hash = message_hash(noise);
        if self.firsts.contains(&hash) {
            context.out.count("session_replayed");
            return Err(Refusal::Refused);
        }
        let offer = handshake::read_first(context.config, context.rng, noise).map_err(|_| {
            context.out.count("session_not_authentic");
            Refusal::Refused
        })?;
        self.firsts.insert(hash);
        let own = context.config.identity.id();
        let half_open = self.sessions.values().filter(|s| !s.active).count();
        if half_open >= context.config.limits.half_open && !self.by_peer.contains_key(&offer.peer) {
            context.out.limit(context.now, "sessions_half_open_full");
            return Err(Refusal::Full);
        }
        let index = self.entry(context, mesh, offer.peer).ok_or(Refusal::Full)?;
        let session = self.sessions.get_mut(&index).ok_or(Refusal::Full)?;
        // Both began at once: the smaller id's opening goes on, as long as it may still succeed.
        let young = |id: &crate::lsp::SourceId| {
            mesh.lsps
                .source(*id)
                .is_some_and(|s| context.now.since(s.since) < CROSSING)
        };
        let crossing = session
            .pending
            .iter()
            .any(|(id, p)| p.open.is_some() && young(id));
        if crossing && own < offer.peer {
            context.out.count("session_crossed");
            return Err(Refusal::Collision);
        }
        let epoch = session.free_epoch(offer.epoch);
        session.peer_id = offer.peer_session;
        let (agreed, reply) = offer
            .answer(context.config, session.own_id, epoch)
            .map_err(|_| Refusal::Refused)?;
        // Ours gives way; its LSP is given up when its answer comes.
        session.pending.values_mut().for_each(|p| p.open = None);
        self.add_epoch(context, index, agreed, false, true);
        Ok((index, reply))
    }

    fn on_attach(
        &mut self,
        context: &mut Context<'_>,
        id: u64,
        nonce: &[u8; 16],
        mac: &[u8; 16],
    ) -> Result<(SessionIndex, Vec<u8>), Refusal> {
        use subtle::ConstantTimeEq as _;
        let index = *self.by_own_id.get(&id).ok_or(Refusal::NoSession)?;
        let session = self.sessions.get(&index).ok_or(Refusal::NoSession)?;
        let key = session
            .attach
            .iter()
            .find(|key| bool::from(attach_mac(key, id, nonce).ct_eq(mac)));
        let Some(key) = key else {
            context.out.count("session_attach_not_authentic");
            return Err(Refusal::NoSession);
        };
        Ok((index, attach_reply(key, nonce).to_vec()))
    }

    /// Takes in the keys of a finished handshake.
    fn add_epoch(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        agreed: Agreed,
        initiator: bool,
        opening: bool,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        session.peer_id = agreed.peer_session;
        session.epochs.retain(|e| e.number != agreed.epoch);
        if opening {
            session.attach.push_front(Zeroizing::new(*agreed.attach));
            session.attach.truncate(2);
            session.must_open = false;
        }
        while session.epochs.len() >= MAX_EPOCHS {
            let sending = session.sending;
            let Some(at) = session
                .epochs
                .iter()
                .position(|e| Some(e.number) != sending)
            else {
                break;
            };
            let epoch = session.epochs.remove(at).number;
            context.out.push(Output::Session(SessionOp::DropEpoch {
                session: index,
                epoch,
            }));
        }
        let cipher = agreed.keys.cipher;
        session.epochs.push(Epoch {
            number: agreed.epoch,
            confirmed: false,
            initiator,
            cipher,
            since: now,
            sent: 0,
            drop_at: None,
        });
        let (peer, epoch) = (session.peer, agreed.epoch);
        context.out.push(Output::Session(SessionOp::AddEpoch {
            session: index,
            epoch,
            keys: agreed.keys,
        }));
        context.out.count("session_epochs");
        if initiator {
            // The responder had them before it answered.
            session.sending = Some(epoch);
            session.last_heard = now;
            context.out.push(Output::Session(SessionOp::UseEpoch {
                session: index,
                epoch,
            }));
            context.out.event(Event::SessionKeyed {
                peer,
                epoch,
                cipher: cipher.name(),
            });
            session.confirm = Some(Confirm {
                epoch,
                due: now,
                wait: Micros::from_millis(300),
                attempts: 0,
            });
        }
    }

    /// Takes message 2 of an opening. False where it is not right.
    pub(super) fn on_opened(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        state: Box<snow::HandshakeState>,
        reply: &[u8],
    ) -> bool {
        match handshake::read_second(context.config, state, reply) {
            Ok(agreed) => {
                self.add_epoch(context, index, agreed, true, true);
                true
            }
            Err(_) => {
                context.out.count("session_not_authentic");
                false
            }
        }
    }

    /// Something came under an epoch: the peer has its keys.
    pub(super) fn on_epoch_heard(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        number: u8,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if session.confirm.as_ref().is_some_and(|c| c.epoch == number) {
            session.confirm = None;
        }
        let peer = session.peer;
        let Some(at) = session.epochs.iter().position(|e| e.number == number) else {
            return;
        };
        if session.epochs[at].confirmed {
            return;
        }
        session.epochs[at].confirmed = true;
        // Epochs stand in the order in which they were agreed on.
        for old in &mut session.epochs[..at] {
            old.drop_at.get_or_insert(now + OLD_KEYS);
        }
        if !std::mem::replace(&mut session.active, true) {
            session.last_active = now;
        }
        let (newest, cipher) = (at + 1 == session.epochs.len(), session.epochs[at].cipher);
        if newest && session.sending != Some(number) {
            session.sending = Some(number);
            context.out.push(Output::Session(SessionOp::UseEpoch {
                session: index,
                epoch: number,
            }));
            context.out.event(Event::SessionKeyed {
                peer,
                epoch: number,
                cipher: cipher.name(),
            });
        }
    }

    pub(super) fn tend_epochs(&mut self, context: &mut Context<'_>, index: SessionIndex) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let sending = session.sending;
        let due = |e: &Epoch| e.drop_at.is_some_and(|at| at <= now) && Some(e.number) != sending;
        for epoch in session.epochs.iter().filter(|e| due(e)) {
            let epoch = epoch.number;
            context.out.push(Output::Session(SessionOp::DropEpoch {
                session: index,
                epoch,
            }));
        }
        session.epochs.retain(|e| !due(e));
        for epoch in &mut session.epochs {
            if Some(epoch.number) == sending {
                epoch.drop_at = None;
            }
        }
    }

    /// Repeats signs of life until they are answered; a peer that never answers has lost the session.
    pub(super) fn tend_confirm(
        &mut self,
        context: &mut Context<'_>,
        _mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let (Some(sending), true) = (session.sending, session.ingress.is_some()) else {
            return;
        };
        if session.confirm.is_none() && now.since(session.last_heard) >= KEEPALIVE {
            session.confirm = Some(Confirm {
                epoch: sending,
                due: now,
                wait: Micros::from_secs(1),
                attempts: 0,
            });
        }
        let Some(confirm) = session.confirm.as_mut().filter(|c| c.due <= now) else {
            return;
        };
        if confirm.attempts >= ATTEMPTS {
            session.confirm = None;
            session.last_heard = now;
            context.out.count("sessions_unanswered");
            self.on_peer_forgot(context, index);
            return;
        }
        confirm.attempts += 1;
        confirm.due = now + confirm.wait;
        confirm.wait = Micros((confirm.wait.0 * 2).min(2_000_000));
        let epoch = confirm.epoch;
        self.send(context, index, &SessionMessage::Confirm, Some(epoch));
    }

    /// The peer shows no sign of knowing the session: it is opened anew, over a new LSP.
    pub(super) fn on_peer_forgot(&mut self, context: &mut Context<'_>, index: SessionIndex) {
        let now = context.now;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if session.opening() || session.must_open {
            return;
        }
        session.must_open = true;
        session.rekey = None;
        session.next_try = now;
        let old: Vec<_> = session
            .primary
            .take()
            .into_iter()
            .chain(session.standby.take())
            .collect();
        session
            .retiring
            .extend(old.into_iter().map(|id| (id, now + Micros::from_secs(30))));
    }

    pub(super) fn tend_rekey(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
    ) {
        let _ = mesh;
        let now = context.now;
        let timers = &context.config.timers;
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(sending) = session.sending else {
            return;
        };
        if session.ingress.is_none() || session.must_open {
            return;
        }
        if let Some(rekey) = &mut session.rekey {
            if rekey.due > now {
                return;
            }
            if rekey.attempts >= ATTEMPTS {
                session.rekey = None;
                session.epochs.iter_mut().for_each(|e| e.since = now);
                context.out.count("session_rekeys_unanswered");
                self.on_peer_forgot(context, index);
                return;
            }
            rekey.attempts += 1;
            rekey.due = now + Micros(timers.signalling_retry.0 << rekey.attempts.min(4));
            let noise = rekey.first.clone();
            self.send(context, index, &SessionMessage::RekeyFirst { noise }, None);
            return;
        }
        let Some(epoch) = session.epoch(sending) else {
            return;
        };
        let worn = epoch.sent > 1 << 32;
        if session.confirm.is_some()
            || !(worn || now.since(epoch.since) >= rekey_age(epoch, timers))
        {
            return;
        }
        let next = session.free_epoch(epoch.number.wrapping_add(1));
        let (peer, own_id) = (session.peer, session.own_id);
        let Ok((state, first)) = handshake::first(context.config, context.rng, &peer, own_id, next)
        else {
            return;
        };
        let due = now + timers.signalling_retry;
        if let Some(session) = self.sessions.get_mut(&index) {
            session.rekey = Some(Rekey {
                state,
                first: first.clone(),
                due,
                attempts: 1,
            });
        }
        self.send(
            context,
            index,
            &SessionMessage::RekeyFirst { noise: first },
            None,
        );
    }

    pub(super) fn on_rekey_first(
        &mut self,
        context: &mut Context<'_>,
        index: SessionIndex,
        epoch: u8,
        noise: &[u8],
    ) {
        let own = context.config.identity.id();
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        if let Some((first, second)) = &session.rekey_answer
            && first == noise
        {
            let noise = second.clone();
            self.send(
                context,
                index,
                &SessionMessage::RekeySecond { noise },
                Some(epoch),
            );
            return;
        }
        // Both at once: the smaller id's goes on.
        if session.rekey.is_some() && own < session.peer {
            context.out.count("session_rekey_crossed");
            return;
        }
        let hash = message_hash(noise);
        if self.firsts.contains(&hash) {
            context.out.count("session_replayed");
            return;
        }
        let offer = handshake::read_first(context.config, context.rng, noise);
        let Some(offer) = offer.ok().filter(|offer| offer.peer == session.peer) else {
            context.out.count("session_not_authentic");
            return;
        };
        self.firsts.insert(hash);
        session.rekey = None;
        let next = session.free_epoch(offer.epoch);
        let Ok((agreed, second)) = offer.answer(context.config, session.own_id, next) else {
            return;
        };
        session.rekey_answer = Some((noise.to_vec(), second.clone()));
        self.add_epoch(context, index, agreed, false, false);
        self.send(
            context,
            index,
            &SessionMessage::RekeySecond { noise: second },
            Some(epoch),
        );
    }

    pub(super) fn on_rekey_second(
        &mut self,
        context: &mut Context<'_>,
        mesh: &mut Mesh<'_>,
        index: SessionIndex,
        noise: &[u8],
    ) {
        let Some(session) = self.sessions.get_mut(&index) else {
            return;
        };
        let Some(rekey) = session.rekey.take() else {
            return;
        };
        match handshake::read_second(context.config, rekey.state, noise) {
            Ok(agreed) => {
                self.add_epoch(context, index, agreed, true, false);
                self.tend_confirm(context, mesh, index);
            }
            Err(_) => context.out.count("session_not_authentic"),
        }
    }
}

impl super::table::Session {
    /// The suggested epoch, or the next that is not in use.
    pub(super) fn free_epoch(&self, suggested: u8) -> u8 {
        (0..=u8::MAX)
            .map(|i| suggested.wrapping_add(i))
            .find(|e| self.epoch(*e).is_none())
            .unwrap_or(suggested)
    }
}
