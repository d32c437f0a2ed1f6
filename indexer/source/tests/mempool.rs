//! The mempool of a real `litecoind`: chains, replacements, confirmations.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::{Follower, Node, chain};
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Hash, OutPoint, script_hash};
use weft_mempool::{Changes, Mempool};
use weft_source::mempool::MempoolAsker;
use weft_source::rpc::Rpc;

const NETWORK: &str = "litecoin-regtest";

struct Pair {
    node: Node,
    follower: Follower,
    pool: Mempool,
    asker: MempoolAsker,
}

impl Pair {
    fn refresh(&mut self) -> Changes {
        self.follower.follow().expect("it follows");
        let coins = self.follower.coins();
        let client = self.node.client(Duration::from_secs(10));
        let coin = |at: &OutPoint| coins.get(at).map(|c| (c.value, c.script.clone()));
        let known = || self.pool.iter().map(|(id, _)| *id).collect();
        self.asker.ask_all_again();
        let delta = self.asker.ask(&client, known).expect("it answers");
        let delta = delta.expect("nothing else mines");
        assert_eq!(delta.at, self.follower.tip());
        let changes = self.pool.apply(&delta.gone, delta.new, coin);
        self.compare();
        changes
    }

    /// Everything the node says of its pool.
    fn compare(&self) {
        let verbose = self.node.rpc("getrawmempool", json!([true]));
        let verbose = verbose.as_object().expect("object");
        assert_eq!(self.pool.len(), verbose.len());
        for (id, info) in verbose {
            let id = from_hex(id).expect("hash");
            let entry = self.pool.get(&id).expect("it is there");
            let base = (info["fees"]["base"].as_f64().expect("fee") * 1e8).round() as u64;
            assert_eq!(entry.fee, base);
            assert_eq!(entry.vsize, info["vsize"].as_u64().expect("size"));
            let had: u64 = entry
                .spent
                .iter()
                .map(|f| f.as_ref().expect("known").value)
                .sum();
            assert_eq!(
                had - entry.tx().outputs().map(|o| o.value).sum::<u64>(),
                base
            );
            let depends: BTreeSet<Hash> = info["depends"]
                .as_array()
                .expect("list")
                .iter()
                .map(|d| from_hex(d.as_str().expect("id")).expect("id"))
                .collect();
            assert_eq!(entry.parents(), &depends);
            // The node counts the transaction itself.
            assert_eq!(
                self.pool.ancestors(&id).len() as u64 + 1,
                info["ancestorcount"].as_u64().expect("count")
            );
            assert_eq!(
                self.pool.descendants(&id).len() as u64 + 1,
                info["descendantcount"].as_u64().expect("count")
            );
        }
        let size: u64 = verbose
            .values()
            .map(|i| i["vsize"].as_u64().expect("size"))
            .sum();
        let histogram = self.pool.fee_histogram();
        assert_eq!(histogram.iter().map(|(_, s)| s).sum::<u64>(), size);
        assert!(histogram.windows(2).all(|w| w[0].0 > w[1].0));
        // The wallet's unconfirmed coins.
        let unspent = self.node.rpc("listunspent", json!([0, 0]));
        let mut want: BTreeMap<Hash, BTreeSet<OutPoint>> = BTreeMap::new();
        for u in unspent.as_array().expect("list") {
            let script = common::unhex(u["scriptPubKey"].as_str().expect("hex"));
            let at = OutPoint {
                txid: from_hex(u["txid"].as_str().expect("id")).expect("id"),
                vout: u["vout"].as_u64().expect("number") as u32,
            };
            want.entry(script_hash(&script)).or_default().insert(at);
        }
        for (script, coins) in want {
            let ours: BTreeSet<OutPoint> = self
                .pool
                .unspent_of_script(&script)
                .into_iter()
                .map(|(at, _)| at)
                .collect();
            assert_eq!(ours, coins);
        }
    }

    fn send(&self, address: &Value, amount: f64) -> Hash {
        let id = self.node.rpc(
            "sendtoaddress",
            json!([address, amount, "", "", false, true]),
        );
        from_hex(id.as_str().expect("an id")).expect("an id")
    }
}

#[test]
fn the_pool_is_the_nodes() {
    let Some(node) = Node::start(
        "the_pool_is_the_nodes",
        &["-walletrbf=1", "-mempoolreplacement=1"],
    ) else {
        return;
    };
    node.mine(110);
    let rpc =
        Rpc::connect(node.client(Duration::from_secs(10)), chain(NETWORK)).expect("it connects");
    let mut pair = Pair {
        node,
        follower: Follower::new(Arc::new(rpc)),
        pool: Mempool::new(),
        asker: MempoolAsker::new(chain(NETWORK)),
    };
    assert_eq!(pair.refresh(), Changes::default());

    // Independent payments, then chains of unconfirmed ones.
    let address = json!(pair.node.address());
    let first: Vec<Hash> = (0..5).map(|_| pair.send(&address, 1.0)).collect();
    let changes = pair.refresh();
    assert_eq!(
        changes.added.iter().collect::<BTreeSet<_>>(),
        first.iter().collect()
    );
    assert!(changes.removed.is_empty() && !changes.scripts.is_empty());
    for n in 1..20 {
        pair.send(&json!(pair.node.address()), f64::from(n) * 20.0);
        pair.refresh();
    }
    assert!(pair.pool.iter().any(|(_, e)| e.has_unconfirmed_inputs()));

    // Replacement: the old one and what hangs on it leave as the new one comes.
    // A block first, for nodes refuse to replace at the end of a long chain.
    pair.node.mine(1);
    let victim = pair.send(&address, 2.5);
    assert_eq!(pair.refresh().added, [victim]);
    let bumped = pair.node.rpc("bumpfee", json!([hex(&victim)]));
    let replacement = from_hex(bumped["txid"].as_str().expect("id")).expect("id");
    let changes = pair.refresh();
    assert_eq!(
        (changes.added, changes.removed),
        (vec![replacement], vec![victim])
    );
    let inputs = pair
        .pool
        .get(&replacement)
        .expect("there")
        .tx()
        .inputs()
        .to_vec();
    assert!(
        inputs
            .iter()
            .all(|i| pair.pool.spender(&i.prevout) == Some(&replacement))
    );

    // Confirmation empties it, a block that leaves brings it back.
    let before: BTreeSet<Hash> = pair.pool.iter().map(|(id, _)| *id).collect();
    let mined = pair.node.mine(1);
    let changes = pair.refresh();
    assert_eq!(
        changes.removed.iter().copied().collect::<BTreeSet<_>>(),
        before
    );
    assert!(pair.pool.is_empty() && pair.pool.bytes() == 0);
    pair.node.rpc("invalidateblock", json!([mined[0]]));
    pair.refresh();
    assert_eq!(
        pair.pool.iter().map(|(id, _)| *id).collect::<BTreeSet<_>>(),
        before
    );
    assert_eq!(pair.pool.fee_histogram().len(), 1);
}
