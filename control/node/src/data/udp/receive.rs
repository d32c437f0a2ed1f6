//! Receiving many datagrams with one system call.

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    ptr,
};

use super::{
    BATCH, Socket,
    message::{CONTROL, Control, from_storage},
};

/// Bytes of a receive buffer: the largest bundle. The odd rest keeps the beginnings of neighbouring buffers out of one
/// another's cache lines, for most buffers hold one datagram.
const BUNDLE: usize = 65_536 + 2_112;
/// Messages asked for while bundles come.
const BUNDLES: usize = 8;

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
    /// Where it begins in [`RxBatch::memory`].
    pub start: usize,
    /// Bytes received.
    pub len: usize,
    /// Bytes of each datagram but the last, of a bundle; `len` where it is one datagram.
    pub segment: usize,
    /// Whether it was longer than the buffer.
    pub truncated: bool,
    /// Datagrams the socket had lost until then, ever since it was opened, modulo 2^32; 0 where the kernel does not tell.
    pub lost: u32,
}

impl Meta {
    /// Where each datagram stands in [`RxBatch::memory`].
    pub fn datagrams(&self) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
        let (start, end) = (self.start, self.start + self.len);
        let segment = self.segment.max(1);
        // An empty datagram is one all the same.
        (0..self.len.div_ceil(segment).max(1)).map(move |index| {
            let from = start + index * segment;
            from..(from + segment).min(end)
        })
    }
}

/// Receive buffers of one worker.
pub struct RxBatch {
    memory: Box<[u8]>,
    /// Messages asked for in the next call: fewer while bundles come, so that what is received stays in the cache.
    ask: usize,
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
            // Zeroed by the kernel page by page, when they are first used.
            memory: vec![0; BATCH * BUNDLE].into_boxed_slice(),
            ask: BATCH,
            names: vec![name; BATCH],
            controls: vec![Control::default(); BATCH],
            iovecs: vec![iovec; BATCH],
            messages: vec![message; BATCH],
            meta: Vec::with_capacity(BATCH),
        }
    }
}

impl RxBatch {
    /// Receives what is there, at most [`BATCH`] datagrams or bundles; tells whether there may be more. Never blocks.
    pub fn receive(&mut self, socket: &Socket) -> io::Result<bool> {
        self.meta.clear();
        for (index, buffer) in self.memory.chunks_exact_mut(BUNDLE).enumerate() {
            if index == self.ask {
                break;
            }
            self.iovecs[index] = libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: BUNDLE,
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
                self.ask as libc::c_uint,
                libc::MSG_DONTWAIT as _,
                ptr::null_mut(),
            )
        };
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock {
                Ok(false)
            } else {
                Err(error)
            };
        }
        let count = count as usize;
        let mut bytes = 0;
        for index in 0..count {
            let meta = self.parse(index);
            bytes += meta.len;
            self.meta.push(meta);
        }
        let full = count == self.ask;
        self.ask = if bytes > count * 4096 { BUNDLES } else { BATCH };
        Ok(full)
    }

    /// How many were received.
    pub fn len(&self) -> usize {
        self.meta.len()
    }

    /// Whether none were.
    pub fn is_empty(&self) -> bool {
        self.meta.is_empty()
    }

    /// One of them.
    pub fn meta(&self, index: usize) -> Meta {
        self.meta[index]
    }

    /// Where everything received stands.
    pub fn memory(&mut self) -> &mut [u8] {
        &mut self.memory
    }

    /// The same, for reading.
    pub fn bytes(&self) -> &[u8] {
        &self.memory
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
            start: index * BUNDLE,
            len: (message.msg_len as usize).min(BUNDLE),
            segment: (message.msg_len as usize).min(BUNDLE),
            truncated: message.msg_hdr.msg_flags & libc::MSG_TRUNC != 0,
            lost: 0,
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
                    (libc::SOL_SOCKET, libc::SO_RXQ_OVFL) => {
                        meta.lost = ptr::read_unaligned(data.cast());
                    }
                    (libc::IPPROTO_UDP, libc::UDP_GRO) => {
                        let segment = ptr::read_unaligned(data.cast::<libc::c_int>());
                        // Never more than the bundle; 0 would be no size.
                        if segment > 0 {
                            meta.segment = (segment as usize).min(meta.len.max(1));
                        }
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
