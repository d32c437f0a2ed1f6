//! The lab itself, with bare hosts instead of nodes: what it makes works, and nothing stays behind.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use xtask::{
    lab::{
        Lab,
        capture::Capture,
        registry,
        topology::{Shape, Topology},
        traffic::{Stream, http},
        wait_for,
    },
    paths::Programs,
    setup::host,
    skip,
};

const TICK: Duration = Duration::from_millis(1);

macro_rules! needs_namespaces {
    () => {
        if let Some(obstacle) = host::obstacle() {
            skip!("{obstacle}");
        }
    };
}

/// A lab of bare hosts.
fn bare(links: &str) -> Lab {
    let text = format!(
        "[nodes.a]\ndaemon = false\n[nodes.b]\ndaemon = false\n[[link]]\nbetween = [\"a\", \"b\"]\n{links}"
    );
    let none = Programs {
        weftd: "/nonexistent".into(),
        weft: "/nonexistent".into(),
    };
    Lab::build(&Topology::parse(&text, "bare.toml", "bare").unwrap(), &none).unwrap()
}

fn stream(lab: &Lab, from: &str, to: &str) -> Stream {
    let address = SocketAddr::new(lab.node(to).end_to(from).address, 9000);
    Stream::start(
        lab.node(from).namespace(),
        lab.node(to).namespace(),
        address,
        TICK,
        100,
    )
    .unwrap()
}

#[test]
fn a_plain_link_loses_nothing_until_it_is_down() {
    needs_namespaces!();
    for family in ["v4", "v6"] {
        let lab = bare(&format!("family = \"{family}\"\n"));
        let there = stream(&lab, "a", "b");
        let back = stream(&lab, "b", "a");
        there.wait_received(200, Duration::from_secs(5)).unwrap();
        let report = there.finish().unwrap();
        assert_eq!((report.lost(), report.duplicates), (0, 0), "{report:?}");
        assert!(report.received >= 200, "{report:?}");
        assert_eq!(back.finish().unwrap().lost(), 0);

        let cut = stream(&lab, "a", "b");
        lab.set_link("a", "b", false).unwrap();
        let goal = cut.sent() + 100;
        wait_for("packets to be sent in vain", Duration::from_secs(5), || {
            Ok((cut.sent() > goal).then_some(()))
        })
        .unwrap();
        lab.set_link("a", "b", true).unwrap();
        cut.wait_received(50, Duration::from_secs(10)).unwrap();
        let report = cut.finish().unwrap();
        assert!(
            report.lost() >= 50 && report.longest_gap >= Duration::from_millis(50),
            "{report:?}"
        );
    }
}

#[test]
fn a_wire_loses_its_share_and_holds_its_rate() {
    needs_namespaces!();
    let lab = bare("there = { loss = \"30%\" }\nback = { rate = \"40mbit\" }\n");
    let lossy = stream(&lab, "a", "b");
    let clean = stream(&lab, "b", "a");
    lossy.wait_received(1000, Duration::from_secs(20)).unwrap();
    let report = lossy.finish().unwrap();
    assert_eq!(report.refused, 0, "{report:?}");
    let share = report.lost() as f64 / report.sent as f64;
    // Four standard deviations of 1,400 packets.
    assert!(
        (0.25..0.35).contains(&share),
        "30% were to be lost: {report:?}"
    );
    assert_eq!(clean.finish().unwrap().lost(), 0);

    lab.shape("a", "b", Shape::default()).unwrap();
    let mended = stream(&lab, "a", "b");
    mended.wait_received(300, Duration::from_secs(5)).unwrap();
    assert_eq!(mended.finish().unwrap().lost(), 0);

    // The server sends from b to a: 40 Mbit/s with headers, so 4 MB take 0.8 s at least.
    let lab = bare("family = \"v6\"\nback = { rate = \"40mbit\" }\n");
    let std::net::IpAddr::V6(address) = lab.node("b").end_to("a").address else {
        panic!("not IPv6")
    };
    let server = http::Server::start(lab.node("b").namespace(), address, 0, b"").unwrap();
    let done = http::download(
        lab.node("a").namespace(),
        server.address(),
        1,
        4_000_000,
        &|_| (),
    )
    .unwrap();
    assert_eq!(done.hash, http::Bytes::new(1, b"").hash(4_000_000));
    assert!(
        (0.02..0.041).contains(&done.gbps()),
        "40 Mbit/s were set: {done:?}"
    );
}

#[test]
fn a_one_way_link_passes_one_way() {
    needs_namespaces!();
    let lab = bare("one_way = true\n");
    let there = stream(&lab, "a", "b");
    let address = SocketAddr::new(lab.node("a").end_to("b").address, 9001);
    let wire = lab.links()[0].wire().unwrap().namespace().clone();
    let capture = Capture::start(lab.node("a").namespace(), "to-b", b"").unwrap();
    let at_wire = Capture::start(&wire, "second", b"").unwrap();
    let socket = lab
        .node("b")
        .namespace()
        .run(|| std::net::UdpSocket::bind("0.0.0.0:0"))
        .unwrap()
        .unwrap();
    for _ in 0..50 {
        socket.send_to(b"back", address).unwrap();
    }
    wait_for(
        "the frames to reach the wire",
        Duration::from_secs(5),
        || {
            let frames = at_wire.seen().frames;
            Ok((frames.iter().filter(|f| !f.outgoing).count() >= 50).then_some(()))
        },
    )
    .unwrap();
    there.wait_received(50, Duration::from_secs(5)).unwrap();
    assert_eq!(there.finish().unwrap().lost(), 0);
    let seen = capture.finish().unwrap();
    assert!(
        seen.packets > 0 && seen.frames.iter().all(|f| f.outgoing),
        "something came back"
    );
}

#[test]
fn captures_find_what_passes() {
    needs_namespaces!();
    let lab = bare("tap = true\nfamily = \"v6\"\n");
    let wire = lab.links()[0].wire().unwrap().namespace().clone();
    let with = Capture::start(&wire, "first", b"in clear text").unwrap();
    let without = Capture::start(&wire, "second", b"in cipher text").unwrap();
    let socket = lab
        .node("a")
        .namespace()
        .run(|| std::net::UdpSocket::bind("[::]:0"))
        .unwrap()
        .unwrap();
    // The first ones wait for an address to be resolved, or are lost while the link comes up.
    let to = (lab.node("b").end_to("a").address, 9000);
    wait_for("the frame", Duration::from_secs(5), || {
        socket.send_to(b"a thing in clear text.", to).ok();
        Ok((with.seen().matches > 0).then_some(()))
    })
    .unwrap();
    let other = without.finish().unwrap();
    assert!(other.packets > 0 && other.matches == 0, "{other:?}");
}

#[test]
fn an_address_can_be_changed_and_the_old_one_is_gone() {
    needs_namespaces!();
    let lab = bare("");
    let before = lab.node("b").end_to("a").address;
    let after = lab.change_address("b", "a").unwrap();
    assert_ne!(before, after);
    let address = SocketAddr::new(after, 9000);
    let s = Stream::start(
        lab.node("a").namespace(),
        lab.node("b").namespace(),
        address,
        TICK,
        8,
    )
    .unwrap();
    assert_eq!(s.finish().unwrap().lost(), 0);
    let gone = lab
        .node("b")
        .namespace()
        .run(|| std::net::UdpSocket::bind((before, 9002)))
        .unwrap();
    assert!(gone.is_err());
}

#[test]
fn a_dropped_lab_leaves_nothing() {
    needs_namespaces!();
    let lab = bare("tap = true\n");
    let id = lab.id().to_owned();
    let mut sleeper = lab
        .node("a")
        .namespace()
        .command("sleep")
        .arg("1000")
        .spawn()
        .unwrap();
    assert!(!left_of(&id).is_empty());
    drop(lab);
    assert_eq!(left_of(&id), BTreeSet::new());
    assert!(
        !sleeper.wait().unwrap().success(),
        "a process inside outlived the lab"
    );
}

#[test]
fn a_crashed_lab_is_swept_and_a_living_one_is_not() {
    needs_namespaces!();
    let mine = bare("");
    let (id, mut child) = lab_process(&[]);
    assert!(!left_of(&id).is_empty());
    registry::sweep().unwrap();
    assert!(
        !left_of(&id).is_empty(),
        "a lab whose owner lives was swept"
    );
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!left_of(&id).is_empty());
    registry::sweep().unwrap();
    assert_eq!(left_of(&id), BTreeSet::new());
    assert!(
        !left_of(mine.id()).is_empty(),
        "a lab whose owner lives was swept"
    );
}

#[test]
fn a_signal_removes_the_lab() {
    needs_namespaces!();
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let (id, mut child) = lab_process(&[]);
        // SAFETY: signals our own child, which has not been waited for.
        unsafe { libc::kill(child.id() as i32, signal) };
        assert_eq!(child.wait().unwrap().code(), Some(128 + signal));
        assert_eq!(left_of(&id), BTreeSet::new());
    }
}

#[test]
fn a_kept_lab_stays_until_it_is_taken_down() {
    needs_namespaces!();
    let (id, mut child) = lab_process(&["--keep"]);
    assert!(child.wait().unwrap().success());
    registry::sweep().unwrap();
    assert!(!left_of(&id).is_empty(), "a kept lab was swept");
    let said = xtask(&[
        "lab", "exec", "--lab", &id, "a", "--", "ip", "-o", "link", "show", "to-b",
    ]);
    assert!(said.contains("to-b"), "{said}");
    xtask(&["lab", "down", &id]);
    assert_eq!(left_of(&id), BTreeSet::new());
}

/// `cargo xtask lab up` of two bare hosts in a process of its own: the lab's id, and the process.
fn lab_process(options: &[&str]) -> (String, std::process::Child) {
    let file = std::env::temp_dir().join(format!("weft-lab-test-{}.toml", std::process::id()));
    fs::write(&file, "[nodes.a]\ndaemon = false\n[nodes.b]\ndaemon = false\n[[link]]\nbetween = [\"a\", \"b\"]\n").unwrap();
    let programs = tools();
    let mut child = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(["lab", "up"])
        .arg(&file)
        .args(options)
        .env("WEFT_BIN_DIR", programs)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = child.stdout.take().unwrap();
    let mut lines = BufReader::new(stdout).lines().map_while(Result::ok);
    let id = lines.find_map(|l| Some(l.split_once("lab ")?.1.split_once(" (")?.0.to_owned()));
    // Nobody reads on: it must not fail to print the rest.
    std::thread::spawn(move || lines.for_each(drop));
    (id.expect("`lab up` told no id"), child)
}

/// A folder with stand-ins for the programs: bare hosts run neither.
fn tools() -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("weft-lab-test-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    for name in ["weftd", "weft"] {
        fs::write(folder.join(name), "").unwrap();
    }
    folder
}

fn xtask(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_xtask"))
        .args(arguments)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Everything on this machine with the lab's id in its name.
fn left_of(id: &str) -> BTreeSet<String> {
    let in_names = [
        Path::new("/run/netns"),
        &registry::base(),
        Path::new("/sys/fs/bpf/weft"),
    ];
    let names = in_names
        .iter()
        .flat_map(|f| fs::read_dir(f).into_iter().flatten().flatten());
    names
        .map(|f| f.file_name().to_string_lossy().into_owned())
        .filter(|n| n.contains(id))
        .collect()
}
