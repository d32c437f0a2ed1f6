//! Family `coins`: unspent outputs by the transaction that made them.
//!
//! Key: [`TxNum`] (5 bytes) ‖ vout ([`num::put_vout`]). Value ([`Body`]): amount
//! ([`num::put_amount`]) ‖ script.
//!
//! Script: a varint `t`; `t` 0..=6 is a template and its payload, in the order of [`TEMPLATES`];
//! otherwise `t − 7` bytes follow as they are. Height is in the txnum, and position 0 in the
//! block says coinbase.

use super::BadRow;
use super::num::{self, TxNum};

/// Name of the column family.
pub const COINS: &str = "coins";

/// Scripts with a fixed frame: what comes before the payload, its length, what comes after.
/// P2PKH, P2SH, P2WPKH, P2WSH, P2TR, P2PK with a compressed and with an uncompressed key.
pub const TEMPLATES: [(&[u8], usize, &[u8]); 7] = [
    (&[0x76, 0xa9, 0x14], 20, &[0x88, 0xac]),
    (&[0xa9, 0x14], 20, &[0x87]),
    (&[0x00, 0x14], 20, &[]),
    (&[0x00, 0x20], 32, &[]),
    (&[0x51, 0x20], 32, &[]),
    (&[0x21], 33, &[0xac]),
    (&[0x41], 65, &[0xac]),
];

/// Appends a script.
pub fn put_script(out: &mut Vec<u8>, script: &[u8]) {
    for (t, (head, len, tail)) in TEMPLATES.iter().enumerate() {
        if script.len() == head.len() + len + tail.len()
            && script.starts_with(head)
            && script.ends_with(tail)
        {
            out.push(t as u8);
            out.extend_from_slice(&script[head.len()..head.len() + len]);
            return;
        }
    }
    num::put_varint(out, (script.len() + TEMPLATES.len()) as u64);
    out.extend_from_slice(script);
}

/// Reads a script [`put_script`] wrote and moves `bytes` past it.
pub fn get_script(bytes: &mut &[u8]) -> Option<Vec<u8>> {
    let t = usize::try_from(num::get_varint(bytes)?).ok()?;
    match TEMPLATES.get(t) {
        Some((head, len, tail)) => Some([head, num::take(bytes, *len)?, tail].concat()),
        None => Some(num::take(bytes, t - TEMPLATES.len())?.to_vec()),
    }
}

/// The encoded value of a row: kept in this form in memory too, inline where it is short, which
/// all but bare multisig and odd scripts are.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(Repr);

#[derive(Clone, PartialEq, Eq)]
enum Repr {
    Inline(u8, [u8; Body::INLINE]),
    Heap(Box<[u8]>),
}

impl Body {
    /// Longest form kept without an allocation.
    pub const INLINE: usize = 38;

    /// Encodes an output. `scratch` is overwritten; it saves an allocation per coin.
    pub fn encode(value: u64, script: &[u8], scratch: &mut Vec<u8>) -> Self {
        scratch.clear();
        num::put_amount(scratch, value);
        put_script(scratch, script);
        Self::from_encoded(scratch)
    }

    /// Keeps bytes that [`Body::encode`] made or [`Body::check`] accepts.
    pub fn from_encoded(bytes: &[u8]) -> Self {
        if bytes.len() <= Self::INLINE {
            let mut inline = [0; Self::INLINE];
            inline[..bytes.len()].copy_from_slice(bytes);
            Self(Repr::Inline(bytes.len() as u8, inline))
        } else {
            Self(Repr::Heap(bytes.into()))
        }
    }

    /// The bytes of the value.
    pub fn as_bytes(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline(len, bytes) => &bytes[..usize::from(*len)],
            Repr::Heap(bytes) => bytes,
        }
    }

    /// Amount and script, or `None` where the bytes are no row.
    pub fn decode(&self) -> Option<(u64, Vec<u8>)> {
        let mut bytes = self.as_bytes();
        let out = decode_prefix(&mut bytes)?;
        bytes.is_empty().then_some(out)
    }

    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Repr::Inline(..) => 0,
            Repr::Heap(bytes) => bytes.len() + 16,
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Body({})", super::hex(self.as_bytes()))
    }
}

/// Reads amount and script from the front of `bytes`.
pub fn decode_prefix(bytes: &mut &[u8]) -> Option<(u64, Vec<u8>)> {
    let value = num::get_amount(bytes)?;
    Some((value, get_script(bytes)?))
}

/// Key of the coin.
pub fn key(txnum: TxNum, vout: u32) -> Vec<u8> {
    let mut out = Vec::with_capacity(10);
    put_key(&mut out, txnum, vout);
    out
}

/// Appends the key of the coin.
pub fn put_key(out: &mut Vec<u8>, txnum: TxNum, vout: u32) {
    out.extend_from_slice(&txnum.to_bytes());
    num::put_vout(out, vout);
}

/// Reads a key.
pub fn read_key(key: &[u8]) -> Result<(TxNum, u32), BadRow> {
    let mut rest = key;
    let txnum = num::take_array(&mut rest).map(TxNum::from_bytes);
    txnum
        .zip(num::get_vout(rest))
        .ok_or_else(|| BadRow::new(COINS, "the key", key))
}

/// Reads a value into amount and script.
pub fn read_value(key: &[u8], mut value: &[u8]) -> Result<(u64, Vec<u8>), BadRow> {
    decode_prefix(&mut value)
        .filter(|_| value.is_empty())
        .ok_or_else(|| BadRow::new(COINS, "amount or script", key))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Scripts of every template and of none, of all lengths that matter.
    fn script() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            (0usize..7, proptest::collection::vec(any::<u8>(), 65)).prop_map(|(t, p)| {
                let (head, len, tail) = TEMPLATES[t];
                [head, &p[..len], tail].concat()
            }),
            proptest::collection::vec(any::<u8>(), 0..200),
            Just(vec![0x51; 10_000]),
        ]
    }

    proptest! {
        #[test]
        fn rows_round_trip(value in 0u64..=1 << 60, script in script(), h in 0u32..=TxNum::MAX_HEIGHT, i in 0u32..=TxNum::MAX_INDEX, vout: u32) {
            let body = Body::encode(value, &script, &mut Vec::new());
            prop_assert_eq!(body.decode(), Some((value, script.clone())));
            let txnum = TxNum::new(h, i).unwrap();
            let k = key(txnum, vout);
            prop_assert_eq!(read_key(&k).unwrap(), (txnum, vout));
            prop_assert_eq!(read_value(&k, body.as_bytes()).unwrap(), (value, script));
        }

        #[test]
        fn any_bytes_are_answered(bytes: Vec<u8>) {
            let _ = read_key(&bytes);
            let _ = read_value(&[], &bytes);
        }
    }

    #[test]
    fn common_scripts_are_short() {
        let body = Body::encode(
            5_000_000_000,
            &[&[0x76, 0xa9, 0x14][..], &[7; 20], &[0x88, 0xac]].concat(),
            &mut Vec::new(),
        );
        assert_eq!(body.as_bytes().len(), 1 + 1 + 20);
        assert_eq!(body.heap_bytes(), 0);
    }
}
