//! The measurements.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weft_chain::{Chain, Hash, chains, hash};
use weft_forge::{block, coinbase};
use weft_indexd::follow::{Event, Follower, Round};
use weft_source::Source;
use weft_source::files::Files;
use weft_store::{Options, Reader, Store, TxNum};

use crate::generate::{CROWD, Description, blocks_dir, crowd_dir};

/// Time for the queries of one kind.
const QUERY_TIME: Duration = Duration::from_secs(2);
/// Queries of one kind at most, for the slow ones.
const MAX_QUERIES: usize = 20_000;

/// What catching up took.
#[derive(Debug, Serialize, Deserialize)]
struct CatchUp {
    bytes: u64,
    seconds: f64,
    /// Processor time of all threads, compaction among them.
    cpu_seconds: f64,
    peak_rss_mb: f64,
    height: u32,
}

fn network() -> Result<&'static dyn Chain> {
    chains::by_name("bitcoin-regtest").context("the regtest network")
}

fn follower(chain_dir: &Path, database: &Path, options: &Options) -> Result<Follower> {
    let chain = network()?;
    let store = Store::open(database, chain.params().genesis_hash(), options.clone())?;
    let source: Arc<dyn Source> = Arc::new(Files::open(&blocks_dir(chain_dir), chain)?);
    Ok(Follower::new(
        store,
        source,
        options,
        Arc::new(AtomicBool::new(false)),
    )?)
}

/// Rounds until the source's tip; bytes of the blocks.
fn to_the_tip(follower: &mut Follower) -> Result<u64> {
    let mut bytes = 0;
    loop {
        let round = follower.round(&mut |event| {
            if let Event::Progress { bytes: n, .. } = event {
                bytes += n;
            }
        })?;
        if round == Round::AtTip {
            return Ok(bytes);
        }
    }
}

/// The process that catches up.
pub(crate) fn catch_up_and_tell(chain: &Path, database: &Path, bare: bool) -> Result<()> {
    let started = Instant::now();
    let options = Options {
        commitment: !bare,
        ..Options::default()
    };
    let mut follower = follower(chain, database, &options)?;
    let bytes = to_the_tip(&mut follower)?;
    follower.store().settled();
    let seconds = started.elapsed().as_secs_f64();
    let height = follower.store().tip().context("a tip")?.height;
    // Closing waits for nothing that the figures should not have.
    drop(follower);
    let (cpu_seconds, peak_rss_mb) = usage();
    println!(
        "{}",
        serde_json::to_string(&CatchUp {
            bytes,
            seconds,
            cpu_seconds,
            peak_rss_mb,
            height
        })?
    );
    Ok(())
}

/// Processor time of this process, and the most memory it had, megabytes.
fn usage() -> (f64, f64) {
    // SAFETY: rusage is plain numbers, for which zero is a value, and the call only fills it.
    let usage = unsafe {
        let mut usage = std::mem::zeroed::<libc::rusage>();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    (
        seconds(usage.ru_utime) + seconds(usage.ru_stime),
        usage.ru_maxrss as f64 * 1024.0 / 1e6,
    )
}

fn catch_up(dir: &Path, database: &Path, bare: bool) -> Result<CatchUp> {
    if database.exists() {
        fs::remove_dir_all(database)?;
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("catch-up").arg(dir.join("chain")).arg(database);
    if bare {
        command.arg("--bare");
    }
    let output = command.stderr(std::process::Stdio::inherit()).output()?;
    ensure!(
        output.status.success(),
        "catching up failed: {}",
        output.status
    );
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Bytes of all files below a folder.
fn folder_bytes(folder: &Path) -> Result<u64> {
    let mut sum = 0;
    for entry in fs::read_dir(folder)? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// Everything, in the names the project reports under.
pub(crate) fn everything(dir: &Path, description: &Description) -> Result<Value> {
    let mut out = Map::new();
    let chain_dir = dir.join("chain");
    // A run before this one may have left the crowd among the blocks.
    for entry in fs::read_dir(crowd_dir(&chain_dir))? {
        let _ = fs::remove_file(blocks_dir(&chain_dir).join(entry?.file_name()));
    }
    let _ = fs::remove_file(blocks_dir(&chain_dir).join(TIP_FILE));

    eprintln!("catching up without the commitment");
    let bare = catch_up(dir, &dir.join("bare"), true)?;
    fs::remove_dir_all(dir.join("bare"))?;
    eprintln!("catching up");
    let database = dir.join("db");
    let full = catch_up(dir, &database, false)?;
    ensure!(
        full.height == description.height,
        "it stopped at height {}",
        full.height
    );
    let per_core = |c: &CatchUp| c.bytes as f64 / 1e6 / c.cpu_seconds;
    let mut put = |name: &str, value: Value| {
        eprintln!("{name}: {value}");
        out.insert(name.to_owned(), value);
    };
    put("chain_bytes", full.bytes.into());
    put("chain_transactions", description.txs.into());
    put("catchup_mb_s_per_core", round(per_core(&full)));
    put(
        "catchup_mb_s_per_core_no_commitment",
        round(per_core(&bare)),
    );
    put(
        "catchup_wall_mb_s",
        round(full.bytes as f64 / 1e6 / full.seconds),
    );
    put("peak_rss_mb", round(full.peak_rss_mb));
    put("db_vs_chain", share(folder_bytes(&database)?, full.bytes));

    let genesis = network()?.params().genesis_hash();
    let mut store = Store::open(&database, genesis, Options::default())?;
    let started = Instant::now();
    store.compact(|_| ())?;
    put("compaction_s", round(started.elapsed().as_secs_f64()));
    let families = store
        .reader()
        .sizes()
        .iter()
        .map(|(f, n)| (f.name().to_owned(), share(*n, full.bytes)))
        .collect();
    drop(store);
    put(
        "db_vs_chain_compacted",
        share(folder_bytes(&database)?, full.bytes),
    );
    put("families_vs_chain_compacted", Value::Object(families));

    let mut opening = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let store = Store::open(&database, genesis, Options::default())?;
        ensure!(store.tip().is_some(), "the index is empty");
        opening.push(started.elapsed().as_secs_f64() * 1e3);
    }
    opening.sort_by(f64::total_cmp);
    put("reopen_ms", round(opening[2]));

    let started = Instant::now();
    let reader = Reader::open(&database, &genesis, &Options::default())?;
    reader.verify(2, |_| ())?;
    put("verify_s", round(started.elapsed().as_secs_f64()));
    drop(reader);

    for entry in fs::read_dir(crowd_dir(&chain_dir))? {
        let entry = entry?;
        let to = blocks_dir(&chain_dir).join(entry.file_name());
        fs::hard_link(entry.path(), &to).or_else(|_| fs::copy(entry.path(), &to).map(drop))?;
    }
    let mut follower = follower(&chain_dir, &database, &Options::default())?;
    to_the_tip(&mut follower)?;
    ensure!(
        follower
            .store()
            .tip()
            .is_some_and(|t| t.height == description.crowd_height),
        "the crowd is missing"
    );
    queries(&follower.store().reader(), description, &mut put)?;
    put("tip_event_ms", round(tip_event(&chain_dir, follower)?));
    Ok(Value::Object(out))
}

fn round(x: f64) -> Value {
    json!((x * 1000.0).round() / 1000.0)
}

fn share(part: u64, whole: u64) -> Value {
    json!((part as f64 / whole as f64 * 1e5).round() / 1e5)
}

/// Times of queries at the library's interface, for scripts of each size, at 1 and 64 threads.
fn queries(
    reader: &Reader,
    description: &Description,
    put: &mut impl FnMut(&str, Value),
) -> Result<()> {
    for (count, name) in CROWD.into_iter().zip(&description.crowd) {
        let script = hash::from_hex(name).context("a script hash of the description")?;
        let found = reader.balance(&script)?;
        ensure!(
            found.coins == count as u64,
            "the script of {count} coins has {}",
            found.coins
        );
        let list = |r: &Reader, s: &Hash| r.unspents(s, usize::MAX).map(|u| u.len());
        let history = |r: &Reader, s: &Hash| {
            r.history(s, TxNum::first_of(0), usize::MAX)
                .map(|h| h.len())
        };
        let balance = |r: &Reader, s: &Hash| r.balance(s).map(|b| b.coins as usize);
        type Query<'a> = (
            &'a str,
            &'a (dyn Fn(&Reader, &Hash) -> weft_store::Result<usize> + Sync),
        );
        let kinds: [Query<'_>; 3] = [
            ("listunspent", &list),
            ("get_history", &history),
            ("get_balance", &balance),
        ];
        for (kind, query) in kinds {
            for clients in [1, 64] {
                // A million rows for each of 64 clients is a gigabyte of answers: once is enough.
                if count == 1_000_000 && clients > 1 {
                    continue;
                }
                let times = time(reader, &script, clients, query)?;
                let at = |q: f64| round(times[((times.len() - 1) as f64 * q) as usize]);
                let suffix = if clients == 1 {
                    String::new()
                } else {
                    format!("_{clients}_clients")
                };
                put(&format!("{kind}_{count}_p50_ms{suffix}"), at(0.5));
                put(&format!("{kind}_{count}_p99_ms{suffix}"), at(0.99));
            }
        }
    }
    Ok(())
}

/// Milliseconds of each of many queries, sorted.
fn time(
    reader: &Reader,
    script: &Hash,
    clients: usize,
    query: &(dyn Fn(&Reader, &Hash) -> weft_store::Result<usize> + Sync),
) -> Result<Vec<f64>> {
    let end = Instant::now() + QUERY_TIME;
    let failed = AtomicBool::new(false);
    let one = || {
        let mut times = Vec::new();
        // The first fills the caches of the thread.
        while times.len() < 3 || Instant::now() < end && times.len() < MAX_QUERIES {
            let started = Instant::now();
            if query(reader, script).is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            times.push(started.elapsed().as_secs_f64() * 1e3);
        }
        times
    };
    let mut times: Vec<f64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients).map(|_| scope.spawn(one)).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap_or_default())
            .collect()
    });
    ensure!(
        !failed.load(Ordering::Relaxed) && !times.is_empty(),
        "a query failed"
    );
    times.sort_by(f64::total_cmp);
    Ok(times)
}

const TIP_FILE: &str = "blk09999.dat";

/// From a block being in the node's file to the event that tells of it, on disk: the median of 20.
fn tip_event(chain_dir: &Path, mut follower: Follower) -> Result<f64> {
    let chain = network()?;
    let (events, arrived) = channel();
    let tip = *follower.store().tip().context("a tip")?;
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let thread = std::thread::spawn(move || -> Result<()> {
        while !stopping.load(Ordering::Relaxed) {
            let known = follower.store().tip().context("a tip")?.hash;
            if follower.source().wait(&known, Duration::from_millis(200))? {
                follower.round(&mut |event| {
                    if let Event::Written { height, .. } = event {
                        let _ = events.send((height, Instant::now()));
                    }
                })?;
            }
        }
        Ok(())
    });
    let mut times = Vec::new();
    let mut prev = tip.hash;
    let path = blocks_dir(chain_dir).join(TIP_FILE);
    for height in tip.height + 1..=tip.height + 20 {
        // At no fixed phase of the source's polling.
        std::thread::sleep(Duration::from_millis(u64::from(height * 7919 % 97)));
        let (hash, raw) = block(
            prev,
            1_600_000_000 + height * 600,
            &[coinbase(height, 0, &[(50, vec![0x51])])],
        );
        prev = hash;
        let mut record = chain.params().magic.to_vec();
        record.extend_from_slice(&(raw.len() as u32).to_le_bytes());
        record.extend_from_slice(&raw);
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        file.write_all(&record)?;
        let written = Instant::now();
        let (at, told) = arrived
            .recv_timeout(Duration::from_secs(20))
            .context("no event came")?;
        ensure!(at == height, "the event tells of height {at}, not {height}");
        times.push(told.duration_since(written).as_secs_f64() * 1e3);
    }
    stop.store(true, Ordering::Relaxed);
    thread
        .join()
        .map_err(|_| anyhow::anyhow!("the follower panicked"))??;
    fs::remove_file(path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
