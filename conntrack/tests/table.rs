//! The table as its users see it.
#![cfg(not(loom))]

use std::net::SocketAddr;
use std::sync::Arc;
use uvs_conntrack::protocol::tcp::{ACK, Event, FIN, Mode, RST, SYN, State};
use uvs_conntrack::{
    DestinationId, Direction, Flow, Handle, Heap, Hit, Limits, Load, NewConnection, NotInserted, Sequence,
    Table, Tick, Timeouts, flags,
};

const TCP: u8 = 6;
const NOW: Tick = Tick(u32::MAX - 1000);

fn limits(connections: u32) -> Limits {
    Limits { connections4: connections, connections6: connections, destinations: 16, first_buckets: 128 }
}

fn table(connections: u32) -> (Arc<Table<Heap>>, Handle<Heap>) {
    let table = Table::on_heap(limits(connections)).expect("a small table");
    let handle = table.handle().expect("the first handle");
    (table, handle)
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

fn v4(n: u32) -> NewConnection {
    let [a, b, c, d] = n.to_be_bytes();
    let client = SocketAddr::from(([10, b, c, d], 1000 + u16::from(a)));
    connection(client, at("192.0.2.1:80"), at("198.51.100.1:8080"))
}

fn v6(n: u16) -> NewConnection {
    let client = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 1, n], 1000));
    connection(client, at("[fd01::1]:80"), at("[fd02::1]:8080"))
}

fn connection(client: SocketAddr, service: SocketAddr, server: SocketAddr) -> NewConnection {
    let request = Flow::new(client, service, TCP);
    NewConnection::new(request, Flow::new(server, client, TCP), DestinationId(3))
}

#[test]
fn both_directions_find_a_connection_of_either_family() {
    let (table, mut handle) = table(100);
    for new in [v4(7), v6(7)] {
        assert_eq!(handle.find(&new.client), None);
        let inserted = handle.insert(&new, NOW).expect("room");
        assert!(inserted.fresh);
        let id = inserted.id;
        assert_eq!(handle.find(&new.client), Some(Hit { id, direction: Direction::In }));
        assert_eq!(handle.find(&new.real), Some(Hit { id, direction: Direction::Out }));
        assert_eq!(handle.find(&new.client.reversed()), None);
        let found = handle.connection(id).expect("the entry");
        assert_eq!((found.client(), found.real()), (new.client, new.real));
        assert_eq!(
            found.flow4(found.meta(), Direction::In).map(Flow::V4),
            Some(new.client).filter(Flow::is_ipv4)
        );
        assert_eq!(found.destination(), DestinationId(3));
        assert_eq!((found.is_active(), found.state_name(), found.seconds_left(NOW)), (false, "NONE", 3));
    }
    let stats = table.stats();
    assert_eq!((stats.connections4, stats.connections6, stats.inserted), (1, 1, 2));
}

#[test]
fn a_tunnel_joins_families() {
    let (_table, mut handle) = table(100);
    let client = at("[fd00::1]:1000");
    let new = NewConnection {
        client: Flow::new(client, at("[fd01::1]:80"), TCP),
        real: Flow::new(at("10.0.0.1:80"), at("10.0.0.2:1000"), TCP),
        ..v4(0)
    };
    let id = handle.insert(&new, NOW).expect("room").id;
    assert_eq!(handle.find(&new.client), Some(Hit { id, direction: Direction::In }));
    assert_eq!(handle.find(&new.real), Some(Hit { id, direction: Direction::Out }));
    let Flow::V4(real) = new.real else { panic!("an IPv4 flow") };
    let found = handle.connection(id).expect("the entry");
    assert_eq!(found.flow4(found.meta(), Direction::Out), Some(real));
    assert_eq!(found.flow4(found.meta(), Direction::In), None);
}

#[test]
fn a_flow_that_is_there_is_used() {
    let (table, mut handle) = table(100);
    let first = handle.insert(&v4(1), NOW).expect("room");
    let again = handle.insert(&NewConnection { destination: DestinationId(9), ..v4(1) }, NOW).expect("there");
    assert_eq!((again.id, again.fresh), (first.id, false));
    assert_eq!(handle.connection(first.id).expect("the entry").destination(), DestinationId(3));
    assert_eq!(table.stats().conflicts, 1);
    let other_protocol = NewConnection {
        client: Flow::new(v4(1).client.source(), v4(1).client.destination(), 17),
        real: Flow::new(v4(1).real.source(), v4(1).real.destination(), 17),
        ..v4(1)
    };
    assert!(handle.insert(&other_protocol, NOW).expect("room").fresh);
}

#[test]
fn the_newest_connection_gets_the_replies() {
    let (table, mut handle) = table(100);
    let client = at("10.0.0.1:1000");
    let one = connection(client, at("192.0.2.1:80"), at("198.51.100.1:8080"));
    let two = connection(client, at("192.0.2.2:80"), at("198.51.100.1:8080"));
    let one = (one, handle.insert(&one, NOW).expect("room").id);
    let two = (two, handle.insert(&two, NOW).expect("room").id);
    assert_eq!(handle.find(&one.0.real), Some(Hit { id: two.1, direction: Direction::Out }));
    assert_eq!(table.stats().replies_replaced, 1);
    assert!(handle.remove(one.1).is_some());
    assert_eq!(handle.find(&one.0.real), Some(Hit { id: two.1, direction: Direction::Out }));
    assert_eq!(handle.find(&one.0.client), None);
    assert!(handle.remove(two.1).is_some());
    assert_eq!(handle.find(&one.0.real), None);
}

/// Two clients by one local address and port to one real server, and a client that has that address and port itself.
fn rivals() -> [NewConnection; 3] {
    let (local, server) = (at("203.0.113.1:5000"), at("198.51.100.1:8080"));
    let real = Flow::new(server, local, TCP);
    let exclusive = |n| NewConnection { real, exclusive_reply: true, ..v4(n) };
    [exclusive(1), exclusive(2), connection(local, at("192.0.2.1:80"), server)]
}

#[test]
fn an_exclusive_reply_flow_belongs_to_one() {
    let (table, mut handle) = table(100);
    let [one, two, other] = rivals();
    let id = handle.insert(&one, NOW).expect("room").id;
    let replies = Some(Hit { id, direction: Direction::Out });
    assert_eq!(handle.insert(&two, NOW), Err(NotInserted::ReplyTaken));
    assert_eq!((handle.find(&two.client), handle.find(&two.real)), (None, replies));
    let again = handle.insert(&one, NOW).expect("it is there");
    assert_eq!((again.id, again.fresh), (id, false), "its own claim is no obstacle");
    // Who claims nothing is a connection all the same, but gets no reply.
    let unanswered = handle.insert(&other, NOW).expect("room").id;
    assert_eq!((handle.find(&other.real), table.stats().replies_refused), (replies, 2));
    assert_eq!(table.slots_taken(), 3);
    assert!(handle.remove(id).is_some());
    assert_eq!((handle.find(&one.real), table.slots_taken()), (None, 1));
    let id = handle.insert(&two, NOW).expect("free again").id;
    assert_eq!(handle.find(&two.real), Some(Hit { id, direction: Direction::Out }));
    assert!(handle.remove(unanswered).is_some() && handle.remove(id).is_some());
    assert_eq!(table.slots_taken(), 0);
}

#[test]
fn a_shared_reply_flow_cannot_be_claimed() {
    let (table, mut handle) = table(100);
    let [one, _, other] = rivals();
    let id = handle.insert(&other, NOW).expect("room").id;
    assert_eq!(handle.insert(&one, NOW), Err(NotInserted::ReplyTaken));
    assert_eq!(handle.find(&one.real), Some(Hit { id, direction: Direction::Out }));
    assert_eq!((handle.find(&one.client), table.slots_taken()), (None, 2));
}

#[test]
fn both_sequence_numbers_change_in_one_step() {
    let (_table, mut handle) = table(100);
    let sequence = Sequence { delta: 0xffff_fff0, mark: 7 };
    let new = NewConnection { sequence, ..v4(1) };
    let id = handle.insert(&new, NOW).expect("room").id;
    let found = handle.connection(id).expect("the entry");
    assert_eq!(found.sequence(), sequence);
    let next = Sequence { mark: u32::MAX, ..sequence };
    assert!(found.swap_sequence(sequence, next) && !found.swap_sequence(sequence, next));
    assert_eq!(found.sequence(), next);
}

#[test]
fn a_full_table_refuses_and_recovers() {
    for make in [|n: u16| v4(n.into()), v6] {
        let (table, mut handle) = table(100);
        let ids: Vec<_> = (0..100).map(|n| handle.insert(&make(n), NOW).expect("room").id).collect();
        assert_eq!(handle.insert(&make(100), NOW), Err(NotInserted::Full));
        assert_eq!(table.stats().full, 1);
        assert!(handle.remove(ids[50]).is_some());
        assert_eq!(handle.insert(&make(100), NOW), Err(NotInserted::Full), "not before a quiescent point");
        handle.quiescent();
        assert!(handle.insert(&make(100), NOW).expect("room again").fresh);
        assert!((0..=100).all(|n| handle.find(&make(n).client).is_some() == (n != 50)));
    }
}

#[test]
fn an_entry_is_not_reused_while_another_handle_may_hold_it() {
    let (table, mut handle) = table(1);
    let mut other = table.handle().expect("a second handle");
    let id = handle.insert(&v4(1), NOW).expect("room").id;
    assert!(other.find(&v4(1).client).is_some());
    assert!(handle.remove(id).is_some());
    handle.quiescent();
    assert_eq!(handle.insert(&v4(2), NOW), Err(NotInserted::Full), "the other handle has not moved on");
    other.quiescent();
    handle.quiescent();
    assert!(handle.insert(&v4(2), NOW).is_ok());
    let id = handle.find(&v4(2).client).expect("inserted").id;
    assert!(handle.remove(id).is_some());
    other.sleep();
    handle.quiescent();
    assert!(handle.insert(&v4(3), NOW).is_ok(), "a sleeper holds nothing");
}

#[test]
fn what_a_handle_leaves_others_use() {
    let (table, mut handle) = table(64);
    let mut other = table.handle().expect("a second handle");
    for n in 0..64 {
        other.insert(&v4(n), NOW).expect("room");
    }
    let ids: Vec<_> = other.connections().map(|c| c.id()).collect();
    assert_eq!(ids.len(), 64);
    for id in ids {
        assert!(other.remove(id).is_some());
    }
    drop(other);
    handle.quiescent();
    for n in 0..64 {
        assert!(handle.insert(&v4(n), NOW).is_ok(), "connection {n}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "hundreds of connections take Miri minutes; the model test ends some under it")]
fn time_ends_connections_and_packets_put_it_off() {
    let (table, mut handle) = table(1000);
    for n in 0..300 {
        handle.insert(&v4(n), NOW).expect("room");
    }
    for n in 0..100 {
        handle.insert(&v6(n), NOW.plus_seconds(1)).expect("room");
    }
    assert_eq!(handle.sweep(NOW.plus_seconds(3), 100, |_| panic!("too early")), 0);
    let busy = handle.find(&v4(5).client).expect("inserted").id;
    handle.connection(busy).expect("the entry").touch(Direction::In, NOW.plus_seconds(2));
    let mut ended = Vec::new();
    let just_after = Tick(NOW.plus_seconds(3).0.wrapping_add(1));
    assert_eq!(handle.sweep(just_after, 100, |c| ended.push(c.client())), 299);
    assert_eq!(ended.len(), 299);
    assert!((0..300).all(|n| handle.find(&v4(n).client).is_some() == (n == 5)));
    assert_eq!(handle.connection(busy).expect("the entry").packets(), 1);
    assert_eq!(handle.sweep(NOW.plus_seconds(10), 100, |_| {}), 101);
    let stats = table.stats();
    assert_eq!((stats.connections4, stats.connections6, stats.expired), (0, 0, 400));
    handle.quiescent();
}

#[test]
fn states_follow_packets_and_changes_are_told_once() {
    let (_table, mut handle) = table(100);
    let timeouts = Timeouts::default();
    let id = handle.insert(&v4(1), NOW).expect("room").id;
    let mut seen = Vec::new();
    for (direction, segment) in [
        (Direction::In, SYN),
        (Direction::Out, SYN | ACK),
        (Direction::In, ACK),
        (Direction::In, ACK),
        (Direction::In, FIN | ACK),
        (Direction::Out, FIN | ACK),
    ] {
        let change = handle.tcp(id, direction, Event::of(segment), Mode::Normal, &timeouts, NOW);
        let found = handle.connection(id).expect("the entry");
        seen.push((change.load, found.state_name(), found.meta().timeout()));
    }
    let expected = [
        (Load::BecameActive, "SYN_RECV", 60),
        (Load::Same, "SYN_RECV", 60),
        (Load::Same, "ESTABLISHED", 900),
        (Load::Same, "ESTABLISHED", 900),
        (Load::BecameInactive, "CLOSE_WAIT", 60),
        (Load::Same, "TIME_WAIT", 120),
    ];
    assert_eq!(seen, expected);
}

#[test]
fn what_leaves_a_connection_at_rest_changes_nothing() {
    let (_table, mut handle) = table(100);
    let timeouts = Timeouts::default();
    let mut rested = Vec::new();
    let states = (0..=u8::MAX).map_while(State::from_raw);
    let cases = states.flat_map(|state| [0, flags::NO_OUTPUT].map(|flags| (state, flags)));
    for (n, (state, flags)) in (1..).zip(cases) {
        let timeout_seconds = timeouts.tcp(state);
        let new = NewConnection { state: state as u8, flags, timeout_seconds, ..v4(n) };
        let id = handle.insert(&new, NOW).expect("room").id;
        for direction in [Direction::In, Direction::Out] {
            for segment in [ACK, 0, SYN, FIN | ACK, RST, ACK | 0x08] {
                let connection = handle.connection(id).expect("the entry");
                if !connection.meta().rests(direction, segment, &timeouts) {
                    continue;
                }
                let before = connection.meta();
                for mode in [Mode::Normal, Mode::Secure] {
                    let change = handle.tcp(id, direction, Event::of(segment), mode, &timeouts, NOW);
                    assert_eq!((change.load, connection.meta()), (Load::Same, before));
                }
                rested.push((state, flags, direction, segment));
            }
        }
    }
    let expected = [(0, Direction::In), (0, Direction::Out), (flags::NO_OUTPUT, Direction::In)]
        .into_iter()
        .flat_map(|(flags, direction)| {
            [ACK, ACK | 0x08].map(|segment| (State::Established, flags, direction, segment))
        });
    assert_eq!(rested, expected.collect::<Vec<_>>());
}

#[test]
fn a_shorter_timeout_ends_a_connection_sooner() {
    let (_table, mut handle) = table(100);
    let timeouts = Timeouts::default();
    let id = handle.insert(&v4(1), NOW).expect("room").id;
    for segment in [SYN, ACK] {
        handle.tcp(id, Direction::In, Event::of(segment), Mode::Normal, &timeouts, NOW);
    }
    // Expiry looks, and finds fifteen minutes left.
    assert_eq!(handle.sweep(NOW.plus_seconds(61), 10, |_| {}), 0);
    handle.tcp(id, Direction::Out, Some(Event::Rst), Mode::Normal, &timeouts, NOW.plus_seconds(62));
    handle.connection(id).expect("the entry").touch(Direction::Out, NOW.plus_seconds(62));
    assert_eq!(handle.sweep(NOW.plus_seconds(72), 10, |_| {}), 0);
    assert_eq!(handle.sweep(NOW.plus_seconds(73), 10, |_| {}), 1, "CLOSE lasts ten seconds");
}

#[test]
fn a_reply_makes_a_one_way_connection_two_way() {
    let (_table, mut handle) = table(100);
    let timeouts = Timeouts::default();
    let one_way = NewConnection { flags: flags::INACTIVE | flags::NO_OUTPUT | 3, ..v4(1) };
    let id = handle.insert(&one_way, NOW).expect("room").id;
    for (direction, segment, state, no_output) in [
        (Direction::In, SYN, "SYN_RECV", true),
        (Direction::In, ACK, "ESTABLISHED", true),
        (Direction::Out, ACK, "ESTABLISHED", false),
        (Direction::In, FIN, "CLOSE_WAIT", false),
    ] {
        handle.tcp(id, direction, Event::of(segment), Mode::Normal, &timeouts, NOW);
        let found = handle.connection(id).expect("the entry");
        assert_eq!((found.state_name(), found.meta().has(flags::NO_OUTPUT)), (state, no_output));
        assert_eq!(found.meta().flags() & flags::FORWARD_MASK, 3);
    }
}

fn template(n: u8) -> NewConnection {
    let client = SocketAddr::from(([10, 9, 0, n], 0));
    let service = at("192.0.2.1:80");
    NewConnection {
        index_reply: false,
        flags: flags::TEMPLATE,
        timeout_seconds: 360,
        ..connection(client, service, at("198.51.100.1:80"))
    }
}

#[test]
fn a_template_lives_as_long_as_what_it_controls() {
    let (table, mut handle) = table(100);
    let timeouts = Timeouts::default();
    let controller = handle.insert(&template(1), NOW).expect("room").id;
    let child = NewConnection { template: Some(controller), ..v4(1) };
    let child = handle.insert(&child, NOW).expect("room").id;
    let found = |handle: &Handle<Heap>| handle.connection(controller).expect("the entry").children();
    assert_eq!(found(&handle), 1);
    assert_eq!(handle.connection(controller).expect("the entry").state_name(), "NONE");
    for segment in [SYN, ACK] {
        handle.tcp(child, Direction::In, Event::of(segment), Mode::Normal, &timeouts, NOW);
    }
    assert_eq!(handle.connection(controller).expect("the entry").state_name(), "ASSURED");
    // The template's time is over first; it gets a minute more, again and again.
    assert_eq!(handle.sweep(NOW.plus_seconds(361), 10, |_| panic!("nothing ends")), 0);
    assert_eq!(handle.connection(controller).expect("the entry").seconds_left(NOW.plus_seconds(361)), 60);
    assert_eq!(table.stats().rearmed, 1);
    assert_eq!(handle.sweep(NOW.plus_seconds(899), 10, |_| panic!("nothing ends")), 0);
    assert_eq!(handle.sweep(NOW.plus_seconds(901), 10, |c| assert!(!c.is_template())), 1);
    assert_eq!(found(&handle), 0);
    assert_eq!(handle.sweep(NOW.plus_seconds(1022), 10, |c| assert!(c.is_template())), 1);
}

#[test]
fn a_template_removed_is_found_no_more_but_stays_for_its_connections() {
    let (table, mut handle) = table(2);
    let controller = handle.insert(&template(1), NOW).expect("room").id;
    let child = NewConnection { template: Some(controller), ..v4(1) };
    let child = handle.insert(&child, NOW).expect("room").id;
    assert!(handle.remove(controller).is_some());
    assert!(handle.remove(controller).is_none());
    assert_eq!(handle.find(&template(1).client), None);
    handle.quiescent();
    assert_eq!(handle.insert(&template(1), NOW), Err(NotInserted::Full), "its entry is not free yet");
    assert_eq!(table.stats().connections4, 1);
    assert!(handle.remove(child).is_some());
    assert_eq!(table.stats().connections4, 0);
    assert_eq!(handle.sweep(NOW.plus_seconds(400), 10, |_| panic!("it was accounted for when removed")), 0);
    let stats = table.stats();
    assert_eq!((stats.connections4, stats.expired), (0, 0));
    handle.quiescent();
    assert!(handle.insert(&template(1), NOW).is_ok());
    let orphan = NewConnection { template: Some(controller), ..v4(2) };
    let orphan = handle.insert(&orphan, NOW).expect("room").id;
    assert!(handle.connection(orphan).is_some());
}

#[test]
fn the_index_grows_with_its_connections_and_loses_none() {
    const COUNT: u16 = if cfg!(miri) { 60 } else { 2000 };
    let limits = Limits { first_buckets: 4, ..limits(COUNT.into()) };
    let table = Table::on_heap(limits).expect("a small table");
    let mut handle = table.handle().expect("the first handle");
    let before = table.stats().buckets;
    for n in 0..COUNT {
        handle.insert(&v4(n.into()), NOW).expect("room");
        handle.insert(&v6(n), NOW).expect("room");
        if n % 4 == 0 {
            handle.quiescent();
        }
        if n % 16 == 0 {
            let known =
                |n: u16| handle.find(&v4(n.into()).client).is_some() && handle.find(&v6(n).real).is_some();
            assert!((0..=n).step_by(7).all(known), "after {n}");
        }
    }
    for _ in 0..200 {
        handle.quiescent();
    }
    let stats = table.stats();
    assert!(!stats.growing);
    let slots_per_bucket = 4 * u64::from(COUNT) / stats.buckets;
    assert!(slots_per_bucket <= 8 && stats.buckets > before && stats.moved > 0, "{stats:?}");
    let all = |n: u16| [v4(n.into()).client, v4(n.into()).real, v6(n).client, v6(n).real];
    assert!((0..COUNT).all(|n| all(n).iter().all(|flow| handle.find(flow).is_some())));
}

#[test]
fn a_listing_in_parts_neither_misses_nor_repeats_what_stays() {
    let (_table, mut handle) = table(100);
    let connections: Vec<_> = (1..=4).map(v4).chain((1..=4).map(v6)).collect();
    let ids: Vec<_> = connections.iter().map(|new| handle.insert(new, NOW).expect("room").id).collect();
    let part = |handle: &Handle<Heap>, after: u32, length: usize| {
        let part = handle.connections_after(after).take(length);
        let part: Vec<_> = part.map(|(place, connection)| (place, connection.client())).collect();
        (part.last().map(|(place, _)| *place), part.into_iter().map(|(_, client)| client).collect::<Vec<_>>())
    };
    let clients = |of: &[NewConnection]| of.iter().map(|new| new.client).collect::<Vec<_>>();
    let (place, first) = part(&handle, 0, 3);
    assert_eq!(first, clients(&connections[..3]));
    // One of those listed ends, and one of those still to be listed.
    for id in [ids[1], ids[4]] {
        handle.remove(id);
    }
    let (place, second) = part(&handle, place.expect("a place"), 2);
    assert_eq!(second, [connections[3].client, connections[5].client]);
    let (place, third) = part(&handle, place.expect("a place"), 9);
    assert_eq!(third, clients(&connections[6..]));
    assert_eq!(part(&handle, place.expect("a place"), 9), (None, Vec::new()));
    assert_eq!(part(&handle, u32::MAX, 9).1, Vec::new());
}
