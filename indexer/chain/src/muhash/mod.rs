//! MuHash3072: one hash for a set, kept up to date coin by coin in any order.
//!
//! A coin is serialised ([`crate::coin::put_coin`]), hashed with SHA-256, and the hash is the key
//! of a ChaCha20 key stream (nonce 0) whose first 384 bytes are a little-endian number. The set
//! is the product of its coins' numbers modulo 2³⁰⁷² − 1103717, a coin that leaves divides; its
//! hash is the SHA-256 of the 384 little-endian bytes.
//!
//! Kept as a numerator and a denominator, so that a division costs a multiplication and only
//! [`MuHash3072::finalize`] inverts. For many coins use [`MuBatch`], one for each thread, and
//! [`MuHash3072::combine`] what they give.

#[cfg(target_arch = "x86_64")]
mod avx2;
mod chacha;
#[cfg(target_arch = "x86_64")]
mod ifma;
mod inverse;
mod num3072;

pub use num3072::Num3072;

use crate::coin::{OutPoint, put_coin};
use crate::hash::{Hash, sha256};

/// Bytes of a stored [`MuHash3072`].
pub const STORED: usize = 2 * num3072::BYTES;

/// The commitment to a set, as a fraction.
#[derive(Debug, Clone)]
pub struct MuHash3072 {
    numerator: Num3072,
    denominator: Num3072,
}

impl Default for MuHash3072 {
    fn default() -> Self {
        Self::new()
    }
}

impl PartialEq for MuHash3072 {
    fn eq(&self, other: &Self) -> bool {
        // a/b = c/d where ad = bc.
        let (mut left, mut right) = (self.numerator.clone(), other.numerator.clone());
        left.mul(&other.denominator);
        right.mul(&self.denominator);
        left == right
    }
}

impl Eq for MuHash3072 {}

/// The number of an element whose SHA-256 is `digest`.
fn element(digest: &Hash) -> Num3072 {
    Num3072::from_bytes(&chacha::keystream(digest))
}

impl MuHash3072 {
    /// The empty set.
    pub const fn new() -> Self {
        Self {
            numerator: Num3072::ONE,
            denominator: Num3072::ONE,
        }
    }

    /// Adds an element.
    pub fn insert(&mut self, data: &[u8]) {
        self.numerator.mul(&element(&sha256(data)));
    }

    /// Takes an element away. One that is not there gives the hash of no set, until it is added.
    pub fn remove(&mut self, data: &[u8]) {
        self.denominator.mul(&element(&sha256(data)));
    }

    /// Adds what `other` added and takes away what it took away.
    pub fn combine(&mut self, other: &Self) {
        self.numerator.mul(&other.numerator);
        self.denominator.mul(&other.denominator);
    }

    /// Undoes [`MuHash3072::combine`] with the same `other`.
    pub fn uncombine(&mut self, other: &Self) {
        self.numerator.mul(&other.denominator);
        self.denominator.mul(&other.numerator);
    }

    /// The hash of the set. Costs one inversion, none where nothing was ever removed since the
    /// last [`MuHash3072::normalize`].
    pub fn finalize(&self) -> Hash {
        sha256(&self.quotient().to_bytes())
    }

    /// Divides, so that the denominator is one.
    pub fn normalize(&mut self) {
        self.numerator = self.quotient();
        self.denominator = Num3072::ONE;
    }

    fn quotient(&self) -> Num3072 {
        let mut quotient = self.numerator.clone();
        if self.denominator != Num3072::ONE {
            quotient.mul(&self.denominator.inverse());
        }
        quotient
    }

    /// For the database: 384 bytes of numerator, 384 of denominator, little endian, both below p.
    pub fn to_bytes(&self) -> [u8; STORED] {
        let mut out = [0; STORED];
        out[..num3072::BYTES].copy_from_slice(&self.numerator.to_bytes());
        out[num3072::BYTES..].copy_from_slice(&self.denominator.to_bytes());
        out
    }

    /// Reads [`MuHash3072::to_bytes`]; `None` where one half is zero, which no set gives.
    pub fn from_bytes(bytes: &[u8; STORED]) -> Option<Self> {
        let half = |at: usize| {
            let n = Num3072::from_bytes(bytes[at..].first_chunk().expect("two halves"));
            (!n.is_zero()).then_some(n)
        };
        Some(Self {
            numerator: half(0)?,
            denominator: half(num3072::BYTES)?,
        })
    }
}

/// Elements held back until there are enough to be multiplied side by side.
const HELD: usize = 16;

/// Running products side by side, by the best instructions the processor has.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone)]
enum Lanes {
    Ifma(Box<ifma::Lanes>),
    Avx2(Box<avx2::Lanes>),
}

#[cfg(target_arch = "x86_64")]
impl Lanes {
    /// Ones; `None` where the processor has none of the instructions.
    fn new() -> Option<Self> {
        let ifma = || ifma::Lanes::new().map(|lanes| Self::Ifma(Box::new(lanes)));
        let avx2 = || avx2::Lanes::new().map(|lanes| Self::Avx2(Box::new(lanes)));
        ifma().or_else(avx2)
    }

    /// Multiplies each by one element.
    fn mul(&mut self, digests: &[Hash; HELD]) {
        match self {
            Self::Ifma(lanes) => lanes.mul(digests),
            Self::Avx2(lanes) => lanes.mul(digests),
        }
    }

    /// Multiplies `total` by all of them.
    fn gather(&self, total: &mut Num3072) {
        match self {
            Self::Ifma(lanes) => lanes.values().for_each(|lane| total.mul(&lane)),
            Self::Avx2(lanes) => lanes.values().for_each(|lane| total.mul(&lane)),
        }
    }
}

/// A product that grows by many elements.
#[derive(Debug, Clone)]
struct Product {
    total: Num3072,
    held: [Hash; HELD],
    count: usize,
    #[cfg(target_arch = "x86_64")]
    lanes: Option<Lanes>,
}

impl Product {
    fn new() -> Self {
        Self {
            total: Num3072::ONE,
            held: [[0; 32]; HELD],
            count: 0,
            #[cfg(target_arch = "x86_64")]
            lanes: None,
        }
    }

    #[inline]
    fn push(&mut self, digest: Hash) {
        self.held[self.count] = digest;
        self.count += 1;
        if self.count == HELD {
            self.flush();
        }
    }

    fn flush(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.count == HELD {
            if self.lanes.is_none() {
                self.lanes = Lanes::new();
            }
            if let Some(lanes) = &mut self.lanes {
                lanes.mul(&self.held);
                self.count = 0;
                return;
            }
        }
        for digest in &self.held[..self.count] {
            self.total.mul(&element(digest));
        }
        self.count = 0;
    }

    fn finish(mut self) -> Num3072 {
        self.flush();
        #[cfg(target_arch = "x86_64")]
        if let Some(lanes) = &self.lanes {
            lanes.gather(&mut self.total);
        }
        self.total
    }
}

/// Changes to a set, gathered to be multiplied many at a time.
///
/// On processors with AVX-512 IFMA, or with AVX2 and FMA, sixteen elements go side by side;
/// elsewhere one by one. The result is the same.
#[derive(Debug, Clone)]
pub struct MuBatch {
    added: Product,
    removed: Product,
    buffer: Vec<u8>,
}

impl Default for MuBatch {
    fn default() -> Self {
        Self::new()
    }
}

impl MuBatch {
    /// No change yet.
    pub fn new() -> Self {
        Self {
            added: Product::new(),
            removed: Product::new(),
            buffer: Vec::with_capacity(256),
        }
    }

    /// Adds a serialised element.
    pub fn insert(&mut self, data: &[u8]) {
        self.added.push(sha256(data));
    }

    /// Takes a serialised element away.
    pub fn remove(&mut self, data: &[u8]) {
        self.removed.push(sha256(data));
    }

    /// Adds a coin; `code` as of [`crate::coin::code`].
    pub fn insert_coin(&mut self, at: &OutPoint, code: u32, value: u64, script: &[u8]) {
        self.buffer.clear();
        put_coin(&mut self.buffer, at, code, value, script);
        self.added.push(sha256(&self.buffer));
    }

    /// Takes a coin away.
    pub fn remove_coin(&mut self, at: &OutPoint, code: u32, value: u64, script: &[u8]) {
        self.buffer.clear();
        put_coin(&mut self.buffer, at, code, value, script);
        self.removed.push(sha256(&self.buffer));
    }

    /// All changes as one, to be combined with the set.
    pub fn finish(self) -> MuHash3072 {
        MuHash3072 {
            numerator: self.added.finish(),
            denominator: self.removed.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::{from_hex, hex};
    use proptest::prelude::*;

    #[test]
    fn the_empty_set() {
        let want = "dd5ad2a105c2d29495f577245c357409002329b9f4d6182c0af3dc2f462555c8";
        assert_eq!(hex(&MuHash3072::new().finalize()), want);
        assert_eq!(from_hex(want), Some(MuHash3072::new().finalize()));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
        #[test]
        fn order_and_batches_do_not_matter(n in 0usize..120, m in 0usize..120) {
            let (mut one, mut back) = (MuHash3072::new(), MuHash3072::new());
            let mut batch = MuBatch::new();
            for i in 0..n.max(m) {
                let data = i.to_le_bytes();
                if i < n { one.insert(&data); batch.insert(&data); }
                if i < m { one.remove(&data); batch.remove(&data); }
            }
            for i in (n.min(m)..n.max(m)).rev() {
                if n > m { back.insert(&i.to_le_bytes()) } else { back.remove(&i.to_le_bytes()) }
            }
            let batch = batch.finish();
            prop_assert_eq!(&one, &batch);
            prop_assert_eq!(&one, &back);
            prop_assert_eq!(one.finalize(), back.finalize());
            prop_assert_eq!(MuHash3072::from_bytes(&one.to_bytes()), Some(back.clone()));
            back.uncombine(&batch);
            prop_assert_eq!(back.finalize(), MuHash3072::new().finalize());
        }
    }
}
