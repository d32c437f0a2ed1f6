//! A deterministic simulator of whole networks of nodes, for tests.
//!
//! Everything that happens follows from one seed: the topology, the keys, losses, delays, crashes.

pub mod rng;
