//! The data path of sessions: threads between the TUN interface and the underlay's sockets.
//!
//! Workers read immutable tables that the control loop publishes, and never wait for it; what is not traffic they hand
//! up through a bounded queue.

pub mod counters;
mod crowd;
pub mod crypto;
pub mod icmp;
mod inbound;
pub(crate) mod outbound;
pub mod packet;
pub mod queue;
pub mod session;
pub mod shared;
pub mod udp;
pub mod window;
pub mod worker;
pub mod xdp_send;
pub mod xsk;
