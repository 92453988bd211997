//! Full NAT: packets in, verdicts and packets out, in both IP versions; every frame that leaves is taken apart, and its checksums
//! recomputed, by an independent crate.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::*;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use uvs_conntrack::Limits;
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::service::{LocalAddress, LocalPool, Ports, Service};
use uvs_engine::{Reason, Verdict};

const TO_CLIENTS: Verdict = Verdict::Transmit(CLIENTS);
const TO_SERVERS: Verdict = Verdict::Transmit(SERVERS);

/// A TCP segment with what matters here.
#[derive(Clone, Debug, PartialEq)]
struct Segment {
    from: SocketAddr,
    to: SocketAddr,
    flags: u8,
    sequence: u32,
    acknowledgement: u32,
    options: Vec<TcpOptionElement>,
    payload: Vec<u8>,
}

impl Segment {
    fn new(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, acknowledgement: u32) -> Self {
        Segment { from, to, flags, sequence, acknowledgement, options: Vec::new(), payload: Vec::new() }
    }

    fn bytes(&self, from_mac: [u8; 6], to_mac: [u8; 6]) -> Vec<u8> {
        let ethernet = PacketBuilder::ethernet2(from_mac, to_mac);
        let ip = match (self.from.ip(), self.to.ip()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => ethernet.ipv4(a.octets(), b.octets(), 64),
            (IpAddr::V6(a), IpAddr::V6(b)) => ethernet.ipv6(a.octets(), b.octets(), 64),
            _ => panic!("one IP version"),
        };
        let mut header = TcpHeader::new(self.from.port(), self.to.port(), self.sequence, 0x2000);
        header.acknowledgment_number = self.acknowledgement;
        (header.fin, header.syn) = (self.flags & FIN != 0, self.flags & SYN != 0);
        (header.rst, header.ack) = (self.flags & RST != 0, self.flags & ACK != 0);
        header.set_options(&self.options).unwrap();
        let mut bytes = Vec::new();
        ip.tcp_header(header).write(&mut bytes, &self.payload).unwrap();
        bytes
    }

    /// Reads a frame back; its checksums must be right, and it one hop older than [`Segment::bytes`] makes it.
    fn read(bytes: &[u8]) -> Segment {
        let packet = SlicedPacket::from_ethernet(bytes).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = packet.transport else { panic!("{packet:?}") };
        let header = tcp.to_header();
        let (from, to, sum) = match packet.net.unwrap() {
            NetSlice::Ipv4(ip) => {
                let ip = ip.header().to_header();
                assert_eq!((ip.time_to_live, ip.calc_header_checksum()), (63, ip.header_checksum));
                let sum = header.calc_checksum_ipv4_raw(ip.source, ip.destination, tcp.payload()).unwrap();
                (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
            }
            NetSlice::Ipv6(ip) => {
                let ip = ip.header().to_header();
                assert_eq!(ip.hop_limit, 63);
                let sum = header.calc_checksum_ipv6_raw(ip.source, ip.destination, tcp.payload()).unwrap();
                (IpAddr::from(ip.source), IpAddr::from(ip.destination), sum)
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(header.checksum, sum, "the checksum of {header:?}");
        let bit = |set: bool, bit: u8| if set { bit } else { 0 };
        Segment {
            from: SocketAddr::new(from, header.source_port),
            to: SocketAddr::new(to, header.destination_port),
            flags: bit(header.fin, FIN) | bit(header.syn, SYN) | bit(header.rst, RST) | bit(header.ack, ACK),
            sequence: header.sequence_number,
            acknowledgement: header.acknowledgment_number,
            options: header.options_iterator().map(Result::unwrap).collect(),
            payload: tcp.payload().to_vec(),
        }
    }
}

/// A director with full NAT to one real server.
struct Lab {
    director: Director,
    plan: Plan,
    local: Arc<LocalAddress>,
    services: [Arc<Service>; 2],
}

impl Lab {
    fn new(plan: &Plan, ports: &Ports) -> Self {
        Lab::in_director(Director::new(), plan, ports)
    }

    fn in_director(mut director: Director, plan: &Plan, ports: &Ports) -> Self {
        let services = director.serve(plan.service);
        let local = director.destinations.locals().enter(local_of(plan));
        for service in &services {
            service.set_locals(LocalPool::new(vec![(local.clone(), ports.clone())]));
            service.add(&destination(plan.server, Method::FullNat, plan)).unwrap();
        }
        Lab { director, plan: *plan, local, services }
    }

    fn client(&self, number: u16) -> SocketAddr {
        SocketAddr::new(self.plan.client.ip(), 1000 + number)
    }

    fn at_server(&mut self, segment: &Segment) -> Segment {
        let (verdict, out) = self.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0]));
        assert_eq!(verdict, TO_SERVERS, "{segment:?}");
        assert_eq!((&out[..6], &out[6..12]), (&SERVER_MAC[..], &PORT_MACS[1][..]));
        let seen = Segment::read(&out);
        assert_eq!((seen.from.ip(), seen.to), (self.local.address(), self.plan.server));
        seen
    }

    fn at_client(&mut self, segment: &Segment, client: SocketAddr) -> Segment {
        let (verdict, out) = self.director.run(SERVERS, &segment.bytes(SERVER_MAC, PORT_MACS[1]));
        assert_eq!(verdict, TO_CLIENTS, "{segment:?}");
        let seen = Segment::read(&out);
        assert_eq!((seen.from, seen.to), (self.plan.service, client));
        seen
    }

    fn refused(&mut self, segment: &Segment) -> Reason {
        match self.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0])).0 {
            Verdict::Drop(reason) => reason,
            other => panic!("{other:?}"),
        }
    }

    fn syn(&mut self, number: u16, sequence: u32) -> Segment {
        let (from, to) = (self.client(number), self.plan.service);
        self.at_server(&Segment::new(from, to, SYN, sequence, 0))
    }

    /// A connection from its SYN to TIME_WAIT, closed by the real server first. What the real server sees of the SYN, and the
    /// end of the client's sequence numbers as it sees it.
    fn life(&mut self, number: u16, sequence: u32, payload: usize) -> (Segment, u32) {
        let (client, service) = (self.client(number), self.plan.service);
        let syn = self.syn(number, sequence);
        let reply = |flags, sequence, acknowledgement| {
            Segment::new(syn.to, syn.from, flags, sequence, acknowledgement)
        };
        self.at_client(&reply(SYN | ACK, 5000, syn.sequence.wrapping_add(1)), client);
        let mut data = Segment::new(client, service, ACK, sequence.wrapping_add(1), 5001);
        data.payload = vec![1; payload];
        let data = self.at_server(&data);
        let sent = u32::try_from(payload).unwrap();
        self.at_client(&reply(FIN | ACK, 5001, data.sequence.wrapping_add(sent)), client);
        let fin = Segment::new(client, service, FIN | ACK, sequence.wrapping_add(1 + sent), 5002);
        let fin = self.at_server(&fin);
        self.at_client(&reply(ACK, 5002, fin.sequence.wrapping_add(1)), client);
        (syn, fin.sequence.wrapping_add(1))
    }
}

fn local_of(plan: &Plan) -> IpAddr {
    if plan.client.is_ipv4() { "172.16.0.77".parse().unwrap() } else { "fd00:2::77".parse().unwrap() }
}

#[test]
fn datagrams_come_from_a_local_address_and_find_back() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::new([7000..=7001]));
        let local = |port| SocketAddr::new(lab.local.address(), port);
        for (number, port) in [(1, 7000), (2, 7001), (1, 7000)] {
            let frame = Frame { from: lab.client(number), ..Frame::from_client(&plan, UDP, 0) };
            let expected = Frame { from: local(port), ..frame.clone().masqueraded(plan.server) };
            assert_eq!(lab.director.run(CLIENTS, &frame.bytes()), (TO_SERVERS, expected.bytes()));
            let reply = Frame { to: local(port), ..Frame::from_server(&plan, UDP, 0) };
            let expected = Frame { to: frame.from, ..reply.clone().unmasqueraded(plan.service) };
            assert_eq!(lab.director.run(SERVERS, &reply.bytes()), (TO_CLIENTS, expected.bytes()));
        }
        assert_eq!((lab.local.connections(), lab.local.conflicts()), (2, 0));
        lab.director.wait(301);
        assert_eq!(lab.local.connections(), 0);
    }
}

#[test]
fn sequence_numbers_are_translated_both_ways() {
    use TcpOptionElement::{MaximumSegmentSize, Noop, SelectiveAcknowledgement, Timestamp, WindowScale};
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::default());
        let (client, service) = (lab.client(0), plan.service);
        let mut syn = Segment::new(client, service, SYN, u32::MAX - 10, 0);
        syn.options = vec![MaximumSegmentSize(1460), Timestamp(7, 0), Noop, WindowScale(7), Noop, Noop];
        let seen = lab.at_server(&syn);
        let local = seen.from;
        let mut expected = vec![MaximumSegmentSize(1460)];
        expected.extend(std::iter::repeat_n(Noop, 11));
        expected.extend([WindowScale(7), Noop, Noop]);
        assert_eq!(seen.options, expected, "no timestamps");
        let delta = seen.sequence.wrapping_sub(syn.sequence);
        assert_ne!(delta, 0);
        lab.director.now = lab.director.now.plus_seconds(1);
        assert_eq!(lab.at_server(&syn), seen, "the same when it comes again");

        let mut answer = Segment::new(plan.server, local, SYN | ACK, 9000, seen.sequence.wrapping_add(1));
        answer.options = vec![MaximumSegmentSize(1460)];
        let got = lab.at_client(&answer, client);
        assert_eq!((got.sequence, got.acknowledgement), (9000, syn.sequence.wrapping_add(1)));
        assert_eq!(got.options, answer.options);

        // The client's selective acknowledgements speak of the real server's numbers, which stay.
        let mut data = Segment::new(client, service, ACK, syn.sequence.wrapping_add(1), 9001);
        data.payload = vec![3; 333];
        data.options = vec![Noop, Noop, SelectiveAcknowledgement((9100, 9200), [None; 3])];
        let seen = lab.at_server(&data);
        assert_eq!(seen.sequence, data.sequence.wrapping_add(delta));
        assert_eq!(
            (seen.acknowledgement, &seen.options, &seen.payload),
            (9001, &data.options, &data.payload)
        );

        let edge = |n: u32| syn.sequence.wrapping_add(n);
        let there = |(a, b): (u32, u32)| (a.wrapping_add(delta), b.wrapping_add(delta));
        let blocks = [(edge(5), edge(9)), (edge(20), edge(30))];
        let mut sack = Segment::new(plan.server, local, ACK, 9001, edge(1).wrapping_add(delta));
        let option = |[first, second]: [(u32, u32); 2]| {
            vec![Noop, Noop, SelectiveAcknowledgement(first, [Some(second), None, None])]
        };
        sack.options = option(blocks.map(there));
        let got = lab.at_client(&sack, client);
        assert_eq!((got.acknowledgement, got.options), (edge(1), option(blocks)));
        // At an odd place in the header, too.
        sack.options = vec![Noop, SelectiveAcknowledgement(there(blocks[0]), [None; 3])];
        let got = lab.at_client(&sack, client);
        assert_eq!(got.options[..2], [Noop, SelectiveAcknowledgement(blocks[0], [None; 3])]);

        let reset = Segment::new(client, service, RST, edge(334), 0);
        assert_eq!(lab.at_server(&reset).sequence, edge(334).wrapping_add(delta));
        let reset = Segment::new(plan.server, local, RST, 9001, 77);
        assert_eq!(lab.at_client(&reset, client).acknowledgement, 77, "no acknowledgement without ACK");
    }
}

#[test]
fn clients_never_share_a_port_of_one_real_server() {
    const CLIENTS_AT_ONCE: u32 = 60_000;
    let [plan, _] = plans();
    let limits = Limits { connections4: 70_000, connections6: 10, destinations: 10, first_buckets: 1 << 14 };
    let mut lab = Lab::in_director(Director::with_limits(limits), &plan, &Ports::default());
    let mut seen = HashSet::new();
    for number in 0..CLIENTS_AT_ONCE {
        let from = SocketAddr::new(IpAddr::from((0x0a00_0000 + 1000 + number).to_be_bytes()), 1234);
        let syn = Segment::new(from, plan.service, SYN, 1, 0);
        assert!(seen.insert(lab.at_server(&syn).from), "client {number} has another's port");
    }
    assert_eq!((lab.local.connections(), lab.local.exhausted()), (CLIENTS_AT_ONCE.into(), 0));
}

#[test]
fn without_a_free_port_new_connections_are_dropped_and_counted() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::new([6000..=6002]));
        (0..3).for_each(|number| drop(lab.syn(number, 1)));
        let late = Segment::new(lab.client(3), plan.service, SYN, 1, 0);
        for _ in 0..4 {
            assert_eq!(lab.refused(&late), Reason::PortsExhausted);
        }
        assert_eq!(lab.director.counters.drops(Reason::PortsExhausted), 4);
        assert_eq!((lab.local.exhausted(), lab.local.conflicts()), (1, 3), "searched once in a tick");
        assert_eq!(lab.local.connections(), 3);
        // What is there is served, and time makes room.
        lab.syn(0, 1);
        lab.director.wait(61);
        assert_eq!(lab.local.connections(), 0);
        lab.at_server(&late);
    }
}

#[test]
fn without_a_local_address_only_what_is_there_goes_on() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::default());
        let seen = lab.syn(0, 1);
        lab.services[0].set_locals(LocalPool::new(vec![]));
        let another = Segment::new(lab.client(1), plan.service, SYN, 1, 0);
        assert_eq!(lab.refused(&another), Reason::NoLocalAddress);
        assert_eq!(lab.syn(0, 1), seen);
        assert_eq!(lab.local.connections(), 1);
    }
}

#[test]
fn a_port_in_time_wait_begins_again_behind_its_end() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::new([6000..=6000]));
        // So much that the clock alone would begin before the end of it.
        for round in 0..20_u16 {
            let before = lab.director.now;
            let (first, end) = lab.life(2 * round, 1000, 1000);
            assert_eq!(lab.director.now, before);
            let (second, _) = lab.life(2 * round + 1, 0x8000_0000, 0);
            assert_eq!(second.from, first.from);
            let distance = second.sequence.wrapping_sub(end);
            assert!(distance > 0 && distance < 0x8000_0000, "{} is not after {end}", second.sequence);
            lab.director.now = lab.director.now.plus_seconds(1);
        }
        assert_eq!(lab.director.counters.events(Event::LocalPortReused), 39);
        assert_eq!(lab.local.connections(), 1);
        assert_eq!(lab.local.exhausted(), 0);
    }
}

#[test]
fn a_port_rests_before_it_is_used_again_if_another_can_be() {
    let [plan, _] = plans();
    let mut lab = Lab::new(&plan, &Ports::new([6000..=6001]));
    lab.life(0, 1, 1);
    lab.director.now.0 += 20;
    lab.life(1, 1, 1);
    // It is 6000's turn; when it is 6001's, that has not rested.
    assert_eq!(lab.life(2, 1, 1).0.from.port(), 6000);
    lab.director.now.0 += 20;
    lab.syn(3, 1);
    let (reused, _) = lab.life(4, 1, 1);
    assert_eq!(reused.from.port(), 6000, "the only one that is over");
}

#[test]
fn a_port_is_free_after_a_reset_and_not_before_the_end() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::new([6000..=6000]));
        let syn = lab.syn(0, 1);
        let late = Segment::new(lab.client(1), plan.service, SYN, 1, 0);
        assert_eq!(lab.refused(&late), Reason::PortsExhausted, "half open");
        let reset = Segment::new(plan.server, syn.from, RST | ACK, 0, syn.sequence.wrapping_add(1));
        lab.at_client(&reset, lab.client(0));
        assert_eq!(lab.refused(&late), Reason::PortsExhausted, "not looked for twice in a tick");
        lab.director.now.0 += 1;
        assert_eq!(lab.at_server(&late).from, syn.from);
        let gone = Segment::new(lab.client(0), plan.service, ACK, 2, 1);
        let (verdict, _) = lab.director.run(CLIENTS, &gone.bytes(CLIENT_MAC, PORT_MACS[0]));
        assert_eq!(verdict, Verdict::ToKernel, "the first connection is gone");
    }
}

#[test]
fn a_client_that_comes_back_gets_another_port() {
    let [plan, _] = plans();
    let mut lab = Lab::new(&plan, &Ports::default());
    let (first, _) = lab.life(0, 1000, 10);
    let second = lab.syn(0, 90_000);
    assert_ne!(second.from, first.from);
    assert_eq!(lab.local.connections(), 1);
    let answer = Segment::new(plan.server, second.from, SYN | ACK, 1, second.sequence.wrapping_add(1));
    assert_eq!(lab.at_client(&answer, lab.client(0)).acknowledgement, 90_001);
    // The first connection's port is nobody's now.
    let stray = Segment::new(plan.server, first.from, ACK, 1, 1);
    let (verdict, _) = lab.director.run(SERVERS, &stray.bytes(SERVER_MAC, PORT_MACS[1]));
    assert_eq!(verdict, Verdict::ToKernel);
}
