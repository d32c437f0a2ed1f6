//! Removes this process's labs when it is asked to end.
//!
//! The handler only writes a byte to a pipe; a thread reads it, removes the labs and ends the process with 128 + the
//! signal's number, as shells expect.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicI32, Ordering},
    },
};

use anyhow::{Result, ensure};

use super::registry::{self, Record};

static LIVE: Mutex<Vec<(Record, PathBuf)>> = Mutex::new(Vec::new());
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Adds a lab to those that are removed.
pub(super) fn add(record: &Record, folder: &Path) {
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push((record.clone(), folder.to_owned()));
}

/// The lab is gone, or shall stay.
pub(super) fn forget(id: &str) {
    LIVE.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|(record, _)| record.id != id);
}

/// Installs the handlers, once per process.
pub(super) fn install() -> Result<()> {
    static DONE: OnceLock<Result<(), String>> = OnceLock::new();
    let done = DONE.get_or_init(|| prepare().map_err(|e| e.to_string()));
    ensure!(done.is_ok(), "cannot handle signals: {done:?}");
    Ok(())
}

extern "C" fn on_signal(signal: libc::c_int) {
    let byte = signal as u8;
    // SAFETY: write is async-signal-safe; the descriptor stays open for the life of the process.
    unsafe { libc::write(PIPE.load(Ordering::Relaxed), (&raw const byte).cast(), 1) };
}

fn prepare() -> io::Result<()> {
    let mut ends = [0; 2];
    // SAFETY: the kernel writes two descriptors to the array.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let [reading, writing] = ends;
    PIPE.store(writing, Ordering::Relaxed);
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let mut byte = 0_u8;
            // SAFETY: reads one byte into a live variable; the descriptor is open.
            while unsafe { libc::read(reading, (&raw mut byte).cast(), 1) } != 1 {}
            let labs = std::mem::take(&mut *LIVE.lock().unwrap_or_else(PoisonError::into_inner));
            for (record, folder) in &labs {
                registry::demolish(record, folder);
            }
            std::process::exit(128 + i32::from(byte));
        })?;
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        // SAFETY: the handler is async-signal-safe.
        unsafe { libc::signal(signal, on_signal as *const () as libc::sighandler_t) };
    }
    Ok(())
}
