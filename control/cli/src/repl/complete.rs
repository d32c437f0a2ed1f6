//! Which words may stand at the end of a line: from the grammar of the command line and from what the daemon knows.

use clap::{Arg, Command};

/// What is only known at run time.
pub(super) trait Live {
    /// (name, node id, overlay address) of all nodes.
    fn nodes(&self) -> Vec<(String, String, String)>;
    /// Underlay addresses of the neighbours.
    fn peers(&self) -> Vec<String>;
}

/// A word that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The word.
    pub(super) value: String,
    /// What it is.
    pub(super) about: Option<String>,
}

/// The words that fit at the end of `text`, and where in `text` the word begins that they replace.
pub(super) fn candidates(root: &Command, text: &str, live: &dyn Live) -> (usize, Vec<Candidate>) {
    let start = text.rfind(char::is_whitespace).map_or(0, |at| {
        at + text[at..].chars().next().map_or(1, char::len_utf8)
    });
    let (before, word) = text.split_at(start);
    let mut place = Place {
        command: root,
        value_of: None,
        positionals: 0,
    };
    before
        .split_whitespace()
        .for_each(|word| place.advance(word));

    let mut start = start;
    let mut found = if let Some(arg) = place.value_of {
        values(arg, word, live)
    } else if let Some((option, value)) = word
        .strip_prefix("--")
        .and_then(|word| word.split_once('='))
    {
        start += word.len() - value.len();
        place
            .long(option)
            .map(|arg| values(arg, value, live))
            .unwrap_or_default()
    } else if word.starts_with('-') {
        place.options(word)
    } else {
        place.words(word, live)
    };
    if before.trim().is_empty() {
        let exit = Candidate {
            value: "exit".into(),
            about: Some("Leave".into()),
        };
        found.extend(Some(exit).filter(|exit| exit.value.starts_with(word)));
    }
    (start, found)
}

/// Where in the grammar a line has come to.
struct Place<'a> {
    command: &'a Command,
    /// The option whose value comes next.
    value_of: Option<&'a Arg>,
    /// Positional arguments given so far.
    positionals: usize,
}

impl<'a> Place<'a> {
    fn advance(&mut self, word: &str) {
        if self.value_of.take().is_some() {
            return;
        }
        if let Some(long) = word.strip_prefix("--") {
            self.value_of = self.long(long).filter(|arg| needs_value(arg));
        } else if let Some(short) = word
            .strip_prefix('-')
            .and_then(|word| word.chars().next_back())
        {
            let arg = self
                .command
                .get_arguments()
                .find(|arg| arg.get_short() == Some(short));
            self.value_of = arg.filter(|arg| needs_value(arg));
        } else if let Some(command) = self
            .command
            .find_subcommand(word)
            .filter(|_| self.positionals == 0)
        {
            self.command = command;
        } else {
            self.positionals += 1;
        }
    }

    fn long(&self, long: &str) -> Option<&'a Arg> {
        self.command
            .get_arguments()
            .find(|arg| arg.get_long() == Some(long))
    }

    fn options(&self, word: &str) -> Vec<Candidate> {
        let named = self
            .command
            .get_arguments()
            .filter(|arg| !arg.is_hide_set());
        named
            .filter_map(|arg| {
                Some(Candidate {
                    value: format!("--{}", arg.get_long()?),
                    about: arg.get_help().map(ToString::to_string),
                })
            })
            .filter(|candidate| candidate.value.starts_with(word))
            .collect()
    }

    fn words(&self, word: &str, live: &dyn Live) -> Vec<Candidate> {
        let commands = self
            .command
            .get_subcommands()
            .filter(|command| !command.is_hide_set() && self.positionals == 0);
        let mut found: Vec<Candidate> = commands
            .filter(|command| command.get_name().starts_with(word))
            .map(|command| Candidate {
                value: command.get_name().to_owned(),
                about: command.get_about().map(ToString::to_string),
            })
            .collect();
        if let Some(arg) = self.command.get_positionals().nth(self.positionals) {
            found.extend(values(arg, word, live));
        }
        found
    }
}

fn needs_value(arg: &Arg) -> bool {
    arg.get_num_args()
        .is_some_and(|range| range.min_values() > 0)
        && arg.get_action().takes_values()
}

fn values(arg: &Arg, word: &str, live: &dyn Live) -> Vec<Candidate> {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let fitting = possible
            .iter()
            .filter(|value| !value.is_hide_set() && value.get_name().starts_with(word));
        return fitting
            .map(|value| Candidate {
                value: value.get_name().to_owned(),
                about: value.get_help().map(ToString::to_string),
            })
            .collect();
    }
    match arg.get_id().as_str() {
        "node" | "include" | "avoid" => nodes(word, live),
        "address" => {
            let fitting = live
                .peers()
                .into_iter()
                .filter(|address| address.starts_with(word));
            fitting
                .map(|value| Candidate { value, about: None })
                .collect()
        }
        _ => Vec::new(),
    }
}

/// By name; by id or address where the word begins like one.
fn nodes(word: &str, live: &dyn Live) -> Vec<Candidate> {
    live.nodes()
        .into_iter()
        .filter_map(|(name, id, address)| {
            let fits = |text: &str| text.starts_with(word);
            match (
                fits(&name) && !name.is_empty(),
                !word.is_empty() && fits(&id),
                !word.is_empty() && fits(&address),
            ) {
                (true, _, _) => Some(Candidate {
                    value: name,
                    about: Some(address),
                }),
                (_, true, _) => Some(Candidate {
                    value: id,
                    about: Some(name),
                }),
                (_, _, true) => Some(Candidate {
                    value: address,
                    about: Some(name),
                }),
                _ => None,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed;

    impl Live for Fixed {
        fn nodes(&self) -> Vec<(String, String, String)> {
            [
                ("gw-a", "8f2a", "fd00::a"),
                ("gw-b", "17c0", "fd00::b"),
                ("", "99aa", "fd00::c"),
            ]
            .map(|(name, id, address)| (name.into(), id.into(), address.into()))
            .into()
        }

        fn peers(&self) -> Vec<String> {
            vec!["192.0.2.1:7117".into()]
        }
    }

    fn complete(text: &str) -> Vec<String> {
        let (start, found) = candidates(&crate::repl::grammar(), text, &Fixed);
        found
            .into_iter()
            .map(|candidate| format!("{}{}", &text[..start], candidate.value))
            .collect()
    }

    #[test]
    fn commands_complete() {
        assert_eq!(complete("pi"), ["ping"]);
        assert_eq!(complete("  pe"), ["  peers"]);
        assert_eq!(
            complete("peers "),
            ["peers list", "peers add", "peers remove", "peers help"]
        );
        assert_eq!(complete("ex"), ["exit"]);
        assert!(complete("").contains(&"status".to_owned()));
        assert_eq!(complete("help pi"), ["help ping"]);
        assert_eq!(complete("nonsense "), Vec::<String>::new());
    }

    #[test]
    fn nodes_complete_by_name_id_and_address() {
        assert_eq!(complete("ping "), ["ping gw-a", "ping gw-b"]);
        assert_eq!(complete("trace gw-b"), ["trace gw-b"]);
        assert_eq!(complete("ping 8f"), ["ping 8f2a"]);
        assert_eq!(complete("ping fd00::c"), ["ping fd00::c"]);
        assert_eq!(complete("ping -c 3 gw-a"), ["ping -c 3 gw-a"]);
        assert_eq!(complete("ping gw-a "), Vec::<String>::new());
        assert_eq!(complete("why gw-a --avoid gw-b"), ["why gw-a --avoid gw-b"]);
        assert_eq!(complete("why gw-a --avoid=gw-b"), ["why gw-a --avoid=gw-b"]);
    }

    #[test]
    fn options_and_their_values_complete() {
        assert_eq!(complete("ping --cou"), ["ping --count"]);
        assert_eq!(complete("links --js"), ["links --json"]);
        assert_eq!(complete("--color n"), ["--color never"]);
        assert_eq!(complete("completions z"), ["completions zsh"]);
        assert_eq!(complete("peers remove "), ["peers remove 192.0.2.1:7117"]);
        assert_eq!(complete("ping --count "), Vec::<String>::new());
        assert_eq!(
            complete("counters --watch --al"),
            ["counters --watch --all"]
        );
    }

    #[test]
    fn any_text_is_survived() {
        for text in [
            "\u{3000}pi",
            "é",
            "-",
            "--",
            "--=",
            "ping --count=",
            "\t",
            "a\u{a0}b",
            "-c",
            "help help help",
        ] {
            complete(text);
        }
    }
}
