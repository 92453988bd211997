//! lblc, locality-based least-connection: all connections to one address go to the same destination as long as it can take
//! them. For firewall-mark services of many addresses, such as a cluster of caches.

use crate::cache::Cache;
use crate::locality::{Number, Servers};
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, State};
use std::collections::HashSet;
use std::net::SocketAddr;

/// Exported state: the cache's four numbers, then of each address its last use; as destinations, each address (port 0) and the
/// real server it went to.
#[derive(Debug, Default)]
pub(crate) struct LocalityBased {
    servers: Servers,
    cache: Cache<Number>,
}

impl LocalityBased {
    /// The one that connections to this address go to. That it is overloaded by its threshold, IPVS does not ask.
    fn remembered(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        let number = *self.cache.get(request.destination.ip(), request.now)?;
        let slot = self.servers.slot(number)?;
        let fit = |it: &Destination| it.weight > 0 && !self.servers.should_relieve(it);
        pool.get(slot).is_some_and(fit).then_some(slot)
    }
}

impl Scheduler for LocalityBased {
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        if self.cache.expire(request.now) {
            let remembered: HashSet<Number> = self.cache.iter().map(|(_, _, number)| *number).collect();
            self.servers.forget_all_but(&remembered);
        }
        if let Some(slot) = self.remembered(pool, request) {
            return Some(slot);
        }
        let slot = self.servers.least(pool)?;
        if let Some(number) = self.servers.number(slot) {
            self.cache.set(request.destination.ip(), number, request.now);
        }
        Some(slot)
    }

    fn attached(&mut self, pool: &Pool) {
        self.servers.attached(pool);
        self.cache = Cache::default();
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.servers.added(pool, slot);
    }

    fn removed(&mut self, pool: &Pool, gone: &Removed) {
        self.servers.removed(pool, gone);
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.servers.changed(pool, slot);
    }

    #[inline]
    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.servers.changed(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.servers.renumbered(pool);
    }

    fn export(&self, _pool: &Pool) -> State {
        let mut state = State { numbers: self.cache.progress().to_vec(), destinations: Vec::new() };
        for (address, last_use, number) in self.cache.iter() {
            let Some(server) = self.servers.address(*number) else { continue };
            state.numbers.push(u64::from(last_use));
            state.destinations.extend([SocketAddr::new(address, 0), server]);
        }
        state
    }

    fn import(&mut self, _pool: &Pool, state: &State) {
        let (progress, uses) = state.numbers.split_at(state.numbers.len().min(4));
        let pairs = state.destinations.chunks_exact(2).zip(uses).filter_map(|(pair, last_use)| {
            Some((pair[0].ip(), u32::try_from(*last_use).ok()?, self.servers.number_of(pair[1])))
        });
        self.cache.resume(progress, pairs);
    }
}
