//! The first 4313 blocks of Bitcoin, against what Bitcoin Core says about them.

mod common;

use common::{blocks, chain, data, load, open};
use serde_json::Value;
use weft_chain::Block;
use weft_chain::hash::hex;
use weft_chain::setinfo::Kind;
use weft_store::Durability;

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

/// Index the blocks of one folder and compare everything with Core's words on them.
fn check(test: &str, set: &str) {
    let (Some(folder), Some(core)) = (data(test, set), data(test, "core-mainnet-4312")) else {
        return;
    };
    let info = json(&std::fs::read_to_string(core.join("gettxoutsetinfo.json")).unwrap());
    let chain = chain("bitcoin");
    let mut blocks = blocks(chain, &folder);
    // Core's file is in order of download.
    let by_prev: std::collections::HashMap<_, _> =
        blocks.drain(..).map(|b| (b.header().prev, b)).collect();
    let mut ordered: Vec<&Block> = Vec::new();
    let mut last = weft_chain::hash::ZERO;
    while let Some(block) = by_prev.get(&last) {
        last = *block.hash();
        ordered.push(block);
    }
    assert_eq!(ordered.len(), 4313);

    let dir = tempfile::tempdir().unwrap();
    let mut store = open(chain, dir.path());
    load(&mut store, chain, &ordered[..4000], 1000, Durability::Files);
    load(&mut store, chain, &ordered[4000..], 1, Durability::Log);
    let reader = store.reader();

    let heights = info["muhash_by_height"].as_array().unwrap();
    assert!(heights.len() > 5);
    for want in heights {
        let height = want["height"].as_u64().unwrap() as u32;
        let row = reader.header(height).unwrap().unwrap();
        assert_eq!(hex(&row.hash), want["bestblock"], "height {height}");
        assert_eq!(hex(&row.muhash.unwrap()), want["muhash"], "height {height}");
        assert_eq!(
            row.totals.coins,
            want["txouts"].as_u64().unwrap(),
            "height {height}"
        );
        assert_eq!(
            row.totals.bogosize,
            want["bogosize"].as_u64().unwrap(),
            "height {height}"
        );
        assert_eq!(
            row.totals.amount as f64 / 1e8,
            want["total_amount"].as_f64().unwrap(),
            "height {height}"
        );
    }

    let verified = reader.verify(2, |_| ()).unwrap();
    assert_eq!((verified.height, verified.coins), (4312, 4149));
    assert_eq!(
        hex(&verified.muhash),
        "8ddda2747fb03d2bf57e08a23d4cab90f9e062c28bf5822760edc5238128a7e5"
    );

    let want = &info["hash_serialized_3_at_4312"];
    for memory in [0, 1 << 30] {
        let (hash, counts) = reader.set_hash(Kind::V3, memory).unwrap();
        assert_eq!(hex(&hash), want["hash_serialized_3"]);
        assert_eq!(counts.coins, want["txouts"].as_u64().unwrap());
        assert_eq!(counts.transactions, want["transactions"].as_u64().unwrap());
        assert_eq!(counts.bogosize, want["bogosize"].as_u64().unwrap());
    }

    let mut dump = Vec::new();
    let (base, coins) = reader
        .export(&mut dump, chain.params().magic, 1 << 20)
        .unwrap();
    assert_eq!(
        (hex(&base), coins),
        (want["bestblock"].as_str().unwrap().to_owned(), 4149)
    );
    let theirs = std::fs::read(core.join("utxo-4312.dumptxoutset")).unwrap();
    assert!(
        dump == theirs,
        "the dump differs from Core's at byte {:?}",
        dump.iter().zip(&theirs).position(|(a, b)| a != b)
    );
}

#[test]
fn plain_block_file() {
    check("plain_block_file", "bitcoin-mainnet-0-4312");
}

#[test]
fn obfuscated_block_file() {
    check("obfuscated_block_file", "core-mainnet-4312");
}
