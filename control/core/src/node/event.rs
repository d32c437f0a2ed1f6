//! What is worth a log line, structured.

use std::{fmt, net::SocketAddr};

use crate::{identity::NodeId, io::UnderlayPath};

/// Something worth a log line. `Display` gives the line.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variant's sentence names its fields")]
pub enum Event {
    /// A link's keys were agreed on with a neighbour.
    LinkEstablished {
        node: NodeId,
        name: String,
        path: UnderlayPath,
    },
    /// A direction of a link came up or went down, and why.
    LinkState {
        node: NodeId,
        path: UnderlayPath,
        outgoing: bool,
        up: bool,
        why: &'static str,
    },
    /// A link moved to other addresses.
    LinkMoved {
        node: NodeId,
        from: UnderlayPath,
        to: UnderlayPath,
    },
    /// New keys on a link.
    LinkRekeyed {
        node: NodeId,
        path: UnderlayPath,
        epoch: u64,
    },
    /// A link ended, and why.
    LinkClosed {
        node: NodeId,
        path: UnderlayPath,
        why: &'static str,
    },
    /// A handshake failed, and why.
    HandshakeRefused { remote: SocketAddr, why: String },
    /// The neighbour's daemon went silent while its forwarding plane answers, or is back.
    ControlSilent { node: NodeId, silent: bool },
    /// A node entered (or left) the LSDB.
    NodeKnown {
        node: NodeId,
        name: String,
        known: bool,
    },
    /// An LSP of this node is up, by way of these nodes.
    LspUp {
        to: NodeId,
        path: Vec<NodeId>,
        standby: bool,
    },
    /// An LSP of this node broke, and why.
    LspBroken {
        to: NodeId,
        path: Vec<NodeId>,
        why: String,
    },
    /// Traffic moved to another LSP, and why.
    LspSwitched {
        to: NodeId,
        path: Vec<NodeId>,
        why: &'static str,
    },
    /// A session got (new) keys.
    SessionKeyed {
        peer: NodeId,
        epoch: u8,
        cipher: &'static str,
    },
    /// A session ended, and why.
    SessionClosed { peer: NodeId, why: &'static str },
    /// A bound was hit; reported once per minute and name at most.
    LimitHit { what: &'static str },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = |path: &[NodeId]| {
            path.iter()
                .map(NodeId::short)
                .collect::<Vec<_>>()
                .join(" → ")
        };
        match self {
            Self::LinkEstablished { node, name, path } => {
                write!(
                    f,
                    "link with {name} ({}) over {} – {} established",
                    node.short(),
                    path.local,
                    path.remote
                )
            }
            Self::LinkState {
                node,
                path,
                outgoing,
                up,
                why,
            } => write!(
                f,
                "link {} {} over {} – {} is {}: {why}",
                if *outgoing { "to" } else { "from" },
                node.short(),
                path.local,
                path.remote,
                if *up { "up" } else { "down" }
            ),
            Self::LinkMoved { node, from, to } => write!(
                f,
                "link with {} moved from {} – {} to {} – {}",
                node.short(),
                from.local,
                from.remote,
                to.local,
                to.remote
            ),
            Self::LinkRekeyed { node, path, epoch } => {
                write!(
                    f,
                    "link with {} over {} – {} has new keys, epoch {epoch}",
                    node.short(),
                    path.local,
                    path.remote
                )
            }
            Self::LinkClosed { node, path, why } => {
                write!(
                    f,
                    "link with {} over {} – {} closed: {why}",
                    node.short(),
                    path.local,
                    path.remote
                )
            }
            Self::HandshakeRefused { remote, why } => {
                write!(f, "handshake with {remote} refused: {why}")
            }
            Self::ControlSilent { node, silent: true } => {
                write!(
                    f,
                    "control plane of {} is silent, its forwarding plane answers: links are kept",
                    node.short()
                )
            }
            Self::ControlSilent {
                node,
                silent: false,
            } => write!(f, "control plane of {} is back", node.short()),
            Self::NodeKnown { node, name, known } => {
                write!(
                    f,
                    "node {name} ({}) {}",
                    node.short(),
                    if *known { "is known" } else { "is gone" }
                )
            }
            Self::LspUp { to, path, standby } => write!(
                f,
                "{} LSP to {} is up: {}",
                if *standby { "standby" } else { "primary" },
                to.short(),
                way(path)
            ),
            Self::LspBroken { to, path, why } => {
                write!(f, "LSP to {} broke: {}: {why}", to.short(), way(path))
            }
            Self::LspSwitched { to, path, why } => {
                write!(f, "traffic to {} now goes {}: {why}", to.short(), way(path))
            }
            Self::SessionKeyed {
                peer,
                epoch,
                cipher,
            } => {
                write!(
                    f,
                    "session with {} has keys of epoch {epoch}, {cipher}",
                    peer.short()
                )
            }
            Self::SessionClosed { peer, why } => {
                write!(f, "session with {} closed: {why}", peer.short())
            }
            Self::LimitHit { what } => write!(f, "a bound was hit: {what}"),
        }
    }
}
