//! Encoding and decoding of control messages.
//!
//! Integers are in network byte order. Every list and byte string carries its length and is read against a bound that
//! the reader of that field names, so that no message can make its receiver allocate more than it is long.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::identity::NodeId;

/// Why bytes are not the message they should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The message ends in the middle of a field.
    #[error("truncated: {wanted} bytes wanted, {left} left")]
    Truncated {
        /// Bytes the field needs.
        wanted: usize,
        /// Bytes there were.
        left: usize,
    },
    /// Bytes after the end.
    #[error("{0} bytes after the end of the message")]
    Trailing(usize),
    /// A length or count above its bound.
    #[error("{field} is {value}, at most {max} is allowed")]
    TooLong {
        /// Which.
        field: &'static str,
        /// What it was.
        value: usize,
        /// The bound.
        max: usize,
    },
    /// A value that is none of the allowed.
    #[error("{field} has the value {value}, which is not defined")]
    Value {
        /// Which.
        field: &'static str,
        /// What it was.
        value: u64,
    },
    /// Text that is not UTF-8.
    #[error("{0} is not UTF-8")]
    Text(&'static str),
}

/// Reads fields off the front of a byte string.
#[derive(Clone, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Over these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Bytes not read yet.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Exactly `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::Truncated {
                wanted: count,
                left: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(head)
    }

    /// Everything left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// An array.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated {
                wanted: N,
                left: self.rest.len(),
            })?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, WireError> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// 0 or 1.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, WireError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(WireError::Value {
                field,
                value: value.into(),
            }),
        }
    }

    /// 16 bits.
    pub fn u16(&mut self) -> Result<u16, WireError> {
        self.array().map(u16::from_be_bytes)
    }

    /// 32 bits.
    pub fn u32(&mut self) -> Result<u32, WireError> {
        self.array().map(u32::from_be_bytes)
    }

    /// 64 bits.
    pub fn u64(&mut self) -> Result<u64, WireError> {
        self.array().map(u64::from_be_bytes)
    }

    /// A byte string preceded by its 16-bit length.
    pub fn var_bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], WireError> {
        let count = self.count(field, max)?;
        self.bytes(count)
    }

    /// UTF-8 preceded by its 16-bit length in bytes.
    pub fn text(&mut self, field: &'static str, max: usize) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.var_bytes(field, max)?).map_err(|_| WireError::Text(field))
    }

    /// A 16-bit count of things that follow.
    pub fn count(&mut self, field: &'static str, max: usize) -> Result<usize, WireError> {
        let value = usize::from(self.u16()?);
        if value > max {
            Err(WireError::TooLong { field, value, max })
        } else {
            Ok(value)
        }
    }

    /// A counted list.
    pub fn list<T>(
        &mut self,
        field: &'static str,
        max: usize,
        mut item: impl FnMut(&mut Self) -> Result<T, WireError>,
    ) -> Result<Vec<T>, WireError> {
        let count = self.count(field, max)?;
        // Every item takes at least a byte, so what is left bounds what may be reserved.
        let mut items = Vec::with_capacity(count.min(self.left()));
        for _ in 0..count {
            items.push(item(self)?);
        }
        Ok(items)
    }

    /// A node id. Whether it is a usable key is checked where it is used as one.
    pub fn node_id(&mut self) -> Result<NodeId, WireError> {
        self.array().map(NodeId)
    }

    /// Family (4 or 6), address.
    pub fn ip(&mut self) -> Result<IpAddr, WireError> {
        match self.u8()? {
            4 => self
                .array::<4>()
                .map(|octets| IpAddr::V4(Ipv4Addr::from(octets))),
            6 => self
                .array::<16>()
                .map(|octets| IpAddr::V6(Ipv6Addr::from(octets))),
            value => Err(WireError::Value {
                field: "address family",
                value: value.into(),
            }),
        }
    }

    /// Family, address, port.
    pub fn socket_addr(&mut self) -> Result<SocketAddr, WireError> {
        let ip = self.ip()?;
        Ok(SocketAddr::new(ip, self.u16()?))
    }

    /// Ends the reading: nothing may be left.
    pub fn finish(self) -> Result<(), WireError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(WireError::Trailing(self.rest.len()))
        }
    }
}

/// Appends fields to a byte string. Infallible: callers keep to the bounds their readers state; a length beyond 16 bits
/// is a bug and is cut rather than mis-framed.
#[derive(Clone, Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// Empty.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Empty, with room.
    #[must_use]
    pub fn with_capacity(bytes: usize) -> Self {
        Self {
            buffer: Vec::with_capacity(bytes),
        }
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What was written so far.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// The bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.buffer
    }

    /// These bytes as they are.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.buffer.extend_from_slice(bytes);
        self
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.bytes(&[value])
    }

    /// 0 or 1.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.bytes(&value.to_be_bytes())
    }

    /// A byte string preceded by its 16-bit length.
    pub fn var_bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let len = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
        debug_assert_eq!(
            usize::from(len),
            bytes.len(),
            "byte string too long for its field"
        );
        self.u16(len).bytes(&bytes[..usize::from(len)])
    }

    /// UTF-8 preceded by its length in bytes.
    pub fn text(&mut self, text: &str) -> &mut Self {
        self.var_bytes(text.as_bytes())
    }

    /// A counted list.
    pub fn list<T>(&mut self, items: &[T], mut item: impl FnMut(&mut Self, &T)) -> &mut Self {
        let count = u16::try_from(items.len()).unwrap_or(u16::MAX);
        debug_assert_eq!(
            usize::from(count),
            items.len(),
            "list too long for its field"
        );
        self.u16(count);
        items
            .iter()
            .take(usize::from(count))
            .for_each(|entry| item(self, entry));
        self
    }

    /// A node id.
    pub fn node_id(&mut self, id: &NodeId) -> &mut Self {
        self.bytes(&id.0)
    }

    /// Family, address.
    pub fn ip(&mut self, ip: &IpAddr) -> &mut Self {
        match ip {
            IpAddr::V4(v4) => self.u8(4).bytes(&v4.octets()),
            IpAddr::V6(v6) => self.u8(6).bytes(&v6.octets()),
        }
    }

    /// Family, address, port.
    pub fn socket_addr(&mut self, address: &SocketAddr) -> &mut Self {
        self.ip(&address.ip()).u16(address.port())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(
            a: u8, b: u16, c: u32, d: u64, bytes in proptest::collection::vec(any::<u8>(), 0..300), text in "\\PC{0,40}",
            ip: IpAddr, port: u16, id: [u8; 32], list in proptest::collection::vec(any::<u16>(), 0..40)
        ) {
            let mut writer = Writer::new();
            writer.u8(a).u16(b).u32(c).u64(d).var_bytes(&bytes).text(&text);
            writer.socket_addr(&SocketAddr::new(ip, port)).node_id(&NodeId(id)).list(&list, |w, v| { w.u16(*v); });
            let encoded = writer.finish();
            let mut reader = Reader::new(&encoded);
            prop_assert_eq!((reader.u8()?, reader.u16()?, reader.u32()?, reader.u64()?), (a, b, c, d));
            prop_assert_eq!(reader.var_bytes("bytes", 300)?, &bytes[..]);
            prop_assert_eq!(reader.text("text", 400)?, &text);
            prop_assert_eq!(reader.socket_addr()?, SocketAddr::new(ip, port));
            prop_assert_eq!(reader.node_id()?, NodeId(id));
            prop_assert_eq!(reader.list("list", 40, Reader::u16)?, list);
            reader.finish()?;
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), ops in proptest::collection::vec(0_u8..9, 0..40)) {
            let mut reader = Reader::new(&bytes);
            for op in ops {
                let before = reader.left();
                match op {
                    0 => drop(reader.u8()),
                    1 => drop(reader.u16()),
                    2 => drop(reader.u32()),
                    3 => drop(reader.u64()),
                    4 => drop(reader.var_bytes("f", 100)),
                    5 => drop(reader.text("f", 100)),
                    6 => drop(reader.list("f", 100, Reader::u32)),
                    7 => drop(reader.socket_addr()),
                    _ => drop(reader.bool("f")),
                }
                prop_assert!(reader.left() <= before);
            }
        }
    }

    #[test]
    fn bounds_are_held() {
        assert_eq!(
            Reader::new(&[0, 5, 1, 2, 3, 4, 5]).var_bytes("name", 4),
            Err(WireError::TooLong {
                field: "name",
                value: 5,
                max: 4
            })
        );
        assert_eq!(
            Reader::new(&[0, 5, 1]).var_bytes("name", 9),
            Err(WireError::Truncated { wanted: 5, left: 1 })
        );
        assert_eq!(Reader::new(&[1]).finish(), Err(WireError::Trailing(1)));
        assert!(
            Reader::new(&[0xff, 0xff])
                .list("list", 65535, Reader::u64)
                .is_err()
        );
    }
}
