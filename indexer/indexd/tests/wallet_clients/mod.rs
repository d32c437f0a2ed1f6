//! A running service, and subscribers that check what they are told.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_chain::hash::{hex, sha256, sha256d};

use crate::node::{Node, unhex};

pub(crate) fn eventually<T>(what: &str, mut check: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(90);
    loop {
        if let Some(found) = check() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within 90 seconds");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The status of a script as the protocol describes it, from its history.
pub(crate) fn status_of(history: &Value) -> Value {
    let text: String = history
        .as_array()
        .expect("a list")
        .iter()
        .map(|tx| format!("{}:{}:", tx["tx_hash"].as_str().expect("id"), tx["height"]))
        .collect();
    match text.is_empty() {
        true => Value::Null,
        false => sha256(text.as_bytes())
            .iter()
            .map(|b| format!("{b:02x}"))
            .collect::<String>()
            .into(),
    }
}

/// `weft-indexd run` with its servers on free ports.
pub(crate) struct Service {
    dir: tempfile::TempDir,
    child: Option<Child>,
    agent: ureq::Agent,
}

impl Service {
    pub(crate) fn new(network: &str, node: &Node) -> Self {
        let node = format!("datadir = {:?}\nrpc = {:?}", node.dir.0, node.rpc_place);
        Self::with(network, &node)
    }

    pub(crate) fn with(network: &str, node: &str) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let any = "\"127.0.0.1:0\"";
        let config = format!(
            "network = {network:?}\n[node]\n{node}\n[index]\nmemory_mb = 64\nundo_depth = 1000\n\
             [electrum]\nlisten = {any}\ntls_listen = {any}\n[http]\nlisten = {any}\ncors = \"*\"\n\
             [metrics]\nlisten = {any}\n"
        );
        fs::write(dir.path().join("weft-indexd.toml"), config).expect("a file");
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .build();
        Self {
            dir,
            child: None,
            agent: agent.into(),
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-indexd"));
        command
            .arg("--config")
            .arg(self.dir.path().join("weft-indexd.toml"))
            .arg(verb);
        command.env("RUST_LOG", "warn");
        command
    }

    /// Starts it, and waits until it serves.
    pub(crate) fn start(&mut self) {
        let child = self
            .command("run")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn();
        self.child = Some(child.expect("it starts"));
        eventually("it serves", || self.get_text("/blocks/tip/height"));
    }

    pub(crate) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        // SAFETY: the process was started here and not waited for, so the id is its own.
        unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match child.try_wait() {
                Ok(Some(status)) => {
                    assert!(status.success(), "{status}");
                    return;
                }
                _ if Instant::now() > deadline => {
                    let _ = child.kill();
                    let _ = child.wait();
                    panic!("it does not stop");
                }
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub(crate) fn restart(&mut self) {
        self.stop();
        self.start();
    }

    fn snapshot(&self) -> Option<Value> {
        let file = self.dir.path().join("weft-index/status.json");
        serde_json::from_slice(&fs::read(file).ok()?).ok()
    }

    /// Where something listens.
    pub(crate) fn place(&self, service: &str, transport: &str) -> Option<String> {
        let snapshot = self.snapshot()?;
        let all = snapshot["listening"].as_array()?.clone();
        let found = all
            .iter()
            .find(|l| l["service"] == service && l["transport"] == transport)?;
        Some(found["address"].as_str()?.to_owned())
    }

    fn url(&self, path: &str) -> Option<String> {
        Some(format!("http://{}{path}", self.place("http", "tcp")?))
    }

    /// The body of a path that answers with 200.
    pub(crate) fn get_text(&self, path: &str) -> Option<String> {
        let mut answer = self.agent.get(self.url(path)?).call().ok()?;
        let body = answer
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string()
            .ok()?;
        (answer.status() == 200).then_some(body)
    }

    pub(crate) fn get(&self, path: &str) -> Option<Value> {
        serde_json::from_str(&self.get_text(path)?).ok()
    }

    pub(crate) fn post(&self, path: &str, body: &str) -> (u16, String) {
        let mut answer = self
            .agent
            .post(self.url(path).expect("it listens"))
            .send(body)
            .expect("an answer");
        (
            answer.status().as_u16(),
            answer.body_mut().read_to_string().expect("a text"),
        )
    }

    pub(crate) fn status(&self) -> Value {
        let output = self.command("status").output().expect("it runs");
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub(crate) fn metrics(&self) -> String {
        let place = self.place("metrics", "tcp").expect("it listens");
        let mut answer = self
            .agent
            .get(format!("http://{place}/metrics"))
            .call()
            .expect("an answer");
        answer.body_mut().read_to_string().expect("a text")
    }

    pub(crate) fn electrum(&self) -> Electrum {
        let place = self.place("electrum", "tcp").expect("it listens");
        Electrum::connect(&place)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

#[derive(Default)]
struct Heard {
    answers: BTreeMap<u64, Value>,
    /// The last status of each script.
    statuses: BTreeMap<String, Value>,
    /// Headers told: hash and when.
    headers: Vec<(String, Instant)>,
    /// What should not have been told.
    wrong: Vec<String>,
    ended: bool,
}

/// An Electrum client whose notifications are checked as they come: none is told twice.
pub(crate) struct Electrum {
    stream: TcpStream,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    next: u64,
}

impl Electrum {
    pub(crate) fn connect(place: &str) -> Self {
        let stream = TcpStream::connect(place).expect("it accepts");
        stream.set_nodelay(true).expect("a socket");
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let (lines, shared) = (
            BufReader::new(stream.try_clone().expect("a socket")),
            heard.clone(),
        );
        std::thread::spawn(move || {
            for line in lines.lines() {
                let Ok(line) = line else { break };
                let value: Value = serde_json::from_str(&line).expect("JSON");
                let mut heard = shared.0.lock().expect("no panic");
                match value.get("id").and_then(Value::as_u64) {
                    Some(id) => {
                        heard.answers.insert(id, value);
                    }
                    None => notified(&mut heard, &value),
                }
                shared.1.notify_all();
            }
            shared.0.lock().expect("no panic").ended = true;
            shared.1.notify_all();
        });
        let mut client = Self {
            stream,
            heard,
            next: 0,
        };
        client.ask("server.version", json!(["test", "1.4"]));
        let tip = client.ask("blockchain.headers.subscribe", json!([]));
        let hash = header_hash(&tip);
        client
            .heard
            .0
            .lock()
            .expect("no panic")
            .headers
            .insert(0, (hash, Instant::now()));
        client
    }

    fn wait<T>(&self, what: &str, mut check: impl FnMut(&mut Heard) -> Option<T>) -> T {
        let mut heard = self.heard.0.lock().expect("no panic");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(heard.wrong.is_empty(), "{:?}", heard.wrong);
            if let Some(found) = check(&mut heard) {
                return found;
            }
            assert!(!heard.ended, "{what}: the server hung up");
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{what}: not within a minute");
            heard = self.heard.1.wait_timeout(heard, left).expect("no panic").0;
        }
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.next += 1;
        let id = self.next;
        let request = json!({"id": id, "method": method, "params": params});
        self.stream
            .write_all(format!("{request}\n").as_bytes())
            .expect("it takes it");
        self.wait(method, |heard| heard.answers.remove(&id))
    }

    pub(crate) fn ask(&mut self, method: &str, params: Value) -> Value {
        let answer = self.call(method, params);
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    pub(crate) fn fail(&mut self, method: &str, params: Value) -> Value {
        self.call(method, params)["error"].clone()
    }

    pub(crate) fn subscribe(&mut self, name: &str) {
        let status = self.ask("blockchain.scripthash.subscribe", json!([name]));
        let mut heard = self.heard.0.lock().expect("no panic");
        heard.statuses.entry(name.to_owned()).or_insert(status);
    }

    /// Waits until the client knows this status.
    pub(crate) fn wait_for_status(&self, name: &str, status: &Value) {
        self.wait("a status", |heard| {
            (heard.statuses.get(name) == Some(status)).then_some(())
        });
    }

    /// Waits until this is the last header told; when that was.
    pub(crate) fn wait_for_tip(&self, hash: &str) -> Instant {
        self.wait("a header", |heard| {
            heard
                .headers
                .last()
                .filter(|(last, _)| last == hash)
                .map(|(_, at)| *at)
        })
    }
}

fn header_hash(told: &Value) -> String {
    hex(&sha256d(&unhex(told["hex"].as_str().expect("hex"))))
}

fn notified(heard: &mut Heard, value: &Value) {
    let params = &value["params"];
    match value["method"].as_str() {
        Some("blockchain.headers.subscribe") => {
            let hash = header_hash(&params[0]);
            if heard.headers.last().is_some_and(|(last, _)| *last == hash) {
                heard.wrong.push(format!("header {hash} is told twice"));
            }
            heard.headers.push((hash, Instant::now()));
        }
        Some("blockchain.scripthash.subscribe") => {
            let name = params[0].as_str().expect("a name").to_owned();
            if heard
                .statuses
                .insert(name.clone(), params[1].clone())
                .as_ref()
                == Some(&params[1])
            {
                heard
                    .wrong
                    .push(format!("the status of {name} is told twice"));
            }
        }
        _ => heard.wrong.push(format!("what is {value}?")),
    }
}

#[derive(Default)]
struct Chain {
    /// Height and hash as far as told, the tip last.
    blocks: VecDeque<(u64, String)>,
    id: String,
    came: u64,
    left: u64,
    wrong: Vec<String>,
}

impl Chain {
    fn take(&mut self, event: &Value) {
        if let Some(id) = event["id"].as_str() {
            id.clone_into(&mut self.id);
        }
        let height = event["height"].as_u64();
        let hash = event["hash"].as_str().unwrap_or_default().to_owned();
        match event["event"].as_str() {
            Some("subscribed") if self.blocks.is_empty() => {
                let tip = &event["tip"];
                let hash = tip["hash"].as_str().expect("a hash").to_owned();
                self.blocks
                    .push_back((tip["height"].as_u64().expect("n"), hash));
            }
            Some("subscribed" | "transactions") => {}
            // The mempool of before a restart is not told again.
            Some("gap") if event["missed"] == "transactions" => {}
            Some("block") => {
                let (last_height, last) = self.blocks.back().cloned().unwrap_or_default();
                let next = Some(last_height + 1) == height && event["previous"] == last.as_str();
                if !self.blocks.is_empty() && !next {
                    self.wrong
                        .push(format!("after {last_height} {last} comes {event}"));
                }
                self.blocks.push_back((height.expect("n"), hash));
                self.came += 1;
            }
            Some("block_left") => {
                // What lies below the tip it began with it was never told.
                if let Some((last_height, last)) = self.blocks.pop_back()
                    && (Some(last_height), &last) != (height, &hash)
                {
                    self.wrong
                        .push(format!("from {last_height} {last} leaves {event}"));
                }
                self.left += 1;
            }
            _ => self.wrong.push(format!("what is {event}?")),
        }
    }
}

/// A subscriber of the stream who keeps the chain by what it is told alone, over restarts too.
#[derive(Default)]
pub(crate) struct Events {
    chain: Arc<(Mutex<Chain>, Condvar)>,
}

impl Events {
    /// Connects, from where it was.
    pub(crate) fn follow(&mut self, service: &Service) {
        let query = {
            let chain = self.chain.0.lock().expect("no panic");
            let hashes: Vec<&str> = chain
                .blocks
                .iter()
                .rev()
                .take(200)
                .map(|(_, h)| h.as_str())
                .collect();
            match chain.id.is_empty() {
                true => String::new(),
                false => format!("&since={}&after={}", chain.id, hashes.join(",")),
            }
        };
        let url = service
            .url(&format!("/v1/events?transactions=true{query}"))
            .expect("it listens");
        let agent: ureq::Agent = ureq::Agent::config_builder().build().into();
        let answer = agent.get(url).call().expect("a stream");
        let lines = BufReader::new(answer.into_body().into_reader());
        let shared = self.chain.clone();
        std::thread::spawn(move || {
            for line in lines.lines().map_while(Result::ok) {
                if let Some(data) = line.strip_prefix("data: ") {
                    let event = serde_json::from_str(data).expect("JSON");
                    shared.0.lock().expect("no panic").take(&event);
                    shared.1.notify_all();
                }
            }
        });
    }

    pub(crate) fn wait_for_tip(&self, hash: &str) {
        let mut chain = self.chain.0.lock().expect("no panic");
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            assert!(chain.wrong.is_empty(), "{:?}", chain.wrong);
            // Below the tip it began with no hash was ever told.
            if chain.blocks.back().is_none_or(|(_, last)| last == hash) {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(
                !left.is_zero(),
                "{hash} is not told; the last is {:?}",
                chain.blocks.back()
            );
            chain = self.chain.1.wait_timeout(chain, left).expect("no panic").0;
        }
    }

    pub(crate) fn came(&self) -> u64 {
        self.chain.0.lock().expect("no panic").came
    }

    pub(crate) fn left(&self) -> u64 {
        self.chain.0.lock().expect("no panic").left
    }
}
