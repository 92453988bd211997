//! What the pipeline sees of a frame: a buffer with headroom, the frame's place in it, and where it came from.

/// Frames a worker hands to the pipeline at a time. Batches of 32 to 64 were the fastest when measured.
pub const BATCH: usize = 64;

/// A device of this director: an index into [`crate::snapshot::Snapshot::ports`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortId(pub u16);

/// One frame in its buffer.
///
/// The first part of the frame lies in `buffer[start..end]`; the bytes before `start` are headroom for encapsulation. A
/// frame longer than a buffer (multi-buffer AF_XDP) continues in `rest`, whose bytes the pipeline only sums: every
/// header it may rewrite is in the first part.
#[derive(Debug)]
pub struct Packet<'a> {
    buffer: &'a mut [u8],
    start: usize,
    end: usize,
    rest: &'a [&'a [u8]],
    port: PortId,
}

impl<'a> Packet<'a> {
    /// A frame of `len` bytes at `buffer[start..]`, received on `port`. Clamped to the buffer.
    pub fn new(buffer: &'a mut [u8], start: usize, len: usize, port: PortId) -> Self {
        let end = start.saturating_add(len).min(buffer.len());
        Packet { start: start.min(end), end, buffer, rest: &[], port }
    }

    /// The same frame, continued in `rest`.
    #[must_use]
    pub fn with_rest(mut self, rest: &'a [&'a [u8]]) -> Self {
        self.rest = rest;
        self
    }

    /// The first (usually the only) part of the frame, from its Ethernet header on.
    #[inline]
    pub fn frame(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// The same, to rewrite.
    #[inline]
    pub fn frame_mut(&mut self) -> &mut [u8] {
        &mut self.buffer[self.start..self.end]
    }

    /// The parts after the first. Empty when the pipeline put a short frame in a long one's place.
    #[inline]
    pub fn rest(&self) -> &'a [&'a [u8]] {
        self.rest
    }

    /// Length of the whole frame in bytes, all parts together.
    #[inline]
    pub fn total_len(&self) -> usize {
        self.end - self.start + self.rest.iter().map(|part| part.len()).sum::<usize>()
    }

    /// Where the first part starts in the buffer: what a link needs to transmit it.
    #[inline]
    pub fn start(&self) -> usize {
        self.start
    }

    /// Length of the first part in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether the first part is empty.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The device the frame came from.
    #[inline]
    pub fn port(&self) -> PortId {
        self.port
    }

    /// Makes the frame begin `bytes` earlier (into the headroom). `false`, and nothing changed, when there is no room.
    #[must_use]
    pub fn grow_front(&mut self, bytes: usize) -> bool {
        match self.start.checked_sub(bytes) {
            Some(start) => {
                self.start = start;
                true
            }
            None => false,
        }
    }

    /// Makes the frame end after `len` bytes, if it is longer; it lies in its first part only from then on.
    pub fn truncate(&mut self, len: usize) {
        self.end = self.end.min(self.start.saturating_add(len));
        self.rest = &[];
    }

    /// Makes the frame begin `bytes` later. `false`, and nothing changed, when the first part is shorter.
    #[must_use]
    pub fn shrink_front(&mut self, bytes: usize) -> bool {
        if bytes > self.len() {
            return false;
        }
        self.start += bytes;
        true
    }
}
