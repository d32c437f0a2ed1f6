//! Who does not have the network's secret gets no answer at all.

mod common;

use std::net::SocketAddr;

use common::{SOON, connected, counters, lab, stream, until};
use weft_client::config::DEFAULT_PORT;
use xtask::{
    lab::{Lab, capture::Capture},
    needs_lab,
};

/// `a - b - c`, and a stranger with a line to b.
fn beside_a_mesh(stranger: &str) -> Lab {
    let lab = lab(&format!(
        "[nodes.a]\n[nodes.b]\ntun = false\n[nodes.c]\n[nodes.stranger]\n{stranger}\n\
         [[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"b\", \"c\"]\n\
         [[link]]\nbetween = [\"stranger\", \"b\"]\ndial = \"first\"\n\
         [[link]]\nbetween = [\"stranger\", \"b\"]\ndial = \"first\"\nfamily = \"v6\"\n"
    ));
    connected(&lab, "a", "c");
    lab
}

/// Frames from b that are no address resolution or the like: IPv4, or IPv6 other than neighbour discovery and reports.
fn answers(capture: &Capture) -> Vec<Vec<u8>> {
    let frames = capture
        .seen()
        .frames
        .into_iter()
        .filter(|f| !f.outgoing)
        .map(|f| f.bytes);
    frames
        .filter(|f| match f.get(12..14) {
            Some([0x08, 0x00]) => true,
            Some([0x86, 0xdd]) => {
                // Next header, then for hop-by-hop options (listener reports) and ICMPv6 their types.
                let (next, kind) = (f.get(20).copied(), f.get(54).copied());
                !(next == Some(0) || (next == Some(58) && matches!(kind, Some(133..=137 | 143))))
            }
            _ => false,
        })
        .collect()
}

/// Datagrams that look like each kind, whole, short, long and random.
fn provocations() -> Vec<Vec<u8>> {
    let mut all = vec![
        Vec::new(),
        vec![0],
        vec![0x12],
        vec![0xff; 1400],
        b"GET / HTTP/1.0\r\n\r\n".to_vec(),
    ];
    let mut state = 1_u64;
    let mut byte = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    for version in [0x00, 0x10, 0x20] {
        for kind in 0..=6 {
            for length in [8, 15, 16, 20, 27, 28, 44, 100, 500, 1200] {
                let mut datagram = (0..length).map(|_| byte()).collect::<Vec<_>>();
                datagram[0] = version | kind;
                datagram[1] &= 0xf0;
                // Slots that are likely to exist.
                datagram[2] = 0;
                datagram[3] %= 8;
                all.push(datagram);
            }
        }
    }
    all
}

#[test]
fn nothing_comes_back_whatever_is_sent() {
    needs_lab!();
    let lab = beside_a_mesh("daemon = false");
    let traffic = stream(&lab, "a", "c", 100);
    let stranger = lab.node("stranger");
    let mut sent = 0;
    let dropped = |lab: &Lab| counters(lab, "b").xdp_drops.values().sum::<u64>();
    let before = dropped(&lab);
    let mut captures = Vec::new();
    for end in stranger.ends() {
        captures.push(Capture::start(stranger.namespace(), &end.interface, b"").unwrap());
        let address = match lab.node("b").ends().iter().find(|e| e.link == end.link) {
            Some(other) => SocketAddr::new(other.address, DEFAULT_PORT),
            None => panic!("a link with one end"),
        };
        // From a port like a node's, and from any.
        for port in [DEFAULT_PORT, 0] {
            let from = SocketAddr::new(end.address, port);
            let socket = stranger
                .namespace()
                .run(|| std::net::UdpSocket::bind(from))
                .unwrap()
                .unwrap();
            for datagram in provocations() {
                socket.send_to(&datagram, address).unwrap();
                sent += 1;
            }
        }
    }
    // Every one was seen, judged and dropped under a name.
    until("b to have dropped all of it", SOON, || {
        dropped(&lab) >= before + sent
    });
    traffic.wait_received(1000, SOON).unwrap();
    assert_eq!(traffic.finish().unwrap().lost(), 0);
    for capture in captures {
        assert_eq!(answers(&capture), Vec::<Vec<u8>>::new());
        assert!(
            capture.finish().unwrap().packets > 200,
            "the provocations were not even sent"
        );
    }
}

#[test]
fn a_node_of_another_network_gets_no_answer() {
    needs_lab!();
    let lab = beside_a_mesh("network = \"other\"");
    let stranger = lab.node("stranger");
    let end = &stranger.ends()[0];
    let capture = Capture::start(stranger.namespace(), &end.interface, b"").unwrap();
    let tries = || {
        capture
            .seen()
            .frames
            .iter()
            .filter(|f| f.outgoing && f.bytes.get(12..14) == Some(&[8, 0]))
            .count()
    };
    until("the stranger's handshakes", SOON, || tries() >= 2);
    assert_eq!(answers(&capture), Vec::<Vec<u8>>::new());
    let status = stranger.api().unwrap().status().unwrap();
    assert_eq!((status.neighbours, status.nodes.saturating_sub(1)), (0, 0));
    let known = lab.node("a").api().unwrap().nodes().unwrap();
    assert!(known.iter().all(|n| n.name != "stranger"), "{known:?}");
}
