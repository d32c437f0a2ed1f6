//! Unconfirmed transactions as a graph: who spends what, who pays to which script, which wait for
//! which. No I/O and no clock: what a node has is given in, see [`Mempool::apply`].
//!
//! The pool does not know the coins of the chain; what an input spends is asked of the caller.
//! Nothing in it spends a coin that another transaction in it spends.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use weft_chain::block::{LooseTx, Tx};
use weft_chain::{Hash, OutPoint, script_hash};

/// Virtual bytes of one step of the fee histogram.
const HISTOGRAM_STEP: u64 = 100_000;
/// Bounds of the pool; a node's default is 300 MB of memory, some 100 MB of transactions.
const MAX_BYTES: usize = 512 << 20;
/// Transactions remembered as the last that came.
const RECENT: usize = 10;

/// A transaction to be taken in, with what the node says of it.
#[derive(Debug, Clone)]
pub struct Incoming {
    /// The transaction.
    pub tx: LooseTx,
    /// Fee in smallest units; `None` to count it from what is spent.
    pub fee: Option<u64>,
    /// Virtual size in bytes; `None` to take it from the weight.
    pub vsize: Option<u64>,
    /// Seconds of Unix time when the node got it.
    pub time: u64,
}

/// An unconfirmed transaction.
#[derive(Debug, Clone)]
pub struct Entry {
    tx: LooseTx,
    /// Fee, smallest units.
    pub fee: u64,
    /// Virtual size in bytes, as the node counts it.
    pub vsize: u64,
    /// Seconds of Unix time when the node got it.
    pub time: u64,
    /// What each input spends; `None` where neither pool nor chain had it.
    pub spent: Vec<Option<Funding>>,
    parents: BTreeSet<Hash>,
}

impl Entry {
    /// The transaction.
    pub fn tx(&self) -> Tx<'_> {
        self.tx.tx()
    }

    /// Unconfirmed transactions it spends from.
    pub fn parents(&self) -> &BTreeSet<Hash> {
        &self.parents
    }

    /// Whether it spends from an unconfirmed transaction.
    pub fn has_unconfirmed_inputs(&self) -> bool {
        !self.parents.is_empty()
    }
}

/// The output an input spends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Funding {
    /// Smallest units.
    pub value: u64,
    /// SHA-256 of its script.
    pub script_hash: Hash,
}

/// What a refresh changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Transactions that came.
    pub added: Vec<Hash>,
    /// Transactions that left: replaced, expired, spent from under them.
    pub removed: Vec<Hash>,
    /// Transactions that left because they are in a block.
    pub confirmed: Vec<Hash>,
    /// SHA-256 of the scripts whose unconfirmed history changed.
    pub scripts: BTreeSet<Hash>,
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A transaction that came, in short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Its id.
    pub txid: Hash,
    /// Fee, smallest units.
    pub fee: u64,
    /// Virtual size in bytes.
    pub vsize: u64,
    /// Sum of its outputs, smallest units.
    pub value: u64,
}

/// The unconfirmed transactions.
#[derive(Debug, Default)]
pub struct Mempool {
    entries: HashMap<Hash, Entry>,
    spenders: HashMap<OutPoint, Hash>,
    children: HashMap<Hash, BTreeSet<Hash>>,
    by_script: HashMap<Hash, BTreeSet<Hash>>,
    bytes: usize,
    vsize: u64,
    fees: u64,
    recent: VecDeque<Summary>,
    /// Transactions left out at the bound, since the start.
    left_out: u64,
}

impl Mempool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes out what left the node's pool and in what came, in one step: a replaced transaction
    /// and its replacement are never there together. `coin` gives value and script of a coin of
    /// the chain, spent or not by the pool.
    pub fn apply(
        &mut self,
        gone: &[Hash],
        new: Vec<Incoming>,
        coin: impl Fn(&OutPoint) -> Option<(u64, Vec<u8>)>,
    ) -> Changes {
        let mut changes = Changes::default();
        for id in gone {
            self.remove(id, &mut changes);
        }
        let mut waiting: HashMap<Hash, Incoming> = new
            .into_iter()
            .map(|incoming| (*incoming.tx.tx().txid(), incoming))
            .filter(|(id, _)| !self.entries.contains_key(id))
            .collect();
        // Parents first, so that what children spend is known.
        while let Some(&start) = waiting.keys().next() {
            let mut stack = vec![start];
            while let Some(&id) = stack.last() {
                let waits_for = waiting.get(&id).and_then(|incoming| {
                    let inputs = incoming.tx.tx().inputs();
                    let mut parents = inputs.iter().map(|i| i.prevout.txid);
                    parents.find(|p| *p != id && waiting.contains_key(p))
                });
                match waits_for {
                    Some(parent) if stack.len() <= waiting.len() => stack.push(parent),
                    _ => {
                        stack.pop();
                        if let Some(incoming) = waiting.remove(&id) {
                            self.add(id, incoming, &coin, &mut changes);
                        }
                    }
                }
            }
        }
        changes
    }

    /// Takes out what a block confirms, and with all that hangs on it what spends the coins that
    /// the block spent otherwise.
    pub fn confirm(&mut self, txids: &[Hash], spent: &[OutPoint]) -> Changes {
        let mut changes = Changes::default();
        for id in txids {
            self.remove(id, &mut changes);
        }
        changes.confirmed = std::mem::take(&mut changes.removed);
        for coin in spent {
            if let Some(rival) = self.spenders.get(coin).copied() {
                self.evict(&rival, &mut changes);
            }
        }
        changes
    }

    /// Takes a transaction out together with all that need it.
    fn evict(&mut self, id: &Hash, changes: &mut Changes) {
        for descendant in self.descendants(id) {
            self.remove(&descendant, changes);
        }
        self.remove(id, changes);
    }

    fn add(
        &mut self,
        id: Hash,
        incoming: Incoming,
        coin: &impl Fn(&OutPoint) -> Option<(u64, Vec<u8>)>,
        changes: &mut Changes,
    ) {
        let view = incoming.tx.tx();
        if self.bytes + view.raw().len() > MAX_BYTES {
            self.left_out += 1;
            return;
        }
        // What spends the same coin was replaced, even if the node's list still had it.
        let rivals: BTreeSet<Hash> = view
            .inputs()
            .iter()
            .filter_map(|i| self.spenders.get(&i.prevout).copied())
            .collect();
        for rival in rivals {
            self.evict(&rival, changes);
        }
        let mut parents = BTreeSet::new();
        let mut spent = Vec::with_capacity(view.inputs().len());
        for input in view.inputs() {
            self.spenders.insert(input.prevout, id);
            spent.push(match self.entries.get(&input.prevout.txid) {
                Some(parent) => {
                    let output = parent.tx().outputs().nth(input.prevout.vout as usize);
                    output.map(|o| {
                        parents.insert(input.prevout.txid);
                        Funding {
                            value: o.value,
                            script_hash: script_hash(o.script),
                        }
                    })
                }
                None => coin(&input.prevout).map(|(value, script)| Funding {
                    value,
                    script_hash: script_hash(&script),
                }),
            });
        }
        for parent in &parents {
            self.children.entry(*parent).or_default().insert(id);
        }
        let paid: u64 = view.outputs().map(|o| o.value).fold(0, u64::saturating_add);
        let had = spent
            .iter()
            .try_fold(0u64, |sum, f| sum.checked_add(f.as_ref()?.value));
        let counted = || had.and_then(|had| had.checked_sub(paid));
        let fee = incoming.fee.or_else(counted).unwrap_or(0);
        let weighed = || view.weight().div_ceil(4) as u64;
        let vsize = incoming.vsize.unwrap_or_else(weighed).max(1);
        self.bytes += view.raw().len();
        self.vsize += vsize;
        self.fees = self.fees.saturating_add(fee);
        self.recent.truncate(RECENT - 1);
        self.recent.push_front(Summary {
            txid: id,
            fee,
            vsize,
            value: paid,
        });
        let outputs = view.outputs().len() as u32;
        let Incoming { tx, time, .. } = incoming;
        let entry = Entry {
            tx,
            fee,
            vsize,
            time,
            spent,
            parents,
        };
        for script in scripts_of(&entry) {
            self.by_script.entry(script).or_default().insert(id);
            changes.scripts.insert(script);
        }
        self.entries.insert(id, entry);
        self.adopt(&id, outputs, changes);
        changes.added.push(id);
    }

    /// Links those that already spend from a transaction that came back, out of a block that left.
    fn adopt(&mut self, id: &Hash, outputs: u32, changes: &mut Changes) {
        for vout in 0..outputs {
            let at = OutPoint { txid: *id, vout };
            let Some(child) = self.spenders.get(&at).filter(|child| *child != id) else {
                continue;
            };
            if let Some(entry) = self.entries.get_mut(child)
                && entry.parents.insert(*id)
            {
                changes.scripts.extend(scripts_of(entry));
            }
            self.children.entry(*id).or_default().insert(*child);
        }
    }

    fn remove(&mut self, id: &Hash, changes: &mut Changes) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        self.bytes -= entry.tx().raw().len();
        self.vsize -= entry.vsize;
        self.fees = self.fees.saturating_sub(entry.fee);
        for input in entry.tx().inputs() {
            if self.spenders.get(&input.prevout) == Some(id) {
                self.spenders.remove(&input.prevout);
            }
        }
        for parent in &entry.parents {
            if let Some(children) = self.children.get_mut(parent) {
                children.remove(id);
                if children.is_empty() {
                    self.children.remove(parent);
                }
            }
        }
        // Its children spend from the chain now, if it was confirmed.
        for child in self.children.remove(id).unwrap_or_default() {
            if let Some(child) = self.entries.get_mut(&child) {
                child.parents.remove(id);
                changes.scripts.extend(scripts_of(child));
            }
        }
        for script in scripts_of(&entry) {
            if let Some(ids) = self.by_script.get_mut(&script) {
                ids.remove(id);
                if ids.is_empty() {
                    self.by_script.remove(&script);
                }
            }
            changes.scripts.insert(script);
        }
        changes.removed.push(*id);
    }

    /// Number of transactions.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of all transactions.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Virtual bytes of all transactions.
    pub fn vsize(&self) -> u64 {
        self.vsize
    }

    /// Fees of all transactions, smallest units.
    pub fn fees(&self) -> u64 {
        self.fees
    }

    /// Transactions left out at the bound of memory, since the start.
    pub fn left_out(&self) -> u64 {
        self.left_out
    }

    /// The last that came, youngest first; some may be gone again.
    pub fn recent(&self) -> impl Iterator<Item = &Summary> {
        self.recent.iter()
    }

    /// A transaction.
    pub fn get(&self, txid: &Hash) -> Option<&Entry> {
        self.entries.get(txid)
    }

    /// All transactions.
    pub fn iter(&self) -> impl Iterator<Item = (&Hash, &Entry)> {
        self.entries.iter()
    }

    /// The transaction that spends a coin.
    pub fn spender(&self, coin: &OutPoint) -> Option<&Hash> {
        self.spenders.get(coin)
    }

    /// Transactions that pay to a script or spend from it, by its SHA-256.
    pub fn of_script(&self, script_hash: &Hash) -> impl Iterator<Item = (&Hash, &Entry)> {
        self.by_script
            .get(script_hash)
            .into_iter()
            .flatten()
            .filter_map(|id| Some((id, self.entries.get(id)?)))
    }

    /// Value a script gains and loses by the pool, smallest units.
    pub fn balance_change(&self, script: &Hash) -> (u64, u64) {
        let (mut gains, mut losses) = (0u64, 0u64);
        for (_, entry) in self.of_script(script) {
            for output in entry
                .tx()
                .outputs()
                .filter(|o| script_hash(o.script) == *script)
            {
                gains = gains.saturating_add(output.value);
            }
            for funding in entry
                .spent
                .iter()
                .flatten()
                .filter(|f| f.script_hash == *script)
            {
                losses = losses.saturating_add(funding.value);
            }
        }
        (gains, losses)
    }

    /// Outputs of the pool that pay to a script and that nothing in it spends: outpoint, value.
    pub fn unspent_of_script(&self, script: &Hash) -> Vec<(OutPoint, u64)> {
        let mut out = Vec::new();
        for (txid, entry) in self.of_script(script) {
            for (vout, output) in (0..).zip(entry.tx().outputs()) {
                let at = OutPoint { txid: *txid, vout };
                if script_hash(output.script) == *script && !self.spenders.contains_key(&at) {
                    out.push((at, output.value));
                }
            }
        }
        out.sort_unstable();
        out
    }

    /// Unconfirmed transactions that must be confirmed before this one.
    pub fn ancestors(&self, txid: &Hash) -> BTreeSet<Hash> {
        self.reach(txid, |id| self.entries.get(id).map(|e| &e.parents))
    }

    /// Unconfirmed transactions that need this one.
    pub fn descendants(&self, txid: &Hash) -> BTreeSet<Hash> {
        self.reach(txid, |id| self.children.get(id))
    }

    fn reach<'a>(
        &'a self,
        from: &Hash,
        next: impl Fn(&Hash) -> Option<&'a BTreeSet<Hash>>,
    ) -> BTreeSet<Hash> {
        let mut seen = BTreeSet::new();
        let mut stack = vec![*from];
        while let Some(id) = stack.pop() {
            for other in next(&id).into_iter().flatten() {
                if other != from && seen.insert(*other) {
                    stack.push(*other);
                }
            }
        }
        seen
    }

    /// Fee rates from the highest down, in units per virtual byte, each with the virtual size of
    /// the transactions that pay it or more than the next: the form of Electrum's
    /// `mempool.get_fee_histogram`. A step has at least 100,000 virtual bytes, growing by a tenth.
    pub fn fee_histogram(&self) -> Vec<(f64, u64)> {
        let mut by_rate: BTreeMap<u64, u64> = BTreeMap::new();
        for entry in self.entries.values() {
            // Thousandths of a unit per byte.
            *by_rate
                .entry(entry.fee.saturating_mul(1000) / entry.vsize)
                .or_default() += entry.vsize;
        }
        let (mut out, mut size, mut step) = (Vec::new(), 0, HISTOGRAM_STEP);
        let mut last = None;
        for (rate, vsize) in by_rate.into_iter().rev() {
            size += vsize;
            last = Some(rate);
            if size > step {
                out.push((rate as f64 / 1000.0, size));
                size = 0;
                step += step / 10;
            }
        }
        if let Some(rate) = last.filter(|_| size > 0) {
            out.push((rate as f64 / 1000.0, size));
        }
        out
    }
}

/// Hashes of all scripts a transaction pays to or spends from.
fn scripts_of(entry: &Entry) -> BTreeSet<Hash> {
    let paid = entry
        .tx()
        .outputs()
        .map(|o| script_hash(o.script))
        .collect::<Vec<_>>();
    paid.into_iter()
        .chain(entry.spent.iter().flatten().map(|f| f.script_hash))
        .collect()
}
