//! The two secrets of a node, each a one-line text file that only its owner may read: `identity.key`
//! (`weft-identity-1 <64 hex: Ed25519 seed>`) and `network.key` (`weft1-…`, the text form of the network's secret).
//!
//! They are written once, never overwritten, and refused when others could have read or swapped them.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const IDENTITY_TAG: &str = "weft-identity-1";
const NETWORK_TAG: &str = "weft1-";
/// Longer than any valid file.
const MAX_FILE: u64 = 256;

/// An Ed25519 seed.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct IdentitySeed(pub [u8; 32]);

/// The text form of a network's secret, as people copy it from node to node. Only its beginning and its alphabet are
/// checked here; what it means is for the reader.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct NetworkText(String);

/// Why a secret was not read or written.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// No such file.
    #[error("{}: the file does not exist. Write one with `weft init`.", .0.display())]
    Missing(PathBuf),
    /// It would have been overwritten.
    #[error("{}: exists already and is never overwritten. Move it away first, if you are sure.", .0.display())]
    Exists(PathBuf),
    /// Others can read or replace it.
    #[error("{}: mode {mode:04o}, owner {owner}: others could have read it. `chmod 600` it and let it belong to the user that runs weftd (uid {expected}).", .path.display())]
    Permissions {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// Its owner.
        owner: u32,
        /// Who it should belong to.
        expected: u32,
    },
    /// Not the text it should be.
    #[error("{}: {problem}. Restore it from a copy; a new one makes this another node or network.", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The system refused.
    #[error("{}: {error}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

impl std::fmt::Debug for IdentitySeed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("IdentitySeed(..)")
    }
}

impl std::fmt::Debug for NetworkText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("NetworkText(..)")
    }
}

impl IdentitySeed {
    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        let text = read(path)?;
        let mut fields = text.split_ascii_whitespace();
        let seed = match (fields.next(), fields.next(), fields.next()) {
            (Some(IDENTITY_TAG), Some(seed), None) => unhex(seed),
            _ => None,
        };
        seed.map(Self).ok_or_else(|| SecretError::Malformed {
            path: path.to_owned(),
            problem: format!("is not `{IDENTITY_TAG}` followed by 64 hex digits"),
        })
    }

    /// Writes a new file; refuses to overwrite.
    pub fn store(&self, path: &Path) -> Result<(), SecretError> {
        write(
            path,
            &Zeroizing::new(format!(
                "{IDENTITY_TAG} {}\n",
                *Zeroizing::new(hex(&self.0))
            )),
        )
    }
}

impl NetworkText {
    /// From what a person typed or a program made; none where it cannot be a network's secret.
    pub fn new(text: &str) -> Option<Self> {
        let text = text.trim();
        let (tag, body) = text.split_at_checked(NETWORK_TAG.len())?;
        let fits = tag.eq_ignore_ascii_case(NETWORK_TAG)
            && text.len() < MAX_FILE as usize
            && body
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        fits.then(|| Self(text.to_owned()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads the file.
    pub fn load(path: &Path) -> Result<Self, SecretError> {
        Self::new(&read(path)?).ok_or_else(|| SecretError::Malformed {
            path: path.to_owned(),
            problem: format!("is not a network secret, which begins with `{NETWORK_TAG}`"),
        })
    }

    /// Writes a new file; refuses to overwrite.
    pub fn store(&self, path: &Path) -> Result<(), SecretError> {
        write(path, &Zeroizing::new(format!("{}\n", self.0)))
    }
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |nibble: u8| char::from(DIGITS[usize::from(nibble & 15)]);
    bytes
        .iter()
        .flat_map(|byte| [digit(byte >> 4), digit(*byte)])
        .collect()
}

/// Exactly `N` bytes from hex, either case.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(bytes)
}

fn read(path: &Path) -> Result<Zeroizing<String>, SecretError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => SecretError::Missing(path.to_owned()),
        _ => SecretError::Io {
            path: path.to_owned(),
            error,
        },
    };
    let file = File::open(path).map_err(io)?;
    let metadata = file.metadata().map_err(io)?;
    let expected = own_uid();
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 || metadata.uid() != expected {
        return Err(SecretError::Permissions {
            path: path.to_owned(),
            mode,
            owner: metadata.uid(),
            expected,
        });
    }
    let malformed = |problem: &str| SecretError::Malformed {
        path: path.to_owned(),
        problem: problem.to_owned(),
    };
    if !metadata.is_file() || metadata.len() > MAX_FILE {
        return Err(malformed("is not a short text file"));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(io)?;
    let text = std::str::from_utf8(&bytes).map_err(|_| malformed("is not text"))?;
    Ok(Zeroizing::new(text.to_owned()))
}

/// The effective user of this process, as the owner of what it makes.
fn own_uid() -> u32 {
    fs::metadata("/proc/self").map_or(0, |metadata| metadata.uid())
}

fn write(path: &Path, text: &str) -> Result<(), SecretError> {
    let io = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => SecretError::Exists(path.to_owned()),
        _ => SecretError::Io {
            path: path.to_owned(),
            error,
        },
    };
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(io)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all());
    if let Err(error) = written {
        // A half-written secret would block the next attempt.
        let _ = fs::remove_file(path);
        return Err(io(error));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("weft-secrets-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn secrets_come_back_and_are_never_overwritten() {
        let folder = folder("back");
        let path = folder.join("identity.key");
        IdentitySeed([7; 32]).store(&path).unwrap();
        assert_eq!(IdentitySeed::load(&path).unwrap().0, [7; 32]);
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(matches!(
            IdentitySeed([8; 32]).store(&path),
            Err(SecretError::Exists(_))
        ));

        let path = folder.join("network.key");
        let key = NetworkText::new(" weft1-ABCD-0123\n").unwrap();
        key.store(&path).unwrap();
        assert!(NetworkText::load(&path).unwrap() == key);
        assert_eq!(key.as_str(), "weft1-ABCD-0123");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_secret_others_can_read_is_refused() {
        let folder = folder("mode");
        let path = folder.join("identity.key");
        IdentitySeed([7; 32]).store(&path).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let error = IdentitySeed::load(&path).unwrap_err();
        assert!(
            matches!(error, SecretError::Permissions { mode: 0o640, .. }),
            "{error}"
        );
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn malformed_secrets_are_refused() {
        let folder = folder("malformed");
        let path = folder.join("network.key");
        write(&path, "weft1-AB/CD\n").unwrap();
        assert!(matches!(
            NetworkText::load(&path),
            Err(SecretError::Malformed { .. })
        ));
        assert!(matches!(
            NetworkText::load(&folder.join("none")),
            Err(SecretError::Missing(_))
        ));
        assert!(unhex::<2>("00é").is_none());
        fs::remove_dir_all(folder).unwrap();
    }
}
