//! The bytes of confirmed transactions.
//!
//! Rows say where a transaction is in its block; the bytes are the node's. In this order: kept in
//! memory from the last time, one read from the node's block files, `getrawtransaction` with the
//! block's hash (which works without the node's own transaction index), the whole block from
//! whichever source there is. What came is checked against the id.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};

use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::hash::hex;
use weft_source::SourceError;
use weft_store::TxPlace;

use crate::script::unhex;
use crate::tx::Parts;
use crate::{Error, Result, View, lock};

/// Bytes by id, bounded. Two halves: when the young one is full it becomes the old one, whose
/// entries are forgotten unless they were asked for meanwhile.
#[derive(Debug)]
pub(crate) struct Cache {
    young: HashMap<Hash, Arc<[u8]>>,
    old: HashMap<Hash, Arc<[u8]>>,
    bytes: usize,
    limit: usize,
}

/// Bytes an entry takes beside its content.
const ENTRY: usize = 96;

impl Cache {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
            bytes: 0,
            limit,
        }
    }

    fn get(&mut self, txid: &Hash) -> Option<Arc<[u8]>> {
        if let Some(found) = self.young.get(txid) {
            return Some(found.clone());
        }
        let found = self.old.remove(txid)?;
        self.put(*txid, found.clone());
        Some(found)
    }

    fn put(&mut self, txid: Hash, raw: Arc<[u8]>) {
        let size = raw.len() + ENTRY;
        if size > self.limit / 2 {
            return;
        }
        if self.bytes + size > self.limit / 2 {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
        self.bytes += size;
        self.young.insert(txid, raw);
    }
}

impl View {
    /// Bytes of the transaction at a place, which is in the block with this hash.
    pub(crate) fn bytes_at(&self, txid: &Hash, at: &TxPlace, block: &Hash) -> Result<Arc<[u8]>> {
        if let Some(found) = lock(&self.0.cache).get(txid) {
            return Ok(found);
        }
        let raw: Arc<[u8]> = self.fetch(txid, at, block)?.into();
        lock(&self.0.cache).put(*txid, raw.clone());
        Ok(raw)
    }

    fn fetch(&self, txid: &Hash, at: &TxPlace, block: &Hash) -> Result<Vec<u8>> {
        let node = self
            .0
            .node
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let right = |raw: &Vec<u8>| Parts::parse(raw).is_ok_and(|p| p.txid == *txid);
        let mut why = "no source of blocks is connected".to_owned();
        if let Some(source) = &node.source {
            match source.part(block, at.span.offset, at.span.len) {
                Ok(Some(raw)) if right(&raw) => return Ok(raw),
                Ok(Some(_)) => why = "another transaction is at its place".to_owned(),
                Ok(None) => {}
                Err(e) => why = e.to_string(),
            }
        }
        if let Some(rpc) = &node.rpc {
            let params = json!([hex(txid), false, hex(block)]);
            match rpc.client().call::<Value>("getrawtransaction", params) {
                Ok(raw) => match raw.as_str().and_then(unhex).filter(right) {
                    Some(raw) => return Ok(raw),
                    None => why = "the node gave another transaction".to_owned(),
                },
                Err(e) => why = e.to_string(),
            }
        }
        if let Some(source) = &node.source {
            match self.block_from(source.as_ref(), block) {
                Ok(whole) => {
                    let from = at.span.offset as usize;
                    let part = whole.get(from..from + at.span.len as usize);
                    match part.map(<[u8]>::to_vec).filter(right) {
                        Some(raw) => return Ok(raw),
                        None => why = "another transaction is at its place".to_owned(),
                    }
                }
                Err(e) => why = e.to_string(),
            }
        }
        Err(Error::Bytes {
            txid: hex(txid),
            why,
        })
    }

    /// The bytes of a whole block.
    pub fn block_bytes(&self, block: &Hash) -> Result<Vec<u8>> {
        let node = self
            .0
            .node
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let source = node.source.ok_or(Error::NoNode)?;
        Ok(self.block_from(source.as_ref(), block)?)
    }

    fn block_from(
        &self,
        source: &dyn weft_source::Source,
        block: &Hash,
    ) -> std::result::Result<Vec<u8>, SourceError> {
        let raw = source.blocks(std::slice::from_ref(block))?.pop();
        let raw = raw.ok_or(SourceError::NoBlock {
            place: source.describe(),
            block: *block,
        })?;
        // The header decides; the rest is under its Merkle root or checked by id.
        let header = weft_chain::Header::from_prefix(&raw);
        match header {
            Ok(header) if header.hash() == *block => Ok(raw),
            _ => Err(SourceError::BadAnswer {
                place: source.describe(),
                what: "block",
                why: "it is another block than was asked for".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_bounded_and_keeps_what_is_asked_for() {
        let mut cache = Cache::new(100 * (1000 + ENTRY));
        for n in 0..10_000u32 {
            let mut id = [0; 32];
            id[..4].copy_from_slice(&n.to_le_bytes());
            cache.put(id, vec![0; 1000].into());
            assert!(
                cache.get(&[0; 32]).is_some(),
                "it was asked for all the time"
            );
            assert!(cache.young.len() + cache.old.len() <= 101);
        }
        cache.put([9; 32], vec![0; 1 << 20].into());
        assert!(cache.get(&[9; 32]).is_none());
    }
}
