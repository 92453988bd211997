//! ICMP errors about packets of our own: those that tunnels put around clients' packets.

use super::View;
use super::egress::Way;
use super::errors::checksum_holds;
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::icmp::{Report, report as icmp_report};
use crate::forward::quoted::Wrapped;
use crate::forward::{self, Method};
use crate::packet::ethernet;
use crate::packet::icmp::{self, Icmp};
use crate::plan::Tunnel;
use crate::verdict::{Reason, Verdict};
use uvs_conntrack::{Connection, Direction, Flow};

impl Tracker {
    /// An ICMP error about a packet of ours, around one of a client's. What it says of the path is remembered, and the client is
    /// told what it says of its packet; where the two are of different IP versions, only how long its packets may be.
    pub(super) fn tunnel_error(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
    ) -> Verdict {
        let v4 = matches!(parsed.flow, Flow::V4(_));
        let end = packet.frame().len().min(parsed.network() + parsed.packet_len());
        let bytes = &packet.frame()[..end];
        let Ok(message) = Icmp::parse(bytes, parsed.transport()) else { return Verdict::ToKernel };
        let Some(wrapped) = Wrapped::parse(bytes, parsed.transport() + icmp::HEADER_LEN, v4) else {
            return Verdict::ToKernel;
        };
        let (kind, word) = (message.kind(), message.word());
        let Some((connection, tunnel)) = self.wrapper(&wrapped) else { return Verdict::ToKernel };
        if !checksum_holds(packet, parsed) {
            return Verdict::Drop(Reason::BadChecksum);
        }
        let inner = wrapped.inner.flow;
        let report =
            if kind == icmp::v4::FRAGMENTATION_NEEDED && v4 || kind == icmp::v6::PACKET_TOO_BIG && !v4 {
                let told = if v4 { word & 0xffff } else { word };
                if view.snapshot.paths.learn(wrapped.server, told, view.now) {
                    self.counters.count(Event::PathMtuLearnt, 1);
                }
                let path = view.snapshot.paths.limit(wrapped.server, view.now).unwrap_or(told);
                match tunnel.limit(v4, path) {
                    Ok(limit) if wrapped.dont_fragment => Report::TooBig(limit),
                    Ok(_) => return Verdict::Drop(Reason::TunnelError),
                    Err(reason) => return Verdict::Drop(reason),
                }
            } else if matches!(inner, Flow::V4(_)) == v4 {
                Report::Passed(kind, word)
            } else {
                return Verdict::Drop(Reason::TunnelError);
            };
        let way = match self.ask(view, &connection, Direction::Out, packet.port()) {
            Ok(way) => way,
            Err(verdict) => return verdict,
        };
        let Way::Hop(hop) = way else { return Verdict::Drop(Reason::TunnelError) };
        let Some(egress) = view.snapshot.ports.get(usize::from(hop.port().0)).filter(|port| port.up) else {
            return Verdict::Drop(Reason::PortDown);
        };
        if !self.limiter.allows(view.now) {
            self.counters.count(Event::IcmpLimited, 1);
            return Verdict::Drop(Reason::TunnelError);
        }
        let unwrapped = unwrap(packet, parsed, &wrapped);
        let told = icmp_report(packet, &unwrapped, report, inner.destination().ip())
            .map_err(Reason::from)
            .and_then(|_back| forward::send(packet, &unwrapped, hop, egress));
        match told {
            Ok(port) => {
                self.counters.count(Event::IcmpRelayed, 1);
                Verdict::Transmit(port)
            }
            Err(reason) => Verdict::Drop(reason),
        }
    }

    /// The connection of the packet inside, and its tunnel, if the packet around may have come from here.
    fn wrapper(&self, wrapped: &Wrapped) -> Option<(Connection<'_>, Tunnel)> {
        let hit = self.handle.find(&wrapped.inner.flow).filter(|hit| hit.direction == Direction::In)?;
        let connection = self.handle.connection(hit.id)?;
        let server = connection.real().source().ip().to_canonical();
        let tunnel = self.destinations.plan(connection.destination()).tunnel?;
        let is_ours = Method::of_flags(connection.meta().flags()) == Some(Method::Tunnel)
            && (tunnel.kind, tunnel.port, server) == (wrapped.kind, wrapped.port, wrapped.server);
        is_ours.then_some((connection, tunnel))
    }
}

/// Makes the frame begin with its link-layer header and the packet inside, as if that had come.
fn unwrap(packet: &mut Packet<'_>, parsed: &Parsed, wrapped: &Wrapped) -> Parsed {
    let network = parsed.network();
    let front = wrapped.at - network;
    let frame = packet.frame_mut();
    frame.copy_within(..network, front);
    let ethertype = if matches!(wrapped.inner.flow, Flow::V4(_)) { ethernet::IPV4 } else { ethernet::IPV6 };
    frame[wrapped.at - 2..wrapped.at].copy_from_slice(&ethertype.to_be_bytes());
    let _it_is_that_long = packet.shrink_front(front);
    parsed.unwrapped(wrapped.inner.flow, parsed.packet_len() - front)
}
