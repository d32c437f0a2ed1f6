//! The link-state database: the newest valid LSA of every node, within bounds.
//!
//! Everything here is a function of the LSAs inserted and the time, so two nodes that were given the same LSAs hold the
//! same database. Iteration is in the order of node ids. When the database is full the policy is *unconfirmed first*:
//! a node that no other node claims to hear makes room for one that somebody does hear (the one nearest to its expiry
//! first); a newcomer nobody hears is refused. So identities made up in bulk cannot push out nodes that have neighbours.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::{IpAddr, Ipv6Addr},
};

use bytes::Bytes;

use super::lsa::{Lsa, LsaError, LsaHeader, Prefix, Service};
use crate::{
    identity::{NetworkId, NodeId},
    io::Micros,
};

/// Seconds a withdrawal is remembered at least, so that older LSAs still under way cannot bring the node back.
pub const WITHDRAWAL_MEMORY_S: u16 = 300;
/// LSAs with less left than this are neither sent nor listed to others: they would expire under way.
pub const MIN_REMAINING_S: u16 = 3;

const SECOND: u64 = 1_000_000;

/// What the database may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Nodes.
    pub max_nodes: usize,
    /// Bytes of encoded LSAs.
    pub max_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_nodes: 4096,
            max_bytes: 8 * 1024 * 1024,
        }
    }
}

/// What became of an LSA that was offered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is the newest of its node; `changed` unless it merely refreshes the same content.
    Newer {
        /// Whether the content differs from what was there.
        changed: bool,
    },
    /// It is here already.
    Duplicate,
    /// A newer one is here.
    Older,
    /// It is this node's own, from before a restart: the next own sequence must be above this one.
    OwnEcho {
        /// Of the LSA heard.
        sequence: u64,
    },
    /// It was refused.
    Refused(Refusal),
}

/// Why an LSA was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not an LSA, or not of this network, or not signed by its origin.
    #[error(transparent)]
    Invalid(#[from] LsaError),
    /// It has no lifetime left.
    #[error("expired: {age_s} s old, of a lifetime of {lifetime_s} s")]
    Expired {
        /// As told by the neighbour.
        age_s: u16,
        /// As told by the origin.
        lifetime_s: u16,
    },
    /// The database is full and nobody there hears the newcomer.
    #[error("the link-state database is full and no known node hears the newcomer")]
    DatabaseFull,
}

impl Refusal {
    /// The name it is counted under.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Invalid(LsaError::Signature) => "lsa_bad_signature",
            Self::Invalid(LsaError::ForeignNetwork) => "lsa_foreign_network",
            Self::Invalid(_) => "lsa_malformed",
            Self::Expired { .. } => "lsa_expired",
            Self::DatabaseFull => "lsdb_full",
        }
    }
}

/// One LSA with its times.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The advertisement.
    pub lsa: Lsa,
    /// When it arrived here.
    pub arrived: Micros,
    /// Its age then, seconds.
    age_on_arrival_s: u16,
    expires: Micros,
    address: Ipv6Addr,
}

impl Entry {
    /// Its age in whole seconds, rounded up so that it grows with every hop it travels.
    #[must_use]
    pub fn age_s(&self, now: Micros) -> u16 {
        let here = now.0.saturating_sub(self.arrived.0).div_ceil(SECOND).max(1);
        self.age_on_arrival_s
            .saturating_add(u16::try_from(here).unwrap_or(u16::MAX))
    }

    /// When it leaves the database.
    #[must_use]
    pub fn expires(&self) -> Micros {
        self.expires
    }

    /// Whether it is worth telling others.
    #[must_use]
    pub fn worth_sending(&self, now: Micros) -> bool {
        self.lsa.lifetime_s.saturating_sub(self.age_s(now)) >= MIN_REMAINING_S
    }

    /// The node's overlay address.
    #[must_use]
    pub fn address(&self) -> Ipv6Addr {
        self.address
    }

    /// Whether the node said that it left.
    #[must_use]
    pub fn withdrawn(&self) -> bool {
        self.lsa.content.withdrawn
    }
}

/// The database.
#[derive(Debug)]
pub struct Lsdb {
    network: NetworkId,
    own: NodeId,
    limits: Limits,
    entries: BTreeMap<NodeId, Entry>,
    bytes: usize,
    version: u64,
    /// Nodes whose content changed since the owner last asked.
    changed: BTreeSet<NodeId>,
    expiries: BTreeSet<(Micros, NodeId)>,
    /// How many other nodes' LSAs hear a node.
    heard_by: HashMap<NodeId, u32>,
    addresses: HashMap<Ipv6Addr, NodeId>,
    names: BTreeMap<String, BTreeSet<NodeId>>,
    /// Longest first.
    prefixes: BTreeMap<PrefixKey, BTreeSet<NodeId>>,
    /// Which lengths occur, per family, with how many prefixes.
    lengths: BTreeMap<(bool, std::cmp::Reverse<u8>), usize>,
}

type PrefixKey = (bool, std::cmp::Reverse<u8>, IpAddr);

fn prefix_key(prefix: &Prefix) -> PrefixKey {
    (
        prefix.address().is_ipv4(),
        std::cmp::Reverse(prefix.len()),
        prefix.address(),
    )
}

impl Lsdb {
    /// An empty database of a network, at this node.
    #[must_use]
    pub fn new(network: NetworkId, own: NodeId, limits: Limits) -> Self {
        Self {
            network,
            own,
            limits,
            entries: BTreeMap::new(),
            bytes: 0,
            version: 0,
            changed: BTreeSet::new(),
            expiries: BTreeSet::new(),
            heard_by: HashMap::new(),
            addresses: HashMap::new(),
            names: BTreeMap::new(),
            prefixes: BTreeMap::new(),
            lengths: BTreeMap::new(),
        }
    }

    /// Whether an LSA with this header would be news, told before its signature is checked.
    #[must_use]
    pub fn compare(&self, header: &LsaHeader) -> Outcome {
        match self.entries.get(&header.origin) {
            Some(entry) if entry.lsa.digest == header.digest => Outcome::Duplicate,
            // Two LSAs of one sequence: the origin restarted without its state, or cheats. All nodes choose alike.
            Some(entry)
                if (header.sequence, header.digest) < (entry.lsa.sequence, entry.lsa.digest) =>
            {
                Outcome::Older
            }
            _ if header.origin == self.own => Outcome::OwnEcho {
                sequence: header.sequence,
            },
            _ => Outcome::Newer { changed: true },
        }
    }

    /// Offers an encoded LSA of the given age. Checks everything; changes nothing unless the outcome is `Newer`.
    pub fn insert(&mut self, now: Micros, encoded: &[u8], age_s: u16) -> Outcome {
        let header = match Lsa::header(encoded) {
            Ok(header) => header,
            Err(error) => return Outcome::Refused(error.into()),
        };
        match self.compare(&header) {
            Outcome::Newer { .. } | Outcome::OwnEcho { .. } => {}
            known => return known,
        }
        let lsa = match Lsa::decode(encoded, &self.network) {
            Ok(lsa) => lsa,
            Err(error) => return Outcome::Refused(error.into()),
        };
        if lsa.origin == self.own {
            return Outcome::OwnEcho {
                sequence: lsa.sequence,
            };
        }
        self.store(now, lsa, age_s)
    }

    /// Puts in this node's own LSA.
    pub fn insert_own(&mut self, now: Micros, lsa: Lsa) -> Outcome {
        debug_assert_eq!(lsa.origin, self.own);
        self.store(now, lsa, 0)
    }

    fn store(&mut self, now: Micros, lsa: Lsa, age_s: u16) -> Outcome {
        let Some(remaining) = lsa.lifetime_s.checked_sub(age_s).filter(|&s| s > 0) else {
            return Outcome::Refused(Refusal::Expired {
                age_s,
                lifetime_s: lsa.lifetime_s,
            });
        };
        let id = lsa.origin;
        if let Err(refusal) = self.make_room(&lsa)
            && id != self.own
        {
            return Outcome::Refused(refusal);
        }
        let previous = self.take(&id);
        let changed = previous
            .as_ref()
            .is_none_or(|entry| entry.lsa.content != lsa.content);
        let entry = Entry {
            arrived: now,
            age_on_arrival_s: age_s,
            expires: Micros(now.0 + u64::from(remaining) * SECOND),
            address: id.overlay_address(&self.network),
            lsa,
        };
        self.put(id, entry);
        if changed {
            self.note_change(id);
        }
        Outcome::Newer { changed }
    }

    /// Makes room for an LSA, or says why not. See the module's text for the policy.
    fn make_room(&mut self, lsa: &Lsa) -> Result<(), Refusal> {
        let previous = self
            .entries
            .get(&lsa.origin)
            .map_or(0, |entry| entry.lsa.encoded().len());
        let new_nodes = usize::from(previous == 0);
        let fits = |this: &Self| {
            this.entries.len() + new_nodes <= this.limits.max_nodes
                && this.bytes - previous + lsa.encoded().len() <= this.limits.max_bytes
        };
        if fits(self) {
            return Ok(());
        }
        let confirmed =
            |this: &Self, id: &NodeId| *id == this.own || this.heard_by.contains_key(id);
        if !confirmed(self, &lsa.origin) && previous == 0 {
            return Err(Refusal::DatabaseFull);
        }
        while !fits(self) {
            let victim = self
                .expiries
                .iter()
                .map(|(_, id)| *id)
                .find(|id| !confirmed(self, id) && *id != lsa.origin);
            let Some(victim) = victim else {
                return Err(Refusal::DatabaseFull);
            };
            self.remove(&victim);
        }
        Ok(())
    }

    /// Removes what has expired.
    pub fn expire(&mut self, now: Micros) -> usize {
        let mut count = 0;
        while let Some(&(at, id)) = self.expiries.first()
            && at <= now
        {
            self.remove(&id);
            count += 1;
        }
        count
    }

    /// When the next LSA expires.
    #[must_use]
    pub fn next_expiry(&self) -> Option<Micros> {
        self.expiries.first().map(|(at, _)| *at)
    }

    fn remove(&mut self, id: &NodeId) {
        if self.take(id).is_some() {
            self.note_change(*id);
        }
    }

    fn note_change(&mut self, id: NodeId) {
        self.version += 1;
        self.changed.insert(id);
    }

    fn put(&mut self, id: NodeId, entry: Entry) {
        self.bytes += entry.lsa.encoded().len();
        self.expiries.insert((entry.expires, id));
        let content = &entry.lsa.content;
        for group in content.hears.chunk_by(|a, b| a.from == b.from) {
            if group[0].from != id {
                *self.heard_by.entry(group[0].from).or_default() += 1;
            }
        }
        if !content.withdrawn {
            self.addresses.insert(entry.address, id);
            if !content.name.is_empty() {
                self.names
                    .entry(content.name.clone())
                    .or_default()
                    .insert(id);
            }
            for prefix in &content.prefixes {
                let holders = self.prefixes.entry(prefix_key(prefix)).or_default();
                if holders.is_empty() {
                    let (v4, len, _) = prefix_key(prefix);
                    *self.lengths.entry((v4, len)).or_default() += 1;
                }
                holders.insert(id);
            }
        }
        self.entries.insert(id, entry);
    }

    fn take(&mut self, id: &NodeId) -> Option<Entry> {
        let entry = self.entries.remove(id)?;
        self.bytes -= entry.lsa.encoded().len();
        self.expiries.remove(&(entry.expires, *id));
        let content = &entry.lsa.content;
        for group in content.hears.chunk_by(|a, b| a.from == b.from) {
            if let Some(count) = self
                .heard_by
                .get_mut(&group[0].from)
                .filter(|_| group[0].from != *id)
            {
                *count -= 1;
                if *count == 0 {
                    self.heard_by.remove(&group[0].from);
                }
            }
        }
        if !content.withdrawn {
            if self.addresses.get(&entry.address) == Some(id) {
                self.addresses.remove(&entry.address);
            }
            if let Some(holders) = self.names.get_mut(&content.name) {
                holders.remove(id);
                if holders.is_empty() {
                    self.names.remove(&content.name);
                }
            }
            for prefix in &content.prefixes {
                let key = prefix_key(prefix);
                let Some(holders) = self.prefixes.get_mut(&key) else {
                    continue;
                };
                holders.remove(id);
                if holders.is_empty() {
                    self.prefixes.remove(&key);
                    if let Some(count) = self.lengths.get_mut(&(key.0, key.1)) {
                        *count -= 1;
                        if *count == 0 {
                            self.lengths.remove(&(key.0, key.1));
                        }
                    }
                }
            }
        }
        Some(entry)
    }

    /// The nodes whose content changed, came or went since the last call.
    pub fn take_changes(&mut self) -> BTreeSet<NodeId> {
        std::mem::take(&mut self.changed)
    }

    /// Changes with every change of content (not with refreshes).
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// One node's entry, withdrawn or not.
    #[must_use]
    pub fn get(&self, id: &NodeId) -> Option<&Entry> {
        self.entries.get(id)
    }

    /// All entries in the order of node ids, withdrawn ones included.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&NodeId, &Entry)> {
        self.entries.iter()
    }

    /// The entries of a closed range of node ids.
    pub fn range(&self, first: NodeId, last: NodeId) -> impl Iterator<Item = (&NodeId, &Entry)> {
        self.entries.range(first..=last.max(first))
    }

    /// How many nodes have an entry.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all encoded LSAs.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// What it may hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// The network it is of.
    #[must_use]
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// Whose database it is.
    #[must_use]
    pub fn own(&self) -> NodeId {
        self.own
    }

    /// The node with an overlay address.
    #[must_use]
    pub fn by_address(&self, address: &Ipv6Addr) -> Option<NodeId> {
        self.addresses.get(address).copied()
    }

    /// The node of a name. Of several, the one of the lowest cost, then of the lowest id; nodes without a path last.
    #[must_use]
    pub fn by_name(&self, name: &str, cost: impl Fn(&NodeId) -> Option<u32>) -> Option<NodeId> {
        best(self.names.get(name)?, cost)
    }

    /// All nodes of a name.
    pub fn all_by_name(&self, name: &str) -> impl Iterator<Item = NodeId> {
        self.names.get(name).into_iter().flatten().copied()
    }

    /// The node to send to for an address: its own if it is an overlay address, else that of the longest prefix with a
    /// path. Of several that advertise it, the one of the lowest cost, then of the lowest id.
    #[must_use]
    pub fn by_destination(
        &self,
        destination: IpAddr,
        cost: impl Fn(&NodeId) -> Option<u32>,
    ) -> Option<NodeId> {
        if let IpAddr::V6(v6) = destination
            && self.network.contains(&v6)
        {
            return self.by_address(&v6);
        }
        let v4 = destination.is_ipv4();
        let of_family = (v4, std::cmp::Reverse(u8::MAX))..=(v4, std::cmp::Reverse(0));
        self.lengths
            .range(of_family)
            .find_map(|(&(_, std::cmp::Reverse(len)), _)| {
                let network = Prefix::masked_to(destination, len);
                let holders = self.prefixes.get(&(v4, std::cmp::Reverse(len), network))?;
                best(holders, &cost).filter(|id| cost(id).is_some())
            })
    }

    /// All advertised prefixes with the node each leads to, chosen as in [`Lsdb::by_destination`].
    pub fn prefixes(
        &self,
        cost: impl Fn(&NodeId) -> Option<u32>,
    ) -> Vec<(IpAddr, u8, NodeId, Option<u32>)> {
        let chosen = |(&(_, len, address), holders): (&PrefixKey, &BTreeSet<NodeId>)| {
            let id = best(holders, &cost)?;
            Some((address, len.0, id, cost(&id)))
        };
        self.prefixes.iter().filter_map(chosen).collect()
    }

    /// All advertised services.
    pub fn services(&self) -> impl Iterator<Item = (NodeId, &Service)> {
        self.entries.iter().flat_map(|(id, entry)| {
            entry
                .lsa
                .content
                .services
                .iter()
                .map(|service| (*id, service))
        })
    }

    /// All encoded LSAs with their ages, to be offered to a new database by [`Lsdb::insert`] after a restart.
    #[must_use]
    pub fn export(&self, now: Micros) -> Vec<(u16, Bytes)> {
        self.entries
            .values()
            .filter(|entry| entry.worth_sending(now))
            .map(|entry| (entry.age_s(now), entry.lsa.encoded().clone()))
            .collect()
    }
}

fn best(holders: &BTreeSet<NodeId>, cost: impl Fn(&NodeId) -> Option<u32>) -> Option<NodeId> {
    holders
        .iter()
        .min_by_key(|id| (cost(id).unwrap_or(u32::MAX), **id))
        .copied()
}
