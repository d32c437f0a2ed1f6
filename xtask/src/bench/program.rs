//! Benchmarks that are programs of other packages, which this crate must not need to build.
//!
//! Such a program is run with `--json FILE`, tells its progress on standard error, and leaves one flat object of names
//! and numbers in the file.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context, Result, bail};

use super::{
    Benchmark,
    figure::{row, short},
};
use crate::{
    building::{self, Profile},
    setup::{self, Need},
    term,
};

/// What measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Program {
    /// An example of `weft-node`, which loads the XDP program.
    NodeExample(&'static str),
    /// `weft-index-bench` of the index, with a folder for its chain under cargo's build folder.
    Index,
}

/// Runs the program, prints its table, and copies its JSON to `json`.
///
/// # Errors
/// When it cannot run, a promised figure is missing, or an aim is missed.
pub(super) fn run(benchmark: &Benchmark, program: Program, json: Option<&Path>) -> Result<()> {
    let mut command = match program {
        Program::NodeExample(example) => {
            setup::ensure(Need::Run)?;
            let ebpf = setup::ensure(Need::Build)?;
            let mut command = building::cargo(&ebpf);
            command.args(["run", "--quiet", "--release", "--package", "weft-node"]);
            command.args(["--example", example, "--"]);
            command
        }
        Program::Index => {
            // It measures the program too, as wallets see it.
            building::index(Profile::Release)?;
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
        if !figure.aim.reached(value) {
            missed.push(figure.name);
        }
        println!("{}", row(figure, value, ""));
    }
    for (name, value) in figures
        .iter()
        .filter(|(n, _)| benchmark.figures.iter().all(|f| f.name != **n))
    {
        println!("  {name:<32}{:>10}", short(*value));
    }
    Ok(missed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::BENCHMARKS;

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
