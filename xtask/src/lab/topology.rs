//! Topology files: which nodes a lab has and which links join them.
//!
//! ```toml
//! name = "chain"                     # optional, else the file's name
//!
//! [nodes.client]                     # an end: a TUN interface, traffic of its own
//! [nodes.relay]
//! tun = false                        # a pure transit
//! [nodes.server]
//! advertise = ["10.7.0.0/24"]        # a network behind it, which the others accept; its first address is on the node's `lo`
//! config = { timers = { } }          # laid over the node's configuration, key by key
//! network = "main"                   # nodes of another network have another secret
//! daemon = true                      # false: a bare host, without weftd
//!
//! [[link]]
//! between = ["client", "relay"]      # a veth pair, addresses are assigned
//! [[link]]
//! between = ["relay", "server"]
//! family = "v6"                      # the underlay; "v4" where it is not said
//! mtu = 9000
//! rate = "50mbit"                    # both ways; or apart: there = { rate = "50mbit" }, back = { loss = "1%" }
//! loss = "0.5%"
//! one_way = true                     # nothing comes back
//! tap = true                         # a wire in between even if nothing is shaped, to capture on
//! dial = "first"                     # who has the other as a configured peer: "first", "second", "both"
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    ops::Range,
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

/// Most nodes a lab may have; each is a process.
pub const MAX_NODES: usize = 64;
/// Most links; each has an IPv4 network of its own out of 198.18.0.0/15.
pub const MAX_LINKS: usize = 256;
const SMALLEST_MTU: u32 = 1280;
const LARGEST_MTU: u32 = 65535;

/// Which nodes, which links.
#[derive(Clone, Debug, PartialEq)]
pub struct Topology {
    /// What the lab is called.
    pub name: String,
    /// By name.
    pub nodes: BTreeMap<String, NodeSpec>,
    /// In the order of the file; interfaces and addresses follow from it.
    pub links: Vec<LinkSpec>,
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodeSpec {
    /// Whether it has a TUN interface.
    pub tun: bool,
    /// Prefixes behind it.
    pub advertise: Vec<String>,
    /// Laid over its configuration.
    pub config: toml::Table,
    /// Whether the lab starts `weftd` there; if not it is a bare host (for strangers).
    pub daemon: bool,
    /// Nodes with the same name here have the same network secret.
    pub network: String,
}

/// A link: one veth pair, or two with a wire between.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkSpec {
    /// First and second end.
    pub between: [String; 2],
    /// The underlay.
    pub family: Family,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// From the first end to the second.
    pub there: Shape,
    /// From the second to the first.
    pub back: Shape,
    /// Whether a wire is in between in any case.
    pub tap: bool,
    /// Which ends have the other as a configured peer.
    pub dial: [bool; 2],
}

impl LinkSpec {
    /// Whether frames pass a namespace of their own that can shape, drop and be captured on.
    #[must_use]
    pub fn has_wire(&self) -> bool {
        self.tap || self.there != Shape::default() || self.back != Shape::default()
    }
}

/// Underlay address family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// IPv4.
    #[default]
    V4,
    /// IPv6.
    V6,
}

/// What happens to frames in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Shape {
    /// Bits per second; none for as fast as the machine.
    pub rate: Option<u64>,
    /// Share of frames that are lost, parts per million.
    pub loss_ppm: u32,
    /// Nothing passes.
    pub cut: bool,
}

/// What is wrong with a topology file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopologyError {
    /// The file's name.
    pub file: String,
    /// From 1; none where the whole file is meant.
    pub line: Option<usize>,
    /// What is wrong, with the value, and what would be right.
    pub message: String,
}

impl fmt::Display for TopologyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl std::error::Error for TopologyError {}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTopology {
    name: Option<Spanned<String>>,
    nodes: BTreeMap<Spanned<String>, RawNode>,
    #[serde(default)]
    link: Vec<RawLink>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawNode {
    tun: Option<bool>,
    #[serde(default)]
    advertise: Vec<Spanned<String>>,
    #[serde(default)]
    config: toml::Table,
    daemon: Option<bool>,
    network: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLink {
    between: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    family: Family,
    mtu: Option<Spanned<u32>>,
    rate: Option<Spanned<String>>,
    loss: Option<Spanned<String>>,
    #[serde(default)]
    there: RawShape,
    #[serde(default)]
    back: RawShape,
    #[serde(default)]
    one_way: bool,
    #[serde(default)]
    tap: bool,
    dial: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawShape {
    rate: Option<Spanned<String>>,
    loss: Option<Spanned<String>>,
}

impl Topology {
    /// Reads a topology file.
    ///
    /// # Errors
    /// File, line, value and what would be right.
    pub fn read(path: &Path) -> Result<Self, TopologyError> {
        let file = path.display().to_string();
        let text = std::fs::read_to_string(path).map_err(|e| TopologyError {
            file: file.clone(),
            line: None,
            message: format!("cannot be read: {e}; name an existing topology file"),
        })?;
        let stem = path
            .file_stem()
            .map_or_else(|| "lab".into(), |s| s.to_string_lossy());
        Self::parse(&text, &file, &stem)
    }

    /// Parses the text of a topology file; `file` is for messages, `name` for a lab that has none of its own.
    ///
    /// # Errors
    /// As [`Topology::read`].
    pub fn parse(text: &str, file: &str, name: &str) -> Result<Self, TopologyError> {
        let parser = Parser { text, file };
        let raw: RawTopology =
            toml::from_str(text).map_err(|e| parser.error(e.span(), e.message().to_owned()))?;
        parser.topology(raw, name)
    }
}

struct Parser<'a> {
    text: &'a str,
    file: &'a str,
}

impl Parser<'_> {
    fn error(&self, span: Option<Range<usize>>, message: String) -> TopologyError {
        let line = span.map(|s| {
            1 + self
                .text
                .get(..s.start)
                .map_or(0, |before| before.matches('\n').count())
        });
        TopologyError {
            file: self.file.to_owned(),
            line,
            message,
        }
    }

    fn topology(&self, raw: RawTopology, name: &str) -> Result<Topology, TopologyError> {
        let name = match raw.name {
            Some(given) => {
                self.name(&given, "a lab's name")?;
                given.into_inner()
            }
            None => name
                .chars()
                .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
                .take(24)
                .collect(),
        };
        if raw.nodes.is_empty() || raw.nodes.len() > MAX_NODES {
            let count = raw.nodes.len();
            return Err(self.error(
                None,
                format!("has {count} nodes; between 1 and {MAX_NODES} `[nodes.NAME]` are right"),
            ));
        }
        let mut nodes = BTreeMap::new();
        for (name, node) in raw.nodes {
            self.name(&name, "a node's name")?;
            for prefix in &node.advertise {
                self.prefix(prefix)?;
            }
            let spec = NodeSpec {
                tun: node.tun.unwrap_or(true),
                advertise: node
                    .advertise
                    .into_iter()
                    .map(Spanned::into_inner)
                    .collect(),
                config: node.config,
                daemon: node.daemon.unwrap_or(true),
                network: match node.network {
                    Some(network) => {
                        self.name(&network, "a network's name")?;
                        network.into_inner()
                    }
                    None => "main".to_owned(),
                },
            };
            nodes.insert(name.into_inner(), spec);
        }
        if raw.link.len() > MAX_LINKS {
            return Err(self.error(
                None,
                format!(
                    "has {} links; at most {MAX_LINKS} are right",
                    raw.link.len()
                ),
            ));
        }
        let known = nodes.keys().cloned().collect::<BTreeSet<_>>();
        let links = raw
            .link
            .into_iter()
            .map(|l| self.link(l, &known))
            .collect::<Result<_, _>>()?;
        Ok(Topology { name, nodes, links })
    }

    fn name(&self, name: &Spanned<String>, what: &str) -> Result<(), TopologyError> {
        let text = name.get_ref();
        let right = (1..=24).contains(&text.len())
            && text
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !text.starts_with('-');
        if right {
            return Ok(());
        }
        Err(self.error(
            Some(name.span()),
            format!("{text:?} is not {what}: 1 to 24 of a-z, 0-9 and '-', not '-' first"),
        ))
    }

    fn prefix(&self, prefix: &Spanned<String>) -> Result<(), TopologyError> {
        let text = prefix.get_ref();
        let right = text.split_once('/').is_some_and(|(address, length)| {
            let most = match address.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => 32,
                Ok(IpAddr::V6(_)) => 128,
                Err(_) => return false,
            };
            length.parse::<u8>().is_ok_and(|l| l <= most)
        });
        if right {
            return Ok(());
        }
        Err(self.error(
            Some(prefix.span()),
            format!(
                "{text:?} is not a prefix: write an address and a length, as in \"10.7.0.0/24\""
            ),
        ))
    }

    fn link(&self, raw: RawLink, known: &BTreeSet<String>) -> Result<LinkSpec, TopologyError> {
        let span = raw.between.span();
        let ends = raw.between.into_inner();
        for end in &ends {
            if !known.contains(end.get_ref()) {
                let all = known
                    .iter()
                    .map(String::as_str)
                    .collect::<Vec<_>>()
                    .join(", ");
                return Err(self.error(
                    Some(end.span()),
                    format!("there is no node {:?}; the nodes are {all}", end.get_ref()),
                ));
            }
        }
        let names = ends
            .into_iter()
            .map(Spanned::into_inner)
            .collect::<Vec<_>>();
        let Ok(between) = <[String; 2]>::try_from(names) else {
            return Err(self.error(
                Some(span),
                "a link is `between` two nodes, as in [\"a\", \"b\"]".to_owned(),
            ));
        };
        if between[0] == between[1] {
            return Err(self.error(
                Some(span),
                format!("a link from {:?} to itself; name two nodes", between[0]),
            ));
        }
        let mtu = match &raw.mtu {
            Some(mtu) if !(SMALLEST_MTU..=LARGEST_MTU).contains(mtu.get_ref()) => {
                return Err(self.error(
                    Some(mtu.span()),
                    format!(
                        "mtu = {}; between {SMALLEST_MTU} and {LARGEST_MTU} is right",
                        mtu.get_ref()
                    ),
                ));
            }
            Some(mtu) => *mtu.get_ref(),
            None => 1500,
        };
        let both = (raw.rate.as_ref(), raw.loss.as_ref());
        let there = self.shape(&raw.there, both)?;
        let mut back = self.shape(&raw.back, both)?;
        back.cut = raw.one_way;
        let dial = match raw.dial.as_ref().map(|d| d.get_ref().as_str()) {
            None | Some("both") => [true, true],
            Some("first") => [true, false],
            Some("second") => [false, true],
            Some(other) => {
                return Err(self.error(
                    raw.dial.as_ref().map(Spanned::span),
                    format!("dial = {other:?}; \"first\", \"second\" or \"both\" is right"),
                ));
            }
        };
        Ok(LinkSpec {
            between,
            family: raw.family,
            mtu,
            there,
            back,
            tap: raw.tap,
            dial,
        })
    }

    fn shape(
        &self,
        own: &RawShape,
        both: (Option<&Spanned<String>>, Option<&Spanned<String>>),
    ) -> Result<Shape, TopologyError> {
        let mut shape = Shape::default();
        if let Some(rate) = own.rate.as_ref().or(both.0) {
            shape.rate = Some(parse_rate(rate.get_ref()).ok_or_else(|| {
                self.error(
                    Some(rate.span()),
                    format!(
                        "rate = {:?}; a number with kbit, mbit or gbit is right, as in \"50mbit\"",
                        rate.get_ref()
                    ),
                )
            })?);
        }
        if let Some(loss) = own.loss.as_ref().or(both.1) {
            shape.loss_ppm = parse_loss(loss.get_ref()).ok_or_else(|| {
                self.error(
                    Some(loss.span()),
                    format!(
                        "loss = {:?}; a share from \"0%\" to \"100%\" is right, as in \"0.5%\"",
                        loss.get_ref()
                    ),
                )
            })?;
        }
        Ok(shape)
    }
}

/// Bits per second from `50mbit`; at least 8 kbit/s, at most 1000 Gbit/s.
fn parse_rate(text: &str) -> Option<u64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic())?;
    let (number, unit) = text.split_at(split);
    let factor = match unit.to_ascii_lowercase().as_str() {
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return None,
    };
    let rate = number.trim().parse::<f64>().ok()? * factor;
    (8e3..=1e12).contains(&rate).then_some(rate as u64)
}

/// Parts per million from `0.5%`.
fn parse_loss(text: &str) -> Option<u32> {
    let percent = text.strip_suffix('%')?.trim().parse::<f64>().ok()?;
    (0.0..=100.0)
        .contains(&percent)
        .then_some((percent * 1e4).round() as u32)
}

/// How long a frame may wait in a shaped link's queue.
pub(super) const QUEUE: Duration = Duration::from_millis(50);

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Topology, TopologyError> {
        Topology::parse(text, "t.toml", "t")
    }

    fn fault(text: &str) -> String {
        parse(text).unwrap_err().to_string()
    }

    const DEMO: &str = include_str!("../../topologies/demo.toml");

    proptest::proptest! {
        #[test]
        fn no_text_panics(text in ".{0,400}") {
            let _ = parse(&text);
        }

        #[test]
        fn no_mutation_of_a_good_file_panics(at in 0..DEMO.len(), with in "[ -~\\n]{0,12}", cut in 0_usize..40) {
            let end = (at + cut).min(DEMO.len());
            let damaged = [&DEMO.as_bytes()[..at], with.as_bytes(), &DEMO.as_bytes()[end..]].concat();
            if let Err(error) = parse(&String::from_utf8_lossy(&damaged)) {
                proptest::prop_assert!(error.to_string().contains("t.toml"), "{error}");
            }
        }
    }

    #[test]
    fn a_whole_file() {
        let t = parse(
            "name = \"x\"\n[nodes.a]\n[nodes.b]\ntun = false\nadvertise = [\"10.7.0.0/24\"]\n[nodes.b.config.timers]\nrekey_s = 3\n\
             [[link]]\nbetween = [\"a\", \"b\"]\nfamily = \"v6\"\nmtu = 9000\nloss = \"0.5%\"\nthere = { rate = \"1.5mbit\" }\n\
             one_way = true\ndial = \"first\"\n[[link]]\nbetween = [\"b\", \"a\"]\n",
        )
        .unwrap();
        assert_eq!(t.name, "x");
        assert!(t.nodes["a"].tun && !t.nodes["b"].tun);
        assert_eq!(
            t.nodes["b"].config["timers"]["rekey_s"].as_integer(),
            Some(3)
        );
        let link = &t.links[0];
        assert_eq!(
            (link.family, link.mtu, link.dial),
            (Family::V6, 9000, [true, false])
        );
        assert_eq!(
            link.there,
            Shape {
                rate: Some(1_500_000),
                loss_ppm: 5000,
                cut: false
            }
        );
        assert_eq!(
            link.back,
            Shape {
                rate: None,
                loss_ppm: 5000,
                cut: true
            }
        );
        assert!(link.has_wire() && !t.links[1].has_wire());
    }

    #[test]
    fn errors_name_line_value_and_remedy() {
        let nodes = "[nodes.a]\n[nodes.b]\n[[link]]\n";
        for (text, parts) in [
            ("between = [\"a\", \"c\"]\n", ["t.toml:4:", "\"c\"", "a, b"]),
            (
                "between = [\"a\"]\n",
                ["t.toml:4:", "two nodes", "[\"a\", \"b\"]"],
            ),
            (
                "between = [\"a\", \"a\"]\n",
                ["t.toml:4:", "\"a\"", "two nodes"],
            ),
            (
                "between = [\"a\", \"b\"]\nmtu = 900\n",
                ["t.toml:5:", "900", "1280"],
            ),
            (
                "between = [\"a\", \"b\"]\nrate = \"fast\"\n",
                ["t.toml:5:", "\"fast\"", "mbit"],
            ),
            (
                "between = [\"a\", \"b\"]\nback = { loss = \"101%\" }\n",
                ["t.toml:5:", "\"101%\"", "100%"],
            ),
            (
                "between = [\"a\", \"b\"]\n\ndial = \"none\"\n",
                ["t.toml:6:", "\"none\"", "first"],
            ),
            (
                "between = [\"a\", \"b\"]\nfamily = \"v5\"\n",
                ["t.toml:5:", "v5", "v6"],
            ),
            (
                "between = [\"a\", \"b\"]\nspeed = 3\n",
                ["t.toml:5:", "speed", "rate"],
            ),
        ] {
            let message = fault(&format!("{nodes}{text}"));
            assert!(
                parts.iter().all(|p| message.contains(p)),
                "{message}: lacks one of {parts:?}"
            );
        }
        assert!(fault("[nodes.UP]\n").starts_with("t.toml:1: \"UP\""));
        assert!(
            fault("[nodes.a]\nadvertise = [\"10.7/24\"]\n").starts_with("t.toml:2: \"10.7/24\"")
        );
        assert!(fault("nodes = 3\n").starts_with("t.toml:1:"));
        assert!(fault("[nodes]\n").contains("between 1 and"));
    }
}
