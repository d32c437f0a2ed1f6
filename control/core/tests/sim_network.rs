//! Whole networks of real nodes on a virtual clock: convergence, traffic, churn, partition and heal, from many seeds.
//!
//! `WEFT_SIM_SEED=n` runs that seed alone (a failure prints it), `WEFT_SIM_SEEDS=n` so many seeds from each test's
//! first, and `WEFT_SIM_LARGE=1` the thousand-node network as well.

use std::time::Instant;

use weft_core::{
    io::Micros,
    sim::{
        check::{Truth, dead_lsps, label_loop, log_of, over_bounds, total, wrong_views},
        host::{Sent, Stop},
        net::{Net, Plan},
        rng::Rng,
    },
};

/// Says how to repeat a run that fails.
struct Replay {
    seed: u64,
    test: &'static str,
    start: Instant,
}

impl Replay {
    fn new(seed: u64, test: &'static str) -> Self {
        Self {
            seed,
            test,
            start: Instant::now(),
        }
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Self { seed, test, .. } = self;
            eprintln!(
                "replay with: WEFT_SIM_SEED={seed} cargo test -p weft-core --test sim_network {test} -- --nocapture"
            );
        } else {
            println!(
                "{} seed {}: {:.1} s",
                self.test,
                self.seed,
                self.start.elapsed().as_secs_f32()
            );
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn seeds(first: u64, count: u64) -> Vec<u64> {
    match number("WEFT_SIM_SEED") {
        Some(seed) => vec![seed],
        None => (first..first + number("WEFT_SIM_SEEDS").unwrap_or(count)).collect(),
    }
}

/// Waits until every running node believes of every other what is true.
fn converge(net: &mut Net, limit_s: u64, what: &str) -> Truth {
    let truth = Truth::of(net);
    let start = net.world.now;
    loop {
        let wrong = wrong_views(net, &truth);
        if wrong.is_empty() {
            println!(
                "  {what}: converged after {:.1} s ({} events so far)",
                net.world.now.since(start).0 as f64 / 1e6,
                net.world.event_count()
            );
            return truth;
        }
        if net.world.now.since(start).as_secs() >= limit_s {
            let (at, about, believes) = wrong[0];
            panic!(
                "{what}: {} wrong views after {limit_s} s, such as n{at} of n{about}: believes {believes}\n{}{}",
                wrong.len(),
                log_of(net, at, 15),
                log_of(net, about, 15)
            );
        }
        if number("WEFT_SIM_VERBOSE").is_some() {
            let (at, about, believes) = wrong[0];
            let now = net.world.now;
            println!(
                "    {:.1} s: {} wrong, n{at} of n{about}: {believes}",
                now.0 as f64 / 1e6,
                wrong.len()
            );
            let node = net.world.hosts[at].node.as_ref().expect("it runs");
            let to = net.world.hosts[about].id;
            if believes {
                let why = node.why(now, to, &Default::default());
                let hops = why
                    .path
                    .iter()
                    .map(|h| (net.world.number(&h.from), net.world.number(&h.to)));
                let hops: Vec<_> = hops.filter_map(|(a, b)| Some((a?, b?))).collect();
                let bad = hops.iter().find(|hop| !truth.links.contains(hop));
                println!("      by {hops:?}, of which {bad:?} is not true");
                if let Some(&(a, b)) = bad {
                    print!("{}{}", log_of(net, a, 8), log_of(net, b, 8));
                    for (number, host) in net.world.hosts.iter().enumerate() {
                        let Some(node) = &host.node else { continue };
                        let views = node.nodes(now);
                        for about in [a, b] {
                            let id = net.world.hosts[about].id;
                            let to = net.world.hosts[if about == a { b } else { a }].id;
                            if let Some(view) = views.iter().find(|view| view.node == id) {
                                let sends = view.sends_to.contains(&to);
                                print!(
                                    "      n{number}: n{about} at {} sends {sends};",
                                    view.sequence
                                );
                            }
                        }
                    }
                    println!();
                    println!(
                        "{:?}",
                        net.world.hosts[a].node.as_ref().map(|n| n.counters())
                    );
                }
            }
        }
        net.world.run_ms(1000);
    }
}

/// Pairs that reach each other both ways, as many of them as wanted.
fn pairs(net: &mut Net, truth: &Truth, rng: &mut Rng, wanted: usize) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for _ in 0..wanted * 20 {
        if found.len() == wanted {
            break;
        }
        let (a, b) = net.two_hosts(rng);
        if truth.reach[a][b] && truth.reach[b][a] && !found.contains(&(a, b)) {
            found.push((a, b));
        }
    }
    found
}

/// Keeps sending on each pair until something arrives; then sends a burst of which most must.
fn exchange(net: &mut Net, pairs: &[(usize, usize)], limit_s: u64, what: &str) {
    let start = net.world.now;
    let (mut open, mut last) = (pairs.to_vec(), None);
    let got = |net: &Net, a: usize, b: usize, since: Micros| {
        let from = net.world.hosts[a].id;
        net.world.hosts[b]
            .inbox
            .iter()
            .filter(|d| d.from == from && d.at >= since)
            .count()
    };
    while !open.is_empty() {
        if net.world.now.since(start).as_secs() >= limit_s {
            let (a, b) = open[0];
            let node = net.world.hosts[a].node.as_ref();
            let lsps = node.map(|node| node.lsps(net.world.now));
            let sessions = node.map(|node| node.sessions(net.world.now));
            panic!(
                "{what}: nothing got through on {} of {} pairs in {limit_s} s, such as n{a} to n{b}\n{}{}{lsps:?}\n{sessions:?}\n{:?}",
                open.len(),
                pairs.len(),
                log_of(net, a, 20),
                log_of(net, b, 20),
                net.world.hosts[a].counts,
            );
        }
        for &(a, b) in &open {
            let to = net.world.hosts[b].overlay;
            net.world.send(a, to);
        }
        net.world.run_ms(250);
        last = open.first().copied();
        open.retain(|&(a, b)| got(net, a, b, start) == 0);
    }
    println!(
        "  {what}: {} pairs talk after {:.1} s",
        pairs.len(),
        net.world.now.since(start).0 as f64 / 1e6
    );
    if net.world.now.since(start).as_secs() >= 5
        && let Some((a, b)) = last
    {
        println!("  the last was n{a} to n{b}");
        print!("{}{}", log_of(net, a, 25), log_of(net, b, 25));
        if number("WEFT_SIM_VERBOSE").is_some() {
            for host in [a, b] {
                let counters = net.world.hosts[host]
                    .node
                    .as_ref()
                    .map(|node| node.counters());
                println!("  n{host}: {counters:?}");
            }
        }
    }
    let since = net.world.now;
    let mut sent = 0;
    for _ in 0..20 {
        for &(a, b) in pairs {
            let to = net.world.hosts[b].overlay;
            sent += usize::from(net.world.send(a, to).1 == Sent::Yes);
        }
        net.world.run_ms(50);
    }
    net.world.run_ms(2000);
    let arrived: usize = pairs.iter().map(|&(a, b)| got(net, a, b, since)).sum();
    assert!(
        arrived * 10 >= pairs.len() * 20 * 8,
        "{what}: {arrived} of {sent} packets sent arrived"
    );
    assert!(
        arrived <= sent,
        "{what}: more packets arrived than were sent"
    );
}

/// Counters that only something broken raises while no node restarts.
fn nothing_forged(net: &Net, what: &str) {
    for name in ["session_bad_tag", "bad_tag", "ttl_expired"] {
        assert_eq!(total(net, name), 0, "{what}: {name}");
    }
}

/// What must hold at any time.
fn invariants(net: &Net, what: &str) {
    if let Some(labels) = label_loop(net) {
        panic!("{what}: forwarding loop over (host, label) {labels:?}");
    }
    assert_eq!(over_bounds(net), None, "{what}");
    for name in ["unexpected_verdict", "session_bad_plaintext", "bad_length"] {
        assert_eq!(total(net, name), 0, "{what}: {name}");
    }
}

/// No LSP that is up goes over a dead link once the time to notice is over.
fn no_dead_lsps(net: &mut Net, truth: &Truth, limit_s: u64, what: &str) {
    let start = net.world.now;
    loop {
        let dead = dead_lsps(net, truth);
        if dead.is_empty() {
            return;
        }
        let (host, path) = &dead[0];
        assert!(
            net.world.now.since(start).as_secs() < limit_s,
            "{what}: {} LSPs over dead links after {limit_s} s, such as that of n{host} over {path:?}\n{}",
            dead.len(),
            log_of(net, *host, 20)
        );
        net.world.run_ms(500);
    }
}

#[test]
fn ten_nodes_converge_and_talk() {
    for seed in seeds(1, 5) {
        let _replay = Replay::new(seed, "ten_nodes");
        let plan = Plan {
            nodes: 10,
            extra: 6,
            one_way: 2,
            ..Plan::default()
        };
        let mut net = Net::random(seed, &plan);
        net.start_all(500);
        let truth = converge(&mut net, 60, "start");
        let mut rng = Rng::new(seed);
        let pairs = pairs(&mut net, &truth, &mut rng, 8);
        exchange(&mut net, &pairs, 20, "start");
        no_dead_lsps(&mut net, &truth, 0, "start");
        invariants(&net, "start");
        nothing_forged(&net, "start");
    }
}

#[test]
fn the_same_seed_gives_the_same_events() {
    let run = |seed: u64| {
        let plan = Plan {
            nodes: 25,
            extra: 20,
            one_way: 5,
            ..Plan::default()
        };
        let mut net = Net::random(seed, &plan);
        net.start_all(500);
        net.world.run_ms(8_000);
        let mut rng = Rng::new(seed);
        let pairs = {
            let truth = Truth::of(&net);
            pairs(&mut net, &truth, &mut rng, 10)
        };
        for _ in 0..20 {
            for &(a, b) in &pairs {
                let to = net.world.hosts[b].overlay;
                net.world.send(a, to);
            }
            net.world.run_ms(200);
        }
        net.world.stop(3, Stop::KillDaemon);
        net.world.run_ms(2_000);
        net.world.start(3, true);
        net.world.run_ms(5_000);
        (net.world.event_count(), net.world.fingerprint())
    };
    for seed in seeds(100, 3) {
        let _replay = Replay::new(seed, "the_same_seed");
        let first = run(seed);
        assert_eq!(first, run(seed), "seed {seed} does not replay");
        assert_ne!(first.1, run(seed + 1).1);
    }
}

/// One whole life of a network: start, traffic, churn, partition, heal.
fn one_life(seed: u64, plan: &Plan, sample: usize, churn_s: u64) {
    let mut rng = Rng::new(seed ^ 0x11fe);
    let mut net = Net::random(seed, plan);
    net.start_all(2_000);
    let truth = converge(&mut net, 90, "start");
    let sampled = pairs(&mut net, &truth, &mut rng, sample);
    exchange(&mut net, &sampled, 30, "start");
    no_dead_lsps(&mut net, &truth, 5, "start");
    invariants(&net, "start");

    // Churn: nodes die and come back, with and without what they knew; links are cut and restored.
    let (mut down, mut cut) = (Vec::new(), Vec::new());
    let all_pairs = net.pairs();
    for _ in 0..churn_s * 2 {
        match rng.below(4) {
            0 => {
                let number = rng.index(plan.nodes);
                if net.world.hosts[number].node.is_some() && down.len() < plan.nodes / 20 {
                    let how = if rng.chance(0.5) {
                        Stop::KillDaemon
                    } else {
                        Stop::PowerOff
                    };
                    net.world.stop(number, how);
                    down.push(number);
                }
            }
            1 if !down.is_empty() => {
                let number = down.swap_remove(rng.index(down.len()));
                let keep = rng.chance(0.5);
                net.world.start(number, keep);
            }
            2 => {
                let (a, b) = all_pairs[rng.index(all_pairs.len())];
                net.set_pair(a, b, false);
                cut.push((a, b));
            }
            _ if !cut.is_empty() => {
                let (a, b) = cut.swap_remove(rng.index(cut.len()));
                net.set_pair(a, b, true);
            }
            _ => {}
        }
        for &(a, b) in &sampled {
            let to = net.world.hosts[b].overlay;
            net.world.send(a, to);
        }
        net.world.run_ms(500);
        invariants(&net, "churn");
    }
    for number in down {
        net.world.start(number, rng.chance(0.5));
    }
    let truth = converge(&mut net, 180, "after churn");
    no_dead_lsps(&mut net, &truth, 15, "after churn");
    let sampled: Vec<_> = sampled
        .into_iter()
        .filter(|&(a, b)| truth.reach[a][b] && truth.reach[b][a])
        .collect();
    exchange(&mut net, &sampled, 40, "after churn");
    invariants(&net, "after churn");

    // Partition, then heal.
    cut.into_iter().for_each(|(a, b)| net.set_pair(a, b, true));
    let half = plan.nodes / 2;
    let crossing: Vec<_> = all_pairs
        .iter()
        .copied()
        .filter(|&(a, b)| (a < half) != (b < half))
        .collect();
    crossing
        .iter()
        .for_each(|&(a, b)| net.set_pair(a, b, false));
    let truth = converge(&mut net, 180, "partition");
    no_dead_lsps(&mut net, &truth, 15, "partition");
    let within = pairs(&mut net, &truth, &mut rng, sample / 2);
    exchange(&mut net, &within, 40, "partition");
    invariants(&net, "partition");
    crossing.iter().for_each(|&(a, b)| net.set_pair(a, b, true));
    let truth = converge(&mut net, 180, "heal");
    let across = pairs(&mut net, &truth, &mut rng, sample);
    exchange(&mut net, &across, 40, "heal");
    no_dead_lsps(&mut net, &truth, 15, "heal");
    invariants(&net, "heal");
}

#[test]
fn forty_nodes_survive_churn_partition_and_heal() {
    for seed in seeds(200, 8) {
        let _replay = Replay::new(seed, "forty_nodes");
        let plan = Plan {
            nodes: 40,
            extra: 40,
            one_way: 8,
            ..Plan::default()
        };
        one_life(seed, &plan, 20, 20);
    }
}

#[test]
fn two_hundred_nodes_survive_churn_partition_and_heal() {
    for seed in seeds(300, 1) {
        let _replay = Replay::new(seed, "two_hundred_nodes");
        let plan = Plan {
            nodes: 200,
            extra: 250,
            one_way: 40,
            ..Plan::default()
        };
        one_life(seed, &plan, 60, 10);
    }
}

/// What sessions and LSPs took is given back once they are gone.
#[test]
fn idle_tables_shrink_to_what_they_were() {
    for seed in seeds(400, 1) {
        let _replay = Replay::new(seed, "idle_tables");
        let plan = Plan {
            nodes: 15,
            extra: 12,
            one_way: 3,
            lossy: 0.0,
            tune: |config| {
                config.timers.session_idle = Micros::from_secs(10);
                config.timers.rest = Micros::from_secs(5);
            },
            ..Plan::default()
        };
        let mut net = Net::random(seed, &plan);
        net.start_all(500);
        let truth = converge(&mut net, 60, "start");
        let labels = |net: &Net| {
            net.world
                .hosts
                .iter()
                .map(|host| host.tables.sizes().labels)
                .sum::<usize>()
        };
        let sessions = |net: &Net| {
            net.world
                .hosts
                .iter()
                .map(|host| host.sessions.len())
                .sum::<usize>()
        };
        let mut rng = Rng::new(seed);
        let mut high = 0;
        for round in 0..3 {
            let pairs = pairs(&mut net, &truth, &mut rng, 10);
            exchange(&mut net, &pairs, 20, "round");
            assert!(labels(&net) > 0 && sessions(&net) > 0);
            let now = labels(&net);
            if round == 0 {
                high = now;
            }
            assert!(
                now <= high * 3,
                "round {round}: {now} labels, {high} at first"
            );
            // Longer than idle sessions and LSPs without refresh live.
            net.world.run_ms(150_000);
            assert_eq!((sessions(&net), labels(&net)), (0, 0), "round {round}");
        }
    }
}

/// A host that moves to another address goes on talking: nobody is told but by its packets.
#[test]
fn a_host_that_moves_goes_on_talking() {
    for seed in seeds(600, 3) {
        let _replay = Replay::new(seed, "a_host_that_moves");
        let plan = Plan {
            nodes: 8,
            extra: 5,
            one_way: 0,
            lossy: 0.0,
            ..Plan::default()
        };
        let mut net = Net::random(seed, &plan);
        net.start_all(500);
        let truth = converge(&mut net, 60, "start");
        let mut rng = Rng::new(seed);
        let pairs = pairs(&mut net, &truth, &mut rng, 8);
        exchange(&mut net, &pairs, 20, "start");
        for round in 1..=3u8 {
            let number = rng.index(8);
            let old = net.world.hosts[number].addresses[0].address;
            net.move_host(
                number,
                old,
                std::net::Ipv4Addr::new(192, 0, round, number as u8 + 1).into(),
            );
            exchange(&mut net, &pairs, 20, "moved");
            let truth = converge(&mut net, 60, "moved");
            no_dead_lsps(&mut net, &truth, 15, "moved");
            invariants(&net, "moved");
        }
    }
}

#[test]
fn a_thousand_nodes_start_up() {
    if number("WEFT_SIM_LARGE").is_none() {
        println!(
            "skipped: set WEFT_SIM_LARGE=1 (and build with --release) to run the thousand-node network"
        );
        return;
    }
    for seed in seeds(500, 1) {
        let _replay = Replay::new(seed, "a_thousand_nodes");
        let plan = Plan {
            nodes: 1000,
            extra: 1000,
            one_way: 100,
            ..Plan::default()
        };
        let mut net = Net::random(seed, &plan);
        net.start_all(5_000);
        let truth = converge(&mut net, 120, "start");
        let mut rng = Rng::new(seed);
        let pairs = pairs(&mut net, &truth, &mut rng, 50);
        exchange(&mut net, &pairs, 30, "start");
        invariants(&net, "start");
    }
}
