//! The index beside a real `litecoind` on regtest that is given no rest: random payments of all kinds, replaced ones,
//! chains of unconfirmed ones, blocks that come, up to 120 that leave, restarts of either side. After each step coins,
//! balances, the hash of the coin set and what subscribers were told are the node's own.
//!
//! `WEFT_LIVE_SECONDS` says how long (default 40), `WEFT_LIVE_SEED` from which seed.

#[path = "../../source/tests/common/mod.rs"]
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use node::{Node, chain, unhex};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::setinfo::Kind as HashKind;
use weft_chain::{Block, Hash, OutPoint, script_hash};
use weft_indexd::follow::{Event, Follower};
use weft_source::{Kind, Settings, choose};
use weft_store::{Options, Reader, ScriptKey, Store, TxNum};

const NETWORK: &str = "litecoin-regtest";
/// Blocks before the first step: the extension blocks are active, and coins are mature.
const FIRST: u32 = 440;
/// Deepest reorganisation.
const DEEPEST: u64 = 120;

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(otherwise)
}

fn sats(amount: &Value) -> u64 {
    (amount.as_f64().expect("an amount") * 1e8).round() as u64
}

/// A subscriber: knows the chain from events alone.
#[derive(Default)]
struct Subscriber {
    /// Height of the last block told, and hashes where they were told.
    height: Option<u32>,
    hashes: BTreeMap<u32, Hash>,
    /// Scripts told since the last look; `None` once a batch came without.
    scripts: Option<BTreeSet<ScriptKey>>,
    came: u64,
    left: u64,
}

impl Subscriber {
    fn take(&mut self, event: Event) {
        match event {
            Event::Progress { .. } => {}
            Event::Written {
                height,
                hash,
                scripts,
            } => {
                assert!(
                    self.height.is_none_or(|h| height > h),
                    "height {height} is told after {:?}",
                    self.height
                );
                if let (Some(all), Some(last)) = (&mut self.scripts, self.height) {
                    match scripts {
                        Some(scripts) if height == last + 1 => all.extend(scripts),
                        _ => self.scripts = None,
                    }
                }
                self.came += u64::from(height - self.height.unwrap_or(0));
                self.height = Some(height);
                self.hashes.insert(height, hash);
            }
            Event::Undone {
                height,
                hash,
                scripts,
            } => {
                assert_eq!(
                    self.height,
                    Some(height),
                    "another block leaves than the last"
                );
                if let Some(told) = self.hashes.remove(&height) {
                    assert_eq!(told, hash);
                }
                if let Some(all) = &mut self.scripts {
                    all.extend(scripts);
                }
                self.left += 1;
                self.height = Some(height - 1);
            }
        }
    }
}

struct Live {
    node: Node,
    follower: Option<Follower>,
    folder: tempfile::TempDir,
    subscriber: Subscriber,
    rng: SmallRng,
    /// Every address that was ever used, with its script.
    addresses: Vec<(String, Vec<u8>)>,
    /// History of each script as it was at the last look.
    histories: BTreeMap<Vec<u8>, Vec<Hash>>,
    did: BTreeMap<&'static str, u64>,
}

impl Live {
    fn options(&self) -> Options {
        Options {
            memory: 64 << 20,
            threads: 2,
            undo_depth: 1000,
            ..Options::default()
        }
    }

    fn note(&mut self, what: &'static str, count: u64) {
        *self.did.entry(what).or_default() += count;
    }

    /// Opens the index, on one of the sources that can follow a node to a shorter chain.
    fn open(&mut self) {
        self.follower = None;
        let only = *[None, None, Some(Kind::Rpc), Some(Kind::Rest)]
            .choose(&mut self.rng)
            .expect("there are some");
        let settings = Settings {
            datadir: Some(self.node.dir.0.clone()),
            rpc: Some(self.node.rpc_place.clone()),
            p2p: Some(self.node.p2p),
            only,
            ..Settings::new(chain(NETWORK))
        };
        let choice = choose(&settings).expect("a source");
        let genesis = chain(NETWORK).params().genesis_hash();
        let options = self.options();
        let store =
            Store::open(self.folder.path(), genesis, options.clone()).expect("the index opens");
        assert_eq!(store.tip().map(|t| t.height), self.subscriber.height);
        let stop = Arc::new(AtomicBool::new(false));
        let follower = Follower::new(store, choice.source, &options, stop);
        self.follower = Some(follower.expect("threads"));
    }

    fn reader(&mut self) -> Reader {
        self.follower.as_mut().expect("open").store().reader()
    }

    fn best(&self) -> Hash {
        let best = self.node.rpc("getbestblockhash", json!([]));
        from_hex(best.as_str().expect("a hash")).expect("a hash")
    }

    fn height(&self) -> u64 {
        let count = self.node.rpc("getblockcount", json!([]));
        count.as_u64().expect("a count")
    }

    /// Follows until the index has the node's tip.
    fn follow(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let best = self.best();
            let follower = self.follower.as_mut().expect("open");
            let subscriber = &mut self.subscriber;
            match follower.round(&mut |event| subscriber.take(event)) {
                Ok(_) => {}
                Err(e) if e.is_temporary() => println!("again: {e}"),
                Err(e) => panic!("{e}"),
            }
            if follower.store().tip().map(|t| t.hash) == Some(best) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "it does not reach the node's tip"
            );
        }
    }

    fn fresh_address(&mut self) -> String {
        let kind = *["legacy", "p2sh-segwit", "bech32"]
            .choose(&mut self.rng)
            .expect("there are some");
        let address = self.node.rpc("getnewaddress", json!(["", kind]));
        let address = address.as_str().expect("an address").to_owned();
        let script = weft_chain::address::to_script(chain(NETWORK).params(), &address);
        self.addresses
            .push((address.clone(), script.expect("a known kind")));
        address
    }

    fn address(&mut self) -> String {
        if self.addresses.len() < 5 || self.rng.random_bool(0.3) {
            return self.fresh_address();
        }
        let n = self.rng.random_range(0..self.addresses.len());
        self.addresses[n].0.clone()
    }

    fn mine(&mut self, count: u64) {
        let address = self.address();
        self.node.rpc("generatetoaddress", json!([count, address]));
        self.note("blocks", count);
    }

    /// What may fail for want of coins, as nearly all steps may after blocks have left.
    fn attempt(&self, method: &str, params: Value) -> Option<Value> {
        let client = self.node.client(Duration::from_secs(60));
        client.call(method, params).ok()
    }

    fn pay(&mut self) {
        for _ in 0..self.rng.random_range(1..12) {
            let many = self.rng.random_range(1..20);
            let outputs: serde_json::Map<String, Value> = (0..many)
                .map(|_| {
                    (
                        self.address(),
                        json!(0.001 * f64::from(self.rng.random_range(1..500))),
                    )
                })
                .collect();
            let count = outputs.len() as u64;
            if self.attempt("sendmany", json!(["", outputs])).is_some() {
                self.note("transactions", 1);
                self.note("payments", count);
            }
        }
    }

    /// Each spends the change of the one before, unconfirmed.
    fn chain_of_payments(&mut self) {
        let largest = self.node.rpc("listunspent", json!([1]));
        let largest = largest.as_array().expect("coins").iter().filter(|c| {
            c["scriptPubKey"].is_string()
                && c["spendable"] == true
                && sats(&c["amount"]) > 1_000_000
        });
        let Some(coin) = largest.max_by_key(|c| sats(&c["amount"])).cloned() else {
            return;
        };
        let (mut txid, mut vout, mut left) = (
            coin["txid"].clone(),
            coin["vout"].clone(),
            sats(&coin["amount"]),
        );
        for _ in 0..self.rng.random_range(2..15) {
            left = left.saturating_sub(20_000);
            let address = self.address();
            // Data outputs never become coins, and are paid to all the same.
            let data = hex(&self.rng.random());
            let raw = self.attempt(
                "createrawtransaction",
                json!([[{"txid": txid, "vout": vout}], [{address: left as f64 / 1e8}, {"data": data}]]),
            );
            let signed =
                raw.and_then(|raw| self.attempt("signrawtransactionwithwallet", json!([raw])));
            let sent = signed.and_then(|s| self.attempt("sendrawtransaction", json!([s["hex"]])));
            let Some(sent) = sent else { return };
            (txid, vout) = (sent, json!(0));
            self.note("transactions", 1);
            self.note("chained", 1);
        }
    }

    fn replace(&mut self) {
        self.pay();
        let pool = self.node.rpc("getrawmempool", json!([]));
        let pool = pool.as_array().expect("ids").clone();
        for id in pool.choose_multiple(&mut self.rng, 4) {
            if self.attempt("bumpfee", json!([id])).is_some() {
                *self.did.entry("replaced").or_default() += 1;
            }
        }
    }

    fn hide(&mut self) {
        let hidden = self.node.rpc("getnewaddress", json!(["", "mweb"]));
        for _ in 0..3 {
            if self
                .attempt("sendtoaddress", json!([hidden, 0.5]))
                .is_some()
            {
                self.note("into the extension", 1);
            }
        }
    }

    fn leave(&mut self) {
        let height = self.height();
        let deepest = DEEPEST.min(height.saturating_sub(u64::from(FIRST)));
        if deepest == 0 {
            return;
        }
        // Shallow ones are the usual ones.
        let deep = if self.rng.random_bool(0.5) {
            self.rng.random_range(1..=deepest.min(4))
        } else {
            self.rng.random_range(1..=deepest)
        };
        let first = self.node.rpc("getblockhash", json!([height - deep + 1]));
        self.node.rpc("invalidateblock", json!([first]));
        self.note("reorganisations", 1);
        self.note("blocks taken off", deep);
        match self.rng.random_range(0..4) {
            // The index sees the shorter chain.
            0 => {
                self.follow();
                self.check();
                self.note("shorter chains seen", 1);
            }
            // The node comes back to the branch it left.
            1 => {
                if self.rng.random_bool(0.5) {
                    self.follow();
                }
                self.node.rpc("reconsiderblock", json!([first]));
                return;
            }
            _ => {}
        }
        let count = self.rng.random_range(1..=deep + 2);
        self.mine(count);
    }

    fn restart(&mut self) {
        self.node.restart();
        self.node.rpc("loadwallet", json!(["w"]));
        self.note("restarts of the node", 1);
        if self.rng.random_bool(0.5) {
            self.open();
        }
    }

    /// Everything the node can be asked about is the same here.
    fn check(&mut self) {
        let (best, reader) = (self.best(), self.reader());
        let (height, hash) = reader.tip().expect("readable").expect("a tip");
        assert_eq!((u64::from(height), hash), (self.height(), best));
        assert_eq!(self.subscriber.height, Some(height));
        for (height, hash) in &self.subscriber.hashes {
            let row = reader.header(*height).expect("readable").expect("a header");
            assert_eq!(row.hash, *hash, "what was told of height {height}");
        }
        let info = self.node.rpc("gettxoutsetinfo", json!([]));
        let (hash, counts) = reader.set_hash(HashKind::V2, 16 << 20).expect("readable");
        assert_eq!(counts.coins, info["txouts"].as_u64().expect("a count"));
        assert_eq!(hex(&hash), info["hash_serialized_2"], "at height {height}");
        reader.verify(2, |_| ()).expect("the commitment is right");
        self.check_coins(&reader);
        self.check_histories(&reader);
        self.note("checks", 1);
    }

    /// Coins and balance of every script, against the node's own scan of its set.
    fn check_coins(&self, reader: &Reader) {
        let wanted: Vec<String> = self
            .addresses
            .iter()
            .map(|(address, _)| format!("addr({address})"))
            .collect();
        let scan = self.node.rpc("scantxoutset", json!(["start", wanted]));
        let mut theirs: BTreeMap<Vec<u8>, BTreeSet<(OutPoint, u64, u32)>> = BTreeMap::new();
        for coin in scan["unspents"].as_array().expect("coins") {
            let script = unhex(coin["scriptPubKey"].as_str().expect("a script"));
            let txid = from_hex(coin["txid"].as_str().expect("an id")).expect("an id");
            let vout = coin["vout"].as_u64().expect("a number") as u32;
            theirs.entry(script).or_default().insert((
                OutPoint { txid, vout },
                sats(&coin["amount"]),
                coin["height"].as_u64().expect("a height") as u32,
            ));
        }
        for (address, script) in &self.addresses {
            let name = script_hash(script);
            let ours: BTreeSet<_> = reader
                .unspents(&name, usize::MAX)
                .expect("readable")
                .iter()
                .map(|u| (u.outpoint, u.value, u.txnum.height()))
                .collect();
            let theirs = theirs.remove(script).unwrap_or_default();
            assert_eq!(ours, theirs, "coins of {address}");
            let balance = reader.balance(&name).expect("readable");
            assert_eq!(balance.coins, ours.len() as u64, "{address}");
            assert_eq!(
                balance.value,
                ours.iter().map(|c| c.1).sum::<u64>(),
                "{address}"
            );
        }
    }

    /// A history that changed was told of.
    fn check_histories(&mut self, reader: &Reader) {
        for (address, script) in &self.addresses {
            let name = script_hash(script);
            let history: Vec<Hash> = reader
                .history(&name, TxNum::first_of(0), usize::MAX)
                .expect("readable")
                .iter()
                .map(|t| t.txid)
                .collect();
            let before = self.histories.entry(script.clone()).or_default();
            if let Some(told) = &self.subscriber.scripts {
                assert!(
                    *before == history || told.contains(&reader.script_key(&name)),
                    "the history of {address} changed and nobody was told"
                );
            }
            *before = history;
        }
        self.subscriber.scripts = Some(BTreeSet::new());
    }

    /// The history of every script there is, against the blocks themselves.
    fn check_all_histories(&mut self) {
        let reader = self.reader();
        let source = self.follower.as_ref().expect("open").source().clone();
        let (tip, _) = reader.tip().expect("readable").expect("a tip");
        let mut outputs: BTreeMap<OutPoint, Vec<u8>> = BTreeMap::new();
        let mut want: BTreeMap<Vec<u8>, Vec<Hash>> = BTreeMap::new();
        for height in 0..=tip {
            let row = reader.header(height).expect("readable").expect("a header");
            let raw = source
                .blocks(&[row.hash])
                .expect("the node has it")
                .remove(0);
            let block = Block::parse_checked(chain(NETWORK), raw).expect("a block");
            for tx in block.txs() {
                let spent: Vec<_> = tx
                    .inputs()
                    .iter()
                    .filter_map(|i| outputs.remove(&i.prevout))
                    .collect();
                let made = tx.outputs().map(|o| o.script.to_vec());
                let touched: BTreeSet<_> = spent.into_iter().chain(made).collect();
                for script in touched {
                    want.entry(script).or_default().push(*tx.txid());
                }
                for (output, vout) in tx.outputs().zip(0..) {
                    let txid = *tx.txid();
                    outputs.insert(OutPoint { txid, vout }, output.script.to_vec());
                }
            }
        }
        for (script, want) in &want {
            let have: Vec<_> = reader
                .history(&script_hash(script), TxNum::first_of(0), usize::MAX)
                .expect("readable")
                .iter()
                .map(|t| t.txid)
                .collect();
            assert_eq!(&have, want, "history of {script:02x?}");
        }
        self.note("histories compared", want.len() as u64);
    }
}

#[test]
fn beside_a_node_that_is_given_no_rest() {
    let Some(node) = Node::start("beside_a_node_that_is_given_no_rest", &["-walletrbf=1"]) else {
        return;
    };
    let seed = number("WEFT_LIVE_SEED", 20_09);
    let limit = Duration::from_secs(number("WEFT_LIVE_SECONDS", 40));
    let mut live = Live {
        node,
        follower: None,
        folder: tempfile::tempdir().expect("a scratch folder"),
        subscriber: Subscriber::default(),
        rng: SmallRng::seed_from_u64(seed),
        addresses: Vec::new(),
        histories: BTreeMap::new(),
        did: BTreeMap::new(),
    };
    live.mine(431);
    live.hide();
    live.mine(u64::from(FIRST) - 431);
    live.open();
    live.follow();
    live.check();
    let end = Instant::now() + limit;
    let mut steps = 0;
    while Instant::now() < end || steps < 15 {
        match live.rng.random_range(0..20) {
            0..=5 => live.pay(),
            6..=7 => live.chain_of_payments(),
            8..=10 => live.replace(),
            11 => live.hide(),
            12 => {}
            13..=17 => live.leave(),
            18 => live.restart(),
            _ => live.open(),
        }
        if live.rng.random_bool(0.7) {
            let count = live.rng.random_range(1..=12);
            live.mine(count);
        }
        live.follow();
        live.check();
        steps += 1;
    }
    live.leave();
    live.follow();
    live.check();
    live.check_all_histories();
    println!(
        "seed {seed}, {steps} steps: {:?}; subscribers saw {} blocks come and {} leave",
        live.did, live.subscriber.came, live.subscriber.left
    );
    for what in ["transactions", "replaced", "chained", "reorganisations"] {
        assert!(live.did.contains_key(what), "no {what} in {steps} steps");
    }
}
