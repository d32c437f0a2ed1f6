//! A tree of headers and the chain of most work in it.
//!
//! Every header that is inserted has a known predecessor, reaches its target, has the target the
//! chain's rules give and a time later than the median of the eleven before. Of two tips with
//! equal work the one that came first stays.
//!
//! The tree begins with one header that is trusted: the genesis header, or any later one with its
//! height and work. Rules that need headers from before it are then not checked.

use hashbrown::{DefaultHashBuilder, HashTable};
use std::hash::BuildHasher;

use crate::chains::{Ancestor, Ancestors, AuxPow, Chain};
use crate::pow::Target;
use crate::{Error, Hash, Header};

/// Most headers kept that are not on the best chain; far more than any chain has ever had.
pub const MAX_STALE: usize = 200_000;

/// A header with its place in the tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its hash.
    pub hash: Hash,
    /// Its height.
    pub height: u32,
    /// Work of the chain up to and with it.
    pub work: u128,
    /// The header.
    pub header: Header,
}

/// The way from one block to another: blocks to leave, then blocks to go through.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Path {
    /// Hashes of the blocks that leave, the highest first.
    pub leave: Vec<Hash>,
    /// Hashes of the blocks that come, the lowest first.
    pub enter: Vec<Hash>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    hash: Hash,
    merkle_root: Hash,
    version: i32,
    time: u32,
    bits: u32,
    nonce: u32,
    /// Index of the predecessor; the root's is its own.
    parent: u32,
    height: u32,
    work: u128,
}

/// Headers by hash, and the best chain by height.
#[derive(Debug, Clone)]
pub struct HeaderTree {
    chain: &'static dyn Chain,
    nodes: Vec<Node>,
    by_hash: HashTable<u32>,
    hasher: DefaultHashBuilder,
    /// Indices of the best chain, from the root up.
    best: Vec<u32>,
    root_prev: Hash,
}

impl HeaderTree {
    /// A tree that begins with the genesis header.
    pub fn new(chain: &'static dyn Chain) -> Self {
        let genesis = chain.params().genesis;
        let work = Target::from_compact(genesis.bits).map_or(0, |t| t.work());
        Self::from_root(chain, genesis, 0, work)
    }

    /// A tree that begins with a header known to be right.
    pub fn from_root(chain: &'static dyn Chain, header: Header, height: u32, work: u128) -> Self {
        let mut tree = Self {
            chain,
            nodes: Vec::new(),
            by_hash: HashTable::new(),
            hasher: DefaultHashBuilder::default(),
            best: vec![0],
            root_prev: header.prev,
        };
        tree.add(header.hash(), &header, 0, height, work);
        tree
    }

    /// Number of headers.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Never true: the root is always there.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds a header after checking it; adding a known one changes nothing. `Ok(true)` if the
    /// best chain changed.
    pub fn insert(&mut self, header: &Header, auxpow: Option<&AuxPow>) -> Result<bool, Error> {
        let hash = header.hash();
        if self.find(&hash).is_some() {
            return Ok(false);
        }
        self.chain.check_pow(header, auxpow)?;
        self.link(hash, header)
    }

    /// Adds a header whose proof of work was checked when it came in.
    pub fn insert_trusted(&mut self, header: &Header) -> Result<bool, Error> {
        let hash = header.hash();
        if self.find(&hash).is_some() {
            return Ok(false);
        }
        self.link(hash, header)
    }

    fn link(&mut self, hash: Hash, header: &Header) -> Result<bool, Error> {
        let Some(parent) = self.find(&header.prev) else {
            return Err(Error::Orphan {
                header: hash,
                prev: header.prev,
            });
        };
        let prev = self.ancestor_at(parent);
        let height = prev.height + 1;
        if let Some(want) = self.chain.next_bits(self, &prev, header.time)
            && want != header.bits
        {
            return Err(Error::Difficulty {
                header: hash,
                height,
                bits: header.bits,
                want,
            });
        }
        if let Some(median) = self.median_time(parent)
            && header.time <= median
        {
            return Err(Error::TimeTooOld {
                header: hash,
                height,
                time: header.time,
                median,
            });
        }
        if self.nodes.len() >= self.best.len() + MAX_STALE {
            let (count, max) = (
                (self.nodes.len() - self.best.len()) as u64,
                MAX_STALE as u64,
            );
            return Err(Error::TooMany {
                what: "headers beside the best chain",
                at: 0,
                count,
                max,
            });
        }
        let work = Target::from_compact(header.bits).map_or(0, |t| t.work());
        let work = self.nodes[parent as usize].work.saturating_add(work);
        let index = self.add(hash, header, parent, height, work);
        if work <= self.tip().work {
            return Ok(false);
        }
        self.make_best(index);
        Ok(true)
    }

    fn add(&mut self, hash: Hash, header: &Header, parent: u32, height: u32, work: u128) -> u32 {
        let index = self.nodes.len() as u32;
        let &Header {
            version,
            prev: _,
            merkle_root,
            time,
            bits,
            nonce,
        } = header;
        self.nodes.push(Node {
            hash,
            merkle_root,
            version,
            time,
            bits,
            nonce,
            parent,
            height,
            work,
        });
        let (nodes, hasher) = (&self.nodes, &self.hasher);
        self.by_hash
            .insert_unique(hasher.hash_one(hash), index, |i| {
                hasher.hash_one(nodes[*i as usize].hash)
            });
        index
    }

    fn find(&self, hash: &Hash) -> Option<u32> {
        self.by_hash
            .find(self.hasher.hash_one(hash), |i| {
                self.nodes[*i as usize].hash == *hash
            })
            .copied()
    }

    fn root_height(&self) -> u32 {
        self.nodes[0].height
    }

    fn header_of(&self, index: u32) -> Header {
        let n = &self.nodes[index as usize];
        let prev = if index == 0 {
            self.root_prev
        } else {
            self.nodes[n.parent as usize].hash
        };
        Header {
            version: n.version,
            prev,
            merkle_root: n.merkle_root,
            time: n.time,
            bits: n.bits,
            nonce: n.nonce,
        }
    }

    fn entry(&self, index: u32) -> Entry {
        let n = &self.nodes[index as usize];
        Entry {
            hash: n.hash,
            height: n.height,
            work: n.work,
            header: self.header_of(index),
        }
    }

    fn ancestor_at(&self, index: u32) -> Ancestor {
        let n = &self.nodes[index as usize];
        Ancestor {
            hash: n.hash,
            height: n.height,
            header: self.header_of(index),
        }
    }

    fn is_best(&self, index: u32) -> bool {
        let at = self.nodes[index as usize].height - self.root_height();
        self.best.get(at as usize) == Some(&index)
    }

    fn make_best(&mut self, tip: u32) {
        let mut branch = vec![];
        let mut at = tip;
        while !self.is_best(at) {
            branch.push(at);
            at = self.nodes[at as usize].parent;
        }
        self.best
            .truncate((self.nodes[at as usize].height - self.root_height()) as usize + 1);
        self.best.extend(branch.into_iter().rev());
    }

    /// Median of the times of a header and the ten before it; `None` if they are not all known.
    fn median_time(&self, index: u32) -> Option<u32> {
        let mut times = Vec::with_capacity(11);
        let mut at = index;
        loop {
            let node = &self.nodes[at as usize];
            times.push(node.time);
            if times.len() == 11 || node.height == 0 {
                break;
            }
            if at == 0 {
                return None;
            }
            at = node.parent;
        }
        times.sort_unstable();
        times.get(times.len() / 2).copied()
    }

    /// Tip of the chain with most work.
    pub fn tip(&self) -> Entry {
        self.entry(self.best[self.best.len() - 1])
    }

    /// The header the tree begins with.
    pub fn root(&self) -> Entry {
        self.entry(0)
    }

    /// A header of the tree.
    pub fn get(&self, hash: &Hash) -> Option<Entry> {
        self.find(hash).map(|i| self.entry(i))
    }

    /// The header of the best chain at a height.
    pub fn at(&self, height: u32) -> Option<Entry> {
        let at = height.checked_sub(self.root_height())?;
        self.best.get(at as usize).map(|i| self.entry(*i))
    }

    /// Whether a header is on the best chain.
    pub fn is_on_best_chain(&self, hash: &Hash) -> bool {
        self.find(hash).is_some_and(|i| self.is_best(i))
    }

    /// Hashes of the best chain from the tip down, the ten highest and then with doubling gaps:
    /// what asks a peer for what comes after the last block both know.
    pub fn locator(&self) -> Vec<Hash> {
        locator_heights(self.best.len() as u32 - 1)
            .map(|at| self.nodes[self.best[at as usize] as usize].hash)
            .collect()
    }

    /// Headers of the best chain after the first block of `locator` that is on it (after the root
    /// if none is), at most `max`.
    pub fn after(&self, locator: &[Hash], max: usize) -> Vec<Entry> {
        let known = locator
            .iter()
            .find_map(|hash| self.find(hash).filter(|i| self.is_best(*i)));
        let from =
            known.map_or(0, |i| self.nodes[i as usize].height - self.root_height()) as usize + 1;
        self.best
            .get(from..)
            .unwrap_or_default()
            .iter()
            .take(max)
            .map(|i| self.entry(*i))
            .collect()
    }

    /// The way from a block of the tree to the tip of the best chain; `None` if it is not in the
    /// tree.
    pub fn path_to_tip(&self, from: &Hash) -> Option<Path> {
        let mut path = Path::default();
        let mut at = self.find(from)?;
        while !self.is_best(at) {
            path.leave.push(self.nodes[at as usize].hash);
            at = self.nodes[at as usize].parent;
        }
        let start = (self.nodes[at as usize].height - self.root_height()) as usize + 1;
        path.enter = self.best[start..]
            .iter()
            .map(|i| self.nodes[*i as usize].hash)
            .collect();
        Some(path)
    }
}

/// Heights of a locator for a chain with a tip at `tip`: ten steps of one, then doubling, and 0.
pub fn locator_heights(tip: u32) -> impl Iterator<Item = u32> {
    let (mut next, mut step, mut count) = (Some(tip), 1u32, 0);
    std::iter::from_fn(move || {
        let at = next?;
        count += 1;
        if count > 10 {
            step = step.saturating_mul(2);
        }
        next = if at == 0 {
            None
        } else {
            Some(at.saturating_sub(step))
        };
        Some(at)
    })
}

impl Ancestors for HeaderTree {
    fn ancestor(&self, of: &Ancestor, height: u32) -> Option<Ancestor> {
        if height > of.height || height < self.root_height() {
            return None;
        }
        let mut at = self.find(&of.hash)?;
        while self.nodes[at as usize].height > height {
            if self.is_best(at) {
                at = self.best[(height - self.root_height()) as usize];
                break;
            }
            at = self.nodes[at as usize].parent;
        }
        Some(self.ancestor_at(at))
    }
}
