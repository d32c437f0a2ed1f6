//! `cargo xtask bench`: what is measured, told next to what is aimed at.
//!
//! [`transit`] measures one hop by itself, [`index`] the coin index, [`peers`] whole paths next to other systems, [`profile`] where a byte's time
//! goes. The names of figures, and what they should reach, are in [`BENCHMARKS`].

mod figure;
mod index;
pub mod peers;
pub mod profile;
mod program;
mod stats;
mod transit;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

pub use figure::{Aim, Figure};
pub use program::Program;

use crate::{
    setup::{self, Need},
    term,
};

/// A benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Benchmark {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What runs.
    pub how: How,
    /// What it measures, in a sentence.
    pub about: &'static str,
    /// Figures in the order of the table.
    pub figures: &'static [Figure],
}

/// How a benchmark is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// A program of another package.
    Program(Program),
    /// [`peers`].
    Peers,
    /// [`profile`].
    Profile,
}

/// All benchmarks.
pub const BENCHMARKS: &[Benchmark] = &[
    Benchmark {
        name: "transit",
        how: How::Program(Program::NodeExample("bench_transit")),
        about: "one hop of a label-switched path in XDP, next to kernel routing and a bare redirect; ratios of one run",
        figures: transit::FIGURES,
    },
    Benchmark {
        name: "index",
        how: How::Program(Program::Index),
        about: "the coin index on a generated chain of 2 GB: catching up, size, queries, following",
        figures: index::FIGURES,
    },
    Benchmark {
        name: "peers",
        how: How::Peers,
        about: "whole paths, client to server, next to kernel routing, yggdrasil, nebula, wireguard-go and tinc; ratios of one run",
        figures: peers::FIGURES,
    },
    Benchmark {
        name: "profile",
        how: How::Profile,
        about: "where a byte's time goes on a path over one transit",
        figures: &[],
    },
];

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Write the figures there as JSON.
    pub json: Option<PathBuf>,
    /// Draw them there as SVG (`peers`).
    pub svg: Option<PathBuf>,
    /// Shorter runs, one round (`peers`).
    pub quick: bool,
    /// Interleaved rounds (`peers`).
    pub rounds: Option<usize>,
    /// Only these systems (`peers`); all where empty.
    pub only: Vec<String>,
}

/// Runs a benchmark by name (the first where there is none) and prints its tables.
///
/// # Errors
/// When it cannot run, or a promised figure is missing; `transit` and `index` also when an aim is missed.
pub fn run(name: Option<&str>, options: &Options) -> Result<()> {
    let names = BENCHMARKS
        .iter()
        .map(|b| b.name)
        .collect::<Vec<_>>()
        .join(", ");
    let benchmark = match name {
        None => BENCHMARKS.first(),
        Some(name) => BENCHMARKS.iter().find(|b| b.name == name),
    };
    let benchmark =
        benchmark.with_context(|| format!("there is no benchmark {name:?}; there are: {names}"))?;
    if benchmark.how != How::Peers {
        let given = [
            (options.svg.is_some(), "--svg"),
            (options.rounds.is_some(), "--rounds"),
            (!options.only.is_empty(), "--only"),
            (options.quick && benchmark.how != How::Profile, "--quick"),
        ];
        for (there, flag) in given {
            ensure!(
                !there,
                "{flag} is for `cargo xtask bench peers`; `bench {}` has no such choice",
                benchmark.name
            );
        }
    }
    let heading = || term::heading(&format!("{}: {}", benchmark.name, benchmark.about));
    match benchmark.how {
        How::Program(program) => program::run(benchmark, program, options.json.as_deref()),
        How::Peers => {
            let plan = peers::Plan::new(options)?;
            setup::ensure(Need::Peers)?;
            let programs = crate::building::for_lab()?;
            heading();
            peers::run(&plan, &programs)
        }
        How::Profile => {
            setup::ensure(Need::Run)?;
            let programs = crate::building::for_lab()?;
            heading();
            profile::run(&programs, options)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_one_benchmark_are_refused_by_others() {
        let options = Options {
            rounds: Some(3),
            ..Options::default()
        };
        let error = run(Some("transit"), &options).unwrap_err().to_string();
        assert!(
            error.contains("--rounds") && error.contains("peers"),
            "{error}"
        );
        let error = run(Some("race"), &Options::default())
            .unwrap_err()
            .to_string();
        assert!(error.contains("transit, index, peers, profile"), "{error}");
    }
}
