//! Network namespaces: making and removing them, running threads and processes in them.
//!
//! Processes and threads enter with `setns(CLONE_NEWNET)` alone: `ip netns exec` would also replace `/sys` and so hide
//! bpffs. The names lie in `/run/netns`, where `ip` keeps them, so that `ip -n NAME` works for people.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsRawFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::term;

/// A named network namespace.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Makes one.
    ///
    /// # Errors
    /// When it exists, or the privilege is missing.
    pub fn add(name: &str) -> Result<Self> {
        term::output_of(Command::new("ip").args(["netns", "add", name]))?;
        Self::open(name)
    }

    /// Opens an existing one.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let file = File::open(&path)
            .with_context(|| format!("there is no network namespace {}", path.display()))?;
        Ok(Self {
            name: name.to_owned(),
            file: Arc::new(file),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `work` on a thread inside.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    ///
    /// # Panics
    /// When `work` panics.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| -> Result<T> {
                self.enter()?;
                Ok(work())
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside that outlives the call.
    ///
    /// # Errors
    /// When the thread cannot be started; what happens inside is in the handle.
    pub fn spawn<T: Send + 'static>(
        &self,
        name: &str,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<std::thread::JoinHandle<Result<T>>> {
        let namespace = self.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                namespace.enter()?;
                work()
            })?;
        Ok(thread)
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        // SAFETY: between fork and exec only `setns` is called, which is async-signal-safe; `file` keeps the
        // descriptor open, and an error carries no allocation.
        unsafe {
            command.pre_exec(
                move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                    0 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                },
            );
        }
        command
    }

    /// Runs lines of `ip` inside, all or error.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, lines: &str) -> Result<()> {
        batch(
            Command::new("ip").args(["-n", &self.name, "-batch", "-"]),
            lines,
        )
    }

    /// Writes `/proc/sys/net/NAME`.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys/net").join(name);
        self.run(|| fs::write(&path, value))?
            .with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    /// Processes inside.
    #[must_use]
    pub fn processes(&self) -> Vec<i32> {
        let Ok(own) = self.file.metadata().map(|m| (m.dev(), m.ino())) else {
            return Vec::new();
        };
        let Ok(all) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        all.flatten()
            .filter_map(|p| p.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|m| (m.dev(), m.ino()) == own)
            })
            .collect()
    }

    /// Ends all processes inside, and waits until they are gone.
    pub fn kill_processes(&self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            // Never ourselves: a thread of this process may be inside, but /proc/PID/ns is the main thread's.
            let processes = self
                .processes()
                .into_iter()
                .filter(|p| u32::try_from(*p) != Ok(std::process::id()));
            let mut left = 0;
            for pid in processes {
                left += 1;
                // SAFETY: a plain signal to a process seen inside our own namespace just now.
                unsafe { libc::kill(pid, libc::SIGKILL) };
            }
            if left == 0 || Instant::now() > deadline {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: moves only the calling thread; the descriptor is open and names a network namespace.
        let entered = unsafe { libc::setns(self.file.as_raw_fd(), libc::CLONE_NEWNET) };
        if entered != 0 {
            bail!(
                "cannot enter the network namespace {}: {}",
                self.name,
                io::Error::last_os_error()
            );
        }
        Ok(())
    }
}

/// Removes the name; the namespace goes with its last process and descriptor. Nothing to do if there is none.
///
/// # Errors
/// When the kernel refuses.
pub fn remove(name: &str) -> Result<()> {
    if !path_of(name).exists() {
        return Ok(());
    }
    term::output_of(Command::new("ip").args(["netns", "del", name])).map(|_| ())
}

/// Whether there is one of this name.
#[must_use]
pub fn exists(name: &str) -> bool {
    path_of(name).exists()
}

fn path_of(name: &str) -> PathBuf {
    Path::new("/run/netns").join(name)
}

/// Feeds lines to a command that stops at the first that fails.
pub(super) fn batch(command: &mut Command, lines: &str) -> Result<()> {
    use std::io::Write;
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", term::shown(command)))?;
    // A command that ends early closes the pipe; its own message says why.
    let _ = child
        .stdin
        .take()
        .context("no pipe")?
        .write_all(lines.as_bytes());
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!(
            "`{}` refused: {}; its input was:\n{lines}",
            term::shown(command),
            why.trim()
        );
    }
    Ok(())
}

/// An offload of an interface that can be turned on and off; the values are ethtool's commands (`linux/ethtool.h`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Offload {
    /// TCP segmentation, `ETHTOOL_STSO`.
    Tso = 0x1f,
    /// Generic segmentation, `ETHTOOL_SGSO`.
    Gso = 0x24,
    /// Generic receive, `ETHTOOL_SGRO`.
    Gro = 0x2c,
}

/// Turns generic receive offload on or off. On, it gives a veth end the queue that XDP-redirected frames arrive by.
///
/// # Errors
/// When there is no such interface in the current namespace.
pub fn gro(interface: &str, on: bool) -> io::Result<()> {
    set_offload(interface, Offload::Gro, on)
}

/// Turns an offload of an interface in the current namespace on or off.
///
/// # Errors
/// When there is no such interface, or it cannot be changed.
pub fn set_offload(interface: &str, offload: Offload, on: bool) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    #[repr(C)]
    struct Value {
        command: u32,
        data: u32,
    }
    let mut value = Value {
        command: offload as u32,
        data: u32::from(on),
    };
    // SAFETY: all-zero is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")
        .or_else(|_| std::net::UdpSocket::bind("0.0.0.0:0"))?;
    // SAFETY: the request names a NUL-terminated interface and points to a live `ethtool_value`.
    match unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
