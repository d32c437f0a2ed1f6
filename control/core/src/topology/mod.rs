//! The topology: signed link-state advertisements, their database and flooding, and paths over it.
//!
//! [`Topology`] is what a node holds. After messages were taken or time has passed, [`Topology::update`] brings the
//! graph up to date (in proportion to what changed); questions are then answered from `&self`.

pub mod cspf;
pub mod flooding;
pub mod graph;
pub mod lsa;
pub mod lsdb;
mod peer;
mod reconcile;
pub mod why;

use std::{cell::OnceCell, collections::BTreeSet};

use bytes::Bytes;

use crate::{
    identity::{Identity, NetworkId, NodeId},
    io::Micros,
};
use cspf::{Constraints, NoPath, Path, Tree, TreeUse};
use flooding::{FloodTimers, Flooding, MessageError};
use graph::Graph;
use lsa::LsaContent;
use lsdb::{Limits, Lsdb};

/// Database, flooding, graph and the trees rooted at this node.
#[derive(Debug)]
pub struct Topology {
    flooding: Flooding,
    graph: Graph,
    traffic: OnceCell<Option<Tree>>,
    control: OnceCell<Option<Tree>>,
}

impl Topology {
    /// Starts with an empty database. `sequence` is the last one known to have been used (0: none).
    #[must_use]
    pub fn new(
        identity: Identity,
        network: NetworkId,
        limits: Limits,
        sequence: u64,
        timers: FloodTimers,
    ) -> Self {
        let lsdb = Lsdb::new(network, identity.id(), limits);
        let flooding = Flooding::new(identity, lsdb, sequence, timers);
        Self {
            flooding,
            graph: Graph::default(),
            traffic: OnceCell::new(),
            control: OnceCell::new(),
        }
    }

    /// Takes in LSAs of a snapshot (see [`Lsdb::export`]); what is not valid is skipped. Returns how many were taken.
    pub fn restore<'a>(
        &mut self,
        now: Micros,
        lsas: impl IntoIterator<Item = (u16, &'a [u8])>,
    ) -> usize {
        let lsdb = self.flooding.lsdb_mut();
        let taken = |(age_s, encoded)| {
            matches!(
                lsdb.insert(now, encoded, age_s),
                lsdb::Outcome::Newer { .. }
            )
        };
        let count = lsas.into_iter().map(taken).filter(|taken| *taken).count();
        self.update();
        count
    }

    /// The database.
    #[must_use]
    pub fn lsdb(&self) -> &Lsdb {
        self.flooding.lsdb()
    }

    /// The flooding, to look at.
    #[must_use]
    pub fn flooding(&self) -> &Flooding {
        &self.flooding
    }

    /// The confirmed links, as of the last [`Topology::update`].
    #[must_use]
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Whose topology it is.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.lsdb().own()
    }

    /// Brings the graph up to date. Returns the nodes whose advertisement changed, came or went since the last call.
    pub fn update(&mut self) -> BTreeSet<NodeId> {
        let changed = self.flooding.lsdb_mut().take_changes();
        let before = self.graph.version();
        let lsdb = self.flooding.lsdb();
        for id in &changed {
            self.graph
                .update(*id, |id| lsdb.get(id).map(|entry| &entry.lsa));
        }
        if self.graph.version() != before {
            self.traffic = OnceCell::new();
            self.control = OnceCell::new();
        }
        changed
    }

    /// See [`Flooding::on_message`].
    pub fn on_message(
        &mut self,
        now: Micros,
        from: NodeId,
        message: &[u8],
    ) -> Result<(), MessageError> {
        self.flooding.on_message(now, from, message)
    }

    /// See [`Flooding::on_neighbour_up`].
    pub fn on_neighbour_up(&mut self, now: Micros, id: NodeId) -> bool {
        self.flooding.on_neighbour_up(now, id)
    }

    /// See [`Flooding::on_neighbour_down`].
    pub fn on_neighbour_down(&mut self, id: &NodeId) {
        self.flooding.on_neighbour_down(id);
    }

    /// See [`Flooding::originate`].
    pub fn originate(&mut self, now: Micros, content: LsaContent) {
        self.flooding.originate(now, content);
    }

    /// See [`Flooding::withdraw`].
    pub fn withdraw(&mut self, now: Micros) {
        self.flooding.withdraw(now);
    }

    /// See [`Flooding::handle_timeout`].
    pub fn handle_timeout(&mut self, now: Micros) {
        self.flooding.handle_timeout(now);
    }

    /// See [`Flooding::poll_timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        self.flooding.poll_timeout()
    }

    /// See [`Flooding::poll_transmit`].
    pub fn poll_transmit(&mut self, now: Micros) -> Option<(NodeId, Bytes)> {
        self.flooding.poll_transmit(now)
    }

    /// Shortest paths from this node, computed when first asked for after a change.
    #[must_use]
    pub fn tree(&self, usage: TreeUse) -> Option<&Tree> {
        let cell = match usage {
            TreeUse::Traffic => &self.traffic,
            TreeUse::Control => &self.control,
        };
        cell.get_or_init(|| Tree::compute(&self.graph, self.own(), usage))
            .as_ref()
    }

    /// Cost from this node to another; none where there is no path.
    #[must_use]
    pub fn cost(&self, usage: TreeUse, to: &NodeId) -> Option<u32> {
        self.tree(usage)?.cost(&self.graph, to)
    }

    /// The neighbour to hand a routed control message for `to` to.
    #[must_use]
    pub fn control_next_hop(&self, to: &NodeId) -> Option<NodeId> {
        self.tree(TreeUse::Control)?.next_hop(&self.graph, to)
    }

    /// The cheapest path from this node to another under the constraints.
    pub fn path(&self, to: NodeId, constraints: &Constraints) -> Result<Path, NoPath> {
        cspf::path(&self.graph, self.own(), to, constraints)
    }

    /// The path with its reasons.
    #[must_use]
    pub fn why(&self, to: NodeId, constraints: &Constraints) -> why::Explanation {
        why::explain(self, self.own(), to, constraints)
    }

    /// The node an address leads to: overlay address, or longest advertised prefix with a path.
    #[must_use]
    pub fn by_destination(&self, destination: std::net::IpAddr) -> Option<NodeId> {
        self.lsdb()
            .by_destination(destination, |id| self.cost(TreeUse::Traffic, id))
    }
}
