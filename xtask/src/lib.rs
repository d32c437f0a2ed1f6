//! What `cargo xtask` does, as a library: the verbs, and the lab of network namespaces the network tests use.
//!
//! It must build on a machine that has nothing but Rust, so it never depends on `weft-node`, whose build needs the
//! eBPF toolchain that [`setup`] installs. The programs under test are found as files, see [`paths`].

pub mod bench;
pub mod building;
pub mod demo;
pub mod lab;
pub mod paths;
pub mod setup;
pub mod skip;
pub mod suite;
pub mod term;
