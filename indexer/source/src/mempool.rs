//! Asks a node's RPC what changed in its mempool.
//!
//! A [`Delta`] belongs to one block: it is given only if the node's tip was the same before and
//! after the questions, so that whoever is at that block can take it in whole.

use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use weft_chain::block::LooseTx;
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Chain, Hash};
use weft_mempool::Incoming;

use crate::SourceError;
use crate::rpc::{RpcClient, unhex};

/// Transactions fetched in one batch.
const BATCH: usize = 100;
/// The list of ids is asked for at least this often, even if the pool's sizes are the same.
const LOOK: Duration = Duration::from_secs(5);

/// What changed.
#[derive(Debug)]
pub struct Delta {
    /// The node's tip, from before the first question until after the last.
    pub at: Hash,
    /// Transactions that left.
    pub gone: Vec<Hash>,
    /// Transactions that came.
    pub new: Vec<Incoming>,
}

/// Asks one node again and again.
#[derive(Debug)]
pub struct MempoolAsker {
    chain: &'static dyn Chain,
    /// Transactions that cannot be read (of Litecoin's extension block only), not asked again.
    unreadable: HashSet<Hash>,
    /// The node's tip and the sizes of its pool at the last whole answer.
    last: Option<(Hash, [u64; 4])>,
    looked: Instant,
}

impl MempoolAsker {
    /// For a node of `chain`.
    pub fn new(chain: &'static dyn Chain) -> Self {
        Self {
            chain,
            unreadable: HashSet::new(),
            last: None,
            looked: Instant::now(),
        }
    }

    /// Forgets what the last answer was, after a [`Delta`] was not taken in.
    pub fn ask_all_again(&mut self) {
        self.last = None;
    }

    /// What differs between the node's pool and the transactions `known`. `None` if by its sizes
    /// nothing changed, or if the node's tip did meanwhile.
    pub fn ask(
        &mut self,
        client: &RpcClient,
        known: impl FnOnce() -> HashSet<Hash>,
    ) -> Result<Option<Delta>, SourceError> {
        let bad = |what: &'static str, why: String| SourceError::BadAnswer {
            place: client.place().to_owned(),
            what,
            why,
        };
        let mut first = client
            .batch(&[
                ("getbestblockhash", json!([])),
                ("getmempoolinfo", json!([])),
            ])?
            .into_iter();
        let (Some(tip), Some(info)) = (first.next(), first.next()) else {
            return Ok(None);
        };
        let (tip, info) = (client.hash("getbestblockhash", &tip?)?, info?);
        let size = |name: &str| info.get(name).and_then(Value::as_u64).unwrap_or(0);
        // Fees are a decimal; their bits tell a change.
        let fees = info.get("total_fee").and_then(Value::as_f64);
        let sizes = [
            size("size"),
            size("bytes"),
            size("usage"),
            fees.unwrap_or(0.0).to_bits(),
        ];
        if self.last == Some((tip, sizes)) && self.looked.elapsed() < LOOK {
            return Ok(None);
        }
        let ids: Vec<String> = client.call("getrawmempool", json!([]))?;
        let mut now = HashSet::with_capacity(ids.len());
        for id in &ids {
            now.insert(
                from_hex(id).ok_or_else(|| bad("getrawmempool", format!("{id} is no hash")))?,
            );
        }
        self.unreadable.retain(|id| now.contains(id));
        let known = known();
        let gone: Vec<Hash> = known.difference(&now).copied().collect();
        let missing: Vec<Hash> = now
            .iter()
            .filter(|id| !known.contains(*id) && !self.unreadable.contains(*id))
            .copied()
            .collect();
        let mut new = Vec::with_capacity(missing.len());
        for part in missing.chunks(BATCH) {
            self.fetch(client, part, &mut new)?;
        }
        let after: Value = client.call("getbestblockhash", json!([]))?;
        if client.hash("getbestblockhash", &after)? != tip {
            self.last = None;
            return Ok(None);
        }
        self.last = Some((tip, sizes));
        self.looked = Instant::now();
        Ok(Some(Delta { at: tip, gone, new }))
    }

    fn fetch(
        &mut self,
        client: &RpcClient,
        ids: &[Hash],
        out: &mut Vec<Incoming>,
    ) -> Result<(), SourceError> {
        let bad = |why: String| SourceError::BadAnswer {
            place: client.place().to_owned(),
            what: "getrawtransaction",
            why,
        };
        let calls: Vec<_> = ids
            .iter()
            .flat_map(|id| {
                [
                    ("getrawtransaction", json!([hex(id)])),
                    ("getmempoolentry", json!([hex(id)])),
                ]
            })
            .collect();
        let mut results = client.batch(&calls)?.into_iter();
        for id in ids {
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
            let raw = raw.ok_or_else(|| bad("it is not in hexadecimal".to_owned()))?;
            let tx = match LooseTx::parse(self.chain, raw) {
                Ok(tx) if tx.tx().txid() == id => tx,
                Ok(tx) => {
                    let came = hex(tx.tx().txid());
                    return Err(bad(format!("{} was asked for, {came} came", hex(id))));
                }
                Err(_) if self.chain.has_mweb() => {
                    self.unreadable.insert(*id);
                    continue;
                }
                Err(e) => return Err(SourceError::chain(client.place(), e)),
            };
            let number = |name: &str| info.get(name).and_then(Value::as_u64);
            let clock = || {
                let now = SystemTime::now().duration_since(UNIX_EPOCH);
                now.map_or(0, |d| d.as_secs())
            };
            out.push(Incoming {
                fee: fee_of(&info),
                vsize: number("vsize").or_else(|| number("size")),
                time: number("time").unwrap_or_else(clock),
                tx,
            });
        }
        Ok(())
    }
}

/// The fee a node gives in whole coins with eight decimals.
fn fee_of(info: &Value) -> Option<u64> {
    let fees = info.get("fees").and_then(|f| f.get("base"));
    let fee = fees.or_else(|| info.get("fee"))?.as_f64()?;
    (fee >= 0.0).then(|| (fee * 1e8).round() as u64)
}
