//! Sessions on a real index, without sockets: every method, in both generations of the protocol.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_chain::hash::{hex, sha256};
use weft_chain::{merkle, script_hash};
use weft_electrum::{Counters, Info, Limits, Session};
use weft_forge::{Made, Spend, transaction};
use weft_stage::{Stage, script};
use weft_view::script::hex as bytes_hex;

struct Client(Session);

impl Client {
    fn new(stage: &Stage) -> Self {
        Self::with(stage, Limits::default())
    }

    fn with(stage: &Stage, limits: Limits) -> Self {
        let info = Info {
            banner: "hello".into(),
            ..Info::default()
        };
        Self(Session::new(
            stage.view.clone(),
            Arc::new(info),
            limits,
            Arc::new(Counters::default()),
        ))
    }

    fn of_1_6(stage: &Stage) -> Self {
        let mut client = Self::new(stage);
        assert_eq!(
            client.ask("server.version", json!(["t", ["1.4", "1.6"]]))[1],
            "1.6"
        );
        client
    }

    /// Whatever may be answered on the spot has to be answered the same.
    fn line(&mut self, line: &str) -> Value {
        let quick = self.0.handle_quickly(line.as_bytes());
        let mut reply = self.0.handle(line.as_bytes());
        while reply.more {
            let next = self.0.go_on();
            assert!(next.out.len() < 64 << 10, "a piece is small");
            reply.out.extend_from_slice(&next.out);
            reply.cost += next.cost;
            reply.more = next.more;
        }
        if let Some(quick) = quick {
            assert_eq!((quick.out, quick.cost), (reply.out.clone(), reply.cost));
        }
        assert!(reply.out.ends_with(b"\n"), "{line}");
        serde_json::from_slice(&reply.out).unwrap()
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        let answer = self.line(&request.to_string());
        assert_eq!(answer["id"], 7);
        answer
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        let answer = self.call(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    fn fail(&mut self, method: &str, params: Value) -> i64 {
        let answer = self.call(method, params);
        assert!(answer.get("result").is_none(), "{method}: {answer}");
        answer["error"]["code"].as_i64().unwrap()
    }

    /// All notifications there are: method and params.
    fn told(&mut self) -> Vec<(String, Value)> {
        let mut out = Vec::new();
        loop {
            let (bytes, more) = self.0.tell();
            for line in bytes.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
                let value: Value = serde_json::from_slice(line).unwrap();
                assert!(value.get("id").is_none());
                out.push((
                    value["method"].as_str().unwrap().to_owned(),
                    value["params"].clone(),
                ));
            }
            if !more {
                return out;
            }
        }
    }
}

#[test]
fn only_small_questions_are_answered_on_the_spot() {
    let mut stage = Stage::default();
    stage.mine(&vec![(1, script(1)); 500], &[]);
    stage.mine(&vec![(1, script(2)); 501], &[]);
    let mut client = Client::new(&stage);
    let mut quickly = |line: Value| client.0.handle_quickly(line.to_string().as_bytes());
    let ask = |what: &str, n: u32| json!({"id": 1, "method": format!("blockchain.scripthash.{what}"), "params": [named(n)]});
    for what in ["listunspent", "get_balance", "get_history"] {
        assert!(quickly(ask(what, 1)).is_some(), "{what}");
    }
    // Two transactions at most, but many coins.
    assert!(quickly(ask("get_history", 2)).is_some());
    for line in [
        ask("listunspent", 2),
        ask("get_balance", 2),
        // These may take the node, or change what the client is told.
        ask("subscribe", 1),
        json!({"id": 1, "method": "blockchain.transaction.get", "params": [named(1)]}),
        json!({"id": 1, "method": "blockchain.estimatefee", "params": [2]}),
        json!([ask("listunspent", 1)]),
        json!({"method": "blockchain.scripthash.listunspent", "params": [named(1)]}),
        json!({"id": 1, "method": "blockchain.scripthash.listunspent", "params": ["00"]}),
    ] {
        assert!(quickly(line.clone()).is_none(), "{line}");
    }
    // What was given up is answered afterwards.
    let coins = client.ask("blockchain.scripthash.listunspent", json!([named(2)]));
    assert_eq!(coins.as_array().unwrap().len(), 501);
}

fn named(n: u32) -> String {
    hex(&script_hash(&script(n)))
}

fn spend(made: &Made, vout: u32, outputs: &[(u64, u32)]) -> Made {
    let outputs: Vec<_> = outputs
        .iter()
        .map(|(value, n)| (*value, script(*n)))
        .collect();
    transaction(&[Spend::bare(Stage::at(made, vout))], &outputs)
}

fn header_hash(told: &Value) -> String {
    let raw = weft_view::script::unhex(told["hex"].as_str().unwrap()).unwrap();
    hex(&weft_chain::hash::sha256d(&raw))
}

#[test]
fn balances_coins_and_histories_with_the_pool() {
    let mut stage = Stage::default();
    let base = stage
        .mine(&[(5000, script(1)), (600, script(2))], &[])
        .remove(0);
    let mut client = Client::of_1_6(&stage);
    let balance =
        |client: &mut Client, n| client.ask("blockchain.scripthash.get_balance", json!([named(n)]));
    assert_eq!(
        balance(&mut client, 1),
        json!({"confirmed": 5000, "unconfirmed": 0})
    );
    assert_eq!(
        balance(&mut client, 9),
        json!({"confirmed": 0, "unconfirmed": 0})
    );

    // A chain of two in the pool: 1 pays 3 and itself, 3 pays 4.
    let first = spend(&base, 0, &[(3000, 3), (1900, 1)]);
    let second = spend(&first, 0, &[(2500, 4)]);
    stage.pool(&[], &[second.clone(), first.clone()]);
    assert_eq!(
        balance(&mut client, 1),
        json!({"confirmed": 5000, "unconfirmed": -3100})
    );
    assert_eq!(
        balance(&mut client, 3),
        json!({"confirmed": 0, "unconfirmed": 0})
    );
    assert_eq!(
        balance(&mut client, 4),
        json!({"confirmed": 0, "unconfirmed": 2500})
    );
    let coins = client.ask("blockchain.scripthash.listunspent", json!([named(1)]));
    assert_eq!(
        coins,
        json!([{"tx_hash": hex(&first.txid), "tx_pos": 1, "height": 0, "value": 1900}])
    );
    let history = client.ask("blockchain.scripthash.get_history", json!([named(3)]));
    assert_eq!(
        history,
        json!([
            {"tx_hash": hex(&first.txid), "height": 0, "fee": 100},
            {"tx_hash": hex(&second.txid), "height": -1, "fee": 500},
        ])
    );
    assert_eq!(
        client.ask("blockchain.scripthash.get_mempool", json!([named(3)])),
        history
    );

    // Confirmed one after the other.
    stage.mine(&[(1, script(9))], std::slice::from_ref(&first));
    let history = client.ask("blockchain.scripthash.get_history", json!([named(3)]));
    assert_eq!(
        history,
        json!([
            {"tx_hash": hex(&first.txid), "height": 2},
            {"tx_hash": hex(&second.txid), "height": 0, "fee": 500},
        ])
    );
    assert_eq!(
        balance(&mut client, 3),
        json!({"confirmed": 3000, "unconfirmed": -3000})
    );
    assert_eq!(
        client.ask("blockchain.scripthash.listunspent", json!([named(3)])),
        json!([])
    );
    let coins = client.ask("blockchain.scripthash.listunspent", json!([named(1)]));
    assert_eq!(
        coins,
        json!([{"tx_hash": hex(&first.txid), "tx_pos": 1, "height": 2, "value": 1900}])
    );
}

#[test]
fn both_generations_differ_where_they_should() {
    let mut stage = Stage::default();
    for n in 0..5 {
        stage.mine(&[(n, script(1))], &[]);
    }
    let mut old = Client::new(&stage);
    let mut new = Client::of_1_6(&stage);
    let concatenated = old.ask("blockchain.block.headers", json!([1, 3]));
    let listed = new.ask("blockchain.block.headers", json!([1, 3]));
    assert_eq!(
        (&concatenated["count"], &listed["count"]),
        (&json!(3), &json!(3))
    );
    let joined: String = listed["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|h| h.as_str().unwrap())
        .collect();
    assert_eq!(concatenated["hex"], joined);
    assert!(listed.get("hex").is_none() && concatenated.get("headers").is_none());
    assert_eq!(
        new.ask("blockchain.block.headers", json!([4, 2016]))["count"],
        2
    );
    assert_eq!(
        new.ask("blockchain.block.headers", json!([6, 1]))["count"],
        0
    );
    assert_eq!(concatenated["max"], 2016);

    const UNKNOWN: i64 = -32601;
    assert_eq!(new.fail("blockchain.relayfee", json!([])), UNKNOWN);
    assert_ne!(
        old.fail("blockchain.relayfee", json!([])),
        UNKNOWN,
        "there is no node"
    );
    assert_eq!(old.fail("mempool.get_info", json!([])), UNKNOWN);
    assert_ne!(new.fail("mempool.get_info", json!([])), UNKNOWN);
    assert_eq!(
        old.fail("blockchain.transaction.broadcast_package", json!([[]])),
        UNKNOWN
    );
    assert_eq!(
        new.fail("blockchain.transaction.broadcast_package", json!([[]])),
        -32602
    );
    assert_eq!(
        old.fail("blockchain.estimatefee", json!([3, "ECONOMICAL"])),
        -32602
    );
    assert_eq!(
        new.ask("blockchain.estimatefee", json!([3, "ECONOMICAL"])),
        -1
    );
    assert_eq!(
        new.fail("blockchain.estimatefee", json!([3, "QUICK"])),
        -32602
    );
    assert_eq!(old.ask("blockchain.estimatefee", json!([3])), -1);

    // The first thing said decides.
    let mut late = Client::new(&stage);
    late.ask("server.ping", json!([]));
    assert_eq!(
        late.ask("server.version", json!(["t", ["1.4", "1.6"]]))[1],
        "1.4.3"
    );
    assert_eq!(late.fail("server.version", json!(["t", "1.4"])), 1);
    let mut late = Client::new(&stage);
    late.ask("server.ping", json!([]));
    let reply = late
        .0
        .handle(br#"{"id":1,"method":"server.version","params":["t","1.6"]}"#);
    assert!(reply.close);
    // From 1.6 on there may be further params.
    let mut client = Client::new(&stage);
    assert_eq!(
        client.ask("server.version", json!(["t", "1.6", {"x": 1}, 3]))[1],
        "1.6"
    );
    let mut client = Client::new(&stage);
    assert_eq!(
        client.ask(
            "server.version",
            json!({"client_name": "t", "protocol_version": ["1.4", "1.4.2"]})
        )[1],
        "1.4.2"
    );
}

#[test]
fn the_server_says_who_it_is() {
    let stage = Stage::default();
    let mut client = Client::of_1_6(&stage);
    let features = client.ask("server.features", json!([]));
    assert_eq!(features["genesis_hash"], hex(&stage.tip()));
    assert_eq!(
        (&features["protocol_min"], &features["protocol_max"]),
        (&json!("1.4"), &json!("1.6"))
    );
    assert_eq!(features["hash_function"], "sha256");
    assert_eq!(features["hosts"], json!({}));
    assert!(features["pruning"].is_null());
    assert_eq!(client.ask("server.ping", json!([])), Value::Null);
    assert_eq!(client.ask("server.banner", json!([])), "hello");
    assert_eq!(client.ask("server.donation_address", json!([])), "");
    assert_eq!(client.ask("server.add_peer", json!([{"hosts": {}}])), false);
    assert_eq!(client.ask("server.peers.subscribe", json!([])), json!([]));
    assert_eq!(
        client.ask("mempool.get_fee_histogram", json!([])),
        json!([])
    );
    assert_eq!(client.fail("server.nothing", json!([])), -32601);
    assert_eq!(client.fail("nothing", json!([])), -32601);
}

#[test]
fn transactions_and_proofs() {
    let mut stage = Stage::default();
    let base = stage
        .mine(&[(5000, script(1)), (600, script(2))], &[])
        .remove(0);
    let txs: Vec<Made> = (0..2)
        .map(|n| spend(&base, n, &[(100 + u64::from(n), 3)]))
        .collect();
    let block = stage.mine(&[(1, script(9))], &txs);
    let root = merkle::root(block.iter().map(|tx| tx.txid).collect()).0;
    let mut client = Client::of_1_6(&stage);
    for (pos, tx) in block.iter().enumerate() {
        let id = hex(&tx.txid);
        assert_eq!(
            client.ask("blockchain.transaction.get", json!([id])),
            bytes_hex(&tx.raw)
        );
        let full = client.ask("blockchain.transaction.get", json!([id, true]));
        assert_eq!(
            (&full["txid"], &full["hex"]),
            (&json!(id), &json!(bytes_hex(&tx.raw)))
        );
        assert_eq!(
            (&full["confirmations"], &full["blockhash"]),
            (&json!(1), &json!(hex(&stage.tip())))
        );
        let proof = client.ask("blockchain.transaction.get_merkle", json!([id, 2]));
        assert_eq!(
            (&proof["pos"], &proof["block_height"]),
            (&json!(pos), &json!(2))
        );
        let branch: Vec<_> = proof["merkle"]
            .as_array()
            .unwrap()
            .iter()
            .map(|h| weft_chain::hash::from_hex(h.as_str().unwrap()).unwrap())
            .collect();
        assert_eq!(merkle::fold(tx.txid, &branch, pos as u32), root);
        assert_eq!(
            client.ask("blockchain.transaction.id_from_pos", json!([2, pos])),
            id
        );
        let with = client.ask("blockchain.transaction.id_from_pos", json!([2, pos, true]));
        assert_eq!(
            (&with["tx_hash"], &with["merkle"]),
            (&json!(id), &proof["merkle"])
        );
    }
    let id = hex(&block[1].txid);
    assert_eq!(
        client.fail("blockchain.transaction.get_merkle", json!([id, 1])),
        1
    );
    assert_eq!(
        client.fail("blockchain.transaction.get_merkle", json!([id, 9])),
        1
    );
    assert_eq!(
        client.fail("blockchain.transaction.id_from_pos", json!([2, 9])),
        1
    );
    assert_eq!(
        client.fail("blockchain.transaction.get", json!([named(5)])),
        1
    );
    for bad in [
        json!([]),
        json!(["00"]),
        json!([5]),
        json!([named(1), "yes"]),
        json!([named(1), false, 3]),
        json!({"id": 1}),
    ] {
        assert_eq!(client.fail("blockchain.transaction.get", bad), -32602);
    }
    assert_eq!(
        client.fail("blockchain.transaction.broadcast", json!(["zz"])),
        -32602
    );
    assert_eq!(
        client.fail(
            "blockchain.transaction.broadcast",
            json!([bytes_hex(&block[1].raw)])
        ),
        2,
        "no node"
    );
    // In the pool too.
    let waiting = spend(&block[1], 0, &[(50, 4)]);
    stage.pool(&[], std::slice::from_ref(&waiting));
    let full = client.ask(
        "blockchain.transaction.get",
        json!([hex(&waiting.txid), true]),
    );
    assert!(full.get("confirmations").is_none());
    assert_eq!(full["hex"], bytes_hex(&waiting.raw));
}

#[test]
fn headers_under_a_checkpoint() {
    let mut stage = Stage::default();
    for n in 0..9 {
        stage.mine(&[(n, script(1))], &[]);
    }
    let hashes: Vec<_> = (0..=9)
        .map(|h| stage.view.header(h).unwrap().unwrap().hash)
        .collect();
    let mut client = Client::of_1_6(&stage);
    for checkpoint in 1..=9u32 {
        let (root, _) = merkle::root(hashes[..=checkpoint as usize].to_vec());
        for height in 0..=checkpoint {
            let answer = client.ask("blockchain.block.header", json!([height, checkpoint]));
            assert_eq!(answer["root"], hex(&root));
            let branch = merkle::branch(&hashes[..=checkpoint as usize], height as usize);
            assert_eq!(answer["branch"], branch.iter().map(hex).collect::<Value>());
            assert_eq!(
                header_hash(&json!({"hex": answer["header"]})),
                hex(&hashes[height as usize])
            );
        }
        let many = client.ask("blockchain.block.headers", json!([0, 2, checkpoint]));
        assert_eq!(many["root"], hex(&root));
    }
    assert_eq!(client.fail("blockchain.block.header", json!([5, 4])), 1);
    assert_eq!(client.fail("blockchain.block.header", json!([5, 10])), 1);
    assert_eq!(client.fail("blockchain.block.header", json!([10])), 1);
    assert_eq!(client.fail("blockchain.block.header", json!([-1])), -32602);
    assert_eq!(
        client.ask("blockchain.block.header", json!([3])),
        bytes_hex(&stage.view.header(3).unwrap().unwrap().header.to_bytes())
    );
}

/// The status of a script as the protocol describes it, from what the history says.
fn status(client: &mut Client, n: u32) -> Value {
    let history = client.ask("blockchain.scripthash.get_history", json!([named(n)]));
    let text: String = history
        .as_array()
        .unwrap()
        .iter()
        .map(|tx| format!("{}:{}:", tx["tx_hash"].as_str().unwrap(), tx["height"]))
        .collect();
    if text.is_empty() {
        Value::Null
    } else {
        bytes_hex(&sha256(text.as_bytes())).into()
    }
}

#[test]
fn subscriptions_tell_each_change_once() {
    let mut stage = Stage::default();
    let base = stage
        .mine(&[(5000, script(1)), (600, script(2))], &[])
        .remove(0);
    let mut client = Client::of_1_6(&stage);
    let tip = client.ask("blockchain.headers.subscribe", json!([]));
    assert_eq!(
        (tip["height"].clone(), header_hash(&tip)),
        (json!(1), hex(&stage.tip()))
    );
    for n in [1, 3, 5] {
        let first = client.ask("blockchain.scripthash.subscribe", json!([named(n)]));
        assert_eq!(first, status(&mut client, n));
    }
    assert!(client.told().is_empty());

    let scripts = |told: &[(String, Value)]| -> Vec<Value> {
        let mut out: Vec<_> = told
            .iter()
            .filter(|(m, _)| m == "blockchain.scripthash.subscribe")
            .map(|(_, p)| p.clone())
            .collect();
        out.sort_by_key(|p| p[0].to_string());
        out
    };
    let expect = |client: &mut Client, ns: &[u32]| -> Vec<Value> {
        let mut out: Vec<_> = ns
            .iter()
            .map(|n| json!([named(*n), status(client, *n)]))
            .collect();
        out.sort_by_key(|p| p[0].to_string());
        out
    };
    let headers = |told: &[(String, Value)]| -> Vec<String> {
        told.iter()
            .filter(|(m, _)| m == "blockchain.headers.subscribe")
            .map(|(_, p)| header_hash(&p[0]))
            .collect()
    };

    // The pool: 1 pays 3.
    let tx = spend(&base, 0, &[(3000, 3), (1900, 1)]);
    stage.pool(&[], std::slice::from_ref(&tx));
    let told = client.told();
    assert_eq!(scripts(&told), expect(&mut client, &[1, 3]));
    assert!(headers(&told).is_empty() && client.told().is_empty());
    // Something else in the pool and a block of others: nothing for these scripts.
    stage.pool(&[], &[spend(&base, 1, &[(10, 8)])]);
    assert!(client.told().is_empty());
    stage.mine(&[(1, script(9))], &[]);
    let told = client.told();
    assert_eq!(
        (headers(&told), scripts(&told)),
        (vec![hex(&stage.tip())], vec![])
    );
    // Two blocks at once, one with the transaction: two headers, each status once.
    stage.mine(&[(1, script(9))], std::slice::from_ref(&tx));
    let between = stage.tip();
    stage.mine(&[(1, script(5))], &[]);
    let told = client.told();
    assert_eq!(headers(&told), [hex(&between), hex(&stage.tip())]);
    assert_eq!(scripts(&told), expect(&mut client, &[1, 3, 5]));

    // A reorganisation: two blocks leave, three come, with the transaction. While the pool does
    // not have the transactions back nothing is told of scripts.
    let before = expect(&mut client, &[1, 3]);
    stage.undo();
    stage.undo();
    assert!(scripts(&client.told()).is_empty());
    let mut tips = Vec::new();
    stage.mine(&[(2, script(9))], std::slice::from_ref(&tx));
    tips.push(hex(&stage.tip()));
    for _ in 0..2 {
        stage.mine(&[(2, script(9))], &[]);
        tips.push(hex(&stage.tip()));
    }
    let told = client.told();
    assert_eq!((headers(&told), scripts(&told)), (tips, vec![]));
    stage.pool(&[], &[]);
    let told = client.told();
    assert_eq!(
        expect(&mut client, &[1, 3]),
        before,
        "confirmed at the same height"
    );
    assert_eq!(scripts(&told), expect(&mut client, &[5]));
    assert!(client.told().is_empty());

    // Blocks leave and none comes: the tip is told, and the transaction is back in the pool.
    for _ in 0..3 {
        stage.undo();
    }
    assert!(client.told().is_empty());
    stage.pool(&[], std::slice::from_ref(&tx));
    let told = client.told();
    assert_eq!(headers(&told), [hex(&stage.tip())]);
    assert_eq!(scripts(&told), expect(&mut client, &[1, 3]));

    // Many blocks at once.
    stage.jump(30, &[(3, script(3))]);
    let told = client.told();
    assert_eq!(headers(&told), [hex(&stage.tip())]);
    // The transaction was in the pool, which is asked for anew after so many blocks.
    assert_eq!(scripts(&told), expect(&mut client, &[1, 3]));
    assert_eq!(
        client.ask("blockchain.scripthash.unsubscribe", json!([named(3)])),
        true
    );
    assert_eq!(
        client.ask("blockchain.scripthash.unsubscribe", json!([named(3)])),
        false
    );
    stage.mine(&[(3, script(3))], &[]);
    assert!(scripts(&client.told()).is_empty());
}

#[test]
fn a_slow_client_is_told_the_present_state() {
    let bounds = weft_view::Bounds {
        feed: 4096,
        ..Default::default()
    };
    let mut stage = Stage::new(bounds);
    let mut client = Client::of_1_6(&stage);
    client.ask("blockchain.headers.subscribe", json!([]));
    client.ask("blockchain.scripthash.subscribe", json!([named(1)]));
    for _ in 0..60 {
        stage.mine(&[(5, script(1))], &[]);
    }
    let told = client.told();
    assert_eq!(told.len(), 2, "{told:?}");
    assert_eq!(
        header_hash(&told.iter().find(|(m, _)| m.contains("headers")).unwrap().1[0]),
        hex(&stage.tip())
    );
    let script = &told
        .iter()
        .find(|(m, _)| m.contains("scripthash"))
        .unwrap()
        .1;
    assert_eq!(script[1], status(&mut client, 1));
    assert!(client.told().is_empty());
}

#[test]
fn batches_and_bounds() {
    let mut stage = Stage::new(weft_view::Bounds {
        rows: 10,
        ..Default::default()
    });
    for _ in 0..8 {
        stage.mine(&[(5, script(1))], &[]);
    }
    let limits = Limits {
        batch: 3,
        subscriptions: 2,
        answer: 1500,
        ..Limits::default()
    };
    let mut client = Client::with(&stage, limits);
    let batch = client.line(r#"[{"id":1,"method":"server.ping"},{"method":"server.ping"},{"id":"x","method":"nothing"}]"#);
    assert_eq!(batch.as_array().unwrap().len(), 2);
    assert_eq!(
        (&batch[0]["id"], &batch[0]["result"]),
        (&json!(1), &Value::Null)
    );
    assert_eq!(
        (&batch[1]["id"], &batch[1]["error"]["code"]),
        (&json!("x"), &json!(-32601))
    );
    let too_many = client.line(&format!(
        "[{}]",
        [r#"{"id":1,"method":"server.ping"}"#; 4].join(",")
    ));
    assert_eq!(too_many["error"]["code"], -32600);
    // Notifications get nothing.
    assert!(
        client
            .0
            .handle(br#"{"method":"server.ping"}"#)
            .out
            .is_empty()
    );
    assert!(
        client
            .0
            .handle(br#"[{"method":"server.ping"}]"#)
            .out
            .is_empty()
    );
    // Three long answers in one batch: the last does not fit any more.
    let coins =
        json!({"id": 1, "method": "blockchain.scripthash.listunspent", "params": [named(1)]});
    let batch = client.line(&json!([coins, coins, coins]).to_string());
    let kinds: Vec<bool> = batch
        .as_array()
        .unwrap()
        .iter()
        .map(|a| a.get("result").is_some())
        .collect();
    assert_eq!(kinds, [true, false, false]);
    for n in 1..3 {
        client.ask("blockchain.scripthash.subscribe", json!([named(n)]));
    }
    assert_eq!(
        client.fail("blockchain.scripthash.subscribe", json!([named(3)])),
        1
    );
    client.ask("blockchain.scripthash.subscribe", json!([named(2)]));
    assert_eq!(client.0.subscriptions(), 2);
    // A history that grows beyond the bound is refused, and its subscription dropped.
    for _ in 0..4 {
        stage.mine(&[(5, script(1))], &[]);
    }
    assert_eq!(
        client.fail("blockchain.scripthash.get_history", json!([named(1)])),
        1
    );
    assert!(client.told().is_empty());
    assert_eq!(client.0.subscriptions(), 1);
    let cost = client.0.handle(coins.to_string().as_bytes()).cost;
    assert!(cost >= 1.0);
}
