//! The Esplora interface over HTTP, and a stream of what changes over SSE and WebSocket.
//!
//! What is asked ([`route`]), what is answered ([`answer`]) and what a stream tells ([`stream`])
//! are written without sockets; [`server`] is the shell of axum and hyper around them.

pub mod answer;
mod block_json;
mod merkle_block;
pub mod route;
pub mod server;
pub mod stream;
mod tx_json;

pub use server::{Counters, Server, Settings};

/// The interface, described by OpenAPI; a test holds it to [`route::ROUTES`].
pub const OPENAPI: &str = include_str!("openapi.json");
