//! What `weftd` does to its host, and what the host may do to it.

mod common;

use std::{fs, net::UdpSocket, path::Path, process::Stdio, time::Duration};

use common::{
    SOON, chain, chain_text, connected, forwarded, lab, path_in_use, stream, topology, until,
};
use weft_client::{api::ForwardMode, config::DEFAULT_PORT};
use xtask::{
    lab::{Lab, netns, node::Node, wait_for},
    needs_lab,
    paths::Programs,
    skip,
};

/// `a - b - c` with nothing running.
fn built() -> Lab {
    let text = chain_text(&["a", "b", "c"], &["", "family = \"v6\""], "");
    Lab::build(&topology(&text), &Programs::find().unwrap()).unwrap_or_else(|e| panic!("{e:#}"))
}

/// Everything pinned on this machine under a name of this lab.
fn pins(lab: &Lab) -> Vec<String> {
    fn walk(folder: &Path, into: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            into.push(entry.path().display().to_string());
            walk(&entry.path(), into);
        }
    }
    let mut all = Vec::new();
    walk(Path::new("/sys/fs/bpf/weft"), &mut all);
    let own = lab.nodes().flat_map(|n| n.pins()).collect::<Vec<_>>();
    all.retain(|p| own.iter().any(|o| Path::new(p).starts_with(o)));
    all
}

/// Runs a daemon that is expected to refuse: what it says.
fn refusal(node: &Node) -> String {
    let mut child = node
        .weftd(&[])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ended = wait_for("weftd to refuse", SOON, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().unwrap();
    }
    let output = child.wait_with_output().unwrap();
    let text = [output.stdout, output.stderr]
        .map(|b| String::from_utf8_lossy(&b).into_owned())
        .concat();
    assert!(
        ended.is_ok_and(|s| !s.success()),
        "it did not refuse:\n{text}"
    );
    text
}

#[test]
fn everything_is_undone_after_a_proper_end() {
    needs_lab!();
    let lab = built();
    let before = lab
        .nodes()
        .map(|n| n.host_state().unwrap())
        .collect::<Vec<_>>();
    for _ in 0..2 {
        lab.start_all().unwrap();
        connected(&lab, "a", "c");
        drop(stream(&lab, "a", "c", 100));
        let running = lab.node("a").host_state().unwrap();
        assert_ne!(running, before[0], "the comparison sees nothing");
        assert!(!pins(&lab).is_empty());
        for node in lab.nodes() {
            node.stop().unwrap_or_else(|e| panic!("{e:#}"));
        }
        for (node, before) in lab.nodes().zip(&before) {
            assert_eq!(&node.host_state().unwrap(), before, "node {}", node.name());
        }
        assert_eq!(pins(&lab), Vec::<String>::new());
        assert!(!lab.node("a").layout().socket.exists());
    }
}

#[test]
fn everything_is_undone_after_a_crash_too() {
    needs_lab!();
    let lab = built();
    let before = lab
        .nodes()
        .map(|n| n.host_state().unwrap())
        .collect::<Vec<_>>();
    lab.start_all().unwrap();
    connected(&lab, "a", "c");
    drop(stream(&lab, "a", "c", 100));
    for node in lab.nodes() {
        node.kill9().unwrap();
    }
    assert!(!pins(&lab).is_empty(), "transit should have gone on");
    for node in lab.nodes() {
        let output = node.weftd(&["--undo"]).output().unwrap();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    for (node, before) in lab.nodes().zip(&before) {
        assert_eq!(&node.host_state().unwrap(), before, "node {}", node.name());
    }
    assert_eq!(pins(&lab), Vec::<String>::new());
    // Undoing again finds nothing to do and says so without failing.
    assert!(
        lab.node("a")
            .weftd(&["--undo"])
            .output()
            .unwrap()
            .status
            .success()
    );
}

#[test]
fn the_list_of_changes_names_what_was_changed() {
    needs_lab!();
    let lab = chain(&["a", "b", "c"], &["", ""], "");
    connected(&lab, "a", "c");
    drop(stream(&lab, "a", "c", 100));
    let changes = lab.node("a").api().unwrap().host().unwrap();
    for kind in ["tun", "address", "xdp", "pin"] {
        assert!(
            changes.iter().any(|c| c.kind == kind && !c.undo.is_empty()),
            "no {kind} in {changes:?}"
        );
    }
    assert!(
        lab.node("b")
            .api()
            .unwrap()
            .host()
            .unwrap()
            .iter()
            .all(|c| c.kind != "tun")
    );
}

#[test]
fn a_port_in_use_is_named() {
    needs_lab!();
    let lab = built();
    let node = lab.node("a");
    let before = node.host_state().unwrap();
    let taken = node
        .namespace()
        .run(|| UdpSocket::bind(("0.0.0.0", DEFAULT_PORT)))
        .unwrap()
        .unwrap();
    let said = refusal(node);
    assert!(
        said.contains(&DEFAULT_PORT.to_string()) && said.contains("use"),
        "{said}"
    );
    assert_eq!(node.host_state().unwrap(), before);
    drop(taken);
    node.start().unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn wrong_configuration_is_refused_with_file_line_and_value_and_changes_nothing() {
    needs_lab!();
    let lab = built();
    let node = lab.node("a");
    let before = node.host_state().unwrap();
    let file = node.layout().config;
    let right = fs::read_to_string(&file).unwrap();
    for (from, to, value) in [
        (format!("port = {DEFAULT_PORT}"), "port = 70000", "70000"),
        (
            "peers = [".to_owned(),
            "peers = [\"nonsense:port\", ",
            "nonsense:port",
        ),
        ("[routes]".to_owned(), "[routes]\nspeed = 3", "speed"),
        (
            "advertise = [".to_owned(),
            "advertise = [\"10.0.0.1/8\", ",
            "10.0.0.1/8",
        ),
    ] {
        let wrong = right.replacen(&from, to, 1);
        assert_ne!(wrong, right, "{from:?} is not in the configuration");
        let line = 1 + wrong.lines().position(|l| l.contains(value)).unwrap();
        fs::write(&file, wrong).unwrap();
        let said = refusal(node);
        assert!(
            said.contains(&format!("{}:{line}", file.display())) && said.contains(value),
            "{said}"
        );
        assert_eq!(node.host_state().unwrap(), before);
    }
    fs::write(&file, right).unwrap();
    node.start().unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn a_corrupt_state_file_is_kept_aside() {
    needs_lab!();
    let lab = built();
    lab.start_all().unwrap();
    connected(&lab, "a", "c");
    let node = lab.node("a");
    // A proper end leaves no state to resume from; a crash does.
    node.kill9().unwrap();
    let state = node.layout().state;
    let files = || {
        let all = fs::read_dir(&state)
            .unwrap()
            .flatten()
            .filter(|f| f.path().is_file());
        all.map(|f| f.file_name().to_string_lossy().into_owned())
            .collect::<Vec<_>>()
    };
    let secret = |name: &str| name == "identity.key" || name == "network.key" || name == "lock";
    let spoiled = files()
        .into_iter()
        .filter(|n| !secret(n))
        .collect::<Vec<_>>();
    assert!(!spoiled.is_empty(), "no state is kept: {:?}", files());
    for name in &spoiled {
        fs::write(state.join(name), b"\xff\x00 not what was written").unwrap();
    }
    node.start().unwrap_or_else(|e| panic!("{e:#}"));
    connected(&lab, "a", "c");
    for name in &spoiled {
        let kept = files().into_iter().any(|n| {
            n != *name
                && fs::read(state.join(&n))
                    .is_ok_and(|text| text == b"\xff\x00 not what was written")
        });
        assert!(kept, "{name} was not kept aside: {:?}", files());
        assert!(node.log().contains(name.as_str()), "{}", node.log_end(30));
    }
}

#[test]
fn a_corrupt_identity_is_refused_and_not_replaced() {
    needs_lab!();
    let lab = built();
    let node = lab.node("a");
    let file = node.layout().identity();
    let right = fs::read(&file).unwrap();
    fs::write(&file, b"weft-identity-1 abc").unwrap();
    let said = refusal(node);
    assert!(said.contains(&file.display().to_string()), "{said}");
    assert_eq!(fs::read(&file).unwrap(), b"weft-identity-1 abc");
    fs::write(&file, right).unwrap();
    node.start().unwrap_or_else(|e| panic!("{e:#}"));
}

#[test]
fn a_full_disk_does_not_stop_traffic() {
    needs_lab!();
    let lab = built();
    let node = lab.node("b");
    let state = node.layout().state;
    let secrets = ["identity.key", "network.key"].map(|n| (n, fs::read(state.join(n)).unwrap()));
    lab.mount_small(&state, 128 << 10)
        .unwrap_or_else(|e| panic!("{e:#}"));
    for (name, text) in secrets {
        fs::write(state.join(name), text).unwrap();
        let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
        fs::set_permissions(state.join(name), private).unwrap();
    }
    lab.start_all().unwrap();
    connected(&lab, "a", "c");
    let traffic = stream(&lab, "a", "c", 100);
    // Fill it to the last byte.
    let filler = state.join("filler");
    let mut size = 1 << 17;
    let mut full = fs::File::create(&filler).unwrap();
    while size > 0 {
        if std::io::Write::write_all(&mut full, &vec![0; size]).is_err() {
            size /= 2;
        }
    }
    // Something to write down: a neighbour goes and comes.
    lab.node("c").restart().unwrap_or_else(|e| panic!("{e:#}"));
    until(
        "a complaint about the disk",
        Duration::from_secs(60),
        || {
            let notices = node.api().unwrap().status().unwrap().notices.join("\n");
            let log = node.log();
            (notices + &log).to_lowercase().contains("space")
        },
    );
    connected(&lab, "a", "c");
    traffic
        .wait_received(1000, Duration::from_secs(30))
        .unwrap();
    drop(full);
    fs::remove_file(&filler).unwrap();
}

#[test]
fn an_interface_that_vanishes_takes_only_its_links_along() {
    needs_lab!();
    let text = "[nodes.a]\n[nodes.b]\n[nodes.c]\n\
        [[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"a\", \"c\"]\n[[link]]\nbetween = [\"b\", \"c\"]\nfamily = \"v6\"\n";
    let lab = lab(text);
    connected(&lab, "a", "b");
    connected(&lab, "a", "c");
    let (to_b, to_c) = (stream(&lab, "a", "b", 100), stream(&lab, "a", "c", 200));
    // Whose link comes up last begins with the way round.
    for far in ["b", "c"] {
        until("the direct path to be in use", SOON, || {
            path_in_use(&lab, "a", far) == ["a", far]
        });
    }
    drop((to_b, to_c));
    let (to_b, to_c) = (stream(&lab, "a", "b", 101), stream(&lab, "a", "c", 201));
    lab.node("a").namespace().ip("link del to-b\n").unwrap();
    to_b.wait_received(1000, Duration::from_secs(30)).unwrap();
    to_c.wait_received(1000, SOON).unwrap();
    assert_eq!(to_c.finish().unwrap().lost(), 0);
    until("the interface to be gone from the status", SOON, || {
        let status = lab.node("a").api().unwrap().status().unwrap();
        status.interfaces.iter().all(|i| i.name != "to-b" || !i.up)
    });
    assert!(lab.node("a").ended().unwrap().is_none());
    lab.node("a").stop().unwrap_or_else(|e| panic!("{e:#}"));
}

/// A veth end without XDP and without GRO drops what the far end's XDP program redirects to it, and counts it nowhere.
#[test]
fn what_an_interface_would_lose_is_sent_by_the_daemon() {
    needs_lab!();
    let text = "[nodes.a]\n[nodes.b]\ntun = false\n[nodes.c]\nconfig = { xdp = { mode = \"off\" } }\n\
        [[link]]\nbetween = [\"a\", \"b\"]\n[[link]]\nbetween = [\"b\", \"c\"]\nfamily = \"v6\"\n";
    let lab = lab(text);
    connected(&lab, "a", "c");
    let reason = || {
        let status = lab.node("b").api().unwrap().status().unwrap();
        let to_c = status.interfaces.into_iter().find(|i| i.name == "to-c");
        to_c.unwrap().reason
    };
    let whole = |port| {
        let stream = stream(&lab, "a", "c", port);
        stream.wait_received(1000, SOON).unwrap();
        let report = stream.finish().unwrap();
        assert_eq!(report.lost(), 0, "{report:?}");
        forwarded(&lab, "b")
    };
    assert_eq!(reason(), "");
    let (xdp, daemon) = whole(100);
    assert!(xdp > 1000, "{xdp} in XDP, {daemon} in weftd");

    let offload = |on| {
        let c = lab.node("c").namespace();
        c.run(|| netns::gro("to-b", on)).unwrap().unwrap();
    };
    offload(false);
    let said = wait_for("the loss to be foreseen", SOON, || {
        Ok(reason().contains("NDO_XMIT").then_some(()))
    });
    if said.is_err() && !kernel_tells_features() {
        skip!("this kernel does not tell what interfaces can do with XDP (it does from 6.3 on)");
    }
    said.unwrap();
    let (xdp, daemon) = whole(200);
    assert!(daemon > 1000, "{xdp} in XDP, {daemon} in weftd");

    offload(true);
    until("the kernel to be trusted again", SOON, || {
        reason().is_empty()
    });
    let (now, _) = whole(300);
    assert!(now > xdp + 1000, "{now} in XDP after {xdp}");
}

fn kernel_tells_features() -> bool {
    let version = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = version.split('.').map_while(|n| n.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(3))
}

/// A setting of the service's unit.
fn unit(setting: &str) -> String {
    let file = xtask::paths::workspace().join("dist/weftd.service");
    let text = fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let start = format!("{setting}=");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix(&start));
    lines
        .next()
        .unwrap_or_else(|| panic!("{} has no {setting}", file.display()))
        .to_owned()
}

/// The service manager is no part of the tests; what the unit leaves of root's powers is.
#[test]
fn the_services_capabilities_suffice() {
    needs_lab!();
    let lab = built();
    for name in ["b", "c"] {
        lab.node(name).start().unwrap_or_else(|e| panic!("{e:#}"));
    }
    let node = lab.node("a");
    let left: String = unit("CapabilityBoundingSet")
        .split_whitespace()
        .map(|name| {
            format!(
                ",+{}",
                name.strip_prefix("CAP_").unwrap().to_ascii_lowercase()
            )
        })
        .collect();
    let log = fs::File::create(node.log_file()).unwrap();
    let mut child = node
        .exec("setpriv")
        .arg(format!("--bounding-set=-all{left}"))
        .args(["--inh-caps=-all", "--no-new-privs"])
        .arg(&Programs::find().unwrap().weftd)
        .arg("--dir")
        .arg(node.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let tried = std::panic::catch_unwind(|| {
        connected(&lab, "a", "c");
        let stream = stream(&lab, "a", "c", 100);
        stream.wait_received(1000, SOON).unwrap();
        assert_eq!(stream.finish().unwrap().lost(), 0);
        let status = node.api().unwrap().status().unwrap();
        assert!(status.notices.is_empty(), "{:?}", status.notices);
        let native = |i: &weft_client::api::Interface| i.mode == ForwardMode::KernelNative;
        assert!(
            status.interfaces.iter().all(native) && status.tun.is_some(),
            "{status:?}"
        );
        assert!(forwarded(&lab, "b").0 > 1000);
    });
    // SAFETY: signals our own child, which has not been waited for.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
    let ended = wait_for("weftd to end", SOON, || Ok(child.try_wait()?));
    if ended.is_err() {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    if let Err(panic) = tried {
        eprintln!("{}", node.log_end(30));
        std::panic::resume_unwind(panic);
    }
    assert!(ended.unwrap().success(), "{}", node.log_end(30));
    assert_eq!(pins(&lab).iter().filter(|p| p.contains("/b-")).count(), 0);
}

/// systemd itself reads the unit and rates what it leaves open.
#[test]
fn the_service_manager_understands_the_unit() {
    let analyze = |arguments: &[&str], unit: &Path| {
        std::process::Command::new("systemd-analyze")
            .args(arguments)
            .arg(unit)
            .output()
    };
    let folder = std::env::temp_dir().join(format!("weft-unit-test-{}", std::process::id()));
    fs::create_dir_all(&folder).unwrap();
    let copy = folder.join("weftd.service");
    let text = fs::read_to_string(xtask::paths::workspace().join("dist/weftd.service")).unwrap();
    // It insists that the program is there.
    let program = format!("ExecStart={}", unit("ExecStart"));
    fs::write(&copy, text.replace(&program, "ExecStart=/bin/true")).unwrap();
    let Ok(verified) = analyze(&["verify", "--man=no"], &copy) else {
        skip!("there is no systemd-analyze");
    };
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(verified.status.success() && said.is_empty(), "{said}");
    let rated = analyze(
        &["security", "--offline=true", "--threshold=30", "--no-pager"],
        &copy,
    )
    .unwrap();
    assert!(
        rated.status.success(),
        "{}{}",
        String::from_utf8_lossy(&rated.stdout),
        String::from_utf8_lossy(&rated.stderr)
    );
    fs::remove_dir_all(&folder).unwrap();
}

#[test]
fn without_privilege_it_says_which_and_goes_on() {
    needs_lab!();
    let lab = built();
    let node = lab.node("a");
    // Root by name, without any of its powers.
    let mut child = node
        .exec("setpriv")
        .args(["--bounding-set=-all", "--inh-caps=-all"])
        .arg(&Programs::find().unwrap().weftd)
        .arg("--dir")
        .arg(node.dir())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let status = wait_for("the API to answer", SOON, || {
        if let Some(status) = child.try_wait()? {
            anyhow::bail!("weftd ended: {status}");
        }
        Ok(node.api().and_then(|mut api| Ok(api.status()?)).ok())
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let status = status.unwrap_or_else(|e| panic!("{e:#}"));
    assert!(status.tun.is_none());
    assert!(
        status
            .interfaces
            .iter()
            .all(|interface| interface.mode == ForwardMode::UserSpace),
        "{:?}",
        status.interfaces
    );
    let said = status.notices.concat();
    assert!(
        said.contains("CAP_BPF") && said.contains("CAP_NET_ADMIN"),
        "{said}"
    );
}
