//! Weft: `weftd` in every namespace, those in the middle without TUN.

use std::net::IpAddr;

use anyhow::Result;
use weft_client::api::ForwardMode;

use super::super::site::{CLIENT, SERVER, Site};

pub(super) fn start(site: &mut Site) -> Result<()> {
    site.lab.start_all()?;
    site.lab.wait_reachable(CLIENT, SERVER)?;
    site.lab.wait_reachable(SERVER, CLIENT)?;
    let server = site.lab.node(SERVER).api()?.status()?;
    site.target = Some(IpAddr::from(server.overlay_address));
    site.version = format!("weftd {}", server.version);
    for node in site.lab.daemons() {
        let status = node.api()?.status()?;
        for interface in status.interfaces.iter().filter(|i| i.up) {
            if interface.mode != ForwardMode::KernelNative {
                site.notes.push(format!(
                    "{} forwards on {} in mode {:?}: {}",
                    node.name(),
                    interface.name,
                    interface.mode,
                    interface.reason
                ));
            }
        }
    }
    Ok(())
}
