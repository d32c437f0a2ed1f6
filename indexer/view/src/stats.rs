//! Sums over all that a script ever got and gave, as Esplora shows them.
//!
//! Rows know what a script has and which transactions touched it, not what it once had: for the
//! sums the transactions are read. What was summed up to some transaction is kept, so that a
//! script that is asked for again costs only what came since.

use std::collections::HashMap;

use weft_chain::{Hash, is_unspendable, script_hash};
use weft_store::{ScriptKey, TxNum};

use crate::query::{Script, parse};
use crate::{Error, Result, View, lock};

/// Scripts whose sums are kept.
const MAX_KEPT: usize = 20_000;

/// Sums over transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Transactions.
    pub txs: u64,
    /// Outputs that paid the script.
    pub funded: u64,
    /// Their sum, smallest units.
    pub funded_sum: u64,
    /// Outputs of the script that were spent.
    pub spent: u64,
    /// Their sum.
    pub spent_sum: u64,
}

/// Of the chain and of the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScriptStats {
    /// Confirmed transactions.
    pub chain: Stats,
    /// Unconfirmed ones.
    pub pool: Stats,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    /// The last transaction that is in the sums, and its block.
    last: TxNum,
    block: Hash,
    txs: u64,
    funded: u64,
    funded_sum: u64,
    /// Of those outputs that never become coins, and so are not spent although they are not there.
    never: u64,
    never_sum: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Cache(HashMap<ScriptKey, Kept>);

impl View {
    /// Sums of a script.
    ///
    /// # Errors
    /// It has more transactions than the bound; a transaction cannot be read.
    pub fn stats(&self, script: &Script) -> Result<ScriptStats> {
        self.read(|| {
            let pool = self.pool_stats(script);
            let has = self.0.reader.balance(&script.hash)?;
            let kept = self.kept(script)?;
            let from = kept.map_or(TxNum::first_of(0), |k| {
                TxNum::from_low_bits(k.last.to_u64() + 1)
            });
            let limit = self.0.bounds.rows;
            let more = self.0.reader.history(&script.hash, from, limit + 1)?;
            let mut sum = kept.unwrap_or(Kept {
                last: from,
                block: [0; 32],
                txs: 0,
                funded: 0,
                funded_sum: 0,
                never: 0,
                never_sum: 0,
            });
            if sum.txs as usize + more.len() > limit {
                return Err(Error::TooMany {
                    what: "the transactions of this script",
                    limit,
                });
            }
            for touched in &more {
                let Some(at) = self.confirmed(touched.txnum)? else {
                    continue;
                };
                // Of several with one id the row names the one meant.
                let place = self.0.reader.tx(&touched.txid)?;
                let Some(place) = place else { continue };
                let raw = self.bytes_at(&touched.txid, &place, &at.block)?;
                let parts = parse(&touched.txid, &raw)?;
                let overwritten = at.index == 0
                    && (at.height == 0 || self.0.chain.bip30_unspendable(at.height, &at.block));
                for output in &parts.outputs {
                    let bytes = parts.at(&output.script);
                    if script_hash(bytes) != script.hash {
                        continue;
                    }
                    sum.funded += 1;
                    sum.funded_sum = sum.funded_sum.saturating_add(output.value);
                    if overwritten || is_unspendable(bytes) {
                        sum.never += 1;
                        sum.never_sum = sum.never_sum.saturating_add(output.value);
                    }
                }
                sum.txs += 1;
                sum.last = touched.txnum;
                sum.block = at.block;
            }
            if !more.is_empty() {
                let mut cache = lock(&self.0.stats);
                if cache.0.len() >= MAX_KEPT {
                    cache.0.clear();
                }
                cache.0.insert(script.key, sum);
            }
            let chain = Stats {
                txs: sum.txs,
                funded: sum.funded,
                funded_sum: sum.funded_sum,
                spent: sum.funded.saturating_sub(has.coins + sum.never),
                spent_sum: sum
                    .funded_sum
                    .saturating_sub(has.value.saturating_add(sum.never_sum)),
            };
            Ok(ScriptStats { chain, pool })
        })
    }

    /// What was summed before, if its last block is still on the chain.
    fn kept(&self, script: &Script) -> Result<Option<Kept>> {
        let Some(kept) = lock(&self.0.stats).0.get(&script.key).copied() else {
            return Ok(None);
        };
        let row = self.0.reader.header(kept.last.height())?;
        Ok(row.filter(|row| row.hash == kept.block).map(|_| kept))
    }

    fn pool_stats(&self, script: &Script) -> Stats {
        let pool = self.pool();
        let mut sum = Stats::default();
        for (_, entry) in pool.of_script(&script.hash) {
            sum.txs += 1;
            for output in entry.tx().outputs() {
                if script_hash(output.script) == script.hash {
                    sum.funded += 1;
                    sum.funded_sum = sum.funded_sum.saturating_add(output.value);
                }
            }
            for funding in entry.spent.iter().flatten() {
                if funding.script_hash == script.hash {
                    sum.spent += 1;
                    sum.spent_sum = sum.spent_sum.saturating_add(funding.value);
                }
            }
        }
        sum
    }
}
