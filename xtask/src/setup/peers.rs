//! The systems Weft is measured against, from Debian's packages.
//!
//! The packages are unpacked into `.weft/tools/peers`, not installed: some of them would start a daemon on this host,
//! with a network of its own. What is on `PATH` already is taken from there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::packages::{Wanted, has_apt, is_root};
use crate::{paths, term};

/// Programs and their packages. A program may need a library that only its second package has.
const WANTED: &[Wanted] = &[
    Wanted {
        file: "yggdrasil",
        package: "yggdrasil",
    },
    Wanted {
        file: "nebula",
        package: "nebula",
    },
    Wanted {
        file: "nebula-cert",
        package: "nebula",
    },
    Wanted {
        file: "wireguard-go",
        package: "wireguard-go",
    },
    Wanted {
        file: "wg",
        package: "wireguard-tools",
    },
    Wanted {
        file: "tincd",
        package: "tinc",
    },
];
/// Libraries that a package needs and a small system may lack.
const LIBRARIES: &[(&str, &str)] = &[("tinc", "liblzo2-2")];
/// Where, below the unpacked root, programs and libraries lie.
const PROGRAM_FOLDERS: [&str; 2] = ["usr/bin", "usr/sbin"];

/// Unpacks what is missing; each program with its place, or why it cannot be had.
pub fn ensure() -> Vec<(&'static str, Result<PathBuf>)> {
    let mut tried = Vec::<(&str, Option<String>)>::new();
    WANTED
        .iter()
        .map(|wanted| {
            if find(wanted.file).is_err() && tried.iter().all(|(p, _)| *p != wanted.package) {
                let failed = unpack(wanted.package).err().map(|e| format!("{e:#}"));
                tried.push((wanted.package, failed));
            }
            let failed = tried
                .iter()
                .find(|(p, _)| *p == wanted.package)
                .and_then(|(_, why)| why.clone());
            let found = find(wanted.file);
            let found = match failed {
                Some(why) if found.is_err() => Err(anyhow::anyhow!(why)),
                _ => found,
            };
            (wanted.file, found)
        })
        .collect()
}

/// Where a program is.
///
/// # Errors
/// When it is not there; what brings it.
pub fn find(program: &str) -> Result<PathBuf> {
    let unpacked = PROGRAM_FOLDERS
        .iter()
        .map(|folder| root().join(folder).join(program))
        .find(|file| file.is_file());
    unpacked.or_else(|| term::which(program)).with_context(|| {
        format!("{program} is not here: `cargo xtask bench peers` unpacks it where there is apt-get, else install it")
    })
}

/// `NAME VERSION` of the package that was unpacked.
#[must_use]
pub fn package_version(package: &str) -> Option<String> {
    let prefix = format!("{package}_");
    fs::read_dir(root().join("packages"))
        .ok()?
        .flatten()
        .filter_map(|e| e.file_name().into_string().ok())
        .find_map(|name| {
            let version = name.strip_prefix(&prefix)?.split('_').next()?;
            Some(format!("{package} {version}"))
        })
}

/// Lets a command find the libraries that were unpacked along.
pub fn with_libraries(command: &mut Command) {
    let mut folders = library_folders();
    if folders.is_empty() {
        return;
    }
    folders.extend(std::env::split_paths(
        &std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default(),
    ));
    if let Ok(joined) = std::env::join_paths(folders) {
        command.env("LD_LIBRARY_PATH", joined);
    }
}

fn library_folders() -> Vec<PathBuf> {
    ["lib", "usr/lib"]
        .iter()
        .filter_map(|below| fs::read_dir(root().join(below)).ok())
        .flat_map(|folder| folder.flatten().map(|e| e.path()))
        .filter(|p| p.is_dir() && p.to_string_lossy().ends_with("-linux-gnu"))
        .collect()
}

fn root() -> PathBuf {
    paths::own_folder().join("tools/peers")
}

fn unpack(package: &str) -> Result<()> {
    if !has_apt() {
        bail!("this system has no apt-get; install `{package}` by its own means");
    }
    let libraries = LIBRARIES.iter().filter(|(p, _)| *p == package);
    let all = std::iter::once(package)
        .chain(libraries.map(|(_, l)| *l))
        .collect::<Vec<_>>();
    let root = root();
    let downloads = root.join("packages");
    fs::create_dir_all(&downloads)
        .with_context(|| format!("cannot make {}", downloads.display()))?;
    term::step(&format!(
        "unpacking Debian's {} into {}",
        all.join(" "),
        root.display()
    ));
    for package in all {
        let file = download(package, &downloads)?;
        term::output_of(Command::new("dpkg-deb").arg("-x").arg(&file).arg(&root))?;
    }
    Ok(())
}

fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    let fetch = || {
        let mut command = Command::new("apt-get");
        command.current_dir(folder);
        if is_root() {
            // Its unprivileged user may not write here.
            command.args(["-o", "APT::Sandbox::User=root"]);
        }
        term::output_of(command.args(["-q", "download", package]))
    };
    if fetch().is_err() {
        if is_root() {
            term::output_of(Command::new("apt-get").args(["update", "-qq"]))?;
        }
        fetch()?;
    }
    let prefix = format!("{package}_");
    fs::read_dir(folder)?
        .flatten()
        .map(|e| e.path())
        .find(|p| {
            p.file_name()
                .is_some_and(|n| n.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| format!("apt-get downloaded no {package}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_named() {
        let error = find("no-such-vpn").unwrap_err().to_string();
        assert!(error.contains("no-such-vpn"), "{error}");
    }
}
