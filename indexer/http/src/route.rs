//! Paths of the Esplora interface, read without a server.
//!
//! The same paths are served with `/api` in front, as public instances have them.

use weft_chain::Hash;
use weft_chain::hash::from_hex;

/// Every path there is, as OpenAPI writes it, with its method: what `openapi.json` describes.
pub const ROUTES: &[(&str, &str)] = &[
    ("get", "/tx/{txid}"),
    ("get", "/tx/{txid}/status"),
    ("get", "/tx/{txid}/hex"),
    ("get", "/tx/{txid}/raw"),
    ("get", "/tx/{txid}/merkle-proof"),
    ("get", "/tx/{txid}/merkleblock-proof"),
    ("get", "/tx/{txid}/outspend/{vout}"),
    ("get", "/tx/{txid}/outspends"),
    ("post", "/tx"),
    ("post", "/txs/package"),
    ("get", "/address/{address}"),
    ("get", "/address/{address}/txs"),
    ("get", "/address/{address}/txs/chain"),
    ("get", "/address/{address}/txs/chain/{last_seen}"),
    ("get", "/address/{address}/txs/mempool"),
    ("get", "/address/{address}/utxo"),
    ("get", "/scripthash/{hash}"),
    ("get", "/scripthash/{hash}/txs"),
    ("get", "/scripthash/{hash}/txs/chain"),
    ("get", "/scripthash/{hash}/txs/chain/{last_seen}"),
    ("get", "/scripthash/{hash}/txs/mempool"),
    ("get", "/scripthash/{hash}/utxo"),
    ("get", "/address-prefix/{prefix}"),
    ("get", "/block/{hash}"),
    ("get", "/block/{hash}/header"),
    ("get", "/block/{hash}/status"),
    ("get", "/block/{hash}/txs"),
    ("get", "/block/{hash}/txs/{start}"),
    ("get", "/block/{hash}/txids"),
    ("get", "/block/{hash}/txid/{index}"),
    ("get", "/block/{hash}/raw"),
    ("get", "/block-height/{height}"),
    ("get", "/blocks"),
    ("get", "/blocks/{height}"),
    ("get", "/blocks/tip/height"),
    ("get", "/blocks/tip/hash"),
    ("get", "/mempool"),
    ("get", "/mempool/txids"),
    ("get", "/mempool/recent"),
    ("get", "/fee-estimates"),
    ("get", "/openapi.json"),
    ("get", "/v1/events"),
    ("get", "/v1/ws"),
];

/// Longest path looked at.
const MAX_PATH: usize = 512;

/// A script as a path names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Named {
    /// By an address.
    Address(String),
    /// By its SHA-256.
    Hash(Hash),
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// A transaction.
    Tx(Hash),
    /// Where it is confirmed.
    TxStatus(Hash),
    /// Its bytes in hexadecimal digits.
    TxHex(Hash),
    /// Its bytes.
    TxRaw(Hash),
    /// Merkle branch as the Electrum protocol gives it.
    MerkleProof(Hash),
    /// Merkle branch as nodes give it.
    MerkleBlock(Hash),
    /// Who spends one output.
    Outspend(Hash, u32),
    /// Who spends each output.
    Outspends(Hash),
    /// Give a transaction to the node.
    Broadcast,
    /// Give several to the node that belong together.
    Package,
    /// Sums of a script.
    Script(Named),
    /// Its youngest transactions, unconfirmed ones first.
    ScriptTxs(Named),
    /// Its confirmed transactions, the youngest first, after one.
    ScriptChain(Named, Option<Hash>),
    /// Its unconfirmed transactions.
    ScriptMempool(Named),
    /// Its coins.
    ScriptUtxo(Named),
    /// Addresses that begin like this.
    AddressPrefix(String),
    /// A block.
    Block(Hash),
    /// Its header.
    BlockHeader(Hash),
    /// Whether it is on the chain.
    BlockStatus(Hash),
    /// Some of its transactions.
    BlockTxs(Hash, u32),
    /// Ids of its transactions.
    BlockTxids(Hash),
    /// One of the ids.
    BlockTxid(Hash, u32),
    /// Its bytes.
    BlockRaw(Hash),
    /// Hash of the block at a height.
    BlockHeight(u32),
    /// Ten blocks from a height, or the tip, down.
    Blocks(Option<u32>),
    /// Height of the tip.
    TipHeight,
    /// Hash of the tip.
    TipHash,
    /// Sums of the pool.
    Mempool,
    /// Ids of the pool.
    MempoolTxids,
    /// The last that came.
    MempoolRecent,
    /// Fees by the number of blocks.
    FeeEstimates,
    /// Description of this interface.
    OpenApi,
    /// The stream of changes, by SSE.
    Events,
    /// The stream of changes, by WebSocket.
    WebSocket,
}

/// Why a path leads nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadPath {
    /// There is no such path.
    NotFound,
    /// It is there for another method.
    Method,
    /// Something in it is not of the form it must have.
    Form(&'static str),
}

/// Reads method and path, without the query.
pub fn parse(method: &str, path: &str) -> Result<Route, BadPath> {
    if path.len() > MAX_PATH {
        return Err(BadPath::NotFound);
    }
    let path = path
        .strip_prefix("/api")
        .filter(|rest| rest.starts_with('/'))
        .unwrap_or(path);
    let path = path.strip_prefix('/').ok_or(BadPath::NotFound)?;
    let parts: Vec<&str> = path.strip_suffix('/').unwrap_or(path).split('/').collect();
    let route = match parts.as_slice() {
        ["tx"] | ["txs", "package"] => {
            return match (method, parts.len()) {
                ("POST", 1) => Ok(Route::Broadcast),
                ("POST", _) => Ok(Route::Package),
                _ => Err(BadPath::Method),
            };
        }
        ["tx", id] => Route::Tx(txid(id)?),
        ["tx", id, "status"] => Route::TxStatus(txid(id)?),
        ["tx", id, "hex"] => Route::TxHex(txid(id)?),
        ["tx", id, "raw"] => Route::TxRaw(txid(id)?),
        ["tx", id, "merkle-proof"] => Route::MerkleProof(txid(id)?),
        ["tx", id, "merkleblock-proof"] => Route::MerkleBlock(txid(id)?),
        ["tx", id, "outspend", vout] => Route::Outspend(txid(id)?, number(vout)?),
        ["tx", id, "outspends"] => Route::Outspends(txid(id)?),
        [kind @ ("address" | "scripthash"), name, rest @ ..] => {
            let named = named(kind, name)?;
            match rest {
                [] => Route::Script(named),
                ["txs"] => Route::ScriptTxs(named),
                ["txs", "chain"] => Route::ScriptChain(named, None),
                ["txs", "chain", last] => Route::ScriptChain(named, Some(txid(last)?)),
                ["txs", "mempool"] => Route::ScriptMempool(named),
                ["utxo"] => Route::ScriptUtxo(named),
                _ => return Err(BadPath::NotFound),
            }
        }
        ["address-prefix", prefix] if is_word(prefix) => Route::AddressPrefix((*prefix).to_owned()),
        ["block", hash] => Route::Block(block(hash)?),
        ["block", hash, "header"] => Route::BlockHeader(block(hash)?),
        ["block", hash, "status"] => Route::BlockStatus(block(hash)?),
        ["block", hash, "txs"] => Route::BlockTxs(block(hash)?, 0),
        ["block", hash, "txs", start] => Route::BlockTxs(block(hash)?, number(start)?),
        ["block", hash, "txids"] => Route::BlockTxids(block(hash)?),
        ["block", hash, "txid", index] => Route::BlockTxid(block(hash)?, number(index)?),
        ["block", hash, "raw"] => Route::BlockRaw(block(hash)?),
        ["block-height", height] => Route::BlockHeight(number(height)?),
        ["blocks"] => Route::Blocks(None),
        ["blocks", "tip", "height"] => Route::TipHeight,
        ["blocks", "tip", "hash"] => Route::TipHash,
        ["blocks", height] => Route::Blocks(Some(number(height)?)),
        ["mempool"] => Route::Mempool,
        ["mempool", "txids"] => Route::MempoolTxids,
        ["mempool", "recent"] => Route::MempoolRecent,
        ["fee-estimates"] => Route::FeeEstimates,
        ["openapi.json"] => Route::OpenApi,
        ["v1", "events"] => Route::Events,
        ["v1", "ws"] => Route::WebSocket,
        _ => return Err(BadPath::NotFound),
    };
    match method {
        "GET" | "HEAD" => Ok(route),
        _ => Err(BadPath::Method),
    }
}

fn txid(text: &str) -> Result<Hash, BadPath> {
    from_hex(text).ok_or(BadPath::Form("a transaction id has 64 hexadecimal digits"))
}

fn block(text: &str) -> Result<Hash, BadPath> {
    from_hex(text).ok_or(BadPath::Form("a block hash has 64 hexadecimal digits"))
}

fn number(text: &str) -> Result<u32, BadPath> {
    let digits = text.bytes().all(|b| b.is_ascii_digit());
    let number = digits.then(|| text.parse().ok()).flatten();
    number.ok_or(BadPath::Form("a number is expected"))
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && text.len() <= 100 && text.bytes().all(|b| b.is_ascii_alphanumeric())
}

fn named(kind: &str, name: &str) -> Result<Named, BadPath> {
    if kind == "address" {
        return match is_word(name) {
            true => Ok(Named::Address(name.to_owned())),
            false => Err(BadPath::Form("an address is made of letters and digits")),
        };
    }
    // Unlike ids, Esplora's script hashes are not reversed.
    let mut hash =
        from_hex(name).ok_or(BadPath::Form("a script hash has 64 hexadecimal digits"))?;
    hash.reverse();
    Ok(Named::Hash(hash))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every template leads somewhere, by its method only, with and without `/api`.
    #[test]
    fn all_templates_are_read() {
        let id = "ab".repeat(32);
        for (method, template) in ROUTES {
            let path = template
                .replace("{txid}", &id)
                .replace("{hash}", &id)
                .replace("{last_seen}", &id)
                .replace("{address}", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa")
                .replace("{prefix}", "1A1z")
                .replace("{vout}", "3")
                .replace("{start}", "25")
                .replace("{index}", "3")
                .replace("{height}", "3");
            assert!(!path.contains('{'), "{path}");
            let (upper, other) = (
                method.to_uppercase(),
                if *method == "get" { "POST" } else { "GET" },
            );
            let route = parse(&upper, &path).unwrap_or_else(|e| panic!("{path}: {e:?}"));
            assert_eq!(parse(&upper, &format!("/api{path}")), Ok(route.clone()));
            assert_eq!(parse(&upper, &format!("{path}/")), Ok(route));
            assert_eq!(parse(other, &path), Err(BadPath::Method), "{path}");
        }
    }

    #[test]
    fn what_is_no_path() {
        let id = "ab".repeat(32);
        for path in [
            "",
            "/",
            "/tx/",
            "tx",
            "/api",
            "/apix",
            "/tx/1/2/3",
            "/address/a/b",
            "/blocks/tip",
            "/v1",
            "/nothing",
        ] {
            assert!(parse("GET", path).is_err(), "{path}");
        }
        for path in [
            format!("/tx/{}", &id[1..]),
            format!("/tx/{id}/outspend/-1"),
            format!("/tx/{id}/outspend/4294967296"),
            "/block-height/0x10".into(),
            "/block-height/+1".into(),
            "/address/a%20b".into(),
            "/scripthash/zz".into(),
            "/block/é".into(),
        ] {
            assert!(
                matches!(parse("GET", &path), Err(BadPath::Form(_))),
                "{path}"
            );
        }
        assert_eq!(parse("GET", &"/tx/1".repeat(1000)), Err(BadPath::NotFound));
    }

    proptest! {
        #[test]
        fn any_path_is_answered(method in "GET|POST|PUT", path: String) {
            let _ = parse(&method, &path);
        }

        #[test]
        fn likely_paths_are_answered(parts in prop::collection::vec("tx|block|blocks|address|scripthash|txs|chain|tip|[0-9a-f]{64}|[0-9]{1,11}|mempool|utxo|", 0..7)) {
            let _ = parse("GET", &format!("/{}", parts.join("/")));
        }
    }
}
