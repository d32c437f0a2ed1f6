//! Two data paths joined over the loopback of a namespace of their own, each with a TUN interface in another: what an
//! application sends into one comes out of the other. Tables and sessions are filled by hand; no core takes part.

use std::{
    net::{Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use weft_abi::{GroupIndex, Label, LfibEntry, NextHopIndex, Slot, TagKey};
use weft_client::config::Prefix;
use weft_core::{
    identity::NodeId,
    io::{DataplaneOp, LspIngress, SessionIndex, SessionOp, UnderlayPath},
    session::{Cipher, SessionKeys},
};
use weft_node::{
    data::{
        counters::Counter,
        session::Store,
        udp::{Address, Socket},
        worker::{Shared, Wake, Worker},
    },
    dataplane::{Config, Dataplane},
    netlink::{HostRoute, Netlink},
    tun::{Interface, Queue},
};

const LABEL: Label = Label(100);
const MTU: u16 = 1400;

/// Why this cannot run here.
fn obstacle() -> Option<&'static str> {
    // SAFETY: takes and gives nothing but a number.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root for network namespaces");
    }
    (!std::path::Path::new("/dev/net/tun").exists()).then_some("/dev/net/tun does not exist")
}

/// Puts the calling thread into a network namespace of its own, which ends with it and what it opened.
fn own_namespace() {
    // SAFETY: changes the namespace of this thread alone.
    let outcome = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

struct Side {
    shared: Arc<Shared>,
    wake: Arc<Wake>,
    worker: Option<thread::JoinHandle<()>>,
    app: UdpSocket,
    // Keeps the interface.
    _done: mpsc::Sender<()>,
    _plane: Dataplane,
}

impl Drop for Side {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.wake.wake();
        if let Some(worker) = self.worker.take() {
            worker.join().unwrap();
        }
    }
}

/// A TUN interface and a socket of an application, in a namespace of their own.
fn tun_side(own: Ipv6Addr) -> (Queue, UdpSocket, mpsc::Sender<()>) {
    let (give, take) = mpsc::channel();
    let (done, until) = mpsc::channel::<()>();
    thread::spawn(move || {
        own_namespace();
        runtime().block_on(async {
            let interface = Interface::open("weft0", 1).unwrap();
            let (netlink, _events) = Netlink::open().unwrap();
            netlink.set_up(interface.index(), 9000, 1000).await.unwrap();
            netlink
                .add_address(interface.index(), own.into(), 128)
                .await
                .unwrap();
            let route = HostRoute {
                prefix: "fd00:1:2::".parse().unwrap(),
                prefix_len: 48,
                link: interface.index(),
                metric: 512,
                mtu: Some(4000),
                source: None,
            };
            netlink.set_route(&route).await.unwrap();
            let app = UdpSocket::bind((own, 4000)).unwrap();
            give.send((interface.queues().unwrap().remove(0), app))
                .unwrap();
            let _ = until.recv();
            netlink.remove_route(&route).await.unwrap();
            netlink.remove_route(&route).await.unwrap();
        });
    });
    let (queue, app) = take.recv_timeout(Duration::from_secs(10)).unwrap();
    (queue, app, done)
}

fn side(number: u16, own: Ipv6Addr, other: Ipv6Addr) -> Side {
    let (mine, theirs) = (number, 3 - number);
    let port = |number: u16| 7200 + number;
    let address = |number| SocketAddr::from(([127, 0, 0, 1], port(number)));
    let key = |number: u16| TagKey([number as u8; 16]);
    let config = Config {
        pin_dir: "/nonexistent".into(),
        port: port(mine),
        network_key: TagKey([9; 16]),
        max_slots: 16,
        max_next_hops: 16,
        max_groups: 16,
        max_labels: 256,
    };
    let mut plane = Dataplane::open_user(&config).unwrap();
    plane.set_local_addresses(&[address(mine).ip()]).unwrap();
    let path = UnderlayPath {
        local: address(mine),
        remote: address(theirs),
    };
    let hop = NextHopIndex(1);
    for op in [
        DataplaneOp::AddNextHop {
            index: hop,
            path,
            slot: Slot(theirs),
            key: key(theirs),
            mtu: 1500,
            seq_from: NextHopIndex(0),
        },
        DataplaneOp::SetNextHopUp {
            index: hop,
            up: true,
        },
        DataplaneOp::AddSlot {
            slot: Slot(mine),
            key: key(mine),
            path,
            echo: Some(hop),
        },
        DataplaneOp::SetGroup {
            group: GroupIndex(1),
            buckets: [(hop, NextHopIndex(0)); 16],
        },
        DataplaneOp::SetLabel {
            label: LABEL,
            entry: LfibEntry::DELIVER,
        },
    ] {
        plane.apply(&op).unwrap();
    }

    let mut store = Store::new(own, "fd00:1:2::/48".parse::<Prefix>().unwrap(), &[]);
    let session = SessionIndex(0);
    let keys = SessionKeys {
        cipher: Cipher::ChaCha20Poly1305,
        tx: [theirs as u8; 32],
        rx: [mine as u8; 32],
    };
    for op in [
        SessionOp::Install {
            session,
            peer: NodeId([theirs as u8; 32]),
            address: other,
        },
        SessionOp::AddEpoch {
            session,
            epoch: 0,
            keys,
        },
        SessionOp::UseEpoch { session, epoch: 0 },
        SessionOp::SetDelivery {
            session,
            labels: vec![LABEL],
        },
        SessionOp::SetIngress {
            session,
            ingress: Some(LspIngress {
                group: GroupIndex(1),
                label: LABEL,
                inner_mtu: MTU,
                ttl: 64,
            }),
        },
    ] {
        store.apply(op);
    }

    let (up, _) = crossbeam::channel::bounded(16);
    let shared = Arc::new(Shared {
        tables: plane.shared(),
        sessions: ArcSwap::from_pointee(store.publish().unwrap()),
        hops: ArcSwap::from_pointee(vec![
            None,
            Some(Address {
                remote: path.remote,
                local: path.local.ip(),
                interface: 0,
            }),
        ]),
        listening: ArcSwap::from_pointee(vec![path.local.ip()]),
        modes: ArcSwap::default(),
        counters: Default::default(),
        lanes: Default::default(),
        port: port(mine),
        up,
        notify: Arc::default(),
        stop: false.into(),
    });
    let sockets = Arc::new(vec![Socket::bind(false, port(mine), true).unwrap()]);
    let (queue, app, done) = tun_side(own);
    app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let wake = Arc::new(Wake::new().unwrap());
    let worker = Worker::new(shared.clone(), Some(queue), sockets, wake.clone());
    let worker = Some(thread::spawn(move || worker.run()));
    Side {
        shared,
        wake,
        worker,
        app,
        _done: done,
        _plane: plane,
    }
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "{what}");
        thread::yield_now();
    }
}

#[test]
fn packets_go_through_and_too_large_ones_are_answered() {
    if let Some(reason) = obstacle() {
        println!("SKIPPED packets_go_through_and_too_large_ones_are_answered: {reason}");
        return;
    }
    own_namespace();
    runtime().block_on(async {
        let (netlink, _events) = Netlink::open().unwrap();
        netlink.set_up(1, 65_536, 1000).await.unwrap();
    });
    let (a, b): (Ipv6Addr, Ipv6Addr) = (
        "fd00:1:2::a".parse().unwrap(),
        "fd00:1:2::b".parse().unwrap(),
    );
    let (left, right) = (side(1, a, b), side(2, b, a));

    let mut buffer = [0; 4096];
    for round in 0..200usize {
        for size in [0, 1, 100, 1000, usize::from(MTU) - 48] {
            let sent: Vec<u8> = (0..size).map(|index| (index + round) as u8).collect();
            left.app.send_to(&sent, (b, 4000)).unwrap();
            let (len, from) = right.app.recv_from(&mut buffer).unwrap();
            assert_eq!(
                (from, &buffer[..len]),
                (SocketAddr::from((a, 4000)), &sent[..])
            );
            right.app.send_to(&buffer[..len], from).unwrap();
            let (len, _) = left.app.recv_from(&mut buffer).unwrap();
            assert_eq!(&buffer[..len], &sent[..]);
        }
    }
    assert_eq!(left.shared.counters.get(Counter::Encrypted), 1000);
    assert_eq!(right.shared.counters.get(Counter::Decrypted), 1000);
    assert_eq!(left.shared.counters.get(Counter::Replayed), 0);

    // A burst takes the batched way.
    for _ in 0..500 {
        left.app.send_to(&[7; 1200], (b, 4000)).unwrap();
    }
    until("the burst arrives", || {
        right.shared.counters.get(Counter::Decrypted) == 1500
    });

    // One byte over: answered by ICMPv6, after which the kernel knows the path's MTU and fragments.
    left.app
        .send_to(&vec![1; usize::from(MTU) - 47], (b, 4000))
        .unwrap();
    until("the answer is sent", || {
        left.shared.counters.get(Counter::IcmpSent) == 1
    });
    assert_eq!(left.shared.counters.get(Counter::TooBig), 1);
    until("the kernel learns the MTU", || {
        left.app
            .send_to(&vec![1; usize::from(MTU) - 47], (b, 4000))
            .unwrap();
        left.shared.counters.get(Counter::Encrypted) >= 1502
    });
}
