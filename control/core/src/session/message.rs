//! Messages inside a session, and what the innermost layer of an LSP set-up says.

use weft_abi::Label;

use crate::{
    io::ForwardMode,
    wire::{Reader, WireError, Writer},
};

/// Longest handshake message inside a session.
const MAX_NOISE: usize = 256;
/// Length of a purpose: type, length, message 1 (two keys, two tags, 42 bytes of payload).
const ROOM: usize = 3 + 32 + 48 + 42 + 16;

/// A message of the session itself; the first byte's upper nibble is 0, which no IP packet begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SessionMessage {
    /// The sender has the keys of the epoch this comes under. Answered by `Ack`. Also the keep-alive.
    Confirm,
    Ack,
    Ping {
        id: u64,
        padding: u16,
    },
    Pong {
        id: u64,
    },
    /// To be answered by the egress; hops on the way answer with notices when its TTL runs out.
    Trace {
        id: u64,
    },
    TraceReply {
        id: u64,
        label: Label,
        mode: ForwardMode,
    },
    RekeyFirst {
        noise: Vec<u8>,
    },
    RekeySecond {
        noise: Vec<u8>,
    },
    Close,
}

impl SessionMessage {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Confirm => w.u8(1),
            Self::Ack => w.u8(2),
            Self::Ping { id, padding } => w.u8(3).u64(*id).bytes(&vec![0; usize::from(*padding)]),
            Self::Pong { id } => w.u8(4).u64(*id),
            Self::Trace { id } => w.u8(5).u64(*id),
            Self::TraceReply { id, label, mode } => w.u8(6).u64(*id).u32(label.0).u8(match mode {
                ForwardMode::KernelNative => 1,
                ForwardMode::KernelGeneric => 2,
                ForwardMode::UserSpace => 3,
            }),
            Self::RekeyFirst { noise } => w.u8(7).var_bytes(noise),
            Self::RekeySecond { noise } => w.u8(8).var_bytes(noise),
            Self::Close => w.u8(9),
        };
        w.finish()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        let message = match r.u8()? {
            1 => Self::Confirm,
            2 => Self::Ack,
            3 => {
                let id = r.u64()?;
                let padding = r.rest().len();
                let padding = u16::try_from(padding).map_err(|_| WireError::TooLong {
                    field: "padding",
                    value: padding,
                    max: usize::from(u16::MAX),
                })?;
                Self::Ping { id, padding }
            }
            4 => Self::Pong { id: r.u64()? },
            5 => Self::Trace { id: r.u64()? },
            6 => Self::TraceReply {
                id: r.u64()?,
                label: Label(r.u32()? & 0xf_ffff),
                mode: match r.u8()? {
                    1 => ForwardMode::KernelNative,
                    2 => ForwardMode::KernelGeneric,
                    3 => ForwardMode::UserSpace,
                    value => {
                        return Err(WireError::Value {
                            field: "mode",
                            value: value.into(),
                        });
                    }
                },
            },
            7 => Self::RekeyFirst {
                noise: r.var_bytes("handshake", MAX_NOISE)?.to_vec(),
            },
            8 => Self::RekeySecond {
                noise: r.var_bytes("handshake", MAX_NOISE)?.to_vec(),
            },
            9 => Self::Close,
            value => {
                return Err(WireError::Value {
                    field: "session message",
                    value: value.into(),
                });
            }
        };
        r.finish()?;
        Ok(message)
    }
}

/// What the source of an LSP asks of its egress.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A new session: message 1.
    Open { noise: Vec<u8> },
    /// Another LSP of the session the egress calls `session`.
    Attach {
        session: u64,
        nonce: [u8; 16],
        mac: [u8; 16],
    },
}

impl Purpose {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        match self {
            Self::Open { noise } => w.u8(1).var_bytes(noise),
            Self::Attach {
                session,
                nonce,
                mac,
            } => w.u8(2).u64(*session).bytes(nonce).bytes(mac),
        };
        // One length for both: neither says whether the session is new.
        let mut bytes = w.finish();
        bytes.resize(bytes.len().max(ROOM), 0);
        bytes
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(bytes);
        match r.u8()? {
            1 => Ok(Self::Open {
                noise: r.var_bytes("handshake", MAX_NOISE)?.to_vec(),
            }),
            2 => Ok(Self::Attach {
                session: r.u64()?,
                nonce: r.array()?,
                mac: r.array()?,
            }),
            value => Err(WireError::Value {
                field: "purpose",
                value: value.into(),
            }),
        }
    }
}

/// Length of an egress's reply, whatever it says: nobody on the way sees whether a session is new.
const REPLY_LEN: usize = 64;

/// Brings an egress's reply to its one length.
pub(crate) fn pad_reply(mut reply: Vec<u8>) -> Vec<u8> {
    debug_assert!(
        reply.len() < REPLY_LEN,
        "message 2 has 59 bytes, an attachment's reply 16"
    );
    reply.insert(0, reply.len() as u8);
    reply.resize(REPLY_LEN, 0);
    reply
}

/// What was padded.
pub(crate) fn unpad_reply(reply: &[u8]) -> Option<&[u8]> {
    let (len, rest) = reply.split_first()?;
    rest.get(..usize::from(*len))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn samples() -> Vec<SessionMessage> {
        vec![
            SessionMessage::Confirm,
            SessionMessage::Ack,
            SessionMessage::Ping { id: 1, padding: 56 },
            SessionMessage::Pong { id: 1 },
            SessionMessage::Trace { id: 1 },
            SessionMessage::TraceReply {
                id: 1,
                label: Label(17),
                mode: ForwardMode::UserSpace,
            },
            SessionMessage::RekeyFirst {
                noise: vec![1; 140],
            },
            SessionMessage::RekeySecond { noise: vec![1; 60] },
            SessionMessage::Close,
        ]
    }

    #[test]
    fn messages_survive_and_are_no_ip_packets() {
        for message in samples() {
            let bytes = message.encode();
            assert_eq!(bytes[0] >> 4, 0);
            assert_eq!(SessionMessage::decode(&bytes).unwrap(), message);
        }
    }

    #[test]
    fn replies_look_alike() {
        let (short, long) = (vec![1; 16], vec![2; 59]);
        assert_eq!(
            pad_reply(short.clone()).len(),
            pad_reply(long.clone()).len()
        );
        assert_eq!(unpad_reply(&pad_reply(short.clone())), Some(&short[..]));
        assert_eq!(unpad_reply(&pad_reply(long.clone())), Some(&long[..]));
        assert_eq!(unpad_reply(&[]), None);
        assert_eq!(unpad_reply(&[3, 1]), None);
    }

    #[test]
    fn purposes_survive_and_look_alike() {
        let open = Purpose::Open {
            noise: vec![5; 32 + 48 + 42 + 16],
        };
        let attach = Purpose::Attach {
            session: 1,
            nonce: [2; 16],
            mac: [3; 16],
        };
        assert_eq!(open.encode().len(), attach.encode().len());
        assert_eq!(Purpose::decode(&open.encode()).unwrap(), open);
        assert_eq!(Purpose::decode(&attach.encode()).unwrap(), attach);
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(mut bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0_u8..11) {
            if let Some(first) = bytes.first_mut() { *first = kind; }
            let _ = SessionMessage::decode(&bytes);
            let _ = Purpose::decode(&bytes);
        }

        #[test]
        fn mutations_are_handled(which in 0_usize..9, at: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let mut bytes = samples()[which].encode();
            let i = at.index(bytes.len());
            bytes[i] = value;
            let _ = SessionMessage::decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = SessionMessage::decode(&bytes);
        }
    }
}
