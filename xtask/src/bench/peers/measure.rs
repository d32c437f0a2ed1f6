//! What is measured of one running system in one round.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, Result};

use super::{
    cpu::{self, Usage},
    echo::{self, Latencies, Transport},
    load::{self, Flow, Traffic},
    site::{CLIENT, SERVER, Site},
    systems::Scope,
};

/// UDP payloads, bytes.
pub(super) const PAYLOADS: [u32; 3] = [64, 512, 1400];
/// Between requests on a loaded path.
const STEP: Duration = Duration::from_millis(2);
/// How long the load runs before requests are counted: past TCP's slow start.
const WARM_UP: Duration = Duration::from_millis(500);

/// How long each measurement lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Lengths {
    /// A bulk flow, seconds.
    pub(super) flow: u32,
    /// Requests on an idle path, for each transport.
    pub(super) idle: Duration,
    /// Requests on a loaded path.
    pub(super) loaded: Duration,
}

impl Lengths {
    /// For a first look.
    pub(super) const QUICK: Self = Self {
        flow: 1,
        idle: Duration::from_millis(400),
        loaded: Duration::from_millis(1500),
    };
    /// For figures that are written down.
    pub(super) const FULL: Self = Self {
        flow: 3,
        idle: Duration::from_secs(1),
        loaded: Duration::from_secs(4),
    };
}

/// What one round gave.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Sample {
    /// Figures by name; the unit is the name's end.
    pub(super) figures: BTreeMap<String, f64>,
    /// Processor seconds per gigabyte (10^9 bytes) of payload in one TCP stream, by process; `softirq` and `machine`
    /// (all there is, programs of the measurement included) beside.
    pub(super) cpu: BTreeMap<String, f64>,
    /// Resident memory, MB, by process, before any traffic but the first answer.
    pub(super) idle_mb: BTreeMap<String, f64>,
    /// And after all of it.
    pub(super) used_mb: BTreeMap<String, f64>,
    /// What could not be measured, and why.
    pub(super) errors: BTreeMap<String, String>,
    /// What should be known about this run.
    pub(super) notes: Vec<String>,
    /// What ran.
    pub(super) version: String,
}

/// Measures a system that answers.
pub(super) fn measure(site: &mut Site, scope: Scope, lengths: Lengths) -> Sample {
    let mut sample = Sample {
        version: site.version.clone(),
        idle_mb: memory(site),
        ..Sample::default()
    };
    sample.part("idle", || idle(site, lengths));
    let mut used = Vec::new();
    for (name, back) in [("tcp1_up", false), ("tcp1_down", true)] {
        sample.part(name, || {
            let (flow, usage) = counted(site, Traffic::Tcp { streams: 1, back }, lengths.flow)?;
            used.push((flow, usage));
            Ok(rate(name, flow))
        });
    }
    sample.cpu = per_gigabyte(&used);
    if scope == Scope::Full {
        for (name, back) in [("tcp8_up", false), ("tcp8_down", true)] {
            sample.part(name, || {
                let flow = flow(site, Traffic::Tcp { streams: 8, back }, lengths.flow)?;
                Ok(rate(name, flow))
            });
        }
        for payload in PAYLOADS {
            let name = format!("udp{payload}");
            sample.part(&name, || {
                let flow = flow(site, Traffic::Udp { payload }, lengths.flow)?;
                Ok(vec![
                    (format!("{name}_gbps"), flow.gbps),
                    (format!("{name}_kpps"), flow.kpps),
                    (format!("{name}_lost"), flow.lost),
                ])
            });
        }
        sample.part("loaded", || loaded(site, lengths));
    }
    sample.used_mb = memory(site);
    sample.part("processes", || site.all_run().map(|()| Vec::new()));
    sample.notes = std::mem::take(&mut site.notes);
    sample
}

impl Sample {
    fn part(&mut self, name: &str, work: impl FnOnce() -> Result<Vec<(String, f64)>>) {
        match work() {
            Ok(figures) => self.figures.extend(figures),
            Err(error) => drop(self.errors.insert(name.to_owned(), format!("{error:#}"))),
        }
    }
}

fn rate(name: &str, flow: Flow) -> Vec<(String, f64)> {
    vec![
        (format!("{name}_gbps"), flow.gbps),
        (format!("{name}_retransmits"), flow.retransmits as f64),
    ]
}

fn flow(site: &Site, traffic: Traffic, seconds: u32) -> Result<Flow> {
    let [client, server] = [CLIENT, SERVER].map(|n| site.lab.node(n).namespace());
    load::run(client, server, site.target()?, traffic, seconds)
}

/// A flow, and the processor time that went by meanwhile.
fn counted(site: &Site, traffic: Traffic, seconds: u32) -> Result<(Flow, Usage)> {
    let processes = site.processes();
    let before = Usage::now(&processes)?;
    let flow = flow(site, traffic, seconds)?;
    Ok((flow, Usage::now(&processes)?.since(&before)))
}

fn per_gigabyte(used: &[(Flow, Usage)]) -> BTreeMap<String, f64> {
    let gigabytes = used.iter().map(|(flow, _)| flow.bytes).sum::<f64>() / 1e9;
    let mut cpu = BTreeMap::<String, f64>::new();
    if gigabytes <= 0.0 {
        return cpu;
    }
    let mut add = |name: &str, seconds: f64| {
        *cpu.entry(name.to_owned()).or_default() += seconds / gigabytes;
    };
    for (flow, usage) in used {
        for (name, seconds) in &usage.processes {
            add(name, *seconds);
        }
        add("iperf3 (both ends)", flow.own_cpu);
        add("softirq", usage.softirq);
        add("machine", usage.user + usage.system + usage.softirq);
    }
    cpu
}

fn memory(site: &Site) -> BTreeMap<String, f64> {
    site.processes()
        .into_iter()
        .filter_map(|(name, pid)| Some((name, cpu::resident_mb(pid)?)))
        .collect()
}

fn idle(site: &Site, lengths: Lengths) -> Result<Vec<(String, f64)>> {
    let client = site.lab.node(CLIENT).namespace();
    let target = SocketAddr::new(site.target()?, site.echo_port());
    let mut figures = Vec::new();
    for (name, transport) in [("tcp", Transport::Tcp), ("udp", Transport::Udp)] {
        let latencies = echo::one_by_one(client, target, transport, lengths.idle)?;
        figures.extend(percentiles(&format!("idle_{name}"), &latencies));
    }
    Ok(figures)
}

fn loaded(site: &Site, lengths: Lengths) -> Result<Vec<(String, f64)>> {
    let client = site.lab.node(CLIENT).namespace();
    let target = SocketAddr::new(site.target()?, site.echo_port());
    let seconds = (lengths.loaded + WARM_UP).as_secs_f64().ceil() as u32 + 1;
    let traffic = Traffic::Tcp {
        streams: 1,
        back: false,
    };
    let (flow, tcp, udp) = std::thread::scope(|scope| {
        let load = scope.spawn(|| flow(site, traffic, seconds));
        // Not a wait for anything: the load is under way for so long before requests count.
        std::thread::sleep(WARM_UP);
        let [tcp, udp] = [Transport::Tcp, Transport::Udp].map(|transport| {
            scope.spawn(move || echo::in_step(client, target, transport, STEP, lengths.loaded))
        });
        (load.join(), tcp.join(), udp.join())
    });
    let ended = "a thread of the measurement ended unexpectedly";
    let flow = flow.ok().context(ended)??;
    let mut figures = vec![("loaded_gbps".to_owned(), flow.gbps)];
    for (name, latencies) in [("tcp", tcp), ("udp", udp)] {
        let latencies = latencies.ok().context(ended)??;
        figures.extend(percentiles(&format!("loaded_{name}"), &latencies));
    }
    Ok(figures)
}

fn percentiles(name: &str, latencies: &Latencies) -> Vec<(String, f64)> {
    let share_lost = latencies.lost as f64 / latencies.count().max(1) as f64;
    let mut figures = vec![(format!("{name}_lost"), share_lost)];
    for (word, share) in [("p50", 0.5), ("p99", 0.99)] {
        if let Some(micros) = latencies.micros(share) {
            figures.push((format!("{name}_{word}_us"), micros));
        }
    }
    figures
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processor_time_is_per_gigabyte_of_both_directions() {
        let flow = Flow {
            bytes: 5e8,
            own_cpu: 0.25,
            ..Flow::default()
        };
        let usage = Usage {
            user: 1.0,
            system: 0.5,
            softirq: 0.5,
            processes: [("weftd (client)".to_owned(), 0.75)].into(),
        };
        let cpu = per_gigabyte(&[(flow, usage.clone()), (flow, usage)]);
        assert_eq!(cpu["weftd (client)"], 1.5);
        assert_eq!(
            (cpu["machine"], cpu["softirq"], cpu["iperf3 (both ends)"]),
            (4.0, 1.0, 0.5)
        );
        assert!(per_gigabyte(&[]).is_empty());
    }

    #[test]
    fn a_part_that_fails_is_named() {
        let mut sample = Sample::default();
        sample.part("udp64", || anyhow::bail!("no route"));
        sample.part("idle", || Ok(vec![("idle_tcp_p50_us".into(), 3.0)]));
        assert_eq!(sample.errors["udp64"], "no route");
        assert_eq!(sample.figures.len(), 1);
    }
}
