//! When to look at which entries for expiry: a lower bound of the deadlines in each chunk of entries.
//!
//! Packets only put a connection's deadline off, so the bound stays one without their doing. Who gives a connection an earlier
//! deadline (an insertion, a transition to a shorter timeout) writes the connection first and lowers the bound after;
//! expiry takes the bound away first, reads the chunk after, and puts the bound it found. With a fence between each's two
//! steps, either expiry's reading sees the new deadline, or the lowering comes after the bound was taken and stays.

use crate::connection::{Class, ConnId};
use crate::layout::{CHUNK, Geometry};
use crate::sync::{AcqRel, AtomicU64, Relaxed, SeqCst, fence};
use crate::time::Tick;

/// No entry of the chunk has a deadline.
const NEVER: u64 = 0;
const SET: u64 = 1 << 32;

/// Chunks whose bounds share a cache line.
pub(crate) const GROUP: usize = 8;

/// The bounds of all chunks: those of narrow entries first, then those of wide ones.
#[derive(Debug)]
pub(crate) struct Dues {
    bounds: Box<[AtomicU64]>,
    narrow_chunks: usize,
}

fn bound(tick: Tick) -> u64 {
    SET | u64::from(tick.0)
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half is the tick")]
fn tick(bound: u64) -> Option<Tick> {
    (bound != NEVER).then_some(Tick(bound as u32))
}

impl Dues {
    pub(crate) fn new(geometry: &Geometry) -> Self {
        let narrow_chunks = (geometry.narrow / CHUNK) as usize;
        let chunks = narrow_chunks + (geometry.wide / CHUNK) as usize;
        let bounds = std::iter::repeat_with(|| AtomicU64::new(NEVER)).take(chunks).collect();
        Dues { bounds, narrow_chunks }
    }

    pub(crate) fn groups(&self) -> usize {
        self.bounds.len().div_ceil(GROUP)
    }

    /// A mask of the chunks of a group whose bound lies before `now`.
    pub(crate) fn due_in(&self, group: usize, now: Tick) -> u32 {
        let bounds = self.bounds.chunks(GROUP).nth(group).unwrap_or_default();
        bounds.iter().enumerate().fold(0, |mask, (at, due)| {
            let is_due = tick(due.load(Relaxed)).is_some_and(|bound| bound.is_before(now));
            mask | u32::from(is_due) << at
        })
    }

    fn chunk_of(&self, id: ConnId) -> usize {
        let chunk = (id.number() / CHUNK) as usize;
        match id.class() {
            Class::Narrow => chunk,
            Class::Wide => self.narrow_chunks + chunk,
        }
    }

    /// Class and numbers of a chunk's entries.
    pub(crate) fn entries(&self, chunk: usize) -> impl Iterator<Item = ConnId> + use<> {
        let (class, chunk) = match chunk.checked_sub(self.narrow_chunks) {
            None => (Class::Narrow, chunk),
            Some(wide) => (Class::Wide, wide),
        };
        let start = u32::try_from(chunk).unwrap_or(u32::MAX).saturating_mul(CHUNK);
        (start..start.saturating_add(CHUNK)).map(move |number| ConnId::new(class, number))
    }

    /// A connection got this deadline, which may be earlier than its last. Call after writing it.
    pub(crate) fn lower(&self, id: ConnId, deadline: Tick) {
        fence(SeqCst);
        self.lower_chunk(self.chunk_of(id), deadline);
    }

    pub(crate) fn lower_chunk(&self, chunk: usize, deadline: Tick) {
        let Some(due) = self.bounds.get(chunk) else { return };
        let mut present = due.load(Relaxed);
        while tick(present).is_none_or(|tick| deadline.is_before(tick)) {
            match due.compare_exchange(present, bound(deadline), AcqRel, Relaxed) {
                Ok(_) => return,
                Err(other) => present = other,
            }
        }
    }

    /// Takes a chunk's bound away; whoever does reads the chunk next.
    pub(crate) fn take(&self, chunk: usize) -> bool {
        let taken = self.bounds.get(chunk).is_some_and(|due| due.swap(NEVER, AcqRel) != NEVER);
        fence(SeqCst);
        taken
    }
}
