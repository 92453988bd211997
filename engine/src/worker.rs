//! One polling thread: receive, process, transmit, reclaim, kick.
//!
//! A worker owns rings of some (device, queue)s and the memory their frames lie in. A [`Crew`] is all workers of a director:
//! it deals the queues out, opens them and starts the threads.

mod bell;
mod crew;
mod handoff;
mod hands;
mod hold;
mod notice;
mod offline;
mod tally;

#[cfg(test)]
mod tests;

pub use bell::Bell;
pub use crew::{Crew, Lane, Link, Running, Seat};
pub use handoff::MAX_WORKERS;
pub use notice::{Notice, Notices};
pub use offline::{Offline, Outcome};
pub use tally::Tally;

use crate::batch::{BATCH, Packet, PortId};
use crate::link::{Batch, Region};
use crate::snapshot::{Follower, Snapshot};
use crate::verdict::{Reason, Verdict};
use arrayvec::ArrayVec;
use hands::Hands;
use hold::is_given_up;
use nix::time::{ClockId, clock_gettime};
use std::sync::Arc;
use std::time::Duration;
use uvs_conntrack::Tick;

/// How long a worker without work looks again and again before it sleeps. Waking costs about this much.
const SPIN: Duration = Duration::from_micros(50);

/// What decides about frames. The director's is [`crate::pipeline`]; a forwarder or a counter will do as well.
pub trait Process: Send {
    /// Gives each packet its verdict, rewriting it as needed. `verdicts` is as long as `packets`, which is never empty.
    fn process(
        &mut self,
        snapshot: &Snapshot,
        now: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    );

    /// Whether the packets that are judged next were held as long as frames are: another [`Verdict::Hold`] drops them, and
    /// this is the last time to tell their senders.
    fn give_up(&mut self, _waited: bool) {}

    /// The packets that are judged next, in one call of [`Process::process`], came in earlier: they were held, or are what
    /// a longer one is cut into.
    fn again(&mut self) {}

    /// The worker could not carry out a verdict and dropped the frame, which lies in these parts and came in by the device
    /// or was to leave by it; there is none when it could not even be received. (Frames that got [`Verdict::Drop`] are not
    /// reported back.)
    fn dropped(&mut self, reason: Reason, frame: Option<(PortId, &[&[u8]])>);

    /// Whether frames that got [`Verdict::Await`] may get another verdict now. Asked once a turn.
    fn take_released(&mut self) -> bool {
        false
    }

    /// Begins a turn, before anything else is asked of it: nothing of an earlier batch is in use. The place to pass a
    /// quiescent state of the connection table and to sweep a little.
    fn between(&mut self, now: Tick);

    /// There is nothing to do, and the worker will sleep for up to a quarter of a second: the place to sweep all that
    /// expired, and to let go of everything. The next call is [`Process::between`].
    fn sleep(&mut self, now: Tick);
}

/// Gives a frame (its parts in order) back to the host's own stack. `false` when it was not taken.
pub type WayBack = Box<dyn FnMut(&[&[u8]]) -> bool + Send>;

/// One polling thread's state.
struct Worker<P> {
    follower: Follower,
    process: P,
    hands: Hands,
    region: Arc<Region>,
    bell: Arc<Bell>,
    batch: Batch,
    /// When there last was something to do.
    busy: Duration,
}

impl<P: Process> Worker<P> {
    /// Works until the bell says stop.
    fn run(mut self) {
        while !self.bell.is_stopped() {
            let now = monotonic();
            if self.turn(now) {
                self.busy = now;
            } else if now.saturating_sub(self.busy) < SPIN {
                std::hint::spin_loop();
            } else {
                self.sleep(now);
            }
        }
    }

    /// One round over all there is to do. `false` when there was nothing.
    fn turn(&mut self, now: Duration) -> bool {
        let Worker { follower, process, hands, region, batch, .. } = self;
        let (now, snapshot) = (Tick::of(now), follower.refresh());
        process.between(now);
        let mut worked = false;
        for queue in 0..hands.queues() {
            hands.receive(queue, batch, process);
            worked |= !batch.is_empty();
            hands.work(batch, &Round { snapshot, now, region, held_since: None }, process);
        }
        let released = process.take_released();
        for (frame, since) in hands.take_held(snapshot.generation, now, released).into_iter().flatten() {
            process.give_up(is_given_up(since, now));
            process.again();
            batch.extend(frame);
            hands.work(batch, &Round { snapshot, now, region, held_since: Some(since) }, process);
        }
        process.give_up(false);
        worked |= hands.collect(process);
        worked |= hands.tend(now);
        worked
    }

    /// Sleeps until a frame comes, the bell rings or there may be something to do by the clock. Holds neither a snapshot nor
    /// a connection meanwhile.
    fn sleep(&mut self, now: Duration) {
        self.process.sleep(Tick::of(now));
        self.follower.sleep();
        self.hands.sleep(&self.bell);
    }
}

/// What the frames of one batch are judged by.
#[derive(Clone, Copy)]
struct Round<'a> {
    snapshot: &'a Snapshot,
    now: Tick,
    region: &'a Region,
    /// When they were first held, if they were.
    held_since: Option<Tick>,
}

/// Has the frames of `batch` judged: one verdict for each, in order. Their places are updated to what was rewritten.
fn judge<P: Process>(process: &mut P, round: &Round<'_>, batch: &mut Batch) -> ArrayVec<Verdict, BATCH> {
    let Round { snapshot, now, region, .. } = *round;
    if batch.is_empty() {
        return ArrayVec::new();
    }
    let mut tails: ArrayVec<&[u8], BATCH> = ArrayVec::new();
    let mut heads: ArrayVec<_, BATCH> = ArrayVec::new();
    for run in batch.chunk_by_mut(|part, _| part.more) {
        if let Some((head, rest)) = run.split_first_mut() {
            let first = tails.len();
            tails.extend(rest.iter().map(|part| part.bytes(region)));
            heads.push((head, first..tails.len()));
        }
    }
    let mut places: ArrayVec<_, BATCH> = ArrayVec::new();
    let mut packets: ArrayVec<Packet<'_>, BATCH> = ArrayVec::new();
    for (head, rest) in heads {
        let buffer = region.bytes(&mut head.frame);
        let packet = Packet::new(buffer, head.start.into(), head.len.into(), head.port);
        packets.push(packet.with_rest(&tails[rest]));
        places.push((&mut head.start, &mut head.len));
    }
    let mut verdicts = [Verdict::Drop(Reason::Malformed); BATCH];
    process.process(snapshot, now, &mut packets, &mut verdicts[..places.len()]);
    for ((start, len), packet) in places.iter_mut().zip(&packets) {
        **start = u16::try_from(packet.start()).unwrap_or(u16::MAX);
        **len = u16::try_from(packet.len()).unwrap_or(u16::MAX);
    }
    verdicts.into_iter().take(places.len()).collect()
}

/// CLOCK_MONOTONIC.
fn monotonic() -> Duration {
    // The clock exists on every Linux; were it refused, time would stand still and nothing expire.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}
