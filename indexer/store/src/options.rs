//! How a store is opened, and how its memory is divided.

/// How a store is opened.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bytes of memory the store may take, all together. Default 1 GiB, at least 64 MiB.
    pub memory: usize,
    /// Whether the MuHash of the coin set is kept. Fixed when the database is made.
    pub commitment: bool,
    /// Blocks that can be undone. Undo data of older ones are deleted.
    pub undo_depth: u32,
    /// Threads for hashing and for RocksDB's work in the background.
    pub threads: usize,
    /// Most blocks in a batch while catching up; memory may end it earlier.
    pub batch_blocks: usize,
    /// Files RocksDB may hold open at a time.
    pub open_files: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            memory: 1 << 30,
            commitment: true,
            undo_depth: 288,
            threads: std::thread::available_parallelism().map_or(2, usize::from),
            batch_blocks: 10_000,
            open_files: 256,
        }
    }
}

/// Least memory a store works with.
pub(crate) const MIN_MEMORY: usize = 64 << 20;

impl Options {
    fn total(&self) -> usize {
        self.memory.max(MIN_MEMORY)
    }

    /// For the coin cache: two fifths. The rest is left to blocks in flight and to the
    /// fragmentation of the heap.
    pub(crate) fn cache_bytes(&self) -> usize {
        self.total() / 5 * 2
    }

    /// For the rows of a batch before it is written. While it is written they exist three times:
    /// as numbers, as a batch and as RocksDB's table in memory.
    pub(crate) fn window_bytes(&self) -> usize {
        self.total() / 12
    }

    /// For blocks of files, indexes and filters that RocksDB keeps.
    pub(crate) fn block_cache_bytes(&self) -> usize {
        self.total() / 10
    }

    /// RocksDB's tables in memory, above which it writes them out by itself.
    pub(crate) fn memtable_bytes(&self) -> usize {
        self.total() / 16
    }
}
