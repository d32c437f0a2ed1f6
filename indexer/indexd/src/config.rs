//! The configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use weft_chain::{Chain, chains};
use weft_listen::Config as Server;
use weft_source::rpc::Auth;
use weft_source::{Kind, Settings};
use weft_store::Options;
use weft_view::Bounds;

use crate::section::{Section, SectionOf};

/// What `weft-indexd init` writes: every setting with its default, explained.
pub const COMMENTED_DEFAULT: &str = include_str!("default.toml");

/// All settings. A setting that is not known is an error.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Network: `bitcoin`, `bitcoin-testnet4`, `litecoin`, `dogecoin-regtest`, ...
    pub network: String,
    /// The node.
    #[serde(default)]
    pub node: Node,
    /// The database.
    #[serde(default)]
    pub index: Index,
    /// Figures for Prometheus.
    #[serde(default)]
    pub metrics: Metrics,
    /// The Electrum protocol.
    #[serde(default)]
    pub electrum: Section<Electrum>,
    /// The Esplora interface and the stream of changes.
    #[serde(default)]
    pub http: Section<Http>,
}

/// Section `[node]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    datadir: Option<PathBuf>,
    rpc: Option<String>,
    user: Option<String>,
    password: Option<String>,
    cookie: Option<PathBuf>,
    p2p: Option<SocketAddr>,
    source: Option<Kind>,
}

/// Section `[index]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Index {
    dir: PathBuf,
    memory_mb: usize,
    commitment: bool,
    undo_depth: u32,
    threads: usize,
    batch_blocks: usize,
    open_files: u32,
    max_rows: usize,
}

/// Section `[electrum]`, without what all servers have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Electrum {
    banner: String,
    donation_address: String,
    host: Option<String>,
    max_subscriptions: usize,
    max_line_kb: usize,
    max_batch: usize,
    answer_mb: usize,
    cost_per_second: f64,
    cost_burst: f64,
}

/// Section `[http]`, without what all servers have.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    cors: Option<String>,
    max_streams: usize,
    max_scripts: usize,
    max_body_kb: usize,
}

impl Default for Electrum {
    fn default() -> Self {
        let limits = weft_electrum::Limits::default();
        Self {
            banner: "Welcome to a Weft coin index.".into(),
            donation_address: String::new(),
            host: None,
            max_subscriptions: limits.subscriptions,
            max_line_kb: limits.line >> 10,
            max_batch: limits.batch,
            answer_mb: limits.answer >> 20,
            cost_per_second: limits.cost_per_second,
            cost_burst: limits.cost_burst,
        }
    }
}

impl Default for Http {
    fn default() -> Self {
        let settings = weft_http::Settings::default();
        Self {
            cors: None,
            max_streams: settings.streams,
            max_scripts: settings.stream.scripts,
            max_body_kb: settings.body >> 10,
        }
    }
}

impl SectionOf for Electrum {
    const NAME: &'static str = "electrum";

    fn server() -> Server {
        Server {
            // Wallets stay for what they are told.
            idle_seconds: 600,
            ..Server::default()
        }
    }
}

impl SectionOf for Http {
    const NAME: &'static str = "http";
}

/// Section `[metrics]`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Where to listen; not at all if absent.
    pub listen: Option<SocketAddr>,
}

impl Default for Index {
    fn default() -> Self {
        let defaults = Options::default();
        Self {
            dir: "weft-index".into(),
            memory_mb: defaults.memory >> 20,
            commitment: defaults.commitment,
            undo_depth: defaults.undo_depth,
            threads: 0,
            batch_blocks: defaults.batch_blocks,
            open_files: defaults.open_files,
            max_rows: Bounds::default().rows,
        }
    }
}

impl Config {
    /// Reads and checks a file. Relative folders in it are relative to it.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read {}; `weft-indexd init` writes one",
                path.display()
            )
        })?;
        let mut config = Self::parse(&text).with_context(|| format!("in {}", path.display()))?;
        if let Some(parent) = path.parent() {
            config.index.dir = parent.join(&config.index.dir);
            config.node.datadir = config.node.datadir.map(|dir| parent.join(dir));
            config.electrum.server.relative_to(parent);
            config.http.server.relative_to(parent);
        }
        Ok(config)
    }

    /// Reads and checks a text.
    pub fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        if chains::by_name(&config.network).is_none() {
            let names: Vec<_> = chains::all().iter().map(|c| c.params().name).collect();
            bail!(
                "network = {:?} is not known; the networks are {}",
                config.network,
                names.join(", ")
            );
        }
        let index = &config.index;
        if !(64..=1 << 20).contains(&index.memory_mb) {
            bail!(
                "index.memory_mb = {} must be from 64 to 1048576",
                index.memory_mb
            );
        }
        if !(1..=1_000_000).contains(&index.undo_depth) {
            bail!(
                "index.undo_depth = {} must be from 1 to 1000000",
                index.undo_depth
            );
        }
        if index.threads > 256 {
            bail!("index.threads = {} must be at most 256", index.threads);
        }
        if !(1..=10_000).contains(&index.batch_blocks) {
            bail!(
                "index.batch_blocks = {} must be from 1 to 10000",
                index.batch_blocks
            );
        }
        if !(32..=1_000_000).contains(&index.open_files) {
            bail!(
                "index.open_files = {} must be from 32 to 1000000",
                index.open_files
            );
        }
        if !(1..=100_000_000).contains(&index.max_rows) {
            bail!(
                "index.max_rows = {} must be from 1 to 100000000",
                index.max_rows
            );
        }
        config.check_servers()?;
        let node = &config.node;
        if node.user.is_some() != node.password.is_some() {
            bail!("node.user and node.password belong together: set both or none");
        }
        if node.user.is_some() && node.cookie.is_some() {
            bail!("set node.cookie, or node.user and node.password, not both");
        }
        Ok(config)
    }

    fn check_servers(&self) -> Result<()> {
        self.electrum.check()?;
        self.http.check()?;
        let (e, h) = (&self.electrum.own, &self.http.own);
        let ranges = [
            (
                "electrum.max_subscriptions",
                e.max_subscriptions as u64,
                1,
                10_000_000,
            ),
            ("electrum.max_line_kb", e.max_line_kb as u64, 1, 65_536),
            ("electrum.max_batch", e.max_batch as u64, 1, 100_000),
            ("electrum.answer_mb", e.answer_mb as u64, 1, 4095),
            ("http.max_streams", h.max_streams as u64, 0, 1 << 20),
            ("http.max_scripts", h.max_scripts as u64, 1, 10_000_000),
            ("http.max_body_kb", h.max_body_kb as u64, 1, 65_536),
        ];
        for (name, value, least, most) in ranges {
            if !(least..=most).contains(&value) {
                bail!("{name} = {value} must be from {least} to {most}");
            }
        }
        for (name, value) in [
            ("cost_per_second", e.cost_per_second),
            ("cost_burst", e.cost_burst),
        ] {
            if !(value.is_finite() && value >= 1.0) {
                bail!("electrum.{name} = {value} must be at least 1");
            }
        }
        Ok(())
    }

    /// Bounds of what readers may ask.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            rows: self.index.max_rows,
            ..Bounds::default()
        }
    }

    /// The network.
    pub fn chain(&self) -> Result<&'static dyn Chain> {
        chains::by_name(&self.network).with_context(|| format!("unknown network {}", self.network))
    }

    /// Folder of the index.
    pub fn dir(&self) -> &Path {
        &self.index.dir
    }

    /// Folder of the database in it.
    pub fn database(&self) -> PathBuf {
        self.index.dir.join("db")
    }

    /// How to open the database.
    pub fn options(&self) -> Options {
        let defaults = Options::default();
        Options {
            memory: self.index.memory_mb << 20,
            commitment: self.index.commitment,
            undo_depth: self.index.undo_depth,
            threads: if self.index.threads == 0 {
                defaults.threads
            } else {
                self.index.threads
            },
            batch_blocks: self.index.batch_blocks,
            open_files: self.index.open_files,
        }
    }

    /// How to find the node.
    pub fn settings(&self, patience: Duration) -> Result<Settings> {
        let node = &self.node;
        let mut settings = Settings::new(self.chain()?);
        settings.datadir.clone_from(&node.datadir);
        settings.rpc.clone_from(&node.rpc);
        settings.auth = match (&node.user, &node.password, &node.cookie) {
            (Some(user), Some(password), _) => Some(Auth::User(user.clone(), password.clone())),
            (_, _, Some(cookie)) => Some(Auth::Cookie(cookie.clone())),
            _ => None,
        };
        settings.p2p = node.p2p;
        settings.only = node.source;
        settings.patience = patience;
        Ok(settings)
    }
}

impl Section<Electrum> {
    /// How the server is set up.
    pub fn settings(&self, workers: usize) -> weft_electrum::Settings {
        let (server, own) = (&self.server, &self.own);
        let port = |address: Option<SocketAddr>| address.map(|a| a.port());
        let hosts = own.host.as_ref().map(|host| {
            let ports = serde_json::json!({
                "tcp_port": port(server.listen),
                "ssl_port": port(server.tls_listen),
            });
            serde_json::json!({ host.as_str(): ports })
        });
        weft_electrum::Settings {
            limits: weft_electrum::Limits {
                line: own.max_line_kb << 10,
                batch: own.max_batch,
                answer: own.answer_mb << 20,
                subscriptions: own.max_subscriptions,
                cost_per_second: own.cost_per_second,
                cost_burst: own.cost_burst,
            },
            bounds: server.bounds(workers),
            info: weft_electrum::Info {
                banner: own.banner.clone(),
                donation_address: own.donation_address.clone(),
                hosts: hosts.unwrap_or_default(),
            },
        }
    }

    /// The name clients know it by.
    pub fn host(&self) -> Option<&str> {
        self.own.host.as_deref()
    }
}

impl Section<Http> {
    /// How the server is set up.
    pub fn settings(&self, workers: usize) -> weft_http::Settings {
        let defaults = weft_http::Settings::default();
        weft_http::Settings {
            bounds: self.server.bounds(workers),
            body: self.own.max_body_kb << 10,
            streams: self.own.max_streams,
            stream: weft_http::stream::StreamLimits {
                scripts: self.own.max_scripts,
                ..defaults.stream
            },
            cors: self.own.cors.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commented_default_is_the_default() {
        let written = Config::parse(COMMENTED_DEFAULT).unwrap();
        let bare = Config::parse("network = \"bitcoin\"").unwrap();
        assert_eq!(
            format!("{:?}", written.options()),
            format!("{:?}", bare.options())
        );
        assert_eq!(written.dir(), bare.dir());
        // Where it listens is the one thing that a file must say; all else is the same.
        let mut quiet = written.clone();
        (quiet.electrum.server.listen, quiet.http.server.listen) = (None, None);
        assert_eq!(
            format!("{:?} {:?} {:?}", quiet.electrum, quiet.http, quiet.bounds()),
            format!("{:?} {:?} {:?}", bare.electrum, bare.http, bare.bounds())
        );
        for listen in [written.electrum.server.listen, written.http.server.listen] {
            assert!(listen.unwrap().ip().is_loopback());
        }
        // And with every setting switched on it is still understood.
        let all: String = COMMENTED_DEFAULT
            .lines()
            .map(|l| {
                if l.starts_with("#") && l.contains(" = ") {
                    format!("{}\n", &l[1..])
                } else {
                    format!("{l}\n")
                }
            })
            .filter(|l| !l.starts_with("cookie"))
            .collect();
        let full = Config::parse(&all).unwrap();
        assert!(full.metrics.listen.is_some() && full.node.source.is_some());
        for section in [&full.electrum.server, &full.http.server] {
            assert!(section.tls_listen.is_some() && section.pair().is_some());
        }
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            ("network = \"bitcoinn\"", "bitcoin-testnet4"),
            ("network = \"bitcoin\"\n[index]\nmemory_mb = 3", "from 64"),
            ("network = \"bitcoin\"\n[index]\nmemory = 3", "memory_mb"),
            (
                "network = \"bitcoin\"\n[node]\nuser = \"a\"",
                "both or none",
            ),
            (
                "network = \"bitcoin\"\n[electrum]\nmax_clients = 0",
                "electrum.max_clients",
            ),
            (
                "network = \"bitcoin\"\n[electrum]\ncost_burst = nan",
                "cost_burst",
            ),
            (
                "network = \"bitcoin\"\n[http]\ntls_cert = \"a\"",
                "http.tls_key",
            ),
            ("network = \"bitcoin\"\n[http]\nport = 1", "max_streams"),
            ("network = \"bitcoin\"\n[http]\nport = 1", "tls_listen"),
            ("network = \"bitcoin\"\n[http]\nlisten = 1", "line 3"),
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
