//! The completion scripts, read by the shells themselves where they are installed.

mod common;

use std::process::Command;

use common::{script, weft};

#[test]
fn scripts_are_valid_for_their_shells() {
    let folder = tempfile::tempdir().unwrap();
    for (shell, word) in [
        ("bash", "complete"),
        ("zsh", "#compdef weft"),
        ("fish", "complete -c weft"),
    ] {
        let text = weft(&["completions", shell]).ok();
        assert!(text.contains(word) && text.contains("counters"), "{shell}");
        let path = script(folder.path(), shell, &text);
        match Command::new(shell).arg("-n").arg(&path).output() {
            Ok(output) => assert!(
                output.status.success(),
                "{shell}: {}",
                String::from_utf8_lossy(&output.stderr)
            ),
            Err(error) => println!("skipped for {shell}: {error}"),
        }
    }
}
