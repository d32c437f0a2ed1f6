//! Real nodes in namespaces: traffic through them, and through what happens to them.

mod common;

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use common::{SOON, chain, connected, forwarded, lab, path_in_use, stream, until};
use weft_client::api::ForwardMode;
use xtask::{
    lab::{
        Lab,
        topology::Shape,
        traffic::http::{self, Bytes, Server},
    },
    needs_lab,
};

fn download(lab: &Lab, from: &str, to: &str, length: u64) {
    let server = Server::start(
        lab.node(from).namespace(),
        lab.node(from).overlay().unwrap(),
        0,
        b"",
    )
    .unwrap();
    let done = http::download(
        lab.node(to).namespace(),
        server.address(),
        5,
        length,
        &|_| (),
    )
    .unwrap_or_else(|e| panic!("{e:#}"));
    assert_eq!(done.hash, Bytes::new(5, b"").hash(length));
}

#[test]
fn a_chain_of_five_hops_with_mixed_underlay() {
    needs_lab!();
    let names = ["a", "b", "c", "d", "e", "f"];
    let [v4, v6] = ["family = \"v4\"", "family = \"v6\""];
    let lab = chain(&names, &[v4, v6, v6, v4, v6], "");
    connected(&lab, "a", "f");

    let mut api = lab.node("a").api().unwrap();
    let pongs = api
        .ping("f", 5, 50, 56)
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    assert_eq!(pongs.len(), 5);
    assert!(
        pongs.iter().all(|p| p.rtt_ms.is_some() && p.hops == 5),
        "{pongs:?}"
    );

    let hops = api
        .trace("f")
        .unwrap()
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let seen = hops
        .iter()
        .map(|h| h.name.as_deref().unwrap_or("?"))
        .collect::<Vec<_>>();
    assert_eq!(seen, names[1..]);
    assert!(
        hops.iter()
            .all(|h| h.label.is_some_and(|l| l >= 16) && h.rtt_ms.is_some()),
        "{hops:?}"
    );
    assert!(
        hops[..4]
            .iter()
            .all(|h| h.mode == Some(ForwardMode::KernelNative)),
        "{hops:?}"
    );

    let (there, back) = (stream(&lab, "a", "f", 100), stream(&lab, "f", "a", 1100));
    there.wait_received(2000, SOON).unwrap();
    back.wait_received(500, SOON).unwrap();
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert_eq!(
            (report.lost(), report.duplicates, report.reordered),
            (0, 0, 0),
            "{report:?}"
        );
    }
    download(&lab, "f", "a", 30_000_000);
    for transit in &names[1..5] {
        let (xdp, daemon) = forwarded(&lab, transit);
        assert!(xdp > 10_000, "{transit} switched {xdp} packets in XDP");
        assert_eq!(daemon, 0, "{transit} switched packets in weftd");
    }
}

/// Frames laid ready go over both families, and nothing arrives other than it was sent.
#[test]
fn bulk_leaves_by_xdp_on_a_veth() {
    needs_lab!();
    let lab = chain(
        &["a", "b", "c"],
        &["family = \"v4\"", "family = \"v6\""],
        "",
    );
    connected(&lab, "a", "c");
    for (from, to) in [("a", "c"), ("c", "a")] {
        let mut api = lab.node(from).api().unwrap();
        let offloads = api.status().unwrap().offloads;
        let sending = offloads.iter().find(|o| o.name == "xdp_send(to-b)");
        assert!(sending.is_some_and(|o| o.on), "{offloads:?}");
        download(&lab, from, to, 60_000_000);
        let sessions = api.counters().unwrap().sessions;
        let by_xdp = sessions.get("xdp_tx_packets").copied().unwrap_or_default();
        // 60 MB are more than 40,000 packets; what comes in small pieces goes through the socket.
        assert!(by_xdp > 10_000, "{from} sent {by_xdp} by XDP: {sessions:?}");
        assert_eq!(
            sessions.get("udp_tx_refused").copied().unwrap_or_default(),
            0
        );
    }
    let (xdp, daemon) = forwarded(&lab, "b");
    assert!(xdp > 80_000, "{xdp} in XDP");
    assert_eq!(daemon, 0);
}

/// Every counter of every node, for the message of a test that failed: a lost packet was counted somewhere.
fn counters(lab: &Lab) -> String {
    lab.nodes()
        .map(
            |node| match node.api().and_then(|mut api| Ok(api.counters()?)) {
                Ok(counters) => format!("{}: {counters:?}\n", node.name()),
                Err(error) => format!("{}: {error:#}\n", node.name()),
            },
        )
        .collect()
}

#[test]
fn rekeying_loses_nothing() {
    needs_lab!();
    let lab = chain(
        &["a", "b", "c"],
        &["", "family = \"v6\""],
        "timers = { link_rekey_s = 10, session_rekey_s = 5 }",
    );
    connected(&lab, "a", "c");
    let (there, back) = (stream(&lab, "a", "c", 200), stream(&lab, "c", "a", 300));
    let link_epochs = || {
        let links = ["a", "b", "c"].map(|n| lab.node(n).api().unwrap().links().unwrap());
        links.iter().flatten().map(|l| l.epoch).min().unwrap_or(0)
    };
    let session_epoch = || {
        let sessions = lab.node("a").api().unwrap().sessions().unwrap();
        sessions
            .iter()
            .find(|s| s.name == "c")
            .map_or(0, |s| s.epoch)
    };
    let (links, session) = (link_epochs(), session_epoch());
    let by_daemon = forwarded(&lab, "b").1;
    until(
        "two rekeys of every link and session",
        Duration::from_secs(60),
        || link_epochs() >= links + 2 && session_epoch() >= session + 2,
    );
    let counters = counters(&lab);
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert_eq!(
            (report.lost(), report.duplicates),
            (0, 0),
            "{report:?}\n{counters}"
        );
        assert!(report.sent > 10_000, "{report:?}");
    }
    // And none went through the transit's daemon: new keys go the way of the old ones from the first packet on.
    assert_eq!(forwarded(&lab, "b").1, by_daemon, "{counters}");
}

#[test]
fn killing_a_transits_daemon_loses_nothing_and_neither_does_its_return() {
    needs_lab!();
    let lab = chain(&["a", "b", "c"], &["", "family = \"v6\""], "");
    connected(&lab, "a", "c");
    let (there, back) = (stream(&lab, "a", "c", 200), stream(&lab, "c", "a", 300));
    there.wait_received(500, SOON).unwrap();
    let switched = forwarded(&lab, "b").0;

    lab.node("b").kill9().unwrap();
    there.wait_received(5000, SOON).unwrap();
    lab.node("b").start().unwrap();
    assert!(
        lab.node("b").api().unwrap().status().unwrap().resumed,
        "{}",
        lab.node("b").log_end(20)
    );
    there.wait_received(5000, SOON).unwrap();
    until("the counters that went on in the kernel", SOON, || {
        forwarded(&lab, "b").0 > switched + 10_000
    });
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert_eq!((report.lost(), report.duplicates), (0, 0), "{report:?}");
    }
    // The control plane is back as well: it still takes part when something new is to be set up.
    lab.node("c").restart().unwrap();
    until(
        "a session after the far end's restart",
        Duration::from_secs(30),
        || {
            let pongs = lab
                .node("a")
                .api()
                .unwrap()
                .ping("c", 1, 100, 8)
                .map(|s| s.collect::<Vec<_>>());
            pongs.is_ok_and(|p| p.iter().flatten().any(|p| p.rtt_ms.is_some()))
        },
    );
}

#[test]
fn a_download_goes_on_while_the_client_changes_its_address() {
    needs_lab!();
    let text = "[nodes.a]\n[nodes.b]\ntun = false\n[nodes.c]\n\
        [[link]]\nbetween = [\"a\", \"b\"]\ndial = \"first\"\nrate = \"80mbit\"\n\
        [[link]]\nbetween = [\"b\", \"c\"]\nfamily = \"v6\"\n";
    let lab = lab(text);
    connected(&lab, "a", "c");
    let server = Server::start(
        lab.node("c").namespace(),
        lab.node("c").overlay().unwrap(),
        0,
        b"",
    )
    .unwrap();
    let length = 60_000_000;
    let (done, changed) = std::thread::scope(|scope| {
        let client = scope.spawn(|| {
            http::download(
                lab.node("a").namespace(),
                server.address(),
                9,
                length,
                &|_| (),
            )
        });
        let mut changed = 0;
        for part in [10_000_000, 30_000_000] {
            until("a part of the download", Duration::from_secs(60), || {
                server.sent() > part || client.is_finished()
            });
            if !client.is_finished() {
                change(&lab, changed);
                changed += 1;
            }
        }
        (
            client.join().unwrap().unwrap_or_else(|e| panic!("{e:#}")),
            changed,
        )
    });
    assert_eq!(
        changed, 2,
        "the download was over before the address changed"
    );
    assert_eq!(done.hash, Bytes::new(9, b"").hash(length));
}

/// To a new address the first time, back to the old one the second.
fn change(lab: &Lab, time: u32) {
    if time == 0 {
        lab.change_address("a", "b").unwrap();
    } else {
        let old = lab.node("a").end_to("b").address;
        lab.node("a")
            .namespace()
            .ip(&format!(
                "addr flush dev to-b\naddr add {old}/24 dev to-b\n"
            ))
            .unwrap();
    }
}

#[test]
fn every_mtu_from_1280_to_9000() {
    needs_lab!();
    for (mtu, family) in [(1280, "v4"), (1500, "v6"), (3400, "v4"), (9000, "v6")] {
        let link = format!("family = \"{family}\"\nmtu = {mtu}");
        let lab = chain(&["a", "b", "c"], &[&link, &link], "");
        fits(&lab, mtu, mtu);
    }
}

#[test]
fn the_smallest_mtu_on_the_way_counts() {
    needs_lab!();
    let lab = chain(
        &["a", "b", "c", "d"],
        &["mtu = 9000", "mtu = 1400\nfamily = \"v6\"", "mtu = 2000"],
        "",
    );
    fits(&lab, 1400, 9000);
}

/// The largest packet that fits passes whole, and a download comes through, from the first to the last node.
fn fits(lab: &Lab, smallest: usize, own: usize) {
    let ends = lab.nodes().map(|n| n.name().to_owned()).collect::<Vec<_>>();
    let (first, last) = (&ends[0], &ends[ends.len() - 1]);
    connected(lab, first, last);
    // Sets the session up.
    drop(stream(lab, first, last, 64));
    let inner = lab
        .node(first)
        .api()
        .unwrap()
        .sessions()
        .unwrap()
        .iter()
        .find_map(|s| s.inner_mtu)
        .unwrap();
    let inner = usize::from(inner);
    // 28 or 48 of IP and UDP, 28 of the header, 16 of the AEAD's tag; not wastefully less either.
    assert!(
        inner <= smallest - 72 && inner >= smallest - 140,
        "inner MTU {inner} on links of {smallest} (own {own})"
    );
    if inner >= 1280 {
        let largest = stream(lab, first, last, inner - 48);
        largest.wait_received(200, SOON).unwrap();
        let report = largest.finish().unwrap();
        assert_eq!(
            (report.lost(), report.refused),
            (0, 0),
            "inner MTU {inner}: {report:?}"
        );
    }
    download(lab, last, first, 5_000_000);
    download(lab, first, last, 5_000_000);
}

#[test]
fn a_cut_transit_is_left_by_the_other_path() {
    needs_lab!();
    let text = "[nodes.a]\n[nodes.b]\ntun = false\n[nodes.c]\ntun = false\n[nodes.d]\n\
        [[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"b\", \"d\"]\n\
        [[link]]\nbetween = [\"a\", \"c\"]\nfamily = \"v6\"\n[[link]]\nbetween = [\"c\", \"d\"]\nfamily = \"v6\"\n";
    let lab = lab(text);
    connected(&lab, "a", "d");
    let (there, back) = (stream(&lab, "a", "d", 100), stream(&lab, "d", "a", 200));
    there.wait_received(3000, SOON).unwrap();
    let used = path_in_use(&lab, "a", "d");
    assert_eq!(used.len(), 3, "{used:?}");
    until("a standby path", SOON, || {
        let lsps = lab.node("a").api().unwrap().lsps().unwrap();
        lsps.iter()
            .any(|l| l.role == "ingress" && l.protection == "standby" && l.state == "up")
    });
    for end in lab.node(&used[1]).ends() {
        lab.node(&used[1])
            .set_interface(&end.interface, false)
            .unwrap();
    }
    there.wait_received(3000, Duration::from_secs(30)).unwrap();
    back.wait_received(3000, Duration::from_secs(30)).unwrap();
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert!(report.longest_gap < Duration::from_secs(2), "{report:?}");
    }
    until("the other path", SOON, || {
        let now = path_in_use(&lab, "a", "d");
        now.len() == 3 && now[1] != used[1]
    });
}

#[test]
fn a_silent_loss_of_a_link_is_noticed() {
    needs_lab!();
    let text = "[nodes.a]\n[nodes.b]\ntun = false\n[nodes.c]\ntun = false\n[nodes.d]\n\
        [[link]]\nbetween = [\"a\", \"b\"]\ntap = true\n[[link]]\nbetween = [\"b\", \"d\"]\ntap = true\n\
        [[link]]\nbetween = [\"a\", \"c\"]\ntap = true\n[[link]]\nbetween = [\"c\", \"d\"]\ntap = true\n";
    let lab = lab(text);
    connected(&lab, "a", "d");
    let there = stream(&lab, "a", "d", 100);
    there.wait_received(3000, SOON).unwrap();
    let used = path_in_use(&lab, "a", "d");
    assert_eq!(used.len(), 3, "{used:?}");
    // No carrier is lost anywhere: only the probes can tell.
    let cut = Shape {
        cut: true,
        ..Shape::default()
    };
    lab.shape(&used[1], "d", cut).unwrap();
    there.wait_received(3000, Duration::from_secs(30)).unwrap();
    let report = there.finish().unwrap();
    assert!(report.longest_gap < Duration::from_secs(5), "{report:?}");
}

#[test]
fn one_way_links_carry_what_goes_their_way() {
    needs_lab!();
    let quick = "config = { timers = { link_rekey_s = 15, session_rekey_s = 15 } }";
    let text = format!(
        "[nodes.a]\n{quick}\n[nodes.b]\n{quick}\n[nodes.c]\ntun = false\n{quick}\n\
        [[link]]\nbetween = [\"a\", \"b\"]\none_way = true\n\
        [[link]]\nbetween = [\"a\", \"c\"]\ntap = true\n[[link]]\nbetween = [\"c\", \"b\"]\nfamily = \"v6\"\n"
    );
    let lab = lab(&text);
    connected(&lab, "a", "b");
    let (there, back) = (stream(&lab, "a", "b", 100), stream(&lab, "b", "a", 200));
    until(
        "a standby over the one-way link",
        Duration::from_secs(60),
        || {
            let lsps = lab.node("a").api().unwrap().lsps().unwrap();
            lsps.iter()
                .any(|l| l.role == "ingress" && l.state == "up" && l.path == ["a", "b"])
        },
    );
    // Now a can send to b alone, and hears c alone: a ring of links that go one way.
    let cut = Shape {
        cut: true,
        ..Shape::default()
    };
    lab.shape("a", "c", cut).unwrap();
    until("the ring to be used", Duration::from_secs(30), || {
        path_in_use(&lab, "a", "b") == ["a", "b"] && path_in_use(&lab, "b", "a") == ["b", "c", "a"]
    });
    there.wait_received(1000, SOON).unwrap();
    back.wait_received(1000, SOON).unwrap();
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert!(report.longest_gap < Duration::from_secs(5), "{report:?}");
    }
    // And it lasts, for longer than the kernel remembers a neighbour that gives no answer: reports, refreshes and new
    // keys go round as well.
    let epochs = || {
        let links = ["a", "b", "c"].map(|n| lab.node(n).api().unwrap().links().unwrap());
        links.iter().flatten().map(|l| l.epoch).min().unwrap_or(0)
    };
    let before = epochs();
    let (there, back) = (stream(&lab, "a", "b", 101), stream(&lab, "b", "a", 201));
    there
        .wait_received(45_000, Duration::from_secs(150))
        .unwrap();
    until("two rekeys of every link", SOON, || epochs() >= before + 2);
    for report in [there.finish().unwrap(), back.finish().unwrap()] {
        assert_eq!(
            (report.lost(), report.duplicates),
            (0, 0),
            "{report:?}\n{}",
            counters(&lab)
        );
    }
    assert_eq!(path_in_use(&lab, "a", "b"), ["a", "b"]);
    assert_eq!(path_in_use(&lab, "b", "a"), ["b", "c", "a"]);
}

#[test]
fn a_prefix_behind_a_node_is_reached_through_it() {
    needs_lab!();
    let text = "[nodes.a]\nadvertise = [\"10.51.0.0/24\"]\n[nodes.b]\ntun = false\n[nodes.c]\nadvertise = [\"10.52.0.0/24\", \"fd99:52::/64\"]\n\
        [nodes.d]\nconfig = { routes = { accept_only = [\"fd99:52::/64\"] } }\n\
        [[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"b\", \"c\"]\nfamily = \"v6\"\n\
        [[link]]\nbetween = [\"b\", \"d\"]\n";
    let lab = lab(text);
    connected(&lab, "a", "c");
    connected(&lab, "d", "c");
    let of_d = || lab.node("d").api().unwrap();
    until("d to refuse what it was not told to accept", SOON, || {
        let notices = of_d().status().unwrap().notices;
        notices
            .iter()
            .any(|n| n.contains("10.51.0.0/24, 10.52.0.0/24") && n.contains("accept_only"))
    });
    let routes = of_d().routes().unwrap();
    let prefixes = routes.iter().filter(|r| r.installed).map(|r| &r.prefix[..]);
    let prefixes = prefixes.filter(|p| !p.ends_with("/128"));
    assert_eq!(prefixes.collect::<Vec<_>>(), ["fd99:52::/64"]);
    for (from, to) in [("10.51.0.1", "10.52.0.1"), ("::", "fd99:52::1")] {
        let target = SocketAddr::new(to.parse().unwrap(), 7000);
        let listener = lab
            .node("c")
            .namespace()
            .run(|| std::net::UdpSocket::bind(target))
            .unwrap()
            .unwrap();
        listener
            .set_read_timeout(Some(Duration::from_millis(100)))
            .unwrap();
        let socket = lab
            .node("a")
            .namespace()
            .run(|| std::net::UdpSocket::bind((from, 0)))
            .unwrap()
            .unwrap();
        until(&format!("a packet from {from} to {to}"), SOON, || {
            socket.send_to(b"hello", target).ok();
            listener.recv(&mut [0; 16]).is_ok_and(|n| n == 5)
        });
    }
}

/// Hosts behind two gateways know links of 1500 bytes only; the path between the gateways carries less.
#[test]
fn hosts_behind_gateways_agree_on_segments_that_fit() {
    needs_lab!();
    let text = "[nodes.left]\ndaemon = false\n[nodes.a]\nadvertise = [\"198.18.0.0/24\"]\n\
        [nodes.b]\nadvertise = [\"198.18.2.0/24\"]\n[nodes.right]\ndaemon = false\n\
        [[link]]\nbetween = [\"a\", \"left\"]\n[[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"b\", \"right\"]\n";
    let lab = lab(text);
    connected(&lab, "a", "b");
    for (host, gateway, far) in [
        ("left", "a", "198.18.2.0/24"),
        ("right", "b", "198.18.0.0/24"),
    ] {
        let via = lab.node(gateway).end_to(host).address;
        let route = format!("route add {far} via {via}\n");
        lab.node(host).namespace().ip(&route).unwrap();
        let forwarding = lab.node(gateway).namespace();
        forwarding.sysctl("ipv4/ip_forward", "1").unwrap();
        // The lab makes all of what a node advertises its own; here there are hosts in it.
        forwarding
            .ip(&format!("addr del {via}/24 dev lo\n"))
            .unwrap();
    }
    let to = SocketAddr::new(lab.node("right").end_to("b").address, 7001);
    let listener = lab.node("right").namespace().run(|| TcpListener::bind(to));
    let listener = listener.unwrap().unwrap();
    let left = lab.node("left").namespace();
    let mut near = None;
    until("a connection from host to host", SOON, || {
        let connect = || TcpStream::connect_timeout(&to, Duration::from_secs(2));
        near = left.run(connect).unwrap().ok();
        near.is_some()
    });
    let (mut near, (mut far, _)) = (near.unwrap(), listener.accept().unwrap());
    let inner = lab.node("a").api().unwrap().sessions().unwrap();
    let inner = inner.iter().find_map(|s| s.inner_mtu).unwrap();
    // A socket tells what it fills: 20 bytes of IPv4, 20 of TCP and 12 of its timestamps are taken off.
    for socket in [&near, &far] {
        let segment = segment_size(socket);
        assert!(
            (i32::from(inner) - 60..=i32::from(inner) - 52).contains(&segment),
            "segments of {segment} on an inner MTU of {inner}"
        );
    }
    let sent: Vec<u8> = (0..1_000_000_u32).map(|i| (i / 7) as u8).collect();
    let copy = sent.clone();
    let writing = std::thread::spawn(move || near.write_all(&copy));
    let mut received = Vec::new();
    far.set_read_timeout(Some(SOON)).unwrap();
    far.read_to_end(&mut received).unwrap();
    writing.join().unwrap().unwrap();
    assert!(received == sent, "{} bytes came", received.len());
}

/// TCP_MAXSEG.
fn segment_size(socket: &TcpStream) -> i32 {
    let (mut size, mut len) = (0_i32, 4);
    // SAFETY: both point to living values, and the length is the first one's.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(socket),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw mut size).cast(),
            &raw mut len,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    size
}
