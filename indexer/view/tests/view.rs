//! Chain and pool as one: what readers see while both change, and what comes from block files.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weft_chain::{OutPoint, script_hash};
use weft_forge::{Made, Spend, transaction};
use weft_stage::{Stage, script};
use weft_view::{Error, Script, ScriptTx, Stats};

fn pay(spends: &[OutPoint], outputs: &[(u64, u32)]) -> Made {
    let spends: Vec<Spend> = spends.iter().map(|at| Spend::bare(*at)).collect();
    let outputs: Vec<_> = outputs
        .iter()
        .map(|(value, n)| (*value, script(*n)))
        .collect();
    transaction(&spends, &outputs)
}

/// A transaction moves between pool and blocks, and coins between scripts; whoever looks at any
/// moment sees it exactly once.
#[test]
fn readers_never_see_a_transaction_twice_or_not_at_all() {
    let mut stage = Stage::default();
    let base = stage.mine(&[(1000, script(1))], &[]).remove(0);
    let tx = pay(&[Stage::at(&base, 0)], &[(600, 2), (400, 3)]);
    stage.pool(&[], std::slice::from_ref(&tx));
    let stop = AtomicBool::new(false);
    let view = stage.view.clone();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let scripts = [1, 2, 3].map(|n| view.script(script_hash(&script(n))));
                    let mut reads = 0u64;
                    while !stop.load(Ordering::Relaxed) {
                        // All three by one read: what one loses the others have.
                        let sums = view.read(|| {
                            scripts
                                .iter()
                                .map(|s| view.balance(s))
                                .collect::<Result<Vec<_>, _>>()
                        });
                        let sum: i64 = sums
                            .unwrap()
                            .iter()
                            .map(|b| b.confirmed as i64 + b.unconfirmed())
                            .sum();
                        assert_eq!(sum, 1000);
                        for script in &scripts {
                            let history = view.history(script).unwrap();
                            let times = history
                                .confirmed
                                .iter()
                                .filter(|t| t.txid == tx.txid)
                                .count()
                                + history.pool.iter().filter(|t| t.txid == tx.txid).count();
                            assert_eq!(times, 1);
                        }
                        let coins = view.unspents(&scripts[1], true).unwrap();
                        assert_eq!(coins.iter().map(|c| c.value).sum::<u64>(), 600);
                        assert!(view.tx(&tx.txid).unwrap().is_some());
                        reads += 1;
                    }
                    reads
                })
            })
            .collect();
        for _ in 0..150 {
            stage.mine(&[(1, script(9))], std::slice::from_ref(&tx));
            // It goes back to the pool in the same change in which its block leaves.
            stage.undo();
        }
        stop.store(true, Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 10);
        }
    });
}

#[test]
fn random_chains_and_pools_against_a_plain_count() {
    let mut stage = Stage::default();
    let mut rng = SmallRng::seed_from_u64(11);
    // Every output there is, by who has it; the plain way.
    let mut chain: Vec<(OutPoint, u64, u32)> = Vec::new();
    let mut pool: Vec<Made> = Vec::new();
    let mut pool_outputs: Vec<(OutPoint, u64, u32)> = Vec::new();
    let mut pool_spent: Vec<OutPoint> = Vec::new();
    for _ in 0..120 {
        if rng.random_bool(0.3) {
            let outputs: Vec<_> = (0..rng.random_range(1..5))
                .map(|_| (rng.random_range(1..1_000_000), rng.random_range(0..8u32)))
                .collect();
            let made: Vec<_> = outputs.iter().map(|(v, n)| (*v, script(*n))).collect();
            let block = stage.mine(&made, &pool);
            chain.extend(
                (0..)
                    .zip(&outputs)
                    .map(|(vout, (v, n))| (Stage::at(&block[0], vout), *v, *n)),
            );
            chain.append(&mut pool_outputs);
            chain.retain(|(at, ..)| !pool_spent.contains(at));
            pool.clear();
            pool_spent.clear();
        } else {
            let open: Vec<_> = chain
                .iter()
                .chain(&pool_outputs)
                .filter(|(at, ..)| !pool_spent.contains(at))
                .copied()
                .collect();
            if open.is_empty() {
                continue;
            }
            let (at, value, _) = open[rng.random_range(0..open.len())];
            let to = [rng.random_range(0..8u32), rng.random_range(0..8u32)];
            let tx = pay(&[at], &[(value / 2, to[0]), (value / 3, to[1])]);
            pool_outputs.push((Stage::at(&tx, 0), value / 2, to[0]));
            pool_outputs.push((Stage::at(&tx, 1), value / 3, to[1]));
            pool_spent.push(at);
            stage.pool(&[], std::slice::from_ref(&tx));
            pool.push(tx);
        }
        for n in 0..8 {
            let named = stage.view.script(script_hash(&script(n)));
            let sum = |list: &[(OutPoint, u64, u32)], spent: &[OutPoint]| -> (u64, usize) {
                let mine = list
                    .iter()
                    .filter(|(at, _, who)| *who == n && !spent.contains(at));
                mine.fold((0, 0), |(sum, count), (_, v, _)| (sum + v, count + 1))
            };
            let balance = stage.view.balance(&named).unwrap();
            assert_eq!(
                (balance.confirmed, balance.coins as usize),
                sum(&chain, &[])
            );
            let (confirmed, pending) = (sum(&chain, &pool_spent), sum(&pool_outputs, &pool_spent));
            let total = confirmed.0 + pending.0;
            assert_eq!(
                balance.confirmed as i64 + balance.unconfirmed(),
                total as i64
            );
            let coins = stage.view.unspents(&named, true).unwrap();
            assert_eq!(coins.len(), confirmed.1 + pending.1);
            assert_eq!(coins.iter().map(|c| c.value).sum::<u64>(), total);
            pieces_make_the_whole(&stage, &named, rng.random_range(1..5));
            let alone = stage.view.unspents(&named, false).unwrap();
            assert_eq!(
                alone.iter().map(|c| c.value).sum::<u64>(),
                balance.confirmed
            );
        }
    }
}

/// What is read piece by piece is what is read at once.
fn pieces_make_the_whole(stage: &Stage, named: &Script, most: usize) {
    let view = &stage.view;
    for with_pool in [true, false] {
        let mut coins = view.coins(named, with_pool).unwrap();
        assert!(!coins.at_end());
        let (mut all, count) = (Vec::new(), coins.count().unwrap());
        while !coins.at_end() {
            let piece = coins.next(most).unwrap();
            assert!(piece.len() <= most);
            for coin in &piece {
                let want = coin.txnum.and_then(|n| view.confirmed(n).unwrap());
                assert_eq!(coins.confirmed(coin).unwrap(), want);
            }
            all.extend(piece);
        }
        assert!(coins.next(most).unwrap().is_empty() && all.len() <= count);
        assert_eq!(all, view.unspents(named, with_pool).unwrap());
    }
    let mut list = view.transactions(named).unwrap();
    let mut all = Vec::new();
    while !list.at_end() {
        all.extend(list.next(most).unwrap());
    }
    let history = view.history(named).unwrap();
    let confirmed = history.confirmed.iter().copied().map(ScriptTx::Confirmed);
    let whole: Vec<_> = confirmed
        .chain(history.pool.iter().copied().map(ScriptTx::Pool))
        .collect();
    assert_eq!(list.count().unwrap(), whole.len());
    assert_eq!(all, whole);
    let status = (history.status(), whole.len());
    assert_eq!(view.status(named).unwrap(), status);
    // And a bound that is passed is one, however it is read.
    if whole.len() > 1 {
        let mut few = view.within(whole.len() - 1).transactions(named).unwrap();
        assert!(few.count().is_err());
        let read = (0..whole.len()).try_for_each(|_| few.next(most).map(drop));
        assert!(matches!(read, Err(Error::TooMany { .. })));
        let status = view.within(whole.len() - 1).status(named);
        assert!(matches!(status, Err(Error::TooMany { .. })));
    }
}

#[test]
fn bytes_sums_and_spenders_come_from_block_files() {
    let mut stage = Stage::default();
    let base = stage
        .mine(&[(1000, script(1)), (7, vec![0x6a, 1, 2])], &[])
        .remove(0);
    let first = pay(&[Stage::at(&base, 0)], &[(600, 2), (300, 1)]);
    let second = pay(&[Stage::at(&first, 0), Stage::at(&first, 1)], &[(800, 1)]);
    stage.mine(&[(5, script(1))], &[first.clone(), second.clone()]);
    for made in [&base, &first, &second] {
        let found = stage.view.tx(&made.txid).unwrap().unwrap();
        assert_eq!(&found.raw[..], made.raw);
        assert!(found.confirmed.is_some());
    }
    let genesis = stage.view.reader().block_txids(0).unwrap().unwrap()[0];
    assert!(stage.view.tx(&genesis).unwrap().unwrap().raw.len() > 100);
    let named = |n| stage.view.script(script_hash(&script(n)));
    let stats = |n| stage.view.stats(&named(n)).unwrap();
    let want = Stats {
        txs: 4,
        funded: 4,
        funded_sum: 2105,
        spent: 2,
        spent_sum: 1300,
    };
    assert_eq!(stats(1).chain, want);
    assert_eq!(stats(1).chain, want, "from what was kept");
    assert_eq!(
        stats(2).chain,
        Stats {
            txs: 2,
            funded: 1,
            funded_sum: 600,
            spent: 1,
            spent_sum: 600
        }
    );
    let spender = |made: &Made, vout| {
        stage
            .view
            .spender(&Stage::at(made, vout))
            .unwrap()
            .map(|s| (s.txid, s.vin))
    };
    assert_eq!(spender(&base, 0), Some((first.txid, 0)));
    assert_eq!(spender(&first, 0), Some((second.txid, 0)));
    assert_eq!(spender(&first, 1), Some((second.txid, 1)));
    assert_eq!(spender(&second, 0), None);
    assert_eq!(spender(&base, 1), None, "data is never spent");
    assert_eq!(spender(&base, 9), None);
    // What was summed up to a block that left is not kept.
    stage.undo();
    stage.pool(&[], &[first.clone(), second.clone()]);
    let sums = stage
        .view
        .stats(&stage.view.script(script_hash(&script(1))))
        .unwrap();
    assert_eq!(
        sums.chain,
        Stats {
            txs: 1,
            funded: 1,
            funded_sum: 1000,
            spent: 0,
            spent_sum: 0
        }
    );
    assert_eq!(
        sums.pool,
        Stats {
            txs: 2,
            funded: 2,
            funded_sum: 1100,
            spent: 2,
            spent_sum: 1300
        }
    );
    let pending = stage.view.spender(&Stage::at(&base, 0)).unwrap().unwrap();
    assert_eq!((pending.txid, pending.confirmed), (first.txid, None));
}

#[test]
fn a_damaged_block_file_is_noticed() {
    let mut stage = Stage::default();
    let base = stage.mine(&[(1000, script(1))], &[]).remove(0);
    let path = stage.folder().join("blocks/blk00000.dat");
    let mut bytes = std::fs::read(&path).unwrap();
    let at = bytes
        .windows(base.raw.len())
        .position(|w| w == base.raw)
        .unwrap();
    bytes[at + base.raw.len() - 6] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let e = stage.view.tx(&base.txid).unwrap_err();
    assert!(matches!(e, Error::Bytes { .. }), "{e}");
    assert!(
        stage
            .view
            .balance(&stage.view.script(script_hash(&script(1))))
            .unwrap()
            .confirmed
            == 1000
    );
}
