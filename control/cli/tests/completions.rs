//! The completion scripts, read by the shells themselves where they are installed.

mod common;

use std::process::Command;

use common::{script, skip, weft};

fn is_valid(shell: &str, word: &str) {
    let text = weft(&["completions", shell]).ok();
    assert!(text.contains(word) && text.contains("counters"), "{shell}");
    let folder = tempfile::tempdir().unwrap();
    let path = script(folder.path(), shell, &text);
    match Command::new(shell).arg("-n").arg(&path).output() {
        Ok(output) => assert!(
            output.status.success(),
            "{shell}: {}",
            String::from_utf8_lossy(&output.stderr)
        ),
        Err(error) => skip(format_args!(
            "{shell} is not installed, its script was not checked: {error}"
        )),
    }
}

#[test]
fn bash() {
    is_valid("bash", "complete");
}

#[test]
fn zsh() {
    is_valid("zsh", "#compdef weft");
}

#[test]
fn fish() {
    is_valid("fish", "complete -c weft");
}
