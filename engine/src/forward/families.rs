//! Full NAT between IP versions: a client of one, a real server of the other (RFC 7915, the IP/ICMP translation algorithm).

use super::partial;
use super::quoted::{self, Quote};
use crate::batch::Packet;
use crate::packet::checksum::{Delta, Sum};
use crate::packet::ethernet;
use crate::packet::icmp::{self, Icmp};
use crate::packet::ipv4::{self, Ipv4};
use crate::packet::ipv6::{self, Ipv6};
use crate::packet::protocol;
use crate::packet::tcp::Tcp;
use crate::packet::udp::Udp;
use crate::pipeline::{Kind, Parsed};
use crate::verdict::Reason;
use uvs_conntrack::Flow;

/// Bytes that an IPv4 header grows by.
const GROWTH: u32 = 20;
/// The same.
pub(crate) const MOST_GROWTH: usize = GROWTH as usize;
/// IPv4 packets up to this long may be fragmented on their way (RFC 7915 §5.1): senders of IPv6 need not believe in paths that
/// are shorter than 1280 bytes.
const FRAGMENTABLE: usize = 1260;
/// What fragments of IPv6 are cut to whose senders let routers fragment: they hear of no path that is shorter, and every path takes
/// as much (RFC 7915 §4).
const FRAGMENTED: u32 = 1280;
/// The longest error of each version, in bytes (RFC 1812 §4.3.2.3, RFC 4443 §2.4 c).
const LONGEST: [usize; 2] = [576, 1280];

/// The longest packet of one flow that a link of `mtu` bytes takes as one of the other, or of its reverse.
pub(crate) fn limit(from: &Flow, to: &Flow, mtu: u32) -> u32 {
    if is_v4(from) && !is_v4(to) { mtu.saturating_sub(GROWTH) } else { mtu }
}

/// Which stretch of its datagram a packet carries.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    id: u32,
    offset: usize,
    more: bool,
}

/// What becomes of a packet in the other version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Translated {
    /// Where its headers are.
    pub(crate) parsed: Parsed,
    /// Whether its checksum was unfinished and is complete now.
    pub(crate) completed: bool,
    /// The longest fragments that it goes on in, in bytes; `None` when it goes on as it is.
    pub(crate) fragments: Option<u16>,
}

/// What one IP header says that the other has to say, too.
#[derive(Clone, Copy, Debug)]
struct Header {
    class: u8,
    hops_left: u8,
    protocol: u8,
}

/// Makes a packet or a fragment one of the flow `to`, of the other IP version, one hop older, for a link of `mtu` bytes. `next_id`
/// gives the identification of a packet that has none and has to be fragmented.
pub(crate) fn translate(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    to: &Flow,
    mtu: u32,
    next_id: impl FnOnce() -> u32,
) -> Result<Translated, Reason> {
    let (network, v4) = (parsed.network(), is_v4(to));
    let (mut stretch, from) = stretch(packet.frame(), parsed)?;
    let completed = partial::complete(packet, parsed);
    let header = read(packet.frame(), network, from, &parsed.flow)?;
    let delta = pseudo_delta(&parsed.flow, to);
    let splits = !v4 && !parsed.must_not_be_fragmented(packet.frame());
    let (frame, at) = (packet.frame_mut(), parsed.transport());
    let (id, without) = match (parsed.kind, header.protocol) {
        (Kind::Later, _) => (0, false),
        (_, protocol::TCP) => {
            Tcp::parse_mut(frame, at)?.translate(ports(to), delta);
            let sum = Tcp::parse(frame, at, parsed.transport_len())?.checksum();
            (sum, false)
        }
        _ => {
            let mut udp = Udp::parse_mut(frame, at)?;
            udp.translate(ports(to), delta);
            (udp.checksum(), udp.checksum() == 0)
        }
    };
    if without && parsed.kind != Kind::Whole && !v4 {
        // IPv6 has none without a checksum, which only the whole datagram has (RFC 7915 §4.5).
        return Err(Reason::Untranslatable);
    }
    let payload = parsed.packet_len() + network - from;
    let longest = mtu.min(FRAGMENTED);
    let splits = splits && payload + ipv6::HEADER_LEN + ipv6::FRAGMENT_HEADER_LEN > longest as usize;
    if splits {
        stretch.get_or_insert_with(|| Stretch { id: next_id(), offset: 0, more: false });
    }
    let header_len = match (v4, stretch) {
        (true, _) => ipv4::HEADER_LEN,
        (false, None) => ipv6::HEADER_LEN,
        (false, Some(_)) => ipv6::HEADER_LEN + ipv6::FRAGMENT_HEADER_LEN,
    };
    let moved = parsed.moved(*to, from, header_len);
    resize(packet, network, from - network, header_len)?;
    let header = Header { hops_left: header.hops_left.wrapping_sub(1), ..header };
    // Something that differs from packet to packet, for those that may be fragmented.
    let frame = packet.frame_mut();
    label(frame, network, to);
    write(frame, network, to, header, payload, id)?;
    if let Some(stretch) = stretch {
        write_stretch(frame, network, v4, stretch)?;
    }
    if without && parsed.kind == Kind::Whole {
        partial::finish(packet, &moved, to);
    }
    let fragments = splits.then(|| u16::try_from(longest).unwrap_or(u16::MAX));
    Ok(Translated { parsed: moved, completed, fragments })
}

/// Of a fragment: which stretch of its datagram it carries. And where the payload starts in the frame.
fn stretch(frame: &[u8], parsed: &Parsed) -> Result<(Option<Stretch>, usize), Reason> {
    if parsed.kind == Kind::Whole {
        return Ok((None, parsed.transport()));
    }
    let network = parsed.network();
    let (stretch, end) = match parsed.flow {
        Flow::V4(_) => {
            let header = Ipv4::parse(frame, network)?;
            let (offset, more) = (header.fragment_offset(), header.more_fragments());
            (Stretch { id: header.id().into(), offset, more }, network + header.header_len())
        }
        Flow::V6(_) => {
            let next = Ipv6::parse(frame, network)?.next_header();
            let header = ipv6::find_fragment(frame, network + ipv6::HEADER_LEN, next);
            let ipv6::Fragment { id, offset, more, end } = header.ok_or(Reason::Malformed)?;
            (Stretch { id, offset, more }, end)
        }
    };
    // Extension headers that the datagram has within, before its transport header.
    if parsed.kind == Kind::First && end != parsed.transport() {
        return Err(Reason::Untranslatable);
    }
    Ok((Some(stretch), end))
}

/// Has the IP header at `frame[network..]` say what its packet carries of its datagram; IPv6's in the fragment header behind it.
fn write_stretch(frame: &mut [u8], network: usize, v4: bool, stretch: Stretch) -> Result<(), Reason> {
    let Stretch { id, offset, more } = stretch;
    if v4 {
        let mut header = Ipv4::parse_mut(frame, network)?;
        #[expect(clippy::cast_possible_truncation, reason = "the lower half of it (RFC 7915 §5.1.1)")]
        header.set_id(id as u16);
        header.set_fragment(offset, more);
        return ipv4::finish(frame, network).ok_or(Reason::Truncated);
    }
    let at = network + ipv6::HEADER_LEN;
    let header = ipv6::fragment_header(Ipv6::parse(frame, network)?.next_header(), id);
    let length = Ipv6::parse(frame, network)?.payload_len() + ipv6::FRAGMENT_HEADER_LEN;
    let mut ip = Ipv6::parse_mut(frame, network)?;
    ip.set_next_header(ipv6::FRAGMENT);
    ip.set_payload_len(u16::try_from(length).map_err(|_| Reason::TooBig)?);
    frame.get_mut(at..at + ipv6::FRAGMENT_HEADER_LEN).ok_or(Reason::Truncated)?.copy_from_slice(&header);
    ipv6::set_fragment(frame, at, offset, more).ok_or(Reason::Truncated)
}

/// Makes an ICMP error about a packet of the flow that is the reverse of `parsed.flow` an error of the other version about one of
/// the reverse of `to`, one hop older. TCP's sequence number in the quote gets `shift` added.
pub(crate) fn error(packet: &mut Packet<'_>, parsed: &Parsed, to: &Flow, shift: u32) -> Result<(), Reason> {
    let (v4, network, at) = (is_v4(to), parsed.network(), parsed.transport());
    let end = packet.frame().len().min(network + parsed.packet_len());
    packet.truncate(end);
    let frame = packet.frame();
    let outer = read(frame, network, at, &parsed.flow)?;
    let message = Icmp::parse(frame, at)?;
    let (kind, word) =
        if v4 { to_v4(message.kind(), message.word()) } else { to_v6(message.kind(), message.word()) }
            .ok_or(Reason::Untranslatable)?;
    let quote_at = at + icmp::HEADER_LEN;
    let reversed = to.reversed();
    let (quote, whole_len) = if v4 {
        (Quote::parse6(frame, quote_at), ipv6::HEADER_LEN + Ipv6::parse(frame, quote_at)?.payload_len())
    } else {
        (Quote::parse4(frame, quote_at), Ipv4::parse(frame, quote_at)?.total_len())
    };
    let transport = quote.ok_or(Reason::Malformed)?.transport;
    let inner = read(frame, quote_at, transport, &parsed.flow.reversed())?;
    let inner_payload = whole_len.saturating_sub(transport - quote_at);
    let frame = packet.frame_mut();
    let _delta = quoted::write_transport(frame, transport, &reversed, shift);

    let header_len = if v4 { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let headers = 2 * header_len + icmp::HEADER_LEN;
    resize(packet, network, transport - network, headers)?;
    packet.truncate(network + LONGEST[usize::from(!v4)]);
    let frame = packet.frame_mut();
    let message_at = network + header_len;
    let length = frame.len() - message_at;
    write(frame, message_at + icmp::HEADER_LEN, &reversed, inner, inner_payload, 0)?;
    Icmp::parse_mut(frame, message_at)?.emit(kind, word);
    let protocol = if v4 { protocol::ICMP } else { protocol::ICMPV6 };
    let outer = Header { protocol, hops_left: outer.hops_left.wrapping_sub(1), ..outer };
    label(frame, network, to);
    write(frame, network, to, outer, length, 0)?;
    let sum = Sum::of(&frame[message_at..]);
    let sum = match to {
        Flow::V4(_) => sum,
        Flow::V6(flow) => {
            let length = u32::try_from(length).map_err(|_| Reason::Malformed)?;
            sum.plus(Sum::pseudo6(&flow.addresses, protocol, length))
        }
    };
    Icmp::parse_mut(frame, message_at)?.set_checksum(sum.checksum());
    Ok(())
}

/// What the IP header at `frame[network..]`, of the version of `flow`, says for the other version. What lies between it and
/// `transport` is left out, unless that would change what becomes of the packet.
fn read(frame: &[u8], network: usize, transport: usize, flow: &Flow) -> Result<Header, Reason> {
    /// Authentication headers cover what changes here.
    const AUTHENTICATION: u8 = 51;
    match flow {
        Flow::V4(_) => {
            let header = Ipv4::parse(frame, network)?;
            let options = frame.get(network + ipv4::HEADER_LEN..transport).unwrap_or_default();
            if ipv4::is_source_routed(options) != Ok(false) {
                return Err(Reason::Untranslatable);
            }
            Ok(Header { class: header.tos(), hops_left: header.ttl(), protocol: flow.protocol() })
        }
        Flow::V6(_) => {
            let header = Ipv6::parse(frame, network)?;
            let (mut next, mut at) = (header.next_header(), network + ipv6::HEADER_LEN);
            while at < transport {
                let extension = frame.get(at..at + 2).ok_or(Reason::Truncated)?;
                if next == AUTHENTICATION {
                    return Err(Reason::Untranslatable);
                }
                next = extension[0];
                at += (usize::from(extension[1]) + 1) * 8;
            }
            let class = header.traffic_class();
            Ok(Header { class, hops_left: header.hop_limit(), protocol: flow.protocol() })
        }
    }
}

/// Puts `new` bytes in the place of the `old` bytes at `network`, and the link-layer header before them.
fn resize(packet: &mut Packet<'_>, network: usize, old: usize, new: usize) -> Result<(), Reason> {
    if new > old {
        let more = new - old;
        if !packet.grow_front(more) {
            return Err(Reason::TooBig);
        }
        packet.frame_mut().copy_within(more..more + network, 0);
    } else {
        let less = old - new;
        packet.frame_mut().copy_within(..network, less);
        let _it_is_that_long = packet.shrink_front(less);
    }
    Ok(())
}

/// Writes the EtherType of `flow` where it ends before the IP header.
fn label(frame: &mut [u8], network: usize, flow: &Flow) {
    let ethertype = if is_v4(flow) { ethernet::IPV4 } else { ethernet::IPV6 };
    if let Some(bytes) = network.checked_sub(2).and_then(|at| frame.get_mut(at..network)) {
        bytes.copy_from_slice(&ethertype.to_be_bytes());
    }
}

/// Writes the IP header of a packet of `flow` at `frame[network..]`.
fn write(
    frame: &mut [u8],
    network: usize,
    flow: &Flow,
    header: Header,
    payload: usize,
    id: u16,
) -> Result<(), Reason> {
    let Header { class, hops_left, protocol } = header;
    let length = u16::try_from(payload).map_err(|_| Reason::TooBig)?;
    match flow {
        Flow::V4(flow) => {
            let dont_fragment = payload + ipv4::HEADER_LEN > FRAGMENTABLE;
            Ipv4::parse_mut(frame, network)?.write(&ipv4::Header {
                tos: class,
                id: if dont_fragment { 0 } else { id },
                dont_fragment,
                ttl: hops_left,
                protocol,
                source: flow.source(),
                destination: flow.destination(),
                payload: length,
            });
        }
        Flow::V6(flow) => {
            let mut ip = Ipv6::parse_mut(frame, network)?;
            ip.emit(flow.source(), flow.destination(), protocol, hops_left, length);
            ip.set_traffic_class(class);
        }
    }
    Ok(())
}

/// What the other flow's addresses and ports add to a transport checksum.
fn pseudo_delta(from: &Flow, to: &Flow) -> Delta {
    let delta = Delta::default().word32(ports(from), ports(to));
    let delta = addresses(from).iter().fold(delta, |delta, word| delta.word64(*word, 0));
    addresses(to).iter().fold(delta, |delta, word| delta.word64(0, *word))
}

fn addresses(flow: &Flow) -> [u64; 4] {
    match flow {
        Flow::V4(flow) => [flow.addresses, 0, 0, 0],
        Flow::V6(flow) => flow.addresses,
    }
}

fn ports(flow: &Flow) -> u32 {
    match flow {
        Flow::V4(flow) => flow.ports,
        Flow::V6(flow) => flow.ports,
    }
}

fn is_v4(flow: &Flow) -> bool {
    matches!(flow, Flow::V4(_))
}

/// An ICMP error's type, code and following word in ICMPv6 (RFC 7915 §4.2), if there is one that says the same.
fn to_v6(message: icmp::Kind, word: u32) -> Option<(icmp::Kind, u32)> {
    /// Where the fields of an IPv4 header are in an IPv6 header; 255: nowhere.
    const POINTERS: [u8; 20] = [0, 1, 4, 4, 255, 255, 255, 255, 7, 6, 255, 255, 8, 8, 8, 8, 24, 24, 24, 24];
    /// Where an IPv6 header names the payload's protocol.
    const NEXT_HEADER: u32 = 6;
    let kind = |kind, code| icmp::Kind { kind, code };
    Some(match (message.kind, message.code) {
        (3, 0 | 1 | 5..=8 | 11 | 12) => (kind(1, 0), 0),
        (3, 2) => (kind(4, 1), NEXT_HEADER),
        (3, 3) => (kind(1, 4), 0),
        (3, 4) => (kind(2, 0), (word & 0xffff).max(LEAST_V4) + GROWTH),
        (3, 9 | 10 | 13 | 15) => (kind(1, 1), 0),
        (11, code) => (kind(3, code), 0),
        (12, 0 | 2) => {
            let pointer = *POINTERS.get((word >> 24) as usize)?;
            (kind(4, 0), (pointer != 255).then_some(pointer)?.into())
        }
        _ => return None,
    })
}

/// The smallest MTU of an IPv4 link, in bytes (RFC 791): of routers that tell none.
const LEAST_V4: u32 = 68;

/// An ICMPv6 error's type, code and following word in ICMP (RFC 7915 §5.2), if there is one that says the same.
fn to_v4(message: icmp::Kind, word: u32) -> Option<(icmp::Kind, u32)> {
    let kind = |kind, code| icmp::Kind { kind, code };
    Some(match (message.kind, message.code) {
        (1, 0 | 2 | 3) => (kind(3, 1), 0),
        (1, 1) => (kind(3, 10), 0),
        (1, 4) => (kind(3, 3), 0),
        (2, _) => (kind(3, 4), word.saturating_sub(GROWTH).min(0xffff)),
        (3, code) => (kind(11, code), 0),
        (4, 1) => (kind(3, 2), 0),
        (4, 0) => {
            let pointer: u32 = match word {
                0 => 0,
                1 => 1,
                4 | 5 => 2,
                6 => 9,
                7 => 8,
                8..=23 => 12,
                24..=39 => 16,
                _ => return None,
            };
            (kind(12, 0), pointer << 24)
        }
        _ => return None,
    })
}
