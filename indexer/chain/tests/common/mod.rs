//! Finds the chain data the tests read, which is not part of the repository.

#![allow(dead_code, unreachable_pub)]

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;

use weft_chain::blockfile::{FileKind, XorKey, records};
use weft_chain::{Block, Chain, Hash, chains};

/// The folder of chain data: `WEFT_TEST_DATA`, else `shared/data` beside the workspace.
pub fn data(test: &str, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEFT_TEST_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!(
        "SKIPPED {test}: no {name} in {} (set WEFT_TEST_DATA)",
        root.display()
    );
    None
}

pub fn chain(name: &str) -> &'static dyn Chain {
    chains::by_name(name).expect("a known network")
}

/// A file of a node, cleared of obfuscation where there is an `xor.dat` beside it.
pub fn clear(folder: &std::path::Path, name: &str) -> Vec<u8> {
    let mut data = fs::read(folder.join(name)).expect("readable");
    if let Ok(key) = fs::read(folder.join("xor.dat")) {
        XorKey::from_file(&key)
            .expect("8 bytes")
            .apply(&mut data, 0);
    }
    data
}

/// All blocks of one file, in its order.
pub fn blocks(chain: &dyn Chain, data: &[u8]) -> Vec<Block> {
    records(&chain.params().magic, FileKind::Blocks, data)
        .map(|(at, raw)| {
            Block::parse_checked(chain, raw.to_vec())
                .unwrap_or_else(|e| panic!("block at {at}: {e}"))
        })
        .collect()
}

/// The blocks from genesis to `tip`.
pub fn chain_to(blocks: &[Block], tip: &Hash) -> Vec<Block> {
    let by_hash: HashMap<Hash, &Block> = blocks.iter().map(|b| (*b.hash(), b)).collect();
    let mut out = vec![];
    let mut at = *tip;
    while let Some(block) = by_hash.get(&at) {
        out.push((*block).clone());
        at = block.header().prev;
    }
    out.reverse();
    out
}

pub fn json(path: &std::path::Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}
