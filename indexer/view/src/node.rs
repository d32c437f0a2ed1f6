//! What only a node knows or does: fee estimates, relay fees, broadcasting.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use weft_chain::Hash;
use weft_chain::hash::from_hex;
use weft_source::Source;
use weft_source::rpc::{Rpc, RpcClient};

use crate::script::hex;
use crate::{Error, Result, View, lock};

/// How long a fee estimate is kept.
const KEEP: Duration = Duration::from_secs(30);
/// Most kinds of estimate kept.
const MAX_KEPT: usize = 4096;

/// Ways to the node.
#[derive(Debug, Clone, Default)]
pub(crate) struct Access {
    pub(crate) source: Option<Arc<dyn Source>>,
    pub(crate) rpc: Option<Arc<Rpc>>,
}

#[derive(Debug, Default)]
pub(crate) struct FeeCache {
    estimates: HashMap<(u16, FeeMode), (Instant, Option<f64>)>,
    relay: Option<(Instant, RelayFees)>,
}

/// How careful an estimate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum FeeMode {
    /// The node's own default.
    #[default]
    Unset,
    /// `ECONOMICAL`.
    Economical,
    /// `CONSERVATIVE`.
    Conservative,
}

impl FeeMode {
    /// By the node's name for it.
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_uppercase().as_str() {
            "UNSET" => Some(Self::Unset),
            "ECONOMICAL" => Some(Self::Economical),
            "CONSERVATIVE" => Some(Self::Conservative),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unset => "UNSET",
            Self::Economical => "ECONOMICAL",
            Self::Conservative => "CONSERVATIVE",
        }
    }
}

/// Least fees, whole coins for 1000 virtual bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct RelayFees {
    /// To enter the pool as full as it is.
    pub mempool_min: f64,
    /// To be relayed at all.
    pub min_relay: f64,
    /// A replacement must add.
    pub incremental: f64,
}

/// What a node said to a package.
#[derive(Debug, Clone, PartialEq)]
pub struct PackageResult {
    /// Whether all of it is in the pool.
    pub accepted: bool,
    /// Transaction id, as shown, and what is wrong with it.
    pub errors: Vec<(String, String)>,
    /// The node's whole answer.
    pub answer: Value,
}

impl View {
    /// Connects a node, in place of the one before.
    pub fn set_node(&self, source: Arc<dyn Source>, rpc: Option<Arc<Rpc>>) {
        let access = Access {
            source: Some(source),
            rpc,
        };
        *self.0.node.write().unwrap_or_else(PoisonError::into_inner) = access;
    }

    /// The node's RPC, where there is one.
    pub fn rpc(&self) -> Option<Arc<Rpc>> {
        let node = self.0.node.read().unwrap_or_else(PoisonError::into_inner);
        node.rpc.clone()
    }

    fn with_node<T>(&self, ask: impl FnOnce(&RpcClient) -> Result<T>) -> Result<T> {
        ask(self.rpc().ok_or(Error::NoNode)?.client())
    }

    /// Fee to be confirmed within `blocks`, whole coins for 1000 virtual bytes; `None` if the node
    /// cannot tell, or there is none.
    pub fn estimate_fee(&self, blocks: u16, mode: FeeMode) -> Result<Option<f64>> {
        let key = (blocks.clamp(1, 1008), mode);
        if let Some((at, kept)) = lock(&self.0.fees).estimates.get(&key)
            && at.elapsed() < KEEP
        {
            return Ok(*kept);
        }
        let Some(rpc) = self.rpc() else {
            return Ok(None);
        };
        let params = match mode {
            FeeMode::Unset => json!([key.0]),
            mode => json!([key.0, mode.name()]),
        };
        let answer: Value = rpc.client().call("estimatesmartfee", params)?;
        let fee = answer.get("feerate").and_then(Value::as_f64);
        let mut fees = lock(&self.0.fees);
        if fees.estimates.len() >= MAX_KEPT {
            fees.estimates.clear();
        }
        fees.estimates.insert(key, (Instant::now(), fee));
        Ok(fee)
    }

    /// The node's least fees.
    pub fn relay_fees(&self) -> Result<RelayFees> {
        if let Some((at, kept)) = &lock(&self.0.fees).relay
            && at.elapsed() < KEEP
        {
            return Ok(*kept);
        }
        let fees = self.with_node(|client| {
            let pool: Value = client.call("getmempoolinfo", json!([]))?;
            let fee = |of: &Value, name: &str| of.get(name).and_then(Value::as_f64);
            let incremental = match fee(&pool, "incrementalrelayfee") {
                Some(fee) => fee,
                None => {
                    let network: Value = client.call("getnetworkinfo", json!([]))?;
                    fee(&network, "incrementalfee").unwrap_or(0.0)
                }
            };
            Ok(RelayFees {
                mempool_min: fee(&pool, "mempoolminfee").unwrap_or(0.0),
                min_relay: fee(&pool, "minrelaytxfee").unwrap_or(0.0),
                incremental,
            })
        })?;
        lock(&self.0.fees).relay = Some((Instant::now(), fees));
        Ok(fees)
    }

    /// Gives a transaction to the node.
    ///
    /// # Errors
    /// The node refuses it, see [`Error::refusal`]; there is no node.
    pub fn broadcast(&self, raw: &[u8]) -> Result<Hash> {
        self.with_node(|client| {
            let answer: String = client.call("sendrawtransaction", json!([hex(raw)]))?;
            self.nudge();
            from_hex(&answer).ok_or_else(|| Error::Wrong("the node gave no id back".to_owned()))
        })
    }

    /// Gives transactions to the node that are to be judged together, parents first. `limits` are
    /// the greatest fee rate and burnt amount, whole coins, as the node takes them.
    pub fn broadcast_package(
        &self,
        raw: &[Vec<u8>],
        limits: [Option<f64>; 2],
    ) -> Result<PackageResult> {
        let raw: Vec<String> = raw.iter().map(|raw| hex(raw)).collect();
        let params = match limits {
            [None, None] => json!([raw]),
            [rate, None] => json!([raw, rate]),
            [rate, burnt] => json!([raw, rate, burnt]),
        };
        let answer: Value = self.with_node(|client| Ok(client.call("submitpackage", params)?))?;
        self.nudge();
        let results = answer.get("tx-results").and_then(Value::as_object);
        let errors = results.into_iter().flatten().filter_map(|(wtxid, result)| {
            let error = result.get("error")?.as_str()?.to_owned();
            let txid = result.get("txid").and_then(Value::as_str).unwrap_or(wtxid);
            Some((txid.to_owned(), error))
        });
        Ok(PackageResult {
            accepted: answer.get("package_msg").and_then(Value::as_str) == Some("success"),
            errors: errors.collect(),
            answer: answer.clone(),
        })
    }
}
