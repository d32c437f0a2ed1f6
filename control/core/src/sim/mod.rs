//! A deterministic simulator of whole networks of nodes, for tests.
//!
//! Real [`Node`](crate::node::Node)s on a virtual clock, each in a [`Host`](host::Host) whose forwarding tables run
//! weft-abi's decision on real packet bytes and whose sessions really encrypt. Everything that happens follows from one
//! seed: topology, keys, losses, delays, crashes; [`World::fingerprint`](world::World::fingerprint) tells whether two
//! runs were the same.

pub mod check;
pub mod host;
pub mod net;
pub mod rng;
pub mod session;
pub mod tables;
pub mod underlay;
pub mod world;
