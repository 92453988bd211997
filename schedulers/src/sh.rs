//! sh, source hashing: by the client's address, with `sh-port` by its port, too.

use crate::hash::{fold, hash_32};
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{Request, Scheduler, flags};
use std::iter::repeat_n;

/// `CONFIG_IP_VS_SH_TAB_BITS` as kernels are built.
const BITS: u32 = 8;
const BUCKETS: usize = 1 << BITS;

/// A bucket whose destination may take no connection has no other, except with `sh-fallback`.
#[derive(Debug, Default)]
pub(crate) struct SourceHashing {
    /// As many buckets one after the other as a destination weighs, round and round the list; one for weight 0, too.
    /// Empty when there is no destination.
    buckets: Vec<Slot>,
    /// Whether the list has changed since the buckets were filled.
    outdated: bool,
}

impl SourceHashing {
    fn fill(&mut self, pool: &Pool) {
        self.buckets.clear();
        for (slot, destination) in pool.iter().cycle() {
            let weight = usize::try_from(destination.weight).unwrap_or(BUCKETS).max(1);
            self.buckets.extend(repeat_n(slot, weight.min(BUCKETS - self.buckets.len())));
            if self.buckets.len() == BUCKETS {
                break;
            }
        }
    }

    fn usable(&self, pool: &Pool, bucket: usize) -> Option<Slot> {
        let slot = *self.buckets.get(bucket % BUCKETS)?;
        pool.get(slot).is_some_and(Destination::usable).then_some(slot)
    }
}

impl Scheduler for SourceHashing {
    #[inline]
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        if self.outdated {
            self.outdated = false;
            self.fill(pool);
        }
        let port = if pool.flags() & flags::SCHED2 == 0 { 0 } else { request.source.port() };
        let bucket = hash_32(u32::from(port).wrapping_add(fold(request.source.ip())), BITS);
        let chosen = self.usable(pool, bucket);
        if chosen.is_some() || pool.flags() & flags::SCHED1 == 0 {
            return chosen;
        }
        // The kernel adds the bucket that was to be twice: the search begins at twice its number.
        (0..BUCKETS).find_map(|offset| self.usable(pool, bucket + (offset + bucket) % BUCKETS))
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

    fn edited(&mut self, _pool: &Pool, _slot: Slot) {
        self.outdated = true;
    }
}
