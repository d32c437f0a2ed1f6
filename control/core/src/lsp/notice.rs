//! What a hop tells the source of an LSP, sealed under the key only the two of them have.
//!
//! ```text
//! 0..8     nonce (random)
//! 8..48    AEAD of: kind u8, mode u8, mtu u16, label u32, counter u64, why u8, zero 23
//! 48..64   AEAD tag
//! ```

use weft_abi::Label;

use super::onion::HopKey;
use crate::{
    io::ForwardMode,
    message::NOTICE_LEN,
    noise,
    wire::{Reader, WireError, Writer},
};

const PLAIN: usize = NOTICE_LEN - 8 - noise::TAG_LEN;

/// What a hop has to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// A packet's TTL ran out here.
    TtlExpired {
        label: Label,
        counter: u64,
        mode: ForwardMode,
    },
    /// A packet did not fit the next link.
    TooBig { counter: u64, payload_mtu: u16 },
    /// The link to the next hop does not carry any more, or the next hop forgot the LSP.
    Broken,
    /// The next hop does not know the LSP any more (it restarted); the link to it works.
    Forgotten,
    /// The egress has no session for this LSP (any more).
    NoSession,
    /// The set-up was refused here.
    Refused,
}

impl Notice {
    pub(crate) fn seal(&self, key: &HopKey, nonce: u64) -> [u8; NOTICE_LEN] {
        let mut w = Writer::with_capacity(PLAIN);
        match *self {
            Self::TtlExpired {
                label,
                counter,
                mode,
            } => {
                let mode = match mode {
                    ForwardMode::KernelNative => 1,
                    ForwardMode::KernelGeneric => 2,
                    ForwardMode::UserSpace => 3,
                };
                w.u8(1).u8(mode).u16(0).u32(label.0).u64(counter);
            }
            Self::TooBig {
                counter,
                payload_mtu,
            } => {
                w.u8(2).u8(0).u16(payload_mtu).u32(0).u64(counter);
            }
            Self::Broken => {
                w.u8(3);
            }
            Self::NoSession => {
                w.u8(4);
            }
            Self::Refused => {
                w.u8(5);
            }
            Self::Forgotten => {
                w.u8(6);
            }
        }
        let mut plain = w.finish();
        plain.resize(PLAIN, 0);
        noise::seal(key, nonce, &[], &mut plain);
        let mut sealed = [0; NOTICE_LEN];
        sealed[..8].copy_from_slice(&nonce.to_be_bytes());
        sealed[8..].copy_from_slice(&plain);
        sealed
    }

    /// Which of the hops sealed it, counted from 0, and what it says.
    pub(crate) fn open(keys: &[HopKey], sealed: &[u8; NOTICE_LEN]) -> Option<(usize, Self)> {
        let mut nonce = [0; 8];
        nonce.copy_from_slice(&sealed[..8]);
        let nonce = u64::from_be_bytes(nonce);
        keys.iter().enumerate().find_map(|(hop, key)| {
            let plain = noise::open(key, nonce, &[], &sealed[8..])?;
            Some((hop, Self::decode(&plain).ok()?))
        })
    }

    fn decode(plain: &[u8]) -> Result<Self, WireError> {
        let mut r = Reader::new(plain);
        let (kind, mode, mtu, label, counter) = (r.u8()?, r.u8()?, r.u16()?, r.u32()?, r.u64()?);
        Ok(match kind {
            1 => {
                let mode = match mode {
                    1 => ForwardMode::KernelNative,
                    2 => ForwardMode::KernelGeneric,
                    3 => ForwardMode::UserSpace,
                    value => {
                        return Err(WireError::Value {
                            field: "mode",
                            value: value.into(),
                        });
                    }
                };
                Self::TtlExpired {
                    label: Label(label & 0xf_ffff),
                    counter,
                    mode,
                }
            }
            2 => Self::TooBig {
                counter,
                payload_mtu: mtu,
            },
            3 => Self::Broken,
            4 => Self::NoSession,
            5 => Self::Refused,
            6 => Self::Forgotten,
            value => {
                return Err(WireError::Value {
                    field: "notice",
                    value: value.into(),
                });
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeroize::Zeroizing;

    use super::*;

    proptest! {
        #[test]
        fn any_notice_is_handled(plain in proptest::collection::vec(any::<u8>(), 0..60), kind in 0_u8..8, sealed: [u8; 32]) {
            let mut plain = plain;
            if let Some(first) = plain.first_mut() {
                *first = kind;
            }
            let _ = Notice::decode(&plain);
            let mut bytes = [0; NOTICE_LEN];
            bytes[..32].copy_from_slice(&sealed);
            prop_assert_eq!(Notice::open(&[Zeroizing::new([1; 32])], &bytes), None);
        }
    }

    #[test]
    fn a_notice_tells_who_sealed_it_and_nobody_else_can() {
        let keys: Vec<HopKey> = (1..=3).map(|i| Zeroizing::new([i; 32])).collect();
        let notices = [
            Notice::TtlExpired {
                label: Label(77),
                counter: 5,
                mode: ForwardMode::KernelGeneric,
            },
            Notice::TooBig {
                counter: 5,
                payload_mtu: 1400,
            },
            Notice::Broken,
            Notice::NoSession,
            Notice::Refused,
            Notice::Forgotten,
        ];
        for notice in notices {
            let sealed = notice.seal(&keys[1], 42);
            assert_eq!(Notice::open(&keys, &sealed), Some((1, notice)));
            // The first hop changes it on its way up, or tries to speak for the second with its own key.
            let mut forged = sealed;
            forged[9] ^= 1;
            assert_eq!(Notice::open(&keys, &forged), None);
            assert_eq!(
                Notice::open(&keys, &notice.seal(&keys[0], 42)),
                Some((0, notice))
            );
            assert_eq!(
                Notice::open(&keys, &notice.seal(&Zeroizing::new([9; 32]), 42)),
                None
            );
        }
    }
}
