//! What the index's servers share: accepting clients within bounds, TLS, counters with names.
//! No protocol.

mod counters;
mod gate;
mod patient;
mod socket;
pub mod tls;

pub use counters::Figure;
pub use gate::{Gate, GateCounters, Limits, Pass, Refused};
pub use patient::Patient;
pub use socket::{Accepted, Listener, Stream};
