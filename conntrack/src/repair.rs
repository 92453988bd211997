//! Taking a table over from the process that wrote it last, which may have died at any instruction.
//!
//! What counts is the phase of each entry. A live one was complete before it became so; everything else is free. From the
//! live entries follow the free entries, the bounds for expiry, who controls how many, and, unless the last process
//! finished in order, the index.

use crate::connection::{Class, ConnId, Connection};
use crate::flow::Direction;
use crate::index::{Levels, Reference};
use crate::layout::{CHUNK, GROW_AT, Geometry, MAX_CONNECTIONS};
use crate::meta::{Meta, Phase};
use crate::storage::Storage;
use crate::sync::{AcqRel, Relaxed, Release};
use crate::table::{Table, TableError};

/// Makes everything that is derived from the entries, in a table nobody uses yet.
pub(crate) fn take_over<S: Storage>(table: &mut Table<S>) -> Result<(), TableError> {
    let header = table.storage.header();
    let geometry = Geometry::of(&table.limits);
    let levels = Levels(header.levels.load(Relaxed));
    let first_level = header.first_level.load(Relaxed);
    if levels.target() > geometry.max_level || levels.target() < first_level {
        return Err(TableError::Damaged("the size of its index"));
    }
    if levels.is_growing() && levels.target() == 0 {
        return Err(TableError::Damaged("the size of its index"));
    }
    let capacity = [table.limits.connections4, table.limits.connections6];
    if capacity.iter().any(|capacity| *capacity > MAX_CONNECTIONS) {
        return Err(TableError::Damaged("its limits"));
    }
    for (fresh, capacity) in header.fresh.iter().zip(capacity) {
        if !(1..=capacity + 1).contains(&fresh.load(Relaxed)) {
            return Err(TableError::Damaged("how many entries were used"));
        }
    }
    let index_is_whole = header.clean.swap(0, AcqRel) == 1;
    forget_children(table);
    let slots = count_and_link(table);
    table.inherited = slots.live;
    free_the_rest(table);
    table.growth.report(i64::try_from(slots.slots).unwrap_or(i64::MAX));
    if index_is_whole {
        if levels.is_growing() {
            table.growth.resume(levels.target());
        }
    } else {
        rebuild_index(table, slots.slots, first_level, geometry.max_level);
    }
    Ok(())
}

fn all<S: Storage>(table: &Table<S>) -> impl Iterator<Item = ConnId> {
    table.touched(Class::Narrow).chain(table.touched(Class::Wide))
}

fn forget_children<S: Storage>(table: &Table<S>) {
    for entry in all(table).filter_map(|id| table.entry(id)) {
        // Most never had any: not to be written keeps their pages clean.
        if entry.cold().children.load(Relaxed) != 0 {
            entry.cold().children.store(0, Relaxed);
        }
    }
}

#[derive(Default)]
struct Count {
    live: [u64; 2],
    slots: u64,
}

/// Counts the live entries, restores who controls whom, and sets the bounds for expiry.
fn count_and_link<S: Storage>(table: &Table<S>) -> Count {
    let mut count = Count::default();
    for id in all(table) {
        let Some(connection) = table.connection(id) else { continue };
        let meta = connection.meta();
        if meta.phase() != Phase::Live {
            continue;
        }
        count.live[id.class() as usize] += 1;
        count.slots += 1 + u64::from(meta.has_replies());
        table.dues.lower(id, connection.deadline());
        let Some(template) = connection.template() else { continue };
        let controller = table
            .entry(template)
            .filter(|entry| matches!(entry.meta().phase(), Phase::Live | Phase::Detached) && template != id);
        match controller {
            Some(entry) => {
                entry.cold().children.fetch_add(1, Relaxed);
                entry.head().meta.fetch_or(Meta::CONTROLS, Relaxed);
            }
            None => connection.entry.head().template.store(ConnId::NONE.0, Relaxed),
        }
    }
    count
}

/// Collects the free entries in runs of neighbours.
fn free_the_rest<S: Storage>(table: &Table<S>) {
    for class in [Class::Narrow, Class::Wide] {
        let mut run = Vec::new();
        for id in table.touched(class) {
            let Some(entry) = table.entry(id) else { continue };
            let meta = entry.meta();
            let stays = match meta.phase() {
                Phase::Live => true,
                Phase::Detached => entry.cold().children.load(Relaxed) > 0,
                _ => false,
            };
            if !stays {
                entry.head().meta.store(meta.with_phase(Phase::Free).0, Relaxed);
                run.push(id);
            } else if meta.phase() == Phase::Detached {
                table.dues.lower(id, crate::Tick(entry.head().seen.load(Relaxed)));
            }
            if !run.is_empty() && id.number() % CHUNK == CHUNK - 1 {
                table.exchange.offer(class, std::mem::take(&mut run));
            }
        }
        if !run.is_empty() {
            table.exchange.offer(class, run);
        }
    }
}

fn rebuild_index<S: Storage>(table: &Table<S>, slots: u64, first_level: u32, max_level: u32) {
    let header = table.storage.header();
    table.index().wipe();
    let needed = slots.div_ceil(GROW_AT).next_power_of_two().trailing_zeros();
    let level = needed.clamp(first_level, max_level);
    header.levels.store(Levels::stable(level).0, Release);
    let put = |connection: &Connection<'_>, direction| {
        let hash = table.secret.hash(&connection.flow(direction));
        table.index().put(hash, Reference::new(connection.id(), direction), level)
    };
    let live =
        || all(table).filter_map(|id| table.connection(id)).filter(|it| it.meta().phase() == Phase::Live);
    // Who claims its replies comes before who shares them.
    for connection in live() {
        let meta = connection.meta();
        let found = put(&connection, Direction::In);
        if meta.has_exclusive_reply() {
            put(&connection, Direction::Out);
        }
        if !found {
            // Beyond all likelihood: it cannot be reached, so it may as well expire now.
            connection.entry.head().meta.store(meta.with_timeout(0).0, Relaxed);
            table.dues.lower(connection.id(), connection.seen());
        }
    }
    for connection in live().filter(|it| it.meta().has_replies() && !it.meta().has_exclusive_reply()) {
        let taken = share_reply(table, &connection);
        if !taken {
            put(&connection, Direction::Out);
        }
    }
}

/// Whether another connection is found by the same reply flow. One that claims it was never to share it: the killed process had
/// not looked yet. Of others that one is found which had the last packet.
fn share_reply<S: Storage>(table: &Table<S>, connection: &Connection<'_>) -> bool {
    let flow = connection.flow(Direction::Out);
    let reference = Reference::new(connection.id(), Direction::Out);
    let claimed = table.index().search(table.secret.hash(&flow), |found| {
        if found.reference.direction() != Direction::Out {
            return None;
        }
        let other =
            table.connection(found.reference.id()).filter(|other| other.flow(Direction::Out) == flow)?;
        let claimed = other.meta().has_exclusive_reply();
        if !claimed && connection.seen().since(other.seen()) > 0 {
            found.bucket.replace(found.slot, found.reference, reference);
        }
        Some(claimed)
    });
    if claimed == Some(true) {
        connection.entry.head().meta.store(connection.meta().without_replies().0, Relaxed);
    }
    claimed.is_some()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::insert::NewConnection;
    use crate::{DestinationId, Flow, Limits, Tick};
    use std::sync::Arc;

    const LIMITS: Limits = Limits { connections4: 100, connections6: 100, destinations: 1, first_buckets: 4 };

    fn connection(port: u16, exclusive_reply: bool) -> NewConnection {
        let client = ([192, 0, 2, 1], 1000).into();
        let flow = Flow::new(client, ([203, 0, 113, 1], port).into(), 6);
        let real = Flow::new(([10, 0, 0, 1], 80).into(), client, 6);
        NewConnection { exclusive_reply, ..NewConnection::new(flow, real, DestinationId(0)) }
    }

    #[test]
    fn replies_are_of_who_claims_them_or_had_the_last_packet() {
        for (what, exclusive, seen, expected) in [
            ("the second claims them, the first was killed before it looked", [false, true], [5, 1], 1),
            ("the first claims them, the second was killed before it looked", [true, false], [1, 5], 0),
            ("the second is the newer", [false, false], [1, 5], 1),
            ("the first was heard of later", [false, false], [5, 1], 0),
        ] {
            let mut table = Table::on_heap(LIMITS).expect("a small table");
            let mut handle = table.handle().expect("the first handle");
            let ids: Vec<_> = (0..2)
                .map(|n| {
                    // As it is when a worker is killed with two connections live and their replies not settled.
                    let (new, port) = (connection(80, exclusive[n]), 80 + u16::try_from(n).unwrap_or(0));
                    let new = NewConnection { client: connection(port, false).client, ..new };
                    handle.make_live(&new, Tick(seen[n]))
                })
                .collect();
            drop(handle);
            take_over(Arc::get_mut(&mut table).expect("nobody uses it")).expect("it is whole");
            let handle = table.handle().expect("a handle");
            let real = connection(80, false).real;
            assert_eq!(handle.find(&real).map(|hit| hit.id), Some(ids[expected]), "{what}");
            for (id, claims) in ids.iter().zip(exclusive) {
                let meta = handle.connection(*id).expect("live").meta();
                let replies = claims || exclusive == [false, false];
                assert_eq!(meta.has_replies(), replies, "{what}");
            }
            // And it goes with its own connection, not with the other.
            let mut handle = handle;
            handle.remove(ids[1 - expected]);
            assert_eq!(handle.find(&real).map(|hit| hit.id), Some(ids[expected]), "{what}");
        }
    }
}
