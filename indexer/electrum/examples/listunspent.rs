//! Measures `listunspent` over TCP: scripts of 1, 100 and 10,000 coins, 1 and 64 clients, each on
//! a connection of its own, one question after another. Prints median and 99th percentile.
//!
//!     cargo run --release -p weft-electrum --example listunspent [-- SECONDS [COINS]]

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::sync::watch;
use weft_chain::hash::hex;
use weft_chain::script_hash;
use weft_electrum::{Info, Limits, Server, Settings};
use weft_listen::{Gate, Listener};
use weft_stage::{Stage, script};

fn main() {
    let seconds = std::env::args()
        .nth(1)
        .and_then(|s| s.parse().ok())
        .unwrap_or(3.0);
    let mut stage = Stage::default();
    // Coins among those of others, in blocks of 2000 outputs.
    let owners: Vec<u32> = (0..10_101u32)
        .map(|n| match n {
            0 => 1,
            1..=100 => 100,
            _ => 10_000,
        })
        .chain((0..30_000).map(|n| 100_000 + n))
        .collect();
    let mut order: Vec<usize> = (0..owners.len()).collect();
    order.sort_by_key(|n| (*n as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    for part in order.chunks(2000) {
        let outputs: Vec<_> = part
            .iter()
            .map(|n| (1000 + *n as u64, script(owners[*n])))
            .collect();
        stage.mine(&outputs, &[]);
    }

    // As many threads as the service has.
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build()
        .expect("threads");
    let limits = Limits {
        cost_per_second: 1e9,
        cost_burst: 1e9,
        ..Limits::default()
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;
    let settings = Settings {
        limits,
        bounds: weft_listen::Config::default().bounds(workers),
        info: Info::default(),
    };
    let server = Server::new(stage.view.clone(), settings);
    let gate = Gate::new(weft_listen::Limits {
        clients: 1000,
        per_address: 1000,
    });
    let any = "127.0.0.1:0".parse().expect("an address");
    let listener = runtime
        .block_on(Listener::bind(any, None, gate))
        .expect("a socket");
    let address = listener.address().expect("bound");
    let (_stop, stopped) = watch::channel(false);
    runtime.spawn(server.serve(listener, stopped));

    println!("coins  clients  questions/s  p50 ms   p99 ms");
    let only: Option<u32> = std::env::args().nth(2).and_then(|s| s.parse().ok());
    for coins in [1u32, 100, 10_000] {
        for clients in [1usize, 64] {
            if only.is_some_and(|only| only != coins) {
                continue;
            }
            let time = Duration::from_secs_f64(seconds);
            let start = Instant::now();
            let mut all: Vec<Duration> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..clients)
                    .map(|_| scope.spawn(|| ask(address, coins, time)))
                    .collect();
                threads
                    .into_iter()
                    .flat_map(|t| t.join().expect("no panic"))
                    .collect()
            });
            let rate = all.len() as f64 / start.elapsed().as_secs_f64();
            all.sort_unstable();
            let at = |part: f64| all[((all.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
            println!(
                "{coins:5}  {clients:7}  {rate:11.0}  {:6.3}  {:7.3}",
                at(0.5),
                at(0.99)
            );
        }
    }
}

fn ask(address: SocketAddr, coins: u32, time: Duration) -> Vec<Duration> {
    let mut stream = TcpStream::connect(address).expect("it accepts");
    stream.set_nodelay(true).expect("a socket");
    let mut lines = BufReader::with_capacity(1 << 20, stream.try_clone().expect("a socket"));
    let name = hex(&script_hash(&script(coins)));
    let request = json!({"id": 1, "method": "blockchain.scripthash.listunspent", "params": [name]});
    let request = format!("{request}\n");
    let mut line = Vec::new();
    let mut times = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end {
        let start = Instant::now();
        stream.write_all(request.as_bytes()).expect("it takes it");
        line.clear();
        lines.read_until(b'\n', &mut line).expect("an answer");
        times.push(start.elapsed());
    }
    // What was measured is what was asked for.
    let found = line.windows(7).filter(|w| *w == b"tx_hash").count();
    assert_eq!(found, coins as usize);
    times
}
