//! Segmentation and its reverse over slices: what a network card would do, done for packets on their way between the
//! TUN interface and sessions. Nothing in here knows of descriptors, keys or the kernel.
//!
//! - [`virtio`]: the header that travels before each packet of a TUN queue opened with `IFF_VNET_HDR`;
//! - [`gso`]: cuts a super-packet into the packets that fit the path;
//! - [`gro`]: puts packets of one flow together again, by the rules of the kernel's own GRO;
//! - [`mss`]: lowers the segment size that TCP's two ends tell each other to what the path carries;
//! - [`checksum`]: the Internet checksum, wide.
//!
//! Cutting what was put together gives the same packets back, byte for byte. One exception, as in the kernel: IPv4
//! packets with DF that all carry the same identification come back with counting ones (RFC 6864 gives the field of
//! such packets no meaning).

pub mod checksum;
pub mod gro;
pub mod gso;
mod header;
pub mod mss;
pub mod virtio;

#[cfg(test)]
mod build;
#[cfg(test)]
mod identity;
#[cfg(test)]
mod kernel;
