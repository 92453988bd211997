//! Commands on services and real servers while connections go on.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use uvs_engine::counters::Traffic;
use uvs_engine::forward::Method;
use uvs_engine::service::{Connections, DestinationConfig, ServiceError};
use uvs_engine::snapshot::OnRemove;
use uvs_engine::{Reason, Verdict};

fn client(plan: &Plan, port: u16, flags: u8) -> Frame {
    let from = std::net::SocketAddr::new(plan.client.ip(), port);
    Frame { from, ..Frame::from_client(plan, TCP, flags) }
}

#[test]
fn commands_are_refused_as_the_kernel_does() {
    let [plan, plan6] = plans();
    let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
    let there = destination(plan.server, Method::Nat, &plan);
    let new = DestinationConfig { address: plan.second, ..there };
    let at_ip = |ip: &str| DestinationConfig { address: at(ip), ..there };
    let table = [
        ("twice", tcp.add(&there).map(drop), ServiceError::DestinationExists(there.address)),
        ("not there", tcp.edit(&new), ServiceError::NoSuchDestination(new.address)),
        ("not there", tcp.delete(new.address, director.now), ServiceError::NoSuchDestination(new.address)),
        (
            "weight",
            tcp.add(&DestinationConfig { weight: 1 << 31, ..new }).map(drop),
            ServiceError::WeightOutOfRange(1 << 31),
        ),
        (
            "thresholds",
            tcp.add(&DestinationConfig { upper_threshold: 4, lower_threshold: 5, ..new }).map(drop),
            ServiceError::ThresholdsOutOfRange { upper: 4, lower: 5 },
        ),
        (
            "multicast",
            tcp.add(&at_ip("224.0.0.1:80")).map(drop),
            ServiceError::NotUnicast(at("224.0.0.1:80")),
        ),
        (
            "the other IP version",
            tcp.add(&DestinationConfig { address: plan6.server, ..there }).map(drop),
            ServiceError::FamilyMismatch(plan6.server),
        ),
    ];
    for (what, result, error) in table {
        assert_eq!(result, Err(error), "{what}");
    }
    assert!(matches!(director.snapshot.services.with(tcp.clone()), Err(ServiceError::ServiceExists(_))));
    let (without, gone) = director.snapshot.services.without(&tcp.key()).unwrap();
    assert!(without.find(&tcp.key()).is_none() && gone.key() == tcp.key() && without.len() == 1);
    director.snapshot.services = without;
    assert!(matches!(director.snapshot.services.without(&tcp.key()), Err(ServiceError::NoSuchService(_))));
}

#[test]
fn a_server_of_weight_zero_keeps_its_connections() {
    for plan in plans() {
        let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
        assert_eq!(director.run(CLIENTS, &client(&plan, 1, SYN).bytes()).0, Verdict::Transmit(SERVERS));
        let idle = DestinationConfig { weight: 0, ..destination(plan.server, Method::Nat, &plan) };
        tcp.edit(&idle).unwrap();
        tcp.add(&destination(plan.second, Method::Nat, &plan)).unwrap();
        let (_, old) = director.run(CLIENTS, &client(&plan, 1, ACK).bytes());
        assert_eq!(old[..6], SERVER_MAC);
        for port in 2..6 {
            let (_, new) = director.run(CLIENTS, &client(&plan, port, SYN).bytes());
            assert_eq!(new[..6], SECOND_SERVER_MAC);
        }
    }
}

#[test]
fn a_deleted_server_drops_its_connections_and_finds_them_when_it_comes_back() {
    for plan in plans() {
        let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
        let server = destination(plan.server, Method::Nat, &plan);
        for flags in [SYN, ACK] {
            director.run(CLIENTS, &client(&plan, 1, flags).bytes());
        }
        let before = tcp.view().destinations[0];
        assert_eq!(before.connections, Connections { active: 1, inactive: 0 });
        tcp.delete(server.address, director.now).unwrap();
        let frame = client(&plan, 1, ACK).bytes();
        assert_eq!(director.run(CLIENTS, &frame), (Verdict::Drop(Reason::DestinationGone), frame.clone()));
        assert_eq!(tcp.view().traffic, before.traffic, "what it counted stays its service's");
        assert_eq!(
            director.run(CLIENTS, &client(&plan, 2, SYN).bytes()).0,
            Verdict::Transmit(CLIENTS),
            "refused"
        );

        director.destinations.collect(director.now.plus_seconds(1000));
        assert_eq!(director.destinations.trashed(), 1, "it has a connection");
        tcp.add(&server).unwrap();
        assert_eq!(tcp.view().destinations[0], before);
        assert_eq!(director.run(CLIENTS, &frame).0, Verdict::Transmit(SERVERS));

        tcp.delete(server.address, director.now).unwrap();
        director.wait(890);
        director.destinations.collect(director.now);
        director.wait(20);
        director.destinations.collect(director.now.plus_seconds(99));
        assert_eq!(director.destinations.trashed(), 1, "119 seconds without a connection");
        director.destinations.collect(director.now.plus_seconds(100));
        assert_eq!(director.destinations.trashed(), 0);
        tcp.add(&server).unwrap();
        let view = tcp.view();
        let fresh = (Connections::default(), Traffic::default());
        assert_eq!((view.destinations[0].connections, view.destinations[0].traffic), fresh);
        assert_eq!(view.traffic.connections, 1, "the service's own counters go on");
    }
}

#[test]
fn a_deleted_server_keeps_its_connections_where_they_are_to_be_kept() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct] {
            let (mut director, [tcp, _]) = Director::with_server(&plan, method);
            director.snapshot.on_remove = OnRemove::Keep;
            for flags in [SYN, ACK] {
                director.run(CLIENTS, &client(&plan, 1, flags).bytes());
            }
            let before = tcp.view().traffic;
            tcp.add(&destination(plan.second, method, &plan)).unwrap();
            tcp.delete(destination(plan.server, method, &plan).address, director.now).unwrap();
            let (verdict, kept) = director.run(CLIENTS, &client(&plan, 1, ACK).bytes());
            assert_eq!((verdict, &kept[..6]), (Verdict::Transmit(SERVERS), &SERVER_MAC[..]));
            let (verdict, new) = director.run(CLIENTS, &client(&plan, 2, SYN).bytes());
            assert_eq!((verdict, &new[..6]), (Verdict::Transmit(SERVERS), &SECOND_SERVER_MAC[..]));
            assert_eq!(tcp.view().traffic.in_packets, before.in_packets + 1, "counted for whom it has");

            director.run(CLIENTS, &client(&plan, 1, RST).bytes());
            director.wait(11);
            let gone = director.run(CLIENTS, &client(&plan, 1, ACK).bytes()).0;
            assert_eq!(gone, Verdict::ToKernel, "it ended as others do");
            director.destinations.collect(director.now);
            director.destinations.collect(director.now.plus_seconds(121));
            assert_eq!(director.destinations.trashed(), 0, "and its real server is forgotten");
        }
    }
}

#[test]
fn counters_count_packets_and_lengths_as_ipvs() {
    for plan in plans() {
        let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
        let header = if plan.client.is_ipv4() { 40 } else { 60 };
        director.run(CLIENTS, &client(&plan, 40000, SYN).bytes());
        director.run(SERVERS, &Frame::from_server(&plan, TCP, SYN | ACK).bytes());
        director.run(CLIENTS, &client(&plan, 40000, ACK).bytes());
        let packet = header + 11;
        let expected = Traffic {
            connections: 1,
            in_packets: 2,
            out_packets: 1,
            in_bytes: 2 * packet,
            out_bytes: packet,
        };
        let view = tcp.view();
        assert_eq!((view.traffic, view.destinations[0].traffic), (expected, expected));
        assert_eq!(director.counters.total(), expected);
        tcp.zero();
        let view = tcp.view();
        assert_eq!((view.traffic, view.destinations[0].traffic), Default::default());
        director.run(CLIENTS, &client(&plan, 40000, ACK).bytes());
        assert_eq!(tcp.view().traffic.in_packets, 1);
        assert_eq!(director.counters.total().in_packets, 3, "zeroed by itself");
    }
}

#[test]
fn connections_follow_their_states_and_end_by_their_timeouts() {
    let [plan, _] = plans();
    let (mut director, [tcp, udp]) = Director::with_server(&plan, Method::Nat);
    let count = |service: &uvs_engine::service::Service| {
        let Connections { active, inactive } = service.view().destinations[0].connections;
        (active, inactive)
    };
    director.run(CLIENTS, &client(&plan, 1, SYN).bytes());
    director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
    assert_eq!((count(&tcp), count(&udp)), ((1, 0), (0, 1)), "SYN_RECV is active, UDP never");
    director.run(CLIENTS, &client(&plan, 1, ACK).bytes());
    director.wait(299);
    assert_eq!((count(&tcp), count(&udp)), ((1, 0), (0, 1)));
    director.wait(2);
    assert_eq!((count(&tcp), count(&udp)), ((1, 0), (0, 0)), "UDP ends after 300 seconds");
    director.run(CLIENTS, &client(&plan, 1, FIN | ACK).bytes());
    assert_eq!(count(&tcp), (0, 1), "CLOSE_WAIT is not active");
    director.wait(61);
    assert_eq!(count(&tcp), (0, 0));
    assert_eq!(director.run(CLIENTS, &client(&plan, 1, ACK).bytes()).0, Verdict::ToKernel);
}

#[test]
fn a_threshold_keeps_new_connections_away_until_old_ones_end() {
    let [plan, _] = plans();
    let mut director = Director::new();
    let [tcp, _] = director.serve(plan.service);
    let limited = DestinationConfig {
        upper_threshold: 2,
        lower_threshold: 1,
        ..destination(plan.server, Method::Nat, &plan)
    };
    tcp.add(&limited).unwrap();
    let sent = |director: &mut Director, port| director.run(CLIENTS, &client(&plan, port, SYN).bytes()).0;
    assert_eq!(sent(&mut director, 1), Verdict::Transmit(SERVERS));
    assert_eq!(sent(&mut director, 2), Verdict::Transmit(SERVERS));
    assert_eq!(sent(&mut director, 3), Verdict::Transmit(CLIENTS), "refused by ICMP");
    assert!(tcp.view().destinations[0].overloaded);
    director.wait(61);
    assert_eq!(sent(&mut director, 3), Verdict::Transmit(SERVERS));
}

#[test]
fn a_deleted_service_takes_nothing_more() {
    let [plan, _] = plans();
    let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
    director.run(CLIENTS, &client(&plan, 1, SYN).bytes());
    let (services, gone) = director.snapshot.services.without(&tcp.key()).unwrap();
    director.snapshot.services = services;
    gone.retire(director.now);
    assert_eq!(director.run(CLIENTS, &client(&plan, 2, SYN).bytes()).0, Verdict::ToKernel);
    assert_eq!(
        director.run(CLIENTS, &client(&plan, 1, ACK).bytes()).0,
        Verdict::Drop(Reason::DestinationGone)
    );
    let [udp_key, tcp_key] =
        [UDP, TCP].map(|protocol| uvs_engine::service::ServiceKey { protocol, ..tcp.key() });
    assert!(director.snapshot.services.find(&udp_key).is_some());
    // The same service again: its real server comes back with the connection it had.
    let scheduler = uvs_schedulers::by_name("wlc").unwrap();
    let again =
        uvs_engine::service::Service::new(tcp_key, "wlc", scheduler, director.destinations.clone()).unwrap();
    again.add(&destination(plan.server, Method::Nat, &plan)).unwrap();
    director.snapshot.services = director.snapshot.services.with(again.clone()).unwrap();
    assert_eq!(director.run(CLIENTS, &client(&plan, 1, ACK).bytes()).0, Verdict::Transmit(SERVERS));
    let view = again.view();
    assert_eq!(view.destinations[0].connections, Connections { active: 1, inactive: 0 });
    assert_eq!((view.traffic.connections, view.traffic.in_packets), (0, 1), "a new service counts from zero");
}

#[test]
fn the_same_scheduler_goes_on_where_it_was() {
    let [plan, _] = plans();
    let (mut director, [tcp, _]) = Director::with_server(&plan, Method::Nat);
    tcp.set_scheduler("rr", uvs_schedulers::by_name("rr").unwrap());
    tcp.add(&destination(plan.second, Method::Nat, &plan)).unwrap();
    let chosen = |director: &mut Director, port| {
        let (_, sent) = director.run(CLIENTS, &client(&plan, port, SYN).bytes());
        sent[..6].to_vec()
    };
    let first = chosen(&mut director, 1);
    tcp.set_scheduler("rr", uvs_schedulers::by_name("rr").unwrap());
    let second = chosen(&mut director, 2);
    assert_ne!(first, second, "an edit with the same scheduler begins anew");
    tcp.set_scheduler("wrr", uvs_schedulers::by_name("wrr").unwrap());
    assert_eq!(tcp.view().scheduler, "wrr");
}

#[test]
fn a_real_server_is_one_host() {
    for (address, may) in [
        ("10.0.0.1", true),
        ("0.0.0.0", false),
        ("224.0.0.1", false),
        ("255.255.255.255", false),
        ("fd00::1", true),
        ("::", false),
        ("ff02::1", false),
        ("fe80::1", false),
        ("::ffff:10.0.0.1", false),
    ] {
        assert_eq!(uvs_engine::service::is_one_host(address.parse().unwrap()), may, "{address}");
    }
}
