//! The link handshake's messages: their layout in a datagram of kind 2, their payloads, the keys that come of them.
//!
//! ```text
//! 0..16    link header: slot 0, sequence 0, tag under the network's key
//! 16       1 first, 2 second, 3 third message of XXpsk0, 4 cookie
//! 17..20   zero
//! 20..24   the sender's index of this handshake
//! 24..28   the receiver's, 0 in a first message
//! 28..44   first message: MAC under a cookie, or zero
//! then     the Noise message, padded inside so that neither name nor role shows in the length
//! ```
//! Bytes 16 on travel alike in a datagram, in link control (rekey) and routed over the mesh (one-way links). A first
//! message is longer than any answer to it.

use bytes::Bytes;
use weft_abi::{Kind, Slot, TagKey};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{
    identity::{NodeId, derive},
    topology::lsa::LinkId,
    wire::{Reader, WireError, Writer},
};

/// Bytes of a first message's Noise part: ephemeral key, payload, tag.
const FIRST_NOISE: usize = 32 + FIRST_PAYLOAD + 16;
const FIRST_PAYLOAD: usize = 320;
const INFO_PAYLOAD: usize = 160;
/// Longest name carried.
pub(crate) const MAX_NAME: usize = 63;
const MAX_NOISE: usize = 512;

/// What a handshake datagram says, without its link header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum HandshakeMessage {
    First {
        sender: u32,
        mac: [u8; 16],
        noise: Vec<u8>,
    },
    Second {
        sender: u32,
        receiver: u32,
        noise: Vec<u8>,
    },
    Third {
        sender: u32,
        receiver: u32,
        noise: Vec<u8>,
    },
    Cookie {
        receiver: u32,
        nonce: u64,
        sealed: [u8; 32],
    },
}

impl HandshakeMessage {
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(bytes);
        let kind = reader.u8()?;
        let zero = reader.array::<3>()?;
        if zero != [0; 3] {
            return Err(WireError::Value {
                field: "reserved bytes",
                value: 1,
            });
        }
        let (sender, receiver) = (reader.u32()?, reader.u32()?);
        let noise = |mut reader: Reader<'_>| {
            let left = reader.left();
            if left > MAX_NOISE {
                return Err(WireError::TooLong {
                    field: "handshake message",
                    value: left,
                    max: MAX_NOISE,
                });
            }
            Ok(reader.rest().to_vec())
        };
        match kind {
            1 => {
                let mac = reader.array()?;
                if reader.left() != FIRST_NOISE {
                    return Err(WireError::Value {
                        field: "first message's length",
                        value: reader.left() as u64,
                    });
                }
                Ok(Self::First {
                    sender,
                    mac,
                    noise: noise(reader)?,
                })
            }
            2 => Ok(Self::Second {
                sender,
                receiver,
                noise: noise(reader)?,
            }),
            3 => Ok(Self::Third {
                sender,
                receiver,
                noise: noise(reader)?,
            }),
            4 => {
                let cookie = Self::Cookie {
                    receiver,
                    nonce: reader.u64()?,
                    sealed: reader.array()?,
                };
                reader.finish()?;
                Ok(cookie)
            }
            value => Err(WireError::Value {
                field: "handshake message",
                value: value.into(),
            }),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(512);
        match self {
            Self::First { sender, mac, noise } => {
                writer
                    .bytes(&[1, 0, 0, 0])
                    .u32(*sender)
                    .u32(0)
                    .bytes(mac)
                    .bytes(noise);
            }
            Self::Second {
                sender,
                receiver,
                noise,
            } => {
                writer
                    .bytes(&[2, 0, 0, 0])
                    .u32(*sender)
                    .u32(*receiver)
                    .bytes(noise);
            }
            Self::Third {
                sender,
                receiver,
                noise,
            } => {
                writer
                    .bytes(&[3, 0, 0, 0])
                    .u32(*sender)
                    .u32(*receiver)
                    .bytes(noise);
            }
            Self::Cookie {
                receiver,
                nonce,
                sealed,
            } => {
                writer
                    .bytes(&[4, 0, 0, 0])
                    .u32(0)
                    .u32(*receiver)
                    .u64(*nonce)
                    .bytes(sealed);
            }
        }
        writer.finish()
    }

    /// The whole datagram of kind 2.
    pub(crate) fn datagram(&self, key: &TagKey) -> Bytes {
        let body = self.encode();
        let mut datagram = Vec::with_capacity(weft_abi::LINK_LEN + body.len());
        datagram
            .extend_from_slice(&weft_abi::link_word(Kind::Handshake, 0, Slot(0), 0).to_le_bytes());
        datagram.extend_from_slice(&[0; 8]);
        datagram.extend_from_slice(&body);
        let tag = datagram
            .first_chunk::<{ weft_abi::FIXED_LEN }>()
            .map(|fixed| {
                weft_abi::Fixed::read(fixed)
                    .expected_tag(key.words(), datagram.len() as u32)
                    .to_le_bytes()
            });
        if let Some(tag) = tag {
            datagram[weft_abi::TAG_OFFSET..weft_abi::LINK_LEN].copy_from_slice(&tag);
        }
        datagram.into()
    }
}

/// What the first message says under the pre-shared key: where an answer may be routed to when the direct way back
/// does not work. Unproven until the third message.
pub(crate) fn first_payload(claimed: &NodeId) -> Vec<u8> {
    let mut payload = claimed.0.to_vec();
    payload.resize(FIRST_PAYLOAD, 0);
    payload
}

pub(crate) fn claimed_node(payload: &[u8]) -> Option<NodeId> {
    payload.first_chunk().map(|id| NodeId(*id))
}

/// What the two sides tell each other of themselves, encrypted to each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Info {
    pub(crate) node: NodeId,
    /// The sender's name of the directed link it will send on.
    pub(crate) link: LinkId,
    /// Where the sender wants to be sent to.
    pub(crate) slot: Slot,
    /// MTU of the sender's path, bytes of IP packet.
    pub(crate) mtu: u16,
    pub(crate) name: String,
}

impl Info {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut writer = Writer::with_capacity(INFO_PAYLOAD);
        writer
            .node_id(&self.node)
            .u32(self.link.0)
            .u16(self.slot.0)
            .u16(self.mtu)
            .text(&self.name);
        let mut payload = writer.finish();
        payload.resize(INFO_PAYLOAD, 0);
        payload
    }

    pub(crate) fn decode(payload: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(payload);
        let info = Self {
            node: reader.node_id()?,
            link: LinkId(reader.u32()?),
            slot: Slot(reader.u16()?),
            mtu: reader.u16()?,
            name: crate::topology::lsa::checked_name(reader.text("name", MAX_NAME)?, true)
                .map_err(|_| WireError::Text("name"))?,
        };
        if info.slot.0 == 0 {
            return Err(WireError::Value {
                field: "slot",
                value: 0,
            });
        }
        Ok(info)
    }
}

/// Keys of one epoch of a link. Wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct LinkKeys {
    pub(crate) tx_tag: [u8; 16],
    pub(crate) rx_tag: [u8; 16],
    pub(crate) tx_control: [u8; 32],
    pub(crate) rx_control: [u8; 32],
}

impl LinkKeys {
    /// From the split of a finished handshake, as initiator or responder.
    pub(crate) fn new(split: &(Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>), initiator: bool) -> Self {
        let (tx, rx) = if initiator {
            (&split.0, &split.1)
        } else {
            (&split.1, &split.0)
        };
        let tag = |key: &[u8; 32]| {
            let hash = Zeroizing::new(derive(key, "weft link tag", &[]));
            let mut tag = [0; 16];
            tag.copy_from_slice(&hash[..16]);
            tag
        };
        Self {
            tx_tag: tag(tx),
            rx_tag: tag(rx),
            tx_control: derive(tx, "weft link control", &[]),
            rx_control: derive(rx, "weft link control", &[]),
        }
    }
}

impl std::fmt::Debug for LinkKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LinkKeys(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> Vec<HandshakeMessage> {
        vec![
            HandshakeMessage::First {
                sender: 1,
                mac: [2; 16],
                noise: vec![3; FIRST_NOISE],
            },
            HandshakeMessage::Second {
                sender: 1,
                receiver: 2,
                noise: vec![3; 256],
            },
            HandshakeMessage::Third {
                sender: 1,
                receiver: 2,
                noise: vec![3; 224],
            },
            HandshakeMessage::Cookie {
                receiver: 2,
                nonce: 3,
                sealed: [4; 32],
            },
        ]
    }

    #[test]
    fn messages_survive() {
        for message in messages() {
            assert_eq!(
                HandshakeMessage::decode(&message.encode()).unwrap(),
                message
            );
        }
    }

    #[test]
    fn info_survives_and_hides_the_name_length() {
        let info = Info {
            node: NodeId([1; 32]),
            link: LinkId(7),
            slot: Slot(3),
            mtu: 1500,
            name: "gw".into(),
        };
        assert_eq!(Info::decode(&info.encode()).unwrap(), info);
        let longer = Info {
            name: "x".repeat(MAX_NAME),
            ..info
        };
        assert_eq!(longer.encode().len(), INFO_PAYLOAD);
        assert_eq!(Info::decode(&longer.encode()).unwrap(), longer);
    }

    #[test]
    fn no_answer_is_longer_than_a_first_message() {
        let first = HandshakeMessage::First {
            sender: 1,
            mac: [0; 16],
            noise: vec![0; FIRST_NOISE],
        }
        .encode()
        .len();
        let second = 12 + 32 + 48 + INFO_PAYLOAD + 16;
        assert!(second < first);
        assert!(
            HandshakeMessage::Cookie {
                receiver: 0,
                nonce: 0,
                sealed: [0; 32]
            }
            .encode()
            .len()
                < first
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_handled(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(message) = HandshakeMessage::decode(&bytes) {
                prop_assert_eq!(HandshakeMessage::decode(&message.encode()).unwrap(), message);
            }
            let _ = Info::decode(&bytes);
        }

        #[test]
        fn mutations_are_handled(which in 0_usize..4, at: prop::sample::Index, bit in 0_u8..8, cut: prop::sample::Index) {
            let mut bytes = messages()[which].encode();
            let i = at.index(bytes.len());
            bytes[i] ^= 1 << bit;
            let _ = HandshakeMessage::decode(&bytes);
            bytes.truncate(cut.index(bytes.len()));
            let _ = HandshakeMessage::decode(&bytes);
        }
    }
}
