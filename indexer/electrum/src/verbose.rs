//! A transaction as nodes show it in full.

use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::hash::hex;
use weft_view::script::{self, Kind, hex as bytes_hex};
use weft_view::tx::Parts;
use weft_view::{Error, Result, TxFound, View};

/// The fields of `getrawtransaction` with `verbose`.
pub(crate) fn transaction(view: &View, txid: &Hash, found: &TxFound) -> Result<Value> {
    let parts = Parts::parse(&found.raw).map_err(|e| Error::Bytes {
        txid: hex(txid),
        why: e.to_string(),
    })?;
    let weight = parts.weight();
    let params = view.chain().params();
    let inputs: Vec<Value> = parts
        .inputs
        .iter()
        .map(|input| {
            let script = parts.at(&input.script);
            let mut out = if input.prevout.is_null() {
                json!({ "coinbase": bytes_hex(script) })
            } else {
                json!({
                    "txid": hex(&input.prevout.txid),
                    "vout": input.prevout.vout,
                    "scriptSig": { "asm": script::node_asm(script), "hex": bytes_hex(script) },
                })
            };
            if !input.witness.is_empty() {
                out["txinwitness"] = input
                    .witness
                    .iter()
                    .map(|item| bytes_hex(parts.at(item)))
                    .collect();
            }
            out["sequence"] = input.sequence.into();
            out
        })
        .collect();
    let outputs: Vec<Value> = (0u32..)
        .zip(&parts.outputs)
        .map(|(n, output)| {
            let bytes = parts.at(&output.script);
            let mut script = json!({
                "asm": script::node_asm(bytes),
                "hex": bytes_hex(bytes),
                "type": Kind::of(bytes).node(),
            });
            if let Some(address) = script::address_of(params, bytes) {
                script["address"] = address.into();
            }
            json!({ "value": coins(output.value), "n": n, "scriptPubKey": script })
        })
        .collect();
    let mut out = json!({
        "txid": hex(txid),
        "hash": hex(&parts.wtxid()),
        "version": parts.version,
        "size": parts.raw.len(),
        "vsize": weight.div_ceil(4),
        "weight": weight,
        "locktime": parts.lock_time,
        "vin": inputs,
        "vout": outputs,
        "hex": bytes_hex(parts.raw),
    });
    if let Some(at) = found.confirmed {
        let tip = view.tip()?.map_or(at.height, |tip| tip.height);
        out["blockhash"] = hex(&at.block).into();
        out["confirmations"] = (u64::from(tip.saturating_sub(at.height)) + 1).into();
        out["time"] = at.time.into();
        out["blocktime"] = at.time.into();
    }
    Ok(out)
}

/// Whole coins, which nodes show as a decimal.
fn coins(value: u64) -> Value {
    (value as f64 / 1e8).into()
}
