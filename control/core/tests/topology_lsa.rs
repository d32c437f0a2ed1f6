//! The LSA codec and the database's bounds and look-ups.

mod common;

use std::net::IpAddr;

use common::NETWORK;
use proptest::prelude::*;
use weft_core::{
    identity::{Identity, NetworkId, NodeId},
    io::Micros,
    sim::rng::Rng,
    topology::{
        lsa::{
            HearLink, LinkId, Lsa, LsaContent, LsaError, MAX_LSA_LEN, MAX_NEIGHBOURS,
            MAX_PARALLEL_LINKS, Measured, Prefix, SendLink, Service,
        },
        lsdb::{Limits, Lsdb, Outcome, Refusal},
    },
};

fn identity(number: u64) -> Identity {
    Identity::from_secret(&Rng::new(number).secret())
}

fn content(seed: u64) -> LsaContent {
    let mut rng = Rng::new(seed);
    let ids: Vec<NodeId> = (0..rng.below(20)).map(|_| NodeId(rng.secret())).collect();
    let mut content = LsaContent {
        name: ["", "a", "gateway-1", "größe"][rng.index(4)].into(),
        overload: rng.chance(0.3),
        no_transit: rng.chance(0.3),
        ..LsaContent::default()
    };
    for _ in 0..rng.below(40) {
        if ids.is_empty() {
            break;
        }
        let (node, link) = (ids[rng.index(ids.len())], LinkId(rng.below(5) as u32));
        if rng.chance(0.5) {
            content.sends.push(SendLink {
                to: node,
                link,
                mtu: rng.below(65536) as u16,
                capability: rng.below(256) as u8,
            });
        } else {
            let measured = Measured {
                cost: rng.between(1, 1_000_000) as u32,
                loss_ppm: rng.below(1_000_001) as u32,
                delay_us: rng.next_u64() as u32,
                jitter_us: rng.next_u64() as u32,
                capacity_kbps: rng.next_u64() as u32,
            };
            content.hears.push(HearLink {
                from: node,
                link,
                measured,
            });
        }
    }
    for _ in 0..rng.below(6) {
        let len = rng.below(25) as u8;
        let bits = (10 << 24 | rng.below(1 << 24) as u32)
            & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
        content
            .prefixes
            .extend(Prefix::new(IpAddr::V4(bits.into()), len));
        content.prefixes.extend(Prefix::new(
            "2001:db8::".parse().expect("an address"),
            32 + len,
        ));
    }
    for port in 0..rng.below(4) {
        content.services.push(Service {
            name: format!("service-{}", rng.below(9)),
            port: port as u16,
        });
    }
    content
}

proptest! {
    #[test]
    fn an_lsa_is_read_as_it_was_written(seed: u64, sequence: u64, lifetime in 1u16..4000) {
        let lsa = Lsa::sign(&identity(1), &NETWORK, sequence, lifetime, content(seed));
        prop_assert!(lsa.encoded().len() <= MAX_LSA_LEN);
        let read = Lsa::decode(lsa.encoded(), &NETWORK).expect("valid");
        prop_assert_eq!(&read, &lsa);
        prop_assert_eq!(Lsa::decode(lsa.encoded(), &NetworkId([9; 5])), Err(LsaError::ForeignNetwork));
        // Normalising twice changes nothing, and the same content is the same bytes.
        let again = Lsa::sign(&identity(1), &NETWORK, sequence, lifetime, read.content.clone());
        prop_assert_eq!(again.encoded(), lsa.encoded());
    }

    #[test]
    fn no_change_of_a_byte_goes_unnoticed(seed: u64, at: usize, bit in 0u8..8, cut: usize) {
        let lsa = Lsa::sign(&identity(1), &NETWORK, 7, 100, content(seed));
        let mut bytes = lsa.encoded().to_vec();
        let len = bytes.len();
        bytes[at % len] ^= 1 << bit;
        prop_assert!(Lsa::decode(&bytes, &NETWORK).is_err());
        prop_assert!(Lsa::decode(&lsa.encoded()[..cut % len], &NETWORK).is_err());
        let mut longer = lsa.encoded().to_vec();
        longer.insert(at % len, 0);
        prop_assert!(Lsa::decode(&longer, &NETWORK).is_err());
    }

    #[test]
    fn any_bytes_are_refused_in_peace(bytes in proptest::collection::vec(any::<u8>(), 0..400), seed: u64) {
        prop_assert!(Lsa::decode(&bytes, &NETWORK).is_err());
        // Behind a good header too.
        let lsa = Lsa::sign(&identity(1), &NETWORK, 7, 100, content(seed));
        let spliced = [&lsa.encoded()[..49], &bytes].concat();
        prop_assert!(Lsa::decode(&spliced, &NETWORK).is_err());
    }
}

#[test]
fn too_much_content_is_cut_to_what_can_be_encoded() {
    let mut rng = Rng::new(5);
    let mut content = LsaContent::default();
    let both = NodeId(rng.secret());
    for node in 0..300 {
        let id = if node == 299 {
            both
        } else {
            NodeId(rng.secret())
        };
        for link in 0..20 {
            let link = LinkId(link);
            content.sends.push(SendLink {
                to: id,
                link,
                mtu: 1500,
                capability: 0,
            });
            if id == both {
                content.hears.push(HearLink {
                    from: id,
                    link,
                    measured: Measured::UNKNOWN,
                });
            }
        }
    }
    let lsa = Lsa::sign(&identity(1), &NETWORK, 1, 100, content);
    assert!(lsa.encoded().len() <= MAX_LSA_LEN);
    assert_eq!(Lsa::decode(lsa.encoded(), &NETWORK).as_ref(), Ok(&lsa));
    // The only neighbour with both directions was not cut.
    assert_eq!(lsa.content.heard_from(both).len(), MAX_PARALLEL_LINKS);
    let mut neighbours: Vec<_> = lsa.content.sends.iter().map(|l| l.to).collect();
    neighbours.dedup();
    assert!(neighbours.len() <= MAX_NEIGHBOURS);
}

#[test]
fn withdrawals_carry_nothing_else() {
    let full = LsaContent {
        withdrawn: true,
        ..content(3)
    };
    let lsa = Lsa::sign(&identity(1), &NETWORK, 1, 100, full);
    assert_eq!(lsa.content, LsaContent::withdrawal());
    assert!(Lsa::decode(lsa.encoded(), &NETWORK).is_ok());
}

#[test]
fn the_metric_rises_with_everything_bad() {
    let good = Measured {
        cost: 1,
        loss_ppm: 0,
        delay_us: 1000,
        jitter_us: 0,
        capacity_kbps: 1_000_000,
    };
    let metric = good.metric();
    for worse in [
        Measured {
            loss_ppm: 100_000,
            ..good
        },
        Measured {
            delay_us: 9000,
            ..good
        },
        Measured {
            jitter_us: 5000,
            ..good
        },
        Measured {
            capacity_kbps: 1000,
            ..good
        },
    ] {
        assert!(worse.metric() > metric, "{worse}");
    }
    let terrible = Measured {
        cost: 1,
        loss_ppm: u32::MAX,
        delay_us: u32::MAX - 1,
        jitter_us: u32::MAX,
        capacity_kbps: 1,
    };
    assert_eq!(terrible.metric(), 1_000_000);
}

fn lsa_of(number: u64, content: LsaContent) -> Lsa {
    Lsa::sign(&identity(number), &NETWORK, 1, 100, content)
}

fn hearing(others: &[u64]) -> LsaContent {
    let hear = |n: &u64| HearLink {
        from: identity(*n).id(),
        link: LinkId(0),
        measured: Measured::UNKNOWN,
    };
    LsaContent {
        hears: others.iter().map(hear).collect(),
        ..LsaContent::default()
    }
}

#[test]
fn a_full_database_keeps_whom_somebody_hears() {
    let limits = Limits {
        max_nodes: 5,
        max_bytes: 100_000,
    };
    let mut lsdb = Lsdb::new(NETWORK, identity(0).id(), limits);
    let insert = |lsdb: &mut Lsdb, lsa: &Lsa| lsdb.insert(Micros(0), lsa.encoded(), 0);
    assert_eq!(
        lsdb.insert_own(Micros(0), lsa_of(0, hearing(&[1]))),
        Outcome::Newer { changed: true }
    );
    insert(&mut lsdb, &lsa_of(1, hearing(&[2])));
    insert(&mut lsdb, &lsa_of(2, hearing(&[8])));
    // Two that nobody hears, then the database is full.
    insert(&mut lsdb, &lsa_of(3, hearing(&[])));
    insert(&mut lsdb, &lsa_of(4, hearing(&[])));
    assert_eq!(lsdb.len(), 5);
    assert_eq!(
        insert(&mut lsdb, &lsa_of(5, hearing(&[]))),
        Outcome::Refused(Refusal::DatabaseFull)
    );
    assert_eq!(
        insert(&mut lsdb, &lsa_of(8, hearing(&[]))),
        Outcome::Newer { changed: true }
    );
    assert!(lsdb.get(&identity(8).id()).is_some());
    assert_eq!(lsdb.len(), 5);
    // Bytes are bounded in the same way.
    let own = lsdb.bytes();
    assert!(own < 2000);
    let mut small = Lsdb::new(
        NETWORK,
        identity(0).id(),
        Limits {
            max_nodes: 100,
            max_bytes: 700,
        },
    );
    insert(&mut small, &lsa_of(1, hearing(&[2])));
    insert(&mut small, &lsa_of(2, hearing(&[1])));
    for number in 3..20 {
        insert(&mut small, &lsa_of(number, hearing(&[])));
        assert!(small.bytes() <= 700);
    }
    assert!(small.get(&identity(1).id()).is_some() && small.get(&identity(2).id()).is_some());
}

#[test]
fn lsas_age_and_expire() {
    let mut lsdb = Lsdb::new(NETWORK, identity(0).id(), Limits::default());
    let lsa = lsa_of(1, hearing(&[]));
    assert!(matches!(
        lsdb.insert(Micros(0), lsa.encoded(), 100),
        Outcome::Refused(Refusal::Expired { .. })
    ));
    assert_eq!(
        lsdb.insert(Micros(0), lsa.encoded(), 90),
        Outcome::Newer { changed: true }
    );
    assert_eq!(
        lsdb.insert(Micros(0), lsa.encoded(), 90),
        Outcome::Duplicate
    );
    let id = lsa.origin;
    assert_eq!(
        lsdb.get(&id).map(|e| e.age_s(Micros(0))),
        Some(91),
        "a hop costs a second"
    );
    assert_eq!(lsdb.get(&id).map(|e| e.age_s(Micros(2_500_000))), Some(93));
    assert_eq!(lsdb.next_expiry(), Some(Micros(10_000_000)));
    assert_eq!(
        (
            lsdb.expire(Micros(9_999_999)),
            lsdb.expire(Micros(10_000_000))
        ),
        (0, 1)
    );
    assert!(lsdb.is_empty() && lsdb.take_changes().contains(&id));
}

#[test]
fn destinations_lead_to_the_longest_prefix_then_the_cheapest_then_the_lowest() {
    let prefix =
        |text: &str, len| Prefix::new(text.parse().expect("an address"), len).expect("a prefix");
    let mut lsdb = Lsdb::new(NETWORK, identity(0).id(), Limits::default());
    for (number, name, prefixes) in [
        (1, "a", vec![prefix("10.0.0.0", 8), prefix("0.0.0.0", 0)]),
        (
            2,
            "b",
            vec![prefix("10.1.0.0", 16), prefix("2001:db8::", 32)],
        ),
        (
            3,
            "b",
            vec![prefix("10.1.0.0", 16), prefix("2001:db8:1::", 48)],
        ),
        (4, "c", vec![prefix("10.1.2.0", 24)]),
    ] {
        let content = LsaContent {
            name: name.into(),
            prefixes,
            ..LsaContent::default()
        };
        lsdb.insert(Micros(0), lsa_of(number, content).encoded(), 0);
    }
    let id = |number| identity(number).id();
    let cost = |of: &NodeId| {
        [(1, Some(10)), (2, Some(20)), (3, Some(15)), (4, None)]
            .iter()
            .find(|(n, _)| id(*n) == *of)
            .and_then(|(_, c)| *c)
    };
    let to = |text: &str| lsdb.by_destination(text.parse().expect("an address"), cost);
    assert_eq!(to("10.2.0.1"), Some(id(1)));
    assert_eq!(to("10.1.9.9"), Some(id(3)), "cheaper than 2");
    assert_eq!(to("10.1.2.3"), Some(id(3)), "4 has no path");
    assert_eq!(to("192.0.2.1"), Some(id(1)));
    assert_eq!(to("2001:db8:1::5"), Some(id(3)));
    assert_eq!(to("2001:db8:2::5"), Some(id(2)));
    assert_eq!(to("2001:db9::"), None);
    let overlay = id(2).overlay_address(&NETWORK);
    assert_eq!(to(&overlay.to_string()), Some(id(2)));
    let equal = |_: &NodeId| Some(1);
    let lowest = id(2).min(id(3));
    assert_eq!(
        lsdb.by_destination("10.1.9.9".parse().expect("an address"), equal),
        Some(lowest)
    );
    assert_eq!(lsdb.by_name("b", cost), Some(id(3)));
    assert_eq!(lsdb.prefixes(cost).len(), 6);
    for bad in [
        ("10.0.0.1", 8),
        ("224.0.0.0", 4),
        ("127.0.0.0", 8),
        ("fe80::", 10),
        ("::ffff:10.0.0.0", 104),
    ] {
        assert!(
            Prefix::new(bad.0.parse().expect("an address"), bad.1).is_err(),
            "{bad:?}"
        );
    }
    assert!(Prefix::new("10.0.0.0".parse().expect("an address"), 33).is_err());
}
