//! What the threads of the data path share with the control loop, and what passes between them.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::IpAddr,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    sync::{Arc, atomic::AtomicBool},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use weft_abi::{Label, NextHopIndex, Slot};
use weft_core::io::{Exception, ForwardMode, SessionIndex, UnderlayPath};

use super::{
    counters::{Counter, Counters},
    packet::Lanes,
    session::Table,
    udp::{Address, Sent},
    xdp_send::XdpSender,
    xsk::Xsk,
};
use crate::dataplane::SharedTables;

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
    /// Interfaces on which bulk is sent by XDP.
    pub xdp_egress: ArcSwap<HashSet<u32>>,
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
    /// Hands something to the control loop, or counts that its queue is full.
    pub(super) fn hand_up(&self, up: Up) {
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

    /// Adds what was sent by XDP to the counters.
    pub(super) fn count_sent_by_xdp(&self, sent: Sent) {
        self.counters.add(Counter::XdpTx, sent.packets);
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

    /// For polling.
    pub(super) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    pub(super) fn clear(&self) {
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
    /// To send bulk by this.
    Send(Box<XdpSender>),
    /// To give up those of an interface.
    Close {
        /// Its index.
        interface: u32,
    },
}
