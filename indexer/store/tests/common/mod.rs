//! Where the tests find real chains, and how they make a store of them.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use weft_chain::blockfile::{FileKind, XorKey, records};
use weft_chain::{Block, Chain, Hash, chains};
use weft_store::{Durability, Options, Store};

/// The folder of a data set, or `None` after saying that the test is skipped.
pub(crate) fn data(test: &str, set: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEFT_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let folder = root.join(set);
    if folder.is_dir() {
        return Some(folder);
    }
    println!(
        "SKIPPED {test}: no {} (set WEFT_TEST_DATA)",
        folder.display()
    );
    None
}

/// The network with this name.
pub(crate) fn chain(name: &str) -> &'static dyn Chain {
    chains::by_name(name).expect("a known network")
}

/// The first block of a Bitcoin network.
pub(crate) fn genesis(chain: &'static dyn Chain) -> Block {
    Block::parse_checked(chain, weft_forge::genesis(&chain.params().genesis))
        .expect("the first block")
}

/// All blocks in a folder's first block file, in the order they are in the file.
pub(crate) fn blocks(chain: &'static dyn Chain, folder: &Path) -> Vec<Block> {
    let mut bytes = std::fs::read(folder.join("blk00000.dat")).expect("the block file");
    if let Ok(key) = std::fs::read(folder.join("xor.dat")) {
        XorKey::from_file(&key)
            .expect("8 bytes")
            .apply(&mut bytes, 0);
    }
    records(&chain.params().magic, FileKind::Blocks, &bytes)
        .map(|(_, raw)| Block::parse_checked(chain, raw.to_vec()).expect("a valid block"))
        .collect()
}

/// The blocks from genesis to `tip` in order.
pub(crate) fn branch<'a>(blocks: &'a [Block], tip: &Hash) -> Vec<&'a Block> {
    let mut out = Vec::new();
    let mut want = *tip;
    while let Some(block) = blocks.iter().find(|b| *b.hash() == want) {
        want = block.header().prev;
        out.push(block);
    }
    out.reverse();
    out
}

/// Options for a small store.
pub(crate) fn small() -> Options {
    Options {
        memory: 64 << 20,
        threads: 2,
        ..Options::default()
    }
}

/// A store in `folder`.
pub(crate) fn open(chain: &dyn Chain, folder: &Path) -> Store {
    Store::open(folder, chain.params().genesis_hash(), small()).expect("the store opens")
}

/// Applies the next block.
pub(crate) fn apply(store: &mut Store, chain: &dyn Chain, block: &Block) {
    let height = store.tip().map_or(0, |t| t.height + 1);
    let prepared = store
        .preparer()
        .prepare(chain, block, height)
        .expect("the block is well-formed");
    store.apply(prepared).expect("the block fits");
}

/// Applies blocks and writes them `batch` at a time.
pub(crate) fn load(
    store: &mut Store,
    chain: &dyn Chain,
    blocks: &[&Block],
    batch: usize,
    durability: Durability,
) {
    for blocks in blocks.chunks(batch) {
        blocks.iter().for_each(|block| apply(store, chain, block));
        store.commit(durability).expect("the batch is written");
    }
}
