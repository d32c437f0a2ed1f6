//! Processor time and memory, from `/proc`.

use std::{collections::BTreeMap, fs};

use anyhow::{Context, Result};

/// Processor seconds since boot, of the whole machine and of some processes.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// In programs.
    pub(crate) user: f64,
    /// In system calls and kernel threads.
    pub(crate) system: f64,
    /// In software interrupts: most of what the network stack does on receipt.
    pub(crate) softirq: f64,
    /// User and system, by process.
    pub(crate) processes: BTreeMap<String, f64>,
}

impl Usage {
    /// Now.
    ///
    /// # Errors
    /// When `/proc` cannot be read. A process that is gone is left out.
    pub(crate) fn now(processes: &[(String, u32)]) -> Result<Self> {
        let ticks = ticks_per_second();
        let text = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
        let mut usage =
            machine(&text, ticks).context("/proc/stat has no line of all processors")?;
        for (name, pid) in processes {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if let Some(seconds) = process(&stat, ticks) {
                usage.processes.insert(name.clone(), seconds);
            }
        }
        Ok(usage)
    }

    /// What was used since an earlier time.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let processes = self
            .processes
            .iter()
            .filter_map(|(name, now)| Some((name.clone(), now - before.processes.get(name)?)))
            .collect();
        Self {
            user: self.user - before.user,
            system: self.system - before.system,
            softirq: self.softirq - before.softirq,
            processes,
        }
    }
}

/// The resident memory of a process, MB (10^6 bytes).
pub(crate) fn resident_mb(pid: u32) -> Option<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    resident(&status)
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    let kib = line.split_whitespace().next()?.parse::<f64>().ok()?;
    Some(kib * 1024.0 / 1e6)
}

fn ticks_per_second() -> f64 {
    // SAFETY: sysconf has no preconditions.
    let ticks = unsafe { libc::sysconf(libc::_SC_CLK_TCK) };
    if ticks > 0 { ticks as f64 } else { 100.0 }
}

/// `cpu  user nice system idle iowait irq softirq ...`, in ticks.
fn machine(stat: &str, ticks: f64) -> Option<Usage> {
    let line = stat.lines().find_map(|l| l.strip_prefix("cpu "))?;
    let fields = line
        .split_whitespace()
        .map(str::parse::<f64>)
        .collect::<Result<Vec<_>, _>>()
        .ok()?;
    let field = |n: usize| fields.get(n).map(|f| f / ticks);
    Some(Usage {
        user: field(0)? + field(1)?,
        system: field(2)?,
        softirq: field(6)?,
        processes: BTreeMap::new(),
    })
}

/// `pid (name) state ...`, the name holding whatever it likes; user and system ticks are the 14th and 15th field.
fn process(stat: &str, ticks: f64) -> Option<f64> {
    times(stat, ticks).map(|(user, system)| user + system)
}

/// User and system seconds out of a thread's or a process's `stat`.
pub(crate) fn thread_times(stat: &str) -> Option<(f64, f64)> {
    times(stat, ticks_per_second())
}

fn times(stat: &str, ticks: f64) -> Option<(f64, f64)> {
    let (_, after) = stat.rsplit_once(')')?;
    let mut fields = after.split_whitespace().skip(11);
    let user = fields.next()?.parse::<f64>().ok()?;
    let system = fields.next()?.parse::<f64>().ok()?;
    Some((user / ticks, system / ticks))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_s_line_is_read() {
        let text = "cpu  100 10 200 3000 5 0 50 1 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        let usage = machine(text, 100.0).unwrap();
        assert_eq!((usage.user, usage.system, usage.softirq), (1.1, 2.0, 0.5));
        assert!(machine("cpu0 1 2 3\n", 100.0).is_none());
    }

    #[test]
    fn a_name_with_brackets_is_no_obstacle() {
        let text = "42 (a ) b (c) S 1 42 42 0 -1 4194560 1 0 0 0 300 150 0 0 20 0 4 0 99";
        assert_eq!(process(text, 100.0), Some(4.5));
        assert!(process("42 (a", 100.0).is_none());
        assert_eq!(resident("Name:\tx\nVmRSS:\t    1000 kB\n"), Some(1.024));
    }

    #[test]
    fn this_process_uses_the_machine() {
        let me = [("me".to_owned(), std::process::id())];
        let before = Usage::now(&me).unwrap();
        let used = Usage::now(&me).unwrap().since(&before);
        assert!(used.processes["me"] >= 0.0 && used.user >= 0.0);
        assert!(resident_mb(std::process::id()).unwrap() > 0.1);
    }
}
