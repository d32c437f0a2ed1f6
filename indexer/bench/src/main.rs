//! Measures the coin index.
mod generate;

use std::path::Path;
use std::time::Instant;
use weft_chain::blockfile::{FileKind, records};
use weft_chain::{Block, chains};
use weft_indexd::ordered::Ordered;
use weft_store::{Durability, Options, Store};

fn cpu() -> f64 {
    // SAFETY: an all-zero rusage is valid, and the call fills it.
    let usage = unsafe {
        let mut u = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut u);
        u
    };
    let s = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    s(usage.ru_utime) + s(usage.ru_stime)
}

fn rss() -> i64 {
    // SAFETY: as above.
    unsafe {
        let mut u = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut u);
        u.ru_maxrss / 1024
    }
}

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().collect();
    let folder = Path::new(&args[2]);
    if args[1] == "generate" {
        let mut last = 0;
        let started = Instant::now();
        let d = generate::generate(folder, args[3].parse()?, 1, |n| {
            if n - last > 100_000_000 {
                last = n;
                eprintln!("{} MB", n / 1_000_000);
            }
        })?;
        println!("{d:#?} {:?}", started.elapsed());
        return Ok(());
    }
    let limit: u64 = args[4].parse()?;
    let chain = chains::by_name("bitcoin-regtest").unwrap();
    let options = Options { commitment: args.get(5).is_none(), ..Options::default() };
    let mut store = Store::open(Path::new(&args[3]), chain.params().genesis_hash(), options)?;
    store.set_target(1987);
    let preparer = store.preparer();
    let started = Instant::now();
    let mut map = Ordered::start(2, 16, move |(raw, height): (Vec<u8>, u32)| {
        let block = Block::parse(chain, raw).unwrap();
        block.check_merkle().unwrap();
        preparer.prepare(chain, &block, height).unwrap()
    })?;
    let (mut total, mut height) = (0u64, 0);
    let (mut t_apply, mut t_commit, mut t_wait) = (0.0, 0.0, 0.0);
    let mut step = |map: &mut Ordered<_, weft_store::Prepared>, store: &mut Store| {
        let t = Instant::now();
        let Some(p) = map.pop() else { return false };
        t_wait += t.elapsed().as_secs_f64();
        let t = Instant::now();
        store.apply(p.unwrap()).unwrap();
        t_apply += t.elapsed().as_secs_f64();
        if store.full() {
            let t = Instant::now();
            store.commit(Durability::Files).unwrap();
            t_commit += t.elapsed().as_secs_f64();
            eprintln!("{:?} {:?} rss {} cpu {:.1} {:.1}s", store.tip().unwrap().height, store.memory(), rss(), cpu(), started.elapsed().as_secs_f64());
        }
        true
    };
    'all: for n in 0.. {
        let Ok(bytes) = std::fs::read(folder.join(format!("blk{n:05}.dat"))) else { break };
        for (_, raw) in records(&chain.params().magic, FileKind::Blocks, &bytes) {
            if map.is_full() {
                step(&mut map, &mut store);
            }
            total += raw.len() as u64;
            map.push((raw.to_vec(), height))?;
            height += 1;
            if total > limit {
                break 'all;
            }
        }
    }
    while step(&mut map, &mut store) {}
    let t = Instant::now();
    store.commit(Durability::Files)?;
    t_commit += t.elapsed().as_secs_f64();
    let c = cpu();
    println!("{total} bytes {:.1}s cpu {c:.1}s: {:.1} MB/s/core; wait {t_wait:.1} apply {t_apply:.1} commit {t_commit:.1} rss {}", started.elapsed().as_secs_f64(), total as f64 / 1e6 / c, rss());
    let reader = store.reader();
    let show = |r: &weft_store::Reader| {
        let mut sum = 0;
        for (f, n) in r.sizes() {
            sum += n;
            println!("{:12} {:>12} {:.2}%", f.name(), n, n as f64 * 100.0 / total as f64);
        }
        println!("sum {sum} {:.2}% pending {}", sum as f64 * 100.0 / total as f64, r.pending_compaction());
    };
    show(&reader);
    store.compact(|_| ())?;
    show(&reader);
    println!("cpu after compaction {:.1}", cpu());
    println!("{:?} {:.1}s", reader.verify(2, |_| ())?, started.elapsed().as_secs_f64());
    Ok(())
}
