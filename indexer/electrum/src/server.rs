//! The shell around sessions: sockets, time, and how many questions are worked on at once.
//!
//! A client's questions are answered one after another; while it does not take an answer nothing
//! more is read from it, and what it would be told waits in the ring of changes, which costs
//! nothing. One that does not take an answer in time is hung up on.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};
use weft_listen::{Listener, Stream, count, counters};
use weft_view::View;

use crate::limits::{Budget, Limits};
use crate::session::{Info, Session};
use crate::wire::Lines;

/// Bytes read at a time.
const READ: usize = 16 << 10;
/// Answers gathered before they are written.
const GATHER: usize = 64 << 10;
/// What a client may hold in unfinished lines, and in an answer it has not taken, without a share
/// of the memory for all.
const SMALL: usize = 64 << 10;
/// Longest line that may be answered at once.
const QUICK_LINE: usize = 1 << 10;
/// Unit of that memory.
const UNIT: usize = 1 << 10;

counters! {
    /// What the server counted.
    pub struct Counters("electrum") {
        requests_total: "Requests.",
        errors_total: "Requests answered with an error.",
        notifications_total: "Notifications sent.",
        throttled_total: "Times a client had to wait because of what it had caused.",
        lagged_total: "Times a client was too slow for the ring of changes and was told the present state instead.",
        subscriptions_refused_total: "Subscriptions refused because a client had as many as it may.",
        subscriptions_dropped_total: "Subscriptions dropped because the script's history became too long.",
        answers_too_long_total: "Answers not given because they were too long.",
        dropped_long_line_total: "Clients hung up on because of a line that was too long.",
        dropped_idle_total: "Clients hung up on because they asked nothing for too long.",
        dropped_slow_total: "Clients hung up on because they did not take an answer in time.",
        dropped_memory_total: "Clients hung up on because long lines and answers of all clients took as much memory as they may.",
        dropped_version_total: "Clients hung up on because there was no version in common.",
    }
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds on each client.
    pub limits: Limits,
    /// Questions worked on at once.
    pub workers: usize,
    /// Bytes that long lines and long answers of all clients may take together.
    pub memory: usize,
    /// What it says of itself.
    pub info: Info,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    view: View,
    limits: Limits,
    info: Arc<Info>,
    workers: Arc<Semaphore>,
    memory: Arc<Semaphore>,
    counters: Arc<Counters>,
}

/// Why a client's connection ended.
enum End {
    Gone,
    Dropped,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

impl Server {
    /// A server of `view`.
    pub fn new(view: View, settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            view,
            limits: settings.limits,
            info: Arc::new(settings.info),
            workers: Arc::new(Semaphore::new(settings.workers.max(1))),
            memory: Arc::new(Semaphore::new(settings.memory / UNIT)),
            counters: Arc::default(),
        })
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the clients of a listener until `stop` becomes true.
    pub async fn serve(self: Arc<Self>, listener: Listener, mut stop: watch::Receiver<bool>) {
        let mut clients = JoinSet::new();
        let for_each = stop.clone();
        loop {
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => break,
                accepted = listener.accept() => {
                    let (server, mut stop) = (self.clone(), for_each.clone());
                    clients.spawn(async move {
                        let serve = async {
                            if let Ok((stream, _pass)) = accepted.open().await {
                                let _ = server.client(stream).await;
                            }
                        };
                        tokio::select! {
                            biased;
                            _ = stop.wait_for(|stop| *stop) => {}
                            () = serve => {}
                        }
                    });
                }
                Some(_) = clients.join_next() => {}
            }
        }
        while clients.join_next().await.is_some() {}
    }

    async fn client(&self, mut stream: Stream) -> Result<(), End> {
        let mut session = Box::new(Session::new(
            self.view.clone(),
            self.info.clone(),
            self.limits,
            self.counters.clone(),
        ));
        let mut changes = self.view.feed().watch();
        let mut budget = Budget::new(&self.limits, Instant::now());
        let mut lines = Lines::default();
        let mut chunk = vec![0; READ];
        let mut asked = Instant::now();
        // A share of the memory for all, while a long line is coming.
        let mut share = None;
        loop {
            let idle = self.limits.idle.saturating_sub(asked.elapsed());
            tokio::select! {
                read = stream.read(&mut chunk) => {
                    let n = read?;
                    if n == 0 {
                        return Err(End::Gone);
                    }
                    lines.push(&chunk[..n]);
                    // Two changes of threads would take longer than the answers most wallets ask for.
                    let quick = lines
                        .only(QUICK_LINE)
                        .and_then(|line| session.handle_quickly(line));
                    if let Some(reply) = quick {
                        lines.clear();
                        asked = Instant::now();
                        self.write(&mut stream, &reply.out).await?;
                        let wait = budget.spend(reply.cost, &self.limits, Instant::now());
                        if !wait.is_zero() {
                            count!(self.counters.throttled_total);
                            sleep(wait).await;
                        }
                        continue;
                    }
                    loop {
                        let (back, left, answers) = self.answer(session, lines).await?;
                        (session, lines) = (back, left);
                        if answers.asked {
                            asked = Instant::now();
                        }
                        self.write(&mut stream, &answers.out).await?;
                        if answers.close {
                            return Err(End::Dropped);
                        }
                        let wait = budget.spend(answers.cost, &self.limits, Instant::now());
                        if !wait.is_zero() {
                            count!(self.counters.throttled_total);
                            sleep(wait).await;
                        }
                        if !answers.more {
                            break;
                        }
                    }
                    if lines.held() <= SMALL {
                        share = None;
                    } else if share.is_none() {
                        share = Some(self.share(self.limits.line)?);
                    }
                }
                changed = changes.changed() => {
                    if changed.is_err() {
                        return Err(End::Gone);
                    }
                    changes.borrow_and_update();
                    session = self.tell(session, &mut stream).await?;
                }
                () = sleep(idle) => {
                    count!(self.counters.dropped_idle_total);
                    return Err(End::Dropped);
                }
            }
        }
    }

    /// Answers the whole lines there are, as many as are written at once.
    async fn answer(
        &self,
        mut session: Box<Session>,
        mut lines: Lines,
    ) -> Result<(Box<Session>, Lines, Answers), End> {
        let permit = self.workers.clone().acquire_owned().await;
        let (limits, counters) = (self.limits, self.counters.clone());
        let work = spawn_blocking(move || {
            let _permit = permit;
            let mut answers = Answers::default();
            loop {
                match lines.next(limits.line) {
                    Ok(None) => break,
                    Ok(Some(line)) => {
                        answers.asked = true;
                        if line.iter().all(u8::is_ascii_whitespace) {
                            continue;
                        }
                        let mut reply = session.handle(line);
                        answers.out.append(&mut reply.out);
                        answers.cost += reply.cost;
                        if reply.close {
                            count!(counters.dropped_version_total);
                            answers.close = true;
                            break;
                        }
                        if answers.out.len() > GATHER {
                            answers.more = true;
                            break;
                        }
                    }
                    Err(e) => {
                        count!(counters.dropped_long_line_total);
                        answers.out.extend_from_slice(&session.too_long(e));
                        answers.close = true;
                        break;
                    }
                }
            }
            (session, lines, answers)
        });
        work.await.map_err(|_| End::Gone)
    }

    /// Tells what changed, as much as there is.
    async fn tell(
        &self,
        mut session: Box<Session>,
        stream: &mut Stream,
    ) -> Result<Box<Session>, End> {
        loop {
            let permit = self.workers.clone().acquire_owned().await;
            let work = spawn_blocking(move || {
                let _permit = permit;
                let told = session.tell();
                (session, told)
            });
            let (back, (out, more)) = work.await.map_err(|_| End::Gone)?;
            session = back;
            self.write(stream, &out).await?;
            if !more {
                return Ok(session);
            }
        }
    }

    /// Memory for something long, or the end of the connection.
    fn share(&self, bytes: usize) -> Result<OwnedSemaphorePermit, End> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        self.memory
            .clone()
            .try_acquire_many_owned(units)
            .map_err(|_| {
                count!(self.counters.dropped_memory_total);
                End::Dropped
            })
    }

    async fn write(&self, stream: &mut Stream, out: &[u8]) -> Result<(), End> {
        if out.is_empty() {
            return Ok(());
        }
        let _share = match out.len() {
            0..=SMALL => None,
            long => Some(self.share(long)?),
        };
        let write = async {
            stream.write_all(out).await?;
            stream.flush().await
        };
        match timeout(self.limits.write.max(Duration::from_millis(1)), write).await {
            Ok(written) => Ok(written?),
            Err(_) => {
                count!(self.counters.dropped_slow_total);
                Err(End::Dropped)
            }
        }
    }
}

#[derive(Debug, Default)]
struct Answers {
    out: Vec<u8>,
    cost: f64,
    asked: bool,
    close: bool,
    more: bool,
}
