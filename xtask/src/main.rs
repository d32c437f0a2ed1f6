//! `cargo xtask <verb>`: everything one does with this repository.

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};
use xtask::{
    bench, building, demo,
    lab::{topology::Topology, verb},
    paths::{Part, Programs},
    setup, suite, term,
};

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
    /// Build weftd and weft, with the eBPF object inside, and weft-indexd
    Build {
        /// Compile as tests do: debug assertions, overflow checks
        #[arg(long)]
        dev: bool,
        /// Only one part
        #[arg(long, value_enum)]
        only: Option<Part>,
    },
    /// Run every test, those in network namespaces and with coin nodes included
    Test {
        /// Only tests with this in their names
        #[arg(long)]
        filter: Option<String>,
        /// Only those of one part
        #[arg(long, value_enum)]
        only: Option<Part>,
    },
    /// Tests that go on for longer than the suite can wait
    Soak {
        /// What
        #[arg(value_enum)]
        what: suite::Soak,
    },
    /// Measure, and tell the figures next to what is aimed at
    Bench {
        /// Which benchmark
        #[arg(value_parser = bench::BENCHMARKS.iter().map(|b| b.name).collect::<Vec<_>>())]
        name: Option<String>,
        /// Write the figures as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
        /// Draw the figures as SVG (peers; else .weft/bench/peers.svg)
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
        /// One round of short runs, for a first look (peers; a shorter run of profile)
        #[arg(long)]
        quick: bool,
        /// Interleaved rounds (peers)
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
        rounds: Option<u32>,
        /// Only these systems, as `--only kernel,weft` (peers)
        #[arg(long, value_name = "SYSTEMS", value_delimiter = ',')]
        only: Vec<String>,
    },
    /// Six nodes, real traffic, a cut: what Weft does, measured
    Demo {
        /// Leave the nodes running, and tell how to look around
        #[arg(long)]
        keep: bool,
        /// Write what was seen as JSON
        #[arg(long, value_name = "FILE")]
        json: Option<PathBuf>,
    },
    /// Networks of real nodes in namespaces on this machine
    Lab {
        #[command(subcommand)]
        verb: LabVerb,
    },
}

#[derive(Subcommand)]
enum LabVerb {
    /// Bring a lab up from a topology file; Ctrl-C removes it
    Up {
        /// The topology (see docs/development.md and xtask/topologies)
        file: PathBuf,
        /// Return at once and leave it up, until `lab down`
        #[arg(long)]
        keep: bool,
    },
    /// Remove a lab, or all that were kept or left behind
    Down {
        /// Which
        id: Option<String>,
    },
    /// List labs
    List,
    /// Show a lab's nodes
    Status {
        /// Which, where there are several
        id: Option<String>,
    },
    /// Run a command inside a node, as `exec client -- weft status`
    Exec {
        /// Which lab, where there are several
        #[arg(long)]
        lab: Option<String>,
        /// The node
        node: String,
        /// The command
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{} {error:#}", term::paint(term::Style::Red, "error:"));
            ExitCode::FAILURE
        }
    }
}

fn run(verb: Verb) -> Result<ExitCode> {
    match verb {
        Verb::Setup { build_only } => {
            let need = if build_only {
                setup::Need::Build
            } else {
                setup::Need::Run
            };
            setup::setup(need, true)?;
            setup::index(need, true)?;
        }
        Verb::Build { dev, only } => {
            let profile = if dev {
                building::Profile::Dev
            } else {
                building::Profile::Release
            };
            if only != Some(Part::Index) {
                let programs = building::build(profile)?;
                term::good(&programs.weftd.display().to_string());
                term::good(&programs.weft.display().to_string());
            }
            if only != Some(Part::Mesh) {
                term::good(&building::index(profile)?.display().to_string());
            }
        }
        Verb::Test { filter, only } => suite::test(filter.as_deref(), only)?,
        Verb::Soak { what } => suite::soak(what)?,
        Verb::Bench {
            name,
            json,
            svg,
            quick,
            rounds,
            only,
        } => {
            let options = bench::Options {
                json,
                svg,
                quick,
                rounds: rounds.map(|r| r as usize),
                only,
            };
            bench::run(name.as_deref(), &options)?;
        }
        Verb::Demo { keep, json } => {
            setup::ensure(setup::Need::Run)?;
            demo::run(&building::for_lab()?, keep, json.as_deref())?;
        }
        Verb::Lab { verb } => return lab(verb),
    }
    Ok(ExitCode::SUCCESS)
}

fn lab(verb: LabVerb) -> Result<ExitCode> {
    match verb {
        LabVerb::Up { file, keep } => {
            // Before anything is built: a mistake in the file should not cost a build.
            Topology::read(&file)?;
            setup::ensure(setup::Need::Run)?;
            verb::up(&file, keep, &building::for_lab()?)?;
        }
        LabVerb::Down { id } => verb::down(id.as_deref())?,
        LabVerb::List => verb::list()?,
        LabVerb::Status { id } => verb::status(id.as_deref())?,
        LabVerb::Exec { lab, node, command } => {
            let code = verb::exec(
                lab.as_deref(),
                &node,
                &command,
                Programs::find().ok().as_ref(),
            )?;
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
