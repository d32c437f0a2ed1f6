//! Counting what became of packets.

use weft_abi::{DropReason, Verdict};

use crate::maps::{COUNTERS, DROPS};

#[inline(always)]
fn increment(counter: Option<*mut u64>) {
    if let Some(counter) = counter {
        // SAFETY: a per-processor value; this processor runs one program at a time.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
pub fn verdict(verdict: Verdict) {
    increment(COUNTERS.get_ptr_mut(verdict as u32));
}

#[inline(always)]
pub fn drop(reason: DropReason) {
    increment(DROPS.get_ptr_mut(reason as u32));
}
