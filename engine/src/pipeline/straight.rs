//! The way of nearly all packets: of connections of which they change nothing but counters and the time of the last packet,
//! whose next hop is known, and that fit.

use super::View;
use super::egress::{Passage, Way};
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::{self, Method, nat, partial, tell, tunnel};
use crate::packet::ethernet::Ethernet;
use crate::snapshot::Port;
use crate::verdict::Verdict;
use uvs_conntrack::{Flow, Flow4, Flow6, Found};

impl Tracker {
    /// The verdict for a packet of a known connection, as [`Tracker::known`] comes to it for every packet. `false`, and nothing
    /// has happened: the packet is not that simple.
    #[inline(always)]
    pub(super) fn straight(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        flow: &impl Family,
        found: Found<'_>,
        verdict: &mut Verdict,
    ) -> bool {
        let Found { connection, meta, direction } = found;
        let destination = connection.destination();
        if !meta.rests(direction, parsed.tcp_flags, &view.snapshot.timeouts)
            || !self.destinations.is_available(destination)
        {
            return false;
        }
        let Some(Way::Hop(hop)) = Way::remembered(view, &connection, direction) else { return false };
        let Some(egress) = view.snapshot.ports.get(usize::from(hop.port().0)) else { return false };
        let Some(method) = Method::of_flags(meta.flags()) else { return false };
        if !is_easy(parsed, egress) {
            return false;
        }
        let to = match method {
            Method::Nat => flow.opposite(found),
            Method::Direct => Some(flow.clone()),
            Method::FullNat | Method::Tunnel => None,
        };
        let Some(to) = to.filter(|_| !parsed.is_tagged()) else {
            // A copy, for the one above to stay in registers.
            let found = Found { connection, meta, direction };
            if tell::needs_room(&found) {
                return false;
            }
            let passage = Passage { parsed, found: &found, hop, egress };
            connection.touch(direction, view.now);
            self.count_packet(destination, direction, parsed);
            self.pass(view, packet, &passage, method, verdict);
            return true;
        };
        connection.touch(direction, view.now);
        self.count_packet(destination, direction, parsed);
        let frame = packet.frame_mut();
        if let Ok(mut ethernet) = Ethernet::parse_mut(frame) {
            ethernet.set_addresses(hop.mac(), egress.mac);
        }
        if flow.rewrite(frame, parsed, &to) {
            partial::finish(packet, parsed, &to.into());
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        *verdict = Verdict::Transmit(hop.port());
        true
    }

    /// The verdict for a packet that may go on, by any method.
    #[inline(never)]
    fn pass(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        passage: &Passage<'_>,
        method: Method,
        verdict: &mut Verdict,
    ) {
        let Passage { parsed, found, hop, egress } = *passage;
        let sent = match method {
            Method::Tunnel => self.tunnel(view, packet, passage),
            Method::FullNat => self.full_nat(packet, passage),
            Method::Nat | Method::Direct => passage.rewrite(packet, method).and_then(|completed| {
                self.counters.count(Event::ChecksumCompleted, u64::from(completed));
                Ok(Verdict::Transmit(forward::send(packet, parsed, hop, egress)?))
            }),
        };
        *verdict = match sent {
            Ok(verdict) => verdict,
            Err(refused) => self.refuse(view, packet, parsed, found.direction, refused),
        };
    }
}

/// Whether a packet may go on whatever its method adds to it.
#[inline]
fn is_easy(parsed: &Parsed, egress: &Port) -> bool {
    egress.up && parsed.hops_left > 1 && parsed.packet_len() + tunnel::MOST_OVERHEAD <= egress.mtu as usize
}

/// A packet's flow, of one IP version.
pub(super) trait Family: Clone + Into<Flow> {
    /// The flow that its connection's other side has the packet in. None: that is of the other version.
    fn opposite(&self, found: Found<'_>) -> Option<Self>;

    /// Makes the packet's headers those of the flow `to`. Returns whether its checksum is unfinished.
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool;
}

impl Family for Flow4 {
    #[inline(always)]
    fn opposite(&self, found: Found<'_>) -> Option<Self> {
        found.connection.flow4(found.meta, found.direction.reversed()).map(Flow4::reversed)
    }

    #[inline(always)]
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool {
        nat::rewrite4(frame, parsed, self, to)
    }
}

impl Family for Flow6 {
    #[inline(always)]
    fn opposite(&self, found: Found<'_>) -> Option<Self> {
        match found.connection.flow(found.direction.reversed()) {
            Flow::V6(flow) => Some(flow.reversed()),
            Flow::V4(_) => None,
        }
    }

    #[inline(always)]
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool {
        nat::rewrite6(frame, parsed, self, to)
    }
}
