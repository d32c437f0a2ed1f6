//! One real `weftd` at a time, in a network namespace of its own: what it says when something is wrong, what it leaves
//! behind and what it undoes. Meshes of several are tested by `cargo xtask test`.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::UdpSocket,
    os::unix::{fs::PermissionsExt as _, net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use weft_client::{
    config::{Layout, Params, default_config},
    secrets::{IdentitySeed, NetworkText},
};
use weft_core::identity::NetworkSecret;

const PATIENCE: Duration = Duration::from_secs(20);

fn obstacle() -> Option<&'static str> {
    // SAFETY: takes and gives nothing but a number.
    if unsafe { libc::geteuid() } != 0 {
        return Some("needs root for network namespaces");
    }
    (!Path::new("/dev/net/tun").exists()).then_some("/dev/net/tun does not exist")
}

macro_rules! needs_root {
    () => {
        if let Some(reason) = obstacle() {
            println!(
                "SKIPPED {}: {reason}",
                thread::current().name().unwrap_or("a test")
            );
            return;
        }
        // SAFETY: changes the namespace of this thread and of the processes it starts alone.
        assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0);
    };
}

/// A node's folder, and what its daemon left on the host; both removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("weft-daemon-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        let layout = Layout::in_dir(&path);
        fs::create_dir_all(&layout.state).unwrap();
        let params = Params {
            name: format!("test-{name}"),
            ..Params::default()
        };
        fs::write(&layout.config, default_config(&params)).unwrap();
        let mut seed = [7; 32];
        seed[..4].copy_from_slice(&std::process::id().to_be_bytes());
        seed[4..4 + name.len()].copy_from_slice(name.as_bytes());
        IdentitySeed(seed).store(&layout.identity()).unwrap();
        let secret = NetworkSecret::from_bytes([9; 32]).to_text();
        NetworkText::new(&secret)
            .unwrap()
            .store(&layout.network())
            .unwrap();
        Self(path)
    }

    fn layout(&self) -> Layout {
        Layout::in_dir(&self.0)
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weftd"));
        command
            .arg("--dir")
            .arg(&self.0)
            .args(args)
            .stdin(Stdio::null());
        command
    }

    /// Runs to the end; success, and what it said.
    fn say(&self, args: &[&str]) -> (bool, String) {
        let output = self.command(args).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (
            output.status.success(),
            String::from_utf8_lossy(&text).into_owned(),
        )
    }

    /// Starts and waits until the API answers.
    fn start(&self) -> Running {
        let log = fs::File::create(self.0.join("log")).unwrap();
        let child = self
            .command(&[])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut running = Running(child);
        let deadline = Instant::now() + PATIENCE;
        while UnixStream::connect(self.layout().socket).is_err() {
            let ended = running.0.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "{ended:?}: {}",
                self.log()
            );
            thread::sleep(Duration::from_millis(10));
        }
        // The socket stands early; an answer means that the start is over.
        self.status();
        running
    }

    fn log(&self) -> String {
        fs::read_to_string(self.0.join("log")).unwrap_or_default()
    }

    fn status(&self) -> serde_json::Value {
        let mut stream = UnixStream::connect(self.layout().socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
            .write_all(b"{\"id\":1,\"call\":\"status\"}\n")
            .unwrap();
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).unwrap();
        let answer: serde_json::Value = serde_json::from_str(&line).unwrap();
        answer["ok"].clone()
    }

    fn pins(&self) -> PathBuf {
        weft_node::daemon::pins(&self.layout()).unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = self.command(&["--undo"]).output();
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct Running(Child);

impl Running {
    fn end(mut self, signal: libc::c_int) -> bool {
        // SAFETY: our own child, not yet waited for.
        assert_eq!(unsafe { libc::kill(self.0.id() as libc::pid_t, signal) }, 0);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.success();
            }
            assert!(Instant::now() < deadline, "weftd does not end");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn interfaces() -> String {
    let mut text = String::new();
    // The thread's own view: the process may be in another namespace.
    let path = "/proc/thread-self/net/dev";
    fs::File::open(path)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    text
}

#[test]
fn a_stopped_daemon_leaves_nothing() {
    needs_root!();
    let folder = Folder::new("stop");
    let running = folder.start();
    assert!(interfaces().contains("weft0"), "{}", folder.log());
    assert_eq!(folder.status()["tun"], "weft0");
    assert!(running.end(libc::SIGTERM), "{}", folder.log());
    assert!(!interfaces().contains("weft0"));
    assert!(!folder.pins().exists());
    let mut left: Vec<_> = fs::read_dir(folder.layout().state)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["identity.key", "lock", "network.key"]);
    assert!(!folder.layout().socket.exists());
}

#[test]
fn after_a_kill_everything_can_be_undone() {
    needs_root!();
    let folder = Folder::new("kill");
    let running = folder.start();
    assert!(!running.end(libc::SIGKILL));
    assert!(folder.layout().state.join("host.json").exists());
    let (fine, said) = folder.say(&["--undo"]);
    assert!(fine && said.contains("removed the socket"), "{said}");
    assert!(!folder.pins().exists() && !folder.layout().socket.exists());
    let (fine, said) = folder.say(&["--undo"]);
    assert!(fine && said.contains("nothing to undo"), "{said}");
}

#[test]
fn a_second_daemon_is_refused() {
    needs_root!();
    let folder = Folder::new("second");
    let running = folder.start();
    let (fine, said) = folder.say(&[]);
    assert!(
        !fine && said.contains("another weftd") && said.contains(&running.0.id().to_string()),
        "{said}"
    );
    assert!(running.end(libc::SIGTERM));
}

#[test]
fn a_port_in_use_is_named_and_nothing_is_changed() {
    needs_root!();
    let folder = Folder::new("port");
    let _taken = UdpSocket::bind("0.0.0.0:7117").unwrap();
    let (fine, said) = folder.say(&[]);
    assert!(!fine && said.contains("UDP port 7117 is in use"), "{said}");
    assert!(!folder.pins().exists() && !folder.layout().socket.exists());
}

#[test]
fn damaged_state_is_kept_aside_and_the_daemon_runs() {
    needs_root!();
    let folder = Folder::new("damaged");
    let state = folder.layout().state;
    fs::write(state.join("snapshot"), b"weftsnap and then nonsense").unwrap();
    fs::write(state.join("host.json"), b"{").unwrap();
    let running = folder.start();
    let notices = folder.status()["notices"].to_string();
    assert!(
        notices.contains("snapshot was damaged") && notices.contains("record of host changes"),
        "{notices}"
    );
    let kept = fs::read_dir(&state)
        .unwrap()
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .file_name()
                .to_string_lossy()
                .contains(".corrupt-")
        })
        .count();
    assert_eq!(kept, 2);
    assert!(running.end(libc::SIGTERM));
}

#[test]
fn a_name_taken_leaves_a_transit() {
    needs_root!();
    let folder = Folder::new("tun");
    let text = fs::read_to_string(folder.layout().config).unwrap();
    fs::write(folder.layout().config, text.replace("\"weft0\"", "\"lo\"")).unwrap();
    let running = folder.start();
    let status = folder.status();
    assert!(status["tun"].is_null(), "{status}");
    assert!(
        status["notices"].to_string().contains("transit only"),
        "{status}"
    );
    assert!(running.end(libc::SIGTERM));
}

#[test]
fn keys_others_can_read_are_refused() {
    let folder = Folder::new("mode");
    fs::set_permissions(
        folder.layout().identity(),
        fs::Permissions::from_mode(0o644),
    )
    .unwrap();
    let (fine, said) = folder.say(&["--check"]);
    assert!(
        !fine && said.contains("identity.key") && said.contains("chmod 600"),
        "{said}"
    );
    fs::set_permissions(
        folder.layout().identity(),
        fs::Permissions::from_mode(0o600),
    )
    .unwrap();
    let (fine, said) = folder.say(&["--check"]);
    assert!(fine && said.contains("are fine"), "{said}");
}

#[test]
fn a_mistake_in_the_configuration_is_named() {
    let folder = Folder::new("config");
    let mut text = fs::read_to_string(folder.layout().config).unwrap();
    text.push_str("\n[tuning]\nspeed = 11\n");
    fs::write(folder.layout().config, text).unwrap();
    let (fine, said) = folder.say(&["--check"]);
    assert!(
        !fine && said.contains("weft.toml:") && said.contains("tuning"),
        "{said}"
    );
}
