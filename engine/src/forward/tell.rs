//! Telling a real server, which sees a local address (full NAT), its client's: by a header of the PROXY protocol ([`header`]), or
//! by a TCP option.
//!
//! As the original patch does it, the option is on the SYN, and on everything that the client sends before the real server's
//! first data. Those prove that the real server has made a connection of the handshake, which is when it looks for the option.
//! The patch goes by what the client acknowledges; but the client may say what it likes, and could have the option left out
//! and write one of its own. For the same reason no option of that kind gets past here.

pub(crate) mod header;

use super::fullnat;
use crate::batch::Packet;
use crate::counters::{Event, WorkerCounters};
use crate::packet::checksum::{Delta, Sum};
use crate::packet::icmp::{self, Icmp};
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::Ipv6;
use crate::packet::proxy::Version;
use crate::packet::tcp::{self, Tcp, flag};
use crate::packet::{protocol, tcp_options};
use crate::pipeline::{Kind, PLAIN_TRANSPORT4, PLAIN_TRANSPORT6, Parsed, Passage};
use crate::plan::{AddressOption, Tell};
use crate::service::Destinations;
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::cell::Cell;
use std::net::IpAddr;
use uvs_conntrack::{Direction, Flow, Found, flags};

/// What telling needs besides the packet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Telling<'a> {
    pub(crate) destinations: &'a Destinations,
    pub(crate) counters: &'a WorkerCounters,
    /// What became of a packet whose payload is another now.
    pub(crate) resized: &'a Cell<Option<Resized>>,
}

/// A packet whose payload is another than it was.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resized {
    /// How many bytes more the datagram holds.
    pub(crate) more: usize,
    /// Length of the IP packet, or of the first fragment, in bytes.
    pub(crate) packet_len: usize,
}

/// The flags that a connection of this protocol begins with.
pub(crate) fn begin(tell: Tell, protocol: u8) -> u16 {
    match tell {
        Tell::Option(_) if protocol == protocol::TCP => flags::TELL_OPTION,
        Tell::Header(Version::One) if protocol == protocol::TCP => flags::TELL_HEADER_V1,
        Tell::Header(Version::Two) => flags::TELL_HEADER_V2,
        Tell::Option(_) | Tell::Header(Version::One) | Tell::Nothing => 0,
    }
}

/// Bytes of the option that holds this client's address.
fn option_len(client: &Flow) -> usize {
    if matches!(client, Flow::V4(_)) { 8 } else { 20 }
}

/// By how many bytes packets of a connection's client may grow while its address has still to be told.
pub(crate) fn growth(found: &Found<'_>) -> usize {
    match found.meta.flags() & flags::TELL {
        0 => 0,
        flags::TELL_OPTION => option_len(&found.connection.client()),
        _ => header::len(found),
    }
}

/// Whether that is by a header, which the client's packets must have room for.
pub(crate) fn needs_room(found: &Found<'_>) -> bool {
    found.meta.has(flags::TELL_HEADER_V1)
}

/// An ICMP error tells the client of a path's MTU: its packets have that less the room for what is told.
pub(crate) fn lower_mtu(packet: &mut Packet<'_>, parsed: &Parsed, found: &Found<'_>) -> Result<(), Reason> {
    let less = u32::try_from(growth(found)).unwrap_or(0);
    let mut message = Icmp::parse_mut(packet.frame_mut(), parsed.transport())?;
    if matches!(message.kind(), icmp::v4::FRAGMENTATION_NEEDED | icmp::v6::PACKET_TOO_BIG) {
        let mtu = message.word();
        message.set_word(mtu.saturating_sub(less));
    }
    Ok(())
}

/// Numbers a client's or a real server's packet for its receiver, and tells by it what there is to be told. It is addressed;
/// its headers lie where `parsed` says.
#[cold]
pub(crate) fn tell(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    let Found { connection, meta, direction } = passage.found;
    if meta.has(flags::TELL_HEADER_V1) {
        return header::pass(packet, parsed, passage, telling);
    }
    if meta.protocol() == protocol::TCP && parsed.kind != Kind::Later {
        fullnat::renumber(packet, parsed, connection, *direction)?;
    }
    option(packet, parsed, passage, telling)
}

/// Tells by an option.
fn option(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    passage: &Passage<'_>,
    telling: &Telling<'_>,
) -> Result<(), Reason> {
    let Found { connection, direction, .. } = passage.found;
    if parsed.kind == Kind::Later {
        return Ok(());
    }
    let tcp_flags = parsed.tcp_flags;
    match direction {
        Direction::In => {
            let Some(how) = telling.destinations.address_option(connection.destination()) else {
                return Ok(());
            };
            let client = connection.client();
            forget_option(packet, parsed, &how)?;
            let wanted = match tcp_flags & (flag::SYN | flag::RST | flag::ACK) {
                flag::SYN => how.on_syn,
                flag::ACK => true,
                _ => false,
            };
            let limit = passage.egress.mtu as usize;
            if wanted {
                // The rest of a segment that is cut up counts on where its first fragment ends.
                let whole = parsed.kind == Kind::Whole;
                let told = whole && insert_option(packet, parsed, &address_option(&client, &how), limit)?;
                let event = if told { Event::ClientTold } else { Event::ClientNotTold };
                telling.counters.count(event, 1);
            }
        }
        Direction::Out if tcp_flags & (flag::SYN | flag::ACK | flag::RST) == flag::SYN | flag::ACK => {
            let less = u16::try_from(option_len(&connection.client())).unwrap_or(0);
            lower_segment_size(packet, parsed, |size| size.saturating_sub(less).max(LEAST_SEGMENT))?;
        }
        Direction::Out => {
            let header_len =
                Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len())?.header_len();
            let speaks = parsed.transport_len() > header_len || tcp_flags & flag::FIN != 0;
            if speaks && tcp_flags & (flag::SYN | flag::RST) == 0 {
                connection.clear(flags::TELL);
            }
        }
    }
    Ok(())
}

/// No maximum segment size is lowered below this, in bytes (Linux's `TCP_MIN_MSS`).
const LEAST_SEGMENT: u16 = 88;

/// Lowers the maximum segment size that a SYN announces. Whether it did.
pub(crate) fn lower_segment_size(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    lower: impl FnOnce(u16) -> u16,
) -> Result<bool, Reason> {
    let Some(options) = options(packet, parsed)? else { return Ok(false) };
    let Some(delta) = tcp_options::lower_segment_size(options, lower) else { return Ok(false) };
    Tcp::parse_mut(packet.frame_mut(), parsed.transport())?.adjust(delta);
    Ok(true)
}

/// The options of a TCP segment, if it has any.
fn options<'a>(packet: &'a mut Packet<'_>, parsed: &Parsed) -> Result<Option<&'a mut [u8]>, Reason> {
    let (frame, at) = (packet.frame_mut(), parsed.transport());
    let header_len = Tcp::parse(frame, at, parsed.transport_len())?.header_len();
    let options = frame.get_mut(at + tcp::HEADER_LEN..at + header_len).ok_or(Reason::Truncated)?;
    Ok(Some(options).filter(|options| !options.is_empty()))
}

/// Overwrites options of the client's own that the real server would take for ours.
fn forget_option(packet: &mut Packet<'_>, parsed: &Parsed, how: &AddressOption) -> Result<(), Reason> {
    let Some(options) = options(packet, parsed)? else { return Ok(()) };
    let mut delta = Delta::default();
    for kind in [how.kind, how.kind_ipv6] {
        while tcp_options::find(options, kind).is_some() {
            delta = delta.plus(tcp_options::blank(options, kind));
        }
    }
    Tcp::parse_mut(packet.frame_mut(), parsed.transport())?.adjust(delta);
    Ok(())
}

/// What an option added before its packet was addressed changes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// Bytes that the packet is longer.
    pub(crate) longer: u16,
    /// What the checksum has still to account for.
    delta: Delta,
}

impl Told {
    /// Brings the checksum up to date. `frame` is the packet's first part.
    #[inline]
    pub(crate) fn account(self, frame: &mut [u8], parsed: &Parsed) -> Result<(), Reason> {
        if self.longer > 0 {
            Tcp::parse_mut(frame, parsed.transport())?.adjust(self.delta);
        }
        Ok(())
    }
}

/// Tells by a segment of the client's that has no options, whose link takes it with one, and that is still as it came. Nothing in it
/// moves behind its TCP header. None, and nothing changed: it is not that simple.
#[inline]
pub(crate) fn add_option(packet: &mut Packet<'_>, parsed: &Parsed, how: AddressOption) -> Option<Told> {
    let tcp = Tcp::parse(packet.frame(), parsed.transport(), parsed.transport_len()).ok()?;
    if parsed.tcp_flags & (flag::SYN | flag::RST | flag::ACK) != flag::ACK
        || tcp.header_len() > tcp::HEADER_LEN
    {
        return None;
    }
    match &parsed.flow {
        Flow::V4(flow) if parsed.is_plain4() => {
            const HEAD: usize = PLAIN_TRANSPORT4 + tcp::HEADER_LEN;
            let ([high, low, ..], [a, b, c, d, ..]) =
                (flow.ports.to_ne_bytes(), flow.addresses.to_ne_bytes());
            prepend::<HEAD, 8>(packet, parsed, [how.kind, 8, high, low, a, b, c, d])
        }
        Flow::V6(flow) if parsed.is_plain6() => {
            const HEAD: usize = PLAIN_TRANSPORT6 + tcp::HEADER_LEN;
            let [high, low, ..] = flow.ports.to_ne_bytes();
            let mut option = [0; 20];
            option[..4].copy_from_slice(&[how.kind_ipv6, 20, high, low]);
            option[4..12].copy_from_slice(&flow.addresses[0].to_ne_bytes());
            option[12..].copy_from_slice(&flow.addresses[1].to_ne_bytes());
            prepend::<HEAD, 20>(packet, parsed, option)
        }
        _ => None,
    }
}

/// Puts the option behind the first `HEAD` bytes of a frame, which is where its options begin.
#[inline]
fn prepend<const HEAD: usize, const LEN: usize>(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    option: [u8; LEN],
) -> Option<Told> {
    let longer = u16::try_from(LEN).ok()?;
    if !packet.grow_front(LEN) {
        return None;
    }
    let frame = packet.frame_mut();
    // Moved before anything is written to it: a copy would wait for the writes.
    let head: [u8; HEAD] = *frame.get(LEN..)?.first_chunk()?;
    *frame.first_chunk_mut()? = head;
    *frame.get_mut(HEAD..)?.first_chunk_mut()? = option;
    let network = parsed.network();
    let lengthened_whole = match parsed.flow {
        Flow::V4(_) => Ipv4::parse_mut(frame, network).ok()?.lengthen(LEN),
        Flow::V6(_) => Ipv6::parse_mut(frame, network).ok()?.lengthen(LEN),
    };
    debug_assert!(lengthened_whole, "what a link takes has a length");
    let delta = Tcp::parse_mut(frame, parsed.transport()).ok()?.set_header_len(tcp::HEADER_LEN + LEN);
    let (words, _) = option.as_chunks::<4>();
    let delta = words.iter().fold(delta, |delta, word| delta.word32(0, u32::from_ne_bytes(*word)));
    Some(Told { longer, delta: delta.plus(lengthened(parsed.transport_len(), LEN)) })
}

/// The option that tells a client's port and address (the patch's `struct toa_data`).
fn address_option(client: &Flow, how: &AddressOption) -> ArrayVec<u8, 20> {
    let source = client.source();
    let [high, low] = source.port().to_be_bytes();
    let mut option = ArrayVec::new();
    let mut push = |bytes: &[u8]| bytes.iter().for_each(|byte| option.push(*byte));
    match source.ip() {
        IpAddr::V4(ip) => {
            push(&[how.kind, 8, high, low]);
            push(&ip.octets());
        }
        IpAddr::V6(ip) => {
            push(&[how.kind_ipv6, 20, high, low]);
            push(&ip.octets());
        }
    }
    option
}

/// Puts an option of whole words before the others of a TCP segment. `false`, and nothing changed, when there
/// is no room among them, or when the packet would be longer than `limit` bytes.
fn insert_option(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    option: &[u8],
    limit: usize,
) -> Result<bool, Reason> {
    let at = parsed.transport();
    let Some(new) = tcp_options::with(options(packet, parsed)?.as_deref().unwrap_or_default(), option) else {
        return Ok(false);
    };
    let old = options(packet, parsed)?.map_or(Sum::default(), |options| Sum::of(options));
    let old_len = Tcp::parse(packet.frame(), at, parsed.transport_len())?.header_len();
    let new_len = tcp::HEADER_LEN + new.len();
    let more = new_len - old_len;
    if parsed.packet_len() + more > limit || !open(packet, parsed, at + tcp::HEADER_LEN, more)? {
        return Ok(false);
    }
    let frame = packet.frame_mut();
    let place = frame.get_mut(at + tcp::HEADER_LEN..at + new_len).ok_or(Reason::Truncated)?;
    place.copy_from_slice(&new);
    let mut tcp = Tcp::parse_mut(frame, at)?;
    let delta = tcp.set_header_len(new_len).plus(lengthened(parsed.transport_len(), more));
    tcp.adjust(delta.word16(old.fold(), Sum::of(&new).fold()));
    Ok(true)
}

/// What a longer transport packet adds to its checksum by the pseudo-header.
#[expect(clippy::cast_possible_truncation, reason = "an IP packet's lengths have 16 bits")]
fn lengthened(length: usize, more: usize) -> Delta {
    Delta::default().word16((length as u16).to_be(), ((length + more) as u16).to_be())
}

/// Makes room for `more` bytes at `at`, behind the IP header: what is before it moves to the front. `false`, and nothing changed,
/// when there is no room, or when no packet can be that long.
fn open(packet: &mut Packet<'_>, parsed: &Parsed, at: usize, more: usize) -> Result<bool, Reason> {
    if !packet.grow_front(more) {
        return Ok(false);
    }
    let frame = packet.frame_mut();
    let longer = match parsed.flow {
        Flow::V4(_) => Ipv4::parse_mut(&mut frame[more..], parsed.network())?.lengthen(more),
        Flow::V6(_) => Ipv6::parse_mut(&mut frame[more..], parsed.network())?.lengthen(more),
    };
    if longer {
        frame.copy_within(more..more + at, 0);
    } else {
        let _it_was_as_long_before = packet.shrink_front(more);
    }
    Ok(longer)
}
