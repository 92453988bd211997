//! The stage that finds a packet's connection and lets the packet change it.

use super::View;
use super::egress::Way;
use super::parse::{Kind, Parsed};
use super::state;
use crate::batch::Packet;
use crate::counters::{Event, Traffic, WorkerCounters};
use crate::forward::Method;
use crate::forward::icmp::Limiter;
use crate::service::Destinations;
use crate::verdict::{Reason, Verdict};
use std::sync::Arc;
use uvs_conntrack::protocol::{self, tcp};
use uvs_conntrack::{Direction, Flow, Hit, Load, SharedHandle, Tick};

/// What a pipeline changes as packets pass: the connection table, the counters.
#[derive(Debug)]
pub(super) struct Tracker {
    pub(super) handle: SharedHandle,
    pub(super) destinations: Arc<Destinations>,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) limiter: Limiter,
    /// This batch's packets, added to the total at its end.
    traffic: Traffic,
}

impl Tracker {
    pub(super) fn new(
        handle: SharedHandle,
        destinations: Arc<Destinations>,
        counters: Arc<WorkerCounters>,
    ) -> Self {
        let (limiter, traffic) = (Limiter::default(), Traffic::default());
        Tracker { handle, destinations, counters, limiter, traffic }
    }

    pub(super) fn end(&mut self) {
        self.counters.batch(&std::mem::take(&mut self.traffic));
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
    pub(super) fn prefetch(&self, hash: u64) {
        self.handle.candidates(hash);
    }

    #[inline]
    fn find(&self, flow: &Flow, hash: u64) -> Option<Hit> {
        match flow {
            Flow::V4(flow) => self.handle.find4(hash, flow),
            Flow::V6(flow) => self.handle.find6(hash, flow),
        }
    }

    /// The verdict for a TCP or UDP packet, rewritten if it is sent.
    #[inline]
    pub(super) fn judge(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        hash: u64,
    ) -> Verdict {
        match self.find(&parsed.flow, hash) {
            Some(hit) => self.known(view, packet, parsed, hit),
            None => self.unknown(view, packet, parsed),
        }
    }

    /// A packet of a connection that was there before it.
    #[inline]
    fn known(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed, hit: Hit) -> Verdict {
        if parsed.kind == Kind::FirstFragment {
            return Verdict::Drop(Reason::Fragment);
        }
        let Some(connection) = self.handle.connection(hit.id) else { return Verdict::ToKernel };
        if hit.direction == Direction::In {
            if state::begins_anew(parsed, connection.meta()) {
                self.end_connection(hit);
                self.counters.count(Event::ConnectionReused, 1);
                return self.unknown(view, packet, parsed);
            }
            if !self.destinations.is_available(connection.destination()) {
                return Verdict::Drop(Reason::DestinationGone);
            }
        }
        match Way::of(view, &connection, hit.direction) {
            Ok(way) => {
                self.advance(view, parsed, hit);
                self.pass(view, packet, parsed, hit, way)
            }
            Err(verdict) => verdict,
        }
    }

    /// The packet moves its connection to another state, or leaves it where it is.
    #[inline]
    pub(super) fn advance(&mut self, view: &View<'_>, parsed: &Parsed, hit: Hit) {
        let Hit { id, direction } = hit;
        let timeouts = &view.snapshot.timeouts;
        let transition = if parsed.flow.protocol() == protocol::TCP {
            let event = tcp::Event::of(parsed.tcp_flags);
            self.handle.tcp(id, direction, event, tcp::Mode::Normal, timeouts, view.now)
        } else {
            self.handle.udp(id, direction, timeouts, view.now)
        };
        if transition.load != Load::Same
            && let Some(connection) = self.handle.connection(id)
        {
            self.destinations.moved(connection.destination(), transition.load == Load::BecameActive);
        }
    }

    /// The connection is over before its time.
    #[cold]
    fn end_connection(&mut self, hit: Hit) {
        if let Some(connection) = self.handle.remove(hit.id) {
            self.destinations.ended(connection.destination(), connection.is_active());
        }
    }

    /// The packet's connection is counted, kept alive, and the packet sent on.
    #[inline]
    pub(super) fn pass(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        hit: Hit,
        way: Way<'_>,
    ) -> Verdict {
        let Some(connection) = self.handle.connection(hit.id) else { return Verdict::ToKernel };
        connection.touch(hit.direction, view.now);
        let destination = connection.destination();
        // IPVS counts nothing for a real server that was removed.
        if hit.direction == Direction::In || self.destinations.is_available(destination) {
            self.counters.packet(destination, hit.direction, parsed.packet_len as u64);
            self.traffic.packet(hit.direction, parsed.packet_len as u64);
        }
        let Some(method) = Method::of_flags(connection.meta().flags()) else {
            return Verdict::Drop(Reason::DestinationGone);
        };
        let to = connection.flow(hit.direction.reversed()).reversed();
        self.forward(view, packet, parsed, method, &to, way)
    }

    /// Ends connections whose timeout has passed, looking at up to `budget` entries.
    pub(super) fn sweep(&mut self, now: Tick, budget: usize) {
        let Tracker { handle, destinations, counters, .. } = self;
        handle.sweep(now, budget, |connection| {
            destinations.ended(connection.destination(), connection.is_active());
            counters.count(Event::ConnectionExpired, 1);
        });
    }
}
