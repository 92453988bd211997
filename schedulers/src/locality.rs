//! What lblc and lblcr know of the real servers, those included that were removed and may come back.

use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::Scheduler;
use crate::wlc::WeightedLeastConnection;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

/// A real server's number: the same when it comes back, as long as somebody remembers it.
pub(crate) type Number = u32;

#[derive(Debug)]
struct Server {
    address: SocketAddr,
    slot: Option<Slot>,
    /// Whether it has room for more active connections than it has.
    half_idle: bool,
}

/// The real servers of the service by number.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    least: WeightedLeastConnection,
    numbers: HashMap<SocketAddr, Number>,
    servers: Vec<Server>,
    free: Vec<Number>,
    by_slot: Vec<Number>,
    half_idle: usize,
}

impl Servers {
    /// What wlc chooses.
    #[inline]
    pub(crate) fn least(&self, pool: &Pool) -> Option<Slot> {
        self.least.least(pool)
    }

    /// Whether another one should be asked: this one has more active connections than it weighs, and some other than half of
    /// its own weight less.
    #[inline]
    pub(crate) fn should_relieve(&self, destination: &Destination) -> bool {
        destination.active > destination.weight && self.half_idle > 0
    }

    pub(crate) fn slot(&self, number: Number) -> Option<Slot> {
        self.servers.get(number as usize)?.slot
    }

    pub(crate) fn address(&self, number: Number) -> Option<SocketAddr> {
        Some(self.servers.get(number as usize)?.address)
    }

    #[inline]
    pub(crate) fn number(&self, slot: Slot) -> Option<Number> {
        self.by_slot.get(slot.index()).copied()
    }

    /// The number of an address, given to it if it has none.
    pub(crate) fn number_of(&mut self, address: SocketAddr) -> Number {
        if let Some(number) = self.numbers.get(&address) {
            return *number;
        }
        let server = Server { address, slot: None, half_idle: false };
        let number = if let Some(number) = self.free.pop() {
            self.servers[number as usize] = server;
            number
        } else {
            self.servers.push(server);
            u32::try_from(self.servers.len() - 1).unwrap_or(u32::MAX)
        };
        self.numbers.insert(address, number);
        number
    }

    /// Forgets the removed ones that nobody remembers.
    pub(crate) fn forget_all_but(&mut self, remembered: &HashSet<Number>) {
        let Servers { numbers, servers, free, .. } = self;
        numbers.retain(|_, number| {
            let stays = servers[*number as usize].slot.is_some() || remembered.contains(number);
            if !stays {
                free.push(*number);
            }
            stays
        });
    }

    pub(crate) fn attached(&mut self, pool: &Pool) {
        *self = Servers::default();
        self.least.attached(pool);
        for (slot, _) in pool.iter() {
            self.enter(pool, slot);
        }
    }

    pub(crate) fn added(&mut self, pool: &Pool, slot: Slot) {
        self.least.added(pool, slot);
        self.enter(pool, slot);
    }

    fn enter(&mut self, pool: &Pool, slot: Slot) {
        let Some(destination) = pool.get(slot) else { return };
        let number = self.number_of(destination.address);
        self.servers[number as usize].slot = Some(slot);
        if self.by_slot.len() <= slot.index() {
            self.by_slot.resize(slot.index() + 1, Number::MAX);
        }
        self.by_slot[slot.index()] = number;
        self.count(number, is_half_idle(destination));
    }

    pub(crate) fn removed(&mut self, pool: &Pool, gone: &Removed) {
        self.least.removed(pool, gone);
        if let Some(&number) = self.numbers.get(&gone.destination.address) {
            self.servers[number as usize].slot = None;
            self.count(number, false);
        }
    }

    /// Its weight, thresholds or counters changed.
    #[inline]
    pub(crate) fn changed(&mut self, pool: &Pool, slot: Slot) {
        self.least.load_changed(pool, slot);
        if let (Some(number), Some(destination)) = (self.number(slot), pool.get(slot)) {
            self.count(number, is_half_idle(destination));
        }
    }

    pub(crate) fn renumbered(&mut self, pool: &Pool) {
        self.least.renumbered(pool);
    }

    #[inline]
    fn count(&mut self, number: Number, half_idle: bool) {
        let Some(server) = self.servers.get_mut(number as usize) else { return };
        self.half_idle = self.half_idle + usize::from(half_idle) - usize::from(server.half_idle);
        server.half_idle = half_idle;
    }
}

#[inline]
fn is_half_idle(destination: &Destination) -> bool {
    u64::from(destination.active) * 2 < u64::from(destination.weight)
}
