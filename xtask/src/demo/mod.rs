//! `cargo xtask demo`: six nodes, real traffic, every claim measured.
//!
//! A claim that does not hold is told, the rest is shown all the same, and the end is an error.

mod acts;
mod findings;

use std::{path::Path, time::Instant};

use anyhow::{Context, Result, bail, ensure};

pub use findings::Findings;

use crate::{
    lab::{Lab, topology::Topology, verb},
    paths::Programs,
    term::{self, Style},
};

/// The nodes and links.
const TOPOLOGY: &str = include_str!("../../topologies/demo.toml");

/// What the acts share.
struct Stage {
    lab: Lab,
    findings: Findings,
    /// Claims that did not hold.
    broken: Vec<String>,
}

impl Stage {
    /// Tells a claim with what was measured.
    fn claim(&mut self, holds: bool, text: &str) {
        if holds {
            term::good(text);
        } else {
            term::bad(text);
            self.broken.push(text.to_owned());
        }
    }
}

/// Runs the demo; `json` gets what it saw, also when it ends early.
///
/// # Errors
/// When something could not be done, or a claim did not hold.
pub fn run(programs: &Programs, keep: bool, json: Option<&Path>) -> Result<()> {
    if let Some(file) = json {
        // Before minutes are spent: the file must be writable.
        std::fs::write(file, "{}\n").with_context(|| format!("cannot write {}", file.display()))?;
    }
    let begun = Instant::now();
    let topology = Topology::parse(TOPOLOGY, "xtask/topologies/demo.toml", "demo")?;
    picture();
    term::heading("Six nodes, each a real weftd in a network namespace of its own");
    let lab = Lab::build(&topology, programs)?;
    lab.start_all()?;
    let mut stage = Stage {
        lab,
        findings: Findings::default(),
        broken: Vec::new(),
    };
    let played = play(&mut stage);
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&stage.findings)?;
        std::fs::write(file, text + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if keep {
        verb::look_around(stage.lab.id(), "client");
        let Stage { lab, broken, .. } = stage;
        lab.keep()?;
        return end(played, &broken, begun);
    }
    let broken = std::mem::take(&mut stage.broken);
    if played.is_err() {
        for node in stage.lab.daemons() {
            println!(
                "{}",
                term::paint(
                    Style::Dim,
                    &format!("--- log of {} ends:\n{}", node.name(), node.log_end(8))
                )
            );
        }
    }
    drop(stage);
    end(played, &broken, begun)
}

fn play(stage: &mut Stage) -> Result<()> {
    acts::meet(stage)?;
    acts::path(stage)?;
    acts::ping(stage)?;
    acts::trace(stage)?;
    acts::download(stage)?;
    acts::iperf(stage)?;
    acts::secrecy(stage)?;
    acts::cut(stage)?;
    acts::switched_where(stage)
}

fn end(played: Result<()>, broken: &[String], begun: Instant) -> Result<()> {
    played?;
    ensure!(
        broken.len() < 2,
        "{} claims did not hold: {}",
        broken.len(),
        broken.join("; ")
    );
    if let [claim] = broken {
        bail!("a claim did not hold: {claim}");
    }
    term::heading(&format!(
        "All of it held, in {:.0} s",
        begun.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn picture() {
    println!();
    for line in TOPOLOGY.lines().filter_map(|l| l.strip_prefix("#   ")) {
        println!("{}", term::paint(Style::Cyan, line));
    }
}
