//! What the kernel and the processor do for the ends of a path: AF_XDP sockets opened and given up as interfaces come
//! and go, interfaces on which bulk is sent by XDP, and all of it for the status.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use weft_client::api;
use weft_core::io::ForwardMode;

use super::{Daemon, setup};
use crate::{
    data::{shared::Order, xdp_send, xsk},
    netlink::host::Link,
};

impl Daemon {
    /// Sees to it that every interface that can has AF_XDP sockets, and tells why others have none.
    pub(super) fn serve_directly(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        let links: Vec<_> = self
            .rules
            .links(&self.host)
            .map(|(index, link)| (index, link.mtu, link.up))
            .collect();
        for index in self.direct.keys().copied().collect::<Vec<_>>() {
            if !links.iter().any(|(link, ..)| *link == index) {
                self.give_up_directly(index);
                self.direct.remove(&index);
            }
        }
        for (index, mtu, up) in links {
            let obstacle = self.obstacle(index, mtu);
            match (obstacle, self.direct.get(&index)) {
                (Some(why), Some(Ok(()))) => {
                    self.give_up_directly(index);
                    self.direct.insert(index, Err(why));
                }
                (Some(why), _) => {
                    self.direct.insert(index, Err(why));
                }
                // What was refused once is not asked for at every change.
                (None, None) if up => {
                    let opened = self.open_directly(index);
                    self.direct.insert(index, opened);
                }
                _ => {}
            }
        }
    }

    /// Why an interface is not served by AF_XDP sockets.
    fn obstacle(&self, index: u32, mtu: u32) -> Option<String> {
        if !self.config.tun.offload {
            Some("`offload = false` under [tun]".to_owned())
        } else if self.tun.is_none() {
            Some("no TUN interface: nothing ends here but the control plane's messages".to_owned())
        } else if matches!(self.modes.get(&index), None | Some(ForwardMode::UserSpace)) {
            Some("no XDP program on the interface".to_owned())
        } else if mtu > xsk::MAX_MTU {
            Some(format!(
                "its MTU is {mtu}, and packets over {} do not fit a frame",
                xsk::MAX_MTU
            ))
        } else {
            None
        }
    }

    fn open_directly(&mut self, index: u32) -> Result<(), String> {
        let sockets = self
            .plane
            .open_sockets(index)
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        for (queue, socket) in sockets.into_iter().enumerate() {
            let worker = (index as usize + queue) % self.orders.len();
            // A worker that has ended is noticed elsewhere.
            let _ = self.orders[worker].send(Order::Take(Box::new(socket)));
            self.wakes[worker].wake();
        }
        Ok(())
    }

    fn give_up_directly(&mut self, index: u32) {
        if !matches!(self.direct.get(&index), Some(Ok(()))) {
            return;
        }
        if let Err(error) = self.plane.close_sockets(index) {
            tracing::warn!(%error, index, "giving up AF_XDP sockets");
        }
        for (order, wake) in self.orders.iter().zip(&self.wakes) {
            let _ = order.send(Order::Close { interface: index });
            wake.wake();
        }
    }

    /// Decides on which interfaces bulk is sent by XDP, and gives the workers what they send with at the first.
    pub(super) fn send_directly(&mut self) {
        if self.orders.is_empty() {
            return;
        }
        let mut egress: BTreeMap<_, _> = self
            .rules
            .links(&self.host)
            .map(|(index, link)| {
                (
                    index,
                    self.xdp_egress_obstacle(index, link).map_or(Ok(()), Err),
                )
            })
            .collect();
        if egress.values().any(Result::is_ok) {
            if self.senders.is_none() {
                let opened = self.open_senders();
                if let Err(why) = &opened {
                    tracing::info!(%why, "no bulk is sent by XDP");
                }
                self.senders = Some(opened);
            }
            if let Some(Err(why)) = &self.senders {
                for able in egress.values_mut().filter(|able| able.is_ok()) {
                    *able = Err(why.clone());
                }
            }
        }
        let able = egress.iter().filter(|(_, able)| able.is_ok());
        let able: HashSet<u32> = able.map(|(index, _)| *index).collect();
        self.shared.xdp_egress.store(Arc::new(able));
        self.xdp_egress = egress;
    }

    /// Why no bulk is sent by XDP on an interface.
    fn xdp_egress_obstacle(&self, index: u32, link: &Link) -> Option<String> {
        if !self.config.tun.offload {
            Some("`offload = false` under [tun]".to_owned())
        } else if self.tun.is_none() {
            Some(
                "no TUN interface: nothing begins here but the control plane's messages".to_owned(),
            )
        } else if self.modes.get(&index) != Some(&ForwardMode::KernelNative) {
            Some("no XDP program in the interface's driver".to_owned())
        } else if self.no_redirects.contains(&index) {
            Some("its driver takes no redirected packets".to_owned())
        } else if !link.veth {
            // Others give frames back later than the call ends, and each call's memory waits for that.
            Some("it is no veth: its driver is better served by UDP_SEGMENT".to_owned())
        } else if link.mtu > xdp_send::MAX_MTU {
            Some(format!(
                "its MTU is {}, and packets over {} do not fit a frame",
                link.mtu,
                xdp_send::MAX_MTU
            ))
        } else {
            None
        }
    }

    fn open_senders(&mut self) -> Result<(), String> {
        let mut senders = self
            .plane
            .open_senders(self.orders.len())
            .map_err(|error| format!("{:#}", anyhow::Error::new(error)))?;
        match senders.first_mut() {
            Some(first) => first.probe()?,
            None => return Err("the forwarding plane is in user space".to_owned()),
        }
        for ((order, wake), sender) in self.orders.iter().zip(&self.wakes).zip(senders) {
            // A worker that has ended is noticed elsewhere.
            let _ = order.send(Order::Send(Box::new(sender)));
            wake.wake();
        }
        Ok(())
    }

    /// Every offload: used, or why not.
    pub(super) fn offloads(&self) -> Vec<api::Offload> {
        let offload = |name: &str, off: Option<String>| api::Offload {
            name: name.to_owned(),
            on: off.is_none(),
            reason: off.unwrap_or_default(),
        };
        let mut all: Vec<_> = self
            .tun
            .iter()
            .flat_map(|tun| tun.offloads())
            .map(|tun| offload(tun.name, tun.off.clone()))
            .collect();
        let segments = self.sockets.iter().all(|socket| socket.segments());
        all.push(offload(
            "udp_segment",
            (!segments).then(|| "the kernel or an interface refused UDP_SEGMENT".to_owned()),
        ));
        let bundles = self
            .sockets
            .iter()
            .find_map(|socket| socket.no_bundles())
            .map(str::to_owned);
        all.push(offload("udp_gro", bundles));
        for (kind, states) in [("af_xdp", &self.direct), ("xdp_send", &self.xdp_egress)] {
            for (index, state) in states {
                let link = self.host.links.get(index);
                let name = link.map_or("?", |link| link.name.as_str());
                all.push(offload(&format!("{kind}({name})"), state.clone().err()));
            }
        }
        all.push(offload(
            "aes",
            (!setup::hardware_aes()).then(|| {
                "the processor has no AES instructions: sessions use ChaCha20-Poly1305".to_owned()
            }),
        ));
        all
    }
}
