//! The state folder: one daemon at a time, files written whole or not at all, nothing ever silently replaced.

pub mod record;
pub mod snapshot;

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
};

/// Why the state folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another daemon has it.
    #[error("{}: another weftd{} uses this folder. End it first, or give this one another folder with --dir.", .path.display(), .holder.map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Locked {
        /// The folder.
        path: PathBuf,
        /// Its process id, where it could be read.
        holder: Option<u32>,
    },
    /// The system refused.
    #[error("{}: {what}: {error}{}", .path.display(), remedy(.error))]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            ". Free some space; weftd goes on without, but forgets when it is restarted"
        }
        io::ErrorKind::PermissionDenied => ". Run weftd as the user the folder belongs to",
        io::ErrorKind::ReadOnlyFilesystem => ". Mount it writable",
        _ => "",
    }
}

impl StateError {
    fn io(path: &Path, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |error| Self::Io {
            path: path.to_owned(),
            what,
            error,
        }
    }
}

/// The folder, locked for this process.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes the folder where it is missing (mode 0700) and locks it.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        if !path.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(path)
                .map_err(StateError::io(path, "making the state folder"))?;
        }
        let lock_path = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&lock_path)
            .map_err(StateError::io(&lock_path, "opening the lock file"))?;
        // SAFETY: the descriptor is open; the call takes no memory.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } < 0 {
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::WouldBlock {
                return Err(StateError::io(&lock_path, "locking")(error));
            }
            let mut holder = String::new();
            let _ = lock.take(16).read_to_string(&mut holder);
            return Err(StateError::Locked {
                path: path.to_owned(),
                holder: holder.trim().parse().ok(),
            });
        }
        // For the message above only: a full disk must not keep the daemon from running.
        let _ = lock
            .set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()));
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A file in it.
    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

/// Replaces a file as a whole: written beside it, synced, renamed over it, folder synced. Mode 0600.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
    })();
    written.map_err(|error| {
        // The old file still stands; half a new one is only in the way.
        let _ = fs::remove_file(&new);
        StateError::io(path, "writing")(error)
    })
}

/// Moves a file that cannot be read aside, under a name that is free, and tells the name.
pub fn keep_aside(path: &Path) -> Result<PathBuf, StateError> {
    let seconds = std::time::SystemTime::UNIX_EPOCH
        .elapsed()
        .map_or(0, |elapsed| elapsed.as_secs());
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".corrupt-{seconds}-{}", std::process::id()));
    let aside = path.with_file_name(name);
    fs::rename(path, &aside).map_err(StateError::io(path, "keeping the damaged file aside"))?;
    Ok(aside)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A folder of its own for one test, removed when dropped.
    #[derive(Debug)]
    pub(crate) struct Scratch(pub(crate) PathBuf);

    impl Scratch {
        pub(crate) fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("weft-node-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn one_daemon_at_a_time() {
        let scratch = Scratch::new("lock");
        let folder = scratch.0.join("state");
        let first = StateDir::open(&folder).unwrap();
        let error = StateDir::open(&folder).unwrap_err();
        assert!(
            matches!(error, StateError::Locked { holder: Some(pid), .. } if pid == std::process::id()),
            "{error}"
        );
        drop(first);
        StateDir::open(&folder).unwrap();
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let scratch = Scratch::new("atomic");
        let path = scratch.0.join("file");
        write_atomically(&path, b"old").unwrap();
        // A folder in the way of the temporary file makes the write fail, for root too.
        fs::create_dir(scratch.0.join("file.new")).unwrap();
        assert!(write_atomically(&path, b"new").is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
    }
}
