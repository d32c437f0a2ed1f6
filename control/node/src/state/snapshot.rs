//! The snapshot file: what the core wants to find again after a restart.
//!
//! ```text
//! 0..8    "weftsnap"
//! 8..12   version, big-endian
//! 12..20  length of the payload, big-endian
//! 20..52  SHA-256 of the payload
//! 52..    payload, whose format is the core's
//! ```

use std::{
    fs::File,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use ring::digest;
use zeroize::Zeroizing;

use super::{StateError, keep_aside, write_atomically};

const MAGIC: &[u8; 8] = b"weftsnap";
/// Version of the file format (the payload has its own).
const VERSION: u32 = 1;
const HEADER: usize = 52;
/// Far more than the core's limits allow.
const MAX: u64 = 256 * 1024 * 1024;

/// What was found.
#[derive(Debug)]
pub enum Found {
    /// No file: a first start, or after a full undo.
    Nothing,
    /// A payload.
    Snapshot(Zeroizing<Vec<u8>>),
    /// A file that is damaged; it was kept aside.
    Damaged {
        /// What is wrong with it.
        problem: String,
        /// Where it is now.
        aside: PathBuf,
    },
}

/// Wraps a payload.
pub fn encode(payload: &[u8]) -> Zeroizing<Vec<u8>> {
    let mut file = Zeroizing::new(Vec::with_capacity(HEADER + payload.len()));
    file.extend_from_slice(MAGIC);
    file.extend_from_slice(&VERSION.to_be_bytes());
    file.extend_from_slice(&(payload.len() as u64).to_be_bytes());
    file.extend_from_slice(digest::digest(&digest::SHA256, payload).as_ref());
    file.extend_from_slice(payload);
    file
}

/// Unwraps a payload; the error says what is wrong.
pub fn decode(file: &[u8]) -> Result<&[u8], String> {
    let Some((header, payload)) = file.split_at_checked(HEADER) else {
        return Err(format!(
            "it has {} bytes, fewer than its header",
            file.len()
        ));
    };
    if &header[..8] != MAGIC {
        return Err("it does not begin as a snapshot does".to_owned());
    }
    let version = header[8..12]
        .iter()
        .fold(0u32, |value, byte| value << 8 | u32::from(*byte));
    if version != VERSION {
        return Err(format!(
            "it has version {version}, this program reads version {VERSION}"
        ));
    }
    let len = header[12..20]
        .iter()
        .fold(0u64, |value, byte| value << 8 | u64::from(*byte));
    if len != payload.len() as u64 {
        return Err(format!(
            "it should hold {len} bytes and holds {}",
            payload.len()
        ));
    }
    if digest::digest(&digest::SHA256, payload).as_ref() != &header[20..HEADER] {
        return Err("its checksum does not match".to_owned());
    }
    Ok(payload)
}

/// Replaces the file.
pub fn store(path: &Path, payload: &[u8]) -> Result<(), StateError> {
    write_atomically(path, &encode(payload))
}

/// Reads the file; a damaged one is kept aside.
pub fn load(path: &Path) -> Result<Found, StateError> {
    let mut bytes = Zeroizing::new(vec![]);
    match File::open(path) {
        Ok(file) => file
            .take(MAX)
            .read_to_end(&mut bytes)
            .map_err(StateError::io(path, "reading"))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
        Err(error) => return Err(StateError::io(path, "opening")(error)),
    };
    match decode(&bytes) {
        Ok(payload) => Ok(Found::Snapshot(Zeroizing::new(payload.to_vec()))),
        Err(problem) => Ok(Found::Damaged {
            problem,
            aside: keep_aside(path)?,
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{super::tests::Scratch, *};

    #[test]
    fn a_snapshot_comes_back_and_a_damaged_one_is_kept() {
        let scratch = Scratch::new("snapshot");
        let path = scratch.0.join("snapshot");
        assert!(matches!(load(&path).unwrap(), Found::Nothing));
        store(&path, b"payload").unwrap();
        assert!(
            matches!(load(&path).unwrap(), Found::Snapshot(payload) if payload[..] == *b"payload")
        );

        let mut bytes = fs::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&path, &bytes).unwrap();
        let Found::Damaged { problem, aside } = load(&path).unwrap() else {
            panic!("must be damaged")
        };
        assert!(problem.contains("checksum"), "{problem}");
        assert_eq!(fs::read(aside).unwrap(), bytes);
        assert!(matches!(load(&path).unwrap(), Found::Nothing));
    }

    proptest::proptest! {
        #[test]
        fn any_change_is_noticed(payload: Vec<u8>, at: usize, flip in 1u8..) {
            let file = encode(&payload);
            proptest::prop_assert_eq!(decode(&file).unwrap(), &payload[..]);
            let mut changed = file.to_vec();
            let at = at % changed.len();
            changed[at] ^= flip;
            proptest::prop_assert!(decode(&changed).is_err());
            proptest::prop_assert!(decode(&file[..at]).is_err());
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
