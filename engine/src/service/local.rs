//! Local addresses of full NAT: what real servers see in place of clients, and the ports that are still to be had.
//!
//! Which ports are free is no list here: the connection table is asked. A [`LocalAddress`] only knows where to look next, so
//! that a port that comes free again is the last to be looked at.

use arc_swap::ArcSwap;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use uvs_conntrack::protocol::UDP;
use uvs_conntrack::{Connection, Tick};

/// Ports that may be used at a local address, in ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports(Box<[RangeInclusive<u16>]>);

impl Default for Ports {
    /// The original patch's `lport_min` and `lport_max`: 5000 to 65535.
    fn default() -> Self {
        Ports([5000..=u16::MAX].into())
    }
}

impl Ports {
    /// These ranges, without the empty ones and port 0.
    pub fn new(ranges: impl IntoIterator<Item = RangeInclusive<u16>>) -> Self {
        let real = |range: RangeInclusive<u16>| (*range.start()).max(1)..=*range.end();
        Ports(ranges.into_iter().map(real).filter(|range| !range.is_empty()).collect())
    }

    /// Those that are not in `taken`.
    #[must_use]
    pub fn without(&self, taken: &RangeInclusive<u16>) -> Self {
        let (first, last) = (u32::from(*taken.start()), u32::from(*taken.end()));
        let port = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        Ports::new(self.0.iter().flat_map(|own| {
            let (from, to) = (u32::from(*own.start()), u32::from(*own.end()));
            let left = [(from, to.min(first.saturating_sub(1))), (from.max(last + 1), to)];
            left.into_iter().filter(|(from, to)| from <= to).map(|(from, to)| port(from)..=port(to))
        }))
    }

    /// How many there are.
    pub fn count(&self) -> u32 {
        self.0.iter().map(|range| u32::from(*range.end()) - u32::from(*range.start()) + 1).sum()
    }

    /// The ranges, in the order they are used in.
    pub fn ranges(&self) -> &[RangeInclusive<u16>] {
        &self.0
    }

    fn nth(&self, mut n: u32) -> Option<u16> {
        for range in &self.0 {
            let length = u32::from(*range.end()) - u32::from(*range.start()) + 1;
            if n < length {
                return u16::try_from(u32::from(*range.start()) + n).ok();
            }
            n -= length;
        }
        None
    }
}

/// A local address, whichever services use it.
#[derive(Debug)]
pub struct LocalAddress {
    address: IpAddr,
    /// Which port is tried next, of TCP and of UDP.
    next: [AtomicU32; 2],
    conflicts: AtomicU64,
    exhausted: AtomicU64,
    connections: AtomicU64,
    /// Real servers towards which no port was free, by their hash, and when: 32 bits each.
    full: [AtomicU64; FULL],
}

const FULL: usize = 64;

fn place(server: u64) -> usize {
    usize::from(server.to_le_bytes()[0]) % FULL
}

impl LocalAddress {
    fn new(address: IpAddr) -> Self {
        LocalAddress {
            address,
            next: [AtomicU32::new(0), AtomicU32::new(0)],
            conflicts: AtomicU64::new(0),
            exhausted: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            full: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// Ports that were in use when a new connection wanted them.
    pub fn conflicts(&self) -> u64 {
        self.conflicts.load(Relaxed)
    }

    /// New connections that found no free port here.
    pub fn exhausted(&self) -> u64 {
        self.exhausted.load(Relaxed)
    }

    /// Connections that use it now.
    pub fn connections(&self) -> u64 {
        self.connections.load(Relaxed)
    }

    pub(crate) fn next_port(&self, ports: &Ports, protocol: u8) -> Option<u16> {
        let turn = self.next[usize::from(protocol == UDP)].fetch_add(1, Relaxed);
        ports.nth(turn.checked_rem(ports.count())?)
    }

    pub(crate) fn conflicted(&self) {
        self.conflicts.fetch_add(1, Relaxed);
    }

    pub(crate) fn began(&self) {
        self.connections.fetch_add(1, Relaxed);
    }

    fn ended(&self) {
        // Connections of an address that was forgotten in between are not its own.
        let _none_left = self.connections.fetch_update(Relaxed, Relaxed, |count| count.checked_sub(1));
    }

    /// No port was free towards the real server with this hash.
    pub(crate) fn exhausted_towards(&self, server: u64, now: Tick) {
        self.exhausted.fetch_add(1, Relaxed);
        self.full[place(server)].store(full_word(server, now), Relaxed);
    }

    /// Whether a search has failed in this tick already: the next would fail, too, and take as long.
    pub(crate) fn is_exhausted_towards(&self, server: u64, now: Tick) -> bool {
        self.full[place(server)].load(Relaxed) == full_word(server, now)
    }
}

fn full_word(server: u64, now: Tick) -> u64 {
    server & 0xffff_ffff_0000_0000 | u64::from(now.0)
}

/// The local addresses of a service, each with the ports to use there.
#[derive(Debug, Default)]
pub struct LocalPool {
    addresses: Vec<(Arc<LocalAddress>, Ports)>,
    next: AtomicU32,
}

impl LocalPool {
    /// These, to be used in turn.
    pub fn new(addresses: Vec<(Arc<LocalAddress>, Ports)>) -> Arc<Self> {
        Arc::new(LocalPool { addresses, next: AtomicU32::new(0) })
    }

    /// Those that a new connection to `server` may use, beginning with the one whose turn it is.
    pub(crate) fn turn(&self, server: SocketAddr) -> impl Iterator<Item = &(Arc<LocalAddress>, Ports)> {
        let (before, after) = match self.addresses.len() {
            0 => (&[][..], &[][..]),
            length => self.addresses.split_at(self.next.fetch_add(1, Relaxed) as usize % length),
        };
        let usable =
            move |(local, _): &&(Arc<LocalAddress>, Ports)| local.address.is_ipv4() == server.is_ipv4();
        after.iter().chain(before).filter(usable)
    }
}

/// Every local address of every service, and those that still have connections.
#[derive(Debug, Default)]
pub struct Locals(ArcSwap<HashMap<IpAddr, Arc<LocalAddress>>>);

impl Locals {
    /// The local address, from now on known. Called by one thread at a time, as [`Locals::forget`] is.
    pub fn enter(&self, address: IpAddr) -> Arc<LocalAddress> {
        if let Some(known) = self.0.load().get(&address) {
            return known.clone();
        }
        let local = Arc::new(LocalAddress::new(address));
        let mut all = HashMap::clone(&self.0.load());
        all.insert(address, local.clone());
        self.0.store(Arc::new(all));
        local
    }

    /// A known local address.
    pub fn get(&self, address: &IpAddr) -> Option<Arc<LocalAddress>> {
        self.0.load().get(address).cloned()
    }

    /// No service uses it, and no connection.
    pub fn forget(&self, address: &IpAddr) {
        let mut all = HashMap::clone(&self.0.load());
        all.remove(address);
        self.0.store(Arc::new(all));
    }

    /// A connection by full NAT ended.
    pub(super) fn ended(&self, connection: &Connection<'_>) {
        if let Some(local) = self.0.load().get(&connection.real().destination().ip()) {
            local.ended();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_out_over_their_ranges() {
        let ports = Ports::new([5..=6, 10..=10, 0..=1]);
        assert_eq!((ports.count(), ports.ranges().len()), (4, 3));
        let all: Vec<_> = (0..5).map(|n| ports.nth(n)).collect();
        assert_eq!(all, [Some(5), Some(6), Some(10), Some(1), None]);
        assert_eq!(Ports::default().count(), 60_536);
    }

    #[test]
    fn ports_that_are_the_hosts_are_left_out() {
        let ports = Ports::new([100..=200, 300..=400]);
        for (taken, expected) in [
            (1..=50, vec![100..=200, 300..=400]),
            (150..=160, vec![100..=149, 161..=200, 300..=400]),
            (100..=200, vec![300..=400]),
            (180..=320, vec![100..=179, 321..=400]),
            (1..=u16::MAX, vec![]),
            (0..=120, vec![121..=200, 300..=400]),
            (0..=u16::MAX, vec![]),
            (400..=u16::MAX, vec![100..=200, 300..=399]),
        ] {
            assert_eq!(ports.without(&taken).ranges(), expected, "without {taken:?}");
        }
    }

    #[test]
    fn addresses_take_turns() {
        let locals = Locals::default();
        let addresses = ["10.0.0.1", "fd00::1", "10.0.0.2"].map(|text| locals.enter(text.parse().unwrap()));
        let pool = LocalPool::new(addresses.iter().map(|local| (local.clone(), Ports::default())).collect());
        let turns = |server: &str| {
            let server = server.parse().unwrap();
            pool.turn(server).map(|(local, _)| local.address().to_string()).collect::<Vec<_>>()
        };
        assert_eq!(turns("10.9.9.9:80"), ["10.0.0.1", "10.0.0.2"]);
        assert_eq!(turns("[fd09::9]:80"), ["fd00::1"]);
        assert_eq!(turns("10.9.9.9:80"), ["10.0.0.2", "10.0.0.1"]);
        assert!(Arc::ptr_eq(&locals.enter(addresses[0].address()), &addresses[0]));
    }
}
