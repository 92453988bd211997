//! What connections need to know of their real server, for all services: is it there, and how many connections has it.
//!
//! Workers read and change this without a lock. A destination's place is named by its [`DestinationId`], which is also what
//! the connection table stores; it outlives the destination's removal until its last connection is gone, so that a real
//! server that comes back finds its connections and counters (IPVS's trash).

use crate::chunked::Chunked;
use crate::counters::{Counters, Traffic};
use crate::forward::has_local_address;
use crate::plan::{AddressOption, Plan, Tell};
use crate::service::{Locals, ServiceKey};
use arc_swap::ArcSwapOption;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uvs_conntrack::{Connection, DestinationId, SharedTable, Tick};

/// How long a removed destination without connections is remembered, in seconds (IPVS: 120).
const TRASH_SECONDS: u32 = 120;

/// Services there may be at least; more with more destinations.
const SERVICES: usize = 1 << 20;

/// A service's place in [`Destinations`]: where changes of its destinations' load are noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ServiceId(u32);

/// One destination as the workers see it.
#[derive(Debug, Default)]
struct Runtime {
    /// Where its service notes changes of its load, and its slot there. Written by commands.
    standing: Standing,
    /// Written when a connection begins, ends or changes its activity.
    load: Load,
    /// Written by commands, read by packets of the methods that need it. Nothing: the default.
    plan: ArcSwapOption<Plan>,
    /// Its address, where replies do not show it: by direct routing and tunnels.
    server: ArcSwapOption<IpAddr>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Standing {
    service: AtomicU32,
    slot: AtomicU32,
    /// Whether its weight is 0.
    quiescent: AtomicBool,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Load {
    /// Active connections in the upper half, inactive ones in the lower: one addition moves a connection between them.
    connections: AtomicU64,
    /// Whether the destination is noted in its service's list of changed ones.
    noted: AtomicBool,
    /// The destination noted before it.
    next: AtomicU32,
    /// Persistence templates that lead to it.
    templates: AtomicU32,
}

const ACTIVE: u64 = 1 << 32;
const INACTIVE: u64 = 1;

fn one(active: bool) -> u64 {
    if active { ACTIVE } else { INACTIVE }
}

/// An option that tells clients' addresses as one word, which is read whole; zero: none.
fn word_of(tell: Tell) -> u32 {
    let Tell::Option(AddressOption { kind, kind_ipv6, on_syn }) = tell else { return 0 };
    u32::from_ne_bytes([1, kind, kind_ipv6, on_syn.into()])
}

/// How many connections a destination has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Connections {
    /// Those in an active protocol state.
    pub active: u32,
    /// The others.
    pub inactive: u32,
}

/// The head of a service's list of destinations whose load changed.
#[derive(Debug)]
#[repr(align(64))]
struct Noted(AtomicU32);

impl Default for Noted {
    fn default() -> Self {
        Noted(AtomicU32::new(DestinationId::NONE.0))
    }
}

/// A destination's name for good: the service it belongs to and its own address.
type Name = (ServiceKey, SocketAddr);

#[derive(Debug)]
struct Trashed {
    id: DestinationId,
    /// What its counters start from.
    base: Traffic,
    since: Tick,
}

#[derive(Debug)]
struct Holder {
    id: ServiceId,
    /// The service itself, its destinations, and those of them in the trash.
    count: usize,
}

#[derive(Debug, Default)]
struct Registry {
    trash: HashMap<Name, Trashed>,
    services: HashMap<ServiceKey, Holder>,
    free: Vec<ServiceId>,
    used: u32,
}

/// All destinations of all services, in use or in the trash.
#[derive(Debug)]
pub struct Destinations {
    /// Read for every packet of a client, written by commands; dense, so that all of it stays in a cache.
    available: Box<[AtomicBool]>,
    /// The same of the options that tell clients' addresses: see [`word_of`].
    options: Box<[AtomicU32]>,
    runtimes: Chunked<Runtime>,
    /// See [`Destinations::plans`].
    plans: AtomicU64,
    noted: Chunked<Noted>,
    counters: Arc<Counters>,
    locals: Locals,
    table: Arc<SharedTable>,
    registry: Mutex<Registry>,
}

/// A destination's place, and what its counters held when it took it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) id: DestinationId,
    pub(super) base: Traffic,
}

impl Destinations {
    /// No destination yet; `table` gives them their ids, `counters` count for them.
    pub fn new(table: Arc<SharedTable>, counters: Arc<Counters>) -> Arc<Self> {
        let capacity = table.limits().destinations as usize;
        Arc::new(Destinations {
            available: (0..capacity).map(|_| AtomicBool::new(false)).collect(),
            options: (0..capacity).map(|_| AtomicU32::new(0)).collect(),
            runtimes: Chunked::new(capacity),
            plans: AtomicU64::new(0),
            noted: Chunked::new(capacity.max(SERVICES)),
            counters,
            locals: Locals::default(),
            table,
            registry: Mutex::default(),
        })
    }

    /// The workers' counters.
    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    /// Whether the destination is one of its service's now.
    #[inline]
    pub fn is_available(&self, id: DestinationId) -> bool {
        self.available.get(id.0 as usize).is_some_and(|available| available.load(Ordering::Relaxed))
    }

    /// How often plans have changed: who read one at a time reads the same as long as that is.
    #[inline]
    pub(crate) fn plans(&self) -> u64 {
        self.plans.load(Ordering::Acquire)
    }

    /// What the destination's forwarding method needs to know of it.
    pub fn plan(&self, id: DestinationId) -> Plan {
        self.runtime(id).and_then(|runtime| runtime.plan.load().as_deref().copied()).unwrap_or_default()
    }

    /// The option that tells the destination its clients' addresses, if that is how it learns them.
    #[inline]
    pub(crate) fn address_option(&self, id: DestinationId) -> Option<AddressOption> {
        let [used, kind, kind_ipv6, on_syn] =
            self.options.get(id.0 as usize)?.load(Ordering::Relaxed).to_ne_bytes();
        (used != 0).then_some(AddressOption { kind, kind_ipv6, on_syn: on_syn != 0 })
    }

    pub(super) fn set_plan(&self, id: DestinationId, plan: Plan) {
        if let Some(word) = self.options.get(id.0 as usize) {
            word.store(word_of(plan.tell), Ordering::Relaxed);
        }
        if let Some(runtime) = self.runtime(id) {
            runtime.plan.store((plan != Plan::default()).then(|| Arc::new(plan)));
            self.plans.fetch_add(1, Ordering::Release);
        }
    }

    /// The address of a destination that packets of others reach by direct routing or a tunnel.
    pub(crate) fn server(&self, id: DestinationId) -> Option<IpAddr> {
        self.runtime(id).and_then(|runtime| runtime.server.load().as_deref().copied())
    }

    pub(super) fn set_server(&self, id: DestinationId, server: IpAddr) {
        if let Some(runtime) = self.runtime(id) {
            runtime.server.store(Some(Arc::new(server)));
        }
    }

    /// How many connections the destination has.
    pub fn connections(&self, id: DestinationId) -> Connections {
        let word = self.runtime(id).map_or(0, |runtime| runtime.load.connections.load(Ordering::Acquire));
        #[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
        Connections { active: (word >> 32) as u32, inactive: word as u32 }
    }

    /// Counts a new connection. Its service's lock is held, so the scheduler is told right away.
    pub(crate) fn began(&self, id: DestinationId, active: bool) {
        if let Some(runtime) = self.runtime(id) {
            runtime.load.connections.fetch_add(one(active), Ordering::AcqRel);
        }
    }

    /// How many persistence templates lead to the destination.
    pub fn templates(&self, id: DestinationId) -> u32 {
        self.runtime(id).map_or(0, |runtime| runtime.load.templates.load(Ordering::Acquire))
    }

    /// Counts a new template.
    pub(crate) fn kept(&self, id: DestinationId) {
        if let Some(runtime) = self.runtime(id) {
            runtime.load.templates.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// Whether the destination has weight 0.
    pub(crate) fn is_quiescent(&self, id: DestinationId) -> bool {
        self.runtime(id).is_some_and(|runtime| runtime.standing.quiescent.load(Ordering::Relaxed))
    }

    pub(super) fn set_quiescent(&self, id: DestinationId, quiescent: bool) {
        if let Some(runtime) = self.runtime(id) {
            runtime.standing.quiescent.store(quiescent, Ordering::Relaxed);
        }
    }

    /// The index of its slot in its service.
    pub(super) fn slot(&self, id: DestinationId) -> Option<usize> {
        self.runtime(id).map(|runtime| runtime.standing.slot.load(Ordering::Relaxed) as usize)
    }

    /// A connection became active or inactive.
    pub(crate) fn moved(&self, id: DestinationId, active: bool) {
        self.change(id, one(active).wrapping_sub(one(!active)));
    }

    /// A connection or template ended.
    pub fn ended(&self, connection: &Connection<'_>) {
        if connection.is_template() {
            if let Some(runtime) = self.runtime(connection.destination()) {
                runtime.load.templates.fetch_sub(1, Ordering::AcqRel);
            }
            return;
        }
        self.change(connection.destination(), 0_u64.wrapping_sub(one(connection.is_active())));
        if has_local_address(connection.meta().flags()) {
            self.locals.ended(connection);
        }
    }

    /// The local addresses of full NAT.
    pub fn locals(&self) -> &Locals {
        &self.locals
    }

    fn change(&self, id: DestinationId, by: u64) {
        let Some(runtime) = self.runtime(id) else { return };
        runtime.load.connections.fetch_add(by, Ordering::AcqRel);
        // Who takes the list clears the mark before it reads the count: either it sees this change or the mark is set anew.
        if runtime.load.noted.swap(true, Ordering::AcqRel) {
            return;
        }
        let Some(head) = self.noted.get(runtime.standing.service.load(Ordering::Relaxed) as usize) else {
            return;
        };
        let mut first = head.0.load(Ordering::Relaxed);
        loop {
            runtime.load.next.store(first, Ordering::Relaxed);
            match head.0.compare_exchange_weak(first, id.0, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(newer) => first = newer,
            }
        }
    }

    /// Takes the destinations of a service whose load changed since the last time: their ids and slots' indices.
    #[inline]
    pub(super) fn take_changed(&self, service: ServiceId, mut each: impl FnMut(DestinationId, usize)) {
        let Some(head) = self.noted.get(service.0 as usize) else { return };
        if head.0.load(Ordering::Relaxed) == DestinationId::NONE.0 {
            return;
        }
        let mut next = head.0.swap(DestinationId::NONE.0, Ordering::Acquire);
        while let Some(runtime) = self.runtime(DestinationId(next)) {
            let id = DestinationId(next);
            next = runtime.load.next.load(Ordering::Relaxed);
            runtime.load.noted.swap(false, Ordering::AcqRel);
            each(id, runtime.standing.slot.load(Ordering::Relaxed) as usize);
        }
    }

    /// A place for a service that begins. The same one as before while destinations of it are in the trash. `None` when all
    /// are taken.
    pub(super) fn enter_service(&self, key: ServiceKey) -> Option<ServiceId> {
        let mut registry = self.registry();
        let id = registry.hold(key);
        if self.noted.make(id.0 as usize).is_none() {
            registry.release(key);
            return None;
        }
        Some(id)
    }

    /// The service is gone; its destinations were removed before.
    pub(super) fn leave_service(&self, key: ServiceKey) {
        self.registry().release(key);
    }

    /// A place for a destination: its old one if it is still in the trash. `None` when all are taken.
    pub(super) fn enter(&self, key: ServiceKey, address: SocketAddr) -> Option<Place> {
        let mut registry = self.registry();
        if let Some(trashed) = registry.trash.remove(&(key, address)) {
            return Some(Place { id: trashed.id, base: trashed.base });
        }
        let id = self.table.destinations().intern(&key.identity(address)).ok()?;
        let service = registry.hold(key);
        let runtime = self.runtimes.make(id.0 as usize)?;
        runtime.standing.service.store(service.0, Ordering::Relaxed);
        self.counters.reserve(id);
        Some(Place { id, base: self.counters.traffic(id) })
    }

    /// The destination is its service's from now on, with this slot.
    pub(super) fn open(&self, id: DestinationId, slot: usize) {
        let Some(runtime) = self.runtime(id) else { return };
        runtime.standing.slot.store(u32::try_from(slot).unwrap_or(u32::MAX), Ordering::Relaxed);
        self.set_available(id, true);
    }

    /// The destination was removed from its service; its connections find nobody. It is remembered while it has some.
    pub(super) fn close(&self, key: ServiceKey, address: SocketAddr, place: Place, now: Tick) {
        self.set_available(place.id, false);
        self.registry().trash.insert((key, address), Trashed { id: place.id, base: place.base, since: now });
    }

    fn set_available(&self, id: DestinationId, available: bool) {
        if let Some(it) = self.available.get(id.0 as usize) {
            it.store(available, Ordering::Release);
        }
    }

    /// Forgets removed destinations that have had no connection for two minutes. To be called every few seconds.
    pub fn collect(&self, now: Tick) {
        self.forget(|trashed, idle| {
            if !idle {
                trashed.since = now;
            }
            !now.is_before(trashed.since.plus_seconds(TRASH_SECONDS))
        });
    }

    /// Forgets removed destinations that have no connection, to make room for others. Nobody uses them: a connection begins
    /// only under its service's lock, where they are not any more.
    pub fn make_room(&self) {
        self.forget(|trashed, idle| {
            let noted = |it: &Runtime| it.load.noted.load(Ordering::Acquire);
            idle && !self.runtime(trashed.id).is_some_and(noted)
        });
    }

    /// Forgets the removed destinations of which `past`, told whether it is without connections, says so.
    fn forget(&self, mut past: impl FnMut(&mut Trashed, bool) -> bool) {
        let mut registry = self.registry();
        let mut forgotten = Vec::new();
        registry.trash.retain(|(key, _), trashed| {
            let idle =
                self.connections(trashed.id) == Connections::default() && self.templates(trashed.id) == 0;
            let past = past(trashed, idle);
            if past {
                forgotten.push((*key, trashed.id));
            }
            !past
        });
        for (key, id) in forgotten {
            self.table.destinations().forget(id);
            registry.release(key);
        }
    }

    /// Removed destinations that are still remembered.
    pub fn trashed(&self) -> usize {
        self.registry().trash.len()
    }

    #[inline]
    fn runtime(&self, id: DestinationId) -> Option<&Runtime> {
        self.runtimes.get(id.0 as usize)
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Registry {
    fn hold(&mut self, key: ServiceKey) -> ServiceId {
        if let Some(holder) = self.services.get_mut(&key) {
            holder.count += 1;
            return holder.id;
        }
        let id = self.free.pop().unwrap_or_else(|| {
            self.used += 1;
            ServiceId(self.used - 1)
        });
        self.services.insert(key, Holder { id, count: 1 });
        id
    }

    fn release(&mut self, key: ServiceKey) {
        let Some(holder) = self.services.get_mut(&key) else { return };
        holder.count -= 1;
        if holder.count == 0 {
            self.free.push(holder.id);
            self.services.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use uvs_conntrack::Limits;

    #[test]
    fn a_service_beyond_the_last_place_is_refused_until_one_is_free() {
        let table = SharedTable::create(Limits { connections4: 64, connections6: 64, ..Limits::default() });
        let destinations = Destinations::new(table.expect("a small table"), Counters::new(1));
        let mut destinations = Arc::into_inner(destinations).expect("nobody else has it");
        destinations.noted = Chunked::new(256);
        let key = |port| ServiceKey { address: [192, 0, 2, 1].into(), port, protocol: 6 };
        for port in 0..256 {
            assert!(destinations.enter_service(key(port)).is_some(), "{port}");
        }
        assert_eq!(destinations.enter_service(key(256)), None);
        assert_eq!(destinations.enter_service(key(256)), None, "nothing was kept of it");
        destinations.leave_service(key(7));
        assert!(destinations.enter_service(key(256)).is_some());
    }
}
