//! The writer: applies and undoes blocks, and writes them in batches.

use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use rand::RngCore;
use rocksdb::WriteBatch;
use weft_chain::pow::Target;
use weft_chain::{Hash, MuBatch, OutPoint, coin as set_coin};

use crate::cache::{Cached, CoinCache};
use crate::commitment::{SetNumber, Workers};
use crate::db::{Db, Family, View};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::prepare::{Prepared, Preparer};
use crate::query::Reader;
use crate::rows::block::{self, HeaderRow, SpentCoin, Totals, UndoRow};
use crate::rows::meta::{self, TipRow};
use crate::rows::script::{self, Salt, ScriptKey};
use crate::rows::tx::{self, Chunk};
use crate::rows::{TxNum, coin};
use crate::window::{MAX_BLOCKS, Waiting, Window, amount_part};

/// How a batch reaches the disk. Either way it is there, whole, when the call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Through the write-ahead log: best for one block.
    Log,
    /// Past the log, into files of its own: best for many blocks.
    Files,
}

/// The last block applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its height.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// Work of the chain up to it.
    pub work: u128,
    /// Totals after it.
    pub totals: Totals,
}

/// What a batch that was written held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Committed {
    /// Height and hash of its blocks in order.
    pub blocks: Vec<(u32, Hash)>,
    /// Scripts touched, in order of their keys; only told where the batch is one block.
    pub scripts: Vec<ScriptKey>,
}

/// A block that was undone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undone {
    /// Height it had.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// Scripts it had touched, in order of their keys.
    pub scripts: Vec<ScriptKey>,
}

/// The database, open for writing. One at a time for each folder; RocksDB locks it.
#[derive(Debug)]
pub struct Store {
    db: Arc<Db>,
    options: Options,
    salt: Salt,
    genesis: Hash,
    /// With the blocks in the window.
    tip: Option<Tip>,
    /// Without them.
    set: SetNumber,
    cache: CoinCache,
    window: Window,
    workers: Option<Workers>,
    /// Height the chain is known to reach: undo data is kept for the last blocks below it only.
    target: u32,
    /// Merges files after catching up.
    settling: Option<JoinHandle<()>>,
    /// A batch failed, so what is in memory is no longer what is on disk.
    broken: bool,
}

impl Store {
    /// Opens the database in `path` for the chain with this genesis block, or makes it.
    ///
    /// # Errors
    /// Another process has it open; it belongs to another chain, has another format, or was made
    /// with another setting of the commitment; a damaged file; a full disk.
    pub fn open(path: &Path, genesis: Hash, options: Options) -> Result<Self> {
        let db = Arc::new(Db::open(path, &options)?);
        let view = db.view();
        let salt = match identity(&view, path, &genesis)? {
            None => {
                let mut salt = Salt::default();
                rand::rng().fill_bytes(&mut salt);
                let mut batch = WriteBatch::default();
                for (key, value) in [
                    (meta::KEY_FORMAT, &meta::FORMAT.to_le_bytes()[..]),
                    (meta::KEY_CHAIN, &genesis),
                    (meta::KEY_SALT, &salt),
                    (meta::KEY_COMMITMENT, &[u8::from(options.commitment)]),
                ] {
                    db.put(&mut batch, Family::Meta, key, value);
                }
                db.write_synced(batch)?;
                salt
            }
            Some((salt, has)) if has == options.commitment => salt,
            Some((_, has)) => {
                let why =
                    format!("it was made with commitment = {has}, and cannot be changed later");
                return Err(Error::Open {
                    path: path.into(),
                    why,
                });
            }
        };
        let (tip, set) = match view.get(Family::Meta, meta::KEY_TIP)? {
            None => (None, SetNumber::empty()),
            Some(row) => {
                let row = TipRow::decode(&row)?;
                let header = view
                    .header_at(row.height)?
                    .filter(|h| h.hash == row.hash)
                    .ok_or_else(|| Error::Lacking {
                        what: format!("the header of the tip at height {}", row.height),
                    })?;
                let tip = Tip {
                    height: row.height,
                    hash: row.hash,
                    work: header.work,
                    totals: header.totals,
                };
                (Some(tip), SetNumber::from_bytes(&row.set))
            }
        };
        drop(view);
        let cache = CoinCache::new(options.cache_bytes());
        let mut store = Self {
            db,
            salt,
            genesis,
            tip,
            set,
            cache,
            window: Window::new(),
            workers: None,
            target: 0,
            settling: None,
            broken: false,
            options,
        };
        store.prune_undo()?;
        Ok(store)
    }

    /// The last block applied, written or not.
    pub fn tip(&self) -> Option<&Tip> {
        self.tip.as_ref()
    }

    /// A reader of what is written. Readers may be cloned and used from any thread.
    pub fn reader(&self) -> Reader {
        Reader::new(self.db.clone(), self.salt)
    }

    /// What worker threads need to prepare blocks.
    pub fn preparer(&self) -> Preparer {
        Preparer {
            salt: self.salt,
            commitment: self.options.commitment,
        }
    }

    /// Coins in memory, and bytes they and the window take.
    pub fn memory(&self) -> (usize, usize) {
        (self.cache.len(), self.cache.bytes() + self.window.bytes())
    }

    /// Says how far the chain is known to reach. Blocks too deep below it to be undone ever are
    /// stored without undo data.
    pub fn set_target(&mut self, height: u32) {
        self.target = height;
    }

    /// Blocks applied and not written.
    pub fn pending(&self) -> usize {
        self.window.blocks.len()
    }

    /// Whether it is time to [`Store::commit`].
    pub fn full(&self) -> bool {
        self.window.bytes() > self.options.window_bytes()
            || self.window.blocks.len() >= self.options.batch_blocks.clamp(1, MAX_BLOCKS)
            || self.cache.full()
    }

    /// Applies the next block in memory. On an error nothing has changed.
    ///
    /// # Errors
    /// The block does not follow the tip or spends what is not there; reading failed.
    pub fn apply(&mut self, block: Prepared) -> Result<()> {
        self.check_sound()?;
        self.check_place(&block)?;
        let spent = self.resolve(&block)?;
        self.check_repeats(&block)?;

        // From here on nothing fails but a worker thread that is gone.
        let keep_undo = block.height > self.target.saturating_sub(self.options.undo_depth);
        let mut totals = self.tip.map_or(Totals::default(), |t| t.totals);
        totals.txs += block.txids.len() as u64;
        let mut undo = UndoRow {
            spent: Vec::new(),
            passing: block.passing,
        };
        let mut leaving = Vec::with_capacity(if self.options.commitment {
            spent.len()
        } else {
            0
        });
        for (spend, coin) in block.spends.iter().zip(spent) {
            let (made_by, vout) = (coin.txnum(), spend.outpoint.vout);
            self.cache.remove(&spend.outpoint);
            if !coin.fresh() {
                self.window.spend_on_disk(made_by, vout, coin.script);
            }
            self.window
                .touches
                .push(script::Touch::new(coin.script, spend.txnum));
            if let Some((value, len)) = amount_and_script_len(coin.body.as_bytes()) {
                totals.coins -= 1;
                totals.amount -= value;
                totals.bogosize -= len + 50;
            }
            if keep_undo {
                undo.spent.push(SpentCoin {
                    txnum: made_by,
                    vout,
                    body: coin.body.clone(),
                });
            }
            if self.options.commitment {
                leaving.push((spend.outpoint, made_by, coin.body));
            }
        }
        for made in block.creates {
            totals.coins += 1;
            totals.amount += made.value;
            totals.bogosize += u64::from(made.script_len) + 50;
            self.window.note_made(&made.outpoint);
            self.cache.insert(
                made.outpoint,
                Cached::new(made.txnum, made.body, made.script, true),
            );
        }
        self.window.touches.extend_from_slice(&block.touches);
        self.window
            .add_txs(&self.db, block.height, &block.txids, &block.spans);
        if keep_undo {
            self.window.put(
                &self.db,
                Family::Undo,
                &block::undo_key(block.height),
                &undo.encode(),
            );
            if let Some(old) = block.height.checked_sub(self.options.undo_depth) {
                self.window
                    .delete(&self.db, Family::Undo, &block::undo_key(old));
            }
        }
        let work = self.tip.map_or(0, |t| t.work)
            + Target::from_compact(block.header.bits).map_or(0, |target| target.work());
        let row = HeaderRow {
            hash: block.hash,
            header: block.header,
            work,
            muhash: None,
            size: block.size,
            totals,
        };
        let removed = if leaving.is_empty() {
            None
        } else {
            let threads = self.options.threads;
            let workers = self.workers.get_or_insert_with(|| Workers::start(threads));
            Some(
                workers
                    .remove(leaving)
                    .inspect_err(|_| self.broken = true)?,
            )
        };
        self.window.blocks.push(Waiting {
            height: block.height,
            row,
            added: block.added,
            removed,
        });
        self.tip = Some(Tip {
            height: block.height,
            hash: block.hash,
            work,
            totals,
        });
        Ok(())
    }

    /// Writes all applied blocks in one batch.
    ///
    /// # Errors
    /// Writing failed: the database on disk is as before, and this store refuses everything but
    /// being dropped; open it again.
    pub fn commit(&mut self, durability: Durability) -> Result<Committed> {
        self.check_sound()?;
        let Some(tip) = self.tip.filter(|_| !self.window.blocks.is_empty()) else {
            return Ok(Committed::default());
        };
        self.broken = true;
        let mut window = std::mem::replace(&mut self.window, Window::new());
        let mut hashes = Vec::new();
        if self.options.commitment {
            let mut changes = Vec::with_capacity(window.blocks.len());
            for waiting in &mut window.blocks {
                let mut change = waiting.added.clone();
                if let Some(removed) = waiting.removed.take() {
                    change.combine(&removed.wait()?);
                }
                changes.push(change);
            }
            hashes = self.set.advance(&changes);
        }
        let blocks = window
            .blocks
            .iter()
            .map(|w| (w.height, w.row.hash))
            .collect();
        let (mut batch, scripts) = window.into_batch(&self.db, &mut self.cache, &hashes);
        self.put_tip(&mut batch, tip.height, &tip.hash);
        match durability {
            Durability::Log => self.db.write_synced(batch)?,
            Durability::Files => self.db.write_flushed(batch)?,
        }
        self.broken = false;
        self.cache.shrink();
        Ok(Committed { blocks, scripts })
    }

    /// Takes the last block off, in a batch of its own. Blocks not written yet are written first.
    ///
    /// # Errors
    /// There is no undo data for it; reading or writing failed; the coin set after it is not the
    /// one the commitment stands for.
    pub fn undo(&mut self) -> Result<Option<Undone>> {
        self.commit(Durability::Log)?;
        let Some(tip) = self.tip else { return Ok(None) };
        let height = tip.height;
        let db = self.db.clone();
        let view = db.view();
        let undo_key = block::undo_key(height);
        let undo = match view.get(Family::Undo, &undo_key)? {
            Some(row) => UndoRow::decode(&undo_key, &row)?,
            None => {
                return Err(Error::NoUndo {
                    height,
                    depth: self.options.undo_depth,
                });
            }
        };
        let mut batch = WriteBatch::default();
        let mut change = MuBatch::new();
        let mut scripts = undo.passing.clone();
        let height_bytes = &TxNum::first_of(height).to_bytes()[..3];

        let mut txids = Vec::new();
        let mut rows = view.scan(Family::Txs, height_bytes);
        while let Some((key, value)) = rows.next()? {
            let mut txnum = tx::read_chunk_key(key)?;
            for txid in Chunk::read(key, value)?.txids() {
                db.delete(&mut batch, Family::Txids, &tx::txid_key(txid, txnum));
                txids.push(*txid);
                txnum = TxNum::from_low_bits(txnum.to_u64() + 1);
            }
            db.delete(&mut batch, Family::Txs, key);
        }
        drop(rows);

        let mut rows = view.scan(Family::Coins, height_bytes);
        while let Some((key, value)) = rows.next()? {
            let (txnum, vout) = coin::read_key(key)?;
            let (amount, script) = coin::read_value(key, value)?;
            let script_key = ScriptKey::of_script(&self.salt, &script);
            let txid = *txids
                .get(txnum.index() as usize)
                .ok_or_else(|| Error::Lacking {
                    what: format!("the id of transaction {} at height {height}", txnum.index()),
                })?;
            change.insert_coin(
                &OutPoint { txid, vout },
                set_coin::code(height, txnum.index() == 0),
                amount,
                &script,
            );
            db.delete(&mut batch, Family::Coins, key);
            db.delete(
                &mut batch,
                Family::ScriptCoins,
                &script::coin_key(script_key, txnum, vout),
            );
            scripts.push(script_key);
        }
        drop(rows);

        let spent_ids = view.txids(&undo.spent.iter().map(|c| c.txnum).collect::<Vec<_>>())?;
        for (spent, txid) in undo.spent.iter().zip(spent_ids) {
            let SpentCoin {
                txnum,
                vout,
                ref body,
            } = *spent;
            let key = coin::key(txnum, vout);
            let (amount, script) = coin::read_value(&key, body.as_bytes())?;
            let script_key = ScriptKey::of_script(&self.salt, &script);
            change.remove_coin(
                &OutPoint { txid, vout },
                set_coin::code(txnum.height(), txnum.index() == 0),
                amount,
                &script,
            );
            db.put(&mut batch, Family::Coins, &key, body.as_bytes());
            db.put(
                &mut batch,
                Family::ScriptCoins,
                &script::coin_key(script_key, txnum, vout),
                amount_part(body.as_bytes()),
            );
            scripts.push(script_key);
        }

        scripts.sort_unstable();
        scripts.dedup();
        for script in &scripts {
            strip_history(&db, &view, &mut batch, *script, height)?;
        }

        db.delete(&mut batch, Family::Headers, &block::height_key(height));
        db.delete(
            &mut batch,
            Family::Headers,
            &block::hash_key(&tip.hash, height),
        );
        db.delete(&mut batch, Family::Undo, &undo_key);
        let mut set = self.set.clone();
        if self.options.commitment {
            set.retreat(&change.finish());
        }
        let before = match height.checked_sub(1) {
            None => None,
            Some(below) => {
                let row = view.header_at(below)?.ok_or_else(|| Error::Lacking {
                    what: format!("the header at height {below}"),
                })?;
                if let Some(tip) = row.muhash.filter(|want| *want != set.hash()) {
                    return Err(Error::Commitment {
                        height: below,
                        rows: set.hash(),
                        tip,
                    });
                }
                Some(Tip {
                    height: below,
                    hash: row.hash,
                    work: row.work,
                    totals: row.totals,
                })
            }
        };
        drop(view);
        self.broken = true;
        self.set = set;
        match before {
            Some(tip) => self.put_tip(&mut batch, tip.height, &tip.hash),
            None => db.delete(&mut batch, Family::Meta, meta::KEY_TIP),
        }
        db.write_synced(batch)?;
        self.tip = before;
        self.cache.clear();
        self.broken = false;
        Ok(Some(Undone {
            height,
            hash: tip.hash,
            scripts,
        }))
    }

    /// After catching up: begins to merge the files of the two families with deletions on a thread of its own, so that
    /// spent coins leave the disk. Closing the store ends it early; nothing is lost by that.
    pub fn settle(&mut self) {
        if self.settling.as_ref().is_some_and(|t| !t.is_finished()) {
            return;
        }
        self.settled();
        let db = self.db.clone();
        let merge = move || {
            db.merge(Family::Coins);
            db.merge(Family::ScriptCoins);
        };
        // Without a thread it stays for RocksDB's own compaction.
        self.settling = std::thread::Builder::new()
            .name("settle".into())
            .spawn(merge)
            .ok();
    }

    /// Waits for what [`Store::settle`] began.
    pub fn settled(&mut self) {
        if let Some(thread) = self.settling.take() {
            // A panic there has been reported by its own thread, and there is no result to lose.
            let _ = thread.join();
        }
    }

    /// Compacts all families; `done` is called after each.
    ///
    /// # Errors
    /// Reading or writing failed.
    pub fn compact(&mut self, done: impl FnMut(Family)) -> Result<()> {
        self.commit(Durability::Log)?;
        self.settled();
        self.db.compact(done)
    }

    fn check_sound(&self) -> Result<()> {
        if self.broken {
            return Err(Error::Database {
                doing: "using a store after a failed batch",
                detail: "open it again; the disk has the state before that batch".into(),
            });
        }
        Ok(())
    }

    fn check_place(&self, block: &Prepared) -> Result<()> {
        let want = self.tip.map_or(0, |t| t.height + 1);
        if block.height != want {
            return Err(Error::Height {
                got: block.height,
                want,
            });
        }
        match self.tip {
            None if block.hash != self.genesis => Err(Error::Genesis {
                got: block.hash,
                want: self.genesis,
            }),
            Some(tip) if block.header.prev != tip.hash => Err(Error::NotNext {
                block: block.hash,
                prev: block.header.prev,
                tip: tip.hash,
                height: tip.height,
            }),
            _ => Ok(()),
        }
    }

    /// The coins the block spends.
    fn resolve(&self, block: &Prepared) -> Result<Vec<Cached>> {
        let mut out: Vec<Option<Cached>> = Vec::with_capacity(block.spends.len());
        let mut missing = Vec::new();
        for spend in &block.spends {
            let coin = self.cache.get(&spend.outpoint).cloned();
            if coin.is_none() {
                missing.push(out.len());
            }
            out.push(coin);
        }
        if !missing.is_empty() {
            let wanted: Vec<_> = missing.iter().map(|i| block.spends[*i].outpoint).collect();
            let found = self
                .db
                .view()
                .coins(&wanted, |txnum, vout| self.window.is_gone(txnum, vout))?;
            for (i, found) in missing.into_iter().zip(found) {
                let spend = &block.spends[i];
                let coin = found.ok_or(Error::MissingCoin {
                    height: block.height,
                    index: spend.txnum.index(),
                    outpoint: spend.outpoint,
                })?;
                let (_, script) = coin::read_value(
                    &coin::key(coin.txnum, spend.outpoint.vout),
                    coin.body.as_bytes(),
                )?;
                out[i] = Some(Cached::new(
                    coin.txnum,
                    coin.body,
                    ScriptKey::of_script(&self.salt, &script),
                    false,
                ));
            }
        }
        Ok(out.into_iter().flatten().collect())
    }

    /// BIP30: no transaction repeats one that has unspent outputs. Other transactions can only
    /// repeat where a coinbase before them did, so on disk that one alone is looked for.
    fn check_repeats(&self, block: &Prepared) -> Result<()> {
        let refuse = |index, txid| {
            Err(Error::Bip30 {
                height: block.height,
                index,
                txid,
            })
        };
        if let Some(made) = block
            .creates
            .iter()
            .find(|made| self.cache.get(&made.outpoint).is_some())
        {
            return refuse(made.txnum.index(), made.outpoint.txid);
        }
        let coinbase = &block.txids[0];
        let view = self.db.view();
        for txnum in view.txnums(coinbase)? {
            let mut rows = view.scan(Family::Coins, &txnum.to_bytes());
            while let Some((key, _)) = rows.next()? {
                let (txnum, vout) = coin::read_key(key)?;
                if !self.window.is_gone(txnum, vout) {
                    return refuse(0, *coinbase);
                }
            }
        }
        Ok(())
    }

    fn put_tip(&self, batch: &mut WriteBatch, height: u32, hash: &Hash) {
        let row = TipRow {
            height,
            hash: *hash,
            set: self.set.to_bytes(),
        };
        self.db
            .put(batch, Family::Meta, meta::KEY_TIP, &row.encode());
    }

    /// Deletes undo data deeper than configured.
    fn prune_undo(&mut self) -> Result<()> {
        let Some(end) = self
            .tip
            .and_then(|t| t.height.checked_sub(self.options.undo_depth))
        else {
            return Ok(());
        };
        let mut batch = WriteBatch::default();
        {
            let view = self.db.view();
            let mut rows = view.range(Family::Undo, &[], Some(&block::undo_key(end + 1)));
            while let Some((key, _)) = rows.next()? {
                self.db.delete(&mut batch, Family::Undo, key);
            }
        }
        if batch.is_empty() {
            Ok(())
        } else {
            self.db.write_synced(batch)
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        self.workers = None;
        self.db.stop_background_work();
        self.settled();
    }
}

/// The salt of a database and whether it has the commitment; `None` of an empty one.
pub(crate) fn identity(
    view: &View<'_>,
    path: &Path,
    genesis: &Hash,
) -> Result<Option<(Salt, bool)>> {
    let refuse = |why: String| {
        Err(Error::Open {
            path: path.into(),
            why,
        })
    };
    let Some(format) = view.get(Family::Meta, meta::KEY_FORMAT)? else {
        return Ok(None);
    };
    let format = meta::read_format(&format)?;
    if format != meta::FORMAT {
        return refuse(format!(
            "its format is {format}, this program reads format {}; build the index anew in another folder",
            meta::FORMAT
        ));
    }
    if view.get(Family::Meta, meta::KEY_CHAIN)?.as_deref() != Some(&genesis[..]) {
        return refuse(
            "it belongs to another chain; name another folder, or the chain it was made for".into(),
        );
    }
    let commitment = view.get(Family::Meta, meta::KEY_COMMITMENT)?.as_deref() == Some(&[1]);
    Ok(Some((
        meta::read_salt(&view.get(Family::Meta, meta::KEY_SALT)?.unwrap_or_default())?,
        commitment,
    )))
}

/// Takes the transactions of `height` out of a script's history.
fn strip_history(
    db: &Db,
    view: &View<'_>,
    batch: &mut WriteBatch,
    script: ScriptKey,
    height: u32,
) -> Result<()> {
    let mut end = TxNum::from_low_bits(TxNum::first_of(height + 1).to_u64() - 1);
    let mut txnums = Vec::new();
    while let Some((key, value)) =
        view.at_or_before(Family::History, &script::history_key(script, end))?
    {
        let (owner, first) = script::read_history_key(&key)?;
        if owner != script {
            break;
        }
        txnums.clear();
        script::read_history(&key, &value, &mut txnums)?;
        let stay = txnums.partition_point(|t| t.height() < height);
        if stay == txnums.len() {
            break;
        }
        if stay > 0 {
            let mut value = Vec::new();
            script::put_history(&mut value, first, txnums[1..stay].iter().copied());
            db.put(batch, Family::History, &key, &value);
            break;
        }
        db.delete(batch, Family::History, &key);
        let Some(before) = first.to_u64().checked_sub(1) else {
            break;
        };
        end = TxNum::from_low_bits(before);
    }
    Ok(())
}

fn amount_and_script_len(body: &[u8]) -> Option<(u64, u64)> {
    let mut rest = body;
    let (value, script) = coin::decode_prefix(&mut rest)?;
    Some((value, script.len() as u64))
}
