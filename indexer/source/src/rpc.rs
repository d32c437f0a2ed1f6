//! JSON-RPC of a node of the Core family.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use weft_chain::block::MAX_BLOCK;
use weft_chain::hash::{from_hex, hex};
use weft_chain::wire::Reader;
use weft_chain::{Chain, Hash};

use crate::http::{Http, TIMEOUT};
use crate::{Ahead, FullHeader, Kind, Source, SourceError, Tip};

/// Headers asked for in one batch.
const HEADERS: u32 = 2000;
/// Longest answer that is not a block.
const SMALL: u64 = 64 << 20;
/// Longest wait of the node's own for a new block; a chain that becomes shorter is noticed after
/// at most this.
const NODE_WAIT: Duration = Duration::from_millis(250);
/// Pause between questions to a node that cannot wait itself.
const POLL: Duration = Duration::from_millis(20);

/// How a node knows who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Auth {
    /// Not at all.
    #[default]
    None,
    /// The file the node writes at each start, `user:password`.
    Cookie(PathBuf),
    /// A fixed name and password.
    User(String, String),
}

impl Auth {
    fn header(&self) -> Result<Option<String>, SourceError> {
        let pair = match self {
            Self::None => return Ok(None),
            Self::User(user, password) => format!("{user}:{password}"),
            Self::Cookie(path) => std::fs::read_to_string(path)
                .map_err(|source| SourceError::File {
                    path: path.clone(),
                    source,
                })?
                .trim()
                .to_owned(),
        };
        Ok(Some(format!(
            "Basic {}",
            base64::engine::general_purpose::STANDARD.encode(pair)
        )))
    }

    fn name(&self) -> String {
        match self {
            Self::None => "none were given".to_owned(),
            Self::Cookie(path) => format!("cookie file {}", path.display()),
            Self::User(user, _) => format!("user {user}"),
        }
    }
}

/// A client for a node's RPC, without a chain: any method can be called.
#[derive(Debug)]
pub struct RpcClient {
    http: Http,
    auth: Auth,
    /// How long to go on with a node that starts or is busy.
    patience: Duration,
    authorization: Mutex<Option<String>>,
}

/// An error object of the node.
#[derive(Debug, Clone, serde::Deserialize)]
struct RpcError {
    code: i64,
    #[serde(default)]
    message: String,
}

#[derive(Debug, serde::Deserialize)]
struct Reply {
    #[serde(default)]
    result: Value,
    #[serde(default)]
    error: Option<RpcError>,
    #[serde(default)]
    id: Value,
}

impl RpcClient {
    /// A client for the node at `place` (`host:port`). A node that cannot be reached, is starting
    /// or has too much to do is asked again, with growing pauses, until `patience` has passed.
    pub fn new(place: &str, auth: Auth, patience: Duration) -> Self {
        Self {
            http: Http::new(place),
            auth,
            patience,
            authorization: Mutex::new(None),
        }
    }

    /// Host and port.
    pub fn place(&self) -> &str {
        self.http.place()
    }

    /// Calls a method.
    pub fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, SourceError> {
        self.call_for(method, params, TIMEOUT)
    }

    /// Calls a method that may take as long as `timeout`.
    pub fn call_for<T: DeserializeOwned>(
        &self,
        method: &str,
        params: Value,
        timeout: Duration,
    ) -> Result<T, SourceError> {
        let mut out = self.batch_for(&[(method, params)], SMALL, timeout)?;
        self.decode(method, out.pop().unwrap_or(Ok(Value::Null))?)
    }

    /// Calls several methods at once. The outer error is of the whole; results are in order.
    pub fn batch(
        &self,
        calls: &[(&str, Value)],
    ) -> Result<Vec<Result<Value, SourceError>>, SourceError> {
        self.batch_for(calls, SMALL, TIMEOUT)
    }

    /// Reads a result.
    pub fn decode<T: DeserializeOwned>(
        &self,
        method: &str,
        value: Value,
    ) -> Result<T, SourceError> {
        serde_json::from_value(value).map_err(|e| self.bad("result", format!("{method}: {e}")))
    }

    fn batch_for(
        &self,
        calls: &[(&str, Value)],
        limit: u64,
        timeout: Duration,
    ) -> Result<Vec<Result<Value, SourceError>>, SourceError> {
        let started = Instant::now();
        let mut pause = Duration::from_millis(50);
        loop {
            match self.batch_once(calls, limit, timeout) {
                Err(e) if e.is_temporary() && started.elapsed() + pause < self.patience => {
                    tracing::debug!(place = self.place(), error = %e, "asking again");
                    thread::sleep(pause);
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
                done => return done,
            }
        }
    }

    fn batch_once(
        &self,
        calls: &[(&str, Value)],
        limit: u64,
        timeout: Duration,
    ) -> Result<Vec<Result<Value, SourceError>>, SourceError> {
        let requests: Vec<Value> = calls
            .iter()
            .enumerate()
            .map(|(id, (method, params))| json!({"jsonrpc": "1.0", "id": id, "method": method, "params": params}))
            .collect();
        let single = requests.len() == 1;
        let body = if single {
            serde_json::to_vec(&requests[0])
        } else {
            serde_json::to_vec(&requests)
        };
        let body = body.map_err(|e| self.bad("question", e.to_string()))?;
        let answer = self.post(&body, limit, timeout)?;
        let replies: Vec<Reply> = if single {
            serde_json::from_slice(&answer.body).map(|r| vec![r])
        } else {
            // A node that starts answers the whole batch with one error.
            serde_json::from_slice(&answer.body)
                .or_else(|_| serde_json::from_slice(&answer.body).map(|r| vec![r]))
        }
        .map_err(|e| {
            if answer.status == 200 {
                self.bad("answer", format!("no JSON-RPC: {e}"))
            } else {
                SourceError::Http {
                    place: self.place().to_owned(),
                    path: "/".to_owned(),
                    status: answer.status,
                    message: answer.excerpt(),
                }
            }
        })?;
        if let Some(error) = replies
            .iter()
            .find_map(|r| r.error.as_ref().filter(|e| e.code == -28))
        {
            return Err(SourceError::WarmingUp {
                place: self.place().to_owned(),
                message: error.message.clone(),
            });
        }
        if replies.len() != calls.len() {
            let error = replies.into_iter().find_map(|r| r.error);
            return Err(error.map_or_else(
                || {
                    self.bad(
                        "answer",
                        "it has not as many results as there were calls".to_owned(),
                    )
                },
                |e| self.error(calls[0].0, e),
            ));
        }
        let mut out: Vec<Option<Result<Value, SourceError>>> = calls.iter().map(|_| None).collect();
        for reply in replies {
            let slot = reply
                .id
                .as_u64()
                .and_then(|id| Some((id as usize, out.get_mut(id as usize)?)));
            let Some((id, slot)) = slot else {
                return Err(self.bad(
                    "answer",
                    format!("it has the id {}, which was not asked", reply.id),
                ));
            };
            *slot = Some(match reply.error {
                Some(e) => Err(self.error(calls[id].0, e)),
                None => Ok(reply.result),
            });
        }
        let missing = || self.bad("answer", "an id is there twice".to_owned());
        out.into_iter()
            .map(|slot| slot.ok_or_else(missing))
            .collect()
    }

    /// Sends a request; credentials are read again once if the node refuses them, for it writes
    /// a new cookie at each start.
    fn post(
        &self,
        body: &[u8],
        limit: u64,
        timeout: Duration,
    ) -> Result<crate::http::Answer, SourceError> {
        for fresh in [false, true] {
            let authorization = {
                let mut kept = self.authorization.lock().unwrap_or_else(|e| e.into_inner());
                if fresh || kept.is_none() {
                    *kept = self.auth.header()?;
                }
                kept.clone()
            };
            let answer = self
                .http
                .post("/", authorization.as_deref(), body, limit, timeout)?;
            match answer.status {
                401 | 403 => continue,
                // The text of a full work queue.
                503 => {
                    return Err(SourceError::Http {
                        place: self.place().to_owned(),
                        path: "/".to_owned(),
                        status: 503,
                        message: answer.excerpt(),
                    });
                }
                _ => return Ok(answer),
            }
        }
        Err(SourceError::Refused {
            place: self.place().to_owned(),
            used: self.auth.name(),
        })
    }

    fn error(&self, method: &str, e: RpcError) -> SourceError {
        let place = self.place().to_owned();
        SourceError::Rpc {
            place,
            method: method.to_owned(),
            code: e.code,
            message: e.message,
        }
    }

    fn bad(&self, what: &'static str, why: String) -> SourceError {
        SourceError::BadAnswer {
            place: self.place().to_owned(),
            what,
            why,
        }
    }

    /// A result that must be a hash.
    pub(crate) fn hash(&self, what: &'static str, value: &Value) -> Result<Hash, SourceError> {
        value
            .as_str()
            .and_then(from_hex)
            .ok_or_else(|| self.bad(what, format!("{value} is no hash")))
    }
}

/// Whether a node says that it does not know a block: code -5, or -1 of bcoin.
fn is_not_found(e: &SourceError) -> bool {
    matches!(e, SourceError::Rpc { code: -5, .. })
        || matches!(e, SourceError::Rpc { code: -1, message, .. } if message.contains("not found"))
}

/// Decodes hexadecimal digits.
pub(crate) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        b'A'..=b'F' => Some(c - b'A' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?))
        .collect()
}

/// Blocks from a node's RPC.
#[derive(Debug)]
pub struct Rpc {
    client: RpcClient,
    chain: &'static dyn Chain,
    agent: String,
    /// Whether the node can wait for a block itself.
    can_wait: AtomicBool,
}

impl Rpc {
    /// Connects, and makes sure that the node is on the network of `chain`.
    pub fn connect(client: RpcClient, chain: &'static dyn Chain) -> Result<Self, SourceError> {
        let genesis: Value = client.call("getblockhash", json!([0]))?;
        if client.hash("getblockhash", &genesis)? != chain.params().genesis_hash() {
            return Err(SourceError::OtherNetwork {
                place: client.place().to_owned(),
            });
        }
        let info = client.call::<Value>("getnetworkinfo", json!([])).ok();
        let agent = info
            .and_then(|i| Some(i.get("subversion")?.as_str()?.to_owned()))
            .unwrap_or("a node".to_owned());
        Ok(Self {
            client,
            chain,
            agent,
            can_wait: AtomicBool::new(true),
        })
    }

    /// The client, for other methods.
    pub fn client(&self) -> &RpcClient {
        &self.client
    }

    /// Height of a block on the node's best chain; `None` if it is not on it.
    fn height_on_chain(&self, hash: &Hash) -> Result<Option<u32>, SourceError> {
        let header: Value = match self.client.call("getblockheader", json!([hex(hash), true])) {
            Err(e) if is_not_found(&e) => return Ok(None),
            other => other?,
        };
        let confirmations = header
            .get("confirmations")
            .and_then(Value::as_i64)
            .unwrap_or(-1);
        let height = header
            .get("height")
            .and_then(Value::as_u64)
            .and_then(|h| u32::try_from(h).ok());
        let height = height.ok_or_else(|| {
            self.client
                .bad("getblockheader", "it has no height".to_owned())
        })?;
        Ok((confirmations >= 0).then_some(height))
    }

    /// Turns "pruned" into an error that says what is left.
    fn explain(&self, block: &Hash, error: SourceError) -> SourceError {
        let place = self.client.place().to_owned();
        match &error {
            e if is_not_found(e) => SourceError::NoBlock {
                place,
                block: *block,
            },
            SourceError::Rpc {
                code: -1, message, ..
            } if message.contains("pruned") => {
                let info = self.client.call::<Value>("getblockchaininfo", json!([]));
                match info.ok().and_then(|i| i.get("pruneheight")?.as_u64()) {
                    Some(first) => SourceError::Pruned {
                        place,
                        block: *block,
                        first: first as u32,
                    },
                    None => error,
                }
            }
            _ => error,
        }
    }
}

impl Source for Rpc {
    fn kind(&self) -> Kind {
        Kind::Rpc
    }

    fn describe(&self) -> String {
        format!("RPC of {} at {}", self.agent, self.client.place())
    }

    fn chain(&self) -> &'static dyn Chain {
        self.chain
    }

    fn tip(&self) -> Result<Tip, SourceError> {
        let info: Value = self.client.call("getblockchaininfo", json!([]))?;
        let hash = self
            .client
            .hash("getblockchaininfo", &info["bestblockhash"])?;
        let height = info["blocks"].as_u64().and_then(|h| u32::try_from(h).ok());
        let height = height.ok_or_else(|| {
            self.client
                .bad("getblockchaininfo", "it has no height".to_owned())
        })?;
        Ok(Tip {
            height,
            hash: Some(hash),
        })
    }

    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        let mut fork = None;
        for hash in locator {
            if let Some(height) = self.height_on_chain(hash)? {
                fork = Some((*hash, height));
                break;
            }
        }
        let Some((fork, height)) = fork else {
            return Err(SourceError::OtherNetwork {
                place: self.client.place().to_owned(),
            });
        };
        let tip = self.tip()?.height;
        let heights = height + 1..=tip.min(height.saturating_add(HEADERS));
        let calls: Vec<_> = heights.map(|h| ("getblockhash", json!([h]))).collect();
        let mut ahead = Ahead {
            fork: Some(fork),
            headers: Vec::with_capacity(calls.len()),
        };
        if calls.is_empty() {
            return Ok(ahead);
        }
        let mut calls = calls;
        let mut hashes = Vec::with_capacity(calls.len());
        for result in self.client.batch(&calls)? {
            match result {
                Ok(hash) => hashes.push(hash),
                // The chain became shorter meanwhile: what is there is enough for now.
                Err(SourceError::Rpc { code: -8, .. }) => break,
                Err(e) => return Err(e),
            }
        }
        calls.clear();
        calls.extend(
            hashes
                .into_iter()
                .map(|h| ("getblockheader", json!([h, false]))),
        );
        if calls.is_empty() {
            return Ok(ahead);
        }
        let mut prev = fork;
        for result in self.client.batch(&calls)? {
            let text: String = self.client.decode("getblockheader", result?)?;
            let raw = unhex(&text).ok_or_else(|| {
                self.client
                    .bad("getblockheader", "no hexadecimal".to_owned())
            })?;
            let (header, auxpow) = self
                .chain
                .read_header(&mut Reader::new(&raw))
                .map_err(|e| SourceError::chain(self.client.place(), e))?;
            // The chain changed between the two questions: the rest is of another branch.
            if header.prev != prev {
                break;
            }
            prev = header.hash();
            ahead.headers.push(FullHeader { header, auxpow });
        }
        Ok(ahead)
    }

    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        let calls: Vec<_> = hashes
            .iter()
            .map(|h| ("getblock", json!([hex(h), 0])))
            .collect();
        if calls.is_empty() {
            return Ok(vec![]);
        }
        let limit = (2 * MAX_BLOCK as u64 + 1024) * calls.len() as u64;
        let results = self.client.batch_for(&calls, limit, TIMEOUT)?;
        results
            .into_iter()
            .zip(hashes)
            .map(|(result, hash)| {
                let value = result.map_err(|e| self.explain(hash, e))?;
                let raw = value.as_str().and_then(unhex);
                raw.ok_or_else(|| {
                    self.client
                        .bad("getblock", "the block is not in hexadecimal".to_owned())
                })
            })
            .collect()
    }

    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            let tip = self.tip()?;
            if tip.hash != Some(*known) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if self.can_wait.load(Ordering::Relaxed) {
                let millis = left.min(NODE_WAIT).as_millis().max(1) as u64;
                let params = json!([tip.height + 1, millis]);
                match self
                    .client
                    .call_for::<Value>("waitforblockheight", params, TIMEOUT)
                {
                    Ok(_) => {}
                    // Not every node of the family has it.
                    Err(SourceError::Rpc { .. }) => self.can_wait.store(false, Ordering::Relaxed),
                    Err(e) => return Err(e),
                }
            } else {
                thread::sleep(left.min(POLL));
            }
        }
    }

    fn batch(&self) -> usize {
        8
    }

    fn parallel(&self) -> usize {
        // A node has four threads for RPC unless told otherwise, one of which waits for blocks.
        3
    }
}
