//! Other people's clients (`bdk_electrum`, `bdk_esplora` and what they stand on) against our
//! servers, on Bitcoin Core's regtest chain with every kind of output script: what they get is
//! what Core said.

#[path = "../../source/tests/common/mod.rs"]
mod node;
#[allow(dead_code, reason = "each test program uses its part")]
mod wallet_clients;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bdk_electrum::BdkElectrumClient;
use bdk_electrum::bdk_core::bitcoin::{OutPoint, ScriptBuf, Txid, hex::FromHex};
use bdk_electrum::bdk_core::spk_client::{SyncRequest, SyncResponse};
use bdk_electrum::bdk_core::{BlockId, CheckPoint};
use bdk_electrum::electrum_client::{Client, ElectrumApi};
use bdk_esplora::{EsploraExt, esplora_client};
use serde_json::Value;
use wallet_clients::Service;

/// Outpoint, amount, height.
type Coins = BTreeSet<(OutPoint, u64, u64)>;

struct Chain {
    service: Service,
    expected: Value,
    _node: tempfile::TempDir,
}

impl Chain {
    fn new(test: &str) -> Option<Self> {
        let data = node::data(test, "core-regtest-reorg")?;
        let dir = tempfile::tempdir().expect("a folder");
        let blocks = dir.path().join("regtest/blocks");
        std::fs::create_dir_all(&blocks).expect("a folder");
        for name in ["blk00000.dat", "xor.dat"] {
            copy(&data.join(name), &blocks.join(name));
        }
        let expected = std::fs::read(data.join("expected.json")).expect("a file");
        let node = format!(
            "datadir = {:?}\nrpc = \"127.0.0.1:1\"\nsource = \"files\"",
            dir.path()
        );
        let mut service = Service::with("bitcoin-regtest", &node);
        service.start();
        Some(Self {
            service,
            expected: serde_json::from_slice(&expected).expect("JSON"),
            _node: dir,
        })
    }

    fn electrum(&self) -> Client {
        let place = self.service.place("electrum", "tcp").expect("it listens");
        Client::new(&format!("tcp://{place}")).expect("it connects")
    }

    fn esplora(&self) -> esplora_client::BlockingClient {
        let place = self.service.place("http", "tcp").expect("it listens");
        esplora_client::Builder::new(&format!("http://{place}/api")).build_blocking()
    }

    /// Coins of each script by Core's `scantxoutset`.
    fn scanned(&self) -> BTreeMap<ScriptBuf, Coins> {
        let mut out: BTreeMap<ScriptBuf, Coins> = BTreeMap::new();
        for coin in self.expected["scan"]["unspents"]
            .as_array()
            .expect("a list")
        {
            let at = OutPoint::new(
                coin["txid"].as_str().expect("id").parse().expect("id"),
                coin["vout"].as_u64().expect("n") as u32,
            );
            let value = (coin["amount"].as_f64().expect("n") * 1e8).round() as u64;
            let script = ScriptBuf::from_hex(coin["scriptPubKey"].as_str().expect("hex"));
            let coins = out.entry(script.expect("hex")).or_default();
            coins.insert((at, value, coin["height"].as_u64().expect("n")));
        }
        out
    }

    /// All kinds of script there are, by name.
    fn kinds(&self) -> Vec<(String, ScriptBuf, Value)> {
        let scripts = self.expected["scripts"].as_object().expect("an object");
        let script = |text: &str| match text.split_once("...x") {
            // Long ones are abbreviated: their filling is the last byte that is shown.
            Some((head, len)) => {
                let mut bytes = Vec::<u8>::from_hex(head).expect("hex");
                bytes.resize(len.parse().expect("a number"), bytes[7]);
                ScriptBuf::from_bytes(bytes)
            }
            None => ScriptBuf::from_hex(text).expect("hex"),
        };
        scripts
            .iter()
            .map(|(name, s)| {
                (
                    name.clone(),
                    script(s["spk"].as_str().expect("hex")),
                    s.clone(),
                )
            })
            .collect()
    }

    fn genesis(&self) -> CheckPoint {
        let hash = self.expected["by_height"]["0"]["bestblock"]
            .as_str()
            .expect("a hash");
        CheckPoint::new(BlockId {
            height: 0,
            hash: hash.parse().expect("a hash"),
        })
    }

    /// What a wallet got: coins by script, all confirmed.
    fn check(&self, update: &SyncResponse) {
        let tip = update.chain_update.as_ref().expect("a chain");
        assert_eq!(
            tip.hash().to_string(),
            self.expected["tip"].as_str().expect("a hash")
        );
        let mut spent: BTreeSet<OutPoint> = BTreeSet::new();
        for tx in &update.tx_update.txs {
            spent.extend(tx.input.iter().map(|i| i.previous_output));
        }
        let height: BTreeMap<Txid, u64> = update
            .tx_update
            .anchors
            .iter()
            .map(|(anchor, txid)| (*txid, u64::from(anchor.block_id.height)))
            .collect();
        let mut have: BTreeMap<ScriptBuf, Coins> = BTreeMap::new();
        for tx in &update.tx_update.txs {
            let txid = tx.compute_txid();
            for (vout, output) in (0..).zip(&tx.output) {
                let at = OutPoint::new(txid, vout);
                if !spent.contains(&at) {
                    let coins = have.entry(output.script_pubkey.clone()).or_default();
                    coins.insert((at, output.value.to_sat(), height[&txid]));
                }
            }
        }
        for (script, coins) in self.scanned() {
            assert_eq!(have.get(&script), Some(&coins), "{script}");
        }
    }

    fn request(&self) -> SyncRequest<()> {
        let scripts = self.kinds().into_iter().map(|(_, script, _)| script);
        let all: BTreeSet<ScriptBuf> = scripts.chain(self.scanned().into_keys()).collect();
        SyncRequest::builder()
            .chain_tip(self.genesis())
            .spks(all)
            .build()
    }
}

fn copy(from: &Path, to: &Path) {
    // The data may be read-only; the copy is to be an ordinary file.
    std::fs::write(to, std::fs::read(from).expect("a file")).expect("a file");
}

#[test]
fn electrum_client_knows_every_kind_of_script() {
    let Some(chain) = Chain::new("electrum_client_knows_every_kind_of_script") else {
        return;
    };
    {
        let client = chain.electrum();
        assert_eq!(client.protocol_version().expect("agreed"), "1.6");
        let tip = client.block_headers_subscribe().expect("a header");
        assert_eq!(
            (tip.height as u64, tip.header.block_hash().to_string()),
            (
                131,
                chain.expected["tip"].as_str().expect("a hash").to_owned()
            )
        );
        let scanned = chain.scanned();
        let mut kinds = 0;
        for (name, script, said) in chain.kinds() {
            // Core's name for it is the protocol's.
            let ours = weft_chain::hash::hex(&weft_chain::script_hash(script.as_bytes()));
            assert_eq!(said["scripthash"], ours.as_str());
            let coins = client.script_list_unspent(&script).expect("coins");
            let coins: Coins = coins
                .into_iter()
                .map(|c| {
                    (
                        OutPoint::new(c.tx_hash, c.tx_pos as u32),
                        c.value,
                        c.height as u64,
                    )
                })
                .collect();
            // `scantxoutset` was asked for what has a descriptor.
            if let Some(want) = scanned.get(&script) {
                assert_eq!(coins, *want, "{name}");
            }
            let balance = client.script_get_balance(&script).expect("a balance");
            assert_eq!(
                balance.confirmed,
                coins.iter().map(|c| c.1).sum::<u64>(),
                "{name}"
            );
            assert_eq!(balance.unconfirmed, 0);
            let history = client.script_get_history(&script).expect("a history");
            let status = client.script_subscribe(&script).expect("a status");
            assert_eq!(status.is_none(), history.is_empty(), "{name}");
            for tx in &history {
                let proof = client
                    .transaction_get_merkle(&tx.tx_hash, tx.height as usize)
                    .expect("a proof");
                let header = client.block_header(tx.height as usize).expect("a header");
                assert!(bdk_electrum::electrum_client::utils::validate_merkle_proof(
                    &tx.tx_hash,
                    &header.merkle_root,
                    &proof
                ));
                let full = client.transaction_get(&tx.tx_hash).expect("bytes");
                assert_eq!(full.compute_txid(), tx.tx_hash);
            }
            kinds += 1;
        }
        assert_eq!(kinds, 18);
        for (script, want) in &scanned {
            let coins = client.script_list_unspent(script).expect("coins");
            assert_eq!(coins.len(), want.len(), "{script}");
        }
        let headers = client.block_headers(0, 200).expect("headers");
        assert_eq!(headers.headers.len(), 132);
        client.ping().expect("an answer");
        assert_eq!(
            client.server_features().expect("features").protocol_max,
            "1.6"
        );
    }
}

#[test]
fn bdk_electrum_syncs_to_what_core_has() {
    let Some(chain) = Chain::new("bdk_electrum_syncs_to_what_core_has") else {
        return;
    };
    let client = BdkElectrumClient::new(chain.electrum());
    let update = client.sync(chain.request(), 20, true).expect("it syncs");
    chain.check(&update);
}

#[test]
fn bdk_esplora_syncs_to_what_core_has() {
    let Some(chain) = Chain::new("bdk_esplora_syncs_to_what_core_has") else {
        return;
    };
    let client = chain.esplora();
    let update = client.sync(chain.request(), 2).expect("it syncs");
    chain.check(&update);
    // Its other questions are understood too.
    assert_eq!(client.get_height().expect("a height"), 131);
    let tip = client.get_tip_hash().expect("a hash");
    assert_eq!(client.get_block_hash(131).expect("a hash"), tip);
    assert!(
        client
            .get_block_status(&tip)
            .expect("a status")
            .in_best_chain
    );
    assert_eq!(
        client
            .get_header_by_hash(&tip)
            .expect("a header")
            .block_hash(),
        tip
    );
    let block = client
        .get_block_by_hash(&tip)
        .expect("a block")
        .expect("it is there");
    let info = client.get_block_info(&tip).expect("a block");
    assert_eq!(
        (info.weight, info.tx_count as usize),
        (block.weight().to_wu(), block.txdata.len())
    );
    assert_eq!(
        client.get_block_txids(&tip).expect("ids").len(),
        block.txdata.len()
    );
    assert_eq!(client.get_block_infos(None).expect("blocks").len(), 10);
    let fan: Txid = chain.expected["fan_txid"]
        .as_str()
        .expect("id")
        .parse()
        .expect("id");
    let tx = client
        .get_tx(&fan)
        .expect("a transaction")
        .expect("it is there");
    let shown = client
        .get_tx_info(&fan)
        .expect("a transaction")
        .expect("it is there");
    assert_eq!(shown.vout.len(), tx.output.len());
    assert!(shown.status.confirmed && shown.fee > 0);
    let proof = client
        .get_merkle_block(&fan)
        .expect("a proof")
        .expect("it is there");
    let (mut found, mut at) = (Vec::new(), Vec::new());
    proof
        .extract_matches(&mut found, &mut at)
        .expect("a right proof");
    assert_eq!(found, [fan]);
    assert!(client.get_merkle_proof(&fan).expect("a proof").is_some());
    // Who spent each output, by the blocks themselves.
    let spends = client.get_tx_outspends(&fan).expect("a list");
    let spent: BTreeMap<OutPoint, Txid> = update
        .tx_update
        .txs
        .iter()
        .flat_map(|tx| {
            tx.input
                .iter()
                .map(|i| (i.previous_output, tx.compute_txid()))
        })
        .collect();
    for (vout, spend) in (0..).zip(&spends) {
        assert_eq!(
            spend.txid,
            spent.get(&OutPoint::new(fan, vout)).copied(),
            "output {vout}"
        );
    }
    assert!(spends.iter().any(|s| s.spent) && spends.iter().any(|s| !s.spent));
    for (_, script, _) in chain.kinds() {
        let stats = client.get_scripthash_stats(&script).expect("sums");
        let coins = client.get_scripthash_utxos(&script).expect("coins");
        let history = client.scripthash_txs(&script, None).expect("transactions");
        let sums = &stats.chain_stats;
        if !script.is_op_return() && script.len() <= 10_000 {
            assert_eq!(
                u64::from(sums.funded_txo_count) - u64::from(sums.spent_txo_count),
                coins.len() as u64
            );
        }
        assert_eq!(history.is_empty(), sums.tx_count == 0);
    }
    assert_eq!(client.get_mempool_stats().expect("sums").count, 0);
    assert!(
        client.get_fee_estimates().expect("fees").is_empty(),
        "there is no node"
    );
}
