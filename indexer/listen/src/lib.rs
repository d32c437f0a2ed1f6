//! What the index's servers share: accepting clients within bounds, TLS, threads and memory for
//! their questions, settings, counters with names. No protocol.

mod config;
mod counters;
mod gate;
mod means;
mod patient;
mod socket;
pub mod tls;

pub use config::Config;
pub use counters::Figure;
pub use gate::{Gate, GateCounters, Limits, Pass, Refused};
pub use means::{Bounds, Means, SMALL, Share};
pub use patient::{Patient, SLOWEST};
pub use socket::{Client, Listener, Stream};
