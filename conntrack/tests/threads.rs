//! Several threads at once on one table. What must hold at every interleaving is loom's to check; this runs the real thing.
#![cfg(not(loom))]

use std::net::SocketAddr;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread;
use uvs_conntrack::{
    DestinationId, Direction, Flow, Handle, Heap, Inserted, Limits, NewConnection, Table, Tick,
};

const ROUNDS: u16 = if cfg!(miri) { 12 } else { 20_000 };
const CAPACITY: u32 = if cfg!(miri) { 200 } else { 40_000 };
const NOW: Tick = Tick(7);

fn connection(n: u16) -> NewConnection {
    let client = SocketAddr::from(([10, 0, 0, 1], n));
    let service = SocketAddr::from(([192, 0, 2, 1], 80));
    let server = SocketAddr::from(([198, 51, 100, 1], 8080));
    NewConnection::new(Flow::new(client, service, 6), Flow::new(server, client, 6), DestinationId(n.into()))
}

/// A small index that has to grow may be full for as long as a thread that the machine does not run holds up the growing.
fn insert(handle: &mut Handle<Heap>, n: u16) -> Inserted {
    loop {
        if let Ok(inserted) = handle.insert(&connection(n), NOW) {
            return inserted;
        }
        handle.quiescent();
        thread::yield_now();
    }
}

#[test]
fn racing_insertions_of_the_same_flows_make_each_once() {
    let limits = Limits { connections4: CAPACITY, connections6: 0, destinations: 0, first_buckets: 64 };
    let table = Table::on_heap(limits).expect("a table");
    let (fresh, start) = (AtomicUsize::new(0), Barrier::new(3));
    let ids: Vec<Vec<_>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let mut handle = table.handle().expect("a handle");
                    start.wait();
                    let insert = |n| {
                        let inserted = insert(&mut handle, n);
                        fresh.fetch_add(usize::from(inserted.fresh), SeqCst);
                        if n.is_multiple_of(16) {
                            handle.quiescent();
                        }
                        inserted.id
                    };
                    (0..ROUNDS).map(insert).collect()
                })
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect()
    });
    assert_eq!(fresh.load(SeqCst), usize::from(ROUNDS));
    assert!(ids.iter().all(|other| *other == ids[0]), "everybody got the same connections");
    let handle = table.handle().expect("a handle");
    assert_eq!(handle.connections().count(), usize::from(ROUNDS));
    assert_eq!(table.slots_taken(), 2 * usize::from(ROUNDS));
}

#[test]
fn what_stays_is_always_found_while_others_come_and_go_and_the_index_grows() {
    let limits = Limits { connections4: CAPACITY, connections6: 0, destinations: 0, first_buckets: 64 };
    let table = Table::on_heap(limits).expect("a table");
    let mut writer = table.handle().expect("a handle");
    let staying = ROUNDS / 10 + 1;
    for n in 0..staying {
        writer.insert(&connection(n), NOW).expect("room");
        writer.quiescent();
    }
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut handle = table.handle().expect("a handle");
            let mut looks = 0_u64;
            while !done.load(SeqCst) || looks == 0 {
                for n in 0..staying {
                    let new = connection(n);
                    for (flow, direction) in [(new.client, Direction::In), (new.real, Direction::Out)] {
                        let hit = handle.find(&flow).expect("it never left");
                        assert_eq!(hit.direction, direction);
                        let found = handle.connection(hit.id).expect("the entry");
                        assert_eq!(found.destination(), DestinationId(n.into()));
                    }
                    looks += 1;
                }
                handle.quiescent();
            }
        });
        for n in staying..ROUNDS {
            let id = insert(&mut writer, n).id;
            if n % 2 == 0 {
                assert!(writer.remove(id).is_some());
            }
            writer.quiescent();
        }
        done.store(true, SeqCst);
        reader.join().expect("nothing was missed");
    });
    assert!(cfg!(miri) || table.stats().moved > 0);
}
