//! The server on real sockets: plain questions, CORS, bounds, SSE and WebSocket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use weft_chain::hash::hex;
use weft_http::stream::StreamLimits;
use weft_http::{Server, Settings};
use weft_listen::{Bounds, Config, Gate, Limits, Listener};
use weft_stage::{Stage, script};

fn impatient() -> Bounds {
    Bounds {
        write: Duration::from_millis(500),
        idle: Duration::from_millis(700),
        ..Config::default().bounds(4)
    }
}

struct House {
    stage: Stage,
    server: Arc<Server>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    _runtime: Runtime,
}

impl House {
    fn new(settings: Settings) -> Self {
        let stage = Stage::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let server = Server::new(stage.view.clone(), settings);
        let gate = Gate::new(Limits {
            clients: 500,
            per_address: 500,
        });
        let any = "127.0.0.1:0".parse().unwrap();
        let listener = runtime.block_on(Listener::bind(any, None, gate)).unwrap();
        let address = listener.address().unwrap();
        let (stop, stopped) = watch::channel(false);
        runtime.spawn(server.clone().serve(listener, stopped));
        Self {
            stage,
            server,
            address,
            stop,
            _runtime: runtime,
        }
    }

    fn counted(&self, name: &str) -> u64 {
        let streams = self.server.stream_counters().figures();
        let all = self.server.counters().figures().into_iter().chain(streams);
        all.filter(|f| f.name == name).map(|f| f.value).sum()
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .set_write_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
    }

    /// One request on a connection of its own: head and body of the answer.
    fn ask(&self, head: &str, body: &[u8]) -> (String, Vec<u8>) {
        let mut stream = self.connect();
        let request = format!(
            "{head}\r\nHost: here\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(request.as_bytes()).unwrap();
        let _ = stream.write_all(body);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let at = answer
            .windows(4)
            .position(|w| w == b"\r\n\r\n")
            .unwrap_or(answer.len());
        let head = String::from_utf8_lossy(&answer[..at]).into_owned();
        (
            head.to_lowercase(),
            answer.get(at + 4..).unwrap_or_default().to_vec(),
        )
    }

    fn works(&self) -> bool {
        self.ask("GET /blocks/tip/height HTTP/1.1", b"")
            .0
            .starts_with("http/1.1 200")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !check() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn questions_cors_and_mistakes() {
    let cors = |cors: Option<&str>| Settings {
        cors: cors.map(str::to_owned),
        ..Settings::default()
    };
    let house = House::new(cors(Some("https://wallet.example")));
    let (head, body) = house.ask(
        "GET /blocks/tip/hash HTTP/1.1\r\nOrigin: https://wallet.example",
        b"",
    );
    assert_eq!(body, hex(&house.stage.tip()).into_bytes());
    assert!(
        head.contains("access-control-allow-origin: https://wallet.example"),
        "{head}"
    );
    assert!(
        head.contains("content-type: text/plain") && head.contains("cache-control: no-store"),
        "{head}"
    );
    let (head, _) = house.ask(
        "GET /blocks/tip/hash HTTP/1.1\r\nOrigin: https://other.example",
        b"",
    );
    assert!(!head.contains("access-control"), "{head}");
    let (head, _) = house.ask(
        "OPTIONS /tx HTTP/1.1\r\nOrigin: https://wallet.example",
        b"",
    );
    assert!(
        head.starts_with("http/1.1 204") && head.contains("get, post, options"),
        "{head}"
    );
    let open = House::new(cors(Some("*")));
    assert!(
        open.ask("GET /mempool HTTP/1.1", b"")
            .0
            .contains("access-control-allow-origin: *")
    );
    let (head, body) = house.ask("GET /openapi.json HTTP/1.1", b"");
    assert!(head.contains("application/json"));
    assert!(serde_json::from_slice::<Value>(&body).unwrap()["openapi"].is_string());
    for (ask, status) in [
        ("GET /nothing HTTP/1.1", "404"),
        ("POST /mempool HTTP/1.1", "405"),
        ("GET /tx/zz HTTP/1.1", "400"),
        ("GET /block-height/99 HTTP/1.1", "404"),
        ("GET /v1/events?x=1 HTTP/1.1", "400"),
        ("BREW /tea HTTP/1.1", "404"),
        ("HEAD /mempool HTTP/1.1", "200"),
        ("GARBAGE", "400"),
    ] {
        let (head, _) = house.ask(ask, b"");
        assert!(
            head.starts_with(&format!("http/1.1 {status}")),
            "{ask}: {head}"
        );
    }
    assert!(house.counted("http_errors_total") >= 5);
}

#[test]
fn bodies_and_heads_are_bounded() {
    let house = House::new(Settings {
        body: 10_000,
        bounds: impatient(),
        ..Settings::default()
    });
    let (head, _) = house.ask("POST /tx HTTP/1.1", &[b'0'; 10_000]);
    assert!(
        head.starts_with("http/1.1 503"),
        "well formed, and there is no node: {head}"
    );
    let (head, _) = house.ask("POST /tx HTTP/1.1", &[b'0'; 10_001]);
    assert!(head.starts_with("http/1.1 413"), "{head}");
    // More than was announced, in pieces of unknown length.
    let mut stream = house.connect();
    stream
        .write_all(b"POST /tx HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    for _ in 0..30 {
        if stream
            .write_all(format!("1000\r\n{}\r\n", "0".repeat(4096)).as_bytes())
            .is_err()
        {
            break;
        }
    }
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 413"), "{line}");
    // A body that does not come, and a head that never ends.
    let mut stream = house.connect();
    stream
        .write_all(b"POST /tx HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n")
        .unwrap();
    line.clear();
    BufReader::new(&stream).read_line(&mut line).unwrap();
    assert!(line.starts_with("HTTP/1.1 408"), "{line}");
    let mut stream = house.connect();
    let mut sent = 0;
    stream.write_all(b"GET / HTTP/1.1\r\nX: ").unwrap();
    while sent < 50_000_000 && stream.write_all(&[b'a'; 10_000]).is_ok() {
        sent += 10_000;
    }
    assert!(sent < 20_000_000, "{sent}");
    let mut silent = house.connect();
    silent.write_all(b"GET / HT").unwrap();
    let mut rest = Vec::new();
    let _ = silent.read_to_end(&mut rest);
    assert_eq!(house.counted("http_refused_body_total"), 3);
    assert!(house.works());
}

#[test]
fn who_takes_no_answer_is_hung_up_on() {
    let mut house = House::new(Settings {
        bounds: impatient(),
        ..Settings::default()
    });
    for _ in 0..10 {
        let outputs: Vec<_> = (0..3000).map(|n| (n, script(1))).collect();
        house.stage.mine(&outputs, &[]);
    }
    let name = weft_view::script::hex(&weft_chain::script_hash(&script(1)));
    let mut slow = house.connect();
    let request = format!("GET /scripthash/{name}/utxo HTTP/1.1\r\nHost: x\r\n\r\n");
    slow.write_all(request.repeat(5).as_bytes()).unwrap();
    let mut others = 0;
    eventually("it is hung up on", || {
        others += usize::from(house.works());
        house.counted("http_dropped_slow_total") == 1
    });
    assert!(others > 0);
    let (head, body) = house.ask(&format!("GET /scripthash/{name}/utxo HTTP/1.0"), b"");
    assert!(
        head.starts_with("http/1.0 200") && body.len() > 3_000_000,
        "{head}: {}",
        body.len()
    );
    drop(slow);
}

/// Forty answers of 12 MB, with 8 MB of memory for what is long: a list costs a piece of it at a time, and is what it was
/// when it was asked for.
#[test]
fn long_lists_of_many_slow_clients_cost_little_memory() {
    let mut house = House::new(Settings {
        bounds: Bounds {
            memory: 8 << 20,
            ..Config::default().bounds(4)
        },
        ..Settings::default()
    });
    const COINS: usize = 60_000;
    for _ in 0..20 {
        let outputs: Vec<_> = (0..COINS / 20).map(|n| (n as u64, script(1))).collect();
        house.stage.mine(&outputs, &[]);
    }
    let name = weft_view::script::hex(&weft_chain::script_hash(&script(1)));
    let memory = || {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
        statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
    };
    let before = memory();
    let mut clients: Vec<_> = (0..40)
        .map(|_| {
            let mut stream = house.connect();
            let ask = format!(
                "GET /scripthash/{name}/utxo HTTP/1.0\r\nConnection: close\r\nHost: x\r\n\r\n"
            );
            stream.write_all(ask.as_bytes()).unwrap();
            let mut reader = BufReader::new(stream);
            assert_eq!(reader.fill_buf().unwrap()[0], b'H', "the answer has begun");
            reader
        })
        .collect();
    house.stage.mine(&[(1, script(1))], &[]);
    assert!(house.works(), "others are served meanwhile");
    // Other tests run beside this one.
    let grown = memory().saturating_sub(before) >> 20;
    assert!(grown < 100, "{grown} MB for 500 MB of answers");
    for client in &mut clients {
        let mut text = String::new();
        client.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        assert!(serde_json::from_str::<serde::de::IgnoredAny>(body).is_ok());
        assert_eq!(body.matches("\"txid\"").count(), COINS);
    }
    assert_eq!(house.counted("http_refused_memory_total"), 0);
}

/// Events of an SSE stream.
struct Sse(BufReader<TcpStream>);

impl Sse {
    fn open(house: &House, path: &str, header: &str) -> Self {
        Self::try_open(house, path, header).unwrap_or_else(|line| panic!("{line}"))
    }

    /// A stream, or the status there is instead.
    fn try_open(house: &House, path: &str, header: &str) -> Result<Self, String> {
        let mut stream = house.connect();
        stream
            .write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n{header}\r\n").as_bytes())
            .unwrap();
        let mut lines = BufReader::new(stream);
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        match line.starts_with("HTTP/1.1 200") {
            true => Ok(Self(lines)),
            false => Err(line),
        }
    }

    fn next(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).unwrap();
            }
        }
    }
}

#[test]
fn server_sent_events_go_on_where_they_were() {
    let mut house = House::new(Settings {
        streams: 2,
        ..Settings::default()
    });
    let mut sse = Sse::open(&house, "/v1/events", "");
    assert_eq!(sse.next()["event"], "subscribed");
    house.stage.mine(&[(1, script(1))], &[]);
    let first = sse.next();
    assert_eq!(
        (&first["event"], &first["hash"]),
        (&json!("block"), &json!(hex(&house.stage.tip())))
    );
    drop(sse);
    for _ in 0..3 {
        house.stage.mine(&[(1, script(1))], &[]);
    }
    let mut sse = Sse::open(
        &house,
        "/v1/events",
        &format!("Last-Event-ID: {}\r\n", first["id"].as_str().unwrap()),
    );
    assert_eq!(sse.next()["event"], "subscribed");
    let heights: Vec<u64> = (0..3)
        .map(|_| sse.next()["height"].as_u64().unwrap())
        .collect();
    assert_eq!(heights, [2, 3, 4]);
    house.stage.mine(&[(1, script(1))], &[]);
    assert_eq!(sse.next()["height"], 5);
    // Two streams at a time.
    let _second = {
        let mut opened = None;
        eventually("the first stream's place is free", || {
            let (head, _) = house.ask("GET /v1/events?blocks=x HTTP/1.1", b"");
            assert!(head.starts_with("http/1.1 400"));
            opened = Sse::try_open(&house, "/v1/events", "").ok();
            opened.is_some()
        });
        opened
    };
    let refused = house.counted("http_refused_streams_total");
    let (head, _) = house.ask("GET /v1/events HTTP/1.1", b"");
    assert!(head.starts_with("http/1.1 503"), "{head}");
    assert_eq!(house.counted("http_refused_streams_total"), refused + 1);
    assert!(house.works());
}

/// A WebSocket by hand.
struct Socket(BufReader<TcpStream>);

impl Socket {
    fn open(house: &House, header: &str) -> Result<Self, String> {
        let mut stream = house.connect();
        let request = format!(
            "GET /v1/ws HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n{header}\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream);
        let mut first = String::new();
        lines.read_line(&mut first).unwrap();
        let mut line = String::new();
        while lines.read_line(&mut line).unwrap() > 2 {
            line.clear();
        }
        if first.contains("101") {
            Ok(Self(lines))
        } else {
            Err(first)
        }
    }

    fn frame(&mut self, opcode: u8, payload: &[u8]) -> bool {
        let mut out = vec![0x80 | opcode];
        match payload.len() {
            n @ 0..126 => out.push(0x80 | n as u8),
            n @ 126..65536 => {
                out.push(0x80 | 126);
                out.extend_from_slice(&(n as u16).to_be_bytes());
            }
            n => {
                out.push(0x80 | 127);
                out.extend_from_slice(&(n as u64).to_be_bytes());
            }
        }
        // A mask of zeros leaves the payload as it is.
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(payload);
        self.0.get_mut().write_all(&out).is_ok()
    }

    /// The next text; `None` when the server closes.
    fn next(&mut self) -> Option<Value> {
        loop {
            let mut head = [0; 2];
            self.0.read_exact(&mut head).ok()?;
            let mut len = u64::from(head[1] & 0x7f);
            if len == 126 {
                let mut more = [0; 2];
                self.0.read_exact(&mut more).ok()?;
                len = u16::from_be_bytes(more).into();
            } else if len == 127 {
                let mut more = [0; 8];
                self.0.read_exact(&mut more).ok()?;
                len = u64::from_be_bytes(more);
            }
            let mut payload = vec![0; len as usize];
            self.0.read_exact(&mut payload).ok()?;
            match head[0] & 0x0f {
                1 => return Some(serde_json::from_slice(&payload).unwrap()),
                8 => return None,
                _ => {}
            }
        }
    }

    fn ask(&mut self, message: Value) -> Value {
        self.frame(1, message.to_string().as_bytes());
        self.next().expect("an answer")
    }
}

#[test]
fn websockets() {
    let limits = StreamLimits {
        scripts: 10,
        message: 5000,
    };
    let mut house = House::new(Settings {
        stream: limits,
        ..Settings::default()
    });
    let mut socket = Socket::open(&house, "").unwrap();
    assert_eq!(socket.ask(json!({"op": "ping"}))["event"], "pong");
    let name = weft_view::script::hex(&weft_chain::script_hash(&script(1)));
    let told = socket.ask(json!({"op": "subscribe", "scripts": [name], "transactions": true}));
    assert_eq!(told["event"], "subscribed");
    house.stage.mine(&[(1, script(1))], &[]);
    let (block, scripts) = (socket.next().unwrap(), socket.next().unwrap());
    assert_eq!(
        (&block["event"], &scripts["event"]),
        (&json!("block"), &json!("scripts"))
    );
    assert_eq!(scripts["scripts"][0]["script"], name);
    assert_eq!(socket.ask(json!({"op": "nothing"}))["event"], "error");
    socket.frame(2, b"\x00\xff");
    assert_eq!(socket.next().unwrap()["event"], "error");
    socket.frame(9, b"are you there");
    assert_eq!(socket.ask(json!({"op": "ping"}))["event"], "pong");
    // A message that is too long ends it; others are served.
    let mut long = Socket::open(&house, "").unwrap();
    long.frame(1, &[b' '; 5001]);
    assert!(long.next().is_none());
    // So does what is no frame.
    let mut broken = Socket::open(&house, "").unwrap();
    broken.0.get_mut().write_all(&[0xff; 100]).unwrap();
    assert!(broken.next().is_none());
    // Pages of other sites are refused, those of this host are not.
    assert!(Socket::open(&house, "Origin: https://other.example\r\n").is_err());
    assert!(Socket::open(&house, "Origin: http://here\r\n").is_ok());
    assert_eq!(house.counted("http_refused_origin_total"), 1);
    house.stage.mine(&[(1, script(2))], &[]);
    assert_eq!(socket.next().unwrap()["height"], 2);
}

#[test]
fn a_hundred_streams_are_told_every_block() {
    let mut house = House::new(Settings::default());
    let mut streams: Vec<Sse> = (0..100)
        .map(|_| Sse::open(&house, "/v1/events", ""))
        .collect();
    for stream in &mut streams {
        assert_eq!(stream.next()["event"], "subscribed");
    }
    for _ in 0..10 {
        house.stage.mine(&[(1, script(1))], &[]);
    }
    for stream in &mut streams {
        let heights: Vec<u64> = (0..10)
            .map(|_| stream.next()["height"].as_u64().unwrap())
            .collect();
        assert_eq!(heights, (1..=10).collect::<Vec<_>>());
    }
}
