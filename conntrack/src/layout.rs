//! What lies in the table's memory: plain arrays of atomics whose all-zero state is the empty table, so that memory which was
//! never touched needs no page. Entries refer to each other by index, never by address.

use crate::sync::{AtomicU32, AtomicU64, Relaxed};

/// Entries to a chunk: the unit in which entries are handed to workers and watched for expiry. A chunk of narrow entries
/// is one page.
#[cfg(not(loom))]
pub(crate) const CHUNK: u32 = 64;
#[cfg(loom)]
pub(crate) const CHUNK: u32 = 2;

/// The most entries of one class: an index slot names an entry by thirty bits, of which the first and last number are taken.
pub const MAX_CONNECTIONS: u32 = (1 << 30) - 2 * 64;

/// "uvs conn" in a memory dump.
pub(crate) const MAGIC: u64 = u64::from_be_bytes(*b"uvs conn");
/// Changes with every change to the structures of this file.
pub(crate) const VERSION: u32 = 2;

/// How many connections and destinations a table may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections both of whose sides are IPv4 (templates count).
    pub connections4: u32,
    /// Connections with an IPv6 side (templates count).
    pub connections6: u32,
    /// Real servers known at a time, over all services: removed ones that connections still name included.
    pub destinations: u32,
    /// Buckets the index starts with, rounded up to a power of two of at most 2^31; it doubles as connections come.
    pub first_buckets: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { connections4: 1 << 20, connections6: 1 << 18, destinations: 1 << 16, first_buckets: 1 << 12 }
    }
}

impl Limits {
    /// The level the index starts at: the logarithm of its first number of buckets.
    pub(crate) fn first_level(&self) -> u32 {
        self.first_buckets.clamp(1, 1 << 31).next_power_of_two().trailing_zeros()
    }
}

/// The lengths of a table's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) narrow: u32,
    pub(crate) wide: u32,
    pub(crate) destinations: u32,
    pub(crate) max_level: u32,
}

impl Geometry {
    /// Entry 0 of each class stays unused, so that the slot value 0 can mean "empty".
    pub(crate) fn of(limits: &Limits) -> Self {
        let entries = |connections: u32| (connections.min(MAX_CONNECTIONS) + 1).next_multiple_of(CHUNK);
        let slots = 2 * (u64::from(limits.connections4) + u64::from(limits.connections6));
        // At the limit an average of eight of a bucket's twelve slots are taken.
        let buckets = slots.div_ceil(GROW_AT).max(1 << limits.first_level()).next_power_of_two();
        Geometry {
            narrow: entries(limits.connections4),
            wide: entries(limits.connections6),
            destinations: limits.destinations,
            max_level: buckets.trailing_zeros(),
        }
    }

    pub(crate) fn buckets(&self) -> usize {
        1 << self.max_level
    }
}

/// Average number of taken slots per bucket at which the index doubles.
pub(crate) const GROW_AT: u64 = 8;

/// What a table says about itself. The first line is read by every packet and written only when the index grows.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Header {
    /// Level of the index, see [`crate::index::Levels`].
    pub(crate) levels: AtomicU32,
    pub(crate) clean: AtomicU32,
    pub(crate) seed: [AtomicU64; 4],
    pub(crate) magic: AtomicU64,
    pub(crate) version: AtomicU32,
    pub(crate) first_level: AtomicU32,
    pub(crate) connections4: AtomicU32,
    pub(crate) connections6: AtomicU32,
    pub(crate) destinations: AtomicU32,
    _reserved: [AtomicU32; 11],
    /// Per class: the first entry never handed out.
    pub(crate) fresh: [AtomicU32; 2],
}

/// Slots of a bucket.
pub(crate) const SLOTS: usize = 12;

/// One line of the index.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Bucket {
    /// Twelve one-byte tags, then 32 bits of which bit n says: at level n an insertion passed on from here.
    pub(crate) words: [AtomicU64; 2],
    /// What each slot refers to, see [`crate::index::Reference`].
    pub(crate) references: [AtomicU32; SLOTS],
}

/// The part all connections have, and the only one that packets of a known connection write.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Head {
    /// See [`crate::meta::Meta`].
    pub(crate) meta: AtomicU64,
    /// Tick of the last packet.
    pub(crate) seen: AtomicU32,
    pub(crate) packets: AtomicU32,
    pub(crate) destination: AtomicU32,
    /// The template that controls this connection, as [`crate::ConnId`].
    pub(crate) template: AtomicU32,
    /// By direction.
    pub(crate) hop: [AtomicU32; 2],
    /// See [`crate::Sequence`].
    pub(crate) sequence: AtomicU64,
}

/// What few packets need.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Cold {
    pub(crate) fwmark: AtomicU32,
    pub(crate) sync_stamp: AtomicU32,
    pub(crate) owner: AtomicU32,
    /// Connections this one controls.
    pub(crate) children: AtomicU32,
}

/// A connection both of whose sides are IPv4.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Narrow {
    pub(crate) head: Head,
    /// By direction.
    pub(crate) ports: [AtomicU32; 2],
    /// By direction.
    pub(crate) addresses: [AtomicU64; 2],
}

/// A connection with an IPv6 side. The second line never changes during a connection's life.
#[repr(C, align(64))]
#[derive(Debug, Default)]
pub struct Wide {
    pub(crate) head: Head,
    /// By direction.
    pub(crate) ports: [AtomicU32; 2],
    pub(crate) cold: Cold,
    /// By direction.
    pub(crate) addresses: [[AtomicU64; 4]; 2],
}

/// A destination's identity.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Record {
    /// 0 free, else see [`crate::directory`].
    pub(crate) kind: AtomicU32,
    pub(crate) fwmark: AtomicU32,
    pub(crate) service_port: AtomicU32,
    pub(crate) server_port: AtomicU32,
    pub(crate) service: [AtomicU64; 2],
    pub(crate) server: [AtomicU64; 2],
}

#[cfg(not(loom))]
const _: () = {
    assert!(size_of::<Bucket>() == 64);
    assert!(size_of::<Head>() == 40);
    assert!(size_of::<Narrow>() == 64);
    assert!(size_of::<Cold>() == 16);
    assert!(size_of::<Wide>() == 128);
    assert!(size_of::<Record>() == 48);
    assert!(size_of::<Header>() <= 4096);
    assert!(
        core::mem::offset_of!(Header, fresh) >= 64,
        "what inserts write shares no line with what lookups read"
    );
    assert!(core::mem::offset_of!(Wide, addresses) == 64);
};

impl Header {
    /// The table's hash seed.
    pub(crate) fn seed(&self) -> [u64; 4] {
        [0, 1, 2, 3].map(|n: usize| self.seed[n].load(Relaxed))
    }

    pub(crate) fn limits(&self) -> Limits {
        Limits {
            connections4: self.connections4.load(Relaxed),
            connections6: self.connections6.load(Relaxed),
            destinations: self.destinations.load(Relaxed),
            first_buckets: 1_u32.checked_shl(self.first_level.load(Relaxed)).unwrap_or(0),
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn any_number_of_first_buckets_makes_a_level() {
        for (first_buckets, level) in
            [(0, 0), (1, 0), (3, 2), (1 << 31, 31), ((1 << 31) + 1, 31), (u32::MAX, 31)]
        {
            let limits = Limits { first_buckets, ..Limits::default() };
            assert_eq!(limits.first_level(), level, "{first_buckets}");
            assert!(Geometry::of(&limits).max_level >= level, "{first_buckets}");
        }
    }
}
