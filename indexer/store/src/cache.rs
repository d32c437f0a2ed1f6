//! Coins in memory: those a batch has made and the disk does not know yet, and the youngest of
//! those it does. Young coins are the ones that get spent.

use hashbrown::HashMap;
use hashbrown::hash_map::Entry as Slot;
use weft_chain::OutPoint;

use crate::rows::TxNum;
use crate::rows::coin::Body;
use crate::rows::script::ScriptKey;

/// A coin in memory.
#[derive(Debug, Clone)]
pub(crate) struct Cached {
    pub(crate) body: Body,
    /// Txnum, and in the top bit whether the coin is not on disk.
    packed: u64,
    pub(crate) script: ScriptKey,
}

const FRESH: u64 = 1 << 63;

impl Cached {
    /// A coin; `fresh` if it is not on disk.
    pub(crate) fn new(txnum: TxNum, body: Body, script: ScriptKey, fresh: bool) -> Self {
        Self {
            body,
            packed: txnum.to_u64() | if fresh { FRESH } else { 0 },
            script,
        }
    }

    pub(crate) fn txnum(&self) -> TxNum {
        TxNum::from_low_bits(self.packed)
    }

    pub(crate) fn fresh(&self) -> bool {
        self.packed & FRESH != 0
    }
}

/// Bytes a coin takes in the table, with the room a hash table leaves free.
const SLOT: usize = (size_of::<(OutPoint, Cached)>() + 1) * 8 / 7;

/// Coins by outpoint, bounded.
#[derive(Debug)]
pub(crate) struct CoinCache {
    coins: HashMap<OutPoint, Cached>,
    heap: usize,
    limit: usize,
}

impl CoinCache {
    /// At most about `limit` bytes, as long as [`CoinCache::settle`] is called when
    /// [`CoinCache::full`] says so.
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            coins: HashMap::new(),
            heap: 0,
            limit,
        }
    }

    /// Whether the fresh coins have to be written so that room can be made. A table doubles when
    /// it grows and holds both sizes for a moment; from half the limit on it is filled, not grown.
    pub(crate) fn full(&self) -> bool {
        self.bytes() > self.limit
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> usize {
        self.coins.capacity().max(self.coins.len()) * SLOT + self.heap
    }

    pub(crate) fn len(&self) -> usize {
        self.coins.len()
    }

    pub(crate) fn get(&self, at: &OutPoint) -> Option<&Cached> {
        self.coins.get(at)
    }

    pub(crate) fn remove(&mut self, at: &OutPoint) -> Option<Cached> {
        let coin = self.coins.remove(at)?;
        self.heap -= coin.body.heap_bytes();
        Some(coin)
    }

    /// Adds a coin; false, and no change, if there is one at this outpoint.
    pub(crate) fn insert(&mut self, at: OutPoint, coin: Cached) -> bool {
        match self.coins.entry(at) {
            Slot::Occupied(_) => false,
            Slot::Vacant(slot) => {
                self.heap += coin.body.heap_bytes();
                slot.insert(coin);
                true
            }
        }
    }

    /// The coins that are not on disk.
    pub(crate) fn fresh(&self) -> impl Iterator<Item = (&OutPoint, &Cached)> {
        self.coins.iter().filter(|(_, coin)| coin.fresh())
    }

    /// Notes that all coins are on disk, and where there is little room drops the oldest.
    pub(crate) fn settle(&mut self, written: &[OutPoint]) {
        for at in written {
            if let Some(coin) = self.coins.get_mut(at) {
                coin.packed &= !FRESH;
            }
        }
    }

    /// [`CoinCache::settle`] for all fresh coins.
    pub(crate) fn settle_all(&mut self) {
        self.coins
            .values_mut()
            .for_each(|coin| coin.packed &= !FRESH);
    }

    /// Drops the older half of the coins on disk if there is little room left.
    pub(crate) fn shrink(&mut self) {
        let room = self.limit / SLOT;
        // The table's next doubling must not pass the limit.
        let most = if self.coins.capacity() * 2 * SLOT > self.limit {
            self.coins.capacity()
        } else {
            room
        };
        if self.coins.len() + self.heap / SLOT < most.min(room) / 4 * 3 {
            return;
        }
        let mut ages: Vec<u64> = self.coins.values().map(|coin| coin.packed).collect();
        let middle = ages.len() / 2;
        let (_, &mut threshold, _) = ages.select_nth_unstable(middle);
        let mut heap = 0;
        self.coins.retain(|_, coin| {
            let keep = coin.packed >= threshold;
            heap += if keep { coin.body.heap_bytes() } else { 0 };
            keep
        });
        self.heap = heap;
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.coins.clear();
        self.heap = 0;
    }
}
