//! The stage that finds a packet's connection and lets the packet change it.

use super::egress::{Refused, Ways};
use super::envelopes::Envelopes;
use super::parse::{Kind, Parsed};
use super::state;
use super::{Commons, View};
use crate::batch::Packet;
use crate::counters::{Event, Traffic, WorkerCounters};
use crate::forward::icmp::{Limiter, Report};
use crate::forward::tell;
use crate::service::Destinations;
use crate::snapshot::OnRemove;
use crate::verdict::{Reason, Verdict};
use std::cell::Cell;
use std::sync::Arc;
use uvs_conntrack::protocol::{self, tcp};
use uvs_conntrack::{
    Candidate, ConnId, Connection, DestinationId, Direction, Flow, Found, Hit, Load, SharedHandle, Tick,
    Timeouts, flags,
};

/// What a pipeline changes as packets pass: the connection table, the counters.
#[derive(Debug)]
pub(super) struct Tracker {
    pub(super) handle: SharedHandle,
    pub(super) destinations: Arc<Destinations>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) limiter: Limiter,
    pub(super) commons: Arc<Commons>,
    /// Whether the way is known now of fragments that had to wait.
    pub(super) released: bool,
    /// Whether the next hop of what is judged was waited for in vain.
    pub(super) given_up: bool,
    /// This batch's packets, added to the total at its end.
    traffic: Cell<Traffic>,
    /// Counts the IPv4 packets of our own making that may be fragmented.
    made: Cell<u16>,
    /// By how many bytes the datagram whose first fragment was last judged holds more now.
    pub(super) shifted: Cell<usize>,
    pub(super) envelopes: Envelopes,
    pub(super) ways: Ways,
    /// A connection that is to end with the batch.
    spent: Cell<Option<ConnId>>,
    /// How many packets that would begin connections may still do so before one is dropped.
    pub(super) spared: i32,
}

impl Tracker {
    pub(super) fn new(
        handle: SharedHandle,
        destinations: Arc<Destinations>,
        counters: Arc<WorkerCounters>,
        commons: Arc<Commons>,
    ) -> Self {
        let (limiter, traffic) = (Limiter::default(), Cell::default());
        Tracker {
            handle,
            destinations,
            counters,
            limiter,
            commons,
            released: false,
            given_up: false,
            traffic,
            made: Cell::new(0),
            shifted: Cell::new(0),
            envelopes: Envelopes::default(),
            ways: Ways::default(),
            spent: Cell::new(None),
            spared: 0,
        }
    }

    pub(super) fn end(&mut self) {
        if let Some(id) = self.spent.take() {
            self.end_connection(id);
        }
        self.counters.batch(&self.traffic.take());
    }

    /// An identification for an IPv4 packet of our own making, of a flow with this hash: another one for 65,536 packets of the
    /// flow, and workers that count alike differ by the flow.
    #[expect(clippy::cast_possible_truncation, reason = "some bits of a hash")]
    pub(super) fn next_id(&self, hash: u64) -> u16 {
        self.made.set(self.made.get().wrapping_add(1));
        self.made.get().wrapping_add(hash as u16)
    }

    /// Hashes the flow and prefetches its bucket.
    #[inline]
    pub(super) fn hash(&self, flow: &Flow) -> u64 {
        let hash = match flow {
            Flow::V4(flow) => self.handle.hash4(flow),
            Flow::V6(flow) => self.handle.hash6(flow),
        };
        self.handle.prefetch(hash);
        hash
    }

    /// Reads the bucket and prefetches the connections that it may mean.
    #[inline]
    pub(super) fn candidate(&self, hash: u64) -> Candidate {
        self.handle.candidate(hash)
    }

    /// The verdict for a TCP or UDP packet, rewritten if it is sent. It is written in its place: a copy would wait for the
    /// stores before it.
    #[inline]
    pub(super) fn judge(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        candidate: Candidate,
        verdict: &mut Verdict,
    ) {
        if parsed.kind != Kind::Whole {
            *verdict = self.odd(view, packet, parsed);
            return;
        }
        // Each family on its own: then the compiler knows what entries it meets.
        let likeliest = match &parsed.flow {
            Flow::V4(flow) => match self.handle.likeliest4(candidate, flow) {
                Some(found) if self.straight(view, packet, parsed, flow, found, verdict) => return,
                found => found.map(|found| found.hit()),
            },
            Flow::V6(flow) => match self.handle.likeliest6(candidate, flow) {
                Some(found) if self.straight(view, packet, parsed, flow, found, verdict) => return,
                found => found.map(|found| found.hit()),
            },
        };
        let found = likeliest.or_else(|| self.handle.search(candidate, &parsed.flow));
        if let (None, Some(hit)) = (likeliest, found)
            && self.straight_later(view, packet, parsed, hit, verdict)
        {
            return;
        }
        *verdict = match found {
            Some(hit) => self.known(view, packet, parsed, hit),
            None => self.unknown(view, packet, parsed),
        };
    }

    /// As [`Tracker::straight`], for the few connections that were not the likeliest.
    #[inline(never)]
    fn straight_later(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        hit: Hit,
        verdict: &mut Verdict,
    ) -> bool {
        let Some(found) = self.handle.found(hit) else { return false };
        match &parsed.flow {
            Flow::V4(flow) => self.straight(view, packet, parsed, flow, found, verdict),
            Flow::V6(flow) => self.straight(view, packet, parsed, flow, found, verdict),
        }
    }

    /// The verdict for what is not a whole TCP segment or UDP datagram.
    #[cold]
    fn odd(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        match parsed.kind {
            Kind::Whole => Verdict::ToKernel,
            Kind::First => self.first_fragment(view, packet, parsed),
            Kind::Later => self.later_fragment(view, packet, parsed),
            Kind::Error => self.error(view, packet, parsed),
        }
    }

    /// A packet of a connection that was there before it.
    #[inline(never)]
    pub(super) fn known(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        hit: Hit,
    ) -> Verdict {
        let Some(found) = self.handle.found(hit) else { return Verdict::ToKernel };
        let (connection, meta) = (found.connection, found.meta);
        let destination = connection.destination();
        let available = self.destinations.is_available(destination);
        if hit.direction == Direction::In {
            let quiescent = || self.destinations.is_quiescent(destination);
            if state::begins_anew(parsed, &connection, meta, &view.snapshot.options, quiescent) {
                self.end_connection(hit.id);
                self.counters.count(Event::ConnectionReused, 1);
                return self.unknown(view, packet, parsed);
            }
            if !available && view.snapshot.on_remove == OnRemove::Drop {
                if !view.snapshot.options.expire_nodest_conn {
                    return Verdict::Drop(Reason::DestinationGone);
                }
                self.end_connection(hit.id);
                return self.unknown(view, packet, parsed);
            }
        }
        let way = match self.way(view, &connection, hit.direction, packet.port()) {
            Ok(way) => way,
            Err(verdict) => return self.stranded(view, packet, parsed, hit.direction, verdict),
        };
        if let Some(verdict) = self.too_long(view, packet, parsed, &found, way) {
            return verdict;
        }
        self.advance(view, packet, parsed, &found);
        connection.touch(hit.direction, view.now);
        // IPVS counts nothing for a real server that was removed: no listing shows it.
        if available {
            self.count_packet(destination, hit.direction, parsed);
        }
        match self.forward(view, packet, parsed, &found, way) {
            Ok(verdict) => verdict,
            Err(refused) => {
                if refused.reason == Reason::BeganAgain {
                    self.end_connection(hit.id);
                }
                self.refuse(view, packet, parsed, hit.direction, refused)
            }
        }
    }

    /// The first packet of the connection that it made.
    pub(super) fn first(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        id: ConnId,
    ) -> Verdict {
        let Some(found) = self.handle.found(Hit { id, direction: Direction::In }) else {
            return Verdict::ToKernel;
        };
        let connection = found.connection;
        let way = match self.ask(view, &connection, Direction::In, packet.port()) {
            Ok(way) => way,
            Err(verdict) => return self.stranded(view, packet, parsed, Direction::In, verdict),
        };
        if let Some(verdict) = self.too_long(view, packet, parsed, &found, way) {
            return verdict;
        }
        if parsed.tcp_flags & tcp::SYN != 0 {
            self.clamp(packet, parsed, connection.destination());
        }
        connection.touch(Direction::In, view.now);
        self.count_packet(connection.destination(), Direction::In, parsed);
        match self.forward(view, packet, parsed, &found, way) {
            Ok(verdict) => verdict,
            Err(refused) => self.refuse(view, packet, parsed, Direction::In, refused),
        }
    }

    /// Counts a packet of a destination.
    #[inline(always)]
    pub(super) fn count_packet(&self, destination: DestinationId, direction: Direction, parsed: &Parsed) {
        let bytes = parsed.packet_len() as u64;
        self.counters.packet(destination, direction, bytes);
        let mut traffic = self.traffic.get();
        traffic.packet(direction, bytes);
        self.traffic.set(traffic);
    }

    /// Counts bytes of a packet that was counted before.
    pub(super) fn count_more(&self, destination: DestinationId, direction: Direction, bytes: u64) {
        self.counters.more(destination, direction, bytes);
        let mut traffic = self.traffic.get();
        traffic.more(direction, bytes);
        self.traffic.set(traffic);
    }

    /// A packet that has no way now. Its sender is told when no route leads there, and when the next hop was waited for in vain:
    /// of IPv6 neighbours the kernel says so only to senders on this host.
    #[cold]
    fn stranded(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        direction: Direction,
        verdict: Verdict,
    ) -> Verdict {
        let (reason, report) = match verdict {
            Verdict::Drop(Reason::NoRoute) => (Reason::NoRoute, Report::NoRoute),
            Verdict::Hold(_) if self.given_up => (Reason::NeighbourUnresolved, Report::NoAnswer),
            other => return other,
        };
        self.refuse(view, packet, parsed, direction, Refused { reason, report: Some(report) })
    }

    /// The packet moves its connection to another state, or leaves it where it is.
    #[inline]
    fn advance(&self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed, found: &Found<'_>) {
        let Found { connection, meta, direction } = *found;
        let (id, timeouts) = (connection.id(), &view.snapshot.timeouts);
        if meta.rests(direction, parsed.tcp_flags, timeouts) {
            return;
        }
        let transition = if parsed.flow.protocol() == protocol::TCP {
            if parsed.tcp_flags & tcp::SYN != 0 {
                self.clamp(packet, parsed, connection.destination());
            }
            let (event, mode) = (tcp::Event::of(parsed.tcp_flags), view.snapshot.options.tcp_mode);
            if meta.has(flags::OWN_TIMEOUTS) {
                let timeouts = self.own_timeouts(timeouts, &connection);
                self.handle.tcp(id, direction, event, mode, &timeouts, view.now)
            } else {
                self.handle.tcp(id, direction, event, mode, timeouts, view.now)
            }
        } else if meta.flags() & (flags::ONE_PACKET | flags::OWN_TIMEOUTS) != 0 {
            if meta.has(flags::ONE_PACKET) {
                // It was kept for the fragments of its datagram, and no longer.
                self.spent.set(Some(id));
                return;
            }
            self.handle.udp(id, direction, &self.own_timeouts(timeouts, &connection), view.now)
        } else {
            self.handle.udp(id, direction, timeouts, view.now)
        };
        if transition.load != Load::Same {
            self.destinations.moved(connection.destination(), transition.load == Load::BecameActive);
        }
    }

    /// The timeouts of a service that has some of its own.
    #[cold]
    fn own_timeouts(&self, timeouts: &Timeouts, connection: &Connection<'_>) -> Timeouts {
        timeouts.with(&self.destinations.plan(connection.destination()).timeouts)
    }

    /// A SYN: neither side announces longer segments than the service allows.
    #[cold]
    fn clamp(&self, packet: &mut Packet<'_>, parsed: &Parsed, destination: DestinationId) {
        let most = self.destinations.plan(destination).segment_size;
        if most == 0 || parsed.kind != Kind::Whole {
            return;
        }
        self.complete(packet, parsed);
        if tell::lower_segment_size(packet, parsed, |_| most).unwrap_or(false) {
            self.counters.count(Event::SegmentSizeLowered, 1);
        }
    }

    /// The connection is over before its time.
    #[cold]
    pub(super) fn end_connection(&mut self, id: ConnId) {
        if let Some(connection) = self.handle.remove(id) {
            self.destinations.ended(&connection);
        }
    }

    /// Ends connections whose timeout has passed, looking at up to `budget` entries.
    pub(super) fn sweep(&mut self, now: Tick, budget: usize) {
        let Tracker { handle, destinations, .. } = self;
        handle.sweep(now, budget, |connection| {
            destinations.ended(connection);
        });
    }
}
