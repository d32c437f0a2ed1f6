//! Proofs that a header is under a checkpoint: the Merkle tree over the hashes of all headers up
//! to a height.
//!
//! The tree is cut into parts of 2^11 headers. Roots of whole parts are kept, so a proof reads
//! the headers of at most two parts.

use weft_chain::hash::sha256d_parts;
use weft_chain::{Hash, merkle};

use crate::{Error, Result, View, lock};

/// Levels of a part.
const LEVELS: u32 = 11;
/// Headers of a part.
const PART: u32 = 1 << LEVELS;

/// Roots of whole parts from the first on, each with the hash of its last header: as long as that
/// is on the chain, all before it are.
#[derive(Debug, Default)]
pub(crate) struct Chunks(Vec<(Hash, Hash)>);

impl View {
    /// Siblings of the header at `height` in the tree over the headers up to `checkpoint`, and its
    /// root.
    ///
    /// # Errors
    /// `height` is above `checkpoint`, or that above the tip.
    pub fn header_proof(&self, height: u32, checkpoint: u32) -> Result<(Vec<Hash>, Hash)> {
        self.read(|| {
            let tip = self.0.reader.tip()?.map_or(0, |(height, _)| height);
            if height > checkpoint || checkpoint > tip {
                return Err(Error::Wrong(format!(
                    "header {height} has no proof under checkpoint {checkpoint}: it must be height <= checkpoint <= {tip}"
                )));
            }
            let (part, last) = (height / PART, checkpoint / PART);
            let leaves = self.part(part, checkpoint)?;
            let at = (height % PART) as usize;
            if last == 0 {
                let branch = merkle::branch(&leaves, at);
                return Ok((branch, merkle::root(leaves).0));
            }
            let (mut branch, _) = climb(leaves, at);
            let mut roots = self.whole_parts(last)?;
            roots.push(climb(self.part(last, checkpoint)?, 0).1);
            branch.extend(merkle::branch(&roots, part as usize));
            Ok((branch, merkle::root(roots).0))
        })
    }

    /// Hashes of the headers of a part, up to the checkpoint.
    fn part(&self, part: u32, checkpoint: u32) -> Result<Vec<Hash>> {
        let end = checkpoint.min(part * PART + PART - 1);
        (part * PART..=end)
            .map(|height| match self.0.reader.header(height)? {
                Some(row) => Ok(row.hash),
                None => Err(Error::Wrong(format!("there is no header {height}"))),
            })
            .collect()
    }

    /// Roots of the first `count` parts, all whole.
    fn whole_parts(&self, count: u32) -> Result<Vec<Hash>> {
        let mut kept = std::mem::take(&mut lock(&self.0.proofs).0);
        while let Some((last, _)) = kept.last() {
            let height = kept.len() as u32 * PART - 1;
            match self.0.reader.header(height)? {
                Some(row) if row.hash == *last => break,
                _ => kept.truncate(kept.len() - 1),
            }
        }
        for part in kept.len() as u32..count {
            let leaves = self.part(part, u32::MAX)?;
            let last = leaves.last().copied().unwrap_or_default();
            kept.push((last, climb(leaves, 0).1));
        }
        let roots = kept.iter().take(count as usize).map(|(_, root)| *root);
        let roots = roots.collect();
        lock(&self.0.proofs).0 = kept;
        Ok(roots)
    }
}

/// Goes up all levels of a part, also where one node stands alone: it is paired with itself, as
/// in a larger tree. Siblings of the leaf `at`, and the part's root.
fn climb(mut level: Vec<Hash>, mut at: usize) -> (Vec<Hash>, Hash) {
    let mut branch = Vec::with_capacity(LEVELS as usize);
    for _ in 0..LEVELS {
        let Some(&last) = level.last() else { break };
        if level.len() % 2 == 1 {
            level.push(last);
        }
        branch.extend(level.get(at ^ 1));
        level = level
            .chunks(2)
            .map(|pair| sha256d_parts(&[&pair[0], &pair[pair.len() - 1]]))
            .collect();
        at >>= 1;
    }
    (branch, level.first().copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parts put together are the plain tree.
    #[test]
    fn parts_make_the_same_tree() {
        for total in [PART + 1, PART + 7, 2 * PART, 3 * PART - 1, 5 * PART + 1234] {
            let leaves: Vec<Hash> = (0..total)
                .map(|n| {
                    let mut leaf = [7; 32];
                    leaf[..4].copy_from_slice(&n.to_le_bytes());
                    leaf
                })
                .collect();
            let parts: Vec<Vec<Hash>> =
                leaves.chunks(PART as usize).map(<[Hash]>::to_vec).collect();
            let roots: Vec<Hash> = parts.iter().map(|p| climb(p.clone(), 0).1).collect();
            assert_eq!(
                merkle::root(roots.clone()).0,
                merkle::root(leaves.clone()).0
            );
            for height in [0, 1, PART - 1, PART, total - 2, total - 1] {
                let part = (height / PART) as usize;
                let (mut branch, _) = climb(parts[part].clone(), (height % PART) as usize);
                branch.extend(merkle::branch(&roots, part));
                assert_eq!(
                    branch,
                    merkle::branch(&leaves, height as usize),
                    "{height} of {total}"
                );
            }
        }
    }
}
