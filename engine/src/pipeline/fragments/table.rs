//! What the first fragments of datagrams said, for the later ones, which have no ports.

use arrayvec::ArrayVec;
use foldhash::quality::RandomState;
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use uvs_conntrack::{Flow, Tick};

/// Buckets of the table. A power of two.
const BUCKETS: usize = 1024;
/// Datagrams a bucket remembers: 4,096 in all. One more makes it forget the oldest.
const PER_BUCKET: usize = 4;
/// Stretches of a datagram that may have gaps between them.
const MAX_RUNS: usize = 16;
/// How long a datagram is remembered that is not complete: as long as its receiver waits for the rest (`ipfrag_time`).
const LIFETIME_SECONDS: u32 = 30;

/// What the fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    /// Addresses and protocol; no ports.
    pub(crate) flow: Flow,
    /// Identification.
    pub(crate) id: u32,
}

/// Where in its datagram's payload a fragment's lies, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) start: u16,
    pub(crate) end: u16,
    /// Whether others follow behind it.
    pub(crate) more: bool,
}

/// What became of a datagram's first fragment, and becomes of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It went the way of its connection, with the ports that it had, as they lay in memory, another identification where
    /// the method gives one, and so many bytes more than it had.
    Ours { ports: u32, id: Option<u32>, shift: usize },
    /// The host's own stack got it.
    Kernel,
    /// It was dropped.
    Refused,
}

/// What is to be done with a fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    /// The same as with the first one; or it is the first one.
    Go(Fate),
    /// The first one's fate is open.
    Open,
    /// It contradicts those seen before it, or brings the same again.
    Overlap,
}

/// The datagrams of which fragments are on their way: shared by all workers, since nothing says that one gets them all.
#[derive(Debug)]
pub(crate) struct Fragments {
    buckets: Box<[Mutex<Vec<Datagram>>]>,
    hasher: RandomState,
    /// The next identification given.
    next: AtomicU32,
}

#[derive(Debug)]
struct Datagram {
    key: Key,
    fate: Option<Fate>,
    /// What was forwarded of it, in order and apart from each other.
    runs: ArrayVec<(u16, u16), MAX_RUNS>,
    /// Its length, once the last fragment was seen.
    length: Option<u16>,
    since: Tick,
    /// Whether a worker keeps fragments of it.
    awaited: bool,
}

impl Default for Fragments {
    #[expect(clippy::cast_possible_truncation, reason = "half of the hash will do")]
    fn default() -> Self {
        let buckets = (0..BUCKETS).map(|_| Mutex::default()).collect();
        let hasher = RandomState::default();
        let next = AtomicU32::new(hasher.hash_one(0_u64) as u32);
        Fragments { buckets, hasher, next }
    }
}

impl Fragments {
    /// What is to be done with the fragment. Leaves no trace but that the datagram is known: a fragment that has to wait is
    /// seen again. The number of datagrams that had to be forgotten for it.
    pub(crate) fn saw(&self, key: &Key, piece: &Piece, now: Tick) -> (Seen, u64) {
        let mut bucket = self.bucket(key);
        bucket.retain(|datagram| now.since(datagram.since.plus_seconds(LIFETIME_SECONDS)) < 0);
        let mut forgotten = 0;
        let at = bucket.iter().position(|datagram| datagram.key == *key).unwrap_or_else(|| {
            if bucket.len() >= PER_BUCKET {
                // They lie in the order in which they came.
                bucket.remove(0);
                forgotten = 1;
            }
            bucket.push(Datagram::new(*key, now));
            bucket.len() - 1
        });
        (bucket[at].saw(piece), forgotten)
    }

    /// The fragment went on its way. A datagram of which all did is forgotten.
    pub(crate) fn passed(&self, key: &Key, piece: &Piece) {
        let mut bucket = self.bucket(key);
        let Some(at) = bucket.iter().position(|datagram| datagram.key == *key) else { return };
        if bucket[at].passed(piece) {
            bucket.remove(at);
        }
    }

    /// The first fragment's fate is known. Whether some worker keeps others of the datagram.
    pub(crate) fn settle(&self, key: &Key, fate: Fate) -> bool {
        let mut bucket = self.bucket(key);
        let Some(datagram) = bucket.iter_mut().find(|datagram| datagram.key == *key) else { return false };
        datagram.fate = Some(fate);
        std::mem::take(&mut datagram.awaited)
    }

    /// An identification that no other datagram got lately.
    pub(crate) fn another_id(&self) -> u32 {
        self.next.fetch_add(1, Relaxed)
    }

    #[expect(clippy::cast_possible_truncation, reason = "the bucket is chosen by the hash's last bits")]
    fn bucket(&self, key: &Key) -> MutexGuard<'_, Vec<Datagram>> {
        let at = self.hasher.hash_one(key) as usize % BUCKETS;
        self.buckets[at].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Datagram {
    fn new(key: Key, now: Tick) -> Self {
        Datagram { key, fate: None, runs: ArrayVec::new(), length: None, since: now, awaited: false }
    }

    fn saw(&mut self, piece: &Piece) -> Seen {
        if self.runs.iter().any(|run| run.0 <= piece.start && piece.end <= run.1) {
            return Seen::Overlap; // the same again: harmless, and of no use
        }
        if self.contradicts(piece) {
            self.fate = Some(Fate::Refused);
            return Seen::Overlap;
        }
        match self.fate {
            Some(fate) => Seen::Go(fate),
            None => {
                self.awaited |= piece.start > 0;
                Seen::Open
            }
        }
    }

    /// Whether the piece and what was forwarded cannot be of one datagram (RFC 5722, RFC 8200 §4.5).
    fn contradicts(&self, piece: &Piece) -> bool {
        let overlaps = self.runs.iter().any(|run| piece.start < run.1 && run.0 < piece.end);
        let end = self.runs.last().map_or(0, |run| run.1);
        overlaps
            || match self.length {
                Some(length) => piece.end >= length || !piece.more,
                None => !piece.more && end > piece.end,
            }
    }

    /// Whether all was forwarded now.
    fn passed(&mut self, piece: &Piece) -> bool {
        if !piece.more {
            self.length = Some(piece.end);
        }
        let at = self.runs.partition_point(|run| run.1 < piece.start);
        let touching = self.runs[at..].iter().take_while(|run| run.0 <= piece.end).count();
        let mut run = (piece.start, piece.end);
        for old in self.runs.drain(at..at + touching) {
            run = (run.0.min(old.0), run.1.max(old.1));
        }
        if self.runs.try_insert(at, run).is_err() {
            self.fate = Some(Fate::Refused);
        }
        self.length.is_some_and(|length| self.runs[..] == [(0, length)])
    }
}

#[cfg(test)]
mod tests;
