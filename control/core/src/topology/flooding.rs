//! Reliable flooding of LSAs to the neighbours, and anti-entropy with each of them.
//!
//! Sans-IO: messages in by [`Flooding::on_message`], out by [`Flooding::poll_transmit`]; the owner carries them, in any
//! order, with loss or twice, directly or by way of others. Three mechanisms:
//!
//! - *Flooding*: what is news goes to every neighbour but the one it came from, until that neighbour acknowledges it by
//!   digest or shows that it has it. Retransmission backs off; messages are batched and paced per neighbour.
//! - *Anti-entropy*: neighbours compare hashes of ranges of node ids, narrow down where they differ, list and exchange
//!   what is missing. No state is kept between its messages, so none can be lost for good.
//! - *Damping*: this node's own LSA is issued with exponentially growing intervals while it keeps changing, and of each
//!   origin only so many new LSAs per time are taken in.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
};

use bytes::Bytes;

use super::{
    lsa::{Digest, Lsa, LsaContent, LsaError, LsaHeader},
    lsdb::{Lsdb, Outcome, WITHDRAWAL_MEMORY_S},
    peer::{
        ACK, Bucket, FRAGMENT, FRAGMENT_LEN, IN_SYNC, LIST, LSA, MAX_ACKS, MS, Neighbour, REQUEST,
        SUMMARY, SYNC_FAST, list_section, summary_section,
    },
    reconcile::{self, Item, MAX_ITEMS, MAX_RANGES, Range},
};
use crate::{
    identity::{Identity, NodeId},
    io::Micros,
    wire::{Reader, WireError, Writer},
};

pub use super::peer::{MAX_MESSAGE, WINDOW};

/// Most neighbours flooded to.
pub const MAX_FLOOD_NEIGHBOURS: usize = super::lsa::MAX_NEIGHBOURS;

const SECOND: u64 = 1_000_000;
/// New LSAs of one origin taken in at once, and the time that earns one more.
const ARRIVAL_BURST: u64 = 10;
const ARRIVAL_INTERVAL: u64 = SECOND;

/// Time constants of origination and anti-entropy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FloodTimers {
    /// Lifetime given to own LSAs, seconds. They are refreshed at about half of it.
    pub lifetime_s: u16,
    /// Least time between two own LSAs that say of links or nodes that they came or went.
    pub originate_min: Micros,
    /// The longest that time grows to while they keep coming and going; also the time between two own LSAs in which
    /// nothing but figures of links changed.
    pub originate_max: Micros,
    /// Time between two comparisons with a neighbour while nothing differs.
    pub sync_interval: Micros,
}

impl Default for FloodTimers {
    fn default() -> Self {
        Self {
            lifetime_s: 1200,
            originate_min: Micros(100 * MS),
            originate_max: Micros(5 * SECOND),
            sync_interval: Micros(30 * SECOND),
        }
    }
}

/// Why a message of a neighbour was refused. What came before the fault in it has taken effect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The neighbour is not up.
    #[error("flooding message from {0}, which is not a neighbour that is up")]
    NotNeighbour(NodeId),
    /// Longer than [`MAX_MESSAGE`].
    #[error("flooding message of {0} bytes, at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// Malformed.
    #[error("malformed flooding message: {0}")]
    Wire(#[from] WireError),
    /// An LSA in it was refused.
    #[error(transparent)]
    Lsa(#[from] LsaError),
}

/// The state machine, with the database it keeps equal to its neighbours'.
pub struct Flooding {
    identity: Identity,
    timers: FloodTimers,
    lsdb: Lsdb,
    own: Origination,
    neighbours: BTreeMap<NodeId, Neighbour>,
    /// Whom `poll_transmit` served last.
    cursor: Option<NodeId>,
    arrivals: HashMap<NodeId, Bucket>,
    counters: BTreeMap<&'static str, u64>,
}

impl fmt::Debug for Flooding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flooding")
            .field("nodes", &self.lsdb.len())
            .field("sequence", &self.own.sequence)
            .finish()
    }
}

/// When and what this node says of itself.
#[derive(Debug, Default)]
struct Origination {
    wanted: Option<LsaContent>,
    issued: Option<LsaContent>,
    sequence: u64,
    /// Issue again though the content is the same (an LSA from before a restart was heard).
    supersede: bool,
    last: Option<Micros>,
    /// From when on an urgent one may be issued.
    urgent_from: Micros,
    /// When the urgent ones so far will be forgotten.
    cool_at: Micros,
    refresh_at: Option<Micros>,
}

impl Origination {
    /// Whether more has changed than figures of links: those wait, so that they never hold up the news of a link that
    /// is gone.
    fn is_urgent(&self) -> bool {
        match (&self.wanted, &self.issued) {
            (Some(wanted), Some(issued)) => {
                self.supersede || !wanted.differs_in_figures_only(issued)
            }
            (Some(_), None) => true,
            (None, _) => false,
        }
    }
}

impl Flooding {
    /// Starts with a database (empty, or filled from a snapshot) and the last sequence this node is known to have used
    /// (0 where nothing is known; what neighbours remember is then superseded when they tell).
    #[must_use]
    pub fn new(identity: Identity, lsdb: Lsdb, sequence: u64, timers: FloodTimers) -> Self {
        let own = Origination {
            sequence,
            ..Origination::default()
        };
        Self {
            identity,
            timers,
            lsdb,
            own,
            neighbours: BTreeMap::new(),
            cursor: None,
            arrivals: HashMap::new(),
            counters: BTreeMap::new(),
        }
    }

    /// The database.
    #[must_use]
    pub fn lsdb(&self) -> &Lsdb {
        &self.lsdb
    }

    /// The database, to take its changes.
    pub(super) fn lsdb_mut(&mut self) -> &mut Lsdb {
        &mut self.lsdb
    }

    /// The last sequence number used, for the snapshot.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.own.sequence
    }

    /// What was counted, by name.
    #[must_use]
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }

    /// Whether everything was delivered to everyone that is up.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.neighbours.values().all(|n| n.queued() == 0)
    }

    /// Entries queued for neighbours, for the bound on memory.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.neighbours.values().map(Neighbour::queued).sum()
    }

    /// Control messages can reach the neighbour now. False where it would be one too many.
    pub fn on_neighbour_up(&mut self, now: Micros, id: NodeId) -> bool {
        if self.neighbours.contains_key(&id) {
            return true;
        }
        if self.neighbours.len() >= MAX_FLOOD_NEIGHBOURS || id == self.identity.id() {
            self.count("flood_too_many_neighbours");
            return false;
        }
        // One of the two begins, the other makes up for it if that is lost.
        let wait = if self.identity.id() < id {
            0
        } else {
            SYNC_FAST
        };
        let mut neighbour = Neighbour::new(Micros(now.0 + wait));
        if let Some(entry) = self.lsdb.get(&self.identity.id()) {
            neighbour.offer(now, self.identity.id(), entry.lsa.digest);
        }
        self.neighbours.insert(id, neighbour);
        true
    }

    /// Control messages cannot reach the neighbour any more: what was queued for it is forgotten.
    pub fn on_neighbour_down(&mut self, id: &NodeId) {
        self.neighbours.remove(id);
    }

    /// Neighbours that are up.
    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.neighbours.keys().copied()
    }

    /// Says something (new) of this node, as soon as damping allows.
    pub fn originate(&mut self, now: Micros, mut content: LsaContent) {
        content.normalise();
        self.own.wanted = Some(content);
        self.originate_if_due(now);
    }

    /// Says at once that this node leaves.
    pub fn withdraw(&mut self, now: Micros) {
        self.own.wanted = Some(LsaContent::withdrawal());
        self.issue(now);
    }

    /// Does what time brings: expiry, refresh, damped origination.
    pub fn handle_timeout(&mut self, now: Micros) {
        if self.lsdb.expire(now) > 0 {
            self.arrivals.retain(|id, _| self.lsdb.get(id).is_some());
        }
        self.originate_if_due(now);
    }

    /// When [`Flooding::handle_timeout`] and [`Flooding::poll_transmit`] are wanted next.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Micros> {
        let own = self.originate_at();
        let neighbours = self.neighbours.values().map(Neighbour::next_event).min();
        [own, neighbours, self.lsdb.next_expiry()]
            .into_iter()
            .flatten()
            .min()
    }

    fn originate_at(&self) -> Option<Micros> {
        let own = &self.own;
        let wanted = own.wanted.as_ref()?;
        if own.is_urgent() {
            return Some(own.urgent_from);
        }
        if own.issued.as_ref() != Some(wanted) {
            return Some(
                own.last
                    .map_or(Micros(0), |at| at + self.timers.originate_max),
            );
        }
        own.refresh_at
    }

    fn originate_if_due(&mut self, now: Micros) {
        if self.originate_at().is_some_and(|at| at <= now) {
            self.issue(now);
        }
    }

    fn issue(&mut self, now: Micros) {
        let Some(content) = self.own.wanted.clone() else {
            return;
        };
        let FloodTimers {
            lifetime_s,
            originate_min,
            originate_max,
            ..
        } = self.timers;
        let lifetime_s = if content.withdrawn {
            WITHDRAWAL_MEMORY_S
        } else {
            lifetime_s
        };
        if self.own.is_urgent() {
            // Each one doubles the wait for the next, and half the longest wait without one halves it again.
            let cools = originate_max.0 / 2;
            self.own.cool_at = self.own.cool_at.max(now) + Micros(cools);
            let heat = (self.own.cool_at.since(now).0 / cools.max(1)).clamp(1, 16) - 1;
            let wait = (originate_min.0 << heat).min(originate_max.0);
            self.own.urgent_from = now + Micros(wait);
        }
        self.own.sequence = self.own.sequence.saturating_add(1);
        self.own.last = Some(now);
        self.own.supersede = false;
        let network = self.lsdb.network();
        let lsa = Lsa::sign(
            &self.identity,
            &network,
            self.own.sequence,
            lifetime_s,
            content.clone(),
        );
        // Spread over a tenth of the lifetime by id, so that a network started at once does not refresh at once.
        let spread = u64::from(self.identity.id().0[31]) * u64::from(lifetime_s) * SECOND / 2560;
        let refresh = (!content.withdrawn)
            .then(|| Micros(now.0 + u64::from(lifetime_s) * SECOND / 2 - spread));
        self.own.refresh_at = refresh;
        self.own.issued = Some(content);
        let (origin, digest) = (lsa.origin, lsa.digest);
        self.lsdb.insert_own(now, lsa);
        self.count("lsa_originated");
        self.flood(now, origin, digest, None);
    }

    fn flood(&mut self, now: Micros, origin: NodeId, digest: Digest, except: Option<NodeId>) {
        for (id, neighbour) in &mut self.neighbours {
            if Some(*id) != except {
                neighbour.offer(now, origin, digest);
            }
        }
    }

    fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_default() += 1;
    }

    /// Takes a message of a neighbour.
    pub fn on_message(
        &mut self,
        now: Micros,
        from: NodeId,
        message: &[u8],
    ) -> Result<(), MessageError> {
        let result = self.process(now, from, message);
        if let Err(error) = &result {
            self.count(match error {
                MessageError::NotNeighbour(_) => "flood_not_neighbour",
                MessageError::TooLong(_) | MessageError::Wire(_) => "flood_malformed",
                MessageError::Lsa(_) => "flood_bad_lsa",
            });
        }
        result
    }

    fn process(&mut self, now: Micros, from: NodeId, message: &[u8]) -> Result<(), MessageError> {
        if !self.neighbours.contains_key(&from) {
            return Err(MessageError::NotNeighbour(from));
        }
        if message.len() > MAX_MESSAGE {
            return Err(MessageError::TooLong(message.len()));
        }
        let mut reader = Reader::new(message);
        while reader.left() > 0 {
            match reader.u8()? {
                LSA => {
                    let age_s = reader.u16()?;
                    let encoded = reader.var_bytes("LSA", MAX_MESSAGE)?;
                    self.on_lsa(now, from, age_s, encoded)?;
                }
                ACK => {
                    let digests =
                        reader.list("acknowledgements", MAX_ACKS, |r| r.array().map(Digest))?;
                    if let Some(neighbour) = self.neighbours.get_mut(&from) {
                        digests
                            .iter()
                            .for_each(|digest| neighbour.acknowledged(now, digest));
                    }
                }
                FRAGMENT => {
                    let digest = Digest(reader.array()?);
                    let (age_s, total, index) = (reader.u16()?, reader.u16()?, reader.u8()?);
                    let chunk = reader.var_bytes("fragment", FRAGMENT_LEN)?;
                    let Some(neighbour) = self.neighbours.get_mut(&from) else {
                        continue;
                    };
                    if let Some((age_s, encoded)) =
                        neighbour.on_fragment(digest, age_s, total, index, chunk)?
                    {
                        self.on_lsa(now, from, age_s, &encoded)?;
                    }
                }
                SUMMARY => {
                    let (answer, first) = (reader.bool("answer")?, reader.node_id()?);
                    let ranges = reader.list("ranges", MAX_RANGES, |r| {
                        Ok((r.node_id()?, r.u32()?, Digest(r.array()?)))
                    })?;
                    self.on_summary(now, from, answer, first, &ranges);
                }
                LIST => {
                    let (first, last) = (reader.node_id()?, reader.node_id()?);
                    let items = reader.list("items", MAX_ITEMS, |r| {
                        Ok(Item {
                            origin: r.node_id()?,
                            sequence: r.u64()?,
                            digest: Digest(r.array()?),
                        })
                    })?;
                    self.on_list(now, from, first, last, &items);
                }
                REQUEST => {
                    for origin in reader.list("requests", MAX_ITEMS, Reader::node_id)? {
                        let entry = self
                            .lsdb
                            .get(&origin)
                            .filter(|entry| entry.worth_sending(now));
                        if let (Some(entry), Some(neighbour)) =
                            (entry, self.neighbours.get_mut(&from))
                        {
                            neighbour.offer(now, origin, entry.lsa.digest);
                        }
                    }
                }
                IN_SYNC => self.on_sync_answer(now, from, false),
                value => Err(WireError::Value {
                    field: "flooding section",
                    value: value.into(),
                })?,
            }
        }
        Ok(())
    }

    fn on_lsa(
        &mut self,
        now: Micros,
        from: NodeId,
        age_s: u16,
        encoded: &[u8],
    ) -> Result<(), MessageError> {
        let header = Lsa::header(encoded)?;
        let LsaHeader { origin, digest, .. } = header;
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return Ok(());
        };
        let news = matches!(
            self.lsdb.compare(&header),
            Outcome::Newer { .. } | Outcome::OwnEcho { .. }
        );
        if news && neighbour.is_muted(now) {
            self.count("flood_neighbour_muted");
            return Ok(());
        }
        let arrivals = self.arrivals.get(&origin).copied().unwrap_or(Bucket::FULL);
        if news && !arrivals.available(now, ARRIVAL_BURST, ARRIVAL_INTERVAL) {
            // Not acknowledged: the neighbour offers it (or what supersedes it) again later.
            self.count("lsa_damped");
            return Ok(());
        }
        let outcome = self.lsdb.insert(now, encoded, age_s);
        let neighbour = self
            .neighbours
            .get_mut(&from)
            .expect("looked up above, and nothing removes neighbours here");
        match outcome {
            Outcome::Newer { .. } => {
                neighbour.acknowledge(now, digest);
                neighbour.drop_pending(&origin);
                self.arrivals
                    .entry(origin)
                    .or_insert(Bucket::FULL)
                    .take(now, ARRIVAL_INTERVAL);
                self.count("lsa_accepted");
                self.flood(now, origin, digest, Some(from));
            }
            Outcome::Duplicate => {
                neighbour.acknowledge(now, digest);
                neighbour.drop_pending(&origin);
                self.count("lsa_duplicate");
            }
            Outcome::Older => {
                neighbour.acknowledge(now, digest);
                if let Some(entry) = self.lsdb.get(&origin) {
                    neighbour.offer(now, origin, entry.lsa.digest);
                }
                self.count("lsa_older");
            }
            Outcome::OwnEcho { sequence } => {
                neighbour.acknowledge(now, digest);
                self.own.sequence = self.own.sequence.max(sequence);
                self.own.supersede = true;
                self.count("lsa_own_echo");
                self.originate_if_due(now);
            }
            Outcome::Refused(refusal) => {
                self.count(refusal.name());
                match refusal {
                    super::lsdb::Refusal::Invalid(error) => {
                        if let Some(neighbour) = self.neighbours.get_mut(&from) {
                            neighbour.sent_invalid(now);
                        }
                        return Err(error.into());
                    }
                    // Valid, only not wanted here: the neighbour need not try again.
                    _ => {
                        if let Some(neighbour) = self.neighbours.get_mut(&from) {
                            neighbour.acknowledge(now, digest);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    fn on_sync_answer(&mut self, now: Micros, from: NodeId, differs: bool) {
        let interval = self.timers.sync_interval.0;
        if let Some(neighbour) = self.neighbours.get_mut(&from) {
            neighbour.synced(now, differs, interval);
        }
    }

    fn on_summary(
        &mut self,
        now: Micros,
        from: NodeId,
        answer: bool,
        first: NodeId,
        ranges: &[(NodeId, u32, Digest)],
    ) {
        if answer {
            self.on_sync_answer(now, from, true);
        }
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        let (mut first, mut dropped, mut differs) = (first, false, false);
        for (last, count, fingerprint) in ranges {
            if *last < first {
                break;
            }
            let range = Range { first, last: *last };
            let items = reconcile::items(&self.lsdb, now, range);
            if (items.len() as u64, reconcile::fingerprint(&items))
                != (u64::from(*count), *fingerprint)
            {
                differs = true;
                if *count == 0 {
                    items
                        .iter()
                        .for_each(|item| neighbour.offer(now, item.origin, item.digest));
                    // Nothing of the neighbour's is missing here, but it has to learn that we answered.
                    dropped |= !neighbour.reply(list_section(range, &[]));
                } else if items.len() <= MAX_ITEMS {
                    dropped |= !neighbour.reply(list_section(range, &items));
                } else {
                    dropped |= !neighbour.reply(summary_section(
                        true,
                        first,
                        &reconcile::split(&items, range),
                    ));
                }
            }
            match reconcile::successor(last) {
                Some(next) => first = next,
                None => break,
            }
        }
        if !differs && !answer {
            dropped |= !neighbour.reply(vec![IN_SYNC]);
        }
        if dropped {
            self.count("flood_reply_dropped");
        }
    }

    fn on_list(&mut self, now: Micros, from: NodeId, first: NodeId, last: NodeId, listed: &[Item]) {
        self.on_sync_answer(now, from, true);
        let own = self.identity.id();
        let Some(neighbour) = self.neighbours.get_mut(&from) else {
            return;
        };
        let ours = reconcile::items(&self.lsdb, now, Range { first, last });
        let theirs: BTreeMap<_, _> = listed.iter().map(|item| (item.origin, item)).collect();
        for item in &ours {
            let newer = theirs
                .get(&item.origin)
                .is_none_or(|their| (item.sequence, item.digest) > (their.sequence, their.digest));
            if newer {
                neighbour.offer(now, item.origin, item.digest);
            }
        }
        let wanted: Vec<_> = theirs
            .values()
            .filter(|item| (first..=last).contains(&item.origin))
            .filter(|item| {
                let header = LsaHeader {
                    origin: item.origin,
                    sequence: item.sequence,
                    digest: item.digest,
                };
                let news = self.lsdb.compare(&header);
                matches!(news, Outcome::Newer { .. })
                    || (item.origin == own && matches!(news, Outcome::OwnEcho { .. }))
            })
            .map(|item| item.origin)
            .collect();
        if !wanted.is_empty() {
            let mut writer = Writer::new();
            writer.u8(REQUEST).list(&wanted, |writer, id| {
                writer.node_id(id);
            });
            if !neighbour.reply(writer.finish()) {
                self.count("flood_reply_dropped");
            }
        }
    }

    /// The next message to carry to a neighbour; call until there is none.
    pub fn poll_transmit(&mut self, now: Micros) -> Option<(NodeId, Bytes)> {
        let after = self.cursor;
        let order = self
            .neighbours
            .keys()
            .copied()
            .filter(|id| after.is_none_or(|after| *id > after));
        let rest = self
            .neighbours
            .keys()
            .copied()
            .filter(|id| after.is_some_and(|after| *id <= after));
        let order: Vec<_> = order.chain(rest).collect();
        for id in order {
            let Some(neighbour) = self.neighbours.get_mut(&id) else {
                continue;
            };
            if neighbour.next_event() > now {
                continue;
            }
            if let Some(message) = neighbour.message(now, &self.lsdb, self.timers.sync_interval.0) {
                self.cursor = Some(id);
                *self.counters.entry("flood_messages_sent").or_default() += 1;
                return Some((id, message));
            }
        }
        None
    }
}
