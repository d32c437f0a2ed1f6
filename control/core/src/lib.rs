//! The protocol of Weft as pure state machines: no sockets, no clock, no threads, no randomness of its own.
//!
//! See [`io`] for how a [`node::Node`] is driven.

pub mod identity;
pub mod io;
mod link;
mod lsp;
mod message;
pub mod node;
mod noise;
pub mod session;
#[cfg(feature = "sim")]
pub mod sim;
pub mod topology;
pub mod wire;
