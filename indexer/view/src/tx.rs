//! All of a transaction, coinbases too: what an explorer shows beyond what the index needs.
//!
//! Layout: version (4), for the extended form 0x00 and flags (1 witness, 8 Litecoin's extension),
//! inputs, outputs, witnesses, for flag 8 one byte 0x00 (a HogEx) or the extension's bytes, lock
//! time (4). The id is over the form without mark, flags, witnesses and extension.

use std::ops::Range;

use weft_chain::hash::sha256d_parts;
use weft_chain::wire::Reader;
use weft_chain::{Error, Hash, OutPoint};

/// An input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxInput {
    /// What it spends; null in a coinbase.
    pub prevout: OutPoint,
    /// Its script.
    pub script: Range<usize>,
    /// Sequence number.
    pub sequence: u32,
    /// Items of its witness.
    pub witness: Vec<Range<usize>>,
}

/// An output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxOutput {
    /// Smallest units.
    pub value: u64,
    /// Its script.
    pub script: Range<usize>,
}

/// A transaction's parts, as places in its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts<'a> {
    /// All bytes.
    pub raw: &'a [u8],
    /// Its id.
    pub txid: Hash,
    /// Version.
    pub version: i32,
    /// Inputs in order, at least one.
    pub inputs: Vec<TxInput>,
    /// Outputs in order.
    pub outputs: Vec<TxOutput>,
    /// Lock time.
    pub lock_time: u32,
    /// Bytes without mark, flags, witnesses and extension.
    pub stripped: usize,
}

impl<'a> Parts<'a> {
    /// Reads a transaction, all of `raw`.
    pub fn parse(raw: &'a [u8]) -> Result<Self, Error> {
        let bad = |at, why| Error::Malformed {
            what: "transaction",
            at,
            why,
        };
        let mut r = Reader::new(raw);
        let version = r.u32("version")? as i32;
        let mut flags = 0;
        if r.peek() == Some(0) {
            r.take(1, "mark of the extended form")?;
            flags = r.u8("flags")?;
            if flags == 0 || flags & !0x09 != 0 {
                return Err(bad(4, "it has no inputs, or flags that are not known"));
            }
        }
        let body = r.position();
        let bytes = |r: &mut Reader<'a>, what| {
            let len = r.bytes(what)?.len();
            Ok::<_, Error>(r.position() - len..r.position())
        };
        let count = r.count(41, "count of inputs")?;
        if count == 0 {
            return Err(bad(body, "it has no inputs"));
        }
        let mut inputs = Vec::with_capacity(count);
        for _ in 0..count {
            inputs.push(TxInput {
                prevout: OutPoint::from_bytes(&r.array("outpoint")?),
                script: bytes(&mut r, "input script")?,
                sequence: r.u32("sequence")?,
                witness: Vec::new(),
            });
        }
        let count = r.count(9, "count of outputs")?;
        let mut outputs = Vec::with_capacity(count);
        for _ in 0..count {
            outputs.push(TxOutput {
                value: r.u64("value")?,
                script: bytes(&mut r, "output script")?,
            });
        }
        let body = body..r.position();
        if flags & 1 != 0 {
            for input in &mut inputs {
                let items = r.count(1, "count of witness items")?;
                for _ in 0..items {
                    input.witness.push(bytes(&mut r, "witness item")?);
                }
            }
        }
        if flags & 8 != 0 && r.u8("extension part")? != 0 {
            r.take(r.remaining().saturating_sub(4), "extension part")?;
        }
        let tail = r.take(4, "lock time")?;
        r.finish("transaction")?;
        let lock_time = tail.iter().rev().fold(0, |n, b| n << 8 | u32::from(*b));
        Ok(Self {
            txid: sha256d_parts(&[&raw[..4], &raw[body.clone()], tail]),
            stripped: 8 + body.len(),
            raw,
            version,
            inputs,
            outputs,
            lock_time,
        })
    }

    /// Bytes at a place.
    pub fn at(&self, range: &Range<usize>) -> &'a [u8] {
        self.raw.get(range.clone()).unwrap_or_default()
    }

    /// Whether it is a coinbase.
    pub fn is_coinbase(&self) -> bool {
        self.inputs.len() == 1 && self.inputs[0].prevout.is_null()
    }

    /// Weight (BIP141).
    pub fn weight(&self) -> usize {
        3 * self.stripped + self.raw.len()
    }

    /// Hash of all bytes: the id with witnesses.
    pub fn wtxid(&self) -> Hash {
        sha256d_parts(&[self.raw])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weft_forge::{Spend, coinbase, transaction};

    #[test]
    fn made_transactions_are_read() {
        let outputs = [(5, vec![0x51]), (7, vec![0x6a; 300])];
        let made = coinbase(9, 1, &outputs);
        let parts = Parts::parse(&made.raw).unwrap();
        assert!(parts.is_coinbase());
        assert_eq!(
            (parts.txid, parts.weight()),
            (made.txid, 4 * made.raw.len())
        );
        let at = OutPoint {
            txid: [7; 32],
            vout: 3,
        };
        let made = transaction(
            &[Spend {
                script: vec![1; 10],
                witness: vec![vec![2; 71], vec![]],
                outpoint: at,
            }],
            &outputs,
        );
        let parts = Parts::parse(&made.raw).unwrap();
        assert!(!parts.is_coinbase());
        assert_eq!(parts.txid, made.txid);
        assert_ne!(parts.wtxid(), made.txid);
        assert_eq!(parts.inputs[0].prevout, at);
        assert_eq!(parts.at(&parts.inputs[0].script), [1; 10]);
        assert_eq!(parts.at(&parts.inputs[0].witness[0]), [2; 71]);
        assert_eq!(parts.at(&parts.outputs[1].script), [0x6a; 300]);
        for cut in 0..made.raw.len() {
            assert!(Parts::parse(&made.raw[..cut]).is_err());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(raw: Vec<u8>) {
            let _ = Parts::parse(&raw);
        }

        #[test]
        fn damaged_transactions_are_answered(at in any::<prop::sample::Index>(), to: u8) {
            let spend = Spend { script: vec![1; 10], witness: vec![vec![2; 71]], outpoint: OutPoint { txid: [7; 32], vout: 3 } };
            let mut raw = transaction(&[spend.clone(), spend], &[(1, vec![3; 30])]).raw;
            let at = at.index(raw.len());
            raw[at] = to;
            if let Ok(parts) = Parts::parse(&raw) {
                prop_assert!(parts.inputs.iter().all(|i| i.script.end <= raw.len()));
            }
        }
    }
}
