//! Records of the nodes' `blk*.dat` and `rev*.dat` files, and their obfuscation.
//!
//! A record is the network's magic (4), a length (u32, little endian) and as many bytes; in a
//! `rev` file 32 bytes of checksum follow, not counted. Files are preallocated with zeros, blocks
//! stand in the order they came in, and stale ones stay. Since version 28 of Bitcoin Core all of
//! it, offsets included, is XORed with the eight bytes of `xor.dat`; the preallocated tail is
//! not, so that it reads as the key repeated.

use crate::block::MAX_BLOCK;

/// Bytes before a record's content: magic and length.
pub const RECORD_HEAD: usize = 8;
/// Bytes after the content of a record in a `rev` file.
pub const CHECKSUM: usize = 32;

/// The key of `xor.dat`; all zeros where there is none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct XorKey([u8; 8]);

impl XorKey {
    /// Reads the content of `xor.dat`; `None` unless it has 8 bytes.
    pub fn from_file(content: &[u8]) -> Option<Self> {
        content.try_into().ok().map(Self)
    }

    /// Whether it changes nothing.
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 8]
    }

    /// Obfuscates or clears bytes that stand at `offset` in their file.
    pub fn apply(&self, data: &mut [u8], offset: u64) {
        if self.is_zero() {
            return;
        }
        let mut key = self.0;
        key.rotate_left((offset % 8) as usize);
        let word = u64::from_ne_bytes(key);
        let mut chunks = data.chunks_exact_mut(8);
        for chunk in &mut chunks {
            let bytes: &mut [u8; 8] = chunk.try_into().expect("chunks of 8");
            *bytes = (u64::from_ne_bytes(*bytes) ^ word).to_ne_bytes();
        }
        for (byte, k) in chunks.into_remainder().iter_mut().zip(key) {
            *byte ^= k;
        }
    }
}

/// Which kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// `blk*.dat`.
    Blocks,
    /// `rev*.dat`.
    Undo,
}

/// What stands at a place in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// A record with content of this length begins here.
    Record(u32),
    /// More bytes of the file are needed to tell.
    More,
    /// No record begins here; the next place worth a look is this many bytes on.
    Skip(usize),
}

/// Looks at `data`, cleared of obfuscation, for a record that begins at its start.
///
/// `Record` says nothing about whether its content is there already: the node may be writing it.
pub fn step(magic: &[u8; 4], kind: FileKind, data: &[u8]) -> Step {
    if data.len() < RECORD_HEAD {
        return Step::More;
    }
    let (head, rest) = data.split_at(4);
    if head == magic {
        let len = u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]);
        let fits = match kind {
            FileKind::Blocks => (81..=MAX_BLOCK as u32).contains(&len),
            FileKind::Undo => (1..=4 * MAX_BLOCK as u32).contains(&len),
        };
        if fits {
            return Step::Record(len);
        }
    }
    // The next place where the magic may begin.
    let next = data[1..].windows(4).position(|w| w == magic);
    Step::Skip(next.map_or(data.len() - 3, |at| at + 1))
}

/// All whole records of `data`, cleared of obfuscation: offset of the content, and content.
pub fn records<'a>(
    magic: &'a [u8; 4],
    kind: FileKind,
    data: &'a [u8],
) -> impl Iterator<Item = (usize, &'a [u8])> + 'a {
    let tail = if kind == FileKind::Undo { CHECKSUM } else { 0 };
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = data.get(at..)?;
            match step(magic, kind, rest) {
                Step::More => return None,
                Step::Skip(n) => at += n,
                Step::Record(len) => {
                    let end = RECORD_HEAD + len as usize;
                    let Some(content) = rest
                        .get(RECORD_HEAD..end)
                        .filter(|_| rest.len() >= end + tail)
                    else {
                        at += 1;
                        continue;
                    };
                    let found = at + RECORD_HEAD;
                    at += end + tail;
                    return Some((found, content));
                }
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn obfuscation_is_by_absolute_offset(key: [u8; 8], data: Vec<u8>, offset in 0u64..40, cut: prop::sample::Index) {
            let plain: Vec<u8> = data.iter().enumerate().map(|(i, b)| b ^ key[(offset as usize + i) % 8]).collect();
            let mut whole = data.clone();
            XorKey(key).apply(&mut whole, offset);
            prop_assert_eq!(&whole, &plain);
            let cut = if data.is_empty() { 0 } else { cut.index(data.len()) };
            let (a, b) = whole.split_at_mut(cut);
            XorKey(key).apply(a, offset);
            XorKey(key).apply(b, offset + cut as u64);
            prop_assert_eq!(whole, data);
        }

        #[test]
        fn garbage_between_records_is_passed(junk in prop::collection::vec(any::<u8>(), 0..200), tail in 0usize..100) {
            let magic = [0xf9, 0xbe, 0xb4, 0xd9];
            prop_assume!(!junk.windows(4).any(|w| w == magic) && junk.last().is_none_or(|b| !magic.contains(b)));
            let mut data = vec![];
            for fill in [7u8, 9] {
                data.extend_from_slice(&junk);
                data.extend_from_slice(&magic);
                data.extend_from_slice(&100u32.to_le_bytes());
                data.extend_from_slice(&[fill; 100]);
            }
            data.resize(data.len() + tail, 0);
            let found: Vec<_> = records(&magic, FileKind::Blocks, &data).map(|(_, c)| c[0]).collect();
            prop_assert_eq!(found, vec![7, 9]);
        }
    }
}
