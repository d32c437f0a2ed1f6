//! The coin index's database: which coins there are, whom they belong to, and what happened to
//! whom, in RocksDB, with a commitment to the coin set after every block.
//!
//! [`Store`] is the only writer. It applies prepared blocks in memory and writes any number of them
//! in one batch together with undo data, tip and commitment, so that the database is always in the
//! state after some block. [`Preparer`] does the part of the work that needs nothing but the
//! block, on as many threads as there are. [`Reader`] answers questions. The row formats are in
//! [`rows`] and nowhere else.
//!
//! The crate knows no node, no file of a node, no protocol and no address.

mod audit;
mod cache;
mod commitment;
mod db;
mod error;
mod lookup;
mod options;
mod prepare;
mod query;
pub mod rows;
mod store;
mod window;

pub use audit::Verified;
pub use db::Family;
pub use error::{Error, Result};
pub use options::Options;
pub use prepare::{Prepared, Preparer};
pub use query::{Balance, Moment, Reader, Touched, TxPlace, Unspent};
pub use rows::TxNum;
pub use rows::block::{HeaderRow, Totals};
pub use rows::script::ScriptKey;
pub use rows::tx::Span;
pub use store::{Committed, Durability, Store, Tip, Undone};
