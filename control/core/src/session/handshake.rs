//! The session handshake's payloads, the choice of cipher, and the keys that come of it.

use snow::HandshakeState;
use zeroize::Zeroizing;

use super::{Cipher, SessionKeys};
use crate::{
    identity::{NetworkId, NodeId, derive},
    io::Randomness,
    node::Config,
    noise::{self, NoiseFailed, Pattern, Setup},
    wire::{Reader, WireError, Writer},
};

const AES: u8 = 1;

/// Why a session handshake came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SessionRefused {
    #[error("the session handshake failed")]
    Noise,
    #[error("the session handshake's payload is malformed")]
    Malformed,
    #[error("the node id does not belong to the key it came with")]
    Identity,
    #[error("the cipher is not the one both sides' abilities call for")]
    Cipher,
}

impl From<NoiseFailed> for SessionRefused {
    fn from(_: NoiseFailed) -> Self {
        Self::Noise
    }
}

impl From<WireError> for SessionRefused {
    fn from(_: WireError) -> Self {
        Self::Malformed
    }
}

/// What a finished handshake gives.
pub(crate) struct Agreed {
    /// The peer's name for the session.
    pub(crate) peer_session: u64,
    pub(crate) epoch: u8,
    pub(crate) keys: SessionKeys,
    /// Authenticates further LSPs of this session.
    pub(crate) attach: Zeroizing<[u8; 32]>,
}

fn prologue(network: &NetworkId) -> Vec<u8> {
    [&b"weft session 1"[..], &network.0].concat()
}

fn abilities(config: &Config) -> u8 {
    if config.hardware_aes { AES } else { 0 }
}

fn choose(ours: u8, theirs: u8) -> (u8, Cipher) {
    if ours & theirs & AES != 0 {
        (2, Cipher::Aes256Gcm)
    } else {
        (1, Cipher::ChaCha20Poly1305)
    }
}

/// Message 1: who, the initiator's name for the session, what it can, the epoch it suggests.
pub(crate) fn first(
    config: &Config,
    rng: &mut dyn Randomness,
    peer: &NodeId,
    own_session: u64,
    epoch: u8,
) -> Result<(Box<HandshakeState>, Vec<u8>), SessionRefused> {
    let prologue = prologue(&config.network.network_id());
    let remote = peer.x25519().ok_or(SessionRefused::Identity)?;
    let setup = Setup {
        pattern: Pattern::Session,
        prologue: &prologue,
        identity: Some(&config.identity),
        remote: Some(&remote),
        psk: None,
    };
    let mut state = setup.initiator(rng)?;
    let mut writer = Writer::new();
    writer
        .node_id(&config.identity.id())
        .u64(own_session)
        .u8(abilities(config))
        .u8(epoch);
    let message = noise::write(&mut state, writer.as_slice())?;
    Ok((Box::new(state), message))
}

/// What message 1 says, before it is answered.
pub(crate) struct Offer {
    state: HandshakeState,
    pub(crate) peer: NodeId,
    pub(crate) peer_session: u64,
    abilities: u8,
    pub(crate) epoch: u8,
}

pub(crate) fn read_first(
    config: &Config,
    rng: &mut dyn Randomness,
    message: &[u8],
) -> Result<Offer, SessionRefused> {
    let prologue = prologue(&config.network.network_id());
    let setup = Setup {
        pattern: Pattern::Session,
        prologue: &prologue,
        identity: Some(&config.identity),
        remote: None,
        psk: None,
    };
    let mut state = setup.responder(rng)?;
    let payload = noise::read(&mut state, message)?;
    let mut reader = Reader::new(&payload);
    let (peer, peer_session, abilities, epoch) =
        (reader.node_id()?, reader.u64()?, reader.u8()?, reader.u8()?);
    reader.finish()?;
    let proven = peer
        .x25519()
        .is_some_and(|key| state.get_remote_static() == Some(&key[..]));
    if !proven || peer == config.identity.id() {
        return Err(SessionRefused::Identity);
    }
    Ok(Offer {
        state,
        peer,
        peer_session,
        abilities,
        epoch,
    })
}

impl Offer {
    /// Message 2: the responder's name for the session, what it can, the cipher that follows, the epoch.
    pub(crate) fn answer(
        mut self,
        config: &Config,
        own_session: u64,
        epoch: u8,
    ) -> Result<(Agreed, Vec<u8>), SessionRefused> {
        let (code, cipher) = choose(abilities(config), self.abilities);
        let mut writer = Writer::new();
        writer
            .u64(own_session)
            .u8(abilities(config))
            .u8(code)
            .u8(epoch);
        let message = noise::write(&mut self.state, writer.as_slice())?;
        let agreed = agreed(&mut self.state, false, self.peer_session, epoch, cipher);
        Ok((agreed, message))
    }
}

pub(crate) fn read_second(
    config: &Config,
    mut state: Box<HandshakeState>,
    message: &[u8],
) -> Result<Agreed, SessionRefused> {
    let payload = noise::read(&mut state, message)?;
    let mut reader = Reader::new(&payload);
    let (peer_session, abilities_of_peer, code, epoch) =
        (reader.u64()?, reader.u8()?, reader.u8()?, reader.u8()?);
    reader.finish()?;
    let (expected, cipher) = choose(abilities(config), abilities_of_peer);
    if code != expected {
        return Err(SessionRefused::Cipher);
    }
    Ok(agreed(&mut state, true, peer_session, epoch, cipher))
}

fn agreed(
    state: &mut HandshakeState,
    initiator: bool,
    peer_session: u64,
    epoch: u8,
    cipher: Cipher,
) -> Agreed {
    let (forth, back) = noise::split(state);
    let attach = Zeroizing::new(derive(&forth, "weft session attach", &[&*back]));
    let data = |key: &[u8; 32]| derive(key, "weft session data", &[]);
    let (tx, rx) = if initiator {
        (data(&forth), data(&back))
    } else {
        (data(&back), data(&forth))
    };
    Agreed {
        peer_session,
        epoch,
        keys: SessionKeys { cipher, tx, rx },
        attach,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        identity::{Identity, NetworkSecret},
        noise::test_rng::Seeded,
    };

    fn config(i: u8, aes: bool) -> Config {
        let mut config = Config::new(
            Identity::from_secret(&[i; 32]),
            NetworkSecret::from_bytes([7; 32]),
        );
        config.hardware_aes = aes;
        config
    }

    fn shake(a: &Config, b: &Config) -> (Agreed, Agreed) {
        let mut rng = Seeded(3, 0);
        let (state, one) = first(a, &mut rng, &b.identity.id(), 11, 5).unwrap();
        let offer = read_first(b, &mut rng, &one).unwrap();
        assert_eq!(
            (offer.peer, offer.peer_session, offer.epoch),
            (a.identity.id(), 11, 5)
        );
        let (at_b, two) = offer.answer(b, 22, 6).unwrap();
        (read_second(a, state, &two).unwrap(), at_b)
    }

    #[test]
    fn both_ends_get_the_same_keys() {
        let (a, b) = shake(&config(1, true), &config(2, true));
        assert_eq!((a.keys.tx, a.keys.rx), (b.keys.rx, b.keys.tx));
        assert_ne!(a.keys.tx, a.keys.rx);
        assert_eq!(*a.attach, *b.attach);
        assert_eq!((a.epoch, a.peer_session, b.peer_session), (6, 22, 11));
    }

    #[test]
    fn the_cipher_follows_from_both_ends() {
        for (a, b, cipher) in [
            (true, true, Cipher::Aes256Gcm),
            (true, false, Cipher::ChaCha20Poly1305),
            (false, true, Cipher::ChaCha20Poly1305),
            (false, false, Cipher::ChaCha20Poly1305),
        ] {
            let (at_a, at_b) = shake(&config(1, a), &config(2, b));
            assert_eq!((at_a.keys.cipher, at_b.keys.cipher), (cipher, cipher));
        }
    }

    #[test]
    fn a_responder_that_lowers_the_cipher_is_refused() {
        let (a, b) = (config(1, true), config(2, true));
        let mut rng = Seeded(3, 0);
        let (state, one) = first(&a, &mut rng, &b.identity.id(), 11, 5).unwrap();
        let mut offer = read_first(&b, &mut rng, &one).unwrap();
        let mut writer = Writer::new();
        writer.u64(22).u8(AES).u8(1).u8(6);
        let two = noise::write(&mut offer.state, writer.as_slice()).unwrap();
        assert_eq!(
            read_second(&a, state, &two).err(),
            Some(SessionRefused::Cipher)
        );
    }

    #[test]
    fn tampering_and_borrowed_identities_are_refused() {
        let (a, b, c) = (config(1, true), config(2, true), config(3, true));
        let mut rng = Seeded(3, 0);
        let (_, mut one) = first(&a, &mut rng, &b.identity.id(), 11, 5).unwrap();
        assert_eq!(
            read_first(&c, &mut rng, &one).err(),
            Some(SessionRefused::Noise)
        );
        *one.last_mut().unwrap() ^= 1;
        assert_eq!(
            read_first(&b, &mut rng, &one).err(),
            Some(SessionRefused::Noise)
        );
        // C says it is A.
        let prologue = prologue(&b.network.network_id());
        let remote = b.identity.id().x25519().unwrap();
        let setup = Setup {
            pattern: Pattern::Session,
            prologue: &prologue,
            identity: Some(&c.identity),
            remote: Some(&remote),
            psk: None,
        };
        let mut writer = Writer::new();
        writer.node_id(&a.identity.id()).u64(1).u8(AES).u8(0);
        let one = noise::write(&mut setup.initiator(&mut rng).unwrap(), writer.as_slice()).unwrap();
        assert_eq!(
            read_first(&b, &mut rng, &one).err(),
            Some(SessionRefused::Identity)
        );
    }
}
