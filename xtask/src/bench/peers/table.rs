//! The tables of a run.

use std::collections::BTreeMap;

use super::{
    super::figure::{Aim, Figure, row, short},
    measure::PAYLOADS,
    ratios::FIGURES,
    report::{Report, State, SystemReport},
    systems::Scope,
    systems::System,
};
use crate::term::{self, Style};

/// Width of a column.
const WIDTH: usize = 11;

/// Prints everything; `before` are the ratios of the last run.
pub(super) fn print(report: &Report, before: &BTreeMap<String, f64>) {
    for line in lines(report, before) {
        println!("{line}");
    }
}

fn lines(report: &Report, before: &BTreeMap<String, f64>) -> Vec<String> {
    let mut out = Vec::new();
    let gbps = |name: &'static str| Column {
        head: name
            .split('_')
            .map(str::to_owned)
            .collect::<Vec<_>>()
            .join(" "),
        figure: format!("{name}_gbps"),
        digits: 2,
    };
    let mut bulk = ["tcp1_up", "tcp1_down", "tcp8_up", "tcp8_down"]
        .map(gbps)
        .to_vec();
    for payload in PAYLOADS {
        bulk.push(Column {
            head: format!("udp {payload}"),
            figure: format!("udp{payload}_kpps"),
            digits: 1,
        });
    }
    for payload in PAYLOADS {
        bulk.push(Column {
            head: format!("lost {payload}"),
            figure: format!("udp{payload}_lost"),
            digits: 2,
        });
    }
    table(
        &mut out,
        report,
        "Bulk: TCP (CUBIC) in Gbit/s of payload received; UDP in thousands of datagrams received per second, and the share lost",
        &bulk,
    );
    let micros = |head: &str, figure: &str| Column {
        head: head.to_owned(),
        figure: format!("{figure}_us"),
        digits: 0,
    };
    let latency = [
        micros("tcp p50", "idle_tcp_p50"),
        micros("tcp p99", "idle_tcp_p99"),
        micros("udp p50", "idle_udp_p50"),
        micros("udp p99", "idle_udp_p99"),
        micros("load p50", "loaded_tcp_p50"),
        micros("load p99", "loaded_tcp_p99"),
        micros("udp p50", "loaded_udp_p50"),
        micros("udp p99", "loaded_udp_p99"),
    ];
    table(
        &mut out,
        report,
        "Requests of 64 bytes: microseconds, idle and beside one full TCP stream (load)",
        &latency,
    );
    processes(&mut out, report);
    failures(&mut out, report);
    ratios(&mut out, report, before);
    out
}

#[derive(Clone)]
struct Column {
    head: String,
    figure: String,
    digits: usize,
}

fn heading(out: &mut Vec<String>, text: &str) {
    out.push(String::new());
    out.push(term::paint(Style::Bold, text));
}

fn table(out: &mut Vec<String>, report: &Report, title: &str, columns: &[Column]) {
    let any = |s: &SystemReport| columns.iter().any(|c| s.figures.contains_key(&c.figure));
    if !report.systems.values().any(any) {
        return;
    }
    heading(out, title);
    let heads = columns
        .iter()
        .map(|c| format!("{:>WIDTH$}", c.head))
        .collect::<String>();
    out.push(term::paint(Style::Dim, &format!("  {:<20}{heads}", "")));
    for (name, system) in in_order(report).filter(|(_, s)| any(s) || s.state == State::Failed) {
        let cells = columns
            .iter()
            .map(|c| match system.median(&c.figure) {
                Some(value) => format!("{value:>WIDTH$.*}", c.digits),
                None => format!("{:>WIDTH$}", "–"),
            })
            .collect::<String>();
        out.push(format!("  {name:<20}{cells}"));
    }
}

/// Systems in the order of their definition, not of their names.
fn in_order(report: &Report) -> impl Iterator<Item = (&'static str, &SystemReport)> {
    super::systems::SYSTEMS
        .iter()
        .filter_map(|s| Some((s.name, report.systems.get(s.name)?)))
}

fn processes(out: &mut Vec<String>, report: &Report) {
    let full = |name: &str| System::named(name).is_some_and(|s| s.scope == Scope::Full);
    heading(
        out,
        "Processor seconds per gigabyte in one TCP stream (machine: all of it; the rest is part of it), and resident MB",
    );
    for (name, system) in in_order(report).filter(|(n, s)| full(n) && !s.cpu_s_per_gb.is_empty()) {
        let machine = system.cpu_s_per_gb.get("machine").map_or(0.0, |s| s.median);
        let mut parts = system
            .cpu_s_per_gb
            .iter()
            .filter(|(n, _)| *n != "machine")
            .map(|(n, s)| format!("{n} {}", short(s.median)))
            .collect::<Vec<_>>();
        for (process, idle) in &system.idle_mb {
            let used = system
                .used_mb
                .get(process)
                .map_or(idle.median, |s| s.median);
            parts.push(format!("{process} {:.0} → {used:.0} MB", idle.median));
        }
        out.push(format!(
            "  {name:<20}{machine:>WIDTH$.2}  {}",
            term::paint(Style::Dim, &parts.join(", "))
        ));
    }
}

fn failures(out: &mut Vec<String>, report: &Report) {
    let some = |s: &SystemReport| s.state != State::Measured || !s.notes.is_empty();
    if !report.systems.values().any(some) {
        return;
    }
    heading(out, "What could not be measured, and what should be known");
    for (name, system) in in_order(report) {
        if let Some(why) = &system.reason {
            let line = format!("  {name:<20}not measured: {why}");
            out.push(term::paint(Style::Red, &line));
        }
        for (what, why) in &system.errors {
            out.push(term::paint(
                Style::Red,
                &format!("  {name:<20}{what}: {why}"),
            ));
        }
        for note in &system.notes {
            out.push(term::paint(Style::Yellow, &format!("  {name:<20}{note}")));
        }
    }
}

fn ratios(out: &mut Vec<String>, report: &Report, before: &BTreeMap<String, f64>) {
    heading(
        out,
        "Ratios: median of the rounds, [least, greatest], next to what is aimed at",
    );
    for figure in FIGURES {
        match report.ratios.get(figure.name) {
            Some(value) => {
                let spread = report.spread.get(figure.name);
                let note = spread.map_or_else(String::new, |[low, high]| {
                    format!("[{}, {}] ", short(*low), short(*high))
                });
                let fell = fall(figure, before.get(figure.name).copied(), *value);
                out.push(row(figure, *value, &format!("{note}{fell}")));
            }
            None => out.push(format!(
                "  {:<32}{:>10}  {:<16} {}",
                figure.name,
                "–",
                figure.aim.words(),
                term::paint(
                    Style::Yellow,
                    report.missing.get(figure.name).map_or("", String::as_str)
                )
            )),
        }
    }
    let missed = FIGURES
        .iter()
        .filter(|f| {
            report
                .ratios
                .get(f.name)
                .is_some_and(|v| !f.aim.reached(*v))
        })
        .map(|f| f.name)
        .collect::<Vec<_>>();
    if !missed.is_empty() {
        let line = format!("  missed: {}", missed.join(", "));
        out.push(term::paint(Style::Red, &line));
    }
}

/// In red, that a figure is worse than in the last run.
fn fall(figure: &Figure, before: Option<f64>, now: f64) -> String {
    match before {
        Some(before) if figure.aim != Aim::Told && figure.aim.fell(before, now) => {
            let change = (now / before - 1.0) * 100.0;
            let text = format!("was {}, {change:+.0} % since the last run  ", short(before));
            term::paint(Style::Red, &text)
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::report, *};

    #[test]
    fn everything_is_in_the_tables() {
        let before = BTreeMap::from([("tcp1_vs_kernel".to_owned(), 0.4)]);
        let text = lines(&report(), &before).join("\n");
        for part in [
            "weft ",
            "2.10",
            "not measured: tincd <is> not here",
            "tcp1_vs_kernel ",
            "was 0.40, -34 % since the last run",
            "missed: tcp1_vs_kernel",
            "yggdrasil was not part of this run",
            "weftd (client) 20 → 20 MB",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn a_small_change_is_no_fall() {
        let figure = &FIGURES[0];
        assert!(fall(figure, Some(4.0), 3.7).is_empty());
        assert!(fall(figure, None, 3.7).is_empty());
        assert!(fall(figure, Some(4.0), 3.5).contains("-12 %"));
    }
}
