//! Small networks end to end: what must not cost a packet, what must heal and how fast, what a person asks.

mod lab;

use lab::Lab;
use weft_core::{
    io::{Answer, Command, Micros},
    node::{
        Config,
        views::{
            Direction, LinkState, LspRole, LspState, PathConstraints, Protection, SessionState,
        },
    },
    sim::host::Stop,
};

fn quick_rekey(_: usize, config: &mut Config) {
    config.timers.link_rekey = Micros::from_secs(7);
    config.timers.session_rekey = Micros::from_secs(11);
}

/// Link and session keys change many times while packets flow: none is lost, none comes twice.
#[test]
fn rekey_costs_no_packet() {
    let mut lab = Lab::chain(1, 5, quick_rekey);
    lab.start();
    lab.converge();
    lab.talk(0, 4);
    let stream = lab.stream(0, 4, 3, 120, |_, _| {});
    stream.assert_whole(&lab, "rekey");
    for (number, host) in lab.world.hosts.iter().enumerate() {
        let node = host.node.as_ref().unwrap();
        let links = node.links(lab.world.now);
        assert!(
            links.iter().all(|link| link.epoch >= 10),
            "n{number}: {links:?}"
        );
    }
    let sessions = lab.world.hosts[0]
        .node
        .as_ref()
        .unwrap()
        .sessions(lab.world.now);
    assert!(sessions[0].epoch >= 8, "{sessions:?}");
    assert!(sessions[0].key_age < Micros::from_secs(15), "{sessions:?}");
}

/// Neighbours act upon a message at once, and a daemon may be held up right after it sent one: the tables must be ready
/// for what the message brings before it leaves.
#[test]
fn what_a_message_brings_is_ready_before_it_leaves() {
    for held in 0..3 {
        let mut lab = Lab::chain(21, 3, quick_rekey);
        lab.start();
        lab.converge();
        lab.talk(0, 2);
        lab.world.hosts[held].pace = Micros::from_millis(10);
        for (from, to) in [(0, 2), (2, 0)] {
            lab.stream(from, to, 1, 40, |_, _| {})
                .assert_whole(&lab, &format!("n{held} held up, {from} to {to}"));
        }
        for number in 0..3 {
            let node = lab.world.hosts[number].node.as_ref().unwrap();
            let links = node.links(lab.world.now);
            assert!(links.iter().all(|link| link.epoch >= 8), "{links:?}");
        }
        // A better path appears, and goes: the LSPs over it begin and end without a loss as well.
        let mut lab = Lab::new(22, 4, &[(0, 1), (1, 2), (2, 3), (0, 3)], quick_rekey);
        lab.change(0, 3, |link| link.up = false);
        lab.start();
        lab.world.run_ms(5_000);
        lab.talk(0, 3);
        lab.world.hosts[held].pace = Micros::from_millis(10);
        let mut mended = false;
        let stream = lab.stream(0, 3, 1, 40, |lab, elapsed| {
            if !mended && elapsed >= Micros::from_secs(2) {
                lab.change(0, 3, |link| link.up = true);
                mended = true;
            }
        });
        stream.assert_whole(&lab, &format!("n{held} held up, make before break"));
    }
}

/// A transit's daemon is killed under traffic and comes back: the path goes on under the same labels, losslessly.
#[test]
fn a_transit_restarts_without_a_lost_packet() {
    let mut lab = Lab::chain(2, 5, |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 4);
    lab.world.run_ms(2_000);
    let signalled =
        |lab: &Lab| lab.world.hosts[0].node.as_ref().unwrap().counters()["lsps_signalled"];
    let before = signalled(&lab);
    let mut step = 0;
    // Nearly as long as the graceful time, and longer than an LSP lives without being refreshed.
    let stream = lab.stream(0, 4, 4, 140, |lab, elapsed| {
        let due = [Micros::from_secs(5), Micros::from_secs(115)];
        if step == 0 && elapsed >= due[0] {
            lab.kill(2);
            step = 1;
        } else if step == 1 && elapsed >= due[1] {
            lab.world.start(2, true);
            step = 2;
        }
    });
    assert_eq!(step, 2);
    stream.assert_whole(&lab, "restart of a transit");
    assert_eq!(
        signalled(&lab),
        before,
        "the LSP did not have to be made again\n{}",
        lab.logs()
    );
    assert!(Lab::converged(&lab.world), "{}", lab.logs());
    // Both neighbours and the restarted node agree on new keys again.
    let epoch = |lab: &Lab| {
        lab.world.hosts[2]
            .node
            .as_ref()
            .unwrap()
            .links(lab.world.now)[0]
            .epoch
    };
    let now = epoch(&lab);
    lab.wait(200, "rekey after a resume", |world| {
        world.hosts[2].node.as_ref().unwrap().links(world.now)[0].epoch > now
    });
}

/// The daemon stays away longer than the graceful time: its neighbours let go of the links.
#[test]
fn a_silent_control_plane_is_not_kept_for_ever() {
    let mut lab = Lab::chain(3, 3, |_, config| {
        config.timers.graceful_restart = Micros::from_secs(20)
    });
    lab.start();
    lab.converge();
    lab.kill(1);
    let links = |world: &weft_core::sim::world::World| {
        world.hosts[0].node.as_ref().unwrap().links(world.now).len()
    };
    lab.world.run_ms(15_000);
    assert_eq!(links(&lab.world), 2);
    lab.wait(30, "the link is closed", |world| links(world) == 0);
    lab.world.start(1, true);
    lab.wait(60, "the link is back", Lab::converged);
}

/// An endpoint's daemon restarts: its peer notices and the session is made again.
#[test]
fn an_endpoint_restarts() {
    let mut lab = Lab::chain(4, 4, |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    lab.kill(3);
    lab.world.run_ms(3_000);
    lab.world.start(3, true);
    lab.world.run_ms(3_000);
    lab.talk(0, 3);
    lab.stream(0, 3, 5, 20, |_, _| {})
        .assert_whole(&lab, "after the restart of the egress");
    lab.stream(3, 0, 5, 20, |_, _| {})
        .assert_whole(&lab, "and back");
}

/// 0 – 1 – 3 and 0 – 2 – 3. The path in use is cut in the middle: the standby that was there takes over.
#[test]
fn a_cut_path_heals_over_the_standby() {
    let mut lab = Lab::new(5, 4, &[(0, 1), (1, 3), (0, 2), (2, 3)], |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    lab.wait(10, "a standby", |world| {
        let lsps = world.hosts[0].node.as_ref().unwrap().lsps(world.now);
        let up = |p| {
            lsps.iter()
                .any(|l| l.protection == Some(p) && l.state == LspState::Up)
        };
        up(Protection::Primary) && up(Protection::Standby)
    });
    let middle = |lab: &Lab| {
        let lsps = lab.world.hosts[0]
            .node
            .as_ref()
            .unwrap()
            .lsps(lab.world.now);
        let primary = lsps
            .iter()
            .find(|l| l.protection == Some(Protection::Primary) && l.state == LspState::Up)
            .expect("a primary");
        lab.world.number(&primary.path[1]).unwrap()
    };
    let used = middle(&lab);
    let mut cut = false;
    let stream = lab.stream(0, 3, 2, 20, |lab, elapsed| {
        if !cut && elapsed >= Micros::from_secs(5) {
            lab.change(used, 3, |link| link.up = false);
            cut = true;
        }
    });
    assert_ne!(middle(&lab), used);
    let silence = stream.longest_silence();
    assert!(
        silence < Micros::from_millis(1_100),
        "silent for {silence:?}\n{}",
        lab.logs()
    );
    assert!(stream.lost() < 600, "{} lost", stream.lost());
    // It is whole again at the end.
    lab.stream(0, 3, 5, 5, |_, _| {})
        .assert_whole(&lab, "after the cut");
    lab.change(used, 3, |link| link.up = true);
    lab.wait(30, "the link is back", Lab::converged);
}

/// The same with the first link of the path, which the source itself sees go down.
#[test]
fn a_cut_first_link_heals() {
    let mut lab = Lab::new(6, 4, &[(0, 1), (1, 3), (0, 2), (2, 3)], |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    lab.world.run_ms(3_000);
    let lsps = lab.world.hosts[0]
        .node
        .as_ref()
        .unwrap()
        .lsps(lab.world.now);
    let primary = lsps
        .iter()
        .find(|l| l.protection == Some(Protection::Primary))
        .unwrap();
    let used = lab.world.number(&primary.path[1]).unwrap();
    let mut cut = false;
    let stream = lab.stream(0, 3, 2, 10, |lab, elapsed| {
        if !cut && elapsed >= Micros::from_secs(2) {
            lab.change(used, 0, |link| link.up = false);
            cut = true;
        }
    });
    let silence = stream.longest_silence();
    assert!(
        silence < Micros::from_millis(1_100),
        "silent for {silence:?}\n{}",
        lab.logs()
    );
}

/// Two links between the same neighbours: one dies, the group's backup carries on without signalling.
#[test]
fn parallel_links_back_each_other() {
    let mut lab = Lab::new(7, 3, &[(0, 1), (0, 1), (1, 2)], |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 2);
    let signalled =
        |lab: &Lab| lab.world.hosts[0].node.as_ref().unwrap().counters()["lsps_signalled"];
    let before = signalled(&lab);
    let mut cut = false;
    let first = lab.world.hosts[0].addresses[0].address;
    let stream = lab.stream(0, 2, 2, 10, |lab, elapsed| {
        if !cut && elapsed >= Micros::from_secs(2) {
            let mut addresses = lab.world.hosts[0].addresses.clone();
            addresses
                .iter_mut()
                .filter(|a| a.address == first)
                .for_each(|a| a.up = false);
            lab.world.set_addresses(0, addresses);
            cut = true;
        }
    });
    // The interface's going down is told: not even one packet is lost.
    stream.assert_whole(&lab, "a parallel link down");
    assert_eq!(signalled(&lab), before);
}

/// A better path appears: traffic moves to it without a loss.
#[test]
fn a_better_path_is_taken_without_loss() {
    let mut lab = Lab::new(8, 4, &[(0, 1), (1, 2), (2, 3), (0, 3)], |_, _| {});
    lab.change(0, 3, |link| link.up = false);
    lab.start();
    lab.world.run_ms(5_000);
    lab.talk(0, 3);
    let mut mended = false;
    let stream = lab.stream(0, 3, 4, 40, |lab, elapsed| {
        if !mended && elapsed >= Micros::from_secs(2) {
            lab.change(0, 3, |link| link.up = true);
            mended = true;
        }
    });
    stream.assert_whole(&lab, "make before break");
    let routes = lab.world.hosts[0]
        .node
        .as_ref()
        .unwrap()
        .routes(lab.world.now);
    let route = routes.iter().find(|r| r.node == lab.id(3)).unwrap();
    assert_eq!(route.path, vec![lab.id(0), lab.id(3)], "{}", lab.logs());
}

#[test]
fn ping_and_trace_tell_the_way() {
    let mut lab = Lab::chain(9, 5, |_, _| {});
    lab.start();
    lab.converge();
    let to = lab.id(4);
    let answers = lab.command(
        0,
        Command::Ping {
            to,
            payload_len: 1000,
        },
        10,
    );
    let [Answer::Pong { rtt, hops }] = answers[..] else {
        panic!("{answers:?}")
    };
    assert_eq!(hops, 4);
    assert!(rtt >= Micros(8_000) && rtt < Micros(20_000), "{rtt:?}");
    let answers = lab.command(0, Command::Trace { to }, 10);
    assert_eq!(answers.len(), 4, "{answers:?}");
    for (i, answer) in answers.iter().enumerate() {
        let Answer::TraceHop {
            hop,
            node,
            label,
            rtt,
            last,
            ..
        } = answer
        else {
            panic!("{answers:?}")
        };
        assert_eq!(
            (usize::from(*hop), *node, *last),
            (i + 1, lab.id(i + 1), i == 3)
        );
        assert!(rtt.0 >= 2_000 * (i as u64 + 1), "{answers:?}");
        // The label named is the one this hop has in its table.
        let lsps = lab.world.hosts[i + 1]
            .node
            .as_ref()
            .unwrap()
            .lsps(lab.world.now);
        assert!(
            lsps.iter()
                .any(|l| l.in_label == *label && l.from == Some(lab.id(i))),
            "{lsps:?}"
        );
    }
    let unknown = lab::identity(99).id();
    let answers = lab.command(
        0,
        Command::Ping {
            to: unknown,
            payload_len: 10,
        },
        10,
    );
    assert!(
        matches!(&answers[..], [Answer::Failed { reason }] if reason.contains("not known")),
        "{answers:?}"
    );
    let answers = lab.command(
        0,
        Command::Ping {
            to,
            payload_len: 60_000,
        },
        10,
    );
    assert!(
        matches!(&answers[..], [Answer::Failed { reason }] if reason.contains("at most")),
        "{answers:?}"
    );
}

/// A ping to a node that is known but cut off fails with the reason.
#[test]
fn ping_without_a_path_says_so() {
    let mut lab = Lab::chain(10, 3, |_, _| {});
    lab.start();
    lab.converge();
    lab.change(1, 2, |link| link.up = false);
    lab.world.run_ms(6_000);
    let to = lab.id(2);
    let answers = lab.command(
        0,
        Command::Ping {
            to,
            payload_len: 10,
        },
        15,
    );
    assert!(
        matches!(&answers[..], [Answer::Failed { reason }] if reason.contains("no path")),
        "{answers:?}"
    );
}

/// What a transit keeps of an LSP names its neighbours and nobody else.
#[test]
fn a_transit_knows_only_its_neighbours() {
    let mut lab = Lab::chain(11, 5, |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 4);
    let (ends, neighbours) = ([lab.id(0), lab.id(4)], [lab.id(1), lab.id(3)]);
    let node = lab.world.hosts[2].node.as_mut().unwrap();
    let transit: Vec<_> = node
        .lsps(lab.world.now)
        .into_iter()
        .filter(|l| l.role == LspRole::Transit)
        .collect();
    assert!(transit.len() >= 2, "{transit:?}");
    for lsp in &transit {
        assert!(neighbours.contains(&lsp.from.unwrap()) && neighbours.contains(&lsp.to.unwrap()));
        assert!(lsp.path.is_empty());
    }
    // All it would remember over a restart, byte by byte.
    let memory = node.snapshot();
    for id in ends {
        assert!(!memory.windows(32).any(|w| w == id.0));
    }
    assert!(
        memory.windows(32).any(|w| w == neighbours[0].0),
        "the search finds what is there"
    );
}

/// A node that says goodbye leaves nothing behind at the others.
#[test]
fn shutdown_leaves_nothing() {
    let mut lab = Lab::chain(12, 4, |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    let answers = lab.command(0, Command::Shutdown, 5);
    assert_eq!(answers, vec![Answer::Done]);
    lab.wait(5, "no LSP is left", |world| {
        (1..4).all(|n| {
            world.hosts[n]
                .node
                .as_ref()
                .unwrap()
                .lsps(world.now)
                .is_empty()
        })
    });
    lab.wait(5, "the node is forgotten", |world| {
        (1..4).all(|n| {
            let node = world.hosts[n].node.as_ref().unwrap();
            node.nodes(world.now).len() == 3 && node.sessions(world.now).is_empty()
        })
    });
}

#[test]
fn why_explains_path_and_standby() {
    let mut lab = Lab::new(13, 4, &[(0, 1), (1, 3), (0, 2), (2, 3)], |_, _| {});
    lab.change(0, 2, |link| link.delay = 30_000);
    lab.start();
    lab.converge();
    lab.world.run_ms(5_000);
    let node = lab.world.hosts[0].node.as_ref().unwrap();
    let why = node.why(lab.world.now, lab.id(3), &PathConstraints::default());
    assert_eq!(
        why.path.iter().map(|hop| hop.to).collect::<Vec<_>>(),
        vec![lab.id(1), lab.id(3)]
    );
    assert_eq!(why.standby, vec![lab.id(0), lab.id(2), lab.id(3)]);
    assert!(why.cost.is_some() && why.no_path.is_none());
    let avoid = PathConstraints {
        avoid: vec![lab.id(1), lab.id(2)],
        ..PathConstraints::default()
    };
    let why = node.why(lab.world.now, lab.id(3), &avoid);
    assert!(
        why.path.is_empty() && why.no_path.is_some() && !why.refused.is_empty(),
        "{why:?}"
    );
}

/// A→B carries, B→A does not; the way back is over a third node. The link is used in the one direction.
#[test]
fn a_one_way_link_is_opened_over_the_mesh() {
    // 0 – 2 and 2 – 1 both ways, 0 → 1 one way.
    let mut lab = Lab::new(14, 3, &[(0, 2), (2, 1), (0, 1)], |_, _| {});
    lab.change_one_way(1, 0, |link| link.up = false);
    lab.change(0, 2, |link| link.delay = 30_000);
    lab.start();
    lab.wait(60, "the one-way link is up", |world| {
        let views = world.hosts[0].node.as_ref().unwrap().nodes(world.now);
        views
            .iter()
            .any(|n| n.node == world.hosts[1].id && n.cost.is_some_and(|c| c < 200))
    });
    lab.talk(0, 1);
    lab.wait(30, "the direct path is used", |world| {
        let routes = world.hosts[0].node.as_ref().unwrap().routes(world.now);
        routes
            .iter()
            .any(|r| r.node == world.hosts[1].id && r.path.len() == 2)
    });
    lab.stream(0, 1, 5, 60, |_, _| {})
        .assert_whole(&lab, "over the one-way link");
    let sessions = lab.world.hosts[1]
        .node
        .as_ref()
        .unwrap()
        .sessions(lab.world.now);
    assert_eq!(sessions[0].state, SessionState::Up);
    // Its keys are renewed over the mesh as well.
    lab.world.run_ms(150_000);
    lab.stream(0, 1, 5, 10, |_, _| {})
        .assert_whole(&lab, "after its rekey");
}

/// Both ends call. The one nobody hears must not insist that its own call goes first.
#[test]
fn a_one_way_link_comes_up_soon_whoever_calls() {
    for seed in 200..216 {
        // Link 2 joins the two; the first of a link calls on its own, here the other does as well.
        let mut lab = Lab::new(seed, 3, &[(0, 2), (2, 1), (0, 1)], |number, config| {
            if number == 1 {
                config.peers.push("10.0.2.1:7117".parse().unwrap());
            }
        });
        lab.change_one_way(1, 0, |link| link.up = false);
        lab.start();
        lab.wait(10, "the one-way link is up", |world| {
            let node = world.hosts[0].node.as_ref().unwrap();
            node.links(world.now).iter().any(|link| {
                link.node == world.hosts[1].id
                    && link.direction == Direction::Out
                    && link.state != LinkState::Down
            })
        });
    }
}

/// The first path of a session is what was known when it began; the better one is not waited for as long as later.
#[test]
fn a_young_session_moves_to_the_better_path_at_once() {
    let mut lab = Lab::new(10, 3, &[(0, 1), (1, 2), (0, 2)], |_, _| {});
    lab.change(0, 2, |link| link.up = false);
    lab.start();
    lab.world.run_ms(1_000);
    lab.talk(0, 2);
    lab.change(0, 2, |link| link.up = true);
    lab.wait(6, "the direct path is used, the other stands by", |world| {
        let node = world.hosts[0].node.as_ref().unwrap();
        let hops_of = |wanted: Protection| {
            let lsps = node.lsps(world.now);
            let mut of = lsps
                .iter()
                .filter(|l| l.protection == Some(wanted) && l.state == LspState::Up);
            of.next().map(|l| l.path.len() - 1)
        };
        hops_of(Protection::Primary) == Some(1) && hops_of(Protection::Standby) == Some(2)
    });
}

/// LSPs of a node that lost its memory before the first refresh are nobody's: they are forgotten when their time is over.
#[test]
fn an_lsp_that_is_never_refreshed_is_forgotten() {
    let mut lab = Lab::chain(11, 4, |_, _| {});
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    let lsps = |lab: &Lab| {
        let of = |n: usize| lab.world.hosts[n].node.as_ref().unwrap();
        [1, 2, 3].map(|n| of(n).lsps(lab.world.now).len())
    };
    let before = lsps(&lab);
    // Its links are new after each start, so nothing of the old LSPs breaks.
    for _ in 0..3 {
        lab.world.stop(0, Stop::KillDaemon);
        lab.world.start(0, false);
        lab.world.run_ms(3_000);
        lab.talk(0, 3);
    }
    lab.world.run_ms(200_000);
    lab.talk(0, 3);
    let after = lsps(&lab);
    assert!(
        after
            .iter()
            .zip(before)
            .all(|(after, before)| *after <= before),
        "{after:?} LSPs pass, {before:?} at first\n{}",
        lab.logs()
    );
}

/// 0 → 1 ↔ 2 → 0, two of three one way only: every report, refresh and renewal of keys has to go round, and traffic stays whole.
#[test]
fn a_ring_of_one_way_links_carries_for_as_long_as_it_stands() {
    let rekey = Micros::from_secs(10);
    let mut lab = Lab::new(15, 3, &[(0, 2), (2, 1), (0, 1)], |_, config| {
        config.timers.link_rekey = rekey;
        config.timers.session_rekey = rekey;
    });
    lab.change_one_way(1, 0, |link| link.up = false);
    lab.start();
    lab.talk(0, 1);
    lab.world.run_ms(5_000);
    let epochs = |lab: &Lab| {
        let of = |n: usize| lab.world.hosts[n].node.as_ref().unwrap();
        let links = (0..3).flat_map(|n| of(n).links(lab.world.now));
        links.map(|link| link.epoch).min().unwrap()
    };
    // Cut: the way moves to the ring within seconds.
    lab.change_one_way(0, 2, |link| link.up = false);
    for (from, to) in [(0, 1), (1, 0)] {
        let stream = lab.stream(from, to, 5, 10, |_, _| {});
        let late = stream.sent.iter().filter(|(number, at)| {
            !stream.arrived.contains_key(number)
                && at.since(stream.sent[stream.sent.keys().next().unwrap()]) > Micros::from_secs(5)
        });
        assert_eq!(late.count(), 0, "{from} to {to}\n{}", lab.logs());
    }
    for round in 0..6 {
        let before = epochs(&lab);
        // In three of the rounds a daemon is held up after each thing it does.
        for (number, host) in lab.world.hosts.iter_mut().enumerate() {
            host.pace = Micros(if round == number + 1 { 10_000 } else { 0 });
        }
        lab.stream(0, 1, 5, 30, |_, _| {})
            .assert_whole(&lab, &format!("there, round {round}"));
        lab.stream(1, 0, 5, 30, |_, _| {})
            .assert_whole(&lab, &format!("back, round {round}"));
        assert!(
            epochs(&lab) >= before + 2,
            "keys of the ring's links are not renewed\n{}",
            lab.logs()
        );
    }
}

/// A machine on which everything runs stands still for longer than reports may take, as a virtual one does that is moved:
/// nobody takes the silence for the end of a link.
#[test]
fn a_machine_that_stood_still_loses_no_link() {
    for pause_s in [3, 4, 20] {
        let mut lab = Lab::new(15, 3, &[(0, 2), (2, 1), (0, 1)], |_, _| {});
        lab.change_one_way(1, 0, |link| link.up = false);
        lab.start();
        lab.talk(0, 1);
        lab.world.run_ms(5_000);
        lab.change_one_way(0, 2, |link| link.up = false);
        lab.world.run_ms(10_000);
        for (from, to) in [(0, 1), (1, 0)] {
            let mut stood_still = false;
            let stream = lab.stream(from, to, 5, 40, |lab, elapsed| {
                if !stood_still && elapsed >= Micros::from_secs(5) {
                    lab.world.now.0 += pause_s * 1_000_000;
                    stood_still = true;
                }
            });
            stream.assert_whole(&lab, &format!("{pause_s} s, {from} to {to}"));
        }
    }
}

/// Reports that take long, or fail to come for some seconds, are no reason to begin links anew, over and over.
#[test]
fn a_slow_ring_of_one_way_links_is_not_begun_anew() {
    for seed in 80..84 {
        let mut lab = Lab::new(seed, 3, &[(0, 2), (2, 1), (0, 1)], |_, _| {});
        for (a, b) in [(0, 2), (2, 1), (0, 1)] {
            lab.change(a, b, |link| link.delay = 150_000);
        }
        lab.change_one_way(1, 0, |link| link.up = false);
        lab.start();
        lab.talk(0, 1);
        lab.world.run_ms(5_000);
        lab.change_one_way(0, 2, |link| link.up = false);
        lab.world.run_ms(20_000);
        let established = |lab: &Lab| -> u64 {
            let of = |n: usize| lab.world.hosts[n].node.as_ref().unwrap().counters();
            let counts = (0..3).map(|n| of(n).get("links_established").copied().unwrap_or(0));
            counts.sum()
        };
        for _ in 0..5 {
            let before = established(&lab);
            lab.change_one_way(1, 2, |link| link.up = false);
            lab.world.run_ms(5_000);
            lab.change_one_way(1, 2, |link| link.up = true);
            lab.world.run_ms(15_000);
            let new = established(&lab) - before;
            assert!(
                new <= 6,
                "seed {seed}: {new} links were begun\n{}",
                lab.logs()
            );
        }
        lab.talk(0, 1);
        lab.world.run_ms(3_000);
        lab.stream(0, 1, 5, 20, |_, _| {})
            .assert_whole(&lab, &format!("seed {seed}"));
    }
}

/// The whole ring falls silent until every link of it counts as down. Each report has to go over links that wait for
/// reports themselves; the ring comes back all the same.
#[test]
fn a_ring_of_one_way_links_comes_back_after_an_outage() {
    let ring = [(0, 1), (1, 2), (2, 0)];
    for seed in 60..68 {
        let mut lab = Lab::new(seed, 3, &[(0, 2), (2, 1), (0, 1)], |_, _| {});
        lab.change_one_way(1, 0, |link| link.up = false);
        lab.start();
        lab.talk(0, 1);
        lab.world.run_ms(5_000);
        for (from, to) in [(0, 2), (2, 1)] {
            lab.change_one_way(from, to, |link| link.up = false);
        }
        lab.world.run_ms(10_000);
        for (from, to) in ring {
            lab.change_one_way(from, to, |link| link.up = false);
        }
        lab.world.run_ms(4_000 + 700 * (seed - 60));
        for (from, to) in ring {
            lab.change_one_way(from, to, |link| link.up = true);
        }
        lab.world.run_ms(20_000);
        lab.stream(0, 1, 5, 10, |_, _| {})
            .assert_whole(&lab, &format!("there, seed {seed}"));
        lab.stream(1, 0, 5, 10, |_, _| {})
            .assert_whole(&lab, &format!("back, seed {seed}"));
    }
}

/// A first hop sees the packets of an LSP with any of many TTLs, so a later one cannot count hops; traces go on working,
/// and the messages of a session look as its traffic does.
#[test]
fn every_lsp_begins_with_a_ttl_of_its_own() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 70..78 {
        let mut lab = Lab::chain(seed, 4, |_, _| {});
        lab.start();
        lab.converge();
        for to in 1..4 {
            lab.talk(0, to);
            let (_, session) = lab.world.hosts[0].sessions.with(&lab.id(to)).unwrap();
            let ttl = session.ingress.unwrap().ttl;
            assert!((64..=160).contains(&ttl), "{ttl}");
            seen.insert(ttl);
        }
        let trace = Command::Trace { to: lab.id(3) };
        let answers = lab.command(0, trace, 10);
        let hops: Vec<_> = answers
            .iter()
            .map(|answer| match answer {
                Answer::TraceHop { node, .. } => *node,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(hops, [lab.id(1), lab.id(2), lab.id(3)]);
    }
    // 24 draws from 97: two or three alike are likely, ten are not.
    assert!(seen.len() > 14, "{seen:?}");
}

/// A neighbour that left properly and comes back is found again within seconds, whoever of the two calls.
#[test]
fn a_neighbour_that_left_and_returns_is_called_soon() {
    for (seed, both) in (40..64).zip([false, true].into_iter().cycle()) {
        let mut lab = Lab::chain(seed, 2, |number, config| {
            if number == 1 && both {
                config.peers.push("10.0.0.1:7117".parse().unwrap());
            }
        });
        lab.start();
        lab.converge();
        assert_eq!(lab.command(1, Command::Shutdown, 5), vec![Answer::Done]);
        lab.world.stop(1, Stop::PowerOff);
        // Long enough for the back-off to have grown, and at another point of it each time.
        lab.world.run_ms(20_000 + seed * 337);
        lab.world.start(1, false);
        let took = lab.wait(60, "the link to be back", Lab::converged);
        let limit = Micros::from_millis(if both { 2_500 } else { 7_000 });
        assert!(
            took < limit,
            "seed {seed}, both {both}: {took:?}\n{}",
            lab.logs()
        );
    }
}

/// Both ends begin a session in the same instant: there is one, and both can talk.
#[test]
fn sessions_begun_at_once_become_one() {
    for seed in 20..26 {
        let mut lab = Lab::chain(seed, 4, |_, _| {});
        lab.start();
        lab.converge();
        let (a, b) = (lab.world.hosts[0].overlay, lab.world.hosts[3].overlay);
        lab.world.send(0, b);
        lab.world.send(3, a);
        lab.talk(0, 3);
        lab.world.run_ms(3_000);
        lab.stream(0, 3, 5, 5, |_, _| {})
            .assert_whole(&lab, "there");
        lab.stream(3, 0, 5, 5, |_, _| {}).assert_whole(&lab, "back");
        for end in [0, 3] {
            let sessions = lab.world.hosts[end]
                .node
                .as_ref()
                .unwrap()
                .sessions(lab.world.now);
            assert_eq!(sessions.len(), 1, "{sessions:?}");
        }
    }
}

/// Keys that are renewed do not keep a session nobody uses.
#[test]
fn an_idle_session_is_closed_with_its_paths() {
    let mut lab = Lab::chain(30, 3, |_, config| {
        config.timers.session_rekey = Micros::from_secs(5);
        config.timers.session_idle = Micros::from_secs(30);
    });
    lab.start();
    lab.converge();
    lab.talk(0, 2);
    lab.world.run_ms(20_000);
    let sessions = |lab: &Lab, n: usize| {
        lab.world.hosts[n]
            .node
            .as_ref()
            .unwrap()
            .sessions(lab.world.now)
    };
    assert_eq!(sessions(&lab, 0).len(), 1);
    assert!(sessions(&lab, 0)[0].epoch > 2, "{:?}", sessions(&lab, 0));
    lab.world.run_ms(20_000);
    for n in 0..3 {
        assert!(sessions(&lab, n).is_empty(), "{}", lab.logs());
        assert!(
            lab.world.hosts[n]
                .node
                .as_ref()
                .unwrap()
                .lsps(lab.world.now)
                .is_empty()
        );
    }
    lab.talk(0, 2);
}

/// What fits inside follows from the smallest link and the headers.
#[test]
fn the_inner_mtu_fits_every_link() {
    let mut lab = Lab::chain(31, 4, |_, _| {});
    let mut addresses = lab.world.hosts[2].addresses.clone();
    addresses.iter_mut().for_each(|a| a.mtu = 1400);
    lab.world.set_addresses(2, addresses);
    lab.start();
    lab.converge();
    lab.talk(0, 3);
    let mtu = lab.world.hosts[0]
        .node
        .as_ref()
        .unwrap()
        .sessions(lab.world.now)[0]
        .inner_mtu;
    // 1400 in the middle, 20 and 8 of the underlay, 28 of headers, 16 of the AEAD.
    assert_eq!(mtu, Some(1328));
}
