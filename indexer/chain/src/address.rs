//! Addresses: the text forms of the common output scripts.
//!
//! P2PKH and P2SH in Base58Check (version byte, 20 bytes, first 4 bytes of SHA256d), witness
//! programs in Bech32 (version 0) or Bech32m (BIP173, BIP350). Bare keys, bare multisignature and
//! data have none.

use bech32::{Fe32, Hrp, segwit};

use crate::chains::Params;
use crate::hash::sha256d;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
/// Longest text looked at; no address is longer than 90 characters.
const MAX_LEN: usize = 90;

/// Why a text is no address of a network.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Neither form fits.
    #[error("`{0}` is no address: it is neither Base58Check nor Bech32 with a right checksum")]
    Form(String),
    /// It is an address of another network.
    #[error("`{address}` is an address of another network than {network}")]
    Network {
        /// The address.
        address: String,
        /// The network it was given for.
        network: &'static str,
    },
}

/// The address of a script, where there is one.
pub fn from_script(params: &Params, script: &[u8]) -> Option<String> {
    match script {
        [0x76, 0xa9, 20, hash @ .., 0x88, 0xac] if hash.len() == 20 => {
            Some(base58check(params.p2pkh, hash))
        }
        [0xa9, 20, hash @ .., 0x87] if hash.len() == 20 => {
            Some(base58check(*params.p2sh.first()?, hash))
        }
        [version @ (0 | 0x51..=0x60), len @ 2..=40, program @ ..]
            if program.len() == usize::from(*len) =>
        {
            let version = Fe32::try_from(version.saturating_sub(0x50)).ok()?;
            segwit::encode(Hrp::parse(params.hrp?).ok()?, version, program).ok()
        }
        _ => None,
    }
}

/// The script an address pays to.
pub fn to_script(params: &Params, address: &str) -> Result<Vec<u8>, AddressError> {
    let other = || AddressError::Network {
        address: address.to_owned(),
        network: params.name,
    };
    let form = || AddressError::Form(address.chars().take(MAX_LEN).collect());
    if address.len() > MAX_LEN || !address.is_ascii() {
        return Err(form());
    }
    if let Ok((hrp, version, program)) = segwit::decode(address) {
        if params
            .hrp
            .is_none_or(|own| !hrp.as_str().eq_ignore_ascii_case(own))
        {
            return Err(other());
        }
        let version = version.to_u8();
        let opcode = if version == 0 { 0 } else { 0x50 + version };
        return Ok([&[opcode, program.len() as u8], &program[..]].concat());
    }
    let payload = base58_decode(address).ok_or_else(form)?;
    let Some((&version, hash)) = payload.split_first().filter(|(_, hash)| hash.len() == 20) else {
        return Err(form());
    };
    if version == params.p2pkh {
        Ok([&[0x76, 0xa9, 20], hash, &[0x88, 0xac]].concat())
    } else if params.p2sh.contains(&version) {
        Ok([&[0xa9, 20], hash, &[0x87]].concat())
    } else {
        Err(other())
    }
}

fn base58check(version: u8, hash: &[u8]) -> String {
    let mut payload = [&[version], hash].concat();
    let sum = sha256d(&payload);
    payload.extend_from_slice(&sum[..4]);
    let zeros = payload.iter().take_while(|b| **b == 0).count();
    // Base 58, least significant digit first.
    let mut digits: Vec<u8> = Vec::with_capacity(40);
    for &byte in &payload {
        let mut carry = u32::from(byte);
        for digit in &mut digits {
            carry += u32::from(*digit) << 8;
            *digit = (carry % 58) as u8;
            carry /= 58;
        }
        while carry > 0 {
            digits.push((carry % 58) as u8);
            carry /= 58;
        }
    }
    let digits = std::iter::repeat_n(0, zeros).chain(digits.into_iter().rev());
    digits
        .map(|d| char::from(ALPHABET[usize::from(d)]))
        .collect()
}

/// The payload of a Base58Check text without its checksum.
fn base58_decode(text: &str) -> Option<Vec<u8>> {
    let zeros = text.bytes().take_while(|b| *b == b'1').count();
    let mut bytes: Vec<u8> = Vec::with_capacity(32);
    for c in text.bytes() {
        let mut carry = ALPHABET.iter().position(|a| *a == c)? as u32;
        for byte in &mut bytes {
            carry += u32::from(*byte) * 58;
            *byte = carry as u8;
            carry >>= 8;
        }
        while carry > 0 {
            bytes.push(carry as u8);
            carry >>= 8;
        }
    }
    bytes.extend(std::iter::repeat_n(0, zeros));
    bytes.reverse();
    let payload = bytes.len().checked_sub(4)?;
    let sum = bytes.split_off(payload);
    (sha256d(&bytes)[..4] == sum).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chains::by_name;
    use proptest::prelude::*;

    #[test]
    fn known_addresses() {
        for (network, address) in [
            ("bitcoin", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa"),
            ("bitcoin", "1111111111111111111114oLvT2"),
            ("bitcoin", "3P14159f73E4gFr7JterCCQh9QjiTjiZrG"),
            ("bitcoin", "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kv8f3t4"),
            (
                "bitcoin",
                "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
            ),
            ("bitcoin", "bc1pfeessrawgf"),
            ("dogecoin", "DH5yaieqoZN36fDVciNyRueRGvGLR3mr7L"),
        ] {
            let params = by_name(network).expect("known").params();
            let script = to_script(params, address).expect(address);
            assert_eq!(from_script(params, &script).as_deref(), Some(address));
            let litecoin = by_name("litecoin").expect("known").params();
            assert!(
                to_script(litecoin, address).is_err() || address.starts_with('3'),
                "{address}"
            );
        }
    }

    proptest! {
        #[test]
        fn scripts_round_trip(hash in prop::array::uniform20(any::<u8>()), which in 0usize..11, p2sh: bool) {
            let params = crate::chains::all()[which].params();
            let script = if p2sh { [&[0xa9, 20], &hash[..], &[0x87]].concat() }
                else { [&[0x76, 0xa9, 20], &hash[..], &[0x88, 0xac]].concat() };
            let address = from_script(params, &script).expect("has one");
            prop_assert_eq!(to_script(params, &address), Ok(script));
        }

        #[test]
        fn any_text_is_answered(text in ".{0,100}") {
            let _ = to_script(by_name("bitcoin").expect("known").params(), &text);
        }
    }
}
