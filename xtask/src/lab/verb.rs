//! `cargo xtask lab up | down | list | status | exec`.

use std::{path::Path, process::Command};

use anyhow::{Context, Result, bail};
use weft_client::{Client, config::Layout};

use super::{
    Lab,
    netns::Netns,
    registry::{self, NodeRecord, Record},
    topology::Topology,
};
use crate::{paths::Programs, term, term::Style};

/// Brings a lab up and, unless it is kept, waits for Ctrl-C and removes it.
///
/// # Errors
/// When the topology is wrong or a node does not come up.
pub fn up(file: &Path, keep: bool, programs: &Programs) -> Result<()> {
    let topology = Topology::read(file)?;
    let lab = Lab::build(&topology, programs)?;
    lab.start_all()?;
    term::good(&format!("lab {} ({}) is up", lab.id(), topology.name));
    for node in lab.nodes() {
        let ends = node
            .ends()
            .iter()
            .map(|e| format!("{} {}", e.interface, e.address))
            .collect::<Vec<_>>();
        println!(
            "  {}  {}",
            term::paint(Style::Bold, node.name()),
            ends.join(", ")
        );
    }
    look_around(
        lab.id(),
        topology.nodes.keys().next().map_or("NODE", String::as_str),
    );
    if keep {
        return lab.keep();
    }
    println!("{}", term::paint(Style::Dim, "Ctrl-C removes it"));
    loop {
        // The thread that handles signals ends the process.
        std::thread::park();
    }
}

/// Prints how to look into a lab.
pub fn look_around(id: &str, node: &str) {
    println!("\nLook around (in another terminal):");
    for (command, what) in [
        (
            format!("cargo xtask lab status {id}"),
            "every node at a glance",
        ),
        (
            format!("cargo xtask lab exec --lab {id} {node} -- weft status"),
            "one node (any command runs inside)",
        ),
        (
            format!("cargo xtask lab exec --lab {id} {node} -- weft"),
            "its prompt",
        ),
        (
            format!(
                "weft --dir {}/{id}/{node} links",
                registry::base().display()
            ),
            "the same from outside",
        ),
        (format!("ip -n weft-{id}-{node} address"), "its interfaces"),
        (format!("cargo xtask lab down {id}"), "remove it"),
    ] {
        println!(
            "  {}  {}",
            term::paint(Style::Cyan, &command),
            term::paint(Style::Dim, &format!("# {what}"))
        );
    }
}

/// Removes a lab, or all that nobody holds.
///
/// # Errors
/// When it is another process's, or there is none of this id.
pub fn down(id: Option<&str>) -> Result<()> {
    registry::sweep()?;
    let labs = registry::list()?;
    let mut removed = 0;
    for (record, owned) in &labs {
        if id.is_some_and(|id| id != record.id) {
            continue;
        }
        if *owned {
            let hint = format!(
                "lab {} ({}) belongs to the running process {}",
                record.id, record.name, record.pid
            );
            if id.is_some() {
                bail!("{hint}: end that one (Ctrl-C, or `kill {}`)", record.pid);
            }
            term::warn(&format!("{hint}: left alone"));
            continue;
        }
        registry::demolish(record, &registry::base().join(&record.id));
        term::good(&format!("removed lab {} ({})", record.id, record.name));
        removed += 1;
    }
    match id {
        Some(id) if removed == 0 => {
            bail!("there is no lab {id}; `cargo xtask lab list` shows what there is")
        }
        None if removed == 0 => {
            term::good("nothing to remove");
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Lists labs.
///
/// # Errors
/// When they cannot be read.
pub fn list() -> Result<()> {
    let labs = registry::list()?;
    if labs.is_empty() {
        println!("no labs");
    }
    for (record, owned) in labs {
        let state = match (owned, record.keep) {
            (true, _) => format!("of process {}", record.pid),
            (false, true) => "kept".to_owned(),
            (false, false) => "left behind, the next lab removes it".to_owned(),
        };
        let nodes = record
            .nodes
            .iter()
            .map(|n| n.name.as_str())
            .collect::<Vec<_>>();
        println!(
            "{}  {}  {state}  {}",
            term::paint(Style::Bold, &record.id),
            record.name,
            nodes.join(" ")
        );
    }
    Ok(())
}

/// Shows a lab's nodes.
///
/// # Errors
/// When there is no such lab.
pub fn status(id: Option<&str>) -> Result<()> {
    let record = choose(id)?;
    println!(
        "lab {} ({})",
        term::paint(Style::Bold, &record.id),
        record.name
    );
    for node in &record.nodes {
        let state = match Client::connect(Layout::in_dir(&node.dir).socket)
            .and_then(|mut api| api.status())
        {
            Ok(s) => format!(
                "{}  {} neighbours, {} nodes, {} sessions, {} LSPs, up {} s",
                s.overlay_address, s.neighbours, s.nodes, s.sessions, s.lsps, s.uptime_s
            ),
            Err(_) if !node.daemon => "a bare host".to_owned(),
            Err(error) => term::paint(Style::Red, &error.to_string()),
        };
        println!("  {:<12} {state}", node.name);
    }
    Ok(())
}

/// Runs a command in a node's namespace; gives its exit code.
///
/// # Errors
/// When there is no such lab or node, or the command cannot be started.
pub fn exec(
    id: Option<&str>,
    node: &str,
    words: &[String],
    programs: Option<&Programs>,
) -> Result<i32> {
    let record = choose(id)?;
    let node = find(&record, node)?;
    let (program, arguments) = words.split_first().context("no command was given")?;
    let namespace = Netns::open(&node.namespace)?;
    let mut command: Command = namespace.command(program);
    command.args(arguments).env("WEFT_DIR", &node.dir);
    if let Some(folder) = programs.and_then(|p| p.weft.parent()) {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders)?);
    }
    let status = command
        .status()
        .with_context(|| format!("cannot start {program} in node {}", node.name))?;
    Ok(status.code().unwrap_or(1))
}

fn choose(id: Option<&str>) -> Result<Record> {
    let labs = registry::list()?;
    let ids = labs
        .iter()
        .map(|(r, _)| r.id.clone())
        .collect::<Vec<_>>()
        .join(", ");
    let mut fitting = labs
        .into_iter()
        .map(|(r, _)| r)
        .filter(|r| id.is_none_or(|id| id == r.id));
    match (fitting.next(), fitting.next()) {
        (Some(record), None) => Ok(record),
        (Some(_), Some(_)) => bail!("there are several labs ({ids}): say which with --lab ID"),
        (None, _) if ids.is_empty() => {
            bail!("there is no lab; `cargo xtask lab up FILE` makes one")
        }
        (None, _) => bail!(
            "there is no lab {}; there are {ids}",
            id.unwrap_or_default()
        ),
    }
}

fn find<'a>(record: &'a Record, node: &str) -> Result<&'a NodeRecord> {
    record
        .nodes
        .iter()
        .find(|n| n.name == node)
        .with_context(|| {
            let all = record
                .nodes
                .iter()
                .map(|n| n.name.as_str())
                .collect::<Vec<_>>();
            format!(
                "lab {} has no node {node:?}; its nodes are {}",
                record.id,
                all.join(", ")
            )
        })
}
