//! What a person at a terminal sees: a bar while the index catches up, and log lines above it.

use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};

use crate::status::Snapshot;

/// The bar on the screen.
static BAR: Mutex<Option<ProgressBar>> = Mutex::new(None);

fn on_screen() -> MutexGuard<'static, Option<ProgressBar>> {
    BAR.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Standard error, for whole lines; the bar makes room for them.
#[derive(Debug)]
pub struct Lines;

impl Write for Lines {
    fn write(&mut self, lines: &[u8]) -> io::Result<usize> {
        let bar = on_screen().clone();
        match bar {
            Some(bar) => bar.suspend(|| io::stderr().write_all(lines))?,
            None => io::stderr().write_all(lines)?,
        }
        Ok(lines.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Whether somebody is looking.
pub fn is_there() -> bool {
    io::stderr().is_terminal()
}

/// How far catching up is, until it is dropped.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// Shows a bar where there is a terminal.
    pub fn show() -> Option<Self> {
        if !is_there() {
            return None;
        }
        let style = ProgressStyle::with_template("{wide_bar} {percent}% {msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Some(Self(
            ProgressBar::new(0).with_style(style.progress_chars("█▌░")),
        ))
    }

    /// Draws how far it is.
    pub fn draw(&self, at: &Snapshot) {
        // Before the source said how far it goes there is no share of it.
        if at.target == 0 {
            return;
        }
        let left = match at.seconds_left {
            Some(seconds) => format!("{} left", span(seconds)),
            None => "time left unknown".to_owned(),
        };
        self.0.set_length(at.target.into());
        self.0.set_position(at.height.into());
        self.0.set_message(format!(
            "{} of {} blocks  {:.1} MB/s  {left}",
            at.height, at.target, at.mb_per_second
        ));
        // Only from here on there is one that makes room for lines, and that comes again after them.
        on_screen().get_or_insert_with(|| self.0.clone());
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
        *on_screen() = None;
    }
}

/// Seconds for a person.
fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min", seconds / 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::span;

    #[test]
    fn time_for_a_person() {
        let spans = [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3599, "59 min")];
        for (seconds, text) in spans {
            assert_eq!(span(seconds), text);
        }
        assert_eq!(span(7260), "2 h 1 min");
        assert_eq!(span(90_000), "1 d 1 h");
    }
}
