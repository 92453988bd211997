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
fn padding_of_short_frames_is_not_summed() {
    established(|director, plan, method, protocol| {
        let frame = Frame { payload: vec![1], ..Frame::from_client(plan, protocol, ACK) };
        let padded = |mut bytes: Vec<u8>| {
            bytes.extend([0xee; 5]);
            bytes
        };
        let expected = forwarded(plan, method, frame.clone());
        // Behind the packet that a tunnel wraps nothing may follow.
        let expected = if method == Method::Tunnel { expected.bytes() } else { padded(expected.bytes()) };
        assert_eq!(director.run(CLIENTS, &padded(frame.unfinished())), (TO_SERVERS, expected));
    });
}

#[test]
fn a_tag_is_taken_off_a_frame_that_changes_its_link() {
    established(|director, plan, method, protocol| {
        let tagged = Frame { vlan: Some(7), ..Frame::from_client(plan, protocol, ACK) };
        let expected = Frame { vlan: None, ..forwarded(plan, method, tagged.clone()) };
        assert_eq!(director.run(CLIENTS, &tagged.bytes()), (TO_SERVERS, expected.bytes()));
        // The same frame by the servers' port leaves by the port it came from.
        let tagged = Frame { to_mac: PORT_MACS[1], ..tagged };
        let expected = forwarded(plan, method, tagged.clone());
        assert_eq!(director.run(SERVERS, &tagged.bytes()), (TO_SERVERS, expected.bytes()));
    });
}

#[test]
fn two_tags_are_taken_off_or_stay_together() {
    let outer = |bytes: Vec<u8>| [&bytes[..12], &[0x88, 0xa8, 0, 9], &bytes[12..]].concat();
    established(|director, plan, method, protocol| {
        for unfinished in [false, true] {
            let tagged = Frame { vlan: Some(7), ..Frame::from_client(plan, protocol, ACK) };
            let bytes = |frame: &Frame| if unfinished { frame.unfinished() } else { frame.bytes() };
            let expected = Frame { vlan: None, ..forwarded(plan, method, tagged.clone()) };
            assert_eq!(director.run(CLIENTS, &outer(bytes(&tagged))), (TO_SERVERS, expected.bytes()));
            let tagged = Frame { to_mac: PORT_MACS[1], ..tagged };
            let expected = forwarded(plan, method, tagged.clone());
            assert_eq!(director.run(SERVERS, &outer(bytes(&tagged))), (TO_SERVERS, outer(expected.bytes())));
        }
    });
}

#[test]
fn udp_without_a_checksum_stays_without() {
    let [plan, _] = plans();
    let (mut director, _) = Director::with_server(&plan, Method::Nat);
    let frame = Frame::from_client(&plan, UDP, 0);
    let without = |frame: &Frame| {
        let (mut bytes, at) = (frame.bytes(), frame.checksum_at());
        bytes[at..at + 2].copy_from_slice(&[0, 0]);
        bytes
    };
    let expected = without(&frame.clone().masqueraded(plan.server));
    assert_eq!(director.run(CLIENTS, &without(&frame)), (TO_SERVERS, expected));
}

#[test]
fn an_aged_packet_is_answered_for_and_dropped() {
    established(|director, plan, method, protocol| {
        for ttl in [0, 1] {
            let frame = Frame { ttl, ..Frame::from_client(plan, protocol, ACK) };
            let (verdict, out) = director.run(CLIENTS, &frame.bytes());
            assert_eq!(verdict, TO_CLIENTS, "{method:?}");
            let (v4, v6) = ((11, 0), (3, 0));
            assert_report(&out, &frame, if plan.client.is_ipv4() { v4 } else { v6 });
        }
        assert_eq!(director.counters.drops(Reason::TtlExpired), 2);
        let frame = Frame { ttl: 2, ..Frame::from_client(plan, protocol, ACK) };
        assert_eq!(director.run(CLIENTS, &frame.bytes()).0, TO_SERVERS);
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

/// Writes the checksum of an untagged frame's IPv4 header anew.
fn seal(frame: &mut [u8]) {
    let end = 14 + usize::from(frame[14] & 0xf) * 4;
    frame[24..26].fill(0);
    let words = frame[14..end].chunks(2);
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    let sum = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    frame[24..26].copy_from_slice(&(!sum).to_be_bytes());
}

#[test]
fn an_ipv4_header_whose_checksum_is_wrong_is_dropped() {
    let with_options = |mut bytes: Vec<u8>| {
        bytes.splice(34..34, [1; 4]);
        bytes[14] += 1;
        let length = u16::from_be_bytes([bytes[16], bytes[17]]) + 4;
        bytes[16..18].copy_from_slice(&length.to_be_bytes());
        seal(&mut bytes);
        bytes
    };
    established(|director, plan, _, protocol| {
        if !plan.client.is_ipv4() {
            return;
        }
        let frame = Frame::from_client(plan, protocol, ACK);
        let tagged = Frame { vlan: Some(7), ..frame.clone() }.bytes();
        for (what, network, frame) in [
            ("plain", 14, frame.bytes()),
            ("tagged", 18, tagged),
            ("options", 14, with_options(frame.bytes())),
        ] {
            assert_eq!(director.run(CLIENTS, &frame).0, TO_SERVERS, "{what}");
            // The identification, which nothing else depends on; the checksum itself; the time to live.
            for at in [4, 5, 8, 10, 11] {
                let mut wrong = frame.clone();
                wrong[network + at] ^= 0x10;
                let expected = (Verdict::Drop(Reason::BadChecksum), wrong.clone());
                assert_eq!(director.run(CLIENTS, &wrong), expected, "{what}, byte {at}");
            }
        }
        assert_eq!(director.counters.drops(Reason::BadChecksum), 15);
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
fn verdicts_without_a_connection() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let client = |flags| Frame::from_client(&plan, TCP, flags);
        let table: Vec<(&str, Frame, Verdict)> = vec![
            ("mid-stream segment", client(ACK), Verdict::ToKernel),
            ("reset", client(RST), Verdict::ToKernel),
            ("reset with SYN", client(RST | SYN), Verdict::ToKernel),
            ("no flags", client(0), Verdict::ToKernel),
            (
                "another port of the address",
                Frame { to: std::net::SocketAddr::new(plan.service.ip(), 81), ..client(SYN) },
                Verdict::ToKernel,
            ),
            (
                "a reply of no connection",
                Frame::from_server(&plan, TCP, SYN | ACK),
                Verdict::Drop(Reason::OtherHost),
            ),
            (
                "from the virtual address to itself (LAND)",
                Frame { from: plan.service, ..client(SYN) },
                Verdict::Drop(Reason::Martian),
            ),
            (
                "for another host",
                Frame { to_mac: [2, 9, 9, 9, 9, 9], ..client(SYN) },
                Verdict::Drop(Reason::OtherHost),
            ),
            ("to everybody", Frame { to_mac: [0xff; 6], ..client(SYN) }, Verdict::ToKernel),
            (
                "for a virtual router's address",
                Frame { to_mac: [0, 0, 0x5e, 0, 1, 51], ..client(SYN) },
                TO_SERVERS,
            ),
        ];
        for (what, frame, verdict) in table {
            let (given, out) = director.run(CLIENTS, &frame.bytes());
            assert_eq!(given, verdict, "{what}");
            if verdict == Verdict::ToKernel {
                assert_eq!(out, frame.bytes(), "{what}");
                if frame.to_mac == PORT_MACS[0] {
                    assert_eq!(
                        director.run(CLIENTS, &frame.unfinished()).1,
                        frame.bytes(),
                        "{what}, unfinished"
                    );
                }
            }
        }
        let reply = Frame::from_server(&plan, TCP, SYN | ACK);
        assert_eq!(director.run(SERVERS, &Frame { from: plan.second, ..reply }.bytes()).0, Verdict::ToKernel);
    }
}

#[test]
fn sources_that_cannot_be_clients() {
    let [plan, plan6] = plans();
    for (plan, source) in [
        (plan, "224.0.0.1:5"),
        (plan, "127.0.0.1:5"),
        (plan, "255.255.255.255:5"),
        (plan, "0.0.0.0:5"),
        (plan6, "[ff02::1]:5"),
        (plan6, "[::1]:5"),
        (plan6, "[::]:5"),
    ] {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let frame = Frame { from: at(source), ..Frame::from_client(&plan, UDP, 0) };
        assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Drop(Reason::Martian), "{source}");
    }
}

/// Linux calls a source address of its own martian, whichever of them it is.
#[test]
fn this_host_is_no_client_of_itself() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let frame = Frame::from_client(&plan, TCP, SYN).bytes();
        director.snapshot.own = [plan.client.ip()].into();
        assert_eq!(director.run(CLIENTS, &frame).0, Verdict::Drop(Reason::Martian));
        director.snapshot.own = [plan.server.ip()].into();
        assert_eq!(director.run(CLIENTS, &frame).0, TO_SERVERS);
    }
}

/// Linux takes source routes from nobody by default, whatever else the packet is.
#[test]
fn packets_do_not_choose_their_way() {
    let [plan, _] = plans();
    let (mut director, _) = Director::with_server(&plan, Method::Nat);
    let sent_by = |options: [u8; 8]| {
        let mut frame = Frame::from_client(&plan, TCP, SYN).bytes();
        frame.splice(34..34, options);
        frame[14] = 0x47;
        frame[17] += 8;
        frame[24..26].fill(0);
        let words = frame[14..42].chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]])));
        let sum: u32 = words.sum();
        let folded = u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
        frame[24..26].copy_from_slice(&(!folded).to_be_bytes());
        frame
    };
    for (what, options, verdict) in [
        ("a loose source route", [131, 7, 4, 203, 0, 113, 9, 0], Verdict::Drop(Reason::SourceRouted)),
        ("a strict one", [1, 137, 7, 4, 203, 0, 113, 9], Verdict::Drop(Reason::SourceRouted)),
        ("a record of the route", [7, 7, 4, 0, 0, 0, 0, 0], TO_SERVERS),
    ] {
        assert_eq!(director.run(CLIENTS, &sent_by(options)).0, verdict, "{what}");
    }
}

#[test]
fn real_servers_that_cannot_be_reached() {
    let [plan, _] = plans();
    for (what, server, method, verdict) in [
        ("through another device", "172.17.0.1:80", Method::Nat, Verdict::Drop(Reason::EgressNotOurs)),
        ("this host, directly", "172.16.0.9:80", Method::Direct, Verdict::ToKernel),
        ("this host, by a tunnel", "172.16.0.9:80", Method::Tunnel, Verdict::ToKernel),
        ("this host, same port", "172.16.0.9:80", Method::Nat, Verdict::ToKernel),
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
