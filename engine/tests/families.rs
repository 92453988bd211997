//! Full NAT between IP versions: every packet and every error that leaves is taken apart, and its checksums recomputed, by an
//! independent crate.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use etherparse::{
    Icmpv4Header, Icmpv4Type, Icmpv6Header, Icmpv6Type, IpNumber, Ipv4Header, Ipv4HeaderSlice, Ipv6Header,
    Ipv6HeaderSlice, NetSlice, SlicedPacket, TransportSlice,
};
use std::net::{IpAddr, SocketAddr};
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::service::{DestinationConfig, LocalPool, Ports};
use uvs_engine::{Reason, Verdict};

const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);
const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);

/// A client and a service of one IP version, a real server of the other.
fn mixed() -> [Plan; 2] {
    let [four, six] = plans();
    let with_server_of =
        |plan: Plan, other: Plan| Plan { server: other.server, second: other.second, ..plan };
    [with_server_of(four, six), with_server_of(six, four)]
}

fn local(plan: &Plan) -> IpAddr {
    if plan.server.is_ipv4() { DIRECTOR4[1] } else { DIRECTOR6[1] }.parse().unwrap()
}

fn director(plan: &Plan) -> Director {
    let mut director = Director::new();
    let address = director.destinations.locals().enter(local(plan));
    for service in director.serve(plan.service) {
        service.set_locals(LocalPool::new(vec![(address.clone(), Ports::default())]));
        service.add(&DestinationConfig::new(plan.server, Method::FullNat)).unwrap();
    }
    director
}

/// What of a packet must come through.
#[derive(Debug, PartialEq)]
struct Seen {
    from: SocketAddr,
    to: SocketAddr,
    ttl: u8,
    class: u8,
    payload: Vec<u8>,
    /// TCP's sequence and acknowledgement numbers.
    numbers: (u32, u32),
}

/// Reads a frame; everything that can be checked of it is.
fn read(bytes: &[u8]) -> Seen {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let (from, to, ttl, class) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(usize::from(header.total_len), bytes.len() - 14);
            assert_eq!(header.dont_fragment, header.total_len > 1260, "{header:?}");
            let class = header.dscp.value() << 2 | header.ecn.value();
            (IpAddr::from(header.source), IpAddr::from(header.destination), header.time_to_live, class)
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(usize::from(header.payload_length), bytes.len() - 54);
            (header.source.into(), header.destination.into(), header.hop_limit, header.traffic_class)
        }
        other => panic!("{other:?}"),
    };
    let (ports, payload, numbers) = match packet.transport.unwrap() {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let sum = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), tcp.payload())
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), tcp.payload())
                }
                _ => panic!("one IP version"),
            };
            assert_eq!(header.checksum, sum.unwrap());
            let numbers = (header.sequence_number, header.acknowledgment_number);
            ((header.source_port, header.destination_port), tcp.payload().to_vec(), numbers)
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            let sum = match (from, to) {
                (IpAddr::V4(a), IpAddr::V4(b)) => {
                    header.calc_checksum_ipv4_raw(a.octets(), b.octets(), udp.payload())
                }
                (IpAddr::V6(a), IpAddr::V6(b)) => {
                    header.calc_checksum_ipv6_raw(a.octets(), b.octets(), udp.payload())
                }
                _ => panic!("one IP version"),
            };
            assert_eq!(header.checksum, sum.unwrap());
            ((header.source_port, header.destination_port), udp.payload().to_vec(), (0, 0))
        }
        other => panic!("{other:?}"),
    };
    Seen {
        from: SocketAddr::new(from, ports.0),
        to: SocketAddr::new(to, ports.1),
        ttl,
        class,
        payload,
        numbers,
    }
}

#[test]
fn packets_go_both_ways() {
    for plan in mixed() {
        for protocol in [TCP, UDP] {
            for length in [0, 11, 700, 1219, 1220, 1239, 1240, 1300, 1411] {
                for unfinished in [false, true] {
                    let mut director = director(&plan);
                    let payload: Vec<u8> = (0..=u8::MAX).cycle().take(length).collect();
                    let request =
                        Frame { payload: payload.clone(), ..Frame::from_client(&plan, protocol, SYN) };
                    let bytes = if unfinished { request.unfinished() } else { request.bytes() };
                    let (verdict, out) = director.run(CLIENTS, &bytes);
                    assert_eq!(verdict, TO_SERVERS, "{protocol} {length}");
                    assert_eq!((&out[..6], &out[6..12]), (&SERVER_MAC[..], &PORT_MACS[1][..]));
                    let seen = read(&out);
                    assert_eq!((seen.from.ip(), seen.to), (local(&plan), plan.server));
                    assert_eq!((seen.ttl, seen.class, &seen.payload), (63, 0, &payload));

                    let reply = Frame {
                        to: seen.from,
                        payload: payload.clone(),
                        ..Frame::from_server(&plan, protocol, ACK)
                    };
                    let bytes = if unfinished { reply.unfinished() } else { reply.bytes() };
                    // In two parts, as a frame longer than a buffer comes.
                    let cut = (14 + 40 + 20 + 100).min(bytes.len());
                    let (verdict, out) = director.run_parts(SERVERS, &[&bytes[..cut], &bytes[cut..]]);
                    assert_eq!(verdict, TO_CLIENTS, "{protocol} {length}");
                    assert_eq!((&out[..6], &out[6..12]), (&CLIENT_MAC[..], &PORT_MACS[0][..]));
                    let back = read(&out);
                    assert_eq!((back.from, back.to), (plan.service, plan.client));
                    assert_eq!((back.ttl, back.class, &back.payload), (63, 0, &payload));
                    if protocol == TCP {
                        // The server's own numbers stay, what it acknowledges is what the client sent.
                        assert_eq!(back.numbers.0, 0x1234_5678);
                        let delta = seen.numbers.0.wrapping_sub(0x1234_5678);
                        assert_eq!(back.numbers.1, 0_u32.wrapping_sub(delta));
                    }
                }
            }
        }
    }
}

#[test]
fn a_tag_stays_behind() {
    for plan in mixed() {
        let mut director = director(&plan);
        let frame = Frame { vlan: Some(7), ..Frame::from_client(&plan, UDP, 0) };
        let (verdict, out) = director.run(CLIENTS, &frame.bytes());
        assert_eq!(verdict, TO_SERVERS);
        assert_eq!(read(&out).payload, frame.payload);
    }
}

/// What etherparse writes of a client's datagram, with an IPv4 header of these options.
fn with_options(frame: &Frame, options: &[u8]) -> Vec<u8> {
    let mut bytes = frame.bytes();
    bytes.splice(34..34, options.iter().copied());
    let total = u16::try_from(bytes.len() - 14).unwrap();
    bytes[14] = 0x45 + u8::try_from(options.len() / 4).unwrap();
    bytes[16..18].copy_from_slice(&total.to_be_bytes());
    let checksum = Ipv4HeaderSlice::from_slice(&bytes[14..]).unwrap().to_header().calc_header_checksum();
    bytes[24..26].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[test]
fn options_and_extensions_are_left_out_unless_they_matter() {
    let [four, six] = mixed();
    let frame = Frame::from_client(&four, UDP, 0);
    for (what, options, expected) in [
        ("nothing", [1, 1, 1, 0], TO_SERVERS),
        ("router alert", [148, 4, 0, 0], TO_SERVERS),
        ("loose source route", [131, 3, 4, 0], Verdict::Drop(Reason::SourceRouted)),
        ("strict source route, later", [1, 137, 3, 4], Verdict::Drop(Reason::SourceRouted)),
    ] {
        let (verdict, out) = director(&four).run(CLIENTS, &with_options(&frame, &options));
        assert_eq!(verdict, expected, "{what}");
        if verdict == TO_SERVERS {
            assert_eq!(read(&out).payload, frame.payload, "{what}");
        }
    }
    let frame = Frame::from_client(&six, UDP, 0);
    for (what, header, expected) in [
        ("hop-by-hop options", 0, TO_SERVERS),
        ("destination options", 60, TO_SERVERS),
        ("a fragment that is all of its packet", 44, TO_SERVERS),
    ] {
        let mut bytes = frame.bytes();
        let next = std::mem::replace(&mut bytes[20], header);
        // An option that is padding of four bytes; a fragment header's zeros.
        let padding = if header == 44 { [0; 4] } else { [1, 4, 0, 0] };
        bytes.splice(54..54, [&[next, 0][..], &padding, &[0, 0]].concat());
        let length = u16::from_be_bytes([bytes[18], bytes[19]]) + 8;
        bytes[18..20].copy_from_slice(&length.to_be_bytes());
        let (verdict, out) = director(&six).run(CLIENTS, &bytes);
        assert_eq!(verdict, expected, "{what}");
        if verdict == TO_SERVERS {
            assert_eq!(read(&out).payload, frame.payload, "{what}");
        }
    }
}

#[test]
fn a_datagram_without_a_checksum_gets_one() {
    for plan in mixed() {
        let frame = Frame::from_client(&plan, UDP, 0);
        let mut bytes = frame.bytes();
        let at = frame.checksum_at();
        bytes[at..at + 2].fill(0);
        let (verdict, out) = director(&plan).run(CLIENTS, &bytes);
        assert_eq!(verdict, TO_SERVERS);
        assert_eq!(read(&out).payload, frame.payload);
    }
}

#[test]
fn a_packet_that_grows_beyond_the_link_is_refused_with_what_is_left() {
    let [four, _] = mixed();
    let mut director = director(&four);
    let long =
        |length: usize| Frame { payload: vec![1; length - 28], ..Frame::from_client(&four, UDP, 0) }.bytes();
    assert_eq!(director.run(CLIENTS, &long(1480)).0, TO_SERVERS);
    let (verdict, out) = director.run(CLIENTS, &long(1481));
    assert_eq!(verdict, TO_CLIENTS);
    assert_eq!(out[34..42], [3, 4, out[36], out[37], 0, 0, 5, 0xc8], "1480 bytes");
    assert_eq!(director.counters.drops(Reason::TooBig), 1);
}

/// An ICMP error of either version.
fn error(from: IpAddr, to: IpAddr, (kind, code): (u8, u8), word: u32, quote: &[u8]) -> Vec<u8> {
    let (type_u8, code_u8, bytes5to8) = (kind, code, word.to_be_bytes());
    let mut bytes = Vec::new();
    let length = u16::try_from(quote.len() + 8).unwrap();
    match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            bytes.extend([0x08, 0]);
            let ip = Ipv4Header::new(length, 60, IpNumber::ICMP, from.octets(), to.octets()).unwrap();
            ip.write(&mut bytes).unwrap();
            let kind = Icmpv4Type::Unknown { type_u8, code_u8, bytes5to8 };
            Icmpv4Header::with_checksum(kind, quote).write(&mut bytes).unwrap();
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            bytes.extend([0x86, 0xdd]);
            let ip = Ipv6Header {
                payload_length: length,
                next_header: IpNumber::IPV6_ICMP,
                hop_limit: 60,
                source: from.octets(),
                destination: to.octets(),
                ..Ipv6Header::default()
            };
            ip.write(&mut bytes).unwrap();
            let kind = Icmpv6Type::Unknown { type_u8, code_u8, bytes5to8 };
            let header = Icmpv6Header::with_checksum(kind, from.octets(), to.octets(), quote).unwrap();
            header.write(&mut bytes).unwrap();
        }
        _ => panic!("one IP version"),
    }
    bytes.extend(quote);
    bytes
}

/// Reads an error: from whom to whom, type and code, the word behind the checksum, and what it quotes.
fn read_error(bytes: &[u8]) -> (IpAddr, IpAddr, (u8, u8), u32, Vec<u8>) {
    let packet = SlicedPacket::from_ethernet(bytes).unwrap();
    let (from, to) = match packet.net.as_ref().unwrap() {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(header.time_to_live, 59);
            (IpAddr::from(header.source), IpAddr::from(header.destination))
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.hop_limit, 59);
            (header.source.into(), header.destination.into())
        }
        other => panic!("{other:?}"),
    };
    match packet.transport.unwrap() {
        TransportSlice::Icmpv4(icmp) => {
            assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
            let word = u32::from_be_bytes(icmp.bytes5to8());
            (from, to, (icmp.type_u8(), icmp.code_u8()), word, icmp.payload().to_vec())
        }
        TransportSlice::Icmpv6(icmp) => {
            let (IpAddr::V6(a), IpAddr::V6(b)) = (from, to) else { panic!("one IP version") };
            assert!(icmp.is_checksum_valid(a.octets(), b.octets()));
            let word = u32::from_be_bytes(icmp.bytes5to8());
            (from, to, (icmp.type_u8(), icmp.code_u8()), word, icmp.payload().to_vec())
        }
        other => panic!("{other:?}"),
    }
}

/// The addresses, payload length, hops and transport bytes of a quoted packet.
fn read_quote(quote: &[u8]) -> (IpAddr, IpAddr, usize, u8, Vec<u8>) {
    if quote[0] >> 4 == 4 {
        let header = Ipv4HeaderSlice::from_slice(quote).unwrap().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        let payload = usize::from(header.total_len) - 20;
        (header.source.into(), header.destination.into(), payload, header.time_to_live, quote[20..].to_vec())
    } else {
        let header = Ipv6HeaderSlice::from_slice(quote).unwrap().to_header();
        let payload = usize::from(header.payload_length);
        (header.source.into(), header.destination.into(), payload, header.hop_limit, quote[40..].to_vec())
    }
}

/// A type and a code with the word behind the checksum, and what the other version says for them, if anything.
type Row = ((u8, u8), u32, Option<((u8, u8), u32)>);

/// Types and codes with their words in ICMP and what ICMPv6 says for them, if anything (RFC 7915 §4.2).
const TO_V6: [Row; 16] = [
    ((3, 0), 0, Some(((1, 0), 0))),
    ((3, 1), 0, Some(((1, 0), 0))),
    ((3, 2), 0, Some(((4, 1), 6))),
    ((3, 3), 0, Some(((1, 4), 0))),
    ((3, 4), 1400, Some(((2, 0), 1420))),
    ((3, 4), 0, Some(((2, 0), 88))),
    ((3, 5), 0, Some(((1, 0), 0))),
    ((3, 10), 0, Some(((1, 1), 0))),
    ((3, 13), 0, Some(((1, 1), 0))),
    ((3, 14), 0, None),
    ((4, 0), 0, None),
    ((11, 0), 0, Some(((3, 0), 0))),
    ((11, 1), 0, Some(((3, 1), 0))),
    ((12, 0), 8 << 24, Some(((4, 0), 7))),
    ((12, 0), 4 << 24, None),
    ((12, 1), 0, None),
];

/// The same of ICMPv6 in ICMP (RFC 7915 §5.2).
const TO_V4: [Row; 13] = [
    ((1, 0), 0, Some(((3, 1), 0))),
    ((1, 1), 0, Some(((3, 10), 0))),
    ((1, 2), 0, Some(((3, 1), 0))),
    ((1, 3), 0, Some(((3, 1), 0))),
    ((1, 4), 0, Some(((3, 3), 0))),
    ((1, 5), 0, None),
    ((2, 0), 1400, Some(((3, 4), 1380))),
    ((3, 0), 0, Some(((11, 0), 0))),
    ((3, 1), 0, Some(((11, 1), 0))),
    ((4, 0), 7, Some(((12, 0), 8 << 24))),
    ((4, 0), 24, Some(((12, 0), 16 << 24))),
    ((4, 0), 40, None),
    ((4, 1), 0, Some(((3, 2), 0))),
];

#[test]
fn errors_are_translated_with_the_packet_that_they_quote() {
    for plan in mixed() {
        for protocol in [TCP, UDP] {
            let mut director = director(&plan);
            let request = Frame { payload: vec![3; 600], ..Frame::from_client(&plan, protocol, SYN) };
            let (_, sent) = director.run(CLIENTS, &request.bytes());
            let seen = read(&sent);
            let header = |plan: SocketAddr| if plan.is_ipv4() { 20 } else { 40 };
            let transport_len = request.payload.len() + if protocol == TCP { 20 } else { 8 };
            let table = |v4: bool| if v4 { &TO_V6[..] } else { &TO_V4[..] };

            // Of the real server's side, about what the client sent.
            let router: IpAddr =
                if plan.server.is_ipv4() { "172.16.0.99" } else { "fd00:2::99" }.parse().unwrap();
            for (kind, word, expected) in table(plan.server.is_ipv4()) {
                let bytes = error(router, local(&plan), *kind, *word, &sent[14..]);
                let bytes = [&PORT_MACS[1][..], &SERVER_MAC, &bytes].concat();
                let (verdict, out) = director.run(SERVERS, &bytes);
                let Some((kind, word)) = expected else {
                    assert_eq!(verdict, Verdict::Drop(Reason::Untranslatable), "{kind:?}");
                    continue;
                };
                assert_eq!(verdict, TO_CLIENTS);
                let (from, to, said, number, quote) = read_error(&out);
                assert_eq!((from, to), (plan.service.ip(), plan.client.ip()));
                assert_eq!((said, number), (*kind, *word));
                let (from, to, length, hops, transport) = read_quote(&quote);
                assert_eq!((from, to), (plan.client.ip(), plan.service.ip()));
                assert_eq!((length, hops), (transport_len, 63));
                let original = request.bytes()[14 + header(plan.client)..].to_vec();
                // Ports, and of TCP the sequence number, are the client's own.
                let known = if protocol == TCP { 8 } else { 6 };
                assert_eq!(transport[..known], original[..known]);
                let whole = 14 + header(plan.client) * 2 + 8 + transport_len;
                assert_eq!(out.len(), whole.min(14 + if plan.client.is_ipv4() { 576 } else { 1280 }));
            }

            // Of the client's side, about what the real server sent.
            let reply = Frame { to: seen.from, ..Frame::from_server(&plan, protocol, ACK) };
            let (_, sent) = director.run(SERVERS, &reply.bytes());
            let router: IpAddr =
                if plan.client.is_ipv4() { "192.0.2.9" } else { "2001:db8::9" }.parse().unwrap();
            for (kind, word, expected) in table(plan.client.is_ipv4()) {
                // As little as a router may quote.
                let quote = &sent[14..14 + header(plan.client) + 8];
                let bytes = error(router, plan.service.ip(), *kind, *word, quote);
                let bytes = [&PORT_MACS[0][..], &CLIENT_MAC, &bytes].concat();
                let (verdict, out) = director.run(CLIENTS, &bytes);
                let Some((kind, word)) = expected else {
                    assert_eq!(verdict, Verdict::Drop(Reason::Untranslatable), "{kind:?}");
                    continue;
                };
                assert_eq!(verdict, TO_SERVERS);
                let (from, to, said, number, quote) = read_error(&out);
                assert_eq!((from, to), (local(&plan), plan.server.ip()));
                assert_eq!((said, number), (*kind, *word));
                let (from, to, length, hops, transport) = read_quote(&quote);
                assert_eq!((from, to), (plan.server.ip(), local(&plan)));
                assert_eq!(hops, 63);
                assert_eq!(length, reply.payload.len() + if protocol == TCP { 20 } else { 8 });
                let original = &reply.bytes()[14 + header(plan.server)..];
                let known = if protocol == TCP { 8 } else { 6 };
                assert_eq!(transport.len(), 8);
                assert_eq!(transport[..known], original[..known]);
            }
            assert!(director.counters.events(Event::IcmpRelayed) > 15);
        }
    }
}
