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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        identity::{Identity, NetworkSecret},
        io::{Input, UnderlayAddress, UnderlayPath},
        message::{LspId, Message},
        noise::test_rng::Seeded,
    };

    fn config(number: u8) -> Config {
        Config::new(
            Identity::from_secret(&[number; 32]),
            NetworkSecret::from_bytes([7; 32]),
        )
    }

    fn node(number: u8, peer: Option<&str>) -> Node {
        let mut config = config(number);
        config.peers = peer
            .iter()
            .map(|p| p.parse().expect("an address"))
            .collect();
        let mut node = Node::new(config, Box::new(Seeded(number.into(), 0)), Micros(0))
            .expect("a good configuration");
        let address = UnderlayAddress {
            address: format!("192.0.2.{number}").parse().expect("an address"),
            interface: "eth0".into(),
            prefix_len: 24,
            mtu: 1500,
            up: true,
            mode: crate::io::ForwardMode::KernelNative,
        };
        node.handle_input(
            Micros(0),
            Input::Underlay {
                addresses: &[address],
            },
        );
        node
    }

    /// Two nodes with a link; control frames go to and fro.
    fn linked() -> (Node, Node) {
        let (mut a, mut b) = (node(1, Some("192.0.2.2:7117")), node(2, None));
        let mut hops = [
            std::collections::BTreeMap::new(),
            std::collections::BTreeMap::new(),
        ];
        for step in 0..40_u64 {
            let now = Micros(step * 100_000);
            for (side, known) in hops.iter_mut().enumerate() {
                let (from, to) = if side == 0 {
                    (&mut a, &mut b)
                } else {
                    (&mut b, &mut a)
                };
                from.handle_timeout(now);
                while let Some(output) = from.poll_output() {
                    let turn = |p: UnderlayPath| UnderlayPath {
                        local: p.remote,
                        remote: p.local,
                    };
                    match output {
                        Output::SendDatagram { path, datagram } => {
                            to.handle_input(
                                now,
                                Input::Handshake {
                                    path: turn(path),
                                    datagram: &datagram,
                                },
                            );
                        }
                        Output::Dataplane(DataplaneOp::AddNextHop {
                            index, path, slot, ..
                        }) => {
                            known.insert(index, (path, slot));
                        }
                        Output::SendLink {
                            next_hop,
                            kind: weft_abi::Kind::Control,
                            body,
                        } => {
                            let (path, slot) = known[&next_hop];
                            to.handle_input(
                                now,
                                Input::Control {
                                    slot,
                                    path: turn(path),
                                    body: &body,
                                },
                            );
                        }
                        _ => {}
                    }
                }
            }
        }
        (a, b)
    }

    fn sealed(mut body: Vec<u8>) -> Vec<u8> {
        let check = check(&config(1), &body);
        body.extend_from_slice(&check);
        body
    }

    #[test]
    fn a_resumed_node_describes_the_same_tables_under_fresh_counters() {
        let (mut a, _) = linked();
        let before = a.links(Micros(0));
        assert_eq!(before.len(), 2);
        let mut resumed = Node::resume(config(1), &a.snapshot(), Box::new(Seeded(9, 0)), Micros(5))
            .expect("its own snapshot");
        let after = resumed.links(Micros(5));
        for (old, new) in before.iter().zip(&after) {
            assert_eq!(
                (
                    old.node, old.local, old.remote, old.slot, old.epoch, old.state
                ),
                (
                    new.node, new.local, new.remote, new.slot, new.epoch, new.state
                )
            );
        }
        let outputs: Vec<_> = std::iter::from_fn(|| resumed.poll_output()).collect();
        let restored = outputs
            .iter()
            .position(|o| matches!(o, Output::Dataplane(DataplaneOp::Restored)));
        let count = |wanted: fn(&DataplaneOp) -> bool| {
            let described = outputs[..restored.expect("an end of the description")].iter();
            described
                .filter(|o| matches!(o, Output::Dataplane(op) if wanted(op)))
                .count()
        };
        assert_eq!(count(|op| matches!(op, DataplaneOp::AddSlot { .. })), 1);
        assert_eq!(count(|op| matches!(op, DataplaneOp::AddNextHop { .. })), 1);
        assert_eq!(count(|op| matches!(op, DataplaneOp::SetGroup { .. })), 1);
        // Each resume reserves other counters than the one before, also from one and the same snapshot's successor.
        let (once, twice) = (resumed.snapshot(), {
            let again = Node::resume(
                config(1),
                &resumed.snapshot(),
                Box::new(Seeded(9, 0)),
                Micros(5),
            );
            again.expect("its own snapshot").snapshot()
        });
        assert_ne!(once, twice);
    }

    #[test]
    fn another_port_makes_a_snapshot_useless() {
        let (mut a, _) = linked();
        let mut moved = config(1);
        moved.port = 9999;
        let error = Node::resume(moved, &a.snapshot(), Box::new(Seeded(9, 0)), Micros(5)).err();
        assert!(error.is_some_and(|e| e.to_string().contains("port has the value 7117")));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        /// Whoever can write the file could also recompute its checksum: even then nothing panics or hangs.
        #[test]
        fn no_snapshot_panics(at: prop::sample::Index, value: u8, cut in proptest::option::of(any::<prop::sample::Index>())) {
            static GOOD: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();
            let good = GOOD.get_or_init(|| linked().0.snapshot());
            let mut body = good[..good.len() - CHECK_LEN].to_vec();
            let i = 47 + at.index(body.len() - 47);
            body[i] = value;
            if let Some(cut) = cut {
                body.truncate(47 + cut.index(body.len() - 47));
            }
            if let Ok(mut node) = Node::resume(config(1), &sealed(body), Box::new(Seeded(9, 0)), Micros(5)) {
                for step in 1..5 {
                    node.handle_timeout(Micros::from_secs(step));
                    while node.poll_output().is_some() {}
                }
                let _ = node.snapshot();
            }
        }

        /// An authentic neighbour that sends nonsense harms nobody.
        #[test]
        fn no_message_of_a_neighbour_panics(
            messages in proptest::collection::vec((1_u8..13, proptest::collection::vec(any::<u8>(), 0..120)), 1..20),
        ) {
            let mut node = node(1, None);
            let stranger = Identity::from_secret(&[3; 32]).id();
            for (kind, mut bytes) in messages {
                bytes.insert(0, kind);
                let Ok(message) = Message::decode(&bytes) else { continue };
                let now = Micros::from_secs(1);
                node.on_link_event(now, crate::link::LinkEvent::Message { from: stranger, message });
                node.settle(now);
            }
            let teardown = Message::LspTeardown { id: LspId(1) };
            node.on_link_event(Micros(1), crate::link::LinkEvent::Message { from: stranger, message: teardown });
            while node.poll_output().is_some() {}
        }
    }
}
