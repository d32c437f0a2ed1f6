//! Speed of parsing and of the coin-set commitment, on one core:
//! `cargo bench -p weft-chain --bench speed`.

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use weft_chain::hash::sha256;
use weft_chain::{Block, MuBatch, MuHash3072, OutPoint, chains};

/// Seconds this thread has had a processor, so that a busy machine does not change the result.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ')
        .next()
        .and_then(|ns| ns.parse::<f64>().ok())
        .expect("nanoseconds")
        / 1e9
}

/// Runs `work` for about a second and gives runs per second of processor time.
fn rate(mut work: impl FnMut()) -> f64 {
    work();
    let (wall, start) = (Instant::now(), processor_time());
    let mut runs = 0u32;
    while wall.elapsed().as_millis() < 1000 {
        work();
        runs += 1;
    }
    f64::from(runs) / (processor_time() - start)
}

fn main() {
    const COINS: u32 = 20_000;
    let script = [&[0u8, 20][..], &[7; 20]].concat();
    let batch = |insert: bool| {
        let mut batch = MuBatch::new();
        for vout in 0..COINS {
            let at = OutPoint {
                txid: [vout as u8; 32],
                vout,
            };
            if insert {
                batch.insert_coin(&at, 1_600_000, 123_456, &script);
            } else {
                batch.remove_coin(&at, 1_600_000, 123_456, &script);
            }
        }
        black_box(batch.finish());
    };
    println!(
        "muhash_batch_coins_per_s {:.0}",
        rate(|| batch(true)) * f64::from(COINS)
    );
    println!(
        "muhash_batch_removals_per_s {:.0}",
        rate(|| batch(false)) * f64::from(COINS)
    );
    let mut one = MuHash3072::new();
    println!(
        "muhash_single_coins_per_s {:.0}",
        rate(|| one.insert(black_box(&script)))
    );
    one.remove(&script);
    println!(
        "muhash_finalize_per_s {:.0}",
        rate(|| _ = black_box(one.finalize()))
    );
    println!(
        "sha256_of_72_bytes_per_s {:.0}",
        rate(|| (0..1000).for_each(|i| _ = black_box(sha256(&[i as u8; 72])))) * 1000.0
    );
    let litecoin = chains::by_name("litecoin").expect("known");
    println!(
        "scrypt_headers_per_s {:.0}",
        rate(|| _ = black_box(litecoin.pow_hash(&[1; 80])))
    );

    let root = std::env::var_os("WEFT_TEST_DATA").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"),
        PathBuf::from,
    );
    let bitcoin = chains::by_name("bitcoin").expect("known");
    for name in ["block413567.raw", "block928816.raw"] {
        let Ok(raw) = std::fs::read(root.join("blocks").join(name)) else {
            println!("SKIPPED {name}: not in {}", root.display());
            continue;
        };
        let mb = raw.len() as f64 / 1e6;
        println!(
            "parse_mb_per_s {name} {:.0}",
            mb * rate(|| _ = black_box(Block::parse(bitcoin, raw.clone()).expect("valid")))
        );
        println!(
            "parse_checked_mb_per_s {name} {:.0}",
            mb * rate(|| _ = black_box(Block::parse_checked(bitcoin, raw.clone()).expect("valid")))
        );
    }
}
