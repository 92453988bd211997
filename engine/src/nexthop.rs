//! Routes and neighbours as the workers read them.
//!
//! [`Routes`] says which neighbour a destination is reached through; it is part of the immutable snapshot. [`NextHops`]
//! says what that neighbour's link-layer address is; it changes in place, so that a neighbour that moves or is resolved
//! again costs no new snapshot. A connection keeps the answer as a [`Cached`] word and asks again when the routes' epoch
//! has changed.

use crate::batch::PortId;
use crate::packet::ethernet::Mac;
use crate::verdict::Neighbour;
use rpds::{HashTrieMapSync, StackSync};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A next hop: an index into [`NextHops`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HopId(pub u16);

/// Where a next hop's frames go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    /// The device they leave by.
    pub port: PortId,
    /// The link-layer address they are sent to.
    pub mac: Mac,
}

/// A next hop in one word, which a register holds and one load reads whole. From the lowest byte: the link-layer address,
/// last byte first; the port in bits 48–61; whether it was used in bit 62; bit 63 is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct HopWord(u64);

impl HopWord {
    /// The device that frames leave by.
    #[inline]
    pub(crate) fn port(self) -> PortId {
        let [a, b, ..] = self.0.to_be_bytes();
        PortId(u16::from_be_bytes([a & 0x3f, b]))
    }

    /// The link-layer address that they are sent to.
    #[inline]
    pub(crate) fn mac(self) -> Mac {
        let [_, _, mac @ ..] = self.0.to_be_bytes();
        mac
    }

    fn hop(self) -> Hop {
        Hop { port: self.port(), mac: self.mac() }
    }
}

impl From<Hop> for HopWord {
    fn from(hop: Hop) -> Self {
        let [c, d, e, f, g, h] = hop.mac;
        let [a, b] = hop.port.0.to_be_bytes();
        HopWord(u64::from_be_bytes([a, b, c, d, e, f, g, h]) | RESOLVED)
    }
}

/// Link-layer addresses of next hops: a bounded array that the control thread writes and every worker reads.
#[derive(Debug)]
pub struct NextHops {
    /// Each a [`HopWord`], or zero.
    words: Box<[AtomicU64]>,
}

const RESOLVED: u64 = 1 << 63;
/// Set by whoever asks for the next hop and finds it unset: once each time the control thread has taken it away, so that
/// the line is read by all and hardly ever written.
const USED: u64 = 1 << 62;

/// Next hops that a director has room for when nobody says otherwise.
pub const DEFAULT_HOPS: u16 = 16_384;

impl Default for NextHops {
    fn default() -> Self {
        NextHops::with_capacity(DEFAULT_HOPS)
    }
}

impl NextHops {
    /// Room for `capacity` next hops, all unresolved.
    pub fn new(capacity: u16) -> Arc<Self> {
        Arc::new(NextHops::with_capacity(capacity))
    }

    fn with_capacity(capacity: u16) -> Self {
        NextHops { words: (0..capacity).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The next hop, unless its link-layer address is not known.
    pub fn get(&self, id: HopId) -> Option<Hop> {
        self.word(id).map(HopWord::hop)
    }

    /// The same, as it is kept.
    #[inline]
    pub(crate) fn word(&self, id: HopId) -> Option<HopWord> {
        let place = self.words.get(usize::from(id.0))?;
        let word = place.load(Relaxed);
        if word & (RESOLVED | USED) == RESOLVED {
            place.fetch_or(USED, Relaxed);
        }
        (word & RESOLVED != 0).then_some(HopWord(word))
    }

    /// Gives the next hop a link-layer address.
    pub fn set(&self, id: HopId, hop: Hop) {
        if let Some(word) = self.words.get(usize::from(id.0)) {
            let used = word.load(Relaxed) & USED;
            word.store(HopWord::from(hop).0 | used, Relaxed);
        }
    }

    /// The next hop's link-layer address is not known any more; frames to it are held until it is.
    pub fn clear(&self, id: HopId) {
        if let Some(word) = self.words.get(usize::from(id.0)) {
            word.store(0, Relaxed);
        }
    }

    /// Whether frames went to the next hop since the last call: the kernel cannot know, and whoever keeps its neighbour
    /// table fresh must.
    pub fn take_used(&self, id: HopId) -> bool {
        self.words.get(usize::from(id.0)).is_some_and(|word| word.fetch_and(!USED, Relaxed) & USED != 0)
    }

    /// How many next hops there may be.
    pub fn capacity(&self) -> usize {
        self.words.len()
    }
}

/// Where packets to some prefix go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// The destination itself is on the link of this device.
    OnLink(PortId),
    /// A gateway takes them.
    Via(Neighbour),
    /// The destination is an address of this host.
    Local,
    /// A route says that there is no way (unreachable, blackhole, prohibit), or no route says anything.
    Unreachable,
    /// Through a device that this director does not hold.
    Elsewhere,
}

/// One route of the kernel's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Network address; bits beyond the length are ignored.
    pub network: IpAddr,
    /// Prefix length in bits.
    pub length: u8,
    /// Where its packets go.
    pub target: Target,
}

/// What [`Routes::resolve`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// A neighbour that has a place in [`NextHops`].
    Hop(HopId),
    /// A neighbour not heard of yet.
    Unresolved(Neighbour),
    /// The destination is an address of this host.
    Local,
    /// There is no route.
    NoRoute,
    /// The route leads through a device that this director does not hold.
    Elsewhere,
}

/// A next hop as a connection remembers it: good while the routes' epoch is the one it was found in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cached(u32);

impl Cached {
    /// What a connection that has not asked yet remembers.
    pub const NONE: Cached = Cached(0);

    /// From a connection's word.
    #[inline]
    pub fn from_word(word: u32) -> Self {
        Cached(word)
    }

    /// As a connection's word.
    #[inline]
    pub fn word(self) -> u32 {
        self.0
    }
}

/// All [`NextHops`] are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for another next hop: {capacity} neighbours are known; raise the limit of next hops")]
pub struct HopsFull {
    /// How many there may be.
    pub capacity: usize,
}

/// Routes by longest prefix, and the neighbours known on our links. Immutable: a change makes another one that shares
/// what did not change.
#[derive(Clone, Debug)]
pub struct Routes {
    v4: Arc<Ranges<u32>>,
    v6: Arc<Ranges<u128>>,
    neighbours: HashTrieMapSync<Neighbour, HopId, foldhash::fast::FixedState>,
    free: StackSync<HopId>,
    used: u16,
    /// Never zero: a zero word in a connection must never look like a next hop found.
    epoch: u16,
}

impl Default for Routes {
    fn default() -> Self {
        Routes::build([])
    }
}

impl Routes {
    /// Routes without neighbours. Of several routes to one prefix the first counts: give those of the lowest metric first.
    pub fn build(routes: impl IntoIterator<Item = Route>) -> Self {
        let (v4, v6) = flatten(routes);
        Routes {
            v4: Arc::new(v4),
            v6: Arc::new(v6),
            neighbours: HashTrieMapSync::new_with_hasher_and_ptr_kind(foldhash::fast::FixedState::default()),
            free: StackSync::new_sync(),
            used: 0,
            epoch: 1,
        }
    }

    /// Other routes, the same neighbours. Every connection looks for its next hops anew.
    #[must_use]
    pub fn with_routes(&self, routes: impl IntoIterator<Item = Route>) -> Self {
        let (v4, v6) = flatten(routes);
        Routes { v4: Arc::new(v4), v6: Arc::new(v6), ..self.next_epoch() }
    }

    /// With a place in `hops` for `neighbour`, whose link-layer address is `mac`. When it had one already, that is
    /// updated in place and these routes need not be published ([`Routes::hop_of`] tells).
    ///
    /// # Errors
    /// When every place in `hops` is taken.
    pub fn with_neighbour(&self, hops: &NextHops, neighbour: Neighbour, mac: Mac) -> Result<Self, HopsFull> {
        let mut next = self.clone();
        let id = match self.hop_of(&neighbour) {
            Some(id) => id,
            None => next.take_hop(hops)?,
        };
        hops.set(id, Hop { port: neighbour.port, mac });
        next.neighbours.insert_mut(neighbour, id);
        Ok(next)
    }

    /// Without `neighbour`, whose place in `hops` another one may take. Every connection looks for its next hops anew;
    /// for a neighbour that is only silent, [`NextHops::clear`] does.
    #[must_use]
    pub fn without_neighbour(&self, hops: &NextHops, neighbour: &Neighbour) -> Self {
        let Some(id) = self.hop_of(neighbour) else { return self.clone() };
        let mut next = self.next_epoch();
        next.neighbours.remove_mut(neighbour);
        next.free.push_mut(id);
        hops.clear(id);
        next
    }

    fn take_hop(&mut self, hops: &NextHops) -> Result<HopId, HopsFull> {
        if let Some(id) = self.free.peek().copied() {
            self.free.pop_mut();
            return Ok(id);
        }
        if usize::from(self.used) >= hops.capacity() {
            return Err(HopsFull { capacity: hops.capacity() });
        }
        self.used += 1;
        Ok(HopId(self.used - 1))
    }

    fn next_epoch(&self) -> Self {
        Routes { epoch: self.epoch.checked_add(1).unwrap_or(1), ..self.clone() }
    }

    /// Where packets to `destination` go.
    pub fn target(&self, destination: IpAddr) -> Target {
        match destination {
            IpAddr::V4(address) => self.v4.find(address.to_bits()),
            IpAddr::V6(address) => self.v6.find(address.to_bits()),
        }
    }

    /// The neighbour that takes packets to `destination`, if one does.
    pub fn neighbour(&self, destination: IpAddr) -> Option<Neighbour> {
        match self.target(destination) {
            Target::OnLink(port) => Some(Neighbour { port, address: destination }),
            Target::Via(neighbour) => Some(neighbour),
            Target::Local | Target::Unreachable | Target::Elsewhere => None,
        }
    }

    /// The next hop for packets to `destination`.
    pub fn resolve(&self, destination: IpAddr) -> Resolved {
        let neighbour = match self.target(destination) {
            Target::OnLink(port) => Neighbour { port, address: destination },
            Target::Via(neighbour) => neighbour,
            Target::Local => return Resolved::Local,
            Target::Unreachable => return Resolved::NoRoute,
            Target::Elsewhere => return Resolved::Elsewhere,
        };
        self.hop_of(&neighbour).map_or(Resolved::Unresolved(neighbour), Resolved::Hop)
    }

    /// The place of `neighbour` in [`NextHops`], if it has one.
    pub fn hop_of(&self, neighbour: &Neighbour) -> Option<HopId> {
        self.neighbours.get(neighbour).copied()
    }

    /// Every neighbour with a place in [`NextHops`].
    pub fn neighbours(&self) -> impl Iterator<Item = (&Neighbour, HopId)> {
        self.neighbours.iter().map(|(neighbour, id)| (neighbour, *id))
    }

    /// What a connection remembers of `id`.
    #[inline]
    pub fn cache(&self, id: HopId) -> Cached {
        Cached(u32::from(id.0) << 16 | u32::from(self.epoch))
    }

    /// The next hop that a connection remembers, unless routes have changed since.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the halves of the word")]
    pub fn cached(&self, cached: Cached) -> Option<HopId> {
        (cached.0 as u16 == self.epoch).then_some(HopId((cached.0 >> 16) as u16))
    }
}

/// A whole address space cut into ranges: range `i` starts at `starts[i]`, which is sorted, and `starts[0]` is zero.
#[derive(Debug)]
struct Ranges<A> {
    starts: Box<[A]>,
    targets: Box<[Target]>,
}

impl<A: Ord + Copy> Ranges<A> {
    fn find(&self, address: A) -> Target {
        let after = self.starts.partition_point(|start| *start <= address);
        self.targets.get(after.wrapping_sub(1)).copied().unwrap_or(Target::Unreachable)
    }
}

fn flatten(routes: impl IntoIterator<Item = Route>) -> (Ranges<u32>, Ranges<u128>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for Route { network, length, target } in routes {
        match network {
            IpAddr::V4(network) => v4.push(prefix::<32>(u128::from(network.to_bits()), length, target)),
            IpAddr::V6(network) => v6.push(prefix::<128>(network.to_bits(), length, target)),
        }
    }
    let v4 = cut(v4, u128::from(Ipv4Addr::BROADCAST.to_bits()));
    #[expect(clippy::cast_possible_truncation, reason = "prefixes of 32 bits have no more")]
    let starts = v4.iter().map(|(start, _)| *start as u32).collect();
    let v4 = Ranges { starts, targets: v4.iter().map(|(_, target)| *target).collect() };
    let v6 = cut(v6, Ipv6Addr::from([0xff; 16]).to_bits());
    let v6 = Ranges { starts: v6.iter().map(|r| r.0).collect(), targets: v6.iter().map(|r| r.1).collect() };
    (v4, v6)
}

/// First and last address of a prefix.
struct Prefix {
    first: u128,
    last: u128,
    target: Target,
}

fn prefix<const BITS: u32>(network: u128, length: u8, target: Target) -> Prefix {
    let host = BITS - u32::from(length).min(BITS);
    let mask = 1_u128.checked_shl(host).map_or(u128::MAX, |bit| bit - 1);
    Prefix { first: network & !mask, last: network | mask, target }
}

/// Cuts `0..=max` into ranges such that each has the target of the longest prefix that covers it.
fn cut(mut prefixes: Vec<Prefix>, max: u128) -> Vec<(u128, Target)> {
    // Prefixes nest or are disjoint: with the wider first, a stack holds those that cover the current address.
    prefixes.sort_by_key(|prefix| (prefix.first, std::cmp::Reverse(prefix.last)));
    prefixes.dedup_by_key(|prefix| (prefix.first, prefix.last));
    let mut ranges = vec![(0, Target::Unreachable)];
    let mut covering = vec![(max, Target::Unreachable)];
    for prefix in prefixes {
        close(&mut ranges, &mut covering, prefix.first);
        begin(&mut ranges, prefix.first, prefix.target);
        covering.push((prefix.last, prefix.target));
    }
    close(&mut ranges, &mut covering, max);
    ranges
}

/// Ends every prefix that does not reach `address`; what it interrupted goes on after it.
fn close(ranges: &mut Vec<(u128, Target)>, covering: &mut Vec<(u128, Target)>, address: u128) {
    while let Some((last, _)) = covering.last().copied()
        && last < address
    {
        covering.pop();
        let outer = covering.last().map_or(Target::Unreachable, |(_, target)| *target);
        begin(ranges, last + 1, outer);
    }
}

fn begin(ranges: &mut Vec<(u128, Target)>, start: u128, target: Target) {
    if ranges.last().is_some_and(|(last, _)| *last == start) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != target) {
        ranges.push((start, target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn route(text: &str, target: Target) -> Route {
        let (network, length) = text.split_once('/').unwrap();
        Route { network: network.parse().unwrap(), length: length.parse().unwrap(), target }
    }

    fn neighbour(port: u16, address: &str) -> Neighbour {
        Neighbour { port: PortId(port), address: address.parse().unwrap() }
    }

    #[test]
    fn use_of_a_next_hop_is_remembered_until_it_is_taken_away() {
        let hops = NextHops::new(2);
        let hop = |last| Hop { port: PortId(0x3fff), mac: [2, 0, 0, 0, 0, last] };
        assert_eq!((hops.get(HopId(0)), hops.take_used(HopId(0))), (None, false), "unresolved");
        hops.set(HopId(0), hop(1));
        assert!(!hops.take_used(HopId(0)), "known, not used");
        assert_eq!(hops.get(HopId(0)), Some(hop(1)));
        hops.set(HopId(0), hop(2));
        assert_eq!(hops.get(HopId(0)), Some(hop(2)), "the mark is no part of the address");
        assert!(hops.take_used(HopId(0)), "used, even if it moved since");
        assert!(!hops.take_used(HopId(0)), "not again");
        assert!(!hops.take_used(HopId(1)) && !hops.take_used(HopId(2)), "others, and none");
    }

    #[test]
    fn the_longest_prefix_wins() {
        let gateway = neighbour(0, "10.0.0.254");
        let routes = Routes::build([
            route("0.0.0.0/0", Target::Via(gateway)),
            route("10.0.0.0/24", Target::OnLink(PortId(0))),
            route("10.0.0.1/32", Target::Local),
            route("10.0.0.255/32", Target::Unreachable),
            route("172.16.0.0/12", Target::Elsewhere),
            route("172.16.5.77/24", Target::OnLink(PortId(1))),
            route("172.16.0.0/12", Target::OnLink(PortId(9))),
            route("2001:db8::/64", Target::OnLink(PortId(2))),
            route("::/0", Target::Via(neighbour(2, "fe80::1"))),
        ]);
        for (destination, expected) in [
            ("8.8.8.8", Target::Via(gateway)),
            ("9.255.255.255", Target::Via(gateway)),
            ("10.0.0.0", Target::OnLink(PortId(0))),
            ("10.0.0.1", Target::Local),
            ("10.0.0.2", Target::OnLink(PortId(0))),
            ("10.0.0.255", Target::Unreachable),
            ("10.0.1.0", Target::Via(gateway)),
            ("172.16.4.255", Target::Elsewhere),
            ("172.16.5.0", Target::OnLink(PortId(1))),
            ("172.16.5.255", Target::OnLink(PortId(1))),
            ("172.16.6.0", Target::Elsewhere),
            ("172.32.0.0", Target::Via(gateway)),
            ("255.255.255.255", Target::Via(gateway)),
            ("2001:db8::7", Target::OnLink(PortId(2))),
            ("2001:db8:0:1::7", Target::Via(neighbour(2, "fe80::1"))),
        ] {
            assert_eq!(routes.target(destination.parse().unwrap()), expected, "{destination}");
        }
        assert_eq!(routes.neighbour("8.8.8.8".parse().unwrap()), Some(gateway));
        assert_eq!(routes.neighbour("10.0.0.9".parse().unwrap()), Some(neighbour(0, "10.0.0.9")));
        assert_eq!(routes.neighbour("10.0.0.1".parse().unwrap()), None);
    }

    #[test]
    fn nothing_is_reached_without_routes() {
        let routes = Routes::default();
        assert_eq!(routes.resolve("10.0.0.1".parse().unwrap()), Resolved::NoRoute);
        assert_eq!(routes.resolve("::1".parse().unwrap()), Resolved::NoRoute);
    }

    #[test]
    fn neighbours_come_and_go() {
        let hops = NextHops::new(2);
        let routes = Routes::build([route("10.0.0.0/24", Target::OnLink(PortId(3)))]);
        let (a, b, c) = (neighbour(3, "10.0.0.1"), neighbour(3, "10.0.0.2"), neighbour(3, "10.0.0.3"));
        assert_eq!(routes.resolve(a.address), Resolved::Unresolved(a));

        let routes = routes.with_neighbour(&hops, a, [1; 6]).unwrap();
        let Resolved::Hop(first) = routes.resolve(a.address) else { panic!("known now") };
        assert_eq!(hops.get(first), Some(Hop { port: PortId(3), mac: [1; 6] }));
        let remembered = routes.cache(first);
        assert_eq!(routes.cached(remembered), Some(first));
        assert_eq!(routes.cached(Cached::NONE), None);

        let routes = routes.with_neighbour(&hops, a, [2; 6]).unwrap();
        assert_eq!(routes.cached(remembered), Some(first), "a new address needs no new epoch");
        assert_eq!(hops.get(first).unwrap().mac, [2; 6]);

        let routes = routes.with_neighbour(&hops, b, [3; 6]).unwrap();
        assert_eq!(routes.with_neighbour(&hops, c, [4; 6]).err(), Some(HopsFull { capacity: 2 }));

        let routes = routes.without_neighbour(&hops, &a);
        assert_eq!(routes.cached(remembered), None, "its place may be another's soon");
        assert_eq!((hops.get(first), routes.hop_of(&a)), (None, None));
        let routes = routes.with_neighbour(&hops, c, [4; 6]).unwrap();
        assert_eq!(routes.hop_of(&c), Some(first));
        let other = routes.with_routes([]);
        assert_eq!((other.cached(routes.cache(first)), other.hop_of(&c)), (None, Some(first)));
    }

    #[test]
    fn a_hop_keeps_every_bit() {
        let hops = NextHops::new(1);
        let hop = Hop { port: PortId(0x3fff), mac: [0xff, 0, 0xab, 0xcd, 1, 0xfe] };
        hops.set(HopId(0), hop);
        assert_eq!(hops.get(HopId(0)), Some(hop));
        hops.clear(HopId(0));
        assert_eq!((hops.get(HopId(0)), hops.get(HopId(1))), (None, None));
    }

    proptest! {
        #[test]
        fn as_a_search_of_all_prefixes(
            routes in prop::collection::vec((any::<u32>(), 0_u8..=32), 0..20),
            destinations in prop::collection::vec(any::<u32>(), 8),
        ) {
            let all: Vec<Route> = routes.iter().zip(0..).map(|((network, length), port)| Route {
                // Few high bits: prefixes nest often.
                network: IpAddr::V4(Ipv4Addr::from(network & 0xc0c0_00ff)), length: *length, target: Target::OnLink(PortId(port)),
            }).collect();
            let flat = Routes::build(all.iter().copied());
            for address in destinations.iter().map(|d| d & 0xc0c1_01ff) {
                let covers = |route: &&Route| match route.network {
                    IpAddr::V4(n) => route.length == 0 || (n.to_bits() ^ address) >> (32 - u32::from(route.length)) == 0,
                    IpAddr::V6(_) => false,
                };
                let longest = all.iter().filter(covers).rev().max_by_key(|r| r.length);
                let expected = longest.map_or(Target::Unreachable, |route| route.target);
                prop_assert_eq!(flat.target(IpAddr::V4(Ipv4Addr::from(address))), expected);
            }
        }
    }
}
