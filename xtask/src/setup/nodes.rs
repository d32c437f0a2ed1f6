//! The coin nodes that tests of the index run: `litecoind` from Debian, bcoin from npm into `.weft/tools`.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};

use super::packages::{self, Wanted};
use crate::{paths, term};

const LITECOIND: &[Wanted] = &[Wanted {
    file: "litecoind",
    package: "litecoind",
}];
const NODE_JS: &[Wanted] = &[
    Wanted {
        file: "node",
        package: "nodejs",
    },
    Wanted {
        file: "npm",
        package: "npm",
    },
];
/// Without its native parts: its scripts are not run, and its database stays in memory.
const BCOIN: &str =
    r#"{"private":true,"dependencies":{"bcoin":"1.0.2"},"overrides":{"leveldown":"6.1.1"}}"#;
const BCOIN_VERSION: &str = "1.0.2";

/// Installs what is missing. What cannot be installed is told, and tests that want it are skipped.
pub fn ensure(talk: bool) {
    for (name, result) in [
        ("litecoind", packages::install(LITECOIND).map(drop)),
        ("bcoin", install_bcoin()),
    ] {
        match result {
            Ok(()) if talk => term::good(&format!("{name} is there")),
            Ok(()) => {}
            Err(why) => term::warn(&format!("tests with {name} will be skipped: {why:#}")),
        }
    }
}

/// The folder with bcoin in its `node_modules`, where it is installed.
#[must_use]
pub fn bcoin() -> Option<PathBuf> {
    let folder = bcoin_folder();
    (folder.join("node_modules/bcoin/package.json").is_file() && term::which("node").is_some())
        .then_some(folder)
}

fn bcoin_folder() -> PathBuf {
    paths::own_folder()
        .join("tools")
        .join(format!("bcoin-{BCOIN_VERSION}"))
}

fn install_bcoin() -> Result<()> {
    if bcoin().is_some() {
        return Ok(());
    }
    packages::install(NODE_JS)?;
    let folder = bcoin_folder();
    let scratch = folder.with_extension(format!("installing-{}", std::process::id()));
    term::step(&format!("installing bcoin {BCOIN_VERSION} from npm"));
    fs::create_dir_all(&scratch)?;
    fs::write(scratch.join("package.json"), BCOIN)?;
    let mut npm = Command::new("npm");
    npm.args(["install", "--ignore-scripts", "--no-audit", "--no-fund"])
        .current_dir(&scratch);
    let installed = term::output_of(&mut npm).and_then(|_| {
        ensure!(
            scratch.join("node_modules/bcoin/package.json").is_file(),
            "npm installed no bcoin"
        );
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&scratch, &folder).with_context(|| format!("cannot make {}", folder.display()))
    });
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    installed
}
