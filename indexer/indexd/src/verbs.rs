//! The verbs other than `run`.

use std::fs::File;
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use weft_chain::hash::{from_hex, hex};
use weft_chain::{Chain, Hash, OutPoint, address, script_hash};
use weft_indexd::config::{COMMENTED_DEFAULT, Config};
use weft_indexd::status::Snapshot;
use weft_source::choose;
use weft_store::{HeaderRow, Reader, Store, TxNum};

/// A question to the index. SCRIPT is an address, or the script's SHA-256 as the Electrum protocol shows it.
#[derive(Debug, Subcommand)]
pub(crate) enum Question {
    /// Sum and number of a script's coins.
    Balance {
        /// Address or script hash.
        script: String,
    },
    /// A script's coins.
    Unspents {
        /// Address or script hash.
        script: String,
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// The transactions that paid a script or spent from it.
    History {
        /// Address or script hash.
        script: String,
        /// From this height on.
        #[arg(long, default_value_t = 0)]
        from: u32,
        /// At most so many.
        #[arg(long, default_value_t = 1000)]
        limit: usize,
    },
    /// The coin at an outpoint, if it is unspent.
    Coin {
        /// Transaction id and position of the output: `id:n`.
        outpoint: String,
    },
    /// Where a transaction is.
    Tx {
        /// Its id.
        txid: String,
    },
    /// A block of the active chain.
    Block {
        /// Height or hash.
        block: String,
    },
}

/// Writes the configuration file.
pub(crate) fn init(path: &Path, network: &str) -> Result<()> {
    let text = COMMENTED_DEFAULT.replacen(
        "network = \"bitcoin\"",
        &format!("network = {network:?}"),
        1,
    );
    Config::parse(&text)?;
    let mut file = File::create_new(path).with_context(|| {
        format!(
            "cannot write {}; an existing file is never overwritten",
            path.display()
        )
    })?;
    file.write_all(text.as_bytes())?;
    println!("wrote {}", path.display());
    Ok(())
}

/// Says what would be used.
pub(crate) fn check(config: &Config) -> Result<()> {
    let chain = config.chain()?;
    println!("configuration: right, network {}", chain.params().name);
    let choice = choose(&config.settings(Duration::from_secs(2))?)?;
    let tip = choice.source.tip()?;
    println!(
        "source: {} at height {}",
        choice.source.describe(),
        tip.height
    );
    choice
        .passed_over
        .iter()
        .for_each(|why| println!("  not used: {why}"));
    if config.database().exists() {
        let tip = reader(config)?.tip()?;
        println!(
            "database: {}, {}",
            config.database().display(),
            tip.map_or("empty".into(), |(h, _)| format!("height {h}"))
        );
    } else {
        println!("database: {} will be made", config.database().display());
    }
    Ok(())
}

/// Says how far the index is.
pub(crate) fn status(config: &Config) -> Result<()> {
    let reader = reader(config)?;
    let service = Snapshot::read(config.dir());
    let tip = reader.tip()?;
    let row = match tip {
        Some((height, _)) => reader.header(height)?,
        None => None,
    };
    let families: serde_json::Map<_, _> = reader
        .sizes()
        .into_iter()
        .map(|(f, n)| (f.name().to_owned(), n.into()))
        .collect();
    let answer = json!({
        "network": config.network,
        "database": config.database(),
        "tip": tip.map(|(height, _)| row.as_ref().map(|row| block(height, row))),
        "bytes": families,
        "pending_compaction_bytes": reader.pending_compaction(),
        "service": service,
    });
    print(&answer)
}

/// Answers a question.
pub(crate) fn query(config: &Config, question: &Question) -> Result<()> {
    let (chain, reader) = (config.chain()?, reader(config)?);
    let tip = reader.tip()?.map_or(0, |(height, _)| height);
    let answer = match question {
        Question::Balance { script } => {
            let balance = reader.balance(&script_of(chain, script)?)?;
            json!({ "value": balance.value, "coins": balance.coins, "tip": tip })
        }
        Question::Unspents { script, limit } => reader
            .unspents(&script_of(chain, script)?, *limit)?
            .iter()
            .map(|u| {
                let coinbase = u.txnum.index() == 0;
                json!({
                    "txid": hex(&u.outpoint.txid), "vout": u.outpoint.vout, "value": u.value,
                    "height": u.txnum.height(), "coinbase": coinbase, "confirmations": tip + 1 - u.txnum.height(),
                })
            })
            .collect(),
        Question::History { script, from, limit } => {
            ensure!(*from <= TxNum::MAX_HEIGHT, "--from must be at most {}", TxNum::MAX_HEIGHT);
            let history = reader.history(&script_of(chain, script)?, TxNum::first_of(*from), *limit)?;
            let row = |t: &weft_store::Touched| json!({ "txid": hex(&t.txid), "height": t.txnum.height(), "position": t.txnum.index() });
            history.iter().map(row).collect()
        }
        Question::Coin { outpoint } => {
            let (txid, vout) = outpoint.split_once(':').context("an outpoint is written id:n")?;
            let outpoint = OutPoint { txid: hash_of(txid)?, vout: vout.parse().context("the number after the colon")? };
            let Some(coin) = reader.coin(&outpoint)? else { return print(&Value::Null) };
            let script: String = coin.script.iter().map(|b| format!("{b:02x}")).collect();
            let address = address::from_script(chain.params(), &coin.script);
            json!({ "value": coin.value, "height": coin.height, "coinbase": coin.coinbase, "script": script, "address": address })
        }
        Question::Tx { txid } => match reader.tx(&hash_of(txid)?)? {
            None => Value::Null,
            Some(place) => json!({
                "height": place.txnum.height(), "position": place.txnum.index(),
                "offset": place.span.offset, "length": place.span.len,
                "block": reader.header(place.txnum.height())?.map(|row| hex(&row.hash)),
            }),
        },
        Question::Block { block: name } => {
            let found = match name.parse::<u32>() {
                Ok(height) => reader.header(height)?.map(|row| (height, row)),
                Err(_) => reader.header_by_hash(&hash_of(name)?)?,
            };
            found.map_or(Value::Null, |(height, row)| block(height, &row))
        }
    };
    print(&answer)
}

/// Recomputes the commitment.
pub(crate) fn verify(config: &Config, offline: bool) -> Result<()> {
    let reader = reader(config)?;
    let bar = bar(&reader)?;
    let verified = reader.verify(config.options().threads, |done| {
        if let Some(bar) = &bar {
            bar.set_position(done);
        }
    });
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    let verified = verified?;
    println!("height {} {}", verified.height, hex(&verified.hash));
    println!("coins {}, amount {}", verified.coins, verified.amount);
    println!(
        "muhash of the rows {}: it is the one kept with the tip",
        hex(&verified.muhash)
    );
    if offline {
        return Ok(());
    }
    // A node without its coin-stats index goes through all its coins: minutes.
    let client = config.settings(Duration::from_secs(5))?.rpc_client();
    let theirs: Value = match client.call_for(
        "gettxoutsetinfo",
        json!(["muhash"]),
        Duration::from_secs(3600),
    ) {
        Ok(theirs) => theirs,
        Err(e) => {
            println!("not compared with the node: {e}");
            return Ok(());
        }
    };
    let (block, muhash) = (theirs["bestblock"].as_str(), theirs["muhash"].as_str());
    if block != Some(&hex(&verified.hash)) {
        println!(
            "not compared with the node: it is at height {} by now",
            theirs["height"]
        );
        return Ok(());
    }
    ensure!(
        muhash == Some(&hex(&verified.muhash)),
        "the node's coin set is another: its muhash is {muhash:?}"
    );
    println!("the node says the same");
    Ok(())
}

/// Compacts the database.
pub(crate) fn compact(config: &Config) -> Result<()> {
    let genesis = config.chain()?.params().genesis_hash();
    let mut store = Store::open(&config.database(), genesis, config.options())?;
    let total = |store: &Store| store.reader().sizes().iter().map(|(_, n)| n).sum::<u64>();
    let before = total(&store);
    store.compact(|family| println!("{} done", family.name()))?;
    println!(
        "{} MB before, {} MB after",
        before / 1_000_000,
        total(&store) / 1_000_000
    );
    Ok(())
}

/// Writes the coin set to a file.
pub(crate) fn export(config: &Config, path: &Path) -> Result<()> {
    let reader = reader(config)?;
    // Written under another name first, so that a file of that name is always whole.
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    ensure!(
        !path.exists(),
        "{} exists; name another file",
        path.display()
    );
    let file =
        File::create(&partial).with_context(|| format!("cannot write {}", partial.display()))?;
    let memory = config.options().memory / 2;
    let result = reader
        .export(
            BufWriter::with_capacity(1 << 20, &file),
            config.chain()?.params().magic,
            memory,
        )
        .map_err(anyhow::Error::from)
        .and_then(|done| {
            file.sync_all()?;
            std::fs::rename(&partial, path)?;
            Ok(done)
        });
    let (base, coins) = result.inspect_err(|_| {
        let _ = std::fs::remove_file(&partial);
    })?;
    println!(
        "{coins} coins of block {} in {}",
        hex(&base),
        path.display()
    );
    Ok(())
}

fn reader(config: &Config) -> Result<Reader> {
    let genesis = config.chain()?.params().genesis_hash();
    Ok(Reader::open(
        &config.database(),
        &genesis,
        &config.options(),
    )?)
}

fn bar(reader: &Reader) -> Result<Option<ProgressBar>> {
    let Some((height, _)) = reader.tip()?.filter(|_| std::io::stderr().is_terminal()) else {
        return Ok(None);
    };
    let coins = reader.header(height)?.map_or(0, |row| row.totals.coins);
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len} coins  {per_sec}  {eta} left")?;
    Ok(Some(ProgressBar::new(coins).with_style(style)))
}

fn block(height: u32, row: &HeaderRow) -> Value {
    json!({
        "height": height, "hash": hex(&row.hash), "time": row.header.time, "bytes": row.size,
        "muhash": row.muhash.as_ref().map(hex), "work": format!("{:064x}", row.work),
        "totals": {
            "transactions": row.totals.txs, "coins": row.totals.coins,
            "amount": row.totals.amount, "bogosize": row.totals.bogosize,
        },
    })
}

fn hash_of(text: &str) -> Result<Hash> {
    from_hex(text).with_context(|| format!("{text:?} is no hash: it takes 64 hexadecimal digits"))
}

fn script_of(chain: &dyn Chain, text: &str) -> Result<Hash> {
    if let Some(hash) = from_hex(text) {
        return Ok(hash);
    }
    match address::to_script(chain.params(), text) {
        Ok(script) => Ok(script_hash(&script)),
        Err(e) => bail!("{e}"),
    }
}

fn print(answer: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, answer)?;
    writeln!(out)?;
    Ok(())
}
