//! Sending many datagrams with one system call, and datagrams of one size to one neighbour as one message.

use std::{io, mem, ptr, sync::atomic::Ordering};

use super::{
    Address, BATCH, BUFFER, Socket,
    message::{Control, to_storage},
};

/// Segments the kernel takes in one `UDP_SEGMENT` send.
const MAX_SEGMENTS: usize = 64;
/// Bytes it takes in one: what an IPv4 packet can carry.
const MAX_SEGMENTED: usize = 65_507;
/// Bytes that wait at most: two messages of the largest size.
const ARENA: usize = 2 * 65_536;

/// Datagrams that follow one another in the arena and go as one message.
#[derive(Clone, Copy, Debug)]
struct Run {
    start: usize,
    len: usize,
    /// Bytes of each datagram but the last.
    segment: usize,
    count: usize,
    to: Address,
    tos: u8,
    /// A shorter datagram ended it.
    ended: bool,
}

/// What became of a flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    /// Datagrams handed to the kernel.
    pub packets: u64,
    /// Lost because the socket stayed full.
    pub full: u64,
    /// Refused as longer than the interface's MTU.
    pub too_big: u64,
    /// Refused for any other reason (no route, interface down...).
    pub refused: u64,
}

/// Transmit memory of one worker: filled datagram by datagram, sent together.
pub struct TxBatch {
    arena: Box<[u8]>,
    used: usize,
    runs: Vec<Run>,
    names: Vec<libc::sockaddr_storage>,
    controls: Vec<Control>,
    iovecs: Vec<libc::iovec>,
    messages: Vec<libc::mmsghdr>,
    /// The run of each message.
    sending: Vec<Run>,
}

// SAFETY: its pointers are set anew to its own memory before the kernel follows them, within one call.
unsafe impl Send for TxBatch {}

impl std::fmt::Debug for TxBatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TxBatch({} messages wait)", self.runs.len())
    }
}

impl Default for TxBatch {
    fn default() -> Self {
        Self {
            arena: vec![0; ARENA].into_boxed_slice(),
            used: 0,
            runs: Vec::with_capacity(BATCH),
            names: Vec::with_capacity(BATCH),
            controls: Vec::with_capacity(BATCH),
            iovecs: Vec::with_capacity(BATCH),
            messages: Vec::with_capacity(BATCH),
            sending: Vec::with_capacity(BATCH),
        }
    }
}

impl TxBatch {
    /// Whether the batch must be flushed before the next [`TxBatch::buffer`].
    pub fn is_full(&self) -> bool {
        self.runs.len() == BATCH || self.free() < BUFFER
    }

    /// Bytes there is room for.
    pub fn free(&self) -> usize {
        self.arena.len() - self.used
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes that wait.
    pub fn waiting(&self) -> usize {
        self.used
    }

    /// Room for the next datagram, at least [`BUFFER`] bytes unless the batch is full; it counts only once committed.
    pub fn buffer(&mut self) -> &mut [u8] {
        &mut self.arena[self.used..]
    }

    /// Adds the first `len` bytes of [`TxBatch::buffer`].
    pub fn commit(&mut self, len: usize, to: Address, tos: u8) {
        let start = self.used;
        let len = len.min(self.free());
        if let Some(run) = self.runs.last_mut()
            && !run.ended
            && len <= run.segment
            && len > 0
            && run.count < MAX_SEGMENTS
            && run.len + len <= MAX_SEGMENTED
            && run.tos == tos
            && run.to == to
        {
            run.len += len;
            run.count += 1;
            // Only the last segment may be shorter.
            run.ended = len < run.segment;
        } else if self.runs.len() < BATCH {
            self.runs.push(Run {
                start,
                len,
                segment: len,
                count: 1,
                to,
                tos,
                ended: false,
            });
        } else {
            return;
        }
        self.used += len;
    }

    /// Sends everything through the socket of its family and empties the batch.
    ///
    /// A full socket is waited for, for a few milliseconds: the kernel's queue is where packets wait, not this one.
    pub fn flush(&mut self, sockets: &[Socket]) -> Sent {
        let mut sent = Sent::default();
        if self.runs.is_empty() {
            return sent;
        }
        for socket in sockets {
            if socket.segmentation.load(Ordering::Relaxed) {
                self.gather(socket);
                self.send_gathered(socket, &mut sent);
            } else {
                for index in 0..self.runs.len() {
                    let run = self.runs[index];
                    if run.to.remote.is_ipv6() == socket.ipv6 {
                        self.send_single(socket, &run, &mut sent);
                    }
                }
            }
        }
        self.runs.clear();
        self.used = 0;
        sent
    }

    fn send_gathered(&mut self, socket: &Socket, sent: &mut Sent) {
        let mut done = 0;
        let mut waited = false;
        while done < self.messages.len() {
            // SAFETY: `gather` pointed every message at memory that this batch owns and does not move until the next
            // gather; the kernel only reads it.
            let count = unsafe {
                libc::sendmmsg(
                    socket.raw(),
                    self.messages[done..].as_mut_ptr(),
                    (self.messages.len() - done) as libc::c_uint,
                    libc::MSG_NOSIGNAL as _,
                )
            };
            if count > 0 {
                let went = &self.sending[done..done + count as usize];
                sent.packets += went.iter().map(|run| run.count as u64).sum::<u64>();
                done += count as usize;
                continue;
            }
            let run = self.sending[done];
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EAGAIN | libc::ENOBUFS) if !waited => {
                    waited = true;
                    wait_writable(socket);
                    continue;
                }
                Some(libc::EIO | libc::EINVAL | libc::EOPNOTSUPP | libc::EMSGSIZE)
                    if run.count > 1 =>
                {
                    let before = *sent;
                    self.send_single(socket, &run, sent);
                    // A segment over the MTU is refused just the same; what goes one by one was not too long.
                    if sent.too_big == before.too_big && sent.packets > before.packets {
                        socket.segmentation.store(false, Ordering::Relaxed);
                    }
                }
                _ => count_refusal(&error, run.count as u64, sent),
            }
            done += 1;
        }
    }

    /// Sends a run datagram by datagram.
    fn send_single(&self, socket: &Socket, run: &Run, sent: &mut Sent) {
        let bytes = &self.arena[run.start..run.start + run.len];
        let mut rest = bytes;
        for _ in 0..run.count {
            let (datagram, behind) = rest.split_at(run.segment.min(rest.len()));
            rest = behind;
            let mut result = socket.send(&run.to, run.tos, datagram);
            if let Err(error) = &result
                && matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::ENOBUFS))
            {
                wait_writable(socket);
                result = socket.send(&run.to, run.tos, datagram);
            }
            match result {
                Ok(()) => sent.packets += 1,
                Err(error) => count_refusal(&error, 1, sent),
            }
        }
    }

    fn gather(&mut self, socket: &Socket) {
        self.names.clear();
        self.controls.clear();
        self.iovecs.clear();
        self.messages.clear();
        self.sending.clear();
        for run in &self.runs {
            if run.to.remote.is_ipv6() != socket.ipv6 {
                continue;
            }
            let (name, name_len) = to_storage(run.to.remote);
            self.names.push(name);
            let mut control = Control::default();
            let size = (run.count > 1).then_some(run.segment as u16);
            let control_len = control.fill(&run.to, run.tos, size);
            self.controls.push(control);
            self.iovecs.push(libc::iovec {
                iov_base: self.arena[run.start..].as_ptr().cast_mut().cast(),
                iov_len: run.len,
            });
            // SAFETY: an all-zero mmsghdr is valid.
            let mut message: libc::mmsghdr = unsafe { mem::zeroed() };
            message.msg_hdr.msg_namelen = name_len;
            message.msg_hdr.msg_iovlen = 1;
            message.msg_hdr.msg_controllen = control_len as _;
            self.messages.push(message);
            self.sending.push(*run);
        }
        // The vectors have their final places only now.
        for (index, message) in self.messages.iter_mut().enumerate() {
            message.msg_hdr.msg_name = ptr::from_mut(&mut self.names[index]).cast();
            message.msg_hdr.msg_control = self.controls[index].0.as_mut_ptr().cast();
            message.msg_hdr.msg_iov = &mut self.iovecs[index];
        }
    }
}

fn count_refusal(error: &io::Error, datagrams: u64, sent: &mut Sent) {
    match error.raw_os_error() {
        Some(libc::EAGAIN | libc::ENOBUFS) => sent.full += datagrams,
        Some(libc::EMSGSIZE) => sent.too_big += datagrams,
        _ => sent.refused += datagrams,
    }
}

fn wait_writable(socket: &Socket) {
    let mut poll = libc::pollfd {
        fd: socket.raw(),
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one pollfd that lives through the call.
    unsafe { libc::poll(&mut poll, 1, 5) };
}
