//! Who may use which entry: each handle has free entries of its own, taken in runs of neighbours so that workers do not share
//! cache lines, and what a handle has too much of flows to the others.

use crate::connection::{Class, ConnId};
use crate::epoch::Epochs;
use crate::layout::{CHUNK, Header};
use crate::sync::{AcqRel, Relaxed};
use crossbeam_queue::SegQueue;
use std::collections::VecDeque;

/// What handles give to each other.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    /// Runs of free entries, by class.
    surplus: [SegQueue<Vec<ConnId>>; 2],
    /// Entries given up by handles that went or went to sleep, a few at a time, with the epoch from which they are free.
    orphans: SegQueue<(u64, Vec<ConnId>)>,
}

impl Exchange {
    /// Free entries to hand out, in a table that is not in use yet.
    pub(crate) fn offer(&self, class: Class, run: Vec<ConnId>) {
        self.surplus[class as usize].push(run);
    }
}

/// Orphaned lots that a handle in need of entries looks at before it takes fresh ones: a few, because a packet waits.
const ADOPTED: usize = 8;

/// Entries per run: small in small tables, so that one handle does not take all there is.
fn run_length(capacity: u32) -> u32 {
    (capacity / 64).clamp(1, CHUNK)
}

/// Where a run of fresh entries that begins at `start` ends: with its chunk at the latest, so that later runs are whole.
fn run_end(start: u32, capacity: u32) -> u32 {
    let chunk_end = (start / CHUNK + 1) * CHUNK;
    (start + run_length(capacity)).min(chunk_end).min(capacity + 1)
}

/// One handle's entries.
#[derive(Debug)]
pub(crate) struct Allocator {
    free: [Vec<ConnId>; 2],
    /// Given up by this handle, oldest first, waiting for the other handles to let go.
    limbo: VecDeque<ConnId>,
    /// How many of `limbo`, from the front, are free at which epoch.
    periods: VecDeque<(u64, usize)>,
    /// How many at the end of `limbo` belong to no period yet.
    open: usize,
    /// Entries per class in the whole table.
    capacity: [u32; 2],
}

impl Allocator {
    pub(crate) fn new(capacity: [u32; 2]) -> Self {
        Allocator {
            free: [Vec::new(), Vec::new()],
            limbo: VecDeque::new(),
            periods: VecDeque::new(),
            open: 0,
            capacity,
        }
    }

    /// A free entry. `None`: every one is in use, or on its way to another handle.
    pub(crate) fn take(
        &mut self,
        class: Class,
        header: &Header,
        exchange: &Exchange,
        epochs: &Epochs,
    ) -> Option<ConnId> {
        if let id @ Some(_) = self.free[class as usize].pop() {
            return id;
        }
        self.refill(class, header, exchange, epochs);
        self.free[class as usize].pop()
    }

    /// The entry that the `ahead`th next call of [`Allocator::take`] gives, as far as that is known.
    pub(crate) fn coming(&self, class: Class, ahead: usize) -> Option<ConnId> {
        let free = &self.free[class as usize];
        free.get(free.len().checked_sub(ahead)?).copied()
    }

    #[cold]
    fn refill(&mut self, class: Class, header: &Header, exchange: &Exchange, epochs: &Epochs) {
        let at = class as usize;
        if let Some(run) = exchange.surplus[at].pop() {
            self.free[at].extend(run);
            return;
        }
        // What was in use before comes before what never was: memory follows the connections there are, not those ever made.
        self.adopt(exchange, epochs);
        if !self.free[at].is_empty() {
            return;
        }
        let capacity = self.capacity[at];
        let claimed = header.fresh[at]
            .fetch_update(AcqRel, Relaxed, |fresh| (fresh <= capacity).then(|| run_end(fresh, capacity)));
        if let Ok(start) = claimed {
            let run = start..run_end(start, capacity);
            self.free[at].extend(run.rev().map(|number| ConnId::new(class, number)));
            return;
        }
        self.reclaim(exchange, epochs);
        while self.free[at].is_empty() && self.adopt(exchange, epochs) {}
    }

    /// An entry nobody finds any more. It is free when every handle has passed a quiescent point.
    pub(crate) fn give_up(&mut self, id: ConnId) {
        self.limbo.push_back(id);
        self.open += 1;
    }

    /// At a quiescent point, before the handle announces its own.
    pub(crate) fn end_period(&mut self, epochs: &Epochs) {
        if self.open > 0 {
            self.periods.push_back((epochs.advance(), self.open));
            self.open = 0;
        }
    }

    /// Frees what every handle has let go.
    #[inline]
    pub(crate) fn reclaim(&mut self, exchange: &Exchange, epochs: &Epochs) {
        if !self.periods.is_empty() {
            self.reclaim_some(exchange, epochs);
        }
    }

    fn reclaim_some(&mut self, exchange: &Exchange, epochs: &Epochs) {
        let oldest = epochs.oldest();
        while let Some((epoch, count)) = self.periods.front().copied() {
            if epoch > oldest {
                break;
            }
            self.periods.pop_front();
            for id in self.limbo.drain(..count.min(self.limbo.len())) {
                self.free[id.class() as usize].push(id);
            }
        }
        self.share(exchange);
    }

    /// Passes on what is more than this handle will need soon.
    fn share(&mut self, exchange: &Exchange) {
        for (at, free) in self.free.iter_mut().enumerate() {
            let run = run_length(self.capacity[at]) as usize;
            while free.len() > 3 * run {
                exchange.surplus[at].push(free.split_off(free.len() - run));
            }
        }
    }

    /// Takes over some of what handles left behind, up to the first lot that is not free yet. Whether there was any.
    fn adopt(&mut self, exchange: &Exchange, epochs: &Epochs) -> bool {
        let mut adopted = false;
        let mut oldest = None;
        for _ in 0..ADOPTED {
            let Some((epoch, ids)) = exchange.orphans.pop() else { break };
            if epoch > *oldest.get_or_insert_with(|| epochs.oldest()) {
                exchange.orphans.push((epoch, ids));
                break;
            }
            adopted = true;
            for id in ids {
                self.free[id.class() as usize].push(id);
            }
        }
        self.share(exchange);
        adopted
    }

    /// The handle will not be back soon: others look after what it gave up.
    pub(crate) fn hand_over(&mut self, exchange: &Exchange, epochs: &Epochs) {
        self.end_period(epochs);
        while let Some((epoch, count)) = self.periods.pop_front() {
            let mut left = count.min(self.limbo.len());
            while left > 0 {
                let lot = left.min(CHUNK as usize);
                exchange.orphans.push((epoch, self.limbo.drain(..lot).collect()));
                left -= lot;
            }
        }
    }

    /// The handle goes: others get its free entries too.
    pub(crate) fn dissolve(&mut self, exchange: &Exchange, epochs: &Epochs) {
        self.hand_over(exchange, epochs);
        for (at, free) in self.free.iter_mut().enumerate() {
            if !free.is_empty() {
                exchange.surplus[at].push(std::mem::take(free));
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use crate::storage::Storage;
    use crate::sync::Relaxed;
    use crate::{DestinationId, Flow, Limits, NewConnection, Table, Tick};

    fn connection(port: u16) -> NewConnection {
        let (client, service) = (([192, 0, 2, 1], port).into(), ([203, 0, 113, 1], 80).into());
        let server = ([10, 0, 0, 1], 80).into();
        NewConnection::new(Flow::new(client, service, 6), Flow::new(server, client, 6), DestinationId(0))
    }

    /// Memory is used by the connections there are, not by those there ever were.
    #[test]
    fn a_handle_that_sleeps_between_packets_uses_the_same_entries_again() {
        let (turns, connections4) = if cfg!(miri) { (40, 1 << 9) } else { (20_000, 1 << 16) };
        let limits = Limits { connections4, connections6: 64, destinations: 1, first_buckets: 64 };
        let table = Table::on_heap(limits).expect("a small table");
        let mut handle = table.handle().expect("the first handle");
        for turn in 0..turns {
            handle.quiescent();
            let id = handle.insert(&connection(turn), Tick(1)).expect("room").id;
            assert!(handle.remove(id).is_some());
            handle.sleep();
        }
        let fresh = table.storage.header().fresh[0].load(Relaxed);
        assert!(fresh <= 256, "{fresh} entries for one connection at a time");
    }

    #[test]
    fn a_full_table_has_every_entry_that_sleepers_gave_up() {
        let room: u16 = if cfg!(miri) { 100 } else { 2000 };
        let limits =
            Limits { connections4: room.into(), connections6: 64, destinations: 1, first_buckets: 64 };
        let table = Table::on_heap(limits).expect("a small table");
        let mut handle = table.handle().expect("the first handle");
        for round in 0..3 {
            let mut ids = Vec::new();
            for port in 0..room {
                ids.push(handle.insert(&connection(port), Tick(1)).expect("room").id);
                if port % 25 == 0 {
                    handle.quiescent();
                }
            }
            assert!(handle.insert(&connection(room), Tick(1)).is_err(), "round {round}: it is full");
            for id in ids {
                assert!(handle.remove(id).is_some());
            }
            handle.sleep();
            handle.quiescent();
        }
    }
}
