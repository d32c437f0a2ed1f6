//! Two data paths joined over the loopback of a namespace of their own, each with a TUN interface in another: what an
//! application sends into one comes out of the other. Tables and sessions are filled by hand; no core takes part.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    hash::{DefaultHasher, Hasher as _},
    io::{Read as _, Write as _},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
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
        shared::{Shared, Wake},
        udp::{Address, Socket},
        worker::Worker,
    },
    dataplane::{Config, Dataplane},
    netlink::{HostRoute, Netlink},
    tun::{Interface, Queue},
};

/// Counts what the workers allocate, each in a counter of its own.
struct Counting;

thread_local! {
    static COUNTER: Cell<Option<&'static AtomicUsize>> = const { Cell::new(None) };
}

// SAFETY: the system's allocator does the work; counting touches nothing else and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if let Ok(Some(counter)) = COUNTER.try_with(Cell::get) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: the caller keeps to the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract of `dealloc`.
        unsafe { System.dealloc(place, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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
    /// Allocations of the worker so far.
    allocations: &'static AtomicUsize,
    // Keeps the interface; runs what is sent in its namespace.
    inside: mpsc::Sender<Job>,
    _plane: Dataplane,
}

type Job = Box<dyn FnOnce() + Send>;

impl Side {
    /// What `make` gives when it runs in the namespace of the application.
    fn in_namespace<T: Send + 'static>(&self, make: impl FnOnce() -> T + Send + 'static) -> T {
        let (give, take) = mpsc::channel();
        let job = Box::new(move || give.send(make()).unwrap());
        self.inside.send(job).unwrap();
        take.recv_timeout(Duration::from_secs(10)).unwrap()
    }
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
fn tun_side(own: Ipv6Addr, offload: bool) -> (Queue, UdpSocket, mpsc::Sender<Job>) {
    let (give, take) = mpsc::channel();
    let (inside, jobs) = mpsc::channel::<Job>();
    thread::spawn(move || {
        own_namespace();
        runtime().block_on(async {
            let interface = Interface::open("weft0", 1, offload).unwrap();
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
            jobs.iter().for_each(|job| job());
            netlink.remove_route(&route).await.unwrap();
            netlink.remove_route(&route).await.unwrap();
        });
    });
    let (queue, app) = take.recv_timeout(Duration::from_secs(10)).unwrap();
    (queue, app, inside)
}

fn side(number: u16, own: Ipv6Addr, other: Ipv6Addr, offload: bool) -> Side {
    let (mine, theirs) = (number, 3 - number);
    // Tests run at once, each in a namespace of its own.
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
        xdp_egress: ArcSwap::default(),
        counters: Default::default(),
        lanes: Default::default(),
        port: port(mine),
        up,
        notify: Arc::default(),
        stop: false.into(),
    });
    let sockets = Arc::new(vec![Socket::bind(false, port(mine), true).unwrap()]);
    let (queue, app, inside) = tun_side(own, offload);
    app.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let wake = Arc::new(Wake::new().unwrap());
    let (_, orders) = crossbeam::channel::unbounded();
    let worker = Worker::new(shared.clone(), Some(queue), sockets, wake.clone(), orders);
    let allocations: &'static AtomicUsize = Box::leak(Box::default());
    let worker = Some(thread::spawn(move || {
        COUNTER.set(Some(allocations));
        worker.run();
    }));
    Side {
        shared,
        wake,
        worker,
        app,
        allocations,
        inside,
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

/// Two sides on the loopback of a namespace of this thread's own.
fn joined(offload: bool) -> (Ipv6Addr, Ipv6Addr, Side, Side) {
    own_namespace();
    runtime().block_on(async {
        let (netlink, _events) = Netlink::open().unwrap();
        netlink.set_up(1, 65_536, 1000).await.unwrap();
    });
    let (a, b): (Ipv6Addr, Ipv6Addr) = (
        "fd00:1:2::a".parse().unwrap(),
        "fd00:1:2::b".parse().unwrap(),
    );
    (a, b, side(1, a, b, offload), side(2, b, a, offload))
}

/// Two sides, and a stream each way between them.
fn streams(offload: bool) -> (Side, Side) {
    let (_, b, left, right) = joined(offload);
    exchange(&left, &right, SocketAddr::from((b, 4001)));
    (left, right)
}

/// A stream of TCP each way at once: what is read is what was written, with super-packets and bundles and without.
fn exchange(left: &Side, right: &Side, at: SocketAddr) {
    const BYTES: usize = 24 << 20;
    let listener = right.in_namespace(move || TcpListener::bind(at).unwrap());
    let near = left.in_namespace(move || TcpStream::connect(at).unwrap());
    let (far, _) = listener.accept().unwrap();
    let write = |stream: &TcpStream, seed: u8| {
        let mut stream = stream.try_clone().unwrap();
        thread::spawn(move || {
            let (mut hash, mut left) = (DefaultHasher::new(), BYTES);
            let mut word = usize::from(seed);
            while left > 0 {
                // Writes of all sizes.
                word = word.wrapping_mul(6_364_136_223).wrapping_add(1_442_695);
                let len = (word >> 16) % 70_000 % left + 1;
                let bytes: Vec<u8> = (0..len).map(|i| (i ^ word) as u8).collect();
                stream.write_all(&bytes).unwrap();
                bytes.iter().for_each(|byte| hash.write_u8(*byte));
                left -= len;
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            hash.finish()
        })
    };
    let read = |stream: &TcpStream| {
        let mut stream = stream.try_clone().unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        thread::spawn(move || {
            let (mut hash, mut buffer) = (DefaultHasher::new(), vec![0; 100_000]);
            loop {
                match stream.read(&mut buffer).unwrap() {
                    0 => return hash.finish(),
                    len => buffer[..len].iter().for_each(|byte| hash.write_u8(*byte)),
                }
            }
        })
    };
    let (wrote_near, wrote_far) = (write(&near, 1), write(&far, 2));
    let (read_near, read_far) = (read(&near), read(&far));
    assert_eq!(read_far.join().unwrap(), wrote_near.join().unwrap());
    assert_eq!(read_near.join().unwrap(), wrote_far.join().unwrap());
}

/// Packets dropped at the bounds of the flow queue, because the machine had no time to send them.
fn shed(side: &Side) -> u64 {
    [Counter::FlowQueueFull, Counter::FlowQueueLate]
        .map(|counter| side.shared.counters.get(counter))
        .iter()
        .sum()
}

#[test]
fn streams_arrive_whole_in_bundles() {
    if let Some(reason) = obstacle() {
        println!("SKIPPED streams_arrive_whole_in_bundles: {reason}");
        return;
    }
    let (left, right) = streams(true);
    for side in [&left, &right] {
        let count = |counter| side.shared.counters.get(counter);
        assert!(count(Counter::TunBundles) > 0);
        // Super-packets: far fewer are read than leave.
        assert!(count(Counter::TunRx) < count(Counter::Encrypted));
        assert_eq!(count(Counter::Malformed), 0);
        assert_eq!(count(Counter::TunWriteFailed), 0);
    }
}

#[test]
fn streams_arrive_whole_without_offloads() {
    if let Some(reason) = obstacle() {
        println!("SKIPPED streams_arrive_whole_without_offloads: {reason}");
        return;
    }
    let (left, right) = streams(false);
    for side in [&left, &right] {
        let count = |counter| side.shared.counters.get(counter);
        assert_eq!(count(Counter::TunBundles), 0);
        assert_eq!(
            count(Counter::TunRx),
            count(Counter::Encrypted) + shed(side)
        );
    }
}

#[test]
fn nothing_is_allocated_once_traffic_flows() {
    if let Some(reason) = obstacle() {
        println!("SKIPPED nothing_is_allocated_once_traffic_flows: {reason}");
        return;
    }
    for offload in [true, false] {
        let (left, right) = streams(offload);
        let so_far = |side: &Side| {
            let packets = side.shared.counters.get(Counter::Encrypted);
            (side.allocations.load(Ordering::Relaxed), packets)
        };
        let before = [&left, &right].map(so_far);
        let at = SocketAddr::from(("fd00:1:2::b".parse::<Ipv6Addr>().unwrap(), 4002));
        exchange(&left, &right, at);
        for (side, (allocations, packets)) in [&left, &right].into_iter().zip(before) {
            let (allocations_now, packets_now) = so_far(side);
            assert!(allocations > 0, "nothing is counted");
            assert!(packets_now > packets + 10_000);
            // A table may still grow to a size it did not need before; no packet costs anything.
            let more = allocations_now - allocations;
            assert!(more < 5, "{more} allocations, with offloads: {offload}");
        }
    }
}

#[test]
fn packets_go_through_and_too_large_ones_are_answered() {
    if let Some(reason) = obstacle() {
        println!("SKIPPED packets_go_through_and_too_large_ones_are_answered: {reason}");
        return;
    }
    let (a, b, left, right) = joined(true);

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
        right.shared.counters.get(Counter::Decrypted) + shed(&left) == 1500
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
        left.shared.counters.get(Counter::Encrypted) + shed(&left) >= 1502
    });
}
