//! Everything of a node that knows Linux: sockets, netlink, eBPF, TUN, files and timers around `weft-core`.

pub mod api;
pub mod daemon;
pub mod data;
pub mod dataplane;
pub mod netlink;
pub mod notify;
pub mod offload;
pub mod state;
pub mod tun;
