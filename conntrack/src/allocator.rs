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
    /// Entries given up by handles that went or went to sleep, with the epoch from which they are free.
    orphans: SegQueue<(u64, Vec<ConnId>)>,
}

impl Exchange {
    /// Free entries to hand out, in a table that is not in use yet.
    pub(crate) fn offer(&self, class: Class, run: Vec<ConnId>) {
        self.surplus[class as usize].push(run);
    }
}

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

    #[cold]
    fn refill(&mut self, class: Class, header: &Header, exchange: &Exchange, epochs: &Epochs) {
        let at = class as usize;
        if let Some(run) = exchange.surplus[at].pop() {
            self.free[at].extend(run);
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
        self.adopt(exchange, epochs);
        self.reclaim(exchange, epochs);
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

    /// Takes over what handles left behind, as far as it is free.
    fn adopt(&mut self, exchange: &Exchange, epochs: &Epochs) {
        let oldest = epochs.oldest();
        let mut later = Vec::new();
        while let Some((epoch, ids)) = exchange.orphans.pop() {
            if epoch > oldest {
                later.push((epoch, ids));
                continue;
            }
            for id in ids {
                self.free[id.class() as usize].push(id);
            }
        }
        for orphan in later {
            exchange.orphans.push(orphan);
        }
        self.share(exchange);
    }

    /// The handle will not be back soon: others look after what it gave up.
    pub(crate) fn hand_over(&mut self, exchange: &Exchange, epochs: &Epochs) {
        self.end_period(epochs);
        while let Some((epoch, count)) = self.periods.pop_front() {
            let ids = self.limbo.drain(..count.min(self.limbo.len())).collect();
            exchange.orphans.push((epoch, ids));
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
