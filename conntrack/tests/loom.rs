//! The table's protocols under loom: every interleaving (up to a number of preemptions) and every reordering the memory model
//! allows, of small histories.
//!
//! `RUSTFLAGS="--cfg loom" CARGO_TARGET_DIR=target/loom cargo test -p uvs-conntrack --release --test loom`
#![cfg(loom)]

use loom::thread;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use uvs_conntrack::{
    DestinationId, Direction, Flow, Handle, Heap, Hit, Inserted, Limits, NewConnection, Table, Tick,
    Timeouts, flags, protocol::tcp,
};

const NOW: Tick = Tick(1000);

/// Executions must repeat exactly, the hash too.
const SEED: [u64; 4] =
    [0x9e37_79b9_7f4a_7c15, 0xd1b5_4a32_d192_ed03, 0x2545_f491_4f6c_dd1d, 0x8cb9_2ba7_2f3d_8dd7];

fn check(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(preemptions);
    builder.max_branches = 20_000;
    builder.check(model);
}

fn table(connections: u32, first_buckets: u32) -> Arc<Table<Heap>> {
    let limits = Limits { connections4: connections, connections6: 0, destinations: 0, first_buckets };
    Table::on_heap_seeded(limits, SEED).expect("a small table")
}

/// A connection without a reply flow, like those of direct routing.
fn one_way(n: u16) -> NewConnection {
    let client = SocketAddr::from(([10, 0, 0, 1], n));
    let service = SocketAddr::from(([192, 0, 2, 1], 80));
    let server = SocketAddr::from(([198, 51, 100, 1], 80));
    let (request, reply) = (Flow::new(client, service, 6), Flow::new(server, client, 6));
    NewConnection { index_reply: false, ..NewConnection::new(request, reply, DestinationId(0)) }
}

fn handle(table: &Arc<Table<Heap>>) -> Handle<Heap> {
    table.handle().expect("a handle")
}

/// Exactly one connection has the flow, and everybody was told of it.
fn assert_one(table: &Arc<Table<Heap>>, results: &[Inserted]) {
    let handle = handle(table);
    let found = handle.find(&one_way(1).client).expect("the flow");
    assert!(results.iter().all(|result| result.id == found.id), "{results:?}, found {found:?}");
    assert_eq!(results.iter().filter(|result| result.fresh).count(), 1, "{results:?}");
    assert_eq!(handle.connections().count(), 1);
}

#[test]
fn two_insertions_of_one_flow_make_one_connection() {
    check(3, || {
        let table = table(4, 1);
        let mut mine = handle(&table);
        let mut theirs = handle(&table);
        let other = thread::spawn(move || theirs.insert(&one_way(1), NOW).expect("room"));
        let first = mine.insert(&one_way(1), NOW).expect("room");
        let second = other.join().expect("no panic");
        drop(mine);
        assert_one(&table, &[first, second]);
    });
}

#[test]
fn two_insertions_of_one_flow_make_one_connection_while_the_index_begins_to_grow() {
    check(2, || {
        let table = table(16, 1);
        let mut mine = handle(&table);
        let mut theirs = handle(&table);
        let other = thread::spawn(move || theirs.insert(&one_way(1), NOW).expect("room"));
        mine.grow();
        let first = mine.insert(&one_way(1), NOW).expect("room");
        let second = other.join().expect("no panic");
        drop(mine);
        assert_one(&table, &[first, second]);
    });
}

/// A connection to one real server by one local address and port; `exclusive` as full NAT makes it.
fn by_one_port(n: u16, exclusive: bool) -> NewConnection {
    let (local, server) =
        (SocketAddr::from(([10, 0, 0, 9], 5000)), SocketAddr::from(([198, 51, 100, 1], 80)));
    let real = Flow::new(server, local, 6);
    NewConnection { real, exclusive_reply: exclusive, index_reply: true, ..one_way(n) }
}

fn insert_together(first: NewConnection, second: NewConnection) -> (Arc<Table<Heap>>, [bool; 2]) {
    let table = table(4, 1);
    let mut mine = handle(&table);
    let mut theirs = handle(&table);
    let other = thread::spawn(move || theirs.insert(&second, NOW).is_ok());
    let made = mine.insert(&first, NOW).is_ok();
    let made = [made, other.join().expect("no panic")];
    (table, made)
}

#[test]
fn of_two_insertions_that_claim_one_reply_flow_one_succeeds() {
    check(2, || {
        let (table, made) = insert_together(by_one_port(1, true), by_one_port(2, true));
        assert_ne!(made[0], made[1]);
        let handle = handle(&table);
        let hit = handle.find(&by_one_port(1, true).real).expect("the reply flow");
        let found = handle.connection(hit.id).expect("the entry");
        let winner = if made[0] { 1 } else { 2 };
        assert_eq!((hit.direction, found.client()), (Direction::Out, one_way(winner).client));
        assert_eq!((handle.connections().count(), table.slots_taken()), (1, 2));
    });
}

#[test]
fn a_claimed_reply_flow_is_not_shared_whoever_comes_first() {
    check(2, || {
        let (table, made) = insert_together(by_one_port(1, true), by_one_port(2, false));
        assert!(made[1], "who claims nothing is refused nothing");
        let handle = handle(&table);
        let hit = handle.find(&by_one_port(1, true).real);
        let owner = hit.and_then(|hit| handle.connection(hit.id)).map(|found| found.client());
        let expected = if made[0] { 1 } else { 2 };
        assert_eq!(owner, Some(one_way(expected).client));
        assert_eq!(table.slots_taken(), if made[0] { 3 } else { 2 });
    });
}

#[test]
fn a_lookup_never_misses_what_growth_moves() {
    check(3, || {
        let table = table(16, 1);
        let mut mover = handle(&table);
        let mut reader = handle(&table);
        for n in 1..=3 {
            mover.insert(&one_way(n), NOW).expect("room");
        }
        assert!(mover.grow());
        reader.quiescent();
        let other = thread::spawn(move || {
            // Past the grace period: moves the only stripe, and finishes.
            mover.quiescent();
            let stats = mover.table().stats();
            assert!(!stats.growing && stats.moved > 0, "{stats:?}");
        });
        for n in 1..=3 {
            let hit = reader.find(&one_way(n).client);
            assert!(hit.is_some(), "flow {n} is not found");
        }
        other.join().expect("no panic");
    });
}

/// A flow that leaves its bucket when an index of one bucket doubles.
fn flow_that_moves() -> u16 {
    let found = Arc::new(Mutex::new(None));
    let result = found.clone();
    check(0, move || {
        let moves = |n: &u16| {
            let table = table(9, 1);
            let mut handle = handle(&table);
            handle.insert(&one_way(*n), NOW).expect("room");
            handle.grow()
                && (0..2).all(|_| {
                    handle.quiescent();
                    true
                })
                && table.stats().moved == 1
        };
        *result.lock().expect("not poisoned") = (1..=9).find(moves);
    });
    let flow = *found.lock().expect("not poisoned");
    flow.expect("one flow in two moves")
}

#[test]
fn an_insertion_under_way_when_the_index_grows_is_not_left_behind() {
    let flow = flow_that_moves();
    check(3, move || {
        let table = table(9, 1);
        let mut grower = handle(&table);
        let mut inserter = handle(&table);
        let other = thread::spawn(move || {
            assert!(grower.grow());
            grower.quiescent();
        });
        inserter.insert(&one_way(flow), NOW).expect("room");
        other.join().expect("no panic");
        for _ in 0..3 {
            assert!(inserter.find(&one_way(flow).client).is_some(), "left behind in the smaller index");
            inserter.quiescent();
        }
        assert!(!table.stats().growing);
    });
}

#[test]
fn what_is_removed_while_growth_moves_it_leaves_nothing() {
    let flow = flow_that_moves();
    check(3, move || {
        let table = table(9, 1);
        let mut mover = handle(&table);
        let mut remover = handle(&table);
        let id = mover.insert(&one_way(flow), NOW).expect("room").id;
        assert!(mover.grow());
        remover.quiescent();
        let other = thread::spawn(move || mover.quiescent());
        assert!(remover.remove(id).is_some());
        other.join().expect("no panic");
        assert_eq!(remover.find(&one_way(flow).client), None);
        assert_eq!(table.slots_taken(), 0, "a slot refers to what is gone");
    });
}

#[test]
fn an_entry_found_is_not_reused_under_the_finders_hands() {
    check(3, || {
        // One entry: whoever is inserted next gets the same.
        let table = table(1, 1);
        let mut owner = handle(&table);
        let mut reader = handle(&table);
        let id = owner.insert(&one_way(1), NOW).expect("room").id;
        let other = thread::spawn(move || {
            assert!(owner.remove(id).is_some());
            owner.quiescent();
            owner.insert(&one_way(2), NOW).is_ok()
        });
        for _ in 0..2 {
            if let Some(hit) = reader.find(&one_way(1).client) {
                assert_eq!(hit, Hit { id, direction: Direction::In });
                let found = reader.connection(hit.id).expect("the entry");
                assert_eq!(found.client(), one_way(1).client, "it is another connection already");
            }
            reader.quiescent();
        }
        other.join().expect("no panic");
    });
}

#[test]
fn waking_up_is_seen_by_who_reclaims() {
    check(3, || {
        let table = table(1, 1);
        let mut owner = handle(&table);
        let mut reader = handle(&table);
        let id = owner.insert(&one_way(1), NOW).expect("room").id;
        reader.sleep();
        let other = thread::spawn(move || {
            assert!(owner.remove(id).is_some());
            owner.quiescent();
            owner.insert(&one_way(2), NOW).is_ok()
        });
        reader.quiescent();
        if let Some(hit) = reader.find(&one_way(1).client) {
            assert_eq!(reader.connection(hit.id).expect("the entry").client(), one_way(1).client);
        }
        other.join().expect("no panic");
    });
}

#[test]
fn a_change_of_state_is_told_to_one_worker() {
    check(3, || {
        let table = table(1, 1);
        let mut mine = handle(&table);
        let theirs = handle(&table);
        let id = mine.insert(&one_way(1), NOW).expect("room").id;
        let syn = move |handle: &Handle<Heap>| {
            let timeouts = Timeouts::default();
            let event = tcp::Event::of(tcp::SYN);
            handle.tcp(id, Direction::In, event, tcp::Mode::Normal, &timeouts, NOW).load
        };
        let other = thread::spawn(move || syn(&theirs));
        let loads = [syn(&mine), other.join().expect("no panic")];
        let told = loads.iter().filter(|load| **load == uvs_conntrack::Load::BecameActive).count();
        assert_eq!(told, 1, "{loads:?}");
    });
}

#[test]
fn expiry_sees_a_deadline_that_came_nearer() {
    check(3, || {
        let table = table(1, 1);
        let mut mine = handle(&table);
        let mut theirs = handle(&table);
        let id = mine.insert(&NewConnection { timeout_seconds: 900, ..one_way(1) }, NOW).expect("room").id;
        let later = NOW.plus_seconds(901);
        // Expiry looks (too early to end anything but late enough to look) while a transition shortens the timeout.
        mine.connection(id).expect("the entry").touch(Direction::In, later);
        let other = thread::spawn(move || theirs.sweep(later, 8, |_| ()));
        mine.restart_timeout(id, 10, later);
        let early = other.join().expect("no panic");
        assert_eq!(early, 0);
        assert_eq!(mine.sweep(later.plus_seconds(11), 8, |_| ()), 1, "the shorter timeout was overlooked");
    });
}

#[test]
fn a_template_does_not_end_while_it_gets_a_connection() {
    for had_another in [false, true] {
        check(3, move || template_race(had_another));
    }
}

fn template_race(had_another: bool) {
    let table = table(4, 1);
    let mut mine = handle(&table);
    let mut theirs = handle(&table);
    let template = NewConnection { flags: flags::TEMPLATE, ..one_way(9) };
    let controller = mine.insert(&template, NOW).expect("room").id;
    if had_another {
        let other = NewConnection { template: Some(controller), ..one_way(2) };
        let other = mine.insert(&other, NOW).expect("room").id;
        assert!(mine.remove(other).is_some());
    }
    let later = NOW.plus_seconds(4);
    let ended = Arc::new(Mutex::new(0));
    let count = ended.clone();
    let other = thread::spawn(move || {
        theirs.sweep(later, 8, |_| *count.lock().expect("not poisoned") += 1);
    });
    let child = NewConnection { template: Some(controller), timeout_seconds: 100, ..one_way(1) };
    let child = mine.insert(&child, later).expect("room").id;
    other.join().expect("no panic");
    let controlled = mine.connection(child).expect("the entry").template().is_some();
    let template_ended = *ended.lock().expect("not poisoned") == 1;
    assert_ne!(controlled, template_ended);
}
