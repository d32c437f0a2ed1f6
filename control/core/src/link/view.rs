//! What the links tell about themselves.

use super::{
    Links,
    state::{Link, Proof},
};
use crate::{
    io::Micros,
    node::views::{Direction, LinkState, LinkView, PeerSource, PeerState, PeerView},
    topology::lsa::UNKNOWN_CAPACITY,
};

impl Links {
    pub(crate) fn peer_views(&self, now: Micros) -> Vec<PeerView> {
        let mut views: Vec<PeerView> = Vec::new();
        for (path, dial) in &self.dials {
            let link = self.links.values().find(|l| l.path == *path);
            let (state, detail) = match link {
                Some(link) if link.alive() => (
                    PeerState::Established,
                    format!("{} s", now.since(link.since).as_secs()),
                ),
                Some(_) => (PeerState::Lost, "nothing comes back".to_owned()),
                None => (
                    PeerState::Connecting,
                    dial.last_failure
                        .clone()
                        .unwrap_or_else(|| "waiting for an answer".to_owned()),
                ),
            };
            views.push(PeerView {
                remote: path.remote,
                node: link.map(|l| l.peer),
                name: link.map(|l| l.name.clone()),
                source: dial.source,
                state,
                detail,
                rtt: link.and_then(|l| l.meter.rtt()),
            });
        }
        for (remote, source) in &self.targets {
            if *source != PeerSource::Heard && !self.dials.keys().any(|path| path.remote == *remote)
            {
                views.push(PeerView {
                    remote: *remote,
                    node: None,
                    name: None,
                    source: *source,
                    state: PeerState::Connecting,
                    detail: "no own address of this family is up".to_owned(),
                    rtt: None,
                });
            }
        }
        views
    }

    pub(crate) fn link_views(&self) -> Vec<LinkView> {
        self.links
            .values()
            .flat_map(|link| [self.out_view(link), self.in_view(link)])
            .collect()
    }

    fn out_view(&self, link: &Link) -> LinkView {
        let measured = link.peer_measured;
        let epoch = link.epoch();
        LinkView {
            direction: Direction::Out,
            node: link.peer,
            name: link.name.clone(),
            local: link.path.local,
            remote: link.path.remote,
            state: match link.out_up {
                Some(Proof::Echo) => LinkState::Up,
                Some(Proof::Report) if link.in_up => LinkState::Up,
                Some(Proof::Report) => LinkState::OneWay,
                None => LinkState::Down,
            },
            cost: link.out_cost(),
            loss: measured.map(|m| f64::from(m.loss_ppm) / 1e6),
            rtt: link.meter.rtt(),
            jitter: measured.map(|m| Micros(m.jitter_us.into())),
            capacity_kbps: measured
                .map(|m| m.capacity_kbps)
                .filter(|c| *c != UNKNOWN_CAPACITY),
            mtu: link.mtu(),
            epoch: epoch.map_or(0, |e| e.number),
            slot: epoch.map_or(weft_abi::Slot(0), |e| e.tx_slot),
            mode: self.mode_at(link.path.local),
        }
    }

    fn in_view(&self, link: &Link) -> LinkView {
        let measured = link.meter.measured(UNKNOWN_CAPACITY);
        let epoch = link
            .epochs
            .iter()
            .rev()
            .find(|e| e.confirmed)
            .or(link.epoch());
        LinkView {
            direction: Direction::In,
            node: link.peer,
            name: link.name.clone(),
            local: link.path.local,
            remote: link.path.remote,
            state: match (link.in_up, link.out_up) {
                (true, Some(_)) => LinkState::Up,
                (true, None) => LinkState::OneWay,
                (false, _) => LinkState::Down,
            },
            cost: link.advertised.get().map_or(measured.cost, |m| m.cost),
            loss: link.in_up.then_some(f64::from(measured.loss_ppm) / 1e6),
            rtt: link.meter.rtt(),
            jitter: link.in_up.then_some(Micros(measured.jitter_us.into())),
            capacity_kbps: None,
            mtu: link.mtu(),
            epoch: epoch.map_or(0, |e| e.number),
            slot: epoch.map_or(weft_abi::Slot(0), |e| e.rx_slot),
            mode: self.mode_at(link.path.local),
        }
    }
}
