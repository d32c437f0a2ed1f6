//! The coin index service, as a library: what `weft-indexd` and the benchmark share.

pub mod config;
pub mod follow;
pub mod metrics;
pub mod ordered;
pub mod pool;
pub mod run;
pub mod section;
pub mod serve;
pub mod status;
pub mod terminal;
