//! The sets of keys that the programs look frames up in: a map of maps in the kernel, and the truth in this process.
//!
//! Each set is a hash map behind one slot of an array of maps. A set that is full is copied into a bigger map, which
//! then takes the slot; programs that run meanwhile see the old or the new map, both complete. All programs (the XDP
//! program of every device, the guard) name the array, so that they share the sets and never need loading again.

use super::bpf::{Map, MapKind};
use super::error::SteerError;
use super::key::Key;
use super::view::{Known, View};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// What a set is for; the number is its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Set {
    /// Virtual services: (address, port, protocol), (address, any port, protocol), and their addresses alone.
    Services = 0,
    /// Real servers whose replies need translation: as [`Set::Services`].
    Replies = 1,
    /// Addresses of this host, alone.
    Locals = 2,
    /// Addresses that packets to real servers are sent from, alone.
    Sources = 3,
    /// Ends of tunnels: (address, no port, protocol of the encapsulation) or (address, UDP port, UDP).
    Tunnels = 4,
    /// Real servers that are this host itself and whose replies need translation: as [`Set::Services`].
    OwnServers = 5,
}

impl Set {
    /// How many sets there are.
    pub(super) const COUNT: usize = 6;
}

/// The maps' names, by slot.
const NAMES: [&str; Set::COUNT] =
    ["uvs_services", "uvs_replies", "uvs_locals", "uvs_sources", "uvs_tunnels", "uvs_own_servers"];
/// The same as the kernel counts.
const SETS: u32 = 6;

/// Bits of one entry of the map of host ports.
const WORD_BITS: u16 = 64;
/// Its entries: a bit for every port.
pub(super) const WORDS: u32 = 1 << 16 >> 6;

/// What a new set has room for.
const FIRST: u32 = 1 << 10;
/// How many times bigger a set becomes when it is full.
const GROWTH: u32 = 4;

/// All sets, and the array that the programs name.
#[derive(Debug)]
pub(super) struct Sets {
    slots: Map<u32, u32>,
    sets: [Contents; Set::COUNT],
    host_ports: Map<u32, u64>,
    /// What user space is to see of them, and whether it sees it yet.
    known: Known,
    view: View,
    revealed: bool,
}

/// What a program names: the array of the sets, and the ports of the host's own sockets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptors<'a> {
    pub(super) sets: BorrowedFd<'a>,
    pub(super) host_ports: BorrowedFd<'a>,
}

/// One set: who put how many claims on each key, and the kernel's copy of the keys.
#[derive(Debug)]
struct Contents {
    name: &'static str,
    claims: HashMap<Key, u32>,
    map: Map<Key, u8>,
    capacity: u32,
}

impl Sets {
    pub(super) fn new() -> Result<Self, SteerError> {
        let [services, replies, locals, sources, tunnels, own_servers] = NAMES.map(Contents::new);
        let sets = [services?, replies?, locals?, sources?, tunnels?, own_servers?];
        let slots = Map::create(MapKind::ArrayOfMaps, SETS, "uvs_sets", Some(sets[0].map.as_fd()))?;
        for (slot, contents) in (0..).zip(&sets) {
            put(&slots, slot, &contents.map)?;
        }
        let host_ports = Map::create(MapKind::Array, WORDS, "uvs_host_ports", None)?;
        let known = Known::default();
        Ok(Sets { slots, sets, host_ports, view: View::of(known.clone()), known, revealed: false })
    }

    /// What the programs name.
    pub(super) fn descriptors(&self) -> Descriptors<'_> {
        Descriptors { sets: self.slots.as_fd(), host_ports: self.host_ports.as_fd() }
    }

    /// The sets as user space sees them.
    pub(super) fn view(&self) -> &View {
        &self.view
    }

    /// From now on user space sees what the sets hold; nothing before.
    pub(super) fn reveal(&mut self) {
        self.revealed = true;
        self.view.show(&self.known);
    }

    fn change(&mut self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known);
        if self.revealed {
            self.view.show(&self.known);
        }
    }

    /// How many keys a set has.
    pub(super) fn len(&self, set: Set) -> usize {
        self.sets[set as usize].claims.len()
    }

    /// Claims a key. The first claim puts it into the kernel's map, and then into the view: the kernel has stopped
    /// answering what user space begins to take.
    pub(super) fn claim(&mut self, set: Set, key: Key) -> Result<(), SteerError> {
        let contents = &mut self.sets[set as usize];
        if contents.claims.len() >= contents.capacity as usize && !contents.claims.contains_key(&key) {
            let bigger = contents.bigger()?;
            put(&self.slots, set as u32, &bigger)?;
            contents.capacity *= GROWTH;
            contents.map = bigger;
        }
        match contents.claims.entry(key) {
            Entry::Occupied(mut claims) => *claims.get_mut() += 1,
            Entry::Vacant(vacant) => {
                let doing = || format!("add a key to the map {}", contents.name);
                contents.map.insert(&key, &1).map_err(|source| SteerError::os(doing(), source))?;
                vacant.insert(1);
                self.change(|known| known.sets[set as usize].insert_mut(key));
            }
        }
        Ok(())
    }

    /// Gives a claim back; the last one takes the key out of the kernel's map. Says whether there was a claim.
    pub(super) fn release(&mut self, set: Set, key: Key) -> Result<bool, SteerError> {
        let Some(claims) = self.sets[set as usize].claims.get_mut(&key) else { return Ok(false) };
        if *claims > 1 {
            *claims -= 1;
            return Ok(true);
        }
        self.change(|known| {
            known.sets[set as usize].remove_mut(&key);
        });
        let contents = &mut self.sets[set as usize];
        let doing = || format!("remove a key from the map {}", contents.name);
        contents.map.remove(&key).map_err(|source| SteerError::os(doing(), source))?;
        contents.claims.remove(&key);
        Ok(true)
    }

    /// Says which ports may be those of the host's own sockets.
    pub(super) fn set_host_ports(&mut self, ranges: &[RangeInclusive<u16>]) -> Result<(), SteerError> {
        let mut words = [0_u64; WORDS as usize];
        for port in ranges.iter().cloned().flatten() {
            words[usize::from(port / WORD_BITS)] |= 1 << (port % WORD_BITS);
        }
        let indices: Vec<u32> = (0..WORDS).collect();
        self.host_ports
            .insert_all(&indices, &words)
            .map_err(|source| SteerError::os("say which ports are this host's", source))?;
        self.change(|known| known.host_ports = Arc::new(words));
        Ok(())
    }

    /// Makes a set hold exactly `keys`, one claim each.
    pub(super) fn set(&mut self, set: Set, keys: impl IntoIterator<Item = Key>) -> Result<(), SteerError> {
        let mut gone = std::mem::take(&mut self.sets[set as usize].claims);
        let mut new = Vec::new();
        for key in keys {
            match gone.remove(&key) {
                Some(claims) => drop(self.sets[set as usize].claims.insert(key, claims)),
                None if self.sets[set as usize].claims.contains_key(&key) => {}
                None => new.push(key),
            }
        }
        let stale: Vec<Key> = gone.keys().copied().collect();
        self.sets[set as usize].claims.extend(gone);
        for key in new {
            if !self.sets[set as usize].claims.contains_key(&key) {
                self.claim(set, key)?;
            }
        }
        for key in stale {
            self.release(set, key)?;
        }
        Ok(())
    }
}

impl Contents {
    fn new(name: &'static str) -> Result<Self, SteerError> {
        let map = Map::create(MapKind::Hash, FIRST, name, None)?;
        Ok(Contents { name, claims: HashMap::new(), map, capacity: FIRST })
    }

    /// A map with the same keys and more room.
    fn bigger(&self) -> Result<Map<Key, u8>, SteerError> {
        let bigger = Map::create(MapKind::Hash, self.capacity * GROWTH, self.name, None)?;
        let keys: Vec<Key> = self.claims.keys().copied().collect();
        let doing = || format!("copy the map {} into a bigger one", self.name);
        bigger.insert_all(&keys, &vec![1; keys.len()]).map_err(|source| SteerError::os(doing(), source))?;
        Ok(bigger)
    }
}

fn put(slots: &Map<u32, u32>, slot: u32, map: &Map<Key, u8>) -> Result<(), SteerError> {
    use std::os::fd::AsRawFd;
    slots
        .insert(&slot, &map.as_raw_fd().cast_unsigned())
        .map_err(|source| SteerError::os("put a map into the map of maps", source))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(index: u32) -> Key {
        Key::address(std::net::Ipv4Addr::from_bits(index).into())
    }

    #[test]
    fn a_key_stays_until_its_last_claim_goes() {
        let mut sets = Sets::new().unwrap();
        let there = |sets: &Sets| sets.sets[0].map.get(&key(1)).unwrap().is_some();
        sets.claim(Set::Services, key(1)).unwrap();
        sets.claim(Set::Services, key(1)).unwrap();
        assert!(there(&sets));
        assert!(sets.release(Set::Services, key(1)).unwrap());
        assert!(there(&sets));
        assert!(sets.release(Set::Services, key(1)).unwrap());
        assert!(!there(&sets));
        assert!(!sets.release(Set::Services, key(1)).unwrap());
        assert_eq!(sets.len(Set::Services), 0);
    }

    #[test]
    fn setting_changes_only_the_difference() {
        let mut sets = Sets::new().unwrap();
        for (keys, expected) in [(vec![1, 2, 2], vec![1, 2]), (vec![2, 3], vec![2, 3]), (vec![], vec![])] {
            sets.set(Set::Locals, keys.into_iter().map(key)).unwrap();
            let there: Vec<u32> =
                (1..4).filter(|&i| sets.sets[2].map.get(&key(i)).unwrap().is_some()).collect();
            assert_eq!(there, expected);
            assert_eq!(sets.len(Set::Locals), expected.len());
        }
    }

    #[test]
    fn a_full_set_grows() {
        let mut sets = Sets::new().unwrap();
        let many = FIRST * GROWTH + 1;
        for index in 0..many {
            sets.claim(Set::Replies, key(index)).unwrap();
        }
        let contents = &sets.sets[1];
        assert_eq!(contents.capacity, FIRST * GROWTH * GROWTH);
        assert!((0..many).all(|index| contents.map.get(&key(index)).unwrap().is_some()));
    }
}
