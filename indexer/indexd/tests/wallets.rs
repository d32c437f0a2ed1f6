//! What wallets are told, against a real `litecoind` on regtest: random payments, replacements,
//! chains of unconfirmed ones, blocks that come and up to 120 that leave, restarts of node and
//! index. After each step balances and coins over Electrum and Esplora are the node's own, and
//! what subscribers were told leads exactly to where the chain and the scripts are.
//!
//! `WEFT_LIVE_SECONDS` says how long (default 40), `WEFT_LIVE_SEED` from which seed.

#[path = "../../source/tests/common/mod.rs"]
mod node;
mod wallet_clients;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use node::{Node, chain, unhex};
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use wallet_clients::{Electrum, Events, Service, eventually, status_of};
use weft_chain::hash::{from_hex, hex};
use weft_chain::script_hash;

const NETWORK: &str = "litecoin-regtest";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(otherwise)
}

fn sats(amount: &Value) -> u64 {
    (amount.as_f64().expect("an amount") * 1e8).round() as u64
}

/// Outpoint and amount.
type Coins = BTreeSet<(String, u64, u64)>;

struct Live {
    node: Node,
    service: Service,
    rng: SmallRng,
    /// Address, script hash as Electrum has it.
    addresses: Vec<(String, String)>,
    electrum: Electrum,
    events: Events,
    did: BTreeMap<&'static str, u64>,
}

impl Live {
    fn did(&mut self, what: &'static str) {
        *self.did.entry(what).or_default() += 1;
    }

    fn address(&mut self) -> String {
        if self.addresses.len() > 40 || self.addresses.len() > 8 && self.rng.random_bool(0.6) {
            return self
                .addresses
                .choose(&mut self.rng)
                .expect("some")
                .0
                .clone();
        }
        let kind = *["legacy", "p2sh-segwit", "bech32"]
            .choose(&mut self.rng)
            .expect("some");
        let address = self.node.rpc("getnewaddress", json!(["", kind]));
        let address = address.as_str().expect("an address").to_owned();
        let script = weft_chain::address::to_script(chain(NETWORK).params(), &address);
        let name = hex(&script_hash(&script.expect("a known kind")));
        self.electrum.subscribe(&name);
        self.addresses.push((address.clone(), name));
        address
    }

    fn best(&self) -> String {
        self.node
            .rpc("getbestblockhash", json!([]))
            .as_str()
            .expect("a hash")
            .to_owned()
    }

    /// Mines. A block to the same address within the same second as one that was taken off is that one again, and the
    /// node refuses it; the next second gives another.
    fn mine(&self, count: u64, to: &str) {
        let client = self.node.client(Duration::from_secs(20));
        eventually("a block that was not there before", || {
            match client.call::<Value>("generatetoaddress", json!([count, to])) {
                Ok(_) => Some(()),
                Err(e) if e.to_string().contains("block not accepted") => None,
                Err(e) => panic!("{e}"),
            }
        });
    }

    fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..45 => {
                for _ in 0..self.rng.random_range(1..6) {
                    let to = self.address();
                    let amount = f64::from(self.rng.random_range(1..400)) / 100.0;
                    let params = json!([to, amount, "", "", false, true]);
                    let client = self.node.client(Duration::from_secs(20));
                    // At the end of a long chain of unconfirmed ones the wallet has nothing left.
                    if client.call::<Value>("sendtoaddress", params).is_ok() {
                        self.did("payments");
                    }
                }
            }
            45..60 => {
                let pool = self.node.rpc("getrawmempool", json!([]));
                let client = self.node.client(Duration::from_secs(20));
                if let Some(txid) = pool.as_array().expect("a list").choose(&mut self.rng)
                    && client.call::<Value>("bumpfee", json!([txid])).is_ok()
                {
                    self.did("replacements");
                }
            }
            60..85 => {
                let to = self.address();
                let count = self.rng.random_range(1..4);
                self.mine(count, &to);
                self.did("minings");
            }
            85..93 => {
                let height = self
                    .node
                    .rpc("getblockcount", json!([]))
                    .as_u64()
                    .expect("a count");
                let deep = match self.rng.random_bool(0.2) {
                    true => self.rng.random_range(20..121),
                    false => self.rng.random_range(1..8),
                };
                let at = height + 1 - deep.min(height.saturating_sub(110)).max(1);
                let hash = self.node.rpc("getblockhash", json!([at]));
                self.node.rpc("invalidateblock", json!([hash]));
                self.did("reorganisations");
                match self.rng.random_range(0..3) {
                    0 => {
                        self.node.rpc("reconsiderblock", json!([hash]));
                    }
                    1 => {
                        let to = self.address();
                        self.mine(deep + 1, &to);
                    }
                    _ => {}
                }
            }
            93..97 => {
                self.node.restart();
                self.node.rpc("getblockcount", json!([]));
                let client = self.node.client(Duration::from_secs(20));
                let _ = client.call::<Value>("loadwallet", json!(["w"]));
                self.did("restarts of the node");
            }
            _ => {
                self.service.restart();
                self.electrum = self.service.electrum();
                for (_, name) in &self.addresses {
                    self.electrum.subscribe(name);
                }
                self.events.follow(&self.service);
                self.did("restarts of the index");
            }
        }
    }

    /// Waits until the index has the node's chain and pool.
    fn meet(&mut self) {
        let best = self.best();
        let pool = self.node.rpc("getrawmempool", json!([]));
        let mut want: Vec<String> = pool
            .as_array()
            .expect("a list")
            .iter()
            .map(|id| id.as_str().expect("an id").to_owned())
            .collect();
        want.sort();
        let service = &self.service;
        eventually("the index is where the node is", || {
            let tip = service.get_text("/blocks/tip/hash")?;
            let mut have: Vec<String> =
                serde_json::from_value(service.get("/mempool/txids")?).expect("ids");
            have.sort();
            // The tip again: pool and chain belong together.
            (tip == best && have == want && service.get_text("/blocks/tip/hash")? == best)
                .then_some(())
        });
    }

    /// Coins of every address by the node: of the chain alone, and with its pool.
    fn nodes_coins(&self) -> BTreeMap<String, (Coins, Coins)> {
        let mut by_script: BTreeMap<String, (Coins, Coins)> = BTreeMap::new();
        let mut name_of: BTreeMap<Vec<u8>, String> = BTreeMap::new();
        let mut descriptors = Vec::new();
        for (address, name) in &self.addresses {
            descriptors.push(format!("addr({address})"));
            by_script.insert(name.clone(), Default::default());
            let script = weft_chain::address::to_script(chain(NETWORK).params(), address);
            name_of.insert(script.expect("a known kind"), name.clone());
        }
        let scan = self.node.rpc("scantxoutset", json!(["start", descriptors]));
        for coin in scan["unspents"].as_array().expect("a list") {
            let name = &name_of[&unhex(coin["scriptPubKey"].as_str().expect("hex"))];
            let entry = (
                coin["txid"].as_str().expect("id").to_owned(),
                coin["vout"].as_u64().expect("number"),
                sats(&coin["amount"]),
            );
            let coins = by_script.get_mut(name).expect("asked for");
            coins.0.insert(entry.clone());
            coins.1.insert(entry);
        }
        let pool = self.node.rpc("getrawmempool", json!([]));
        let mut spent = BTreeSet::new();
        for txid in pool.as_array().expect("a list") {
            let tx = self.node.rpc("getrawtransaction", json!([txid, true]));
            for input in tx["vin"].as_array().expect("a list") {
                spent.insert((
                    input["txid"].as_str().expect("id").to_owned(),
                    input["vout"].as_u64().expect("n"),
                ));
            }
            for output in tx["vout"].as_array().expect("a list") {
                let script = unhex(output["scriptPubKey"]["hex"].as_str().expect("hex"));
                if let Some(name) = name_of.get(&script) {
                    let entry = (
                        txid.as_str().expect("id").to_owned(),
                        output["n"].as_u64().expect("n"),
                        sats(&output["value"]),
                    );
                    by_script.get_mut(name).expect("asked for").1.insert(entry);
                }
            }
        }
        for (_, with_pool) in by_script.values_mut() {
            with_pool.retain(|(txid, vout, _)| !spent.contains(&(txid.clone(), *vout)));
        }
        by_script
    }

    fn compare(&mut self) {
        let truth = self.nodes_coins();
        let sum = |coins: &Coins| coins.iter().map(|(.., value)| *value as i64).sum::<i64>();
        let mut client = self.service.electrum();
        for (address, name) in &self.addresses {
            let (chain, with_pool) = &truth[name];
            let balance = client.ask("blockchain.scripthash.get_balance", json!([name]));
            assert_eq!(balance["confirmed"], sum(chain), "{address}");
            assert_eq!(
                balance["unconfirmed"].as_i64().expect("a number"),
                sum(with_pool) - sum(chain),
                "{address}"
            );
            let coins = client.ask("blockchain.scripthash.listunspent", json!([name]));
            let coins: Coins = coins
                .as_array()
                .expect("a list")
                .iter()
                .map(|c| {
                    let id = c["tx_hash"].as_str().expect("id").to_owned();
                    (
                        id,
                        c["tx_pos"].as_u64().expect("n"),
                        c["value"].as_u64().expect("n"),
                    )
                })
                .collect();
            assert_eq!(coins, *with_pool, "{address}");
            for (query, want) in [("", with_pool), ("?mempool=false", chain)] {
                let coins = self
                    .service
                    .get(&format!("/address/{address}/utxo{query}"))
                    .expect("coins");
                let coins: Coins = coins
                    .as_array()
                    .expect("a list")
                    .iter()
                    .map(|c| {
                        let id = c["txid"].as_str().expect("id").to_owned();
                        (
                            id,
                            c["vout"].as_u64().expect("n"),
                            c["value"].as_u64().expect("n"),
                        )
                    })
                    .collect();
                assert_eq!(coins, *want, "{address} {query}");
            }
            // What subscribers know is the present status.
            let history = client.ask("blockchain.scripthash.get_history", json!([name]));
            let want = status_of(&history);
            self.electrum.wait_for_status(name, &want);
        }
        let some: Vec<_> = self
            .addresses
            .choose_multiple(&mut self.rng, 4)
            .cloned()
            .collect();
        for (address, name) in some {
            let stats = self
                .service
                .get(&format!("/address/{address}"))
                .expect("sums");
            let left = |sums: &Value| {
                sums["funded_txo_sum"].as_i64().expect("n")
                    - sums["spent_txo_sum"].as_i64().expect("n")
            };
            let (chain, with_pool) = &truth[&name];
            assert_eq!(left(&stats["chain_stats"]), sum(chain));
            assert_eq!(
                left(&stats["chain_stats"]) + left(&stats["mempool_stats"]),
                sum(with_pool)
            );
            let page = self
                .service
                .get(&format!("/address/{address}/txs"))
                .expect("transactions");
            for tx in page.as_array().expect("a list").iter().take(3) {
                self.same_transaction(tx);
            }
        }
        let best = self.best();
        self.electrum.wait_for_tip(&best);
        self.events.wait_for_tip(&best);
    }

    /// A transaction as Esplora shows it has the node's bytes, and fees that add up.
    fn same_transaction(&self, tx: &Value) {
        let txid = tx["txid"].as_str().expect("id");
        let raw = self
            .service
            .get_text(&format!("/tx/{txid}/hex"))
            .expect("bytes");
        let block = &tx["status"]["block_hash"];
        let params = match block.is_null() {
            true => json!([txid]),
            false => json!([txid, false, block]),
        };
        assert_eq!(self.node.rpc("getrawtransaction", params), raw);
        let sum = |list: &Value, of: &dyn Fn(&Value) -> Option<i64>| {
            list.as_array()
                .expect("a list")
                .iter()
                .map(of)
                .sum::<Option<i64>>()
        };
        let had = sum(&tx["vin"], &|input| input["prevout"]["value"].as_i64());
        let paid = sum(&tx["vout"], &|output| output["value"].as_i64()).expect("values");
        match had {
            Some(had) => assert_eq!(tx["fee"], had - paid, "{txid}"),
            None => assert_eq!(tx["vin"][0]["is_coinbase"], true, "{txid}"),
        }
    }
}

#[test]
fn wallets_are_told_what_the_node_knows() {
    let test = "wallets_are_told_what_the_node_knows";
    let Some(node) = Node::start(test, &["-walletrbf=1", "-mempoolreplacement=1"]) else {
        return;
    };
    let seed = number("WEFT_LIVE_SEED", u64::from(std::process::id()));
    println!("seed {seed}");
    node.mine(112);
    let mut service = Service::new(NETWORK, &node);
    service.start();
    let electrum = service.electrum();
    let mut events = Events::default();
    events.follow(&service);
    let mut live = Live {
        node,
        service,
        rng: SmallRng::seed_from_u64(seed),
        addresses: Vec::new(),
        electrum,
        events,
        did: BTreeMap::new(),
    };
    let until = Instant::now() + Duration::from_secs(number("WEFT_LIVE_SECONDS", 40));
    let mut steps = 0;
    while Instant::now() < until || steps < 10 {
        for _ in 0..live.rng.random_range(1..4) {
            live.step();
        }
        live.meet();
        live.compare();
        steps += 1;
    }
    println!("{steps} comparisons after {:?}", live.did);
    println!(
        "{} blocks told, {} left",
        live.events.came(),
        live.events.left()
    );
}

#[test]
fn a_broadcast_transaction_is_there_at_once_and_fees_are_the_nodes() {
    let test = "a_broadcast_transaction_is_there_at_once_and_fees_are_the_nodes";
    let Some(node) = Node::start(test, &[]) else {
        return;
    };
    node.mine(103);
    let mut service = Service::new(NETWORK, &node);
    service.start();
    let mut electrum = service.electrum();
    let to = node.address();
    let script = weft_chain::address::to_script(chain(NETWORK).params(), &to).expect("an address");
    let name = hex(&script_hash(&script));
    assert_eq!(
        electrum.ask("blockchain.scripthash.subscribe", json!([name])),
        Value::Null
    );
    let sign = |amount: f64| {
        let raw = node.rpc("createrawtransaction", json!([[], {&to: amount}]));
        let funded = node.rpc("fundrawtransaction", json!([raw]));
        let signed = node.rpc("signrawtransactionwithwallet", json!([funded["hex"]]));
        signed["hex"].as_str().expect("hex").to_owned()
    };
    let raw = sign(1.5);
    let txid = electrum.ask("blockchain.transaction.broadcast", json!([raw]));
    let history = eventually("it is in the history", || {
        let history = electrum.ask("blockchain.scripthash.get_history", json!([name]));
        (history != json!([])).then_some(history)
    });
    assert_eq!(history[0]["tx_hash"], txid);
    assert_eq!(history[0]["height"], 0);
    assert_eq!(
        electrum.ask("blockchain.transaction.get", json!([txid])),
        raw
    );
    node.mine(1);
    let raw = sign(0.5);
    let answer = service.post("/tx", &raw);
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert!(from_hex(&answer.1).is_some());
    // What the node refuses comes back with its words.
    let refused = service.post("/tx", &raw[..raw.len() - 2]);
    assert!(
        refused.0 == 400 && refused.1.contains("code"),
        "{refused:?}"
    );
    let failed = electrum.fail("blockchain.transaction.broadcast", json!(["00"]));
    assert_eq!(failed["code"], 1, "{failed}");
    // This node is older than packages.
    assert_eq!(
        service.post("/txs/package", &json!([raw]).to_string()).0,
        400
    );
    let relay = electrum.ask("blockchain.relayfee", json!([]));
    assert_eq!(relay, node.rpc("getnetworkinfo", json!([]))["relayfee"]);
    assert_eq!(
        electrum.ask("blockchain.estimatefee", json!([2])),
        -1,
        "a young chain has no estimates"
    );
    assert_eq!(service.get("/fee-estimates").expect("fees"), json!({}));
    let mempool = service.get("/mempool").expect("sums");
    let info = node.rpc("getmempoolinfo", json!([]));
    assert_eq!(
        (&mempool["count"], &mempool["vsize"]),
        (&info["size"], &info["bytes"])
    );
    assert_eq!(
        service.get("/mempool/recent").expect("a list")[0]["txid"],
        answer.1.as_str()
    );
    // Blocks as the node shows them.
    for height in [0, 1, 100, 104] {
        let hash = service
            .get_text(&format!("/block-height/{height}"))
            .expect("a hash");
        let ours = service.get(&format!("/block/{hash}")).expect("a block");
        let theirs = node.rpc("getblock", json!([hash]));
        for (our, their) in [
            ("id", "hash"),
            ("height", "height"),
            ("version", "version"),
            ("timestamp", "time"),
            ("mediantime", "mediantime"),
            ("tx_count", "nTx"),
            ("size", "size"),
            ("weight", "weight"),
            ("merkle_root", "merkleroot"),
            ("nonce", "nonce"),
        ] {
            assert_eq!(ours[our], theirs[their], "{our} of block {height}");
        }
        assert_eq!(
            service.get_text(&format!("/block/{hash}/header")),
            node.rpc("getblockheader", json!([hash, false]))
                .as_str()
                .map(str::to_owned)
        );
        let txid = theirs["tx"][0].as_str().expect("an id");
        let proof = service
            .get_text(&format!("/tx/{txid}/merkleblock-proof"))
            .expect("a proof");
        assert_eq!(node.rpc("verifytxoutproof", json!([proof])), json!([txid]));
    }
    // What listens is in the status, what is counted in the metrics.
    let status = service.status();
    let kinds: Vec<_> = status["service"]["listening"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|l| (l["service"].clone(), l["transport"].clone()))
        .collect();
    assert_eq!(
        kinds,
        [
            (json!("electrum"), json!("tcp")),
            (json!("electrum"), json!("tls")),
            (json!("http"), json!("tcp")),
            (json!("metrics"), json!("tcp"))
        ]
    );
    let metrics = service.metrics();
    for name in [
        "weft_index_electrum_requests_total{server=\"electrum\"}",
        "weft_index_clients{server=\"http\"}",
        "weft_index_mempool_transactions ",
    ] {
        assert!(metrics.contains(name), "{name} is not in\n{metrics}");
    }
}

/// How long after the node has a block its subscriber is told.
#[test]
fn a_tip_is_told_soon() {
    let Some(node) = Node::start("a_tip_is_told_soon", &[]) else {
        return;
    };
    node.mine(110);
    let mut service = Service::new(NETWORK, &node);
    service.start();
    let electrum = service.electrum();
    let address = node.address();
    let client = node.client(Duration::from_secs(20));
    let mut times = Vec::new();
    for _ in 0..number("WEFT_TIPS", 20) {
        let hash: Value = client
            .call("generatetoaddress", json!([1, address]))
            .expect("a block");
        // The answer comes when the node has the block; the notification may be there already.
        let had = Instant::now();
        let told = electrum.wait_for_tip(hash[0].as_str().expect("a hash"));
        times.push(told.saturating_duration_since(had));
    }
    times.sort();
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("a tip is told after {median:?} in the middle, {worst:?} at worst");
    // Other programs run beside the tests; alone it is a few milliseconds.
    assert!(median < Duration::from_millis(500), "{median:?}");
}
