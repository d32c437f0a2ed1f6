//! The command line with real daemons: what a person types from nothing to two gateways joined over a third, and back.

mod common;

use std::{
    process::{Command, Stdio},
    time::Duration,
};

use common::{SOON, topology};
use serde_json::Value;
use xtask::{
    lab::{Lab, node::Node, wait_for},
    needs_lab,
    paths::Programs,
};

/// Until a link stands, an LSA is everywhere, a path is chosen.
const JOINED: Duration = Duration::from_secs(30);

/// A host on which somebody types; what they started is stopped at the end.
struct Gateway<'a>(&'a Node);

struct Said {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Gateway<'_> {
    fn weft(&self, arguments: &[&str]) -> Said {
        let output = self
            .0
            .weft(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    fn does(&self, arguments: &[&str]) -> String {
        let said = self.weft(arguments);
        assert_eq!(
            said.code,
            Some(0),
            "{}: weft {arguments:?}\n{}{}",
            self.0.name(),
            said.out,
            said.err
        );
        said.out
    }

    #[track_caller]
    fn tells(&self, arguments: &[&str]) -> Value {
        let out = self.does(&[arguments, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{error}: {out}"))
    }

    /// One document per line.
    #[track_caller]
    fn tells_lines(&self, arguments: &[&str]) -> Vec<Value> {
        let out = self.does(&[arguments, &["--json"]].concat());
        out.lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Interfaces of the namespace.
    fn interfaces(&self) -> String {
        let mut command = self.0.exec("cat");
        let output = command.arg("/proc/net/dev").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn pid(&self) -> u64 {
        self.tells(&["status"])["pid"].as_u64().unwrap()
    }
}

impl Drop for Gateway<'_> {
    fn drop(&mut self) {
        if self.0.layout().config.exists() {
            self.weft(&["down"]);
        }
    }
}

fn bare() -> Lab {
    let text = "\
        [nodes.left]\ndaemon = false\n[nodes.middle]\ndaemon = false\n[nodes.right]\ndaemon = false\n\
        [[link]]\nbetween = [\"left\", \"middle\"]\n\
        [[link]]\nbetween = [\"middle\", \"right\"]\nfamily = \"v6\"\n";
    Lab::build(&topology(text), &Programs::find().unwrap()).unwrap_or_else(|e| panic!("{e:#}"))
}

#[track_caller]
fn reached(from: &Gateway<'_>, to: &str) {
    let what = format!("{} to reach {to}", from.0.name());
    wait_for(&what, JOINED, || {
        Ok((from.weft(&["ping", to, "-c", "1"]).code == Some(0)).then_some(()))
    })
    .unwrap_or_else(|e| {
        panic!(
            "{e:#}\n{}\n{}",
            from.does(&["peers"]),
            from.does(&["nodes"])
        )
    });
}

#[test]
fn a_newcomer_joins_two_gateways_over_a_third() {
    needs_lab!();
    let lab = bare();
    let [left, middle, right] = ["left", "middle", "right"].map(|name| Gateway(lab.node(name)));

    let made = middle.tells(&["init", "--new", "--name", "middle"]);
    assert_eq!(made["new_network"], true);
    let up = middle.does(&["up"]);
    assert!(up.starts_with("weftd has started (pid "), "{up}");
    assert!(middle.weft(&["init"]).err.contains("never overwritten"));

    // What `weft invite` prints is what is typed on the others, with the address that they reach.
    let invitation = middle.tells(&["invite"]);
    let join = invitation["join"].as_str().unwrap();
    for (gateway, name) in [(&left, "left"), (&right, "right")] {
        let address = middle.0.end_to(name).address.to_string();
        assert!(
            invitation["peers"]
                .as_array()
                .unwrap()
                .iter()
                .any(|peer| *peer == address.as_str()),
            "{invitation}"
        );
        gateway.does(&["init", "--join", join, "--peer", &address, "--name", name]);
        let up = gateway.does(&["up"]);
        assert!(up.contains("established"), "{up}");
    }

    reached(&left, "right");
    let hops = left.tells_lines(&["trace", "right"]);
    let names: Vec<&str> = hops
        .iter()
        .map(|hop| hop["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["middle", "right"], "{hops:?}");
    let modes = middle.tells(&["status"])["interfaces"].clone();
    assert!(
        modes
            .as_array()
            .unwrap()
            .iter()
            .any(|interface| interface["mode"] == hops[0]["mode"]),
        "{modes} {hops:?}"
    );
    let why = left.tells(&["why", "right"]);
    assert_eq!(
        (&why["path"][0]["to"], &why["path"][1]["to"]),
        (&Value::from("middle"), &Value::from("right"))
    );
    let avoiding = left.weft(&["why", "right", "--avoid", "middle"]);
    assert_eq!(avoiding.code, Some(1), "{}", avoiding.out);
    assert!(avoiding.out.contains("no path:"), "{}", avoiding.out);
    assert!(
        middle
            .tells(&["lsp"])
            .as_array()
            .unwrap()
            .iter()
            .any(|lsp| lsp["role"] == "transit")
    );
    for table in [
        "peers", "links", "nodes", "routes", "sessions", "counters", "status",
    ] {
        let text = left.does(&[table]);
        assert!(text.lines().count() > 1, "{table}: {text}");
    }
    let unknown = left.weft(&["ping", "nobody", "-c", "1"]);
    assert!(
        unknown.code == Some(1) && unknown.err.contains("nobody"),
        "{}",
        unknown.err
    );

    // A new daemon on the transit.
    let before = middle.pid();
    middle.does(&["restart"]);
    let status = middle.tells(&["status"]);
    assert_ne!(status["pid"].as_u64().unwrap(), before);
    reached(&left, "right");
}

#[test]
fn down_undoes_and_says_so_after_a_crash_too() {
    needs_lab!();
    let lab = bare();
    let gateway = Gateway(lab.node("left"));
    gateway.does(&["init", "--new", "--name", "left"]);
    let before = gateway.interfaces();
    for crash in [false, true] {
        gateway.does(&["up"]);
        let changes = gateway.tells(&["status", "--host"]);
        assert!(
            changes
                .as_array()
                .unwrap()
                .iter()
                .any(|change| change["kind"] == "tun"),
            "{changes}"
        );
        assert!(gateway.interfaces().contains("weft0"));
        if crash {
            let pid = gateway.pid().to_string();
            assert!(
                Command::new("kill")
                    .args(["-9", &pid])
                    .status()
                    .unwrap()
                    .success()
            );
            wait_for("the daemon's end", SOON, || {
                Ok((gateway.weft(&["status"]).code == Some(3)).then_some(()))
            })
            .unwrap();
            let down = gateway.does(&["down"]);
            assert!(down.starts_with("weftd was not running."), "{down}");
        } else {
            let down = gateway.does(&["down"]);
            assert!(
                down.contains("has stopped and undone") && down.contains("weft0"),
                "{down}"
            );
        }
        assert_eq!(gateway.weft(&["status"]).code, Some(3));
        let names = |text: &str| -> Vec<String> {
            text.lines()
                .filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned()))
                .collect()
        };
        assert_eq!(names(&gateway.interfaces()), names(&before));
        assert!(!gateway.0.layout().socket.exists());
    }
}
