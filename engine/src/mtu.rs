//! Path MTUs that are shorter than the first link's: what routers on the way to tunnelled real servers said.

use foldhash::fast::FixedState;
use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use uvs_conntrack::Tick;

/// Addresses remembered. Of two that want one place the later has it; the other's path is found out again.
const PLACES: usize = 1024;
/// Seconds after which a path may have become wider (RFC 1191 §6.3; Linux's `mtu_expires`).
const EXPIRES_SECONDS: u32 = 600;
/// The shortest path that IPv4 routers are believed to have, in bytes (Linux's `min_pmtu`).
const LEAST_V4: u16 = 552;
/// The shortest that IPv6 allows, in bytes (RFC 8200 §5).
const LEAST_V6: u16 = 1280;

/// The path MTUs of some addresses, shared by all workers and read without a lock.
#[derive(Debug)]
pub struct PathMtus {
    /// How often something was learnt; while that is never, nobody has to look.
    learnt: AtomicU32,
    /// From the lowest bit: MTU (16), the time in ticks divided by 256 (24), a part of the address's hash (24). Zero: nothing.
    places: Box<[AtomicU64]>,
}

impl Default for PathMtus {
    fn default() -> Self {
        let places = (0..PLACES).map(|_| AtomicU64::new(0)).collect();
        PathMtus { learnt: AtomicU32::new(0), places }
    }
}

impl PathMtus {
    /// The longest packet in bytes that the path to `address` is known to take, if it was learnt to be shorter than others.
    #[inline]
    pub fn limit(&self, address: IpAddr, now: Tick) -> Option<u32> {
        if self.learnt.load(Relaxed) == 0 { None } else { self.look_up(address, now) }
    }

    #[cold]
    fn look_up(&self, address: IpAddr, now: Tick) -> Option<u32> {
        let (place, mark) = self.place(address)?;
        let word = place.load(Relaxed);
        let known = word >> 40 == mark && word != 0 && age(word, now) < EXPIRES_SECONDS;
        #[expect(clippy::cast_possible_truncation, reason = "the lowest sixteen bits")]
        let mtu = word as u16;
        known.then(|| mtu.into())
    }

    /// A router said that packets to `address` must not be longer than `mtu` bytes. A path never becomes wider that way; what is
    /// less than any path's MTU is taken for that. Returns whether that is news.
    pub fn learn(&self, address: IpAddr, mtu: u32, now: Tick) -> bool {
        let least = if address.is_ipv4() { LEAST_V4 } else { LEAST_V6 };
        let mtu = u16::try_from(mtu).unwrap_or(u16::MAX).max(least);
        let Some((place, mark)) = self.place(address) else { return false };
        if self.look_up(address, now).is_some_and(|known| known <= mtu.into()) {
            return false;
        }
        place.store(mark << 40 | u64::from(moment(now)) << 16 | u64::from(mtu), Relaxed);
        self.learnt.fetch_add(1, Relaxed);
        true
    }

    fn place(&self, address: IpAddr) -> Option<(&AtomicU64, u64)> {
        let hash = FixedState::default().hash_one(address);
        #[expect(clippy::cast_possible_truncation, reason = "less than the number of places")]
        let index = (hash % PLACES as u64) as usize;
        // Never zero, so that no word is that of an empty place.
        Some((self.places.get(index)?, hash >> 40 | 1))
    }
}

/// The time in units of 256 ticks, of which there are 2^24.
fn moment(now: Tick) -> u32 {
    now.0 >> 8
}

/// Seconds since a word was written, nearly.
fn age(word: u64, now: Tick) -> u32 {
    #[expect(clippy::cast_possible_truncation, reason = "24 bits")]
    let then = (word >> 16) as u32 & 0xff_ffff;
    (moment(now).wrapping_sub(then) & 0xff_ffff) * 256 / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn learns_and_forgets() {
        let (paths, server) = (PathMtus::default(), address("192.0.2.1"));
        let start = Tick(u32::MAX - 1000);
        assert_eq!(paths.limit(server, start), None);
        assert!(paths.learn(server, 1400, start));
        assert_eq!(paths.limit(server, start), Some(1400));
        assert_eq!(paths.limit(address("192.0.2.2"), start), None);
        assert!(!paths.learn(server, 1450, start), "a path that becomes wider does not say so");
        assert!(paths.learn(server, 1300, start.plus_seconds(10)));
        assert_eq!(paths.limit(server, start.plus_seconds(500)), Some(1300));
        assert_eq!(paths.limit(server, start.plus_seconds(620)), None);
        assert!(paths.learn(server, 1450, start.plus_seconds(620)), "it may be wider by then");
    }

    #[test]
    fn believes_no_impossible_path() {
        let (paths, now) = (PathMtus::default(), Tick(5));
        for (server, mtu, believed) in [
            ("192.0.2.1", 0, 552),
            ("192.0.2.2", 551, 552),
            ("192.0.2.3", 70_000, 65_535),
            ("2001:db8::1", 68, 1280),
            ("2001:db8::2", 1281, 1281),
        ] {
            assert!(paths.learn(address(server), mtu, now));
            assert_eq!(paths.limit(address(server), now), Some(believed), "{server} {mtu}");
        }
    }

    #[test]
    fn keeps_to_its_places() {
        let (paths, now) = (PathMtus::default(), Tick(5));
        for n in 0..100_000_u32 {
            paths.learn(IpAddr::V4(n.into()), 1000, now);
        }
        let known = (0..100_000_u32).filter(|n| paths.limit(IpAddr::V4((*n).into()), now).is_some()).count();
        assert!((900..=PLACES).contains(&known), "{known} are known");
    }
}
