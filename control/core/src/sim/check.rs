//! What must hold in a simulated network, checked against what the underlay really allows.

use std::{collections::BTreeSet, fmt::Write as _};

use weft_abi::LfibOp;

use super::net::Net;
use crate::{
    io::Micros,
    node::views::{LspRole, LspState},
};

/// Which directed links can exist, and who can therefore reach whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Truth {
    /// Directed links by host number.
    pub links: BTreeSet<(usize, usize)>,
    /// For each host, whom it reaches (itself included).
    pub reach: Vec<Vec<bool>>,
}

impl Truth {
    /// From the state of the underlay and of the hosts.
    ///
    /// A pair of addresses with both directions makes two links. With one direction only, the receiver must be able to
    /// answer the sender by way of others, so such links come to exist only where there is a way back.
    #[must_use]
    pub fn of(net: &Net) -> Self {
        let hosts = &net.world.hosts;
        let up: BTreeSet<_> = net
            .world
            .underlay
            .links()
            .filter(|(.., model)| model.up)
            .map(|(from, to, _)| (from, to))
            .collect();
        let alive: Vec<_> = hosts.iter().map(|host| host.node.is_some()).collect();
        let running: Vec<_> = net
            .adjacencies
            .iter()
            .filter(|x| alive[x.a] && alive[x.b])
            .collect();
        let mut links = BTreeSet::new();
        for x in &running {
            if up.contains(&(x.from, x.to)) && up.contains(&(x.to, x.from)) {
                links.extend([(x.a, x.b), (x.b, x.a)]);
            }
        }
        loop {
            let reach = reachability(hosts.len(), &links);
            let one_way = running
                .iter()
                .filter(|x| up.contains(&(x.from, x.to)) && reach[x.b][x.a]);
            let new: Vec<_> = one_way
                .map(|x| (x.a, x.b))
                .filter(|link| !links.contains(link))
                .collect();
            if new.is_empty() {
                return Self { links, reach };
            }
            links.extend(new);
        }
    }

    /// How many ordered pairs reach each other.
    #[must_use]
    pub fn reachable_pairs(&self) -> usize {
        self.reach
            .iter()
            .flatten()
            .filter(|reaches| **reaches)
            .count()
    }
}

fn reachability(count: usize, links: &BTreeSet<(usize, usize)>) -> Vec<Vec<bool>> {
    let mut next = vec![Vec::new(); count];
    links.iter().for_each(|(from, to)| next[*from].push(*to));
    (0..count)
        .map(|start| {
            let mut seen = vec![false; count];
            let mut open = vec![start];
            seen[start] = true;
            while let Some(at) = open.pop() {
                for &to in &next[at] {
                    if !std::mem::replace(&mut seen[to], true) {
                        open.push(to);
                    }
                }
            }
            seen
        })
        .collect()
}

/// Where views differ from the truth: (host, about whom, what the host believes). Empty once converged.
#[must_use]
pub fn wrong_views(net: &Net, truth: &Truth) -> Vec<(usize, usize, bool)> {
    let world = &net.world;
    let mut wrong = Vec::new();
    for (at, host) in world.hosts.iter().enumerate() {
        let Some(node) = &host.node else { continue };
        let mut believed = vec![false; world.hosts.len()];
        for view in node.nodes(world.now) {
            if let Some(number) = world.number(&view.node) {
                believed[number] = view.cost.is_some();
            }
        }
        believed[at] = true;
        for (about, believes) in believed.into_iter().enumerate() {
            if believes != truth.reach[at][about] {
                wrong.push((at, about, believes));
            }
        }
    }
    wrong
}

/// Ingress LSPs that are up though a link of theirs cannot carry anything: (host, path).
#[must_use]
pub fn dead_lsps(net: &Net, truth: &Truth) -> Vec<(usize, Vec<usize>)> {
    let world = &net.world;
    let mut dead = Vec::new();
    for (at, host) in world.hosts.iter().enumerate() {
        let Some(node) = &host.node else { continue };
        for lsp in node.lsps(world.now) {
            if lsp.role == LspRole::Ingress && lsp.state == LspState::Up {
                let path: Vec<_> = lsp.path.iter().filter_map(|id| world.number(id)).collect();
                if path
                    .windows(2)
                    .any(|hop| !truth.links.contains(&(hop[0], hop[1])))
                {
                    dead.push((at, path));
                }
            }
        }
    }
    dead
}

/// Follows every label from every host through the real tables: a cycle among labels is a forwarding loop. Gives the
/// labels on one, as (host, label).
#[must_use]
pub fn label_loop(net: &Net) -> Option<Vec<(usize, u32)>> {
    let world = &net.world;
    let next = |at: usize, label: u32| -> Option<(usize, u32)> {
        use weft_abi::Tables as _;
        let tables = &world.hosts[at].tables;
        let entry = tables.lfib(weft_abi::Label(label));
        if entry.op() != LfibOp::Swap {
            return None;
        }
        let hop = weft_abi::select(tables, entry.group(), 0)?;
        let path = tables.path_of(weft_abi::NextHopIndex(hop))?;
        Some((world.owner(&path.remote.ip())?, entry.out_label().0))
    };
    let mut clean = BTreeSet::new();
    for (at, host) in world.hosts.iter().enumerate() {
        for label in host.tables.labels().keys() {
            let mut walk = vec![(at, *label)];
            while let Some(&(at, label)) = walk.last() {
                let Some(step) = next(at, label).filter(|step| !clean.contains(step)) else {
                    break;
                };
                if walk.contains(&step) {
                    return Some(walk);
                }
                walk.push(step);
            }
            clean.extend(walk);
        }
    }
    None
}

/// Which table of which host is beyond its bound.
#[must_use]
pub fn over_bounds(net: &Net) -> Option<String> {
    net.world.hosts.iter().enumerate().find_map(|(at, host)| {
        let (sizes, limits) = (host.tables.sizes(), &host.config.limits);
        let over = sizes.slots > usize::from(limits.slots)
            || sizes.next_hops > limits.next_hops as usize
            || sizes.groups > limits.groups as usize
            || sizes.labels > limits.lsps
            || host.sessions.len() > limits.sessions;
        over.then(|| format!("host {at}: {sizes:?}, {} sessions", host.sessions.len()))
    })
}

/// Sum of a counter over all hosts.
#[must_use]
pub fn total(net: &Net, name: &str) -> u64 {
    net.world
        .hosts
        .iter()
        .filter_map(|host| host.counts.get(name))
        .sum()
}

/// The newest log lines of a host, for people.
#[must_use]
pub fn log_of(net: &Net, number: usize, lines: usize) -> String {
    let log = &net.world.hosts[number].log;
    let mut text = String::new();
    for (at, line) in log.iter().skip(log.len().saturating_sub(lines)) {
        let Micros(us) = at;
        let _ = writeln!(text, "  n{number} {:.3} s: {line}", *us as f64 / 1e6);
    }
    text
}
