//! Super-frames: what a sender's or receiver's segmentation offload made of many TCP segments or UDP datagrams, cut into such
//! again.

use super::checksum::Sum;
use super::ethernet;
use super::ipv4::{self, Ipv4};
use super::ipv6::{self, Ipv6};
use super::piece::{self, MAX_HEADERS, Piece};
use super::protocol;
use super::tcp::{Tcp, flag};
use super::udp::{self, Udp};
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::net::Ipv4Addr;
use std::ops::Range;

/// The segments of a super-frame, or its datagrams, in their order.
#[derive(Clone, Debug)]
pub struct Segments<'a> {
    parts: &'a [&'a [u8]],
    /// The super-frame's headers.
    headers: ArrayVec<u8, MAX_HEADERS>,
    network: usize,
    transport: usize,
    version: Version,
    carries: Carries,
    payload: Range<usize>,
    /// Bytes of data in each segment but the last.
    size: usize,
    /// The next segment's number.
    number: u16,
    /// Where its data begins.
    next: usize,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    V4 { source: Ipv4Addr, destination: Ipv4Addr, id: u16 },
    V6 { addresses: [u64; 4] },
}

#[derive(Clone, Copy, Debug)]
enum Carries {
    Tcp,
    /// With a checksum, or over IPv4 without.
    Udp {
        summed: bool,
    },
}

impl Carries {
    fn protocol(self) -> u8 {
        match self {
            Carries::Tcp => protocol::TCP,
            Carries::Udp { .. } => protocol::UDP,
        }
    }
}

/// A whole packet over IP: where its IP header, the next one and its end are, and the protocol of that.
struct Whole {
    version: Version,
    upper: u8,
    network: usize,
    transport: usize,
    end: usize,
}

/// Cuts the frame in `parts`, whose headers lie in the first, into frames whose IP packets have at most `limit` bytes.
///
/// As a device with TCP segmentation offload does it (and the kernel's `tcp_gso_segment`): the sequence number and, over
/// IPv4, the identification count on, FIN and PSH are the last segment's, CWR the first one's, everything else is every
/// segment's. All checksums are computed anew, so the super-frame's may be unfinished.
///
/// # Errors
/// [`Reason::Malformed`] or [`Reason::Truncated`] when it is no whole TCP segment over IP, [`Reason::TooBig`] when no segment
/// with these headers fits `limit`.
pub fn segments<'a>(parts: &'a [&'a [u8]], limit: usize) -> Result<Segments<'a>, Reason> {
    let whole @ Whole { upper, network, transport, end, .. } = Whole::look(parts)?;
    if upper != protocol::TCP {
        return Err(Reason::Malformed);
    }
    let data = transport + Tcp::parse(parts[0], transport, end - transport)?.header_len();
    let size = limit.checked_sub(data - network).filter(|size| *size > 0).ok_or(Reason::TooBig)?;
    whole.cut(parts, Carries::Tcp, data..end, size)
}

/// Cuts the frame in `parts`, whose headers lie in the first, into the datagrams that it was made of: `size` bytes of data in each
/// but the last.
///
/// As the kernel's `__udp_gso_segment`: over IPv4 the identification counts on. All checksums are computed anew, so the
/// super-frame's may be unfinished; without one the datagrams have none either.
///
/// # Errors
/// [`Reason::Malformed`] or [`Reason::Truncated`] when it is no whole UDP datagram over IP, or has no data.
pub fn datagrams<'a>(parts: &'a [&'a [u8]], size: usize) -> Result<Segments<'a>, Reason> {
    let whole @ Whole { upper, transport, end, .. } = Whole::look(parts)?;
    if upper != protocol::UDP {
        return Err(Reason::Malformed);
    }
    let udp = Udp::parse(parts[0], transport, end - transport)?;
    let data = transport + udp::HEADER_LEN;
    let payload = data..transport + udp.len();
    if payload.is_empty() || size == 0 {
        return Err(Reason::Malformed);
    }
    let carries = Carries::Udp { summed: udp.checksum() != 0 };
    whole.cut(parts, carries, payload, size)
}

impl Whole {
    /// Cuts its `payload`, headers before it, into pieces of `size` bytes.
    fn cut<'a>(
        self,
        parts: &'a [&'a [u8]],
        carries: Carries,
        payload: Range<usize>,
        size: usize,
    ) -> Result<Segments<'a>, Reason> {
        let Whole { version, network, transport, .. } = self;
        let (headers, next) = (piece::headers(parts[0], payload.start)?, payload.start);
        Ok(Segments { parts, headers, network, transport, version, carries, payload, size, number: 0, next })
    }

    fn look(parts: &[&[u8]]) -> Result<Self, Reason> {
        let (ethertype, network, len) = piece::look(parts)?;
        let head = parts[0];
        let (version, upper, transport, end) = match ethertype {
            ethernet::IPV4 => {
                let ip = Ipv4::parse(head, network)?;
                if ip.is_fragment() {
                    return Err(Reason::Malformed);
                }
                let version = Version::V4 { source: ip.source(), destination: ip.destination(), id: ip.id() };
                (version, ip.protocol(), network + ip.header_len(), network + ip.total_len())
            }
            ethernet::IPV6 => {
                let ip = Ipv6::parse(head, network)?;
                let extensions = network + ipv6::HEADER_LEN;
                let upper = ipv6::upper_layer(head, extensions, ip.next_header())?;
                if upper.fragment || upper.routed {
                    return Err(Reason::Malformed);
                }
                let version = Version::V6 { addresses: ip.addresses() };
                (version, upper.protocol, upper.offset, extensions + ip.payload_len())
            }
            _ => return Err(Reason::Malformed),
        };
        if end > len || transport > end {
            return Err(Reason::Truncated);
        }
        Ok(Whole { version, upper, network, transport, end })
    }
}

impl Iterator for Segments<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        // A segment without data is one piece too.
        if self.next >= self.payload.end && self.number > 0 {
            return None;
        }
        let start = self.next;
        let end = self.payload.end.min(start + self.size);
        let mut headers = self.headers.clone();
        let written = self.write(&mut headers, start..end);
        self.next = end;
        self.number = self.number.wrapping_add(1);
        written.map(|()| Piece { headers, payload: start..end })
    }
}

impl Segments<'_> {
    /// How many segments there are in all.
    pub fn len(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// Always false: a segment without data is one too.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Makes `headers` those of the segment with the data `payload`. None cannot happen: they were parsed before.
    fn write(&self, headers: &mut [u8], payload: Range<usize>) -> Option<()> {
        let first = payload.start == self.payload.start;
        let last = payload.end == self.payload.end;
        let segment = headers.len() - self.transport + payload.len();
        let data = Sum::of_parts(piece::stretch(self.parts, payload.clone()));

        match self.carries {
            Carries::Tcp => {
                let mut view = Tcp::parse_mut(headers, self.transport).ok()?;
                let offset = u32::try_from(payload.start - self.payload.start).ok()?;
                view.add_to_sequence(offset);
                let end = if last { 0xff } else { !(flag::FIN | flag::PSH) };
                let begin = if first { 0xff } else { !flag::CWR };
                view.set_flags(view.flags() & end & begin);
                view.set_checksum(0);
            }
            Carries::Udp { .. } => {
                Udp::parse_mut(headers, self.transport).ok()?.begin(u16::try_from(segment).ok()?);
            }
        }

        let length = u16::try_from(headers.len() - self.network + payload.len()).ok()?;
        let protocol = self.carries.protocol();
        let pseudo = match self.version {
            Version::V4 { source, destination, id } => {
                let mut ip = Ipv4::parse_mut(headers, self.network).ok()?;
                ip.set_total_len(length);
                ip.set_id(id.wrapping_add(self.number));
                ipv4::finish(headers, self.network)?;
                Sum::pseudo4_of(source, destination, protocol, u16::try_from(segment).ok()?)
            }
            Version::V6 { addresses } => {
                let fixed = u16::try_from(ipv6::HEADER_LEN).ok()?;
                Ipv6::parse_mut(headers, self.network).ok()?.set_payload_len(length - fixed);
                Sum::pseudo6(&addresses, protocol, u32::try_from(segment).ok()?)
            }
        };
        // Either header is a whole number of words: the data's first byte is the first of one.
        let sum = pseudo.plus(Sum::of(&headers[self.transport..])).plus(data).checksum();
        match self.carries {
            Carries::Tcp => Tcp::parse_mut(headers, self.transport).ok()?.set_checksum(sum),
            Carries::Udp { summed: true } => Udp::parse_mut(headers, self.transport).ok()?.set_checksum(sum),
            Carries::Udp { summed: false } => {}
        }
        Some(())
    }
}

#[cfg(test)]
mod tests;
