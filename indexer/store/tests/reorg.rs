//! A regtest chain with two branches and every kind of output script, against what Bitcoin Core
//! says about both.

mod common;

use std::collections::BTreeMap;

use common::{apply, blocks, branch, chain, data, load, open};
use serde_json::Value;
use weft_chain::hash::{from_hex, hex};
use weft_chain::setinfo::Kind;
use weft_chain::{Block, script_hash};
use weft_store::{Durability, Reader, Store};

fn bytes(hex: &Value) -> Vec<u8> {
    let hex = hex.as_str().unwrap().as_bytes();
    hex.chunks(2)
        .map(|d| u8::from_str_radix(std::str::from_utf8(d).unwrap(), 16).unwrap())
        .collect()
}

fn sats(amount: &Value) -> u64 {
    (amount.as_f64().unwrap() * 1e8).round() as u64
}

/// Transaction, output, amount, height, coinbase.
type Listed = (String, u32, u64, u32, bool);

/// Every script's unspents against `scantxoutset`, and each coin by its outpoint.
fn check_scan(reader: &Reader, scan: &Value, scripts: &Value) {
    let mut want: BTreeMap<Vec<u8>, Vec<Listed>> = BTreeMap::new();
    for coin in scan["unspents"].as_array().unwrap() {
        let script = bytes(&coin["scriptPubKey"]);
        want.entry(script).or_default().push((
            coin["txid"].as_str().unwrap().into(),
            coin["vout"].as_u64().unwrap() as u32,
            sats(&coin["amount"]),
            coin["height"].as_u64().unwrap() as u32,
            coin["coinbase"].as_bool().unwrap(),
        ));
    }
    for script in scripts.as_object().unwrap().values() {
        // Long scripts are abbreviated: first 8 bytes, "...x", length; their filling is the 8th byte.
        let script_bytes = match script["spk"].as_str().unwrap().split_once("...x") {
            Some((head, len)) => {
                let mut script = bytes(&head.into());
                script.resize(len.parse().unwrap(), script[7]);
                script
            }
            None => bytes(&script["spk"]),
        };
        let mut reversed = script_hash(&script_bytes);
        reversed.reverse();
        assert_eq!(bytes(&script["scripthash"]), reversed);
        want.entry(script_bytes).or_default();
    }
    let mut coins = 0;
    for (script, mut want) in want {
        let unspents = reader.unspents(&script_hash(&script), usize::MAX).unwrap();
        let mut have: Vec<_> = unspents
            .iter()
            .map(|u| {
                (
                    hex(&u.outpoint.txid),
                    u.outpoint.vout,
                    u.value,
                    u.txnum.height(),
                    u.txnum.index() == 0,
                )
            })
            .collect();
        have.sort();
        want.sort();
        // `scantxoutset` was asked for addresses and descriptors; scripts without one are not in it.
        if want.is_empty() && !have.is_empty() {
            continue;
        }
        assert_eq!(have, want, "script {script:02x?}");
        let balance = reader.balance(&script_hash(&script)).unwrap();
        assert_eq!(
            (balance.coins, balance.value),
            (want.len() as u64, want.iter().map(|w| w.2).sum())
        );
        for unspent in &unspents {
            let coin = reader.coin(&unspent.outpoint).unwrap().unwrap();
            assert_eq!(
                (coin.value, coin.height, &coin.script),
                (unspent.value, unspent.txnum.height(), &script)
            );
        }
        coins += have.len();
    }
    assert_eq!(coins, scan["unspents"].as_array().unwrap().len());
}

fn check_heights(reader: &Reader, by_height: &Value, heights: std::ops::RangeInclusive<u32>) {
    for height in heights {
        let want = &by_height[height.to_string()];
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
        assert_eq!(reader.header_by_hash(&row.hash).unwrap().unwrap().0, height);
    }
}

/// Every transaction of the branch is where it should be, and every script's history is what going through
/// the blocks gives.
fn check_history(reader: &Reader, branch: &[&Block]) {
    let mut outputs = BTreeMap::new();
    let mut want: BTreeMap<Vec<u8>, Vec<_>> = BTreeMap::new();
    for (height, block) in branch.iter().enumerate() {
        assert_eq!(
            reader.block_txids(height as u32).unwrap().unwrap(),
            block.txids()
        );
        for tx in block.txs() {
            let place = reader.tx(tx.txid()).unwrap().unwrap();
            assert_eq!(
                (place.txnum.height() as usize, place.txnum.index()),
                (height, tx.index())
            );
            assert_eq!(
                place.span.offset as usize..(place.span.offset + place.span.len) as usize,
                tx.position()
            );
            let spent: Vec<Vec<u8>> = tx
                .inputs()
                .iter()
                .filter_map(|i| outputs.get(&i.prevout).cloned())
                .collect();
            // Those that never become coins too.
            let made = tx.outputs().map(|o| o.script.to_vec());
            for script in spent.into_iter().chain(made) {
                let list = want.entry(script).or_default();
                if list.last() != Some(&(height as u32, *tx.txid())) {
                    list.push((height as u32, *tx.txid()));
                }
            }
            for (output, vout) in tx.outputs().zip(0..) {
                outputs.insert(
                    weft_chain::OutPoint {
                        txid: *tx.txid(),
                        vout,
                    },
                    output.script.to_vec(),
                );
            }
        }
    }
    for (script, want) in want {
        let hash = script_hash(&script);
        let have = reader
            .history(&hash, weft_store::TxNum::first_of(0), usize::MAX)
            .unwrap();
        let have: Vec<_> = have.iter().map(|t| (t.txnum.height(), t.txid)).collect();
        assert_eq!(have, want, "script {script:02x?}");
        // From the middle on, and no more than asked for.
        let middle = weft_store::TxNum::first_of(want[want.len() / 2].0);
        let tail = reader.history(&hash, middle, 3).unwrap();
        let same: Vec<_> = want
            .iter()
            .filter(|(h, _)| *h >= middle.height())
            .take(3)
            .copied()
            .collect();
        assert_eq!(
            tail.iter()
                .map(|t| (t.txnum.height(), t.txid))
                .collect::<Vec<_>>(),
            same
        );
    }
}

#[test]
fn both_branches_and_back() {
    let Some(folder) = data("both_branches_and_back", "core-regtest-reorg") else {
        return;
    };
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder.join("expected.json")).unwrap()).unwrap();
    let chain = chain("bitcoin-regtest");
    let blocks = blocks(chain, &folder);
    let tip = |key: &str| {
        from_hex(
            expected[key]
                .as_array()
                .unwrap()
                .last()
                .unwrap()
                .as_str()
                .unwrap(),
        )
        .unwrap()
    };
    // The lists of the branches begin after the fork or end at their tips; the last is the tip.
    let stale = branch(&blocks, &tip("branch_A_stale"));
    let active = branch(
        &blocks,
        &from_hex(expected["tip"].as_str().unwrap()).unwrap(),
    );
    let common = stale
        .iter()
        .zip(&active)
        .take_while(|(a, b)| a.hash() == b.hash())
        .count();
    assert_eq!((active.len(), stale.len() - common), (132, 4));

    for (durability, batch) in [
        (Durability::Log, 1),
        (Durability::Files, 7),
        (Durability::Files, 1000),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(chain, dir.path());
        load(&mut store, chain, &active, batch, durability);
        let at_active = |store: &Store| {
            let reader = store.reader();
            check_heights(&reader, &expected["by_height"], 0..=131);
            check_scan(&reader, &expected["scan"], &expected["scripts"]);
            check_history(&reader, &active);
            let (hash, _) = reader.set_hash(Kind::V3, 1 << 20).unwrap();
            assert_eq!(
                hex(&hash),
                expected["hash_serialized_3"]["hash_serialized_3"]
            );
            reader.verify(2, |_| ()).unwrap();
            let mut dump = Vec::new();
            reader
                .export(&mut dump, chain.params().magic, 1 << 20)
                .unwrap();
            let theirs = std::fs::read(folder.join("utxo.dumptxoutset")).unwrap();
            // 51 bytes of head; what follows is the same for any network.
            assert!(dump[51..] == theirs[51..], "the dump differs from Core's");
        };
        at_active(&store);

        // To the stale branch, one block at a time.
        for block in active[common..].iter().rev() {
            let undone = store.undo().unwrap().unwrap();
            assert_eq!(undone.hash, *block.hash());
            assert!(!undone.scripts.is_empty());
        }
        for block in &stale[common..] {
            apply(&mut store, chain, block);
            store.commit(Durability::Log).unwrap();
        }
        let reader = store.reader();
        let row = reader.header(stale.len() as u32 - 1).unwrap().unwrap();
        assert_eq!(hex(&row.muhash.unwrap()), expected["muhash_branch_A_tip"]);
        let (hash, _) = reader.set_hash(Kind::V3, 1 << 20).unwrap();
        assert_eq!(hex(&hash), expected["hash_serialized_3_branch_A_tip"]);
        check_heights(&reader, &expected["by_height"], 0..=common as u32 - 1);
        check_history(&reader, &stale);
        reader.verify(2, |_| ()).unwrap();
        assert!(reader.header_by_hash(active[131].hash()).unwrap().is_none());
        drop(reader);

        // And back, after reopening.
        drop(store);
        let mut store = open(chain, dir.path());
        while store.tip().unwrap().height as usize >= common {
            store.undo().unwrap().unwrap();
        }
        load(&mut store, chain, &active[common..], batch, durability);
        at_active(&store);

        // All the way down, 131 blocks deep, and up again.
        while store.tip().unwrap().height > 0 {
            store.undo().unwrap().unwrap();
        }
        check_heights(&store.reader(), &expected["by_height"], 0..=0);
        assert_eq!(store.reader().verify(1, |_| ()).unwrap().coins, 0);
        load(&mut store, chain, &active[1..], 50, durability);
        at_active(&store);
    }
}
