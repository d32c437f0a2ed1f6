//! What labs made, on disk: so that a lab that crashed is swept away by the next one, and one that runs is not.
//!
//! Each lab has a folder in `/run/weft-lab` with `lab.json` (what it made, written *before* it is made) and `owner`, a
//! file that the owning process holds locked for as long as it lives. A lab whose lock can be taken is stale, unless it
//! was kept on purpose. The global lock makes taking and judging atomic.

use std::{
    ffi::CString,
    fs::{self, File, OpenOptions},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::netns::{self, Netns};
use crate::term;

/// Everything that a lab made outside its folder, and who is in it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Record {
    /// The lab's id; every name it makes has it in it.
    pub id: String,
    /// From the topology.
    pub name: String,
    /// Process that made it.
    pub pid: u32,
    /// Stays when its maker ends.
    pub keep: bool,
    /// Nodes in order.
    pub nodes: Vec<NodeRecord>,
    /// Namespaces, those of nodes and of wires.
    pub namespaces: Vec<String>,
    /// Folders in bpffs.
    pub pins: Vec<PathBuf>,
    /// Files elsewhere that processes of the lab leave behind.
    #[serde(default)]
    pub files: Vec<PathBuf>,
}

/// A node of a lab.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its name in the topology.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What `weftd --dir` gets.
    pub dir: PathBuf,
    /// Whether `weftd` runs there.
    pub daemon: bool,
}

/// A lab's folder, locked by this process.
#[derive(Debug)]
pub struct Entry {
    folder: PathBuf,
    _owner: File,
}

/// Where labs are recorded.
#[must_use]
pub fn base() -> PathBuf {
    PathBuf::from("/run/weft-lab")
}

impl Entry {
    /// A new folder with an id that no other lab has; sweeps stale labs first.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn create(name: &str) -> Result<(Self, Record)> {
        let _all = lock_all()?;
        sweep_locked();
        for attempt in 0..1000_u32 {
            let id = fresh_id(attempt);
            let folder = base().join(&id);
            match fs::create_dir(&folder) {
                Ok(()) => {
                    let owner =
                        lock(&folder.join("owner"), true)?.context("a new lab's lock is taken")?;
                    let record = Record {
                        id,
                        name: name.to_owned(),
                        pid: std::process::id(),
                        ..Record::default()
                    };
                    let entry = Self {
                        folder,
                        _owner: owner,
                    };
                    entry.write(&record)?;
                    return Ok((entry, record));
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot make {}", folder.display()));
                }
            }
        }
        anyhow::bail!(
            "no free name for a lab in {}: remove old ones with `cargo xtask lab down`",
            base().display()
        )
    }

    /// The lab's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Writes the record, at once or not at all.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, record: &Record) -> Result<()> {
        let (new, file) = (
            self.folder.join("lab.json.new"),
            self.folder.join("lab.json"),
        );
        fs::write(&new, serde_json::to_vec_pretty(record)?)
            .and_then(|()| fs::rename(&new, &file))
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

/// All labs there are, with whether their owner lives.
///
/// # Errors
/// When `/run/weft-lab` cannot be used.
pub fn list() -> Result<Vec<(Record, bool)>> {
    let _all = lock_all()?;
    let mut labs = Vec::new();
    for folder in folders() {
        let Some(record) = read(&folder) else {
            continue;
        };
        let owned = matches!(lock(&folder.join("owner"), false), Ok(None));
        labs.push((record, owned));
    }
    labs.sort_by(|a, b| a.0.id.cmp(&b.0.id));
    Ok(labs)
}

/// Removes what labs without a living owner left behind, kept ones excepted.
///
/// # Errors
/// When `/run/weft-lab` cannot be used.
pub fn sweep() -> Result<()> {
    let _all = lock_all()?;
    sweep_locked();
    Ok(())
}

fn sweep_locked() {
    for folder in folders() {
        let Ok(Some(_owner)) = lock(&folder.join("owner"), false) else {
            continue;
        };
        match read(&folder) {
            Some(record) if record.keep => {}
            Some(record) => {
                term::warn(&format!(
                    "removing what is left of lab {} ({})",
                    record.id, record.name
                ));
                demolish(&record, &folder);
            }
            None => drop(fs::remove_dir_all(&folder)),
        }
    }
}

/// Removes everything a lab made. Goes on over errors and tells them: what cannot be removed now will be listed still.
pub fn demolish(record: &Record, folder: &Path) {
    let mut complaints = Vec::new();
    for name in &record.namespaces {
        if let Ok(namespace) = Netns::open(name) {
            namespace.kill_processes();
        }
    }
    for pins in &record.pins {
        // Links in bpffs hold programs and maps even after their namespace is gone.
        if let Err(e) = fs::remove_dir_all(pins)
            && e.kind() != io::ErrorKind::NotFound
        {
            complaints.push(format!("{}: {e}", pins.display()));
        }
    }
    for file in &record.files {
        if let Err(e) = fs::remove_file(file)
            && e.kind() != io::ErrorKind::NotFound
        {
            complaints.push(format!("{}: {e}", file.display()));
        }
    }
    for name in &record.namespaces {
        if let Err(e) = netns::remove(name) {
            complaints.push(format!("{e:#}"));
        }
    }
    for mount in mounts_below(folder) {
        // SAFETY: `mount` is a C string; detaches a mount inside the lab's own folder.
        unsafe { libc::umount2(mount.as_ptr(), libc::MNT_DETACH) };
    }
    if complaints.is_empty()
        && let Err(e) = fs::remove_dir_all(folder)
        && e.kind() != io::ErrorKind::NotFound
    {
        complaints.push(format!("{}: {e}", folder.display()));
    }
    for complaint in complaints {
        term::bad(&format!("lab {}: {complaint}", record.id));
    }
}

/// Mount points below a folder, the deepest first.
fn mounts_below(folder: &Path) -> Vec<CString> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points = table.lines().filter_map(|l| l.split(' ').nth(4));
    let mut below = points
        .filter(|p| Path::new(p).starts_with(folder))
        .collect::<Vec<_>>();
    below.sort_by_key(|p| std::cmp::Reverse(p.len()));
    below
        .into_iter()
        .filter_map(|p| CString::new(p).ok())
        .collect()
}

/// The record in a lab's folder.
#[must_use]
pub fn read(folder: &Path) -> Option<Record> {
    serde_json::from_slice(&fs::read(folder.join("lab.json")).ok()?).ok()
}

fn folders() -> Vec<PathBuf> {
    let entries = fs::read_dir(base()).into_iter().flatten().flatten();
    entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
}

fn lock_all() -> Result<File> {
    fs::create_dir_all(base()).with_context(|| format!("cannot make {}", base().display()))?;
    lock(&base().join(".lock"), true)?.context("the lock of all labs could not be taken")
}

/// Takes the lock of a file; none where another has it and `wait` is not wanted.
fn lock(path: &Path, wait: bool) -> Result<Option<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    let how = if wait {
        libc::LOCK_EX
    } else {
        libc::LOCK_EX | libc::LOCK_NB
    };
    loop {
        // SAFETY: the descriptor is open for the duration of the call.
        if unsafe { libc::flock(file.as_raw_fd(), how) } == 0 {
            return Ok(Some(file));
        }
        let error = io::Error::last_os_error();
        match error.kind() {
            io::ErrorKind::WouldBlock => return Ok(None),
            io::ErrorKind::Interrupted => {}
            _ => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

/// Four hex digits, different per process, time and attempt.
fn fresh_id(attempt: u32) -> String {
    use std::hash::{BuildHasher, Hasher};
    let mut hasher = std::hash::RandomState::new().build_hasher();
    hasher.write_u32(attempt);
    format!("{:04x}", hasher.finish() & 0xffff)
}
