//! What lc, wlc and their relatives share: the destination with the least of some measure, the first in the list of equals.

use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler};
use crate::tree::{Summary, Tree};
use std::fmt;
use std::marker::PhantomData;

/// Bits of a [`Rank`] that hold the position: enough for twice [`crate::MAX_DESTINATIONS`].
const POSITION_BITS: u32 = 24;
const POSITION_MASK: u128 = (1 << POSITION_BITS) - 1;

/// A measure and a position in one number, which is the less the better: of equal measures, the greater position (the
/// one earlier in the list) makes the lesser rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rank(u128);

impl Rank {
    pub(crate) fn new(measure: u128, position: usize) -> Self {
        Rank(measure << POSITION_BITS | (!(position as u128) & POSITION_MASK))
    }

    #[inline]
    pub(crate) fn position(self) -> usize {
        (!self.0 & POSITION_MASK) as usize
    }
}

impl Summary for Rank {
    const EMPTY: Self = Rank(u128::MAX);

    #[inline]
    fn merge(self, other: Self) -> Self {
        Rank(self.0.min(other.0))
    }
}

/// What is to be least.
pub(crate) trait Measure: Send + fmt::Debug + Default {
    /// Below 2¹⁰³; `None` keeps the destination out. Asked only for usable destinations, so the weight is not 0.
    fn of(destination: &Destination) -> Option<u128>;
}

/// Chooses the destination of the least measure.
#[derive(Debug, Default)]
pub(crate) struct Least<M> {
    ranks: Tree<Rank>,
    measure: PhantomData<M>,
}

impl<M: Measure> Least<M> {
    fn rank(pool: &Pool, slot: Option<Slot>) -> Rank {
        let usable = slot.and_then(|slot| {
            let destination = pool.get(slot).filter(|destination| destination.usable())?;
            Some(Rank::new(M::of(destination)?, pool.position(slot)?))
        });
        usable.unwrap_or(Rank::EMPTY)
    }

    /// The destination of the least measure.
    #[inline]
    pub(crate) fn least(&self, pool: &Pool) -> Option<Slot> {
        let best = self.ranks.all();
        if best == Rank::EMPTY { None } else { pool.at(best.position()) }
    }

    #[inline]
    fn refresh(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.ranks.set(position, Self::rank(pool, Some(slot)));
        }
    }
}

impl<M: Measure> Scheduler for Least<M> {
    #[inline]
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        self.least(pool)
    }

    fn attached(&mut self, pool: &Pool) {
        self.ranks = Tree::new((0..pool.positions()).map(|position| Self::rank(pool, pool.at(position))));
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn removed(&mut self, _pool: &Pool, gone: &Removed) {
        self.ranks.set(gone.position, Rank::EMPTY);
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.attached(pool);
    }
}
