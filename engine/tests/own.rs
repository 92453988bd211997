//! The director as its own client and as a real server of its own: packets in, verdicts and packets out, in both IP versions.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::own::*;
use director::*;
use std::net::SocketAddr;
use uvs_engine::forward::Method;
use uvs_engine::{Reason, Verdict};

const TO_OWN: Verdict = Verdict::Transmit(OWN);
const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);
const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);

fn director() -> Director {
    Director::new().with_own_traffic()
}

/// The director's address on the real servers' side, and the port that a packet comes from there.
fn shown(plan: &Plan, out: &[u8]) -> SocketAddr {
    let v4 = plan.service.is_ipv4();
    let address = if v4 { DIRECTOR4[1] } else { DIRECTOR6[1] };
    let at = 14 + if v4 { 20 } else { 40 };
    SocketAddr::new(address.parse().unwrap(), u16::from_be_bytes([out[at], out[at + 1]]))
}

fn connections(director: &Director, address: SocketAddr) -> u64 {
    director.destinations.locals().get(&address.ip()).unwrap().connections()
}

#[test]
fn by_nat_real_servers_see_the_directors_address() {
    for plan in own_plans() {
        let mut director = director();
        for service in director.serve(plan.service) {
            service.add(&destination(plan.server, Method::Nat, &plan)).unwrap();
        }
        let question = from_own(&plan, UDP, 0);
        let (verdict, out) = director.run(OWN, &question.bytes());
        let local = shown(&plan, &out);
        assert!(PORTS.contains(&local.port()), "{local}");
        let expected = Frame { from: local, ..question.clone().masqueraded(plan.server) };
        assert_eq!((verdict, out), (TO_SERVERS, expected.bytes()));
        assert_eq!(connections(&director, local), 1);

        let answer = Frame { to: local, ..Frame::from_server(&plan, UDP, 0) };
        let expected = to_own(Frame { from: plan.service, to: plan.client, ..answer.clone() });
        assert_eq!(director.run(SERVERS, &answer.bytes()), (TO_OWN, expected.bytes()));
        // Again, by what is known.
        let (verdict, out) = director.run(OWN, &question.bytes());
        assert_eq!((verdict, shown(&plan, &out)), (TO_SERVERS, local));

        director.wait(400);
        assert_eq!(connections(&director, local), 0, "the local address was not told of the end");
    }
}

/// Real servers have the service's address themselves: what comes from there they would not answer.
#[test]
fn by_direct_routing_and_tunnels_they_see_the_service_too() {
    for plan in own_plans() {
        for method in [Method::Direct, Method::Tunnel] {
            let mut director = director();
            for service in director.serve(plan.service) {
                service.add(&destination(plan.server, method, &plan)).unwrap();
            }
            let question = from_own(&plan, UDP, 0);
            for _ in 0..2 {
                let (verdict, out) = director.run(OWN, &question.bytes());
                let outer =
                    if method == Method::Tunnel { if plan.service.is_ipv4() { 20 } else { 40 } } else { 0 };
                let local = shown(&plan, &out[outer..]);
                let sent = Frame { from: local, ..question.clone() };
                let expected = match method {
                    Method::Tunnel => sent.tunnelled(plan.server),
                    _ => sent.routed(),
                };
                assert_eq!((verdict, out.len()), (TO_SERVERS, expected.bytes().len()), "{method:?}");
                assert_eq!(out[14 + outer..], expected.bytes()[14 + outer..], "{method:?}");
                assert_eq!(out[..14], expected.bytes()[..14], "{method:?}");

                let answer = Frame { from: plan.service, to: local, ..Frame::from_server(&plan, UDP, 0) };
                let expected = to_own(Frame { to: plan.client, ..answer.clone() });
                assert_eq!(director.run(SERVERS, &answer.bytes()), (TO_OWN, expected.bytes()), "{method:?}");
                assert_eq!(connections(&director, local), 1, "{method:?}");
            }
            director.wait(400);
            let nearest: SocketAddr = shown(&plan, &[0; 60]);
            assert_eq!(connections(&director, nearest), 0, "{method:?}");
        }
    }
}

/// TCP's handshake: the real server acknowledges a sequence number that the client never chose.
#[test]
fn sequence_numbers_are_translated_as_by_full_nat() {
    for plan in own_plans() {
        for method in [Method::Nat, Method::Direct] {
            let mut director = director();
            let [tcp, _] = director.serve(plan.service);
            tcp.add(&destination(plan.server, method, &plan)).unwrap();
            let at = 14 + if plan.service.is_ipv4() { 20 } else { 40 };
            let word = |bytes: &[u8], offset: usize| {
                u32::from_be_bytes(bytes[at + offset..][..4].try_into().unwrap())
            };
            let syn = from_own(&plan, TCP, SYN).bytes();
            let (verdict, out) = director.run(OWN, &syn);
            assert_eq!(verdict, TO_SERVERS);
            let delta = word(&out, 4).wrapping_sub(word(&syn, 4));
            assert_ne!(delta, 0, "its own initial sequence number");
            let local = shown(&plan, &out);
            let from = if method == Method::Nat { plan.server } else { plan.service };
            let answer = Frame { from, to: local, ..Frame::from_server(&plan, TCP, SYN | ACK) }.bytes();
            let (verdict, back) = director.run(SERVERS, &answer);
            assert_eq!(verdict, TO_OWN);
            assert_eq!(word(&back, 8), word(&answer, 8).wrapping_sub(delta), "{method:?}");
        }
    }
}

#[test]
fn nobody_else_may_claim_to_be_this_host() {
    for plan in own_plans() {
        let mut director = director();
        let [_, udp] = director.serve(plan.service);
        udp.add(&destination(plan.server, Method::Nat, &plan)).unwrap();
        let elsewhere = SocketAddr::new(
            if plan.client.is_ipv4() { "172.16.0.9" } else { "fd00:2::9" }.parse().unwrap(),
            1,
        );
        for from in [plan.client, elsewhere] {
            let frame = Frame { from, ..Frame::from_client(&plan, UDP, 0) };
            assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Drop(Reason::Martian), "{from}");
        }
    }
}

/// A service's own address will do for NAT; a real server that has it, too, would not answer it.
#[test]
fn the_services_address_is_the_last_choice() {
    for plan in own_plans() {
        for (method, expected) in
            [(Method::Nat, TO_SERVERS), (Method::Direct, Verdict::Drop(Reason::NoLocalAddress))]
        {
            let mut director = director();
            director.set_sources(&[&plan.service.ip().to_string()]);
            let [_, udp] = director.serve(plan.service);
            udp.add(&destination(plan.server, method, &plan)).unwrap();
            let (verdict, _) = director.run(OWN, &from_own(&plan, UDP, 0).bytes());
            assert_eq!(verdict, expected, "{method:?}");
        }
    }
}

/// A real server that is this host itself, at another address and port than the service's.
#[test]
fn local_real_servers_by_nat_are_translated_both_ways() {
    let clients = plans();
    for (plan, outside) in own_plans().into_iter().zip(clients) {
        let server = if plan.service.is_ipv4() { at("172.16.0.9:8080") } else { at("[fd00:2::9]:8080") };
        let mut director = director();
        let [_, udp] = director.serve(plan.service);
        udp.add(&destination(server, Method::Nat, &plan)).unwrap();
        // From a client elsewhere.
        let question = Frame::from_client(&outside, UDP, 0);
        let expected = to_own(Frame { to: server, ..question.clone() });
        assert_eq!(director.run(CLIENTS, &question.bytes()), (TO_OWN, expected.bytes()));
        let answer = Frame { from: server, to: outside.client, ..from_own(&plan, UDP, 0) };
        let expected = answer.clone().unmasqueraded(plan.service);
        assert_eq!(director.run(OWN, &answer.bytes()), (TO_CLIENTS, expected.bytes()));
        // From one on this host, which it sees as it is.
        let question = from_own(&plan, UDP, 0);
        let expected = to_own(Frame { to: server, ..question.clone() });
        assert_eq!(director.run(OWN, &question.bytes()), (TO_OWN, expected.bytes()));
        let answer = Frame { from: server, to: plan.client, ..from_own(&plan, UDP, 0) };
        let expected = to_own(Frame { from: plan.service, ..answer.clone() });
        assert_eq!(director.run(OWN, &answer.bytes()), (TO_OWN, expected.bytes()));
        // What it answers past the service goes where it should, as it is.
        let stranger = SocketAddr::new(outside.client.ip(), 1);
        let answer = Frame { from: server, to: stranger, ..from_own(&plan, UDP, 0) };
        let expected = Frame { to_mac: CLIENT_MAC, from_mac: PORT_MACS[0], ..answer.clone() };
        assert_eq!(director.run(OWN, &answer.bytes()), (TO_CLIENTS, expected.bytes()));
        let answer = Frame { to: SocketAddr::new(plan.client.ip(), 1), ..answer };
        assert_eq!(director.run(OWN, &answer.bytes()), (Verdict::ToKernel, answer.bytes()));
    }
}

#[test]
fn local_real_servers_that_need_no_translation_get_what_came() {
    for (plan, outside) in own_plans().into_iter().zip(plans()) {
        let own = if plan.service.is_ipv4() { at("172.16.0.9:80") } else { at("[fd00:2::9]:80") };
        for (server, method) in [(own, Method::Direct), (own, Method::Tunnel), (plan.service, Method::Nat)] {
            let mut director = director();
            let [_, udp] = director.serve(plan.service);
            udp.add(&destination(server, method, &plan)).unwrap();
            for (port, frame) in
                [(CLIENTS, Frame::from_client(&outside, UDP, 0)), (OWN, from_own(&plan, UDP, 0))]
            {
                assert_eq!(
                    director.run(port, &frame.bytes()),
                    (Verdict::ToKernel, frame.bytes()),
                    "{method:?}"
                );
            }
        }
    }
}

/// As with IPVS, whose clients on the host reach ::1, too; Linux takes packets for that by the loopback device alone.
#[test]
fn a_loopback_real_server_is_this_hosts_alone() {
    for ((plan, outside), (server, by_own)) in own_plans()
        .into_iter()
        .zip(plans())
        .zip([(at("127.0.0.1:8080"), TO_OWN), (at("[::1]:8080"), Verdict::Drop(Reason::LoopbackServer))])
    {
        let mut director = director();
        let [_, udp] = director.serve(plan.service);
        udp.add(&destination(server, Method::Nat, &plan)).unwrap();
        let frame = Frame::from_client(&outside, UDP, 0);
        assert_eq!(director.run(CLIENTS, &frame.bytes()).0, Verdict::Drop(Reason::LoopbackServer));
        assert_eq!(director.run(OWN, &from_own(&plan, UDP, 0).bytes()).0, by_own);
    }
}
