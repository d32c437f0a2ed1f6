//! UDP sockets of the underlay, and the only place that knows their kernel tricks: batched system calls,
//! `UDP_SEGMENT`, `UDP_GRO`, packet information, traffic class, don't-fragment, IPv6 without checksum.
//!
//! A worker owns a receive batch and a transmit batch; sockets may be used by several threads.

mod message;
mod receive;
mod transmit;

use std::{
    io, mem,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};

use self::message::{Control, to_storage};
pub use self::{
    receive::{Meta, RxBatch},
    transmit::{Sent, TxBatch},
};

/// Datagrams per system call.
pub const BATCH: usize = 64;
/// Bytes of one packet buffer: an underlay MTU of 9216 and some.
pub const BUFFER: usize = 9728;
/// Socket buffers asked for, bytes; the system may give less.
const SOCKET_BUFFER: libc::c_int = 8 << 20;

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

/// A non-blocking UDP socket on the wildcard address of one family.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    ipv6: bool,
    /// Whether `UDP_SEGMENT` is used: as long as the kernel has not refused it.
    segmentation: AtomicBool,
    /// Why bundles are not received, where they are not.
    no_bundles: Option<String>,
    /// Datagrams lost on reception, as far as was told.
    lost: AtomicU32,
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
        let mut socket = Self {
            fd,
            ipv6,
            segmentation: AtomicBool::new(true),
            no_bundles: None,
            lost: AtomicU32::new(0),
        };
        socket.configure(shared)?;
        // What is lost is told with the next datagram; without it, it is not known.
        let _ = socket.set(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1);
        if let Err(error) = socket.set(libc::IPPROTO_UDP, libc::UDP_GRO, 1) {
            socket.no_bundles = Some(format!("the kernel refuses UDP_GRO: {error}"));
        }
        // A segment size of 0 changes nothing; a kernel without the option refuses it all the same.
        if socket.set(libc::IPPROTO_UDP, libc::UDP_SEGMENT, 0).is_err() {
            socket.segmentation.store(false, Ordering::Relaxed);
        }
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

    /// Whether datagrams of one size leave as one (`UDP_SEGMENT`).
    pub fn segments(&self) -> bool {
        self.segmentation.load(Ordering::Relaxed)
    }

    /// Datagrams lost on reception since the last call, by what came with a datagram ([`Meta::lost`]).
    pub fn newly_lost(&self, told: u32) -> u32 {
        if told == 0 {
            return 0;
        }
        told.wrapping_sub(self.lost.swap(told, Ordering::Relaxed))
    }

    /// Why datagrams do not arrive in bundles (`UDP_GRO`), where they do not.
    pub fn no_bundles(&self) -> Option<&str> {
        self.no_bundles.as_deref()
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

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::{message::from_storage, *};

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
            batch.receive(socket).unwrap();
            for index in 0..batch.len() {
                let meta = batch.meta(index);
                for range in meta.datagrams() {
                    got.push((meta, batch.bytes()[range].to_vec()));
                }
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
