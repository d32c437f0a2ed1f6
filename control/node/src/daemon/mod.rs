//! The control loop: feeds the core, does what it asks for, follows the host.
//!
//! One task owns everything that decides; the data path's threads and the API's tasks only talk to it through bounded
//! queues. Nothing in here waits for a peer.

mod apply;
mod asks;
mod host;
mod offloads;
mod resolver;
mod routes;
mod setup;
mod underlay;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context as _, Result};
use arc_swap::ArcSwap;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use weft_client::config::{Config, Layout, Prefix};
use weft_core::{
    io::{Command, CommandId, DataplaneOp, ForwardMode, Input, UnderlayAddress},
    node::Node,
};

use self::{
    asks::Waiting,
    resolver::Resolver,
    routes::Routes,
    setup::{Loaded, OsRandom, now},
    underlay::Rules,
};
use crate::{
    api,
    data::{
        session::Store,
        shared::{Order, Shared, Up, Wake},
        udp::{Address, Socket},
        worker::Worker,
    },
    dataplane::Dataplane,
    netlink::{
        Netlink,
        host::Host,
        xdp::{self, XdpFeatures},
    },
    notify,
    state::{
        StateDir,
        record::{Change, Record},
        snapshot::{self, Found},
    },
    tun::Interface,
};

/// Messages between the data path and the control loop.
const UP_QUEUE: usize = 4096;
/// Messages taken in one turn.
const UP_BURST: usize = 512;
/// API requests that wait for the control loop.
const ASK_QUEUE: usize = 64;
/// Between two snapshots on disk.
const SNAPSHOT_GAP: Duration = Duration::from_millis(250);
/// Changes of the host settle this long before next hops are looked up anew.
const SETTLE: Duration = Duration::from_millis(20);
/// Between confirmations of the neighbours in use: less than the 15 seconds the kernel trusts an answer for at least,
/// which it adds 5 seconds of hope and 3 of questions to.
const CONFIRM: Duration = Duration::from_secs(10);
/// The record of host changes, in the state folder.
const RECORD: &str = "host.json";
/// How long the core may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// The MTU of the TUN interface; routes have smaller ones of their own.
const TUN_MTU: u32 = 9000;
/// Packets each of its queues holds: some milliseconds of traffic.
const TUN_QUEUE: u32 = 1024;

/// Checks configuration and secrets and changes nothing.
pub fn check(layout: &Layout) -> Result<String> {
    let loaded = setup::load(layout)?;
    let id = loaded.identity.id();
    let network = loaded.network.network_id();
    Ok(format!(
        "{}: configuration and keys are fine: node {} ({id}), network {network}, address {}",
        layout.config.display(),
        loaded.config.name,
        id.overlay_address(&network)
    ))
}

/// Undoes what an earlier run left on the host, without starting. Tells what was done, line by line.
pub fn undo(layout: &Layout) -> Result<Vec<String>> {
    let state = StateDir::open(&layout.state)?;
    let (mut record, notice) = Record::load(&state.file(RECORD))?;
    let mut done: Vec<String> = notice.into_iter().collect();
    done.extend(undo_changes(&mut record, &layout.socket)?);
    // On a full disk the record may have stayed behind; the pins' place is known without it.
    if let Ok(pins) = pins(layout)
        && pins.exists()
    {
        crate::dataplane::cleanup(&pins).with_context(|| format!("removing {}", pins.display()))?;
        done.push(format!(
            "removed maps and programs pinned under {}",
            pins.display()
        ));
    }
    // Without the tables that went with the pins the snapshot describes nothing that exists.
    match std::fs::remove_file(state.file("snapshot")) {
        Ok(()) => done.push("removed the snapshot of links and labels".to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(error).context("removing the snapshot"),
    }
    if done.is_empty() {
        done.push("nothing to undo".to_owned());
    }
    Ok(done)
}

fn undo_changes(record: &mut Record, socket: &std::path::Path) -> Result<Vec<String>> {
    let mut done = vec![];
    for change in record.changes().to_vec() {
        match &change {
            Change::Pins { path } => {
                crate::dataplane::cleanup(path)
                    .with_context(|| format!("removing {}", path.display()))?;
                done.push(format!(
                    "removed maps and programs pinned under {}",
                    path.display()
                ));
            }
            Change::Socket { path } if path == socket && path.exists() => {
                std::fs::remove_file(path)
                    .with_context(|| format!("removing {}", path.display()))?;
                done.push(format!("removed the socket {}", path.display()));
            }
            // Detached with its pin; the rest ended with the process.
            _ => {}
        }
    }
    record.remove(|_| true)?;
    Ok(done)
}

/// How the daemon ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything on the host is undone.
    Undo,
    /// Transit goes on in the kernel.
    KeepTransit,
}

/// The running daemon.
struct Daemon {
    config: Config,
    layout: Layout,
    node: Node,
    plane: Dataplane,
    shared: Arc<Shared>,
    store: Store,
    sockets: Arc<Vec<Socket>>,
    wakes: Vec<Arc<Wake>>,
    /// To each worker.
    orders: Vec<crossbeam::channel::Sender<Order>>,
    /// Interfaces with AF_XDP sockets, and why others have none.
    direct: BTreeMap<u32, Result<(), String>>,
    /// Whether the workers have senders of whole frames, and why not, once it was tried.
    senders: Option<Result<(), String>>,
    /// Interfaces on which bulk is sent by XDP, and why not on others.
    xdp_egress: BTreeMap<u32, Result<(), String>>,
    hops: Vec<Option<Address>>,
    hops_changed: bool,
    slots: Vec<weft_abi::Slot>,
    netlink: Netlink,
    host: Host,
    rules: Rules,
    modes: BTreeMap<u32, ForwardMode>,
    reasons: BTreeMap<u32, String>,
    features: Option<XdpFeatures>,
    /// Native interfaces that take nothing that is redirected to them.
    no_redirects: HashSet<u32>,
    plane_reason: Option<String>,
    underlay: Vec<UnderlayAddress>,
    resolver: Resolver,
    to_look: Vec<weft_abi::NextHopIndex>,
    routes: Option<Routes>,
    routes_changed: bool,
    tun: Option<Interface>,
    state: StateDir,
    record: Record,
    snapshot_due: Option<Instant>,
    snapshot_last: Option<Instant>,
    notices: BTreeMap<&'static str, String>,
    waiting: HashMap<CommandId, Waiting>,
    next_command: u64,
    peers_by_name: HashMap<String, Vec<std::net::SocketAddr>>,
    session_packets: HashMap<weft_core::io::SessionIndex, u64>,
    started: Instant,
    resumed: bool,
    end: Option<End>,
    buffer: Vec<u8>,
}

/// Runs until told to stop.
pub async fn run(layout: Layout) -> Result<()> {
    setup::keep_memory_small();
    setup::ask_scheduler();
    // What an earlier run left in the kernel goes on forwarding, whatever becomes of this start.
    let fresh = !layout.state.join(RECORD).exists();
    let mut started = false;
    let result = serve(layout.clone(), &mut started).await;
    if result.is_err() && fresh && !started {
        match undo(&layout) {
            Ok(lines) => lines
                .iter()
                .for_each(|line| tracing::info!("after the failure: {line}")),
            Err(error) => tracing::debug!(%error, "undoing after the failure"),
        }
    }
    result
}

async fn serve(layout: Layout, started: &mut bool) -> Result<()> {
    // From here on a signal is a wish to end in order.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let loaded = setup::load(&layout)?;
    let state = StateDir::open(&layout.state)?;
    let mut notices = BTreeMap::new();
    let (mut record, notice) = Record::load(&state.file(RECORD))?;
    if let Some(notice) = notice {
        warn(&mut notices, "record", notice);
    }
    // The interface went with the process that made it, and its addresses and routes with the interface.
    keep(&mut notices, record.remove(Change::ends_with_process));

    // Sockets first: a port in use ends the start before anything on the host is changed.
    let workers = setup::workers(loaded.config.tun.workers);
    let sockets = setup::open_sockets(loaded.config.listen.port, workers)?;
    let socket = Change::Socket {
        path: layout.socket.clone(),
    };
    keep(&mut notices, record.add([socket]));
    let listener = api::listen(&layout.socket)
        .with_context(|| format!("opening the API socket {}", layout.socket.display()))?;

    let core_config = setup::core_config(&loaded);
    let plane_config = setup::plane_config(&loaded, &core_config);
    keep(
        &mut notices,
        record.add([Change::Pins {
            path: plane_config.pin_dir.clone(),
        }]),
    );
    let (plane, resumed, plane_reason) = setup::open_plane(loaded.config.xdp.mode, &plane_config)?;
    if let Some(reason) = &plane_reason {
        // Tables of an earlier run in the kernel must not go on beside ours.
        let stale = crate::dataplane::cleanup(&plane_config.pin_dir);
        if let Err(error) = stale {
            warn(
                &mut notices,
                "pins",
                format!("{}: {error}", plane_config.pin_dir.display()),
            );
        }
        keep(
            &mut notices,
            record.remove(|change| matches!(change, Change::Pins { .. } | Change::Xdp { .. })),
        );
        notices.insert(
            "plane",
            format!("packets are forwarded in user space: {reason}"),
        );
        tracing::warn!(%reason, "packets are forwarded in user space");
    }
    if let Some(reason) = &resumed.discarded {
        warn(
            &mut notices,
            "discarded",
            format!("forwarding tables of an earlier run were not taken over: {reason}"),
        );
    }

    let (netlink, mut events) = Netlink::open()?;
    let host = netlink.dump().await?;
    let (features, mut features_changed) = match XdpFeatures::open() {
        Ok(found) => found.unzip(),
        Err(error) => {
            tracing::warn!(%error, "the kernel does not tell the XDP features of interfaces");
            (None, None)
        }
    };
    let (node, node_resumed, first_outputs) =
        make_node(&state, core_config, resumed.tables, &mut notices)?;

    let own = loaded
        .identity
        .id()
        .overlay_address(&loaded.network.network_id());
    let overlay = Prefix {
        address: loaded.network.network_id().prefix().into(),
        len: 48,
    };
    let mut store = Store::new(own, overlay, &loaded.config.routes.advertise);
    let (up, from_workers) = crossbeam::channel::bounded(UP_QUEUE);
    let wake_up = Arc::new(Notify::new());
    let shared = Arc::new(Shared {
        tables: plane.shared(),
        sessions: ArcSwap::from_pointee(
            store.publish().context("the first table is always there")?,
        ),
        hops: ArcSwap::default(),
        listening: ArcSwap::default(),
        modes: ArcSwap::default(),
        xdp_egress: ArcSwap::default(),
        counters: Default::default(),
        lanes: Default::default(),
        port: loaded.config.listen.port,
        up,
        notify: wake_up.clone(),
        stop: false.into(),
    });

    let mut daemon = Daemon {
        rules: Rules {
            listen: loaded.config.listen.clone(),
            tun_name: loaded.config.tun.name.clone(),
            overlay,
        },
        config: loaded.config.clone(),
        layout,
        node,
        plane,
        shared: shared.clone(),
        store,
        sockets: sockets[0].clone(),
        wakes: vec![],
        orders: vec![],
        direct: BTreeMap::new(),
        senders: None,
        xdp_egress: BTreeMap::new(),
        hops: vec![],
        hops_changed: false,
        slots: vec![],
        netlink,
        host,
        modes: BTreeMap::new(),
        reasons: BTreeMap::new(),
        features,
        no_redirects: HashSet::new(),
        plane_reason,
        underlay: vec![],
        resolver: Resolver::default(),
        to_look: vec![],
        routes: None,
        routes_changed: false,
        tun: None,
        state,
        record,
        snapshot_due: None,
        snapshot_last: None,
        notices,
        waiting: HashMap::new(),
        next_command: 1,
        peers_by_name: HashMap::new(),
        session_packets: HashMap::new(),
        started: Instant::now(),
        resumed: node_resumed,
        end: None,
        buffer: vec![0; crate::data::udp::BUFFER],
    };
    for report in &resumed.attached {
        daemon.modes.insert(report.ifindex, report.mode);
    }
    if !first_outputs {
        // Nothing of an earlier run is described: what stands in the tables goes.
        daemon.apply_plane(&DataplaneOp::Restored);
    }
    daemon.open_tun(&loaded, own, overlay, workers).await;
    daemon.underlay_changed().await;
    daemon.settle().await;
    let threads = daemon.start_workers(&sockets)?;

    let (asks, mut asked) = mpsc::channel(ASK_QUEUE);
    let server = tokio::spawn(api::serve(
        listener,
        usize::from(daemon.config.limits.api_clients),
        asks,
    ));
    let mut second = interval(Duration::from_secs(1));
    second.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut confirm = interval(CONFIRM);
    confirm.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (resolved, mut names) = mpsc::channel(16);
    let resolver_task = tokio::spawn(host::resolve_names(loaded.config.clone(), resolved));
    *started = true;
    setup::give_back_memory();
    notify::ready();
    tracing::info!(
        node = %daemon.node.id(), address = %own, port = daemon.config.listen.port, resumed = node_resumed, "weftd runs"
    );

    while daemon.end.is_none() {
        let deadline = daemon.deadline();
        tokio::select! {
            biased;
            _ = terminate.recv() => daemon.end = Some(End::Undo),
            _ = interrupt.recv() => daemon.end = Some(End::Undo),
            () = wake_up.notified() => daemon.take_up(&from_workers, &wake_up),
            changes = events.next(&mut daemon.host) => match changes {
                Some(changes) => daemon.host_changed(changes).await,
                None => events = daemon.reopen_netlink().await?,
            },
            changed = next_change(&mut features_changed) => match changed {
                Ok(()) => daemon.redirects_changed(),
                Err(error) => {
                    tracing::warn!(%error, "changes of XDP features are no longer told");
                    features_changed = None;
                }
            },
            Some(ask) = asked.recv() => daemon.ask(ask),
            Some((name, addresses)) = names.recv() => daemon.name_resolved(&name, addresses),
            _ = second.tick() => {
                // Half a data path looks like a working one: better to be started again, while transit goes on.
                anyhow::ensure!(
                    !threads.iter().any(std::thread::JoinHandle::is_finished),
                    "a data path thread has ended by itself; the log tells why"
                );
                daemon.every_second();
            }
            _ = confirm.tick() => {
                if let Err(error) = daemon.resolver.refresh(&daemon.host, &daemon.netlink).await {
                    tracing::debug!(%error, "confirming neighbours");
                }
            }
            () = sleep_until(deadline) => {}
        }
        daemon.settle().await;
    }
    resolver_task.abort();
    server.abort();
    daemon.finish(threads, &from_workers).await
}

/// Waits for a change; for ever where none is told.
async fn next_change(changes: &mut Option<xdp::Changes>) -> std::io::Result<()> {
    match changes {
        Some(changes) => changes.next().await,
        None => std::future::pending().await,
    }
}

/// Resumes from the snapshot where its tables are still there, else begins anew. The last value tells whether the
/// node's first outputs describe its tables.
fn make_node(
    state: &StateDir,
    config: weft_core::node::Config,
    tables: bool,
    notices: &mut BTreeMap<&'static str, String>,
) -> Result<(Node, bool, bool)> {
    let path = state.file("snapshot");
    match snapshot::load(&path) {
        Ok(Found::Snapshot(bytes)) if tables => {
            match Node::resume(config.clone(), &bytes, Box::new(OsRandom::new()), now()) {
                Ok(mut node) => {
                    // It reserved fresh counters: without this on disk, a second crash would use them twice.
                    match snapshot::store(&path, &node.snapshot()) {
                        Ok(()) => return Ok((node, true, true)),
                        Err(error) => {
                            warn(notices, "snapshot", format!("{error}; links begin anew"))
                        }
                    }
                }
                Err(error) => {
                    let aside = crate::state::keep_aside(&path)?;
                    warn(
                        notices,
                        "snapshot",
                        format!(
                            "{error}; it is kept as {}, and links begin anew",
                            aside.display()
                        ),
                    );
                }
            }
        }
        Ok(Found::Snapshot(_)) => {
            tracing::info!("the forwarding tables of the earlier run are gone: links begin anew");
        }
        Ok(Found::Nothing) => {}
        Ok(Found::Damaged { problem, aside }) => {
            let text = format!(
                "the snapshot was damaged ({problem}); it is kept as {}, and links begin anew",
                aside.display()
            );
            warn(notices, "snapshot", text);
        }
        Err(error) => warn(notices, "snapshot", format!("{error}; links begin anew")),
    }
    Ok((
        Node::new(config, Box::new(OsRandom::new()), now())?,
        false,
        false,
    ))
}

/// Keeps a notice for the status, and logs it where it is new.
fn warn(notices: &mut BTreeMap<&'static str, String>, key: &'static str, text: String) {
    if notices.get(key) != Some(&text) {
        tracing::warn!("{text}");
        notices.insert(key, text);
    }
}

fn keep<E: std::fmt::Display>(notices: &mut BTreeMap<&'static str, String>, result: Result<(), E>) {
    match result {
        Ok(()) => {
            notices.remove("state");
        }
        Err(error) => warn(notices, "state", error.to_string()),
    }
}

impl Daemon {
    async fn open_tun(
        &mut self,
        loaded: &Loaded,
        own: std::net::Ipv6Addr,
        overlay: Prefix,
        workers: usize,
    ) {
        if !loaded.config.tun.enable {
            return;
        }
        let name = loaded.config.tun.name.clone();
        keep(
            &mut self.notices,
            self.record.add([Change::Tun {
                interface: name.clone(),
            }]),
        );
        let interface = match Interface::open(&name, workers, loaded.config.tun.offload) {
            Ok(interface) => interface,
            Err(error) => {
                warn(
                    &mut self.notices,
                    "tun",
                    format!("{error} Until then this node is a transit only."),
                );
                keep(
                    &mut self.notices,
                    self.record
                        .remove(|change| matches!(change, Change::Tun { .. })),
                );
                return;
            }
        };
        let index = interface.index();
        let address = Change::Address {
            interface: name.clone(),
            address: format!("{own}/128"),
        };
        keep(&mut self.notices, self.record.add([address]));
        let up = async {
            self.netlink.set_up(index, TUN_MTU, TUN_QUEUE).await?;
            self.netlink.add_address(index, own.into(), 128).await
        };
        if let Err(error) = up.await {
            warn(
                &mut self.notices,
                "tun",
                format!("TUN interface {name}: {error}. Until then this node is a transit only."),
            );
            return;
        }
        let policy = loaded.config.routes.clone();
        let addresses = self.rules.addresses(&self.host, &self.modes);
        let mtu = underlay::default_inner_mtu(&addresses);
        self.resolver.tun = Some(index);
        self.routes = Some(Routes::new(policy, overlay, index, name, mtu));
        self.routes_changed = true;
        self.tun = Some(interface);
    }

    /// The kernel had more events than fitted: everything is read anew.
    async fn reopen_netlink(&mut self) -> Result<crate::netlink::Events> {
        tracing::warn!(
            "the kernel's netlink connection ended, most likely because events were lost; reading everything anew"
        );
        let (netlink, events) = Netlink::open()?;
        self.host = netlink.dump().await?;
        self.netlink = netlink;
        self.to_look = self.resolver.indices();
        self.underlay_changed().await;
        Ok(events)
    }

    fn start_workers(
        &mut self,
        sockets: &[Arc<Vec<Socket>>],
    ) -> Result<Vec<std::thread::JoinHandle<()>>> {
        let mut queues = match &self.tun {
            Some(tun) => tun
                .queues()
                .context("taking the TUN interface's queues")?
                .into_iter()
                .map(Some)
                .collect(),
            None => vec![],
        };
        queues.resize_with(sockets.len(), || None);
        let mut threads = vec![];
        for (index, (sockets, queue)) in sockets.iter().zip(queues).enumerate() {
            let wake = Arc::new(Wake::new().context("making a worker's wake-up")?);
            let (order, orders) = crossbeam::channel::unbounded();
            let worker = Worker::new(
                self.shared.clone(),
                queue,
                sockets.clone(),
                wake.clone(),
                orders,
            );
            self.orders.push(order);
            let thread = std::thread::Builder::new()
                .name(format!("weft-data-{index}"))
                .spawn(move || worker.run())
                .context("starting a data path thread")?;
            self.wakes.push(wake);
            threads.push(thread);
        }
        self.serve_directly();
        self.send_directly();
        Ok(threads)
    }

    fn deadline(&self) -> Instant {
        let core = self.node.poll_timeout().map(|at| {
            let wait = at.since(now());
            Instant::now() + Duration::from_micros(wait.0)
        });
        let far = Instant::now() + Duration::from_secs(60);
        core.into_iter()
            .chain(self.snapshot_due)
            .chain(self.plane.due().map(Instant::from_std))
            .min()
            .unwrap_or(far)
            .min(far)
    }

    /// Does everything that is due: timers, outputs, look-ups, routes, snapshot. Bounded, for a core that always has
    /// more to say must not keep signals and requests waiting.
    async fn settle(&mut self) {
        let at = now();
        if self.node.poll_timeout().is_some_and(|due| due <= at) {
            self.node.handle_timeout(at);
        }
        for _ in 0..4 {
            self.drain();
            self.publish();
            let looks = std::mem::take(&mut self.to_look);
            if looks.is_empty() {
                break;
            }
            self.look(looks).await;
        }
        if self
            .plane
            .due()
            .is_some_and(|due| due <= std::time::Instant::now())
            && let Err(error) = self.plane.tend()
        {
            tracing::error!(%error, "the forwarding plane did not take how a neighbour is reached");
        }
        if std::mem::take(&mut self.routes_changed) {
            self.update_routes().await;
        }
        if self.snapshot_due.is_some_and(|due| due <= Instant::now()) {
            self.store_snapshot();
        }
    }

    fn store_snapshot(&mut self) {
        self.snapshot_due = None;
        self.snapshot_last = Some(Instant::now());
        let path = self.state.file("snapshot");
        match snapshot::store(&path, &self.node.snapshot()) {
            Ok(()) => {
                self.notices.remove("snapshot store");
            }
            Err(error) => warn(&mut self.notices, "snapshot store", error.to_string()),
        }
    }

    fn take_up(&mut self, from_workers: &crossbeam::channel::Receiver<Up>, wake_up: &Notify) {
        for up in from_workers.try_iter().take(UP_BURST) {
            let at = now();
            match up {
                Up::Handshake { path, datagram } => {
                    self.node.handle_input(
                        at,
                        Input::Handshake {
                            path,
                            datagram: &datagram,
                        },
                    );
                }
                Up::Control { slot, path, body } => {
                    self.node.handle_input(
                        at,
                        Input::Control {
                            slot,
                            path,
                            body: &body,
                        },
                    );
                }
                Up::ProbeEcho { slot, path, body } => {
                    self.node
                        .handle_input(at, Input::ProbeEcho { slot, path, body });
                }
                Up::Exception {
                    slot,
                    label,
                    counter,
                    exception,
                } => {
                    self.node.handle_input(
                        at,
                        Input::Exception {
                            slot,
                            label,
                            counter,
                            exception,
                        },
                    );
                }
                Up::SessionMessage {
                    session,
                    label,
                    counter,
                    message,
                } => {
                    self.node.handle_input(
                        at,
                        Input::SessionMessage {
                            session,
                            label,
                            counter,
                            message: &message,
                        },
                    );
                }
                Up::NoSession { destination } => {
                    self.node.handle_input(at, Input::NoSession { destination })
                }
            }
            // Answers go out before the next message is looked at: a handshake's keys may be needed by it.
            self.drain();
        }
        self.publish();
        if !from_workers.is_empty() {
            wake_up.notify_one();
        }
    }

    fn every_second(&mut self) {
        let at = now();
        for slot in self.slots.clone() {
            let counted = self.plane.slot_counters(slot);
            self.node.handle_input(
                at,
                Input::SlotCounters {
                    slot,
                    highest_seq_sum: counted.highest_seq_sum,
                    received: counted.received,
                    bytes: counted.bytes,
                },
            );
        }
        let mut active = vec![];
        for session in self.store.sessions() {
            let packets = session.counters.tx_packets.load(Ordering::Relaxed)
                + session.counters.rx_packets.load(Ordering::Relaxed);
            if self
                .session_packets
                .insert(session.index, packets)
                .unwrap_or(0)
                != packets
            {
                active.push(session.index);
            }
        }
        for session in active {
            self.node.handle_input(at, Input::SessionActive { session });
        }
        for event in self.plane.take_events(64) {
            tracing::debug!(?event, "sampled by the kernel");
        }
        self.forget_old_asks();
        // What could not be written is tried again: the disk may have room by now.
        if self.notices.contains_key("snapshot") && self.snapshot_due.is_none() {
            self.snapshot_due = Some(Instant::now());
        }
        keep(&mut self.notices, self.record.retry());
    }

    async fn finish(
        mut self,
        threads: Vec<std::thread::JoinHandle<()>>,
        from_workers: &crossbeam::channel::Receiver<Up>,
    ) -> Result<()> {
        let keep_transit = self.end == Some(End::KeepTransit);
        notify::stopping();
        tracing::info!(keep_transit, "weftd ends");
        if !keep_transit {
            let id = self.command_id();
            self.node.handle_input(
                now(),
                Input::Command {
                    id,
                    command: Command::Shutdown,
                },
            );
            let deadline = Instant::now() + GOODBYE;
            self.drain();
            // Acknowledgements, where the core wants some.
            while self.waiting.is_empty() && Instant::now() < deadline && !from_workers.is_empty() {
                self.take_up(from_workers, &Notify::new());
            }
        }
        self.shared.stop.store(true, Ordering::Release);
        for wake in &self.wakes {
            wake.wake();
        }
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a data path thread had ended by itself");
            }
        }
        if keep_transit {
            self.store_snapshot();
        } else if let Some(routes) = &mut self.routes {
            routes.remove_all(&self.netlink).await;
        }
        drop(self.tun.take());
        keep(
            &mut self.notices,
            self.record.remove(Change::ends_with_process),
        );
        let _ = std::fs::remove_file(&self.layout.socket);
        keep(
            &mut self.notices,
            self.record
                .remove(|change| matches!(change, Change::Socket { .. })),
        );
        self.plane
            .release(keep_transit)
            .context("giving up the forwarding plane")?;
        if !keep_transit {
            match std::fs::remove_file(self.state.file("snapshot")) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(error).context("removing the snapshot");
                }
                _ => {}
            }
            self.record.remove(|_| true)?;
        }
        Ok(())
    }
}

/// The pins' folder of a node, for people and tests.
pub fn pins(layout: &Layout) -> Result<PathBuf> {
    Ok(setup::pin_dir(&setup::load(layout)?))
}
