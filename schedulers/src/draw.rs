//! Destinations drawn at random, each as often as it weighs.

use crate::pool::{Destination, Pool, Removed, Slot};
use crate::tree::{Summary, Tree};
use std::hash::{BuildHasher, RandomState};

/// The weights of a stretch's usable destinations together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sum(u64);

impl Summary for Sum {
    const EMPTY: Self = Sum(0);

    #[inline]
    fn merge(self, other: Self) -> Self {
        Sum(self.0 + other.0)
    }
}

/// The weights of a service's usable destinations, and chance.
#[derive(Debug)]
pub(crate) struct Urn {
    weights: Tree<Sum>,
    random: Random,
}

impl Default for Urn {
    fn default() -> Self {
        Urn { weights: Tree::default(), random: Random(RandomState::new().hash_one(0)) }
    }
}

/// SplitMix64: nobody gains by knowing the next choice.
#[derive(Debug)]
struct Random(u64);

impl Random {
    /// 0 to `last`, both included, each as likely.
    fn up_to(&mut self, last: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        u64::try_from((u128::from(mixed) * (u128::from(last) + 1)) >> 64).unwrap_or(last)
    }
}

fn weight(pool: &Pool, slot: Option<Slot>) -> Sum {
    let destination = slot.and_then(|slot| pool.get(slot)).filter(|destination| destination.usable());
    Sum(destination.map_or(0, |destination| u64::from(destination.weight)))
}

impl Urn {
    /// One of the usable destinations, as twos of the kernel draws it: a number from 0 to the sum of all weights, and the walk
    /// stops when that many are used up. So the first one is as likely as if it weighed one more.
    pub(crate) fn draw<'a>(&mut self, pool: &'a Pool) -> Option<(Slot, &'a Destination)> {
        let mut left = self.random.up_to(self.weights.all().0).max(1);
        let position = self.weights.last_after(|Sum(weight)| {
            let here = left <= weight;
            if !here {
                left -= weight;
            }
            here
        })?;
        let slot = pool.at(position)?;
        Some((slot, pool.get(slot)?))
    }

    pub(crate) fn fill(&mut self, pool: &Pool) {
        self.weights = Tree::new((0..pool.positions()).map(|position| weight(pool, pool.at(position))));
    }

    #[inline]
    pub(crate) fn refresh(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.weights.set(position, weight(pool, Some(slot)));
        }
    }

    pub(crate) fn remove(&mut self, gone: &Removed) {
        self.weights.set(gone.position, Sum::EMPTY);
    }
}
