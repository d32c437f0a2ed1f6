//! What the kernel told of this host's links, addresses and neighbours, kept up to date by events.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
};

use rtnetlink::packet_route::{
    RouteNetlinkMessage,
    address::{AddressAttribute, AddressFlags, AddressMessage},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::RouteProtocol,
};

use super::ROUTE_PROTOCOL;

/// Neighbour entries remembered; the kernel has its own bound, this one holds against surprises.
const MAX_NEIGHBOURS: usize = 16_384;

/// A link layer address.
pub type Mac = [u8; 6];

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// Administratively up.
    pub up: bool,
    /// With carrier.
    pub carrier: bool,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Its own address, where it is an Ethernet.
    pub mac: Option<Mac>,
    /// The loopback.
    pub loopback: bool,
    /// Point-to-point: a tunnel or a serial line.
    pub point_to_point: bool,
    /// An end of a virtual pair.
    pub veth: bool,
}

/// An address of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddress {
    /// Interface index.
    pub link: u32,
    /// The address.
    pub address: IpAddr,
    /// Length of its on-link prefix.
    pub prefix_len: u8,
    /// Not tentative, failed or deprecated.
    pub usable: bool,
}

/// What an event changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Links or addresses.
    pub underlay: bool,
    /// Routes (not kept here).
    pub routes: bool,
    /// The neighbour entry of an address on an interface.
    pub neighbour: Option<(u32, IpAddr)>,
}

/// The view.
#[derive(Clone, Debug, Default)]
pub struct Host {
    /// By index.
    pub links: BTreeMap<u32, Link>,
    /// All of them.
    pub addresses: Vec<HostAddress>,
    pub(crate) neighbours: HashMap<(u32, IpAddr), Mac>,
    /// Those of the neighbours that somebody entered by hand.
    pub(crate) fixed: HashSet<(u32, IpAddr)>,
}

impl Host {
    /// Takes one message, of a dump or an event.
    pub fn apply(&mut self, message: &RouteNetlinkMessage) -> Change {
        let mut change = Change::default();
        match message {
            RouteNetlinkMessage::NewLink(message) => change.underlay = self.add_link(message),
            RouteNetlinkMessage::DelLink(message) => {
                change.underlay = self.links.remove(&message.header.index).is_some();
                self.addresses
                    .retain(|address| address.link != message.header.index);
                self.neighbours
                    .retain(|(link, _), _| *link != message.header.index);
            }
            RouteNetlinkMessage::NewAddress(message) => {
                if let Some(address) = parse_address(message) {
                    let old = self
                        .addresses
                        .iter_mut()
                        .find(|old| (old.link, old.address) == (address.link, address.address));
                    match old {
                        Some(old) if *old == address => {}
                        Some(old) => {
                            *old = address;
                            change.underlay = true;
                        }
                        None => {
                            self.addresses.push(address);
                            change.underlay = true;
                        }
                    }
                }
            }
            RouteNetlinkMessage::DelAddress(message) => {
                if let Some(gone) = parse_address(message) {
                    let before = self.addresses.len();
                    self.addresses.retain(|address| {
                        (address.link, address.address) != (gone.link, gone.address)
                    });
                    change.underlay = self.addresses.len() != before;
                }
            }
            RouteNetlinkMessage::NewNeighbour(message) => {
                change.neighbour = self.add_neighbour(message, false)
            }
            RouteNetlinkMessage::DelNeighbour(message) => {
                change.neighbour = self.add_neighbour(message, true)
            }
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
                // Our own routes lead into the overlay: no next hop is affected.
                change.routes = route.header.protocol != RouteProtocol::Other(ROUTE_PROTOCOL);
            }
            _ => {}
        }
        change
    }

    /// The link layer address of a neighbour, where it is known well enough to send to.
    pub fn neighbour(&self, link: u32, address: IpAddr) -> Option<Mac> {
        self.neighbours.get(&(link, address)).copied()
    }

    /// The interface an address of this host is on.
    pub fn link_of(&self, address: IpAddr) -> Option<u32> {
        self.addresses
            .iter()
            .find(|own| own.address == address)
            .map(|own| own.link)
    }

    fn add_link(&mut self, message: &LinkMessage) -> bool {
        let flags = message.header.flags;
        let mut link = Link {
            name: String::new(),
            up: flags.contains(LinkFlags::Up),
            carrier: flags.contains(LinkFlags::LowerUp),
            mtu: 0,
            mac: None,
            loopback: flags.contains(LinkFlags::Loopback),
            point_to_point: flags.contains(LinkFlags::Pointopoint),
            veth: false,
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::Address(address)
                    if message.header.link_layer_type == LinkLayerType::Ether =>
                {
                    link.mac = address.as_slice().try_into().ok();
                }
                LinkAttribute::LinkInfo(info) => {
                    link.veth = info.contains(&LinkInfo::Kind(InfoKind::Veth));
                }
                _ => {}
            }
        }
        // Wireless and bridge ports send messages of their own kind, without a name.
        if link.name.is_empty() {
            return false;
        }
        self.links.insert(message.header.index, link.clone()) != Some(link)
    }

    /// Whether the neighbour's entry was made by hand: asking the kernel to confirm it would lose it.
    pub fn is_fixed(&self, link: u32, address: IpAddr) -> bool {
        self.fixed.contains(&(link, address))
    }

    fn add_neighbour(&mut self, message: &NeighbourMessage, gone: bool) -> Option<(u32, IpAddr)> {
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(destination)) => {
                    address = Some(IpAddr::from(*destination));
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(destination)) => {
                    address = Some(IpAddr::from(*destination));
                }
                NeighbourAttribute::LinkLayerAddress(bytes) => {
                    mac = Mac::try_from(bytes.as_slice()).ok()
                }
                _ => {}
            }
        }
        let key = (message.header.ifindex, address?);
        let known = matches!(
            message.header.state,
            NeighbourState::Reachable
                | NeighbourState::Stale
                | NeighbourState::Delay
                | NeighbourState::Probe
                | NeighbourState::Permanent
        );
        if message.header.state == NeighbourState::Permanent && !gone {
            if self.fixed.len() < MAX_NEIGHBOURS {
                self.fixed.insert(key);
            }
        } else {
            self.fixed.remove(&key);
        }
        let old = match mac.filter(|_| known && !gone) {
            Some(mac)
                if self.neighbours.len() < MAX_NEIGHBOURS || self.neighbours.contains_key(&key) =>
            {
                if self.neighbours.get(&key) == Some(&mac) {
                    return None;
                }
                self.neighbours.insert(key, mac)
            }
            _ => Some(self.neighbours.remove(&key)?),
        };
        let _ = old;
        Some(key)
    }
}

fn parse_address(message: &AddressMessage) -> Option<HostAddress> {
    let mut address = None;
    let mut local = None;
    let mut flags = AddressFlags::from_bits_retain(u32::from(message.header.flags.bits()));
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Address(value) => address = Some(*value),
            AddressAttribute::Local(value) => local = Some(*value),
            AddressAttribute::Flags(value) => flags = *value,
            _ => {}
        }
    }
    let unusable = AddressFlags::Tentative | AddressFlags::Dadfailed | AddressFlags::Deprecated;
    Some(HostAddress {
        link: message.header.index,
        // Of a point-to-point address, `Address` is the other end's.
        address: local.or(address)?,
        prefix_len: message.header.prefix_len,
        usable: !flags.intersects(unusable) || flags.contains(AddressFlags::Optimistic),
    })
}
