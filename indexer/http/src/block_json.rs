//! A block as Esplora shows it.

use serde_json::{Value, json};
use weft_chain::hash::{ZERO, hex};
use weft_store::HeaderRow;
use weft_view::{Result, View};

/// Blocks whose times make the median.
const MEDIAN: u32 = 11;

/// The block at a height.
pub(crate) fn block(view: &View, height: u32, row: &HeaderRow) -> Result<Value> {
    let header = &row.header;
    let before = match height.checked_sub(1) {
        Some(below) => view.header(below)?.map_or(0, |row| row.totals.txs),
        None => 0,
    };
    let mut times = Vec::with_capacity(MEDIAN as usize);
    for at in height.saturating_sub(MEDIAN - 1)..=height {
        times.extend(view.header(at)?.map(|row| row.header.time));
    }
    times.sort_unstable();
    Ok(json!({
        "id": hex(&row.hash),
        "height": height,
        "version": header.version,
        "timestamp": header.time,
        "tx_count": row.totals.txs.saturating_sub(before),
        "size": row.size,
        "weight": row.weight,
        "merkle_root": hex(&header.merkle_root),
        "previousblockhash": (header.prev != ZERO).then(|| hex(&header.prev)),
        "mediantime": times.get(times.len() / 2),
        "nonce": header.nonce,
        "bits": header.bits,
        "difficulty": difficulty(header.bits),
    }))
}

/// How many times harder than the easiest target of Bitcoin's main network.
fn difficulty(bits: u32) -> f64 {
    let mantissa = f64::from(bits & 0x00ff_ffff);
    if mantissa == 0.0 {
        return 0.0;
    }
    let shift = (bits >> 24) as i32;
    f64::from(0xffff) / mantissa * 256f64.powi(29 - shift)
}

#[cfg(test)]
mod tests {
    #[test]
    fn known_difficulties() {
        let round = |bits| (super::difficulty(bits) * 100.0).round() / 100.0;
        assert_eq!(round(0x1d00_ffff), 1.0);
        assert_eq!(round(0x1b04_04cb), 16307.42);
        assert_eq!(super::difficulty(0), 0.0);
    }
}
