//! One thread of the data path: its TUN queue, its sockets, its buffers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use weft_abi::{DropReason, Kind, Label, LabelEntry, NextHopIndex, Slot};
use weft_core::io::{Exception, ForwardMode, SessionIndex, UnderlayPath};

use super::{
    counters::{Counter, Counters},
    crypto,
    icmp::{self, Limiter, Problem},
    packet::{Inner, Lanes, combine_ecn},
    session::{CLASS_BIT, EPOCH_SHIFT, OpenError, Table, Target},
    udp::{Address, BUFFER, RxBatch, Sent, Socket, TxBatch},
    window::Refusal,
};
use crate::{
    dataplane::{Received, SharedTables},
    tun::Queue,
};

/// Bytes before the inner packet: link header, label, session counter.
pub const HEAD: usize = 28;
/// Bytes around an inner packet in the datagram.
pub const OVERHEAD: usize = HEAD + crypto::TAG;
/// Packets from the TUN queue before the sockets have their turn.
const TUN_BURST: usize = 64;
/// Nodes whose sessions are waited for; packets that wait for one, and for all of them.
const WAITING_NODES: usize = 256;
const WAITING_PER_NODE: usize = 32;
const WAITING: usize = 512;
/// How long they wait.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between reminders to the core that a session is wanted.
const REMIND: Duration = Duration::from_secs(1);
/// Between looks at what waits.
const TICK: Duration = Duration::from_millis(100);

/// What a worker hands up to the control loop.
#[derive(Debug)]
pub enum Up {
    /// A whole handshake datagram.
    Handshake {
        /// Where it came from.
        path: UnderlayPath,
        /// All of it.
        datagram: Bytes,
    },
    /// Link control, from offset 16 on.
    Control {
        /// Slot it came on.
        slot: Slot,
        /// Where it came from.
        path: UnderlayPath,
        /// From offset 16 on.
        body: Bytes,
    },
    /// A probe of ours, from offset 16 on.
    ProbeEcho {
        /// Slot it came on.
        slot: Slot,
        /// Where it came from.
        path: UnderlayPath,
        /// From offset 16 on.
        body: [u8; 12],
    },
    /// A labelled packet that was not forwarded.
    Exception {
        /// Slot it came on.
        slot: Slot,
        /// Its top label.
        label: Label,
        /// Its session counter.
        counter: u64,
        /// Why.
        exception: Exception,
    },
    /// A message of the core.
    SessionMessage {
        /// Session it came on.
        session: SessionIndex,
        /// Label it came on.
        label: Label,
        /// AEAD counter it came under.
        counter: u64,
        /// Plaintext.
        message: Bytes,
    },
    /// Traffic wants a session.
    NoSession {
        /// Where it goes.
        destination: IpAddr,
    },
}

/// What all workers share with the control loop.
pub struct Shared {
    /// The forwarding tables.
    pub tables: Arc<SharedTables>,
    /// Sessions and routes.
    pub sessions: ArcSwap<Table>,
    /// Where next hops send to, by index.
    pub hops: ArcSwap<Vec<Option<Address>>>,
    /// Local addresses that datagrams may come to.
    pub listening: ArcSwap<Vec<IpAddr>>,
    /// How labelled packets that arrive on an interface are forwarded; user space where it is not named.
    pub modes: ArcSwap<HashMap<u32, ForwardMode>>,
    /// Counters of sessions.
    pub counters: Counters,
    /// Flow to lane.
    pub lanes: Lanes,
    /// Our UDP port.
    pub port: u16,
    /// To the control loop.
    pub up: crossbeam::channel::Sender<Up>,
    /// Wakes it.
    pub notify: Arc<tokio::sync::Notify>,
    /// Ends the workers.
    pub stop: AtomicBool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    fn hand_up(&self, up: Up) {
        match self.up.try_send(up) {
            Ok(()) => {
                self.counters.one(Counter::ToControl);
                self.notify.notify_one();
            }
            Err(_) => self.counters.one(Counter::ControlFull),
        }
    }

    /// Adds the outcome of a flush to the counters.
    pub fn count_sent(&self, sent: Sent) {
        self.counters.add(Counter::UdpTx, sent.packets);
        self.counters.add(Counter::UdpFull, sent.full);
        self.counters.add(Counter::UdpTooBig, sent.too_big);
        self.counters.add(Counter::UdpRefused, sent.refused);
    }

    /// Where a next hop sends to.
    pub fn hop(&self, index: NextHopIndex) -> Option<Address> {
        self.hops.load().get(index.0 as usize).copied().flatten()
    }
}

/// Wakes a worker from another thread.
#[derive(Debug)]
pub struct Wake(OwnedFd);

impl Wake {
    /// A new one.
    pub fn new() -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Wakes it.
    pub fn wake(&self) {
        let one = 1u64;
        // SAFETY: eight bytes from a living value. It can only fail when the counter is full, and then it is awake.
        unsafe { libc::write(self.0.as_raw_fd(), std::ptr::from_ref(&one).cast(), 8) };
    }

    fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: eight bytes into a living value; not blocking.
        unsafe { libc::read(self.0.as_raw_fd(), std::ptr::from_mut(&mut count).cast(), 8) };
    }
}

#[derive(Debug)]
struct WaitingFor {
    since: Instant,
    reminded: Instant,
    destination: IpAddr,
    packets: Vec<Box<[u8]>>,
}

/// Why a packet was not sent.
enum Refused {
    /// Dropped under this name.
    Drop(Counter),
    /// Dropped under this name, and its sender is told.
    Answer(Counter, Problem),
    /// A session to this node is wanted.
    Wait(Ipv6Addr, IpAddr),
}

/// One thread of the data path.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    tun: Option<Queue>,
    sockets: Arc<Vec<Socket>>,
    wake: Arc<Wake>,
    rx: RxBatch,
    tx: TxBatch,
    icmp: Box<[u8]>,
    icmp_limit: Limiter,
    exception_limit: Limiter,
    waiting: HashMap<Ipv6Addr, WaitingFor>,
    waiting_packets: usize,
    /// Address of the table that was looked at last; only compared.
    seen: usize,
    looked: Instant,
}

impl Worker {
    /// A worker; it begins with [`Worker::run`].
    pub fn new(
        shared: Arc<Shared>,
        tun: Option<Queue>,
        sockets: Arc<Vec<Socket>>,
        wake: Arc<Wake>,
    ) -> Self {
        let now = Instant::now();
        Self {
            shared,
            tun,
            sockets,
            wake,
            rx: RxBatch::default(),
            tx: TxBatch::default(),
            icmp: vec![0; icmp::MAX_ERROR].into_boxed_slice(),
            icmp_limit: Limiter::new(now),
            exception_limit: Limiter::new(now),
            waiting: HashMap::new(),
            waiting_packets: 0,
            seen: 0,
            looked: now,
        }
    }

    /// Works until [`Shared::stop`] is set and the worker is woken.
    pub fn run(mut self) {
        let mut polls: Vec<libc::pollfd> = std::iter::once(self.wake.0.as_raw_fd())
            .chain(self.sockets.iter().map(Socket::raw))
            .chain(self.tun.as_ref().map(Queue::raw))
            .map(|fd| libc::pollfd {
                fd,
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        while !self.shared.stop.load(Ordering::Acquire) {
            let timeout = if self.waiting.is_empty() {
                -1
            } else {
                TICK.as_millis() as libc::c_int
            };
            // SAFETY: the slice lives through the call and its length is passed.
            let ready =
                unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) };
            if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                tracing::error!(error = %io::Error::last_os_error(), "a data path thread cannot wait for its sockets; it ends");
                return;
            }
            if polls[0].revents != 0 {
                self.wake.clear();
            }
            let sockets = self.sockets.clone();
            for (socket, poll) in sockets.iter().zip(&polls[1..]) {
                // Errors pending on a socket (ICMP) are cleared by receiving.
                if poll.revents != 0 {
                    self.take_from_socket(socket);
                }
            }
            if let Some(last) = polls.get_mut(1 + self.sockets.len())
                && last.revents != 0
            {
                if last.revents & (libc::POLLERR | libc::POLLNVAL) != 0
                    && last.revents & libc::POLLIN == 0
                {
                    tracing::error!("the TUN interface is gone; this node goes on as a transit");
                    last.fd = -1;
                    self.tun = None;
                } else {
                    self.take_from_tun();
                }
            }
            if !self.waiting.is_empty() {
                self.look_at_waiting();
            }
            self.flush();
        }
    }

    fn flush(&mut self) {
        let sent = self.tx.flush(&self.sockets);
        self.shared.count_sent(sent);
    }

    fn take_from_tun(&mut self) {
        let shared = self.shared.clone();
        let table = shared.sessions.load();
        for _ in 0..TUN_BURST {
            if self.tx.is_full() {
                self.flush();
            }
            let Some(tun) = &self.tun else { return };
            let len = match tun.read(&mut self.tx.buffer()[HEAD..BUFFER - crypto::TAG]) {
                Ok(0) => return,
                Ok(len) => len,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => return,
            };
            shared.counters.one(Counter::TunRx);
            if let Err(refused) = send(&shared, &table, &mut self.tx, len) {
                self.refused(refused, len);
            }
        }
    }

    /// Deals with a packet in the next transmit buffer that could not be sent.
    fn refused(&mut self, refused: Refused, len: usize) {
        match refused {
            Refused::Drop(counter) => self.shared.counters.one(counter),
            Refused::Answer(counter, problem) => {
                self.shared.counters.one(counter);
                let packet = &self.tx.buffer()[HEAD..HEAD + len];
                if let Some(inner) = Inner::parse(packet)
                    && let Some(len) = icmp::error(packet, &inner, problem, &mut self.icmp)
                {
                    if self.icmp_limit.take(Instant::now()) {
                        self.shared.counters.one(Counter::IcmpSent);
                        if let Some(tun) = &self.tun {
                            let _ = tun.write(&self.icmp[..len]);
                        }
                    } else {
                        self.shared.counters.one(Counter::IcmpLimited);
                    }
                }
            }
            Refused::Wait(node, destination) => {
                if self.waiting.len() >= WAITING_NODES && !self.waiting.contains_key(&node) {
                    self.shared.counters.one(Counter::QueueFull);
                    return;
                }
                let now = Instant::now();
                let room = self.waiting_packets < WAITING;
                let waiting = self.waiting.entry(node).or_insert_with(|| {
                    self.shared.hand_up(Up::NoSession { destination });
                    WaitingFor {
                        since: now,
                        reminded: now,
                        destination,
                        packets: vec![],
                    }
                });
                if room && waiting.packets.len() < WAITING_PER_NODE {
                    waiting
                        .packets
                        .push(self.tx.buffer()[HEAD..HEAD + len].into());
                    self.waiting_packets += 1;
                } else {
                    self.shared.counters.one(Counter::QueueFull);
                }
            }
        }
    }

    fn look_at_waiting(&mut self) {
        let shared = self.shared.clone();
        let table = shared.sessions.load_full();
        let now = Instant::now();
        if Arc::as_ptr(&table) as usize == self.seen
            && now.saturating_duration_since(self.looked) < TICK
        {
            return;
        }
        self.seen = Arc::as_ptr(&table) as usize;
        self.looked = now;
        let mut done = vec![];
        for (&node, waiting) in &mut self.waiting {
            let ready =
                matches!(table.target(node.into()), Target::Session(session) if session.can_send());
            if ready || now.saturating_duration_since(waiting.since) > PATIENCE {
                done.push((node, ready));
            } else if now.saturating_duration_since(waiting.reminded) > REMIND {
                waiting.reminded = now;
                shared.hand_up(Up::NoSession {
                    destination: waiting.destination,
                });
            }
        }
        for (node, ready) in done {
            let Some(waiting) = self.waiting.remove(&node) else {
                continue;
            };
            self.waiting_packets -= waiting.packets.len();
            for packet in waiting.packets {
                if self.tx.is_full() {
                    self.flush();
                }
                let len = packet.len();
                self.tx.buffer()[HEAD..HEAD + len].copy_from_slice(&packet);
                let result = if ready {
                    send(&shared, &table, &mut self.tx, len)
                } else {
                    Err(Refused::Answer(Counter::NoSession, Problem::Unreachable))
                };
                match result {
                    // It had its time to wait.
                    Err(Refused::Wait(..)) => shared.counters.one(Counter::NoSession),
                    Err(refused) => self.refused(refused, len),
                    Ok(()) => {}
                }
            }
        }
    }

    fn take_from_socket(&mut self, socket: &Socket) {
        let shared = self.shared.clone();
        let count = match self.rx.receive(socket) {
            Ok(count) => count,
            // An ICMP error that came back for something sent.
            Err(_) => return,
        };
        shared.counters.add(Counter::UdpRx, count as u64);
        let table = shared.sessions.load();
        let listening = shared.listening.load();
        let modes = shared.modes.load();
        for index in 0..count {
            let (meta, payload) = self.rx.get_mut(index);
            if meta.truncated {
                shared.counters.one(Counter::UdpTruncated);
                continue;
            }
            if !listening.contains(&meta.local) {
                shared.counters.one(Counter::NotListening);
                continue;
            }
            let mode = modes
                .get(&meta.interface)
                .copied()
                .unwrap_or(ForwardMode::UserSpace);
            let received = shared.tables.receive(payload, mode);
            let path = || UnderlayPath {
                local: SocketAddr::new(meta.local, shared.port),
                remote: meta.source,
            };
            match received {
                Received::Handshake => {
                    shared.hand_up(Up::Handshake {
                        path: path(),
                        datagram: Bytes::copy_from_slice(payload),
                    });
                }
                Received::Control { slot } => {
                    let body = payload
                        .get(16..)
                        .map(Bytes::copy_from_slice)
                        .unwrap_or_default();
                    shared.hand_up(Up::Control {
                        slot,
                        path: path(),
                        body,
                    });
                }
                Received::ProbeReply { slot } => {
                    if let Some(body) = payload.get(16..).and_then(<[u8]>::first_chunk) {
                        shared.hand_up(Up::ProbeEcho {
                            slot,
                            path: path(),
                            body: *body,
                        });
                    }
                }
                Received::Exception {
                    slot,
                    label,
                    counter,
                    exception,
                } => {
                    if self.exception_limit.take(Instant::now()) {
                        shared.hand_up(Up::Exception {
                            slot,
                            label,
                            counter,
                            exception,
                        });
                    } else {
                        shared.counters.one(Counter::ExceptionLimited);
                    }
                }
                Received::Forward {
                    next_hop,
                    start,
                    local,
                    remote,
                } => {
                    let interface = shared.hop(next_hop).map_or(0, |address| address.interface);
                    let packet = payload.get(start..).unwrap_or_default();
                    self.tx.buffer()[..packet.len()].copy_from_slice(packet);
                    self.tx.commit(
                        packet.len(),
                        Address {
                            remote,
                            local: local.ip(),
                            interface,
                        },
                        meta.tos,
                    );
                    shared.counters.one(Counter::Forwarded);
                    if self.tx.is_full() {
                        shared.count_sent(self.tx.flush(&self.sockets));
                    }
                }
                Received::Deliver {
                    label, session_at, ..
                } => {
                    let tun = self.tun.as_ref();
                    if let Err(counter) =
                        deliver(&shared, &table, tun, payload, label, session_at, meta.tos)
                    {
                        shared.counters.one(counter);
                    }
                }
                Received::Dropped(_) => {}
            }
        }
        self.flush();
    }
}

/// Encrypts and labels the inner packet that stands at [`HEAD`] in the next transmit buffer.
fn send(shared: &Shared, table: &Table, tx: &mut TxBatch, len: usize) -> Result<(), Refused> {
    let buffer = tx.buffer();
    let inner = Inner::parse(&buffer[HEAD..HEAD + len]).ok_or(Refused::Drop(Counter::Malformed))?;
    if inner.destination.is_multicast() {
        return Err(Refused::Drop(Counter::NoRoute));
    }
    let session = match table.target(inner.destination) {
        Target::Session(session) => session,
        Target::Node(node) if node == table.own => return Err(Refused::Drop(Counter::NoRoute)),
        Target::Node(node) => return Err(Refused::Wait(node, inner.destination)),
        Target::None => return Err(Refused::Answer(Counter::NoRoute, Problem::NoRoute)),
    };
    // Others would drop it: this node may send from its own address and its prefixes only.
    if !table.is_behind_us(inner.source) {
        return Err(Refused::Answer(Counter::InnerSource, Problem::Source));
    }
    let (Some(ingress), Some(epoch)) = (session.ingress, session.sending()) else {
        return Err(Refused::Wait(session.address, inner.destination));
    };
    if len > usize::from(ingress.inner_mtu) {
        return Err(Refused::Answer(
            Counter::TooBig,
            Problem::TooBig(ingress.inner_mtu),
        ));
    }
    let lane = shared.lanes.lane(&buffer[HEAD..HEAD + len]);
    let next_hop = shared
        .tables
        .select(ingress.group, lane)
        .ok_or(Refused::Answer(Counter::NoNextHop, Problem::Unreachable))?;
    let address = shared
        .hop(next_hop)
        .ok_or(Refused::Drop(Counter::NoNextHop))?;

    let (counter, sealed) = epoch
        .seal(&mut buffer[HEAD..], len)
        .ok_or(Refused::Drop(Counter::Exhausted))?;
    finish(
        &shared.tables,
        buffer,
        next_hop,
        lane,
        ingress.label,
        ingress.ttl,
        counter,
        HEAD + sealed,
    )
    .map_err(|_| Refused::Drop(Counter::NoNextHop))?;
    tx.commit(HEAD + sealed, address, inner.tos);
    shared.counters.one(Counter::Encrypted);
    session.counters.tx_packets.fetch_add(1, Ordering::Relaxed);
    session
        .counters
        .tx_bytes
        .fetch_add(len as u64, Ordering::Relaxed);
    Ok(())
}

/// Label entry, session counter, link header.
#[expect(clippy::too_many_arguments, reason = "the fields of the header")]
pub(crate) fn finish(
    tables: &SharedTables,
    buffer: &mut [u8],
    next_hop: NextHopIndex,
    lane: u8,
    label: Label,
    ttl: u8,
    counter: u64,
    len: usize,
) -> Result<(), DropReason> {
    let datagram = buffer.get_mut(..len).ok_or(DropReason::TooShort)?;
    let Some(head) = datagram.first_chunk_mut::<HEAD>() else {
        return Err(DropReason::TooShort);
    };
    head[16..20].copy_from_slice(&LabelEntry::new(label, 0, true, ttl).to_bytes());
    head[20..28].copy_from_slice(&counter.to_be_bytes());
    tables.stamp(next_hop, lane, Kind::Labelled, datagram)
}

/// Decrypts what an LSP delivered and passes it on.
fn deliver(
    shared: &Shared,
    table: &Table,
    tun: Option<&Queue>,
    payload: &mut [u8],
    label: Label,
    session_at: usize,
    tos: u8,
) -> Result<(), Counter> {
    let session = table
        .delivered_on(label.0)
        .ok_or(Counter::UnknownDelivery)?;
    let (head, sealed) = payload
        .split_at_mut_checked(session_at + 8)
        .ok_or(Counter::Malformed)?;
    let counter = head
        .last_chunk()
        .map(|bytes| u64::from_be_bytes(*bytes))
        .ok_or(Counter::Malformed)?;
    let epoch = session
        .epoch((counter >> EPOCH_SHIFT) as u8)
        .ok_or(Counter::UnknownEpoch)?;
    let plain = epoch.open(counter, sealed).map_err(|error| match error {
        OpenError::BadSeal => Counter::BadSeal,
        OpenError::Refused(Refusal::Replayed) => Counter::Replayed,
        OpenError::Refused(Refusal::TooOld) => Counter::TooOld,
    })?;
    shared.counters.one(Counter::Decrypted);
    if counter & CLASS_BIT != 0 {
        if plain.first().is_none_or(|byte| byte >> 4 != 0) {
            return Err(Counter::Malformed);
        }
        let message = Bytes::copy_from_slice(plain);
        shared.hand_up(Up::SessionMessage {
            session: session.index,
            label,
            counter,
            message,
        });
        return Ok(());
    }
    let inner = Inner::parse(plain).ok_or(Counter::Malformed)?;
    if !session.may_send_from(inner.source) {
        return Err(Counter::InnerSource);
    }
    if !table.is_behind_us(inner.destination) {
        return Err(Counter::InnerDestination);
    }
    let packet = &mut plain[..inner.len];
    if !combine_ecn(packet, tos) {
        return Err(Counter::EcnDropped);
    }
    session.counters.rx_packets.fetch_add(1, Ordering::Relaxed);
    session
        .counters
        .rx_bytes
        .fetch_add(inner.len as u64, Ordering::Relaxed);
    let tun = tun.ok_or(Counter::InnerDestination)?;
    tun.write(packet).map_err(|_| Counter::TunWriteFailed)?;
    shared.counters.one(Counter::TunTx);
    Ok(())
}
