//! The stage for packets of no connection: find the service, have a real server chosen, make the connection.

use super::View;
use super::egress::{Refused, can_be_answered};
use super::parse::{Kind, Parsed};
use super::state::{self, Beginning};
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::fullnat::{self, Wanted};
use crate::forward::icmp::Report;
use crate::forward::tell::header;
use crate::forward::{Method, reset, tell};
use crate::packet::protocol;
use crate::packet::tcp::Tcp;
use crate::plan::Tell;
use crate::service::{Chosen, LocalPool, NoDestination, Service, ServiceKey};
use crate::verdict::{Reason, Verdict};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use uvs_conntrack::protocol::tcp::{RST, SYN};
use uvs_conntrack::{
    ConnId, Direction, Flow, Hit, Inserted, NEW_CONNECTION_SECONDS, NewConnection, NotInserted, Sequence,
    flags,
};
use uvs_schedulers::Request;

impl Tracker {
    /// A packet of no connection.
    pub(super) fn unknown(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        let (client, address) = (parsed.flow.source(), parsed.flow.destination());
        let snapshot = view.snapshot;
        if snapshot.options.nat_icmp_send && is_lost_reply(view, parsed) {
            let refused = Refused { reason: Reason::NoConnection, report: Some(Report::PortUnreachable) };
            return self.refuse(view, packet, parsed, Direction::Out, refused);
        }
        let Some(service) = service_of(view, parsed) else { return self.give_back(packet, parsed) };
        if !state::may_begin(parsed, &snapshot.options) {
            return self.give_back(packet, parsed);
        }
        if !can_be_answered(client.ip()) || client.ip() == address.ip() || snapshot.is_own(client.ip()) {
            // The director as its own client. To ::1 there is no way back.
            let is_own = snapshot.is_own_port(packet.port());
            if !is_own || client.ip() == IpAddr::V6(Ipv6Addr::LOCALHOST) {
                return Verdict::Drop(Reason::Martian);
            }
        }
        if self.is_dropped(snapshot.options.drop_rate) {
            return Verdict::Drop(Reason::Defence);
        }
        match self.begin(view, packet, parsed, service) {
            Ok(Inserted { id, fresh: true }) if is_one_packet(view, packet, service, parsed) => {
                self.only(view, packet, parsed, id)
            }
            Ok(Inserted { id, fresh: true }) => self.first(view, packet, parsed, id),
            // Another worker made it from an earlier packet, a moment ago.
            Ok(Inserted { id, fresh: false }) => {
                self.known(view, packet, parsed, Hit { id, direction: Direction::In })
            }
            Err(Refusal::NoDestination) if service.resets() && parsed.flow.protocol() == protocol::TCP => {
                self.reset(view, packet, parsed, Reason::NoDestination)
            }
            Err(Refusal::NoDestination) => {
                let report = Some(Report::PortUnreachable);
                let refused = Refused { reason: Reason::NoDestination, report };
                self.refuse(view, packet, parsed, Direction::In, refused)
            }
            Err(Refusal::NotMade(reason)) => Verdict::Drop(reason),
        }
    }

    /// Whether a packet that would begin a connection is the one of `rate` that is dropped (`ip_vs_todrop`). Each worker counts
    /// its own.
    fn is_dropped(&mut self, rate: i32) -> bool {
        if rate == 0 {
            self.spared = 0;
            return false;
        }
        self.spared = self.spared.saturating_sub(1).min(rate);
        if self.spared > 0 {
            return false;
        }
        self.spared = rate;
        true
    }

    /// Begins a connection for an ICMP error about a packet of none, as if the client had sent one: where several directors
    /// answer at one address, the error may come to another one than the packets it is about. `None` where no service wants
    /// that, `Some(None)` where there is no connection to be had (`ip_vs_in_icmp` with `schedule_icmp`).
    #[cold]
    pub(super) fn schedule_error(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
    ) -> Option<Option<Hit>> {
        let service = service_of(view, parsed)?;
        if view.snapshot.is_own_port(packet.port()) || !can_be_answered(parsed.flow.source().ip()) {
            return None;
        }
        if self.is_dropped(view.snapshot.options.drop_rate) {
            return Some(None);
        }
        let inserted = self.begin(view, packet, parsed, service).ok();
        Some(inserted.map(|Inserted { id, .. }| Hit { id, direction: Direction::In }))
    }

    /// The only packet of the connection that it made (`ip_vs_schedule` with `IP_VS_CONN_F_ONE_PACKET`). One that has to wait
    /// for its next hop leaves no trace. The first fragment's connection stays for a moment, for the others to find their way.
    #[cold]
    fn only(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed, id: ConnId) -> Verdict {
        let verdict = self.first(view, packet, parsed, id);
        let waits = matches!(verdict, Verdict::Hold(_));
        if !waits && let Some(connection) = self.handle.connection(id) {
            self.counters.connection(connection.destination());
        }
        if waits || parsed.kind == Kind::Whole {
            self.end_connection(id);
        }
        verdict
    }

    /// The segment is dropped, and its connection reset, if not too many were lately.
    #[cold]
    fn reset(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        reason: Reason,
    ) -> Verdict {
        if !self.limiter.allows(view.now) {
            self.counters.count(Event::IcmpLimited, 1);
            return Verdict::Drop(reason);
        }
        match reset::answer(packet, parsed) {
            Ok(verdict) => {
                self.counters.dropped(reason);
                self.counters.count(Event::ResetSent, 1);
                verdict
            }
            Err(_contradicts_itself) => Verdict::Drop(reason),
        }
    }

    fn begin(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        service: &Service,
    ) -> Result<Inserted, Refusal> {
        if service.is_persistent() {
            self.begin_persistent(view, packet, parsed, service)
        } else {
            self.begin_connection(view, packet, parsed, service)
        }
    }

    /// Has the service choose a real server, and enters the connection in the state that its first packet gives it.
    fn begin_connection(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        service: &Service,
    ) -> Result<Inserted, Refusal> {
        let mut entered = Err(Reason::TableFull);
        let one_packet = is_one_packet(view, packet, service, parsed);
        service.schedule(&request(view, parsed), |chosen| {
            let mut connection = new_connection(view, parsed, chosen);
            entered = self.enter(view, packet, parsed, chosen, one_packet, &mut connection);
            let fresh = entered.as_ref().is_ok_and(|inserted| inserted.fresh);
            fresh.then_some(connection.flags & flags::INACTIVE == 0)
        })?;
        Ok(entered?)
    }

    /// Enters a connection as its method wants it, and counts it.
    #[inline]
    pub(super) fn enter(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        chosen: &Chosen<'_>,
        one_packet: bool,
        connection: &mut NewConnection,
    ) -> Result<Inserted, Reason> {
        if one_packet {
            connection.flags |= flags::ONE_PACKET;
            connection.timeout_seconds = NEW_CONNECTION_SECONDS;
            connection.index_reply = false;
        }
        let entered = if parsed.kind == Kind::Error && chosen.method == Method::FullNat {
            Err(Reason::NoConnection)
        } else if chosen.method == Method::FullNat {
            let (locals, tell) = (chosen.locals, chosen.plan.tell);
            self.enter_with_local_port(view, packet, parsed, locals, tell, connection)
        } else if view.snapshot.is_own_port(packet.port()) {
            self.enter_own(view, packet, parsed, chosen, connection)
        } else {
            self.handle.insert(connection, view.now).map_err(|_full| Reason::TableFull)
        }?;
        if entered.fresh && !one_packet {
            self.counters.connection(chosen.id);
        }
        Ok(entered)
    }

    /// Enters a connection by full NAT, with a local address and port that are its alone.
    #[cold]
    pub(super) fn enter_with_local_port(
        &mut self,
        view: &View<'_>,
        packet: &Packet<'_>,
        parsed: &Parsed,
        locals: &LocalPool,
        tell: Tell,
        connection: &mut NewConnection,
    ) -> Result<Inserted, Reason> {
        let protocol = parsed.flow.protocol();
        let tcp = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len());
        // Of a connection that began elsewhere the real server has heard.
        let in_midstream = protocol == protocol::TCP && parsed.tcp_flags & SYN == 0;
        let tells = if in_midstream { 0 } else { tell::begin(tell, protocol) };
        connection.flags |= tells;
        let by_header = tells & flags::TELL_HEADER_V1 != 0 && protocol == protocol::TCP;
        let server = connection.real.source();
        let wanted = Wanted {
            server: SocketAddr::new(server.ip().to_canonical(), server.port()),
            protocol,
            initial: tcp.map_or(0, |tcp| tcp.sequence()),
            step: if by_header { header::STEP } else { 1 },
            now: view.now,
        };
        let Tracker { handle, destinations, counters, .. } = self;
        for _ in 0..CLAIMS {
            let claim = fullnat::allocate(handle, locals, &wanted, |over| {
                destinations.ended(over);
                counters.count(Event::LocalPortReused, 1);
            })?;
            connection.real = claim.real;
            connection.sequence = claim.sequence;
            if by_header {
                connection.sequence.mark = wanted.initial.wrapping_add(1);
            }
            match handle.insert(connection, view.now) {
                Ok(inserted) => {
                    if inserted.fresh {
                        claim.local.began();
                    }
                    return Ok(inserted);
                }
                Err(NotInserted::Full) => return Err(Reason::TableFull),
                // Another worker was faster.
                Err(NotInserted::ReplyTaken) => claim.local.conflicted(),
            }
        }
        Err(Reason::PortsExhausted)
    }
}

/// Whether the datagram is scheduled for itself. Those of this host's own are not: their replies would not find back.
pub(super) fn is_one_packet(
    view: &View<'_>,
    packet: &Packet<'_>,
    service: &Service,
    parsed: &Parsed,
) -> bool {
    service.is_one_packet()
        && parsed.kind != Kind::Error
        && parsed.flow.protocol() == protocol::UDP
        && !view.snapshot.is_own_port(packet.port())
}

/// Whether a real server's packet is of no connection and worth telling it (`ip_vs_out` with `nat_icmp_send`).
#[cold]
fn is_lost_reply(view: &View<'_>, parsed: &Parsed) -> bool {
    let from = parsed.flow.source();
    parsed.tcp_flags & RST == 0
        && view.snapshot.repliers.look().is_replier(from.ip(), from.port(), parsed.flow.protocol())
}

/// How often a connection tries to get a port that nobody else gets meanwhile.
const CLAIMS: usize = 16;

/// The service that a packet to its address, port and protocol is for: that of its port before that of every port.
fn service_of<'a>(view: &View<'a>, parsed: &Parsed) -> Option<&'a Service> {
    let address = parsed.flow.destination();
    let key = ServiceKey { address: address.ip(), port: address.port(), protocol: parsed.flow.protocol() };
    let services = &view.snapshot.services;
    services.find(&key).or_else(|| services.find(&ServiceKey { port: 0, ..key })).map(AsRef::as_ref)
}

/// What the scheduler is told of a packet.
pub(super) fn request(view: &View<'_>, parsed: &Parsed) -> Request {
    Request { source: parsed.flow.source(), destination: parsed.flow.destination(), now: view.now.0 }
}

/// Why no connection was made.
pub(super) enum Refusal {
    NoDestination,
    NotMade(Reason),
}

impl From<NoDestination> for Refusal {
    fn from(_: NoDestination) -> Self {
        Refusal::NoDestination
    }
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Refusal::NotMade(reason)
    }
}

pub(super) fn new_connection(view: &View<'_>, parsed: &Parsed, chosen: &Chosen<'_>) -> NewConnection {
    let (client, service) = (parsed.flow.source(), parsed.flow.destination());
    let port = if chosen.address.port() == 0 { service.port() } else { chosen.address.port() };
    let server = SocketAddr::new(chosen.address.ip(), port);
    let Beginning { state, timeout, flags } =
        state::beginning(parsed, chosen.method.connection_flags(), view.snapshot, &chosen.plan.timeouts);
    NewConnection {
        client: parsed.flow,
        real: Flow::new(server, client, parsed.flow.protocol()),
        index_reply: chosen.method.sees_replies(),
        exclusive_reply: chosen.method == Method::FullNat,
        destination: chosen.id,
        flags,
        state,
        timeout_seconds: timeout,
        template: None,
        fwmark: 0,
        sequence: Sequence::default(),
    }
}
