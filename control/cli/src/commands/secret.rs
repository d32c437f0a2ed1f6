//! `weft secret show` and `weft invite`: what admits another gateway to the network.

use std::net::IpAddr;

use serde::Serialize;
use weft_client::{
    api::Interface,
    config::{Config, DEFAULT_PORT},
    secrets::{NetworkText, SecretError},
};
use weft_core::identity::{NetworkSecret, ParseError};

use crate::{
    args::SecretCommand,
    context::Context,
    failure::Failure,
    render::{BOLD, DIM},
};

/// What `weft secret show --json` prints.
#[derive(Serialize)]
struct Secret<'a> {
    /// The string for `weft init --join`.
    join: &'a str,
}

/// What `weft invite --json` prints.
#[derive(Serialize)]
struct Invitation<'a> {
    /// The string for `weft init --join`.
    join: &'a str,
    /// This node's underlay addresses, as `weft init --peer` takes them; the likeliest first.
    peers: &'a [String],
}

pub(super) fn run(context: &mut Context, command: &SecretCommand) -> Result<(), Failure> {
    let SecretCommand::Show = command;
    let join = load(context)?.to_text();
    if context.json {
        context.document(&Secret { join: &join })
    } else {
        context.line(&join)
    }
}

fn load(context: &Context) -> Result<NetworkSecret, Failure> {
    let path = context.layout.network();
    let text = NetworkText::load(&path).map_err(|error| {
        let hint = match &error {
            SecretError::Io { error, .. }
                if error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                ": run this as root"
            }
            _ => "",
        };
        Failure::Failed(format!("{error}{hint}"))
    })?;
    text.as_str()
        .parse()
        .map_err(|error: ParseError| Failure::Failed(format!("{}: {error}", path.display())))
}

pub(super) fn invite(context: &mut Context) -> Result<(), Failure> {
    let join = load(context)?.to_text();
    let status = context
        .connect()
        .and_then(|mut client| client.status())
        .ok();
    let port = match &status {
        Some(status) => status.port,
        None => {
            Config::load(&context.layout.config).map_or(DEFAULT_PORT, |config| config.listen.port)
        }
    };
    let peers: Vec<String> = status
        .iter()
        .flat_map(|status| candidates(&status.interfaces))
        .map(|address| peer_text(address, port))
        .collect();
    if context.json {
        return context.document(&Invitation {
            join: &join,
            peers: &peers,
        });
    }

    let first = peers.first().cloned().unwrap_or_else(|| {
        if port == DEFAULT_PORT {
            "ADDRESS-OF-THIS-GATEWAY".into()
        } else {
            format!("ADDRESS-OF-THIS-GATEWAY:{port}")
        }
    });
    context.line("Run on the other gateway, as root:")?;
    context.line("")?;
    context.line(&context.paint(
        BOLD,
        &format!("  weft init --join {} --peer {first}", *join),
    ))?;
    context.line(&context.paint(BOLD, "  weft up"))?;
    context.line("")?;
    if peers.is_empty() {
        context.line(
            "(weftd is not running here, so this gateway's address is not known: put it in.)",
        )?;
    } else if let [_, others @ ..] = &peers[..]
        && !others.is_empty()
    {
        context.line(&format!(
            "Other addresses of this gateway: {}. Give one that the other reaches.",
            others.join(" ")
        ))?;
    }
    context.line(&context.paint(
        DIM,
        "Whoever has the string can join the network: send it over a channel that you trust.",
    ))
}

/// Addresses that another gateway could call, likeliest first: public before private, IPv4 before IPv6.
fn candidates(interfaces: &[Interface]) -> Vec<IpAddr> {
    let usable = interfaces
        .iter()
        .filter(|interface| interface.up)
        .flat_map(|interface| &interface.addresses);
    let mut addresses: Vec<IpAddr> = usable
        .copied()
        .filter(|address| !is_local(*address))
        .collect();
    addresses.sort_by_key(|address| (is_private(*address), address.is_ipv6()));
    addresses
}

fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_link_local() || address.is_unspecified()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_unspecified()
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_private(),
        IpAddr::V6(address) => address.is_unique_local(),
    }
}

/// The default port goes without saying.
fn peer_text(address: IpAddr, port: u16) -> String {
    match (address, port) {
        (_, DEFAULT_PORT) => address.to_string(),
        (IpAddr::V4(_), _) => format!("{address}:{port}"),
        (IpAddr::V6(_), _) => format!("[{address}]:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use weft_client::api::ForwardMode;

    use super::*;

    #[test]
    fn public_addresses_come_first_and_local_ones_not_at_all() {
        let interface = |up, addresses: &[&str]| Interface {
            name: "eth0".into(),
            up,
            mtu: 1500,
            addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            mode: ForwardMode::UserSpace,
            reason: String::new(),
        };
        let interfaces = [
            interface(true, &["fe80::1", "10.0.0.1", "2001:db8::1", "127.0.0.1"]),
            interface(true, &["192.0.2.1", "169.254.1.1"]),
            interface(false, &["198.51.100.1"]),
        ];
        let text: Vec<String> = candidates(&interfaces)
            .into_iter()
            .map(|address| peer_text(address, 9))
            .collect();
        assert_eq!(text, ["192.0.2.1:9", "[2001:db8::1]:9", "10.0.0.1:9"]);
    }
}
