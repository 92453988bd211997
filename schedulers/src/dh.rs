//! dh, destination hashing: by the address that the client's packet goes to. For firewall-mark services of many addresses.

use crate::hash::{fold, hash_32};
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler};

/// `CONFIG_IP_VS_DH_TAB_BITS` as kernels are built.
const BITS: u32 = 8;

/// As in IPVS, a bucket whose destination may take no connection has no other.
#[derive(Debug, Default)]
pub(crate) struct DestinationHashing {
    /// One destination a bucket, round and round the list whatever they weigh; empty when there is none.
    buckets: Vec<Slot>,
    /// Whether the list has changed since the buckets were filled.
    outdated: bool,
}

impl Scheduler for DestinationHashing {
    #[inline]
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        if self.outdated {
            self.outdated = false;
            self.buckets = pool.iter().map(|(slot, _)| slot).cycle().take(1 << BITS).collect();
        }
        let slot = *self.buckets.get(hash_32(fold(request.destination.ip()), BITS))?;
        pool.get(slot).is_some_and(Destination::usable).then_some(slot)
    }

    fn attached(&mut self, _pool: &Pool) {
        self.outdated = true;
    }

    fn added(&mut self, _pool: &Pool, _slot: Slot) {
        self.outdated = true;
    }

    fn removed(&mut self, _pool: &Pool, _gone: &Removed) {
        self.outdated = true;
    }
}
