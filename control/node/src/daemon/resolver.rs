//! How next hops are reached: for each, the interface, our address on it and the neighbour's, followed through route,
//! link and neighbour events, and told to the forwarding plane.
//!
//! XDP does not confirm neighbours as a socket does, so entries in use are confirmed now and then: where the core knows
//! that packets arrive, that is said to the kernel as an upper layer's word (RFC 4861, 7.3.1), and where it does not,
//! the kernel asks. On a link that goes one way, asking gets no answer, and the word is all there is: an address that
//! was resolved once stays as long as the neighbour hears us, and is tried again after an outage.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use weft_abi::NextHopIndex;
use weft_core::io::UnderlayPath;

use crate::{
    dataplane::Egress,
    netlink::{
        NeighbourState, Netlink, NetlinkError,
        host::{Host, Mac},
    },
};

/// Largest IP packet handed to the core; the data path's buffers bound it.
pub(crate) const MAX_MTU: u32 = 9216;

/// A next hop as far as it is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// Its ends.
    pub(crate) path: UnderlayPath,
    /// Egress interface; 0 while there is no route.
    pub(crate) link: u32,
    /// Who it is sent to on that link.
    pub(crate) neighbour: IpAddr,
    /// Largest IP packet.
    pub(crate) mtu: u16,
    /// What the kernel's plane is told; none: sent through the socket.
    pub(crate) egress: Option<Egress>,
    /// Whether there is a route.
    pub(crate) resolved: bool,
    /// Whether the core knows that packets arrive.
    pub(crate) arrives: bool,
    /// The neighbour's link layer address, as the kernel last knew it.
    pub(crate) known: Option<Mac>,
}

/// What a new look at a next hop changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Update {
    pub(crate) index: NextHopIndex,
    /// Whether the plane must be told.
    pub(crate) egress: bool,
    /// Whether the core must be told.
    pub(crate) state: bool,
}

/// All next hops.
#[derive(Debug, Default)]
pub(crate) struct Resolver {
    hops: HashMap<NextHopIndex, Hop>,
    /// Our own TUN interface, which is no underlay.
    pub(crate) tun: Option<u32>,
}

impl Resolver {
    /// Begins to follow a next hop. Until it is looked up it goes as another between the same ends does: new keys of a
    /// link must not send its packets through the daemon, however short.
    pub(crate) fn add(&mut self, index: NextHopIndex, path: UnderlayPath, mtu: u16) -> &Hop {
        let between = self.hops.values().filter(|hop| hop.path == path);
        let same = between.max_by_key(|hop| hop.egress.is_some());
        let hop = Hop {
            path,
            link: same.map_or(0, |hop| hop.link),
            neighbour: same.map_or(path.remote.ip(), |hop| hop.neighbour),
            mtu,
            egress: same.and_then(|hop| hop.egress),
            resolved: true,
            arrives: true,
            known: same.and_then(|hop| hop.known),
        };
        self.hops.entry(index).insert_entry(hop).into_mut()
    }

    /// Packets on it arrive from now on, or no more.
    pub(crate) fn set_arrives(&mut self, index: NextHopIndex, arrives: bool) {
        if let Some(hop) = self.hops.get_mut(&index) {
            hop.arrives = arrives;
        }
    }

    /// Forgets it.
    pub(crate) fn remove(&mut self, index: NextHopIndex) {
        self.hops.remove(&index);
    }

    /// One of them.
    pub(crate) fn get(&self, index: NextHopIndex) -> Option<&Hop> {
        self.hops.get(&index)
    }

    /// All of them.
    pub(crate) fn indices(&self) -> Vec<NextHopIndex> {
        self.hops.keys().copied().collect()
    }

    /// Those that are sent to this neighbour on this link.
    pub(crate) fn through(&self, link: u32, neighbour: IpAddr) -> Vec<NextHopIndex> {
        self.hops
            .iter()
            .filter(|(_, hop)| (hop.link, hop.neighbour) == (link, neighbour))
            .map(|(index, _)| *index)
            .collect()
    }

    /// Interface to send from and to these addresses, where a next hop with them is resolved; 0 otherwise.
    pub(crate) fn link_for(&self, path: &UnderlayPath) -> u32 {
        self.hops
            .values()
            .find(|hop| hop.path == *path)
            .map_or(0, |hop| hop.link)
    }

    /// Looks a next hop up anew. None where nothing changed.
    pub(crate) async fn look(
        &mut self,
        index: NextHopIndex,
        netlink: &Netlink,
        host: &Host,
    ) -> Result<Option<Update>, NetlinkError> {
        let Some(old) = self.hops.get(&index) else {
            return Ok(None);
        };
        let (local, remote) = (old.path.local.ip(), old.path.remote.ip());
        let mut answer = netlink.route_to(local, remote, None).await?;
        // An accepted prefix may cover the underlay: its packets still go by the link their address is on.
        if answer.is_some_and(|answer| Some(answer.link) == self.tun) {
            answer = match host.link_of(local) {
                Some(link) => netlink.route_to(local, remote, Some(link)).await?,
                None => None,
            };
        }
        let usable = answer.and_then(|answer| {
            let link = host.links.get(&answer.link)?;
            (link.up && link.carrier && Some(answer.link) != self.tun).then_some((answer, link))
        });
        let mut new = old.clone();
        match usable {
            None => {
                new.resolved = false;
                new.egress = None;
            }
            Some((answer, link)) => {
                let mtu = answer.mtu.unwrap_or(link.mtu).min(link.mtu).min(MAX_MTU) as u16;
                let same = (new.link, new.neighbour) == (answer.link, answer.neighbour);
                new.resolved = true;
                new.mtu = mtu;
                new.link = answer.link;
                new.neighbour = answer.neighbour;
                let mut current = host.neighbour(answer.link, answer.neighbour);
                if current.is_some() || !same {
                    new.known = current;
                } else if let Some(mac) = new.known.filter(|_| new.arrives) {
                    // Forgotten for want of an answer, though packets arrive.
                    current = restore(netlink, &new, mac).await.then_some(mac);
                }
                new.egress = match (link.mac, current) {
                    (Some(source_mac), Some(destination_mac)) => Some(Egress {
                        ifindex: answer.link,
                        source_mac,
                        destination_mac,
                        mtu,
                    }),
                    (Some(_), None) if !link.loopback => {
                        netlink.probe(answer.link, answer.neighbour).await?;
                        None
                    }
                    _ => None,
                };
            }
        }
        let update = Update {
            index,
            egress: old.egress != new.egress || old.mtu != new.mtu,
            state: (old.resolved, old.mtu) != (new.resolved, new.mtu),
        };
        let changed = *old != new;
        if changed {
            self.hops.insert(index, new);
        }
        Ok(changed.then_some(update))
    }

    /// Confirms the neighbours that packets are known to arrive at, and has the kernel ask for the others.
    pub(crate) async fn refresh(&self, host: &Host, netlink: &Netlink) -> Result<(), NetlinkError> {
        let mut neighbours = BTreeMap::new();
        for hop in self.hops.values().filter(|hop| hop.egress.is_some()) {
            *neighbours.entry((hop.link, hop.neighbour)).or_insert(false) |= hop.arrives;
        }
        neighbours.retain(|(link, neighbour), _| !host.is_fixed(*link, *neighbour));
        for ((link, neighbour), arrives) in neighbours {
            let word = (NeighbourState::Reachable, None);
            if !arrives || netlink.tell(link, neighbour, word).await.is_err() {
                netlink.probe(link, neighbour).await?;
            }
        }
        // A one-way link that is to come back needs an address that nobody tells any more: the last one is worth a try.
        // The kernel gives it up again within seconds and asks everybody.
        let lost = |hop: &&Hop| hop.resolved && hop.egress.is_none();
        for hop in self.hops.values().filter(lost) {
            if let Some(mac) = hop.known {
                let word = (NeighbourState::Stale, Some(mac));
                netlink.tell(hop.link, hop.neighbour, word).await?;
            }
        }
        Ok(())
    }
}

async fn restore(netlink: &Netlink, hop: &Hop, mac: Mac) -> bool {
    let word = (NeighbourState::Reachable, Some(mac));
    let told = netlink.tell(hop.link, hop.neighbour, word).await;
    if let Err(error) = &told {
        tracing::debug!(%error, "keeping a neighbour's address");
    }
    told.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(remote: &str) -> UnderlayPath {
        UnderlayPath {
            local: "10.0.0.1:7117".parse().expect("an address"),
            remote: remote.parse().expect("an address"),
        }
    }

    #[test]
    fn new_keys_go_the_way_of_the_old_ones() {
        let mut resolver = Resolver::default();
        let (old, new, other) = (NextHopIndex(1), NextHopIndex(2), NextHopIndex(3));
        assert_eq!(resolver.add(old, path("10.0.0.2:7117"), 1500).egress, None);
        let egress = Egress {
            ifindex: 4,
            source_mac: [2; 6],
            destination_mac: [6; 6],
            mtu: 1400,
        };
        let gateway = "10.0.0.9".parse().expect("an address");
        let hop = resolver.hops.get_mut(&old).expect("it was added");
        (hop.link, hop.neighbour, hop.egress) = (4, gateway, Some(egress));
        // Also where another between the same ends is not resolved yet.
        resolver.hops.insert(
            NextHopIndex(9),
            Hop {
                egress: None,
                ..resolver.hops[&old].clone()
            },
        );
        let hop = resolver.add(new, path("10.0.0.2:7117"), 1500);
        assert_eq!(
            (hop.link, hop.neighbour, hop.egress),
            (4, gateway, Some(egress))
        );
        let hop = resolver.add(other, path("10.0.0.3:7117"), 1500);
        assert_eq!((hop.link, hop.egress), (0, None));
        assert_eq!(resolver.through(4, gateway).len(), 3);
    }
}
