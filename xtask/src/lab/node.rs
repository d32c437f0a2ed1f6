//! A node of a lab: a namespace, a folder, and the `weftd` that runs there.

use std::{
    ffi::OsStr,
    fs::{self, OpenOptions},
    net::{IpAddr, Ipv6Addr},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use weft_client::{Client, config::Layout};

use super::{netns::Netns, topology::NodeSpec, wait_for};
use crate::{paths::Programs, term};

/// How long a `weftd` may take to answer after it was started.
pub const START_LIMIT: Duration = Duration::from_secs(20);
/// How long it may take to end after SIGTERM.
pub const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A node of a lab.
#[derive(Debug)]
pub struct Node {
    pub(super) name: String,
    pub(super) spec: NodeSpec,
    pub(super) namespace: Netns,
    pub(super) dir: PathBuf,
    pub(super) ends: Vec<End>,
    pub(super) programs: Programs,
    /// Node id, hex; empty for a bare host.
    pub(super) id: String,
    pub(super) child: Mutex<Option<Child>>,
}

/// A node's end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// The link's place in the topology.
    pub link: usize,
    /// The other node.
    pub peer: String,
    /// Interface name.
    pub interface: String,
    /// Its underlay address.
    pub address: IpAddr,
}

impl Node {
    /// Its name in the topology.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its namespace.
    #[must_use]
    pub fn namespace(&self) -> &Netns {
        &self.namespace
    }

    /// What `weftd --dir` gets.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its files are.
    #[must_use]
    pub fn layout(&self) -> Layout {
        Layout::in_dir(&self.dir)
    }

    /// Folders in bpffs where its daemon pins maps and links.
    #[must_use]
    pub fn pins(&self) -> Vec<PathBuf> {
        let Some(short) = self.id.get(..8) else {
            return Vec::new();
        };
        vec![
            Path::new(crate::setup::host::BPFFS)
                .join("weft")
                .join(format!("{}-{short}", self.name)),
        ]
    }

    /// Its ends of links, in the topology's order.
    #[must_use]
    pub fn ends(&self) -> &[End] {
        &self.ends
    }

    /// Its end of the first link to `peer`.
    ///
    /// # Panics
    /// When the topology has no such link.
    #[must_use]
    #[track_caller]
    pub fn end_to(&self, peer: &str) -> &End {
        match self.ends.iter().find(|e| e.peer == peer) {
            Some(end) => end,
            None => panic!("the topology has no link between {} and {peer}", self.name),
        }
    }

    /// A connection to its daemon's API.
    ///
    /// # Errors
    /// When the daemon does not listen.
    pub fn api(&self) -> Result<Client> {
        Client::connect(self.layout().socket).with_context(|| format!("node {}", self.name))
    }

    /// Its overlay address, from its daemon.
    ///
    /// # Errors
    /// When the daemon does not answer.
    pub fn overlay(&self) -> Result<Ipv6Addr> {
        Ok(self.api()?.status()?.overlay_address)
    }

    /// A command inside the namespace, with `weft` on its path talking to this node.
    #[must_use]
    pub fn exec(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.namespace.command(program);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = self.programs.weft.parent().unwrap_or(Path::new("/"));
        let folders = std::iter::once(own.to_owned()).chain(std::env::split_paths(&path));
        if let Ok(joined) = std::env::join_paths(folders) {
            command.env("PATH", joined);
        }
        command
            .env("WEFT_DIR", &self.dir)
            .env("WEFT_DAEMON", &self.programs.weftd);
        command
    }

    /// `weft ARGUMENTS` for this node.
    #[must_use]
    pub fn weft(&self, arguments: &[&str]) -> Command {
        let mut command = self.exec(&self.programs.weft);
        command.args(arguments);
        command
    }

    /// `weftd --dir DIR ARGUMENTS` inside, not started.
    #[must_use]
    pub fn weftd(&self, arguments: &[&str]) -> Command {
        let mut command = self.exec(&self.programs.weftd);
        command.arg("--dir").arg(&self.dir).args(arguments);
        command
    }

    /// Process id of its daemon, while it runs as our child.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.child().as_ref().map(Child::id)
    }

    /// Starts the daemon and returns at once.
    ///
    /// # Errors
    /// When it runs already or cannot be started.
    pub fn spawn(&self) -> Result<()> {
        let mut child = self.child();
        ensure!(
            child.is_none(),
            "the weftd of node {} runs already",
            self.name
        );
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.log_file())
            .with_context(|| format!("cannot open the log of node {}", self.name))?;
        let mut command = self.weftd(&[]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        // Out of the terminal's process group: Ctrl-C is for the lab, which ends the nodes in its order.
        command.process_group(0);
        let started = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", term::shown(&command)))?;
        *child = Some(started);
        Ok(())
    }

    /// Starts the daemon and waits until it answers.
    ///
    /// # Errors
    /// With the end of its log, when it ends or does not answer in time.
    pub fn start(&self) -> Result<()> {
        self.spawn()?;
        self.wait_ready()
    }

    /// Waits until the daemon answers.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub fn wait_ready(&self) -> Result<()> {
        let what = format!("weftd of node {} to answer", self.name);
        let answered = wait_for(&what, START_LIMIT, || {
            if let Some(status) = self.ended()? {
                bail!("weftd ended with {status}");
            }
            Ok(self.api().and_then(|mut api| Ok(api.status()?)).ok())
        });
        answered
            .map(|_| ())
            .with_context(|| format!("node {}; its log ends:\n{}", self.name, self.log_end(30)))
    }

    /// The exit status of a daemon that has ended by itself; it counts as not running then.
    ///
    /// # Errors
    /// When the system cannot tell.
    pub fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut child = self.child();
        let status = match child.as_mut() {
            Some(running) => running.try_wait()?,
            None => None,
        };
        if status.is_some() {
            *child = None;
        }
        Ok(status)
    }

    /// Kills the daemon without warning, and waits until it is gone.
    ///
    /// # Errors
    /// When it does not run.
    pub fn kill9(&self) -> Result<()> {
        let mut child = self
            .child()
            .take()
            .with_context(|| format!("the weftd of node {} does not run", self.name))?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends the daemon by SIGTERM, which makes it undo what it changed.
    ///
    /// # Errors
    /// When it does not run, does not end in time, or fails.
    pub fn stop(&self) -> Result<()> {
        self.ended()?;
        let mut child = self
            .child()
            .take()
            .with_context(|| format!("the weftd of node {} does not run", self.name))?;
        // SAFETY: signals our own child, which has not been waited for.
        unsafe { libc::kill(i32::try_from(child.id())?, libc::SIGTERM) };
        let ended = wait_for("weftd to end after SIGTERM", STOP_LIMIT, || {
            Ok(child.try_wait()?)
        });
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error)
                    .with_context(|| format!("node {}; log:\n{}", self.name, self.log_end(30)));
            }
        };
        ensure!(
            status.success(),
            "weftd of node {} ended with {status}; log:\n{}",
            self.name,
            self.log_end(30)
        );
        Ok(())
    }

    /// Kills the daemon and starts it again.
    ///
    /// # Errors
    /// As [`Node::kill9`] and [`Node::start`].
    pub fn restart(&self) -> Result<()> {
        self.kill9()?;
        self.start()
    }

    /// The daemon's log, of all its runs.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Its last lines.
    #[must_use]
    pub fn log_end(&self, lines: usize) -> String {
        let log = self.log();
        let all = log.lines().collect::<Vec<_>>();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The log's path.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.dir.join("weftd.log")
    }

    /// Brings an interface up or takes it down.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn set_interface(&self, interface: &str, up: bool) -> Result<()> {
        self.namespace.ip(&format!(
            "link set {interface} {}\n",
            if up { "up" } else { "down" }
        ))
    }

    /// Everything about the namespace that a daemon could have changed, as text that can be compared: interfaces with
    /// their XDP programs, addresses, routes, rules, nftables, and the pins of this lab's nodes in bpffs.
    ///
    /// # Errors
    /// When one of the tools fails.
    pub fn host_state(&self) -> Result<String> {
        let mut text = String::new();
        for (program, arguments) in [
            ("ip", &["-d", "link", "show"][..]),
            ("ip", &["addr", "show"]),
            ("ip", &["-4", "route", "show", "table", "all"]),
            ("ip", &["-6", "route", "show", "table", "all"]),
            ("ip", &["-4", "rule", "show"]),
            ("ip", &["-6", "rule", "show"]),
            ("nft", &["list", "ruleset"]),
        ] {
            let output = term::output_of(self.exec(program).args(arguments))?;
            text += &format!("$ {program} {}\n", arguments.join(" "));
            for line in output.lines() {
                text += &stable(line);
                text.push('\n');
            }
        }
        Ok(text)
    }

    fn child(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A line of `ip` without what changes by itself: life times and counters of expiry.
fn stable(line: &str) -> String {
    let words = line.split_whitespace().collect::<Vec<_>>();
    let mut kept = Vec::new();
    let mut skip = false;
    for word in words {
        if skip {
            skip = false;
        } else if matches!(word, "expires" | "valid_lft" | "preferred_lft") {
            skip = true;
        } else {
            kept.push(word);
        }
    }
    kept.join(" ")
}
