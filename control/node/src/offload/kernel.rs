//! Our cutting and putting together next to the kernel's own, on the same packets: a TUN interface that packets go into,
//! IP forwarding, and one that they come out of, in a network namespace of the test's own.
//!
//! Cutting: the far interface takes no super-packets, so the kernel cuts. Putting together: the near interface runs
//! packets through the kernel's GRO (`IFF_NAPI`), and the far one takes them as they are. The kernel lowers the TTL by one
//! on the way; so does the test.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::{AsRawFd as _, FromRawFd as _},
    time::{Duration, Instant},
};

use super::{
    build,
    checksum::Sum,
    gro::{Coalescer, Piece, Place, Sink, Takes},
    gso::Cut,
    header::put_u16,
    virtio::{self, Gso, VirtioHeader},
};
use crate::netlink::{HostRoute, Netlink};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const IFF_NAPI: libc::c_int = 0x0010;
/// How long the kernel's GRO holds packets back: longer than it takes to write all of them.
const HOLD: &str = "300000000";

fn obstacle() -> Option<String> {
    // SAFETY: takes and gives nothing but a number.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root for network namespaces".to_owned());
    }
    (!std::path::Path::new("/dev/net/tun").exists())
        .then(|| "/dev/net/tun does not exist".to_owned())
}

fn skip(reason: &str) {
    let thread = std::thread::current();
    println!("SKIPPED {}: {reason}", thread.name().unwrap_or("a test"));
}

struct Tun(fs::File);

impl Tun {
    fn open(name: &str, flags: libc::c_int, offload: libc::c_ulong) -> std::io::Result<Self> {
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe {
            libc::open(
                c"/dev/net/tun".as_ptr(),
                libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK,
            )
        };
        if fd < 0 {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let file = unsafe { fs::File::from_raw_fd(fd) };
        // SAFETY: an all-zero ifreq is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | flags;
        request.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: the structure lives through the call; the second call takes a number.
        let outcome = unsafe {
            libc::ioctl(
                file.as_raw_fd(),
                TUNSETIFF as _,
                std::ptr::from_ref(&request),
            ) | libc::ioctl(file.as_raw_fd(), TUNSETOFFLOAD as _, offload)
        };
        if outcome < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(Self(file))
    }

    fn write(&self, header: &VirtioHeader, packet: &[u8]) {
        let bytes = [&header.to_bytes()[..], packet].concat();
        (&self.0).write_all(&bytes).unwrap();
    }

    /// Everything for these addresses that comes until it has been quiet for a while.
    fn read(&self, quiet: Duration) -> Vec<(VirtioHeader, Vec<u8>)> {
        let mut got = vec![];
        let mut buffer = vec![0; virtio::LEN + 65_536];
        let mut last = Instant::now();
        while last.elapsed() < quiet {
            match (&self.0).read(&mut buffer) {
                Ok(len) => {
                    let header = VirtioHeader::read(buffer.first_chunk().unwrap()).unwrap();
                    let packet = buffer[virtio::LEN..len].to_vec();
                    // Neighbour discovery and the like are not ours.
                    if packet[0] == 0x45 && packet[12] == 10
                        || packet[0] >> 4 == 6 && packet[8] == 0xfd
                    {
                        got.push((header, packet));
                        last = Instant::now();
                    }
                }
                Err(_) => std::thread::yield_now(),
            }
        }
        got
    }
}

/// A router of two interfaces in a namespace of this thread's own, which ends with the thread.
fn router(near: libc::c_int, far: libc::c_ulong) -> std::io::Result<(Tun, Tun)> {
    // SAFETY: changes the namespaces of this thread alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let none = std::ptr::null::<libc::c_char>();
    // SAFETY: terminated strings; what is mounted is seen in this thread's namespace alone.
    let mounted = unsafe {
        libc::mount(
            none,
            c"/".as_ptr(),
            none,
            libc::MS_REC | libc::MS_PRIVATE,
            none.cast(),
        ) | libc::mount(
            c"sysfs".as_ptr(),
            c"/sys".as_ptr(),
            c"sysfs".as_ptr(),
            0,
            none.cast(),
        )
    };
    if mounted < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let (a, b) = (Tun::open("near", near, 0)?, Tun::open("far", 0, far)?);
    if near & IFF_NAPI != 0 {
        fs::write("/sys/class/net/near/gro_flush_timeout", HOLD)?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let (netlink, _events) = Netlink::open().map_err(std::io::Error::other)?;
        // SAFETY: terminated strings.
        let index = |name: &std::ffi::CStr| unsafe { libc::if_nametoindex(name.as_ptr()) };
        let (near, far) = (index(c"near"), index(c"far"));
        for (link, address) in [(near, "10.255.0.1"), (far, "10.255.0.2")] {
            netlink
                .set_up(link, 9_500, 1_000)
                .await
                .map_err(std::io::Error::other)?;
            netlink
                .add_address(link, address.parse().unwrap(), 32)
                .await
                .map_err(std::io::Error::other)?;
        }
        for (prefix, prefix_len, link) in [("10.0.0.200", 32, far), ("fd00::", 16, far)] {
            let route = HostRoute {
                prefix: prefix.parse::<IpAddr>().unwrap(),
                prefix_len,
                link,
                metric: 1,
                mtu: None,
                source: None,
            };
            netlink
                .set_route(&route)
                .await
                .map_err(std::io::Error::other)?;
        }
        Ok::<_, std::io::Error>(())
    })?;
    for (file, value) in [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")] {
        fs::write(format!("/proc/sys/net/{file}"), value)?;
    }
    Ok((a, b))
}

/// What forwarding does to a packet.
fn forwarded(mut packet: Vec<u8>) -> Vec<u8> {
    if packet[0] >> 4 == 6 {
        packet[7] -= 1;
    } else {
        packet[8] -= 1;
        put_u16(&mut packet, 10, 0);
        let sum = Sum::default().bytes(&packet[..20]).checksum();
        put_u16(&mut packet, 10, sum);
    }
    packet
}

/// A super-packet as the kernel would make it: the checksum is partial.
fn partial(mut packet: Vec<u8>, gso: Gso, size: usize) -> (VirtioHeader, Vec<u8>) {
    let v6 = packet[0] >> 4 == 6;
    let (start, field, protocol) = match gso {
        Gso::Udp => (if v6 { 40 } else { 20 }, 6, 17),
        _ => (if v6 { 40 } else { 20 }, 16, 6),
    };
    let addresses = if v6 {
        packet[8..40].to_vec()
    } else {
        packet[12..20].to_vec()
    };
    let sum = Sum::pseudo(&addresses, protocol, packet.len() - start).folded();
    put_u16(&mut packet, start + field, sum);
    let transport = if gso == Gso::Udp {
        8
    } else {
        usize::from(packet[start + 12] >> 4) * 4
    };
    let header = VirtioHeader {
        partial: Some((start as u16, field as u16)),
        gso,
        ecn: gso != Gso::Udp && packet[start + 13] & 0x80 != 0,
        header_len: (start + transport) as u16,
        gso_size: size as u16,
    };
    (header, packet)
}

#[test]
fn the_kernel_cuts_alike() {
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    let (near, far) = match router(0, 0) {
        Ok(router) => router,
        Err(error) => return skip(&format!("no namespace with two TUN interfaces: {error}")),
    };
    // The kernel drops a super-packet of exactly one full segment: it never makes one.
    for (payload, size) in [
        (1, 1_000),
        (1_001, 1_000),
        (3_000, 1_000),
        (60_000, 1_388),
        (9_000, 8_900),
        (60_000, 1_000),
    ] {
        for v6 in [false, true] {
            let ip = build::Ip {
                tos: 0x2a,
                label: 0x12345,
                ..build::Ip::default()
            };
            for flags in [0x10, 0x18, 0x19, 0x90, 0x99] {
                let tcp = build::Tcp {
                    v6,
                    ip: ip.clone(),
                    id: 0xfff0,
                    sequence: u32::MAX - 5_000,
                    flags,
                    options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
                    payload: build::bytes(payload),
                    ..build::Tcp::default()
                };
                let gso = if v6 { Gso::Tcp6 } else { Gso::Tcp4 };
                alike(&near, &far, tcp.packet(), gso, size);
            }
            let udp = build::Udp {
                v6,
                ip: ip.clone(),
                id: 0xfff0,
                payload: build::bytes(payload),
                ..build::Udp::default()
            };
            alike(&near, &far, udp.packet(), Gso::Udp, size);
        }
    }
}

fn alike(near: &Tun, far: &Tun, packet: Vec<u8>, gso: Gso, size: usize) {
    let (header, packet) = partial(packet, gso, size);
    let cut = Cut::new(&header, &packet).unwrap();
    near.write(&header, &packet);
    let mut kernel = vec![];
    let deadline = Instant::now() + Duration::from_secs(5);
    while kernel.len() < cut.segments() && Instant::now() < deadline {
        kernel.extend(far.read(Duration::from_millis(1)));
    }
    let ours: Vec<_> = (0..cut.segments())
        .map(|index| {
            let mut out = vec![0; cut.longest()];
            let len = cut.write(&packet, index, &mut out).unwrap();
            out.truncate(len);
            forwarded(out)
        })
        .collect();
    let theirs: Vec<_> = kernel
        .into_iter()
        .map(|(header, mut packet)| {
            super::gso::complete(&header, &mut packet).unwrap();
            packet
        })
        .collect();
    assert_eq!(theirs.len(), ours.len(), "{header:?}");
    for (index, (theirs, ours)) in theirs.iter().zip(&ours).enumerate() {
        assert_eq!(theirs, ours, "segment {index} of {header:?}");
    }
}

struct Kept<'a>(&'a [Vec<u8>], Vec<(VirtioHeader, Vec<u8>)>);

impl Sink for Kept<'_> {
    fn write(&mut self, virtio: &VirtioHeader, head: &[u8], pieces: &[Piece], _packets: usize) {
        let mut packet = head.to_vec();
        for piece in pieces {
            packet.extend(
                &self.0[piece.buffer as usize][piece.start as usize..][..piece.len as usize],
            );
        }
        self.1.push((*virtio, packet));
    }
}

#[test]
fn the_kernel_puts_together_alike() {
    if let Some(reason) = obstacle() {
        return skip(&reason);
    }
    // Checksums, TSO4, TSO6.
    let (near, far) = match router(IFF_NAPI, 7) {
        Ok(router) => router,
        Err(error) => return skip(&format!("no TUN interface with GRO: {error}")),
    };
    for v6 in [false, true] {
        let mut next = build::Tcp {
            v6,
            id: 0xfff8,
            sequence: u32::MAX - 4_000,
            options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8],
            ..build::Tcp::default()
        };
        let mut packets = vec![];
        // Each what differs from a plain stream, and its payload.
        type Change = fn(&mut build::Tcp);
        let changes: [(Change, usize); 16] = [
            (|_| {}, 1_000),
            (|_| {}, 1_000),
            (|_| {}, 1_000),
            (|tcp| tcp.flags = 0x18, 1_000),
            (|_| {}, 1_000),
            (|_| {}, 700),
            (|_| {}, 1_000),
            (|tcp| tcp.acknowledged += 1, 1_000),
            (|_| {}, 1_000),
            (|tcp| tcp.window += 1, 1_000),
            (|_| {}, 1_000),
            (|tcp| tcp.options[5] += 1, 1_000),
            (|_| {}, 1_000),
            (|tcp| tcp.ip.tos = 3, 1_000),
            (|_| {}, 1_000),
            (|tcp| tcp.flags = 0x19, 400),
        ];
        for (change, len) in changes {
            change(&mut next);
            next.payload = build::bytes(len);
            packets.push(next.packet());
            next.flags = 0x10;
            next.sequence = next.sequence.wrapping_add(len as u32);
            next.id = next.id.wrapping_add(1);
        }
        let mut kept = Kept(&packets, vec![]);
        let mut coalescer = Coalescer::new(Takes {
            tcp: true,
            udp: true,
        });
        for (index, packet) in packets.iter().enumerate() {
            let place = Place {
                buffer: index as u32,
                start: 0,
            };
            coalescer.push(packet, place, &mut kept);
        }
        coalescer.flush(&mut kept);

        for packet in &packets {
            near.write(&VirtioHeader::default(), packet);
        }
        let kernel = far.read(Duration::from_millis(900));
        let sizes = |all: &[(VirtioHeader, Vec<u8>)]| -> Vec<usize> {
            all.iter().map(|(_, packet)| packet.len()).collect()
        };
        assert_eq!(sizes(&kernel), sizes(&kept.1), "IPv6: {v6}");
        for (index, ((theirs, their_packet), (ours, our_packet))) in
            kernel.iter().zip(&kept.1).enumerate()
        {
            assert_eq!((theirs.gso, theirs.ecn), (ours.gso, ours.ecn), "{index}");
            if ours.gso != Gso::None {
                assert_eq!(
                    (theirs.gso_size, theirs.partial),
                    (ours.gso_size, ours.partial),
                    "{index}"
                );
            }
            assert_eq!(their_packet, &forwarded(our_packet.clone()), "{index}");
        }
    }
}
