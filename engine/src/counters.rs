//! What the workers counted.
//!
//! Every worker has counters of its own, which nobody else writes, so that counting costs a load and a store; reading sums
//! over the workers. Traffic is counted as IPVS does: connections when they are scheduled, and the lengths of IP packets.

use crate::chunked::Chunked;
use crate::verdict::Reason;
use std::collections::BTreeSet;
use std::ops::{Add, AddAssign, Sub};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use uvs_conntrack::{DestinationId, Direction};

/// Connections, packets and bytes of a destination, a service or everything.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets from real servers. Those of direct routing go around the director and are not seen.
    pub out_packets: u64,
    /// Bytes of packets from clients, IP headers included.
    pub in_bytes: u64,
    /// Bytes of packets from real servers, IP headers included.
    pub out_bytes: u64,
}

impl Traffic {
    /// Counts one packet.
    #[inline]
    pub(crate) fn packet(&mut self, direction: Direction, bytes: u64) {
        match direction {
            Direction::In => {
                self.in_packets += 1;
                self.in_bytes += bytes;
            }
            Direction::Out => {
                self.out_packets += 1;
                self.out_bytes += bytes;
            }
        }
    }

    /// Counts bytes of a packet that was counted before.
    pub(crate) fn more(&mut self, direction: Direction, bytes: u64) {
        match direction {
            Direction::In => self.in_bytes += bytes,
            Direction::Out => self.out_bytes += bytes,
        }
    }

    fn with(self, other: Traffic, apply: impl Fn(u64, u64) -> u64) -> Traffic {
        Traffic {
            connections: apply(self.connections, other.connections),
            in_packets: apply(self.in_packets, other.in_packets),
            out_packets: apply(self.out_packets, other.out_packets),
            in_bytes: apply(self.in_bytes, other.in_bytes),
            out_bytes: apply(self.out_bytes, other.out_bytes),
        }
    }
}

impl Add for Traffic {
    type Output = Traffic;
    fn add(self, other: Traffic) -> Traffic {
        self.with(other, u64::wrapping_add)
    }
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        *self = *self + other;
    }
}

impl Sub for Traffic {
    type Output = Traffic;
    fn sub(self, other: Traffic) -> Traffic {
        self.with(other, u64::saturating_sub)
    }
}

/// A counter with one writer.
#[derive(Debug, Default)]
struct Counter(AtomicU64);

impl Counter {
    #[inline]
    fn add(&self, more: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(more), Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// One worker's traffic of one destination: a line that no other worker writes.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Cell {
    connections: Counter,
    packets: [Counter; 2],
    bytes: [Counter; 2],
}

impl Cell {
    fn read(&self) -> Traffic {
        Traffic {
            connections: self.connections.get(),
            in_packets: self.packets[Direction::In as usize].get(),
            out_packets: self.packets[Direction::Out as usize].get(),
            in_bytes: self.bytes[Direction::In as usize].get(),
            out_bytes: self.bytes[Direction::Out as usize].get(),
        }
    }
}

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// What a pipeline counts besides traffic and drops. Frames are counted where they pass, by
        /// [`crate::worker::Tally`]; connections by the connection table.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Event { $($(#[doc = $doc])+ $variant,)+ }

        impl Event {
            /// Every event, in the order of their discriminants.
            pub const ALL: &'static [Event] = &[$(Event::$variant,)+];

            /// The name the counter is shown under.
            pub fn name(self) -> &'static str {
                match self { $(Event::$variant => $name,)+ }
            }

            /// One sentence for the operator.
            pub fn explanation(self) -> &'static str {
                match self { $(Event::$variant => concat!($($doc,)+).trim_ascii(),)+ }
            }
        }
    };
}

events! {
    /// A frame was given back to the host's own stack.
    ToKernel = "to_kernel",
    /// A datagram of which fragments were on their way was forgotten because too many others were.
    DatagramForgotten = "datagram_forgotten",
    /// A frame made of many TCP segments was cut into such.
    Segmented = "segmented",
    /// A packet too long for its next link was sent in fragments.
    Fragmented = "fragmented",
    /// An ICMP error took a dropped packet's place.
    IcmpSent = "icmp_sent",
    /// An ICMP error of somebody else about a connection's packet went on to that packet's sender.
    IcmpRelayed = "icmp_relayed",
    /// The path to a tunnelled real server turned out shorter than was known, in bytes of its longest packet.
    PathMtuLearnt = "path_mtu_learnt",
    /// An ICMP error, or a reset, was not sent because too many were.
    IcmpLimited = "icmp_limited",
    /// A client of a service without real server was sent a reset.
    ResetSent = "reset_sent",
    /// A SYN announced longer segments than its service allows, and was corrected.
    SegmentSizeLowered = "segment_size_lowered",
    /// A frame came with an unfinished transport checksum, which was completed.
    ChecksumCompleted = "checksum_completed",
    /// A connection was replaced because its client opened a new one from the same port.
    ConnectionReused = "connection_reused",
    /// A local port in TIME_WAIT, or after a reset, was used again.
    LocalPortReused = "local_port_reused",
    /// A packet told its real server the client's address.
    ClientTold = "client_told",
    /// A packet had no room for telling its real server the client's address, and went on without.
    ClientNotTold = "client_not_told",
}

/// One worker's counters.
#[derive(Debug)]
pub struct WorkerCounters {
    drops: [Counter; Reason::ALL.len()],
    events: [Counter; Event::ALL.len()],
    total: Cell,
    destinations: Chunked<Cell>,
}

impl WorkerCounters {
    fn new(destinations: usize) -> Self {
        WorkerCounters {
            drops: std::array::from_fn(|_| Counter::default()),
            events: std::array::from_fn(|_| Counter::default()),
            total: Cell::default(),
            destinations: Chunked::new(destinations),
        }
    }

    /// Counts a dropped frame. The pipeline counts those it drops itself; the worker counts the rest.
    #[inline]
    pub fn dropped(&self, reason: Reason) {
        self.drops[reason as usize].add(1);
    }

    /// Counts events.
    #[inline]
    pub fn count(&self, event: Event, times: u64) {
        self.events[event as usize].add(times);
    }

    /// Counts a packet of a destination. Allocates nothing for a destination that was [reserved](Counters::reserve).
    #[inline(always)]
    pub(crate) fn packet(&self, destination: DestinationId, direction: Direction, bytes: u64) {
        if let Some(cell) = self.destinations.get(destination.0 as usize) {
            cell.packets[direction as usize].add(1);
            cell.bytes[direction as usize].add(bytes);
        }
    }

    /// Counts bytes of a packet of a destination that was counted before.
    pub(crate) fn more(&self, destination: DestinationId, direction: Direction, bytes: u64) {
        if let Some(cell) = self.destinations.get(destination.0 as usize) {
            cell.bytes[direction as usize].add(bytes);
        }
    }

    /// Counts a connection of a destination.
    pub(crate) fn connection(&self, destination: DestinationId) {
        self.total.connections.add(1);
        if let Some(cell) = self.destinations.get(destination.0 as usize) {
            cell.connections.add(1);
        }
    }

    /// Adds a batch's packets to the total.
    pub(crate) fn batch(&self, packets: &Traffic) {
        let [inward, outward] = &self.total.packets;
        inward.add(packets.in_packets);
        outward.add(packets.out_packets);
        let [inward, outward] = &self.total.bytes;
        inward.add(packets.in_bytes);
        outward.add(packets.out_bytes);
    }

    /// All traffic since the worker began.
    pub fn traffic(&self) -> Traffic {
        self.total.read()
    }

    /// Frames dropped, by reason.
    pub fn drops(&self, reason: Reason) -> u64 {
        self.drops[reason as usize].get()
    }

    /// How often something happened.
    pub fn events(&self, event: Event) -> u64 {
        self.events[event as usize].get()
    }
}

/// The counters of all workers.
#[derive(Debug)]
pub struct Counters {
    destinations: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    workers: Vec<Arc<WorkerCounters>>,
    reserved: BTreeSet<DestinationId>,
    zeroed: Traffic,
}

impl Counters {
    /// Counters for up to `destinations` destinations, no worker yet.
    pub fn new(destinations: u32) -> Arc<Self> {
        Arc::new(Counters { destinations: destinations as usize, state: Mutex::default() })
    }

    /// Another worker's counters. They count for good, also after the worker is gone.
    pub fn worker(&self) -> Arc<WorkerCounters> {
        let worker = Arc::new(WorkerCounters::new(self.destinations));
        let mut state = self.state();
        for id in &state.reserved {
            worker.destinations.make(id.0 as usize);
        }
        state.workers.push(worker.clone());
        worker
    }

    /// Gives a destination its cells before the first packet needs them.
    pub fn reserve(&self, id: DestinationId) {
        let mut state = self.state();
        for worker in &state.workers {
            worker.destinations.make(id.0 as usize);
        }
        state.reserved.insert(id);
    }

    /// All that was ever counted for a destination's place. A place is used again: subtract what it held before.
    pub fn traffic(&self, id: DestinationId) -> Traffic {
        self.sum(|worker| worker.destinations.get(id.0 as usize).map_or(Traffic::default(), Cell::read))
    }

    /// Everything since the start or the last [`Counters::zero_total`].
    pub fn total(&self) -> Traffic {
        let all = self.sum(|worker| worker.total.read());
        all - self.state().zeroed
    }

    /// Starts the total from zero (`ipvsadm -Z`).
    pub fn zero_total(&self) {
        let all = self.sum(|worker| worker.total.read());
        self.state().zeroed = all;
    }

    /// Frames dropped by all workers.
    pub fn drops(&self, reason: Reason) -> u64 {
        self.state().workers.iter().map(|worker| worker.drops(reason)).sum()
    }

    /// How often something happened to any worker.
    pub fn events(&self, event: Event) -> u64 {
        self.state().workers.iter().map(|worker| worker.events(event)).sum()
    }

    fn sum(&self, of: impl Fn(&WorkerCounters) -> Traffic) -> Traffic {
        self.state().workers.iter().fold(Traffic::default(), |sum, worker| sum + of(worker))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_workers() {
        let counters = Counters::new(1000);
        let id = DestinationId(300);
        let first = counters.worker();
        counters.reserve(id);
        let second = counters.worker();
        first.connection(id);
        first.packet(id, Direction::In, 40);
        second.packet(id, Direction::Out, 1500);
        second.packet(id, Direction::Out, 500);
        let expected =
            Traffic { connections: 1, in_packets: 1, out_packets: 2, in_bytes: 40, out_bytes: 2000 };
        assert_eq!(counters.traffic(id), expected);
        assert_eq!(counters.traffic(DestinationId(301)), Traffic::default());
        assert_eq!(counters.traffic(DestinationId(5000)), Traffic::default());
    }

    #[test]
    fn the_total_starts_again_from_zero() {
        let counters = Counters::new(1);
        let worker = counters.worker();
        let mut batch = Traffic::default();
        batch.packet(Direction::In, 60);
        worker.batch(&batch);
        worker.connection(DestinationId::NONE);
        assert_eq!(counters.total(), Traffic { connections: 1, in_packets: 1, in_bytes: 60, ..batch });
        counters.zero_total();
        assert_eq!(counters.total(), Traffic::default());
        worker.batch(&batch);
        assert_eq!(counters.total(), batch);
    }

    #[test]
    fn every_reason_and_event_has_its_counter() {
        let counters = Counters::new(1);
        let worker = counters.worker();
        for (times, reason) in (1_u64..).zip(Reason::ALL) {
            (0..times).for_each(|_| worker.dropped(*reason));
        }
        for (times, event) in (1_u64..).zip(Event::ALL) {
            worker.count(*event, times);
        }
        for (times, reason) in (1_u64..).zip(Reason::ALL) {
            assert_eq!(counters.drops(*reason), times, "{}", reason.name());
        }
        for (times, event) in (1_u64..).zip(Event::ALL) {
            assert_eq!(counters.events(*event), times, "{}", event.name());
        }
    }
}
