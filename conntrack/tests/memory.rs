//! The table in shared memory: what it costs, and what another process finds in it.
#![cfg(all(not(loom), not(miri)))]

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use uvs_conntrack::{
    DestinationId, Flow, Identity, Limits, MemfdError, NewConnection, SharedHandle, SharedTable, TableError,
    Tick, flags,
};

const NOW: Tick = Tick(5000);

fn connection(n: u32, wide: bool) -> NewConnection {
    let [_, b, c, d] = n.to_be_bytes();
    let end = |v4: [u8; 4], last: u16, port: u16| match wide {
        true => SocketAddr::from(([0xfd00, 0, 0, 0, 0, u16::from(v4[1]), u16::from(v4[2]), last], port)),
        false => SocketAddr::from((v4, port)),
    };
    let client = end([10, b, c, d], u16::from(d), 1000);
    let service = end([192, 0, 2, 1], 0x1001, 80);
    let server = end([198, 51, 100, 1], 0x1002, 8080);
    NewConnection {
        timeout_seconds: 900,
        ..NewConnection::new(Flow::new(client, service, 6), Flow::new(server, client, 6), DestinationId(n))
    }
}

fn fill(handle: &mut SharedHandle, count: u32, wide: bool) {
    for n in 0..count {
        handle.insert(&connection(n, wide), NOW).expect("room");
        if n % 64 == 0 {
            handle.quiescent();
        }
    }
}

#[test]
fn a_connection_costs_no_more_than_promised_and_an_empty_table_next_to_nothing() {
    const COUNT: u32 = 200_000;
    for (wide, promised) in [(false, 128), (true, 192)] {
        let room = |wanted: bool| if wanted { 50_000_000 } else { 0 };
        let limits = Limits { connections4: room(!wide), connections6: room(wide), ..Limits::default() };
        let table = SharedTable::create(limits).expect("address space");
        let mut handle = table.handle().expect("a handle");
        let empty = table.stats().resident_bytes;
        assert!(empty <= 1 << 20, "an empty table for 50 million takes {empty} bytes");
        fill(&mut handle, COUNT, wide);
        // Just before the index doubles it is at its leanest, just after at its most generous: both are looked at.
        let each = table.stats().resident_bytes / u64::from(COUNT);
        assert!(each <= promised, "{each} bytes a connection, wide: {wide}");
        handle.grow();
        for _ in 0..20_000 {
            handle.quiescent();
        }
        let grown = table.stats();
        assert!(!grown.growing);
        let each = grown.resident_bytes / u64::from(COUNT);
        assert!(each <= promised, "{each} bytes a connection in a bigger index, wide: {wide}");
    }
}

fn again(table: Arc<SharedTable>) -> OwnedFd {
    let descriptor = table.descriptor().try_clone_to_owned().expect("a descriptor");
    drop(table);
    descriptor
}

#[test]
fn everything_is_there_after_a_clean_end() {
    let limits = Limits { connections4: 5000, connections6: 5000, destinations: 8, first_buckets: 16 };
    let table = SharedTable::create(limits).expect("a table");
    let identity = Identity {
        protocol: 6,
        fwmark: 0,
        service: "192.0.2.1:80".parse().expect("an address"),
        server: "198.51.100.1:8080".parse().expect("an address"),
    };
    let destination = table.destinations().intern(&identity).expect("room");
    let mut handle = table.handle().expect("a handle");
    fill(&mut handle, 3000, false);
    fill(&mut handle, 3000, true);
    let template = NewConnection { flags: flags::TEMPLATE, index_reply: false, ..connection(4000, false) };
    let template = handle.insert(&template, NOW).expect("room").id;
    let child = NewConnection { template: Some(template), destination, ..connection(4001, false) };
    handle.insert(&child, NOW).expect("room");
    drop(handle);
    let slots = table.slots_taken();

    let table = SharedTable::open(again(table)).expect("the same table");
    let mut handle = table.handle().expect("a handle");
    let stats = table.stats();
    assert_eq!((stats.connections4, stats.connections6), (3002, 3000));
    assert_eq!(table.slots_taken(), slots);
    for n in 0..3000 {
        for wide in [false, true] {
            let hit = handle.find(&connection(n, wide).client).expect("it was there");
            assert_eq!(handle.connection(hit.id).expect("the entry").destination(), DestinationId(n));
            assert!(handle.find(&connection(n, wide).real).is_some());
        }
    }
    let hit = handle.find(&child.client).expect("the controlled connection");
    let found = handle.connection(hit.id).expect("the entry");
    assert_eq!(table.destinations().get(found.destination()), Some(identity));
    let template = handle.connection(found.template().expect("controlled")).expect("the template");
    assert_eq!(template.children(), 1);
    // Expiry knows them all, and all entries can be used again.
    assert_eq!(sweep_all(&mut handle, NOW.plus_seconds(901)), 6001);
    assert_eq!(sweep_all(&mut handle, NOW.plus_seconds(962)), 1, "the template");
    handle.quiescent();
    fill(&mut handle, 5000, false);
    fill(&mut handle, 5000, true);
}

fn sweep_all(handle: &mut SharedHandle, now: Tick) -> usize {
    (0..100).map(|_| handle.sweep(now, usize::MAX, |_| {})).sum()
}

#[test]
fn what_is_no_table_is_refused() {
    let plain = File::open("/proc/self/exe").expect("a file");
    let refused = SharedTable::open(plain.into()).expect_err("no table");
    assert!(matches!(refused, TableError::Memory(MemfdError::NotATable(_))), "{refused}");
    let too_large = Limits { connections4: u32::MAX, ..Limits::default() };
    let refused = SharedTable::create(too_large).expect_err("too large");
    assert!(matches!(refused, TableError::TooLarge(u32::MAX)), "{refused}");
}
