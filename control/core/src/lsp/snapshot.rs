//! LSPs that pass and end here, in a snapshot. Those that begin here are the sessions', and begin anew.

use weft_abi::{Label, LfibEntry};
use zeroize::Zeroizing;

use super::{Lsps, Owner, PassId, Passing, Role};
use crate::{
    io::Micros,
    link::Links,
    message::{LspId, MAX_REPLY},
    node::context::Context,
    wire::{Reader, WireError, Writer},
};

impl Lsps {
    pub(crate) fn save(&self, w: &mut Writer) {
        let up: Vec<_> = self
            .passing
            .values()
            .filter_map(|p| Some((p, p.in_label?)))
            .collect();
        w.u32(up.len() as u32);
        for (pass, label) in up {
            w.node_id(&pass.predecessor)
                .u64(pass.id_in.0)
                .u32(label.0)
                .bytes(&*pass.key)
                .u64(pass.lifetime.0);
            match &pass.role {
                Role::Transit {
                    successor,
                    id_out,
                    out_label,
                    payload_mtu,
                    reply,
                    ..
                } => {
                    w.u8(1)
                        .node_id(successor)
                        .u64(id_out.0)
                        .u32(out_label.map_or(0, |l| l.0));
                    w.u16(*payload_mtu).var_bytes(reply);
                }
                Role::Egress { reply, peer } => {
                    w.u8(2)
                        .bool(peer.is_some())
                        .bytes(&peer.map_or([0; 32], |p| p.0));
                    w.var_bytes(reply.as_deref().unwrap_or_default());
                }
            }
        }
    }

    pub(crate) fn load(
        &mut self,
        context: &mut Context<'_>,
        links: &Links,
        r: &mut Reader<'_>,
    ) -> Result<(), WireError> {
        for _ in 0..r.u32()? {
            let (predecessor, id_in, label) = (r.node_id()?, LspId(r.u64()?), Label(r.u32()?));
            let (key, lifetime) = (Zeroizing::new(r.array()?), Micros(r.u64()?));
            let pass = PassId(self.fresh_id());
            let (role, entry) = match r.u8()? {
                1 => {
                    let (successor, id_out, out_label) =
                        (r.node_id()?, LspId(r.u64()?), Label(r.u32()?));
                    let (payload_mtu, reply) =
                        (r.u16()?, r.var_bytes("reply", MAX_REPLY)?.to_vec());
                    let group = links.neighbour(&successor).map(|n| n.group);
                    let group = group.ok_or(WireError::Value {
                        field: "successor",
                        value: 0,
                    })?;
                    self.own_out(context, successor, id_out, Owner::Pass(pass));
                    let entry = LfibEntry::swap(out_label, group);
                    (
                        Role::Transit {
                            successor,
                            id_out,
                            out_label: Some(out_label),
                            onion: Vec::new(),
                            payload_mtu,
                            reply,
                        },
                        entry,
                    )
                }
                2 => {
                    let known = r.bool("peer")?;
                    let peer = r.node_id()?;
                    let reply = r.var_bytes("reply", MAX_REPLY)?.to_vec();
                    let role = Role::Egress {
                        reply: Some(reply),
                        peer: known.then_some(peer),
                    };
                    (role, LfibEntry::DELIVER)
                }
                value => {
                    return Err(WireError::Value {
                        field: "role",
                        value: value.into(),
                    });
                }
            };
            if self.by_in.contains_key(&(predecessor, id_in))
                || !context.forwarding.claim_label(label)
            {
                return Err(WireError::Value {
                    field: "label",
                    value: label.0.into(),
                });
            }
            context.forwarding.set_label(context.out, label, entry);
            let now = context.now;
            self.insert_pass(
                pass,
                Passing {
                    predecessor,
                    id_in,
                    in_label: Some(label),
                    role,
                    key,
                    lifetime,
                    since: now,
                    expires: now + lifetime,
                    told_broken: false,
                },
            );
        }
        Ok(())
    }
}
