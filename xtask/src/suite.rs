//! `cargo xtask test`: every test of both workspaces, in an order that finds the cheap failures first, with one line at
//! the end that says how many passed, failed and could not run.
//!
//! Test programs are run one after the other. Those named `net_*` bring up labs and do timing, so their tests run one
//! at a time; the others use all cores. What a test prints is shown when it fails; skip lines are collected.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{BufRead, BufReader, Read},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::Deserialize;

use crate::{
    building,
    paths::{self, Part},
    setup::{self, Need, nodes},
    skip, term,
};

/// Longest time for one test program before it is ended and counted as failed.
const PROGRAM_LIMIT: Duration = Duration::from_secs(15 * 60);
/// The order of packages: what others stand on first.
const ORDER: &[&str] = &[
    "weft-abi",
    "weft-core",
    "weft-client",
    "weft-cli",
    "weft-node",
    "xtask",
    "weft-chain",
    "weft-source",
    "weft-store",
];

/// What came of the tests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Ran and held.
    pub passed: usize,
    /// `program: test` of those that ran and did not hold.
    pub failed: Vec<String>,
    /// `program: test` of those that could not run, and why.
    pub skipped: BTreeMap<String, String>,
}

impl Tally {
    /// The closing line.
    #[must_use]
    pub fn summary(&self) -> String {
        format!(
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed.len(),
            self.skipped.len()
        )
    }

    /// Takes in one line of a libtest program's output; whether it is worth showing at once.
    fn take(&mut self, program: &str, line: &str, seen: &mut BTreeSet<String>) -> bool {
        if let Some((test, reason)) = skip::parse(line.trim_start()) {
            // libtest counts it as passed.
            let name = format!("{program}: {test}");
            if self.skipped.insert(name, reason.to_owned()).is_none() && seen.contains(test) {
                self.passed = self.passed.saturating_sub(1);
            }
            return true;
        }
        let Some((test, verdict)) = line
            .strip_prefix("test ")
            .and_then(|l| l.split_once(" ... "))
        else {
            return false;
        };
        let test = test.trim_end_matches(" - should panic");
        let name = format!("{program}: {test}");
        if verdict == "ok" {
            seen.insert(test.to_owned());
            if !self.skipped.contains_key(&name) {
                self.passed += 1;
            }
        } else if let Some(reason) = verdict.strip_prefix("ignored") {
            let reason = reason.trim_start_matches(", ");
            let reason = if reason.is_empty() {
                "marked #[ignore] without a reason"
            } else {
                reason
            };
            self.skipped.insert(name, reason.to_owned());
        } else if verdict.starts_with("FAILED") {
            self.failed.push(name);
            return true;
        }
        false
    }
}

/// Runs the suite, or the tests whose names contain `filter`.
///
/// # Errors
/// When the build fails, or any test failed (after the summary was printed).
pub fn test(filter: Option<&str>, only: Option<Part>) -> Result<()> {
    let begun = Instant::now();
    let cargos = cargos(only)?;
    term::step("building the programs and the tests");
    let mut tests = Vec::new();
    for cargo in &cargos {
        tests.extend(test_programs(cargo())?);
    }
    tests.sort_by(|a, b| a.order.cmp(&b.order));
    let programs = paths::target().join("debug");
    let mut tally = Tally::default();
    for test in &tests {
        term::step(&format!(
            "{} ({:.0} s so far)",
            test.name,
            begun.elapsed().as_secs_f64()
        ));
        let mut command = Command::new(&test.executable);
        command.args(["--show-output"]).args(filter);
        if test.one_at_a_time {
            command.arg("--test-threads=1");
        }
        command
            .current_dir(&test.folder)
            .env("CARGO_MANIFEST_DIR", &test.folder);
        command.env("WEFT_BIN_DIR", &programs);
        if let Some(bcoin) = nodes::bcoin() {
            command.env("WEFT_BCOIN", bcoin);
        }
        run_program(&test.name, command, &mut tally)?;
    }
    term::step("documentation tests");
    for cargo in &cargos {
        let mut command = cargo();
        command
            .args([
                "test",
                "--quiet",
                "--workspace",
                "--doc",
                "--",
                "--format=pretty",
                "--show-output",
            ])
            .args(filter);
        run_program("documentation", command, &mut tally)?;
    }

    if !tally.skipped.is_empty() {
        term::heading("Skipped");
        for (test, reason) in &tally.skipped {
            term::warn(&format!("{test}: {reason}"));
        }
    }
    if !tally.failed.is_empty() {
        term::heading("Failed");
        for test in &tally.failed {
            term::bad(test);
        }
    }
    println!(
        "\n{} in {:.0} s",
        tally.summary(),
        begun.elapsed().as_secs_f64()
    );
    if !tally.failed.is_empty() {
        bail!("{} of the tests failed", tally.failed.len());
    }
    if tally.passed == 0 {
        bail!(
            "no test ran{}",
            filter
                .map(|f| format!(": none has a name with {f:?} in it"))
                .unwrap_or_default()
        );
    }
    Ok(())
}

/// Cargo in a workspace.
type Cargo = Box<dyn Fn() -> Command>;

/// Sets up what the tests need; gives cargo for each workspace whose tests are wanted.
fn cargos(only: Option<Part>) -> Result<Vec<Cargo>> {
    let mut cargos: Vec<Cargo> = Vec::new();
    if only != Some(Part::Index) {
        if let Err(obstacle) = setup::ensure(Need::Run) {
            term::warn(&format!(
                "tests that need nodes in namespaces will be skipped: {obstacle:#}"
            ));
        }
        let ebpf = setup::ensure(Need::Build)?;
        cargos.push(Box::new(move || building::cargo(&ebpf)));
    }
    if only != Some(Part::Mesh) {
        setup::index(Need::Run, false)?;
        cargos.push(Box::new(building::index_cargo));
    }
    Ok(cargos)
}

/// Tests that the suite runs in a short form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Soak {
    /// The index: 200 times killed at a random moment, ten minutes beside a live node.
    Index,
}

/// Runs the long form of tests.
///
/// # Errors
/// When the build fails or a test does.
pub fn soak(what: Soak) -> Result<()> {
    let Soak::Index = what;
    setup::index(Need::Run, false)?;
    let mut command = building::index_cargo();
    command
        .args(["test", "--package", "weft-indexd", "--test", "crash"])
        .args(["--test", "live", "--", "--nocapture"])
        .env("WEFT_CRASH_ROUNDS", "200")
        .env("WEFT_LIVE_SECONDS", "600");
    term::run(&mut command)
}

/// A compiled test program.
#[derive(Clone, Debug)]
struct TestProgram {
    /// `package` or `package::target`, for people.
    name: String,
    executable: PathBuf,
    folder: PathBuf,
    one_at_a_time: bool,
    order: (usize, bool, String),
}

/// Compiles all test programs of a workspace and lists them.
fn test_programs(mut command: Command) -> Result<Vec<TestProgram>> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        manifest_path: Option<PathBuf>,
        target: Option<Target>,
        executable: Option<PathBuf>,
        profile: Option<ProfileOf>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    #[derive(Deserialize)]
    struct ProfileOf {
        test: bool,
    }
    // One build for programs and tests: what they share is compiled once, with the same features.
    command.args(["build", "--workspace", "--lib", "--bins", "--tests"]);
    command.arg("--message-format=json-render-diagnostics");
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", term::shown(&command)))?;
    let stdout = child.stdout.take().context("no pipe from cargo")?;
    let mut programs = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(&line?) else {
            continue;
        };
        let (Some(manifest), Some(target), Some(executable)) =
            (message.manifest_path, message.target, message.executable)
        else {
            continue;
        };
        if message.reason != "compiler-artifact" || !message.profile.is_some_and(|p| p.test) {
            continue;
        }
        let folder = manifest.parent().unwrap_or(&manifest).to_owned();
        let package = package_name(&folder);
        let network = target.name.starts_with("net_");
        let unit = target.kind.iter().any(|k| k == "lib");
        let place = ORDER
            .iter()
            .position(|p| *p == package)
            .unwrap_or(ORDER.len());
        programs.push(TestProgram {
            name: if unit {
                package
            } else {
                format!("{package}::{}", target.name)
            },
            executable,
            folder,
            one_at_a_time: network,
            order: (if network { usize::MAX } else { place }, !unit, target.name),
        });
    }
    let status = child.wait()?;
    if !status.success() {
        bail!(
            "the tests do not build (`{}` ended with {status})",
            term::shown(&command)
        );
    }
    Ok(programs)
}

/// The package's name out of its manifest.
fn package_name(folder: &std::path::Path) -> String {
    #[derive(Deserialize)]
    struct Manifest {
        package: Package,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
    }
    std::fs::read_to_string(folder.join("Cargo.toml"))
        .ok()
        .and_then(|text| toml::from_str::<Manifest>(&text).ok())
        .map_or_else(|| folder.display().to_string(), |m| m.package.name)
}

/// Runs one libtest program, shows what failed, and adds to the tally.
fn run_program(name: &str, mut command: Command, tally: &mut Tally) -> Result<()> {
    // A group of its own, so that the time limit ends what it started as well.
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0);
    let mut child = command
        .spawn()
        .with_context(|| format!("cannot start `{}`", term::shown(&command)))?;
    let (sender, lines) = mpsc::channel();
    forward(child.stdout.take(), sender.clone());
    forward(child.stderr.take(), sender);
    let deadline = Instant::now() + PROGRAM_LIMIT;
    let (mut seen, mut text) = (BTreeSet::new(), Vec::new());
    let failed_before = tally.failed.len();
    let mut timed_out = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if tally.take(name, &line, &mut seen) {
                    println!("    {line}");
                }
                text.push(line);
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                timed_out = true;
                end_group(&mut child);
                break;
            }
        }
    }
    let status = child.wait()?;
    if timed_out {
        tally.failed.push(format!(
            "{name}: did not end within {} s",
            PROGRAM_LIMIT.as_secs()
        ));
    } else if !status.success() && tally.failed.len() == failed_before {
        tally.failed.push(format!("{name}: ended with {status}"));
    }
    if tally.failed.len() > failed_before {
        for line in failure_part(&text) {
            println!("    {line}");
        }
    }
    Ok(())
}

/// What libtest printed from the first failure on; all of it where it did not get that far.
fn failure_part(text: &[String]) -> &[String] {
    let start = text.iter().position(|l| l == "failures:").unwrap_or(0);
    &text[start..]
}

fn forward(from: Option<impl Read + Send + 'static>, to: mpsc::Sender<String>) {
    let Some(from) = from else { return };
    std::thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if to
                .send(String::from_utf8_lossy(&line).trim_end().to_owned())
                .is_err()
            {
                return;
            }
        }
    });
}

/// Asks the child's process group to end (labs remove themselves on SIGTERM), then makes it.
fn end_group(child: &mut Child) {
    let Ok(group) = i32::try_from(child.id()) else {
        return;
    };
    for (signal, patience) in [
        (libc::SIGTERM, Duration::from_secs(10)),
        (libc::SIGKILL, Duration::from_secs(5)),
    ] {
        // SAFETY: signals the group led by our own child, which has not been waited for, so its id is still its.
        unsafe { libc::kill(-group, signal) };
        let deadline = Instant::now() + patience;
        while Instant::now() < deadline {
            if matches!(child.try_wait(), Ok(Some(_))) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str) -> Tally {
        let (mut tally, mut seen) = (Tally::default(), BTreeSet::new());
        for line in text.lines() {
            tally.take("p", line, &mut seen);
        }
        tally
    }

    #[test]
    fn a_skipped_test_is_not_passed() {
        let shown_after = tally(
            "test a ... ok\ntest b ... ok\n\nsuccesses:\n\n---- b stdout ----\nSKIPPED b: not root\n",
        );
        assert_eq!(shown_after.summary(), "1 passed, 0 failed, 1 skipped");
        assert_eq!(shown_after.skipped["p: b"], "not root");
        let shown_before =
            tally("SKIPPED b: not root\ntest a ... ok\ntest b ... ok\nSKIPPED b: not root");
        assert_eq!(shown_before.summary(), "1 passed, 0 failed, 1 skipped");
    }

    #[test]
    fn ignored_and_failed_tests_count() {
        let t = tally(
            "test a ... ignored, takes an hour\ntest b ... FAILED\ntest c - should panic ... ok\n",
        );
        assert_eq!(t.summary(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(t.failed, ["p: b"]);
        assert_eq!(t.skipped["p: a"], "takes an hour");
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let mut t = Tally::default();
        run_program("p", Command::new("false"), &mut t).unwrap();
        assert_eq!(t.summary(), "0 passed, 1 failed, 0 skipped");
    }
}
