//! ICMP errors: those of others about packets of connections reach whom they concern, and our own say what Linux's say.
//!
//! The captures under `tests/golden/pcap` hold what IPVS made of the same errors.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::report::{Report, beyond, error_on, quote_with};
use director::*;
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{Route, Routes, Target};
use uvs_engine::service::{LocalPool, Ports};
use uvs_engine::verdict::Neighbour;
use uvs_engine::{PortId, Reason, Verdict};

/// Every plan with both protocols over `method`, a connection there.
fn established(method: Method, test: impl Fn(&mut Director, &Plan, u8)) {
    for plan in plans() {
        for protocol in [TCP, UDP] {
            let (mut director, _) = Director::with_server(&plan, method);
            let frame = Frame::from_client(&plan, protocol, SYN);
            assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Transmit(SERVERS));
            test(&mut director, &plan, protocol);
        }
    }
}

#[test]
fn errors_of_every_kind_are_relayed_both_ways() {
    established(Method::Nat, |director, plan, protocol| {
        // Types and codes with what their second word holds: an MTU, a pointer.
        let kinds: Vec<(u8, u8, [u8; 4])> = if plan.client.is_ipv4() {
            let unreachable = (0..16).map(|code| (3, code, [0, 0, 5, 20]));
            unreachable
                .chain([(4, 0, [0; 4]), (11, 0, [0; 4]), (11, 1, [0; 4]), (12, 0, [9, 0, 0, 0])])
                .collect()
        } else {
            let unreachable = (0..8).map(|code| (1, code, [0; 4]));
            let others = [(2, 0, [0, 0, 5, 20]), (3, 0, [0; 4]), (3, 1, [0; 4]), (4, 1, [0, 0, 0, 6])];
            unreachable.chain(others).collect()
        };
        let mut relayed = 0;
        for (kind, code, word) in kinds {
            for port in [CLIENTS, SERVERS] {
                let (report, expected) = error_on(port, plan, protocol, 8);
                let report = Report { kind, code, word, ..report };
                let expected = Report { kind, code, word, ..expected };
                let (verdict, out) = director.run(port, &report.bytes());
                assert_eq!(verdict, Verdict::Transmit(beyond(port)), "{kind} {code} of {protocol}");
                assert_eq!(out, expected.bytes(), "{kind} {code} of {protocol} from {port:?}");
                relayed += 1;
            }
        }
        assert_eq!(director.counters.events(Event::IcmpRelayed), relayed);
        assert_eq!(director.counters.events(Event::IcmpSent), 0);
    });
}

#[test]
fn an_error_counts_as_a_packet_and_moves_no_connection() {
    for plan in plans() {
        let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
        for frame in [Frame::from_client(&plan, TCP, SYN), Frame::from_server(&plan, TCP, SYN | ACK)] {
            let port = if frame.to == plan.service { CLIENTS } else { SERVERS };
            director.run(port, &frame.bytes());
        }
        director.run(CLIENTS, &Frame::from_client(&plan, TCP, ACK).bytes());
        let before = tcp.view();
        let (report, _) = error_on(SERVERS, &plan, TCP, 8);
        director.run(SERVERS, &report.bytes());
        let after = tcp.view();
        assert_eq!(after.traffic.out_packets, before.traffic.out_packets + 1);
        let connections = |view: &uvs_engine::service::ServiceView| view.destinations[0].connections;
        assert_eq!(connections(&after), connections(&before));
        assert_eq!(director.table.stats().connections4 + director.table.stats().connections6, 1);
    }
}

/// The director's address on the real servers' network.
fn own_address(plan: &Plan) -> IpAddr {
    if plan.client.is_ipv4() { DIRECTOR4[1] } else { DIRECTOR6[1] }.parse().unwrap()
}

/// The real server and its routers know the local address and sequence numbers of the director's; the client and its routers know
/// neither. Each learns of its own packet.
#[test]
fn full_nat_hides_the_client_and_shifts_sequence_numbers() {
    for plan in plans() {
        for protocol in [TCP, UDP] {
            let mut director = Director::new();
            let local = director.destinations.locals().enter(own_address(&plan));
            for service in director.serve(plan.service) {
                service.set_locals(LocalPool::new(vec![(local.clone(), Ports::default())]));
                service.add(&destination(plan.server, Method::FullNat, &plan)).unwrap();
            }
            let first = Frame::from_client(&plan, protocol, SYN);
            let (verdict, sent) = director.run(CLIENTS, &first.bytes());
            assert_eq!(verdict, Verdict::Transmit(SERVERS));
            let transport = 14 + if plan.client.is_ipv4() { 20 } else { 40 };
            let port = u16::from_be_bytes([sent[transport], sent[transport + 1]]);
            let from_local = SocketAddr::new(local.address(), port);

            // About the client's packet, as the real server got it.
            let (report, relayed) = error_on(SERVERS, &plan, protocol, 8);
            let report = Report { to: local.address(), quote: sent[14..transport + 8].to_vec(), ..report };
            let mut quote = first.bytes()[14..transport + 8].to_vec();
            // The checksum of UDP lies within the quote, and stays; so does the age of what was quoted.
            quote[transport - 14 + 6..].copy_from_slice(&report.quote[transport - 14 + 6..]);
            if protocol == TCP {
                quote[transport - 14 + 4..].copy_from_slice(&0x1234_5678_u32.to_be_bytes());
            }
            let ip = Frame { ttl: first.ttl - 1, ..first.clone() }.bytes();
            quote[..transport - 14].copy_from_slice(&ip[14..transport]);
            let relayed = Report { quote, ..relayed };
            let (verdict, out) = director.run(SERVERS, &report.bytes());
            assert_eq!(verdict, Verdict::Transmit(CLIENTS), "{protocol}");
            assert_eq!(out, relayed.bytes(), "{protocol}");

            // About the real server's packet, as the client got it: the server sees the local address complain.
            let (report, relayed) = error_on(CLIENTS, &plan, protocol, 8);
            let reply = Frame::from_server(&plan, protocol, ACK).unmasqueraded(plan.service);
            let quote = quote_with(&reply, plan.server, from_local, 8);
            let relayed = Report { from: local.address(), quote, ..relayed };
            let (verdict, out) = director.run(CLIENTS, &report.bytes());
            assert_eq!(verdict, Verdict::Transmit(SERVERS), "{protocol}");
            assert_eq!(out, relayed.bytes(), "{protocol}");
        }
    }
}

#[test]
fn direct_routing_passes_errors_as_they_are() {
    established(Method::Direct, |director, plan, protocol| {
        let plan = Plan { server: SocketAddr::new(plan.server.ip(), plan.service.port()), ..*plan };
        let (report, relayed) = error_on(CLIENTS, &plan, protocol, 8);
        let expected = Report { to: report.to, quote: report.quote.clone(), ..relayed };
        let (verdict, out) = director.run(CLIENTS, &report.bytes());
        assert_eq!((verdict, out), (Verdict::Transmit(SERVERS), expected.bytes()));
    });
}

#[test]
fn errors_that_are_dropped_are_answered_by_nothing() {
    established(Method::Nat, |director, plan, protocol| {
        let (report, _) = error_on(SERVERS, plan, protocol, 8);
        let mut damaged = report.bytes();
        *damaged.last_mut().unwrap() ^= 1;
        let old = Report { ttl: 1, ..report.clone() };
        let long = Report { quote: [report.quote.clone(), vec![0; 1600]].concat(), ..report.clone() };
        for (bytes, reason) in [
            (damaged, Reason::BadChecksum),
            (old.bytes(), Reason::TtlExpired),
            (long.bytes(), Reason::TooBig),
        ] {
            let (verdict, _) = director.run(SERVERS, &bytes);
            assert_eq!(verdict, Verdict::Drop(reason));
            assert_eq!(director.counters.drops(reason), 1);
        }
        assert_eq!(director.counters.events(Event::IcmpSent), 0);
    });
}

#[test]
fn an_error_about_a_removed_servers_packet_is_dropped() {
    for plan in plans() {
        let (mut director, services) = Director::with_server(&plan, Method::Nat);
        director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
        for service in &services {
            service.delete(plan.server, director.now).unwrap();
        }
        let (report, _) = error_on(CLIENTS, &plan, UDP, 8);
        let (verdict, _) = director.run(CLIENTS, &report.bytes());
        assert_eq!(verdict, Verdict::Drop(Reason::DestinationGone));
    }
}

#[test]
fn a_real_server_is_told_by_the_directors_own_address() {
    established(Method::Nat, |director, plan, protocol| {
        let own = own_address(plan);
        let frame = Frame { ttl: 1, ..Frame::from_server(plan, protocol, ACK) };
        let (verdict, out) = director.run(SERVERS, &frame.bytes());
        assert_eq!(verdict, Verdict::Transmit(SERVERS));
        let parsed = etherparse::SlicedPacket::from_ethernet(&out).unwrap();
        let (from, to): (IpAddr, IpAddr) = match parsed.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                (ip.header().source_addr().into(), ip.header().destination_addr().into())
            }
            etherparse::NetSlice::Arp(_) => panic!("an IP packet"),
        };
        assert_eq!((from, to), (own, plan.server.ip()));
        // Without an address of its own nobody believes it: it keeps silent.
        director.snapshot.ports = (director.snapshot.ports.iter().cloned())
            .map(|port| uvs_engine::snapshot::Port { addresses: [None; 2], ..port })
            .collect();
        assert_eq!(director.run(SERVERS, &frame.bytes()).0, Verdict::Drop(Reason::TtlExpired));
    });
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// However much is quoted, in however many parts, behind whatever tag: etherparse writes the same message.
    #[test]
    fn any_length_of_quote(
        v4: bool, tcp: bool, from_client: bool, more in 0_usize..900, transport in 8_usize..31,
        vlan in prop::option::of(0_u16..4095), cut in 0_usize..900,
    ) {
        let [four, six] = plans();
        let plan = if v4 { four } else { six };
        let protocol = if tcp { TCP } else { UDP };
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        director.run(CLIENTS, &Frame::from_client(&plan, protocol, SYN).bytes());
        let port = if from_client { CLIENTS } else { SERVERS };
        let (mut report, mut expected) = error_on(port, &plan, protocol, transport);
        let trailer: Vec<u8> = (0..=u8::MAX).cycle().take(more).collect();
        report.quote.extend(&trailer);
        expected.quote.extend(&trailer);
        let mut bytes = report.bytes();
        if let Some(id) = vlan {
            let [a, b] = id.to_be_bytes();
            bytes.splice(12..12, [0x81, 0, a, b]);
        }
        let first = (14 + 4 + 40 + 8 + 40 + 8 + cut).min(bytes.len());
        let (verdict, out) = director.run_parts(port, &[&bytes[..first], &bytes[first..]]);
        prop_assert_eq!(verdict, Verdict::Transmit(beyond(port)));
        prop_assert_eq!(out, expected.bytes());
    }

    #[test]
    fn no_damaged_error_panics(v4: bool, damage in prop::collection::vec((12_usize..110, any::<u8>()), 1..6), len in 0_usize..130) {
        let [four, six] = plans();
        let plan = if v4 { four } else { six };
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
        let mut bytes = error_on(CLIENTS, &plan, UDP, 8).0.bytes();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        bytes.truncate(len);
        director.run(CLIENTS, &bytes);
    }
}

/// What a capture holds: a client, a virtual service, a real server on the network of the device that its packets left by.
#[derive(Clone, Copy)]
struct Scene {
    service: &'static str,
    client: &'static str,
    server: &'static str,
    protocol: u8,
    method: Method,
}

impl Scene {
    /// A director of that network to which the client has spoken once.
    fn director(&self) -> Director {
        let mut director = Director::new();
        let hops = director.snapshot.hops.clone();
        let route = |text: &str, length, port| Route {
            network: text.parse().unwrap(),
            length,
            target: Target::OnLink(port),
        };
        let mut routes = Routes::build([
            route("10.1.0.0", 24, CLIENTS),
            route("10.2.0.0", 16, SERVERS),
            route("fd01::", 64, CLIENTS),
            route("fd02::", 16, SERVERS),
        ]);
        for (port, address, mac) in
            [(CLIENTS, at(self.client).ip(), CLIENT_MAC), (SERVERS, at(self.server).ip(), SERVER_MAC)]
        {
            routes = routes.with_neighbour(&hops, Neighbour { port, address }, mac).unwrap();
        }
        director.snapshot.routes = Arc::new(routes);
        let plan = Plan {
            client: at(self.client),
            service: at(self.service),
            server: at(self.server),
            second: at(self.server),
        };
        for service in director.serve(plan.service) {
            service.add(&destination(plan.server, self.method, &plan)).unwrap();
        }
        let first = Frame::from_client(&plan, self.protocol, SYN);
        assert_eq!(director.run(CLIENTS, &first.bytes()).0, Verdict::Transmit(SERVERS));
        director
    }
}

fn to_port(mut frame: Vec<u8>, port: PortId) -> Vec<u8> {
    frame[..6].copy_from_slice(&PORT_MACS[usize::from(port.0)]);
    frame
}

#[test]
fn errors_become_what_ipvs_made_of_them() {
    let nat =
        |service, client, server, protocol| Scene { service, client, server, protocol, method: Method::Nat };
    let direct =
        |service, client, server| Scene { service, client, server, protocol: UDP, method: Method::Direct };
    let (first, second) = ("10.2.1.11:53", "10.2.2.12:53");
    // Capture and number of the error as it came, of the error as IPVS sent it on.
    for (what, scene, port, (came, nth), (left, as_nth)) in [
        (
            "closed port of a real server",
            nat("10.0.0.1:99", "10.1.0.2:42001", "10.2.2.12:99", UDP),
            SERVERS,
            ("nat-icmp.d-dr2", 2),
            ("nat-icmp.d-dc", 2),
        ),
        (
            "the same, IPv6",
            nat("[fd00::1]:99", "[fd01::2]:42001", "[fd02:2::12]:99", UDP),
            SERVERS,
            ("nat-icmp.d-dr2", 4),
            ("nat-icmp.d-dc", 4),
        ),
        (
            "closed port of the client",
            nat("10.0.0.1:53", "10.1.0.2:43002", first, UDP),
            CLIENTS,
            ("nat-icmp.d-dc", 11),
            ("nat-icmp.d-dr1", 3),
        ),
        (
            "fragmentation needed",
            nat("10.0.0.1:53", "10.1.0.2:41001", second, UDP),
            CLIENTS,
            ("nat-icmp.d-dc", 12),
            ("nat-icmp.d-dr2", 5),
        ),
        (
            "host unreachable, TCP",
            nat("10.0.0.1:80", "10.1.0.2:40003", "10.2.2.12:80", TCP),
            CLIENTS,
            ("nat-icmp.d-dc", 13),
            ("nat-icmp.d-dr2", 6),
        ),
        (
            "packet too big, IPv6",
            nat("[fd00::1]:53", "[fd01::2]:41001", "[fd02:2::12]:53", UDP),
            CLIENTS,
            ("nat-icmp.d-dc", 14),
            ("nat-icmp.d-dr2", 7),
        ),
        (
            "closed port behind a short link",
            nat("10.0.0.1:53", "10.1.0.2:45002", first, UDP),
            CLIENTS,
            ("nat-mtu.c-c0", 7),
            ("nat-mtu.d-dr1", 4),
        ),
        (
            "directly routed: fragmentation needed",
            direct("10.0.0.1:54", "10.1.0.2:44002", "10.2.2.12:54"),
            CLIENTS,
            ("dr-frag.c-c0", 8),
            ("dr-frag.d-dr2", 5),
        ),
        (
            "directly routed: closed port",
            direct("10.0.0.1:53", "10.1.0.2:43002", first),
            CLIENTS,
            ("dr-frag.c-c0", 9),
            ("dr-frag.d-dr1", 2),
        ),
        (
            "directly routed: quoting 548 bytes",
            direct("10.0.0.1:54", "10.1.0.2:44002", "10.2.2.12:54"),
            CLIENTS,
            ("dr-frag.c-c0", 10),
            ("dr-frag.d-dr2", 6),
        ),
    ] {
        let error = to_port(capture(came)[nth - 1].1.clone(), port);
        let expected = &capture(left)[as_nth - 1].1;
        let mut director = scene.director();
        let (verdict, out) = director.run(port, &error);
        assert_eq!(verdict, Verdict::Transmit(beyond(port)), "{what}");
        assert_eq!(out[12..], expected[12..], "{what}");
    }
}

/// Our own reports differ from Linux's in the IP header's identification, which ours do without (RFC 6864 §4.1), and in the
/// flow label.
#[test]
fn reports_say_what_ipvs_said() {
    let scene =
        |service, client, server| Scene { service, client, server, protocol: UDP, method: Method::Nat };
    for (what, scene, mtu, came, left) in [
        (
            "time exceeded",
            scene("10.0.0.1:53", "10.1.0.2:43001", "10.2.1.11:53"),
            1500,
            ("nat-icmp.d-dc", 5),
            ("nat-icmp.d-dc", 6),
        ),
        (
            "fragmentation needed",
            scene("10.0.0.1:53", "10.1.0.2:45001", "10.2.1.11:53"),
            1300,
            ("nat-mtu.c-c0", 1),
            ("nat-mtu.c-c0", 2),
        ),
        (
            "packet too big",
            scene("[fd00::1]:53", "[fd01::2]:45003", "[fd02:1::11]:53"),
            1300,
            ("nat-mtu.c-c0", 4),
            ("nat-mtu.c-c0", 5),
        ),
    ] {
        let mut director = scene.director();
        let mut ports = director.snapshot.ports.to_vec();
        ports[1].mtu = mtu;
        director.snapshot.ports = Arc::from(ports);
        let packet = to_port(capture(came.0)[came.1 - 1].1.clone(), CLIENTS);
        let expected = capture(left.0)[left.1 - 1].1.clone();
        let (verdict, out) = director.run(CLIENTS, &packet);
        assert_eq!(verdict, Verdict::Transmit(CLIENTS), "{what}");
        let masked = |mut frame: Vec<u8>| {
            let range = if frame[12] == 0x08 { [18..22, 24..26] } else { [15..18, 15..18] };
            range.into_iter().for_each(|range| frame[range].fill(0));
            frame.split_off(12)
        };
        assert_eq!(masked(out), masked(expected), "{what}");
    }
}
