//! The director as its own client, and as a real server of its own. Such packets come and go by a device of ours
//! ([`OwnTraffic`](crate::snapshot::OwnTraffic)).
//!
//! A client of our own is mostly at the virtual address itself, where no real server can answer it. Real servers see a local
//! address and port instead, as by full NAT: those by NAT with their own address, those by direct routing and tunnels with the
//! service's, as they see it of others ([`forward::OWN`]). The replies come to that local address.

use super::View;
use super::egress::{Passage, Refused, Way};
use super::parse::Parsed;
use super::state::{self, Beginning};
use super::track::Tracker;
use crate::batch::{Packet, PortId};
use crate::forward::tell::Telling;
use crate::forward::{self, Method, fullnat};
use crate::nexthop::{Hop, HopWord, Resolved, Target};
use crate::packet::ethernet::{self, Ethernet};
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::Ipv6;
use crate::plan::Tell;
use crate::service::{Chosen, LocalPool};
use crate::verdict::{Reason, Verdict};
use std::cell::Cell;
use std::net::IpAddr;
use std::sync::Arc;
use uvs_conntrack::{Connection, Direction, Flow, Found, Inserted, NewConnection};

impl Tracker {
    /// The way of a connection's packets that arrive by `port` travelling in `direction`, as it remembers it or as the routes say. A
    /// verdict when there is no way now.
    #[inline]
    pub(super) fn way(
        &self,
        view: &View<'_>,
        connection: &Connection<'_>,
        direction: Direction,
        port: PortId,
    ) -> Result<Way, Verdict> {
        match Way::remembered(view, connection, direction) {
            Some(way) => Ok(way),
            None => self.ask(view, connection, direction, port),
        }
    }

    /// The same as the routes say, for the connection to remember.
    #[inline]
    pub(super) fn ask(
        &self,
        view: &View<'_>,
        connection: &Connection<'_>,
        direction: Direction,
        port: PortId,
    ) -> Result<Way, Verdict> {
        let receiver = self.receiver(connection, direction);
        // Clients are many; what is remembered of real servers would make room for them.
        let known =
            if direction == Direction::In { self.ways.get(connection.destination(), receiver) } else { 0 };
        if let Some(way) = Way::of_word(view, known) {
            connection.set_hop(direction, known);
            return Ok(way);
        }
        match Way::towards(view, connection, direction, receiver)? {
            Way::Local => local_way(view, connection, direction, port),
            hop @ Way::Hop(_) => {
                if direction == Direction::In {
                    self.ways.set(connection.destination(), receiver, connection.hop(direction));
                }
                Ok(hop)
            }
        }
    }

    /// Who gets a connection's packets that travel in `direction`: a client's the real server, and the other way round.
    pub(super) fn receiver(&self, connection: &Connection<'_>, direction: Direction) -> IpAddr {
        if direction == Direction::In
            && forward::is_own(connection.meta().flags())
            && let Some(server) = self.destinations.server(connection.destination())
        {
            return server;
        }
        connection.flow(direction.reversed()).source().ip().to_canonical()
    }

    /// As [`Tracker::forward`], for connections of this host's own by direct routing and tunnels.
    #[cold]
    pub(super) fn forward_own(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        way: Way,
    ) -> Result<Verdict, Refused> {
        let Way::Hop(hop) = way else { return Ok(self.give_back(packet, parsed)) };
        if !forward::is_own(found.meta.flags()) {
            return Err(Reason::DestinationGone.into());
        }
        let egress = view.snapshot.ports.get(usize::from(hop.port().0)).ok_or(Reason::EgressNotOurs)?;
        let passage = Passage { parsed, found, hop, egress };
        let plan = self.destinations.plan(found.connection.destination());
        if found.direction == Direction::In && plan.tunnel.is_some() {
            return self.tunnel(view, packet, &passage);
        }
        passage.check(packet)?;
        self.full_nat(packet, &passage)
    }

    /// Makes a packet of such a connection the other side's. Returns whether its checksum was unfinished and is complete now.
    pub(super) fn translate_own(
        &self,
        packet: &mut Packet<'_>,
        passage: &Passage<'_>,
    ) -> Result<bool, Refused> {
        let (destinations, counters, resized) = (&self.destinations, &self.counters, &Cell::new(None));
        fullnat::translate(packet, passage, &Telling { destinations, counters, resized })
    }

    /// Enters a connection of this host's own. A real server that is this host itself sees it as it is; others see a local
    /// address.
    #[cold]
    pub(super) fn enter_own(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        chosen: &Chosen<'_>,
        connection: &mut NewConnection,
    ) -> Result<Inserted, Reason> {
        let server = chosen.address.ip();
        if view.snapshot.routes.target(server) == Target::Local {
            return self.handle.insert(connection, view.now).map_err(|_full| Reason::TableFull);
        }
        let service = parsed.flow.destination();
        let (shown, method) = match chosen.method {
            Method::Nat | Method::FullNat => (connection.real.source(), Method::FullNat.connection_flags()),
            Method::Direct | Method::Tunnel => (service, forward::OWN),
        };
        let may_be_service = method != forward::OWN;
        let locals = source(view, server, shown.ip(), service.ip(), may_be_service);
        let locals = locals.ok_or(Reason::NoLocalAddress)?;
        let Beginning { state, timeout, flags } =
            state::beginning(parsed, method, view.snapshot, &chosen.plan.timeouts);
        *connection = NewConnection {
            real: Flow::new(shown, parsed.flow.source(), parsed.flow.protocol()),
            index_reply: true,
            exclusive_reply: true,
            flags,
            state,
            timeout_seconds: timeout,
            ..*connection
        };
        self.enter_with_local_port(view, packet, parsed, &locals, Tell::Nothing, connection)
    }

    /// What becomes of a packet of this host's own that is none of ours: its sockets get what is for them, and others get what
    /// a local real server told them past its service.
    #[cold]
    pub(super) fn give_own_back(&self, view: &View<'_>, packet: &mut Packet<'_>) -> Verdict {
        let Some(destination) = destination(packet.frame()) else { return Verdict::Drop(Reason::Malformed) };
        let snapshot = view.snapshot;
        let hop = match snapshot.routes.resolve(destination) {
            Resolved::Local => return Verdict::ToKernel,
            Resolved::Hop(id) => snapshot.hops.word(id),
            Resolved::Unresolved(_) => None,
            Resolved::NoRoute => return Verdict::Drop(Reason::NoRoute),
            Resolved::Elsewhere => return Verdict::Drop(Reason::EgressNotOurs),
        };
        let Some(hop) = hop else {
            let neighbour = snapshot.routes.neighbour(destination);
            return neighbour.map_or(Verdict::Drop(Reason::NoRoute), Verdict::Hold);
        };
        let Some(egress) = snapshot.ports.get(usize::from(hop.port().0)) else {
            return Verdict::Drop(Reason::EgressNotOurs);
        };
        match Ethernet::parse_mut(packet.frame_mut()) {
            Ok(mut ethernet) => {
                ethernet.set_addresses(hop.mac(), egress.mac);
                Verdict::Transmit(hop.port())
            }
            Err(error) => Verdict::Drop(error.into()),
        }
    }
}

/// The way to this host itself. What its sockets are to see as it came goes to its stack; what is to be translated goes by the
/// device that replies come by, and a real server at a loopback address serves only clients on this host (`ip_vs_nat_xmit`).
fn local_way(
    view: &View<'_>,
    connection: &Connection<'_>,
    direction: Direction,
    port: PortId,
) -> Result<Way, Verdict> {
    let snapshot = view.snapshot;
    if direction == Direction::In {
        let (real, flags) = (connection.real(), connection.meta().flags());
        let sees_replies = Method::of_flags(flags).is_some_and(Method::sees_replies);
        if !sees_replies || real == connection.client().reversed() {
            return Ok(Way::Local);
        }
        // Linux takes packets for ::1 by the loopback device alone.
        let server = real.source().ip();
        if server.is_loopback() && (server.is_ipv6() || !snapshot.is_own_port(port)) {
            return Err(Verdict::Drop(Reason::LoopbackServer));
        }
    }
    let own = snapshot
        .own_traffic
        .as_ref()
        .and_then(|own| Some((own.port, snapshot.ports.get(usize::from(own.port.0))?)));
    let (port, device) = own.ok_or(Verdict::Drop(Reason::LocalServer))?;
    Ok(Way::Hop(HopWord::from(Hop { port, mac: device.mac })))
}

/// The local address, with its ports, that `server` sees in place of a client of our own: of the family of `like`, on the device
/// that leads to it if that has one. It is `service` only where it `may_be` and there is no other.
fn source(
    view: &View<'_>,
    server: IpAddr,
    like: IpAddr,
    service: IpAddr,
    may_be: bool,
) -> Option<Arc<LocalPool>> {
    let snapshot = view.snapshot;
    let sources = &snapshot.own_traffic.as_ref()?.sources;
    let device =
        snapshot.routes.neighbour(server).and_then(|next| snapshot.ports.get(usize::from(next.port.0)));
    let nearest = device.and_then(|device| device.addresses[usize::from(like.is_ipv6())]);
    let usable = || sources.iter().filter(|(address, _)| address.is_ipv4() == like.is_ipv4());
    let other = || usable().filter(|(address, _)| *address != service);
    let found = other().find(|(address, _)| Some(*address) == nearest).or_else(|| other().next());
    found.or_else(|| usable().next().filter(|_| may_be)).map(|(_, locals)| locals.clone())
}

/// Where a packet goes.
fn destination(frame: &[u8]) -> Option<IpAddr> {
    let (ethertype, network) = ethernet::payload(frame).ok()?;
    match ethertype {
        ethernet::IPV4 => Ipv4::parse(frame, network).ok().map(|header| header.destination().into()),
        ethernet::IPV6 => Ipv6::parse(frame, network).ok().map(|header| header.destination().into()),
        _ => None,
    }
}
