//! The shell around sessions: sockets, time, and how many questions are worked on at once.
//!
//! A client's questions are answered one after another; while it does not take an answer nothing
//! more is read from it, and what it would be told waits in the ring of changes, which costs
//! nothing. One that does not take an answer in time is hung up on.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::sleep;
use weft_listen::{Bounds, Client, Listener, Means, SMALL, Share, count, counters};
use weft_view::View;

use crate::limits::{Budget, Limits};
use crate::session::{Info, Session};
use crate::wire::Lines;

/// Bytes read at a time.
const READ: usize = 16 << 10;
/// Answers gathered before they are written: with the beginning of a list less than [`SMALL`].
const GATHER: usize = 32 << 10;
/// Longest line that may be answered at once.
const QUICK_LINE: usize = 1 << 10;

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
        dropped_broken_total: "Clients hung up on because an answer under way could not be read any further.",
        dropped_version_total: "Clients hung up on because there was no version in common.",
    }
}

/// How the server is set up.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Bounds on each client.
    pub limits: Limits,
    /// Those that every server has.
    pub bounds: Bounds,
    /// What it says of itself.
    pub info: Info,
}

/// The server.
#[derive(Debug)]
pub struct Server {
    view: View,
    limits: Limits,
    info: Arc<Info>,
    bounds: Bounds,
    means: Means,
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
            means: Means::new(&settings.bounds),
            bounds: settings.bounds,
            counters: Arc::default(),
        })
    }

    /// What it counted.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Serves the clients of a listener until `stop` becomes true.
    pub async fn serve(self: Arc<Self>, listener: Listener, stop: watch::Receiver<bool>) {
        let patience = self.bounds.write;
        let serve = move |stream| {
            let server = self.clone();
            async move {
                let _ = server.client(stream).await;
            }
        };
        listener.serve(patience, stop, serve).await;
    }

    async fn client(&self, mut stream: Client) -> Result<(), End> {
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
            let idle = self.bounds.idle.saturating_sub(asked.elapsed());
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
        let (limits, counters) = (self.limits, self.counters.clone());
        let work = move || {
            let mut answers = Answers::default();
            loop {
                let reply = if session.is_answering() {
                    if !answers.out.is_empty() {
                        // A piece is written by itself.
                        answers.more = true;
                        break;
                    }
                    session.go_on()
                } else {
                    match lines.next(limits.line) {
                        Ok(None) => break,
                        Ok(Some(line)) => {
                            answers.asked = true;
                            if line.iter().all(u8::is_ascii_whitespace) {
                                continue;
                            }
                            session.handle(line)
                        }
                        Err(e) => {
                            count!(counters.dropped_long_line_total);
                            answers.put(session.too_long(e));
                            answers.close = true;
                            break;
                        }
                    }
                };
                answers.put(reply.out);
                answers.cost += reply.cost;
                answers.close = reply.close;
                answers.more = answers.out.len() > GATHER;
                if answers.close || answers.more {
                    break;
                }
            }
            (session, lines, answers)
        };
        self.means.work(work).await.ok_or(End::Gone)
    }

    /// Tells what changed, as much as there is.
    async fn tell(
        &self,
        mut session: Box<Session>,
        stream: &mut Client,
    ) -> Result<Box<Session>, End> {
        loop {
            let work = move || {
                let told = session.tell();
                (session, told)
            };
            let (back, (out, more)) = self.means.work(work).await.ok_or(End::Gone)?;
            session = back;
            self.write(stream, &out).await?;
            if !more {
                return Ok(session);
            }
        }
    }

    /// Memory for something long, or the end of the connection.
    fn share(&self, bytes: usize) -> Result<Share, End> {
        self.means.share(bytes).ok_or_else(|| {
            count!(self.counters.dropped_memory_total);
            End::Dropped
        })
    }

    async fn write(&self, stream: &mut Client, out: &[u8]) -> Result<(), End> {
        if out.is_empty() {
            return Ok(());
        }
        let _share = match out.len() {
            0..=SMALL => None,
            long => Some(self.share(long)?),
        };
        let written = match stream.write_all(out).await {
            Ok(()) => stream.flush().await,
            failed => failed,
        };
        written.map_err(|e| match e.kind() {
            io::ErrorKind::TimedOut => {
                count!(self.counters.dropped_slow_total);
                End::Dropped
            }
            _ => End::Gone,
        })
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

impl Answers {
    fn put(&mut self, mut text: Vec<u8>) {
        match self.out.is_empty() {
            true => self.out = text,
            false => self.out.append(&mut text),
        }
    }
}
