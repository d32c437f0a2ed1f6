//! Going through the whole coin set: the commitment recomputed from the rows, the hashes over the
//! ordered set, and the dump that nodes read.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use weft_chain::setinfo::{Counts, Kind, SetHash};
use weft_chain::snapshot::{Preamble, SnapshotWriter};
use weft_chain::{Hash, MuBatch, MuHash3072, OutPoint, coin as set_coin};

use crate::db::{Family, View};
use crate::error::{Error, Result};
use crate::query::Reader;
use crate::rows::meta::{self, TipRow};
use crate::rows::tx::{self, Chunk};
use crate::rows::{TxNum, coin, script};

/// What [`Reader::verify`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verified {
    /// Height of the tip.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// MuHash of the rows; equal to the one kept with the tip, where the commitment is on.
    pub muhash: Hash,
    /// Coins.
    pub coins: u64,
    /// Sum of their amounts, smallest units.
    pub amount: u64,
}

/// A coin with its place.
struct Seen<'a> {
    outpoint: OutPoint,
    txnum: TxNum,
    value: u64,
    script: &'a [u8],
}

impl Seen<'_> {
    fn code(&self) -> u32 {
        set_coin::code(self.txnum.height(), self.txnum.index() == 0)
    }
}

impl Reader {
    /// Recomputes MuHash and totals from the coins' rows on `threads` threads, and checks that each coin
    /// has its row by script and that there are as many of one as of the other. `progress` is told
    /// how many coins are done.
    ///
    /// # Errors
    /// [`Error::Commitment`] where the rows do not give what the tip says; reading failed.
    pub fn verify(&self, threads: usize, progress: impl Fn(u64) + Sync) -> Result<Verified> {
        let view = self.db.view();
        let tip = tip_of(&view)?;
        let row = view.header_at(tip.height)?.ok_or_else(|| Error::Lacking {
            what: "the tip's header".into(),
        })?;
        let pieces = (tip.height + 1).min(threads.max(1) as u32 * 8);
        let bound = |piece: u32| {
            TxNum::first_of(
                (u64::from(tip.height + 1) * u64::from(piece) / u64::from(pieces)) as u32,
            )
        };
        let (next, done, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
        let worker = || -> Result<(MuHash3072, u64, u64)> {
            let (mut total, mut coins, mut amount) = (MuHash3072::new(), 0, 0);
            loop {
                let piece = next.fetch_add(1, Ordering::Relaxed);
                if piece >= u64::from(pieces) || stop.load(Ordering::Relaxed) {
                    return Ok((total, coins, amount));
                }
                let piece = piece as u32;
                let mut batch = MuBatch::new();
                each_coin(&view, bound(piece), bound(piece + 1), |seen| {
                    batch.insert_coin(&seen.outpoint, seen.code(), seen.value, seen.script);
                    coins += 1;
                    amount += seen.value;
                    let sofar = done.fetch_add(1, Ordering::Relaxed) + 1;
                    if sofar.is_multiple_of(1 << 14) {
                        progress(sofar);
                    }
                    Ok(())
                })
                .inspect_err(|_| stop.store(true, Ordering::Relaxed))?;
                total.combine(&batch.finish());
            }
        };
        let results = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(worker)).collect();
            threads
                .into_iter()
                .map(|t| t.join().unwrap_or(Err(Error::Worker)))
                .collect::<Vec<_>>()
        });
        let (mut set, mut coins, mut amount) = (MuHash3072::new(), 0, 0);
        for result in results {
            let (part, n, sum) = result?;
            set.combine(&part);
            coins += n;
            amount += sum;
        }
        let muhash = set.finalize();
        if let Some(want) = row.muhash.filter(|want| *want != muhash) {
            return Err(Error::Commitment {
                height: tip.height,
                rows: muhash,
                tip: want,
            });
        }
        if (coins, amount) != (row.totals.coins, row.totals.amount) {
            return Err(Error::Lacking {
                what: format!(
                    "coins: there are {coins} of {amount} in all, the tip counts {} of {}",
                    row.totals.coins, row.totals.amount
                ),
            });
        }
        let (mut by_script, mut sum) = (0, 0);
        let mut rows = view.range(Family::ScriptCoins, &[], None);
        while let Some((key, value)) = rows.next()? {
            by_script += 1;
            sum += script::read_coin_value(key, value)?;
        }
        if (by_script, sum) != (coins, amount) {
            return Err(Error::Lacking {
                what: format!(
                    "coins by script: {by_script} rows of {sum} in all, by outpoint {coins} of {amount}"
                ),
            });
        }
        Ok(Verified {
            height: tip.height,
            hash: tip.hash,
            muhash,
            coins,
            amount,
        })
    }

    /// A hash over the ordered coin set, as `gettxoutsetinfo` gives it, and the counts. `memory` bounds the bytes
    /// taken for ordering; the less, the more passes over the coins.
    pub fn set_hash(&self, kind: Kind, memory: usize) -> Result<(Hash, Counts)> {
        let view = self.db.view();
        let mut hash = SetHash::new(kind, &tip_of(&view)?.hash);
        let mut wrong = None;
        each_in_order(&view, memory, |seen| {
            if let Err(e) = hash.push(&seen.outpoint, seen.code(), seen.value, seen.script) {
                wrong.get_or_insert(e);
            }
            Ok(())
        })?;
        match wrong {
            Some(e) => Err(Error::Lacking {
                what: format!("order among the coins: {e}"),
            }),
            None => Ok(hash.finish()),
        }
    }

    /// Writes the coin set as `dumptxoutset` of Core 28 and later does (version 2), for the network with
    /// this magic. Returns the base block and the number of coins.
    pub fn export(&self, out: impl Write, magic: [u8; 4], memory: usize) -> Result<(Hash, u64)> {
        let view = self.db.view();
        let tip = tip_of(&view)?;
        let row = view.header_at(tip.height)?.ok_or_else(|| Error::Lacking {
            what: "the tip's header".into(),
        })?;
        let io = |e: weft_chain::snapshot::SnapshotError| Error::Write(std::io::Error::other(e));
        let preamble = Preamble {
            network: magic,
            block: tip.hash,
            coins: row.totals.coins,
        };
        let mut writer = SnapshotWriter::new(out, &preamble).map_err(io)?;
        each_in_order(&view, memory, |seen| {
            writer
                .push(&seen.outpoint, seen.code(), seen.value, seen.script)
                .map_err(io)
        })?;
        writer.finish().map_err(io)?.flush()?;
        Ok((tip.hash, row.totals.coins))
    }
}

fn tip_of(view: &View<'_>) -> Result<TipRow> {
    let row = view.get(Family::Meta, meta::KEY_TIP)?;
    let row = row.ok_or_else(|| Error::Lacking {
        what: "a tip: no block has been applied".into(),
    })?;
    Ok(TipRow::decode(&row)?)
}

/// Calls `each` with the coins of transactions from `start` up to but without `end`.
fn each_coin(
    view: &View<'_>,
    start: TxNum,
    end: TxNum,
    mut each: impl FnMut(Seen<'_>) -> Result<()>,
) -> Result<()> {
    let mut rows = view.range(Family::Coins, &start.to_bytes(), Some(&end.to_bytes()));
    let mut chunk: Option<([u8; 5], Vec<Hash>)> = None;
    while let Some((key, value)) = rows.next()? {
        let (txnum, vout) = coin::read_key(key)?;
        let (value, script) = coin::read_value(key, value)?;
        let chunk_key = tx::chunk_key(txnum);
        let lacking = || Error::Lacking {
            what: format!(
                "the id of transaction {} at height {}",
                txnum.index(),
                txnum.height()
            ),
        };
        if chunk.as_ref().is_none_or(|(key, _)| *key != chunk_key) {
            let row = view.get(Family::Txs, &chunk_key)?.ok_or_else(lacking)?;
            chunk = Some((chunk_key, Chunk::read(&chunk_key, &row)?.txids().to_vec()));
        }
        let txid = chunk
            .as_ref()
            .and_then(|(_, ids)| ids.get(txnum.index() as usize % tx::CHUNK))
            .ok_or_else(lacking)?;
        each(Seen {
            outpoint: OutPoint { txid: *txid, vout },
            txnum,
            value,
            script: &script,
        })?;
    }
    Ok(())
}

/// Calls `each` with all coins in order of transaction id, then output. Takes as many passes as
/// `memory` bytes need, each over one range of ids.
fn each_in_order(
    view: &View<'_>,
    memory: usize,
    mut each: impl FnMut(Seen<'_>) -> Result<()>,
) -> Result<()> {
    let tip = tip_of(view)?;
    let coins = view
        .header_at(tip.height)?
        .map_or(0, |row| row.totals.coins);
    // An entry with its script on the heap; the list may be twice as long as what is in it.
    const ENTRY: u64 = 256;
    let passes = (coins * ENTRY)
        .div_ceil(memory.max(1 << 20) as u64)
        .clamp(1, 1 << 16);
    let bound = |pass: u64| pass * (1 << 16) / passes;
    for pass in 0..passes {
        let ids = bound(pass)..bound(pass + 1);
        let mut list: Vec<(OutPoint, TxNum, u64, Box<[u8]>)> = Vec::new();
        each_coin(
            view,
            TxNum::first_of(0),
            TxNum::first_of(tip.height + 1),
            |seen| {
                let id = &seen.outpoint.txid;
                if ids.contains(&u64::from(u16::from_be_bytes([id[0], id[1]]))) {
                    list.push((seen.outpoint, seen.txnum, seen.value, seen.script.into()));
                }
                Ok(())
            },
        )?;
        list.sort_unstable_by_key(|(outpoint, ..)| *outpoint);
        for (outpoint, txnum, value, script) in &list {
            each(Seen {
                outpoint: *outpoint,
                txnum: *txnum,
                value: *value,
                script,
            })?;
        }
    }
    Ok(())
}
