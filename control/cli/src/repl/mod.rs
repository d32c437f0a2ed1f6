//! The prompt: the commands of the command line, one per line, with history and completion.
//!
//! Where standard input is no terminal the lines are a script: `#` begins a comment, every line is run, and the exit
//! code is that of the first that failed.

mod complete;
mod line;

use std::{
    fs,
    io::{self, BufRead, IsTerminal as _, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::PathBuf,
};

use clap::{CommandFactory as _, Parser as _, ValueEnum as _};
use reedline::{FileBackedHistory, Reedline, Signal};

use crate::{
    args::{Cli, Global},
    commands,
    context::Context,
    failure::Failure,
    render::{DIM, clean},
};

/// Lines kept.
const HISTORY: usize = 2000;
/// Longest line of a script, bytes.
const MAX_LINE: u64 = 64 * 1024;

/// What became of a line.
enum Next {
    Continue,
    Exit,
}

pub(crate) fn run(context: &mut Context, global: &Global) -> Result<(), Failure> {
    context.catch_interrupts()?;
    if io::stdin().is_terminal() && io::stdout().is_terminal() {
        converse(context, global)
    } else {
        script(context, global)
    }
}

fn converse(context: &mut Context, global: &Global) -> Result<(), Failure> {
    let mut editor = line::editor(context);
    match history_file() {
        Ok(path) => match FileBackedHistory::with_file(HISTORY, path.clone()) {
            Ok(history) => editor = editor.with_history(Box::new(history)),
            Err(error) => eprintln!("weft: no history is kept: {}: {error}", path.display()),
        },
        Err(words) => eprintln!("weft: no history is kept: {words}"),
    }
    let greeting = format!(
        "weft {}: `help` lists the commands, Tab completes, `exit` or Ctrl-D leaves.",
        env!("CARGO_PKG_VERSION")
    );
    context.line(&context.paint(DIM, &greeting))?;
    loop {
        match read(&mut editor, context)? {
            None => return Ok(()),
            Some(line) => match run_line(context, global, &line) {
                Ok(Next::Continue) => {}
                Ok(Next::Exit) => return Ok(()),
                Err(failure) => _ = failure.report(context.colour_of_errors()),
            },
        }
    }
}

/// A line; none at the end.
fn read(editor: &mut Reedline, context: &Context) -> Result<Option<String>, Failure> {
    loop {
        let prompt = line::prompt(context);
        match editor.read_line(&prompt) {
            Ok(Signal::Success(line)) => return Ok(Some(line)),
            Ok(Signal::CtrlD) => return Ok(None),
            Ok(_) => {}
            Err(error) => {
                return Err(Failure::Failed(format!(
                    "the terminal cannot be read: {error}"
                )));
            }
        }
    }
}

/// `$XDG_STATE_HOME/weft/history`, in a folder for this user alone: arguments may hold a network's secret.
fn history_file() -> Result<PathBuf, String> {
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .ok_or("neither XDG_STATE_HOME nor HOME is set")?;
    let folder = state.join("weft");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?;
    let file = folder.join("history");
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&file)
        .map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(file)
}

fn script(context: &mut Context, global: &Global) -> Result<(), Failure> {
    let mut input = io::stdin().lock();
    let mut first = Ok(());
    loop {
        let line = match next_line(&mut input)? {
            Some(line) => line,
            None => return first,
        };
        match run_line(context, global, &line) {
            Ok(Next::Continue) => {}
            Ok(Next::Exit) => return first,
            Err(Failure::OutputClosed) => return Err(Failure::OutputClosed),
            Err(failure) => {
                _ = failure.report(context.colour_of_errors());
                if first.is_ok() {
                    // Said already; only the code is left to tell.
                    first = Err(Failure::ShownWith(failure.code()));
                }
            }
        }
    }
}

fn next_line(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut bytes = Vec::new();
    let failed = |error| Failure::Failed(format!("standard input cannot be read: {error}"));
    if input
        .by_ref()
        .take(MAX_LINE)
        .read_until(b'\n', &mut bytes)
        .map_err(failed)?
        == 0
    {
        return Ok(None);
    }
    if bytes.len() as u64 == MAX_LINE && bytes.last() != Some(&b'\n') {
        return Err(Failure::Usage(format!(
            "a line of standard input is longer than {MAX_LINE} bytes"
        )));
    }
    String::from_utf8(bytes)
        .map(Some)
        .map_err(|_| Failure::Usage("a line of standard input is not UTF-8 text".into()))
}

fn run_line(context: &Context, global: &Global, line: &str) -> Result<Next, Failure> {
    let words = shlex::split(line).ok_or_else(|| {
        Failure::Usage(format!(
            "a quotation mark is not closed in: {}",
            clean(line.trim())
        ))
    })?;
    match words.first().map(String::as_str) {
        None => return Ok(Next::Continue),
        Some("exit" | "quit") if words.len() == 1 => return Ok(Next::Exit),
        Some(_) => {}
    }
    let cli = match Cli::try_parse_from(
        arguments(global)
            .into_iter()
            .chain(words.into_iter().map(Into::into)),
    ) {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            _ = error.print();
            return if usage {
                Err(Failure::ShownWith(Failure::USAGE))
            } else {
                Ok(Next::Continue)
            };
        }
    };
    let Some(command) = cli.command else {
        return Err(Failure::Usage(
            "a command is missing; `help` lists them".into(),
        ));
    };
    let mut context = context.of_line(&cli.global)?;
    commands::run(&mut context, command)?;
    context.finish()?;
    Ok(Next::Continue)
}

/// The program's own options, which the line may override.
fn arguments(global: &Global) -> Vec<std::ffi::OsString> {
    let mut arguments = vec!["weft".into()];
    for (name, path) in [("--dir", &global.dir), ("--socket", &global.socket)] {
        if let Some(path) = path {
            arguments.extend([name.into(), path.into()]);
        }
    }
    if global.json {
        arguments.push("--json".into());
    }
    if let Some(choice) = global.color.to_possible_value() {
        arguments.extend(["--color".into(), choice.get_name().into()]);
    }
    arguments.extend(["--timeout".into(), global.timeout.to_string().into()]);
    arguments
}

/// The command line as a tree, options of every command included.
fn grammar() -> clap::Command {
    let mut root = Cli::command();
    root.build();
    root
}
