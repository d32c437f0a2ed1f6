//! Words that several processors, and kernel and user space, read and write at the same time.
//!
//! On the host these are `core::sync::atomic`. The eBPF target lacks the read-modify-write methods there, so they are
//! spelled with the compiler's intrinsics (kernel 5.12 and up executes them).

#[cfg(not(target_arch = "bpf"))]
mod imp {
    use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

    /// A shared 32-bit word. All zero bytes are a valid value.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Cell32(AtomicU32);

    impl Cell32 {
        /// A word with this value.
        pub const fn new(value: u32) -> Self {
            Self(AtomicU32::new(value))
        }

        /// Its value; what was written before the value was stored is visible afterwards.
        #[inline(always)]
        pub fn load(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        /// Publishes a value and everything written before it.
        #[inline(always)]
        pub fn store(&self, value: u32) {
            self.0.store(value, Ordering::Release);
        }
    }

    /// A shared 64-bit word. All zero bytes are a valid value.
    #[derive(Debug, Default)]
    #[repr(transparent)]
    pub struct Cell64(AtomicU64);

    impl Cell64 {
        /// A word with this value.
        pub const fn new(value: u64) -> Self {
            Self(AtomicU64::new(value))
        }

        /// Its value; what was written before the value was stored is visible afterwards.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            self.0.load(Ordering::Acquire)
        }

        /// Publishes a value and everything written before it.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            self.0.store(value, Ordering::Release);
        }

        /// Adds and gives back the value before.
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            self.0.fetch_add(value, Ordering::Relaxed)
        }

        /// Stores `new` if the value is `old`; tells whether it did.
        #[inline(always)]
        pub fn compare_exchange(&self, old: u64, new: u64) -> bool {
            self.0
                .compare_exchange(old, new, Ordering::AcqRel, Ordering::Relaxed)
                .is_ok()
        }
    }
}

#[cfg(target_arch = "bpf")]
mod imp {
    use core::{
        cell::UnsafeCell,
        intrinsics::{AtomicOrdering, atomic_cxchg, atomic_xadd},
    };

    /// A shared 32-bit word.
    #[repr(transparent)]
    pub struct Cell32(UnsafeCell<u32>);

    // SAFETY: every access below is volatile or atomic.
    unsafe impl Sync for Cell32 {}

    impl Cell32 {
        /// Its value.
        #[inline(always)]
        pub fn load(&self) -> u32 {
            // SAFETY: the cell is valid for reads; a concurrent writer writes whole words.
            unsafe { self.0.get().read_volatile() }
        }

        /// Sets it.
        #[inline(always)]
        pub fn store(&self, value: u32) {
            // SAFETY: the cell is valid for writes; concurrent readers read whole words.
            unsafe { self.0.get().write_volatile(value) }
        }
    }

    /// A shared 64-bit word.
    #[repr(transparent)]
    pub struct Cell64(UnsafeCell<u64>);

    // SAFETY: every access below is volatile or atomic.
    unsafe impl Sync for Cell64 {}

    impl Cell64 {
        /// Its value.
        #[inline(always)]
        pub fn load(&self) -> u64 {
            // SAFETY: the cell is valid for reads; a concurrent writer writes whole words.
            unsafe { self.0.get().read_volatile() }
        }

        /// Sets it.
        #[inline(always)]
        pub fn store(&self, value: u64) {
            // SAFETY: the cell is valid for writes; concurrent readers read whole words.
            unsafe { self.0.get().write_volatile(value) }
        }

        /// Adds and gives back the value before.
        #[inline(always)]
        pub fn fetch_add(&self, value: u64) -> u64 {
            // SAFETY: the cell is valid and aligned.
            unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(self.0.get(), value) }
        }

        /// Stores `new` if the value is `old`; tells whether it did.
        #[inline(always)]
        pub fn compare_exchange(&self, old: u64, new: u64) -> bool {
            // SAFETY: the cell is valid and aligned.
            unsafe {
                atomic_cxchg::<u64, { AtomicOrdering::SeqCst }, { AtomicOrdering::SeqCst }>(
                    self.0.get(),
                    old,
                    new,
                )
                .1
            }
        }
    }
}

pub use imp::{Cell32, Cell64};
