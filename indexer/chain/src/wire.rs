//! Cursor over bytes from outside, and the two variable-length integers of the Core family.
//!
//! `CompactSize` is the one of the wire: one byte below 0xfd, else 0xfd/0xfe/0xff and 2/4/8 bytes
//! little endian, shortest form required. `VARINT` is the one of the databases: base 128, most
//! significant group first, each continuation adding one so that no value has two forms.

use crate::{Error, Hash};

/// A position in bytes; every read is checked against what is left.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    data: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// Starts at the first byte of `data`.
    pub fn new(data: &'a [u8]) -> Self {
        Self { data, at: 0 }
    }

    /// Offset of the next byte.
    pub fn position(&self) -> usize {
        self.at
    }

    /// Bytes left.
    pub fn remaining(&self) -> usize {
        self.data.len() - self.at
    }

    /// All bytes the reader was made of.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// The next byte without reading it.
    pub fn peek(&self) -> Option<u8> {
        self.data.get(self.at).copied()
    }

    /// Reads `n` bytes.
    #[inline]
    pub fn take(&mut self, n: usize, what: &'static str) -> Result<&'a [u8], Error> {
        let rest = &self.data[self.at..];
        let Some(out) = rest.get(..n) else {
            return Err(Error::Truncated {
                what,
                at: self.at,
                want: n as u64,
                have: rest.len(),
            });
        };
        self.at += n;
        Ok(out)
    }

    /// Reads `N` bytes as an array.
    #[inline]
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Error> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, what)?);
        Ok(out)
    }

    /// Reads one byte.
    #[inline]
    pub fn u8(&mut self, what: &'static str) -> Result<u8, Error> {
        Ok(self.take(1, what)?[0])
    }

    /// Reads a little-endian 32-bit number.
    #[inline]
    pub fn u32(&mut self, what: &'static str) -> Result<u32, Error> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    /// Reads a little-endian 64-bit number.
    #[inline]
    pub fn u64(&mut self, what: &'static str) -> Result<u64, Error> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    /// Reads a hash.
    #[inline]
    pub fn hash(&mut self, what: &'static str) -> Result<Hash, Error> {
        self.array(what)
    }

    /// Reads a CompactSize.
    #[inline]
    pub fn compact_size(&mut self, what: &'static str) -> Result<u64, Error> {
        let at = self.at;
        let (value, least) = match self.u8(what)? {
            0xfd => (u64::from(u16::from_le_bytes(self.array(what)?)), 0xfd),
            0xfe => (u64::from(self.u32(what)?), 0x1_0000),
            0xff => (self.u64(what)?, 0x1_0000_0000),
            n => return Ok(u64::from(n)),
        };
        if value < least {
            return Err(Error::NotCanonical { what, at });
        }
        Ok(value)
    }

    /// Reads a CompactSize that counts items of at least `least` bytes each, so that it cannot
    /// exceed what the bytes left could hold.
    #[inline]
    pub fn count(&mut self, least: usize, what: &'static str) -> Result<usize, Error> {
        let at = self.at;
        let count = self.compact_size(what)?;
        let max = (self.remaining() / least.max(1)) as u64;
        if count > max {
            return Err(Error::TooMany {
                what,
                at,
                count,
                max,
            });
        }
        Ok(count as usize)
    }

    /// Reads a CompactSize and as many bytes.
    #[inline]
    pub fn bytes(&mut self, what: &'static str) -> Result<&'a [u8], Error> {
        let len = self.count(1, what)?;
        self.take(len, what)
    }

    /// Reads a VARINT.
    pub fn varint(&mut self, what: &'static str) -> Result<u64, Error> {
        let at = self.at;
        let mut n = 0u64;
        loop {
            let byte = self.u8(what)?;
            if n > u64::MAX >> 7 {
                return Err(Error::NotCanonical { what, at });
            }
            n = n << 7 | u64::from(byte & 0x7f);
            if byte & 0x80 == 0 {
                return Ok(n);
            }
            n = n.checked_add(1).ok_or(Error::NotCanonical { what, at })?;
        }
    }

    /// Errs if bytes are left.
    pub fn finish(&self, what: &'static str) -> Result<(), Error> {
        match self.remaining() {
            0 => Ok(()),
            left => Err(Error::Trailing {
                what,
                at: self.at,
                left,
            }),
        }
    }
}

/// Appends a CompactSize.
pub fn put_compact_size(out: &mut Vec<u8>, n: u64) {
    match n {
        0..0xfd => out.push(n as u8),
        0xfd..=0xffff => {
            out.push(0xfd);
            out.extend_from_slice(&(n as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(0xfe);
            out.extend_from_slice(&(n as u32).to_le_bytes());
        }
        _ => {
            out.push(0xff);
            out.extend_from_slice(&n.to_le_bytes());
        }
    }
}

/// Bytes a CompactSize of `n` takes.
pub fn compact_size_len(n: u64) -> usize {
    match n {
        0..0xfd => 1,
        0xfd..=0xffff => 3,
        0x1_0000..=0xffff_ffff => 5,
        _ => 9,
    }
}

/// Appends a VARINT.
pub fn put_varint(out: &mut Vec<u8>, mut n: u64) {
    let mut groups = [0u8; 10];
    let mut first = groups.len() - 1;
    groups[first] = (n & 0x7f) as u8;
    while n > 0x7f {
        n = (n >> 7) - 1;
        first -= 1;
        groups[first] = (n & 0x7f) as u8 | 0x80;
    }
    out.extend_from_slice(&groups[first..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_varints() {
        for (n, bytes) in [
            (0, vec![0]),
            (0x7f, vec![0x7f]),
            (0x80, vec![0x80, 0x00]),
            (0xff, vec![0x80, 0x7f]),
            (0x3fff, vec![0xfe, 0x7f]),
            (0x4000, vec![0xff, 0x00]),
            (0xffff, vec![0x82, 0xfe, 0x7f]),
            (1 << 32, vec![0x8e, 0xfe, 0xfe, 0xff, 0x00]),
        ] {
            let mut out = Vec::new();
            put_varint(&mut out, n);
            assert_eq!(out, bytes, "{n:#x}");
        }
    }

    #[test]
    fn long_forms_are_refused() {
        for bytes in [
            &[0xfd, 0xfc, 0][..],
            &[0xfe, 0xff, 0xff, 0, 0],
            &[0xff, 1, 0, 0, 0, 0, 0, 0, 0],
        ] {
            assert!(matches!(
                Reader::new(bytes).compact_size("n"),
                Err(Error::NotCanonical { .. })
            ));
        }
        assert!(Reader::new(&[0xff; 12]).varint("n").is_err());
    }

    proptest! {
        #[test]
        fn both_integers_round_trip(n in any::<u64>(), shift in 0u32..64) {
            let n = n >> shift;
            let mut out = Vec::new();
            put_varint(&mut out, n);
            put_compact_size(&mut out, n);
            let mut r = Reader::new(&out);
            prop_assert_eq!(r.varint("n"), Ok(n));
            prop_assert_eq!(r.remaining(), compact_size_len(n));
            prop_assert_eq!(r.compact_size("n"), Ok(n));
        }
    }
}
