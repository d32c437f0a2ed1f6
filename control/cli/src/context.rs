//! What every command needs: where the daemon is, how to write, whether the user has had enough.

use std::{
    io::{self, IsTerminal as _, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anstyle::Style;
use serde::Serialize;
use weft_client::{Client, config::Layout};

use crate::{
    args::{ColourChoice, Global},
    failure::Failure,
};

/// Of one run of the program.
pub(crate) struct Context {
    /// Where the node's files are.
    pub(crate) layout: Layout,
    /// The folder that was named, for messages and for `weftd --dir`.
    pub(crate) dir: Option<PathBuf>,
    /// Machine-readable output.
    pub(crate) json: bool,
    out: Box<dyn Write>,
    colour: bool,
    choice: ColourChoice,
    timeout: Duration,
    interrupted: Option<Arc<AtomicBool>>,
}

impl Context {
    pub(crate) fn new(global: &Global) -> Result<Self, Failure> {
        let dir = match &global.dir {
            // weftd may run elsewhere, so it is told an absolute path.
            Some(dir) => Some(
                std::path::absolute(dir)
                    .map_err(|error| Failure::Usage(format!("--dir {}: {error}", dir.display())))?,
            ),
            None => None,
        };
        let mut layout = Layout::choose(dir.as_deref());
        if let Some(socket) = &global.socket {
            layout.socket.clone_from(socket);
        }
        Ok(Self {
            layout,
            dir,
            json: global.json,
            out: Box::new(io::stdout()),
            colour: use_colour(global.color, io::stdout().is_terminal()),
            choice: global.color,
            timeout: Duration::from_secs_f64(global.timeout),
            interrupted: None,
        })
    }

    /// For one line of the prompt, with options of its own.
    pub(crate) fn of_line(&self, global: &Global) -> Result<Self, Failure> {
        let context = Self {
            interrupted: self.interrupted.clone(),
            ..Self::new(global)?
        };
        if let Some(flag) = &context.interrupted {
            flag.store(false, Ordering::Relaxed);
        }
        Ok(context)
    }

    /// A connection to the daemon.
    pub(crate) fn connect(&self) -> Result<Client, weft_client::Error> {
        self.connect_within(self.timeout)
    }

    pub(crate) fn connect_within(&self, timeout: Duration) -> Result<Client, weft_client::Error> {
        let mut client = Client::connect_timeout(&self.layout.socket, timeout)?;
        if let Some(flag) = &self.interrupted {
            client.set_cancel(flag.clone());
        }
        Ok(client)
    }

    /// How long to wait for an answer.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// From now on Ctrl-C ends what is being waited for instead of the program; a second one before
    /// [`Self::was_interrupted`] looked ends the program after all.
    pub(crate) fn catch_interrupts(&mut self) -> Result<(), Failure> {
        if let Some(flag) = &self.interrupted {
            flag.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let flag = Arc::new(AtomicBool::new(false));
        let refused = |error| Failure::Failed(format!("Ctrl-C cannot be caught: {error}"));
        let sigint = signal_hook::consts::SIGINT;
        signal_hook::flag::register_conditional_default(sigint, flag.clone()).map_err(refused)?;
        signal_hook::flag::register(sigint, flag.clone()).map_err(refused)?;
        self.interrupted = Some(flag);
        Ok(())
    }

    /// Whether Ctrl-C was pressed since [`Self::catch_interrupts`].
    pub(crate) fn was_interrupted(&self) -> bool {
        self.interrupted
            .as_ref()
            .is_some_and(|flag| flag.load(Ordering::Relaxed))
    }

    /// Waits, shorter where Ctrl-C is pressed.
    pub(crate) fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while !self.was_interrupted() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            std::thread::sleep(left.min(Duration::from_millis(50)));
        }
    }

    /// Whether standard output is for a person.
    pub(crate) fn is_terminal(&self) -> bool {
        io::stdout().is_terminal()
    }

    /// Columns of the terminal; none where output goes elsewhere.
    pub(crate) fn width(&self) -> Option<usize> {
        terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| width.0.into())
    }

    /// Text in a style where colours are wanted.
    pub(crate) fn paint(&self, style: Style, text: &str) -> String {
        if self.colour && !text.is_empty() {
            format!("{style}{text}{style:#}")
        } else {
            text.to_owned()
        }
    }

    /// Whether output is coloured.
    pub(crate) fn colour(&self) -> bool {
        self.colour
    }

    pub(crate) fn colour_of_errors(&self) -> bool {
        use_colour(self.choice, io::stderr().is_terminal())
    }

    /// One line of output, seen at once.
    pub(crate) fn line(&mut self, text: &str) -> Result<(), Failure> {
        writeln!(self.out, "{}", text.trim_end_matches(' '))?;
        Ok(self.out.flush()?)
    }

    /// Text that ends with its own newline.
    pub(crate) fn text(&mut self, text: &str) -> Result<(), Failure> {
        self.out.write_all(text.as_bytes())?;
        Ok(self.out.flush()?)
    }

    /// One JSON document.
    pub(crate) fn document<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(value)
            .map_err(|error| Failure::Failed(error.to_string()))?;
        self.line(&text)
    }

    /// One line of a stream of JSON documents.
    pub(crate) fn item<T: Serialize>(&mut self, value: &T) -> Result<(), Failure> {
        let text =
            serde_json::to_string(value).map_err(|error| Failure::Failed(error.to_string()))?;
        self.line(&text)
    }

    pub(crate) fn finish(&mut self) -> Result<(), Failure> {
        Ok(self.out.flush()?)
    }
}

/// The convention of no-color.org, and terminals that say they are dumb.
fn use_colour(choice: ColourChoice, terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    match choice {
        ColourChoice::Always => true,
        ColourChoice::Never => false,
        ColourChoice::Auto => {
            terminal
                && !set("NO_COLOR")
                && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
        }
    }
}
