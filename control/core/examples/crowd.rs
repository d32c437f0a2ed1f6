//! A thousand nodes in one process, for a real `weftd` to have sessions with.
//!
//! The nodes are the simulator's: each is a real [`weft_core::node::Node`] with keys of its own, its forwarding tables and
//! its sessions, and every packet between them is a real one. They form a tree: a hub, its children, their leaves. First
//! the tree converges on a virtual clock. Then its clock follows the wall's, and the hub also speaks on a UDP socket of
//! this host, where a `weftd` can have it as its neighbour, and every other node as the far end of a session.
//!
//! `crowd ADDRESS:PORT SECRET_FILE NODES` prints `ready` when the socket is served, and ends with its standard input. Run
//! by `cargo xtask bench peers`.

use std::{
    collections::BTreeMap,
    error::Error,
    io::{self, ErrorKind, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use weft_core::{
    identity::{Identity, NetworkSecret, derive},
    io::{ForwardMode, Micros, UnderlayAddress},
    node::Config,
    sim::{
        underlay::{LinkModel, ip_addresses, udp},
        world::World,
    },
};

/// Children of the hub, and leaves of each child, at most: an LSA holds so many neighbours and not many more.
const MOST_BRANCHES: usize = 100;
/// Virtual time that the tree gets to converge, seconds.
const CONVERGENCE_S: u64 = 120;
/// Between looks at the socket and the clock.
const TICK: Duration = Duration::from_millis(1);
/// Datagrams taken from the socket before the clock is looked at again.
const BATCH: usize = 256;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = std::env::args().skip(1).collect::<Vec<_>>();
    let [address, secret, nodes] = arguments.as_slice() else {
        return Err("usage: crowd ADDRESS:PORT SECRET_FILE NODES".into());
    };
    let address: SocketAddrV4 = address.parse()?;
    let secret: NetworkSecret = std::fs::read_to_string(secret)?.parse()?;
    let nodes: usize = nodes.parse()?;
    let begun = Instant::now();
    let mut world = plant(address, &secret, nodes)?;
    for number in 0..world.hosts.len() {
        world.start(number, false);
        // Not all at once: their handshakes would be refused as a flood.
        world.run_ms(20);
    }
    world.run_ms(CONVERGENCE_S * 1000);
    eprintln!(
        "{} nodes, converged in {:.1} s",
        world.hosts.len(),
        begun.elapsed().as_secs_f64()
    );
    serve(&mut world, address)
}

/// The hub is host 0, its children follow, then the leaves; `nodes` counts children and leaves.
fn plant(hub: SocketAddrV4, secret: &NetworkSecret, nodes: usize) -> Result<World, Box<dyn Error>> {
    let children = (nodes as f64).sqrt().floor().max(1.0) as usize;
    if nodes == 0 || nodes.div_ceil(children) > MOST_BRANCHES {
        return Err(format!("{nodes} nodes: between 1 and about 9000 are right").into());
    }
    let mut world = World::new(1);
    let inside = Ipv4Addr::new(10, 0, 0, 1);
    world.add(
        config(secret, hub.port(), 0, None),
        vec![underlay(*hub.ip()), underlay(inside)],
    );
    for number in 1..=nodes {
        let own = Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + number as u32);
        let parent = match number.checked_sub(children + 1) {
            None => inside,
            Some(leaf) => {
                let parent = 1 + leaf % children;
                Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + parent as u32)
            }
        };
        let peer = SocketAddr::from((parent, hub.port()));
        world.add(
            config(secret, hub.port(), number, Some(peer)),
            vec![underlay(own)],
        );
        for (from, to) in [(own, parent), (parent, own)] {
            let link = LinkModel {
                delay: 20,
                jitter: 0,
                ..LinkModel::default()
            };
            world.underlay.set(IpAddr::V4(from), IpAddr::V4(to), link);
        }
    }
    Ok(world)
}

fn config(secret: &NetworkSecret, port: u16, number: usize, peer: Option<SocketAddr>) -> Config {
    let seed = derive(secret.as_bytes(), "crowd", &[&number.to_be_bytes()]);
    let mut config = Config::new(Identity::from_secret(&seed), secret.clone());
    config.name = format!("crowd-{number}");
    config.port = port;
    config.peers = peer.into_iter().collect();
    config.hardware_aes = true;
    // One process answers for all: what they do among each other is made rare.
    config.timers.probe_busy = Micros::from_secs(5);
    config.timers.probe_idle = Micros::from_secs(10);
    config.timers.hello = Micros::from_secs(10);
    config.timers.link_rekey = Micros::from_secs(3600);
    config
}

fn underlay(address: Ipv4Addr) -> UnderlayAddress {
    UnderlayAddress {
        address: IpAddr::V4(address),
        interface: "eth0".into(),
        prefix_len: 24,
        mtu: 1500,
        up: true,
        mode: ForwardMode::UserSpace,
    }
}

/// Lets the hub speak on the socket until standard input ends.
fn serve(world: &mut World, address: SocketAddrV4) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(TICK))?;
    world.outside = Some(Vec::new());
    let ended = Arc::new(AtomicBool::new(false));
    let end = Arc::clone(&ended);
    std::thread::spawn(move || {
        // Whatever ends it, an error too.
        let _ = io::stdin().read_to_end(&mut Vec::new());
        end.store(true, Ordering::Relaxed);
    });
    println!("ready");
    io::stdout().flush()?;
    let (wall, start) = (Instant::now(), world.now);
    let mut buffer = [0_u8; 65536];
    let mut refused = BTreeMap::<ErrorKind, u64>::new();
    while !ended.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            match socket.recv_from(&mut buffer) {
                Ok((length, SocketAddr::V4(from))) => {
                    let frame = frame(from, address, &buffer[..length]);
                    world.with(0, |host, now| host.receive(now, &frame));
                    flush(world, &socket, &mut refused);
                }
                Ok(_) => {}
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => *refused.entry(e.kind()).or_default() += 1,
            }
        }
        let elapsed = u64::try_from(wall.elapsed().as_micros())?;
        world.run_until(Micros(start.0 + elapsed));
        flush(world, &socket, &mut refused);
    }
    eprintln!("ended; refused by the socket: {refused:?}");
    Ok(())
}

/// Sends what the hub has for addresses outside.
fn flush(world: &mut World, socket: &UdpSocket, refused: &mut BTreeMap<ErrorKind, u64>) {
    for frame in world.outside.iter_mut().flat_map(std::mem::take) {
        let Some((_, to, at)) = udp(&frame) else {
            continue;
        };
        // A datagram that is refused is a lost one, as on any underlay.
        if let Err(e) = socket.send_to(&frame[at..], to) {
            *refused.entry(e.kind()).or_default() += 1;
        }
    }
}

/// A datagram as the frame it would have come in.
fn frame(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_len = u16::try_from(payload.len() + 8).unwrap_or(u16::MAX);
    let mut frame = vec![0; 12];
    frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame.extend_from_slice(&udp_len.saturating_add(20).to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    frame.extend_from_slice(&from.ip().octets());
    frame.extend_from_slice(&to.ip().octets());
    frame.extend_from_slice(&from.port().to_be_bytes());
    frame.extend_from_slice(&to.port().to_be_bytes());
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(payload);
    debug_assert_eq!(
        ip_addresses(&frame),
        Some((IpAddr::V4(*from.ip()), IpAddr::V4(*to.ip())))
    );
    frame
}
