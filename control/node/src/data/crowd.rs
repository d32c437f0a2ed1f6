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
}
