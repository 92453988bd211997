//! Full NAT: packets in, verdicts and packets out, in both IP versions.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::full_nat::*;
use director::*;
use etherparse::TcpOptionElement;
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use uvs_conntrack::Limits;
use uvs_engine::counters::Event;
use uvs_engine::service::{LocalPool, Ports};
use uvs_engine::{Reason, Verdict};

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
        syn.options = options(&[MaximumSegmentSize(1460), Timestamp(7, 0), Noop, WindowScale(7), Noop, Noop]);
        let seen = lab.at_server(&syn);
        let local = seen.from;
        let mut expected = vec![MaximumSegmentSize(1460)];
        expected.extend(std::iter::repeat_n(Noop, 11));
        expected.extend([WindowScale(7), Noop, Noop]);
        assert_eq!(seen.options, options(&expected), "no timestamps");
        let delta = seen.sequence.wrapping_sub(syn.sequence);
        assert_ne!(delta, 0);
        lab.director.now = lab.director.now.plus_seconds(1);
        assert_eq!(lab.at_server(&syn), seen, "the same when it comes again");

        let mut answer = Segment::new(plan.server, local, SYN | ACK, 9000, seen.sequence.wrapping_add(1));
        answer.options = options(&[MaximumSegmentSize(1460)]);
        let got = lab.at_client(&answer, client);
        assert_eq!((got.sequence, got.acknowledgement), (9000, syn.sequence.wrapping_add(1)));
        assert_eq!(got.options, answer.options);

        // The client's selective acknowledgements speak of the real server's numbers, which stay.
        let mut data = Segment::new(client, service, ACK, syn.sequence.wrapping_add(1), 9001);
        data.payload = vec![3; 333];
        data.options = options(&[Noop, Noop, SelectiveAcknowledgement((9100, 9200), [None; 3])]);
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
            options(&[Noop, Noop, SelectiveAcknowledgement(first, [Some(second), None, None])])
        };
        sack.options = option(blocks.map(there));
        let got = lab.at_client(&sack, client);
        assert_eq!((got.acknowledgement, got.options), (edge(1), option(blocks)));
        // At an odd place in the header, too.
        let option = |block| options(&[Noop, SelectiveAcknowledgement(block, [None; 3])]);
        sack.options = option(there(blocks[0]));
        let got = lab.at_client(&sack, client);
        assert_eq!(got.options, option(blocks[0]));

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
