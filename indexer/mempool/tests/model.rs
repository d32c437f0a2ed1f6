//! Random pools against a recount of everything from the transactions themselves.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use proptest::prelude::*;
use weft_chain::block::LooseTx;
use weft_chain::{Hash, OutPoint, chains, script_hash};
use weft_forge::{Made, Spend, transaction};
use weft_mempool::{Changes, Incoming, Mempool};

fn incoming(made: &Made) -> Incoming {
    let chain = chains::by_name("bitcoin-regtest").unwrap();
    Incoming {
        tx: LooseTx::parse(chain, made.raw.clone()).unwrap(),
        fee: None,
        vsize: None,
        time: 7,
    }
}

fn script(n: u8) -> Vec<u8> {
    vec![0x51, n % 5]
}

/// The coins of the chain: any output of an id that is all of one byte.
fn coin(at: &OutPoint) -> Option<(u64, Vec<u8>)> {
    let first = at.txid[0];
    at.txid
        .iter()
        .all(|b| *b == first)
        .then(|| (1_000_000, script(first)))
}

/// Recounts everything the pool says.
fn check(pool: &Mempool) {
    let all: HashMap<Hash, _> = pool.iter().map(|(id, e)| (*id, e)).collect();
    let (mut spenders, mut by_script) = (HashMap::new(), BTreeMap::<Hash, BTreeSet<Hash>>::new());
    let (mut bytes, mut vsize, mut fees) = (0, 0, 0);
    for (id, entry) in &all {
        bytes += entry.tx().raw().len();
        vsize += entry.vsize;
        fees += entry.fee;
        let mut parents = BTreeSet::new();
        for (input, funding) in entry.tx().inputs().iter().zip(&entry.spent) {
            assert_eq!(
                spenders.insert(input.prevout, *id),
                None,
                "two spend one coin"
            );
            let parent = all.get(&input.prevout.txid);
            if parent.is_some_and(|p| p.tx().outputs().len() > input.prevout.vout as usize) {
                parents.insert(input.prevout.txid);
            }
            if let Some(funding) = funding {
                by_script
                    .entry(funding.script_hash)
                    .or_default()
                    .insert(*id);
            }
        }
        assert_eq!(*entry.parents(), parents);
        for output in entry.tx().outputs() {
            by_script
                .entry(script_hash(output.script))
                .or_default()
                .insert(*id);
        }
    }
    assert_eq!(
        (pool.len(), pool.bytes(), pool.vsize(), pool.fees()),
        (all.len(), bytes, vsize, fees)
    );
    for (at, id) in &spenders {
        assert_eq!(pool.spender(at), Some(id));
    }
    for (script, ids) in &by_script {
        let theirs: BTreeSet<Hash> = pool.of_script(script).map(|(id, _)| *id).collect();
        assert_eq!(theirs, *ids);
        let unspent: BTreeSet<OutPoint> = pool
            .unspent_of_script(script)
            .into_iter()
            .map(|(at, _)| at)
            .collect();
        let mut want = BTreeSet::new();
        for (id, entry) in &all {
            for (vout, output) in (0..).zip(entry.tx().outputs()) {
                let at = OutPoint { txid: *id, vout };
                if script_hash(output.script) == *script && !spenders.contains_key(&at) {
                    want.insert(at);
                }
            }
        }
        assert_eq!(unspent, want);
    }
    for id in all.keys() {
        for child in pool.descendants(id) {
            assert!(pool.ancestors(&child).contains(id));
        }
        for parent in pool.ancestors(id) {
            assert!(pool.descendants(&parent).contains(id));
        }
    }
    let histogram = pool.fee_histogram();
    assert_eq!(histogram.iter().map(|(_, size)| size).sum::<u64>(), vsize);
    assert!(histogram.windows(2).all(|w| w[0].0 > w[1].0));
}

#[derive(Debug, Clone)]
enum Step {
    /// A transaction that spends some coins, of the chain or of earlier transactions.
    Come(Vec<(u8, u8)>, Vec<u8>),
    /// A block confirms some of them, and spends a coin besides.
    Confirm(Vec<u8>, u8),
    /// Some leave.
    Leave(Vec<u8>),
    /// Those a block confirmed come back.
    Return,
}

fn step() -> impl Strategy<Value = Step> {
    let spends = prop::collection::vec((any::<u8>(), 0u8..3), 1..4);
    prop_oneof![
        6 => (spends, prop::collection::vec(any::<u8>(), 1..4)).prop_map(|(s, o)| Step::Come(s, o)),
        1 => (prop::collection::vec(any::<u8>(), 0..4), any::<u8>()).prop_map(|(c, s)| Step::Confirm(c, s)),
        1 => prop::collection::vec(any::<u8>(), 1..3).prop_map(Step::Leave),
        1 => Just(Step::Return),
    ]
}

proptest! {
    #[test]
    fn the_pool_is_what_its_transactions_say(steps in prop::collection::vec(step(), 1..60)) {
        let mut pool = Mempool::new();
        let mut made: Vec<Made> = Vec::new();
        let mut confirmed: Vec<Made> = Vec::new();
        for (n, step) in steps.into_iter().enumerate() {
            let before: BTreeSet<Hash> = pool.iter().map(|(id, _)| *id).collect();
            let changes = match step {
                Step::Come(spends, outputs) => {
                    let spends: BTreeSet<OutPoint> = spends
                        .into_iter()
                        .map(|(which, vout)| match made.get(usize::from(which) % (made.len() + 3)) {
                            Some(earlier) => OutPoint { txid: earlier.txid, vout: vout.into() },
                            None => OutPoint { txid: [which; 32], vout: vout.into() },
                        })
                        .collect();
                    let spends: Vec<Spend> = spends.into_iter().map(Spend::bare).collect();
                    let outputs: Vec<_> = outputs.iter().map(|o| (u64::from(*o) + n as u64, script(*o))).collect();
                    let tx = transaction(&spends, &outputs);
                    made.push(tx.clone());
                    pool.apply(&[], vec![incoming(&tx)], coin)
                }
                Step::Confirm(which, spent) => {
                    let ids: Vec<Hash> = which
                        .iter()
                        .filter_map(|w| made.get(usize::from(*w) % made.len().max(1)))
                        .map(|tx| tx.txid)
                        .collect();
                    confirmed = made.iter().filter(|tx| ids.contains(&tx.txid)).cloned().collect();
                    pool.confirm(&ids, &[OutPoint { txid: [spent; 32], vout: 0 }])
                }
                Step::Leave(which) => {
                    let ids: Vec<Hash> = which
                        .iter()
                        .filter_map(|w| made.get(usize::from(*w) % made.len().max(1)))
                        .map(|tx| tx.txid)
                        .collect();
                    pool.apply(&ids, vec![], coin)
                }
                Step::Return => {
                    let back = std::mem::take(&mut confirmed);
                    pool.apply(&[], back.iter().map(incoming).collect(), coin)
                }
            };
            check(&pool);
            let after: BTreeSet<Hash> = pool.iter().map(|(id, _)| *id).collect();
            let Changes { added, removed, confirmed, scripts } = changes;
            let left: BTreeSet<Hash> = removed.into_iter().chain(confirmed).collect();
            for id in before.difference(&after) {
                prop_assert!(left.contains(id));
            }
            for id in after.difference(&before) {
                prop_assert!(added.contains(id));
                for output in pool.get(id).unwrap().tx().outputs() {
                    prop_assert!(scripts.contains(&script_hash(output.script)));
                }
            }
        }
    }
}

#[test]
fn a_replacement_takes_all_that_hangs_on_it_along() {
    let mut pool = Mempool::new();
    let at = |txid, vout| Spend::bare(OutPoint { txid, vout });
    let parent = transaction(&[at([1; 32], 0)], &[(900, script(1)), (50, script(2))]);
    let child = transaction(&[at(parent.txid, 0)], &[(800, script(3))]);
    let other = transaction(&[at([2; 32], 0)], &[(700, script(4))]);
    // In any order: parents are taken in first.
    let changes = pool.apply(&[], [&child, &other, &parent].map(incoming).to_vec(), coin);
    assert_eq!(changes.added.len(), 3);
    assert!(pool.get(&child.txid).unwrap().has_unconfirmed_inputs());
    assert_eq!(
        pool.balance_change(&script_hash(&script(1))),
        (900, 1_000_900)
    );
    let instead = transaction(&[at([1; 32], 0)], &[(500, script(1))]);
    let changes = pool.apply(&[], vec![incoming(&instead)], coin);
    let removed: BTreeSet<Hash> = changes.removed.iter().copied().collect();
    assert_eq!(removed, [parent.txid, child.txid].into());
    assert_eq!(changes.added, [instead.txid]);
    check(&pool);
    // A block with yet another spend of the coin.
    let changes = pool.confirm(
        &[[9; 32]],
        &[OutPoint {
            txid: [1; 32],
            vout: 0,
        }],
    );
    assert_eq!(
        (changes.removed, changes.confirmed),
        (vec![instead.txid], vec![])
    );
    assert_eq!(pool.recent().next().unwrap().txid, instead.txid);
    check(&pool);
}

#[test]
fn a_parent_that_comes_back_finds_its_child() {
    let mut pool = Mempool::new();
    let parent = transaction(
        &[Spend::bare(OutPoint {
            txid: [1; 32],
            vout: 0,
        })],
        &[(900, script(1))],
    );
    let child = transaction(
        &[Spend::bare(OutPoint {
            txid: parent.txid,
            vout: 0,
        })],
        &[(800, script(3))],
    );
    pool.apply(&[], vec![incoming(&parent), incoming(&child)], coin);
    let changes = pool.confirm(
        &[parent.txid],
        &[OutPoint {
            txid: [1; 32],
            vout: 0,
        }],
    );
    assert_eq!(changes.confirmed, [parent.txid]);
    assert!(
        changes.scripts.contains(&script_hash(&script(3))),
        "its child is no longer chained"
    );
    assert!(!pool.get(&child.txid).unwrap().has_unconfirmed_inputs());
    // The block leaves.
    let changes = pool.apply(&[], vec![incoming(&parent)], coin);
    assert!(pool.get(&child.txid).unwrap().has_unconfirmed_inputs());
    assert!(changes.scripts.contains(&script_hash(&script(3))));
    assert_eq!(pool.descendants(&parent.txid), [child.txid].into());
    check(&pool);
}
