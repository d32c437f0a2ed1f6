//! A steady stream of small UDP packets, one way: what was lost, and how long it was silent.
//!
//! Sender and receiver are threads of this process, so both ends are on one clock.
//!
//! What is measured begins once the path works: with the first packet that is sent after one has arrived. What came
//! before may be lost, or wait for an address to be resolved: the kernel holds it, and refuses more once the socket's
//! buffer is full of it.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::lab::netns::Netns;

/// Most packets of a stream; it stops by itself there.
const MOST: u64 = 5_000_000;
/// How long after the last packet sent the receiver waits for stragglers.
const SETTLE: Duration = Duration::from_secs(2);

/// A stream under way; ends when dropped.
#[derive(Debug)]
pub struct Stream {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    received: Arc<AtomicU64>,
    start: Arc<AtomicU64>,
    sender: Option<JoinHandle<Result<Refusals>>>,
    receiver: Option<JoinHandle<Result<Arrivals>>>,
}

/// What came of a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Packets that left.
    pub sent: u64,
    /// Of those, how many arrived, each counted once.
    pub received: u64,
    /// Arrivals of a packet that had arrived before.
    pub duplicates: u64,
    /// Packets that arrived after a later one.
    pub reordered: u64,
    /// The longest time between two arrivals in a row.
    pub longest_gap: Duration,
    /// Sequence number of the packet that ended it.
    pub gap_ended_by: u64,
    /// Sequence numbers of the first packets that are missing.
    pub missing: Vec<u64>,
    /// Packets the system refused to send (no route, queue full), included in `sent`.
    pub refused: u64,
    /// What it said of the last of them.
    pub refusal: Option<String>,
}

impl Report {
    /// Packets that did not arrive.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.sent - self.received
    }
}

/// Number of the first packet measured while none has arrived yet.
const NOT_YET: u64 = u64::MAX;

#[derive(Debug, Default)]
struct Arrivals {
    seen: Vec<bool>,
    report: Report,
}

#[derive(Debug, Default)]
struct Refusals {
    count: u64,
    last: Option<String>,
}

impl Stream {
    /// Starts to send `payload`-byte packets (at least 8) every `interval` from a thread in `from` to `address`, where
    /// a thread in `to` listens; returns when the first has arrived.
    ///
    /// # Errors
    /// When sockets cannot be opened, or nothing arrives within 15 seconds.
    pub fn start(
        from: &Netns,
        to: &Netns,
        address: SocketAddr,
        interval: Duration,
        payload: usize,
    ) -> Result<Self> {
        let listener = to
            .run(|| UdpSocket::bind(address))?
            .with_context(|| format!("cannot listen on {address}"))?;
        listener.set_read_timeout(Some(Duration::from_millis(20)))?;
        let address = listener.local_addr()?;
        let any: SocketAddr = if address.is_ipv4() {
            ([0; 4], 0).into()
        } else {
            ([0_u16; 8], 0).into()
        };
        let socket = from.run(|| UdpSocket::bind(any))??;
        socket.set_nonblocking(true)?;

        let stop = Arc::new(AtomicBool::new(false));
        let [sent, received] = std::array::from_fn(|_| Arc::<AtomicU64>::default());
        let start = Arc::new(AtomicU64::new(NOT_YET));
        let sender = {
            let (stop, sent, start) = (Arc::clone(&stop), Arc::clone(&sent), Arc::clone(&start));
            std::thread::Builder::new()
                .name("stream-out".into())
                .spawn(move || {
                    send(
                        &socket,
                        address,
                        interval,
                        payload.max(8),
                        &stop,
                        &sent,
                        &start,
                    )
                })?
        };
        let receiver = {
            let (stop, sent, received, start) = (
                Arc::clone(&stop),
                Arc::clone(&sent),
                Arc::clone(&received),
                Arc::clone(&start),
            );
            std::thread::Builder::new()
                .name("stream-in".into())
                .spawn(move || receive(&listener, &stop, &sent, &received, &start))?
        };
        let stream = Self {
            stop,
            sent,
            received,
            start,
            sender: Some(sender),
            receiver: Some(receiver),
        };
        crate::lab::wait_for(
            "the first packet of a stream",
            Duration::from_secs(15),
            || Ok((stream.received() > 0).then_some(())),
        )?;
        Ok(stream)
    }

    /// Packets that left so far.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Packets that arrived so far, of those that are measured.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Waits until `count` more packets have arrived.
    ///
    /// # Errors
    /// When they do not within `limit`.
    pub fn wait_received(&self, count: u64, limit: Duration) -> Result<()> {
        let goal = self.received() + count;
        crate::lab::wait_for(&format!("{count} more packets of a stream"), limit, || {
            Ok((self.received() >= goal).then_some(()))
        })
    }

    /// Stops sending, waits for what is under way, and tells what came of it. Packets sent before the first arrival
    /// (while the path was set up) count neither as sent nor as lost nor as refused.
    ///
    /// # Errors
    /// When a thread failed.
    pub fn finish(mut self) -> Result<Report> {
        self.stop.store(true, Ordering::Relaxed);
        let refusals = join(self.sender.take())?.unwrap_or_default();
        let arrivals = join(self.receiver.take())?.context("the stream was finished before")?;
        let mut report = arrivals.report;
        let first = self.start.load(Ordering::Relaxed).min(self.sent());
        report.sent = self.sent() - first;
        (report.refused, report.refusal) = (refusals.count, refusals.last);
        let missing =
            (first..self.sent()).filter(|n| !arrivals.seen.get(*n as usize).is_some_and(|s| *s));
        report.missing = missing.take(10).collect();
        Ok(report)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn join<T>(thread: Option<JoinHandle<Result<T>>>) -> Result<Option<T>> {
    match thread.map(JoinHandle::join) {
        Some(Ok(result)) => result.map(Some),
        Some(Err(_)) => bail!("a thread of the stream panicked"),
        None => Ok(None),
    }
}

fn send(
    socket: &UdpSocket,
    to: SocketAddr,
    interval: Duration,
    payload: usize,
    stop: &AtomicBool,
    sent: &AtomicU64,
    start: &AtomicU64,
) -> Result<Refusals> {
    let mut refusals = Refusals::default();
    let mut packet = vec![0x5a_u8; payload];
    let begun = Instant::now();
    for number in 0..MOST {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        packet[..8].copy_from_slice(&number.to_be_bytes());
        // Counted before it leaves, so that `received` is never ahead.
        sent.store(number + 1, Ordering::Relaxed);
        // A path may be down for a while; that is what the stream is there to measure.
        if let Err(error) = socket.send_to(&packet, to)
            && start.load(Ordering::Relaxed) <= number
        {
            refusals.count += 1;
            refusals.last = Some(error.to_string());
        }
        let due = begun + interval * u32::try_from(number + 1).unwrap_or(u32::MAX);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    Ok(refusals)
}

fn receive(
    socket: &UdpSocket,
    stop: &AtomicBool,
    sent: &AtomicU64,
    received: &AtomicU64,
    start: &AtomicU64,
) -> Result<Arrivals> {
    let mut arrivals = Arrivals::default();
    let mut buffer = [0_u8; 65536];
    let (mut last, mut highest) = (None::<Instant>, 0);
    let mut stopped = None::<Instant>;
    let mut first = None::<u64>;
    loop {
        if stop.load(Ordering::Relaxed) {
            let since = *stopped.get_or_insert_with(Instant::now);
            let all =
                first.is_some_and(|f| arrivals.report.received >= sent.load(Ordering::Relaxed) - f);
            if all || since.elapsed() > SETTLE {
                return Ok(arrivals);
            }
        }
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                continue;
            }
            Err(e) => return Err(e).context("the stream's receiver failed"),
        };
        let Some(number) = buffer[..length]
            .first_chunk::<8>()
            .map(|b| u64::from_be_bytes(*b))
        else {
            continue;
        };
        if number >= MOST {
            continue;
        }
        let now = Instant::now();
        let begin = *first.get_or_insert_with(|| {
            let begin = sent.load(Ordering::Relaxed);
            start.store(begin, Ordering::Relaxed);
            begin
        });
        if number < begin {
            continue;
        }
        let place = number as usize;
        if arrivals.seen.len() <= place {
            arrivals.seen.resize(place + 1, false);
        }
        if std::mem::replace(&mut arrivals.seen[place], true) {
            arrivals.report.duplicates += 1;
            continue;
        }
        arrivals.report.received += 1;
        received.store(arrivals.report.received, Ordering::Relaxed);
        arrivals.report.reordered += u64::from(number < highest);
        highest = highest.max(number);
        if let Some(gap) = last.map(|l| now - l)
            && gap > arrivals.report.longest_gap
        {
            arrivals.report.longest_gap = gap;
            arrivals.report.gap_ended_by = number;
        }
        last = Some(now);
    }
}
