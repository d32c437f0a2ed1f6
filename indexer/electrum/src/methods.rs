//! The protocol's methods.

use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::hash::{from_hex, hex};
use weft_view::script::{hex as bytes_hex, unhex};
use weft_view::{Error, FeeMode, Script, ScriptTx};

use crate::json::{self, LongList, Rows};
use crate::session::{Session, failure};
use crate::verbose;
use crate::version;
use crate::wire::{
    BAD_REQUEST, Failure, INVALID_PARAMS, NODE_ERROR, Request, UNKNOWN_METHOD, positional,
};

/// Most headers given at once: a period of the target.
const MAX_HEADERS: u32 = 2016;
/// What the server calls itself.
pub(crate) const SOFTWARE: &str = concat!("weft-indexd ", env!("CARGO_PKG_VERSION"));
/// Most transactions in a package, as nodes have it.
const MAX_PACKAGE: usize = 25;

/// What a call is answered with: JSON.
#[derive(Debug)]
pub(crate) enum Given {
    /// All of it.
    Whole(Vec<u8>),
    /// A list that is still to be read.
    List(Box<LongList>),
}

type Answer = Result<Given, Failure>;

/// Parameters of one call in order.
struct Params(Vec<Value>);

impl Params {
    fn get(&self, at: usize) -> Option<&Value> {
        self.0.get(at).filter(|value| !value.is_null())
    }

    fn hash(&self, at: usize, name: &str) -> Result<Hash, Failure> {
        let hash = self.get(at).and_then(Value::as_str).and_then(from_hex);
        hash.ok_or_else(|| bad(format!("{name} should be a hash of 64 hexadecimal digits")))
    }

    fn number(&self, at: usize, name: &str) -> Result<u32, Failure> {
        let number = self.get(at).and_then(Value::as_u64);
        let number = number.and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| bad(format!("{name} should be a non-negative integer")))
    }

    fn number_or_zero(&self, at: usize, name: &str) -> Result<u32, Failure> {
        match self.get(at) {
            None => Ok(0),
            Some(_) => self.number(at, name),
        }
    }

    fn flag(&self, at: usize, name: &str) -> Result<bool, Failure> {
        match self.get(at) {
            None => Ok(false),
            Some(Value::Bool(flag)) => Ok(*flag),
            // Older clients write 0 and 1.
            Some(value) if value.as_u64().is_some_and(|n| n <= 1) => Ok(value.as_u64() == Some(1)),
            Some(_) => Err(bad(format!("{name} should be true or false"))),
        }
    }

    fn bytes(&self, at: usize, name: &str) -> Result<Vec<u8>, Failure> {
        let text = self.get(at).and_then(Value::as_str);
        let bytes = text.and_then(unhex).filter(|bytes| !bytes.is_empty());
        bytes.ok_or_else(|| bad(format!("{name} should be hexadecimal digits")))
    }
}

fn bad(message: String) -> Failure {
    Failure::new(INVALID_PARAMS, message)
}

fn done(value: Value) -> Answer {
    Ok(Given::Whole(value.to_string().into_bytes()))
}

/// Names of a method's parameters; `None` where this version does not have it.
fn params_of(method: &str, is_1_6: bool) -> Option<&'static [&'static str]> {
    Some(match method {
        "server.version" => &["client_name", "protocol_version"],
        "server.add_peer" => &["features"],
        "server.features"
        | "server.ping"
        | "server.banner"
        | "server.donation_address"
        | "server.peers.subscribe"
        | "blockchain.headers.subscribe"
        | "mempool.get_fee_histogram" => &[],
        "blockchain.relayfee" if !is_1_6 => &[],
        "mempool.get_info" if is_1_6 => &[],
        "blockchain.block.header" => &["height", "cp_height"],
        "blockchain.block.headers" => &["start_height", "count", "cp_height"],
        "blockchain.estimatefee" if is_1_6 => &["number", "mode"],
        "blockchain.estimatefee" => &["number"],
        "blockchain.scripthash.get_balance"
        | "blockchain.scripthash.get_history"
        | "blockchain.scripthash.get_mempool"
        | "blockchain.scripthash.listunspent"
        | "blockchain.scripthash.subscribe"
        | "blockchain.scripthash.unsubscribe" => &["scripthash"],
        "blockchain.transaction.broadcast" => &["raw_tx"],
        "blockchain.transaction.broadcast_package" if is_1_6 => &["raw_txs", "verbose"],
        "blockchain.transaction.get" => &["tx_hash", "verbose"],
        "blockchain.transaction.get_merkle" => &["tx_hash", "height"],
        "blockchain.transaction.id_from_pos" => &["height", "tx_pos", "merkle"],
        _ => return None,
    })
}

/// Answers a call with JSON.
pub(crate) fn answer(session: &mut Session, method: &str, params: Value) -> Answer {
    let Some(names) = params_of(method, session.version().is_1_6()) else {
        let method: String = method.chars().take(80).collect();
        let version = session.version();
        let message = format!("there is no method {method:?} in version {version}");
        return Err(Failure::new(UNKNOWN_METHOD, message));
    };
    // Later versions may add params to server.version; a server ignores them.
    let lenient = method == "server.version";
    let params = Params(positional(params, names, lenient)?);
    match method.split_once('.') {
        Some(("server", rest)) => server(session, rest, &params),
        _ if !session.view.caught_up() => Err(Failure::new(
            NODE_ERROR,
            "the index is still catching up with the chain",
        )),
        Some(("mempool", rest)) => mempool(session, rest),
        _ => blockchain(session, method, &params),
    }
}

fn server(session: &mut Session, method: &str, params: &Params) -> Answer {
    let genesis = || hex(&session.view.chain().params().genesis_hash());
    done(match method {
        "version" => {
            let version = session.negotiate(params.get(1))?;
            json!([SOFTWARE, version.to_string()])
        }
        "features" => {
            let hosts = match &session.info.hosts {
                Value::Null => json!({}),
                hosts => hosts.clone(),
            };
            json!({
                "hosts": hosts,
                "genesis_hash": genesis(),
                "hash_function": "sha256",
                "server_version": SOFTWARE,
                "protocol_min": version::MIN.to_string(),
                "protocol_max": version::MAX.to_string(),
                "pruning": null,
            })
        }
        "banner" => session.info.banner.clone().into(),
        "donation_address" => session.info.donation_address.clone().into(),
        // This server keeps no list of others.
        "add_peer" => false.into(),
        "peers.subscribe" => json!([]),
        _ => Value::Null,
    })
}

fn mempool(session: &mut Session, method: &str) -> Answer {
    if method == "get_info" {
        let fees = session.view.relay_fees().map_err(failure)?;
        return done(json!({
            "mempoolminfee": fees.mempool_min,
            "minrelaytxfee": fees.min_relay,
            "incrementalrelayfee": fees.incremental,
        }));
    }
    let histogram = {
        let pool = session.view.pool();
        session.cost += pool.len() as f64 / 1000.0;
        pool.fee_histogram()
    };
    done(
        histogram
            .into_iter()
            .map(|(rate, size)| json!([rate, size]))
            .collect(),
    )
}

fn blockchain(session: &mut Session, method: &str, params: &Params) -> Answer {
    if let Some(method) = method.strip_prefix("blockchain.scripthash.") {
        let script = session.view.script(params.hash(0, "scripthash")?);
        return scripthash(session, method, script);
    }
    if let Some(method) = method.strip_prefix("blockchain.transaction.") {
        return transaction(session, method, params);
    }
    match method {
        "blockchain.headers.subscribe" => done(session.subscribe_headers()?),
        "blockchain.block.header" => header(session, params),
        "blockchain.block.headers" => headers(session, params),
        "blockchain.estimatefee" => {
            let blocks = params.number(0, "number")?;
            let mode = match params.get(1) {
                None => FeeMode::Unset,
                Some(mode) => mode.as_str().and_then(FeeMode::parse).ok_or_else(|| {
                    bad("mode should be UNSET, ECONOMICAL or CONSERVATIVE".to_owned())
                })?,
            };
            let blocks = u16::try_from(blocks).unwrap_or(u16::MAX);
            let fee = session.view.estimate_fee(blocks, mode).map_err(failure)?;
            done(fee.map_or(json!(-1), Value::from))
        }
        _ => {
            let fees = session.view.relay_fees().map_err(failure)?;
            done(fees.min_relay.into())
        }
    }
}

fn header(session: &mut Session, params: &Params) -> Answer {
    let height = params.number(0, "height")?;
    let checkpoint = params.number_or_zero(1, "cp_height")?;
    let row = session.view.header(height).map_err(failure)?;
    let Some(row) = row else {
        return Err(Failure::new(
            BAD_REQUEST,
            format!("there is no block at height {height}"),
        ));
    };
    let header = bytes_hex(&row.header.to_bytes());
    if checkpoint == 0 {
        return done(header.into());
    }
    let (branch, root) = proof(session, height, checkpoint)?;
    done(json!({ "header": header, "branch": branch, "root": root }))
}

fn headers(session: &mut Session, params: &Params) -> Answer {
    let start = params.number(0, "start_height")?;
    let count = params.number(1, "count")?.min(MAX_HEADERS);
    let checkpoint = params.number_or_zero(2, "cp_height")?;
    let found = session.view.headers(start, count).map_err(failure)?;
    session.cost += found.len() as f64 / 100.0;
    let mut answer = json!({ "count": found.len(), "max": MAX_HEADERS });
    let texts = found.iter().map(|header| bytes_hex(&header.to_bytes()));
    if session.version().is_1_6() {
        answer["headers"] = texts.collect();
    } else {
        answer["hex"] = texts.collect::<String>().into();
    }
    if checkpoint > 0 && !found.is_empty() {
        let last = start + found.len() as u32 - 1;
        let (branch, root) = proof(session, last, checkpoint)?;
        answer["branch"] = branch;
        answer["root"] = root;
    }
    done(answer)
}

fn proof(session: &mut Session, height: u32, checkpoint: u32) -> Result<(Value, Value), Failure> {
    session.cost += 40.0;
    let (branch, root) = session
        .view
        .header_proof(height, checkpoint)
        .map_err(failure)?;
    Ok((branch.iter().map(hex).collect(), hex(&root).into()))
}

/// The script of a question that rows and pool answer, where the request is one.
pub(crate) fn asked_of_rows(request: &Request) -> Option<Hash> {
    let what = request.method.strip_prefix("blockchain.scripthash.")?;
    if !matches!(what, "get_balance" | "get_history" | "listunspent") || request.id.is_none() {
        return None;
    }
    let given = match &request.params {
        Value::Array(list) if list.len() == 1 => list.first()?,
        _ => return None,
    };
    given.as_str().and_then(from_hex)
}

fn scripthash(session: &mut Session, method: &str, script: Script) -> Answer {
    match method {
        "get_balance" => {
            let balance = session.view.balance(&script).map_err(failure)?;
            session.cost += balance.coins as f64 / 100.0;
            done(json!({ "confirmed": balance.confirmed, "unconfirmed": balance.unconfirmed() }))
        }
        "get_history" if session.quick => {
            let history = session.view.history(&script);
            let history = history.map_err(|e| too_many(session, e))?;
            session.cost += history.len() as f64 / 100.0;
            let confirmed = history.confirmed.into_iter().map(ScriptTx::Confirmed);
            let all: Vec<_> = confirmed
                .chain(history.pool.into_iter().map(ScriptTx::Pool))
                .collect();
            Ok(Given::Whole(json::list(&all, json::put_tx)))
        }
        "get_history" => {
            let transactions = session.view.transactions(&script).map_err(failure)?;
            Ok(Given::List(Box::new(LongList::new(Rows::Transactions(
                transactions,
            )))))
        }
        "get_mempool" => {
            let pool = session.view.pool_history(&script);
            Ok(Given::Whole(json::list(&pool, json::put_pool_tx)))
        }
        "listunspent" if session.quick => {
            let coins = session.view.unspents(&script, true);
            let coins = coins.map_err(|e| too_many(session, e))?;
            session.cost += coins.len() as f64 / 100.0;
            Ok(Given::Whole(json::list(&coins, json::put_coin)))
        }
        "listunspent" => {
            let coins = session.view.coins(&script, true).map_err(failure)?;
            Ok(Given::List(Box::new(LongList::new(Rows::Coins(coins)))))
        }
        "subscribe" => done(session.subscribe_script(script)?),
        _ => done(session.unsubscribe_script(&script).into()),
    }
}

/// [`failure`], and a question given up where it was to be a quick one.
fn too_many(session: &mut Session, e: Error) -> Failure {
    session.gave_up = session.quick && matches!(e, Error::TooMany { .. });
    failure(e)
}

fn transaction(session: &mut Session, method: &str, params: &Params) -> Answer {
    match method {
        "broadcast" => {
            session.cost += 20.0;
            let raw = params.bytes(0, "raw_tx")?;
            match session.view.broadcast(&raw) {
                Ok(txid) => done(hex(&txid).into()),
                Err(e) => Err(match e.refusal() {
                    Some((_, said)) => Failure::new(
                        BAD_REQUEST,
                        format!("the transaction was rejected by network rules.\n\n{said}"),
                    ),
                    None => failure(e),
                }),
            }
        }
        "broadcast_package" => package(session, params),
        "get" => {
            let txid = params.hash(0, "tx_hash")?;
            let verbose = params.flag(1, "verbose")?;
            session.cost += 2.0;
            let Some(found) = session.view.tx(&txid).map_err(failure)? else {
                return Err(no_tx(&txid));
            };
            if verbose {
                return done(verbose::transaction(&session.view, &txid, &found).map_err(failure)?);
            }
            let mut out = Vec::with_capacity(2 * found.raw.len() + 2);
            out.push(b'"');
            out.extend_from_slice(bytes_hex(&found.raw).as_bytes());
            out.push(b'"');
            Ok(Given::Whole(out))
        }
        "get_merkle" => {
            let (txid, height) = (params.hash(0, "tx_hash")?, params.number(1, "height")?);
            session.cost += 10.0;
            let proof = session
                .view
                .merkle_proof(&txid, Some(height))
                .map_err(failure)?;
            let Some(proof) = proof else {
                let message = format!("tx {} is not in the block at height {height}", hex(&txid));
                return Err(Failure::new(BAD_REQUEST, message));
            };
            let merkle: Value = proof.branch.iter().map(hex).collect();
            done(json!({ "block_height": height, "pos": proof.index, "merkle": merkle }))
        }
        _ => {
            let (height, index) = (params.number(0, "height")?, params.number(1, "tx_pos")?);
            let merkle = params.flag(2, "merkle")?;
            session.cost += 10.0;
            let Some((txid, branch)) = session.view.tx_at(height, index).map_err(failure)? else {
                let message = format!("there is no tx at position {index} of block {height}");
                return Err(Failure::new(BAD_REQUEST, message));
            };
            if !merkle {
                return done(hex(&txid).into());
            }
            let branch: Value = branch.iter().map(hex).collect();
            done(json!({ "tx_hash": hex(&txid), "merkle": branch }))
        }
    }
}

fn package(session: &mut Session, params: &Params) -> Answer {
    let list = params.get(0).and_then(Value::as_array);
    let list = list.filter(|list| (1..=MAX_PACKAGE).contains(&list.len()));
    let raw: Option<Vec<Vec<u8>>> =
        list.and_then(|list| list.iter().map(|tx| unhex(tx.as_str()?)).collect());
    let verbose = params.flag(1, "verbose")?;
    let raw = raw.ok_or_else(|| {
        bad(format!(
            "raw_txs should be 1 to {MAX_PACKAGE} transactions in hexadecimal digits"
        ))
    })?;
    session.cost += 20.0 * raw.len() as f64;
    let result = match session.view.broadcast_package(&raw, [None, None]) {
        Ok(result) => result,
        Err(e) => {
            return Err(match e.refusal() {
                Some((_, said)) => Failure::new(
                    BAD_REQUEST,
                    format!("the package was rejected by network rules.\n\n{said}"),
                ),
                None => failure(e),
            });
        }
    };
    if verbose {
        return done(result.answer);
    }
    let mut answer = json!({ "success": result.accepted });
    if !result.errors.is_empty() {
        let errors = result.errors.iter();
        answer["errors"] = errors
            .map(|(txid, error)| json!({ "txid": txid, "error": error }))
            .collect();
    }
    done(answer)
}

fn no_tx(txid: &Hash) -> Failure {
    let message = format!("no such mempool or blockchain transaction: {}", hex(txid));
    Failure::new(BAD_REQUEST, message)
}
