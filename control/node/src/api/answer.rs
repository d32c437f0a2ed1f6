//! The core's views as the API's types.

use std::collections::HashMap;

use weft_client::api;
use weft_core::{
    identity::NodeId,
    io::{ForwardMode, Micros},
    node::views,
};

/// Milliseconds, to the microsecond.
pub fn millis(time: Micros) -> f64 {
    time.0 as f64 / 1000.0
}

/// The API's word for a mode.
pub fn mode(mode: ForwardMode) -> api::ForwardMode {
    match mode {
        ForwardMode::KernelNative => api::ForwardMode::KernelNative,
        ForwardMode::KernelGeneric => api::ForwardMode::KernelGeneric,
        ForwardMode::UserSpace => api::ForwardMode::UserSpace,
    }
}

/// Names of the nodes known.
#[derive(Debug, Default)]
pub struct Names(HashMap<NodeId, String>);

impl Names {
    /// From the LSDB and this node's own name.
    pub fn new(nodes: &[views::NodeView], own: NodeId, name: &str) -> Self {
        let mut names: HashMap<_, _> = nodes
            .iter()
            .map(|node| (node.node, node.name.clone()))
            .collect();
        names.insert(own, name.to_owned());
        Self(names)
    }

    /// The name; the beginning of the id where there is none.
    pub fn of(&self, node: NodeId) -> String {
        self.0
            .get(&node)
            .filter(|name| !name.is_empty())
            .cloned()
            .unwrap_or_else(|| node.short())
    }

    fn path(&self, path: &[NodeId]) -> Vec<String> {
        path.iter().map(|node| self.of(*node)).collect()
    }

    /// Finds a node by id, overlay address, name, or a beginning of its id that fits one node alone.
    pub fn resolve(&self, text: &str, nodes: &[views::NodeView]) -> Result<NodeId, String> {
        if let Ok(id) = text.parse::<NodeId>() {
            return Ok(id);
        }
        if let Ok(address) = text.parse::<std::net::Ipv6Addr>() {
            return nodes
                .iter()
                .find(|node| node.address == address)
                .map(|node| node.node)
                .ok_or_else(|| {
                    format!("no known node has the overlay address {address}; see `weft routes`")
                });
        }
        let one = |mut found: Vec<NodeId>, what: &str| -> Option<Result<NodeId, String>> {
            found.sort_unstable();
            found.dedup();
            match found.as_slice() {
                [] => None,
                [node] => Some(Ok(*node)),
                several => {
                    let ids: Vec<_> = several.iter().map(NodeId::short).collect();
                    Some(Err(format!(
                        "`{text}` is the {what} of several nodes: {}; use more of the id",
                        ids.join(", ")
                    )))
                }
            }
        };
        let by_name = self
            .0
            .iter()
            .filter(|(_, name)| *name == text)
            .map(|(node, _)| *node)
            .collect();
        if let Some(found) = one(by_name, "name") {
            return found;
        }
        let hex = text.len() >= 2 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        let begins = |node: &NodeId| node.to_string().starts_with(&text.to_ascii_lowercase());
        let by_prefix = if hex {
            self.0.keys().copied().filter(begins).collect()
        } else {
            vec![]
        };
        one(by_prefix, "beginning of the id").unwrap_or_else(|| {
            Err(format!("no node is known as `{text}`; use a name, an id, a beginning of an id or an overlay address"))
        })
    }
}

/// A neighbour.
pub fn peer(view: views::PeerView) -> api::Peer {
    api::Peer {
        address: view.remote,
        node_id: view.node.map(|node| node.to_string()),
        name: view.name,
        source: match view.source {
            views::PeerSource::Configured => "configured",
            views::PeerSource::Added => "added",
            views::PeerSource::Heard => "heard",
        }
        .to_owned(),
        state: match view.state {
            views::PeerState::Connecting => "connecting",
            views::PeerState::Established => "established",
            views::PeerState::Lost => "lost",
        }
        .to_owned(),
        detail: view.detail,
        rtt_ms: view.rtt.map(millis),
    }
}

/// A link.
pub fn link(view: views::LinkView) -> api::Link {
    api::Link {
        direction: match view.direction {
            views::Direction::Out => "out",
            views::Direction::In => "in",
        }
        .to_owned(),
        node_id: view.node.to_string(),
        name: view.name,
        local: view.local,
        remote: view.remote,
        state: match view.state {
            views::LinkState::Up => "up",
            views::LinkState::Down => "down",
            views::LinkState::OneWay => "one_way",
        }
        .to_owned(),
        cost: view.cost,
        loss: view.loss,
        rtt_ms: view.rtt.map(millis),
        jitter_ms: view.jitter.map(millis),
        capacity_mbps: view.capacity_kbps.map(|kbps| f64::from(kbps) / 1000.0),
        mtu: view.mtu,
        epoch: view.epoch,
        slot: view.slot.0,
        mode: mode(view.mode),
    }
}

/// A node of the LSDB.
pub fn node(view: views::NodeView, names: &Names) -> api::Node {
    api::Node {
        node_id: view.node.to_string(),
        name: view.name,
        overlay_address: view.address,
        sequence: view.sequence,
        age_s: view.age.as_secs(),
        reachable: view.cost.is_some(),
        cost: view.cost,
        sends_to: names.path(&view.sends_to),
        prefixes: view
            .prefixes
            .iter()
            .map(|(address, len)| format!("{address}/{len}"))
            .collect(),
    }
}

/// An LSP; packets and bytes are the caller's.
pub fn lsp(view: views::LspView, names: &Names, packets: u64, bytes: u64) -> api::Lsp {
    api::Lsp {
        role: match view.role {
            views::LspRole::Ingress => "ingress",
            views::LspRole::Transit => "transit",
            views::LspRole::Egress => "egress",
        }
        .to_owned(),
        protection: match view.protection {
            Some(views::Protection::Primary) => "primary",
            Some(views::Protection::Standby) => "standby",
            None => "",
        }
        .to_owned(),
        state: match view.state {
            views::LspState::Signalling => "signalling",
            views::LspState::Up => "up",
            views::LspState::Broken => "broken",
            views::LspState::Closing => "closing",
        }
        .to_owned(),
        in_label: view.in_label.map(|label| label.0),
        out_label: view.out_label.map(|label| label.0),
        from: view.from.map(|node| names.of(node)),
        to: view.to.map(|node| names.of(node)),
        path: names.path(&view.path),
        inner_mtu: view.inner_mtu,
        age_s: view.age.as_secs(),
        packets,
        bytes,
    }
}

/// A destination.
pub fn route(view: views::RouteView, names: &Names, installed: bool) -> api::Route {
    api::Route {
        prefix: format!("{}/{}", view.prefix, view.prefix_len),
        node_id: view.node.to_string(),
        name: view.name,
        path: names.path(&view.path),
        cost: view.cost,
        mtu: view.mtu,
        installed,
    }
}

/// The reasoning behind a path.
pub fn why(view: views::WhyView, names: &Names) -> api::Why {
    api::Why {
        node_id: view.node.to_string(),
        name: names.of(view.node),
        path: view
            .path
            .into_iter()
            .map(|hop| api::WhyHop {
                from: names.of(hop.from),
                to: names.of(hop.to),
                cost: hop.cost,
                because: hop.because,
            })
            .collect(),
        cost: view.cost,
        standby: names.path(&view.standby),
        in_use: view.in_use,
        refused: view
            .refused
            .into_iter()
            .map(|refused| api::Refused {
                what: match refused.what {
                    (from, Some(to)) => format!("{}→{}", names.of(from), names.of(to)),
                    (node, None) => names.of(node),
                },
                reason: refused.reason.to_owned(),
                detail: refused.detail,
            })
            .collect(),
        no_path: view.no_path,
    }
}
