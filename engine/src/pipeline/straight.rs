//! The way of nearly all packets: of connections of which they change nothing but counters and the time of the last packet,
//! whose next hop is known, and that fit.

use super::View;
use super::egress::{Passage, Way};
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::nat::Family;
use crate::forward::tell::{self, Told};
use crate::forward::{self, FULL_NAT, MASQUERADE, Method, direct, fullnat, partial, tunnel};
use crate::nexthop::HopWord;
use crate::packet::ethernet::Ethernet;
use crate::packet::protocol;
use crate::snapshot::Port;
use crate::verdict::{Reason, Verdict};
use uvs_conntrack::{Direction, Found, Hit, flags};

impl Tracker {
    /// The verdict for a packet of a known connection, as [`Tracker::known`] comes to it for every packet. `false`, and nothing
    /// has happened: the packet is not that simple.
    #[inline(always)]
    pub(super) fn straight<F: Family>(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        flow: &F,
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
        if !is_easy(parsed, egress) {
            return false;
        }
        let passage = Passage { parsed, found: &found, hop, egress };
        match meta.flags() & (flags::FORWARD_MASK | flags::TELL) {
            _ if parsed.is_tagged() => {
                self.detour::<F>(view, packet, parsed, found.hit(), (hop, egress), verdict)
            }
            MASQUERADE => self.translated::<F, false>(view, packet, flow, &passage, verdict),
            FULL_NAT => self.translated::<F, true>(view, packet, flow, &passage, verdict),
            _ => self.detour::<F>(view, packet, parsed, found.hit(), (hop, egress), verdict),
        }
    }

    /// The same of an untagged frame by masquerading or, with nothing to tell, by full NAT.
    #[inline(always)]
    fn translated<F: Family, const FULL: bool>(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        flow: &F,
        passage: &Passage<'_>,
        verdict: &mut Verdict,
    ) -> bool {
        let Passage { parsed, found, hop, egress } = *passage;
        let Found { connection, meta, direction } = *found;
        let Some(to) = flow.opposite(found) else { return false };
        connection.touch(direction, view.now);
        self.count_packet(connection.destination(), direction, parsed);
        let frame = packet.frame_mut();
        if let Ok(mut ethernet) = Ethernet::parse_mut(frame) {
            ethernet.set_addresses(hop.mac(), egress.mac);
        }
        let unfinished = flow.rewrite(frame, parsed, &to);
        if FULL && meta.protocol() == protocol::TCP {
            let delta = connection.sequence().delta;
            if let Err(reason) =
                fullnat::shift(frame, parsed, direction, delta, |number| number.wrapping_sub(delta))
            {
                *verdict = Verdict::Drop(reason);
                return true;
            }
        }
        if unfinished {
            partial::finish(packet, parsed, &to.into());
            self.counters.count(Event::ChecksumCompleted, 1);
        }
        *verdict = Verdict::Transmit(hop.port());
        true
    }

    /// The same for tagged frames, for what tells the client's address, and for the other methods.
    #[inline(never)]
    fn detour<F: Family>(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        hit: Hit,
        (hop, egress): (HopWord, &Port),
        verdict: &mut Verdict,
    ) -> bool {
        // Looked up again: handed over, it would have to be waited for.
        let (Some(found), Some(flow)) = (self.handle.found(hit), F::of(&parsed.flow)) else { return false };
        let Some(method) = Method::of_flags(found.meta.flags()) else { return false };
        let rewritten = match method {
            Method::Tunnel => self.tunnel_straight(view, packet, parsed, &found, egress),
            Method::Direct => Some(Ok(direct::pass(packet, parsed))),
            Method::Nat | Method::FullNat => self.translate_straight(packet, parsed, flow, &found),
        };
        let Some(rewritten) = rewritten else { return false };
        found.connection.touch(found.direction, view.now);
        self.count_packet(found.connection.destination(), found.direction, parsed);
        let sent = rewritten.and_then(|completed| {
            if completed {
                self.counters.count(Event::ChecksumCompleted, 1);
            }
            forward::send(packet, parsed, hop, egress)
        });
        *verdict = match sent {
            Ok(port) => Verdict::Transmit(port),
            Err(reason) => Verdict::Drop(reason),
        };
        true
    }

    /// Translates a packet, telling by it the client's address if that is done by an option. Returns whether its checksum was
    /// unfinished and is complete now; None, and nothing has happened: that is not simple.
    #[inline]
    fn translate_straight<F: Family>(
        &self,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        flow: &F,
        found: &Found<'_>,
    ) -> Option<Result<bool, Reason>> {
        let Found { connection, meta, direction } = *found;
        let to = flow.opposite(found)?;
        let told = match meta.flags() & flags::TELL {
            0 => Told::default(),
            flags::TELL_OPTION if direction == Direction::In => {
                let how = self.destinations.address_option(connection.destination())?;
                let told = tell::add_option(packet, parsed, how)?;
                self.counters.count(Event::ClientTold, 1);
                told
            }
            _ => return None,
        };
        let frame = packet.frame_mut();
        let unfinished = flow.rewrite(frame, parsed, &to);
        if meta.protocol() == protocol::TCP && Method::of_flags(meta.flags()) == Some(Method::FullNat) {
            let delta = connection.sequence().delta;
            let shifted =
                fullnat::shift(frame, parsed, direction, delta, |number| number.wrapping_sub(delta));
            if let Err(reason) = shifted.and_then(|()| told.account(frame, parsed)) {
                return Some(Err(reason));
            }
        }
        if unfinished {
            partial::finish(packet, &parsed.lengthened(told.longer), &to.into());
        }
        Some(Ok(unfinished))
    }
}

/// Whether a packet may go on whatever its method adds to it.
#[inline]
fn is_easy(parsed: &Parsed, egress: &Port) -> bool {
    egress.up && parsed.hops_left > 1 && parsed.packet_len() + tunnel::MOST_OVERHEAD <= egress.mtu as usize
}
