//! What the commands print, from a scripted daemon: whole outputs, so that a change of any is seen.

mod common;

use common::{Daemon, mesh, program, weft};
use serde_json::json;
use weft_client::api::{Call, Constraints};

#[test]
fn status() {
    let out = Daemon::new(mesh).weft(&["status"]).ok();
    assert_eq!(
        out,
        "\
gw-a  up 3h12m  weftd 0.1.0, pid 812
  node id  8f2a91c3000000000000000000000000000000000000000000000000000000aa
  network  0a1b2c3d4e
  address  fd0a:1b2c:3d4e::a on weft0
  port     udp 7117
  mesh     1 neighbour, 3 nodes, 1 session, 4 LSPs

INTERFACE  STATE   MTU  SWITCHED IN    ADDRESSES              WHY NOT BETTER
eth0       up     1500  kernel_native  192.0.2.1 2001:db8::1  -
wlan0      down   1400  user_space     -                      the driver has no XDP

  offloads on  tun_tso4 udp_gro
  offload off  tun_uso: the kernel refuses TUNSETOFFLOAD 0x60: Invalid argument

! net.ipv4.ip_forward is off: advertised prefixes are not reached
"
    );
}

#[test]
fn host() {
    assert_eq!(
        Daemon::new(mesh).weft(&["status", "--host"]).ok(),
        "\
KIND   WHAT                           UNDONE BY
tun    weft0                          closing it
route  fd0a:1b2c:3d4e::/48 dev weft0  deleting it
"
    );
}

#[test]
fn peers() {
    assert_eq!(
        Daemon::new(mesh).weft(&["peers"]).ok(),
        "\
ADDRESS             NODE  STATE            RTT  SOURCE      DETAIL
192.0.2.2:7117      gw-b  established  1.24 ms  configured  for 1h02m
[2001:db8::9]:7117  -     connecting         -  added       no answer to 4 handshakes
"
    );
}

#[test]
fn peers_add_and_remove_resolve_what_people_write() {
    let daemon = Daemon::new(mesh);
    assert!(
        daemon
            .weft(&["peers", "add", "192.0.2.9"])
            .ok()
            .starts_with("weftd calls 192.0.2.9:7117 from now on")
    );
    daemon.weft(&["peers", "remove", "[2001:db8::9]:5"]).ok();
    daemon
        .weft(&["--json", "peers", "add", "localhost:99"])
        .ok();
    let addresses: Vec<String> = daemon
        .calls()
        .into_iter()
        .map(|call| match call {
            Call::AddPeer { address } | Call::RemovePeer { address } => address,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(addresses[..2], ["192.0.2.9:7117", "[2001:db8::9]:5"]);
    assert!(
        ["127.0.0.1:99", "[::1]:99"].contains(&addresses[2].as_str()),
        "{addresses:?}"
    );

    let error = daemon.weft(&["peers", "add", "a b"]).fails(2);
    assert!(
        error.contains("neither an address nor a host name"),
        "{error}"
    );
    let error = daemon.weft(&["peers", "add", "gw.invalid"]).fails(1);
    assert!(
        error.contains("\"gw.invalid\" cannot be resolved"),
        "{error}"
    );
}

#[test]
fn links() {
    assert_eq!(
        Daemon::new(mesh).weft(&["links"]).ok(),
        "\
DIR  NEIGHBOUR  STATE    COST  LOSS      RTT    JITTER    CAPACITY   MTU  SLOT  EPOCH  SWITCHED IN    LOCAL           REMOTE
out  gw-b       up         12    0%  1.20 ms  0.050 ms  940 Mbit/s  1500     9      3  kernel_native  192.0.2.1:7117  192.0.2.2:7117
in   17c0de00   one_way   300  3.4%        -         -           -  1400    11      0  user_space     192.0.2.1:7117  192.0.2.2:7117
"
    );
}

#[test]
fn nodes_show_hostile_names_harmlessly() {
    assert_eq!(
        Daemon::new(mesh).weft(&["nodes"]).ok(),
        r"NAME           ID        ADDRESS            PATH       COST  LSA AGE  SEQ  SENDS TO  PREFIXES
gw-a           8f2a91c3  fd0a:1b2c:3d4e::a  reachable     0       5s    7  gw-b      -
gw\u{1b}[2J-c  99aa0000  fd0a:1b2c:3d4e::c  none          -    1m05s   12  -         10.1.0.0/16
"
    );
}

#[test]
fn lsp() {
    assert_eq!(
        Daemon::new(mesh).weft(&["lsp"]).ok(),
        "\
ROLE             STATE   IN   OUT  FROM  TO      PACKETS    BYTES    AGE   MTU  PATH
ingress primary  up       -  1034  -     gw-b  1,234,567  1.0 MiB  1m01s  1404  gw-a → gw-b → gw-c
transit          broken  17  2000  gw-c  gw-b          0      0 B     0s     -  -
"
    );
}

#[test]
fn routes() {
    assert_eq!(
        Daemon::new(mesh).weft(&["routes"]).ok(),
        "\
PREFIX                 NODE         COST   MTU  IN KERNEL  PATH IN USE
fd0a:1b2c:3d4e::c/128  gw-c           24  1404  yes        gw-a → gw-b → gw-c
10.1.0.0/16            99aa0000  no path     -  no         (no session yet)
"
    );
}

#[test]
fn sessions() {
    assert_eq!(
        Daemon::new(mesh).weft(&["sessions"]).ok(),
        "\
NODE  STATE  CIPHER       EPOCH  KEY AGE   MTU       SENT           RECEIVED        ADDRESS
gw-c  up     AES-256-GCM      2    1m01s  1404  1,000 pkt  1.4 MiB     2 pkt  99 B  fd0a:1b2c:3d4e::c
"
    );
}

#[test]
fn ping() {
    let daemon = Daemon::new(mesh);
    let out = daemon
        .weft(&["ping", "gw-c", "-c", "3", "-i", "0.2", "-s", "100"])
        .ok();
    // The only figure that differs from run to run is how long it took.
    let (before, after) = out.split_once("packet loss, time ").expect("a summary");
    let (elapsed, after) = after.split_once(" ms").expect("a time");
    elapsed.parse::<u32>().unwrap();
    assert_eq!(
        format!("{before}packet loss{after}"),
        "\
PING gw-c: 100 bytes of payload
100 bytes from gw-c: seq=1 hops=2 time=1.50 ms
seq=2: no answer in time
100 bytes from gw-c: seq=3 hops=2 time=0.500 ms

--- gw-c ping statistics ---
3 packets transmitted, 2 received, 33.3% packet loss
rtt min/avg/max/mdev = 0.500/1.000/1.500/0.500 ms
"
    );
    assert!(
        matches!(&daemon.calls()[..], [Call::Ping { node, count: 3, interval_ms: 200, payload_len: 100 }] if node == "gw-c")
    );
}

#[test]
fn ping_without_an_answer_fails() {
    let lost = json!({"sequence": 1, "rtt_ms": null, "hops": 0, "error": "no path"});
    let run = Daemon::new(move |_| Ok(vec![lost.clone()])).weft(&["ping", "gw-c", "-c", "1"]);
    assert!(run.out.contains("seq=1: no path\n"), "{run:#?}");
    assert!(
        run.out
            .contains("1 packets transmitted, 0 received, 100% packet loss"),
        "{run:#?}"
    );
    assert_eq!((run.code, run.err.as_str()), (Some(1), ""));
}

#[test]
fn ping_in_a_pipe_ends_on_its_own() {
    let daemon = Daemon::new(mesh);
    daemon.weft(&["ping", "gw-c"]).ok();
    assert!(matches!(
        daemon.calls()[..],
        [Call::Ping {
            count: 4,
            interval_ms: 1000,
            payload_len: 56,
            ..
        }]
    ));
}

#[test]
fn trace() {
    assert_eq!(
        Daemon::new(mesh).weft(&["trace", "gw-c"]).ok(),
        "\
HOP  NODE                  LABEL        RTT  SWITCHED IN
  1  gw-b                   1034   0.610 ms  kernel_native
  2  99aa0000                 17    12.3 ms  user_space
"
    );
}

#[test]
fn trace_that_does_not_arrive_fails() {
    let hop = json!({"hop": 1, "node_id": null, "name": null, "label": null, "rtt_ms": null, "mode": null});
    let run = Daemon::new(move |_| Ok(vec![hop.clone()])).weft(&["trace", "gw-c"]);
    assert!(run.out.ends_with("  1  *  no answer in time\n"), "{run:#?}");
    assert_eq!(run.code, Some(1));
}

#[test]
fn why() {
    assert_eq!(
        Daemon::new(mesh).weft(&["why", "gw-c"]).ok(),
        "\
gw-c: 2 hops, cost 24
  gw-a → gw-b  12  rtt 1.2 ms, loss 0%
  gw-b → gw-c  12  rtt 1.1 ms, loss 0%
standby  gw-a → gw-d → gw-c
refused
  gw-a→gw-c  not_heard  gw-c does not say that it hears gw-a
"
    );
}

#[test]
fn why_passes_its_constraints_on() {
    let daemon = Daemon::new(mesh);
    let arguments = [
        "why",
        "gw-c",
        "--avoid",
        "x",
        "--avoid",
        "y",
        "--include",
        "z",
        "--max-delay",
        "5.5",
        "--min-bandwidth",
        "10",
    ];
    daemon.weft(&arguments).ok();
    let calls = daemon.calls();
    let [
        Call::Why {
            node,
            constraints:
                Constraints {
                    include,
                    avoid,
                    max_delay_ms,
                    min_bandwidth_mbps,
                },
        },
    ] = &calls[..]
    else {
        panic!("{calls:?}")
    };
    assert_eq!(
        (node.as_str(), &include[..], &avoid[..]),
        (
            "gw-c",
            &["z".to_owned()][..],
            &["x".to_owned(), "y".to_owned()][..]
        )
    );
    assert_eq!(
        (*max_delay_ms, *min_bandwidth_mbps),
        (Some(5.5), Some(10.0))
    );
    for value in ["0", "-1", "nan", "inf", "x"] {
        assert!(
            daemon
                .weft(&["why", "gw-c", &format!("--max-delay={value}")])
                .fails(2)
                .contains("use a number above 0")
        );
    }
}

#[test]
fn why_without_a_path_says_so_and_fails() {
    let run = Daemon::new(|_| {
        Ok(vec![json!({"node_id": "99aa000000", "name": "gw-c", "path": [], "cost": null, "standby": [], "in_use": null,
            "refused": [], "no_path": "no node hears gw-c"})])
    })
    .weft(&["why", "gw-c"]);
    assert_eq!(
        (run.code, run.out.as_str()),
        (Some(1), "gw-c: no path: no node hears gw-c\n")
    );
}

#[test]
fn counters() {
    let daemon = Daemon::new(mesh);
    assert_eq!(
        daemon.weft(&["counters"]).ok(),
        "\
kernel (XDP)
  swap  1,234,567
kernel (XDP) drops
  bad_tag  3
sessions
  sealed  10
"
    );
    assert!(
        daemon
            .weft(&["counters", "--all"])
            .ok()
            .contains("  pop           0\n")
    );
}

#[test]
fn counters_watched_show_rates() {
    use std::sync::atomic::{AtomicU64, Ordering};
    let calls = AtomicU64::new(0);
    let daemon = Daemon::new(move |_| {
        let value = calls.fetch_add(1, Ordering::SeqCst) * 1000;
        Ok(vec![
            json!({"xdp": {"swap": value, "deliver": 5}, "xdp_drops": {}, "user": {}, "user_drops": {}, "sessions": {}, "control": {}}),
        ])
    });
    let out = daemon
        .weft(&["counters", "--watch", "0.05", "--count", "2"])
        .ok();
    let swap = out.lines().rfind(|line| line.contains("swap")).unwrap();
    let rate: f64 = swap
        .split_whitespace()
        .last()
        .unwrap()
        .trim_end_matches("/s")
        .replace(',', "")
        .parse()
        .unwrap();
    assert!((1.0..=20_000.0).contains(&rate), "{out}");
    assert!(
        out.contains("  deliver      5         0/s\n") || out.contains("0/s"),
        "{out}"
    );
    let lines = daemon
        .weft(&["--json", "counters", "--watch", "0.01", "-c", "3"])
        .ok();
    assert_eq!(
        lines
            .lines()
            .filter(|line| serde_json::from_str::<serde_json::Value>(line).is_ok())
            .count(),
        3
    );
}

#[test]
fn json_is_the_apis_types() {
    let daemon = Daemon::new(mesh);
    for (command, field) in [
        ("status", "/node_id"),
        ("peers", "/0/address"),
        ("links", "/1/slot"),
        ("nodes", "/0/overlay_address"),
        ("lsp", "/0/path/2"),
        ("routes", "/1/installed"),
        ("sessions", "/0/cipher"),
        ("counters", "/xdp/swap"),
    ] {
        let value = daemon.weft(&[command, "--json"]).json();
        assert!(value.pointer(field).is_some(), "{command}: {value}");
    }
    assert_eq!(
        daemon.weft(&["status", "--host", "--json"]).json()[1]["kind"],
        "route"
    );
    assert_eq!(
        daemon.weft(&["why", "gw-c", "--json"]).json()["path"][1]["to"],
        "gw-c"
    );
    let pongs = daemon.weft(&["ping", "gw-c", "-c3", "--json"]).ok();
    assert_eq!(
        pongs.lines().next().unwrap(),
        r#"{"sequence":1,"rtt_ms":1.5,"hops":2,"error":null}"#
    );
    let hops = daemon.weft(&["trace", "gw-c", "--json"]).ok();
    assert_eq!(hops.lines().count(), 2);
    assert_eq!(daemon.weft(&["version", "--json"]).json()["weftd"], "0.1.0");
}

#[test]
fn empty_lists_say_what_to_do() {
    let daemon = Daemon::new(|_| Ok(vec![json!([])]));
    for (command, hint) in [
        ("peers", "weft invite"),
        ("links", "weft peers"),
        ("lsp", "weft ping"),
        ("routes", "weft peers"),
        ("sessions", "weft ping"),
    ] {
        let out = daemon.weft(&[command]).ok();
        assert!(out.contains(hint), "{command}: {out}");
        assert_eq!(daemon.weft(&[command, "--json"]).ok(), "[]\n");
    }
}

#[test]
fn colours_are_for_terminals_or_on_demand() {
    let daemon = Daemon::new(mesh);
    assert!(!daemon.weft(&["status"]).ok().contains('\x1b'));
    assert!(
        daemon
            .weft(&["status", "--color", "always"])
            .ok()
            .contains("\x1b[32mup 3h12m\x1b[0m")
    );
    assert!(
        !daemon
            .weft(&["status", "--json", "--color", "always"])
            .ok()
            .contains('\x1b')
    );
}

#[test]
fn refusals_are_the_daemons_words() {
    let daemon = Daemon::new(|_| Err("no node is called \"x\"; `weft nodes` lists them"));
    for command in [
        &["ping", "x"][..],
        &["trace", "x"],
        &["why", "x"],
        &["nodes"],
    ] {
        assert_eq!(
            daemon.weft(command).fails(1),
            "weft: no node is called \"x\"; `weft nodes` lists them\n"
        );
    }
}

#[test]
fn no_daemon_is_an_exit_code_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().to_str().unwrap();
    for command in [
        "status", "peers", "links", "nodes", "lsp", "routes", "sessions", "counters",
    ] {
        let error = weft(&["--dir", dir, command]).fails(3);
        assert!(
            error.contains("weftd is not running") && error.contains(dir),
            "{error}"
        );
    }
    let error = weft(&["--socket", "/nonexistent/weft.sock", "ping", "x"]).fails(3);
    assert!(error.contains("/nonexistent/weft.sock"), "{error}");
    assert_eq!(
        weft(&["--dir", dir, "version"]).ok().lines().last(),
        Some("weftd  not running")
    );
}

#[test]
fn wrong_usage_is_an_exit_code_of_its_own() {
    for arguments in [
        &["nonsense"][..],
        &["ping"],
        &["ping", "a", "-c", "0"],
        &["ping", "a", "-i", "0"],
        &["--timeout", "x", "status"],
        &["completions", "cmd"],
    ] {
        assert!(weft(arguments).fails(2).contains("--help"), "{arguments:?}");
    }
    assert_eq!(weft(&["--help"]).code, Some(0));
}

#[test]
fn a_daemon_that_speaks_otherwise_is_told_apart() {
    let daemon = Daemon::new(|_| Ok(vec![json!({"surprise": 1})]));
    let error = daemon.weft(&["status"]).fails(1);
    assert!(
        error.contains("are weft and weftd of one release?"),
        "{error}"
    );
}

#[test]
fn a_reader_that_leaves_is_no_failure() {
    let daemon = Daemon::new(|_| {
        let item = json!({"sequence": 1, "rtt_ms": 1.5, "hops": 2, "error": null});
        Ok(vec![item; 20_000])
    });
    let mut child = program()
        .args([
            "--dir",
            daemon.dir().to_str().unwrap(),
            "ping",
            "x",
            "-c",
            "20000",
        ])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let run = common::Run::from(child.wait_with_output().unwrap());
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
}

#[test]
fn strangers_are_told_that_they_lack_permission() {
    use std::os::unix::fs::PermissionsExt as _;
    let daemon = Daemon::new(mesh);
    for path in [daemon.dir().to_owned(), daemon.dir().join("weft.sock")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700)).unwrap();
    }
    // A copy, because the build's folder may not be for others.
    let copy = tempfile::tempdir().unwrap();
    std::fs::set_permissions(copy.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let weft = common::copy_of_program(copy.path());
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(&weft)
        .args(["--dir", daemon.dir().to_str().unwrap(), "status"])
        .output();
    let Ok(output) = output else {
        return common::skip("setpriv is not installed");
    };
    let run = common::Run::from(output);
    if run.err.contains("setpriv") {
        return common::skip(format_args!("this user cannot become another: {}", run.err));
    }
    assert!(run.fails(1).contains("no permission to talk to weftd"));
}
