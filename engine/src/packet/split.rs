//! Fragmentation of packets that are too long for a link: IPv4 (RFC 791 §3.2), and IPv6 where the packet is our own (RFC 8200
//! §4.5), such as a tunnel's.

use super::ethernet;
use super::ipv4::{self, Ipv4};
use super::ipv6::{self, Ipv6};
use super::piece::{self, MAX_HEADERS, Piece};
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::ops::Range;

/// The fragments of a packet, in their order.
#[derive(Clone, Debug)]
pub struct Fragments {
    /// The first fragment's headers.
    headers: ArrayVec<u8, MAX_HEADERS>,
    network: usize,
    version: Version,
    /// Where the packet's data lie and whether more follow, if it is a fragment itself: the fragments count on from there.
    offset: usize,
    more: bool,
    payload: Range<usize>,
    /// Bytes of data in each fragment but the last: a multiple of eight.
    size: usize,
    /// Where the next fragment's data begins.
    next: usize,
}

#[derive(Clone, Copy, Debug)]
enum Version {
    V4,
    V6,
}

/// Cuts the finished frame in `parts`, whose IP header lies in the first, into frames whose IP packets have at most `limit`
/// bytes. IPv4 fragments, and fragments of a fragment, keep the packet's identification; those of IPv6 get `id`.
///
/// # Errors
/// [`Reason::TooBig`] when the packet must not be fragmented or no fragment fits `limit`; [`Reason::Malformed`] or
/// [`Reason::Truncated`] when it is no whole IP packet.
pub fn fragments(parts: &[&[u8]], limit: usize, id: u32) -> Result<Fragments, Reason> {
    let (ethertype, network, len) = piece::look(parts)?;
    let head = parts[0];
    let (version, (offset, more), headers, payload) = match ethertype {
        ethernet::IPV4 => {
            let ip = Ipv4::parse(head, network)?;
            if ip.dont_fragment() {
                return Err(Reason::TooBig);
            }
            let place = (ip.fragment_offset(), ip.more_fragments());
            let start = network + ip.header_len();
            (Version::V4, place, piece::headers(head, start)?, start..network + ip.total_len())
        }
        ethernet::IPV6 => {
            let ip = Ipv6::parse(head, network)?;
            let start = network + ipv6::HEADER_LEN;
            let end = start + ip.payload_len();
            if ip.next_header() == ipv6::FRAGMENT {
                let header = ipv6::find_fragment(head, start, ipv6::FRAGMENT).ok_or(Reason::Truncated)?;
                let headers = piece::headers(head, header.end)?;
                let place = (header.offset, header.more);
                return Fragments::new(Version::V6, place, headers, network, header.end..end, len, limit);
            }
            let mut headers = piece::headers(head, start)?;
            let header = ipv6::fragment_header(ip.next_header(), id);
            headers.try_extend_from_slice(&header).map_err(|_| Reason::TooBig)?;
            Ipv6::parse_mut(&mut headers, network)?.set_next_header(ipv6::FRAGMENT);
            (Version::V6, (0, false), headers, start..end)
        }
        _ => return Err(Reason::Malformed),
    };
    Fragments::new(version, (offset, more), headers, network, payload, len, limit)
}

impl Iterator for Fragments {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.next >= self.payload.end {
            return None;
        }
        let start = self.next;
        let end = self.payload.end.min(start + self.size);
        self.next = end;
        let mut headers = self.headers.clone();
        let written = self.write(&mut headers, start..end);
        written.map(|()| Piece { headers, payload: start..end })
    }
}

impl Fragments {
    fn new(
        version: Version,
        (offset, more): (usize, bool),
        headers: ArrayVec<u8, MAX_HEADERS>,
        network: usize,
        payload: Range<usize>,
        len: usize,
        limit: usize,
    ) -> Result<Self, Reason> {
        if payload.end > len || payload.start > payload.end {
            return Err(Reason::Truncated);
        }
        let size = limit.saturating_sub(headers.len() - network) & !7;
        if size == 0 {
            return Err(Reason::TooBig);
        }
        let next = payload.start;
        Ok(Fragments { headers, network, version, offset, more, payload, size, next })
    }

    /// Makes `headers` those of the fragment with the data `payload`. None cannot happen: they were parsed before.
    fn write(&self, headers: &mut [u8], payload: Range<usize>) -> Option<()> {
        let within = payload.start - self.payload.start;
        let last = payload.end == self.payload.end;
        let length = u16::try_from(headers.len() - self.network + payload.len()).ok()?;
        let (offset, more) = (self.offset, self.more);
        match self.version {
            Version::V4 => {
                let mut ip = Ipv4::parse_mut(headers, self.network).ok()?;
                ip.set_total_len(length);
                ip.set_fragment(offset + within, more || !last);
                if within > 0 {
                    ipv4::drop_first_options(headers, self.network)?;
                }
                ipv4::finish(headers, self.network)
            }
            Version::V6 => {
                let fixed = u16::try_from(ipv6::HEADER_LEN).ok()?;
                Ipv6::parse_mut(headers, self.network).ok()?.set_payload_len(length - fixed);
                let at = headers.len() - ipv6::FRAGMENT_HEADER_LEN;
                ipv6::set_fragment(headers, at, offset + within, more || !last)
            }
        }
    }
}

#[cfg(test)]
mod tests;
