//! Answers of the Esplora interface, without a server.

use serde_json::{Map, Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Hash, OutPoint};
use weft_store::HeaderRow;
use weft_view::script::{hex as bytes_hex, unhex};
use weft_view::{Error, FeeMode, Script, Stats, View};

use crate::block_json;
use crate::coins::CoinList;
use crate::merkle_block::merkle_block;
use crate::route::{BadPath, Named, Route};
use crate::tx_json;

/// Confirmed transactions of a page.
const PAGE: usize = 25;
/// Unconfirmed transactions of a script that are shown.
const POOL_PAGE: usize = 50;
/// Blocks of a page.
const BLOCKS: u32 = 10;
/// Most transactions in a package, as nodes have it.
const MAX_PACKAGE: usize = 25;
/// Numbers of blocks fees are given for.
const TARGETS: [u16; 28] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 144,
    504, 1008,
];
/// From this depth on a block is taken to stay.
const DEEP: u32 = 10;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";
const BYTES: &str = "application/octet-stream";

/// An answer.
#[derive(Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Content type.
    pub kind: &'static str,
    /// Seconds it may be kept by caches; 0 for not at all.
    pub keep: u32,
    /// The body, or its beginning.
    pub body: Vec<u8>,
    /// What follows, where the body is a long list.
    pub rest: Option<Box<CoinList>>,
}

impl Answer {
    fn new(kind: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            kind,
            keep: 0,
            body: body.into(),
            rest: None,
        }
    }

    fn json(value: &Value) -> Self {
        Self::new(JSON, value.to_string())
    }

    fn text(text: impl Into<String>) -> Self {
        Self::new(TEXT, text.into())
    }

    /// An error in words.
    pub fn error(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            ..Self::text(text)
        }
    }

    /// Reads what follows the beginning of the body, so that the body is all there.
    ///
    /// # Errors
    /// The rest cannot be read.
    pub fn read_rest(&mut self) -> weft_view::Result<()> {
        if let Some(mut rest) = self.rest.take() {
            while let Some(piece) = rest.next()? {
                self.body.extend_from_slice(piece.as_bytes());
            }
        }
        Ok(())
    }

    fn kept(self, keep: u32) -> Self {
        Self { keep, ..self }
    }

    /// What a path that leads nowhere gets.
    pub fn bad_path(bad: &BadPath) -> Self {
        match bad {
            BadPath::NotFound => Self::error(404, "there is no such path, see /openapi.json"),
            BadPath::Method => Self::error(405, "this path does not take that method"),
            BadPath::Form(what) => Self::error(400, *what),
        }
    }
}

/// An answer, or the error it is instead.
type Outcome = Result<Answer, Answer>;

fn not_found(what: &str) -> Answer {
    Answer::error(404, format!("{what} not found"))
}

/// What everybody gets who comes before the index has the node's tip.
pub(crate) fn catching_up() -> Answer {
    Answer::error(503, "the index is still catching up with the chain")
}

/// What went wrong in words and a status.
fn failed(e: Error) -> Answer {
    match &e {
        Error::Wrong(_) => Answer::error(400, e.to_string()),
        Error::TooMany { .. } => Answer::error(422, e.to_string()),
        Error::NoNode | Error::Node(_) | Error::Bytes { .. } => Answer::error(503, e.to_string()),
        _ => {
            tracing::error!("a question failed: {e}");
            Answer::error(500, "the server's database failed")
        }
    }
}

/// Answers. `query` is what follows the question mark, `body` what was posted.
pub fn answer(view: &View, route: &Route, query: &str, body: &[u8]) -> Answer {
    respond(view, route, query, body).unwrap_or_else(|e| e)
}

fn respond(view: &View, route: &Route, query: &str, body: &[u8]) -> Outcome {
    if !view.caught_up() && *route != Route::OpenApi {
        return Err(catching_up());
    }
    match route {
        Route::Tx(_)
        | Route::TxStatus(_)
        | Route::TxHex(_)
        | Route::TxRaw(_)
        | Route::MerkleProof(_)
        | Route::MerkleBlock(_)
        | Route::Outspend(..)
        | Route::Outspends(_) => transaction(view, route),
        Route::Broadcast => broadcast(view, body),
        Route::Package => package(view, query, body),
        Route::Script(named) => script_stats(view, named),
        Route::ScriptTxs(named) => {
            let (_, script) = resolve(view, named)?;
            let list = view.read(|| {
                let mut list = pool_page(view, &script)?;
                list.extend(chain_page(view, &script, None)?);
                Ok(list)
            });
            Ok(Answer::json(&Value::Array(list.map_err(failed)?)))
        }
        Route::ScriptChain(named, last) => {
            let (_, script) = resolve(view, named)?;
            let list = view.read(|| chain_page(view, &script, last.as_ref()));
            let list = list.map_err(failed)?;
            Ok(Answer::json(&Value::Array(list)))
        }
        Route::ScriptMempool(named) => {
            let (_, script) = resolve(view, named)?;
            let list = view.read(|| pool_page(view, &script)).map_err(failed)?;
            Ok(Answer::json(&Value::Array(list)))
        }
        Route::ScriptUtxo(named) => unspents(view, named, query),
        Route::AddressPrefix(_) => Err(Answer::error(
            501,
            "addresses cannot be searched by their beginning: the index knows scripts by a hash",
        )),
        Route::Block(_)
        | Route::BlockHeader(_)
        | Route::BlockStatus(_)
        | Route::BlockTxs(..)
        | Route::BlockTxids(_)
        | Route::BlockTxid(..)
        | Route::BlockRaw(_) => block(view, route),
        Route::BlockHeight(height) => match view.header(*height).map_err(failed)? {
            Some(row) => Ok(Answer::text(hex(&row.hash)).kept(keep(view, *height)?)),
            None => Err(not_found("Block")),
        },
        Route::Blocks(from) => blocks(view, *from),
        Route::TipHeight => Ok(Answer::text(tip(view)?.0.to_string())),
        Route::TipHash => Ok(Answer::text(hex(&tip(view)?.1.hash))),
        Route::Mempool => {
            let pool = view.pool();
            Ok(Answer::json(&json!({
                "count": pool.len(),
                "vsize": pool.vsize(),
                "total_fee": pool.fees(),
                "fee_histogram": pool.fee_histogram(),
            })))
        }
        Route::MempoolTxids => {
            let ids: Value = view.pool().iter().map(|(id, _)| hex(id)).collect();
            Ok(Answer::json(&ids))
        }
        Route::MempoolRecent => {
            let recent = view.pool().recent().map(|tx| {
                json!({ "txid": hex(&tx.txid), "fee": tx.fee, "vsize": tx.vsize, "value": tx.value })
            }).collect();
            Ok(Answer::json(&Value::Array(recent)))
        }
        Route::FeeEstimates => {
            let mut out = Map::new();
            for target in TARGETS {
                let fee = view.estimate_fee(target, FeeMode::Unset).map_err(failed)?;
                // Whole coins for 1000 bytes to smallest units for one.
                if let Some(fee) = fee {
                    out.insert(target.to_string(), (fee * 1e5).into());
                }
            }
            Ok(Answer::json(&Value::Object(out)))
        }
        Route::OpenApi => Ok(Answer::new(JSON, crate::OPENAPI)),
        Route::Events | Route::WebSocket => Err(Answer::error(426, "this path is a stream")),
    }
}

fn tip(view: &View) -> Result<(u32, HeaderRow), Answer> {
    let tip = view.tip().map_err(failed)?;
    let tip = tip.ok_or_else(|| Answer::error(503, "the index has no block yet"))?;
    Ok((tip.height, tip.row))
}

/// How long caches may keep what belongs to the block at a height.
fn keep(view: &View, height: u32) -> Result<u32, Answer> {
    let deep = tip(view)?.0.saturating_sub(height) >= DEEP;
    Ok(if deep { 157_784_630 } else { 10 })
}

fn transaction(view: &View, route: &Route) -> Outcome {
    let lacking = || not_found("Transaction");
    match route {
        Route::TxStatus(txid) => {
            let place = view.place(txid).map_err(failed)?;
            Ok(Answer::json(&tx_json::status(place)))
        }
        Route::MerkleProof(txid) => {
            let proof = view
                .merkle_proof(txid, None)
                .map_err(failed)?
                .ok_or_else(lacking)?;
            let merkle: Value = proof.branch.iter().map(hex).collect();
            let body =
                json!({ "block_height": proof.height, "merkle": merkle, "pos": proof.index });
            Ok(Answer::json(&body).kept(keep(view, proof.height)?))
        }
        Route::MerkleBlock(txid) => {
            let proof = view.read(|| {
                let Some(at) = view.place(txid)? else {
                    return Ok(None);
                };
                let Some(row) = view.header(at.height)? else {
                    return Ok(None);
                };
                let ids = view.reader().block_txids(at.height)?.unwrap_or_default();
                Ok(Some(merkle_block(&row.header, &ids, at.index as usize)))
            });
            let proof = proof.map_err(failed)?.ok_or_else(lacking)?;
            Ok(Answer::text(bytes_hex(&proof)))
        }
        Route::Outspend(txid, vout) => {
            let at = OutPoint {
                txid: *txid,
                vout: *vout,
            };
            Ok(Answer::json(&outspend(view, &at)?))
        }
        Route::Outspends(txid) => {
            let found = view.tx(txid).map_err(failed)?.ok_or_else(lacking)?;
            let parts = weft_view::tx::Parts::parse(&found.raw)
                .map_err(|e| Answer::error(503, e.to_string()))?;
            let outputs = 0..parts.outputs.len() as u32;
            let list: Result<Vec<Value>, Answer> = outputs
                .map(|vout| outspend(view, &OutPoint { txid: *txid, vout }))
                .collect();
            Ok(Answer::json(&Value::Array(list?)))
        }
        Route::Tx(txid) | Route::TxHex(txid) | Route::TxRaw(txid) => {
            let found = view.tx(txid).map_err(failed)?.ok_or_else(lacking)?;
            let keep = match found.confirmed {
                Some(at) => keep(view, at.height)?,
                None => 0,
            };
            let answer = match route {
                Route::TxHex(_) => Answer::text(bytes_hex(&found.raw)),
                Route::TxRaw(_) => Answer::new(BYTES, found.raw.to_vec()),
                _ => Answer::json(&tx_json::transaction(view, txid, &found, true).map_err(failed)?),
            };
            Ok(answer.kept(keep))
        }
        _ => Err(lacking()),
    }
}

fn outspend(view: &View, at: &OutPoint) -> Result<Value, Answer> {
    Ok(match view.spender(at).map_err(failed)? {
        None => json!({ "spent": false }),
        Some(spender) => json!({
            "spent": true,
            "txid": hex(&spender.txid),
            "vin": spender.vin,
            "status": tx_json::status(spender.confirmed),
        }),
    })
}

fn broadcast(view: &View, body: &[u8]) -> Outcome {
    let text = std::str::from_utf8(body).unwrap_or_default().trim();
    let raw = unhex(text).filter(|raw| !raw.is_empty());
    let raw = raw.ok_or_else(|| {
        Answer::error(
            400,
            "the body should be a transaction in hexadecimal digits",
        )
    })?;
    match view.broadcast(&raw) {
        Ok(txid) => Ok(Answer::text(hex(&txid))),
        Err(e) => Err(refused("sendrawtransaction", e)),
    }
}

/// What a node said to something it did not take.
fn refused(method: &str, e: Error) -> Answer {
    match e.refusal() {
        Some((code, message)) => {
            let said = json!({ "code": code, "message": message });
            Answer::error(400, format!("{method} RPC error: {said}"))
        }
        None => failed(e),
    }
}

fn package(view: &View, query: &str, body: &[u8]) -> Outcome {
    let list: Vec<String> = serde_json::from_slice(body).unwrap_or_default();
    let raw: Option<Vec<Vec<u8>>> = list.iter().map(|text| unhex(text)).collect();
    let raw = raw.filter(|raw| (1..=MAX_PACKAGE).contains(&raw.len())).ok_or_else(|| {
        Answer::error(
            400,
            format!("the body should be a list of 1 to {MAX_PACKAGE} transactions in hexadecimal digits"),
        )
    })?;
    let limit = |name: &str| match parameter(query, name) {
        None => Ok(None),
        Some(text) => match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            _ => Err(Answer::error(400, format!("{name} should be a number"))),
        },
    };
    let limits = [limit("maxfeerate")?, limit("maxburnamount")?];
    match view.broadcast_package(&raw, limits) {
        Ok(result) => Ok(Answer::json(&result.answer)),
        Err(e) => Err(refused("submitpackage", e)),
    }
}

/// The value of a query's parameter, as it is written.
pub(crate) fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    query
        .split('&')
        .find_map(|pair| match pair.split_once('=') {
            Some((key, value)) => (key == name).then_some(value),
            None => (pair == name).then_some(""),
        })
}

/// The script a path names, and how it is shown.
fn resolve(view: &View, named: &Named) -> Result<((&'static str, String), Script), Answer> {
    match named {
        Named::Address(address) => {
            let script = view.script_of_address(address).map_err(failed)?;
            Ok((("address", address.clone()), script))
        }
        Named::Hash(hash) => Ok((("scripthash", bytes_hex(hash)), view.script(*hash))),
    }
}

fn script_stats(view: &View, named: &Named) -> Outcome {
    let ((kind, name), script) = resolve(view, named)?;
    let stats = view.stats(&script).map_err(failed)?;
    let sums = |sums: &Stats| {
        json!({
            "tx_count": sums.txs,
            "funded_txo_count": sums.funded,
            "funded_txo_sum": sums.funded_sum,
            "spent_txo_count": sums.spent,
            "spent_txo_sum": sums.spent_sum,
        })
    };
    let (chain, pool) = (sums(&stats.chain), sums(&stats.pool));
    Ok(Answer::json(
        &json!({ kind: name, "chain_stats": chain, "mempool_stats": pool }),
    ))
}

fn pool_page(view: &View, script: &Script) -> weft_view::Result<Vec<Value>> {
    let mut ids: Vec<(u64, Hash)> = {
        let pool = view.pool();
        let of_script = pool.of_script(&script.hash);
        of_script.map(|(txid, entry)| (entry.time, *txid)).collect()
    };
    ids.sort_unstable_by(|a, b| b.cmp(a));
    ids.truncate(POOL_PAGE);
    let mut out = Vec::with_capacity(ids.len());
    for (_, txid) in ids {
        if let Some(found) = view.tx(&txid)? {
            out.push(tx_json::transaction(view, &txid, &found, true)?);
        }
    }
    Ok(out)
}

fn chain_page(view: &View, script: &Script, last: Option<&Hash>) -> weft_view::Result<Vec<Value>> {
    let history = view.history(script)?;
    let end = match last {
        None => history.confirmed.len(),
        Some(last) => {
            let at = history
                .confirmed
                .iter()
                .rposition(|touched| touched.txid == *last);
            at.unwrap_or(0)
        }
    };
    let mut out = Vec::with_capacity(PAGE);
    for touched in history.confirmed[..end].iter().rev().take(PAGE) {
        if let Some(found) = view.tx(&touched.txid)? {
            out.push(tx_json::transaction(view, &touched.txid, &found, true)?);
        }
    }
    Ok(out)
}

fn unspents(view: &View, named: &Named, query: &str) -> Outcome {
    let (_, script) = resolve(view, named)?;
    let with_pool = match parameter(query, "mempool") {
        None | Some("true" | "1" | "") => true,
        Some("false" | "0") => false,
        Some(_) => return Err(Answer::error(400, "mempool should be true or false")),
    };
    let list = view.coins(&script, with_pool).map(CoinList::new);
    let mut list = list.map_err(failed)?;
    let first = list.next().map_err(failed)?.unwrap_or_default();
    let mut answer = Answer::new(JSON, first);
    if !list.ended() {
        list.check().map_err(failed)?;
        answer.rest = Some(Box::new(list));
    }
    Ok(answer)
}

fn blocks(view: &View, from: Option<u32>) -> Outcome {
    let tip = tip(view)?.0;
    let top = from.unwrap_or(tip).min(tip);
    let mut out = Vec::new();
    for height in (top.saturating_sub(BLOCKS - 1)..=top).rev() {
        if let Some(row) = view.header(height).map_err(failed)? {
            out.push(block_json::block(view, height, &row).map_err(failed)?);
        }
    }
    Ok(Answer::json(&Value::Array(out)))
}

fn block(view: &View, route: &Route) -> Outcome {
    let (Route::Block(hash)
    | Route::BlockHeader(hash)
    | Route::BlockStatus(hash)
    | Route::BlockTxs(hash, _)
    | Route::BlockTxids(hash)
    | Route::BlockTxid(hash, _)
    | Route::BlockRaw(hash)) = route
    else {
        return Err(not_found("Block"));
    };
    let found = view
        .reader()
        .header_by_hash(hash)
        .map_err(|e| failed(e.into()))?;
    let Some((height, row)) = found else {
        // The index keeps no block that left the chain, so it cannot tell it from one that never was.
        return match route {
            Route::BlockStatus(_) => Ok(Answer::json(&json!({ "in_best_chain": false }))),
            _ => Err(not_found("Block")),
        };
    };
    let ids = || {
        let ids = view
            .reader()
            .block_txids(height)
            .map_err(|e| failed(e.into()))?;
        Ok::<_, Answer>(ids.unwrap_or_default())
    };
    let answer = match route {
        Route::Block(_) => Answer::json(&block_json::block(view, height, &row).map_err(failed)?),
        Route::BlockHeader(_) => Answer::text(bytes_hex(&row.header.to_bytes())),
        Route::BlockStatus(_) => {
            let next = view.header(height + 1).map_err(failed)?;
            let next = next.map(|row| hex(&row.hash));
            let body = json!({ "in_best_chain": true, "height": height, "next_best": next });
            return Ok(Answer::json(&body));
        }
        Route::BlockTxids(_) => Answer::json(&ids()?.iter().map(hex).collect()),
        Route::BlockTxid(_, index) => match ids()?.get(*index as usize) {
            Some(txid) => Answer::text(hex(txid)),
            None => return Err(not_found("Transaction")),
        },
        Route::BlockRaw(_) => Answer::new(BYTES, view.block_bytes(hash).map_err(failed)?),
        Route::BlockTxs(_, start) => {
            if !(*start as usize).is_multiple_of(PAGE) {
                let text = format!("the first transaction should be a multiple of {PAGE}");
                return Err(Answer::error(400, text));
            }
            let ids = ids()?;
            let page = ids.get(*start as usize..).filter(|page| !page.is_empty());
            let page = page.ok_or_else(|| not_found("Transaction"))?;
            let mut list = Vec::with_capacity(PAGE);
            for txid in page.iter().take(PAGE) {
                let found = view.tx(txid).map_err(failed)?;
                let found = found.ok_or_else(|| not_found("Transaction"))?;
                list.push(tx_json::transaction(view, txid, &found, true).map_err(failed)?);
            }
            Answer::json(&Value::Array(list))
        }
        _ => return Err(not_found("Block")),
    };
    Ok(answer.kept(keep(view, height)?))
}

/// A script as a stream's client names it: an address, or a script hash as this interface has it.
pub(crate) fn script_by_name(view: &View, name: &str) -> Option<Script> {
    if let Some(mut hash) = from_hex(name) {
        hash.reverse();
        return Some(view.script(hash));
    }
    view.script_of_address(name).ok()
}
