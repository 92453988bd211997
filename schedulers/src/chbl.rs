//! chbl, ours: consistent hashing with bounded loads (Mirrokni, Thorup and Zadimoghaddam, 2018). A client's address leads to a
//! slot of mh's table; a destination that has its share of all connections, and a bit, passes the client on to another slot.

use crate::hash::{fold, hsiphash};
use crate::mh;
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, flags};
use crate::wlc::WeightedLeastConnection;

/// Percent of its share that a destination takes, unless the service's options say otherwise.
const BOUND: u32 = 125;
/// So many slots are tried; then the least loaded one is taken.
const TRIES: u32 = 64;
/// Key of the hashes of clients.
const KEY: u64 = 2_654_435_761;

/// All of it follows from the list and the connections, so there is nothing to export.
#[derive(Debug, Default)]
pub(crate) struct BoundedLoads {
    table: Vec<Slot>,
    outdated: bool,
    least: WeightedLeastConnection,
    /// By the index of the slot: its connections and its weight while it may take some.
    counted: Vec<(u32, u32)>,
    connections: u64,
    weight: u64,
}

impl BoundedLoads {
    fn count(&mut self, pool: &Pool, slot: Slot) {
        if self.counted.len() <= slot.index() {
            self.counted.resize(slot.index() + 1, (0, 0));
        }
        let destination = pool.get(slot);
        let now = destination.map_or((0, 0), |it| (it.total(), if it.usable() { it.weight } else { 0 }));
        let before = std::mem::replace(&mut self.counted[slot.index()], now);
        self.connections = self.connections + u64::from(now.0) - u64::from(before.0);
        self.weight = self.weight + u64::from(now.1) - u64::from(before.1);
    }

    /// Whether a destination would still be within its bound with one more connection.
    fn has_room(&self, destination: &Destination, bound: u32) -> bool {
        let share = u128::from(self.connections + 1) * u128::from(destination.weight) * u128::from(bound);
        u128::from(destination.total()) * u128::from(self.weight) * 100 < share
    }

    fn fill(&mut self, pool: &Pool) {
        let list = pool.iter().map(|(slot, destination)| (slot, destination, destination.weight));
        self.table = mh::populate(list, mh::place(pool));
    }
}

impl Scheduler for BoundedLoads {
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        if std::mem::take(&mut self.outdated) {
            self.fill(pool);
        }
        if self.table.is_empty() || self.weight == 0 {
            return None;
        }
        let bound = match pool.options().load_bound {
            0 => BOUND,
            percent => percent.max(101),
        };
        let with_port = pool.flags() & flags::SCHED2 != 0;
        let port = if with_port { u32::from(request.source.port()) } else { 0 };
        let mut hash = hsiphash(KEY, fold(request.source.ip()).wrapping_add(port));
        for _ in 0..TRIES {
            let slot = self.table[hash as usize % self.table.len()];
            if pool.get(slot).is_some_and(|it| it.usable() && self.has_room(it, bound)) {
                return Some(slot);
            }
            hash = hsiphash(KEY, hash);
        }
        self.least.least(pool)
    }

    fn attached(&mut self, pool: &Pool) {
        *self = BoundedLoads { outdated: true, ..BoundedLoads::default() };
        self.least.attached(pool);
        pool.iter().for_each(|(slot, _)| self.count(pool, slot));
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        self.least.added(pool, slot);
        self.count(pool, slot);
        self.outdated = true;
    }

    fn removed(&mut self, pool: &Pool, gone: &Removed) {
        self.least.removed(pool, gone);
        self.count(pool, gone.slot);
        self.outdated = true;
    }

    fn edited(&mut self, pool: &Pool, slot: Slot) {
        self.least.edited(pool, slot);
        self.count(pool, slot);
        self.outdated = true;
    }

    fn load_changed(&mut self, pool: &Pool, slot: Slot) {
        self.least.load_changed(pool, slot);
        self.count(pool, slot);
    }

    fn renumbered(&mut self, pool: &Pool) {
        self.least.renumbered(pool);
    }

    fn options_changed(&mut self, _pool: &Pool) {
        self.outdated = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Balancer, Options, by_name};
    use proptest::prelude::*;
    use std::net::{Ipv4Addr, SocketAddr};

    fn request(client: u32) -> Request {
        let source = SocketAddr::from((Ipv4Addr::from(0x0a01_0000 + client), 1024));
        Request::new(source, ([10, 0, 0, 1], 80).into())
    }

    fn service(weights: &[u32]) -> (Balancer, Vec<Slot>) {
        let mut service = Balancer::new(by_name("chbl").unwrap());
        let add = |(n, weight): (u8, &u32)| {
            service.add(Destination::new(SocketAddr::from(([10, 2, 0, n], 80)), *weight)).unwrap()
        };
        let slots = (1..).zip(weights).map(add).collect();
        (service, slots)
    }

    proptest! {
        /// Nobody has more than its bound allows, whatever comes and goes.
        #[test]
        fn loads_are_bounded(
            weights in prop::collection::vec(0_u32..6, 1..12),
            clients in prop::collection::vec((0_u32..5, any::<prop::sample::Index>()), 1..300),
            load_bound in 101_u32..300,
        ) {
            let (mut service, slots) = service(&weights);
            service.set_options(Options { load_bound, ..Options::default() });
            let all: u32 = weights.iter().sum();
            let mut open = Vec::new();
            for (client, closing) in clients {
                let Some(slot) = service.choose(&request(client)) else {
                    prop_assert_eq!(all, 0);
                    continue;
                };
                service.bind(slot, true);
                open.push(slot);
                let chosen = service.pool().get(slot).unwrap();
                let (share, most) = (u64::from(chosen.weight) * open.len() as u64, u64::from(load_bound));
                let least = f64::from(chosen.total() - 1) / f64::from(chosen.weight);
                let others = slots.iter().filter_map(|slot| service.pool().get(*slot)).filter(|it| it.usable());
                let is_least = others.clone().all(|it| f64::from(it.total()) / f64::from(it.weight) >= least);
                let within = u64::from(chosen.total() - 1) * u64::from(all) * 100 < share * most;
                prop_assert!(chosen.usable() && (within || is_least));
                if client > 2 {
                    let slot = open.swap_remove(closing.index(open.len()));
                    let load = *service.pool().get(slot).unwrap();
                    service.settle(slot, load.active - 1, 0);
                }
            }
        }
    }

    #[test]
    fn a_client_keeps_its_server_while_that_has_room() {
        let (mut service, _) = service(&[2; 9]);
        let first: Vec<_> = (0..500).map(|client| service.choose(&request(client)).unwrap()).collect();
        for (client, slot) in (0..500).zip(&first) {
            assert_eq!(service.choose(&request(client)).as_ref(), Some(slot), "nothing has changed");
        }
        service.add(Destination::new(SocketAddr::from(([10, 2, 0, 99], 80)), 2)).unwrap();
        let moved = (0..500)
            .zip(&first)
            .filter(|(client, slot)| service.choose(&request(*client)).as_ref() != Some(*slot));
        // A tenth goes to the newcomer.
        assert!((30..90).contains(&moved.count()));
    }
}
