//! Scripts as text, in the two ways explorers and nodes write them, and what kinds there are.

use bitcoin::Script;
use bitcoin::opcodes::all::OP_PUSHNUM_NEG1;
use bitcoin::script::Instruction;
use weft_chain::{address, chains::Params};

/// Lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut out = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        out.push(char::from(DIGITS[usize::from(byte >> 4)]));
        out.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    out
}

/// Reads hexadecimal digits of either case.
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |c: u8| char::from(c).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs
        .iter()
        .map(|[a, b]| u8::try_from(digit(*a)? << 4 | digit(*b)?).ok())
        .collect()
}

/// The operations by name, pushes with their length, as Esplora writes them.
pub fn asm(script: &[u8]) -> String {
    Script::from_bytes(script).to_asm_string()
}

/// The operations by name, pushes as their bytes and small numbers as such, as nodes write them.
pub fn node_asm(script: &[u8]) -> String {
    let mut out = String::new();
    for instruction in Script::from_bytes(script).instructions() {
        if !out.is_empty() {
            out.push(' ');
        }
        match instruction {
            Ok(Instruction::PushBytes(bytes)) => match bytes.as_bytes() {
                [] => out.push('0'),
                short if short.len() <= 4 => out.push_str(&number(short).to_string()),
                long => out.push_str(&hex(long)),
            },
            Ok(Instruction::Op(op)) if op == OP_PUSHNUM_NEG1 => out.push_str("-1"),
            Ok(Instruction::Op(op)) => {
                let name = op.to_string();
                match name.strip_prefix("OP_PUSHNUM_") {
                    Some(number) => out.push_str(number),
                    None if name == "OP_CLTV" => out.push_str("OP_CHECKLOCKTIMEVERIFY"),
                    None if name == "OP_CSV" => out.push_str("OP_CHECKSEQUENCEVERIFY"),
                    None => out.push_str(&name),
                }
            }
            Err(_) => {
                out.push_str("[error]");
                break;
            }
        }
    }
    out
}

/// A script's number: little endian, the top bit being the sign.
fn number(bytes: &[u8]) -> i64 {
    let all = bytes.iter().rev().fold(0i64, |n, b| n << 8 | i64::from(*b));
    let sign = 1i64 << (8 * bytes.len() - 1);
    if all & sign == 0 { all } else { -(all & !sign) }
}

/// Kinds of output script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// No bytes.
    Empty,
    /// Begins with OP_RETURN.
    OpReturn,
    /// Bare key.
    P2pk,
    /// Hash of a key.
    P2pkh,
    /// Hash of a script.
    P2sh,
    /// Witness program of version 0, 20 bytes.
    P2wpkh,
    /// Witness program of version 0, 32 bytes.
    P2wsh,
    /// Witness program of version 1, 32 bytes.
    P2tr,
    /// Anything else.
    Unknown,
}

impl Kind {
    /// Of a script.
    pub fn of(bytes: &[u8]) -> Self {
        let script = Script::from_bytes(bytes);
        match bytes {
            [] => Self::Empty,
            [0x6a, ..] => Self::OpReturn,
            _ if script.is_p2pk() => Self::P2pk,
            _ if script.is_p2pkh() => Self::P2pkh,
            _ if script.is_p2sh() => Self::P2sh,
            _ if script.is_p2wpkh() => Self::P2wpkh,
            _ if script.is_p2wsh() => Self::P2wsh,
            _ if script.is_p2tr() => Self::P2tr,
            _ => Self::Unknown,
        }
    }

    /// Its name in Esplora's answers.
    pub fn esplora(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::OpReturn => "op_return",
            Self::P2pk => "p2pk",
            Self::P2pkh => "p2pkh",
            Self::P2sh => "p2sh",
            Self::P2wpkh => "v0_p2wpkh",
            Self::P2wsh => "v0_p2wsh",
            Self::P2tr => "v1_p2tr",
            Self::Unknown => "unknown",
        }
    }

    /// Its name in a node's answers.
    pub fn node(self) -> &'static str {
        match self {
            Self::Empty | Self::Unknown => "nonstandard",
            Self::OpReturn => "nulldata",
            Self::P2pk => "pubkey",
            Self::P2pkh => "pubkeyhash",
            Self::P2sh => "scripthash",
            Self::P2wpkh => "witness_v0_keyhash",
            Self::P2wsh => "witness_v0_scripthash",
            Self::P2tr => "witness_v1_taproot",
        }
    }
}

/// The address of a script, where it has one.
pub fn address_of(params: &Params, script: &[u8]) -> Option<String> {
    address::from_script(params, script)
}

/// The script that the last push of an input script is, where the output it spends is a P2SH.
pub fn redeem_script(input_script: &[u8]) -> Option<Vec<u8>> {
    match Script::from_bytes(input_script)
        .instructions()
        .last()?
        .ok()?
    {
        Instruction::PushBytes(bytes) => Some(bytes.as_bytes().to_vec()),
        Instruction::Op(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_of_known_scripts() {
        let p2pkh = unhex("76a91462e907b15cbf27d5425399ebf6f0fb50ebb88f1888ac").unwrap();
        assert_eq!(
            asm(&p2pkh),
            "OP_DUP OP_HASH160 OP_PUSHBYTES_20 62e907b15cbf27d5425399ebf6f0fb50ebb88f18 OP_EQUALVERIFY OP_CHECKSIG"
        );
        assert_eq!(
            node_asm(&p2pkh),
            "OP_DUP OP_HASH160 62e907b15cbf27d5425399ebf6f0fb50ebb88f18 OP_EQUALVERIFY OP_CHECKSIG"
        );
        assert_eq!(
            node_asm(&[0x00, 0x51, 0x4f, 0x02, 0x01, 0x82, 0x60]),
            "0 1 -1 -513 16"
        );
        assert_eq!(node_asm(&[0x05, 1]), "[error]");
        let anchor = [0x51, 0x02, 0x4e, 0x73];
        assert_eq!(Kind::of(&anchor), Kind::Unknown);
        assert_eq!(Kind::of(&p2pkh).esplora(), "p2pkh");
        assert_eq!(
            redeem_script(&[0x00, 0x02, 0xab, 0xcd]),
            Some(vec![0xab, 0xcd])
        );
    }

    proptest! {
        #[test]
        fn any_script_has_a_text(script: Vec<u8>) {
            let _ = (asm(&script), node_asm(&script), Kind::of(&script), redeem_script(&script));
            prop_assert_eq!(unhex(&hex(&script)), Some(script));
        }
    }
}
