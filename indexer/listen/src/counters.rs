//! Counters that go up, and gauges, by name.

/// A figure as it is shown to Prometheus.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Figure {
    /// Its name without the program's prefix; ends in `_total` if it only goes up.
    pub name: &'static str,
    /// What it counts.
    pub help: &'static str,
    /// Its value.
    pub value: u64,
}

/// Defines a struct of counters, each with its name and what it counts, and `figures()` to list them.
#[macro_export]
macro_rules! counters {
    ($(#[$meta:meta])* $vis:vis struct $name:ident ($prefix:literal) { $($field:ident: $help:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Default)]
        $vis struct $name {
            $(#[doc = $help] pub $field: std::sync::atomic::AtomicU64,)*
        }

        impl $name {
            /// All of them, in order.
            pub fn figures(&self) -> Vec<$crate::Figure> {
                vec![$($crate::Figure {
                    name: concat!($prefix, "_", stringify!($field)),
                    help: $help,
                    value: self.$field.load(std::sync::atomic::Ordering::Relaxed),
                },)*]
            }
        }
    };
}

/// Adds one.
#[macro_export]
macro_rules! count {
    ($counter:expr) => {
        $counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed)
    };
}
