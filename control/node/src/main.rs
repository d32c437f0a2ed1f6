//! weftd: the daemon of a Weft node.

use std::{io::IsTerminal as _, path::PathBuf, process::ExitCode};

use clap::{Parser, ValueEnum};
use weft_client::config::Layout;
use weft_node::daemon;

/// The daemon of a Weft node: carries its links, label-switched paths and sessions.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Folder of configuration (weft.toml), state (state/) and API socket (weft.sock), in place of the system's.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Check configuration and keys, and end.
    #[arg(long, conflicts_with = "undo")]
    check: bool,
    /// Undo what an earlier run left on this host, and end.
    #[arg(long)]
    undo: bool,
    /// Form of the log lines.
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    log_format: LogFormat,
    /// What is logged, e.g. `info` or `weft_node=debug`; the environment variable WEFT_LOG is the same.
    #[arg(long, value_name = "FILTER", env = "WEFT_LOG", default_value = "info")]
    log: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object per line.
    Json,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let layout = Layout::choose(args.dir.as_deref());
    let result = start_log(&args).and_then(|()| match (args.check, args.undo) {
        (true, _) => daemon::check(&layout).map(|line| println!("{line}")),
        (_, true) => {
            daemon::undo(&layout).map(|lines| lines.iter().for_each(|line| println!("{line}")))
        }
        _ => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(daemon::run(layout))
        }
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weftd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_log(args: &Args) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&args.log).map_err(|error| {
        anyhow::anyhow!(
            "--log {}: {error}; use e.g. `info` or `weft_node=debug`",
            args.log
        )
    })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr);
    match args.log_format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
