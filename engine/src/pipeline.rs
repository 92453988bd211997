//! What happens to a batch of frames: parse, track, schedule, forward.
//!
//! The whole is a function of the frames, the tables, the configuration and the time: no I/O, no clock, no system call. A
//! whole packet of a known connection allocates nothing and takes no lock. The batch goes through in stages, each of which
//! prefetches what the next one reads: the bucket, then the connection.

mod commons;
mod egress;
mod envelopes;
mod errors;
mod fragments;
mod own;
mod parse;
mod persist;
mod schedule;
mod state;
mod straight;
mod track;
mod tunnel_errors;

pub use commons::Commons;
pub(crate) use egress::{Passage, Refused};
pub(crate) use parse::{Kind, PLAIN_NETWORK, PLAIN_TRANSPORT4, PLAIN_TRANSPORT6, Parsed};

use crate::batch::{BATCH, Packet, PortId};
use crate::counters::{Event, WorkerCounters};
use crate::service::Destinations;
use crate::snapshot::Snapshot;
use crate::verdict::{Reason, Verdict};
use crate::worker::Process;
use std::sync::Arc;
use track::Tracker;
use uvs_conntrack::{Candidate, SharedHandle, Tick};

/// Chunks of 64 connections looked at for expiry in one tick: four hundred thousand connections in a second.
const SWEEP: usize = 64;

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
    stage: Box<[Staged; BATCH]>,
    /// When connections were last looked at for expiry.
    swept: Tick,
    /// When all of them were.
    swept_all: Tick,
}

/// A frame between two stages.
#[derive(Clone, Copy, Debug, Default)]
struct Staged {
    /// What its headers say.
    parsed: Parsed,
    /// Its flow's hash.
    hash: u64,
    /// The connection it may belong to.
    candidate: Candidate,
    /// Its place in the batch.
    at: u8,
}

impl Pipeline {
    /// A pipeline on the connection table of `handle`, that has everything else for itself.
    pub fn new(handle: SharedHandle, destinations: Arc<Destinations>, counters: Arc<WorkerCounters>) -> Self {
        Pipeline::with_commons(handle, destinations, counters, Arc::default())
    }

    /// A pipeline on the connection table of `handle` that shares `commons` with others.
    pub fn with_commons(
        handle: SharedHandle,
        destinations: Arc<Destinations>,
        counters: Arc<WorkerCounters>,
        commons: Arc<Commons>,
    ) -> Self {
        let tracker = Tracker::new(handle, destinations, counters, commons);
        let stage = Box::new([Staged::default(); BATCH]);
        Pipeline { tracker, stage, swept: Tick::default(), swept_all: Tick::default() }
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
        // Frames whose verdict is open after parsing stand at the front of the stage.
        let mut open = 0;
        for (at, (packet, verdict)) in (0_u8..).zip(packets.iter_mut().zip(verdicts.iter_mut())) {
            let Some(staged) = self.stage.get_mut(open) else { break };
            let port = ports.get(usize::from(packet.port().0));
            match parse::parse(packet, port, &mut staged.parsed) {
                Ok(()) => {
                    staged.at = at;
                    staged.hash = self.tracker.hash(&staged.parsed.flow);
                    open += 1;
                }
                Err(settled) => *verdict = settle(&self.tracker, view, packet, settled),
            }
        }
        let stage = &mut self.stage[..open.min(BATCH)];
        for staged in &mut *stage {
            staged.candidate = self.tracker.candidate(staged.hash);
        }
        for staged in &*stage {
            let at = usize::from(staged.at);
            let (Some(packet), Some(verdict)) = (packets.get_mut(at), verdicts.get_mut(at)) else { continue };
            self.tracker.judge(view, packet, &staged.parsed, staged.candidate, verdict);
            if !matches!(*verdict, Verdict::Transmit(_)) {
                *verdict = settle(&self.tracker, view, packet, *verdict);
            }
        }
    }

    /// Between two batches: no connection of the last one is held any more, and once in a tick some of those whose
    /// time is over end.
    pub fn between(&mut self, now: Tick) {
        self.tracker.handle.quiescent();
        if now != self.swept {
            self.swept = now;
            self.tracker.sweep(now, SWEEP);
        }
    }

    /// The worker is about to sleep: every connection whose time is over ends, unless that was seen to a moment ago, and
    /// the connection table does not wait for this worker until the next [`Pipeline::between`].
    pub fn sleep(&mut self, now: Tick) {
        if !(0..SWEEP_ALL_TICKS).contains(&now.since(self.swept_all)) {
            self.swept_all = now;
            self.tracker.sweep(now, usize::MAX);
        }
        self.tracker.handle.sleep();
    }
}

/// Counts what is not simply sent. What of this host's own turns out not to be ours gets the verdict that it deserves.
#[cold]
fn settle(tracker: &Tracker, view: &View<'_>, packet: &mut Packet<'_>, mut verdict: Verdict) -> Verdict {
    if verdict == Verdict::ToKernel && view.snapshot.is_own_port(packet.port()) {
        verdict = tracker.give_own_back(view, packet);
    }
    let counters = &tracker.counters;
    match verdict {
        Verdict::Fragment(..) => counters.count(Event::Fragmented, 1),
        Verdict::Segment(_) => counters.count(Event::Segmented, 1),
        Verdict::ToKernel => counters.count(Event::ToKernel, 1),
        Verdict::Drop(reason) => counters.dropped(reason),
        // Whoever carries these out counts them.
        Verdict::Transmit(_) | Verdict::Hold(_) | Verdict::Await => {}
    }
    verdict
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

    fn give_up(&mut self, waited: bool) {
        self.tracker.given_up = waited;
    }

    fn dropped(&mut self, reason: Reason, _: Option<(PortId, &[&[u8]])>) {
        self.tracker.counters.dropped(reason);
    }

    fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.tracker.released)
    }

    fn between(&mut self, now: Tick) {
        Pipeline::between(self, now);
    }

    fn sleep(&mut self, now: Tick) {
        Pipeline::sleep(self, now);
    }
}
