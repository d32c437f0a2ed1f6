//! `cargo xtask setup`: finds out what is missing, says so, installs it. Safe to run again at any time; when nothing
//! is missing it takes a fraction of a second, so every other verb calls it first.

pub mod host;
pub mod nodes;
pub mod packages;
pub mod peers;
pub mod rocksdb;
pub mod toolchain;

use anyhow::Result;

use crate::term;

/// What a verb is going to do, hence what must be there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// Build the programs with the eBPF object.
    Build,
    /// Run nodes in network namespaces too.
    Run,
    /// And run the systems Weft is measured against.
    Peers,
}

/// Makes sure everything for `need` is there, quietly where it is.
///
/// # Errors
/// When something is missing and cannot be installed: what it is, and the commands that would help.
pub fn ensure(need: Need) -> Result<toolchain::Ebpf> {
    setup(need, false)
}

/// The verb: as [`ensure`], and tells what was found.
///
/// # Errors
/// As [`ensure`].
pub fn setup(need: Need, talk: bool) -> Result<toolchain::Ebpf> {
    let say = |text: &str| {
        if talk {
            term::good(text);
        }
    };
    if need >= Need::Run {
        for found in host::check()? {
            say(&found);
        }
        if packages::install(packages::RUN)? {
            term::good("what labs, tests and the demo run is installed");
        } else {
            say("ip, tc, nft and iperf3 are there");
        }
    }
    if need >= Need::Peers {
        // One that cannot be had is the benchmark's to report, not a reason to end.
        for (program, found) in peers::ensure() {
            match found {
                Ok(place) => say(&format!("{program}: {}", place.display())),
                Err(why) => term::warn(&format!("{program}: {why:#}")),
            }
        }
    }
    let ebpf = toolchain::ensure(talk)?;
    say(&format!("eBPF compiler: {}", ebpf.compiler));
    say(&format!("eBPF linker: {}", ebpf.linker.display()));
    Ok(ebpf)
}

/// Makes sure everything for the index is there: RocksDB compiled for building it and, for `Need::Run`, the coin nodes
/// that its tests run.
///
/// # Errors
/// RocksDB cannot be compiled, and what would help. Nodes that cannot be had are told of; tests that want them are
/// skipped.
pub fn index(need: Need, talk: bool) -> Result<()> {
    let library = rocksdb::ensure()?;
    if talk {
        term::good(&format!("RocksDB: {}", library.display()));
    }
    if need == Need::Run {
        nodes::ensure(talk);
    }
    Ok(())
}
