//! Family `meta`: a few named rows.
//!
//! | key | value |
//! |---|---|
//! | `format` | [`FORMAT`] u32 little endian |
//! | `chain` | genesis block's hash (32) |
//! | `salt` | 16 random bytes, see [`super::script`] |
//! | `commitment` | 1 byte: 1 where the MuHash is kept |
//! | `tip` | height u32 little endian ‖ block hash (32) ‖ the set's number for MuHash (384, little endian) |
//!
//! `tip` is written in the same batch as every other row of its blocks; without it the database
//! is empty.

use weft_chain::Hash;

use super::BadRow;
use super::num;
use super::script::Salt;

/// Name of the column family.
pub const META: &str = "meta";
/// Version of the row formats. Raised whenever a format changes.
pub const FORMAT: u32 = 2;

/// Key of the format's version.
pub const KEY_FORMAT: &[u8] = b"format";
/// Key of the chain.
pub const KEY_CHAIN: &[u8] = b"chain";
/// Key of the salt.
pub const KEY_SALT: &[u8] = b"salt";
/// Key of the switch of the commitment.
pub const KEY_COMMITMENT: &[u8] = b"commitment";
/// Key of the tip.
pub const KEY_TIP: &[u8] = b"tip";

/// The row `tip`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TipRow {
    /// Height of the last block.
    pub height: u32,
    /// Its hash.
    pub hash: Hash,
    /// The coin set's number.
    pub set: Box<[u8; 384]>,
}

impl TipRow {
    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        [&self.height.to_le_bytes()[..], &self.hash, &self.set[..]].concat()
    }

    /// Reads the value.
    pub fn decode(mut value: &[u8]) -> Result<Self, BadRow> {
        let v = &mut value;
        let row = (|| {
            let height = u32::from_le_bytes(num::take_array(v)?);
            Some(Self {
                height,
                hash: num::take_array(v)?,
                set: Box::new(num::take_array(v)?),
            })
        })();
        row.filter(|_| value.is_empty())
            .ok_or_else(|| BadRow::new(META, "the tip", KEY_TIP))
    }
}

/// Reads the row `format`.
pub fn read_format(value: &[u8]) -> Result<u32, BadRow> {
    value
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| BadRow::new(META, "the format", KEY_FORMAT))
}

/// Reads the row `salt`.
pub fn read_salt(value: &[u8]) -> Result<Salt, BadRow> {
    value
        .try_into()
        .map_err(|_| BadRow::new(META, "the salt", KEY_SALT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_tip_round_trips(height: u32, hash: [u8; 32], seed: u8) {
            let row = TipRow { height, hash, set: Box::new([seed; 384]) };
            prop_assert_eq!(TipRow::decode(&row.encode()).unwrap(), row);
        }

        #[test]
        fn any_bytes_are_answered(value: Vec<u8>) {
            let _ = TipRow::decode(&value);
            let _ = read_format(&value);
            let _ = read_salt(&value);
        }
    }
}
