//! `cargo xtask <verb>`: everything one does with this repository.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use xtask::{building, setup, suite, term};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    bin_name = "cargo xtask",
    about,
    version,
    propagate_version = true
)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find out what is missing for building and testing, and install it
    Setup {
        /// Only what building needs, not what labs, tests and the demo run
        #[arg(long)]
        build_only: bool,
    },
    /// Build weftd and weft, with the eBPF object inside
    Build {
        /// Compile as tests do: debug assertions, overflow checks
        #[arg(long)]
        dev: bool,
    },
    /// Run every test of the workspace, those in network namespaces included
    Test {
        /// Only tests with this in their names
        #[arg(long)]
        filter: Option<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().verb {
        Verb::Setup { build_only } => {
            let need = if build_only {
                setup::Need::Build
            } else {
                setup::Need::Run
            };
            setup::setup(need, true).map(|_| ())
        }
        Verb::Build { dev } => {
            let profile = if dev {
                building::Profile::Dev
            } else {
                building::Profile::Release
            };
            building::build(profile).map(|programs| {
                term::good(&format!("{}", programs.weftd.display()));
                term::good(&format!("{}", programs.weft.display()));
            })
        }
        Verb::Test { filter } => suite::test(filter.as_deref()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{} {error:#}", term::paint(term::Style::Red, "error:"));
            ExitCode::FAILURE
        }
    }
}
