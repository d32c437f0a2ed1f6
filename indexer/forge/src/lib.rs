//! Blocks made by hand: transactions with any inputs, outputs and padding, under headers with the
//! (trivial) work of a regtest network. Signatures are filling and values need not add up: for
//! tests and benchmarks of what does not check them.

use weft_chain::hash::{sha256d, sha256d_parts};
use weft_chain::pow::Target;
use weft_chain::wire::put_compact_size;
use weft_chain::{Hash, Header, OutPoint, merkle};

/// The target of regtest networks: every other hash reaches it.
pub const REGTEST_BITS: u32 = 0x207f_ffff;

/// An input with its filling.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spend {
    /// What it spends.
    pub outpoint: OutPoint,
    /// Bytes of the input script.
    pub script: Vec<u8>,
    /// Items of the witness; a transaction with any is written in the extended form.
    pub witness: Vec<Vec<u8>>,
}

impl Spend {
    /// An input without any filling.
    pub fn bare(outpoint: OutPoint) -> Self {
        Self {
            outpoint,
            script: Vec::new(),
            witness: Vec::new(),
        }
    }
}

/// A transaction as it is on the wire, with its id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The bytes.
    pub raw: Vec<u8>,
    /// The id.
    pub txid: Hash,
}

/// Makes a transaction. Outputs are value and script.
pub fn transaction(inputs: &[Spend], outputs: &[(u64, Vec<u8>)]) -> Made {
    let segwit = inputs.iter().any(|i| !i.witness.is_empty());
    let mut body = Vec::with_capacity(64 * (inputs.len() + outputs.len()) + 64);
    put_compact_size(&mut body, inputs.len() as u64);
    for input in inputs {
        body.extend_from_slice(&input.outpoint.to_bytes());
        put_compact_size(&mut body, input.script.len() as u64);
        body.extend_from_slice(&input.script);
        body.extend_from_slice(&[0xfd, 0xff, 0xff, 0xff]);
    }
    put_compact_size(&mut body, outputs.len() as u64);
    for (value, script) in outputs {
        body.extend_from_slice(&value.to_le_bytes());
        put_compact_size(&mut body, script.len() as u64);
        body.extend_from_slice(script);
    }
    let (version, lock_time) = ([2, 0, 0, 0], [0; 4]);
    let txid = sha256d_parts(&[&version, &body, &lock_time]);
    let mut raw = Vec::with_capacity(body.len() + 16);
    raw.extend_from_slice(&version);
    if segwit {
        raw.extend_from_slice(&[0, 1]);
    }
    raw.extend_from_slice(&body);
    if segwit {
        for input in inputs {
            put_compact_size(&mut raw, input.witness.len() as u64);
            for item in &input.witness {
                put_compact_size(&mut raw, item.len() as u64);
                raw.extend_from_slice(item);
            }
        }
    }
    raw.extend_from_slice(&lock_time);
    Made { raw, txid }
}

/// Makes the coinbase of a height; `extra` tells apart those of one height.
pub fn coinbase(height: u32, extra: u32, outputs: &[(u64, Vec<u8>)]) -> Made {
    let mut script = vec![4];
    script.extend_from_slice(&height.to_le_bytes());
    script.push(4);
    script.extend_from_slice(&extra.to_le_bytes());
    transaction(
        &[Spend {
            outpoint: OutPoint::NULL,
            script,
            witness: Vec::new(),
        }],
        outputs,
    )
}

/// Puts transactions, the coinbase first, under a header with work.
pub fn block(prev: Hash, time: u32, txs: &[Made]) -> (Hash, Vec<u8>) {
    let (merkle_root, _) = merkle::root(txs.iter().map(|tx| tx.txid).collect());
    let mut header = Header {
        version: 0x2000_0000,
        prev,
        merkle_root,
        time,
        bits: REGTEST_BITS,
        nonce: 0,
    };
    let target = Target::from_compact(REGTEST_BITS).expect("a constant");
    let hash = loop {
        let hash = sha256d(&header.to_bytes());
        if Target::from_hash(&hash) <= target {
            break hash;
        }
        header.nonce += 1;
    };
    let mut raw = header.to_bytes().to_vec();
    raw.reserve(9 + txs.iter().map(|tx| tx.raw.len()).sum::<usize>());
    put_compact_size(&mut raw, txs.len() as u64);
    txs.iter().for_each(|tx| raw.extend_from_slice(&tx.raw));
    (hash, raw)
}

/// The first block of a Bitcoin network: Bitcoin's first transaction under the network's header.
pub fn genesis(header: &Header) -> Vec<u8> {
    let message = b"The Times 03/Jan/2009 Chancellor on brink of second bailout for banks";
    let mut script = vec![4, 0xff, 0xff, 0, 0x1d, 1, 4, message.len() as u8];
    script.extend_from_slice(message);
    const KEY: &str = "04678afdb0fe5548271967f1a67130b7105cd6a828e03909a67962e0ea1f61deb649f6bc3f4cef38c4f35504e51ec112de5c384df7ba0b8d578a4c702b6bf11d5f";
    let mut output = vec![65];
    output.extend((0..65).filter_map(|i| u8::from_str_radix(&KEY[2 * i..2 * i + 2], 16).ok()));
    output.push(0xac);
    let mut raw = header.to_bytes().to_vec();
    raw.extend_from_slice(&[1, 1, 0, 0, 0, 1]);
    raw.extend_from_slice(&OutPoint::NULL.to_bytes());
    raw.push(script.len() as u8);
    raw.extend_from_slice(&script);
    raw.extend_from_slice(&[0xff; 4]);
    raw.push(1);
    raw.extend_from_slice(&50_0000_0000u64.to_le_bytes());
    raw.push(output.len() as u8);
    raw.extend_from_slice(&output);
    raw.extend_from_slice(&[0; 4]);
    raw
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_chain::{Block, chains};

    #[test]
    fn made_blocks_are_blocks() {
        let chain = chains::by_name("bitcoin-regtest").unwrap();
        let genesis = chain.params().genesis_hash();
        let outputs = [(5, vec![0x51]), (0, vec![]), (7, vec![0x6a; 300])];
        let base = coinbase(1, 9, &outputs);
        let at = OutPoint {
            txid: [7; 32],
            vout: 3,
        };
        let plain = transaction(
            &[Spend {
                script: vec![1; 107],
                ..Spend::bare(at)
            }],
            &outputs,
        );
        let segwit = transaction(
            &[Spend {
                witness: vec![vec![2; 71], vec![3; 33]],
                ..Spend::bare(at)
            }],
            &outputs,
        );
        let stripped = transaction(&[Spend::bare(at)], &outputs);
        assert_eq!(segwit.txid, stripped.txid);
        let (hash, raw) = block(
            genesis,
            1_700_000_000,
            &[base.clone(), plain.clone(), segwit.clone()],
        );
        assert_eq!(
            *Block::parse_checked(chain, super::genesis(&chain.params().genesis))
                .unwrap()
                .hash(),
            genesis
        );
        let parsed = Block::parse_checked(chain, raw).unwrap();
        assert_eq!(*parsed.hash(), hash);
        assert_eq!(parsed.txids(), [base.txid, plain.txid, segwit.txid]);
        assert_eq!(parsed.tx(2).unwrap().raw(), segwit.raw);
        assert_eq!(parsed.tx(1).unwrap().inputs()[0].prevout, at);
    }
}
