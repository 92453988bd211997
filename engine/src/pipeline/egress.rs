//! The last stage: the next hop, the rewrite, the verdict.

use super::View;
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::icmp::{self, Report};
use crate::forward::{self, Method, direct, nat, partial};
use crate::nexthop::{Cached, Hop, Resolved};
use crate::snapshot::Port;
use crate::verdict::{Reason, Verdict};
use std::net::IpAddr;
use uvs_conntrack::{Connection, Direction, Flow};

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way<'a> {
    /// To a neighbour.
    Hop(Hop, &'a Port),
    /// To this host itself.
    Local,
}

impl<'a> Way<'a> {
    /// The way of a connection's packets that arrive travelling in `direction`, as the connection remembers it or the
    /// routes say. A verdict when there is none now.
    #[inline]
    pub(super) fn of(
        view: &View<'a>,
        connection: &Connection<'_>,
        direction: Direction,
    ) -> Result<Self, Verdict> {
        let snapshot = view.snapshot;
        let remembered = snapshot.routes.cached(Cached::from_word(connection.hop(direction)));
        match remembered.and_then(|id| snapshot.hops.get(id)) {
            Some(hop) => Way::through(view, hop),
            None => Way::ask(view, connection, direction),
        }
    }

    #[inline]
    fn through(view: &View<'a>, hop: Hop) -> Result<Self, Verdict> {
        let port = view.snapshot.ports.get(usize::from(hop.port.0));
        port.map_or(Err(Verdict::Drop(Reason::EgressNotOurs)), |port| Ok(Way::Hop(hop, port)))
    }

    #[cold]
    fn ask(view: &View<'a>, connection: &Connection<'_>, direction: Direction) -> Result<Self, Verdict> {
        let (routes, hops) = (&view.snapshot.routes, &view.snapshot.hops);
        // A client's packet goes to whom the real server's would come from, and the other way round.
        let destination = connection.flow(direction.reversed()).source().ip();
        let id = match routes.resolve(destination) {
            Resolved::Hop(id) => id,
            Resolved::Unresolved(neighbour) => return Err(Verdict::Hold(neighbour)),
            Resolved::Local => return Ok(Way::Local),
            Resolved::NoRoute => return Err(Verdict::Drop(Reason::NoRoute)),
            Resolved::Elsewhere => return Err(Verdict::Drop(Reason::EgressNotOurs)),
        };
        match (hops.get(id), routes.neighbour(destination)) {
            (Some(hop), _) => {
                connection.set_hop(direction, routes.cache(id).word());
                Way::through(view, hop)
            }
            (None, Some(neighbour)) => Err(Verdict::Hold(neighbour)),
            (None, None) => Err(Verdict::Drop(Reason::NoRoute)),
        }
    }
}

impl Tracker {
    /// Rewrites the packet by `method` to the flow `to` and sends it.
    #[inline]
    pub(super) fn forward(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        method: Method,
        to: &Flow,
        way: Way<'_>,
    ) -> Verdict {
        let Way::Hop(hop, port) = way else { return self.deliver(packet, parsed, method, to) };
        if parsed.hops_left <= 1 {
            return self.refuse(view, packet, parsed, Reason::TtlExpired, Some(Report::TimeExceeded));
        }
        if parsed.packet_len > port.mtu as usize {
            let report = parsed.must_not_be_fragmented(packet.frame()).then_some(Report::TooBig(port.mtu));
            return self.refuse(view, packet, parsed, Reason::TooBig, report);
        }
        let completed = match method {
            Method::Nat => nat::translate(packet, parsed, to),
            Method::Direct => direct::pass(packet, parsed),
        };
        if completed {
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        forward::send(packet, parsed, hop, port)
    }

    /// The real server is this host: its stack gets the packet as it came, for its socket on the virtual address. Where
    /// that socket would listen on another port, only a rewritten reply could answer, and none comes by here.
    #[cold]
    fn deliver(&self, packet: &mut Packet<'_>, parsed: &Parsed, method: Method, to: &Flow) -> Verdict {
        if method == Method::Nat && parsed.flow.destination().port() != to.destination().port() {
            return Verdict::Drop(Reason::LocalServer);
        }
        self.give_back(packet, parsed)
    }

    /// The host's own stack gets the packet, its checksum complete.
    pub(super) fn give_back(&self, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        if partial::is_unfinished(packet.frame(), parsed) {
            partial::finish(packet, parsed, &parsed.flow);
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        Verdict::ToKernel
    }

    /// The packet is dropped. Its sender is told, if there is something to tell and not too much was told lately.
    #[cold]
    pub(super) fn refuse(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        reason: Reason,
        report: Option<Report>,
    ) -> Verdict {
        let Some(report) = report else { return Verdict::Drop(reason) };
        if !self.limiter.allows(view.now) {
            self.counters.count(Event::IcmpLimited, 1);
            return Verdict::Drop(reason);
        }
        match icmp::report(packet, parsed, report) {
            Ok(verdict) => {
                self.counters.dropped(reason);
                self.counters.count(Event::IcmpSent, 1);
                verdict
            }
            Err(_no_room) => Verdict::Drop(reason),
        }
    }
}

/// Whether an address can be a client's: not multicast, broadcast, unspecified or loopback.
pub(super) fn can_be_answered(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified() || ip.is_loopback())
        }
        IpAddr::V6(ip) => !(ip.is_multicast() || ip.is_unspecified() || ip.is_loopback()),
    }
}
