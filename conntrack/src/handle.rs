//! One thread's access to the table: its lookups and its rhythm.

use crate::allocator::Allocator;
use crate::connection::{Class, ConnId, Connection, Entry};
use crate::flow::{Direction, Flow, Flow4, Flow6};
use crate::index::Reference;
use crate::meta::Meta;
use crate::stats::Counters;
use crate::storage::{Storage, prefetch};
use crate::sync::Relaxed;
use crate::table::{Table, TooManyHandles};
use std::sync::Arc;

#[cfg(not(loom))]
use crate::storage::Memfd;

/// What a lookup found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// The connection.
    pub id: ConnId,
    /// Which of its flows matched: [`Direction::In`] is the client's.
    pub direction: Direction,
}

/// What the last stage of a staged lookup found.
#[derive(Clone, Copy, Debug)]
pub struct Found<'a> {
    /// The connection.
    pub connection: Connection<'a>,
    /// Flags, state and timeout that it had then.
    pub meta: Meta,
    /// Which of its flows matched: [`Direction::In`] is the client's.
    pub direction: Direction,
}

impl Found<'_> {
    /// The same without a borrow, good until the handle's next quiescent point.
    #[inline]
    #[must_use]
    pub fn hit(&self) -> Hit {
        Hit { id: self.connection.id(), direction: self.direction }
    }
}

/// What the second stage of a lookup leaves to the last: good until the handle's next quiescent point. Whatever happened in
/// between, the last stage finds what a search finds.
#[derive(Clone, Copy, Debug)]
pub struct Candidate {
    hash: u64,
    likeliest: Reference,
}

impl Default for Candidate {
    fn default() -> Self {
        Candidate { hash: 0, likeliest: Reference::EMPTY }
    }
}

/// One thread's access to a table.
///
/// # Rhythm
/// Between batches of packets the thread calls [`Handle::quiescent`], before it waits [`Handle::sleep`]. What lookups and
/// insertions return names the same connection until then: an entry that was given up is used again only after every handle
/// that is awake has passed such a point. A thread that does neither for long keeps the others from reusing entries.
#[derive(Debug)]
pub struct Handle<S: Storage> {
    pub(crate) table: Arc<Table<S>>,
    pub(crate) allocator: Allocator,
    pub(crate) slot: usize,
    asleep: bool,
    /// Groups of chunks this handle looks at next for expiry.
    pub(crate) sweeping: std::ops::Range<u32>,
    /// Change of the number of index slots in use that the table does not know of yet.
    pub(crate) unreported: i64,
    /// Index slots filled since the last quiescent point.
    filled: u32,
}

/// A handle on a director's own table.
#[cfg(not(loom))]
pub type SharedHandle = Handle<Memfd>;

/// Slot changes after which a handle reports them even between quiescent points.
const REPORT_AT: i64 = 64;

impl<S: Storage> Handle<S> {
    pub(crate) fn new(table: Arc<Table<S>>) -> Result<Self, TooManyHandles> {
        let slot = table.epochs.register().ok_or(TooManyHandles)?;
        table.epochs.wake(slot);
        let capacity = [table.limits.connections4, table.limits.connections6];
        Ok(Handle {
            allocator: Allocator::new(capacity),
            table,
            slot,
            asleep: false,
            sweeping: 0..0,
            unreported: 0,
            filled: 0,
        })
    }

    /// The table this is a handle of.
    #[must_use]
    pub fn table(&self) -> &Arc<Table<S>> {
        &self.table
    }

    /// A quiescent point: the thread holds no [`ConnId`] it will use again. Once per batch; wakes the handle if it slept.
    /// Does a share of what the table has to do in the background.
    pub fn quiescent(&mut self) {
        let epochs = &self.table.epochs;
        if self.asleep {
            epochs.wake(self.slot);
            self.asleep = false;
        }
        self.allocator.end_period(epochs);
        epochs.quiescent(self.slot);
        self.allocator.reclaim(&self.table.exchange, epochs);
        self.report_slots();
        let filled = std::mem::take(&mut self.filled);
        self.tend_index(filled);
    }

    /// The thread will wait and uses nothing of the table until its next [`Handle::quiescent`].
    pub fn sleep(&mut self) {
        self.report_slots();
        self.allocator.hand_over(&self.table.exchange, &self.table.epochs);
        self.table.epochs.sleep(self.slot);
        self.asleep = true;
    }

    pub(crate) fn counters(&self) -> &Counters {
        self.table.epochs.counters(self.slot)
    }

    pub(crate) fn count_slots(&mut self, change: i64) {
        self.unreported += change;
        self.filled = self.filled.saturating_add(u32::try_from(change).unwrap_or(0));
        if self.unreported.abs() >= REPORT_AT {
            self.report_slots();
            let levels = self.table.index().levels();
            if !levels.is_growing() && self.table.growth.is_crowded(levels) {
                self.grow();
            }
        }
    }

    fn report_slots(&mut self) {
        if self.unreported != 0 {
            self.table.growth.report(self.unreported);
            self.unreported = 0;
        }
    }

    /// The hash of a flow, for the staged lookup: hash all of a batch and [`Handle::prefetch`] each, then
    /// [`Handle::candidate`] of each, then find each.
    #[inline]
    #[must_use]
    pub fn hash4(&self, flow: &Flow4) -> u64 {
        self.table.secret.hash4(flow)
    }

    /// As [`Handle::hash4`].
    #[inline]
    #[must_use]
    pub fn hash6(&self, flow: &Flow6) -> u64 {
        self.table.secret.hash6(flow)
    }

    /// As [`Handle::hash4`], for either family.
    #[inline]
    #[must_use]
    pub fn hash(&self, flow: &Flow) -> u64 {
        self.table.secret.hash(flow)
    }

    /// First stage: fetches the index bucket of a hash.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        if let Some(bucket) = self.table.index().home(hash) {
            prefetch(bucket);
        }
    }

    /// Second stage: fetches the entries a hash may mean, or the next bucket when the first passes searches on. Returns the
    /// likeliest entry, for the last stage to try before it searches.
    #[inline]
    pub fn candidate(&self, hash: u64) -> Candidate {
        let fetch = |reference: Reference| self.table.prefetch(reference.id());
        Candidate { hash, likeliest: self.table.index().near(hash, fetch, prefetch) }
    }

    /// Last stage: the connection with this flow, whose candidate this is, of the same batch, if it is the likeliest one and both
    /// its sides are IPv4, as is nearly always so. If not, [`Handle::search`].
    #[inline(always)]
    #[must_use]
    pub fn likeliest4(&self, candidate: Candidate, flow: &Flow4) -> Option<Found<'_>> {
        self.matches_narrow(candidate.likeliest, flow)
    }

    /// As [`Handle::likeliest4`], of connections with an IPv6 side.
    #[inline(always)]
    #[must_use]
    pub fn likeliest6(&self, candidate: Candidate, flow: &Flow6) -> Option<Found<'_>> {
        self.matches6(candidate.likeliest, flow, false)
    }

    /// The connection with this flow, whose candidate this is, of the same batch.
    #[must_use]
    pub fn search(&self, candidate: Candidate, flow: &Flow) -> Option<Hit> {
        match flow {
            Flow::V4(flow) => self.search4(candidate.hash, flow),
            Flow::V6(flow) => self.search6(candidate.hash, flow),
        }
    }

    /// What a lookup of this batch found, as it is now. `None` when its name is no entry of this table.
    #[inline]
    #[must_use]
    pub fn found(&self, hit: Hit) -> Option<Found<'_>> {
        let connection = self.connection(hit.id)?;
        Some(Found { connection, meta: connection.meta(), direction: hit.direction })
    }

    #[inline(never)]
    fn search4(&self, hash: u64, flow: &Flow4) -> Option<Hit> {
        let matches = |reference| self.matches4(reference, flow).map(|found| found.hit());
        self.table.index().search(hash, |found| matches(found.reference))
    }

    #[inline(never)]
    fn search6(&self, hash: u64, flow: &Flow6) -> Option<Hit> {
        let matches = |reference| self.matches6(reference, flow, false).map(|found| found.hit());
        self.table.index().search(hash, |found| matches(found.reference))
    }

    /// The connection with this flow.
    #[inline]
    #[must_use]
    pub fn find(&self, flow: &Flow) -> Option<Hit> {
        match flow {
            Flow::V4(flow) => self.search4(self.hash4(flow), flow),
            Flow::V6(flow) => self.search6(self.hash6(flow), flow),
        }
    }

    #[inline]
    fn matches4(&self, reference: Reference, flow: &Flow4) -> Option<Found<'_>> {
        match reference.id().class() {
            Class::Narrow => self.matches_narrow(reference, flow),
            // The IPv4 side of a wide entry.
            Class::Wide => self.matches6(reference, &flow.mapped(), true),
        }
    }

    #[inline(always)]
    fn matches_narrow(&self, reference: Reference, flow: &Flow4) -> Option<Found<'_>> {
        let id = reference.id();
        let entry @ Entry::Narrow(narrow, _) = self.table.entry(id)? else { return None };
        let direction = reference.direction();
        let at = direction.index();
        let differs = narrow.addresses[at].load(Relaxed) ^ flow.addresses
            | u64::from(narrow.ports[at].load(Relaxed) ^ flow.ports);
        if differs != 0 {
            return None;
        }
        let meta = entry.meta();
        if !meta.is_live_of(flow.protocol) {
            return None;
        }
        Some(Found { connection: Connection { id, entry }, meta, direction })
    }

    #[inline(always)]
    fn matches6(&self, reference: Reference, flow: &Flow6, is_ipv4: bool) -> Option<Found<'_>> {
        let id = reference.id();
        let entry @ Entry::Wide(wide) = self.table.entry(id)? else { return None };
        let direction = reference.direction();
        let at = direction.index();
        let [a, b, c, d] = &wide.addresses[at];
        let [e, f, g, h] = flow.addresses;
        let differs = a.load(Relaxed) ^ e
            | b.load(Relaxed) ^ f
            | c.load(Relaxed) ^ g
            | d.load(Relaxed) ^ h
            | u64::from(wide.ports[at].load(Relaxed) ^ flow.ports);
        if differs != 0 {
            return None;
        }
        let meta = entry.meta();
        if !meta.is_live_of(flow.protocol) || meta.is_ipv4(direction) != is_ipv4 {
            return None;
        }
        Some(Found { connection: Connection { id, entry }, meta, direction })
    }

    /// A connection by the name a lookup gave in this batch. `None` when `id` is no entry of this table.
    #[inline]
    #[must_use]
    pub fn connection(&self, id: ConnId) -> Option<Connection<'_>> {
        self.table.connection(id)
    }

    /// Every connection and template at present, for listings. While it is walked nothing that ends is reused, so a listing
    /// of millions is better made by a thread of its own; connections made or ended meanwhile may or may not be seen.
    pub fn connections(&self) -> impl Iterator<Item = Connection<'_>> {
        let all = self.table.touched(Class::Narrow).chain(self.table.touched(Class::Wide));
        all.filter_map(|id| self.table.connection(id)).filter(|connection| connection.meta().is_live())
    }

    /// As [`Handle::connections`], from the place after `after` on, each with its place: a listing in parts, which neither
    /// misses nor repeats a connection that stays. The first place is after 0.
    pub fn connections_after(&self, after: u32) -> impl Iterator<Item = (u32, Connection<'_>)> {
        let last = ConnId(after);
        let (narrow, wide) = match last.class() {
            Class::Narrow => (last.number().saturating_add(1), 1),
            Class::Wide => (u32::MAX, last.number().saturating_add(1)),
        };
        let table = &self.table;
        let all = table.touched_from(Class::Narrow, narrow).chain(table.touched_from(Class::Wide, wide));
        all.filter_map(|id| table.connection(id).map(|connection| (id.0, connection)))
            .filter(|(_, connection)| connection.meta().is_live())
    }

    pub(crate) fn hash_of(&self, reference: Reference) -> Option<u64> {
        let entry = self.table.entry(reference.id())?;
        Some(self.table.secret.hash(&entry.flow(reference.direction(), entry.meta())))
    }
}

impl<S: Storage> Drop for Handle<S> {
    fn drop(&mut self) {
        self.report_slots();
        self.allocator.dissolve(&self.table.exchange, &self.table.epochs);
        self.table.epochs.unregister(self.slot);
    }
}
