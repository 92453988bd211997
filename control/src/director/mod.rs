//! The director: everything assembled, in the order in which no frame falls between two chairs.
//!
//! Start: tables, devices with their steering programs (which take nothing yet), workers, services, the guard, and packet
//! sockets last, whose frames the kernel would handle without it. Stop: the steering program first (every frame is the
//! kernel's), then the guard, the workers and the rest. After a fault the guard
//! stays for its time, as when the process is killed.

pub(crate) mod defence;
pub mod devices;
mod kernel;
mod ladder;
mod load;
mod locals;
mod own;
mod plane;
mod rates;
mod report;
pub mod reserve;
pub(crate) mod services;
mod watch;

use crate::api::{CaptureSpec, Refusal, Request, Response};
use crate::capture;
use crate::netlink::{Client, NetlinkError};
use crate::options::{OnCrash, RunOptions};
use crate::privilege;
use crate::registry::{Apply, Registry};
use crate::socket::{self, Server, SocketError};
use crate::vips::{AnnounceError, Announcer, Vips};
use kernel::Kernel;
use ladder::Climbed;
use load::Load;
use nix::time::{ClockId, clock_gettime};
use own::Own;
use plane::Plane;
use report::Report;
use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use uvs_conntrack::{Limits, SharedTable, TableError, Tick, TooManyHandles};
use uvs_engine::capture::{Captures, Tapped};
use uvs_engine::counters::Counters;
use uvs_engine::link::Device;
use uvs_engine::nexthop::NextHops;
use uvs_engine::pipeline::{Commons, Pipeline};
use uvs_engine::service::Destinations;
use uvs_engine::snapshot::{OwnTraffic, Snapshot};
use uvs_engine::steer::way_back::Injected;
use uvs_engine::steer::{Guard, Guarded, OwnDevice, SteerError, Steering, WayBack, diversion};
use uvs_engine::worker::Notices;
use uvs_engine::{Config, link};
use watch::{End, Watch};

/// How long the guard behind packet sockets, and what diverts this host's own packets, stand without being renewed, at least. They
/// are renewed every half second.
const LEAST: Duration = Duration::from_secs(10);

/// Captures have this long to show the last frames.
const LAST_FRAMES: Duration = Duration::from_millis(500);

/// Next hops that may be known at a time.
const NEXT_HOPS: u16 = u16::MAX;

/// Why a director ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// A worker died.
    #[error("a worker ended by itself: this is a mistake in uvs, and its log says where")]
    WorkerDied,
    /// Every device disappeared.
    #[error("every device this director held is gone")]
    DevicesGone,
}

/// Why a director does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Capabilities are missing.
    #[error(transparent)]
    Privilege(#[from] privilege::Missing),
    /// A device or its rings.
    #[error(transparent)]
    Link(#[from] link::Error),
    /// No device was given, or there is none.
    #[error("no device to take frames from: name one with `--interface`")]
    NoDevices,
    /// The device is not up.
    #[error("{0} is down: `ip link set {0} up` first")]
    Down(String),
    /// `--workers 0`.
    #[error("a director needs at least one worker")]
    NoWorkers,
    /// More than a director can have.
    #[error("{0} workers are too many: use at most {max}", max = uvs_engine::worker::MAX_WORKERS)]
    TooManyWorkers(usize),
    /// A core that this process may not use.
    #[error(
        "processor {core} is not among those this process may use ({allowed}): choose others with `--cores`"
    )]
    NoSuchCore {
        /// The one asked for.
        core: usize,
        /// Those there are.
        allowed: String,
    },
    /// The connection table.
    #[error(transparent)]
    Table(#[from] TableError),
    /// The table has no handle left.
    #[error(transparent)]
    Handles(#[from] TooManyHandles),
    /// The sockets that announce virtual addresses.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// Routes and neighbours.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The steering program, the guard or the way back.
    #[error(transparent)]
    Steer(#[from] SteerError),
    /// The control socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Threads, descriptors, signals.
    #[error("{0}")]
    System(#[from] io::Error),
    /// A service of the configuration was refused.
    #[error("the configuration cannot be applied: {0}")]
    Configuration(Refusal),
}

/// Runs a director until SIGTERM, SIGINT, SIGQUIT or SIGHUP. Prints `ready` on standard output when frames flow.
///
/// # Errors
/// When it cannot start, or has nothing left to work with. What was put into the kernel is taken away again, but for the
/// guard when a worker died.
pub fn run(options: &RunOptions) -> Result<(), RunError> {
    let (director, signals) = begin(options)?;
    let end = director.watch.run(&signals);
    director.stop(end.is_crash());
    match end {
        End::Asked => Ok(()),
        End::DevicesGone => Err(RunError::DevicesGone),
        End::WorkerDied => Err(RunError::WorkerDied),
    }
}

/// Starts a director and says that it is ready; also what becomes readable when it is asked to end.
fn begin(options: &RunOptions) -> Result<(Director, UnixStream), StartError> {
    privilege::check()?;
    // Asked before anything is opened: the devices of a running director would only be found in use.
    socket::await_vacancy(&options.socket)?;
    let chosen = devices::choose(&options.interfaces)?;
    let signals = watch::signals()?;
    let director = Director::start(options, &chosen)?;
    if let Err(error) = director.guard(options, &chosen) {
        director.stop(false);
        return Err(error.into());
    }
    // Whoever does not read it does not wait for it.
    let _unread = writeln!(io::stdout(), "ready");
    Ok((director, signals))
}

/// CLOCK_MONOTONIC as the connection table counts it.
fn now() -> Tick {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Tick::default(), |time| Tick::of(Duration::from(time)))
}

type SharedRegistry = Arc<Mutex<Registry<Plane>>>;

/// A director at work.
struct Director {
    watch: Watch,
    server: Server,
    captures: Arc<Captures>,
}

/// What answers at the control socket.
#[derive(Clone)]
struct Desk {
    registry: SharedRegistry,
    config: Arc<Config>,
    captures: Arc<Captures>,
}

impl socket::Director for Desk {
    fn handle(&self, request: Request) -> Response {
        lock(&self.registry).handle(request)
    }

    fn capture(&self, spec: &CaptureSpec) -> Result<capture::Stream, Refusal> {
        capture::Stream::begin(&self.captures, &self.config.load().ports, spec)
    }
}

impl Director {
    /// Assembles everything but the guard.
    fn start(options: &RunOptions, chosen: &[Device]) -> Result<Self, StartError> {
        let table = SharedTable::create(Limits {
            connections4: options.limits.connections_ipv4,
            connections6: options.limits.connections_ipv6,
            destinations: options.limits.destinations,
            ..Limits::default()
        })?;
        let counters = Counters::new(options.limits.destinations);
        let destinations = Destinations::new(table.clone(), counters.clone());
        let config = Config::new(Snapshot::empty(NextHops::new(NEXT_HOPS)));
        // What a director that was killed left behind.
        restore_ports();
        diversion::remove_all()?;
        let own_device = Arc::new(OwnDevice::open()?);
        let own_port = own::port_id(chosen.len());
        config.publish(|snapshot| {
            snapshot.ports = devices::ports(chosen).into_iter().chain([own::port(&own_device)]).collect();
            snapshot.own_traffic = Some(OwnTraffic { port: own_port, sources: Arc::from([]) });
            snapshot.on_remove = options.on_remove;
            snapshot.options.rfc6040 = options.rfc6040;
        });

        let vips = options.assign_vips.then(|| open_vips(chosen)).transpose()?;
        let kernel = Kernel::open(config.clone(), vips)?;
        kernel.survey()?;

        let cores = devices::cores(&options.workers, chosen)?;
        let steering = Steering::new()?;
        let Climbed { mut crew, attachments } = ladder::climb(options, chosen, &cores, &steering)?;
        config.publish(|snapshot| {
            let mut ports = snapshot.ports.to_vec();
            let held = ports.iter_mut().take(chosen.len());
            held.for_each(|port| port.merged = ladder::merges(&attachments, port.ifindex));
            snapshot.ports = ports.into();
        });
        crew.add_own(own_device.clone(), own_port);
        config.publish(|snapshot| snapshot.repliers = steering.view());
        let way_back = Arc::new(WayBack::open()?);
        let mut handles = (0..cores.len()).map(|_| table.handle()).collect::<Result<Vec<_>, _>>()?;
        let mut handle = table.handle()?;
        // Awake, it would keep the table from reusing and moving anything.
        handle.sleep();
        let notices = Notices::new()?;
        let mut drops = Vec::new();
        let commons = Arc::<Commons>::default();
        let captures = Captures::new(cores.len());
        let running = crew.start(&config, &notices, |number| {
            let handle = handles.pop().expect("there is a handle for each worker");
            let worker = counters.worker();
            drops.push(worker.clone());
            let (destinations, commons) = (destinations.clone(), commons.clone());
            let pipeline = Pipeline::with_commons(handle, destinations, worker, commons);
            let way_back = way_back.clone();
            let inject = move |parts: &[&[u8]]| way_back.inject(parts) == Injected::Taken;
            (Tapped::new(pipeline, captures.clone(), number), Box::new(inject))
        })?;
        let running = Arc::new(running);

        let report = Report {
            running: running.clone(),
            attachments,
            handle,
            since: Instant::now(),
            drops,
            load: Load::default(),
            kernel: kernel.clone(),
            captures: captures.clone(),
        };
        let mut plane =
            Plane::new(config.clone(), destinations, steering, kernel.clone(), report, options.reserve_ports);
        plane.own = Own::begin(&plane.steering, &own_device, options, chosen);
        plane.set_local(kernel.local_addresses());
        let registry = Arc::new(Mutex::new(Registry::new(plane, options.timeouts)));
        configure(&registry, options)?;
        let desk = Desk { registry: registry.clone(), config: config.clone(), captures };
        let server = Server::start(&options.socket, Arc::new(desk.clone()))?;
        let news = kernel.descriptor()?;
        let watch = Watch { config, kernel, news, notices, registry, running };
        Ok(Director { watch, server, captures: desk.captures })
    }

    /// Puts the guard up, unless the kernel is to have everything when this process dies. A kernel that cannot have one
    /// does not keep the director from starting, unless it takes frames by packet sockets: these begin only behind the
    /// guard, which lets them have their frames alone.
    fn guard(&self, options: &RunOptions, chosen: &[Device]) -> Result<(), SteerError> {
        let mut registry = lock(&self.watch.registry);
        let plane = registry.plane_mut();
        let copies = plane.report.takes_copies();
        if options.on_crash == OnCrash::Kernel && !copies {
            return Ok(());
        }
        let (guarded, timeout) = match options.on_crash {
            OnCrash::Kernel => (Guarded::AllTaken, LEAST),
            OnCrash::Guard if copies => (Guarded::AllTaken, options.guard_timeout.0.max(LEAST)),
            OnCrash::Guard => (Guarded::Certain, options.guard_timeout.0),
        };
        match put_up(&plane.steering, timeout, guarded, chosen) {
            Ok(guard) => plane.guard = Some((guard, timeout)),
            Err(error) if copies => return Err(error),
            Err(error) => tracing::warn!(
                "no guard: should this process die, the kernel will reset the connections of its services ({error})"
            ),
        }
        plane.steering.reveal();
        Ok(())
    }

    /// Takes everything away again; with `crashed`, everything but the guard.
    fn stop(self, crashed: bool) {
        let Director { watch: Watch { registry, kernel, .. }, server, captures } = self;
        drop(server);
        captures.close();
        let mut registry = lock(&registry);
        let plane = registry.plane_mut();
        plane.report.attachments.clear();
        if crashed {
            plane.keep_guard();
        } else {
            plane.own.take().into_iter().for_each(Own::end);
            if let Err(error) = plane.take_guard_down() {
                tracing::error!(
                    "the guard stands still, for its time: `uvs guard off` takes it away ({error})"
                );
            }
        }
        restore_ports();
        kernel.withdraw_all();
        let since = Instant::now();
        while captures.feeds() > 0 && since.elapsed() < LAST_FRAMES {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn restore_ports() {
    if let Err(error) = reserve::restore() {
        tracing::error!("the ports reserved for full NAT stay reserved: {error}");
    }
}

fn lock(registry: &SharedRegistry) -> MutexGuard<'_, Registry<Plane>> {
    registry.lock().unwrap_or_else(PoisonError::into_inner)
}

fn open_vips(chosen: &[Device]) -> Result<Vips, StartError> {
    let mut vips = Vips::new(Client::open()?, Announcer::open()?, None);
    let held: Vec<u32> = chosen.iter().map(|device| device.index).collect();
    vips.take_over(&held)?;
    Ok(vips)
}

fn put_up(
    steering: &Steering,
    timeout: Duration,
    guarded: Guarded,
    devices: &[Device],
) -> Result<Guard, SteerError> {
    let mut guard = Guard::new(steering, timeout, guarded)?;
    for device in devices {
        if let Err(error) = guard.install(device.index) {
            guard.remove()?;
            return Err(error);
        }
    }
    Ok(guard)
}

/// Applies the services of the configuration.
fn configure(registry: &SharedRegistry, options: &RunOptions) -> Result<(), StartError> {
    let mut registry = lock(registry);
    registry.plane_mut().set_timeouts(options.timeouts);
    registry.plane_mut().set_settings(options.settings.clone());
    let requests = options.services.iter().flat_map(|(service, servers)| {
        let servers =
            servers.iter().map(|server| Request::AddServer { service: service.id, server: *server });
        std::iter::once(Request::AddService(service.clone())).chain(servers)
    });
    let locals = options.locals.iter().map(|(service, address)| {
        let (service, address) = (*service, *address);
        Request::AddLocal { service, address }
    });
    for request in requests.chain(locals) {
        if let Response::Refused(refusal) = registry.handle(request) {
            return Err(StartError::Configuration(refusal));
        }
    }
    Ok(())
}
