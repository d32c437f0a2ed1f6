//! The example of docs/packet-format.md, made by the real code: what the page shows is what goes over the wire.

use weft_abi::{Fixed, Kind, LINK_LEN, Label, LabelEntry, Slot, TAG_OFFSET, TagKey, link_word};
use weft_core::session::Cipher;
use weft_node::data::crypto::Key;

const PAGE: &str = include_str!("../../../docs/packet-format.md");
const TAG_KEY: TagKey =
    TagKey(*b"\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c\x0d\x0e\x0f");
const SESSION_KEY: [u8; 32] = [0x42; 32];
const COUNTER: u64 = 0x0200_0000_0000_0005;

/// An ICMPv6 echo request between two overlay addresses, as the TUN interface gives it.
const INNER: &str = "
    60000000 000c 3a 40
    fd0a1b2c3d4e 00000000000000000a0a
    fd0a1b2c3d4e 00000000000000000c0c
    80 00 e0bc 0001 0001 77656674";

fn bytes(hex: &str) -> Vec<u8> {
    let digits: Vec<u8> = hex.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

/// The datagram payload as the first hop gets it.
fn example() -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(link_word(Kind::Labelled, 5, Slot(9), 0x0001_0203).to_le_bytes());
    packet.extend([0; 8]);
    packet.extend(LabelEntry::new(Label(1034), 0, true, 64).to_bytes());
    packet.extend(COUNTER.to_be_bytes());
    let mut inner = bytes(INNER);
    let len = inner.len();
    inner.resize(len + weft_node::data::crypto::TAG, 0);
    let sealed = Key::new(Cipher::ChaCha20Poly1305, &SESSION_KEY)
        .seal(COUNTER, &mut inner, len)
        .unwrap();
    assert_eq!(sealed, inner.len());
    packet.extend(inner);
    let tag = Fixed::read(packet.first_chunk().unwrap())
        .expected_tag(TAG_KEY.words(), packet.len() as u32);
    packet[TAG_OFFSET..LINK_LEN].copy_from_slice(&tag.to_le_bytes());
    packet
}

/// What stands between `marker` and the end of its code block, comments (from two spaces on) left out.
fn block(marker: &str) -> Vec<u8> {
    let (_, rest) = PAGE
        .split_once(marker)
        .unwrap_or_else(|| panic!("the page has {marker}"));
    let (_, rest) = rest.split_once("```\n").unwrap();
    let (block, _) = rest.split_once("```").unwrap();
    // `offset  bytes  comment`
    block
        .lines()
        .flat_map(|line| bytes(line.trim_start().split("  ").nth(1).unwrap_or_default()))
        .collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect::<Vec<_>>()
        .join(" ")
}

#[test]
fn the_example_is_what_the_code_makes() {
    let made = example();
    assert_eq!(hex(&block("<!-- example: first hop -->")), hex(&made));
}

#[test]
fn the_next_hop_differs_as_the_page_says() {
    let mut packet = example();
    packet[..8].copy_from_slice(&link_word(Kind::Labelled, 5, Slot(3), 77).to_le_bytes());
    packet[16..20].copy_from_slice(&LabelEntry::new(Label(17), 0, true, 63).to_bytes());
    let key = TagKey([0xaa; 16]);
    let tag =
        Fixed::read(packet.first_chunk().unwrap()).expected_tag(key.words(), packet.len() as u32);
    packet[TAG_OFFSET..LINK_LEN].copy_from_slice(&tag.to_le_bytes());
    let shown = block("<!-- example: second hop -->");
    assert_eq!(hex(&shown), hex(&packet[..28]));
}

#[test]
fn the_page_names_every_verdict_and_reason() {
    for verdict in weft_abi::Verdict::ALL {
        assert!(
            PAGE.contains(&format!("`{}`", verdict.name())),
            "{}",
            verdict.name()
        );
    }
    for reason in weft_abi::DropReason::ALL {
        assert!(
            PAGE.contains(&format!("| `{}` |", reason.name())),
            "{}",
            reason.name()
        );
    }
}
