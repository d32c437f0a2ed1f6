//! What can go wrong between a program and its `weftd`, in words that say what to do about it.

use std::{io, path::PathBuf, time::Duration};

/// A call that did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket.
    #[error("weftd is not running: there is no socket {}; `weft up` starts it (or name its folder with --dir)", .path.display())]
    NotRunning {
        /// Where the socket was looked for.
        path: PathBuf,
    },
    /// There is a socket and nobody behind it: the daemon died without cleaning up.
    #[error(
        "weftd is not running: nobody listens on {}, so it was killed or crashed; `weft up` starts it again, `weft down` undoes what it left on this host",
        .path.display()
    )]
    Died {
        /// The socket.
        path: PathBuf,
    },
    /// The socket, or a folder above it, is not for this user.
    #[error("no permission to talk to weftd over {}: run this as root or as a member of the socket's group", .path.display())]
    Permission {
        /// The socket.
        path: PathBuf,
    },
    /// The path is not one of a socket, or too long for one.
    #[error("{} cannot be weftd's socket: {reason}", .path.display())]
    NotASocket {
        /// The path given.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Any other failure of the connection.
    #[error("the connection to weftd over {} failed: {source}", .path.display())]
    Connection {
        /// The socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server ended the connection before the last answer.
    #[error(
        "weftd closed the connection before it had answered; it stopped or crashed, its log says why"
    )]
    Closed,
    /// No answer within the time allowed.
    #[error("weftd did not answer within {} s; it is busy or hangs (`weft status` tries again, its log may say why)", .0.as_secs_f32())]
    Timeout(Duration),
    /// The cancel flag was raised while waiting.
    #[error("interrupted")]
    Cancelled,
    /// The server's line, or ours, is longer than [`MAX_LINE`](crate::api::MAX_LINE).
    #[error("a line of more than {} bytes was {}; the API's bound is there so that neither side runs out of memory", crate::api::MAX_LINE, if *.sent { "to be sent" } else { "received" })]
    LineTooLong {
        /// Whether it was ours.
        sent: bool,
    },
    /// The server speaks something else.
    #[error("weftd's answer is not one of the API's (version {version}): {0}; are weft and weftd of one release?", version = crate::api::API_VERSION)]
    Malformed(String),
    /// The daemon understood and refused, or failed. The words are the daemon's.
    #[error("{0}")]
    Refused(String),
}

impl Error {
    /// Whether there is no daemon (as opposed to one that refuses, hangs or misbehaves).
    pub fn is_not_running(&self) -> bool {
        matches!(self, Self::NotRunning { .. } | Self::Died { .. })
    }
}
