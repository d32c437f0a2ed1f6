//! An XDP buffer as a [`Frame`]. Pointers are taken anew for each access, as the verifier demands after the head moved.

use aya_ebpf::{
    helpers::{bpf_xdp_adjust_head, bpf_xdp_get_buff_len},
    programs::XdpContext,
};
use weft_abi::Frame;

pub struct XdpFrame<'a> {
    ctx: &'a XdpContext,
}

impl<'a> XdpFrame<'a> {
    #[inline(always)]
    pub fn new(ctx: &'a XdpContext) -> Self {
        Self { ctx }
    }
}

/// No extension header chain is longer; tells the verifier that offsets are small.
const MAX_OFFSET: usize = 0x1fff;

impl Frame for XdpFrame<'_> {
    #[inline(always)]
    fn is_len(&self, len: u32) -> bool {
        // Only a frame in several buffers is longer than its first one.
        self.ctx.data() + len as usize == self.ctx.data_end()
            // SAFETY: the context is the one the program was called with.
            || unsafe { bpf_xdp_get_buff_len(self.ctx.ctx) } == u64::from(len)
    }

    #[inline(always)]
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        let start = self.ctx.data() + (at & MAX_OFFSET);
        if at > MAX_OFFSET || start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the N bytes lie between data and data_end, and nobody else has the frame.
        Some(unsafe { &*(start as *const [u8; N]) })
    }

    #[inline(always)]
    fn bytes_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]> {
        let start = self.ctx.data() + (at & MAX_OFFSET);
        if at > MAX_OFFSET || start + N > self.ctx.data_end() {
            return None;
        }
        // SAFETY: the N bytes lie between data and data_end, and nobody else has the frame.
        Some(unsafe { &mut *(start as *mut [u8; N]) })
    }

    #[inline(always)]
    fn adjust_head(&mut self, delta: i32) -> bool {
        // SAFETY: the context is the one the program was called with.
        unsafe { bpf_xdp_adjust_head(self.ctx.ctx, delta) == 0 }
    }
}
