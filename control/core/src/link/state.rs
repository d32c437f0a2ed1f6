//! One pair of underlay addresses shared with one neighbour: the two directed links over it, their keys and liveness.

use weft_abi::{NextHopIndex, Slot};

use super::{
    frame::{FrameKeys, Reassembly},
    handshake::LinkKeys,
    measure::{Advertised, Meter},
};
use crate::{
    identity::NodeId,
    io::{Micros, UnderlayPath},
    topology::lsa::{LinkId, Measured},
};

/// This node's name for an address pair shared with a neighbour; as a [`LinkId`] it names the outgoing directed link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LinkKey(pub(crate) u32);

impl LinkKey {
    pub(crate) const fn id(self) -> LinkId {
        LinkId(self.0)
    }
}

/// The keys of one period, both ways.
#[derive(Debug)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    pub(crate) rx_slot: Slot,
    pub(crate) tx_slot: Slot,
    pub(crate) frames: FrameKeys,
    pub(crate) next_hop: NextHopIndex,
    /// Something authentic came under these keys: the neighbour has them.
    pub(crate) confirmed: bool,
    /// The third handshake message, repeated until that happens.
    pub(crate) third: Option<Third>,
    pub(crate) since: Micros,
    pub(crate) retire_at: Option<Micros>,
}

#[derive(Debug)]
pub(crate) struct Third {
    pub(crate) message: Vec<u8>,
    pub(crate) due: Micros,
    pub(crate) wait: Micros,
}

/// What shows that the neighbour hears this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Its forwarding plane echoes probes.
    Echo,
    /// Its hellos (over whatever way) say so; nothing comes back on this pair of addresses.
    Report,
}

/// Bytes of IP packet every path is taken to carry.
pub(crate) const MIN_MTU: u16 = 1280;
/// Probes missed in a row that are ever taken for loss.
const MAX_MISSES: u32 = 16;
/// Probes remembered while their echo is awaited.
const PROBES: usize = 32;

#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) key: LinkKey,
    pub(crate) peer: NodeId,
    pub(crate) name: String,
    /// The neighbour's name for the directed link it sends on.
    pub(crate) peer_link: LinkId,
    pub(crate) path: UnderlayPath,
    pub(crate) own_mtu: u16,
    pub(crate) peer_mtu: u16,
    /// Oldest first; the one used to send is `sending`.
    pub(crate) epochs: Vec<Epoch>,
    pub(crate) sending: u64,
    pub(crate) since: Micros,
    pub(crate) rekey_at: Micros,
    /// When the neighbour last began a rekey.
    pub(crate) last_rekey: Micros,

    pub(crate) fragment_id: u16,
    pub(crate) reassembly: Reassembly,

    /// The neighbour hears this node, by this proof.
    pub(crate) out_up: Option<Proof>,
    /// This node hears the neighbour.
    pub(crate) in_up: bool,
    pub(crate) out_changed: Micros,
    pub(crate) last_arrival: Micros,
    pub(crate) last_control: Micros,
    pub(crate) last_echo: Option<Micros>,
    pub(crate) down_since: Option<Micros>,
    pub(crate) silent: bool,
    pub(crate) busy: bool,
    pub(crate) peer_busy: bool,
    /// The neighbour asked whether the link still works: probe often until then.
    pub(crate) suspect_until: Micros,

    pub(crate) next_probe: Micros,
    pub(crate) probes: std::collections::VecDeque<u64>,
    pub(crate) unanswered: u32,
    pub(crate) echoes_in_row: u32,
    /// Share of probes whose echo does not come, in 1/65536.
    pub(crate) echo_loss: u32,

    pub(crate) next_hello: Micros,
    pub(crate) last_hello_sent: Micros,
    pub(crate) hello_sequence: u32,
    pub(crate) hello_heard: Option<u32>,
    /// Hello sequence at the last change of `out_up` to down.
    pub(crate) down_sequence: u32,
    pub(crate) reported: Option<(u32, Micros)>,
    pub(crate) peer_measured: Option<Measured>,
    pub(crate) meter: Meter,
    pub(crate) advertised: Advertised,
}

impl Link {
    #[allow(clippy::too_many_arguments, reason = "all of it is what a link is")]
    pub(crate) fn new(
        key: LinkKey,
        peer: NodeId,
        name: String,
        peer_link: LinkId,
        path: UnderlayPath,
        own_mtu: u16,
        peer_mtu: u16,
        now: Micros,
    ) -> Self {
        Self {
            key,
            peer,
            name,
            peer_link,
            path,
            own_mtu,
            peer_mtu,
            epochs: Vec::new(),
            sending: 0,
            since: now,
            rekey_at: now,
            last_rekey: Micros(0),
            fragment_id: 0,
            reassembly: Reassembly::default(),
            out_up: None,
            in_up: false,
            out_changed: now,
            last_arrival: now,
            last_control: now,
            last_echo: None,
            down_since: Some(now),
            silent: false,
            busy: false,
            peer_busy: false,
            suspect_until: Micros(0),
            next_probe: now,
            probes: std::collections::VecDeque::new(),
            unanswered: 0,
            echoes_in_row: 0,
            echo_loss: 0,
            next_hello: now,
            last_hello_sent: Micros(0),
            hello_sequence: 0,
            hello_heard: None,
            down_sequence: 0,
            reported: None,
            peer_measured: None,
            meter: Meter::default(),
            advertised: Advertised::default(),
        }
    }

    /// The epoch packets leave under. There is one as long as the link exists.
    pub(crate) fn epoch(&self) -> Option<&Epoch> {
        self.epochs
            .iter()
            .find(|e| e.number == self.sending)
            .or(self.epochs.first())
    }

    pub(crate) fn epoch_mut(&mut self) -> Option<&mut Epoch> {
        let at = self
            .epochs
            .iter()
            .position(|e| e.number == self.sending)
            .unwrap_or(0);
        self.epochs.get_mut(at)
    }

    pub(crate) fn newest(&self) -> u64 {
        self.epochs.last().map_or(0, |e| e.number)
    }

    /// Bytes of IP packet that fit both ends.
    pub(crate) fn mtu(&self) -> u16 {
        self.own_mtu.min(self.peer_mtu).max(MIN_MTU)
    }

    /// Bytes of UDP payload that fit.
    pub(crate) fn payload_mtu(&self) -> u16 {
        self.mtu() - if self.path.remote.is_ipv4() { 28 } else { 48 }
    }

    /// Cost of the outgoing direction, as its receiver last told.
    pub(crate) fn out_cost(&self) -> u32 {
        self.peer_measured
            .map_or(Measured::UNKNOWN.cost, |m| m.cost)
    }

    pub(crate) fn alive(&self) -> bool {
        self.out_up.is_some() || self.in_up
    }

    pub(crate) fn epoch_by_slot(&mut self, slot: Slot) -> Option<&mut Epoch> {
        self.epochs.iter_mut().find(|e| e.rx_slot == slot)
    }

    /// Frames of one message under the keys in use, and where they go.
    pub(crate) fn seal(&mut self, message: &[u8]) -> Option<(NextHopIndex, Slot, Vec<Vec<u8>>)> {
        let mut fragment_id = self.fragment_id;
        let epoch = self.epoch_mut()?;
        let bodies = epoch.frames.seal(message, &mut fragment_id);
        let to = (epoch.next_hop, epoch.tx_slot, bodies);
        self.fragment_id = fragment_id;
        Some(to)
    }

    /// Remembers a probe sent now and returns its body from offset 16 on.
    pub(crate) fn probe(&mut self, now: Micros) -> [u8; 12] {
        if self.probes.len() >= PROBES {
            self.probes.pop_front();
        }
        self.probes.push_back(now.0);
        let mut body = [0; 12];
        body[4..].copy_from_slice(&now.0.to_be_bytes());
        body
    }

    /// Takes an echo of a probe that is remembered; returns the round trip.
    pub(crate) fn echo(&mut self, now: Micros, body: &[u8; 12]) -> Option<Micros> {
        let mut sent = [0; 8];
        sent.copy_from_slice(&body[4..]);
        let sent = u64::from_be_bytes(sent);
        let at = self.probes.iter().position(|probe| *probe == sent)?;
        self.probes.remove(at);
        // Only a run that ended is loss; one that goes on may be the end of the link.
        if self.unanswered <= MAX_MISSES {
            for _ in 0..self.unanswered {
                self.echo_loss += (65_536 - self.echo_loss) / 16;
            }
        }
        self.unanswered = 0;
        self.echoes_in_row = self.echoes_in_row.saturating_add(1);
        self.echo_loss -= self.echo_loss / 16;
        Some(now.since(Micros(sent)))
    }

    /// Probes in a row that must fail before the link counts as dead: at least as configured, more where loss makes
    /// such runs common.
    pub(crate) fn misses_needed(&self, configured: u32) -> u32 {
        let loss = f64::from(self.echo_loss) / 65_536.0;
        if loss < 0.05 {
            return configured;
        }
        let needed = (0.0005_f64.ln() / loss.min(0.9).ln()).ceil();
        (needed as u32).clamp(configured, configured.max(MAX_MISSES))
    }

    pub(crate) fn push_epoch(
        &mut self,
        now: Micros,
        keys: LinkKeys,
        rx_slot: Slot,
        tx_slot: Slot,
        next_hop: NextHopIndex,
        third: Option<Third>,
    ) {
        let number = if self.epochs.is_empty() {
            0
        } else {
            self.newest() + 1
        };
        // Who sent the third message waits for a sign that it arrived; who received it knows that both have the keys.
        if third.is_none() || self.epochs.is_empty() {
            self.sending = number;
        }
        let frames = FrameKeys::new(keys, 0);
        self.epochs.push(Epoch {
            number,
            rx_slot,
            tx_slot,
            frames,
            next_hop,
            confirmed: false,
            third,
            since: now,
            retire_at: None,
        });
    }

    /// When something is due.
    pub(crate) fn deadline(&self) -> Micros {
        let mut at = self.next_probe.min(self.next_hello).min(self.rekey_at);
        for epoch in &self.epochs {
            at = epoch.third.as_ref().map_or(at, |third| at.min(third.due));
            at = epoch.retire_at.map_or(at, |retire| at.min(retire));
        }
        at
    }
}
