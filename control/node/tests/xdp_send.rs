//! Frames laid ready by the daemon leave through the XDP program as they should, on a real veth pair.

mod dataplane_support;

use std::{
    io, mem,
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use dataplane_support::{
    HOP_V4, HOP_V6, LOCAL_V4, LOCAL_V6, NEIGHBOUR_PORT, PORT, REMOTE_V4, REMOTE_V6, config,
    load::{ifindex, in_namespace, veth},
    operations, skip,
};
use weft_abi::{EncapsulationCell, NextHopIndex, TX_FRAMES};
use weft_core::io::ForwardMode;
use weft_node::{
    data::{
        udp::Sent,
        xdp_send::{MAX_MTU, XdpSender},
    },
    dataplane::{self, Config, Dataplane, Egress, PassProgram},
};

const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A plane whose next hops lead over the veth `near`, whose other end is `far`.
struct Lab {
    plane: Dataplane,
    config: Config,
    wire: Wire,
    _pass: PassProgram,
}

impl Drop for Lab {
    fn drop(&mut self) {
        _ = dataplane::cleanup(&self.config.pin_dir);
    }
}

impl Lab {
    /// In this thread's namespace; an error says why BPF cannot be used.
    fn new() -> Result<Self, String> {
        veth(("near", OUR_MAC), ("far", THEIR_MAC));
        let config = config("send");
        let mut plane = match Dataplane::open_kernel(&config) {
            Ok((plane, _)) => plane,
            Err(error @ dataplane::Error::Unusable { .. }) => return Err(error.to_string()),
            Err(error) => panic!("the kernel plane can be opened: {error:?}"),
        };
        for op in operations() {
            plane.apply(&op).expect("the tables take it");
        }
        let pass = PassProgram::attach(ifindex("far")).expect("veth has native XDP");
        Ok(Self {
            plane,
            config,
            wire: Wire::open("far"),
            _pass: pass,
        })
    }

    fn attach(&mut self) {
        let near = ifindex("near");
        let report = self.plane.attach("near", near);
        assert_eq!(report.mode, ForwardMode::KernelNative, "{report:?}");
        for hop in [HOP_V4, HOP_V6] {
            let egress = Egress {
                ifindex: near,
                source_mac: OUR_MAC,
                destination_mac: THEIR_MAC,
                mtu: 1500,
            };
            self.plane
                .set_egress(NextHopIndex(hop), Some(egress))
                .expect("the next hop is there");
        }
    }

    fn sender(&mut self) -> XdpSender {
        let mut senders = self.plane.open_senders(1).expect("senders can be opened");
        senders.remove(0)
    }
}

/// What arrives at an interface.
struct Wire(OwnedFd);

impl Wire {
    fn open(interface: &str) -> Self {
        let all = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, i32::from(all)) };
        assert!(fd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: a fresh descriptor that nobody else owns.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        // SAFETY: all-zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = all;
        address.sll_ifindex = ifindex(interface) as i32;
        let patience = libc::timeval {
            tv_sec: 5,
            tv_usec: 0,
        };
        // SAFETY: addresses and sizes of living values.
        unsafe {
            let bound = libc::bind(
                fd,
                (&raw const address).cast(),
                mem::size_of_val(&address) as u32,
            );
            assert_eq!(bound, 0, "{}", io::Error::last_os_error());
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const patience).cast(),
                mem::size_of_val(&patience) as u32,
            );
            // A frame is counted as a page and more.
            let room: libc::c_int = 4 << 20;
            libc::setsockopt(
                fd,
                libc::SOL_SOCKET,
                libc::SO_RCVBUFFORCE,
                (&raw const room).cast(),
                mem::size_of_val(&room) as u32,
            );
        }
        Self(socket)
    }

    fn next(&self) -> Vec<u8> {
        let mut frame = vec![0; 4096];
        // SAFETY: the buffer's length is passed.
        let len = unsafe {
            libc::recv(
                self.0.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                0,
            )
        };
        assert!(len > 0, "no frame came: {}", io::Error::last_os_error());
        frame.truncate(len as usize);
        frame
    }
}

fn payload(number: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + number) as u8).collect()
}

fn lay(sender: &mut XdpSender, hop: &EncapsulationCell, number: usize, len: usize, tos: u8) {
    sender.payload(hop)[..len].copy_from_slice(&payload(number, len));
    assert!(sender.commit(len, hop, tos));
}

/// RFC 1071 over whole words: all ones where the checksum within is right.
fn summed(bytes: &[u8]) -> u16 {
    let sum: u32 = bytes
        .chunks(2)
        .map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])))
        .sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

/// Takes a frame apart by RFC 791, 8200 and 768 alone, and compares.
fn check(frame: &[u8], v6: bool, payload: &[u8], tos: u8) {
    let short = |at: usize| usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    assert_eq!(frame[..6], THEIR_MAC);
    assert_eq!(frame[6..12], OUR_MAC);
    let (from, to, udp): (IpAddr, IpAddr, usize) = if v6 {
        assert_eq!(short(12), 0x86dd);
        assert_eq!(frame[14] >> 4, 6);
        assert_eq!(frame[14] << 4 | frame[15] >> 4, tos);
        assert_eq!(short(18), 8 + payload.len());
        assert_eq!((frame[20], frame[21]), (17, 64));
        let octets = |at: usize| <[u8; 16]>::try_from(&frame[at..at + 16]).unwrap();
        (octets(22).into(), octets(38).into(), 54)
    } else {
        assert_eq!(short(12), 0x0800);
        assert_eq!((frame[14], frame[15]), (0x45, tos));
        assert_eq!(short(16), 28 + payload.len());
        assert_eq!((frame[22], frame[23]), (64, 17));
        assert_eq!(summed(&frame[14..34]), 0xffff);
        let octets = |at: usize| <[u8; 4]>::try_from(&frame[at..at + 4]).unwrap();
        (octets(26).into(), octets(30).into(), 34)
    };
    let (local, remote) = if v6 {
        (LOCAL_V6, REMOTE_V6)
    } else {
        (LOCAL_V4, REMOTE_V4)
    };
    let ports = [short(udp), short(udp + 2)].map(|port| port as u16);
    assert_eq!(
        [
            SocketAddr::new(from, ports[0]),
            SocketAddr::new(to, ports[1])
        ],
        [
            SocketAddr::new(dataplane_support::ip(local), PORT),
            SocketAddr::new(dataplane_support::ip(remote), NEIGHBOUR_PORT)
        ]
    );
    assert_eq!(short(udp + 4), 8 + payload.len());
    assert_eq!(short(udp + 6), 0, "no checksum, as in transit");
    assert!(frame[udp + 8..] == *payload, "the payload was changed");
}

#[test]
fn frames_of_every_size_arrive_whole_and_in_order() {
    let run = in_namespace(|| {
        let mut lab = Lab::new()?;
        lab.attach();
        let mut sender = lab.sender();
        sender.probe()?;
        let tables = lab.plane.shared();
        for (hop, v6) in [(HOP_V4, false), (HOP_V6, true)] {
            let hop = tables.encapsulation(NextHopIndex(hop)).expect("in use");
            let largest = MAX_MTU as usize - if v6 { 48 } else { 28 };
            // Longer and shorter by turns: buffers are used again with what stood in them.
            let lens = [28, 1472 - 20, 100, 29, 1400, 64, 1000];
            let sizes: Vec<_> = lens.into_iter().cycle().take(TX_FRAMES as usize).collect();
            for (number, len) in sizes.iter().enumerate() {
                assert!(!sender.is_full());
                lay(&mut sender, hop, number, *len, (number as u8) << 2 | 2);
            }
            assert!(sender.is_full());
            assert!(sender.payload(hop).is_empty(), "there is no more room");
            assert!(!sender.commit(28, hop, 0), "there is no more room");
            let sent = sender.flush();
            let all = Sent {
                packets: u64::from(TX_FRAMES),
                ..Sent::default()
            };
            assert_eq!(sent, all, "{:?}", sender.failure());
            assert!(sender.is_empty());
            for (number, len) in sizes.iter().enumerate() {
                let tos = (number as u8) << 2 | 2;
                check(&lab.wire.next(), v6, &payload(number, *len), tos);
            }
            // Nothing is left of the batch before: what comes next is the next batch.
            lay(&mut sender, hop, 500, 77, 0);
            assert_eq!(sender.flush().packets, 1);
            check(&lab.wire.next(), v6, &payload(500, 77), 0);
            assert!(sender.payload(hop).len() >= largest);
            assert!(!sender.commit(largest + 1, hop, 0), "longer than a frame");
            assert!(sender.is_empty());
        }
        Ok::<_, String>(())
    });
    match run.expect("a namespace can be made") {
        Ok(()) => {}
        Err(why) => skip!("{why}"),
    }
}

#[test]
fn threads_send_what_is_theirs() {
    let run = in_namespace(|| {
        let mut lab = Lab::new()?;
        lab.attach();
        let mut senders = lab.plane.open_senders(2).expect("senders can be opened");
        if senders.len() < 2 {
            return Err("one processor, and so one thread".to_owned());
        }
        let tables = lab.plane.shared();
        let hop = tables.encapsulation(NextHopIndex(HOP_V4)).expect("in use");
        for (sender, number) in senders.iter_mut().zip([1000, 2000]) {
            lay(sender, hop, number, 300, 0);
        }
        for (sender, number) in senders.iter_mut().zip([1000, 2000]).rev() {
            assert_eq!(sender.flush().packets, 1);
            check(&lab.wire.next(), false, &payload(number, 300), 0);
        }
        Ok(())
    });
    match run.expect("a namespace can be made") {
        Ok(()) => {}
        Err(why) => skip!("{why}"),
    }
}

/// The kernel then makes a dispatcher for each call, which takes it milliseconds: better to know before than to send so.
#[test]
fn a_program_that_is_attached_nowhere_is_not_used() {
    let run = in_namespace(|| {
        let mut lab = Lab::new()?;
        let why = lab.sender().probe().expect_err("no call is fast");
        assert!(why.contains("ms for a call"), "{why}");
        lab.attach();
        lab.sender().probe()
    });
    match run.expect("a namespace can be made") {
        Ok(()) => {}
        Err(why) => skip!("{why}"),
    }
}
