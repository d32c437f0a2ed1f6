//! Dogecoin: main network, testnet, regtest. Scrypt proof of work, merged mining (AuxPoW).

use std::sync::LazyLock;

use super::auxpow::{AuxPow, VERSION_FLAG};
use super::litecoin::scrypt;
use super::retarget::scale;
use super::{Ancestor, Ancestors, Chain, Params, check_target, genesis};
use crate::wire::Reader;
use crate::{Error, Hash, Header};

const ROOT: &str = "5b2a3f53f605d62c53e62932dac6925e3d74afa5a4b459745c36d42d0ed26a69";
/// Number of the chain in merged mining, in the upper half of versions.
const CHAIN_ID: u32 = 0x62;
/// First block whose target follows each block before it.
const DIGISHIELD: u32 = 145_000;
/// From the block after this the test network allows the easiest target after two minutes.
const MIN_DIFFICULTY: u32 = 157_500;

/// A network of Dogecoin.
#[derive(Debug)]
pub(super) struct Dogecoin {
    params: Params,
    min_difficulty: bool,
    fixed: bool,
    strict_chain_id: bool,
}

fn params() -> Params {
    Params {
        name: "dogecoin",
        ticker: "DOGE",
        magic: [0xc0, 0xc0, 0xc0, 0xc0],
        rpc_port: 22555,
        p2p_port: 22556,
        subdir: "",
        datadir: ".dogecoin",
        genesis: genesis(ROOT, 1, 1_386_325_540, 0x1e0f_fff0, 99_943),
        pow_limit: 0x1e0f_ffff,
        max_money: 10_000_000_000 * 100_000_000,
        coinbase_maturity: 240,
        p2pkh: 0x1e,
        p2sh: &[0x16],
        hrp: None,
    }
}

pub(super) static MAIN: LazyLock<Dogecoin> = LazyLock::new(|| Dogecoin {
    params: params(),
    min_difficulty: false,
    fixed: false,
    strict_chain_id: true,
});

pub(super) static TESTNET: LazyLock<Dogecoin> = LazyLock::new(|| Dogecoin {
    params: Params {
        name: "dogecoin-testnet",
        ticker: "tDOGE",
        magic: [0xfc, 0xc1, 0xb7, 0xdc],
        rpc_port: 44555,
        p2p_port: 44556,
        subdir: "testnet3",
        genesis: genesis(ROOT, 1, 1_391_503_289, 0x1e0f_fff0, 997_879),
        p2pkh: 0x71,
        p2sh: &[0xc4],
        ..params()
    },
    min_difficulty: true,
    fixed: false,
    strict_chain_id: false,
});

pub(super) static REGTEST: LazyLock<Dogecoin> = LazyLock::new(|| Dogecoin {
    params: Params {
        name: "dogecoin-regtest",
        ticker: "tDOGE",
        magic: [0xfa, 0xbf, 0xb5, 0xda],
        rpc_port: 18332,
        p2p_port: 18444,
        subdir: "regtest",
        genesis: genesis(ROOT, 1, 1_296_688_602, 0x207f_ffff, 2),
        pow_limit: 0x207f_ffff,
        coinbase_maturity: 60,
        p2pkh: 0x6f,
        p2sh: &[0xc4],
        ..params()
    },
    min_difficulty: true,
    fixed: true,
    strict_chain_id: true,
});

impl Chain for Dogecoin {
    fn params(&self) -> &Params {
        &self.params
    }

    fn pow_hash(&self, header: &[u8; 80]) -> Hash {
        scrypt(header)
    }

    fn read_auxpow(
        &self,
        header: &Header,
        r: &mut Reader<'_>,
    ) -> Result<Option<Box<AuxPow>>, Error> {
        if header.version & VERSION_FLAG == 0 {
            Ok(None)
        } else {
            AuxPow::read(r).map(Some)
        }
    }

    fn check_pow(&self, header: &Header, auxpow: Option<&AuxPow>) -> Result<(), Error> {
        let refuse = |why| Error::ProofOfWork {
            header: header.hash(),
            bits: header.bits,
            why,
        };
        // Versions 1 and 2 of the time before merged mining have no chain number.
        let legacy = matches!(header.version, 1 | 2);
        let chain_id = (header.version as u32) >> 16;
        if self.strict_chain_id && !legacy && chain_id != CHAIN_ID {
            return Err(refuse("the version has not this chain's number"));
        }
        match auxpow {
            Some(_) if header.version & VERSION_FLAG == 0 => Err(refuse(
                "a proof of merged mining is there, but the version does not say so",
            )),
            Some(aux) => {
                aux.check(&header.hash(), chain_id, self.strict_chain_id)
                    .map_err(refuse)?;
                check_target(&self.params, header, || scrypt(&aux.parent.to_bytes()))
            }
            None if header.version & VERSION_FLAG != 0 => Err(refuse(
                "the version promises a proof of merged mining, there is none",
            )),
            None => check_target(&self.params, header, || scrypt(&header.to_bytes())),
        }
    }

    fn next_bits(&self, ancestors: &dyn Ancestors, prev: &Ancestor, time: u32) -> Option<u32> {
        let limit = self.params.pow_limit;
        if self.fixed {
            return Some(prev.header.bits);
        }
        if self.min_difficulty {
            // The test network changed its exceptions several times before this height.
            if prev.height < MIN_DIFFICULTY {
                return None;
            }
            if u64::from(time) > u64::from(prev.header.time) + 120 {
                return Some(limit);
            }
        }
        let height = prev.height + 1;
        let digishield = prev.height >= DIGISHIELD;
        let (interval, whole) = if digishield { (1, 60) } else { (240, 4 * 3600) };
        if !height.is_multiple_of(interval) {
            return Some(prev.header.bits);
        }
        let back = if height == interval {
            interval - 1
        } else {
            interval
        };
        let first = ancestors.ancestor(prev, prev.height.checked_sub(back)?)?;
        let span = i64::from(prev.header.time) - i64::from(first.header.time);
        let span = if digishield {
            (whole + (span - whole) / 8).clamp(whole - whole / 4, whole + whole / 2)
        } else if height > 10_000 {
            span.clamp(whole / 4, whole * 4)
        } else if height > 5_000 {
            span.clamp(whole / 8, whole * 4)
        } else {
            span.clamp(whole / 16, whole * 4)
        };
        Some(scale(prev.header.bits, span, whole, limit, false))
    }
}
