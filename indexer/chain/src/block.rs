//! Blocks: one pass over the bytes finds every transaction, input and output and hashes the
//! transaction ids; scripts stay where they are.
//!
//! Layout: header (80), what the chain adds to it (AuxPoW), CompactSize count, transactions, what
//! the chain adds at the end (MWEB extension block). A [`Block`] owns its bytes.

use std::ops::Range;

use crate::chains::{AuxPow, Chain};
use crate::hash::{ZERO, sha256d_parts};
use crate::wire::Reader;
use crate::{Error, Hash, Header, OutPoint, merkle};

/// Longest block accepted, in bytes: twice what any chain here allows, so that every offset fits
/// in 32 bits and a false length cannot take much memory.
pub const MAX_BLOCK: usize = 8_000_000;

/// Fewest bytes of a transaction: version, one input, one output, lock time.
const MIN_TX: usize = 4 + 1 + MIN_INPUT + 1 + MIN_OUTPUT + 4;
const MIN_INPUT: usize = 36 + 1 + 4;
const MIN_OUTPUT: usize = 8 + 1;

/// A block and where its parts are.
#[derive(Debug, Clone)]
pub struct Block {
    raw: Vec<u8>,
    header: Header,
    hash: Hash,
    auxpow: Option<Box<AuxPow>>,
    txs: Vec<TxEntry>,
    inputs: Vec<Input>,
    outputs: Vec<OutputEntry>,
    extension: Range<u32>,
}

/// Where one transaction is, in the block's bytes and in its lists.
#[derive(Debug, Clone)]
struct TxEntry {
    txid: Hash,
    start: u32,
    end: u32,
    /// From the count of inputs to the end of the outputs.
    body: Range<u32>,
    first_input: u32,
    first_output: u32,
    /// Ends of the lists; the next transaction's starts are the same.
    end_input: u32,
    end_output: u32,
    witness: bool,
    mweb: bool,
}

/// An input, as far as an index needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Input {
    /// The output it spends.
    pub prevout: OutPoint,
    /// Sequence number: below 0xffff_fffe it signals replaceability (BIP125).
    pub sequence: u32,
    script_at: u32,
    script_len: u32,
}

#[derive(Debug, Clone, Copy)]
struct OutputEntry {
    value: u64,
    script_at: u32,
    script_len: u32,
}

/// An output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output<'a> {
    /// Smallest units.
    pub value: u64,
    /// Output script.
    pub script: &'a [u8],
}

impl Block {
    /// Reads a block of `chain`, all of `raw`.
    ///
    /// The form is checked, the first transaction is the only coinbase, no value is out of
    /// range; neither the Merkle root ([`Block::check_merkle`]) nor the proof of work
    /// ([`Chain::check_pow`]) is.
    pub fn parse(chain: &dyn Chain, raw: Vec<u8>) -> Result<Self, Error> {
        if raw.len() > MAX_BLOCK {
            return Err(Error::TooMany {
                what: "length of a block",
                at: 0,
                count: raw.len() as u64,
                max: MAX_BLOCK as u64,
            });
        }
        let mut r = Reader::new(&raw);
        let header = Header::from_bytes(&r.array("header")?);
        let auxpow = chain.read_auxpow(&header, &mut r)?;
        let count = r.count(MIN_TX, "count of transactions")?;
        let mut list = Lists {
            txs: Vec::with_capacity(count),
            inputs: Vec::with_capacity(2 * count),
            outputs: Vec::with_capacity(2 * count),
        };
        for n in 0..count {
            list.read(
                chain,
                &mut r,
                if n == 0 {
                    Place::Coinbase
                } else {
                    Place::Block
                },
            )?;
        }
        if count == 0 {
            return Err(malformed(
                "block",
                r.position(),
                "it has no transaction, not even a coinbase",
            ));
        }
        let has_hogex = count >= 2 && list.txs.last().is_some_and(|tx| tx.mweb);
        if list.txs.iter().rev().skip(1).any(|tx| tx.mweb) {
            return Err(malformed(
                "HogEx",
                r.position(),
                "it is not the last transaction",
            ));
        }
        let mut extension = 0..0;
        if has_hogex {
            match r.u8("mark of the extension block")? {
                // A node that leaves the extension block out says so.
                0 => {}
                1 => {
                    extension = r.position() as u32..raw.len() as u32;
                    r.take(r.remaining(), "extension block")?;
                }
                _ => {
                    return Err(malformed(
                        "mark of the extension block",
                        r.position() - 1,
                        "it is neither 0 nor 1",
                    ));
                }
            }
        }
        r.finish("block")?;
        let Lists {
            txs,
            inputs,
            outputs,
        } = list;
        Ok(Self {
            header,
            hash: header.hash(),
            auxpow,
            txs,
            inputs,
            outputs,
            extension,
            raw,
        })
    }

    /// Everything that can be checked of a block by itself: form, Merkle root, proof of work.
    pub fn parse_checked(chain: &dyn Chain, raw: Vec<u8>) -> Result<Self, Error> {
        let block = Self::parse(chain, raw)?;
        block.check_merkle()?;
        chain.check_pow(&block.header, block.auxpow())?;
        Ok(block)
    }

    /// The block's hash.
    pub fn hash(&self) -> &Hash {
        &self.hash
    }

    /// The header.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Proof that another chain's block carries the work, where there is one.
    pub fn auxpow(&self) -> Option<&AuxPow> {
        self.auxpow.as_deref()
    }

    /// All bytes of the block.
    pub fn raw(&self) -> &[u8] {
        &self.raw
    }

    /// Gives the bytes back.
    pub fn into_raw(self) -> Vec<u8> {
        self.raw
    }

    /// Number of transactions, at least 1.
    pub fn len(&self) -> usize {
        self.txs.len()
    }

    /// Never true.
    pub fn is_empty(&self) -> bool {
        self.txs.is_empty()
    }

    /// Number of inputs that spend a coin, in all transactions.
    pub fn input_count(&self) -> usize {
        self.inputs.len()
    }

    /// Number of outputs in all transactions.
    pub fn output_count(&self) -> usize {
        self.outputs.len()
    }

    /// The transaction at a position.
    pub fn tx(&self, index: usize) -> Option<Tx<'_>> {
        self.txs.get(index).map(|entry| Tx {
            block: self,
            entry,
            index: index as u32,
        })
    }

    /// The transactions in order.
    pub fn txs(&self) -> impl ExactSizeIterator<Item = Tx<'_>> + DoubleEndedIterator + Clone {
        self.txs.iter().enumerate().map(|(index, entry)| Tx {
            block: self,
            entry,
            index: index as u32,
        })
    }

    /// Ids of the transactions in order.
    pub fn txids(&self) -> Vec<Hash> {
        self.txs.iter().map(|tx| tx.txid).collect()
    }

    /// Litecoin's extension block, where there is one. It is not under the Merkle root.
    pub fn extension(&self) -> &[u8] {
        &self.raw[self.extension.start as usize..self.extension.end as usize]
    }

    /// Bytes of the block without witnesses and extension.
    pub fn stripped_size(&self) -> usize {
        let first = self.txs.first().map_or(0, |tx| tx.start as usize);
        first + self.txs().map(|tx| tx.stripped_size()).sum::<usize>()
    }

    /// Weight: three times the stripped size and once the whole, without the extension.
    pub fn weight(&self) -> usize {
        let end = self.txs.last().map_or(0, |tx| tx.end as usize);
        3 * self.stripped_size() + end
    }

    /// Compares the Merkle root of the transactions with the header's, and refuses repeated
    /// transactions (CVE-2012-2459).
    pub fn check_merkle(&self) -> Result<(), Error> {
        let (computed, mutated) = merkle::root(self.txids());
        if computed != self.header.merkle_root {
            return Err(Error::MerkleRoot {
                block: self.hash,
                header: self.header.merkle_root,
                computed,
            });
        }
        if mutated {
            return Err(Error::Mutated { block: self.hash });
        }
        Ok(())
    }

    /// Compares the witness commitment (BIP141) with the witnesses; fine where there is none.
    pub fn check_witness(&self) -> Result<(), Error> {
        const MARK: [u8; 6] = [0x6a, 0x24, 0xaa, 0x21, 0xa9, 0xed];
        let Some(coinbase) = self.tx(0) else {
            return Ok(());
        };
        let Some(committed) = coinbase
            .outputs()
            .rev()
            .find_map(|o| o.script.strip_prefix(&MARK)?.first_chunk::<32>().copied())
        else {
            return Ok(());
        };
        // The coinbase's witness is one item of 32 bytes: 1, 32, item, then the lock time.
        let raw = coinbase.raw();
        let reserved = (coinbase.has_witness() && raw.len() >= 38)
            .then(|| &raw[raw.len() - 38..raw.len() - 4])
            .filter(|w| w[..2] == [1, 32])
            .ok_or(malformed(
                "coinbase",
                coinbase.position().start,
                "it commits to witnesses but has no reserved value of 32 bytes in its own",
            ))?;
        let leaves = self
            .txs()
            .map(|tx| if tx.is_coinbase() { ZERO } else { tx.wtxid() })
            .collect();
        let computed = sha256d_parts(&[&merkle::root(leaves).0, &reserved[2..]]);
        if computed != committed {
            return Err(Error::WitnessCommitment {
                block: self.hash,
                committed,
                computed,
            });
        }
        Ok(())
    }
}

/// One transaction of a block.
#[derive(Debug, Clone, Copy)]
pub struct Tx<'a> {
    block: &'a Block,
    entry: &'a TxEntry,
    index: u32,
}

impl<'a> Tx<'a> {
    /// The transaction's id.
    pub fn txid(&self) -> &'a Hash {
        &self.entry.txid
    }

    /// Position in the block, 0 for the coinbase.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Whether it is the coinbase.
    pub fn is_coinbase(&self) -> bool {
        self.index == 0
    }

    /// Whether it is Litecoin's HogEx, which mirrors the extension block.
    pub fn is_hogex(&self) -> bool {
        self.entry.mweb
    }

    /// Whether it carries witnesses.
    pub fn has_witness(&self) -> bool {
        self.entry.witness
    }

    /// Where its bytes are in the block's.
    pub fn position(&self) -> Range<usize> {
        self.entry.start as usize..self.entry.end as usize
    }

    /// Its bytes, with witnesses.
    pub fn raw(&self) -> &'a [u8] {
        &self.block.raw[self.position()]
    }

    /// The inputs; none for the coinbase, which spends nothing.
    pub fn inputs(&self) -> &'a [Input] {
        &self.block.inputs[self.entry.first_input as usize..self.entry.end_input as usize]
    }

    /// The script of one of its inputs.
    pub fn input_script(&self, input: &Input) -> &'a [u8] {
        let at = input.script_at as usize;
        self.block
            .raw
            .get(at..at + input.script_len as usize)
            .unwrap_or_default()
    }

    /// The outputs in order.
    pub fn outputs(
        &self,
    ) -> impl ExactSizeIterator<Item = Output<'a>> + DoubleEndedIterator + Clone + use<'a> {
        let raw = &self.block.raw;
        self.block.outputs[self.entry.first_output as usize..self.entry.end_output as usize]
            .iter()
            .map(|o| Output {
                value: o.value,
                script: &raw[o.script_at as usize..][..o.script_len as usize],
            })
    }

    /// Bytes without witnesses.
    pub fn stripped_size(&self) -> usize {
        8 + self.entry.body.len()
    }

    /// Weight (BIP141).
    pub fn weight(&self) -> usize {
        3 * self.stripped_size() + self.position().len()
    }

    /// Hash of the bytes with witnesses.
    pub fn wtxid(&self) -> Hash {
        if self.entry.witness {
            sha256d_parts(&[self.raw()])
        } else {
            self.entry.txid
        }
    }
}

/// Where a transaction stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Coinbase,
    Block,
    Loose,
}

struct Lists {
    txs: Vec<TxEntry>,
    inputs: Vec<Input>,
    outputs: Vec<OutputEntry>,
}

impl Lists {
    fn read(&mut self, chain: &dyn Chain, r: &mut Reader<'_>, place: Place) -> Result<(), Error> {
        let coinbase = place == Place::Coinbase;
        let start = r.position();
        let (first_input, first_output) = (self.inputs.len(), self.outputs.len());
        let raw = r.data();
        r.take(4, "version")?;
        let mut flags = 0;
        if r.peek() == Some(0) {
            // No inputs: the mark of the extended form, a byte of flags follows.
            r.take(1, "mark of the extended form")?;
            flags = r.u8("flags")?;
            let known = if chain.has_mweb() { 0x09 } else { 0x01 };
            if flags == 0 || flags & !known != 0 {
                return Err(malformed(
                    "transaction",
                    start,
                    "it has no inputs, or flags this chain does not know",
                ));
            }
        }
        let body = r.position();
        let inputs = r.count(MIN_INPUT, "count of inputs")?;
        if inputs == 0 {
            return Err(malformed("transaction", start, "it has no inputs"));
        }
        for _ in 0..inputs {
            let at = r.position();
            let prevout = OutPoint::from_bytes(&r.array("outpoint")?);
            let script = r.bytes("input script")?;
            let script_at = r.position() - script.len();
            let sequence = r.u32("sequence")?;
            if prevout.is_null() != coinbase || coinbase && inputs != 1 {
                return Err(malformed(
                    "input",
                    at,
                    "a coinbase is the first transaction and has one null input",
                ));
            }
            if !coinbase {
                self.inputs.push(Input {
                    prevout,
                    sequence,
                    script_at: script_at as u32,
                    script_len: script.len() as u32,
                });
            }
        }
        let outputs = r.count(MIN_OUTPUT, "count of outputs")?;
        if outputs == 0 {
            return Err(malformed("transaction", start, "it has no outputs"));
        }
        let most = chain.params().max_money;
        for _ in 0..outputs {
            let at = r.position();
            let value = r.u64("value")?;
            if value > most {
                return Err(malformed(
                    "output",
                    at,
                    "its value is negative or more than there can be",
                ));
            }
            let script = r.bytes("output script")?;
            let script_at = r.position() - script.len();
            self.outputs.push(OutputEntry {
                value,
                script_at: script_at as u32,
                script_len: script.len() as u32,
            });
        }
        let body = body..r.position();
        let mut witnesses = 0;
        if flags & 1 != 0 {
            for _ in 0..inputs {
                let items = r.count(1, "count of witness items")?;
                witnesses += items;
                for _ in 0..items {
                    r.bytes("witness item")?;
                }
            }
            if witnesses == 0 {
                return Err(malformed(
                    "transaction",
                    start,
                    "it is in the extended form without any witness",
                ));
            }
        }
        let mweb = flags & 8 != 0;
        if mweb && r.u8("extension part")? != 0 {
            if place != Place::Loose {
                return Err(malformed(
                    "transaction",
                    start,
                    "a block holds no extension transactions, only a HogEx",
                ));
            }
            // Its length is not written; only the lock time follows.
            r.take(r.remaining().saturating_sub(4), "extension part")?;
        }
        let lock_time = r.take(4, "lock time")?;
        let txid = if flags == 0 {
            sha256d_parts(&[&raw[start..r.position()]])
        } else {
            sha256d_parts(&[&raw[start..start + 4], &raw[body.clone()], lock_time])
        };
        self.txs.push(TxEntry {
            txid,
            start: start as u32,
            end: r.position() as u32,
            body: body.start as u32..body.end as u32,
            first_input: first_input as u32,
            first_output: first_output as u32,
            end_input: self.inputs.len() as u32,
            end_output: self.outputs.len() as u32,
            witness: flags & 1 != 0,
            mweb,
        });
        Ok(())
    }
}

/// A transaction by itself, as a mempool has it: the same views as in a block.
///
/// Its `index` is 1 (it is no coinbase) and its position starts at 0. Litecoin's may carry an
/// extension part; one that has nothing else, no inputs and no outputs, is refused.
#[derive(Debug, Clone)]
pub struct LooseTx(Block);

impl LooseTx {
    /// Reads one transaction that is not a coinbase, all of `raw`.
    pub fn parse(chain: &dyn Chain, raw: Vec<u8>) -> Result<Self, Error> {
        if raw.len() > MAX_BLOCK {
            return Err(malformed("transaction", 0, "it is longer than a block"));
        }
        let mut list = Lists {
            txs: Vec::with_capacity(1),
            inputs: Vec::new(),
            outputs: Vec::new(),
        };
        let mut r = Reader::new(&raw);
        list.read(chain, &mut r, Place::Loose)?;
        r.finish("transaction")?;
        let Lists {
            txs,
            inputs,
            outputs,
        } = list;
        let header = Header::from_bytes(&[0; 80]);
        Ok(Self(Block {
            header,
            hash: ZERO,
            auxpow: None,
            txs,
            inputs,
            outputs,
            extension: 0..0,
            raw,
        }))
    }

    /// The transaction.
    pub fn tx(&self) -> Tx<'_> {
        Tx {
            block: &self.0,
            entry: &self.0.txs[0],
            index: 1,
        }
    }
}

fn malformed(what: &'static str, at: usize, why: &'static str) -> Error {
    Error::Malformed { what, at, why }
}
