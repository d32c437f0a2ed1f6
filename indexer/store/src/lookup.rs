//! Finding transactions and coins by id.

use weft_chain::{Hash, OutPoint};

use crate::db::{Family, View};
use crate::error::{Error, Result};
use crate::rows::coin::Body;
use crate::rows::tx::{self, Chunk};
use crate::rows::{TxNum, coin};

/// A coin that was looked for and found.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub(crate) txnum: TxNum,
    pub(crate) body: Body,
}

impl View<'_> {
    /// Ids of transactions; each must be there.
    pub(crate) fn txids(&self, txnums: &[TxNum]) -> Result<Vec<Hash>> {
        let mut keys: Vec<_> = txnums.iter().map(|n| tx::chunk_key(*n)).collect();
        keys.sort_unstable();
        keys.dedup();
        // In pieces, so that a script with a million transactions does not pin all their blocks.
        let mut chunks: Vec<(&[u8; 5], Vec<Hash>)> = Vec::with_capacity(keys.len());
        for keys in keys.chunks(256) {
            for (key, value) in keys.iter().zip(self.get_sorted(Family::Txs, keys)?) {
                let value = value.ok_or_else(|| Error::Lacking {
                    what: format!("the transaction ids under {key:02x?}"),
                })?;
                chunks.push((key, Chunk::read(key, &value)?.txids().to_vec()));
            }
        }
        let id = |n: &TxNum| {
            let at = chunks
                .binary_search_by_key(&&tx::chunk_key(*n), |(key, _)| key)
                .ok()?;
            chunks[at].1.get(n.index() as usize % tx::CHUNK).copied()
        };
        txnums
            .iter()
            .map(|n| {
                id(n).ok_or_else(|| Error::Lacking {
                    what: format!(
                        "the id of transaction {} at height {}",
                        n.index(),
                        n.height()
                    ),
                })
            })
            .collect()
    }

    /// Txnums of the transactions with this id, oldest first. More than one only where BIP30 was
    /// broken or a fully spent transaction was repeated.
    pub(crate) fn txnums(&self, txid: &Hash) -> Result<Vec<TxNum>> {
        let mut candidates = Vec::new();
        self.cursor(Family::Txids)
            .keys(&txid[..tx::PREFIX], |key| {
                candidates.push(tx::read_txid_key(key)?);
                Ok(())
            })?;
        let ids = self.txids(&candidates)?;
        Ok(candidates
            .into_iter()
            .zip(ids)
            .filter(|(_, id)| id == txid)
            .map(|(n, _)| n)
            .collect())
    }

    /// Coins by outpoint, `None` where there is none; with several of one outpoint, the youngest.
    pub(crate) fn coins(
        &self,
        outpoints: &[OutPoint],
        gone: impl Fn(TxNum, u32) -> bool,
    ) -> Result<Vec<Option<Found>>> {
        let mut order: Vec<usize> = (0..outpoints.len()).collect();
        order.sort_unstable_by_key(|i| outpoints[*i]);
        let mut cursor = self.cursor(Family::Txids);
        // Txnum, which outpoint.
        let mut candidates: Vec<(TxNum, usize)> = Vec::with_capacity(outpoints.len());
        let mut last: Option<(&[u8], std::ops::Range<usize>)> = None;
        for i in order {
            let prefix = &outpoints[i].txid[..tx::PREFIX];
            if let Some((_, same)) = last.as_ref().filter(|(p, _)| *p == prefix) {
                for at in same.clone() {
                    candidates.push((candidates[at].0, i));
                }
                continue;
            }
            let start = candidates.len();
            cursor.keys(prefix, |key| {
                candidates.push((tx::read_txid_key(key)?, i));
                Ok(())
            })?;
            last = Some((prefix, start..candidates.len()));
        }
        candidates.retain(|(txnum, i)| !gone(*txnum, outpoints[*i].vout));
        let mut keyed: Vec<_> = candidates
            .into_iter()
            .map(|(n, i)| (coin::key(n, outpoints[i].vout), n, i))
            .collect();
        keyed.sort_unstable();
        let keys: Vec<&[u8]> = keyed.iter().map(|(key, ..)| &key[..]).collect();
        let mut there = Vec::with_capacity(keyed.len());
        for (keys, named) in keys.chunks(256).zip(keyed.chunks(256)) {
            for ((_, txnum, i), value) in named.iter().zip(self.get_sorted(Family::Coins, keys)?) {
                if let Some(value) = value {
                    there.push((*txnum, *i, Body::from_encoded(&value)));
                }
            }
        }
        let ids = self.txids(&there.iter().map(|(n, ..)| *n).collect::<Vec<_>>())?;
        let mut out = vec![None; outpoints.len()];
        for ((txnum, i, body), id) in there.into_iter().zip(ids) {
            if id == outpoints[i].txid {
                // Candidates come in rising order, so the youngest stays.
                out[i] = Some(Found { txnum, body });
            }
        }
        Ok(out)
    }
}
