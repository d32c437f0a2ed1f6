//! Samples as `perf script` prints them, and whom they are charged to.

use std::collections::BTreeMap;

use super::{Function, class};

/// Columns of the table.
pub(super) const OWNERS: [&str; 7] = [
    "client", "transit", "server", "iperf3", "kernel", "idle", "other",
];

/// One sample.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sample {
    /// The thread's name.
    pub(super) name: String,
    /// Its process.
    pub(super) pid: u32,
    /// The function it was in.
    pub(super) function: String,
    /// The file that function is in.
    pub(super) file: String,
}

/// Reads `NAME PID ADDRESS FUNCTION (FILE)`; the thread's name and the function may have blanks in them.
pub(super) fn parse(line: &str) -> Option<Sample> {
    let (head, file) = line.trim().rsplit_once(" (")?;
    let file = file.strip_suffix(')')?;
    let words = head.split_whitespace().collect::<Vec<_>>();
    let is_address = |w: &str| w.len() >= 6 && w.bytes().all(|b| b.is_ascii_hexdigit());
    let place = (1..words.len().checked_sub(1)?)
        .find(|n| words[*n].parse::<u32>().is_ok() && is_address(words[n + 1]))?;
    Some(Sample {
        name: words[..place].join(" "),
        pid: words[place].parse().ok()?,
        function: words[place + 2..].join(" "),
        file: file.to_owned(),
    })
}

fn owner(sample: &Sample, processes: &[(String, u32)]) -> &'static str {
    if let Some((name, _)) = processes.iter().find(|(_, pid)| *pid == sample.pid) {
        return match name.as_str() {
            n if n.contains("(client)") => "client",
            n if n.contains("(server)") => "server",
            _ => "transit",
        };
    }
    match sample.name.as_str() {
        "swapper" if class::is_idle(&sample.function) => "idle",
        "swapper" => "kernel",
        n if n.starts_with("iperf3") => "iperf3",
        n if [
            "ksoftirqd",
            "kworker",
            "rcu",
            "migration",
            "kcompactd",
            "napi",
        ]
        .iter()
        .any(|k| n.starts_with(k)) =>
        {
            "kernel"
        }
        _ => "other",
    }
}

/// Sums samples by class and owner, and by function: `per_sample` each.
pub(super) fn charge(
    samples: &[Sample],
    processes: &[(String, u32)],
    per_sample: f64,
) -> (BTreeMap<String, BTreeMap<String, f64>>, Vec<Function>) {
    let mut classes = BTreeMap::<String, BTreeMap<String, f64>>::new();
    let mut functions = BTreeMap::<(&str, &str), (&'static str, f64)>::new();
    for sample in samples {
        let of = owner(sample, processes);
        let class = class::of(&sample.function, &sample.file);
        *classes
            .entry(class.to_owned())
            .or_default()
            .entry(of.to_owned())
            .or_default() += per_sample;
        functions
            .entry((&sample.function, of))
            .or_insert((class, 0.0))
            .1 += per_sample;
    }
    let mut functions = functions
        .into_iter()
        .map(|((name, of), (class, ns_per_byte))| Function {
            name: name.to_owned(),
            of: of.to_owned(),
            class,
            ns_per_byte,
        })
        .collect::<Vec<_>>();
    functions.sort_by(|a, b| b.ns_per_byte.total_cmp(&a.ns_per_byte));
    functions.truncate(200);
    (classes, functions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_perf_are_read() {
        let line = "      lto cgu.15  9670      7fcf1cfe8ec6 llvm::A<int, b>::get (anonymous) (/a (b)/lib.so)";
        // The file's own bracket is the last that opens after a blank.
        let sample = parse(line).unwrap();
        assert_eq!((sample.name.as_str(), sample.pid), ("lto cgu.15", 9670));
        let line = "swapper     0  ffffffff81a2 pv_native_safe_halt ([kernel.kallsyms])";
        let sample = parse(line).unwrap();
        assert_eq!(sample.function, "pv_native_safe_halt");
        assert_eq!(sample.file, "[kernel.kallsyms]");
        assert!(parse("").is_none());
        assert!(parse("weftd 12").is_none());
        assert!(parse("x (y)").is_none());
    }

    #[test]
    fn samples_are_charged_to_whose_they_are() {
        let sample = |name: &str, pid, function: &str| Sample {
            name: name.into(),
            pid,
            function: function.into(),
            file: "[kernel.kallsyms]".into(),
        };
        let processes = [
            ("weftd (client)".to_owned(), 7),
            ("weftd (t1)".to_owned(), 8),
        ];
        let samples = [
            sample("worker", 7, "tun_get_user"),
            sample("worker", 7, "tun_get_user"),
            sample("weftd", 8, "bpf_prog_1_transit"),
            sample("swapper", 0, "pv_native_safe_halt"),
            sample("swapper", 0, "tcp_ack"),
            sample("iperf3", 9, "tcp_ack"),
        ];
        let (classes, functions) = charge(&samples, &processes, 0.5);
        assert_eq!(classes["TUN"]["client"], 1.0);
        assert_eq!(classes["XDP and BPF"]["transit"], 0.5);
        assert_eq!(classes["idle"]["idle"], 0.5);
        assert_eq!(classes["TCP"]["kernel"], 0.5);
        assert_eq!(classes["TCP"]["iperf3"], 0.5);
        assert_eq!(functions[0].name, "tun_get_user");
        let all = classes.values().flat_map(BTreeMap::values).sum::<f64>();
        assert!((all - 3.0).abs() < 1e-9);
    }
}
