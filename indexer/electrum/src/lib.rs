//! The Electrum protocol, 1.4 to 1.6, on a [`weft_view::View`].
//!
//! A [`Session`] is one client's side of the protocol without its socket: lines in, lines out,
//! and what to tell when something changed. [`server`] is the thin shell around it: sockets,
//! TLS, time, bounds. Method by method the answers are in `methods`.

mod json;
mod limits;
mod methods;
pub mod server;
mod session;
mod verbose;
pub mod version;
pub mod wire;

pub use limits::{Budget, Limits};
pub use server::{Counters, Server, Settings};
pub use session::{Info, Reply, Session};
