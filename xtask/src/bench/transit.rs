//! `cargo xtask bench transit`: one hop by itself. It is an example of `weft-node`.

use super::figure::{Aim, Figure};

/// The budget of instructions that the kernel's verifier may go through for the transit program; the kernel's own
/// limit is a million.
const VERIFIER_BUDGET: f64 = 200_000.0;

/// What it tells, in the order of the table.
pub(super) const FIGURES: &[Figure] = &[
    Figure {
        name: "label_hop_vs_kernel",
        about: "packets per second of a label hop over kernel IPv4 forwarding",
        aim: Aim::AtLeast(2.0),
    },
    Figure {
        name: "label_hop_vs_kernel_per_packet",
        about: "what a packet costs in kernel IPv4 forwarding over what it costs in a label hop, generator deducted",
        aim: Aim::AtLeast(3.0),
    },
    Figure {
        name: "label_hop_vs_redirect",
        about: "packets per second of a label hop over a bare XDP redirect",
        aim: Aim::AtLeast(0.7),
    },
    Figure {
        name: "program_ns",
        about: "the program alone, nanoseconds per packet (test_run)",
        aim: Aim::Told,
    },
    Figure {
        name: "redirect_ns",
        about: "a bare redirect, likewise",
        aim: Aim::Told,
    },
    Figure {
        name: "siphash_ns",
        about: "SipHash-2-4 of 14 bytes alone (what a tag covers), likewise",
        aim: Aim::Told,
    },
    Figure {
        name: "verifier_insns",
        about: "instructions the kernel's verifier goes through",
        aim: Aim::AtMost(VERIFIER_BUDGET),
    },
];
