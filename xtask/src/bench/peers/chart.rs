//! The chart of a run, as SVG: bars of throughput and processor time, latencies on a logarithmic scale, and what hops cost.

use std::fmt::Write;

use super::{
    super::{figure::short, stats::Spread},
    report::{Report, SystemReport},
    systems::{Kind, SYSTEMS, Scope, System},
};

const WIDTH: f64 = 1120.0;
const MARGIN: f64 = 28.0;
const GAP: f64 = 36.0;
const PANEL: f64 = (WIDTH - 2.0 * MARGIN - GAP) / 2.0;
/// Room for names left of the bars.
const NAMES: f64 = 138.0;
/// Room for values right of them.
const VALUES: f64 = 56.0;
const ROW: f64 = 25.0;
const BAR: f64 = 15.0;
/// From a panel's top to its first row.
const HEAD: f64 = 56.0;
const FONT: &str = "font-family=\"Inter, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif\"";

const INK: &str = "#1f2933";
const FAINT: &str = "#7b8794";
const GRID: &str = "#e4e7eb";
const WEFT: &str = "#d9480f";
const KERNEL: &str = "#52606d";
const OTHER: &str = "#4c8fbd";
const FAILED: &str = "#c81e1e";

fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Weft => WEFT,
        Kind::Kernel { .. } => KERNEL,
        _ => OTHER,
    }
}

/// Draws everything that was measured.
pub(super) fn draw(report: &Report) -> String {
    let full = SYSTEMS
        .iter()
        .filter(|s| s.scope == Scope::Full)
        .filter_map(|s| Some((s, report.systems.get(s.name)?)))
        .collect::<Vec<_>>();
    let panel_height = HEAD + ROW * full.len().max(3) as f64 + 26.0;
    let hops = report.systems.contains_key("weft_2") || report.systems.contains_key("kernel_2");
    let rows = if hops { 3.0 } else { 2.0 };
    let top = 108.0;
    let height = top + rows * (panel_height + GAP / 2.0) + 34.0;
    let mut svg = Svg::new(WIDTH, height);
    svg.text(
        MARGIN,
        42.0,
        22.0,
        INK,
        "start",
        "600",
        "Weft and its peers",
    );
    let run = &report.run;
    let what = format!(
        "client – transit – server in network namespaces of one machine ({} processors, Linux {})",
        run.processors, run.kernel
    );
    let how = format!(
        "medians of {} interleaved round{}{}; whiskers are the least and the greatest",
        run.rounds,
        if run.rounds == 1 { "" } else { "s" },
        if run.quick { " of short runs" } else { "" },
    );
    svg.text(MARGIN, 66.0, 12.5, FAINT, "start", "400", &what);
    svg.text(MARGIN, 84.0, 12.5, FAINT, "start", "400", &how);
    let place = |n: usize| {
        let (row, column) = ((n / 2) as f64, (n % 2) as f64);
        (
            MARGIN + column * (PANEL + GAP),
            top + row * (panel_height + GAP / 2.0),
        )
    };
    throughput(
        &mut svg,
        place(0),
        "TCP, one stream (Gbit/s, up and down)",
        &full,
        "tcp1",
    );
    throughput(
        &mut svg,
        place(1),
        "TCP, eight streams (Gbit/s, up and down)",
        &full,
        "tcp8",
    );
    latencies(&mut svg, place(2), &full);
    processor(&mut svg, place(3), &full);
    if hops {
        let rate = |s: &SystemReport| {
            Some(f64::midpoint(
                s.median("tcp1_up_gbps")?,
                s.median("tcp1_down_gbps")?,
            ))
        };
        let rtt = |s: &SystemReport| s.median("idle_udp_p50_us");
        let height = panel_height - HEAD - 40.0;
        lines(
            &mut svg,
            place(4),
            height,
            "One TCP stream over more transits (Gbit/s)",
            report,
            rate,
        );
        lines(
            &mut svg,
            place(5),
            height,
            "Median idle round trip over more transits (µs)",
            report,
            rtt,
        );
    }
    svg.end()
}

type Rows<'a> = [(&'static System, &'a SystemReport)];

fn throughput(svg: &mut Svg, (x, y): (f64, f64), title: &str, rows: &Rows<'_>, test: &str) {
    let values =
        |s: &SystemReport, way: &str| s.figures.get(&format!("{test}_{way}_gbps")).copied();
    let most = rows
        .iter()
        .flat_map(|(_, s)| [values(s, "up"), values(s, "down")])
        .flatten()
        .map(|s| s.high)
        .fold(0.0, f64::max);
    let scale = Scale::linear(most);
    panel(svg, (x, y), title, rows, &scale);
    for (n, (system, measured)) in rows.iter().enumerate() {
        let top = y + HEAD + n as f64 * ROW + (ROW - BAR) / 2.0;
        let half = BAR / 2.0;
        let both = [values(measured, "up"), values(measured, "down")];
        for (way, spread) in both.iter().enumerate() {
            if let Some(spread) = spread {
                let at = top + way as f64 * half;
                let opacity = if way == 0 { 1.0 } else { 0.62 };
                let wide = scale.place(spread.median);
                svg.rect(
                    x + NAMES,
                    at,
                    wide,
                    half - 0.5,
                    colour(system.kind),
                    opacity,
                );
                whisker(svg, x + NAMES, at + half / 2.0, &scale, spread);
            }
        }
        let text = match both {
            [Some(up), Some(down)] => short(f64::midpoint(up.median, down.median)),
            [Some(one), None] | [None, Some(one)] => short(one.median),
            [None, None] => continue,
        };
        let end = both
            .iter()
            .flatten()
            .map(|s| scale.place(s.high))
            .fold(0.0, f64::max);
        svg.text(
            x + NAMES + end + 7.0,
            top + BAR - 3.5,
            12.0,
            INK,
            "start",
            "500",
            &text,
        );
    }
}

fn whisker(svg: &mut Svg, left: f64, y: f64, scale: &Scale, spread: &Spread) {
    if spread.rounds > 1 {
        let (low, high) = (
            left + scale.place(spread.low),
            left + scale.place(spread.high),
        );
        svg.line((low, y), (high, y), INK, 1.0);
        for end in [low, high] {
            svg.line((end, y - 2.0), (end, y + 2.0), INK, 1.0);
        }
    }
}

fn latencies(svg: &mut Svg, (x, y): (f64, f64), rows: &Rows<'_>) {
    let both = |s: &SystemReport| (s.median("idle_tcp_p50_us"), s.median("loaded_tcp_p99_us"));
    let all = rows
        .iter()
        .flat_map(|(_, s)| [both(s).0, both(s).1])
        .flatten()
        .collect::<Vec<_>>();
    let scale = Scale::logarithmic(
        all.iter().copied().fold(f64::INFINITY, f64::min),
        all.iter().copied().fold(0.0, f64::max),
    );
    let title = "TCP requests: idle median (○), loaded 99th percentile (●)";
    panel(svg, (x, y), title, rows, &scale);
    for (n, (system, measured)) in rows.iter().enumerate() {
        let middle = y + HEAD + (n as f64 + 0.5) * ROW;
        let (idle, loaded) = both(measured);
        let [idle_x, loaded_x] = [idle, loaded].map(|v| v.map(|v| x + NAMES + scale.place(v)));
        if let (Some(from), Some(to)) = (idle_x, loaded_x) {
            svg.line((from, middle), (to, middle), colour(system.kind), 2.0);
        }
        if let Some(at) = idle_x {
            svg.circle(at, middle, 4.5, "#ffffff", colour(system.kind));
        }
        if let (Some(at), Some(value)) = (loaded_x, loaded) {
            svg.circle(at, middle, 5.0, colour(system.kind), colour(system.kind));
            svg.text(
                at + 10.0,
                middle + 4.0,
                12.0,
                INK,
                "start",
                "500",
                &time(value),
            );
        }
    }
}

/// Processor time in three parts: the system's own processes, softirq, the rest.
fn processor(svg: &mut Svg, (x, y): (f64, f64), rows: &Rows<'_>) {
    let total = |s: &SystemReport| s.cpu_s_per_gb.get("machine").copied();
    let most = rows
        .iter()
        .filter_map(|(_, s)| Some(total(s)?.median))
        .fold(0.0, f64::max);
    let scale = Scale::linear(most);
    panel(
        svg,
        (x, y),
        "CPU seconds per gigabyte: own processes, softirq, rest",
        rows,
        &scale,
    );
    for (n, (system, measured)) in rows.iter().enumerate() {
        let Some(machine) = total(measured) else {
            continue;
        };
        let top = y + HEAD + n as f64 * ROW + (ROW - BAR) / 2.0;
        let of = |name: &str| measured.cpu_s_per_gb.get(name).map_or(0.0, |s| s.median);
        let own = measured
            .cpu_s_per_gb
            .iter()
            .filter(|(name, _)| {
                !["machine", "softirq", "iperf3 (both ends)"].contains(&name.as_str())
            })
            .map(|(_, s)| s.median)
            .sum::<f64>();
        // A process that runs a software interrupt is charged for it too, so parts may sum to more than there is.
        let own = own.min(machine.median);
        let softirq = of("softirq").min(machine.median - own);
        let mut left = 0.0;
        for (part, opacity) in [
            (own, 1.0),
            (softirq, 0.62),
            (machine.median - own - softirq, 0.3),
        ] {
            svg.rect(
                x + NAMES + scale.place(left),
                top,
                scale.place(part),
                BAR,
                colour(system.kind),
                opacity,
            );
            left += part;
        }
        let end = x + NAMES + scale.place(machine.median) + 7.0;
        svg.text(
            end,
            top + BAR - 3.5,
            12.0,
            INK,
            "start",
            "500",
            &short(machine.median),
        );
    }
}

/// Frame, names, grid of a panel of rows.
fn panel(svg: &mut Svg, (x, y): (f64, f64), title: &str, rows: &Rows<'_>, scale: &Scale) {
    svg.text(x, y + 18.0, 14.0, INK, "start", "600", title);
    let bottom = y + HEAD + rows.len() as f64 * ROW + 4.0;
    for (value, text) in scale.ticks() {
        let at = x + NAMES + scale.place(value);
        svg.line((at, y + HEAD - 6.0), (at, bottom), GRID, 1.0);
        svg.text(at, y + HEAD - 12.0, 11.0, FAINT, "middle", "400", &text);
    }
    for (n, (system, measured)) in rows.iter().enumerate() {
        let base = y + HEAD + (n as f64 + 0.5) * ROW + 4.0;
        let weight = if system.kind == Kind::Weft {
            "600"
        } else {
            "400"
        };
        let name = system.name.replace('_', " ");
        svg.text(x + NAMES - 10.0, base, 12.5, INK, "end", weight, &name);
        if measured.reason.is_some() {
            svg.text(
                x + NAMES + 6.0,
                base,
                12.0,
                FAILED,
                "start",
                "400",
                "could not be measured",
            );
        }
    }
}

fn lines(
    svg: &mut Svg,
    (x, y): (f64, f64),
    height: f64,
    title: &str,
    report: &Report,
    value: impl Fn(&SystemReport) -> Option<f64>,
) {
    let series = |weft: bool| {
        SYSTEMS
            .iter()
            .filter(|s| s.transits > 0)
            .filter(|s| {
                if weft {
                    s.kind == Kind::Weft
                } else {
                    s.kind == Kind::Kernel { offloads: true }
                }
            })
            .filter_map(|s| Some((s.transits as f64, value(report.systems.get(s.name)?)?)))
            .collect::<Vec<_>>()
    };
    let both = [
        ("Weft", WEFT, series(true)),
        ("kernel", KERNEL, series(false)),
    ];
    let most = both
        .iter()
        .flat_map(|(_, _, s)| s)
        .map(|p| p.1)
        .fold(0.0, f64::max);
    let scale = Scale::linear(most);
    svg.text(x, y + 18.0, 14.0, INK, "start", "600", title);
    let (left, wide) = (x + 50.0, PANEL - 50.0 - VALUES - 10.0);
    let (top, bottom) = (y + HEAD - 14.0, y + HEAD + height);
    let at_y = |v: f64| bottom - (bottom - top) * v / scale.end;
    let at_x = |n: f64| left + wide * (n - 1.0) / 4.0;
    for (tick, text) in scale.ticks() {
        svg.line(
            (left - 8.0, at_y(tick)),
            (left + wide + 8.0, at_y(tick)),
            GRID,
            1.0,
        );
        svg.text(
            left - 14.0,
            at_y(tick) + 4.0,
            11.0,
            FAINT,
            "end",
            "400",
            &text,
        );
    }
    for transits in [1.0, 2.0, 3.0, 5.0] {
        let text = if transits == 1.0 {
            "1 transit".to_owned()
        } else {
            format!("{transits}")
        };
        svg.text(
            at_x(transits),
            bottom + 20.0,
            11.0,
            FAINT,
            "middle",
            "400",
            &text,
        );
    }
    for (name, stroke, points) in &both {
        let path = points
            .iter()
            .map(|(n, v)| format!("{:.1},{:.1}", at_x(*n), at_y(*v)))
            .collect::<Vec<_>>();
        svg.polyline(&path.join(" "), stroke);
        for (n, v) in points {
            svg.circle(at_x(*n), at_y(*v), 4.0, stroke, "#ffffff");
            let text = short(*v);
            svg.text(
                at_x(*n),
                at_y(*v) - 9.0,
                11.0,
                stroke,
                "middle",
                "500",
                &text,
            );
        }
        if let Some((n, v)) = points.last() {
            svg.text(
                at_x(*n) + 14.0,
                at_y(*v) + 4.0,
                12.5,
                stroke,
                "start",
                "600",
                name,
            );
        }
    }
}

/// Microseconds, in the unit one would say.
fn time(micros: f64) -> String {
    if micros >= 1e6 {
        format!("{:.1} s", micros / 1e6)
    } else if micros >= 1e4 {
        format!("{:.0} ms", micros / 1e3)
    } else if micros >= 1e3 {
        format!("{:.1} ms", micros / 1e3)
    } else {
        format!("{micros:.0} µs")
    }
}

/// From values to places on a panel's axis.
struct Scale {
    begin: f64,
    end: f64,
    logarithmic: bool,
}

impl Scale {
    fn linear(most: f64) -> Self {
        let step = nice_step(most);
        Self {
            begin: 0.0,
            end: (most / step).ceil().max(1.0) * step,
            logarithmic: false,
        }
    }

    /// Whole powers of ten around the values.
    fn logarithmic(least: f64, most: f64) -> Self {
        let least = if least.is_finite() {
            least.max(1e-3)
        } else {
            1.0
        };
        let begin = 10_f64.powf(least.log10().floor());
        let end = 10_f64.powf(most.max(begin * 10.0).log10().ceil());
        Self {
            begin,
            end,
            logarithmic: true,
        }
    }

    fn place(&self, value: f64) -> f64 {
        let length = PANEL - NAMES - VALUES;
        let share = if self.logarithmic {
            (value.max(self.begin) / self.begin).ln() / (self.end / self.begin).ln()
        } else {
            value / self.end
        };
        length * share.clamp(0.0, 1.0)
    }

    fn ticks(&self) -> Vec<(f64, String)> {
        if self.logarithmic {
            let mut ticks = Vec::new();
            let mut value = self.begin;
            while value <= self.end * 1.001 {
                let text = if value >= 1e6 {
                    format!("{:.0} s", value / 1e6)
                } else if value >= 1e3 {
                    format!("{:.0} ms", value / 1e3)
                } else {
                    format!("{value:.0} µs")
                };
                ticks.push((value, text));
                value *= 10.0;
            }
            return ticks;
        }
        let step = nice_step(self.end);
        let count = (self.end / step).round() as usize;
        (0..=count)
            .map(|n| {
                let value = n as f64 * step;
                let digits = usize::from(step < 1.0) + usize::from(step < 0.1);
                (value, format!("{value:.digits$}"))
            })
            .collect()
    }
}

/// 1, 2 or 5 times a power of ten, so that there are four to eight steps.
fn nice_step(most: f64) -> f64 {
    if most <= 0.0 || !most.is_finite() {
        return 1.0;
    }
    let rough = most / 5.0;
    let power = 10_f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .find(|f| rough / power <= *f * 1.001)
        .unwrap_or(10.0);
    factor * power
}

/// Writes elements; every text is escaped.
struct Svg(String);

impl Svg {
    fn new(width: f64, height: f64) -> Self {
        Self(format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" {FONT}>\n\
             <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
        ))
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }

    fn add(&mut self, element: std::fmt::Arguments<'_>) {
        // Writing to a string cannot fail.
        let _ = writeln!(self.0, "{element}");
    }

    fn rect(&mut self, x: f64, y: f64, width: f64, height: f64, fill: &str, opacity: f64) {
        let width = width.max(0.0);
        self.add(format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" fill=\"{fill}\" \
             fill-opacity=\"{opacity}\"/>"
        ));
    }

    fn line(&mut self, from: (f64, f64), to: (f64, f64), stroke: &str, width: f64) {
        self.add(format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{stroke}\" stroke-width=\"{width}\"/>",
            from.0, from.1, to.0, to.1
        ));
    }

    fn polyline(&mut self, points: &str, stroke: &str) {
        self.add(format_args!(
            "<polyline points=\"{points}\" fill=\"none\" stroke=\"{stroke}\" stroke-width=\"2.5\" \
             stroke-linejoin=\"round\"/>"
        ));
    }

    fn circle(&mut self, x: f64, y: f64, radius: f64, fill: &str, stroke: &str) {
        self.add(format_args!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{radius}\" fill=\"{fill}\" stroke=\"{stroke}\" \
             stroke-width=\"2\"/>"
        ));
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "each is an attribute of the element"
    )]
    fn text(
        &mut self,
        x: f64,
        y: f64,
        size: f64,
        fill: &str,
        anchor: &str,
        weight: &str,
        text: &str,
    ) {
        let text = text
            .replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;");
        self.add(format_args!(
            "<text x=\"{x:.1}\" y=\"{y:.1}\" font-size=\"{size}\" fill=\"{fill}\" text-anchor=\"{anchor}\" \
             font-weight=\"{weight}\">{text}</text>"
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::{super::report::tests::report, *};

    #[test]
    fn the_chart_shows_what_was_measured_and_what_failed() {
        let svg = draw(&report());
        assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
        for part in [
            ">weft<",
            ">2.10<",
            ">kernel<",
            ">could not be measured<",
            ">900 µs<",
        ] {
            assert!(svg.contains(part), "{part} is not in the chart");
        }
        // Every element is closed, and no number is NaN.
        assert_eq!(svg.matches("<text").count(), svg.matches("</text>").count());
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn an_empty_run_draws() {
        let empty = super::super::report::Report::new(
            super::super::report::Run::default(),
            &[],
            &std::collections::BTreeMap::new(),
            &std::collections::BTreeMap::new(),
        );
        assert!(!draw(&empty).contains("NaN"));
    }

    #[test]
    fn steps_are_round() {
        assert_eq!(nice_step(13.4), 5.0);
        assert_eq!(nice_step(0.9), 0.2);
        assert_eq!(nice_step(0.0), 1.0);
        let scale = Scale::linear(13.4);
        assert_eq!(scale.end, 15.0);
        assert_eq!(scale.ticks().len(), 4);
        let scale = Scale::logarithmic(38.0, 90_000.0);
        assert_eq!((scale.begin, scale.end), (10.0, 100_000.0));
        assert!(scale.place(10.0).abs() < 1e-9);
        assert!(scale.place(1000.0) > scale.place(100.0));
    }

    #[test]
    fn text_is_escaped() {
        let mut svg = Svg::new(1.0, 1.0);
        svg.text(0.0, 0.0, 1.0, INK, "start", "400", "a < b & c");
        assert!(svg.end().contains("a &lt; b &amp; c"));
    }
}
