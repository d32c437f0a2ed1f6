//! The prompt: as a script through a pipe, and on a terminal of its own.

mod common;

use common::{Daemon, mesh};

#[test]
fn the_same_commands_give_the_same_output() {
    let daemon = Daemon::new(mesh);
    let input = "status\n\n  # a comment\nlsp\nwhy gw-c --avoid 'gw x'\npeers\n";
    let expected: String = [&["status"][..], &["lsp"], &["why", "gw-c"], &["peers"]]
        .iter()
        .map(|command| daemon.weft(command).ok())
        .collect();
    assert_eq!(daemon.weft_reading(&[], input).ok(), expected);
}

#[test]
fn the_options_of_the_program_hold_for_its_lines() {
    let daemon = Daemon::new(mesh);
    let out = daemon.weft_reading(&["--json"], "nodes\n").ok();
    assert!(
        serde_json::from_str::<serde_json::Value>(&out)
            .unwrap()
            .is_array()
    );
    let out = daemon
        .weft_reading(&[], "nodes --json\n--color=always status\n")
        .ok();
    assert!(out.starts_with('[') && out.contains("\x1b["), "{out}");
}

#[test]
fn every_line_is_run_and_the_first_failure_is_the_exit_code() {
    let daemon = Daemon::new(|call| match call {
        weft_client::api::Call::Status => Err("not now"),
        other => mesh(other),
    });
    let run = daemon.weft_reading(&[], "status\nnonsense\nlsp\n");
    assert!(run.out.contains("ingress primary"), "{run:#?}");
    assert!(
        run.err.contains("weft: not now\n")
            && run.err.contains("unrecognized subcommand 'nonsense'"),
        "{run:#?}"
    );
    assert_eq!(run.code, Some(1));
    assert_eq!(daemon.weft_reading(&[], "nonsense\nstatus\n").code, Some(2));
    assert_eq!(
        daemon.weft_reading(&[], "ping 'gw\n").fails(2),
        "weft: a quotation mark is not closed in: ping 'gw\n"
    );
}

#[test]
fn exit_ends_it_and_help_helps() {
    let daemon = Daemon::new(mesh);
    let out = daemon
        .weft_reading(&[], "help\nhelp ping\nexit\nstatus\n")
        .ok();
    assert!(
        out.contains("counters") && out.contains("--interval"),
        "{out}"
    );
    assert!(!out.contains("weftd 0.1.0"), "{out}");
    assert_eq!(daemon.weft_reading(&[], "quit").ok(), "");
    assert_eq!(daemon.weft_reading(&[], "").ok(), "");
}

#[test]
fn input_that_is_no_text_or_has_no_end_is_refused() {
    let daemon = Daemon::new(mesh);
    let error = daemon.weft_reading(&[], &"x".repeat(100_000)).fails(2);
    assert!(error.contains("longer than 65536 bytes"), "{error}");
}

/// A terminal by `script(1)`, which is on every Debian.
#[cfg(target_os = "linux")]
mod terminal {
    use std::{
        io::{Read as _, Write as _},
        process::{Child, ChildStdin, Command, Stdio},
        sync::{Arc, Mutex},
        thread,
        time::{Duration, Instant},
    };

    use super::*;

    struct Terminal {
        child: Child,
        keys: ChildStdin,
        screen: Arc<Mutex<String>>,
        _state: tempfile::TempDir,
        history: std::path::PathBuf,
    }

    impl Terminal {
        fn open(daemon: &Daemon, arguments: &str) -> Option<Self> {
            let state = tempfile::tempdir().unwrap();
            let line = format!(
                "stty rows 50 cols 150; exec {} --dir {} {arguments}",
                env!("CARGO_BIN_EXE_weft"),
                daemon.dir().display()
            );
            let spawned = Command::new("script")
                .args([
                    "--quiet",
                    "--return",
                    "--echo",
                    "never",
                    "--command",
                    &line,
                    "/dev/null",
                ])
                .env("XDG_STATE_HOME", state.path())
                .env("TERM", "xterm-256color")
                .env_remove("NO_COLOR")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn();
            let Ok(mut child) = spawned else {
                common::skip("script(1) is not installed");
                return None;
            };
            let keys = child.stdin.take().unwrap();
            let mut output = child.stdout.take().unwrap();
            let screen = Arc::new(Mutex::new(String::new()));
            let seen = screen.clone();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(read @ 1..) = output.read(&mut bytes) {
                    seen.lock()
                        .unwrap()
                        .push_str(&String::from_utf8_lossy(&bytes[..read]));
                }
            });
            let history = state.path().join("weft/history");
            Some(Self {
                child,
                keys,
                screen,
                _state: state,
                history,
            })
        }

        fn press(&mut self, keys: &str) {
            self.keys.write_all(keys.as_bytes()).unwrap();
            self.keys.flush().unwrap();
        }

        /// Waits until the terminal shows this, answering its questions for the cursor's place, and forgets what
        /// came before.
        #[track_caller]
        fn sees(&mut self, text: &str) {
            let deadline = Instant::now() + Duration::from_secs(20);
            loop {
                {
                    let mut screen = self.screen.lock().unwrap();
                    if screen.contains("\x1b[6n") {
                        *screen = screen.replacen("\x1b[6n", "", 1);
                        drop(screen);
                        self.press("\x1b[1;1R");
                        continue;
                    }
                    if let Some(at) = screen.find(text) {
                        screen.drain(..at + text.len());
                        return;
                    }
                    assert!(
                        Instant::now() < deadline,
                        "{text:?} does not appear; the screen: {screen:?}"
                    );
                }
                thread::sleep(Duration::from_millis(10));
            }
        }

        /// Waits for the program's end.
        fn end(&mut self) -> Option<i32> {
            self.child.wait().unwrap().code()
        }
    }

    #[test]
    fn names_complete_and_history_is_kept_for_its_owner() {
        let daemon = Daemon::new(mesh);
        let Some(mut terminal) = Terminal::open(&daemon, "") else {
            return;
        };
        terminal.sees("gw-a");
        terminal.sees("> ");
        // One node's id begins so: the rest comes by Tab.
        terminal.press("ping 8f2\t");
        terminal.sees("8f2a91c3000000");
        terminal.press("\r");
        terminal.sees("ping statistics");
        terminal.sees("> ");
        terminal.press("lsp\r");
        terminal.sees("1,234,567");
        terminal.sees("> ");
        terminal.press("exit\r");
        assert_eq!(terminal.end(), Some(0));
        let metadata = std::fs::metadata(&terminal.history).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions());
        assert_eq!(mode & 0o777, 0o600);
        let history = std::fs::read_to_string(&terminal.history).unwrap();
        assert!(history.contains("lsp\n"), "{history}");
    }

    #[test]
    fn control_c_ends_a_ping_with_its_statistics_and_not_the_prompt() {
        let daemon = Daemon::new(|call| match call {
            weft_client::api::Call::Ping { .. } => Ok(vec![]),
            other => mesh(other),
        });
        let Some(mut terminal) = Terminal::open(&daemon, "") else {
            return;
        };
        terminal.sees("> ");
        terminal.press("ping gw-c\r");
        terminal.sees("56 bytes of payload");
        terminal.press("\x03");
        terminal.sees("> ");
        terminal.press("version\r");
        terminal.sees("weftd  0.1.0");
        terminal.sees("> ");
        terminal.press("\x04");
        assert_eq!(terminal.end(), Some(0));
    }

    #[test]
    fn control_c_ends_a_ping_on_the_command_line() {
        let daemon = Daemon::new(|call| match call {
            weft_client::api::Call::Ping { .. } => Ok(vec![]),
            other => mesh(other),
        });
        let Some(mut terminal) = Terminal::open(&daemon, "ping gw-c") else {
            return;
        };
        terminal.sees("56 bytes of payload");
        terminal.press("\x03");
        assert_eq!(terminal.end(), Some(1));
    }

    #[test]
    fn init_asks_for_what_is_missing() {
        let first = tempfile::tempdir().unwrap();
        let dir = |name: &str| first.path().join(name).display().to_string();
        common::weft(&["--dir", &dir("a"), "init"]).ok();
        let join = common::weft(&["--dir", &dir("a"), "secret", "show"]).ok();
        let daemon = Daemon::new(mesh);
        let Some(mut terminal) = Terminal::open(&daemon, &format!("--dir {} init", dir("b")))
        else {
            return;
        };
        terminal.sees("String of the network to join");
        terminal.press("weft1-oops\r");
        terminal.sees("That is not right");
        terminal.press(&format!("{}\r", join.trim()));
        terminal.sees("Address of a gateway there");
        terminal.press("192.0.2.77\r");
        terminal.sees("set up for an existing network");
        assert_eq!(terminal.end(), Some(0));
        let config = weft_client::config::Config::load(&first.path().join("b/weft.toml")).unwrap();
        assert_eq!(config.peers[0].to_string(), "192.0.2.77:7117");
        assert_eq!(
            common::weft(&["--dir", &dir("b"), "secret", "show"]).ok(),
            join
        );
    }
}
