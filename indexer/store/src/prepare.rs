//! The part of applying a block that needs nothing but the block: done on any thread, ahead of
//! time and in any order.

use hashbrown::{HashMap, HashSet};
use weft_chain::{Block, Chain, Hash, Header, MuBatch, MuHash3072, OutPoint, coin, is_unspendable};

use crate::error::{Error, Result};
use crate::rows::TxNum;
use crate::rows::coin::Body;
use crate::rows::script::{Salt, ScriptKey, Touch};
use crate::rows::tx::Span;

/// What preparing needs to know about the database.
#[derive(Debug, Clone, Copy)]
pub struct Preparer {
    pub(crate) salt: Salt,
    pub(crate) commitment: bool,
}

/// An input that spends a coin of an earlier block.
#[derive(Debug, Clone)]
pub(crate) struct Spend {
    pub(crate) txnum: TxNum,
    pub(crate) outpoint: OutPoint,
}

/// An output that is still unspent at the end of its block.
#[derive(Debug, Clone)]
pub(crate) struct Create {
    pub(crate) outpoint: OutPoint,
    pub(crate) txnum: TxNum,
    pub(crate) body: Body,
    pub(crate) script: ScriptKey,
    pub(crate) script_len: u32,
    pub(crate) value: u64,
}

/// A block ready to be applied.
#[derive(Debug, Clone)]
pub struct Prepared {
    pub(crate) height: u32,
    pub(crate) hash: Hash,
    pub(crate) header: Header,
    pub(crate) size: u32,
    pub(crate) txids: Vec<Hash>,
    pub(crate) spans: Vec<Span>,
    pub(crate) spends: Vec<Spend>,
    pub(crate) creates: Vec<Create>,
    /// Scripts touched by the outputs, and by the inputs that spend within the block.
    pub(crate) touches: Vec<Touch>,
    /// Scripts of outputs that are no coins after the block: made and spent within it, or never coins.
    pub(crate) passing: Vec<ScriptKey>,
    /// MuHash of the coins made.
    pub(crate) added: MuHash3072,
}

impl Prepared {
    /// The block's hash.
    pub fn hash(&self) -> &Hash {
        &self.hash
    }

    /// Hash of the block before.
    pub fn prev(&self) -> &Hash {
        &self.header.prev
    }

    /// Height it is prepared for.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Bytes of the serialised block.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// Transactions.
    pub fn tx_count(&self) -> usize {
        self.txids.len()
    }
}

/// An output within the block being prepared.
struct Made<'a> {
    txnum: TxNum,
    txid: &'a Hash,
    vout: u32,
    value: u64,
    script: &'a [u8],
    spent: bool,
}

impl Preparer {
    /// Prepares a block of `chain` for a height. The outputs of the genesis block's coinbase, and of the two
    /// that were overwritten before BIP30, never become coins.
    ///
    /// # Errors
    /// An output is spent twice within the block, or before it is made; more transactions than
    /// can be stored.
    pub fn prepare(&self, chain: &dyn Chain, block: &Block, height: u32) -> Result<Prepared> {
        let coinbase_counts = height > 0 && !chain.bip30_unspendable(height, block.hash());
        let too_many = || Error::TooMany {
            height,
            txs: block.len(),
        };
        TxNum::new(height, (block.len() - 1) as u32).ok_or_else(too_many)?;
        let numbered =
            |index: u32| TxNum::from_low_bits(TxNum::first_of(height).to_u64() | u64::from(index));

        let mut made = Vec::with_capacity(block.output_count());
        let mut first_output = Vec::with_capacity(block.len() + 1);
        let mut by_txid: HashMap<&Hash, u32> = HashMap::with_capacity(block.len());
        let mut spans = Vec::with_capacity(block.len());
        for tx in block.txs() {
            first_output.push(made.len());
            let place = tx.position();
            spans.push(Span {
                offset: place.start as u32,
                len: place.len() as u32,
            });
            if by_txid.insert(tx.txid(), tx.index()).is_some() {
                return Err(Error::Bip30 {
                    height,
                    index: tx.index(),
                    txid: *tx.txid(),
                });
            }
            made.extend(tx.outputs().zip(0..).map(|(output, vout)| Made {
                txnum: numbered(tx.index()),
                txid: tx.txid(),
                vout,
                value: output.value,
                script: output.script,
                spent: false,
            }));
        }
        first_output.push(made.len());

        let mut spends = Vec::with_capacity(block.input_count());
        let mut within = Vec::new();
        let mut seen = HashSet::with_capacity(block.input_count());
        for tx in block.txs().skip(1) {
            for input in tx.inputs() {
                let outpoint = input.prevout;
                let missing = || Error::MissingCoin {
                    height,
                    index: tx.index(),
                    outpoint,
                };
                let Some(&maker) = by_txid.get(&outpoint.txid) else {
                    if !seen.insert(outpoint) {
                        return Err(missing());
                    }
                    spends.push(Spend {
                        txnum: numbered(tx.index()),
                        outpoint,
                    });
                    continue;
                };
                let (first, end) = (
                    first_output[maker as usize],
                    first_output[maker as usize + 1],
                );
                let at = first + outpoint.vout as usize;
                // A coinbase has to mature: nothing of this block can spend it.
                if maker == 0
                    || maker >= tx.index()
                    || at >= end
                    || made[at].spent
                    || is_unspendable(made[at].script)
                {
                    return Err(missing());
                }
                made[at].spent = true;
                within.push((at, tx.index()));
            }
        }

        let mut batch = MuBatch::new();
        let mut scratch = Vec::with_capacity(128);
        let mut touches = Vec::with_capacity(made.len() + within.len());
        let mut passing = Vec::new();
        let mut keys: HashMap<usize, ScriptKey> = HashMap::with_capacity(within.len());
        let mut creates = Vec::with_capacity(made.len() - within.len());
        for (at, output) in made.iter().enumerate() {
            let coinbase = output.txnum.index() == 0;
            let script = ScriptKey::of_script(&self.salt, output.script);
            touches.push(Touch::new(script, output.txnum));
            if is_unspendable(output.script) || coinbase && !coinbase_counts {
                passing.push(script);
                continue;
            }
            if output.spent {
                keys.insert(at, script);
                passing.push(script);
                continue;
            }
            let outpoint = OutPoint {
                txid: *output.txid,
                vout: output.vout,
            };
            if self.commitment {
                batch.insert_coin(
                    &outpoint,
                    coin::code(height, coinbase),
                    output.value,
                    output.script,
                );
            }
            creates.push(Create {
                outpoint,
                txnum: output.txnum,
                body: Body::encode(output.value, output.script, &mut scratch),
                script,
                script_len: output.script.len() as u32,
                value: output.value,
            });
        }
        touches.extend(
            within
                .iter()
                .filter_map(|(at, spender)| Some(Touch::new(*keys.get(at)?, numbered(*spender)))),
        );
        passing.sort_unstable();
        passing.dedup();
        Ok(Prepared {
            height,
            hash: *block.hash(),
            header: *block.header(),
            size: block.raw().len() as u32,
            txids: block.txids(),
            spans,
            spends,
            creates,
            touches,
            passing,
            added: batch.finish(),
        })
    }
}
