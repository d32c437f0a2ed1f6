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
            lines: BufReader::with_capacity(1 << 16, stream),
            line: Vec::new(),
        };
        client.ask("server.version", &json!(["weft-index-bench", "1.4"]))?;
        // Until the index has the tip this is an error.
        client.ask("blockchain.headers.subscribe", &json!([]))?;
        Ok(client)
    }

    /// Milliseconds of each of many calls, sorted, from `clients` connections at once.
    pub(crate) fn time(
        &self,
        method: &str,
        params: &Value,
        clients: usize,
        time: Duration,
        most: usize,
    ) -> Result<Vec<f64>> {
        let failed = AtomicBool::new(false);
        let end = Instant::now() + time;
        let one = || -> Result<Vec<f64>> {
            let mut client = self.client()?;
            // The first fills the caches.
            client.ask(method, params)?;
            let mut times = Vec::new();
            while times.len() < 3 || Instant::now() < end && times.len() < most {
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

impl Drop for Service {
    fn drop(&mut self) {
        // What it would write on a clean stop is not looked at any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A connection.
pub(crate) struct Client {
    lines: BufReader<TcpStream>,
    line: Vec<u8>,
}

impl Client {
    fn read(&mut self) -> Result<&[u8]> {
        self.line.clear();
        self.lines.read_until(b'\n', &mut self.line)?;
        ensure!(self.line.ends_with(b"\n"), "the service hung up");
        Ok(&self.line)
    }

    /// Asks and waits for the whole answer, which is not taken apart: the client's work is not what is measured.
    pub(crate) fn ask(&mut self, method: &str, params: &Value) -> Result<()> {
        let request = json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params});
        self.lines
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        loop {
            let line = self.read()?;
            let (head, tail) = (
                &line[..line.len().min(200)],
                &line[line.len().saturating_sub(60)..],
            );
            let has = |part: &[u8], word: &[u8]| part.windows(word.len()).any(|w| w == word);
            if has(head, b"\"method\"") {
                continue;
            }
            ensure!(
                !has(head, b"\"error\":{") && !has(tail, b"\"error\":{"),
                "{method}: {}",
                String::from_utf8_lossy(head)
            );
            return Ok(());
        }
    }

    /// Waits for the next header that is told of without being asked for; its height.
    pub(crate) fn next_header(&mut self) -> Result<u64> {
        loop {
            let told: Value = serde_json::from_slice(self.read()?)?;
            if told["method"] == "blockchain.headers.subscribe" {
                return told["params"][0]["height"]
                    .as_u64()
                    .context("a header without its height");
            }
        }
    }
}
