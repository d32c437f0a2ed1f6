//! `weft ping`: echoes and their statistics, in the manner of ping(8).

use std::time::{Duration, Instant};

use weft_client::{Error, api::Pong};

use crate::{
    args::PingArgs,
    context::Context,
    failure::Failure,
    render::{BAD, BOLD, clean},
};

/// How many where nobody can press Ctrl-C.
const COUNT_IN_SCRIPTS: u32 = 4;

pub(super) fn run(context: &mut Context, args: &PingArgs) -> Result<(), Failure> {
    let unlimited = if context.is_terminal() {
        u32::MAX
    } else {
        COUNT_IN_SCRIPTS
    };
    let count = args.count.unwrap_or(unlimited);
    let interval = Duration::from_secs_f64(args.interval);
    let interval_ms = u32::try_from(interval.as_millis())
        .unwrap_or(u32::MAX)
        .max(1);
    context.catch_interrupts()?;
    let mut client = context.connect()?;
    if !context.json && !args.quiet {
        context.line(&format!(
            "PING {}: {} bytes of payload",
            clean(&args.node),
            args.size
        ))?;
    }
    let begin = Instant::now();
    let mut pongs = client.ping(&args.node, count, interval_ms, args.size)?;
    // The first echo may have to wait for a path and a session; each later one comes an interval after it.
    pongs.set_timeout(context.timeout() + interval);
    let mut statistics = Statistics::default();
    let failure = loop {
        match pongs.next() {
            None => break None,
            Some(Ok(pong)) => {
                statistics.add(&pong);
                if context.json {
                    context.item(&pong)?;
                } else if !args.quiet {
                    let line = show(context, args, &pong);
                    context.line(&line)?;
                }
            }
            Some(Err(Error::Cancelled)) => break None,
            Some(Err(error)) => break Some(error),
        }
    };
    let unanswered = statistics.received == 0;
    if !context.json && statistics.sent > 0 {
        let title = format!("--- {} ping statistics ---", clean(&args.node));
        context.line("")?;
        context.line(&context.paint(BOLD, &title))?;
        context.text(&statistics.to_text(begin.elapsed()))?;
    }
    match failure {
        Some(error) => Err(error.into()),
        None if unanswered => Err(Failure::Shown),
        None => Ok(()),
    }
}

fn show(context: &Context, args: &PingArgs, pong: &Pong) -> String {
    match pong.rtt_ms {
        Some(rtt) => {
            let (bytes, seq, hops) = (args.size, pong.sequence, pong.hops);
            format!(
                "{bytes} bytes from {}: seq={seq} hops={hops} time={} ms",
                clean(&args.node),
                figure(rtt)
            )
        }
        None => {
            let reason = pong.error.as_deref().unwrap_or("no answer in time");
            context.paint(BAD, &format!("seq={}: {}", pong.sequence, clean(reason)))
        }
    }
}

/// Three digits, without a unit.
fn figure(ms: f64) -> String {
    match ms {
        ms if ms < 1.0 => format!("{ms:.3}"),
        ms if ms < 10.0 => format!("{ms:.2}"),
        ms if ms < 100.0 => format!("{ms:.1}"),
        ms => format!("{ms:.0}"),
    }
}

#[derive(Default)]
struct Statistics {
    sent: u32,
    received: u32,
    min: f64,
    max: f64,
    sum: f64,
    squares: f64,
}

impl Statistics {
    fn add(&mut self, pong: &Pong) {
        self.sent += 1;
        let Some(rtt) = pong.rtt_ms else { return };
        self.min = if self.received == 0 {
            rtt
        } else {
            self.min.min(rtt)
        };
        self.max = self.max.max(rtt);
        self.sum += rtt;
        self.squares += rtt * rtt;
        self.received += 1;
    }

    fn to_text(&self, elapsed: Duration) -> String {
        let lost = f64::from(self.sent - self.received) * 100.0 / f64::from(self.sent);
        let mut text = format!(
            "{} packets transmitted, {} received, {} packet loss, time {} ms\n",
            self.sent,
            self.received,
            if lost.fract() == 0.0 {
                format!("{lost:.0}%")
            } else {
                format!("{lost:.1}%")
            },
            elapsed.as_millis()
        );
        if self.received > 0 {
            let mean = self.sum / f64::from(self.received);
            let deviation = (self.squares / f64::from(self.received) - mean * mean)
                .max(0.0)
                .sqrt();
            text += &format!(
                "rtt min/avg/max/mdev = {:.3}/{mean:.3}/{:.3}/{deviation:.3} ms\n",
                self.min, self.max
            );
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_those_of_ping() {
        let mut statistics = Statistics::default();
        for rtt_ms in [Some(1.0), None, Some(3.0)] {
            statistics.add(&Pong {
                sequence: 1,
                rtt_ms,
                hops: 1,
                error: None,
            });
        }
        assert_eq!(
            statistics.to_text(Duration::from_millis(2003)),
            "3 packets transmitted, 2 received, 33.3% packet loss, time 2003 ms\n\
             rtt min/avg/max/mdev = 1.000/2.000/3.000/1.000 ms\n"
        );
    }

    #[test]
    fn nothing_received_has_no_round_trips() {
        let mut statistics = Statistics::default();
        statistics.add(&Pong {
            sequence: 1,
            rtt_ms: None,
            hops: 0,
            error: None,
        });
        assert_eq!(
            statistics.to_text(Duration::ZERO),
            "1 packets transmitted, 0 received, 100% packet loss, time 0 ms\n"
        );
    }
}
