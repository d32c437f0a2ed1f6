//! The servers of a running service: a runtime for them, where they listen, what they count.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tracing::{info, warn};
use weft_listen::tls::{self, TlsAcceptor};
use weft_listen::{Figure, Gate, Listener};
use weft_view::View;

use crate::config::Config;

/// Time for clients to be let go at the end.
const GRACE: Duration = Duration::from_secs(2);

/// A socket that is listened on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listening {
    /// `electrum` or `http`.
    pub service: String,
    /// `tcp` or `tls`.
    pub transport: String,
    /// Where.
    pub address: SocketAddr,
}

/// The figures of a server, under its name.
pub type Labelled = (&'static str, Figure);

/// Running servers; they end with the value.
#[derive(Debug)]
pub struct Serving {
    runtime: Option<Runtime>,
    stop: watch::Sender<bool>,
    listening: Vec<Listening>,
    servers: Servers,
}

/// The servers, to be asked for figures.
#[derive(Debug, Clone, Default)]
pub struct Servers {
    electrum: Option<(Arc<weft_electrum::Server>, Arc<Gate>)>,
    http: Option<(Arc<weft_http::Server>, Arc<Gate>)>,
    view: Option<View>,
}

impl Serving {
    /// Listens wherever the configuration says and serves `view`.
    ///
    /// # Errors
    /// An address cannot be listened on; a certificate cannot be used.
    pub fn start(config: &Config, view: &View) -> Result<Self> {
        // Half of the processors: each answer wakes a thread that has nothing to do if there is one, and that takes longer
        // than most answers. What takes long has threads of its own.
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get().div_ceil(2));
        let runtime = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("serve")
            .enable_all()
            .build()
            .context("cannot start the servers' threads")?;
        let (stop, stopped) = watch::channel(false);
        let mut serving = Self {
            runtime: Some(runtime),
            stop,
            listening: Vec::new(),
            servers: Servers {
                view: Some(view.clone()),
                ..Servers::default()
            },
        };
        // Questions take a processor each; some more, for those that wait for a disk or the node.
        let workers = std::thread::available_parallelism().map_or(2, usize::from) * 2;

        let own = &config.electrum;
        let server = weft_electrum::Server::new(view.clone(), own.settings(workers));
        let gate = serving.listen(config, "electrum", &own.server, |listener| {
            server.clone().serve(listener, stopped.clone())
        })?;
        serving.servers.electrum = gate.map(|gate| (server, gate));

        let own = &config.http;
        let server = weft_http::Server::new(view.clone(), own.settings(workers));
        let gate = serving.listen(config, "http", &own.server, |listener| {
            server.clone().serve(listener, stopped.clone())
        })?;
        serving.servers.http = gate.map(|gate| (server, gate));
        Ok(serving)
    }

    /// Listens wherever the section `service` says and has `serve` serve who comes; `None` if it says nothing.
    fn listen<F>(
        &mut self,
        config: &Config,
        service: &str,
        section: &weft_listen::Config,
        serve: impl Fn(Listener) -> F,
    ) -> Result<Option<Arc<Gate>>>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else {
            return Ok(None);
        };
        let gate = Gate::new(section.clients());
        let mut any = false;
        for (address, setting) in [
            (section.listen, "listen"),
            (section.tls_listen, "tls_listen"),
        ] {
            let Some(address) = address else { continue };
            let tls = setting == "tls_listen";
            let acceptor = match tls {
                true => Some(acceptor(config, section)?),
                false => None,
            };
            let listener = runtime
                .block_on(Listener::bind(address, acceptor, gate.clone()))
                .with_context(|| format!("cannot listen on {address} ({service}.{setting})"))?;
            let address = listener.address()?;
            if !address.ip().is_loopback() {
                warn!(%address, "{service} is open to other machines");
            }
            let transport = if tls { "tls" } else { "tcp" };
            info!(%address, transport, "{service}");
            runtime.spawn(serve(listener));
            self.listening.push(Listening {
                service: service.to_owned(),
                transport: transport.to_owned(),
                address,
            });
            any = true;
        }
        Ok(any.then_some(gate))
    }

    /// Where it listens.
    pub fn listening(&self) -> &[Listening] {
        &self.listening
    }

    /// The servers, for their figures.
    pub fn servers(&self) -> Servers {
        self.servers.clone()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(GRACE);
        }
    }
}

/// TLS with the section's certificate, or with our own, made for the names this machine may be called by.
fn acceptor(config: &Config, section: &weft_listen::Config) -> Result<TlsAcceptor> {
    let pair = match section.pair() {
        Some(pair) => pair,
        None => {
            let host = config.electrum.host().into_iter();
            let names = host.chain(["localhost", "127.0.0.1", "::1"]);
            tls::own_pair(config.dir(), &names.map(str::to_owned).collect::<Vec<_>>())?
        }
    };
    Ok(tls::acceptor(&pair)?)
}

impl Servers {
    /// Everything that is counted, by server.
    pub fn figures(&self) -> Vec<Labelled> {
        let mut out: Vec<Labelled> = Vec::new();
        let clients = |gate: &Gate| {
            let now = Figure {
                name: "clients",
                help: "Clients at present.",
                value: gate.clients() as u64,
            };
            [now].into_iter().chain(gate.counters.figures())
        };
        if let Some((server, gate)) = &self.electrum {
            out.extend(
                server
                    .counters()
                    .figures()
                    .into_iter()
                    .map(|f| ("electrum", f)),
            );
            out.extend(clients(gate).map(|f| ("electrum", f)));
        }
        if let Some((server, gate)) = &self.http {
            out.extend(server.counters().figures().into_iter().map(|f| ("http", f)));
            out.extend(
                server
                    .stream_counters()
                    .figures()
                    .into_iter()
                    .map(|f| ("http", f)),
            );
            out.extend(clients(gate).map(|f| ("http", f)));
        }
        if let Some(view) = &self.view {
            let pool = view.pool();
            let figures = [
                (
                    "mempool_transactions",
                    "Unconfirmed transactions.",
                    pool.len() as u64,
                ),
                ("mempool_bytes", "Their bytes.", pool.bytes() as u64),
                (
                    "mempool_left_out_total",
                    "Unconfirmed transactions left out because the mempool is full.",
                    pool.left_out(),
                ),
                (
                    "feed_last",
                    "Number of the last change told.",
                    view.feed().last(),
                ),
            ];
            out.extend(figures.map(|(name, help, value)| ("", Figure { name, help, value })));
        }
        out
    }
}
