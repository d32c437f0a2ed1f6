//! Bounds-checked access to the bytes of a frame, wherever they lie.

/// The bytes of a frame. Every access is checked; nothing here can panic.
pub trait Frame {
    /// Whether the frame is exactly this long.
    fn is_len(&self, len: u32) -> bool;
    /// `N` bytes from `at` on, if they are there.
    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]>;
    /// `N` bytes from `at` on, if they are there.
    fn bytes_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]>;
    /// Moves the start by `delta` bytes, forward when positive; tells whether there was room. Invalidates what was
    /// read before.
    fn adjust_head(&mut self, delta: i32) -> bool;
}

/// A frame in a buffer, with room before it.
#[derive(Debug)]
pub struct SliceFrame<'a> {
    buffer: &'a mut [u8],
    start: usize,
}

impl<'a> SliceFrame<'a> {
    /// The frame begins at `start` in `buffer` and fills the rest.
    pub fn new(buffer: &'a mut [u8], start: usize) -> Self {
        let start = start.min(buffer.len());
        Self { buffer, start }
    }

    /// Where the frame begins now.
    pub fn start(&self) -> usize {
        self.start
    }

    /// The frame as it is now.
    pub fn frame(&self) -> &[u8] {
        self.buffer.get(self.start..).unwrap_or_default()
    }
}

impl Frame for SliceFrame<'_> {
    fn is_len(&self, len: u32) -> bool {
        self.frame().len() as u64 == u64::from(len)
    }

    fn bytes<const N: usize>(&self, at: usize) -> Option<&[u8; N]> {
        self.frame().get(at..)?.first_chunk()
    }

    fn bytes_mut<const N: usize>(&mut self, at: usize) -> Option<&mut [u8; N]> {
        self.buffer
            .get_mut(self.start..)?
            .get_mut(at..)?
            .first_chunk_mut()
    }

    fn adjust_head(&mut self, delta: i32) -> bool {
        match self.start.checked_add_signed(delta as isize) {
            // As the kernel does: at least an Ethernet header must remain.
            Some(start) if start + crate::ETHERNET_LEN <= self.buffer.len() => {
                self.start = start;
                true
            }
            _ => false,
        }
    }
}
