//! The few ioctls of `/dev/net/tun` that `tokio-tun` does not make: virtio headers, offloads, parking a queue.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;

/// Packets may come with a partial checksum; everything else needs this.
pub(super) const CSUM: libc::c_ulong = 0x01;
pub(super) const TSO4: libc::c_ulong = 0x02;
pub(super) const TSO6: libc::c_ulong = 0x04;
/// Super-packets may carry CWR.
pub(super) const TSO_ECN: libc::c_ulong = 0x08;
/// UDP; the kernel knows them as a pair (Linux 6.2).
pub(super) const USO: libc::c_ulong = 0x20 | 0x40;

/// The interface's name and flags, as `struct ifreq` has them.
fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: an all-zero ifreq is valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request
        .ifr_name
        .iter_mut()
        .zip(name.bytes().take(libc::IFNAMSIZ - 1))
    {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

fn ioctl(fd: RawFd, code: libc::c_ulong, request: &libc::ifreq) -> io::Result<()> {
    // SAFETY: the structure lives through the call.
    if unsafe { libc::ioctl(fd, code as _, std::ptr::from_ref(request)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Makes the interface with virtio headers on a first queue and parks that queue: the flag is the interface's from then
/// on, whoever attaches further queues.
pub(super) fn park_with_headers(name: &str) -> io::Result<OwnedFd> {
    // SAFETY: plain system call; the result is checked.
    let fd = unsafe { libc::open(c"/dev/net/tun".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_MULTI_QUEUE | libc::IFF_VNET_HDR;
    ioctl(fd.as_raw_fd(), TUNSETIFF, &request(name, flags))?;
    let size = crate::offload::virtio::LEN as libc::c_int;
    // SAFETY: an int that lives through the call.
    if unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            TUNSETVNETHDRSZ as _,
            std::ptr::from_ref(&size),
        )
    } < 0
    {
        return Err(io::Error::last_os_error());
    }
    detach(fd.as_raw_fd())?;
    Ok(fd)
}

/// Takes a queue out of use; packets are spread over the others.
pub(super) fn detach(fd: RawFd) -> io::Result<()> {
    ioctl(fd, TUNSETQUEUE, &request("", libc::IFF_DETACH_QUEUE))
}

/// Sets what the kernel may leave to us, all at once.
pub(super) fn set_offload(fd: RawFd, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: takes a number.
    if unsafe { libc::ioctl(fd, TUNSETOFFLOAD as _, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
