//! The stream of changes on a real index, without sockets.

use std::sync::Arc;

use serde_json::{Value, json};
use weft_chain::hash::hex;
use weft_chain::{Hash, script_hash};
use weft_forge::{Spend, transaction};
use weft_http::stream::{Stream, StreamCounters, StreamLimits, Subscribe, Told};
use weft_stage::{Stage, script};
use weft_view::Bounds;
use weft_view::script::hex as bytes_hex;

fn stream(stage: &Stage) -> Stream {
    let limits = StreamLimits {
        scripts: 5,
        message: 10_000,
    };
    Stream::new(
        stage.view.clone(),
        limits,
        Arc::new(StreamCounters::default()),
    )
}

fn all(stream: &mut Stream) -> Vec<Told> {
    let mut out = Vec::new();
    loop {
        let (mut told, more) = stream.tell();
        out.append(&mut told);
        if !more {
            return out;
        }
    }
}

/// Kind and hash of each event about blocks.
fn blocks(told: &[Told]) -> Vec<(&'static str, String)> {
    let of_blocks = told
        .iter()
        .filter(|t| matches!(t.event, "block" | "block_left"));
    of_blocks
        .map(|t| (t.event, t.body["hash"].as_str().unwrap().to_owned()))
        .collect()
}

fn came(hash: &Hash) -> (&'static str, String) {
    ("block", hex(hash))
}

fn left(hash: &Hash) -> (&'static str, String) {
    ("block_left", hex(hash))
}

fn name(n: u32) -> String {
    bytes_hex(&script_hash(&script(n)))
}

fn begin(stage: &Stage, wish: Subscribe) -> (Stream, Vec<Told>) {
    let mut stream = stream(stage);
    let told = stream.subscribe(wish).unwrap();
    (stream, told)
}

#[test]
fn blocks_transactions_and_scripts_as_they_change() {
    let mut stage = Stage::default();
    let base = stage.mine(&[(1000, script(1))], &[]).remove(0);
    let wish = Subscribe {
        transactions: Some(true),
        scripts: vec![name(1), name(2)],
        ..Subscribe::default()
    };
    let (mut stream, first) = begin(&stage, wish);
    assert_eq!(first[0].event, "subscribed");
    assert_eq!(
        first[0].body["tip"],
        json!({"height": 1, "hash": hex(&stage.tip())})
    );
    assert_eq!(
        first[0].body["scripts"][1],
        json!({"script": name(2), "status": null})
    );
    assert!(all(&mut stream).is_empty());

    let tx = transaction(&[Spend::bare(Stage::at(&base, 0))], &[(900, script(2))]);
    stage.pool(&[], std::slice::from_ref(&tx));
    let told = all(&mut stream);
    assert_eq!(
        told.iter().map(|t| t.event).collect::<Vec<_>>(),
        ["transactions", "scripts"]
    );
    assert_eq!(
        told[0].body["added"],
        json!([{"txid": hex(&tx.txid), "fee": 100, "vsize": tx.raw.len(), "value": 900}])
    );
    assert_eq!(told[1].body["scripts"].as_array().unwrap().len(), 2);

    stage.mine(&[(5, script(9))], std::slice::from_ref(&tx));
    let told = all(&mut stream);
    assert_eq!(
        told.iter().map(|t| t.event).collect::<Vec<_>>(),
        ["block", "scripts"]
    );
    assert_eq!(told[0].body["txids"][1], hex(&tx.txid));
    assert_eq!(told[0].body["tx_count"], 2);

    // A reorganisation of one block into two.
    let old = stage.tip();
    stage.undo();
    stage.mine(&[(6, script(9))], &[]);
    let new = stage.tip();
    stage.mine(&[(6, script(9))], std::slice::from_ref(&tx));
    let told = all(&mut stream);
    assert_eq!(blocks(&told), [left(&old), came(&new), came(&stage.tip())]);
    assert!(
        told.iter().all(|t| t.event != "scripts"),
        "not before the pool is known"
    );
    stage.pool(&[], &[]);
    let told = all(&mut stream);
    assert_eq!(
        told.iter().map(|t| t.event).collect::<Vec<_>>(),
        ["scripts"]
    );
    assert!(all(&mut stream).is_empty());
}

#[test]
fn whoever_comes_back_misses_nothing_and_gets_nothing_twice() {
    let mut stage = Stage::default();
    let mut tips = vec![stage.tip()];
    for _ in 0..5 {
        stage.mine(&[(1, script(1))], &[]);
        tips.push(stage.tip());
    }
    let (mut stream, _) = begin(&stage, Subscribe::default());
    stage.mine(&[(2, script(1))], &[]);
    let told = all(&mut stream);
    let (fork, place) = (stage.tip(), told.last().unwrap().id.clone().unwrap());
    assert_eq!(blocks(&told), [came(&fork)]);
    drop(stream);
    // While it is away a block leaves, one comes and leaves, two come.
    stage.undo();
    stage.mine(&[(3, script(1))], &[]);
    let short = stage.tip();
    stage.undo();
    let mut now = Vec::new();
    for _ in 0..2 {
        stage.mine(&[(4, script(1))], &[]);
        now.push(stage.tip());
    }
    // By its place it is told all of it.
    let since = Subscribe {
        since: Some(place.clone()),
        scripts: vec![name(1), name(3)],
        ..Subscribe::default()
    };
    let (mut stream, first) = begin(&stage, since);
    assert_eq!(first.len(), 1);
    let told = all(&mut stream);
    assert_eq!(
        blocks(&told),
        [
            left(&fork),
            came(&short),
            left(&short),
            came(&now[0]),
            came(&now[1])
        ]
    );
    stage.pool(&[], &[]);
    let told = all(&mut stream);
    let scripts = &told.iter().find(|t| t.event == "scripts").unwrap().body["scripts"];
    assert_eq!(
        scripts.as_array().unwrap().len(),
        1,
        "only the one that was touched"
    );

    // By its last blocks it is told how to get to the chain, over any number of starts.
    let after: Vec<String> = [fork, tips[5], tips[4]].iter().map(hex).collect();
    let (mut stream, _) = begin(
        &stage,
        Subscribe {
            after: after.clone(),
            ..Subscribe::default()
        },
    );
    assert_eq!(
        blocks(&all(&mut stream)),
        [left(&fork), came(&now[0]), came(&now[1])]
    );
    assert!(all(&mut stream).is_empty());
    // A place of another start, with the block in it still on the chain.
    let (_, seq) = place.split_once('-').unwrap();
    let seq = seq.split_once('-').unwrap().0;
    let other = |block: &Hash| format!("{:016x}-{seq}-{}", 5, hex(block));
    let (mut stream, first) = begin(
        &stage,
        Subscribe {
            since: Some(other(&tips[4])),
            transactions: Some(true),
            ..Subscribe::default()
        },
    );
    assert_eq!(
        first.iter().map(|t| t.event).collect::<Vec<_>>(),
        ["subscribed", "gap"]
    );
    assert_eq!(
        blocks(&all(&mut stream)),
        [came(&tips[5]), came(&now[0]), came(&now[1])]
    );
    // And one whose block nobody knows: it is told that it missed something.
    let (mut stream, _) = begin(
        &stage,
        Subscribe {
            since: Some(other(&[7; 32])),
            ..Subscribe::default()
        },
    );
    let told = all(&mut stream);
    assert_eq!(
        (told[0].event, &told[0].body["missed"]),
        ("gap", &json!("blocks"))
    );
    assert_eq!(told[0].body["tip"]["hash"], hex(&stage.tip()));
    stage.mine(&[(4, script(1))], &[]);
    assert_eq!(blocks(&all(&mut stream)), [came(&stage.tip())]);
}

#[test]
fn many_blocks_at_once_are_told_one_by_one() {
    let mut stage = Stage::default();
    let (mut stream, _) = begin(
        &stage,
        Subscribe {
            scripts: vec![name(3)],
            ..Subscribe::default()
        },
    );
    stage.jump(250, &[(3, script(3))]);
    let told = all(&mut stream);
    let want: Vec<_> = (1..=250)
        .map(|h| came(&stage.view.header(h).unwrap().unwrap().hash))
        .collect();
    assert_eq!(blocks(&told), want);
    assert_eq!(told.iter().filter(|t| t.event == "scripts").count(), 1);
    stage.mine(&[(1, script(1))], &[]);
    assert_eq!(blocks(&all(&mut stream)), [came(&stage.tip())]);
}

#[test]
fn a_slow_client_gets_every_block_from_the_chain() {
    let mut stage = Stage::new(Bounds {
        feed: 2048,
        ..Bounds::default()
    });
    let mut tips = Vec::new();
    for _ in 0..3 {
        stage.mine(&[(1, script(1))], &[]);
        tips.push(stage.tip());
    }
    let (mut stream, _) = begin(
        &stage,
        Subscribe {
            transactions: Some(true),
            scripts: vec![name(1)],
            ..Subscribe::default()
        },
    );
    for _ in 0..3 {
        stage.mine(&[(2, script(1))], &[]);
        tips.push(stage.tip());
    }
    assert_eq!(blocks(&all(&mut stream)).len(), 3);
    // Three leave, sixty come: more than the ring keeps.
    for _ in 0..3 {
        stage.undo();
    }
    let mut now = Vec::new();
    for _ in 0..60 {
        stage.mine(&[(5, script(1))], &[]);
        now.push(stage.tip());
    }
    stage.pool(&[], &[]);
    let told = all(&mut stream);
    let want: Vec<_> = tips[3..]
        .iter()
        .rev()
        .map(left)
        .chain(now.iter().map(came))
        .collect();
    assert_eq!(blocks(&told), want);
    assert_eq!(
        told.iter().filter(|t| t.event == "gap").count(),
        1,
        "of transactions"
    );
    assert_eq!(told.iter().filter(|t| t.event == "scripts").count(), 1);
}

#[test]
fn messages_and_bounds() {
    let stage = Stage::default();
    let mut stream = stream(&stage);
    let said = |stream: &mut Stream, text: &str| stream.message(text).remove(0);
    assert_eq!(said(&mut stream, r#"{"op":"ping"}"#).event, "pong");
    for bad in [
        "",
        "x",
        "{}",
        "[]",
        r#"{"op":"fly"}"#,
        r#"{"op":"subscribe","blocs":true}"#,
        r#"{"op":"subscribe","scripts":["x"]}"#,
        r#"{"op":"subscribe","since":"x"}"#,
        r#"{"op":"subscribe","after":["x"]}"#,
    ] {
        assert_eq!(said(&mut stream, bad).event, "error", "{bad}");
    }
    assert_eq!(said(&mut stream, &" ".repeat(10_001)).event, "error");
    let many: Vec<String> = (0..6).map(name).collect();
    let ask = |scripts: &[String]| json!({"op": "subscribe", "scripts": scripts}).to_string();
    assert_eq!(said(&mut stream, &ask(&many)).event, "error");
    assert_eq!(said(&mut stream, &ask(&many[..5])).event, "subscribed");
    assert_eq!(
        said(&mut stream, &ask(&many[..5])).event,
        "subscribed",
        "the same again"
    );
    assert_eq!(said(&mut stream, &ask(&many[5..])).event, "error");
    let unsubscribe = json!({"op": "unsubscribe", "scripts": &many[..2]}).to_string();
    assert_eq!(said(&mut stream, &unsubscribe).body["scripts"], 2);
    assert_eq!(said(&mut stream, &ask(&many[5..])).event, "subscribed");
    let address =
        weft_chain::address::from_script(stage.view.chain().params(), &script(1)).unwrap();
    let told = said(
        &mut stream,
        &json!({"op": "subscribe", "scripts": [address]}).to_string(),
    );
    assert_eq!(
        told.body["scripts"],
        json!([{"script": address, "status": Value::Null}])
    );
}
