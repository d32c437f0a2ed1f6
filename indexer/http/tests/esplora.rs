//! Every route of the Esplora interface on a real index, without sockets.

use serde_json::{Value, json};
use weft_chain::hash::hex;
use weft_chain::{OutPoint, address, chains, merkle, script_hash};
use weft_forge::{Made, Spend, transaction};
use weft_http::answer::{Answer, answer};
use weft_http::route;
use weft_stage::{Stage, script};
use weft_view::script::hex as bytes_hex;

fn post(stage: &Stage, method: &str, path: &str, body: &str) -> Answer {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let mut answer = match route::parse(method, path) {
        Ok(route) => answer(&stage.view, &route, query, body.as_bytes()),
        Err(bad) => Answer::bad_path(&bad),
    };
    answer.read_rest().unwrap();
    answer
}

fn text(stage: &Stage, path: &str) -> String {
    let answer = post(stage, "GET", path, "");
    let body = String::from_utf8_lossy(&answer.body).into_owned();
    assert_eq!(answer.status, 200, "{path}: {body}");
    body
}

fn get(stage: &Stage, path: &str) -> Value {
    serde_json::from_str(&text(stage, path)).unwrap()
}

fn status(stage: &Stage, path: &str) -> u16 {
    post(stage, "GET", path, "").status
}

fn pay(spends: &[OutPoint], outputs: &[(u64, u32)]) -> Made {
    let spends: Vec<Spend> = spends
        .iter()
        .map(|at| Spend {
            script: vec![2, 1, 2],
            witness: vec![vec![9; 3]],
            ..Spend::bare(*at)
        })
        .collect();
    let outputs: Vec<_> = outputs
        .iter()
        .map(|(value, n)| (*value, script(*n)))
        .collect();
    transaction(&spends, &outputs)
}

fn address_of(n: u32) -> String {
    let params = chains::by_name("bitcoin-regtest").unwrap().params();
    address::from_script(params, &script(n)).unwrap()
}

#[test]
fn transactions() {
    let mut stage = Stage::default();
    let base = stage
        .mine(&[(1000, script(1)), (7, vec![0x6a, 1, 2])], &[])
        .remove(0);
    let first = pay(&[Stage::at(&base, 0)], &[(600, 2), (300, 1)]);
    let block = stage.mine(&[(5, script(1))], std::slice::from_ref(&first));
    let waiting = pay(&[Stage::at(&first, 0)], &[(500, 3)]);
    stage.pool(&[], std::slice::from_ref(&waiting));
    let (id, pending) = (hex(&first.txid), hex(&waiting.txid));

    let tx = get(&stage, &format!("/tx/{id}"));
    assert_eq!(
        (&tx["fee"], &tx["size"]),
        (&json!(100), &json!(first.raw.len()))
    );
    assert_eq!(tx["vin"][0]["prevout"]["value"], 1000);
    assert_eq!(
        tx["vin"][0]["prevout"]["scriptpubkey_address"],
        address_of(1)
    );
    assert_eq!(tx["vin"][0]["prevout"]["scriptpubkey_type"], "v0_p2wpkh");
    assert_eq!(tx["vin"][0]["scriptsig_asm"], "OP_PUSHBYTES_2 0102");
    assert_eq!(tx["vin"][0]["witness"], json!(["090909"]));
    assert_eq!(tx["vout"][1]["scriptpubkey"], bytes_hex(&script(1)));
    let at = json!({"confirmed": true, "block_height": 2, "block_hash": hex(&stage.tip()), "block_time": 1_700_000_002});
    assert_eq!(tx["status"], at);
    assert_eq!(get(&stage, &format!("/tx/{id}/status")), at);
    assert_eq!(
        get(&stage, &format!("/tx/{pending}"))["status"],
        json!({"confirmed": false})
    );
    assert_eq!(get(&stage, &format!("/tx/{pending}"))["fee"], 100);
    let coinbase = get(&stage, &format!("/tx/{}", hex(&base.txid)));
    assert_eq!(
        (
            &coinbase["vin"][0]["is_coinbase"],
            &coinbase["vin"][0]["prevout"]
        ),
        (&json!(true), &Value::Null)
    );
    assert_eq!(
        (&coinbase["fee"], &coinbase["vout"][1]["scriptpubkey_type"]),
        (&json!(0), &json!("op_return"))
    );

    assert_eq!(
        text(&stage, &format!("/tx/{id}/hex")),
        bytes_hex(&first.raw)
    );
    assert_eq!(
        post(&stage, "GET", &format!("/tx/{id}/raw"), "").body,
        first.raw
    );
    let proof = get(&stage, &format!("/tx/{id}/merkle-proof"));
    let ids = block.iter().map(|tx| tx.txid).collect::<Vec<_>>();
    assert_eq!(
        proof,
        json!({"block_height": 2, "pos": 1, "merkle": [hex(&ids[0])]})
    );
    assert!(
        text(&stage, &format!("/tx/{id}/merkleblock-proof")).starts_with(&bytes_hex(
            &stage.view.header(2).unwrap().unwrap().header.to_bytes()
        ))
    );
    assert_eq!(
        merkle::root(ids).0,
        stage.view.header(2).unwrap().unwrap().header.merkle_root
    );

    let spent = get(&stage, &format!("/tx/{}/outspends", hex(&base.txid)));
    assert_eq!(
        spent,
        json!([{"spent": true, "txid": id, "vin": 0, "status": at}, {"spent": false}])
    );
    assert_eq!(
        get(&stage, &format!("/tx/{id}/outspend/0")),
        json!({"spent": true, "txid": pending, "vin": 0, "status": {"confirmed": false}})
    );
    assert_eq!(
        get(&stage, &format!("/tx/{id}/outspend/1")),
        json!({"spent": false})
    );

    let nobody = "ab".repeat(32);
    for path in [
        "",
        "/hex",
        "/raw",
        "/merkle-proof",
        "/merkleblock-proof",
        "/outspends",
    ] {
        assert_eq!(
            status(&stage, &format!("/tx/{nobody}{path}")),
            404,
            "{path}"
        );
    }
    assert_eq!(
        get(&stage, &format!("/tx/{nobody}/status")),
        json!({"confirmed": false})
    );
    assert_eq!(status(&stage, &format!("/tx/{pending}/merkle-proof")), 404);
    assert_eq!(post(&stage, "POST", "/tx", "zz").status, 400);
    assert_eq!(
        post(&stage, "POST", "/tx", &bytes_hex(&first.raw)).status,
        503,
        "no node"
    );
    assert_eq!(post(&stage, "POST", "/txs/package", "[]").status, 400);
    assert_eq!(post(&stage, "POST", "/txs/package", "[\"00\"]").status, 503);
    assert_eq!(
        post(&stage, "POST", "/txs/package?maxfeerate=x", "[\"00\"]").status,
        400
    );
    assert_eq!(post(&stage, "PUT", "/tx", "").status, 405);
}

#[test]
fn scripts_with_paging() {
    let mut stage = Stage::default();
    for n in 0..60u64 {
        stage.mine(&[(n + 1, script(1))], &[]);
    }
    let (name, addr) = (bytes_hex(&script_hash(&script(1))), address_of(1));
    let newest: Vec<String> = (1..=60u32)
        .rev()
        .map(|h| hex(&stage.view.reader().block_txids(h).unwrap().unwrap()[0]))
        .collect();
    let ids = |list: &Value| -> Vec<String> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|tx| tx["txid"].as_str().unwrap().to_owned())
            .collect()
    };
    for base in [format!("/scripthash/{name}"), format!("/address/{addr}")] {
        assert_eq!(ids(&get(&stage, &format!("{base}/txs"))), newest[..25]);
        assert_eq!(
            ids(&get(&stage, &format!("{base}/txs/chain"))),
            newest[..25]
        );
        let mut all = Vec::new();
        loop {
            let path = match all.last() {
                None => format!("{base}/txs/chain"),
                Some(last) => format!("{base}/txs/chain/{last}"),
            };
            let page = ids(&get(&stage, &path));
            if page.is_empty() {
                break;
            }
            all.extend(page);
        }
        assert_eq!(all, newest);
        assert_eq!(
            get(&stage, &format!("{base}/txs/chain/{}", "ab".repeat(32))),
            json!([])
        );
        assert_eq!(get(&stage, &format!("{base}/txs/mempool")), json!([]));
    }
    let stats = get(&stage, &format!("/address/{addr}"));
    assert_eq!(stats["address"], addr);
    let sum = (1..=60).sum::<u64>();
    assert_eq!(
        stats["chain_stats"],
        json!({"tx_count": 60, "funded_txo_count": 60, "funded_txo_sum": sum, "spent_txo_count": 0, "spent_txo_sum": 0})
    );
    assert_eq!(
        get(&stage, &format!("/scripthash/{name}"))["scripthash"],
        name
    );

    // Spend one coin in the pool, for another script and itself.
    let first = stage.view.reader().block_txids(1).unwrap().unwrap()[0];
    let tx = pay(
        &[OutPoint {
            txid: first,
            vout: 0,
        }],
        &[(1, 1)],
    );
    stage.pool(&[], std::slice::from_ref(&tx));
    let coins = get(&stage, &format!("/address/{addr}/utxo"));
    assert_eq!(coins.as_array().unwrap().len(), 60);
    let last = coins.as_array().unwrap().last().unwrap();
    assert_eq!(
        *last,
        json!({"txid": hex(&tx.txid), "vout": 0, "value": 1, "status": {"confirmed": false}})
    );
    assert!(
        !coins
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["txid"] == hex(&first))
    );
    let alone = get(&stage, &format!("/address/{addr}/utxo?mempool=false"));
    assert!(
        alone
            .as_array()
            .unwrap()
            .iter()
            .any(|c| c["txid"] == hex(&first))
    );
    assert_eq!(
        status(&stage, &format!("/address/{addr}/utxo?mempool=x")),
        400
    );
    let page = ids(&get(&stage, &format!("/address/{addr}/txs")));
    assert_eq!((page.len(), &page[0]), (26, &hex(&tx.txid)));
    let stats = get(&stage, &format!("/address/{addr}"));
    assert_eq!(
        stats["mempool_stats"],
        json!({"tx_count": 1, "funded_txo_count": 1, "funded_txo_sum": 1, "spent_txo_count": 1, "spent_txo_sum": 1})
    );
    let unknown = address_of(999);
    assert_eq!(get(&stage, &format!("/address/{unknown}/utxo")), json!([]));
    assert_eq!(
        status(&stage, "/address/1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
        400,
        "another network"
    );
    assert_eq!(status(&stage, "/address/nothing"), 400);
    assert_eq!(status(&stage, "/address-prefix/bcrt1"), 501);

    let pool = get(&stage, "/mempool");
    assert_eq!((&pool["count"], &pool["total_fee"]), (&json!(1), &json!(0)));
    assert_eq!(get(&stage, "/mempool/txids"), json!([hex(&tx.txid)]));
    assert_eq!(get(&stage, "/mempool/recent")[0]["value"], 1);
    assert_eq!(get(&stage, "/fee-estimates"), json!({}));
}

#[test]
fn blocks_and_what_may_be_kept() {
    let mut stage = Stage::default();
    let genesis = hex(&stage.tip());
    for n in 0..25u64 {
        stage.mine(&[(n, script(1))], &[]);
    }
    let mut inputs = stage.mine(&(0..60).map(|n| (n, script(2))).collect::<Vec<_>>(), &[]);
    let base = inputs.remove(0);
    let txs: Vec<Made> = (0..60)
        .map(|n| pay(&[Stage::at(&base, n)], &[(1, 3)]))
        .collect();
    stage.mine(&[(1, script(4))], &txs);
    let tip = hex(&stage.tip());
    assert_eq!(text(&stage, "/blocks/tip/hash"), tip);
    assert_eq!(text(&stage, "/blocks/tip/height"), "27");
    assert_eq!(text(&stage, "/block-height/27"), tip);
    assert_eq!(text(&stage, "/api/block-height/0"), genesis);
    assert_eq!(status(&stage, "/block-height/28"), 404);
    let block = get(&stage, &format!("/block/{tip}"));
    assert_eq!(
        (&block["height"], &block["tx_count"], &block["id"]),
        (&json!(27), &json!(61), &json!(tip))
    );
    assert_eq!(block["previousblockhash"], text(&stage, "/block-height/26"));
    assert_eq!(block["mediantime"], 1_700_000_022);
    let raw = post(&stage, "GET", &format!("/block/{tip}/raw"), "").body;
    assert_eq!(block["size"], raw.len());
    let parsed = weft_chain::Block::parse_checked(stage.view.chain(), raw).unwrap();
    assert_eq!(block["weight"], parsed.weight());
    assert_eq!(
        get(&stage, &format!("/block/{genesis}"))["previousblockhash"],
        Value::Null
    );
    assert_eq!(get(&stage, &format!("/block/{genesis}"))["tx_count"], 1);
    let ids: Vec<String> = parsed.txids().iter().map(hex).collect();
    assert_eq!(get(&stage, &format!("/block/{tip}/txids")), json!(ids));
    assert_eq!(text(&stage, &format!("/block/{tip}/txid/60")), ids[60]);
    assert_eq!(status(&stage, &format!("/block/{tip}/txid/61")), 404);
    let mut all = Vec::new();
    for start in [0, 25, 50] {
        let path = format!("/block/{tip}/txs/{start}");
        all.extend(
            get(&stage, &path)
                .as_array()
                .unwrap()
                .iter()
                .map(|tx| tx["txid"].as_str().unwrap().to_owned()),
        );
    }
    assert_eq!(all, ids);
    assert_eq!(
        get(&stage, &format!("/block/{tip}/txs"))
            .as_array()
            .unwrap()
            .len(),
        25
    );
    assert_eq!(status(&stage, &format!("/block/{tip}/txs/75")), 404);
    assert_eq!(status(&stage, &format!("/block/{tip}/txs/7")), 400);
    assert_eq!(
        text(&stage, &format!("/block/{tip}/header")),
        bytes_hex(&parsed.header().to_bytes())
    );
    let heights = |path: &str| -> Vec<u64> {
        get(&stage, path)
            .as_array()
            .unwrap()
            .iter()
            .map(|b| b["height"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(heights("/blocks"), (18..=27).rev().collect::<Vec<_>>());
    assert_eq!(heights("/blocks/3"), [3, 2, 1, 0]);
    assert_eq!(heights("/blocks/9999"), (18..=27).rev().collect::<Vec<_>>());
    assert_eq!(
        get(&stage, &format!("/block/{tip}/status")),
        json!({"in_best_chain": true, "height": 27, "next_best": null})
    );
    let below = text(&stage, "/block-height/26");
    assert_eq!(
        get(&stage, &format!("/block/{below}/status"))["next_best"],
        tip
    );
    let keep = |path: &str| post(&stage, "GET", path, "").keep;
    assert!(keep(&format!("/block/{genesis}")) > 100_000);
    assert_eq!(keep(&format!("/block/{tip}")), 10);
    assert_eq!(keep("/blocks/tip/hash"), 0);
    // A block that left is not found, and not on the chain.
    stage.undo();
    assert_eq!(status(&stage, &format!("/block/{tip}")), 404);
    assert_eq!(
        get(&stage, &format!("/block/{tip}/status")),
        json!({"in_best_chain": false})
    );
    assert_eq!(
        get(&stage, &format!("/tx/{}/status", ids[1])),
        json!({"confirmed": false}),
        "it waits again"
    );
    assert_eq!(get(&stage, &format!("/tx/{}", ids[1]))["txid"], ids[1]);
}

#[test]
fn nothing_is_served_before_the_tip_is_reached() {
    let mut stage = Stage::default();
    stage.mine(&[(1, script(1))], &[]);
    let early = weft_view::View::new(
        stage.view.chain(),
        stage.view.reader().clone(),
        weft_view::Bounds::default(),
    );
    let tip = route::parse("GET", "/blocks/tip/height").unwrap();
    assert_eq!(answer(&early, &tip, "", b"").status, 503);
    early.set_caught_up();
    assert_eq!(answer(&early, &tip, "", b"").body, b"1");
}
