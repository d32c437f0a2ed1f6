//! Forwarding tables of a simulated host: plain memory under the real decision code.
//!
//! They outlive a crash of the node, as the kernel's maps do.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{IpAddr, SocketAddr},
};

use weft_abi::{
    Address, Cell64, Config, ETHERNET_LEN, Encapsulation, Group, IPV4_LEN, IPV6_LEN, Label,
    LfibEntry, LfibOp, LinkState, NextHop, NextHopIndex, RxLink, Slot, Tables, TagKey, Window,
};

use crate::io::{DataplaneOp, SEQ_SKIP, UnderlayPath};

/// The interface every simulated packet goes out of: the underlay looks at addresses only.
const IFINDEX: u32 = 1;

/// Tables of one host.
pub struct HeapTables {
    config: Config,
    rx: BTreeMap<u16, Receiving>,
    lfib: BTreeMap<u32, LfibEntry>,
    groups: BTreeMap<u32, Group>,
    next_hops: BTreeMap<u32, Sending>,
    local: HashSet<[u64; 2]>,
    labelled: Cell<u64>,
    /// While a resumed node describes its tables: what it named.
    described: Option<BTreeSet<(u8, u32)>>,
}

struct Receiving {
    link: RxLink,
    windows: Box<[Window]>,
    key: TagKey,
}

struct Sending {
    hop: NextHop,
    up: bool,
    seqs: [Cell64; 16],
    path: UnderlayPath,
    key: TagKey,
    slot: Slot,
}

/// A value of which all zero bytes are a valid, empty one.
///
/// # Safety
/// Only for types of which that is so.
unsafe trait AllZero: Sized {
    fn empty() -> Self {
        // SAFETY: the trait's promise.
        unsafe { std::mem::zeroed() }
    }
}

// SAFETY: documented so in weft-abi's layout.
unsafe impl AllZero for RxLink {}
// SAFETY: documented so in weft-abi's layout.
unsafe impl AllZero for NextHop {}
// SAFETY: documented so in weft-abi's layout.
unsafe impl AllZero for Group {}
// SAFETY: documented so in weft-abi's layout.
unsafe impl AllZero for Config {}
// SAFETY: documented so in weft-abi's layout.
unsafe impl AllZero for Window {}

/// As weft-abi has it.
#[must_use]
pub fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => Address::v4(v4.octets()),
        IpAddr::V6(v6) => Address::v6(v6.octets()),
    }
}

fn key_words(key: &TagKey) -> [u64; 2] {
    let (low, high) = key.0.split_at(8);
    [low, high].map(|half| {
        half.iter()
            .rev()
            .fold(0, |word, byte| word << 8 | u64::from(*byte))
    })
}

/// Ethernet, IP and UDP headers of a path, as the maps hold them.
#[must_use]
pub fn encapsulation(path: &UnderlayPath, mtu: u16) -> Encapsulation {
    let mut headers = [0; 64];
    let (mut ip_sum, family, udp);
    match (path.local, path.remote) {
        (SocketAddr::V4(local), SocketAddr::V4(remote)) => {
            headers[12..14].copy_from_slice(&[0x08, 0x00]);
            let ip = &mut headers[ETHERNET_LEN..ETHERNET_LEN + IPV4_LEN];
            ip[0] = 0x45;
            ip[6] = 0x40;
            ip[8] = 64;
            ip[9] = 17;
            ip[12..16].copy_from_slice(&local.ip().octets());
            ip[16..20].copy_from_slice(&remote.ip().octets());
            ip_sum = ip
                .chunks(2)
                .map(|pair| u32::from(u16::from_ne_bytes([pair[0], pair[1]])))
                .sum::<u32>();
            while ip_sum > 0xffff {
                ip_sum = (ip_sum & 0xffff) + (ip_sum >> 16);
            }
            (family, udp) = (4, ETHERNET_LEN + IPV4_LEN);
        }
        (local, remote) => {
            headers[12..14].copy_from_slice(&[0x86, 0xdd]);
            let ip = &mut headers[ETHERNET_LEN..ETHERNET_LEN + IPV6_LEN];
            ip[0] = 0x60;
            ip[6] = 17;
            ip[7] = 64;
            ip[8..24].copy_from_slice(&address(local.ip()).octets());
            ip[24..40].copy_from_slice(&address(remote.ip()).octets());
            ip_sum = 0;
            (family, udp) = (6, ETHERNET_LEN + IPV6_LEN);
        }
    }
    headers[udp..udp + 2].copy_from_slice(&path.local.port().to_be_bytes());
    headers[udp + 2..udp + 4].copy_from_slice(&path.remote.port().to_be_bytes());
    Encapsulation {
        headers,
        ifindex: IFINDEX,
        mtu,
        ip_sum: ip_sum as u16,
        family,
        reserved: 0,
    }
}

impl HeapTables {
    /// Empty tables of a host with these addresses.
    #[must_use]
    pub fn new(port: u16, network_key: &TagKey, cookie: u64, local: &[IpAddr]) -> Self {
        let config = Config::empty();
        for (cell, word) in config.network_key.iter().zip(key_words(network_key)) {
            cell.store(word);
        }
        config.cookie.store(cookie);
        config
            .port
            .store(u32::from(u16::from_ne_bytes(port.to_be_bytes())));
        Self {
            config,
            rx: BTreeMap::new(),
            lfib: BTreeMap::new(),
            groups: BTreeMap::new(),
            next_hops: BTreeMap::new(),
            local: local.iter().map(|ip| address(*ip).0).collect(),
            labelled: Cell::new(0),
            described: None,
        }
    }

    /// The host's addresses changed.
    pub fn set_local(&mut self, local: &[IpAddr]) {
        self.local = local.iter().map(|ip| address(*ip).0).collect();
    }

    /// Forgets everything but configuration and addresses.
    pub fn clear(&mut self) {
        self.rx.clear();
        self.lfib.clear();
        self.groups.clear();
        self.next_hops.clear();
    }

    /// What follows describes the tables completely, until `Restored`.
    pub fn begin_restore(&mut self) {
        self.described = Some(BTreeSet::new());
    }

    /// Applies one change. Panics where the node contradicts the contract.
    pub fn apply(&mut self, op: &DataplaneOp) {
        match op {
            DataplaneOp::AddSlot {
                slot,
                key,
                path,
                echo,
            } => {
                self.describe(0, slot.0.into());
                let entry = self.rx.entry(slot.0);
                let entry = entry.or_insert_with(|| Receiving {
                    link: RxLink::empty(),
                    windows: (0..16).map(|_| Window::empty()).collect(),
                    key: *key,
                });
                if entry.key != *key {
                    entry.key = *key;
                    entry.windows.iter().for_each(Window::reset);
                }
                let link = &entry.link;
                link.key
                    .iter()
                    .zip(key_words(key))
                    .for_each(|(cell, word)| cell.store(word));
                link.echo.store(echo.map_or(0, |echo| echo.0));
                link.local
                    .iter()
                    .zip(address(path.local.ip()).0)
                    .for_each(|(cell, word)| cell.store(word));
                link.remote
                    .iter()
                    .zip(address(path.remote.ip()).0)
                    .for_each(|(cell, word)| cell.store(word));
                link.state.store(LinkState::Live as u32);
            }
            DataplaneOp::SetEcho { slot, echo } => {
                if let Some(entry) = self.rx.get(&slot.0) {
                    entry.link.echo.store(echo.map_or(0, |echo| echo.0));
                }
            }
            DataplaneOp::SetSlotPath { slot, path } => {
                if let Some(entry) = self.rx.get(&slot.0) {
                    entry
                        .link
                        .local
                        .iter()
                        .zip(address(path.local.ip()).0)
                        .for_each(|(cell, word)| cell.store(word));
                }
            }
            DataplaneOp::RetireSlot { slot } => {
                self.describe(0, slot.0.into());
                if let Some(entry) = self.rx.get(&slot.0) {
                    entry.link.state.store(LinkState::Retired as u32);
                }
            }
            DataplaneOp::RemoveSlot { slot } => {
                self.rx.remove(&slot.0);
            }
            DataplaneOp::AddNextHop {
                index,
                path,
                slot,
                key,
                mtu,
                seq_from,
            } => {
                self.describe(1, index.0);
                assert_ne!(index.0, 0, "next hop 0 means none");
                let same = |old: &Sending| (old.path, old.slot, old.key) == (*path, *slot, *key);
                if let Some(old) = self.next_hops.get_mut(&index.0).filter(|old| same(old)) {
                    old.hop.replace(&encapsulation(path, *mtu));
                    return;
                }
                let from = self
                    .next_hops
                    .get(&seq_from.0)
                    .map(|from| from.seqs.each_ref().map(Cell64::load));
                let seqs = from
                    .map_or([0; 16], |seqs| seqs.map(|seq| seq + SEQ_SKIP))
                    .map(Cell64::new);
                let hop = NextHop::empty();
                hop.slot.store(slot.0.into());
                hop.key
                    .iter()
                    .zip(key_words(key))
                    .for_each(|(cell, word)| cell.store(word));
                hop.replace(&encapsulation(path, *mtu));
                let entry = Sending {
                    hop,
                    up: true,
                    seqs,
                    path: *path,
                    key: *key,
                    slot: *slot,
                };
                self.next_hops.insert(index.0, entry);
            }
            DataplaneOp::SetNextHopUp { index, up } => {
                if let Some(entry) = self.next_hops.get_mut(&index.0) {
                    entry.up = *up;
                }
            }
            DataplaneOp::RemoveNextHop { index } => {
                self.next_hops.remove(&index.0);
            }
            DataplaneOp::SetGroup { group, buckets } => {
                self.describe(2, group.0);
                assert_ne!(group.0, 0, "group 0 means none");
                let entry = self.groups.entry(group.0).or_insert_with(Group::empty);
                for (cell, (primary, backup)) in entry.buckets.iter().zip(buckets) {
                    cell.store(u64::from(primary.0) << 32 | u64::from(backup.0));
                }
                // All empty: the group is free again.
                if buckets
                    .iter()
                    .all(|bucket| (bucket.0.0, bucket.1.0) == (0, 0))
                {
                    self.groups.remove(&group.0);
                }
            }
            DataplaneOp::SetLabel { label, entry } => {
                self.describe(3, label.0);
                assert!(
                    (16..1 << 20).contains(&label.0),
                    "label {} cannot be allocated",
                    label.0
                );
                if entry.op() == LfibOp::Empty {
                    self.lfib.remove(&label.0);
                } else {
                    self.lfib.insert(label.0, *entry);
                }
            }
            DataplaneOp::Restored => {
                if let Some(described) = self.described.take() {
                    self.rx
                        .retain(|index, _| described.contains(&(0, u32::from(*index))));
                    self.next_hops
                        .retain(|index, _| described.contains(&(1, *index)));
                    self.groups
                        .retain(|index, _| described.contains(&(2, *index)));
                    self.lfib
                        .retain(|index, _| described.contains(&(3, *index)));
                }
            }
        }
    }

    fn describe(&mut self, table: u8, index: u32) {
        if let Some(described) = &mut self.described {
            described.insert((table, index));
        }
    }

    /// The path of a next hop.
    #[must_use]
    pub fn path_of(&self, next_hop: NextHopIndex) -> Option<UnderlayPath> {
        self.next_hops.get(&next_hop.0).map(|entry| entry.path)
    }

    /// What the windows of every live slot counted: slot, sum of the highest sequence numbers, packets, bytes.
    pub fn slot_counters(&self) -> Vec<(Slot, u64, u64, u64)> {
        let sum =
            |windows: &[Window], of: &dyn Fn(&Window) -> u64| windows.iter().map(of).sum::<u64>();
        let live = self
            .rx
            .iter()
            .filter(|(_, entry)| entry.link.state.load() == LinkState::Live as u32);
        live.map(|(slot, entry)| {
            let highest = sum(&entry.windows, &Window::highest);
            let received = sum(&entry.windows, &|w| w.counted().0);
            let bytes = sum(&entry.windows, &|w| w.counted().1);
            (Slot(*slot), highest, received, bytes)
        })
        .collect()
    }

    /// The whole LFIB.
    #[must_use]
    pub fn labels(&self) -> &BTreeMap<u32, LfibEntry> {
        &self.lfib
    }

    /// How many entries there are.
    #[must_use]
    pub fn sizes(&self) -> TableSizes {
        TableSizes {
            slots: self.rx.len(),
            next_hops: self.next_hops.len(),
            groups: self.groups.len(),
            labels: self.lfib.len(),
        }
    }

    /// Labelled packets forwarded or delivered.
    #[must_use]
    pub fn labelled(&self) -> u64 {
        self.labelled.get()
    }
}

/// How full the tables are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableSizes {
    /// Receiving slots, retired ones included.
    pub slots: usize,
    /// Next hops.
    pub next_hops: usize,
    /// Next-hop groups.
    pub groups: usize,
    /// Labels.
    pub labels: usize,
}

impl Tables for HeapTables {
    fn port(&self) -> u16 {
        self.config.port.load() as u16
    }

    fn config(&self) -> Option<&Config> {
        Some(&self.config)
    }

    fn rx_link(&self, slot: Slot) -> Option<&RxLink> {
        self.rx.get(&slot.0).map(|entry| &entry.link)
    }

    fn window(&self, slot: Slot, lane: u8) -> Option<&Window> {
        self.rx.get(&slot.0)?.windows.get(usize::from(lane))
    }

    fn lfib(&self, label: Label) -> LfibEntry {
        self.lfib.get(&label.0).copied().unwrap_or(LfibEntry::EMPTY)
    }

    fn bucket(&self, group: u32, lane: u8) -> u64 {
        self.groups
            .get(&group)
            .and_then(|group| group.buckets.get(usize::from(lane)))
            .map_or(0, Cell64::load)
    }

    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        self.next_hops.get(&index).map(|entry| &entry.hop)
    }

    fn is_up(&self, index: u32) -> bool {
        self.next_hops.get(&index).is_some_and(|entry| entry.up)
    }

    fn next_seq(&self, next_hop: u32, lane: u8) -> Option<u32> {
        let before = self
            .next_hops
            .get(&next_hop)?
            .seqs
            .get(usize::from(lane))?
            .fetch_add(1);
        u32::try_from(before + 1).ok()
    }

    fn count_admitted(&self, slot: Slot, lane: u8, bytes: u32) {
        if let Some(window) = self.window(slot, lane) {
            window.count(bytes);
        }
    }

    fn is_local(&self, address: &Address) -> bool {
        self.local.contains(&address.0)
    }

    fn count_label(&self, _label: Label, _bytes: u32) {
        self.labelled.set(self.labelled.get() + 1);
    }
}
