//! Transport checksums that a local socket left for a device to finish, on frames that met no such device (veth, virtio).

use crate::batch::Packet;
use crate::packet::checksum::{self, Sum};
use crate::packet::protocol;
use crate::packet::tcp::{self, Tcp};
use crate::packet::udp::{self, Udp};
use crate::pipeline::{Kind, Parsed};
use uvs_conntrack::Flow;

/// Whether the frame's transport checksum holds only the pseudo-header's sum.
#[inline]
pub(crate) fn is_unfinished(frame: &[u8], parsed: &Parsed) -> bool {
    let Some(field) = field(frame, parsed) else { return false };
    parsed.kind == Kind::Whole && checksum::is_partial(field, pseudo(&parsed.flow, parsed.transport_len()))
}

/// Computes the frame's transport checksum over all its parts; its headers say `flow` by now.
pub(crate) fn finish(packet: &mut Packet<'_>, parsed: &Parsed, flow: &Flow) {
    let frame = packet.frame();
    let Some(field) = field(frame, parsed) else { return };
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

#[inline]
fn field(frame: &[u8], parsed: &Parsed) -> Option<u16> {
    let at = match parsed.flow.protocol() {
        protocol::TCP => tcp::field::CHECKSUM.start,
        _ => udp::field::CHECKSUM.start,
    };
    let bytes = frame.get(parsed.transport() + at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[inline]
#[expect(clippy::cast_possible_truncation, reason = "an IP packet's payload is below 2^16 bytes")]
fn pseudo(flow: &Flow, length: usize) -> Sum {
    match flow {
        Flow::V4(flow) => {
            let (source, destination) = (flow.addresses as u32, (flow.addresses >> 32) as u32);
            Sum::pseudo4(source, destination, flow.protocol, length as u16)
        }
        Flow::V6(flow) => Sum::pseudo6(&flow.addresses, flow.protocol, length as u32),
    }
}
