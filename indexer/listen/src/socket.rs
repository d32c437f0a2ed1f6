//! Listening sockets, with and without TLS, and the loop that accepts clients.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::count;
use crate::gate::{Gate, Pass};
use crate::patient::Patient;

/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Pause after the system could not accept, which is mostly for want of files.
const PAUSE: Duration = Duration::from_millis(100);

/// A client's connection.
#[derive(Debug)]
pub enum Stream {
    /// As it is.
    Plain(TcpStream),
    /// Within TLS.
    Tls(Box<TlsStream<TcpStream>>),
}

/// A client's connection, as its server has it.
pub type Client = Patient<Stream>;

/// A socket that accepts clients as long as a gate lets them in.
pub struct Listener {
    tcp: TcpListener,
    tls: Option<TlsAcceptor>,
    gate: Arc<Gate>,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Listener")
            .field("tcp", &self.tcp)
            .field("tls", &self.tls.is_some())
            .finish_non_exhaustive()
    }
}

/// A client that was let in and has not shaken hands yet.
struct Accepted {
    tcp: TcpStream,
    tls: Option<TlsAcceptor>,
    gate: Arc<Gate>,
    /// Its place.
    pass: Pass,
}

impl Listener {
    /// Listens.
    ///
    /// # Errors
    /// The address cannot be listened on.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
        gate: Arc<Gate>,
    ) -> io::Result<Self> {
        let tcp = TcpListener::bind(address).await?;
        Ok(Self { tcp, tls, gate })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// Accepts clients and has each served by `serve`, a future for each, until `stop` becomes true; then all are
    /// hung up on. A client may keep a write waiting for `patience`, see [`Patient`].
    pub async fn serve<F>(
        self,
        patience: Duration,
        mut stop: watch::Receiver<bool>,
        serve: impl FnOnce(Client) -> F + Clone + Send + 'static,
    ) where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut clients = JoinSet::new();
        let for_each = stop.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = self.accept() => {
                    let (serve, mut stop) = (serve.clone(), for_each.clone());
                    clients.spawn(async move {
                        let served = async move {
                            if let Ok((stream, _pass)) = accepted.open().await {
                                serve(Patient::new(stream, patience)).await;
                            }
                        };
                        tokio::select! {
                            biased;
                            _ = stop.wait_for(|stop| *stop) => {}
                            () = served => {}
                        }
                    });
                }
                Some(_) = clients.join_next() => {}
            }
        }
        while clients.join_next().await.is_some() {}
    }

    /// The next client that is let in; others are hung up on.
    async fn accept(&self) -> Accepted {
        loop {
            let (tcp, peer) = match self.tcp.accept().await {
                Ok(accepted) => accepted,
                Err(e) => {
                    count!(self.gate.counters.accept_failed_total);
                    tracing::debug!("a client cannot be accepted: {e}");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let _ = tcp.set_nodelay(true);
            if let Ok(pass) = self.gate.enter(peer.ip()) {
                let (tls, gate) = (self.tls.clone(), self.gate.clone());
                return Accepted {
                    tcp,
                    tls,
                    gate,
                    pass,
                };
            }
        }
    }
}

impl Accepted {
    /// Shakes hands where there is TLS.
    async fn open(self) -> io::Result<(Stream, Pass)> {
        let Some(tls) = self.tls else {
            return Ok((Stream::Plain(self.tcp), self.pass));
        };
        match timeout(HANDSHAKE, tls.accept(self.tcp)).await {
            Ok(Ok(stream)) => Ok((Stream::Tls(Box::new(stream)), self.pass)),
            Ok(Err(e)) => {
                count!(self.gate.counters.tls_failed_total);
                Err(e)
            }
            Err(_) => {
                count!(self.gate.counters.tls_failed_total);
                Err(io::ErrorKind::TimedOut.into())
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_read(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_write(cx, buf),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_flush(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(s) => Pin::new(s).poll_shutdown(cx),
            Self::Tls(s) => Pin::new(s.as_mut()).poll_shutdown(cx),
        }
    }
}
