//! rr, round-robin: the next usable destination after the last chosen one.

use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, State};
use crate::tree::Tree;

/// Exported state: the last chosen destination, none when the next walk starts at the head of the list.
#[derive(Debug, Default)]
pub(crate) struct RoundRobin {
    /// The last chosen destination; `None` is the list's head. Adding a destination does not move it.
    last: Option<Slot>,
    /// 1 at the position of every usable destination.
    usable: Tree<u32>,
}

impl RoundRobin {
    fn refresh(&mut self, pool: &Pool, slot: Slot) {
        if let Some(position) = pool.position(slot) {
            self.usable.set(position, usable(pool, Some(slot)));
        }
    }
}

fn usable(pool: &Pool, slot: Option<Slot>) -> u32 {
    let destination = slot.and_then(|slot| pool.get(slot));
    u32::from(destination.is_some_and(Destination::usable))
}

impl Scheduler for RoundRobin {
    #[inline]
    fn choose(&mut self, pool: &Pool, _request: &Request) -> Option<Slot> {
        let after = self.last.and_then(|last| pool.position(last)).unwrap_or(usize::MAX);
        let next = self.usable.last_below(after, |any| any > 0);
        let position = next.or_else(|| self.usable.last_below(usize::MAX, |any| any > 0))?;
        self.last = pool.at(position);
        self.last
    }

    fn attached(&mut self, pool: &Pool) {
        self.last = None;
        self.renumbered(pool);
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn removed(&mut self, _pool: &Pool, gone: &Removed) {
        self.usable.set(gone.position, 0);
        if self.last == Some(gone.slot) {
            self.last = gone.previous;
        }
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.refresh(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.usable = Tree::new((0..pool.positions()).map(|position| usable(pool, pool.at(position))));
    }

    fn export(&self, pool: &Pool) -> State {
        let last = self.last.and_then(|slot| pool.get(slot));
        State { numbers: Vec::new(), destinations: last.map(|last| last.address).into_iter().collect() }
    }

    fn import(&mut self, pool: &Pool, state: &State) {
        self.last = state.destinations.first().and_then(|&address| pool.find(address));
    }
}
