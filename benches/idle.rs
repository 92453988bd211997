//! What a director costs while nothing happens, and how soon it wakes.
//!
//! `idle/cpu`: the share of a core that `uvs run` with three devices, all its threads together, uses in five quiet seconds.
//! `idle/latency/…`: from a client's `send` to the moment the worker looks at the frame, with the worker asleep and with it
//! awake. The frames go the real way: a socket of a namespace, a veth pair, the steering program, an AF_XDP socket. Needs
//! root.

use nix::time::{ClockId, clock_gettime};
use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};
use uvs_conntrack::Tick;
use uvs_engine::link::Device;
use uvs_engine::link::xdp::Options;
use uvs_engine::nexthop::NextHops;
use uvs_engine::steer::{Steering, WantedMode};
use uvs_engine::worker::{Crew, Link, Notices, Process as Judge, Seat};
use uvs_engine::{Config, Packet, PortId, Reason, Snapshot, Verdict};
use uvs_lab::{Plan, Process, Topology};

type Failure = Box<dyn Error + Send + Sync>;

const QUIET: Duration = Duration::from_secs(5);
/// How long what a start leaves behind may take to quiet down.
const SETTLING: Duration = Duration::from_secs(2);
const LIMIT: Duration = Duration::from_secs(10);
const WAKES: usize = 500;
const PORT: u16 = 4242;
const UDP: u8 = 17;

fn main() -> Result<(), Failure> {
    if !std::env::args().any(|argument| argument == "--bench") {
        return Ok(());
    }
    println!("idle/cpu: {:.2} % of a core", idle()?);
    latency()
}

/// Percent of a core that a director uses while nothing comes.
fn idle() -> Result<f64, Failure> {
    let topology = Topology::build(&Plan::default())?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_uvs"));
    command.arg("run");
    for device in topology.director_devices() {
        command.args(["--interface", &device]);
    }
    let mut director = Process::start(&topology.director, &mut command)?;
    director.wait_for_line("ready", LIMIT)?;
    thread::sleep(SETTLING);
    let (start, used) = (Instant::now(), processor_time(director.id())?);
    thread::sleep(QUIET);
    let share = (processor_time(director.id())? - used).as_secs_f64() / start.elapsed().as_secs_f64() * 100.0;
    director.terminate()?;
    Ok(share)
}

/// Processor time of all threads of a process so far.
fn processor_time(process: u32) -> Result<Duration, Failure> {
    let mut time = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{process}/task"))? {
        let line = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanoseconds = line.split_whitespace().next().ok_or("schedstat is empty")?;
        time += Duration::from_nanos(nanoseconds.parse()?);
    }
    Ok(time)
}

/// Prints how long a frame waits for the worker's look.
fn latency() -> Result<(), Failure> {
    let topology = Topology::build(&Plan { servers: 0, ..Plan::default() })?;
    let there = SocketAddr::from((topology.director_address(Ipv4Addr::UNSPECIFIED.into()), PORT));
    let seen = Arc::new(AtomicU64::new(0));
    let mut steering = Steering::new()?;
    steering.add_service(there.ip(), PORT, UDP)?;
    let _working = topology.director.run(|| {
        let link = Link::Xdp(Options::default());
        let seat = Seat { port: PortId(0), device: Device::open("eth0")?, link };
        let crew = Crew::open(std::slice::from_ref(&seat), &[None])?;
        let lanes = crew.lanes().iter();
        let sockets: Vec<_> =
            lanes.filter_map(|lane| lane.probe.xdp_socket().map(|socket| (lane.queue, socket))).collect();
        let attachment = steering.attach(seat.device.index, WantedMode::Auto, &sockets)?;
        let config = Config::new(Snapshot::empty(NextHops::new(1)));
        let watcher = |_| (Watcher { seen: seen.clone() }, Box::new(|_: &[&[u8]]| false) as _);
        Ok::<_, Failure>((crew.start(&config, &Notices::new()?, watcher)?, attachment))
    })??;
    let socket = topology.client.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))??;
    socket.connect(there)?;
    for (what, pause) in [("asleep", Duration::from_millis(20)), ("awake", Duration::ZERO)] {
        let mut times = (0..WAKES).map(|_| wake(&socket, &seen, pause)).collect::<Result<Vec<_>, _>>()?;
        times.sort();
        let [median, most, worst] = [WAKES / 2, WAKES * 99 / 100, WAKES - 1].map(|at| times[at]);
        println!("idle/latency/{what}: median {median:?}, 99 % {most:?}, worst {worst:?}");
    }
    Ok(())
}

/// From a `send` after `pause` to the worker's look at the frame.
fn wake(socket: &UdpSocket, seen: &AtomicU64, pause: Duration) -> Result<Duration, Failure> {
    thread::sleep(pause);
    seen.store(0, Relaxed);
    let sent = now();
    socket.send(b"wake")?;
    let limit = Instant::now() + Duration::from_secs(5);
    loop {
        match seen.load(Relaxed) {
            0 if Instant::now() > limit => return Err("a datagram did not reach the worker".into()),
            0 => thread::yield_now(),
            at => return Ok(Duration::from_nanos(at).saturating_sub(sent)),
        }
    }
}

fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Notes when it sees a frame.
struct Watcher {
    seen: Arc<AtomicU64>,
}

impl Judge for Watcher {
    fn process(&mut self, _: &Snapshot, _: Tick, _: &mut [Packet<'_>], verdicts: &mut [Verdict]) {
        self.seen.store(u64::try_from(now().as_nanos()).unwrap_or(u64::MAX), Relaxed);
        verdicts.fill(Verdict::Drop(Reason::NoDestination));
    }

    fn dropped(&mut self, _: Reason, _: Option<(PortId, &[&[u8]])>) {}

    fn between(&mut self, _: Tick) {}

    fn sleep(&mut self, _: Tick) {}
}
