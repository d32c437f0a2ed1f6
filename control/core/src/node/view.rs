//! What a node answers about itself.

use super::{Node, views::*};
use crate::{
    identity::NodeId,
    io::Micros,
    lsp::{Role, SourceState},
    topology::cspf::{Constraints, TreeUse},
};

impl Node {
    /// Neighbours' addresses.
    #[must_use]
    pub fn peers(&self, now: Micros) -> Vec<PeerView> {
        self.links.peer_views(now)
    }

    /// Directed links of this node.
    #[must_use]
    pub fn links(&self, _now: Micros) -> Vec<LinkView> {
        self.links.link_views()
    }

    /// The LSDB.
    #[must_use]
    pub fn nodes(&self, now: Micros) -> Vec<NodeView> {
        let network = self.config.network.network_id();
        let entries = self
            .topology
            .lsdb()
            .iter()
            .filter(|(_, entry)| !entry.withdrawn());
        entries
            .map(|(id, entry)| {
                let content = &entry.lsa.content;
                let mut sends_to: Vec<_> = content.sends.iter().map(|link| link.to).collect();
                sends_to.dedup();
                NodeView {
                    node: *id,
                    name: content.name.clone(),
                    address: id.overlay_address(&network),
                    sequence: entry.lsa.sequence,
                    age: Micros::from_secs(entry.age_s(now).into()),
                    cost: if *id == self.id() {
                        Some(0)
                    } else {
                        self.topology.cost(TreeUse::Traffic, id)
                    },
                    sends_to,
                    prefixes: content
                        .prefixes
                        .iter()
                        .map(|p| (p.address(), p.len()))
                        .collect(),
                }
            })
            .collect()
    }

    /// LSPs that begin, pass and end here.
    #[must_use]
    pub fn lsps(&self, now: Micros) -> Vec<LspView> {
        let begin = self.lsps.sources().map(|(id, source)| LspView {
            role: LspRole::Ingress,
            protection: self.sessions.protection(*id),
            state: match source.state {
                SourceState::Signalling => LspState::Signalling,
                SourceState::Up if self.sessions.is_retiring(*id) => LspState::Closing,
                SourceState::Up => LspState::Up,
                SourceState::Broken => LspState::Broken,
            },
            in_label: None,
            out_label: source.label,
            from: None,
            to: Some(source.first_hop()),
            path: source.path.clone(),
            inner_mtu: source.label.map(|_| source.inner_mtu()),
            age: now.since(source.since),
        });
        let passing = self.lsps.passing().map(|pass| LspView {
            role: if matches!(pass.role, Role::Egress { .. }) {
                LspRole::Egress
            } else {
                LspRole::Transit
            },
            protection: None,
            state: match (pass.is_up(), pass.told_broken) {
                (false, _) => LspState::Signalling,
                (true, false) => LspState::Up,
                (true, true) => LspState::Broken,
            },
            in_label: pass.in_label,
            out_label: pass.out_label(),
            from: Some(pass.predecessor),
            to: pass.successor(),
            path: Vec::new(),
            inner_mtu: None,
            age: now.since(pass.since),
        });
        begin.chain(passing).collect()
    }

    /// Destinations: overlay addresses (/128) and prefixes.
    #[must_use]
    pub fn routes(&self, now: Micros) -> Vec<RouteView> {
        let name = |node: &NodeId| {
            self.topology
                .lsdb()
                .get(node)
                .map(|e| e.lsa.content.name.clone())
                .unwrap_or_default()
        };
        let view = |prefix, prefix_len, node: NodeId, cost| {
            let used = self.sessions.path_to(&self.lsps, &node);
            RouteView {
                prefix,
                prefix_len,
                node,
                name: name(&node),
                mtu: used.as_ref().map(|(_, mtu)| *mtu),
                path: used.map(|(path, _)| path).unwrap_or_default(),
                cost,
            }
        };
        let nodes = self.nodes(now).into_iter().filter(|n| n.node != self.id());
        let own: Vec<_> = nodes
            .map(|n| view(n.address.into(), 128, n.node, n.cost))
            .collect();
        let behind = self
            .routes
            .iter()
            .map(|r| view(r.prefix, r.prefix_len, r.node, r.cost));
        own.into_iter().chain(behind).collect()
    }

    /// Sessions.
    #[must_use]
    pub fn sessions(&self, now: Micros) -> Vec<SessionView> {
        self.sessions
            .views(now, &self.topology, &self.config.network.network_id())
    }

    /// The path chosen to a node, and what was refused.
    #[must_use]
    pub fn why(&self, _now: Micros, to: NodeId, constraints: &PathConstraints) -> WhyView {
        let constraints = Constraints {
            include: constraints.include.clone(),
            avoid: constraints.avoid.iter().copied().collect(),
            max_delay_us: constraints.max_delay.map(|delay| delay.0),
            min_bandwidth_kbps: constraints.min_capacity_kbps,
            ..Constraints::default()
        };
        let explained = self.topology.why(to, &constraints);
        let chosen = explained
            .path
            .as_ref()
            .map(|path| path.nodes())
            .unwrap_or_default();
        let standby = Constraints {
            disjoint_from: chosen.clone(),
            ..constraints
        };
        let standby = if chosen.is_empty() {
            None
        } else {
            self.topology.path(to, &standby).ok()
        };
        let standby = standby
            .map(|path| path.nodes())
            .filter(|path| *path != chosen)
            .unwrap_or_default();
        let used = self
            .sessions
            .path_to(&self.lsps, &to)
            .map(|(path, _)| path)
            .filter(|path| *path != chosen);
        let in_use = used.map(|path| {
            let way: Vec<_> = path.iter().map(NodeId::short).collect();
            format!(
                "{}: a better path is taken only when it has been clearly better for a while",
                way.join(" → ")
            )
        });
        WhyView {
            node: to,
            cost: explained.path.as_ref().ok().map(|path| path.cost),
            path: explained.hops,
            standby,
            in_use,
            refused: explained.refused,
            no_path: explained.path.err().map(|why| why.to_string()),
        }
    }
}
