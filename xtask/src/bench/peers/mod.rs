//! `cargo xtask bench peers`: Weft next to what one would pick instead, on the same chain of namespaces, with the same
//! traffic, in interleaved rounds of one run.
//!
//! In each round every system is brought up on namespaces of its own, measured, and taken down before the next; odd
//! rounds go through them backwards. Ratios are taken within each round. A system that cannot be started is told with the
//! reason, in the tables and in the JSON.

mod chart;
pub(super) mod cpu;
mod echo;
pub(super) mod load;
mod measure;
mod ratios;
mod report;
mod sessions;
pub(super) mod site;
pub(super) mod systems;
mod table;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

pub use ratios::FIGURES;
use ratios::Samples;
use report::{Report, Run};
use systems::{Kind, SYSTEMS, Scope, System};

use super::Options;
use crate::{
    paths::{self, Programs},
    term,
};
use measure::Lengths;

/// Rounds where it is not said.
const ROUNDS: usize = 5;
/// Between the end of one system and the beginning of the next: what the kernel does late with a namespace's end.
const SETTLE: Duration = Duration::from_millis(200);

/// What is to be measured, and where it goes.
#[derive(Clone, Debug)]
pub struct Plan {
    systems: Vec<&'static System>,
    only: Vec<String>,
    rounds: usize,
    quick: bool,
    json: Option<PathBuf>,
    svg: Option<PathBuf>,
}

impl Plan {
    /// From the command line.
    ///
    /// # Errors
    /// A system that does not exist, with those that do; a file that cannot be written.
    pub fn new(options: &Options) -> Result<Self> {
        for name in &options.only {
            ensure!(
                System::named(name).is_some(),
                "--only {name}: there is no such system; there are {}",
                SYSTEMS
                    .iter()
                    .map(|s| s.name)
                    .collect::<Vec<_>>()
                    .join(", ")
            );
        }
        let wanted =
            |s: &&System| options.only.is_empty() || options.only.iter().any(|n| n == s.name);
        for file in [&options.json, &options.svg].into_iter().flatten() {
            // Before minutes are spent.
            fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(file)
                .with_context(|| format!("cannot write {}", file.display()))?;
        }
        let default = if options.quick { 1 } else { ROUNDS };
        Ok(Self {
            systems: SYSTEMS.iter().filter(wanted).collect(),
            only: options.only.clone(),
            rounds: options.rounds.unwrap_or(default),
            quick: options.quick,
            json: options.json.clone(),
            svg: options.svg.clone(),
        })
    }
}

/// Runs it, prints the tables, and writes JSON and SVG.
///
/// # Errors
/// When Weft or the kernel could not be measured, or a file cannot be written. Missed aims and other systems' failures
/// are told, and are not errors.
pub fn run(plan: &Plan, programs: &Programs) -> Result<()> {
    let begun = Instant::now();
    let mut run = Run {
        quick: plan.quick,
        only: plan.only.clone(),
        ..Run::here()
    };
    if run.load_before > 0.5 {
        term::warn(&format!(
            "the machine is not idle (load {:.1}): ratios are taken within each round, and still suffer",
            run.load_before
        ));
    }
    let mut failed = BTreeMap::new();
    let mut samples = Samples::new();
    let mut report = Report::new(run.clone(), &plan.systems, &samples, &failed);
    let steps = (0..plan.rounds).flat_map(|round| in_round(plan, round));
    for (round, system) in steps {
        // It is not tried again: what a system lacks it will lack in the next round too.
        if failed.contains_key(system.name) || (round > 0 && system.scope == Scope::Memory) {
            continue;
        }
        one(plan, (round, system), programs, &mut samples, &mut failed);
        run.rounds = round + 1;
        run.seconds = begun.elapsed().as_secs_f64();
        report = Report::new(run.clone(), &plan.systems, &samples, &failed);
        if let Some(file) = &plan.json {
            // A run that is ended early leaves what it has done.
            report.write(file)?;
        }
        std::thread::sleep(SETTLE);
    }
    let last = paths::own_folder().join("bench/peers.json");
    let before = report::earlier(&last);
    table::print(&report, &before);
    keep(plan, &report, &last)?;
    let own = plan
        .systems
        .iter()
        .filter(|s| matches!(s.kind, Kind::Weft | Kind::Kernel { .. }));
    for system in own {
        if let Some(why) = failed.get(system.name) {
            bail!("{} could not be measured: {why}", system.name);
        }
    }
    Ok(())
}

/// The systems of a round in their order.
fn in_round(plan: &Plan, round: usize) -> Vec<(usize, &'static System)> {
    let mut order = plan.systems.iter().map(|s| (round, *s)).collect::<Vec<_>>();
    if round % 2 == 1 {
        order.reverse();
    }
    order
}

/// One system in one round; what failed is told at once and in `failed`.
fn one(
    plan: &Plan,
    (round, system): (usize, &'static System),
    programs: &Programs,
    samples: &mut Samples,
    failed: &mut BTreeMap<&'static str, String>,
) {
    // What is resident does not change from round to round, and a thousand nodes take minutes.
    if system.scope == Scope::Memory && round > 0 {
        samples.entry(system.name).or_default().push(None);
        return;
    }
    let lengths = if plan.quick {
        Lengths::QUICK
    } else {
        Lengths::FULL
    };
    term::step(&format!(
        "round {}/{}: {}",
        round + 1,
        plan.rounds,
        system.about_with_length()
    ));
    let measured = match system.scope {
        Scope::Memory => sessions::measure(programs),
        scope => system
            .start(programs)
            .map(|mut site| measure::measure(&mut site, scope, lengths)),
    };
    let sample = match measured {
        Ok(sample) => Some(sample),
        Err(error) => {
            let why = format!("{error:#}");
            term::bad(&format!("{}: {why}", system.name));
            failed.insert(system.name, why);
            None
        }
    };
    for (what, why) in sample.iter().flat_map(|s| &s.errors) {
        term::bad(&format!("{}, {what}: {why}", system.name));
    }
    samples.entry(system.name).or_default().push(sample);
}

/// Writes what was asked for, and keeps the report of a whole run for the next to be compared with.
fn keep(plan: &Plan, report: &Report, last: &Path) -> Result<()> {
    let folder = last.parent().context("a file without a folder")?;
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if let Some(file) = &plan.json {
        report.write(file)?;
    }
    if plan.only.is_empty() {
        report.write(last)?;
    }
    let svg = plan.svg.clone().unwrap_or_else(|| folder.join("peers.svg"));
    fs::write(&svg, chart::draw(report))
        .with_context(|| format!("cannot write {}", svg.display()))?;
    println!();
    term::good(&format!("chart: {}", svg.display()));
    for file in plan
        .json
        .iter()
        .map(PathBuf::as_path)
        .chain(plan.only.is_empty().then_some(last))
    {
        term::good(&format!("figures: {}", file.display()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_systems_are_taken() {
        let options = Options {
            only: vec!["weft".into(), "kernel".into()],
            quick: true,
            ..Options::default()
        };
        let plan = Plan::new(&options).unwrap();
        let names = plan.systems.iter().map(|s| s.name).collect::<Vec<_>>();
        assert_eq!(names, ["kernel", "weft"]);
        assert_eq!(plan.rounds, 1);
        let wrong = Options {
            only: vec!["openvpn".into()],
            ..Options::default()
        };
        let error = Plan::new(&wrong).unwrap_err().to_string();
        assert!(
            error.contains("openvpn") && error.contains("yggdrasil"),
            "{error}"
        );
        assert_eq!(Plan::new(&Options::default()).unwrap().rounds, ROUNDS);
    }
}
