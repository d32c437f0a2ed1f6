//! What has been applied and is not written yet, and the one batch it becomes.

use hashbrown::HashMap;
use rocksdb::WriteBatch;
use weft_chain::{Hash, MuHash3072, OutPoint};

use crate::cache::CoinCache;
use crate::commitment::Pending;
use crate::db::{Db, Family};
use crate::rows::block::{self, HeaderRow};
use crate::rows::num;
use crate::rows::script::{self, ScriptKey, Touch};
use crate::rows::tx::{self, Span};
use crate::rows::{TxNum, coin};

/// Most blocks in a window: bounds what the commitment holds for each of them.
pub(crate) const MAX_BLOCKS: usize = 10_000;
/// Up to here the outpoints made are remembered; beyond it is cheaper to look through the cache.
const MAX_MADE: usize = 1 << 16;

/// A block in the window.
#[derive(Debug)]
pub(crate) struct Waiting {
    pub(crate) height: u32,
    /// Without the commitment.
    pub(crate) row: HeaderRow,
    pub(crate) added: MuHash3072,
    pub(crate) removed: Option<Pending>,
}

/// Applied blocks that are not written.
pub(crate) struct Window {
    batch: WriteBatch,
    pub(crate) touches: Vec<Touch>,
    /// First 5 bytes of an id and the txnum, as one number.
    txids: Vec<u128>,
    /// Coins on disk that were spent.
    gone: HashMap<(TxNum, u32), ScriptKey>,
    /// Outpoints made, or `None` if they were too many.
    made: Option<Vec<OutPoint>>,
    pub(crate) blocks: Vec<Waiting>,
}

impl std::fmt::Debug for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Window")
            .field("blocks", &self.blocks.len())
            .finish_non_exhaustive()
    }
}

impl Window {
    pub(crate) fn new() -> Self {
        Self {
            batch: WriteBatch::default(),
            touches: Vec::new(),
            txids: Vec::new(),
            gone: HashMap::new(),
            made: Some(Vec::new()),
            blocks: Vec::new(),
        }
    }

    /// Bytes of the rows so far.
    pub(crate) fn bytes(&self) -> usize {
        self.batch.size_in_bytes()
            + size_of::<Touch>() * self.touches.len()
            + size_of::<u128>() * self.txids.len()
            + size_of::<((TxNum, u32), ScriptKey)>() * self.gone.len()
            + 2048 * self.blocks.len()
    }

    /// Whether a coin on disk was spent in this window.
    pub(crate) fn is_gone(&self, txnum: TxNum, vout: u32) -> bool {
        self.gone.contains_key(&(txnum, vout))
    }

    pub(crate) fn spend_on_disk(&mut self, txnum: TxNum, vout: u32, script: ScriptKey) {
        self.gone.insert((txnum, vout), script);
    }

    pub(crate) fn note_made(&mut self, at: &OutPoint) {
        if let Some(made) = &mut self.made {
            made.push(*at);
            if made.len() > MAX_MADE {
                self.made = None;
            }
        }
    }

    /// Adds the rows of a block's transactions.
    pub(crate) fn add_txs(&mut self, db: &Db, height: u32, txids: &[Hash], spans: &[Span]) {
        let mut value = Vec::with_capacity(tx::CHUNK * 36);
        let numbers = (TxNum::first_of(height).to_u64()..).map(TxNum::from_low_bits);
        for ((n, ids), spans) in numbers
            .clone()
            .step_by(tx::CHUNK)
            .zip(txids.chunks(tx::CHUNK))
            .zip(spans.chunks(tx::CHUNK))
        {
            value.clear();
            tx::put_chunk(&mut value, ids, spans);
            db.put(&mut self.batch, Family::Txs, &tx::chunk_key(n), &value);
        }
        self.txids.extend(txids.iter().zip(numbers).map(|(id, n)| {
            let mut wide = [0; 16];
            wide[6..].copy_from_slice(&tx::txid_key(id, n));
            u128::from_be_bytes(wide)
        }));
    }

    pub(crate) fn put(&mut self, db: &Db, family: Family, key: &[u8], value: &[u8]) {
        db.put(&mut self.batch, family, key, value);
    }

    pub(crate) fn delete(&mut self, db: &Db, family: Family, key: &[u8]) {
        db.delete(&mut self.batch, family, key);
    }

    /// Completes the batch: header rows with the hash of the set after each block, then all that
    /// was gathered, sorted. The cache's fresh coins become rows and are no longer fresh.
    pub(crate) fn into_batch(
        self,
        db: &Db,
        cache: &mut CoinCache,
        hashes: &[Hash],
    ) -> (WriteBatch, Vec<ScriptKey>) {
        let Self {
            mut batch,
            mut touches,
            mut txids,
            gone,
            made,
            blocks,
        } = self;
        for (i, waiting) in blocks.iter().enumerate() {
            let row = HeaderRow {
                muhash: hashes.get(i).copied(),
                ..waiting.row.clone()
            };
            db.put(
                &mut batch,
                Family::Headers,
                &block::height_key(waiting.height),
                &row.encode(),
            );
            db.put(
                &mut batch,
                Family::Headers,
                &block::hash_key(&row.hash, waiting.height),
                &[],
            );
        }

        txids.sort_unstable();
        for wide in &txids {
            db.put(&mut batch, Family::Txids, &wide.to_be_bytes()[6..], &[]);
        }
        drop(txids);

        touches.sort_unstable();
        touches.dedup();
        let mut scripts = Vec::new();
        let mut value = Vec::new();
        for same in touches.chunk_by(|a, b| a.script() == b.script()) {
            let script = same[0].script();
            if blocks.len() == 1 {
                scripts.push(script);
            }
            for row in same.chunks(script::ROW_MAX) {
                let first = row[0].txnum();
                value.clear();
                script::put_history(&mut value, first, row[1..].iter().map(|t| t.txnum()));
                db.put(
                    &mut batch,
                    Family::History,
                    &script::history_key(script, first),
                    &value,
                );
            }
        }
        drop(touches);

        let mut gone: Vec<_> = gone.into_iter().collect();
        gone.sort_unstable();
        let mut key = Vec::new();
        for ((txnum, vout), _) in &gone {
            key.clear();
            coin::put_key(&mut key, *txnum, *vout);
            db.delete(&mut batch, Family::Coins, &key);
        }
        gone.sort_unstable_by_key(|((txnum, vout), script)| (*script, *txnum, *vout));
        for ((txnum, vout), script) in &gone {
            key.clear();
            script::put_coin_key(&mut key, *script, *txnum, *vout);
            db.delete(&mut batch, Family::ScriptCoins, &key);
        }
        drop(gone);

        let mut fresh: Vec<_> = match &made {
            Some(made) => made
                .iter()
                .filter_map(|at| Some((at.vout, cache.get(at)?)))
                .filter(|(_, c)| c.fresh())
                .collect(),
            None => cache.fresh().map(|(at, coin)| (at.vout, coin)).collect(),
        };
        fresh.sort_unstable_by_key(|(vout, coin)| (coin.txnum(), *vout));
        for (vout, coin) in &fresh {
            key.clear();
            coin::put_key(&mut key, coin.txnum(), *vout);
            db.put(&mut batch, Family::Coins, &key, coin.body.as_bytes());
        }
        fresh.sort_unstable_by_key(|(vout, coin)| (coin.script, coin.txnum(), *vout));
        for (vout, coin) in &fresh {
            key.clear();
            script::put_coin_key(&mut key, coin.script, coin.txnum(), *vout);
            db.put(
                &mut batch,
                Family::ScriptCoins,
                &key,
                amount_part(coin.body.as_bytes()),
            );
        }
        drop(fresh);
        match made {
            Some(made) => cache.settle(&made),
            None => cache.settle_all(),
        }
        (batch, scripts)
    }
}

/// The amount at the front of an encoded coin, which is the whole value of its row by script.
pub(crate) fn amount_part(body: &[u8]) -> &[u8] {
    let mut rest = body;
    let _ = num::get_varint(&mut rest);
    &body[..body.len() - rest.len()]
}
