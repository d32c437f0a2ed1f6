//! `weft-indexd`: an index of a coin's unspent outputs and transactions, fed by a local node.

mod verbs;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Result;
use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;
use weft_indexd::config::Config;
use weft_indexd::terminal::{self, Bar, Lines};

/// An index of a coin's unspent outputs and transactions, fed by a local node.
#[derive(Debug, Parser)]
#[command(name = "weft-indexd", version)]
struct Arguments {
    /// The configuration file.
    #[arg(short, long, global = true, default_value = "weft-indexd.toml")]
    config: PathBuf,
    /// Log lines as JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write a configuration file with every setting explained.
    Init {
        /// The network to index.
        #[arg(long, default_value = "bitcoin")]
        network: String,
    },
    /// Check the configuration, the node and the database, and say what would be used.
    Check,
    /// Catch up with the node and follow it.
    Run {
        /// Stop when the index has the node's tip.
        #[arg(long)]
        once: bool,
    },
    /// Say how far the index is and what the service is doing.
    Status,
    /// Ask for coins, history, transactions and blocks; the answer is JSON.
    Query {
        #[command(subcommand)]
        what: verbs::Question,
    },
    /// Recompute the commitment from the coins, and compare it with the node where there is one.
    Verify {
        /// Do not ask the node.
        #[arg(long)]
        offline: bool,
    },
    /// Compact the database, with the service stopped.
    Compact,
    /// Write the coin set in the format of `dumptxoutset`, version 2.
    Export {
        /// The file to write; it must not exist.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    log_to_stderr(arguments.json);
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("weft-indexd: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_to_stderr(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| Lines)
        .with_ansi(
            terminal::is_there() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        )
        .with_target(false);
    if json {
        builder.json().init()
    } else {
        builder.init()
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if let Verb::Init { network } = &arguments.verb {
        return verbs::init(&arguments.config, network);
    }
    let config = Config::load(&arguments.config)?;
    match &arguments.verb {
        Verb::Init { .. } => Ok(()),
        Verb::Check => verbs::check(&config),
        Verb::Run { once } => {
            let stop = Arc::new(AtomicBool::new(false));
            for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
                signal_hook::flag::register(signal, stop.clone())?;
            }
            // Who wants JSON reads it by a program.
            let bar = (!arguments.json).then(Bar::show).flatten();
            weft_indexd::run::run(&config, *once, bar, &stop)
        }
        Verb::Status => verbs::status(&config),
        Verb::Query { what } => verbs::query(&config, what),
        Verb::Verify { offline } => verbs::verify(&config, *offline),
        Verb::Compact => verbs::compact(&config),
        Verb::Export { file } => verbs::export(&config, file),
    }
}
