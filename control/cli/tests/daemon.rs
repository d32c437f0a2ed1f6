//! `weft up`, `down` and `restart` with a stand-in for the `weftd` program: what is started, what is waited for, what
//! is told when it goes wrong. (With the real one they are tried in namespaces.)

mod common;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use common::{Daemon, Run, copy_of_program, mesh, program, script, status, weft};
use serde_json::{Value, json};
use weft_client::api::Call;

struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new(init: &[&str]) -> Self {
        let node = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        node.weft(&[&["init", "--name", "gw-a"], init].concat())
            .ok();
        node
    }

    fn dir(&self) -> &Path {
        self.folder.path()
    }

    fn weft(&self, arguments: &[&str]) -> Run {
        weft(&[&["--dir", self.dir().to_str().unwrap()], arguments].concat())
    }

    /// A stand-in for weftd.
    fn weftd(&self, body: &str) -> String {
        script(self.dir(), "stand-in", body).display().to_string()
    }
}

/// Waits until it holds.
#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{what} never came true");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn without_a_configuration_nothing_is_started() {
    let folder = tempfile::tempdir().unwrap();
    let weftd = script(folder.path(), "stand-in", "touch started")
        .display()
        .to_string();
    let error = weft(&[
        "--dir",
        folder.path().to_str().unwrap(),
        "up",
        "--daemon",
        &weftd,
    ])
    .fails(1);
    assert!(
        error.contains("weft.toml: the file does not exist. Write one with `weft init`."),
        "{error}"
    );
    assert!(!folder.path().join("weftd.log").exists());
}

#[test]
fn a_wrong_configuration_names_the_line() {
    let node = Node::new(&[]);
    let path = node.dir().join("weft.toml");
    let text = fs::read_to_string(&path)
        .unwrap()
        .replace("port = 7117", "port = 70000");
    fs::write(&path, text).unwrap();
    let error = node.weft(&["up"]).fails(1);
    assert!(
        error.contains("weft.toml:") && error.contains("70000"),
        "{error}"
    );
}

#[test]
fn a_missing_weftd_is_named() {
    let node = Node::new(&[]);
    let error = node
        .weft(&["up", "--daemon", "/nonexistent/weftd"])
        .fails(2);
    assert!(
        error.contains("/nonexistent/weftd: there is no such file"),
        "{error}"
    );
    // A copy, so that no weftd stands beside it.
    let copy = copy_of_program(node.dir());
    let output = Command::new(&copy)
        .args(["--dir", node.dir().to_str().unwrap(), "up"])
        .env("PATH", "/nonexistent")
        .env_remove("WEFT_DAEMON")
        .output();
    let error = Run::from(output.unwrap()).fails(1);
    assert!(
        error.contains("weftd is not installed") && error.contains("--daemon PATH"),
        "{error}"
    );
}

#[test]
fn a_weftd_that_ends_is_reported_with_its_complaints() {
    let node = Node::new(&[]);
    fs::write(node.dir().join("weftd.log"), "ERROR of yesterday\n").unwrap();
    let weftd = node.weftd("echo INFO hello; printf '\\033[31mERROR\\033[0m port 7117 is in use by nginx\\n' >&2; exit 4");
    let error = node.weft(&["up", "--daemon", &weftd]).fails(1);
    assert_eq!(
        error,
        "weft: weftd did not start: it ended with exit code 4.\n  INFO hello\n  ERROR port 7117 is in use by nginx\n"
    );

    let weftd = node.weftd("echo just this");
    assert!(
        node.weft(&["up", "--daemon", &weftd])
            .fails(1)
            .contains("exit code 0.\n  just this\n")
    );
    let weftd = node.weftd("kill -9 $$");
    assert!(
        node.weft(&["up", "--daemon", &weftd])
            .fails(1)
            .contains("was ended by signal 9")
    );
}

#[test]
fn a_weftd_that_never_answers_is_reported_and_left_alone() {
    let node = Node::new(&[]);
    let weftd = node.weftd("echo $$ > \"$2/pid\"; exec sleep 60");
    let error = node
        .weft(&["up", "--daemon", &weftd, "--wait", "0.5"])
        .fails(1);
    let pid = fs::read_to_string(node.dir().join("pid"))
        .unwrap()
        .trim()
        .to_owned();
    assert!(
        error.contains(&format!("weftd (pid {pid}) runs but has not answered")),
        "{error}"
    );
    assert!(error.contains("weftd.log"), "{error}");
    // In a session of its own: field 6 of stat is the session's id.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    assert_eq!(
        stat.rsplit_once(") ").unwrap().1.split(' ').nth(3),
        Some(pid.as_str())
    );
    Command::new("kill").arg(&pid).status().unwrap();
}

/// A node whose stand-in for weftd "listens" by linking the socket of a scripted daemon into its place.
fn startable(
    answer: impl Fn(&Call, &Path) -> Option<Value> + Send + Sync + 'static,
    init: &[&str],
) -> (Node, Daemon, String) {
    let node = Node::new(init);
    let dir = node.dir().to_owned();
    let daemon = Daemon::new(move |call| match answer(call, &dir) {
        Some(value) => Ok(vec![value]),
        None => mesh(call),
    });
    let socket = daemon.dir().join("weft.sock").display().to_string();
    let weftd = node.weftd(&format!(
        "echo \"$@\" >> \"$2/arguments\"; echo $$ > \"$2/pid\"; ln -s {socket} \"$2/weft.sock\"; exec sleep 60"
    ));
    (node, daemon, weftd)
}

fn pid_file(dir: &Path) -> PathBuf {
    dir.join("pid")
}

/// Answers as a weftd that runs as the stand-in and ends when it is told to.
fn obedient(call: &Call, dir: &Path) -> Option<Value> {
    let pid = fs::read_to_string(pid_file(dir)).ok()?.trim().to_owned();
    match call {
        Call::Status => {
            let mut status = status("gw-a");
            status["pid"] = pid.parse::<u32>().unwrap().into();
            Some(status)
        }
        Call::Shutdown { .. } => {
            fs::remove_file(dir.join("weft.sock")).unwrap();
            Command::new("kill").arg(&pid).status().unwrap();
            Some(Value::Null)
        }
        _ => None,
    }
}

#[test]
fn up_and_down_tell_what_happened() {
    let (node, daemon, weftd) = startable(obedient, &["--peer", "192.0.2.2"]);
    let out = node.weft(&["up", "--daemon", &weftd]).ok();
    let pid = fs::read_to_string(pid_file(node.dir()))
        .unwrap()
        .trim()
        .to_owned();
    let log = node.dir().join("weftd.log");
    assert!(
        out.starts_with(&format!(
            "weftd has started (pid {pid}); its log is {}\n",
            log.display()
        )),
        "{out}"
    );
    assert!(
        out.contains("\ngw-a  up ") && out.contains("established"),
        "{out}"
    );
    assert_eq!(
        fs::read_to_string(node.dir().join("arguments"))
            .unwrap()
            .trim(),
        format!("--dir {}", node.dir().display())
    );

    // A second one finds the first.
    let out = node.weft(&["up", "--daemon", &weftd]).ok();
    assert!(
        out.starts_with(&format!("weftd is running already (pid {pid}).\n\ngw-a")),
        "{out}"
    );

    let out = node.weft(&["down"]).ok();
    assert!(
        out.starts_with(&format!("weftd (pid {pid}) has stopped and undone")),
        "{out}"
    );
    assert!(
        out.contains("route  fd0a:1b2c:3d4e::/48 dev weft0"),
        "{out}"
    );
    assert!(matches!(
        daemon.calls().last(),
        Some(Call::Shutdown {
            keep_transit: false
        })
    ));
    until("the end of the stand-in", || {
        !Path::new(&format!("/proc/{pid}")).exists()
    });
}

#[test]
fn up_says_when_no_neighbour_answers() {
    let lonely = |call: &Call, dir: &Path| match call {
        Call::Status => obedient(call, dir).map(|mut status| {
            status["neighbours"] = 0.into();
            status
        }),
        Call::Peers => Some(
            json!([{"address": "192.0.2.2:7117", "node_id": null, "name": null, "source": "configured",
            "state": "connecting", "detail": "no answer", "rtt_ms": null}]),
        ),
        _ => obedient(call, dir),
    };
    let (node, _daemon, weftd) = startable(lonely, &["--peer", "192.0.2.2"]);
    let out = node.weft(&["up", "--daemon", &weftd]).ok();
    assert!(
        out.contains("No neighbour has answered yet") && out.contains("firewall"),
        "{out}"
    );
    node.weft(&["down"]).ok();
}

#[test]
fn restart_keeps_transit_and_starts_again() {
    let (node, daemon, weftd) = startable(obedient, &[]);
    node.weft(&["up", "--daemon", &weftd]).ok();
    let before = fs::read_to_string(pid_file(node.dir())).unwrap();
    let out = node.weft(&["restart", "--daemon", &weftd]).ok();
    assert!(
        out.contains("the kernel goes on switching transit") && out.contains("weftd has started"),
        "{out}"
    );
    assert_ne!(fs::read_to_string(pid_file(node.dir())).unwrap(), before);
    assert!(
        daemon
            .calls()
            .iter()
            .any(|call| matches!(call, Call::Shutdown { keep_transit: true }))
    );

    // A configuration that would be refused must not take it down.
    let path = node.dir().join("weft.toml");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(&path, "name = 5").unwrap();
    let error = node.weft(&["restart", "--daemon", &weftd]).fails(1);
    assert!(
        error.contains("goes on running as it is") && error.contains("weft.toml:1"),
        "{error}"
    );
    node.weft(&["status"]).ok();
    fs::write(&path, good).unwrap();
    let value = node.weft(&["down", "--json"]).json();
    assert_eq!(value["host"][0]["kind"], "tun");
}

#[test]
fn down_without_a_daemon_undoes_what_one_left() {
    let node = Node::new(&[]);
    let weftd = node.weftd("echo \"$@\"; echo 'removed route fd00::/48'");
    let out = node.weft(&["down", "--daemon", &weftd]).ok();
    assert_eq!(
        out,
        format!(
            "weftd was not running.\n--dir {} --undo\nremoved route fd00::/48\n",
            node.dir().display()
        )
    );
    let weftd = node.weftd("echo 'ERROR the host record is corrupt' >&2; exit 1");
    let error = node.weft(&["down", "--daemon", &weftd]).fails(1);
    assert!(
        error.contains("could not take back what it left")
            && error.contains("host record is corrupt"),
        "{error}"
    );
    node.weft(&["down", "--keep-transit"]).fails(3);
}

#[test]
fn a_log_that_cannot_be_written_is_named() {
    let node = Node::new(&[]);
    fs::create_dir(node.dir().join("weftd.log")).unwrap();
    let weftd = node.weftd("exit 0");
    let error = node.weft(&["up", "--daemon", &weftd]).fails(1);
    assert!(error.contains("weftd.log cannot be written"), "{error}");
}

#[test]
fn the_environment_names_folder_and_daemon() {
    let node = Node::new(&[]);
    let weftd = node.weftd("echo ERROR from the environment; exit 1");
    let output = program()
        .arg("up")
        .env("WEFT_DIR", node.dir())
        .env("WEFT_DAEMON", weftd)
        .output()
        .unwrap();
    assert!(
        Run::from(output)
            .fails(1)
            .contains("ERROR from the environment")
    );
}
