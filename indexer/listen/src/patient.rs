//! A connection whose peer has to take what is written within some time.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Bytes a second that are never too slow.
pub const SLOWEST: usize = 16 << 10;

/// Fails a write with [`io::ErrorKind::TimedOut`] when the peer has kept it waiting for too long.
///
/// It may keep us waiting for the limit; what it takes is made up for at [`SLOWEST`], and so is time
/// in which nobody waited. So one that takes nothing fails after the limit, one that takes a byte
/// now and then not much later, and one that takes long answers at a fair speed never.
#[derive(Debug)]
pub struct Patient<S> {
    stream: S,
    limit: Duration,
    left: Duration,
    /// When waiting began or ended.
    since: Instant,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    /// With a limit.
    pub fn new(stream: S, limit: Duration) -> Self {
        Self {
            stream,
            limit,
            left: limit,
            since: Instant::now(),
            waiting: None,
        }
    }

    /// `taken` is what the peer has taken by that, bytes.
    fn judge<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
        taken: impl FnOnce(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match poll {
            Poll::Ready(out) => {
                if self.waiting.take().is_some() {
                    let now = Instant::now();
                    self.left = self.left.saturating_sub(now - self.since);
                    self.since = now;
                }
                if self.left < self.limit
                    && let Ok(out) = &out
                {
                    let made_up = taken(out) as f64 / SLOWEST as f64;
                    self.left = self.limit.min(self.left + Duration::from_secs_f64(made_up));
                }
                Poll::Ready(out)
            }
            Poll::Pending => {
                let waiting = match &mut self.waiting {
                    Some(waiting) => waiting,
                    none => {
                        let now = Instant::now();
                        self.left = self.limit.min(self.left + (now - self.since));
                        self.since = now;
                        none.insert(Box::pin(sleep(self.left)))
                    }
                };
                match waiting.as_mut().poll(cx) {
                    Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
                    Poll::Pending => Poll::Pending,
                }
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.judge(cx, poll, |n| *n)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(cx);
        self.judge(cx, poll, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(cx);
        self.judge(cx, poll, |()| 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    /// Writes 64 KB to a peer that takes `piece` bytes every `pause`.
    async fn write(piece: usize, pause: Duration) -> io::Result<()> {
        let (near, mut far) = duplex(1024);
        tokio::spawn(async move {
            let mut bytes = vec![0; piece];
            while far.read_exact(&mut bytes).await.is_ok() {
                sleep(pause).await;
            }
        });
        let mut patient = Patient::new(near, Duration::from_secs(2));
        patient.write_all(&[0; 64 << 10]).await
    }

    #[tokio::test(start_paused = true)]
    async fn who_takes_little_fails_and_who_is_fair_does_not() {
        let begun = Instant::now();
        write(1024, Duration::from_millis(50)).await.unwrap();
        assert!(
            begun.elapsed() > Duration::from_secs(3),
            "longer than the limit"
        );
        for (piece, pause) in [(1, 1900), (512, 1000), (1024, 600_000)] {
            let begun = Instant::now();
            let failed = write(piece, Duration::from_millis(pause))
                .await
                .unwrap_err();
            assert_eq!(failed.kind(), io::ErrorKind::TimedOut);
            assert!(
                begun.elapsed() < Duration::from_secs(6),
                "{piece}: {:?}",
                begun.elapsed()
            );
        }
    }
}
