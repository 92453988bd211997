//! Properties: whatever a rewrite does, the frame that leaves is the one an independent crate would write; whatever comes in,
//! nothing panics.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::ways::{WAYS, Way};
use director::*;
use proptest::prelude::*;
use std::net::SocketAddr;
use uvs_engine::forward::Method;
use uvs_engine::service::Ports;
use uvs_engine::{Reason, Verdict};

/// What varies from packet to packet.
#[derive(Clone, Debug)]
struct Variation {
    v4: bool,
    method: Method,
    protocol: u8,
    client_port: u16,
    ttl: u8,
    payload: Vec<u8>,
    vlan: Option<u16>,
    unfinished: bool,
    /// Where the frame is cut into parts, counted from the end of its headers.
    cuts: Vec<usize>,
}

fn variation() -> impl Strategy<Value = Variation> {
    let which = (any::<bool>(), prop::sample::select(&PLAIN[..]), prop::sample::select(vec![TCP, UDP]));
    let packet = (1_u16.., 2_u8.., prop::collection::vec(any::<u8>(), 0..1400));
    let frame = (prop::option::of(0_u16..4095), any::<bool>(), prop::collection::vec(0_usize..1400, 0..4));
    (which, packet, frame).prop_map(
        |((v4, method, protocol), (client_port, ttl, payload), (vlan, unfinished, cuts))| Variation {
            v4,
            method,
            protocol,
            client_port,
            ttl,
            payload,
            vlan,
            unfinished,
            cuts,
        },
    )
}

/// One of the ways, between any IP versions.
fn any_way() -> impl Strategy<Value = (Way, bool)> {
    prop::sample::select(&WAYS[..])
}

/// `bytes` in parts, the first of which holds all headers.
fn in_parts<'a>(bytes: &'a [u8], cuts: &[usize]) -> Vec<&'a [u8]> {
    const HEADERS: usize = 14 + 4 + 40 + 20;
    let mut ends: Vec<usize> = cuts.iter().map(|cut| (HEADERS + cut).min(bytes.len())).collect();
    ends.push(bytes.len());
    ends.sort_unstable();
    let mut start = 0;
    ends.iter()
        .map(|end| {
            let part = &bytes[start..*end];
            start = *end;
            part
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_frame_that_leaves_is_the_one_etherparse_writes(it in variation()) {
        let [v4, v6] = plans();
        let plan = if it.v4 { v4 } else { v6 };
        let (mut director, _) = Director::with_server(&plan, it.method);
        let client = std::net::SocketAddr::new(plan.client.ip(), it.client_port);
        let frame = Frame {
            from: client, ttl: it.ttl, payload: it.payload.clone(), vlan: it.vlan,
            ..Frame::from_client(&plan, it.protocol, SYN)
        };
        let bytes = if it.unfinished { frame.unfinished() } else { frame.bytes() };
        let expected = match it.method {
            Method::Nat => frame.clone().masqueraded(plan.server),
            Method::Tunnel => frame.clone().tunnelled(plan.server),
            _ => frame.clone().routed(),
        };
        let expected = Frame { vlan: None, ..expected };
        let (verdict, out) = director.run_parts(CLIENTS, &in_parts(&bytes, &it.cuts));
        prop_assert_eq!(verdict, Verdict::Transmit(SERVERS));
        prop_assert_eq!(out, expected.bytes());

        if it.method == Method::Nat {
            let reply = Frame {
                to: client, ttl: it.ttl, payload: it.payload, vlan: it.vlan,
                ..Frame::from_server(&plan, it.protocol, SYN | ACK)
            };
            let bytes = if it.unfinished { reply.unfinished() } else { reply.bytes() };
            let expected = Frame { vlan: None, ..reply.unmasqueraded(plan.service) };
            let (verdict, out) = director.run_parts(SERVERS, &in_parts(&bytes, &it.cuts));
            prop_assert_eq!(verdict, Verdict::Transmit(CLIENTS));
            prop_assert_eq!(out, expected.bytes());
        }
    }

    /// Whatever a way does to a packet: what leaves has the same payload, and etherparse computes the checksums that it has.
    #[test]
    fn the_checksums_of_what_leaves_are_right(it in variation(), (way, other) in any_way()) {
        let [v4, v6] = plans();
        let (plan, across) = if it.v4 { (v4, v6) } else { (v6, v4) };
        let server = if other { across.server } else { plan.server };
        let mut director = Director::new();
        director.serve_by(way, &plan, server, &Ports::default());
        let client = SocketAddr::new(plan.client.ip(), it.client_port);
        let frame = Frame {
            from: client, ttl: it.ttl, payload: it.payload.clone(), vlan: it.vlan,
            ..Frame::from_client(&plan, it.protocol, SYN)
        };
        let bytes = if it.unfinished { frame.unfinished() } else { frame.bytes() };
        let (verdict, out) = director.run_parts(CLIENTS, &in_parts(&bytes, &it.cuts));
        if verdict == Verdict::Transmit(CLIENTS) {
            // Around so much payload the packet is too long for the link: its sender is told.
            prop_assert_eq!(director.counters.drops(Reason::TooBig), 1);
            prop_assert!(it.payload.len() > 1300);
            return Ok(());
        }
        prop_assert_eq!(verdict, Verdict::Transmit(SERVERS));
        prop_assert_eq!(oracle::verify(&out), Ok(()));
        prop_assert!(out.ends_with(&it.payload));

        // The reply to whom the packet came from.
        if matches!(way, Way::Plain(Method::Nat | Method::FullNat)) {
            let header = if server.is_ipv4() { 34 } else { 54 };
            let port = u16::from_be_bytes([out[header], out[header + 1]]);
            let own = if server.is_ipv4() { DIRECTOR4[1] } else { DIRECTOR6[1] };
            let to = if way == Way::Plain(Method::Nat) { client } else { SocketAddr::new(own.parse().unwrap(), port) };
            let reply = Frame {
                from: server, to, ttl: it.ttl, payload: it.payload.clone(), vlan: it.vlan,
                ..Frame::from_server(&plan, it.protocol, SYN | ACK)
            };
            let bytes = if it.unfinished { reply.unfinished() } else { reply.bytes() };
            let (verdict, out) = director.run_parts(SERVERS, &in_parts(&bytes, &it.cuts));
            prop_assert_eq!(verdict, Verdict::Transmit(CLIENTS));
            prop_assert_eq!(oracle::verify(&out), Ok(()));
            prop_assert!(out.ends_with(&it.payload));
        }
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let [plan, _] = plans();
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        director.run(CLIENTS, &bytes);
    }

    #[test]
    fn no_damaged_frame_panics(it in variation(), damage in prop::collection::vec((12_usize..100, any::<u8>()), 1..6)) {
        let [v4, v6] = plans();
        let plan = if it.v4 { v4 } else { v6 };
        let (mut director, _) = Director::with_server(&plan, it.method);
        let frame = Frame { vlan: it.vlan, payload: it.payload, ..Frame::from_client(&plan, it.protocol, SYN) };
        let mut bytes = frame.bytes();
        for (at, value) in damage {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = value;
            }
        }
        director.run_parts(CLIENTS, &in_parts(&bytes, &it.cuts));
    }
}
