//! What one worker counts of its own doings.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

macro_rules! tally {
    ($($(#[doc = $doc:literal])+ $field:ident,)+) => {
        /// Counters of one worker, written by it alone and read by anyone.
        #[derive(Debug, Default)]
        pub struct Tally { $(pub(super) $field: Counter,)+ }

        impl Tally {
            $($(#[doc = $doc])+ pub fn $field(&self) -> u64 { self.$field.get() })+
        }
    };
}

tally! {
    /// Frames received from its queues.
    received,
    /// Bytes of these frames.
    received_bytes,
    /// Frames put into a transmit ring of its own.
    transmitted,
    /// Frames copied to another worker, which has a ring on the egress device.
    handed,
    /// Frames another worker handed over, put into a transmit ring here.
    taken,
    /// Frames given back to the host's own stack.
    returned,
    /// Frames that had to wait for their next hop.
    held,
    /// Frames that wait for their next hop now.
    holding,
    /// Times it went to sleep.
    slept,
    /// Queues it lost because their device vanished.
    gone,
}

/// A number with one writer.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(super) fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    pub(super) fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}
