//! Medians, spreads, percentiles and slopes.

use serde::Serialize;

/// What several rounds gave.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Spread {
    /// The middle one (the mean of the two in the middle where their number is even).
    pub(crate) median: f64,
    /// The least.
    pub(crate) low: f64,
    /// The greatest.
    pub(crate) high: f64,
    /// How many rounds.
    pub(crate) rounds: usize,
}

impl Spread {
    /// Of some values; none where there are none.
    #[must_use]
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted = values
            .into_iter()
            .filter(|v| v.is_finite())
            .collect::<Vec<_>>();
        sorted.sort_by(f64::total_cmp);
        let (&low, &high) = (sorted.first()?, sorted.last()?);
        let half = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[half]
        } else {
            f64::midpoint(sorted[half - 1], sorted[half])
        };
        Some(Self {
            median,
            low,
            high,
            rounds: sorted.len(),
        })
    }
}

/// The value that a share of the sorted values does not exceed (nearest rank); none of none.
#[must_use]
pub(crate) fn percentile(sorted: &[u64], share: f64) -> Option<u64> {
    let last = sorted.len().checked_sub(1)?;
    let rank = (sorted.len() as f64 * share).ceil() as usize;
    Some(sorted[rank.saturating_sub(1).min(last)])
}

/// The slope of the straight line nearest to the points (least squares); none with fewer than two places on x.
#[must_use]
pub(crate) fn slope(points: &[(f64, f64)]) -> Option<f64> {
    let count = points.len() as f64;
    let mean_x = points.iter().map(|p| p.0).sum::<f64>() / count;
    let mean_y = points.iter().map(|p| p.1).sum::<f64>() / count;
    let over = points
        .iter()
        .map(|(x, y)| (x - mean_x) * (y - mean_y))
        .sum::<f64>();
    let under = points
        .iter()
        .map(|(x, _)| (x - mean_x).powi(2))
        .sum::<f64>();
    (under > 0.0).then(|| over / under)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_has_its_middle_and_ends() {
        let odd = Spread::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.median, odd.low, odd.high, odd.rounds),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([f64::NAN, 1.0]).unwrap().rounds, 1);
        assert!(Spread::of([]).is_none());
    }

    #[test]
    fn percentiles_are_values_that_occurred() {
        let hundred = (1..=100).collect::<Vec<u64>>();
        assert_eq!(percentile(&hundred, 0.5), Some(50));
        assert_eq!(percentile(&hundred, 0.99), Some(99));
        assert_eq!(percentile(&hundred, 1.0), Some(100));
        assert_eq!(percentile(&hundred, 0.0), Some(1));
        assert_eq!(percentile(&[7], 0.99), Some(7));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_line_has_its_slope() {
        let line = [(1.0, 5.0), (2.0, 7.0), (5.0, 13.0)];
        assert!((slope(&line).unwrap() - 2.0).abs() < 1e-9);
        assert!(slope(&[(1.0, 5.0)]).is_none());
        assert!(slope(&[(1.0, 5.0), (1.0, 6.0)]).is_none());
        assert!(slope(&[]).is_none());
    }
}
