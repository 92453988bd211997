//! What settings of `net.ipv4.vs` do to packets.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::report::{Report, quote_with};
use director::*;
use std::net::SocketAddr;
use uvs_conntrack::OwnTimeouts;
use uvs_conntrack::protocol::tcp::{Mode, State};
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::service::Terms;
use uvs_engine::snapshot::Reuse;
use uvs_engine::steer::View;
use uvs_engine::{Reason, Verdict};

const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);
const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);

/// The states of all connections, by their names.
fn states(director: &Director) -> Vec<&'static str> {
    let handle = director.table.handle().unwrap();
    handle.connections_after(0).map(|(_, connection)| connection.state_name()).collect()
}

fn state(director: &Director) -> &'static str {
    let states = states(director);
    assert_eq!(states.len(), 1, "{states:?}");
    states[0]
}

#[test]
fn a_clients_new_connection_takes_the_place_of_one_that_is_over() {
    type Life<'a> = (Method, &'a [(bool, u8)], State, [bool; 3]);
    let lives: [Life<'_>; 4] = [
        (
            Method::Nat,
            &[(true, SYN), (true, ACK), (true, FIN | ACK), (false, FIN | ACK)],
            State::TimeWait,
            [false, true, true],
        ),
        (Method::Nat, &[(true, SYN), (false, RST)], State::Close, [false, true, true]),
        (Method::Nat, &[(true, SYN), (true, ACK), (false, FIN | ACK)], State::FinWait, [false; 3]),
        (
            Method::Direct,
            &[(true, SYN), (true, ACK), (true, FIN | ACK)],
            State::FinWait,
            [false, false, true],
        ),
    ];
    for plan in plans() {
        for (method, packets, ends_in, reused) in lives {
            for (reuse, reused) in
                [Reuse::Never, Reuse::Over, Reuse::OverOrHalfClosed].into_iter().zip(reused)
            {
                let (mut director, _) = Director::with_server(&plan, method);
                director.snapshot.options.reuse = reuse;
                for (by_client, flags) in packets {
                    let frame = if *by_client { Frame::from_client } else { Frame::from_server };
                    let port = if *by_client { CLIENTS } else { SERVERS };
                    director.run(port, &frame(&plan, TCP, *flags).bytes());
                }
                assert_eq!(state(&director), ends_in.name(), "{method:?}");
                let again = Frame::from_client(&plan, TCP, SYN).bytes();
                assert_eq!(director.run(CLIENTS, &again).0, TO_SERVERS);
                let count = director.counters.events(Event::ConnectionReused);
                assert_eq!(count, u64::from(reused), "{method:?} {ends_in:?} {reuse:?}");
                assert_eq!(state(&director), "SYN_RECV", "{method:?} {ends_in:?} {reuse:?}");
            }
        }
    }
}

#[test]
fn a_segment_without_syn_begins_a_connection_if_that_is_not_taken_strictly() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct, Method::FullNat] {
            let (mut director, _) = Director::with_server(&plan, method);
            let run = |director: &mut Director, flags| {
                director.run(CLIENTS, &Frame::from_client(&plan, TCP, flags).bytes()).0
            };
            assert_eq!(run(&mut director, ACK), Verdict::ToKernel);
            director.snapshot.options.sloppy_tcp = true;
            assert_eq!(run(&mut director, RST | ACK), Verdict::ToKernel, "a reset never does");
            assert_eq!(run(&mut director, ACK), TO_SERVERS, "{method:?}");
            assert_eq!(state(&director), "ESTABLISHED");
        }
    }
}

#[test]
fn under_attack_the_real_server_has_to_speak_first() {
    let steps = [
        (true, SYN, "SYN_RECV"),
        (true, ACK, "SYN_RECV"),
        (false, SYN | ACK, "SYNACK"),
        (false, ACK, "ESTABLISHED"),
    ];
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        director.snapshot.options.tcp_mode = Mode::Secure;
        for (by_client, flags, expected) in steps {
            let (port, frame) = if by_client {
                (CLIENTS, Frame::from_client(&plan, TCP, flags))
            } else {
                (SERVERS, Frame::from_server(&plan, TCP, flags))
            };
            director.run(port, &frame.bytes());
            assert_eq!(state(&director), expected);
        }
        let (mut director, _) = Director::with_server(&plan, Method::Direct);
        director.snapshot.options.tcp_mode = Mode::Secure;
        director.run(CLIENTS, &Frame::from_client(&plan, TCP, SYN).bytes());
        assert_eq!(state(&director), "SYNACK", "of one that is seen one way only");
    }
}

#[test]
fn connections_live_as_long_as_their_service_says() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct, Method::FullNat] {
            let (mut director, services) = Director::with_server(&plan, method);
            let mut timeouts = OwnTimeouts::default();
            for (state, seconds) in [("syn_recv", 5), ("established", 50), ("close", 2), ("udp", 9)] {
                assert!(timeouts.set(state, seconds));
            }
            services.iter().for_each(|service| service.set_terms(Terms { timeouts, ..Terms::default() }));
            let timeout = |director: &Director| {
                let handle = director.table.handle().unwrap();
                handle.connections_after(0).map(|(_, connection)| connection.meta().timeout()).next()
            };
            for (flags, seconds) in [(SYN, 5), (ACK, 50), (ACK, 50), (RST, 2)] {
                let (verdict, _) = director.run(CLIENTS, &Frame::from_client(&plan, TCP, flags).bytes());
                assert_eq!((verdict, timeout(&director)), (TO_SERVERS, Some(seconds)), "{method:?}");
            }
            director.wait(3);
            assert_eq!(timeout(&director), None);
            for _ in 0..2 {
                director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
                assert_eq!(timeout(&director), Some(9));
            }
            services[1].set_terms(Terms::default());
            director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
            assert_eq!(timeout(&director), Some(300), "as everybody's, from the next packet on");
        }
    }
}

#[test]
fn one_of_so_many_packets_that_would_begin_connections_is_dropped() {
    for (rate, dropped) in
        [(0, vec![]), (1, vec![0, 1, 2, 3, 4, 5, 6, 7]), (3, vec![0, 3, 6]), (-1, (0..8).collect())]
    {
        let plan = plans()[0];
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        director.snapshot.options.drop_rate = rate;
        let fates = (0..8).filter(|number| {
            let client = SocketAddr::new(plan.client.ip(), 2000 + number);
            let protocol = if number % 2 == 0 { TCP } else { UDP };
            let frame = Frame { from: client, ..Frame::from_client(&plan, protocol, SYN) };
            director.run(CLIENTS, &frame.bytes()).0 == Verdict::Drop(Reason::Defence)
        });
        assert_eq!(fates.collect::<Vec<_>>(), dropped, "one of {rate}");
        // Packets of connections that are there pass.
        if rate == 3 {
            let client = SocketAddr::new(plan.client.ip(), 2001);
            let frame = Frame { from: client, ..Frame::from_client(&plan, UDP, 0) }.bytes();
            assert!((0..5).all(|_| director.run(CLIENTS, &frame).0 == TO_SERVERS));
        }
    }
}

#[test]
fn a_real_server_is_told_that_its_packet_belongs_to_no_connection() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let repliers = [TCP, UDP].map(|protocol| (plan.server.ip(), plan.server.port(), protocol));
        director.snapshot.repliers = repliers.into_iter().collect::<View>();
        let run = |director: &mut Director, protocol, flags, from| {
            director.run(SERVERS, &Frame { from, ..Frame::from_server(&plan, protocol, flags) }.bytes())
        };
        for protocol in [TCP, UDP] {
            assert_eq!(run(&mut director, protocol, ACK, plan.server).0, Verdict::ToKernel);
        }
        director.snapshot.options.nat_icmp_send = true;
        for protocol in [TCP, UDP] {
            let (verdict, out) = run(&mut director, protocol, ACK, plan.server);
            assert_eq!(verdict, Verdict::Transmit(SERVERS));
            let own = if plan.server.is_ipv4() { DIRECTOR4[1] } else { DIRECTOR6[1] };
            let (kind, code, from) = if plan.server.is_ipv4() {
                (out[34], out[35], out[26..30].to_vec())
            } else {
                (out[54], out[55], out[22..38].to_vec())
            };
            assert_eq!((kind, code), if plan.server.is_ipv4() { (3, 3) } else { (1, 4) });
            let octets = match own.parse().unwrap() {
                std::net::IpAddr::V4(ip) => ip.octets().to_vec(),
                std::net::IpAddr::V6(ip) => ip.octets().to_vec(),
            };
            assert_eq!(from, octets, "by the director's own address");
        }
        assert_eq!(director.counters.drops(Reason::NoConnection), 2);
        assert_eq!(run(&mut director, TCP, RST, plan.server).0, Verdict::ToKernel, "a reset");
        let other = SocketAddr::new(plan.server.ip(), 9);
        assert_eq!(
            run(&mut director, TCP, ACK, other).0,
            Verdict::ToKernel,
            "another socket of the same host"
        );
        director.run(CLIENTS, &Frame::from_client(&plan, TCP, SYN).bytes());
        assert_eq!(run(&mut director, TCP, SYN | ACK, plan.server).0, TO_CLIENTS, "a reply");
    }
}

#[test]
fn an_error_about_a_packet_of_no_connection_goes_to_a_real_server() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct, Method::Tunnel, Method::FullNat] {
            let (mut director, services) = Director::with_server(&plan, method);
            let answer = Frame { from: plan.service, ..Frame::from_server(&plan, TCP, ACK) };
            let v4 = plan.client.is_ipv4();
            let report = Report {
                to_mac: PORT_MACS[0],
                from_mac: CLIENT_MAC,
                from: plan.client.ip(),
                to: plan.service.ip(),
                ttl: 64,
                kind: if v4 { 3 } else { 2 },
                code: if v4 { 4 } else { 0 },
                word: [0, 0, 5, 0],
                quote: quote_with(&answer, plan.service, plan.client, 8),
            };
            assert_eq!(director.run(CLIENTS, &report.bytes()).0, Verdict::ToKernel);
            director.snapshot.options.schedule_icmp = true;
            let (verdict, out) = director.run(CLIENTS, &report.bytes());
            if method == Method::FullNat {
                assert_eq!(verdict, Verdict::Drop(Reason::NoDestination));
                continue;
            }
            assert_eq!(verdict, TO_SERVERS, "{method:?}");
            oracle::verify(&out).unwrap();
            assert_eq!(state(&director), "NONE");
            assert_eq!(services[0].totals().connections, 1);
            director.wait(4);
            assert!(states(&director).is_empty(), "it ends after three seconds");
            services[0].delete(destination(plan.server, method, &plan).address, director.now).unwrap();
            assert_eq!(director.run(CLIENTS, &report.bytes()).0, Verdict::Drop(Reason::NoDestination));
        }
    }
}
