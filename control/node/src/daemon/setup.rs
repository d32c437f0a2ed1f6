//! Turning a configuration into running parts. What cannot be had is left out with a notice where the rest still makes
//! sense, and is an error where it does not.

use std::{io, net::IpAddr, sync::Arc};

use anyhow::{Context as _, Result, anyhow, bail};
use ring::rand::SecureRandom as _;
use weft_client::{
    config::{Config, Layout, XdpMode},
    secrets::{IdentitySeed, NetworkText},
};
use weft_core::{
    identity::{Identity, NetworkSecret},
    io::{Micros, Randomness},
    node,
};

use crate::{
    data::udp::{self, Socket},
    dataplane::{self, Dataplane, Resumed},
};

/// Everything that was read from files.
pub(crate) struct Loaded {
    pub(crate) config: Config,
    pub(crate) identity: Identity,
    pub(crate) network: NetworkSecret,
}

/// Reads and checks configuration and secrets.
pub(crate) fn load(layout: &Layout) -> Result<Loaded> {
    let config = Config::load(&layout.config)?;
    let seed = IdentitySeed::load(&layout.identity())?;
    let text = NetworkText::load(&layout.network())?;
    let network = text.as_str().parse::<NetworkSecret>().map_err(|error| {
        anyhow!(
            "{}: {error}. Copy it again from a node of the network.",
            layout.network().display()
        )
    })?;
    Ok(Loaded {
        config,
        identity: Identity::from_secret(&seed.0),
        network,
    })
}

/// The operating system's generator.
pub(crate) struct OsRandom(ring::rand::SystemRandom);

impl OsRandom {
    pub(crate) fn new() -> Self {
        Self(ring::rand::SystemRandom::new())
    }
}

impl Randomness for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        // Going on without randomness would mean predictable keys.
        self.0
            .fill(out)
            .expect("the operating system gives randomness");
    }
}

/// The monotonic clock, which goes on through restarts of the daemon.
pub(crate) fn now() -> Micros {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the structure lives through the call; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Micros(time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000)
}

/// What the core is told.
pub(crate) fn core_config(loaded: &Loaded) -> node::Config {
    let Config {
        name,
        listen,
        peers,
        routes,
        timers,
        limits,
        ..
    } = &loaded.config;
    let mut core = node::Config::new(loaded.identity.clone(), loaded.network.clone());
    core.name.clone_from(name);
    core.port = listen.port;
    core.peers = peers
        .iter()
        .filter_map(|peer| {
            Some(std::net::SocketAddr::new(
                peer.host.parse::<IpAddr>().ok()?,
                peer.port,
            ))
        })
        .collect();
    core.prefixes = routes
        .advertise
        .iter()
        .map(|prefix| (prefix.address, prefix.len))
        .collect();
    core.hardware_aes = hardware_aes();
    core.capacity_kbps = listen.capacity_mbps.saturating_mul(1_000);
    let micros = |duration: std::time::Duration| {
        Micros(duration.as_micros().min(u128::from(u64::MAX)) as u64)
    };
    core.timers.probe_busy = micros(timers.probe_busy);
    core.timers.probe_idle = micros(timers.probe_idle);
    core.timers.probe_misses = timers.probe_misses;
    core.timers.link_rekey = micros(timers.link_rekey);
    core.timers.session_rekey = micros(timers.session_rekey);
    core.timers.graceful_restart = micros(timers.restart);
    core.limits.links = limits.links as usize;
    core.limits.sessions = limits.sessions as usize;
    core.limits.labels = 16..=limits.labels.max(17) - 1;
    core.limits.slots = (limits.links * 4).clamp(64, 16_383) as u16;
    core.limits.next_hops = (limits.links * 8).clamp(128, 65_535);
    core.limits.groups = (limits.links * 8).clamp(128, 65_535);
    core
}

/// Whether the processor computes AES and GCM itself.
pub(crate) fn hardware_aes() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        std::arch::is_x86_feature_detected!("aes")
            && std::arch::is_x86_feature_detected!("pclmulqdq")
    }
    #[cfg(target_arch = "aarch64")]
    {
        std::arch::is_aarch64_feature_detected!("aes")
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        false
    }
}

/// Where the node's maps and links are pinned. No dots: bpffs reserves them.
pub(crate) fn pin_dir(loaded: &Loaded) -> std::path::PathBuf {
    let instance =
        format!("{}-{}", loaded.config.name, loaded.identity.id().short()).replace('.', "_");
    ["/sys/fs/bpf", "weft", &instance].iter().collect()
}

/// The forwarding plane's configuration.
pub(crate) fn plane_config(loaded: &Loaded, core: &node::Config) -> dataplane::Config {
    dataplane::Config {
        pin_dir: pin_dir(loaded),
        port: loaded.config.listen.port,
        network_key: loaded.network.handshake_tag_key(),
        max_slots: u32::from(core.limits.slots) + 1,
        max_next_hops: core.limits.next_hops + 1,
        max_groups: core.limits.groups + 1,
        max_labels: core.limits.labels.end() + 1,
    }
}

/// Opens the forwarding plane: in the kernel where it may and can be. The last value says why it is not.
pub(crate) fn open_plane(
    mode: XdpMode,
    config: &dataplane::Config,
) -> Result<(Dataplane, Resumed, Option<String>)> {
    if mode != XdpMode::Off {
        match dataplane::probe().and_then(|()| Dataplane::open_kernel(config)) {
            Ok((plane, resumed)) => return Ok((plane, resumed, None)),
            Err(error) => {
                let plane = Dataplane::open_user(config)
                    .context("opening the user-space forwarding plane")?;
                return Ok((plane, Resumed::default(), Some(error.to_string())));
            }
        }
    }
    let plane = Dataplane::open_user(config).context("opening the user-space forwarding plane")?;
    Ok((
        plane,
        Resumed::default(),
        Some("`mode = \"off\"` under [xdp]".to_owned()),
    ))
}

/// The sockets of the workers: IPv4 and, where the host has it, IPv6 for each.
pub(crate) fn open_sockets(port: u16, workers: usize) -> Result<Vec<Arc<Vec<Socket>>>> {
    if let Err(error) = udp::port_is_free(port) {
        match error.kind() {
            io::ErrorKind::AddrInUse => {
                bail!(
                    "UDP port {port} is in use. End the program that has it, or set another `port` under [listen]."
                )
            }
            io::ErrorKind::PermissionDenied => {
                bail!(
                    "UDP port {port}: not permitted. Ports below 1024 need CAP_NET_BIND_SERVICE; set another `port` under [listen]."
                )
            }
            _ => return Err(anyhow!(error).context(format!("opening UDP port {port}"))),
        }
    }
    (0..workers)
        .map(|_| {
            let mut sockets = vec![];
            for ipv6 in [false, true] {
                match Socket::bind(ipv6, port, true) {
                    Ok(socket) => sockets.push(socket),
                    Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                        tracing::warn!(
                            ipv6,
                            "this host has not this IP version; links over it are not possible"
                        );
                    }
                    Err(error) => {
                        return Err(anyhow!(error).context(format!("opening UDP port {port}")));
                    }
                }
            }
            Ok(Arc::new(sockets))
        })
        .collect()
}

/// Data path threads for the configured number.
pub(crate) fn workers(configured: u16) -> usize {
    match configured {
        0 => std::thread::available_parallelism()
            .map_or(1, usize::from)
            .min(8),
        count => usize::from(count),
    }
}

/// Nice value of the whole daemon: everybody's packets wait for it, and it sleeps when there are none.
const NICE: i32 = -10;
/// Time slice asked for, nanoseconds: short ones come sooner (`sched_setattr(2)`, Linux 6.12). The default is some
/// milliseconds, in which a request waits behind a program that computes.
const SLICE_NS: u64 = 200_000;

/// Asks the scheduler for [`NICE`] and [`SLICE_NS`], for this thread and those it starts. Without CAP_SYS_NICE it stays
/// as nice as it was started (the service file has it started right); a kernel that knows no slices ignores them.
pub(crate) fn ask_scheduler() {
    // SAFETY: plain system call; -1 may be an answer or an error, and then it is replaced all the same.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    let ask = |nice: i32| {
        // SAFETY: an all-zero sched_attr is valid (SCHED_OTHER).
        let mut attr: libc::sched_attr = unsafe { std::mem::zeroed() };
        attr.size = std::mem::size_of::<libc::sched_attr>() as u32;
        attr.sched_nice = nice;
        attr.sched_runtime = SLICE_NS;
        // SAFETY: the structure lives through the call, which only reads it.
        unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) == 0 }
    };
    if !ask(nice.min(NICE)) && !ask(nice) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "asking the scheduler for short slices");
    }
}

/// Has the allocator take buffers from the system one by one, whatever was freed before: then their memory is in use from
/// when it is first touched, and not left behind between others when it is freed. To be called first of all.
pub(crate) fn keep_memory_small() {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Gives memory that only the start needed (the kernel's type information, above all) back to the system.
pub(crate) fn give_back_memory() {
    #[cfg(target_env = "gnu")]
    // SAFETY: touches only memory that nobody holds.
    unsafe {
        libc::malloc_trim(0);
    }
}
