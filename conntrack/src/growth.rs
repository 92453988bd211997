//! Doubling the index while it is used. The protocol is told in [`crate::index`]; here is who does what, and when.

use crate::handle::Handle;
use crate::index::Levels;
use crate::layout::{GROW_AT, SLOTS};
use crate::storage::Storage;
use crate::sync::{AcqRel, Acquire, AtomicU32, AtomicU64, Relaxed, Release};
use core::sync::atomic::AtomicI64;
use crossbeam_queue::SegQueue;

/// Buckets that are moved together.
const STRIPE: u32 = 16;

/// Slots per bucket of the new level beyond which a growing index takes no new connections. It began at four, and the
/// flows still in the old level's buckets need places of their own in the new ones: with seven there are always some.
const PACKED_AT: u64 = 7;

/// For how many slots a handle filled since its last quiescent point it moves one stripe, beside the one it moves anyway. The
/// index has doubled when about eight slots per bucket more are filled; this is done after a quarter of that.
const SLOTS_PER_STRIPE: u32 = 2 * STRIPE;

/// How far the doubling under way has come. None of it needs to outlive the process: beginning anew moves nothing twice.
#[derive(Debug)]
pub(crate) struct Growth {
    max_level: u32,
    /// 1 while somebody has announced a new level that is not finished.
    busy: AtomicU32,
    /// Moving may begin when every handle has announced this epoch; 0: not known yet.
    stamp: AtomicU64,
    /// Target level, and the next stripe to move.
    next: AtomicU64,
    finished: AtomicU32,
    /// Stripes with a flow that found no room: to be tried again.
    stuck: SegQueue<(u32, u32)>,
    /// Slots in use, give or take what handles have not reported yet. (A heuristic's input, hence not loom's atomics.)
    occupied: AtomicI64,
}

fn stripes(target: u32) -> u32 {
    (1_u32 << (target - 1)).div_ceil(STRIPE)
}

fn position(target: u32, stripe: u32) -> u64 {
    u64::from(target) << 32 | u64::from(stripe)
}

impl Growth {
    pub(crate) fn new(max_level: u32) -> Self {
        Growth {
            max_level,
            busy: AtomicU32::new(0),
            stamp: AtomicU64::new(0),
            next: AtomicU64::new(0),
            finished: AtomicU32::new(0),
            stuck: SegQueue::new(),
            occupied: AtomicI64::new(0),
        }
    }

    pub(crate) fn report(&self, change: i64) {
        self.occupied.fetch_add(change, Relaxed);
    }

    pub(crate) fn is_crowded(&self, levels: Levels) -> bool {
        let room = GROW_AT << levels.target();
        u64::try_from(self.occupied.load(Relaxed)).unwrap_or(0) > room && levels.target() < self.max_level
    }

    /// Whether a growing index has to move flows before it takes new connections: a handle that passes no quiescent point
    /// has held up the moving for long. Were they let in, neither might find room in the end.
    pub(crate) fn is_packed(&self, levels: Levels) -> bool {
        let room = PACKED_AT << levels.target();
        levels.is_growing() && u64::try_from(self.occupied.load(Relaxed)).unwrap_or(0) > room
    }

    /// Continues a doubling that the table was in when it was mapped.
    pub(crate) fn resume(&self, target: u32) {
        self.busy.store(1, Relaxed);
        self.next.store(position(target, 0), Relaxed);
        self.stamp.store(1, Release);
    }

    /// The next stripe of the doubling to `target`. The target is part of what is compared: a handle that was held up since a
    /// former doubling takes nothing of a later one.
    fn claim(&self, target: u32) -> Option<u32> {
        let mut next = self.next.load(Acquire);
        loop {
            let stripe = u32::try_from(next & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            if next != position(target, stripe) {
                return None;
            }
            if stripe >= stripes(target) {
                // Those that found no room come last: moving the others has made some.
                return self.stuck.pop().filter(|(of, _)| *of == target).map(|(_, stripe)| stripe);
            }
            match self.next.compare_exchange(next, next + 1, AcqRel, Acquire) {
                Ok(_) => return Some(stripe),
                Err(other) => next = other,
            }
        }
    }
}

impl<S: Storage> Handle<S> {
    /// Begins to double the index, unless it is at it or as large as it may be. Called when the index gets crowded;
    /// useful before many insertions that are known to come.
    pub fn grow(&self) -> bool {
        let growth = &self.table.growth;
        let levels = self.table.index().levels();
        if levels.is_growing() || levels.target() >= growth.max_level {
            return false;
        }
        if growth.busy.compare_exchange(0, 1, AcqRel, Relaxed).is_err() {
            return false;
        }
        // Nobody else is here until `busy` is 0 again. The level may have changed before it was taken.
        let levels = self.table.index().levels();
        let target = levels.target() + 1;
        if target > growth.max_level {
            growth.busy.store(0, Release);
            return false;
        }
        growth.stamp.store(0, Relaxed);
        growth.finished.store(0, Relaxed);
        growth.next.store(position(target, 0), Release);
        self.table.storage.header().levels.store(Levels::growing_to(target).0, Release);
        // A handle that announces this epoch or a later one has seen the new level.
        growth.stamp.store(self.table.epochs.advance(), Release);
        true
    }

    /// At a quiescent point: starts growing when it is time, and moves flows when it is allowed, the more the more slots
    /// this handle has `filled`.
    #[inline]
    pub(crate) fn tend_index(&self, filled: u32) {
        let levels = self.table.index().levels();
        if levels.is_growing() {
            self.move_stripes(levels.target(), 1 + filled / SLOTS_PER_STRIPE);
        } else if self.table.growth.is_crowded(levels) {
            self.grow();
        }
    }

    #[cold]
    fn move_stripes(&self, target: u32, stripes: u32) {
        let growth = &self.table.growth;
        let stamp = growth.stamp.load(Acquire);
        if stamp == 0 || self.table.epochs.oldest() < stamp {
            return;
        }
        for _ in 0..stripes {
            let Some(stripe) = growth.claim(target) else { return };
            self.move_stripe(target, stripe);
        }
    }

    fn move_stripe(&self, target: u32, stripe: u32) {
        let growth = &self.table.growth;
        let index = self.table.index();
        let old_buckets = 1_u32 << (target - 1);
        let buckets = stripe * STRIPE..((stripe + 1) * STRIPE).min(old_buckets);
        for bucket in buckets.clone().filter_map(|number| index.buckets.get(number as usize)) {
            for slot in 0..SLOTS {
                self.table.prefetch(bucket.reference(slot).id());
            }
        }
        let mut complete = true;
        for bucket in buckets {
            match index.migrate(bucket as usize, target, |reference| self.hash_of(reference)) {
                Some(moved) => self.counters().moved.add(moved),
                None => complete = false,
            }
        }
        if !complete {
            growth.stuck.push((target, stripe));
        } else if growth.finished.fetch_add(1, AcqRel) + 1 == stripes(target) {
            self.table.storage.header().levels.store(Levels::stable(target).0, Release);
            growth.busy.store(0, Release);
        }
    }
}
