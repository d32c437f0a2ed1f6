//! Lowering TCP's maximum segment size in SYNs to what the path carries (RFC 4459, section 3.2), as routers in front of
//! tunnels do: the ends then never send what would have to be answered with "too big".

use super::{
    checksum::adjusted,
    header::{Ip, SYN, TCP, put_u16, u16_at},
};

/// Lowers the MSS option of a TCP SYN to what fits packets of `mtu` bytes; checksums (whole or partial, see `partial`)
/// stay right. Tells whether it changed anything. Other packets stay as they are.
///
/// A partial checksum covers the pseudo-header alone, which has no option in it.
#[inline]
pub fn clamp(packet: &mut [u8], mtu: u16, partial: bool) -> bool {
    // What every packet pays: one look at protocol and flags.
    let Some((transport, v6)) = syn(packet) else {
        return false;
    };
    let fixed = if v6 { 60 } else { 40 };
    let Some(limit) = mtu.checked_sub(fixed).filter(|limit| *limit > 0) else {
        return false;
    };
    lower(&mut packet[transport..], limit, partial).unwrap_or(false)
}

/// Where the TCP header of a SYN begins.
fn syn(packet: &[u8]) -> Option<(usize, bool)> {
    let ip = Ip::parse(packet)?;
    let unfragmented = ip.v6 || u16_at(packet, 6)? & 0x1fff == 0;
    let flags = packet.get(..ip.len)?.get(ip.header + 13)?;
    (ip.protocol == TCP && unfragmented && flags & SYN != 0).then_some((ip.header, ip.v6))
}

fn lower(tcp: &mut [u8], limit: u16, partial: bool) -> Option<bool> {
    let header = usize::from(*tcp.get(12)? >> 4) * 4;
    if header < 20 || header > tcp.len() {
        return None;
    }
    let mut at = 20;
    while at < header {
        match tcp[at] {
            0 => return None,
            1 => at += 1,
            kind => {
                let len = usize::from(*tcp.get(at + 1)?);
                if len < 2 || at + len > header {
                    return None;
                }
                if kind != 2 || len != 4 {
                    at += len;
                    continue;
                }
                let old = u16_at(tcp, at + 2)?;
                if old <= limit {
                    return Some(false);
                }
                put_u16(tcp, at + 2, limit);
                if !partial {
                    let checksum = u16_at(tcp, 16)?;
                    // An option may stand at an odd place: then its bytes are halves of two words.
                    let swap = |value: u16| {
                        if at % 2 == 0 {
                            value
                        } else {
                            value.swap_bytes()
                        }
                    };
                    put_u16(tcp, 16, adjusted(checksum, swap(old), swap(limit)));
                }
                return Some(true);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::{super::build, *};

    #[test]
    fn syns_are_lowered_and_nothing_else() {
        for v6 in [false, true] {
            for (flags, options) in [
                (SYN, vec![2, 4, 0x23, 0x28, 1, 3, 3, 7]),
                (SYN | 0x10, vec![1, 2, 4, 0x23, 0x28, 1, 1, 1]),
                (0x10, vec![2, 4, 0x23, 0x28]),
                (SYN, vec![4, 2, 1, 1]),
                // Cut short, of no length, beyond the end.
                (SYN, vec![1, 1, 1, 2]),
                (SYN, vec![8, 0, 2, 4]),
                (SYN, vec![8, 200, 2, 4]),
            ] {
                let with = |options: Vec<u8>| build::Tcp {
                    v6,
                    flags,
                    options,
                    payload: build::bytes(9),
                    ..build::Tcp::default()
                };
                let mut packet = with(options.clone()).packet();
                let changed = clamp(&mut packet, 1400, false);
                let mut want = options.clone();
                let limit = 1400u16 - if v6 { 60 } else { 40 };
                if changed {
                    let at = want.windows(2).position(|w| w == [2, 4]).unwrap();
                    want[at + 2..at + 4].copy_from_slice(&limit.to_be_bytes());
                }
                assert_eq!(changed, options.contains(&0x23) && flags & SYN != 0);
                assert_eq!(packet, with(want).packet());
                assert!(!clamp(&mut packet, 1400, false));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..120), v6: bool, mtu: u16) {
            if bytes.len() > 40 {
                bytes[0] = if v6 { 0x60 } else { 0x45 };
                let len = bytes.len() as u16;
                if v6 {
                    put_u16(&mut bytes, 4, len - 40);
                    bytes[6] = TCP;
                } else {
                    put_u16(&mut bytes, 2, len);
                    bytes[9] = TCP;
                }
            }
            clamp(&mut bytes, mtu, false);
        }
    }
}
