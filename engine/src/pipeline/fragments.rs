//! Fragments go the way of their datagram's first one, as they come: the kernel puts datagrams together before IPVS sees
//! them and takes them apart again in the same sizes, which makes the same packets of them. Only those that arrive before the
//! first one have to wait for it, since nothing says what ports they belong to.

mod table;

pub(crate) use table::Fragments;

use super::View;
use super::parse::Parsed;
use super::track::Tracker;
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::has_local_address;
use crate::packet::ethernet;
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::protocol;
use crate::snapshot::OnRemove;
use crate::verdict::{Reason, Verdict};
use table::{Fate, Key, Piece, Seen};
use uvs_conntrack::{Direction, Flow, Flow4, Flow6, Hit, flags};

impl Tracker {
    /// The first fragment of a datagram: treated as the whole would be. What becomes of it becomes of the others.
    pub(super) fn first_fragment(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
    ) -> Verdict {
        let Some((key, piece)) = read(packet.frame(), parsed) else {
            return Verdict::Drop(Reason::Malformed);
        };
        if self.saw(view, &key, &piece) == Seen::Overlap {
            return Verdict::Drop(Reason::FragmentOverlap);
        }
        self.shifted.set(0);
        let verdict = match self.connection_of(parsed) {
            Some(hit) => self.known(view, packet, parsed, hit),
            None => self.unknown(view, packet, parsed),
        };
        let fate = match verdict {
            Verdict::Transmit(_) | Verdict::Fragment(..) => {
                let id = self.is_from_a_local_address(parsed).then(|| self.commons.fragments.another_id());
                rename(packet.frame_mut(), id);
                Fate::Ours { ports: ports(&parsed.flow), id, shift: self.shifted.get() }
            }
            Verdict::ToKernel => Fate::Kernel,
            Verdict::Drop(_) => Fate::Refused,
            Verdict::Hold(_) | Verdict::Await | Verdict::Segment(_) => return verdict,
        };
        self.released |= self.commons.fragments.settle(&key, fate);
        self.commons.fragments.passed(&key, &piece);
        verdict
    }

    /// Another fragment of a datagram.
    pub(super) fn later_fragment(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
    ) -> Verdict {
        let Some((key, piece)) = read(packet.frame(), parsed) else {
            return Verdict::Drop(Reason::Malformed);
        };
        // One that would overwrite the TCP header's flags (RFC 3128 §4).
        if piece.start == 8 && parsed.flow.protocol() == protocol::TCP {
            return Verdict::Drop(Reason::Malformed);
        }
        let verdict = match self.saw(view, &key, &piece) {
            Seen::Overlap => return Verdict::Drop(Reason::FragmentOverlap),
            Seen::Open => return Verdict::Await,
            Seen::Go(Fate::Refused) => return Verdict::Drop(Reason::Fragment),
            Seen::Go(Fate::Kernel) => Verdict::ToKernel,
            Seen::Go(Fate::Ours { ports, id, shift }) => {
                let mut parsed = *parsed;
                parsed.flow = with_ports(&parsed.flow, ports);
                let verdict = match self.handle.find(&parsed.flow) {
                    Some(hit) => self.follow(view, packet, &parsed, &piece, hit),
                    None => Verdict::Drop(Reason::Fragment),
                };
                if matches!(verdict, Verdict::Transmit(_) | Verdict::Fragment(..)) {
                    rename(packet.frame_mut(), id);
                    if shift > 0 && move_further(packet.frame_mut(), shift).is_none() {
                        return Verdict::Drop(Reason::NoRoom);
                    }
                }
                verdict
            }
        };
        if !matches!(verdict, Verdict::Hold(_)) {
            self.commons.fragments.passed(&key, &piece);
        }
        verdict
    }

    /// The connection that a first fragment belongs to; one that was kept for another datagram's fragments is over.
    fn connection_of(&mut self, parsed: &Parsed) -> Option<Hit> {
        let hit = self.handle.find(&parsed.flow)?;
        if self.handle.connection(hit.id)?.meta().has(flags::ONE_PACKET) {
            self.end_connection(hit.id);
            return None;
        }
        Some(hit)
    }

    /// Whether a client's datagram goes on from an address that many clients share, where two of theirs with the same
    /// identification could be taken for one.
    fn is_from_a_local_address(&self, parsed: &Parsed) -> bool {
        let hit = self.handle.find(&parsed.flow).filter(|hit| hit.direction == Direction::In);
        let connection = hit.and_then(|hit| self.handle.connection(hit.id));
        connection.is_some_and(|found| has_local_address(found.meta().flags()))
    }

    fn saw(&self, view: &View<'_>, key: &Key, piece: &Piece) -> Seen {
        let (seen, forgotten) = self.commons.fragments.saw(key, piece, view.now);
        self.counters.count(Event::DatagramForgotten, forgotten);
        seen
    }

    /// A later fragment goes the way of its connection, which it does not change. Of the datagram, IPVS counts one packet and the
    /// whole's length: the first fragment counted as a packet, the others add their bytes. Its sender is told nothing: it was
    /// told about the first one.
    fn follow(
        &mut self,
        view: &View<'_>,
        packet: &mut Packet<'_>,
        parsed: &Parsed,
        piece: &Piece,
        hit: Hit,
    ) -> Verdict {
        let Some(found) = self.handle.found(hit) else { return Verdict::Drop(Reason::Fragment) };
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
        let forwarded = self.forward(view, packet, parsed, &found, way);
        if available {
            self.count_more(destination, hit.direction, u64::from(piece.end - piece.start));
        }
        forwarded.unwrap_or_else(|refused| Verdict::Drop(refused.reason))
    }
}

/// What a fragment says of itself. None: it contradicts itself, or its datagram would be longer than one can be.
fn read(frame: &[u8], parsed: &Parsed) -> Option<(Key, Piece)> {
    let end = parsed.network() + parsed.packet_len();
    let (id, offset, more, payload) = match &parsed.flow {
        Flow::V4(_) => {
            let header = Ipv4::parse(frame, parsed.network()).ok()?;
            let payload = parsed.network() + header.header_len();
            (header.id().into(), header.fragment_offset(), header.more_fragments(), payload)
        }
        Flow::V6(_) => {
            let header = Ipv6::parse(frame, parsed.network()).ok()?;
            let extensions = parsed.network() + ipv6::HEADER_LEN;
            let header = ipv6::find_fragment(frame, extensions, header.next_header())?;
            (header.id, header.offset, header.more, header.end)
        }
    };
    let length = end.checked_sub(payload).filter(|length| *length > 0 && (!more || length % 8 == 0))?;
    let piece = Piece { start: u16::try_from(offset).ok()?, end: u16::try_from(offset + length).ok()?, more };
    Some((Key { flow: with_ports(&parsed.flow, 0), id }, piece))
}

/// Moves a fragment so many bytes further back in its datagram, a multiple of eight. None: no datagram is that long.
fn move_further(frame: &mut [u8], bytes: usize) -> Option<()> {
    let (ethertype, network) = ethernet::payload(frame).ok()?;
    if ethertype == ethernet::IPV4 {
        let header = Ipv4::parse(frame, network).ok()?;
        let (offset, more) = (header.fragment_offset() + bytes, header.more_fragments());
        let end = offset + header.total_len();
        u16::try_from(end).ok()?;
        Ipv4::parse_mut(frame, network).ok()?.set_fragment(offset, more);
        ipv4::finish(frame, network)
    } else {
        let header = Ipv6::parse(frame, network).ok()?;
        let end = header.payload_len();
        let fragment = ipv6::find_fragment(frame, network + ipv6::HEADER_LEN, header.next_header())?;
        let offset = fragment.offset + bytes;
        u16::try_from(offset + end).ok()?;
        ipv6::set_fragment(frame, fragment.end - ipv6::FRAGMENT_HEADER_LEN, offset, fragment.more)
    }
}

/// Gives a fragment that goes out another identification.
pub(super) fn rename(frame: &mut [u8], id: Option<u32>) {
    let (Some(id), Ok((ethertype, network))) = (id, ethernet::payload(frame)) else { return };
    if ethertype != ethernet::IPV4 {
        let _it_has_a_fragment_header = ipv6::set_id(frame, network, id);
    } else if let Ok(mut header) = Ipv4::parse_mut(frame, network) {
        #[expect(clippy::cast_possible_truncation, reason = "IPv4 has 16 bits for it")]
        header.set_id(id as u16);
        let _it_is_there = ipv4::finish(frame, network);
    }
}

fn ports(flow: &Flow) -> u32 {
    match flow {
        Flow::V4(flow) => flow.ports,
        Flow::V6(flow) => flow.ports,
    }
}

fn with_ports(flow: &Flow, ports: u32) -> Flow {
    match *flow {
        Flow::V4(flow) => Flow::V4(Flow4 { ports, ..flow }),
        Flow::V6(flow) => Flow::V6(Flow6 { ports, ..flow }),
    }
}
