//! Packets in, verdicts and packets out, for every forwarding method in both IP versions.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use uvs_engine::forward::Method;
use uvs_engine::service::Connections;
use uvs_engine::verdict::Neighbour;
use uvs_engine::worker::Process;
use uvs_engine::{Reason, Verdict};

const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);
const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);

/// Every plan with every method and protocol, the first packet through and checked.
fn established(mut check: impl FnMut(&mut Director, &Plan, Method, u8)) {
    for plan in plans() {
        for method in &PLAIN {
            for protocol in [TCP, UDP] {
                let (mut director, _) = Director::with_server(&plan, *method);
                let first = Frame::from_client(&plan, protocol, SYN);
                let expected = forwarded(&plan, *method, first.clone());
                let what = format!("{method:?} {protocol} {}", plan.client);
                assert_eq!(
                    director.run(CLIENTS, &first.bytes()),
                    (TO_SERVERS, expected.bytes()),
                    "{what}: first packet"
                );
                check(&mut director, &plan, *method, protocol);
            }
        }
    }
}

fn forwarded(plan: &Plan, method: Method, frame: Frame) -> Frame {
    match method {
        Method::Nat => frame.masqueraded(plan.server),
        Method::Tunnel => frame.tunnelled(plan.server),
        _ => frame.routed(),
    }
}

#[test]
fn packets_of_a_connection_go_both_ways() {
    established(|director, plan, method, protocol| {
        let reply = Frame::from_server(plan, protocol, SYN | ACK);
        let (verdict, out) = director.run(SERVERS, &reply.bytes());
        if method == Method::Nat {
            assert_eq!((verdict, out), (TO_CLIENTS, reply.unmasqueraded(plan.service).bytes()));
        } else {
            assert_eq!((verdict, out), (Verdict::ToKernel, reply.bytes()), "not ours: it goes around us");
        }
        let next = Frame { payload: vec![7; 1400], ..Frame::from_client(plan, protocol, ACK) };
        let expected = forwarded(plan, method, next.clone());
        assert_eq!(director.run(CLIENTS, &next.bytes()), (TO_SERVERS, expected.bytes()));
    });
}

#[test]
fn an_unfinished_checksum_comes_out_complete() {
    established(|director, plan, method, protocol| {
        for length in [0, 1, 2, 31, 1400] {
            let frame = Frame { payload: vec![0xab; length], ..Frame::from_client(plan, protocol, ACK) };
            let expected = forwarded(plan, method, frame.clone());
            assert_eq!(director.run(CLIENTS, &frame.unfinished()), (TO_SERVERS, expected.bytes()));
        }
    });
}

#[test]
fn a_frame_for_a_device_that_is_down_is_dropped() {
    established(|director, plan, _, protocol| {
        let mut ports = director.snapshot.ports.to_vec();
        ports[1].up = false;
        director.snapshot.ports = ports.into();
        let frame = Frame::from_client(plan, protocol, ACK).bytes();
        assert_eq!(director.run(CLIENTS, &frame), (Verdict::Drop(Reason::PortDown), frame));
    });
}

#[test]
fn a_long_packet_is_answered_for_and_dropped() {
    established(|director, plan, _, protocol| {
        set_mtus(director, [9000, 1500]);
        let frame = Frame { payload: vec![1; 1600], ..Frame::from_client(plan, protocol, ACK) };
        let (verdict, out) = director.run(CLIENTS, &frame.bytes());
        // It is quoted as it would have gone on.
        let older = Frame { ttl: frame.ttl - 1, ..frame };
        if plan.client.is_ipv4() {
            assert_eq!(verdict, TO_CLIENTS, "etherparse sets don't fragment");
            assert_report(&out, &older, (3, 4));
        } else {
            assert_eq!(verdict, TO_CLIENTS);
            assert_report(&out, &older, (2, 0));
        }
        assert_eq!(director.counters.drops(Reason::TooBig), 1);
    });
}

fn set_mtus(director: &mut Director, mtus: [u32; 2]) {
    let mut ports = director.snapshot.ports.to_vec();
    ports.iter_mut().zip(mtus).for_each(|(port, mtu)| port.mtu = mtu);
    director.snapshot.ports = ports.into();
}

fn set_merged(director: &mut Director, merged: bool) {
    let ports = director.snapshot.ports.iter().cloned();
    director.snapshot.ports = ports.map(|port| uvs_engine::snapshot::Port { merged, ..port }).collect();
}

/// What is longer than the link it came by was never sent like that: it is made of many segments.
#[test]
fn a_super_frame_is_to_be_cut_for_the_way_it_goes() {
    established(|director, plan, method, protocol| {
        set_mtus(director, [1500, 1400]);
        let limit = match method {
            Method::Tunnel if plan.client.is_ipv4() => 1380,
            Method::Tunnel => 1360,
            _ => 1400,
        };
        for (what, flags, data, expected) in [
            ("data", ACK, 1600, Some(Verdict::Segment(limit))),
            ("the end", FIN | ACK, 1600, Some(Verdict::Segment(limit))),
            ("no more than its own link takes", ACK, 1410, None),
            ("in generic mode", ACK, 1410, Some(Verdict::Segment(limit))),
        ] {
            set_merged(director, what == "in generic mode");
            let before = director.counters.total();
            let frame = Frame { payload: vec![1; data], ..Frame::from_client(plan, protocol, flags) };
            let (verdict, out) = director.run(CLIENTS, &frame.unfinished());
            let Some(expected) = expected.filter(|_| protocol == TCP) else {
                assert_eq!(verdict, TO_CLIENTS, "{method:?}: {what}: the sender is told");
                continue;
            };
            assert_eq!((verdict, out), (expected, frame.unfinished()), "{what}");
            assert_eq!(director.counters.total(), before, "{what}: nothing is counted yet");
        }
    });
}

#[test]
fn an_ipv4_packet_that_may_be_is_fragmented() {
    let plan = &plans()[0];
    for method in [Method::Nat, Method::Direct] {
        let (mut director, _) = Director::with_server(plan, method);
        set_mtus(&mut director, [1500, 1000]);
        let frame = Frame { payload: vec![1; 1400], ..Frame::from_client(plan, UDP, 0) };
        let mut bytes = frame.bytes();
        bytes[20] &= !0x40;
        uvs_engine::packet::ipv4::finish(&mut bytes, 14).unwrap();
        assert_eq!(director.run(CLIENTS, &bytes).0, Verdict::Fragment(SERVERS, 1000));
        assert_eq!(director.counters.total().in_packets, 1);
    }
}

#[test]
fn nobody_to_serve_is_an_unreachable_port() {
    for plan in plans() {
        let (mut director, services) = Director::with_server(&plan, Method::Nat);
        for service in &services {
            let idle = uvs_engine::service::DestinationConfig {
                weight: 0,
                ..destination(plan.server, Method::Nat, &plan)
            };
            service.edit(&idle).unwrap();
        }
        for protocol in [TCP, UDP] {
            let frame = Frame::from_client(&plan, protocol, SYN);
            let (verdict, out) = director.run(CLIENTS, &frame.bytes());
            assert_eq!(verdict, TO_CLIENTS);
            assert_report(&out, &frame, if plan.client.is_ipv4() { (3, 3) } else { (1, 4) });
        }
        assert_eq!(director.counters.drops(Reason::NoDestination), 2);
        // The reports are rationed.
        let frame = Frame::from_client(&plan, UDP, 0).bytes();
        let unanswered = (0..100).filter(|_| director.run(CLIENTS, &frame).0 != TO_CLIENTS).count();
        assert_eq!(unanswered, 52);
        assert_eq!(director.counters.drops(Reason::NoDestination), 102);
    }
}

/// `out` is an ICMP error about `frame`, from whom it was for to whom it came from, with good checksums.
/// It quotes `frame`.
fn assert_report(out: &[u8], frame: &Frame, (kind, code): (u8, u8)) {
    let parsed = etherparse::SlicedPacket::from_ethernet(out).unwrap();
    let network = 14;
    assert_eq!(&out[..6], &frame.from_mac);
    assert_eq!(&out[6..12], &frame.to_mac);
    let original = frame.bytes();
    let (header, quoted) = match parsed.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header();
            assert_eq!(header.source_addr(), frame.to.ip());
            assert_eq!(header.destination_addr(), frame.from.ip());
            assert_eq!((header.dcp().value() << 2) | header.ecn().value(), 0xc0);
            assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            (20, original[network..].len().min(576 - 28))
        }
        etherparse::NetSlice::Ipv6(ip) => {
            assert_eq!(ip.header().source_addr(), frame.to.ip());
            assert_eq!(ip.header().destination_addr(), frame.from.ip());
            (40, original[network..].len().min(1280 - 48))
        }
        etherparse::NetSlice::Arp(_) => panic!("an IP packet"),
    };
    match parsed.transport.unwrap() {
        etherparse::TransportSlice::Icmpv4(icmp) => {
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
        }
        etherparse::TransportSlice::Icmpv6(icmp) => {
            assert_eq!((icmp.type_u8(), icmp.code_u8()), (kind, code));
            let octets = |ip: std::net::IpAddr| match ip {
                std::net::IpAddr::V6(ip) => ip.octets(),
                std::net::IpAddr::V4(_) => panic!("an IPv6 plan"),
            };
            assert!(icmp.is_checksum_valid(octets(frame.to.ip()), octets(frame.from.ip())));
        }
        other => panic!("an ICMP message, not {other:?}"),
    }
    assert_eq!(&out[network + header + 8..], &original[network..network + quoted]);
}

#[test]
fn no_route_is_an_unreachable_host() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let unreachable = if plan.client.is_ipv4() { (3, 1) } else { (1, 3) };
        let frame = Frame::from_client(&plan, TCP, SYN);
        director.snapshot.routes = std::sync::Arc::default();
        for _ in 0..2 {
            let (verdict, out) = director.run(CLIENTS, &frame.bytes());
            assert_eq!(verdict, TO_CLIENTS);
            assert_report(&out, &frame, unreachable);
        }
        assert_eq!(director.counters.drops(Reason::NoRoute), 2);
    }
}

#[test]
fn a_next_hop_that_was_waited_for_in_vain_is_an_unreachable_host() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let unreachable = if plan.client.is_ipv4() { (3, 1) } else { (1, 3) };
        let frame = Frame::from_client(&plan, TCP, SYN);
        let silent = Neighbour { port: SERVERS, address: plan.server.ip() };
        director.snapshot.hops.clear(director.snapshot.routes.hop_of(&silent).unwrap());
        assert_eq!(director.run(CLIENTS, &frame.bytes()), (Verdict::Hold(silent), frame.bytes()));
        Process::give_up(&mut director.pipeline, true);
        let (verdict, out) = director.run(CLIENTS, &frame.bytes());
        assert_eq!(verdict, TO_CLIENTS);
        assert_report(&out, &Frame { ttl: frame.ttl - 1, ..frame.clone() }, unreachable);
        assert_eq!(director.counters.drops(Reason::NeighbourUnresolved), 1);
        Process::give_up(&mut director.pipeline, false);
        assert_eq!(director.run(CLIENTS, &frame.bytes()), (Verdict::Hold(silent), frame.bytes()));
    }
}

#[test]
fn a_packet_waits_for_its_next_hop_untouched() {
    for plan in plans() {
        let (mut director, services) = Director::with_server(&plan, Method::Nat);
        let quiet = if plan.client.is_ipv4() { "172.16.0.77:80" } else { "[fd00:2::77]:80" };
        let quiet = at(quiet);
        for service in &services {
            service.add(&destination(quiet, Method::Nat, &plan)).unwrap();
        }
        let frame = Frame::from_client(&plan, TCP, SYN);
        let neighbour = Neighbour { port: SERVERS, address: quiet.ip() };
        for _ in 0..2 {
            let held = director.run(CLIENTS, &frame.bytes());
            assert_eq!(held, (Verdict::Hold(neighbour), frame.bytes()));
        }
        let hops = director.snapshot.hops.clone();
        let routes = director.snapshot.routes.with_neighbour(&hops, neighbour, SERVER_MAC).unwrap();
        director.snapshot.routes = std::sync::Arc::new(routes);
        let expected = frame.clone().masqueraded(quiet);
        assert_eq!(director.run(CLIENTS, &frame.bytes()), (TO_SERVERS, expected.bytes()));
        // The neighbour falls silent: what its connection remembers does not hide that.
        hops.clear(director.snapshot.routes.hop_of(&neighbour).unwrap());
        assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Hold(neighbour));
        let view = services[0].view();
        let total: u32 = view.destinations.iter().map(|it| it.connections.active).sum();
        assert_eq!((total, view.traffic.connections, view.traffic.in_packets), (1, 1, 1));
    }
}

#[test]
fn what_no_connection_knows_goes_around_us() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let reply = Frame::from_server(&plan, TCP, SYN | ACK);
        assert_eq!(director.run(SERVERS, &reply.unfinished()), (Verdict::ToKernel, reply.bytes()));
    }
}

#[test]
fn real_servers_that_cannot_be_reached() {
    let [plan, _] = plans();
    for (what, server, method, verdict) in [
        ("through another device", "172.17.0.1:80", Method::Nat, Verdict::Drop(Reason::EgressNotOurs)),
        ("this host, directly", "172.16.0.9:80", Method::Direct, Verdict::ToKernel),
        ("this host, by a tunnel", "172.16.0.9:80", Method::Tunnel, Verdict::ToKernel),
        ("this host, another address", "172.16.0.9:80", Method::Nat, Verdict::Drop(Reason::LocalServer)),
        ("this host, another port", "172.16.0.9:81", Method::Nat, Verdict::Drop(Reason::LocalServer)),
    ] {
        let mut director = Director::new();
        let [tcp, _] = director.serve(plan.service);
        tcp.add(&destination(at(server), method, &plan)).unwrap();
        let frame = Frame::from_client(&plan, TCP, SYN);
        let (given, out) = director.run(CLIENTS, &frame.bytes());
        assert_eq!((given, out), (verdict, frame.bytes()), "{what}");
    }
}

#[test]
fn a_new_connection_from_an_old_port_is_scheduled_anew() {
    for plan in plans() {
        let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
        let send = |director: &mut Director, frame: Frame| {
            let port = if frame.to == plan.service { CLIENTS } else { SERVERS };
            director.run(port, &frame.bytes()).0
        };
        let client = |flags| Frame::from_client(&plan, TCP, flags);
        let server = |flags| Frame::from_server(&plan, TCP, flags);
        for frame in [client(SYN), server(SYN | ACK), client(ACK), client(FIN | ACK), server(FIN | ACK)] {
            assert!(matches!(send(&mut director, frame), Verdict::Transmit(_)));
        }
        let state = |tcp: &uvs_engine::service::Service| {
            tcp.view().destinations.iter().map(|it| it.connections).next_back()
        };
        assert_eq!(state(&tcp), Some(Connections { active: 0, inactive: 1 }), "in TIME_WAIT");
        tcp.add(&destination(plan.second, Method::Nat, &plan)).unwrap();
        let (verdict, out) = director.run(CLIENTS, &client(SYN).bytes());
        let expected = Frame { to_mac: SECOND_SERVER_MAC, ..client(SYN).masqueraded(plan.second) };
        assert_eq!((verdict, out), (TO_SERVERS, expected.bytes()));
        assert_eq!(state(&tcp), Some(Connections::default()), "the old one is gone");
        assert_eq!(tcp.view().destinations[0].connections, Connections { active: 1, inactive: 0 });
        assert_eq!(tcp.view().traffic.connections, 2);
    }
}

#[test]
fn a_full_table_takes_no_more() {
    let [plan, _] = plans();
    let limits =
        uvs_conntrack::Limits { connections4: 1, connections6: 1, destinations: 10, first_buckets: 1 };
    let mut director = Director::with_limits(limits);
    let [_, udp] = director.serve(plan.service);
    udp.add(&destination(plan.server, Method::Nat, &plan)).unwrap();
    let mut verdicts: Vec<Verdict> = Vec::new();
    for port in 1..500 {
        let from = std::net::SocketAddr::new(plan.client.ip(), port);
        verdicts.push(director.run(CLIENTS, &Frame { from, ..Frame::from_client(&plan, UDP, 0) }.bytes()).0);
    }
    assert_eq!(verdicts[0], TO_SERVERS);
    assert_eq!(verdicts.last(), Some(&Verdict::Drop(Reason::TableFull)));
    let dropped = verdicts.iter().filter(|verdict| **verdict == Verdict::Drop(Reason::TableFull)).count();
    assert_eq!(director.counters.drops(Reason::TableFull), dropped as u64);
    let total = udp.view().destinations[0].connections.inactive as usize;
    assert_eq!(total, verdicts.len() - dropped, "what was not entered is not counted");
}
