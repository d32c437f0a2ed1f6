//! Why a source did not give what was asked for.

use std::path::PathBuf;
use std::time::Duration;

use weft_chain::Hash;
use weft_chain::hash::hex;

/// Why a source did not give what was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// No connection, or it broke.
    #[error("{place} cannot be reached: {why}")]
    Unreachable {
        /// Address.
        place: String,
        /// What the system says.
        why: String,
    },
    /// The node wants other credentials.
    #[error(
        "{place} refuses the credentials ({used}): set the node's cookie file, or rpcuser and rpcpassword"
    )]
    Refused {
        /// Address.
        place: String,
        /// What was tried.
        used: String,
    },
    /// The node is starting (RPC code -28).
    #[error("{place} is still starting: {message}")]
    WarmingUp {
        /// Address.
        place: String,
        /// What it says it does.
        message: String,
    },
    /// The node answered with an error.
    #[error("{place} answered {method} with error {code}: {message}")]
    Rpc {
        /// Address.
        place: String,
        /// What was asked.
        method: String,
        /// Its code.
        code: i64,
        /// Its message.
        message: String,
    },
    /// The HTTP answer is not 200.
    #[error("{place} answered {path} with HTTP status {status}: {message}")]
    Http {
        /// Address.
        place: String,
        /// What was asked.
        path: String,
        /// HTTP status.
        status: u16,
        /// Beginning of the answer.
        message: String,
    },
    /// The node has deleted the block.
    #[error(
        "{place} has pruned block {}; the first height it still has is {first}. Start the index from a node that \
         is not pruned, or keep its blocks until they are indexed",
        hex(.block)
    )]
    Pruned {
        /// Address.
        place: String,
        /// The block.
        block: Hash,
        /// First height there is.
        first: u32,
    },
    /// It does not have the block.
    #[error("{place} does not have block {}", hex(.block))]
    NoBlock {
        /// Where it was looked for.
        place: String,
        /// The block.
        block: Hash,
    },
    /// No block of the locator is on its chain: it follows another network.
    #[error(
        "{place} knows no block of this chain, not even the genesis block: it is on another network"
    )]
    OtherNetwork {
        /// Address.
        place: String,
    },
    /// An answer is not of the form it must have.
    #[error("{place}, {what}: {why}")]
    BadAnswer {
        /// Address.
        place: String,
        /// What was asked.
        what: &'static str,
        /// What is wrong with the answer.
        why: String,
    },
    /// It gave something that breaks the rules of the chain.
    #[error("{place} gave a block that is refused: {source}")]
    Chain {
        /// Address.
        place: String,
        /// Which rule.
        source: Box<weft_chain::Error>,
    },
    /// Nothing came in time.
    #[error("{place} has not answered {what} for {} seconds", .after.as_secs_f32())]
    Stalled {
        /// Address.
        place: String,
        /// What was asked.
        what: String,
        /// How long was waited.
        after: Duration,
    },
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{}: {why}", .path.display())]
    BadFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// No source of those tried can be used.
    #[error("no source of blocks can be used:\n{0}")]
    None(String),
}

impl SourceError {
    /// Whether the same call may succeed later without anyone changing anything.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::WarmingUp { .. } | Self::Stalled { .. } => true,
            // "Work queue depth exceeded", and a node that shuts down.
            Self::Http { status, .. } => *status == 503,
            _ => false,
        }
    }

    /// The place that failed, with a rule of the chain that was broken there.
    pub fn chain(place: impl Into<String>, source: weft_chain::Error) -> Self {
        Self::Chain {
            place: place.into(),
            source: Box::new(source),
        }
    }
}
