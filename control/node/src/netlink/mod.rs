//! rtnetlink: what this host has (links, addresses, neighbours, routes), and the few things weftd changes on it.
//!
//! Changes made here are recorded by the caller (see [`crate::state::record`]) before they are made.

pub mod host;
pub mod xdp;

use std::{io, net::IpAddr};

use futures_util::{Stream, StreamExt as _};
pub use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::{
    Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder,
    packet_core::{ErrorMessage, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::AddressHeaderFlags,
        link::{AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute},
        neighbour::NeighbourFlags,
        route::{
            RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
            RouteType, RouteVia,
        },
    },
    sys::{AsyncSocket as _, SocketAddr},
};

use self::host::{Change, Host, Mac};

/// `rtm_protocol` of the routes weftd makes: in the range left to routing daemons.
pub const ROUTE_PROTOCOL: u8 = 117;
/// Receive buffer for events, bytes.
const EVENT_BUFFER: u32 = 4 << 20;
/// Events taken at once.
const BURST: usize = 256;

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The socket could not be opened.
    #[error("opening a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// The kernel refused.
    #[error("{what}: {error}")]
    Refused {
        /// What was tried.
        what: String,
        /// What the kernel said.
        error: String,
        /// Its error number, positive; 0 where there is none.
        code: i32,
    },
}

impl NetlinkError {
    fn new(what: impl Into<String>, error: &rtnetlink::Error) -> Self {
        let (code, text) = match error {
            rtnetlink::Error::NetlinkError(message) => describe(message),
            other => (0, other.to_string()),
        };
        Self::Refused {
            what: what.into(),
            error: text,
            code,
        }
    }

    /// The error number, where the kernel gave one.
    pub fn code(&self) -> i32 {
        match self {
            Self::Open(error) => error.raw_os_error().unwrap_or(0),
            Self::Refused { code, .. } => *code,
        }
    }
}

fn describe(message: &ErrorMessage) -> (i32, String) {
    let code = message.raw_code().wrapping_neg();
    let text = match code {
        libc::EPERM => "not permitted; weftd needs CAP_NET_ADMIN".to_owned(),
        _ => io::Error::from_raw_os_error(code).to_string(),
    };
    (code, text)
}

/// How the kernel would send to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteAnswer {
    /// Interface.
    pub link: u32,
    /// Who it is sent to on the link: the gateway, or the destination itself.
    pub neighbour: IpAddr,
    /// MTU of the route, where it has one.
    pub mtu: Option<u32>,
    /// The source address the kernel would choose.
    pub source: Option<IpAddr>,
}

/// The connection to the kernel.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Events, in the order the kernel sent them.
pub struct Events(
    Box<dyn Stream<Item = (NetlinkMessage<RouteNetlinkMessage>, SocketAddr)> + Send + Unpin>,
);

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Events")
    }
}

impl Events {
    /// Waits for events and applies all that are there. None when the connection ended, as it does when events were
    /// lost: then a new one is to be opened and everything read anew.
    pub async fn next(&mut self, host: &mut Host) -> Option<Vec<Change>> {
        let mut changes = vec![];
        let mut message = Some(self.0.next().await?);
        while let Some((event, _)) = message.take() {
            if let NetlinkPayload::Overrun(_) = &event.payload {
                return None;
            }
            if let NetlinkPayload::InnerMessage(inner) = &event.payload {
                let change = host.apply(inner);
                if change != Change::default() {
                    changes.push(change);
                }
            }
            if changes.len() < BURST {
                message = futures_util::FutureExt::now_or_never(self.0.next()).flatten();
            }
        }
        Some(changes)
    }
}

impl Netlink {
    /// Connects and subscribes to links, addresses, routes and neighbours. Must be called within a tokio runtime.
    pub fn open() -> Result<(Self, Events), NetlinkError> {
        let (mut connection, handle, messages) = rtnetlink::new_multicast_connection(&[
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ])?;
        let socket = connection.socket_mut().socket_mut();
        // Bursts of events must not be lost; where the larger buffer is refused, the caller starts over after a loss.
        let _ = socket.set_rx_buf_sz(EVENT_BUFFER);
        let task = tokio::spawn(connection);
        Ok((Self { handle, task }, Events(Box::new(messages))))
    }

    /// Everything there is now.
    pub async fn dump(&self) -> Result<Host, NetlinkError> {
        let mut host = Host::default();
        let failed = |error| NetlinkError::new("reading links, addresses and neighbours", &error);
        // One after the other: the kernel does one dump per socket at a time.
        let mut links = std::pin::pin!(self.handle.link().get().execute());
        while let Some(link) = links.next().await {
            host.apply(&RouteNetlinkMessage::NewLink(link.map_err(failed)?));
        }
        let mut addresses = std::pin::pin!(self.handle.address().get().execute());
        while let Some(address) = addresses.next().await {
            host.apply(&RouteNetlinkMessage::NewAddress(address.map_err(failed)?));
        }
        let mut neighbours = std::pin::pin!(self.handle.neighbours().get().execute());
        while let Some(neighbour) = neighbours.next().await {
            host.apply(&RouteNetlinkMessage::NewNeighbour(
                neighbour.map_err(failed)?,
            ));
        }
        Ok(host)
    }

    /// How the kernel would send from `local` to `remote`; with `link`, out of that interface. None where it has no
    /// route.
    pub async fn route_to(
        &self,
        local: IpAddr,
        remote: IpAddr,
        link: Option<u32>,
    ) -> Result<Option<RouteAnswer>, NetlinkError> {
        let full = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let what = || format!("looking up the route from {local} to {remote}");
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(remote, full(remote))
            .and_then(|builder| builder.source_prefix(local, full(local)))
            .map_err(|error| NetlinkError::Refused {
                what: what(),
                error: error.to_string(),
                code: 0,
            })?;
        let builder = match link {
            Some(link) => builder.output_interface(link),
            None => builder,
        };
        let mut answers = std::pin::pin!(self.handle.route().get(builder.build()).execute());
        match answers.next().await {
            Some(Ok(route)) => Ok(parse_route(&route, remote)),
            Some(Err(error)) => {
                let error = NetlinkError::new(what(), &error);
                match error.code() {
                    libc::ENETUNREACH
                    | libc::EHOSTUNREACH
                    | libc::ENODEV
                    | libc::EINVAL
                    | libc::EACCES => Ok(None),
                    _ => Err(error),
                }
            }
            None => Ok(None),
        }
    }

    /// Has the kernel resolve a neighbour now, or confirm what it knows of it.
    pub async fn probe(&self, link: u32, neighbour: IpAddr) -> Result<(), NetlinkError> {
        self.handle
            .neighbours()
            .add(link, neighbour)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace()
            .execute()
            .await
            .map_err(|error| {
                NetlinkError::new(format!("asking for the neighbour {neighbour}"), &error)
            })
    }

    /// Tells the kernel the state of a neighbour: reachable, where packets are known to arrive, so that it need not ask;
    /// with the link layer address where the kernel knows none (any more). The entry ages on from there as any other.
    pub async fn tell(
        &self,
        link: u32,
        neighbour: IpAddr,
        (state, mac): (NeighbourState, Option<Mac>),
    ) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .neighbours()
            .add(link, neighbour)
            .state(state)
            .replace();
        if let Some(mac) = mac {
            request = request.link_layer_address(&mac);
        }
        request.execute().await.map_err(|error| {
            NetlinkError::new(format!("telling of the neighbour {neighbour}"), &error)
        })
    }

    /// Sets an interface up with this MTU and length of its transmit queue. IPv6 makes no link-local address on it.
    pub async fn set_up(&self, link: u32, mtu: u32, queue: u32) -> Result<(), NetlinkError> {
        let no_link_local =
            LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
                In6AddrGenMode::None,
            )])]);
        let quiet = LinkUnspec::new_with_index(link)
            .append_extra_attribute(no_link_local)
            .build();
        // A kernel without IPv6 refuses this; the address that follows will say so plainly.
        let _ = self.handle.link().set(quiet).execute().await;
        let message = LinkUnspec::new_with_index(link)
            .mtu(mtu)
            .txqueuelen(queue)
            .up()
            .build();
        self.handle
            .link()
            .set(message)
            .execute()
            .await
            .map_err(|error| {
                NetlinkError::new(
                    format!("setting interface {link} up with MTU {mtu}"),
                    &error,
                )
            })
    }

    /// Gives an interface an address, usable at once (without duplicate address detection).
    pub async fn add_address(
        &self,
        link: u32,
        address: IpAddr,
        prefix_len: u8,
    ) -> Result<(), NetlinkError> {
        let mut request = self
            .handle
            .address()
            .add(link, address, prefix_len)
            .replace();
        if address.is_ipv6() {
            request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        request.execute().await.map_err(|error| {
            let what = format!("adding address {address}/{prefix_len} to interface {link}");
            NetlinkError::new(what, &error)
        })
    }

    /// Makes or replaces a route through an interface.
    pub async fn set_route(&self, route: &HostRoute) -> Result<(), NetlinkError> {
        self.handle
            .route()
            .add(route.message()?)
            .replace()
            .execute()
            .await
            .map_err(|error| NetlinkError::new(format!("making the route {route}"), &error))
    }

    /// Removes a route; one that is gone already is fine.
    pub async fn remove_route(&self, route: &HostRoute) -> Result<(), NetlinkError> {
        match self.handle.route().del(route.message()?).execute().await {
            Ok(()) => Ok(()),
            Err(error) => {
                let error = NetlinkError::new(format!("removing the route {route}"), &error);
                match error.code() {
                    libc::ESRCH | libc::ENODEV | libc::ENOENT => Ok(()),
                    _ => Err(error),
                }
            }
        }
    }
}

/// A route weftd makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostRoute {
    /// Network address.
    pub prefix: IpAddr,
    /// Its length.
    pub prefix_len: u8,
    /// Interface.
    pub link: u32,
    /// Metric; IPv6 and IPv4 routes of different metrics are different routes.
    pub metric: u32,
    /// Largest packet, bytes.
    pub mtu: Option<u32>,
    /// Address this host's own packets come from.
    pub source: Option<IpAddr>,
}

impl std::fmt::Display for HostRoute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}/{} metric {}",
            self.prefix, self.prefix_len, self.metric
        )
    }
}

impl HostRoute {
    fn message(&self) -> Result<RouteMessage, NetlinkError> {
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(self.prefix, self.prefix_len)
            .map_err(|error| NetlinkError::Refused {
                what: format!("making the route {self}"),
                error: error.to_string(),
                code: 0,
            })?
            .output_interface(self.link)
            .priority(self.metric)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .scope(if self.prefix.is_ipv4() {
                RouteScope::Link
            } else {
                RouteScope::Universe
            })
            .kind(RouteType::Unicast)
            .build();
        if let Some(source) = self.source {
            message
                .attributes
                .push(RouteAttribute::PrefSource(source.into()));
        }
        if let Some(mtu) = self.mtu {
            message
                .attributes
                .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
        }
        Ok(message)
    }
}

fn parse_route(route: &RouteMessage, remote: IpAddr) -> Option<RouteAnswer> {
    if !matches!(
        route.header.kind,
        RouteType::Unicast | RouteType::Local | RouteType::Unspec
    ) {
        return None;
    }
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::from(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::from(*address)),
        _ => None,
    };
    let mut answer = RouteAnswer {
        link: 0,
        neighbour: remote,
        mtu: None,
        source: None,
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) => answer.link = *link,
            RouteAttribute::Gateway(gateway) => answer.neighbour = address(gateway)?,
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => answer.neighbour = (*gateway).into(),
            RouteAttribute::Via(RouteVia::Inet(gateway)) => answer.neighbour = (*gateway).into(),
            RouteAttribute::PrefSource(source) => answer.source = address(source),
            RouteAttribute::Metrics(metrics) => {
                answer.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    (answer.link != 0).then_some(answer)
}
