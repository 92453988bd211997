//! All workers of a director: who polls which queue, and the threads.

use super::bell::Bell;
use super::handoff::{self, Mailbox};
use super::hands::{Hands, Tools};
use super::notice::Notices;
use super::tally::Tally;
use super::{Process, WayBack, Worker};
use crate::batch::PortId;
use crate::link::own::OwnQueue;
use crate::link::{Batch, Device, Error, Pool, Probe, Queue, Region, raw, xdp};
use crate::snapshot::Config;
use crate::steer::OwnDevice;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Frames of a worker's region that no queue claims: those it holds, those it laid out for others, those in its hands.
const SPARE_FRAMES: u32 = 2048;

/// A device to take frames from.
#[derive(Clone, Debug)]
pub struct Seat {
    /// The number by which snapshots and verdicts know it.
    pub port: PortId,
    /// The device.
    pub device: Device,
    /// How frames are taken from it.
    pub link: Link,
}

/// A way to take frames from a device.
#[derive(Clone, Debug)]
pub enum Link {
    /// An AF_XDP socket for each of its queues.
    Xdp(xdp::Options),
    /// A packet socket for each worker.
    Raw(raw::Options),
}

impl Seat {
    /// The queues that are worker `me`'s, of `workers`. Packet sockets share the device's frames whatever its queues.
    fn queues(&self, me: usize, workers: usize) -> Vec<u32> {
        match self.link {
            Link::Xdp(_) => (0..self.device.queues).filter(|&queue| queue as usize % workers == me).collect(),
            Link::Raw(_) => u32::try_from(me).into_iter().collect(),
        }
    }

    /// Chunks that one queue needs.
    fn frames(&self) -> u32 {
        match &self.link {
            Link::Xdp(options) => options.frames(),
            Link::Raw(options) => options.frames(),
        }
    }
}

/// What one queue of one device got.
#[derive(Debug)]
pub struct Lane {
    /// The device.
    pub port: PortId,
    /// The queue; for a packet socket the worker's number.
    pub queue: u32,
    /// The worker that polls it.
    pub worker: usize,
    /// Whether the device reads and writes frames in our memory itself.
    pub zero_copy: bool,
    /// Whether frames may come and go in several parts.
    pub multi_buffer: bool,
    /// For the XDP program's map, and for the kernel's statistics.
    pub probe: Probe,
}

/// Workers with their queues bound, not started. Frames come once an XDP program redirects them to the sockets.
pub struct Crew {
    benches: Vec<Bench>,
    lanes: Vec<Lane>,
    owners: Vec<Vec<usize>>,
    own: Option<PortId>,
}

/// One worker's place before somebody works there.
struct Bench {
    core: Option<usize>,
    pool: Pool,
    queues: Vec<Box<dyn Queue>>,
}

impl Crew {
    /// Binds every receive queue of every device in the calling thread's network namespace, for one worker per entry of
    /// `cores` (pinned to that processor, or not pinned). Queue *q* of each device goes to worker *q* modulo their number,
    /// so that the worker that receives a frame mostly has a ring on its egress device too.
    ///
    /// # Errors
    /// The first queue's that could not be opened; see [`Error`].
    ///
    /// # Panics
    /// When there are no workers or more than 64.
    pub fn open(seats: &[Seat], cores: &[Option<usize>]) -> Result<Self, Error> {
        assert!((1..=handoff::MAX_WORKERS).contains(&cores.len()), "a director has 1 to 64 workers");
        let mtu = seats.iter().map(|seat| seat.device.mtu).max().unwrap_or(0);
        let ports = seats.iter().map(|seat| usize::from(seat.port.0) + 1).max().unwrap_or(0);
        let (mut lanes, mut owners) = (vec![], vec![vec![]; ports]);
        let mut groups = vec![None; seats.len()];
        let mut benches = vec![];
        for (worker, &core) in cores.iter().enumerate() {
            let mine = |seat: &Seat| seat.queues(worker, cores.len());
            let frames = |seat| u32::try_from(mine(seat).len()).unwrap_or(u32::MAX) * seat.frames();
            let frames = SPARE_FRAMES + seats.iter().map(frames).sum::<u32>();
            let mut pool = Pool::new(frames, Region::chunk_for(mtu))?;
            let mut queues: Vec<Box<dyn Queue>> = vec![];
            for (seat, group) in seats.iter().zip(&mut groups) {
                for queue in mine(seat) {
                    let (socket, lane) = open(seat, queue, worker, &mut pool, group, cores.len())?;
                    lanes.push(lane);
                    queues.push(socket);
                    if owners[usize::from(seat.port.0)].last() != Some(&worker) {
                        owners[usize::from(seat.port.0)].push(worker);
                    }
                }
            }
            benches.push(Bench { core, pool, queues });
        }
        Ok(Crew { benches, lanes, owners, own: None })
    }

    /// The queues that were bound.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Gives the first worker the device by which packets of this host's own sockets come and go, to be known as `port`.
    pub fn add_own(&mut self, device: Arc<OwnDevice>, port: PortId) {
        let Some(bench) = self.benches.first_mut() else { return };
        bench.queues.push(Box::new(OwnQueue::new(device, port, &bench.pool)));
        self.owners.resize(self.owners.len().max(usize::from(port.0) + 1), vec![]);
        self.owners[usize::from(port.0)] = vec![0];
        self.own = Some(port);
    }

    /// Starts the workers. `make` gives each, by its number, what judges its frames and the way back to the host's own
    /// stack.
    ///
    /// # Errors
    /// When the process has no descriptor or no thread left.
    pub fn start<P: Process + 'static>(
        self,
        config: &Arc<Config>,
        notices: &Arc<Notices>,
        mut make: impl FnMut(usize) -> (P, WayBack),
    ) -> io::Result<Running> {
        let Crew { mut benches, lanes, owners, own } = self;
        let owners: Arc<[_]> = owners.into();
        let workers = benches.len();
        let bells = benches.iter().map(|_| Bell::new()).collect::<io::Result<Vec<_>>>()?;
        let mailbox = |(bench, bell): (&mut Bench, &Arc<Bell>)| {
            Arc::new(Mailbox::new(&mut bench.pool, workers, bell.clone()))
        };
        let mailboxes: Arc<[_]> = benches.iter_mut().zip(&bells).map(mailbox).collect();
        let mut running = Running { hands: vec![], lanes };
        for (me, (Bench { core, pool, queues }, bell)) in benches.into_iter().zip(bells).enumerate() {
            let (process, way_back) = make(me);
            let tally = Arc::new(Tally::default());
            let region = pool.region().clone();
            let (owners, mailboxes) = (owners.clone(), mailboxes.clone());
            let (notices, tally_too) = (notices.clone(), tally.clone());
            let tools =
                Tools { me, pool, queues, owners, own, mailboxes, way_back, notices, tally: tally_too };
            let worker = Worker {
                follower: config.follow(),
                process,
                hands: Hands::new(tools),
                region,
                bell: bell.clone(),
                batch: Batch::new(),
                busy: Duration::ZERO,
            };
            let thread = std::thread::Builder::new().name(format!("uvs-worker-{me}")).spawn(move || {
                if let Some(core) = core {
                    pin(core);
                }
                worker.run();
            })?;
            running.hands.push(Hand { thread: Some(thread), bell, tally, core });
        }
        Ok(running)
    }
}

/// Opens one queue. `group` is that of the device's packet sockets, once there is one.
fn open(
    seat: &Seat,
    queue: u32,
    worker: usize,
    pool: &mut Pool,
    group: &mut Option<u16>,
    workers: usize,
) -> Result<(Box<dyn Queue>, Lane), Error> {
    let Seat { port, device, link } = seat;
    let failed =
        |source| Error::Kernel { action: "duplicating a socket", device: device.name.clone(), source };
    Ok(match link {
        Link::Xdp(options) => {
            let socket = xdp::Socket::open(device, queue, *port, pool, *options)?;
            let (zero_copy, multi_buffer) = (socket.zero_copy(), socket.multi_buffer());
            let probe = Probe::Xdp(socket.probe().map_err(failed)?);
            (Box::new(socket), Lane { port: *port, queue, worker, zero_copy, multi_buffer, probe })
        }
        Link::Raw(options) => {
            let mut socket = raw::Socket::open(device, *port, pool, options)?;
            if workers > 1 {
                *group = Some(socket.share(device, *group)?);
            }
            let probe = Probe::Raw(socket.probe().map_err(failed)?);
            let lane = Lane { port: *port, queue, worker, zero_copy: false, multi_buffer: true, probe };
            (Box::new(socket), lane)
        }
    })
}

/// Keeps the calling thread on processor `core`. Where that is not allowed the worker runs wherever it may.
fn pin(core: usize) {
    let mut set = CpuSet::new();
    if let Err(error) = set.set(core).and_then(|()| sched_setaffinity(Pid::from_raw(0), &set)) {
        tracing::warn!("a worker cannot be pinned to processor {core} and runs unpinned: {error}");
    }
}

/// The workers at work. Dropping it stops them.
pub struct Running {
    hands: Vec<Hand>,
    lanes: Vec<Lane>,
}

struct Hand {
    thread: Option<JoinHandle<()>>,
    bell: Arc<Bell>,
    tally: Arc<Tally>,
    core: Option<usize>,
}

impl Running {
    /// How many workers there are.
    pub fn workers(&self) -> usize {
        self.hands.len()
    }

    /// What each worker counted, and the processor it is pinned to.
    pub fn tallies(&self) -> impl Iterator<Item = (&Tally, Option<usize>)> {
        self.hands.iter().map(|hand| (&*hand.tally, hand.core))
    }

    /// The queues they poll.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Wakes all workers, for example because a next hop became known that frames may wait for.
    pub fn wake(&self) {
        self.hands.iter().for_each(|hand| hand.bell.ring());
    }

    /// Whether every worker still works. One that panicked does not.
    pub fn is_whole(&self) -> bool {
        self.hands.iter().all(|hand| hand.thread.as_ref().is_some_and(|thread| !thread.is_finished()))
    }

    /// Stops all workers and waits for them. Their queues are released.
    pub fn stop(&mut self) {
        self.hands.iter().for_each(|hand| hand.bell.stop());
        for hand in &mut self.hands {
            if hand.thread.take().is_some_and(|thread| thread.join().is_err()) {
                tracing::error!("a worker had panicked");
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop();
    }
}
