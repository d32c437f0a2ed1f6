//! Threads of processes, where there is no `perf`: their processor time, and what they were found waiting in.

use std::{
    collections::BTreeMap,
    fs,
    time::{Duration, Instant},
};

use anyhow::Result;
use serde::Serialize;

/// Between two looks at all threads.
const LOOK: Duration = Duration::from_millis(5);
/// Most threads that are looked at.
const MOST: usize = 256;

/// A thread.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(super) struct Thread {
    /// Its process.
    pub(super) process: String,
    /// Its name.
    pub(super) name: String,
    /// Share of a processor it had in its program.
    pub(super) user: f64,
    /// And in the kernel on its behalf.
    pub(super) system: f64,
    /// Times per second it waited of its own accord.
    pub(super) waits_per_s: f64,
    /// Times per second it was made to.
    pub(super) preempted_per_s: f64,
    /// Shares of the looks in which it was running, or waiting, by the kernel function.
    pub(super) found: BTreeMap<String, f64>,
}

impl Thread {
    pub(super) fn line(&self) -> String {
        let mut found = self.found.iter().collect::<Vec<_>>();
        found.sort_by(|a, b| b.1.total_cmp(a.1));
        let found = found
            .iter()
            .take(3)
            .map(|(place, share)| format!("{place} {:.0} %", *share * 100.0))
            .collect::<Vec<_>>();
        format!(
            "{:<16}{:<18}{:>6.1} %{:>6.1} %  {:>8.0} waits/s  {}",
            self.process,
            self.name,
            self.user * 100.0,
            self.system * 100.0,
            self.waits_per_s,
            found.join(", ")
        )
    }
}

#[derive(Clone, Copy, Default)]
struct Counts {
    user: f64,
    system: f64,
    waits: f64,
    preempted: f64,
}

/// Looks at the threads of processes for a while.
pub(super) fn watch(processes: &[(String, u32)], time: Duration) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for (process, pid) in processes {
        for entry in fs::read_dir(format!("/proc/{pid}/task"))?.flatten() {
            if threads.len() < MOST {
                threads.push((process.clone(), entry.path()));
            }
        }
    }
    let counts = |path: &std::path::Path| counts(path).unwrap_or_default();
    let before = threads.iter().map(|(_, p)| counts(p)).collect::<Vec<_>>();
    let mut found = vec![BTreeMap::<String, f64>::new(); threads.len()];
    let begun = Instant::now();
    let mut looks = 0.0_f64;
    while begun.elapsed() < time {
        looks += 1.0;
        for ((_, path), found) in threads.iter().zip(&mut found) {
            *found.entry(place(path)).or_default() += 1.0;
        }
        std::thread::sleep(LOOK);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let mut all = Vec::new();
    for (((process, path), before), mut found) in threads.iter().zip(before).zip(found) {
        let now = counts(path);
        found.values_mut().for_each(|n| *n /= looks.max(1.0));
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        all.push(Thread {
            process: process.clone(),
            name: name.trim().to_owned(),
            user: (now.user - before.user) / seconds,
            system: (now.system - before.system) / seconds,
            waits_per_s: (now.waits - before.waits) / seconds,
            preempted_per_s: (now.preempted - before.preempted) / seconds,
            found,
        });
    }
    all.sort_by(|a, b| (b.user + b.system).total_cmp(&(a.user + a.system)));
    Ok(all)
}

fn counts(path: &std::path::Path) -> Option<Counts> {
    let stat = fs::read_to_string(path.join("stat")).ok()?;
    let status = fs::read_to_string(path.join("status")).ok()?;
    let (user, system) = crate::bench::peers::cpu::thread_times(&stat)?;
    let field = |name: &str| {
        status
            .lines()
            .find_map(|l| l.strip_prefix(name)?.trim().parse::<f64>().ok())
    };
    Some(Counts {
        user,
        system,
        waits: field("voluntary_ctxt_switches:")?,
        preempted: field("nonvoluntary_ctxt_switches:")?,
    })
}

/// `running`, or the kernel function it waits in.
fn place(path: &std::path::Path) -> String {
    let stat = fs::read_to_string(path.join("stat")).unwrap_or_default();
    if state(&stat) == Some('R') {
        return "running".to_owned();
    }
    match fs::read_to_string(path.join("wchan")) {
        Ok(name) if !name.is_empty() && name != "0" => name,
        _ => "waiting".to_owned(),
    }
}

fn state(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_threads_are_seen() {
        let me = [("me".to_owned(), std::process::id())];
        let threads = watch(&me, Duration::from_millis(30)).unwrap();
        assert!(!threads.is_empty());
        for thread in &threads {
            let sum = thread.found.values().sum::<f64>();
            assert!((sum - 1.0).abs() < 1e-9, "{thread:?}");
            assert!(thread.line().contains("me"));
        }
    }

    #[test]
    fn a_state_is_read() {
        assert_eq!(state("7 (a) b) R 1 2"), Some('R'));
        assert_eq!(state(""), None);
    }
}
