//! How a program talks to the `weftd` of its host: the local API's [types](api) and a blocking [client](Client).
//!
//! ```no_run
//! use weft_client::{Client, DEFAULT_SOCKET};
//!
//! let mut weft = Client::connect(DEFAULT_SOCKET)?;
//! for node in weft.nodes()? {
//!     println!("{} {}", node.name, node.overlay_address);
//! }
//! for pong in weft.ping("gateway-b", 3, 1000, 56)? {
//!     println!("{:?}", pong?.rtt_ms);
//! }
//! # Ok::<(), weft_client::Error>(())
//! ```

pub mod api;
mod client;
mod error;

pub use client::{Client, Stream};
pub use error::Error;

/// Where `weftd` listens when no other folder was chosen.
pub const DEFAULT_SOCKET: &str = "/run/weft/weft.sock";
