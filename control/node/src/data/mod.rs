//! The data path.
pub mod udp;
