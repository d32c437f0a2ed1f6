//! UDP sockets of the underlay, and the only place that knows their kernel tricks: batched system calls,
//! `UDP_SEGMENT`, packet information, traffic class, don't-fragment, IPv6 without checksum.
//!
//! A worker owns a receive batch and a transmit batch; sockets may be used by several threads.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicBool, Ordering},
};

/// Datagrams per system call.
pub const BATCH: usize = 64;
/// Bytes of one packet buffer: an underlay MTU of 9216 and some.
pub const BUFFER: usize = 9728;
/// Socket buffers asked for, bytes; the system may give less.
const SOCKET_BUFFER: libc::c_int = 8 << 20;
/// Segments the kernel takes in one `UDP_SEGMENT` send, and the bytes of the whole.
const MAX_SEGMENTS: usize = 64;
const MAX_SEGMENTED: usize = 65_000;
/// Room for the control messages of one datagram.
const CONTROL: usize = 128;

/// Where a datagram goes and from where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The neighbour.
    pub remote: SocketAddr,
    /// Our address; unspecified leaves the choice to the kernel.
    pub local: IpAddr,
    /// Egress interface; 0 leaves the choice to the routing table.
    pub interface: u32,
}

/// What the kernel told of a received datagram.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Sender.
    pub source: SocketAddr,
    /// The local address it was sent to.
    pub local: IpAddr,
    /// Interface it came in on.
    pub interface: u32,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
    /// Bytes in the buffer.
    pub len: usize,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
}

/// A non-blocking UDP socket on the wildcard address of one family.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    ipv6: bool,
    segmentation: AtomicBool,
}

impl Socket {
    /// Binds. `shared` sets `SO_REUSEPORT`, for the sockets of the workers of one process.
    pub fn bind(ipv6: bool, port: u16, shared: bool) -> io::Result<Self> {
        let family = if ipv6 { libc::AF_INET6 } else { libc::AF_INET };
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe {
            libc::socket(
                family,
                libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self {
            fd,
            ipv6,
            segmentation: AtomicBool::new(true),
        };
        socket.configure(shared)?;
        let (storage, len) = to_storage(if ipv6 {
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
        } else {
            SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))
        });
        // SAFETY: the address is initialised and `len` is its length.
        if unsafe { libc::bind(socket.raw(), ptr::from_ref(&storage).cast(), len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(socket)
    }

    fn configure(&self, shared: bool) -> io::Result<()> {
        if shared {
            self.set(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        // The forced variants need CAP_NET_ADMIN; the plain ones are clamped silently.
        for (forced, plain) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF),
        ] {
            if self.set(libc::SOL_SOCKET, forced, SOCKET_BUFFER).is_err() {
                self.set(libc::SOL_SOCKET, plain, SOCKET_BUFFER)?;
            }
        }
        if self.ipv6 {
            self.set(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO, 1)?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
            self.set(
                libc::IPPROTO_IPV6,
                libc::IPV6_MTU_DISCOVER,
                libc::IPV6_PMTUDISC_PROBE,
            )?;
            self.set(libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 64)?;
            self.set(libc::IPPROTO_UDP, libc::UDP_NO_CHECK6_RX, 1)?;
        } else {
            self.set(libc::IPPROTO_IP, libc::IP_PKTINFO, 1)?;
            self.set(libc::IPPROTO_IP, libc::IP_RECVTOS, 1)?;
            self.set(
                libc::IPPROTO_IP,
                libc::IP_MTU_DISCOVER,
                libc::IP_PMTUDISC_PROBE,
            )?;
            self.set(libc::IPPROTO_IP, libc::IP_TTL, 64)?;
        }
        Ok(())
    }

    fn set(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the option's value is an int that outlives the call.
        let result = unsafe {
            libc::setsockopt(
                self.raw(),
                level,
                name,
                ptr::from_ref(&value).cast(),
                mem::size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Whether this is the IPv6 one.
    pub fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// For polling.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Sends one datagram at once.
    pub fn send(&self, to: &Address, tos: u8, datagram: &[u8]) -> io::Result<()> {
        let (mut name, name_len) = to_storage(to.remote);
        let mut iovec = libc::iovec {
            iov_base: datagram.as_ptr().cast_mut().cast(),
            iov_len: datagram.len(),
        };
        let mut control = Control::default();
        let control_len = control.fill(to, tos, None);
        // SAFETY: an all-zero msghdr is valid.
        let mut message: libc::msghdr = unsafe { mem::zeroed() };
        message.msg_name = ptr::from_mut(&mut name).cast();
        message.msg_namelen = name_len;
        message.msg_iov = &mut iovec;
        message.msg_iovlen = 1;
        message.msg_control = control.0.as_mut_ptr().cast();
        message.msg_controllen = control_len as _;
        // SAFETY: all pointers of the message live until the call returns; the kernel only reads them.
        if unsafe { libc::sendmsg(self.raw(), &message, libc::MSG_NOSIGNAL) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

/// Whether the port is free in both families. Sockets with `SO_REUSEPORT` would share it silently with another
/// daemon of the same user, hence this look before they are opened.
pub fn port_is_free(port: u16) -> io::Result<()> {
    for ipv6 in [false, true] {
        match Socket::bind(ipv6, port, false) {
            Ok(_) => {}
            Err(error) if ipv6 && error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Alignment and room for one datagram's control messages.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

impl Default for Control {
    fn default() -> Self {
        Self([0; CONTROL])
    }
}

impl Control {
    /// Source address and egress, traffic class, segment size. Returns the length.
    fn fill(&mut self, to: &Address, tos: u8, segment: Option<u16>) -> usize {
        let mut used = 0;
        match (to.remote, to.local) {
            (SocketAddr::V4(_), IpAddr::V4(local)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: to.interface as libc::c_int,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(local.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.push(&mut used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                self.push(
                    &mut used,
                    libc::IPPROTO_IP,
                    libc::IP_TOS,
                    libc::c_int::from(tos),
                );
            }
            (SocketAddr::V6(_), IpAddr::V6(local)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: local.octets(),
                    },
                    ipi6_ifindex: to.interface as _,
                };
                self.push(&mut used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                self.push(
                    &mut used,
                    libc::IPPROTO_IPV6,
                    libc::IPV6_TCLASS,
                    libc::c_int::from(tos),
                );
            }
            _ => {}
        }
        if let Some(segment) = segment {
            self.push(&mut used, libc::IPPROTO_UDP, libc::UDP_SEGMENT, segment);
        }
        used
    }

    fn push<T: Copy>(&mut self, used: &mut usize, level: libc::c_int, kind: libc::c_int, value: T) {
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute.
        let (len, space) = unsafe {
            (
                libc::CMSG_LEN(mem::size_of::<T>() as u32) as usize,
                libc::CMSG_SPACE(mem::size_of::<T>() as u32) as usize,
            )
        };
        debug_assert!(*used + space <= CONTROL);
        // SAFETY: the buffer is aligned for cmsghdr, the three messages of `fill` fit into it, and every header is
        // written before the next one's place is computed.
        unsafe {
            let header: *mut libc::cmsghdr = self.0.as_mut_ptr().add(*used).cast();
            (*header).cmsg_len = len as _;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
        }
        *used += space;
    }
}

/// Receive buffers of one worker.
pub struct RxBatch {
    buffers: Vec<Box<[u8]>>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    meta: Vec<Meta>,
}

// SAFETY: its pointers are set anew to its own memory before the kernel follows them, within one call.
unsafe impl Send for RxBatch {}

impl std::fmt::Debug for RxBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RxBatch")
    }
}

impl Default for RxBatch {
    fn default() -> Self {
        // SAFETY: all-zero is a valid value of these C structures.
        let (name, message) = unsafe { (mem::zeroed(), mem::zeroed()) };
        let iovec = libc::iovec {
            iov_base: ptr::null_mut(),
            iov_len: 0,
        };
        Self {
            buffers: (0..BATCH)
                .map(|_| vec![0; BUFFER].into_boxed_slice())
                .collect(),
            names: vec![name; BATCH],
            controls: vec![Control::default(); BATCH],
            iovecs: vec![iovec; BATCH],
            messages: vec![message; BATCH],
            meta: Vec::with_capacity(BATCH),
        }
    }
}

impl RxBatch {
    /// Receives what is there, at most [`BATCH`] datagrams; returns how many. Never blocks.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<usize> {
        self.meta.clear();
        for index in 0..BATCH {
            self.iovecs[index] = libc::iovec {
                iov_base: self.buffers[index].as_mut_ptr().cast(),
                iov_len: BUFFER,
            };
            let header = &mut self.messages[index].msg_hdr;
            header.msg_name = ptr::from_mut(&mut self.names[index]).cast();
            header.msg_namelen = mem::size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &mut self.iovecs[index];
            header.msg_iovlen = 1;
            header.msg_control = self.controls[index].0.as_mut_ptr().cast();
            header.msg_controllen = CONTROL as _;
            header.msg_flags = 0;
        }
        // SAFETY: every pointer in the messages was just set to memory this batch owns, with its true length.
        let count = unsafe {
            libc::recvmmsg(
                socket.raw(),
                self.messages.as_mut_ptr(),
                BATCH as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(0)
            } else {
                Err(error)
            };
        }
        let count = count as usize;
        for index in 0..count {
            let meta = self.parse(index);
            self.meta.push(meta);
        }
        Ok(count)
    }

    /// One received datagram.
    pub fn get_mut(&mut self, index: usize) -> (Meta, &mut [u8]) {
        let meta = self.meta[index];
        (meta, &mut self.buffers[index][..meta.len])
    }

    fn parse(&self, index: usize) -> Meta {
        let message = &self.messages[index];
        let source = from_storage(&self.names[index]);
        let mut meta = Meta {
            source,
            local: if source.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                Ipv6Addr::UNSPECIFIED.into()
            },
            interface: 0,
            tos: 0,
            len: (message.msg_len as usize).min(BUFFER),
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
        };
        // SAFETY: the kernel filled control buffer and length; the CMSG macros stay inside them.
        unsafe {
            let mut header = libc::CMSG_FIRSTHDR(&message.msg_hdr);
            while !header.is_null() {
                let data = libc::CMSG_DATA(header);
                match ((*header).cmsg_level, (*header).cmsg_type) {
                    (libc::IPPROTO_IP, libc::IP_PKTINFO) => {
                        let info: libc::in_pktinfo = ptr::read_unaligned(data.cast());
                        meta.local = Ipv4Addr::from(info.ipi_addr.s_addr.to_ne_bytes()).into();
                        meta.interface = info.ipi_ifindex as u32;
                    }
                    (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => {
                        let info: libc::in6_pktinfo = ptr::read_unaligned(data.cast());
                        meta.local = Ipv6Addr::from(info.ipi6_addr.s6_addr).into();
                        meta.interface = info.ipi6_ifindex as u32;
                    }
                    (libc::IPPROTO_IP, libc::IP_TOS) => meta.tos = *data,
                    (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                        meta.tos = ptr::read_unaligned(data.cast::<libc::c_int>()) as u8;
                    }
                    _ => {}
                }
                header = libc::CMSG_NXTHDR(&message.msg_hdr, header);
            }
        }
        meta
    }
}

/// One datagram waiting in a [`TxBatch`].
#[derive(Clone, Copy, Debug)]
struct Waiting {
    len: usize,
    to: Address,
    tos: u8,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams handed to the kernel.
    pub packets: u64,
    /// Lost because the socket stayed full.
    pub full: u64,
    /// Refused as longer than the interface's MTU.
    pub too_big: u64,
    /// Refused for any other reason (no route, interface down...).
    pub refused: u64,
}

/// Transmit buffers of one worker: filled one by one, sent together.
pub struct TxBatch {
    buffers: Vec<Box<[u8]>>,
    waiting: Vec<Waiting>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    /// Datagrams in each message.
    counts: Vec<usize>,
}

// SAFETY: its pointers are set anew to its own memory before the kernel follows them, within one call.
unsafe impl Send for TxBatch {}

impl std::fmt::Debug for TxBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxBatch({} waiting)", self.waiting.len())
    }
}

impl Default for TxBatch {
    fn default() -> Self {
        Self {
            buffers: (0..BATCH)
                .map(|_| vec![0; BUFFER].into_boxed_slice())
                .collect(),
            waiting: Vec::with_capacity(BATCH),
            names: Vec::with_capacity(BATCH),
            controls: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            messages: Vec::with_capacity(BATCH),
            counts: Vec::with_capacity(BATCH),
        }
    }
}

impl TxBatch {
    /// Whether the batch must be flushed before the next [`TxBatch::buffer`].
    pub fn is_full(&self) -> bool {
        self.waiting.len() == BATCH
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// The buffer of the next datagram; it counts only once committed. The batch must not be full.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.buffers[self.waiting.len().min(BATCH - 1)]
    }

    /// Adds the first `len` bytes of [`TxBatch::buffer`].
    pub fn commit(&mut self, len: usize, to: Address, tos: u8) {
        if !self.is_full() {
            self.waiting.push(Waiting {
                len: len.min(BUFFER),
                to,
                tos,
            });
        }
    }

    /// Sends everything through the socket of its family and empties the batch.
    ///
    /// A full socket is waited for, for a few milliseconds: the kernel's queue is where packets wait, not this one.
    pub fn flush(&mut self, sockets: &[Socket]) -> Sent {
        let mut sent = Sent::default();
        if self.waiting.is_empty() {
            return sent;
        }
        for socket in sockets {
            let mut segment = socket.segmentation.load(Ordering::Relaxed);
            let mut from = 0;
            // A refused segmented message is repeated without segmentation from where it stood.
            while from < self.waiting.len() {
                let next = self.flush_some(socket, from, segment, &mut sent);
                if next == from {
                    segment = false;
                    socket.segmentation.store(false, Ordering::Relaxed);
                } else {
                    from = next;
                }
            }
        }
        self.waiting.clear();
        sent
    }

    /// Sends from index `from`; returns where to go on. The same index back means: segmentation was refused there.
    fn flush_some(
        &mut self,
        socket: &Socket,
        from: usize,
        segment: bool,
        sent: &mut Sent,
    ) -> usize {
        self.gather(socket, from, segment);
        let mut at = from;
        let mut done = 0;
        let mut waited = false;
        while done < self.messages.len() {
            // SAFETY: `gather` pointed every message at memory that this batch owns and does not move until the next
            // gather; the kernel only reads it.
            let count = unsafe {
                libc::sendmmsg(
                    socket.raw(),
                    self.messages[done..].as_mut_ptr(),
                    (self.messages.len() - done) as libc::c_uint,
                    libc::MSG_NOSIGNAL as _,
                )
            };
            if count > 0 {
                for _ in 0..count {
                    sent.packets += self.datagrams(done) as u64;
                    at = self.after(at, done, socket);
                    done += 1;
                }
                continue;
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN | libc::ENOBUFS) if !waited => {
                    waited = true;
                    wait_writable(socket);
                    continue;
                }
                Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::EMSGSIZE)
                    if self.datagrams(done) > 1 =>
                {
                    // Where the interface cannot, each datagram goes by itself; what stands before was sent.
                    return if at == from && done == 0 {
                        self.single(socket, from, sent)
                    } else {
                        at
                    };
                }
                Some(libc::EAGAIN | libc::ENOBUFS) => sent.full += self.datagrams(done) as u64,
                Some(libc::EMSGSIZE) => sent.too_big += self.datagrams(done) as u64,
                _ => sent.refused += self.datagrams(done) as u64,
            }
            at = self.after(at, done, socket);
            done += 1;
        }
        self.waiting.len()
    }

    /// Sends the run that starts at `from` one by one.
    fn single(&mut self, socket: &Socket, from: usize, sent: &mut Sent) -> usize {
        let run = self.run(from, socket.ipv6, true);
        for index in run.clone() {
            let Waiting { len, to, tos } = self.waiting[index];
            match socket.send(&to, tos, &self.buffers[index][..len]) {
                Ok(()) => sent.packets += 1,
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN | libc::ENOBUFS) => sent.full += 1,
                    Some(libc::EMSGSIZE) => sent.too_big += 1,
                    _ => sent.refused += 1,
                },
            }
        }
        run.end
    }

    fn datagrams(&self, message: usize) -> usize {
        self.counts[message]
    }

    /// Index of the first datagram after message `done` that began at or after `at`.
    fn after(&self, at: usize, done: usize, socket: &Socket) -> usize {
        let start = (at..self.waiting.len())
            .find(|&index| self.waiting[index].to.remote.is_ipv6() == socket.ipv6)
            .unwrap_or(self.waiting.len());
        (start + self.counts[done]).min(self.waiting.len())
    }

    /// The datagrams from the first of this family at or after `from` that can go as one segmented message.
    fn run(&self, from: usize, ipv6: bool, segment: bool) -> std::ops::Range<usize> {
        let Some(start) = (from..self.waiting.len())
            .find(|&index| self.waiting[index].to.remote.is_ipv6() == ipv6)
        else {
            return self.waiting.len()..self.waiting.len();
        };
        let first = self.waiting[start];
        let mut end = start + 1;
        let mut total = first.len;
        while segment && end < self.waiting.len() && end - start < MAX_SEGMENTS {
            let next = self.waiting[end];
            if next.to != first.to
                || next.tos != first.tos
                || next.len > first.len
                || total + next.len > MAX_SEGMENTED
            {
                break;
            }
            total += next.len;
            end += 1;
            // Only the last segment may be shorter.
            if next.len < first.len {
                break;
            }
        }
        start..end
    }

    fn gather(&mut self, socket: &Socket, from: usize, segment: bool) {
        self.names.clear();
        self.controls.clear();
        self.iovecs.clear();
        self.messages.clear();
        self.counts.clear();
        for (buffer, waiting) in self.buffers.iter().zip(&self.waiting) {
            self.iovecs.push(libc::iovec {
                iov_base: buffer.as_ptr().cast_mut().cast(),
                iov_len: waiting.len,
            });
        }
        let mut at = from;
        loop {
            let run = self.run(at, socket.ipv6, segment);
            if run.is_empty() {
                break;
            }
            let first = self.waiting[run.start];
            let (name, name_len) = to_storage(first.to.remote);
            self.names.push(name);
            let mut control = Control::default();
            let size = (run.len() > 1).then_some(first.len as u16);
            let control_len = control.fill(&first.to, first.tos, size);
            self.controls.push(control);
            // SAFETY: an all-zero mmsghdr is valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_namelen = name_len;
            message.msg_hdr.msg_iov = &mut self.iovecs[run.start];
            message.msg_hdr.msg_iovlen = run.len() as _;
            message.msg_hdr.msg_controllen = control_len as _;
            self.messages.push(message);
            self.counts.push(run.len());
            at = run.end;
        }
        // The vectors have their final places only now.
        for ((message, name), control) in self
            .messages
            .iter_mut()
            .zip(&mut self.names)
            .zip(&mut self.controls)
        {
            message.msg_hdr.msg_name = ptr::from_mut(name).cast();
            message.msg_hdr.msg_control = control.0.as_mut_ptr().cast();
        }
    }
}

fn wait_writable(socket: &Socket) {
    let mut poll = libc::pollfd {
        fd: socket.raw(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&mut poll, 1, 5) };
}

fn to_storage(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage, and it is large and aligned enough for both families.
    unsafe {
        let mut storage: libc::sockaddr_storage = mem::zeroed();
        let len = match address {
            SocketAddr::V4(address) => {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in>()
                    .write(libc::sockaddr_in {
                        sin_family: libc::AF_INET as _,
                        sin_port: address.port().to_be(),
                        sin_addr: libc::in_addr {
                            s_addr: u32::from_ne_bytes(address.ip().octets()),
                        },
                        sin_zero: [0; 8],
                    });
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in6>()
                    .write(libc::sockaddr_in6 {
                        sin6_family: libc::AF_INET6 as _,
                        sin6_port: address.port().to_be(),
                        sin6_flowinfo: 0,
                        sin6_addr: libc::in6_addr {
                            s6_addr: address.ip().octets(),
                        },
                        sin6_scope_id: address.scope_id(),
                    });
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, len as libc::socklen_t)
    }
}

fn from_storage(storage: &libc::sockaddr_storage) -> SocketAddr {
    // SAFETY: the family says which of the two the kernel wrote; both fit and are aligned in a sockaddr_storage.
    unsafe {
        if i32::from(storage.ss_family) == libc::AF_INET6 {
            let address: &libc::sockaddr_in6 = &*ptr::from_ref(storage).cast();
            SocketAddrV6::new(
                address.sin6_addr.s6_addr.into(),
                u16::from_be(address.sin6_port),
                0,
                address.sin6_scope_id,
            )
            .into()
        } else {
            let address: &libc::sockaddr_in = &*ptr::from_ref(storage).cast();
            SocketAddrV4::new(
                address.sin_addr.s_addr.to_ne_bytes().into(),
                u16::from_be(address.sin_port),
            )
            .into()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    fn bound(ipv6: bool) -> (Socket, SocketAddr) {
        let socket = Socket::bind(ipv6, 0, false).unwrap();
        // SAFETY: the storage is large enough and its length is passed.
        let storage = unsafe {
            let mut storage: libc::sockaddr_storage = mem::zeroed();
            let mut len = mem::size_of_val(&storage) as libc::socklen_t;
            assert_eq!(
                libc::getsockname(socket.raw(), ptr::from_mut(&mut storage).cast(), &mut len),
                0
            );
            storage
        };
        let port = from_storage(&storage).port();
        let loopback: IpAddr = if ipv6 {
            Ipv6Addr::LOCALHOST.into()
        } else {
            Ipv4Addr::LOCALHOST.into()
        };
        (socket, SocketAddr::new(loopback, port))
    }

    fn receive_all(socket: &Socket, want: usize) -> Vec<(Meta, Vec<u8>)> {
        let mut batch = RxBatch::default();
        let mut got = vec![];
        let deadline = Instant::now() + Duration::from_secs(5);
        while got.len() < want && Instant::now() < deadline {
            for index in 0..batch.receive(socket).unwrap() {
                let (meta, bytes) = batch.get_mut(index);
                got.push((meta, bytes.to_vec()));
            }
        }
        got
    }

    #[test]
    fn batches_of_mixed_lengths_families_and_classes_arrive_whole() {
        let (to4, address4) = bound(false);
        let (to6, address6) = bound(true);
        let senders = [bound(false).0, bound(true).0];
        let mut batch = TxBatch::default();
        let mut want: [Vec<(u8, Vec<u8>)>; 2] = [vec![], vec![]];
        let lens = [
            1200, 1200, 1200, 300, 300, 1200, 40, 1200, 1200, 1201, 1201, 7,
        ];
        for (index, len) in lens.into_iter().cycle().take(BATCH).enumerate() {
            let v6 = index / 7 % 2 == 1;
            let tos = if index / 20 % 2 == 1 { 0xb8 } else { 2 };
            let bytes = vec![index as u8; len];
            batch.buffer()[..len].copy_from_slice(&bytes);
            let remote = if v6 { address6 } else { address4 };
            batch.commit(
                len,
                Address {
                    remote,
                    local: remote.ip(),
                    interface: 0,
                },
                tos,
            );
            want[usize::from(v6)].push((tos, bytes));
        }
        assert!(batch.is_full());
        let sent = batch.flush(&senders);
        assert_eq!(
            sent,
            Sent {
                packets: BATCH as u64,
                ..Sent::default()
            }
        );
        for (socket, want) in [(&to4, &want[0]), (&to6, &want[1])] {
            let got: Vec<_> = receive_all(socket, want.len())
                .into_iter()
                .map(|(meta, bytes)| (meta.tos, bytes))
                .collect();
            assert_eq!(&got, want);
        }
    }

    #[test]
    fn the_local_address_is_told_and_obeyed() {
        let (to, address) = bound(false);
        let (from, _) = bound(false);
        let other: IpAddr = Ipv4Addr::new(127, 0, 0, 9).into();
        from.send(
            &Address {
                remote: address,
                local: other,
                interface: 0,
            },
            0,
            b"x",
        )
        .unwrap();
        let got = receive_all(&to, 1);
        assert_eq!(got[0].0.source.ip(), other);
        assert_eq!(got[0].0.local, address.ip());
        assert_ne!(got[0].0.interface, 0);
    }

    #[test]
    fn a_port_in_use_is_noticed() {
        let (_socket, address) = bound(false);
        assert_eq!(
            port_is_free(address.port()).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
    }
}
