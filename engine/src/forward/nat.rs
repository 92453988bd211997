//! Masquerading: other addresses and ports in the headers, and checksums that follow (the kernel's `ip_vs_nat_xmit`).

use super::partial;
use crate::batch::Packet;
use crate::packet::checksum::Delta;
use crate::packet::ipv4::Ipv4;
use crate::packet::ipv6::Ipv6;
use crate::packet::protocol;
use crate::packet::tcp::{self, Tcp};
use crate::packet::udp::{self, Udp};
use crate::pipeline::{PLAIN_NETWORK, PLAIN_TRANSPORT4, PLAIN_TRANSPORT6, Parsed};
use crate::verdict::Reason;
use uvs_conntrack::{Flow, Flow4, Flow6, Found};

/// Makes a packet of a connection the other side's, of the same IP version, one hop older. Returns whether its checksum was
/// unfinished and is complete now.
///
/// # Errors
/// [`Reason::DestinationGone`] when the other side is of the other version.
pub(crate) fn translate(packet: &mut Packet<'_>, parsed: &Parsed, found: &Found<'_>) -> Result<bool, Reason> {
    match &parsed.flow {
        Flow::V4(flow) => translate_of(packet, parsed, flow, found),
        Flow::V6(flow) => translate_of(packet, parsed, flow, found),
    }
}

fn translate_of(
    packet: &mut Packet<'_>,
    parsed: &Parsed,
    flow: &impl Family,
    found: &Found<'_>,
) -> Result<bool, Reason> {
    let to = flow.opposite(found).ok_or(Reason::DestinationGone)?;
    let unfinished = flow.rewrite(packet.frame_mut(), parsed, &to);
    if unfinished {
        partial::finish(packet, parsed, &to.into());
    }
    Ok(unfinished)
}

/// A packet's flow, of one IP version.
pub(crate) trait Family: Sized + Into<Flow> {
    /// The flow, if it is of this version.
    fn of(flow: &Flow) -> Option<&Self>;

    /// The flow that its connection's other side has the packet in. None: that is of the other version.
    fn opposite(&self, found: &Found<'_>) -> Option<Self>;

    /// Makes the headers of a packet's first part those of the flow `to`, one hop older. Returns whether its checksum is unfinished.
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool;
}

impl Family for Flow4 {
    #[inline]
    fn of(flow: &Flow) -> Option<&Self> {
        if let Flow::V4(flow) = flow { Some(flow) } else { None }
    }

    #[inline(always)]
    fn opposite(&self, found: &Found<'_>) -> Option<Self> {
        found.connection.flow4(found.meta, found.direction.reversed()).map(Flow4::reversed)
    }

    #[inline(always)]
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool {
        rewrite4(frame, parsed, self, to)
    }
}

impl Family for Flow6 {
    #[inline]
    fn of(flow: &Flow) -> Option<&Self> {
        if let Flow::V6(flow) = flow { Some(flow) } else { None }
    }

    #[inline(always)]
    fn opposite(&self, found: &Found<'_>) -> Option<Self> {
        found.connection.flow6(found.meta, found.direction.reversed()).map(Flow6::reversed)
    }

    #[inline(always)]
    fn rewrite(&self, frame: &mut [u8], parsed: &Parsed, to: &Self) -> bool {
        rewrite6(frame, parsed, self, to)
    }
}

#[inline(always)]
fn rewrite4(frame: &mut [u8], parsed: &Parsed, from: &Flow4, to: &Flow4) -> bool {
    const TCP: usize = PLAIN_TRANSPORT4 + tcp::HEADER_LEN;
    const UDP: usize = PLAIN_TRANSPORT4 + udp::HEADER_LEN;
    // The same code three times: of the first two the compiler knows where every field lies.
    if !parsed.is_plain4() {
        // Of a later fragment this changes the IP header only: it has no other.
        headers4(frame, parsed.network(), parsed.transport(), parsed, from, to)
    } else if from.protocol == protocol::TCP
        && let Some(head) = frame.first_chunk_mut::<TCP>()
    {
        let from = Flow4 { protocol: protocol::TCP, ..*from };
        headers4(head, PLAIN_NETWORK, PLAIN_TRANSPORT4, parsed, &from, to)
    } else if from.protocol == protocol::UDP
        && let Some(head) = frame.first_chunk_mut::<UDP>()
    {
        let from = Flow4 { protocol: protocol::UDP, ..*from };
        headers4(head, PLAIN_NETWORK, PLAIN_TRANSPORT4, parsed, &from, to)
    } else {
        false
    }
}

#[inline(always)]
fn headers4(
    frame: &mut [u8],
    network: usize,
    transport: usize,
    parsed: &Parsed,
    from: &Flow4,
    to: &Flow4,
) -> bool {
    let pseudo = partial::pseudo4(from, parsed.transport_len());
    let unfinished = partial::is_unfinished(frame, transport, parsed.kind, from.protocol, pseudo);
    let delta = Delta::default().word64(from.addresses, to.addresses);
    if let Ok(mut header) = Ipv4::parse_mut(frame, network) {
        header.forward(to.addresses, delta);
    }
    ports(frame, transport, from.protocol, to.ports, delta.word32(from.ports, to.ports));
    unfinished
}

#[inline(always)]
fn rewrite6(frame: &mut [u8], parsed: &Parsed, from: &Flow6, to: &Flow6) -> bool {
    const TCP: usize = PLAIN_TRANSPORT6 + tcp::HEADER_LEN;
    const UDP: usize = PLAIN_TRANSPORT6 + udp::HEADER_LEN;
    if !parsed.is_plain6() {
        // Of a later fragment this changes the IP header only: it has no other.
        headers6(frame, parsed.network(), parsed.transport(), parsed, from, to)
    } else if from.protocol == protocol::TCP
        && let Some(head) = frame.first_chunk_mut::<TCP>()
    {
        let from = Flow6 { protocol: protocol::TCP, ..*from };
        headers6(head, PLAIN_NETWORK, PLAIN_TRANSPORT6, parsed, &from, to)
    } else if from.protocol == protocol::UDP
        && let Some(head) = frame.first_chunk_mut::<UDP>()
    {
        let from = Flow6 { protocol: protocol::UDP, ..*from };
        headers6(head, PLAIN_NETWORK, PLAIN_TRANSPORT6, parsed, &from, to)
    } else {
        false
    }
}

#[inline(always)]
fn headers6(
    frame: &mut [u8],
    network: usize,
    transport: usize,
    parsed: &Parsed,
    from: &Flow6,
    to: &Flow6,
) -> bool {
    let pseudo = partial::pseudo6(from, parsed.transport_len());
    let unfinished = partial::is_unfinished(frame, transport, parsed.kind, from.protocol, pseudo);
    if let Ok(mut header) = Ipv6::parse_mut(frame, network) {
        header.forward(&to.addresses);
    }
    let ([a, b, c, d], [e, f, g, h]) = (from.addresses, to.addresses);
    let delta = Delta::default().word64(a, e).word64(b, f).word64(c, g).word64(d, h);
    ports(frame, transport, from.protocol, to.ports, delta.word32(from.ports, to.ports));
    unfinished
}

#[inline(always)]
fn ports(frame: &mut [u8], transport: usize, protocol: u8, ports: u32, delta: Delta) {
    if protocol == protocol::TCP {
        if let Ok(mut tcp) = Tcp::parse_mut(frame, transport) {
            tcp.translate(ports, delta);
        }
    } else if let Ok(mut udp) = Udp::parse_mut(frame, transport) {
        udp.translate(ports, delta);
    }
}
