//! Sessions and where traffic goes: the tables that workers read, as immutable snapshots, and the store of the control
//! loop that makes them.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use weft_client::config::Prefix;
use weft_core::{
    identity::NodeId,
    io::{LspIngress, RouteEntry, SessionIndex, SessionOp},
};

use super::{
    crypto::Key,
    window::{Refusal, Window},
};

/// Bit of the AEAD counter that tells the core's messages from traffic.
pub const CLASS_BIT: u64 = 1 << 55;
/// Where the epoch stands in the AEAD counter.
pub const EPOCH_SHIFT: u32 = 56;
/// Packets of traffic per key; the core rekeys long before.
const LAST_COUNTER: u64 = 1 << 54;
/// Epochs a session holds at once; the core keeps to two.
const MAX_EPOCHS: usize = 4;

/// Traffic of a session.
#[derive(Debug, Default)]
pub struct SessionCounters {
    /// Packets sent.
    pub tx_packets: AtomicU64,
    /// Inner bytes sent.
    pub tx_bytes: AtomicU64,
    /// Packets received.
    pub rx_packets: AtomicU64,
    /// Inner bytes received.
    pub rx_bytes: AtomicU64,
}

/// The keys of one epoch.
#[derive(Debug)]
pub struct Epoch {
    /// Number in the counter's first byte.
    pub number: u8,
    tx: Key,
    rx: Key,
    next: AtomicU64,
    traffic: Mutex<Window>,
    messages: Mutex<Window>,
}

impl Epoch {
    /// Encrypts a packet of traffic in place (see [`Key::seal`]); the AEAD counter used and the new length. None where
    /// the key is used up.
    pub fn seal(&self, buffer: &mut [u8], len: usize) -> Option<(u64, usize)> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if number >= LAST_COUNTER {
            return None;
        }
        let counter = u64::from(self.number) << EPOCH_SHIFT | number;
        Some((counter, self.tx.seal(counter, buffer, len)?))
    }

    /// Encrypts a message of the core under the counter it chose.
    pub fn seal_message(&self, counter: u64, buffer: &mut [u8], len: usize) -> Option<usize> {
        if counter & CLASS_BIT == 0 || (counter >> EPOCH_SHIFT) as u8 != self.number {
            return None;
        }
        self.tx.seal(counter, buffer, len)
    }

    /// Decrypts in place what came under this counter, once.
    pub fn open<'a>(&self, counter: u64, sealed: &'a mut [u8]) -> Result<&'a mut [u8], OpenError> {
        let number = counter & (CLASS_BIT - 1);
        let window = if counter & CLASS_BIT == 0 {
            &self.traffic
        } else {
            &self.messages
        };
        let lock = || {
            window
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
        };
        lock().check(number)?;
        let plain = self.rx.open(counter, sealed).ok_or(OpenError::BadSeal)?;
        lock().accept(number)?;
        Ok(plain)
    }
}

/// Why a packet was not decrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenError {
    /// Not authentic.
    BadSeal,
    /// Seen before, or too old.
    Refused(Refusal),
}

impl From<Refusal> for OpenError {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// A session as the workers see it.
#[derive(Clone, Debug)]
pub struct Session {
    /// Index in the core's numbering.
    pub index: SessionIndex,
    /// The other end.
    pub peer: NodeId,
    /// Its overlay address.
    pub address: Ipv6Addr,
    /// Where to send.
    pub ingress: Option<LspIngress>,
    /// What the peer may send from, besides its overlay address.
    pub sources: Arc<[Prefix]>,
    /// Traffic.
    pub counters: Arc<SessionCounters>,
    /// Keys, oldest first.
    epochs: Vec<Arc<Epoch>>,
    /// The keys to send with.
    sending: Option<Arc<Epoch>>,
}

impl Session {
    /// The keys to send with.
    pub fn sending(&self) -> Option<&Arc<Epoch>> {
        self.sending.as_ref()
    }

    /// Whether traffic can leave.
    pub fn can_send(&self) -> bool {
        self.ingress.is_some() && self.sending.is_some()
    }

    /// The keys of an epoch.
    pub fn epoch(&self, number: u8) -> Option<&Arc<Epoch>> {
        self.epochs
            .iter()
            .rev()
            .find(|epoch| epoch.number == number)
    }

    /// Whether the peer may send from the address.
    pub fn may_send_from(&self, source: IpAddr) -> bool {
        source == IpAddr::V6(self.address)
            || self.sources.iter().any(|prefix| prefix.contains(source))
    }
}

/// What traffic for an address meets.
#[derive(Debug)]
pub enum Target<'a> {
    /// A session.
    Session(&'a Arc<Session>),
    /// The node with this overlay address, to which there is no session.
    Node(Ipv6Addr),
    /// Nothing.
    None,
}

/// One consistent view of all sessions and destinations.
#[derive(Debug)]
pub struct Table {
    /// This node's overlay address.
    pub own: Ipv6Addr,
    /// The network's /48.
    pub overlay: Prefix,
    /// Prefixes behind this node.
    pub advertised: Arc<[Prefix]>,
    by_index: HashMap<SessionIndex, Arc<Session>>,
    by_address: HashMap<Ipv6Addr, Arc<Session>>,
    by_label: HashMap<u32, Arc<Session>>,
    routes: Lpm,
}

impl Table {
    /// Longest prefix match.
    pub fn target(&self, destination: IpAddr) -> Target<'_> {
        let address = match destination {
            IpAddr::V6(address) if self.overlay.contains(destination) => address,
            _ => match self.routes.find(destination) {
                Some(address) => address,
                None => return Target::None,
            },
        };
        self.by_address
            .get(&address)
            .map_or(Target::Node(address), Target::Session)
    }

    /// The session whose traffic arrives on the label.
    pub fn delivered_on(&self, label: u32) -> Option<&Arc<Session>> {
        self.by_label.get(&label)
    }

    /// The session with the index.
    pub fn session(&self, index: SessionIndex) -> Option<&Arc<Session>> {
        self.by_index.get(&index)
    }

    /// All sessions.
    pub fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.by_index.values()
    }

    /// Whether a packet for the address may come out here.
    pub fn is_behind_us(&self, destination: IpAddr) -> bool {
        destination == IpAddr::V6(self.own)
            || self
                .advertised
                .iter()
                .any(|prefix| prefix.contains(destination))
    }
}

/// Prefixes by family and length, longest first: a look-up costs one hash per length in use.
#[derive(Debug, Default)]
struct Lpm {
    lengths: Vec<(bool, u8, HashMap<IpAddr, Ipv6Addr>)>,
}

impl Lpm {
    fn new(routes: &[RouteEntry]) -> Self {
        let mut lengths: Vec<(bool, u8, HashMap<IpAddr, Ipv6Addr>)> = vec![];
        for route in routes {
            let Ok(prefix) = Prefix::new(route.prefix, route.prefix_len) else {
                continue;
            };
            let ipv6 = prefix.address.is_ipv6();
            let map = match lengths
                .iter_mut()
                .find(|(v6, len, _)| (*v6, *len) == (ipv6, prefix.len))
            {
                Some((_, _, map)) => map,
                None => {
                    lengths.push((ipv6, prefix.len, HashMap::new()));
                    &mut lengths.last_mut().expect("just pushed").2
                }
            };
            map.entry(prefix.address).or_insert(route.address);
        }
        lengths.sort_by_key(|(_, len, _)| std::cmp::Reverse(*len));
        Self { lengths }
    }

    fn find(&self, address: IpAddr) -> Option<Ipv6Addr> {
        self.lengths
            .iter()
            .filter(|(ipv6, ..)| *ipv6 == address.is_ipv6())
            .find_map(|(_, len, map)| map.get(&Prefix::network(address, *len)).copied())
    }
}

/// The control loop's side: applies the core's operations and publishes tables.
#[derive(Debug)]
pub struct Store {
    own: Ipv6Addr,
    overlay: Prefix,
    advertised: Arc<[Prefix]>,
    sessions: HashMap<SessionIndex, (Session, Vec<u32>)>,
    routes: Vec<RouteEntry>,
    changed: bool,
}

impl Store {
    /// No sessions, no routes.
    pub fn new(own: Ipv6Addr, overlay: Prefix, advertised: &[Prefix]) -> Self {
        Self {
            own,
            overlay,
            advertised: advertised.into(),
            sessions: HashMap::new(),
            routes: vec![],
            changed: true,
        }
    }

    /// Applies one operation; the workers see it with the next [`Store::publish`].
    pub fn apply(&mut self, op: SessionOp) {
        self.changed = true;
        match op {
            SessionOp::Install {
                session,
                peer,
                address,
            } => {
                let installed = Session {
                    index: session,
                    peer,
                    address,
                    ingress: None,
                    sources: self.sources(peer),
                    counters: Arc::default(),
                    epochs: vec![],
                    sending: None,
                };
                self.sessions.insert(session, (installed, vec![]));
            }
            SessionOp::AddEpoch {
                session,
                epoch,
                keys,
            } => {
                if let Some((session, _)) = self.sessions.get_mut(&session) {
                    session.epochs.retain(|old| old.number != epoch);
                    session.epochs.push(Arc::new(Epoch {
                        number: epoch,
                        tx: Key::new(keys.cipher, &keys.tx),
                        rx: Key::new(keys.cipher, &keys.rx),
                        next: AtomicU64::new(0),
                        traffic: Mutex::default(),
                        messages: Mutex::default(),
                    }));
                    let excess = session.epochs.len().saturating_sub(MAX_EPOCHS);
                    session.epochs.drain(..excess);
                }
            }
            SessionOp::UseEpoch { session, epoch } => {
                if let Some((session, _)) = self.sessions.get_mut(&session) {
                    session.sending = session.epoch(epoch).cloned();
                }
            }
            SessionOp::DropEpoch { session, epoch } => {
                if let Some((session, _)) = self.sessions.get_mut(&session) {
                    session.epochs.retain(|old| old.number != epoch);
                    session.sending = session
                        .sending
                        .take()
                        .filter(|sending| sending.number != epoch);
                }
            }
            SessionOp::SetDelivery { session, labels } => {
                if let Some((_, delivery)) = self.sessions.get_mut(&session) {
                    *delivery = labels.into_iter().map(|label| label.0).collect();
                }
            }
            SessionOp::SetIngress { session, ingress } => {
                if let Some((session, _)) = self.sessions.get_mut(&session) {
                    session.ingress = ingress;
                }
            }
            SessionOp::Remove { session } => {
                self.sessions.remove(&session);
            }
        }
    }

    /// Replaces the destinations.
    pub fn set_routes(&mut self, routes: Vec<RouteEntry>) {
        self.changed = true;
        self.routes = routes;
        let peers: Vec<_> = self
            .sessions
            .values()
            .map(|(session, _)| (session.index, session.peer))
            .collect();
        for (index, peer) in peers {
            let sources = self.sources(peer);
            if let Some((session, _)) = self.sessions.get_mut(&index) {
                session.sources = sources;
            }
        }
    }

    /// A session as it stands, published or not.
    pub fn session(&self, index: SessionIndex) -> Option<&Session> {
        self.sessions.get(&index).map(|(session, _)| session)
    }

    /// All sessions as they stand.
    pub fn sessions(&self) -> impl Iterator<Item = &Session> {
        self.sessions.values().map(|(session, _)| session)
    }

    /// The destinations.
    pub fn routes(&self) -> &[RouteEntry] {
        &self.routes
    }

    /// The table, where anything changed since the last call.
    pub fn publish(&mut self) -> Option<Table> {
        if !std::mem::take(&mut self.changed) {
            return None;
        }
        let mut table = Table {
            own: self.own,
            overlay: self.overlay,
            advertised: self.advertised.clone(),
            by_index: HashMap::new(),
            by_address: HashMap::new(),
            by_label: HashMap::new(),
            routes: Lpm::new(&self.routes),
        };
        for (session, labels) in self.sessions.values() {
            let session = Arc::new(session.clone());
            table.by_index.insert(session.index, session.clone());
            // While two ends set up at once there may be two: the one that can send is preferred, then the newer.
            let rank = |session: &Session| (session.can_send(), session.index);
            let preferred = table
                .by_address
                .get(&session.address)
                .is_none_or(|old| rank(old) < rank(&session));
            if preferred {
                table.by_address.insert(session.address, session.clone());
            }
            table
                .by_label
                .extend(labels.iter().map(|label| (*label, session.clone())));
        }
        Some(table)
    }

    fn sources(&self, peer: NodeId) -> Arc<[Prefix]> {
        self.routes
            .iter()
            .filter(|route| route.node == peer)
            .filter_map(|route| Prefix::new(route.prefix, route.prefix_len).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use weft_abi::{GroupIndex, Label};
    use weft_core::{
        io::{LspIngress, RouteEntry},
        session::{Cipher, SessionKeys},
    };

    use super::*;

    fn store() -> Store {
        Store::new(
            "fd00:1:2::1".parse().unwrap(),
            "fd00:1:2::/48".parse().unwrap(),
            &["10.9.0.0/16".parse().unwrap()],
        )
    }

    fn route(prefix: &str, node: u8, address: &str) -> RouteEntry {
        let prefix: Prefix = prefix.parse().unwrap();
        RouteEntry {
            prefix: prefix.address,
            prefix_len: prefix.len,
            node: NodeId([node; 32]),
            address: address.parse().unwrap(),
            cost: Some(1),
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let mut store = store();
        store.set_routes(vec![
            route("10.0.0.0/8", 2, "fd00:1:2::2"),
            route("10.1.0.0/16", 3, "fd00:1:2::3"),
            route("::/0", 4, "fd00:1:2::4"),
        ]);
        let table = store.publish().unwrap();
        let node = |destination: &str| match table.target(destination.parse().unwrap()) {
            Target::Node(address) => Some(address.to_string()),
            Target::Session(_) => panic!("there is no session"),
            Target::None => None,
        };
        assert_eq!(node("10.1.2.3").as_deref(), Some("fd00:1:2::3"));
        assert_eq!(node("10.2.2.3").as_deref(), Some("fd00:1:2::2"));
        assert_eq!(node("11.0.0.1"), None);
        assert_eq!(node("2001:db8::1").as_deref(), Some("fd00:1:2::4"));
        assert_eq!(node("fd00:1:2::77").as_deref(), Some("fd00:1:2::77"));
        assert!(store.publish().is_none());
    }

    #[test]
    fn a_session_sends_with_the_newest_epoch_and_opens_all_it_holds() {
        let mut store = store();
        let session = SessionIndex(5);
        let address = "fd00:1:2::2".parse().unwrap();
        store.apply(SessionOp::Install {
            session,
            peer: NodeId([2; 32]),
            address,
        });
        let keys = |byte| SessionKeys {
            cipher: Cipher::Aes256Gcm,
            tx: [byte; 32],
            rx: [byte; 32],
        };
        store.apply(SessionOp::AddEpoch {
            session,
            epoch: 255,
            keys: keys(1),
        });
        store.apply(SessionOp::AddEpoch {
            session,
            epoch: 0,
            keys: keys(2),
        });
        store.apply(SessionOp::UseEpoch { session, epoch: 0 });
        store.apply(SessionOp::SetDelivery {
            session,
            labels: vec![Label(77)],
        });
        let ingress = LspIngress {
            group: GroupIndex(1),
            label: Label(20),
            inner_mtu: 1400,
            ttl: 64,
        };
        store.apply(SessionOp::SetIngress {
            session,
            ingress: Some(ingress),
        });
        let table = store.publish().unwrap();
        let found = table.delivered_on(77).unwrap();
        assert_eq!(found.sending().unwrap().number, 0);

        for number in [255, 0] {
            let epoch = found.epoch(number).unwrap();
            let mut buffer = *b"packet..................";
            let (counter, len) = epoch.seal(&mut buffer, 6).unwrap();
            assert_eq!((counter >> EPOCH_SHIFT) as u8, number);
            let mut copy = buffer;
            assert_eq!(epoch.open(counter, &mut copy[..len]).unwrap(), b"packet");
            assert_eq!(
                epoch.open(counter, &mut buffer[..len]).unwrap_err(),
                OpenError::Refused(Refusal::Replayed)
            );
        }
        store.apply(SessionOp::DropEpoch {
            session,
            epoch: 255,
        });
        assert!(
            store
                .publish()
                .unwrap()
                .session(session)
                .unwrap()
                .epoch(255)
                .is_none()
        );
    }

    #[test]
    fn peers_send_only_from_what_is_theirs() {
        let mut store = store();
        let (session, peer) = (SessionIndex(1), NodeId([2; 32]));
        store.apply(SessionOp::Install {
            session,
            peer,
            address: "fd00:1:2::2".parse().unwrap(),
        });
        store.set_routes(vec![
            route("10.2.0.0/16", 2, "fd00:1:2::2"),
            route("10.3.0.0/16", 3, "fd00:1:2::3"),
        ]);
        let table = store.publish().unwrap();
        let session = table.session(session).unwrap();
        for (source, may) in [
            ("fd00:1:2::2", true),
            ("fd00:1:2::3", false),
            ("10.2.1.1", true),
            ("10.3.1.1", false),
        ] {
            assert_eq!(
                session.may_send_from(source.parse().unwrap()),
                may,
                "{source}"
            );
        }
        for (destination, here) in [
            ("fd00:1:2::1", true),
            ("10.9.1.1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(
                table.is_behind_us(destination.parse().unwrap()),
                here,
                "{destination}"
            );
        }
    }
}
