//! Real servers of full NAT learn their clients' addresses by the PROXY protocol.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::full_nat::*;
use director::tcp::{Network, Peer};
use director::*;
use proptest::prelude::*;
use std::net::{IpAddr, SocketAddr};
use uvs_engine::counters::Event;
use uvs_engine::packet::proxy::Version;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::{Ports, Terms};
use uvs_engine::{Reason, Verdict};

fn telling(plan: &Plan, version: Version) -> Lab {
    let lab = Lab::new(plan, &Ports::default());
    let terms = Terms { tell: Tell::Header(version), ..Terms::default() };
    lab.services.iter().for_each(|service| service.set_terms(terms));
    lab
}

/// Takes a header off a stream or a datagram: who it says talks to whom, and what is behind it.
fn parse(bytes: &[u8]) -> (SocketAddr, SocketAddr, &[u8]) {
    if let Some(rest) = bytes.strip_prefix(b"\r\n\r\n\0\r\nQUIT\n") {
        assert_eq!(rest[0], 0x21);
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        let (block, rest) = (&rest[4..4 + length], &rest[4 + length..]);
        let port = |at: usize| u16::from_be_bytes([block[at], block[at + 1]]);
        let family = bytes[13] >> 4;
        let (from, to, at) = if family == 1 {
            let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&block[at..at + 4]).unwrap());
            (ip(0), ip(4), 8)
        } else {
            let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&block[at..at + 16]).unwrap());
            (ip(0), ip(16), 32)
        };
        return (SocketAddr::new(from, port(at)), SocketAddr::new(to, port(at + 2)), rest);
    }
    let end = bytes.windows(2).position(|pair| pair == b"\r\n").unwrap();
    let line = std::str::from_utf8(&bytes[..end]).unwrap();
    let words: Vec<&str> = line.split(' ').collect();
    let [proxy, family, from, to, from_port, to_port] = words[..] else { panic!("{line}") };
    let address = |ip: &str, port: &str| SocketAddr::new(ip.parse().unwrap(), port.parse().unwrap());
    let (from, to) = (address(from, from_port), address(to, to_port));
    assert_eq!((proxy, family), ("PROXY", if from.is_ipv4() { "TCP4" } else { "TCP6" }));
    (from, to, &bytes[end + 2..])
}

#[test]
fn the_header_comes_before_the_first_byte_and_only_there() {
    for (plan, version) in cases() {
        let mut lab = telling(&plan, version);
        let client = lab.client(1);
        let syn = lab.syn(1, 0xffff_fffe);
        let reply = |flags, sequence, acknowledgement: u32| {
            Segment::new(plan.server, syn.from, flags, sequence, acknowledgement)
        };
        let first = syn.sequence.wrapping_add(1);
        assert_eq!(lab.at_client(&reply(SYN | ACK, 5000, first), client).acknowledgement, 0xffff_ffff);
        let segment = |flags, sequence, payload: &[u8]| {
            let mut segment = Segment::new(client, plan.service, flags, sequence, 5001);
            segment.payload = payload.to_vec();
            segment
        };
        // The handshake's end, and the first data, as often as they come.
        let mut length = 0;
        for payload in [&b""[..], b"hello", b"hello", b""] {
            let seen = lab.at_server(&segment(ACK, 0xffff_ffff, payload));
            assert_eq!(seen.sequence, first);
            assert_eq!(parse(&seen.payload), (client, plan.service, payload));
            length = u32::try_from(seen.payload.len() - payload.len()).unwrap();
        }
        assert_eq!(lab.director.counters.events(Event::ClientTold), 4);
        // What comes behind it is numbered on.
        let behind = lab.at_server(&segment(ACK, 4, b"world"));
        assert_eq!((behind.sequence, &behind.payload[..]), (first.wrapping_add(length + 5), &b"world"[..]));
        // What the real server acknowledges of the header is nothing to the client.
        for (acknowledged, expected) in [(0, 0xffff_ffff), (1, 0xffff_ffff), (length - 1, 0xffff_ffff)] {
            let got = lab.at_client(&reply(ACK, 5001, first.wrapping_add(acknowledged)), client);
            assert_eq!(got.acknowledgement, expected);
        }
        let got = lab.at_client(&reply(ACK, 5001, first.wrapping_add(length + 5)), client);
        assert_eq!(got.acknowledgement, 4);
        // Now it is there for good: late segments do not have it again, and all are numbered on.
        for (sequence, payload) in [(0xffff_ffff, &b"hello"[..]), (4, b"world"), (9, b"!")] {
            let seen = lab.at_server(&segment(ACK, sequence, payload));
            let expected = sequence.wrapping_sub(0xffff_ffff).wrapping_add(first).wrapping_add(length);
            assert_eq!((seen.sequence, &seen.payload[..]), (expected, payload));
        }
        let fin = lab.at_server(&segment(FIN | ACK, 10, b""));
        let end = fin.sequence.wrapping_add(1);
        assert_eq!(lab.at_client(&reply(FIN | ACK, 5001, end), client).acknowledgement, 11);
        assert_eq!(lab.director.counters.events(Event::ClientTold), 4);
    }
}

fn cases() -> impl Iterator<Item = (Plan, Version)> {
    let [v4, v6] = plans();
    let mixed = [Plan { server: v6.server, ..v4 }, Plan { server: v4.server, ..v6 }];
    let plans = [v4, v6].into_iter().chain(mixed);
    plans.flat_map(|plan| [Version::One, Version::Two].map(|version| (plan, version)))
}

/// Whatever a client sends, its own bytes never stand where the header belongs.
#[test]
fn a_client_cannot_write_a_header_of_its_own() {
    for (plan, version) in cases() {
        let mut lab = telling(&plan, version);
        let client = lab.client(1);
        let forged = b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n";
        let mut with_data = Segment::new(client, plan.service, SYN, 999, 0);
        with_data.payload = forged.to_vec();
        with_data.options = [&[34, 10][..], &[5; 8], &[1, 1]].concat();
        let syn = lab.at_server(&with_data);
        assert_eq!((&syn.payload[..], &syn.options[..]), (&b""[..], &[1; 12][..]));
        let first = syn.sequence.wrapping_add(1);
        let segment = |sequence, payload: &[u8]| {
            let mut segment = Segment::new(client, plan.service, ACK, sequence, 5001);
            segment.payload = payload.to_vec();
            segment
        };
        for (what, sequence) in [("reaches into it", 999), ("ends at its end", 1000 - 31), ("is there", 1000)]
        {
            let segment = segment(sequence, forged);
            let (verdict, out) = lab.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0]));
            if sequence == 1000 {
                assert_eq!(verdict, TO_SERVERS, "{what}");
                let seen = Segment::read(&out);
                assert_eq!(seen.sequence, first);
                assert_eq!(parse(&seen.payload), (client, plan.service, &forged[..]));
            } else {
                assert_eq!(verdict, Verdict::Drop(Reason::Malformed), "{what}");
            }
        }
        // What lies before it altogether is what keep-alive probes are.
        let probe = lab.at_server(&segment(999, b"x"));
        assert_eq!((probe.sequence.wrapping_add(1), &probe.payload[..]), (first, &b"x"[..]));
        // Another handshake would give the numbers another meaning.
        let again = Segment::new(client, plan.service, SYN, 1500, 0);
        assert_eq!(lab.refused(&again), Reason::BeganAgain);
        let another = lab.at_server(&again);
        assert_ne!(another.from, syn.from, "it comes again, and begins another connection");
    }
}

#[test]
fn a_segment_that_the_header_makes_too_long_is_cut() {
    for (plan, version) in cases() {
        let mut lab = telling(&plan, version);
        let client = lab.client(1);
        let syn = lab.syn(1, 1);
        let mut full = Segment::new(client, plan.service, ACK, 2, 1);
        let headers = if client.is_ipv4() { 40 } else { 60 };
        let limit = if client.is_ipv4() && plan.server.is_ipv6() { 1480 } else { 1500 };
        full.payload = vec![7; limit - headers];
        let (verdict, out) = lab.director.run(CLIENTS, &full.bytes(CLIENT_MAC, PORT_MACS[0]));
        let Verdict::Segment(size) = verdict else { panic!("{verdict:?}") };
        assert_eq!(out, full.bytes(CLIENT_MAC, PORT_MACS[0]), "unchanged");
        full.payload.truncate(usize::from(size) - headers);
        let seen = lab.at_server(&full);
        let (_, _, rest) = parse(&seen.payload);
        assert_eq!(rest, full.payload);
        let version_of_server = if plan.server.is_ipv4() { 40 } else { 60 };
        assert!(seen.payload.len() + version_of_server <= 1500);
        // Once it is acknowledged there is no need.
        let end = seen.sequence.wrapping_add(u32::try_from(seen.payload.len()).unwrap());
        lab.at_client(&Segment::new(plan.server, syn.from, ACK, 1, end), client);
        full.payload = vec![7; limit - headers];
        full.sequence = 3000;
        lab.at_server(&full);
    }
}

#[test]
fn the_first_datagram_has_the_header() {
    for (plan, version) in cases().filter(|(_, version)| *version == Version::Two) {
        for unfinished in [false, true] {
            let mut lab = telling(&plan, version);
            let frame = Frame::from_client(&plan, UDP, 0);
            let bytes = if unfinished { frame.unfinished() } else { frame.bytes() };
            let (verdict, out) = lab.director.run(CLIENTS, &bytes);
            assert_eq!(verdict, TO_SERVERS);
            let payload = payload_of(&out);
            assert_eq!((payload.len() - frame.payload.len()) % 8, 0);
            assert_eq!(parse(&payload), (plan.client, plan.service, &frame.payload[..]));
            let (verdict, out) = lab.director.run(CLIENTS, &bytes);
            assert_eq!((verdict, payload_of(&out)), (TO_SERVERS, frame.payload.clone()));
            assert_eq!(lab.director.counters.events(Event::ClientTold), 1);
        }
    }
}

/// A UDP datagram's payload; its checksums must be right.
fn payload_of(frame: &[u8]) -> Vec<u8> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::TransportSlice::Udp(udp)) = packet.transport else { panic!("{packet:?}") };
    let header = udp.to_header();
    let sum = match packet.net.unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let ip = ip.header().to_header();
            assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            header.calc_checksum_ipv4_raw(ip.source, ip.destination, udp.payload()).unwrap()
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let ip = ip.header().to_header();
            header.calc_checksum_ipv6_raw(ip.source, ip.destination, udp.payload()).unwrap()
        }
        other => panic!("{other:?}"),
    };
    assert_eq!(header.checksum, sum);
    udp.payload().to_vec()
}

#[test]
fn a_first_datagram_that_gets_too_long_is_fragmented() {
    let [v4, v6] = plans();
    for (plan, payload) in [(v4, 1472), (v6, 1452)] {
        let mut lab = telling(&plan, Version::Two);
        let frame = Frame { payload: vec![5; payload], ..Frame::from_client(&plan, UDP, 0) };
        let (verdict, out) = lab.director.run(CLIENTS, &frame.bytes());
        assert_eq!(verdict, Verdict::Fragment(SERVERS, 1500));
        let pieces: Vec<_> = uvs_engine::packet::split::fragments(&[&out], 1500, 7)
            .unwrap()
            .map(|piece| piece.payload)
            .collect();
        assert_eq!(pieces.len(), 2);
        assert_eq!(lab.director.run(CLIENTS, &frame.bytes()).0, TO_SERVERS);
    }
}

/// A datagram that cannot have the header is not the first: what comes after it does not stand in the header's place.
#[test]
fn a_datagram_without_room_for_the_header_is_not_the_first() {
    let [_, plan] = plans();
    let mut lab = telling(&plan, Version::Two);
    let long = Frame { payload: vec![5; 1400], ..Frame::from_client(&plan, UDP, 0) };
    // It had to be sent in fragments, each with this header.
    let long = edit::with_extensions(long.bytes(), &[(60, &[1, 4, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0, 0])]);
    assert_eq!(lab.director.run(CLIENTS, &long).0, Verdict::Drop(Reason::NoRoom));
    let next = Frame::from_client(&plan, UDP, 0);
    let (verdict, out) = lab.director.run(CLIENTS, &next.bytes());
    assert_eq!(verdict, TO_SERVERS);
    assert_eq!(parse(&payload_of(&out)), (plan.client, plan.service, &next.payload[..]));
}

/// A first datagram that comes in fragments leaves in fragments, the later ones behind the header, in whichever order.
#[test]
fn fragments_of_the_first_datagram_move_behind_the_header() {
    let [plan, _] = plans();
    for order in [[0, 1, 2], [0, 2, 1]] {
        let mut lab = telling(&plan, Version::Two);
        let whole = Frame { payload: (0..120).collect(), ..Frame::from_client(&plan, UDP, 0) }.bytes();
        let pieces: Vec<Vec<u8>> =
            [(0, 48), (48, 96), (96, 128)].map(|(from, to)| edit::piece(&whole, from, to)).to_vec();
        let mut datagram = vec![0; 160];
        for index in order {
            let (verdict, out) = lab.director.run(CLIENTS, &pieces[index]);
            assert_eq!(verdict, TO_SERVERS);
            let ip = etherparse::Ipv4HeaderSlice::from_slice(&out[14..]).unwrap();
            assert_eq!(ip.to_header().calc_header_checksum(), ip.header_checksum());
            assert_eq!(ip.more_fragments(), index != 2);
            let offset = usize::from(ip.fragments_offset().value()) * 8;
            let payload = &out[34..14 + usize::from(ip.total_len())];
            datagram[offset..offset + payload.len()].copy_from_slice(payload);
        }
        // Put together they are one datagram with the right checksum.
        let (_, out) = {
            let mut frame = whole[..34].to_vec();
            frame.extend(&datagram);
            frame[16..18].copy_from_slice(&180_u16.to_be_bytes());
            let (local, server) = (local_of(&plan), plan.server.ip());
            let (IpAddr::V4(local), IpAddr::V4(server)) = (local, server) else { panic!("IPv4") };
            frame[26..30].copy_from_slice(&local.octets());
            frame[30..34].copy_from_slice(&server.octets());
            uvs_engine::packet::ipv4::finish(&mut frame, 14).unwrap();
            (0, frame)
        };
        let payload = payload_of(&out);
        let (from, to, rest) = parse(&payload);
        assert_eq!((from, to), (plan.client, plan.service));
        assert_eq!(rest, (0..120).collect::<Vec<u8>>());
    }
}

/// Not even in segments that no real server should take, whatever it does with them.
#[test]
fn a_segment_without_acknowledgement_brings_nothing() {
    for (plan, version) in cases() {
        let mut lab = telling(&plan, version);
        let syn = lab.syn(1, 999);
        for flags in [0, FIN, RST, RST | ACK] {
            let mut segment = Segment::new(lab.client(1), plan.service, flags, 1000, 1);
            assert_eq!(lab.at_server(&segment).sequence, syn.sequence.wrapping_add(1));
            segment.payload = b"PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n".to_vec();
            assert_eq!(lab.refused(&segment), Reason::Malformed);
        }
    }
}

/// Nor do they in fragments, of which only the first shows where it belongs.
#[test]
fn a_client_cannot_write_a_header_in_fragments() {
    let [plan, _] = plans();
    for (flags, sequence) in [(SYN, 999), (ACK, 1000), (ACK, 990)] {
        let mut lab = telling(&plan, Version::Two);
        if flags == ACK {
            lab.at_server(&Segment::new(lab.client(1), plan.service, SYN, 999, 0));
        }
        let mut segment = Segment::new(lab.client(1), plan.service, flags, sequence, 1);
        segment.payload = b"....PROXY TCP4 6.6.6.6 7.7.7.7 1 2\r\n".to_vec();
        let whole = segment.bytes(CLIENT_MAC, PORT_MACS[0]);
        let first = lab.director.run(CLIENTS, &edit::piece(&whole, 0, 24)).0;
        assert_eq!(first, Verdict::Drop(Reason::NoRoom), "{flags} {sequence}");
        let rest = lab.director.run(CLIENTS, &edit::piece(&whole, 24, 60)).0;
        assert_eq!(rest, Verdict::Drop(Reason::Fragment), "{flags} {sequence}");
    }
}

/// A port whose connection began with a header is used again as any other: behind the end of what the real server got.
#[test]
fn ports_are_used_again_behind_the_header() {
    for (plan, version) in cases() {
        let mut lab = Lab::new(&plan, &Ports::new([6000..=6000]));
        let terms = Terms { tell: Tell::Header(version), ..Terms::default() };
        lab.services[0].set_terms(terms);
        for round in 0..10_u16 {
            let (client, first) = (lab.client(round), 77 * u32::from(round));
            let syn = lab.syn(round, first);
            let said = |flags, sequence, acknowledgement| {
                Segment::new(client, plan.service, flags, sequence, acknowledgement)
            };
            let answer = |flags, sequence, acknowledgement| {
                Segment::new(plan.server, syn.from, flags, sequence, acknowledgement)
            };
            lab.at_client(&answer(SYN | ACK, 5000, syn.sequence.wrapping_add(1)), client);
            let seen = lab.at_server(&said(ACK, first + 1, 5001));
            let end = seen.sequence.wrapping_add(u32::try_from(seen.payload.len()).unwrap());
            lab.at_client(&answer(FIN | ACK, 5001, end), client);
            let fin = lab.at_server(&said(FIN | ACK, first + 1, 5002));
            assert_eq!((fin.sequence, &fin.payload[..]), (end, &b""[..]));
            lab.at_client(&answer(ACK, 5002, end.wrapping_add(1)), client);
            let again = lab.syn(round + 100, 1_000_000);
            let distance = again.sequence.wrapping_sub(end);
            assert!(distance > 0 && distance < 0x8000_0000, "{} is not after {end}", again.sequence);
            let refused = again.sequence.wrapping_add(1);
            let reset = Segment::new(plan.server, again.from, RST | ACK, 0, refused);
            assert_eq!(lab.at_client(&reset, lab.client(round + 100)).acknowledgement, 1_000_001);
            lab.director.now = lab.director.now.plus_seconds(1);
        }
        assert_eq!(lab.director.counters.events(Event::LocalPortReused), 19);
    }
}

/// The header goes into a packet of the size that a router asks for.
#[test]
fn clients_hear_of_paths_less_the_room_for_the_header() {
    for (plan, version) in cases() {
        let mut lab = telling(&plan, version);
        let client = lab.client(1);
        let syn = lab.syn(1, 1);
        let seen = lab.at_server(&Segment::new(client, plan.service, ACK, 2, 1));
        let length = u32::try_from(seen.payload.len()).unwrap();
        let between = match (plan.client.is_ipv4(), plan.server.is_ipv4()) {
            (true, false) => 1380,
            (false, true) => 1420,
            _ => 1400,
        };
        assert_eq!(mtu_told(&mut lab, &syn), between - length);
        let end = seen.sequence.wrapping_add(length);
        lab.at_client(&Segment::new(plan.server, syn.from, ACK, 1, end), client);
        assert_eq!(mtu_told(&mut lab, &syn), between);
    }
}

/// A conversation over networks that lose, repeat and reorder.
#[derive(Clone, Debug)]
struct Conversation {
    case: usize,
    initial: (u32, u32),
    from_client: Vec<u8>,
    from_server: Vec<u8>,
    chance: Vec<u8>,
}

fn conversation() -> impl Strategy<Value = Conversation> {
    let data = || prop::collection::vec(any::<u8>(), 0..600);
    let initial = (any::<u32>(), prop_oneof![any::<u32>(), Just(u32::MAX), Just(u32::MAX - 20)]);
    (0..12_usize, initial, data(), data(), prop::collection::vec(any::<u8>(), 0..400)).prop_map(
        |(case, initial, from_client, from_server, chance)| Conversation {
            case,
            initial,
            from_client,
            from_server,
            chance,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// The real server gets the header and what the client said, the client what the real server said, each byte once and in
    /// order, whoever speaks first and ends first; neither hears of what it never sent.
    #[test]
    fn both_sides_hear_what_was_said(it in conversation()) {
        let (plan, version) = cases().nth(it.case % 8).unwrap();
        let mut lab = telling(&plan, version);
        // And nothing but that, where it is told by an option.
        let by_option = it.case >= 8;
        if by_option {
            let terms = Terms { tell: Tell::Option(AddressOption::default()), ..Terms::default() };
            lab.services.iter().for_each(|service| service.set_terms(terms));
        }
        let client = Peer::client(lab.client(1), plan.service, it.initial.1, it.from_client.clone());
        let server = Peer::server(plan.server, it.initial.0, it.from_server.clone());
        let mut network = Network::new(client, server);
        let mut chance = it.chance.iter().copied();
        while let Some(choice) = chance.next() {
            network.step(&mut lab, choice, &mut chance);
        }
        network.finish(&mut lab);
        let heard = network.server.heard();
        let rest = if by_option {
            &heard[..]
        } else {
            let (from, to, rest) = parse(&heard);
            prop_assert_eq!((from, to), (lab.client(1), plan.service));
            rest
        };
        prop_assert_eq!(rest, &it.from_client[..]);
        prop_assert_eq!(network.client.heard(), it.from_server);
    }
}
