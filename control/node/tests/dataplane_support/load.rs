//! Load: namespaces with veth pairs, a generator of labelled packets, a sink that counts them.
//!
//! Interfaces live in a network namespace that one thread makes for itself: it and they are gone with the thread,
//! however it ends.

use std::{fs, io, os::fd::AsRawFd, process::Command, thread};

use aya::{
    Ebpf, EbpfLoader, TestRun, TestRunAttrs, TestRunOptions,
    maps::{Array, MapData, PerCpuArray},
    programs::{Xdp, XdpMode, xdp::XdpLink},
};

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("WEFT_XDP_BENCH_OBJECT"));

/// Runs `body` in a new network namespace, on a thread of its own.
pub fn in_namespace<R: Send>(body: impl FnOnce() -> R + Send) -> io::Result<R> {
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // SAFETY: the call only concerns this thread, and takes a plain number.
            if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
                return Err(io::Error::last_os_error());
            }
            ip("link set lo up");
            Ok(body())
        });
        match worker.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// A network namespace that lives while it is held here.
pub struct Namespace(fs::File);

impl Namespace {
    /// A new one, which this thread is in now.
    pub fn new() -> io::Result<Self> {
        // SAFETY: the call only concerns this thread, and takes a plain number.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(io::Error::last_os_error());
        }
        ip("link set lo up");
        Self::current()
    }

    /// The one this thread is in.
    pub fn current() -> io::Result<Self> {
        fs::File::open("/proc/thread-self/ns/net").map(Self)
    }

    /// Moves this thread into it.
    pub fn enter(&self) {
        // SAFETY: an open descriptor of a namespace, and a plain number.
        let result = unsafe { libc::setns(self.0.as_raw_fd(), libc::CLONE_NEWNET) };
        assert_eq!(result, 0, "setns: {}", io::Error::last_os_error());
    }

    /// A path other processes find it under.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }
}

/// One `ip` command in this thread's namespace.
pub fn ip(command: &str) {
    let output = Command::new("ip")
        .args(command.split(' '))
        .output()
        .expect("iproute2 is installed");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {command}: {error}");
}

pub fn sysctl(name: &str, value: &str) {
    let path = format!("/proc/sys/net/{name}");
    fs::write(&path, value).unwrap_or_else(|e| panic!("{path}: {e}"));
}

pub fn ifindex(name: &str) -> u32 {
    let name = std::ffi::CString::new(name).expect("a name");
    // SAFETY: a terminated string.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    assert_ne!(index, 0, "interface {name:?}");
    index
}

/// A veth pair, up, with fixed addresses.
pub fn veth(left: (&str, [u8; 6]), right: (&str, [u8; 6])) {
    let mac = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
    ip(&format!(
        "link add {} address {} numtxqueues 1 numrxqueues 1 type veth peer name {} address {} numtxqueues 1 numrxqueues 1",
        left.0,
        mac(left.1),
        right.0,
        mac(right.1)
    ));
    for (name, _) in [left, right] {
        // No address of its own, and so no chatter.
        sysctl(&format!("ipv6/conf/{name}/disable_ipv6"), "1");
        ip(&format!("link set {name} up"));
    }
}

/// Keeps this thread on one processor, as a receive queue is.
pub fn pin_to_cpu(cpu: usize) {
    // SAFETY: all zero bytes are an empty set, and the set is of the size that is told.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set);
    }
}

/// Runs `body` before everything else on this processor, where that is allowed: on a loaded machine a figure would
/// otherwise be of the others. Keep it short.
pub fn uninterrupted<R>(body: impl FnOnce() -> R) -> R {
    let set = |policy, priority| {
        let parameters = libc::sched_param {
            sched_priority: priority,
        };
        // SAFETY: concerns this thread only; the structure outlives the call.
        unsafe { libc::sched_setscheduler(0, policy, &parameters) }
    };
    set(libc::SCHED_FIFO, 1);
    let result = body();
    set(libc::SCHED_OTHER, 0);
    result
}

/// The benchmark's programs.
pub struct Programs {
    ebpf: Ebpf,
}

/// What the generator sends; laid out as the eBPF side reads it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Template {
    pub key: [u64; 2],
    pub seq: u64,
    pub ifindex: u32,
    pub family: u32,
    pub payload_len: u32,
    pub lane_bits: u32,
    pub spread: u32,
    pub reserved: u32,
    pub head: [u8; 96],
}

// SAFETY: integers without padding; any bytes are valid.
unsafe impl aya::Pod for Template {}

impl Programs {
    pub fn load() -> Self {
        let ebpf = EbpfLoader::new()
            .load(OBJECT)
            .expect("the benchmark's object can be loaded");
        let mut this = Self { ebpf };
        for name in ["generate", "redirect", "sink", "siphash", "empty"] {
            this.program(name)
                .load()
                .unwrap_or_else(|e| panic!("{name}: {e:?}"));
        }
        this
    }

    pub fn program(&mut self, name: &str) -> &mut Xdp {
        let program = self
            .ebpf
            .program_mut(name)
            .unwrap_or_else(|| panic!("program {name}"));
        program.try_into().expect("an XDP program")
    }

    /// Attaches a program in native mode until the link is dropped.
    pub fn attach(&mut self, name: &str, ifindex: u32) -> XdpLink {
        let program = self.program(name);
        let id = program
            .attach_to_if_index(ifindex, XdpMode::Driver)
            .expect("veth has native XDP");
        program.take_link(id).expect("the link just made")
    }

    pub fn set_template(&mut self, template: &Template) {
        let map = self.ebpf.map_mut("TEMPLATE").expect("the template");
        let mut map: Array<&mut MapData, Template> = map.try_into().expect("an array");
        map.set(0, template, 0).expect("one entry");
    }

    /// Packets sent so far.
    pub fn generated(&self) -> u64 {
        let map: Array<&MapData, Template> = self
            .ebpf
            .map("TEMPLATE")
            .expect("the template")
            .try_into()
            .expect("an array");
        map.get(&0, 0).expect("one entry").seq
    }

    /// Packets that reached the sink.
    pub fn sunk(&self) -> u64 {
        let map: PerCpuArray<&MapData, [u64; 2]> = self
            .ebpf
            .map("SUNK")
            .expect("the count")
            .try_into()
            .expect("an array");
        map.get(&0, 0)
            .expect("one entry")
            .iter()
            .map(|[packets, _]| packets)
            .sum()
    }

    /// Has the generator make `count` packets of `frame_len` bytes.
    pub fn generate(&mut self, count: u32, frame_len: usize, from: u32) {
        self.generate_in_bursts(count, 64, frame_len, from);
    }

    /// The same, `burst` packets at a time: what a receiver's interrupt or poll finds at once.
    pub fn generate_in_bursts(&mut self, count: u32, burst: u32, frame_len: usize, from: u32) {
        let frame = vec![0u8; frame_len];
        // Live frames are taken to come from a real interface.
        let mut context = [0u8; 24];
        context[4..8].copy_from_slice(&(frame_len as u32).to_ne_bytes());
        context[12..16].copy_from_slice(&from.to_ne_bytes());
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: count,
            attrs: TestRunAttrs::new().xdp_live_frames(burst),
            ..Default::default()
        };
        self.program("generate")
            .test_run(options)
            .expect("live frames are known to this kernel");
    }
}
