//! A process that writes the table is killed at a random instruction; the next one maps what it left.
//!
//! The test runs its own binary again as the victim, with the table's descriptor for standard input. The victim tells after
//! each connection how far it is.
#![cfg(all(not(loom), not(miri)))]

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::process::{Command, Stdio};
use uvs_conntrack::{DestinationId, Flow, Limits, NewConnection, SharedHandle, SharedTable, Tick};

const VICTIM: &str = "UVS_CONNTRACK_VICTIM";
const NOW: Tick = Tick(99);
const TABLES: u32 = 12;
const KILLS_PER_TABLE: u32 = 10;
/// Every connection whose number is a multiple of this is removed right after the next was made.
const REMOVED: u32 = 3;
const CAPACITY: u32 = 200_000;

fn connection(n: u32) -> NewConnection {
    let [a, b, c, d] = n.to_be_bytes();
    let client = SocketAddr::from(([10, b, c, d], 1000 + u16::from(a)));
    let service = SocketAddr::from(([192, 0, 2, 1], 80));
    let server = SocketAddr::from(([198, 51, 100, 1], 8080));
    NewConnection {
        timeout_seconds: 900,
        exclusive_reply: n.is_multiple_of(5),
        ..NewConnection::new(Flow::new(client, service, 6), Flow::new(server, client, 6), DestinationId(n))
    }
}

fn insert(handle: &mut SharedHandle, n: u32) {
    let inserted = handle.insert(&connection(n), NOW).expect("room");
    assert!(inserted.fresh, "connection {n} was there before it was made");
    if n.is_multiple_of(16) {
        handle.quiescent();
    }
}

fn remove(handle: &mut SharedHandle, n: u32) {
    let hit = handle.find(&connection(n).client).expect("made before");
    assert!(handle.remove(hit.id).is_some());
}

/// The victim's life: ends by being killed, or when its standard output is closed.
#[test]
fn victim() {
    let Ok(first) = std::env::var(VICTIM) else { return };
    let first: u32 = first.parse().expect("a number");
    let descriptor = std::io::stdin().as_fd().try_clone_to_owned().expect("the table's descriptor");
    let table = SharedTable::open(descriptor).expect("the table");
    let mut handle = table.handle().expect("a handle");
    let mut told = std::io::stderr();
    for n in first.. {
        insert(&mut handle, n);
        if told.write_all(&n.to_le_bytes()).is_err() {
            return;
        }
        if n > first && (n - 1) % REMOVED == 0 {
            remove(&mut handle, n - 1);
        }
    }
}

/// Lets a victim loose on the table from connection `first` on, kills it, and returns the last one it told of.
fn kill_one(table: BorrowedFd<'_>, first: u32, reports: u32) -> u32 {
    let descriptor = table.try_clone_to_owned().expect("a descriptor");
    let mut victim = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "victim", "--nocapture", "--test-threads=1"])
        .env(VICTIM, first.to_string())
        .stdin(Stdio::from(descriptor))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("a process");
    let mut pipe = victim.stderr.take().expect("a pipe");
    let mut word = [0; 4];
    for _ in 0..reports {
        pipe.read_exact(&mut word).expect("the victim lives until it is killed");
    }
    victim.kill().expect("it can be killed");
    victim.wait().expect("it is dead");
    let mut rest = Vec::new();
    pipe.read_to_end(&mut rest).expect("what it had told before");
    let (words, _) = rest.as_chunks::<4>();
    u32::from_le_bytes(*words.last().unwrap_or(&word))
}

/// What must be in the table, and what may be: the victim was at it when it died.
#[derive(Default)]
struct Expected {
    present: BTreeSet<u32>,
    unsure: BTreeSet<u32>,
}

impl Expected {
    /// A victim made connections from `first` on and told of those until `last`.
    fn victim_told(&mut self, first: u32, last: u32) {
        for n in first..=last {
            match n % REMOVED == 0 {
                true if n + 2 <= last => {}
                true if n + 1 == last => drop(self.unsure.insert(n)),
                _ => drop(self.present.insert(n)),
            }
        }
        self.unsure.insert(last + 1);
    }

    fn check(&self, handle: &SharedHandle, last: u32) {
        for n in (1..=last + 20).filter(|n| !self.unsure.contains(n)) {
            let found = handle.find(&connection(n).client);
            assert_eq!(found.is_some(), self.present.contains(&n), "connection {n}, told of until {last}");
            if let Some(hit) = found {
                assert_eq!(
                    handle.find(&connection(n).real).map(|reply| reply.id),
                    Some(hit.id),
                    "its replies"
                );
            }
        }
        for found in handle.connections() {
            let n = found.destination().0;
            assert!(self.present.contains(&n) || self.unsure.contains(&n), "connection {n} is nobody's");
            assert_eq!((found.client(), found.real()), (connection(n).client, connection(n).real));
        }
    }
}

#[test]
fn a_killed_writer_leaves_a_table_that_can_be_used() {
    if std::env::var(VICTIM).is_ok() {
        return;
    }
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut kills = 0;
    for _ in 0..TABLES {
        let limits = Limits { connections4: CAPACITY, connections6: 0, destinations: 0, first_buckets: 8 };
        let table = SharedTable::create(limits).expect("a table");
        let descriptor = table.descriptor().try_clone_to_owned().expect("a descriptor");
        drop(table);
        let mut expected = Expected::default();
        let mut first = 1;
        for _ in 0..KILLS_PER_TABLE {
            random = random.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
            let reports = 1 + u32::try_from(random >> 56).expect("eight bits");
            let last = kill_one(descriptor.as_fd(), first, reports);
            kills += 1;
            expected.victim_told(first, last);

            let table = SharedTable::open(descriptor.try_clone().expect("a descriptor")).expect("repaired");
            let mut handle = table.handle().expect("a handle");
            expected.check(&handle, last);
            let count = table.stats().connections4;
            assert_eq!(handle.connections().count() as u64, count, "after kill {kills}");
            assert_eq!(table.slots_taken() as u64, 2 * count, "after kill {kills}");
            // Inserting works.
            insert(&mut handle, last + 2);
            assert!(handle.find(&connection(last + 2).real).is_some());
            expected.present.insert(last + 2);
            first = last + 3;
        }
    }
    assert!(kills >= 100);
}
