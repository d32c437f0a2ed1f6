//! Addresses and control messages as the kernel takes and gives them.

use std::{
    mem,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    ptr,
};

use super::Address;

/// Room for the control messages of one datagram.
pub(super) const CONTROL: usize = 128;

/// Alignment and room for one datagram's control messages.
#[derive(Clone, Copy)]
#[repr(C, align(8))]
pub(super) struct Control(pub(super) [u8; CONTROL]);

impl Default for Control {
    fn default() -> Self {
        Self([0; CONTROL])
    }
}

impl Control {
    /// Source address and egress, traffic class, segment size. Returns the length.
    pub(super) fn fill(&mut self, to: &Address, tos: u8, segment: Option<u16>) -> usize {
        let mut used = 0;
        match (to.remote, to.local) {
            (SocketAddr::V4(_), IpAddr::V4(local)) => {
                let info = libc::in_pktinfo {
                    ipi_ifindex: to.interface as libc::c_int,
                    ipi_spec_dst: libc::in_addr {
                        s_addr: u32::from_ne_bytes(local.octets()),
                    },
                    ipi_addr: libc::in_addr { s_addr: 0 },
                };
                self.push(&mut used, libc::IPPROTO_IP, libc::IP_PKTINFO, info);
                self.push(
                    &mut used,
                    libc::IPPROTO_IP,
                    libc::IP_TOS,
                    libc::c_int::from(tos),
                );
            }
            (SocketAddr::V6(_), IpAddr::V6(local)) => {
                let info = libc::in6_pktinfo {
                    ipi6_addr: libc::in6_addr {
                        s6_addr: local.octets(),
                    },
                    ipi6_ifindex: to.interface as _,
                };
                self.push(&mut used, libc::IPPROTO_IPV6, libc::IPV6_PKTINFO, info);
                self.push(
                    &mut used,
                    libc::IPPROTO_IPV6,
                    libc::IPV6_TCLASS,
                    libc::c_int::from(tos),
                );
            }
            _ => {}
        }
        if let Some(segment) = segment {
            self.push(&mut used, libc::IPPROTO_UDP, libc::UDP_SEGMENT, segment);
        }
        used
    }

    fn push<T: Copy>(&mut self, used: &mut usize, level: libc::c_int, kind: libc::c_int, value: T) {
        // SAFETY: CMSG_LEN and CMSG_SPACE only compute.
        let (len, space) = unsafe {
            (
                libc::CMSG_LEN(mem::size_of::<T>() as u32) as usize,
                libc::CMSG_SPACE(mem::size_of::<T>() as u32) as usize,
            )
        };
        debug_assert!(*used + space <= CONTROL);
        // SAFETY: the buffer is aligned for cmsghdr, the three messages of `fill` fit into it, and every header is
        // written before the next one's place is computed.
        unsafe {
            let header: *mut libc::cmsghdr = self.0.as_mut_ptr().add(*used).cast();
            (*header).cmsg_len = len as _;
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
        }
        *used += space;
    }
}

pub(super) fn to_storage(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: all-zero is a valid sockaddr_storage, and it is large and aligned enough for both families.
    unsafe {
        let mut storage: libc::sockaddr_storage = mem::zeroed();
        let len = match address {
            SocketAddr::V4(address) => {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in>()
                    .write(libc::sockaddr_in {
                        sin_family: libc::AF_INET as _,
                        sin_port: address.port().to_be(),
                        sin_addr: libc::in_addr {
                            s_addr: u32::from_ne_bytes(address.ip().octets()),
                        },
                        sin_zero: [0; 8],
                    });
                mem::size_of::<libc::sockaddr_in>()
            }
            SocketAddr::V6(address) => {
                ptr::from_mut(&mut storage)
                    .cast::<libc::sockaddr_in6>()
                    .write(libc::sockaddr_in6 {
                        sin6_family: libc::AF_INET6 as _,
                        sin6_port: address.port().to_be(),
                        sin6_flowinfo: 0,
                        sin6_addr: libc::in6_addr {
                            s6_addr: address.ip().octets(),
                        },
                        sin6_scope_id: address.scope_id(),
                    });
                mem::size_of::<libc::sockaddr_in6>()
            }
        };
        (storage, len as libc::socklen_t)
    }
}

pub(super) fn from_storage(storage: &libc::sockaddr_storage) -> SocketAddr {
    // SAFETY: the family says which of the two the kernel wrote; both fit and are aligned in a sockaddr_storage.
    unsafe {
        if i32::from(storage.ss_family) == libc::AF_INET6 {
            let address: &libc::sockaddr_in6 = &*ptr::from_ref(storage).cast();
            SocketAddrV6::new(
                address.sin6_addr.s6_addr.into(),
                u16::from_be(address.sin6_port),
                0,
                address.sin6_scope_id,
            )
            .into()
        } else {
            let address: &libc::sockaddr_in = &*ptr::from_ref(storage).cast();
            SocketAddrV4::new(
                address.sin_addr.s_addr.to_ne_bytes().into(),
                u16::from_be(address.sin_port),
            )
            .into()
        }
    }
}
