//! Sending many packets past the kernel's stack: they are laid ready as whole frames in memory shared with the XDP
//! program, which one system call runs once for each (`BPF_PROG_TEST_RUN` with live frames, Linux 5.18), and which
//! redirects them to their interface.
//!
//! What it saves: a veth pair with XDP on its far end takes no super-packets, so what leaves through a socket is cut into
//! an `sk_buff` each, and each is copied into a page of its own before XDP sees it. A call costs as much as some twenty
//! packets through a socket, so only bulk goes this way.
//!
//! The program must be attached to some interface. Where it is not, the kernel makes a dispatcher for each call, which
//! takes it milliseconds; opening looks for that.

use std::{
    io,
    os::fd::{AsRawFd, BorrowedFd, OwnedFd},
    time::{Duration, Instant},
};

use weft_abi::{
    ETHERNET_LEN, EncapsulationCell, TX_FRAME_LEN, TX_FRAMES, TX_THREADS, TxFrame, TxState,
    UNDERLAY_V4, UNDERLAY_V6, wrap,
};

use super::{udp::Sent, xsk::Mapping};

/// Packets from which on a call costs less than the socket.
pub const WORTH: usize = 24;
/// Bytes of an IP packet that fits a frame.
pub const MAX_MTU: u32 = (TX_FRAME_LEN - ETHERNET_LEN) as u32;
/// Packets the kernel takes through the program before it hands them to the interface. Fewer than the 64 of a NAPI poll: one
/// that took as many has to be called again, and where the scheduler comes between it stays with `ksoftirqd` for
/// milliseconds, in which the 256 places before it run over.
const KERNEL_BATCH: u32 = 48;
/// A call with nothing to send is slower where the program is attached nowhere.
const SLOW: Duration = Duration::from_millis(2);
/// Calls for what waits, where signals end them.
const ATTEMPTS: usize = 16;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_F_TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// `union bpf_attr` of `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// One thread's frames.
pub struct XdpSender {
    program: OwnedFd,
    frames: Mapping,
    states: Mapping,
    thread: u32,
    used: usize,
    failure: Option<io::Error>,
}

// SAFETY: it owns its mappings; the frames are its thread's alone, and states are atomic words.
unsafe impl Send for XdpSender {}

impl std::fmt::Debug for XdpSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "XdpSender(thread {}, {} wait)", self.thread, self.used)
    }
}

impl XdpSender {
    /// For thread number `thread`; two of one number would write into each other's frames.
    ///
    /// # Errors
    /// When there are no frames for that thread, or the maps are not those of the program.
    pub fn open(
        program: OwnedFd,
        frames: BorrowedFd<'_>,
        states: BorrowedFd<'_>,
        thread: u32,
    ) -> io::Result<Self> {
        if thread >= TX_THREADS {
            return Err(io::Error::other(format!("only {TX_THREADS} threads can")));
        }
        let len = TX_FRAMES as usize * size_of::<TxFrame>();
        let offset = libc::off_t::try_from(thread as usize * len).map_err(io::Error::other)?;
        Ok(Self {
            program,
            frames: Mapping::new(len, frames.as_raw_fd(), offset)?,
            states: Mapping::new(
                TX_THREADS as usize * size_of::<TxState>(),
                states.as_raw_fd(),
                0,
            )?,
            thread,
            used: 0,
            failure: None,
        })
    }

    /// Whether calls are as fast as they should be, tried with nothing to send; an error says why this way is not used.
    ///
    /// # Errors
    /// What the kernel answered, or that it is slow.
    pub fn probe(&mut self) -> Result<(), String> {
        let mut fastest = Duration::MAX;
        for _ in 0..3 {
            // Of no length, and so not sent.
            for frame in 0..2 {
                self.used = frame;
                if let Some(frame) = self.next() {
                    frame.len.store(0);
                }
            }
            self.used = 2;
            let begun = Instant::now();
            self.flush();
            if let Some(error) = self.failure.take() {
                return Err(format!(
                    "the kernel does not run the program on live frames: {error}"
                ));
            }
            fastest = fastest.min(begun.elapsed());
        }
        if fastest > SLOW {
            return Err(format!(
                "the kernel takes {:.1} ms for a call",
                fastest.as_secs_f64() * 1e3
            ));
        }
        Ok(())
    }

    /// Whether it must be flushed before the next [`XdpSender::payload`].
    pub fn is_full(&self) -> bool {
        self.used == TX_FRAMES as usize
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Why the kernel refused a call, where it did: nothing should go this way any more.
    pub fn failure(&self) -> Option<&io::Error> {
        self.failure.as_ref()
    }

    /// Room for the next datagram payload on a next hop; empty where all frames wait already. It counts only once
    /// committed.
    pub fn payload(&mut self, encapsulation: &EncapsulationCell) -> &mut [u8] {
        let at = headers(encapsulation);
        self.bytes()
            .and_then(|bytes| bytes.get_mut(at..))
            .unwrap_or_default()
    }

    /// Gives the first `len` bytes of [`XdpSender::payload`] the headers of the next hop. False where there is no room.
    pub fn commit(&mut self, len: usize, encapsulation: &EncapsulationCell, tos: u8) -> bool {
        let (ifindex, ..) = encapsulation.egress();
        let at = headers(encapsulation);
        let fits = at + len <= TX_FRAME_LEN;
        let wrapped = self
            .bytes()
            .and_then(|bytes| bytes.get_mut(..at))
            .is_some_and(|head| wrap(encapsulation, tos, len as u16, head));
        if !fits || !wrapped {
            return false;
        }
        if let Some(frame) = self.next() {
            frame.ifindex.store(ifindex);
            frame.len.store((at + len) as u32);
        }
        self.used += 1;
        true
    }

    /// Sends everything that waits.
    pub fn flush(&mut self) -> Sent {
        let mut sent = Sent::default();
        if self.used == 0 {
            return sent;
        }
        let wanted = self.used as u64;
        self.used = 0;
        let state = self.state();
        state.next.store(0);
        state.sent.store(0);
        state.ready.store(wanted);
        for _ in 0..ATTEMPTS {
            let left = wanted.saturating_sub(self.state().next.load());
            if left == 0 {
                break;
            }
            match self.call(left as u32) {
                Ok(()) => {}
                // A signal ends it between two batches.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            }
        }
        self.state().ready.store(0);
        sent.packets = self.state().sent.load().min(wanted);
        sent.refused = wanted - sent.packets;
        sent
    }

    fn call(&self, count: u32) -> io::Result<()> {
        let first = [0u8; ETHERNET_LEN + TX_THREADS as usize];
        let mut attributes = TestRun {
            program: self.program.as_raw_fd() as u32,
            data_size_in: ETHERNET_LEN as u32 + self.thread,
            data_in: first.as_ptr() as u64,
            repeat: count,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: KERNEL_BATCH,
            ..TestRun::default()
        };
        // SAFETY: the attributes are those of the command, and what they point to lives through the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                std::ptr::from_mut(&mut attributes),
                size_of::<TestRun>(),
            )
        };
        if result < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn state(&self) -> &TxState {
        // SAFETY: the mapping holds a state for each thread that there can be, made of atomic words; `open` would not have
        // mapped frames of a thread beyond them.
        unsafe {
            &*self
                .states
                .base()
                .cast::<TxState>()
                .add(self.thread as usize)
        }
    }

    fn next(&mut self) -> Option<&mut TxFrame> {
        if self.is_full() {
            return None;
        }
        // SAFETY: within the mapping, which is this thread's alone; the kernel reads it only during `call`.
        Some(unsafe { &mut *self.frames.base().cast::<TxFrame>().add(self.used) })
    }

    fn bytes(&mut self) -> Option<&mut [u8]> {
        self.next().map(|frame| &mut frame.bytes[..])
    }
}

/// Bytes before the datagram payload.
fn headers(encapsulation: &EncapsulationCell) -> usize {
    if encapsulation.family() == 6 {
        UNDERLAY_V6
    } else {
        UNDERLAY_V4
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A sender whose every call the kernel refuses: what it calls is no program.
    pub(in crate::data) fn refused() -> XdpSender {
        let memory = |len| Mapping::new(len, -1, 0).expect("memory can be had");
        XdpSender {
            program: std::fs::File::open("/dev/null")
                .expect("every system has it")
                .into(),
            frames: memory(TX_FRAMES as usize * size_of::<TxFrame>()),
            states: memory(TX_THREADS as usize * size_of::<TxState>()),
            thread: 0,
            used: 0,
            failure: None,
        }
    }

    #[test]
    fn a_refused_call_is_told_and_what_it_lost_is_counted() {
        let mut sender = refused();
        assert_eq!(sender.flush(), Sent::default(), "there is nothing to send");
        assert!(sender.failure().is_none());
        for len in [28, 1400] {
            let frame = sender.next().expect("there is room");
            frame.len.store(len);
            sender.used += 1;
        }
        let lost = Sent {
            refused: 2,
            ..Sent::default()
        };
        assert_eq!(sender.flush(), lost);
        assert!(sender.failure().is_some() && sender.is_empty());
        assert!(sender.probe().is_err());
    }
}
