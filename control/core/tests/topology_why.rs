//! The reasons given with a path, and with none.

mod common;

use common::{TestLink, TestNet};
use weft_core::{
    sim::rng::Rng,
    topology::{
        Topology,
        cspf::{Constraints, Disjointness, NoPath},
        lsa::Measured,
    },
};

/// 0 →(1)→ 1 →(1)→ 3, 0 →(2)→ 2 →(2)→ 3, both ways; 4 hangs on 3; 5 hears 3 but is not heard.
fn net() -> (TestNet, Rng) {
    let mut rng = Rng::new(42);
    let mut net = TestNet::new(&mut rng, 6);
    for (a, b, cost, delay, capacity, mtu) in [
        (0, 1, 1, 30_000, 100_000, 1500),
        (1, 3, 1, 30_000, 100_000, 1400),
        (0, 2, 2, 5_000, 10_000, 1500),
        (2, 3, 2, 5_000, 10_000, 1500),
        (3, 4, 1, 1_000, 100_000, 1500),
    ] {
        let measured = Measured {
            cost,
            loss_ppm: 0,
            delay_us: delay,
            jitter_us: 0,
            capacity_kbps: capacity,
        };
        for (from, to) in [(a, b), (b, a)] {
            net.links.push(TestLink {
                from,
                to,
                link: 7,
                mtu,
                measured,
            });
        }
    }
    net.claims.push((3, 5, false));
    (net, rng)
}

fn reasons(
    topology: &Topology,
    net: &TestNet,
    to: usize,
    constraints: &Constraints,
) -> Vec<(usize, Option<usize>, String)> {
    let why = topology.why(net.id(to), constraints);
    let number = |id| net.number(id);
    why.refused
        .iter()
        .map(|r| (number(r.what.0), r.what.1.map(number), r.reason.to_owned()))
        .collect()
}

#[test]
fn the_other_way_costs_more_by_so_much() {
    let (net, mut rng) = net();
    let topology = net.seen_from(&mut rng, 0);
    let why = topology.why(net.id(4), &Constraints::default());
    let hops: Vec<_> = why
        .hops
        .iter()
        .map(|h| (net.number(h.from), net.number(h.to), h.cost))
        .collect();
    assert_eq!(hops, [(0, 1, 1), (1, 3, 1), (3, 4, 1)]);
    assert!(
        why.hops[0].because.contains("30.00 ms") && why.hops[1].because.contains("MTU 1400"),
        "{:?}",
        why.hops
    );
    assert_eq!(
        why.path.as_ref().map(|p| (p.cost, p.delay_us, p.mtu)),
        Ok((3, Some(61_000), 1400))
    );
    let other = why
        .refused
        .iter()
        .find(|r| r.reason == "higher_cost")
        .expect("the way through 2");
    assert_eq!(
        (
            net.number(other.what.0),
            other.what.1.map(|id| net.number(id))
        ),
        (0, Some(2))
    );
    assert!(other.detail.contains("higher by 2"), "{}", other.detail);
}

#[test]
fn every_bound_is_named() {
    let (mut net, mut rng) = net();
    let topology = net.seen_from(&mut rng, 0);
    let found = |constraints: &Constraints| {
        topology.path(net.id(3), constraints).map(|p| {
            p.nodes()
                .iter()
                .map(|id| net.number(*id))
                .collect::<Vec<_>>()
        })
    };
    let default = Constraints::default();
    let slow = Constraints {
        max_delay_us: Some(20_000),
        ..default.clone()
    };
    assert_eq!(found(&slow), Ok(vec![0, 2, 3]));
    assert!(reasons(&topology, &net, 3, &slow).contains(&(0, Some(1), "too_slow".into())));
    let narrow = Constraints {
        min_bandwidth_kbps: Some(50_000),
        ..default.clone()
    };
    assert_eq!(found(&narrow), Ok(vec![0, 1, 3]));
    assert!(reasons(&topology, &net, 3, &narrow).contains(&(0, Some(2), "too_narrow".into())));
    let big = Constraints {
        min_mtu: Some(1500),
        ..default.clone()
    };
    assert_eq!(found(&big), Ok(vec![0, 2, 3]));
    assert!(reasons(&topology, &net, 3, &big).contains(&(1, Some(3), "mtu_too_small".into())));
    let avoid = Constraints {
        avoid: [net.id(1)].into(),
        ..default.clone()
    };
    assert_eq!(found(&avoid), Ok(vec![0, 2, 3]));
    assert!(reasons(&topology, &net, 3, &avoid).contains(&(1, None, "avoided".into())));
    let disjoint = Constraints {
        disjoint_from: vec![net.id(0), net.id(1), net.id(3)],
        ..default.clone()
    };
    assert_eq!(found(&disjoint), Ok(vec![0, 2, 3]));
    assert!(reasons(&topology, &net, 3, &disjoint).contains(&(1, None, "not_disjoint".into())));

    let none = |constraints: Constraints, to: usize| {
        topology
            .path(net.id(to), &constraints)
            .expect_err("no path")
    };
    let too_slow = NoPath::TooSlow {
        fastest_us: Some(10_000),
        limit_us: 9_000,
    };
    assert_eq!(
        none(
            Constraints {
                max_delay_us: Some(9_000),
                ..default.clone()
            },
            3
        ),
        too_slow
    );
    assert_eq!(
        none(
            Constraints {
                min_bandwidth_kbps: Some(1 << 20),
                ..default.clone()
            },
            3
        ),
        NoPath::TooNarrow(1 << 20)
    );
    assert_eq!(
        none(
            Constraints {
                min_mtu: Some(1501),
                ..default.clone()
            },
            3
        ),
        NoPath::MtuTooSmall(1501)
    );
    assert_eq!(
        none(
            Constraints {
                max_hops: 1,
                ..default.clone()
            },
            3
        ),
        NoPath::TooManyHops(1)
    );
    let both = [net.id(1), net.id(2)];
    assert_eq!(
        none(
            Constraints {
                avoid: both.into(),
                ..default.clone()
            },
            3
        ),
        NoPath::Avoided
    );
    assert_eq!(
        none(
            Constraints {
                include: both.to_vec(),
                ..default.clone()
            },
            4
        ),
        NoPath::Include(both[1])
    );
    assert_eq!(
        none(
            Constraints {
                include: vec![net.id(4)],
                ..default.clone()
            },
            4
        ),
        NoPath::BadInclude
    );
    // The link to 4 is shared by every path there.
    let shared = vec![net.id(0), net.id(1), net.id(3), net.id(4)];
    assert_eq!(
        none(
            Constraints {
                disjoint_from: shared,
                ..default.clone()
            },
            4
        ),
        NoPath::NotDisjoint
    );
    assert_eq!(none(default.clone(), 5), NoPath::Unreachable(net.id(5)));
    assert!(reasons(&topology, &net, 5, &default).contains(&(
        3,
        Some(5),
        "one_way_unconfirmed".into()
    )));
    assert_eq!(none(default.clone(), 0), NoPath::SameNode);

    net.overload[1] = true;
    let overloaded = net.seen_from(&mut rng, 0);
    assert_eq!(
        overloaded
            .path(net.id(3), &default)
            .map(|p| net.number(p.hops[0].to)),
        Ok(2)
    );
    assert!(reasons(&overloaded, &net, 3, &default).contains(&(1, None, "overload".into())));
    assert!(
        overloaded.path(net.id(1), &default).is_ok(),
        "it still answers for itself"
    );
}

#[test]
fn where_nodes_must_be_shared_links_are_not() {
    let (mut net, mut rng) = net();
    // A second way round 4, through the same node 3.
    for (from, to) in [(3, 5), (5, 3), (5, 4), (4, 5)] {
        let measured = Measured {
            cost: 5,
            ..net.links[0].measured
        };
        net.links.push(TestLink {
            from,
            to,
            link: 1,
            mtu: 1500,
            measured,
        });
    }
    let topology = net.seen_from(&mut rng, 0);
    let primary = topology
        .path(net.id(4), &Constraints::default())
        .expect("a path");
    let constraints = Constraints {
        disjoint_from: primary.nodes(),
        ..Constraints::default()
    };
    let standby = topology.path(net.id(4), &constraints).expect("a path");
    let nodes: Vec<_> = standby.nodes().iter().map(|id| net.number(*id)).collect();
    assert_eq!(
        (nodes, standby.disjoint),
        (vec![0, 2, 3, 5, 4], Some(Disjointness::Link))
    );
}
