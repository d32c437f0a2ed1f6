//! What `weftd` and its clients share: the local API's [types](api) and a blocking [client](Client), the
//! [configuration file](config) and the [secrets' files](secrets).
//!
//! ```no_run
//! use weft_client::{Client, config::Layout};
//!
//! let mut weft = Client::connect(Layout::system().socket)?;
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
pub mod config;
mod error;
pub mod secrets;

pub use client::{Client, Stream};
pub use error::Error;
