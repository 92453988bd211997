//! Full NAT between IP versions: a client of one, a real server of the other (RFC 7915, the IP/ICMP translation algorithm).
//!
//! Fragments are not translated.

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
/// The longest error of each version, in bytes (RFC 1812 §4.3.2.3, RFC 4443 §2.4 c).
const LONGEST: [usize; 2] = [576, 1280];

/// The longest packet of one flow that a link of `mtu` bytes takes as one of the other, or of its reverse.
pub(crate) fn limit(from: &Flow, to: &Flow, mtu: u32) -> u32 {
    if is_v4(from) && !is_v4(to) { mtu.saturating_sub(GROWTH) } else { mtu }
}

/// What one IP header says that the other has to say, too.
#[derive(Clone, Copy, Debug)]
struct Header {
    class: u8,
    hops_left: u8,
    protocol: u8,
}

/// Makes a whole packet one of the flow `to`, of the other IP version, one hop older. Returns where its headers are then, and
/// whether its checksum was unfinished and is complete now.
pub(crate) fn translate(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    to: &Flow,
) -> Result<(Parsed, bool), Reason> {
    if parsed.kind != Kind::Whole {
        return Err(Reason::Untranslatable);
    }
    let completed = partial::complete(packet, parsed);
    let header = read(packet.frame(), parsed.network(), parsed.transport(), &parsed.flow)?;
    let delta = pseudo_delta(&parsed.flow, to);
    let (frame, at) = (packet.frame_mut(), parsed.transport());
    let (id, without) = match header.protocol {
        protocol::TCP => {
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
    let header_len = if is_v4(to) { ipv4::HEADER_LEN } else { ipv6::HEADER_LEN };
    let moved = parsed.moved(*to, header_len);
    resize(packet, parsed.network(), at - parsed.network(), header_len)?;
    let header = Header { hops_left: header.hops_left.wrapping_sub(1), ..header };
    // Something that differs from packet to packet, for those that may be fragmented.
    label(packet.frame_mut(), parsed.network(), to);
    write(packet.frame_mut(), parsed.network(), to, header, payload_len(parsed), id)?;
    if without {
        // IPv6 has none without a checksum (RFC 7915 §4.5).
        partial::finish(packet, &moved, to);
    }
    Ok((moved, completed))
}

/// Bytes behind the IP header and its options or extensions.
fn payload_len(parsed: &Parsed) -> usize {
    parsed.packet_len() + parsed.network() - parsed.transport()
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
    const FRAGMENT: u8 = 44;
    match flow {
        Flow::V4(_) => {
            let header = Ipv4::parse(frame, network)?;
            let options = frame.get(network + ipv4::HEADER_LEN..transport).unwrap_or_default();
            if header.is_fragment() || ipv4::is_source_routed(options) != Ok(false) {
                return Err(Reason::Untranslatable);
            }
            Ok(Header { class: header.tos(), hops_left: header.ttl(), protocol: flow.protocol() })
        }
        Flow::V6(_) => {
            let header = Ipv6::parse(frame, network)?;
            let (mut next, mut at) = (header.next_header(), network + ipv6::HEADER_LEN);
            while at < transport {
                let extension = frame.get(at..at + 2).ok_or(Reason::Truncated)?;
                if matches!(next, AUTHENTICATION | FRAGMENT) {
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
