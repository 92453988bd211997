//! The index: from a flow's hash to the entry that has it.
//!
//! Buckets of one cache line hold twelve slots: a one-byte tag each (0: empty) and a reference to an entry. A flow lies in the
//! first bucket of its probe sequence that had room; each bucket passed over says so in its header, for the level (size) of
//! the index it happened at, and lookups go on only from such a bucket.
//!
//! A slot is taken by a compare-and-swap of its reference from 0 and comes into sight when its tag is set after that. It is
//! given up in the opposite order: the reference becomes [`Reference::BUSY`], which only one can achieve, then the tag goes,
//! then the reference becomes 0. So a tag belongs to the slot's present reference whenever that is neither 0 nor busy, and a
//! slot being emptied cannot be taken before its old tag is gone.
//!
//! # Growing
//!
//! Buckets `0..2^n` make up level n. To double, level n+1 is announced (`Growing`), and from then on insertions go to the
//! new level. Insertions into the old one may still be under way until every handle has passed a quiescent point; after
//! that, and only then, flows are moved, old bucket by old bucket: *first* copied to a bucket of their new sequence, *then*
//! removed from the old ([`Index::migrate`]). A flow whose new sequence contains the bucket it is in stays there, so that
//! what insertions put into the new level never moves, and each flow moves at most once while the index doubles.
//!
//! A search while it grows looks in the new level, in the old one, and in the new one again. A flow that is in the table all
//! the while cannot escape it: missed by the first look, it was in the old level then; missed by the second, it was moved
//! before the look there, hence copied before that, and the third sees the copy. It cannot move a second time, since the
//! next doubling moves nothing before the searching handle has passed a quiescent point. That is also why a search that
//! began with the old level alone is safe: nothing is moved before its handle has seen the announcement.

use crate::sync::{AcqRel, Acquire, AtomicU32, Relaxed, Release};

use crate::flow::Direction;
use crate::layout::{Bucket, SLOTS};
use crate::storage::equal_bytes;

/// Buckets of a flow's probe sequence. (One under loom: in an index of two buckets flows must have a reason to move.)
const REACH: u32 = if cfg!(loom) { 1 } else { 8 };
const GROWING: u32 = 1 << 31;
/// The tags of a bucket end and its header begins here, in the second word.
const HEADER_AT: u32 = 32;

/// What a slot refers to: bit 31 says which side's flow is meant, bit 30 the class, the rest is the entry's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reference(pub(crate) u32);

impl Reference {
    pub(crate) const EMPTY: Reference = Reference(0);
    /// The slot is being emptied.
    pub(crate) const BUSY: Reference = Reference(u32::MAX);
    const OUT: u32 = 1 << 31;

    pub(crate) fn new(id: crate::ConnId, direction: Direction) -> Self {
        Reference(id.0 | if direction == Direction::Out { Self::OUT } else { 0 })
    }

    #[inline]
    pub(crate) fn id(self) -> crate::ConnId {
        crate::ConnId(self.0 & !Self::OUT)
    }

    #[inline]
    pub(crate) fn direction(self) -> Direction {
        if self.0 & Self::OUT == 0 { Direction::In } else { Direction::Out }
    }
}

/// The size of the index: the level insertions go to, and whether the one below still holds flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Levels(pub(crate) u32);

impl Levels {
    pub(crate) fn stable(level: u32) -> Self {
        Levels(level)
    }

    pub(crate) fn growing_to(level: u32) -> Self {
        Levels(level | GROWING)
    }

    #[inline]
    pub(crate) fn target(self) -> u32 {
        self.0 & !GROWING
    }

    #[inline]
    pub(crate) fn is_growing(self) -> bool {
        self.0 & GROWING != 0
    }
}

/// The tag of a hash: never 0.
#[inline]
fn tag(hash: u64) -> u8 {
    ((hash >> 56) as u8).max(1)
}

/// Number of the `turn`th bucket of a hash's probe sequence at `level`. The step is odd, so that the sequence repeats only
/// after the whole level; sequences at level n+1 are those of level n with one bit more.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "levels stay far below 32 bits")]
fn bucket_at(hash: u64, turn: u32, level: u32) -> usize {
    let step = (hash >> 32) as u32 & 0x00ff_ffff | 1;
    let number = (hash as u32).wrapping_add(turn.wrapping_mul(step));
    (number & ((1 << level) - 1)) as usize
}

fn reach(level: u32) -> u32 {
    if level >= REACH.trailing_zeros() { REACH } else { 1 << level }
}

impl Bucket {
    /// A mask of the slots with this tag, and the header.
    #[inline]
    pub(crate) fn probe(&self, tag: u8) -> (u32, u32) {
        let low = self.words[0].load(Acquire);
        let high = self.words[1].load(Acquire);
        (equal_bytes(low, high, tag) & 0xfff, (high >> HEADER_AT) as u32)
    }

    #[inline]
    pub(crate) fn reference(&self, slot: usize) -> Reference {
        Reference(self.references[slot].load(Acquire))
    }

    /// Shows every slot with this tag to `visit` until it answers. The header was read before any of them.
    #[inline]
    fn search<'a, R>(&'a self, tag: u8, visit: &mut impl FnMut(Slot<'a>) -> Option<R>) -> (Option<R>, u32) {
        let (mut mask, header) = self.probe(tag);
        while mask != 0 {
            let slot = lowest(&mut mask);
            let reference = self.reference(slot);
            if reference == Reference::EMPTY || reference == Reference::BUSY {
                continue;
            }
            let answer = visit(Slot { bucket: self, slot, reference });
            if answer.is_some() {
                return (answer, header);
            }
        }
        (None, header)
    }

    /// Takes an empty slot and makes it visible.
    fn claim(&self, tag: u8, reference: Reference) -> bool {
        let (mut empty, _) = self.probe(0);
        while empty != 0 {
            let slot = lowest(&mut empty);
            let taken = self.references[slot].compare_exchange(0, reference.0, AcqRel, Relaxed);
            if taken.is_ok() {
                let (word, shift) = place(slot);
                self.words[word].fetch_or(u64::from(tag) << shift, Release);
                return true;
            }
        }
        false
    }

    /// Empties a slot if it still holds `reference`. Acquires even if not: when a move took it away, the copy must be seen.
    pub(crate) fn clear(&self, slot: usize, reference: Reference) -> bool {
        if self.references[slot].compare_exchange(reference.0, Reference::BUSY.0, AcqRel, Acquire).is_err() {
            return false;
        }
        let (word, shift) = place(slot);
        self.words[word].fetch_and(!(0xff << shift), Release);
        self.references[slot].store(Reference::EMPTY.0, Release);
        true
    }

    /// Puts another entry of the same flow, hence the same tag, in `old`'s place.
    pub(crate) fn replace(&self, slot: usize, old: Reference, new: Reference) -> bool {
        self.references[slot].compare_exchange(old.0, new.0, AcqRel, Acquire).is_ok()
    }

    fn pass_on(&self, level: u32) {
        self.words[1].fetch_or(1 << (HEADER_AT + level), Release);
    }

    fn wipe(&self) {
        for word in &self.words {
            word.store(0, Relaxed);
        }
        for reference in &self.references {
            reference.store(0, Relaxed);
        }
    }
}

/// Takes the lowest set bit out of a mask of slots.
#[inline]
pub(crate) fn lowest(mask: &mut u32) -> usize {
    let slot = (mask.trailing_zeros() as usize).min(SLOTS - 1);
    *mask &= *mask - 1;
    slot
}

/// Word and shift of a slot's tag.
fn place(slot: usize) -> (usize, usize) {
    (slot / 8, slot % 8 * 8)
}

/// A slot that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot<'a> {
    pub(crate) bucket: &'a Bucket,
    pub(crate) slot: usize,
    pub(crate) reference: Reference,
}

/// The index of a table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Index<'a> {
    pub(crate) buckets: &'a [Bucket],
    pub(crate) levels: &'a AtomicU32,
}

impl<'a> Index<'a> {
    #[inline]
    pub(crate) fn levels(&self) -> Levels {
        Levels(self.levels.load(Acquire))
    }

    /// The first bucket a search of `hash` looks at.
    #[inline]
    pub(crate) fn home(&self, hash: u64) -> Option<&'a Bucket> {
        self.buckets.get(bucket_at(hash, 0, self.levels().target()))
    }

    /// What the slots of the first bucket whose tag fits refer to, each shown to `fetch`: the first of them, which nearly always
    /// is the flow's. When there is none, the bucket a search would look at next is shown to `ahead`.
    #[inline]
    pub(crate) fn near(&self, hash: u64, fetch: impl Fn(Reference), ahead: impl Fn(&Bucket)) -> Reference {
        let level = self.levels().target();
        let Some(bucket) = self.buckets.get(bucket_at(hash, 0, level)) else { return Reference::EMPTY };
        let (mut mask, header) = bucket.probe(tag(hash));
        if mask == 0 {
            if header & 1 << level != 0
                && let Some(next) = self.buckets.get(bucket_at(hash, 1, level))
            {
                ahead(next);
            }
            return Reference::EMPTY;
        }
        let first = bucket.reference(lowest(&mut mask));
        fetch(first);
        while mask != 0 {
            fetch(bucket.reference(lowest(&mut mask)));
        }
        first
    }

    /// Shows every entry whose tag fits to `visit` until it answers.
    #[inline]
    pub(crate) fn search<R>(&self, hash: u64, mut visit: impl FnMut(Slot<'a>) -> Option<R>) -> Option<R> {
        let levels = self.levels();
        let level = levels.target();
        let bucket = self.buckets.get(bucket_at(hash, 0, level))?;
        let (found, header) = bucket.search(tag(hash), &mut visit);
        // Nearly every search ends in its first bucket.
        if found.is_some() || header & 1 << level == 0 && !levels.is_growing() {
            return found;
        }
        self.search_on(hash, levels, header, &mut visit)
    }

    /// Searches where the first bucket, which has this header, did not answer.
    #[cold]
    fn search_on<R>(
        &self,
        hash: u64,
        levels: Levels,
        header: u32,
        visit: &mut impl FnMut(Slot<'a>) -> Option<R>,
    ) -> Option<R> {
        let level = levels.target();
        if header & 1 << level != 0 {
            let found = self.search_level(hash, level, 1, visit);
            if found.is_some() {
                return found;
            }
        }
        if !levels.is_growing() {
            return None;
        }
        self.search_level(hash, level - 1, 0, visit).or_else(|| self.search_level(hash, level, 0, visit))
    }

    /// Searches the buckets of a level from the `first`th of the sequence on.
    fn search_level<R>(
        &self,
        hash: u64,
        level: u32,
        first: u32,
        visit: &mut impl FnMut(Slot<'a>) -> Option<R>,
    ) -> Option<R> {
        for turn in first..reach(level) {
            let bucket = self.buckets.get(bucket_at(hash, turn, level))?;
            let (found, header) = bucket.search(tag(hash), visit);
            if found.is_some() || header & 1 << level == 0 {
                return found;
            }
        }
        None
    }

    /// Puts a reference at `level`. `false`: all buckets of its sequence are full.
    pub(crate) fn put(&self, hash: u64, reference: Reference, level: u32) -> bool {
        for turn in 0..reach(level) {
            let Some(bucket) = self.buckets.get(bucket_at(hash, turn, level)) else { return false };
            if bucket.claim(tag(hash), reference) {
                return true;
            }
            bucket.pass_on(level);
        }
        false
    }

    /// Removes a reference wherever it is; a move of it that is under way gives its copy up by itself.
    pub(crate) fn remove(&self, hash: u64, reference: Reference) -> bool {
        let mut removed = false;
        self.search(hash, |found| {
            removed |= found.reference == reference && found.bucket.clear(found.slot, reference);
            None::<()>
        });
        removed
    }

    /// Brings the flows of an old bucket to where searches at `level` alone find them. `hash_of` tells a reference's hash.
    /// Returns how many moved, or `None` when one found no room; calling again is harmless.
    pub(crate) fn migrate(
        &self,
        number: usize,
        level: u32,
        mut hash_of: impl FnMut(Reference) -> Option<u64>,
    ) -> Option<u64> {
        let bucket = self.buckets.get(number)?;
        let mut moved = 0;
        for slot in 0..SLOTS {
            // Again while replies are replaced in place under our hands.
            loop {
                let reference = bucket.reference(slot);
                if reference == Reference::EMPTY || reference == Reference::BUSY {
                    break;
                }
                let Some(hash) = hash_of(reference) else { break };
                if self.reaches(hash, number, level) {
                    break;
                }
                if !self.put(hash, reference, level) {
                    return None;
                }
                if bucket.clear(slot, reference) {
                    moved += 1;
                    break;
                }
                // Removed or replaced meanwhile: the copy must not outlive it.
                self.remove(hash, reference);
            }
        }
        Some(moved)
    }

    /// Whether a sequence at `level` contains this bucket; if so, the buckets before it are told to pass searches on.
    fn reaches(&self, hash: u64, number: usize, level: u32) -> bool {
        let Some(turn) = (0..reach(level)).find(|turn| bucket_at(hash, *turn, level) == number) else {
            return false;
        };
        for before in 0..turn {
            if let Some(bucket) = self.buckets.get(bucket_at(hash, before, level)) {
                bucket.pass_on(level);
            }
        }
        true
    }

    pub(crate) fn taken(&self) -> usize {
        let extent = 1_usize << self.levels().target();
        let taken =
            |bucket: &Bucket| (0..SLOTS).filter(|slot| bucket.reference(*slot) != Reference::EMPTY).count();
        self.buckets.iter().take(extent).map(taken).sum()
    }

    /// Empties the index. Only for a table that nobody else uses yet.
    pub(crate) fn wipe(&self) {
        let extent = 1_usize << self.levels().target();
        self.buckets.iter().take(extent).for_each(Bucket::wipe);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bigger_level_adds_one_bit_to_every_step() {
        for hash in [0x0123_4567_89ab_cdef, u64::MAX, 0x8000_0001_0000_0007] {
            for turn in 0..REACH {
                let (small, big) = (bucket_at(hash, turn, 5), bucket_at(hash, turn, 6));
                assert!(big == small || big == small + 32);
            }
        }
    }

    fn index(buckets: &[Bucket], levels: &AtomicU32, work: impl FnOnce(Index<'_>)) {
        work(Index { buckets, levels });
    }

    #[test]
    fn a_full_bucket_passes_on_and_a_full_sequence_refuses() {
        let buckets: Vec<Bucket> = (0..16).map(|_| Bucket::default()).collect();
        let levels = AtomicU32::new(Levels::stable(4).0);
        index(&buckets, &levels, |index| {
            let hash = 0x4200_0000_0000_0003;
            for n in 1..=96 {
                assert!(index.put(hash, Reference(n), 4));
            }
            assert!(!index.put(hash, Reference(97), 4), "eight buckets of twelve hold 96");
            let mut seen = Vec::new();
            index.search(hash, |found| {
                seen.push(found.reference.0);
                None::<()>
            });
            seen.sort_unstable();
            assert_eq!(seen, (1..=96).collect::<Vec<_>>());
            assert!(index.remove(hash, Reference(50)));
            assert!(!index.remove(hash, Reference(50)));
            assert!(index.put(hash, Reference(97), 4));
        });
    }

    #[test]
    fn migration_leaves_everything_findable_at_the_new_level() {
        let buckets: Vec<Bucket> = (0..16).map(|_| Bucket::default()).collect();
        let levels = AtomicU32::new(Levels::stable(3).0);
        index(&buckets, &levels, |index| {
            let hash_of = |r: Reference| u64::from(r.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1 << 56;
            for n in 1..=80 {
                assert!(index.put(hash_of(Reference(n)), Reference(n), 3));
            }
            levels.store(Levels::growing_to(4).0, Release);
            let find =
                |n: u32| index.search(hash_of(Reference(n)), |found| (found.reference.0 == n).then_some(()));
            let mut moved = 0;
            for number in 0..8 {
                moved += index.migrate(number, 4, |r| Some(hash_of(r))).expect("room");
                assert!((1..=80).all(|n| find(n).is_some()), "after bucket {number}");
            }
            levels.store(Levels::stable(4).0, Release);
            assert!((1..=80).all(|n| find(n).is_some()));
            assert!(moved > 0);
            assert_eq!(index.taken(), 80, "no copy is left behind");
        });
    }
}
