//! Long answers written straight as JSON, without a tree of values in between.

use weft_chain::Hash;
use weft_view::{History, PoolTx, Unspent};

/// Writes lists of objects.
#[derive(Debug, Default)]
pub(crate) struct List(Vec<u8>);

impl List {
    pub(crate) fn with_capacity(entries: usize) -> Self {
        let mut out = Vec::with_capacity(140 * entries + 2);
        out.push(b'[');
        Self(out)
    }

    fn comma(&mut self) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(text.as_bytes());
    }

    fn number(&mut self, n: i64) {
        use std::io::Write;
        // Writing to memory cannot fail.
        let _ = write!(self.0, "{n}");
    }

    fn hash(&mut self, hash: &Hash) {
        put_hash(&mut self.0, hash);
    }

    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.push(b']');
        self.0
    }

    fn pool_tx(&mut self, tx: &PoolTx) {
        self.comma();
        self.text("{\"tx_hash\":\"");
        self.hash(&tx.txid);
        self.text("\",\"height\":");
        self.number(tx.height());
        self.text(",\"fee\":");
        self.number(tx.fee as i64);
        self.text("}");
    }
}

/// A hash as it is shown: reversed.
pub(crate) fn put_hash(out: &mut Vec<u8>, hash: &Hash) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in hash.iter().rev() {
        out.push(DIGITS[usize::from(byte >> 4)]);
        out.push(DIGITS[usize::from(byte & 15)]);
    }
}

pub(crate) fn history(history: &History) -> Vec<u8> {
    let mut list = List::with_capacity(history.len());
    for tx in &history.confirmed {
        list.comma();
        list.text("{\"tx_hash\":\"");
        list.hash(&tx.txid);
        list.text("\",\"height\":");
        list.number(tx.txnum.height().into());
        list.text("}");
    }
    history.pool.iter().for_each(|tx| list.pool_tx(tx));
    list.end()
}

pub(crate) fn pool_history(pool: &[PoolTx]) -> Vec<u8> {
    let mut list = List::with_capacity(pool.len());
    pool.iter().for_each(|tx| list.pool_tx(tx));
    list.end()
}

pub(crate) fn unspents(unspents: &[Unspent]) -> Vec<u8> {
    let mut list = List::with_capacity(unspents.len());
    for coin in unspents {
        list.comma();
        list.text("{\"tx_hash\":\"");
        list.hash(&coin.outpoint.txid);
        list.text("\",\"tx_pos\":");
        list.number(coin.outpoint.vout.into());
        list.text(",\"height\":");
        list.number(coin.txnum.map_or(0, |n| n.height().into()));
        list.text(",\"value\":");
        list.number(coin.value as i64);
        list.text("}");
    }
    list.end()
}
