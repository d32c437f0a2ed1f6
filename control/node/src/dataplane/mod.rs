//! The forwarding plane: eBPF maps and programs, or the same tables in user space.
