//! `cargo xtask bench profile`: where a byte's time goes on a path over one transit, under one TCP stream.
//!
//! Where `perf` works, every processor is sampled while the stream runs, and each sample is charged to whose it was and to
//! what it did; a share of the samples, times the processors, over the bytes moved in that time, is nanoseconds per byte.
//! Where it does not, the threads of each `weftd` are told by processor time and by what they were found waiting in.

mod class;
mod samples;
mod threads;

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Serialize;

use super::{
    Options,
    peers::{
        cpu::Usage,
        load::{self, Flow, Traffic},
        site::{CLIENT, SERVER, Site},
        systems::System,
    },
};
use crate::{
    paths::Programs,
    setup::packages,
    term::{self, Style},
};

/// Samples per second and processor; odd, so as not to beat with timers.
const FREQUENCY: u32 = 1999;
/// Symbols in the second table.
const SYMBOLS: usize = 30;
/// How long the stream runs before it is looked at.
const WARM_UP: Duration = Duration::from_millis(700);

/// What was found.
#[derive(Debug, Serialize)]
struct Profile {
    /// `perf` or `threads`.
    by: &'static str,
    /// Why not by `perf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    without_perf: Option<String>,
    /// Gigabits per second of payload while looked at.
    gbps: f64,
    /// How long it was looked at, seconds.
    seconds: f64,
    /// Nanoseconds per byte of payload: by class of work, then by whose it was.
    ns_per_byte: BTreeMap<String, BTreeMap<String, f64>>,
    /// The functions that cost most.
    functions: Vec<Function>,
    /// Processor seconds per gigabyte, by `/proc`: by process, and `softirq`.
    cpu_s_per_gb: BTreeMap<String, f64>,
    /// What each node's counters went up by, per megabyte of payload.
    per_megabyte: BTreeMap<String, BTreeMap<String, f64>>,
    /// Threads, where there is no `perf`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    threads: Vec<threads::Thread>,
}

/// A function's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Function {
    /// Its name.
    name: String,
    /// Whose time it was.
    of: String,
    /// What class of work it was counted as.
    class: &'static str,
    /// Nanoseconds per byte.
    ns_per_byte: f64,
}

/// Profiles one TCP stream over one transit, and prints the tables.
///
/// # Errors
/// When Weft does not start, or nothing flows.
pub(super) fn run(programs: &Programs, options: &Options) -> Result<()> {
    let system = System::named("weft").context("there is no system weft")?;
    let time = Duration::from_secs(if options.quick { 3 } else { 8 });
    let perf = perf();
    if let Err(why) = &perf {
        term::warn(&format!("no perf: {why:#}; telling by threads instead"));
    }
    term::step("starting Weft over one transit");
    let mut site = system.start(programs)?;
    term::step(&format!("one TCP stream, watched for {} s", time.as_secs()));
    let profile = watch(&mut site, time, perf.err().map(|e| format!("{e:#}")))?;
    print(&profile);
    if let Some(file) = &options.json {
        fs::write(file, serde_json::to_string_pretty(&profile)? + "\n")
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Whether `perf` is there and may sample; tries to install it.
fn perf() -> Result<()> {
    if term::which("perf").is_none() {
        packages::install_packages(&["linux-perf"])?;
    }
    let file = std::env::temp_dir().join(format!("weft-perf-{}", std::process::id()));
    let tried = record(&file, "0.05");
    let _ = fs::remove_file(&file);
    tried
}

fn record(file: &Path, seconds: &str) -> Result<()> {
    let mut command = Command::new("perf");
    command
        .args([
            "record",
            "-q",
            "-a",
            "-e",
            "cpu-clock",
            "-F",
            &FREQUENCY.to_string(),
            "-o",
        ])
        .arg(file)
        .args(["--", "sleep", seconds]);
    term::output_of(&mut command).map(|_| ())
}

fn watch(site: &mut Site, time: Duration, without_perf: Option<String>) -> Result<Profile> {
    let [client, server] = [CLIENT, SERVER].map(|n| site.lab.node(n).namespace());
    let target = site.target()?;
    let processes = site.processes();
    let seconds = (time + WARM_UP).as_secs_f64().ceil() as u32 + 2;
    let traffic = Traffic::Tcp {
        streams: 1,
        back: false,
    };
    let data = site.lab.node(CLIENT).dir().join("perf.data");
    let (flow, seen) = std::thread::scope(|scope| -> Result<_> {
        let load = scope.spawn(|| load::run(client, server, target, traffic, seconds));
        // Not a wait for anything: the stream is past its slow start after it.
        std::thread::sleep(WARM_UP);
        let seen = look(site, &processes, &data, time, without_perf.is_none());
        let flow = load
            .join()
            .ok()
            .context("the load's thread ended unexpectedly")??;
        Ok((flow, seen?))
    })?;
    let samples = match &without_perf {
        None => read_samples(&data)?,
        Some(_) => Vec::new(),
    };
    site.all_run()?;
    Ok(put_together(flow, seen, &samples, &processes, without_perf))
}

/// What was seen while the stream ran.
struct Seen {
    seconds: f64,
    usage: Usage,
    counters: BTreeMap<String, BTreeMap<String, f64>>,
    threads: Vec<threads::Thread>,
}

fn look(
    site: &Site,
    processes: &[(String, u32)],
    data: &Path,
    time: Duration,
    with_perf: bool,
) -> Result<Seen> {
    let counters = all_counters(site)?;
    let before = Usage::now(processes)?;
    let begun = Instant::now();
    let threads = if with_perf {
        record(data, &time.as_secs_f64().to_string())?;
        Vec::new()
    } else {
        threads::watch(processes, time)?
    };
    let seconds = begun.elapsed().as_secs_f64();
    let usage = Usage::now(processes)?.since(&before);
    let mut after = all_counters(site)?;
    for (node, values) in &mut after {
        for (name, value) in values.iter_mut() {
            *value -= counters
                .get(node)
                .and_then(|c| c.get(name))
                .copied()
                .unwrap_or(0.0);
        }
        values.retain(|_, v| *v > 0.0);
    }
    Ok(Seen {
        seconds,
        usage,
        counters: after,
        threads,
    })
}

fn all_counters(site: &Site) -> Result<BTreeMap<String, BTreeMap<String, f64>>> {
    let mut all = BTreeMap::new();
    for node in site.lab.daemons() {
        let counters = node.api()?.counters()?;
        let mut flat = BTreeMap::new();
        for (group, values) in [
            ("xdp", &counters.xdp),
            ("xdp drop", &counters.xdp_drops),
            ("user", &counters.user),
            ("user drop", &counters.user_drops),
            ("session", &counters.sessions),
        ] {
            for (name, value) in values {
                flat.insert(format!("{group} {name}"), *value as f64);
            }
        }
        all.insert(node.name().to_owned(), flat);
    }
    Ok(all)
}

fn read_samples(data: &Path) -> Result<Vec<samples::Sample>> {
    let mut command = Command::new("perf");
    command
        .args(["script", "-F", "comm,pid,ip,sym,dso", "-i"])
        .arg(data)
        .stdin(Stdio::null());
    let text = term::output_of(&mut command)?;
    let samples = text.lines().filter_map(samples::parse).collect::<Vec<_>>();
    if samples.is_empty() {
        bail!("perf recorded nothing");
    }
    Ok(samples)
}

fn put_together(
    flow: Flow,
    seen: Seen,
    samples: &[samples::Sample],
    processes: &[(String, u32)],
    without_perf: Option<String>,
) -> Profile {
    let bytes = flow.gbps * 1e9 / 8.0 * seen.seconds;
    let processors = std::thread::available_parallelism().map_or(1.0, |n| usize::from(n) as f64);
    // Idle time is sampled too, so all samples together are all processors' time.
    let per_sample = seen.seconds * processors * 1e9 / samples.len().max(1) as f64 / bytes.max(1.0);
    let (classes, functions) = samples::charge(samples, processes, per_sample);
    let mut cpu = seen
        .usage
        .processes
        .iter()
        .map(|(n, s)| (n.clone(), s * 1e9 / bytes))
        .collect::<BTreeMap<_, _>>();
    cpu.insert("softirq".into(), seen.usage.softirq * 1e9 / bytes);
    let machine = seen.usage.user + seen.usage.system + seen.usage.softirq;
    cpu.insert("machine".into(), machine * 1e9 / bytes);
    let mut per_megabyte = seen.counters;
    for value in per_megabyte.values_mut().flat_map(BTreeMap::values_mut) {
        *value *= 1e6 / bytes;
    }
    Profile {
        by: if without_perf.is_none() {
            "perf"
        } else {
            "threads"
        },
        without_perf,
        gbps: flow.gbps,
        seconds: seen.seconds,
        ns_per_byte: classes,
        functions,
        cpu_s_per_gb: cpu,
        per_megabyte,
        threads: seen.threads,
    }
}

fn print(profile: &Profile) {
    let heading = |text: &str| println!("\n{}", term::paint(Style::Bold, text));
    println!("\n  {:.2} Gbit/s of payload", profile.gbps);
    if !profile.ns_per_byte.is_empty() {
        heading(
            "Nanoseconds of processor time per byte of payload (a nanosecond per byte is a second per gigabyte)",
        );
        let owners = samples::OWNERS;
        let heads = owners
            .iter()
            .map(|o| format!("{o:>10}"))
            .collect::<String>();
        println!(
            "{}",
            term::paint(Style::Dim, &format!("  {:<34}{heads}{:>10}", "", "all"))
        );
        let mut rows = profile.ns_per_byte.iter().collect::<Vec<_>>();
        let sum = |r: &BTreeMap<String, f64>| r.values().sum::<f64>();
        rows.sort_by(|a, b| sum(b.1).total_cmp(&sum(a.1)));
        let mut totals = vec![0.0; owners.len()];
        for (class, row) in rows {
            let mut cells = String::new();
            for (total, owner) in totals.iter_mut().zip(owners) {
                let value = row.get(owner).copied().unwrap_or(0.0);
                *total += value;
                cells += &cell(value);
            }
            println!("  {class:<34}{cells}{}", cell(sum(row)));
        }
        let cells = totals.iter().map(|t| cell(*t)).collect::<String>();
        let all = cell(totals.iter().sum());
        println!(
            "  {:<34}{cells}{}",
            term::paint(Style::Bold, &format!("{:<34}", "all")),
            all
        );
        heading("Functions");
        for function in profile.functions.iter().take(SYMBOLS) {
            println!(
                "  {:>8.3}  {:<10} {:<52} {}",
                function.ns_per_byte,
                function.of,
                function.name.chars().take(52).collect::<String>(),
                term::paint(Style::Dim, function.class)
            );
        }
    }
    if !profile.threads.is_empty() {
        heading(
            "Threads: share of a processor in user and system, and where they were found waiting",
        );
        for thread in &profile.threads {
            println!("  {}", thread.line());
        }
    }
    heading("By /proc: processor seconds per gigabyte");
    for (name, seconds) in &profile.cpu_s_per_gb {
        println!("  {name:<34}{seconds:>10.3}");
    }
    heading("Counters, per megabyte of payload");
    for (node, counters) in &profile.per_megabyte {
        for (name, value) in counters {
            println!("  {node:<10}{name:<34}{value:>12.2}");
        }
    }
}

fn cell(value: f64) -> String {
    if value == 0.0 {
        format!("{:>10}", "")
    } else {
        format!("{value:>10.3}")
    }
}
