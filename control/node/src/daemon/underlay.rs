//! Which interfaces and addresses of this host are the underlay.

use std::{collections::BTreeMap, net::IpAddr};

use weft_client::config::{Listen, Prefix};
use weft_core::io::{ForwardMode, UnderlayAddress};

use super::resolver::MAX_MTU;
use crate::netlink::host::{Host, Link};

/// The rules.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) listen: Listen,
    pub(crate) tun_name: String,
    pub(crate) overlay: Prefix,
}

impl Rules {
    /// Whether links may run over the interface.
    pub(crate) fn takes(&self, link: &Link) -> bool {
        if link.name == self.tun_name || self.listen.exclude_interfaces.contains(&link.name) {
            return false;
        }
        if self.listen.interfaces.is_empty() {
            // Someone else's tunnel is not taken by itself: it may well run over us.
            !link.loopback && !link.point_to_point
        } else {
            self.listen.interfaces.contains(&link.name)
        }
    }

    fn takes_address(&self, address: IpAddr) -> bool {
        if !self.listen.addresses.is_empty() {
            return self.listen.addresses.contains(&address);
        }
        let link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        !link_local
            && !address.is_loopback()
            && !address.is_multicast()
            && !self.overlay.contains(address)
    }

    /// The underlay's interfaces, by index.
    pub(crate) fn links<'a>(&'a self, host: &'a Host) -> impl Iterator<Item = (u32, &'a Link)> {
        host.links
            .iter()
            .filter(|(_, link)| self.takes(link))
            .map(|(index, link)| (*index, link))
    }

    /// The addresses links may start from.
    pub(crate) fn addresses(
        &self,
        host: &Host,
        modes: &BTreeMap<u32, ForwardMode>,
    ) -> Vec<UnderlayAddress> {
        let mut addresses: Vec<_> = host
            .addresses
            .iter()
            .filter(|address| address.usable && self.takes_address(address.address))
            .filter_map(|address| {
                let link = host
                    .links
                    .get(&address.link)
                    .filter(|link| self.takes(link))?;
                Some(UnderlayAddress {
                    address: address.address,
                    interface: link.name.clone(),
                    prefix_len: address.prefix_len,
                    mtu: link.mtu.min(MAX_MTU) as u16,
                    up: link.up && link.carrier,
                    mode: modes
                        .get(&address.link)
                        .copied()
                        .unwrap_or(ForwardMode::UserSpace),
                })
            })
            .collect();
        addresses.sort_by_key(|address| address.address);
        addresses.dedup_by_key(|address| address.address);
        addresses
    }
}

/// No path worth having carries less.
const MIN_INNER_MTU: u32 = 576;

/// The MTU of the overlay's route before a path is known: what fits the smallest underlay, in the larger encapsulation.
pub(crate) fn default_inner_mtu(addresses: &[UnderlayAddress]) -> u32 {
    let smallest = addresses
        .iter()
        .filter(|address| address.up)
        .map(|address| u32::from(address.mtu))
        .min();
    let overhead = 48 + crate::data::outbound::OVERHEAD as u32;
    smallest
        .unwrap_or(1500)
        .saturating_sub(overhead)
        .max(MIN_INNER_MTU)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::host::HostAddress;

    fn host() -> Host {
        let link = |name: &str, loopback, point_to_point| Link {
            name: name.into(),
            up: true,
            carrier: true,
            mtu: 1500,
            mac: None,
            loopback,
            point_to_point,
            veth: false,
        };
        let address = |link, text: &str| HostAddress {
            link,
            address: text.parse().unwrap(),
            prefix_len: 24,
            usable: true,
        };
        Host {
            links: [
                (1, link("lo", true, false)),
                (2, link("eth0", false, false)),
                (3, link("eth1", false, false)),
                (4, link("weft0", false, true)),
                (5, link("wg0", false, true)),
            ]
            .into(),
            addresses: vec![
                address(1, "127.0.0.1"),
                address(2, "192.0.2.1"),
                address(2, "fe80::1"),
                address(3, "2001:db8::1"),
                address(4, "fd00:1:2::1"),
                address(5, "10.0.0.1"),
            ],
            ..Host::default()
        }
    }

    fn rules(interfaces: &[&str], exclude: &[&str], addresses: &[&str]) -> Rules {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Rules {
            listen: Listen {
                port: 1,
                addresses: addresses
                    .iter()
                    .map(|address| address.parse().unwrap())
                    .collect(),
                interfaces: names(interfaces),
                exclude_interfaces: names(exclude),
                capacity_mbps: 0,
            },
            tun_name: "weft0".into(),
            overlay: "fd00:1:2::/48".parse().unwrap(),
        }
    }

    #[test]
    fn the_rules_choose() {
        let host = host();
        let chosen = |rules: &Rules| -> Vec<String> {
            rules
                .addresses(&host, &BTreeMap::new())
                .iter()
                .map(|a| a.address.to_string())
                .collect()
        };
        assert_eq!(chosen(&rules(&[], &[], &[])), ["192.0.2.1", "2001:db8::1"]);
        assert_eq!(chosen(&rules(&[], &["eth0"], &[])), ["2001:db8::1"]);
        assert_eq!(chosen(&rules(&["wg0"], &[], &[])), ["10.0.0.1"]);
        assert_eq!(chosen(&rules(&[], &[], &["192.0.2.1"])), ["192.0.2.1"]);
        assert_eq!(chosen(&rules(&["weft0"], &[], &[])), [""; 0]);
    }
}
