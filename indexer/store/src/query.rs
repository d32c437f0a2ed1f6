//! Questions about what is written: coins and history of scripts, coins by outpoint, places of
//! transactions, headers. Everything is answered from rows; nothing asks the node.
//!
//! Each call looks at the database as it was at one moment, so its parts agree with each other
//! while blocks come and go.

use std::path::Path;
use std::sync::Arc;

use weft_chain::{Coin, Hash, OutPoint};

use crate::db::{Db, Family, Held, View};
use crate::error::{Error, Result};
use crate::options::Options;
use crate::rows::block::{self, HeaderRow};
use crate::rows::meta::{self, TipRow};
use crate::rows::script::{self, Salt, ScriptKey};
use crate::rows::tx::{self, Chunk, Span};
use crate::rows::{TxNum, coin};
use crate::store::identity;

/// Answers questions. Cheap to clone; any number may be used at once.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) db: Arc<Db>,
    salt: Salt,
}

/// An unspent output of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unspent {
    /// Which output.
    pub outpoint: OutPoint,
    /// Height and position in the block of its transaction; position 0 is a coinbase.
    pub txnum: TxNum,
    /// Amount in smallest units.
    pub value: u64,
}

/// A transaction that paid a script or spent from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Touched {
    /// Its id.
    pub txid: Hash,
    /// Height and position in the block.
    pub txnum: TxNum,
}

/// What a script has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Balance {
    /// Sum of its coins in smallest units.
    pub value: u64,
    /// Number of its coins.
    pub coins: u64,
}

/// Where a transaction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TxPlace {
    /// Height and position in the block.
    pub txnum: TxNum,
    /// Bytes within the serialised block.
    pub span: Span,
}

impl Reader {
    pub(crate) fn new(db: Arc<Db>, salt: Salt) -> Self {
        Self { db, salt }
    }

    /// Opens the database in `path` for questions only, also while another process writes it; what
    /// it answers is what was written when it was opened.
    ///
    /// # Errors
    /// There is no database, it is empty, or belongs to another chain or format.
    pub fn open(path: &Path, genesis: &Hash, options: &Options) -> Result<Self> {
        let db = Arc::new(Db::open_read_only(path, options)?);
        let found = identity(&db.view(), path, genesis)?;
        let Some((salt, _)) = found else {
            return Err(Error::Open {
                path: path.into(),
                why: "it is empty; `run` fills it".into(),
            });
        };
        Ok(Self::new(db, salt))
    }

    /// The database's short name of the script with this SHA-256, as blocks tell what they touched.
    pub fn script_key(&self, script_hash: &Hash) -> ScriptKey {
        ScriptKey::of_hash(&self.salt, script_hash)
    }

    /// Height and hash of the last block written.
    pub fn tip(&self) -> Result<Option<(u32, Hash)>> {
        let row = self.db.view().get(Family::Meta, meta::KEY_TIP)?;
        Ok(row
            .map(|row| TipRow::decode(&row))
            .transpose()?
            .map(|row| (row.height, row.hash)))
    }

    /// What the script with this SHA-256 has.
    pub fn balance(&self, script_hash: &Hash) -> Result<Balance> {
        let mut balance = Balance::default();
        let view = self.db.view();
        let mut rows = view.scan(Family::ScriptCoins, &self.script_key(script_hash).0);
        while let Some((key, value)) = rows.next()? {
            balance.value += script::read_coin_value(key, value)?;
            balance.coins += 1;
        }
        Ok(balance)
    }

    /// The first `limit` coins of the script with this SHA-256, in the order of the chain, then of
    /// the outputs.
    pub fn unspents(&self, script_hash: &Hash, limit: usize) -> Result<Vec<Unspent>> {
        let key = self.script_key(script_hash);
        self.db.view().unspents(&key, None, limit)
    }

    /// The first `limit` transactions from `from` on that paid the script with this SHA-256 or
    /// spent from it, in the order of the chain.
    pub fn history(&self, script_hash: &Hash, from: TxNum, limit: usize) -> Result<Vec<Touched>> {
        let key = self.script_key(script_hash);
        self.db.view().history(&key, from, limit)
    }

    /// The database as it is now, to be read in pieces that belong together however long that
    /// takes.
    pub fn moment(&self) -> Moment {
        Moment {
            held: Held::new(self.db.clone()),
            salt: self.salt,
        }
    }

    /// The coin at an outpoint.
    pub fn coin(&self, at: &OutPoint) -> Result<Option<Coin>> {
        let found = self
            .db
            .view()
            .coins(std::slice::from_ref(at), |_, _| false)?
            .pop()
            .flatten();
        let Some(found) = found else { return Ok(None) };
        let (value, script) =
            coin::read_value(&coin::key(found.txnum, at.vout), found.body.as_bytes())?;
        Ok(Some(Coin {
            value,
            height: found.txnum.height(),
            coinbase: found.txnum.index() == 0,
            script,
        }))
    }

    /// Where the transaction with this id is; the youngest of several.
    pub fn tx(&self, txid: &Hash) -> Result<Option<TxPlace>> {
        let view = self.db.view();
        let Some(&txnum) = view.txnums(txid)?.last() else {
            return Ok(None);
        };
        let key = tx::chunk_key(txnum);
        let lacking = || Error::Lacking {
            what: format!("transaction {} at height {}", txnum.index(), txnum.height()),
        };
        let value = view.get(Family::Txs, &key)?.ok_or_else(lacking)?;
        let spans = Chunk::read(&key, &value)?.spans()?;
        let span = *spans
            .get(txnum.index() as usize % tx::CHUNK)
            .ok_or_else(lacking)?;
        Ok(Some(TxPlace { txnum, span }))
    }

    /// The ids of a block's transactions in order; `None` above the tip.
    pub fn block_txids(&self, height: u32) -> Result<Option<Vec<Hash>>> {
        if height > TxNum::MAX_HEIGHT {
            return Ok(None);
        }
        let view = self.db.view();
        let mut ids = Vec::new();
        let mut rows = view.scan(Family::Txs, &TxNum::first_of(height).to_bytes()[..3]);
        while let Some((key, value)) = rows.next()? {
            ids.extend_from_slice(Chunk::read(key, value)?.txids());
        }
        Ok((!ids.is_empty()).then_some(ids))
    }

    /// The block of the active chain at a height.
    pub fn header(&self, height: u32) -> Result<Option<HeaderRow>> {
        self.db.view().header_at(height)
    }

    /// The block of the active chain with this hash, and its height.
    pub fn header_by_hash(&self, hash: &Hash) -> Result<Option<(u32, HeaderRow)>> {
        let view = self.db.view();
        let mut heights = Vec::new();
        let mut rows = view.scan(Family::Headers, &block::hash_prefix(hash));
        while let Some((key, _)) = rows.next()? {
            heights.push(block::read_hash_key(key)?);
        }
        drop(rows);
        for height in heights {
            if let Some(row) = view.header_at(height)?.filter(|row| row.hash == *hash) {
                return Ok(Some((height, row)));
            }
        }
        Ok(None)
    }

    /// Calls `each` with all rows of a family, as they are on disk: for tools and tests.
    pub fn each_row(&self, family: Family, mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
        let view = self.db.view();
        let mut rows = view.range(family, &[], None);
        while let Some((key, value)) = rows.next()? {
            each(key, value);
        }
        Ok(())
    }

    /// Bytes of each family's files.
    pub fn sizes(&self) -> Vec<(Family, u64)> {
        Family::ALL
            .iter()
            .map(|f| (*f, self.db.file_bytes(*f)))
            .collect()
    }

    /// Bytes that compaction has yet to rewrite.
    pub fn pending_compaction(&self) -> u64 {
        self.db.pending_compaction_bytes()
    }

    /// The database's folder.
    pub fn path(&self) -> &Path {
        self.db.path()
    }
}

/// The database as it was at one moment. Holding it costs no memory; rows that are deleted
/// meanwhile stay on disk.
#[derive(Debug)]
pub struct Moment {
    held: Held,
    salt: Salt,
}

impl Moment {
    fn key(&self, script_hash: &Hash) -> ScriptKey {
        ScriptKey::of_hash(&self.salt, script_hash)
    }

    /// At most `limit` coins of a script, those after the one at `after` or all; see
    /// [`Reader::unspents`].
    pub fn unspents(
        &self,
        script_hash: &Hash,
        after: Option<(TxNum, u32)>,
        limit: usize,
    ) -> Result<Vec<Unspent>> {
        let key = self.key(script_hash);
        self.held.view().unspents(&key, after, limit)
    }

    /// Number of a script's coins, counted up to `limit`.
    pub fn count_unspents(&self, script_hash: &Hash, limit: usize) -> Result<usize> {
        let mut rows = self
            .held
            .view()
            .scan(Family::ScriptCoins, &self.key(script_hash).0);
        let mut count = 0;
        while count < limit && rows.next()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// At most `limit` transactions of a script from `from` on; see [`Reader::history`].
    pub fn history(&self, script_hash: &Hash, from: TxNum, limit: usize) -> Result<Vec<Touched>> {
        let key = self.key(script_hash);
        self.held.view().history(&key, from, limit)
    }

    /// Number of a script's transactions, counted up to `limit`.
    pub fn count_history(&self, script_hash: &Hash, limit: usize) -> Result<usize> {
        let mut rows = self
            .held
            .view()
            .scan(Family::History, &self.key(script_hash).0);
        let (mut count, mut row) = (0, Vec::new());
        while count < limit
            && let Some((key, value)) = rows.next()?
        {
            row.clear();
            script::read_history(key, value, &mut row)?;
            count += row.len();
        }
        Ok(count.min(limit))
    }

    /// The block of the active chain at a height.
    pub fn header(&self, height: u32) -> Result<Option<HeaderRow>> {
        self.held.view().header_at(height)
    }
}

impl View<'_> {
    fn unspents(
        &self,
        key: &ScriptKey,
        after: Option<(TxNum, u32)>,
        limit: usize,
    ) -> Result<Vec<Unspent>> {
        let start = match after {
            // No key lies between one and the same with a zero behind it.
            Some((txnum, vout)) => [&script::coin_key(*key, txnum, vout)[..], &[0]].concat(),
            None => key.0.to_vec(),
        };
        let mut found = Vec::new();
        let mut rows = self.scan_from(Family::ScriptCoins, &start, &key.0);
        while found.len() < limit
            && let Some((key, value)) = rows.next()?
        {
            let (_, txnum, vout) = script::read_coin_key(key)?;
            found.push((txnum, vout, script::read_coin_value(key, value)?));
        }
        drop(rows);
        let txnums: Vec<_> = found.iter().map(|(txnum, ..)| *txnum).collect();
        let txids = self.txids(&txnums)?;
        Ok(found
            .into_iter()
            .zip(txids)
            .map(|((txnum, vout, value), txid)| Unspent {
                outpoint: OutPoint { txid, vout },
                txnum,
                value,
            })
            .collect())
    }

    fn history(&self, key: &ScriptKey, from: TxNum, limit: usize) -> Result<Vec<Touched>> {
        let mut txnums = Vec::new();
        // The row before `from` may reach over it.
        let start = match self.at_or_before(Family::History, &script::history_key(*key, from))? {
            Some((row, _)) if row.starts_with(&key.0) => row,
            _ => script::history_key(*key, from).to_vec(),
        };
        let mut rows = self.scan_from(Family::History, &start, &key.0);
        let mut row = Vec::new();
        while txnums.len() < limit
            && let Some((key, value)) = rows.next()?
        {
            row.clear();
            script::read_history(key, value, &mut row)?;
            txnums.extend(row.iter().filter(|t| **t >= from));
        }
        drop(rows);
        txnums.truncate(limit);
        let txids = self.txids(&txnums)?;
        Ok(txnums
            .into_iter()
            .zip(txids)
            .map(|(txnum, txid)| Touched { txid, txnum })
            .collect())
    }

    /// The block of the active chain at a height.
    pub(crate) fn header_at(&self, height: u32) -> Result<Option<HeaderRow>> {
        let key = block::height_key(height);
        self.get(Family::Headers, &key)?
            .map(|row| HeaderRow::decode(&key, &row))
            .transpose()
            .map_err(Error::from)
    }
}
