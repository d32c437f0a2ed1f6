//! Programs for benchmarks and for tests under load: a generator, a bare redirect, a sink, and SipHash alone.
//!
//! `BPF_PROG_TEST_RUN` with live frames calls `generate` for each packet. It recycles buffers with what programs wrote
//! into them, so every header is written anew.
#![no_std]
#![no_main]

use aya_ebpf::{
    bindings::{
        BPF_F_MMAPABLE,
        xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS},
    },
    btf_maps::{Array, PerCpuArray},
    helpers::bpf_redirect,
    macros::{btf_map, xdp},
    programs::XdpContext,
};
use weft_abi::tag_14;

/// Ethernet, IPv4 or IPv6, UDP, and the 28 bytes a datagram begins with.
const V4_LEN: usize = 70;
const V6_LEN: usize = 90;

/// What `generate` sends. Words in native order unless said otherwise.
#[repr(C)]
pub struct Template {
    /// Tag key, little-endian words.
    key: [u64; 2],
    /// Last sequence number; counted up with each packet.
    seq: u64,
    /// Interface to send on.
    ifindex: u32,
    /// 4 or 6.
    family: u32,
    /// Bytes of datagram payload.
    payload_len: u32,
    /// Lanes used, one after the other: two to this power, at most 4.
    lane_bits: u32,
    /// 1: also counts the lane up in the last byte of the IPv4 destination, as if each flow went elsewhere.
    spread: u32,
    reserved: u32,
    /// The packet's first bytes, without sequence number and tag.
    head: [u8; 96],
}

#[btf_map]
static TEMPLATE: Array<Template, 1, { BPF_F_MMAPABLE as usize }> = Array::new();

/// Packets and bytes that reached `sink`.
#[btf_map]
static SUNK: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// Writes a labelled packet with the next sequence number and its tag, and sends it.
#[xdp]
pub fn generate(ctx: XdpContext) -> u32 {
    let Some(template) = TEMPLATE.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: one processor generates at a time; user space writes before it starts.
    let template = unsafe { &mut *template };
    match template.family {
        4 => write::<V4_LEN>(&ctx, template),
        _ => write::<V6_LEN>(&ctx, template),
    }
}

#[inline(always)]
fn write<const LEN: usize>(ctx: &XdpContext, template: &mut Template) -> u32 {
    let data = ctx.data();
    if data + LEN > ctx.data_end() {
        return XDP_ABORTED;
    }
    // SAFETY: LEN bytes lie between data and data_end.
    let out = unsafe { &mut *(data as *mut [u8; LEN]) };
    let at = LEN - 28;
    let mut i = 0;
    while i < LEN {
        out[i] = template.head[i];
        i += 1;
    }
    template.seq += 1;
    let bits = template.lane_bits & 7;
    let lane = template.seq as u32 & ((1 << bits) - 1) & 0x0f;
    // Each lane counts on its own.
    let seq = ((template.seq >> bits) as u32 + 1).to_be_bytes();
    out[at + 1] = (lane as u8) << 4;
    let mut i = 0;
    while i < 4 {
        out[at + 4 + i] = seq[i];
        i += 1;
    }
    if LEN == V4_LEN && template.spread != 0 {
        // The template's destination ends in 0 and its checksum in 16 or more: no carry.
        out[33] = lane as u8;
        out[25] -= lane as u8;
    }
    let word = |from: usize| {
        u64::from_le_bytes([
            out[from],
            out[from + 1],
            out[from + 2],
            out[from + 3],
            out[from + 4],
            out[from + 5],
            out[from + 6],
            out[from + 7],
        ])
    };
    let len = (template.payload_len as u16).swap_bytes();
    let middle = word(at + 16) as u32 as u64 | u64::from(len) << 32;
    let tag = tag_14(template.key[0], template.key[1], word(at), middle).to_le_bytes();
    let mut i = 0;
    while i < 8 {
        out[at + 8 + i] = tag[i];
        i += 1;
    }
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(template.ifindex, 0) as u32 }
}

/// The least a forwarding program can do: new addresses, then out of another interface.
#[xdp(frags)]
pub fn redirect(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + 14 > ctx.data_end() {
        return XDP_PASS;
    }
    let Some(template) = TEMPLATE.get(0) else {
        return XDP_PASS;
    };
    // SAFETY: 14 bytes lie between data and data_end.
    let out = unsafe { &mut *(data as *mut [u8; 14]) };
    let mut i = 0;
    while i < 12 {
        out[i] = template.head[i];
        i += 1;
    }
    // SAFETY: the helper takes plain numbers.
    unsafe { bpf_redirect(template.ifindex, 0) as u32 }
}

/// Counts and drops.
#[xdp(frags)]
pub fn sink(ctx: XdpContext) -> u32 {
    if let Some(sunk) = SUNK.get_ptr_mut(0) {
        // SAFETY: a per-processor value; this processor runs one program at a time.
        let [packets, bytes] = unsafe { &mut *sunk };
        *packets += 1;
        *bytes += (ctx.data_end() - ctx.data()) as u64;
    }
    XDP_DROP
}

/// SipHash of 14 bytes of the packet, as many as a labelled packet's tag covers, under the template's key.
#[xdp]
pub fn siphash(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + 16 > ctx.data_end() {
        return XDP_PASS;
    }
    let Some(template) = TEMPLATE.get(0) else {
        return XDP_PASS;
    };
    // SAFETY: 16 bytes lie between data and data_end; eBPF reads words at any address.
    let words = unsafe { (data as *const [u64; 2]).read_unaligned() };
    let tag = tag_14(template.key[0], template.key[1], words[0], words[1]);
    // So that the result is used.
    if tag == 0 { XDP_DROP } else { XDP_PASS }
}

/// Nothing at all.
#[xdp]
pub fn empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// As the main object's.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
