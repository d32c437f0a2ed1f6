//! Figures of benchmarks and what is aimed at, and how they are shown.

use crate::term::{self, Style};

/// A figure of a benchmark.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// Its name in JSON.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// What is aimed at.
    pub aim: Aim,
}

/// What is aimed at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aim {
    /// Nothing: it is told for comparison.
    Told,
    /// At least this.
    AtLeast(f64),
    /// At least the first, and the second is what one is after.
    AtLeastBetter(f64, f64),
    /// At most this.
    AtMost(f64),
}

/// How far a figure may get worse from one run to the next before it is pointed out, as a share.
pub(super) const TOLERATED: f64 = 0.1;

impl Aim {
    /// Whether a value reaches it.
    #[must_use]
    pub fn reached(self, value: f64) -> bool {
        match self {
            Self::Told => true,
            Self::AtLeast(least) | Self::AtLeastBetter(least, _) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    /// Whether `now` is worse than `before` by more than [`TOLERATED`].
    #[must_use]
    pub fn fell(self, before: f64, now: f64) -> bool {
        match self {
            Self::Told => false,
            Self::AtLeast(_) | Self::AtLeastBetter(..) => now < before * (1.0 - TOLERATED),
            Self::AtMost(_) => now > before * (1.0 + TOLERATED),
        }
    }

    /// In words.
    #[must_use]
    pub fn words(self) -> String {
        match self {
            Self::Told => String::new(),
            Self::AtLeast(least) => format!("at least {}", short(least)),
            Self::AtLeastBetter(least, better) => {
                format!("at least {}, after {}", short(least), short(better))
            }
            Self::AtMost(most) => format!("at most {}", short(most)),
        }
    }
}

/// A row of a table: name, value (red where the aim is missed), aim, and what it is. `note` comes before the latter.
#[must_use]
pub(super) fn row(figure: &Figure, value: f64, note: &str) -> String {
    let style = if figure.aim.reached(value) {
        Style::Green
    } else {
        Style::Red
    };
    let shown = term::paint(style, &format!("{:>10}", short(value)));
    let aim = figure.aim.words();
    format!(
        "  {:<32}{shown}  {aim:<16} {note}{}",
        figure.name,
        term::paint(Style::Dim, figure.about)
    )
}

/// A number with as many digits as are worth reading.
#[must_use]
pub(super) fn short(value: f64) -> String {
    if value.abs() >= 1000.0 {
        format!("{value:.0}")
    } else if value != 0.0 && value.abs() < 0.095 {
        format!("{value:.3}")
    } else {
        format!("{value:.2}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aims_are_reached_or_missed() {
        assert!(Aim::AtLeast(2.0).reached(2.0) && !Aim::AtLeast(2.0).reached(1.99));
        assert!(Aim::AtMost(2.0).reached(2.0) && !Aim::AtMost(2.0).reached(2.01));
        assert!(
            Aim::AtLeastBetter(3.5, 5.0).reached(4.0) && !Aim::AtLeastBetter(3.5, 5.0).reached(3.4)
        );
        assert!(Aim::Told.reached(f64::NAN));
    }

    #[test]
    fn a_fall_is_one_in_the_wrong_direction() {
        assert!(Aim::AtLeast(1.0).fell(10.0, 8.9) && !Aim::AtLeast(1.0).fell(10.0, 9.1));
        assert!(!Aim::AtLeast(1.0).fell(10.0, 20.0));
        assert!(Aim::AtMost(1.0).fell(1.0, 1.11) && !Aim::AtMost(1.0).fell(1.0, 0.5));
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(short(12345.6), "12346");
        assert_eq!(short(0.5), "0.50");
        assert_eq!(short(0.0123), "0.012");
        assert_eq!(short(0.0), "0.00");
    }
}
