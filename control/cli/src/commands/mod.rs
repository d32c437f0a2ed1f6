//! The commands, each a function of the context and its arguments.

mod counters;
mod daemon;
mod init;
mod path;
mod peers;
mod ping;
mod secret;
mod tables;

use serde::Serialize;

use crate::{
    args::{Cli, Command},
    context::Context,
    failure::Failure,
};

/// Does what was asked.
pub(crate) fn run(context: &mut Context, command: Command) -> Result<(), Failure> {
    match command {
        Command::Init(args) => init::run(context, args),
        Command::Up(args) => daemon::up(context, &args),
        Command::Down(args) => daemon::down(context, &args),
        Command::Restart(args) => daemon::restart(context, &args),
        Command::Status(args) if args.host => tables::host(context),
        Command::Status(_) => tables::status(context),
        Command::Peers(args) => peers::run(context, args),
        Command::Links => tables::links(context),
        Command::Nodes => tables::nodes(context),
        Command::Lsp => tables::lsps(context),
        Command::Routes => tables::routes(context),
        Command::Sessions => tables::sessions(context),
        Command::Ping(args) => ping::run(context, &args),
        Command::Trace(args) => path::trace(context, &args),
        Command::Why(args) => path::why(context, args),
        Command::Counters(args) => counters::run(context, &args),
        Command::Invite => secret::invite(context),
        Command::Secret(command) => secret::run(context, &command),
        Command::Completions { shell } => completions(context, shell),
        Command::Version => version(context),
    }
}

fn completions(context: &mut Context, shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut <Cli as clap::CommandFactory>::command(),
        "weft",
        &mut script,
    );
    context.text(&String::from_utf8_lossy(&script))
}

/// What `weft version --json` prints.
#[derive(Serialize)]
struct Versions {
    /// Of this program.
    weft: &'static str,
    /// The API it speaks.
    api_version: u32,
    /// Of the running daemon; null where there is none.
    weftd: Option<String>,
}

fn version(context: &mut Context) -> Result<(), Failure> {
    let weftd = context
        .connect()
        .and_then(|mut client| client.status())
        .map(|status| status.version);
    let versions = Versions {
        weft: env!("CARGO_PKG_VERSION"),
        api_version: weft_client::api::API_VERSION,
        weftd: weftd.as_ref().ok().cloned(),
    };
    if context.json {
        return context.document(&versions);
    }
    context.line(&format!(
        "weft   {} (API {})",
        versions.weft, versions.api_version
    ))?;
    match weftd {
        Ok(version) => context.line(&format!("weftd  {}", crate::render::clean(&version))),
        Err(error) if error.is_not_running() => context.line("weftd  not running"),
        Err(error) => context.line(&format!("weftd  unknown: {error}")),
    }
}
