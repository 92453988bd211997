//! A worker without thread, clock or devices: frames go in one by one, and what becomes of each comes out.

use super::handoff::Mailbox;
use super::hands::{Hands, Tools};
use super::{Bell, Notices, Process, Tally, Worker};
use crate::batch::{Packet, PortId};
use crate::link::memory::HEADROOM;
use crate::link::{Batch, Error, Gone, MAX_PARTS, Part, Parts, Pool, Queue, Region, Sending};
use crate::snapshot::{Config, Snapshot};
use crate::verdict::{Reason, Verdict};
use nix::sys::eventfd::EventFd;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use uvs_conntrack::Tick;

/// Frames of the region: what is held, what one frame is cut into, what is laid out for other workers that there are none of.
const FRAMES: u32 = 8192;

/// Between two looks at held frames while time passes without frames.
const LOOK: Duration = Duration::from_millis(10);

/// After that long without a frame a worker sleeps, and what expired is swept.
const IDLE: Duration = Duration::from_millis(100);

/// What became of a frame, and of those that waited while it was worked on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// The frame's verdict. One that was cut has those of its segments after its own; one in too many parts has none.
    pub verdicts: Vec<Verdict>,
    /// The verdicts of frames that were held before, in the order in which they were held.
    pub of_held: Vec<Verdict>,
    /// Why frames were dropped whose verdict could not be carried out.
    pub dropped: Vec<Reason>,
    /// What was sent, and by which device.
    pub sent: Vec<(PortId, Vec<u8>)>,
    /// What was given back to the host's own stack.
    pub returned: Vec<Vec<u8>>,
}

/// A director's only worker, whose devices are lists.
pub struct Offline<P> {
    worker: Worker<Witness<P>>,
    wires: Arc<Mutex<Wires>>,
    tally: Arc<Tally>,
    now: Duration,
}

impl<P: Process> Offline<P> {
    /// A worker for the devices numbered from zero to `ports`, that works by `config`.
    ///
    /// # Errors
    /// When the process has no memory or no descriptor left.
    pub fn new(config: &Arc<Config>, ports: u16, process: P) -> Result<Self, Error> {
        let no_descriptor = |source| Error::Kernel {
            action: "making an event descriptor",
            device: "a replay's worker".into(),
            source,
        };
        let mut pool = Pool::new(FRAMES, Region::chunk_for(u32::MAX))?;
        let region = pool.region().clone();
        let bell = Bell::new().map_err(no_descriptor)?;
        let mailboxes = Arc::from([Arc::new(Mailbox::new(&mut pool, 1, bell.clone()))]);
        let wires: Arc<Mutex<Wires>> = Arc::default();
        let mut queues: Vec<Box<dyn Queue>> = Vec::new();
        for port in (0..ports).map(PortId) {
            let event = EventFd::new().map_err(|error| no_descriptor(error.into()))?;
            let (wires, region) = (wires.clone(), region.clone());
            queues.push(Box::new(List { port, wires, region, event }));
        }
        let tally = Arc::new(Tally::default());
        let back = wires.clone();
        let tools = Tools {
            me: 0,
            pool,
            queues,
            owners: (0..ports).map(|_| vec![0]).collect(),
            own: None,
            mailboxes,
            way_back: Box::new(move |parts| {
                lock(&back).returned.push(parts.concat());
                true
            }),
            notices: Notices::new().map_err(no_descriptor)?,
            tally: tally.clone(),
        };
        let worker = Worker {
            follower: config.follow(),
            process: Witness { process, verdicts: Vec::new(), of_held: None, dropped: Vec::new() },
            hands: Hands::new(tools),
            region,
            bell,
            batch: Batch::new(),
            busy: Duration::ZERO,
        };
        Ok(Offline { worker, wires, tally, now: Duration::ZERO })
    }

    /// What judges the frames.
    pub fn process(&self) -> &P {
        &self.worker.process.process
    }

    /// How many frames are neither held nor worked on.
    pub fn free_frames(&self) -> usize {
        self.worker.hands.free_frames()
    }

    /// Lets the time become `now`, and has frames that are held and connections that expire looked after meanwhile. Time does
    /// not go back: an earlier `now` is the present.
    pub fn wait_until(&mut self, now: Duration) -> Outcome {
        while self.tally.holding() > 0 && self.now + LOOK < now {
            self.now += LOOK;
            self.worker.turn(self.now);
        }
        if now.saturating_sub(self.now) >= IDLE {
            self.worker.process.sleep(Tick::of(now));
        }
        self.now = self.now.max(now);
        self.outcome()
    }

    /// Has `frame`, which comes in by device `port`, worked on at once.
    pub fn receive(&mut self, port: PortId, frame: Vec<u8>) -> Outcome {
        lock(&self.wires).arriving = Some((port, frame));
        self.worker.turn(self.now);
        // How many are held is counted at a turn's beginning.
        self.worker.turn(self.now);
        self.outcome()
    }

    fn outcome(&mut self) -> Outcome {
        let witness = &mut self.worker.process;
        let mut verdicts = std::mem::take(&mut witness.verdicts);
        let of_held = verdicts.split_off(witness.of_held.take().unwrap_or(0).min(verdicts.len()));
        let wires = std::mem::take(&mut *lock(&self.wires));
        Outcome {
            verdicts,
            of_held,
            dropped: std::mem::take(&mut witness.dropped),
            sent: wires.sent,
            returned: wires.returned,
        }
    }
}

/// Writes down what another process decides.
struct Witness<P> {
    process: P,
    verdicts: Vec<Verdict>,
    /// Where in `verdicts` those of held frames begin.
    of_held: Option<usize>,
    dropped: Vec<Reason>,
}

impl<P: Process> Process for Witness<P> {
    fn process(
        &mut self,
        snapshot: &Snapshot,
        now: Tick,
        packets: &mut [Packet<'_>],
        verdicts: &mut [Verdict],
    ) {
        self.process.process(snapshot, now, packets, verdicts);
        self.verdicts.extend(&verdicts[..packets.len()]);
    }

    fn again(&mut self) {
        self.process.again();
    }

    fn give_up(&mut self, waited: bool) {
        self.process.give_up(waited);
    }

    fn dropped(&mut self, reason: Reason, frame: Option<(PortId, &[&[u8]])>) {
        self.process.dropped(reason, frame);
        self.dropped.push(reason);
    }

    /// Asked after the frames that arrived, before those that were held.
    fn take_released(&mut self) -> bool {
        self.of_held.get_or_insert(self.verdicts.len());
        self.process.take_released()
    }

    fn between(&mut self, now: Tick) {
        self.process.between(now);
    }

    fn sleep(&mut self, now: Tick) {
        self.process.sleep(now);
    }
}

/// All devices' ends.
#[derive(Default)]
struct Wires {
    arriving: Option<(PortId, Vec<u8>)>,
    sent: Vec<(PortId, Vec<u8>)>,
    returned: Vec<Vec<u8>>,
}

fn lock(wires: &Mutex<Wires>) -> MutexGuard<'_, Wires> {
    wires.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A device whose frames lie in a list.
struct List {
    port: PortId,
    wires: Arc<Mutex<Wires>>,
    region: Arc<Region>,
    event: EventFd,
}

impl Queue for List {
    fn port(&self) -> PortId {
        self.port
    }

    fn receive(&mut self, pool: &mut Pool, batch: &mut Batch) -> u64 {
        let mine = |(port, _): &mut (PortId, Vec<u8>)| *port == self.port;
        let Some((_, frame)) = lock(&self.wires).arriving.take_if(mine) else { return 0 };
        let room = (self.region.chunk() - HEADROOM) as usize;
        let parts = frame.len().div_ceil(room);
        if parts > MAX_PARTS || parts > batch.remaining_capacity() || parts > pool.len() {
            return 1;
        }
        for (number, bytes) in (1..).zip(frame.chunks(room)) {
            let Some(mut frame) = pool.take() else { break };
            self.region.bytes(&mut frame)[HEADROOM as usize..][..bytes.len()].copy_from_slice(bytes);
            #[expect(clippy::cast_possible_truncation, reason = "below the chunk's 4096 bytes")]
            let (start, len) = (HEADROOM as u16, bytes.len() as u16);
            batch.push(Part { frame, start, len, port: self.port, more: number < parts });
        }
        0
    }

    /// What is sent is gone at once.
    fn transmit(&mut self, frame: &mut Parts) -> Result<(), Reason> {
        let parts: Vec<&[u8]> = frame.iter().map(|part| part.bytes(&self.region)).collect();
        lock(&self.wires).sent.push((self.port, parts.concat()));
        Ok(())
    }

    fn tend(&mut self, _: &mut Pool) -> Result<Sending, Gone> {
        Ok(Sending::Done)
    }

    fn check(&self) -> Result<(), Gone> {
        Ok(())
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verdict::Neighbour;
    use std::net::{IpAddr, Ipv4Addr};

    const NEIGHBOUR: Neighbour =
        Neighbour { port: PortId(1), address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)) };

    /// Sends by device 1 what is not held, dropped or left to the kernel; notes when it was told to sleep.
    #[derive(Default)]
    struct Judge {
        until: u32,
        slept: Vec<Tick>,
    }

    impl Process for Judge {
        fn process(&mut self, _: &Snapshot, now: Tick, packets: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
            for (packet, verdict) in packets.iter().zip(verdicts) {
                *verdict = match packet.frame()[0] {
                    b'h' if now.0 < self.until => Verdict::Hold(NEIGHBOUR),
                    b'k' => Verdict::ToKernel,
                    b'd' => Verdict::Drop(Reason::Martian),
                    b'e' => Verdict::Transmit(PortId(9)),
                    _ => Verdict::Transmit(PortId(1)),
                };
            }
        }

        fn dropped(&mut self, _: Reason, _: Option<(PortId, &[&[u8]])>) {}

        fn between(&mut self, _: Tick) {}

        fn sleep(&mut self, now: Tick) {
            self.slept.push(now);
        }
    }

    fn offline(until: u32) -> Offline<Judge> {
        let config = Config::new(Snapshot::empty(Arc::default()));
        let mut offline = Offline::new(&config, 2, Judge { until, ..Judge::default() }).unwrap();
        offline.wait_until(Duration::from_secs(1));
        offline
    }

    #[test]
    fn what_becomes_of_a_frame_is_told() {
        let mut offline = offline(0);
        let long = vec![b's'; 60_000];
        for (frame, expected) in [
            (
                long.clone(),
                Outcome {
                    verdicts: vec![Verdict::Transmit(PortId(1))],
                    sent: vec![(PortId(1), long)],
                    ..Outcome::default()
                },
            ),
            (
                b"kernel".to_vec(),
                Outcome {
                    verdicts: vec![Verdict::ToKernel],
                    returned: vec![b"kernel".to_vec()],
                    ..Outcome::default()
                },
            ),
            (
                b"drop".to_vec(),
                Outcome { verdicts: vec![Verdict::Drop(Reason::Martian)], ..Outcome::default() },
            ),
            (
                b"elsewhere".to_vec(),
                Outcome {
                    verdicts: vec![Verdict::Transmit(PortId(9))],
                    dropped: vec![Reason::EgressNotOurs],
                    ..Outcome::default()
                },
            ),
            (vec![0; 200_000], Outcome { dropped: vec![Reason::TooManyParts], ..Outcome::default() }),
        ] {
            assert_eq!(offline.receive(PortId(0), frame), expected);
        }
    }

    #[test]
    fn what_is_held_is_looked_at_while_time_passes() {
        let mut offline = offline(150);
        let held = offline.receive(PortId(0), b"held".to_vec());
        assert_eq!(held.verdicts, [Verdict::Hold(NEIGHBOUR)]);
        assert_eq!(held.sent, []);
        let waited = offline.wait_until(Duration::from_secs(10));
        assert_eq!(waited.sent, [(PortId(1), b"held".to_vec())]);
        assert_eq!(waited.verdicts, []);
        assert_eq!(waited.of_held.last(), Some(&Verdict::Transmit(PortId(1))));
        assert_eq!(offline.process().slept, [Tick(100), Tick(1000)]);
        offline.wait_until(Duration::from_secs(5));
        assert_eq!(offline.now, Duration::from_secs(10), "time does not go back");
    }
}
