//! Figures over HTTP: `/metrics` for Prometheus, `/status` as JSON. One request at a time, each
//! bounded in size and time: this is for loopback.

use std::fmt::Write as _;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use weft_listen::Figure;
use weft_store::Reader;

use crate::serve::Servers;
use crate::status::Figures;

/// Longest request looked at.
const MAX_REQUEST: usize = 4096;
/// Time a client has for all of its request.
const PATIENCE: Duration = Duration::from_secs(2);

/// Listens and answers on a thread of its own, for as long as the program runs. Returns the
/// address, which tells the port where 0 was asked for.
///
/// # Errors
/// The address cannot be listened on.
pub fn serve(
    address: SocketAddr,
    figures: Arc<Figures>,
    reader: Reader,
    servers: Servers,
) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(move || {
            for stream in listener.incoming().flatten() {
                // A client that fails is gone; the next one is served.
                let _ = answer(stream, &figures, &reader, &servers);
            }
        })?;
    Ok(address)
}

fn answer(
    mut stream: TcpStream,
    figures: &Figures,
    reader: &Reader,
    servers: &Servers,
) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    while !request.windows(4).any(|w| w == b"\r\n\r\n") {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() || request.len() > MAX_REQUEST {
            return Ok(());
        }
        stream.set_read_timeout(Some(left))?;
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..n]);
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let (code, kind, body) = match line {
        line if line.starts_with(b"GET /metrics ") => (
            "200 OK",
            "text/plain; version=0.0.4",
            prometheus(figures, reader, servers),
        ),
        line if line.starts_with(b"GET /status ") => (
            "200 OK",
            "application/json",
            serde_json::to_string_pretty(&figures.snapshot())?,
        ),
        _ => (
            "404 Not Found",
            "text/plain",
            "there is GET /metrics and GET /status\n".to_owned(),
        ),
    };
    stream.set_write_timeout(Some(PATIENCE))?;
    write!(
        stream,
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn prometheus(figures: &Figures, reader: &Reader, servers: &Servers) -> String {
    let mut out = String::new();
    let mut figure = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = writeln!(
            out,
            "# HELP weft_index_{name} {help}\n# TYPE weft_index_{name} {kind}\nweft_index_{name} {value}"
        );
    };
    let (bytes, blocks) = figures.rate();
    figure(
        "height",
        "gauge",
        "Height of the last block applied.",
        figures.height.load(Ordering::Relaxed).into(),
    );
    figure(
        "written_height",
        "gauge",
        "Height of the last block on disk.",
        figures.written.load(Ordering::Relaxed).into(),
    );
    figure(
        "source_height",
        "gauge",
        "Height of the source.",
        figures.target.load(Ordering::Relaxed).into(),
    );
    figure(
        "blocks_total",
        "counter",
        "Blocks applied.",
        figures.blocks.load(Ordering::Relaxed) as f64,
    );
    figure(
        "block_bytes_total",
        "counter",
        "Bytes of the blocks applied.",
        figures.bytes.load(Ordering::Relaxed) as f64,
    );
    figure(
        "transactions_total",
        "counter",
        "Transactions applied.",
        figures.txs.load(Ordering::Relaxed) as f64,
    );
    figure(
        "blocks_undone_total",
        "counter",
        "Blocks taken off.",
        figures.undone.load(Ordering::Relaxed) as f64,
    );
    figure(
        "source_errors_total",
        "counter",
        "Times the source failed.",
        figures.source_errors.load(Ordering::Relaxed) as f64,
    );
    figure(
        "bytes_per_second",
        "gauge",
        "Speed of late, bytes of blocks.",
        bytes,
    );
    figure(
        "blocks_per_second",
        "gauge",
        "Speed of late, blocks.",
        blocks,
    );
    figure(
        "uptime_seconds",
        "gauge",
        "Time since the start.",
        figures.uptime().as_secs_f64(),
    );
    figure(
        "mempool_errors_total",
        "counter",
        "Times the node's mempool could not be asked for.",
        figures.pool_errors.load(Ordering::Relaxed) as f64,
    );
    figure(
        "pending_compaction_bytes",
        "gauge",
        "Bytes compaction has yet to rewrite.",
        reader.pending_compaction() as f64,
    );
    let _ = writeln!(
        out,
        "# HELP weft_index_family_bytes Bytes of files by column family.\n# TYPE weft_index_family_bytes gauge"
    );
    for (family, bytes) in reader.sizes() {
        let _ = writeln!(
            out,
            "weft_index_family_bytes{{family=\"{}\"}} {bytes}",
            family.name()
        );
    }
    put_servers(&mut out, servers);
    out
}

/// Figures of the same name stand together, told apart by the server.
fn put_servers(out: &mut String, servers: &Servers) {
    let mut all = servers.figures();
    all.sort_by_key(|(_, figure)| figure.name);
    let mut last = "";
    for (server, Figure { name, help, value }) in all {
        if name != last {
            let kind = if name.ends_with("_total") {
                "counter"
            } else {
                "gauge"
            };
            let _ = writeln!(
                out,
                "# HELP weft_index_{name} {help}\n# TYPE weft_index_{name} {kind}"
            );
            last = name;
        }
        let label = match server {
            "" => String::new(),
            server => format!("{{server=\"{server}\"}}"),
        };
        let _ = writeln!(out, "weft_index_{name}{label} {value}");
    }
}
