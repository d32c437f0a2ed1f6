//! How a command fails: the exit code and the words.

use std::{io, process::ExitCode};

/// A command that did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// It was asked for in a way that makes no sense.
    Usage(String),
    /// There is no daemon to ask.
    NotRunning(String),
    /// Anything else.
    Failed(String),
    /// It failed and has said so already (an echo that was not answered, a path that is not there).
    Shown,
    /// The same, with another exit code.
    ShownWith(u8),
    /// Nobody reads the output any more (`weft nodes | head -1`): no failure of ours.
    OutputClosed,
}

impl Failure {
    pub(crate) const FAILED: u8 = 1;
    pub(crate) const USAGE: u8 = 2;
    pub(crate) const NOT_RUNNING: u8 = 3;

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => Self::USAGE,
            Self::NotRunning(_) => Self::NOT_RUNNING,
            Self::Failed(_) | Self::Shown => Self::FAILED,
            Self::ShownWith(code) => *code,
            Self::OutputClosed => 0,
        }
    }

    /// Says what is wrong on standard error.
    pub(crate) fn report(&self, colour: bool) -> ExitCode {
        if let Self::Usage(words) | Self::NotRunning(words) | Self::Failed(words) = self {
            let (on, off) = if colour {
                ("\x1b[1;31m", "\x1b[0m")
            } else {
                ("", "")
            };
            eprintln!("{on}weft:{off} {}", crate::render::clean_lines(words));
        }
        ExitCode::from(self.code())
    }
}

impl From<weft_client::Error> for Failure {
    fn from(error: weft_client::Error) -> Self {
        if error.is_not_running() {
            Self::NotRunning(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(format!("{error:#}"))
    }
}

/// Of writing the output; other I/O errors get their context where they happen.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::BrokenPipe {
            Self::OutputClosed
        } else {
            Self::Failed(format!("the output cannot be written: {error}"))
        }
    }
}
