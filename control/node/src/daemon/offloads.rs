//! What the kernel and the processor do for the ends of a path: AF_XDP sockets opened and given up as interfaces come
//! and go, and all of it for the status.

use weft_client::api;
use weft_core::io::ForwardMode;

use super::{Daemon, setup};
use crate::data::{shared::Order, xsk};

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
        for (index, state) in &self.direct {
            let name = self
                .host
                .links
                .get(index)
                .map_or("?", |link| link.name.as_str());
            all.push(offload(&format!("af_xdp({name})"), state.clone().err()));
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
