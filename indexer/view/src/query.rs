//! Questions about the chain and the pool together.

use std::collections::BTreeSet;
use std::sync::Arc;

use weft_chain::hash::hex;
use weft_chain::{Hash, Header, OutPoint, address, is_unspendable, merkle, script_hash};
use weft_store::{HeaderRow, ScriptKey, Touched, TxNum, TxPlace};

use crate::pieces::{COINS, Status, TRANSACTIONS};
use crate::tx::Parts;
use crate::{Error, Result, View};

/// Transactions looked at to find the one that spent a coin.
const MAX_CANDIDATES: usize = 20_000;

/// A script by its two names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Script {
    /// SHA-256 of it.
    pub hash: Hash,
    /// Its name in this database.
    pub key: ScriptKey,
}

/// The end of the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainTip {
    /// Its height.
    pub height: u32,
    /// What is kept of it.
    pub row: HeaderRow,
    /// Number of the last change that is in it.
    pub seq: u64,
}

/// What a script has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Coins of the chain, smallest units.
    pub confirmed: u64,
    /// Their number.
    pub coins: u64,
    /// What the pool adds.
    pub gains: u64,
    /// What the pool takes.
    pub losses: u64,
}

impl Balance {
    /// What the pool changes.
    pub fn unconfirmed(&self) -> i64 {
        (i128::from(self.gains) - i128::from(self.losses)) as i64
    }
}

/// An unconfirmed transaction of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolTx {
    /// Its id.
    pub txid: Hash,
    /// Whether it spends from an unconfirmed one.
    pub chained: bool,
    /// Its fee, smallest units.
    pub fee: u64,
}

impl PoolTx {
    /// The height the Electrum protocol gives it.
    pub fn height(&self) -> i64 {
        if self.chained { -1 } else { 0 }
    }
}

/// All transactions of a script.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// In the order of the chain.
    pub confirmed: Vec<Touched>,
    /// Those whose inputs are all confirmed first, then by id as it is shown.
    pub pool: Vec<PoolTx>,
}

impl History {
    /// Number of transactions.
    pub fn len(&self) -> usize {
        self.confirmed.len() + self.pool.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The Electrum protocol's status; `None` without any transaction.
    pub fn status(&self) -> Option<Hash> {
        let mut status = Status::default();
        for tx in &self.confirmed {
            status.push(&tx.txid, tx.txnum.height().into());
        }
        for tx in &self.pool {
            status.push(&tx.txid, tx.height());
        }
        status.finish()
    }
}

/// An unspent output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unspent {
    /// Which.
    pub outpoint: OutPoint,
    /// Smallest units.
    pub value: u64,
    /// Where its transaction is; `None` in the pool.
    pub txnum: Option<TxNum>,
}

/// Where a transaction was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Confirmed {
    /// Height of the block.
    pub height: u32,
    /// Hash of the block.
    pub block: Hash,
    /// Time the block claims, seconds of Unix time.
    pub time: u32,
    /// Position in the block.
    pub index: u32,
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxFound {
    /// Its bytes.
    pub raw: Arc<[u8]>,
    /// Where it is; `None` in the pool.
    pub confirmed: Option<Confirmed>,
    /// Its fee, where the pool knows it.
    pub fee: Option<u64>,
}

/// That a transaction is in a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MerkleProof {
    /// Height of the block.
    pub height: u32,
    /// Position in the block.
    pub index: u32,
    /// Siblings from the transaction up.
    pub branch: Vec<Hash>,
}

/// Who spends an output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spender {
    /// The transaction.
    pub txid: Hash,
    /// Which of its inputs.
    pub vin: u32,
    /// Where it is; `None` in the pool.
    pub confirmed: Option<Confirmed>,
}

/// Orders the pool's part of a history.
fn in_order(mut list: Vec<PoolTx>) -> Vec<PoolTx> {
    // As it is shown means: by the bytes in reverse.
    list.sort_unstable_by(|a, b| {
        let shown = |tx: &PoolTx| {
            let mut id = tx.txid;
            id.reverse();
            id
        };
        (a.chained, shown(a)).cmp(&(b.chained, shown(b)))
    });
    list
}

impl View {
    /// The end of the chain; `None` while there is no block at all.
    pub fn tip(&self) -> Result<Option<ChainTip>> {
        self.read(|| {
            let Some((height, _)) = self.0.reader.tip()? else {
                return Ok(None);
            };
            let seq = self.0.feed.last();
            let row = self.0.reader.header(height)?;
            Ok(row.map(|row| ChainTip { height, row, seq }))
        })
    }

    /// The block at a height.
    pub fn header(&self, height: u32) -> Result<Option<HeaderRow>> {
        Ok(self.0.reader.header(height)?)
    }

    /// `count` headers from a height on, fewer at the end of the chain.
    pub fn headers(&self, from: u32, count: u32) -> Result<Vec<Header>> {
        self.read(|| {
            let mut out = Vec::with_capacity(count as usize);
            for height in from..from.saturating_add(count) {
                match self.0.reader.header(height)? {
                    Some(row) => out.push(row.header),
                    None => break,
                }
            }
            Ok(out)
        })
    }

    /// The script an address or the text of a script hash means.
    pub fn script_of_address(&self, text: &str) -> Result<Script> {
        match address::to_script(self.0.chain.params(), text) {
            Ok(script) => Ok(self.script(script_hash(&script))),
            Err(e) => Err(Error::Wrong(e.to_string())),
        }
    }

    /// What a script has.
    pub fn balance(&self, script: &Script) -> Result<Balance> {
        self.read(|| {
            let (gains, losses) = self.pool().balance_change(&script.hash);
            let chain = self.0.reader.balance(&script.hash)?;
            Ok(Balance {
                confirmed: chain.value,
                coins: chain.coins,
                gains,
                losses,
            })
        })
    }

    /// The unconfirmed transactions of a script.
    pub fn pool_history(&self, script: &Script) -> Vec<PoolTx> {
        let pool = self.pool();
        let of_script = pool.of_script(&script.hash);
        in_order(
            of_script
                .map(|(txid, entry)| PoolTx {
                    txid: *txid,
                    chained: entry.has_unconfirmed_inputs(),
                    fee: entry.fee,
                })
                .collect(),
        )
    }

    /// All transactions of a script.
    ///
    /// # Errors
    /// There are more than the bound.
    pub fn history(&self, script: &Script) -> Result<History> {
        let limit = self.limit();
        self.read(|| {
            let pool = self.pool_history(script);
            let from = TxNum::first_of(0);
            let confirmed = self.0.reader.history(&script.hash, from, limit + 1)?;
            let history = History { confirmed, pool };
            if history.len() > limit {
                return Err(Error::TooMany {
                    what: TRANSACTIONS,
                    limit,
                });
            }
            Ok(history)
        })
    }

    /// A script's unspent outputs in the order of the chain; with the pool those that it spends
    /// are left out and those that it makes follow.
    ///
    /// # Errors
    /// There are more than the bound.
    pub fn unspents(&self, script: &Script, with_pool: bool) -> Result<Vec<Unspent>> {
        let limit = self.limit();
        self.read(|| {
            let coins = self.0.reader.unspents(&script.hash, limit + 1)?;
            if coins.len() > limit {
                return Err(Error::TooMany { what: COINS, limit });
            }
            let pool = self.pool();
            let mut out: Vec<Unspent> = coins
                .into_iter()
                .filter(|coin| !with_pool || pool.spender(&coin.outpoint).is_none())
                .map(|coin| Unspent {
                    outpoint: coin.outpoint,
                    value: coin.value,
                    txnum: Some(coin.txnum),
                })
                .collect();
            if with_pool {
                let made = pool.unspent_of_script(&script.hash).into_iter();
                out.extend(made.map(|(outpoint, value)| Unspent {
                    outpoint,
                    value,
                    txnum: None,
                }));
            }
            Ok(out)
        })
    }

    /// Where a transaction was confirmed; `None` if it was not.
    pub fn place(&self, txid: &Hash) -> Result<Option<Confirmed>> {
        self.read(|| Ok(self.find(txid)?.map(|(confirmed, _)| confirmed)))
    }

    fn find(&self, txid: &Hash) -> Result<Option<(Confirmed, TxPlace)>> {
        let Some(place) = self.0.reader.tx(txid)? else {
            return Ok(None);
        };
        Ok(self.confirmed(place.txnum)?.map(|c| (c, place)))
    }

    /// Height, hash and time of the block a txnum names.
    pub fn confirmed(&self, txnum: TxNum) -> Result<Option<Confirmed>> {
        let row = self.0.reader.header(txnum.height())?;
        Ok(row.map(|row| Confirmed {
            height: txnum.height(),
            block: row.hash,
            time: row.header.time,
            index: txnum.index(),
        }))
    }

    /// A transaction of the pool or the chain.
    pub fn tx(&self, txid: &Hash) -> Result<Option<TxFound>> {
        self.read(|| {
            if let Some(entry) = self.pool().get(txid) {
                return Ok(Some(TxFound {
                    raw: entry.tx().raw().into(),
                    confirmed: None,
                    fee: Some(entry.fee),
                }));
            }
            let Some((confirmed, place)) = self.find(txid)? else {
                return Ok(None);
            };
            Ok(Some(TxFound {
                raw: self.bytes_at(txid, &place, &confirmed.block)?,
                confirmed: Some(confirmed),
                fee: None,
            }))
        })
    }

    /// Value and script of an output, spent or not.
    pub fn output(&self, at: &OutPoint) -> Result<Option<(u64, Vec<u8>)>> {
        if let Some(coin) = self.0.reader.coin(at)? {
            return Ok(Some((coin.value, coin.script)));
        }
        let Some(found) = self.tx(&at.txid)? else {
            return Ok(None);
        };
        let parts = parse(&at.txid, &found.raw)?;
        let output = parts.outputs.get(at.vout as usize);
        Ok(output.map(|o| (o.value, parts.at(&o.script).to_vec())))
    }

    /// Proof that the transaction is in the block at `height`, or in whichever it is; `None` if it
    /// is not.
    pub fn merkle_proof(&self, txid: &Hash, height: Option<u32>) -> Result<Option<MerkleProof>> {
        self.read(|| {
            let height = match height {
                Some(height) => height,
                None => match self.0.reader.tx(txid)? {
                    Some(place) => place.txnum.height(),
                    None => return Ok(None),
                },
            };
            let ids = self.0.reader.block_txids(height)?.unwrap_or_default();
            let Some(index) = ids.iter().position(|id| id == txid) else {
                return Ok(None);
            };
            Ok(Some(MerkleProof {
                height,
                index: index as u32,
                branch: merkle::branch(&ids, index),
            }))
        })
    }

    /// The transaction at a position of a block, and the branch to it.
    pub fn tx_at(&self, height: u32, index: u32) -> Result<Option<(Hash, Vec<Hash>)>> {
        let ids = self.0.reader.block_txids(height)?.unwrap_or_default();
        let txid = ids.get(index as usize).copied();
        Ok(txid.map(|txid| (txid, merkle::branch(&ids, index as usize))))
    }

    /// Who spends an output; `None` if nobody does or it does not exist.
    ///
    /// The index keeps no row for this: an output that was spent in a block is looked for among
    /// the later transactions of its script.
    ///
    /// # Errors
    /// The script has more later transactions than are looked through.
    pub fn spender(&self, at: &OutPoint) -> Result<Option<Spender>> {
        self.read(|| {
            {
                let pool = self.pool();
                if let Some(txid) = pool.spender(at) {
                    let inputs = pool.get(txid).map(|e| e.tx().inputs()).unwrap_or_default();
                    let vin = inputs.iter().position(|i| i.prevout == *at).unwrap_or(0);
                    return Ok(Some(Spender {
                        txid: *txid,
                        vin: vin as u32,
                        confirmed: None,
                    }));
                }
                if pool.get(&at.txid).is_some() {
                    return Ok(None);
                }
            }
            if self.0.reader.coin(at)?.is_some() {
                return Ok(None);
            }
            let Some((made, place)) = self.find(&at.txid)? else {
                return Ok(None);
            };
            let raw = self.bytes_at(&at.txid, &place, &made.block)?;
            let parts = parse(&at.txid, &raw)?;
            let Some(output) = parts.outputs.get(at.vout as usize) else {
                return Ok(None);
            };
            let script = parts.at(&output.script);
            if is_unspendable(script) || made.height == 0 {
                return Ok(None);
            }
            let hash = script_hash(script);
            let later = self
                .0
                .reader
                .history(&hash, place.txnum, MAX_CANDIDATES + 1)?;
            for candidate in later.iter().take(MAX_CANDIDATES) {
                if candidate.txid == at.txid {
                    continue;
                }
                let Some((confirmed, place)) = self.find(&candidate.txid)? else {
                    continue;
                };
                let raw = self.bytes_at(&candidate.txid, &place, &confirmed.block)?;
                let parts = parse(&candidate.txid, &raw)?;
                if let Some(vin) = parts.inputs.iter().position(|i| i.prevout == *at) {
                    return Ok(Some(Spender {
                        txid: candidate.txid,
                        vin: vin as u32,
                        confirmed: Some(confirmed),
                    }));
                }
            }
            if later.len() > MAX_CANDIDATES {
                return Err(Error::TooMany {
                    what: "the transactions of this script after the output",
                    limit: MAX_CANDIDATES,
                });
            }
            Ok(None)
        })
    }

    /// Heights of the first of these blocks that is on the chain: where it left the caller's.
    pub fn fork(&self, blocks: &[Hash]) -> Result<Option<u32>> {
        for hash in blocks {
            if let Some((height, _)) = self.0.reader.header_by_hash(hash)? {
                return Ok(Some(height));
            }
        }
        Ok(None)
    }

    /// Unconfirmed transactions that must be confirmed before this one, and those that need it.
    pub fn relatives(&self, txid: &Hash) -> (BTreeSet<Hash>, BTreeSet<Hash>) {
        let pool = self.pool();
        (pool.ancestors(txid), pool.descendants(txid))
    }
}

/// Reads a transaction whose id is known.
pub(crate) fn parse<'a>(txid: &Hash, raw: &'a [u8]) -> Result<Parts<'a>> {
    Parts::parse(raw).map_err(|e| Error::Bytes {
        txid: hex(txid),
        why: e.to_string(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_chain::hash::from_hex;

    /// The example of the protocol's description.
    #[test]
    fn the_status_of_the_protocols_example() {
        let id = |text: &str| from_hex(text).unwrap();
        let confirmed = [
            (
                "a6c9c361bd0bc536d6a22648efbf8f9b200e425ef6c3a7a9669dc444c532a347",
                2472,
            ),
            (
                "9c42f84b2fcdaff676ba25d9d4941741cc0d1a01cce0c23fdc4c0b2afa38431c",
                2473,
            ),
            (
                "770f2d4371b3fabb902dd9a103e2dd005fcd3971181078fca4a2a1d6ff127b30",
                2473,
            ),
        ];
        let pool = [
            (
                "bb4c8ab438c13b89ca80d1d5bee25b0b6b7f55673f4d801998ba97db161d9e85",
                true,
            ),
            (
                "e02a1dadfa83b996b24175df807b271ea5d02937ef5b35c195fac1e1bdc3198f",
                false,
            ),
            (
                "80b19848aed792565ab7c5a79b7c2a00fbf985741579396ebe0ab6098e607311",
                false,
            ),
        ];
        let history = History {
            confirmed: (1..)
                .zip(confirmed)
                .map(|(n, (txid, height))| Touched {
                    txid: id(txid),
                    txnum: TxNum::new(height, n).unwrap(),
                })
                .collect(),
            pool: in_order(
                pool.map(|(txid, chained)| PoolTx {
                    txid: id(txid),
                    chained,
                    fee: 1,
                })
                .to_vec(),
            ),
        };
        assert_eq!(
            crate::script::hex(&history.status().unwrap()),
            "78e96c6562cafa71c115503b9411fdfdc595a45031e2ab76ff75162fe1b0590d"
        );
        assert_eq!(History::default().status(), None);
    }
}
