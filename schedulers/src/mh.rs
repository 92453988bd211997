//! mh, Maglev hashing: by the client's address, with `mh-port` by its port, too, through a table in which the coming or going of
//! a destination moves few of the others' slots.

use crate::hash::{fold, hsiphash};
use crate::pool::{Destination, Pool, Removed, Slot};
use crate::scheduler::{MH_TABLE_SIZES, Request, Scheduler, State, flags};
use std::collections::HashMap;
use std::net::SocketAddr;

/// The keys of the two hashes: that of clients and of where a destination begins, and that of its steps.
const KEYS: (u64, u64) = (2_654_435_761, 2_654_446_892);

/// Place in [`MH_TABLE_SIZES`] of the size that kernels are built with.
const DEFAULT_SIZE: usize = 4;

/// The table is the kernel's, slot by slot.
///
/// Exported state: the destinations of weight 0 that have slots, and the last weight of each.
#[derive(Debug, Default)]
pub(crate) struct MaglevHashing {
    /// Empty when nobody has or had weight.
    table: Vec<Slot>,
    /// Whether the list has changed since the table was filled.
    outdated: bool,
    /// The last weights of destinations that were quiesced before this process.
    quiesced: HashMap<Slot, u32>,
}

/// A destination while it claims its slots.
struct Claimant {
    slot: Slot,
    next: usize,
    step: usize,
    /// How many it claims before the next destination does.
    turns: u32,
}

/// The place in [`MH_TABLE_SIZES`] of the table's size.
pub(crate) fn place(pool: &Pool) -> usize {
    let wanted = pool.options().table_size;
    MH_TABLE_SIZES.iter().position(|size| *size == wanted).unwrap_or(DEFAULT_SIZE)
}

fn size(pool: &Pool) -> usize {
    MH_TABLE_SIZES[place(pool)] as usize
}

fn hash(key: u64, address: SocketAddr, with_port: bool, offset: usize) -> usize {
    let port = if with_port { u32::from(address.port()) } else { 0 };
    let offset = u32::try_from(offset).unwrap_or(0);
    hsiphash(key, offset.wrapping_add(port).wrapping_add(fold(address.ip()))) as usize
}

fn greatest_common_divisor(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { greatest_common_divisor(b, a % b) }
}

/// A table of the size at this place of [`MH_TABLE_SIZES`] for destinations with these weights, in list order.
pub(crate) fn populate<'a>(
    list: impl Iterator<Item = (Slot, &'a Destination, u32)> + Clone,
    place: usize,
) -> Vec<Slot> {
    let size = MH_TABLE_SIZES[place] as usize;
    // Half of the index that a kernel is configured with.
    let bits = u32::try_from(place).map_or(0, |place| (place + 8) / 2);
    let weights = list.clone().map(|(.., weight)| weight);
    let divisor = weights.clone().fold(0, greatest_common_divisor);
    if divisor == 0 {
        return Vec::new();
    }
    let shift =
        (weights.max().unwrap_or(0) / divisor).checked_ilog2().map_or(0, |bit| bit + 1).saturating_sub(bits);
    let mut claimants: Vec<Claimant> = list
        .filter(|(.., weight)| *weight > 0)
        .map(|(slot, destination, weight)| Claimant {
            slot,
            next: hash(KEYS.0, destination.address, true, 0) % size,
            step: hash(KEYS.1, destination.address, true, 0) % (size - 1) + 1,
            turns: ((weight / divisor) >> shift).max(1),
        })
        .collect();
    let mut table = vec![None; size];
    let mut left = size;
    while left > 0 {
        for claimant in &mut claimants {
            for _ in 0..claimant.turns {
                if left == 0 {
                    break;
                }
                while table[claimant.next].is_some() {
                    claimant.next += claimant.step;
                    if claimant.next >= size {
                        claimant.next -= size;
                    }
                }
                table[claimant.next] = Some(claimant.slot);
                left -= 1;
            }
        }
    }
    table.into_iter().flatten().collect()
}

impl MaglevHashing {
    /// Fills the table for all destinations but one that may be left out.
    fn fill(&mut self, pool: &Pool, without: Option<Slot>) {
        let list = pool.iter().filter(|(slot, _)| Some(*slot) != without);
        let weighed = list.map(|(slot, destination)| (slot, destination, self.last_weight(pool, slot)));
        self.table = populate(weighed, place(pool));
    }

    fn last_weight(&self, pool: &Pool, slot: Slot) -> u32 {
        match pool.last_weight(slot) {
            0 => self.quiesced.get(&slot).copied().unwrap_or(0),
            weight => weight,
        }
    }

    fn usable(&self, pool: &Pool, bucket: usize) -> Option<Slot> {
        let slot = *self.table.get(bucket)?;
        pool.get(slot).is_some_and(Destination::usable).then_some(slot)
    }

    /// A table with room for all destinations follows the list; with more destinations than slots, it stays as it was.
    fn follow(&mut self, pool: &Pool) {
        self.outdated |= pool.len() <= size(pool);
    }
}

impl Scheduler for MaglevHashing {
    #[inline]
    fn choose(&mut self, pool: &Pool, request: &Request) -> Option<Slot> {
        if self.outdated {
            self.outdated = false;
            self.fill(pool, None);
        }
        let size = self.table.len();
        if size == 0 {
            return None;
        }
        let with_port = pool.flags() & flags::SCHED2 != 0;
        let bucket = |offset| hash(KEYS.0, request.source, with_port, offset) % size;
        let first = bucket(0);
        let chosen = self.usable(pool, first);
        if chosen.is_some() || pool.flags() & flags::SCHED1 == 0 {
            return chosen;
        }
        (0..size).find_map(|offset| self.usable(pool, bucket((offset + first) % size)))
    }

    fn attached(&mut self, pool: &Pool) {
        *self = MaglevHashing::default();
        self.follow(pool);
    }

    fn added(&mut self, pool: &Pool, slot: Slot) {
        if self.outdated && pool.len() > size(pool) {
            self.outdated = false;
            self.fill(pool, Some(slot));
        }
        self.follow(pool);
    }

    fn removed(&mut self, pool: &Pool, gone: &Removed) {
        self.quiesced.remove(&gone.slot);
        self.follow(pool);
    }

    fn edited(&mut self, pool: &Pool, _slot: Slot) {
        self.follow(pool);
    }

    fn options_changed(&mut self, pool: &Pool) {
        self.table = Vec::new();
        self.follow(pool);
    }

    fn export(&self, pool: &Pool) -> State {
        let quiesced = pool.iter().filter(|(_, it)| it.weight == 0);
        let weights = quiesced.map(|(slot, it)| (u64::from(self.last_weight(pool, slot)), it.address));
        let (numbers, destinations) = weights.filter(|(weight, _)| *weight > 0).unzip();
        State { numbers, destinations }
    }

    fn import(&mut self, pool: &Pool, state: &State) {
        for (address, weight) in state.destinations.iter().zip(&state.numbers) {
            if let (Some(slot), Ok(weight)) = (pool.find(*address), u32::try_from(*weight)) {
                self.quiesced.insert(slot, weight.min(i32::MAX.cast_unsigned()));
            }
        }
        self.follow(pool);
    }
}
