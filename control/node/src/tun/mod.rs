//! The TUN interface: opened by `tokio-tun`, then read and written by the data path's threads through descriptors of
//! their own.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
};

use tokio_tun::Tun;

/// The interface. It is not persistent: it lives as long as this value and the queues taken from it.
pub struct Interface {
    name: String,
    index: u32,
    tuns: Vec<Tun>,
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
    /// Opens it with so many queues. Must be called within a tokio runtime.
    pub fn open(name: &str, queues: usize) -> Result<Self, TunError> {
        if !std::path::Path::new("/dev/net/tun").exists() {
            return Err(TunError::NoDevice);
        }
        let describe = |error: tokio_tun::Error| {
            let code = match &error {
                tokio_tun::Error::IoError(error) => error.raw_os_error(),
                tokio_tun::Error::NixError(error) => Some(*error as i32),
            };
            let name = name.to_owned();
            match code {
                Some(libc::EPERM | libc::EACCES) => TunError::NotPermitted { name },
                Some(libc::EBUSY) => TunError::Busy { name },
                _ => TunError::Other {
                    name,
                    error: error.to_string(),
                },
            }
        };
        let tuns = Tun::builder()
            .name(name)
            .queues(queues)
            .build()
            .map_err(describe)?;
        let index = tuns.first().map_or(Ok(0), Tun::index).map_err(describe)?;
        Ok(Self {
            name: name.to_owned(),
            index,
            tuns,
        })
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
        self.tuns
            .iter()
            .map(|tun| {
                // SAFETY: the descriptor belongs to `tun`, which outlives the borrow.
                let fd = unsafe { BorrowedFd::borrow_raw(tun.as_raw_fd()) };
                Ok(Queue(fd.as_fd().try_clone_to_owned()?))
            })
            .collect()
    }
}

/// One queue, not blocking.
#[derive(Debug)]
pub struct Queue(OwnedFd);

impl Queue {
    /// For polling.
    pub fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// Reads one packet.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: pointer and length are of one living slice.
        let len = unsafe { libc::read(self.raw(), buffer.as_mut_ptr().cast(), buffer.len()) };
        usize::try_from(len).map_err(|_| io::Error::last_os_error())
    }

    /// Writes one packet.
    pub fn write(&self, packet: &[u8]) -> io::Result<()> {
        // SAFETY: pointer and length are of one living slice.
        let len = unsafe { libc::write(self.raw(), packet.as_ptr().cast(), packet.len()) };
        if len < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(())
        }
    }
}
