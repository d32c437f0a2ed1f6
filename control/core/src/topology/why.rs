//! Explains a choice of path: what each link costs, and what was not taken for which named reason.

use super::{
    Topology,
    cspf::{self, Constraints, NoPath, Path},
    lsa::UNKNOWN_DELAY,
};
use crate::{
    identity::NodeId,
    node::views::{Refused, WhyHop},
};

/// Most refusals listed.
pub const MAX_REFUSED: usize = 48;

/// Why a link or node was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// One end claims the link, the other does not confirm it.
    OneWayUnconfirmed,
    /// The other end has no valid advertisement (any more).
    Stale,
    /// It asks not to be passed for now.
    Overload,
    /// It forwards for nobody.
    NoTransit,
    /// Its delay alone, or of the path through it, is above the bound or unknown.
    TooSlow,
    /// Its capacity is below the bound or unknown.
    TooNarrow,
    /// Its MTU is below the bound.
    MtuTooSmall,
    /// It is to be avoided.
    Avoided,
    /// The path to be disjoint from uses it.
    NotDisjoint,
    /// It would do, at a higher cost.
    HigherCost,
    /// No path leads on from there.
    DeadEnd,
}

impl Reason {
    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::OneWayUnconfirmed => "one_way_unconfirmed",
            Self::Stale => "stale",
            Self::Overload => "overload",
            Self::NoTransit => "no_transit",
            Self::TooSlow => "too_slow",
            Self::TooNarrow => "too_narrow",
            Self::MtuTooSmall => "mtu_too_small",
            Self::Avoided => "avoided",
            Self::NotDisjoint => "not_disjoint",
            Self::HigherCost => "higher_cost",
            Self::DeadEnd => "dead_end",
        }
    }
}

/// A path with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub struct Explanation {
    /// The choice, or why there is none.
    pub path: Result<Path, NoPath>,
    /// What it costs, link by link.
    pub hops: Vec<WhyHop>,
    /// What was not taken, at most [`MAX_REFUSED`].
    pub refused: Vec<Refused>,
}

/// Explains the path from `source` to `destination`.
#[must_use]
pub fn explain(
    topology: &Topology,
    source: NodeId,
    destination: NodeId,
    constraints: &Constraints,
) -> Explanation {
    let path = cspf::path(topology.graph(), source, destination, constraints);
    let hops = path
        .iter()
        .flat_map(|path| &path.hops)
        .map(describe)
        .collect();
    let mut list = List {
        topology,
        constraints,
        entries: Vec::new(),
    };
    let ends = [source, destination];
    let on_path = path.as_ref().map(Path::nodes).unwrap_or_default();
    for id in ends.iter().chain(
        on_path
            .get(1..on_path.len().saturating_sub(1))
            .unwrap_or_default(),
    ) {
        list.unconfirmed(*id);
    }
    list.nodes(&on_path, &ends);
    list.constrained_links();
    list.alternatives(source, destination, &path);
    list.entries.truncate(MAX_REFUSED);
    Explanation {
        path,
        hops,
        refused: list.entries,
    }
}

fn describe(hop: &cspf::Hop) -> WhyHop {
    let best = &hop.links[0];
    let parallel = match hop.links.len() {
        1 => String::new(),
        count => format!(", best of {count} parallel links"),
    };
    let because = format!("{}, MTU {}{parallel}", best.measured, best.mtu);
    WhyHop {
        from: hop.from,
        to: hop.to,
        cost: hop.cost(),
        because,
    }
}

struct List<'a> {
    topology: &'a Topology,
    constraints: &'a Constraints,
    entries: Vec<Refused>,
}

impl List<'_> {
    fn add(&mut self, what: (NodeId, Option<NodeId>), reason: Reason, detail: String) {
        let reason = reason.name();
        if self.entries.len() < MAX_REFUSED
            && !self
                .entries
                .iter()
                .any(|r| r.what == what && r.reason == reason)
        {
            self.entries.push(Refused {
                what,
                reason,
                detail,
            });
        }
    }

    /// Links from and to a node that one end claims and the other does not.
    fn unconfirmed(&mut self, id: NodeId) {
        let lsdb = self.topology.lsdb();
        let Some(entry) = lsdb.get(&id) else { return };
        let content = &entry.lsa.content;
        for send in &content.sends {
            let what = (id, Some(send.to));
            match lsdb.get(&send.to).filter(|entry| !entry.withdrawn()) {
                None => self.add(
                    what,
                    Reason::Stale,
                    "no valid advertisement of the receiver".into(),
                ),
                Some(receiver)
                    if !receiver
                        .lsa
                        .content
                        .heard_from(id)
                        .iter()
                        .any(|l| l.link == send.link) =>
                {
                    let detail = format!(
                        "link {}: the sender claims it, the receiver does not hear it",
                        send.link.0
                    );
                    self.add(what, Reason::OneWayUnconfirmed, detail);
                }
                Some(_) => {}
            }
        }
        for hear in &content.hears {
            let what = (hear.from, Some(id));
            match lsdb.get(&hear.from).filter(|entry| !entry.withdrawn()) {
                None => self.add(
                    what,
                    Reason::Stale,
                    "no valid advertisement of the sender".into(),
                ),
                Some(sender)
                    if !sender
                        .lsa
                        .content
                        .sent_to(id)
                        .iter()
                        .any(|l| l.link == hear.link) =>
                {
                    let detail = format!(
                        "link {}: the receiver hears it, the sender does not claim it",
                        hear.link.0
                    );
                    self.add(what, Reason::OneWayUnconfirmed, detail);
                }
                Some(_) => {}
            }
        }
    }

    fn nodes(&mut self, on_path: &[NodeId], ends: &[NodeId]) {
        let constraints = self.constraints;
        for id in &constraints.avoid {
            self.add((*id, None), Reason::Avoided, "asked for".into());
        }
        for (from, to) in &constraints.avoid_edges {
            self.add(
                (*from, Some(*to)),
                Reason::Avoided,
                "known to be down before the database says so".into(),
            );
        }
        let shared = constraints
            .disjoint_from
            .get(1..constraints.disjoint_from.len().saturating_sub(1));
        for id in shared
            .unwrap_or_default()
            .iter()
            .filter(|id| !on_path.contains(id))
        {
            self.add(
                (*id, None),
                Reason::NotDisjoint,
                "on the path to be disjoint from".into(),
            );
        }
        for (id, entry) in self
            .topology
            .lsdb()
            .iter()
            .filter(|(id, _)| !ends.contains(id))
        {
            if entry.lsa.content.overload {
                self.add(
                    (*id, None),
                    Reason::Overload,
                    "asks not to be passed for now".into(),
                );
            } else if entry.lsa.content.no_transit {
                self.add(
                    (*id, None),
                    Reason::NoTransit,
                    "does not forward for others".into(),
                );
            }
        }
    }

    /// Links that a bound rules out by themselves.
    fn constrained_links(&mut self) {
        let Constraints {
            max_delay_us,
            min_bandwidth_kbps,
            min_mtu,
            ..
        } = *self.constraints;
        if max_delay_us.is_none() && min_bandwidth_kbps.is_none() && min_mtu.is_none() {
            return;
        }
        for (from, to, links) in self.topology.graph().edges() {
            let all = |bad: &dyn Fn(&super::graph::ConfirmedLink) -> bool| links.iter().all(bad);
            let delay = |us: u32| {
                us == UNKNOWN_DELAY || max_delay_us.is_some_and(|max| u64::from(us) > max)
            };
            if max_delay_us.is_some() && all(&|l| delay(l.measured.delay_us)) {
                self.add(
                    (from, Some(to)),
                    Reason::TooSlow,
                    links[0].measured.to_string(),
                );
            } else if min_bandwidth_kbps.is_some_and(|min| all(&|l| l.measured.capacity_kbps < min))
            {
                self.add(
                    (from, Some(to)),
                    Reason::TooNarrow,
                    links[0].measured.to_string(),
                );
            } else if min_mtu.is_some_and(|min| all(&|l| l.mtu < min)) {
                self.add(
                    (from, Some(to)),
                    Reason::MtuTooSmall,
                    format!("MTU {}", links[0].mtu),
                );
            }
        }
    }

    /// What the path would cost through each of the other neighbours of the source.
    fn alternatives(&mut self, source: NodeId, destination: NodeId, path: &Result<Path, NoPath>) {
        let graph = self.topology.graph();
        let Some(to) = graph.find(&destination) else {
            return;
        };
        let first = path
            .as_ref()
            .ok()
            .and_then(|path| path.hops.first())
            .map(|hop| hop.to);
        let towards = cspf::costs_towards(graph, to);
        let edges: Vec<_> = graph
            .edges_from(&source)
            .map(|(id, links)| (id, links[0].measured.cost))
            .collect();
        for (neighbour, cost) in edges.into_iter().filter(|(id, _)| Some(*id) != first) {
            let what = (source, Some(neighbour));
            let onward = graph.find(&neighbour).and_then(|at| towards[at as usize]);
            match (onward, path) {
                (None, _) => self.add(
                    what,
                    Reason::DeadEnd,
                    format!("no path leads on to {}", destination.short()),
                ),
                (Some(onward), Ok(path)) if onward.saturating_add(cost) >= path.cost => {
                    let by = onward.saturating_add(cost) - path.cost;
                    let detail = format!("{} in all, higher by {by}", onward.saturating_add(cost));
                    self.add(what, Reason::HigherCost, detail);
                }
                // Cheaper, but some constraint rules it out, which is listed above.
                (Some(_), _) => {}
            }
        }
    }
}
