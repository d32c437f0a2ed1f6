//! `cargo xtask bench index`: the coin index on a generated chain. It is the program `weft-index-bench`.

use super::figure::{Aim, Figure};

/// What it tells, in the order of the table.
pub(super) const FIGURES: &[Figure] = &[
    Figure {
        name: "catchup_mb_s_per_core",
        about: "megabytes of blocks per second of processor time, everything on",
        aim: Aim::AtLeast(25.0),
    },
    Figure {
        name: "catchup_mb_s_per_core_no_commitment",
        about: "the same without the MuHash",
        aim: Aim::Told,
    },
    Figure {
        name: "peak_rss_mb",
        about: "most memory while catching up",
        aim: Aim::AtMost(1100.0),
    },
    Figure {
        name: "db_vs_chain",
        about: "size of the database over that of the blocks, as catching up leaves it",
        aim: Aim::AtMost(0.15),
    },
    Figure {
        name: "db_vs_chain_compacted",
        about: "the same after `compact`",
        aim: Aim::AtMost(0.15),
    },
    Figure {
        name: "listunspent_100_p50_ms",
        about: "the coins of a script that has 100, one client, median",
        aim: Aim::Told,
    },
    Figure {
        name: "listunspent_100_p99_ms",
        about: "the same, 99 of 100 are faster",
        aim: Aim::AtMost(1.0),
    },
    Figure {
        name: "echo_p99_ms",
        about: "an echo of as many bytes on this machine: what no server can beat",
        aim: Aim::Told,
    },
    Figure {
        name: "queries_peak_rss_mb",
        about: "most memory while serving, 64 clients asking for a million rows each among it",
        aim: Aim::AtMost(1100.0),
    },
    Figure {
        name: "tip_event_ms",
        about: "from the node having a block to the event that tells of it, on disk",
        aim: Aim::AtMost(50.0),
    },
    Figure {
        name: "reopen_ms",
        about: "opening the database",
        aim: Aim::AtMost(1000.0),
    },
];
