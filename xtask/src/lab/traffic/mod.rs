//! Traffic between nodes of a lab, and what came of it.

pub mod http;
pub mod iperf;
mod stream;

pub use stream::{Report, Stream};
