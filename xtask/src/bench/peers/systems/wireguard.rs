//! wireguard-go at both ends, kernel routing between. Its own defaults otherwise.
//!
//! Its control socket lies in `/var/run/wireguard` whatever the network namespace, under the interface's name, which
//! therefore has the lab's id in it.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
};

use anyhow::Result;

use super::super::site::{CLIENT, SERVER, Site};
use crate::{lab::wait_for, setup::peers, term};

const PORT: &str = "51820";
const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 58, 0, 1), Ipv4Addr::new(10, 58, 0, 2)];

pub(super) fn start(site: &mut Site) -> Result<()> {
    let program = peers::find("wireguard-go")?;
    let wg = peers::find("wg")?;
    site.route()?;
    let ends = [CLIENT, SERVER];
    let mut public = Vec::new();
    for name in ends {
        let key = term::output_of(site.command(name, &wg).arg("genkey"))?;
        let file = site.lab.node(name).dir().join("key");
        fs::write(&file, key)?;
        let mut derive = site.command(name, &wg);
        derive.arg("pubkey").stdin(fs::File::open(&file)?);
        public.push(super::super::site::output_with_input(&mut derive)?);
    }
    for (side, name) in ends.into_iter().enumerate() {
        let interface = format!("wg{}{side}", site.lab.id());
        let socket = PathBuf::from("/var/run/wireguard").join(format!("{interface}.sock"));
        site.lab.remove_with_it(socket.clone())?;
        let mut command = site.command(name, &program);
        command.args(["--foreground", &interface]);
        site.spawn(name, "wireguard-go", command)?;
        site.wait_interface(name, &interface)?;
        let what = format!("wireguard-go to make {}", socket.display());
        wait_for(&what, super::super::site::START_LIMIT, || {
            site.all_run()?;
            Ok(socket.exists().then_some(()))
        })?;
        let key = site.lab.node(name).dir().join("key");
        let other = site.underlay_of(ends[1 - side])?;
        let mut set = site.command(name, &wg);
        set.args(["set", &interface, "listen-port", PORT, "private-key"])
            .arg(&key)
            .args(["peer", public[1 - side].trim()])
            .args(["endpoint", &format!("{other}:{PORT}")])
            .args(["allowed-ips", &format!("{}/32", ADDRESSES[1 - side])]);
        term::output_of(&mut set)?;
        site.lab.node(name).namespace().ip(&format!(
            "addr add {}/24 dev {interface}\nlink set {interface} up\n",
            ADDRESSES[side]
        ))?;
    }
    site.target = Some(IpAddr::from(ADDRESSES[1]));
    let version = term::output_of(site.command(CLIENT, &program).arg("--version"));
    site.version = site.version_or_package("wireguard-go", version.ok().as_deref());
    Ok(())
}
