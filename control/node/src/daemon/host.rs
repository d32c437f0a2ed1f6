//! Following the host: interfaces and addresses that come and go, neighbours, routes, host names of peers.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::sync::mpsc;
use weft_abi::NextHopIndex;
use weft_client::config::{Config, XdpMode};
use weft_core::io::{Command, ForwardMode, Input};

use super::{Daemon, SETTLE, keep, now, warn};
use crate::{
    netlink::{host::Change as HostEvent, xdp},
    state::record::Change,
};

/// Addresses of one host name that are tried.
const MAX_ADDRESSES: usize = 4;
/// How long one look-up of a name may take.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(10);

impl Daemon {
    /// Takes what netlink told.
    pub(super) async fn host_changed(&mut self, changes: Vec<HostEvent>) {
        let underlay = changes.iter().any(|change| change.underlay);
        let routes = changes.iter().any(|change| change.routes);
        for (link, neighbour) in changes.iter().filter_map(|change| change.neighbour) {
            self.to_look.extend(self.resolver.through(link, neighbour));
        }
        if underlay || routes {
            // Changes come in bursts (an address, its routes, ...): one look after them is enough.
            tokio::time::sleep(SETTLE).await;
            self.to_look = self.resolver.indices();
        }
        if underlay {
            self.underlay_changed().await;
        }
    }

    /// Attaches to what is new, forgets what is gone, and tells plane, workers and core.
    pub(super) async fn underlay_changed(&mut self) {
        let links: BTreeMap<u32, _> = self
            .rules
            .links(&self.host)
            .map(|(index, link)| (index, (link.name.clone(), link.up, link.mac)))
            .collect();
        for index in self.modes.keys().copied().collect::<Vec<_>>() {
            if !links.contains_key(&index) {
                if let Err(error) = self.plane.detach(index) {
                    tracing::debug!(%error, index, "detaching from an interface that is gone");
                }
                self.modes.remove(&index);
                self.reasons.remove(&index);
            }
        }
        let names: Vec<String> = links.values().map(|(name, ..)| name.clone()).collect();
        let gone = |change: &Change| matches!(change, Change::Xdp { interface } if !names.contains(interface));
        keep(&mut self.notices, self.record.remove(gone));
        for (index, (name, up, mac)) in links {
            if !self.modes.contains_key(&index) && up {
                self.attach(index, &name, mac.is_some());
            }
        }
        self.redirects_changed();
        self.serve_directly();
        self.send_directly();

        let local: Vec<_> = self
            .host
            .addresses
            .iter()
            .filter(|address| address.usable)
            .map(|address| address.address)
            .collect();
        if let Some(routes) = &mut self.routes {
            let advertised = &routes.policy.advertise;
            let source = local.iter().copied().find(|address| {
                address.is_ipv4() && advertised.iter().any(|prefix| prefix.contains(*address))
            });
            self.routes_changed |= routes.source != source;
            routes.source = source;
        }
        if let Err(error) = self.plane.set_local_addresses(&local) {
            warn(
                &mut self.notices,
                "addresses",
                format!("telling the kernel's plane of local addresses: {error}"),
            );
        }
        let addresses = self.rules.addresses(&self.host, &self.modes);
        if addresses.is_empty() {
            let text =
                "no underlay address: no interface that is up and allowed under [listen] has one"
                    .to_owned();
            if self.notices.get("underlay") != Some(&text) {
                warn(&mut self.notices, "underlay", text);
            }
        } else {
            self.notices.remove("underlay");
        }
        self.shared.listening.store(Arc::new(
            addresses.iter().map(|address| address.address).collect(),
        ));
        self.shared.modes.store(Arc::new(
            self.modes
                .iter()
                .map(|(index, mode)| (*index, *mode))
                .collect(),
        ));
        if addresses != self.underlay {
            self.underlay = addresses;
            if let Some(routes) = &mut self.routes {
                routes.default_mtu = super::underlay::default_inner_mtu(&self.underlay);
                self.routes_changed = true;
            }
            self.node.handle_input(
                now(),
                Input::Underlay {
                    addresses: &self.underlay,
                },
            );
        }
    }

    /// Finds out which interfaces take what the XDP program redirects to them. A kernel that does not tell is taken to
    /// have drivers that do.
    pub(super) fn redirects_changed(&mut self) {
        let Some(features) = self.features else {
            return;
        };
        let known = match features.read() {
            Ok(known) => known,
            Err(error) => {
                tracing::warn!(%error, "reading the XDP features of interfaces; they stay as they were");
                return;
            }
        };
        let deaf = |index: &u32| known.get(index).is_some_and(|f| f & xdp::NDO_XMIT == 0);
        let native = self.modes.iter();
        let native = native.filter(|(_, mode)| **mode == ForwardMode::KernelNative);
        let deaf: HashSet<u32> = native.map(|(index, _)| *index).filter(deaf).collect();
        for index in deaf.symmetric_difference(&self.no_redirects) {
            let interface = self.host.links.get(index).map_or("?", |link| &link.name);
            let takes = !deaf.contains(index);
            tracing::info!(
                interface,
                takes,
                "whether it takes packets that the kernel redirects to it"
            );
        }
        self.plane.set_no_redirects(deaf.clone());
        self.no_redirects = deaf;
    }

    fn attach(&mut self, index: u32, name: &str, ethernet: bool) {
        let mode = self.config.xdp.mode;
        let refused = match (&self.plane_reason, mode) {
            (Some(reason), _) => Some(reason.clone()),
            (None, XdpMode::Off) => Some("`mode = \"off\"` under [xdp]".to_owned()),
            (None, _) if !ethernet => Some("it is no Ethernet interface".to_owned()),
            (None, _) => None,
        };
        if let Some(reason) = refused {
            self.modes.insert(index, ForwardMode::UserSpace);
            self.reasons.insert(index, reason);
            return;
        }
        keep(
            &mut self.notices,
            self.record.add([Change::Xdp {
                interface: name.to_owned(),
            }]),
        );
        let wanted: &[ForwardMode] = match mode {
            XdpMode::Native => &[ForwardMode::KernelNative],
            XdpMode::Generic => &[ForwardMode::KernelGeneric],
            XdpMode::Auto | XdpMode::Off => {
                &[ForwardMode::KernelNative, ForwardMode::KernelGeneric]
            }
        };
        let mut report = self.plane.attach_in(name, index, wanted);
        // An earlier run with another configuration may have attached it otherwise.
        if report.mode != ForwardMode::UserSpace && !wanted.contains(&report.mode) {
            if let Err(error) = self.plane.detach(index) {
                tracing::warn!(%error, interface = name, "detaching");
            }
            report = self.plane.attach_in(name, index, wanted);
        }
        self.modes.insert(index, report.mode);
        self.reasons
            .insert(index, report.reason.unwrap_or_default());
        if self.modes.get(&index) == Some(&ForwardMode::UserSpace) {
            let gone =
                |change: &Change| matches!(change, Change::Xdp { interface } if interface == name);
            keep(&mut self.notices, self.record.remove(gone));
        }
        let (mode, reason) = (self.modes[&index], &self.reasons[&index]);
        tracing::info!(interface = name, ?mode, %reason, "underlay interface");
    }

    /// Looks next hops up anew and tells plane and core what changed.
    pub(super) async fn look(&mut self, mut indices: Vec<NextHopIndex>) {
        indices.sort_unstable();
        indices.dedup();
        for index in indices {
            let update = match self.resolver.look(index, &self.netlink, &self.host).await {
                Ok(Some(update)) => update,
                Ok(None) => continue,
                Err(error) => {
                    tracing::warn!(%error, "looking up how a neighbour is reached");
                    continue;
                }
            };
            let Some(hop) = self.resolver.get(index).cloned() else {
                continue;
            };
            if let Some(Some(address)) = self.hops.get_mut(index.0 as usize) {
                address.interface = hop.link;
                self.hops_changed = true;
            }
            if update.egress {
                self.set_egress(index, hop.egress);
            }
            if update.state {
                let input = Input::NextHopState {
                    next_hop: index,
                    resolved: hop.resolved,
                    mtu: hop.mtu,
                };
                self.node.handle_input(now(), input);
            }
        }
    }

    pub(super) async fn update_routes(&mut self) {
        let Some(routes) = &mut self.routes else {
            return;
        };
        let (made, recorded) = routes
            .update(&self.store, &self.netlink, &mut self.record)
            .await;
        match made {
            Ok(()) => {
                self.notices.remove("routes");
            }
            Err(error) => warn(&mut self.notices, "routes", error.to_string()),
        }
        keep(&mut self.notices, recorded);
    }

    /// A host name among the peers has these addresses now.
    pub(super) fn name_resolved(&mut self, name: &str, addresses: Vec<SocketAddr>) {
        let old = self
            .peers_by_name
            .insert(name.to_owned(), addresses.clone())
            .unwrap_or_default();
        let others: Vec<_> = self
            .peers_by_name
            .iter()
            .filter(|(other, _)| *other != name)
            .flat_map(|(_, list)| list.clone())
            .collect();
        for remote in addresses.iter().filter(|address| !old.contains(address)) {
            let id = self.command_id();
            self.node.handle_input(
                now(),
                Input::Command {
                    id,
                    command: Command::AddPeer { remote: *remote },
                },
            );
        }
        for remote in old
            .iter()
            .filter(|address| !addresses.contains(address) && !others.contains(address))
        {
            let id = self.command_id();
            self.node.handle_input(
                now(),
                Input::Command {
                    id,
                    command: Command::RemovePeer { remote: *remote },
                },
            );
        }
    }
}

/// Looks the host names among the peers up, again and again.
pub(super) async fn resolve_names(config: Config, found: mpsc::Sender<(String, Vec<SocketAddr>)>) {
    let names: Vec<_> = config
        .peers
        .iter()
        .filter(|peer| peer.host.parse::<std::net::IpAddr>().is_err())
        .cloned()
        .collect();
    if names.is_empty() {
        return;
    }
    let mut failed: HashMap<String, bool> = HashMap::new();
    loop {
        let mut again = config.timers.resolve;
        for peer in &names {
            let lookup = tokio::net::lookup_host((peer.host.as_str(), peer.port));
            let result = match tokio::time::timeout(RESOLVE_PATIENCE, lookup).await {
                Ok(Ok(addresses)) => Ok(addresses.take(MAX_ADDRESSES).collect::<Vec<_>>()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(_) => Err("no answer in time".to_owned()),
            };
            match result {
                Ok(mut addresses) if !addresses.is_empty() => {
                    addresses.sort_unstable();
                    failed.remove(&peer.host);
                    if found.send((peer.to_string(), addresses)).await.is_err() {
                        return;
                    }
                }
                other => {
                    let error = other
                        .err()
                        .unwrap_or_else(|| "the name has no address".to_owned());
                    // The addresses of the last success stay in use.
                    if failed.insert(peer.host.clone(), true).is_none() {
                        tracing::warn!(peer = %peer, %error, "the peer's name has no address now; it is tried again");
                    }
                    again = again.min(Duration::from_secs(10));
                }
            }
        }
        tokio::time::sleep(again).await;
    }
}
