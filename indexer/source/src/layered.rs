//! Two sources as one: block files give the blocks, the node says which chain they belong to.
//!
//! Files alone show a chain by its work and cannot tell that the node was told to invalidate a
//! block; a node's RPC or REST alone has to send every block through a socket.

use std::sync::Arc;
use std::time::Duration;

use weft_chain::{Chain, Hash};

use crate::{Ahead, Kind, Source, SourceError, Spent, Tip};

/// Blocks from one source, everything else from another.
#[derive(Debug)]
pub struct Layered {
    guide: Arc<dyn Source>,
    bulk: Arc<dyn Source>,
}

impl Layered {
    /// `guide` says which chain to follow, `bulk` gives its blocks; what `bulk` does not have
    /// (yet), `guide` gives.
    pub fn new(guide: Arc<dyn Source>, bulk: Arc<dyn Source>) -> Self {
        Self { guide, bulk }
    }
}

impl Source for Layered {
    fn kind(&self) -> Kind {
        self.bulk.kind()
    }

    fn describe(&self) -> String {
        format!(
            "{}; chain by {}",
            self.bulk.describe(),
            self.guide.describe()
        )
    }

    fn chain(&self) -> &'static dyn Chain {
        self.guide.chain()
    }

    fn tip(&self) -> Result<Tip, SourceError> {
        self.guide.tip()
    }

    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        self.guide.headers(locator)
    }

    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        match self.bulk.blocks(hashes) {
            Err(e) => {
                tracing::debug!(error = %e, "asking the guide for blocks");
                self.guide.blocks(hashes)
            }
            found => found,
        }
    }

    fn part(&self, block: &Hash, offset: u32, len: u32) -> Result<Option<Vec<u8>>, SourceError> {
        match self.bulk.part(block, offset, len) {
            Ok(Some(found)) => Ok(Some(found)),
            _ => self.guide.part(block, offset, len),
        }
    }

    fn spent(&self, block: &Hash) -> Result<Option<Spent>, SourceError> {
        match self.guide.spent(block)? {
            None => self.bulk.spent(block),
            found => Ok(found),
        }
    }

    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        self.guide.wait(known, timeout)
    }

    fn batch(&self) -> usize {
        self.bulk.batch()
    }

    fn parallel(&self) -> usize {
        self.bulk.parallel()
    }
}
