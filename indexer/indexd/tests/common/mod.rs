//! A service under test in a folder of its own, and chains for it to read.

#![allow(dead_code)]

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use weft_chain::{Block, Chain, Hash, OutPoint, chains};
use weft_forge::{Spend, block, coinbase, transaction};

/// A data set, or `None` after saying that the test is skipped.
pub(crate) fn data(test: &str, set: &str) -> Option<PathBuf> {
    let root = std::env::var_os("WEFT_TEST_DATA").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let folder = root.join(set);
    if folder.is_dir() {
        return Some(folder);
    }
    println!(
        "SKIPPED {test}: no {} (set WEFT_TEST_DATA)",
        folder.display()
    );
    None
}

/// A folder with a configuration, a node's data directory and room for the index.
pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
}

impl Bench {
    pub(crate) fn new(network: &str, index: &str) -> Self {
        let bench = Self {
            dir: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(bench.blocks(network)).unwrap();
        let config = format!(
            "network = {network:?}\n[node]\ndatadir = \"node\"\nrpc = \"127.0.0.1:1\"\nsource = \"files\"\n[index]\nmemory_mb = 64\nthreads = 2\n{index}\n"
        );
        fs::write(bench.path("weft-indexd.toml"), config).unwrap();
        bench
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the node keeps block files.
    pub(crate) fn blocks(&self, network: &str) -> PathBuf {
        let subdir = chains::by_name(network).unwrap().params().subdir;
        self.path("node").join(subdir).join("blocks")
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_weft-indexd"));
        command
            .arg("--config")
            .arg(self.path("weft-indexd.toml"))
            .args(arguments);
        command.env_remove("RUST_LOG");
        command
    }

    /// Runs to the end.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs to the end, which must be a success; what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs to the end, which must be a failure; what it said.
    pub(crate) fn fail(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(!output.status.success(), "{arguments:?} should fail");
        String::from_utf8(output.stderr).unwrap()
    }

    /// Runs on.
    pub(crate) fn start(&self) -> Child {
        self.command(&["run"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    pub(crate) fn json(&self, arguments: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }
}

/// A chain that grows in a block file, with branches.
pub(crate) struct Grower {
    chain: &'static dyn Chain,
    file: PathBuf,
    pub(crate) rng: SmallRng,
    /// The best branch: hash and the outputs open after it.
    pub(crate) best: Vec<(Hash, Vec<OutPoint>)>,
    salt: u32,
}

impl Grower {
    pub(crate) fn new(blocks: &Path, seed: u64) -> Self {
        let chain = chains::by_name("bitcoin-regtest").unwrap();
        let file = blocks.join("blk00000.dat");
        let mut grower = Self {
            chain,
            file,
            rng: SmallRng::seed_from_u64(seed),
            best: Vec::new(),
            salt: 0,
        };
        grower.append(&[weft_forge::genesis(&chain.params().genesis)]);
        grower
            .best
            .push((chain.params().genesis_hash(), Vec::new()));
        grower
    }

    /// Adds records to the file in one write.
    pub(crate) fn append(&mut self, blocks: &[Vec<u8>]) {
        let mut bytes = Vec::new();
        for raw in blocks {
            bytes.extend_from_slice(&self.chain.params().magic);
            bytes.extend_from_slice(&(raw.len() as u32).to_le_bytes());
            bytes.extend_from_slice(raw);
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.file)
            .unwrap();
        file.write_all(&bytes).unwrap();
    }

    /// Makes blocks on top of the best branch after taking `back` off it.
    pub(crate) fn grow(&mut self, back: usize, count: usize) -> Vec<Vec<u8>> {
        let keep = self.best.len().saturating_sub(back).max(1);
        self.best.truncate(keep);
        (0..count).map(|_| self.one()).collect()
    }

    fn one(&mut self) -> Vec<u8> {
        let height = self.best.len() as u32;
        let (prev, mut open) = self.best.last().unwrap().clone();
        self.salt += 1;
        let outputs = |rng: &mut SmallRng| -> Vec<(u64, Vec<u8>)> {
            (0..rng.random_range(1..6))
                .map(|_| {
                    (
                        rng.random_range(0..1u64 << 40),
                        [&[0, 20][..], &[rng.random_range(0..60); 20]].concat(),
                    )
                })
                .collect()
        };
        let base_outputs = outputs(&mut self.rng);
        let base = coinbase(height, self.salt, &base_outputs);
        let mut made: Vec<OutPoint> = (0..base_outputs.len() as u32)
            .map(|vout| OutPoint {
                txid: base.txid,
                vout,
            })
            .collect();
        let mut txs = vec![base];
        for _ in 0..self.rng.random_range(0..6) {
            let mut inputs = Vec::new();
            while inputs.len() < self.rng.random_range(1..4) && !open.is_empty() {
                let n = self.rng.random_range(0..open.len());
                inputs.push(Spend {
                    script: vec![7; 107],
                    ..Spend::bare(open.swap_remove(n))
                });
            }
            if inputs.is_empty() {
                break;
            }
            let outputs = outputs(&mut self.rng);
            let tx = transaction(&inputs, &outputs);
            made.extend((0..outputs.len() as u32).map(|vout| OutPoint {
                txid: tx.txid,
                vout,
            }));
            txs.push(tx);
        }
        open.extend(made);
        // Bounded, so that the list per block stays small.
        while open.len() > 400 {
            let n = self.rng.random_range(0..open.len());
            open.swap_remove(n);
        }
        let (hash, raw) = block(prev, 1_700_000_000 + height, &txs);
        debug_assert!(Block::parse_checked(self.chain, raw.clone()).is_ok());
        self.best.push((hash, open));
        raw
    }

    /// Height of the best branch.
    pub(crate) fn height(&self) -> u32 {
        self.best.len() as u32 - 1
    }

    /// MuHash of the best branch, from an index that nothing ever disturbed.
    pub(crate) fn muhash(&self, folder: &Path) -> String {
        let calm = Bench::new("bitcoin-regtest", "");
        fs::copy(
            folder.join("blk00000.dat"),
            calm.blocks("bitcoin-regtest").join("blk00000.dat"),
        )
        .unwrap();
        calm.run(&["run", "--once"]);
        let status = calm.json(&["status"]);
        assert_eq!(status["tip"]["height"], self.height());
        status["tip"]["muhash"].as_str().unwrap().to_owned()
    }
}
