//! What a worker does with frames once it knows what is to become of them.

use super::bell::Bell;
use super::handoff::{Mailbox, Reader};
use super::hold::{Holding, Kept, is_given_up};
use super::notice::{Notice, Notices};
use super::tally::Tally;
use super::{Process, Round, WayBack, judge};
use crate::batch::PortId;
use crate::link::{Batch, Gone, Parts, Pool, Queue, Region, Sending, cut};
use crate::packet::{segment, split};
use crate::verdict::{Neighbour, Reason, Verdict};
use nix::poll::{PollFd, PollFlags};
use std::sync::Arc;
use std::time::Duration;
use uvs_conntrack::Tick;

/// The longest sleep: what expired waits no longer to be swept.
const LONG_SLEEP: Duration = Duration::from_millis(250);

/// The longest sleep while frames wait for a next hop.
const HOLDING_SLEEP: Duration = Duration::from_millis(10);

/// The longest sleep while a transmit ring does not empty.
const STUCK_SLEEP: Duration = Duration::from_millis(1);

/// Ticks between two questions to the kernel whether the devices are still there.
const CHECK_TICKS: i32 = 100;

/// Where frames for a device go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Egress {
    /// Into the transmit ring of this lane of ours.
    Own(usize),
    /// To this worker, which has a ring on it.
    Worker(usize),
    /// Nowhere: no worker holds a queue of it.
    Nobody,
}

/// What a worker is given to work with.
pub(super) struct Tools {
    /// This worker's number.
    pub(super) me: usize,
    pub(super) pool: Pool,
    pub(super) queues: Vec<Box<dyn Queue>>,
    /// By device, the workers that hold queues of it.
    pub(super) owners: Arc<[Vec<usize>]>,
    /// The device by which packets of this host's own sockets come and go.
    pub(super) own: Option<PortId>,
    pub(super) mailboxes: Arc<[Arc<Mailbox>]>,
    pub(super) way_back: WayBack,
    pub(super) notices: Arc<Notices>,
    pub(super) tally: Arc<Tally>,
}

/// The worker's queues, its frames, and the frames it holds.
pub(super) struct Hands {
    tools: Tools,
    reader: Reader,
    /// By device.
    egress: Vec<Egress>,
    holding: Holding,
    /// The queue whose frames are being carried out.
    from: usize,
    /// The identification of the packet fragmented last, where it had none of its own.
    fragmented: u32,
    /// Workers that were posted something since the last announcement.
    posted: u64,
    stuck: bool,
    checked: Tick,
}

impl Hands {
    pub(super) fn new(tools: Tools) -> Self {
        let me = u32::try_from(tools.me).unwrap_or(0);
        let mut hands = Hands {
            reader: Reader::new(tools.mailboxes[tools.me].clone()),
            tools,
            egress: vec![],
            holding: Holding::default(),
            from: 0,
            // Far from other workers', whose fragments may go the same way.
            fragmented: me.rotate_right(6),
            posted: 0,
            stuck: false,
            checked: Tick::default(),
        };
        hands.find_ways_out();
        hands
    }

    /// How many queues there are.
    pub(super) fn queues(&self) -> usize {
        self.tools.queues.len()
    }

    /// Takes what arrived in queue `from` into the empty `batch`.
    pub(super) fn receive(&mut self, from: usize, batch: &mut Batch, process: &mut impl Process) {
        self.from = from;
        let refused = self.tools.queues[from].receive(&mut self.tools.pool, batch);
        for _ in 0..refused {
            process.dropped(Reason::TooManyParts, None);
        }
        if !batch.is_empty() {
            let frames = batch.iter().filter(|part| !part.more).count();
            self.tools.tally.received.add(frames as u64 + refused);
            self.tools.tally.received_bytes.add(batch.iter().map(|part| u64::from(part.len)).sum());
        }
    }

    /// Has the frames of `batch` judged and carries out the verdicts in their order. The batch is empty afterwards.
    pub(super) fn work(&mut self, batch: &mut Batch, round: &Round<'_>, process: &mut impl Process) {
        let verdicts = judge(process, round, batch);
        let mut parts = batch.drain(..);
        let mut frame = Parts::new();
        for verdict in verdicts {
            for part in parts.by_ref() {
                let last = !part.more;
                frame.push(part);
                if last {
                    break;
                }
            }
            let done = match verdict {
                Verdict::Transmit(port) => self.transmit(&mut frame, port),
                Verdict::Fragment(port, limit) => self.fragment(&frame, port, limit, round, process),
                Verdict::Segment(limit) => self.segment(&frame, limit, round, process),
                Verdict::ToKernel => self.give_back(&mut frame),
                Verdict::Hold(neighbour) => self.hold(&mut frame, neighbour, round),
                Verdict::Await => self.await_first(&mut frame, round),
                Verdict::Drop(_) => Ok(()),
            };
            if let Err(reason) = done {
                report(reason, &frame, round.region, process);
            }
            self.tools.pool.give_all(&mut frame);
        }
    }

    /// Cuts a super-frame and works on its segments, before the frames that came after it: order is kept.
    #[cold]
    fn segment(
        &mut self,
        frame: &Parts,
        limit: u16,
        round: &Round<'_>,
        process: &mut impl Process,
    ) -> Result<(), Reason> {
        let slices = cut::slices(frame, round.region);
        let segments = segment::segments(&slices, limit.into())?;
        // What fits already would come back as it is, again and again.
        if segments.len() < 2 {
            return Err(Reason::TooBig);
        }
        let port = frame.first().map_or(PortId(0), |part| part.port);
        let mut batch = Batch::new();
        for piece in segments {
            match cut::lay(&mut self.tools.pool, &slices, &piece, port) {
                Ok(laid) => {
                    if batch.remaining_capacity() < laid.len() {
                        process.again();
                        self.work(&mut batch, round, process);
                    }
                    batch.extend(laid);
                }
                Err(reason) => process.dropped(reason, None),
            }
        }
        if !batch.is_empty() {
            process.again();
            self.work(&mut batch, round, process);
        }
        Ok(())
    }

    /// Sends a packet that is too long for its next link in fragments.
    #[cold]
    fn fragment(
        &mut self,
        frame: &Parts,
        port: PortId,
        limit: u16,
        round: &Round<'_>,
        process: &mut impl Process,
    ) -> Result<(), Reason> {
        let slices = cut::slices(frame, round.region);
        self.fragmented = self.fragmented.wrapping_add(1);
        for piece in split::fragments(&slices, limit.into(), self.fragmented)? {
            let laid = cut::lay(&mut self.tools.pool, &slices, &piece, port);
            match laid {
                Ok(mut laid) => {
                    if let Err(reason) = self.transmit(&mut laid, port) {
                        report(reason, &laid, round.region, process);
                    }
                    self.tools.pool.give_all(&mut laid);
                }
                Err(reason) => process.dropped(reason, None),
            }
        }
        Ok(())
    }

    /// Puts a frame on its way out of device `port`. It stays in `frame` when it was copied or refused.
    fn transmit(&mut self, frame: &mut Parts, port: PortId) -> Result<(), Reason> {
        let tools = &mut self.tools;
        let way_out = match tools.queues.get(self.from) {
            // Out of the device it came from: by the very queue it came from.
            Some(queue) if queue.port() == port => Egress::Own(self.from),
            _ => self.egress.get(usize::from(port.0)).copied().unwrap_or(Egress::Nobody),
        };
        match way_out {
            Egress::Own(queue) => {
                tools.queues[queue].transmit(frame)?;
                tools.tally.transmitted.add(1);
                Ok(())
            }
            Egress::Worker(worker) => {
                if let Some(first) = frame.first_mut() {
                    first.port = port;
                }
                if !tools.mailboxes[worker].post(tools.me, frame, tools.pool.region()) {
                    return Err(Reason::HandOffFull);
                }
                self.posted |= 1 << worker;
                tools.tally.handed.add(1);
                Ok(())
            }
            Egress::Nobody => Err(Reason::EgressNotOurs),
        }
    }

    /// Gives a frame to the host's own stack. What its own sockets sent goes back the way it came, where it is taken from them.
    fn give_back(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        if let Some(own) = self.tools.own.filter(|own| frame.first().is_some_and(|part| part.port == *own)) {
            return self.transmit(frame, own);
        }
        let tools = &mut self.tools;
        let region = tools.pool.region();
        if !(tools.way_back)(&cut::slices(frame, region)) {
            return Err(Reason::WayBackFull);
        }
        tools.tally.returned.add(1);
        Ok(())
    }

    fn hold(&mut self, frame: &mut Parts, on: Neighbour, round: &Round<'_>) -> Result<(), Reason> {
        let Round { now, held_since, .. } = *round;
        let since = held_since.unwrap_or(now);
        if is_given_up(since, now) {
            return Err(Reason::NeighbourUnresolved);
        }
        match self.holding.keep(frame, on, since, now) {
            Kept::Full => return Err(Reason::HoldFull),
            Kept::Ask => self.tools.notices.tell(Notice::Unresolved(on)),
            Kept::Waits => {}
        }
        self.tools.tally.held.add(u64::from(held_since.is_none()));
        Ok(())
    }

    fn await_first(&mut self, frame: &mut Parts, round: &Round<'_>) -> Result<(), Reason> {
        let since = round.held_since.unwrap_or(round.now);
        if is_given_up(since, round.now) {
            return Err(Reason::FragmentTimeout);
        }
        if !self.holding.keep_fragment(frame, since, round.now) {
            return Err(Reason::FragmentFlood);
        }
        self.tools.tally.held.add(u64::from(round.held_since.is_none()));
        Ok(())
    }

    /// The frames to judge again, each with the tick since which it is held; none when it is too early for that and none was
    /// `released`.
    pub(super) fn take_held(
        &mut self,
        generation: u64,
        now: Tick,
        released: bool,
    ) -> Option<impl Iterator<Item = (Parts, Tick)> + use<>> {
        self.tools.tally.holding.set(self.holding.len() as u64);
        (released || self.holding.is_due(generation, now)).then(|| self.holding.release(generation, now))
    }

    /// Sends what other workers handed over. Whether there was anything.
    pub(super) fn collect(&mut self, process: &mut impl Process) -> bool {
        let Hands { tools, reader, egress, .. } = self;
        let Tools { pool, queues, tally, .. } = tools;
        reader.collect(pool, |frame, region| {
            let port = frame.first().map(|part| usize::from(part.port.0));
            let sent = match port.and_then(|port| egress.get(port)) {
                Some(Egress::Own(queue)) => queues[*queue].transmit(frame),
                _ => Err(Reason::EgressNotOurs),
            };
            match sent {
                Ok(()) => tally.taken.add(1),
                Err(reason) => report(reason, frame, region, process),
            }
        })
    }

    /// Ends the turn: shows the kernel what is to be sent and the other workers what they were posted, takes back what was
    /// sent. Whether frames are still on their way.
    pub(super) fn tend(&mut self, now: Tick) -> bool {
        let tools = &mut self.tools;
        for worker in (0..tools.mailboxes.len()).filter(|worker| self.posted & (1 << worker) != 0) {
            tools.mailboxes[worker].announce(tools.me);
        }
        self.posted = 0;
        let check = !(0..CHECK_TICKS).contains(&now.since(self.checked));
        if check {
            self.checked = now;
        }
        let (mut moving, mut gone) = (false, false);
        self.stuck = false;
        tools.queues.retain_mut(|queue| {
            let sending =
                if check { queue.check() } else { Ok(()) }.and_then(|()| queue.tend(&mut tools.pool));
            match sending {
                Ok(sending) => {
                    moving |= sending == Sending::Moving;
                    self.stuck |= sending == Sending::Stuck;
                }
                // The chunks it held are lost with it. The others have theirs: the region has room for each queue.
                Err(Gone) => {
                    gone = true;
                    tools.tally.gone.add(1);
                    tools.notices.tell(Notice::DeviceGone(queue.port()));
                }
            }
            sending.is_ok()
        });
        if gone {
            self.find_ways_out();
        }
        moving
    }

    /// Sleeps until there may be something to do.
    pub(super) fn sleep(&mut self, bell: &Bell) {
        self.tools.tally.slept.add(1);
        let limit = match () {
            () if self.stuck => STUCK_SLEEP,
            () if self.holding.len() > 0 => HOLDING_SLEEP,
            () => LONG_SLEEP,
        };
        let queues = self.tools.queues.iter();
        let readable = queues.map(|queue| PollFd::new(queue.descriptor(), PollFlags::POLLIN)).collect();
        if bell.sleep(readable, limit) {
            // One of the devices is in trouble: ask at once which.
            self.checked = Tick(self.checked.0.wrapping_sub(CHECK_TICKS.unsigned_abs()));
        }
    }

    /// Finds for each device the way its frames leave: a queue of ours, else a worker that has one. Workers that share a way
    /// spread over those that have it.
    fn find_ways_out(&mut self) {
        let Tools { me, queues, owners, .. } = &self.tools;
        let own = |port| queues.iter().position(|queue| usize::from(queue.port().0) == port).map(Egress::Own);
        let others = |workers: &[usize]| {
            let others: Vec<usize> = workers.iter().copied().filter(|worker| worker != me).collect();
            others.get(me % others.len().max(1)).copied().map(Egress::Worker)
        };
        let way_out = |(port, workers): (usize, &Vec<usize>)| {
            own(port).or_else(|| others(workers)).unwrap_or(Egress::Nobody)
        };
        self.egress = owners.iter().enumerate().map(way_out).collect();
    }

    pub(super) fn free_frames(&self) -> usize {
        self.tools.pool.len()
    }

    #[cfg(test)]
    pub(super) fn mailbox(&self) -> Arc<Mailbox> {
        self.tools.mailboxes[self.tools.me].clone()
    }
}

/// Tells of a frame that is dropped because its verdict could not be carried out.
#[cold]
fn report(reason: Reason, frame: &Parts, region: &Region, process: &mut impl Process) {
    let port = frame.first().map_or(PortId(0), |part| part.port);
    process.dropped(reason, Some((port, &cut::slices(frame, region))));
}
