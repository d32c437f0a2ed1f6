//! Who a node is and which network it belongs to.
//!
//! A node's identity is one Ed25519 key pair; its Noise static key is the X25519 (Montgomery) form of the same pair, so
//! one 32-byte secret is all there is to keep. A network is one 32-byte secret; everything about it (its id, the
//! pre-shared key of link handshakes, the tag key of handshake datagrams, the address prefix) is derived from that by
//! BLAKE2s under distinct labels.

use std::{fmt, net::Ipv6Addr, str::FromStr};

use blake2::{
    Blake2s256, Blake2sMac256, Digest as _,
    digest::{FixedOutput as _, KeyInit as _, Update as _},
};
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use subtle::ConstantTimeEq as _;
use weft_abi::TagKey;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// BLAKE2s of the parts under a key: the only derivation function of the project. The label comes first and is
/// terminated by a zero byte; every part is preceded by its length.
#[must_use]
pub fn derive(key: &[u8; 32], label: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut mac = Blake2sMac256::new(key.into());
    mac.update(label.as_bytes());
    mac.update(&[0]);
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    mac.finalize_fixed().into()
}

/// Why a text form is not what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A node id of a wrong length.
    #[error("a node id has 64 hexadecimal digits, this one has {0}")]
    NodeIdLength(usize),
    /// A character that is no hexadecimal digit.
    #[error("`{found}` at position {position} is not a hexadecimal digit")]
    Hex {
        /// The character.
        found: char,
        /// Counted from 1.
        position: usize,
    },
    /// 32 bytes that are not a usable Ed25519 public key.
    #[error("this node id is not a valid Ed25519 public key")]
    NotAKey,
    /// The marker in front is missing.
    #[error("a network secret begins with `weft1-`")]
    SecretPrefix,
    /// A network secret of a wrong length.
    #[error(
        "a network secret has 56 characters after `weft1-` (dashes not counted), this one has {0}"
    )]
    SecretLength(usize),
    /// A character outside the alphabet.
    #[error(
        "`{found}` at position {position} does not occur in network secrets (digits and letters except I, L, O, U)"
    )]
    SecretCharacter {
        /// The character.
        found: char,
        /// Counted from 1, the prefix included.
        position: usize,
    },
    /// The checksum does not match: a character was mistyped.
    #[error("the network secret's checksum does not match: a character was mistyped or left out")]
    SecretChecksum,
}

/// An Ed25519 public key: a node's identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub [u8; 32]);

impl NodeId {
    /// Checks that the bytes are a public key that can sign and agree on keys (on the curve, of large order).
    pub fn checked(bytes: [u8; 32]) -> Result<Self, ParseError> {
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| ParseError::NotAKey)?;
        if key.is_weak() {
            Err(ParseError::NotAKey)
        } else {
            Ok(Self(bytes))
        }
    }

    /// The X25519 form of the key; none where the bytes are no point of the curve.
    #[must_use]
    pub fn x25519(&self) -> Option<[u8; 32]> {
        let key = VerifyingKey::from_bytes(&self.0).ok()?;
        (!key.is_weak()).then(|| key.to_montgomery().to_bytes())
    }

    /// Whether the node signed the message.
    #[must_use]
    pub fn verify(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        VerifyingKey::from_bytes(&self.0).is_ok_and(|key| {
            key.verify_strict(message, &Signature::from_bytes(signature))
                .is_ok()
        })
    }

    /// The node's address in the network: the network's /48 prefix and 80 bits of BLAKE2s(node id).
    #[must_use]
    pub fn overlay_address(&self, network: &NetworkId) -> Ipv6Addr {
        let mut octets = network.prefix().octets();
        let hash = Blake2s256::digest(self.0);
        octets[6..].copy_from_slice(&hash[..10]);
        Ipv6Addr::from(octets)
    }

    /// The first eight hexadecimal digits, for people.
    #[must_use]
    pub fn short(&self) -> String {
        format!("{self}")[..8].to_owned()
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "NodeId({a:02x}{b:02x}{c:02x}{d:02x})")
    }
}

impl FromStr for NodeId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut bytes = [0; 32];
        let mut count = 0;
        for (i, found) in text.chars().enumerate() {
            let digit = found.to_digit(16).ok_or(ParseError::Hex {
                found,
                position: i + 1,
            })?;
            if let Some(byte) = bytes.get_mut(i / 2) {
                *byte = *byte << 4 | digit as u8;
            }
            count = i + 1;
        }
        if count != 64 {
            return Err(ParseError::NodeIdLength(count));
        }
        Self::checked(bytes)
    }
}

/// A node's key pair, from one 32-byte secret. Wiped from memory when dropped.
#[derive(Clone)]
pub struct Identity {
    signing: SigningKey,
    x25519: Zeroizing<[u8; 32]>,
    id: NodeId,
}

impl Identity {
    /// From the secret, which is 32 uniformly random bytes.
    #[must_use]
    pub fn from_secret(secret: &[u8; 32]) -> Self {
        let signing = SigningKey::from_bytes(secret);
        let x25519 = Zeroizing::new(signing.to_scalar_bytes());
        let id = NodeId(signing.verifying_key().to_bytes());
        Self {
            signing,
            x25519,
            id,
        }
    }

    /// The public half.
    #[must_use]
    pub fn id(&self) -> NodeId {
        self.id
    }

    /// The X25519 secret key.
    #[must_use]
    pub fn x25519_secret(&self) -> &[u8; 32] {
        &self.x25519
    }

    /// Signs with Ed25519.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.signing.sign(message).to_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({:?}, ..)", self.id)
    }
}

/// 40 bits that name a network. Not secret.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetworkId(pub [u8; 5]);

impl NetworkId {
    /// The network's unique local prefix, `fdXX:XXXX:XXXX::/48` (RFC 4193).
    #[must_use]
    pub fn prefix(&self) -> Ipv6Addr {
        let [a, b, c, d, e] = self.0;
        let mut octets = [0; 16];
        octets[..6].copy_from_slice(&[0xfd, a, b, c, d, e]);
        Ipv6Addr::from(octets)
    }

    /// Whether the address lies in the network's prefix.
    #[must_use]
    pub fn contains(&self, address: &Ipv6Addr) -> bool {
        address.octets()[..6] == self.prefix().octets()[..6]
    }
}

impl fmt::Display for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for NetworkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NetworkId({self})")
    }
}

/// What admits to a network. Wiped from memory when dropped; shown only by [`NetworkSecret::to_text`].
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct NetworkSecret([u8; 32]);

const TEXT_PREFIX: &str = "weft1-";
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const TEXT_DIGITS: usize = 56;

impl NetworkSecret {
    /// From 32 uniformly random bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes themselves.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The network's public name.
    #[must_use]
    pub fn network_id(&self) -> NetworkId {
        let hash = derive(&self.0, "weft network id", &[]);
        let mut id = [0; 5];
        id.copy_from_slice(&hash[..5]);
        NetworkId(id)
    }

    /// Pre-shared key of the link handshake.
    #[must_use]
    pub fn psk(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(derive(&self.0, "weft link psk", &[]))
    }

    /// Key of the tag in handshake datagrams (kind 2).
    #[must_use]
    pub fn handshake_tag_key(&self) -> TagKey {
        let hash = Zeroizing::new(derive(&self.0, "weft handshake tag", &[]));
        let mut key = [0; 16];
        key.copy_from_slice(&hash[..16]);
        TagKey(key)
    }

    /// Key under which cookies travel (see the link module).
    #[must_use]
    pub fn cookie_key(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(derive(&self.0, "weft cookie", &[]))
    }

    /// The form people copy: `weft1-` and 14 groups of four characters (Crockford's base 32 of the 32 bytes and a
    /// 3-byte checksum), separated by dashes.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        let mut raw = Zeroizing::new([0; 35]);
        raw[..32].copy_from_slice(&self.0);
        raw[32..].copy_from_slice(&checksum(&self.0));
        let mut text = Zeroizing::new(String::with_capacity(TEXT_PREFIX.len() + TEXT_DIGITS + 13));
        text.push_str(TEXT_PREFIX);
        for digit in 0..TEXT_DIGITS {
            if digit > 0 && digit % 4 == 0 {
                text.push('-');
            }
            let value = (0..5).fold(0, |value, i| {
                let bit = digit * 5 + i;
                value << 1 | usize::from(raw[bit / 8] >> (7 - bit % 8) & 1)
            });
            text.push(char::from(ALPHABET[value]));
        }
        text
    }
}

fn checksum(secret: &[u8; 32]) -> [u8; 3] {
    let hash = derive(secret, "weft secret checksum", &[]);
    [hash[0], hash[1], hash[2]]
}

impl FromStr for NetworkSecret {
    type Err = ParseError;

    /// Reads the form of [`NetworkSecret::to_text`]; case, dashes and surrounding space do not matter, and I, L, O are
    /// read as 1, 1, 0.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let body = text
            .get(..TEXT_PREFIX.len())
            .filter(|prefix| prefix.eq_ignore_ascii_case(TEXT_PREFIX))
            .map(|_| &text[TEXT_PREFIX.len()..])
            .ok_or(ParseError::SecretPrefix)?;
        let mut raw = Zeroizing::new([0_u8; 35]);
        let mut digits = 0;
        for (i, found) in body.chars().enumerate().filter(|(_, c)| *c != '-') {
            let upper = match found.to_ascii_uppercase() {
                'I' | 'L' => '1',
                'O' => '0',
                other => other,
            };
            let value = ALPHABET
                .iter()
                .position(|&c| char::from(c) == upper)
                .ok_or(ParseError::SecretCharacter {
                    found,
                    position: TEXT_PREFIX.len() + i + 1,
                })?;
            if digits < TEXT_DIGITS {
                for bit in 0..5 {
                    let at = digits * 5 + bit;
                    raw[at / 8] |= ((value >> (4 - bit) & 1) as u8) << (7 - at % 8);
                }
            }
            digits += 1;
        }
        if digits != TEXT_DIGITS {
            return Err(ParseError::SecretLength(digits));
        }
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(&raw[..32]);
        if !bool::from(checksum(&secret)[..].ct_eq(&raw[32..])) {
            return Err(ParseError::SecretChecksum);
        }
        Ok(Self(*secret))
    }
}

impl fmt::Debug for NetworkSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NetworkSecret(..)")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn x25519_forms_agree() {
        let (a, b) = (
            Identity::from_secret(&[1; 32]),
            Identity::from_secret(&[2; 32]),
        );
        let shared = |own: &Identity, other: NodeId| {
            curve25519_dalek::MontgomeryPoint(other.x25519().unwrap())
                .mul_clamped(*own.x25519_secret())
                .to_bytes()
        };
        assert_eq!(shared(&a, b.id()), shared(&b, a.id()));
        assert_ne!(a.id(), b.id());
    }

    #[test]
    fn signatures_bind_message_and_signer() {
        let (a, b) = (
            Identity::from_secret(&[1; 32]),
            Identity::from_secret(&[2; 32]),
        );
        let signature = a.sign(b"message");
        assert!(a.id().verify(b"message", &signature));
        assert!(!a.id().verify(b"massage", &signature));
        assert!(!b.id().verify(b"message", &signature));
    }

    #[test]
    fn weak_keys_are_refused() {
        let mut small_order = [0; 32];
        small_order[0] = 1;
        assert_eq!(NodeId::checked(small_order), Err(ParseError::NotAKey));
        assert_eq!(NodeId(small_order).x25519(), None);
    }

    #[test]
    fn addresses_lie_in_the_network() {
        let network = NetworkSecret::from_bytes([9; 32]).network_id();
        let address = Identity::from_secret(&[1; 32])
            .id()
            .overlay_address(&network);
        assert!(network.contains(&address));
        assert_eq!(address.octets()[0], 0xfd);
        assert!(
            !NetworkSecret::from_bytes([8; 32])
                .network_id()
                .contains(&address)
        );
    }

    #[test]
    fn node_ids_say_what_is_wrong_with_them() {
        let text = Identity::from_secret(&[1; 32]).id().to_string();
        assert_eq!(text.parse::<NodeId>().unwrap().to_string(), text);
        assert_eq!(
            text[1..].parse::<NodeId>(),
            Err(ParseError::NodeIdLength(63))
        );
        assert!(
            text.replacen(&text[3..4], "x", 1)
                .parse::<NodeId>()
                .is_err()
        );
        assert!(matches!(
            "zz".parse::<NodeId>(),
            Err(ParseError::Hex {
                found: 'z',
                position: 1
            })
        ));
    }

    proptest! {
        #[test]
        fn secrets_survive_copying(bytes: [u8; 32], lower: bool) {
            let secret = NetworkSecret::from_bytes(bytes);
            let text = secret.to_text();
            let text = if lower { text.to_lowercase() } else { text.to_string() };
            prop_assert_eq!(*text.parse::<NetworkSecret>().unwrap().as_bytes(), bytes);
        }

        #[test]
        fn a_mistyped_character_is_noticed(bytes: [u8; 32], at in 0_usize..56, shift in 1_usize..32) {
            let text = NetworkSecret::from_bytes(bytes).to_text();
            let mut chars: Vec<char> = text.chars().filter(|c| *c != '-').collect();
            let digit = ALPHABET.iter().position(|&c| char::from(c) == chars[5 + at]).unwrap();
            chars[5 + at] = char::from(ALPHABET[(digit + shift) % 32]);
            let typed: String = format!("weft1-{}", chars[5..].iter().collect::<String>());
            prop_assert!(typed.parse::<NetworkSecret>().is_err());
        }

        #[test]
        fn any_text_is_handled(text in "\\PC{0,90}") {
            let _ = text.parse::<NetworkSecret>();
            let _ = text.parse::<NodeId>();
        }
    }
}
