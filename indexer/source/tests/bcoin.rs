//! RPC and P2P against bcoin, a node that is not of the Core family.
//!
//! `WEFT_BCOIN` names a folder with `node_modules/bcoin` in it, made by
//! `npm install --ignore-scripts` of `{"dependencies":{"bcoin":"1.0.2"},"overrides":{"leveldown":"6.1.1"}}`.

mod common;

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use common::{Follower, chain, eventually};
use serde_json::{Value, json};
use weft_chain::hash::hex;
use weft_source::p2p::P2p;
use weft_source::rpc::{Auth, Rpc, RpcClient};
use weft_source::{Source, SourceError};

/// Runs on loopback, looks nobody up, ends with its standard input.
const SCRIPT: &str = r"
const {FullNode, Address} = require('bcoin');
(async () => {
  const node = new FullNode({
    network: 'regtest', memory: true, workers: false, logLevel: 'none', apiKey: 'key',
    listen: true, host: '127.0.0.1', port: Number(process.env.P2P_PORT),
    httpHost: '127.0.0.1', httpPort: Number(process.env.RPC_PORT),
    maxOutbound: 1, discover: false, persistent: false, upnp: false, seeds: [], nodes: [],
  });
  await node.open();
  await node.connect();
  console.log(Address.fromProgram(0, Buffer.alloc(20, 7)).toString('regtest'));
  process.stdin.resume();
  process.stdin.on('end', () => process.exit(0));
})().catch((e) => { console.error(e); process.exit(1); });
";

struct Bcoin {
    child: Child,
    place: String,
    p2p: SocketAddr,
    address: String,
}

impl Bcoin {
    fn start(test: &str) -> Option<Self> {
        let Some(folder) = std::env::var_os("WEFT_BCOIN") else {
            println!("SKIPPED {test}: WEFT_BCOIN names no folder with bcoin");
            return None;
        };
        let port = || {
            TcpListener::bind(("127.0.0.1", 0))
                .and_then(|l| l.local_addr())
                .expect("a free port")
                .port()
        };
        let (rpc, p2p) = (port(), port());
        let mut child = Command::new("node")
            .args(["-e", SCRIPT])
            .current_dir(folder)
            .env("NODE_BACKEND", "js")
            .env("RPC_PORT", rpc.to_string())
            .env("P2P_PORT", p2p.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let mut address = String::new();
        let output = child.stdout.take().expect("piped");
        BufReader::new(output)
            .read_line(&mut address)
            .expect("a line");
        let address = address.trim().to_owned();
        assert!(address.starts_with("rb1"), "bcoin did not start: {address}");
        Some(Self {
            child,
            place: format!("127.0.0.1:{rpc}"),
            p2p: ([127, 0, 0, 1], p2p).into(),
            address,
        })
    }

    fn client(&self) -> RpcClient {
        RpcClient::new(
            &self.place,
            Auth::User("x".to_owned(), "key".to_owned()),
            Duration::from_secs(10),
        )
    }

    fn mine(&self, count: u32) -> Value {
        self.client()
            .call("generatetoaddress", json!([count, self.address]))
            .expect("it mines")
    }
}

impl Drop for Bcoin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn bcoin_is_followed() {
    let Some(node) = Bcoin::start("bcoin_is_followed") else {
        return;
    };
    let network = chain("bitcoin-regtest");
    node.mine(30);
    let rpc: Arc<dyn Source> = Arc::new(Rpc::connect(node.client(), network).expect("RPC"));
    let p2p: Arc<dyn Source> = Arc::new(P2p::connect(node.p2p, network).expect("P2P"));
    println!("{}; {}", rpc.describe(), p2p.describe());
    let mut followers = [Follower::new(rpc), Follower::new(p2p)];
    for follower in &mut followers {
        assert_eq!(follower.follow().expect("it follows"), (0, 30));
    }
    let [a, b] = &followers;
    assert!(
        a.blocks
            .iter()
            .zip(&b.blocks)
            .all(|(a, b)| a.raw() == b.raw())
    );
    let error = a.source.blocks(&[[7; 32]]).expect_err("no such block");
    assert!(matches!(error, SourceError::NoBlock { .. }), "{error}");

    for follower in &mut followers {
        let (source, known) = (follower.source.clone(), follower.tip());
        let waiting = thread::spawn(move || source.wait(&known, Duration::from_secs(30)));
        node.mine(1);
        assert!(
            waiting.join().expect("no panic").expect("it waits"),
            "{}",
            follower.source.describe()
        );
        follower.follow().expect("it follows");
    }
    // Another branch: five blocks leave, nine come.
    let left: Value = node
        .client()
        .call("getblockhash", json!([28]))
        .expect("it answers");
    node.client()
        .call::<Value>("invalidateblock", json!([left]))
        .expect("it obeys");
    node.mine(9);
    let best: Value = node
        .client()
        .call("getbestblockhash", json!([]))
        .expect("it answers");
    for follower in &mut followers {
        eventually("the other branch", Duration::from_secs(20), || {
            follower.follow().expect("it follows");
            (best == hex(&follower.tip())).then_some(())
        });
        assert_eq!(follower.blocks.len(), 36);
    }
}
