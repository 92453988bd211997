//! Ending connections: by time, or on request.

use crate::connection::{ConnId, Connection};
use crate::due::GROUP;
use crate::flow::Direction;
use crate::handle::Handle;
use crate::index::Reference;
use crate::meta::{Meta, Phase};
use crate::storage::Storage;
use crate::sync::{Acquire, Relaxed, SeqCst, fence};
use crate::time::Tick;
use crate::timeouts::TEMPLATE_REARM_SECONDS;

/// Groups of chunks whose bounds a handle looks at in a row: 8,192 connections.
const GROUPS_PER_TURN: u32 = 16;

/// What expiry found an entry to be.
enum Fate {
    /// Nothing that expires.
    None,
    /// Not before this.
    Later(Tick),
    /// Its time is over, and ending it is up to who asked.
    Ended,
    /// It ended when it was removed; what it controlled has gone now, too.
    Released,
}

impl<S: Storage> Handle<S> {
    /// Ends connections whose time is over at `now`, showing each to `ended` once, and returns how many. Looks closely at about
    /// `budget` chunks of 64 entries and then leaves the rest to the next call, by whichever handle; several may
    /// sweep at once. To be called at least about every ten milliseconds, with a budget of one or two after each batch under
    /// load, until all are swept if connections are to end on time. With a budget of `usize::MAX` it looks at all.
    pub fn sweep(&mut self, now: Tick, budget: usize, mut ended: impl FnMut(&Connection<'_>)) -> usize {
        let mut chunks = 0;
        let mut count = 0;
        let groups = self.table.dues.groups();
        let look_at_all = budget == usize::MAX;
        for turn in 0..groups.min(budget.saturating_mul(GROUPS_PER_TURN as usize)) {
            if chunks >= budget {
                break;
            }
            let group = if look_at_all { turn } else { self.next_group() };
            let mut due = self.table.dues.due_in(group, now);
            while due != 0 {
                let chunk = group * GROUP + due.trailing_zeros() as usize;
                due &= due - 1;
                chunks += 1;
                count += self.sweep_chunk(chunk, now, &mut ended);
            }
        }
        count
    }

    /// The groups of all chunks go round among all handles, a few at a time.
    fn next_group(&mut self) -> usize {
        if self.sweeping.is_empty() {
            let start = self.table.sweep_at.fetch_add(GROUPS_PER_TURN, Relaxed);
            self.sweeping = start..start.saturating_add(GROUPS_PER_TURN);
        }
        let turn = self.sweeping.start;
        self.sweeping.start += 1;
        turn as usize % self.table.dues.groups()
    }

    fn sweep_chunk(&mut self, chunk: usize, now: Tick, ended: &mut impl FnMut(&Connection<'_>)) -> usize {
        if !self.table.dues.take(chunk) {
            return 0;
        }
        let mut next: Option<Tick> = None;
        let mut count = 0;
        for id in self.table.dues.entries(chunk) {
            match self.fate(id, now) {
                Fate::None => {}
                Fate::Later(deadline) => {
                    next = Some(next.filter(|next| next.is_before(deadline)).unwrap_or(deadline));
                }
                Fate::Ended => {
                    count += 1;
                    self.counters().expired.add(1);
                    self.bury(id, &mut *ended);
                }
                Fate::Released => self.release(id),
            }
        }
        if let Some(deadline) = next {
            self.table.dues.lower_chunk(chunk, deadline);
        }
        count
    }

    /// Decides about one entry. A packet that passes while its connection's time is judged over comes too late, as it
    /// would have the tick after.
    fn fate(&self, id: ConnId, now: Tick) -> Fate {
        let Some(connection) = self.table.connection(id) else { return Fate::None };
        let meta = connection.meta();
        if !matches!(meta.phase(), Phase::Live | Phase::Detached) {
            return Fate::None;
        }
        let deadline = connection.seen().plus_seconds(meta.timeout());
        if !deadline.is_before(now) {
            return Fate::Later(deadline);
        }
        let mut last = meta;
        if meta.controls() {
            last = meta.without_controls();
            if !connection.entry.swap_meta(meta, last) {
                return Fate::Later(now);
            }
        }
        if connection.entry.cold().children.load(Acquire) > 0 {
            return self.rearm(&connection, last, now);
        }
        if connection.entry.swap_meta(last, last.with_phase(Phase::Free)) {
            if meta.phase() == Phase::Detached { Fate::Released } else { Fate::Ended }
        } else {
            Fate::Later(now)
        }
    }

    /// What controls connections lives on for a minute at a time.
    fn rearm(&self, connection: &Connection<'_>, last: Meta, now: Tick) -> Fate {
        connection.entry.head().seen.store(now.0, Relaxed);
        let longer = last.with_timeout(TEMPLATE_REARM_SECONDS).with_controls();
        if !connection.entry.swap_meta(last, longer) {
            return Fate::Later(now);
        }
        self.counters().rearmed.add(1);
        Fate::Later(now.plus_seconds(TEMPLATE_REARM_SECONDS))
    }

    /// Ends a connection now. Whoever ends it gets to see it once more, for the accounts: `None` when it had ended already.
    /// A template that controls connections is found no more from now on and goes when the last of them has gone.
    pub fn remove(&mut self, id: ConnId) -> Option<Connection<'_>> {
        let entry = self.table.entry(id)?;
        loop {
            let meta = entry.meta();
            if meta.phase() != Phase::Live {
                return None;
            }
            // The count is raised before the bit is set: without the bit nobody can be attached whom the swap would miss.
            let controls = meta.controls() || entry.cold().children.load(Acquire) > 0;
            let phase = if controls { Phase::Detached } else { Phase::Free };
            if !entry.swap_meta(meta, meta.with_phase(phase)) {
                continue;
            }
            self.counters().removed.add(1);
            if controls {
                self.counters().ended[id.class() as usize].add(1);
                self.unindex(id);
                let seen = Tick(self.table.entry(id)?.head().seen.load(Relaxed));
                self.table.dues.lower(id, seen);
            } else {
                self.bury(id, &mut |_| {});
            }
            return self.table.connection(id);
        }
    }

    /// Takes an ended connection out of the index and gives its entry up.
    fn bury(&mut self, id: ConnId, ended: &mut impl FnMut(&Connection<'_>)) {
        let Some(connection) = self.table.connection(id) else { return };
        ended(&connection);
        self.counters().ended[id.class() as usize].add(1);
        self.unindex(id);
        self.release(id);
    }

    /// Gives the entry of an ended connection up, which nobody finds any more.
    fn release(&mut self, id: ConnId) {
        let Some(entry) = self.table.entry(id) else { return };
        self.detach(ConnId(entry.head().template.load(Relaxed)));
        self.allocator.give_up(id);
    }

    fn unindex(&mut self, id: ConnId) {
        let Some(connection) = self.table.connection(id) else { return };
        let meta = connection.meta();
        if meta.has_replies() {
            // The connection was ended before: whoever is indexing its reply just now sees that, or is seen here.
            fence(SeqCst);
        }
        let mut slots = 0;
        for direction in [Direction::In, Direction::Out] {
            if direction == Direction::Out && !meta.has_replies() {
                continue;
            }
            let hash = self.hash(&connection.entry.flow(direction, meta));
            // A reply flow that a newer connection took over is not there any more.
            slots += i64::from(self.table.index().remove(hash, Reference::new(id, direction)));
        }
        self.count_slots(-slots);
    }
}
