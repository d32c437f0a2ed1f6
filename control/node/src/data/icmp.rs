//! ICMP and ICMPv6 errors that the ingress answers with (RFC 792, RFC 1191, RFC 4443), written back to the TUN interface.

use std::{
    net::{IpAddr, Ipv6Addr},
    time::{Duration, Instant},
};

use super::packet::{Inner, checksum};

/// Room an error needs: IPv6's minimum MTU.
pub const MAX_ERROR: usize = 1280;
/// Bytes of the offending packet in an ICMP error for IPv4 (RFC 1812: as much as fits into 576).
const MAX_ERROR_V4: usize = 576;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Longer than the path carries: the largest that fits.
    TooBig(u16),
    /// No path to the destination.
    NoRoute,
    /// There should be one, but its node is not reachable now.
    Unreachable,
    /// The source address is none this node may send from.
    Source,
}

/// Builds the error for a packet that [`Inner::parse`] accepted; none where none may be sent (RFC 4443 2.4, RFC 1122
/// 3.2.2): about ICMP errors, to multicast or unspecified sources, about fragments beyond the first.
///
/// It comes from the address the packet was for: that is no local address, and the interface's route points to it, so
/// neither the martian check nor reverse path filters refuse it.
pub fn error(packet: &[u8], inner: &Inner, problem: Problem, out: &mut [u8]) -> Option<usize> {
    let source_ok = match inner.source {
        IpAddr::V4(source) => {
            !source.is_unspecified() && !source.is_multicast() && !source.is_broadcast()
        }
        IpAddr::V6(source) => !source.is_unspecified() && !source.is_multicast(),
    };
    if !source_ok || inner.destination.is_multicast() || is_error(packet) {
        return None;
    }
    match (inner.source, inner.destination) {
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            let (kind, code, value) = match problem {
                Problem::TooBig(mtu) => (2, 0, u32::from(mtu)),
                Problem::NoRoute => (1, 0, 0),
                Problem::Unreachable => (1, 3, 0),
                Problem::Source => (1, 5, 0),
            };
            let quoted = inner.len.min(MAX_ERROR - 48);
            let len = 48 + quoted;
            let out = out.get_mut(..len)?;
            out[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, 0, 58, 64]);
            out[4..6].copy_from_slice(&((8 + quoted) as u16).to_be_bytes());
            out[8..24].copy_from_slice(&destination.octets());
            out[24..40].copy_from_slice(&source.octets());
            out[40..44].copy_from_slice(&[kind, code, 0, 0]);
            out[44..48].copy_from_slice(&value.to_be_bytes());
            out[48..].copy_from_slice(packet.get(..quoted)?);
            let sum = checksum_v6(destination, source, 58, &out[40..]);
            out[42..44].copy_from_slice(&sum.to_be_bytes());
            Some(len)
        }
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            let fragment_offset = u16::from_be_bytes([packet[6], packet[7]]) & 0x1fff;
            if fragment_offset != 0 {
                return None;
            }
            let (code, value) = match problem {
                Problem::TooBig(mtu) => (4, u32::from(mtu)),
                Problem::NoRoute => (0, 0),
                Problem::Unreachable => (1, 0),
                Problem::Source => (13, 0),
            };
            let quoted = inner.len.min(MAX_ERROR_V4 - 28);
            let len = 28 + quoted;
            let out = out.get_mut(..len)?;
            out[..12].copy_from_slice(&[0x45, 0xc0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0]);
            out[2..4].copy_from_slice(&(len as u16).to_be_bytes());
            out[12..16].copy_from_slice(&destination.octets());
            out[16..20].copy_from_slice(&source.octets());
            let sum = checksum(&[&out[..20]]);
            out[10..12].copy_from_slice(&sum.to_be_bytes());
            out[20..24].copy_from_slice(&[3, code, 0, 0]);
            out[24..28].copy_from_slice(&value.to_be_bytes());
            out[28..].copy_from_slice(packet.get(..quoted)?);
            let sum = checksum(&[&out[20..]]);
            out[22..24].copy_from_slice(&sum.to_be_bytes());
            Some(len)
        }
        _ => None,
    }
}

fn is_error(packet: &[u8]) -> bool {
    if packet[0] >> 4 == 4 {
        let at = usize::from(packet[0] & 15) * 4;
        // Echo, timestamp and mask messages are no errors.
        packet[9] == 1 && !matches!(packet.get(at), Some(0 | 8 | 9 | 10 | 13..=18))
    } else {
        packet[6] == 58 && packet.get(40).is_none_or(|kind| kind & 0x80 == 0)
    }
}

fn checksum_v6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, payload: &[u8]) -> u16 {
    let len = (payload.len() as u32).to_be_bytes();
    checksum(&[
        &source.octets(),
        &destination.octets(),
        &len,
        &[0, 0, 0, protocol],
        payload,
    ])
}

/// Token bucket for errors of one kind: a burst of 50, then 100 per second.
#[derive(Debug)]
pub struct Limiter {
    tokens: u32,
    filled: Instant,
}

impl Limiter {
    const BURST: u32 = 50;
    const PERIOD: Duration = Duration::from_millis(10);

    /// Full.
    pub fn new(now: Instant) -> Self {
        Self {
            tokens: Self::BURST,
            filled: now,
        }
    }

    /// Takes a token, where there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        let periods =
            now.saturating_duration_since(self.filled).as_micros() / Self::PERIOD.as_micros();
        if periods > 0 {
            self.tokens = self
                .tokens
                .saturating_add(periods.min(u128::from(Self::BURST)) as u32)
                .min(Self::BURST);
            self.filled = now;
        }
        let granted = self.tokens > 0;
        self.tokens -= u32::from(granted);
        granted
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::packet::tests::{v4, v6},
        *,
    };

    #[test]
    fn errors_are_well_formed_packets() {
        let mut out = [0; MAX_ERROR];
        for packet in [
            v6("fd00::1", "fd00::2", 2000),
            v4("10.0.0.1", "10.0.0.2", 2000),
        ] {
            let inner = Inner::parse(&packet).unwrap();
            for problem in [
                Problem::TooBig(1280),
                Problem::NoRoute,
                Problem::Unreachable,
                Problem::Source,
            ] {
                let len = error(&packet, &inner, problem, &mut out).unwrap();
                let answer = Inner::parse(&out[..len]).unwrap();
                assert_eq!(
                    (answer.source, answer.destination, answer.len),
                    (inner.destination, inner.source, len)
                );
                if let (IpAddr::V6(a), IpAddr::V6(b)) = (answer.source, answer.destination) {
                    assert_eq!(checksum_v6(a, b, 58, &out[40..len]), 0);
                    assert_eq!(len, MAX_ERROR);
                } else {
                    assert_eq!(checksum(&[&out[..20]]), 0);
                    assert_eq!(checksum(&[&out[20..len]]), 0);
                }
                // No error about an error.
                let again = error(&out[..len], &answer, problem, &mut [0; MAX_ERROR]);
                assert_eq!(again, None);
            }
        }
    }

    #[test]
    fn the_limiter_refills() {
        let start = Instant::now();
        let mut limiter = Limiter::new(start);
        assert_eq!((0..100).filter(|_| limiter.take(start)).count(), 50);
        assert_eq!(
            (0..100)
                .filter(|_| limiter.take(start + Duration::from_millis(100)))
                .count(),
            10
        );
    }
}
