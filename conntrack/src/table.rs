//! The connection table and its making.

use crate::allocator::Exchange;
use crate::connection::{Class, ConnId, Connection, Entry};
use crate::directory::{Directory, Numbers};
use crate::due::Dues;
use crate::epoch::{Epochs, MAX_HANDLES};
use crate::growth::Growth;
use crate::handle::Handle;
use crate::hash::Secret;
use crate::index::{Index, Levels};
use crate::layout::{Geometry, Limits, MAGIC, MAX_CONNECTIONS, VERSION};
use crate::repair;
use crate::stats::TableStats;
use crate::storage::{Heap, Storage, prefetch};
#[cfg(not(loom))]
use crate::storage::{Memfd, MemfdError};
use crate::sync::{AtomicU32, Relaxed, Release};
use crossbeam_utils::CachePadded;
use std::sync::Arc;

/// Why there is no table.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// Limits nobody can keep.
    #[error(
        "a connection table of {0} connections of one family is beyond its limit of {MAX_CONNECTIONS}; lower it"
    )]
    TooLarge(u32),
    /// The kernel has no random numbers for the hash.
    #[error("cannot get random numbers for the connection table's hash: {0}")]
    NoRandomness(getrandom::Error),
    /// Its memory cannot be had, or is not a table's.
    #[cfg(not(loom))]
    #[error(transparent)]
    Memory(#[from] MemfdError),
    /// What the header says contradicts itself.
    #[error("the connection table's header is damaged ({0}); start with a new one")]
    Damaged(&'static str),
}

/// Every handle a table can have is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the connection table serves at most {MAX_HANDLES} threads; run fewer workers")]
pub struct TooManyHandles;

/// A connection table. Threads work on it through a [`Handle`] each.
#[derive(Debug)]
pub struct Table<S: Storage> {
    pub(crate) storage: S,
    pub(crate) secret: Secret,
    pub(crate) limits: Limits,
    pub(crate) epochs: Epochs,
    pub(crate) exchange: Exchange,
    pub(crate) dues: Dues,
    pub(crate) growth: Growth,
    /// The group of chunks expiry looks at next.
    pub(crate) sweep_at: CachePadded<AtomicU32>,
    /// Connections the table held when it was mapped, by class.
    pub(crate) inherited: [u64; 2],
    /// Not zero when there may be connections that have their reply flow for themselves.
    pub(crate) claims: AtomicU32,
    numbers: Numbers,
}

/// The table of a running director: in memory that outlives it.
#[cfg(not(loom))]
pub type SharedTable = Table<Memfd>;

#[cfg(not(loom))]
impl Table<Memfd> {
    /// An empty table in a new `memfd`.
    ///
    /// # Errors
    /// When the limits are out of bounds, or the kernel gives no memory or no randomness.
    pub fn create(limits: Limits) -> Result<Arc<Self>, TableError> {
        Self::create_seeded(limits, random_seed()?)
    }

    /// As [`Table::create`] with a hash seed of the caller's choice, for runs that must repeat exactly.
    ///
    /// # Errors
    /// When the limits are out of bounds, or the kernel gives no memory.
    pub fn create_seeded(limits: Limits, seed: [u64; 4]) -> Result<Arc<Self>, TableError> {
        check(&limits)?;
        Self::format(Memfd::create(Geometry::of(&limits))?, &limits, seed)
    }

    /// Maps the table behind a descriptor. If the process that wrote it last was killed, at whatever instruction, the index
    /// and everything else that can be derived is made anew from the connections. Nobody else may use it at the same time.
    ///
    /// # Errors
    /// When the descriptor holds no table of this version.
    pub fn open(descriptor: std::os::fd::OwnedFd) -> Result<Arc<Self>, TableError> {
        Self::adopt(Memfd::open(descriptor)?)
    }

    /// The descriptor to keep for, or to hand to, the next process.
    pub fn descriptor(&self) -> std::os::fd::BorrowedFd<'_> {
        self.storage.descriptor()
    }
}

impl Table<Heap> {
    /// An empty table in ordinary memory.
    ///
    /// # Errors
    /// When the limits are out of bounds, or the kernel gives no randomness.
    pub fn on_heap(limits: Limits) -> Result<Arc<Self>, TableError> {
        Self::on_heap_seeded(limits, random_seed()?)
    }

    /// As [`Table::on_heap`] with a hash seed of the caller's choice, for runs that must repeat exactly.
    ///
    /// # Errors
    /// When the limits are out of bounds.
    pub fn on_heap_seeded(limits: Limits, seed: [u64; 4]) -> Result<Arc<Self>, TableError> {
        check(&limits)?;
        Self::format(Heap::new(&Geometry::of(&limits)), &limits, seed)
    }
}

fn check(limits: &Limits) -> Result<(), TableError> {
    match limits.connections4.max(limits.connections6) {
        most if most > MAX_CONNECTIONS => Err(TableError::TooLarge(most)),
        _ => Ok(()),
    }
}

fn random_seed() -> Result<[u64; 4], TableError> {
    let word = |_| getrandom::u64().map_err(TableError::NoRandomness);
    let mut seed = [0; 4];
    for (n, to) in seed.iter_mut().enumerate() {
        *to = word(n)?;
    }
    Ok(seed)
}

impl<S: Storage> Table<S> {
    /// Makes untouched memory a table.
    fn format(storage: S, limits: &Limits, seed: [u64; 4]) -> Result<Arc<Self>, TableError> {
        let header = storage.header();
        let first_level = limits.first_level();
        for (to, word) in header.seed.iter().zip(seed) {
            to.store(word, Relaxed);
        }
        header.connections4.store(limits.connections4, Relaxed);
        header.connections6.store(limits.connections6, Relaxed);
        header.destinations.store(limits.destinations, Relaxed);
        header.first_level.store(first_level, Relaxed);
        header.levels.store(Levels::stable(first_level).0, Relaxed);
        for fresh in &header.fresh {
            fresh.store(1, Relaxed);
        }
        header.clean.store(1, Relaxed);
        header.version.store(VERSION, Relaxed);
        header.magic.store(MAGIC, Release);
        Self::adopt(storage)
    }

    /// Takes memory with a table in it into use.
    pub(crate) fn adopt(storage: S) -> Result<Arc<Self>, TableError> {
        let header = storage.header();
        let limits = header.limits();
        let geometry = Geometry::of(&limits);
        let mut table = Table {
            secret: Secret::new(header.seed()),
            limits,
            epochs: Epochs::new(),
            exchange: Exchange::default(),
            dues: Dues::new(&geometry),
            growth: Growth::new(geometry.max_level),
            sweep_at: CachePadded::new(AtomicU32::new(0)),
            inherited: [0; 2],
            claims: AtomicU32::new(0),
            numbers: Numbers::read(storage.records()),
            storage,
        };
        repair::take_over(&mut table)?;
        if table.inherited != [0; 2] {
            table.claims.store(1, Relaxed);
        }
        Ok(Arc::new(table))
    }

    /// A handle for one more thread, awake.
    ///
    /// # Errors
    /// When [`MAX_HANDLES`] are in use.
    pub fn handle(self: &Arc<Self>) -> Result<Handle<S>, TooManyHandles> {
        Handle::new(self.clone())
    }

    /// The destination directory.
    #[must_use]
    pub fn destinations(&self) -> Directory<'_> {
        Directory { records: self.storage.records(), numbers: &self.numbers }
    }

    /// What the table may hold.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// A reading of the counters.
    #[must_use]
    pub fn stats(&self) -> TableStats {
        let levels = self.index().levels();
        let mut stats = TableStats {
            connections4: self.inherited[0],
            connections6: self.inherited[1],
            capacity4: self.limits.connections4.into(),
            capacity6: self.limits.connections6.into(),
            buckets: 1 << levels.target(),
            growing: levels.is_growing(),
            resident_bytes: self.storage.resident_bytes(),
            ..TableStats::default()
        };
        self.epochs.all_counters().for_each(|counters| stats.add(counters));
        stats
    }

    /// Slots of the index that refer to an entry: one per flow that is looked up, when nobody is at work. For checks; reads
    /// the whole index.
    #[must_use]
    pub fn slots_taken(&self) -> usize {
        self.index().taken()
    }

    #[inline]
    pub(crate) fn index(&self) -> Index<'_> {
        Index { buckets: self.storage.buckets(), levels: &self.storage.header().levels }
    }

    #[inline(always)]
    pub(crate) fn entry(&self, id: ConnId) -> Option<Entry<'_>> {
        let number = id.number() as usize;
        match id.class() {
            Class::Narrow => {
                let narrow = self.storage.narrow().get(number)?;
                Some(Entry::Narrow(narrow, self.storage.cold().get(number)?))
            }
            Class::Wide => Some(Entry::Wide(self.storage.wide().get(number)?)),
        }
    }

    /// Fetches what packets of a connection need of its entry.
    #[inline]
    pub(crate) fn prefetch(&self, id: ConnId) {
        let number = id.number() as usize;
        match id.class() {
            Class::Narrow => self.storage.narrow().get(number).into_iter().for_each(prefetch),
            Class::Wide => {
                if let Some(wide) = self.storage.wide().get(number) {
                    prefetch(wide);
                    prefetch(&wide.addresses);
                }
            }
        }
    }

    #[inline]
    pub(crate) fn connection(&self, id: ConnId) -> Option<Connection<'_>> {
        Some(Connection { id, entry: self.entry(id)? })
    }

    /// Numbers of a class ever handed out.
    pub(crate) fn touched(&self, class: Class) -> impl Iterator<Item = ConnId> + use<S> {
        self.touched_from(class, 1)
    }

    /// The same from number `first` on.
    pub(crate) fn touched_from(&self, class: Class, first: u32) -> impl Iterator<Item = ConnId> + use<S> {
        let length = match class {
            Class::Narrow => self.storage.narrow().len(),
            Class::Wide => self.storage.wide().len(),
        };
        let end = self.storage.header().fresh[class as usize].load(Relaxed) as usize;
        let end = u32::try_from(end.min(length)).unwrap_or(u32::MAX);
        (first.max(1)..end).map(move |number| ConnId::new(class, number))
    }
}

impl<S: Storage> Drop for Table<S> {
    fn drop(&mut self) {
        // Handles keep the table: none is left, and the index is whole.
        self.storage.header().clean.store(1, Release);
    }
}
