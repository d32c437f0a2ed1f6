//! `weft peers`: list, add, remove.

use std::net::{SocketAddr, ToSocketAddrs as _};

use weft_client::{api::Peer, config::PeerAddress};

use super::tables::short;
use crate::{
    args::{PeersArgs, PeersCommand},
    context::Context,
    failure::Failure,
    render::{Cell, DIM, NAME, Table, duration, milliseconds, state_style},
};

pub(super) fn run(context: &mut Context, args: PeersArgs) -> Result<(), Failure> {
    match args.command.unwrap_or(PeersCommand::List) {
        PeersCommand::List => list(context),
        PeersCommand::Add { address } => {
            let mut client = context.connect()?;
            let resolved = resolve(&address)?;
            client.add_peer(resolved.to_string())?;
            if context.json {
                return context.document(&serde_json::Value::Null);
            }
            context.line(&format!(
                "weftd calls {resolved} from now on; `weft peers` shows what becomes of it."
            ))?;
            let file = context.layout.config.display().to_string();
            context.line(&context.paint(
                DIM,
                &format!("To keep it when weftd restarts, add \"{address}\" to `peers` in {file}."),
            ))
        }
        PeersCommand::Remove { address } => {
            let mut client = context.connect()?;
            let resolved = resolve(&address)?;
            client.remove_peer(resolved.to_string())?;
            if context.json {
                return context.document(&serde_json::Value::Null);
            }
            context.line(&format!("weftd has ended the links to {resolved}."))
        }
    }
}

/// The API takes addresses; people also know names and leave out the port.
fn resolve(text: &str) -> Result<SocketAddr, Failure> {
    let peer: PeerAddress = text.parse().map_err(Failure::Usage)?;
    let mut found = (peer.host.as_str(), peer.port)
        .to_socket_addrs()
        .map_err(|error| {
            Failure::Failed(format!(
                "the host name {:?} cannot be resolved: {error}",
                peer.host
            ))
        })?;
    found
        .next()
        .ok_or_else(|| Failure::Failed(format!("the host name {:?} has no address", peer.host)))
}

fn list(context: &mut Context) -> Result<(), Failure> {
    let peers = context.connect()?.peers()?;
    if context.json {
        return context.document(&peers);
    }
    show(context, &peers)
}

/// The text of `weft peers`.
pub(super) fn show(context: &mut Context, peers: &[Peer]) -> Result<(), Failure> {
    if peers.is_empty() {
        context.line("No neighbours: none is configured and none has called.")?;
        return context.line("Call one with `weft peers add ADDRESS`, or run on another gateway what `weft invite` prints here.");
    }
    let mut table = Table::new(&["ADDRESS", "NODE", "STATE", ">RTT", "SOURCE", "DETAIL"]);
    for peer in peers {
        let node = peer
            .name
            .as_deref()
            .filter(|name| !name.is_empty())
            .or(peer.node_id.as_deref().map(short));
        // While established the detail is a number of seconds.
        let detail = match peer.detail.trim_end_matches(" s").parse() {
            Ok(seconds) => format!("for {}", duration(seconds)),
            Err(_) => peer.detail.clone(),
        };
        table.row([
            peer.address.to_string().into(),
            node.map_or_else(|| Cell::maybe(None::<&str>), |node| Cell::new(node, NAME)),
            Cell::new(&peer.state, state_style(&peer.state)),
            Cell::maybe(peer.rtt_ms.map(milliseconds)),
            peer.source.as_str().into(),
            Cell::new(detail, DIM),
        ]);
    }
    table.print(context)
}
