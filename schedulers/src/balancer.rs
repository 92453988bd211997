//! One virtual service's destinations together with the scheduler that chooses among them.

use crate::pool::{Destination, Pool, PoolError, Removed, Slot};
use crate::scheduler::{Options, Request, Scheduler, State};

/// A pool and its scheduler. Every change of the pool goes through here, so that the scheduler hears of it.
///
/// Not shared by itself: the director keeps it behind its service's lock. Connections that change state on other workers
/// do not take that lock; the director counts them aside, and before it chooses it tells the new counts by
/// [`Balancer::settle`].
#[derive(Debug)]
pub struct Balancer {
    pool: Pool,
    scheduler: Box<dyn Scheduler>,
}

impl Balancer {
    /// A service without destinations.
    pub fn new(mut scheduler: Box<dyn Scheduler>) -> Self {
        let pool = Pool::default();
        scheduler.attached(&pool);
        Balancer { pool, scheduler }
    }

    /// The destinations.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The destination for a new connection; `None` when none may take it. Counts nothing: see [`Balancer::bind`].
    #[inline]
    pub fn choose(&mut self, request: &Request) -> Option<Slot> {
        self.scheduler.choose(&self.pool, request)
    }

    /// Counts a new connection of a destination, as active or as inactive. A stale slot is ignored.
    #[inline]
    pub fn bind(&mut self, slot: Slot, active: bool) {
        if let Some(destination) = self.pool.get(slot) {
            let more = |counter: u32, one: bool| counter.saturating_add(u32::from(one));
            let (new_active, new_inactive) =
                (more(destination.active, active), more(destination.inactive, !active));
            self.settle(slot, new_active, new_inactive);
        }
    }

    /// Tells how many active and inactive connections a destination has now. A stale slot is ignored.
    ///
    /// Each settling may stand for any number of connections that ended or changed state; together with
    /// [`Balancer::bind`] after each new one, the overload flag is the kernel's.
    #[inline]
    pub fn settle(&mut self, slot: Slot, active: u32, inactive: u32) {
        if self.pool.settle(slot, active, inactive) {
            self.scheduler.load_changed(&self.pool, slot);
        }
    }

    /// Adds a destination at the head of the list. One that was removed while it had connections comes back with the
    /// counters they left it (as IPVS revives it).
    ///
    /// # Errors
    /// When the service has as many as it may have. That the address is new is for the caller to see to.
    pub fn add(&mut self, destination: Destination) -> Result<Slot, PoolError> {
        if self.pool.is_sparse() {
            self.pool.renumber();
            self.scheduler.renumbered(&self.pool);
        }
        let slot = self.pool.add(destination)?;
        self.scheduler.added(&self.pool, slot);
        Ok(slot)
    }

    /// Removes a destination. `None` when the slot is stale.
    pub fn remove(&mut self, slot: Slot) -> Option<Removed> {
        let gone = self.pool.remove(slot)?;
        self.scheduler.removed(&self.pool, &gone);
        Some(gone)
    }

    /// Sets a destination's weight and thresholds (0: none), as `ipvsadm -e` does. `false` when the slot is stale.
    pub fn edit(&mut self, slot: Slot, weight: u32, upper: u32, lower: u32) -> bool {
        let there = self.pool.edit(slot, weight, upper, lower);
        if there {
            self.scheduler.edited(&self.pool, slot);
        }
        there
    }

    /// Sets the service's flags (see [`crate::flags`]), which a scheduler reads at its next choice.
    pub fn set_flags(&mut self, flags: u32) {
        self.pool.set_flags(flags);
    }

    /// Sets the service's options for its scheduler.
    pub fn set_options(&mut self, options: Options) {
        if *self.pool.options() != options {
            self.pool.set_options(options);
            self.scheduler.options_changed(&self.pool);
        }
    }

    /// Puts another scheduler in this one's place; the destinations and their load stay.
    pub fn set_scheduler(&mut self, mut scheduler: Box<dyn Scheduler>) {
        scheduler.attached(&self.pool);
        self.scheduler = scheduler;
    }

    /// What the scheduler remembers, for [`Balancer::import`] in a later process.
    pub fn export(&self) -> State {
        self.scheduler.export(&self.pool)
    }

    /// Goes on from what a scheduler of the same kind exported.
    pub fn import(&mut self, state: &State) {
        self.scheduler.import(&self.pool, state);
    }
}
