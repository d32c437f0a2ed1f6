//! What the drivers of interfaces can do with XDP, as the kernel tells since 6.3: the generic netlink family `netdev`
//! (`Documentation/netlink/specs/netdev.yaml`). It is no part of rtnetlink, and four numbers of it are wanted, so the
//! two messages are made and read here.

use std::{collections::HashMap, io};

use futures_util::FutureExt as _;
use rtnetlink::sys::{
    AsyncSocket as _, AsyncSocketExt as _, Socket, TokioSocket, protocols::NETLINK_GENERIC,
};

/// Takes frames that a native XDP program redirects to it (`NETDEV_XDP_ACT_NDO_XMIT`).
pub const NDO_XMIT: u64 = 1 << 2;

const REQUEST: u16 = 0x1;
const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const CONTROL: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const GROUPS: u16 = 7;
const GROUP_NAME: u16 = 1;
const GROUP_ID: u16 = 2;
const DEV_GET: u8 = 1;
const DEV_IFINDEX: u16 = 1;
const DEV_XDP_FEATURES: u16 = 3;
/// Bytes of the netlink and of the generic netlink header.
const HEADS: usize = 20;
/// Messages read for one answer at most.
const MAX_MESSAGES: usize = 65_536;

/// The family's number in this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpFeatures(u16);

/// Told whenever an interface comes, goes or changes its features.
pub struct Changes(TokioSocket);

impl std::fmt::Debug for Changes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes")
    }
}

impl Changes {
    /// Waits until something changed.
    pub async fn next(&mut self) -> io::Result<()> {
        let mut received = self.0.recv_from_full().await.map(|_| ());
        // What changed is read anew as a whole, so one word about all of it is enough.
        for _ in 0..MAX_MESSAGES {
            match received {
                Ok(()) => {}
                // The buffer was full: more changed.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Err(error) => return Err(error),
            }
            match self.0.recv_from_full().now_or_never() {
                Some(next) => received = next.map(|_| ()),
                None => break,
            }
        }
        Ok(())
    }
}

impl XdpFeatures {
    /// Finds the family and subscribes. None on a kernel that does not tell. Must be called within a tokio runtime.
    pub fn open() -> io::Result<Option<(Self, Changes)>> {
        let mut name = Vec::new();
        put(&mut name, FAMILY_NAME, b"netdev\0");
        let answer = match ask(CONTROL, GET_FAMILY, 0, &name) {
            Ok(messages) => messages,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let Some((family, group)) = answer.first().and_then(|body| read_family(body)) else {
            return Ok(None);
        };
        let mut socket = TokioSocket::new(NETLINK_GENERIC)?;
        socket.socket_mut().bind_auto()?;
        if let Some(group) = group {
            socket.socket_mut().add_membership(group)?;
        }
        Ok(Some((Self(family), Changes(socket))))
    }

    /// The features of all interfaces, by index.
    pub fn read(self) -> io::Result<HashMap<u32, u64>> {
        let messages = ask(self.0, DEV_GET, DUMP, &[])?;
        Ok(messages
            .iter()
            .filter_map(|body| read_device(body))
            .collect())
    }
}

/// One request; gives what follows the headers of each message of the answer. The kernel answers before `send` returns,
/// so nothing waits here.
fn ask(family: u16, command: u8, flags: u16, attributes: &[u8]) -> io::Result<Vec<Vec<u8>>> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.set_non_blocking(true)?;
    let mut message = Vec::with_capacity(HEADS + attributes.len());
    message.extend(((HEADS + attributes.len()) as u32).to_ne_bytes());
    message.extend(family.to_ne_bytes());
    message.extend((REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend([command, 1, 0, 0]);
    message.extend(attributes);
    socket.send(&message, 0)?;
    let mut bodies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        for (kind, content) in messages(&datagram) {
            match kind {
                DONE => return Ok(bodies),
                ERROR => {
                    let code = content.first_chunk().map_or(0, |c| i32::from_ne_bytes(*c));
                    return match code {
                        0 => Ok(bodies),
                        code => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
                    };
                }
                _ => bodies.extend(content.get(HEADS - 16..).map(<[u8]>::to_vec)),
            }
        }
        if flags & DUMP == 0 || bodies.len() >= MAX_MESSAGES {
            return Ok(bodies);
        }
    }
}

fn put(into: &mut Vec<u8>, kind: u16, value: &[u8]) {
    into.extend((value.len() as u16 + 4).to_ne_bytes());
    into.extend(kind.to_ne_bytes());
    into.extend(value);
    into.resize(into.len().next_multiple_of(4), 0);
}

/// The messages of a datagram: kind, and what follows the netlink header.
fn messages(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = u32::from_ne_bytes(*rest.first_chunk()?) as usize;
        let kind = u16::from_ne_bytes(*rest.get(4..)?.first_chunk()?);
        let content = rest.get(16..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, content))
    })
}

/// The attributes in a message: kind without its flags, and value.
fn attributes(mut rest: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16::from_ne_bytes(*rest.first_chunk()?));
        let kind = u16::from_ne_bytes(*rest.get(2..)?.first_chunk()?) & 0x3fff;
        let value = rest.get(4..len)?;
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn find(body: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(body)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

/// The family's number and the group its changes are sent to.
fn read_family(body: &[u8]) -> Option<(u16, Option<u32>)> {
    let id = u16::from_ne_bytes(*find(body, FAMILY_ID)?.first_chunk()?);
    let groups = find(body, GROUPS).unwrap_or_default();
    let group = attributes(groups).find_map(|(_, group)| {
        let management = find(group, GROUP_NAME)? == b"mgmt\0";
        let id = u32::from_ne_bytes(*find(group, GROUP_ID)?.first_chunk()?);
        management.then_some(id)
    });
    Some((id, group))
}

fn read_device(body: &[u8]) -> Option<(u32, u64)> {
    let index = u32::from_ne_bytes(*find(body, DEV_IFINDEX)?.first_chunk()?);
    let features = u64::from_ne_bytes(*find(body, DEV_XDP_FEATURES)?.first_chunk()?);
    Some((index, features))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_read() {
        let mut body = Vec::new();
        put(&mut body, DEV_IFINDEX, &7_u32.to_ne_bytes());
        put(&mut body, 2, &[]);
        put(&mut body, DEV_XDP_FEATURES, &0x67_u64.to_ne_bytes());
        assert_eq!(read_device(&body), Some((7, 0x67)));
        assert_eq!(read_device(&body[..body.len() - 1]), None);
    }

    #[test]
    fn a_family_is_read_with_its_group() {
        let mut group = Vec::new();
        put(&mut group, GROUP_NAME, b"mgmt\0");
        put(&mut group, GROUP_ID, &12_u32.to_ne_bytes());
        let mut groups = Vec::new();
        put(&mut groups, 1, &group);
        let mut body = Vec::new();
        put(&mut body, FAMILY_ID, &0x1d_u16.to_ne_bytes());
        put(&mut body, GROUPS, &groups);
        assert_eq!(read_family(&body), Some((0x1d, Some(12))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_hang(bytes in proptest::collection::vec(0_u8.., 0..200)) {
            for (_, content) in messages(&bytes) {
                let _ = (read_family(content), read_device(content));
            }
            let _ = (read_family(&bytes), read_device(&bytes));
        }
    }
}
