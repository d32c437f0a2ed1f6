//! tinc: the ends connect to the transit and know each other as indirect, so that packets go through it. Its own
//! defaults otherwise.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
};

use anyhow::{Context, Result};

use super::super::site::{SERVER, Site, TRANSIT};
use crate::{setup::peers, term};

const PORT: u16 = 655;

pub(super) fn start(site: &mut Site) -> Result<()> {
    let program = peers::find("tincd")?;
    let names = site.middle_first();
    let address =
        |number: usize| Ipv4Addr::new(10, 59, 0, u8::try_from(number + 1).unwrap_or(u8::MAX));
    let mut hosts = Vec::new();
    for (number, name) in names.iter().enumerate() {
        let folder = site.lab.node(name).dir().join("tinc");
        fs::create_dir_all(folder.join("hosts"))?;
        let connect = if name == TRANSIT {
            String::new()
        } else {
            format!("ConnectTo = {TRANSIT}\n")
        };
        let config = format!(
            "Name = {name}\nInterface = tinc0\nDeviceType = tun\nMode = router\nAddressFamily = ipv4\n{connect}"
        );
        fs::write(folder.join("tinc.conf"), config)?;
        let mut make = site.command(name, &program);
        // It asks where to put the keys; the end of its input is its default.
        term::output_of(make.arg("-c").arg(&folder).arg("-K2048"))?;
        let own = folder.join("hosts").join(name);
        let key = fs::read_to_string(&own).context("`tincd -K` left no public key")?;
        hosts.push(format!(
            "Subnet = {}/32\nIndirectData = yes\n{key}",
            address(number)
        ));
    }
    for (number, name) in names.iter().enumerate() {
        let node = site.lab.node(name);
        let folder = node.dir().join("tinc");
        for (host, text) in names.iter().zip(&hosts) {
            let mut text = text.clone();
            if host == TRANSIT && name != TRANSIT {
                let transit = site.lab.node(TRANSIT).end_to(name).address;
                text = format!("Address = {transit}\n{text}");
            }
            fs::write(folder.join("hosts").join(host), text)?;
        }
        let pid = folder.join("pid");
        let mut command = site.command(name, &program);
        command
            .arg("-c")
            .arg(&folder)
            .args(["-D", "-d1"])
            .arg(format!("--pidfile={}", pid.display()));
        site.spawn(name, "tincd", command)?;
        site.wait_interface(name, "tinc0")?;
        site.lab.node(name).namespace().ip(&format!(
            "addr add {}/24 dev tinc0\nlink set tinc0 up\n",
            address(number)
        ))?;
        if name == TRANSIT {
            site.wait_listening(TRANSIT, PORT)?;
        }
        if name == SERVER {
            site.target = Some(IpAddr::from(address(number)));
        }
    }
    let version = term::output_of(site.command(TRANSIT, &program).arg("--version"));
    site.version = site.version_or_package("tinc", version.ok().as_deref());
    Ok(())
}
