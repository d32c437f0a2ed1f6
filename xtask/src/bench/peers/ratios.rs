//! Ratios between systems: taken within each round, then the median of the rounds.

use std::collections::BTreeMap;

use super::{
    super::{
        figure::{Aim, Figure},
        stats::{Spread, slope},
    },
    measure::Sample,
};

/// What is told, in the order of the table.
pub const FIGURES: &[Figure] = &[
    Figure {
        name: "tcp1_vs_yggdrasil",
        about: "one TCP stream over one transit (mean of both ways), over yggdrasil's the same way",
        aim: Aim::AtLeastBetter(3.5, 5.0),
    },
    Figure {
        name: "tcp1_vs_nebula_relay",
        about: "over nebula's, relayed by the transit",
        aim: Aim::AtLeast(12.0),
    },
    Figure {
        name: "tcp1_vs_wireguard_go",
        about: "over wireguard-go's end to end with kernel routing in the middle",
        aim: Aim::AtLeast(9.0),
    },
    Figure {
        name: "tcp1_vs_tinc",
        about: "over tinc's, relayed by the transit",
        aim: Aim::Told,
    },
    Figure {
        name: "tcp1_vs_kernel",
        about: "over kernel routing without encryption, all veth offloads on",
        aim: Aim::AtLeast(0.28),
    },
    Figure {
        name: "tcp1_vs_kernel_no_offload",
        about: "over the same with TSO, GSO and GRO off",
        aim: Aim::AtLeast(0.9),
    },
    Figure {
        name: "hop_cost_throughput",
        about: "share of one TCP stream's rate that each further transit costs (1 to 5 transits)",
        aim: Aim::AtMost(0.1),
    },
    Figure {
        name: "hop_cost_throughput_kernel",
        about: "the same of kernel routing",
        aim: Aim::Told,
    },
    Figure {
        name: "hop_cost_latency_vs_kernel",
        about: "what each further transit adds to the median idle round trip, over what it adds in kernel routing",
        aim: Aim::AtMost(1.2),
    },
    Figure {
        name: "hop_latency_us",
        about: "what each further transit adds to Weft's median idle round trip, microseconds",
        aim: Aim::Told,
    },
    Figure {
        name: "hop_latency_kernel_us",
        about: "the same of kernel routing",
        aim: Aim::Told,
    },
    Figure {
        name: "p99_loaded_vs_kernel",
        about: "99th percentile of a TCP request beside one full TCP stream, over kernel routing's",
        aim: Aim::AtMost(2.0),
    },
    Figure {
        name: "weftd_idle_mb",
        about: "resident memory of an idle weftd, the largest of the path, MB",
        aim: Aim::AtMost(25.0),
    },
    Figure {
        name: "weftd_1000_sessions_mb",
        about: "resident memory of a weftd with 1,000 sessions, MB",
        aim: Aim::AtMost(60.0),
    },
];

/// Transits of the systems that tell what a hop costs, with their names.
const HOPS: [(f64, &str, &str); 4] = [
    (1.0, "weft", "kernel"),
    (2.0, "weft_2", "kernel_2"),
    (3.0, "weft_3", "kernel_3"),
    (5.0, "weft_5", "kernel_5"),
];

/// Samples by system, then by round; none where it could not be measured in that round.
pub(super) type Samples = BTreeMap<&'static str, Vec<Option<Sample>>>;

/// The figures that can be had.
pub(super) fn compute(samples: &Samples) -> BTreeMap<&'static str, Spread> {
    let rounds = samples.values().map(Vec::len).max().unwrap_or(0);
    let mut ratios = BTreeMap::new();
    for figure in FIGURES {
        let values = (0..rounds).filter_map(|round| value(figure.name, samples, round));
        if let Some(spread) = Spread::of(values) {
            ratios.insert(figure.name, spread);
        }
    }
    ratios
}

/// Systems a figure needs, to say why it is missing.
pub(super) fn needs(figure: &str) -> Vec<&'static str> {
    let hops = |weft: bool, kernel: bool| {
        HOPS.iter()
            .flat_map(|(_, w, k)| [weft.then_some(*w), kernel.then_some(*k)])
            .flatten()
            .collect()
    };
    match figure {
        "hop_cost_throughput" | "hop_latency_us" => hops(true, false),
        "hop_cost_throughput_kernel" | "hop_latency_kernel_us" => hops(false, true),
        "hop_cost_latency_vs_kernel" => hops(true, true),
        "p99_loaded_vs_kernel" => vec!["weft", "kernel"],
        "weftd_idle_mb" => vec!["weft"],
        "weftd_1000_sessions_mb" => vec!["weft_sessions"],
        other => match opponent(other) {
            Some(opponent) => vec!["weft", opponent],
            None => Vec::new(),
        },
    }
}

fn opponent(figure: &str) -> Option<&'static str> {
    let name = figure.strip_prefix("tcp1_vs_")?;
    super::systems::System::named(name).map(|s| s.name)
}

fn value(figure: &str, samples: &Samples, round: usize) -> Option<f64> {
    let of = |system: &str| samples.get(system)?.get(round)?.as_ref();
    let tcp1 = |system: &str| {
        let figures = &of(system)?.figures;
        Some(f64::midpoint(
            *figures.get("tcp1_up_gbps")?,
            *figures.get("tcp1_down_gbps")?,
        ))
    };
    let idle = |system: &str| of(system)?.figures.get("idle_udp_p50_us").copied();
    let points = |weft: bool, ask: &dyn Fn(&str) -> Option<f64>| {
        let name = |hop: &(f64, &'static str, &'static str)| if weft { hop.1 } else { hop.2 };
        HOPS.iter()
            .map(|hop| Some((hop.0, ask(name(hop))?)))
            .collect::<Option<Vec<_>>>()
    };
    let throughput = |weft: bool| {
        let logarithm = |system: &str| Some(tcp1(system)?.ln());
        // An exponential: each transit leaves the same share.
        Some(1.0 - slope(&points(weft, &logarithm)?)?.exp())
    };
    let latency = |weft: bool| slope(&points(weft, &idle)?);
    match figure {
        "hop_cost_throughput" => throughput(true),
        "hop_cost_throughput_kernel" => throughput(false),
        "hop_latency_us" => latency(true),
        "hop_latency_kernel_us" => latency(false),
        "hop_cost_latency_vs_kernel" => {
            let kernel = latency(false)?;
            // A hop that costs nothing measurable is no measure.
            (kernel > 0.0).then_some(latency(true)? / kernel)
        }
        "p99_loaded_vs_kernel" => {
            let p99 = |system: &str| of(system)?.figures.get("loaded_tcp_p99_us").copied();
            Some(p99("weft")? / p99("kernel")?)
        }
        "weftd_idle_mb" => of("weft")?.idle_mb.values().copied().max_by(f64::total_cmp),
        "weftd_1000_sessions_mb" => of("weft_sessions")?.figures.get("resident_mb").copied(),
        other => Some(tcp1("weft")? / tcp1(opponent(other)?)?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(figures: &[(&str, f64)]) -> Option<Sample> {
        Some(Sample {
            figures: figures.iter().map(|(n, v)| ((*n).to_owned(), *v)).collect(),
            ..Sample::default()
        })
    }

    fn tcp(up: f64, down: f64) -> Option<Sample> {
        sample(&[("tcp1_up_gbps", up), ("tcp1_down_gbps", down)])
    }

    #[test]
    fn ratios_are_taken_in_each_round() {
        let mut samples = Samples::new();
        samples.insert("weft", vec![tcp(4.0, 2.0), tcp(6.0, 6.0), tcp(1.0, 1.0)]);
        // The machine was twice as fast in the second round; the third could not be measured.
        samples.insert("yggdrasil", vec![tcp(1.0, 1.0), tcp(2.0, 2.0), None]);
        let ratios = compute(&samples);
        let spread = ratios["tcp1_vs_yggdrasil"];
        assert_eq!(
            (spread.median, spread.low, spread.high, spread.rounds),
            (3.0, 3.0, 3.0, 2)
        );
        assert!(!ratios.contains_key("tcp1_vs_tinc"));
    }

    #[test]
    fn a_hop_s_cost_is_the_slope_over_all_lengths() {
        let mut samples = Samples::new();
        for (hops, weft, kernel) in HOPS {
            let at = |rate: f64, latency: f64| {
                vec![sample(&[
                    ("tcp1_up_gbps", rate),
                    ("tcp1_down_gbps", rate),
                    ("idle_udp_p50_us", latency),
                ])]
            };
            samples.insert(weft, at(3.0 * 0.9_f64.powf(hops), 50.0 + 4.0 * hops));
            samples.insert(kernel, at(10.0 * 0.8_f64.powf(hops), 20.0 + 5.0 * hops));
        }
        let ratios = compute(&samples);
        let near = |name: &str, right: f64| {
            let value = ratios[name].median;
            assert!((value - right).abs() < 1e-9, "{name}: {value}");
        };
        near("hop_cost_throughput", 0.1);
        near("hop_cost_throughput_kernel", 0.2);
        near("hop_latency_us", 4.0);
        near("hop_cost_latency_vs_kernel", 0.8);
        samples.remove("kernel_3");
        assert!(!compute(&samples).contains_key("hop_cost_latency_vs_kernel"));
    }

    #[test]
    fn every_figure_says_what_it_needs() {
        for figure in FIGURES {
            assert!(!needs(figure.name).is_empty(), "{}", figure.name);
        }
    }
}
