//! Families `script_coins` and `history`: what a script has, and where it was touched.
//!
//! Both keys begin with the script's [`ScriptKey`]: the first 10 bytes of SHA-256(salt ‖
//! SHA-256(script)), with a salt of 16 random bytes drawn when the database is made. Among the
//! 1.3 thousand million scripts of Bitcoin two share such a key with a chance of less than one in
//! a million, and without the salt nobody can search for a pair.
//!
//! `script_coins`: key: script key (10) ‖ [`TxNum`] (5) ‖ vout; value: amount
//! ([`num::put_amount`]).
//!
//! `history`: key: script key (10) ‖ [`TxNum`] (5) of the first transaction; value: for each
//! further one (at most [`ROW_MAX`] in all) varint of the difference in height, then varint of its
//! position in the block, or, within one block, of the difference in position. One row holds what one batch touched.

use sha2::{Digest, Sha256};
use weft_chain::Hash;

use super::BadRow;
use super::num::{self, TxNum};

/// Name of the family of coins by script.
pub const SCRIPT_COINS: &str = "script_coins";
/// Name of the family of transactions by script.
pub const HISTORY: &str = "history";
/// Most transactions in one row of the history.
pub const ROW_MAX: usize = 1024;

/// Length of a [`ScriptKey`].
pub const KEY_LEN: usize = 10;

/// Random bytes drawn when a database is made.
pub type Salt = [u8; 16];

/// Short name of a script within one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ScriptKey(pub [u8; KEY_LEN]);

impl ScriptKey {
    /// The key of the script with this SHA-256.
    pub fn of_hash(salt: &Salt, script_hash: &Hash) -> Self {
        let digest = Sha256::new()
            .chain_update(salt)
            .chain_update(script_hash)
            .finalize();
        let mut out = [0; KEY_LEN];
        out.copy_from_slice(&digest[..KEY_LEN]);
        Self(out)
    }

    /// The key of a script.
    pub fn of_script(salt: &Salt, script: &[u8]) -> Self {
        Self::of_hash(salt, &weft_chain::script_hash(script))
    }
}

/// That a transaction touched a script, as one number that sorts as the rows do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touch(u128);

impl Touch {
    /// `txnum` touched `script`.
    pub fn new(script: ScriptKey, txnum: TxNum) -> Self {
        let mut wide = [0; 16];
        wide[1..11].copy_from_slice(&script.0);
        wide[11..].copy_from_slice(&txnum.to_bytes());
        Self(u128::from_be_bytes(wide))
    }

    /// The script.
    pub fn script(self) -> ScriptKey {
        let wide = self.0.to_be_bytes();
        let mut out = [0; KEY_LEN];
        out.copy_from_slice(&wide[1..11]);
        ScriptKey(out)
    }

    /// The transaction.
    pub fn txnum(self) -> TxNum {
        TxNum::from_low_bits(self.0 as u64)
    }
}

/// Key of a row of either family up to the txnum.
pub fn history_key(script: ScriptKey, first: TxNum) -> [u8; KEY_LEN + 5] {
    let mut out = [0; KEY_LEN + 5];
    out[..KEY_LEN].copy_from_slice(&script.0);
    out[KEY_LEN..].copy_from_slice(&first.to_bytes());
    out
}

/// Appends the value of a history row: the transactions after `first`, in rising order.
pub fn put_history(out: &mut Vec<u8>, first: TxNum, rest: impl IntoIterator<Item = TxNum>) {
    let mut last = first;
    for txnum in rest {
        let up = txnum.height() - last.height();
        num::put_varint(out, u64::from(up));
        num::put_varint(
            out,
            u64::from(if up == 0 {
                txnum.index() - last.index()
            } else {
                txnum.index()
            }),
        );
        last = txnum;
    }
}

/// Reads the key of a history row.
pub fn read_history_key(key: &[u8]) -> Result<(ScriptKey, TxNum), BadRow> {
    let bad = || BadRow::new(HISTORY, "the key", key);
    let (script, first) = key.split_at_checked(KEY_LEN).ok_or_else(bad)?;
    let first = TxNum::from_bytes(first.try_into().map_err(|_| bad())?);
    Ok((ScriptKey(script.try_into().map_err(|_| bad())?), first))
}

/// Reads a history row, appending all its transactions to `out`.
pub fn read_history(key: &[u8], mut value: &[u8], out: &mut Vec<TxNum>) -> Result<(), BadRow> {
    let bad = || BadRow::new(HISTORY, "the transactions", key);
    let (_, mut last) = read_history_key(key)?;
    out.push(last);
    while !value.is_empty() {
        let mut next = || num::get_varint(&mut value).and_then(|n| u32::try_from(n).ok());
        let (up, index) = next().zip(next()).ok_or_else(bad)?;
        let height = last.height().checked_add(up).ok_or_else(bad)?;
        let index = if up == 0 {
            last.index().checked_add(index).ok_or_else(bad)?
        } else {
            index
        };
        let txnum = TxNum::new(height, index)
            .filter(|t| *t > last)
            .ok_or_else(bad)?;
        out.push(txnum);
        last = txnum;
    }
    Ok(())
}

/// Appends the key of a coin by script.
pub fn put_coin_key(out: &mut Vec<u8>, script: ScriptKey, txnum: TxNum, vout: u32) {
    out.extend_from_slice(&script.0);
    out.extend_from_slice(&txnum.to_bytes());
    num::put_vout(out, vout);
}

/// Key of a coin by script.
pub fn coin_key(script: ScriptKey, txnum: TxNum, vout: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(KEY_LEN + 10);
    put_coin_key(&mut out, script, txnum, vout);
    out
}

/// Reads the key of a coin by script.
pub fn read_coin_key(key: &[u8]) -> Result<(ScriptKey, TxNum, u32), BadRow> {
    let mut rest = key;
    let parts = (|| {
        let script = num::take_array(&mut rest).map(ScriptKey)?;
        let txnum = num::take_array(&mut rest).map(TxNum::from_bytes)?;
        Some((script, txnum, num::get_vout(rest)?))
    })();
    parts.ok_or_else(|| BadRow::new(SCRIPT_COINS, "the key", key))
}

/// Reads the amount of a coin by script.
pub fn read_coin_value(key: &[u8], mut value: &[u8]) -> Result<u64, BadRow> {
    num::get_amount(&mut value)
        .filter(|_| value.is_empty())
        .ok_or_else(|| BadRow::new(SCRIPT_COINS, "the amount", key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn txnum() -> impl Strategy<Value = TxNum> {
        (0u32..50, prop_oneof![0u32..4, 0u32..=TxNum::MAX_INDEX])
            .prop_map(|(h, i)| TxNum::new(h * 300_000, i).unwrap())
    }

    proptest! {
        #[test]
        fn history_round_trips(script: [u8; KEY_LEN], txs in proptest::collection::btree_set(txnum(), 1..100)) {
            let txs: Vec<_> = txs.into_iter().collect();
            let key = history_key(ScriptKey(script), txs[0]);
            let mut value = Vec::new();
            put_history(&mut value, txs[0], txs[1..].iter().copied());
            let mut back = Vec::new();
            read_history(&key, &value, &mut back).unwrap();
            prop_assert_eq!(back, txs);
        }

        #[test]
        fn touches_sort_as_keys(a: ([u8; KEY_LEN], u32, u16), b: ([u8; KEY_LEN], u32, u16)) {
            let make = |(s, h, i): ([u8; KEY_LEN], u32, u16)| (ScriptKey(s), TxNum::new(h >> 8, i.into()).unwrap());
            let ((sa, ta), (sb, tb)) = (make(a), make(b));
            let (x, y) = (Touch::new(sa, ta), Touch::new(sb, tb));
            prop_assert_eq!((x.script(), x.txnum()), (sa, ta));
            prop_assert_eq!(x.cmp(&y), history_key(sa, ta).cmp(&history_key(sb, tb)));
        }

        #[test]
        fn coin_rows_round_trip(script: [u8; KEY_LEN], t in txnum(), vout: u32, amount in 0u64..=1 << 60) {
            let key = coin_key(ScriptKey(script), t, vout);
            prop_assert_eq!(read_coin_key(&key).unwrap(), (ScriptKey(script), t, vout));
            let mut value = Vec::new();
            num::put_amount(&mut value, amount);
            prop_assert_eq!(read_coin_value(&key, &value).unwrap(), amount);
        }

        #[test]
        fn any_bytes_are_answered(key: Vec<u8>, value: Vec<u8>) {
            let _ = read_coin_key(&key);
            let _ = read_coin_value(&key, &value);
            let _ = read_history(&key, &value, &mut Vec::new());
            let _ = read_history(&[9; KEY_LEN + 5], &value, &mut Vec::new());
        }
    }
}
