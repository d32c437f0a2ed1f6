//! Which source to use: the best of those that work.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use weft_chain::Chain;

use crate::files::Files;
use crate::layered::Layered;
use crate::p2p::P2p;
use crate::rest::Rest;
use crate::rpc::{Auth, Rpc, RpcClient};
use crate::{Kind, Source, SourceError};

/// What is known of the node. What is not set is derived or left out.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The network.
    pub chain: &'static dyn Chain,
    /// The node's data directory (the one of the main network, above `testnet4` and so on);
    /// `None` for the usual place below the home directory.
    pub datadir: Option<PathBuf>,
    /// Host and port of RPC and REST; `None` for this machine and the network's port.
    pub rpc: Option<String>,
    /// Credentials; `None` for the cookie in the data directory.
    pub auth: Option<Auth>,
    /// Address of the P2P port; `None` for this machine and the network's port.
    pub p2p: Option<SocketAddr>,
    /// Only this kind is tried.
    pub only: Option<Kind>,
    /// How long to go on with a node that is starting.
    pub patience: Duration,
}

impl Settings {
    /// Everything at its usual place.
    pub fn new(chain: &'static dyn Chain) -> Self {
        let patience = Duration::from_secs(60);
        Self {
            chain,
            datadir: None,
            rpc: None,
            auth: None,
            p2p: None,
            only: None,
            patience,
        }
    }

    /// The folder of the network: where `blocks` and the cookie are.
    pub fn network_dir(&self) -> Option<PathBuf> {
        let params = self.chain.params();
        let base = match &self.datadir {
            Some(dir) => dir.clone(),
            None => Path::new(&std::env::var_os("HOME")?).join(params.datadir),
        };
        Some(base.join(params.subdir))
    }

    /// Host and port of RPC and REST.
    pub fn rpc_place(&self) -> String {
        self.rpc
            .clone()
            .unwrap_or_else(|| format!("127.0.0.1:{}", self.chain.params().rpc_port))
    }

    fn auth(&self) -> Auth {
        let cookie = || Some(Auth::Cookie(self.network_dir()?.join(".cookie")));
        self.auth.clone().or_else(cookie).unwrap_or_default()
    }

    /// A client for the node's RPC.
    pub fn rpc_client(&self) -> RpcClient {
        RpcClient::new(&self.rpc_place(), self.auth(), self.patience)
    }
}

/// A source, and what else was found on the way.
#[derive(Debug)]
pub struct Choice {
    /// The source.
    pub source: Arc<dyn Source>,
    /// The node's RPC, where it works: for the mempool, fees and transactions to send.
    pub rpc: Option<Arc<Rpc>>,
    /// Why better ones were not taken, one line each.
    pub passed_over: Vec<String>,
}

/// Finds the best source that works: REST with `spenttxouts`, block files (guided by RPC or REST
/// where one of them answers), RPC, REST without `spenttxouts`, P2P.
pub fn choose(settings: &Settings) -> Result<Choice, SourceError> {
    let mut why = Vec::new();
    let mut note = |kind: Kind, e: SourceError| why.push(format!("{kind}: {e}"));
    let wanted = |kind| settings.only.is_none_or(|only| only == kind);

    let rpc = match Rpc::connect(settings.rpc_client(), settings.chain) {
        Ok(rpc) => Some(Arc::new(rpc)),
        Err(e @ SourceError::OtherNetwork { .. }) => return Err(e),
        Err(e) => {
            note(Kind::Rpc, e);
            None
        }
    };
    let rest = match Rest::connect(&settings.rpc_place(), settings.chain) {
        Ok(rest) => Some(Arc::new(rest)),
        Err(e) => {
            note(Kind::Rest, e);
            None
        }
    };
    let mut found: Option<Arc<dyn Source>> = None;
    if let Some(rest) = rest
        .clone()
        .filter(|r| wanted(Kind::Rest) && (r.has_spent() || settings.only.is_some()))
    {
        found = Some(rest);
    }
    if found.is_none() && wanted(Kind::Files) {
        let folder = settings.network_dir().map(|dir| dir.join("blocks"));
        let files = match folder {
            Some(folder) => Files::open(&folder, settings.chain),
            None => Err(SourceError::None(
                "no data directory is set, and HOME is not".to_owned(),
            )),
        };
        match files {
            Ok(files) => {
                let files: Arc<dyn Source> = Arc::new(files);
                let guide: Option<Arc<dyn Source>> = match (&rpc, &rest) {
                    (Some(rpc), _) => Some(rpc.clone()),
                    (None, Some(rest)) => Some(rest.clone()),
                    (None, None) => None,
                };
                found = Some(match guide {
                    Some(guide) => Arc::new(Layered::new(guide, files)),
                    None => files,
                });
            }
            Err(e) => note(Kind::Files, e),
        }
    }
    if found.is_none() && wanted(Kind::Rpc) {
        found = rpc.clone().map(|rpc| rpc as Arc<dyn Source>);
    }
    if found.is_none() && wanted(Kind::Rest) {
        found = rest.map(|rest| rest as Arc<dyn Source>);
    }
    if found.is_none() && wanted(Kind::P2p) {
        let port = settings.chain.params().p2p_port;
        let address = settings
            .p2p
            .unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], port)));
        match P2p::connect(address, settings.chain) {
            Ok(p2p) => found = Some(Arc::new(p2p)),
            Err(e) => note(Kind::P2p, e),
        }
    }
    match found {
        Some(source) => Ok(Choice {
            source,
            rpc,
            passed_over: why,
        }),
        None => Err(SourceError::None(why.join("\n"))),
    }
}
