//! `weft`: the command line and the REPL over the API of `weftd`.
//!
//! [`args`] says what can be asked, [`commands`] does it, [`repl`] asks for more. Nothing here holds state of the mesh:
//! every answer is the daemon's, shown as text for people or (`--json`) as the API's types.

pub mod args;
mod commands;
mod context;
mod failure;
mod render;
mod repl;

use std::process::ExitCode;

use clap::Parser as _;

use crate::{args::Cli, context::Context, failure::Failure};

/// Runs the program with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            _ = error.print();
            return ExitCode::from(if error.use_stderr() {
                Failure::USAGE
            } else {
                0
            });
        }
    };
    let mut context = match Context::new(&cli.global) {
        Ok(context) => context,
        Err(failure) => return failure.report(false),
    };
    let result = match cli.command {
        Some(command) => commands::run(&mut context, command),
        None => repl::run(&mut context, &cli.global),
    };
    match result.and_then(|()| context.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(context.colour_of_errors()),
    }
}
