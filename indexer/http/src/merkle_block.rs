//! Proof that one transaction is in a block, in the form nodes give it (`merkleblock` of the P2P
//! protocol): header (80), number of transactions u32, hashes, and a bit for each node of the
//! tree that is visited, depth first: 1 where the transaction is below.

use weft_chain::hash::sha256d_parts;
use weft_chain::wire::put_compact_size;
use weft_chain::{Hash, Header};

/// The proof for the transaction at `index`.
pub(crate) fn merkle_block(header: &Header, txids: &[Hash], index: usize) -> Vec<u8> {
    // Levels from the ids up to the root.
    let mut levels = vec![txids.to_vec()];
    while let Some(level) = levels.last().filter(|level| level.len() > 1) {
        let above = level
            .chunks(2)
            .map(|pair| sha256d_parts(&[&pair[0], &pair[pair.len() - 1]]))
            .collect();
        levels.push(above);
    }
    let (mut bits, mut hashes) = (Vec::new(), Vec::new());
    visit(&levels, levels.len() - 1, 0, index, &mut bits, &mut hashes);
    let mut out = header.to_bytes().to_vec();
    out.extend_from_slice(&(txids.len() as u32).to_le_bytes());
    put_compact_size(&mut out, hashes.len() as u64);
    hashes.iter().for_each(|hash| out.extend_from_slice(hash));
    put_compact_size(&mut out, bits.len().div_ceil(8) as u64);
    for eight in bits.chunks(8) {
        out.push(
            eight
                .iter()
                .rev()
                .fold(0, |byte, bit| byte << 1 | u8::from(*bit)),
        );
    }
    out
}

fn visit(
    levels: &[Vec<Hash>],
    level: usize,
    at: usize,
    index: usize,
    bits: &mut Vec<bool>,
    hashes: &mut Vec<Hash>,
) {
    let Some(hash) = levels.get(level).and_then(|nodes| nodes.get(at)) else {
        return;
    };
    let above = index >> level == at;
    bits.push(above);
    if level == 0 || !above {
        hashes.push(*hash);
        return;
    }
    visit(levels, level - 1, 2 * at, index, bits, hashes);
    visit(levels, level - 1, 2 * at + 1, index, bits, hashes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::consensus::deserialize;
    use bitcoin::hashes::Hash as _;

    /// Another implementation finds the transaction in it, for blocks of all shapes.
    #[test]
    fn others_read_it() {
        for count in [1usize, 2, 3, 5, 7, 8, 9, 16, 31, 100] {
            let txids: Vec<Hash> = (0..count).map(|n| [n as u8 + 1; 32]).collect();
            let (merkle_root, _) = weft_chain::merkle::root(txids.clone());
            let header = Header {
                version: 1,
                prev: [0; 32],
                merkle_root,
                time: 5,
                bits: 0x207f_ffff,
                nonce: 0,
            };
            for index in 0..count {
                let raw = merkle_block(&header, &txids, index);
                let proof: bitcoin::MerkleBlock = deserialize(&raw).unwrap();
                let (mut found, mut at) = (Vec::new(), Vec::new());
                proof.extract_matches(&mut found, &mut at).unwrap();
                assert_eq!(at, [index as u32]);
                assert_eq!(found[0].to_byte_array(), txids[index]);
            }
        }
    }
}
