//! Merged mining: a block of another chain carries the proof of work (Namecoin's format, as used
//! by Dogecoin).
//!
//! After the 80 bytes of a header with version bit 8: the parent's coinbase transaction, the
//! parent block's hash (not checked by anyone), CompactSize + hashes of the coinbase's Merkle
//! branch, its index i32, the same two for the branch of chains, the parent's header (80).

use crate::hash::sha256d;
use crate::wire::Reader;
use crate::{Error, Hash, Header, merkle};

/// Version bit of headers that have this.
pub(super) const VERSION_FLAG: i32 = 0x100;
/// What announces the root of the chains in the parent's coinbase script.
const MARK: [u8; 4] = [0xfa, 0xbe, b'm', b'm'];
/// Longest branches accepted: the nodes' bound for chains, and what a block can hold.
const MAX_BRANCH: usize = 30;

/// Proof that a parent block commits to ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuxPow {
    coinbase_txid: Hash,
    coinbase_script: Vec<u8>,
    coinbase_branch: Vec<Hash>,
    coinbase_index: u32,
    chain_branch: Vec<Hash>,
    chain_index: u32,
    /// Header of the parent block, whose proof of work counts.
    pub parent: Header,
}

impl AuxPow {
    /// Reads the proof.
    pub(super) fn read(r: &mut Reader<'_>) -> Result<Box<Self>, Error> {
        let (coinbase_txid, coinbase_script) = read_coinbase(r)?;
        r.hash("hash of the parent block")?;
        let (coinbase_branch, coinbase_index) = read_branch(r)?;
        let (chain_branch, chain_index) = read_branch(r)?;
        let parent = Header::from_bytes(&r.array("parent header")?);
        Ok(Box::new(Self {
            coinbase_txid,
            coinbase_script,
            coinbase_branch,
            coinbase_index,
            chain_branch,
            chain_index,
            parent,
        }))
    }

    /// Checks that the parent commits to the block with hash `block` in the place of `chain_id`.
    ///
    /// Errs with the rule that is broken.
    pub(super) fn check(
        &self,
        block: &Hash,
        chain_id: u32,
        strict: bool,
    ) -> Result<(), &'static str> {
        if self.coinbase_index != 0 {
            return Err("the parent's transaction is not its coinbase");
        }
        if strict && (self.parent.version as u32) >> 16 == chain_id {
            return Err("the parent block is of this same chain");
        }
        if merkle::fold(
            self.coinbase_txid,
            &self.coinbase_branch,
            self.coinbase_index,
        ) != self.parent.merkle_root
        {
            return Err("the parent's coinbase is not under the parent's Merkle root");
        }
        let mut root = merkle::fold(*block, &self.chain_branch, self.chain_index);
        root.reverse();
        let script = &self.coinbase_script;
        let find = |what: &[u8], from: usize| {
            script
                .get(from..)?
                .windows(what.len())
                .position(|w| w == what)
                .map(|at| at + from)
        };
        let Some(at) = find(&root, 0) else {
            return Err("the parent's coinbase does not hold the root of the chains");
        };
        match find(&MARK, 0) {
            Some(mark) if find(&MARK, mark + 1).is_some() => {
                return Err("the parent's coinbase has two marks of merged mining");
            }
            Some(mark) if mark + MARK.len() != at => {
                return Err("the mark of merged mining is not just before the root of the chains");
            }
            None if at > 20 => {
                return Err("the root of the chains is not at the start of the parent's coinbase");
            }
            _ => {}
        }
        let Some(tail) = script
            .get(at + root.len()..)
            .and_then(|t| t.first_chunk::<8>())
        else {
            return Err("size and nonce of the tree of chains are missing");
        };
        let size = u32::from_le_bytes([tail[0], tail[1], tail[2], tail[3]]);
        let nonce = u32::from_le_bytes([tail[4], tail[5], tail[6], tail[7]]);
        let slots = 1u32 << self.chain_branch.len();
        if size != slots {
            return Err("the branch does not have the size of the tree of chains");
        }
        if self.chain_index != slot(nonce, chain_id) % slots {
            return Err("the block is not in its place in the tree of chains");
        }
        Ok(())
    }
}

/// The pseudo-random place of a chain, before it is reduced to the tree's size.
fn slot(nonce: u32, chain_id: u32) -> u32 {
    let step = |n: u32| n.wrapping_mul(1_103_515_245).wrapping_add(12_345);
    step(step(nonce).wrapping_add(chain_id))
}

/// Reads the parent's coinbase: its id and the script of its first input.
///
/// It may be of any chain; only the common form, with or without witnesses, is accepted.
fn read_coinbase(r: &mut Reader<'_>) -> Result<(Hash, Vec<u8>), Error> {
    let start = r.position();
    let raw = r.data();
    r.take(4, "version of the parent's coinbase")?;
    let extended = r.peek() == Some(0);
    if extended {
        r.take(2, "mark of the extended form")?;
    }
    let body = r.position();
    let inputs = r.count(41, "count of inputs")?;
    let mut script: &[u8] = &[];
    for n in 0..inputs {
        r.take(36, "outpoint")?;
        let bytes = r.bytes("input script")?;
        if n == 0 {
            script = bytes;
        }
        r.take(4, "sequence")?;
    }
    for _ in 0..r.count(9, "count of outputs")? {
        r.take(8, "value")?;
        r.bytes("output script")?;
    }
    let body = body..r.position();
    if extended {
        for _ in 0..inputs {
            for _ in 0..r.count(1, "count of witness items")? {
                r.bytes("witness item")?;
            }
        }
    }
    let lock_time = r.take(4, "lock time")?;
    let mut stripped = raw[start..start + 4].to_vec();
    stripped.extend_from_slice(&raw[body]);
    stripped.extend_from_slice(lock_time);
    Ok((sha256d(&stripped), script.to_vec()))
}

fn read_branch(r: &mut Reader<'_>) -> Result<(Vec<Hash>, u32), Error> {
    let at = r.position();
    let count = r.count(32, "Merkle branch")?;
    if count > MAX_BRANCH {
        let (count, max) = (count as u64, MAX_BRANCH as u64);
        return Err(Error::TooMany {
            what: "Merkle branch",
            at,
            count,
            max,
        });
    }
    let branch = (0..count)
        .map(|_| r.hash("hash of a branch"))
        .collect::<Result<_, _>>()?;
    Ok((branch, r.u32("index in a Merkle tree")?))
}
