//! The configuration file `weft.toml`: its types, its checks, and the commented text that `weft init` writes.
//!
//! Both programs read it through here, so that they refuse the same mistakes with the same words. A file is either
//! taken whole or refused whole; every refusal names file, line, value and what would be right.

use std::{
    fmt, fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

/// UDP port where none is configured.
pub const DEFAULT_PORT: u16 = 7117;
/// Largest configuration file that is read, bytes.
pub const MAX_FILE: u64 = 1024 * 1024;
/// Longest node name, bytes.
pub const MAX_NAME: usize = 63;

/// Where a node's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// `weft.toml`.
    pub config: PathBuf,
    /// Folder of keys, snapshot and host record.
    pub state: PathBuf,
    /// The API's socket.
    pub socket: PathBuf,
}

impl Layout {
    /// The system's paths.
    pub fn system() -> Self {
        Self {
            config: "/etc/weft/weft.toml".into(),
            state: "/var/lib/weft".into(),
            socket: "/run/weft/weft.sock".into(),
        }
    }

    /// Everything in one folder: `weft.toml`, `state/`, `weft.sock`.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            config: dir.join("weft.toml"),
            state: dir.join("state"),
            socket: dir.join("weft.sock"),
        }
    }

    /// [`Layout::in_dir`] where a folder is given, else [`Layout::system`].
    pub fn choose(dir: Option<&Path>) -> Self {
        dir.map_or_else(Self::system, Self::in_dir)
    }

    /// The node's identity: see [`crate::secrets`].
    pub fn identity(&self) -> PathBuf {
        self.state.join("identity.key")
    }

    /// The network's id and secret: see [`crate::secrets`].
    pub fn network(&self) -> PathBuf {
        self.state.join("network.key")
    }
}

/// A checked configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The node's name, for people; letters, digits, `-`, `_` and `.`.
    pub name: String,
    /// Where the underlay is.
    pub listen: Listen,
    /// Neighbours to call.
    pub peers: Vec<PeerAddress>,
    /// Prefixes behind nodes.
    pub routes: Routes,
    /// The TUN interface.
    pub tun: Tun,
    /// The kernel's forwarding.
    pub xdp: Xdp,
    /// Timers.
    pub timers: Timers,
    /// Limits.
    pub limits: Limits,
}

/// Where the underlay is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listen {
    /// UDP port, for IPv4 and IPv6.
    pub port: u16,
    /// Addresses that links may start from; all of the interfaces' where empty.
    pub addresses: Vec<IpAddr>,
    /// Underlay interfaces; where empty all that are not loopback, not point-to-point TUN and not excluded.
    pub interfaces: Vec<String>,
    /// Interfaces that are never underlay.
    pub exclude_interfaces: Vec<String>,
    /// What this node's line takes, megabits per second; 0 where that is unknown.
    pub capacity_mbps: u32,
}

/// A neighbour to call, as written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerAddress {
    /// A host name or an address without brackets.
    pub host: String,
    /// UDP port.
    pub port: u16,
}

/// Prefixes behind nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routes {
    /// What this node offers to the others.
    pub advertise: Vec<Prefix>,
    /// Of the others' prefixes, these and what lies inside them become routes of this host.
    pub accept_only: Vec<Prefix>,
    /// Where `accept_only` is empty: whether all of them do (no default routes).
    pub accept: bool,
    /// Metric of the routes in the kernel's table.
    pub metric: u32,
}

/// The TUN interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tun {
    /// Off makes this node a pure transit.
    pub enable: bool,
    /// Interface name.
    pub name: String,
    /// Data path threads, each with a TUN queue and its sockets; 0 means one per core, at most 8.
    pub workers: u16,
    /// Whether the kernel's offloads are used: super-packets and checksums on the TUN interface, bundles of datagrams
    /// on the sockets, AF_XDP. Each that the kernel does not have is left out by itself.
    pub offload: bool,
}

/// The kernel's forwarding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Xdp {
    /// Which XDP mode.
    pub mode: XdpMode,
}

/// Which XDP mode to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// Native, else generic, else user space.
    #[default]
    Auto,
    /// Native or user space.
    Native,
    /// Generic or user space.
    Generic,
    /// User space.
    Off,
}

/// Timers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timers {
    /// Between liveness probes of a link that carries traffic.
    pub probe_busy: Duration,
    /// Between liveness probes of an idle link.
    pub probe_idle: Duration,
    /// Probes in a row without an echo after which a link is down.
    pub probe_misses: u32,
    /// Between handshakes that renew a link's keys.
    pub link_rekey: Duration,
    /// Between handshakes that renew a session's keys.
    pub session_rekey: Duration,
    /// How long a silent control plane is tolerated while the forwarding plane answers.
    pub restart: Duration,
    /// Between look-ups of peers' host names.
    pub resolve: Duration,
}

/// Limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Links (both directions) with their slots and next hops.
    pub links: u32,
    /// Sessions.
    pub sessions: u32,
    /// Labels this node hands out to its neighbours.
    pub labels: u32,
    /// API connections at the same time.
    pub api_clients: u16,
}

/// An address prefix without host bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// Network address.
    pub address: IpAddr,
    /// Bits.
    pub len: u8,
}

impl Prefix {
    /// A prefix; an error where the length is too long or host bits are set.
    pub fn new(address: IpAddr, len: u8) -> Result<Self, String> {
        let max = if address.is_ipv4() { 32 } else { 128 };
        if len > max {
            return Err(format!("prefix length {len} is over {max}"));
        }
        let network = Self::network(address, len);
        if network != address {
            return Err(format!(
                "{address}/{len} has host bits set; its network is {network}/{len}"
            ));
        }
        Ok(Self { address, len })
    }

    /// The address with all bits behind the first `len` cleared.
    pub fn network(address: IpAddr, len: u8) -> IpAddr {
        match address {
            IpAddr::V4(address) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0);
                Ipv4Addr::from_bits(address.to_bits() & mask).into()
            }
            IpAddr::V6(address) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0);
                Ipv6Addr::from_bits(address.to_bits() & mask).into()
            }
        }
    }

    /// Whether the address lies inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4()
            && Self::network(address, self.len) == self.address
    }

    /// Whether the whole other prefix lies inside.
    pub fn covers(&self, other: &Self) -> bool {
        self.len <= other.len && self.contains(other.address)
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, len) = text.split_once('/').ok_or_else(|| {
            format!("{text:?} is no prefix; write it like 10.1.0.0/16 or 2001:db8:1::/48")
        })?;
        let address = address
            .parse::<IpAddr>()
            .map_err(|_| format!("{address:?} is no IP address"))?;
        let len = len
            .parse::<u8>()
            .map_err(|_| format!("{len:?} is no prefix length"))?;
        Self::new(address, len)
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for PeerAddress {
    type Err = String;

    /// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare v6 address.
    fn from_str(text: &str) -> Result<Self, String> {
        let port_of = |text: &str| {
            text.parse::<u16>()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| format!("{text:?} is no port; use 1 to 65535"))
        };
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, rest) = rest
                .split_once(']')
                .ok_or_else(|| format!("{text:?} lacks the closing bracket"))?;
            let address = host
                .parse::<Ipv6Addr>()
                .map_err(|_| format!("{host:?} is no IPv6 address"))?;
            let port = match rest.strip_prefix(':') {
                Some(port) => port_of(port)?,
                None if rest.is_empty() => DEFAULT_PORT,
                None => return Err(format!("{rest:?} after the bracket is no :port")),
            };
            (address.to_string(), port)
        } else if let Ok(address) = text.parse::<IpAddr>() {
            (address.to_string(), DEFAULT_PORT)
        } else if let Some((host, port)) = text.rsplit_once(':') {
            (host.to_owned(), port_of(port)?)
        } else {
            (text.to_owned(), DEFAULT_PORT)
        };
        if let Ok(address) = host.parse::<IpAddr>() {
            if address.is_unspecified() || address.is_multicast() {
                return Err(format!("{address} is not the address of one host"));
            }
        } else {
            let label_ok = |label: &str| {
                !label.is_empty()
                    && label.len() <= 63
                    && label
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            };
            let name = host.strip_suffix('.').unwrap_or(&host);
            if name.len() > 253 || !name.split('.').all(label_ok) {
                return Err(format!("{host:?} is neither an address nor a host name"));
            }
            if name
                .split('.')
                .next_back()
                .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
            {
                return Err(format!("{host:?} is no IPv4 address"));
            }
        }
        Ok(Self { host, port })
    }
}

/// Why a configuration was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Line, from 1; none where it is about the file as a whole.
    pub line: Option<usize>,
    /// The value or line at fault, shortened.
    pub value: Option<String>,
    /// What is wrong with it.
    pub problem: String,
    /// What would be right.
    pub remedy: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(line) = self.line {
            write!(f, ":{line}")?;
        }
        if let Some(value) = &self.value {
            write!(f, ": `{value}`")?;
        }
        write!(
            f,
            ": {}. {}",
            self.problem.trim_end_matches('.'),
            self.remedy
        )
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let whole = |problem: String, remedy: &str| ConfigError {
            file: path.to_owned(),
            line: None,
            value: None,
            problem,
            remedy: remedy.to_owned(),
        };
        let metadata = fs::metadata(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => whole(
                "the file does not exist".into(),
                "Write one with `weft init`.",
            ),
            _ => whole(format!("cannot be read: {error}"), "Let this user read it."),
        })?;
        if metadata.len() > MAX_FILE {
            return Err(whole(
                format!("{} bytes are no configuration", metadata.len()),
                &format!("A configuration has at most {MAX_FILE} bytes."),
            ));
        }
        let text = fs::read_to_string(path).map_err(|error| match error.kind() {
            std::io::ErrorKind::InvalidData => {
                whole("is not UTF-8 text".into(), "Write one with `weft init`.")
            }
            _ => whole(format!("cannot be read: {error}"), "Let this user read it."),
        })?;
        Self::parse(path, &text)
    }

    /// Checks a text; `path` is only for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let raw: RawConfig = toml::from_str(text).map_err(|error| {
            let span = error.span();
            let remedy = if error.message().starts_with("unknown field") {
                "Correct the name or remove the line; the text that `weft init` writes shows every option."
            } else if error.message().starts_with("missing field") {
                "Add the option; the text that `weft init` writes shows every option."
            } else {
                "Correct the value; the text that `weft init` writes shows every option."
            };
            at(path, text, span, error.message().replace('\n', "; "), remedy.to_owned())
        })?;
        raw.check(&Source { path, text })
    }
}

struct Source<'a> {
    path: &'a Path,
    text: &'a str,
}

impl Source<'_> {
    fn refuse<T>(
        &self,
        value: &Spanned<T>,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> ConfigError {
        at(
            self.path,
            self.text,
            Some(value.span()),
            problem.into(),
            remedy.into(),
        )
    }

    fn parsed<T>(&self, value: &Spanned<String>, remedy: &str) -> Result<T, ConfigError>
    where
        T: FromStr,
        T::Err: fmt::Display,
    {
        value
            .get_ref()
            .parse()
            .map_err(|error: T::Err| self.refuse(value, error.to_string(), remedy))
    }

    fn within(
        &self,
        value: &Spanned<u64>,
        range: std::ops::RangeInclusive<u64>,
        unit: &str,
    ) -> Result<u64, ConfigError> {
        let number = *value.get_ref();
        if range.contains(&number) {
            return Ok(number);
        }
        Err(self.refuse(
            value,
            format!("{number} is out of range"),
            format!("Use {} to {}{unit}.", range.start(), range.end()),
        ))
    }

    fn unique<T: PartialEq + fmt::Display>(
        &self,
        list: &[T],
        raw: &[Spanned<String>],
    ) -> Result<(), ConfigError> {
        for (index, item) in list.iter().enumerate() {
            if list[..index].contains(item) {
                return Err(self.refuse(
                    &raw[index],
                    format!("{item} stands there twice"),
                    "Remove one of the two.",
                ));
            }
        }
        Ok(())
    }
}

fn at(
    path: &Path,
    text: &str,
    span: Option<Range<usize>>,
    problem: String,
    remedy: String,
) -> ConfigError {
    let position = span.map(|span| {
        let start = span.start.min(text.len());
        let line = text.as_bytes()[..start]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        let exact = text
            .get(span.clone())
            .filter(|value| !value.trim().is_empty() && !value.contains('\n'));
        let value = exact.map_or_else(
            || text.lines().nth(line - 1).unwrap_or("").trim(),
            str::trim,
        );
        let mut short: String = value.chars().take(80).collect();
        if short.len() < value.len() {
            short.push('…');
        }
        (line, short)
    });
    ConfigError {
        file: path.to_owned(),
        line: position.as_ref().map(|(line, _)| *line),
        value: position
            .map(|(_, value)| value)
            .filter(|value| !value.is_empty()),
        problem,
        remedy,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    name: Spanned<String>,
    #[serde(default)]
    peers: Vec<Spanned<String>>,
    #[serde(default)]
    listen: RawListen,
    #[serde(default)]
    routes: RawRoutes,
    #[serde(default)]
    tun: RawTun,
    #[serde(default)]
    xdp: RawXdp,
    #[serde(default)]
    timers: RawTimers,
    #[serde(default)]
    limits: RawLimits,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawListen {
    port: Spanned<u64>,
    addresses: Vec<Spanned<String>>,
    interfaces: Vec<Spanned<String>>,
    exclude_interfaces: Vec<Spanned<String>>,
    capacity_mbps: Spanned<u64>,
}

impl Default for RawListen {
    fn default() -> Self {
        Self {
            port: none(DEFAULT_PORT.into()),
            addresses: vec![],
            interfaces: vec![],
            exclude_interfaces: vec![],
            capacity_mbps: none(0),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawRoutes {
    advertise: Vec<Spanned<String>>,
    accept: bool,
    accept_only: Vec<Spanned<String>>,
    metric: Spanned<u64>,
}

impl Default for RawRoutes {
    fn default() -> Self {
        Self {
            advertise: vec![],
            accept: false,
            accept_only: vec![],
            metric: none(512),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTun {
    enable: bool,
    name: Spanned<String>,
    workers: Spanned<u64>,
    offload: bool,
}

impl Default for RawTun {
    fn default() -> Self {
        Self {
            enable: true,
            name: none("weft0".to_owned()),
            workers: none(0),
            offload: true,
        }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawXdp {
    mode: XdpMode,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTimers {
    #[serde(deserialize_with = "whole")]
    probe_busy_ms: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    probe_idle_ms: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    probe_misses: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    link_rekey_s: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    session_rekey_s: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    restart_s: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    resolve_s: Spanned<u64>,
}

impl Default for RawTimers {
    fn default() -> Self {
        Self {
            probe_busy_ms: none(100),
            probe_idle_ms: none(300),
            probe_misses: none(3),
            link_rekey_s: none(120),
            session_rekey_s: none(120),
            restart_s: none(120),
            resolve_s: none(300),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawLimits {
    #[serde(deserialize_with = "whole")]
    links: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    sessions: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    labels: Spanned<u64>,
    #[serde(deserialize_with = "whole")]
    api_clients: Spanned<u64>,
}

impl Default for RawLimits {
    fn default() -> Self {
        Self {
            links: none(128),
            sessions: none(1024),
            labels: none(65_536),
            api_clients: none(64),
        }
    }
}

fn none<T>(value: T) -> Spanned<T> {
    Spanned::new(0..0, value)
}

fn whole<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Spanned<u64>, D::Error> {
    let value = Spanned::<i64>::deserialize(deserializer)?;
    let number = u64::try_from(*value.get_ref())
        .map_err(|_| D::Error::custom(format!("{} is negative", value.get_ref())))?;
    Ok(Spanned::new(value.span(), number))
}

impl RawConfig {
    fn check(self, source: &Source<'_>) -> Result<Config, ConfigError> {
        let name = self.name.get_ref();
        if name.is_empty()
            || name.len() > MAX_NAME
            || !name
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
        {
            return Err(source.refuse(
                &self.name,
                "is no node name",
                format!("Use 1 to {MAX_NAME} letters, digits, `-`, `_` or `.`."),
            ));
        }
        let peers = self
            .peers
            .iter()
            .map(|peer| source.parsed(peer, "Write a peer like \"192.0.2.1:7117\", \"[2001:db8::1]:7117\" or \"gw.example.org\"."))
            .collect::<Result<Vec<PeerAddress>, _>>()?;
        source.unique(&peers, &self.peers)?;

        Ok(Config {
            name: name.clone(),
            listen: self.listen.check(source)?,
            peers,
            routes: self.routes.check(source)?,
            tun: self.tun.check(source)?,
            xdp: Xdp {
                mode: self.xdp.mode,
            },
            timers: self.timers.check(source)?,
            limits: self.limits.check(source)?,
        })
    }
}

impl RawListen {
    fn check(self, source: &Source<'_>) -> Result<Listen, ConfigError> {
        let addresses = self
            .addresses
            .iter()
            .map(|text| {
                let address = source.parsed::<IpAddr>(
                    text,
                    "Write an address like \"192.0.2.1\" or \"2001:db8::1\".",
                )?;
                if address.is_unspecified() || address.is_multicast() || address.is_loopback() {
                    return Err(source.refuse(
                        text,
                        format!("{address} is not an address that links can start from"),
                        "Use an address of an underlay interface, or leave the list empty for all.",
                    ));
                }
                Ok(address)
            })
            .collect::<Result<Vec<_>, _>>()?;
        source.unique(&addresses, &self.addresses)?;
        let port = source.within(&self.port, 1..=65_535, "")?;
        Ok(Listen {
            port: port as u16,
            addresses,
            interfaces: self
                .interfaces
                .iter()
                .map(|name| interface(source, name))
                .collect::<Result<_, _>>()?,
            capacity_mbps: source.within(&self.capacity_mbps, 0..=1_000_000, " (0 = unknown)")?
                as u32,
            exclude_interfaces: self
                .exclude_interfaces
                .iter()
                .map(|name| interface(source, name))
                .collect::<Result<_, _>>()?,
        })
    }
}

fn interface(source: &Source<'_>, name: &Spanned<String>) -> Result<String, ConfigError> {
    let text = name.get_ref();
    let bad = |byte: u8| byte == b'/' || byte == b':' || byte == b'%' || !byte.is_ascii_graphic();
    if text.is_empty() || text.len() > 15 || text == "." || text == ".." || text.bytes().any(bad) {
        return Err(source.refuse(
            name,
            "is no interface name",
            "Use 1 to 15 printable characters without `/`, `:` and `%`.",
        ));
    }
    Ok(text.clone())
}

impl RawRoutes {
    fn check(self, source: &Source<'_>) -> Result<Routes, ConfigError> {
        let prefixes = |list: &[Spanned<String>]| {
            let parsed = list
                .iter()
                .map(|text| {
                    source.parsed(
                        text,
                        "Write a prefix like \"10.1.0.0/16\" or \"2001:db8:1::/48\".",
                    )
                })
                .collect::<Result<Vec<Prefix>, _>>()?;
            source.unique(&parsed, list)?;
            Ok(parsed)
        };
        if self.advertise.len() > 64 {
            return Err(source.refuse(
                &self.advertise[64],
                "is the 65th prefix",
                "Advertise at most 64 prefixes.",
            ));
        }
        Ok(Routes {
            advertise: prefixes(&self.advertise)?,
            accept: self.accept,
            accept_only: prefixes(&self.accept_only)?,
            metric: source.within(&self.metric, 1..=4_294_967_294, "")? as u32,
        })
    }
}

impl RawTun {
    fn check(self, source: &Source<'_>) -> Result<Tun, ConfigError> {
        Ok(Tun {
            enable: self.enable,
            name: interface(source, &self.name)?,
            workers: source.within(&self.workers, 0..=64, " (0 = one per core)")? as u16,
            offload: self.offload,
        })
    }
}

impl RawTimers {
    fn check(self, source: &Source<'_>) -> Result<Timers, ConfigError> {
        let busy = source.within(&self.probe_busy_ms, 10..=60_000, " ms")?;
        let idle = source.within(&self.probe_idle_ms, 10..=60_000, " ms")?;
        if idle < busy {
            return Err(source.refuse(
                &self.probe_idle_ms,
                format!("{idle} ms are less than probe_busy_ms = {busy}"),
                format!(
                    "Use at least {busy}: an idle link is not probed more often than a busy one."
                ),
            ));
        }
        Ok(Timers {
            probe_busy: Duration::from_millis(busy),
            probe_idle: Duration::from_millis(idle),
            probe_misses: source.within(&self.probe_misses, 2..=100, "")? as u32,
            link_rekey: Duration::from_secs(source.within(
                &self.link_rekey_s,
                10..=86_400,
                " s",
            )?),
            session_rekey: Duration::from_secs(source.within(
                &self.session_rekey_s,
                5..=3_600,
                " s",
            )?),
            restart: Duration::from_secs(source.within(&self.restart_s, 5..=3_600, " s")?),
            resolve: Duration::from_secs(source.within(&self.resolve_s, 5..=86_400, " s")?),
        })
    }
}

impl RawLimits {
    fn check(self, source: &Source<'_>) -> Result<Limits, ConfigError> {
        Ok(Limits {
            links: source.within(&self.links, 4..=16_000, "")? as u32,
            sessions: source.within(&self.sessions, 1..=65_536, "")? as u32,
            labels: source.within(&self.labels, 16..=1_000_000, "")? as u32,
            api_clients: source.within(&self.api_clients, 1..=1_024, "")? as u16,
        })
    }
}

/// What `weft init` fills into the default text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Params {
    /// Node name.
    pub name: String,
    /// UDP port.
    pub port: u16,
    /// Peers as written.
    pub peers: Vec<String>,
    /// Prefixes as written.
    pub advertise: Vec<String>,
    /// Whether to accept every prefix of others.
    pub accept: bool,
    /// Prefixes of others to accept, as written.
    pub accept_only: Vec<String>,
    /// Underlay interfaces; empty for all.
    pub interfaces: Vec<String>,
    /// Whether to open a TUN interface.
    pub tun: bool,
    /// Its name.
    pub tun_name: String,
    /// `auto`, `native`, `generic` or `off`.
    pub xdp_mode: String,
}

impl Default for Params {
    fn default() -> Self {
        Self {
            name: "node".to_owned(),
            port: DEFAULT_PORT,
            peers: vec![],
            advertise: vec![],
            accept: false,
            accept_only: vec![],
            interfaces: vec![],
            tun: true,
            tun_name: "weft0".to_owned(),
            xdp_mode: "auto".to_owned(),
        }
    }
}

/// The commented text that `weft init` writes. Check it with [`Config::parse`] before writing it: the parameters are
/// only quoted, not checked, here.
pub fn default_config(params: &Params) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    let list = |items: &[String]| {
        let items: Vec<String> = items.iter().map(|item| quoted(item)).collect();
        format!("[{}]", items.join(", "))
    };
    format!(
        r#"# Configuration of this Weft node. `weftd --check` tells what is wrong with it; restart weftd to apply changes.
# The node's identity and the network's secret are not in here: they stand in the state folder, readable by root only.

# The node's name, for people. Others see it.
name = {name}

# Neighbours to call: "address:port" or "host:port"; the port is {DEFAULT_PORT} where none is given. One of two
# neighbours has to know the other; a node that is only called needs none.
peers = {peers}

[listen]
# UDP port, for IPv4 and IPv6.
port = {port}
# Addresses that links may start from; empty: all addresses of the interfaces.
addresses = []
# Underlay interfaces; empty: every interface that is up and is neither loopback nor a tunnel.
interfaces = {interfaces}
# Interfaces that are never underlay.
exclude_interfaces = []
# What this node's line takes, megabits per second; paths over a slow line cost more. 0: unknown.
capacity_mbps = 0

[routes]
# Prefixes behind this node that the others can reach through it, e.g. ["10.1.0.0/16", "2001:db8:1::/48"].
# (The host must forward: sysctl net.ipv4.ip_forward=1, net.ipv6.conf.all.forwarding=1.)
advertise = {advertise}
# Which prefixes of others become routes of this host: these, and what lies inside them, e.g. ["10.2.0.0/16"]. Whoever is
# in the network can advertise any prefix and then gets what this host sends there, so name only what is right. Refused
# ones stand in `weft status`.
accept_only = {accept_only}
# true: where accept_only is empty, every prefix but a default route. For networks whose members are all trusted.
accept = {accept}
# Metric of these routes in the kernel's table.
metric = 512

[tun]
# false: a pure transit, without an interface of its own and without sessions for the host's traffic.
enable = {tun}
name = {tun_name}
# Data path threads; 0: one per core, at most 8.
workers = 0
# Whether the kernel's offloads (TUN super-packets, UDP bundles, AF_XDP) are used. What it has not is left out anyway.
offload = true

[xdp]
# Where transit packets are switched: "auto" takes the driver's XDP, else generic XDP, else user space;
# "native" and "generic" leave out the other of the two; "off" is user space.
mode = {xdp_mode}

[timers]
# Between liveness probes of a link that carries traffic and of an idle one; and after how many without an echo it is
# down.
probe_busy_ms = 100
probe_idle_ms = 300
probe_misses = 3
# Renewal of link keys and of session keys.
link_rekey_s = 120
session_rekey_s = 120
# How long a neighbour's daemon may be silent while its forwarding plane answers.
restart_s = 120
# Between look-ups of the host names among the peers.
resolve_s = 300

[limits]
# What this node holds at most.
links = 128
sessions = 1024
labels = 65536
api_clients = 64
"#,
        name = quoted(&params.name),
        peers = list(&params.peers),
        port = params.port,
        interfaces = list(&params.interfaces),
        advertise = list(&params.advertise),
        accept = params.accept,
        accept_only = list(&params.accept_only),
        tun = params.tun,
        tun_name = quoted(&params.tun_name),
        xdp_mode = quoted(&params.xdp_mode),
    )
}

#[cfg(test)]
mod tests;
