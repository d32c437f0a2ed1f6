//! How a line is edited: prompt, colours, completion menu.

use std::{
    borrow::Cow,
    cell::RefCell,
    path::PathBuf,
    time::{Duration, Instant},
};

use nu_ansi_term::{Color, Style};
use reedline::{
    ColumnarMenu, Completer, CompletionResult, Emacs, Highlighter, KeyCode, KeyModifiers,
    MenuBuilder as _, Prompt, PromptEditMode, PromptHistorySearch, PromptHistorySearchStatus,
    Reedline, ReedlineEvent, ReedlineMenu, Span, StyledText, Suggestion, default_emacs_keybindings,
};
use weft_client::Client;

use super::complete::{Candidate, Live, candidates};
use crate::{context::Context, render::clean};

const MENU: &str = "completion";
/// How long a key press may wait for the daemon.
const PATIENCE: Duration = Duration::from_millis(300);
/// How long what it said is good enough.
const FRESH: Duration = Duration::from_secs(2);

pub(super) fn editor(context: &Context) -> Reedline {
    let mut keys = default_emacs_keybindings();
    keys.add_binding(
        KeyModifiers::NONE,
        KeyCode::Tab,
        ReedlineEvent::UntilFound(vec![
            ReedlineEvent::Menu(MENU.into()),
            ReedlineEvent::MenuNext,
        ]),
    );
    keys.add_binding(
        KeyModifiers::SHIFT,
        KeyCode::BackTab,
        ReedlineEvent::MenuPrevious,
    );
    Reedline::create()
        .with_ansi_colors(context.colour())
        .with_edit_mode(Box::new(Emacs::new(keys)))
        .with_completer(Box::new(Words {
            grammar: super::grammar(),
            live: Daemon::new(context.layout.socket.clone()),
        }))
        .with_menu(ReedlineMenu::EngineCompleter(Box::new(
            ColumnarMenu::default().with_name(MENU),
        )))
        .with_highlighter(Box::new(Known {
            commands: super::grammar().get_subcommands().flat_map(names).collect(),
        }))
        .with_quick_completions(true)
        .with_partial_completions(true)
}

fn names(command: &clap::Command) -> Vec<String> {
    command
        .get_name_and_visible_aliases()
        .into_iter()
        .map(str::to_owned)
        .collect()
}

/// The prompt of now: the node's name, or that there is none.
pub(super) fn prompt(context: &Context) -> impl Prompt + use<> {
    let status = context
        .connect_within(PATIENCE)
        .and_then(|mut client| client.status());
    match status {
        Ok(status) => NodePrompt {
            text: clean(&status.name).into_owned(),
            colour: Color::Green,
        },
        Err(error) if error.is_not_running() => NodePrompt {
            text: "weft (down)".into(),
            colour: Color::Yellow,
        },
        Err(_) => NodePrompt {
            text: "weft (no answer)".into(),
            colour: Color::Red,
        },
    }
}

struct NodePrompt {
    text: String,
    colour: Color,
}

impl Prompt for NodePrompt {
    fn render_prompt_left(&self) -> Cow<'_, str> {
        Cow::Borrowed(&self.text)
    }

    fn render_prompt_right(&self) -> Cow<'_, str> {
        Cow::Borrowed("")
    }

    fn render_prompt_indicator(&self, _: PromptEditMode) -> Cow<'_, str> {
        Cow::Borrowed("> ")
    }

    fn render_prompt_multiline_indicator(&self) -> Cow<'_, str> {
        Cow::Borrowed("  ")
    }

    fn render_prompt_history_search_indicator(&self, search: PromptHistorySearch) -> Cow<'_, str> {
        let found = match search.status {
            PromptHistorySearchStatus::Passing => "",
            PromptHistorySearchStatus::Failing => "nothing found for ",
        };
        Cow::Owned(format!(" ({found}{}) ", search.term))
    }

    fn get_prompt_color(&self) -> Color {
        self.colour
    }

    fn get_indicator_color(&self) -> Color {
        self.colour
    }
}

/// Paints the command's name, red where there is none like it.
struct Known {
    commands: Vec<String>,
}

impl Highlighter for Known {
    fn highlight(&self, line: &str, _cursor: usize) -> StyledText {
        let begin = line.len() - line.trim_start().len();
        let end = line[begin..]
            .find(char::is_whitespace)
            .map_or(line.len(), |at| begin + at);
        let word = &line[begin..end];
        let known =
            ["exit", "quit"].contains(&word) || self.commands.iter().any(|command| command == word);
        let beginning = self
            .commands
            .iter()
            .any(|command| command.starts_with(word))
            || "exit".starts_with(word);
        let style = match (known, beginning) {
            (true, _) => Style::new().bold(),
            (false, true) => Style::new(),
            (false, false) => Style::new().fg(Color::Red),
        };
        let mut text = StyledText::new();
        text.push((Style::new(), line[..begin].to_owned()));
        text.push((style, word.to_owned()));
        text.push((Style::new(), line[end..].to_owned()));
        text
    }
}

struct Words {
    grammar: clap::Command,
    live: Daemon,
}

impl Completer for Words {
    fn complete(&mut self, line: &str, pos: usize) -> CompletionResult {
        let Some(text) = line.get(..pos) else {
            return CompletionResult::fresh(Vec::new());
        };
        let (start, candidates) = candidates(&self.grammar, text, &self.live);
        let suggestion = |candidate: Candidate| Suggestion {
            append_whitespace: !candidate.value.ends_with('='),
            value: candidate.value,
            description: candidate.about,
            span: Span::new(start, pos),
            ..Suggestion::default()
        };
        CompletionResult::fresh(candidates.into_iter().map(suggestion).collect::<Vec<_>>())
    }
}

/// What the daemon knows now, asked at most every [`FRESH`].
struct Daemon {
    socket: PathBuf,
    cache: RefCell<Option<(Instant, Snapshot)>>,
}

#[derive(Clone, Default)]
struct Snapshot {
    nodes: Vec<(String, String, String)>,
    peers: Vec<String>,
}

impl Daemon {
    fn new(socket: PathBuf) -> Self {
        Self {
            socket,
            cache: RefCell::new(None),
        }
    }

    fn known(&self) -> Snapshot {
        let mut cache = self.cache.borrow_mut();
        match &*cache {
            Some((at, known)) if at.elapsed() < FRESH => known.clone(),
            _ => {
                let known = self.ask().unwrap_or_default();
                *cache = Some((Instant::now(), known.clone()));
                known
            }
        }
    }

    fn ask(&self) -> Result<Snapshot, weft_client::Error> {
        let mut client = Client::connect_timeout(&self.socket, PATIENCE)?;
        let nodes = client.nodes()?.into_iter();
        Ok(Snapshot {
            nodes: nodes
                .map(|node| (node.name, node.node_id, node.overlay_address.to_string()))
                .collect(),
            peers: client
                .peers()?
                .into_iter()
                .map(|peer| peer.address.to_string())
                .collect(),
        })
    }
}

impl Live for Daemon {
    fn nodes(&self) -> Vec<(String, String, String)> {
        self.known().nodes
    }

    fn peers(&self) -> Vec<String> {
        self.known().peers
    }
}
