//! The commands that show what the daemon knows: one call, one table.

use anstyle::Style;
use weft_client::api::{ForwardMode, Interface, Offload, Status};

use crate::{
    context::Context,
    failure::Failure,
    render::{
        Align, BOLD, Cell, DIM, GOOD, NAME, NONE, Table, WARN, bytes, capacity, clean, count,
        duration, milliseconds, percent, plural, state_style,
    },
};

pub(super) fn status(context: &mut Context) -> Result<(), Failure> {
    let status = context.connect()?.status()?;
    if context.json {
        return context.document(&status);
    }
    show_status(context, &status)
}

/// The text of `weft status`, which `weft up` shows as well.
pub(super) fn show_status(context: &mut Context, status: &Status) -> Result<(), Failure> {
    let title = format!(
        "{}  {}",
        context.paint(BOLD, &clean(&status.name)),
        context.paint(GOOD, &format!("up {}", duration(status.uptime_s)))
    );
    let daemon = format!("weftd {}, pid {}", clean(&status.version), status.pid);
    context.line(&format!("{title}  {}", context.paint(DIM, &daemon)))?;

    let mut facts = Table::bare(&[Align::Left, Align::Left]).indented(2);
    let mut fact = |what: &str, value: String| facts.row([Cell::new(what, DIM), Cell::from(value)]);
    fact("node id", status.node_id.clone());
    fact("network", status.network_id.clone());
    let tun = match &status.tun {
        Some(tun) => format!("on {tun}"),
        None => "(pure transit, no interface)".into(),
    };
    fact("address", format!("{} {tun}", status.overlay_address));
    fact("port", format!("udp {}", status.port));
    fact(
        "mesh",
        [
            plural(status.neighbours, "neighbour", "neighbours"),
            plural(status.nodes, "node", "nodes"),
            plural(status.sessions, "session", "sessions"),
            plural(status.lsps, "LSP", "LSPs"),
        ]
        .join(", "),
    );
    if status.resumed {
        fact(
            "resumed",
            "took over the forwarding of an earlier run".into(),
        );
    }
    facts.print(context)?;

    context.line("")?;
    if status.interfaces.is_empty() {
        context.line(&context.paint(WARN, "no underlay interface: nothing can be reached"))?;
    } else {
        interfaces(&status.interfaces).print(context)?;
    }
    if !status.offloads.is_empty() {
        context.line("")?;
        offloads(context, &status.offloads)?;
    }
    if !status.notices.is_empty() {
        context.line("")?;
    }
    for notice in &status.notices {
        context.line(&format!("{} {}", context.paint(WARN, "!"), clean(notice)))?;
    }
    Ok(())
}

/// What is on in one line; what is off with its reason, each in one of its own.
fn offloads(context: &mut Context, offloads: &[Offload]) -> Result<(), Failure> {
    let on: Vec<String> = offloads
        .iter()
        .filter(|offload| offload.on)
        .map(|offload| clean(&offload.name).into_owned())
        .collect();
    let on = if on.is_empty() {
        context.paint(WARN, "none")
    } else {
        context.paint(GOOD, &on.join(" "))
    };
    context.line(&format!("  {} {on}", context.paint(DIM, "offloads on ")))?;
    for offload in offloads.iter().filter(|offload| !offload.on) {
        context.line(&format!(
            "  {} {}: {}",
            context.paint(DIM, "offload off "),
            clean(&offload.name),
            context.paint(DIM, &clean(&offload.reason))
        ))?;
    }
    Ok(())
}

fn interfaces(interfaces: &[Interface]) -> Table {
    let mut table = Table::new(&[
        "INTERFACE",
        "STATE",
        ">MTU",
        "SWITCHED IN",
        "ADDRESSES",
        "WHY NOT BETTER",
    ]);
    for interface in interfaces {
        let state = if interface.up { "up" } else { "down" };
        let addresses: Vec<String> = interface
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect();
        table.row([
            Cell::new(&interface.name, NAME),
            Cell::new(state, state_style(state)),
            interface.mtu.to_string().into(),
            mode_cell(Some(interface.mode)),
            addresses.join(" ").into(),
            Cell::new(&interface.reason, DIM),
        ]);
    }
    table
}

/// The API's word for where packets are switched.
pub(super) fn mode_word(mode: ForwardMode) -> &'static str {
    match mode {
        ForwardMode::KernelNative => "kernel_native",
        ForwardMode::KernelGeneric => "kernel_generic",
        ForwardMode::UserSpace => "user_space",
    }
}

pub(super) fn mode_cell(mode: Option<ForwardMode>) -> Cell {
    let style = match mode {
        Some(ForwardMode::KernelNative) => GOOD,
        Some(ForwardMode::KernelGeneric) => Style::new(),
        Some(ForwardMode::UserSpace) => WARN,
        None => DIM,
    };
    Cell::new(mode.map_or(NONE, mode_word), style)
}

pub(super) fn host(context: &mut Context) -> Result<(), Failure> {
    let changes = context.connect()?.host()?;
    if context.json {
        return context.document(&changes);
    }
    if changes.is_empty() {
        return context.line("weftd has changed nothing on this host.");
    }
    let mut table = Table::new(&["KIND", "WHAT", "UNDONE BY"]);
    for change in &changes {
        table.row([
            Cell::new(&change.kind, NAME),
            Cell::from(&change.what),
            Cell::from(&change.undo),
        ]);
    }
    table.print(context)
}

pub(super) fn links(context: &mut Context) -> Result<(), Failure> {
    let links = context.connect()?.links()?;
    if context.json {
        return context.document(&links);
    }
    if links.is_empty() {
        return context.line(
            "No links. `weft peers` shows which neighbours are called and why none answers.",
        );
    }
    let mut table = Table::new(&[
        "DIR",
        "NEIGHBOUR",
        "STATE",
        ">COST",
        ">LOSS",
        ">RTT",
        "?>JITTER",
        "?>CAPACITY",
        "?>MTU",
        "?>SLOT",
        "?>EPOCH",
        "SWITCHED IN",
        "?LOCAL",
        "REMOTE",
    ]);
    for link in &links {
        table.row([
            link.direction.as_str().into(),
            name_cell(&link.name, &link.node_id),
            Cell::new(&link.state, state_style(&link.state)),
            link.cost.to_string().into(),
            Cell::maybe(link.loss.map(percent)),
            Cell::maybe(link.rtt_ms.map(milliseconds)),
            Cell::maybe(link.jitter_ms.map(milliseconds)),
            Cell::maybe(link.capacity_mbps.map(capacity)),
            link.mtu.to_string().into(),
            link.slot.to_string().into(),
            link.epoch.to_string().into(),
            mode_cell(Some(link.mode)),
            link.local.to_string().into(),
            link.remote.to_string().into(),
        ]);
    }
    table.print(context)
}

/// A node's name, or the beginning of its id where it has told none.
pub(super) fn name_cell(name: &str, node_id: &str) -> Cell {
    Cell::new(name_or_id(name, node_id), NAME)
}

pub(super) fn name_or_id<'a>(name: &'a str, node_id: &'a str) -> &'a str {
    if name.is_empty() {
        short(node_id)
    } else {
        name
    }
}

pub(super) fn short(node_id: &str) -> &str {
    node_id.get(..8).unwrap_or(node_id)
}

pub(super) fn nodes(context: &mut Context) -> Result<(), Failure> {
    let mut nodes = context.connect()?.nodes()?;
    if context.json {
        return context.document(&nodes);
    }
    // This node first, then from near to far.
    nodes.sort_by_key(|node| {
        (
            !node.reachable,
            node.cost.unwrap_or(u32::MAX),
            node.name.clone(),
        )
    });
    let mut table = Table::new(&[
        "NAME",
        "ID",
        "ADDRESS",
        "PATH",
        ">COST",
        "?>LSA AGE",
        "?>SEQ",
        "?SENDS TO",
        "PREFIXES",
    ]);
    for node in &nodes {
        let (path, style) = if node.reachable {
            ("reachable", GOOD)
        } else {
            ("none", WARN)
        };
        table.row([
            Cell::new(&node.name, NAME),
            short(&node.node_id).into(),
            node.overlay_address.to_string().into(),
            Cell::new(path, style),
            Cell::maybe(node.cost.map(|cost| cost.to_string())),
            duration(node.age_s).into(),
            node.sequence.to_string().into(),
            node.sends_to.join(" ").into(),
            node.prefixes.join(" ").into(),
        ]);
    }
    table.print(context)
}

pub(super) fn lsps(context: &mut Context) -> Result<(), Failure> {
    let lsps = context.connect()?.lsps()?;
    if context.json {
        return context.document(&lsps);
    }
    if lsps.is_empty() {
        return context.line(
            "No LSPs. They are set up when traffic wants to go somewhere: try `weft ping NODE`.",
        );
    }
    let mut table = Table::new(&[
        "ROLE", "STATE", ">IN", ">OUT", "FROM", "TO", ">PACKETS", "?>BYTES", "?>AGE", "?>MTU",
        "PATH",
    ]);
    for lsp in &lsps {
        let role = if lsp.protection.is_empty() {
            lsp.role.clone()
        } else {
            format!("{} {}", lsp.role, lsp.protection)
        };
        table.row([
            role.into(),
            Cell::new(&lsp.state, state_style(&lsp.state)),
            Cell::maybe(lsp.in_label.map(|label| label.to_string())),
            Cell::maybe(lsp.out_label.map(|label| label.to_string())),
            Cell::maybe(lsp.from.as_ref()),
            Cell::maybe(lsp.to.as_ref()),
            count(lsp.packets).into(),
            bytes(lsp.bytes).into(),
            duration(lsp.age_s).into(),
            Cell::maybe(lsp.inner_mtu.map(|mtu| mtu.to_string())),
            path_text(&lsp.path).into(),
        ]);
    }
    table.print(context)
}

pub(super) fn path_text(path: &[String]) -> String {
    path.join(" → ")
}

pub(super) fn routes(context: &mut Context) -> Result<(), Failure> {
    let routes = context.connect()?.routes()?;
    if context.json {
        return context.document(&routes);
    }
    if routes.is_empty() {
        return context.line("No routes: no other node is known. `weft peers` shows which neighbours are called and why none answers.");
    }
    let mut table = Table::new(&[
        "PREFIX",
        "NODE",
        ">COST",
        ">MTU",
        "IN KERNEL",
        "PATH IN USE",
    ]);
    for route in &routes {
        let path = if route.path.is_empty() {
            "(no session yet)".into()
        } else {
            path_text(&route.path)
        };
        table.row([
            route.prefix.as_str().into(),
            name_cell(&route.name, &route.node_id),
            route.cost.map_or_else(
                || Cell::new("no path", WARN),
                |cost| cost.to_string().into(),
            ),
            Cell::maybe(route.mtu.map(|mtu| mtu.to_string())),
            if route.installed {
                Cell::new("yes", GOOD)
            } else {
                Cell::new("no", WARN)
            },
            path.into(),
        ]);
    }
    table.print(context)
}

pub(super) fn sessions(context: &mut Context) -> Result<(), Failure> {
    let sessions = context.connect()?.sessions()?;
    if context.json {
        return context.document(&sessions);
    }
    if sessions.is_empty() {
        return context.line("No sessions. They are set up when traffic wants to go somewhere: try `weft ping NODE`.");
    }
    let mut table = Table::new(&[
        "NODE",
        "STATE",
        "?CIPHER",
        "?>EPOCH",
        "?>KEY AGE",
        "?>MTU",
        ">SENT",
        ">",
        ">RECEIVED",
        ">",
        "?ADDRESS",
    ]);
    for session in &sessions {
        table.row([
            name_cell(&session.name, &session.node_id),
            Cell::new(&session.state, state_style(&session.state)),
            session.cipher.as_str().into(),
            session.epoch.to_string().into(),
            duration(session.key_age_s).into(),
            Cell::maybe(session.inner_mtu.map(|mtu| mtu.to_string())),
            format!("{} pkt", count(session.tx_packets)).into(),
            bytes(session.tx_bytes).into(),
            format!("{} pkt", count(session.rx_packets)).into(),
            bytes(session.rx_bytes).into(),
            session.overlay_address.to_string().into(),
        ]);
    }
    table.print(context)
}
