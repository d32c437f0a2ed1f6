//! What the network tests share.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use weft_client::api::Counters;
use xtask::lab::{Lab, topology::Topology, traffic::Stream, wait_for};

/// Between packets of a stream.
pub(crate) const TICK: Duration = Duration::from_millis(1);
/// Time for what should take a moment.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Starts a lab from the text of a topology.
pub(crate) fn lab(text: &str) -> Lab {
    Lab::start(&topology(text)).unwrap_or_else(|e| panic!("{e:#}"))
}

/// The text of a topology.
pub(crate) fn topology(text: &str) -> Topology {
    let thread = std::thread::current();
    let name = thread
        .name()
        .and_then(|n| n.rsplit("::").next())
        .unwrap_or("test")
        .to_owned();
    Topology::parse(text, "test.toml", &name).unwrap_or_else(|e| panic!("{e}"))
}

/// `a - b - c` and so on: the first and last are ends, those between transits; one link per family in `links`, with
/// more lines for each.
pub(crate) fn chain(names: &[&str], links: &[&str], config: &str) -> Lab {
    lab(&chain_text(names, links, config))
}

/// The topology of [`chain`].
pub(crate) fn chain_text(names: &[&str], links: &[&str], config: &str) -> String {
    let mut text = String::new();
    for (i, name) in names.iter().enumerate() {
        let transit = i > 0 && i + 1 < names.len();
        text += &format!(
            "[nodes.{name}]\ntun = {}\nconfig = {{ {config} }}\n",
            !transit
        );
    }
    for (pair, link) in names.windows(2).zip(links) {
        text += &format!("[[link]]\nbetween = {pair:?}\n{link}\n");
    }
    text
}

/// A stream between the overlay addresses of two nodes.
pub(crate) fn stream(lab: &Lab, from: &str, to: &str, payload: usize) -> Stream {
    let port = 9000 + u16::try_from(payload % 1000).unwrap();
    let address = SocketAddr::new(lab.node(to).overlay().unwrap().into(), port);
    Stream::start(
        lab.node(from).namespace(),
        lab.node(to).namespace(),
        address,
        TICK,
        payload,
    )
    .unwrap_or_else(|e| panic!("{e:#}"))
}

/// Waits until both daemons know a path to each other.
pub(crate) fn connected(lab: &Lab, a: &str, b: &str) {
    for (from, to) in [(a, b), (b, a)] {
        lab.wait_reachable(from, to)
            .unwrap_or_else(|e| panic!("{e:#}"));
    }
}

/// Waits for something, or fails with what it was.
#[track_caller]
pub(crate) fn until(what: &str, limit: Duration, mut ask: impl FnMut() -> bool) {
    wait_for(what, limit, || Ok(ask().then_some(()))).unwrap_or_else(|e| panic!("{e:#}"));
}

/// Keeps an eye on something for a while: it has to hold all the time.
#[track_caller]
pub(crate) fn holds_for(what: &str, time: Duration, mut ask: impl FnMut() -> bool) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        assert!(ask(), "{what} did not hold");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The counters of a node.
pub(crate) fn counters(lab: &Lab, node: &str) -> Counters {
    lab.node(node).api().unwrap().counters().unwrap()
}

/// Labelled packets that a node sent on: in XDP, and in its daemon.
pub(crate) fn forwarded(lab: &Lab, node: &str) -> (u64, u64) {
    let all = counters(lab, node);
    let sum = |map: &std::collections::BTreeMap<String, u64>| {
        ["swap", "pop"].iter().filter_map(|n| map.get(*n)).sum()
    };
    (sum(&all.xdp), sum(&all.user))
}

/// Names on the path in use from one node to another, both included.
pub(crate) fn path_in_use(lab: &Lab, from: &str, to: &str) -> Vec<String> {
    let routes = lab.node(from).api().unwrap().routes().unwrap();
    routes
        .into_iter()
        .find(|r| r.name == to && !r.path.is_empty())
        .map(|r| r.path)
        .unwrap_or_default()
}
