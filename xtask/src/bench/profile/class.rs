//! What a function's time is counted as, by its name. The first rule that fits holds.

/// Classes with parts of names.
const RULES: &[(&str, &[&str])] = &[
    (
        "idle",
        &[
            "safe_halt",
            "default_idle",
            "mwait_idle",
            "intel_idle",
            "acpi_idle",
            "cpu_idle",
            "poll_idle",
            "cpuidle",
        ],
    ),
    (
        "encryption",
        &[
            "aes",
            "gcm",
            "ghash",
            "chacha",
            "poly1305",
            "GFp_",
            "ring_core",
            "ring::aead",
        ],
    ),
    ("tags (SipHash)", &["siphash", "SipHash"]),
    ("checksums", &["csum", "checksum"]),
    (
        "copying",
        &[
            "memcpy",
            "memmove",
            "memset",
            "rep_movs",
            "copy_user",
            "copy_to_",
            "copy_from_",
            "copy_page_",
            "copy_folio",
            "copyin",
            "copyout",
            "skb_copy",
            "_copy_",
        ],
    ),
    ("XDP and BPF", &["bpf_prog", "bpf_", "xdp", "___bpf"]),
    ("TUN", &["tun_"]),
    (
        "segmenting and coalescing",
        &["gro_", "_gro", "gso_", "_gso", "skb_segment", "napi_gro"],
    ),
    ("TCP", &["tcp_", "tcp4_", "tcp6_"]),
    ("UDP", &["udp"]),
    (
        "IP, routes, netfilter",
        &[
            "ip_", "ip6_", "ipv6_", "ipv4_", "fib", "nf_", "icmp", "neigh_", "rt6_", "dst_",
            "inet_", "inet6_", "__ip_",
        ],
    ),
    (
        "veth, queues, softirq",
        &[
            "veth",
            "dev_",
            "net_rx",
            "netif",
            "napi",
            "backlog",
            "softirq",
            "ksoftirqd",
            "qdisc",
            "pfifo",
            "__dev",
            "sch_",
            "eth_type",
        ],
    ),
    (
        "buffers (sk_buff, pages)",
        &[
            "skb",
            "kmem",
            "kfree",
            "kmalloc",
            "page_",
            "_page",
            "folio",
            "slab",
            "alloc",
            "put_cpu_partial",
            "free_",
        ],
    ),
    (
        "scheduling and waking",
        &[
            "sched",
            "futex",
            "wake",
            "ttwu",
            "epoll",
            "ep_poll",
            "poll",
            "finish_task_switch",
            "pick_next",
            "enqueue_",
            "dequeue_",
            "update_curr",
            "switch_",
            "__switch",
            "hrtimer",
            "timer",
            "tick",
            "select_",
            "load_balance",
            "update_load",
            "rebalance",
            "wait",
        ],
    ),
    ("locks", &["spin_", "_lock", "mutex", "rwsem", "rcu_"]),
    (
        "entering the kernel",
        &[
            "entry_",
            "syscall",
            "do_sys",
            "x64_sys",
            "__x64",
            "sysvec",
            "asm_",
            "irq",
            "clear_bhb",
            "retbleed",
            "srso",
            "vdso",
            "clock_gettime",
            "exit_to_user",
            "fdget",
            "fget",
            "sockfd",
        ],
    ),
    (
        "socket calls",
        &[
            "sock",
            "sendmsg",
            "recvmsg",
            "sendmmsg",
            "recvmmsg",
            "vfs_",
            "iov_iter",
            "import_",
            "read_iter",
            "write_iter",
            "ksys_",
        ],
    ),
];

/// Whether a function of the idle task is idling, not work done in its place.
pub(super) fn is_idle(function: &str) -> bool {
    let (_, names) = RULES[0];
    names.iter().any(|n| function.contains(n))
}

/// The class of a function in a file.
pub(super) fn of(function: &str, file: &str) -> &'static str {
    let kernel = file.starts_with('[');
    let user_rules = ["encryption", "tags (SipHash)", "checksums", "copying"];
    let found = RULES
        .iter()
        .filter(|(class, _)| kernel || user_rules.contains(class))
        .find(|(_, names)| names.iter().any(|n| function.contains(n)));
    match found {
        Some((class, _)) => class,
        None if file.starts_with("[kernel") || file.starts_with("[guest") => "the kernel's rest",
        None if file.starts_with("bpf_prog") || function.starts_with("bpf_prog") => "XDP and BPF",
        None if file.ends_with("/weftd") => "weftd itself",
        None if file.contains("libc") || file.contains("ld-linux") => "libc",
        None if file.contains("iperf") => "iperf3 itself",
        None => "others",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_have_their_class() {
        let kernel = "[kernel.kallsyms]";
        for (function, file, class) in [
            ("aesni_gcm_encrypt", "/x/weftd", "encryption"),
            (
                "__memmove_avx_unaligned_erms",
                "/usr/lib/libc.so.6",
                "copying",
            ),
            ("weft_node::data::worker::run", "/x/weftd", "weftd itself"),
            ("core::hash::sip::Hasher::write", "/x/weftd", "weftd itself"),
            ("weft_abi::siphash::tag", "/x/weftd", "tags (SipHash)"),
            ("tcp_gro_receive", kernel, "segmenting and coalescing"),
            ("udp_sendmsg", kernel, "UDP"),
            ("tun_do_read", kernel, "TUN"),
            ("pv_native_safe_halt", kernel, "idle"),
            ("entry_SYSCALL_64", kernel, "entering the kernel"),
            (
                "bpf_prog_6deef7357e7b4530_transit",
                "bpf_prog_6deef7357e7b4530_transit",
                "XDP and BPF",
            ),
            ("something_else", kernel, "the kernel's rest"),
            ("[unknown]", "/usr/bin/iperf3", "iperf3 itself"),
        ] {
            assert_eq!(of(function, file), class, "{function} in {file}");
        }
    }
}
