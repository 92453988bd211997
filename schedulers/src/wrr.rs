//! wrr, weighted round-robin: interleaved by a current weight that sinks from the greatest to the least.
//!
//! One round walks the list once for each current weight, from the greatest weight down in steps of the weights' greatest
//! common divisor, and takes every destination that weighs at least the current weight.

use crate::pool::{Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, State};
use crate::tree::{Summary, Tree};

/// Weights of a stretch of the list, overloaded destinations included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Weights {
    greatest: u32,
    /// Of those that are not 0; 0 when all are.
    divisor: u32,
}

impl Summary for Weights {
    const EMPTY: Self = Weights { greatest: 0, divisor: 0 };

    fn merge(self, other: Self) -> Self {
        Weights {
            greatest: self.greatest.max(other.greatest),
            divisor: greatest_common_divisor(self.divisor, other.divisor),
        }
    }
}

fn greatest_common_divisor(mut a: u32, mut b: u32) -> u32 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}

/// Exported state: the current weight; the last chosen destination, none when the next walk starts at the head.
#[derive(Debug, Default)]
pub(crate) struct WeightedRoundRobin {
    /// The last chosen destination; `None` is the list's head.
    last: Option<Slot>,
    /// What a destination must weigh to be taken now. One more than a multiple of the step; 0 only when no weight is
    /// above 0.
    current: u32,
    /// The greatest value of `current`; 0 when no weight is above 0.
    highest: u32,
    /// How much `current` sinks at the end of the list.
    step: u32,
    weights: Tree<Weights>,
    /// The weights of usable destinations.
    usable: Tree<u32>,
}

impl WeightedRoundRobin {
    /// IPVS begins the walk anew after every change of a destination, with the current weight fitted in.
    fn restart(&mut self) {
        let Weights { greatest, divisor } = self.weights.all();
        self.last = None;
        self.step = divisor.max(1);
        self.highest = greatest.saturating_sub(self.step - 1);
        if self.current > self.highest || self.current == 0 {
            self.current = self.highest;
        } else if self.step > 1 {
            self.current = self.current / self.step * self.step + 1;
        }
    }

    fn refresh(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.weights.set(position, weights(pool, Some(slot)));
            self.usable.set(position, usable(pool, Some(slot)));
        }
        self.restart();
    }

    /// The value of `current` at which the walk that begins at the head now will find something, given that the heaviest
    /// usable destination weighs `heaviest`. The kernel walks the list once for each value in between.
    fn sink(&self, heaviest: u32) -> u32 {
        let next = if self.current > self.step { self.current - self.step } else { self.highest };
        next - next.saturating_sub(heaviest).div_ceil(self.step) * self.step
    }

    /// What the kernel's walk leaves behind when it finds nothing: it stands at the head, ready for a new round, unless it
    /// was in the last pass of a round; then it went all the way round to where it was.
    fn give_up(&mut self) {
        if self.last.is_none() || self.current > self.step {
            self.last = None;
            self.current = self.highest;
        }
    }
}

fn weight(pool: &Pool, slot: Option<Slot>, only_usable: bool) -> u32 {
    let destination = slot.and_then(|slot| pool.get(slot));
    let counted = destination.filter(|destination| destination.usable() || !only_usable);
    counted.map_or(0, |destination| destination.weight)
}

fn weights(pool: &Pool, slot: Option<Slot>) -> Weights {
    let weight = weight(pool, slot, false);
    Weights { greatest: weight, divisor: weight }
}

fn usable(pool: &Pool, slot: Option<Slot>) -> u32 {
    weight(pool, slot, true)
}

impl Scheduler for WeightedRoundRobin {
    #[inline]
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        if self.highest == 0 {
            return None;
        }
        let after = self.last.and_then(|last| pool.position(last)).unwrap_or(usize::MAX);
        let mut found = self.usable.last_below(after, |heaviest| heaviest >= self.current);
        if found.is_none() {
            let heaviest = self.usable.all();
            if heaviest == 0 {
                self.give_up();
                return None;
            }
            self.current = self.sink(heaviest);
            found = self.usable.last_below(usize::MAX, |heaviest| heaviest >= self.current);
        }
        self.last = pool.at(found?);
        self.last
    }

    fn attached(&mut self, pool: &Pool) {
        self.current = 0;
        self.renumbered(pool);
        self.restart();
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn removed(&mut self, _pool: &Pool, gone: &Removed) {
        self.weights.set(gone.position, Weights::EMPTY);
        self.usable.set(gone.position, 0);
        self.restart();
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.usable.set(position, usable(pool, Some(slot)));
        }
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.weights = Tree::new((0..pool.positions()).map(|position| weights(pool, pool.at(position))));
        self.usable = Tree::new((0..pool.positions()).map(|position| usable(pool, pool.at(position))));
    }

    fn export(&self, pool: &Pool) -> State {
        let last = self.last.and_then(|slot| pool.get(slot));
        State {
            numbers: vec![u64::from(self.current)],
            destinations: last.map(|last| last.address).into_iter().collect(),
        }
    }

    fn import(&mut self, pool: &Pool, state: &State) {
        let current = state.numbers.first().and_then(|&number| u32::try_from(number).ok());
        self.current = current.unwrap_or(self.highest);
        self.restart();
        self.last = state.destinations.first().and_then(|&address| pool.find(address));
    }
}
