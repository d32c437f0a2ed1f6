//! What a run found, and its JSON.
//!
//! The outermost object holds each ratio as a number under its name, as `bench transit`'s does, and beside them `spread`
//! (least and greatest of the rounds), `missing` (ratios that could not be had, and why), how and where it was measured,
//! and `systems`.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context, Result};
use serde::Serialize;

use super::{
    super::stats::Spread,
    measure::Sample,
    ratios::{self, FIGURES, Samples},
    systems::System,
};

/// A whole run.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Ratios by name.
    #[serde(flatten)]
    pub(super) ratios: BTreeMap<&'static str, f64>,
    /// Least and greatest of the rounds.
    pub(super) spread: BTreeMap<&'static str, [f64; 2]>,
    /// Ratios that could not be had, and why.
    pub(super) missing: BTreeMap<&'static str, String>,
    /// How it was measured.
    pub(super) run: Run,
    /// By name.
    pub(super) systems: BTreeMap<&'static str, SystemReport>,
}

/// How and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Run {
    /// Rounds done.
    pub(super) rounds: usize,
    /// Short runs.
    pub(super) quick: bool,
    /// Only some systems.
    pub(super) only: Vec<String>,
    /// Kernel release.
    pub(super) kernel: String,
    /// Processors.
    pub(super) processors: usize,
    /// Their model.
    pub(super) model: String,
    /// TCP's congestion control.
    pub(super) congestion_control: String,
    /// Processes that wanted to run, on the average of the minute before: what else the machine did.
    pub(super) load_before: f64,
    /// Seconds it took.
    pub(super) seconds: f64,
}

/// A system.
#[derive(Debug, Serialize)]
pub(super) struct SystemReport {
    /// What it is.
    pub(super) about: &'static str,
    /// Program and version.
    pub(super) version: String,
    /// Nodes between the ends.
    pub(super) transits: usize,
    /// `measured`, `failed`, or `partly` where some figures could not be taken.
    pub(super) state: State,
    /// Why it could not be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) reason: Option<String>,
    /// What could not be measured of it, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) errors: BTreeMap<String, String>,
    /// What should be known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) notes: Vec<String>,
    /// Figures by name; the unit is the name's end.
    pub(super) figures: BTreeMap<String, Spread>,
    /// Processor seconds per gigabyte of payload, by process.
    pub(super) cpu_s_per_gb: BTreeMap<String, Spread>,
    /// Resident memory before the traffic, MB, by process.
    pub(super) idle_mb: BTreeMap<String, Spread>,
    /// And after it.
    pub(super) used_mb: BTreeMap<String, Spread>,
}

/// How it went with a system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum State {
    /// Everything.
    Measured,
    /// Something could not be measured.
    Partly,
    /// It could not be started.
    Failed,
}

impl Report {
    /// Of what was measured, and of what could not be started.
    pub(super) fn new(
        run: Run,
        systems: &[&'static System],
        samples: &Samples,
        failed: &BTreeMap<&'static str, String>,
    ) -> Self {
        let computed = ratios::compute(samples);
        let missing = FIGURES
            .iter()
            .filter(|f| !computed.contains_key(f.name))
            .map(|f| (f.name, why_missing(f.name, samples, failed)))
            .collect();
        let systems = systems
            .iter()
            .map(|system| {
                let rounds = samples.get(system.name).map_or(&[][..], Vec::as_slice);
                let reason = failed.get(system.name).cloned();
                (system.name, SystemReport::new(system, rounds, reason))
            })
            .collect();
        Self {
            ratios: computed.iter().map(|(n, s)| (*n, s.median)).collect(),
            spread: computed
                .iter()
                .map(|(n, s)| (*n, [s.low, s.high]))
                .collect(),
            missing,
            run,
            systems,
        }
    }

    /// Writes it.
    pub(super) fn write(&self, file: &Path) -> Result<()> {
        fs::write(file, serde_json::to_string_pretty(self)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))
    }
}

fn why_missing(figure: &str, samples: &Samples, failed: &BTreeMap<&'static str, String>) -> String {
    let needed = ratios::needs(figure);
    if let Some((name, why)) = needed.iter().find_map(|n| Some((n, failed.get(n)?))) {
        return format!("{name} could not be measured: {why}");
    }
    match needed.iter().find(|n| !samples.contains_key(*n)) {
        Some(name) => format!("{name} was not part of this run"),
        None => "a figure it is made of could not be taken; see `errors` of its systems".to_owned(),
    }
}

impl SystemReport {
    fn new(system: &System, rounds: &[Option<Sample>], reason: Option<String>) -> Self {
        let samples = rounds.iter().flatten().collect::<Vec<_>>();
        let spread = |part: fn(&Sample) -> &BTreeMap<String, f64>| {
            let mut values = BTreeMap::<String, Vec<f64>>::new();
            for (name, value) in samples.iter().flat_map(|s| part(s)) {
                values.entry(name.clone()).or_default().push(*value);
            }
            values
                .into_iter()
                .filter_map(|(name, values)| Some((name, Spread::of(values)?)))
                .collect::<BTreeMap<_, _>>()
        };
        let mut errors = BTreeMap::new();
        let mut notes = Vec::<String>::new();
        for sample in &samples {
            errors.extend(sample.errors.clone());
            for note in &sample.notes {
                if !notes.contains(note) {
                    notes.push(note.clone());
                }
            }
        }
        let state = if samples.is_empty() {
            State::Failed
        } else if errors.is_empty() && reason.is_none() {
            State::Measured
        } else {
            State::Partly
        };
        Self {
            about: system.about,
            version: samples
                .last()
                .map_or_else(String::new, |s| s.version.clone()),
            transits: system.transits,
            state,
            reason,
            errors,
            notes,
            figures: spread(|s| &s.figures),
            cpu_s_per_gb: spread(|s| &s.cpu),
            idle_mb: spread(|s| &s.idle_mb),
            used_mb: spread(|s| &s.used_mb),
        }
    }

    /// The median of a figure.
    pub(super) fn median(&self, figure: &str) -> Option<f64> {
        self.figures.get(figure).map(|s| s.median)
    }
}

impl Run {
    /// What the machine is.
    pub(super) fn here() -> Self {
        let read = |file: &str| fs::read_to_string(file).unwrap_or_default();
        let model = read("/proc/cpuinfo").lines().find_map(|l| {
            Some(
                l.strip_prefix("model name")?
                    .split_once(':')?
                    .1
                    .trim()
                    .to_owned(),
            )
        });
        let load = read("/proc/loadavg");
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, Into::into),
            model: model.unwrap_or_default(),
            congestion_control: super::load::congestion_control(),
            load_before: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
            ..Self::default()
        }
    }
}

/// The numbers of an earlier report; none where there is no readable one.
pub(super) fn earlier(file: &Path) -> BTreeMap<String, f64> {
    let parsed = fs::read(file)
        .ok()
        .and_then(|text| serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(&text).ok());
    parsed
        .unwrap_or_default()
        .into_iter()
        .filter_map(|(name, value)| Some((name, value.as_f64()?)))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A run of three systems, one of which could not be started.
    pub(in super::super) fn report() -> Report {
        let sample = |up: f64| {
            let mut sample = Sample {
                version: "v 1".into(),
                ..Sample::default()
            };
            for (name, value) in [
                ("tcp1_up_gbps", up),
                ("tcp1_down_gbps", up),
                ("tcp8_up_gbps", up * 0.9),
                ("idle_tcp_p50_us", 40.0),
                ("idle_udp_p50_us", 38.0),
                ("loaded_tcp_p50_us", 400.0),
                ("loaded_tcp_p99_us", 900.0),
            ] {
                sample.figures.insert(name.into(), value);
            }
            sample.cpu.insert("machine".into(), 2.0 / up);
            sample.cpu.insert("softirq".into(), 0.5 / up);
            sample.idle_mb.insert("weftd (client)".into(), 20.0);
            Some(sample)
        };
        let mut samples = Samples::new();
        samples.insert("weft", vec![sample(2.0), sample(2.2)]);
        samples.insert("kernel", vec![sample(8.0), sample(8.0)]);
        let failed = BTreeMap::from([("tinc", "tincd <is> not here".to_owned())]);
        let systems = ["kernel", "weft", "tinc"].map(|n| System::named(n).unwrap());
        Report::new(Run::here(), &systems, &samples, &failed)
    }

    #[test]
    fn a_system_that_failed_is_in_it_with_the_reason() {
        let report = report();
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["systems"]["tinc"]["state"], "failed");
        assert!(
            json["systems"]["tinc"]["reason"]
                .as_str()
                .unwrap()
                .contains("not here")
        );
        assert!(
            json["missing"]["tcp1_vs_tinc"]
                .as_str()
                .unwrap()
                .contains("not here")
        );
        assert!(
            json["missing"]["tcp1_vs_yggdrasil"]
                .as_str()
                .unwrap()
                .contains("not part")
        );
        assert_eq!(json["systems"]["weft"]["state"], "measured");
        let ratio = json["tcp1_vs_kernel"].as_f64().unwrap();
        assert!((ratio - 0.2625).abs() < 1e-9);
        assert_eq!(json["spread"]["tcp1_vs_kernel"][0], 0.25);
        assert_eq!(json["p99_loaded_vs_kernel"], 1.0);
    }

    #[test]
    fn it_is_read_again() {
        let file = std::env::temp_dir().join(format!("weft-report-{}.json", std::process::id()));
        assert!(earlier(&file).is_empty());
        report().write(&file).unwrap();
        let numbers = earlier(&file);
        fs::remove_file(&file).unwrap();
        assert!((numbers["tcp1_vs_kernel"] - 0.2625).abs() < 1e-9);
        assert!(!numbers.contains_key("run"));
    }
}
