//! `weft up`, `down` and `restart`: weftd as a process, by systemd where its service is installed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom},
    os::unix::{fs::OpenOptionsExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use serde::Serialize;
use weft_client::{
    Client, Error,
    api::{HostChange, Status},
    config::Config,
};

use super::{init::dir_option, tables};
use crate::{
    args::{DownArgs, UpArgs},
    context::Context,
    failure::Failure,
    render::{Cell, GOOD, NAME, Table, clean},
};

/// The systemd unit of the system's node.
const UNIT: &str = "weftd.service";
/// How long weftd may take to stop and undo.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long `weft up` looks out for a first neighbour, so that it can say whether the mesh is reached.
const NEIGHBOUR_WITHIN: Duration = Duration::from_secs(3);
/// As long as no further node became known for this time, all are taken to be.
const SETTLED: Duration = Duration::from_millis(500);
/// Between two looks at something that changes on its own.
const POLL: Duration = Duration::from_millis(50);
/// The log of a detached weftd is moved aside at a start from this size on, bytes.
const LOG_FULL: u64 = 8 * 1024 * 1024;
/// How much of the log is looked through for what went wrong, bytes and lines.
const LOG_TAIL: u64 = 64 * 1024;
const LOG_LINES: usize = 15;
/// Lines at the end of the log of a weftd that did not start, shown in any case.
const LAST_WORDS: usize = 3;

pub(super) fn up(context: &mut Context, args: &UpArgs) -> Result<(), Failure> {
    match context.connect() {
        Ok(mut client) => {
            let status = client.status()?;
            if context.json {
                return context.document(&status);
            }
            context.line(&format!("weftd is running already (pid {}).\n", status.pid))?;
            return tables::show_status(context, &status);
        }
        Err(error) if error.is_not_running() => {}
        Err(error) => return Err(error.into()),
    }
    // Told here, before anything is started, and with the same words as weftd's.
    let config = Config::load(&context.layout.config)
        .map_err(|error| Failure::Failed(format!("weftd was not started. {error}")))?;
    let status = if has_unit(context) {
        start_unit(context, args)?
    } else {
        start_detached(context, args)?
    };
    if config.peers.is_empty() {
        return if context.json {
            context.document(&status)
        } else {
            tables::show_status(context, &status)
        };
    }
    let mut client = context.connect()?;
    let reached = wait_for_neighbour(&mut client)?;
    let (status, peers) = (client.status()?, client.peers()?);
    if context.json {
        return context.document(&status);
    }
    tables::show_status(context, &status)?;
    context.line("")?;
    super::peers::show(context, &peers)?;
    if !reached {
        let dir = dir_option(context);
        context.line(&format!("\nNo neighbour has answered yet. weftd goes on calling; `weft{dir} peers` shows how it stands."))?;
        context.line("If it stays so: is weftd up there, does a firewall let its UDP port through, has it the same network secret?")?;
    }
    Ok(())
}

/// Waits until the nodes of the mesh are known, so that what follows `weft up` finds them; false where no neighbour
/// answers in time.
fn wait_for_neighbour(client: &mut Client) -> Result<bool, Failure> {
    let deadline = Instant::now() + NEIGHBOUR_WITHIN;
    let mut last = (0, Instant::now());
    loop {
        let status = client.status()?;
        if status.nodes != last.0 {
            last = (status.nodes, Instant::now());
        }
        let settled = status.neighbours > 0 && status.nodes > 1 && last.1.elapsed() > SETTLED;
        if settled || Instant::now() > deadline {
            return Ok(status.neighbours > 0);
        }
        std::thread::sleep(POLL);
    }
}

pub(super) fn restart(context: &mut Context, args: &UpArgs) -> Result<(), Failure> {
    match context.connect() {
        Ok(client) => {
            // A configuration that would be refused must not take the running one down.
            Config::load(&context.layout.config).map_err(|error| {
                Failure::Failed(format!("weftd goes on running as it is. {error}"))
            })?;
            let pid = stop(context, client, true)?;
            if !context.json {
                context.line(&format!(
                    "weftd (pid {pid}) has stopped; the kernel goes on switching transit."
                ))?;
            }
        }
        Err(error) if error.is_not_running() => {}
        Err(error) => return Err(error.into()),
    }
    up(context, args)
}

/// What `weft down --json` prints.
#[derive(Serialize)]
struct Stopped {
    /// Process id of the weftd that was stopped; null where none ran.
    pid: Option<u32>,
    /// What it had changed on this host and has undone; what it left with `--keep-transit`.
    host: Vec<HostChange>,
    /// What weftd said when it undid what a dead one had left.
    undone: Option<String>,
}

pub(super) fn down(context: &mut Context, args: &DownArgs) -> Result<(), Failure> {
    let mut client = match context.connect() {
        Ok(client) => client,
        Err(error) if error.is_not_running() => return undo_leftovers(context, args, &error),
        Err(error) => return Err(error.into()),
    };
    // For the report only: a daemon too ill to tell is stopped all the same.
    let host = client.host().unwrap_or_default();
    let pid = if !args.keep_transit && has_unit(context) && unit_is_active() {
        let pid = client.status()?.pid;
        systemctl("stop")?;
        wait_for_end(context, pid)?;
        pid
    } else {
        stop(context, client, args.keep_transit)?
    };
    if context.json {
        return context.document(&Stopped {
            pid: Some(pid),
            host,
            undone: None,
        });
    }
    if args.keep_transit {
        return context.line(&format!("weftd (pid {pid}) has stopped; the kernel goes on switching transit until `weft up` or `weft down`."));
    }
    context.line(&format!(
        "weftd (pid {pid}) has stopped and undone what it had changed on this host:"
    ))?;
    let mut table = Table::bare(&[crate::render::Align::Left; 2]).indented(2);
    for change in &host {
        table.row([Cell::new(&change.kind, NAME), Cell::from(&change.what)]);
    }
    table.print(context)
}

/// No daemon answers: let `weftd --undo` take back what its predecessor left.
fn undo_leftovers(context: &mut Context, args: &DownArgs, error: &Error) -> Result<(), Failure> {
    if args.keep_transit {
        return Err(Failure::NotRunning(error.to_string()));
    }
    let program = find_daemon(context, args.daemon.as_deref())?;
    let mut command = Command::new(&program);
    if let Some(dir) = &context.dir {
        command.arg("--dir").arg(dir);
    }
    let output = command
        .arg("--undo")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| {
            Failure::Failed(format!("{} cannot be run: {error}", program.display()))
        })?;
    let said = [&output.stdout[..], &output.stderr[..]]
        .map(String::from_utf8_lossy)
        .concat();
    let said = plain(said.trim());
    if !output.status.success() {
        return Err(Failure::Failed(format!(
            "weftd is not running, and `weftd --undo` could not take back what it left ({}):\n{said}",
            ended(output.status)
        )));
    }
    if context.json {
        return context.document(&Stopped {
            pid: None,
            host: Vec::new(),
            undone: Some(said),
        });
    }
    context.line("weftd was not running.")?;
    if said.is_empty() {
        Ok(())
    } else {
        context.line(&crate::render::clean_lines(&said))
    }
}

/// Asks the daemon to stop and waits until it is gone. Returns its process id.
fn stop(context: &mut Context, mut client: Client, keep_transit: bool) -> Result<u32, Failure> {
    let pid = client.status()?.pid;
    client.set_timeout(STOP_WITHIN);
    match client.shutdown(keep_transit) {
        // It may be gone before its answer is.
        Ok(()) | Err(Error::Closed) => {}
        Err(error) => return Err(error.into()),
    }
    wait_for_end(context, pid)?;
    Ok(pid)
}

fn wait_for_end(context: &Context, pid: u32) -> Result<(), Failure> {
    let deadline = Instant::now() + STOP_WITHIN;
    while is_alive(pid) {
        if Instant::now() > deadline {
            return Err(Failure::Failed(format!(
                "weftd (pid {pid}) was told to stop and still runs after {} s. {}\nAs a last resort: `kill -9 {pid}`, then `weft{} down` undoes what it left.",
                STOP_WITHIN.as_secs(),
                where_is_the_log(context),
                dir_option(context)
            )));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// Whether the process exists and has not ended (a zombie has).
fn is_alive(pid: u32) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{pid}/stat")) else {
        return false;
    };
    // The program's name, in parentheses, may hold anything; the state follows the last one.
    stat.rsplit_once(')')
        .is_none_or(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
}

// systemd

/// Whether the system's node is a service here. A node in a folder of its own never is.
fn has_unit(context: &Context) -> bool {
    context.dir.is_none()
        && Path::new("/run/systemd/system").exists()
        && Command::new("systemctl")
            .args(["show", "--property=LoadState", "--value", UNIT])
            .stdin(Stdio::null())
            .output()
            .is_ok_and(|output| output.stdout.trim_ascii() == b"loaded")
}

fn unit_is_active() -> bool {
    Command::new("systemctl")
        .args(["is-active", "--quiet", UNIT])
        .status()
        .is_ok_and(|status| status.success())
}

fn systemctl(verb: &str) -> Result<(), Failure> {
    let output = Command::new("systemctl")
        .args([verb, UNIT])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Failure::Failed(format!("systemctl cannot be run: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Failure::Failed(format!(
        "`systemctl {verb} {UNIT}` failed: {}\n{}",
        said.trim(),
        journal()
    )))
}

fn journal() -> String {
    let lines = LOG_LINES.to_string();
    let output = Command::new("journalctl")
        .args([
            "--unit",
            UNIT,
            "--lines",
            &lines,
            "--no-pager",
            "--output",
            "cat",
        ])
        .stdin(Stdio::null())
        .output();
    output.map_or_else(
        |_| String::new(),
        |output| plain(&String::from_utf8_lossy(&output.stdout)),
    )
}

fn start_unit(context: &mut Context, args: &UpArgs) -> Result<Status, Failure> {
    systemctl("start")?;
    let deadline = Instant::now() + Duration::from_secs_f64(args.wait);
    loop {
        match answer(context) {
            Ok(status) => return Ok(status),
            Err(error) if !error.is_not_running() && !matches!(error, Error::Closed) => {
                return Err(error.into());
            }
            Err(error) if Instant::now() > deadline => {
                return Err(Failure::Failed(format!(
                    "{UNIT} was started and does not answer: {error}\n{}",
                    journal()
                )));
            }
            Err(_) => std::thread::sleep(POLL),
        }
    }
}

fn answer(context: &Context) -> Result<Status, Error> {
    context.connect()?.status()
}

// Without systemd

fn start_detached(context: &mut Context, args: &UpArgs) -> Result<Status, Failure> {
    let program = find_daemon(context, args.daemon.as_deref())?;
    let log = log_file(context);
    let (file, begin) = open_log(&log)?;
    let mut command = Command::new(&program);
    if let Some(dir) = &context.dir {
        command.arg("--dir").arg(dir);
    }
    let duplicate = |error: io::Error| Failure::Failed(format!("{}: {error}", log.display()));
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().map_err(duplicate)?)
        .stderr(file)
        .current_dir("/");
    // SAFETY: setsid(2) is async-signal-safe and touches no memory of this process.
    unsafe {
        // A session of its own: neither this terminal's end nor its Ctrl-C reaches the daemon.
        command.pre_exec(|| {
            if libc::setsid() == -1 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let mut child = command.spawn().map_err(|error| {
        Failure::Failed(format!("{} cannot be run: {error}", program.display()))
    })?;

    let deadline = Instant::now() + Duration::from_secs_f64(args.wait);
    let status = loop {
        if let Some(status) = exited(&mut child)? {
            return Err(Failure::Failed(format!(
                "weftd did not start: it {}.\n{}",
                ended(status),
                complaints(&log, begin)
            )));
        }
        match answer(context) {
            Ok(status) => break status,
            Err(error) if error.is_not_running() || matches!(error, Error::Closed) => {}
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            return Err(Failure::Failed(format!(
                "weftd (pid {}) runs but has not answered on {} within {} s. Its log is {}:\n{}",
                child.id(),
                context.layout.socket.display(),
                args.wait,
                log.display(),
                complaints(&log, begin)
            )));
        }
        std::thread::sleep(POLL);
    };
    if !context.json {
        let started = context.paint(GOOD, "weftd has started");
        context.line(&format!(
            "{started} (pid {}); its log is {}\n",
            status.pid,
            log.display()
        ))?;
    }
    Ok(status)
}

fn exited(child: &mut Child) -> Result<Option<ExitStatus>, Failure> {
    child.try_wait().map_err(|error| {
        Failure::Failed(format!(
            "weftd (pid {}) cannot be watched: {error}",
            child.id()
        ))
    })
}

fn ended(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => format!("was ended by signal {signal}"),
        (None, None) => "ended".into(),
    }
}

/// Beside this program, or in PATH.
fn find_daemon(context: &Context, named: Option<&Path>) -> Result<PathBuf, Failure> {
    if let Some(path) = named {
        return if path.is_file() {
            std::path::absolute(path)
                .map_err(|error| Failure::Failed(format!("{}: {error}", path.display())))
        } else {
            Err(Failure::Usage(format!(
                "--daemon {}: there is no such file",
                path.display()
            )))
        };
    }
    let beside = std::env::current_exe()
        .ok()
        .and_then(|path| path.parent().map(|folder| folder.join("weftd")));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let candidates = beside
        .iter()
        .cloned()
        .chain(std::env::split_paths(&path).map(|folder| folder.join("weftd")));
    candidates.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        let beside = beside.map_or_else(|| "beside weft".into(), |path| path.display().to_string());
        Failure::Failed(format!(
            "the program weftd is not installed: it is neither {beside} nor in PATH. Name it: `weft{} up --daemon PATH`",
            dir_option(context)
        ))
    })
}

fn log_file(context: &Context) -> PathBuf {
    match &context.dir {
        Some(dir) => dir.join("weftd.log"),
        None => "/var/log/weftd.log".into(),
    }
}

fn where_is_the_log(context: &Context) -> String {
    if has_unit(context) {
        format!("Its log: `journalctl -u {UNIT}`.")
    } else {
        format!("Its log is {}.", log_file(context).display())
    }
}

/// Opens the log to append; returns where this start's lines begin.
fn open_log(path: &Path) -> Result<(File, u64), Failure> {
    let failed = |error: io::Error| {
        let hint = if error.kind() == io::ErrorKind::PermissionDenied {
            "; run `weft up` as root, weftd needs that too"
        } else {
            ""
        };
        Failure::Failed(format!(
            "the log {} cannot be written: {error}{hint}",
            path.display()
        ))
    };
    if fs::metadata(path).is_ok_and(|metadata| metadata.len() > LOG_FULL) {
        fs::rename(path, path.with_extension("log.1")).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .map_err(failed)?;
    let begin = file.metadata().map_err(failed)?.len();
    Ok((file, begin))
}

/// What the log of a weftd that did not start says since `begin`: its complaints, and its last words in any case.
fn complaints(path: &Path, begin: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let end = file.metadata()?.len();
        file.seek(SeekFrom::Start(begin.max(end.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(plain(&String::from_utf8_lossy(&bytes)))
    };
    let text = read().unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    let last = all.len().saturating_sub(LAST_WORDS);
    let bad = |line: &str| {
        ["ERROR", "WARN", "panicked"]
            .iter()
            .any(|word| line.contains(word))
    };
    let told: Vec<&str> = all
        .iter()
        .enumerate()
        .filter(|(at, line)| *at >= last || bad(line))
        .map(|(_, line)| *line)
        .collect();
    if told.is_empty() {
        return format!("  (its log {} says nothing)", path.display());
    }
    let from = told.len().saturating_sub(LOG_LINES);
    told[from..]
        .iter()
        .map(|line| format!("  {}", clean(line)))
        .collect::<Vec<_>>()
        .join("\n")
}

/// Without colours.
fn plain(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\x1b[") {
        plain.push_str(before);
        let end = after
            .find(|c: char| ('@'..='~').contains(&c))
            .map_or(after.len(), |end| end + 1);
        rest = &after[end..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_taken_out_of_logs() {
        assert_eq!(
            plain("\x1b[2m2026\x1b[0m \x1b[31mERROR\x1b[0m no"),
            "2026 ERROR no"
        );
        assert_eq!(plain("cut \x1b[3"), "cut ");
    }

    #[test]
    fn processes_are_told_from_zombies() {
        assert!(is_alive(std::process::id()));
        let mut child = Command::new("true").spawn().unwrap();
        let deadline = Instant::now() + Duration::from_secs(10);
        while is_alive(child.id()) {
            assert!(
                Instant::now() < deadline,
                "an ended process counts as alive"
            );
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }

    #[test]
    fn the_log_tells_what_went_wrong_in_this_start_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weftd.log");
        fs::write(&path, "ERROR of yesterday\n").unwrap();
        let (_, begin) = open_log(&path).unwrap();
        assert!(complaints(&path, begin).contains("says nothing"));
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        io::Write::write_all(
            &mut file,
            b"INFO fine\nWARN no XDP\nINFO b\nINFO c\nweftd: port 7117 is in use\n",
        )
        .unwrap();
        assert_eq!(
            complaints(&path, begin),
            "  WARN no XDP\n  INFO b\n  INFO c\n  weftd: port 7117 is in use"
        );
    }

    #[test]
    fn a_full_log_is_moved_aside() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("weftd.log");
        File::create(&path).unwrap().set_len(LOG_FULL + 1).unwrap();
        let (_, begin) = open_log(&path).unwrap();
        assert_eq!(begin, 0);
        assert!(folder.path().join("weftd.log.1").exists());
    }
}
