//! ICMP errors about packets of connections: found by the packet they quote, and sent on to whoever sent that.

use super::View;
use super::egress::Way;
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::quoted::{self, Quote};
use crate::forward::{self, Method, families, tell};
use crate::packet::checksum::Sum;
use crate::packet::icmp::{self, Icmp};
use crate::packet::ipv6::Ipv6;
use crate::packet::protocol;
use crate::snapshot::OnRemove;
use crate::verdict::{Reason, Verdict};
use uvs_conntrack::{Direction, Flow, Found, flags};

/// Completes `parsed` of an ICMP error, whose header starts at `transport` and whose IP header was read. Its flow is that of
/// the packet it quotes, the other way round: whichever side of a connection that names, the error travels like its packets.
///
/// Everything else has its verdict: echoes are for the host, and so are errors about what was no TCP or UDP, about ICMP,
/// about later fragments, and those that go elsewhere than the packet they quote came from.
pub(super) fn parse(packet: &Packet<'_>, parsed: &mut Parsed) -> Result<(), Verdict> {
    let frame = packet.frame();
    let end = frame.len().min(parsed.network() + parsed.packet_len());
    let bytes = &frame[..end];
    let message = Icmp::parse(bytes, parsed.transport()).map_err(|_| Verdict::ToKernel)?.kind();
    let at = parsed.transport() + icmp::HEADER_LEN;
    let quote = match parsed.flow {
        Flow::V4(_) if icmp::v4::is_error(message.kind) => Quote::parse4(bytes, at),
        Flow::V6(_) if icmp::v6::is_error(message.kind) => Quote::parse6(bytes, at),
        _ => None,
    };
    let flow = quote.ok_or(Verdict::ToKernel)?.flow.reversed();
    if flow.destination().ip() != parsed.flow.destination().ip() {
        return Err(Verdict::ToKernel);
    }
    parsed.flow = flow;
    Ok(())
}

impl Tracker {
    /// An ICMP error. It changes nothing of its connection, and is itself never reported to its sender (RFC 1122 §3.2.2,
    /// RFC 4443 §2.4 e).
    pub(super) fn error(&mut self, view: &View<'_>, packet: &mut Packet<'_>, parsed: &Parsed) -> Verdict {
        let hit = match self.handle.find(&parsed.flow) {
            Some(hit) => hit,
            None if !view.snapshot.options.schedule_icmp => return self.tunnel_error(view, packet, parsed),
            None if !checksum_holds(packet, parsed) => return Verdict::Drop(Reason::BadChecksum),
            None => match self.schedule_error(view, packet, parsed) {
                None => return self.tunnel_error(view, packet, parsed),
                Some(None) => return Verdict::Drop(Reason::NoDestination),
                Some(Some(hit)) => hit,
            },
        };
        let Some(found) = self.handle.found(hit) else { return Verdict::ToKernel };
        if !checksum_holds(packet, parsed) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        let connection = found.connection;
        let destination = connection.destination();
        let available = self.destinations.is_available(destination);
        if hit.direction == Direction::In && !available && view.snapshot.on_remove == OnRemove::Drop {
            return Verdict::Drop(Reason::DestinationGone);
        }
        let way = match self.way(view, &connection, hit.direction, packet.port()) {
            Ok(way) => way,
            Err(verdict) => return verdict,
        };
        let Way::Hop(hop) = way else { return Verdict::ToKernel };
        let Some(egress) = view.snapshot.ports.get(usize::from(hop.port().0)) else {
            return Verdict::Drop(Reason::EgressNotOurs);
        };
        if parsed.hops_left <= 1 {
            return Verdict::Drop(Reason::TtlExpired);
        }
        let own = forward::is_own(found.meta.flags()).then_some(Method::FullNat);
        let Some(method) = Method::of_flags(found.meta.flags()).or(own) else {
            return Verdict::Drop(Reason::DestinationGone);
        };
        let tunnelled = method == Method::Tunnel;
        let limit = match tunnelled.then(|| self.room(view, parsed, &found, egress)).transpose() {
            Ok(room) => room.map_or(egress.mtu, |room| room.limit),
            Err(reason) => return Verdict::Drop(reason),
        };
        if parsed.packet_len() > limit as usize {
            return Verdict::Drop(Reason::TooBig);
        }
        if available {
            self.count_packet(destination, hit.direction, parsed);
        }
        if found.meta.flags() & flags::TELL != 0
            && hit.direction == Direction::Out
            && let Err(reason) = tell::lower_mtu(packet, parsed, &found)
        {
            return Verdict::Drop(reason);
        }
        let sent = rewrite(packet, parsed, &found, method)
            .and_then(|()| if tunnelled { self.wrap(view, packet, parsed, &found, egress) } else { Ok(()) })
            .and_then(|()| forward::send(packet, parsed, hop, egress));
        match sent {
            Ok(port) => {
                self.counters.count(Event::IcmpRelayed, 1);
                Verdict::Transmit(port)
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }
}

/// Makes the error what its receiver can understand: about the packet that it sent, not about what became of it here.
fn rewrite(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    found: &Found<'_>,
    method: Method,
) -> Result<(), Reason> {
    let Found { connection, direction, .. } = *found;
    match method {
        Method::Direct | Method::Tunnel => quoted::age(packet.frame_mut(), parsed),
        Method::Nat | Method::FullNat => {
            // The client's sequence numbers are not those that the real server saw; the server's are its own on both sides.
            let shift = match direction {
                Direction::In => 0,
                Direction::Out => connection.sequence().delta.wrapping_neg(),
            };
            match (&parsed.flow, connection.flow(direction.reversed()).reversed()) {
                (Flow::V4(from), Flow::V4(to)) => {
                    quoted::translate4(packet.frame_mut(), parsed, from, &to, shift);
                }
                (Flow::V6(from), Flow::V6(to)) => {
                    quoted::translate6(packet.frame_mut(), parsed, from, &to, shift);
                }
                (_, to) => families::error(packet, parsed, &to, shift)?,
            }
        }
    }
    Ok(())
}

/// Whether the message is as it was sent. Its checksum is corrected for what changes, which would make a damaged one whole.
pub(super) fn checksum_holds(packet: &Packet<'_>, parsed: &Parsed) -> bool {
    let frame = packet.frame();
    let mut left = parsed.transport_len();
    let first = frame.get(parsed.transport()..).unwrap_or_default();
    let parts = std::iter::once(first).chain(packet.rest().iter().copied()).map(|part| {
        let part = &part[..part.len().min(left)];
        left -= part.len();
        part
    });
    let sum = Sum::of_parts(parts);
    let sum = match parsed.flow {
        Flow::V4(_) => sum,
        Flow::V6(_) => match Ipv6::parse(frame, parsed.network()) {
            Ok(header) => {
                let length = u32::try_from(parsed.transport_len()).unwrap_or(u32::MAX);
                sum.plus(Sum::pseudo6(&header.addresses(), protocol::ICMPV6, length))
            }
            Err(_) => return false,
        },
    };
    sum.fold() == Sum::WHOLE
}
