//! Requests of the API, answered from the core's views, the data path and the forwarding plane.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};
use weft_client::api::{self, Call};
use weft_core::{
    identity::NodeId,
    io::{Answer, Command, CommandId, Input, Micros},
    node::views,
};

use super::{Daemon, End, now};
use crate::api::{
    Ask, Reply,
    answer::{self, Names, millis},
    pong,
};

/// Requests that wait for the core.
const MAX_WAITING: usize = 1024;
/// When they are forgotten.
const FORGET: Duration = Duration::from_secs(60);

/// Of a native interface.
const NO_REDIRECTS: &str = "its driver takes no redirected packets (NDO_XMIT is not among its XDP features), so what goes \
    out here is sent by weftd; on a veth pair, turn GRO on or attach XDP at the far end";

/// A request the core is at work on.
#[derive(Debug)]
pub(super) struct Waiting {
    kind: WaitingKind,
    reply: mpsc::Sender<Reply>,
    since: Instant,
}

#[derive(Debug)]
enum WaitingKind {
    Plain,
    Ping,
    Trace,
}

fn json(value: impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

impl Daemon {
    pub(super) fn command_id(&mut self) -> CommandId {
        self.next_command += 1;
        CommandId(self.next_command)
    }

    /// Takes one request.
    pub(super) fn ask(&mut self, Ask { call, reply }: Ask) {
        let started = match call {
            Call::AddPeer { address } => self
                .resolve_peer(&address)
                .map(|remote| (Command::AddPeer { remote }, WaitingKind::Plain)),
            Call::RemovePeer { address } => self
                .resolve_peer(&address)
                .map(|remote| (Command::RemovePeer { remote }, WaitingKind::Plain)),
            Call::Ping {
                node, payload_len, ..
            } => self
                .resolve_node(&node)
                .map(|to| (Command::Ping { to, payload_len }, WaitingKind::Ping)),
            Call::Trace { node } => self
                .resolve_node(&node)
                .map(|to| (Command::Trace { to }, WaitingKind::Trace)),
            Call::Shutdown { keep_transit } => {
                self.end = Some(if keep_transit {
                    End::KeepTransit
                } else {
                    End::Undo
                });
                let _ = reply.try_send(Reply {
                    result: Ok(Value::Null),
                    last: true,
                });
                return;
            }
            query => {
                let result = self.query(query);
                let _ = reply.try_send(Reply { result, last: true });
                return;
            }
        };
        let (command, kind) = match started {
            Ok(started) => started,
            Err(problem) => {
                let _ = reply.try_send(Reply {
                    result: Err(problem),
                    last: true,
                });
                return;
            }
        };
        if self.waiting.len() >= MAX_WAITING {
            let problem = format!("{MAX_WAITING} requests wait already; try again later");
            let _ = reply.try_send(Reply {
                result: Err(problem),
                last: true,
            });
            return;
        }
        let id = self.command_id();
        self.waiting.insert(
            id,
            Waiting {
                kind,
                reply,
                since: Instant::now(),
            },
        );
        self.node
            .handle_input(now(), Input::Command { id, command });
    }

    /// Passes an answer of the core on.
    pub(super) fn answered(&mut self, id: CommandId, answer: Answer) {
        let Some(waiting) = self.waiting.get(&id) else {
            return;
        };
        let names = self.names();
        let (result, last) = match (answer, &waiting.kind) {
            (Answer::Done, WaitingKind::Trace) => (Ok(Value::Null), true),
            (Answer::Done, _) => (Ok(Value::Null), true),
            (Answer::Pong { rtt, hops }, _) => (Ok(pong(Some(millis(rtt)), hops, None)), true),
            (Answer::Failed { reason }, WaitingKind::Ping) => {
                (Ok(pong(None, 0, Some(reason))), true)
            }
            (Answer::Failed { reason }, _) => (Err(reason), true),
            (
                Answer::TraceHop {
                    hop,
                    node,
                    label,
                    rtt,
                    mode,
                    last,
                },
                _,
            ) => {
                let hop = api::TraceHop {
                    hop,
                    node_id: Some(node.to_string()),
                    name: Some(names.of(node)),
                    label: label.map(|label| label.0),
                    rtt_ms: Some(millis(rtt)),
                    mode: Some(answer::mode(mode)),
                };
                (json(hop), last)
            }
            (Answer::TraceTimeout { hop }, _) => {
                let hop = api::TraceHop {
                    hop,
                    node_id: None,
                    name: None,
                    label: None,
                    rtt_ms: None,
                    mode: None,
                };
                (json(hop), false)
            }
        };
        // A client that does not keep up loses the rest.
        let gone = waiting.reply.try_send(Reply { result, last }).is_err();
        if last || gone {
            self.waiting.remove(&id);
        }
    }

    pub(super) fn forget_old_asks(&mut self) {
        self.waiting
            .retain(|_, waiting| waiting.since.elapsed() < FORGET && !waiting.reply.is_closed());
    }

    fn names(&self) -> Names {
        Names::new(&self.node.nodes(now()), self.node.id(), &self.config.name)
    }

    fn resolve_node(&self, text: &str) -> Result<NodeId, String> {
        let nodes = self.node.nodes(now());
        let node = Names::new(&nodes, self.node.id(), &self.config.name).resolve(text, &nodes)?;
        if node == self.node.id() {
            return Err(format!("`{text}` is this node itself"));
        }
        Ok(node)
    }

    fn resolve_peer(&self, text: &str) -> Result<std::net::SocketAddr, String> {
        let peer: weft_client::config::PeerAddress = text.parse()?;
        let address = peer
            .host
            .parse()
            .map_err(|_| format!("{text:?} is a host name; use its address here, or put it under `peers` in the configuration"))?;
        Ok(std::net::SocketAddr::new(address, peer.port))
    }

    fn query(&mut self, call: Call) -> Result<Value, String> {
        let at = now();
        match call {
            Call::Status => json(self.status(at)),
            Call::Host => json(
                self.record
                    .changes()
                    .iter()
                    .map(|change| change.describe())
                    .collect::<Vec<_>>(),
            ),
            Call::Peers => json(
                self.node
                    .peers(at)
                    .into_iter()
                    .map(answer::peer)
                    .collect::<Vec<_>>(),
            ),
            Call::Links => json(
                self.node
                    .links(at)
                    .into_iter()
                    .map(answer::link)
                    .collect::<Vec<_>>(),
            ),
            Call::Nodes => {
                let names = self.names();
                json(
                    self.node
                        .nodes(at)
                        .into_iter()
                        .map(|node| answer::node(node, &names))
                        .collect::<Vec<_>>(),
                )
            }
            Call::Lsps => {
                let names = self.names();
                let sent = self.sent_by_peer();
                let lsps: Vec<_> = self
                    .node
                    .lsps(at)
                    .into_iter()
                    .map(|lsp| {
                        let (packets, bytes) = match lsp.in_label {
                            Some(label) => {
                                let counted = self.plane.label_counters(label);
                                (counted.packets, counted.bytes)
                            }
                            None if lsp.protection == Some(views::Protection::Primary) => lsp
                                .path
                                .last()
                                .and_then(|peer| sent.get(peer))
                                .copied()
                                .unwrap_or_default(),
                            None => (0, 0),
                        };
                        answer::lsp(lsp, &names, packets, bytes)
                    })
                    .collect();
                json(lsps)
            }
            Call::Routes => {
                let names = self.names();
                let routes: Vec<_> = self
                    .node
                    .routes(at)
                    .into_iter()
                    .map(|route| {
                        let installed = self.routes.as_ref().is_some_and(|routes| {
                            routes.is_installed(route.prefix, route.prefix_len)
                        });
                        answer::route(route, &names, installed)
                    })
                    .collect();
                json(routes)
            }
            Call::Sessions => json(self.sessions(at)),
            Call::Counters => json(self.counters()),
            Call::Why { node, constraints } => {
                let to = self.resolve_node(&node)?;
                let resolve = |list: &[String]| {
                    list.iter()
                        .map(|node| self.resolve_node(node))
                        .collect::<Result<Vec<_>, _>>()
                };
                let positive = |value: Option<f64>, name: &str| match value {
                    Some(value) if !value.is_finite() || value < 0.0 => {
                        Err(format!("{name} is {value}; use a positive number"))
                    }
                    value => Ok(value),
                };
                let constraints = views::PathConstraints {
                    include: resolve(&constraints.include)?,
                    avoid: resolve(&constraints.avoid)?,
                    max_delay: positive(constraints.max_delay_ms, "max_delay_ms")?
                        .map(|ms| Micros((ms * 1000.0) as u64)),
                    min_capacity_kbps: positive(
                        constraints.min_bandwidth_mbps,
                        "min_bandwidth_mbps",
                    )?
                    .map(|mbps| (mbps * 1000.0) as u32),
                };
                let names = self.names();
                json(answer::why(self.node.why(at, to, &constraints), &names))
            }
            Call::AddPeer { .. }
            | Call::RemovePeer { .. }
            | Call::Ping { .. }
            | Call::Trace { .. }
            | Call::Shutdown { .. } => Err("this call is no query".to_owned()),
        }
    }

    fn status(&self, at: Micros) -> api::Status {
        let network = self.shared.sessions.load();
        let links = self.node.links(at);
        let mut neighbours: Vec<_> = links
            .iter()
            .filter(|link| link.state != views::LinkState::Down)
            .map(|link| link.node)
            .collect();
        neighbours.sort_unstable();
        neighbours.dedup();
        let interfaces = self
            .rules
            .links(&self.host)
            .map(|(index, link)| api::Interface {
                name: link.name.clone(),
                up: link.up && link.carrier,
                mtu: link.mtu,
                addresses: self
                    .underlay
                    .iter()
                    .filter(|address| address.interface == link.name)
                    .map(|address| address.address)
                    .collect(),
                mode: self
                    .modes
                    .get(&index)
                    .map_or(api::ForwardMode::UserSpace, |mode| answer::mode(*mode)),
                reason: match self.reasons.get(&index) {
                    _ if self.no_redirects.contains(&index) => NO_REDIRECTS.to_owned(),
                    Some(reason) => reason.clone(),
                    None => "it is down".to_owned(),
                },
            })
            .collect();
        let mut notices: Vec<String> = self.notices.values().cloned().collect();
        notices.extend(self.routes.iter().flat_map(super::routes::Routes::refusals));
        let sessions = self.node.sessions(at);
        let prefix = match network.overlay.address {
            std::net::IpAddr::V6(prefix) => prefix.octets(),
            std::net::IpAddr::V4(_) => [0; 16],
        };
        api::Status {
            api_version: api::API_VERSION,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            node_id: self.node.id().to_string(),
            name: self.config.name.clone(),
            network_id: weft_client::secrets::hex(&prefix[1..6]),
            overlay_address: network.own,
            tun: self.tun.as_ref().map(|tun| tun.name().to_owned()),
            port: self.config.listen.port,
            uptime_s: self.started.elapsed().as_secs(),
            resumed: self.resumed,
            interfaces,
            neighbours: neighbours.len(),
            nodes: self.node.nodes(at).len(),
            sessions: sessions
                .iter()
                .filter(|session| session.state == views::SessionState::Up)
                .count(),
            lsps: self.node.lsps(at).len(),
            notices,
        }
    }

    fn sessions(&self, at: Micros) -> Vec<api::SessionInfo> {
        use std::sync::atomic::Ordering::Relaxed;
        self.node
            .sessions(at)
            .into_iter()
            .map(|view| {
                let count = |pick: fn(
                    &crate::data::session::SessionCounters,
                ) -> &std::sync::atomic::AtomicU64| {
                    self.store
                        .session(view.index)
                        .map_or(0, |session| pick(&session.counters).load(Relaxed))
                };
                api::SessionInfo {
                    node_id: view.node.to_string(),
                    name: view.name,
                    overlay_address: view.address,
                    state: match view.state {
                        views::SessionState::Establishing => "establishing",
                        views::SessionState::Up => "up",
                        views::SessionState::NoPath => "no_path",
                    }
                    .to_owned(),
                    cipher: view.cipher.map_or("", |cipher| cipher.name()).to_owned(),
                    epoch: view.epoch,
                    key_age_s: view.key_age.as_secs(),
                    tx_packets: count(|c| &c.tx_packets),
                    tx_bytes: count(|c| &c.tx_bytes),
                    rx_packets: count(|c| &c.rx_packets),
                    rx_bytes: count(|c| &c.rx_bytes),
                    inner_mtu: view.inner_mtu,
                }
            })
            .collect()
    }

    fn counters(&self) -> api::Counters {
        let counted = self.plane.counters();
        let verdicts = |counts: &crate::dataplane::Counts| -> BTreeMap<String, u64> {
            weft_abi::Verdict::ALL
                .iter()
                .zip(&counts.verdicts)
                .map(|(name, count)| (name.name().to_owned(), *count))
                .collect()
        };
        let drops = |counts: &crate::dataplane::Counts| -> BTreeMap<String, u64> {
            weft_abi::DropReason::ALL
                .iter()
                .zip(&counts.drops)
                .map(|(name, count)| (name.name().to_owned(), *count))
                .collect()
        };
        api::Counters {
            xdp: verdicts(&counted.kernel),
            xdp_drops: drops(&counted.kernel),
            user: verdicts(&counted.user),
            user_drops: drops(&counted.user),
            sessions: self.shared.counters.snapshot(),
            control: self
                .node
                .counters()
                .into_iter()
                .map(|(name, count)| (name.to_owned(), count))
                .collect(),
        }
    }
}
