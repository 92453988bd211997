//! What a scheduler is.

use crate::pool::{Pool, Removed, Slot};
use std::fmt;
use std::net::SocketAddr;

/// Bits of the service's flags that mean something to schedulers, by their values in `ip_vs.h`.
pub mod flags {
    /// `flag-1`; `sh-fallback` for sh, `mh-fallback` for mh.
    pub const SCHED1: u32 = 0x08;
    /// `flag-2`; `sh-port` for sh, `mh-port` for mh.
    pub const SCHED2: u32 = 0x10;
    /// `flag-3`; no scheduler of IPVS uses it.
    pub const SCHED3: u32 = 0x20;
}

/// What a service's scheduler may be told beyond its flags. A scheduler looks at what means something to it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Slots of the lookup table; 0 for the scheduler's own default. `mh` and `chbl` take those of [`MH_TABLE_SIZES`].
    pub table_size: u32,
    /// For `p2c`: the seconds after which a connection counts half; 0 for 10.
    pub half_life: u32,
    /// For `chbl`: the percent of its share that a destination takes at most, above 100; 0 for 125.
    pub load_bound: u32,
}

/// The sizes that the table of `mh` can have: those a kernel can be built with (`CONFIG_IP_VS_MH_TAB_INDEX` 8 to 17). It has
/// 4093 slots by default.
pub const MH_TABLE_SIZES: [u32; 10] = [251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131_071];

/// The new connection a destination is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The client. Port 0 where the protocol has no ports.
    pub source: SocketAddr,
    /// Where the client's packet goes: the virtual service, or for a firewall-mark service any address.
    pub destination: SocketAddr,
    /// The time in units of 10 ms; wraps.
    pub now: u32,
}

impl Request {
    /// A request at time 0, for schedulers that do not look at the clock.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Request { source, destination, now: 0 }
    }
}

/// What a scheduler remembers beyond the pool, so that another process can go on where this one stopped.
///
/// Plain data to be written in any format. Destinations are named by address because slots do not outlive the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    /// Numbers, in an order that each scheduler states.
    pub numbers: Vec<u64>,
    /// Destinations pointed to, in an order that each scheduler states. One that is not there any more counts as none.
    pub destinations: Vec<SocketAddr>,
}

/// Chooses a destination for each new connection of one virtual service.
///
/// A scheduler belongs to one pool. [`crate::Balancer`] holds both and calls every hook; a hook sees the pool as it is
/// after the change. A scheduler that keeps nothing but walks [`Pool::iter`] at every choice needs no hook at all.
pub trait Scheduler: Send + fmt::Debug {
    /// The destination for a new connection: `None` when no destination may take one.
    ///
    /// Never one of weight 0, and never an overloaded one except by lblc, which as in IPVS does not ask that of the destination
    /// it remembers. The load does not change by this; the caller binds the connection, or does not.
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot>;

    /// Starts on a pool, which may hold destinations already (the service's scheduler was changed).
    fn attached(&mut self, _pool: &Pool) {}

    /// A destination was added, at the head of the list.
    fn added(&mut self, _pool: &Pool, _slot: Slot) {}

    /// A destination was removed; its slot may come back for another one.
    fn removed(&mut self, _pool: &Pool, _gone: &Removed) {}

    /// A destination's weight or thresholds were set, perhaps to what they were.
    fn edited(&mut self, _pool: &Pool, _slot: Slot) {}

    /// The service's [`Pool::options`] were set, perhaps to what they were.
    fn options_changed(&mut self, _pool: &Pool) {}

    /// A destination's counters changed, and with them perhaps [`crate::Destination::overloaded`].
    fn load_changed(&mut self, _pool: &Pool, _slot: Slot) {}

    /// Every destination got a new [`Pool::position`]; the order is the same.
    fn renumbered(&mut self, _pool: &Pool) {}

    /// What another scheduler of this kind needs to go on like this one.
    fn export(&self, _pool: &Pool) -> State {
        State::default()
    }

    /// Goes on from an exported state. Comes after [`Scheduler::attached`], with the destinations in the pool again.
    fn import(&mut self, _pool: &Pool, _state: &State) {}
}
