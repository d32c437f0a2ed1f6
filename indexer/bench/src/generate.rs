//! A chain shaped like Bitcoin's, as block files of a node.
//!
//! What is drawn, per transaction, and what it follows (means over the whole of Bitcoin's chain,
//! which has about 1.2 thousand million transactions, 2.75 outputs and 2.6 inputs each, 170
//! million coins, 580 bytes a transaction):
//! - outputs: 1 in 25 %, 2 in 63 %, 3 to 5 in 8.7 %, 6 to 30 in 3 %, 31 to 200 in 0.3 %: 2.75 on average;
//! - inputs: a share of 96 % 1, 2, 3 to 5, 6 to 20 and 21 to 100, scaled so that about 5.5 % of
//!   all outputs stay unspent;
//! - age of a spent coin: same block 6 %, last 6 blocks 24 %, last 144 35 %, last 1000 20 %, any 15 %;
//! - scripts: P2PKH 45 %, P2WPKH 23 %, P2SH 18 %, P2TR 7 %, P2WSH 3 %, OP_RETURN 3 %, P2PK 0.5 %,
//!   bare multisig 0.5 %; 42 % of the outputs go to a script never seen, 20 % to one of 300 busy scripts with a
//!   harmonic distribution, the others to the script of a recent output;
//! - input scripts and witnesses as long as the script kind's signatures are; 2.5 % of the
//!   transactions carry 500 to 6000 bytes of data in a witness.
//!
//! After these blocks come a few more, the crowd, that pay known scripts 1, 100, 10,000 and 1,000,000
//! times, each time in a transaction of its own with change for somebody else, to measure queries on. They are in a
//! folder of their own and join the others later.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use serde::{Deserialize, Serialize};
use weft_chain::{Hash, OutPoint, chains, hash, script_hash};
use weft_forge::{Made, Spend, block, coinbase, genesis, transaction};

/// Numbers of coins, and of transactions, that the crowd's scripts have.
pub(crate) const CROWD: [usize; 4] = [1, 100, 10_000, 1_000_000];

/// What was generated; kept beside the block files.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub(crate) struct Description {
    /// Version of this generator; another one generates anew.
    pub version: u32,
    /// Seed of everything drawn.
    pub seed: u64,
    /// Height of the last block before the crowd.
    pub height: u32,
    /// Bytes of the blocks up to there.
    pub bytes: u64,
    /// Transactions up to there.
    pub txs: u64,
    /// Inputs up to there.
    pub inputs: u64,
    /// Outputs up to there.
    pub outputs: u64,
    /// Coins that remain.
    pub coins: u64,
    /// Height of the last block of the crowd.
    pub crowd_height: u32,
    /// SHA-256 of the crowd's scripts, in the order of [`CROWD`], hexadecimal.
    pub crowd: Vec<String>,
}

const VERSION: u32 = 4;
const FILE: u64 = 128 << 20;
const BLOCK: usize = 1_000_000;
const BUSY: usize = 300;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    P2pkh,
    P2wpkh,
    P2sh,
    P2tr,
    P2wsh,
    Data,
    P2pk,
    Multisig,
}

#[derive(Clone)]
struct Owner {
    kind: Kind,
    seed: u64,
}

struct Coin {
    outpoint: OutPoint,
    owner: Owner,
}

struct Writer<'a> {
    folder: &'a Path,
    number: u32,
    file: BufWriter<File>,
    written: u64,
    magic: [u8; 4],
}

impl<'a> Writer<'a> {
    fn new(folder: &'a Path, number: u32, magic: [u8; 4]) -> Result<Self> {
        let file = BufWriter::with_capacity(1 << 20, File::create(folder.join(name(number)))?);
        Ok(Self {
            folder,
            number,
            file,
            written: 0,
            magic,
        })
    }

    fn block(&mut self, raw: &[u8]) -> Result<()> {
        if self.written + raw.len() as u64 + 8 > FILE {
            self.file.flush()?;
            self.number += 1;
            self.written = 0;
            self.file = BufWriter::with_capacity(
                1 << 20,
                File::create(self.folder.join(name(self.number)))?,
            );
        }
        self.file.write_all(&self.magic)?;
        self.file.write_all(&(raw.len() as u32).to_le_bytes())?;
        self.file.write_all(raw)?;
        self.written += raw.len() as u64 + 8;
        Ok(())
    }
}

/// Name of a block file.
fn name(number: u32) -> String {
    format!("blk{number:05}.dat")
}

/// Folder of the block files, as a node's data directory has it.
pub(crate) fn blocks_dir(folder: &Path) -> PathBuf {
    folder.join("regtest/blocks")
}

/// Folder of the crowd's block files.
pub(crate) fn crowd_dir(folder: &Path) -> PathBuf {
    folder.join("crowd")
}

struct Generator {
    rng: SmallRng,
    /// Unspent outputs of each block.
    coins: Vec<Vec<Coin>>,
    alive: u64,
    busy: Vec<Owner>,
    busy_weights: Vec<f64>,
    /// A ring of scripts paid lately.
    recent: Vec<Owner>,
    next_owner: u64,
    txs: u64,
    inputs: u64,
    outputs: u64,
}

/// Makes the chain in `folder` unless it is there. `bytes` counts what comes before the crowd.
pub(crate) fn generate(
    folder: &Path,
    bytes: u64,
    seed: u64,
    mut progress: impl FnMut(u64),
) -> Result<Description> {
    let description = folder.join("chain.json");
    if let Ok(text) = fs::read_to_string(&description)
        && let Ok(found) = serde_json::from_str::<Description>(&text)
        && (found.version, found.seed) == (VERSION, seed)
        && (bytes..bytes + 2 * BLOCK as u64).contains(&found.bytes)
    {
        return Ok(found);
    }
    if folder.exists() {
        fs::remove_dir_all(folder)
            .with_context(|| format!("removing the old chain in {}", folder.display()))?;
    }
    let (blocks, crowd) = (blocks_dir(folder), crowd_dir(folder));
    for dir in [&blocks, &crowd] {
        fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    }
    let chain = chains::by_name("bitcoin-regtest").context("the regtest network")?;
    let mut out = Writer::new(&blocks, 0, chain.params().magic)?;
    out.block(&genesis(&chain.params().genesis))?;

    let mut g = Generator {
        rng: SmallRng::seed_from_u64(seed),
        coins: vec![Vec::new()],
        alive: 0,
        busy: Vec::new(),
        busy_weights: Vec::new(),
        recent: Vec::new(),
        next_owner: 1,
        txs: 1,
        inputs: 0,
        outputs: 1,
    };
    let mut sum = 0.0;
    for n in 0..BUSY {
        let owner = g.fresh_owner();
        g.busy.push(owner);
        sum += 1.0 / (n + 1) as f64;
        g.busy_weights.push(sum);
    }

    let mut prev = chain.params().genesis_hash();
    let (mut height, mut total) = (0, 285);
    while total < bytes {
        height += 1;
        let (hash, raw) = g.block(height, prev);
        out.block(&raw)?;
        prev = hash;
        total += raw.len() as u64;
        progress(total);
    }
    let mut found = Description {
        version: VERSION,
        seed,
        height,
        bytes: total,
        txs: g.txs,
        inputs: g.inputs,
        outputs: g.outputs,
        coins: g.alive,
        crowd_height: 0,
        crowd: Vec::new(),
    };
    out.file.flush()?;
    out = Writer::new(&crowd, out.number + 1, chain.params().magic)?;
    for count in CROWD {
        let owner = g.fresh_owner();
        let script = script_of(&Owner {
            kind: Kind::P2wpkh,
            ..owner
        });
        found.crowd.push(hash::hex(&script_hash(&script)));
        let mut left = count;
        while left > 0 {
            height += 1;
            let mut txs = vec![coinbase(height, 0, &[(50_0000_0000, vec![0x51])])];
            let mut size = 0;
            g.coins.push(Vec::new());
            while left > 0 && size < BLOCK {
                let coin = g.take_coin(height).context("no coin is left")?;
                let (value, owner) = g.output();
                let outputs = [(g.amount(), script.clone()), (value, script_of(&owner))];
                let tx = transaction(&[g.unlock(&coin)], &outputs);
                if owner.kind != Kind::Data {
                    g.keep(height, &tx, 1, owner);
                }
                size += tx.raw.len();
                left -= 1;
                txs.push(tx);
            }
            let (hash, raw) = block(prev, 1_600_000_000 + height * 600, &txs);
            out.block(&raw)?;
            prev = hash;
        }
    }
    out.file.flush()?;
    found.crowd_height = height;
    fs::write(&description, serde_json::to_string_pretty(&found)?)?;
    Ok(found)
}

impl Generator {
    fn block(&mut self, height: u32, prev: Hash) -> (Hash, Vec<u8>) {
        // The first blocks have little to spend: their coinbases stand for what came before.
        let seedlings = if height <= 100 { 300 } else { 1 };
        let base: Vec<_> = (0..seedlings).map(|_| self.output()).collect();
        let base_outputs: Vec<_> = base
            .iter()
            .map(|(value, owner)| (*value, script_of(owner)))
            .collect();
        let base_tx = coinbase(height, 0, &base_outputs);
        let mut txs = vec![base_tx];
        self.coins.push(Vec::new());
        self.outputs += base.len() as u64;
        self.txs += 1;
        let mut size = txs[0].raw.len();
        let target = (BLOCK as f64 * self.rng.random_range(0.4..1.6)) as usize;
        while size < target {
            let Some(tx) = self.transaction(height) else {
                break;
            };
            size += tx.raw.len();
            txs.push(tx);
        }
        // A coinbase matures: its outputs are there for later blocks only.
        let txid = txs[0].txid;
        let made = base
            .into_iter()
            .zip(0..)
            .filter(|((_, o), _)| o.kind != Kind::Data);
        let made: Vec<_> = made
            .map(|((_, owner), vout)| Coin {
                outpoint: OutPoint { txid, vout },
                owner,
            })
            .collect();
        self.alive += made.len() as u64;
        if let Some(here) = self.coins.last_mut() {
            here.extend(made);
        }
        block(prev, 1_600_000_000 + height * 600, &txs)
    }

    fn transaction(&mut self, height: u32) -> Option<Made> {
        let outputs = match self.rng.random_range(0.0..1.0) {
            x if x < 0.25 => 1,
            x if x < 0.88 => 2,
            x if x < 0.967 => self.rng.random_range(3..=5),
            x if x < 0.997 => self.rng.random_range(6..=30),
            _ => self.rng.random_range(31..=200),
        };
        let wanted = match self.rng.random_range(0.0..1.0) {
            x if x < 0.68 => 1,
            x if x < 0.84 => 2,
            x if x < 0.94 => self.rng.random_range(3..=5),
            x if x < 0.98 => self.rng.random_range(6..=20),
            _ => self.rng.random_range(21..=100),
        };
        // Holds the set at 5.5 % of all outputs, over a floor that the young chain needs.
        let crowded = self.alive as f64 / (0.055 * self.outputs as f64 + 20_000.0);
        let inputs = match crowded {
            c if c < 0.97 => wanted.min(2),
            c if c > 1.03 => wanted + 2,
            _ => wanted,
        };
        let mut spends = Vec::with_capacity(inputs);
        for _ in 0..inputs {
            let Some(coin) = self.take_coin(height) else {
                break;
            };
            spends.push(self.unlock(&coin));
        }
        if spends.is_empty() {
            return None;
        }
        if self.rng.random_bool(0.025) {
            let data = self.rng.random_range(500..6000);
            let filling = self.filling(data);
            spends[0].witness.push(filling);
        }
        let made: Vec<_> = (0..outputs).map(|_| self.output()).collect();
        let wire: Vec<_> = made
            .iter()
            .map(|(value, owner)| (*value, script_of(owner)))
            .collect();
        let tx = transaction(&spends, &wire);
        self.txs += 1;
        self.inputs += spends.len() as u64;
        self.outputs += outputs as u64;
        for ((_, owner), vout) in made
            .into_iter()
            .zip(0..)
            .filter(|((_, o), _)| o.kind != Kind::Data)
        {
            self.keep(height, &tx, vout, owner);
        }
        Some(tx)
    }

    /// An output is there to be spent.
    fn keep(&mut self, height: u32, tx: &Made, vout: u32, owner: Owner) {
        self.alive += 1;
        self.coins[height as usize].push(Coin {
            outpoint: OutPoint {
                txid: tx.txid,
                vout,
            },
            owner,
        });
    }

    fn take_coin(&mut self, height: u32) -> Option<Coin> {
        let reach = match self.rng.random_range(0.0..1.0) {
            x if x < 0.06 => 0,
            x if x < 0.30 => self.rng.random_range(1..=6),
            x if x < 0.65 => self.rng.random_range(1..=144),
            x if x < 0.85 => self.rng.random_range(1..=1000),
            _ => self.rng.random_range(1..=height),
        };
        let start = height.saturating_sub(reach) as usize;
        let at = (0..=start)
            .rev()
            .chain(start + 1..self.coins.len())
            .find(|at| self.coins.get(*at).is_some_and(|c| !c.is_empty()))?;
        let n = self.rng.random_range(0..self.coins[at].len());
        self.alive -= 1;
        Some(self.coins[at].swap_remove(n))
    }

    fn output(&mut self) -> (u64, Owner) {
        let owner = match self.rng.random_range(0.0..1.0) {
            x if x < 0.20 => {
                let total = self.busy_weights[BUSY - 1];
                let x = self.rng.random_range(0.0..total);
                let n = self.busy_weights.partition_point(|w| *w < x);
                self.busy[n.min(BUSY - 1)].clone()
            }
            x if x < 0.58 && !self.recent.is_empty() => {
                let n = self.rng.random_range(0..self.recent.len());
                self.recent[n].clone()
            }
            _ => {
                let owner = self.fresh_owner();
                if self.recent.len() < 100_000 {
                    self.recent.push(owner.clone());
                } else {
                    let n = self.rng.random_range(0..self.recent.len());
                    self.recent[n] = owner.clone();
                }
                owner
            }
        };
        let value = if owner.kind == Kind::Data {
            0
        } else {
            self.amount()
        };
        (value, owner)
    }

    /// From dust to hundreds of coins; a quarter of them round.
    fn amount(&mut self) -> u64 {
        let digits = self.rng.random_range(3.0..10.5);
        let value = 10f64.powf(digits) as u64;
        let keep = if self.rng.random_bool(0.25) {
            10u64.pow(digits as u32 - 1)
        } else {
            1
        };
        value / keep * keep
    }

    fn fresh_owner(&mut self) -> Owner {
        self.next_owner += 1;
        let kind = match self.rng.random_range(0.0..1.0) {
            x if x < 0.45 => Kind::P2pkh,
            x if x < 0.68 => Kind::P2wpkh,
            x if x < 0.86 => Kind::P2sh,
            x if x < 0.93 => Kind::P2tr,
            x if x < 0.96 => Kind::P2wsh,
            x if x < 0.99 => Kind::Data,
            x if x < 0.995 => Kind::P2pk,
            _ => Kind::Multisig,
        };
        Owner {
            kind,
            seed: self.next_owner,
        }
    }

    fn filling(&mut self, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        self.rng.fill_bytes(&mut out);
        out
    }

    fn unlock(&mut self, coin: &Coin) -> Spend {
        let mut spend = Spend::bare(coin.outpoint);
        match coin.owner.kind {
            Kind::P2pkh => spend.script = self.filling(107),
            Kind::P2wpkh => spend.witness = vec![self.filling(71), self.filling(33)],
            Kind::P2sh => spend.script = self.filling(253),
            Kind::P2tr => spend.witness = vec![self.filling(64)],
            Kind::P2wsh => {
                spend.witness = vec![
                    Vec::new(),
                    self.filling(71),
                    self.filling(71),
                    self.filling(105),
                ]
            }
            Kind::P2pk => spend.script = self.filling(72),
            Kind::Multisig => spend.script = self.filling(73),
            Kind::Data => {}
        }
        spend
    }
}

/// The script of an owner: hashes and keys are drawn from its seed.
fn script_of(owner: &Owner) -> Vec<u8> {
    let mut bytes = [0; 104];
    SmallRng::seed_from_u64(owner.seed).fill_bytes(&mut bytes);
    match owner.kind {
        Kind::P2pkh => [&[0x76, 0xa9, 20][..], &bytes[..20], &[0x88, 0xac]].concat(),
        Kind::P2wpkh => [&[0, 20][..], &bytes[..20]].concat(),
        Kind::P2sh => [&[0xa9, 20][..], &bytes[..20], &[0x87]].concat(),
        Kind::P2tr => [&[0x51, 32][..], &bytes[..32]].concat(),
        Kind::P2wsh => [&[0, 32][..], &bytes[..32]].concat(),
        Kind::Data => [&[0x6a, 40][..], &bytes[..40]].concat(),
        Kind::P2pk => [&[33, 2][..], &bytes[..32], &[0xac]].concat(),
        Kind::Multisig => [
            &[0x51, 33, 2][..],
            &bytes[..32],
            &[33, 3],
            &bytes[32..64],
            &[33, 2],
            &bytes[64..96],
            &[0x53, 0xae],
        ]
        .concat(),
    }
}
