//! The coin index service, as a library: what `weft-indexd` and the benchmark share.

pub mod ordered;
