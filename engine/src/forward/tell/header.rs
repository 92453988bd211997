//! Telling by a header of the PROXY protocol, before the client's first byte.
//!
//! Over TCP the header takes sequence numbers of its own, so that everything behind it is numbered on for the real server, and
//! back for the client. How far the connection is, its one word of sequence numbers says: the delta is a multiple of
//! [`STEP`] until the real server has acknowledged the header, and from then on has the header's length added. Until then the word's
//! mark is the number of the client's first byte, and the header goes before it as often as the client sends what begins there: already
//! its acknowledgement of the handshake, so that a real server that speaks first has it, too. Whoever reads the word knows what
//! to do with a segment, in whatever order they come and however many workers they come to.
//!
//! Nothing else than the header ever takes its place: what the client sends before its first byte, which a real server passes
//! over, is shorter than what it passes over, and a SYN brings no data.

use super::{Resized, Telling, lengthened, open};
use crate::batch::Packet;
use crate::counters::Event;
use crate::forward::fullnat::{renumber, shift};
use crate::packet::checksum::{Delta, Sum};
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::protocol;
use crate::packet::proxy::{self, Version};
use crate::packet::tcp::{self, Tcp, flag};
use crate::packet::tcp_options::{self, FAST_OPEN};
use crate::packet::udp::{self, Udp};
use crate::pipeline::{Kind, Parsed, Passage};
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use uvs_conntrack::{Direction, Flow, Found, Meta, Sequence, flags};

/// A delta is a multiple of this until the header is acknowledged: more than a header has bytes.
pub(crate) const STEP: u32 = 128;
const _: () = assert!(proxy::MAX_LEN < STEP as usize);

type Header = ArrayVec<u8, { proxy::MAX_LEN }>;

/// The header of a client's connection.
fn header(found: &Found<'_>) -> Header {
    let client = found.connection.client();
    proxy::header(version(found.meta), found.meta.protocol(), client.source(), client.destination())
}

fn version(meta: Meta) -> Version {
    if meta.flags() & flags::TELL == flags::TELL_HEADER_V1 { Version::One } else { Version::Two }
}

/// Bytes of the header that goes before what the client sends first.
pub(crate) fn len(found: &Found<'_>) -> usize {
    header(found).len()
}

/// Numbers the packet for its receiver, and puts the header in its place. The packet is addressed; its headers lie where
/// `parsed` says.
pub(super) fn pass(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    match (passage.found.meta.protocol(), passage.found.direction) {
        _ if parsed.kind == Kind::Later => Ok(()),
        (protocol::TCP, Direction::In) => from_client(packet, parsed, passage, telling),
        (protocol::TCP, Direction::Out) => from_server(packet, parsed, passage.found),
        (_, Direction::In) => datagram(packet, parsed, passage, telling),
        (_, Direction::Out) => Ok(()),
    }
}

fn from_client(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    let Found { connection, .. } = passage.found;
    let Sequence { delta, mark: first } = connection.sequence();
    let tcp = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len())?;
    let (sequence, header_len) = (tcp.sequence(), tcp.header_len());
    let payload = parsed.transport_len() - header_len;
    if delta % STEP != 0 {
        connection.clear(flags::TELL);
        return renumber(packet, parsed, connection, Direction::In);
    }
    if parsed.tcp_flags & flag::SYN != 0 {
        if sequence.wrapping_add(1) != first {
            return Err(Reason::BeganAgain);
        }
        if parsed.kind != Kind::Whole {
            return Err(Reason::NoRoom);
        }
        if payload > 0 {
            cut(packet, parsed, header_len)?;
            telling.resized.set(Some(Resized { more: 0, packet_len: parsed.packet_len() - payload }));
        }
        blank(packet, parsed, header_len, FAST_OPEN)?;
        return shift(packet.frame_mut(), parsed, Direction::In, delta, |number| number);
    }
    let header = header(passage.found);
    let length = u32::try_from(header.len()).unwrap_or(0);
    let past = sequence.wrapping_sub(first).cast_signed();
    if past > 0 {
        return shift(packet.frame_mut(), parsed, Direction::In, delta.wrapping_add(length), |number| number);
    }
    // What a first fragment is the beginning of would lie beside or in the header's place.
    if parsed.kind != Kind::Whole {
        return Err(Reason::NoRoom);
    }
    let begins = past == 0 && parsed.tcp_flags & (flag::ACK | flag::RST) == flag::ACK;
    if !begins && payload > past.unsigned_abs() as usize {
        return Err(Reason::Malformed);
    }
    shift(packet.frame_mut(), parsed, Direction::In, delta, |number| number)?;
    if begins {
        insert(packet, parsed, header_len, &header, passage.egress.mtu as usize)?;
        telling.counters.count(Event::ClientTold, 1);
    }
    Ok(())
}

fn from_server(packet: &mut Packet<'_>, parsed: &Parsed, found: &Found<'_>) -> Result<(), Reason> {
    let Found { connection, .. } = found;
    let old @ Sequence { delta, mark: first } = connection.sequence();
    if delta % STEP != 0 {
        connection.clear(flags::TELL);
        return renumber(packet, parsed, connection, Direction::Out);
    }
    let length = u32::try_from(len(found)).unwrap_or(0);
    let past = |number: u32| number.wrapping_sub(delta).wrapping_sub(first).cast_signed();
    // Whatever lies within the header is the client's first byte to the client.
    let map = |number: u32| match past(number) {
        ..=0 => number.wrapping_sub(delta),
        past if past.cast_unsigned() < length => first,
        _ => number.wrapping_sub(delta).wrapping_sub(length),
    };
    let tcp = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len())?;
    let acknowledged = past(tcp.acknowledgement());
    if parsed.tcp_flags & flag::ACK != 0 && acknowledged > 0 && acknowledged.cast_unsigned() >= length {
        // Another worker may have been faster.
        let new = Sequence { delta: delta.wrapping_add(length), mark: 0 };
        if connection.swap_sequence(old, new) {
            connection.clear(flags::TELL);
        }
    }
    shift(packet.frame_mut(), parsed, Direction::Out, delta, map)
}

/// The connection's first datagram has the header, and no other.
fn datagram(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    let header = header(passage.found);
    let (at, more) = (parsed.transport(), header.len());
    let old = u16::try_from(parsed.transport_len()).map_err(|_| Reason::NoRoom)?;
    let new = u16::try_from(parsed.transport_len() + more).map_err(|_| Reason::NoRoom)?;
    let packet_len = parsed.packet_len() + more;
    // Who sent it does not know of the header, and could not make it shorter.
    let split = packet_len > passage.egress.mtu as usize;
    // One that cannot have the header is not the first: nothing of what the client says stands in the header's place.
    if packet_len > usize::from(u16::MAX) || split && !can_be_split(packet, parsed)? {
        return Err(Reason::NoRoom);
    }
    if !passage.found.connection.clear(flags::TELL) {
        return Ok(());
    }
    if !open(packet, parsed, at + udp::HEADER_LEN, more)? {
        return Err(Reason::NoRoom);
    }
    let frame = packet.frame_mut();
    let place = at + udp::HEADER_LEN..at + udp::HEADER_LEN + more;
    frame.get_mut(place).ok_or(Reason::Truncated)?.copy_from_slice(&header);
    // The length counts twice: it is in the pseudo-header, too.
    let length = Delta::default().word16(old.to_be(), new.to_be());
    let delta = length.plus(length).word16(0, Sum::of(&header).fold());
    Udp::parse_mut(frame, at)?.set_len(new, delta);
    if split && matches!(parsed.flow, Flow::V4(_)) {
        Ipv4::parse_mut(frame, parsed.network())?.let_fragment();
    }
    telling.resized.set(Some(Resized { more, packet_len }));
    telling.counters.count(Event::ClientTold, 1);
    Ok(())
}

/// Whether the packet can leave in fragments: which extension headers each would have to have, nobody looks for.
fn can_be_split(packet: &Packet<'_>, parsed: &Parsed) -> Result<bool, Reason> {
    let network = parsed.network();
    Ok(match parsed.flow {
        Flow::V4(_) => true,
        Flow::V6(_) => {
            let next = Ipv6::parse(packet.frame(), network)?.next_header();
            let known = if next == ipv6::FRAGMENT { ipv6::FRAGMENT_HEADER_LEN } else { 0 };
            parsed.transport() == network + ipv6::HEADER_LEN + known
        }
    })
}

/// Puts the header before a segment's payload; its sequence number stays.
fn insert(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    header_len: usize,
    header: &[u8],
    limit: usize,
) -> Result<(), Reason> {
    let (at, more) = (parsed.transport(), header.len());
    let payload_at = at + header_len;
    if parsed.packet_len() + more > limit {
        return Err(Reason::NoRoom);
    }
    let head = Sum::of(packet.frame().get(at..payload_at).ok_or(Reason::Truncated)?);
    if !open(packet, parsed, payload_at, more)? {
        return Err(Reason::NoRoom);
    }
    let frame = packet.frame_mut();
    frame.get_mut(payload_at..payload_at + more).ok_or(Reason::Truncated)?.copy_from_slice(header);
    // The checksum says what the payload's sum is, which has its bytes in each other's place behind an odd header: whatever was
    // wrong with it stays wrong.
    let pseudo = pseudo(frame, parsed)?;
    let payload = Sum::default().without(head).without(pseudo);
    let moved = if more % 2 == 1 { payload.swapped() } else { payload };
    let mut tcp = Tcp::parse_mut(frame, at)?;
    tcp.adjust(lengthened(parsed.transport_len(), more));
    tcp.adjust(Delta::default().word16(payload.fold(), moved.fold()).word16(0, Sum::of(header).fold()));
    point_further(frame, at, more)
}

/// The sum of the pseudo-header that the packet has now.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the halves of a word; an IP packet's lengths have 16 bits"
)]
fn pseudo(frame: &[u8], parsed: &Parsed) -> Result<Sum, Reason> {
    let (network, length) = (parsed.network(), parsed.transport_len());
    Ok(match parsed.flow {
        Flow::V4(_) => {
            let addresses = Ipv4::parse(frame, network)?.addresses();
            Sum::pseudo4(addresses as u32, (addresses >> 32) as u32, protocol::TCP, length as u16)
        }
        Flow::V6(_) => Sum::pseudo6(&Ipv6::parse(frame, network)?.addresses(), protocol::TCP, length as u32),
    })
}

/// Urgent data end further behind the sequence number now.
fn point_further(frame: &mut [u8], at: usize, more: usize) -> Result<(), Reason> {
    let mut tcp = Tcp::parse_mut(frame, at)?;
    if tcp.flags() & flag::URG != 0 {
        let delta = tcp.add_to_urgent(u16::try_from(more).unwrap_or(u16::MAX));
        tcp.adjust(delta);
    }
    Ok(())
}

/// A segment without its payload. Its headers stay where they are.
fn cut(packet: &mut Packet<'_>, parsed: &Parsed, header_len: usize) -> Result<(), Reason> {
    let (network, at) = (parsed.network(), parsed.transport());
    let length = u16::try_from(at + header_len - network).map_err(|_| Reason::Malformed)?;
    let old = u16::try_from(parsed.transport_len()).map_err(|_| Reason::Malformed)?;
    let new = u16::try_from(header_len).map_err(|_| Reason::Malformed)?;
    let frame = packet.frame();
    let head = Sum::of(frame.get(at..at + header_len).ok_or(Reason::Truncated)?);
    // As with what is put in: what was wrong with the checksum stays wrong.
    let payload = Sum::default().without(head).without(pseudo(frame, parsed)?);
    packet.truncate(at + header_len);
    let frame = packet.frame_mut();
    match parsed.flow {
        Flow::V4(_) => {
            Ipv4::parse_mut(frame, network)?.set_total_len(length);
            ipv4::finish(frame, network).ok_or(Reason::Truncated)?;
        }
        Flow::V6(_) => {
            let fixed = u16::try_from(ipv6::HEADER_LEN).unwrap_or(0);
            Ipv6::parse_mut(frame, network)?.set_payload_len(length - fixed);
        }
    }
    let delta = Delta::default().word16(old.to_be(), new.to_be()).word16(payload.fold(), 0);
    Tcp::parse_mut(frame, at)?.adjust(delta);
    Ok(())
}

/// Overwrites an option of a segment.
fn blank(packet: &mut Packet<'_>, parsed: &Parsed, header_len: usize, kind: u8) -> Result<(), Reason> {
    let (frame, at) = (packet.frame_mut(), parsed.transport());
    let options = frame.get_mut(at + tcp::HEADER_LEN..at + header_len).ok_or(Reason::Truncated)?;
    let delta = tcp_options::blank(options, kind);
    Tcp::parse_mut(frame, at)?.adjust(delta);
    Ok(())
}
