//! REST interface of a node (`-rest`), on the port of its RPC and without credentials.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use weft_chain::block::MAX_BLOCK;
use weft_chain::hash::{from_hex, hex};
use weft_chain::undo::parse_spent_txouts;
use weft_chain::wire::Reader;
use weft_chain::{Chain, Hash};

use crate::http::{Answer, Http};
use crate::{Ahead, FullHeader, Kind, Source, SourceError, Spent, Tip};

/// Headers the nodes give at most.
const HEADERS: usize = 2000;
/// Longest list of headers: with AuxPoW a header has about a thousand bytes more.
const HEADERS_LIMIT: u64 = 32 << 20;
/// Pause between questions for the tip.
const POLL: Duration = Duration::from_millis(20);

/// Blocks from a node's REST interface.
#[derive(Debug)]
pub struct Rest {
    http: Http,
    chain: &'static dyn Chain,
    spent: bool,
}

impl Rest {
    /// Connects, makes sure that the node is on the network of `chain`, and finds out whether it
    /// has `spenttxouts` (Bitcoin Core 30 and later).
    pub fn connect(place: &str, chain: &'static dyn Chain) -> Result<Self, SourceError> {
        let mut rest = Self {
            http: Http::new(place),
            chain,
            spent: false,
        };
        let genesis = chain.params().genesis_hash();
        if rest.after(&genesis, 1)?.is_none() {
            return Err(SourceError::OtherNetwork {
                place: rest.http.place().to_owned(),
            });
        }
        if let Some(hash) = rest.tip()?.hash {
            rest.spent = rest
                .http
                .get(
                    &format!("/rest/spenttxouts/{}.bin", hex(&hash)),
                    block_limit(),
                )?
                .status
                == 200;
        }
        Ok(rest)
    }

    /// Whether the node says what a block spent.
    pub fn has_spent(&self) -> bool {
        self.spent
    }

    /// At most `count` headers of the best chain, the first of them `hash`'s; `None` if that is
    /// not on it.
    fn after(&self, hash: &Hash, count: usize) -> Result<Option<Vec<FullHeader>>, SourceError> {
        let path = format!("/rest/headers/{count}/{}.bin", hex(hash));
        let answer = self.http.get(&path, HEADERS_LIMIT)?;
        if answer.status == 404 && answer.excerpt().contains("not found") {
            return Ok(None);
        }
        let body = self.expect(&path, answer)?;
        let mut r = Reader::new(&body);
        let mut headers = Vec::new();
        while r.remaining() > 0 && headers.len() < HEADERS {
            let (header, auxpow) = self
                .chain
                .read_header(&mut r)
                .map_err(|e| SourceError::chain(self.http.place(), e))?;
            headers.push(FullHeader { header, auxpow });
        }
        Ok((!headers.is_empty()).then_some(headers))
    }

    fn expect(&self, path: &str, answer: Answer) -> Result<Vec<u8>, SourceError> {
        let place = self.http.place().to_owned();
        match answer.status {
            200 => Ok(answer.body),
            503 => Err(SourceError::WarmingUp {
                place,
                message: answer.excerpt(),
            }),
            404 if answer.body.is_empty() => Err(SourceError::Http {
                place,
                path: path.to_owned(),
                status: 404,
                message: "there is no REST interface: start the node with -rest".to_owned(),
            }),
            status => Err(SourceError::Http {
                place,
                path: path.to_owned(),
                status,
                message: answer.excerpt(),
            }),
        }
    }

    fn info(&self) -> Result<Value, SourceError> {
        let path = "/rest/chaininfo.json";
        let body = self.expect(path, self.http.get(path, 1 << 20)?)?;
        serde_json::from_slice(&body).map_err(|e| self.bad("chaininfo", e.to_string()))
    }

    fn bad(&self, what: &'static str, why: String) -> SourceError {
        SourceError::BadAnswer {
            place: self.http.place().to_owned(),
            what,
            why,
        }
    }

    fn block(&self, hash: &Hash) -> Result<Vec<u8>, SourceError> {
        let path = format!("/rest/block/{}.bin", hex(hash));
        let answer = self.http.get(&path, MAX_BLOCK as u64)?;
        let place = self.http.place().to_owned();
        if answer.status == 404 {
            let message = answer.excerpt();
            if message.contains("pruned")
                && let Some(first) = self.info()?.get("pruneheight").and_then(Value::as_u64)
            {
                return Err(SourceError::Pruned {
                    place,
                    block: *hash,
                    first: first as u32,
                });
            }
            if message.contains("not found") {
                return Err(SourceError::NoBlock {
                    place,
                    block: *hash,
                });
            }
        }
        self.expect(&path, answer)
    }
}

fn block_limit() -> u64 {
    4 * MAX_BLOCK as u64
}

impl Source for Rest {
    fn kind(&self) -> Kind {
        Kind::Rest
    }

    fn describe(&self) -> String {
        let with = if self.spent { "with" } else { "without" };
        format!("REST at {} ({with} spenttxouts)", self.http.place())
    }

    fn chain(&self) -> &'static dyn Chain {
        self.chain
    }

    fn tip(&self) -> Result<Tip, SourceError> {
        let info = self.info()?;
        let hash = info
            .get("bestblockhash")
            .and_then(Value::as_str)
            .and_then(from_hex);
        let height = info
            .get("blocks")
            .and_then(Value::as_u64)
            .and_then(|h| u32::try_from(h).ok());
        let (Some(_), Some(height)) = (hash, height) else {
            return Err(self.bad("chaininfo", "it has no best block".to_owned()));
        };
        Ok(Tip { height, hash })
    }

    fn headers(&self, locator: &[Hash]) -> Result<Ahead, SourceError> {
        for hash in locator {
            if let Some(mut headers) = self.after(hash, HEADERS)? {
                headers.remove(0);
                return Ok(Ahead {
                    fork: Some(*hash),
                    headers,
                });
            }
        }
        Err(SourceError::OtherNetwork {
            place: self.http.place().to_owned(),
        })
    }

    fn blocks(&self, hashes: &[Hash]) -> Result<Vec<Vec<u8>>, SourceError> {
        hashes.iter().map(|hash| self.block(hash)).collect()
    }

    fn spent(&self, block: &Hash) -> Result<Option<Spent>, SourceError> {
        if !self.spent {
            return Ok(None);
        }
        let path = format!("/rest/spenttxouts/{}.bin", hex(block));
        let body = self.expect(&path, self.http.get(&path, block_limit())?)?;
        let outputs = parse_spent_txouts(self.chain, &body)
            .map_err(|e| SourceError::chain(self.http.place(), e))?;
        Ok(Some(Spent::Outputs(outputs)))
    }

    fn wait(&self, known: &Hash, timeout: Duration) -> Result<bool, SourceError> {
        let deadline = Instant::now() + timeout;
        loop {
            if self.tip()?.hash != Some(*known) {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            thread::sleep(left.min(POLL));
        }
    }
}
