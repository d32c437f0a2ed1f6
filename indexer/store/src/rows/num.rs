//! Numbers in rows: [`TxNum`], the position of an output in a key, and LEB128 in values.

use weft_chain::compress::{compress_amount, decompress_amount};

/// Names a transaction of the active chain: height, then position in the block.
///
/// In a key 5 bytes, big endian: height (3), position (2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TxNum(u64);

impl TxNum {
    /// Greatest height that fits.
    pub const MAX_HEIGHT: u32 = (1 << 24) - 1;
    /// Greatest position that fits. A block of 4,000,000 weight holds 16,666 transactions.
    pub const MAX_INDEX: u32 = (1 << 16) - 1;

    /// The transaction at `index` of the block at `height`; `None` where one is out of range.
    pub fn new(height: u32, index: u32) -> Option<Self> {
        (height <= Self::MAX_HEIGHT && index <= Self::MAX_INDEX)
            .then_some(Self(u64::from(height) << 16 | u64::from(index)))
    }

    /// The first possible number at `height`, which may be one past [`Self::MAX_HEIGHT`].
    pub fn first_of(height: u32) -> Self {
        Self(u64::from(height) << 16)
    }

    /// Height of the block.
    pub fn height(self) -> u32 {
        (self.0 >> 16) as u32
    }

    /// Position in the block; 0 is the coinbase.
    pub fn index(self) -> u32 {
        (self.0 & 0xffff) as u32
    }

    /// The 40 bits as a number.
    pub fn to_u64(self) -> u64 {
        self.0
    }

    /// Reads the low 40 bits of `n`.
    pub fn from_low_bits(n: u64) -> Self {
        Self(n & 0xff_ffff_ffff)
    }

    /// The bytes in a key.
    pub fn to_bytes(self) -> [u8; 5] {
        let [_, _, _, out @ ..] = self.0.to_be_bytes();
        out
    }

    /// Reads [`Self::to_bytes`].
    pub fn from_bytes(b: [u8; 5]) -> Self {
        Self(u64::from_be_bytes([0, 0, 0, b[0], b[1], b[2], b[3], b[4]]))
    }
}

/// Appends an output's position so that longer forms sort after shorter ones: below 0xfd one
/// byte; else 0xfd and two bytes, or 0xfe and four, big endian.
pub fn put_vout(out: &mut Vec<u8>, vout: u32) {
    if vout < 0xfd {
        out.push(vout as u8);
    } else if let Ok(short) = u16::try_from(vout) {
        out.push(0xfd);
        out.extend_from_slice(&short.to_be_bytes());
    } else {
        out.push(0xfe);
        out.extend_from_slice(&vout.to_be_bytes());
    }
}

/// Reads what [`put_vout`] wrote; `None` unless `bytes` is exactly that.
pub fn get_vout(bytes: &[u8]) -> Option<u32> {
    match *bytes {
        [n] if n < 0xfd => Some(u32::from(n)),
        [0xfd, a, b] => Some(u32::from(u16::from_be_bytes([a, b]))).filter(|n| *n >= 0xfd),
        [0xfe, a, b, c, d] => Some(u32::from_be_bytes([a, b, c, d])).filter(|n| *n > 0xffff),
        _ => None,
    }
}

/// Appends `n` as LEB128: 7 bits a byte, least significant first, the top bit set on all but the
/// last.
pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

/// Reads a number [`put_varint`] wrote and moves `bytes` past it; `None` if it is cut off, too
/// large or padded.
pub fn get_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0u64;
    for (i, &byte) in bytes.iter().enumerate().take(10) {
        let part = u64::from(byte & 0x7f);
        if i == 9 && part > 1 {
            return None;
        }
        n |= part << (7 * i);
        if byte & 0x80 == 0 {
            if byte == 0 && i > 0 {
                return None;
            }
            *bytes = &bytes[i + 1..];
            return Some(n);
        }
    }
    None
}

/// Takes `n` bytes off the front.
pub fn take<'a>(bytes: &mut &'a [u8], n: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(n)?;
    *bytes = tail;
    Some(head)
}

/// Takes an array off the front.
pub fn take_array<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    take(bytes, N)?.try_into().ok()
}

/// Appends an amount: a varint of the form in which nodes store amounts, with trailing decimal
/// zeros taken out. At most 2^60, more than any chain has in all.
pub fn put_amount(out: &mut Vec<u8>, amount: u64) {
    put_varint(out, compress_amount(amount));
}

/// Reads an amount and moves `bytes` past it; `None` where it would exceed `i64::MAX`.
pub fn get_amount(bytes: &mut &[u8]) -> Option<u64> {
    decompress_amount(get_varint(bytes)?).filter(|n| i64::try_from(*n).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn txnum_sorts_as_the_chain(a in (0u32..=TxNum::MAX_HEIGHT, 0u32..=TxNum::MAX_INDEX), b in (0u32..=TxNum::MAX_HEIGHT, 0u32..=TxNum::MAX_INDEX)) {
            let (x, y) = (TxNum::new(a.0, a.1).unwrap(), TxNum::new(b.0, b.1).unwrap());
            prop_assert_eq!((x.height(), x.index()), a);
            prop_assert_eq!(TxNum::from_bytes(x.to_bytes()), x);
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
            prop_assert_eq!(a.cmp(&b), x.to_bytes().cmp(&y.to_bytes()));
        }

        #[test]
        fn vout_round_trips_and_sorts(a: u32, b: u32, shift_a in 0u32..32, shift_b in 0u32..32) {
            let (a, b) = (a >> shift_a, b >> shift_b);
            let (mut x, mut y) = (Vec::new(), Vec::new());
            put_vout(&mut x, a);
            put_vout(&mut y, b);
            prop_assert_eq!(get_vout(&x), Some(a));
            prop_assert_eq!(a.cmp(&b), x.cmp(&y));
        }

        #[test]
        fn varint_round_trips(n: u64, shift in 0u32..64, tail: Vec<u8>) {
            let n = n >> shift;
            let mut bytes = Vec::new();
            put_varint(&mut bytes, n);
            bytes.extend_from_slice(&tail);
            let mut rest = &bytes[..];
            prop_assert_eq!(get_varint(&mut rest), Some(n));
            prop_assert_eq!(rest, &tail[..]);
        }

        #[test]
        fn varint_has_one_form(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let mut rest = &bytes[..];
            if let Some(n) = get_varint(&mut rest) {
                let mut again = Vec::new();
                put_varint(&mut again, n);
                prop_assert_eq!(&bytes[..bytes.len() - rest.len()], &again[..]);
            }
        }

        #[test]
        fn amount_round_trips(m in 0u64..=1 << 60, shift in 0u32..60, e in 0u32..19) {
            for n in [m >> shift, (m >> shift).saturating_mul(10u64.pow(e)).min(1 << 60)] {
                let mut bytes = Vec::new();
                put_amount(&mut bytes, n);
                let mut rest = &bytes[..];
                prop_assert_eq!(get_amount(&mut rest), Some(n));
                prop_assert!(rest.is_empty());
            }
        }
    }

    #[test]
    fn bounds() {
        assert_eq!(TxNum::new(1 << 24, 0), None);
        assert_eq!(TxNum::new(0, 1 << 16), None);
        assert_eq!(get_vout(&[0xfd, 0, 0xfc]), None);
        assert_eq!(get_vout(&[0xff]), None);
    }
}
