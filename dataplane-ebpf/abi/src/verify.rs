//! The verify stage: is this datagram from the neighbour it names, and new? The kernel does it for what arrives
//! through XDP; the daemon, with the same tables, for everything else.

use crate::{DropReason, FIXED_LEN, Fixed, Kind, LinkState, RxLink, Slot, Tables};

/// A datagram whose tag verified; but for handshakes, its sequence number was new as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verified {
    /// What it is.
    pub kind: Kind,
    /// The slot it came in on; as sent, and meaning nothing, in a handshake.
    pub slot: Slot,
    /// The lane.
    pub lane: u8,
}

/// Checks that need no key and change nothing: length, version, kind, reserved bits.
#[inline(always)]
pub fn well_formed(fixed: &Fixed, len: u32) -> Result<Kind, DropReason> {
    if len < FIXED_LEN as u32 {
        return Err(DropReason::TooShort);
    }
    if fixed.version() != crate::VERSION {
        return Err(DropReason::BadVersion);
    }
    let Some(kind) = Kind::from_wire(fixed.kind_nibble()) else {
        return Err(DropReason::BadKind);
    };
    if fixed.reserved() != 0 {
        return Err(DropReason::BadReserved);
    }
    // Bytes 16..20 are zero in control, and but for the direction in probes.
    let top = fixed.top.to_le_bytes();
    let reserved = match kind {
        Kind::Control => fixed.top != 0,
        Kind::Probe => top[0] > crate::PROBE_ECHO || fixed.top >> 8 != 0,
        Kind::Labelled | Kind::Handshake => false,
    };
    if reserved {
        Err(DropReason::BadReserved)
    } else {
        Ok(kind)
    }
}

/// The live link of a slot.
#[inline(always)]
pub(crate) fn live_link<T: Tables>(tables: &T, slot: Slot) -> Result<&RxLink, DropReason> {
    let Some(link) = tables.rx_link(slot) else {
        return Err(DropReason::UnknownSlot);
    };
    let state = link.state.load();
    if state == LinkState::Live as u32 {
        Ok(link)
    } else if state == LinkState::Retired as u32 {
        Err(DropReason::StaleEpoch)
    } else {
        Err(DropReason::UnknownSlot)
    }
}

/// Tag, then window. The first thing that changes a table.
#[inline(always)]
pub(crate) fn admit<T: Tables>(
    tables: &T,
    link: &RxLink,
    fixed: &Fixed,
    len: u32,
) -> Result<(), DropReason> {
    // One comparison of two words: its time tells nothing of where they differ.
    if fixed.expected_tag(link.key(), len) != fixed.tag {
        return Err(DropReason::BadTag);
    }
    let Some(window) = tables.window(fixed.slot(), fixed.lane()) else {
        return Err(DropReason::UnknownSlot);
    };
    window.admit(fixed.seq())?;
    tables.count_admitted(fixed.slot(), fixed.lane(), len);
    Ok(())
}

/// Verifies a handshake under the network's key.
#[inline(always)]
pub(crate) fn admit_handshake<T: Tables>(
    tables: &T,
    fixed: &Fixed,
    len: u32,
) -> Result<(), DropReason> {
    let Some(config) = tables.config() else {
        return Err(DropReason::BadTag);
    };
    let key = [config.network_key[0].load(), config.network_key[1].load()];
    if fixed.expected_tag(key, len) != fixed.tag {
        Err(DropReason::BadTag)
    } else {
        Ok(())
    }
}

/// The whole stage, for a datagram payload of `len` bytes that begins with `fixed`. Changes a window only when the tag
/// verified.
#[inline(always)]
pub fn verify<T: Tables>(tables: &T, fixed: &Fixed, len: u32) -> Result<Verified, DropReason> {
    let kind = well_formed(fixed, len)?;
    if let Kind::Handshake = kind {
        admit_handshake(tables, fixed, len)?;
    } else {
        let link = live_link(tables, fixed.slot())?;
        admit(tables, link, fixed, len)?;
    }
    Ok(Verified {
        kind,
        slot: fixed.slot(),
        lane: fixed.lane(),
    })
}
