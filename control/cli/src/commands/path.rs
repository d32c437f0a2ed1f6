//! `weft trace` and `weft why`: the path to a node, as it is walked and as it was chosen.

use weft_client::{
    Error,
    api::{Constraints, TraceHop, Why},
};

use super::tables::{mode_word, name_or_id, path_text};
use crate::{
    args::{TraceArgs, WhyArgs},
    context::Context,
    failure::Failure,
    render::{Align, BAD, BOLD, Cell, DIM, NAME, Table, clean, milliseconds, plural},
};

pub(super) fn trace(context: &mut Context, args: &TraceArgs) -> Result<(), Failure> {
    context.catch_interrupts()?;
    let mut client = context.connect()?;
    let mut arrived = false;
    for (at, hop) in client.trace(&args.node)?.enumerate() {
        let hop = match hop {
            Ok(hop) => hop,
            Err(Error::Cancelled) => return Err(Failure::Shown),
            Err(error) => return Err(error.into()),
        };
        arrived = hop.node_id.is_some();
        if context.json {
            context.item(&hop)?;
            continue;
        }
        if at == 0 {
            let title = format!(
                "{:>3}  {:<18} {:>8} {:>10}  {}",
                "HOP", "NODE", "LABEL", "RTT", "SWITCHED IN"
            );
            context.line(&context.paint(DIM, &title))?;
        }
        let line = hop_line(context, &hop);
        context.line(&line)?;
    }
    // The last hop is the node asked for: without it the path does not work.
    if arrived { Ok(()) } else { Err(Failure::Shown) }
}

fn hop_line(context: &Context, hop: &TraceHop) -> String {
    let Some(node_id) = &hop.node_id else {
        return context.paint(BAD, &format!("{:>3}  *  no answer in time", hop.hop));
    };
    let name = clean(name_or_id(hop.name.as_deref().unwrap_or_default(), node_id)).into_owned();
    let label = hop
        .label
        .map_or_else(|| "-".to_owned(), |label| label.to_string());
    let rtt = hop.rtt_ms.map_or_else(|| "-".to_owned(), milliseconds);
    let padding =
        " ".repeat(18_usize.saturating_sub(unicode_width::UnicodeWidthStr::width(name.as_str())));
    format!(
        "{:>3}  {}{padding} {label:>8} {rtt:>10}  {}",
        hop.hop,
        context.paint(NAME, &name),
        hop.mode.map_or("-", mode_word)
    )
}

pub(super) fn why(context: &mut Context, args: WhyArgs) -> Result<(), Failure> {
    let constraints = Constraints {
        include: args.include,
        avoid: args.avoid,
        max_delay_ms: args.max_delay,
        min_bandwidth_mbps: args.min_bandwidth,
    };
    let why = context.connect()?.why(args.node, constraints)?;
    if context.json {
        context.document(&why)?;
    } else {
        show(context, &why)?;
    }
    // Nodes reach themselves over no link at all.
    if why.path.is_empty() && why.no_path.is_some() {
        Err(Failure::Shown)
    } else {
        Ok(())
    }
}

fn show(context: &mut Context, why: &Why) -> Result<(), Failure> {
    let name = context.paint(BOLD, &clean(name_or_id(&why.name, &why.node_id)));
    match &why.no_path {
        Some(reason) => context.line(&format!(
            "{name}: {} {}",
            context.paint(BAD, "no path:"),
            clean(reason)
        ))?,
        None => {
            let cost = why
                .cost
                .map_or_else(|| "unknown".to_owned(), |cost| cost.to_string());
            context.line(&format!(
                "{name}: {}, cost {cost}",
                plural(why.path.len(), "hop", "hops")
            ))?;
        }
    }
    let mut path = Table::bare(&[Align::Left, Align::Right, Align::Left]).indented(2);
    for hop in &why.path {
        path.row([
            Cell::new(format!("{} → {}", hop.from, hop.to), NAME),
            hop.cost.to_string().into(),
            Cell::new(&hop.because, DIM),
        ]);
    }
    path.print(context)?;
    if let Some(in_use) = &why.in_use {
        context.line(&format!("in use   {}", clean(in_use)))?;
    }
    if !why.path.is_empty() {
        let standby = if why.standby.is_empty() {
            "none: no second path that shares no transit".into()
        } else {
            path_text(&why.standby)
        };
        context.line(&format!("standby  {}", clean(&standby)))?;
    }
    if !why.refused.is_empty() {
        context.line("refused")?;
        let mut refused = Table::bare(&[Align::Left; 3]).indented(2);
        for item in &why.refused {
            refused.row([
                Cell::new(&item.what, NAME),
                Cell::from(&item.reason),
                Cell::new(&item.detail, DIM),
            ]);
        }
        refused.print(context)?;
    }
    Ok(())
}
