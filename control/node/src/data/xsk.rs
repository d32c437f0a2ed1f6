//! AF_XDP sockets: what the XDP program verified and would hand up comes straight from it, past IP, UDP and the socket's
//! queue. Receiving alone; what is sent goes through the UDP sockets, or in bulk by `xdp_send`.
//!
//! A socket belongs to one receive queue of one interface. Frames are copied by the kernel into memory of ours (copy
//! mode: any driver). Frames travel in circles: fill ring (free) → kernel → receive ring (a packet) → this thread, which
//! gives them back with the next call. The kernel writes only to frames in the fill ring.
//!
//! When the process ends, so do its sockets, the program finds none, and packets go the ordinary way again.

use std::{
    io, mem,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr::{self, NonNull},
    sync::atomic::{AtomicU32, Ordering},
};

/// Bytes of a frame; the kernel keeps [`HEADROOM`] of them before each packet.
const FRAME: usize = 2048;
/// `XDP_PACKET_HEADROOM`.
const HEADROOM: usize = 256;
/// Frames, and entries of the rings: some milliseconds of traffic, and bounded. What comes while none is free is lost
/// and counted by the kernel.
const FRAMES: u32 = 2048;
/// Packets taken at once: what a sender's one call brings, two super-packets of 44 and what comes beside them.
pub const BATCH: usize = 128;
/// Entries of the completion ring, which must exist.
const COMPLETIONS: u32 = 64;
/// Receive queues of an interface that are served.
pub const MAX_QUEUES: u32 = 8;
/// The largest MTU whose frames fit, less an Ethernet header with room to spare.
pub const MAX_MTU: u32 = (FRAME - HEADROOM - 32) as u32;

/// Memory shared with the kernel.
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    pub(super) fn new(len: usize, fd: RawFd, offset: libc::off_t) -> io::Result<Self> {
        let flags = if fd < 0 {
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS
        } else {
            libc::MAP_SHARED | libc::MAP_POPULATE
        };
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                offset,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave 0"))?;
        Ok(Self { base, len })
    }

    /// Where it begins.
    pub(super) fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping; nobody refers into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// A ring shared with the kernel: free-running numbers of what was produced and consumed, and entries of type `T`.
struct Ring<T> {
    mapping: Mapping,
    offsets: libc::xdp_ring_offset,
    mask: u32,
    entries: std::marker::PhantomData<T>,
}

impl<T: Copy> Ring<T> {
    fn new(
        fd: RawFd,
        entries: u32,
        offsets: libc::xdp_ring_offset,
        page: libc::off_t,
    ) -> io::Result<Self> {
        let len = offsets.desc as usize + entries as usize * size_of::<T>();
        Ok(Self {
            mapping: Mapping::new(len, fd, page)?,
            offsets,
            mask: entries - 1,
            entries: std::marker::PhantomData,
        })
    }

    fn number(&self, offset: u64) -> &AtomicU32 {
        // SAFETY: the kernel put an aligned u32 there, inside the mapping, and both sides access it atomically.
        unsafe { &*self.mapping.base.as_ptr().add(offset as usize).cast() }
    }

    fn produced(&self) -> &AtomicU32 {
        self.number(self.offsets.producer)
    }

    fn consumed(&self) -> &AtomicU32 {
        self.number(self.offsets.consumer)
    }

    fn entry(&self, number: u32) -> *mut T {
        let index = (number & self.mask) as usize;
        // SAFETY: the masked index is below the number of entries that the mapping was made for.
        unsafe {
            self.mapping
                .base
                .as_ptr()
                .add(self.offsets.desc as usize)
                .cast::<T>()
                .add(index)
        }
    }
}

/// A received packet.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    /// Where the UDP payload begins in [`Xsk::memory`].
    pub start: usize,
    /// Its bytes.
    pub len: usize,
    /// TOS or traffic class of the outer header.
    pub tos: u8,
    /// Sender.
    pub source: SocketAddr,
    /// Where it was sent to.
    pub local: SocketAddr,
}

/// One socket.
pub struct Xsk {
    // Before its memory: the kernel lets go of that first.
    fd: OwnedFd,
    frames: Mapping,
    receive: Ring<libc::xdp_desc>,
    fill: Ring<u64>,
    /// Frames of the last batch, to be given back.
    held: Vec<u64>,
    interface: u32,
    /// Packets in the ring that the last batch had no room for.
    left: u32,
    asked: u32,
    lost: u64,
}

// SAFETY: it owns its mappings; the kernel's side of the rings is atomic.
unsafe impl Send for Xsk {}

impl std::fmt::Debug for Xsk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Xsk(interface {})", self.interface)
    }
}

impl Xsk {
    /// Opens one for a receive queue. An error of kind `InvalidInput` says that there is no such queue.
    pub fn open(interface: u32, queue: u32) -> io::Result<Self> {
        // SAFETY: plain system call; the result is checked.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let raw = fd.as_raw_fd();
        let frames = Mapping::new(FRAMES as usize * FRAME, -1, 0)?;
        let region = libc::xdp_umem_reg {
            addr: frames.base.as_ptr() as u64,
            len: frames.len as u64,
            chunk_size: FRAME as u32,
            headroom: 0,
            flags: 0,
            tx_metadata_len: 0,
        };
        set(raw, libc::XDP_UMEM_REG, region)?;
        set(raw, libc::XDP_UMEM_FILL_RING, FRAMES)?;
        set(raw, libc::XDP_UMEM_COMPLETION_RING, COMPLETIONS)?;
        set(raw, libc::XDP_RX_RING, FRAMES)?;
        let offsets = offsets(raw)?;
        let receive = Ring::new(raw, FRAMES, offsets.rx, libc::XDP_PGOFF_RX_RING)?;
        let fill = Ring::new(
            raw,
            FRAMES,
            offsets.fr,
            libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t,
        )?;
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as _,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: interface,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        };
        // SAFETY: the address is initialised and its length passed.
        let bound = unsafe {
            libc::bind(
                raw,
                ptr::from_ref(&address).cast(),
                size_of::<libc::sockaddr_xdp>() as libc::socklen_t,
            )
        };
        if bound < 0 {
            return Err(io::Error::last_os_error());
        }
        let held = (0..u64::from(FRAMES))
            .map(|frame| frame * FRAME as u64)
            .collect();
        let mut socket = Self {
            fd,
            frames,
            receive,
            fill,
            held,
            interface,
            left: 0,
            asked: 0,
            lost: 0,
        };
        socket.give_back();
        Ok(socket)
    }

    /// For polling.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// For the map.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Its interface.
    pub fn interface(&self) -> u32 {
        self.interface
    }

    /// Gives back the frames of the last batch, and takes what is there, at most [`BATCH`] packets. Tells whether there
    /// may be more. No system call.
    pub fn receive(&mut self, into: &mut Vec<Datagram>) -> bool {
        self.give_back();
        into.clear();
        let first = self.receive.consumed().load(Ordering::Relaxed);
        let ready = self
            .receive
            .produced()
            .load(Ordering::Acquire)
            .wrapping_sub(first)
            // Never more than there are entries, whatever stands in the ring.
            .min(FRAMES);
        let count = ready.min(BATCH as u32);
        for number in 0..count {
            // SAFETY: between consumer and producer the kernel has finished writing the entry.
            let entry = unsafe { *self.receive.entry(first.wrapping_add(number)) };
            self.held.push(entry.addr & !(FRAME as u64 - 1));
            if let Some(datagram) = self.parse(entry.addr as usize, entry.len as usize) {
                into.push(datagram);
            }
        }
        self.receive
            .consumed()
            .store(first.wrapping_add(count), Ordering::Release);
        self.left = ready - count;
        self.left > 0
    }

    /// Packets left by the last [`Xsk::receive`].
    pub fn left(&self) -> u32 {
        self.left
    }

    /// Packets lost since the last call, for no frame was free or the ring was full. A system call, once in some hundred
    /// calls.
    pub fn newly_lost(&mut self) -> u64 {
        self.asked = self.asked.wrapping_add(1);
        if !self.asked.is_multiple_of(256) {
            return 0;
        }
        // SAFETY: all-zero is a valid value.
        let mut told: libc::xdp_statistics = unsafe { mem::zeroed() };
        if get(self.raw(), libc::XDP_STATISTICS, &mut told).is_err() {
            return 0;
        }
        let lost = told.rx_dropped + told.rx_ring_full;
        lost.saturating_sub(std::mem::replace(&mut self.lost, lost))
    }

    /// All frames. Only those of the last batch are this thread's to read and write.
    pub fn memory(&mut self) -> &mut [u8] {
        // SAFETY: the mapping lives as long as self, and nobody else in this process refers to it. The kernel writes to
        // frames in the fill ring only, which are in no range that `receive` gave out since.
        unsafe { std::slice::from_raw_parts_mut(self.frames.base.as_ptr(), self.frames.len) }
    }

    fn parse(&mut self, start: usize, len: usize) -> Option<Datagram> {
        let frame = self.memory().get(start..start + len)?;
        let (source, local, at) = crate::dataplane::read_frame(frame)?;
        let tos = match frame.get(14..16)? {
            [first, second] if first >> 4 == 6 => first << 4 | second >> 4,
            [_, tos] => *tos,
            _ => return None,
        };
        Some(Datagram {
            start: start + at,
            len: len.checked_sub(at)?,
            tos,
            source,
            local,
        })
    }

    fn give_back(&mut self) {
        let first = self.fill.produced().load(Ordering::Relaxed);
        let count = self.held.len() as u32;
        for (number, frame) in (0u32..).zip(self.held.drain(..)) {
            // SAFETY: the ring has an entry for every frame there is, so this one is free.
            unsafe { self.fill.entry(first.wrapping_add(number)).write(frame) };
        }
        self.fill
            .produced()
            .store(first.wrapping_add(count), Ordering::Release);
    }
}

fn set<T>(fd: RawFd, name: libc::c_int, value: T) -> io::Result<()> {
    // SAFETY: the value outlives the call and its size is passed.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_XDP,
            name,
            ptr::from_ref(&value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn get<T>(fd: RawFd, name: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: both point to living values, and the size is told.
    let result = unsafe {
        libc::getsockopt(
            fd,
            libc::SOL_XDP,
            name,
            ptr::from_mut(value).cast(),
            &mut len,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn offsets(fd: RawFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all-zero is a valid value.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { mem::zeroed() };
    get(fd, libc::XDP_MMAP_OFFSETS, &mut offsets)?;
    Ok(offsets)
}
