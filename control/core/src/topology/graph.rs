//! The confirmed links of the link-state database as a graph, kept up to date node by node.
//!
//! An edge A→B exists while A's LSA says it sends and B's LSA says it hears the same [`LinkId`]; parallel links make one
//! edge. All figures are the receiver's. One changed LSA costs time in proportion to that node's neighbours.

use std::collections::HashMap;

use super::lsa::{LinkId, Lsa, Measured};
use crate::identity::NodeId;

/// One of the parallel links of an edge, confirmed by both ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfirmedLink {
    /// Which.
    pub link: LinkId,
    /// The sender's MTU, bytes of IP packet.
    pub mtu: u16,
    /// The sender's capability bits.
    pub capability: u8,
    /// The receiver's figures.
    pub measured: Measured,
}

/// All confirmed links from one node to another; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Index of the receiver.
    pub(super) to: u32,
    /// Of the best link.
    pub(super) cost: u32,
    /// Lowest cost first, then lowest link id.
    pub(super) links: Vec<ConfirmedLink>,
}

#[derive(Clone, Debug)]
pub(super) struct GraphNode {
    pub(super) id: NodeId,
    pub(super) overload: bool,
    pub(super) no_transit: bool,
    /// Ascending by the receiver's id.
    pub(super) out: Vec<Edge>,
    /// Indices of the nodes with an edge to this one, ascending by their id.
    pub(super) into: Vec<u32>,
}

/// The graph. Indices are stable while a node stays.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub(super) nodes: Vec<Option<GraphNode>>,
    index: HashMap<NodeId, u32>,
    free: Vec<u32>,
    version: u64,
    links: usize,
}

impl Graph {
    /// Changes whenever an edge, a figure of an edge or a transit flag did.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// How many nodes have an LSA.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.index.len()
    }

    /// How many edges are confirmed.
    #[must_use]
    pub fn edge_count(&self) -> usize {
        self.links
    }

    /// Takes in one node's LSA as it is now (none: the node is gone). `lookup` gives the others'.
    pub fn update<'a>(&mut self, id: NodeId, lookup: impl Fn(&NodeId) -> Option<&'a Lsa>) {
        let before = self.find(&id).map(|index| self.detach(index));
        let Some(lsa) = lookup(&id).filter(|lsa| !lsa.content.withdrawn) else {
            if let Some(index) = self.index.remove(&id) {
                self.nodes[index as usize] = None;
                self.free.push(index);
                self.version += 1;
            }
            return;
        };
        let index = self.index_of_or_new(id);
        let content = &lsa.content;
        if let Some(node) = &mut self.nodes[index as usize] {
            (node.overload, node.no_transit) = (content.overload, content.no_transit);
        }
        for group in content.sends.chunk_by(|a, b| a.to == b.to) {
            let to = group[0].to;
            if to != id
                && let Some(&to_index) = self.index.get(&to)
                && let Some(links) = lookup(&to).and_then(|receiver| confirmed(lsa, receiver))
            {
                self.add_edge(index, to_index, links);
            }
        }
        for group in content.hears.chunk_by(|a, b| a.from == b.from) {
            let from = group[0].from;
            if from != id
                && let Some(&from_index) = self.index.get(&from)
                && let Some(links) = lookup(&from).and_then(|sender| confirmed(sender, lsa))
            {
                self.add_edge(from_index, index, links);
            }
        }
        if before.is_none_or(|before| before != self.surroundings(index)) {
            self.version += 1;
        }
    }

    /// All edges: sender, receiver, links.
    pub fn edges(&self) -> impl Iterator<Item = (NodeId, NodeId, &[ConfirmedLink])> {
        let present = self.nodes.iter().flatten();
        present.flat_map(|node| {
            node.out
                .iter()
                .map(|edge| (node.id, self.node(edge.to).id, edge.links.as_slice()))
        })
    }

    /// The edges from one node: receiver, links.
    pub fn edges_from(&self, id: &NodeId) -> impl Iterator<Item = (NodeId, &[ConfirmedLink])> {
        let node = self.find(id).map(|at| self.node(at));
        node.into_iter().flat_map(|node| {
            node.out
                .iter()
                .map(|edge| (self.node(edge.to).id, edge.links.as_slice()))
        })
    }

    /// The index of a node that has an LSA.
    pub(super) fn find(&self, id: &NodeId) -> Option<u32> {
        self.index.get(id).copied()
    }

    /// The node at an index that [`Graph::find`] or an edge gave.
    pub(super) fn node(&self, index: u32) -> &GraphNode {
        self.nodes[index as usize]
            .as_ref()
            .expect("indices of edges and of `find` name present nodes")
    }

    /// The edge between two nodes.
    pub(super) fn edge(&self, from: u32, to: u32) -> Option<&Edge> {
        let id = self.node(to).id;
        let out = &self.node(from).out;
        out.binary_search_by_key(&id, |edge| self.node(edge.to).id)
            .ok()
            .map(|at| &out[at])
    }

    /// One more than the highest index.
    pub(super) fn bound(&self) -> usize {
        self.nodes.len()
    }

    fn index_of_or_new(&mut self, id: NodeId) -> u32 {
        if let Some(&index) = self.index.get(&id) {
            return index;
        }
        let node = GraphNode {
            id,
            overload: false,
            no_transit: false,
            out: Vec::new(),
            into: Vec::new(),
        };
        let index = match self.free.pop() {
            Some(index) => {
                self.nodes[index as usize] = Some(node);
                index
            }
            None => {
                self.nodes.push(Some(node));
                u32::try_from(self.nodes.len() - 1)
                    .expect("the database bounds nodes far below 2^32")
            }
        };
        self.index.insert(id, index);
        index
    }

    fn add_edge(&mut self, from: u32, to: u32, links: Vec<ConfirmedLink>) {
        let (from_id, to_id) = (self.node(from).id, self.node(to).id);
        let at = self
            .node(from)
            .out
            .partition_point(|edge| self.node(edge.to).id < to_id);
        let into_at = self
            .node(to)
            .into
            .partition_point(|&node| self.node(node).id < from_id);
        if let Some(node) = &mut self.nodes[from as usize] {
            let cost = links[0].measured.cost;
            node.out.insert(at, Edge { to, cost, links });
        }
        if let Some(node) = &mut self.nodes[to as usize] {
            node.into.insert(into_at, from);
        }
        self.links += 1;
    }

    /// Removes all edges of a node and says what they were.
    fn detach(&mut self, index: u32) -> Surroundings {
        let surroundings = self.surroundings(index);
        let (out, into) = match &mut self.nodes[index as usize] {
            Some(node) => (
                std::mem::take(&mut node.out),
                std::mem::take(&mut node.into),
            ),
            None => return surroundings,
        };
        self.links -= out.len() + into.len();
        for edge in out {
            if let Some(node) = &mut self.nodes[edge.to as usize] {
                node.into.retain(|&from| from != index);
            }
        }
        for from in into {
            if let Some(node) = &mut self.nodes[from as usize] {
                node.out.retain(|edge| edge.to != index);
            }
        }
        surroundings
    }

    fn surroundings(&self, index: u32) -> Surroundings {
        let node = self.node(index);
        Surroundings {
            flags: (node.overload, node.no_transit),
            out: node.out.clone(),
            into: node
                .into
                .iter()
                .map(|&from| (from, self.edge(from, index).cloned()))
                .collect(),
        }
    }
}

#[derive(PartialEq, Eq)]
struct Surroundings {
    flags: (bool, bool),
    out: Vec<Edge>,
    into: Vec<(u32, Option<Edge>)>,
}

/// The links both ends name, best first; none where there is no such link.
fn confirmed(sender: &Lsa, receiver: &Lsa) -> Option<Vec<ConfirmedLink>> {
    let heard = receiver.content.heard_from(sender.origin);
    let mut links: Vec<_> = sender
        .content
        .sent_to(receiver.origin)
        .iter()
        .filter_map(|send| {
            let hear = &heard[heard
                .binary_search_by_key(&send.link, |hear| hear.link)
                .ok()?];
            Some(ConfirmedLink {
                link: send.link,
                mtu: send.mtu,
                capability: send.capability,
                measured: hear.measured,
            })
        })
        .collect();
    links.sort_by_key(|link| (link.measured.cost, link.link));
    (!links.is_empty()).then_some(links)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Identity, NetworkId},
        topology::lsa::{HearLink, LinkId, LsaContent, Measured, SendLink},
    };

    /// The receiver decides which of the parallel links there are, and what they are like.
    #[test]
    fn a_link_is_there_when_both_ends_name_it() {
        let [a, b] = [1, 2].map(|n| Identity::from_secret(&[n; 32]));
        let measured = |cost| Measured {
            cost,
            ..Measured::UNKNOWN
        };
        let sends = [0, 1, 2].map(|n| SendLink {
            to: b.id(),
            link: LinkId(n),
            mtu: 1500,
            capability: 0,
        });
        let hears = [(1, 30), (2, 20), (7, 1)].map(|(n, cost)| HearLink {
            from: a.id(),
            link: LinkId(n),
            measured: measured(cost),
        });
        let sender = LsaContent {
            sends: sends.to_vec(),
            ..LsaContent::default()
        };
        let hearing = |hears: &[HearLink]| LsaContent {
            hears: hears.to_vec(),
            ..LsaContent::default()
        };
        let sign = |of: &Identity, content| Lsa::sign(of, &NetworkId([7; 5]), 1, 100, content);
        let sender = sign(&a, sender);
        let receiver = sign(&b, hearing(&hears));
        let links = confirmed(&sender, &receiver).unwrap();
        let links: Vec<_> = links.iter().map(|l| (l.link.0, l.measured.cost)).collect();
        assert_eq!(links, [(2, 20), (1, 30)]);
        // Heard on no link that is sent on, and not heard at all.
        for hears in [&hears[2..], &[]] {
            assert_eq!(confirmed(&sender, &sign(&b, hearing(hears))), None);
        }
        assert_eq!(confirmed(&receiver, &sender), None);
    }
}
