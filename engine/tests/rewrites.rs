//! Properties: whatever a rewrite does, the frame that leaves is the one an independent crate would write; whatever comes in,
//! nothing panics.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::full_nat::{Segment, leave_unfinished};
use director::ways::{WAYS, Way};
use director::*;
use proptest::prelude::*;
use std::net::SocketAddr;
use uvs_engine::forward::Method;
use uvs_engine::plan::Tell;
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
        // A SYN before which a header is to go brings no data.
        let brought = it.protocol == UDP || !matches!(way, Way::Told(Tell::Header(_)));
        prop_assert!(out.ends_with(&it.payload) || !brought);

        // The reply to whom the packet came from.
        if matches!(way, Way::Plain(Method::Nat | Method::FullNat) | Way::Told(_)) {
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

    /// As above, of data behind a handshake, before which a client's address is told, in parts and with any options.
    #[test]
    fn the_checksums_of_what_tells_are_right(
        (way, other) in any_way(), v4: bool, first: u32, unfinished: bool,
        options in prop::collection::vec(Just(1_u8), 0..11),
        payload in prop::collection::vec(any::<u8>(), 0..1200),
        cuts in prop::collection::vec(0_usize..1200, 0..4),
    ) {
        if !matches!(way, Way::Plain(Method::FullNat) | Way::Told(_)) {
            return Ok(());
        }
        let plan = plans()[usize::from(!v4)];
        let server = plans()[usize::from(v4 == other)].server;
        let mut director = Director::new();
        director.serve_by(way, &plan, server, &Ports::default());
        let syn = Segment::new(plan.client, plan.service, SYN, first, 0).bytes(CLIENT_MAC, PORT_MACS[0]);
        prop_assert_eq!(director.run(CLIENTS, &syn).0, Verdict::Transmit(SERVERS));
        let mut data = Segment::new(plan.client, plan.service, ACK, first.wrapping_add(1), 1);
        data.options = [&options[..], &vec![1; options.len().next_multiple_of(4) - options.len()]].concat();
        data.payload.clone_from(&payload);
        let mut bytes = data.bytes(CLIENT_MAC, PORT_MACS[0]);
        if unfinished {
            leave_unfinished(&mut bytes);
        }
        let header = 14 + if v4 { 20 } else { 40 } + 20 + data.options.len();
        let (head, tail) = bytes.split_at(header.min(bytes.len()));
        let mut parts = in_parts(tail, &cuts.iter().map(|cut| cut.saturating_sub(78)).collect::<Vec<_>>());
        let joined = [head, parts.remove(0)].concat();
        parts.insert(0, &joined);
        let (verdict, out) = director.run_parts(CLIENTS, &parts);
        prop_assert_eq!(verdict, Verdict::Transmit(SERVERS));
        prop_assert_eq!(oracle::verify(&out), Ok(()));
        let seen = Segment::read(&out);
        prop_assert!(seen.payload.ends_with(&payload));
        let more = seen.payload.len() - payload.len() + seen.options.len() - data.options.len();
        let expected = match way {
            Way::Told(Tell::Option(_)) => if v4 { 8..=8 } else { 20..=20 },
            Way::Told(Tell::Header(_)) => 28..=107,
            _ => 0..=0,
        };
        prop_assert!(expected.contains(&more), "{more} bytes more");
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
