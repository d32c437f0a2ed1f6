//! Constrained shortest paths over the [`Graph`] of confirmed links.
//!
//! All choices are deterministic: lower cost, then fewer hops, then the lower node id of the predecessor. Costs are at
//! least 1, so hop-by-hop forwarding along [`Tree`]s of nodes with the same database never loops.

use std::{
    cmp::Reverse,
    collections::{BTreeSet, BinaryHeap},
};

use super::{
    graph::{ConfirmedLink, Edge, Graph},
    lsa::UNKNOWN_DELAY,
};
use crate::identity::NodeId;

/// Most links of one path: what the onion of an LSP set-up has room for.
pub const MAX_HOPS: usize = 16;
/// Candidates kept per node in a search under several bounds at once. Beyond it the search is a heuristic that still
/// finds a path whenever the one of least delay fits.
const MAX_CANDIDATES_PER_NODE: usize = 64;
/// Most nodes a caller may ask to include.
pub const MAX_INCLUDE: usize = MAX_HOPS - 1;

/// What a path must satisfy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Constraints {
    /// Nodes to pass, in this order.
    pub include: Vec<NodeId>,
    /// Nodes not to pass.
    pub avoid: BTreeSet<NodeId>,
    /// Edges not to use (sender, receiver): what this node knows to be broken before the database does.
    pub avoid_edges: BTreeSet<(NodeId, NodeId)>,
    /// Upper bound of the sum of one-way delays, microseconds. Links of unknown delay are not used then.
    pub max_delay_us: Option<u64>,
    /// Lower bound of each link's capacity, kilobits per second. Links of unknown capacity are not used then.
    pub min_bandwidth_kbps: Option<u32>,
    /// Lower bound of each link's MTU, bytes of underlay IP packet.
    pub min_mtu: Option<u16>,
    /// Most links, at most [`MAX_HOPS`].
    pub max_hops: usize,
    /// A path (with its ends) to share no node with, or where there is none like that, no link.
    pub disjoint_from: Vec<NodeId>,
}

impl Default for Constraints {
    fn default() -> Self {
        Self {
            include: Vec::new(),
            avoid: BTreeSet::new(),
            avoid_edges: BTreeSet::new(),
            max_delay_us: None,
            min_bandwidth_kbps: None,
            min_mtu: None,
            max_hops: MAX_HOPS,
            disjoint_from: Vec::new(),
        }
    }
}

/// One hop of a path with the parallel links it may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// Sender.
    pub from: NodeId,
    /// Receiver.
    pub to: NodeId,
    /// The links that satisfy the constraints; the first is the one the path's figures are of. Never empty.
    pub links: Vec<ConfirmedLink>,
}

impl Hop {
    /// Cost of the link the path uses.
    #[must_use]
    pub fn cost(&self) -> u32 {
        self.links[0].measured.cost
    }
}

/// How far a path keeps away from [`Constraints::disjoint_from`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disjointness {
    /// No common node but the ends.
    Node,
    /// No common link.
    Link,
}

/// A path that satisfies its constraints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    /// In order, at least one.
    pub hops: Vec<Hop>,
    /// Sum of the costs.
    pub cost: u32,
    /// Sum of the one-way delays, microseconds; none where a link's is unknown.
    pub delay_us: Option<u64>,
    /// Smallest MTU of all links the hops may use, bytes of underlay IP packet.
    pub mtu: u16,
    /// Where a disjoint one was asked for: what was found.
    pub disjoint: Option<Disjointness>,
}

impl Path {
    fn of(hops: Vec<Hop>) -> Self {
        let delay = |hop: &Hop| match hop.links[0].measured.delay_us {
            UNKNOWN_DELAY => None,
            delay => Some(u64::from(delay)),
        };
        Self {
            cost: hops.iter().map(Hop::cost).sum(),
            delay_us: hops.iter().map(delay).sum(),
            mtu: hops
                .iter()
                .flat_map(|hop| &hop.links)
                .map(|link| link.mtu)
                .min()
                .unwrap_or(0),
            hops,
            disjoint: None,
        }
    }

    /// All nodes, both ends included.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.hops
            .first()
            .map(|hop| hop.from)
            .into_iter()
            .chain(self.hops.iter().map(|hop| hop.to))
            .collect()
    }
}

/// Why there is no path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoPath {
    /// The source is not in the database or has no confirmed link out.
    #[error("this node has no confirmed link to any neighbour")]
    SourceIsolated,
    /// No valid LSA of the destination is known.
    #[error("no link-state advertisement of {0} is known")]
    Unknown(NodeId),
    /// Source and destination are the same.
    #[error("source and destination are the same node")]
    SameNode,
    /// No confirmed links lead there, whatever the constraints.
    #[error("no chain of confirmed links leads to {0}")]
    Unreachable(NodeId),
    /// Too many nodes to include, or a repetition among them and the ends.
    #[error("the nodes to include must be at most {MAX_INCLUDE}, all different, and neither end")]
    BadInclude,
    /// A node to include cannot be passed in that order.
    #[error("no path passes {0} in the order asked for")]
    Include(NodeId),
    /// Every path passes something to avoid.
    #[error("every path passes a node or link to avoid")]
    Avoided,
    /// Every path is too slow.
    #[error("every path is slower than the {limit_us} µs allowed{}", fastest_us.map_or_else(|| ", or of unknown delay".to_owned(), |us| format!(": the fastest needs {us} µs")))]
    TooSlow {
        /// The least delay there is; none where it is unknown.
        fastest_us: Option<u64>,
        /// The bound.
        limit_us: u64,
    },
    /// Every path has a link of less capacity (or unknown).
    #[error("every path has a link below {0} kbit/s, or of unknown capacity")]
    TooNarrow(u32),
    /// Every path has a link of a smaller MTU.
    #[error("every path has a link with an MTU below {0} bytes")]
    MtuTooSmall(u16),
    /// Every path has more hops.
    #[error("every path has more than {0} hops")]
    TooManyHops(usize),
    /// Every path shares a link with the one to be disjoint from.
    #[error("every path shares a link with the one to be disjoint from")]
    NotDisjoint,
    /// Each constraint alone can be met, not all at once.
    #[error("no path meets all constraints at once")]
    Combination,
}

/// The cheapest path from `source` to `destination` under the constraints.
pub fn path(
    graph: &Graph,
    source: NodeId,
    destination: NodeId,
    constraints: &Constraints,
) -> Result<Path, NoPath> {
    if constraints.max_hops > MAX_HOPS {
        return path(
            graph,
            source,
            destination,
            &Constraints {
                max_hops: MAX_HOPS,
                ..constraints.clone()
            },
        );
    }
    if source == destination {
        return Err(NoPath::SameNode);
    }
    let from = graph
        .find(&source)
        .filter(|&at| !graph.node(at).out.is_empty())
        .ok_or(NoPath::SourceIsolated)?;
    let to = graph
        .find(&destination)
        .ok_or(NoPath::Unknown(destination))?;
    check_include(graph, source, destination, constraints)?;
    if constraints.disjoint_from.is_empty() {
        return search(graph, from, to, constraints, &Exclusion::none(graph))
            .ok_or_else(|| diagnose(graph, from, to, constraints));
    }
    for level in [Disjointness::Node, Disjointness::Link] {
        let exclusion = Exclusion::disjoint(graph, &constraints.disjoint_from, level);
        if let Some(mut found) = search(graph, from, to, constraints, &exclusion) {
            found.disjoint = Some(level);
            return Ok(found);
        }
    }
    Err(diagnose(graph, from, to, constraints))
}

fn check_include(
    graph: &Graph,
    source: NodeId,
    to: NodeId,
    constraints: &Constraints,
) -> Result<(), NoPath> {
    let include = &constraints.include;
    let distinct: BTreeSet<_> = include.iter().chain([&source, &to]).collect();
    if include.len() > MAX_INCLUDE || distinct.len() != include.len() + 2 {
        return Err(NoPath::BadInclude);
    }
    match include.iter().find(|id| graph.find(id).is_none()) {
        Some(&unknown) => Err(NoPath::Unknown(unknown)),
        None => Ok(()),
    }
}

/// Finds which constraint is to blame: the first without which there is a path.
fn diagnose(graph: &Graph, from: u32, to: u32, constraints: &Constraints) -> NoPath {
    let none = Exclusion::none(graph);
    let possible = |changed: &Constraints| {
        let exclusion = match changed.disjoint_from.as_slice() {
            [] => Exclusion::none(graph),
            path => Exclusion::disjoint(graph, path, Disjointness::Link),
        };
        search(graph, from, to, changed, &exclusion).is_some()
    };
    let destination = graph.node(to).id;
    let unbounded = Constraints {
        max_hops: graph.bound(),
        ..Constraints::default()
    };
    if !possible(&unbounded) {
        return NoPath::Unreachable(destination);
    }
    if let Some(limit_us) = constraints.max_delay_us
        && possible(&Constraints {
            max_delay_us: None,
            ..constraints.clone()
        })
    {
        let fastest = Constraints {
            max_delay_us: Some(u64::MAX),
            ..constraints.clone()
        };
        let fastest_us = least_delay(graph, from, to, &fastest, &none);
        return NoPath::TooSlow {
            fastest_us,
            limit_us,
        };
    }
    if let Some(limit) = constraints.min_bandwidth_kbps
        && possible(&Constraints {
            min_bandwidth_kbps: None,
            ..constraints.clone()
        })
    {
        return NoPath::TooNarrow(limit);
    }
    if let Some(limit) = constraints.min_mtu
        && possible(&Constraints {
            min_mtu: None,
            ..constraints.clone()
        })
    {
        return NoPath::MtuTooSmall(limit);
    }
    let nothing_avoided = Constraints {
        avoid: BTreeSet::new(),
        avoid_edges: BTreeSet::new(),
        ..constraints.clone()
    };
    if nothing_avoided != *constraints && possible(&nothing_avoided) {
        return NoPath::Avoided;
    }
    if !constraints.disjoint_from.is_empty()
        && possible(&Constraints {
            disjoint_from: Vec::new(),
            ..constraints.clone()
        })
    {
        return NoPath::NotDisjoint;
    }
    if possible(&Constraints {
        max_hops: graph.bound(),
        ..constraints.clone()
    }) {
        return NoPath::TooManyHops(constraints.max_hops);
    }
    if !constraints.include.is_empty()
        && possible(&Constraints {
            include: Vec::new(),
            ..constraints.clone()
        })
    {
        let culprit = (1..=constraints.include.len())
            .find(|&count| {
                !possible(&Constraints {
                    include: constraints.include[..count].to_vec(),
                    ..constraints.clone()
                })
            })
            .unwrap_or(1);
        return NoPath::Include(constraints.include[culprit - 1]);
    }
    NoPath::Combination
}

/// Nodes and edges a search must not use.
#[derive(Clone)]
struct Exclusion {
    nodes: Vec<bool>,
    edges: BTreeSet<(u32, u32)>,
}

impl Exclusion {
    fn none(graph: &Graph) -> Self {
        Self {
            nodes: vec![false; graph.bound()],
            edges: BTreeSet::new(),
        }
    }

    fn disjoint(graph: &Graph, path: &[NodeId], level: Disjointness) -> Self {
        let mut exclusion = Self::none(graph);
        for pair in path.windows(2) {
            if let (Some(a), Some(b)) = (graph.find(&pair[0]), graph.find(&pair[1])) {
                exclusion.edges.insert((a, b));
            }
        }
        if level == Disjointness::Node {
            let interior = path
                .get(1..path.len().saturating_sub(1))
                .unwrap_or_default();
            interior
                .iter()
                .filter_map(|id| graph.find(id))
                .for_each(|at| exclusion.nodes[at as usize] = true);
        }
        exclusion
    }
}

/// One leg's search: which edges count, and for how much.
struct Leg<'a> {
    graph: &'a Graph,
    constraints: &'a Constraints,
    exclusion: &'a Exclusion,
    from: u32,
    to: u32,
}

impl Leg<'_> {
    /// The links of an edge that satisfy the constraints, best first; none where the edge must not be used.
    fn usable<'e>(
        &self,
        from: u32,
        edge: &'e Edge,
    ) -> Option<impl Iterator<Item = &'e ConfirmedLink> + use<'e>> {
        let receiver = self.graph.node(edge.to);
        let passes = edge.to == self.to || (!receiver.overload && !receiver.no_transit);
        if !passes
            || edge.to == self.from
            || self.exclusion.nodes[edge.to as usize]
            || (!self.exclusion.edges.is_empty() && self.exclusion.edges.contains(&(from, edge.to)))
            || self.constraints.avoid.contains(&receiver.id)
            || (!self.constraints.avoid_edges.is_empty()
                && self
                    .constraints
                    .avoid_edges
                    .contains(&(self.graph.node(from).id, receiver.id)))
        {
            return None;
        }
        let (bandwidth, mtu, timed) = (
            self.constraints.min_bandwidth_kbps.unwrap_or(0),
            self.constraints.min_mtu.unwrap_or(0),
            self.constraints.max_delay_us.is_some(),
        );
        Some(edge.links.iter().filter(move |link| {
            link.measured.capacity_kbps >= bandwidth
                && link.mtu >= mtu
                && (!timed || link.measured.delay_us != UNKNOWN_DELAY)
        }))
    }

    /// The hop between two adjacent nodes, the link of this cost and delay first.
    fn hop(&self, from: u32, to: u32, chosen: Option<usize>) -> Option<Hop> {
        let mut links: Vec<_> = self
            .usable(from, self.graph.edge(from, to)?)?
            .copied()
            .collect();
        if let Some(chosen) = chosen.filter(|&at| at < links.len()) {
            links[..=chosen].rotate_right(1);
        }
        (!links.is_empty()).then(|| Hop {
            from: self.graph.node(from).id,
            to: self.graph.node(to).id,
            links,
        })
    }

    /// Plain Dijkstra to the destination, by (cost, hops).
    fn cheapest(&self) -> Option<Vec<Hop>> {
        let mut search = Dijkstra::new(self.graph.bound(), self.from);
        while let Some(at) = search.next(self.graph) {
            if at == self.to {
                break;
            }
            for edge in &self.graph.node(at).out {
                if let Some(link) = self.usable(at, edge).and_then(|mut links| links.next()) {
                    search.relax(self.graph, at, edge.to, link.measured.cost);
                }
            }
        }
        let nodes = search.path_to(self.to)?;
        nodes
            .windows(2)
            .map(|pair| self.hop(pair[0], pair[1], None))
            .collect()
    }

    /// Lower bounds towards the destination per node: delay and hops; `u64::MAX` where there is no way.
    fn bounds(&self) -> Vec<(u64, usize)> {
        let mut bounds = vec![(u64::MAX, usize::MAX); self.graph.bound()];
        let mut heap = BinaryHeap::from([Reverse((0u64, self.to))]);
        bounds[self.to as usize] = (0, 0);
        while let Some(Reverse((delay, at))) = heap.pop() {
            if delay > bounds[at as usize].0 {
                continue;
            }
            for (from, least) in self.edges_into(at) {
                let sum = delay.saturating_add(least);
                if sum < bounds[from as usize].0 {
                    bounds[from as usize].0 = sum;
                    heap.push(Reverse((sum, from)));
                }
            }
        }
        let (mut frontier, mut hops) = (vec![self.to], 0);
        while !frontier.is_empty() {
            hops += 1;
            let mut next = Vec::new();
            for at in frontier {
                for (from, _) in self.edges_into(at) {
                    if bounds[from as usize].1 == usize::MAX {
                        bounds[from as usize].1 = hops;
                        next.push(from);
                    }
                }
            }
            frontier = next;
        }
        bounds
    }

    /// Usable edges into a node with the least delay of their links (0 where delay does not matter).
    fn edges_into(&self, at: u32) -> impl Iterator<Item = (u32, u64)> + '_ {
        let timed = self.constraints.max_delay_us.is_some();
        self.graph.node(at).into.iter().filter_map(move |&from| {
            // The search never passes the destination, nor anything it may not enter.
            if from == self.to || (from != self.from && self.exclusion.nodes[from as usize]) {
                return None;
            }
            let links = self.usable(from, self.graph.edge(from, at)?)?;
            let least = links.map(|link| u64::from(link.measured.delay_us)).min()?;
            Some((from, if timed { least } else { 0 }))
        })
    }

    /// The cheapest path within a delay and a number of hops: label setting with dominance over (cost, delay, hops).
    fn within(&self, max_delay: u64, max_hops: usize) -> Option<Vec<Hop>> {
        struct Candidate {
            node: u32,
            parent: usize,
            /// Which of the usable parallel links led here.
            link: usize,
        }
        let timed = self.constraints.max_delay_us.is_some();
        let bounds = self.bounds();
        let fits = |node: u32, delay: u64, hops: usize| {
            let (least_delay, least_hops) = bounds[node as usize];
            delay.saturating_add(least_delay) <= max_delay
                && hops.saturating_add(least_hops) <= max_hops
        };
        if !fits(self.from, 0, 0) {
            return None;
        }
        let mut candidates = vec![Candidate {
            node: self.from,
            parent: usize::MAX,
            link: 0,
        }];
        let mut settled: Vec<Vec<(u64, usize)>> = vec![Vec::new(); self.graph.bound()];
        let mut heap = BinaryHeap::from([Reverse((
            0u32,
            0usize,
            0u64,
            self.graph.node(self.from).id,
            0usize,
        ))]);
        while let Some(Reverse((cost, hops, delay, _, at))) = heap.pop() {
            let node = candidates[at].node;
            if node == self.to {
                let mut hops = Vec::new();
                let mut walk = at;
                while candidates[walk].parent != usize::MAX {
                    let parent = candidates[walk].parent;
                    hops.push(self.hop(
                        candidates[parent].node,
                        candidates[walk].node,
                        Some(candidates[walk].link),
                    )?);
                    walk = parent;
                }
                hops.reverse();
                return Some(hops);
            }
            let kept = &mut settled[node as usize];
            let dominated = kept.iter().any(|&(d, h)| d <= delay && h <= hops);
            // At the bound, only what improves on the fastest goes on, so the fastest path is never lost.
            let crowded =
                kept.len() >= MAX_CANDIDATES_PER_NODE && kept.iter().any(|&(d, _)| d <= delay);
            if dominated || crowded {
                continue;
            }
            kept.push((delay, hops));
            for edge in &self.graph.node(node).out {
                for (link_at, link) in self.usable(node, edge).into_iter().flatten().enumerate() {
                    let step = if timed {
                        u64::from(link.measured.delay_us)
                    } else {
                        0
                    };
                    let (cost, delay, hops) = (cost + link.measured.cost, delay + step, hops + 1);
                    let known = settled[edge.to as usize]
                        .iter()
                        .any(|&(d, h)| d <= delay && h <= hops);
                    if !known && fits(edge.to, delay, hops) {
                        candidates.push(Candidate {
                            node: edge.to,
                            parent: at,
                            link: link_at,
                        });
                        heap.push(Reverse((
                            cost,
                            hops,
                            delay,
                            self.graph.node(edge.to).id,
                            candidates.len() - 1,
                        )));
                    }
                    if !timed {
                        break;
                    }
                }
            }
        }
        None
    }
}

/// The search proper, leg by leg over the nodes to include.
fn search(
    graph: &Graph,
    from: u32,
    to: u32,
    constraints: &Constraints,
    exclusion: &Exclusion,
) -> Option<Path> {
    if constraints.avoid.contains(&graph.node(to).id) {
        return None;
    }
    let mut stops = vec![from];
    for id in &constraints.include {
        let at = graph.find(id)?;
        let node = graph.node(at);
        if node.overload || node.no_transit {
            return None;
        }
        stops.push(at);
    }
    stops.push(to);
    let mut exclusion = exclusion.clone();
    let legs = stops.len() - 1;
    // What later legs need at least is kept back from the budget of the earlier ones.
    let mut needs = vec![(0u64, 0usize); legs + 1];
    if legs > 1 {
        for leg in (0..legs).rev() {
            let search = Leg {
                graph,
                constraints,
                exclusion: &exclusion,
                from: stops[leg],
                to: stops[leg + 1],
            };
            let (delay, hops) = search.bounds()[stops[leg] as usize];
            needs[leg] = (
                needs[leg + 1].0.checked_add(delay)?,
                needs[leg + 1].1.checked_add(hops)?,
            );
        }
        stops
            .iter()
            .for_each(|&stop| exclusion.nodes[stop as usize] = true);
    }
    let (mut budget, mut hops_left) = (
        constraints.max_delay_us.unwrap_or(u64::MAX),
        constraints.max_hops,
    );
    let mut hops = Vec::new();
    for leg in 0..legs {
        let (start, end) = (stops[leg], stops[leg + 1]);
        exclusion.nodes[end as usize] &= legs == 1;
        let search = Leg {
            graph,
            constraints,
            exclusion: &exclusion,
            from: start,
            to: end,
        };
        let may_delay = if budget == u64::MAX {
            budget
        } else {
            budget.checked_sub(needs[leg + 1].0)?
        };
        let may_hops = hops_left.checked_sub(needs[leg + 1].1)?;
        let delay_of = |hops: &[Hop]| {
            hops.iter()
                .map(|hop| u64::from(hop.links[0].measured.delay_us))
                .sum::<u64>()
        };
        let found = search.cheapest().filter(|hops| {
            hops.len() <= may_hops && (budget == u64::MAX || delay_of(hops) <= may_delay)
        });
        let found = match found {
            Some(found) => found,
            None => search.within(may_delay, may_hops)?,
        };
        if budget != u64::MAX {
            budget -= delay_of(&found);
        }
        hops_left -= found.len();
        for hop in &found {
            if let Some(at) = graph.find(&hop.to) {
                exclusion.nodes[at as usize] = true;
            }
        }
        hops.extend(found);
    }
    Some(Path::of(hops))
}

fn least_delay(
    graph: &Graph,
    from: u32,
    to: u32,
    constraints: &Constraints,
    exclusion: &Exclusion,
) -> Option<u64> {
    let (delay, _) = Leg {
        graph,
        constraints,
        exclusion,
        from,
        to,
    }
    .bounds()[from as usize];
    (delay != u64::MAX).then_some(delay)
}

/// Whether the search may pass through nodes that do not want transit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeUse {
    /// Traffic: overloaded and non-transit nodes end a path.
    Traffic,
    /// Routed control messages: few, and sometimes the only way to a node behind one-way links.
    Control,
}

/// Shortest paths from one node to all.
#[derive(Clone, Debug)]
pub struct Tree {
    root: u32,
    cost: Vec<Option<u32>>,
    parent: Vec<u32>,
    first: Vec<u32>,
    hops: Vec<u16>,
    /// By ascending cost, the root first: a parent always comes before its children.
    order: Vec<u32>,
}

impl Tree {
    /// Computes the tree; none where the root has no LSA.
    #[must_use]
    pub fn compute(graph: &Graph, root: NodeId, usage: TreeUse) -> Option<Self> {
        let root = graph.find(&root)?;
        let mut search = Dijkstra::new(graph.bound(), root);
        let mut order = Vec::with_capacity(graph.node_count());
        while let Some(at) = search.next(graph) {
            order.push(at);
            let node = graph.node(at);
            if at != root && usage == TreeUse::Traffic && (node.overload || node.no_transit) {
                continue;
            }
            for edge in &node.out {
                search.relax(graph, at, edge.to, edge.cost);
            }
        }
        let mut first = vec![u32::MAX; graph.bound()];
        for &at in order.iter().skip(1) {
            let parent = search.parent[at as usize];
            first[at as usize] = if parent == root {
                at
            } else {
                first[parent as usize]
            };
        }
        let cost = search
            .best
            .iter()
            .map(|best| (best.0 != u32::MAX).then_some(best.0))
            .collect();
        let hops = search.best.iter().map(|best| best.1).collect();
        Some(Self {
            root,
            cost,
            parent: search.parent,
            first,
            hops,
            order,
        })
    }

    /// Cost to a node.
    #[must_use]
    pub fn cost(&self, graph: &Graph, to: &NodeId) -> Option<u32> {
        self.cost.get(graph.find(to)? as usize).copied().flatten()
    }

    /// The root's neighbour on the way to a node.
    #[must_use]
    pub fn next_hop(&self, graph: &Graph, to: &NodeId) -> Option<NodeId> {
        let first = *self.first.get(graph.find(to)? as usize)?;
        (first != u32::MAX).then(|| graph.node(first).id)
    }

    /// Links on the way to a node.
    #[must_use]
    pub fn hops(&self, graph: &Graph, to: &NodeId) -> Option<usize> {
        let at = graph.find(to)? as usize;
        self.cost
            .get(at)
            .copied()
            .flatten()
            .map(|_| usize::from(self.hops[at]))
    }

    /// The nodes on the way, both ends included.
    #[must_use]
    pub fn path(&self, graph: &Graph, to: &NodeId) -> Option<Vec<NodeId>> {
        let mut at = graph.find(to)?;
        self.cost.get(at as usize).copied().flatten()?;
        let mut nodes = vec![graph.node(at).id];
        while at != self.root {
            at = self.parent[at as usize];
            nodes.push(graph.node(at).id);
        }
        nodes.reverse();
        Some(nodes)
    }

    /// How many nodes it reaches, the root included.
    #[must_use]
    pub fn reached(&self) -> usize {
        self.order.len()
    }
}

/// Costs from every node to one destination, for "what would it cost through this neighbour".
pub(super) fn costs_towards(graph: &Graph, destination: u32) -> Vec<Option<u32>> {
    let mut best = vec![None; graph.bound()];
    let mut heap = BinaryHeap::from([Reverse((0u32, destination))]);
    best[destination as usize] = Some(0);
    while let Some(Reverse((cost, at))) = heap.pop() {
        let node = graph.node(at);
        if best[at as usize].is_some_and(|known| cost > known)
            || (at != destination && (node.overload || node.no_transit))
        {
            continue;
        }
        for &from in &node.into {
            let Some(edge) = graph.edge(from, at) else {
                continue;
            };
            let sum = cost + edge.cost;
            if best[from as usize].is_none_or(|known| sum < known) {
                best[from as usize] = Some(sum);
                heap.push(Reverse((sum, from)));
            }
        }
    }
    best
}

/// Dijkstra's bookkeeping by (cost, hops); among equals the predecessor with the lowest id wins.
struct Dijkstra {
    best: Vec<(u32, u16)>,
    parent: Vec<u32>,
    done: Vec<bool>,
    heap: BinaryHeap<Reverse<(u32, u16, u32)>>,
    root: u32,
}

impl Dijkstra {
    fn new(bound: usize, root: u32) -> Self {
        let mut best = vec![(u32::MAX, u16::MAX); bound];
        best[root as usize] = (0, 0);
        let heap = BinaryHeap::from([Reverse((0, 0, root))]);
        Self {
            best,
            parent: vec![u32::MAX; bound],
            done: vec![false; bound],
            heap,
            root,
        }
    }

    /// Settles the nearest open node.
    fn next(&mut self, _graph: &Graph) -> Option<u32> {
        while let Some(Reverse((_, _, at))) = self.heap.pop() {
            if !std::mem::replace(&mut self.done[at as usize], true) {
                return Some(at);
            }
        }
        None
    }

    fn relax(&mut self, graph: &Graph, from: u32, to: u32, cost: u32) {
        let (base, hops) = self.best[from as usize];
        let (offer, known) = (
            (base.saturating_add(cost), hops.saturating_add(1)),
            self.best[to as usize],
        );
        if self.done[to as usize] || offer > known {
            return;
        }
        if offer < known {
            self.best[to as usize] = offer;
            self.parent[to as usize] = from;
            self.heap.push(Reverse((offer.0, offer.1, to)));
        } else if graph.node(from).id < graph.node(self.parent[to as usize]).id {
            self.parent[to as usize] = from;
        }
    }

    fn path_to(&self, to: u32) -> Option<Vec<u32>> {
        if self.best[to as usize].0 == u32::MAX {
            return None;
        }
        let (mut nodes, mut at) = (vec![to], to);
        while at != self.root {
            at = self.parent[at as usize];
            nodes.push(at);
        }
        nodes.reverse();
        Some(nodes)
    }
}
