//! lblcr, locality-based least-connection with replication: as lblc, but an address that one destination cannot take alone gets
//! a set of them.

use crate::cache::{Cache, EXPIRATION, is_reached};
use crate::least::Rank;
use crate::locality::{Number, Servers};
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, State};
use crate::tree::{Summary, Tree};
use crate::wlc::quotient;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;

/// A set larger than this keeps its order instead of being walked.
const SMALL: usize = 16;
/// So many changes are remembered for the sets to catch up with.
const REMEMBERED: usize = 4096;

/// Exported state: the cache's four numbers, then of each address its last use, its set's last change and its set's size; as
/// destinations, each address (port 0) and then its set, the oldest member first.
#[derive(Debug, Default)]
pub(crate) struct Replicating {
    servers: Servers,
    cache: Cache<Set>,
    changes: Changes,
}

/// The destinations that an address has.
#[derive(Debug, Default)]
struct Set {
    /// The newest last; the kernel's walks begin with it.
    members: Vec<Number>,
    /// When one was added or taken out.
    modified: u32,
    /// Of a set that is not small.
    order: Option<Box<Order>>,
}

/// A set's members by load.
#[derive(Debug)]
struct Order {
    places: HashMap<Number, usize, BuildHasherDefault<Spread>>,
    ranks: Tree<Rank>,
    /// How many changes it knows.
    seen: u64,
}

/// Numbers are our own: nobody chooses them so that they collide.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, number: u32) {
        self.0 = (self.0 ^ u64::from(number)).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The destinations whose load or weight changed last.
#[derive(Debug, Default)]
struct Changes {
    last: VecDeque<Number>,
    /// How many there ever were.
    count: u64,
}

impl Changes {
    #[inline]
    fn note(&mut self, number: Number) {
        if self.last.len() == REMEMBERED {
            self.last.pop_front();
        }
        self.last.push_back(number);
        self.count += 1;
    }

    /// Those after the first `seen`; `None` when there are more of them than `most`, or than are remembered.
    fn since(&self, seen: u64, most: usize) -> Option<impl Iterator<Item = Number>> {
        let news = usize::try_from(self.count - seen).ok().filter(|news| *news <= most)?;
        let known = self.last.len().checked_sub(news)?;
        Some(self.last.range(known..).copied())
    }
}

fn member<'a>(pool: &'a Pool, servers: &Servers, number: Number) -> Option<(Slot, &'a Destination)> {
    let slot = servers.slot(number)?;
    Some((slot, pool.get(slot)?))
}

fn load(destination: &Destination) -> u128 {
    quotient(destination.overhead(), destination.weight)
}

fn rank(pool: &Pool, servers: &Servers, number: Number, place: usize) -> Rank {
    let usable = member(pool, servers, number).filter(|(_, it)| it.usable());
    usable.map_or(Rank::EMPTY, |(_, it)| Rank::new(load(it), place))
}

impl Order {
    fn new(pool: &Pool, servers: &Servers, members: &[Number], changes: &Changes) -> Self {
        let ranks = members.iter().enumerate().map(|(place, number)| rank(pool, servers, *number, place));
        let places = members.iter().enumerate().map(|(place, number)| (*number, place));
        Order { places: places.collect(), ranks: Tree::new(ranks), seen: changes.count }
    }
}

impl Set {
    fn one(number: Number, now: u32) -> Self {
        Set { members: vec![number], modified: now, order: None }
    }

    /// Brings the order of a set that is not small up to date. A change costs no more than a walk would.
    fn order(&mut self, pool: &Pool, servers: &Servers, changes: &Changes) -> Option<&mut Order> {
        if self.members.len() <= SMALL {
            self.order = None;
            return None;
        }
        let members = &self.members;
        let anew = || Box::new(Order::new(pool, servers, members, changes));
        let order = self.order.get_or_insert_with(anew);
        match changes.since(order.seen, members.len() / 4) {
            Some(changed) => {
                for number in changed {
                    if let Some(&place) = order.places.get(&number) {
                        order.ranks.set(place, rank(pool, servers, number, place));
                    }
                }
                order.seen = changes.count;
            }
            None => *order = anew(),
        }
        Some(order)
    }

    /// The least loaded member; the newest of equals.
    fn least(&mut self, pool: &Pool, servers: &Servers, changes: &Changes) -> Option<Slot> {
        if let Some(order) = self.order(pool, servers, changes) {
            let best = order.ranks.all();
            let number = (best != Rank::EMPTY).then(|| self.members[best.position()])?;
            return servers.slot(number);
        }
        let members = self.members.iter().rev().filter_map(|number| member(pool, servers, *number));
        members.filter(|(_, it)| it.usable()).min_by_key(|(_, it)| load(it)).map(|(slot, _)| slot)
    }

    fn insert(&mut self, number: Number, now: u32, pool: &Pool, servers: &Servers, changes: &Changes) {
        let place = self.members.len();
        if let Some(order) = self.order(pool, servers, changes) {
            if order.places.contains_key(&number) {
                return;
            }
            order.places.insert(number, place);
            order.ranks.set(place, rank(pool, servers, number, place));
        } else if self.members.contains(&number) {
            return;
        }
        self.members.push(number);
        self.modified = now;
    }

    /// Takes out the most loaded member, if the set has not changed for long. The load of one that was removed from the service
    /// is not known any more, and it stays.
    fn shrink(&mut self, now: u32, pool: &Pool, servers: &Servers) {
        let due = self.modified.wrapping_add(EXPIRATION).wrapping_add(1);
        if self.members.len() < 2 || !is_reached(now, due) {
            return;
        }
        let loads = self.members.iter().enumerate().filter_map(|(place, number)| {
            let (_, it) = member(pool, servers, *number).filter(|(_, it)| it.weight > 0)?;
            Some((load(it), place))
        });
        if let Some((_, place)) = loads.max() {
            self.members.remove(place);
            self.order = None;
            self.modified = now;
        }
    }
}

impl Scheduler for Replicating {
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        let (address, now) = (request.destination.ip(), request.now);
        if self.cache.expire(now) {
            let members = self.cache.iter().flat_map(|(_, _, set)| &set.members);
            let remembered: HashSet<Number> = members.copied().collect();
            self.servers.forget_all_but(&remembered);
        }
        let Replicating { servers, cache, changes } = self;
        let Some(set) = cache.get(address, now) else {
            let slot = servers.least(pool)?;
            if let Some(number) = servers.number(slot) {
                cache.set(address, Set::one(number, now), now);
            }
            return Some(slot);
        };
        let chosen = set.least(pool, servers, changes);
        set.shrink(now, pool, servers);
        let fit = |slot: &Slot| pool.get(*slot).is_some_and(|it| !servers.should_relieve(it));
        if let Some(slot) = chosen.filter(fit) {
            return Some(slot);
        }
        let slot = servers.least(pool)?;
        if let Some(number) = servers.number(slot) {
            set.insert(number, now, pool, servers, changes);
        }
        Some(slot)
    }

    fn attached(&mut self, pool: &Pool) {
        self.servers.attached(pool);
        self.cache = Cache::default();
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.servers.added(pool, slot);
        self.note(slot);
    }

    fn removed(&mut self, pool: &Pool, gone: &Removed) {
        self.note(gone.slot);
        self.servers.removed(pool, gone);
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.servers.changed(pool, slot);
        self.note(slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.servers.changed(pool, slot);
        self.note(slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.servers.renumbered(pool);
    }

    fn export(&self, _pool: &Pool) -> State {
        let mut state = State { numbers: self.cache.progress().to_vec(), destinations: Vec::new() };
        for (address, last_use, set) in self.cache.iter() {
            let members: Vec<_> =
                set.members.iter().filter_map(|number| self.servers.address(*number)).collect();
            state.numbers.extend([u64::from(last_use), u64::from(set.modified), members.len() as u64]);
            state.destinations.push(SocketAddr::new(address, 0));
            state.destinations.extend(members);
        }
        state
    }

    fn import(&mut self, _pool: &Pool, state: &State) {
        let (progress, sets) = state.numbers.split_at(state.numbers.len().min(4));
        let mut destinations = state.destinations.iter();
        let sets = sets.chunks_exact(3).map_while(|set| {
            let address = destinations.next()?.ip();
            let members = destinations.by_ref().take(usize::try_from(set[2]).ok()?);
            let members = members.map(|server| self.servers.number_of(*server)).collect();
            let time = |number: u64| u32::try_from(number).ok();
            Some((address, time(set[0])?, Set { members, modified: time(set[1])?, order: None }))
        });
        self.cache.resume(progress, sets);
    }
}

impl Replicating {
    #[inline]
    fn note(&mut self, slot: Slot) {
        if let Some(number) = self.servers.number(slot) {
            self.changes.note(number);
        }
    }
}
