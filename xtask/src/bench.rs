//! `cargo xtask bench`: what is measured, told next to what is aimed at.
//!
//! A benchmark is an example of `weft-node` (it loads the XDP program, which this crate must not need to build), or the
//! program `weft-index-bench` of the index. It is run with `--json FILE`, tells its progress on standard error, and leaves one flat object of names and numbers in the
//! file; the names, and what they should reach, are in [`BENCHMARKS`].

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};

use crate::{
    building,
    setup::{self, Need},
    term::{self, Style},
};

/// A benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Benchmark {
    /// What it is called on the command line.
    pub name: &'static str,
    /// What measures.
    pub program: Program,
    /// What it measures, in a sentence.
    pub about: &'static str,
    /// Figures in the order of the table.
    pub figures: &'static [Figure],
}

/// What measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// An example of `weft-node`, which loads the XDP program.
    NodeExample(&'static str),
    /// `weft-index-bench` of the index, with a folder for its chain under cargo's build folder.
    Index,
}

/// A figure of a benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What is aimed at.
    pub aim: Aim,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing: it is told for comparison.
    Told,
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
}

impl Aim {
    fn reached(self, value: f64) -> bool {
        match self {
            Self::Told => true,
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }
}

/// The budget of instructions that the kernel's verifier may go through for the transit program; the kernel's own
/// limit is a million.
const VERIFIER_BUDGET: f64 = 200_000.0;

/// All benchmarks.
pub const BENCHMARKS: &[Benchmark] = &[TRANSIT, INDEX];

const TRANSIT: Benchmark = Benchmark {
    name: "transit",
    program: Program::NodeExample("bench_transit"),
    about: "one hop of a label-switched path in XDP, next to kernel routing and a bare redirect; ratios of one run",
    figures: &[
        Figure {
            name: "label_hop_vs_kernel",
            about: "packets per second of a label hop over kernel IPv4 forwarding",
            aim: Aim::AtLeast(2.0),
        },
        Figure {
            name: "label_hop_vs_kernel_per_packet",
            about: "what a packet costs in kernel IPv4 forwarding over what it costs in a label hop, generator deducted",
            aim: Aim::AtLeast(3.0),
        },
        Figure {
            name: "label_hop_vs_redirect",
            about: "packets per second of a label hop over a bare XDP redirect",
            aim: Aim::AtLeast(0.7),
        },
        Figure {
            name: "program_ns",
            about: "the program alone, nanoseconds per packet (test_run)",
            aim: Aim::Told,
        },
        Figure {
            name: "redirect_ns",
            about: "a bare redirect, likewise",
            aim: Aim::Told,
        },
        Figure {
            name: "siphash_ns",
            about: "SipHash-2-4 of 14 bytes alone (what a tag covers), likewise",
            aim: Aim::Told,
        },
        Figure {
            name: "verifier_insns",
            about: "instructions the kernel's verifier goes through",
            aim: Aim::AtMost(VERIFIER_BUDGET),
        },
    ],
};

const INDEX: Benchmark = Benchmark {
    name: "index",
    program: Program::Index,
    about: "the coin index on a generated chain of 2 GB: catching up, size, queries, following",
    figures: &[
        Figure {
            name: "catchup_mb_s_per_core",
            about: "megabytes of blocks per second of processor time, everything on",
            aim: Aim::AtLeast(25.0),
        },
        Figure {
            name: "catchup_mb_s_per_core_no_commitment",
            about: "the same without the MuHash",
            aim: Aim::Told,
        },
        Figure {
            name: "peak_rss_mb",
            about: "most memory while catching up",
            aim: Aim::AtMost(1100.0),
        },
        Figure {
            name: "db_vs_chain",
            about: "size of the database over that of the blocks, as catching up leaves it",
            aim: Aim::AtMost(0.15),
        },
        Figure {
            name: "db_vs_chain_compacted",
            about: "the same after `compact`",
            aim: Aim::AtMost(0.15),
        },
        Figure {
            name: "listunspent_100_p50_ms",
            about: "the coins of a script that has 100, one client, median",
            aim: Aim::Told,
        },
        Figure {
            name: "listunspent_100_p99_ms",
            about: "the same, 99 of 100 are faster",
            aim: Aim::AtMost(1.0),
        },
        Figure {
            name: "tip_event_ms",
            about: "from the node having a block to the event that tells of it, on disk",
            aim: Aim::AtMost(50.0),
        },
        Figure {
            name: "reopen_ms",
            about: "opening the database",
            aim: Aim::AtMost(1000.0),
        },
    ],
};

/// Runs a benchmark by name (the first where there is none), prints its table, and copies its JSON to `json`.
///
/// # Errors
/// When it cannot run, a promised figure is missing, or an aim is missed.
pub fn run(name: Option<&str>, json: Option<&Path>) -> Result<()> {
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
    let mut command = match benchmark.program {
        Program::NodeExample(example) => {
            setup::ensure(Need::Run)?;
            let ebpf = setup::ensure(Need::Build)?;
            let mut command = building::cargo(&ebpf);
            command.args(["run", "--quiet", "--release", "--package", "weft-node"]);
            command.args(["--example", example, "--"]);
            command
        }
        Program::Index => {
            setup::index(Need::Build, false)?;
            let mut command = building::index_cargo();
            command.args(["run", "--quiet", "--release", "--package"]);
            command.args(["weft-index-bench", "--", "run"]);
            command
        }
    };
    let file = match json {
        Some(file) => std::path::absolute(file)?,
        None => std::env::temp_dir().join(format!("weft-bench-{}.json", std::process::id())),
    };
    term::heading(&format!("{}: {}", benchmark.name, benchmark.about));
    command.arg("--json").arg(&file);
    let ran = term::run(&mut command).and_then(|()| read(&file));
    if json.is_none() {
        // It was only a way to hand the figures over.
        let _ = std::fs::remove_file(&file);
    }
    let figures = ran?;
    let missed = table(benchmark, &figures)?;
    if !missed.is_empty() {
        bail!("missed: {}", missed.join(", "));
    }
    Ok(())
}

fn read(file: &Path) -> Result<BTreeMap<String, f64>> {
    let text =
        std::fs::read(file).with_context(|| format!("the benchmark left no {}", file.display()))?;
    let all: BTreeMap<String, serde_json::Value> = serde_json::from_slice(&text)?;
    Ok(all
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_f64()?)))
        .collect())
}

/// Prints the figures; the names of those that miss their aim.
fn table(benchmark: &Benchmark, figures: &BTreeMap<String, f64>) -> Result<Vec<&'static str>> {
    let mut missed = Vec::new();
    for figure in benchmark.figures {
        let value = *figures
            .get(figure.name)
            .with_context(|| format!("the benchmark did not tell {}", figure.name))?;
        let reached = figure.aim.reached(value);
        if !reached {
            missed.push(figure.name);
        }
        let aim = match figure.aim {
            Aim::Told => String::new(),
            Aim::AtLeast(least) => format!("at least {}", short(least)),
            Aim::AtMost(most) => format!("at most {}", short(most)),
        };
        let style = if !reached { Style::Red } else { Style::Green };
        let shown = term::paint(style, &format!("{:>10}", short(value)));
        println!(
            "  {:<32}{shown}  {aim:<16} {}",
            figure.name,
            term::paint(Style::Dim, figure.about)
        );
    }
    for (name, value) in figures
        .iter()
        .filter(|(n, _)| benchmark.figures.iter().all(|f| f.name != **n))
    {
        println!("  {name:<32}{:>10}", short(*value));
    }
    Ok(missed)
}

fn short(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_aim_is_named() {
        let benchmark = &BENCHMARKS[0];
        let mut figures: BTreeMap<String, f64> = benchmark
            .figures
            .iter()
            .map(|f| (f.name.to_owned(), 5.0))
            .collect();
        assert!(table(benchmark, &figures).unwrap().is_empty());
        figures.insert("label_hop_vs_kernel".into(), 1.9);
        figures.insert("verifier_insns".into(), 900_000.0);
        assert_eq!(
            table(benchmark, &figures).unwrap(),
            ["label_hop_vs_kernel", "verifier_insns"]
        );
        figures.remove("program_ns");
        assert!(
            table(benchmark, &figures)
                .unwrap_err()
                .to_string()
                .contains("program_ns")
        );
    }
}
