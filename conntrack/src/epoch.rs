//! When an entry that was given up may be used again: quiescent-state-based reclamation.
//!
//! Every handle says at its quiescent points (between batches) that it holds no reference to any entry. What was removed from the
//! index before a point in time at which the global epoch advanced to e is out of everybody's hands once every handle
//! announced an epoch of e or more: a handle announces what it read from the global epoch, so whatever it looks up afterwards
//! happens after the removal, and whatever it read before happened before its announcement.
//!
//! A sleeping handle announces "never". To wake it announces the present epoch, fences, and reads again: either whoever
//! reclaims sees the announcement, or its fence came first and the woken handle sees the removal.

use crate::stats::Counters;
use crate::sync::{AcqRel, Acquire, AtomicU32, AtomicU64, Relaxed, Release, SeqCst, fence};
use crossbeam_utils::CachePadded;

/// The most handles a table has at a time.
pub const MAX_HANDLES: usize = if cfg!(loom) {
    3
} else if cfg!(miri) {
    8
} else {
    256
};

const ASLEEP: u64 = u64::MAX;

#[derive(Debug)]
struct Slot {
    epoch: AtomicU64,
    taken: AtomicU32,
    counters: Counters,
}

/// The global epoch and each handle's announcement.
#[derive(Debug)]
pub(crate) struct Epochs {
    global: CachePadded<AtomicU64>,
    slots: Box<[CachePadded<Slot>]>,
    /// Slots at and above this number were never taken.
    used: AtomicU32,
}

impl Epochs {
    pub(crate) fn new() -> Self {
        let slot = || Slot {
            epoch: AtomicU64::new(ASLEEP),
            taken: AtomicU32::new(0),
            counters: Counters::default(),
        };
        Epochs {
            global: CachePadded::new(AtomicU64::new(1)),
            slots: (0..MAX_HANDLES).map(|_| CachePadded::new(slot())).collect(),
            used: AtomicU32::new(0),
        }
    }

    /// Takes a slot, asleep. `None`: all are taken.
    pub(crate) fn register(&self) -> Option<usize> {
        let free = |slot: &CachePadded<Slot>| slot.taken.compare_exchange(0, 1, AcqRel, Relaxed).is_ok();
        let number = self.slots.iter().position(free)?;
        self.used.fetch_max(u32::try_from(number + 1).unwrap_or(u32::MAX), SeqCst);
        Some(number)
    }

    pub(crate) fn unregister(&self, number: usize) {
        self.sleep(number);
        self.slots[number].taken.store(0, Release);
    }

    pub(crate) fn counters(&self, number: usize) -> &Counters {
        &self.slots[number].counters
    }

    pub(crate) fn all_counters(&self) -> impl Iterator<Item = &Counters> {
        self.slots.iter().take(self.used.load(Acquire) as usize).map(|slot| &slot.counters)
    }

    /// Ends a period: what was removed before may be reused when [`Epochs::oldest`] reaches the number returned.
    pub(crate) fn advance(&self) -> u64 {
        self.global.fetch_add(1, AcqRel) + 1
    }

    /// A quiescent point of an awake handle.
    #[inline]
    pub(crate) fn quiescent(&self, number: usize) {
        let now = self.global.load(Acquire);
        let slot = &self.slots[number].epoch;
        if slot.load(Relaxed) != now {
            slot.store(now, Release);
        }
    }

    pub(crate) fn wake(&self, number: usize) {
        self.slots[number].epoch.store(self.global.load(Acquire), SeqCst);
        fence(SeqCst);
        self.quiescent(number);
    }

    pub(crate) fn sleep(&self, number: usize) {
        self.slots[number].epoch.store(ASLEEP, Release);
    }

    /// The oldest epoch any handle may still be in.
    pub(crate) fn oldest(&self) -> u64 {
        fence(SeqCst);
        let used = self.used.load(SeqCst) as usize;
        self.slots.iter().take(used).map(|slot| slot.epoch.load(Acquire)).min().unwrap_or(ASLEEP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_reusable_before_every_awake_handle_moved_on() {
        let epochs = Epochs::new();
        let (a, b) = (epochs.register().unwrap(), epochs.register().unwrap());
        epochs.wake(a);
        epochs.wake(b);
        let stamp = epochs.advance();
        assert!(epochs.oldest() < stamp);
        epochs.quiescent(a);
        assert!(epochs.oldest() < stamp, "b has not moved");
        epochs.quiescent(b);
        assert!(epochs.oldest() >= stamp);

        let stamp = epochs.advance();
        epochs.sleep(b);
        epochs.quiescent(a);
        assert!(epochs.oldest() >= stamp, "a sleeper holds nothing");
        epochs.wake(b);
        let stamp = epochs.advance();
        epochs.quiescent(a);
        assert!(epochs.oldest() < stamp, "it is awake again");
        epochs.unregister(b);
        assert!(epochs.oldest() >= stamp);
        assert_eq!(epochs.register(), Some(b), "a slot is reused");
    }

    #[test]
    fn handles_are_bounded() {
        let epochs = Epochs::new();
        assert!((0..MAX_HANDLES).all(|n| epochs.register() == Some(n)));
        assert_eq!(epochs.register(), None);
    }
}
