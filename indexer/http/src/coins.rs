//! The coins of a script as JSON, in pieces.

use std::fmt::Write;

use weft_chain::hash::hex;
use weft_view::{Coins, Result};

use crate::tx_json;

/// Coins in a piece: some 60 KB of text.
const PIECE: usize = 250;

/// The text of a list of coins, of which a part is there at a time.
#[derive(Debug)]
pub struct CoinList {
    coins: Coins,
    /// Height and status of the last coin's block, which the next one mostly shares.
    status: Option<(Option<u32>, String)>,
    begun: bool,
    ended: bool,
}

impl CoinList {
    pub(crate) fn new(coins: Coins) -> Self {
        Self {
            coins,
            status: None,
            begun: false,
            ended: false,
        }
    }

    /// The next piece of the text; `None` after the last.
    pub(crate) fn next(&mut self) -> Result<Option<String>> {
        if self.ended {
            return Ok(None);
        }
        let mut out = String::new();
        for coin in self.coins.next(PIECE)? {
            out.push(if self.begun { ',' } else { '[' });
            self.begun = true;
            let height = coin.txnum.map(|txnum| txnum.height());
            if self.status.as_ref().is_none_or(|(of, _)| *of != height) {
                let status = tx_json::status(self.coins.confirmed(&coin)?);
                self.status = Some((height, status.to_string()));
            }
            let status = self.status.as_ref().map_or("null", |(_, text)| text);
            let (txid, vout) = (hex(&coin.outpoint.txid), coin.outpoint.vout);
            let value = coin.value;
            // Writing to memory cannot fail.
            let _ = write!(
                out,
                r#"{{"txid":"{txid}","vout":{vout},"status":{status},"value":{value}}}"#
            );
        }
        if self.coins.at_end() {
            self.ended = true;
            out.push_str(if self.begun { "]" } else { "[]" });
        }
        Ok(Some(out))
    }

    /// Whether the last piece is out.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Refuses what has more coins than the bound.
    pub(crate) fn check(&self) -> Result<()> {
        self.coins.count().map(drop)
    }
}
