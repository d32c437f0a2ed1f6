//! Noise (snow) and the AEAD of control messages, with injected randomness.
//!
//! snow asks a resolver for its generator: it gets one seeded from the node's own randomness, so that a simulation
//! replays exactly. Diffie-Hellman and hash are snow's own, the cipher is ring's.

use blake2::{
    Blake2sMac256,
    digest::{FixedOutput as _, KeyInit as _, Update as _},
};
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use snow::{
    Builder, HandshakeState,
    params::{CipherChoice, DHChoice, HashChoice, NoiseParams},
    resolvers::{CryptoResolver, DefaultResolver, RingResolver},
    types::{Cipher, Dh, Hash, Random},
};
use zeroize::{Zeroize as _, Zeroizing};

use crate::{identity::Identity, io::Randomness};

/// Bytes an AEAD adds.
pub(crate) const TAG_LEN: usize = 16;

/// The handshakes Weft uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Between neighbours; the pre-shared key is the network's.
    Link,
    /// Between the ends of a session.
    Session,
    /// One layer of an LSP set-up, to one hop.
    Onion,
}

impl Pattern {
    const fn name(self) -> &'static str {
        match self {
            Self::Link => "Noise_XXpsk0_25519_ChaChaPoly_BLAKE2s",
            Self::Session => "Noise_IK_25519_ChaChaPoly_BLAKE2s",
            Self::Onion => "Noise_N_25519_ChaChaPoly_BLAKE2s",
        }
    }
}

/// A handshake failed: the message is not of this network, not for this node, forged or damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the Noise handshake failed: not of this network, not for this node, or damaged")]
pub(crate) struct NoiseFailed;

impl From<snow::Error> for NoiseFailed {
    fn from(_: snow::Error) -> Self {
        Self
    }
}

/// What a handshake starts from.
pub(crate) struct Setup<'a> {
    pub(crate) pattern: Pattern,
    pub(crate) prologue: &'a [u8],
    /// None where the own side has no static key (the sender of an onion layer).
    pub(crate) identity: Option<&'a Identity>,
    pub(crate) remote: Option<&'a [u8; 32]>,
    pub(crate) psk: Option<&'a [u8; 32]>,
}

impl Setup<'_> {
    pub(crate) fn initiator(self, rng: &mut dyn Randomness) -> Result<HandshakeState, NoiseFailed> {
        self.build(rng, true)
    }

    pub(crate) fn responder(self, rng: &mut dyn Randomness) -> Result<HandshakeState, NoiseFailed> {
        self.build(rng, false)
    }

    /// A responder whose every step follows from the seed: to take the same steps again after a failed read.
    pub(crate) fn responder_from(
        self,
        seed: &Zeroizing<[u8; 32]>,
    ) -> Result<HandshakeState, NoiseFailed> {
        self.build_from(seed.clone(), false)
    }

    fn build(
        self,
        rng: &mut dyn Randomness,
        initiator: bool,
    ) -> Result<HandshakeState, NoiseFailed> {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill(&mut *seed);
        self.build_from(seed, initiator)
    }

    fn build_from(
        self,
        seed: Zeroizing<[u8; 32]>,
        initiator: bool,
    ) -> Result<HandshakeState, NoiseFailed> {
        let params: NoiseParams = self.pattern.name().parse()?;
        let mut builder =
            Builder::with_resolver(params, Box::new(Resolver { seed })).prologue(self.prologue)?;
        if let Some(identity) = self.identity {
            builder = builder.local_private_key(identity.x25519_secret())?;
        }
        if let Some(remote) = self.remote {
            builder = builder.remote_public_key(remote)?;
        }
        if let Some(psk) = self.psk {
            builder = builder.psk(0, psk)?;
        }
        Ok(if initiator {
            builder.build_initiator()?
        } else {
            builder.build_responder()?
        })
    }
}

/// Writes the handshake's next message.
pub(crate) fn write(state: &mut HandshakeState, payload: &[u8]) -> Result<Vec<u8>, NoiseFailed> {
    // Two keys with a tag each and the payload's tag is the most any of the patterns adds.
    let mut message = vec![0; payload.len() + 2 * (32 + TAG_LEN) + TAG_LEN];
    let len = state.write_message(payload, &mut message)?;
    message.truncate(len);
    Ok(message)
}

/// Reads the handshake's next message and returns its payload.
pub(crate) fn read(state: &mut HandshakeState, message: &[u8]) -> Result<Vec<u8>, NoiseFailed> {
    let mut payload = vec![0; message.len()];
    let len = state.read_message(message, &mut payload)?;
    payload.truncate(len);
    Ok(payload)
}

/// The two keys of a finished handshake: initiator to responder, responder to initiator.
pub(crate) fn split(state: &mut HandshakeState) -> (Zeroizing<[u8; 32]>, Zeroizing<[u8; 32]>) {
    let (mut forth, mut back) = state.dangerously_get_raw_split();
    let keys = (Zeroizing::new(forth), Zeroizing::new(back));
    forth.zeroize();
    back.zeroize();
    keys
}

/// Encrypts in place with ChaCha20-Poly1305 and appends the tag. A counter must never be used twice under a key.
pub(crate) fn seal(key: &[u8; 32], counter: u64, aad: &[u8], data: &mut Vec<u8>) {
    let key = LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20 key has 32 bytes"),
    );
    key.seal_in_place_append_tag(nonce(counter), Aad::from(aad), data)
        .expect("messages are far below 2^38 bytes");
}

/// Decrypts what [`seal`] made.
pub(crate) fn open(key: &[u8; 32], counter: u64, aad: &[u8], data: &[u8]) -> Option<Vec<u8>> {
    let key = LessSafeKey::new(UnboundKey::new(&CHACHA20_POLY1305, key).ok()?);
    let mut buffer = data.to_vec();
    let len = key
        .open_in_place(nonce(counter), Aad::from(aad), &mut buffer)
        .ok()?
        .len();
    buffer.truncate(len);
    Some(buffer)
}

/// Applies the ChaCha20 key stream of a one-time key, without authentication: its own inverse.
pub(crate) fn mask(key: &[u8; 32], data: &mut [u8]) {
    let key = LessSafeKey::new(
        UnboundKey::new(&CHACHA20_POLY1305, key).expect("a ChaCha20 key has 32 bytes"),
    );
    let _tag = key
        .seal_in_place_separate_tag(nonce(0), Aad::empty(), data)
        .expect("messages are far below 2^38 bytes");
}

fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

struct Resolver {
    seed: Zeroizing<[u8; 32]>,
}

impl CryptoResolver for Resolver {
    fn resolve_rng(&self) -> Option<Box<dyn Random>> {
        Some(Box::new(Expander {
            seed: self.seed.clone(),
            blocks: 0,
        }))
    }

    fn resolve_dh(&self, choice: &DHChoice) -> Option<Box<dyn Dh>> {
        DefaultResolver.resolve_dh(choice)
    }

    fn resolve_hash(&self, choice: &HashChoice) -> Option<Box<dyn Hash>> {
        DefaultResolver.resolve_hash(choice)
    }

    fn resolve_cipher(&self, choice: &CipherChoice) -> Option<Box<dyn Cipher>> {
        RingResolver.resolve_cipher(choice)
    }
}

/// Keyed BLAKE2s of a block counter.
struct Expander {
    seed: Zeroizing<[u8; 32]>,
    blocks: u64,
}

impl Random for Expander {
    fn try_fill_bytes(&mut self, dest: &mut [u8]) -> Result<(), snow::Error> {
        for chunk in dest.chunks_mut(32) {
            let mut mac = Blake2sMac256::new((&*self.seed).into());
            mac.update(&self.blocks.to_be_bytes());
            self.blocks += 1;
            let mut block: [u8; 32] = mac.finalize_fixed().into();
            chunk.copy_from_slice(&block[..chunk.len()]);
            block.zeroize();
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod test_rng {
    use crate::io::Randomness;

    /// Deterministic: BLAKE2s of seed and counter.
    pub(crate) struct Seeded(pub(crate) u64, pub(crate) u64);

    impl Randomness for Seeded {
        fn fill(&mut self, out: &mut [u8]) {
            for chunk in out.chunks_mut(32) {
                self.1 += 1;
                let block = crate::identity::derive(
                    &[7; 32],
                    "test",
                    &[&self.0.to_be_bytes(), &self.1.to_be_bytes()],
                );
                chunk.copy_from_slice(&block[..chunk.len()]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{test_rng::Seeded, *};

    #[test]
    fn randomness_is_injected() {
        let first = |seed| {
            let setup = Setup {
                pattern: Pattern::Link,
                prologue: b"",
                identity: Some(&Identity::from_secret(&[1; 32])),
                remote: None,
                psk: Some(&[3; 32]),
            };
            write(&mut setup.initiator(&mut Seeded(seed, 0)).unwrap(), b"x").unwrap()
        };
        assert_eq!(first(1), first(1));
        assert_ne!(first(1), first(2));
    }

    #[test]
    fn mask_is_its_own_inverse() {
        let mut data = *b"some bytes of a layer";
        mask(&[5; 32], &mut data);
        assert_ne!(&data, b"some bytes of a layer");
        mask(&[5; 32], &mut data);
        assert_eq!(&data, b"some bytes of a layer");
    }

    #[test]
    fn sealed_data_opens_only_as_it_is() {
        let mut data = b"hello".to_vec();
        seal(&[1; 32], 7, b"a", &mut data);
        assert_eq!(open(&[1; 32], 7, b"a", &data).unwrap(), b"hello");
        assert!(open(&[1; 32], 8, b"a", &data).is_none());
        assert!(open(&[1; 32], 7, b"b", &data).is_none());
        data[0] ^= 1;
        assert!(open(&[1; 32], 7, b"a", &data).is_none());
    }
}
