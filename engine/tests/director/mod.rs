//! A director for tests, and frames built by an independent crate.
//!
//! Port 0 is the clients' side: 10.0.0.0/24 and fd00:1::/64, a gateway to everything else. Port 1 is the real servers' side:
//! 172.16.0.0/24 and fd00:2::/64.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(unreachable_pub, reason = "a module of several test binaries")]
#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

pub mod edit;
pub mod full_nat;
pub mod oracle;
pub mod own;
pub mod report;
pub mod tcp;
pub mod ways;

use etherparse::{
    EtherType, Ethernet2Header, IpNumber, Ipv4Header, Ipv6FlowLabel, Ipv6Header, SingleVlanHeader, TcpHeader,
    UdpHeader, VlanId, VlanPcp,
};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use uvs_conntrack::{Limits, SharedTable, Tick};
use uvs_engine::counters::Counters;
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{NextHops, Route, Routes, Target};
use uvs_engine::pipeline::{Commons, Pipeline, View};
use uvs_engine::plan::{Tunnel, TunnelChecksum, TunnelKind};
use uvs_engine::service::{DestinationConfig, Destinations, LocalPool, Ports, Service, ServiceKey};
use uvs_engine::snapshot::Port;
use uvs_engine::verdict::Neighbour;
use uvs_engine::{Packet, PortId, Snapshot, Verdict};

pub const CLIENTS: PortId = PortId(0);
pub const SERVERS: PortId = PortId(1);
/// The methods that leave a client's address and sequence numbers alone.
pub const PLAIN: [Method; 3] = [Method::Nat, Method::Direct, Method::Tunnel];
/// Link-layer addresses of the director's ports.
pub const PORT_MACS: [[u8; 6]; 2] = [[2, 0xd, 0, 0, 0, 0], [2, 0xd, 0, 0, 0, 1]];
/// Addresses of the director's ports.
pub const DIRECTOR4: [&str; 2] = ["10.0.0.1", "172.16.0.254"];
pub const DIRECTOR6: [&str; 2] = ["fd00:1::1", "fd00:2::254"];
/// Link-layer addresses of the client and the real servers.
pub const CLIENT_MAC: [u8; 6] = [2, 0xc, 0, 0, 0, 1];
pub const SERVER_MAC: [u8; 6] = [2, 0xe, 0, 0, 0, 1];
pub const SECOND_SERVER_MAC: [u8; 6] = [2, 0xe, 0, 0, 0, 2];

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

pub fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address and a port")
}

/// The addresses of a test in one IP version.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub client: SocketAddr,
    pub service: SocketAddr,
    pub server: SocketAddr,
    pub second: SocketAddr,
}

/// Both plans. The real servers listen on another port than the service.
pub fn plans() -> [Plan; 2] {
    [
        Plan {
            client: at("10.0.0.2:40000"),
            service: at("10.0.0.100:80"),
            server: at("172.16.0.1:8080"),
            second: at("172.16.0.2:8080"),
        },
        Plan {
            client: at("[fd00:1::2]:40000"),
            service: at("[fd00:1::100]:80"),
            server: at("[fd00:2::1]:8080"),
            second: at("[fd00:2::2]:8080"),
        },
    ]
}

/// A frame, as etherparse writes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Frame {
    pub to_mac: [u8; 6],
    pub from_mac: [u8; 6],
    pub vlan: Option<u16>,
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ttl: u8,
    pub protocol: u8,
    pub flags: u8,
    pub payload: Vec<u8>,
    /// Both ends of the IPIP tunnel that it travels in.
    pub tunnel: Option<(IpAddr, IpAddr)>,
}

impl Frame {
    /// From the client to the director.
    pub fn from_client(plan: &Plan, protocol: u8, flags: u8) -> Frame {
        Frame {
            to_mac: PORT_MACS[0],
            from_mac: CLIENT_MAC,
            vlan: None,
            from: plan.client,
            to: plan.service,
            ttl: 64,
            protocol,
            flags,
            payload: b"hello world".to_vec(),
            tunnel: None,
        }
    }

    /// From a real server to the client.
    pub fn from_server(plan: &Plan, protocol: u8, flags: u8) -> Frame {
        let (to_mac, from_mac) = (PORT_MACS[1], SERVER_MAC);
        Frame {
            to_mac,
            from_mac,
            from: plan.server,
            to: plan.client,
            ..Frame::from_client(plan, protocol, flags)
        }
    }

    /// What NAT makes of a client's frame.
    pub fn masqueraded(self, server: SocketAddr) -> Frame {
        let (to_mac, from_mac) = (SERVER_MAC, PORT_MACS[1]);
        Frame { to_mac, from_mac, to: server, ttl: self.ttl - 1, ..self }
    }

    /// What NAT makes of a real server's frame.
    pub fn unmasqueraded(self, service: SocketAddr) -> Frame {
        let (to_mac, from_mac) = (CLIENT_MAC, PORT_MACS[0]);
        Frame { to_mac, from_mac, from: service, ttl: self.ttl - 1, ..self }
    }

    /// What direct routing makes of a client's frame.
    pub fn routed(self) -> Frame {
        Frame { to_mac: SERVER_MAC, from_mac: PORT_MACS[1], ttl: self.ttl - 1, ..self }
    }

    /// What an IPIP tunnel makes of a client's frame.
    pub fn tunnelled(self, server: SocketAddr) -> Frame {
        Frame { tunnel: Some((tunnel_source(server.ip()), server.ip())), ..self.routed() }
    }

    fn transport(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ports = (self.from.port(), self.to.port());
        if self.protocol == TCP {
            let mut header = TcpHeader::new(ports.0, ports.1, 0x1234_5678, 0x2000);
            header.fin = self.flags & FIN != 0;
            header.syn = self.flags & SYN != 0;
            header.rst = self.flags & RST != 0;
            header.ack = self.flags & ACK != 0;
            header.checksum = match (self.from.ip(), self.to.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), &self.payload).unwrap()
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), &self.payload).unwrap()
                }
                _ => panic!("one IP version"),
            };
            header.write(&mut bytes).unwrap();
        } else {
            let length = self.payload.len();
            let header = match (self.from.ip(), self.to.ip()) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    let ip = self.ipv4(a, b, length + 8);
                    UdpHeader::with_ipv4_checksum(ports.0, ports.1, &ip, &self.payload).unwrap()
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    let ip = self.ipv6(a, b, length + 8);
                    UdpHeader::with_ipv6_checksum(ports.0, ports.1, &ip, &self.payload).unwrap()
                }
                _ => panic!("one IP version"),
            };
            header.write(&mut bytes).unwrap();
        }
        bytes.extend(&self.payload);
        bytes
    }

    fn ipv4(&self, from: std::net::Ipv4Addr, to: std::net::Ipv4Addr, length: usize) -> Ipv4Header {
        let length = u16::try_from(length).unwrap();
        Ipv4Header::new(length, self.ttl, IpNumber(self.protocol), from.octets(), to.octets()).unwrap()
    }

    fn ipv6(&self, from: std::net::Ipv6Addr, to: std::net::Ipv6Addr, length: usize) -> Ipv6Header {
        Ipv6Header {
            traffic_class: 0,
            flow_label: Ipv6FlowLabel::ZERO,
            payload_length: u16::try_from(length).unwrap(),
            next_header: IpNumber(self.protocol),
            hop_limit: self.ttl,
            source: from.octets(),
            destination: to.octets(),
        }
    }

    /// The frame's bytes, all checksums complete.
    pub fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let outer = self.tunnel.map_or(self.from.ip(), |(from, _)| from);
        let ip = if outer.is_ipv4() { EtherType::IPV4 } else { EtherType::IPV6 };
        let ether_type = if self.vlan.is_some() { EtherType::VLAN_TAGGED_FRAME } else { ip };
        let ethernet = Ethernet2Header { source: self.from_mac, destination: self.to_mac, ether_type };
        ethernet.write(&mut bytes).unwrap();
        if let Some(id) = self.vlan {
            let tag = SingleVlanHeader {
                pcp: VlanPcp::ZERO,
                drop_eligible_indicator: false,
                vlan_id: VlanId::try_new(id).unwrap(),
                ether_type: ip,
            };
            tag.write(&mut bytes).unwrap();
        }
        let transport = self.transport();
        if let Some((from, to)) = self.tunnel {
            let length = transport.len() + if self.from.is_ipv4() { 20 } else { 40 };
            let protocol = if self.from.is_ipv4() { 4 } else { 41 };
            let wrapping = Frame { protocol, ..self.clone() };
            match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => wrapping.ipv4(a, b, length).write(&mut bytes).unwrap(),
                (IpAddr::V6(a), IpAddr::V6(b)) => wrapping.ipv6(a, b, length).write(&mut bytes).unwrap(),
                _ => panic!("one IP version"),
            }
        }
        match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => self.ipv4(a, b, transport.len()).write(&mut bytes).unwrap(),
            (IpAddr::V6(a), IpAddr::V6(b)) => self.ipv6(a, b, transport.len()).write(&mut bytes).unwrap(),
            _ => panic!("one IP version"),
        }
        bytes.extend(transport);
        bytes
    }

    /// The frame's bytes as a local socket sends them over a device that would finish the checksum: its field holds the
    /// pseudo-header's sum.
    pub fn unfinished(&self) -> Vec<u8> {
        let mut bytes = self.bytes();
        let sum = self.pseudo_sum().to_be_bytes();
        let at = self.checksum_at();
        bytes[at..at + 2].copy_from_slice(&sum);
        bytes
    }

    /// Where the transport checksum lies.
    pub fn checksum_at(&self) -> usize {
        let network = 14 + if self.vlan.is_some() { 4 } else { 0 };
        let transport = network + if self.from.is_ipv4() { 20 } else { 40 };
        transport + if self.protocol == TCP { 16 } else { 6 }
    }

    fn pseudo_sum(&self) -> u16 {
        let length = self.payload.len() + if self.protocol == TCP { 20 } else { 8 };
        let mut bytes = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => [a.octets(), b.octets()].concat(),
            (IpAddr::V6(a), IpAddr::V6(b)) => [a.octets(), b.octets()].concat(),
            _ => panic!("one IP version"),
        };
        bytes.extend([0, self.protocol]);
        bytes.extend(u16::try_from(length).unwrap().to_be_bytes());
        let sum: u32 = bytes.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap()
    }
}

/// The frames of a capture (classic pcap, microseconds, little endian, Ethernet) under `tests/golden/pcap`, with their times.
pub fn capture(name: &str) -> Vec<(u64, Vec<u8>)> {
    let path = format!("{}/../tests/golden/pcap/{name}.pcap", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert!(bytes.starts_with(&[0xd4, 0xc3, 0xb2, 0xa1]), "{path}");
    let (mut rest, mut frames) = (&bytes[24..], vec![]);
    while let Some((record, following)) = rest.split_first_chunk::<16>() {
        let word = |at: usize| u32::from_le_bytes(std::array::from_fn(|byte| record[at + byte]));
        let (frame, following) = following.split_at(word(8) as usize);
        frames.push((u64::from(word(0)) * 1_000_000 + u64::from(word(4)), frame.to_vec()));
        rest = following;
    }
    frames
}

/// A director with one worker.
pub struct Director {
    pub pipeline: Pipeline,
    pub commons: Arc<Commons>,
    pub snapshot: Snapshot,
    pub destinations: Arc<Destinations>,
    pub counters: Arc<Counters>,
    pub table: Arc<SharedTable>,
    pub now: Tick,
}

/// Bytes before each frame, for reports that grow to the front.
const HEADROOM: usize = 256;

impl Director {
    /// Routes and neighbours as the module's head says; no service.
    pub fn new() -> Self {
        Director::with_limits(Limits {
            connections4: 1000,
            connections6: 1000,
            destinations: 100,
            first_buckets: 16,
        })
    }

    pub fn with_limits(limits: Limits) -> Self {
        Director::in_table(SharedTable::create(limits).unwrap())
    }

    pub fn in_table(table: Arc<SharedTable>) -> Self {
        let counters = Counters::new(table.limits().destinations);
        let destinations = Destinations::new(table.clone(), counters.clone());
        let hops = NextHops::new(64);
        let mut snapshot = Snapshot::empty(hops.clone());
        snapshot.ports = PORT_MACS.iter().zip(1..).map(|(mac, ifindex)| port(ifindex, *mac)).collect();
        let route = |text: &str, target| {
            let (network, length) = text.split_once('/').unwrap();
            Route { network: network.parse().unwrap(), length: length.parse().unwrap(), target }
        };
        let neighbour = |port, ip: &str| Neighbour { port, address: ip.parse().unwrap() };
        let mut routes = Routes::build([
            route("10.0.0.0/24", Target::OnLink(CLIENTS)),
            route("172.16.0.0/24", Target::OnLink(SERVERS)),
            route("172.16.0.9/32", Target::Local),
            route("172.17.0.0/16", Target::Elsewhere),
            route("0.0.0.0/0", Target::Via(neighbour(CLIENTS, "10.0.0.2"))),
            route("fd00:1::/64", Target::OnLink(CLIENTS)),
            route("fd00:2::/64", Target::OnLink(SERVERS)),
        ]);
        for (neighbour, mac) in [
            (neighbour(CLIENTS, "10.0.0.2"), CLIENT_MAC),
            (neighbour(CLIENTS, "fd00:1::2"), CLIENT_MAC),
            (neighbour(SERVERS, "172.16.0.1"), SERVER_MAC),
            (neighbour(SERVERS, "fd00:2::1"), SERVER_MAC),
            (neighbour(SERVERS, "172.16.0.2"), SECOND_SERVER_MAC),
            (neighbour(SERVERS, "fd00:2::2"), SECOND_SERVER_MAC),
        ] {
            routes = routes.with_neighbour(&hops, neighbour, mac).unwrap();
        }
        snapshot.routes = Arc::new(routes);
        let commons = Arc::<Commons>::default();
        let (handle, worker) = (table.handle().unwrap(), counters.worker());
        let pipeline = Pipeline::with_commons(handle, destinations.clone(), worker, commons.clone());
        Director { pipeline, commons, snapshot, destinations, counters, table, now: Tick(1_000_000) }
    }

    /// Another worker's pipeline.
    pub fn another_pipeline(&self) -> Pipeline {
        let (handle, worker) = (self.table.handle().unwrap(), self.counters.worker());
        Pipeline::with_commons(handle, self.destinations.clone(), worker, self.commons.clone())
    }

    /// Adds a TCP and a UDP service at `address`, without real servers.
    pub fn serve(&mut self, address: SocketAddr) -> [Arc<Service>; 2] {
        [TCP, UDP].map(|protocol| {
            let key = ServiceKey { address: address.ip(), port: address.port(), protocol };
            let scheduler = uvs_schedulers::by_name("rr").unwrap();
            let service = Service::new(key, "rr", scheduler, self.destinations.clone()).unwrap();
            self.snapshot.services = self.snapshot.services.with(service.clone()).unwrap();
            service
        })
    }

    /// Adds services with one real server, by full NAT from the director's own address there. Direct routing leaves the port alone, so the server's is the service's.
    pub fn with_server(plan: &Plan, method: Method) -> (Self, [Arc<Service>; 2]) {
        let mut director = Director::new();
        let services = director.serve(plan.service);
        if method == Method::FullNat {
            let own = if plan.server.is_ipv4() { DIRECTOR4[1] } else { DIRECTOR6[1] };
            let local = director.destinations.locals().enter(own.parse().unwrap());
            let pool = || LocalPool::new(vec![(local.clone(), Ports::default())]);
            services.iter().for_each(|service| service.set_locals(pool()));
        }
        for service in &services {
            service.add(&destination(plan.server, method, plan)).unwrap();
        }
        (director, services)
    }

    /// One frame through the pipeline: the verdict, and the frame as it is then.
    pub fn run(&mut self, port: PortId, frame: &[u8]) -> (Verdict, Vec<u8>) {
        self.run_parts(port, &[frame])
    }

    /// One frame in several parts through the pipeline.
    pub fn run_parts(&mut self, port: PortId, parts: &[&[u8]]) -> (Verdict, Vec<u8>) {
        let mut buffer = vec![0; HEADROOM];
        buffer.extend(parts[0]);
        let mut packets = [Packet::new(&mut buffer, HEADROOM, parts[0].len(), port).with_rest(&parts[1..])];
        let mut verdicts = [Verdict::ToKernel];
        let view = View { snapshot: &self.snapshot, now: self.now };
        self.pipeline.between(self.now);
        self.pipeline.process(&view, &mut packets, &mut verdicts);
        let mut out = packets[0].frame().to_vec();
        packets[0].rest().iter().for_each(|part| out.extend(*part));
        (verdicts[0], out)
    }

    /// Time passes; connections whose time is over end.
    pub fn wait(&mut self, seconds: u32) {
        self.now = self.now.plus_seconds(seconds);
        self.pipeline.sleep(self.now);
    }
}

pub fn destination(address: SocketAddr, method: Method, plan: &Plan) -> DestinationConfig {
    let keeps_port = matches!(method, Method::Direct | Method::Tunnel);
    let port = if keeps_port { plan.service.port() } else { address.port() };
    let address = SocketAddr::new(address.ip(), port);
    let mut config = DestinationConfig::new(address, method);
    if method == Method::Tunnel {
        config.plan = tunnelled(TunnelKind::Ipip, TunnelChecksum::None, address.ip());
    }
    config
}

/// The particulars of a real server behind a tunnel; GUE at port 6080.
pub fn tunnelled(kind: TunnelKind, checksum: TunnelChecksum, server: IpAddr) -> uvs_engine::plan::Plan {
    let port = if kind == TunnelKind::Gue { 6080 } else { 0 };
    let tunnel = Some(Tunnel { kind, port, checksum });
    uvs_engine::plan::Plan {
        tunnel,
        source: Some(tunnel_source(server)),
        ..uvs_engine::plan::Plan::default()
    }
}

/// The director's own address towards its real servers.
pub fn tunnel_source(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { "172.16.0.254".parse().unwrap() } else { "fd00:2::fe".parse().unwrap() }
}

fn port(ifindex: u32, mac: [u8; 6]) -> Port {
    let number = ifindex - 1;
    let addresses = [DIRECTOR4, DIRECTOR6].map(|all| all[number as usize].parse().ok());
    Port { ifindex, name: format!("port{ifindex}"), mac, mtu: 1500, up: true, addresses, merged: false }
}
