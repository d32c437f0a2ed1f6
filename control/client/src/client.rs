//! A blocking client of the local API, one request at a time.
//!
//! Every wait is bounded by the client's time-out, whatever the server does (also one that sends a byte per second),
//! and every line by [`MAX_LINE`]. A [`Stream`] that is dropped before its last answer closes the connection, which is
//! how the daemon learns to stop; the next call connects again.

use std::{
    io::{self, Read, Write},
    marker::PhantomData,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use serde::de::DeserializeOwned;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::{
    Error,
    api::{
        Call, Constraints, Counters, HostChange, Link, Lsp, MAX_LINE, Node, Peer, Pong, Request,
        Response, Result as Answer, Route, SessionInfo, Status, TraceHop, Why,
    },
};

/// Longest time between two looks at the cancel flag.
const SLICE: Duration = Duration::from_millis(100);

/// A connection to the `weftd` of this host.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    timeout: Duration,
    cancel: Option<Arc<AtomicBool>>,
    next_id: u64,
    connection: Option<Connection>,
}

#[derive(Debug)]
struct Connection {
    socket: UnixStream,
    /// Received and not yet consumed: at most one line and one read.
    buffer: Vec<u8>,
    /// Bytes of `buffer` known to hold no newline.
    searched: usize,
}

impl Client {
    /// How long a call waits for an answer unless [`set_timeout`](Self::set_timeout) says otherwise.
    pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

    /// Connects to the socket at `path`.
    pub fn connect(path: impl Into<PathBuf>) -> Result<Self, Error> {
        Self::connect_timeout(path, Self::DEFAULT_TIMEOUT)
    }

    /// Connects with another time-out, which then holds for the calls too.
    pub fn connect_timeout(path: impl Into<PathBuf>, timeout: Duration) -> Result<Self, Error> {
        let mut client = Self {
            path: path.into(),
            timeout: at_least(timeout),
            cancel: None,
            next_id: 1,
            connection: None,
        };
        client.connection()?;
        Ok(client)
    }

    /// The longest wait for one answer (of a stream: for the next one).
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = at_least(timeout);
    }

    /// A flag that ends any wait within a tenth of a second with [`Error::Cancelled`] (for Ctrl-C).
    pub fn set_cancel(&mut self, flag: Arc<AtomicBool>) {
        self.cancel = Some(flag);
    }

    /// The socket's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// [`Call::Status`].
    pub fn status(&mut self) -> Result<Status, Error> {
        self.call(Call::Status)
    }

    /// [`Call::Host`].
    pub fn host(&mut self) -> Result<Vec<HostChange>, Error> {
        self.call(Call::Host)
    }

    /// [`Call::Peers`].
    pub fn peers(&mut self) -> Result<Vec<Peer>, Error> {
        self.call(Call::Peers)
    }

    /// [`Call::AddPeer`].
    pub fn add_peer(&mut self, address: impl Into<String>) -> Result<(), Error> {
        self.call::<serde_json::Value>(Call::AddPeer {
            address: address.into(),
        })
        .map(drop)
    }

    /// [`Call::RemovePeer`].
    pub fn remove_peer(&mut self, address: impl Into<String>) -> Result<(), Error> {
        self.call::<serde_json::Value>(Call::RemovePeer {
            address: address.into(),
        })
        .map(drop)
    }

    /// [`Call::Links`].
    pub fn links(&mut self) -> Result<Vec<Link>, Error> {
        self.call(Call::Links)
    }

    /// [`Call::Nodes`].
    pub fn nodes(&mut self) -> Result<Vec<Node>, Error> {
        self.call(Call::Nodes)
    }

    /// [`Call::Lsps`].
    pub fn lsps(&mut self) -> Result<Vec<Lsp>, Error> {
        self.call(Call::Lsps)
    }

    /// [`Call::Routes`].
    pub fn routes(&mut self) -> Result<Vec<Route>, Error> {
        self.call(Call::Routes)
    }

    /// [`Call::Sessions`].
    pub fn sessions(&mut self) -> Result<Vec<SessionInfo>, Error> {
        self.call(Call::Sessions)
    }

    /// [`Call::Counters`].
    pub fn counters(&mut self) -> Result<Counters, Error> {
        self.call(Call::Counters)
    }

    /// [`Call::Ping`]: one item per echo.
    pub fn ping(
        &mut self,
        node: impl Into<String>,
        count: u32,
        interval_ms: u32,
        payload_len: u16,
    ) -> Result<Stream<'_, Pong>, Error> {
        self.stream(Call::Ping {
            node: node.into(),
            count,
            interval_ms,
            payload_len,
        })
    }

    /// [`Call::Trace`]: one item per hop.
    pub fn trace(&mut self, node: impl Into<String>) -> Result<Stream<'_, TraceHop>, Error> {
        self.stream(Call::Trace { node: node.into() })
    }

    /// [`Call::Why`].
    pub fn why(&mut self, node: impl Into<String>, constraints: Constraints) -> Result<Why, Error> {
        self.call(Call::Why {
            node: node.into(),
            constraints,
        })
    }

    /// [`Call::Shutdown`]. Returns when the daemon has accepted it; it is gone when the socket refuses connections.
    pub fn shutdown(&mut self, keep_transit: bool) -> Result<(), Error> {
        self.call::<serde_json::Value>(Call::Shutdown { keep_transit })
            .map(drop)
    }

    /// Any call with a single answer, as the type the call documents.
    pub fn call<T: DeserializeOwned>(&mut self, call: Call) -> Result<T, Error> {
        let mut stream = self.stream::<T>(call)?;
        let value = match stream.next_answer() {
            Some(answer) => answer?,
            None => return Err(Error::Malformed("the call ended without an answer".into())),
        };
        if !stream.finished {
            return Err(stream.fail(Error::Malformed(
                "more than one answer to a call that has one".into(),
            )));
        }
        stream.item(value)
    }

    /// Any call with several answers.
    pub fn stream<T: DeserializeOwned>(&mut self, call: Call) -> Result<Stream<'_, T>, Error> {
        let id = self.next_id;
        self.next_id += 1;
        let mut line = serde_json::to_vec(&Request { id, call })
            .map_err(|error| Error::Malformed(error.to_string()))?;
        if line.len() > MAX_LINE {
            return Err(Error::LineTooLong { sent: true });
        }
        line.push(b'\n');
        self.send(&line)?;
        Ok(Stream {
            client: self,
            id,
            finished: false,
            items: PhantomData,
        })
    }

    /// Writes one line, over a fresh connection when the old one turns out to be gone.
    fn send(&mut self, line: &[u8]) -> Result<(), Error> {
        let reused = self.connection.is_some();
        match self.try_send(line) {
            Err(Error::Closed) if reused => self.try_send(line),
            other => other,
        }
    }

    fn try_send(&mut self, line: &[u8]) -> Result<(), Error> {
        let deadline = Instant::now() + self.timeout;
        let (timeout, cancel, path) = (self.timeout, self.cancel.clone(), self.path.clone());
        let socket = &mut self.connection()?.socket;
        let mut rest = line;
        let result = loop {
            if rest.is_empty() {
                return Ok(());
            }
            match wait_slice(deadline, timeout, cancel.as_deref()) {
                Ok(slice) => _ = socket.set_write_timeout(Some(slice)),
                Err(error) => break error,
            }
            match socket.write(rest) {
                Ok(0) => break Error::Closed,
                Ok(written) => rest = &rest[written..],
                Err(error) if is_retry(&error) => {}
                Err(error) if is_closed(&error) => break Error::Closed,
                Err(source) => break Error::Connection { path, source },
            }
        };
        // Who is turned away is told why before the connection ends.
        let told = match result {
            Error::Closed => self.receive().and_then(|line| parse(&line)).ok(),
            _ => None,
        };
        self.connection = None;
        Err(told.and_then(about_the_connection).unwrap_or(result))
    }

    /// The next line, without its newline.
    fn receive(&mut self) -> Result<Vec<u8>, Error> {
        let deadline = Instant::now() + self.timeout;
        let Some(connection) = self.connection.as_mut() else {
            return Err(Error::Closed);
        };
        let mut chunk = [0; 16 * 1024];
        loop {
            if let Some(at) = connection.buffer[connection.searched..]
                .iter()
                .position(|&byte| byte == b'\n')
            {
                let end = connection.searched + at;
                let mut line: Vec<u8> = connection.buffer.drain(..=end).collect();
                line.pop();
                connection.searched = 0;
                return if line.len() > MAX_LINE {
                    Err(Error::LineTooLong { sent: false })
                } else {
                    Ok(line)
                };
            }
            connection.searched = connection.buffer.len();
            if connection.buffer.len() > MAX_LINE {
                return Err(Error::LineTooLong { sent: false });
            }
            let slice = wait_slice(deadline, self.timeout, self.cancel.as_deref())?;
            _ = connection.socket.set_read_timeout(Some(slice));
            match connection.socket.read(&mut chunk) {
                Ok(0) => return Err(Error::Closed),
                Ok(read) => connection.buffer.extend_from_slice(&chunk[..read]),
                Err(error) if is_retry(&error) => {}
                Err(error) if is_closed(&error) => return Err(Error::Closed),
                Err(source) => {
                    return Err(Error::Connection {
                        path: self.path.clone(),
                        source,
                    });
                }
            }
        }
    }

    fn connection(&mut self) -> Result<&mut Connection, Error> {
        let socket = match self.connection.take() {
            Some(connection) => return Ok(self.connection.insert(connection)),
            None => connect(&self.path, self.timeout)?,
        };
        Ok(self.connection.insert(Connection {
            socket,
            buffer: Vec::new(),
            searched: 0,
        }))
    }
}

/// The answers to one call, in order; ends after the last or after an error.
#[derive(Debug)]
pub struct Stream<'a, T> {
    client: &'a mut Client,
    id: u64,
    finished: bool,
    items: PhantomData<fn() -> T>,
}

impl<T> Stream<'_, T> {
    /// The longest wait for the next answer, from now on and for later calls too.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.client.set_timeout(timeout);
    }
}

impl<T: DeserializeOwned> Iterator for Stream<'_, T> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.next_answer()? {
            // A stream may end with an answer that carries no item.
            Ok(serde_json::Value::Null) if self.finished => None,
            Ok(value) => Some(self.item(value)),
            Err(error) => Some(Err(error)),
        }
    }
}

impl<T> Stream<'_, T> {
    fn next_answer(&mut self) -> Option<Result<serde_json::Value, Error>> {
        if self.finished {
            return None;
        }
        Some(match self.client.receive().and_then(|line| parse(&line)) {
            // A stream given up closes its connection, so no other request can be open on this one.
            Ok(answer) if answer.id != self.id => {
                let (id, about) = (answer.id, about_the_connection(answer));
                let detail = format!("it answers request {id}, request {} was asked", self.id);
                Err(self.fail(about.unwrap_or(Error::Malformed(detail))))
            }
            Ok(Response {
                result: Answer::Ok(value),
                last,
                ..
            }) => {
                self.finished = last;
                Ok(value)
            }
            Ok(Response {
                result: Answer::Error(reason),
                last: true,
                ..
            }) => {
                self.finished = true;
                Err(Error::Refused(reason))
            }
            Ok(Response {
                result: Answer::Error(reason),
                ..
            }) => Err(self.fail(Error::Refused(reason))),
            Err(error) => Err(self.fail(error)),
        })
    }

    fn fail(&mut self, error: Error) -> Error {
        self.finished = true;
        self.client.connection = None;
        error
    }
}

impl<T: DeserializeOwned> Stream<'_, T> {
    fn item(&mut self, value: serde_json::Value) -> Result<T, Error> {
        serde_json::from_value(value)
            .map_err(|error| self.fail(Error::Malformed(error.to_string())))
    }
}

impl<T> Drop for Stream<'_, T> {
    fn drop(&mut self) {
        if !self.finished {
            self.client.connection = None;
        }
    }
}

fn connect(path: &Path, timeout: Duration) -> Result<UnixStream, Error> {
    let other = |source| Error::Connection {
        path: path.to_owned(),
        source,
    };
    let address = SockAddr::unix(path).map_err(|_| Error::NotASocket {
        path: path.to_owned(),
        reason: format!(
            "a socket's path has at most 107 bytes, this one has {}",
            path.as_os_str().len()
        ),
    })?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(other)?;
    // Bounds the connect as well: a server that accepts nobody fills its backlog.
    socket.set_write_timeout(Some(timeout)).map_err(other)?;
    match socket.connect(&address) {
        Ok(()) => Ok(UnixStream::from(std::os::fd::OwnedFd::from(socket))),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => Error::NotRunning {
                path: path.to_owned(),
            },
            io::ErrorKind::PermissionDenied => Error::Permission {
                path: path.to_owned(),
            },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::Timeout(timeout),
            io::ErrorKind::NotADirectory => Error::NotASocket {
                path: path.to_owned(),
                reason: "a part of the path before the last is not a folder".into(),
            },
            io::ErrorKind::ConnectionRefused => match std::fs::metadata(path) {
                Ok(meta) if !std::os::unix::fs::FileTypeExt::is_socket(&meta.file_type()) => {
                    Error::NotASocket {
                        path: path.to_owned(),
                        reason: "it is a file or folder of another kind".into(),
                    }
                }
                _ => Error::Died {
                    path: path.to_owned(),
                },
            },
            _ => other(error),
        }),
    }
}

/// What is wrong with the connection as a whole is told under the number of no request.
fn about_the_connection(answer: Response) -> Option<Error> {
    match answer {
        Response {
            id: 0,
            result: Answer::Error(reason),
            ..
        } => Some(Error::Refused(reason)),
        _ => None,
    }
}

fn parse(line: &[u8]) -> Result<Response, Error> {
    serde_json::from_slice(line).map_err(|error| {
        let start = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
        Error::Malformed(format!("{error}, in the line that begins {start:?}"))
    })
}

/// How long to block now: never past the deadline, never longer than a slice when there is a flag to look at.
fn wait_slice(
    deadline: Instant,
    timeout: Duration,
    cancel: Option<&AtomicBool>,
) -> Result<Duration, Error> {
    if cancel.is_some_and(|flag| flag.load(Ordering::Relaxed)) {
        return Err(Error::Cancelled);
    }
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(Error::Timeout(timeout));
    }
    Ok(at_least(if cancel.is_some() {
        left.min(SLICE)
    } else {
        left
    }))
}

/// The system takes a zero time-out for none.
fn at_least(timeout: Duration) -> Duration {
    timeout.max(Duration::from_millis(1))
}

fn is_retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
    )
}
