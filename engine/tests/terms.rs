//! What a service asks for beyond a real server: shorter segments, resets, a real server for each datagram.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::full_nat::*;
use director::*;
use etherparse::TcpOptionElement::MaximumSegmentSize;
use std::net::SocketAddr;
use uvs_engine::counters::Event;
use uvs_engine::forward::Method;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::{Connections, Ports, Terms};
use uvs_engine::{Reason, Verdict};

fn announced(segment: &Segment) -> Option<u16> {
    let at = uvs_engine::packet::tcp_options::find(&segment.options, 2)?.start + 2;
    Some(u16::from_be_bytes([segment.options[at], segment.options[at + 1]]))
}

#[test]
fn neither_side_announces_longer_segments_than_the_service_allows() {
    for plan in plans() {
        for method in [Method::Nat, Method::Direct, Method::FullNat] {
            let mut lab = Lab::new(&plan, &Ports::default());
            if method != Method::FullNat {
                let server = destination(plan.server, method, &plan);
                lab.services[0].delete(plan.server, lab.director.now).unwrap();
                lab.services[0].add(&server).unwrap();
            }
            lab.services[0].set_terms(Terms { segment_size: 1400, ..Terms::default() });
            for (number, said, expected) in [
                (1, Some(1460), Some(1400)),
                (2, Some(1400), Some(1400)),
                (3, Some(536), Some(536)),
                (4, None, None),
            ] {
                let client = lab.client(number);
                let mut syn = Segment::new(client, plan.service, SYN, 5, 0);
                syn.options = said.map_or(vec![], |size| options(&[MaximumSegmentSize(size)]));
                // The first, and when it comes again, with a checksum that a device would have finished.
                let mut seen = syn.clone();
                for unfinished in [false, true] {
                    let mut bytes = syn.bytes(CLIENT_MAC, PORT_MACS[0]);
                    if unfinished {
                        leave_unfinished(&mut bytes);
                    }
                    let (verdict, out) = lab.director.run(CLIENTS, &bytes);
                    assert_eq!(verdict, TO_SERVERS);
                    seen = Segment::read(&out);
                    assert_eq!(announced(&seen), expected, "{method:?} {said:?}");
                }
                if method == Method::Direct {
                    continue;
                }
                let to = if method == Method::Nat { client } else { seen.from };
                let mut answer = Segment::new(plan.server, to, SYN | ACK, 9, seen.sequence.wrapping_add(1));
                answer.options.clone_from(&syn.options);
                assert_eq!(announced(&lab.at_client(&answer, client)), expected, "{method:?} {said:?}");
            }
            let lowered = lab.director.counters.events(Event::SegmentSizeLowered);
            assert_eq!(lowered, if method == Method::Direct { 2 } else { 3 });
        }
    }
}

#[test]
fn the_options_room_is_taken_off_what_the_service_allows() {
    for plan in plans() {
        let mut lab = Lab::new(&plan, &Ports::default());
        let tell = Tell::Option(AddressOption::default());
        lab.services[0].set_terms(Terms { segment_size: 1300, tell, ..Terms::default() });
        let client = lab.client(1);
        let seen = lab.syn(1, 1);
        let mut answer = Segment::new(plan.server, seen.from, SYN | ACK, 9, seen.sequence.wrapping_add(1));
        answer.options = options(&[MaximumSegmentSize(1460)]);
        let room = if client.is_ipv4() { 8 } else { 20 };
        assert_eq!(announced(&lab.at_client(&answer, client)), Some(1300 - room));
    }
}

#[test]
fn clients_without_real_server_are_reset_if_the_service_says_so() {
    for plan in plans() {
        for resets in [false, true] {
            let mut lab = Lab::new(&plan, &Ports::default());
            for service in &lab.services {
                service.delete(plan.server, lab.director.now).unwrap();
                service.set_terms(Terms { resets, ..Terms::default() });
            }
            let client = lab.client(1);
            let back = |sequence, acknowledgement, flags| {
                Segment::new(plan.service, client, flags, sequence, acknowledgement)
            };
            let mut with_data = Segment::new(client, plan.service, SYN, u32::MAX, 0);
            with_data.payload = vec![1; 5];
            let mut with_options = Segment::new(client, plan.service, SYN | FIN, 5, 0);
            with_options.options = vec![1; 40];
            for (segment, expected) in [
                (Segment::new(client, plan.service, SYN, 1000, 0), back(0, 1001, RST | ACK)),
                (Segment::new(client, plan.service, SYN | ACK, 1000, 77), back(77, 0, RST)),
                (with_data, back(0, 5, RST | ACK)),
                (with_options, back(0, 7, RST | ACK)),
            ] {
                let (verdict, mut out) = lab.director.run(CLIENTS, &segment.bytes(CLIENT_MAC, PORT_MACS[0]));
                assert_eq!(verdict, TO_CLIENTS);
                assert_eq!((&out[..6], &out[6..12]), (&CLIENT_MAC[..], &PORT_MACS[0][..]));
                let protocol = if client.is_ipv4() { out[23] } else { out[20] };
                assert_eq!(protocol == TCP, resets);
                if resets {
                    // As old as one that was forwarded once.
                    age(&mut out, &plan);
                    assert_eq!(Segment::read(&out), expected);
                }
            }
            let (reset, told) = (Event::ResetSent, Event::IcmpSent);
            let counted = |event| lab.director.counters.events(event);
            assert_eq!((counted(reset), counted(told)), if resets { (4, 0) } else { (0, 4) });
            assert_eq!(lab.director.counters.drops(Reason::NoDestination), 4);
            let datagram = Frame::from_client(&plan, UDP, 0).bytes();
            assert_eq!(lab.director.run(CLIENTS, &datagram).0, TO_CLIENTS, "UDP has no resets");
            assert_eq!(lab.director.counters.events(Event::IcmpSent), if resets { 1 } else { 5 });
        }
    }
}

fn age(frame: &mut [u8], plan: &Plan) {
    if plan.client.is_ipv4() {
        frame[22] -= 1;
        let sum = u16::from_be_bytes([frame[24], frame[25]]);
        let (sum, carry) = sum.overflowing_add(0x100);
        frame[24..26].copy_from_slice(&(sum + u16::from(carry)).to_be_bytes());
    } else {
        frame[21] -= 1;
    }
}

#[test]
fn no_more_resets_are_sent_than_errors() {
    let [plan, _] = plans();
    let mut lab = Lab::new(&plan, &Ports::default());
    lab.services[0].delete(plan.server, lab.director.now).unwrap();
    lab.services[0].set_terms(Terms { resets: true, ..Terms::default() });
    let syn = Segment::new(plan.client, plan.service, SYN, 1000, 0).bytes(CLIENT_MAC, PORT_MACS[0]);
    let verdicts: Vec<_> = (0..60).map(|_| lab.director.run(CLIENTS, &syn).0).collect();
    assert_eq!(verdicts.iter().filter(|verdict| **verdict == TO_CLIENTS).count(), 50);
    assert_eq!(verdicts[59], Verdict::Drop(Reason::NoDestination));
    assert_eq!(lab.director.counters.events(Event::IcmpLimited), 10);
}

#[test]
fn each_datagram_is_scheduled_for_itself() {
    for plan in plans() {
        for method in [Method::Direct, Method::Nat, Method::Tunnel] {
            let (mut director, services) = Director::with_server(&plan, method);
            let second = destination(plan.second, method, &plan);
            services[1].add(&second).unwrap();
            services[1].set_terms(Terms { one_packet: true, ..Terms::default() });
            let mut seen = [0; 2];
            for _ in 0..10 {
                let (verdict, out) = director.run(CLIENTS, &Frame::from_client(&plan, UDP, 0).bytes());
                assert_eq!(verdict, TO_SERVERS);
                seen[usize::from(out[..6] == SECOND_SERVER_MAC)] += 1;
            }
            assert_eq!(seen, [5, 5], "{method:?}");
            let view = services[1].view();
            assert_eq!((view.traffic.connections, view.traffic.in_packets), (10, 10), "{method:?}");
            assert!(view.destinations.iter().all(|server| server.connections == Connections::default()));
            assert_eq!(director.table.handle().unwrap().connections().count(), 0);
            let reply = director.run(SERVERS, &Frame::from_server(&plan, UDP, 0).bytes());
            assert_eq!(reply.0, Verdict::ToKernel, "there is nothing to translate it by");
            // TCP connections of a service with the same address are what they were.
            assert_eq!(director.run(CLIENTS, &Frame::from_client(&plan, TCP, SYN).bytes()).0, TO_SERVERS);
            assert_eq!(director.table.handle().unwrap().connections().count(), 1);
        }
    }
}

#[test]
fn a_datagram_that_waits_for_its_next_hop_counts_once() {
    let [plan, _] = plans();
    let mut director = Director::new();
    let services = director.serve(plan.service);
    let unresolved: SocketAddr = at("172.16.0.77:8080");
    services[1].add(&destination(unresolved, Method::Nat, &plan)).unwrap();
    services[1].set_terms(Terms { one_packet: true, ..Terms::default() });
    let frame = Frame::from_client(&plan, UDP, 0).bytes();
    for _ in 0..3 {
        assert!(matches!(director.run(CLIENTS, &frame).0, Verdict::Hold(_)));
    }
    assert_eq!(services[1].view().traffic.connections, 0);
    assert_eq!(director.table.handle().unwrap().connections().count(), 0);
}

/// The fragments of a datagram go where its first one went, and the next datagram elsewhere again.
#[test]
fn fragments_of_a_datagram_stay_together() {
    let [plan, _] = plans();
    let (mut director, services) = Director::with_server(&plan, Method::Nat);
    services[1].add(&destination(plan.second, Method::Nat, &plan)).unwrap();
    services[1].set_terms(Terms { one_packet: true, ..Terms::default() });
    let mut servers = Vec::new();
    for id in 0..6_u16 {
        let whole = Frame { payload: vec![7; 64], ..Frame::from_client(&plan, UDP, 0) }.bytes();
        let mut went = Vec::new();
        for (offset, more) in [(0, true), (40, false)] {
            let mut piece = whole[..34].to_vec();
            let end = if more { 34 + 40 } else { whole.len() };
            piece.extend(&whole[34 + offset..end]);
            let len = u16::try_from(piece.len() - 14).unwrap();
            piece[16..18].copy_from_slice(&len.to_be_bytes());
            piece[18..20].copy_from_slice(&id.to_be_bytes());
            let word = u16::try_from(offset / 8).unwrap() | if more { 0x2000 } else { 0 };
            piece[20..22].copy_from_slice(&word.to_be_bytes());
            uvs_engine::packet::ipv4::finish(&mut piece, 14).unwrap();
            let (verdict, out) = director.run(CLIENTS, &piece);
            assert_eq!(verdict, TO_SERVERS);
            went.push(out[..6].to_vec());
        }
        assert_eq!(went[0], went[1]);
        servers.push(went.remove(0));
    }
    assert!(servers.windows(2).all(|pair| pair[0] != pair[1]), "{servers:?}");
    assert_eq!(services[1].view().traffic.connections, 6);
    // What was kept for the last datagram's fragments ends with the next datagram.
    let frame = Frame::from_client(&plan, UDP, 0).bytes();
    director.run(CLIENTS, &frame);
    assert_eq!(director.table.handle().unwrap().connections().count(), 0);
}
