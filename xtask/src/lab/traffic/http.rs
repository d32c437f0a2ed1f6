//! A small HTTP server and client for downloads through a lab, checked by hash.
//!
//! The server makes its bytes from a seed as it sends them; what they must hash to is known from the seed alone, so a
//! download is checked against what should have been sent, not against what was.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use crate::lab::netns::Netns;

/// Longest line of a request or an answer's head.
const MAX_HEAD_LINE: u64 = 4096;
/// Most lines of a head.
const MAX_HEAD_LINES: usize = 64;
/// Most bytes of one download.
const MAX_BODY: u64 = 64 << 30;
/// Most connections served at once.
const MAX_CONNECTIONS: u64 = 64;
/// A connection without progress for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Hash(pub [u8; 32]);

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Endless bytes from a seed (splitmix64); every block of 4096 begins with the marker, if there is one.
#[derive(Clone, Debug)]
pub struct Bytes {
    state: u64,
    marker: Vec<u8>,
}

impl Bytes {
    const BLOCK: usize = 4096;

    /// The bytes of this seed.
    ///
    /// # Panics
    /// When the marker is longer than a block.
    #[must_use]
    pub fn new(seed: u64, marker: &[u8]) -> Self {
        assert!(
            marker.len() <= Self::BLOCK,
            "a marker fits a block of {}",
            Self::BLOCK
        );
        Self {
            state: seed,
            marker: marker.to_vec(),
        }
    }

    /// Fills whole blocks.
    fn fill(&mut self, buffer: &mut [u8]) {
        for block in buffer.chunks_mut(Self::BLOCK) {
            for word in block.chunks_mut(8) {
                self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let mut z = self.state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                let bytes = (z ^ (z >> 31)).to_le_bytes();
                word.copy_from_slice(&bytes[..word.len()]);
            }
            let marked = self.marker.len().min(block.len());
            block[..marked].copy_from_slice(&self.marker[..marked]);
        }
    }

    /// The hash of the first `length` bytes.
    #[must_use]
    pub fn hash(mut self, length: u64) -> Hash {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0_u8; 64 * Self::BLOCK];
        let mut left = length;
        while left > 0 {
            let part = left.min(buffer.len() as u64) as usize;
            self.fill(&mut buffer);
            hasher.update(&buffer[..part]);
            left -= part as u64;
        }
        Hash(hasher.finalize().into())
    }
}

/// A server in a namespace; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves `GET /SEED/LENGTH` on an address in the namespace (port 0 for any).
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub fn start(namespace: &Netns, address: Ipv6Addr, port: u16, marker: &[u8]) -> Result<Self> {
        let wanted = SocketAddr::from((address, port));
        let listener = namespace
            .run(|| TcpListener::bind(wanted))?
            .with_context(|| format!("cannot serve on {wanted} in {}", namespace.name()))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU64::new(0));
        let thread = {
            let (stop, sent, marker) = (
                Arc::clone(&stop),
                Arc::clone(&sent),
                Arc::<[u8]>::from(marker),
            );
            std::thread::Builder::new()
                .name("http".into())
                .spawn(move || accept(&listener, &stop, &sent, &marker))?
        };
        Ok(Self {
            address,
            stop,
            sent,
            thread: Some(thread),
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Bytes of bodies that were given to the kernel so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    stop: &Arc<AtomicBool>,
    sent: &Arc<AtomicU64>,
    marker: &Arc<[u8]>,
) {
    let open = Arc::new(AtomicU64::new(0));
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(5));
            continue;
        };
        if open.load(Ordering::Relaxed) >= MAX_CONNECTIONS {
            continue;
        }
        open.fetch_add(1, Ordering::Relaxed);
        let (stop, sent, marker, open) = (
            Arc::clone(stop),
            Arc::clone(sent),
            Arc::clone(marker),
            Arc::clone(&open),
        );
        std::thread::spawn(move || {
            // A client that goes away in the middle is its own affair.
            let _ = serve(&stream, &stop, &sent, &marker);
            open.fetch_sub(1, Ordering::Relaxed);
        });
    }
}

fn serve(stream: &TcpStream, stop: &AtomicBool, sent: &AtomicU64, marker: &[u8]) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(stream);
    let request = head(&mut reader)?;
    let mut out = stream;
    let asked = request.first().and_then(|line| {
        let (seed, length) = line
            .strip_prefix("GET /")?
            .split_once(' ')?
            .0
            .split_once('/')?;
        Some((
            seed.parse::<u64>().ok()?,
            length.parse::<u64>().ok().filter(|l| *l <= MAX_BODY)?,
        ))
    });
    let Some((seed, length)) = asked else {
        return out.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    write!(
        out,
        "HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    let mut bytes = Bytes::new(seed, marker);
    let mut buffer = vec![0_u8; 64 * Bytes::BLOCK];
    let mut left = length;
    while left > 0 && !stop.load(Ordering::Relaxed) {
        let part = left.min(buffer.len() as u64) as usize;
        bytes.fill(&mut buffer);
        out.write_all(&buffer[..part])?;
        sent.fetch_add(part as u64, Ordering::Relaxed);
        left -= part as u64;
    }
    out.flush()
}

/// The lines up to the empty one.
fn head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.take(MAX_HEAD_LINE).read_line(&mut line)?;
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        if lines.len() >= MAX_HEAD_LINES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        lines.push(line.to_owned());
    }
}

/// A download that ended.
#[derive(Clone, Debug)]
pub struct Downloaded {
    /// Bytes of the body.
    pub length: u64,
    /// Their hash.
    pub hash: Hash,
    /// From the connection attempt to the last byte.
    pub took: Duration,
}

impl Downloaded {
    /// Gigabits per second.
    #[must_use]
    pub fn gbps(&self) -> f64 {
        self.length as f64 * 8.0 / 1e9 / self.took.as_secs_f64().max(1e-9)
    }
}

/// Downloads `length` bytes of `seed` from a thread in `namespace`; `progress` is told the bytes so far.
///
/// # Errors
/// When the connection fails or stands still for a minute, or the answer is not what was asked for.
pub fn download(
    namespace: &Netns,
    from: SocketAddr,
    seed: u64,
    length: u64,
    progress: &(impl Fn(u64) + Sync),
) -> Result<Downloaded> {
    namespace.run(|| fetch(from, seed, length, progress))?
}

fn fetch(from: SocketAddr, seed: u64, length: u64, progress: &impl Fn(u64)) -> Result<Downloaded> {
    let begun = Instant::now();
    let stream = TcpStream::connect_timeout(&from, Duration::from_secs(15))
        .with_context(|| format!("cannot connect to http://{from}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    write!(
        &stream,
        "GET /{seed}/{length} HTTP/1.1\r\nHost: {from}\r\nConnection: close\r\n\r\n"
    )?;
    let mut reader = BufReader::with_capacity(256 << 10, &stream);
    let answer = head(&mut reader)?;
    ensure!(
        answer
            .first()
            .is_some_and(|l| l.starts_with("HTTP/1.1 200 ")),
        "http://{from} answered {answer:?}"
    );
    let announced = answer
        .iter()
        .find_map(|l| l.strip_prefix("Content-Length: ")?.parse::<u64>().ok());
    ensure!(
        announced == Some(length),
        "http://{from} announced {announced:?} bytes, {length} were asked for"
    );
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 256 << 10];
    let mut got = 0;
    loop {
        let part = reader
            .read(&mut buffer)
            .with_context(|| format!("the download stood still after {got} bytes"))?;
        if part == 0 {
            break;
        }
        hasher.update(&buffer[..part]);
        got += part as u64;
        progress(got);
    }
    if got != length {
        bail!("the download ended after {got} of {length} bytes");
    }
    Ok(Downloaded {
        length,
        hash: Hash(hasher.finalize().into()),
        took: begun.elapsed(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_download_hashes_to_what_the_seed_says() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(
                &stream,
                &AtomicBool::new(false),
                &AtomicU64::new(0),
                b"MARK",
            )
        });
        let length = 3 * 64 * 4096 + 77;
        let done = fetch(address, 7, length, &|_| ()).unwrap();
        server.join().unwrap().unwrap();
        assert_eq!(done.hash, Bytes::new(7, b"MARK").hash(length));
        assert_ne!(done.hash, Bytes::new(8, b"MARK").hash(length));
        assert_ne!(done.hash, Bytes::new(7, b"").hash(length));
    }

    #[test]
    fn nonsense_gets_404() {
        let listener = TcpListener::bind("[::1]:0").unwrap();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            serve(&stream, &AtomicBool::new(false), &AtomicU64::new(0), b"")
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .write_all(b"GET /../etc/passwd HTTP/1.1\r\n\r\n")
            .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        server.join().unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.1 404"), "{text}");
    }
}
