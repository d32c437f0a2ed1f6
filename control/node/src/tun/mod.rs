//! The TUN interface: opened by `tokio-tun`, then read and written by the data path's threads through descriptors of
//! their own.
//!
//! `tokio-tun` does not ask for virtio headers. The flag belongs to the interface and stays with it once a first queue
//! was attached with it, so that is done beforehand, and that queue is parked (`TUNSETQUEUE`). What the kernel may then
//! leave to us is tried one by one; what it refuses stays off and is told with the reason.

mod device;

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use tokio_tun::Tun;

use crate::offload::{
    gro::Takes,
    virtio::{self, VirtioHeader},
};

/// Bytes a read may give: a virtio header and the largest packet.
pub const READ: usize = virtio::LEN + 65_536;

/// One thing the kernel may do for us or we for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offload {
    /// Its name in the status.
    pub name: &'static str,
    /// Why it is not used; none where it is.
    pub off: Option<String>,
}

/// The interface. It is not persistent: it lives as long as this value and the queues taken from it.
pub struct Interface {
    name: String,
    index: u32,
    queues: Vec<OwnedFd>,
    headers: bool,
    takes: Takes,
    offloads: Vec<Offload>,
    /// Keeps virtio headers on.
    _parked: Option<OwnedFd>,
}

impl std::fmt::Debug for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Interface({})", self.name)
    }
}

/// Why there is no interface.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The device file is missing.
    #[error(
        "/dev/net/tun does not exist: the kernel has no TUN, or this container was not given it. Load the module `tun`, or set `enable = false` under [tun] for a pure transit."
    )]
    NoDevice,
    /// Not allowed.
    #[error(
        "opening TUN interface {name}: not permitted. weftd needs CAP_NET_ADMIN, or set `enable = false` under [tun] for a pure transit."
    )]
    NotPermitted {
        /// Its name.
        name: String,
    },
    /// The name is taken.
    #[error(
        "opening TUN interface {name}: the name is in use. End the program that holds it, or choose another `name` under [tun]."
    )]
    Busy {
        /// Its name.
        name: String,
    },
    /// Anything else.
    #[error("opening TUN interface {name}: {error}")]
    Other {
        /// Its name.
        name: String,
        /// What was said.
        error: String,
    },
}

impl Interface {
    /// Opens it with so many queues, and with every offload the kernel has where `offload` is set. Must be called within
    /// a tokio runtime.
    pub fn open(name: &str, queues: usize, offload: bool) -> Result<Self, TunError> {
        if !std::path::Path::new("/dev/net/tun").exists() {
            return Err(TunError::NoDevice);
        }
        let describe = |code: Option<i32>, error: String| {
            let name = name.to_owned();
            match code {
                Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name },
                Some(libc::EBUSY) => TunError::Busy { name },
                _ => TunError::Other { name, error },
            }
        };
        let describe_tun = |error: tokio_tun::Error| {
            let code = match &error {
                tokio_tun::Error::IoError(error) => error.raw_os_error(),
                tokio_tun::Error::NixError(error) => Some(*error as i32),
            };
            describe(code, error.to_string())
        };
        let mut parked = Err("`offload = false` under [tun]".to_owned());
        if offload {
            parked = match device::park_with_headers(name) {
                Ok(queue) => Ok(queue),
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EPERM | libc::EACCES | libc::EBUSY)
                    ) =>
                {
                    return Err(describe(error.raw_os_error(), error.to_string()));
                }
                Err(error) => Err(format!(
                    "the kernel refuses virtio headers on the interface: {error}"
                )),
            };
        }
        // tokio-tun makes a multi-queue interface of two queues and more, and the parked one made it one.
        let opened = if parked.is_ok() {
            queues.max(2)
        } else {
            queues
        };
        let tuns = Tun::builder()
            .name(name)
            .queues(opened)
            .build()
            .map_err(describe_tun)?;
        let index = tuns
            .first()
            .map_or(Ok(0), Tun::index)
            .map_err(describe_tun)?;
        // `tokio-tun` has its descriptors watched by the runtime, which every packet would wake for nothing. They end here,
        // and so does a queue that is too many.
        let queues: Vec<_> = tuns
            .iter()
            .take(queues)
            .map(|tun| {
                // SAFETY: the descriptor belongs to `tun`, which outlives the borrow.
                let fd = unsafe { BorrowedFd::borrow_raw(tun.as_raw_fd()) };
                fd.try_clone_to_owned()
            })
            .collect::<io::Result<_>>()
            .map_err(|error| describe(error.raw_os_error(), error.to_string()))?;
        drop(tuns);
        let (headers, parked) = match parked {
            Ok(queue) => (Ok(()), Some(queue)),
            Err(why) => (Err(why), None),
        };
        let fd = queues.first().map_or(-1, AsRawFd::as_raw_fd);
        let (takes, mut offloads) = probe(fd, &headers);
        offloads.push(Offload {
            name: "tun_queues",
            off: (queues.len() < 2).then(|| "one data path thread".to_owned()),
        });
        Ok(Self {
            name: name.to_owned(),
            index,
            queues,
            headers: headers.is_ok(),
            takes,
            offloads,
            _parked: parked,
        })
    }

    /// What is on, and what is off and why.
    pub fn offloads(&self) -> &[Offload] {
        &self.offloads
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its interface index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// A descriptor of each queue, for the workers.
    pub fn queues(&self) -> io::Result<Vec<Queue>> {
        self.queues
            .iter()
            .map(|fd| {
                Ok(Queue {
                    fd: fd.try_clone()?,
                    headers: self.headers,
                    takes: self.takes,
                })
            })
            .collect()
    }
}

/// Turns on what the kernel leaves to us, one after the other: what it refuses stays off by itself.
fn probe(fd: RawFd, headers: &Result<(), String>) -> (Takes, Vec<Offload>) {
    let mut flags = 0;
    let mut try_on = |name, more: libc::c_ulong, needs: &Result<(), String>| {
        let off = match needs {
            Err(why) => Some(why.clone()),
            Ok(()) => match device::set_offload(fd, flags | more) {
                Ok(()) => {
                    flags |= more;
                    None
                }
                Err(error) => Some(format!(
                    "the kernel refuses TUNSETOFFLOAD {more:#x}: {error}"
                )),
            },
        };
        Offload { name, off }
    };
    let checksum = try_on("tun_checksum", device::CSUM, headers);
    let needs = match &checksum.off {
        Some(why) => Err(why.clone()),
        None => Ok(()),
    };
    let offloads = vec![
        try_on("tun_tso4", device::TSO4, &needs),
        try_on("tun_tso6", device::TSO6, &needs),
        try_on("tun_tso_ecn", device::TSO_ECN, &needs),
        // A kernel that gives UDP super-packets takes them too.
        try_on("tun_uso", device::USO, &needs),
    ];
    let udp = offloads[3].off.clone();
    let takes = Takes {
        tcp: headers.is_ok(),
        udp: udp.is_none(),
    };
    let coalesced = [
        Offload {
            name: "tun_gro_tcp",
            off: headers.clone().err(),
        },
        Offload {
            name: "tun_gro_udp",
            off: udp,
        },
    ];
    let all = std::iter::once(checksum)
        .chain(offloads)
        .chain(coalesced)
        .collect();
    (takes, all)
}

/// One queue, not blocking.
#[derive(Debug)]
pub struct Queue {
    fd: OwnedFd,
    headers: bool,
    takes: Takes,
}

impl Queue {
    /// For polling.
    pub fn raw(&self) -> RawFd {
        self.fd.as_raw_fd()
    }

    /// Which bundles may be written.
    pub fn takes(&self) -> Takes {
        self.takes
    }

    /// Reads one packet or super-packet: what its virtio header says, and where it stands in the buffer, which should
    /// have [`READ`] bytes. A header that makes no sense is an error of kind `InvalidData`.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<(VirtioHeader, std::ops::Range<usize>)> {
        // SAFETY: pointer and length are of one living slice.
        let len = unsafe { libc::read(self.raw(), buffer.as_mut_ptr().cast(), buffer.len()) };
        let len = usize::try_from(len).map_err(|_| io::Error::last_os_error())?;
        if !self.headers {
            return Ok((VirtioHeader::default(), 0..len));
        }
        let invalid = || io::Error::from(io::ErrorKind::InvalidData);
        let header = buffer
            .first_chunk()
            .filter(|_| len >= virtio::LEN)
            .ok_or_else(invalid)?;
        let header = VirtioHeader::read(header).map_err(|_| invalid())?;
        Ok((header, virtio::LEN..len))
    }

    /// Writes one packet or bundle that stands in parts; `parts[0]` is left empty for the virtio header.
    pub fn write<'a>(
        &self,
        header: &'a mut [u8; virtio::LEN],
        parts: &mut [IoSlice<'a>],
    ) -> io::Result<()> {
        let parts = if self.headers {
            parts[0] = IoSlice::new(header);
            parts
        } else {
            &mut parts[1..]
        };
        // SAFETY: IoSlice has the layout of iovec, and its bytes live through the call, which only reads them.
        let len = unsafe {
            libc::writev(
                self.raw(),
                parts.as_ptr().cast(),
                parts.len() as libc::c_int,
            )
        };
        if len < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }

    /// Writes one packet as it is.
    pub fn write_packet(&self, packet: &[u8]) -> io::Result<()> {
        let mut header = VirtioHeader::default().to_bytes();
        self.write(&mut header, &mut [IoSlice::new(&[]), IoSlice::new(packet)])
    }
}
