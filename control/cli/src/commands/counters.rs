//! `weft counters`: once, or again and again with rates.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use weft_client::{Error, api::Counters};

use crate::{
    args::CountersArgs,
    context::Context,
    failure::Failure,
    render::{Align, BOLD, Cell, DIM, Table, WARN, count},
};

type Group = BTreeMap<String, u64>;

/// One group of counters.
struct Section {
    title: &'static str,
    /// Whether they should stand still.
    drops: bool,
    group: fn(&Counters) -> &Group,
}

const SECTIONS: [Section; 6] = [
    Section {
        title: "kernel (XDP)",
        drops: false,
        group: |counters| &counters.xdp,
    },
    Section {
        title: "kernel (XDP) drops",
        drops: true,
        group: |counters| &counters.xdp_drops,
    },
    Section {
        title: "user-space forwarder",
        drops: false,
        group: |counters| &counters.user,
    },
    Section {
        title: "user-space forwarder drops",
        drops: true,
        group: |counters| &counters.user_drops,
    },
    Section {
        title: "sessions",
        drops: false,
        group: |counters| &counters.sessions,
    },
    Section {
        title: "control plane",
        drops: false,
        group: |counters| &counters.control,
    },
];

pub(super) fn run(context: &mut Context, args: &CountersArgs) -> Result<(), Failure> {
    let mut client = context.connect()?;
    let mut now = client.counters()?;
    let mut at = Instant::now();
    let Some(watch) = args.watch else {
        if context.json {
            return context.document(&now);
        }
        return show(context, &now, None, args.all);
    };

    context.catch_interrupts()?;
    // Connected before Ctrl-C was caught: this one heeds it.
    let mut client = context.connect()?;
    let mut left = args.count;
    if context.json {
        context.item(&now)?;
    } else {
        page(context, watch)?;
        show(context, &now, None, args.all)?;
    }
    loop {
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(());
        }
        context.pause(Duration::from_secs_f64(watch).saturating_sub(at.elapsed()));
        if context.was_interrupted() {
            return Ok(());
        }
        let next = match client.counters() {
            Err(Error::Cancelled) => return Ok(()),
            other => other?,
        };
        let elapsed = at.elapsed();
        at = Instant::now();
        if context.json {
            context.item(&next)?;
        } else {
            page(context, watch)?;
            show(context, &next, Some((&now, elapsed)), args.all)?;
        }
        now = next;
    }
}

/// A fresh screen on a terminal, an empty line elsewhere.
fn page(context: &mut Context, watch: f64) -> Result<(), Failure> {
    if context.is_terminal() {
        context.text("\x1b[H\x1b[2J\x1b[3J")?;
        let title = format!("every {watch} s, Ctrl-C ends");
        context.line(&context.paint(DIM, &title))
    } else {
        context.line("")
    }
}

fn show(
    context: &mut Context,
    now: &Counters,
    before: Option<(&Counters, Duration)>,
    all: bool,
) -> Result<(), Failure> {
    let mut shown = false;
    for Section {
        title,
        drops,
        group,
    } in SECTIONS
    {
        let values = group(now);
        if !values.values().any(|&value| all || value > 0) {
            continue;
        }
        shown = true;
        context.line(&context.paint(BOLD, title))?;
        let mut table = Table::bare(&[Align::Left, Align::Right, Align::Right]).indented(2);
        for (name, &value) in values.iter().filter(|(_, value)| all || **value > 0) {
            let rate = before.map(|(before, elapsed)| {
                // A smaller value than before: the daemon has begun anew.
                let grown = value.saturating_sub(group(before).get(name).copied().unwrap_or(0));
                grown as f64 / elapsed.as_secs_f64().max(0.001)
            });
            let grows = rate.is_some_and(|rate| rate > 0.0);
            let style = if drops && grows {
                WARN
            } else {
                anstyle::Style::new()
            };
            table.row([
                Cell::from(name),
                Cell::new(count(value), style),
                match rate {
                    Some(rate) if grows => Cell::new(rate_text(rate), style),
                    Some(_) => Cell::new("0/s", DIM),
                    None => Cell::new(" ", DIM),
                },
            ]);
        }
        table.print(context)?;
    }
    if !shown {
        context.line("All counters are at zero (--all shows them).")?;
    }
    Ok(())
}

fn rate_text(rate: f64) -> String {
    if rate < 10.0 {
        format!("{rate:.1}/s")
    } else {
        format!("{}/s", count(rate.round() as u64))
    }
}
