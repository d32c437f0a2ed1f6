//! What to do about a receive queue in which packets stand: tell their senders early, before some are lost.
//!
//! The queue behind AF_XDP is what a flow fills that its receiver cannot keep up with. Left alone it stands full, each
//! packet waits for milliseconds behind it, and what is lost is lost by the hundred. CoDel (RFC 8289) would wait a tenth of
//! a second before it does anything and pace itself by the round trip of a long path; this queue runs over within a few
//! milliseconds. So here the depth tells: where it stays above a bound for a moment, senders that know ECN are asked
//! to slow down, and of the others one packet is dropped, again after a pause that is the shorter the more waits.

use std::time::{Duration, Instant};

/// Packets waiting from which on it is crowded: a quarter of what there is room for, and some two milliseconds of bulk.
const CROWDED: u32 = 512;
/// How long it may be, for one burst.
const BURST: Duration = Duration::from_millis(1);
/// Between two drops where it is just crowded; half of that where twice as many wait.
const PAUSE: Duration = Duration::from_millis(5);

/// What is to be done with the packets just taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Relief {
    /// Congestion is to be marked on those that know ECN.
    pub(super) mark: bool,
    /// Of the others, one is to be dropped.
    pub(super) drop: bool,
}

impl Relief {
    pub(super) const NONE: Self = Self {
        mark: false,
        drop: false,
    };
}

/// What is remembered of a queue.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Crowd {
    since: Option<Instant>,
    quiet_until: Option<Instant>,
}

impl Crowd {
    /// After packets were taken and so many are left.
    pub(super) fn relief(&mut self, waiting: u32, clock: impl FnOnce() -> Instant) -> Relief {
        if waiting <= CROWDED {
            self.since = None;
            return Relief::NONE;
        }
        let now = clock();
        let since = *self.since.get_or_insert(now);
        let drop =
            now.duration_since(since) > BURST && self.quiet_until.is_none_or(|until| until <= now);
        if drop {
            self.quiet_until = Some(now + PAUSE * CROWDED / waiting);
        }
        Relief { mark: true, drop }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(millis: f64) -> Duration {
        Duration::from_secs_f64(millis / 1e3)
    }

    /// Times of drops, in milliseconds, where so many packets wait at each of these.
    fn drops(waiting: impl Fn(f64) -> u32, until_ms: f64) -> Vec<f64> {
        let start = Instant::now();
        let mut crowd = Crowd::default();
        let steps = (0..).map(|step| f64::from(step) * 0.1);
        steps
            .take_while(|at| *at < until_ms)
            .filter(|at| crowd.relief(waiting(*at), || start + ms(*at)).drop)
            .collect()
    }

    #[test]
    fn a_burst_is_left_alone() {
        // Again and again too much, never for longer than a burst may be.
        let waiting = |at: f64| {
            if at % 2.0 < 0.9 { CROWDED * 3 } else { CROWDED }
        };
        assert_eq!(drops(waiting, 100.0), Vec::<f64>::new());
    }

    #[test]
    fn what_stands_is_thinned_the_more_the_more_it_is() {
        let just = drops(|_| CROWDED + 1, 101.0);
        assert!((1.0..1.2).contains(&just[0]), "{just:?}");
        assert!((19..=21).contains(&just.len()), "{just:?}");
        let fourfold = drops(|_| CROWDED * 4, 101.0);
        assert!((75..=81).contains(&fourfold.len()), "{fourfold:?}");
    }

    #[test]
    fn marks_begin_at_once_and_end_at_once() {
        let mut crowd = Crowd::default();
        assert!(crowd.relief(CROWDED + 1, Instant::now).mark);
        assert_eq!(
            crowd.relief(CROWDED, || unreachable!("no need for the clock")),
            Relief::NONE
        );
    }

    /// A TCP stream against a receiver that takes 22 packets each tenth of a millisecond: what it lost by overflow, the
    /// share of the time the receiver had work, and how many packets stood on the average, both after half a second.
    fn stream(rtt: Duration, relieved: bool) -> (u64, f64, f64) {
        const STEP: Duration = Duration::from_micros(100);
        const STEPS: u32 = 30_000;
        const SERVED: usize = 22;
        const ROOM: usize = 2048;
        let start = Instant::now();
        let mut crowd = Crowd::default();
        let (mut window, mut slow_start, mut recovered) = (10.0, true, start);
        let (mut in_flight, mut queue, mut overflow) = (0, 0, 0);
        // When it is known, how many are acknowledged, how many lost.
        let mut news = std::collections::VecDeque::new();
        let (mut work, mut stood) = (0, 0);
        for step in 0..STEPS {
            let now = start + STEP * step;
            while let Some(&(at, acknowledged, lost)) = news.front()
                && at <= now
            {
                news.pop_front();
                in_flight -= acknowledged + lost;
                window += acknowledged as f64 * if slow_start { 1.0 } else { 1.0 / window };
                if lost > 0 && now >= recovered {
                    // One cut for all that a round trip loses (CUBIC's, RFC 9438).
                    window *= 0.7;
                    slow_start = false;
                    recovered = now + rtt + STEP * (queue / SERVED) as u32;
                }
            }
            let sent = (window as usize).saturating_sub(in_flight);
            in_flight += sent;
            let taken = sent.min(ROOM - queue);
            queue += taken;
            overflow += (sent - taken) as u64;
            let mut lost = sent - taken;
            let served = queue.min(SERVED);
            queue -= served;
            let drop = relieved && crowd.relief(queue as u32, || now).drop;
            lost += usize::from(drop);
            news.push_back((now + rtt, served - usize::from(drop), lost));
            if step >= STEPS / 6 {
                work += served;
                stood += queue;
            }
        }
        let steps = f64::from(STEPS) * 5.0 / 6.0;
        (
            overflow,
            work as f64 / (steps * SERVED as f64),
            stood as f64 / steps,
        )
    }

    #[test]
    fn a_stream_neither_overflows_nor_starves_it() {
        for rtt in [0.2, 0.5, 1.0, 2.0, 5.0] {
            let (overflow, busy, stood) = stream(ms(rtt), true);
            assert_eq!(overflow, 0, "round trip of {rtt} ms");
            assert!(busy > 0.98, "round trip of {rtt} ms: {busy}");
            assert!(stood < 700.0, "round trip of {rtt} ms: {stood} stood");
            let (overflow, _, stood) = stream(ms(rtt), false);
            assert!(
                overflow > 0 && stood > 1000.0,
                "{overflow}, {stood}: nothing to relieve"
            );
        }
    }
}
