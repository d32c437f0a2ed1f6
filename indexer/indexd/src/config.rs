//! The configuration file.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use weft_chain::{Chain, chains};
use weft_source::rpc::Auth;
use weft_source::{Kind, Settings};
use weft_store::Options;

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
        let node = &config.node;
        if node.user.is_some() != node.password.is_some() {
            bail!("node.user and node.password belong together: set both or none");
        }
        if node.user.is_some() && node.cookie.is_some() {
            bail!("set node.cookie, or node.user and node.password, not both");
        }
        Ok(config)
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
        ] {
            let error = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
