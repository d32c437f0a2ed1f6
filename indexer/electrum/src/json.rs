//! Long answers written straight as JSON, without a tree of values in between, and in pieces.

use weft_chain::Hash;
use weft_view::{Coins, PoolTx, Result, ScriptTx, Transactions, Unspent};

/// Rows a list begins with.
pub(crate) const FIRST: usize = 200;
/// Rows in each further piece: what they become stays below [`weft_listen::SMALL`].
pub(crate) const PIECE: usize = 400;
/// The longest row, with its comma.
const LONGEST_ROW: usize = 160;

/// The rows of a script.
#[derive(Debug)]
pub(crate) enum Rows {
    /// Its coins.
    Coins(Coins),
    /// Its transactions.
    Transactions(Transactions),
}

/// A list of a script's rows, of which a part is written at a time.
#[derive(Debug)]
pub(crate) struct LongList {
    rows: Rows,
    begun: bool,
    ended: bool,
}

impl LongList {
    pub(crate) fn new(rows: Rows) -> Self {
        Self {
            rows,
            begun: false,
            ended: false,
        }
    }

    /// Appends at most `most` more rows; gives their number.
    pub(crate) fn put(&mut self, out: &mut Vec<u8>, most: usize) -> Result<usize> {
        if self.ended {
            return Ok(0);
        }
        if !self.begun {
            out.push(b'[');
        }
        let mut row = |out: &mut Vec<u8>| {
            if std::mem::replace(&mut self.begun, true) {
                out.push(b',');
            }
        };
        let count = match &mut self.rows {
            Rows::Coins(coins) => {
                let piece = coins.next(most)?;
                self.ended = coins.at_end();
                for coin in &piece {
                    row(out);
                    put_coin(out, coin);
                }
                piece.len()
            }
            Rows::Transactions(transactions) => {
                let piece = transactions.next(most)?;
                self.ended = transactions.at_end();
                for tx in &piece {
                    row(out);
                    put_tx(out, tx);
                }
                piece.len()
            }
        };
        self.begun = true;
        if self.ended {
            out.push(b']');
        }
        Ok(count)
    }

    /// Whether it is all written.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Most bytes the whole list can have.
    ///
    /// # Errors
    /// It has more rows than the bound.
    pub(crate) fn most_bytes(&self) -> Result<usize> {
        let rows = match &self.rows {
            Rows::Coins(coins) => coins.count()?,
            Rows::Transactions(transactions) => transactions.count()?,
        };
        Ok(LONGEST_ROW * rows + 2)
    }
}

/// Few rows as a list.
pub(crate) fn list<T>(rows: &[T], put: impl Fn(&mut Vec<u8>, &T)) -> Vec<u8> {
    let mut out = Vec::with_capacity(LONGEST_ROW * rows.len() + 2);
    out.push(b'[');
    for (n, row) in rows.iter().enumerate() {
        if n > 0 {
            out.push(b',');
        }
        put(&mut out, row);
    }
    out.push(b']');
    out
}

fn put_number(out: &mut Vec<u8>, n: i64) {
    let (mut digits, mut left, mut at) = ([0; 20], n.unsigned_abs(), 20);
    loop {
        at -= 1;
        digits[at] = b'0' + (left % 10) as u8;
        left /= 10;
        if left == 0 {
            break;
        }
    }
    if n < 0 {
        out.push(b'-');
    }
    out.extend_from_slice(&digits[at..]);
}

/// A hash as it is shown: reversed.
fn put_hash(out: &mut Vec<u8>, hash: &Hash) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = [0; 64];
    for (pair, byte) in text.chunks_exact_mut(2).zip(hash.iter().rev()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    out.extend_from_slice(&text);
}

pub(crate) fn put_tx(out: &mut Vec<u8>, tx: &ScriptTx) {
    match tx {
        ScriptTx::Confirmed(tx) => {
            out.extend_from_slice(b"{\"tx_hash\":\"");
            put_hash(out, &tx.txid);
            out.extend_from_slice(b"\",\"height\":");
            put_number(out, tx.txnum.height().into());
            out.push(b'}');
        }
        ScriptTx::Pool(tx) => put_pool_tx(out, tx),
    }
}

pub(crate) fn put_pool_tx(out: &mut Vec<u8>, tx: &PoolTx) {
    out.extend_from_slice(b"{\"tx_hash\":\"");
    put_hash(out, &tx.txid);
    out.extend_from_slice(b"\",\"height\":");
    put_number(out, tx.height());
    out.extend_from_slice(b",\"fee\":");
    put_number(out, tx.fee as i64);
    out.push(b'}');
}

pub(crate) fn put_coin(out: &mut Vec<u8>, coin: &Unspent) {
    out.extend_from_slice(b"{\"tx_hash\":\"");
    put_hash(out, &coin.outpoint.txid);
    out.extend_from_slice(b"\",\"tx_pos\":");
    put_number(out, coin.outpoint.vout.into());
    out.extend_from_slice(b",\"height\":");
    put_number(out, coin.txnum.map_or(0, |n| n.height().into()));
    out.extend_from_slice(b",\"value\":");
    put_number(out, coin.value as i64);
    out.push(b'}');
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_chain::OutPoint;
    use weft_store::TxNum;

    #[test]
    fn no_row_is_longer_than_the_longest() {
        let mut out = Vec::new();
        let txid = [0xee; 32];
        put_coin(
            &mut out,
            &Unspent {
                outpoint: OutPoint {
                    txid,
                    vout: u32::MAX,
                },
                value: i64::MAX as u64,
                txnum: TxNum::new(TxNum::MAX_HEIGHT, 0),
            },
        );
        assert!(out.len() < LONGEST_ROW, "{}", out.len());
        out.clear();
        put_pool_tx(
            &mut out,
            &PoolTx {
                txid,
                chained: true,
                fee: i64::MAX as u64,
            },
        );
        assert!(out.len() < LONGEST_ROW, "{}", out.len());
        const { assert!(LONGEST_ROW * PIECE + 1000 < weft_listen::SMALL) }
    }

    #[test]
    fn numbers_and_hashes() {
        let mut out = Vec::new();
        for n in [0, 9, 10, -1, 2_100_000_000_000_000, i64::MAX, i64::MIN] {
            out.clear();
            put_number(&mut out, n);
            assert_eq!(out, n.to_string().as_bytes());
        }
        out.clear();
        let hash: Hash = std::array::from_fn(|n| (n * 37) as u8);
        put_hash(&mut out, &hash);
        assert_eq!(out, weft_chain::hash::hex(&hash).as_bytes());
    }
}
