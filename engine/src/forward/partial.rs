//! Transport checksums that a local socket left for a device to finish, on frames that met no such device (veth, virtio).

use crate::batch::Packet;
use crate::packet::checksum::{self, Sum};
use crate::packet::protocol;
use crate::packet::tcp::{self, Tcp};
use crate::packet::udp::{self, Udp};
use crate::pipeline::{Kind, Parsed};
use uvs_conntrack::{Flow, Flow4, Flow6};

/// Whether a packet's transport checksum, its header at `frame[transport..]`, holds only the sum of this pseudo-header.
#[inline(always)]
pub(crate) fn is_unfinished(frame: &[u8], transport: usize, kind: Kind, protocol: u8, pseudo: Sum) -> bool {
    let Some(field) = field(frame, transport, protocol) else { return false };
    kind == Kind::Whole && checksum::is_partial(field, pseudo)
}

/// Completes the transport checksum of a packet that stays as it is, if it is unfinished. Returns whether it was.
#[inline]
pub(crate) fn complete(packet: &mut Packet<'_>, parsed: &Parsed) -> bool {
    let (flow, pseudo) = (&parsed.flow, pseudo(&parsed.flow, parsed.transport_len()));
    let unfinished = is_unfinished(packet.frame(), parsed.transport(), parsed.kind, flow.protocol(), pseudo);
    if unfinished {
        finish(packet, parsed, flow);
    }
    unfinished
}

/// Computes the frame's transport checksum over all its parts; its headers say `flow` by now.
#[cold]
pub(crate) fn finish(packet: &mut Packet<'_>, parsed: &Parsed, flow: &Flow) {
    let frame = packet.frame();
    let Some(field) = field(frame, parsed.transport(), flow.protocol()) else { return };
    let first = &frame[parsed.transport()..];
    let mut left = parsed.transport_len();
    let parts = std::iter::once(first).chain(packet.rest().iter().copied()).map(|part| {
        let part = &part[..part.len().min(left)];
        left -= part.len();
        part
    });
    let checksum = checksum::complete(pseudo(flow, parsed.transport_len()), field, parts);
    let frame = packet.frame_mut();
    if flow.protocol() == protocol::TCP {
        if let Ok(mut tcp) = Tcp::parse_mut(frame, parsed.transport()) {
            tcp.set_checksum(checksum);
        }
    } else if let Ok(mut udp) = Udp::parse_mut(frame, parsed.transport()) {
        udp.set_checksum(checksum);
    }
}

#[inline(always)]
fn field(frame: &[u8], transport: usize, protocol: u8) -> Option<u16> {
    let at = match protocol {
        protocol::TCP => tcp::field::CHECKSUM.start,
        _ => udp::field::CHECKSUM.start,
    };
    let bytes = frame.get(transport + at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[inline]
fn pseudo(flow: &Flow, length: usize) -> Sum {
    match flow {
        Flow::V4(flow) => pseudo4(flow, length),
        Flow::V6(flow) => pseudo6(flow, length),
    }
}

/// The sum of an IPv4 pseudo-header for a transport packet of `length` bytes.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an IP packet's payload is below 2^16 bytes")]
pub(crate) fn pseudo4(flow: &Flow4, length: usize) -> Sum {
    let (source, destination) = (flow.addresses as u32, (flow.addresses >> 32) as u32);
    Sum::pseudo4(source, destination, flow.protocol, length as u16)
}

/// As [`pseudo4`], for IPv6.
#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an IP packet's payload is below 2^16 bytes")]
pub(crate) fn pseudo6(flow: &Flow6, length: usize) -> Sum {
    Sum::pseudo6(&flow.addresses, flow.protocol, length as u32)
}
