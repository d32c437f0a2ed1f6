//! The kernel side: loading, sizing and pinning maps, attaching programs, taking over what an earlier run left.
//!
//! Under the pin folder: `v<layout>/maps/<map>` and `v<layout>/links/<ifindex>-<native|generic>` (a bpffs allows no dots). A pinned link keeps
//! its program attached without any process; replacing the program in it loses no packet.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs, io,
    os::{fd::AsFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader, Pod,
    maps::{
        Array, HashMap as BpfHashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuValues, RingBuf,
        XskMap,
    },
    programs::{
        ProgramError, Xdp, XdpMode,
        links::{FdLink, PinnedLink},
        xdp::XdpLink,
    },
};
use weft_abi::{
    DropReason, LANES, LAYOUT_VERSION, PacketCount, Slot, TX_FRAMES, TX_THREADS, Verdict,
};
use weft_core::io::ForwardMode;

use super::{
    AttachReport, Counts, Error, Resumed,
    memory::{Memory, Region, Shared, Sizes},
};
use crate::data::{
    xdp_send::XdpSender,
    xsk::{MAX_QUEUES, Xsk},
};

/// The object the build script made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_XDP_OBJECT"));
/// Magic number of a bpffs (`statfs(2)`).
const BPF_FS_MAGIC: libc::c_long = 0xcafe_4a11;
const PROGRAM: &str = "weft";
const PASS_PROGRAM: &str = "weft_pass";
/// Entries of the maps of AF_XDP sockets.
const PORTS: u32 = 256;
const SOCKETS: u32 = 64;

/// What `LABELS` and `RX_COUNTS` hold per processor.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct PodCount(PacketCount);
// SAFETY: two u64, without padding; any bytes are valid.
unsafe impl Pod for PodCount {}

/// The loaded program with its maps and attachments.
pub(super) struct Kernel {
    pin_dir: PathBuf,
    folder: PathBuf,
    ebpf: Ebpf,
    links: BTreeMap<u32, Attached>,
    local: BpfHashMap<MapData, [u64; 2], u8>,
    verdicts: PerCpuArray<MapData, u64>,
    drops: PerCpuArray<MapData, u64>,
    labels: PerCpuArray<MapData, PodCount>,
    rx_counts: PerCpuArray<MapData, PodCount>,
    events: RingBuf<MapData>,
    sockets: Sockets,
}

/// The maps of the daemon's AF_XDP sockets.
struct Sockets {
    ports: Array<MapData, [u32; 4]>,
    map: XskMap<MapData>,
    /// By interface: where its sockets begin.
    used: BTreeMap<u32, u32>,
}

struct Attached {
    report: AttachReport,
    path: PathBuf,
    link: FdLink,
}

fn kernel<E: std::error::Error + Send + Sync + 'static>(
    what: impl Into<String>,
) -> impl FnOnce(E) -> Error {
    let what = what.into();
    move |source| Error::Kernel {
        what,
        source: Box::new(source),
    }
}

/// What the kernel says of a program it does not load. The verifier's words are pages: they go into the log.
fn refused(what: &'static str) -> impl FnOnce(ProgramError) -> Error {
    move |error| match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            tracing::warn!(%verifier_log, "{what}");
            kernel(what)(io_error)
        }
        error => kernel(what)(error),
    }
}

/// Name, bytes of a value and entries of every map of which user space decides the size.
fn plan(sizes: Sizes) -> [(&'static str, usize, u32); 10] {
    use weft_abi::{Group, NextHop, RxLink, Window};
    [
        ("CONFIG", size_of::<weft_abi::Config>(), 1),
        ("LFIB", 8, sizes.labels),
        ("NH_GROUPS", size_of::<Group>(), sizes.groups),
        ("NEXT_HOPS", size_of::<NextHop>(), sizes.next_hops),
        ("NEXT_HOP_UP", 8, sizes.next_hops),
        ("RX_LINKS", size_of::<RxLink>(), sizes.slots),
        ("RX_WINDOWS", size_of::<Window>(), sizes.slots * LANES),
        ("TX_SEQ", 8, sizes.next_hops * LANES),
        ("LABELS", size_of::<PacketCount>(), sizes.labels),
        ("RX_COUNTS", size_of::<PacketCount>(), sizes.slots),
    ]
}

/// Maps whose sizes are the program's own.
const FIXED_MAPS: [&str; 4] = ["LOCAL_ADDRESSES", "COUNTERS", "DROPS", "EVENTS"];

impl Kernel {
    /// Loads the program over pinned maps, making those that are missing.
    pub(super) fn open(
        pin_dir: &Path,
        port: u16,
        sizes: Sizes,
    ) -> Result<(Self, Memory, Resumed), Error> {
        super::probe()?;
        prepare_folder(pin_dir)?;
        let folder = pin_dir.join(format!("v{LAYOUT_VERSION}"));
        let mut resumed = Resumed {
            discarded: discard_misfits(pin_dir, &folder, sizes)?,
            ..Resumed::default()
        };
        resumed.tables = folder.join("maps/CONFIG").exists();
        for folder in [folder.join("maps"), folder.join("links")] {
            fs::create_dir_all(&folder)
                .map_err(kernel(format!("making the folder {}", folder.display())))?;
        }
        let (mut this, memory) = match Self::load(pin_dir, &folder, port, sizes) {
            Ok(loaded) => loaded,
            Err(error) => {
                // Half a set of pins would only be in the way; what an earlier run left is not ours to lose.
                if !resumed.tables {
                    remove_tree(&folder).ok();
                }
                return Err(error);
            }
        };
        this.resume_links();
        resumed.attached = this.attached();
        Ok((this, memory, resumed))
    }

    fn load(
        pin_dir: &Path,
        folder: &Path,
        port: u16,
        sizes: Sizes,
    ) -> Result<(Self, Memory), Error> {
        let mut loader = EbpfLoader::new();
        let port = u16::from_ne_bytes(port.to_be_bytes());
        loader.override_global("PORT", &port, true);
        for (name, _, entries) in plan(sizes) {
            loader.map_max_entries(name, entries);
        }
        loader.map_max_entries("TX_FRAMES", send_threads() * TX_FRAMES);
        let maps = folder.join("maps");
        for name in plan(sizes).iter().map(|(name, ..)| *name).chain(FIXED_MAPS) {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader
            .load(OBJECT)
            .map_err(kernel("loading the XDP object"))?;
        program(&mut ebpf, PROGRAM)?
            .load()
            .map_err(refused("loading the XDP program"))?;

        let memory = Memory {
            config: region(&ebpf, "CONFIG", 1)?,
            lfib: region(&ebpf, "LFIB", sizes.labels)?,
            groups: region(&ebpf, "NH_GROUPS", sizes.groups)?,
            next_hops: region(&ebpf, "NEXT_HOPS", sizes.next_hops)?,
            next_hop_up: region(&ebpf, "NEXT_HOP_UP", sizes.next_hops)?,
            rx_links: region(&ebpf, "RX_LINKS", sizes.slots)?,
            rx_windows: region(&ebpf, "RX_WINDOWS", sizes.slots * LANES)?,
            tx_seq: region(&ebpf, "TX_SEQ", sizes.next_hops * LANES)?,
            ..Memory::anonymous(sizes).map_err(kernel("allocating counters"))?
        };
        let this = Self {
            pin_dir: pin_dir.to_owned(),
            folder: folder.to_owned(),
            links: BTreeMap::new(),
            local: BpfHashMap::try_from(take(&mut ebpf, "LOCAL_ADDRESSES")?)
                .map_err(kernel("LOCAL_ADDRESSES"))?,
            verdicts: PerCpuArray::try_from(take(&mut ebpf, "COUNTERS")?)
                .map_err(kernel("COUNTERS"))?,
            drops: PerCpuArray::try_from(take(&mut ebpf, "DROPS")?).map_err(kernel("DROPS"))?,
            labels: PerCpuArray::try_from(take(&mut ebpf, "LABELS")?).map_err(kernel("LABELS"))?,
            rx_counts: PerCpuArray::try_from(take(&mut ebpf, "RX_COUNTS")?)
                .map_err(kernel("RX_COUNTS"))?,
            events: RingBuf::try_from(take(&mut ebpf, "EVENTS")?).map_err(kernel("EVENTS"))?,
            sockets: Sockets {
                ports: Array::try_from(take(&mut ebpf, "XSK_PORTS")?)
                    .map_err(kernel("XSK_PORTS"))?,
                map: XskMap::try_from(take(&mut ebpf, "XSKS")?).map_err(kernel("XSKS"))?,
                used: BTreeMap::new(),
            },
            ebpf,
        };
        Ok((this, memory))
    }

    /// Puts the new program into the links an earlier run pinned. One that cannot be taken over is removed.
    fn resume_links(&mut self) {
        let Ok(entries) = fs::read_dir(self.folder.join("links")) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if let Err(error) = self.resume_link(&path) {
                tracing::warn!(link = %path.display(), %error, "an attachment of an earlier run is gone");
                fs::remove_file(&path).ok();
            }
        }
    }

    fn resume_link(&mut self, path: &Path) -> Result<(), Error> {
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        let parsed = name.split_once('-').and_then(|(ifindex, mode)| {
            let mode = match mode {
                "native" => ForwardMode::KernelNative,
                "generic" => ForwardMode::KernelGeneric,
                _ => return None,
            };
            Some((ifindex.parse::<u32>().ok()?, mode))
        });
        let (ifindex, mode) = parsed.ok_or_else(|| Error::Kernel {
            what: format!("the pin {}", path.display()),
            source: "its name should be <ifindex>-<native|generic>".into(),
        })?;
        let pinned = PinnedLink::from_pin(path).map_err(kernel("opening the pinned link"))?;
        let link =
            XdpLink::try_from(FdLink::from(pinned)).map_err(kernel("reading the pinned link"))?;
        let program = program(&mut self.ebpf, PROGRAM)?;
        let id = program
            .attach_to_link(link)
            .map_err(kernel("replacing the program"))?;
        let link = program.take_link(id).map_err(kernel("keeping the link"))?;
        let link = FdLink::try_from(link).map_err(kernel("keeping the link"))?;
        let reason = (mode == ForwardMode::KernelGeneric)
            .then(|| "attached in generic mode by an earlier run".to_owned());
        let report = AttachReport {
            ifindex,
            mode,
            reason,
        };
        self.links.insert(
            ifindex,
            Attached {
                report,
                path: path.to_owned(),
                link,
            },
        );
        Ok(())
    }

    /// Native, else generic, else not at all.
    pub(super) fn attach(
        &mut self,
        interface: &str,
        ifindex: u32,
        modes: &[ForwardMode],
    ) -> AttachReport {
        if let Some(attached) = self.links.get(&ifindex) {
            return attached.report.clone();
        }
        let mut why = Vec::new();
        for (mode, flag) in [
            (ForwardMode::KernelNative, XdpMode::Driver),
            (ForwardMode::KernelGeneric, XdpMode::Skb),
        ] {
            if !modes.contains(&mode) {
                continue;
            }
            match self.attach_in(ifindex, mode, flag) {
                Ok((path, link)) => {
                    let reason = (!why.is_empty()).then(|| why.join("; "));
                    let report = AttachReport {
                        ifindex,
                        mode,
                        reason,
                    };
                    self.links.insert(
                        ifindex,
                        Attached {
                            report: report.clone(),
                            path,
                            link,
                        },
                    );
                    return report;
                }
                Err(error) => {
                    let mode = if mode == ForwardMode::KernelNative {
                        "native"
                    } else {
                        "generic"
                    };
                    why.push(format!("{interface}: no {mode} XDP: {}", chain(&error)));
                }
            }
        }
        AttachReport {
            ifindex,
            mode: ForwardMode::UserSpace,
            reason: Some(why.join("; ")),
        }
    }

    fn attach_in(
        &mut self,
        ifindex: u32,
        mode: ForwardMode,
        flag: XdpMode,
    ) -> Result<(PathBuf, FdLink), Error> {
        let name = if mode == ForwardMode::KernelNative {
            "native"
        } else {
            "generic"
        };
        let path = self.folder.join("links").join(format!("{ifindex}-{name}"));
        let program = program(&mut self.ebpf, PROGRAM)?;
        let id = program
            .attach_to_if_index(ifindex, flag)
            .map_err(kernel("attaching"))?;
        let link = program.take_link(id).map_err(kernel("keeping the link"))?;
        // Where bpf_link is missing, the program was attached by netlink and would go with this process.
        let link =
            FdLink::try_from(link).map_err(kernel("the kernel attached it without a bpf_link"))?;
        // Of a dead interface that had this index.
        fs::remove_file(&path).ok();
        let pinned = link
            .pin(&path)
            .map_err(kernel(format!("pinning {}", path.display())))?;
        Ok((path, pinned.into()))
    }

    pub(super) fn detach(&mut self, ifindex: u32) -> Result<(), Error> {
        let Some(attached) = self.links.remove(&ifindex) else {
            return Ok(());
        };
        self.clear_sockets(ifindex)?;
        let removed = fs::remove_file(&attached.path);
        drop(attached.link);
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(kernel(format!(
                "removing the pin {}",
                attached.path.display()
            ))(error)),
            _ => Ok(()),
        }
    }

    /// Hands packets that are delivered on an interface to these sockets, one for each of its queues from 0 on.
    pub(super) fn set_sockets(&mut self, ifindex: u32, sockets: &[Xsk]) -> Result<(), Error> {
        let Sockets { ports, map, used } = &mut self.sockets;
        let place = ifindex % PORTS;
        if used
            .keys()
            .any(|&other| other != ifindex && other % PORTS == place)
        {
            return Err(Error::OutOfBounds {
                what: "an interface whose index shares its last byte with",
                value: ifindex.into(),
                limit: PORTS.into(),
            });
        }
        let taken = |first: &u32| used.iter().any(|(&i, f)| i != ifindex && f == first);
        let first = (0..SOCKETS)
            .step_by(MAX_QUEUES as usize)
            .find(|first| !taken(first))
            .ok_or(Error::OutOfBounds {
                what: "interfaces with AF_XDP sockets:",
                value: used.len() as u64 + 1,
                limit: u64::from(SOCKETS / MAX_QUEUES) + 1,
            })?;
        for (index, socket) in (first..).zip(sockets) {
            map.set(index, socket.fd(), 0)
                .map_err(kernel("adding an AF_XDP socket to its map"))?;
        }
        ports
            .set(place, [ifindex, first, sockets.len() as u32, 0], 0)
            .map_err(kernel("announcing AF_XDP sockets"))?;
        used.insert(ifindex, first);
        Ok(())
    }

    /// Lets packets delivered on an interface go the ordinary way again.
    pub(super) fn clear_sockets(&mut self, ifindex: u32) -> Result<(), Error> {
        if self.sockets.used.remove(&ifindex).is_none() {
            return Ok(());
        }
        self.sockets
            .ports
            .set(ifindex % PORTS, [0; 4], 0)
            .map_err(kernel("withdrawing AF_XDP sockets"))
    }

    /// Senders for so many threads, as far as there are frames for them.
    pub(super) fn open_senders(&mut self, threads: usize) -> Result<Vec<XdpSender>, Error> {
        let what = "opening a sender of whole frames";
        let program = program(&mut self.ebpf, PROGRAM)?
            .fd()
            .map_err(kernel(what))?
            .as_fd()
            .try_clone_to_owned()
            .map_err(kernel(what))?;
        let frames = array(&self.ebpf, "TX_FRAMES")?.fd().as_fd();
        let states = array(&self.ebpf, "TX_STATE")?.fd().as_fd();
        (0..send_threads().min(threads as u32))
            .map(|thread| {
                let program = program.try_clone().map_err(kernel(what))?;
                XdpSender::open(program, frames, states, thread).map_err(kernel(what))
            })
            .collect()
    }

    pub(super) fn attached(&self) -> Vec<AttachReport> {
        self.links
            .values()
            .map(|attached| attached.report.clone())
            .collect()
    }

    pub(super) fn set_local_addresses(&mut self, addresses: &[[u64; 2]]) -> Result<(), Error> {
        let held: Vec<[u64; 2]> = self.local.keys().flatten().collect();
        // First the new ones: an address that stays is never missing.
        for address in addresses {
            self.local
                .insert(address, 1, 0)
                .map_err(kernel("adding a local address"))?;
        }
        for address in held.iter().filter(|held| !addresses.contains(held)) {
            self.local
                .remove(address)
                .map_err(kernel("removing a local address"))?;
        }
        Ok(())
    }

    pub(super) fn counts(&self) -> Counts {
        let sum = |map: &PerCpuArray<MapData, u64>, index: usize| {
            map.get(&(index as u32), 0)
                .map_or(0, |values| values.iter().sum())
        };
        Counts {
            verdicts: std::array::from_fn::<_, { Verdict::ALL.len() }, _>(|i| {
                sum(&self.verdicts, i)
            }),
            drops: std::array::from_fn::<_, { DropReason::ALL.len() }, _>(|i| sum(&self.drops, i)),
        }
    }

    /// Packets and bytes forwarded or delivered on a label.
    pub(super) fn label(&self, label: u32) -> (u64, u64) {
        total(&self.labels, label)
    }

    /// Packets and bytes admitted by a slot.
    pub(super) fn admitted(&self, slot: Slot) -> (u64, u64) {
        total(&self.rx_counts, slot.0.into())
    }

    /// Begins counting anew what a slot admits.
    pub(super) fn reset_admitted(&mut self, slot: Slot) -> Result<(), Error> {
        let what = || format!("resetting the counters of slot {}", slot.0);
        let cpus = aya::util::nr_cpus()
            .map_err(|(path, error)| kernel(format!("reading {path}"))(error))?;
        let zero = vec![PodCount(PacketCount::default()); cpus];
        let zero = PerCpuValues::try_from(zero).map_err(kernel(what()))?;
        self.rx_counts
            .set(slot.0.into(), zero, 0)
            .map_err(kernel(what()))
    }

    pub(super) fn next_event<R>(&mut self, read: impl FnOnce(&[u8]) -> R) -> Option<R> {
        self.events.next().map(|event| read(&event))
    }

    /// The loaded program, for tests and benchmarks.
    pub(super) fn program(&mut self) -> Result<&mut Xdp, Error> {
        program(&mut self.ebpf, PROGRAM)
    }

    pub(super) fn release(self, keep_transit: bool) -> Result<(), Error> {
        if keep_transit {
            return Ok(());
        }
        // Pins first: an attachment whose last holder is this process is gone when its descriptor is closed, one
        // whose last holder is a pin only a little later.
        cleanup(&self.pin_dir)
    }
}

/// Threads that there are frames for: one a processor.
fn send_threads() -> u32 {
    std::thread::available_parallelism()
        .map_or(1, |count| count.get() as u32)
        .min(TX_THREADS)
}

/// Packets and bytes at an index, over all processors.
fn total(map: &PerCpuArray<MapData, PodCount>, index: u32) -> (u64, u64) {
    map.get(&index, 0).map_or((0, 0), |values| {
        values
            .iter()
            .fold((0, 0), |(packets, bytes), PodCount(count)| {
                (packets + count.packets, bytes + count.bytes)
            })
    })
}

/// An error and what caused it, on one line; errors that only repeat their cause are said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let cause = error.to_string();
        if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
        source = error.source();
    }
    text
}

fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp, Error> {
    let program = ebpf.program_mut(name).ok_or_else(|| Error::Kernel {
        what: format!("program {name}"),
        source: "the embedded object does not hold it".into(),
    })?;
    program
        .try_into()
        .map_err(kernel(format!("program {name}")))
}

fn take(ebpf: &mut Ebpf, name: &str) -> Result<Map, Error> {
    ebpf.take_map(name).ok_or_else(|| Error::Kernel {
        what: format!("map {name}"),
        source: "the embedded object does not hold it".into(),
    })
}

fn array<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a MapData, Error> {
    match ebpf.map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(Error::Kernel {
            what: format!("map {name}"),
            source: "it is no array of the embedded object".into(),
        }),
    }
}

fn region<T: Shared>(ebpf: &Ebpf, name: &str, entries: u32) -> Result<Region<T>, Error> {
    let what = || format!("mapping {name} into memory");
    let data = array(ebpf, name)?;
    let info = data.info().map_err(kernel(what()))?;
    if info.value_size() as usize != size_of::<T>() || info.max_entries() != entries {
        return Err(Error::Kernel {
            what: what(),
            source: format!(
                "it has {} values of {} bytes, not {entries} of {}",
                info.max_entries(),
                info.value_size(),
                size_of::<T>()
            )
            .into(),
        });
    }
    Region::of_map(data.fd().as_fd(), entries).map_err(kernel(what()))
}

/// Makes the folder and sees to it that it is on a bpffs.
fn prepare_folder(pin_dir: &Path) -> Result<(), Error> {
    if pin_dir
        .file_name()
        .is_none_or(|name| name.as_bytes().contains(&b'.'))
    {
        return Err(Error::Kernel {
            what: format!("the pin folder {}", pin_dir.display()),
            source: "a bpffs allows no dot in a name: choose another one".into(),
        });
    }
    fs::create_dir_all(pin_dir)
        .map_err(kernel(format!("making the folder {}", pin_dir.display())))?;
    if on_bpffs(pin_dir)? {
        return Ok(());
    }
    fs::remove_dir(pin_dir).ok();
    Err(Error::Unusable {
        what: format!("{} is not on a bpffs", pin_dir.display()),
        remedy: "mount one with `mount -t bpf bpf /sys/fs/bpf` and keep the pin folder under it"
            .to_owned(),
    })
}

fn on_bpffs(path: &Path) -> Result<bool, Error> {
    let what = || format!("asking for the file system of {}", path.display());
    let c_path = CString::new(path.as_os_str().as_bytes()).map_err(kernel(what()))?;
    // SAFETY: all zero bytes are a valid statfs.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a terminated string, and a buffer of the right type.
    if unsafe { libc::statfs(c_path.as_ptr(), &mut stat) } != 0 {
        return Err(kernel(what())(io::Error::last_os_error()));
    }
    Ok(stat.f_type as libc::c_long == BPF_FS_MAGIC)
}

/// Removes what earlier runs left in a form this one cannot use, and says why.
fn discard_misfits(pin_dir: &Path, folder: &Path, sizes: Sizes) -> Result<Option<String>, Error> {
    let mut why = None;
    for entry in fs::read_dir(pin_dir)
        .map_err(kernel(format!("reading {}", pin_dir.display())))?
        .flatten()
    {
        if entry.path() != folder {
            remove_tree(&entry.path())?;
            why = Some(format!(
                "{} is of another layout version than {LAYOUT_VERSION}",
                entry.file_name().to_string_lossy()
            ));
        }
    }
    for (name, value_size, entries) in plan(sizes) {
        let path = folder.join("maps").join(name);
        if !path.exists() {
            continue;
        }
        let fits = match MapInfo::from_pin(&path) {
            Ok(info) => info.value_size() as usize == value_size && info.max_entries() == entries,
            Err(_) => false,
        };
        if !fits {
            remove_tree(folder)?;
            return Ok(Some(format!(
                "map {name} was made for another configured size"
            )));
        }
    }
    Ok(why)
}

fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(kernel(format!(
            "removing the pins under {}",
            path.display()
        ))(error)),
        _ => Ok(()),
    }
}

/// Removes every pin under the folder, and the folder.
pub(super) fn cleanup(pin_dir: &Path) -> Result<(), Error> {
    if pin_dir.exists() && !on_bpffs(pin_dir)? {
        return Err(Error::Unusable {
            what: format!(
                "{} is not on a bpffs, so nothing in it was pinned by weftd",
                pin_dir.display()
            ),
            remedy: "name the pin folder the node was started with".to_owned(),
        });
    }
    remove_tree(pin_dir)
}

/// A program that passes every packet, attached while this value lives. The far end of a veth pair needs one to
/// receive redirected frames.
pub struct PassProgram {
    _ebpf: Ebpf,
}

impl PassProgram {
    /// Attaches it in native mode.
    pub fn attach(ifindex: u32) -> Result<Self, Error> {
        let mut ebpf = EbpfLoader::new()
            .load(OBJECT)
            .map_err(kernel("loading the XDP object"))?;
        let pass = program(&mut ebpf, PASS_PROGRAM)?;
        pass.load().map_err(kernel("loading the pass program"))?;
        pass.attach_to_if_index(ifindex, XdpMode::Driver)
            .map_err(kernel(format!(
                "attaching the pass program to interface {ifindex}"
            )))?;
        Ok(Self { _ebpf: ebpf })
    }
}
