//! Where blocks come from: a local node's block files, its REST interface, its RPC, or the P2P
//! protocol, behind one trait.
//!
//! A [`Source`] is followed in two steps: [`Source::headers`] says where the caller's chain and
//! the source's part and what comes after, and [`fetch::fetch`] pulls those blocks ahead in
//! parallel and delivers them in order, each one checked against its hash and Merkle root. No
//! source is trusted with more than which of several valid chains is the one to follow.
//!
//! All calls block the calling thread and have a time limit.

pub mod choose;
mod error;
pub mod fetch;
pub mod files;
mod http;
pub mod layered;
pub mod mempool;
pub mod p2p;
pub mod rest;
pub mod rpc;
mod work;

use std::fmt::Debug;
use std::time::Duration;

pub use choose::{Choice, Settings, choose};
pub use error::SourceError;
pub use fetch::{BlockStream, FetchConfig, fetch};
use weft_chain::chains::AuxPow;
use weft_chain::undo::SpentOutput;
use weft_chain::{Chain, Coin, Hash, Header};
pub use work::check_work;

/// The four kinds of source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// REST interface of a node.
    Rest,
    /// Block files of a node, on disk.
    Files,
    /// JSON-RPC of a node.
    Rpc,
    /// P2P protocol.
    P2p,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rest => "REST",
            Self::Files => "block files",
            Self::Rpc => "RPC",
            Self::P2p => "P2P",
        })
    }
}

/// The end of a source's chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tip {
    /// Its height, as the source says.
    pub height: u32,
    /// Its hash; `None` from a P2P peer that has not announced it.
    pub hash: Option<Hash>,
}

/// A header and what the chain adds to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FullHeader {
    /// The header.
    pub header: Header,
    /// Proof of merged mining, where the chain has it.
    pub auxpow: Option<Box<AuxPow>>,
}

/// What a source has after a locator.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ahead {
    /// The first block of the locator that is on the source's chain. A caller whose tip it is not
    /// has blocks to leave, even if no header follows (the node was told to invalidate them).
    /// `None` where the source cannot tell, which only P2P without new headers does.
    pub fork: Option<Hash>,
    /// Headers after it, in order, at most 2000.
    pub headers: Vec<FullHeader>,
}

/// What a block spent, as a source has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spent {
    /// From undo data: coins of the transactions after the coinbase.
    Coins(Vec<Vec<Coin>>),
    /// From REST `spenttxouts`: plain outputs, with an empty list for the coinbase.
    Outputs(Vec<Vec<SpentOutput>>),
}

/// A place blocks come from.
pub trait Source: Debug + Send + Sync {
    /// Kind of the source blocks come from.
    fn kind(&self) -> Kind;

    /// What and where it is, for a person to read: `RPC of /Satoshi:30.0.0/ at 127.0.0.1:8332`.
    fn describe(&self) -> String;

    /// The network.
    fn chain(&self) -> &'static dyn Chain;

    /// End of the chain it follows.
    fn tip(&self) -> Result<Tip, SourceError>;

    /// Where its chain leaves the caller's, and at most 2000 headers after that. `locator` holds
    /// hashes of the caller's chain from the tip down to genesis, with gaps.
    ///
    /// Whether the headers link and carry their work is for the caller to check.
    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError>;

    /// The bytes of blocks, in the order asked for. Whether they are what was asked for is for
    /// the caller to check; [`fetch::fetch`] does.
    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError>;

    /// Bytes of a block from `offset` on, `len` of them, where the source can give them without
    /// the whole block. Whether they are what was asked for is for the caller to check.
    fn part(&self, _block: &Hash, _offset: u32, _len: u32) -> Result<Option<Vec<u8>>, SourceError> {
        Ok(None)
    }

    /// What a block spent, where the source knows it without being asked for each transaction.
    fn spent(&self, _block: &Hash) -> Result<Option<Spent>, SourceError> {
        Ok(None)
    }

    /// Waits until the source's tip is another than `known`, at most `timeout`. `true` if it is,
    /// or may be: then ask for headers.
    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError>;

    /// How many blocks are best asked for at once.
    fn batch(&self) -> usize {
        1
    }

    /// How many calls are best under way at once.
    fn parallel(&self) -> usize {
        4
    }
}
