//! Merkle trees of transaction ids, with detection of CVE-2012-2459.

use crate::Hash;
use crate::hash::sha256d_parts;

/// Root of the tree over `leaves`, and whether two equal neighbours stand anywhere in it.
///
/// A level of odd length pairs its last node with itself, so that a list which repeats its tail
/// has the same root; such a list holds two equal neighbours at some level, which honest blocks
/// never do (CVE-2012-2459). The root of no leaves is zero.
pub fn root(mut level: Vec<Hash>) -> (Hash, bool) {
    let mut mutated = false;
    if level.is_empty() {
        return (crate::hash::ZERO, false);
    }
    while level.len() > 1 {
        let mut n = 0;
        for at in (0..level.len()).step_by(2) {
            let left = level[at];
            let right = match level.get(at + 1) {
                Some(right) => {
                    mutated |= left == *right;
                    *right
                }
                None => left,
            };
            level[n] = sha256d_parts(&[&left, &right]);
            n += 1;
        }
        level.truncate(n);
    }
    (level[0], mutated)
}

/// The sibling hashes from leaf `index` up to the root: what proves that it is in the tree.
///
/// Empty where `index` is not one of the leaves.
pub fn branch(leaves: &[Hash], index: usize) -> Vec<Hash> {
    let mut out = Vec::new();
    if index >= leaves.len() {
        return out;
    }
    let (mut level, mut index) = (leaves.to_vec(), index);
    while level.len() > 1 {
        out.push(*level.get(index ^ 1).unwrap_or(&level[index]));
        level = level
            .chunks(2)
            .map(|p| sha256d_parts(&[&p[0], p.last().unwrap_or(&p[0])]))
            .collect();
        index >>= 1;
    }
    out
}

/// The root that a leaf and its branch give.
pub fn fold(leaf: Hash, branch: &[Hash], index: u32) -> Hash {
    branch
        .iter()
        .enumerate()
        .fold(leaf, |node, (level, sibling)| {
            if index.checked_shr(level as u32).unwrap_or(0) & 1 == 1 {
                sha256d_parts(&[sibling, &node])
            } else {
                sha256d_parts(&[&node, sibling])
            }
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn branches_lead_to_the_root(n in 1usize..40, at in any::<prop::sample::Index>()) {
            let leaves: Vec<Hash> = (0..n).map(|i| [i as u8; 32]).collect();
            let at = at.index(n);
            let (want, mutated) = root(leaves.clone());
            prop_assert!(!mutated);
            prop_assert_eq!(fold(leaves[at], &branch(&leaves, at), at as u32), want);
        }

        #[test]
        fn a_repeated_tail_is_seen(n in 3usize..40) {
            let leaves: Vec<Hash> = (0..n).map(|i| [i as u8; 32]).collect();
            // The number of leaves below the last node of the first level of odd length.
            let tail = n & n.wrapping_neg();
            prop_assume!(tail < n);
            let mut twice = leaves.clone();
            twice.extend_from_slice(&leaves[n - tail..]);
            let (honest, _) = root(leaves);
            prop_assert_eq!(root(twice), (honest, true));
        }
    }
}
