//! Litecoin: main network, testnet, regtest. Scrypt proof of work, MWEB extension blocks.
//!
//! What stands in an extension block is not read: it moves no coin of the transparent set except
//! through the HogEx transaction, which is under the Merkle root.

use std::sync::LazyLock;

use super::retarget::Periodic;
use super::{Ancestor, Ancestors, Chain, Params, genesis};
use crate::Hash;

const ROOT: &str = "97ddfbbae6be97fd6cdf3e7ca13232a3afff2353e29badfab7f73011edd4ced9";

/// A network of Litecoin.
#[derive(Debug)]
pub(super) struct Litecoin {
    params: Params,
    rules: Periodic,
}

const RULES: Periodic = Periodic {
    interval: 2016,
    timespan: 84 * 3600,
    spacing: 150,
    min_difficulty: false,
    fixed: false,
    bip94: false,
    whole_period: true,
    limit: 0x1e0f_ffff,
};

fn params() -> Params {
    Params {
        name: "litecoin",
        ticker: "LTC",
        magic: [0xfb, 0xc0, 0xb6, 0xdb],
        rpc_port: 9332,
        p2p_port: 9333,
        subdir: "",
        datadir: ".litecoin",
        genesis: genesis(ROOT, 1, 1_317_972_665, 0x1e0f_fff0, 2_084_524_493),
        pow_limit: 0x1e0f_ffff,
        max_money: 84_000_000 * 100_000_000,
        coinbase_maturity: 100,
        p2pkh: 48,
        p2sh: &[50, 5],
        hrp: Some("ltc"),
    }
}

pub(super) static MAIN: LazyLock<Litecoin> = LazyLock::new(|| Litecoin {
    params: params(),
    rules: RULES,
});

pub(super) static TESTNET: LazyLock<Litecoin> = LazyLock::new(|| Litecoin {
    params: Params {
        name: "litecoin-testnet",
        ticker: "tLTC",
        magic: [0xfd, 0xd2, 0xc8, 0xf1],
        rpc_port: 19332,
        p2p_port: 19335,
        subdir: "testnet4",
        genesis: genesis(ROOT, 1, 1_486_949_366, 0x1e0f_fff0, 293_345),
        p2pkh: 111,
        p2sh: &[58, 196],
        hrp: Some("tltc"),
        ..params()
    },
    rules: Periodic {
        min_difficulty: true,
        ..RULES
    },
});

pub(super) static REGTEST: LazyLock<Litecoin> = LazyLock::new(|| Litecoin {
    params: Params {
        name: "litecoin-regtest",
        ticker: "tLTC",
        magic: [0xfa, 0xbf, 0xb5, 0xda],
        rpc_port: 19443,
        p2p_port: 19444,
        subdir: "regtest",
        genesis: genesis(ROOT, 1, 1_296_688_602, 0x207f_ffff, 0),
        pow_limit: 0x207f_ffff,
        p2pkh: 111,
        p2sh: &[58, 196],
        hrp: Some("rltc"),
        ..params()
    },
    rules: Periodic {
        min_difficulty: true,
        fixed: true,
        limit: 0x207f_ffff,
        ..RULES
    },
});

impl Chain for Litecoin {
    fn params(&self) -> &Params {
        &self.params
    }

    fn pow_hash(&self, header: &[u8; 80]) -> Hash {
        scrypt(header)
    }

    fn has_mweb(&self) -> bool {
        true
    }

    fn next_bits(&self, ancestors: &dyn Ancestors, prev: &Ancestor, time: u32) -> Option<u32> {
        self.rules.next_bits(ancestors, prev, time)
    }
}

/// scrypt with N = 1024, r = 1, p = 1, the header being both password and salt.
pub(super) fn scrypt(header: &[u8; 80]) -> Hash {
    static PARAMS: LazyLock<scrypt::Params> =
        LazyLock::new(|| scrypt::Params::new(10, 1, 1, 32).expect("valid by the crate's bounds"));
    let mut out = [0; 32];
    scrypt::scrypt(header, header, &PARAMS, &mut out).expect("32 bytes are a valid length");
    out
}
