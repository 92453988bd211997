//! The last stage: the next hop, the rewrite, the verdict.

use super::parse::{Kind, Parsed};
use super::track::Tracker;
use super::{View, fragments};
use crate::batch::{Packet, PortId};
use crate::counters::Event;
use crate::forward::icmp::{self, Report};
use crate::forward::tell::{self, Resized, Telling};
use crate::forward::{self, Method, direct, families, fullnat, nat, partial, tunnel};
use crate::nexthop::{Cached, HopWord, Resolved};
use crate::packet::tcp::flag;
use crate::packet::{protocol, proxy};
use crate::snapshot::Port;
use crate::verdict::{Reason, Verdict};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr};
use uvs_conntrack::{Connection, DestinationId, Direction, Found};

/// Where a packet goes next.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// To a neighbour.
    Hop(HopWord),
    /// To this host itself.
    Local,
}

impl Way {
    /// The way of a connection's packets that arrive travelling in `direction`, if the connection remembers it and it still
    /// holds.
    #[inline]
    pub(super) fn remembered(
        view: &View<'_>,
        connection: &Connection<'_>,
        direction: Direction,
    ) -> Option<Self> {
        Way::of_word(view, connection.hop(direction))
    }

    /// The way that a connection would remember by this word, if it still holds.
    #[inline]
    pub(super) fn of_word(view: &View<'_>, word: u32) -> Option<Self> {
        let snapshot = view.snapshot;
        let id = snapshot.routes.cached(Cached::from_word(word))?;
        snapshot.hops.word(id).map(Way::Hop)
    }

    /// The same as the routes to `receiver` say, for the connection to remember. A verdict when there is no way now.
    #[cold]
    pub(super) fn towards(
        view: &View<'_>,
        connection: &Connection<'_>,
        direction: Direction,
        receiver: IpAddr,
    ) -> Result<Self, Verdict> {
        let (routes, hops) = (&view.snapshot.routes, &view.snapshot.hops);
        let id = match routes.resolve(receiver) {
            Resolved::Hop(id) => id,
            Resolved::Unresolved(neighbour) => return Err(Verdict::Hold(neighbour)),
            Resolved::Local => return Ok(Way::Local),
            Resolved::NoRoute => return Err(Verdict::Drop(Reason::NoRoute)),
            Resolved::Elsewhere => return Err(Verdict::Drop(Reason::EgressNotOurs)),
        };
        let Some(hop) = hops.word(id) else {
            let neighbour = routes.neighbour(receiver);
            return Err(neighbour.map_or(Verdict::Drop(Reason::NoRoute), Verdict::Hold));
        };
        connection.set_hop(direction, routes.cache(id).word());
        Ok(Way::Hop(hop))
    }
}

/// A worker's memory of the ways to some real servers, as connections remember them.
#[derive(Debug)]
pub(super) struct Ways(Box<[Cell<(IpAddr, u32)>; Ways::PLACES]>);

impl Default for Ways {
    fn default() -> Self {
        Ways(Box::new([const { Cell::new((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)) }; Ways::PLACES]))
    }
}

impl Ways {
    const PLACES: usize = 256;

    /// The way to `receiver`, which is this destination; 0: not remembered.
    #[inline]
    pub(super) fn get(&self, destination: DestinationId, receiver: IpAddr) -> u32 {
        let (known, way) = self.place(destination).get();
        if known == receiver { way } else { 0 }
    }

    pub(super) fn set(&self, destination: DestinationId, receiver: IpAddr, way: u32) {
        self.place(destination).set((receiver, way));
    }

    #[inline]
    fn place(&self, destination: DestinationId) -> &Cell<(IpAddr, u32)> {
        &self.0[destination.0 as usize % Ways::PLACES]
    }
}

/// A packet that goes no further, and what its sender is told.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    pub(crate) reason: Reason,
    pub(crate) report: Option<Report>,
}

impl From<Reason> for Refused {
    fn from(reason: Reason) -> Self {
        Refused { reason, report: None }
    }
}

/// One packet on its way out, as the forwarding methods see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Passage<'a> {
    /// What its headers say as it came.
    pub(crate) parsed: &'a Parsed,
    /// Its connection.
    pub(crate) found: &'a Found<'a>,
    /// Who takes it next.
    pub(crate) hop: HopWord,
    /// The device it leaves by.
    pub(crate) egress: &'a Port,
}

impl Passage<'_> {
    /// Whether the packet may go on: the next link is up, it has hops left, and the link takes packets of its length or of
    /// its fragments.
    #[inline]
    pub(super) fn check(&self, packet: &Packet<'_>) -> Result<(), Refused> {
        self.check_length(packet, self.egress.mtu)
    }

    /// The same for a packet that may have `limit` bytes.
    #[inline]
    pub(super) fn check_length(&self, packet: &Packet<'_>, limit: u32) -> Result<(), Refused> {
        let parsed = self.parsed;
        if !self.egress.up {
            return Err(Reason::PortDown.into());
        }
        if parsed.hops_left <= 1 {
            return Err(Refused { reason: Reason::TtlExpired, report: Some(Report::TimeExceeded) });
        }
        if parsed.packet_len() > limit as usize && parsed.must_not_be_fragmented(packet.frame()) {
            let report = Some(Report::TooBig(limit));
            return Err(Refused { reason: Reason::TooBig, report });
        }
        Ok(())
    }

    /// The verdict for the packet, rewritten and addressed to its next hop.
    #[inline]
    pub(super) fn verdict(&self, port: PortId) -> Verdict {
        if self.parsed.packet_len() > self.egress.mtu as usize {
            return Verdict::Fragment(port, u16::try_from(self.egress.mtu).unwrap_or(u16::MAX));
        }
        Verdict::Transmit(port)
    }
}

/// As many bytes as a packet grows by at most.
const MOST_GROWTH: usize = 128;
const _: () =
    assert!(tunnel::MOST_OVERHEAD <= MOST_GROWTH && families::MOST_GROWTH + proxy::MAX_LEN <= MOST_GROWTH);

impl Tracker {
    /// Rewrites the packet as its connection's, to be sent or, where it is for this host itself, to be given back.
    #[inline(never)]
    pub(super) fn forward(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        way: Way,
    ) -> Result<Verdict, Refused> {
        let Some(method) = Method::of_flags(found.meta.flags()) else {
            return self.forward_own(view, packet, parsed, found, way);
        };
        let Way::Hop(hop) = way else { return Ok(self.give_back(packet, parsed)) };
        let egress = view.snapshot.ports.get(usize::from(hop.port().0)).ok_or(Reason::EgressNotOurs)?;
        let passage = Passage { parsed, found, hop, egress };
        if method != Method::Tunnel && !found.connection.joins_families(found.meta) {
            passage.check(packet)?;
        }
        let completed = match method {
            Method::Nat => nat::translate(packet, parsed, found)?,
            Method::Direct => direct::pass(packet, parsed),
            Method::FullNat if found.connection.joins_families(found.meta) => {
                return self.other_family(packet, &passage);
            }
            Method::FullNat => return self.full_nat(packet, &passage),
            Method::Tunnel => return self.tunnel(view, packet, &passage),
        };
        if completed {
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        Ok(passage.verdict(forward::send(packet, parsed, hop, egress)?))
    }

    /// Rewrites the packet by full NAT. What tells the real server its client's address may make it longer.
    #[inline]
    pub(super) fn full_nat(
        &self,
        packet: &mut Packet<'_>,
        passage: &Passage<'_>,
    ) -> Result<Verdict, Refused> {
        let resized = Cell::new(None);
        let telling =
            Telling { destinations: &self.destinations, counters: &self.counters, resized: &resized };
        if fullnat::translate(packet, passage, &telling)? {
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        let port = forward::send(packet, passage.parsed, passage.hop, passage.egress)?;
        match resized.get() {
            None => Ok(passage.verdict(port)),
            Some(resized) => Ok(self.resized(packet, passage, resized, port)),
        }
    }

    /// The verdict for a packet whose payload is another now. Its fragments come from an address that many clients share.
    #[cold]
    fn resized(
        &self,
        packet: &mut Packet<'_>,
        passage: &Passage<'_>,
        resized: Resized,
        port: PortId,
    ) -> Verdict {
        self.shifted.set(resized.more);
        let mtu = passage.egress.mtu;
        if resized.packet_len <= mtu as usize {
            return Verdict::Transmit(port);
        }
        fragments::rename(packet.frame_mut(), Some(self.commons.fragments.another_id()));
        Verdict::Fragment(port, u16::try_from(mtu).unwrap_or(u16::MAX))
    }

    /// The verdict for a packet that is longer than the way it has to go takes and was made of many, before anything is
    /// counted. Those of TCP are cut, and so is what only may have been: were its sender told, which sent no such packets, it
    /// would not send shorter ones. Of UDP nothing says where to cut; what is longer than the link it came by was made of many.
    /// What is too long by itself goes on, in fragments or to have its sender told. Pieces leave room for what they have to tell.
    #[inline]
    pub(super) fn too_long(
        &self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        way: Way,
    ) -> Option<Verdict> {
        let Way::Hop(hop) = way else { return None };
        let egress = view.snapshot.ports.get(usize::from(hop.port().0))?;
        if parsed.packet_len() + MOST_GROWTH <= egress.mtu as usize {
            return None;
        }
        let told = found.direction == Direction::In && parsed.flow.protocol() == protocol::TCP;
        let growth = if told { tell::growth(found) } else { 0 };
        let room = if tell::needs_room(found) { growth } else { 0 };
        let limit = match Method::of_flags(found.meta.flags()) {
            Some(Method::Tunnel) => self.room(view, parsed, found, egress).ok()?.limit,
            Some(Method::FullNat) => {
                let to = found.connection.flow(found.direction.reversed());
                let limit = families::limit(&parsed.flow, &to, egress.mtu) as usize;
                u32::try_from(limit.saturating_sub(room)).unwrap_or(0)
            }
            _ => egress.mtu,
        };
        if parsed.packet_len() <= limit as usize {
            return None;
        }
        let ingress = view.snapshot.ports.get(usize::from(packet.port().0))?;
        let longer = parsed.packet_len() > ingress.mtu as usize;
        if parsed.kind != Kind::Whole || !(longer || ingress.merged || room > 0) {
            return None;
        }
        match parsed.flow.protocol() {
            protocol::TCP if parsed.tcp_flags & (flag::SYN | flag::RST) == 0 => {
                let limit = (limit as usize).saturating_sub(growth - room);
                Some(Verdict::Segment(u16::try_from(limit).unwrap_or(u16::MAX)))
            }
            _ if !longer || parsed.must_not_be_fragmented(packet.frame()) => None,
            _ => Some(Verdict::Drop(Reason::TooBig)),
        }
    }

    /// Sends the packet on in the other IP version.
    #[cold]
    fn other_family(&self, packet: &mut Packet<'_>, passage: &Passage<'_>) -> Result<Verdict, Refused> {
        let Passage { parsed, found, hop, egress } = *passage;
        let to = found.connection.flow(found.direction.reversed());
        passage.check_length(packet, families::limit(&parsed.flow, &to, egress.mtu))?;
        let resized = Cell::new(None);
        let telling =
            Telling { destinations: &self.destinations, counters: &self.counters, resized: &resized };
        let next_id = || self.commons.fragments.another_id();
        let translated = fullnat::translate_family(packet, passage, &telling, next_id)?;
        if translated.completed {
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        let port = forward::send(packet, parsed, hop, egress)?;
        if let Some(resized) = resized.get() {
            return Ok(self.resized(packet, passage, resized, port));
        }
        Ok(translated.fragments.map_or(Verdict::Transmit(port), |size| Verdict::Fragment(port, size)))
    }

    /// The host's own stack gets the packet, its checksum complete.
    #[cold]
    pub(super) fn give_back(&self, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        self.complete(packet, parsed);
        Verdict::ToKernel
    }

    pub(super) fn complete(&self, packet: &mut Packet<'_>, parsed: &Parsed) {
        if partial::complete(packet, parsed) {
            self.counters.count(Event::ChecksumCompleted, 1);
        }
    }

    /// The packet, which travelled in `direction`, is dropped. Its sender is told, if there is something to tell and not too
    /// much was told lately: a client by the virtual address, a real server by this host's own.
    #[cold]
    pub(super) fn refuse(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        direction: Direction,
        refused: Refused,
    ) -> Verdict {
        let Refused { reason, report } = refused;
        let Some(report) = report else { return Verdict::Drop(reason) };
        let address = parsed.flow.destination().ip();
        let from = match direction {
            Direction::In => Some(address),
            Direction::Out => view.snapshot.own_address(packet.port(), address),
        };
        let Some(from) = from else { return Verdict::Drop(reason) };
        if !self.limiter.allows(view.now) {
            self.counters.count(Event::IcmpLimited, 1);
            return Verdict::Drop(reason);
        }
        match icmp::report(packet, parsed, report, from) {
            Ok(verdict) => {
                self.counters.dropped(reason);
                self.counters.count(Event::IcmpSent, 1);
                verdict
            }
            Err(_no_room) => Verdict::Drop(reason),
        }
    }
}

/// Whether an address can be a client's. Not those that Linux takes for nobody's: multicast, broadcast, loopback and the unspecified
/// one. Nor IPv4's in IPv6's clothes, which Linux lets pass: they are not for the wire (RFC 4291 §2.5.5.2), and here would be
/// taken for what they stand for.
pub(super) fn can_be_answered(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => {
            !(ip.is_multicast() || ip.is_broadcast() || ip.is_unspecified() || ip.is_loopback())
        }
        IpAddr::V6(ip) => {
            !(ip.is_multicast() || ip.is_unspecified() || ip.is_loopback() || ip.to_ipv4_mapped().is_some())
        }
    }
}
