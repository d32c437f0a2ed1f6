//! The memory of a `weftd` with a thousand sessions.
//!
//! The other ends are a thousand real nodes in one process, an example of `weft-core` that this crate runs and does not
//! depend on; see its source. The `weftd` under test has one of them as its neighbour and pings all others, which opens
//! a session, with its LSPs, to each.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{cpu, measure::Sample};
use crate::{
    building,
    lab::{Lab, topology::Topology, wait_for},
    paths::{self, Programs},
    setup::{self, Need},
    term,
};
use weft_client::config::DEFAULT_PORT;

/// How many.
const SESSIONS: usize = 1000;
/// How long the crowd may take until it is one network.
const CROWD_LIMIT: Duration = Duration::from_secs(900);
/// How long the daemon may take to learn of all nodes.
const LEARN_LIMIT: Duration = Duration::from_secs(60);
/// Pings at the same time.
const HANDS: usize = 4;
/// Between two of them to the same node.
const PING_INTERVAL: Duration = Duration::from_millis(500);
/// Pings to a node until it counts as unreachable.
const PINGS: u32 = 6;
const TOPOLOGY: &str = "[nodes.gateway]\n[nodes.crowd]\ndaemon = false\n[[link]]\nbetween = [\"gateway\", \"crowd\"]\ndial = \"first\"\n";

struct Crowd(Child);

impl Drop for Crowd {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Measures it; `resident_mb` is with all sessions up, `learned_mb` before the first with all nodes known.
pub(super) fn measure(programs: &Programs) -> Result<Sample> {
    let program = build()?;
    let topology = Topology::parse(TOPOLOGY, "sessions.toml", "bench-sessions")?;
    let lab = Lab::build(&topology, programs)?;
    let gateway = lab.node("gateway");
    let crowd = lab.node("crowd");
    let address = crowd.end_to("gateway").address;
    let log = std::fs::File::create(crowd.dir().join("crowd.log"))?;
    let mut command = crowd.namespace().command(&program);
    command
        .arg(format!("{address}:{DEFAULT_PORT}"))
        .arg(gateway.layout().network())
        .arg(SESSIONS.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log);
    let mut running = Crowd(
        command
            .spawn()
            .with_context(|| format!("cannot start `{}`", term::shown(&command)))?,
    );
    wait_ready(&mut running)?;
    gateway.start()?;
    let wanted = SESSIONS + 1;
    wait_for("the daemon to know all nodes", LEARN_LIMIT, || {
        let known = gateway.api()?.nodes()?;
        let reachable = known.iter().filter(|n| n.reachable).count();
        Ok((reachable >= wanted).then_some(()))
    })?;
    let pid = gateway.pid().context("weftd does not run")?;
    let learned = cpu::resident_mb(pid).context("weftd is gone")?;
    let mut api = gateway.api()?;
    let own = api.status()?.node_id;
    let nodes = api.nodes()?.into_iter().map(|n| n.node_id);
    let targets = nodes.filter(|id| *id != own).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let hands = targets
            .chunks(targets.len().div_ceil(HANDS).max(1))
            .map(|part| scope.spawn(move || ping_all(gateway, part)))
            .collect::<Vec<_>>();
        for hand in hands {
            hand.join()
                .ok()
                .context("a thread of the measurement ended unexpectedly")??;
        }
        anyhow::Ok(())
    })?;
    let up = gateway.api()?.status()?.sessions;
    ensure!(
        up >= SESSIONS,
        "only {up} of {SESSIONS} sessions were up after all had answered"
    );
    let mut sample = Sample::default();
    let resident = cpu::resident_mb(pid).context("weftd is gone")?;
    sample.version = format!("weftd {}", gateway.api()?.status()?.version);
    for (name, value) in [
        ("resident_mb", resident),
        ("learned_mb", learned),
        ("sessions", up as f64),
    ] {
        sample.figures.insert(name.to_owned(), value);
    }
    Ok(sample)
}

fn ping_all(gateway: &crate::lab::node::Node, targets: &[String]) -> Result<()> {
    let mut api = gateway.api()?;
    for target in targets {
        let mut last = None;
        let mut answered = false;
        // One at a time, on one connection: a stream of answers that is given up ends its connection, of which the daemon
        // has so many and no more.
        for attempt in 0..PINGS {
            if attempt > 0 {
                std::thread::sleep(PING_INTERVAL);
            }
            for pong in api.ping(target, 1, 1, 0)? {
                let pong = pong?;
                answered = pong.rtt_ms.is_some();
                last = pong.error;
            }
            if answered {
                break;
            }
        }
        ensure!(
            answered,
            "{target} did not answer {PINGS} pings: {}",
            last.unwrap_or_default()
        );
    }
    Ok(())
}

/// Builds the crowd and tells where it is.
fn build() -> Result<std::path::PathBuf> {
    let ebpf = setup::ensure(Need::Build)?;
    let mut command: Command = building::cargo(&ebpf);
    command.args(["build", "--quiet", "--release"]);
    command.args(["--package", "weft-core", "--example", "crowd"]);
    term::run(&mut command)?;
    Ok(paths::target().join("release/examples/crowd"))
}

/// Waits for its `ready`.
fn wait_ready(crowd: &mut Crowd) -> Result<()> {
    let output = crowd.0.stdout.take().context("the crowd has no output")?;
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut line = String::new();
        let _ = BufReader::new(output).read_line(&mut line);
        // Nobody listens any more when it took too long.
        let _ = tell.send(line);
    });
    match told.recv_timeout(CROWD_LIMIT) {
        Ok(line) if line.trim() == "ready" => Ok(()),
        Ok(_) => bail!("the crowd ended: {:?}", crowd.0.try_wait()?),
        Err(_) => bail!("the crowd was no network after {} s", CROWD_LIMIT.as_secs()),
    }
}
