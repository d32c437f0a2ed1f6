//! The coin set of real chains, against what Bitcoin Core says of it.

mod common;

use std::collections::BTreeMap;
use std::fs;

use common::{blocks, chain, chain_to, clear, data, json};
use weft_chain::blockfile::{CHECKSUM, FileKind, records};
use weft_chain::coin::code;
use weft_chain::hash::{from_hex, hex};
use weft_chain::setinfo::{Kind, SetHash};
use weft_chain::snapshot::{Preamble, SnapshotReader, SnapshotWriter};
use weft_chain::undo::{self, Spent};
use weft_chain::{Block, Coin, Hash, MuBatch, MuHash3072, OutPoint, is_unspendable};

/// A coin set kept the plain way.
#[derive(Default)]
struct Set {
    coins: BTreeMap<OutPoint, Coin>,
    muhash: MuHash3072,
}

impl Set {
    /// Applies a block and says what it spent.
    fn apply(&mut self, block: &Block, height: u32) -> Spent {
        let mut batch = MuBatch::new();
        let mut all = vec![];
        for tx in block.txs() {
            let mut spent = vec![];
            for input in tx.inputs() {
                let coin = self.coins.remove(&input.prevout).expect("the coin exists");
                batch.remove_coin(
                    &input.prevout,
                    code(coin.height, coin.coinbase),
                    coin.value,
                    &coin.script,
                );
                spent.push(coin);
            }
            if !tx.is_coinbase() {
                all.push(spent);
            }
            for (vout, output) in (0..).zip(tx.outputs()) {
                if height == 0 || is_unspendable(output.script) {
                    continue;
                }
                let at = OutPoint {
                    txid: *tx.txid(),
                    vout,
                };
                batch.insert_coin(
                    &at,
                    code(height, tx.is_coinbase()),
                    output.value,
                    output.script,
                );
                let coin = Coin {
                    value: output.value,
                    height,
                    coinbase: tx.is_coinbase(),
                    script: output.script.to_vec(),
                };
                assert!(self.coins.insert(at, coin).is_none());
            }
        }
        self.muhash.combine(&batch.finish());
        all
    }

    /// Takes a block back with its undo data.
    fn revert(&mut self, block: &Block, spent: &Spent) {
        for tx in block.txs().rev() {
            for (vout, output) in (0..).zip(tx.outputs()) {
                if is_unspendable(output.script) {
                    continue;
                }
                let at = OutPoint {
                    txid: *tx.txid(),
                    vout,
                };
                let coin = self.coins.remove(&at).expect("made by the block");
                self.muhash.remove(&bytes(&at, &coin));
            }
            if let Some(list) = (tx.index() as usize).checked_sub(1).map(|i| &spent[i]) {
                for (input, coin) in tx.inputs().iter().zip(list) {
                    self.muhash.insert(&bytes(&input.prevout, coin));
                    self.coins.insert(input.prevout, coin.clone());
                }
            }
        }
    }

    fn hash(&self, kind: Kind, best: &Hash) -> String {
        let mut hash = SetHash::new(kind, best);
        for (at, c) in &self.coins {
            hash.push(at, code(c.height, c.coinbase), c.value, &c.script)
                .expect("in order");
        }
        let (hash, counts) = hash.finish();
        assert_eq!(counts.coins, self.coins.len() as u64);
        hex(&hash)
    }

    fn dump(&self, network: [u8; 4], block: Hash) -> Vec<u8> {
        let preamble = Preamble {
            network,
            block,
            coins: self.coins.len() as u64,
        };
        let mut writer = SnapshotWriter::new(vec![], &preamble).expect("to memory");
        for (at, c) in &self.coins {
            writer
                .push(at, code(c.height, c.coinbase), c.value, &c.script)
                .expect("in order");
        }
        writer.finish().expect("as many as announced")
    }
}

fn bytes(at: &OutPoint, coin: &Coin) -> Vec<u8> {
    let mut out = vec![];
    weft_chain::coin::put_coin(
        &mut out,
        at,
        code(coin.height, coin.coinbase),
        coin.value,
        &coin.script,
    );
    out
}

/// Undo records of a file with their checksums.
fn undo_records(magic: &[u8; 4], data: &[u8]) -> Vec<(Vec<u8>, Hash)> {
    records(magic, FileKind::Undo, data)
        .map(|(at, content)| {
            let end = at + content.len();
            (
                content.to_vec(),
                data[end..end + CHECKSUM].try_into().expect("32 bytes"),
            )
        })
        .collect()
}

#[test]
fn mainnet_to_4312() {
    let Some(folder) = data("mainnet_to_4312", "core-mainnet-4312") else {
        return;
    };
    let network = chain("bitcoin");
    let info = json(&folder.join("gettxoutsetinfo.json"));
    let tip = info["hash_serialized_3_at_4312"]["bestblock"]
        .as_str()
        .and_then(from_hex)
        .expect("hash");
    let blocks = chain_to(&blocks(network, &clear(&folder, "blk00000.dat")), &tip);
    assert_eq!(blocks.len(), 4313);
    let undos = undo_records(&network.params().magic, &clear(&folder, "rev00000.dat"));
    assert_eq!(undos.len(), 4312);
    let by_checksum: BTreeMap<Hash, &Vec<u8>> = undos.iter().map(|(d, sum)| (*sum, d)).collect();

    let mut golden: BTreeMap<u64, &serde_json::Value> = BTreeMap::new();
    for entry in info["muhash_by_height"].as_array().expect("list") {
        golden.insert(entry["height"].as_u64().expect("height"), entry);
    }
    assert!(golden.len() >= 5);
    let mut set = Set::default();
    let mut compared = 0;
    for (height, block) in (0..).zip(&blocks) {
        let spent = set.apply(block, height);
        if height > 0 {
            // Our undo data is the node's, byte for byte, and its checksum finds it.
            let mut ours = vec![];
            undo::put(&mut ours, &spent);
            let sum = undo::checksum(&block.header().prev, &ours);
            assert_eq!(by_checksum.get(&sum), Some(&&ours), "undo data at {height}");
            assert_eq!(undo::parse(network, &ours).expect("readable"), spent);
            undo::check_shape(block, &spent).expect("fits");
        }
        if let Some(want) = golden.get(&u64::from(height)) {
            assert_eq!(
                hex(&set.muhash.finalize()),
                want["muhash"].as_str().expect("hash"),
                "height {height}"
            );
            assert_eq!(
                set.coins.len() as u64,
                want["txouts"].as_u64().expect("count")
            );
            compared += 1;
        }
    }
    assert_eq!(compared, golden.len());
    assert_eq!(
        hex(&set.muhash.finalize()),
        "8ddda2747fb03d2bf57e08a23d4cab90f9e062c28bf5822760edc5238128a7e5"
    );
    assert_eq!(
        set.hash(Kind::V3, &tip),
        "fa5670424a993c1c40c2ec80fdac5deaf80f14f3857ea2e16a1339ee7a596e62"
    );
    let dump = fs::read(folder.join("utxo-4312.dumptxoutset")).expect("readable");
    assert!(
        set.dump(network.params().magic, tip) == dump,
        "the dump differs from the node's"
    );
    assert_eq!(read_dump(&dump), set.coins);
}

fn read_dump(dump: &[u8]) -> BTreeMap<OutPoint, Coin> {
    let mut reader = SnapshotReader::new(dump).expect("a snapshot");
    let mut coins = BTreeMap::new();
    while let Some((at, coin)) = reader.next_coin().expect("a coin") {
        assert!(coins.insert(at, coin).is_none());
    }
    assert_eq!(coins.len() as u64, reader.preamble().coins);
    coins
}

#[test]
fn both_branches_of_the_regtest_chain() {
    let Some(folder) = data("both_branches_of_the_regtest_chain", "core-regtest-reorg") else {
        return;
    };
    let network = chain("bitcoin-regtest");
    let want = json(&folder.join("expected.json"));
    let blocks = blocks(network, &clear(&folder, "blk00000.dat"));
    assert_eq!(blocks.len(), 136);
    let tip = want["tip"].as_str().and_then(from_hex).expect("hash");
    let active = chain_to(&blocks, &tip);
    let stale: Vec<&str> = want["branch_A_stale"]
        .as_array()
        .expect("list")
        .iter()
        .filter_map(|v| v.as_str())
        .collect();
    // The first height at which the branches differ.
    let fork = want["fork_height"].as_u64().expect("height") as usize - 1;
    let branch = chain_to(
        &blocks,
        &from_hex(stale.last().expect("not empty")).expect("hash"),
    );
    assert_eq!(branch.len(), fork + 1 + stale.len());

    let golden = find_muhashes(&want);
    let mut set = Set::default();
    let mut undos = vec![];
    let mut compared = 0;
    let mut check = |set: &Set, block: &Block, height: usize| {
        if let Some(muhash) = golden.get(&hex(block.hash())) {
            assert_eq!(&hex(&set.muhash.finalize()), muhash, "height {height}");
            compared += 1;
        }
    };
    // Along the stale branch, back to the fork, along the active one.
    for (height, block) in branch.iter().enumerate() {
        undos.push(set.apply(block, height as u32));
        check(&set, block, height);
    }
    assert_eq!(
        hex(&set.muhash.finalize()),
        want["muhash_branch_A_tip"].as_str().expect("hash")
    );
    let stale_tip = branch.last().expect("not empty").hash();
    assert_eq!(
        set.hash(Kind::V3, stale_tip),
        want["hash_serialized_3_branch_A_tip"]
            .as_str()
            .expect("hash")
    );
    for (height, block) in branch.iter().enumerate().skip(fork + 1).rev() {
        set.revert(block, &undos.pop().expect("one per block"));
        check(&set, &branch[height - 1], height - 1);
    }
    for (height, block) in active.iter().enumerate().skip(fork + 1) {
        undos.push(set.apply(block, height as u32));
        check(&set, block, height);
    }
    // Every height of the active chain once, and the fork's a second time.
    assert_eq!((golden.len(), compared), (132, 133));
    let dump = fs::read(folder.join("utxo.dumptxoutset")).expect("readable");
    assert!(
        set.dump(network.params().magic, tip) == dump,
        "the dump differs from the node's"
    );
    assert_eq!(read_dump(&dump), set.coins);
    let hash3 = want["hash_serialized_3"]["hash_serialized_3"]
        .as_str()
        .expect("hash");
    assert_eq!(set.hash(Kind::V3, &tip), hash3);
    check_scan(&set, &want["scan"]["unspents"]);
    for script in want["scripts"].as_object().expect("object").values() {
        // Long ones are shown as their beginning and a count.
        let shown = script["spk"].as_str().expect("hex");
        let spk = match shown.split_once("...x") {
            Some(("5151515151515151", n)) => vec![0x51; n.parse().expect("count")],
            Some(_) => continue,
            None => common::unhex(shown),
        };
        assert_eq!(
            hex(&weft_chain::script_hash(&spk)),
            script["scripthash"].as_str().expect("hex")
        );
    }
    // The undo records of the active chain are the node's.
    let stored = undo_records(&network.params().magic, &clear(&folder, "rev00000.dat"));
    for (block, spent) in active.iter().zip(&undos).skip(1) {
        let mut ours = vec![];
        undo::put(&mut ours, spent);
        let sum = undo::checksum(&block.header().prev, &ours);
        assert!(
            stored.contains(&(ours, sum)),
            "undo data of {}",
            hex(block.hash())
        );
    }
}

/// Block hash → muhash, wherever the expectations have both in one object.
fn find_muhashes(value: &serde_json::Value) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut stack = vec![value];
    while let Some(value) = stack.pop() {
        if let Some(object) = value.as_object() {
            let block = ["bestblock", "hash", "blockhash", "block"]
                .iter()
                .find_map(|k| object.get(*k)?.as_str());
            if let (Some(block), Some(muhash)) =
                (block, object.get("muhash").and_then(|m| m.as_str()))
            {
                out.insert(block.to_owned(), muhash.to_owned());
            }
            stack.extend(object.values());
        }
        stack.extend(value.as_array().into_iter().flatten());
    }
    out
}

/// Every coin that `scantxoutset` found is there, with the same facts.
fn check_scan(set: &Set, unspents: &serde_json::Value) {
    let unspents = unspents.as_array().expect("list");
    assert!(!unspents.is_empty());
    for u in unspents {
        let at = OutPoint {
            txid: u["txid"].as_str().and_then(from_hex).expect("hash"),
            vout: u["vout"].as_u64().expect("number") as u32,
        };
        let coin = &set.coins[&at];
        assert_eq!(
            u64::from(coin.height),
            u["height"].as_u64().expect("number")
        );
        assert_eq!(coin.coinbase, u["coinbase"].as_bool().expect("flag"));
        assert_eq!(
            coin.script,
            common::unhex(u["scriptPubKey"].as_str().expect("hex"))
        );
        assert_eq!(
            coin.value,
            (u["amount"].as_f64().expect("number") * 1e8).round() as u64
        );
    }
}
