//! What a packet does to its connection's state.

use crate::Timeouts;
use crate::connection::{ConnId, Entry};
use crate::flow::Direction;
use crate::handle::Handle;
use crate::meta::{Meta, Phase, flags};
use crate::protocol::{TEMPLATE_ASSURED, tcp, udp};
use crate::storage::Storage;
use crate::sync::Relaxed;
use crate::time::Tick;

/// How a transition changed what its destination counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Load {
    /// Not at all.
    Same,
    /// From its inactive to its active connections.
    BecameActive,
    /// From its active to its inactive connections.
    BecameInactive,
}

/// What a packet did to its connection's state. Of several workers with packets of one connection each change is
/// reported to exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transition {
    /// State before, by the protocol's number for it.
    pub from: u8,
    /// State after.
    pub to: u8,
    /// What the destination's counters have to follow.
    pub load: Load,
}

impl<S: Storage> Handle<S> {
    /// A TCP segment passed: next state, its timeout, the destination's counters, the template's assurance, as IPVS does it.
    /// Writes nothing when nothing changes. A connection that has ended stays as it is.
    #[inline]
    pub fn tcp(
        &self,
        id: ConnId,
        direction: Direction,
        event: Option<tcp::Event>,
        mode: tcp::Mode,
        timeouts: &Timeouts,
        now: Tick,
    ) -> Transition {
        let step = |meta: Meta| {
            let one_way = meta.has(flags::NO_OUTPUT);
            let (view, meta) = match direction {
                Direction::In if one_way => (tcp::View::InOnly, meta),
                Direction::In => (tcp::View::In, meta),
                // A reply was seen: from now on both ways count.
                Direction::Out => (tcp::View::Out, meta.without(flags::NO_OUTPUT)),
            };
            let from = tcp::State::from_raw(meta.state()).unwrap_or(tcp::State::None);
            let to = tcp::next(mode, view, event, from);
            let next = meta.with_state(to as u8).with_timeout(timeouts.tcp(to));
            match (to != from, to.is_active()) {
                (false, _) => next,
                (true, true) => next.without(flags::INACTIVE),
                (true, false) => next.with(flags::INACTIVE),
            }
        };
        let transition = self.change(id, now, step);
        let established = tcp::State::Established as u8;
        if transition.to == established && transition.from != established {
            self.assure_template(id);
        }
        transition
    }

    /// A UDP datagram passed: the timeout, and the template's assurance when it is a reply.
    #[inline]
    pub fn udp(&self, id: ConnId, direction: Direction, timeouts: &Timeouts, now: Tick) -> Transition {
        let step = |meta: Meta| meta.with_state(udp::NORMAL).with_timeout(timeouts.udp());
        let transition = self.change(id, now, step);
        if direction == Direction::Out {
            self.assure_template(id);
        }
        transition
    }

    /// Gives a connection another timeout from `now` on: a template used for a new child, say.
    pub fn restart_timeout(&self, id: ConnId, seconds: u32, now: Tick) {
        self.change(id, now, |meta| meta.with_timeout(seconds));
        if let Some(entry) = self.table.entry(id) {
            entry.head().seen.store(now.0, Relaxed);
        }
    }

    #[inline]
    fn change(&self, id: ConnId, now: Tick, step: impl Fn(Meta) -> Meta) -> Transition {
        let Some(entry) = self.table.entry(id) else {
            return Transition { from: 0, to: 0, load: Load::Same };
        };
        let mut meta = entry.meta();
        loop {
            let next = if meta.phase() == Phase::Live { step(meta) } else { meta };
            if next == meta || entry.swap_meta(meta, next) {
                if next.timeout() < meta.timeout() {
                    self.table.dues.lower(id, now.plus_seconds(next.timeout()));
                }
                return Transition { from: meta.state(), to: next.state(), load: load(meta, next) };
            }
            meta = entry.meta();
        }
    }

    #[cold]
    fn assure(&self, entry: Entry<'_>) {
        loop {
            let meta = entry.meta();
            let assured = meta.with_state(TEMPLATE_ASSURED);
            if meta.phase() != Phase::Live || assured == meta || entry.swap_meta(meta, assured) {
                return;
            }
        }
    }

    #[inline]
    fn assure_template(&self, id: ConnId) {
        let Some(template) = self.connection(id).and_then(|connection| connection.template()) else { return };
        let Some(entry) = self.table.entry(template) else { return };
        let meta = entry.meta();
        if meta.has(flags::TEMPLATE) && meta.state() != TEMPLATE_ASSURED {
            self.assure(entry);
        }
    }
}

#[inline]
fn load(before: Meta, after: Meta) -> Load {
    match (before.has(flags::INACTIVE), after.has(flags::INACTIVE)) {
        (true, false) => Load::BecameActive,
        (false, true) => Load::BecameInactive,
        _ => Load::Same,
    }
}
