//! RocksDB: opening, tuning and the few ways in which the rest of the crate reads and writes.
//!
//! Every write is one batch that takes the database from one block to a later one, so whatever
//! RocksDB has on disk when the process dies is the state after a block. While catching up batches
//! skip the write-ahead log and are flushed, all families at once (`atomic_flush`); at the tip they go
//! through the log, synced.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType,
    DBRawIterator, FlushOptions, ReadOptions, SliceTransform, WriteBatch, WriteOptions,
};

use crate::error::{Error, Result, named};
use crate::options::Options;
use crate::rows::{block, coin, meta, script, tx};

/// A column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Coins by outpoint.
    Coins,
    /// Coins by script.
    ScriptCoins,
    /// Transactions by script.
    History,
    /// Txnums by transaction id.
    Txids,
    /// Transaction ids by txnum.
    Txs,
    /// The active chain.
    Headers,
    /// Undo data.
    Undo,
    /// Named rows.
    Meta,
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Coins,
        Self::ScriptCoins,
        Self::History,
        Self::Txids,
        Self::Txs,
        Self::Headers,
        Self::Undo,
        Self::Meta,
    ];

    /// Its name in the database.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coins => coin::COINS,
            Self::ScriptCoins => script::SCRIPT_COINS,
            Self::History => script::HISTORY,
            Self::Txids => tx::TXIDS,
            Self::Txs => tx::TXS,
            Self::Headers => block::HEADERS,
            Self::Undo => block::UNDO,
            Self::Meta => meta::META,
        }
    }
}

/// An open database.
pub(crate) struct Db {
    raw: DB,
    path: PathBuf,
}

impl std::fmt::Debug for Db {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Db")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl Db {
    /// Opens the database in `path`, making it and the folder if there is none.
    pub(crate) fn open(path: &Path, options: &Options) -> Result<Self> {
        std::fs::create_dir_all(path).map_err(|e| Error::Open {
            path: path.into(),
            why: format!("the folder cannot be made: {e}"),
        })?;
        let raw = DB::open_cf_descriptors(&database_tuning(options), path, families(options));
        Ok(Self {
            raw: raw.map_err(|e| cannot_open(path, &e))?,
            path: path.into(),
        })
    }

    /// Opens the database in `path` for reading, also while another process writes it: what is
    /// read is what was written when it was opened.
    pub(crate) fn open_read_only(path: &Path, options: &Options) -> Result<Self> {
        let mut tuning = database_tuning(options);
        tuning.create_if_missing(false);
        tuning.create_missing_column_families(false);
        // Files that the writer's compaction deletes stay readable as long as they are open.
        tuning.set_max_open_files(-1);
        let raw = DB::open_cf_descriptors_read_only(&tuning, path, families(options), false);
        Ok(Self {
            raw: raw.map_err(|e| cannot_open(path, &e))?,
            path: path.into(),
        })
    }

    fn cf(&self, family: Family) -> &ColumnFamily {
        self.raw
            .cf_handle(family.name())
            .expect("all families are opened")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn put(&self, batch: &mut WriteBatch, family: Family, key: &[u8], value: &[u8]) {
        batch.put_cf(self.cf(family), key, value);
    }

    pub(crate) fn delete(&self, batch: &mut WriteBatch, family: Family, key: &[u8]) {
        batch.delete_cf(self.cf(family), key);
    }

    pub(crate) fn view(&self) -> View<'_> {
        View {
            db: self,
            snapshot: self.raw.snapshot(),
        }
    }

    /// Writes a batch through the log and waits until it is on disk.
    pub(crate) fn write_synced(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.set_sync(true);
        self.raw
            .write_opt(batch, &options)
            .map_err(|e| named(&e, "writing a block"))
    }

    /// Writes a large batch past the log and waits until it is on disk in files of its own.
    pub(crate) fn write_flushed(&self, batch: WriteBatch) -> Result<()> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.raw
            .write_opt(batch, &options)
            .map_err(|e| named(&e, "writing a batch of blocks"))?;
        self.flush()
    }

    /// Writes what is in memory to files, all families at once.
    pub(crate) fn flush(&self) -> Result<()> {
        let families = Family::ALL.map(|f| self.cf(f));
        let mut options = FlushOptions::default();
        options.set_wait(true);
        self.raw
            .flush_cfs_opt(&families, &options)
            .map_err(|e| named(&e, "flushing a batch of blocks"))
    }

    /// Compacts everything.
    pub(crate) fn compact(&self, mut done: impl FnMut(Family)) -> Result<()> {
        self.flush()?;
        for family in Family::ALL {
            let mut options = rocksdb::CompactOptions::default();
            options.set_bottommost_level_compaction(
                rocksdb::BottommostLevelCompaction::ForceOptimized,
            );
            self.raw
                .compact_range_cf_opt(self.cf(family), None::<&[u8]>, None::<&[u8]>, &options);
            done(family);
        }
        // The call above has no result: an error shows as the state of the database.
        self.flush()
    }

    /// Merges the files of a family, so that what was deleted leaves the disk. Files of the last level that nothing
    /// overlaps stay as they are.
    pub(crate) fn merge(&self, family: Family) {
        self.raw
            .compact_range_cf(self.cf(family), None::<&[u8]>, None::<&[u8]>);
    }

    /// Stops work in the background, so that closing does not wait for a long compaction.
    pub(crate) fn stop_background_work(&self) {
        self.raw.cancel_all_background_work(true);
    }

    /// Bytes of the family's files.
    pub(crate) fn file_bytes(&self, family: Family) -> u64 {
        self.property(family, "rocksdb.total-sst-files-size")
    }

    /// Bytes that compaction still has to rewrite.
    pub(crate) fn pending_compaction_bytes(&self) -> u64 {
        Family::ALL
            .iter()
            .map(|f| self.property(*f, "rocksdb.estimate-pending-compaction-bytes"))
            .sum()
    }

    fn property(&self, family: Family, name: &str) -> u64 {
        self.raw
            .property_int_value_cf(self.cf(family), name)
            .ok()
            .flatten()
            .unwrap_or(0)
    }
}

/// The database as it was at one moment.
pub(crate) struct View<'a> {
    db: &'a Db,
    snapshot: rocksdb::Snapshot<'a>,
}

/// A view that keeps the database open by itself.
pub(crate) struct Held {
    // Dropped before what it borrows.
    view: View<'static>,
    _db: Arc<Db>,
}

impl Held {
    pub(crate) fn new(db: Arc<Db>) -> Self {
        // SAFETY: the view borrows the database in the `Arc`, which does not move and lives until `_db` is dropped,
        // after the view. The longer lifetime leaves this type only shortened again, by `view`.
        let view = unsafe { std::mem::transmute::<View<'_>, View<'static>>(db.view()) };
        Self { view, _db: db }
    }

    pub(crate) fn view(&self) -> &View<'_> {
        &self.view
    }
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Held").finish_non_exhaustive()
    }
}

impl View<'_> {
    pub(crate) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Vec<u8>>> {
        self.snapshot
            .get_cf(self.db.cf(family), key)
            .map_err(|e| named(&e, "reading a row"))
    }

    /// Several rows at once; `keys` in rising order.
    pub(crate) fn get_sorted<K: AsRef<[u8]>>(
        &self,
        family: Family,
        keys: &[K],
    ) -> Result<Vec<Option<rocksdb::DBPinnableSlice<'_>>>> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        self.db
            .raw
            .batched_multi_get_cf_opt(self.db.cf(family), keys, true, &options)
            .into_iter()
            .map(|row| row.map_err(|e| named(&e, "reading rows")))
            .collect()
    }

    /// Rows whose keys begin with `prefix`, in order.
    pub(crate) fn scan(&self, family: Family, prefix: &[u8]) -> Rows<'_> {
        self.scan_from(family, prefix, prefix)
    }

    /// Rows from `start` on whose keys begin with `prefix`, in order.
    pub(crate) fn scan_from(&self, family: Family, start: &[u8], prefix: &[u8]) -> Rows<'_> {
        let mut options = ReadOptions::default();
        if let Some(end) = successor(prefix) {
            options.set_iterate_upper_bound(end);
        }
        self.rows(family, options, start)
    }

    /// Rows from `start` on, up to but without `end`; meant for many rows.
    pub(crate) fn range(&self, family: Family, start: &[u8], end: Option<&[u8]>) -> Rows<'_> {
        let mut options = ReadOptions::default();
        if let Some(end) = end {
            options.set_iterate_upper_bound(end);
        }
        options.fill_cache(false);
        options.set_readahead_size(1 << 20);
        self.rows(family, options, start)
    }

    /// A cursor for many look-ups by prefix.
    pub(crate) fn cursor(&self, family: Family) -> Cursor<'_> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options.set_prefix_same_as_start(true);
        Cursor {
            iter: self.db.raw.raw_iterator_cf_opt(self.db.cf(family), options),
        }
    }

    /// The last row whose key is not after `key`.
    pub(crate) fn at_or_before(
        &self,
        family: Family,
        key: &[u8],
    ) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        let mut options = ReadOptions::default();
        options.set_snapshot(&self.snapshot);
        options.set_total_order_seek(true);
        let mut iter = self.db.raw.raw_iterator_cf_opt(self.db.cf(family), options);
        iter.seek_for_prev(key);
        iter.status().map_err(|e| named(&e, "reading a row"))?;
        Ok(iter.item().map(|(k, v)| (k.to_vec(), v.to_vec())))
    }

    fn rows(&self, family: Family, mut options: ReadOptions, start: &[u8]) -> Rows<'_> {
        options.set_snapshot(&self.snapshot);
        options.set_total_order_seek(true);
        let mut iter = self.db.raw.raw_iterator_cf_opt(self.db.cf(family), options);
        iter.seek(start);
        Rows {
            iter,
            started: false,
        }
    }
}

/// Rows in order.
pub(crate) struct Rows<'a> {
    iter: DBRawIterator<'a>,
    started: bool,
}

impl Rows<'_> {
    /// The next row; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<(&[u8], &[u8])>> {
        if self.started && self.iter.valid() {
            self.iter.next();
        }
        self.started = true;
        if !self.iter.valid() {
            self.iter.status().map_err(|e| named(&e, "reading rows"))?;
            return Ok(None);
        }
        Ok(self.iter.item())
    }
}

/// Look-ups by prefix, one after another.
pub(crate) struct Cursor<'a> {
    iter: DBRawIterator<'a>,
}

impl Cursor<'_> {
    /// Calls `each` with the keys that begin with `prefix`.
    pub(crate) fn keys(
        &mut self,
        prefix: &[u8],
        mut each: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        self.iter.seek(prefix);
        while let Some(key) = self.iter.key().filter(|k| k.starts_with(prefix)) {
            each(key)?;
            self.iter.next();
        }
        self.iter.status().map_err(|e| named(&e, "reading rows"))
    }
}

/// The least key after all that begin with `prefix`.
fn successor(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b != 0xff)?;
    let mut out = prefix[..=last].to_vec();
    out[last] += 1;
    Some(out)
}

fn families(options: &Options) -> [ColumnFamilyDescriptor; Family::ALL.len()] {
    let cache = Cache::new_lru_cache(options.block_cache_bytes());
    Family::ALL.map(|f| ColumnFamilyDescriptor::new(f.name(), tuning(f, &cache)))
}

fn cannot_open(path: &Path, e: &rocksdb::Error) -> Error {
    match named(e, "opening") {
        named @ (Error::DiskFull { .. } | Error::Corrupted { .. }) => named,
        _ => Error::Open {
            path: path.into(),
            why: e.to_string(),
        },
    }
}

fn database_tuning(options: &Options) -> rocksdb::Options {
    let mut o = rocksdb::Options::default();
    o.create_if_missing(true);
    o.create_missing_column_families(true);
    o.set_atomic_flush(true);
    o.set_max_open_files(options.open_files.max(32) as i32);
    o.set_max_background_jobs(options.threads.clamp(2, 4) as i32);
    o.set_max_subcompactions(1);
    o.set_db_write_buffer_size(options.memtable_bytes());
    o.set_max_total_wal_size(64 << 20);
    o.set_bytes_per_sync(1 << 20);
    o.set_wal_bytes_per_sync(1 << 20);
    o.set_skip_stats_update_on_db_open(true);
    o.set_stats_dump_period_sec(0);
    o.set_stats_persist_period_sec(0);
    o.set_keep_log_file_num(2);
    o.set_max_log_file_size(4 << 20);
    o.set_log_level(rocksdb::LogLevel::Warn);
    o.set_max_manifest_file_size(16 << 20);
    o.set_compaction_readahead_size(1 << 20);
    o
}

/// Each family by how it is written and read.
fn tuning(family: Family, cache: &Cache) -> rocksdb::Options {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    table.set_format_version(6);
    table.set_block_size(16 << 10);

    let mut o = rocksdb::Options::default();
    o.set_compression_type(DBCompressionType::Zstd);
    o.set_compression_options(-14, 1, 0, 0);
    o.set_bottommost_compression_type(DBCompressionType::Zstd);
    o.set_bottommost_compression_options(-14, 3, 0, 0, true);
    o.set_level_compaction_dynamic_level_bytes(true);
    // Only the total of all families decides when they are written out.
    o.set_write_buffer_size(4 << 30);
    o.set_arena_block_size(1 << 20);
    o.set_target_file_size_base(64 << 20);
    o.set_max_bytes_for_level_base(256 << 20);
    match family {
        // Random order, and nearly every look-up finds something: filters only above the last level.
        Family::Txids => {
            o.set_prefix_extractor(SliceTransform::create_fixed_prefix(tx::PREFIX));
            table.set_bloom_filter(10.0, false);
            table.set_whole_key_filtering(false);
            o.set_optimize_filters_for_hits(true);
        }
        // The two families with deletions are small; merging them early keeps them so.
        Family::Coins => {
            table.set_bloom_filter(10.0, false);
            o.set_optimize_filters_for_hits(true);
            table.set_block_size(8 << 10);
            o.set_level_zero_file_num_compaction_trigger(2);
        }
        // Hashes do not compress, and single ones are wanted.
        Family::Txs => {
            o.set_compression_type(DBCompressionType::None);
            o.set_bottommost_compression_type(DBCompressionType::None);
            table.set_block_size(4 << 10);
        }
        Family::ScriptCoins => {
            table.set_block_size(8 << 10);
            o.set_level_zero_file_num_compaction_trigger(2);
        }
        Family::History | Family::Headers | Family::Undo | Family::Meta => {}
    }
    o.set_block_based_table_factory(&table);
    o
}
