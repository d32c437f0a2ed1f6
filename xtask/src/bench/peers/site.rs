//! A chain of namespaces with one system running on it. All systems get the same: the same number of nodes, the same
//! veth pairs, addresses and MTU.

use std::{
    fs::{self, OpenOptions},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::{
    echo::{self, EchoServer},
    systems::{Kind, System},
};
use crate::{
    lab::{Lab, topology::Topology, wait_for},
    paths::Programs,
    setup::peers,
    term,
};

/// The node that sends requests.
pub(crate) const CLIENT: &str = "client";
/// The node that answers.
pub(crate) const SERVER: &str = "server";
/// The node in the middle where there is one.
pub(crate) const TRANSIT: &str = "t1";
/// How long a system may take until traffic gets through.
pub(crate) const START_LIMIT: Duration = Duration::from_secs(20);

/// A running system.
pub(crate) struct Site {
    // In this order: the echo server and the processes end before their namespaces go.
    echo: EchoServer,
    daemons: Vec<Daemon>,
    /// The namespaces; with Weft also its daemons.
    pub(crate) lab: Lab,
    /// Names from the client to the server.
    chain: Vec<String>,
    /// The server's address inside the system.
    pub(crate) target: Option<IpAddr>,
    /// What runs, with its version.
    pub(crate) version: String,
    /// What should be known about this run of it.
    pub(crate) notes: Vec<String>,
}

/// A process of a system that is not Weft.
struct Daemon {
    name: String,
    child: Child,
    log: std::path::PathBuf,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Names on a chain, client first.
fn chain(transits: usize) -> Vec<String> {
    let middle = (1..=transits).map(|n| format!("t{n}"));
    std::iter::once(CLIENT.to_owned())
        .chain(middle)
        .chain([SERVER.to_owned()])
        .collect()
}

/// The topology file's text of a chain.
fn topology(names: &[String], daemons: bool) -> String {
    let mut text = String::new();
    for name in names {
        let tun = name == CLIENT || name == SERVER;
        text += &format!("[nodes.{name}]\ntun = {tun}\ndaemon = {daemons}\n");
    }
    for pair in names.windows(2) {
        text += &format!("[[link]]\nbetween = [\"{}\", \"{}\"]\n", pair[0], pair[1]);
    }
    text
}

impl Site {
    /// Makes the namespaces for a system; nothing runs in them yet.
    pub(crate) fn build(system: &System, programs: &Programs) -> Result<Self> {
        let chain = chain(system.transits);
        let text = topology(&chain, system.kind == Kind::Weft);
        let name = format!("bench-{}", system.name.replace('_', "-"));
        let topology = Topology::parse(&text, "bench.toml", &name)?;
        let lab = Lab::build(&topology, programs)?;
        let echo = EchoServer::start(lab.node(SERVER).namespace())?;
        Ok(Self {
            echo,
            daemons: Vec::new(),
            lab,
            chain,
            target: None,
            version: String::new(),
            notes: Vec::new(),
        })
    }

    /// Where the server is reached.
    pub(crate) fn target(&self) -> Result<IpAddr> {
        self.target
            .context("the system has no address for its server")
    }

    /// The port its echo server answers on.
    pub(crate) fn echo_port(&self) -> u16 {
        self.echo.port()
    }

    /// The chain's names, the middle first: what others connect to has to run before.
    pub(crate) fn middle_first(&self) -> Vec<String> {
        let (ends, mut names) = self
            .chain
            .iter()
            .cloned()
            .partition::<Vec<_>, _>(|n| n == CLIENT || n == SERVER);
        names.extend(ends);
        names
    }

    /// Lets every node route to every link of the chain.
    pub(crate) fn route(&self) -> Result<()> {
        for (place, name) in self.chain.iter().enumerate() {
            let node = self.lab.node(name);
            let mut lines = String::new();
            for link in 0..self.chain.len() - 1 {
                // Link n is between nodes n and n + 1.
                let next = if link > place {
                    place + 1
                } else if link + 1 < place {
                    place - 1
                } else {
                    continue;
                };
                let via = self.lab.node(&self.chain[next]).end_to(name).address;
                let far = self
                    .lab
                    .node(&self.chain[link])
                    .end_to(&self.chain[link + 1])
                    .address;
                let IpAddr::V4(far) = far else {
                    bail!("the chain is IPv4")
                };
                let network = Ipv4Addr::from_bits(far.to_bits() & !0xff);
                lines += &format!("route add {network}/24 via {via}\n");
            }
            node.namespace().ip(&lines)?;
        }
        Ok(())
    }

    /// The underlay address of an end.
    pub(crate) fn underlay_of(&self, name: &str) -> Result<Ipv4Addr> {
        let ends = self.lab.node(name).ends();
        match ends.first().map(|e| e.address) {
            Some(IpAddr::V4(address)) => Ok(address),
            _ => bail!("node {name} has no IPv4 underlay address"),
        }
    }

    /// The underlay address of the server.
    pub(crate) fn underlay_of_server(&self) -> Result<Ipv4Addr> {
        self.underlay_of(SERVER)
    }

    /// A command inside a node's namespace, able to run what was unpacked.
    pub(crate) fn command(&self, node: &str, program: &Path) -> Command {
        let mut command = self.lab.node(node).namespace().command(program);
        peers::with_libraries(&mut command);
        command
    }

    /// Starts a process of the system.
    pub(crate) fn spawn(&mut self, node: &str, program: &str, mut command: Command) -> Result<()> {
        let log = self.lab.node(node).dir().join(format!("{program}.log"));
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Out of the terminal's process group: Ctrl-C is for the lab, which ends what is in it.
            .process_group(0);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start `{}`", term::shown(&command)))?;
        self.daemons.push(Daemon {
            name: format!("{program} ({node})"),
            child,
            log,
        });
        Ok(())
    }

    /// Fails with the log of a process that has ended.
    pub(crate) fn all_run(&mut self) -> Result<()> {
        for daemon in &mut self.daemons {
            if let Some(status) = daemon.child.try_wait()? {
                bail!(
                    "{} ended with {status}: {}",
                    daemon.name,
                    last_lines(&daemon.log)
                );
            }
        }
        for node in self.lab.daemons() {
            if let Some(status) = node.ended()? {
                bail!(
                    "weftd ({}) ended with {status}: {}",
                    node.name(),
                    node.log_end(5)
                );
            }
        }
        Ok(())
    }

    /// Waits for an interface that a process makes.
    pub(crate) fn wait_interface(&mut self, node: &str, interface: &str) -> Result<()> {
        let what = format!("the interface {interface} of {node}");
        wait_for(&what, START_LIMIT, || {
            self.all_run()?;
            let shown = self
                .lab
                .node(node)
                .namespace()
                .command("ip")
                .args(["link", "show", interface])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            Ok(shown.success().then_some(()))
        })
    }

    /// Waits until a process accepts TCP connections.
    pub(crate) fn wait_listening(&mut self, node: &str, port: u16) -> Result<()> {
        let namespace = self.lab.node(node).namespace().clone();
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let what = format!("port {port} of {node}");
        wait_for(&what, START_LIMIT, || {
            self.all_run()?;
            let connected = namespace
                .run(|| TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_ok())?;
            Ok(connected.then_some(()))
        })
    }

    /// Waits until a request of the client comes back from the server, over TCP too.
    pub(crate) fn wait_answering(&mut self) -> Result<()> {
        let target = SocketAddr::new(self.target()?, self.echo_port());
        let client = self.lab.node(CLIENT).namespace().clone();
        let waited = wait_for("an answer from the server", START_LIMIT, || {
            self.all_run()?;
            Ok(echo::answers(&client, target)?.then_some(()))
        });
        waited.map_err(|error| {
            let logs = self
                .daemons
                .iter()
                .map(|d| format!("{}: {}", d.name, last_lines(&d.log)))
                .collect::<Vec<_>>();
            error.context(logs.join("; "))
        })
    }

    /// The system's processes: name with node, and process id.
    pub(crate) fn processes(&self) -> Vec<(String, u32)> {
        let weft = self
            .lab
            .daemons()
            .filter_map(|n| Some((format!("weftd ({})", n.name()), n.pid()?)));
        let others = self.daemons.iter().map(|d| (d.name.clone(), d.child.id()));
        weft.chain(others).collect()
    }

    /// A version from what the program printed, or the package's where it does not know its own.
    pub(crate) fn version_or_package(&self, package: &str, printed: Option<&str>) -> String {
        let line = printed
            .and_then(|t| t.lines().find(|l| l.bytes().any(|b| b.is_ascii_digit())))
            .map(|l| l.trim().trim_start_matches("Version: "));
        match line {
            Some(line) if line.contains(package) => {
                line.split(',').next().unwrap_or(line).to_owned()
            }
            Some(line) => format!("{package} {line}"),
            None => peers::package_version(package).unwrap_or_else(|| package.to_owned()),
        }
    }
}

/// Runs a command whose standard input is set already, and gives its output.
pub(crate) fn output_with_input(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("cannot start `{}`", term::shown(command)))?;
    if !output.status.success() {
        bail!("`{}` ended with {}", term::shown(command), output.status);
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn last_lines(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines = text.lines().map(str::trim).collect::<Vec<_>>();
    lines[lines.len().saturating_sub(3)..].join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_a_topology() {
        let names = chain(2);
        assert_eq!(names, ["client", "t1", "t2", "server"]);
        let parsed = Topology::parse(&topology(&names, true), "t", "t").unwrap();
        assert_eq!(parsed.links.len(), 3);
        assert!(parsed.nodes["client"].tun && !parsed.nodes["t1"].tun);
        assert!(parsed.nodes.values().all(|n| n.daemon));
        assert_eq!(chain(0), ["client", "server"]);
    }
}
