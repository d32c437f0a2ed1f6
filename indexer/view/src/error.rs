//! Why a question has no answer.

use weft_source::SourceError;

/// Result of a question.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The database.
    #[error(transparent)]
    Store(#[from] weft_store::Error),
    /// The node failed, or refused what was given to it.
    #[error(transparent)]
    Node(#[from] SourceError),
    /// It takes a node, and there is none.
    #[error("the index has no connection to a node's RPC")]
    NoNode,
    /// The answer would be longer than is allowed.
    #[error("{what} are more than {limit}, which is the most this server lists")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// The bound.
        limit: usize,
    },
    /// The bytes of a transaction cannot be had, or are not those of that transaction.
    #[error("the bytes of transaction {txid} cannot be read: {why}")]
    Bytes {
        /// Its id, as shown.
        txid: String,
        /// Why.
        why: String,
    },
    /// Something in the question cannot be.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    /// What a node said about something it refused; `None` if it was something else.
    pub fn refusal(&self) -> Option<(i64, &str)> {
        match self {
            Self::Node(SourceError::Rpc { code, message, .. }) => Some((*code, message)),
            _ => None,
        }
    }
}
