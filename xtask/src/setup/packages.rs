//! Debian packages: which are missing, and installing them.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};

use crate::term;

/// A program or file that must be there, and the package that brings it.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// A program's name, or an absolute path.
    pub file: &'static str,
    /// The Debian package.
    pub package: &'static str,
}

/// What labs, tests and the demo run.
pub const RUN: &[Wanted] = &[
    Wanted {
        file: "ip",
        package: "iproute2",
    },
    Wanted {
        file: "tc",
        package: "iproute2",
    },
    Wanted {
        file: "nft",
        package: "nftables",
    },
    Wanted {
        file: "iperf3",
        package: "iperf3",
    },
];

/// Whether this process may change the system.
#[must_use]
pub fn is_root() -> bool {
    // SAFETY: geteuid has no preconditions and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Whether Debian's installer is there.
#[must_use]
pub fn has_apt() -> bool {
    Path::new("/usr/bin/apt-get").exists()
}

/// Installs the packages of those that are missing; whether there were any.
///
/// # Errors
/// Without root or apt: the command to run. Otherwise what apt says.
pub fn install(wanted: &[Wanted]) -> Result<bool> {
    let mut missing = wanted
        .iter()
        .filter(|w| {
            if w.file.starts_with('/') {
                !Path::new(w.file).exists()
            } else {
                term::which(w.file).is_none()
            }
        })
        .map(|w| w.package)
        .collect::<Vec<_>>();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() {
        return Ok(false);
    }
    install_packages(&missing)?;
    Ok(true)
}

/// Installs packages by name.
///
/// # Errors
/// As [`install`].
pub fn install_packages(packages: &[&str]) -> Result<()> {
    let list = packages.join(" ");
    if !has_apt() {
        bail!(
            "missing: {list} (names of Debian's packages). This system has no apt-get: install them by its own means, \
             then run `cargo xtask setup` again"
        );
    }
    if !is_root() {
        bail!(
            "missing packages: {list}. Installing needs root: run `sudo apt-get update && sudo apt-get install \
             --no-install-recommends {list}`, then `cargo xtask setup` again"
        );
    }
    if !packages.iter().all(|p| has_candidate(p)) {
        term::step("refreshing the package lists");
        apt(&["update", "-qq"])?;
    }
    term::step(&format!("installing {list}"));
    if apt(&[&["install", "-qq", "--no-install-recommends"], packages].concat()).is_err() {
        // Lists that are too old name versions that mirrors no longer hold.
        apt(&["update", "-qq"])?;
        apt(&[&["install", "-qq", "--no-install-recommends"], packages].concat())?;
    }
    Ok(())
}

/// Whether apt's lists offer the package.
#[must_use]
pub fn has_candidate(package: &str) -> bool {
    term::output_of(
        Command::new("apt-cache")
            .env("LC_ALL", "C")
            .args(["policy", package]),
    )
    .is_ok_and(|text| {
        text.lines()
            .any(|l| l.trim().starts_with("Candidate:") && !l.contains("(none)"))
    })
}

fn apt(arguments: &[&str]) -> Result<()> {
    let mut command = Command::new("apt-get");
    command
        .args(["-o", "DPkg::Lock::Timeout=120", "-y"])
        .args(arguments);
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(std::process::Stdio::null());
    term::run(&mut command).context("apt-get failed; its own message is above")
}
