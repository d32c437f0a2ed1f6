//! The P2P protocol of the Core family: version, headers, getdata.
//!
//! Message: magic (4), command (12, zero-filled), length u32, first 4 bytes of SHA256d of the
//! payload, payload. One connection; calls take turns on it. A broken connection is opened again
//! by the next call.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use weft_chain::block::MAX_BLOCK;
use weft_chain::hash::{ZERO, hex, sha256d};
use weft_chain::wire::{Reader, put_compact_size};
use weft_chain::{Chain, Hash, Header};

use crate::{Ahead, FullHeader, Kind, Source, SourceError, Tip};

/// Protocol version offered: the one that brought `wtxidrelay`, which is not used; Litecoin's
/// nodes give extension blocks from 70017 on.
const VERSION: i32 = 70_017;
/// Longest payload: a block, or 2000 headers with AuxPoW.
const MAX_PAYLOAD: usize = MAX_BLOCK + 1024;
const CONNECT: Duration = Duration::from_secs(5);
/// Time for an answer, and for a message to be complete once it has begun.
const ANSWER: Duration = Duration::from_secs(60);
const HEADERS: usize = 2000;

const BLOCK: u32 = 2;
const WITNESS: u32 = 1 << 30;
const MWEB: u32 = 1 << 29;

/// Blocks from a peer.
#[derive(Debug)]
pub struct P2p {
    address: SocketAddr,
    chain: &'static dyn Chain,
    limit: Duration,
    peer: Mutex<Peer>,
}

#[derive(Debug)]
struct Peer {
    link: Option<Link>,
    agent: String,
    /// Greatest height heard of, and the last block announced.
    height: u32,
    announced: Option<Hash>,
}

#[derive(Debug)]
struct Link {
    stream: TcpStream,
    magic: [u8; 4],
    place: String,
    /// Time for a message to be complete once it has begun.
    limit: Duration,
}

struct Message {
    command: String,
    payload: Vec<u8>,
}

impl P2p {
    /// Connects to a peer and exchanges versions. An answer may take a minute.
    pub fn connect(address: SocketAddr, chain: &'static dyn Chain) -> Result<Self, SourceError> {
        Self::connect_within(address, chain, ANSWER)
    }

    /// The same, with another time `limit` for each answer.
    pub fn connect_within(
        address: SocketAddr,
        chain: &'static dyn Chain,
        limit: Duration,
    ) -> Result<Self, SourceError> {
        let peer = Peer {
            link: None,
            agent: String::new(),
            height: 0,
            announced: None,
        };
        let p2p = Self {
            address,
            chain,
            limit,
            peer: Mutex::new(peer),
        };
        p2p.with(|_, _| Ok(()))?;
        Ok(p2p)
    }

    fn lock(&self) -> MutexGuard<'_, Peer> {
        self.peer.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Runs `work` on the connection, which is opened first if it is not there. After an error it
    /// is closed, for what is still on its way is not known.
    fn with<T>(
        &self,
        work: impl FnOnce(&mut Link, &mut Notes) -> Result<T, SourceError>,
    ) -> Result<T, SourceError> {
        let mut peer = self.lock();
        let mut link = match peer.link.take() {
            Some(link) => link,
            None => {
                let (link, agent, height) = Link::open(self.address, self.chain, self.limit)?;
                peer.agent = agent;
                peer.height = peer.height.max(height);
                link
            }
        };
        let mut notes = Notes { announced: None };
        let result = work(&mut link, &mut notes);
        if notes.announced.is_some() {
            peer.announced = notes.announced;
        }
        if result.is_ok() {
            peer.link = Some(link);
        }
        result
    }

    fn item_type(&self) -> u32 {
        let params = self.chain.params();
        let witness = if params.hrp.is_some() { WITNESS } else { 0 };
        BLOCK | witness | if self.chain.has_mweb() { MWEB } else { 0 }
    }
}

/// What the peer said without being asked.
struct Notes {
    announced: Option<Hash>,
}

impl Notes {
    /// Remembers announcements of blocks; answers nothing.
    fn hear(&mut self, chain: &dyn Chain, message: &Message) {
        let mut r = Reader::new(&message.payload);
        match message.command.as_str() {
            "headers" => {
                if let Some(last) = read_headers(chain, &mut r)
                    .ok()
                    .and_then(|h| h.last().map(|f| f.header.hash()))
                {
                    self.announced = Some(last);
                }
            }
            "inv" => {
                let Ok(count) = r.count(36, "count") else {
                    return;
                };
                for _ in 0..count {
                    if let (Ok(kind), Ok(hash)) = (r.u32("type"), r.hash("hash"))
                        && kind & !(WITNESS | MWEB) == BLOCK
                    {
                        self.announced = Some(hash);
                    }
                }
            }
            _ => {}
        }
    }
}

fn read_headers(
    chain: &dyn Chain,
    r: &mut Reader<'_>,
) -> Result<Vec<FullHeader>, weft_chain::Error> {
    let count = r.count(81, "count of headers")?;
    (0..count.min(HEADERS))
        .map(|_| {
            let (header, auxpow) = chain.read_header(r)?;
            r.compact_size("count of transactions")?;
            Ok(FullHeader { header, auxpow })
        })
        .collect()
}

impl Link {
    fn open(
        address: SocketAddr,
        chain: &dyn Chain,
        limit: Duration,
    ) -> Result<(Self, String, u32), SourceError> {
        let place = address.to_string();
        let unreachable = |e: io::Error| SourceError::Unreachable {
            place: place.clone(),
            why: e.to_string(),
        };
        let stream = TcpStream::connect_timeout(&address, CONNECT).map_err(unreachable)?;
        stream.set_nodelay(true).map_err(unreachable)?;
        stream.set_write_timeout(Some(limit)).map_err(unreachable)?;
        let mut link = Self {
            stream,
            magic: chain.params().magic,
            place: place.clone(),
            limit,
        };
        link.send("version", &version_message(address))?;
        let (mut theirs, mut acknowledged) = (None, false);
        let deadline = Instant::now() + CONNECT;
        while theirs.is_none() || !acknowledged {
            let Some(message) = link.receive(deadline)? else {
                return Err(SourceError::Stalled {
                    place,
                    what: "version".to_owned(),
                    after: CONNECT,
                });
            };
            match message.command.as_str() {
                "version" => {
                    theirs = Some(
                        read_version(&message.payload)
                            .map_err(|e| SourceError::chain(place.clone(), e))?,
                    );
                    link.send("verack", &[])?;
                }
                "verack" => acknowledged = true,
                _ => {}
            }
        }
        link.send("sendheaders", &[])?;
        let (agent, height) = theirs.unwrap_or_default();
        Ok((link, agent, height))
    }

    fn lost(&self, e: io::Error) -> SourceError {
        SourceError::Unreachable {
            place: self.place.clone(),
            why: e.to_string(),
        }
    }

    fn bad(&self, what: &'static str, why: impl Into<String>) -> SourceError {
        SourceError::BadAnswer {
            place: self.place.clone(),
            what,
            why: why.into(),
        }
    }

    fn send(&mut self, command: &str, payload: &[u8]) -> Result<(), SourceError> {
        let mut message = Vec::with_capacity(24 + payload.len());
        message.extend_from_slice(&self.magic);
        message.extend_from_slice(command.as_bytes());
        message.resize(16, 0);
        message.extend_from_slice(&(payload.len() as u32).to_le_bytes());
        message.extend_from_slice(&sha256d(payload)[..4]);
        message.extend_from_slice(payload);
        self.stream.write_all(&message).map_err(|e| self.lost(e))
    }

    /// The next message, with pings answered; `None` at the deadline.
    fn receive(&mut self, deadline: Instant) -> Result<Option<Message>, SourceError> {
        loop {
            let mut head = [0; 24];
            if !self.fill(&mut head, deadline, true)? {
                return Ok(None);
            }
            if head[..4] != self.magic {
                return Err(self.bad(
                    "message",
                    "it has not this network's magic: the peer is on another network",
                ));
            }
            let len = u32::from_le_bytes([head[16], head[17], head[18], head[19]]) as usize;
            if len > MAX_PAYLOAD {
                return Err(self.bad(
                    "message",
                    format!("it claims {len} bytes, at most {MAX_PAYLOAD} are possible"),
                ));
            }
            // Grows as bytes come, so that a claim alone takes no memory.
            let mut payload = Vec::new();
            let until = Instant::now() + self.limit;
            while payload.len() < len {
                let from = payload.len();
                payload.resize(len.min(from + (1 << 20)), 0);
                if !self.fill(&mut payload[from..], until, false)? {
                    let what = "the rest of a message".to_owned();
                    return Err(SourceError::Stalled {
                        place: self.place.clone(),
                        what,
                        after: self.limit,
                    });
                }
            }
            if sha256d(&payload)[..4] != head[20..24] {
                return Err(self.bad("message", "its checksum is wrong"));
            }
            let name = head[4..16].split(|b| *b == 0).next().unwrap_or_default();
            let command = String::from_utf8_lossy(name).into_owned();
            if command == "ping" {
                self.send("pong", &payload)?;
                continue;
            }
            return Ok(Some(Message { command, payload }));
        }
    }

    /// Fills `out`; `false` if the deadline passes, which inside a message is an error unless it
    /// had not begun.
    fn fill(
        &mut self,
        out: &mut [u8],
        deadline: Instant,
        whole: bool,
    ) -> Result<bool, SourceError> {
        let mut have = 0;
        let mut deadline = deadline;
        while have < out.len() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                if whole && have > 0 {
                    let what = "the rest of a message".to_owned();
                    return Err(SourceError::Stalled {
                        place: self.place.clone(),
                        what,
                        after: self.limit,
                    });
                }
                return Ok(false);
            }
            self.stream
                .set_read_timeout(Some(left))
                .map_err(|e| self.lost(e))?;
            match self.stream.read(&mut out[have..]) {
                Ok(0) => {
                    return Err(
                        self.lost(io::Error::new(ErrorKind::UnexpectedEof, "the peer hung up"))
                    );
                }
                Ok(n) => {
                    if have == 0 && whole {
                        deadline = Instant::now() + self.limit;
                    }
                    have += n;
                }
                Err(e)
                    if matches!(
                        e.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(e) => return Err(self.lost(e)),
            }
        }
        Ok(true)
    }
}

/// User agent, height and the rest of `version`.
fn version_message(address: SocketAddr) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    out.extend_from_slice(&VERSION.to_le_bytes());
    out.extend_from_slice(&0u64.to_le_bytes());
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.as_secs());
    out.extend_from_slice(&now.to_le_bytes());
    for _ in 0..2 {
        out.extend_from_slice(&0u64.to_le_bytes());
        let ip = match address {
            SocketAddr::V4(a) => a.ip().to_ipv6_mapped(),
            SocketAddr::V6(a) => *a.ip(),
        };
        out.extend_from_slice(&ip.octets());
        out.extend_from_slice(&address.port().to_be_bytes());
    }
    // The nonce finds connections to oneself; this program accepts none.
    out.extend_from_slice(&now.rotate_left(17).to_le_bytes());
    let agent = concat!("/weft-indexd:", env!("CARGO_PKG_VERSION"), "/");
    put_compact_size(&mut out, agent.len() as u64);
    out.extend_from_slice(agent.as_bytes());
    out.extend_from_slice(&0i32.to_le_bytes());
    // No transactions.
    out.push(0);
    out
}

/// A nonce that differs from one question to the next.
fn ping_nonce(question: &[u8]) -> [u8; 8] {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| d.subsec_nanos());
    let hash = sha256d(&[question, &now.to_le_bytes()].concat());
    let mut nonce = [0; 8];
    nonce.copy_from_slice(&hash[..8]);
    nonce
}

fn read_version(payload: &[u8]) -> Result<(String, u32), weft_chain::Error> {
    let mut r = Reader::new(payload);
    r.take(4 + 8 + 8 + 26 + 26 + 8, "version")?;
    let agent = String::from_utf8_lossy(r.bytes("user agent")?)
        .chars()
        .filter(|c| !c.is_control())
        .take(80)
        .collect();
    let height = (r.u32("height")? as i32).max(0) as u32;
    Ok((agent, height))
}

impl Source for P2p {
    fn kind(&self) -> Kind {
        Kind::P2p
    }

    fn describe(&self) -> String {
        format!("P2P with {} at {}", self.lock().agent, self.address)
    }

    fn chain(&self) -> &'static dyn Chain {
        self.chain
    }

    fn tip(&self) -> Result<Tip, SourceError> {
        let peer = self.lock();
        Ok(Tip {
            height: peer.height,
            hash: peer.announced,
        })
    }

    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        let mut payload = VERSION.to_le_bytes().to_vec();
        // The nodes accept at most 101 hashes.
        let locator = &locator[..locator.len().min(101)];
        put_compact_size(&mut payload, locator.len() as u64);
        payload.extend(locator.iter().flatten());
        payload.extend_from_slice(&ZERO);
        let headers = self.with(|link, notes| {
            link.send("getheaders", &payload)?;
            // Some nodes say nothing if there are no headers (bcoin), or while they catch up
            // (Core); messages are answered in order, so a ping after it ends the wait.
            let nonce = ping_nonce(&payload);
            link.send("ping", &nonce)?;
            let deadline = Instant::now() + self.limit;
            loop {
                let Some(message) = link.receive(deadline)? else {
                    let what = "getheaders".to_owned();
                    return Err(SourceError::Stalled {
                        place: link.place.clone(),
                        what,
                        after: self.limit,
                    });
                };
                if message.command == "pong" && message.payload == nonce {
                    return Ok(Vec::new());
                }
                if message.command != "headers" {
                    notes.hear(self.chain, &message);
                    continue;
                }
                let headers = read_headers(self.chain, &mut Reader::new(&message.payload))
                    .map_err(|e| SourceError::chain(link.place.clone(), e))?;
                // An announcement that crossed the question begins elsewhere.
                let answers = |h: &FullHeader| locator.contains(&h.header.prev);
                if headers.first().is_none_or(answers) {
                    return Ok(headers);
                }
                if let Some(last) = headers.last() {
                    notes.announced = Some(last.header.hash());
                }
            }
        })?;
        // What was announced before is answered now: nothing more, or these.
        self.lock().announced = headers.last().map(|last| last.header.hash());
        let fork = headers.first().map(|first| first.header.prev);
        let genesis = self.chain.params().genesis_hash();
        if fork.is_some_and(|f| f == genesis) && !locator.contains(&genesis) {
            return Err(SourceError::OtherNetwork {
                place: self.address.to_string(),
            });
        }
        Ok(Ahead { fork, headers })
    }

    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        let mut payload = Vec::with_capacity(9 + 36 * hashes.len());
        put_compact_size(&mut payload, hashes.len() as u64);
        for hash in hashes {
            payload.extend_from_slice(&self.item_type().to_le_bytes());
            payload.extend_from_slice(hash);
        }
        let mut found: HashMap<Hash, Vec<u8>> = HashMap::with_capacity(hashes.len());
        self.with(|link, notes| {
            link.send("getdata", &payload)?;
            let deadline = Instant::now() + self.limit;
            while found.len() < hashes.len() {
                let missing = hashes
                    .iter()
                    .find(|h| !found.contains_key(*h))
                    .copied()
                    .unwrap_or(ZERO);
                let Some(message) = link.receive(deadline)? else {
                    // A pruned node says nothing at all.
                    let what = format!("getdata for block {}", hex(&missing));
                    return Err(SourceError::Stalled {
                        place: link.place.clone(),
                        what,
                        after: self.limit,
                    });
                };
                match message.command.as_str() {
                    "block" => {
                        let header = Header::from_prefix(&message.payload)
                            .map_err(|e| SourceError::chain(link.place.clone(), e))?;
                        let hash = header.hash();
                        if !hashes.contains(&hash) {
                            return Err(link.bad(
                                "getdata",
                                format!("block {} was not asked for", hex(&hash)),
                            ));
                        }
                        found.insert(hash, message.payload);
                    }
                    "notfound" => {
                        return Err(SourceError::NoBlock {
                            place: link.place.clone(),
                            block: missing,
                        });
                    }
                    _ => notes.hear(self.chain, &message),
                }
            }
            Ok(())
        })?;
        let place = self.address.to_string();
        hashes
            .iter()
            .map(|h| {
                found.remove(h).ok_or(SourceError::NoBlock {
                    place: place.clone(),
                    block: *h,
                })
            })
            .collect()
    }

    /// An announcement of another block than `known`. A chain that only becomes shorter is not
    /// announced by P2P.
    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        let is_new = |announced: Option<Hash>| announced.is_some_and(|hash| hash != *known);
        loop {
            if is_new(self.lock().announced) {
                return Ok(true);
            }
            let heard = self.with(|link, notes| {
                // Short, so that calls for blocks get their turn.
                let until = deadline.min(Instant::now() + Duration::from_millis(100));
                if let Some(message) = link.receive(until)? {
                    notes.hear(self.chain, &message);
                }
                Ok(())
            });
            heard?;
            if Instant::now() >= deadline {
                return Ok(is_new(self.lock().announced));
            }
        }
    }

    fn batch(&self) -> usize {
        16
    }

    fn parallel(&self) -> usize {
        1
    }
}
