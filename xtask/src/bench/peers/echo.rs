//! Requests and responses of 64 bytes over TCP and UDP, and how long they take.
//!
//! Two ways of asking. *One after the other*: the next request leaves when the answer to the last is there, as netperf's
//! `TCP_RR` and `UDP_RR` do; for idle paths. *In step*: a request leaves every interval whether or not earlier ones were
//! answered, so a stall is seen by all requests that fall into it; for paths under load. Client and server are
//! threads of this process, on one clock.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use super::super::stats::percentile;
use crate::lab::netns::Netns;

/// Bytes of a request and of its answer.
const MESSAGE: usize = 64;
/// How long a blocking call lasts before it looks whether to go on.
const TICK: Duration = Duration::from_millis(50);
/// How long an answer is waited for; a request without one counts as if it had taken this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Most connections the server holds at a time.
const MOST_CONNECTIONS: usize = 64;
/// Most requests of one measurement.
const MOST_REQUESTS: usize = 2_000_000;

/// What carries requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Transport {
    /// A connection, without Nagle's algorithm.
    Tcp,
    /// Datagrams.
    Udp,
}

/// How long requests took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Latencies {
    /// Nanoseconds, sorted; unanswered requests count with [`PATIENCE`].
    sorted: Vec<u64>,
    /// Requests without an answer.
    pub(super) lost: usize,
}

impl Latencies {
    fn new(mut answered: Vec<u64>, lost: usize) -> Self {
        let patience = u64::try_from(PATIENCE.as_nanos()).unwrap_or(u64::MAX);
        answered.extend(std::iter::repeat_n(patience, lost));
        answered.sort_unstable();
        Self {
            sorted: answered,
            lost,
        }
    }

    /// How many requests there were.
    pub(super) fn count(&self) -> usize {
        self.sorted.len()
    }

    /// Microseconds that a share of the requests did not exceed.
    pub(super) fn micros(&self, share: f64) -> Option<f64> {
        percentile(&self.sorted, share).map(|ns| ns as f64 / 1000.0)
    }
}

/// Answers requests on every address of a namespace; ends when dropped.
pub(super) struct EchoServer {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<()>>>,
    port: u16,
}

impl EchoServer {
    /// Starts it.
    pub(super) fn start(namespace: &Netns) -> Result<Self> {
        // IPv6's wildcard takes IPv4 as well.
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let (listener, socket, port) = namespace.run(|| -> io::Result<_> {
            let listener = TcpListener::bind(any)?;
            let port = listener.local_addr()?.port();
            let socket = UdpSocket::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)))?;
            Ok((listener, socket, port))
        })??;
        listener.set_nonblocking(true)?;
        socket.set_read_timeout(Some(TICK))?;
        let stop = Arc::new(AtomicBool::new(false));
        let (for_tcp, for_udp) = (Arc::clone(&stop), Arc::clone(&stop));
        let threads = vec![
            namespace.spawn("echo-tcp", move || accept(&listener, &for_tcp))?,
            namespace.spawn("echo-udp", move || answer_datagrams(&socket, &for_udp))?,
        ];
        Ok(Self {
            stop,
            threads,
            port,
        })
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // What went wrong inside shows at the client.
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, stop: &Arc<AtomicBool>) -> Result<()> {
    let mut connections = Vec::<JoinHandle<()>>::new();
    while !stop.load(Ordering::Relaxed) {
        connections.retain(|c| !c.is_finished());
        match listener.accept() {
            Ok((stream, _)) if connections.len() < MOST_CONNECTIONS => {
                let stop = Arc::clone(stop);
                let serve = move || {
                    // An ended connection is the client's to notice.
                    let _ = answer_stream(stream, &stop);
                };
                connections.push(std::thread::Builder::new().spawn(serve)?);
            }
            Ok(_) => {}
            Err(e) if retry(&e) => std::thread::sleep(Duration::from_millis(1)),
            Err(e) => return Err(e).context("the echo server cannot accept"),
        }
    }
    for connection in connections {
        let _ = connection.join();
    }
    Ok(())
}

fn answer_stream(mut stream: TcpStream, stop: &AtomicBool) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(TICK))?;
    let mut buffer = [0_u8; 16 * MESSAGE];
    while !stop.load(Ordering::Relaxed) {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(length) => stream.write_all(&buffer[..length])?,
            Err(e) if retry(&e) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn answer_datagrams(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut buffer = [0_u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            // A refused answer is a lost one.
            Ok((length, from)) => drop(socket.send_to(&buffer[..length], from)),
            Err(e) if retry(&e) => {}
            Err(e) => return Err(e).context("the echo server cannot receive"),
        }
    }
    Ok(())
}

fn retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock
            | ErrorKind::TimedOut
            | ErrorKind::Interrupted
            | ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
    )
}

fn datagram_socket(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target)?;
    Ok(socket)
}

fn stream_socket(target: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&target, Duration::from_secs(5))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Whether a datagram comes back and a connection can be made, now.
pub(super) fn answers(client: &Netns, target: SocketAddr) -> Result<bool> {
    client.run(|| {
        let ask = || -> io::Result<()> {
            let socket = datagram_socket(target)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            socket.send(&[1; MESSAGE])?;
            socket.recv(&mut [0; MESSAGE])?;
            TcpStream::connect_timeout(&target, Duration::from_secs(1)).map(drop)
        };
        ask().is_ok()
    })
}

/// Asks one request after the other for a while.
pub(super) fn one_by_one(
    client: &Netns,
    target: SocketAddr,
    transport: Transport,
    time: Duration,
) -> Result<Latencies> {
    client.run(|| match transport {
        Transport::Tcp => one_by_one_tcp(target, time),
        Transport::Udp => one_by_one_udp(target, time),
    })?
}

fn one_by_one_tcp(target: SocketAddr, time: Duration) -> Result<Latencies> {
    let mut stream = stream_socket(target).context("cannot connect to the echo server")?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    let mut buffer = [7_u8; MESSAGE];
    let mut taken = Vec::new();
    let end = Instant::now() + time;
    while Instant::now() < end && taken.len() < MOST_REQUESTS {
        let sent = Instant::now();
        stream
            .write_all(&buffer)
            .and_then(|()| stream.read_exact(&mut buffer))
            .context("a request over TCP was not answered in 5 s")?;
        taken.push(nanos(sent.elapsed()));
    }
    ensure!(!taken.is_empty(), "no request was answered");
    Ok(Latencies::new(taken, 0))
}

fn one_by_one_udp(target: SocketAddr, time: Duration) -> Result<Latencies> {
    let socket = datagram_socket(target)?;
    let mut taken = Vec::new();
    let mut lost = 0;
    let mut buffer = [0_u8; MESSAGE];
    let end = Instant::now() + time;
    let mut number = 0_u64;
    while Instant::now() < end && taken.len() < MOST_REQUESTS {
        number += 1;
        let mut request = [0_u8; MESSAGE];
        request[..8].copy_from_slice(&number.to_be_bytes());
        let sent = Instant::now();
        // A refused request is a lost one.
        let _ = socket.send(&request);
        loop {
            let left = PATIENCE.saturating_sub(sent.elapsed());
            if left.is_zero() {
                lost += 1;
                break;
            }
            socket.set_read_timeout(Some(left))?;
            match socket.recv(&mut buffer) {
                Ok(MESSAGE) if buffer == request => {
                    taken.push(nanos(sent.elapsed()));
                    break;
                }
                // A late answer to an earlier request.
                Ok(_) => {}
                Err(e) if retry(&e) => {}
                Err(e) => return Err(e).context("the echo client cannot receive"),
            }
        }
    }
    ensure!(!taken.is_empty(), "no request was answered");
    Ok(Latencies::new(taken, lost))
}

/// Sends a request every interval for a while, whatever becomes of earlier ones.
pub(super) fn in_step(
    client: &Netns,
    target: SocketAddr,
    transport: Transport,
    interval: Duration,
    time: Duration,
) -> Result<Latencies> {
    let count = (time.as_nanos() / interval.as_nanos().max(1)) as usize;
    let count = count.clamp(1, MOST_REQUESTS);
    client.run(|| {
        let begun = Instant::now();
        // When each was sent, nanoseconds after `begun`; 0 for not yet.
        let sent = (0..count).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let ended = AtomicBool::new(false);
        match transport {
            Transport::Tcp => {
                let stream = stream_socket(target).context("cannot connect to the echo server")?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(PATIENCE))?;
                let send = |message: &[u8]| (&stream).write_all(message);
                let mut partial = Vec::with_capacity(2 * MESSAGE);
                let receive = |buffer: &mut [u8; MESSAGE]| -> io::Result<bool> {
                    let mut part = [0_u8; MESSAGE];
                    let want = MESSAGE - partial.len();
                    let length = (&stream).read(&mut part[..want])?;
                    if length == 0 {
                        return Err(ErrorKind::UnexpectedEof.into());
                    }
                    partial.extend_from_slice(&part[..length]);
                    if partial.len() < MESSAGE {
                        return Ok(false);
                    }
                    buffer.copy_from_slice(&partial);
                    partial.clear();
                    Ok(true)
                };
                paced(begun, interval, &sent, &ended, send, receive)
            }
            Transport::Udp => {
                let socket = datagram_socket(target)?;
                socket.set_read_timeout(Some(TICK))?;
                let send = |message: &[u8]| socket.send(message).map(drop);
                let receive = |buffer: &mut [u8; MESSAGE]| Ok(socket.recv(buffer)? == MESSAGE);
                paced(begun, interval, &sent, &ended, send, receive)
            }
        }
    })?
}

fn paced(
    begun: Instant,
    interval: Duration,
    sent: &[AtomicU64],
    ended: &AtomicBool,
    send: impl Fn(&[u8]) -> io::Result<()> + Sync,
    mut receive: impl FnMut(&mut [u8; MESSAGE]) -> io::Result<bool>,
) -> Result<Latencies> {
    std::thread::scope(|scope| {
        let sender = std::thread::Builder::new().name("echo-ask".into());
        sender.spawn_scoped(scope, || {
            let first = Instant::now();
            for (number, place) in sent.iter().enumerate() {
                let due = first + interval * u32::try_from(number).unwrap_or(u32::MAX);
                std::thread::sleep(due.saturating_duration_since(Instant::now()));
                let mut message = [0_u8; MESSAGE];
                message[..8].copy_from_slice(&(number as u64).to_be_bytes());
                place.store(nanos(begun.elapsed()).max(1), Ordering::Release);
                // A refused request is a lost one.
                let _ = send(&message);
            }
            ended.store(true, Ordering::Release);
        })?;
        let mut taken = vec![None::<u64>; sent.len()];
        let mut answered = 0;
        let mut last = None::<Instant>;
        let mut buffer = [0_u8; MESSAGE];
        while answered < sent.len() {
            if ended.load(Ordering::Acquire)
                && last.get_or_insert_with(Instant::now).elapsed() > PATIENCE
            {
                break;
            }
            match receive(&mut buffer) {
                Ok(true) => {}
                Ok(false) => continue,
                Err(e) if retry(&e) => continue,
                // What has not come by now is lost.
                Err(_) => break,
            }
            let now = nanos(begun.elapsed());
            let number = buffer
                .first_chunk::<8>()
                .map_or(u64::MAX, |b| u64::from_be_bytes(*b));
            let place = usize::try_from(number).unwrap_or(usize::MAX);
            if let (Some(slot), Some(at)) = (taken.get_mut(place), sent.get(place))
                && slot.is_none()
            {
                *slot = Some(now.saturating_sub(at.load(Ordering::Acquire)));
                answered += 1;
            }
        }
        let lost = sent.len() - answered;
        Ok(Latencies::new(taken.into_iter().flatten().collect(), lost))
    })
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_requests_count_as_slow() {
        let latencies = Latencies::new(vec![3000, 1000, 2000], 1);
        assert_eq!(latencies.count(), 4);
        assert_eq!(latencies.micros(0.5), Some(2.0));
        assert_eq!(latencies.micros(1.0), Some(1e6));
    }

    /// Without a namespace: server and client on loopback.
    #[test]
    fn requests_are_answered_on_loopback() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let socket = UdpSocket::bind(target).unwrap();
        listener.set_nonblocking(true).unwrap();
        socket.set_read_timeout(Some(TICK)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let serving = [
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || accept(&listener, &stop)
            }),
            std::thread::spawn({
                let stop = Arc::clone(&stop);
                move || answer_datagrams(&socket, &stop)
            }),
        ];
        let time = Duration::from_millis(60);
        for latencies in [
            one_by_one_tcp(target, time).unwrap(),
            one_by_one_udp(target, time).unwrap(),
        ] {
            assert!(
                latencies.count() > 5 && latencies.lost == 0,
                "{latencies:?}"
            );
            assert!(latencies.micros(0.5).unwrap() > 0.0);
        }
        let begun = Instant::now();
        let stream = stream_socket(target).unwrap();
        stream.set_read_timeout(Some(TICK)).unwrap();
        let sent = (0..20).map(|_| AtomicU64::new(0)).collect::<Vec<_>>();
        let paced = paced(
            begun,
            Duration::from_millis(2),
            &sent,
            &AtomicBool::new(false),
            |message| (&stream).write_all(message),
            |buffer| (&stream).read_exact(buffer).map(|()| true),
        )
        .unwrap();
        assert_eq!((paced.count(), paced.lost), (20, 0));
        stop.store(true, Ordering::Relaxed);
        for thread in serving {
            thread.join().unwrap().unwrap();
        }
    }
}
