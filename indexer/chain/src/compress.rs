//! The short forms of amounts and scripts in undo data and coin dumps.
//!
//! Amount: trailing decimal zeros are taken out, then VARINT. Script: a VARINT that is 0 (P2PKH,
//! 20 bytes follow), 1 (P2SH, 20), 2 or 3 (P2PK with a compressed key, its 32 bytes of x), 4 or 5
//! (P2PK with an uncompressed key on the curve, x and y's parity), or length + 6 and the script.

use crate::Error;
use crate::coin::MAX_SCRIPT;
use crate::wire::{Reader, put_varint};

/// Number of the special forms; longer scripts are stored with this added to their length.
const SPECIAL: u64 = 6;

/// The short form of an amount.
pub fn compress_amount(mut n: u64) -> u64 {
    if n == 0 {
        return 0;
    }
    let mut zeros = 0;
    while zeros < 9 && n.is_multiple_of(10) {
        n /= 10;
        zeros += 1;
    }
    if zeros < 9 {
        let digit = n % 10;
        1 + ((n / 10) * 9 + digit - 1) * 10 + zeros
    } else {
        1 + (n - 1) * 10 + 9
    }
}

/// The amount of a short form; `None` where it is above 2⁶⁴.
pub fn decompress_amount(x: u64) -> Option<u64> {
    let Some(x) = x.checked_sub(1) else {
        return Some(0);
    };
    let (zeros, x) = (x % 10, x / 10);
    let n = if zeros < 9 {
        (x / 9).checked_mul(10)?.checked_add(x % 9 + 1)?
    } else {
        x.checked_add(1)?
    };
    n.checked_mul(10u64.pow(zeros as u32))
}

/// Appends a script in its short form.
pub fn put_script(out: &mut Vec<u8>, script: &[u8]) {
    match script {
        [0x76, 0xa9, 20, hash @ .., 0x88, 0xac] if hash.len() == 20 => {
            out.push(0);
            out.extend_from_slice(hash);
        }
        [0xa9, 20, hash @ .., 0x87] if hash.len() == 20 => {
            out.push(1);
            out.extend_from_slice(hash);
        }
        [33, parity @ (2 | 3), x @ .., 0xac] if x.len() == 32 => {
            out.push(*parity);
            out.extend_from_slice(x);
        }
        [65, key @ .., 0xac] if key.len() == 65 && key[0] == 4 && is_on_curve(key) => {
            out.push(4 | key[64] & 1);
            out.extend_from_slice(&key[1..33]);
        }
        _ => {
            put_varint(out, script.len() as u64 + SPECIAL);
            out.extend_from_slice(script);
        }
    }
}

/// Reads a script from its short form, at most 10,000 bytes.
pub fn read_script(r: &mut Reader<'_>) -> Result<Vec<u8>, Error> {
    let at = r.position();
    let kind = r.varint("form of a script")?;
    let body = r.take(
        special_len(kind).map_or_else(|| plain_len(kind, at), Ok)?,
        "script",
    )?;
    expand(kind, body).ok_or(Error::Malformed {
        what: "script",
        at,
        why: "its key is not on the curve",
    })
}

/// Bytes that follow a special form; `None` for scripts as they are.
pub(crate) fn special_len(kind: u64) -> Option<usize> {
    match kind {
        0 | 1 => Some(20),
        2..SPECIAL => Some(32),
        _ => None,
    }
}

/// Length of a script as it is.
pub(crate) fn plain_len(kind: u64, at: usize) -> Result<usize, Error> {
    let (count, max) = (kind.saturating_sub(SPECIAL), MAX_SCRIPT as u64);
    if count > max {
        return Err(Error::TooMany {
            what: "length of a script",
            at,
            count,
            max,
        });
    }
    Ok(count as usize)
}

/// The script of a form and the bytes that follow it; `None` if a key has no y.
pub(crate) fn expand(kind: u64, body: &[u8]) -> Option<Vec<u8>> {
    Some(match kind {
        0 => [&[0x76, 0xa9, 20], body, &[0x88, 0xac]].concat(),
        1 => [&[0xa9, 20], body, &[0x87]].concat(),
        2 | 3 => [&[33, kind as u8], body, &[0xac]].concat(),
        4 | 5 => {
            let mut key = [0; 33];
            key[0] = kind as u8 - 2;
            key.get_mut(1..)?.copy_from_slice(body);
            let key = secp256k1::PublicKey::from_slice(&key)
                .ok()?
                .serialize_uncompressed();
            [&[65], &key[..], &[0xac]].concat()
        }
        _ => body.to_vec(),
    })
}

fn is_on_curve(key: &[u8]) -> bool {
    secp256k1::PublicKey::from_slice(key).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_amounts() {
        for (n, x) in [
            (0, 0),
            (1, 1),
            (1_000_000, 7),
            (100_000_000, 9),
            (5_000_000_000, 50),
            (2_100_000_000_000_000, 21_000_000),
        ] {
            assert_eq!(compress_amount(n), x);
            assert_eq!(decompress_amount(x), Some(n));
        }
        assert_eq!(decompress_amount(u64::MAX), None);
    }

    fn script() -> impl Strategy<Value = Vec<u8>> {
        let hash = prop::array::uniform20(any::<u8>());
        prop_oneof![
            hash.prop_map(|h| [&[0x76, 0xa9, 20], &h[..], &[0x88, 0xac]].concat()),
            hash.prop_map(|h| [&[0xa9, 20], &h[..], &[0x87]].concat()),
            (2u8..6, prop::array::uniform32(any::<u8>())).prop_map(|(p, x)| [
                &[33, p],
                &x[..],
                &[0xac]
            ]
            .concat()),
            prop::collection::vec(any::<u8>(), 65..=65)
                .prop_map(|k| [&[65, 4], &k[1..], &[0xac]].concat()),
            (1u8..255).prop_map(|n| {
                let key = secp256k1::SecretKey::from_slice(&[n; 32]).expect("below the order");
                let key = key
                    .public_key(&secp256k1::Secp256k1::new())
                    .serialize_uncompressed();
                [&[65], &key[..], &[0xac]].concat()
            }),
            prop::collection::vec(any::<u8>(), 0..300),
        ]
    }

    proptest! {
        #[test]
        fn amounts_round_trip(n in 0u64..2_100_000_000_000_000, zeros in 0u32..9) {
            let n = n / 10u64.pow(zeros) * 10u64.pow(zeros);
            prop_assert_eq!(decompress_amount(compress_amount(n)), Some(n));
        }

        #[test]
        fn scripts_round_trip(script in script()) {
            let mut out = Vec::new();
            put_script(&mut out, &script);
            prop_assert!(out.len() <= script.len() + 2);
            let mut r = Reader::new(&out);
            prop_assert_eq!(read_script(&mut r), Ok(script));
            prop_assert_eq!(r.remaining(), 0);
        }

        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read_script(&mut Reader::new(&bytes));
        }
    }
}
