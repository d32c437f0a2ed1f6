//! The node's mempool, followed by RPC.
//!
//! [`Mempool`] is the set of unconfirmed transactions as a graph: who spends what, who pays to
//! which script, which transactions wait for which. [`Mempool::refresh`] asks the node for the
//! list of ids, fetches what is new, and applies what left and what came in one step, so that a
//! replaced transaction and its replacement are never there together.
//!
//! The pool does not know the coins of the chain; what an input spends is asked of the caller.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use weft_chain::block::{LooseTx, Tx};
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Chain, Hash, OutPoint, script_hash};

use crate::SourceError;
use crate::rpc::{RpcClient, unhex};

/// Transactions fetched in one batch.
const BATCH: usize = 100;
/// Virtual bytes of one step of the fee histogram.
const HISTOGRAM_STEP: u64 = 100_000;
/// Bounds of the pool; a node's default is 300 MB of memory, some 100 MB of transactions.
const MAX_BYTES: usize = 512 << 20;

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
#[derive(Debug, Clone, PartialEq, Eq)]
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
    /// Transactions that left: confirmed, replaced, expired.
    pub removed: Vec<Hash>,
    /// SHA-256 of the scripts whose unconfirmed history changed.
    pub scripts: BTreeSet<Hash>,
}

/// The unconfirmed transactions.
#[derive(Debug)]
pub struct Mempool {
    chain: &'static dyn Chain,
    entries: HashMap<Hash, Entry>,
    spenders: HashMap<OutPoint, Hash>,
    children: HashMap<Hash, BTreeSet<Hash>>,
    by_script: HashMap<Hash, BTreeSet<Hash>>,
    /// Transactions that cannot be read (of Litecoin's extension block only), not asked again.
    unreadable: HashSet<Hash>,
    bytes: usize,
}

impl Mempool {
    /// An empty pool.
    pub fn new(chain: &'static dyn Chain) -> Self {
        Self {
            chain,
            entries: HashMap::new(),
            spenders: HashMap::new(),
            children: HashMap::new(),
            by_script: HashMap::new(),
            unreadable: HashSet::new(),
            bytes: 0,
        }
    }

    /// Makes the pool what the node's is. `coin` gives value and script of a coin of the chain,
    /// spent or not by the pool.
    ///
    /// Call it after the block that confirmed transactions is applied. Transactions that leave
    /// the node's pool between the two questions are left out.
    pub fn refresh(
        &mut self,
        client: &RpcClient,
        coin: impl Fn(&OutPoint) -> Option<(u64, Vec<u8>)>,
    ) -> Result<Changes, SourceError> {
        let ids: Vec<String> = client.call("getrawmempool", json!([]))?;
        let bad = |what: &'static str, why: String| SourceError::BadAnswer {
            place: client.place().to_owned(),
            what,
            why,
        };
        let mut now = HashSet::with_capacity(ids.len());
        for id in &ids {
            now.insert(
                from_hex(id).ok_or_else(|| bad("getrawmempool", format!("{id} is no hash")))?,
            );
        }
        let gone: Vec<Hash> = self
            .entries
            .keys()
            .filter(|id| !now.contains(*id))
            .copied()
            .collect();
        let new: Vec<Hash> = now
            .iter()
            .filter(|id| !self.entries.contains_key(*id) && !self.unreadable.contains(*id))
            .copied()
            .collect();
        self.unreadable.retain(|id| now.contains(id));

        let mut fetched: HashMap<Hash, (LooseTx, Value)> = HashMap::with_capacity(new.len());
        for part in new.chunks(BATCH) {
            let calls: Vec<_> = part
                .iter()
                .flat_map(|id| {
                    [
                        ("getrawtransaction", json!([hex(id)])),
                        ("getmempoolentry", json!([hex(id)])),
                    ]
                })
                .collect();
            let mut results = client.batch(&calls)?.into_iter();
            for id in part {
                let (Some(raw), Some(info)) = (results.next(), results.next()) else {
                    break;
                };
                let (raw, info) = match (raw, info) {
                    (Ok(raw), Ok(info)) => (raw, info),
                    // It left meanwhile.
                    (Err(SourceError::Rpc { code: -5, .. }), _)
                    | (_, Err(SourceError::Rpc { code: -5, .. })) => continue,
                    (Err(e), _) | (_, Err(e)) => return Err(e),
                };
                let raw = raw.as_str().and_then(unhex);
                let raw = raw.ok_or_else(|| {
                    bad("getrawtransaction", "it is not in hexadecimal".to_owned())
                })?;
                match LooseTx::parse(self.chain, raw) {
                    Ok(tx) if tx.tx().txid() == id => {
                        fetched.insert(*id, (tx, info));
                    }
                    Ok(tx) => {
                        let why =
                            format!("{} was asked for, {} came", hex(id), hex(tx.tx().txid()));
                        return Err(bad("getrawtransaction", why));
                    }
                    Err(_) if self.chain.has_mweb() => {
                        self.unreadable.insert(*id);
                    }
                    Err(e) => return Err(SourceError::chain(client.place(), e)),
                }
            }
        }
        Ok(self.apply(gone, fetched, coin))
    }

    fn apply(
        &mut self,
        gone: Vec<Hash>,
        mut fetched: HashMap<Hash, (LooseTx, Value)>,
        coin: impl Fn(&OutPoint) -> Option<(u64, Vec<u8>)>,
    ) -> Changes {
        let mut changes = Changes::default();
        for id in gone {
            self.remove(&id, &mut changes);
        }
        // Parents first, so that what children spend is known.
        while let Some(&start) = fetched.keys().next() {
            let mut stack = vec![start];
            while let Some(&id) = stack.last() {
                let waits_for = fetched.get(&id).and_then(|(tx, _)| {
                    let mut parents = tx.tx().inputs().iter().map(|i| i.prevout.txid);
                    parents.find(|p| *p != id && fetched.contains_key(p))
                });
                match waits_for {
                    Some(parent) if stack.len() <= fetched.len() => stack.push(parent),
                    _ => {
                        stack.pop();
                        if let Some((tx, info)) = fetched.remove(&id) {
                            self.add(id, tx, &info, &coin, &mut changes);
                        }
                    }
                }
            }
        }
        changes
    }

    fn add(
        &mut self,
        id: Hash,
        tx: LooseTx,
        info: &Value,
        coin: &impl Fn(&OutPoint) -> Option<(u64, Vec<u8>)>,
        changes: &mut Changes,
    ) {
        let view = tx.tx();
        if self.bytes + view.raw().len() > MAX_BYTES {
            tracing::warn!(
                txid = hex(&id),
                "the mempool is full, a transaction is left out"
            );
            return;
        }
        // What spends the same coin was replaced, even if the node's list still had it.
        let rivals: BTreeSet<Hash> = view
            .inputs()
            .iter()
            .filter_map(|i| self.spenders.get(&i.prevout).copied())
            .collect();
        for rival in rivals {
            for id in self.descendants(&rival) {
                self.remove(&id, changes);
            }
            self.remove(&rival, changes);
        }
        let mut parents = BTreeSet::new();
        let mut spent = Vec::with_capacity(view.inputs().len());
        for input in view.inputs() {
            self.spenders.insert(input.prevout, id);
            spent.push(match self.entries.get(&input.prevout.txid) {
                Some(parent) => {
                    parents.insert(input.prevout.txid);
                    let output = parent.tx().outputs().nth(input.prevout.vout as usize);
                    output.map(|o| Funding {
                        value: o.value,
                        script_hash: script_hash(o.script),
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
        let had: Option<u64> = spent.iter().map(|f| f.as_ref().map(|f| f.value)).sum();
        let fee = fee_of(info)
            .or_else(|| had.and_then(|had| had.checked_sub(paid)))
            .unwrap_or(0);
        let vsize = info
            .get("vsize")
            .or_else(|| info.get("size"))
            .and_then(Value::as_u64);
        let vsize = vsize.unwrap_or(view.weight().div_ceil(4) as u64).max(1);
        let clock = || {
            SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |d| d.as_secs())
        };
        let time = info
            .get("time")
            .and_then(Value::as_u64)
            .unwrap_or_else(clock);
        self.bytes += view.raw().len();
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
        changes.added.push(id);
    }

    fn remove(&mut self, id: &Hash, changes: &mut Changes) {
        let Some(entry) = self.entries.remove(id) else {
            return;
        };
        self.bytes -= entry.tx().raw().len();
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

/// The fee a node gives in whole coins with eight decimals.
fn fee_of(info: &Value) -> Option<u64> {
    let fee = info
        .get("fees")
        .and_then(|f| f.get("base"))
        .or_else(|| info.get("fee"))?
        .as_f64()?;
    (fee >= 0.0).then(|| (fee * 1e8).round() as u64)
}
