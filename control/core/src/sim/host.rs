//! A simulated host: a real [`Node`] with forwarding tables, sessions and sockets around it, as `weftd` is around it in
//! production.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::{IpAddr, Ipv6Addr},
};

use weft_abi::{
    DropReason, Fate, Kind, LINK_LEN, Label, LabelEntry, Outcome, SliceFrame, Tables as _, Verdict,
    select, stamp, switch,
};

use super::{
    rng::Rng,
    session::{OpenError, Sessions},
    tables::{HeapTables, encapsulation},
    underlay::udp,
};
use crate::{
    identity::NodeId,
    io::{
        Answer, Command, CommandId, DataplaneOp, Exception, ForwardMode, Input, LspIngress, Micros,
        Output, Randomness, RouteEntry, SessionIndex, SessionOp, UnderlayAddress, UnderlayPath,
    },
    node::{Config, Node},
};

/// Room for headers that grow on the way.
const HEADROOM: usize = 64;
/// Log lines kept for people.
const MAX_LOG: usize = 400;
/// Exceptions handed up per second, as the shell bounds them.
const MAX_EXCEPTIONS_PER_S: u32 = 100;
/// Frames that wait for a busy daemon, as a socket's buffer bounds them.
const MAX_WAITING: usize = 1_000;
/// Least time between two snapshots.
const SNAPSHOT_INTERVAL: u64 = 1_000_000;

/// A simulated node's randomness.
struct Seeded(Rng);

impl Randomness for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

/// How a host stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The daemon is killed; the kernel goes on forwarding.
    KillDaemon,
    /// The machine dies; its tables are gone, its disk is not.
    PowerOff,
}

/// A packet that came out of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Delivered {
    /// When.
    pub at: Micros,
    /// Who sent it, by the session.
    pub from: NodeId,
    /// The number it was sent with.
    pub number: u64,
}

/// What became of a packet that was to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// On its way.
    Yes,
    /// No session yet; it is being made.
    NoSession,
    /// A session without an LSP.
    NoLsp,
    /// Stopped at this host for a reason.
    Dropped(DropReason),
    /// The daemon is down.
    Down,
}

/// The host.
pub struct Host {
    /// Its node's id.
    pub id: NodeId,
    /// Its node's overlay address.
    pub overlay: Ipv6Addr,
    /// The node, while the daemon runs.
    pub node: Option<Node>,
    /// Forwarding tables.
    pub tables: HeapTables,
    /// Sessions.
    pub sessions: Sessions,
    /// What it was configured with.
    pub config: Config,
    /// Addresses with their interfaces.
    pub addresses: Vec<UnderlayAddress>,
    /// The newest set of routes.
    pub routes: Vec<RouteEntry>,
    /// What came out of sessions.
    pub inbox: Vec<Delivered>,
    /// Answers to commands.
    pub answers: Vec<(Micros, CommandId, Answer)>,
    /// Verdicts, drops and losses by name.
    pub counts: BTreeMap<&'static str, u64>,
    /// The newest log lines.
    pub log: VecDeque<(Micros, String)>,
    /// Frames to carry.
    pub(super) out: Vec<Vec<u8>>,
    /// For which time a wake-up is scheduled.
    pub(super) wake: Option<Micros>,
    /// Time each thing that the node wants done takes, as where the daemon is held up between them. What arrives for
    /// the daemon meanwhile waits; packets go on through the tables as they stand.
    pub pace: Micros,
    /// What the node wants done and is not done yet.
    pub(super) undone: VecDeque<Output>,
    /// For which time the next of them is scheduled.
    pub(super) step: Option<Micros>,
    waiting: VecDeque<(Outcome, Vec<u8>)>,
    stored: Option<Vec<u8>>,
    stored_at: Micros,
    dirty: bool,
    active: BTreeSet<SessionIndex>,
    exceptions: u32,
    rng: Rng,
    by_address: BTreeMap<Ipv6Addr, SessionIndex>,
}

impl Host {
    /// A host whose daemon does not run yet.
    #[must_use]
    pub fn new(config: Config, addresses: Vec<UnderlayAddress>, mut rng: Rng) -> Self {
        let id = config.identity.id();
        let local: Vec<IpAddr> = addresses.iter().map(|a| a.address).collect();
        let key = config.network.handshake_tag_key();
        Self {
            id,
            overlay: id.overlay_address(&config.network.network_id()),
            node: None,
            tables: HeapTables::new(config.port, &key, rng.next_u64(), &local),
            sessions: Sessions::default(),
            config,
            addresses,
            routes: Vec::new(),
            inbox: Vec::new(),
            answers: Vec::new(),
            counts: BTreeMap::new(),
            log: VecDeque::new(),
            out: Vec::new(),
            wake: None,
            pace: Micros(0),
            undone: VecDeque::new(),
            step: None,
            waiting: VecDeque::new(),
            stored: None,
            stored_at: Micros(0),
            dirty: false,
            active: BTreeSet::new(),
            exceptions: 0,
            rng,
            by_address: BTreeMap::new(),
        }
    }

    /// Starts the daemon, from the stored snapshot if it is to be kept and there is one.
    pub fn start(&mut self, now: Micros, keep_snapshot: bool) {
        assert!(self.node.is_none(), "it runs already");
        let rng = Box::new(Seeded(self.rng.fork()));
        let snapshot = self.stored.take().filter(|_| keep_snapshot);
        self.forget_sessions();
        let mut node = match &snapshot {
            Some(snapshot) => {
                self.tables.begin_restore();
                Node::resume(self.config.clone(), snapshot, rng, now)
                    .expect("its own snapshot is good")
            }
            None => {
                self.tables.clear();
                Node::new(self.config.clone(), rng, now).expect("the configuration is good")
            }
        };
        // Stored before the first output is looked at: it reserves counters.
        self.stored = Some(node.snapshot());
        self.stored_at = now;
        self.node = Some(node);
        let addresses = self.addresses.clone();
        self.input(
            now,
            Input::Underlay {
                addresses: &addresses,
            },
        );
    }

    /// Stops without a word.
    pub fn stop(&mut self, how: Stop) {
        self.node = None;
        self.forget_sessions();
        if how == Stop::PowerOff {
            self.tables.clear();
        }
    }

    fn forget_sessions(&mut self) {
        self.sessions = Sessions::default();
        self.by_address.clear();
        self.active.clear();
        self.wake = None;
        self.undone.clear();
        self.waiting.clear();
        self.step = None;
    }

    /// Gives the node an input and does what it wants done.
    pub fn input(&mut self, now: Micros, input: Input<'_>) {
        if let Some(node) = &mut self.node {
            node.handle_input(now, input);
            self.drain(now);
        }
    }

    /// A request as from the API.
    pub fn command(&mut self, now: Micros, id: u64, command: Command) {
        self.input(
            now,
            Input::Command {
                id: CommandId(id),
                command,
            },
        );
    }

    /// Lets the node do what is due.
    pub fn timeout(&mut self, now: Micros) {
        if let Some(node) = &mut self.node {
            node.handle_timeout(now);
            self.drain(now);
        }
    }

    /// What the shell does once a second.
    pub fn second(&mut self, now: Micros) {
        self.exceptions = 0;
        for (slot, highest_seq_sum, received, bytes) in self.tables.slot_counters() {
            self.input(
                now,
                Input::SlotCounters {
                    slot,
                    highest_seq_sum,
                    received,
                    bytes,
                },
            );
        }
        for session in std::mem::take(&mut self.active) {
            if self.sessions.get(session).is_some() {
                self.input(now, Input::SessionActive { session });
            }
        }
        self.store_if_due(now);
    }

    fn store_if_due(&mut self, now: Micros) {
        if self.dirty
            && now.0 >= self.stored_at.0 + SNAPSHOT_INTERVAL
            && let Some(node) = &mut self.node
        {
            self.stored = Some(node.snapshot());
            self.stored_at = now;
            self.dirty = false;
        }
    }

    fn drain(&mut self, now: Micros) {
        let outputs = std::iter::from_fn(|| self.node.as_mut().and_then(Node::poll_output));
        self.undone.extend(outputs);
        while self.pace == Micros(0) && self.do_next(now) {}
    }

    /// Does the next of what is to be done. False where nothing is left.
    fn do_next(&mut self, now: Micros) -> bool {
        let Some(output) = self.undone.pop_front() else {
            return false;
        };
        if let Some((next_hop, mtu)) = self.perform(now, output)
            && let Some(node) = &mut self.node
        {
            let resolved = true;
            node.handle_input(
                now,
                Input::NextHopState {
                    next_hop,
                    resolved,
                    mtu,
                },
            );
            let outputs = std::iter::from_fn(|| node.poll_output());
            self.undone.extend(outputs);
        }
        true
    }

    /// One step of a daemon that takes its time. It looks at what came when all is done.
    pub(super) fn step(&mut self, now: Micros) {
        self.do_next(now);
        while self.undone.is_empty()
            && let Some((outcome, frame)) = self.waiting.pop_front()
        {
            self.handle(now, outcome, &frame);
        }
    }

    /// Does one thing. Gives a next hop that is resolved by it, with its MTU.
    fn perform(&mut self, now: Micros, output: Output) -> Option<(weft_abi::NextHopIndex, u16)> {
        match output {
            Output::SendDatagram { path, datagram } => self.emit(&path, &datagram),
            Output::SendLink {
                next_hop,
                kind,
                body,
            } => {
                assert!(
                    matches!(kind, Kind::Control | Kind::Probe),
                    "{kind:?} on a link"
                );
                let mut payload = vec![0; LINK_LEN];
                payload.extend_from_slice(&body);
                match stamp(&self.tables, next_hop, 0, kind, &mut payload) {
                    Ok(_) => {
                        let path = self.tables.path_of(next_hop).expect("stamped with it");
                        self.emit(&path, &payload);
                    }
                    Err(reason) => self.count(reason.name()),
                }
            }
            Output::SendSession {
                session,
                ingress,
                ttl,
                counter,
                message,
            } => {
                let ingress =
                    ingress.or_else(|| self.sessions.get(session).and_then(|s| s.ingress));
                match (ingress, self.sessions.seal(session, counter, &message)) {
                    (Some(ingress), Some(sealed)) => {
                        if let Err(reason) = self.labelled(&ingress, 0, ttl, counter, &sealed) {
                            self.count(reason.name());
                        }
                    }
                    (None, _) => self.count("session_message_no_lsp"),
                    (_, None) => self.count("session_message_no_keys"),
                }
            }
            Output::Dataplane(op) => {
                self.tables.apply(&op);
                if let DataplaneOp::AddNextHop { index, path, .. } = op {
                    let local = self.addresses.iter().find(|a| a.address == path.local.ip());
                    return Some((index, local.map_or(1280, |a| a.mtu)));
                }
            }
            Output::Session(op) => {
                match &op {
                    SessionOp::Install {
                        session, address, ..
                    } => {
                        self.by_address.insert(*address, *session);
                    }
                    SessionOp::Remove { session } => {
                        self.by_address.retain(|_, index| index != session)
                    }
                    _ => {}
                }
                self.sessions.apply(op);
            }
            Output::Routes(routes) => self.routes = routes,
            Output::Answer { id, answer } => self.answers.push((now, id, answer)),
            Output::Event(event) => {
                if self.log.len() >= MAX_LOG {
                    self.log.pop_front();
                }
                self.log.push_back((now, event.to_string()));
            }
            Output::StateChanged => {
                self.dirty = true;
                self.store_if_due(now);
            }
        }
        None
    }

    fn count(&mut self, name: &'static str) {
        *self.counts.entry(name).or_default() += 1;
    }

    /// Puts a datagram into a frame.
    fn emit(&mut self, path: &UnderlayPath, payload: &[u8]) {
        let headers = encapsulation(path, 0);
        let v6 = headers.family == 6;
        let at = if v6 { 62 } else { 42 };
        let mut frame = headers.headers[..at].to_vec();
        let udp_len = (payload.len() + 8) as u16;
        frame[at - 4..at - 2].copy_from_slice(&udp_len.to_be_bytes());
        if v6 {
            frame[18..20].copy_from_slice(&udp_len.to_be_bytes());
        } else {
            frame[16..18].copy_from_slice(&(udp_len + 20).to_be_bytes());
        }
        frame.extend_from_slice(payload);
        self.out.push(frame);
    }

    /// Sends a sealed session packet on an LSP.
    fn labelled(
        &mut self,
        ingress: &LspIngress,
        lane: u8,
        ttl: u8,
        counter: u64,
        sealed: &[u8],
    ) -> Result<(), DropReason> {
        let mut payload = vec![0; LINK_LEN];
        payload.extend_from_slice(&LabelEntry::new(ingress.label, 0, true, ttl).to_bytes());
        payload.extend_from_slice(&counter.to_be_bytes());
        payload.extend_from_slice(sealed);
        let next_hop = select(&self.tables, ingress.group, lane).ok_or(DropReason::NoNextHop)?;
        let next_hop = weft_abi::NextHopIndex(next_hop);
        stamp(&self.tables, next_hop, lane, Kind::Labelled, &mut payload)?;
        let path = self.tables.path_of(next_hop).ok_or(DropReason::NoNextHop)?;
        self.emit(&path, &payload);
        Ok(())
    }

    /// Sends one packet of traffic to an overlay address, as if it came from the TUN device.
    pub fn send(&mut self, now: Micros, to: Ipv6Addr, number: u64) -> Sent {
        if self.node.is_none() {
            return Sent::Down;
        }
        let Some(session) = self.by_address.get(&to).copied() else {
            self.input(
                now,
                Input::NoSession {
                    destination: to.into(),
                },
            );
            return Sent::NoSession;
        };
        self.active.insert(session);
        let Some(ingress) = self.sessions.get(session).and_then(|s| s.ingress) else {
            return Sent::NoLsp;
        };
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 59, 64];
        packet.extend_from_slice(&self.overlay.octets());
        packet.extend_from_slice(&to.octets());
        packet.extend_from_slice(&number.to_be_bytes());
        let Some((counter, sealed)) = self.sessions.seal_traffic(session, &packet) else {
            return Sent::NoLsp;
        };
        match self.labelled(&ingress, (number & 15) as u8, ingress.ttl, counter, &sealed) {
            Ok(()) => Sent::Yes,
            Err(reason) => {
                self.count(reason.name());
                Sent::Dropped(reason)
            }
        }
    }

    /// A frame arrives from the underlay.
    pub fn receive(&mut self, now: Micros, frame: &[u8]) {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend_from_slice(frame);
        let mut view = SliceFrame::new(&mut buffer, HEADROOM);
        let outcome = switch(&self.tables, &mut view);
        let frame = view.frame().to_vec();
        self.count(outcome.name());
        match outcome.fate {
            Fate::Out => self.out.push(frame),
            Fate::Drop => {}
            // A worker takes what is delivered; the rest is for the daemon's one thread.
            Fate::Up | Fate::HandUp
                if self.undone.is_empty() || outcome.verdict == Verdict::Deliver =>
            {
                self.handle(now, outcome, &frame)
            }
            Fate::Up | Fate::HandUp if self.waiting.len() < MAX_WAITING => {
                self.waiting.push_back((outcome, frame))
            }
            Fate::Up | Fate::HandUp => self.count("daemon_too_slow"),
        }
    }

    fn handle(&mut self, now: Micros, outcome: Outcome, frame: &[u8]) {
        match outcome.fate {
            Fate::HandUp => self.hand_up(now, outcome.reason, frame),
            _ => self.up(now, outcome, frame),
        }
    }

    fn up(&mut self, now: Micros, outcome: Outcome, frame: &[u8]) {
        let Some((from, to, at)) = udp(frame) else {
            return;
        };
        let path = UnderlayPath {
            local: to,
            remote: from,
        };
        let payload = &frame[at..];
        let slot = weft_abi::Slot(u16::from_be_bytes([payload[2], payload[3]]));
        match outcome.verdict {
            Verdict::Handshake => self.input(
                now,
                Input::Handshake {
                    path,
                    datagram: payload,
                },
            ),
            Verdict::Control => self.input(
                now,
                Input::Control {
                    slot,
                    path,
                    body: &payload[LINK_LEN..],
                },
            ),
            Verdict::ProbeReply => {
                let body = *payload[LINK_LEN..]
                    .first_chunk()
                    .expect("the fixed part was there");
                self.input(now, Input::ProbeEcho { slot, path, body });
            }
            Verdict::Deliver => self.deliver(now, payload),
            verdict => self.count(if verdict == Verdict::Pass {
                "passed"
            } else {
                "unexpected_verdict"
            }),
        }
    }

    fn deliver(&mut self, now: Micros, payload: &[u8]) {
        let Some(entry) = payload
            .get(16..)
            .and_then(|rest| rest.first_chunk())
            .copied()
        else {
            return;
        };
        let Some(counter) = payload
            .get(20..)
            .and_then(|rest| rest.first_chunk())
            .copied()
        else {
            return;
        };
        let (label, counter) = (
            LabelEntry::from_bytes(entry).label(),
            u64::from_be_bytes(counter),
        );
        match self.sessions.open(label, counter, &payload[28..]) {
            Ok((session, plain)) => match plain.first().map(|byte| byte >> 4) {
                Some(0) => self.input(
                    now,
                    Input::SessionMessage {
                        session,
                        label,
                        counter,
                        message: &plain,
                    },
                ),
                Some(6) if plain.len() == 48 => {
                    self.active.insert(session);
                    let number = plain[40..]
                        .first_chunk()
                        .copied()
                        .map_or(0, u64::from_be_bytes);
                    let from = self.sessions.get(session).expect("it was just used").peer;
                    self.inbox.push(Delivered {
                        at: now,
                        from,
                        number,
                    });
                }
                _ => self.count("session_bad_plaintext"),
            },
            Err(error) => self.count(match error {
                OpenError::NoSession => "session_unknown_label",
                OpenError::NoEpoch => "session_no_epoch",
                OpenError::BadTag => "session_bad_tag",
                OpenError::Replay => "session_replay",
            }),
        }
    }

    fn hand_up(&mut self, now: Micros, reason: DropReason, frame: &[u8]) {
        self.exceptions += 1;
        if self.exceptions > MAX_EXCEPTIONS_PER_S {
            return self.count("exceptions_limited");
        }
        let Some((_, _, at)) = udp(frame) else { return };
        let payload = &frame[at..];
        let (Some(entry), Some(counter)) =
            (payload[16..].first_chunk(), payload[20..].first_chunk())
        else {
            return;
        };
        let label = LabelEntry::from_bytes(*entry).label();
        let exception = match reason {
            DropReason::TtlExpired => Exception::TtlExpired {
                mode: ForwardMode::UserSpace,
            },
            DropReason::TooBig => Exception::TooBig {
                mtu: self.mtu_after(label),
            },
            DropReason::UnknownLabel => Exception::UnknownLabel,
            _ => Exception::NoNextHop,
        };
        let slot = weft_abi::Slot(u16::from_be_bytes([payload[2], payload[3]]));
        self.input(
            now,
            Input::Exception {
                slot,
                label,
                counter: u64::from_be_bytes(*counter),
                exception,
            },
        );
    }

    fn mtu_after(&self, label: Label) -> u16 {
        let next_hop = select(&self.tables, self.tables.lfib(label).group(), 0);
        let hop = next_hop.and_then(|index| self.tables.next_hop(index));
        hop.and_then(|hop| hop.encapsulation())
            .map_or(0, |encapsulation| encapsulation.egress().1)
    }

    /// Changes the host's addresses, as when an interface comes or goes.
    pub fn set_addresses(&mut self, now: Micros, addresses: Vec<UnderlayAddress>) {
        let local: Vec<IpAddr> = addresses.iter().map(|a| a.address).collect();
        self.tables.set_local(&local);
        self.addresses.clone_from(&addresses);
        self.input(
            now,
            Input::Underlay {
                addresses: &addresses,
            },
        );
    }

    /// Whether an address is one of this host's.
    #[must_use]
    pub fn has(&self, ip: IpAddr) -> bool {
        self.addresses.iter().any(|a| a.address == ip && a.up)
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::{GroupIndex, LfibEntry, NextHopIndex, Slot, TagKey};

    use super::*;
    use crate::{
        identity::{Identity, NetworkSecret},
        session::{Cipher, SessionKeys},
        sim::{underlay::LinkModel, world::World},
    };

    fn ip(node: usize, v6: bool) -> IpAddr {
        let text = if v6 {
            format!("2001:db8::{}", node + 1)
        } else {
            format!("10.0.0.{}", node + 1)
        };
        text.parse().expect("an address")
    }

    /// Slots and next hops of a one-way link, keyed alike at both ends.
    fn join(world: &mut World, from: usize, to: usize, v6: bool) -> GroupIndex {
        let path = |local: usize, remote: usize| UnderlayPath {
            local: (ip(local, v6), 7117).into(),
            remote: (ip(remote, v6), 7117).into(),
        };
        let (key, slot) = (TagKey([from as u8 + 1; 16]), Slot(from as u16 + 1));
        let add = DataplaneOp::AddSlot {
            slot,
            key,
            path: path(to, from),
            echo: None,
        };
        world.hosts[to].tables.apply(&add);
        let index = NextHopIndex(1);
        let seq_from = NextHopIndex(0);
        let add = DataplaneOp::AddNextHop {
            index,
            path: path(from, to),
            slot,
            key,
            mtu: 1500,
            seq_from,
        };
        world.hosts[from].tables.apply(&add);
        let group = GroupIndex(1);
        let buckets = [(index, NextHopIndex(0)); 16];
        world.hosts[from]
            .tables
            .apply(&DataplaneOp::SetGroup { group, buckets });
        world
            .underlay
            .set(ip(from, v6), ip(to, v6), LinkModel::default());
        group
    }

    /// Labelled packets of a session pass a switch between IPv4 and IPv6 and open at the far end, once each.
    #[test]
    fn packets_are_switched_and_opened() {
        let mut world = World::new(1);
        let secret = NetworkSecret::from_bytes([7; 32]);
        for node in 0..3u8 {
            let config = Config::new(Identity::from_secret(&[node; 32]), secret.clone());
            let address = |v6| UnderlayAddress {
                address: ip(node.into(), v6),
                interface: "eth0".into(),
                prefix_len: 24,
                mtu: 1500,
                up: true,
                mode: ForwardMode::UserSpace,
            };
            world.add(config, vec![address(false), address(true)]);
        }
        let first = join(&mut world, 0, 1, false);
        let second = join(&mut world, 1, 2, true);
        let (at_one, at_two) = (Label(100), Label(200));
        let swap = DataplaneOp::SetLabel {
            label: at_one,
            entry: LfibEntry::swap(at_two, second),
        };
        world.hosts[1].tables.apply(&swap);
        world.hosts[2].tables.apply(&DataplaneOp::SetLabel {
            label: at_two,
            entry: LfibEntry::DELIVER,
        });
        let session = SessionIndex(5);
        for (node, peer) in [(0, 2), (2, 0)] {
            let (peer, address) = (world.hosts[peer].id, world.hosts[peer].overlay);
            let (a, b) = ([3; 32], [4; 32]);
            let (tx, rx) = if node == 0 { (a, b) } else { (b, a) };
            let keys = SessionKeys {
                cipher: Cipher::Aes256Gcm,
                tx,
                rx,
            };
            let sessions = &mut world.hosts[node].sessions;
            sessions.apply(SessionOp::Install {
                session,
                peer,
                address,
            });
            sessions.apply(SessionOp::AddEpoch {
                session,
                epoch: 9,
                keys,
            });
            sessions.apply(SessionOp::UseEpoch { session, epoch: 9 });
        }
        world.hosts[2].sessions.apply(SessionOp::SetDelivery {
            session,
            labels: vec![at_two],
        });
        let ingress = LspIngress {
            group: first,
            label: at_one,
            inner_mtu: 1300,
            ttl: 64,
        };
        for number in 0..50u64 {
            let mut packet = vec![0x60; 40];
            packet.extend_from_slice(&number.to_be_bytes());
            world.with(0, |host, _| {
                let (counter, sealed) = host
                    .sessions
                    .seal_traffic(session, &packet)
                    .expect("keys are there");
                host.labelled(&ingress, number as u8 & 15, ingress.ttl, counter, &sealed)
                    .expect("a next hop is up");
            });
        }
        world.run_ms(50);
        let mut numbers: Vec<_> = world.hosts[2].inbox.iter().map(|d| d.number).collect();
        numbers.sort();
        assert_eq!(numbers, (0..50).collect::<Vec<_>>());
        assert!(
            world.hosts[2]
                .inbox
                .iter()
                .all(|d| d.from == world.hosts[0].id)
        );
        assert_eq!(
            (
                world.hosts[1].counts["swap"],
                world.hosts[2].counts["deliver"]
            ),
            (50, 50)
        );
        // A captured frame comes again: the window at the hop refuses it.
        world.with(0, |host, _| {
            let (counter, sealed) = host
                .sessions
                .seal_traffic(session, &[0x60; 48])
                .expect("keys are there");
            host.labelled(&ingress, 3, 1, counter, &sealed)
                .expect("a next hop is up");
            let again = host.out.clone();
            host.out.extend(again);
        });
        world.run_ms(50);
        assert_eq!(
            (
                world.hosts[1].counts["ttl_expired"],
                world.hosts[1].counts["replay"]
            ),
            (1, 1)
        );
        let counters = world.hosts[1].tables.slot_counters();
        assert_eq!(
            counters
                .iter()
                .map(|(_, _, received, _)| received)
                .sum::<u64>(),
            51
        );
    }
}
