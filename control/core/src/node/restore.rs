//! Snapshots: what survives a restart of the daemon, while the forwarding plane goes on.
//!
//! ```text
//! 0..8     "WEFTSNAP"
//! 8..10    version
//! 10..42   node id
//! 42..47   network id
//! then     LSA sequence u64, neighbours and links, LSPs
//! last 16  keyed BLAKE2s of the rest under the network secret: damage and foreign files are noticed
//! ```

use subtle::ConstantTimeEq as _;
use zeroize::Zeroize as _;

use super::{Config, Node, NodeError, context::Context};
use crate::{
    identity::derive,
    io::{DataplaneOp, Micros, Output, Randomness},
    wire::{Reader, WireError, Writer},
};

const MAGIC: &[u8; 8] = b"WEFTSNAP";
const VERSION: u16 = 1;
const CHECK_LEN: usize = 16;
/// Own LSAs that may have been made since the snapshot.
const SEQUENCE_LEAP: u64 = 1 << 16;

impl Node {
    /// A node that goes on where the one that made the snapshot stopped: links, slots, next hops, groups, labels and
    /// LSPs through and to it. The first outputs describe its tables completely (see `DataplaneOp::Restored`).
    ///
    /// Before these are drained the caller must store [`Node::snapshot`] durably: it reserves fresh AEAD counters, and
    /// a later resume from the older snapshot would use them again.
    pub fn resume(
        config: Config,
        snapshot: &[u8],
        rng: Box<dyn Randomness>,
        now: Micros,
    ) -> Result<Self, NodeError> {
        let body = opened(&config, snapshot).map_err(NodeError::Snapshot)?;
        let malformed = |error: WireError| NodeError::Snapshot(format!("malformed: {error}"));
        let mut reader = Reader::new(body);
        let sequence = reader.u64().map_err(malformed)?;
        let mut node = Self::build(config, rng, now, sequence.saturating_add(SEQUENCE_LEAP))?;
        let mut context = context!(node, now);
        let mut load = || {
            node.links.load(&mut context, &mut reader)?;
            node.lsps.load(&mut context, &node.links, &mut reader)
        };
        load().map_err(malformed)?;
        reader.finish().map_err(malformed)?;
        node.out.push(Output::Dataplane(DataplaneOp::Restored));
        let mut context = context!(node, now);
        node.lsps.disown_sessions(&mut context, &mut node.links);
        node.settle(now);
        Ok(node)
    }

    /// State that must survive a restart. Holds keys: to be stored 0600.
    pub fn snapshot(&mut self) -> Vec<u8> {
        let mut w = Writer::with_capacity(4096);
        w.bytes(MAGIC)
            .u16(VERSION)
            .node_id(&self.id())
            .bytes(&self.config.network.network_id().0);
        w.u64(self.topology.flooding().sequence());
        self.links.save(&mut w);
        self.lsps.save(&mut w);
        let check = check(&self.config, w.as_slice());
        w.bytes(&check);
        w.finish()
    }
}

fn check(config: &Config, bytes: &[u8]) -> [u8; CHECK_LEN] {
    let mut hash = derive(config.network.as_bytes(), "weft snapshot", &[bytes]);
    let mut check = [0; CHECK_LEN];
    check.copy_from_slice(&hash[..CHECK_LEN]);
    hash.zeroize();
    check
}

/// What follows the head of a snapshot that is one of this node's.
fn opened<'a>(config: &Config, snapshot: &'a [u8]) -> Result<&'a [u8], String> {
    let (bytes, found) = snapshot
        .split_last_chunk::<CHECK_LEN>()
        .ok_or("shorter than any snapshot")?;
    let mut reader = Reader::new(bytes);
    let mut head = || {
        Ok::<_, WireError>((
            reader.array::<8>()?,
            reader.u16()?,
            reader.node_id()?,
            reader.array::<5>()?,
        ))
    };
    let (magic, version, node, network) = head().map_err(|_| "shorter than any snapshot")?;
    if &magic != MAGIC {
        return Err("this is not a snapshot of a Weft node".to_owned());
    }
    if version != VERSION {
        return Err(format!(
            "its format is version {version}, this program knows {VERSION}"
        ));
    }
    if node != config.identity.id() {
        return Err(format!(
            "it is of node {}, this is {}",
            node.short(),
            config.identity.id().short()
        ));
    }
    if network != config.network.network_id().0 {
        return Err("it is of another network".to_owned());
    }
    if !bool::from(check(config, bytes).ct_eq(found)) {
        return Err("it is damaged: its checksum does not match".to_owned());
    }
    Ok(reader.rest())
}
