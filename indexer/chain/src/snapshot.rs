//! The file of `dumptxoutset`, version 2, read and written as a stream.
//!
//! `utxo` 0xff, u16 version 2, network magic (4), hash of the block, u64 number of coins; then
//! for each transaction its id, CompactSize number of coins, and for each coin CompactSize output
//! number, VARINT(height·2 + coinbase), amount and script in their short forms. Transactions are
//! in order of their ids' bytes, the coins of one in the order of the nodes' database: that of
//! the bytes of VARINT(output number), which is not that of the numbers above 16,511.

use std::io::{self, Read, Write};

use crate::coin::{Coin, OutPoint};
use crate::compress::{
    compress_amount, decompress_amount, expand, plain_len, put_script, special_len,
};
use crate::wire::{put_compact_size, put_varint};
use crate::{Error, Hash};

const MAGIC: [u8; 5] = *b"utxo\xff";
const VERSION: u16 = 2;

/// What a snapshot says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Preamble {
    /// Magic of the network.
    pub network: [u8; 4],
    /// Block whose coin set it is.
    pub block: Hash,
    /// Number of coins.
    pub coins: u64,
}

/// Why a snapshot was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file itself.
    #[error("reading or writing the snapshot: {0}")]
    Io(#[from] io::Error),
    /// What stands in it.
    #[error("snapshot, coin {coin}: {source}")]
    Coin {
        /// Coins before.
        coin: u64,
        /// What is wrong.
        source: Error,
    },
    /// It is none, or of another version.
    #[error("snapshot: {0}")]
    Preamble(&'static str),
    /// The writer got another number of coins than announced, or not in order.
    #[error("snapshot: {wrote} coins were written, {announced} announced")]
    Count {
        /// Coins announced at the beginning.
        announced: u64,
        /// Coins written.
        wrote: u64,
    },
}

/// Reads a snapshot coin by coin. Give it a buffered stream.
#[derive(Debug)]
pub struct SnapshotReader<R> {
    input: R,
    preamble: Preamble,
    read: u64,
    txid: Hash,
    left_of_tx: u64,
    body: Vec<u8>,
}

impl<R: Read> SnapshotReader<R> {
    /// Reads the preamble.
    pub fn new(mut input: R) -> Result<Self, SnapshotError> {
        let mut head = [0; 51];
        input.read_exact(&mut head)?;
        if head[..5] != MAGIC {
            return Err(SnapshotError::Preamble(
                "it does not begin with `utxo` 0xff",
            ));
        }
        if head[5..7] != VERSION.to_le_bytes() {
            return Err(SnapshotError::Preamble("its version is not 2"));
        }
        let array = |range: std::ops::Range<usize>| &head[range];
        let preamble = Preamble {
            network: array(7..11).try_into().expect("4 bytes"),
            block: array(11..43).try_into().expect("32 bytes"),
            coins: u64::from_le_bytes(array(43..51).try_into().expect("8 bytes")),
        };
        Ok(Self {
            input,
            preamble,
            read: 0,
            txid: [0; 32],
            left_of_tx: 0,
            body: Vec::new(),
        })
    }

    /// What it says of itself.
    pub fn preamble(&self) -> &Preamble {
        &self.preamble
    }

    /// The next coin; `None` after the last, where nothing may follow.
    pub fn next_coin(&mut self) -> Result<Option<(OutPoint, Coin)>, SnapshotError> {
        if self.read == self.preamble.coins {
            if self.left_of_tx != 0 {
                return Err(self.refuse(
                    "coin",
                    "its transaction announces more coins than the snapshot",
                ));
            }
            return match self.input.read(&mut [0])? {
                0 => Ok(None),
                _ => Err(self.refuse("snapshot", "bytes follow its last coin")),
            };
        }
        if self.left_of_tx == 0 {
            self.txid = self.array()?;
            self.left_of_tx = self.compact_size()?;
            if self.left_of_tx == 0 {
                return Err(self.refuse("transaction", "it has no coin"));
            }
        }
        let vout = u32::try_from(self.compact_size()?)
            .map_err(|_| self.refuse("output number", "it does not fit in 32 bits"))?;
        let code = u32::try_from(self.varint()?)
            .map_err(|_| self.refuse("height", "it does not fit in 31 bits"))?;
        let amount = self.varint()?;
        let value = decompress_amount(amount)
            .filter(|v| i64::try_from(*v).is_ok())
            .ok_or_else(|| self.refuse("amount", "it is above 2^63"))?;
        let kind = self.varint()?;
        let len = match special_len(kind) {
            Some(len) => len,
            None => plain_len(kind, 0).map_err(|source| SnapshotError::Coin {
                coin: self.read,
                source,
            })?,
        };
        let mut body = std::mem::take(&mut self.body);
        body.resize(len, 0);
        self.input.read_exact(&mut body)?;
        let script = expand(kind, &body)
            .ok_or_else(|| self.refuse("script", "its key is not on the curve"))?;
        self.body = body;
        self.left_of_tx -= 1;
        self.read += 1;
        let coin = Coin {
            value,
            height: code >> 1,
            coinbase: code & 1 == 1,
            script,
        };
        Ok(Some((
            OutPoint {
                txid: self.txid,
                vout,
            },
            coin,
        )))
    }

    fn refuse(&self, what: &'static str, why: &'static str) -> SnapshotError {
        SnapshotError::Coin {
            coin: self.read,
            source: Error::Malformed { what, at: 0, why },
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], SnapshotError> {
        let mut out = [0; N];
        self.input.read_exact(&mut out)?;
        Ok(out)
    }

    fn compact_size(&mut self) -> Result<u64, SnapshotError> {
        let [first] = self.array()?;
        let (n, least) = match first {
            0xfd => (u64::from(u16::from_le_bytes(self.array()?)), 0xfd),
            0xfe => (u64::from(u32::from_le_bytes(self.array()?)), 0x1_0000),
            0xff => (u64::from_le_bytes(self.array()?), 0x1_0000_0000),
            n => (u64::from(n), 0),
        };
        if n < least {
            Err(self.refuse("CompactSize", "it is not in its shortest form"))
        } else {
            Ok(n)
        }
    }

    fn varint(&mut self) -> Result<u64, SnapshotError> {
        let mut bytes = [0; 10];
        for n in 0..bytes.len() {
            [bytes[n]] = self.array()?;
            if bytes[n] & 0x80 == 0 {
                return crate::wire::Reader::new(&bytes[..=n])
                    .varint("VARINT")
                    .map_err(|source| SnapshotError::Coin {
                        coin: self.read,
                        source,
                    });
            }
        }
        Err(self.refuse("VARINT", "it is longer than 64 bits"))
    }
}

/// Writes a snapshot coin by coin. Give it a buffered stream.
#[derive(Debug)]
pub struct SnapshotWriter<W> {
    output: W,
    announced: u64,
    wrote: u64,
    txid: Option<Hash>,
    /// Coins of the current transaction: their key in the nodes' database, and their bytes.
    coins: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<W: Write> SnapshotWriter<W> {
    /// Writes the preamble.
    pub fn new(mut output: W, preamble: &Preamble) -> Result<Self, SnapshotError> {
        output.write_all(&MAGIC)?;
        output.write_all(&VERSION.to_le_bytes())?;
        output.write_all(&preamble.network)?;
        output.write_all(&preamble.block)?;
        output.write_all(&preamble.coins.to_le_bytes())?;
        Ok(Self {
            output,
            announced: preamble.coins,
            wrote: 0,
            txid: None,
            coins: Vec::new(),
        })
    }

    /// Adds a coin. Transactions must come in order of their ids' bytes; the coins of one may
    /// come in any order.
    pub fn push(
        &mut self,
        at: &OutPoint,
        code: u32,
        value: u64,
        script: &[u8],
    ) -> Result<(), SnapshotError> {
        if self.txid != Some(at.txid) {
            if self.txid.is_some_and(|last| last > at.txid) {
                let why = "it does not come after the one before in order of ids";
                let source = Error::Malformed {
                    what: "transaction",
                    at: 0,
                    why,
                };
                return Err(SnapshotError::Coin {
                    coin: self.wrote,
                    source,
                });
            }
            self.flush()?;
            self.txid = Some(at.txid);
        }
        let (mut key, mut coin) = (Vec::with_capacity(5), Vec::with_capacity(48));
        put_varint(&mut key, u64::from(at.vout));
        put_compact_size(&mut coin, u64::from(at.vout));
        put_varint(&mut coin, u64::from(code));
        put_varint(&mut coin, compress_amount(value));
        put_script(&mut coin, script);
        self.coins.push((key, coin));
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SnapshotError> {
        let Some(txid) = self.txid else { return Ok(()) };
        self.coins.sort_unstable();
        let mut count = Vec::with_capacity(9);
        put_compact_size(&mut count, self.coins.len() as u64);
        self.output.write_all(&txid)?;
        self.output.write_all(&count)?;
        for (_, coin) in &self.coins {
            self.output.write_all(coin)?;
        }
        self.wrote += self.coins.len() as u64;
        self.coins.clear();
        Ok(())
    }

    /// Writes what is held back and gives the stream back, flushed; errs if there were not as
    /// many coins as announced.
    pub fn finish(mut self) -> Result<W, SnapshotError> {
        self.flush()?;
        if self.wrote != self.announced {
            return Err(SnapshotError::Count {
                announced: self.announced,
                wrote: self.wrote,
            });
        }
        self.output.flush()?;
        Ok(self.output)
    }
}
