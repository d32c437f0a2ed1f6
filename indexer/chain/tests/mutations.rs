//! Bytes from outside that are not what they should be: every parser answers, none panics, none
//! takes memory for what is only claimed.

mod common;

use std::fs;

use common::{chain, clear, data};
use proptest::prelude::*;
use weft_chain::block::LooseTx;
use weft_chain::blockfile::{FileKind, Step, XorKey, records, step};
use weft_chain::snapshot::{Preamble, SnapshotReader, SnapshotWriter};
use weft_chain::wire::Reader;
use weft_chain::{Block, chains, undo};

/// Changes to bytes: where, with what, how.
type Edit = (prop::sample::Index, u8, u8);

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..5), 1..4)
}

fn mutate(mut raw: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for (at, byte, how) in edits {
        let at = at.index(raw.len().max(1));
        match how {
            0 => raw.iter_mut().skip(at).take(1).for_each(|b| *b = *byte),
            1 => raw
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|b| *b ^= 1 << (byte % 8)),
            2 => raw.insert(at.min(raw.len()), *byte),
            3 => raw.truncate(at),
            _ => raw
                .iter_mut()
                .skip(at)
                .zip([0xff, 0xff, 0xff, 0xff, *byte])
                .for_each(|(b, n)| *b = n),
        }
    }
    raw
}

#[test]
fn undo_records() {
    let Some(folder) = data("undo_records", "core-regtest-reorg") else {
        return;
    };
    let network = chain("bitcoin-regtest");
    let file = clear(&folder, "rev00000.dat");
    let all: Vec<&[u8]> = records(&network.params().magic, FileKind::Undo, &file)
        .map(|(_, c)| c)
        .collect();
    assert!(all.len() > 100);
    proptest!(ProptestConfig { cases: 2000, ..ProptestConfig::default() }, |(which: prop::sample::Index, edits in edits())| {
        // The longest ones hold all kinds of script.
        let mut sorted = all.clone();
        sorted.sort_by_key(|c| std::cmp::Reverse(c.len()));
        let raw = mutate(sorted[which.index(12)].to_vec(), &edits);
        for network in [network, chain("litecoin")] {
            if let Ok(spent) = undo::parse(network, &raw) {
                let mut again = vec![];
                undo::put(&mut again, &spent);
                prop_assert_eq!(undo::parse(network, &again).ok(), Some(spent));
            }
        }
        let _ = undo::parse_spent_txouts(network, &raw);
    });
}

#[test]
fn snapshots() {
    let Some(folder) = data("snapshots", "core-regtest-reorg") else {
        return;
    };
    let dump = fs::read(folder.join("utxo.dumptxoutset")).expect("readable");
    proptest!(ProptestConfig { cases: 1000, ..ProptestConfig::default() }, |(edits in edits())| {
        let raw = mutate(dump.clone(), &edits);
        let Ok(mut reader) = SnapshotReader::new(&raw[..]) else { return Ok(()) };
        let mut coins = vec![];
        // At most one coin for each five bytes.
        while let Ok(Some(coin)) = reader.next_coin() {
            coins.push(coin);
            prop_assert!(coins.len() <= raw.len() / 5);
        }
    });
    // A count or an order that is not what was announced.
    let preamble = Preamble {
        network: [1; 4],
        block: [2; 32],
        coins: 2,
    };
    let at = |n: u8| weft_chain::OutPoint {
        txid: [n; 32],
        vout: 0,
    };
    let mut writer = SnapshotWriter::new(vec![], &preamble).expect("to memory");
    writer.push(&at(5), 2, 1, &[]).expect("first");
    assert!(writer.push(&at(4), 2, 1, &[]).is_err(), "not in order");
    let writer = SnapshotWriter::new(vec![], &preamble).expect("to memory");
    assert!(writer.finish().is_err(), "two are announced");
}

/// Output numbers above 16,511 stand in the order of their VARINTs, as in the nodes' database.
#[test]
fn snapshot_order_of_large_output_numbers() {
    let preamble = Preamble {
        network: [1; 4],
        block: [2; 32],
        coins: 4,
    };
    let mut writer = SnapshotWriter::new(vec![], &preamble).expect("to memory");
    for vout in [1, 16_511, 16_512, 70_000] {
        writer
            .push(
                &weft_chain::OutPoint {
                    txid: [9; 32],
                    vout,
                },
                2,
                7,
                &[0x51],
            )
            .expect("in order");
    }
    let dump = writer.finish().expect("four");
    let mut reader = SnapshotReader::new(&dump[..]).expect("a snapshot");
    let mut order = vec![];
    while let Some((at, _)) = reader.next_coin().expect("a coin") {
        order.push(at.vout);
    }
    // 16,511 is ff 7f; 16,512 is 80 80 00.
    assert_eq!(order, [1, 16_512, 70_000, 16_511]);
}

#[test]
fn any_bytes() {
    proptest!(ProptestConfig { cases: 3000, ..ProptestConfig::default() }, |(raw in prop::collection::vec(any::<u8>(), 0..600), text in ".{0,60}")| {
        for network in chains::all() {
            let _ = Block::parse(network, raw.clone());
            let _ = LooseTx::parse(network, raw.clone());
            let _ = undo::parse(network, &raw);
            let _ = undo::parse_spent_txouts(network, &raw);
            let mut r = Reader::new(&raw);
            if let Ok((header, auxpow)) = network.read_header(&mut r) {
                let _ = network.check_pow(&header, auxpow.as_deref());
            }
            let _ = weft_chain::address::to_script(network.params(), &text);
            let _ = weft_chain::address::from_script(network.params(), &raw);
            for kind in [FileKind::Blocks, FileKind::Undo] {
                let magic = network.params().magic;
                if let Step::Skip(n) = step(&magic, kind, &raw) {
                    prop_assert!(n > 0 && n <= raw.len());
                }
                let _ = records(&magic, kind, &raw).count();
            }
        }
        if let Ok(mut reader) = SnapshotReader::new(&raw[..]) {
            while let Ok(Some(_)) = reader.next_coin() {}
        }
        let _ = XorKey::from_file(&raw);
    });
}

/// Claims of great counts take no memory: each is held against the bytes that are there.
#[test]
fn great_claims_are_refused() {
    let network = chain("bitcoin");
    let mut block = vec![0u8; 80];
    block.extend_from_slice(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    for tail in [0, 100, 100_000] {
        block.resize(89 + tail, 0);
        let error = Block::parse(network, block.clone()).expect_err("too many");
        assert!(error.to_string().contains("at most"), "{error}");
        let error = undo::parse(network, &block[80..]).expect_err("too many");
        assert!(error.to_string().contains("at most"), "{error}");
    }
}
