//! What one frame costs in memory, no I/O: `frame/{method}/{ipv4|ipv6}/{tcp|udp}/{flows}` for packets of established
//! connections, `new/{method}/{ipv4|ipv6}/{tcp|udp}` for packets that begin one.
//!
//! A time is that of one frame of 60 bytes (80 over IPv6), in a batch of 64: copied to its buffer as it came, parsed, looked
//! up in a table of that many connections in random order, its connection's state, timers and counters brought up to
//! date, rewritten whole, its verdict given. `frame/restore/…` is the copying alone; it is not subtracted.

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use nix::time::{ClockId, clock_gettime};
use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use uvs_conntrack::{Limits, SharedTable, Tick};
use uvs_engine::capture::{Captures, Tapped};
use uvs_engine::counters::Counters;
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{NextHops, Route, Routes, Target};
use uvs_engine::packet::checksum::{Sum, complete};
use uvs_engine::packet::proxy::Version;
use uvs_engine::packet::{ipv4, ipv6, protocol, tcp, udp};
use uvs_engine::pipeline::Pipeline;
use uvs_engine::plan::{AddressOption, Tell, Tunnel, TunnelChecksum, TunnelKind};
use uvs_engine::service::{DestinationConfig, Destinations, LocalPool, Ports, Service, ServiceKey, Terms};
use uvs_engine::snapshot::Port;
use uvs_engine::verdict::Neighbour;
use uvs_engine::worker::Process;
use uvs_engine::{BATCH, Packet, PortId, Snapshot, Verdict};

const FLOWS: [usize; 4] = [1, 4096, 65_536, 1_048_576];
/// Frames whose buffers are gone through before one is used again.
const BUFFERS: usize = 4096;
const BUFFER_LEN: usize = 2048;
const PAGE: usize = 4096;
/// Where AF_XDP puts a frame in its buffer.
const HEADROOM: usize = 256;
const SERVERS: u8 = 64;
/// Batches of established traffic in one tick of 10 ms, about.
const BATCHES_PER_TICK: usize = 4096;
/// New connections before the table is emptied again.
const NEW_FLOWS: usize = 65_536;

const DIRECTOR_MACS: [[u8; 6]; 2] = [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]];

/// One row of the benchmark.
#[derive(Clone, Copy)]
struct Case {
    method: Method,
    v4: bool,
    protocol: u8,
    /// How full NAT tells clients' addresses: by each packet here, since the real server never answers.
    tell: Tell,
    /// What a tunnel puts around packets.
    tunnel: (TunnelKind, TunnelChecksum),
}

impl Case {
    fn all() -> impl Iterator<Item = Case> {
        let usual = Method::ALL.iter().flat_map(|method| {
            [true, false].into_iter().flat_map(move |v4| {
                [protocol::TCP, protocol::UDP].map(|protocol| Case::usual(*method, v4, protocol))
            })
        });
        let tells = [Tell::Option(AddressOption::default()), Tell::Header(Version::Two)];
        let telling = tells.into_iter().flat_map(|tell| {
            [true, false].map(|v4| Case { tell, ..Case::usual(Method::FullNat, v4, protocol::TCP) })
        });
        let tunnels = [(TunnelKind::Gre, TunnelChecksum::None), (TunnelKind::Gue, TunnelChecksum::Full)];
        let tunnelling = tunnels.into_iter().flat_map(|tunnel| {
            [true, false].map(|v4| Case { tunnel, ..Case::usual(Method::Tunnel, v4, protocol::TCP) })
        });
        usual.chain(telling).chain(tunnelling)
    }

    fn usual(method: Method, v4: bool, protocol: u8) -> Case {
        let tunnel = (TunnelKind::Ipip, TunnelChecksum::None);
        Case { method, v4, protocol, tell: Tell::Nothing, tunnel }
    }

    fn name(self) -> String {
        let method = match self.method {
            Method::Nat => "nat",
            Method::Direct => "direct",
            Method::FullNat => match self.tell {
                Tell::Nothing => "fullnat",
                Tell::Option(_) => "fullnat-toa",
                Tell::Header(_) => "proxy",
            },
            Method::Tunnel => match self.tunnel {
                (TunnelKind::Ipip, _) => "tunnel",
                (TunnelKind::Gre, _) => "tunnel-gre",
                (TunnelKind::Gue, _) => "tunnel-gue-csum",
            },
        };
        let version = if self.v4 { "ipv4" } else { "ipv6" };
        let protocol = if self.protocol == protocol::TCP { "tcp" } else { "udp" };
        format!("{method}/{version}/{protocol}")
    }

    fn service(self) -> SocketAddr {
        let ip =
            if self.v4 { IpAddr::from([192, 168, 0, 1]) } else { "fd00::1".parse().expect("an address") };
        SocketAddr::new(ip, 80)
    }

    fn server(self, number: u8) -> SocketAddr {
        let ip = if self.v4 {
            IpAddr::from([172, 16, 0, number])
        } else {
            IpAddr::from(Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, number.into()))
        };
        let port = if self.method == Method::Direct { self.service().port() } else { 8080 };
        SocketAddr::new(ip, port)
    }

    /// A client for each flow, scattered over its network.
    #[expect(clippy::cast_possible_truncation, reason = "scattering is meant to cut")]
    fn client(self, flow: usize) -> SocketAddr {
        let scattered = (flow as u32).wrapping_mul(0x9e37_79b1);
        let port = 1024 + (scattered & 0xff) as u16;
        let host = scattered >> 8;
        let ip = if self.v4 {
            IpAddr::from(Ipv4Addr::from(0x0a00_0000 | host))
        } else {
            IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, (host >> 16) as u16, host as u16))
        };
        SocketAddr::new(ip, port)
    }

    fn frame_len(self) -> usize {
        if self.v4 { 60 } else { 80 }
    }

    /// The flow's frame with these TCP flags, its checksums complete.
    #[expect(clippy::cast_possible_truncation, reason = "frames are short")]
    fn frame(self, flow: usize, flags: u8) -> Vec<u8> {
        let mut frame = vec![0; self.frame_len()];
        frame[..6].copy_from_slice(&DIRECTOR_MACS[0]);
        frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        let (client, service) = (self.client(flow), self.service());
        let transport = 14 + if self.v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
        let length = (frame.len() - transport) as u16;
        let pseudo = match (client.ip(), service.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                frame[12..14].copy_from_slice(&[0x08, 0x00]);
                let mut header = ipv4::Ipv4::parse_mut(&mut frame, 14).expect("room");
                header.emit(from, to, self.protocol, 64, length);
                Sum::pseudo4_of(from, to, self.protocol, length)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                frame[12..14].copy_from_slice(&[0x86, 0xdd]);
                let mut header = ipv6::Ipv6::parse_mut(&mut frame, 14).expect("room");
                header.emit(from, to, self.protocol, 64, length);
                Sum::pseudo6_of(from, to, self.protocol, length.into())
            }
            _ => unreachable!("one IP version"),
        };
        let bytes = &mut frame[transport..];
        bytes[..2].copy_from_slice(&client.port().to_be_bytes());
        bytes[2..4].copy_from_slice(&service.port().to_be_bytes());
        let field = if self.protocol == protocol::TCP {
            // What follows a SYN begins behind it.
            bytes[4..8].copy_from_slice(&u32::from(flags & tcp::flag::SYN == 0).to_be_bytes());
            bytes[12..14].copy_from_slice(&[0x50, flags]);
            tcp::field::CHECKSUM
        } else {
            bytes[4..6].copy_from_slice(&length.to_be_bytes());
            udp::field::CHECKSUM
        };
        let checksum = complete(pseudo, 0, [&*bytes]);
        bytes[field].copy_from_slice(&checksum.to_ne_bytes());
        frame
    }

    /// Frames one after the other, as [`Traffic`] wants them.
    fn frames(self, flows: impl Iterator<Item = usize>, flags: u8) -> Vec<u8> {
        flows.flat_map(|flow| self.frame(flow, flags)).collect()
    }
}

/// Frames as they came, and the buffers they are copied to.
struct Traffic {
    frames: Vec<u8>,
    frame_len: usize,
    at: usize,
    /// The buffers, from `first` on: that is where a page begins, as with AF_XDP.
    memory: Vec<u8>,
    first: usize,
    buffer: usize,
}

impl Traffic {
    fn new(frames: Vec<u8>, frame_len: usize) -> Self {
        let memory = vec![0_u8; BUFFERS * BUFFER_LEN + PAGE];
        let first = memory.as_ptr().align_offset(PAGE);
        Traffic { frames, frame_len, at: 0, memory, first, buffer: 0 }
    }

    /// Copies the next batch of frames to the next buffers and hands those over.
    #[inline]
    fn batch<R>(&mut self, run: impl FnOnce(&mut [Packet<'_>]) -> R) -> R {
        let bytes = BATCH * self.frame_len;
        if self.at + bytes > self.frames.len() {
            self.at = 0;
        }
        if self.buffer + BATCH > BUFFERS {
            self.buffer = 0;
        }
        let inputs = self.frames[self.at..self.at + bytes].chunks_exact(self.frame_len);
        let buffers =
            &mut self.memory[self.first..][self.buffer * BUFFER_LEN..(self.buffer + BATCH) * BUFFER_LEN];
        let mut packets: arrayvec::ArrayVec<Packet<'_>, BATCH> = arrayvec::ArrayVec::new();
        for (input, buffer) in inputs.zip(buffers.chunks_exact_mut(BUFFER_LEN)) {
            buffer[HEADROOM..HEADROOM + self.frame_len].copy_from_slice(input);
            packets.push(Packet::new(buffer, HEADROOM, self.frame_len, PortId(0)));
        }
        self.at += bytes;
        self.buffer += BATCH;
        run(&mut packets)
    }
}

/// A director with one service of [`SERVERS`] real servers.
struct Director {
    /// As a worker has it, with nobody capturing.
    pipeline: Tapped<Pipeline>,
    snapshot: Snapshot,
    counters: Arc<Counters>,
    now: Tick,
    batches: usize,
}

impl Director {
    fn new(case: Case, connections: usize) -> Self {
        let connections = u32::try_from(connections + connections / 8 + 8192).expect("a bounded number");
        let limits = Limits {
            connections4: if case.v4 { connections } else { 1 },
            connections6: if case.v4 { 1 } else { connections },
            destinations: 256,
            ..Limits::default()
        };
        let table = SharedTable::create(limits).expect("memory for the table");
        let counters = Counters::new(limits.destinations);
        let destinations = Destinations::new(table.clone(), counters.clone());
        let worker = counters.worker();
        let hops = NextHops::new(256);
        let mut snapshot = Snapshot::empty(hops.clone());
        snapshot.ports = DIRECTOR_MACS
            .iter()
            .zip(1..)
            .map(|(mac, ifindex)| Port {
                ifindex,
                name: format!("port{ifindex}"),
                mac: *mac,
                mtu: 1500,
                up: true,
                addresses: [None; 2],
                merged: false,
            })
            .collect();
        let network = case.server(0).ip();
        let length = if case.v4 { 24 } else { 64 };
        let mut routes = Routes::build([Route { network, length, target: Target::OnLink(PortId(1)) }]);

        let key =
            ServiceKey { address: case.service().ip(), port: case.service().port(), protocol: case.protocol };
        let scheduler = uvs_schedulers::by_name("rr").expect("round robin is built in");
        let service = Service::new(key, "rr", scheduler, destinations.clone()).expect("room for a service");
        let local = destinations.locals().enter(case.server(0).ip());
        service.set_locals(LocalPool::new(vec![(local, Ports::default())]));
        service.set_terms(Terms { tell: case.tell, ..Terms::default() });
        for number in 1..=SERVERS {
            let address = case.server(number);
            let mut config = DestinationConfig::new(address, case.method);
            if case.method == Method::Tunnel {
                let (kind, checksum) = case.tunnel;
                let port = if kind == TunnelKind::Gue { 6080 } else { 0 };
                config.plan.tunnel = Some(Tunnel { kind, port, checksum });
                config.plan.source = Some(case.server(254).ip());
            }
            service.add(&config).expect("a new real server");
            let neighbour = Neighbour { port: PortId(1), address: address.ip() };
            routes = routes.with_neighbour(&hops, neighbour, [2, 1, 1, 1, 1, number]).expect("room");
        }
        snapshot.routes = Arc::new(routes);
        snapshot.services = snapshot.services.with(service).expect("a new service");
        let pipeline = Pipeline::new(table.handle().expect("a free handle"), destinations, worker);
        let pipeline = Tapped::new(pipeline, Captures::new(1), 0);
        Director { pipeline, snapshot, counters, now: Tick(1), batches: 0 }
    }

    #[inline]
    fn run(&mut self, packets: &mut [Packet<'_>]) -> [Verdict; BATCH] {
        self.batches += 1;
        if self.batches.is_multiple_of(BATCHES_PER_TICK) {
            self.now = Tick(self.now.0.wrapping_add(1));
        }
        let mut verdicts = [Verdict::ToKernel; BATCH];
        self.pipeline.between(self.now);
        self.pipeline.process(&self.snapshot, self.now, packets, &mut verdicts);
        verdicts
    }

    /// Runs all the frames through once; every one must be forwarded.
    fn run_all(&mut self, traffic: &mut Traffic) {
        traffic.at = 0;
        for _ in 0..traffic.frames.len() / traffic.frame_len / BATCH {
            let verdicts = traffic.batch(|packets| self.run(packets));
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Transmit(PortId(1))), "{verdicts:?}");
        }
    }

    /// Every connection ends.
    fn forget(&mut self) {
        self.now = self.now.plus_seconds(uvs_conntrack::MAX_TIMEOUT);
        self.pipeline.between(self.now);
        self.pipeline.sleep(self.now);
    }
}

/// Random flows, as many as there are but at least a round of buffers.
fn random_order(flows: usize) -> impl Iterator<Item = usize> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..flows.max(BUFFERS)).map(move |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        usize::try_from((u128::from(state) * flows as u128) >> 64).unwrap_or(0)
    })
}

/// This thread's time on a processor. The pipeline neither waits nor asks the kernel for anything, so on an idle machine
/// this is the time that passes; on a busy one the other programs' turns are left out.
fn cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("every Linux has this clock"))
}

/// Time of `frames` frames, scaled from whole batches.
fn scaled(frames: u64, mut batch: impl FnMut()) -> Duration {
    let batches = frames.div_ceil(BATCH as u64);
    let start = cpu_time();
    for _ in 0..batches {
        batch();
    }
    (cpu_time() - start).mul_f64(frames as f64 / (batches * BATCH as u64) as f64)
}

fn established(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame");
    for case in Case::all() {
        for flows in FLOWS {
            let mut all = None;
            group.bench_function(BenchmarkId::new(case.name(), flows), |bencher| {
                let (director, traffic) = all.get_or_insert_with(|| prepared(case, flows));
                bencher.iter_custom(|frames| {
                    scaled(frames, || {
                        black_box(traffic.batch(|packets| director.run(packets)));
                    })
                });
            });
        }
    }
    group.finish();
}

/// A director with `flows` established connections, and random traffic of theirs.
fn prepared(case: Case, flows: usize) -> (Director, Traffic) {
    const SYN: u8 = tcp::flag::SYN;
    const ACK: u8 = tcp::flag::ACK;
    let mut director = Director::new(case, flows);
    let every = (0..flows.max(BATCH)).map(|flow| flow % flows);
    for flags in [SYN, ACK] {
        director.run_all(&mut Traffic::new(case.frames(every.clone(), flags), case.frame_len()));
    }
    let mut traffic = Traffic::new(case.frames(random_order(flows), ACK), case.frame_len());
    director.run_all(&mut traffic);
    (director, traffic)
}

fn restoring(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("frame/restore");
    for (name, v4) in [("ipv4", true), ("ipv6", false)] {
        let case = Case::usual(Method::Nat, v4, protocol::TCP);
        for flows in FLOWS {
            let mut traffic = None;
            group.bench_function(BenchmarkId::new(name, flows), |bencher| {
                let traffic = traffic.get_or_insert_with(|| {
                    let frames = case.frames(random_order(flows), tcp::flag::ACK);
                    Traffic::new(frames, case.frame_len())
                });
                bencher.iter_custom(|frames| {
                    scaled(frames, || {
                        traffic.batch(|packets| {
                            black_box(packets);
                        });
                    })
                });
            });
        }
    }
    group.finish();
}

fn new_connections(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("new");
    for case in Case::all() {
        let mut all = None;
        group.bench_function(case.name(), |bencher| {
            let (director, traffic) = all.get_or_insert_with(|| {
                let frames = case.frames(0..NEW_FLOWS, tcp::flag::SYN);
                (Director::new(case, NEW_FLOWS), Traffic::new(frames, case.frame_len()))
            });
            bencher.iter_custom(|frames| {
                let (mut left, mut spent) = (frames, Duration::ZERO);
                while left > 0 {
                    director.forget();
                    traffic.at = 0;
                    let now = left.min(NEW_FLOWS as u64);
                    spent += scaled(now, || {
                        black_box(traffic.batch(|packets| director.run(packets)));
                    });
                    left -= now;
                }
                let batches = director.batches as u64;
                let connections = director.counters.total().connections;
                assert_eq!(connections, batches * BATCH as u64, "every frame begins a connection");
                spent
            });
        });
    }
    group.finish();
}

criterion_group! {
    name = frame;
    config = Criterion::default().sample_size(30).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    targets = restoring, established, new_connections
}
criterion_main!(frame);
