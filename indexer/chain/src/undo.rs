//! What a block spent: the coins its inputs took out of the set.
//!
//! Undo record of the nodes (`rev*.dat`): CompactSize number of transactions (all but the
//! coinbase), for each a CompactSize number of coins, for each coin VARINT(height·2 + coinbase),
//! a VARINT that is zero where the height is not, amount and script in their short forms. After
//! the record stand 32 bytes: SHA256d of the previous block's hash and the record.
//!
//! The REST interface's `spenttxouts` has plain outputs instead, with a list for the coinbase.

use crate::chains::Chain;
use crate::coin::{Coin, code};
use crate::compress::{compress_amount, decompress_amount, put_script, read_script};
use crate::hash::sha256d_parts;
use crate::wire::{Reader, put_compact_size, put_varint};
use crate::{Block, Error, Hash};

/// Litecoin marks coins that left the extension block in the top bit of the code.
const PEGOUT: u64 = 1 << 31;

/// Coins spent, per transaction after the coinbase, in the order of its inputs.
pub type Spent = Vec<Vec<Coin>>;

/// Reads an undo record, all of `data`. (Litecoin's may end with what its extension block needs,
/// which is not read.)
pub fn parse(chain: &dyn Chain, data: &[u8]) -> Result<Spent, Error> {
    let mut r = Reader::new(data);
    let count = r.count(1, "count of transactions")?;
    let mut spent = Vec::with_capacity(count.min(1 << 16));
    for _ in 0..count {
        let coins = r.count(3, "count of coins")?;
        let mut list = Vec::with_capacity(coins.min(1 << 12));
        for _ in 0..coins {
            list.push(read_coin(chain, &mut r)?);
        }
        spent.push(list);
    }
    if !chain.has_mweb() {
        r.finish("undo record")?;
    }
    Ok(spent)
}

fn read_coin(chain: &dyn Chain, r: &mut Reader<'_>) -> Result<Coin, Error> {
    let at = r.position();
    let mut code = r.varint("height of a coin")?;
    if chain.has_mweb() {
        code &= !PEGOUT;
    }
    let height = u32::try_from(code >> 1).ok().filter(|h| *h < 1 << 31);
    let height = height.ok_or(Error::Malformed {
        what: "coin",
        at,
        why: "its height does not fit in 31 bits",
    })?;
    if height > 0 {
        r.varint("version of a transaction")?;
    }
    let at = r.position();
    let value = decompress_amount(r.varint("amount")?)
        .filter(|v| *v <= chain.params().max_money)
        .ok_or(Error::Malformed {
            what: "amount",
            at,
            why: "it is more than there can be",
        })?;
    Ok(Coin {
        value,
        height,
        coinbase: code & 1 == 1,
        script: read_script(r)?,
    })
}

/// Appends the undo record of a block, byte for byte as a node of the Bitcoin family writes it.
pub fn put(out: &mut Vec<u8>, spent: &[Vec<Coin>]) {
    put_compact_size(out, spent.len() as u64);
    for list in spent {
        put_compact_size(out, list.len() as u64);
        for coin in list {
            put_varint(out, u64::from(code(coin.height, coin.coinbase)));
            if coin.height > 0 {
                out.push(0);
            }
            put_varint(out, compress_amount(coin.value));
            put_script(out, &coin.script);
        }
    }
}

/// The 32 bytes that follow a record.
pub fn checksum(prev: &Hash, data: &[u8]) -> Hash {
    sha256d_parts(&[prev, data])
}

/// Compares the 32 bytes that follow a record with it.
pub fn check(prev: &Hash, data: &[u8], stored: &Hash) -> Result<(), Error> {
    let have = checksum(prev, data);
    if have == *stored {
        Ok(())
    } else {
        Err(Error::WrongHash {
            what: "checksum of undo data",
            want: *stored,
            have,
        })
    }
}

/// Errs unless there is one coin for each input of the block.
pub fn check_shape(block: &Block, spent: &[Vec<Coin>]) -> Result<(), Error> {
    let fits = block.len() == spent.len() + 1
        && block
            .txs()
            .skip(1)
            .zip(spent)
            .all(|(tx, list)| tx.inputs().len() == list.len());
    if fits {
        Ok(())
    } else {
        Err(Error::Malformed {
            what: "undo record",
            at: 0,
            why: "it does not have one coin for each input of its block",
        })
    }
}

/// An output as `spenttxouts` gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpentOutput {
    /// Smallest units.
    pub value: u64,
    /// Output script.
    pub script: Vec<u8>,
}

/// Reads the answer of REST `spenttxouts`: a list for each transaction, empty for the coinbase.
pub fn parse_spent_txouts(chain: &dyn Chain, data: &[u8]) -> Result<Vec<Vec<SpentOutput>>, Error> {
    let mut r = Reader::new(data);
    let count = r.count(1, "count of transactions")?;
    let mut all = Vec::with_capacity(count.min(1 << 16));
    for _ in 0..count {
        let outputs = r.count(9, "count of outputs")?;
        let mut list = Vec::with_capacity(outputs.min(1 << 12));
        for _ in 0..outputs {
            let at = r.position();
            let value = r.u64("value")?;
            if value > chain.params().max_money {
                return Err(Error::Malformed {
                    what: "output",
                    at,
                    why: "its value is negative or more than there can be",
                });
            }
            list.push(SpentOutput {
                value,
                script: r.bytes("output script")?.to_vec(),
            });
        }
        all.push(list);
    }
    r.finish("spent outputs")?;
    Ok(all)
}
