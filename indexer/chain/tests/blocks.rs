//! Blocks of every chain: parsed, checked, compared with rust-bitcoin where it knows the chain.

mod common;

use std::fs;

use bitcoin::consensus::deserialize;
use bitcoin::hashes::Hash as _;
use common::{blocks, chain, clear, data, json, unhex};
use proptest::prelude::*;
use weft_chain::headers::HeaderTree;
use weft_chain::{Block, Error, Header, address, hash};

/// Every fact of a block by rust-bitcoin's reading.
fn compare(block: &Block) {
    let theirs: bitcoin::Block = deserialize(block.raw()).expect("rust-bitcoin reads it");
    assert_eq!(block.hash(), theirs.block_hash().as_byte_array());
    assert_eq!(block.len(), theirs.txdata.len());
    for (tx, other) in block.txs().zip(&theirs.txdata) {
        assert_eq!(tx.txid(), other.compute_txid().as_byte_array());
        assert_eq!(&tx.wtxid(), other.compute_wtxid().as_byte_array());
        assert_eq!(tx.weight() as u64, other.weight().to_wu());
        assert_eq!(tx.raw(), bitcoin::consensus::serialize(other));
        assert_eq!(tx.is_coinbase(), other.is_coinbase());
        if !tx.is_coinbase() {
            assert_eq!(tx.inputs().len(), other.input.len());
        }
        for (input, o) in tx.inputs().iter().zip(&other.input) {
            assert_eq!(&input.prevout.txid, o.previous_output.txid.as_byte_array());
            assert_eq!(input.prevout.vout, o.previous_output.vout);
            assert_eq!(input.sequence, o.sequence.0);
            assert_eq!(tx.input_script(input), o.script_sig.as_bytes());
        }
        assert_eq!(tx.outputs().len(), other.output.len());
        for (output, o) in tx.outputs().zip(&other.output) {
            assert_eq!(output.value, o.value.to_sat());
            assert_eq!(output.script, o.script_pubkey.as_bytes());
            let theirs =
                bitcoin::Address::from_script(&o.script_pubkey, bitcoin::Network::Bitcoin).ok();
            let ours = address::from_script(chain("bitcoin").params(), output.script);
            assert_eq!(ours, theirs.map(|a| a.to_string()));
        }
    }
    assert_eq!(block.weight() as u64, theirs.weight().to_wu());
}

#[test]
fn single_mainnet_blocks() {
    let Some(folder) = data("single_mainnet_blocks", "blocks") else {
        return;
    };
    let mut seen = 0;
    for entry in fs::read_dir(folder).expect("readable") {
        let path = entry.expect("readable").path();
        let name = path
            .file_name()
            .expect("a file")
            .to_string_lossy()
            .into_owned();
        if name.ends_with("-undo.raw") {
            continue;
        }
        let block = Block::parse_checked(chain("bitcoin"), fs::read(&path).expect("readable"))
            .expect(&name);
        block.check_witness().expect(&name);
        compare(&block);
        seen += 1;
    }
    assert_eq!(seen, 5);
}

/// bcoin's undo data is the spent outputs one after another: value u64, script.
#[test]
fn inputs_agree_with_undo_data() {
    let Some(folder) = data("inputs_agree_with_undo_data", "blocks") else {
        return;
    };
    for (name, subsidy) in [
        ("block300025", 25_0000_0000),
        ("block928816", 3_1250_0000),
        ("block928849", 3_1250_0000),
    ] {
        let raw = fs::read(folder.join(format!("{name}.raw"))).expect("readable");
        let block = Block::parse_checked(chain("bitcoin"), raw).expect(name);
        let undo = fs::read(folder.join(format!("{name}-undo.raw"))).expect("readable");
        let mut r = weft_chain::wire::Reader::new(&undo);
        let (mut spent, mut coins) = (0, 0);
        while r.remaining() > 0 {
            spent += r.u64("value").expect(name);
            r.bytes("script").expect(name);
            coins += 1;
        }
        assert_eq!(coins, block.input_count());
        let made: u64 = block
            .txs()
            .flat_map(|tx| tx.outputs().map(|o| o.value))
            .sum();
        assert_eq!(
            made,
            spent + subsidy,
            "{name}: the miner takes subsidy and fees"
        );
    }
}

#[test]
fn blocks_of_other_chains() {
    let Some(folder) = data("blocks_of_other_chains", "altcoins") else {
        return;
    };
    for (file, network) in [
        ("litecoin_mainnet_900000", "litecoin"),
        ("litecoin_mainnet_2265985", "litecoin"),
        ("dogecoin_mainnet_371337", "dogecoin"),
        ("bitcoin_signet_31500", "bitcoin-signet"),
        ("bitcoin_testnet4_40000", "bitcoin-testnet4"),
    ] {
        let want = json(&folder.join(format!("{file}.json")));
        let raw = unhex(want["block"].as_str().expect("hex"));
        let block = Block::parse_checked(chain(network), raw).expect(file);
        assert_eq!(
            hash::hex(block.hash()),
            want["hash"].as_str().expect("hash"),
            "{file}"
        );
        assert_eq!(
            hash::hex(&block.header().prev),
            want["previousblockhash"].as_str().expect("hash")
        );
        let txids: Vec<String> = block.txids().iter().map(hash::hex).collect();
        let listed: Vec<&str> = want["tx"]
            .as_array()
            .expect("list")
            .iter()
            .map(|t| t.as_str().expect("id"))
            .collect();
        assert_eq!(txids, listed, "{file}");
        block.check_witness().expect(file);
        if network.starts_with("bitcoin") {
            compare_ids(&block);
        }
        if file.ends_with("2265985") {
            let hogex = block.txs().next_back().expect("not empty");
            assert!(hogex.is_hogex());
            assert!(!block.extension().is_empty());
            assert_eq!(block.txs().filter(|tx| tx.is_hogex()).count(), 1);
        } else {
            assert!(block.extension().is_empty());
        }
        assert_eq!(block.auxpow().is_some(), network == "dogecoin");
        // One bit of the nonce (of the parent's, with merged mining) and the work is gone.
        let mut raw = block.into_raw();
        let at = if network == "dogecoin" {
            parent_nonce(&raw)
        } else {
            76
        };
        raw[at] ^= 1;
        assert!(
            matches!(
                Block::parse_checked(chain(network), raw),
                Err(Error::ProofOfWork { .. })
            ),
            "{file} without work"
        );
    }
}

/// Offset of the parent header's nonce: it stands before the count of transactions.
fn parent_nonce(raw: &[u8]) -> usize {
    let block = Block::parse(chain("dogecoin"), raw.to_vec()).expect("parsed before");
    block.tx(0).expect("coinbase").position().start - 1 - 4
}

fn compare_ids(block: &Block) {
    let theirs: bitcoin::Block = deserialize(block.raw()).expect("rust-bitcoin reads it");
    let ids: Vec<_> = theirs
        .txdata
        .iter()
        .map(|tx| tx.compute_txid().to_byte_array())
        .collect();
    assert_eq!(block.txids(), ids);
}

/// The first 4313 blocks link, meet the difficulty rules and are the chain of most work.
#[test]
fn first_blocks_of_mainnet() {
    for folder in ["bitcoin-mainnet-0-4312", "core-mainnet-4312"] {
        let Some(folder) = data("first_blocks_of_mainnet", folder) else {
            continue;
        };
        let all = blocks(chain("bitcoin"), &clear(&folder, "blk00000.dat"));
        assert_eq!(all.len(), 4313);
        let mut tree = HeaderTree::new(chain("bitcoin"));
        for block in &all {
            compare(block);
        }
        insert_in_any_order(&mut tree, all.iter().map(|b| *b.header()).collect());
        assert_eq!(tree.tip().height, 4312);
        assert_eq!(tree.tip().work, 4313 * 0x1_0001_0001);
    }
}

#[test]
fn first_blocks_of_testnet3() {
    let Some(folder) = data("first_blocks_of_testnet3", "bitcoin-testnet3-0-400") else {
        return;
    };
    let all = blocks(
        chain("bitcoin-testnet3"),
        &clear(&folder, "blk-testnet.dat"),
    );
    assert!(all.len() >= 400, "{}", all.len());
    let mut tree = HeaderTree::new(chain("bitcoin-testnet3"));
    insert_in_any_order(&mut tree, all.iter().map(|b| *b.header()).collect());
    assert!(tree.tip().height >= 399, "{}", tree.tip().height);
    all.iter().for_each(compare_ids);
}

fn insert_in_any_order(tree: &mut HeaderTree, mut waiting: Vec<Header>) {
    loop {
        let before = waiting.len();
        waiting.retain(|header| match tree.insert(header, None) {
            Ok(_) => false,
            Err(Error::Orphan { .. }) => true,
            Err(e) => panic!("{e}"),
        });
        if waiting.len() == before {
            break;
        }
    }
    assert_eq!(waiting, []);
}

#[test]
fn genesis_headers_have_their_hashes() {
    for (network, want) in [
        (
            "bitcoin",
            "000000000019d6689c085ae165831e934ff763ae46a2a6c172b3f1b60a8ce26f",
        ),
        (
            "bitcoin-testnet3",
            "000000000933ea01ad0ee984209779baaec3ced90fa3f408719526f8d77f4943",
        ),
        (
            "bitcoin-testnet4",
            "00000000da84f2bafbbc53dee25a72ae507ff4914b867c565be350b0da8bf043",
        ),
        (
            "bitcoin-signet",
            "00000008819873e925422c1ff0f99f7cc9bbb232af63a077a480a3633bee1ef6",
        ),
        (
            "bitcoin-regtest",
            "0f9188f13cb7b2c71f2a335e3a4fc328bf5beb436012afca590b1a11466e2206",
        ),
        (
            "litecoin",
            "12a765e31ffd4059bada1e25190f6e98c99d9714d334efa41a195a7e7e04bfe2",
        ),
        (
            "litecoin-testnet",
            "4966625a4b2851d9fdee139e56211a0d88575f59ed816ff5e6a63deb4e3e29a0",
        ),
        (
            "litecoin-regtest",
            "530827f38f93b43ed12af0b3ad25a288dc02ed74d6d7857862df51fc56c416f9",
        ),
        (
            "dogecoin",
            "1a91e3dace36e2be3bf030a65679fe821aa1d6ef92e7c9902eb318182c355691",
        ),
        (
            "dogecoin-testnet",
            "bb0a78264637406b6360aad926284d544d7049f45189db5664f3c4d07350559e",
        ),
        (
            "dogecoin-regtest",
            "3d2160a3b5dc4a9d62e7e66a295f70313ac808440ef7400d6c0772171ce973a5",
        ),
    ] {
        assert_eq!(
            hash::hex(&chain(network).params().genesis_hash()),
            want,
            "{network}"
        );
        let genesis = chain(network).params().genesis;
        chain(network).check_pow(&genesis, None).expect(network);
    }
}

/// CVE-2012-2459: a block with its last transactions repeated keeps its Merkle root.
#[test]
fn repeated_transactions_are_refused() {
    let Some(folder) = data("repeated_transactions_are_refused", "altcoins") else {
        return;
    };
    let want = json(&folder.join("litecoin_mainnet_900000.json"));
    let raw = unhex(want["block"].as_str().expect("hex"));
    let block = Block::parse(chain("litecoin"), raw.clone()).expect("valid");
    let n = block.len();
    // The leaves below the last node of the first level of odd length.
    let tail = n & n.wrapping_neg();
    assert!(
        tail < n && n + tail < 0xfd,
        "{n} transactions are no case for this test"
    );
    let start = block.tx(n - tail).expect("in range").position().start;
    let mut twice = raw.clone();
    twice[80] = (n + tail) as u8;
    twice.extend_from_slice(&raw[start..]);
    let twice = Block::parse(chain("litecoin"), twice).expect("well-formed");
    assert_eq!(
        twice.check_merkle(),
        Err(Error::Mutated {
            block: *block.hash()
        })
    );
    block.check_merkle().expect("the honest block");
}

/// Blocks for mutation, small enough to be parsed thousands of times.
fn samples() -> Vec<(&'static str, Vec<u8>)> {
    let Some(folder) = data("mutated_blocks_are_answered", "altcoins") else {
        return vec![];
    };
    [
        "litecoin_mainnet_900000",
        "dogecoin_mainnet_371337",
        "bitcoin_signet_31500",
        "bitcoin_testnet4_40000",
        "litecoin_mainnet_2265985",
    ]
    .into_iter()
    .zip([
        "litecoin",
        "dogecoin",
        "bitcoin-signet",
        "bitcoin-testnet4",
        "litecoin",
    ])
    .map(|(file, network)| {
        let want = json(&folder.join(format!("{file}.json")));
        (network, unhex(want["block"].as_str().expect("hex")))
    })
    .collect()
}

/// No mutation of a block makes the parser panic or accept another block as the same.
#[test]
fn mutated_blocks_are_answered() {
    let samples = samples();
    if samples.is_empty() {
        return;
    }
    let edit = (any::<prop::sample::Index>(), any::<u8>(), 0u8..5);
    let strategy = (
        any::<prop::sample::Index>(),
        prop::collection::vec(edit, 1..4),
    );
    proptest!(ProptestConfig { cases: 3000, ..ProptestConfig::default() }, |((which, edits) in strategy)| {
        let (network, original) = &samples[which.index(samples.len())];
        let mut raw = original.clone();
        for (at, byte, how) in edits {
            let at = at.index(raw.len().max(1));
            match how {
                0 => if let Some(b) = raw.get_mut(at) { *b = byte },
                1 => if let Some(b) = raw.get_mut(at) { *b ^= 1 << (byte % 8) },
                2 => raw.insert(at, byte),
                3 => raw.truncate(at),
                // Counts and lengths that claim much.
                _ => if let Some(b) = raw.get_mut(at..at + 4) { b.copy_from_slice(&[0xfe, 0xff, 0xff, byte]) },
            }
        }
        for network in [*network, "bitcoin", "litecoin", "dogecoin"] {
            if let Ok(block) = Block::parse(chain(network), raw.clone()) {
                let _ = block.check_witness();
                if raw != *original && block.check_merkle().is_ok() {
                    // What the Merkle root does not cover: the header's other fields, the work
                    // of another chain, witnesses, the extension block.
                    let same: Block = Block::parse(chain(network), original.clone()).expect("the original");
                    prop_assert!(block.header().merkle_root == same.header().merkle_root);
                    prop_assert_eq!(block.txids(), same.txids());
                }
            }
        }
    });
}
