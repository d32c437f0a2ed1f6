//! One thread of the data path: its TUN queue, its sockets, its buffers.

use std::{
    collections::HashMap,
    io::{self, IoSlice},
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
    packet::{Inner, Lanes, combine_ecn, mark_congestion},
    queue,
    session::{Arrival, CLASS_BIT, EPOCH_SHIFT, OpenError, Session, Table, Target},
    udp::{self, Address, RxBatch, Sent, Socket, TxBatch},
    window::Refusal,
    xsk::{self, Xsk},
};
use crate::{
    dataplane::{Received, SharedTables},
    offload::{
        gro::{Coalescer, MAX_PACKETS, Piece, Place, Sink, Takes},
        gso::{self, Cut},
        mss,
        virtio::{Gso, VirtioHeader},
    },
    tun::{self, Queue},
};

/// Bytes before the inner packet: link header, label, session counter.
pub const HEAD: usize = 28;
/// Bytes around an inner packet in the datagram.
pub const OVERHEAD: usize = HEAD + crypto::TAG;
/// Packets taken from the TUN queue before any is sent, and buffers for those that wait: the kernel's queue knows no
/// fairness, so it is emptied into one that does.
const TUN_BURST: usize = 64;
const BUFFERS: usize = 128;
/// With all buffers in use and at least so many bytes in them, the fattest flow gives way to what comes.
const BULK: usize = 2 << 20;
/// Bytes sent before the sockets have their turn.
const TURN: usize = 48 * 1024;
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

/// What the control loop tells a worker.
#[derive(Debug)]
pub enum Order {
    /// To serve this socket from now on.
    Take(Box<Xsk>),
    /// To give up those of an interface.
    Close {
        /// Its index.
        interface: u32,
    },
}

#[derive(Debug)]
struct Direct {
    socket: Box<Xsk>,
    closed: bool,
}

#[derive(Debug)]
struct WaitingFor {
    since: Instant,
    reminded: Instant,
    destination: IpAddr,
    packets: Vec<(VirtioHeader, Box<[u8]>)>,
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
    /// What was read from the TUN queue stands in these until it is sent. Their memory is used when it is first touched,
    /// and those used last are used first.
    buffers: Vec<Box<[u8]>>,
    free: Vec<u16>,
    backlog: queue::Queue,
    began: Instant,
    arrivals: Vec<Arrival>,
    orders: crossbeam::channel::Receiver<Order>,
    direct: Vec<Direct>,
    frames: Vec<xsk::Datagram>,
    /// Something is left that no poll would tell of.
    more: bool,
    coalescer: Coalescer,
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
        orders: crossbeam::channel::Receiver<Order>,
    ) -> Self {
        let now = Instant::now();
        let takes = tun.as_ref().map_or(
            Takes {
                tcp: false,
                udp: false,
            },
            Queue::takes,
        );
        Self {
            shared,
            tun,
            sockets,
            wake,
            rx: RxBatch::default(),
            tx: TxBatch::default(),
            buffers: (0..BUFFERS)
                .map(|_| vec![0; tun::READ].into_boxed_slice())
                .collect(),
            free: (0..BUFFERS as u16).rev().collect(),
            backlog: queue::Queue::new(BUFFERS),
            began: now,
            arrivals: Vec::with_capacity(udp::BATCH),
            orders,
            direct: vec![],
            frames: Vec::with_capacity(udp::BATCH),
            more: false,
            coalescer: Coalescer::new(takes),
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
        let mut polls = self.polls();
        while !self.shared.stop.load(Ordering::Acquire) {
            let timeout = if self.more {
                0
            } else if self.waiting.is_empty() {
                -1
            } else {
                TICK.as_millis() as libc::c_int
            };
            self.more = false;
            // SAFETY: the slice lives through the call and its length is passed.
            let ready =
                unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout) };
            if ready < 0 && io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                tracing::error!(error = %io::Error::last_os_error(), "a data path thread cannot wait for its sockets; it ends");
                return;
            }
            let sockets = self.sockets.clone();
            let (own, direct) = polls.split_at(2 + sockets.len());
            for (socket, poll) in sockets.iter().zip(&own[2..]) {
                // Errors pending on a socket (ICMP) are cleared by receiving.
                if poll.revents != 0 {
                    self.take_from_socket(socket);
                }
            }
            let mut gone = false;
            for (index, poll) in direct.iter().enumerate() {
                if poll.revents & libc::POLLIN != 0 {
                    self.take_direct(index);
                } else if poll.revents != 0 {
                    // Its interface is no more.
                    self.direct[index].closed = true;
                    gone = true;
                }
            }
            let tun = own[1].revents;
            let mut changed = gone;
            if tun & (libc::POLLERR | libc::POLLNVAL) != 0 && tun & libc::POLLIN == 0 {
                tracing::error!("the TUN interface is gone; this node goes on as a transit");
                self.tun = None;
                changed = true;
            } else if tun != 0 {
                self.take_from_tun();
            }
            if own[0].revents != 0 {
                self.wake.clear();
                changed |= self.take_orders();
            }
            if !self.backlog.is_empty() {
                self.send_backlog();
            }
            if changed {
                self.direct.retain(|direct| !direct.closed);
                polls = self.polls();
            }
            if !self.waiting.is_empty() {
                self.look_at_waiting();
            }
            self.flush();
        }
    }

    /// What to wait for: the wake-up, the TUN queue (or nothing in its place), sockets, AF_XDP sockets.
    fn polls(&self) -> Vec<libc::pollfd> {
        [
            self.wake.0.as_raw_fd(),
            self.tun.as_ref().map_or(-1, Queue::raw),
        ]
        .into_iter()
        .chain(self.sockets.iter().map(Socket::raw))
        .chain(self.direct.iter().map(|direct| direct.socket.raw()))
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        })
        .collect()
    }

    /// Takes over and gives up AF_XDP sockets as told; whether there were any.
    fn take_orders(&mut self) -> bool {
        let mut changed = false;
        for order in self.orders.try_iter() {
            changed = true;
            match order {
                Order::Take(socket) => self.direct.push(Direct {
                    socket,
                    closed: false,
                }),
                Order::Close { interface } => self
                    .direct
                    .retain(|direct| direct.socket.interface() != interface),
            }
        }
        changed
    }

    fn flush(&mut self) {
        let sent = self.tx.flush(&self.sockets);
        self.shared.count_sent(sent);
    }

    /// Empties the TUN queue into the backlog.
    fn take_from_tun(&mut self) {
        let shared = self.shared.clone();
        let table = shared.sessions.load();
        let now = self.began.elapsed().as_micros() as u64;
        let mut packets = 0;
        for _ in 0..TUN_BURST {
            let Some(tun) = &self.tun else { break };
            let buffer = match self.free.pop() {
                Some(buffer) => buffer,
                // Many small packets are better off in the kernel's queue; bulk there would stand before everyone.
                None if self.backlog.bytes() < BULK => break,
                None => match self.backlog.shed() {
                    Some(item) => {
                        shared.counters.one(Counter::FlowQueueFull);
                        item.buffer
                    }
                    None => break,
                },
            };
            let memory = &mut self.buffers[usize::from(buffer)];
            let (header, range) = match tun.read(memory) {
                Ok(got) if !got.1.is_empty() => got,
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                    self.free.push(buffer);
                    shared.counters.one(Counter::Malformed);
                    continue;
                }
                _ => {
                    self.free.push(buffer);
                    break;
                }
            };
            packets += 1;
            let packet = &memory[range.clone()];
            let Some(inner) = Inner::parse(packet) else {
                self.free.push(buffer);
                shared.counters.one(Counter::Malformed);
                continue;
            };
            let item = queue::Item {
                buffer,
                header,
                start: range.start as u32,
                len: range.len() as u32,
                ecn: inner.tos & 3 != 0,
            };
            let flow = shared.lanes.flow(packet);
            let peer = table.peer_key(inner.destination);
            if !self.backlog.push(item, peer, flow, now) {
                self.free.push(buffer);
                shared.counters.one(Counter::FlowQueueFull);
            }
        }
        shared.counters.add(Counter::TunRx, packets);
    }

    /// Sends what is next in the backlog, one turn of it.
    fn send_backlog(&mut self) {
        let shared = self.shared.clone();
        let table = shared.sessions.load();
        let now = self.began.elapsed().as_micros() as u64;
        let mut bytes = 0;
        while bytes < TURN {
            let (item, mark, late) = match self.backlog.pop(now) {
                Some(queue::Out::Send(item, mark)) => (item, mark, false),
                Some(queue::Out::Late(item)) => (item, false, true),
                None => break,
            };
            bytes += item.len as usize;
            let mut memory = std::mem::take(&mut self.buffers[usize::from(item.buffer)]);
            let (start, end) = (item.start as usize, (item.start + item.len) as usize);
            if let Some(packet) = memory.get_mut(start..end) {
                if mark {
                    shared.counters.one(Counter::EcnMarked);
                    mark_congestion(packet);
                }
                if late {
                    shared.counters.one(Counter::FlowQueueLate);
                }
                if !late || item.header.gso != Gso::None {
                    self.send(&shared, &table, &item.header, packet, late);
                }
            }
            self.buffers[usize::from(item.buffer)] = memory;
            self.free.push(item.buffer);
        }
        self.flush();
        self.more |= !self.backlog.is_empty();
    }

    /// Sends a packet or super-packet, `short` without its first segment, or does what else is due with it.
    fn send(
        &mut self,
        shared: &Shared,
        table: &Table,
        header: &VirtioHeader,
        packet: &mut [u8],
        short: bool,
    ) {
        let (tx, sockets) = (&mut self.tx, &self.sockets);
        if let Err(refused) = send(shared, table, tx, sockets, header, packet, short) {
            self.refused(refused, header, packet);
        }
    }

    /// Deals with a packet that could not be sent.
    fn refused(&mut self, refused: Refused, header: &VirtioHeader, packet: &[u8]) {
        match refused {
            Refused::Drop(counter) => self.shared.counters.one(counter),
            Refused::Answer(counter, problem) => {
                self.shared.counters.one(counter);
                if let Some(inner) = Inner::parse(packet)
                    && let Some(len) = icmp::error(packet, &inner, problem, &mut self.icmp)
                {
                    if self.icmp_limit.take(Instant::now()) {
                        self.shared.counters.one(Counter::IcmpSent);
                        if let Some(tun) = &self.tun {
                            let _ = tun.write_packet(&self.icmp[..len]);
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
                    waiting.packets.push((*header, packet.into()));
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
            for (header, mut packet) in waiting.packets {
                let result = if ready {
                    send(
                        &shared,
                        &table,
                        &mut self.tx,
                        &self.sockets,
                        &header,
                        &mut packet,
                        false,
                    )
                } else {
                    Err(Refused::Answer(Counter::NoSession, Problem::Unreachable))
                };
                match result {
                    // It had its time to wait.
                    Err(Refused::Wait(..)) => shared.counters.one(Counter::NoSession),
                    Err(refused) => self.refused(refused, &header, &packet),
                    Ok(()) => {}
                }
            }
        }
    }

    fn take_from_socket(&mut self, socket: &Socket) {
        // An error is an ICMP message that came back for something sent.
        if self.rx.receive(socket).is_err() {
            return;
        }
        let shared = self.shared.clone();
        let listening = shared.listening.load();
        let modes = shared.modes.load();
        let mut datagrams = 0;
        self.arrivals.clear();
        for index in 0..self.rx.len() {
            let meta = self.rx.meta(index);
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
            for range in meta.datagrams() {
                datagrams += 1;
                let from = From {
                    path: UnderlayPath {
                        local: SocketAddr::new(meta.local, shared.port),
                        remote: meta.source,
                    },
                    tos: meta.tos,
                    mode,
                    start: range.start,
                };
                let payload = &mut self.rx.memory()[range];
                receive(
                    &shared,
                    &self.sockets,
                    &mut self.tx,
                    &mut self.exception_limit,
                    &mut self.arrivals,
                    &from,
                    payload,
                );
            }
        }
        shared.counters.add(Counter::UdpRx, datagrams);
        if let Some(last) = self.rx.len().checked_sub(1) {
            let lost = socket.newly_lost(self.rx.meta(last).lost);
            shared.counters.add(Counter::UdpOverflow, lost.into());
        }
        let table = shared.sessions.load();
        let memory = self.rx.memory();
        deliver(
            &shared,
            &table,
            self.tun.as_ref(),
            &mut self.coalescer,
            &mut self.arrivals,
            memory,
        );
        self.flush();
    }

    /// Takes what an AF_XDP socket has: packets that the XDP program verified and that end here.
    fn take_direct(&mut self, index: usize) {
        let Some(Direct { socket, .. }) = self.direct.get_mut(index) else {
            return;
        };
        self.more |= socket.receive(&mut self.frames);
        let shared = self.shared.clone();
        self.arrivals.clear();
        for frame in &self.frames {
            let from = From {
                path: UnderlayPath {
                    local: frame.local,
                    remote: frame.source,
                },
                tos: frame.tos,
                mode: ForwardMode::KernelNative,
                start: frame.start,
            };
            if let Some(payload) = socket
                .memory()
                .get_mut(frame.start..frame.start + frame.len)
            {
                receive(
                    &shared,
                    &self.sockets,
                    &mut self.tx,
                    &mut self.exception_limit,
                    &mut self.arrivals,
                    &from,
                    payload,
                );
            }
        }
        shared
            .counters
            .add(Counter::XskRx, self.frames.len() as u64);
        if self.more {
            shared
                .counters
                .add(Counter::XskOverflow, socket.newly_lost());
        }
        let table = shared.sessions.load();
        deliver(
            &shared,
            &table,
            self.tun.as_ref(),
            &mut self.coalescer,
            &mut self.arrivals,
            socket.memory(),
        );
        self.flush();
    }
}

/// What is known of a datagram besides its bytes.
struct From {
    path: UnderlayPath,
    /// Outer traffic class.
    tos: u8,
    /// How its interface forwards.
    mode: ForwardMode,
    /// Where it begins in the receive memory.
    start: usize,
}

/// Verifies one datagram and does what its kind asks for; what is to be decrypted is put aside for all at once.
fn receive(
    shared: &Shared,
    sockets: &[Socket],
    tx: &mut TxBatch,
    exception_limit: &mut Limiter,
    arrivals: &mut Vec<Arrival>,
    from: &From,
    payload: &mut [u8],
) {
    let path = from.path;
    match shared.tables.receive(payload, from.mode) {
        Received::Handshake => {
            shared.hand_up(Up::Handshake {
                path,
                datagram: Bytes::copy_from_slice(payload),
            });
        }
        Received::Control { slot } => {
            let body = payload
                .get(16..)
                .map(Bytes::copy_from_slice)
                .unwrap_or_default();
            shared.hand_up(Up::Control { slot, path, body });
        }
        Received::ProbeReply { slot } => {
            if let Some(body) = payload.get(16..).and_then(<[u8]>::first_chunk) {
                shared.hand_up(Up::ProbeEcho {
                    slot,
                    path,
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
            if exception_limit.take(Instant::now()) {
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
            if tx.is_full() {
                shared.count_sent(tx.flush(sockets));
            }
            let Some(room) = tx.buffer().get_mut(..packet.len()) else {
                return shared.counters.one(Counter::UdpTooBig);
            };
            room.copy_from_slice(packet);
            let to = Address {
                remote,
                local: local.ip(),
                interface,
            };
            tx.commit(packet.len(), to, from.tos);
            shared.counters.one(Counter::Forwarded);
        }
        Received::Deliver {
            label, session_at, ..
        } => {
            let counter = payload
                .get(session_at..)
                .and_then(<[u8]>::first_chunk)
                .map(|bytes| u64::from_be_bytes(*bytes));
            match counter {
                Some(counter) => arrivals.push(Arrival {
                    counter,
                    start: from.start + session_at + 8,
                    len: payload.len() - session_at - 8,
                    label: label.0,
                    tos: from.tos,
                    outcome: Ok(()),
                }),
                None => shared.counters.one(Counter::Malformed),
            }
        }
        Received::Dropped(_) => {}
    }
}

/// Decrypts what LSPs delivered, all that came at once, and passes it on in bundles.
fn deliver(
    shared: &Shared,
    table: &Table,
    tun: Option<&Queue>,
    coalescer: &mut Coalescer,
    arrivals: &mut [Arrival],
    memory: &mut [u8],
) {
    let same = |a: &Arrival, b: &Arrival| {
        a.label == b.label && a.counter >> EPOCH_SHIFT == b.counter >> EPOCH_SHIFT
    };
    for run in arrivals.chunk_by_mut(same) {
        open(shared, table, run, memory);
    }
    let mut sink = TunSink {
        shared,
        tun,
        memory,
        packets: 0,
    };
    for arrival in arrivals.iter() {
        if arrival.len > 0
            && let Some(packet) = sink.memory.get(arrival.start..arrival.start + arrival.len)
        {
            let place = Place {
                buffer: 0,
                start: arrival.start as u32,
            };
            coalescer.push(packet, place, &mut sink);
        }
    }
    coalescer.flush(&mut sink);
    shared.counters.add(Counter::TunTx, sink.packets);
}

/// Encrypts and labels a packet, or every segment of a super-packet (`short`: but the first), into the batch.
fn send(
    shared: &Shared,
    table: &Table,
    tx: &mut TxBatch,
    sockets: &[Socket],
    header: &VirtioHeader,
    packet: &mut [u8],
    short: bool,
) -> Result<(), Refused> {
    let inner = Inner::parse(packet).ok_or(Refused::Drop(Counter::Malformed))?;
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
    let malformed = |_| Refused::Drop(Counter::Malformed);
    let cut = match header.gso {
        Gso::None => None,
        _ => Some(Cut::new(header, packet).map_err(malformed)?),
    };
    let longest = cut.as_ref().map_or(packet.len(), Cut::longest);
    if longest > usize::from(ingress.inner_mtu) {
        return Err(Refused::Answer(
            Counter::TooBig,
            Problem::TooBig(ingress.inner_mtu),
        ));
    }
    let lane = shared.lanes.lane(packet);
    let next_hop = shared
        .tables
        .select(ingress.group, lane)
        .ok_or(Refused::Answer(Counter::NoNextHop, Problem::Unreachable))?;
    let address = shared
        .hop(next_hop)
        .ok_or(Refused::Drop(Counter::NoNextHop))?;
    if cut.is_none() {
        if mss::clamp(packet, ingress.inner_mtu, header.partial.is_some()) {
            shared.counters.one(Counter::MssLowered);
        }
        gso::complete(header, packet).map_err(malformed)?;
    }

    let skipped = usize::from(short);
    let segments = cut
        .as_ref()
        .map_or(1, Cut::segments)
        .saturating_sub(skipped);
    if segments == 0 {
        return Ok(());
    }
    let first = epoch
        .take(segments)
        .ok_or(Refused::Drop(Counter::Exhausted))?;
    let mut bytes = 0;
    for index in 0..segments {
        if tx.is_full() || tx.free() < OVERHEAD + longest {
            shared.count_sent(tx.flush(sockets));
        }
        let buffer = tx.buffer();
        let room = &mut buffer[HEAD..];
        let len = match &cut {
            Some(cut) => cut.write(packet, index + skipped, room),
            None => room.get_mut(..packet.len()).map(|room| {
                room.copy_from_slice(packet);
                packet.len()
            }),
        };
        let counter = first + index as u64;
        let sealed = len
            .and_then(|len| epoch.seal(counter, room, len))
            .ok_or(Refused::Drop(Counter::Malformed))?;
        let len = HEAD + sealed;
        finish(
            &shared.tables,
            buffer,
            next_hop,
            lane,
            ingress.label,
            ingress.ttl,
            counter,
            len,
        )
        .map_err(|_| Refused::Drop(Counter::NoNextHop))?;
        tx.commit(len, address, inner.tos);
        bytes += len - OVERHEAD;
    }
    shared.counters.add(Counter::Encrypted, segments as u64);
    let counters = &session.counters;
    counters
        .tx_packets
        .fetch_add(segments as u64, Ordering::Relaxed);
    counters.tx_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
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

/// Decrypts arrivals on one label under one epoch. Afterwards the length of each is that of the packet for the TUN
/// interface, or 0 where there is none.
fn open(shared: &Shared, table: &Table, run: &mut [Arrival], memory: &mut [u8]) {
    let (label, epoch) = (run[0].label, (run[0].counter >> EPOCH_SHIFT) as u8);
    let session = table
        .delivered_on(label)
        .ok_or(Counter::UnknownDelivery)
        .and_then(|session| {
            let epoch = session.epoch(epoch).ok_or(Counter::UnknownEpoch)?;
            Ok((session, epoch))
        });
    let (session, epoch) = match session {
        Ok(found) => found,
        Err(counter) => {
            shared.counters.add(counter, run.len() as u64);
            run.iter_mut().for_each(|arrival| arrival.len = 0);
            return;
        }
    };
    epoch.open(run, memory);
    let (mut decrypted, mut packets, mut bytes) = (0, 0, 0);
    for arrival in run {
        let result = match arrival.outcome {
            Err(OpenError::BadSeal) => Err(Counter::BadSeal),
            Err(OpenError::Refused(Refusal::Replayed)) => Err(Counter::Replayed),
            Err(OpenError::Refused(Refusal::TooOld)) => Err(Counter::TooOld),
            Ok(()) => {
                decrypted += 1;
                let plain = memory
                    .get_mut(arrival.start..arrival.start + arrival.len)
                    .unwrap_or_default();
                pass_on(shared, table, session, arrival, plain)
            }
        };
        arrival.len = match result {
            Ok(len) => len,
            Err(counter) => {
                shared.counters.one(counter);
                0
            }
        };
        packets += u64::from(arrival.len > 0);
        bytes += arrival.len as u64;
    }
    shared.counters.add(Counter::Decrypted, decrypted);
    let counters = &session.counters;
    counters.rx_packets.fetch_add(packets, Ordering::Relaxed);
    counters.rx_bytes.fetch_add(bytes, Ordering::Relaxed);
}

/// Looks at what was decrypted: the bytes that go to the TUN interface, or 0 where it was a message of the core.
fn pass_on(
    shared: &Shared,
    table: &Table,
    session: &Session,
    arrival: &Arrival,
    plain: &mut [u8],
) -> Result<usize, Counter> {
    if arrival.counter & CLASS_BIT != 0 {
        if plain.first().is_none_or(|byte| byte >> 4 != 0) {
            return Err(Counter::Malformed);
        }
        let message = Bytes::copy_from_slice(plain);
        shared.hand_up(Up::SessionMessage {
            session: session.index,
            label: Label(arrival.label),
            counter: arrival.counter,
            message,
        });
        return Ok(0);
    }
    let inner = Inner::parse(plain).ok_or(Counter::Malformed)?;
    if !session.may_send_from(inner.source) {
        return Err(Counter::InnerSource);
    }
    if !table.is_behind_us(inner.destination) {
        return Err(Counter::InnerDestination);
    }
    let packet = &mut plain[..inner.len];
    if !combine_ecn(packet, arrival.tos) {
        return Err(Counter::EcnDropped);
    }
    // What comes back goes by our own LSP, and only we know what that carries.
    if let Some(ingress) = session.ingress
        && mss::clamp(packet, ingress.inner_mtu, false)
    {
        shared.counters.one(Counter::MssLowered);
    }
    Ok(inner.len)
}

/// Writes packets and bundles to the TUN queue.
struct TunSink<'a> {
    shared: &'a Shared,
    tun: Option<&'a Queue>,
    /// What places are in.
    memory: &'a [u8],
    packets: u64,
}

impl Sink for TunSink<'_> {
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], packets: usize) {
        let counters = &self.shared.counters;
        let Some(tun) = self.tun else {
            return counters.add(Counter::InnerDestination, packets as u64);
        };
        let mut header = virtio.to_bytes();
        // The virtio header's place, the headers, the pieces.
        let mut parts = [IoSlice::new(&[]); 2 + MAX_PACKETS];
        parts[1] = IoSlice::new(head);
        let mut used = 2;
        for (part, piece) in parts[2..].iter_mut().zip(pieces) {
            let start = piece.start as usize;
            let bytes = self.memory.get(start..start + piece.len as usize);
            *part = IoSlice::new(bytes.unwrap_or_default());
            used += 1;
        }
        match tun.write(&mut header, &mut parts[..used]) {
            Ok(()) => {
                self.packets += packets as u64;
                if packets > 1 {
                    counters.one(Counter::TunBundles);
                }
            }
            Err(_) => counters.add(Counter::TunWriteFailed, packets as u64),
        }
    }
}
