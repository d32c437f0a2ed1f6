//! What a label hop costs: by itself, and next to kernel IPv4 forwarding and a bare redirect on the same wires.
//!
//! Everything runs in network namespaces of this process and is gone with it. Generator, hop and sink share one
//! processor, so a figure is the cost of a packet's whole way on one core; the way without any hop is measured too,
//! and taken off where the cost of the hop alone is wanted. All kinds of hop forward the same packets from the same
//! generator, in interleaved rounds.
//!
//! Run by `cargo xtask bench transit`; by hand `cargo run --release -p weft-node --example bench_transit -- --help`.

#[path = "../tests/dataplane_support/mod.rs"]
mod dataplane_support;

use std::{
    fs,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use aya::{
    TestRun, TestRunOptions,
    programs::{Xdp, xdp::XdpLink},
};
use clap::Parser;
use dataplane_support::{
    load::{
        Namespace, Programs, Template, ifindex, in_namespace, ip as ip_command, pin_to_cpu, sysctl,
        uninterrupted,
    },
    *,
};
use serde::Serialize;
use weft_abi::{GroupIndex, Label, LabelEntry, LfibEntry, NextHopIndex, Slot};
use weft_core::io::{DataplaneOp, ForwardMode, UnderlayPath};
use weft_node::dataplane::{self, Dataplane, Egress, PassProgram};

/// Bytes of each frame.
const FRAME_LEN: usize = 70;
/// The first of the addresses behind the kernel's IPv4 route: each of 16 flows goes to another one.
const BEYOND: &str = "198.51.100.0";
/// Flows: lanes of the link, and for the kernel destinations.
const FLOW_BITS: u32 = 4;

#[derive(Parser)]
struct Arguments {
    /// Interleaved rounds of each measurement.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Packets of each kind in one round.
    #[arg(long, default_value_t = 400_000)]
    packets: u32,
    /// Packets the generator hands over at a time.
    #[arg(long, default_value_t = 64)]
    burst: u32,
    /// Also write the figures there.
    #[arg(long)]
    json: Option<PathBuf>,
}

#[derive(Serialize)]
struct Report {
    /// Packets per second of a label hop over those of kernel IPv4 forwarding.
    label_hop_vs_kernel: f64,
    /// Cost of a packet's hop in the kernel over that of a label hop, the way to and from it taken off.
    label_hop_vs_kernel_per_packet: f64,
    /// Packets per second of a label hop over those of a bare redirect.
    label_hop_vs_redirect: f64,
    /// As `label_hop_vs_kernel`, where the kernel also tracks connections, as for a firewall; none without nft.
    label_hop_vs_kernel_stateful: Option<f64>,
    /// Nanoseconds of the program by itself, tag check, window, LFIB, rewriting and new tag included.
    program_ns: f64,
    /// Of a bare redirect by itself.
    redirect_ns: f64,
    /// Of SipHash of the 14 bytes a labelled packet's tag covers, by itself.
    siphash_ns: f64,
    /// Of a program that does nothing.
    empty_ns: f64,
    /// Instructions the verifier looked at.
    verifier_insns: u32,
    /// Packets per second: median, least, most.
    packets_per_second: Rates,
    rounds: usize,
    packets: u32,
}

#[derive(Serialize)]
struct Rates {
    no_hop: Spread,
    redirect: Spread,
    label_hop: Spread,
    kernel_ipv4: Spread,
    /// With a rule that asks for a connection's state.
    kernel_stateful: Option<Spread>,
}

#[derive(Clone, Copy, Serialize)]
struct Spread {
    median: f64,
    least: f64,
    most: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self {
            median: values[values.len() / 2],
            least: values[0],
            most: values[values.len() - 1],
        }
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.rounds == 0 || arguments.packets < 1000 {
        bail!("--rounds must be 1 or more, --packets 1000 or more");
    }
    dataplane::probe().context("the benchmark needs the kernel's forwarding plane")?;
    let report = in_namespace(|| measure(&arguments)).context("making a network namespace")??;
    print(&report);
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

fn measure(arguments: &Arguments) -> Result<Report> {
    pin_to_cpu(0);
    let wires = Wires::make()?;
    let config = config("bench");
    let (mut plane, _) = Dataplane::open_kernel(&config)?;
    let verifier_insns = plane
        .program()
        .context("the program")?
        .info()?
        .verified_instruction_count()
        .unwrap_or_default();
    let result = run(arguments, &mut plane, wires);
    let (rounds, alone) = match result {
        Ok(result) => result,
        Err(error) => {
            plane.release(false)?;
            return Err(error);
        }
    };
    plane.release(false)?;

    // Within a round the machine was the same for all; the median over rounds of their ratios is what lasts.
    let ratio = |of: &dyn Fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect()).median;
    let spread = |of: fn(&Round) -> f64| Spread::of(rounds.iter().map(of).collect());
    let stateful: Option<Vec<f64>> = rounds.iter().map(|r| r.kernel_stateful).collect();
    Ok(Report {
        label_hop_vs_kernel: ratio(&|r| r.label_hop / r.kernel_ipv4),
        label_hop_vs_kernel_per_packet: ratio(&|r| {
            let added = |rate: f64| 1.0 / rate - 1.0 / r.no_hop;
            added(r.kernel_ipv4) / added(r.label_hop)
        }),
        label_hop_vs_redirect: ratio(&|r| r.label_hop / r.redirect),
        label_hop_vs_kernel_stateful: stateful
            .is_some()
            .then(|| ratio(&|r| r.label_hop / r.kernel_stateful.unwrap_or(f64::NAN))),
        program_ns: alone.program,
        redirect_ns: alone.redirect,
        siphash_ns: alone.siphash,
        empty_ns: alone.empty,
        verifier_insns,
        packets_per_second: Rates {
            no_hop: spread(|r| r.no_hop),
            redirect: spread(|r| r.redirect),
            label_hop: spread(|r| r.label_hop),
            kernel_ipv4: spread(|r| r.kernel_ipv4),
            kernel_stateful: stateful.map(Spread::of),
        },
        rounds: arguments.rounds,
        packets: arguments.packets,
    })
}

/// Packets per second of each kind of hop, measured one after the other.
struct Round {
    no_hop: f64,
    redirect: f64,
    label_hop: f64,
    kernel_ipv4: f64,
    kernel_stateful: Option<f64>,
}

/// gen0 | rx0 (the hop) tx0 | sink0, each part in a namespace of its own.
struct Wires {
    source: Namespace,
    hop: Namespace,
    sink: Namespace,
}

impl Wires {
    /// Leaves this thread in the hop's namespace.
    fn make() -> Result<Self> {
        let source = Namespace::new()?;
        let sink = Namespace::new()?;
        let hop = Namespace::new()?;
        let name = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        let queues = "numtxqueues 1 numrxqueues 1";
        for (near, far, namespace, macs) in [
            ("rx0", "gen0", &source, [mac(2), mac(1)]),
            ("tx0", "sink0", &sink, [mac(3), mac(4)]),
        ] {
            ip_command(&format!(
                "link add {near} address {} {queues} type veth peer name {far} address {} {queues} netns {}",
                name(macs[0]),
                name(macs[1]),
                namespace.path()
            ));
            sysctl(&format!("ipv6/conf/{near}/disable_ipv6"), "1");
            ip_command(&format!("link set {near} up"));
            namespace.enter();
            sysctl(&format!("ipv6/conf/{far}/disable_ipv6"), "1");
            ip_command(&format!("link set {far} up"));
            hop.enter();
        }
        sysctl("ipv4/ip_forward", "1");
        ip_command("address add 203.0.113.1/24 dev tx0");
        ip_command(&format!("address add {LOCAL_V4}/24 dev rx0"));
        ip_command(&format!("route add {BEYOND}/24 via 203.0.113.2"));
        ip_command("neighbour add 203.0.113.2 lladdr 02:00:00:00:00:04 dev tx0");
        Ok(Self { source, hop, sink })
    }

    /// Does something in one of the namespaces; ends in the hop's.
    fn within<R>(&self, namespace: &Namespace, body: impl FnOnce() -> R) -> R {
        namespace.enter();
        let result = body();
        self.hop.enter();
        result
    }
}

/// Nanoseconds of programs by themselves.
struct Alone {
    program: f64,
    redirect: f64,
    siphash: f64,
    empty: f64,
}

fn run(arguments: &Arguments, plane: &mut Dataplane, wires: Wires) -> Result<(Vec<Round>, Alone)> {
    for op in operations() {
        plane.apply(&op)?;
    }
    plane.set_local_addresses(&[ip(LOCAL_V4), ip(LOCAL_V6)])?;

    let mut bench = Bench {
        generator: Programs::load(),
        hop: Programs::load(),
        wires,
        seq: 0,
        burst: arguments.burst,
    };
    // A program that is attached somewhere is known to the kernel's XDP dispatcher; else each run of live frames would
    // wait for the dispatcher's change, twice.
    let source = &bench.wires.source;
    let _known = bench.wires.within(source, || {
        bench.generator.attach("generate", ifindex("gen0"))
    });
    let mut rounds = Vec::new();
    let mut alone: [Vec<f64>; 4] = Default::default();
    let packets = arguments.packets;
    // One round to warm up.
    for round in 0..=arguments.rounds {
        let mut figures = Round {
            no_hop: bench.no_hop(packets)?,
            redirect: bench.redirect(packets)?,
            label_hop: bench.label_hop(plane, packets)?,
            kernel_ipv4: bench.kernel(packets)?,
            kernel_stateful: None,
        };
        if bench.track_connections() {
            figures.kernel_stateful = Some(bench.kernel(packets)?);
            bench.forget_connections()?;
        }
        let costs = [
            cost_of_loop(plane)?,
            cost(bench.hop.program("redirect"))?,
            cost(bench.hop.program("siphash"))?,
            cost(bench.hop.program("empty"))?,
        ];
        if round > 0 {
            rounds.push(figures);
            for (all, one) in alone.iter_mut().zip(costs) {
                all.push(one);
            }
        }
    }
    let [program, redirect, siphash, empty] = alone.map(|all| Spread::of(all).median);
    Ok((
        rounds,
        Alone {
            program,
            redirect,
            siphash,
            empty,
        },
    ))
}

struct Bench {
    generator: Programs,
    /// A second set, whose template tells `redirect` where to.
    hop: Programs,
    wires: Wires,
    /// Packets sent so far: windows want new numbers.
    seq: u64,
    burst: u32,
}

impl Bench {
    /// Packets per second from the generator to the sink.
    fn rate(&mut self, packets: u32, destination: &str, spread: bool) -> Result<f64> {
        let stack = [LabelEntry::new(Label(SWAP_V4), 0, true, 64)];
        let payload = Datagram::labelled(SLOT_V4, 0, 0, &stack, &[0; 8]).bytes(slot_key(SLOT_V4));
        let mut underlay = Underlay::incoming(false);
        underlay.destination.set_ip(ip(destination));
        underlay.macs[..6].copy_from_slice(&mac(2));
        underlay.macs[6..].copy_from_slice(&mac(1));
        (underlay.checksum, underlay.tos) = (0, 0);
        // The generator counts the checksum's last byte down by the flow's number.
        let frame = (50..64)
            .map(|ttl| {
                Underlay {
                    ttl,
                    ..underlay.clone()
                }
                .frame(&payload)
            })
            .find(|f| f[25] >= 16);
        let frame = frame.context("no time to live makes such a checksum")?;
        let mut head = [0; 96];
        head[..FRAME_LEN].copy_from_slice(&frame);
        let (source, sunk) = (
            ifindex_in(&self.wires, &self.wires.source, "gen0"),
            self.generator.sunk(),
        );
        self.generator.set_template(&Template {
            key: slot_key(SLOT_V4).words(),
            seq: self.seq,
            ifindex: source,
            family: 4,
            payload_len: 28,
            lane_bits: FLOW_BITS,
            spread: u32::from(spread),
            reserved: 0,
            head,
        });
        let Self {
            generator,
            wires,
            seq,
            burst,
            ..
        } = self;
        let (elapsed, sent) = wires.within(&wires.source, || {
            uninterrupted(|| {
                let start = Instant::now();
                generator.generate_in_bursts(packets, *burst, FRAME_LEN, source);
                let sent = generator.generated() - *seq;
                // The last few may still be on their way.
                let deadline = Instant::now() + Duration::from_millis(200);
                while generator.sunk() - sunk < sent && Instant::now() < deadline {
                    thread::sleep(Duration::from_micros(20));
                }
                (start.elapsed(), sent)
            })
        });
        self.seq += sent;
        let count = self.generator.sunk() - sunk;
        if count * 100 < sent * 99 {
            bail!("only {count} of {sent} packets arrived: the figure would be of something else");
        }
        Ok(count as f64 / elapsed.as_secs_f64())
    }

    fn sink(&mut self) -> XdpLink {
        let Self {
            generator, wires, ..
        } = self;
        wires.within(&wires.sink, || generator.attach("sink", ifindex("sink0")))
    }

    fn no_hop(&mut self, packets: u32) -> Result<f64> {
        let _sink = self.generator.attach("sink", ifindex("rx0"));
        self.rate(packets, LOCAL_V4, false)
    }

    fn redirect(&mut self, packets: u32) -> Result<f64> {
        let mut head = [0; 96];
        head[..6].copy_from_slice(&mac(4));
        head[6..12].copy_from_slice(&mac(3));
        let ifindex_tx = ifindex("tx0");
        self.hop.set_template(&Template {
            key: [1, 2],
            seq: 0,
            ifindex: ifindex_tx,
            family: 4,
            payload_len: 0,
            lane_bits: 0,
            spread: 0,
            reserved: 0,
            head,
        });
        let _sink = self.sink();
        let _hop = self.hop.attach("redirect", ifindex("rx0"));
        self.rate(packets, LOCAL_V4, false)
    }

    fn label_hop(&mut self, plane: &mut Dataplane, packets: u32) -> Result<f64> {
        let (rx0, tx0) = (ifindex("rx0"), ifindex("tx0"));
        for (name, index) in [("rx0", rx0), ("tx0", tx0)] {
            let report = plane.attach(name, index);
            if report.mode != ForwardMode::KernelNative {
                bail!("{}", report.reason.unwrap_or_default());
            }
        }
        let egress = Egress {
            ifindex: tx0,
            source_mac: mac(3),
            destination_mac: mac(4),
            mtu: 1500,
        };
        plane.set_egress(NextHopIndex(HOP_V4), Some(egress))?;
        settle(plane)?;
        let sink = self.sink();
        let rate = self.rate(packets, LOCAL_V4, false);
        drop(sink);
        plane.detach(rx0)?;
        plane.detach(tx0)?;
        rate
    }

    fn kernel(&mut self, packets: u32) -> Result<f64> {
        // Without a program or GRO a veth takes no redirected frame; a program that passes costs least.
        let _pass = PassProgram::attach(ifindex("rx0"))?;
        let _sink = self.sink();
        self.rate(packets, BEYOND, true)
    }
}

impl Bench {
    /// Has the kernel look up each packet's connection before it forwards it; tells whether it does now.
    fn track_connections(&self) -> bool {
        let rules = "add table ip bench; \
                     add chain ip bench forward { type filter hook forward priority 0; policy accept; }; \
                     add rule ip bench forward ct state established,related accept";
        nft(rules)
    }

    /// Takes the rule away again.
    fn forget_connections(&self) -> Result<()> {
        if !nft("delete table ip bench") {
            bail!("nft made a table and cannot delete it");
        }
        Ok(())
    }
}

/// Makes the changes of next hops that had to wait, as the daemon does when they are due.
fn settle(plane: &mut Dataplane) -> Result<()> {
    while let Some(due) = plane.due() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        plane.tend()?;
    }
    Ok(())
}

fn nft(rules: &str) -> bool {
    std::process::Command::new("nft")
        .arg(rules)
        .output()
        .is_ok_and(|output| output.status.success())
}

fn ifindex_in(wires: &Wires, namespace: &Namespace, name: &str) -> u32 {
    wires.within(namespace, || ifindex(name))
}

/// Nanoseconds of one run of a program that leaves the packet as it was.
fn cost(program: &mut Xdp) -> Result<f64> {
    let packet = [9u8; FRAME_LEN];
    let options = TestRunOptions {
        data_in: Some(&packet),
        repeat: 1_000_000,
        ..Default::default()
    };
    Ok(program.test_run(options)?.duration.as_nanos() as f64)
}

/// Nanoseconds of one run of the label switching program. What it makes of the packet is what it gets next: slot, key
/// and label lead back to themselves, until the time to live runs out.
fn cost_of_loop(plane: &mut Dataplane) -> Result<f64> {
    const HOPS: u32 = 250;
    const CALLS: u32 = 400;
    const LOOP: u32 = 50;
    let UnderlayPath { local, remote } = path(false);
    let index = NextHopIndex(HOP_MISSING);
    let key = slot_key(SLOT_UNUSED);
    let back = UnderlayPath {
        local: remote,
        remote: local,
    };
    for op in [
        DataplaneOp::AddSlot {
            slot: Slot(SLOT_UNUSED),
            key,
            path: path(false),
            echo: None,
        },
        DataplaneOp::AddNextHop {
            index,
            path: back,
            slot: Slot(SLOT_UNUSED),
            key,
            mtu: 1500,
            seq_from: NextHopIndex(0),
        },
        DataplaneOp::SetNextHopUp { index, up: true },
        DataplaneOp::SetGroup {
            group: GroupIndex(9),
            buckets: [(index, NextHopIndex(0)); 16],
        },
        DataplaneOp::SetLabel {
            label: Label(LOOP),
            entry: LfibEntry::swap(Label(LOOP), GroupIndex(9)),
        },
    ] {
        plane.apply(&op)?;
    }
    // While it is attached somewhere, running it needs no change of the kernel's XDP dispatcher, which waits long.
    let rx0 = ifindex("rx0");
    plane.attach("rx0", rx0);
    let egress = Egress {
        ifindex: rx0,
        source_mac: mac(1),
        destination_mac: mac(2),
        mtu: 1500,
    };
    plane.set_egress(index, Some(egress))?;
    settle(plane)?;
    let mut nanoseconds = 0;
    for _ in 0..CALLS {
        // One number of the same sequence that the next hop counts.
        let mut stamped = [0; 28];
        stamped[16..20].copy_from_slice(&LabelEntry::new(Label(LOOP), 0, true, 255).to_bytes());
        let stamp = plane
            .shared()
            .stamp(index, 3, weft_abi::Kind::Labelled, &mut stamped);
        stamp.map_err(|reason| anyhow::anyhow!("stamping: {}", reason.name()))?;
        let packet = Underlay::incoming(false).frame(&stamped);
        let mut out = [0; FRAME_LEN];
        let options = TestRunOptions {
            data_in: Some(&packet),
            data_out: Some(&mut out),
            repeat: HOPS,
            ..Default::default()
        };
        let result = plane.program().context("the program")?.test_run(options)?;
        let left = LabelEntry::from_bytes([out[58], out[59], out[60], out[61]]).ttl();
        if result.return_value != REDIRECT || u32::from(left) != 255 - HOPS {
            let drops = plane.counters().kernel.drops;
            bail!(
                "the packet did not go round: action {}, time to live {left}, drops {drops:?}",
                result.return_value
            );
        }
        nanoseconds += result.duration.as_nanos();
    }
    plane.detach(rx0)?;
    Ok(nanoseconds as f64 / f64::from(CALLS))
}

fn print(report: &Report) {
    let Rates {
        no_hop,
        redirect,
        label_hop,
        kernel_ipv4,
        kernel_stateful,
    } = &report.packets_per_second;
    let million = |rate: f64| rate / 1e6;
    eprintln!(
        "\n{} rounds of {} packets of {FRAME_LEN} bytes; all of a packet's way on one processor\n",
        report.rounds, report.packets
    );
    eprintln!(
        "{:<30} {:>9} {:>17} {:>12}",
        "", "Mpps", "least to most", "ns a packet"
    );
    let stateful = kernel_stateful.map(|rate| ("the same, connections tracked", rate));
    for (name, rate) in [
        ("no hop", *no_hop),
        ("bare redirect", *redirect),
        ("label hop", *label_hop),
        ("kernel IPv4 forwarding", *kernel_ipv4),
    ]
    .into_iter()
    .chain(stateful)
    {
        eprintln!(
            "{name:<30} {:>9.3} {:>8.3} {:>8.3} {:>12.0}",
            million(rate.median),
            million(rate.least),
            million(rate.most),
            1e9 / rate.median
        );
    }
    eprintln!("\n{:<40} {:>8} {:>10}", "ratio", "", "to reach");
    for (name, value, target) in [
        ("label_hop_vs_kernel", report.label_hop_vs_kernel, 2.0),
        (
            "label_hop_vs_kernel_per_packet",
            report.label_hop_vs_kernel_per_packet,
            3.0,
        ),
        ("label_hop_vs_redirect", report.label_hop_vs_redirect, 0.7),
    ] {
        eprintln!("{name:<40} {value:>8.2} {target:>10.1}");
    }
    if let Some(stateful) = report.label_hop_vs_kernel_stateful {
        eprintln!("{:<40} {stateful:>8.2}", "label_hop_vs_kernel_stateful");
    }
    eprintln!(
        "\nby itself, nanoseconds: program {:.0}, bare redirect {:.0}, SipHash {:.0}, nothing {:.0}",
        report.program_ns, report.redirect_ns, report.siphash_ns, report.empty_ns
    );
    eprintln!(
        "instructions the verifier looked at: {}",
        report.verifier_insns
    );
}
