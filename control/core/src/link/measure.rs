//! What a receiver measures of a directed link: loss from the windows' counters, delay change and jitter from hellos,
//! round trip from probes. And the hysteresis on what of it is advertised.

use crate::{io::Micros, topology::lsa::Measured};

/// Packets a loss figure needs.
const LOSS_SAMPLE: u64 = 50;
/// Hellos over which the smallest delay is remembered.
const BASELINE_HELLOS: u32 = 300;
/// What is advertised changes when the cost differs by more than a quarter, or after so long if it differs at all.
const SETTLE: Micros = Micros::from_secs(60);

/// Measurements of what is heard on one link.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    counters: Option<(u64, u64)>,
    expected: u64,
    received: u64,
    loss_ppm: Option<u32>,
    /// Arrival minus sending time, on two clocks: only its changes mean something.
    transit: Option<i64>,
    smallest_transit: Option<i64>,
    hellos: u32,
    jitter_us: i64,
    excess_us: i64,
    rtt: Option<Micros>,
    smallest_rtt: Option<Micros>,
}

impl Meter {
    /// The window counters of the slot in use: sum over lanes of the highest sequence number, packets received.
    /// Returns how many arrived since last time.
    pub(crate) fn counters(&mut self, highest: u64, received: u64) -> u64 {
        let Some((before_highest, before_received)) = self.counters.replace((highest, received))
        else {
            return received;
        };
        let (expected, arrived) = (
            highest.saturating_sub(before_highest),
            received.saturating_sub(before_received),
        );
        self.expected += expected;
        self.received += arrived;
        if self.expected >= LOSS_SAMPLE {
            let lost = self.expected.saturating_sub(self.received);
            let sample = (lost.saturating_mul(1_000_000) / self.expected) as i64;
            let before = self.loss_ppm.map_or(sample, i64::from);
            self.loss_ppm = Some((before + (sample - before) / 4).clamp(0, 1_000_000) as u32);
            (self.expected, self.received) = (0, 0);
        }
        arrived
    }

    /// New slot: its counters start again.
    pub(crate) fn new_slot(&mut self) {
        self.counters = None;
    }

    /// A hello sent and received at these times.
    pub(crate) fn hello(&mut self, sent_at: u64, received_at: Micros) {
        let transit = (received_at.0 as i64).wrapping_sub(sent_at as i64);
        if let Some(before) = self.transit.replace(transit) {
            let change = transit
                .saturating_sub(before)
                .saturating_abs()
                .min(60_000_000);
            self.jitter_us += (change - self.jitter_us) / 16;
        }
        self.hellos += 1;
        if self.hellos > BASELINE_HELLOS {
            // The clocks drift apart: the baseline is renewed.
            (self.hellos, self.smallest_transit) = (0, None);
        }
        let smallest = self.smallest_transit.map_or(transit, |s| s.min(transit));
        self.smallest_transit = Some(smallest);
        let excess = transit.saturating_sub(smallest).min(60_000_000);
        self.excess_us += (excess - self.excess_us) / 8;
    }

    /// A probe's round trip.
    pub(crate) fn round_trip(&mut self, rtt: Micros) {
        self.smallest_rtt = Some(self.smallest_rtt.map_or(rtt, |s| s.min(rtt)));
        self.rtt = Some(self.rtt.map_or(rtt, |s| Micros((s.0 * 7 + rtt.0) / 8)));
    }

    pub(crate) fn rtt(&self) -> Option<Micros> {
        self.rtt
    }

    pub(crate) fn forget_rtt(&mut self) {
        (self.rtt, self.smallest_rtt) = (None, None);
    }

    /// Half the smallest round trip and what queues added on this direction.
    pub(crate) fn measured(&self, capacity_kbps: u32) -> Measured {
        let excess = u32::try_from(self.excess_us.max(0)).unwrap_or(0);
        let delay_us = match self.smallest_rtt {
            Some(rtt) => u32::try_from(rtt.0 / 2)
                .unwrap_or(u32::MAX - 1)
                .saturating_add(excess)
                .min(u32::MAX - 1),
            None => crate::topology::lsa::UNKNOWN_DELAY,
        };
        Measured {
            cost: 0,
            loss_ppm: self.loss_ppm.unwrap_or(0),
            delay_us,
            jitter_us: u32::try_from(self.jitter_us.max(0)).unwrap_or(0),
            capacity_kbps,
        }
        .with_metric()
    }
}

/// What of the measurements is told to the network.
#[derive(Debug, Default)]
pub(crate) struct Advertised {
    told: Option<(Measured, Micros)>,
}

impl Advertised {
    pub(crate) fn get(&self) -> Option<Measured> {
        self.told.map(|(measured, _)| measured)
    }

    /// Whether the new figures are far enough from what was told, or that is old; then they are told.
    pub(crate) fn update(&mut self, now: Micros, fresh: Measured) -> bool {
        let tell = self.told.is_none_or(|(told, at)| {
            let (old, new) = (i64::from(told.cost), i64::from(fresh.cost));
            let difference = (new - old).abs();
            // A hop costs about 20 on its own: differences below that never matter for the choice between paths.
            (difference * 4 > old && difference >= 20)
                || (difference >= 10 && now.since(at) >= SETTLE)
        });
        if tell {
            self.told = Some((fresh, now));
        }
        tell
    }

    pub(crate) fn clear(&mut self) {
        self.told = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_is_what_is_missing() {
        let mut meter = Meter::default();
        assert_eq!(meter.counters(100, 100), 100);
        for i in 1..=40 {
            meter.counters(100 + i * 100, 100 + i * 90);
        }
        let loss = meter.measured(0).loss_ppm;
        assert!((95_000..=105_000).contains(&loss), "{loss}");
        meter.new_slot();
        meter.counters(3, 3);
        assert_eq!(meter.measured(0).loss_ppm, loss);
    }

    #[test]
    fn delay_change_is_seen_through_unrelated_clocks() {
        let mut meter = Meter::default();
        meter.round_trip(Micros(2_000));
        for i in 0..50_u64 {
            meter.hello(
                u64::MAX - 1_000_000_000 + i * 1_000_000,
                Micros(5_000 + i * 1_000_000),
            );
        }
        assert_eq!(meter.measured(0).delay_us, 1_000);
        assert_eq!(meter.measured(0).jitter_us, 0);
        for i in 50..150_u64 {
            meter.hello(
                u64::MAX - 1_000_000_000 + i * 1_000_000,
                Micros(25_000 + i * 1_000_000),
            );
        }
        let delay = meter.measured(0).delay_us;
        assert!((19_000..=21_500).contains(&delay), "{delay}");
    }

    #[test]
    fn small_changes_are_not_told() {
        let mut advertised = Advertised::default();
        let at = |cost| Measured {
            cost,
            ..Measured::UNKNOWN
        };
        assert!(advertised.update(Micros(0), at(100)));
        assert!(!advertised.update(Micros(1), at(120)));
        assert!(advertised.update(Micros(2), at(130)));
        assert!(!advertised.update(Micros(3), at(110)));
        assert!(advertised.update(Micros::from_secs(61), at(110)));
        assert_eq!(advertised.get().unwrap().cost, 110);
    }
}
