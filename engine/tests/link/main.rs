//! AF_XDP, packet sockets and the workers over real veth devices, with a forwarder in the pipeline's place.

#![allow(unsafe_code)] // bpf(2), capset(2)
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod forwarder;
mod namespace;
mod privilege;
mod raw;
mod redirect;

use forwarder::{Forwarder, Seen};
use namespace::Namespace;
use redirect::{Attached, Mode, redirect};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::{Duration, Instant};
use uvs_engine::link::xdp::Options;
use uvs_engine::link::{Device, Error};
use uvs_engine::worker::{Crew, Link, Notice, Notices, Running, Seat, Tally};
use uvs_engine::{Config, PortId, Snapshot};
use uvs_lab::Prefix;

const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);

/// Client, director and server: c0 — d0 | d1 — s0.
struct Bridge {
    client: Namespace,
    director: Namespace,
    server: Namespace,
    notices: Arc<Notices>,
    seen: Arc<Seen>,
    shape: Shape,
    working: Option<(Running, Vec<Attached>)>,
}

#[derive(Clone, Copy)]
struct Shape {
    mode: Mode,
    mtu: u32,
    client_queues: u32,
    workers: usize,
}

const PLAIN: Shape = Shape { mode: Mode::Native, mtu: 1500, client_queues: 1, workers: 1 };

impl Bridge {
    fn new(shape: Shape) -> Self {
        let mut bridge = Bridge::build(shape);
        bridge.start(&["d0", "d1"]);
        bridge
    }

    /// Nobody works yet.
    fn build(shape: Shape) -> Self {
        let [client, director, server] = [(); 3].map(|()| Namespace::new());
        director.veth("d0", shape.client_queues, shape.mtu, &client, "c0");
        director.veth("d1", 1, shape.mtu, &server, "s0");
        client.net(|net| net.add_address("c0", Prefix::new(CLIENT, 24)));
        server.net(|net| net.add_address("s0", Prefix::new(SERVER, 24)));
        let notices = Notices::new().unwrap();
        Bridge { client, director, server, notices, seen: Arc::default(), shape, working: None }
    }

    /// Takes frames from these devices of the director, which are ports 0, 1, 2 and so on.
    fn start(&mut self, devices: &[&str]) {
        let (director, mode) = (&self.director, self.shape.mode);
        let seats = director.run(|| seats(devices, mode));
        self.work(&seats, |crew| {
            seats.iter().map(|seat| redirect(crew.lanes(), seat.port, seat.device.index, mode)).collect()
        });
    }

    /// Opens the seats, has frames brought in, and forwards them.
    fn work(&mut self, seats: &[Seat], attach: impl FnOnce(&Crew) -> Vec<Attached> + Send) {
        let Bridge { director, notices, seen, shape, .. } = self;
        self.working = Some(director.run(|| {
            let crew = Crew::open(seats, &vec![None; shape.workers]).unwrap();
            let attached = attach(&crew);
            let config = Config::new(Snapshot::empty(Arc::default()));
            let make = |_| (Forwarder { seen: seen.clone() }, Box::new(|_: &[&[u8]]| false) as _);
            (crew.start(&config, notices, make).unwrap(), attached)
        }));
    }

    fn stop(&mut self) {
        self.working = None;
    }

    fn running(&self) -> &Running {
        &self.working.as_ref().unwrap().0
    }

    fn tallies(&self) -> Vec<&Tally> {
        self.running().tallies().map(|(tally, _)| tally).collect()
    }
}

fn seats(names: &[&str], mode: Mode) -> Vec<Seat> {
    let options = Options { zero_copy: mode == Mode::Native, ..Options::default() };
    let seat = |(port, name): (u16, &&str)| Seat {
        port: PortId(port),
        device: Device::open(name).unwrap(),
        link: Link::Xdp(options),
    };
    (0..).zip(names).map(seat).collect()
}

/// Waits until `condition` holds; fails when it does not within ten seconds.
fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Again and again while signals, which another test may get, end it early.
fn uninterrupted<T>(mut call: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// A datagram of `len` bytes there and back, `times` times, each from a new port.
fn udp_echo(bridge: &Bridge, len: usize, times: usize) {
    let mut bound = None;
    // A process that another test is just starting may hold the last one's socket a moment longer.
    wait_for("the server's port", || {
        bound = bridge.server.run(|| UdpSocket::bind((SERVER, 7)).ok());
        bound.is_some()
    });
    let server = bound.unwrap();
    server.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = vec![0; 65536];
            for _ in 0..times {
                let (len, from) = uninterrupted(|| server.recv_from(&mut buffer)).unwrap();
                server.send_to(&buffer[..len], from).unwrap();
            }
        });
        for round in 0..times {
            let client = bridge.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
            client.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            let sent: Vec<u8> = (0..len).map(|i| u8::try_from((i * 7 + round) % 251).unwrap()).collect();
            client.send_to(&sent, (SERVER, 7)).unwrap();
            let mut got = vec![0; 65536];
            let len = uninterrupted(|| client.recv(&mut got)).unwrap();
            assert!(got[..len] == sent, "datagram {round} came back changed");
        }
    });
}

/// `bytes` through one connection from client to server; returns Gbit/s.
fn tcp_transfer(bridge: &Bridge, bytes: usize) -> f64 {
    let listener = bridge.server.run(|| TcpListener::bind((SERVER, 80)).unwrap());
    let pattern: Vec<u8> = (0..bytes).map(|i| u8::try_from(i % 251).unwrap()).collect();
    let start = Instant::now();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut client = bridge.client.run(|| TcpStream::connect((SERVER, 80)).unwrap());
            client.write_all(&pattern).unwrap();
        });
        let (mut connection, _) = listener.accept().unwrap();
        let mut got = Vec::with_capacity(bytes);
        connection.read_to_end(&mut got).unwrap();
        assert!(got == pattern, "the bytes arrived changed");
    });
    bytes as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

#[test]
fn udp_and_tcp_through_native_mode() {
    let bridge = Bridge::new(PLAIN);
    udp_echo(&bridge, 100, 20);
    let rate = tcp_transfer(&bridge, 100 << 20);
    println!("native: {rate:.2} Gbit/s");
    assert_eq!(bridge.seen.dropped.load(Relaxed), 0);
}

#[test]
fn udp_and_tcp_through_generic_mode() {
    let bridge = Bridge::new(Shape { mode: Mode::Generic, ..PLAIN });
    udp_echo(&bridge, 100, 20);
    let rate = tcp_transfer(&bridge, 64 << 10);
    println!("generic: {rate:.3} Gbit/s");
}

#[test]
fn frames_of_9000_bytes_in_parts() {
    for mode in [Mode::Native, Mode::Generic] {
        let bridge = Bridge::new(Shape { mode, mtu: 9000, ..PLAIN });
        udp_echo(&bridge, 8900, 20);
        assert!(bridge.running().lanes().iter().all(|lane| lane.multi_buffer));
        assert_eq!(bridge.seen.in_parts.load(Relaxed), 40, "{mode:?}");
        assert_eq!(bridge.seen.longest.load(Relaxed), 8942, "{mode:?}");
    }
}

#[test]
fn two_workers_two_queues_towards_the_client_one_towards_the_server() {
    let bridge = Bridge::new(Shape { client_queues: 2, workers: 2, ..PLAIN });
    let lanes: Vec<_> =
        bridge.running().lanes().iter().map(|lane| (lane.worker, lane.port.0, lane.queue)).collect();
    assert_eq!(lanes, [(0, 0, 0), (0, 1, 0), (1, 0, 1)]);
    udp_echo(&bridge, 1000, 200);
    let tallies = bridge.tallies();
    assert!(tallies.iter().all(|tally| tally.received() > 10), "one worker received nothing: {tallies:?}");
    assert!(tallies[1].handed() > 10, "{tallies:?}");
    wait_for("what was handed over to be taken", || tallies[0].taken() == tallies[1].handed());
    assert_eq!(bridge.seen.dropped.load(Relaxed), 0);
}

#[test]
fn a_jumbo_frame_from_one_worker_to_the_other() {
    let bridge = Bridge::new(Shape { client_queues: 2, workers: 2, mtu: 9000, ..PLAIN });
    udp_echo(&bridge, 8900, 100);
    let handed: u64 = bridge.tallies().iter().map(|tally| tally.handed()).sum();
    assert!(handed > 10, "{handed}");
    assert_eq!(bridge.seen.dropped.load(Relaxed), 0);
}

#[test]
fn a_restart_at_once_and_a_queue_that_stays_busy() {
    let mut bridge = Bridge::new(PLAIN);
    udp_echo(&bridge, 100, 1);
    let busy = bridge.director.run(|| Crew::open(&seats(&["d0"], Mode::Native), &[None]).err().unwrap());
    assert_eq!(
        busy.to_string(),
        "queue 0 of d0 is in use by another AF_XDP socket: stop the program that holds it"
    );
    for _ in 0..3 {
        bridge.stop();
        bridge.start(&["d0", "d1"]);
        udp_echo(&bridge, 100, 3);
    }
}

#[test]
fn a_device_that_vanishes_leaves_the_others_working() {
    let mut bridge = Bridge::new(PLAIN);
    bridge.stop();
    let third = Namespace::new();
    bridge.director.veth("d2", 1, 1500, &third, "t0");
    bridge.start(&["d0", "d1", "d2"]);
    udp_echo(&bridge, 100, 3);
    bridge.director.net(|net| net.delete("d2"));
    let mut notice = None;
    wait_for("the notice that the device is gone", || {
        notice = notice.or_else(|| bridge.notices.next());
        notice.is_some()
    });
    assert_eq!(notice, Some(Notice::DeviceGone(PortId(2))));
    assert_eq!(bridge.tallies().iter().map(|tally| tally.gone()).sum::<u64>(), 1);
    udp_echo(&bridge, 100, 3);
    assert!(bridge.running().is_whole());
    assert_eq!(bridge.notices.next(), None, "told once");
}

#[test]
fn devices_are_those_of_the_namespace() {
    let [here, there] = [(); 2].map(|()| Namespace::new());
    here.veth("wide", 3, 1400, &there, "peer");
    let devices = here.run(|| Device::all().unwrap());
    let [device] = &devices[..] else { panic!("one Ethernet device expected: {devices:?}") };
    assert_eq!((device.name.as_str(), device.mtu, device.queues, device.up), ("wide", 1400, 3, true));
    let missing = here.run(|| Device::open("peer").unwrap_err());
    assert!(matches!(missing, Error::NoDevice(_)), "{missing}");
}

#[test]
fn what_a_missing_privilege_is_told_as() {
    let [here, there] = [(); 2].map(|()| Namespace::new());
    here.veth("d0", 1, 1500, &there, "c0");
    privilege::limit_locked_memory(1 << 20);
    let table = [
        (
            privilege::NET_RAW,
            "opening an AF_XDP socket needs the capability CAP_NET_RAW: run as root or grant it",
        ),
        (
            privilege::IPC_LOCK,
            "frames need 16 MiB of locked memory, more than the limit allows: grant CAP_IPC_LOCK, or raise the \
             limit (`ulimit -l`, LimitMEMLOCK= in a systemd unit)",
        ),
    ];
    for (capability, sentence) in table {
        let error = here.run(|| {
            privilege::give_up(capability);
            Crew::open(&seats(&["d0"], Mode::Native), &[None]).err().unwrap()
        });
        assert_eq!(error.to_string(), sentence);
    }
}

#[test]
fn a_device_that_goes_down_and_up_again_goes_on() {
    let bridge = Bridge::new(PLAIN);
    udp_echo(&bridge, 100, 3);
    bridge.director.net(|net| net.down("d1"));
    let [client, server] = [(&bridge.client, CLIENT, 0), (&bridge.server, SERVER, 9)]
        .map(|(namespace, address, port)| namespace.run(|| UdpSocket::bind((address, port)).unwrap()));
    client.set_nonblocking(true).unwrap();
    server.set_nonblocking(true).unwrap();
    client.send_to(b"lost", (SERVER, 9)).unwrap();
    bridge.director.net(|net| net.up("d1"));
    // The kernel may take a second to let the server's device send again.
    wait_for("a datagram to come through both ways again", || {
        let asked = client.send_to(b"seen", (SERVER, 9));
        let answered = server.recv_from(&mut [0; 4]).and_then(|(_, from)| server.send_to(b"seen", from));
        asked.and(answered).and_then(|_| client.recv(&mut [0; 4])).is_ok()
    });
    udp_echo(&bridge, 100, 3);
    assert_eq!(bridge.notices.next(), None, "a device that is down is not gone");
}
