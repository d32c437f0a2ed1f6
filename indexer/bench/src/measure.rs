//! The measurements.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use weft_chain::{Chain, Hash, chains, hash};
use weft_forge::{block, coinbase};
use weft_indexd::follow::{Event, Follower, Round};
use weft_source::Source;
use weft_source::files::Files;
use weft_store::{Options, Reader, Store};

use crate::electrum::{Effort, Service};
use crate::generate::{CROWD, Description, blocks_dir, crowd_dir};

/// Time for the queries of one kind.
const QUERY_TIME: Duration = Duration::from_secs(2);
/// Queries of one kind at most, for the slow ones.
const MAX_QUERIES: usize = 20_000;

/// Queries that take little.
const MANY: Effort = Effort {
    warm: true,
    least: 3,
    most: MAX_QUERIES,
    time: QUERY_TIME,
};
/// Queries that take much: of each client once, and again only if all takes less than this.
const ONCE: Effort = Effort {
    warm: false,
    least: 1,
    most: MAX_QUERIES,
    time: Duration::from_secs(10),
};

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
    let _ = fs::remove_file(tip_file(&chain_dir)?);

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
    library_queries(&follower.store().reader(), description, &mut put)?;
    let tip = follower.store().tip().map(|t| (t.height, t.hash));
    drop(follower);

    let times = echo()?;
    put("echo_p50_ms", at(&times, 0.5));
    put("echo_p99_ms", at(&times, 0.99));
    let service = Service::start(&std::path::absolute(dir)?)?;
    queries(&service, description, &mut put)?;
    let tip = tip.context("a tip")?;
    put("tip_event_ms", round(tip_event(&chain_dir, &service, tip)?));
    Ok(Value::Object(out))
}

fn round(x: f64) -> Value {
    json!((x * 1000.0).round() / 1000.0)
}

fn share(part: u64, whole: u64) -> Value {
    json!((part as f64 / whole as f64 * 1e5).round() / 1e5)
}

/// Times of queries for scripts of each size: through the Electrum protocol at 1 and 64 clients, and at the library's
/// interface, to see what the protocol adds.
fn queries(
    service: &Service,
    description: &Description,
    put: &mut impl FnMut(&str, Value),
) -> Result<()> {
    put("queries_first_rss_mb", round(service.memory()?.now));
    for (count, name) in CROWD.into_iter().zip(&description.crowd) {
        for kind in ["listunspent", "get_history", "get_balance"] {
            for clients in [1, 64] {
                // A million rows for each of 64 clients is gigabytes of answers: once each is enough.
                let effort = match count == 1_000_000 && clients > 1 {
                    true => ONCE,
                    false => MANY,
                };
                let method = format!("blockchain.scripthash.{kind}");
                let times = service.time(&method, &json!([name]), clients, &effort)?;
                let suffix = if clients == 1 {
                    String::new()
                } else {
                    format!("_{clients}_clients")
                };
                put(&format!("{kind}_{count}_p50_ms{suffix}"), at(&times, 0.5));
                put(&format!("{kind}_{count}_p99_ms{suffix}"), at(&times, 0.99));
                let memory = service.memory()?;
                eprintln!("  {:.0} MB, at most {:.0}", memory.now, memory.peak);
            }
        }
    }
    put("queries_peak_rss_mb", round(service.memory()?.peak));
    Ok(())
}

/// What two threads and a socket between them take for a question and as many bytes as the coins of a script with 100 are:
/// what the machine leaves to be won.
fn echo() -> Result<Vec<f64>> {
    const QUESTION: usize = 150;
    const ANSWER: usize = 15_000;
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    let mut near = TcpStream::connect(listener.local_addr()?)?;
    let (mut far, _) = listener.accept()?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let mut answering = move || -> std::io::Result<()> {
        let mut question = [0; QUESTION];
        loop {
            far.read_exact(&mut question)?;
            far.write_all(&[0; ANSWER])?;
        }
    };
    // Ends when the other side is gone.
    std::thread::spawn(move || _ = answering());
    let end = Instant::now() + QUERY_TIME;
    let mut times = Vec::new();
    let mut answer = [0; ANSWER];
    while Instant::now() < end && times.len() < MAX_QUERIES {
        let begun = Instant::now();
        near.write_all(&[0; QUESTION])?;
        near.read_exact(&mut answer)?;
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times)
}

/// The value below which a share of the sorted times is.
fn at(times: &[f64], share: f64) -> Value {
    round(times[((times.len() - 1) as f64 * share) as usize])
}

/// The same questions at the library's interface, one thread.
fn library_queries(
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
        let end = Instant::now() + QUERY_TIME / 2;
        let mut times = Vec::new();
        while times.len() < 3 || Instant::now() < end && times.len() < MAX_QUERIES {
            let begun = Instant::now();
            let coins = reader.unspents(&script, usize::MAX)?;
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            ensure!(coins.len() == count, "coins are missing");
        }
        times.sort_by(f64::total_cmp);
        put(
            &format!("library_listunspent_{count}_p50_ms"),
            at(&times, 0.5),
        );
        put(
            &format!("library_listunspent_{count}_p99_ms"),
            at(&times, 0.99),
        );
    }
    Ok(())
}

/// The file after the crowd's, as a node numbers them without gaps.
fn tip_file(chain_dir: &Path) -> Result<PathBuf> {
    let mut last = 0;
    for entry in fs::read_dir(crowd_dir(chain_dir))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| {
            let digits = name.strip_prefix("blk")?.strip_suffix(".dat")?;
            digits.parse::<u32>().ok()
        });
        last = last.max(number.context("a file of the crowd without a number")?);
    }
    Ok(blocks_dir(chain_dir).join(format!("blk{:05}.dat", last + 1)))
}

/// From a block being in the node's file to a subscriber being told of it, when it is on disk: the median of 20.
fn tip_event(chain_dir: &Path, service: &Service, tip: (u32, Hash)) -> Result<f64> {
    let chain = network()?;
    let mut subscriber = service.client()?;
    let mut times = Vec::new();
    let (last, mut prev) = tip;
    let path = tip_file(chain_dir)?;
    for height in last + 1..=last + 20 {
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
        let told = subscriber.next_header()?;
        ensure!(
            told == u64::from(height),
            "height {told} is told of, not {height}"
        );
        times.push(written.elapsed().as_secs_f64() * 1e3);
    }
    fs::remove_file(&path)?;
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2])
}
