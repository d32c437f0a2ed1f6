//! What the running system must offer to nodes in namespaces: privilege, kernel, TUN, BPF and its filesystem.

use std::{
    ffi::CString,
    fs::{self, OpenOptions},
    io,
    path::Path,
};

use anyhow::{Context, Result, bail, ensure};

use super::packages::is_root;
use crate::term;

/// Where `weftd` pins its maps and links.
pub const BPFFS: &str = "/sys/fs/bpf";
/// The oldest kernel with all the program uses (atomics with fetch, XDP links, ring buffer), on a long-term branch.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;

/// Checks, mends what root can mend (TUN device node, bpffs mount), and lists what holds.
///
/// # Errors
/// The first thing that is missing: which, and what to do.
pub fn check() -> Result<Vec<String>> {
    let mut found = Vec::new();
    ensure!(
        is_root(),
        "not root: nodes in network namespaces need root (CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF). Run the same \
         command with `sudo -E env PATH=\"$PATH\"`, or in a root shell"
    );
    found.push(kernel()?);
    tun()?;
    found.push("/dev/net/tun opens".to_owned());
    bpf()?;
    if bpffs()? {
        term::good(&format!("mounted bpffs on {BPFFS}"));
    }
    found.push(format!("BPF works, bpffs is mounted on {BPFFS}"));
    namespaces()?;
    found.push("network namespaces can be made".to_owned());
    Ok(found)
}

/// In one line, why nodes cannot run here; none where they can.
#[must_use]
pub fn obstacle() -> Option<String> {
    check().err().map(|e| format!("{e:#}"))
}

fn kernel() -> Result<String> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("this is not Linux, or /proc is missing")?;
    let release = release.trim();
    let mut numbers = release
        .split(['.', '-'])
        .map_while(|n| n.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST_KERNEL;
    ensure!(
        version >= OLDEST_KERNEL,
        "Linux {release} is too old: at least {major}.{minor} is needed; boot a newer kernel"
    );
    Ok(format!("Linux {release}"))
}

fn tun() -> Result<()> {
    let path = Path::new("/dev/net/tun");
    if !path.exists() {
        fs::create_dir_all("/dev/net").context("cannot make /dev/net")?;
        let name = CString::new("/dev/net/tun")?;
        // SAFETY: `name` is a valid C string for the duration of the call.
        let made =
            unsafe { libc::mknod(name.as_ptr(), libc::S_IFCHR | 0o666, libc::makedev(10, 200)) };
        ensure!(
            made == 0,
            "/dev/net/tun is missing and cannot be made ({}). In a container: pass it in (`--device /dev/net/tun`)",
            io::Error::last_os_error()
        );
        term::good("made the device node /dev/net/tun");
    }
    match OpenOptions::new().read(true).write(true).open(path) {
        Ok(_) => Ok(()),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) => {
            bail!(
                "the kernel has no TUN driver: run `modprobe tun`, or use a kernel with CONFIG_TUN"
            )
        }
        Err(e) => Err(e).context(
            "/dev/net/tun does not open; in a container, allow it (`--device /dev/net/tun`)",
        ),
    }
}

/// Creates and drops one tiny map.
fn bpf() -> Result<()> {
    // The head of `union bpf_attr` for BPF_MAP_CREATE: type, key size, value size, entries.
    let attributes: [u32; 32] = {
        let mut a = [0; 32];
        (a[0], a[1], a[2], a[3]) = (2, 4, 8, 1);
        a
    };
    // SAFETY: BPF_MAP_CREATE (0) reads `size` bytes of the attributes, which live and are zero past the set fields.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            0,
            attributes.as_ptr(),
            size_of_val(&attributes),
        )
    };
    if fd < 0 {
        let error = io::Error::last_os_error();
        let remedy = match error.raw_os_error() {
            Some(libc::ENOSYS) => {
                "the kernel was built without CONFIG_BPF_SYSCALL: use another kernel"
            }
            Some(libc::EPERM) => {
                "the privilege is missing: in a container, run with `--privileged` or CAP_BPF and CAP_NET_ADMIN"
            }
            _ => "see the kernel's log",
        };
        bail!("the bpf system call fails ({error}): {remedy}");
    }
    // SAFETY: `fd` was returned by the kernel just now and nothing else owns it.
    unsafe { libc::close(i32::try_from(fd)?) };
    Ok(())
}

/// Mounts bpffs where it is not; whether it did.
fn bpffs() -> Result<bool> {
    let path = CString::new(BPFFS)?;
    // SAFETY: all-zero is a valid `statfs`; `path` is a C string and `info` writable during the call.
    let mut info: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    let answer = unsafe { libc::statfs(path.as_ptr(), &mut info) };
    if answer == 0 && info.f_type == BPF_FS_MAGIC {
        return Ok(false);
    }
    // SAFETY: all pointers are C strings living through the call, the data pointer may be null.
    let mounted = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            path.as_ptr(),
            c"bpf".as_ptr(),
            0,
            std::ptr::null(),
        )
    };
    ensure!(
        mounted == 0,
        "{BPFFS} is no bpffs and cannot be mounted ({}): run `mount -t bpf bpf {BPFFS}` where that is allowed",
        io::Error::last_os_error()
    );
    Ok(true)
}

fn namespaces() -> Result<()> {
    let tried = std::thread::spawn(|| {
        // SAFETY: moves only this thread, which ends right after, into a new network namespace.
        match unsafe { libc::unshare(libc::CLONE_NEWNET) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    })
    .join();
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(e)) => bail!(
            "cannot make a network namespace ({e}): CAP_SYS_ADMIN and CONFIG_NET_NS are needed"
        ),
        Err(_) => bail!("the thread that tried to make a network namespace ended unexpectedly"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernel_is_new_enough() {
        assert!(kernel().is_ok(), "{:?}", kernel());
    }

    #[test]
    fn an_obstacle_names_a_remedy() {
        if let Some(why) = obstacle() {
            assert!(
                why.contains("run") || why.contains("Run") || why.contains("use"),
                "{why}"
            );
        }
    }
}
