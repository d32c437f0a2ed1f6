//! What the tests share: chain data, following a source, a real `litecoind`.

#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_chain::coin::code;
use weft_chain::headers::HeaderTree;
use weft_chain::setinfo::{Counts, Kind as HashKind, SetHash};
use weft_chain::{Block, Chain, Coin, Hash, OutPoint, chains, is_unspendable};
use weft_source::rpc::{Auth, RpcClient};
use weft_source::{FetchConfig, Source, SourceError, fetch};

pub fn chain(name: &str) -> &'static dyn Chain {
    chains::by_name(name).expect("a known network")
}

/// The folder of chain data: `WEFT_TEST_DATA`, else `shared/data` beside the workspace.
pub fn data(test: &str, name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEFT_TEST_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let path = root.join(name);
    if path.exists() {
        return Some(path);
    }
    println!(
        "SKIPPED {test}: no {name} in {} (set WEFT_TEST_DATA)",
        root.display()
    );
    None
}

/// An empty folder that is removed with the value.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("{name}-{}-{n}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).expect("a scratch folder");
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Tries until it succeeds or the time is up.
pub fn eventually<T>(what: &str, limit: Duration, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(done) = check() {
            return done;
        }
        assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A reader of a source that keeps headers, blocks and coins the plain way.
pub struct Follower {
    pub source: Arc<dyn Source>,
    pub tree: HeaderTree,
    /// Blocks of the chain from height 1 up.
    pub blocks: Vec<Block>,
}

impl Follower {
    pub fn new(source: Arc<dyn Source>) -> Self {
        let tree = HeaderTree::new(source.chain());
        Self {
            source,
            tree,
            blocks: vec![],
        }
    }

    pub fn tip(&self) -> Hash {
        self.blocks
            .last()
            .map_or(self.source.chain().params().genesis_hash(), |b| *b.hash())
    }

    fn locator(&self) -> Vec<Hash> {
        weft_chain::headers::locator_heights(self.blocks.len() as u32)
            .map(|h| {
                h.checked_sub(1)
                    .map_or(self.source.chain().params().genesis_hash(), |i| {
                        *self.blocks[i as usize].hash()
                    })
            })
            .collect()
    }

    /// Goes to the source's tip; says how many blocks left and came.
    pub fn follow(&mut self) -> Result<(usize, usize), SourceError> {
        let (mut left, mut came) = (0, 0);
        loop {
            let ahead = self.source.headers(&self.locator())?;
            if let Some(fork) = ahead.fork {
                while self.tip() != fork {
                    self.blocks.pop().expect("the fork is on our chain");
                    left += 1;
                }
            }
            if ahead.headers.is_empty() {
                return Ok((left, came));
            }
            let mut hashes = vec![];
            for full in &ahead.headers {
                self.tree
                    .insert(&full.header, full.auxpow.as_deref())
                    .map_err(|e| SourceError::chain(self.source.describe(), e))?;
                hashes.push(full.header.hash());
            }
            for block in fetch(&self.source, hashes, &FetchConfig::default()) {
                let block = block?;
                assert_eq!(block.header().prev, self.tip(), "blocks come in order");
                self.blocks.push(block);
                came += 1;
            }
        }
    }

    /// The coins of the chain.
    pub fn coins(&self) -> BTreeMap<OutPoint, Coin> {
        let mut coins = BTreeMap::new();
        for (height, block) in (1..).zip(&self.blocks) {
            for tx in block.txs() {
                for input in tx.inputs() {
                    coins.remove(&input.prevout).expect("the coin exists");
                }
                for (vout, output) in (0..).zip(tx.outputs()) {
                    if !is_unspendable(output.script) {
                        let script = output.script.to_vec();
                        let coin = Coin {
                            value: output.value,
                            height,
                            coinbase: tx.is_coinbase(),
                            script,
                        };
                        coins.insert(
                            OutPoint {
                                txid: *tx.txid(),
                                vout,
                            },
                            coin,
                        );
                    }
                }
            }
        }
        coins
    }

    /// Hash of the coin set and its counts.
    pub fn set_hash(&self, kind: HashKind) -> (Hash, Counts) {
        let mut hash = SetHash::new(kind, &self.tip());
        for (at, coin) in self.coins() {
            hash.push(
                &at,
                code(coin.height, coin.coinbase),
                coin.value,
                &coin.script,
            )
            .expect("in order");
        }
        hash.finish()
    }
}

/// A `litecoind` on regtest, stopped with the value.
pub struct Node {
    child: Child,
    pub dir: Scratch,
    pub rpc_place: String,
    pub p2p: SocketAddr,
    args: Vec<String>,
}

/// A port outside the range that outgoing connections take theirs from: while a node is down for a restart, a client that
/// calls it again and again could otherwise end up connected to itself, on the node's own port.
fn free_port() -> u16 {
    loop {
        let random = RandomState::new().hash_one(std::process::id());
        let port = 10_000 + (random % 22_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Node {
    /// Starts one, or says why not.
    pub fn start(test: &str, extra: &[&str]) -> Option<Self> {
        if Command::new("litecoind")
            .arg("-version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_err()
        {
            println!("SKIPPED {test}: there is no litecoind in PATH (apt-get install litecoind)");
            return None;
        }
        let dir = Scratch::new("litecoind");
        let (rpc, p2p) = (free_port(), free_port());
        let mut args: Vec<String> = [
            "-regtest",
            "-server",
            "-rest",
            "-listen",
            "-printtoconsole=0",
            "-fallbackfee=0.001",
            "-discover=0",
            "-dnsseed=0",
            "-listenonion=0",
        ]
        .map(str::to_owned)
        .into();
        args.push(format!("-datadir={}", dir.0.display()));
        args.push(format!("-rpcport={rpc}"));
        args.push(format!("-bind=127.0.0.1:{p2p}"));
        args.extend(extra.iter().map(|a| (*a).to_owned()));
        let child = Self::spawn(&args);
        let node = Self {
            child,
            dir,
            rpc_place: format!("127.0.0.1:{rpc}"),
            p2p: ([127, 0, 0, 1], p2p).into(),
            args,
        };
        node.client(Duration::from_secs(60))
            .call::<Value>("getblockcount", json!([]))
            .expect("the node answers");
        node.rpc("createwallet", json!(["w"]));
        Some(node)
    }

    fn spawn(args: &[String]) -> Child {
        Command::new("litecoind")
            .args(args)
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("litecoind starts")
    }

    pub fn auth(&self) -> Auth {
        Auth::Cookie(self.dir.0.join("regtest/.cookie"))
    }

    pub fn blocks_dir(&self) -> PathBuf {
        self.dir.0.join("regtest/blocks")
    }

    /// The cookie may not be there yet, so its absence is waited out.
    pub fn client(&self, patience: Duration) -> RpcClient {
        eventually("the cookie", patience.max(Duration::from_secs(30)), || {
            self.dir.0.join("regtest/.cookie").exists().then_some(())
        });
        RpcClient::new(&self.rpc_place, self.auth(), patience)
    }

    pub fn rpc(&self, method: &str, params: Value) -> Value {
        let client = self.client(Duration::from_secs(60));
        client
            .call(method, params)
            .unwrap_or_else(|e| panic!("{method}: {e}"))
    }

    pub fn address(&self) -> String {
        self.rpc("getnewaddress", json!([]))
            .as_str()
            .expect("an address")
            .to_owned()
    }

    pub fn mine(&self, count: u32) -> Vec<Value> {
        let address = self.address();
        self.rpc("generatetoaddress", json!([count, address]))
            .as_array()
            .expect("hashes")
            .clone()
    }

    fn end(&mut self) {
        // A node that answers ends by itself; one that does not is killed.
        let asked = RpcClient::new(&self.rpc_place, self.auth(), Duration::ZERO)
            .call::<Value>("stop", json!([]));
        let deadline = Instant::now() + Duration::from_secs(if asked.is_ok() { 30 } else { 0 });
        while Instant::now() < deadline {
            if matches!(self.child.try_wait(), Ok(Some(_))) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn restart(&mut self) {
        self.end();
        self.child = Self::spawn(&self.args);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

pub fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2)
        .map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).expect("hex"))
        .collect()
}
