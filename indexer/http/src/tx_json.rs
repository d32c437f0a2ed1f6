//! A transaction as Esplora shows it.

use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::chains::Params;
use weft_chain::hash::hex;
use weft_view::script::{self, Kind, hex as bytes_hex};
use weft_view::tx::{Parts, TxInput};
use weft_view::{Confirmed, Error, Result, TxFound, View};

/// All of it; `with_status` as long as it is not one of a block's list.
pub(crate) fn transaction(
    view: &View,
    txid: &Hash,
    found: &TxFound,
    with_status: bool,
) -> Result<Value> {
    let parts = Parts::parse(&found.raw).map_err(|e| Error::Bytes {
        txid: hex(txid),
        why: e.to_string(),
    })?;
    let params = view.chain().params();
    let (mut had, mut known) = (0u64, true);
    let mut inputs = Vec::with_capacity(parts.inputs.len());
    for input in &parts.inputs {
        let prevout = if input.prevout.is_null() {
            None
        } else {
            view.output(&input.prevout)?
        };
        match &prevout {
            Some((value, _)) => had = had.saturating_add(*value),
            None => known = false,
        }
        inputs.push(input_json(params, &parts, input, prevout));
    }
    let outputs: Vec<Value> = parts
        .outputs
        .iter()
        .map(|o| output_json(params, o.value, parts.at(&o.script)))
        .collect();
    let paid = parts
        .outputs
        .iter()
        .map(|o| o.value)
        .fold(0, u64::saturating_add);
    let fee = match (known, found.fee) {
        (_, Some(fee)) => fee,
        (true, None) => had.saturating_sub(paid),
        (false, None) => 0,
    };
    let mut out = json!({
        "txid": hex(txid),
        "version": parts.version,
        "locktime": parts.lock_time,
        "vin": inputs,
        "vout": outputs,
        "size": parts.raw.len(),
        "weight": parts.weight(),
        "fee": fee,
    });
    if with_status {
        out["status"] = status(found.confirmed);
    }
    Ok(out)
}

/// Where a transaction is confirmed.
pub(crate) fn status(confirmed: Option<Confirmed>) -> Value {
    match confirmed {
        None => json!({ "confirmed": false }),
        Some(at) => json!({
            "confirmed": true,
            "block_height": at.height,
            "block_hash": hex(&at.block),
            "block_time": at.time,
        }),
    }
}

fn input_json(
    params: &Params,
    parts: &Parts<'_>,
    input: &TxInput,
    prevout: Option<(u64, Vec<u8>)>,
) -> Value {
    let bytes = parts.at(&input.script);
    let mut out = json!({
        "txid": hex(&input.prevout.txid),
        "vout": input.prevout.vout,
        "prevout": prevout.as_ref().map(|(value, script)| output_json(params, *value, script)),
        "scriptsig": bytes_hex(bytes),
        "scriptsig_asm": script::asm(bytes),
        "is_coinbase": input.prevout.is_null(),
        "sequence": input.sequence,
    });
    if !input.witness.is_empty() {
        out["witness"] = input
            .witness
            .iter()
            .map(|item| bytes_hex(parts.at(item)))
            .collect();
    }
    let Some((_, spent)) = prevout else {
        return out;
    };
    let redeem = match Kind::of(&spent) {
        Kind::P2sh => script::redeem_script(bytes),
        _ => None,
    };
    let holds_script = |script: &[u8]| Kind::of(script) == Kind::P2wsh;
    if holds_script(&spent) || redeem.as_deref().is_some_and(holds_script) {
        let inner = input.witness.last().map(|item| script::asm(parts.at(item)));
        out["inner_witnessscript_asm"] = inner.into();
    }
    if let Some(redeem) = redeem {
        out["inner_redeemscript_asm"] = script::asm(&redeem).into();
    }
    out
}

fn output_json(params: &Params, value: u64, bytes: &[u8]) -> Value {
    let mut out = json!({
        "scriptpubkey": bytes_hex(bytes),
        "scriptpubkey_asm": script::asm(bytes),
        "scriptpubkey_type": Kind::of(bytes).esplora(),
        "value": value,
    });
    if let Some(address) = script::address_of(params, bytes) {
        out["scriptpubkey_address"] = address.into();
    }
    out
}
