//! The cursors of a ring shared with the kernel.
//!
//! A ring is an array of `size` slots (a power of two) and two counters that only grow and wrap at 2³²: `producer` counts
//! slots filled, `consumer` slots emptied. Each side writes its own counter, with release ordering, after it is done with
//! the slots, and reads the other's, with acquire ordering, before it touches them. Both sides keep the other's counter as
//! last seen, and read the shared one again only when what they saw no longer suffices: the line it lies in belongs to the
//! other processor.
#![expect(unsafe_code, reason = "memory shared with the kernel; see the SAFETY lines")]

use super::sys::Mapping;
use std::io;
use std::os::fd::OwnedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};

/// Values a ring may carry.
///
/// # Safety
/// Every bit pattern is a valid value: the other side may write any.
pub(super) unsafe trait Slot: Copy {}
// SAFETY: an integer.
unsafe impl Slot for u64 {}
// SAFETY: integers only.
unsafe impl Slot for Descriptor {}

/// A frame, or a part of one, in the receive or transmit ring (`struct xdp_desc`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// Where it lies, relative to the region.
    pub(super) address: u64,
    /// Its length in bytes.
    pub(super) len: u32,
    /// `XDP_PKT_CONTD` when the next descriptor continues the frame.
    pub(super) options: u32,
}

impl Descriptor {
    /// Whether the next descriptor continues this frame.
    pub(super) fn continued(&self) -> bool {
        self.options & libc::XDP_PKT_CONTD != 0
    }
}

/// The shared half: where the counters and the slots lie.
#[derive(Debug)]
struct Ring<T> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    slots: NonNull<T>,
    size: u32,
    _mapping: Mapping,
}

// SAFETY: the pointers lead into the mapping that travels with them.
unsafe impl<T: Slot> Send for Ring<T> {}

impl<T: Slot> Ring<T> {
    fn map(fd: &OwnedFd, offsets: &libc::xdp_ring_offset, size: u32, page: i64) -> io::Result<Self> {
        if !size.is_power_of_two() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let end = |offset: u64, bytes: usize| {
            usize::try_from(offset).map_or(usize::MAX, |o| o.saturating_add(bytes))
        };
        let len = end(offsets.desc, size as usize * size_of::<T>())
            .max(end(offsets.producer, 4))
            .max(end(offsets.consumer, 4))
            .max(end(offsets.flags, 4));
        let mapping = Mapping::new(fd, len, page)?;
        Ok(Ring {
            producer: mapping.at(offsets.producer, 1)?,
            consumer: mapping.at(offsets.consumer, 1)?,
            flags: mapping.at(offsets.flags, 1)?,
            slots: mapping.at(offsets.desc, size as usize)?,
            size,
            _mapping: mapping,
        })
    }

    #[inline]
    fn producer(&self) -> &AtomicU32 {
        // SAFETY: `Mapping::at` checked place and alignment; the mapping lives as long as `self`; both sides access it
        // atomically.
        unsafe { self.producer.as_ref() }
    }

    #[inline]
    fn consumer(&self) -> &AtomicU32 {
        // SAFETY: as for `producer`.
        unsafe { self.consumer.as_ref() }
    }

    #[inline]
    fn needs_wakeup(&self) -> bool {
        // SAFETY: as for `producer`.
        let flags = unsafe { self.flags.as_ref() };
        flags.load(Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    /// The slot that counter value `at` stands for.
    #[inline]
    fn slot(&self, at: u32) -> NonNull<T> {
        // SAFETY: masked to an index below `size`, and `size` slots lie in the mapping.
        unsafe { self.slots.add((at & (self.size - 1)) as usize) }
    }
}

/// Our end of a ring that we fill and the kernel empties (fill, transmit).
#[derive(Debug)]
pub(super) struct Producer<T> {
    ring: Ring<T>,
    /// Slots written, published or not.
    staged: u32,
    /// Slots the other side has been shown.
    published: u32,
    /// The kernel's counter as last seen.
    consumed: u32,
}

impl<T: Slot> Producer<T> {
    /// Maps the ring of `size` slots that lies at `page` of `fd`.
    pub(super) fn map(
        fd: &OwnedFd,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        page: i64,
    ) -> io::Result<Self> {
        let ring = Ring::map(fd, offsets, size, page)?;
        let (produced, consumed) = (ring.producer().load(Relaxed), ring.consumer().load(Acquire));
        Ok(Producer { ring, staged: produced, published: produced, consumed })
    }

    /// Empty slots; reads the kernel's counter only when fewer than `wanted` are known to be empty.
    #[inline]
    pub(super) fn vacant(&mut self, wanted: u32) -> u32 {
        let known = self.known_vacant();
        if known >= wanted {
            return known;
        }
        self.consumed = self.ring.consumer().load(Acquire);
        self.known_vacant()
    }

    #[inline]
    fn known_vacant(&self) -> u32 {
        self.ring.size.saturating_sub(self.staged.wrapping_sub(self.consumed))
    }

    /// Writes `value` to the next empty slot, which [`Producer::publish`] will show. `false` when there is none.
    #[inline]
    pub(super) fn stage(&mut self, value: T) -> bool {
        if self.vacant(1) == 0 {
            return false;
        }
        // SAFETY: the slot lies in the mapping and is empty: the kernel does not read it before `publish`.
        unsafe { self.ring.slot(self.staged).write(value) };
        self.staged = self.staged.wrapping_add(1);
        true
    }

    /// Shows the kernel what was staged.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.staged != self.published {
            self.ring.producer().store(self.staged, Release);
            self.published = self.staged;
        }
    }

    /// Slots published that the kernel has not emptied.
    #[inline]
    pub(super) fn outstanding(&mut self) -> u32 {
        self.consumed = self.ring.consumer().load(Acquire);
        self.published.wrapping_sub(self.consumed)
    }

    /// Whether the kernel wants a system call to go on.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        self.ring.needs_wakeup()
    }
}

/// Our end of a ring that the kernel fills and we empty (receive, completion).
#[derive(Debug)]
pub(super) struct Consumer<T> {
    ring: Ring<T>,
    /// Slots emptied.
    consumed: u32,
    /// The kernel's counter as last seen.
    produced: u32,
}

impl<T: Slot> Consumer<T> {
    /// Maps the ring of `size` slots that lies at `page` of `fd`.
    pub(super) fn map(
        fd: &OwnedFd,
        offsets: &libc::xdp_ring_offset,
        size: u32,
        page: i64,
    ) -> io::Result<Self> {
        let ring = Ring::map(fd, offsets, size, page)?;
        let (produced, consumed) = (ring.producer().load(Acquire), ring.consumer().load(Relaxed));
        Ok(Consumer { ring, consumed, produced })
    }

    /// Up to `wanted` filled slots, the oldest first: two slices, because the row may wrap at the end of the array. They
    /// stay ours until [`Consumer::release`].
    #[inline]
    pub(super) fn filled(&mut self, wanted: u32) -> (&[T], &[T]) {
        if self.known_filled() < wanted {
            self.produced = self.ring.producer().load(Acquire);
        }
        let count = self.known_filled().min(wanted);
        let to_end = self.ring.size - (self.consumed & (self.ring.size - 1));
        let head = count.min(to_end);
        // SAFETY: `head` filled slots from `consumed` on lie in one piece; the kernel does not write them before `release`,
        // which the borrow of `self` forbids meanwhile; any bit pattern is a `T`.
        let first =
            unsafe { std::slice::from_raw_parts(self.ring.slot(self.consumed).as_ptr(), head as usize) };
        let tail = (count - head) as usize;
        // SAFETY: as above for the rest, which starts at the array's first slot.
        let second = unsafe { std::slice::from_raw_parts(self.ring.slots.as_ptr(), tail) };
        (first, second)
    }

    #[inline]
    fn known_filled(&self) -> u32 {
        self.produced.wrapping_sub(self.consumed).min(self.ring.size)
    }

    /// Gives the oldest `count` slots back to be filled again; at most as many as are known to be filled.
    #[inline]
    pub(super) fn release(&mut self, count: u32) {
        let count = count.min(self.known_filled());
        if count > 0 {
            self.consumed = self.consumed.wrapping_add(count);
            self.ring.consumer().store(self.consumed, Release);
        }
    }
}

#[cfg(test)]
mod tests;
