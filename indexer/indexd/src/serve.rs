//! The servers of a running service: a runtime for them, where they listen, what they count.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tracing::{info, warn};
use weft_listen::tls::{self, Pair};
use weft_listen::{Figure, Gate, Limits, Listener};
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

/// One place to listen at.
struct Place<'a> {
    service: &'static str,
    address: Option<SocketAddr>,
    tls: bool,
    gate: &'a Arc<Gate>,
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

        let electrum = &config.electrum;
        let gate = gate(electrum.clients());
        let server = weft_electrum::Server::new(view.clone(), electrum.settings(workers));
        for (address, tls) in [(electrum.listen, false), (electrum.tls_listen, true)] {
            let place = Place {
                service: "electrum",
                address,
                tls,
                gate: &gate,
            };
            let host = electrum.host();
            if let Some(listener) = serving.listen(config, &place, electrum.pair(), host)? {
                serving.spawn(server.clone().serve(listener, stopped.clone()));
                serving.servers.electrum = Some((server.clone(), gate.clone()));
            }
        }
        let http = &config.http;
        let gate = self::gate(http.clients());
        let server = weft_http::Server::new(view.clone(), http.settings(workers));
        for (address, tls) in [(http.listen, false), (http.tls_listen, true)] {
            let place = Place {
                service: "http",
                address,
                tls,
                gate: &gate,
            };
            let host = electrum.host();
            if let Some(listener) = serving.listen(config, &place, http.pair(), host)? {
                serving.spawn(server.clone().serve(listener, stopped.clone()));
                serving.servers.http = Some((server.clone(), gate.clone()));
            }
        }
        Ok(serving)
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(work);
        }
    }

    fn listen(
        &mut self,
        config: &Config,
        place: &Place<'_>,
        pair: Option<Pair>,
        host: Option<&str>,
    ) -> Result<Option<Listener>> {
        let (Some(address), Some(runtime)) = (place.address, &self.runtime) else {
            return Ok(None);
        };
        let transport = if place.tls { "tls" } else { "tcp" };
        let service = place.service;
        let acceptor = match place.tls {
            false => None,
            true => {
                let pair = match pair {
                    Some(pair) => pair,
                    None => {
                        let mut hosts: Vec<String> = host.map(str::to_owned).into_iter().collect();
                        hosts.extend([
                            "localhost".to_owned(),
                            "127.0.0.1".to_owned(),
                            "::1".to_owned(),
                        ]);
                        tls::own_pair(config.dir(), &hosts)?
                    }
                };
                Some(tls::acceptor(&pair)?)
            }
        };
        let setting = if place.tls { "tls_listen" } else { "listen" };
        let listener = runtime
            .block_on(Listener::bind(address, acceptor, place.gate.clone()))
            .with_context(|| format!("cannot listen on {address} ({service}.{setting})"))?;
        let address = listener.address()?;
        if !address.ip().is_loopback() {
            warn!(%address, "{service} is open to other machines");
        }
        info!(%address, transport, "{service}");
        self.listening.push(Listening {
            service: service.to_owned(),
            transport: transport.to_owned(),
            address,
        });
        Ok(Some(listener))
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

fn gate(limits: Limits) -> Arc<Gate> {
    Gate::new(limits)
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
