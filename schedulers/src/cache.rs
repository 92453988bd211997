//! What lblc and lblcr remember of the addresses that clients' packets go to, and for how long.

use crate::hash::{fold, hash_32};
use std::collections::HashMap;
use std::net::IpAddr;

/// The sweeps go by the kernel's buckets: so many bits (`IP_VS_LBLC_TAB_BITS`).
const BITS: u32 = 10;
const BUCKETS: usize = 1 << BITS;
/// More entries than this are swept.
const MOST: usize = BUCKETS * 16;
/// At this many no new one is made.
const FULL: usize = MOST * 3 / 2;
/// Time between two checks, in units of 10 ms like all times here.
const MINUTE: u32 = 60 * 100;
/// So many checks with no more than [`MOST`] entries, and the next one is a full one.
const FULL_CHECK: u32 = 30;
/// How long an entry must have been out of use for a sweep to take it.
const SWEPT_AFTER: u32 = 6 * MINUTE;
/// How long for a full check to take it (`lblc_expiration`, `lblcr_expiration`).
pub(crate) const EXPIRATION: u32 = 24 * 60 * MINUTE;

/// Whether a time has come. Readings of the clock may be a little out of order.
pub(crate) fn is_reached(now: u32, time: u32) -> bool {
    now.wrapping_sub(time).cast_signed() >= 0
}

#[derive(Clone, Debug)]
struct Entry<V> {
    value: V,
    last_use: u32,
}

/// A value for each address, with the expiry of `ip_vs_lblc.c`: each minute a check, each half hour of all entries, in between
/// only if there are too many.
#[derive(Debug)]
pub(crate) struct Cache<V> {
    entries: HashMap<IpAddr, Entry<V>>,
    buckets: Vec<Vec<IpAddr>>,
    /// The bucket that the last sweep ended with.
    rover: usize,
    /// Checks since the last full one.
    checks: u32,
    /// When the next check is due. Unlike the kernel's, the first one is a minute after the first use.
    next_check: Option<u32>,
    /// No entry was used for the last time before this.
    oldest: u32,
}

impl<V> Default for Cache<V> {
    fn default() -> Self {
        Cache {
            entries: HashMap::new(),
            buckets: vec![Vec::new(); BUCKETS],
            rover: 0,
            checks: 1,
            next_check: None,
            oldest: 0,
        }
    }
}

fn bucket(address: IpAddr) -> usize {
    hash_32(fold(address), BITS)
}

impl<V> Cache<V> {
    /// The value for an address, which is thereby used.
    pub(crate) fn get(&mut self, address: IpAddr, now: u32) -> Option<&mut V> {
        let entry = self.entries.get_mut(&address)?;
        entry.last_use = now;
        Some(&mut entry.value)
    }

    /// Sets the value for an address, unless there are too many others.
    pub(crate) fn set(&mut self, address: IpAddr, value: V, now: u32) {
        if let Some(entry) = self.entries.get_mut(&address) {
            // IPVS takes it out first and then looks whether there is room.
            *entry = Entry { value, last_use: now };
            if self.entries.len() > FULL {
                self.remove(address);
            }
        } else if self.entries.len() < FULL {
            self.insert(address, Entry { value, last_use: now });
        }
    }

    fn insert(&mut self, address: IpAddr, entry: Entry<V>) {
        if self.entries.is_empty() || !is_reached(entry.last_use, self.oldest) {
            self.oldest = entry.last_use;
        }
        self.entries.insert(address, entry);
        self.buckets[bucket(address)].push(address);
    }

    fn remove(&mut self, address: IpAddr) {
        self.entries.remove(&address);
        self.buckets[bucket(address)].retain(|other| *other != address);
    }

    /// Makes the checks that are due. Whether one of them was a full one.
    #[inline]
    pub(crate) fn expire(&mut self, now: u32) -> bool {
        let next = *self.next_check.get_or_insert(now.wrapping_add(MINUTE));
        is_reached(now, next) && self.check_until(now, next)
    }

    #[cold]
    fn check_until(&mut self, now: u32, mut next: u32) -> bool {
        let mut full = false;
        while is_reached(now, next) {
            if self.checks.is_multiple_of(FULL_CHECK) {
                full = true;
                self.checks = 1;
                self.check_all(next);
            } else if self.entries.len() <= MOST {
                self.checks += 1;
            } else {
                self.sweep(next);
            }
            next = next.wrapping_add(MINUTE);
        }
        self.next_check = Some(next);
        full
    }

    fn check_all(&mut self, now: u32) {
        if !is_reached(now, self.oldest.wrapping_add(EXPIRATION)) {
            return;
        }
        self.entries.retain(|_, entry| !is_reached(now, entry.last_use.wrapping_add(EXPIRATION)));
        let ages = self.entries.values().map(|entry| now.wrapping_sub(entry.last_use).cast_signed());
        self.oldest = now.wrapping_sub(ages.max().unwrap_or(0).cast_unsigned());
        for bucket in &mut self.buckets {
            bucket.retain(|address| self.entries.contains_key(address));
        }
    }

    fn sweep(&mut self, now: u32) {
        let goal = ((self.entries.len() - MOST) * 4 / 3).min(MOST / 2);
        let before = self.entries.len();
        for _ in 0..BUCKETS {
            self.rover = (self.rover + 1) % BUCKETS;
            let Cache { entries, buckets, rover, .. } = self;
            buckets[*rover].retain(|address| {
                let last_use = entries.get(address).map(|entry| entry.last_use);
                let stays = last_use.is_some_and(|used| !is_reached(now, used.wrapping_add(SWEPT_AFTER)));
                if !stays {
                    entries.remove(address);
                }
                stays
            });
            if before - self.entries.len() >= goal {
                break;
            }
        }
    }

    /// Each address, its last use and its value.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (IpAddr, u32, &V)> {
        self.entries.iter().map(|(address, entry)| (*address, entry.last_use, &entry.value))
    }

    /// When the next check is due and where the checks are, to be given to [`Cache::resume`].
    pub(crate) fn progress(&self) -> [u64; 4] {
        let next = self.next_check;
        [u64::from(next.is_some()), next.map_or(0, u64::from), u64::from(self.checks), self.rover as u64]
    }

    /// Goes on with a cache of which [`Cache::progress`] and [`Cache::iter`] told. What makes no sense is left out.
    pub(crate) fn resume(&mut self, progress: &[u64], entries: impl Iterator<Item = (IpAddr, u32, V)>) {
        *self = Cache::default();
        if let &[begun, next, checks, rover] = progress {
            self.next_check = u32::try_from(next).ok().filter(|_| begun == 1);
            self.checks =
                u32::try_from(checks).ok().filter(|checks| (1..=FULL_CHECK).contains(checks)).unwrap_or(1);
            self.rover = usize::try_from(rover).ok().filter(|rover| *rover < BUCKETS).unwrap_or(0);
        }
        for (address, last_use, value) in entries.take(FULL) {
            if !self.entries.contains_key(&address) {
                self.insert(address, Entry { value, last_use });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(n: usize) -> IpAddr {
        IpAddr::from((0x0a00_0000 + u32::try_from(n).unwrap()).to_be_bytes())
    }

    fn holds(cache: &Cache<usize>, n: usize) -> bool {
        cache.entries.contains_key(&address(n))
    }

    #[test]
    fn half_an_hour_later_what_was_unused_for_a_day_is_gone() {
        let start = u32::MAX - 10 * MINUTE;
        let mut cache = Cache::default();
        let mut full = 0;
        for minute in 0..=25 * 60 {
            let now = start.wrapping_add(minute * MINUTE);
            full += u32::from(cache.expire(now));
            if minute == 0 {
                (0..3).for_each(|n| cache.set(address(n), n, now));
            }
            if minute == 30 {
                assert_eq!(cache.get(address(1), now), Some(&mut 1));
            }
            // The full checks are at minutes 30, 60, … 1440: 2 has just been out of use for a day.
            assert_eq!(holds(&cache, 2), minute < 1440, "minute {minute}");
            assert_eq!(holds(&cache, 1), minute < 1470, "minute {minute}");
        }
        assert_eq!(full, 50);
        // The same in one go.
        let mut idle = Cache::default();
        idle.expire(start);
        idle.set(address(0), 0, start);
        assert!(idle.expire(start.wrapping_add(1440 * MINUTE)));
        assert!(!holds(&idle, 0));
        assert_eq!(idle.progress(), [1, u64::from(start.wrapping_add(1441 * MINUTE)), 1, 0]);
    }

    #[test]
    fn too_many_are_swept_as_far_as_they_were_not_used_for_six_minutes() {
        let mut cache = Cache::default();
        cache.expire(0);
        let extra = 1200;
        for n in 0..MOST + extra {
            cache.set(address(n), n, 0);
        }
        cache.expire(5 * MINUTE);
        assert_eq!(cache.entries.len(), MOST + extra);
        // Those of the last bucket to be asked are in use.
        cache.expire(6 * MINUTE);
        let left = cache.entries.len();
        // A bucket holds about 17.
        assert!((MOST + extra - 1600 - 40..=MOST + extra - 1600).contains(&left), "{left} left");
        assert_eq!(cache.buckets.iter().map(Vec::len).sum::<usize>(), left);
        cache.expire(7 * MINUTE);
        assert_eq!(cache.entries.len(), left, "no more than {MOST}");
    }

    #[test]
    fn a_full_one_takes_no_more() {
        let mut cache = Cache::default();
        for n in 0..FULL + 5 {
            cache.set(address(n), n, 0);
        }
        assert_eq!(cache.entries.len(), FULL);
        assert!(!holds(&cache, FULL));
        cache.set(address(7), 0, 0);
        assert_eq!(cache.get(address(7), 0), Some(&mut 0));
    }
}
