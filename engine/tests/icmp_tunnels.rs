//! ICMP errors about packets in tunnels: the client is told what happened to its own, and how long they may be.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::report::{Report, message, routers};
use director::*;
use std::net::{IpAddr, SocketAddr};
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::plan::{TunnelChecksum, TunnelKind};
use uvs_engine::{Reason, Verdict};

const KINDS: [(TunnelKind, TunnelChecksum, u32); 4] = [
    (TunnelKind::Ipip, TunnelChecksum::None, 0),
    (TunnelKind::Gue, TunnelChecksum::Full, 12),
    (TunnelKind::Gre, TunnelChecksum::None, 4),
    (TunnelKind::Gre, TunnelChecksum::Full, 8),
];

/// A director with a tunnel to `server`, to which the client has spoken once; what it sent to the server.
fn through_a_tunnel(
    plan: &Plan,
    server: IpAddr,
    kind: TunnelKind,
    checksum: TunnelChecksum,
) -> (Director, Vec<u8>) {
    let mut director = Director::new();
    for service in director.serve(plan.service) {
        let server = SocketAddr::new(server, plan.service.port());
        let mut config = destination(server, Method::Tunnel, plan);
        config.plan = tunnelled(kind, checksum, server.ip());
        service.add(&config).unwrap();
    }
    let frame = Frame { payload: vec![7; 200], ..Frame::from_client(plan, TCP, SYN) };
    let (verdict, sent) = director.run(CLIENTS, &frame.bytes());
    assert_eq!(verdict, Verdict::Transmit(SERVERS));
    (director, sent)
}

/// What a router on the tunnel's way says of what it got, and to which.
fn about_the_tunnel(server: IpAddr, sent: &[u8], (kind, code): (u8, u8), word: u32) -> Report {
    Report {
        to_mac: PORT_MACS[1],
        from_mac: SERVER_MAC,
        from: if server.is_ipv4() { "172.16.0.99" } else { "fd00:2::99" }.parse().unwrap(),
        to: tunnel_source(server),
        ttl: 60,
        kind,
        code,
        word: word.to_be_bytes(),
        quote: sent[14..].to_vec(),
    }
}

/// Both families of the packet inside, both of the one around, every kind of tunnel.
fn tunnels(test: impl Fn(&Plan, IpAddr, &mut Director, &[u8], u32)) {
    for plan in plans() {
        for other in plans() {
            for (kind, checksum, extra) in KINDS {
                let server = other.server.ip();
                let (mut director, sent) = through_a_tunnel(&plan, server, kind, checksum);
                let overhead = extra + if server.is_ipv4() { 20 } else { 40 };
                test(&plan, server, &mut director, &sent, overhead);
            }
        }
    }
}

/// The client's packet as a tunnel carries it: one hop older.
fn carried(plan: &Plan) -> Vec<u8> {
    let frame = Frame { ttl: 63, payload: vec![7; 200], ..Frame::from_client(plan, TCP, SYN) };
    frame.bytes()[14..].to_vec()
}

#[test]
fn a_client_learns_what_is_left_of_a_tunnels_path() {
    tunnels(|plan, server, director, sent, overhead| {
        let (too_big, told) = (if server.is_ipv4() { (3, 4) } else { (2, 0) }, 1400 - overhead);
        let error = about_the_tunnel(server, sent, too_big, 1400).bytes();
        let (verdict, out) = director.run(SERVERS, &error);
        assert_eq!(verdict, Verdict::Transmit(CLIENTS));
        assert_eq!((&out[..6], &out[6..12]), (&CLIENT_MAC[..], &PORT_MACS[0][..]));
        let (kind, code) = if plan.client.is_ipv4() { (3, 4) } else { (2, 0) };
        let word = told.to_be_bytes();
        let (from, to) = (plan.service.ip(), plan.client.ip());
        let expected = Report {
            to_mac: [0; 6],
            from_mac: [0; 6],
            from,
            to,
            ttl: 64,
            kind,
            code,
            word,
            quote: carried(plan),
        };
        assert_eq!(message(&out, from, to), message(&expected.bytes(), from, to));
        assert_eq!(director.counters.events(Event::PathMtuLearnt), 1);

        // From now on the client is told by ourselves, until the path may have changed.
        let headers = if plan.client.is_ipv4() { 40 } else { 60 };
        let long = |bytes: u32| {
            let payload = vec![1; bytes as usize - headers];
            Frame { payload, ..Frame::from_client(plan, TCP, ACK) }.bytes()
        };
        assert_eq!(director.run(CLIENTS, &long(told)).0, Verdict::Transmit(SERVERS));
        assert_eq!(director.run(CLIENTS, &long(told + 1)).0, Verdict::Transmit(CLIENTS));
        assert_eq!(director.counters.drops(Reason::TooBig), 1);
        director.now = director.now.plus_seconds(610);
        assert_eq!(director.run(CLIENTS, &long(told + 1)).0, Verdict::Transmit(SERVERS));
    });
}

#[test]
fn a_client_learns_what_else_happens_to_its_packets_in_a_tunnel() {
    tunnels(|plan, server, director, sent, _| {
        let kinds = if server.is_ipv4() { [(3, 1), (3, 2), (11, 0)] } else { [(1, 0), (1, 4), (3, 0)] };
        for (kind, code) in kinds {
            let error = about_the_tunnel(server, sent, (kind, code), 0);
            let (verdict, out) = director.run(SERVERS, &error.bytes());
            if server.is_ipv4() != plan.client.is_ipv4() {
                assert_eq!(verdict, Verdict::Drop(Reason::TunnelError));
                continue;
            }
            assert_eq!(verdict, Verdict::Transmit(CLIENTS));
            let (from, to) = (plan.service.ip(), plan.client.ip());
            let expected = Report { from, to, quote: carried(plan), ..error };
            assert_eq!(message(&out, from, to), message(&expected.bytes(), from, to));
        }
        assert_eq!(director.counters.events(Event::PathMtuLearnt), 0);
    });
}

#[test]
fn errors_about_tunnels_of_others_are_the_hosts() {
    tunnels(|plan, server, director, sent, overhead| {
        let too_big = if server.is_ipv4() { (3, 4) } else { (2, 0) };
        let error = about_the_tunnel(server, sent, too_big, 1400);
        let outer = if server.is_ipv4() { 20 } else { 40 };
        let changed = |at: usize| {
            let mut quote = error.quote.clone();
            quote[at] ^= 1;
            Report { quote, ..error.clone() }
        };
        let inner = overhead as usize + if plan.client.is_ipv4() { 20 } else { 40 };
        for (what, report) in [
            ("to another real server", changed(outer - 1)),
            ("of another connection", changed(inner + 1)),
            ("too little is quoted", Report { quote: error.quote[..inner + 7].to_vec(), ..error.clone() }),
            ("of another host", Report { to: routers(plan)[0], ..error.clone() }),
        ] {
            if report.to.is_ipv4() != report.from.is_ipv4() {
                continue;
            }
            let bytes = report.bytes();
            assert_eq!(director.run(SERVERS, &bytes), (Verdict::ToKernel, bytes), "{what}");
        }
        let mut damaged = error.bytes();
        *damaged.last_mut().unwrap() ^= 1;
        assert_eq!(director.run(SERVERS, &damaged).0, Verdict::Drop(Reason::BadChecksum));
        assert_eq!(director.counters.events(Event::PathMtuLearnt), 0);
    });
}
