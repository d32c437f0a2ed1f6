//! What `weftd` and its clients share: the local API's types, the configuration file, the secrets' files.

pub mod api;
pub mod config;
pub mod secrets;
