//! One node: all state machines composed.

pub mod config;
pub(crate) mod context;
mod event;
pub(crate) mod forwarding;
pub mod views;

use std::collections::BTreeMap;

pub use config::{AcceptRoutes, Config, Limits, Timers};
pub use event::Event;

use crate::{
    identity::NodeId,
    io::{Input, Micros, Output, Randomness},
};

/// Why a node cannot be made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NodeError {
    /// The configuration is not usable.
    #[error("configuration field `{field}`: {what}")]
    Config {
        /// Which field.
        field: &'static str,
        /// What is wrong and what would be right.
        what: String,
    },
    /// The snapshot is not one, is damaged, or of another node, network or version.
    #[error("snapshot: {0}")]
    Snapshot(String),
}

/// The composition.
#[derive(Debug)]
pub struct Node {}

#[allow(
    unused_variables,
    clippy::unused_self,
    clippy::todo,
    reason = "skeleton, filled in next"
)]
impl Node {
    /// A node that begins from nothing.
    pub fn new(config: Config, rng: Box<dyn Randomness>, now: Micros) -> Result<Self, NodeError> {
        todo!()
    }

    /// A node that goes on where the one that made the snapshot stopped: links, slots, next hops, groups, labels and
    /// LSPs through and to it. The first outputs describe its tables completely (see `DataplaneOp::Restored`).
    ///
    /// Before these are drained the caller must store [`Node::snapshot`] durably: it reserves fresh AEAD counters, and
    /// a later resume from the older snapshot would use them again.
    pub fn resume(
        config: Config,
        snapshot: &[u8],
        rng: Box<dyn Randomness>,
        now: Micros,
    ) -> Result<Self, NodeError> {
        todo!()
    }

    /// Takes one input.
    pub fn handle_input(&mut self, now: Micros, input: Input<'_>) {
        todo!()
    }

    /// Does what is due by `now`. To be called when `poll_timeout` has passed.
    pub fn handle_timeout(&mut self, now: Micros) {
        todo!()
    }

    /// The next thing to do; drain until there is none.
    pub fn poll_output(&mut self) -> Option<Output> {
        todo!()
    }

    /// When `handle_timeout` is wanted next.
    pub fn poll_timeout(&self) -> Option<Micros> {
        todo!()
    }

    /// State that must survive a restart. Holds keys: to be stored 0600.
    pub fn snapshot(&mut self) -> Vec<u8> {
        todo!()
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        todo!()
    }

    /// Neighbours' addresses.
    pub fn peers(&self, now: Micros) -> Vec<views::PeerView> {
        todo!()
    }

    /// Directed links of this node.
    pub fn links(&self, now: Micros) -> Vec<views::LinkView> {
        todo!()
    }

    /// The LSDB.
    pub fn nodes(&self, now: Micros) -> Vec<views::NodeView> {
        todo!()
    }

    /// LSPs that begin, pass and end here.
    pub fn lsps(&self, now: Micros) -> Vec<views::LspView> {
        todo!()
    }

    /// Destinations: overlay addresses (/128) and prefixes.
    pub fn routes(&self, now: Micros) -> Vec<views::RouteView> {
        todo!()
    }

    /// Sessions.
    pub fn sessions(&self, now: Micros) -> Vec<views::SessionView> {
        todo!()
    }

    /// The path chosen to a node, and what was refused.
    pub fn why(
        &self,
        now: Micros,
        to: NodeId,
        constraints: &views::PathConstraints,
    ) -> views::WhyView {
        todo!()
    }

    /// Counters by name.
    pub fn counters(&self) -> BTreeMap<&'static str, u64> {
        todo!()
    }
}
