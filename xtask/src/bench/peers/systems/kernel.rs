//! Kernel routing: nothing runs, everything is routes.

use std::net::IpAddr;

use anyhow::Result;

use super::super::site::Site;
use crate::lab::netns::{self, Offload};

pub(super) fn start(site: &mut Site, offloads: bool) -> Result<()> {
    if !offloads {
        for node in site.lab.nodes() {
            for end in node.ends() {
                for offload in [Offload::Tso, Offload::Gso, Offload::Gro] {
                    node.namespace()
                        .run(|| netns::set_offload(&end.interface, offload, false))??;
                }
            }
        }
    }
    site.route()?;
    site.target = Some(IpAddr::from(site.underlay_of_server()?));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    site.version = format!("Linux {}", release.trim());
    Ok(())
}
