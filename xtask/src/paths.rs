//! Where things are: the workspace, its build folder, the programs that were built.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// A part of the repository that is built and tested by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    /// The mesh: the workspace at the root.
    Mesh,
    /// The coin index and what else stands on RocksDB: the workspace in `indexer/`.
    Index,
}

/// The root of the repository.
#[must_use]
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// The workspace of the services on RocksDB.
#[must_use]
pub fn indexer() -> PathBuf {
    workspace().join("indexer")
}

/// Tools and state that belong to this checkout (ignored by git).
#[must_use]
pub fn own_folder() -> PathBuf {
    workspace().join(".weft")
}

/// Cargo's build folder.
#[must_use]
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(folder) => workspace().join(folder),
        None => workspace().join("target"),
    }
}

/// The cargo that runs us, or the one on `PATH`.
#[must_use]
pub fn cargo() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The programs a lab runs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The daemon.
    pub weftd: PathBuf,
    /// The command line.
    pub weft: PathBuf,
}

impl Programs {
    /// Programs in the folder `WEFT_BIN_DIR`, else beside the running program, else the newest build of this
    /// checkout.
    ///
    /// # Errors
    /// When there are none; the message says what builds them.
    pub fn find() -> Result<Self> {
        let mut folders = Vec::new();
        if let Some(folder) = std::env::var_os("WEFT_BIN_DIR") {
            folders.push(PathBuf::from(folder));
        } else {
            let own = std::env::current_exe().ok();
            // A test program lies in `deps`, one below the programs of its profile.
            folders.extend(
                own.iter()
                    .flat_map(|p| p.ancestors().skip(1).take(2))
                    .map(Path::to_owned),
            );
            let mut built = ["release", "debug"].map(|profile| target().join(profile));
            built.sort_by_key(|f| {
                std::cmp::Reverse(f.join("weftd").metadata().and_then(|m| m.modified()).ok())
            });
            folders.extend(built);
        }
        for folder in &folders {
            let found = Self {
                weftd: folder.join("weftd"),
                weft: folder.join("weft"),
            };
            if found.weftd.is_file() && found.weft.is_file() {
                return Ok(found);
            }
        }
        bail!("weftd and weft are not built (looked in {folders:?}): run `cargo xtask build`")
    }
}
