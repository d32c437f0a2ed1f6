//! The server on real sockets: bounds hold, what is dropped is counted, others are served.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use weft_chain::hash::hex;
use weft_chain::script_hash;
use weft_electrum::{Info, Limits, Server, Settings};
use weft_listen::{Bounds, Config as ServerConfig, Gate, Limits as ClientLimits, Listener, tls};
use weft_stage::{Stage, script};

struct House {
    stage: Stage,
    server: Arc<Server>,
    gate: Arc<Gate>,
    address: SocketAddr,
    tls: SocketAddr,
    certificate: Vec<u8>,
    stop: watch::Sender<bool>,
    _runtime: Runtime,
}

fn settings(limits: Limits) -> Settings {
    Settings {
        limits,
        bounds: Bounds {
            workers: 2,
            memory: 16 << 20,
            ..ServerConfig::default().bounds(2)
        },
        info: Info::default(),
    }
}

impl House {
    fn new(settings: Settings, clients: ClientLimits) -> Self {
        let stage = Stage::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let gate = Gate::new(clients);
        let server = Server::new(stage.view.clone(), settings);
        let (stop, stopped) = watch::channel(false);
        let pair = tls::own_pair(stage.folder(), &["localhost".to_owned()]).unwrap();
        let mut addresses = Vec::new();
        for acceptor in [None, Some(tls::acceptor(&pair).unwrap())] {
            let any = "127.0.0.1:0".parse().unwrap();
            let listener = runtime
                .block_on(Listener::bind(any, acceptor, gate.clone()))
                .unwrap();
            addresses.push(listener.address().unwrap());
            runtime.spawn(server.clone().serve(listener, stopped.clone()));
        }
        let certificate = std::fs::read(&pair.certificate).unwrap();
        Self {
            stage,
            server,
            gate,
            address: addresses[0],
            tls: addresses[1],
            certificate,
            stop,
            _runtime: runtime,
        }
    }

    fn counted(&self, name: &str) -> u64 {
        let all = self
            .server
            .counters()
            .figures()
            .into_iter()
            .chain(self.gate.counters.figures());
        all.filter(|f| f.name == name).map(|f| f.value).sum()
    }

    fn connect(&self) -> Wire {
        Wire::new(TcpStream::connect(self.address).unwrap())
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

struct Wire {
    stream: TcpStream,
    lines: BufReader<TcpStream>,
}

impl Wire {
    fn new(stream: TcpStream) -> Self {
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap());
        Self { stream, lines }
    }

    fn ask(&mut self, method: &str, params: Value) -> Value {
        let request = json!({"id": 1, "method": method, "params": params});
        self.stream
            .write_all(format!("{request}\n").as_bytes())
            .unwrap();
        self.line().expect("an answer")
    }

    /// The next line, `None` when the server hung up.
    fn line(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.lines.read_line(&mut line) {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap()),
        }
    }

    fn works(&mut self) -> bool {
        self.ask("server.ping", json!([])).get("result").is_some()
    }

    fn is_hung_up(&mut self) -> bool {
        let mut rest = Vec::new();
        self.lines.read_to_end(&mut rest).map_or(true, |_| true)
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const MANY: ClientLimits = ClientLimits {
    clients: 1000,
    per_address: 1000,
};

#[test]
fn clients_beyond_the_bound_are_turned_away() {
    let house = House::new(
        settings(Limits::default()),
        ClientLimits {
            clients: 10,
            per_address: 4,
        },
    );
    let mut inside: Vec<Wire> = (0..4).map(|_| house.connect()).collect();
    assert!(inside.iter_mut().all(Wire::works));
    let mut outside = house.connect();
    assert!(outside.is_hung_up());
    assert_eq!(house.counted("clients_refused_address_total"), 1);
    drop(inside.pop());
    eventually("room comes back", || house.gate.clients() == 3);
    assert!(house.connect().works());
}

#[test]
fn malformed_and_huge_lines() {
    let limits = Limits {
        line: 100_000,
        ..Limits::default()
    };
    let house = House::new(settings(limits), MANY);
    let mut good = house.connect();
    let mut wire = house.connect();
    for bad in ["x", "{}", "[", "null", "\u{7f}", r#"{"id":1,"method":5}"#] {
        wire.stream
            .write_all(format!("{bad}\n").as_bytes())
            .unwrap();
        assert!(
            wire.line().unwrap()["error"]["code"].as_i64().unwrap() < 0,
            "{bad}"
        );
    }
    // Bytes that are no text, empty lines, and a line in many pieces.
    wire.stream.write_all(b"\xff\xfe\n\n \r\n").unwrap();
    assert_eq!(wire.line().unwrap()["error"]["code"], -32700);
    for byte in br#"{"id":3,"method":"server.ping"}"# {
        wire.stream.write_all(&[*byte]).unwrap();
    }
    wire.stream.write_all(b"\n").unwrap();
    assert_eq!(wire.line().unwrap()["id"], 3);
    // Pipelined requests are answered in order.
    let many: String = (0..500)
        .map(|n| format!("{{\"id\":{n},\"method\":\"server.ping\"}}\n"))
        .collect();
    wire.stream.write_all(many.as_bytes()).unwrap();
    for n in 0..500 {
        assert_eq!(wire.line().unwrap()["id"], n);
    }
    // A line without an end.
    let mut endless = house.connect();
    let mut sent = 0;
    while sent < 50_000_000 && endless.stream.write_all(&[b'a'; 10_000]).is_ok() {
        sent += 10_000;
    }
    assert!(
        endless.is_hung_up() && sent < 20_000_000,
        "{sent} bytes were taken"
    );
    assert_eq!(house.counted("electrum_dropped_long_line_total"), 1);
    assert!(good.works());
}

#[test]
fn long_lines_of_many_clients_share_their_memory() {
    let limits = Limits {
        line: 1 << 20,
        ..Limits::default()
    };
    let house = House::new(settings(limits), MANY);
    // 16 MB for all: sixteen lines of up to one.
    let mut wires: Vec<Wire> = (0..40).map(|_| house.connect()).collect();
    for wire in &mut wires {
        let _ = wire.stream.write_all(&[b'a'; 100_000]);
    }
    eventually("some are hung up on", || {
        house.counted("electrum_dropped_memory_total") == 24
    });
    assert!(house.connect().works());
    drop(wires);
    eventually("all are gone", || house.gate.clients() <= 1);
    let mut wire = house.connect();
    wire.stream
        .write_all(
            format!(
                "{{\"id\":1,\"method\":\"server.ping\",\"x\":\"{}\"}}\n",
                "a".repeat(500_000)
            )
            .as_bytes(),
        )
        .unwrap();
    assert_eq!(wire.line().unwrap()["result"], Value::Null);
}

#[test]
fn idle_and_slow_clients_are_hung_up_on() {
    let mut settings = settings(Limits::default());
    settings.bounds.idle = Duration::from_millis(700);
    settings.bounds.write = Duration::from_millis(500);
    let mut house = House::new(settings, MANY);
    for _ in 0..20 {
        let outputs: Vec<_> = (0..1500).map(|n| (n, script(1))).collect();
        house.stage.mine(&outputs, &[]);
    }
    let mut idle = house.connect();
    assert!(idle.works());
    assert!(idle.is_hung_up());
    assert_eq!(house.counted("electrum_dropped_idle_total"), 1);
    // 30,000 coins are 4 MB; nobody reads them.
    let mut slow = house.connect();
    let name = hex(&script_hash(&script(1)));
    let ask = json!({"id": 1, "method": "blockchain.scripthash.listunspent", "params": [name]});
    let many = format!("{ask}\n").repeat(8);
    slow.stream.write_all(many.as_bytes()).unwrap();
    let mut others = 0;
    eventually("the slow one is hung up on", || {
        others += usize::from(house.connect().works());
        house.counted("electrum_dropped_slow_total") == 1
    });
    assert!(others > 0);
    // One that reads gets all of it.
    let mut quick = house.connect();
    let coins = quick.ask("blockchain.scripthash.listunspent", json!([name]));
    assert_eq!(coins["result"].as_array().unwrap().len(), 30_000);
}

/// Resident memory of this process, bytes.
fn memory() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// Forty answers of 8 MB, with 16 MB of memory for what is long: a list costs a piece of it at a time, and is what it was
/// when it was asked for.
#[test]
fn long_lists_of_many_slow_clients_cost_little_memory() {
    let mut house = House::new(settings(Limits::default()), MANY);
    const COINS: usize = 60_000;
    for _ in 0..20 {
        let outputs: Vec<_> = (0..COINS / 20).map(|n| (n as u64, script(1))).collect();
        house.stage.mine(&outputs, &[]);
    }
    let name = hex(&script_hash(&script(1)));
    let before = memory();
    let mut wires: Vec<Wire> = (0..40).map(|_| house.connect()).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        let method = ["listunspent", "get_history"][n % 8 / 7];
        let ask =
            json!({"id": n, "method": format!("blockchain.scripthash.{method}"), "params": [name]});
        wire.stream
            .write_all(format!("{ask}\n").as_bytes())
            .unwrap();
        // The answer has begun.
        assert_eq!(wire.lines.fill_buf().unwrap()[0], b'{');
    }
    house.stage.mine(&[(1, script(1))], &[]);
    assert!(house.connect().works(), "others are served meanwhile");
    let most = memory();
    for (n, wire) in wires.iter_mut().enumerate() {
        let answer = wire.line().expect("a whole answer");
        assert_eq!(answer["id"], n);
        let rows = answer["result"].as_array().unwrap().len();
        assert_eq!(rows, [COINS, 20][n % 8 / 7]);
    }
    assert_eq!(house.counted("electrum_dropped_memory_total"), 0);
    // Other tests run beside this one.
    let grown = most.saturating_sub(before) >> 20;
    assert!(grown < 100, "{grown} MB for 300 MB of answers");
    let coins = house
        .connect()
        .ask("blockchain.scripthash.listunspent", json!([name]));
    assert_eq!(coins["result"].as_array().unwrap().len(), COINS + 1);
}

#[test]
fn who_asks_too_much_waits() {
    let limits = Limits {
        cost_per_second: 100.0,
        cost_burst: 50.0,
        ..Limits::default()
    };
    let house = House::new(settings(limits), MANY);
    let mut greedy = house.connect();
    let start = Instant::now();
    for _ in 0..100 {
        assert!(greedy.works());
    }
    assert!(
        start.elapsed() > Duration::from_millis(300),
        "{:?}",
        start.elapsed()
    );
    assert!(house.counted("electrum_throttled_total") > 10);
    let start = Instant::now();
    assert!(house.connect().works());
    assert!(start.elapsed() < Duration::from_secs(5));
}

#[test]
fn two_hundred_subscribers_are_told_every_block_once() {
    let mut house = House::new(settings(Limits::default()), MANY);
    let name = hex(&script_hash(&script(1)));
    let mut wires: Vec<Wire> = (0..200).map(|_| house.connect()).collect();
    for wire in &mut wires {
        wire.ask("blockchain.headers.subscribe", json!([]));
        wire.ask("blockchain.scripthash.subscribe", json!([name]));
    }
    for _ in 0..5 {
        house.stage.mine(&[(1, script(1))], &[]);
    }
    let last = house.stage.height();
    for wire in &mut wires {
        let (mut heights, mut statuses) = (Vec::new(), Vec::new());
        // The last status is of the present history; those of blocks that came at once may be left out.
        let want = wire_status(&house, 1);
        while heights.last() != Some(&u64::from(last)) || statuses.last() != Some(&want) {
            let told = wire.line().expect("a notification");
            match told["method"].as_str().unwrap() {
                "blockchain.headers.subscribe" => {
                    heights.push(told["params"][0]["height"].as_u64().unwrap())
                }
                _ => statuses.push(told["params"][1].clone()),
            }
        }
        assert_eq!(heights, (1..=u64::from(last)).collect::<Vec<_>>());
        let mut unique = statuses.clone();
        unique.dedup();
        assert_eq!(unique, statuses);
        assert!(wire.works(), "nothing else was told");
    }
}

fn wire_status(house: &House, n: u32) -> Value {
    let script = house.stage.view.script(script_hash(&script(n)));
    let status = house.stage.view.history(&script).unwrap().status().unwrap();
    weft_view::script::hex(&status).into()
}

#[test]
fn within_tls_by_its_own_certificate() {
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
    use tokio_rustls::rustls::{
        ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::ring,
    };
    let house = House::new(settings(Limits::default()), MANY);
    let client = |roots: RootCertStore| {
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        StreamOwned::new(connection, TcpStream::connect(house.tls).unwrap())
    };
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&house.certificate).unwrap())
        .unwrap();
    let mut stream = client(roots);
    stream
        .write_all(b"{\"id\":1,\"method\":\"server.ping\"}\n")
        .unwrap();
    let mut line = String::new();
    BufReader::new(&mut stream).read_line(&mut line).unwrap();
    assert_eq!(line, "{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":null}\n");
    // Who does not know the certificate refuses it; who speaks no TLS is hung up on.
    let mut stranger = client(RootCertStore::empty());
    assert!(stranger.write_all(b"x\n").is_err());
    let mut plain = Wire::new(TcpStream::connect(house.tls).unwrap());
    plain
        .stream
        .write_all(b"{\"id\":1,\"method\":\"server.ping\"}\n")
        .unwrap();
    assert!(plain.is_hung_up());
    eventually("both are counted", || {
        house.counted("clients_tls_failed_total") == 2
    });
    assert!(house.connect().works());
}
