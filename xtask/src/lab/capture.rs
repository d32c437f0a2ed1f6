//! Capturing frames in a namespace, searched as they come.
//!
//! On a packet socket, so it sees what a node's stack or a wire handles, not what XDP passes on inside a node: capture
//! on a [`super::wire::Wire`] for that.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, bail};

use super::netns::Netns;

/// Most bytes of frames that are kept for [`Seen::frames`].
const KEPT_BYTES: usize = 16 << 20;

/// A running capture; stops when dropped.
#[derive(Debug)]
pub struct Capture {
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// What a capture saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Frames.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames with the pattern in them.
    pub matches: u64,
    /// Frames the kernel had no room for: they were not searched.
    pub missed: u64,
    /// The first frames whole, with their direction; up to 16 MiB of them.
    pub frames: Vec<Frame>,
    kept: usize,
}

/// A captured frame.
#[derive(Clone, Debug)]
pub struct Frame {
    /// It was sent here, not received.
    pub outgoing: bool,
    /// From the link layer on (from the IP header on a TUN interface).
    pub bytes: Vec<u8>,
}

impl Capture {
    /// Captures on an interface, counting frames that hold `pattern` (nothing where it is empty).
    ///
    /// # Errors
    /// When there is no such interface or the privilege is missing.
    pub fn start(namespace: &Netns, interface: &str, pattern: &[u8]) -> Result<Self> {
        let socket = namespace.run(|| open(interface))?.with_context(|| {
            format!(
                "cannot capture on {interface} in the namespace {}",
                namespace.name()
            )
        })?;
        let seen = Arc::new(Mutex::new(Seen::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let thread = {
            let (seen, stop, pattern) = (Arc::clone(&seen), Arc::clone(&stop), pattern.to_vec());
            std::thread::Builder::new()
                .name("capture".into())
                .spawn(move || read(&socket, &seen, &stop, &pattern))?
        };
        Ok(Self {
            seen,
            stop,
            thread: Some(thread),
        })
    }

    /// What it saw so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        self.seen
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Stops it and gives what it saw.
    ///
    /// # Errors
    /// When reading failed.
    pub fn finish(mut self) -> Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(_)) => bail!("the capturing thread panicked"),
            None => {}
        }
        Ok(self.seen())
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // Its error was of interest to `finish` alone.
            let _ = thread.join();
        }
    }
}

fn open(interface: &str) -> Result<OwnedFd> {
    let protocol = (libc::ETH_P_ALL as u16).to_be();
    // Protocol 0: nothing arrives before the socket is bound to its interface.
    // SAFETY: plain system call; the result is checked before use.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: just opened, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    option(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_RCVBUFFORCE,
        &(64_i32 << 20),
    )?;
    let timeout = libc::timeval {
        tv_sec: 0,
        tv_usec: 20_000,
    };
    option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &timeout)?;
    let name = CString::new(interface)?;
    // SAFETY: `name` is a C string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error()).context("no such interface");
    }
    // SAFETY: all-zero is a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index)?;
    // SAFETY: the address is a `sockaddr_ll` of the size given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as libc::socklen_t,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error().into());
    }
    Ok(socket)
}

fn option<T>(socket: &OwnedFd, level: i32, name: i32, value: &T) -> io::Result<()> {
    // SAFETY: the value lives through the call and has the size given.
    let set = unsafe {
        let pointer: *const T = value;
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            pointer.cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

fn read(socket: &OwnedFd, seen: &Mutex<Seen>, stop: &AtomicBool, pattern: &[u8]) -> Result<()> {
    let mut buffer = vec![0_u8; 256 << 10];
    loop {
        // SAFETY: all-zero is a valid `sockaddr_ll`.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut from_len = size_of_val(&from) as libc::socklen_t;
        // SAFETY: buffer and address are writable with the lengths given.
        let length = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut from).cast(),
                &raw mut from_len,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let error = io::Error::last_os_error();
            match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => {
                    count_missed(socket, seen);
                    if stop.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    continue;
                }
                // The interface went down or away; it may come back.
                _ if error.raw_os_error() == Some(libc::ENETDOWN) => continue,
                _ => return Err(error).context("capturing failed"),
            }
        };
        let frame = &buffer[..length];
        let hit = !pattern.is_empty() && contains(frame, pattern);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.packets += 1;
        seen.bytes += length as u64;
        seen.matches += u64::from(hit);
        if seen.kept + length <= KEPT_BYTES {
            seen.kept += length;
            seen.frames.push(Frame {
                outgoing: from.sll_pkttype == libc::PACKET_OUTGOING,
                bytes: frame.to_vec(),
            });
        }
    }
}

fn count_missed(socket: &OwnedFd, seen: &Mutex<Seen>) {
    // `struct tpacket_stats`: packets and drops since the last call.
    let mut stats = [0_u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `stats`.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if got == 0 {
        seen.lock().unwrap_or_else(PoisonError::into_inner).missed += u64::from(stats[1]);
    }
}

/// Whether `needle` is in `hay`.
#[must_use]
pub fn contains(hay: &[u8], needle: &[u8]) -> bool {
    let Some((&first, rest)) = needle.split_first() else {
        return true;
    };
    let mut from = 0;
    while let Some(at) = hay[from..].iter().position(|b| *b == first) {
        from += at + 1;
        if hay[from..].starts_with(rest) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::contains;

    #[test]
    fn needles_are_found_wherever_they_are() {
        assert!(contains(b"xxaab", b"aab") && contains(b"aab", b"aab") && contains(b"a", b""));
        assert!(!contains(b"aaab", b"abb") && !contains(b"ab", b"abc") && !contains(b"", b"a"));
    }
}
