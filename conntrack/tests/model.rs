//! The table against a model: whatever is done to it, it holds what a plain map would hold.
#![cfg(not(loom))]

use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use uvs_conntrack::{
    DestinationId, Direction, Flow, Handle, Heap, Limits, NewConnection, NotInserted, Storage, Table, Tick,
};

const CAPACITY: usize = 96;

#[derive(Clone, Debug)]
enum Step {
    Insert { key: u16, seconds: u32 },
    Remove { key: u16 },
    Touch { key: u16 },
    Pass { seconds: u32 },
    Sweep,
    Quiescent { handle: usize },
    Sleep { handle: usize },
}

fn steps() -> impl Strategy<Value = Vec<(usize, Step)>> {
    let key = 0..160_u16;
    let step = prop_oneof![
        8 => (key.clone(), 1..50_u32).prop_map(|(key, seconds)| Step::Insert { key, seconds }),
        3 => key.clone().prop_map(|key| Step::Remove { key }),
        2 => key.prop_map(|key| Step::Touch { key }),
        1 => (1..20_u32).prop_map(|seconds| Step::Pass { seconds }),
        2 => Just(Step::Sweep),
        4 => (0..2_usize).prop_map(|handle| Step::Quiescent { handle }),
        1 => (0..2_usize).prop_map(|handle| Step::Sleep { handle }),
    ];
    vec((0..2_usize, step), 1..if cfg!(miri) { 40 } else { 600 })
}

/// A third of the keys is IPv6; some share their reply flow with another, and some would have it for themselves.
fn connection(key: u16, seconds: u32) -> NewConnection {
    let v6 = key.is_multiple_of(3);
    let port = 1000 + key / 2;
    let service = 1 + key % 2;
    let address = |v4: [u8; 4], v6: [u16; 8], port: u16, wide: bool| {
        if wide { SocketAddr::from((v6, port)) } else { SocketAddr::from((v4, port)) }
    };
    let client = address([10, 0, 0, 1], [0xfd00, 0, 0, 0, 0, 0, 0, 1], port, v6);
    let service = address([192, 0, 2, 1], [0xfd01, 0, 0, 0, 0, 0, 0, 1], 80 + service, v6);
    let server = address([198, 51, 100, 1], [0xfd02, 0, 0, 0, 0, 0, 0, 1], 80, v6);
    NewConnection {
        timeout_seconds: seconds,
        index_reply: !key.is_multiple_of(5),
        exclusive_reply: key.is_multiple_of(4),
        ..NewConnection::new(
            Flow::new(client, service, 6),
            Flow::new(server, client, 6),
            DestinationId(key.into()),
        )
    }
}

struct Known {
    seconds: u32,
    seen: Tick,
}

impl Known {
    fn is_over(&self, now: Tick) -> bool {
        self.seen.plus_seconds(self.seconds).is_before(now)
    }
}

fn agree<S: Storage>(
    table: &Arc<Table<S>>,
    handle: &Handle<S>,
    model: &HashMap<u16, Known>,
    replies: &HashMap<Flow, u16>,
) -> Result<(), TestCaseError> {
    for key in 0..160 {
        let new = connection(key, 1);
        let found = handle.find(&new.client).map(|hit| {
            let found = handle.connection(hit.id).expect("the entry");
            (hit.direction, found.destination().0, found.client(), found.real())
        });
        let expected = model.get(&key).map(|_| (Direction::In, u32::from(key), new.client, new.real));
        prop_assert_eq!(found, expected, "key {}", key);
        let reply = handle
            .find(&new.real)
            .map(|hit| (hit.direction, handle.connection(hit.id).expect("the entry").destination().0));
        let expected = replies.get(&new.real).map(|key| (Direction::Out, u32::from(*key)));
        prop_assert_eq!(reply, expected, "reply of key {}", key);
    }
    prop_assert_eq!(handle.connections().count(), model.len());
    prop_assert_eq!(table.slots_taken(), model.len() + replies.len());
    let stats = table.stats();
    prop_assert_eq!(stats.connections4 + stats.connections6, model.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 96 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_table_holds_what_a_map_would(steps in steps(), first_level in 0..5_u32) {
        let capacity = u32::try_from(CAPACITY).expect("small");
        let limits = Limits {
            connections4: capacity, connections6: capacity, destinations: 0, first_buckets: 1 << first_level,
        };
        let table = Table::<Heap>::on_heap(limits).expect("a small table");
        let mut handles = [table.handle().expect("a handle"), table.handle().expect("a handle")];
        let mut model: HashMap<u16, Known> = HashMap::new();
        let mut replies: HashMap<Flow, u16> = HashMap::new();
        let mut now = Tick(u32::MAX - 500);
        // A connection's end takes its reply flow along, unless a newer one has taken that over.
        let end = |replies: &mut HashMap<Flow, u16>, key: u16| {
            replies.retain(|_, owner| *owner != key);
        };
        for (worker, step) in steps {
            match step {
                Step::Insert { key, seconds } => {
                    handles[worker].quiescent();
                    let new = connection(key, seconds);
                    let rival = replies.get(&new.real).filter(|_| !model.contains_key(&key));
                    let inserted = match handles[worker].insert(&new, now) {
                        Ok(inserted) => inserted,
                        // Full: entries given up may still be in the other handle's view, or the index still growing.
                        Err(NotInserted::Full) => continue,
                        Err(NotInserted::ReplyTaken) => {
                            prop_assert!(new.exclusive_reply && rival.is_some());
                            continue;
                        }
                    };
                    prop_assert!(!new.exclusive_reply || rival.is_none(), "two with the reply flow of one");
                    prop_assert_eq!(inserted.fresh, !model.contains_key(&key));
                    if inserted.fresh {
                        model.insert(key, Known { seconds, seen: now });
                        let claimed = rival.is_some_and(|rival| connection(*rival, 1).exclusive_reply);
                        if (new.index_reply || new.exclusive_reply) && !claimed {
                            replies.insert(new.real, key);
                        }
                    }
                }
                Step::Remove { key } => {
                    handles[worker].quiescent();
                    let hit = handles[worker].find(&connection(key, 1).client);
                    prop_assert_eq!(hit.is_some(), model.remove(&key).is_some());
                    if let Some(hit) = hit {
                        let ended = handles[worker].remove(hit.id).map(|c| c.destination().0);
                        prop_assert_eq!(ended, Some(key.into()));
                        end(&mut replies, key);
                    }
                }
                Step::Touch { key } => {
                    handles[worker].quiescent();
                    if let Some(hit) = handles[worker].find(&connection(key, 1).client) {
                        handles[worker].connection(hit.id).expect("the entry").touch(hit.direction, now);
                        model.get_mut(&key).expect("found").seen = now;
                    }
                }
                Step::Pass { seconds } => now = now.plus_seconds(seconds),
                Step::Sweep => {
                    handles[worker].quiescent();
                    let mut ended = Vec::new();
                    handles[worker].sweep(now, 100, |c| ended.push(c.destination().0));
                    ended.sort_unstable();
                    let mut over: Vec<u16> =
                        model.iter().filter(|(_, known)| known.is_over(now)).map(|(key, _)| *key).collect();
                    over.sort_unstable();
                    prop_assert_eq!(ended, over.iter().map(|key| u32::from(*key)).collect::<Vec<_>>());
                    for key in over {
                        model.remove(&key);
                        end(&mut replies, key);
                    }
                }
                Step::Quiescent { handle } => handles[handle].quiescent(),
                Step::Sleep { handle } => handles[handle].sleep(),
            }
        }
        handles[0].quiescent();
        agree(&table, &handles[0], &model, &replies)?;
        for _ in 0..10 {
            handles.iter_mut().for_each(Handle::quiescent);
        }
        agree(&table, &handles[0], &model, &replies)?;
        prop_assert!(!table.stats().growing);
    }
}
