//! `weft init` in real folders: what it writes, for whom, and what it refuses.

mod common;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use common::{Daemon, Run, mesh, weft, weft_reading};
use weft_client::{
    config::Config,
    secrets::{IdentitySeed, NetworkText},
};
use weft_core::identity::{Identity, NetworkSecret};

struct Node {
    folder: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
        }
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("node")
    }

    fn weft(&self, arguments: &[&str]) -> Run {
        weft(&[&["--dir", self.dir().to_str().unwrap()], arguments].concat())
    }

    fn config(&self) -> Config {
        Config::load(&self.dir().join("weft.toml")).unwrap()
    }

    fn secret(&self) -> NetworkSecret {
        let text = NetworkText::load(&self.dir().join("state/network.key")).unwrap();
        text.as_str().parse().unwrap()
    }

    fn identity(&self) -> Identity {
        Identity::from_secret(
            &IdentitySeed::load(&self.dir().join("state/identity.key"))
                .unwrap()
                .0,
        )
    }

    fn is_empty(&self) -> bool {
        !self.dir().exists()
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn a_new_network_is_written_for_its_owner_alone() {
    let node = Node::new();
    let out = node.weft(&["init", "--name", "gw-a"]).ok();
    assert_eq!(mode(&node.dir().join("state")), 0o700);
    assert_eq!(mode(&node.dir().join("state/identity.key")), 0o600);
    assert_eq!(mode(&node.dir().join("state/network.key")), 0o600);
    assert_eq!(node.config().name, "gw-a");
    let join = node.secret().to_text();
    assert!(
        out.contains(&format!("weft init --join {} --peer ", *join)),
        "{out}"
    );
    assert!(out.contains(&node.identity().id().to_string()), "{out}");
    assert!(
        !out.contains(
            fs::read_to_string(node.dir().join("state/identity.key")).unwrap()[16..].trim()
        )
    );
    assert_eq!(node.weft(&["secret", "show"]).ok(), format!("{}\n", *join));
}

#[test]
fn two_networks_and_two_nodes_differ() {
    let (a, b) = (Node::new(), Node::new());
    a.weft(&["init"]).ok();
    b.weft(&["init"]).ok();
    assert_ne!(a.secret().network_id(), b.secret().network_id());
    assert_ne!(a.identity().id(), b.identity().id());
}

#[test]
fn joining_takes_the_secret_and_the_options() {
    let (first, second) = (Node::new(), Node::new());
    first.weft(&["init"]).ok();
    let join = first.secret().to_text().to_lowercase();
    let arguments = [
        "init",
        "--join",
        &join,
        "--peer",
        "192.0.2.1",
        "--peer",
        "[2001:db8::1]:99",
        "--name",
        "gw-b",
        "--port",
        "5000",
        "--advertise",
        "10.1.0.0/16",
        "--advertise",
        "2001:db8:1::/48",
        "--accept",
        "10.2.0.0/16",
        "--interface",
        "eth0",
        "--tun",
        "mesh0",
        "--xdp",
        "generic",
    ];
    let out = second.weft(&arguments).ok();
    assert!(!out.contains("--join"), "{out}");
    let config = second.config();
    assert_eq!(config.name, "gw-b");
    assert_eq!(config.listen.port, 5000);
    assert_eq!(config.listen.interfaces, ["eth0"]);
    assert_eq!(
        config
            .peers
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["192.0.2.1:7117", "[2001:db8::1]:99"]
    );
    assert_eq!(
        config
            .routes
            .advertise
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>(),
        ["10.1.0.0/16", "2001:db8:1::/48"]
    );
    let routes = config.routes;
    assert_eq!(routes.accept_only, ["10.2.0.0/16".parse().unwrap()]);
    assert!(!routes.accept);
    assert_eq!(config.tun.name, "mesh0");
    assert_eq!(second.secret().as_bytes(), first.secret().as_bytes());
    assert_ne!(second.identity().id(), first.identity().id());
}

#[test]
fn prefixes_of_others_are_accepted_only_where_somebody_says_so() {
    let node = Node::new();
    node.weft(&["init"]).ok();
    let routes = node.config().routes;
    assert!(!routes.accept && routes.accept_only.is_empty());
    let trusting = Node::new();
    trusting.weft(&["init", "--accept-all"]).ok();
    assert!(trusting.config().routes.accept);
    let confused = Node::new();
    let run = confused.weft(&["init", "--accept-all", "--accept", "10.2.0.0/16"]);
    assert!(run.code != Some(0) && confused.is_empty());
}

#[test]
fn the_secret_may_come_from_standard_input() {
    let (first, second) = (Node::new(), Node::new());
    first.weft(&["init"]).ok();
    let show = first.weft(&["secret", "show"]).ok();
    let dir = second.dir();
    let value = weft_reading(
        &[
            "--dir",
            dir.to_str().unwrap(),
            "init",
            "--join",
            "-",
            "--no-tun",
            "--json",
        ],
        &show,
    )
    .json();
    assert_eq!(value["network_id"], first.secret().network_id().to_string());
    assert_eq!(value["node_id"], second.identity().id().to_string());
    assert_eq!(
        value["overlay_address"],
        second
            .identity()
            .id()
            .overlay_address(&first.secret().network_id())
            .to_string()
    );
    assert_eq!(value["new_network"], false);
    assert!(!second.config().tun.enable);
}

#[test]
fn nothing_is_ever_overwritten() {
    for present in ["weft.toml", "state/identity.key", "state/network.key"] {
        let node = Node::new();
        fs::create_dir_all(node.dir().join("state")).unwrap();
        let path = node.dir().join(present);
        fs::write(&path, "precious").unwrap();
        let error = node.weft(&["init"]).fails(1);
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains("never overwritten"),
            "{error}"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        let files = fs::read_dir(node.dir()).unwrap().count()
            + fs::read_dir(node.dir().join("state")).unwrap().count();
        // state/ itself and the file.
        assert_eq!(files, 2, "{present}");
    }
    let node = Node::new();
    node.weft(&["init"]).ok();
    let before = node.secret().to_text();
    let error = node.weft(&["init"]).fails(1);
    assert!(
        error.contains("This node is set up: start it with"),
        "{error}"
    );
    assert_eq!(*node.secret().to_text(), *before);
}

#[test]
fn a_dangling_link_is_not_followed() {
    let node = Node::new();
    fs::create_dir_all(node.dir()).unwrap();
    std::os::unix::fs::symlink(
        node.folder.path().join("elsewhere"),
        node.dir().join("weft.toml"),
    )
    .unwrap();
    node.weft(&["init"]).fails(1);
    assert!(!node.folder.path().join("elsewhere").exists());
}

#[test]
fn wrong_arguments_write_nothing_and_say_what_is_right() {
    for (arguments, words) in [
        (&["--name", "a b"][..], "letters, digits"),
        (&["--name", ""], "letters, digits"),
        (&["--name", &"x".repeat(64)], "1 to 63"),
        (&["--name", "a\"\nname = \"b"], "letters, digits"),
        (&["--peer", "1.2.3"], "no IPv4 address"),
        (&["--peer", "gw:0"], "no port"),
        (
            &["--peer", "192.0.2.1", "--peer", "192.0.2.1:7117"],
            "Nothing was written",
        ),
        (
            &["--advertise", "10.1.0.1/16"],
            "its network is 10.1.0.0/16",
        ),
        (&["--advertise", "10.1.0.0"], "no prefix"),
        (&["--port", "0"], "0 is not in 1"),
        (&["--port", "65536"], "65536 is not in 1"),
        (&["--tun", "a/b"], "no interface name"),
        (&["--interface", "a name with spaces"], "no interface name"),
        (
            &["--xdp", "fast"],
            "[possible values: auto, native, generic, off]",
        ),
        (&["--join", "weft1-abcd"], "56 characters"),
        (&["--join", "secret"], "begins with `weft1-`"),
        (&["--join", ""], "begins with `weft1-`"),
        (&["--join", "x", "--new"], "cannot be used with"),
        (&["--no-tun", "--tun", "x"], "cannot be used with"),
    ] {
        let node = Node::new();
        let error = node.weft(&[&["init"], arguments].concat()).fails(2);
        assert!(error.contains(words), "{arguments:?}: {error}");
        assert!(node.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_mistyped_secret_is_noticed() {
    let (first, second) = (Node::new(), Node::new());
    first.weft(&["init"]).ok();
    let mut join = first.secret().to_text().to_string();
    let last = join.pop().unwrap();
    join.push(if last == '0' { '1' } else { '0' });
    let error = second.weft(&["init", "--join", &join]).fails(2);
    assert!(error.contains("checksum"), "{error}");
    assert!(second.is_empty());
}

#[test]
fn what_was_made_is_taken_back_when_the_rest_fails() {
    let node = Node::new();
    fs::create_dir_all(node.dir()).unwrap();
    fs::write(
        node.dir().join("state"),
        "a file where the folder should be",
    )
    .unwrap();
    let error = node.weft(&["init"]).fails(1);
    assert!(error.contains("is not a folder"), "{error}");
    assert!(!node.dir().join("weft.toml").exists());

    // A configuration that cannot be written after the keys were: they go again.
    let node = Node::new();
    let long = node
        .folder
        .path()
        .join("x".repeat(250))
        .join("y".repeat(300));
    weft(&["--dir", long.to_str().unwrap(), "init"]).fails(1);
    assert!(!node.folder.path().join("x".repeat(250)).exists());
}

#[test]
fn a_full_disk_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let mount = |arguments: &[&str]| {
        std::process::Command::new("unshare")
            .args(arguments)
            .output()
    };
    let weft = env!("CARGO_BIN_EXE_weft");
    let dir = folder.path().to_str().unwrap();
    // Room for folders and no file: the tmpfs has as many inodes as that takes.
    let line = format!(
        "mount -t tmpfs -o size=64k,nr_inodes=4 none {dir} && {weft} --dir {dir}/n init; code=$?; ls -A {dir} | wc -l; exit $code"
    );
    let Ok(output) = mount(&["--mount", "sh", "-c", &line]) else {
        return common::skip("unshare is not installed");
    };
    let run = Run::from(output);
    if run.err.contains("unshare") || run.err.contains("mount:") {
        return common::skip(format_args!("no mount namespaces here: {}", run.err));
    }
    assert_eq!(run.out, "0\n", "{run:#?}");
    assert!(run.fails(1).contains("No space left on device"));
}

#[test]
fn strangers_without_rights_are_told_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let output = std::process::Command::new("setpriv")
        .args(["--reuid", "65534", "--clear-groups"])
        .arg(common::copy_of_program(folder.path()))
        .args(["init", "--new"])
        .env_remove("WEFT_DIR")
        .output();
    let Ok(output) = output else {
        return common::skip("setpriv is not installed");
    };
    let run = Run::from(output);
    if run.err.contains("setpriv") {
        return common::skip(format_args!("this user cannot become another: {}", run.err));
    }
    if run.err.contains("never overwritten") {
        return common::skip("this host has a node in the system's folders");
    }
    let error = run.fails(1);
    assert!(
        error.contains("Permission denied")
            && error.contains("as root")
            && error.contains("--dir DIR"),
        "{error}"
    );
}

#[test]
fn an_invitation_names_this_gateways_addresses() {
    let daemon = Daemon::new(mesh);
    let error = daemon.weft(&["invite"]).fails(1);
    assert!(
        error.contains("network.key") && error.contains("weft init"),
        "{error}"
    );
    daemon.weft(&["init"]).ok();
    let join = daemon.weft(&["secret", "show"]).ok();
    let out = daemon.weft(&["invite"]).ok();
    assert!(
        out.contains(&format!(
            "\n  weft init --join {} --peer 192.0.2.1\n  weft up\n",
            join.trim()
        )),
        "{out}"
    );
    assert!(
        out.contains("Other addresses of this gateway: 2001:db8::1."),
        "{out}"
    );
    let value = daemon.weft(&["invite", "--json"]).json();
    assert_eq!(value["join"], join.trim());
    assert_eq!(
        value["peers"],
        serde_json::json!(["192.0.2.1", "2001:db8::1"])
    );
}

#[test]
fn an_invitation_without_a_daemon_leaves_the_address_open() {
    let node = Node::new();
    node.weft(&["init", "--port", "5000"]).ok();
    let out = node.weft(&["invite"]).ok();
    assert!(
        out.contains("--peer ADDRESS-OF-THIS-GATEWAY:5000\n"),
        "{out}"
    );
}

#[test]
fn a_secret_others_could_read_is_refused() {
    let node = Node::new();
    node.weft(&["init"]).ok();
    let path = node.dir().join("state/network.key");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = node.weft(&["secret", "show"]).fails(1);
    assert!(error.contains("chmod 600"), "{error}");
}
