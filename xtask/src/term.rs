//! Lines for people: colours where the output is a terminal, steps, and how commands are shown before they run.

use std::{
    ffi::OsStr,
    io::IsTerminal,
    process::{Command, Stdio},
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

/// A style of text; plain where standard output is no terminal or `NO_COLOR` is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// Headings.
    Bold,
    /// Side remarks.
    Dim,
    /// What went well.
    Green,
    /// What needs attention.
    Yellow,
    /// What failed.
    Red,
    /// Names and commands.
    Cyan,
}

fn colours() -> bool {
    static COLOURS: OnceLock<bool> = OnceLock::new();
    *COLOURS.get_or_init(|| {
        if std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) {
            return false;
        }
        std::env::var_os("CLICOLOR_FORCE").is_some() || std::io::stdout().is_terminal()
    })
}

/// `text` in `style`.
#[must_use]
pub fn paint(style: Style, text: &str) -> String {
    if !colours() {
        return text.to_owned();
    }
    let code = match style {
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Green => "32",
        Style::Yellow => "33",
        Style::Red => "31",
        Style::Cyan => "36",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A heading.
pub fn heading(text: &str) {
    println!("\n{}", paint(Style::Bold, text));
}

/// Something that is being done.
pub fn step(text: &str) {
    println!("{} {text}", paint(Style::Cyan, "▸"));
}

/// Something that holds.
pub fn good(text: &str) {
    println!("{} {text}", paint(Style::Green, "✓"));
}

/// Something that should be known.
pub fn warn(text: &str) {
    println!("{} {text}", paint(Style::Yellow, "!"));
}

/// Something that failed.
pub fn bad(text: &str) {
    println!("{} {text}", paint(Style::Red, "✗"));
}

/// The command as one could type it.
#[must_use]
pub fn shown(command: &Command) -> String {
    let word = |w: &OsStr| {
        let w = w.to_string_lossy();
        if !w.is_empty()
            && w.chars()
                .all(|c| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c))
        {
            w.into_owned()
        } else {
            format!("'{}'", w.replace('\'', r"'\''"))
        }
    };
    let environment = command
        .get_envs()
        .filter_map(|(k, v)| Some(format!("{}={} ", k.to_string_lossy(), word(v?))))
        .collect::<String>();
    let words = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(word);
    environment + &words.collect::<Vec<_>>().join(" ")
}

/// Runs a command with its output passed through.
///
/// # Errors
/// When it cannot be started or does not succeed; the message has the command.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` ended with {status}", shown(command));
    }
    Ok(())
}

/// Runs a command and gives its standard output.
///
/// # Errors
/// When it cannot be started or does not succeed; the message has the command and its standard error.
pub fn output_of(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` ended with {}: {}",
            shown(command),
            output.status,
            why.trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Whether a program of this name is on `PATH` (or in the usual folders for administrators), and where.
#[must_use]
pub fn which(program: &str) -> Option<std::path::PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/sbin", "/usr/sbin", "/sbin"].map(Into::into))
        .map(|folder| folder.join(program))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_as_typed() {
        let mut command = Command::new("apt-get");
        command.args(["install", "a b", ""]).env("LC_ALL", "C");
        assert_eq!(shown(&command), "LC_ALL=C apt-get install 'a b' ''");
    }

    #[test]
    fn a_failing_command_is_named() {
        let error = output_of(Command::new("sh").args(["-c", "echo no >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(error.contains("sh -c") && error.contains("no"), "{error}");
    }
}
