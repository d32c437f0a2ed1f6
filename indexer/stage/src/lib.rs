//! A whole index of a Bitcoin regtest chain in a scratch folder: database, block files, view, fed
//! with made blocks and transactions. For tests; nothing of it stands in for a part of the
//! program. Whatever goes wrong panics.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use weft_chain::block::LooseTx;
use weft_chain::{Block, Chain, Hash, OutPoint, chains};
use weft_forge::{Made, coinbase, genesis};
use weft_mempool::Incoming;
use weft_source::files::Files;
use weft_source::mempool::Delta;
use weft_store::{Durability, Options, Store};
use weft_view::{Bounds, Came, View};

/// The index and its chain.
#[derive(Debug)]
pub struct Stage {
    /// What is tested.
    pub view: View,
    store: Store,
    chain: &'static dyn Chain,
    files: PathBuf,
    extra: u32,
    /// The chain's blocks.
    blocks: Vec<Block>,
    dir: tempfile::TempDir,
}

/// An output to a script named by a number: P2WPKH.
pub fn script(n: u32) -> Vec<u8> {
    let mut out = vec![0, 20];
    out.extend_from_slice(&n.to_le_bytes());
    out.resize(22, 7);
    out
}

impl Default for Stage {
    fn default() -> Self {
        Self::new(Bounds::default())
    }
}

impl Stage {
    /// The first block alone.
    pub fn new(bounds: Bounds) -> Self {
        let chain = chains::by_name("bitcoin-regtest").expect("it is known");
        let dir = tempfile::tempdir().expect("a folder");
        let files = dir.path().join("blocks");
        std::fs::create_dir(&files).expect("a folder");
        let options = Options {
            memory: 64 << 20,
            threads: 1,
            ..Options::default()
        };
        let first = chain.params().genesis_hash();
        let store = Store::open(&dir.path().join("db"), first, options).expect("a database");
        let view = View::new(chain, store.reader(), bounds);
        let mut stage = Self {
            view,
            store,
            chain,
            files,
            extra: 0,
            blocks: Vec::new(),
            dir,
        };
        stage.take(genesis(&chain.params().genesis));
        let source = Files::open(&stage.files, chain).expect("block files");
        stage.view.set_node(Arc::new(source), None);
        stage.view.set_caught_up();
        stage
    }

    /// A folder for other things, removed with the stage.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Height of the tip.
    pub fn height(&self) -> u32 {
        self.store.tip().expect("there is a block").height
    }

    /// Hash of the tip.
    pub fn tip(&self) -> Hash {
        self.store.tip().expect("there is a block").hash
    }

    /// Adds a block whose coinbase has these outputs; gives its transactions.
    pub fn mine(&mut self, outputs: &[(u64, Vec<u8>)], txs: &[Made]) -> Vec<Made> {
        self.extra += 1;
        let height = self.height() + 1;
        let mut all = vec![coinbase(height, self.extra, outputs)];
        all.extend_from_slice(txs);
        let (_, raw) = weft_forge::block(self.tip(), 1_700_000_000 + height, &all);
        self.take(raw);
        all
    }

    /// Adds a block that is made already.
    pub fn take(&mut self, raw: Vec<u8>) {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.files.join("blk00000.dat"))
            .expect("a block file");
        let mut record = self.chain.params().magic.to_vec();
        record.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        record.extend_from_slice(&raw);
        file.write_all(&record).expect("it is written");
        let block = Block::parse_checked(self.chain, raw).expect("a block");
        let height = self.store.tip().map_or(0, |tip| tip.height + 1);
        let prepared = self.store.preparer().prepare(self.chain, &block, height);
        self.store
            .apply(prepared.expect("it is prepared"))
            .expect("it is applied");
        let mut change = self.view.change();
        let committed = self.store.commit(Durability::Log).expect("it is written");
        let inputs = block.txs().flat_map(|tx| tx.inputs());
        change.came(Came {
            height,
            hash: *block.hash(),
            header: *block.header(),
            txids: block.txids(),
            spent: inputs.map(|i| i.prevout).collect(),
            scripts: committed.scripts,
        });
        drop(change);
        self.blocks.push(block);
    }

    /// Adds blocks as one batch, as while catching up.
    pub fn jump(&mut self, count: u32, outputs: &[(u64, Vec<u8>)]) {
        self.view.forget_pool();
        for _ in 0..count {
            self.extra += 1;
            let (height, prev) = (self.height() + 1, self.tip());
            let tx = coinbase(height, self.extra, outputs);
            let (_, raw) = weft_forge::block(prev, 1_700_000_000 + height, &[tx]);
            let mut file = OpenOptions::new()
                .append(true)
                .open(self.files.join("blk00000.dat"))
                .expect("a block file");
            let mut record = self.chain.params().magic.to_vec();
            record.extend_from_slice(&(raw.len() as u32).to_le_bytes());
            record.extend_from_slice(&raw);
            file.write_all(&record).expect("it is written");
            let block = Block::parse_checked(self.chain, raw).expect("a block");
            let prepared = self.store.preparer().prepare(self.chain, &block, height);
            self.store
                .apply(prepared.expect("it is prepared"))
                .expect("it is applied");
            self.blocks.push(block);
        }
        self.store.commit(Durability::Files).expect("it is written");
        let (height, hash) = (self.height(), self.tip());
        self.view.change().jumped(height, hash);
    }

    /// Takes the top block off; its transactions go back to the pool.
    pub fn undo(&mut self) {
        let block = self.blocks.pop().expect("a block");
        let mut change = self.view.change();
        let height = self.height();
        let txids = self.store.reader().block_txids(height).expect("ids");
        let undone = self.store.undo().expect("it is undone").expect("a block");
        let back = weft_view::waiting_again(self.chain, &block);
        change.left(
            height,
            undone.hash,
            txids.unwrap_or_default(),
            undone.scripts,
            back,
        );
    }

    /// Changes the pool, as a node at the same tip would.
    pub fn pool(&self, gone: &[Hash], new: &[Made]) {
        let incoming = |made: &Made| Incoming {
            tx: LooseTx::parse(self.chain, made.raw.clone()).expect("a transaction"),
            fee: None,
            vsize: None,
            time: 1_700_000_000,
        };
        let delta = Delta {
            at: self.tip(),
            gone: gone.to_vec(),
            new: new.iter().map(incoming).collect(),
        };
        assert!(self.view.take_in(delta).expect("it is taken in"));
    }

    /// The outpoint of an output.
    pub fn at(made: &Made, vout: u32) -> OutPoint {
        OutPoint {
            txid: made.txid,
            vout,
        }
    }
}
