//! The destinations (real servers) of one virtual service, in the kernel's list order.

use crate::scheduler::Options;
use std::net::SocketAddr;
use thiserror::Error;

/// The most destinations one service may have.
pub const MAX_DESTINATIONS: usize = 1 << 23;

/// The greatest weight: the kernel's is an `int`.
const MAX_WEIGHT: u32 = i32::MAX.cast_unsigned();

/// A list shorter than this is never renumbered.
const SHORT: usize = 64;

/// Why a destination could not be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    /// The bound is reached.
    #[error(
        "the service has {MAX_DESTINATIONS} real servers, which is the most it may have: spread them over services"
    )]
    Full,
}

/// A destination's place in its pool: a small number that stays the same as long as the destination is there.
///
/// The number is used again after a removal, but by another `Slot`: what still holds the old one finds nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot {
    index: u32,
    generation: u32,
}

impl Slot {
    /// The number, dense from 0: good as an index into arrays kept beside the pool.
    #[inline]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

/// One real server of a service, as far as scheduling goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its address and port (port 0: the packet's own).
    pub address: SocketAddr,
    /// Its weight, at most 2³¹−1 (more counts as that). With 0 it takes no new connection.
    pub weight: u32,
    /// With this many connections it takes no more (`-x`). 0: no limit.
    pub upper_threshold: u32,
    /// Below this many it takes them again (`-y`). 0: three quarters of the upper threshold.
    pub lower_threshold: u32,
    /// Connections in an active protocol state.
    pub active: u32,
    /// Its other connections.
    pub inactive: u32,
    /// Whether it reached the upper threshold and has not come below the lower one since.
    pub overloaded: bool,
}

impl Destination {
    /// A destination without thresholds and connections.
    pub fn new(address: SocketAddr, weight: u32) -> Self {
        Destination {
            address,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            active: 0,
            inactive: 0,
            overloaded: false,
        }
    }

    /// The same with thresholds.
    #[must_use]
    pub fn with_thresholds(self, upper: u32, lower: u32) -> Self {
        Destination { upper_threshold: upper, lower_threshold: lower, ..self }
    }

    /// Connections bound to it, active or not.
    #[inline]
    pub fn total(&self) -> u32 {
        self.active.saturating_add(self.inactive)
    }

    /// Whether it may take a new connection.
    #[inline]
    pub fn usable(&self) -> bool {
        self.weight > 0 && !self.overloaded
    }

    /// IPVS's measure of load for lc and wlc: an active connection counts 257 times an inactive one, because Linux 6.1.192
    /// adds all connections to 256 times the active ones.
    #[inline]
    pub fn overhead(&self) -> u64 {
        u64::from(self.active) * 256 + u64::from(self.active) + u64::from(self.inactive)
    }

    /// Sets or clears [`Destination::overloaded`]; between the thresholds it stays as it is.
    fn assess(&mut self) {
        let upper = self.upper_threshold;
        let lower = if self.lower_threshold == 0 { upper - (upper >> 2) } else { self.lower_threshold };
        if upper == 0 || self.total() < lower.min(upper) {
            self.overloaded = false;
        } else if self.total() >= upper {
            self.overloaded = true;
        }
    }
}

/// What the removal of a destination took away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed {
    /// Its slot, which is stale now.
    pub slot: Slot,
    /// Its position, which no destination has now.
    pub position: usize,
    /// Its predecessor in the list; `None` when it was the first.
    pub previous: Option<Slot>,
    /// The destination with its counters: to be added again if the same one comes back while it has connections.
    pub destination: Destination,
}

/// One cache line, which is all that a change of a destination's counters touches here.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Entry {
    generation: u32,
    position: u32,
    destination: Option<Destination>,
}

const GAP: u32 = u32::MAX;

/// The destinations of one service.
///
/// As in the kernel, a new destination enters at the head of the list and every walk starts there. Positions number
/// the list from its tail, with gaps where destinations were removed: the greater the position, the earlier in the list.
#[derive(Clone, Debug, Default)]
pub struct Pool {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// The index of the destination at each position; `GAP` for none.
    order: Vec<u32>,
    /// By index: the last weight that was not 0.
    last_weights: Vec<u32>,
    flags: u32,
    options: Options,
}

impl Pool {
    /// How many destinations there are.
    pub fn len(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The service's flags (see [`crate::flags`]).
    pub fn flags(&self) -> u32 {
        self.flags
    }

    /// The service's options for its scheduler.
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// The destination of a slot; `None` when it was removed.
    #[inline]
    pub fn get(&self, slot: Slot) -> Option<&Destination> {
        self.entry(slot)?.destination.as_ref()
    }

    /// All destinations in list order, newest first.
    pub fn iter(&self) -> impl Iterator<Item = (Slot, &Destination)> + Clone {
        self.order.iter().rev().filter_map(|&index| {
            let entry = self.entries.get(index as usize)?;
            Some((Slot { index, generation: entry.generation }, entry.destination.as_ref()?))
        })
    }

    /// The slot of the destination with this address and port. Walks the list.
    pub fn find(&self, address: SocketAddr) -> Option<Slot> {
        self.iter().find_map(|(slot, destination)| (destination.address == address).then_some(slot))
    }

    /// The last weight of a destination that was not 0, or 0 if it was added with that and has had no other: its share of mh's
    /// table, which it keeps while it is quiesced.
    pub fn last_weight(&self, slot: Slot) -> u32 {
        self.get(slot).map_or(0, |_| self.last_weights[slot.index()])
    }

    /// Where in the list a destination is: greater is earlier. Below [`Pool::positions`].
    #[inline]
    pub fn position(&self, slot: Slot) -> Option<usize> {
        Some(self.entry(slot)?.position as usize)
    }

    /// How many positions there are, gaps included.
    pub fn positions(&self) -> usize {
        self.order.len()
    }

    /// The destination at a position.
    #[inline]
    pub fn at(&self, position: usize) -> Option<Slot> {
        let index = *self.order.get(position)?;
        let entry = self.entries.get(index as usize)?;
        Some(Slot { index, generation: entry.generation })
    }

    pub(crate) fn set_flags(&mut self, flags: u32) {
        self.flags = flags;
    }

    pub(crate) fn set_options(&mut self, options: Options) {
        self.options = options;
    }

    /// Adds a destination at the head of the list. Its counters and its overload flag are taken as they are given.
    pub(crate) fn add(&mut self, mut destination: Destination) -> Result<Slot, PoolError> {
        if self.len() >= MAX_DESTINATIONS || self.order.len() >= 2 * MAX_DESTINATIONS {
            return Err(PoolError::Full);
        }
        destination.weight = destination.weight.min(MAX_WEIGHT);
        destination.assess();
        let position = narrow(self.order.len());
        let slot = match self.free.pop() {
            Some(index) => Slot { index, generation: self.entries[index as usize].generation },
            None => {
                self.entries.push(Entry { generation: 0, position, destination: None });
                self.last_weights.push(0);
                Slot { index: narrow(self.entries.len() - 1), generation: 0 }
            }
        };
        self.last_weights[slot.index()] = destination.weight;
        let entry = &mut self.entries[slot.index()];
        entry.position = position;
        entry.destination = Some(destination);
        self.order.push(slot.index);
        Ok(slot)
    }

    pub(crate) fn remove(&mut self, slot: Slot) -> Option<Removed> {
        let entry = self.entry_mut(slot)?;
        let destination = entry.destination.take()?;
        entry.generation = entry.generation.wrapping_add(1);
        let position = entry.position as usize;
        self.free.push(slot.index);
        self.order[position] = GAP;
        let before = self.order[position + 1..].iter().position(|index| *index != GAP);
        let previous = before.and_then(|before| self.at(position + 1 + before));
        while self.order.last() == Some(&GAP) {
            self.order.pop();
        }
        Some(Removed { slot, position, previous, destination })
    }

    /// Whether more than half of the positions are gaps.
    pub(crate) fn is_sparse(&self) -> bool {
        self.order.len() > SHORT && self.len() < self.order.len() / 2
    }

    /// Closes the gaps: the order stays, positions change.
    pub(crate) fn renumber(&mut self) {
        self.order.retain(|index| *index != GAP);
        for (position, index) in self.order.iter().enumerate() {
            self.entries[*index as usize].position = narrow(position);
        }
    }

    /// Sets weight and thresholds. `false` when the slot is stale.
    pub(crate) fn edit(&mut self, slot: Slot, weight: u32, upper: u32, lower: u32) -> bool {
        let weight = weight.min(MAX_WEIGHT);
        if weight != 0 && self.get(slot).is_some() {
            self.last_weights[slot.index()] = weight;
        }
        self.change(slot, |destination| {
            destination.weight = weight;
            destination.upper_threshold = upper;
            destination.lower_threshold = lower;
        })
    }

    /// Sets the counters. `false` when nothing changed or the slot is stale.
    #[inline]
    pub(crate) fn settle(&mut self, slot: Slot, active: u32, inactive: u32) -> bool {
        let same = |it: &Destination| it.active == active && it.inactive == inactive;
        if self.get(slot).is_none_or(same) {
            return false;
        }
        self.change(slot, |destination| {
            destination.active = active;
            destination.inactive = inactive;
        })
    }

    #[inline]
    fn change(&mut self, slot: Slot, change: impl FnOnce(&mut Destination)) -> bool {
        let Some(destination) = self.entry_mut(slot).and_then(|entry| entry.destination.as_mut()) else {
            return false;
        };
        change(destination);
        destination.assess();
        true
    }

    #[inline]
    fn entry(&self, slot: Slot) -> Option<&Entry> {
        self.entries.get(slot.index()).filter(|entry| entry.generation == slot.generation)
    }

    #[inline]
    fn entry_mut(&mut self, slot: Slot) -> Option<&mut Entry> {
        self.entries.get_mut(slot.index()).filter(|entry| entry.generation == slot.generation)
    }
}

/// Indices and positions stay below 2 · [`MAX_DESTINATIONS`].
#[allow(clippy::cast_possible_truncation)]
fn narrow(number: usize) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overload_has_hysteresis() {
        // Connections one after the other, and whether overloaded after each.
        type Life<'a> = &'a [(u32, bool)];
        let cases: [(u32, u32, Life); 6] = [
            (4, 2, &[(3, false), (4, true), (3, true), (2, true), (1, false), (3, false), (4, true)]),
            (4, 4, &[(4, true), (3, false)]),
            (8, 0, &[(8, true), (6, true), (5, false), (7, false)]),
            (5, 0, &[(5, true), (4, true), (3, false)]),
            (1, 0, &[(1, true), (0, false)]),
            (0, 7, &[(1000, false), (0, false)]),
        ];
        for (upper, lower, lives) in cases {
            let mut pool = Pool::default();
            let address = SocketAddr::from(([10, 2, 0, 1], 80));
            let slot = pool.add(Destination::new(address, 1).with_thresholds(upper, lower)).unwrap();
            for &(connections, overloaded) in lives {
                pool.settle(slot, connections / 2, connections - connections / 2);
                let now = pool.get(slot).unwrap().overloaded;
                assert_eq!(now, overloaded, "-x {upper} -y {lower}: {connections} connections");
            }
        }
    }

    #[test]
    fn an_edit_looks_at_the_load_again() {
        let mut pool = Pool::default();
        let slot = pool.add(Destination::new(SocketAddr::from(([10, 2, 0, 1], 80)), 1)).unwrap();
        pool.settle(slot, 5, 0);
        // (upper, lower, overloaded after the edit)
        for (upper, lower, overloaded) in
            [(5, 2, true), (9, 5, true), (9, 6, false), (9, 5, false), (4, 0, true), (0, 0, false)]
        {
            assert!(pool.edit(slot, 1, upper, lower));
            assert_eq!(pool.get(slot).unwrap().overloaded, overloaded, "-x {upper} -y {lower}");
        }
    }

    #[test]
    fn an_active_connection_weighs_257() {
        let address = SocketAddr::from(([10, 2, 0, 1], 80));
        for (active, inactive, overhead) in [(0, 0, 0), (0, 1, 1), (1, 0, 257), (2, 3, 517)] {
            assert_eq!(Destination { active, inactive, ..Destination::new(address, 1) }.overhead(), overhead);
        }
        let full = Destination { active: u32::MAX, inactive: u32::MAX, ..Destination::new(address, 1) };
        assert_eq!((full.overhead(), full.total()), (258 * u64::from(u32::MAX), u32::MAX));
    }

    #[test]
    fn a_weight_is_an_int_of_the_kernel() {
        let mut pool = Pool::default();
        let slot = pool.add(Destination::new(SocketAddr::from(([10, 2, 0, 1], 80)), u32::MAX)).unwrap();
        assert_eq!(pool.get(slot).unwrap().weight, 0x7fff_ffff);
        assert!(pool.edit(slot, 0x8000_0000, 0, 0));
        assert_eq!(pool.get(slot).unwrap().weight, 0x7fff_ffff);
    }
}
