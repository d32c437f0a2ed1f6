//! What `weft-indexd run` shows while it catches up: a bar on a terminal, lines without one.

mod common;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Stdio;

use common::{Bench, Grower};

/// Blocks of the chain; each is written by itself, which takes long enough to be looked at.
const BLOCKS: usize = 400;

fn bench() -> Bench {
    let bench = Bench::new("bitcoin-regtest", "batch_blocks = 1");
    let mut grower = Grower::new(&bench.blocks("bitcoin-regtest"), 5);
    let blocks = grower.grow(0, BLOCKS);
    grower.append(&blocks);
    bench
}

/// A pseudo-terminal of 100 columns: our side and that of the program.
fn terminal() -> (File, OwnedFd) {
    let (mut near, mut far) = (-1, -1);
    let size = libc::winsize {
        ws_row: 30,
        ws_col: 100,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: both numbers are written, the size is read, and there is neither a name nor a mode.
    let done = unsafe {
        libc::openpty(
            &mut near,
            &mut far,
            std::ptr::null_mut(),
            std::ptr::null(),
            &size,
        )
    };
    assert_eq!(done, 0, "{}", io::Error::last_os_error());
    // SAFETY: both were just opened, and nobody else has them.
    unsafe { (File::from_raw_fd(near), OwnedFd::from_raw_fd(far)) }
}

/// What is on a screen after `output`, line by line, and every state of a line that was ever there.
fn screen(output: &str) -> (Vec<String>, Vec<String>) {
    let (mut lines, mut row, mut column) = (vec![Vec::new()], 0usize, 0usize);
    let mut states = Vec::new();
    let mut text = output.chars().peekable();
    while let Some(c) = text.next() {
        match c {
            '\r' => column = 0,
            '\n' => {
                row += 1;
                if row == lines.len() {
                    lines.push(Vec::new());
                }
            }
            '\x1b' => {
                assert_eq!(text.next(), Some('['), "an escape sequence");
                let mut number = String::new();
                let what = loop {
                    match text.next().expect("the end of an escape sequence") {
                        c if c.is_ascii_alphabetic() => break c,
                        c => number.push(c),
                    }
                };
                let count = number.parse().unwrap_or(1);
                match what {
                    'A' => row = row.saturating_sub(count),
                    'B' => row += count,
                    'K' if number == "2" => lines[row].clear(),
                    'K' => lines[row].truncate(column),
                    'J' => {
                        lines.truncate(row + 1);
                        lines[row].truncate(column);
                    }
                    // Colours, and hiding the cursor.
                    'm' | 'h' | 'l' => {}
                    other => panic!("escape sequence {number}{other}"),
                }
            }
            c => {
                let line: &mut Vec<char> = &mut lines[row];
                line.resize(line.len().max(column + 1), ' ');
                line[column] = c;
                column += 1;
                states.push(line.iter().collect());
            }
        }
    }
    let lines = lines.iter().map(|line| line.iter().collect()).collect();
    (lines, states)
}

#[test]
fn a_terminal_gets_a_bar_with_rate_and_time_left() {
    let bench = bench();
    let (mut near, far) = terminal();
    let mut child = bench
        .command(&["run", "--once"])
        .env("TERM", "xterm")
        .env_remove("NO_COLOR")
        .stdin(far.try_clone().unwrap())
        .stdout(far.try_clone().unwrap())
        .stderr(far)
        .spawn()
        .unwrap();
    let (mut output, mut chunk) = (Vec::new(), [0; 4096]);
    // The end of a terminal that nobody has any more is an error.
    while let Ok(n @ 1..) = near.read(&mut chunk) {
        output.extend_from_slice(&chunk[..n]);
    }
    assert!(child.wait().unwrap().success());
    assert!(near.as_raw_fd() >= 0);
    let output = String::from_utf8(output).unwrap();
    let (lines, states) = screen(&output);
    let whole = states.iter().find(|line| {
        let part = |end: &str| line.contains(end);
        let length = line.chars().count() <= 100;
        length
            && line.starts_with(['█', '▌', '░'])
            && part("% ")
            && part(&format!(" of {BLOCKS} blocks "))
            && part(" MB/s ")
            && line.ends_with(" s left")
    });
    assert!(whole.is_some(), "no bar in {output:?}");
    assert!(!output.contains("% \x1b"), "a bar of nothing in {output:?}");
    // In the end only the log is there, each line by itself.
    for said in [
        "the index is empty",
        "blocks come from here",
        "at the source's tip",
        "stopped",
    ] {
        assert!(
            lines.iter().any(|line| line.contains(said)),
            "no {said:?} in {lines:#?}"
        );
    }
    for line in &lines {
        assert!(!line.contains(['█', '▌', '░']), "{lines:#?}");
        assert!(!line.contains("catching up"), "{lines:#?}");
        assert!(line.is_empty() || line.contains("INFO"), "{lines:#?}");
    }
}

#[test]
fn without_a_terminal_lines_tell_and_nothing_is_escaped() {
    let bench = bench();
    let said = |arguments: &[&str]| {
        let mut command = bench.command(arguments);
        let command = command.stdin(Stdio::null()).env("TERM", "xterm");
        let output = command.output().unwrap();
        assert!(output.status.success());
        assert!(output.stdout.is_empty());
        String::from_utf8(output.stderr).unwrap()
    };
    let lines = said(&["run", "--once"]);
    let told = lines.lines().find(|line| line.contains("catching up"));
    let told = told.unwrap_or_else(|| panic!("nothing told in {lines}"));
    for field in [
        "INFO",
        "height=",
        &format!("target={BLOCKS}"),
        "mb_s=",
        "seconds_left=",
    ] {
        assert!(
            lines
                .lines()
                .any(|line| line.contains("catching up") && line.contains(field)),
            "no {field} in {told:?}"
        );
    }
    assert!(lines.contains("at the source's tip"));
    assert!(!lines.contains(['\x1b', '\r', '█', '▌', '░']), "{lines:?}");
    for line in said(&["--json", "run", "--once"]).lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        assert!(line["level"].is_string() && line["fields"]["message"].is_string());
    }
}
