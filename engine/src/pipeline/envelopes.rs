//! The way into a tunnel: a worker's envelopes, and how much goes into one.

use super::View;
use super::egress::{Passage, Refused};
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::tunnel::{self, Ends, Envelope, Marks};
use crate::forward::{self, direct};
use crate::service::Destinations;
use crate::snapshot::Port;
use crate::verdict::{Reason, Verdict};
use std::cell::RefCell;
use std::net::IpAddr;
use uvs_conntrack::{DestinationId, Flow, Found};

/// A worker's own envelopes by destination: to make one is slow, and reads what all workers share.
#[derive(Debug, Default)]
pub(super) struct Envelopes(RefCell<Vec<Option<Kept>>>);

#[derive(Debug)]
struct Kept {
    /// The state of all destinations' plans it was made in, and the IP version it was made for.
    made_for: (u64, bool),
    envelope: Result<Envelope, Reason>,
}

/// How much goes into an envelope.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// The longest packet around another that fits the next link and what is known of the path, in bytes.
    pub(super) mtu: u32,
    /// The longest packet in bytes that fits into that.
    pub(super) limit: u32,
}

impl Envelopes {
    /// Shows the envelope of a connection's real server to `run`, for packets of its client.
    #[inline(always)]
    fn with<R>(
        &self,
        destinations: &Destinations,
        destination: DestinationId,
        inner_v4: bool,
        server: impl FnOnce() -> IpAddr,
        run: impl FnOnce(&Envelope) -> Result<R, Reason>,
    ) -> Result<R, Reason> {
        let made_for = (destinations.plans(), inner_v4);
        let mut all = self.0.borrow_mut();
        match kept(&all, destination, made_for) {
            Some(envelope) => run(envelope.as_ref().map_err(|reason| *reason)?),
            None => run(renew(&mut all, destinations, destination, made_for, server())?),
        }
    }
}

/// The envelope of a destination as it was last made, if it was made for the same.
#[inline(always)]
fn kept(
    all: &[Option<Kept>],
    destination: DestinationId,
    made_for: (u64, bool),
) -> Option<&Result<Envelope, Reason>> {
    let kept = all.get(destination.0 as usize)?.as_ref()?;
    (kept.made_for == made_for).then_some(&kept.envelope)
}

#[cold]
fn renew<'e>(
    all: &'e mut Vec<Option<Kept>>,
    destinations: &Destinations,
    destination: DestinationId,
    made_for: (u64, bool),
    server: IpAddr,
) -> Result<&'e Envelope, Reason> {
    let plan = destinations.plan(destination);
    let tunnel = plan.tunnel.ok_or(Reason::DestinationGone)?;
    let envelope = Ends::new(plan.source, server)
        .ok_or(Reason::NoTunnelSource)
        .and_then(|ends| Envelope::new(tunnel, ends, made_for.1));
    let index = destination.0 as usize;
    if all.len() <= index {
        all.resize_with(index + 1, || None);
    }
    let kept = all[index].insert(Kept { made_for, envelope });
    kept.envelope.as_ref().map_err(|reason| *reason)
}

impl Tracker {
    /// Shows the envelope for a packet, and how much goes into it on its way out of a device, to `run`.
    #[inline(always)]
    fn enveloped<R>(
        &self,
        view: &View<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        egress: &Port,
        run: impl FnOnce(&Envelope, Room) -> Result<R, Reason>,
    ) -> Result<R, Reason> {
        let inner_v4 = matches!(parsed.flow, Flow::V4(_));
        let Found { connection, direction, .. } = found;
        let server = || self.receiver(connection, *direction);
        self.envelopes.with(&self.destinations, connection.destination(), inner_v4, server, |envelope| {
            if envelope.loops(&parsed.flow) {
                return Err(Reason::TunnelLoop);
            }
            let path = view.snapshot.paths.limit(envelope.server(), view.now).unwrap_or(u32::MAX);
            let mtu = egress.mtu.min(path);
            run(envelope, Room { mtu, limit: envelope.limit(mtu)? })
        })
    }

    /// How much goes into the envelope for a packet.
    pub(super) fn room(
        &self,
        view: &View<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        egress: &Port,
    ) -> Result<Room, Reason> {
        self.enveloped(view, parsed, found, egress, |_, room| Ok(room))
    }

    /// Wraps a packet, aged and complete, for its real server.
    pub(super) fn wrap(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        egress: &Port,
    ) -> Result<(), Reason> {
        self.enveloped(view, parsed, found, egress, |envelope, _| self.seal(view, packet, parsed, envelope))
    }

    /// Sends the packet to its real server inside another one.
    #[inline(never)]
    pub(super) fn tunnel(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        passage: &Passage<'_>,
    ) -> Result<Verdict, Refused> {
        let Passage { parsed, found, hop, egress } = *passage;
        let whole = !view.snapshot.options.pmtu_disc && matches!(parsed.flow, Flow::V4(_));
        self.enveloped(view, parsed, found, egress, |envelope, room| {
            if let Err(refused) = passage.check_length(packet, if whole { u32::MAX } else { room.limit }) {
                return Ok(Err(refused));
            }
            let completed = match forward::is_own(found.meta.flags()) {
                true => match self.translate_own(packet, passage) {
                    Ok(completed) => completed,
                    Err(refused) => return Ok(Err(refused)),
                },
                false => direct::pass(packet, parsed),
            };
            if completed {
                self.counters.count(Event::ChecksumCompleted, 1);
            }
            self.seal(view, packet, parsed, envelope)?;
            let port = forward::send(packet, parsed, hop, egress)?;
            Ok(Ok(if parsed.packet_len() > room.limit as usize {
                Verdict::Fragment(port, u16::try_from(room.mtu).unwrap_or(u16::MAX))
            } else {
                Verdict::Transmit(port)
            }))
        })?
    }

    /// As [`Tracker::tunnel`] up to the link-layer addresses, of a packet that the link takes in any envelope. Returns whether its
    /// checksum was unfinished and is complete now; None, and nothing has happened: it is not that simple.
    #[inline]
    pub(super) fn tunnel_straight(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        found: &Found<'_>,
        egress: &Port,
    ) -> Option<Result<bool, Reason>> {
        let made_for = (self.destinations.plans(), matches!(parsed.flow, Flow::V4(_)));
        let all = self.envelopes.0.borrow();
        let envelope = kept(&all, found.connection.destination(), made_for)?.as_ref().ok()?;
        if !envelope.fits(egress.mtu) || envelope.loops(&parsed.flow) {
            return None;
        }
        if let Some(path) = view.snapshot.paths.limit(envelope.server(), view.now)
            && parsed.packet_len() > envelope.limit(path).ok()? as usize
        {
            return None;
        }
        let completed = direct::pass(packet, parsed);
        Some(self.seal(view, packet, parsed, envelope).map(|()| completed))
    }

    #[inline(always)]
    fn seal(
        &self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        envelope: &Envelope,
    ) -> Result<(), Reason> {
        let marks = || {
            let hash = self.handle.hash(&parsed.flow);
            Marks { hash, id: self.next_id(hash) }
        };
        tunnel::encapsulate(packet, parsed, envelope, &view.snapshot.options, marks)
    }
}
