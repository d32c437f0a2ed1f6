//! What a wallet sees: the service as a program of its own, asked through the Electrum protocol.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// Time the service has until it serves.
const START: Duration = Duration::from_secs(120);
/// Time for one answer.
const PATIENCE: Duration = Duration::from_secs(120);

/// `weft-indexd run` on the chain, ended with the value.
#[derive(Debug)]
pub(crate) struct Service {
    child: Child,
    address: SocketAddr,
}

impl Service {
    /// Starts the program that lies beside this one, on `chain` and `db` in an absolute folder, and waits until it
    /// serves.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name("weft-indexd");
        ensure!(
            program.is_file(),
            "there is no {}: build it with `cargo build --release -p weft-indexd`",
            program.display()
        );
        let address = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
        // Nothing is to be slowed down or refused: what is measured is the answer.
        let config = format!(
            "network = \"bitcoin-regtest\"\n[node]\ndatadir = \"chain\"\nrpc = \"127.0.0.1:1\"\nsource = \"files\"\n\
             [index]\ndir = \".\"\nmax_rows = 2000000\n[electrum]\nlisten = \"{address}\"\n\
             answer_mb = 1024\nmemory_mb = 4096\ncost_per_second = 1e9\ncost_burst = 1e9\nidle_seconds = 3600\nwrite_seconds = 300\n"
        );
        let file = dir.join("weft-indexd.toml");
        fs::write(&file, config)?;
        let child = Command::new(program)
            .arg("--config")
            .arg(&file)
            .arg("run")
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()?;
        let service = Self { child, address };
        let deadline = Instant::now() + START;
        loop {
            match service.client() {
                Ok(_) => return Ok(service),
                Err(e) if Instant::now() > deadline => {
                    return Err(e.context("the service does not serve"));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// A client that has said hello.
    pub(crate) fn client(&self) -> Result<Client> {
        let stream = TcpStream::connect(self.address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut client = Client {
            stream: BufReader::with_capacity(1 << 18, stream),
        };
        client.ask("server.version", &json!(["weft-index-bench", "1.4"]))?;
        // Until the index has the tip this is an error.
        client.ask("blockchain.headers.subscribe", &json!([]))?;
        Ok(client)
    }

    /// Milliseconds of each of many calls, sorted, from `clients` connections at once: as many as `effort` says of each.
    pub(crate) fn time(
        &self,
        method: &str,
        params: &Value,
        clients: usize,
        effort: &Effort,
    ) -> Result<Vec<f64>> {
        let failed = AtomicBool::new(false);
        let end = Instant::now() + effort.time;
        let one = || -> Result<Vec<f64>> {
            let mut client = self.client()?;
            if effort.warm {
                client.ask(method, params)?;
            }
            let mut times = Vec::new();
            while times.len() < effort.least || Instant::now() < end && times.len() < effort.most {
                let begun = Instant::now();
                client.ask(method, params)?;
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            Ok(times)
        };
        let mut times: Vec<f64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
            threads
                .into_iter()
                .filter_map(|t| match t.join() {
                    Ok(Ok(times)) => Some(times),
                    Ok(Err(e)) => {
                        eprintln!("{method}: {e:#}");
                        failed.store(true, Ordering::Relaxed);
                        None
                    }
                    Err(_) => {
                        failed.store(true, Ordering::Relaxed);
                        None
                    }
                })
                .flatten()
                .collect()
        });
        ensure!(
            !failed.load(Ordering::Relaxed) && !times.is_empty(),
            "{method} failed"
        );
        times.sort_by(f64::total_cmp);
        Ok(times)
    }
}

/// How many times a question is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    /// Whether one that is not counted goes ahead, to fill the caches.
    pub warm: bool,
    /// At least so many times.
    pub least: usize,
    /// At most so many times.
    pub most: usize,
    /// No further ones after this time.
    pub time: Duration,
}

/// Memory of a process as the system has it, megabytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Memory {
    /// At present.
    pub now: f64,
    /// The most so far.
    pub peak: f64,
}

impl Service {
    /// Memory of the service.
    pub(crate) fn memory(&self) -> Result<Memory> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok());
            kilobytes.map(|n: f64| n * 1024.0 / 1e6)
        };
        Ok(Memory {
            now: field("VmRSS:").context("the service's memory")?,
            peak: field("VmHWM:").context("the service's memory")?,
        })
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        // What it would write on a clean stop is not looked at any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection.
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
}

/// The beginning of a line that is kept.
const HEAD: usize = 200;

impl Client {
    /// Asks and waits for the whole answer, which is neither kept nor taken apart: the client's work and memory are not
    /// what is measured. Gives its length in bytes.
    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> Result<u64> {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.stream
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        loop {
            let (head, length) = self.skip_line()?;
            let has = |word: &[u8]| head.windows(word.len()).any(|w| w == word);
            if has(b"\"method\"") {
                continue;
            }
            ensure!(
                has(b"\"result\":"),
                "{method}: {}",
                String::from_utf8_lossy(&head)
            );
            return Ok(length);
        }
    }

    /// Reads a line; gives its beginning and its length.
    fn skip_line(&mut self) -> Result<(Vec<u8>, u64)> {
        let (mut head, mut length) = (Vec::new(), 0);
        loop {
            let bytes = self.stream.fill_buf()?;
            ensure!(!bytes.is_empty(), "the service hung up");
            // `contains` is much faster than a search that tells where.
            let end = bytes
                .contains(&b'\n')
                .then(|| bytes.iter().position(|b| *b == b'\n'))
                .flatten();
            let n = end.map_or(bytes.len(), |end| end + 1);
            let wanted = HEAD.saturating_sub(head.len()).min(n);
            head.extend_from_slice(&bytes[..wanted]);
            self.stream.consume(n);
            length += n as u64;
            if end.is_some() {
                return Ok((head, length));
            }
        }
    }

    /// Waits for the next header that is told of without being asked for; its height.
    pub(crate) fn next_header(&mut self) -> Result<u64> {
        loop {
            let mut line = Vec::new();
            self.stream.read_until(b'\n', &mut line)?;
            let told: Value = serde_json::from_slice(&line).context("the service hung up")?;
            if told["method"] == "blockchain.headers.subscribe" {
                return told["params"][0]["height"]
                    .as_u64()
                    .context("a header without its height");
            }
        }
    }
}
