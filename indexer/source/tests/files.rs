//! Block files of real nodes: plain and obfuscated, with tails, shuffled, growing, damaged.

mod common;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::{Follower, Scratch, chain, data};
use weft_chain::blockfile::{FileKind, XorKey, records};
use weft_chain::hash::{from_hex, hex};
use weft_chain::setinfo::Kind as HashKind;
use weft_chain::undo;
use weft_source::files::Files;
use weft_source::{Source, SourceError, Spent};

const BEST_4312: &str = "00000000a9da635727dce622d78361b153ce3334e6a60d4377fad529abfc7863";
const HASH3_4312: &str = "fa5670424a993c1c40c2ec80fdac5deaf80f14f3857ea2e16a1339ee7a596e62";

/// The content of a block file, cleared of obfuscation.
fn clear(folder: &Path) -> Vec<u8> {
    let mut data = fs::read(folder.join("blk00000.dat")).expect("readable");
    if let Ok(key) = fs::read(folder.join("xor.dat")) {
        XorKey::from_file(&key)
            .expect("8 bytes")
            .apply(&mut data, 0);
    }
    data
}

/// Whole records: magic, length, block.
fn whole_records(network: &str, data: &[u8]) -> Vec<Vec<u8>> {
    records(&chain(network).params().magic, FileKind::Blocks, data)
        .map(|(at, content)| data[at - 8..at + content.len()].to_vec())
        .collect()
}

fn follow(files: Files) -> Follower {
    let mut follower = Follower::new(Arc::new(files));
    follower.follow().expect("it follows");
    follower
}

fn mainnet(folder: &Path) {
    let follower = follow(Files::open(folder, chain("bitcoin")).expect("readable"));
    assert_eq!(hex(&follower.tip()), BEST_4312);
    let (hash, counts) = follower.set_hash(HashKind::V3);
    assert_eq!(
        (hex(&hash).as_str(), counts.coins, counts.transactions),
        (HASH3_4312, 4149, 4145)
    );
}

#[test]
fn plain_and_obfuscated_files_give_the_same_set() {
    for name in ["bitcoin-mainnet-0-4312", "core-mainnet-4312"] {
        if let Some(folder) = data("plain_and_obfuscated_files_give_the_same_set", name) {
            mainnet(&folder);
        }
    }
}

/// Blocks out of order over several files, with the tails a node preallocates, with a key and
/// without, with garbage between records.
#[test]
fn shuffled_blocks_in_several_files() {
    let Some(folder) = data("shuffled_blocks_in_several_files", "bitcoin-mainnet-0-4312") else {
        return;
    };
    let mut all = whole_records("bitcoin", &clear(&folder));
    assert_eq!(all.len(), 4313);
    // Far from their places, yet the same at each run.
    for i in (1..all.len()).rev() {
        all.swap(i, (i * 2_654_435_761) % (i + 1));
    }
    for key in [[0; 8], [0xe1, 0, 0x42, 7, 0xff, 0x80, 3, 0x99]] {
        let scratch = Scratch::new("shuffled");
        if key != [0; 8] {
            fs::write(scratch.0.join("xor.dat"), key).expect("writable");
        }
        for (n, part) in all.chunks(1500).enumerate() {
            let mut content = part.concat();
            content.extend_from_slice(b"left by a crash \xf9\xbe\xb4\xd9\xff\xff\xff\xff and more");
            content.extend_from_slice(&part[0]);
            XorKey::from_file(&key)
                .expect("8 bytes")
                .apply(&mut content, 0);
            content.resize(content.len() + 100_000, 0);
            fs::write(scratch.0.join(format!("blk{n:05}.dat")), content).expect("writable");
        }
        mainnet(&scratch.0);
    }
}

#[test]
fn stale_blocks_are_left_out_and_undo_data_is_found() {
    let Some(folder) = data(
        "stale_blocks_are_left_out_and_undo_data_is_found",
        "core-regtest-reorg",
    ) else {
        return;
    };
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.join("expected.json")).expect("readable"))
            .expect("JSON");
    let follower = follow(Files::open(&folder, chain("bitcoin-regtest")).expect("readable"));
    assert_eq!(
        hex(&follower.tip()),
        expected["tip"].as_str().expect("hash")
    );
    let want = expected["hash_serialized_3"]["hash_serialized_3"]
        .as_str()
        .expect("hash");
    assert_eq!(hex(&follower.set_hash(HashKind::V3).0), want);
    // Undo data of the blocks of both branches.
    let stale = expected["branch_A_stale"].as_array().expect("list");
    let stale = stale
        .iter()
        .map(|h| from_hex(h.as_str().expect("hash")).expect("hash"));
    let mut coins = 0;
    for hash in follower.blocks.iter().map(|b| *b.hash()).chain(stale) {
        let Some(Spent::Coins(spent)) = follower.source.spent(&hash).expect("readable") else {
            panic!("no undo data of {}", hex(&hash));
        };
        coins += spent.iter().map(Vec::len).sum::<usize>();
    }
    assert!(coins > follower.blocks.iter().map(|b| b.input_count()).sum());
    // A follower on the stale branch is led off it.
    let stale_tip = from_hex(expected["branch_A_stale"][3].as_str().expect("hash")).expect("hash");
    assert!(
        follower
            .source
            .wait(&stale_tip, Duration::ZERO)
            .expect("it answers")
    );
    let fork = &follower.blocks[124];
    let ahead = follower
        .source
        .headers(&[stale_tip, *fork.hash()])
        .expect("it answers");
    assert_eq!((ahead.fork, ahead.headers.len()), (Some(*fork.hash()), 6));
}

/// A node writes in pieces: nothing is announced before it is whole, everything after.
#[test]
fn files_are_followed_while_they_grow() {
    let Some(folder) = data("files_are_followed_while_they_grow", "core-mainnet-4312") else {
        return;
    };
    let all = whole_records("bitcoin", &clear(&folder));
    let key = XorKey::from_file(&[9, 8, 7, 6, 5, 4, 3, 2]).expect("8 bytes");
    let scratch = Scratch::new("growing");
    fs::write(scratch.0.join("xor.dat"), [9, 8, 7, 6, 5, 4, 3, 2]).expect("writable");
    let path = |n: usize| scratch.0.join(format!("blk{n:05}.dat"));
    let write = |file: usize, offset: usize, data: &[u8]| {
        use std::os::unix::fs::FileExt;
        let mut data = data.to_vec();
        key.apply(&mut data, offset as u64);
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(path(file))
            .expect("writable");
        if file.metadata().expect("readable").len() == 0 {
            file.set_len(1 << 20).expect("preallocated");
        }
        file.write_all_at(&data, offset as u64).expect("writable");
    };
    let head: Vec<u8> = all[..10].concat();
    write(0, 0, &head);
    let mut follower = follow(Files::open(&scratch.0, chain("bitcoin")).expect("readable"));
    assert_eq!(follower.blocks.len(), 9);
    let mut at = head.len();
    for (n, record) in all[10..40].iter().enumerate() {
        // In three pieces, cut at different places, the first sometimes within the header.
        for cut in [1 + n * 7 % record.len(), record.len() - 1 - n] {
            write(0, at, &record[..cut]);
            assert_eq!(
                follower.follow().expect("it follows"),
                (0, 0),
                "{cut} of {} bytes",
                record.len()
            );
        }
        let known = follower.tip();
        assert!(
            !follower
                .source
                .wait(&known, Duration::ZERO)
                .expect("it waits")
        );
        write(0, at, record);
        assert!(
            follower
                .source
                .wait(&known, Duration::from_secs(5))
                .expect("it waits")
        );
        assert_eq!(follower.follow().expect("it follows"), (0, 1));
        at += record.len();
    }
    // The next file begins; the old one keeps its tail.
    write(1, 0, &all[40..60].concat());
    assert_eq!(follower.follow().expect("it follows"), (0, 20));
    write(2, 0, &all[60]);
    write(3, 0, &all[61]);
    assert_eq!(follower.follow().expect("it follows"), (0, 2));
}

#[test]
fn damaged_files_are_named() {
    let Some(folder) = data("damaged_files_are_named", "core-mainnet-4312") else {
        return;
    };
    let plain = clear(&folder);
    let all = whole_records("bitcoin", &plain);
    let scratch = Scratch::new("damaged");
    let path = scratch.0.join("blk00000.dat");

    // Cut within a block: the chain ends before it.
    fs::write(&path, &plain[..plain.len() - 50]).expect("writable");
    assert_eq!(
        follow(Files::open(&scratch.0, chain("bitcoin")).expect("readable"))
            .blocks
            .len(),
        4311
    );

    // Cut after it was read: the block is named, with where it should be.
    fs::write(&path, &plain).expect("writable");
    let files: Arc<dyn Source> =
        Arc::new(Files::open(&scratch.0, chain("bitcoin")).expect("readable"));
    fs::File::options()
        .write(true)
        .open(&path)
        .expect("writable")
        .set_len(500_000)
        .expect("cut");
    let error = Follower::new(files).follow().expect_err("the end is gone");
    assert!(matches!(error, SourceError::BadFile { .. }), "{error}");
    assert!(error.to_string().contains("the file ends after"), "{error}");

    // One bit of a transaction: the Merkle root does not fit.
    let mut bad = plain.clone();
    let at: usize = all[..1000].iter().map(Vec::len).sum::<usize>() + 8 + 81 + 60;
    bad[at] ^= 1;
    fs::write(&path, &bad).expect("writable");
    let mut follower = Follower::new(Arc::new(
        Files::open(&scratch.0, chain("bitcoin")).expect("readable"),
    ));
    let error = follower.follow().expect_err("one bit is wrong");
    assert!(
        error.to_string().contains("the header says Merkle root"),
        "{error}"
    );
    assert_eq!(
        follower.blocks.len(),
        999,
        "the blocks before it were delivered"
    );

    // One bit of a header: no work, so everything after it has no predecessor.
    let mut bad = plain.clone();
    bad[all[..1000].iter().map(Vec::len).sum::<usize>() + 8 + 70] ^= 1;
    fs::write(&path, &bad).expect("writable");
    let files = Files::open(&scratch.0, chain("bitcoin")).expect("readable");
    let told = files.describe();
    assert!(
        told.contains("3312 blocks without their predecessor") && told.contains("does not reach"),
        "{told}"
    );
    assert_eq!(follow(files).blocks.len(), 999);

    // Nothing of this chain, no file, a key of the wrong length.
    fs::write(&path, b"nothing").expect("writable");
    let error = Files::open(&scratch.0, chain("bitcoin")).expect_err("nothing there");
    assert!(
        error.to_string().contains("hold no block of bitcoin"),
        "{error}"
    );
    // The lowest files are gone, as after pruning.
    fs::write(&path, all[2000..].concat()).expect("writable");
    let error = Files::open(&scratch.0, chain("bitcoin")).expect_err("pruned");
    assert!(error.to_string().contains("pruned"), "{error}");
    fs::File::create(scratch.0.join("xor.dat"))
        .and_then(|mut f| f.write_all(&[1, 2, 3]))
        .expect("writable");
    let error = Files::open(&scratch.0, chain("bitcoin")).expect_err("a bad key");
    assert!(error.to_string().contains("it has 3 bytes"), "{error}");
}

/// The checksum of undo data is over the previous block's hash: a record of another block is
/// never taken.
#[test]
fn undo_data_of_another_block_is_not_taken() {
    let Some(folder) = data(
        "undo_data_of_another_block_is_not_taken",
        "core-regtest-reorg",
    ) else {
        return;
    };
    let scratch = Scratch::new("undo");
    for name in ["blk00000.dat", "xor.dat"] {
        fs::copy(folder.join(name), scratch.0.join(name)).expect("copied");
    }
    let mut rev = fs::read(folder.join("rev00000.dat")).expect("readable");
    let key =
        XorKey::from_file(&fs::read(folder.join("xor.dat")).expect("readable")).expect("8 bytes");
    key.apply(&mut rev, 0);
    let magic = chain("bitcoin-regtest").params().magic;
    let places: Vec<usize> = records(&magic, FileKind::Undo, &rev)
        .map(|(at, c)| at + c.len())
        .collect();
    for at in places {
        rev[at] ^= 1;
    }
    key.apply(&mut rev, 0);
    let path = scratch.0.join("rev00000.dat");
    fs::write(&path, &rev).expect("writable");
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
    let follower = follow(Files::open(&scratch.0, chain("bitcoin-regtest")).expect("readable"));
    for block in &follower.blocks {
        assert_eq!(follower.source.spent(block.hash()).expect("readable"), None);
    }
    assert!(undo::check(&[0; 32], &[], &[0; 32]).is_err());
}
