//! What the demo does, act by act.

use std::{
    io::{IsTerminal, Write},
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use weft_client::api::{Constraints, Counters, ForwardMode, Why, WhyHop};

use super::Stage;
use crate::{
    lab::{
        Lab,
        capture::Capture,
        traffic::{
            Stream,
            http::{self, Bytes, Server},
            iperf::{self, Way},
        },
        wait_for,
    },
    term::{self, Style},
};

const TRANSITS: [&str; 4] = ["alder", "birch", "cedar", "dogwood"];
const DOWNLOAD: u64 = 1_000_000_000;
const MARKED_DOWNLOAD: u64 = 8 << 20;
const IPERF_SECONDS: u32 = 5;
const PROBE_INTERVAL: Duration = Duration::from_millis(1);
const PROBE_PAYLOAD: usize = 64;
/// How long the first measurements may take.
const SETTLE_LIMIT: Duration = Duration::from_secs(15);
/// The longest silence that counts as going on.
const OUTAGE_LIMIT: Duration = Duration::from_secs(5);

/// All nodes find each other.
pub(super) fn meet(stage: &mut Stage) -> Result<()> {
    let begun = Instant::now();
    stage.lab.wait_converged()?;
    for node in stage.lab.nodes() {
        let status = node.api()?.status()?;
        let modes = status
            .interfaces
            .iter()
            .filter(|i| i.up)
            .map(|i| format!("{} {}", i.name, mode(i.mode)));
        println!(
            "  {:<8} {:<39} {}",
            term::paint(Style::Bold, &status.name),
            status.overlay_address,
            term::paint(Style::Dim, &modes.collect::<Vec<_>>().join(", "))
        );
    }
    let took = begun.elapsed().as_secs_f64();
    term::good(&format!(
        "every node knows a path to every other, {took:.1} s after the last one answered"
    ));
    Ok(())
}

/// Which path the client takes, and why.
pub(super) fn path(stage: &mut Stage) -> Result<()> {
    term::heading("The path from client to server, and why this one");
    let mut api = stage.lab.node("client").api()?;
    // The links' figures come in during the first seconds; a path chosen before would be a guess.
    let measured = |why: &Why| {
        let known = |hop: &WhyHop| !hop.because.contains("delay unknown");
        !why.path.is_empty() && why.path.iter().all(known)
    };
    let settled = wait_for("measured links", SETTLE_LIMIT, || {
        let why = api.why("server", Constraints::default())?;
        let other = Constraints {
            avoid: why
                .path
                .iter()
                .map(|hop| hop.to.clone())
                .filter(|n| n != "server")
                .collect(),
            ..Constraints::default()
        };
        let all = measured(&why) && measured(&api.why("server", other)?);
        Ok((all && !why.standby.is_empty()).then_some(why))
    });
    let why = match settled {
        Ok(why) => why,
        Err(_) => api.why("server", Constraints::default())?,
    };
    if why.path.is_empty() {
        bail!("no path: {}", why.no_path.unwrap_or_default());
    }
    for hop in &why.path {
        println!(
            "  {:<8} → {:<8} cost {:>4}  {}",
            hop.from,
            hop.to,
            hop.cost,
            term::paint(Style::Dim, &hop.because)
        );
    }
    let standby = why.standby.join(" → ");
    println!(
        "  total cost {}; standby: {}",
        why.cost.unwrap_or(0),
        term::paint(Style::Cyan, &standby)
    );
    for refused in why.refused.iter().take(6) {
        let line = format!(
            "  not taken: {} ({}: {})",
            refused.what, refused.reason, refused.detail
        );
        println!("{}", term::paint(Style::Dim, &line));
    }
    let inner = |names: &[String]| names[1..names.len().max(2) - 1].to_vec();
    let chosen = why
        .path
        .iter()
        .map(|h| h.to.clone())
        .rev()
        .skip(1)
        .collect::<Vec<_>>();
    let disjoint = inner(&why.standby).iter().all(|n| !chosen.contains(n));
    stage.claim(disjoint, "the standby shares no transit with the path");
    Ok(())
}

/// Echoes through the session.
pub(super) fn ping(stage: &mut Stage) -> Result<()> {
    term::heading("Ping, through an end-to-end session");
    let mut api = stage.lab.node("client").api()?;
    let pongs = api
        .ping("server", 5, 200, 56)?
        .collect::<Result<Vec<_>, _>>()?;
    for pong in &pongs {
        match pong.rtt_ms {
            Some(rtt) => println!(
                "  echo {}  {rtt:.3} ms  over {} hops",
                pong.sequence, pong.hops
            ),
            None => println!(
                "  echo {}  {}",
                pong.sequence,
                pong.error.as_deref().unwrap_or("did not come back")
            ),
        }
    }
    let back = pongs.iter().filter(|p| p.rtt_ms.is_some()).count();
    stage.claim(
        pongs.len() == 5 && back >= 4,
        &format!("{back} of {} echoes came back", pongs.len()),
    );
    Ok(())
}

/// Hop by hop.
pub(super) fn trace(stage: &mut Stage) -> Result<()> {
    term::heading(
        "Trace, hop by hop, answered by each hop under a key only it and the client have",
    );
    let mut api = stage.lab.node("client").api()?;
    let hops = api.trace("server")?.collect::<Result<Vec<_>, _>>()?;
    for hop in &hops {
        println!(
            "  {}  {:<8} label {:<8} {:>9}  {}",
            hop.hop,
            hop.name.as_deref().unwrap_or("?"),
            hop.label.map_or_else(|| "-".to_owned(), |l| l.to_string()),
            hop.rtt_ms
                .map_or_else(|| "no answer".to_owned(), |ms| format!("{ms:.3} ms")),
            hop.mode.map_or("", mode),
        );
    }
    stage.findings.path_hops = Some(hops.len() as u64);
    let whole = hops.len() >= 2
        && hops.iter().all(|h| h.node_id.is_some())
        && hops
            .last()
            .is_some_and(|h| h.name.as_deref() == Some("server"));
    stage.claim(
        whole,
        &format!("all {} hops answered, the last is the server", hops.len()),
    );
    let transits = &hops[..hops.len().max(1) - 1];
    let kernel = transits
        .iter()
        .all(|h| h.mode == Some(ForwardMode::KernelNative));
    stage.claim(
        kernel && !transits.is_empty(),
        "every transit switches in the kernel, in the driver's XDP",
    );
    Ok(())
}

/// One gigabyte over HTTP.
pub(super) fn download(stage: &mut Stage) -> Result<()> {
    term::heading("HTTP download of 1 GB, checked by hash");
    let lab = &stage.lab;
    let server = Server::start(
        lab.node("server").namespace(),
        lab.node("server").overlay()?,
        8080,
        b"",
    )?;
    let before = forwarded(lab, &TRANSITS)?;
    let expected = std::thread::spawn(|| Bytes::new(1, b"").hash(DOWNLOAD));
    let progress = Progress::new();
    let done = http::download(
        lab.node("client").namespace(),
        server.address(),
        1,
        DOWNLOAD,
        &|n| progress.show(n),
    )?;
    progress.clear();
    let expected = expected.join().ok().context("hashing failed")?;
    println!("  http://{}  {:.2} Gbit/s", server.address(), done.gbps());
    println!("  sha256 {}", done.hash);
    let after = forwarded(lab, &TRANSITS)?;
    let (xdp, daemon) = (after.xdp - before.xdp, after.daemon - before.daemon);
    println!("  meanwhile the transits switched {xdp} packets in XDP and {daemon} in weftd");
    let right = done.hash == expected;
    stage.findings.download_sha256_ok = Some(right);
    stage.claim(right, "the hash is the right one");
    // With packets of at most 64 KiB on any link, so many at least had to pass.
    stage.claim(xdp >= DOWNLOAD / 65_536, "the packets went through XDP");
    Ok(())
}

/// Both ways.
pub(super) fn iperf(stage: &mut Stage) -> Result<()> {
    term::heading("iperf3, one TCP stream each way");
    let (client, server) = (stage.lab.node("client"), stage.lab.node("server"));
    let address = IpAddr::V6(server.overlay()?);
    let up = iperf::tcp(client, server, address, IPERF_SECONDS, Way::Up)?;
    println!(
        "  client → server  {:.2} Gbit/s, {} segments sent again",
        up.gbps, up.retransmits
    );
    let down = iperf::tcp(client, server, address, IPERF_SECONDS, Way::Down)?;
    println!(
        "  server → client  {:.2} Gbit/s, {} segments sent again",
        down.gbps, down.retransmits
    );
    stage.findings.iperf_gbps_up = Some(up.gbps);
    stage.findings.iperf_gbps_down = Some(down.gbps);
    stage.claim(up.gbps > 0.0 && down.gbps > 0.0, "traffic flows both ways");
    Ok(())
}

/// A known plaintext is searched for at a transit and at the server.
pub(super) fn secrecy(stage: &mut Stage) -> Result<()> {
    term::heading("Can a transit read it? A known plaintext, searched for in captures");
    let lab = &stage.lab;
    let marker = format!(
        "weft demo plaintext {:016x} nobody on the way may see this",
        random()
    );
    let server = Server::start(
        lab.node("server").namespace(),
        lab.node("server").overlay()?,
        8081,
        marker.as_bytes(),
    )?;
    let wire = lab.links()[lab.link_between("alder", "birch")]
        .wire()?
        .namespace()
        .clone();
    let tun = lab
        .node("server")
        .api()?
        .status()?
        .tun
        .context("the server has no TUN interface")?;
    // XDP passes packets on before any capture inside a transit could see them: the wire is where they all are.
    let at_transit = Capture::start(&wire, "second", marker.as_bytes())?;
    let at_server = Capture::start(lab.node("server").namespace(), &tun, marker.as_bytes())?;
    let length = MARKED_DOWNLOAD;
    let done = http::download(
        lab.node("client").namespace(),
        server.address(),
        2,
        length,
        &|_| (),
    )?;
    let (transit, server) = (at_transit.finish()?, at_server.finish()?);
    println!("  the text    {:?}", term::paint(Style::Dim, &marker));
    for (place, seen) in [("birch's line", &transit), ("server's TUN", &server)] {
        println!(
            "  at {place}  {} packets, {} bytes, {} with the text",
            seen.packets, seen.bytes, seen.matches
        );
    }
    if transit.missed + server.missed > 0 {
        println!(
            "  (not captured for lack of room: {} and {})",
            transit.missed, server.missed
        );
    }
    stage.findings.plaintext_seen_at_transit = Some(transit.matches > 0);
    stage.findings.plaintext_seen_at_server = Some(server.matches > 0);
    let carried = transit.bytes + transit.missed * 1500 >= done.length;
    stage.claim(carried, "the download did pass that transit");
    stage.claim(
        transit.matches == 0 && carried,
        "the transit saw nothing of the text",
    );
    stage.claim(
        server.matches > 0,
        "the server's TUN, where it is in clear, did",
    );
    Ok(())
}

/// A transit in use loses all its links.
pub(super) fn cut(stage: &mut Stage) -> Result<()> {
    term::heading("Cutting a transit in use");
    let lab = &stage.lab;
    let (client, server) = (lab.node("client"), lab.node("server"));
    let before = path_in_use(lab)?;
    let victim = before[1..before.len() - 1]
        .get((before.len() - 2) / 2)
        .with_context(|| format!("no transit in use: the path is {before:?}"))?
        .clone();
    println!(
        "  in use: {}",
        term::paint(Style::Cyan, &before.join(" → "))
    );

    let http = Server::start(server.namespace(), server.overlay()?, 8082, b"")?;
    let there = SocketAddr::new(server.overlay()?.into(), 9000);
    let back = SocketAddr::new(client.overlay()?.into(), 9000);
    let there = Stream::start(
        client.namespace(),
        server.namespace(),
        there,
        PROBE_INTERVAL,
        PROBE_PAYLOAD,
    )?;
    let back = Stream::start(
        server.namespace(),
        client.namespace(),
        back,
        PROBE_INTERVAL,
        PROBE_PAYLOAD,
    )?;
    there.wait_received(1000, Duration::from_secs(10))?;
    back.wait_received(100, Duration::from_secs(10))?;
    let at_cut = (there.sent(), back.sent());

    let begun = Instant::now();
    for end in lab.node(&victim).ends() {
        lab.node(&victim).set_interface(&end.interface, false)?;
    }
    term::step(&format!(
        "all links of {} are down",
        term::paint(Style::Red, &victim)
    ));
    // Sent after the cut and arrived: the streams have found the other path.
    wait_for(
        "traffic over the other path",
        Duration::from_secs(30),
        || {
            let resumed = |s: &Stream, cut: u64| {
                s.sent() > cut + 3000 && s.received() + OUTAGE_LIMIT.as_millis() as u64 > s.sent()
            };
            Ok((resumed(&there, at_cut.0) && resumed(&back, at_cut.1)).then_some(()))
        },
    )
    .with_context(|| format!("{:.1} s after the cut", begun.elapsed().as_secs_f64()))?;
    let after = wait_for(
        "the path without the transit",
        Duration::from_secs(10),
        || Ok(path_in_use(lab).ok().filter(|p| !p.contains(&victim))),
    )?;
    println!(
        "  now in use: {}",
        term::paint(Style::Cyan, &after.join(" → "))
    );
    let (there, back) = (there.finish()?, back.finish()?);
    for (way, report) in [("client → server", &there), ("server → client", &back)] {
        println!(
            "  {way}  silent for {:.1} ms, {} of {} packets lost",
            report.longest_gap.as_secs_f64() * 1e3,
            report.lost(),
            report.sent
        );
    }
    let expected = Bytes::new(3, b"").hash(MARKED_DOWNLOAD);
    let done = http::download(
        client.namespace(),
        http.address(),
        3,
        MARKED_DOWNLOAD,
        &|_| (),
    )?;
    println!("  a download over the new path: {:.2} Gbit/s", done.gbps());
    // Up again, for those who look around afterwards.
    for end in lab.node(&victim).ends() {
        lab.node(&victim).set_interface(&end.interface, true)?;
    }
    let outage = there.longest_gap.max(back.longest_gap);
    stage.findings.outage_ms = Some(outage.as_secs_f64() * 1e3);
    let text = format!(
        "the traffic went on; it was silent for {:.1} ms at most",
        outage.as_secs_f64() * 1e3
    );
    stage.claim(outage < OUTAGE_LIMIT, &text);
    stage.claim(done.hash == expected, "and what it carries is whole");
    Ok(())
}

/// Where packets were switched, over all of the demo.
pub(super) fn switched_where(stage: &mut Stage) -> Result<()> {
    term::heading("Who switched the packets");
    let total = forwarded(&stage.lab, &TRANSITS)?;
    for transit in TRANSITS {
        let own = forwarded(&stage.lab, &[transit])?;
        println!(
            "  {transit:<8} in XDP {:>9}   in weftd {:>3}",
            own.xdp, own.daemon
        );
    }
    stage.findings.xdp_forwarded_packets = Some(total.xdp);
    stage.findings.daemon_forwarded_packets = Some(total.daemon);
    stage.claim(
        total.xdp > 0,
        &format!("{} packets were switched in the kernel", total.xdp),
    );
    stage.claim(
        total.daemon == 0,
        &format!("{} were switched by a weftd", total.daemon),
    );
    Ok(())
}

/// Nodes of the path in use from client to server, both included.
fn path_in_use(lab: &Lab) -> Result<Vec<String>> {
    let routes = lab.node("client").api()?.routes()?;
    let overlay = lab.node("server").overlay()?.to_string();
    let route = routes
        .into_iter()
        .find(|r| r.name == "server" && r.prefix.split('/').next() == Some(overlay.as_str()))
        .context("the client has no route to the server")?;
    anyhow::ensure!(
        route.path.len() >= 2,
        "the client has no session to the server"
    );
    Ok(route.path)
}

#[derive(Clone, Copy, Debug, Default)]
struct Forwarded {
    xdp: u64,
    daemon: u64,
}

/// Labelled packets that these nodes sent on.
fn forwarded(lab: &Lab, nodes: &[&str]) -> Result<Forwarded> {
    let mut total = Forwarded::default();
    for node in nodes {
        let Counters { xdp, user, .. } = lab.node(node).api()?.counters()?;
        let sum = |map: &std::collections::BTreeMap<String, u64>| {
            ["swap", "pop"]
                .iter()
                .filter_map(|name| map.get(*name))
                .sum::<u64>()
        };
        total.xdp += sum(&xdp);
        total.daemon += sum(&user);
    }
    Ok(total)
}

fn mode(mode: ForwardMode) -> &'static str {
    match mode {
        ForwardMode::KernelNative => "kernel, native XDP",
        ForwardMode::KernelGeneric => "kernel, generic XDP",
        ForwardMode::UserSpace => "user space",
    }
}

fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::hash::RandomState::new().build_hasher().finish()
}

/// A line that is written over, on terminals.
struct Progress {
    begun: Instant,
    next: AtomicU64,
    visible: bool,
}

impl Progress {
    fn new() -> Self {
        Self {
            begun: Instant::now(),
            next: AtomicU64::new(0),
            visible: std::io::stdout().is_terminal(),
        }
    }

    fn show(&self, bytes: u64) {
        let now = self.begun.elapsed();
        let ms = now.as_millis() as u64;
        if !self.visible || ms < self.next.load(Ordering::Relaxed) {
            return;
        }
        self.next.store(ms + 100, Ordering::Relaxed);
        let rate = bytes as f64 * 8.0 / 1e9 / now.as_secs_f64().max(1e-3);
        print!("\r  {:>5} MB  {rate:.2} Gbit/s ", bytes / 1_000_000);
        // Cosmetic only.
        let _ = std::io::stdout().flush();
    }

    fn clear(&self) {
        if self.visible {
            print!("\r{:40}\r", "");
        }
    }
}
