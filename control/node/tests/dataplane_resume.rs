//! Transit goes on without the daemon: pins, taking over, replacing the program under load without a lost packet,
//! undoing all of it. And what the verifier had to look at stays within a budget.

mod dataplane_support;

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use dataplane_support::{
    load::{Programs, Template, ifindex, in_namespace, veth},
    *,
};
use weft_abi::{Label, LabelEntry, LfibEntry, NextHopIndex, Slot, Verdict};
use weft_core::io::{DataplaneOp, ForwardMode};
use weft_node::dataplane::{self, Dataplane, Egress};

/// Instructions the verifier may have to look at; a million is the kernel's limit.
const VERIFIER_BUDGET: u32 = 60_000;

macro_rules! needs_bpf {
    () => {
        if let Err(error) = dataplane::probe() {
            skip!("{error}");
        }
    };
}

fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// gen0 - rx0 (switched here) tx0 - sink0
fn wires() {
    veth(("gen0", mac(1)), ("rx0", mac(2)));
    veth(("tx0", mac(3)), ("sink0", mac(4)));
}

/// Sends towards rx0 what a neighbour of slot 1 would.
fn template(label: u32) -> Template {
    let stack = [LabelEntry::new(Label(label), 0, true, 64)];
    let payload = Datagram::labelled(SLOT_V4, 0, 0, &stack, &[0; 8]).bytes(slot_key(SLOT_V4));
    let frame = Underlay::incoming(false).frame(&payload);
    let mut head = [0; 96];
    head[..70].copy_from_slice(&frame[..70]);
    Template {
        key: slot_key(SLOT_V4).words(),
        seq: 0,
        ifindex: ifindex("gen0"),
        family: 4,
        payload_len: 28,
        lane_bits: 2,
        spread: 0,
        reserved: 0,
        head,
    }
}

/// The tables, with the next hop of label 16 leading to the sink.
fn switch_to_sink(plane: &mut Dataplane) {
    for op in operations() {
        plane.apply(&op).expect("the operation fits the tables");
    }
    plane
        .set_local_addresses(&[ip(LOCAL_V4), ip(LOCAL_V6)])
        .expect("the addresses fit");
    let egress = Egress {
        ifindex: ifindex("tx0"),
        source_mac: mac(3),
        destination_mac: mac(4),
        mtu: 1500,
    };
    plane
        .set_egress(NextHopIndex(HOP_V4), Some(egress))
        .expect("a next hop in use");
}

fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(
            Instant::now() < deadline,
            "{what} did not happen within 10 s"
        );
        thread::yield_now();
    }
}

#[test]
fn daemon_restarts_lose_no_packet() {
    needs_bpf!();
    in_namespace(|| {
        wires();
        let config = config("restart");
        let (mut plane, resumed) = Dataplane::open_kernel(&config).expect("a plane");
        assert!(!resumed.tables && resumed.attached.is_empty());
        for name in ["rx0", "tx0"] {
            let report = plane.attach(name, ifindex(name));
            assert_eq!(report.mode, ForwardMode::KernelNative, "{report:?}");
        }
        switch_to_sink(&mut plane);

        let mut programs = Programs::load();
        let _sink = programs.attach("sink", ifindex("sink0"));
        let from = ifindex("gen0");
        programs.set_template(&template(SWAP_V4));

        let done = &AtomicBool::new(false);
        let (plane, programs, restarts) = thread::scope(|scope| {
            let mut programs = programs;
            let mut plane = plane;
            // The namespace is this thread's, and its children's.
            let load = scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    programs.generate(20_000, 70, from);
                }
                programs
            });
            let mut restarts = 0;
            let until = Instant::now() + Duration::from_secs(3);
            while restarts < 10 || Instant::now() < until {
                // Killed: nothing is released, only pins are left.
                drop(plane);
                let (next, resumed) = Dataplane::open_kernel(&config).expect("a plane");
                assert!(resumed.tables, "{resumed:?}");
                assert_eq!(resumed.attached.len(), 2, "{resumed:?}");
                plane = next;
                // The core describes what it remembers; nothing of it may disturb what flows.
                switch_to_sink(&mut plane);
                plane.apply(&DataplaneOp::Restored).expect("restored");
                restarts += 1;
            }
            done.store(true, Ordering::Release);
            (plane, load.join().expect("the load"), restarts)
        });
        let mut programs = programs;
        let generated = programs.generated();
        wait_for("the last packet's arrival", || programs.sunk() >= generated);
        assert_eq!(programs.sunk(), generated, "a packet was lost");
        let counters = plane.counters();
        assert_eq!(counters.kernel.verdicts[Verdict::Swap as usize], generated);
        assert_eq!(counters.user.verdicts[Verdict::Swap as usize], 0);
        assert_eq!(plane.label_counters(Label(SWAP_V4)).packets, generated);
        let received = plane.slot_counters(Slot(SLOT_V4));
        assert_eq!(received.received, generated);
        // Four lanes, each of which counts from 1; the first of all packets was not on the first lane.
        assert!(received.highest_seq_sum - generated < 4, "{received:?}");
        println!("{generated} packets and {restarts} restarts, none lost");

        plane.release(false).expect("everything is removed");
        assert!(!config.pin_dir.exists());
        let before = programs.sunk();
        programs.generate(1000, 70, from);
        assert_eq!(programs.sunk(), before, "nothing is switched any more");
    })
    .expect("a namespace of its own");
}

#[test]
fn a_changed_egress_is_never_torn() {
    needs_bpf!();
    in_namespace(|| {
        wires();
        let config = config("egress");
        let (mut plane, _) = Dataplane::open_kernel(&config).expect("a plane");
        for name in ["rx0", "tx0"] {
            plane.attach(name, ifindex(name));
        }
        switch_to_sink(&mut plane);
        let mut programs = Programs::load();
        let _sink = programs.attach("sink", ifindex("sink0"));
        let from = ifindex("gen0");
        programs.set_template(&template(SWAP_V4));
        let done = &AtomicBool::new(false);
        let shared = plane.shared();
        let programs = thread::scope(|scope| {
            let mut programs = programs;
            let load = scope.spawn(move || {
                while !done.load(Ordering::Acquire) {
                    programs.generate(20_000, 70, from);
                }
                programs
            });
            // Readers in user space see one or the other, whole.
            let reader = scope.spawn(|| {
                let mut seen = 0u64;
                while !done.load(Ordering::Acquire) {
                    let (_, _, mtu) = shared
                        .endpoints(NextHopIndex(HOP_V4))
                        .expect("always in use");
                    assert!(mtu == 1500 || mtu == 1400, "{mtu}");
                    seen += 1;
                }
                seen
            });
            let tx0 = ifindex("tx0");
            for round in 0..150u16 {
                let egress = Egress {
                    ifindex: tx0,
                    source_mac: mac(3),
                    destination_mac: mac(4),
                    mtu: if round % 2 == 0 { 1400 } else { 1500 },
                };
                plane
                    .set_egress(NextHopIndex(HOP_V4), Some(egress))
                    .expect("a next hop in use");
                // As the daemon does: a change that came too soon is made when it is due.
                while let Some(due) = plane.due() {
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                    plane.tend().expect("a next hop in use");
                }
            }
            done.store(true, Ordering::Release);
            assert!(reader.join().expect("the reader") > 0);
            load.join().expect("the load")
        });
        let generated = programs.generated();
        wait_for("the last packet's arrival", || programs.sunk() >= generated);
        assert_eq!(programs.sunk(), generated);
        plane.release(false).expect("everything is removed");
    })
    .expect("a namespace of its own");
}

#[test]
fn an_interface_that_vanishes_is_forgotten() {
    needs_bpf!();
    in_namespace(|| {
        wires();
        let config = config("vanish");
        let (mut plane, _) = Dataplane::open_kernel(&config).expect("a plane");
        plane.attach("rx0", ifindex("rx0"));
        plane.attach("tx0", ifindex("tx0"));
        drop(plane);
        load::ip("link del rx0");
        let (mut plane, resumed) = Dataplane::open_kernel(&config).expect("a plane");
        let tx0 = ifindex("tx0");
        assert_eq!(
            resumed
                .attached
                .iter()
                .map(|report| report.ifindex)
                .collect::<Vec<_>>(),
            [tx0]
        );
        let report = plane.attach("rx0", 4_000_000);
        assert_eq!(report.mode, ForwardMode::UserSpace);
        assert!(report.reason.expect("a reason").contains("rx0"));
        plane.detach(tx0).expect("attached");
        assert!(plane.attached().is_empty());
        plane.release(false).expect("everything is removed");
    })
    .expect("a namespace of its own");
}

#[test]
fn other_sizes_start_afresh() {
    needs_bpf!();
    let mut config = config("sizes");
    let (mut plane, _) = Dataplane::open_kernel(&config).expect("a plane");
    fill(&mut plane);
    drop(plane);
    config.max_labels *= 2;
    let (plane, resumed) = Dataplane::open_kernel(&config).expect("a plane");
    assert!(!resumed.tables);
    let why = resumed.discarded.expect("a reason");
    assert!(why.contains("size"), "{why}");
    assert_eq!(
        plane.shared().dump()[1]
            .1
            .iter()
            .filter(|word| **word != 0)
            .count(),
        0
    );
    plane.release(false).expect("everything is removed");
}

#[test]
fn describing_the_same_again_resets_nothing() {
    let mut plane = Dataplane::open_user(&config("again")).expect("a user-space plane");
    fill(&mut plane);
    let shared = plane.shared();
    let seen = |seq| {
        let stack = [LabelEntry::new(Label(DELIVER), 0, true, 64)];
        let mut bytes =
            Datagram::labelled(SLOT_V4, 0, seq, &stack, &[0; 24]).bytes(slot_key(SLOT_V4));
        shared.receive(&mut bytes, ForwardMode::UserSpace)
    };
    assert!(matches!(seen(5), dataplane::Received::Deliver { .. }));
    let mut datagram = [0; 40];
    shared
        .stamp(
            NextHopIndex(HOP_V4),
            0,
            weft_abi::Kind::Control,
            &mut datagram,
        )
        .expect("a next hop");
    let before = shared.dump();
    for op in operations() {
        plane.apply(&op).expect("the operation fits the tables");
    }
    plane.apply(&DataplaneOp::Restored).expect("restored");
    for ((name, before), (_, after)) in before.iter().zip(shared.dump()) {
        // The fixture marks a next hop up that it never adds; that mark alone goes.
        let same = |i: &usize| {
            before[*i] == after[*i] || (*name == "next_hop_up" && *i == HOP_MISSING as usize)
        };
        assert!((0..before.len()).all(|i| same(&i)), "table {name} changed");
    }
    assert_eq!(
        seen(5),
        dataplane::Received::Dropped(weft_abi::DropReason::Replay)
    );

    // Another key is another link.
    let op = DataplaneOp::AddSlot {
        slot: Slot(SLOT_V4),
        key: slot_key(99),
        path: path(false),
        echo: None,
    };
    plane.apply(&op).expect("the operation fits the tables");
    assert_eq!(plane.slot_counters(Slot(SLOT_V4)).received, 0);
}

#[test]
fn what_is_not_described_after_a_restart_is_removed() {
    needs_bpf!();
    let config = config("forget");
    let (mut plane, _) = Dataplane::open_kernel(&config).expect("a plane");
    fill(&mut plane);
    drop(plane);
    let (mut plane, resumed) = Dataplane::open_kernel(&config).expect("a plane");
    assert!(resumed.tables);
    let kept = DataplaneOp::SetLabel {
        label: Label(DELIVER),
        entry: LfibEntry::DELIVER,
    };
    plane.apply(&kept).expect("the operation fits the tables");
    plane.apply(&DataplaneOp::Restored).expect("restored");
    for (name, words) in plane.shared().dump() {
        let used: Vec<usize> = (0..words.len()).filter(|i| words[*i] != 0).collect();
        match name {
            "lfib" => assert_eq!(used, [DELIVER as usize]),
            "nh_groups" | "next_hop_up" => assert_eq!(used, [0usize; 0], "{name}"),
            _ => {}
        }
    }
    assert!(plane.shared().endpoints(NextHopIndex(HOP_V4)).is_none());
    plane.release(false).expect("everything is removed");
}

#[test]
fn verifier_stays_within_its_budget() {
    needs_bpf!();
    let config = config("verifier");
    let (mut plane, _) = Dataplane::open_kernel(&config).expect("a plane");
    let info = plane
        .program()
        .expect("a loaded program")
        .info()
        .expect("its description");
    let insns = info
        .verified_instruction_count()
        .expect("a kernel that counts");
    println!("verified instructions: {insns} of {VERIFIER_BUDGET}");
    assert!(
        insns > 0 && insns <= VERIFIER_BUDGET,
        "{insns} instructions, the budget is {VERIFIER_BUDGET}"
    );
    plane.release(false).expect("everything is removed");
}

#[test]
fn a_wrong_pin_folder_is_refused_by_name() {
    needs_bpf!();
    let folder = std::env::temp_dir().join(format!("wfdp-nobpffs-{}", std::process::id()));
    let config = dataplane::Config {
        pin_dir: folder.clone(),
        ..config("folder")
    };
    let Err(error) = Dataplane::open_kernel(&config) else {
        panic!("{} is no bpffs", folder.display());
    };
    let text = error.to_string();
    assert!(
        text.contains("bpffs") && text.contains("mount -t bpf"),
        "{text}"
    );
    assert!(!folder.exists());
}
