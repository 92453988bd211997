//! Tunnels: what Linux sent, byte for byte, and what it says of lengths, marks and mixed families.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use etherparse::{Ipv4Header, Ipv4Slice, Ipv6Slice, UdpSlice};
use std::net::SocketAddr;
use std::sync::Arc;
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{Route, Routes, Target};
use uvs_engine::packet::split;
use uvs_engine::plan::{Tunnel, TunnelChecksum, TunnelKind};
use uvs_engine::service::{DestinationConfig, Service, ServiceKey};
use uvs_engine::snapshot::Port;
use uvs_engine::verdict::Neighbour;
use uvs_engine::{PortId, Reason, Verdict};

/// The frames of a capture (pcap, little endian).
fn capture(name: &str) -> Vec<Vec<u8>> {
    let path = format!("{}/../tests/golden/pcap/{name}.pcap", env!("CARGO_MANIFEST_DIR"));
    let bytes = std::fs::read(&path).unwrap();
    assert_eq!(bytes[..4], 0xa1b2_c3d4_u32.to_le_bytes(), "{path}");
    let mut rest = &bytes[24..];
    let mut frames = Vec::new();
    while let Some((header, after)) = rest.split_first_chunk::<16>() {
        let length = u32::from_le_bytes(*header[8..].first_chunk().unwrap()) as usize;
        frames.push(after[..length].to_vec());
        rest = &after[length..];
    }
    frames
}

const ROUTER: [u8; 6] = [2, 0, 0, 0, 1, 1];

/// The director of the captures: clients on port 0, each real server on a port of its own.
fn recorded(tunnel: Tunnel, mixed: bool) -> Director {
    let mut director = Director::new();
    let hops = director.snapshot.hops.clone();
    let macs = [ROUTER, [2, 0, 0, 0, 2, 1], [2, 0, 0, 0, 2, 2]];
    director.snapshot.ports = (1..)
        .zip(macs)
        .map(|(ifindex, mac)| Port {
            ifindex,
            name: format!("port{ifindex}"),
            mac,
            mtu: 1500,
            up: true,
            addresses: [None; 2],
            merged: false,
        })
        .collect();
    let networks = ["10.1.0.0/24", "10.2.1.0/24", "10.2.2.0/24", "fd01::/64", "fd02:1::/64", "fd02:2::/64"];
    let route = |(text, port): (&&str, u16)| {
        let (network, length) = text.split_once('/').unwrap();
        let target = Target::OnLink(PortId(port));
        Route { network: network.parse().unwrap(), length: length.parse().unwrap(), target }
    };
    let mut routes = Routes::build(networks.iter().zip([0, 1, 2, 0, 1, 2]).map(route));
    let neighbours = [
        (0, "10.1.0.2", [2, 0, 0, 0, 1, 2]),
        (0, "fd01::2", [2, 0, 0, 0, 1, 2]),
        (1, "10.2.1.11", [2, 0, 0, 0, 2, 0x0b]),
        (1, "fd02:1::11", [2, 0, 0, 0, 2, 0x0b]),
        (2, "10.2.2.12", [2, 0, 0, 0, 2, 0x0c]),
        (2, "fd02:2::12", [2, 0, 0, 0, 2, 0x0c]),
    ];
    for (port, address, mac) in neighbours {
        let neighbour = Neighbour { port: PortId(port), address: address.parse().unwrap() };
        routes = routes.with_neighbour(&hops, neighbour, mac).unwrap();
    }
    director.snapshot.routes = Arc::new(routes);
    for (protocol, port) in [(TCP, 80), (UDP, 53), (UDP, 54), (UDP, 99)] {
        let v4 = [("10.2.1.11", "10.2.1.1"), ("10.2.2.12", "10.2.2.1")];
        let v6 = [("fd02:1::11", "fd02:1::1"), ("fd02:2::12", "fd02:2::1")];
        let (to_v4, to_v6) = if mixed { (&v6[..1], &v4[..1]) } else { (&v4[..], &v6[..]) };
        for (vip, servers) in [("10.0.0.1", to_v4), ("fd00::1", to_v6)] {
            let key = ServiceKey { address: vip.parse().unwrap(), port, protocol };
            let scheduler = uvs_schedulers::by_name("rr").unwrap();
            let service = Service::new(key, "rr", scheduler, director.destinations.clone()).unwrap();
            for (server, source) in servers {
                let address = SocketAddr::new(server.parse().unwrap(), port);
                let mut config = DestinationConfig::new(address, Method::Tunnel);
                config.plan.tunnel = Some(tunnel);
                config.plan.source = Some(source.parse().unwrap());
                service.add(&config).unwrap();
            }
            director.snapshot.services = director.snapshot.services.with(service).unwrap();
        }
    }
    director
}

/// What no two directors have in common is made equal: the identification of an outer packet that may be fragmented, and
/// GUE's source port with the checksum over it. Both checksums are verified before.
fn masked(mut frame: Vec<u8>) -> Vec<u8> {
    let ip = &frame[14..];
    let (transport, udp) = if frame[12..14] == [8, 0] {
        let header = Ipv4Slice::from_slice(ip).unwrap().header().to_header();
        assert_eq!(header.calc_header_checksum(), header.header_checksum);
        if !header.dont_fragment {
            let anonymous = Ipv4Header { identification: 0, ..header };
            let anonymous = Ipv4Header { header_checksum: anonymous.calc_header_checksum(), ..anonymous };
            frame[14..34].copy_from_slice(&anonymous.to_bytes());
        }
        (34, frame[23] == 17)
    } else {
        (54, frame[20] == 17)
    };
    if udp {
        let datagram = UdpSlice::from_slice(&frame[transport..]).unwrap().to_header();
        assert!((32_768..61_000).contains(&datagram.source_port), "{datagram:?}");
        if datagram.checksum != 0 {
            let payload = &frame[transport + 8..];
            let expected = if transport == 34 {
                let ip = Ipv4Slice::from_slice(&frame[14..]).unwrap().header().to_header();
                datagram.calc_checksum_ipv4(&ip, payload)
            } else {
                let ip = Ipv6Slice::from_slice(&frame[14..]).unwrap().header().to_header();
                datagram.calc_checksum_ipv6(&ip, payload)
            };
            assert_eq!(expected.unwrap(), datagram.checksum);
            frame[transport + 6..transport + 8].fill(0xff);
        }
        frame[transport..transport + 2].fill(0);
    }
    frame
}

#[test]
fn the_frames_that_linux_sent() {
    use TunnelChecksum::{Full, None, Remote};
    use TunnelKind::{Gre, Gue, Ipip};
    for (name, kind, checksum, mixed) in [
        ("tun", Ipip, None, false),
        ("tun-mixed", Ipip, None, true),
        ("tun-mtu", Ipip, None, false),
        ("tun-gue", Gue, None, false),
        ("tun-gue-csum", Gue, Full, false),
        ("tun-gue-remcsum", Gue, Remote, false),
        ("tun-gre", Gre, None, false),
        ("tun-gre-csum", Gre, Full, false),
    ] {
        let port = if kind == Gue { 6080 } else { 0 };
        let mut director = recorded(Tunnel { kind, port, checksum }, mixed);
        if name == "tun-mtu" {
            // Recorded on the same director, whose turn it is with each real server.
            for frame in capture("tun.c-c0").iter().filter(|frame| frame[..6] == ROUTER) {
                director.run(PortId(0), frame);
            }
        }
        let mut sent = [Vec::new(), Vec::new()];
        for frame in capture(&format!("{name}.c-c0")) {
            if frame[..6] != ROUTER {
                continue;
            }
            match director.run(PortId(0), &frame) {
                (Verdict::Transmit(PortId(port @ 1..=2)), out) => {
                    sent[usize::from(port) - 1].push(masked(out));
                }
                (Verdict::Fragment(PortId(port), limit), out) => {
                    for piece in split::fragments(&[&out], limit.into(), 0).unwrap() {
                        let fragment = [&piece.headers[..], &out[piece.payload]].concat();
                        sent[usize::from(port) - 1].push(masked(fragment));
                    }
                }
                _ => {}
            }
        }
        for (which, sent) in (1..).zip(sent) {
            if which == 2 && (mixed || name == "tun-mtu") {
                continue;
            }
            let from = [2, 0, 0, 0, 2, which];
            let recorded = capture(&format!("{name}.d-dr{which}")).into_iter();
            let recorded: Vec<_> = recorded.filter(|frame| frame[6..12] == from).map(masked).collect();
            assert!(!recorded.is_empty(), "{name}");
            assert_eq!(sent, recorded, "{name}, real server {which}");
        }
    }
}

/// A director with one real server behind a tunnel, of either family.
fn director_to(plan: &Plan, server: SocketAddr, kind: TunnelKind, checksum: TunnelChecksum) -> Director {
    let mut director = Director::new();
    for service in director.serve(plan.service) {
        let address = SocketAddr::new(server.ip(), plan.service.port());
        let config = DestinationConfig::new(address, Method::Tunnel);
        service.add(&DestinationConfig { plan: tunnelled(kind, checksum, server.ip()), ..config }).unwrap();
    }
    director
}

#[test]
fn what_is_too_long_is_told_how_long_it_may_be() {
    use TunnelChecksum::{Full, None};
    let [v4, v6] = plans();
    for (kind, checksum, over_v4, over_v6) in [
        (TunnelKind::Ipip, None, 20, 40),
        (TunnelKind::Gue, None, 32, 52),
        (TunnelKind::Gue, Full, 32, 52),
        (TunnelKind::Gre, None, 24, 44),
        (TunnelKind::Gre, Full, 28, 48),
    ] {
        for (plan, server, overhead) in [
            (v4, v4.server, over_v4),
            (v6, v6.server, over_v6),
            (v4, v6.server, over_v6),
            (v6, v4.server, over_v4),
        ] {
            let mut director = director_to(&plan, server, kind, checksum);
            let ip = if plan.client.is_ipv4() { 20 } else { 40 };
            let limit = 1500 - overhead;
            let frame = |length: usize| Frame {
                payload: vec![5; length - ip - 8],
                ..Frame::from_client(&plan, UDP, 0)
            };
            let what = format!("{kind:?} {checksum:?}, {} to {server}", plan.client);
            let (verdict, out) = director.run(CLIENTS, &frame(limit).bytes());
            assert_eq!((verdict, out.len()), (Verdict::Transmit(SERVERS), 1514), "{what}");
            let (verdict, out) = director.run(CLIENTS, &frame(limit + 1).bytes());
            assert_eq!(verdict, Verdict::Transmit(CLIENTS), "{what}");
            let told = if plan.client.is_ipv4() {
                assert_eq!(out[34..36], [3, 4], "{what}: fragmentation needed");
                u32::from(u16::from_be_bytes([out[40], out[41]]))
            } else {
                assert_eq!(out[54..56], [2, 0], "{what}: packet too big");
                u32::from_be_bytes([out[58], out[59], out[60], out[61]])
            };
            assert_eq!(told as usize, limit, "{what}");
            assert_eq!(director.counters.drops(Reason::TooBig), 1, "{what}");
        }
    }
}

#[test]
fn marks_of_the_packet_inside_are_seen_outside() {
    const NOT_ECT: u8 = 0xb8;
    let [v4, v6] = plans();
    for (plan, server) in [(v4, v4.server), (v6, v6.server), (v4, v6.server), (v6, v4.server)] {
        for (inside, rfc6040, outside) in [
            (NOT_ECT, false, NOT_ECT),
            (NOT_ECT | 1, false, NOT_ECT | 1),
            (NOT_ECT | 2, false, NOT_ECT | 2),
            (NOT_ECT | 3, false, NOT_ECT | 2),
            (NOT_ECT | 3, true, NOT_ECT | 3),
            (NOT_ECT, true, NOT_ECT),
        ] {
            let mut director = director_to(&plan, server, TunnelKind::Ipip, TunnelChecksum::None);
            director.snapshot.options.rfc6040 = rfc6040;
            let mut bytes = Frame::from_client(&plan, UDP, 0).bytes();
            if plan.client.is_ipv4() {
                bytes[15] = inside;
                let header = Ipv4Slice::from_slice(&bytes[14..]).unwrap().header().to_header();
                bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
            } else {
                bytes[14] = 0x60 | inside >> 4;
                bytes[15] = inside << 4;
            }
            let (verdict, out) = director.run(CLIENTS, &bytes);
            assert_eq!(verdict, Verdict::Transmit(SERVERS));
            let shown = if server.is_ipv4() { out[15] } else { out[14] << 4 | out[15] >> 4 };
            let ttl = if server.is_ipv4() { out[22] } else { out[21] };
            assert_eq!((shown, ttl), (outside, 63), "{inside:#x} to {server}");
        }
    }
}

#[test]
fn dont_fragment_is_taken_over_unless_told_otherwise() {
    let [v4, v6] = plans();
    for (plan, inner, pmtu_disc, outer) in
        [(v4, true, true, true), (v4, true, false, false), (v4, false, true, false), (v6, true, true, false)]
    {
        let mut director = director_to(&plan, v4.server, TunnelKind::Ipip, TunnelChecksum::None);
        director.snapshot.options.pmtu_disc = pmtu_disc;
        let mut bytes = Frame::from_client(&plan, UDP, 0).bytes();
        if plan.client.is_ipv4() && !inner {
            bytes[20] = 0;
            let header = Ipv4Slice::from_slice(&bytes[14..]).unwrap().header().to_header();
            bytes[24..26].copy_from_slice(&header.calc_header_checksum().to_be_bytes());
        }
        let mut ids = Vec::new();
        for _ in 0..3 {
            let (verdict, out) = director.run(CLIENTS, &bytes);
            assert_eq!(verdict, Verdict::Transmit(SERVERS));
            let header = Ipv4Slice::from_slice(&out[14..]).unwrap().header().to_header();
            assert_eq!(header.dont_fragment, outer, "{} {inner} {pmtu_disc}", plan.client);
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            ids.push(header.identification);
        }
        if outer {
            assert_eq!(ids, [0; 3]);
        } else {
            assert_eq!([ids[1].wrapping_sub(ids[0]), ids[2].wrapping_sub(ids[1])], [1, 1]);
        }
    }
}

#[test]
fn tunnels_that_cannot_be() {
    let [plan, v6] = plans();
    let ipip = Tunnel { kind: TunnelKind::Ipip, port: 0, checksum: TunnelChecksum::None };
    for (what, server, source, tunnel, mtu, reason) in [
        ("no tunnel any more", plan.server.ip(), Some("172.16.0.254"), None, 1500, Reason::DestinationGone),
        ("no address of ours", plan.server.ip(), None, Some(ipip), 1500, Reason::NoTunnelSource),
        (
            "one of the other family",
            plan.server.ip(),
            Some("fd00::1"),
            Some(ipip),
            1500,
            Reason::NoTunnelSource,
        ),
        ("no room over IPv4", plan.server.ip(), Some("172.16.0.254"), Some(ipip), 87, Reason::TunnelMtu),
        ("no room over IPv6", v6.server.ip(), Some("fd00:2::fe"), Some(ipip), 1319, Reason::TunnelMtu),
    ] {
        let mut director = Director::new();
        let ports = director.snapshot.ports.iter().map(|port| Port { mtu, ..port.clone() });
        director.snapshot.ports = ports.collect();
        let [_, udp] = director.serve(plan.service);
        let mut config = DestinationConfig::new(SocketAddr::new(server, 80), Method::Tunnel);
        config.plan.tunnel = tunnel;
        config.plan.source = source.map(|source| source.parse().unwrap());
        udp.add(&config).unwrap();
        let frame = Frame { payload: vec![1], ..Frame::from_client(&plan, UDP, 0) };
        let (verdict, _) = director.run(CLIENTS, &frame.bytes());
        assert_eq!(verdict, Verdict::Drop(reason), "{what}");
    }
}

/// By it the real server's queues, and routers on the way, tell flows apart (the kernel's `udp_flow_src_port`).
#[test]
fn gues_source_port_is_the_flows() {
    for plan in plans() {
        let server = plan.server;
        let mut director = director_to(&plan, server, TunnelKind::Gue, TunnelChecksum::None);
        let mut ports = std::collections::HashSet::new();
        for client in 1..=256 {
            let from = SocketAddr::new(plan.client.ip(), client);
            let of_flow = [SYN, ACK, ACK].map(|flags| {
                let frame = Frame { from, ..Frame::from_client(&plan, TCP, flags) };
                let (verdict, sent) = director.run(CLIENTS, &frame.bytes());
                assert_eq!(verdict, Verdict::Transmit(SERVERS));
                let transport = if server.is_ipv4() { 34 } else { 54 };
                UdpSlice::from_slice(&sent[transport..]).unwrap().source_port()
            });
            assert!(of_flow.iter().all(|port| *port == of_flow[0]), "one flow had {of_flow:?}");
            ports.insert(of_flow[0]);
        }
        assert!(ports.len() > 240, "256 flows had {} ports", ports.len());
    }
}
