//! nebula: the transit is lighthouse and relay, and the ends, which have no route to each other, go through it. Its own
//! defaults otherwise.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::Result;
use serde_json::json;

use super::super::site::{SERVER, Site, TRANSIT};
use crate::{setup::peers, term};

const PORT: u16 = 4242;

fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 57, 0, u8::try_from(number + 1).unwrap_or(u8::MAX))
}

pub(super) fn start(site: &mut Site) -> Result<()> {
    let program = peers::find("nebula")?;
    let signer = peers::find("nebula-cert")?;
    let authority = site.lab.node(TRANSIT).dir().to_owned();
    let mut make = site.command(TRANSIT, &signer);
    make.current_dir(&authority);
    term::output_of(make.args(["ca", "-name", "bench", "-duration", "24h"]))?;
    let middle = address(0);
    for (number, name) in site.middle_first().into_iter().enumerate() {
        let own = address(number);
        let mut sign = site.command(TRANSIT, &signer);
        sign.current_dir(&authority);
        term::output_of(sign.args(["sign", "-name", &name, "-ip", &format!("{own}/24")]))?;
        let is_middle = name == TRANSIT;
        let (hosts, known) = if is_middle {
            (json!([]), json!({}))
        } else {
            let transit = site.lab.node(TRANSIT).end_to(&name).address;
            (
                json!([middle]),
                json!({ middle.to_string(): [format!("{transit}:{PORT}")] }),
            )
        };
        let config = json!({
            "pki": {
                "ca": authority.join("ca.crt"),
                "cert": authority.join(format!("{name}.crt")),
                "key": authority.join(format!("{name}.key")),
            },
            "static_host_map": known,
            "lighthouse": { "am_lighthouse": is_middle, "hosts": hosts },
            "relay": { "am_relay": is_middle, "relays": hosts, "use_relays": true },
            "listen": { "host": "0.0.0.0", "port": PORT },
            "punchy": { "punch": true },
            "tun": { "dev": "nebula0" },
            "logging": { "level": "info", "format": "text" },
            "firewall": {
                "outbound": [{ "port": "any", "proto": "any", "host": "any" }],
                "inbound": [{ "port": "any", "proto": "any", "host": "any" }],
            },
        });
        // JSON is YAML.
        let file = site.lab.node(&name).dir().join("nebula.yml");
        fs::write(&file, serde_json::to_string_pretty(&config)?)?;
        let mut command = site.command(&name, &program);
        command.arg("-config").arg(&file);
        site.spawn(&name, "nebula", command)?;
        site.wait_interface(&name, "nebula0")?;
        if name == SERVER {
            site.target = Some(IpAddr::from(own));
        }
    }
    let version = term::output_of(site.command(TRANSIT, &program).arg("-version"));
    site.version = site.version_or_package("nebula", version.ok().as_deref());
    Ok(())
}
