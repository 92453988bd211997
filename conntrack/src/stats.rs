//! What the table counts.

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// One handle's counters: written by its thread alone, read by anybody. They stay when the handle goes and are taken over
/// by the next one in its place, so sums never fall. (Never part of the protocol, hence not loom's atomics.)
#[derive(Debug, Default)]
pub(crate) struct Counters {
    /// By class.
    pub(crate) inserted: [Counter; 2],
    /// By class.
    pub(crate) ended: [Counter; 2],
    pub(crate) expired: Counter,
    pub(crate) removed: Counter,
    pub(crate) full: Counter,
    pub(crate) index_full: Counter,
    pub(crate) conflicts: Counter,
    pub(crate) aborted: Counter,
    pub(crate) replies_replaced: Counter,
    pub(crate) replies_refused: Counter,
    pub(crate) moved: Counter,
    pub(crate) rearmed: Counter,
}

#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Only the owner counts.
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A reading of the table's counters; all count from the table's mapping on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableStats {
    /// Connections and templates at present, both sides IPv4.
    pub connections4: u64,
    /// Connections and templates at present, with an IPv6 side.
    pub connections6: u64,
    /// The most `connections4` may become.
    pub capacity4: u64,
    /// The most `connections6` may become.
    pub capacity6: u64,
    /// Buckets of twelve slots in use by the index.
    pub buckets: u64,
    /// Whether the index is doubling just now.
    pub growing: bool,
    /// Bytes of physical memory the table takes.
    pub resident_bytes: u64,
    /// Connections inserted.
    pub inserted: u64,
    /// Connections ended because no packet came for their timeout.
    pub expired: u64,
    /// Connections removed on request.
    pub removed: u64,
    /// Insertions refused because every entry of the class is in use.
    pub full: u64,
    /// Insertions refused because all buckets of the flow's sequence were full.
    pub index_full: u64,
    /// Insertions that found their flow in the table already.
    pub conflicts: u64,
    /// Insertions begun anew because another worker inserted the same flow at the same time.
    pub aborted: u64,
    /// Reply flows taken over by a newer connection with the same one.
    pub replies_replaced: u64,
    /// Reply flows that a new connection did not get because another one has the same for itself alone.
    pub replies_refused: u64,
    /// Flows moved because the index grew.
    pub moved: u64,
    /// Templates kept past their timeout because they control connections.
    pub rearmed: u64,
}

impl TableStats {
    pub(crate) fn add(&mut self, counters: &Counters) {
        let live = |class: usize| counters.inserted[class].get().wrapping_sub(counters.ended[class].get());
        self.connections4 = self.connections4.wrapping_add(live(0));
        self.connections6 = self.connections6.wrapping_add(live(1));
        self.inserted += counters.inserted.iter().map(Counter::get).sum::<u64>();
        for (sum, counter) in [
            (&mut self.expired, &counters.expired),
            (&mut self.removed, &counters.removed),
            (&mut self.full, &counters.full),
            (&mut self.index_full, &counters.index_full),
            (&mut self.conflicts, &counters.conflicts),
            (&mut self.aborted, &counters.aborted),
            (&mut self.replies_replaced, &counters.replies_replaced),
            (&mut self.replies_refused, &counters.replies_refused),
            (&mut self.moved, &counters.moved),
            (&mut self.rearmed, &counters.rearmed),
        ] {
            *sum += counter.get();
        }
    }
}
