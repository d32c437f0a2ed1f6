//! One thread of the data path: its TUN queue, its sockets, its buffers.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use weft_core::io::{ForwardMode, UnderlayPath};

use super::{
    counters::Counter,
    crowd::{Crowd, Relief},
    icmp::{self, Limiter, Problem},
    inbound::{From, deliver, receive},
    outbound::{Outlet, Refused, send},
    packet::{Inner, mark_congestion},
    queue,
    session::{Arrival, Table, Target},
    shared::{Order, Shared, Up, Wake},
    udp::{RxBatch, Socket},
    xsk::{self, Xsk},
};
use crate::{
    offload::{
        gro::{Coalescer, Takes},
        virtio::{Gso, VirtioHeader},
    },
    tun::{self, Queue},
};

/// Packets taken from the TUN queue before any is sent, and buffers for those that wait: the kernel's queue knows no
/// fairness, so it is emptied into one that does.
const TUN_BURST: usize = 64;
const BUFFERS: usize = 128;
/// With all buffers in use and at least so many bytes in them, the fattest flow gives way to what comes.
const BULK: usize = 2 << 20;
/// Bytes sent before the sockets have their turn: two super-packets, which leave with one system call.
const TURN: usize = 112 * 1024;
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

#[derive(Debug)]
struct Direct {
    socket: Box<Xsk>,
    crowd: Crowd,
    closed: bool,
}

#[derive(Debug)]
struct WaitingFor {
    since: Instant,
    reminded: Instant,
    destination: IpAddr,
    packets: Vec<(VirtioHeader, Box<[u8]>)>,
}

/// One thread of the data path.
#[derive(Debug)]
pub struct Worker {
    shared: Arc<Shared>,
    tun: Option<Queue>,
    sockets: Arc<Vec<Socket>>,
    wake: Arc<Wake>,
    rx: RxBatch,
    outlet: Outlet,
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
            outlet: Outlet::default(),
            buffers: (0..BUFFERS)
                .map(|_| vec![0; tun::READ].into_boxed_slice())
                .collect(),
            free: (0..BUFFERS as u16).rev().collect(),
            backlog: queue::Queue::new(BUFFERS),
            began: now,
            arrivals: Vec::with_capacity(xsk::BATCH),
            orders,
            direct: vec![],
            frames: Vec::with_capacity(xsk::BATCH),
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
        [self.wake.raw(), self.tun.as_ref().map_or(-1, Queue::raw)]
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
                    crowd: Crowd::default(),
                    socket,
                    closed: false,
                }),
                Order::Send(sender) => self.outlet.xdp = Some(sender),
                Order::Close { interface } => self
                    .direct
                    .retain(|direct| direct.socket.interface() != interface),
            }
        }
        changed
    }

    fn flush(&mut self) {
        self.outlet.flush(&self.shared, &self.sockets);
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
                if mark && mark_congestion(packet) {
                    shared.counters.one(Counter::EcnMarked);
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
        let (outlet, sockets) = (&mut self.outlet, &self.sockets);
        if let Err(refused) = send(shared, table, outlet, sockets, header, packet, short) {
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
                        &mut self.outlet,
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
                    &mut self.outlet.udp,
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
            Relief::NONE,
        );
        self.flush();
    }

    /// Takes what an AF_XDP socket has: packets that the XDP program verified and that end here.
    fn take_direct(&mut self, index: usize) {
        let Some(Direct { socket, crowd, .. }) = self.direct.get_mut(index) else {
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
                    &mut self.outlet.udp,
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
        let relief = crowd.relief(socket.left(), Instant::now);
        deliver(
            &shared,
            &table,
            self.tun.as_ref(),
            &mut self.coalescer,
            &mut self.arrivals,
            socket.memory(),
            relief,
        );
        self.flush();
    }
}
