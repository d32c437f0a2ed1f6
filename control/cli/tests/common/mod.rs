//! The real `weft` program, and a daemon's socket that answers from a script.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Arc, Mutex},
    thread,
};

use serde_json::{Value, json};
use weft_client::api::{Call, Request};

/// What the scripted daemon says to a call: its items, of which the last ends it (none: silence), or a refusal.
pub type Answer = Result<Vec<Value>, &'static str>;

/// A folder with a socket in it behind which `answer` speaks; gone with the value.
pub struct Daemon {
    pub folder: tempfile::TempDir,
    calls: Arc<Mutex<Vec<Call>>>,
}

impl Daemon {
    pub fn new(answer: impl Fn(&Call) -> Answer + Send + Sync + 'static) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("weft.sock")).unwrap();
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (answer, log) = (Arc::new(answer), calls.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (answer, log) = (answer.clone(), log.clone());
                thread::spawn(move || serve(&stream, &*answer, &log));
            }
        });
        Self { folder, calls }
    }

    pub fn dir(&self) -> &Path {
        self.folder.path()
    }

    /// What was asked so far.
    pub fn calls(&self) -> Vec<Call> {
        self.calls.lock().unwrap().clone()
    }

    /// `weft --dir DIR ARGUMENTS`.
    pub fn weft(&self, arguments: &[&str]) -> Run {
        weft(&[&["--dir", self.dir().to_str().unwrap()], arguments].concat())
    }

    /// The same with lines on standard input.
    pub fn weft_reading(&self, arguments: &[&str], input: &str) -> Run {
        weft_reading(
            &[&["--dir", self.dir().to_str().unwrap()], arguments].concat(),
            input,
        )
    }
}

fn serve(
    stream: &UnixStream,
    answer: &(impl Fn(&Call) -> Answer + ?Sized),
    log: &Mutex<Vec<Call>>,
) {
    let mut writer = stream;
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let request: Request = serde_json::from_str(&line).expect("weft sends valid requests");
        log.lock().unwrap().push(request.call.clone());
        let lines: Vec<Value> = match answer(&request.call) {
            Ok(items) => {
                let end = items.len().saturating_sub(1);
                items
                    .into_iter()
                    .enumerate()
                    .map(|(i, item)| json!({"id": request.id, "last": i == end, "ok": item}))
                    .collect()
            }
            Err(reason) => vec![json!({"id": request.id, "last": true, "error": reason})],
        };
        for line in lines {
            if writeln!(writer, "{line}").is_err() {
                return;
            }
        }
    }
}

/// What a run of the program gave.
#[derive(Debug)]
pub struct Run {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Run {
    /// The output of a run that succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!((self.code, self.err.as_str()), (Some(0), ""), "{self:#?}");
        self.out
    }

    /// What a run complained of that ended with this code.
    #[track_caller]
    pub fn fails(self, code: i32) -> String {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self.err
    }

    pub fn json(self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:#?}"))
    }
}

impl From<Output> for Run {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// The program, away from this machine's settings.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    for name in ["WEFT_DIR", "WEFT_SOCKET", "WEFT_DAEMON", "NO_COLOR"] {
        command.env_remove(name);
    }
    command
}

pub fn weft(arguments: &[&str]) -> Run {
    program()
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
        .into()
}

pub fn weft_reading(arguments: &[&str], input: &str) -> Run {
    let mut child = program()
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = thread::spawn(move || _ = stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output.into()
}

/// An executable file with this content. Written by another process: as long as this one had it open for writing,
/// a child that is being started on another thread could hold it open too, and running it would fail as busy.
pub fn executable(path: &Path, content: Stdio, stdin: Option<&[u8]>) {
    let mut child = Command::new("sh")
        .args(["-c", "cat > \"$0\" && chmod 755 \"$0\""])
        .arg(path)
        .stdin(content)
        .spawn()
        .unwrap();
    if let Some(bytes) = stdin {
        child.stdin.take().unwrap().write_all(bytes).unwrap();
    }
    assert!(child.wait().unwrap().success());
}

/// A path of an executable script with this body.
pub fn script(folder: &Path, name: &str, body: &str) -> PathBuf {
    let path = folder.join(name);
    executable(
        &path,
        Stdio::piped(),
        Some(format!("#!/bin/sh\n{body}\n").as_bytes()),
    );
    path
}

/// A copy of the program in another folder.
pub fn copy_of_program(folder: &Path) -> PathBuf {
    let path = folder.join("weft");
    executable(
        &path,
        std::fs::File::open(env!("CARGO_BIN_EXE_weft"))
            .unwrap()
            .into(),
        None,
    );
    path
}

/// A small mesh: gw-a – gw-b – gw-c, seen from gw-a.
pub fn mesh(call: &Call) -> Answer {
    Ok(vec![match call {
        Call::Status => status("gw-a"),
        Call::Host => json!([
            {"kind": "tun", "what": "weft0", "undo": "closing it"},
            {"kind": "route", "what": "fd0a:1b2c:3d4e::/48 dev weft0", "undo": "deleting it"},
        ]),
        Call::Peers => json!([
            {"address": "192.0.2.2:7117", "node_id": B, "name": "gw-b", "source": "configured", "state": "established", "detail": "3720 s", "rtt_ms": 1.239},
            {"address": "[2001:db8::9]:7117", "node_id": null, "name": null, "source": "added", "state": "connecting", "detail": "no answer to 4 handshakes", "rtt_ms": null},
        ]),
        Call::Links => json!([
            {"direction": "out", "node_id": B, "name": "gw-b", "local": "192.0.2.1:7117", "remote": "192.0.2.2:7117", "state": "up", "cost": 12, "loss": 0.0, "rtt_ms": 1.2, "jitter_ms": 0.05, "capacity_mbps": 940.0, "mtu": 1500, "epoch": 3, "slot": 9, "mode": "kernel_native"},
            {"direction": "in", "node_id": B, "name": "", "local": "192.0.2.1:7117", "remote": "192.0.2.2:7117", "state": "one_way", "cost": 300, "loss": 0.034, "rtt_ms": null, "jitter_ms": null, "capacity_mbps": null, "mtu": 1400, "epoch": 0, "slot": 11, "mode": "user_space"},
        ]),
        Call::Nodes => json!([
            {"node_id": A, "name": "gw-a", "overlay_address": "fd0a:1b2c:3d4e::a", "sequence": 7, "age_s": 5, "reachable": true, "cost": 0, "sends_to": ["gw-b"], "prefixes": []},
            {"node_id": C, "name": "gw\u{1b}[2J-c", "overlay_address": "fd0a:1b2c:3d4e::c", "sequence": 12, "age_s": 65, "reachable": false, "cost": null, "sends_to": [], "prefixes": ["10.1.0.0/16"]},
        ]),
        Call::Lsps => json!([
            {"role": "ingress", "protection": "primary", "state": "up", "in_label": null, "out_label": 1034, "from": null, "to": "gw-b", "path": ["gw-a", "gw-b", "gw-c"], "inner_mtu": 1404, "age_s": 61, "packets": 1234567, "bytes": 1048576, "rest": 1},
            {"role": "transit", "protection": "", "state": "broken", "in_label": 17, "out_label": 2000, "from": "gw-c", "to": "gw-b", "path": [], "inner_mtu": null, "age_s": 0, "packets": 0, "bytes": 0},
        ]),
        Call::Routes => json!([
            {"prefix": "fd0a:1b2c:3d4e::c/128", "node_id": C, "name": "gw-c", "path": ["gw-a", "gw-b", "gw-c"], "cost": 24, "mtu": 1404, "installed": true},
            {"prefix": "10.1.0.0/16", "node_id": C, "name": "", "path": [], "cost": null, "mtu": null, "installed": false},
        ]),
        Call::Sessions => json!([
            {"node_id": C, "name": "gw-c", "overlay_address": "fd0a:1b2c:3d4e::c", "state": "up", "cipher": "AES-256-GCM", "epoch": 2, "key_age_s": 61, "tx_packets": 1000, "tx_bytes": 1500000, "rx_packets": 2, "rx_bytes": 99, "inner_mtu": 1404},
        ]),
        Call::Counters => json!({
            "xdp": {"swap": 1234567, "pop": 0}, "xdp_drops": {"bad_tag": 3},
            "user": {"swap": 0}, "user_drops": {}, "sessions": {"sealed": 10}, "control": {},
        }),
        Call::Ping { .. } => {
            return Ok(vec![
                json!({"sequence": 1, "rtt_ms": 1.5, "hops": 2, "error": null}),
                json!({"sequence": 2, "rtt_ms": null, "hops": 2, "error": null}),
                json!({"sequence": 3, "rtt_ms": 0.5, "hops": 2, "error": null}),
            ]);
        }
        Call::Trace { .. } => {
            return Ok(vec![
                json!({"hop": 1, "node_id": B, "name": "gw-b", "label": 1034, "rtt_ms": 0.61, "mode": "kernel_native"}),
                json!({"hop": 2, "node_id": C, "name": "", "label": 17, "rtt_ms": 12.34, "mode": "user_space"}),
            ]);
        }
        Call::Why { .. } => json!({
            "node_id": C, "name": "gw-c", "cost": 24, "standby": ["gw-a", "gw-d", "gw-c"], "in_use": null, "no_path": null,
            "path": [
                {"from": "gw-a", "to": "gw-b", "cost": 12, "because": "rtt 1.2 ms, loss 0%"},
                {"from": "gw-b", "to": "gw-c", "cost": 12, "because": "rtt 1.1 ms, loss 0%"},
            ],
            "refused": [{"what": "gw-a→gw-c", "reason": "not_heard", "detail": "gw-c does not say that it hears gw-a"}],
        }),
        Call::AddPeer { .. } | Call::RemovePeer { .. } | Call::Shutdown { .. } => Value::Null,
    }])
}

pub const A: &str = "8f2a91c3000000000000000000000000000000000000000000000000000000aa";
pub const B: &str = "17c0de00000000000000000000000000000000000000000000000000000000bb";
pub const C: &str = "99aa0000000000000000000000000000000000000000000000000000000000cc";

/// What a healthy daemon of this name says of itself.
pub fn status(name: &str) -> Value {
    json!({
        "api_version": 1, "version": "0.1.0", "pid": 812, "node_id": A, "name": name, "network_id": "0a1b2c3d4e",
        "overlay_address": "fd0a:1b2c:3d4e::a", "tun": "weft0", "port": 7117, "uptime_s": 11520, "resumed": false,
        "interfaces": [
            {"name": "eth0", "up": true, "mtu": 1500, "addresses": ["192.0.2.1", "2001:db8::1"], "mode": "kernel_native", "reason": ""},
            {"name": "wlan0", "up": false, "mtu": 1400, "addresses": [], "mode": "user_space", "reason": "the driver has no XDP"},
        ],
        "neighbours": 1, "nodes": 3, "sessions": 1, "lsps": 4,
        "offloads": [
            {"name": "tun_tso4", "on": true, "reason": ""}, {"name": "udp_gro", "on": true, "reason": ""},
            {"name": "tun_uso", "on": false, "reason": "the kernel refuses TUNSETOFFLOAD 0x60: Invalid argument"},
        ],
        "notices": ["net.ipv4.ip_forward is off: advertised prefixes are not reached"],
    })
}

/// Tells the test command that this test could not run, and why.
pub fn skip(reason: impl std::fmt::Display) {
    let reason = reason.to_string().replace('\n', " ");
    println!(
        "SKIPPED {}: {reason}",
        thread::current().name().unwrap_or("a test")
    );
}
