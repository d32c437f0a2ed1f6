//! The host's routes into the overlay: the network's /48, a /128 per session with its own MTU, and the prefixes that
//! others advertise. What is wanted is computed whole; only differences are made.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
};

use weft_client::config::{Prefix, Routes as Policy};
use weft_core::io::RouteEntry;

use crate::{
    data::session::Store,
    netlink::{HostRoute, Netlink, NetlinkError},
    state::{
        StateError,
        record::{Change, Record},
    },
};

/// Routes that are kept at most; more are refused by name.
const MAX_ROUTES: usize = 4096;
/// Prefixes named for one reason of refusal.
const NAMED: usize = 8;

/// The manager.
#[derive(Debug)]
pub(crate) struct Routes {
    pub(crate) policy: Policy,
    pub(crate) overlay: Prefix,
    pub(crate) tun: u32,
    pub(crate) tun_name: String,
    /// MTU of the overlay's route.
    pub(crate) default_mtu: u32,
    /// An IPv4 address of this host inside a prefix it advertises: its own packets to IPv4 prefixes come from there,
    /// for the interface has no IPv4 address, and the other end drops what comes from elsewhere.
    pub(crate) source: Option<IpAddr>,
    installed: HashMap<(IpAddr, u8), HostRoute>,
    refused: HashMap<(IpAddr, u8), String>,
}

impl Routes {
    pub(crate) fn new(
        policy: Policy,
        overlay: Prefix,
        tun: u32,
        tun_name: String,
        default_mtu: u32,
    ) -> Self {
        Self {
            policy,
            overlay,
            tun,
            tun_name,
            default_mtu,
            source: None,
            installed: HashMap::new(),
            refused: HashMap::new(),
        }
    }

    /// Whether a prefix stands in the kernel's table.
    pub(crate) fn is_installed(&self, prefix: IpAddr, prefix_len: u8) -> bool {
        self.installed.contains_key(&(prefix, prefix_len))
            || self
                .installed
                .contains_key(&(self.overlay.address, self.overlay.len))
                && self.overlay.covers(&Prefix {
                    address: prefix,
                    len: prefix_len,
                })
    }

    /// Why prefixes of others are not routed: one line for each reason.
    pub(crate) fn refusals(&self) -> Vec<String> {
        let mut by_reason = BTreeMap::<&str, BTreeSet<(IpAddr, u8)>>::new();
        for (prefix, why) in &self.refused {
            by_reason.entry(why).or_default().insert(*prefix);
        }
        let line = |(why, prefixes): (&str, BTreeSet<(IpAddr, u8)>)| {
            let named = prefixes.iter().take(NAMED);
            let named: Vec<_> = named.map(|(ip, len)| format!("{ip}/{len}")).collect();
            let more = match prefixes.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            format!("no route to {}{more}: {why}", named.join(", "))
        };
        by_reason.into_iter().map(line).collect()
    }

    fn wanted(&mut self, store: &Store) -> HashMap<(IpAddr, u8), HostRoute> {
        let mut wanted = HashMap::new();
        let mut want = |prefix: Prefix, mtu: Option<u32>| {
            let route = HostRoute {
                prefix: prefix.address,
                prefix_len: prefix.len,
                link: self.tun,
                metric: self.policy.metric,
                mtu,
                source: self.source.filter(|_| prefix.address.is_ipv4()),
            };
            wanted.insert((prefix.address, prefix.len), route);
        };
        want(self.overlay, Some(self.default_mtu));
        let mut mtus = HashMap::new();
        for session in store.sessions() {
            if let Some(ingress) = session.ingress {
                mtus.insert(session.address, u32::from(ingress.inner_mtu));
                want(
                    Prefix {
                        address: session.address.into(),
                        len: 128,
                    },
                    Some(u32::from(ingress.inner_mtu)),
                );
            }
        }
        for route in store.routes() {
            if let Ok(prefix) = Prefix::new(route.prefix, route.prefix_len) {
                let mtu = mtus.get(&route.address).copied();
                want(prefix, Some(mtu.unwrap_or(self.default_mtu)));
            }
        }
        wanted
    }

    /// Those of the advertised destinations that the policy accepts. What it refuses is neither sent to nor taken as
    /// the source of a packet; nobody can advertise addresses of the overlay itself.
    pub(crate) fn accepted(&mut self, advertised: Vec<RouteEntry>) -> Vec<RouteEntry> {
        self.refused.clear();
        let (policy, overlay, refused) = (&self.policy, self.overlay, &mut self.refused);
        let accepted = |route: &RouteEntry| {
            let Ok(prefix) = Prefix::new(route.prefix, route.prefix_len) else {
                return false;
            };
            if overlay.contains(prefix.address) {
                return false;
            }
            let Err(why) = accepts(policy, overlay, prefix) else {
                return true;
            };
            if refused.len() < MAX_ROUTES {
                refused.insert((prefix.address, prefix.len), why.to_owned());
            }
            false
        };
        advertised.into_iter().filter(accepted).collect()
    }

    /// Makes the host's routes what they should be now. The first error is returned, the rest is done.
    pub(crate) async fn update(
        &mut self,
        store: &Store,
        netlink: &Netlink,
        record: &mut Record,
    ) -> (Result<(), NetlinkError>, Result<(), StateError>) {
        let wanted = self.wanted(store);
        let gone: Vec<_> = self
            .installed
            .iter()
            .filter(|(key, _)| !wanted.contains_key(key))
            .map(|(_, r)| r.clone())
            .collect();
        let new: Vec<_> = wanted
            .into_iter()
            .filter(|(key, route)| self.installed.get(key) != Some(route))
            .map(|(_, route)| route)
            .take(
                MAX_ROUTES
                    .saturating_sub(self.installed.len())
                    .max(gone.len()),
            )
            .collect();
        let mut result = Ok(());
        let mut recorded = record.add(new.iter().map(|route| self.change(route)));
        for route in &gone {
            match netlink.remove_route(route).await {
                Ok(()) => {
                    self.installed.remove(&(route.prefix, route.prefix_len));
                }
                Err(error) => result = result.and(Err(error)),
            }
        }
        for route in &new {
            match netlink.set_route(route).await {
                Ok(()) => {
                    self.installed
                        .insert((route.prefix, route.prefix_len), route.clone());
                }
                Err(error) => {
                    self.refused
                        .insert((route.prefix, route.prefix_len), error.to_string());
                    result = result.and(Err(error));
                }
            }
        }
        if !gone.is_empty() {
            let changes: Vec<_> = gone.iter().map(|route| self.change(route)).collect();
            recorded = recorded.and(record.remove(|change| changes.contains(change)));
        }
        (result, recorded)
    }

    /// Removes all of them.
    pub(crate) async fn remove_all(&mut self, netlink: &Netlink) {
        for (_, route) in self.installed.drain() {
            if let Err(error) = netlink.remove_route(&route).await {
                tracing::warn!(%error, "a route stays until the interface goes");
            }
        }
    }

    fn change(&self, route: &HostRoute) -> Change {
        Change::Route {
            interface: self.tun_name.clone(),
            prefix: format!(
                "{}/{} metric {}",
                route.prefix, route.prefix_len, route.metric
            ),
        }
    }
}

fn accepts(policy: &Policy, overlay: Prefix, prefix: Prefix) -> Result<(), &'static str> {
    if !policy.accept_only.is_empty() {
        return if policy
            .accept_only
            .iter()
            .any(|allowed| allowed.covers(&prefix))
        {
            Ok(())
        } else {
            Err("it lies in none of `accept_only` under [routes]")
        };
    }
    if !policy.accept {
        return Err(
            "this node accepts no prefixes; name it in `accept_only` under [routes] if it is theirs",
        );
    }
    if prefix.covers(&overlay) && prefix.len > 0 {
        return Err("it covers the network's own addresses");
    }
    if prefix.len == 0 {
        return Err("a default route is only accepted where `accept_only` under [routes] names it");
    }
    let special = match prefix.address {
        IpAddr::V4(address) => {
            address.is_loopback()
                || address.is_link_local()
                || address.is_multicast()
                || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_multicast()
        }
    };
    if special {
        return Err("it is no prefix of hosts");
    }
    if policy.advertise.iter().any(|own| own.covers(&prefix)) {
        return Err("this node advertises it itself");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_holds() {
        let overlay: Prefix = "fd00:1:2::/48".parse().unwrap();
        let policy = |accept, only: &[&str]| Policy {
            advertise: vec!["10.9.0.0/16".parse().unwrap()],
            accept,
            accept_only: only.iter().map(|prefix| prefix.parse().unwrap()).collect(),
            metric: 512,
        };
        let open = policy(true, &[]);
        for (prefix, ok) in [
            ("10.1.0.0/16", true),
            ("2001:db8::/32", true),
            ("0.0.0.0/0", false),
            ("::/0", false),
            ("fd00::/8", false),
            ("127.0.0.0/8", false),
            ("fe80::/10", false),
            ("224.0.0.0/4", false),
            ("10.9.1.0/24", false),
            ("10.0.0.0/8", true),
        ] {
            assert_eq!(
                accepts(&open, overlay, prefix.parse().unwrap()).is_ok(),
                ok,
                "{prefix}"
            );
        }
        let only = policy(true, &["10.1.0.0/16", "0.0.0.0/0"]);
        assert!(accepts(&only, overlay, "0.0.0.0/0".parse().unwrap()).is_ok());
        assert!(accepts(&only, overlay, "10.2.0.0/16".parse().unwrap()).is_ok());
        assert!(accepts(&only, overlay, "2001:db8::/32".parse().unwrap()).is_err());
        assert!(accepts(&policy(false, &[]), overlay, "10.1.0.0/16".parse().unwrap()).is_err());
        let listed = policy(false, &["10.1.0.0/16"]);
        assert!(accepts(&listed, overlay, "10.1.7.0/24".parse().unwrap()).is_ok());
        assert!(accepts(&listed, overlay, "10.2.0.0/16".parse().unwrap()).is_err());
    }
    #[test]
    fn what_the_policy_refuses_is_no_destination_and_no_source() {
        let policy = Policy {
            advertise: vec![],
            accept: true,
            accept_only: vec!["10.1.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            metric: 512,
        };
        let overlay = "fd00:1:2::/48".parse().unwrap();
        let mut routes = Routes::new(policy, overlay, 1, "weft0".into(), 1400);
        let entry = |prefix: &str, prefix_len| RouteEntry {
            prefix: prefix.parse().unwrap(),
            prefix_len,
            node: weft_core::identity::NodeId([2; 32]),
            address: "fd00:1:2::2".parse().unwrap(),
            cost: Some(1),
        };
        let accepted = routes.accepted(vec![
            entry("10.1.2.0", 24),
            entry("10.2.0.0", 16),
            // Another node's overlay address.
            entry("fd00:1:2::3", 128),
        ]);
        assert_eq!(accepted, vec![entry("10.1.2.0", 24)]);
        assert_eq!(
            routes.refusals(),
            ["no route to 10.2.0.0/16: it lies in none of `accept_only` under [routes]"]
        );

        // As it is where nobody said otherwise.
        let none = Policy {
            accept: false,
            accept_only: vec![],
            ..routes.policy.clone()
        };
        let mut routes = Routes::new(none, overlay, 1, "weft0".into(), 1400);
        let many = (0..12).map(|n| entry(&format!("10.{n}.0.0"), 16)).collect();
        assert_eq!(routes.accepted(many), vec![]);
        let [line] = &routes.refusals()[..] else {
            panic!("{:?}", routes.refusals());
        };
        assert!(
            line.contains("10.0.0.0/16, 10.1.0.0/16")
                && line.contains("and 4 more")
                && line.contains("accept_only"),
            "{line}"
        );
    }
}
