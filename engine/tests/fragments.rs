//! Fragments: every datagram arrives complete, by the rules of NAT and direct routing, whatever the order and the worker.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use etherparse::{Ipv4HeaderSlice, Ipv6FragmentHeaderSlice};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use uvs_engine::counters::{Event, Traffic};
use uvs_engine::forward::Method;
use uvs_engine::nexthop::{Route, Routes, Target};
use uvs_engine::packet::{ipv4, piece, split};
use uvs_engine::service::{DestinationConfig, LocalPool, Ports};
use uvs_engine::verdict::Neighbour;
use uvs_engine::{PortId, Reason, Verdict};

const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);
const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);

/// A frame's packet in fragments of at most `limit` bytes.
fn cut(frame: &Frame, limit: usize) -> Vec<Vec<u8>> {
    let mut bytes = frame.bytes();
    if frame.from.is_ipv4() {
        bytes[20] &= !0x40; // may be fragmented
        ipv4::finish(&mut bytes, 14).unwrap();
    }
    fragmented(&bytes, limit)
}

/// As a worker does it.
fn fragmented(bytes: &[u8], limit: usize) -> Vec<Vec<u8>> {
    let parts = [bytes];
    let whole = |piece: piece::Piece| {
        let stretch = piece::stretch(&parts, piece.payload.clone()).flatten();
        piece.headers.iter().chain(stretch).copied().collect()
    };
    split::fragments(&parts, limit, 0x0bad_cafe).unwrap().map(whole).collect()
}

/// Of a fragment: where its payload lies in the datagram's, and whether others follow.
fn place(fragment: &[u8]) -> (usize, bool, &[u8]) {
    if fragment[12..14] == [8, 0] {
        let header = Ipv4HeaderSlice::from_slice(&fragment[14..]).unwrap();
        assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
        let offset = header.fragments_offset().byte_offset();
        (offset.into(), header.more_fragments(), &fragment[34..14 + usize::from(header.total_len())])
    } else {
        assert_eq!(fragment[20], 44, "a fragment header follows");
        let header = Ipv6FragmentHeaderSlice::from_slice(&fragment[54..62]).unwrap();
        let offset = header.fragment_offset().byte_offset();
        (offset.into(), header.more_fragments(), &fragment[62..])
    }
}

/// The payload that fragments make up, which follow each other without gap or overlap.
fn reassembled(fragments: &[Vec<u8>]) -> Vec<u8> {
    let pieces: BTreeMap<usize, (bool, &[u8])> = (fragments.iter().map(|fragment| place(fragment)))
        .map(|(offset, more, payload)| (offset, (more, payload)))
        .collect();
    assert_eq!(pieces.len(), fragments.len(), "no two are the same");
    let mut payload = vec![];
    for (index, (offset, (more, bytes))) in pieces.iter().enumerate() {
        assert_eq!((*offset, *more), (payload.len(), index + 1 < pieces.len()));
        payload.extend(*bytes);
    }
    payload
}

/// The headers that fragments share: link, addresses, hops.
fn shared(frame: &[u8]) -> Vec<u8> {
    if frame[12..14] == [8, 0] {
        [&frame[..16], &frame[22..24], &frame[26..34]].concat()
    } else {
        [&frame[..18], &frame[21..54]].concat()
    }
}

fn transport(frame: &Frame) -> Vec<u8> {
    frame.bytes()[if frame.from.is_ipv4() { 34 } else { 54 }..].to_vec()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Up to twelve pieces in any order, each to either of two workers, the connection known or new: all come out, once, and
    /// make up the datagram as the method rewrites it; so do the reply's.
    #[test]
    fn any_order_on_any_worker_is_complete(
        family in 0_usize..2,
        nat: bool,
        known: bool,
        count in 2_usize..=12,
        order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        workers in prop::collection::vec(any::<bool>(), 64),
        protocol in prop::sample::select(vec![UDP, TCP]),
    ) {
        let plan = &plans()[family];
        let method = if nat { Method::Nat } else { Method::Direct };
        let (mut director, _) = Director::with_server(plan, method);
        let mut other = director.another_pipeline();
        let mut workers = workers.into_iter().cycle();
        let payload: Vec<u8> = (0..count * 104 - 30).map(|at| at.to_le_bytes()[0]).collect();
        let flags = if known { ACK } else { SYN };
        if known {
            let first = Frame::from_client(plan, protocol, SYN);
            prop_assert_eq!(director.run(CLIENTS, &first.bytes()).0, TO_SERVERS);
        }
        let client = Frame { payload, ..Frame::from_client(plan, protocol, flags) };
        let there = if nat { client.clone().masqueraded(plan.server) } else { client.clone().routed() };
        let mut ways = vec![(CLIENTS, client.clone(), there, TO_SERVERS)];
        if nat {
            let server = Frame { payload: client.payload.clone(), ..Frame::from_server(plan, protocol, ACK) };
            let back = server.clone().unmasqueraded(plan.service);
            ways.push((SERVERS, server, back, TO_CLIENTS));
        }
        for (port, frame, expected, verdict) in ways {
            let header = if frame.from.is_ipv4() { 20 } else { 48 };
            let pieces = cut(&frame, header + 104);
            let mut waiting: Vec<Vec<u8>> =
                order.iter().filter_map(|at| pieces.get(*at)).cloned().collect();
            waiting.extend(pieces.iter().skip(12).cloned());
            let mut out = vec![];
            for _ in 0..2 {
                for piece in std::mem::take(&mut waiting) {
                    if workers.next().unwrap() {
                        std::mem::swap(&mut director.pipeline, &mut other);
                    }
                    match director.run(port, &piece) {
                        (Verdict::Await, same) => {
                            prop_assert_eq!(&same, &piece);
                            waiting.push(piece);
                        }
                        (given, bytes) => {
                            prop_assert_eq!(given, verdict);
                            out.push(bytes);
                        }
                    }
                }
            }
            prop_assert!(waiting.is_empty());
            prop_assert_eq!(reassembled(&out), transport(&expected));
            let headers = shared(&expected.bytes());
            prop_assert!(out.iter().all(|fragment| shared(fragment) == headers));
        }
    }
}

/// Frame by frame: what it is, the frame, its verdict.
type Row<'a> = (&'a str, Vec<u8>, Verdict);

fn expect(director: &mut Director, rows: Vec<Row<'_>>) {
    for (what, bytes, verdict) in rows {
        assert_eq!(director.run(CLIENTS, &bytes).0, verdict, "{what}");
    }
}

#[test]
fn what_is_not_forwarded() {
    for plan in plans() {
        let (mut director, [_, service]) = Director::with_server(&plan, Method::Nat);
        let payload = vec![7; 300];
        let ours = Frame { payload: payload.clone(), ..Frame::from_client(&plan, UDP, 0) };
        let header = if plan.client.is_ipv4() { 20 } else { 48 };
        let pieces = cut(&ours, header + 104);
        let overlapping = cut(&ours, header + 160);
        let other = Frame { to: std::net::SocketAddr::new(plan.service.ip(), 9), ..ours.clone() };
        let other = Frame { from: std::net::SocketAddr::new(plan.server.ip(), 40000), ..other };
        let foreign = cut(&other, header + 104);
        let syn = Frame { payload: payload.clone(), ..Frame::from_client(&plan, TCP, SYN) };
        let crumbs = cut(&syn, header + 8);
        expect(
            &mut director,
            vec![
                ("early", pieces[1].clone(), Verdict::Await),
                ("the first", pieces[0].clone(), TO_SERVERS),
                ("the first again", pieces[0].clone(), Verdict::Drop(Reason::FragmentOverlap)),
                ("an overlap", overlapping[0].clone(), Verdict::Drop(Reason::FragmentOverlap)),
                ("early, whose first did overlap", pieces[1].clone(), Verdict::Drop(Reason::Fragment)),
                ("of no service, early", foreign[2].clone(), Verdict::Await),
                ("of no service, the first", foreign[0].clone(), Verdict::ToKernel),
                ("of no service, later", foreign[1].clone(), Verdict::ToKernel),
                ("of no service, again", foreign[2].clone(), Verdict::ToKernel),
                ("a TCP header in crumbs", crumbs[0].clone(), Verdict::Drop(Reason::Truncated)),
                ("its second crumb", crumbs[1].clone(), Verdict::Drop(Reason::Malformed)),
            ],
        );
        let config = DestinationConfig { weight: 0, ..destination(plan.server, Method::Nat, &plan) };
        service.edit(&config).unwrap();
        let alone = Frame { from: std::net::SocketAddr::new(plan.client.ip(), 5), ..ours };
        let alone = cut(&alone, header + 160);
        director.wait(60);
        let (verdict, report) = director.run(CLIENTS, &alone[0]);
        assert_eq!(verdict, Verdict::Transmit(CLIENTS), "the sender is told once");
        assert!(report.len() < 1400);
        expect(
            &mut director,
            vec![("whose first was refused", alone[1].clone(), Verdict::Drop(Reason::Fragment))],
        );
    }
}

#[test]
fn a_datagram_counts_as_one_packet() {
    for plan in plans() {
        let (mut director, _) = Director::with_server(&plan, Method::Nat);
        let frame = Frame { payload: vec![7; 300], ..Frame::from_client(&plan, UDP, 0) };
        let mut pieces = cut(&frame, 160);
        pieces.rotate_left(1);
        let first = pieces.pop().unwrap();
        for piece in std::iter::once(&first).chain(&pieces) {
            assert_eq!(director.run(CLIENTS, piece).0, TO_SERVERS);
        }
        // IPv6 counts the fragment header of the first.
        let length = frame.bytes().len() as u64 - 14 + if plan.client.is_ipv4() { 0 } else { 8 };
        let expected = Traffic { connections: 1, in_packets: 1, in_bytes: length, ..Traffic::default() };
        assert_eq!(director.counters.total(), expected);
    }
}

/// The identification of a fragment.
fn id(fragment: &[u8]) -> Vec<u8> {
    if fragment[12..14] == [8, 0] { fragment[18..20].to_vec() } else { fragment[58..62].to_vec() }
}

/// Many clients share a local address, and may choose the same identification.
#[test]
fn by_full_nat_datagrams_get_identifications_of_their_own() {
    for plan in plans() {
        let mut director = Director::new();
        let [_, service] = director.serve(plan.service);
        let address = if plan.client.is_ipv4() { "172.16.0.77" } else { "fd00:2::77" };
        let local = director.destinations.locals().enter(address.parse().unwrap());
        service.set_locals(LocalPool::new(vec![(local.clone(), Ports::new([7000..=7001]))]));
        service.add(&destination(plan.server, Method::FullNat, &plan)).unwrap();
        let mut ids = vec![];
        for (client, port) in [(1, 7000), (2, 7001)] {
            let from = std::net::SocketAddr::new(plan.client.ip(), client);
            let local = std::net::SocketAddr::new(local.address(), port);
            let there = Frame { payload: vec![7; 300], from, ..Frame::from_client(&plan, UDP, 0) };
            let back = Frame { payload: vec![8; 300], to: local, ..Frame::from_server(&plan, UDP, 0) };
            let seen = Frame { from: local, ..there.clone().masqueraded(plan.server) };
            let answer = Frame { to: from, ..back.clone().unmasqueraded(plan.service) };
            for (on, frame, expected, verdict) in
                [(CLIENTS, there, seen, TO_SERVERS), (SERVERS, back, answer, TO_CLIENTS)]
            {
                let pieces = cut(&frame, 160);
                let out: Vec<_> = pieces.iter().map(|piece| director.run(on, piece)).collect();
                assert!(out.iter().all(|(given, _)| *given == verdict), "{:?}", out[0].0);
                let out: Vec<Vec<u8>> = out.into_iter().map(|(_, bytes)| bytes).collect();
                assert_eq!(reassembled(&out), transport(&expected));
                assert!(out.iter().all(|fragment| shared(fragment) == shared(&expected.bytes())));
                assert!(out.iter().all(|fragment| id(fragment) == id(&out[0])), "one datagram, one id");
                if on == CLIENTS {
                    ids.push(id(&out[0]));
                } else {
                    assert_eq!(id(&out[0]), id(&pieces[0]), "a server's are told apart by its address");
                }
            }
        }
        assert_ne!(ids[0], ids[1]);
    }
}

#[test]
fn a_long_fragment_is_fragmented_again() {
    let plan = &plans()[0];
    let (mut director, _) = Director::with_server(plan, Method::Nat);
    let frame = Frame { payload: vec![7; 2500], ..Frame::from_client(plan, UDP, 0) };
    let pieces = cut(&frame, 1500);
    let mut ports = director.snapshot.ports.to_vec();
    ports[usize::from(SERVERS.0)].mtu = 1000;
    director.snapshot.ports = ports.into();
    let verdicts: Vec<Verdict> = pieces.iter().map(|piece| director.run(CLIENTS, piece).0).collect();
    assert_eq!(verdicts, [Verdict::Fragment(SERVERS, 1000), Verdict::Fragment(SERVERS, 1000)]);
    assert_eq!(director.counters.events(Event::Fragmented), 2);
}

fn is_fragment(frame: &[u8]) -> bool {
    match frame[12..14] {
        [8, 0] => frame[20] & 0x3f != 0 || frame[21] != 0,
        [0x86, 0xdd] => frame[20] == 44,
        _ => false,
    }
}

/// A packet from its IP header on, without what the kernel chose anew: the identification over IPv6.
fn packet(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame[14..].to_vec();
    if frame[12] == 0x86 {
        packet[44..48].fill(0);
    }
    packet
}

fn sender(frame: &[u8]) -> std::net::IpAddr {
    if frame[12] == 8 {
        <[u8; 4]>::try_from(&frame[26..30]).unwrap().into()
    } else {
        <[u8; 16]>::try_from(&frame[22..38]).unwrap().into()
    }
}

/// A director where the kernel's was: the client on device 0, a real server on either of two others.
fn golden_director(method: Method) -> Director {
    let mut director = Director::new();
    director.snapshot.ports = std::array::from_fn::<_, 3, _>(|_| director.snapshot.ports[0].clone()).into();
    let routes = [
        ("10.1.0.0", 24, 0),
        ("10.2.1.0", 24, 1),
        ("10.2.2.0", 24, 2),
        ("fd01::", 64, 0),
        ("fd02:1::", 64, 1),
    ];
    let mut built = Routes::build(routes.map(|(network, length, port)| Route {
        network: network.parse().unwrap(),
        length,
        target: Target::OnLink(PortId(port)),
    }));
    for (port, address) in
        [(0, "10.1.0.2"), (1, "10.2.1.11"), (2, "10.2.2.12"), (0, "fd01::2"), (1, "fd02:1::11")]
    {
        let neighbour = Neighbour { port: PortId(port), address: address.parse().unwrap() };
        built = built.with_neighbour(&director.snapshot.hops, neighbour, [9; 6]).unwrap();
    }
    director.snapshot.routes = Arc::new(built);
    for (service, servers) in [
        ("10.0.0.1:54", &["10.2.1.11:54", "10.2.2.12:54"][..]),
        ("10.0.0.1:53", &["10.2.1.11:53"][..]),
        ("[fd00::1]:53", &["[fd02:1::11]:53"][..]),
    ] {
        let [_, udp] = director.serve(service.parse().unwrap());
        for server in servers {
            udp.add(&DestinationConfig::new(server.parse().unwrap(), method)).unwrap();
        }
    }
    director
}

/// What a kernel's IPVS made of fragments, we make of them: the same packets, cut in the same places.
#[test]
fn as_the_kernel_did() {
    for (scenario, method) in [("nat-frag", Method::Nat), ("dr-frag", Method::Direct)] {
        let wires = ["c-c0", "d-dr1", "d-dr2"].map(|wire| capture(&format!("{scenario}.{wire}")));
        let mut director = golden_director(method);
        let ours = |frame: &[u8]| ["10.1.0.2", "fd01::2"].contains(&&*sender(frame).to_string());
        let server = |frame: &[u8]| {
            let sender = sender(frame).to_string();
            sender.starts_with("10.2.") || sender.starts_with("fd02:")
        };
        let (mut received, mut expected) = (vec![], vec![]);
        for (port, wire) in (0_u16..).zip(&wires) {
            for (time, frame) in wire.iter().filter(|(_, frame)| is_fragment(frame)) {
                match (port, ours(frame), server(frame)) {
                    (0, true, _) => received.push((*time, port, frame.clone())),
                    (1 | 2, _, true) => received.push((*time, port, frame.clone())),
                    _ => expected.push(packet(frame)),
                }
            }
        }
        received.sort();
        let (mut sent, mut waiting) = (vec![], vec![]);
        for (_, port, mut frame) in received {
            frame[..6].copy_from_slice(&PORT_MACS[0]);
            waiting.push((PortId(port), frame));
            // After each arrival all are tried that wait, as the worker does.
            let mut progress = true;
            while std::mem::take(&mut progress) {
                waiting.retain(|(port, frame)| match director.run(*port, frame) {
                    (Verdict::Await, _) => true,
                    (Verdict::Transmit(_), out) => {
                        sent.push(packet(&out));
                        progress = true;
                        false
                    }
                    other => panic!("{scenario}: {other:?}"),
                });
            }
        }
        assert!(waiting.is_empty(), "{scenario}");
        assert!(!expected.is_empty(), "{scenario}");
        sent.sort();
        expected.sort();
        assert_eq!(sent, expected, "{scenario}");
    }
}

/// A packet without DF that is longer than the way to its real server takes.
#[test]
fn a_long_packet_is_fragmented_as_by_the_kernel() {
    const MTU: u16 = 1300;
    let mut director = golden_director(Method::Nat);
    let mut ports = director.snapshot.ports.to_vec();
    ports[1].mtu = MTU.into();
    director.snapshot.ports = ports.into();
    let (_, mut frame) = capture("nat-mtu.c-c0").swap_remove(2);
    frame[..6].copy_from_slice(&PORT_MACS[0]);
    let (verdict, out) = director.run(PortId(0), &frame);
    assert_eq!(verdict, Verdict::Fragment(PortId(1), MTU));
    let expected = capture("nat-mtu.d-dr1").into_iter().filter(|(_, frame)| is_fragment(frame));
    let expected: Vec<Vec<u8>> = expected.map(|(_, frame)| packet(&frame)).collect();
    let sent: Vec<Vec<u8>> = fragmented(&out, MTU.into()).iter().map(|frame| packet(frame)).collect();
    assert_eq!((sent.len(), sent), (2, expected));
}

/// By full NAT to a real server of the other IP version: what leaves makes up the datagram, whose checksum is right.
#[test]
fn datagrams_become_those_of_the_other_version() {
    let [four, six] = plans();
    for (plan, local) in [
        (Plan { server: six.server, ..four }, DIRECTOR6[1]),
        (Plan { server: four.server, ..six }, DIRECTOR4[1]),
    ] {
        let mut director = Director::new();
        let address = director.destinations.locals().enter(local.parse().unwrap());
        for service in director.serve(plan.service) {
            service.set_locals(LocalPool::new(vec![(address.clone(), Ports::default())]));
            service.add(&DestinationConfig::new(plan.server, Method::FullNat)).unwrap();
        }
        for (length, first) in [(1470, 1500), (3000, 1500), (3000, 576), (8000, 1500)] {
            let payload: Vec<u8> = (0..length).map(|at: usize| at.to_le_bytes()[0]).collect();
            let frame = Frame { payload: payload.clone(), ..Frame::from_client(&plan, UDP, 0) };
            let mut out = vec![];
            for piece in cut(&frame, first) {
                let (verdict, bytes) = director.run(CLIENTS, &piece);
                match verdict {
                    TO_SERVERS => out.push(bytes),
                    Verdict::Fragment(SERVERS, 1280) => out.extend(fragmented(&bytes, 1280)),
                    other => panic!("{length} bytes in pieces of {first}: {other:?}"),
                }
            }
            assert!(out.iter().all(|piece| piece.len() <= 14 + 1500));
            let ids: std::collections::BTreeSet<_> = out
                .iter()
                .map(
                    |piece| {
                        if plan.server.is_ipv4() { piece[18..20].to_vec() } else { piece[58..62].to_vec() }
                    },
                )
                .collect();
            assert_eq!(ids.len(), 1, "one identification");
            let datagram = reassembled(&out);
            let header = etherparse::UdpHeaderSlice::from_slice(&datagram).unwrap().to_header();
            assert_eq!(datagram[8..], payload);
            let sum = if plan.server.is_ipv4() {
                let ip = Ipv4HeaderSlice::from_slice(&out[0][14..]).unwrap();
                header.calc_checksum_ipv4_raw(ip.source(), ip.destination(), &datagram[8..])
            } else {
                let ip = etherparse::Ipv6HeaderSlice::from_slice(&out[0][14..]).unwrap();
                header.calc_checksum_ipv6_raw(ip.source(), ip.destination(), &datagram[8..])
            };
            assert_eq!(header.checksum, sum.unwrap(), "{length} bytes in pieces of {first}");
        }
    }
}
