//! Coin chains without I/O: what a block, a header, an undo record and a coin are, and the
//! commitments over the coin set.
//!
//! Nothing here opens a file or a socket, reads a clock or starts a thread. Whatever comes from
//! outside is bounded by the length of the bytes it came in and answered with an [`Error`], never
//! with a panic.
//!
//! Hashes are kept in the order they have on the wire ("internal"); [`hash::hex`] shows them
//! reversed, as nodes and wallets do.

pub mod address;
pub mod block;
pub mod blockfile;
pub mod chains;
pub mod coin;
pub mod compress;
mod error;
pub mod hash;
pub mod header;
pub mod headers;
pub mod merkle;
pub mod muhash;
pub mod pow;
pub mod setinfo;
pub mod snapshot;
pub mod undo;
pub mod wire;

pub use block::{Block, Input, Output, Tx};
pub use chains::{Chain, Params};
pub use coin::{Coin, OutPoint, is_unspendable, script_hash};
pub use error::Error;
pub use hash::Hash;
pub use header::Header;
pub use muhash::{MuBatch, MuHash3072};
