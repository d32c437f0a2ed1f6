//! Messages neighbours send each other under the link's control keys.

use std::fmt;

use weft_abi::{Label, Slot};

use crate::{
    identity::NodeId,
    topology::lsa::Measured,
    wire::{Reader, WireError, Writer},
};

/// Longest control message in bytes, all its fragments together.
pub(crate) const MAX_MESSAGE: usize = 24 * 1024;
/// Most LSPs named in one refresh or unknown message.
pub(crate) const MAX_IDS: usize = 64;
/// Longest onion in an LSP set-up.
pub(crate) const MAX_ONION: usize = 3072;
/// Bytes of a sealed notice: payload and AEAD tag.
pub(crate) const NOTICE_LEN: usize = 48 + 16;
/// Longest answer of the egress that travels back in an LSP answer.
pub(crate) const MAX_REPLY: usize = 512;

/// The predecessor's name for an LSP on its way to one neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LspId(pub(crate) u64);

/// How a direction is doing, told by its receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    /// Highest hello sequence heard.
    pub(crate) heard: u32,
    /// What was measured.
    pub(crate) measured: Measured,
}

/// Sent periodically on each link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    /// Counts up.
    pub(crate) sequence: u32,
    /// The sender's clock, microseconds.
    pub(crate) sent_at: u64,
    /// MTU of the sender's path, bytes of IP packet.
    pub(crate) mtu: u16,
    /// Asks for a hello in answer at once.
    pub(crate) urgent: bool,
    /// Traffic comes on this link: the other end should probe it often.
    pub(crate) busy: bool,
    /// Of the reverse direction; none while nothing is heard.
    pub(crate) report: Option<Report>,
}

/// Why an LSP set-up was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Refusal {
    /// The hop's layer did not open, or made no sense.
    BadOnion = 1,
    /// The hop has no working link to the next.
    NoLink = 2,
    /// A quota or table is full.
    Full = 3,
    /// The hop does not forward for others.
    NoTransit = 4,
    /// The egress refused what the innermost layer asked.
    Refused = 5,
    /// Both ends began a session at once and this one gives way.
    Collision = 6,
    /// The egress knows no such session (any more).
    NoSession = 7,
    /// The next hop did not answer in time.
    TimedOut = 8,
}

impl Refusal {
    const ALL: [Self; 8] = [
        Self::BadOnion,
        Self::NoLink,
        Self::Full,
        Self::NoTransit,
        Self::Refused,
        Self::Collision,
        Self::NoSession,
        Self::TimedOut,
    ];

    fn decode(value: u8) -> Result<Self, WireError> {
        Self::ALL
            .into_iter()
            .find(|refusal| *refusal as u8 == value)
            .ok_or(WireError::Value {
                field: "refusal",
                value: value.into(),
            })
    }

    /// In words.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::BadOnion => "a hop could not open its layer",
            Self::NoLink => "a hop has no link to the next",
            Self::Full => "a hop's tables are full",
            Self::NoTransit => "a hop does not forward for others",
            Self::Refused => "the far end refused",
            Self::Collision => "both ends began at once",
            Self::NoSession => "the far end does not know the session",
            Self::TimedOut => "a hop did not answer",
        }
    }
}

/// How an LSP set-up ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SetupResult {
    /// The label the answering neighbour allocated, the smallest UDP payload that fits downstream, the egress's reply.
    Up {
        label: Label,
        payload_mtu: u16,
        reply: Vec<u8>,
    },
    /// Who refused says so under its hop key where it has one.
    Refused {
        why: Refusal,
        notice: Option<[u8; NOTICE_LEN]>,
    },
}

/// What travels hop by hop to a node that is no neighbour in the direction wanted.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum RoutedBody {
    /// A control frame, as it would be in a datagram from offset 16 on.
    Frame { slot: Slot, body: Vec<u8> },
    /// A handshake message.
    Handshake(Vec<u8>),
}

impl fmt::Debug for RoutedBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Frame { slot, body } => write!(f, "Frame({slot:?}, {} bytes)", body.len()),
            Self::Handshake(body) => write!(f, "Handshake({} bytes)", body.len()),
        }
    }
}

/// A control message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    Hello(Hello),
    /// The sender ends the link.
    Goodbye,
    /// Rekey: a handshake message as from offset 16 of a datagram.
    Handshake(Vec<u8>),
    /// Of the topology module.
    Topology(Vec<u8>),
    Routed {
        to: NodeId,
        hops: u8,
        body: RoutedBody,
    },
    LspSetup {
        id: LspId,
        onion: Vec<u8>,
    },
    LspAnswer {
        id: LspId,
        result: SetupResult,
    },
    LspRefresh {
        ids: Vec<LspId>,
    },
    /// The receiver's LSPs that the sender does not know.
    LspUnknown {
        ids: Vec<LspId>,
    },
    LspTeardown {
        id: LspId,
    },
    /// Towards the source.
    LspNotice {
        id: LspId,
        sealed: [u8; NOTICE_LEN],
    },
    /// The sender has no entry for a label the receiver used.
    LabelUnknown {
        label: Label,
    },
}

impl Message {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::with_capacity(128);
        match self {
            Self::Hello(hello) => {
                w.u8(1)
                    .u32(hello.sequence)
                    .u64(hello.sent_at)
                    .u16(hello.mtu)
                    .bool(hello.urgent)
                    .bool(hello.busy);
                w.bool(hello.report.is_some());
                if let Some(Report { heard, measured: m }) = hello.report {
                    w.u32(heard)
                        .u32(m.cost)
                        .u32(m.loss_ppm)
                        .u32(m.delay_us)
                        .u32(m.jitter_us)
                        .u32(m.capacity_kbps);
                }
            }
            Self::Goodbye => {
                w.u8(2);
            }
            Self::Handshake(bytes) => {
                w.u8(3).bytes(bytes);
            }
            Self::Topology(bytes) => {
                w.u8(4).bytes(bytes);
            }
            Self::Routed { to, hops, body } => {
                w.u8(5).node_id(to).u8(*hops);
                match body {
                    RoutedBody::Frame { slot, body } => w.u8(1).u16(slot.0).bytes(body),
                    RoutedBody::Handshake(bytes) => w.u8(2).bytes(bytes),
                };
            }
            Self::LspSetup { id, onion } => {
                w.u8(6).u64(id.0).bytes(onion);
            }
            Self::LspAnswer { id, result } => {
                w.u8(7).u64(id.0);
                match result {
                    SetupResult::Up {
                        label,
                        payload_mtu,
                        reply,
                    } => {
                        w.u8(0).u32(label.0).u16(*payload_mtu).bytes(reply);
                    }
                    SetupResult::Refused { why, notice } => {
                        w.u8(*why as u8)
                            .bytes(notice.as_ref().map_or(&[][..], |n| &n[..]));
                    }
                }
            }
            Self::LspRefresh { ids } => {
                w.u8(8).list(ids, |w, id| {
                    w.u64(id.0);
                });
            }
            Self::LspUnknown { ids } => {
                w.u8(9).list(ids, |w, id| {
                    w.u64(id.0);
                });
            }
            Self::LspTeardown { id } => {
                w.u8(10).u64(id.0);
            }
            Self::LspNotice { id, sealed } => {
                w.u8(11).u64(id.0).bytes(sealed);
            }
            Self::LabelUnknown { label } => {
                w.u8(12).u32(label.0);
            }
        }
        w.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let message = match r.u8()? {
            1 => Self::Hello(Hello {
                sequence: r.u32()?,
                sent_at: r.u64()?,
                mtu: r.u16()?,
                urgent: r.bool("urgent")?,
                busy: r.bool("busy")?,
                report: if r.bool("report")? {
                    Some(Report {
                        heard: r.u32()?,
                        measured: Measured {
                            cost: r.u32()?,
                            loss_ppm: r.u32()?,
                            delay_us: r.u32()?,
                            jitter_us: r.u32()?,
                            capacity_kbps: r.u32()?,
                        },
                    })
                } else {
                    None
                },
            }),
            2 => Self::Goodbye,
            3 => Self::Handshake(r.rest().to_vec()),
            4 => Self::Topology(r.rest().to_vec()),
            5 => {
                let (to, hops) = (r.node_id()?, r.u8()?);
                let body = match r.u8()? {
                    1 => RoutedBody::Frame {
                        slot: Slot(r.u16()?),
                        body: r.rest().to_vec(),
                    },
                    2 => RoutedBody::Handshake(r.rest().to_vec()),
                    value => {
                        return Err(WireError::Value {
                            field: "routed message",
                            value: value.into(),
                        });
                    }
                };
                Self::Routed { to, hops, body }
            }
            6 => {
                let id = LspId(r.u64()?);
                let left = r.left();
                if left > MAX_ONION {
                    return Err(WireError::TooLong {
                        field: "onion",
                        value: left,
                        max: MAX_ONION,
                    });
                }
                Self::LspSetup {
                    id,
                    onion: r.rest().to_vec(),
                }
            }
            7 => {
                let id = LspId(r.u64()?);
                let result = match r.u8()? {
                    0 => {
                        let (label, payload_mtu) = (label(r.u32()?)?, r.u16()?);
                        let left = r.left();
                        if left > MAX_REPLY {
                            return Err(WireError::TooLong {
                                field: "reply",
                                value: left,
                                max: MAX_REPLY,
                            });
                        }
                        SetupResult::Up {
                            label,
                            payload_mtu,
                            reply: r.rest().to_vec(),
                        }
                    }
                    why => SetupResult::Refused {
                        why: Refusal::decode(why)?,
                        notice: if r.left() == 0 {
                            None
                        } else {
                            Some(r.array()?)
                        },
                    },
                };
                Self::LspAnswer { id, result }
            }
            8 => Self::LspRefresh {
                ids: r.list("LSPs", MAX_IDS, |r| r.u64().map(LspId))?,
            },
            9 => Self::LspUnknown {
                ids: r.list("LSPs", MAX_IDS, |r| r.u64().map(LspId))?,
            },
            10 => Self::LspTeardown {
                id: LspId(r.u64()?),
            },
            11 => Self::LspNotice {
                id: LspId(r.u64()?),
                sealed: r.array()?,
            },
            12 => Self::LabelUnknown {
                label: label(r.u32()?)?,
            },
            value => {
                return Err(WireError::Value {
                    field: "message type",
                    value: value.into(),
                });
            }
        };
        r.finish()?;
        Ok(message)
    }
}

fn label(value: u32) -> Result<Label, WireError> {
    if (16..1 << 20).contains(&value) {
        Ok(Label(value))
    } else {
        Err(WireError::Value {
            field: "label",
            value: value.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<Message> {
        let measured = Measured::UNKNOWN;
        vec![
            Message::Hello(Hello {
                sequence: 1,
                sent_at: 2,
                mtu: 1500,
                urgent: true,
                busy: false,
                report: None,
            }),
            Message::Hello(Hello {
                sequence: 1,
                sent_at: 2,
                mtu: 1500,
                urgent: false,
                busy: true,
                report: Some(Report { heard: 9, measured }),
            }),
            Message::Goodbye,
            Message::Handshake(vec![1; 40]),
            Message::Topology(vec![2; 40]),
            Message::Routed {
                to: NodeId([1; 32]),
                hops: 7,
                body: RoutedBody::Frame {
                    slot: Slot(3),
                    body: vec![1; 50],
                },
            },
            Message::Routed {
                to: NodeId([1; 32]),
                hops: 7,
                body: RoutedBody::Handshake(vec![1; 50]),
            },
            Message::LspSetup {
                id: LspId(5),
                onion: vec![1; 900],
            },
            Message::LspAnswer {
                id: LspId(5),
                result: SetupResult::Up {
                    label: Label(77),
                    payload_mtu: 1472,
                    reply: vec![3; 100],
                },
            },
            Message::LspAnswer {
                id: LspId(5),
                result: SetupResult::Refused {
                    why: Refusal::Full,
                    notice: None,
                },
            },
            Message::LspAnswer {
                id: LspId(5),
                result: SetupResult::Refused {
                    why: Refusal::NoLink,
                    notice: Some([1; NOTICE_LEN]),
                },
            },
            Message::LspRefresh {
                ids: vec![LspId(1), LspId(2)],
            },
            Message::LspUnknown {
                ids: vec![LspId(1)],
            },
            Message::LspTeardown { id: LspId(4) },
            Message::LspNotice {
                id: LspId(4),
                sealed: [7; NOTICE_LEN],
            },
            Message::LabelUnknown { label: Label(16) },
        ]
    }

    #[test]
    fn messages_survive() {
        for message in samples() {
            assert_eq!(Message::decode(&message.encode()).unwrap(), message);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..300), kind in 0_u8..14) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            if let Ok(message) = Message::decode(&bytes) {
                prop_assert_eq!(message.encode(), bytes);
            }
        }

        #[test]
        fn mutations_are_handled(which in 0_usize..16, at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let mut bytes = samples()[which].encode();
            let i = at.index(bytes.len());
            bytes[i] = value;
            let _ = Message::decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = Message::decode(&bytes);
        }
    }
}
