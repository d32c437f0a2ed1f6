//! What can go wrong in the database, each case under a name.

use std::path::PathBuf;

use weft_chain::hash::hex;
use weft_chain::{Hash, OutPoint};

use crate::rows::BadRow;

/// Why an operation of the store failed. After any of them the database on disk is as it was after
/// the last batch that was written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The folder cannot be used as a database.
    #[error("cannot open the database in {}: {why}", .path.display())]
    Open {
        /// The folder.
        path: PathBuf,
        /// What is wrong, and what would be right.
        why: String,
    },
    /// The disk is full. What was being written is not there; make room and start again.
    #[error(
        "disk full while {doing}: {detail}; nothing of this batch was kept, make room and start again"
    )]
    DiskFull {
        /// What was being done.
        doing: &'static str,
        /// The system's words.
        detail: String,
    },
    /// Bytes on disk are not what was written.
    #[error(
        "corrupted database, found while {doing}: {detail}; restore the folder from a copy or build it anew"
    )]
    Corrupted {
        /// What was being done.
        doing: &'static str,
        /// Which file and block, as RocksDB says.
        detail: String,
    },
    /// Any other error of RocksDB.
    #[error("database error while {doing}: {detail}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// RocksDB's words.
        detail: String,
    },
    /// A row does not have its format.
    #[error(transparent)]
    Row(#[from] BadRow),
    /// A row that another row refers to is not there.
    #[error("the database lacks {what}, which another row refers to; build it anew")]
    Lacking {
        /// Which row.
        what: String,
    },
    /// The block does not follow the tip.
    #[error("block {} cannot follow: its predecessor is {}, the tip is {} at height {height}", hex(.block), hex(.prev), hex(.tip))]
    NotNext {
        /// The block.
        block: Hash,
        /// What it names as its predecessor.
        prev: Hash,
        /// The tip.
        tip: Hash,
        /// Height of the tip.
        height: u32,
    },
    /// The block was prepared for another height.
    #[error("the block was prepared for height {got}, the next is {want}")]
    Height {
        /// Height it was prepared for.
        got: u32,
        /// The height that comes next.
        want: u32,
    },
    /// The first block is not the genesis block of the database's chain.
    #[error("block 0 is {}, the chain's genesis block is {}", hex(.got), hex(.want))]
    Genesis {
        /// The block given.
        got: Hash,
        /// The genesis block.
        want: Hash,
    },
    /// An input spends what is not there.
    #[error(
        "block {height}, transaction {index}: it spends {outpoint}, which is no unspent output at this point"
    )]
    MissingCoin {
        /// Height of the block.
        height: u32,
        /// Position of the transaction.
        index: u32,
        /// What it spends.
        outpoint: OutPoint,
    },
    /// A transaction repeats the id of one that still has unspent outputs (BIP30).
    #[error("block {height}, transaction {index}: {} repeats a transaction that has unspent outputs (BIP30)", hex(.txid))]
    Bip30 {
        /// Height of the block.
        height: u32,
        /// Position of the transaction.
        index: u32,
        /// The repeated id.
        txid: Hash,
    },
    /// The block has more transactions, or the chain is longer, than rows can name.
    #[error(
        "block {height} has {txs} transactions; at most 65536 in a block, and heights below 16777216, can be stored"
    )]
    TooMany {
        /// Height of the block.
        height: u32,
        /// Its transactions.
        txs: usize,
    },
    /// There is nothing to go back to.
    #[error(
        "cannot go back from height {height}: undo data are kept for the last {depth} blocks only; build the index anew"
    )]
    NoUndo {
        /// Height of the tip.
        height: u32,
        /// Configured depth.
        depth: u32,
    },
    /// The coins on disk are not those the commitment at the tip stands for.
    #[error("the coins do not match the commitment at height {height}: rows give {}, the tip says {}", hex(.rows), hex(.tip))]
    Commitment {
        /// Height of the tip.
        height: u32,
        /// MuHash of the rows.
        rows: Hash,
        /// MuHash kept at the tip.
        tip: Hash,
    },
    /// Something that needs the commitment while it is off.
    #[error("this database was made without the commitment; make it with `commitment = true`")]
    NoCommitment,
    /// A file outside the database.
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
    /// A thread of the store ended before its time.
    #[error("a worker thread of the store has ended; restart the program")]
    Worker,
}

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Names an error of RocksDB by what it is.
pub(crate) fn named(e: &rocksdb::Error, doing: &'static str) -> Error {
    let detail = e.to_string();
    let full = [
        "No space left",
        "NoSpace",
        "Disk quota exceeded",
        "File too large",
    ];
    match e.kind() {
        _ if full.iter().any(|words| detail.contains(words)) => Error::DiskFull { doing, detail },
        rocksdb::ErrorKind::Corruption => Error::Corrupted { doing, detail },
        _ if detail.contains("Corruption") => Error::Corrupted { doing, detail },
        _ => Error::Database { doing, detail },
    }
}
