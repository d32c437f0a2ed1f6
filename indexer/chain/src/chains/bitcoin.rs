//! Bitcoin: main network, testnet3, testnet4, signet, regtest.
//!
//! The signatures of signet's blocks (BIP325) are not checked, only their little work.

use std::sync::LazyLock;

use super::retarget::Periodic;
use super::{Ancestor, Ancestors, Chain, Params, genesis, is_one_of};
use crate::Hash;
use crate::hash::sha256d;

const ROOT: &str = "4a5e1e4baab89f3a32518a88c31bc87f618f76673e2cc77ab2127b7afdeda33b";

/// A network of Bitcoin.
#[derive(Debug)]
pub(super) struct Bitcoin {
    params: Params,
    rules: Periodic,
}

const RULES: Periodic = Periodic {
    interval: 2016,
    timespan: 14 * 24 * 3600,
    spacing: 600,
    min_difficulty: false,
    fixed: false,
    bip94: false,
    whole_period: false,
    limit: 0x1d00_ffff,
};

fn params() -> Params {
    Params {
        name: "bitcoin",
        ticker: "BTC",
        magic: [0xf9, 0xbe, 0xb4, 0xd9],
        rpc_port: 8332,
        p2p_port: 8333,
        subdir: "",
        datadir: ".bitcoin",
        genesis: genesis(ROOT, 1, 1_231_006_505, 0x1d00_ffff, 2_083_236_893),
        pow_limit: 0x1d00_ffff,
        max_money: 21_000_000 * 100_000_000,
        coinbase_maturity: 100,
        p2pkh: 0,
        p2sh: &[5],
        hrp: Some("bc"),
    }
}

fn test_params() -> Params {
    Params {
        ticker: "tBTC",
        p2pkh: 111,
        p2sh: &[196],
        hrp: Some("tb"),
        ..params()
    }
}

pub(super) static MAIN: LazyLock<Bitcoin> = LazyLock::new(|| Bitcoin {
    params: params(),
    rules: RULES,
});

pub(super) static TESTNET3: LazyLock<Bitcoin> = LazyLock::new(|| Bitcoin {
    params: Params {
        name: "bitcoin-testnet3",
        magic: [0x0b, 0x11, 0x09, 0x07],
        rpc_port: 18332,
        p2p_port: 18333,
        subdir: "testnet3",
        genesis: genesis(ROOT, 1, 1_296_688_602, 0x1d00_ffff, 414_098_458),
        ..test_params()
    },
    rules: Periodic {
        min_difficulty: true,
        ..RULES
    },
});

pub(super) static TESTNET4: LazyLock<Bitcoin> = LazyLock::new(|| Bitcoin {
    params: Params {
        name: "bitcoin-testnet4",
        magic: [0x1c, 0x16, 0x3f, 0x28],
        rpc_port: 48332,
        p2p_port: 48333,
        subdir: "testnet4",
        genesis: genesis(
            "7aa0a7ae1e223414cb807e40cd57e667b718e42aaf9306db9102fe28912b7b4e",
            1,
            1_714_777_860,
            0x1d00_ffff,
            393_743_547,
        ),
        ..test_params()
    },
    rules: Periodic {
        min_difficulty: true,
        bip94: true,
        ..RULES
    },
});

pub(super) static SIGNET: LazyLock<Bitcoin> = LazyLock::new(|| Bitcoin {
    params: Params {
        name: "bitcoin-signet",
        magic: [0x0a, 0x03, 0xcf, 0x40],
        rpc_port: 38332,
        p2p_port: 38333,
        subdir: "signet",
        genesis: genesis(ROOT, 1, 1_598_918_400, 0x1e03_77ae, 52_613_770),
        pow_limit: 0x1e03_77ae,
        ..test_params()
    },
    rules: Periodic {
        limit: 0x1e03_77ae,
        ..RULES
    },
});

pub(super) static REGTEST: LazyLock<Bitcoin> = LazyLock::new(|| Bitcoin {
    params: Params {
        name: "bitcoin-regtest",
        magic: [0xfa, 0xbf, 0xb5, 0xda],
        rpc_port: 18443,
        p2p_port: 18444,
        subdir: "regtest",
        genesis: genesis(ROOT, 1, 1_296_688_602, 0x207f_ffff, 2),
        pow_limit: 0x207f_ffff,
        hrp: Some("bcrt"),
        ..test_params()
    },
    rules: Periodic {
        min_difficulty: true,
        fixed: true,
        limit: 0x207f_ffff,
        ..RULES
    },
});

impl Chain for Bitcoin {
    fn params(&self) -> &Params {
        &self.params
    }

    fn pow_hash(&self, header: &[u8; 80]) -> Hash {
        sha256d(header)
    }

    fn next_bits(&self, ancestors: &dyn Ancestors, prev: &Ancestor, time: u32) -> Option<u32> {
        self.rules.next_bits(ancestors, prev, time)
    }

    fn bip30_unspendable(&self, height: u32, block: &Hash) -> bool {
        const LIST: [(u32, &str); 2] = [
            (
                91_722,
                "00000000000271a2dc26e7667f8419f2e15416dc6955e5a6c6cdf3f2574dd08e",
            ),
            (
                91_812,
                "00000000000af0aed4792b1acee3d966af36cf5def14935db8de83d6f9306f2f",
            ),
        ];
        is_one_of(&LIST, height, block)
    }

    fn bip30_repeat(&self, height: u32, block: &Hash) -> bool {
        const LIST: [(u32, &str); 2] = [
            (
                91_842,
                "00000000000a4d0a398161ffc163c503763b1f4360639393e0e4c8e300e0caec",
            ),
            (
                91_880,
                "00000000000743f190a18c5577a3c2d2a1f610ae9601ac046a38084ccb7cd721",
            ),
        ];
        is_one_of(&LIST, height, block)
    }
}
