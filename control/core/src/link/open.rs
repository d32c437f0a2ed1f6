//! Opening links: the handshake as initiator and as responder, over datagrams, link control (rekey) and the mesh.

use std::fmt;

use snow::HandshakeState;
use weft_abi::Slot;
use zeroize::Zeroizing;

use super::{
    LinkEvent, Links, Timer,
    agree::Agreed,
    guard::{cookie_mac, message_hash},
    handshake::{HandshakeMessage, Info, LinkKeys, claimed_node, first_payload},
    state::{LinkKey, MIN_MTU, Third},
};
use crate::{
    identity::NodeId,
    io::{Micros, Output, UnderlayPath},
    message::{Message, RoutedBody},
    node::{Config, Event, context::Context},
    noise::{self, NoiseFailed, Pattern, Setup},
};

/// A handshake somebody else began is forgotten after this.
const HALF_OPEN: Micros = Micros::from_secs(10);
/// Retransmissions of one first message before a fresh one is made.
const FIRST_ATTEMPTS: u32 = 5;
/// First messages of the other side that our own, called at the same time, is held against before it gives way.
const CROSSED: u8 = 2;
/// Copies of a second message sent for copies of the same first one.
const SECOND_COPIES: u32 = 8;
/// Third messages that fail before a half-open handshake is left to expire: each costs two agreements on keys.
const MAX_FORGERIES: u32 = 1_000;
/// A link whose third message stays without a sign is given up after this.
pub(super) const UNCONFIRMED: Micros = Micros::from_secs(10);
/// Least time between two rekeys a neighbour may begin on one link.
const REKEY_PAUSE: Micros = Micros::from_secs(1);
const PROLOGUE: &[u8] = b"weft link 1";

/// The way a handshake message came or goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// In a datagram between these addresses.
    Datagram(UnderlayPath),
    /// In the control channel of an existing link (rekey).
    Link(LinkKey),
    /// Over the mesh.
    Routed,
}

/// A handshake begun here that awaits its second message.
pub(super) struct Initiating {
    via: Via,
    key: LinkKey,
    state: Box<HandshakeState>,
    noise: Vec<u8>,
    mac: [u8; 16],
    attempts: u32,
    cookies: u32,
    /// First messages of the other side that this one was held against.
    crossed: u8,
    wait: Micros,
    sent: Micros,
}

impl Initiating {
    pub(super) fn via_link(&self) -> Option<LinkKey> {
        if let Via::Link(key) = self.via {
            Some(key)
        } else {
            None
        }
    }

    pub(super) fn is_on(&self, path: &UnderlayPath) -> bool {
        self.via == Via::Datagram(*path)
    }

    fn ephemeral(&self) -> &[u8] {
        &self.noise[..32]
    }
}

impl fmt::Debug for Initiating {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiating")
            .field("via", &self.via)
            .field("attempts", &self.attempts)
            .finish_non_exhaustive()
    }
}

/// A handshake begun by another that awaits its third message.
pub(super) struct Responding {
    hash: [u8; 16],
    via: Via,
    path: UnderlayPath,
    key: LinkKey,
    slot: Slot,
    state: Box<HandshakeState>,
    second: HandshakeMessage,
    claimed: Option<NodeId>,
    copies: u32,
    forgeries: u32,
    replay: Replay,
}

/// What takes a responder to where it awaits the third message. snow does not undo all of a failed read, and a forged
/// third message must not spoil the genuine one.
struct Replay {
    seed: Zeroizing<[u8; 32]>,
    first: Vec<u8>,
    info: Vec<u8>,
}

impl Replay {
    fn respond(&self, config: &Config) -> Result<(HandshakeState, Vec<u8>), NoiseFailed> {
        let (psk, prologue) = (config.network.psk(), prologue(config));
        let mut state = setup(config, &psk, &prologue).responder_from(&self.seed)?;
        noise::read(&mut state, &self.first)?;
        let second = noise::write(&mut state, &self.info)?;
        Ok((state, second))
    }
}

impl Responding {
    pub(super) fn via_link(&self) -> Option<LinkKey> {
        if let Via::Link(key) = self.via {
            Some(key)
        } else {
            None
        }
    }
}

impl fmt::Debug for Responding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responding")
            .field("via", &self.via)
            .field("slot", &self.slot)
            .finish_non_exhaustive()
    }
}

fn setup<'a>(config: &'a Config, psk: &'a [u8; 32], prologue: &'a [u8]) -> Setup<'a> {
    Setup {
        pattern: Pattern::Link,
        prologue,
        identity: Some(&config.identity),
        remote: None,
        psk: Some(psk),
    }
}

fn prologue(config: &Config) -> Vec<u8> {
    [PROLOGUE, &config.network.network_id().0].concat()
}

impl Links {
    /// A handshake message, in whatever way it came.
    pub(crate) fn handle_handshake(&mut self, context: &mut Context<'_>, via: Via, bytes: &[u8]) {
        if self.closing {
            return;
        }
        match HandshakeMessage::decode(bytes) {
            Err(_) => context.out.count("handshake_malformed"),
            Ok(HandshakeMessage::First { sender, mac, noise }) => {
                self.on_first(context, via, sender, &mac, &noise)
            }
            Ok(HandshakeMessage::Second {
                sender,
                receiver,
                noise,
            }) => {
                self.on_second(context, via, sender, receiver, &noise);
            }
            Ok(HandshakeMessage::Third {
                receiver, noise, ..
            }) => self.on_third(context, receiver, &noise),
            Ok(HandshakeMessage::Cookie {
                receiver,
                nonce,
                sealed,
            }) => {
                self.on_cookie(context, receiver, nonce, &sealed);
            }
        }
    }

    fn unused_index(&self, context: &mut Context<'_>) -> u32 {
        loop {
            let index = context.random_u32();
            if index != 0
                && !self.initiating.contains_key(&index)
                && !self.responding.contains_key(&index)
            {
                return index;
            }
        }
    }

    fn unused_key(&self, context: &mut Context<'_>) -> LinkKey {
        loop {
            let key = LinkKey(context.random_u32());
            if key.0 != 0 && !self.links.contains_key(&key) {
                return key;
            }
        }
    }

    /// Begins a handshake, if none is under way there.
    pub(super) fn initiate(&mut self, context: &mut Context<'_>, via: Via) {
        if self.closing || self.initiating.values().any(|i| i.via == via) {
            return;
        }
        let (psk, prologue) = (context.config.network.psk(), prologue(context.config));
        let config = context.config;
        let Ok(mut state) = setup(config, &psk, &prologue).initiator(context.rng) else {
            return;
        };
        let Ok(noise) = noise::write(&mut state, &first_payload(&config.identity.id())) else {
            return;
        };
        let index = self.unused_index(context);
        let key = match via {
            Via::Link(key) => key,
            _ => self.unused_key(context),
        };
        let wait = config.timers.handshake_retry;
        let state = Box::new(state);
        self.initiating.insert(
            index,
            Initiating {
                via,
                key,
                state,
                noise,
                mac: [0; 16],
                attempts: 0,
                cookies: 0,
                crossed: 0,
                wait,
                sent: Micros(0),
            },
        );
        self.send_first(context, index);
    }

    fn send_first(&mut self, context: &mut Context<'_>, index: u32) {
        let via = self.initiating.get(&index).map(|i| i.via);
        let longest = match via {
            Some(Via::Datagram(path)) => self.longest_wait(context, &path),
            _ => context.config.timers.handshake_retry_max,
        };
        let Some(initiating) = self.initiating.get_mut(&index) else {
            return;
        };
        initiating.attempts += 1;
        initiating.sent = context.now;
        let message = HandshakeMessage::First {
            sender: index,
            mac: initiating.mac,
            noise: initiating.noise.clone(),
        };
        let (via, wait) = (initiating.via, initiating.wait);
        initiating.wait = Micros(wait.0 * 2).min(longest);
        let wait = context.jittered(wait);
        self.deadlines
            .set(Timer::Initiating(index), context.now + wait);
        context.out.count("handshakes_sent");
        self.send_handshake(context, via, None, &message);
    }

    /// The other side calls, too, and waits for our handshake to go on: it may not have been there yet when the last
    /// message went to it, and the next one could be far off.
    fn repeat_first(&mut self, context: &mut Context<'_>, index: u32) {
        let retry = context.config.timers.handshake_retry;
        let Some(initiating) = self.initiating.get_mut(&index) else {
            return;
        };
        if context.now.since(initiating.sent) >= Micros(retry.0 / 2) {
            initiating.attempts = 0;
            initiating.wait = retry;
            self.send_first(context, index);
        }
    }

    pub(super) fn on_initiating_timer(&mut self, context: &mut Context<'_>, index: u32) {
        let Some(initiating) = self.initiating.get(&index) else {
            return;
        };
        if initiating.attempts < FIRST_ATTEMPTS {
            self.send_first(context, index);
            return;
        }
        let via = initiating.via;
        self.initiating.remove(&index);
        if let Via::Datagram(path) = via
            && let Some(dial) = self.dials.get_mut(&path)
        {
            dial.last_failure = Some("no answer to handshakes".into());
        }
        context.out.count("handshakes_unanswered");
    }

    pub(super) fn on_responding_timer(&mut self, context: &mut Context<'_>, index: u32) {
        if let Some(responding) = self.responding.remove(&index) {
            self.by_first.remove(&responding.hash);
            context.forwarding.unreserve_slot(responding.slot);
            context.out.count("handshakes_half_open_expired");
        }
    }

    pub(super) fn send_handshake(
        &mut self,
        context: &mut Context<'_>,
        via: Via,
        routed_to: Option<NodeId>,
        message: &HandshakeMessage,
    ) {
        match via {
            Via::Datagram(path) => {
                let datagram = message.datagram(&context.config.network.handshake_tag_key());
                context.out.push(Output::SendDatagram { path, datagram });
            }
            Via::Link(key) => {
                self.send(context, key, &Message::Handshake(message.encode()));
            }
            Via::Routed => {}
        }
        if let Some(to) = routed_to {
            self.events.push_back(LinkEvent::Routed {
                to,
                body: RoutedBody::Handshake(message.encode()),
            });
        }
    }

    fn on_first(
        &mut self,
        context: &mut Context<'_>,
        via: Via,
        sender: u32,
        mac: &[u8; 16],
        noise: &[u8],
    ) {
        let now = context.now;
        let path = match via {
            Via::Datagram(path) => {
                if !self.guard.admit_source(now, path.remote.ip()) {
                    context.out.count("handshake_rate_limited");
                    return;
                }
                path
            }
            Via::Link(key) => match self.links.get(&key) {
                Some(link) => link.path,
                None => return,
            },
            Via::Routed => {
                context.out.count("handshake_misplaced");
                return;
            }
        };
        let hash = message_hash(noise);
        if let Some(index) = self.by_first.get(&hash).copied() {
            self.repeat_second(context, index);
            return;
        }
        if let Via::Link(key) = via
            && let Some(link) = self.links.get_mut(&key)
        {
            // Each rekey costs slots that must rest: a neighbour in a hurry gets none.
            if now.since(link.last_rekey) < REKEY_PAUSE {
                context.out.count("handshake_rate_limited");
                return;
            }
            link.last_rekey = now;
        }
        if self.guard.seen(&hash) {
            context.out.count("handshake_replayed");
            return;
        }
        let (psk, prologue) = (context.config.network.psk(), prologue(context.config));
        let mut seed = Zeroizing::new([0; 32]);
        context.rng.fill(&mut *seed);
        let Ok(mut state) = setup(context.config, &psk, &prologue).responder_from(&seed) else {
            return;
        };
        let Ok(payload) = noise::read(&mut state, noise) else {
            context.out.count("handshake_not_authentic");
            return;
        };
        if matches!(via, Via::Datagram(_)) && self.guard.under_load(now) {
            let right = self
                .guard
                .cookie_is_right(now, context.rng, path.remote, noise, mac);
            if !right {
                context.out.count("handshake_cookie_asked");
                self.send_cookie(context, path, sender, &hash);
                return;
            }
        }
        let claimed = claimed_node(&payload);
        if claimed == Some(context.config.identity.id()) {
            context.out.count("handshake_with_self");
            return;
        }
        // Both began at once: the smaller ephemeral key's handshake goes on, and both sides can tell which that is.
        // Unless the other side goes on calling: then ours does not reach it, and theirs is all there is.
        let mut back = None;
        let own = self.initiating.iter_mut().find(|(_, i)| i.via == via);
        if let Some((&index, own)) = own {
            if own.ephemeral() >= &noise[..32] {
                self.initiating.remove(&index);
                self.deadlines.clear(&Timer::Initiating(index));
            } else if own.crossed < CROSSED {
                own.crossed += 1;
                context.out.count("handshake_crossed");
                self.repeat_first(context, index);
                return;
            } else {
                context.out.count("handshake_gave_way");
                back = claimed;
            }
        }
        if self.responding.len() >= context.config.limits.half_open {
            context.out.limit(now, "handshakes_half_open_full");
            return;
        }
        if self.links.len() >= context.config.limits.links {
            context.out.limit(now, "links_full");
            return;
        }
        let Some(slot) = context.forwarding.reserve_slot(context.rng) else {
            context.out.limit(now, "slots_full");
            return;
        };
        let key = match via {
            Via::Link(key) => key,
            _ => self.unused_key(context),
        };
        let info = self.own_info(context, key, slot, &path).encode();
        // The responder's ephemeral key: only now is work done for the other side.
        let Ok(second) = noise::write(&mut state, &info) else {
            context.forwarding.unreserve_slot(slot);
            return;
        };
        self.guard.remember(hash);
        let index = self.unused_index(context);
        let second = HandshakeMessage::Second {
            sender: index,
            receiver: sender,
            noise: second,
        };
        self.by_first.insert(hash, index);
        self.responding.insert(
            index,
            Responding {
                hash,
                via,
                path,
                key,
                slot,
                state: Box::new(state),
                second: second.clone(),
                claimed,
                copies: 1,
                forgeries: 0,
                replay: Replay {
                    seed,
                    first: noise.to_vec(),
                    info,
                },
            },
        );
        self.deadlines
            .set(Timer::Responding(index), now + HALF_OPEN);
        self.send_handshake(context, via, back, &second);
    }

    /// The same first message again: the answer was lost, or the way back does not work and the mesh has to do.
    fn repeat_second(&mut self, context: &mut Context<'_>, index: u32) {
        let Some(responding) = self.responding.get_mut(&index) else {
            return;
        };
        if responding.copies >= SECOND_COPIES {
            context.out.count("handshake_repeated_too_often");
            return;
        }
        responding.copies += 1;
        let (via, claimed, second) = (
            responding.via,
            responding.claimed,
            responding.second.clone(),
        );
        self.send_handshake(context, via, claimed, &second);
    }

    fn send_cookie(
        &mut self,
        context: &mut Context<'_>,
        path: UnderlayPath,
        receiver: u32,
        hash: &[u8; 16],
    ) {
        let cookie = self.guard.cookie(context.now, context.rng, path.remote);
        let nonce = context.random_u64();
        let mut sealed = cookie.to_vec();
        noise::seal(
            &context.config.network.cookie_key(),
            nonce,
            hash,
            &mut sealed,
        );
        let Ok(sealed) = <[u8; 32]>::try_from(sealed.as_slice()) else {
            return;
        };
        self.send_handshake(
            context,
            Via::Datagram(path),
            None,
            &HandshakeMessage::Cookie {
                receiver,
                nonce,
                sealed,
            },
        );
    }

    fn on_cookie(
        &mut self,
        context: &mut Context<'_>,
        receiver: u32,
        nonce: u64,
        sealed: &[u8; 32],
    ) {
        let Some(initiating) = self.initiating.get_mut(&receiver) else {
            context.out.count("handshake_unknown");
            return;
        };
        let hash = message_hash(&initiating.noise);
        let cookie = noise::open(&context.config.network.cookie_key(), nonce, &hash, sealed);
        let Some(cookie) = cookie.and_then(|c| <[u8; 16]>::try_from(c.as_slice()).ok()) else {
            context.out.count("handshake_not_authentic");
            return;
        };
        initiating.cookies += 1;
        if initiating.cookies > 3 {
            return;
        }
        initiating.mac = cookie_mac(&cookie, &initiating.noise);
        initiating.attempts = initiating.attempts.saturating_sub(1);
        self.send_first(context, receiver);
    }

    fn on_second(
        &mut self,
        context: &mut Context<'_>,
        via: Via,
        sender: u32,
        receiver: u32,
        noise: &[u8],
    ) {
        let Some(initiating) = self.initiating.get_mut(&receiver) else {
            context.out.count("handshake_unknown");
            return;
        };
        let Ok(payload) = noise::read(&mut initiating.state, noise) else {
            context.out.count("handshake_not_authentic");
            return;
        };
        let Some(mut initiating) = self.initiating.remove(&receiver) else {
            return;
        };
        self.deadlines.clear(&Timer::Initiating(receiver));
        let Some(path) = self.path_of(initiating.via) else {
            return;
        };
        let info = match self.checked_info(
            context,
            &initiating.state,
            &payload,
            initiating.via_link(),
            path,
        ) {
            Some(info) => info,
            None => return,
        };
        if matches!(initiating.via, Via::Datagram(_)) && self.hears(&info.node, &path) {
            // The link that was there came back meanwhile, with all that goes over it.
            context.out.count("handshake_not_needed");
            return;
        }
        let Some(slot) = context.forwarding.reserve_slot(context.rng) else {
            context.out.limit(context.now, "slots_full");
            return;
        };
        let own = self.own_info(context, initiating.key, slot, &path);
        let Ok(third) = noise::write(&mut initiating.state, &own.encode()) else {
            context.forwarding.unreserve_slot(slot);
            return;
        };
        let keys = LinkKeys::new(&noise::split(&mut initiating.state), true);
        let third = HandshakeMessage::Third {
            sender: receiver,
            receiver: sender,
            noise: third,
        };
        let wait = context.config.timers.handshake_retry;
        let repeat = Third {
            message: third.encode(),
            due: context.now + wait,
            wait,
        };
        // The third message goes where the first went: that direction is known to work.
        let agreed = Agreed {
            path,
            key: initiating.key,
            slot,
            info,
            keys,
            third: Some((initiating.via, third, repeat)),
        };
        self.agree(context, agreed, via);
    }

    /// Repeats the third message of an epoch nothing came under yet. True when it is time to give up.
    pub(super) fn repeat_third(
        &mut self,
        context: &mut Context<'_>,
        key: LinkKey,
        number: u64,
    ) -> bool {
        let Some(link) = self.links.get_mut(&key) else {
            return false;
        };
        let (path, only) = (link.path, link.epochs.len() == 1);
        let Some(epoch) = link.epochs.iter_mut().find(|e| e.number == number) else {
            return false;
        };
        let Some(third) = &mut epoch.third else {
            return false;
        };
        if context.now.since(epoch.since) >= UNCONFIRMED {
            return true;
        }
        third.due = context.now + third.wait;
        third.wait = Micros(third.wait.0 * 2);
        let bytes = third.message.clone();
        let Ok(message) = HandshakeMessage::decode(&bytes) else {
            return false;
        };
        let via = if only {
            Via::Datagram(path)
        } else {
            Via::Link(key)
        };
        self.send_handshake(context, via, None, &message);
        false
    }

    fn on_third(&mut self, context: &mut Context<'_>, receiver: u32, noise: &[u8]) {
        let Some(responding) = self.responding.get_mut(&receiver) else {
            context.out.count("handshake_unknown");
            return;
        };
        let Ok(payload) = noise::read(&mut responding.state, noise) else {
            context.out.count("handshake_not_authentic");
            responding.forgeries += 1;
            if responding.forgeries <= MAX_FORGERIES
                && let Ok((state, _)) = responding.replay.respond(context.config)
            {
                *responding.state = state;
            }
            return;
        };
        let Some(mut responding) = self.responding.remove(&receiver) else {
            return;
        };
        self.by_first.remove(&responding.hash);
        self.deadlines.clear(&Timer::Responding(receiver));
        let link = responding.via_link();
        let Some(info) =
            self.checked_info(context, &responding.state, &payload, link, responding.path)
        else {
            context.forwarding.unreserve_slot(responding.slot);
            return;
        };
        let keys = LinkKeys::new(&noise::split(&mut responding.state), false);
        let path = link
            .and_then(|key| self.links.get(&key))
            .map_or(responding.path, |link| link.path);
        let agreed = Agreed {
            path,
            key: responding.key,
            slot: responding.slot,
            info,
            keys,
            third: None,
        };
        self.agree(context, agreed, responding.via);
    }

    fn path_of(&self, via: Via) -> Option<UnderlayPath> {
        match via {
            Via::Datagram(path) => Some(path),
            Via::Link(key) => self.links.get(&key).map(|link| link.path),
            Via::Routed => None,
        }
    }

    fn own_info(
        &self,
        context: &Context<'_>,
        key: LinkKey,
        slot: Slot,
        path: &UnderlayPath,
    ) -> Info {
        let name = context.config.name.clone();
        Info {
            node: context.config.identity.id(),
            link: key.id(),
            slot,
            mtu: self.mtu_at(path),
            name,
        }
    }

    pub(super) fn mtu_at(&self, path: &UnderlayPath) -> u16 {
        let address = self.addresses.iter().find(|a| a.address == path.local.ip());
        address.map_or(MIN_MTU, |a| a.mtu.max(MIN_MTU))
    }

    /// Whether there is a link with the node between these addresses on which it is heard.
    fn hears(&self, node: &NodeId, path: &UnderlayPath) -> bool {
        let mut links = self.links.values();
        links.any(|link| link.peer == *node && link.path == *path && link.in_up)
    }

    /// What the other side says of itself, if its node id belongs to the key it proved to have.
    fn checked_info(
        &mut self,
        context: &mut Context<'_>,
        state: &HandshakeState,
        payload: &[u8],
        link: Option<LinkKey>,
        path: UnderlayPath,
    ) -> Option<Info> {
        let why = match Info::decode(payload) {
            Err(error) => format!("malformed information: {error}"),
            Ok(info) => {
                let proven = info
                    .node
                    .x25519()
                    .is_some_and(|key| state.get_remote_static() == Some(&key[..]));
                let expected = link
                    .and_then(|key| self.links.get(&key))
                    .map(|link| (link.peer, link.peer_link));
                if !proven {
                    "the node id does not belong to the key".to_owned()
                } else if info.node == context.config.identity.id() {
                    "this is the node itself".to_owned()
                } else if expected.is_some_and(|expected| expected != (info.node, info.link)) {
                    "new keys for another link than this".to_owned()
                } else {
                    return Some(info);
                }
            }
        };
        context.out.count("handshake_refused");
        if let Some(dial) = self.dials.get_mut(&path) {
            dial.last_failure = Some(why.clone());
        }
        context.out.event(Event::HandshakeRefused {
            remote: path.remote,
            why,
        });
        None
    }
}
