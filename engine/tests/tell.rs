//! Real servers of full NAT learn their clients' addresses.

#![allow(clippy::unwrap_used, reason = "tests: what is written here by hand is valid")]

mod director;

use director::full_nat::*;
use director::*;
use etherparse::TcpOptionElement::{self, MaximumSegmentSize, Noop, Timestamp, WindowScale};
use std::net::{IpAddr, SocketAddr};
use uvs_engine::Verdict;
use uvs_engine::counters::Event;
use uvs_engine::plan::{AddressOption, Tell};
use uvs_engine::service::{Ports, Terms};

const TOA: AddressOption = AddressOption { kind: 254, kind_ipv6: 253, on_syn: true };

fn telling(plan: &Plan, tell: Tell) -> Lab {
    let lab = Lab::new(plan, &Ports::default());
    lab.services.iter().for_each(|service| service.set_terms(Terms { tell, ..Terms::default() }));
    lab
}

/// The option, as toa.c reads it.
fn toa(client: SocketAddr, how: AddressOption) -> Vec<u8> {
    let port = client.port().to_be_bytes();
    match client.ip() {
        IpAddr::V4(ip) => [&[how.kind, 8], &port[..], &ip.octets()[..]].concat(),
        IpAddr::V6(ip) => [&[how.kind_ipv6, 20], &port[..], &ip.octets()[..]].concat(),
    }
}

/// A client's handshake: what the real server sees of the SYN, and a function of what follows.
struct Talk {
    lab: Lab,
    client: SocketAddr,
    syn: Segment,
}

impl Talk {
    fn new(plan: &Plan, how: AddressOption, options: Vec<u8>) -> (Self, Segment) {
        let mut lab = telling(plan, Tell::Option(how));
        let client = lab.client(7);
        let syn = Segment { options, ..Segment::new(client, plan.service, SYN, 1000, 0) };
        let seen = lab.at_server(&syn);
        (Talk { lab, client, syn: seen.clone() }, seen)
    }

    fn server_says(&self, flags: u8, sequence: u32) -> Segment {
        let acknowledgement = self.syn.sequence.wrapping_add(1);
        Segment::new(self.lab.plan.server, self.syn.from, flags, sequence, acknowledgement)
    }

    fn client_says(&self, flags: u8, payload: usize) -> Segment {
        let mut segment = Segment::new(self.client, self.lab.plan.service, flags, 1001, 5001);
        segment.payload = vec![9; payload];
        segment
    }

    fn told(&self) -> (u64, u64) {
        let events = |event| self.lab.director.counters.events(event);
        (events(Event::ClientTold), events(Event::ClientNotTold))
    }
}

#[test]
fn the_option_is_there_until_the_real_server_has_spoken() {
    for plan in plans() {
        let options_of = |elements: &[TcpOptionElement]| options(elements);
        let given = options_of(&[MaximumSegmentSize(1460), Timestamp(7, 0), Noop, WindowScale(7)]);
        let (mut talk, seen) = Talk::new(&plan, TOA, given);
        let option = toa(talk.client, TOA);
        let len = option.len();
        let mut expected = option.clone();
        expected.extend(options_of(&[MaximumSegmentSize(1460)]));
        expected.extend([1; 11]);
        expected.extend([3, 3, 7]);
        assert_eq!(seen.options[..expected.len()], expected);

        let mut answer = talk.server_says(SYN | ACK, 5000);
        answer.options = options_of(&[MaximumSegmentSize(1460)]);
        let less = 1460 - u16::try_from(len).unwrap();
        let got = talk.lab.at_client(&answer, talk.client);
        assert_eq!(got.options, options_of(&[MaximumSegmentSize(less)]));
        let without = talk.server_says(SYN | ACK, 5000);
        assert_eq!(talk.lab.at_client(&without, talk.client).options, []);

        // The handshake's end, data, the same again, the end of data: all before the real server speaks.
        for (flags, payload) in [(ACK, 0), (ACK, 100), (ACK, 101), (ACK, 100), (FIN | ACK, 3)] {
            let segment = talk.client_says(flags, payload);
            let seen = talk.lab.at_server(&segment);
            assert_eq!((&seen.options, &seen.payload), (&option, &segment.payload), "{flags} {payload}");
            talk.lab.at_client(&talk.server_says(ACK, 5001), talk.client);
        }
        assert_eq!(talk.told(), (6, 0));
        let reset = talk.client_says(RST, 0);
        assert_eq!(talk.lab.at_server(&reset).options, []);

        let mut data = talk.server_says(ACK, 5001);
        data.payload = vec![1; 10];
        talk.lab.at_client(&data, talk.client);
        assert_eq!(talk.lab.at_server(&talk.client_says(ACK, 100)).options, []);
        assert_eq!(talk.told(), (6, 0));
    }
}

#[test]
fn a_real_server_that_closes_at_once_has_spoken() {
    for plan in plans() {
        let (mut talk, _) = Talk::new(&plan, TOA, vec![]);
        talk.lab.at_client(&talk.server_says(FIN | ACK, 5001), talk.client);
        assert_eq!(talk.lab.at_server(&talk.client_says(ACK, 0)).options, []);
    }
}

#[test]
fn kinds_are_as_configured_and_the_syn_may_be_left_alone() {
    for plan in plans() {
        let how = AddressOption { kind: 200, kind_ipv6: 201, on_syn: false };
        let (mut talk, seen) = Talk::new(&plan, how, vec![]);
        assert_eq!(seen.options, []);
        assert_eq!(talk.lab.at_server(&talk.client_says(ACK, 0)).options, toa(talk.client, how));
    }
}

#[test]
fn what_is_not_to_be_told_is_not() {
    for plan in plans() {
        let mut lab = telling(&plan, Tell::Nothing);
        let syn = lab.syn(1, 1000);
        assert_eq!(syn.options, []);
        // Nor is it when it is wanted later: the connection began without.
        lab.services[0].set_terms(Terms { tell: Tell::Option(TOA), ..Terms::default() });
        assert_eq!(lab.syn(1, 1000).options, []);
        assert_eq!(lab.syn(2, 1000).options, toa(lab.client(2), TOA));
        lab.services[0].set_terms(Terms::default());
        assert_eq!(lab.syn(2, 1000).options, []);
    }
}

#[test]
fn a_client_cannot_say_that_it_is_another() {
    for plan in plans() {
        let forged = toa("[2001:db8::bad]:666".parse().unwrap(), TOA);
        let twice =
            [toa("6.6.6.6:666".parse().unwrap(), TOA), toa("7.7.7.7:777".parse().unwrap(), TOA)].concat();
        let full = [forged.clone(), vec![77, 20], vec![0; 18]].concat();
        for options in [forged, twice, full] {
            let (mut talk, seen) = Talk::new(&plan, AddressOption { on_syn: false, ..TOA }, options.clone());
            let kinds = |options: &[u8]| {
                let find = |kind| uvs_engine::packet::tcp_options::find(options, kind);
                (find(254).map(|at| options[at].to_vec()), find(253).map(|at| options[at].to_vec()))
            };
            assert_eq!(kinds(&seen.options), (None, None), "the SYN has none, {options:?}");
            let mut segment = talk.client_says(ACK, 5);
            segment.options = options;
            let seen = talk.lab.at_server(&segment);
            let own = Some(toa(talk.client, TOA));
            let expected = if talk.client.is_ipv4() { (own, None) } else { (None, own) };
            assert_eq!(kinds(&seen.options), expected);
            let (last, _) = seen.options.split_at(toa(talk.client, TOA).len());
            assert_eq!(last, toa(talk.client, TOA), "nothing before it");
        }
    }
}

/// Nor can it in fragments, which there is no room for the right one in.
#[test]
fn fragments_are_not_believed_either() {
    let [plan, _] = plans();
    let (mut talk, _) = Talk::new(&plan, AddressOption { on_syn: false, ..TOA }, vec![]);
    let mut segment = talk.client_says(ACK, 36);
    segment.options = toa("6.6.6.6:666".parse().unwrap(), TOA);
    let whole = segment.bytes(CLIENT_MAC, PORT_MACS[0]);
    let (verdict, out) = talk.lab.director.run(CLIENTS, &edit::piece(&whole, 0, 32));
    assert_eq!(verdict, TO_SERVERS);
    assert_eq!(out[54..62], [1; 8], "nothing is left of it");
    let (verdict, rest) = talk.lab.director.run(CLIENTS, &edit::piece(&whole, 32, 64));
    assert_eq!((verdict, &rest[34..]), (TO_SERVERS, &segment.payload[4..]));
    assert_eq!(talk.told(), (0, 1));
}

/// Packets of the size that a router asks for would get too long by the option.
#[test]
fn clients_hear_of_paths_less_the_room_for_the_option() {
    for plan in plans() {
        let (mut talk, seen) = Talk::new(&plan, TOA, vec![]);
        let told = mtu_told(&mut talk.lab, &seen);
        assert_eq!(told, 1400 - u32::try_from(toa(plan.client, TOA).len()).unwrap());
        let mut data = talk.server_says(ACK, 5001);
        data.payload = vec![1];
        talk.lab.at_client(&data, talk.client);
        assert_eq!(mtu_told(&mut talk.lab, &seen), 1400);
    }
}

#[test]
fn without_room_the_packet_goes_on_alone() {
    for plan in plans() {
        let len = toa(plan.client, TOA).len();
        let unknown = |length: usize| {
            let mut option = vec![0; length];
            (option[0], option[1]) = (77, u8::try_from(length).unwrap());
            option.resize(length.next_multiple_of(4), 1);
            option
        };
        for (what, options, payload, told) in [
            ("as much as fits", unknown(40 - len), 0, true),
            ("padding gives way", [vec![1; len], unknown(40 - len)].concat(), 0, true),
            ("one byte too much", unknown(41 - len), 0, false),
            ("options that contradict themselves", [vec![77, 0, 0, 0], vec![0; 36]].concat(), 0, false),
            ("a packet as long as can be", vec![], 1500 - headers(&plan) - len, true),
            ("a longer one", vec![], 1500 - headers(&plan) - len + 1, false),
            ("the longest", vec![], 1500 - headers(&plan), false),
        ] {
            let (mut talk, _) = Talk::new(&plan, AddressOption { on_syn: false, ..TOA }, vec![]);
            let mut segment = talk.client_says(ACK, payload);
            segment.options.clone_from(&options);
            let seen = talk.lab.at_server(&segment);
            assert_eq!(seen.payload, segment.payload, "{what}");
            assert_eq!(talk.told(), (u64::from(told), u64::from(!told)), "{what}");
            if told {
                assert!(seen.options.starts_with(&toa(talk.client, TOA)), "{what}");
            } else {
                assert_eq!(seen.options, options, "{what}");
            }
        }
    }
}

fn headers(plan: &Plan) -> usize {
    if plan.client.is_ipv4() { 40 } else { 60 }
}

/// A merged frame is cut so that each piece has room for the option.
#[test]
fn pieces_of_longer_frames_leave_room() {
    for plan in plans() {
        let (mut talk, _) = Talk::new(&plan, TOA, vec![]);
        let bytes = talk.client_says(ACK, 5000).bytes(CLIENT_MAC, PORT_MACS[0]);
        let len = u16::try_from(toa(plan.client, TOA).len()).unwrap();
        assert_eq!(talk.lab.director.run(CLIENTS, &bytes).0, Verdict::Segment(1500 - len));
    }
}

#[test]
fn clients_of_the_other_ip_version_are_told_of_by_their_own() {
    let [v4, v6] = plans();
    for (client, server) in [(v4, v6), (v6, v4)] {
        let plan = Plan { server: server.server, ..client };
        let mut lab = telling(&plan, Tell::Option(TOA));
        let seen = lab.syn(3, 77);
        assert_eq!(seen.options, toa(lab.client(3), TOA));
    }
}
