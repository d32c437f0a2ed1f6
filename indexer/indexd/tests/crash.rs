//! Killed at random moments while it catches up, follows, reorganises and compacts, the service
//! goes on and ends with the right commitment. `WEFT_CRASH_ROUNDS` says how often (default 12).

mod common;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use common::{Bench, Grower};
use rand::Rng;

const NETWORK: &str = "bitcoin-regtest";

fn rounds() -> usize {
    std::env::var("WEFT_CRASH_ROUNDS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(12)
}

#[test]
fn killed_at_random_moments() {
    let bench = Bench::new(NETWORK, "batch_blocks = 60");
    let mut grower = Grower::new(&bench.blocks(NETWORK), 77);
    let blocks = grower.grow(0, 600);
    grower.append(&blocks);
    let mut seen = Vec::new();
    for round in 0..rounds() {
        let mut child = if round % 5 == 4 {
            bench
                .command(&["compact"])
                .stdout(Stdio::null())
                .spawn()
                .unwrap()
        } else {
            let mut child = bench
                .command(&["run"])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            // Some are killed while they start; for the others time counts from when work begins.
            let log = BufReader::new(child.stderr.take().unwrap());
            let (working, begun) = channel();
            std::thread::spawn(move || {
                for line in log.lines().map_while(Result::ok) {
                    if line.contains("blocks come from here") {
                        let _ = working.send(());
                    }
                }
            });
            if round % 5 != 3 {
                begun
                    .recv_timeout(Duration::from_secs(60))
                    .expect("it starts");
            }
            child
        };
        // The moment is drawn; what happens around it is what it happens to hit.
        let end = Instant::now() + Duration::from_millis(grower.rng.random_range(1..700));
        while Instant::now() < end {
            let blocks = match grower.rng.random_range(0..6) {
                0 => {
                    let deep = grower.rng.random_range(1..120);
                    grower.grow(deep, deep + 1)
                }
                1 => {
                    let many = grower.rng.random_range(2..30);
                    grower.grow(0, many)
                }
                _ => grower.grow(0, 1),
            };
            grower.append(&blocks);
            std::thread::sleep(Duration::from_millis(grower.rng.random_range(5..120)));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // It opens, as it is; before the first batch there is no database yet.
        let status = bench.output(&["status"]);
        if status.status.success() {
            let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
            seen.push(status["tip"]["height"].as_u64().unwrap_or(0));
        }
        if round % 4 == 3 {
            let output = bench.output(&["verify", "--offline"]);
            let said = String::from_utf8_lossy(&output.stderr);
            // Killed before the first batch there is nothing to verify yet.
            assert!(
                output.status.success()
                    || said.contains("no block has been applied")
                    || said.contains("it is empty"),
                "round {round}: {said}"
            );
        }
    }
    println!(
        "killed {} times, with these heights on disk: {seen:?}",
        rounds()
    );
    seen.sort_unstable();
    seen.dedup();
    assert!(
        rounds() < 12 || seen.len() >= 6,
        "it was never killed while it was at work"
    );
    bench.run(&["run", "--once"]);
    let status = bench.json(&["status"]);
    assert_eq!(status["tip"]["height"], grower.height());
    assert_eq!(
        status["tip"]["hash"],
        weft_chain::hash::hex(&grower.best.last().unwrap().0)
    );
    assert_eq!(
        status["tip"]["muhash"],
        grower.muhash(&bench.blocks(NETWORK))
    );
    bench.run(&["verify", "--offline"]);
}

#[test]
fn stopped_by_sigterm_at_random_moments() {
    let bench = Bench::new(NETWORK, "batch_blocks = 40");
    let mut grower = Grower::new(&bench.blocks(NETWORK), 78);
    for _ in 0..rounds().min(12) / 2 {
        let many = grower.rng.random_range(1..300);
        let back = grower.rng.random_range(0..20);
        let blocks = grower.grow(back, back + many);
        grower.append(&blocks);
        let mut child = bench.start();
        std::thread::sleep(Duration::from_millis(grower.rng.random_range(30..400)));
        // SAFETY: a signal to a child that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGTERM) }, 0);
        let deadline = Instant::now() + Duration::from_secs(20);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(5));
        };
        // A signal before the handler is there ends it at once.
        use std::os::unix::process::ExitStatusExt;
        assert!(
            status.success() || status.signal() == Some(libc::SIGTERM),
            "{status}"
        );
    }
    bench.run(&["run", "--once"]);
    assert_eq!(
        bench.json(&["status"])["tip"]["muhash"],
        grower.muhash(&bench.blocks(NETWORK))
    );
    bench.run(&["verify", "--offline"]);
}
