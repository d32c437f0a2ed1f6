//! Sources that lie, stall, start, prune: each ends in an error that says so, never in a wrong
//! block, a panic or unbounded memory. The nodes here are sockets of the test that speak the
//! protocol over real blocks.

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Follower, chain, data, eventually};
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex, sha256d};
use weft_chain::wire::put_compact_size;
use weft_chain::{Block, Chain, Hash};
use weft_source::files::Files;
use weft_source::p2p::P2p;
use weft_source::rest::Rest;
use weft_source::rpc::{Auth, Rpc, RpcClient};
use weft_source::{Ahead, FetchConfig, Kind, Source, SourceError, Spent, Tip, fetch};

const NETWORK: &str = "bitcoin-regtest";

/// The regtest chain of the test data.
fn real(test: &str) -> Option<Arc<dyn Source>> {
    let folder = data(test, "core-regtest-reorg")?;
    Some(Arc::new(
        Files::open(&folder, chain(NETWORK)).expect("readable"),
    ))
}

/// What a liar does to the block it is asked for.
type Lie = Box<dyn Fn(&Hash, Vec<u8>) -> Vec<u8> + Send + Sync>;

/// A source that changes what another one gives.
struct Liar {
    truth: Arc<dyn Source>,
    lie: Lie,
    delay: Duration,
    asked: AtomicUsize,
}

impl std::fmt::Debug for Liar {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Liar")
    }
}

impl Source for Liar {
    fn kind(&self) -> Kind {
        Kind::P2p
    }
    fn describe(&self) -> String {
        "a liar".to_owned()
    }
    fn chain(&self) -> &'static dyn Chain {
        self.truth.chain()
    }
    fn tip(&self) -> Result<Tip, SourceError> {
        self.truth.tip()
    }
    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        self.truth.headers(locator)
    }
    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        self.asked.fetch_add(hashes.len(), Ordering::Relaxed);
        thread::sleep(self.delay);
        let raw = self.truth.blocks(hashes)?;
        Ok(hashes
            .iter()
            .zip(raw)
            .map(|(hash, raw)| (self.lie)(hash, raw))
            .collect())
    }
    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        self.truth.wait(known, timeout)
    }
}

fn liar(
    truth: &Arc<dyn Source>,
    lie: impl Fn(&Hash, Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
) -> Follower {
    Follower::new(Arc::new(Liar {
        truth: truth.clone(),
        lie: Box::new(lie),
        delay: Duration::ZERO,
        asked: AtomicUsize::new(0),
    }))
}

#[test]
fn lies_about_blocks_are_named() {
    let Some(truth) = real("lies_about_blocks_are_named") else {
        return;
    };
    let mut honest = Follower::new(truth.clone());
    honest.follow().expect("it follows");
    let victim = *honest.blocks[100].hash();
    let other = honest.blocks[7].raw().to_vec();
    let lies: Vec<(&str, Lie)> = vec![
        (
            "the header says Merkle root",
            Box::new(|_, mut raw| {
                let n = raw.len();
                raw[n - 1] ^= 1;
                raw
            }),
        ),
        (
            "hash",
            Box::new(|_, mut raw| {
                raw[70] ^= 1;
                raw
            }),
        ),
        ("hash", Box::new(move |_, _| other.clone())),
        (
            "ends early",
            Box::new(|_, mut raw| {
                raw.truncate(raw.len() - 3);
                raw
            }),
        ),
        (
            "bytes too many",
            Box::new(|_, mut raw| {
                raw.push(0);
                raw
            }),
        ),
        ("ends early", Box::new(|_, _| vec![])),
        (
            "at most",
            Box::new(|_, mut raw| {
                raw.splice(80..81, [0xfe, 0xff, 0xff, 0xff, 0x7f]);
                raw
            }),
        ),
        ("at most", Box::new(|_, _| vec![0; 9_000_000])),
    ];
    for (want, lie) in lies {
        let mut follower = liar(
            &truth,
            move |hash, raw| if *hash == victim { lie(hash, raw) } else { raw },
        );
        let error = follower.follow().expect_err(want);
        assert!(matches!(error, SourceError::Chain { .. }), "{error}");
        assert!(
            error.to_string().contains(want) && error.to_string().contains("a liar"),
            "{error}"
        );
        assert_eq!(
            follower.blocks.len(),
            100,
            "what came before the lie is good"
        );
    }
}

/// No more is asked for than the window holds, in blocks and in bytes, and order is kept however
/// the answers come.
#[test]
fn the_window_is_bounded() {
    let Some(truth) = real("the_window_is_bounded") else {
        return;
    };
    let hashes: Vec<Hash> = truth
        .headers(&[chain(NETWORK).params().genesis_hash()])
        .expect("it answers")
        .headers
        .iter()
        .map(|f| f.header.hash())
        .collect();
    for (config, most) in [
        (
            FetchConfig {
                threads: 4,
                window_blocks: 10,
                ..FetchConfig::default()
            },
            10,
        ),
        // One byte: only what is next, beside what the threads have under way.
        (
            FetchConfig {
                threads: 4,
                window_bytes: 1,
                ..FetchConfig::default()
            },
            8,
        ),
    ] {
        let liar = Arc::new(Liar {
            truth: truth.clone(),
            lie: Box::new(|hash, raw| {
                // Uneven times, so that answers come out of order.
                thread::sleep(Duration::from_micros(u64::from(hash[0]) * 20));
                raw
            }),
            delay: Duration::ZERO,
            asked: AtomicUsize::new(0),
        });
        let source: Arc<dyn Source> = liar.clone();
        let stream = fetch(&source, hashes.clone(), &config);
        for (delivered, (block, want)) in stream.zip(&hashes).enumerate() {
            assert_eq!(block.expect("a block").hash(), want);
            let ahead = liar.asked.load(Ordering::Relaxed).saturating_sub(delivered);
            assert!(ahead <= most + 1, "{ahead} blocks ahead");
        }
        assert_eq!(liar.asked.load(Ordering::Relaxed), hashes.len());
    }
}

#[test]
fn a_source_that_stalls_is_named() {
    let Some(truth) = real("a_source_that_stalls_is_named") else {
        return;
    };
    let ahead = truth
        .headers(&[chain(NETWORK).params().genesis_hash()])
        .expect("it answers");
    let slow: Arc<dyn Source> = Arc::new(Liar {
        truth,
        lie: Box::new(|_, raw| raw),
        delay: Duration::from_secs(2),
        asked: AtomicUsize::new(0),
    });
    let config = FetchConfig {
        stall: Duration::from_millis(50),
        ..FetchConfig::default()
    };
    let hashes = ahead.headers.iter().map(|f| f.header.hash()).collect();
    let started = Instant::now();
    let mut stream = fetch(&slow, hashes, &config);
    let error = stream.next().expect("an answer").expect_err("too slow");
    assert!(
        matches!(error, SourceError::Stalled { .. }) && error.is_temporary(),
        "{error}"
    );
    assert!(stream.next().is_none(), "the first error ends it");
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "nobody waits for the slow answer"
    );
}

/// A socket of the test: each connection is handed to `serve`.
fn server(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    let address = listener.local_addr().expect("bound");
    let serve = Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = serve.clone();
            thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Reads one HTTP request: its first line and its body.
fn request(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut data = vec![];
    let mut chunk = [0; 4096];
    let head = loop {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        data.extend_from_slice(&chunk[..n]);
        if let Some(end) = data.windows(4).position(|w| w == b"\r\n\r\n") {
            break end;
        }
    };
    let text = String::from_utf8_lossy(&data[..head]).to_ascii_lowercase();
    let len = text
        .lines()
        .find_map(|l| l.strip_prefix("content-length: ")?.parse().ok())
        .unwrap_or(0);
    let mut body = data.split_off(head + 4);
    while body.len() < len {
        let n = stream.read(&mut chunk).ok().filter(|n| *n > 0)?;
        body.extend_from_slice(&chunk[..n]);
    }
    let line = String::from_utf8_lossy(&data).lines().next()?.to_owned();
    Some((line, body))
}

fn respond(stream: &mut TcpStream, status: u16, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    let _ = stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(body));
}

/// A node's RPC: `answer` gives result or error for a method.
fn rpc_node(
    answer: impl Fn(&str, &Value) -> Result<Value, Value> + Send + Sync + 'static,
) -> RpcClient {
    let address = server(move |mut stream| {
        let Some((_, body)) = request(&mut stream) else {
            return;
        };
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let one = |call: &Value| match answer(
            call["method"].as_str().expect("method"),
            &call["params"],
        ) {
            Ok(result) => json!({"result": result, "error": null, "id": call["id"]}),
            Err(error) => json!({"result": null, "error": error, "id": call["id"]}),
        };
        // In reverse order, which JSON-RPC allows.
        let reply = match &body {
            Value::Array(calls) => Value::Array(calls.iter().rev().map(one).collect()),
            call => one(call),
        };
        respond(&mut stream, 200, reply.to_string().as_bytes());
    });
    RpcClient::new(&address.to_string(), Auth::None, Duration::from_secs(5))
}

fn error(code: i64, message: &str) -> Value {
    json!({"code": code, "message": message})
}

/// The RPC of a node over the real chain, changed by `twist`.
fn twisted(
    truth: &Arc<dyn Source>,
    twist: impl Fn(&str, &Value) -> Option<Result<Value, Value>> + Send + Sync + 'static,
) -> Result<Rpc, SourceError> {
    let mut follower = Follower::new(truth.clone());
    follower.follow().expect("it follows");
    let blocks = follower.blocks;
    let genesis = chain(NETWORK).params().genesis;
    let hash_at = move |h: usize, blocks: &[Block]| {
        if h == 0 {
            genesis.hash()
        } else {
            *blocks[h - 1].hash()
        }
    };
    let client = rpc_node(move |method, params| {
        if let Some(answer) = twist(method, params) {
            return answer;
        }
        let wanted = params[0].as_str().and_then(from_hex);
        let height = || (0..=blocks.len()).find(|h| Some(hash_at(*h, &blocks)) == wanted);
        match method {
            "getblockhash" => Ok(json!(hex(&hash_at(
                params[0].as_u64().expect("height") as usize,
                &blocks
            )))),
            "getblockheader" => {
                let height = height().ok_or_else(|| error(-5, "Block not found"))?;
                if params[1] == json!(true) {
                    return Ok(
                        json!({"height": height, "confirmations": blocks.len() + 1 - height}),
                    );
                }
                Ok(json!(digits(&blocks[height - 1].header().to_bytes())))
            }
            "getblock" => {
                let height = height().ok_or_else(|| error(-5, "Block not found"))?;
                Ok(json!(digits(blocks[height - 1].raw())))
            }
            "getblockchaininfo" => Ok(json!({
                "bestblockhash": hex(&hash_at(blocks.len(), &blocks)),
                "blocks": blocks.len(),
                "pruneheight": 77,
            })),
            _ => Err(error(-32601, "Method not found")),
        }
    });
    Rpc::connect(client, chain(NETWORK))
}

fn digits(data: &[u8]) -> String {
    data.iter().map(|b| format!("{b:02x}")).collect()
}

#[test]
fn rpc_of_a_node_that_is_honest_pruned_starting_or_lying() {
    let Some(truth) = real("rpc_of_a_node_that_is_honest_pruned_starting_or_lying") else {
        return;
    };
    let mut follower = Follower::new(Arc::new(twisted(&truth, |_, _| None).expect("it connects")));
    assert_eq!(follower.follow().expect("it follows"), (0, 131));
    // It cannot wait (as bcoin cannot): it is asked again and again.
    assert!(
        !follower
            .source
            .wait(&follower.tip(), Duration::from_millis(50))
            .expect("it waits")
    );
    assert!(
        follower
            .source
            .wait(&[1; 32], Duration::from_millis(50))
            .expect("it waits")
    );

    let pruned = twisted(&truth, |method, _| {
        (method == "getblock").then(|| Err(error(-1, "Block not available (pruned data)")))
    });
    let e = Follower::new(Arc::new(pruned.expect("it connects")))
        .follow()
        .expect_err("pruned");
    assert!(matches!(e, SourceError::Pruned { first: 77, .. }), "{e}");
    assert!(
        e.to_string()
            .contains("the first height it still has is 77"),
        "{e}"
    );

    // A node that starts, three times, then answers.
    let count = AtomicUsize::new(0);
    let starting = twisted(&truth, move |_, _| {
        (count.fetch_add(1, Ordering::Relaxed) < 3)
            .then(|| Err(error(-28, "Loading block index...")))
    });
    Follower::new(Arc::new(starting.expect("patience pays")))
        .follow()
        .expect("it follows");

    // One that never gets ready.
    let client = rpc_node(|_, _| Err(error(-28, "Verifying blocks...")));
    let never = RpcClient::new(client.place(), Auth::None, Duration::from_millis(200));
    let e = Rpc::connect(never, chain(NETWORK)).expect_err("never ready");
    assert!(
        matches!(e, SourceError::WarmingUp { .. }) && e.to_string().contains("Verifying blocks"),
        "{e}"
    );

    // Lies: a header of another place, hex that is none, a result of another kind.
    let block = truth
        .headers(&[chain(NETWORK).params().genesis_hash()])
        .expect("it answers")
        .headers[50]
        .header;
    let wrong = twisted(&truth, move |method, params| {
        (method == "getblockheader" && params[1] == json!(false))
            .then(|| Ok(json!(digits(&block.to_bytes()))))
    });
    let ahead = wrong
        .expect("it connects")
        .headers(&[chain(NETWORK).params().genesis_hash()]);
    assert_eq!(
        ahead.expect("it answers").headers,
        [],
        "headers that do not link are not given on"
    );
    for result in [
        json!("zz"),
        json!("abc"),
        json!(7),
        json!(null),
        json!({"a": []}),
    ] {
        let twist =
            move |method: &str, _: &Value| (method == "getblock").then(|| Ok(result.clone()));
        let e = Follower::new(Arc::new(twisted(&truth, twist).expect("it connects")))
            .follow()
            .expect_err("a lie");
        assert!(
            matches!(
                e,
                SourceError::BadAnswer {
                    what: "getblock",
                    ..
                }
            ),
            "{e}"
        );
    }
}

#[test]
fn answers_that_are_no_rpc_are_named() {
    for (status, body, want) in [
        (200, &b"<html>hello</html>"[..], "no JSON-RPC"),
        (500, b"<html>hello</html>", "HTTP status 500"),
        (
            503,
            b"Work queue depth exceeded",
            "Work queue depth exceeded",
        ),
        (401, b"", "refuses the credentials"),
        (200, b"[]", "which was not asked"),
        (200, br#"{"result": 1, "id": 9}"#, "which was not asked"),
        (200, br#"{"result": "short", "id": 0}"#, "is no hash"),
    ] {
        let address = server(move |mut stream| {
            let _ = request(&mut stream);
            respond(&mut stream, status, body);
        });
        let client = RpcClient::new(&address.to_string(), Auth::None, Duration::ZERO);
        let e = Rpc::connect(client, chain(NETWORK)).expect_err(want);
        assert!(e.to_string().contains(want), "{e}");
    }
    // A body without end is cut off, and nobody listening is said.
    let address = server(|mut stream| {
        let _ = request(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 X\r\nConnection: close\r\n\r\n");
        while stream.write_all(&[b' '; 1 << 16]).is_ok() {}
    });
    let e = Rest::connect(&address.to_string(), chain(NETWORK)).expect_err("endless");
    assert!(e.to_string().contains("longer than"), "{e}");
    let closed = TcpListener::bind(("127.0.0.1", 0))
        .and_then(|l| l.local_addr())
        .expect("a free port");
    let e = Rest::connect(&closed.to_string(), chain(NETWORK)).expect_err("nobody");
    assert!(
        matches!(e, SourceError::Unreachable { .. }) && e.is_temporary(),
        "{e}"
    );
}

/// REST as Bitcoin Core 30 and later has it, with `spenttxouts`.
#[test]
fn rest_with_spent_outputs() {
    let Some(truth) = real("rest_with_spent_outputs") else {
        return;
    };
    let mut honest = Follower::new(truth.clone());
    honest.follow().expect("it follows");
    let node = truth.clone();
    let tip = honest.tip();
    let address = server(move |mut stream| {
        let Some((line, _)) = request(&mut stream) else {
            return;
        };
        let path = line.split(' ').nth(1).expect("a path").to_owned();
        let parts: Vec<&str> = path.trim_end_matches(".bin").split('/').collect();
        let hash = from_hex(parts[parts.len() - 1]);
        let (status, body) = match (parts[2], hash) {
            ("chaininfo.json", _) => (
                200,
                json!({"bestblockhash": hex(&tip), "blocks": 131})
                    .to_string()
                    .into_bytes(),
            ),
            ("headers", Some(hash)) => {
                let genesis = chain(NETWORK).params().genesis;
                let mut all = vec![genesis.to_bytes()];
                all.extend(
                    node.headers(&[genesis.hash()])
                        .expect("it answers")
                        .headers
                        .iter()
                        .map(|f| f.header.to_bytes()),
                );
                let at = all.iter().position(|h| sha256d(h) == hash);
                let count: usize = parts[3].parse().expect("a count");
                let list = at.map_or(&[][..], |at| &all[at..]);
                (200, list.iter().take(count).flatten().copied().collect())
            }
            ("block", Some(hash)) => (200, node.blocks(&[hash]).expect("it has it").remove(0)),
            ("spenttxouts", Some(hash)) => {
                let Ok(Some(Spent::Coins(spent))) = node.spent(&hash) else {
                    return;
                };
                let mut out = vec![];
                put_compact_size(&mut out, spent.len() as u64 + 1);
                out.push(0);
                for list in spent {
                    put_compact_size(&mut out, list.len() as u64);
                    for coin in list {
                        out.extend_from_slice(&coin.value.to_le_bytes());
                        put_compact_size(&mut out, coin.script.len() as u64);
                        out.extend_from_slice(&coin.script);
                    }
                }
                (200, out)
            }
            _ => (404, vec![]),
        };
        respond(&mut stream, status, &body);
    });
    let rest = Rest::connect(&address.to_string(), chain(NETWORK)).expect("it connects");
    assert!(rest.has_spent());
    let mut follower = Follower::new(Arc::new(rest));
    follower.follow().expect("it follows");
    assert_eq!(follower.tip(), honest.tip());
    for block in &follower.blocks {
        let Ok(Some(Spent::Outputs(outputs))) = follower.source.spent(block.hash()) else {
            panic!("no spent outputs")
        };
        let Ok(Some(Spent::Coins(coins))) = truth.spent(block.hash()) else {
            panic!("no undo data")
        };
        assert!(outputs[0].is_empty());
        for (outputs, coins) in outputs[1..].iter().zip(&coins) {
            assert_eq!(outputs.len(), coins.len());
            assert!(
                outputs
                    .iter()
                    .zip(coins)
                    .all(|(o, c)| o.value == c.value && o.script == c.script)
            );
        }
    }
}

/// One P2P message.
fn message(magic: [u8; 4], command: &str, payload: &[u8]) -> Vec<u8> {
    let mut out = magic.to_vec();
    out.extend_from_slice(command.as_bytes());
    out.resize(16, 0);
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(&sha256d(payload)[..4]);
    out.extend_from_slice(payload);
    out
}

fn version() -> Vec<u8> {
    let mut payload = 70_016i32.to_le_bytes().to_vec();
    payload.resize(4 + 8 + 8 + 26 + 26 + 8, 0);
    payload.extend_from_slice(b"\x07/liar:/");
    payload.extend_from_slice(&131u32.to_le_bytes());
    payload.push(1);
    payload
}

fn read_message(stream: &mut TcpStream) -> Option<(String, Vec<u8>)> {
    let mut head = [0; 24];
    stream.read_exact(&mut head).ok()?;
    let mut payload =
        vec![0; u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((
        String::from_utf8_lossy(&head[4..16])
            .trim_end_matches('\0')
            .to_owned(),
        payload,
    ))
}

/// A peer that shakes hands and then answers each message with bytes.
fn peer(answer: impl Fn(&str, &[u8]) -> Vec<u8> + Send + Sync + 'static) -> SocketAddr {
    let magic = chain(NETWORK).params().magic;
    server(move |mut stream| {
        while let Some((command, payload)) = read_message(&mut stream) {
            let bytes = match command.as_str() {
                "version" => [
                    message(magic, "version", &version()),
                    message(magic, "verack", &[]),
                ]
                .concat(),
                "verack" | "sendheaders" | "pong" => continue,
                "ping" => message(magic, "pong", &payload),
                command => answer(command, &payload),
            };
            if bytes.is_empty() || stream.write_all(&bytes).is_err() {
                return;
            }
        }
    })
}

#[test]
fn p2p_with_an_honest_peer_and_with_liars() {
    let Some(truth) = real("p2p_with_an_honest_peer_and_with_liars") else {
        return;
    };
    let magic = chain(NETWORK).params().magic;
    let genesis = chain(NETWORK).params().genesis_hash();
    let headers = truth.headers(&[genesis]).expect("it answers").headers;
    let list = |headers: &[weft_source::FullHeader]| {
        let mut out = vec![];
        put_compact_size(&mut out, headers.len() as u64);
        for h in headers {
            out.extend_from_slice(&h.header.to_bytes());
            out.push(0);
        }
        out
    };
    let all = list(&headers);
    let honest = {
        let (truth, all) = (truth.clone(), all.clone());
        move |command: &str, payload: &[u8]| match command {
            "getheaders" => {
                // After the first of the locator: the follower is at the start or at the end.
                let first: Hash = payload[5..37].try_into().expect("a hash");
                let reply = if first == genesis { &all[..] } else { &[0][..] };
                [
                    message(magic, "ping", &[7; 8]),
                    message(magic, "inv", &[0]),
                    message(magic, "headers", reply),
                ]
                .concat()
            }
            "getdata" => {
                // In reverse order, which the protocol allows.
                let (items, _) = payload[1..].as_chunks::<36>();
                let wanted: Vec<Hash> = items
                    .iter()
                    .rev()
                    .map(|i| i[4..].try_into().expect("a hash"))
                    .collect();
                let blocks = truth.blocks(&wanted).expect("it has them");
                blocks
                    .iter()
                    .flat_map(|b| message(magic, "block", b))
                    .collect()
            }
            _ => vec![],
        }
    };
    let mut follower = Follower::new(Arc::new(
        P2p::connect(peer(honest.clone()), chain(NETWORK)).expect("it connects"),
    ));
    assert_eq!(follower.follow().expect("it follows"), (0, 131));

    let first = truth
        .blocks(&[headers[0].header.hash()])
        .expect("it has it")
        .remove(0);
    let mut broken = message(magic, "block", &first);
    let n = broken.len();
    broken[n - 1] ^= 1;
    let mut huge = message(magic, "block", &[]);
    huge[16..20].copy_from_slice(&u32::MAX.to_le_bytes());
    let mut notfound = vec![1];
    notfound.extend_from_slice(&2u32.to_le_bytes());
    notfound.extend_from_slice(&headers[0].header.hash());
    let mut swapped = first.clone();
    let last = swapped.len() - 1;
    swapped[last] ^= 1;
    let unasked = truth
        .blocks(&[headers[130].header.hash()])
        .expect("it has it")
        .remove(0);
    for (bytes, want) in [
        (broken, "checksum"),
        (huge, "claims 4294967295 bytes"),
        (message([1, 2, 3, 4], "block", &first), "magic"),
        (message(magic, "notfound", &notfound), "does not have block"),
        (message(magic, "block", &unasked), "was not asked for"),
        (message(magic, "block", &[1; 40]), "ends early"),
        (message(magic, "block", &first)[..60].to_vec(), "hung up"),
        (vec![], "hung up"),
    ] {
        let honest = honest.clone();
        let address = peer(move |command, payload| match command {
            "getdata" => bytes.clone(),
            _ => honest(command, payload),
        });
        let source: Arc<dyn Source> = Arc::new(
            P2p::connect_within(address, chain(NETWORK), Duration::from_millis(500))
                .expect("it connects"),
        );
        let e = source.blocks(&[headers[0].header.hash()]).expect_err(want);
        assert!(
            e.to_string().contains(want) || want == "hung up" && e.is_temporary(),
            "{want}: {e}"
        );
        // The connection is opened again by the next call.
        source.headers(&[genesis]).expect("it answers");
    }
    // Headers without work, that do not link, or cut short.
    let mut no_work = all.clone();
    for nonce in 0..=255 {
        no_work[1 + 76] = nonce;
        let target = weft_chain::pow::Target::from_compact(0x207f_ffff).expect("valid");
        if weft_chain::pow::Target::from_hash(&sha256d(&no_work[1..81])) > target {
            break;
        }
    }
    let mut unlinked = all.clone();
    unlinked.drain(1 + 81..1 + 2 * 81);
    unlinked[0] -= 1;
    for (reply, want) in [
        (no_work, "does not reach the target"),
        (unlinked, "is unknown"),
        (all[..500].to_vec(), "claims 131"),
        (vec![0xff; 9], "claims 18446744073709551615"),
    ] {
        let address = peer(move |command, _| {
            if command == "getheaders" {
                message(magic, "headers", &reply)
            } else {
                vec![]
            }
        });
        let source = P2p::connect(address, chain(NETWORK)).expect("it connects");
        let e = Follower::new(Arc::new(source)).follow().expect_err(want);
        assert!(e.to_string().contains(want), "{want}: {e}");
    }
}

/// New blocks are announced by `inv` or `headers`, and a peer that hangs up is connected again.
#[test]
fn p2p_announcements() {
    let magic = chain(NETWORK).params().magic;
    let streams: Arc<Mutex<Vec<TcpStream>>> = Arc::default();
    let kept = streams.clone();
    let address = server(move |mut stream| {
        while let Some((command, _)) = read_message(&mut stream) {
            if command == "version" {
                let hello = [
                    message(magic, "version", &version()),
                    message(magic, "verack", &[]),
                ]
                .concat();
                stream.write_all(&hello).expect("connected");
            }
            if command == "sendheaders" {
                kept.lock()
                    .expect("not poisoned")
                    .push(stream.try_clone().expect("a handle"));
            }
        }
    });
    let p2p = P2p::connect(address, chain(NETWORK)).expect("it connects");
    assert!(
        !p2p.wait(&[0; 32], Duration::from_millis(20))
            .expect("it waits")
    );
    let mut inv = vec![1];
    inv.extend_from_slice(&2u32.to_le_bytes());
    inv.extend_from_slice(&[5; 32]);
    let stream = |n: usize| {
        eventually("the connection", Duration::from_secs(5), || {
            streams
                .lock()
                .expect("not poisoned")
                .get(n)
                .map(|s| s.try_clone().expect("a handle"))
        })
    };
    stream(0)
        .write_all(&message(magic, "inv", &inv))
        .expect("connected");
    assert!(
        p2p.wait(&[0; 32], Duration::from_secs(5))
            .expect("it waits")
    );
    assert!(
        !p2p.wait(&[5; 32], Duration::from_millis(20))
            .expect("it waits"),
        "that block is known"
    );
    assert_eq!(p2p.tip().expect("it answers").hash, Some([5; 32]));
    stream(0)
        .shutdown(std::net::Shutdown::Both)
        .expect("connected");
    let e = p2p
        .wait(&[5; 32], Duration::from_secs(5))
        .expect_err("it hung up");
    assert!(e.is_temporary(), "{e}");
    assert!(
        !p2p.wait(&[5; 32], Duration::from_millis(20))
            .expect("it waits again")
    );
    stream(1);
}

/// A peer whose messages are damaged at random: whatever it says, a call ends, with the truth or with an error.
#[test]
fn p2p_with_peers_that_are_damaged_at_random() {
    let Some(truth) = real("p2p_with_peers_that_are_damaged_at_random") else {
        return;
    };
    let magic = chain(NETWORK).params().magic;
    let genesis = chain(NETWORK).params().genesis_hash();
    let headers = truth.headers(&[genesis]).expect("it answers").headers;
    let wanted = headers[0].header.hash();
    let block = truth.blocks(&[wanted]).expect("it has it").remove(0);
    let mut list = vec![];
    put_compact_size(&mut list, headers.len() as u64);
    for h in &headers {
        list.extend_from_slice(&h.header.to_bytes());
        list.push(0);
    }
    // A stream of numbers from a seed (SplitMix64); what fails can be repeated.
    let mut state = 2009u64;
    let mut random = move || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let (mut honest, mut errors) = (0, 0);
    for case in 0..150 {
        // Which message is damaged, whether its checksum is made right again, and three places in it.
        let (which, mended) = (random() % 3, random() % 2 == 0);
        let places = [random(), random(), random()];
        let damage = move |command: &str, payload: &[u8]| {
            let mut payload = payload.to_vec();
            let hit = |bytes: &mut Vec<u8>| {
                for place in places {
                    let at = (place >> 16) as usize % bytes.len().max(1);
                    match place % 4 {
                        0 => bytes.truncate(at),
                        1 => bytes.insert(at.min(bytes.len()), place as u8),
                        2 => bytes
                            .iter_mut()
                            .skip(at)
                            .take(1)
                            .for_each(|b| *b ^= 1 << (place >> 8 & 7)),
                        _ => bytes.iter_mut().skip(at).take(4).for_each(|b| *b = 0xff),
                    }
                }
            };
            if mended {
                hit(&mut payload);
                message(magic, command, &payload)
            } else {
                let mut whole = message(magic, command, &payload);
                hit(&mut whole);
                whole
            }
        };
        let (list, block) = (list.clone(), block.clone());
        let truth_block = block.clone();
        let address = server(move |mut stream| {
            while let Some((command, _)) = read_message(&mut stream) {
                let reply = |command: &str, payload: &[u8], hit: bool| {
                    if hit {
                        damage(command, payload)
                    } else {
                        message(magic, command, payload)
                    }
                };
                let bytes = match command.as_str() {
                    "version" => {
                        let mut hello = reply("version", &version(), which == 0);
                        hello.extend(message(magic, "verack", &[]));
                        hello
                    }
                    "getheaders" => reply("headers", &list, which == 1),
                    "getdata" => reply("block", &block, which == 2),
                    _ => continue,
                };
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
        });
        let begun = Instant::now();
        let limit = Duration::from_millis(100);
        let tried = P2p::connect_within(address, chain(NETWORK), limit).and_then(|p2p| {
            p2p.headers(&[genesis])?;
            let raw = p2p.blocks(&[wanted])?.remove(0);
            Block::parse_checked(chain(NETWORK), raw.clone())
                .map_err(|e| SourceError::chain(p2p.describe(), e))
                .map(|_| raw)
        });
        match tried {
            Ok(raw) => {
                assert!(raw == truth_block, "case {case}: another block is taken");
                honest += 1;
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                errors += 1;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "case {case}");
    }
    println!("{honest} of the damages did not matter, {errors} were named");
    assert!(errors > 50);
}
