//! The sealed set-up message: one Noise N layer per hop.
//!
//! An onion has a fixed size whatever the length of the path, and keeps it at every hop: a hop opens its layer, removes
//! the key stream its layer's key makes from the rest, and appends as many random bytes as it took. It learns who
//! comes before it (from the link) and after it (from the layer), and neither how long the path is nor where on it.
//!
//! ```text
//! layer    ephemeral key 32 | AEAD of: kind u8, successor 32, lifetime s u16, payload length u16, zero 3 | tag 16
//! egress's the same, then the payload under a key of its own: ciphertext | tag 16, then random bytes
//! ```

use zeroize::Zeroizing;

use crate::{
    identity::{Identity, NetworkId, NodeId, derive},
    io::Randomness,
    message::MAX_ONION,
    noise::{self, NoiseFailed, Pattern, Setup, TAG_LEN},
    wire::{Reader, Writer},
};

const LAYER_PAYLOAD: usize = 40;
const LAYER: usize = 32 + LAYER_PAYLOAD + TAG_LEN;
/// Fits one control frame with ten hops.
const SMALL: usize = 1168;
const LARGE: usize = 2048;
/// Longest payload for the egress, bytes.
pub(crate) const MAX_PAYLOAD: usize = 256;
/// Most nodes after the source.
pub(crate) const MAX_HOPS: usize = 16;

const FORWARD: u8 = 1;
const EGRESS: u8 = 2;

/// Key a hop shares with the source, for notices.
pub(crate) type HopKey = Zeroizing<[u8; 32]>;

/// What a hop reads.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Peeled {
    /// Pass the rest on.
    Forward { successor: NodeId, onion: Vec<u8> },
    /// The path ends here.
    Egress { payload: Vec<u8> },
}

/// What a hop finds in its layer.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) key: HopKey,
    pub(crate) lifetime_s: u16,
    pub(crate) peeled: Peeled,
}

struct Keys {
    hop: HopKey,
    mask: Zeroizing<[u8; 32]>,
    payload: Zeroizing<[u8; 32]>,
}

impl Keys {
    fn new(split: &[u8; 32]) -> Self {
        let key = |label| Zeroizing::new(derive(split, label, &[]));
        Self {
            hop: key("weft hop notice"),
            mask: key("weft onion mask"),
            payload: key("weft onion payload"),
        }
    }
}

fn prologue(network: &NetworkId) -> Vec<u8> {
    [&b"weft onion 1"[..], &network.0].concat()
}

/// Seals a set-up along `hops` (the last is the egress). Returns the onion and each hop's key.
pub(crate) fn seal(
    rng: &mut dyn Randomness,
    network: &NetworkId,
    hops: &[NodeId],
    lifetime_s: u16,
    payload: &[u8],
) -> Result<(Vec<u8>, Vec<HopKey>), NoiseFailed> {
    let needed = hops.len() * LAYER + payload.len() + TAG_LEN;
    let size = if needed <= SMALL { SMALL } else { LARGE };
    if hops.is_empty() || hops.len() > MAX_HOPS || payload.len() > MAX_PAYLOAD || needed > size {
        return Err(NoiseFailed);
    }
    let prologue = prologue(network);
    let mut keys = Vec::with_capacity(hops.len());
    let mut onion: Vec<u8> = Vec::new();
    for (i, hop) in hops.iter().enumerate().rev() {
        let successor = hops.get(i + 1);
        let mut writer = Writer::with_capacity(LAYER_PAYLOAD);
        match successor {
            Some(next) => writer.u8(FORWARD).node_id(next).u16(lifetime_s).u16(0),
            None => writer
                .u8(EGRESS)
                .bytes(&[0; 32])
                .u16(lifetime_s)
                .u16(payload.len() as u16),
        };
        writer.bytes(&[0; 3]);
        let remote = hop.x25519().ok_or(NoiseFailed)?;
        let setup = Setup {
            pattern: Pattern::Onion,
            prologue: &prologue,
            identity: None,
            remote: Some(&remote),
            psk: None,
        };
        let mut state = setup.initiator(rng)?;
        let layer = noise::write(&mut state, writer.as_slice())?;
        let own = Keys::new(&noise::split(&mut state).0);
        let mut rest = onion;
        if successor.is_some() {
            rest.truncate(size - LAYER);
            noise::mask(&own.mask, &mut rest);
        } else {
            rest = payload.to_vec();
            noise::seal(&own.payload, 0, &[], &mut rest);
            let filled = rest.len();
            rest.resize(size - LAYER, 0);
            rng.fill(&mut rest[filled..]);
        }
        onion = [layer, rest].concat();
        keys.push(own.hop);
    }
    keys.reverse();
    Ok((onion, keys))
}

/// Opens this node's layer.
pub(crate) fn peel(
    rng: &mut dyn Randomness,
    network: &NetworkId,
    identity: &Identity,
    onion: &[u8],
) -> Result<Layer, NoiseFailed> {
    if onion.len() != SMALL && onion.len() != LARGE {
        return Err(NoiseFailed);
    }
    const { assert!(LARGE <= MAX_ONION) };
    let prologue = prologue(network);
    let setup = Setup {
        pattern: Pattern::Onion,
        prologue: &prologue,
        identity: Some(identity),
        remote: None,
        psk: None,
    };
    let mut state = setup.responder(rng)?;
    let (layer, rest) = onion.split_at(LAYER);
    let plain = noise::read(&mut state, layer)?;
    let keys = Keys::new(&noise::split(&mut state).0);
    let mut reader = Reader::new(&plain);
    let mut fields = || {
        Ok((
            reader.u8()?,
            reader.node_id()?,
            reader.u16()?,
            reader.u16()?,
        ))
    };
    let (kind, successor, lifetime_s, len): (u8, NodeId, u16, u16) =
        fields().map_err(|_: crate::wire::WireError| NoiseFailed)?;
    let peeled = match kind {
        FORWARD => {
            let mut onion = rest.to_vec();
            noise::mask(&keys.mask, &mut onion);
            let filled = onion.len();
            onion.resize(filled + LAYER, 0);
            rng.fill(&mut onion[filled..]);
            Peeled::Forward { successor, onion }
        }
        EGRESS => {
            let sealed = rest.get(..usize::from(len) + TAG_LEN).ok_or(NoiseFailed)?;
            Peeled::Egress {
                payload: noise::open(&keys.payload, 0, &[], sealed).ok_or(NoiseFailed)?,
            }
        }
        _ => return Err(NoiseFailed),
    };
    Ok(Layer {
        key: keys.hop,
        lifetime_s,
        peeled,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::noise::test_rng::Seeded;

    const NETWORK: NetworkId = NetworkId([1; 5]);

    fn node(i: u8) -> Identity {
        Identity::from_secret(&[i; 32])
    }

    fn walk(count: u8, payload: &[u8]) -> Vec<Vec<u8>> {
        let mut rng = Seeded(1, 0);
        let hops: Vec<_> = (1..=count).map(|i| node(i).id()).collect();
        let (mut onion, keys) = seal(&mut rng, &NETWORK, &hops, 95, payload).unwrap();
        let mut seen = Vec::new();
        for i in 1..=count {
            seen.push(onion.clone());
            let layer = peel(&mut rng, &NETWORK, &node(i), &onion).unwrap();
            assert_eq!(*layer.key, *keys[usize::from(i) - 1]);
            assert_eq!(layer.lifetime_s, 95);
            match layer.peeled {
                Peeled::Forward {
                    successor,
                    onion: next,
                } => {
                    assert_eq!(successor, node(i + 1).id());
                    onion = next;
                }
                Peeled::Egress { payload: got } => {
                    assert_eq!((i, &got[..]), (count, payload));
                }
            }
        }
        seen
    }

    #[test]
    fn every_length_of_path_arrives() {
        (1..=16).for_each(|count| drop(walk(count, &[7; 200])));
    }

    #[test]
    fn the_size_tells_nothing_of_the_path() {
        let sizes: Vec<_> = (1..=10)
            .flat_map(|count| walk(count, &[7; 160]))
            .map(|onion| onion.len())
            .collect();
        assert!(sizes.iter().all(|size| *size == SMALL));
    }

    #[test]
    fn a_hop_sees_no_other_node_than_its_successor() {
        let ids: Vec<_> = (1..=5).map(|i| node(i).id()).collect();
        for onion in walk(5, &[7; 100]) {
            for id in &ids {
                assert!(
                    !onion
                        .windows(32)
                        .any(|w| w == id.0 || Some(w) == id.x25519().as_ref().map(|k| &k[..]))
                );
            }
        }
    }

    #[test]
    fn only_the_hop_itself_opens_its_layer() {
        let mut rng = Seeded(1, 0);
        let (onion, _) = seal(&mut rng, &NETWORK, &[node(1).id(), node(2).id()], 95, b"x").unwrap();
        assert!(peel(&mut rng, &NETWORK, &node(2), &onion).is_err());
        assert!(peel(&mut rng, &NetworkId([2; 5]), &node(1), &onion).is_err());
    }

    #[test]
    fn too_long_a_path_is_refused() {
        let hops: Vec<_> = (1..=17).map(|i| node(i).id()).collect();
        assert!(seal(&mut Seeded(1, 0), &NETWORK, &hops, 95, b"x").is_err());
        assert!(seal(&mut Seeded(1, 0), &NETWORK, &[], 95, b"x").is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn damage_is_noticed_by_whom_it_concerns(at in 0_usize..LAYER, bit in 0_u8..8) {
            let mut rng = Seeded(1, 0);
            let (mut onion, _) = seal(&mut rng, &NETWORK, &[node(1).id(), node(2).id()], 95, b"x").unwrap();
            onion[at] ^= 1 << bit;
            // The highest bit of an X25519 key is not part of it (RFC 7748), but of the handshake's hash.
            prop_assert!(peel(&mut rng, &NETWORK, &node(1), &onion).is_err());
        }

        #[test]
        fn any_bytes_are_handled(mut bytes in proptest::collection::vec(any::<u8>(), 0..64), large: bool) {
            let _ = peel(&mut Seeded(1, 0), &NETWORK, &node(1), &bytes);
            bytes.resize(if large { LARGE } else { SMALL }, 9);
            let _ = peel(&mut Seeded(1, 0), &NETWORK, &node(1), &bytes);
        }
    }
}
