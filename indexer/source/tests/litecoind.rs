//! Every kind of source against a real `litecoind` on regtest, with MWEB blocks.

mod common;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use common::{Follower, Node, chain, eventually};
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::setinfo::Kind as HashKind;
use weft_mempool::{Changes, Mempool};
use weft_source::files::Files;
use weft_source::mempool::MempoolAsker;
use weft_source::p2p::P2p;
use weft_source::rest::Rest;
use weft_source::rpc::Rpc;
use weft_source::{Kind, Settings, Source, SourceError, Spent, choose};

const NETWORK: &str = "litecoin-regtest";

fn settings(node: &Node, only: Option<Kind>) -> Settings {
    Settings {
        datadir: Some(node.dir.0.clone()),
        rpc: Some(node.rpc_place.clone()),
        p2p: Some(node.p2p),
        only,
        ..Settings::new(chain(NETWORK))
    }
}

/// Each source by itself, without a guide.
fn sources(node: &Node) -> Vec<Arc<dyn Source>> {
    let network = chain(NETWORK);
    vec![
        Arc::new(Rpc::connect(node.client(Duration::from_secs(30)), network).expect("RPC")),
        Arc::new(Rest::connect(&node.rpc_place, network).expect("REST")),
        Arc::new(Files::open(&node.blocks_dir(), network).expect("files")),
        Arc::new(P2p::connect(node.p2p, network).expect("P2P")),
    ]
}

/// The follower's coins are the node's.
fn compare_sets(node: &Node, follower: &Follower) {
    let info = node.rpc("gettxoutsetinfo", json!([]));
    assert_eq!(info["bestblock"], hex(&follower.tip()));
    let (hash, counts) = follower.set_hash(HashKind::V2);
    assert_eq!(counts.coins, info["txouts"].as_u64().expect("count"));
    assert_eq!(
        counts.transactions,
        info["transactions"].as_u64().expect("count")
    );
    assert_eq!(counts.bogosize, info["bogosize"].as_u64().expect("count"));
    assert_eq!(
        hex(&hash),
        info["hash_serialized_2"].as_str().expect("hash"),
        "{}",
        follower.source.describe()
    );
}

/// A chain with transactions in, through and out of the extension block.
fn mweb_chain(node: &Node) {
    node.mine(431);
    let hidden = node.rpc("getnewaddress", json!(["", "mweb"]));
    node.rpc("sendtoaddress", json!([hidden, 20]));
    node.mine(1);
    for n in 1..4 {
        node.rpc("sendtoaddress", json!([hidden, n]));
        let plain = node.address();
        node.rpc("sendtoaddress", json!([plain, 5 * n]));
        node.mine(2);
    }
    // More than there is outside of it has to come out of the extension block.
    for _ in 0..30 {
        let plain = node.address();
        node.rpc("sendtoaddress", json!([plain, 0.5]));
    }
    node.mine(8);
}

/// Transactions into the extension block are read, those within it alone are passed over.
fn mempool_with_extension_transactions(node: &Node, follower: &Follower) {
    let hidden = node.rpc("getnewaddress", json!(["", "mweb"]));
    let peg_in = node.rpc("sendtoaddress", json!([hidden, 100]));
    let plain = node.rpc("sendtoaddress", json!([node.address(), 1]));
    let within = node.rpc("sendtoaddress", json!([hidden, 0.25]));
    let coins = follower.coins();
    let coin = |at: &weft_chain::OutPoint| coins.get(at).map(|c| (c.value, c.script.clone()));
    let (mut pool, mut asker) = (Mempool::new(), MempoolAsker::new(chain(NETWORK)));
    let client = node.client(Duration::from_secs(10));
    let mut refresh = |pool: &mut Mempool| {
        asker.ask_all_again();
        let known = || pool.iter().map(|(id, _)| *id).collect();
        let delta = asker.ask(&client, known).expect("it answers");
        let delta = delta.expect("nothing else mines");
        pool.apply(&delta.gone, delta.new, coin)
    };
    refresh(&mut pool);
    let mut seen = 0;
    for id in [peg_in, plain, within] {
        let raw = node.rpc("getrawtransaction", json!([id]));
        let id = from_hex(id.as_str().expect("an id")).expect("an id");
        // Version, mark and flags, then no inputs: nothing outside of the extension block.
        let alone = raw.as_str().expect("hex").get(8..14) == Some("000800");
        assert_eq!(pool.get(&id).is_none(), alone, "{raw}");
        seen += usize::from(!alone);
    }
    assert!(seen > 0);
    assert_eq!(pool.len(), seen);
    // A second time nothing is new, whatever was passed over.
    assert_eq!(refresh(&mut pool), Changes::default());
}

#[test]
fn every_source_gives_the_same_chain() {
    let Some(node) = Node::start("every_source_gives_the_same_chain", &[]) else {
        return;
    };
    mweb_chain(&node);
    let mut followers: Vec<Follower> = sources(&node).into_iter().map(Follower::new).collect();
    for follower in &mut followers {
        let (left, came) = follower.follow().expect("it follows");
        assert_eq!(
            (left, came as u64),
            (
                0,
                node.rpc("getblockcount", json!([]))
                    .as_u64()
                    .expect("count")
            )
        );
        let described = follower.source.describe();
        println!("{described}");
        let with_extension = follower
            .blocks
            .iter()
            .filter(|b| !b.extension().is_empty())
            .count();
        assert!(
            with_extension >= 8,
            "{described}: {with_extension} extension blocks"
        );
        compare_sets(&node, follower);
    }
    for other in &followers[1..] {
        for (a, b) in followers[0].blocks.iter().zip(&other.blocks) {
            assert!(
                a.raw() == b.raw(),
                "{} of {}",
                hex(a.hash()),
                other.source.describe()
            );
        }
    }
    mempool_with_extension_transactions(&node, &followers[0]);
    // Undo data beside the blocks: a coin for each input, with the value the set had.
    let files = &followers[2];
    let mut spent_coins = 0;
    for block in &files.blocks {
        match files.source.spent(block.hash()).expect("readable") {
            Some(Spent::Coins(spent)) => spent_coins += spent.iter().map(Vec::len).sum::<usize>(),
            other => panic!("undo data of {}: {other:?}", hex(block.hash())),
        }
    }
    assert_eq!(
        spent_coins,
        files.blocks.iter().map(|b| b.input_count()).sum::<usize>()
    );
    assert!(spent_coins > 30);
}

#[test]
fn new_blocks_are_announced_and_invalid_ones_leave() {
    let Some(mut node) = Node::start("new_blocks_are_announced_and_invalid_ones_leave", &[]) else {
        return;
    };
    node.mine(30);
    let mut followers: Vec<Follower> = sources(&node).into_iter().map(Follower::new).collect();
    let layered = choose(&settings(&node, None)).expect("a source");
    assert_eq!(
        layered.source.kind(),
        Kind::Files,
        "{}",
        layered.source.describe()
    );
    assert!(layered.rpc.is_some());
    followers.push(Follower::new(layered.source));
    for follower in &mut followers {
        follower.follow().expect("it follows");
        let (source, known) = (follower.source.clone(), follower.tip());
        assert!(
            !source
                .wait(&known, Duration::from_millis(30))
                .expect("it waits"),
            "{}",
            source.describe()
        );
        let waiting = thread::spawn(move || {
            let seen = source.wait(&known, Duration::from_secs(30));
            (seen, Instant::now())
        });
        node.mine(1);
        let mined = Instant::now();
        let (seen, at) = waiting.join().expect("no panic");
        assert!(seen.expect("it waits"), "{}", follower.source.describe());
        println!(
            "{}: {:?} after the node's answer",
            follower.source.describe(),
            at.saturating_duration_since(mined)
        );
        eventually("the block", Duration::from_secs(10), || {
            follower.follow().expect("it follows");
            (node.rpc("getbestblockhash", json!([])) == hex(&follower.tip())).then_some(())
        });
        compare_sets(&node, follower);
    }
    // The node is told to leave seven blocks; a guided source follows at once, without new ones.
    let height = node
        .rpc("getblockcount", json!([]))
        .as_u64()
        .expect("count");
    let seventh = node.rpc("getblockhash", json!([height - 6]));
    node.rpc("invalidateblock", json!([seventh]));
    for follower in &mut followers {
        follower
            .source
            .headers(&[chain(NETWORK).params().genesis_hash()])
            .expect("it answers");
        if matches!(follower.source.kind(), Kind::P2p)
            || follower.source.describe().starts_with("block files")
                && !follower.source.describe().contains("chain by")
        {
            continue;
        }
        assert!(
            follower
                .source
                .wait(&follower.tip(), Duration::from_secs(5))
                .expect("it waits")
        );
        let before = follower.blocks.len();
        follower.follow().expect("it follows");
        assert!(before > follower.blocks.len());
        compare_sets(&node, follower);
    }
    // Another branch, longer than the one that was left: all follow. The node is restarted
    // meanwhile, so that connections and the cookie are new.
    node.mine(9);
    let best = node.rpc("getbestblockhash", json!([]));
    node.restart();
    assert_eq!(
        node.rpc("getbestblockhash", json!([])),
        best,
        "the node was stopped cleanly"
    );
    node.rpc("loadwallet", json!(["w"]));
    for follower in &mut followers {
        eventually(
            &format!("the other branch by {}", follower.source.describe()),
            Duration::from_secs(30),
            || match follower.follow() {
                Err(e) if !e.is_temporary() => panic!("{e}"),
                Err(e) => {
                    println!("{e}");
                    None
                }
                Ok(_) => (best == hex(&follower.tip())).then_some(()),
            },
        );
        compare_sets(&node, follower);
    }
}

#[test]
fn wrong_credentials_and_wrong_networks_are_named() {
    let Some(node) = Node::start("wrong_credentials_and_wrong_networks_are_named", &[]) else {
        return;
    };
    let wrong = weft_source::rpc::Auth::User("nobody".to_owned(), "nothing".to_owned());
    let client = weft_source::rpc::RpcClient::new(&node.rpc_place, wrong, Duration::ZERO);
    let error = client
        .call::<Value>("getblockcount", json!([]))
        .expect_err("refused");
    assert!(matches!(error, SourceError::Refused { .. }), "{error}");
    assert!(error.to_string().contains("user nobody"), "{error}");

    for kind in ["legacy", "p2sh-segwit", "bech32"] {
        let address = node.rpc("getnewaddress", json!(["", kind]));
        let address = address.as_str().expect("an address");
        let script = weft_chain::address::to_script(chain(NETWORK).params(), address).expect(kind);
        let info = node.rpc("getaddressinfo", json!([address]));
        assert_eq!(
            info["scriptPubKey"].as_str().map(common::unhex),
            Some(script.clone()),
            "{kind}"
        );
        assert_eq!(
            weft_chain::address::from_script(chain(NETWORK).params(), &script).as_deref(),
            Some(address)
        );
    }

    let other = chain("bitcoin-regtest");
    let error = Rpc::connect(node.client(Duration::ZERO), other).expect_err("another network");
    assert!(matches!(error, SourceError::OtherNetwork { .. }), "{error}");
    let error = Rest::connect(&node.rpc_place, other).expect_err("another network");
    assert!(matches!(error, SourceError::OtherNetwork { .. }), "{error}");
    let error = P2p::connect(node.p2p, chain("bitcoin")).expect_err("another network");
    assert!(
        matches!(
            error,
            SourceError::Unreachable { .. }
                | SourceError::Stalled { .. }
                | SourceError::BadAnswer { .. }
        ),
        "{error}"
    );
    let error = Files::open(&node.blocks_dir(), chain("bitcoin")).expect_err("another network");
    assert!(matches!(error, SourceError::BadFile { .. }), "{error}");
    for kind in [Kind::Files, Kind::Rpc, Kind::Rest, Kind::P2p] {
        let choice = choose(&settings(&node, Some(kind))).expect("it works");
        assert_eq!(choice.source.kind(), kind);
    }
}
