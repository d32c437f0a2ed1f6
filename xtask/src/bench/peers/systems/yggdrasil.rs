//! yggdrasil: the transit listens, both ends have it as their peer. Its own defaults otherwise.

use std::{fs, net::IpAddr};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::super::site::{SERVER, Site, TRANSIT};
use crate::{setup::peers, term};

const PORT: u16 = 9001;

pub(super) fn start(site: &mut Site) -> Result<()> {
    let program = peers::find("yggdrasil")?;
    for name in site.middle_first() {
        let node = site.lab.node(&name);
        let made = term::output_of(site.command(&name, &program).args(["-genconf", "-json"]))?;
        let mut config: Value =
            serde_json::from_str(&made).context("`yggdrasil -genconf -json` wrote no JSON")?;
        config["MulticastInterfaces"] = json!([]);
        config["AdminListen"] = json!("none");
        if name == TRANSIT {
            config["Listen"] = json!([format!("tcp://0.0.0.0:{PORT}")]);
            config["IfName"] = json!("none");
        } else {
            let transit = site.lab.node(TRANSIT).end_to(&name).address;
            config["Peers"] = json!([format!("tcp://{transit}:{PORT}")]);
            config["IfName"] = json!("ygg0");
        }
        let file = node.dir().join("yggdrasil.json");
        fs::write(&file, config.to_string())?;
        let mut command = site.command(&name, &program);
        command
            .arg("-useconffile")
            .arg(&file)
            .args(["-logto", "stdout"]);
        site.spawn(&name, "yggdrasil", command)?;
        if name == TRANSIT {
            site.wait_listening(TRANSIT, PORT)?;
        }
        if name == SERVER {
            let address = term::output_of(
                site.command(&name, &program)
                    .arg("-address")
                    .arg("-useconffile")
                    .arg(&file),
            )?;
            let address: IpAddr = address
                .trim()
                .parse()
                .context("`yggdrasil -address` told no address")?;
            site.target = Some(address);
        }
    }
    let version = term::output_of(site.command(TRANSIT, &program).arg("-version"));
    site.version = site.version_or_package("yggdrasil", version.ok().as_deref());
    Ok(())
}
