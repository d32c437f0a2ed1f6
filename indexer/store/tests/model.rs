//! Random chains with random reorganisations against a plain model in memory; undoing is the
//! inverse of applying, row by row.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{chain, small};
use proptest::prelude::*;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weft_chain::{
    Block, Chain, Coin, Hash, MuHash3072, OutPoint, coin, is_unspendable, script_hash,
};
use weft_forge::{Made, Spend, block, coinbase, transaction};
use weft_store::{Durability, Family, Options, Store, TxNum};

/// Amounts and scripts.
type Outputs = Vec<(u64, Vec<u8>)>;
/// Outpoint, amount, height, coinbase.
type Listed = (OutPoint, u64, u32, bool);

/// What is true after a block, written as plainly as can be.
#[derive(Clone, Default)]
struct State {
    coins: BTreeMap<OutPoint, Coin>,
    history: BTreeMap<Vec<u8>, BTreeSet<(u32, u32, Hash)>>,
}

struct Model {
    blocks: Vec<Block>,
    states: Vec<State>,
    rng: SmallRng,
    /// Tells apart blocks of the same height.
    salt: u32,
}

impl Model {
    fn new(chain: &'static dyn Chain, seed: u64) -> Self {
        let genesis = common::genesis(chain);
        // Its output is no coin, and still a payment.
        let mut state = State::default();
        for tx in genesis.txs() {
            for output in tx.outputs() {
                let history = state.history.entry(output.script.to_vec()).or_default();
                history.insert((0, tx.index(), *tx.txid()));
            }
        }
        Self {
            blocks: vec![genesis],
            states: vec![state],
            rng: SmallRng::seed_from_u64(seed),
            salt: 0,
        }
    }

    fn script(&mut self) -> Vec<u8> {
        let n = self.rng.random_range(0..14u8);
        match n {
            0 => vec![],
            1 => vec![0x6a, 1, n],
            2 => vec![0x51; 10_000],
            3 => vec![0x51; 10_001],
            4..=7 => [&[0, 20][..], &[n; 20]].concat(),
            8..=10 => [&[0x76, 0xa9, 20][..], &[n; 20], &[0x88, 0xac]].concat(),
            _ => [&[0x51, 32][..], &[self.rng.random(); 32]].concat(),
        }
    }

    fn outputs(&mut self, most: usize) -> Outputs {
        let count = self.rng.random_range(1..=most);
        (0..count)
            .map(|_| (self.rng.random_range(0..1u64 << 40), self.script()))
            .collect()
    }

    /// Adds a block that spends old coins and new ones.
    fn mine(&mut self, chain: &'static dyn Chain) {
        let height = self.blocks.len() as u32;
        let mut state = self.states.last().unwrap().clone();
        self.salt += 1;
        // One in a while has more outputs than fit in the short form of a position.
        let most = if self.rng.random_range(0..40) == 0 {
            600
        } else {
            4
        };
        let outputs = self.outputs(most);
        let mut txs: Vec<(Made, Vec<OutPoint>, Outputs)> =
            vec![(coinbase(height, self.salt, &outputs), vec![], outputs)];
        let mut open: Vec<OutPoint> = state.coins.keys().copied().collect();
        for _ in 0..self.rng.random_range(0..8) {
            let mut inputs = Vec::new();
            for _ in 0..self.rng.random_range(1..4) {
                if !open.is_empty() {
                    let at = self.rng.random_range(0..open.len());
                    inputs.push(open.swap_remove(at));
                }
            }
            if inputs.is_empty() {
                break;
            }
            let outputs = self.outputs(5);
            let tx = transaction(
                &inputs.iter().map(|o| Spend::bare(*o)).collect::<Vec<_>>(),
                &outputs,
            );
            // What this one makes can be spent by the next.
            open.extend(
                outputs
                    .iter()
                    .zip(0..)
                    .filter(|((_, s), _)| !is_unspendable(s))
                    .map(|(_, vout)| OutPoint {
                        txid: tx.txid,
                        vout,
                    }),
            );
            txs.push((tx, inputs, outputs));
        }
        for (index, (tx, inputs, outputs)) in txs.iter().enumerate() {
            let seen = (height, index as u32, tx.txid);
            for input in inputs {
                let spent = state
                    .coins
                    .remove(input)
                    .expect("the model spends what there is");
                state.history.entry(spent.script).or_default().insert(seen);
            }
            for ((value, script), vout) in outputs.iter().zip(0..) {
                // Whether or not it becomes a coin.
                state
                    .history
                    .entry(script.clone())
                    .or_default()
                    .insert(seen);
                if !is_unspendable(script) {
                    let coin = Coin {
                        value: *value,
                        height,
                        coinbase: index == 0,
                        script: script.clone(),
                    };
                    state.coins.insert(
                        OutPoint {
                            txid: tx.txid,
                            vout,
                        },
                        coin,
                    );
                }
            }
        }
        let made: Vec<_> = txs.into_iter().map(|(tx, ..)| tx).collect();
        let (_, raw) = block(
            *self.blocks.last().unwrap().hash(),
            1_700_000_000 + height,
            &made,
        );
        self.blocks.push(Block::parse_checked(chain, raw).unwrap());
        self.states.push(state);
    }

    fn cut(&mut self, height: usize) {
        self.blocks.truncate(height + 1);
        self.states.truncate(height + 1);
    }

    /// Compares everything the store can be asked with the model.
    fn check(&self, store: &Store) {
        let reader = store.reader();
        let state = self.states.last().unwrap();
        let height = self.blocks.len() as u32 - 1;
        assert_eq!(
            reader.tip().unwrap(),
            Some((height, *self.blocks[height as usize].hash()))
        );
        let mut set = MuHash3072::new();
        let mut by_script: BTreeMap<&Vec<u8>, Vec<Listed>> = BTreeMap::new();
        for (at, c) in &state.coins {
            let mut bytes = Vec::new();
            coin::put_coin(
                &mut bytes,
                at,
                coin::code(c.height, c.coinbase),
                c.value,
                &c.script,
            );
            set.insert(&bytes);
            by_script
                .entry(&c.script)
                .or_default()
                .push((*at, c.value, c.height, c.coinbase));
            assert_eq!(reader.coin(at).unwrap().as_ref(), Some(c));
        }
        let verified = reader.verify(2, |_| ()).unwrap();
        assert_eq!(
            (verified.muhash, verified.coins),
            (set.finalize(), state.coins.len() as u64)
        );
        let row = reader.header(height).unwrap().unwrap();
        assert_eq!(row.muhash, Some(verified.muhash));
        assert_eq!(
            row.totals.amount,
            state.coins.values().map(|c| c.value).sum::<u64>()
        );
        assert_eq!(
            row.totals.bogosize,
            state
                .coins
                .values()
                .map(|c| c.script.len() as u64 + 50)
                .sum::<u64>()
        );
        assert_eq!(
            row.totals.txs,
            self.blocks.iter().map(|b| b.len() as u64).sum::<u64>()
        );
        for (script, seen) in &state.history {
            let hash = script_hash(script);
            let history = reader
                .history(&hash, TxNum::first_of(0), usize::MAX)
                .unwrap();
            let have: Vec<_> = history
                .iter()
                .map(|t| (t.txnum.height(), t.txnum.index(), t.txid))
                .collect();
            assert_eq!(have, seen.iter().copied().collect::<Vec<_>>());
            let mut have: Vec<_> = reader
                .unspents(&hash, usize::MAX)
                .unwrap()
                .iter()
                .map(|u| (u.outpoint, u.value, u.txnum.height(), u.txnum.index() == 0))
                .collect();
            have.sort();
            assert_eq!(have, by_script.get(script).cloned().unwrap_or_default());
        }
        for (height, block) in self.blocks.iter().enumerate().rev().take(3) {
            assert_eq!(
                reader.block_txids(height as u32).unwrap(),
                Some(block.txids())
            );
            assert_eq!(
                reader.header_by_hash(block.hash()).unwrap().unwrap().0,
                height as u32
            );
            for tx in block.txs() {
                let place = reader.tx(tx.txid()).unwrap().unwrap();
                assert_eq!(
                    (place.txnum.height(), place.txnum.index()),
                    (height as u32, tx.index())
                );
                let range =
                    place.span.offset as usize..(place.span.offset + place.span.len) as usize;
                assert_eq!(&block.raw()[range], tx.raw());
            }
        }
    }
}

/// Every row but those whose content depends on how much undo data has been deleted.
fn all_rows(store: &Store) -> Vec<(&'static str, Vec<u8>, Vec<u8>)> {
    let mut rows = Vec::new();
    for family in Family::ALL {
        store
            .reader()
            .each_row(family, |key, value| {
                rows.push((family.name(), key.to_vec(), value.to_vec()))
            })
            .unwrap();
    }
    rows
}

fn open(chain: &dyn Chain, folder: &std::path::Path) -> Store {
    Store::open(
        folder,
        chain.params().genesis_hash(),
        Options {
            undo_depth: 400,
            ..small()
        },
    )
    .unwrap()
}

/// One random life of a chain.
fn live(seed: u64, steps: usize, deepest: usize) {
    let chain = chain("bitcoin-regtest");
    let mut model = Model::new(chain, seed);
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(chain, dir.path());
    let genesis = store
        .preparer()
        .prepare(chain, &model.blocks[0], 0)
        .unwrap();
    store.apply(genesis).unwrap();
    store.commit(Durability::Log).unwrap();
    for step in 0..steps {
        match model.rng.random_range(0..10) {
            // A reorganisation.
            0..=2 if model.blocks.len() > 2 => {
                let deep = model
                    .rng
                    .random_range(1..=deepest.min(model.blocks.len() - 1));
                let keep = model.blocks.len() - 1 - deep;
                for _ in 0..deep {
                    store.undo().unwrap().unwrap();
                }
                model.cut(keep);
            }
            // Undo is the inverse of apply.
            3 => {
                store.commit(Durability::Files).unwrap();
                let before = all_rows(&store);
                let blocks = model.rng.random_range(1..12);
                let batch = model.rng.random_range(1..5);
                let from = model.blocks.len();
                for n in 0..blocks {
                    model.mine(chain);
                    let height = from + n;
                    let prepared = store
                        .preparer()
                        .prepare(chain, &model.blocks[height], height as u32)
                        .unwrap();
                    store.apply(prepared).unwrap();
                    if n % batch == 0 {
                        store.commit(Durability::Log).unwrap();
                    }
                }
                for _ in 0..blocks {
                    store.undo().unwrap().unwrap();
                }
                model.cut(from - 1);
                assert!(
                    all_rows(&store) == before,
                    "seed {seed} step {step}: undoing left other rows than there were"
                );
            }
            // Reopened, perhaps with a batch that was never written.
            4 => {
                let height = store.reader().tip().unwrap().unwrap().0;
                drop(store);
                store = open(chain, dir.path());
                assert_eq!(store.tip().unwrap().height, height);
                model.cut(height as usize);
            }
            5 => store.compact(|_| ()).unwrap(),
            // Goes on while the next blocks come and go.
            6 => store.settle(),
            _ => {}
        }
        let count = if model.rng.random_range(0..6) == 0 {
            deepest
        } else {
            6
        };
        let count = model.rng.random_range(1..=count);
        let batch = model.rng.random_range(1..40);
        for n in 1..=count {
            model.mine(chain);
            let height = model.blocks.len() - 1;
            let prepared = store
                .preparer()
                .prepare(chain, &model.blocks[height], height as u32)
                .unwrap();
            store.apply(prepared).unwrap();
            if n % batch == 0 {
                store
                    .commit(if batch % 2 == 0 {
                        Durability::Files
                    } else {
                        Durability::Log
                    })
                    .unwrap();
            }
        }
        store.commit(Durability::Log).unwrap();
        model.check(&store);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 6, max_shrink_iters: 20, ..ProptestConfig::default() })]
    #[test]
    fn random_chains_with_random_reorganisations(seed: u64) {
        live(seed, 10, 20);
    }
}

#[test]
fn reorganisations_of_more_than_a_hundred_blocks() {
    live(4242, 12, 150);
}

#[test]
fn what_does_not_fit_is_refused_and_changes_nothing() {
    let chain = chain("bitcoin-regtest");
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(chain, dir.path());
    let genesis = common::genesis(chain);
    let preparer = store.preparer();
    let ready = |raw: &[u8], height| {
        preparer.prepare(
            chain,
            &Block::parse_checked(chain, raw.to_vec()).unwrap(),
            height,
        )
    };
    store.apply(ready(genesis.raw(), 0).unwrap()).unwrap();
    let outputs = [(7, vec![0x51]), (8, vec![0x52])];
    let base = coinbase(1, 0, &outputs);
    let (one, raw) = block(*genesis.hash(), 1, std::slice::from_ref(&base));
    store.apply(ready(&raw, 1).unwrap()).unwrap();
    store.commit(Durability::Log).unwrap();
    let before = all_rows(&store);
    let coin = OutPoint {
        txid: base.txid,
        vout: 0,
    };
    let spend = |at: OutPoint, tag: u8| transaction(&[Spend::bare(at)], &[(5, vec![0x53, tag])]);
    let base2 = |n| coinbase(2, n, &[(1, vec![0x51])]);

    // Not the next one.
    let (_, raw) = block([9; 32], 2, &[base2(0)]);
    assert!(matches!(
        store.apply(ready(&raw, 2).unwrap()),
        Err(weft_store::Error::NotNext { .. })
    ));
    let (_, raw) = block(one, 2, &[base2(0)]);
    assert!(matches!(
        store.apply(ready(&raw, 3).unwrap()),
        Err(weft_store::Error::Height { .. })
    ));
    // Coins that are not there: an unknown transaction, an output too many, one spent before, one twice in a block.
    for at in [
        OutPoint {
            txid: [3; 32],
            vout: 0,
        },
        OutPoint {
            txid: base.txid,
            vout: 2,
        },
    ] {
        let (_, raw) = block(one, 2, &[base2(1), spend(at, 0)]);
        assert!(matches!(
            store.apply(ready(&raw, 2).unwrap()),
            Err(weft_store::Error::MissingCoin {
                height: 2,
                index: 1,
                ..
            })
        ));
    }
    let (_, raw) = block(one, 2, &[base2(2), spend(coin, 0), spend(coin, 1)]);
    assert!(matches!(
        ready(&raw, 2),
        Err(weft_store::Error::MissingCoin { index: 2, .. })
    ));
    // An output of a later transaction, and the coinbase's own.
    let later = spend(coin, 2);
    let early = spend(
        OutPoint {
            txid: later.txid,
            vout: 0,
        },
        3,
    );
    let (_, raw) = block(one, 2, &[base2(3), early, later]);
    assert!(ready(&raw, 2).is_err());
    let own = base2(4);
    let (_, raw) = block(
        one,
        2,
        &[
            own.clone(),
            spend(
                OutPoint {
                    txid: own.txid,
                    vout: 0,
                },
                4,
            ),
        ],
    );
    assert!(ready(&raw, 2).is_err());
    // A coinbase that repeats one with unspent outputs.
    let (_, raw) = block(one, 2, std::slice::from_ref(&base));
    assert!(matches!(
        store.apply(ready(&raw, 2).unwrap()),
        Err(weft_store::Error::Bip30 { .. })
    ));
    assert_eq!(store.commit(Durability::Log).unwrap().blocks, []);
    assert!(all_rows(&store) == before);

    // Spent in memory and on disk, a coin is gone for good.
    let (two, raw) = block(one, 2, &[base2(5), spend(coin, 5)]);
    store.apply(ready(&raw, 2).unwrap()).unwrap();
    let (_, raw) = block(two, 3, &[coinbase(3, 0, &outputs), spend(coin, 6)]);
    assert!(matches!(
        store.apply(ready(&raw, 3).unwrap()),
        Err(weft_store::Error::MissingCoin { .. })
    ));
    store.commit(Durability::Files).unwrap();
    assert!(matches!(
        store.apply(ready(&raw, 3).unwrap()),
        Err(weft_store::Error::MissingCoin { .. })
    ));
    // A coinbase may be repeated once all its outputs are spent, and then there are two of that id.
    let (three, raw) = block(
        two,
        3,
        &[
            coinbase(3, 1, &outputs),
            spend(
                OutPoint {
                    txid: base.txid,
                    vout: 1,
                },
                7,
            ),
        ],
    );
    store.apply(ready(&raw, 3).unwrap()).unwrap();
    let (_, raw) = block(three, 4, std::slice::from_ref(&base));
    store.apply(ready(&raw, 4).unwrap()).unwrap();
    store.commit(Durability::Log).unwrap();
    let reader = store.reader();
    assert_eq!(reader.coin(&coin).unwrap().map(|c| c.height), Some(4));
    assert_eq!(reader.tx(&base.txid).unwrap().unwrap().txnum.height(), 4);
    reader.verify(1, |_| ()).unwrap();
    store.undo().unwrap();
    assert_eq!(reader.coin(&coin).unwrap(), None);
    assert_eq!(reader.tx(&base.txid).unwrap().unwrap().txnum.height(), 1);

    // Another chain, another setting, another owner.
    let other = common::chain("litecoin-regtest").params().genesis_hash();
    assert!(
        Store::open(dir.path(), chain.params().genesis_hash(), small()).is_err(),
        "it is open already"
    );
    drop((store, reader));
    assert!(matches!(
        Store::open(dir.path(), other, small()),
        Err(weft_store::Error::Open { .. })
    ));
    let without = Options {
        commitment: false,
        ..small()
    };
    assert!(matches!(
        Store::open(dir.path(), chain.params().genesis_hash(), without),
        Err(weft_store::Error::Open { .. })
    ));
}

#[test]
fn undo_data_ends_where_configured() {
    let chain = chain("bitcoin-regtest");
    let mut model = Model::new(chain, 1);
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        undo_depth: 5,
        ..small()
    };
    let mut store = Store::open(dir.path(), chain.params().genesis_hash(), options).unwrap();
    for height in 0..30 {
        if height > 0 {
            model.mine(chain);
        }
        let prepared = store
            .preparer()
            .prepare(chain, &model.blocks[height], height as u32)
            .unwrap();
        store.apply(prepared).unwrap();
        store.commit(Durability::Log).unwrap();
    }
    for _ in 0..5 {
        store.undo().unwrap().unwrap();
    }
    assert!(matches!(
        store.undo(),
        Err(weft_store::Error::NoUndo {
            height: 24,
            depth: 5
        })
    ));
    model.cut(24);
    model.check(&store);
}
