//! Tests that cannot run here: how they say so, and how the suite counts them.
//!
//! libtest knows only passed, failed and ignored. A test that finds out at run time that it cannot run (no root, no
//! BPF) prints one line made by [`line`] and returns; [`crate::suite`] counts it as skipped instead of passed.

use std::fmt::Display;

/// How such a line begins.
pub const MARK: &str = "SKIPPED ";

/// The line to print: which test, and why it cannot run.
#[must_use]
pub fn line(test: &str, reason: impl Display) -> String {
    let reason = reason.to_string().replace('\n', " ");
    format!("{MARK}{test}: {reason}")
}

/// Test and reason out of such a line.
#[must_use]
pub fn parse(line: &str) -> Option<(&str, &str)> {
    line.strip_prefix(MARK)?.split_once(": ")
}

/// Prints the line for the test that runs on this thread and returns from it.
///
/// `skip!("not root")`; the test's name is the thread's, as libtest sets it.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        let thread = std::thread::current();
        println!("{}", $crate::skip::line(thread.name().unwrap_or("a test"), format_args!($($reason)*)));
        return;
    }};
}

/// In a test that runs nodes in namespaces: skips it, with the reason, where that is impossible.
#[macro_export]
macro_rules! needs_lab {
    () => {
        if let Some(obstacle) = $crate::setup::host::obstacle() {
            $crate::skip!("{obstacle}");
        }
        if let Err(error) = $crate::paths::Programs::find() {
            $crate::skip!("{error:#}");
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_comes_back() {
        let text = line("net::chain", "not root\nat all");
        assert_eq!(parse(&text), Some(("net::chain", "not root at all")));
        assert_eq!(parse("test net::chain ... ok"), None);
    }
}
