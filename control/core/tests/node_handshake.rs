//! What the link handshake gives to strangers, replayers, forgers and floods: nothing, or less than they sent.

use std::net::SocketAddr;

use bytes::Bytes;
use weft_core::{
    identity::{Identity, NetworkSecret},
    io::{ForwardMode, Input, Micros, Output, Randomness, UnderlayAddress, UnderlayPath},
    node::{Config, Node},
    sim::rng::Rng,
};

struct Seeded(Rng);

impl Randomness for Seeded {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.fill(out);
    }
}

const HERE: &str = "192.0.2.1:7117";

fn address(ip: &str) -> UnderlayAddress {
    UnderlayAddress {
        address: ip.parse().unwrap(),
        interface: "eth0".into(),
        prefix_len: 24,
        mtu: 1500,
        up: true,
        mode: ForwardMode::UserSpace,
    }
}

fn node(number: u64, network: u8, ip: &str, peers: &[&str], tune: impl Fn(&mut Config)) -> Node {
    let mut secret = [1; 32];
    secret[..8].copy_from_slice(&number.to_be_bytes());
    let mut config = Config::new(
        Identity::from_secret(&secret),
        NetworkSecret::from_bytes([network; 32]),
    );
    config.peers = peers.iter().map(|p| p.parse().unwrap()).collect();
    tune(&mut config);
    let mut node = Node::new(config, Box::new(Seeded(Rng::new(number))), Micros(0)).unwrap();
    node.handle_input(
        Micros(0),
        Input::Underlay {
            addresses: &[address(ip)],
        },
    );
    node
}

fn path(local: &str, remote: &str) -> UnderlayPath {
    UnderlayPath {
        local: local.parse().unwrap(),
        remote: remote.parse().unwrap(),
    }
}

/// Datagrams the node wants sent by now; whatever else it wants, too, must be nothing when `silent`.
fn datagrams(node: &mut Node) -> Vec<(SocketAddr, Bytes)> {
    let mut sent = Vec::new();
    while let Some(output) = node.poll_output() {
        match output {
            Output::SendDatagram { path, datagram } => sent.push((path.remote, datagram)),
            Output::SendLink { .. } | Output::SendSession { .. } => {
                panic!("{output:?} before there is a link")
            }
            _ => {}
        }
    }
    sent
}

/// The first message a node sends to `HERE`, and the node.
fn first(number: u64, network: u8, ip: &str) -> (Node, Bytes) {
    let mut node = node(number, network, ip, &[HERE], |_| {});
    node.handle_timeout(Micros::from_secs(1));
    let mut sent = datagrams(&mut node);
    assert_eq!(sent.len(), 1);
    (node, sent.remove(0).1)
}

fn give(node: &mut Node, now: Micros, from: &str, datagram: &[u8]) -> Vec<(SocketAddr, Bytes)> {
    node.handle_input(
        now,
        Input::Handshake {
            path: path(HERE, from),
            datagram,
        },
    );
    datagrams(node)
}

#[test]
fn a_stranger_gets_no_output_at_all() {
    let mut here = node(1, 7, "192.0.2.1", &[], |_| {});
    datagrams(&mut here);
    let (_, foreign) = first(2, 8, "192.0.2.2");
    let now = Micros::from_secs(2);
    assert!(give(&mut here, now, "192.0.2.2:7117", &foreign).is_empty());
    let mut rng = Rng::new(5);
    for round in 0..2_000_u64 {
        let mut bytes = vec![0; rng.index(600)];
        rng.fill(&mut bytes);
        if round % 2 == 0 && bytes.len() > 28 {
            // A plausible head.
            bytes[16] = 1 + (round % 5) as u8;
            bytes[17..20].fill(0);
        }
        let now = Micros(now.0 + round * 100_000);
        assert!(
            give(&mut here, now, "192.0.2.2:7117", &bytes).is_empty(),
            "{bytes:?}"
        );
    }
    assert!(here.links(now).is_empty() && here.peers(now).is_empty());
}

#[test]
fn a_recorded_first_message_is_of_no_use() {
    let mut here = node(1, 7, "192.0.2.1", &[], |_| {});
    let (_, recorded) = first(2, 7, "192.0.2.2");
    let now = Micros::from_secs(2);
    let answers = give(&mut here, now, "192.0.2.2:7117", &recorded);
    assert_eq!(answers.len(), 1);
    assert!(
        answers[0].1.len() < recorded.len(),
        "an answer must not amplify"
    );
    // While the handshake is open the initiator may repeat it; the answer goes to where it came from first.
    let mut repeats = 0;
    for i in 1..40_u64 {
        let answers = give(
            &mut here,
            Micros(now.0 + i * 100_000),
            "198.51.100.9:7117",
            &recorded,
        );
        assert!(
            answers
                .iter()
                .all(|(to, _)| *to == "192.0.2.2:7117".parse().unwrap())
        );
        repeats += answers.len();
    }
    assert!(repeats <= 8, "{repeats}");
    // Later it is remembered and answered no more.
    here.handle_timeout(Micros::from_secs(30));
    datagrams(&mut here);
    for i in 0..50 {
        assert!(
            give(
                &mut here,
                Micros::from_secs(31 + i),
                "192.0.2.2:7117",
                &recorded
            )
            .is_empty()
        );
    }
    assert!(here.counters()["handshake_replayed"] >= 50);
}

#[test]
fn damaged_messages_are_not_answered_and_do_no_harm() {
    let mut here = node(1, 7, "192.0.2.1", &[], |_| {});
    let (mut there, genuine) = first(2, 7, "192.0.2.2");
    let mut now = Micros::from_secs(2);
    for at in 16..genuine.len() {
        let mut damaged = genuine.to_vec();
        damaged[at] ^= 0x10;
        now = Micros(now.0 + 100_000);
        let answers = give(&mut here, now, "192.0.2.2:7117", &damaged);
        // The index, the cookie field and padding of the header are not the initiator's secret.
        assert!(
            answers.is_empty() || (20..44).contains(&at),
            "byte {at} changed and answered"
        );
        if !answers.is_empty() {
            here = node(1, 7, "192.0.2.1", &[], |_| {});
        }
    }
    let answer = give(&mut here, now, "192.0.2.2:7117", &genuine).remove(0).1;
    // Forged second messages do not stop the genuine one.
    let back = path("192.0.2.2:7117", HERE);
    for at in 28..answer.len() {
        let mut damaged = answer.to_vec();
        damaged[at] ^= 1;
        there.handle_input(
            now,
            Input::Handshake {
                path: back,
                datagram: &damaged,
            },
        );
        assert!(datagrams(&mut there).is_empty(), "byte {at}");
    }
    there.handle_input(
        now,
        Input::Handshake {
            path: back,
            datagram: &answer,
        },
    );
    let mut third = None;
    while let Some(output) = there.poll_output() {
        if let Output::SendDatagram { datagram, .. } = output {
            third = Some(datagram);
        }
    }
    let third = third.expect("a third message");
    for at in 28..third.len() {
        let mut damaged = third.to_vec();
        damaged[at] ^= 1;
        assert!(
            give(&mut here, now, "192.0.2.2:7117", &damaged).is_empty(),
            "byte {at}"
        );
    }
    assert!(here.links(now).is_empty());
    here.handle_input(
        now,
        Input::Handshake {
            path: path(HERE, "192.0.2.2:7117"),
            datagram: &third,
        },
    );
    assert_eq!(here.links(now).len(), 2, "out and in");
}

#[test]
fn under_load_a_cookie_is_asked_for_and_serves() {
    let mut here = node(1, 7, "192.0.2.1", &[], |config| {
        config.limits.handshakes_per_s = 4
    });
    let now = Micros::from_secs(2);
    let (mut answered, mut asked) = (0, 0);
    for i in 0..12_u64 {
        let ip = format!("192.0.2.{}", 10 + i);
        let from = format!("{ip}:7117");
        let (mut there, datagram) = first(10 + i, 7, &ip);
        let answers = give(&mut here, now, &from, &datagram);
        assert_eq!(answers.len(), 1);
        let answer = &answers[0].1;
        assert!(answer.len() < datagram.len());
        if answer[16] == 2 {
            answered += 1;
            continue;
        }
        asked += 1;
        assert_eq!(answer[16], 4);
        there.handle_input(
            now,
            Input::Handshake {
                path: path(&from, HERE),
                datagram: answer,
            },
        );
        let again = datagrams(&mut there).remove(0).1;
        // Somebody else who saw it cannot use it from another address.
        let elsewhere = give(&mut here, now, "203.0.113.5:7117", &again);
        assert!(elsewhere.iter().all(|(_, answer)| answer[16] == 4));
        let answers = give(&mut here, now, &from, &again);
        assert_eq!(answers[0].1[16], 2, "with its cookie it is answered");
    }
    assert!(answered >= 4 && asked >= 4, "{answered} {asked}");
}

#[test]
fn one_source_cannot_have_more_than_its_share() {
    let mut here = node(1, 7, "192.0.2.1", &[], |_| {});
    let now = Micros::from_secs(2);
    let mut answered = 0;
    for i in 0..60_u64 {
        let (_, datagram) = first(100 + i, 7, "192.0.2.9");
        answered += give(
            &mut here,
            now,
            &format!("192.0.2.9:{}", 5000 + i),
            &datagram,
        )
        .len();
    }
    assert_eq!(answered, 20);
    assert_eq!(here.counters()["handshake_rate_limited"], 40);
}

#[test]
fn half_open_handshakes_are_bounded() {
    let mut here = node(1, 7, "192.0.2.1", &[], |config| {
        config.limits.half_open = 8;
        config.limits.handshakes_per_source_per_s = 1_000;
    });
    let now = Micros::from_secs(2);
    let answered: usize = (0..40_u64)
        .map(|i| {
            let (_, datagram) = first(200 + i, 7, "192.0.2.9");
            give(
                &mut here,
                now,
                &format!("192.0.2.9:{}", 5000 + i),
                &datagram,
            )
            .len()
        })
        .sum();
    assert_eq!(answered, 8);
    // They expire, and there is room again.
    here.handle_timeout(Micros::from_secs(20));
    datagrams(&mut here);
    let (_, datagram) = first(300, 7, "192.0.2.9");
    assert_eq!(
        give(
            &mut here,
            Micros::from_secs(21),
            "192.0.2.9:7117",
            &datagram
        )
        .len(),
        1
    );
}

#[test]
fn configurations_that_cannot_work_are_refused_with_the_reason() {
    let refused = |tune: fn(&mut Config)| {
        let mut config = Config::new(
            Identity::from_secret(&[1; 32]),
            NetworkSecret::from_bytes([7; 32]),
        );
        tune(&mut config);
        Node::new(config, Box::new(Seeded(Rng::new(1))), Micros(0))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert!(refused(|c| c.name = "two words".into()).contains("`name`"));
    assert!(refused(|c| c.port = 0).contains("`port`"));
    assert!(refused(|c| c.limits.labels = 0..=20).contains("16..=1048575"));
    assert!(
        refused(|c| c.prefixes = vec![("10.0.0.1".parse().unwrap(), 8)]).contains("10.0.0.1/8")
    );
    assert!(refused(|c| c.timers.hello = Micros(0)).contains("`timers`"));
    assert_eq!(refused(|_| {}), "");
}

#[test]
fn snapshots_that_are_not_right_are_refused_with_the_reason() {
    let config = |i: u8, network: u8| {
        Config::new(
            Identity::from_secret(&[i; 32]),
            NetworkSecret::from_bytes([network; 32]),
        )
    };
    let rng = || Box::new(Seeded(Rng::new(1)));
    let good = Node::new(config(1, 7), rng(), Micros(0))
        .unwrap()
        .snapshot();
    let resumed = |config: Config, bytes: &[u8]| {
        Node::resume(config, bytes, rng(), Micros(0))
            .err()
            .map(|e| e.to_string())
            .unwrap_or_default()
    };
    assert_eq!(resumed(config(1, 7), &good), "");
    assert!(resumed(config(2, 7), &good).contains("is of node"));
    assert!(resumed(config(1, 8), &good).contains("another network"));
    assert!(resumed(config(1, 7), b"").contains("shorter"));
    assert!(resumed(config(1, 7), &[0; 200]).contains("not a snapshot"));
    for at in 47..good.len() {
        let mut damaged = good.clone();
        damaged[at] ^= 1;
        assert!(
            resumed(config(1, 7), &damaged).contains("damaged"),
            "byte {at}"
        );
    }
}
