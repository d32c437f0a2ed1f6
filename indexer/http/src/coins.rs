//! The coins of a script as JSON, in pieces.

use serde_json::json;
use weft_chain::hash::hex;
use weft_view::{Coins, Result};

use crate::tx_json;

/// Coins in a piece: some 60 KB of text.
const PIECE: usize = 250;

/// The text of a list of coins, of which a part is there at a time.
#[derive(Debug)]
pub struct CoinList {
    coins: Coins,
    begun: bool,
    ended: bool,
}

impl CoinList {
    pub(crate) fn new(coins: Coins) -> Self {
        Self {
            coins,
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
            let confirmed = self.coins.confirmed(&coin)?;
            let coin = json!({
                "txid": hex(&coin.outpoint.txid),
                "vout": coin.outpoint.vout,
                "status": tx_json::status(confirmed),
                "value": coin.value,
            });
            out.push_str(&coin.to_string());
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
