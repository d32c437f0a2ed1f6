//! `cargo xtask build`: the programs of the mesh, with the eBPF object in them, and those of the index.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, ensure};

use crate::{
    paths::{self, Programs},
    setup::{self, Need},
    term,
};

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// With debug assertions and overflow checks: what tests run.
    Dev,
    /// What is installed and measured.
    Release,
}

/// Builds `weftd` and `weft`; says where they are when they changed.
///
/// # Errors
/// When the toolchain cannot be set up or the build fails.
pub fn build(profile: Profile) -> Result<Programs> {
    let ebpf = setup::ensure(Need::Build)?;
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
    };
    let mut command = cargo(&ebpf);
    command.args([
        "build",
        "--package",
        "weft-node",
        "--package",
        "weft-cli",
        "--bins",
    ]);
    if profile == Profile::Release {
        command.arg("--release");
    }
    term::run(&mut command)?;
    let folder = paths::target().join(folder);
    let programs = Programs {
        weftd: folder.join("weftd"),
        weft: folder.join("weft"),
    };
    ensure!(
        programs.weftd.is_file() && programs.weft.is_file(),
        "the build went well and left no weftd and weft in {}",
        folder.display()
    );
    Ok(programs)
}

/// Builds `weft-indexd`; says where it is.
///
/// # Errors
/// When RocksDB cannot be set up or the build fails.
pub fn index(profile: Profile) -> Result<PathBuf> {
    setup::index(Need::Build, false)?;
    let mut command = index_cargo();
    command.args(["build", "--package", "weft-indexd", "--bins"]);
    let folder = match profile {
        Profile::Dev => "debug",
        Profile::Release => {
            command.arg("--release");
            "release"
        }
    };
    term::run(&mut command)?;
    let program = paths::target().join(folder).join("weft-indexd");
    ensure!(
        program.is_file(),
        "the build went well and left no {}",
        program.display()
    );
    Ok(program)
}

/// The programs a lab or the demo shall run: those in `WEFT_BIN_DIR`, else a fresh release build.
///
/// # Errors
/// As [`build`], or when the named folder has none.
pub fn for_lab() -> Result<Programs> {
    if std::env::var_os("WEFT_BIN_DIR").is_some() {
        return Programs::find();
    }
    build(Profile::Release)
}

/// Cargo in the workspace of the index. `indexer/.cargo/config.toml` tells it the rest.
#[must_use]
pub fn index_cargo() -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::indexer());
    if std::env::var_os("CARGO_TARGET_DIR").is_some() {
        // It may be relative to where we were started.
        command.env("CARGO_TARGET_DIR", paths::target());
    }
    command
}

/// Cargo in the workspace, told which linker setup found where it would not find that by itself.
#[must_use]
pub fn cargo(ebpf: &setup::toolchain::Ebpf) -> Command {
    let mut command = Command::new(paths::cargo());
    command.current_dir(paths::workspace());
    let own = paths::own_folder().join("tools/bin/bpf-linker");
    // Setting it needlessly would build the object again for everyone who runs cargo without it.
    if ebpf.linker != own && own.exists() {
        command.env("WEFT_BPF_LINKER", &ebpf.linker);
    }
    command
}
