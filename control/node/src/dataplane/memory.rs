//! Tables in memory: the kernel's array maps mapped into this process, or anonymous memory of the same layout.
//!
//! Every value is made of atomic words for which all zero bytes are valid, so a shared reference is all anyone needs.

use std::{collections::HashSet, io, os::fd::BorrowedFd, ptr::NonNull, sync::RwLock};

use weft_abi::{
    Address, Cell64, Config as ConfigValue, DropReason, Group, LANES, Label, LfibEntry, NextHop,
    RxLink, Slot, Tables, Verdict, Window,
};

/// Values that are atomic words throughout, and valid when all bytes are zero.
///
/// # Safety
/// Both must hold for the implementing type.
pub(super) unsafe trait Shared: Sync {}

// SAFETY: made of Cell32, Cell64 and padding only.
unsafe impl Shared for ConfigValue {}
// SAFETY: as above.
unsafe impl Shared for RxLink {}
// SAFETY: as above.
unsafe impl Shared for Window {}
// SAFETY: as above.
unsafe impl Shared for NextHop {}
// SAFETY: as above.
unsafe impl Shared for Group {}
// SAFETY: as above.
unsafe impl Shared for Cell64 {}
// SAFETY: as above.
unsafe impl<T: Shared, const N: usize> Shared for [T; N] {}

/// An array of `len` values.
pub(super) struct Region<T> {
    base: NonNull<T>,
    len: usize,
}

// SAFETY: the region owns its mapping, and its values are shared by atomic accesses only.
unsafe impl<T: Shared> Send for Region<T> {}
// SAFETY: as above.
unsafe impl<T: Shared> Sync for Region<T> {}

impl<T: Shared> Region<T> {
    /// Zeroed memory of this process.
    pub(super) fn anonymous(len: u32) -> io::Result<Self> {
        Self::map(
            len,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
        )
    }

    /// The values of a `BPF_F_MMAPABLE` array map with `len` entries of exactly this type's size.
    pub(super) fn of_map(map: BorrowedFd<'_>, len: u32) -> io::Result<Self> {
        use std::os::fd::AsRawFd;
        Self::map(len, libc::MAP_SHARED, map.as_raw_fd())
    }

    fn map(len: u32, flags: libc::c_int, fd: libc::c_int) -> io::Result<Self> {
        const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() <= 4096) };
        let len = len as usize;
        let bytes = size_of::<T>() * len;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                flags,
                fd,
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("mmap gave address 0"))?;
        Ok(Self { base, len })
    }

    /// The value at `index`; none beyond the end.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as self; values are valid as they are.
        Some(unsafe { self.base.add(index).as_ref() })
    }

    /// Every value with its index.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        (0..self.len).filter_map(|index| Some((index as u32, self.get(index)?)))
    }

    /// Number of values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// A copy of all bytes, for comparing and diagnosing.
    pub(super) fn dump(&self) -> Vec<u64> {
        let words = size_of::<T>() * self.len / 8;
        let base = self.base.cast::<Cell64>();
        // SAFETY: the mapping holds that many words, and each may be read atomically.
        (0..words)
            .map(|i| unsafe { base.add(i).as_ref() }.load())
            .collect()
    }
}

impl<T> Drop for Region<T> {
    fn drop(&mut self) {
        // SAFETY: base and size are those of the mapping made in `map`; nobody has references into it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), size_of::<T>() * self.len) };
    }
}

/// Entries of each table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) slots: u32,
    pub(super) next_hops: u32,
    pub(super) groups: u32,
    pub(super) labels: u32,
}

/// Every table, and what this process itself counts.
pub(super) struct Memory {
    pub(super) config: Region<ConfigValue>,
    pub(super) lfib: Region<Cell64>,
    pub(super) groups: Region<Group>,
    pub(super) next_hops: Region<NextHop>,
    pub(super) next_hop_up: Region<Cell64>,
    pub(super) rx_links: Region<RxLink>,
    pub(super) rx_windows: Region<Window>,
    pub(super) tx_seq: Region<Cell64>,
    pub(super) local: RwLock<HashSet<[u64; 2]>>,
    /// By label: packets, bytes.
    pub(super) labels: Region<[Cell64; 2]>,
    pub(super) verdicts: [Cell64; Verdict::ALL.len()],
    pub(super) drops: [Cell64; DropReason::ALL.len()],
}

impl Memory {
    /// Empty tables of this process alone.
    pub(super) fn anonymous(sizes: Sizes) -> io::Result<Self> {
        Ok(Self {
            config: Region::anonymous(1)?,
            lfib: Region::anonymous(sizes.labels)?,
            groups: Region::anonymous(sizes.groups)?,
            next_hops: Region::anonymous(sizes.next_hops)?,
            next_hop_up: Region::anonymous(sizes.next_hops)?,
            rx_links: Region::anonymous(sizes.slots)?,
            rx_windows: Region::anonymous(sizes.slots * LANES)?,
            tx_seq: Region::anonymous(sizes.next_hops * LANES)?,
            local: RwLock::default(),
            labels: Region::anonymous(sizes.labels)?,
            verdicts: [const { Cell64::new(0) }; Verdict::ALL.len()],
            drops: [const { Cell64::new(0) }; DropReason::ALL.len()],
        })
    }

    pub(super) fn count_verdict(&self, verdict: Verdict) {
        self.verdicts[verdict as usize].fetch_add(1);
    }

    pub(super) fn count_drop(&self, reason: DropReason) {
        self.drops[reason as usize].fetch_add(1);
    }
}

impl Tables for Memory {
    fn port(&self) -> u16 {
        self.config
            .get(0)
            .map_or(0, |config| config.port.load() as u16)
    }

    fn config(&self) -> Option<&ConfigValue> {
        self.config.get(0)
    }

    fn rx_link(&self, slot: Slot) -> Option<&RxLink> {
        self.rx_links.get(usize::from(slot.0))
    }

    fn window(&self, slot: Slot, lane: u8) -> Option<&Window> {
        self.rx_windows
            .get(usize::from(slot.0) * LANES as usize + usize::from(lane))
    }

    fn lfib(&self, label: Label) -> LfibEntry {
        self.lfib
            .get(label.0 as usize)
            .map_or(LfibEntry::EMPTY, |word| LfibEntry(word.load()))
    }

    fn bucket(&self, group: u32, lane: u8) -> u64 {
        self.groups
            .get(group as usize)
            .map_or(0, |group| group.buckets[usize::from(lane & 0x0f)].load())
    }

    fn next_hop(&self, index: u32) -> Option<&NextHop> {
        self.next_hops.get(index as usize)
    }

    fn is_up(&self, index: u32) -> bool {
        self.next_hop_up
            .get(index as usize)
            .is_some_and(|up| up.load() != 0)
    }

    fn next_seq(&self, next_hop: u32, lane: u8) -> Option<u32> {
        let index = next_hop as usize * LANES as usize + usize::from(lane);
        u32::try_from(self.tx_seq.get(index)?.fetch_add(1) + 1).ok()
    }

    fn is_local(&self, address: &Address) -> bool {
        // A poisoned lock still holds a set: writers replace it whole.
        let local = self
            .local
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        local.contains(&address.0)
    }

    fn count_admitted(&self, slot: Slot, lane: u8, bytes: u32) {
        if let Some(window) = self.window(slot, lane) {
            window.count(bytes);
        }
    }

    fn count_label(&self, label: Label, bytes: u32) {
        if let Some([packets, total]) = self.labels.get(label.0 as usize) {
            packets.fetch_add(1);
            total.fetch_add(u64::from(bytes));
        }
    }
}
