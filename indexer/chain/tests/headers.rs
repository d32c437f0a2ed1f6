//! The header tree against a plain model: random forks on regtest, in any order.

mod common;

use std::collections::HashMap;

use common::chain;
use proptest::prelude::*;
use weft_chain::headers::HeaderTree;
use weft_chain::{Error, Hash, Header};

/// A header on `prev` that reaches regtest's target.
fn mine(prev: &Header, salt: u32) -> Header {
    let mut header = Header {
        prev: prev.hash(),
        merkle_root: [salt as u8; 32],
        time: prev.time + 1,
        nonce: salt,
        ..*prev
    };
    while chain("bitcoin-regtest").check_pow(&header, None).is_err() {
        header.nonce = header.nonce.wrapping_add(0x100);
    }
    header
}

/// The way down from a header to genesis, by hash, highest first.
fn way(all: &HashMap<Hash, Header>, from: &Hash) -> Vec<Hash> {
    let mut out = vec![*from];
    while let Some(header) = all
        .get(out.last().expect("not empty"))
        .filter(|h| h.prev != [0; 32])
    {
        out.push(header.prev);
    }
    out
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]
    #[test]
    fn best_chain_paths_and_locators(parents in prop::collection::vec(any::<prop::sample::Index>(), 1..120), bias in 0usize..4) {
        let network = chain("bitcoin-regtest");
        let genesis = network.params().genesis;
        let mut tree = HeaderTree::new(network);
        let mut list = vec![genesis];
        let mut all = HashMap::from([(genesis.hash(), genesis)]);
        let mut best = vec![genesis.hash()];
        for (n, parent) in parents.iter().enumerate() {
            // Mostly near the end, so that branches grow long.
            let window = if bias == 0 { list.len() } else { list.len().min(bias * 3) };
            let parent = list[list.len() - 1 - parent.index(window)];
            let header = mine(&parent, n as u32);
            let orphan = mine(&header, 7);
            prop_assert_eq!(
                tree.insert(&orphan, None),
                Err(Error::Orphan { header: orphan.hash(), prev: header.hash() })
            );
            let before = tree.tip().hash;
            let changed = tree.insert(&header, None).expect("valid");
            prop_assert!(!tree.insert(&header, None).expect("known"), "a second time changes nothing");
            all.insert(header.hash(), header);
            list.push(header);
            // Every header has the same work: the longest chain, the first of equals.
            let mine = way(&all, &header.hash());
            prop_assert_eq!(changed, mine.len() > best.len());
            if changed {
                best = mine;
            }
            prop_assert_eq!(tree.tip().hash, best[0]);
            prop_assert_eq!(tree.tip().height as usize, best.len() - 1);
            // From where we were to the new tip: leave down to the fork, enter up from it.
            let path = tree.path_to_tip(&before).expect("known");
            let mut at = way(&all, &before);
            for hash in &path.leave {
                prop_assert_eq!(&at.remove(0), hash);
            }
            let mut walked: Vec<Hash> = path.enter.iter().rev().copied().collect();
            walked.extend(at);
            prop_assert_eq!(&walked, &best);
        }
        for (hash, header) in &all {
            let entry = tree.get(hash).expect("known");
            prop_assert_eq!(entry.header, *header);
            prop_assert_eq!(tree.is_on_best_chain(hash), best.contains(hash));
            prop_assert_eq!(tree.is_on_best_chain(hash), tree.at(entry.height).is_some_and(|e| e.hash == *hash));
            // What a follower on any block is told.
            let fork = way(&all, hash).into_iter().find(|h| best.contains(h)).expect("genesis at least");
            let ahead = tree.after(&way(&all, hash), 1000);
            prop_assert_eq!(ahead.first().map_or(best[0], |e| e.header.prev), fork);
            prop_assert_eq!(ahead.last().map_or(fork, |e| e.hash), best[0]);
        }
        let locator = tree.locator();
        prop_assert_eq!(locator.first(), Some(&best[0]));
        prop_assert_eq!(locator.last(), Some(&genesis.hash()));
        prop_assert!(locator.len() <= 10 + 32 && locator.windows(2).all(|w| w[0] != w[1]));
    }
}

#[test]
fn headers_that_break_a_rule_are_refused() {
    let network = chain("bitcoin-regtest");
    let mut tree = HeaderTree::new(network);
    let mut tip = network.params().genesis;
    for n in 0..20 {
        tip = mine(&tip, n);
        tree.insert(&tip, None).expect("valid");
    }
    let remine = |mut header: Header| {
        while network.check_pow(&header, None).is_err() {
            header.nonce = header.nonce.wrapping_add(1);
        }
        header
    };
    let next = mine(&tip, 99);
    // The median of the last eleven is five before the tip.
    let old = remine(Header {
        time: tip.time - 5,
        ..next
    });
    assert!(matches!(
        tree.insert(&old, None),
        Err(Error::TimeTooOld { height: 21, .. })
    ));
    tree.insert(
        &remine(Header {
            time: tip.time - 4,
            ..next
        }),
        None,
    )
    .expect("later than the median");
    let easy = Header {
        bits: 0x2100_ffff,
        ..next
    };
    assert!(matches!(
        tree.insert(&easy, None),
        Err(Error::ProofOfWork { .. })
    ));
    let hard = remine(Header {
        bits: 0x207f_fffe,
        ..next
    });
    assert!(matches!(
        tree.insert(&hard, None),
        Err(Error::Difficulty {
            want: 0x207f_ffff,
            ..
        })
    ));
    for bits in [0, 0x2080_0000, 0xff7f_ffff] {
        assert!(matches!(
            tree.insert(&Header { bits, ..next }, None),
            Err(Error::ProofOfWork { .. })
        ));
    }
    let mut lazy = next;
    while network.check_pow(&lazy, None).is_ok() {
        lazy.nonce = lazy.nonce.wrapping_add(1);
    }
    assert!(matches!(
        tree.insert(&lazy, None),
        Err(Error::ProofOfWork { .. })
    ));
}

/// A tree may begin anywhere; what needs headers from before is then not checked.
#[test]
fn a_tree_from_a_later_root() {
    let network = chain("bitcoin-regtest");
    let mut headers = vec![network.params().genesis];
    for n in 0..40 {
        headers.push(mine(headers.last().expect("not empty"), n));
    }
    let mut tree = HeaderTree::from_root(network, headers[25], 25, 1_000);
    for header in &headers[26..] {
        assert!(tree.insert(header, None).expect("valid"));
    }
    assert_eq!((tree.tip().height, tree.tip().work), (40, 1_000 + 15 * 2));
    assert_eq!(tree.root().header, headers[25]);
    assert_eq!(tree.at(24), None);
    assert_eq!(tree.locator().last(), Some(&headers[25].hash()));
    assert!(matches!(
        tree.insert(&headers[3], None),
        Err(Error::Orphan { .. })
    ));
}
