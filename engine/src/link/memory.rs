//! The frames of one worker: a region of memory cut into chunks of equal size, and tokens that say who owns which.
//!
//! A [`Frame`] is the right to touch one chunk. It can be neither copied nor made from a number outside this link, so a
//! chunk is at any time either owned by whoever holds its token or by the kernel, never by both.
#![expect(unsafe_code, reason = "shared memory with the kernel; see the SAFETY lines")]

use super::{Error, MAX_PARTS};
use crate::batch::{BATCH, PortId};
use arrayvec::ArrayVec;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Bytes the kernel leaves free before a received frame (`XDP_PACKET_HEADROOM`): room for encapsulation.
pub const HEADROOM: u32 = 256;

/// Ethernet header and two VLAN tags.
const LINK_HEADERS: u32 = 22;

/// The right to one chunk of one [`Region`].
#[derive(Debug)]
pub struct Frame {
    index: u32,
    region: u32,
}

/// Memory for frames, shared with the kernel.
#[derive(Debug)]
pub struct Region {
    base: NonNull<u8>,
    chunk: u32,
    count: u32,
    identity: u32,
}

// SAFETY: the region is plain memory that stays where it is; who may touch which chunk is decided by the one token of that
// chunk, and tokens move between threads by value.
unsafe impl Send for Region {}
// SAFETY: as above; `&Region` gives access to a chunk only together with its token.
unsafe impl Sync for Region {}

impl Region {
    /// The chunk size for devices whose largest MTU is `mtu`: 2048 bytes where a whole frame fits, else 4096, the largest
    /// the kernel accepts; frames that exceed it come in parts.
    pub fn chunk_for(mtu: u32) -> u32 {
        if mtu.saturating_add(LINK_HEADERS + HEADROOM) <= 2048 { 2048 } else { 4096 }
    }

    /// The largest MTU whose frames fit one chunk of `chunk` bytes.
    pub fn largest_mtu(chunk: u32) -> u32 {
        chunk - HEADROOM - LINK_HEADERS
    }

    /// Bytes per chunk.
    pub fn chunk(&self) -> u32 {
        self.chunk
    }

    /// Length of the region in bytes.
    pub fn len(&self) -> usize {
        self.count as usize * self.chunk as usize
    }

    /// Always false: a region has chunks.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Where the region lies, for registration with the kernel.
    pub(super) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The chunk of `frame`, to write.
    ///
    /// # Panics
    /// When the frame belongs to another region.
    #[inline]
    pub fn bytes<'a>(&'a self, frame: &'a mut Frame) -> &'a mut [u8] {
        let start = self.start(frame);
        // SAFETY: `start` lies in the mapping, which lives as long as `self`; the chunk's only token is borrowed mutably for
        // the life of the slice, so nobody else, the kernel included, has access to the chunk.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), self.chunk as usize) }
    }

    /// The chunk of `frame`, to read.
    ///
    /// # Panics
    /// When the frame belongs to another region.
    #[inline]
    pub fn read<'a>(&'a self, frame: &'a Frame) -> &'a [u8] {
        let start = self.start(frame);
        // SAFETY: as in `bytes`; the token is borrowed, so nobody writes the chunk meanwhile.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), self.chunk as usize) }
    }

    #[inline]
    fn start(&self, frame: &Frame) -> NonNull<u8> {
        assert_eq!(frame.region, self.identity, "a frame of another region");
        // SAFETY: tokens of this region carry indices below `count` (made so in `Pool::new` and checked in `adopt`), so the offset
        // stays within the mapping.
        unsafe { self.base.add(frame.index as usize * self.chunk as usize) }
    }

    /// The address, relative to the region, of byte `start` of a chunk, with the token given up for it.
    ///
    /// # Panics
    /// When the frame belongs to another region: giving it to the kernel would hand over somebody else's chunk.
    #[inline]
    // Takes the token by value on purpose: who has the address to give to the kernel has the token no longer.
    #[allow(clippy::needless_pass_by_value)]
    pub(super) fn surrender(&self, frame: Frame, start: u16) -> u64 {
        assert_eq!(frame.region, self.identity, "a frame of another region");
        u64::from(frame.index) * u64::from(self.chunk) + u64::from(start)
    }

    /// The token of a chunk that comes back from the kernel, by any address within it, and the offset of that address.
    ///
    /// # Safety
    /// The chunk was surrendered to the kernel and the kernel has just given it back, once.
    #[inline]
    pub(super) unsafe fn adopt(&self, address: u64) -> (Frame, u16) {
        let index = address / u64::from(self.chunk);
        assert!(index < u64::from(self.count), "the kernel returned an address outside the region");
        #[expect(clippy::cast_possible_truncation, reason = "below `count`, and below the chunk size")]
        (Frame { index: index as u32, region: self.identity }, (address % u64::from(self.chunk)) as u16)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `Pool::new` with this length, and no slice of it outlives `self`. Sockets that registered
        // it hold its pages by themselves.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len()) };
    }
}

/// The free frames of a region. The worker that owns the region owns its pool.
#[derive(Debug)]
pub struct Pool {
    region: Arc<Region>,
    free: Vec<Frame>,
}

impl Pool {
    /// `count` chunks of `chunk` bytes (2048 or 4096), all of them free. Physical memory is taken
    /// when a queue registers the region.
    ///
    /// # Errors
    /// [`Error::Memory`] when the address space or memory does not suffice.
    ///
    /// # Panics
    /// When `chunk` is neither 2048 nor 4096, or `count` is zero.
    pub fn new(count: u32, chunk: u32) -> Result<Self, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        assert!(matches!(chunk, 2048 | 4096) && count > 0, "chunks are of 2048 or 4096 bytes");
        let bytes = count as usize * chunk as usize;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0) };
        let base = NonNull::new(base.cast::<u8>()).filter(|_| base != libc::MAP_FAILED).ok_or_else(|| {
            Error::Memory { mebibytes: bytes >> 20, source: std::io::Error::last_os_error() }
        })?;
        let identity = NEXT.fetch_add(1, Relaxed);
        let free = (0..count).rev().map(|index| Frame { index, region: identity }).collect();
        Ok(Pool { region: Arc::new(Region { base, chunk, count, identity }), free })
    }

    /// The region the frames lie in.
    pub fn region(&self) -> &Arc<Region> {
        &self.region
    }

    /// How many frames are free.
    pub fn len(&self) -> usize {
        self.free.len()
    }

    /// Whether no frame is free.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a free frame. The one given back last comes first: it is the likeliest to be in the cache.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Gives a frame back.
    ///
    /// # Panics
    /// When the frame belongs to another region.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        assert_eq!(frame.region, self.region.identity, "a frame of another region");
        self.free.push(frame);
    }

    /// Gives all parts of a frame back.
    pub fn give_all(&mut self, parts: &mut Parts) {
        for part in parts.drain(..) {
            self.give(part.frame);
        }
    }
}

/// One buffer's share of a frame: its first part, or one that continues it.
#[derive(Debug)]
pub struct Part {
    /// The chunk it lies in.
    pub frame: Frame,
    /// Where in the chunk it starts.
    pub start: u16,
    /// Its length in bytes.
    pub len: u16,
    /// The device it came from; after the pipeline, the one it goes to.
    pub port: PortId,
    /// Whether the next part belongs to the same frame.
    pub more: bool,
}

impl Part {
    /// The bytes of this part.
    pub fn bytes<'a>(&'a self, region: &'a Region) -> &'a [u8] {
        &region.read(&self.frame)[usize::from(self.start)..][..usize::from(self.len)]
    }
}

/// All parts of one frame.
pub type Parts = ArrayVec<Part, MAX_PARTS>;

/// Frames received together, as a row of parts; a frame is a run of parts of which all but the last have `more` set.
pub type Batch = ArrayVec<Part, BATCH>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_chunk_has_one_token_and_they_do_not_overlap() {
        let mut pool = Pool::new(4, 2048).unwrap();
        let region = pool.region().clone();
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!(frames.len(), 4);
        for (value, frame) in (1..).zip(&mut frames) {
            region.bytes(frame).fill(value);
        }
        for (value, frame) in (1..).zip(&frames) {
            assert!(region.read(frame).iter().all(|&byte| byte == value));
        }
        frames.into_iter().for_each(|frame| pool.give(frame));
        assert_eq!(pool.len(), 4);
    }

    #[test]
    #[should_panic(expected = "another region")]
    fn a_frame_of_another_region_is_refused() {
        let mut mine = Pool::new(1, 2048).unwrap();
        let mut yours = Pool::new(1, 2048).unwrap();
        mine.give(yours.take().unwrap());
    }

    #[test]
    fn what_is_surrendered_comes_back_the_same() {
        let mut pool = Pool::new(8, 4096).unwrap();
        let region = pool.region().clone();
        let mut frame = pool.take().unwrap();
        region.bytes(&mut frame)[300] = 42;
        let address = region.surrender(frame, 300);
        // SAFETY: surrendered in the line above.
        let (frame, start) = unsafe { region.adopt(address) };
        assert_eq!((start, region.read(&frame)[300]), (300, 42));
    }

    #[test]
    fn chunks_follow_the_mtu() {
        let table = [(1500, 2048), (1770, 2048), (1771, 4096), (9000, 4096), (u32::MAX, 4096)];
        for (mtu, chunk) in table {
            assert_eq!(Region::chunk_for(mtu), chunk, "MTU {mtu}");
        }
    }
}
