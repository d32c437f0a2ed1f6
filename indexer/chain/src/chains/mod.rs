//! What the chains differ in, behind one trait; each chain in one file.

mod auxpow;
mod bitcoin;
mod dogecoin;
mod litecoin;
mod retarget;

pub use auxpow::AuxPow;
pub use retarget::{Ancestor, Ancestors};

use std::fmt::Debug;

use crate::hash::{Hash, hex};
use crate::pow::Target;
use crate::wire::Reader;
use crate::{Error, Header};

/// The numbers of a network.
#[derive(Debug, Clone)]
pub struct Params {
    /// Name in configurations: `bitcoin`, `litecoin-testnet`, ...
    pub name: &'static str,
    /// What the chain's unit is called.
    pub ticker: &'static str,
    /// The four bytes records in block files and P2P messages begin with.
    pub magic: [u8; 4],
    /// Default port of the node's RPC and REST.
    pub rpc_port: u16,
    /// Default port of the P2P network.
    pub p2p_port: u16,
    /// Folder of the network below the node's data directory; empty for the main network.
    pub subdir: &'static str,
    /// The node's data directory below the home directory.
    pub datadir: &'static str,
    /// The genesis block's header.
    pub genesis: Header,
    /// Easiest target allowed, compact.
    pub pow_limit: u32,
    /// Greatest value an output may have, smallest units.
    pub max_money: u64,
    /// Blocks until a coinbase can be spent.
    pub coinbase_maturity: u32,
    /// Version byte of P2PKH addresses.
    pub p2pkh: u8,
    /// Version bytes of P2SH addresses, the one to be written first.
    pub p2sh: &'static [u8],
    /// Human-readable part of segwit addresses, where the chain has them.
    pub hrp: Option<&'static str>,
}

impl Params {
    /// The genesis block's hash.
    pub fn genesis_hash(&self) -> Hash {
        self.genesis.hash()
    }
}

/// A network of a chain.
pub trait Chain: Debug + Send + Sync + 'static {
    /// Its numbers.
    fn params(&self) -> &Params;

    /// The hash that is compared with the target.
    fn pow_hash(&self, header: &[u8; 80]) -> Hash;

    /// Whether transactions may have the MWEB flag and blocks an extension block.
    fn has_mweb(&self) -> bool {
        false
    }

    /// Reads what follows the 80 bytes of a header, in blocks and in lists of headers.
    fn read_auxpow(
        &self,
        _header: &Header,
        _r: &mut Reader<'_>,
    ) -> Result<Option<Box<AuxPow>>, Error> {
        Ok(None)
    }

    /// Checks that the header's target is allowed and its work reaches it.
    fn check_pow(&self, header: &Header, auxpow: Option<&AuxPow>) -> Result<(), Error> {
        debug_assert!(
            auxpow.is_none(),
            "a chain with AuxPoW has a check of its own"
        );
        check_target(self.params(), header, || self.pow_hash(&header.to_bytes()))
    }

    /// The compact target the rules give for the block after `prev` with time `time`; `None`
    /// where that cannot be told (an ancestor it depends on is not known).
    fn next_bits(&self, ancestors: &dyn Ancestors, prev: &Ancestor, time: u32) -> Option<u32>;

    /// Whether this block's coinbase was overwritten by a later one with the same id (BIP30), so
    /// that its outputs never count as coins.
    fn bip30_unspendable(&self, _height: u32, _block: &Hash) -> bool {
        false
    }

    /// Whether this block's coinbase overwrites an earlier one with the same id (BIP30).
    fn bip30_repeat(&self, _height: u32, _block: &Hash) -> bool {
        false
    }

    /// Reads one header of a list, with what the chain adds to it.
    fn read_header(&self, r: &mut Reader<'_>) -> Result<(Header, Option<Box<AuxPow>>), Error> {
        let header = Header::from_bytes(&r.array("header")?);
        let auxpow = self.read_auxpow(&header, r)?;
        Ok((header, auxpow))
    }
}

/// All networks, the best known first.
pub fn all() -> [&'static dyn Chain; 11] {
    [
        &*bitcoin::MAIN,
        &*bitcoin::TESTNET3,
        &*bitcoin::TESTNET4,
        &*bitcoin::SIGNET,
        &*bitcoin::REGTEST,
        &*litecoin::MAIN,
        &*litecoin::TESTNET,
        &*litecoin::REGTEST,
        &*dogecoin::MAIN,
        &*dogecoin::TESTNET,
        &*dogecoin::REGTEST,
    ]
}

/// The network with this name.
pub fn by_name(name: &str) -> Option<&'static dyn Chain> {
    all().into_iter().find(|chain| chain.params().name == name)
}

/// Checks a header's target against the limit and a proof of work, computed only if needed,
/// against the target.
fn check_target(
    params: &Params,
    header: &Header,
    work: impl FnOnce() -> Hash,
) -> Result<(), Error> {
    let refuse = |why| {
        Err(Error::ProofOfWork {
            header: header.hash(),
            bits: header.bits,
            why,
        })
    };
    let Some(target) = Target::from_compact(header.bits) else {
        return refuse("the target is zero, negative or too great for 256 bits");
    };
    if Target::from_compact(params.pow_limit).is_some_and(|limit| target > limit) {
        return refuse("the target is easier than the network allows");
    }
    if Target::from_hash(&work()) > target {
        return refuse("the proof of work does not reach the target");
    }
    Ok(())
}

/// A genesis header from its fields; the Merkle root as shown, reversed.
fn genesis(root: &str, version: i32, time: u32, bits: u32, nonce: u32) -> Header {
    let merkle_root = crate::hash::from_hex(root).expect("64 digits in this crate");
    Header {
        version,
        prev: crate::hash::ZERO,
        merkle_root,
        time,
        bits,
        nonce,
    }
}

/// Whether a block is one of a list of (height, hash as shown).
fn is_one_of(list: &[(u32, &str)], height: u32, block: &Hash) -> bool {
    list.iter()
        .any(|&(h, shown)| h == height && hex(block) == shown)
}
