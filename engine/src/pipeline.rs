//! What happens to a batch of frames: parse, track, schedule, forward.
//!
//! The whole is a function of the frames, the tables, the configuration and the time: no I/O, no clock, no system call. A
//! packet of a known connection allocates nothing and takes no lock. The batch goes through in stages, each of which
//! prefetches what the next one reads: the bucket, then the connection.

mod egress;
mod parse;
mod schedule;
mod state;
mod track;

pub(crate) use parse::{Kind, Parsed};

use crate::batch::{BATCH, Packet};
use crate::counters::{Event, WorkerCounters};
use crate::service::Destinations;
use crate::snapshot::Snapshot;
use crate::verdict::{Reason, Verdict};
use crate::worker::Process;
use std::sync::Arc;
use track::Tracker;
use uvs_conntrack::{SharedHandle, Tick};

/// Chunks of connections looked at for expiry between two batches. With a batch every ten milliseconds at least, all that
/// are due are seen in time.
const SWEEP: usize = 2;

/// Ticks between two looks at all connections for expiry, of a worker that falls asleep again and again.
const SWEEP_ALL_TICKS: i32 = 10;

/// What a batch is judged by.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The configuration.
    pub snapshot: &'a Snapshot,
    /// The time.
    pub now: Tick,
}

/// One worker's way of frames to verdicts.
#[derive(Debug)]
pub struct Pipeline {
    tracker: Tracker,
    stage: Vec<Staged>,
    /// When all connections were last looked at for expiry.
    swept: Tick,
}

/// A frame between two stages.
#[derive(Debug)]
enum Staged {
    /// Its connection is to be looked up, by this hash.
    Flow(Parsed, u64),
    /// It is not TCP or UDP, or not ours, or not whole.
    Settled(Verdict),
}

impl Pipeline {
    /// A pipeline on the connection table of `handle`.
    pub fn new(handle: SharedHandle, destinations: Arc<Destinations>, counters: Arc<WorkerCounters>) -> Self {
        let tracker = Tracker::new(handle, destinations, counters);
        Pipeline { tracker, stage: Vec::with_capacity(BATCH), swept: Tick::default() }
    }

    /// This worker's counters.
    pub fn counters(&self) -> &WorkerCounters {
        &self.tracker.counters
    }

    /// Rewrites each packet and writes its verdict to the same place in `verdicts`. Packets beyond the end of `verdicts`
    /// are left alone.
    pub fn process(&mut self, view: &View<'_>, packets: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
        for (packets, verdicts) in packets.chunks_mut(BATCH).zip(verdicts.chunks_mut(BATCH)) {
            self.batch(view, packets, verdicts);
        }
        self.tracker.end();
    }

    fn batch(&mut self, view: &View<'_>, packets: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
        let ports = &view.snapshot.ports;
        self.stage.clear();
        for packet in packets.iter() {
            let port = ports.get(usize::from(packet.port().0));
            self.stage.push(match parse::parse(packet, port) {
                Ok(parsed) => {
                    let hash = self.tracker.hash(&parsed.flow);
                    Staged::Flow(parsed, hash)
                }
                Err(verdict) => Staged::Settled(verdict),
            });
        }
        for staged in &self.stage {
            if let Staged::Flow(_, hash) = staged {
                self.tracker.prefetch(*hash);
            }
        }
        for ((packet, verdict), staged) in packets.iter_mut().zip(verdicts).zip(&self.stage) {
            *verdict = match staged {
                Staged::Flow(parsed, hash) => self.tracker.judge(view, packet, parsed, *hash),
                Staged::Settled(verdict) => *verdict,
            };
            self.count(*verdict);
        }
    }

    #[inline]
    fn count(&self, verdict: Verdict) {
        let counters = &self.tracker.counters;
        counters.count(Event::Received, 1);
        match verdict {
            Verdict::Transmit(_) => counters.count(Event::Transmitted, 1),
            Verdict::ToKernel => counters.count(Event::ToKernel, 1),
            Verdict::Hold(_) => counters.count(Event::Held, 1),
            Verdict::Drop(reason) => counters.dropped(reason),
        }
    }

    /// Between two batches: no connection of the last one is held any more, and some of those whose time is over end.
    pub fn between(&mut self, now: Tick) {
        self.tracker.handle.quiescent();
        self.tracker.sweep(now, SWEEP);
    }

    /// The worker is about to sleep: every connection whose time is over ends, unless that was seen to a moment ago, and
    /// the connection table does not wait for this worker until the next [`Pipeline::between`].
    pub fn sleep(&mut self, now: Tick) {
        if !(0..SWEEP_ALL_TICKS).contains(&now.since(self.swept)) {
            self.swept = now;
            self.tracker.sweep(now, usize::MAX);
        }
        self.tracker.handle.sleep();
    }
}

impl Process for Pipeline {
    fn process(
        &mut self,
        snapshot: &Snapshot,
        now: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    ) {
        Pipeline::process(self, &View { snapshot, now }, packets, verdicts);
    }

    fn dropped(&mut self, reason: Reason) {
        self.tracker.counters.dropped(reason);
    }

    fn between(&mut self, now: Tick) {
        Pipeline::between(self, now);
    }

    fn sleep(&mut self, now: Tick) {
        Pipeline::sleep(self, now);
    }
}
