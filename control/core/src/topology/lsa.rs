//! One node's signed link-state advertisement (LSA).
//!
//! A node speaks for itself only: which links it *sends* on, and which links it *hears* with what it measured of them.
//! A directed link counts once both ends name it under the same [`LinkId`] (see [`cspf`](super::cspf)), so nobody can
//! lie a link into being. The encoding is canonical: one advertisement has exactly one byte string, and whatever
//! deviates (order, padding, host bits of a prefix, trailing bytes) is refused. There is no wall clock: an LSA carries
//! the lifetime it was given, and its age travels beside it, outside the signature. A member can therefore keep a gone
//! node's last LSA alive by telling too low an age; since the others no longer hear that node, no link follows from it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use bytes::Bytes;

use crate::{
    identity::{Identity, NetworkId, NodeId},
    wire::{Reader, WireError, Writer},
};

/// Longest name of a node, in bytes of UTF-8.
pub const MAX_NAME_LEN: usize = 63;
/// Most neighbours one LSA names.
pub const MAX_NEIGHBOURS: usize = 128;
/// Most parallel links with one neighbour in one direction.
pub const MAX_PARALLEL_LINKS: usize = 16;
/// Most links one LSA names in one direction, all neighbours together.
pub const MAX_LINKS: usize = 256;
/// Most prefixes one node advertises.
pub const MAX_PREFIXES: usize = 64;
/// Most services one node advertises.
pub const MAX_SERVICES: usize = 32;
/// Longest encoded LSA with its signature, in bytes: what the counts above can add up to.
pub const MAX_LSA_LEN: usize = 20 * 1024;
/// Longest lifetime an LSA may claim, in seconds.
pub const MAX_LIFETIME_S: u16 = 3600;
/// Highest cost of one link. A path of [`MAX_HOPS`](super::cspf::MAX_HOPS) such links fits a `u32` many times over.
pub const MAX_COST: u32 = 1_000_000;
/// One-way delay nobody has measured.
pub const UNKNOWN_DELAY: u32 = u32::MAX;
/// Capacity nobody has measured.
pub const UNKNOWN_CAPACITY: u32 = 0;

const VERSION: u8 = 1;
const SIGNATURE_CONTEXT: &[u8] = b"weft lsa 1\0";
const SIGNATURE_LEN: usize = 64;
const FLAG_OVERLOAD: u8 = 1;
const FLAG_NO_TRANSIT: u8 = 2;
const FLAG_WITHDRAWN: u8 = 4;

/// Names one directed link among the parallel ones of a (sender, receiver) pair. The sender chooses it and tells the
/// receiver in the link handshake; it stays the same over rekeys.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// What a node says of a link it sends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendLink {
    /// Who is to receive.
    pub to: NodeId,
    /// Which of the parallel links.
    pub link: LinkId,
    /// Largest packet it takes, bytes of IP packet of the underlay.
    pub mtu: u16,
    /// What the sender can do on it; unknown bits are kept and ignored.
    pub capability: u8,
}

/// What a receiver measured of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    /// The metric paths add up, 1..=[`MAX_COST`]; see [`Measured::metric`].
    pub cost: u32,
    /// Packets lost, parts per million.
    pub loss_ppm: u32,
    /// One-way delay in microseconds, or [`UNKNOWN_DELAY`].
    pub delay_us: u32,
    /// Mean deviation of the delay, microseconds.
    pub jitter_us: u32,
    /// Capacity in kilobits per second, or [`UNKNOWN_CAPACITY`].
    pub capacity_kbps: u32,
}

impl Measured {
    /// Nothing known but that packets arrive: the metric of a link just heard.
    pub const UNKNOWN: Self = Self {
        cost: 100,
        loss_ppm: 0,
        delay_us: UNKNOWN_DELAY,
        jitter_us: 0,
        capacity_kbps: UNKNOWN_CAPACITY,
    };

    /// Fills in the cost that follows from the rest.
    #[must_use]
    pub fn with_metric(mut self) -> Self {
        self.cost = self.metric();
        self
    }

    /// The metric in integers, so that every node computes the same: 10 for the hop, 10 per millisecond of delay, 5 per
    /// millisecond of jitter, 10 Gbit/s over the capacity, all divided by the square of the delivery ratio (a packet
    /// lost costs the ends more than the link's share).
    #[must_use]
    pub fn metric(&self) -> u32 {
        let delay = if self.delay_us == UNKNOWN_DELAY {
            50
        } else {
            u64::from(self.delay_us) / 100
        };
        let jitter = u64::from(self.jitter_us) / 200;
        let capacity = match self.capacity_kbps {
            UNKNOWN_CAPACITY => 10,
            known => (10_000_000 / u64::from(known)).min(10_000),
        };
        let delivered = 1_000_000 - u64::from(self.loss_ppm.min(990_000));
        let sum = (10 + delay + jitter + capacity).min(u64::from(MAX_COST));
        let scaled = sum * 1_000_000 / delivered * 1_000_000 / delivered;
        u32::try_from(scaled.clamp(1, u64::from(MAX_COST))).unwrap_or(MAX_COST)
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.delay_us {
            UNKNOWN_DELAY => write!(f, "delay unknown")?,
            delay => write!(f, "delay {:.2} ms", f64::from(delay) / 1e3)?,
        }
        write!(
            f,
            ", jitter {:.2} ms, loss {:.2} %, ",
            f64::from(self.jitter_us) / 1e3,
            f64::from(self.loss_ppm) / 1e4
        )?;
        match self.capacity_kbps {
            UNKNOWN_CAPACITY => write!(f, "capacity unknown"),
            capacity => write!(f, "{:.1} Mbit/s", f64::from(capacity) / 1e3),
        }
    }
}

/// What a node says of a link it hears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HearLink {
    /// Who sends.
    pub from: NodeId,
    /// Which of the parallel links.
    pub link: LinkId,
    /// What was measured.
    pub measured: Measured,
}

/// A destination behind a node. Canonical: no host bits, no address that cannot be routed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    len: u8,
}

impl Prefix {
    /// Checks and makes a prefix.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, LsaError> {
        let bad = |why| LsaError::Prefix { address, len, why };
        let max = if address.is_ipv4() { 32 } else { 128 };
        if len > max {
            return Err(bad("longer than the address"));
        }
        let prefix = Self { address, len };
        if prefix.masked(address) != address {
            return Err(bad("has bits set beyond its length"));
        }
        let routable = len == 0
            || match address {
                IpAddr::V4(v4) => {
                    !v4.is_multicast()
                        && !v4.is_loopback()
                        && !v4.is_link_local()
                        && !v4.is_broadcast()
                }
                IpAddr::V6(v6) => {
                    !v6.is_multicast()
                        && !v6.is_loopback()
                        && !v6.is_unicast_link_local()
                        && v6.to_ipv4_mapped().is_none()
                }
            };
        if !routable {
            Err(bad("is multicast, loopback, link-local or mapped"))
        } else {
            Ok(prefix)
        }
    }

    /// Network address.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Length in bits.
    #[must_use]
    pub fn len(&self) -> u8 {
        self.len
    }

    /// Whether it is a default route.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && self.masked(address) == self.address
    }

    fn masked(&self, address: IpAddr) -> IpAddr {
        Self::masked_to(address, self.len)
    }

    /// The first `len` bits of an address, the rest zero.
    pub(super) fn masked_to(address: IpAddr, len: u8) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                let mask = u32::MAX
                    .checked_shl(32 - u32::from(len.min(32)))
                    .unwrap_or(0);
                IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() & mask))
            }
            IpAddr::V6(v6) => {
                let mask = u128::MAX
                    .checked_shl(128 - u32::from(len.min(128)))
                    .unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

/// A service at a node's overlay address. The mesh only carries the words.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Service {
    /// Same rules as a node's name.
    pub name: String,
    /// Port at the overlay address.
    pub port: u16,
}

/// What a node says about itself, apart from identity and sequence. Order is of no importance here; encoding sorts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LsaContent {
    /// For people; empty or 1..=[`MAX_NAME_LEN`] bytes without control characters.
    pub name: String,
    /// Asks others to path around it for now (it still answers for itself).
    pub overload: bool,
    /// Does not forward for others by configuration.
    pub no_transit: bool,
    /// The node leaves: an empty advertisement that supersedes what it said before.
    pub withdrawn: bool,
    /// Links it sends on.
    pub sends: Vec<SendLink>,
    /// Links it hears.
    pub hears: Vec<HearLink>,
    /// Destinations behind it.
    pub prefixes: Vec<Prefix>,
    /// Services at it.
    pub services: Vec<Service>,
}

impl LsaContent {
    /// The farewell: nothing but the withdrawal.
    #[must_use]
    pub fn withdrawal() -> Self {
        Self {
            withdrawn: true,
            ..Self::default()
        }
    }

    /// Sorts, removes duplicates and cuts to the bounds, so that it can be encoded. Returns how many entries that cost.
    pub fn normalise(&mut self) -> usize {
        if checked_name(&self.name, true).is_err() {
            self.name.clear();
        }
        if self.withdrawn {
            *self = Self::withdrawal();
        }
        let before =
            self.sends.len() + self.hears.len() + self.prefixes.len() + self.services.len();
        self.sends.sort_by_key(|l| (l.to, l.link));
        self.sends.dedup_by_key(|l| (l.to, l.link));
        self.hears.sort_by_key(|l| (l.from, l.link));
        self.hears.dedup_by_key(|l| (l.from, l.link));
        for hear in &mut self.hears {
            hear.measured.cost = hear.measured.cost.clamp(1, MAX_COST);
            hear.measured.loss_ppm = hear.measured.loss_ppm.min(1_000_000);
        }
        self.limit_links();
        self.prefixes.sort();
        self.prefixes.dedup();
        self.prefixes.truncate(MAX_PREFIXES);
        self.prefixes
            .retain(|prefix| Prefix::new(prefix.address, prefix.len).is_ok());
        self.services
            .retain(|service| checked_name(&service.name, false).is_ok());
        self.services.sort();
        self.services.dedup();
        self.services.truncate(MAX_SERVICES);
        before - (self.sends.len() + self.hears.len() + self.prefixes.len() + self.services.len())
    }

    fn limit_links(&mut self) {
        let mut few = few_per_node();
        self.sends.retain(|l| few(l.to));
        let mut few = few_per_node();
        self.hears.retain(|l| few(l.from));
        // Neighbours both ways first: a cut must not turn links into one-way ones.
        let mut directions = BTreeMap::<NodeId, u8>::new();
        self.sends
            .iter()
            .for_each(|l| *directions.entry(l.to).or_default() |= 1);
        self.hears
            .iter()
            .for_each(|l| *directions.entry(l.from).or_default() |= 2);
        if directions.len() > MAX_NEIGHBOURS {
            let mut ranked: Vec<_> = directions
                .into_iter()
                .map(|(id, seen)| (seen != 3, id))
                .collect();
            ranked.sort();
            let dropped: BTreeSet<_> = ranked.drain(MAX_NEIGHBOURS..).map(|(_, id)| id).collect();
            self.sends.retain(|l| !dropped.contains(&l.to));
            self.hears.retain(|l| !dropped.contains(&l.from));
        }
        self.sends.truncate(MAX_LINKS);
        self.hears.truncate(MAX_LINKS);
    }
}

/// Tells of an ascending sequence of nodes which to keep so that none occurs more than [`MAX_PARALLEL_LINKS`] times.
fn few_per_node() -> impl FnMut(NodeId) -> bool {
    let mut previous = (None, 0);
    move |node| {
        previous = (
            Some(node),
            if previous.0 == Some(node) {
                previous.1 + 1
            } else {
                1
            },
        );
        previous.1 <= MAX_PARALLEL_LINKS
    }
}

/// Identifies one instance of one node's LSA: a BLAKE2s hash of the whole encoding.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 16]);

impl Digest {
    /// Of these bytes.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use blake2::Digest as _;
        let hash: [u8; 32] = blake2::Blake2s256::digest(bytes).into();
        let mut short = [0; 16];
        short.copy_from_slice(&hash[..16]);
        Self(short)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Digest({:08x})",
            u32::from_be_bytes([self.0[0], self.0[1], self.0[2], self.0[3]])
        )
    }
}

/// An advertisement whose encoding was checked, with that encoding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lsa {
    /// Whose it is.
    pub origin: NodeId,
    /// Higher supersedes lower.
    pub sequence: u64,
    /// Seconds it is valid for from its origination.
    pub lifetime_s: u16,
    /// What it says.
    pub content: LsaContent,
    /// Of the encoding.
    pub digest: Digest,
    encoded: Bytes,
}

/// The part of an LSA read before its signature is worth checking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LsaHeader {
    /// Whose it claims to be.
    pub origin: NodeId,
    /// Its sequence.
    pub sequence: u64,
    /// Of the encoding.
    pub digest: Digest,
}

/// Why bytes are no LSA of this network.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LsaError {
    /// Truncated, too long or an impossible value.
    #[error("malformed LSA: {0}")]
    Wire(#[from] WireError),
    /// A format this version does not know.
    #[error("LSA format {0}, expected {VERSION}")]
    Version(u8),
    /// Made for another network.
    #[error("LSA is for another network")]
    ForeignNetwork,
    /// Longer than [`MAX_LSA_LEN`].
    #[error("LSA of {0} bytes, at most {MAX_LSA_LEN} are allowed")]
    TooLong(usize),
    /// A count or value beyond its bound.
    #[error("LSA field {field} is {value}, allowed is {allowed}")]
    Bound {
        /// Which.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What would be right.
        allowed: &'static str,
    },
    /// Entries must ascend without duplicates.
    #[error("LSA {0} are not in ascending order")]
    Order(&'static str),
    /// A name with control characters or of a wrong length.
    #[error(
        "LSA name {0:?}: at most {MAX_NAME_LEN} bytes of UTF-8 without control characters or white space"
    )]
    Name(String),
    /// A prefix that cannot be advertised.
    #[error("prefix {address}/{len} {why}")]
    Prefix {
        /// Its address.
        address: IpAddr,
        /// Its length.
        len: u8,
        /// What is wrong.
        why: &'static str,
    },
    /// A withdrawal that says more than that.
    #[error("a withdrawal must not carry anything else")]
    WithdrawalWithContent,
    /// The origin did not sign this.
    #[error("LSA signature does not verify under its origin's key")]
    Signature,
}

impl LsaContent {
    /// Whether two contents (normalised) say the same but for what was measured. Equal ones do.
    #[must_use]
    pub fn differs_in_figures_only(&self, other: &Self) -> bool {
        let name = |l: &HearLink| (l.from, l.link);
        let rest = |c: &Self| (c.overload, c.no_transit, c.withdrawn);
        rest(self) == rest(other)
            && self.name == other.name
            && self.sends == other.sends
            && self.hears.iter().map(name).eq(other.hears.iter().map(name))
            && self.prefixes == other.prefixes
            && self.services == other.services
    }

    /// The links it sends on to a node, ascending by link id. Meaningful once normalised.
    #[must_use]
    pub fn sent_to(&self, node: NodeId) -> &[SendLink] {
        let start = self.sends.partition_point(|l| l.to < node);
        let end = self.sends.partition_point(|l| l.to <= node);
        &self.sends[start..end]
    }

    /// The links it hears from a node, ascending by link id. Meaningful once normalised.
    #[must_use]
    pub fn heard_from(&self, node: NodeId) -> &[HearLink] {
        let start = self.hears.partition_point(|l| l.from < node);
        let end = self.hears.partition_point(|l| l.from <= node);
        &self.hears[start..end]
    }
}

impl Lsa {
    /// Signs an advertisement. The content is normalised first; `lifetime_s` is cut to [`MAX_LIFETIME_S`].
    #[must_use]
    pub fn sign(
        identity: &Identity,
        network: &NetworkId,
        sequence: u64,
        lifetime_s: u16,
        mut content: LsaContent,
    ) -> Self {
        content.normalise();
        let lifetime_s = lifetime_s.clamp(1, MAX_LIFETIME_S);
        let mut writer = Writer::with_capacity(512);
        let flags = [
            (content.overload, FLAG_OVERLOAD),
            (content.no_transit, FLAG_NO_TRANSIT),
            (content.withdrawn, FLAG_WITHDRAWN),
        ];
        let flags = flags
            .iter()
            .filter(|(set, _)| *set)
            .map(|(_, flag)| flag)
            .sum();
        writer
            .u8(VERSION)
            .u8(flags)
            .bytes(&network.0)
            .node_id(&identity.id())
            .u64(sequence)
            .u16(lifetime_s);
        write_content(&mut writer, &content);
        let signature = identity.sign(&[SIGNATURE_CONTEXT, writer.as_slice()].concat());
        writer.bytes(&signature);
        let encoded = Bytes::from(writer.finish());
        Self {
            origin: identity.id(),
            sequence,
            lifetime_s,
            content,
            digest: Digest::of(&encoded),
            encoded,
        }
    }

    /// Reads no further than needed to tell whether the LSA would be news. Nothing of it is authentic yet.
    pub fn header(encoded: &[u8]) -> Result<LsaHeader, LsaError> {
        if encoded.len() > MAX_LSA_LEN {
            return Err(LsaError::TooLong(encoded.len()));
        }
        let mut reader = Reader::new(encoded);
        match reader.u8()? {
            VERSION => {}
            other => return Err(LsaError::Version(other)),
        }
        reader.bytes(1 + 5)?;
        Ok(LsaHeader {
            origin: reader.node_id()?,
            sequence: reader.u64()?,
            digest: Digest::of(encoded),
        })
    }

    /// Reads and checks everything, the signature included.
    pub fn decode(encoded: &[u8], network: &NetworkId) -> Result<Self, LsaError> {
        let header = Self::header(encoded)?;
        let body_len = encoded
            .len()
            .checked_sub(SIGNATURE_LEN)
            .ok_or(WireError::Truncated {
                wanted: SIGNATURE_LEN,
                left: encoded.len(),
            })?;
        let (body, signature) = encoded.split_at(body_len);
        let mut reader = Reader::new(body);
        reader.u8()?;
        let flags = reader.u8()?;
        if flags & !(FLAG_OVERLOAD | FLAG_NO_TRANSIT | FLAG_WITHDRAWN) != 0 {
            return Err(LsaError::Bound {
                field: "flags",
                value: flags.into(),
                allowed: "0..=7",
            });
        }
        if reader.array::<5>()? != network.0 {
            return Err(LsaError::ForeignNetwork);
        }
        reader.bytes(32 + 8)?;
        let lifetime_s = reader.u16()?;
        if !(1..=MAX_LIFETIME_S).contains(&lifetime_s) {
            return Err(LsaError::Bound {
                field: "lifetime",
                value: lifetime_s.into(),
                allowed: "1..=3600",
            });
        }
        let mut content = read_content(&mut reader)?;
        reader.finish()?;
        content.overload = flags & FLAG_OVERLOAD != 0;
        content.no_transit = flags & FLAG_NO_TRANSIT != 0;
        content.withdrawn = flags & FLAG_WITHDRAWN != 0;
        if content.withdrawn && content != LsaContent::withdrawal() {
            return Err(LsaError::WithdrawalWithContent);
        }
        verify(&header, body, signature)?;
        let LsaHeader {
            origin,
            sequence,
            digest,
        } = header;
        Ok(Self {
            origin,
            sequence,
            lifetime_s,
            content,
            digest,
            encoded: Bytes::copy_from_slice(encoded),
        })
    }

    /// The signed bytes.
    #[must_use]
    pub fn encoded(&self) -> &Bytes {
        &self.encoded
    }
}

fn verify(header: &LsaHeader, body: &[u8], signature: &[u8]) -> Result<(), LsaError> {
    let signature = <&[u8; SIGNATURE_LEN]>::try_from(signature).map_err(|_| LsaError::Signature)?;
    #[cfg(feature = "sim")]
    if memo::known_good(&header.digest) {
        return Ok(());
    }
    if !header
        .origin
        .verify(&[SIGNATURE_CONTEXT, body].concat(), signature)
    {
        return Err(LsaError::Signature);
    }
    #[cfg(feature = "sim")]
    memo::remember(header.digest);
    Ok(())
}

/// In a simulation hundreds of nodes verify the very same bytes: each LSA is verified once per process instead.
#[cfg(feature = "sim")]
pub mod memo {
    use std::{cell::RefCell, collections::HashSet};

    use super::Digest;

    const MAX: usize = 1 << 20;

    thread_local! {
        static GOOD: RefCell<Option<HashSet<Digest>>> = const { RefCell::new(None) };
    }

    /// Turns the memory of this thread on (empty) or off.
    pub fn enable(on: bool) {
        GOOD.with(|good| *good.borrow_mut() = on.then(HashSet::new));
    }

    pub(super) fn known_good(digest: &Digest) -> bool {
        GOOD.with(|good| {
            good.borrow()
                .as_ref()
                .is_some_and(|set| set.contains(digest))
        })
    }

    pub(super) fn remember(digest: Digest) {
        GOOD.with(|good| {
            if let Some(set) = good.borrow_mut().as_mut() {
                if set.len() >= MAX {
                    set.clear();
                }
                set.insert(digest);
            }
        });
    }
}

fn write_content(writer: &mut Writer, content: &LsaContent) {
    let neighbours: BTreeSet<_> = content
        .sends
        .iter()
        .map(|l| l.to)
        .chain(content.hears.iter().map(|l| l.from))
        .collect();
    let neighbours: Vec<_> = neighbours.into_iter().collect();
    writer.text(&content.name).list(&neighbours, |writer, id| {
        writer
            .node_id(id)
            .list(content.sent_to(*id), |writer, send| {
                writer.u32(send.link.0).u16(send.mtu).u8(send.capability);
            });
        writer.list(content.heard_from(*id), |writer, hear| {
            let Measured {
                cost,
                loss_ppm,
                delay_us,
                jitter_us,
                capacity_kbps,
            } = hear.measured;
            writer
                .u32(hear.link.0)
                .u32(cost)
                .u32(loss_ppm)
                .u32(delay_us)
                .u32(jitter_us)
                .u32(capacity_kbps);
        });
    });
    writer.list(&content.prefixes, |writer, prefix| {
        writer.ip(&prefix.address).u8(prefix.len);
    });
    writer.list(&content.services, |writer, service| {
        writer.text(&service.name).u16(service.port);
    });
}

fn read_content(reader: &mut Reader<'_>) -> Result<LsaContent, LsaError> {
    let name = checked_name(reader.text("name", MAX_NAME_LEN)?, true)?;
    let mut content = LsaContent {
        name,
        ..LsaContent::default()
    };
    let mut previous = None;
    for _ in 0..reader.count("neighbours", MAX_NEIGHBOURS)? {
        let id = reader.node_id()?;
        if previous.is_some_and(|previous| previous >= id) {
            return Err(LsaError::Order("neighbours"));
        }
        previous = Some(id);
        let sends = reader.list("sending links", MAX_PARALLEL_LINKS, |reader| {
            let link = LinkId(reader.u32()?);
            Ok(SendLink {
                to: id,
                link,
                mtu: reader.u16()?,
                capability: reader.u8()?,
            })
        })?;
        let hears = reader.list("heard links", MAX_PARALLEL_LINKS, |reader| {
            let link = LinkId(reader.u32()?);
            let measured = Measured {
                cost: reader.u32()?,
                loss_ppm: reader.u32()?,
                delay_us: reader.u32()?,
                jitter_us: reader.u32()?,
                capacity_kbps: reader.u32()?,
            };
            Ok(HearLink {
                from: id,
                link,
                measured,
            })
        })?;
        if sends.is_empty() && hears.is_empty() {
            return Err(LsaError::Bound {
                field: "links with a neighbour",
                value: 0,
                allowed: "at least 1",
            });
        }
        ascending("sending links", &sends, |l| l.link)?;
        ascending("heard links", &hears, |l| l.link)?;
        for Measured { cost, loss_ppm, .. } in hears.iter().map(|l| l.measured) {
            if !(1..=MAX_COST).contains(&cost) {
                return Err(LsaError::Bound {
                    field: "cost",
                    value: cost.into(),
                    allowed: "1..=1000000",
                });
            }
            if loss_ppm > 1_000_000 {
                return Err(LsaError::Bound {
                    field: "loss",
                    value: loss_ppm.into(),
                    allowed: "0..=1000000",
                });
            }
        }
        content.sends.extend(sends);
        content.hears.extend(hears);
    }
    if content.sends.len().max(content.hears.len()) > MAX_LINKS {
        let value = content.sends.len().max(content.hears.len()) as u64;
        return Err(LsaError::Bound {
            field: "links",
            value,
            allowed: "at most 256 each way",
        });
    }
    for _ in 0..reader.count("prefixes", MAX_PREFIXES)? {
        let address = reader.ip()?;
        content.prefixes.push(Prefix::new(address, reader.u8()?)?);
    }
    ascending("prefixes", &content.prefixes, |prefix| *prefix)?;
    for _ in 0..reader.count("services", MAX_SERVICES)? {
        let name = checked_name(reader.text("service name", MAX_NAME_LEN)?, false)?;
        content.services.push(Service {
            name,
            port: reader.u16()?,
        });
    }
    ascending("services", &content.services, Clone::clone)?;
    Ok(content)
}

/// Checks a node's or service's name.
pub fn checked_name(name: &str, may_be_empty: bool) -> Result<String, LsaError> {
    let good = name.len() <= MAX_NAME_LEN
        && (may_be_empty || !name.is_empty())
        && !name.chars().any(|c| c.is_control() || c.is_whitespace());
    if good {
        Ok(name.to_owned())
    } else {
        Err(LsaError::Name(name.chars().take(MAX_NAME_LEN).collect()))
    }
}

fn ascending<T, K: Ord>(
    what: &'static str,
    items: &[T],
    key: impl Fn(&T) -> K,
) -> Result<(), LsaError> {
    if items.windows(2).all(|pair| key(&pair[0]) < key(&pair[1])) {
        Ok(())
    } else {
        Err(LsaError::Order(what))
    }
}
