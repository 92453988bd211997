//! IPv6 (RFC 8200) and the walk over its extension headers.

use super::checksum::Delta;
use super::{Error, array, array_mut, be16, protocol};
use std::net::Ipv6Addr;
use std::ops::{Deref, DerefMut, Range};

/// Length of the fixed header, in bytes.
pub const HEADER_LEN: usize = 40;
/// Extension headers looked through before a packet is refused. RFC 8504 §5.3 lets a host bound the chain.
pub const MAX_EXTENSIONS: usize = 8;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Version, traffic class and flow label.
    pub const VERSION: usize = 0;
    /// Length of everything after the fixed header, in bytes.
    pub const PAYLOAD_LENGTH: usize = 4;
    /// Protocol of the payload, or of the first extension header.
    pub const NEXT_HEADER: usize = 6;
    /// Hop limit.
    pub const HOP_LIMIT: usize = 7;
    /// Source and destination address.
    pub const ADDRESSES: Range<usize> = 8..40;
}

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
/// Protocol number of a fragment header.
pub const FRAGMENT: u8 = 44;
/// Length of a fragment header, in bytes.
pub const FRAGMENT_HEADER_LEN: usize = 8;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const NO_NEXT_HEADER: u8 = 59;

/// A view of a fixed header.
#[derive(Clone, Copy, Debug)]
pub struct Ipv6<B>(B);

impl<'a> Ipv6<&'a [u8; HEADER_LEN]> {
    /// Views these bytes, whatever they say.
    #[inline]
    pub fn view(bytes: &'a [u8; HEADER_LEN]) -> Self {
        Ipv6(bytes)
    }

    /// Views the header at `bytes[offset..]`. The version is right; nothing is said of the payload.
    #[inline]
    pub fn parse(bytes: &'a [u8], offset: usize) -> Result<Self, Error> {
        let view: &[u8; HEADER_LEN] = array(bytes, offset)?;
        if view[field::VERSION] >> 4 == 6 { Ok(Ipv6(view)) } else { Err(Error::Malformed) }
    }
}

impl<'a> Ipv6<&'a mut [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`, to write. Checks no more than that the bytes are there.
    #[inline]
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Ipv6)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Ipv6<B> {
    /// Traffic class: DSCP and, in the lowest two bits, ECN.
    #[inline]
    pub fn traffic_class(&self) -> u8 {
        let [high, low, ..] = *self.0;
        high << 4 | low >> 4
    }

    /// Length of everything after the fixed header, in bytes.
    #[inline]
    pub fn payload_len(&self) -> usize {
        usize::from(be16(&self.0, field::PAYLOAD_LENGTH))
    }

    /// Protocol of the payload, or of the first extension header.
    #[inline]
    pub fn next_header(&self) -> u8 {
        self.0[field::NEXT_HEADER]
    }

    /// Hop limit.
    #[inline]
    pub fn hop_limit(&self) -> u8 {
        self.0[field::HOP_LIMIT]
    }

    /// Source and destination as four words, as they lie in memory.
    #[inline]
    pub fn addresses(&self) -> [u64; 4] {
        let (words, _) = self.0[field::ADDRESSES].as_chunks::<8>();
        std::array::from_fn(|i| words.get(i).map_or(0, |word| u64::from_ne_bytes(*word)))
    }

    /// Source address.
    pub fn source(&self) -> Ipv6Addr {
        self.address(8)
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv6Addr {
        self.address(24)
    }

    fn address(&self, offset: usize) -> Ipv6Addr {
        Ipv6Addr::from(std::array::from_fn::<u8, 16, _>(|i| self.0[offset + i]))
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Ipv6<B> {
    /// One hop less, and new addresses.
    #[inline]
    pub fn forward(&mut self, addresses: &[u64; 4]) {
        self.0[field::HOP_LIMIT] = self.0[field::HOP_LIMIT].wrapping_sub(1);
        let [a, b, c, d] = addresses.map(u64::to_ne_bytes);
        let (words, _) = self.0[field::ADDRESSES].as_chunks_mut::<8>();
        if let [first, second, third, fourth] = words {
            (*first, *second, *third, *fourth) = (a, b, c, d);
        }
    }

    /// Gives the header, which an ICMP error quotes, other addresses. Returns what that adds to a checksum over them.
    pub fn readdress(&mut self, addresses: &[u64; 4]) -> Delta {
        let mut delta = Delta::default();
        let (words, _) = self.0[field::ADDRESSES].as_chunks_mut::<8>();
        for (word, address) in words.iter_mut().zip(addresses) {
            delta = delta.word64(u64::from_ne_bytes(*word), *address);
            *word = address.to_ne_bytes();
        }
        delta
    }

    /// Makes the payload longer by so many bytes. `false`, and nothing changed, when a packet cannot be that long.
    #[must_use]
    pub fn lengthen(&mut self, bytes: usize) -> bool {
        let new = u16::try_from(self.payload_len() + bytes);
        new.map(|new| self.set_payload_len(new)).is_ok()
    }

    /// Sets the length of everything after the fixed header, in bytes.
    pub fn set_payload_len(&mut self, length: u16) {
        self.0[field::PAYLOAD_LENGTH..field::PAYLOAD_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    }

    /// Sets the protocol of the payload, or of the first extension header.
    pub fn set_next_header(&mut self, next: u8) {
        self.0[field::NEXT_HEADER] = next;
    }

    /// Sets the traffic class: DSCP and, in the lowest two bits, ECN.
    pub fn set_traffic_class(&mut self, class: u8) {
        self.0[0] = 0x60 | class >> 4;
        self.0[1] = class << 4 | self.0[1] & 0xf;
    }

    /// Sets the hop limit.
    pub fn set_hop_limit(&mut self, hops: u8) {
        self.0[field::HOP_LIMIT] = hops;
    }

    /// Writes a whole header for a packet of `payload` bytes.
    pub fn emit(&mut self, source: Ipv6Addr, destination: Ipv6Addr, next: u8, hop_limit: u8, payload: u16) {
        let length = payload.to_be_bytes();
        self.0[..8].copy_from_slice(&[0x60, 0, 0, 0, length[0], length[1], next, hop_limit]);
        self.0[8..24].copy_from_slice(&source.octets());
        self.0[24..40].copy_from_slice(&destination.octets());
    }
}

/// A fragment header (RFC 8200 §4.5) before a payload of protocol `next`; the offset is for [`set_fragment`] to set.
pub fn fragment_header(next: u8, id: u32) -> [u8; FRAGMENT_HEADER_LEN] {
    let [a, b, c, d] = id.to_be_bytes();
    [next, 0, 0, 0, a, b, c, d]
}

/// Makes the fragment header at `bytes[at..]` that of a fragment whose payload lies `offset` bytes (a multiple of eight, below
/// 2^16) into its packet's. None: it is not there.
pub fn set_fragment(bytes: &mut [u8], at: usize, offset: usize, more: bool) -> Option<()> {
    let word = u16::try_from(offset).ok()? & 0xfff8 | u16::from(more);
    bytes.get_mut(at + 2..at + 4)?.copy_from_slice(&word.to_be_bytes());
    Some(())
}

/// What a fragment header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Identification, which a packet's fragments share.
    pub id: u32,
    /// Where in its packet's payload the fragment's lies, in bytes.
    pub offset: usize,
    /// Whether fragments of the same packet follow.
    pub more: bool,
    /// Where the fragment's payload starts in the bytes given.
    pub end: usize,
}

/// The fragment header among the extension headers, the first of which is at `bytes[offset..]` and of type `next`.
pub fn find_fragment(bytes: &[u8], mut offset: usize, mut next: u8) -> Option<Fragment> {
    for _ in 0..=MAX_EXTENSIONS {
        let header: &[u8; 8] = match next {
            HOP_BY_HOP | ROUTING | FRAGMENT | DESTINATION_OPTIONS => array(bytes, offset).ok()?,
            _ => return None,
        };
        if next == FRAGMENT {
            let [_, _, _, _, a, b, c, d] = *header;
            let word = be16(header, 2);
            let id = u32::from_be_bytes([a, b, c, d]);
            let end = offset + FRAGMENT_HEADER_LEN;
            return Some(Fragment { id, offset: usize::from(word & 0xfff8), more: word & 1 != 0, end });
        }
        next = header[0];
        offset += (usize::from(header[1]) + 1) * 8;
    }
    None
}

/// Gives the packet at `bytes[network..]` another identification in its fragment header. None: it has none.
pub fn set_id(bytes: &mut [u8], network: usize, id: u32) -> Option<()> {
    let next = Ipv6::parse(bytes, network).ok()?.next_header();
    let end = find_fragment(bytes, network + HEADER_LEN, next)?.end;
    bytes.get_mut(end - 4..end)?.copy_from_slice(&id.to_be_bytes());
    Some(())
}

/// What lies behind the extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Upper {
    /// Its protocol.
    pub protocol: u8,
    /// Where it starts in the bytes given.
    pub offset: usize,
    /// Whether this is one of several fragments.
    pub fragment: bool,
    /// Whether this is the fragment, or the whole, that starts with the upper-layer header.
    pub first: bool,
    /// Whether the packet still has way points to visit: its destination is not whom the checksum counts.
    pub routed: bool,
}

/// Walks from the first extension header at `bytes[offset..]`, of type `next`, to the upper-layer header. Of a fragment
/// that is not the first, what follows the fragment header is not looked at.
pub fn upper_layer(bytes: &[u8], mut offset: usize, mut next: u8) -> Result<Upper, Error> {
    let mut upper = Upper { protocol: next, offset, fragment: false, first: true, routed: false };
    for _ in 0..=MAX_EXTENSIONS {
        let header: &[u8; 8] = match next {
            HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS => array(bytes, offset)?,
            _ => return Ok(Upper { protocol: next, offset, ..upper }),
        };
        let length = match next {
            FRAGMENT => {
                let word = be16(header, 2);
                upper.fragment = word & 0xfff9 != 0;
                upper.first = word & 0xfff8 == 0;
                8
            }
            AUTHENTICATION => (usize::from(header[1]) + 2) * 4,
            _ => (usize::from(header[1]) + 1) * 8,
        };
        upper.routed |= next == ROUTING && header[3] != 0;
        next = header[0];
        offset += length;
        if !upper.first {
            return Ok(Upper { protocol: next, offset, ..upper });
        }
    }
    Err(Error::Malformed)
}

/// Whether `next` announces nothing that could be balanced.
pub fn is_opaque(next: u8) -> bool {
    !matches!(next, protocol::TCP | protocol::UDP | protocol::ICMPV6) || next == NO_NEXT_HEADER
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(next: u8, payload: u16) -> [u8; 40] {
        let mut bytes = [0; 40];
        let (a, b) = ("2001:db8::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        Ipv6::parse_mut(&mut bytes, 0).unwrap().emit(a, b, next, 64, payload);
        bytes
    }

    #[test]
    fn reads_and_writes() {
        let mut bytes = header(17, 12);
        let view = Ipv6::parse(&bytes, 0).unwrap();
        assert_eq!((view.next_header(), view.payload_len(), view.hop_limit()), (17, 12, 64));
        assert_eq!(view.source().to_string(), "2001:db8::1");
        assert_eq!(view.destination().to_string(), "2001:db8::2");
        let [a, b, c, d] = view.addresses();
        bytes[1] |= 5;
        Ipv6::parse_mut(&mut bytes, 0).unwrap().set_traffic_class(0xb9);
        assert_eq!((Ipv6::parse(&bytes, 0).unwrap().traffic_class(), bytes[0], bytes[1]), (0xb9, 0x6b, 0x95));
        Ipv6::parse_mut(&mut bytes, 0).unwrap().forward(&[c, d, a, b]);
        let view = Ipv6::parse(&bytes, 0).unwrap();
        assert_eq!(view.hop_limit(), 63);
        assert_eq!(view.source().to_string(), "2001:db8::2");
        assert_eq!(view.destination().to_string(), "2001:db8::1");
    }

    #[test]
    fn refuses() {
        let mut bytes = header(17, 0);
        for len in 0..40 {
            assert_eq!(Ipv6::parse(&bytes[..len], 0).err(), Some(Error::Truncated), "{len}");
        }
        bytes[0] = 0x45;
        assert_eq!(Ipv6::parse(&bytes, 0).err(), Some(Error::Malformed));
    }

    #[test]
    fn walks_extension_headers() {
        let mut long = vec![60, 1];
        long.extend([0; 14]);
        long.extend([17, 0, 0, 0, 0, 0, 0, 0, 0xaa]);
        let whole = Upper { protocol: 17, offset: 0, fragment: false, first: true, routed: false };
        type Row = (&'static str, u8, Vec<u8>, Result<Upper, Error>);
        let table: [Row; 9] = [
            ("none", 17, vec![], Ok(whole)),
            ("hop by hop of 16 bytes, options of 8", 0, long, Ok(Upper { offset: 24, ..whole })),
            (
                "first fragment",
                44,
                vec![17, 0, 0, 1, 0, 0, 0, 7],
                Ok(Upper { offset: 8, fragment: true, ..whole }),
            ),
            ("atomic fragment", 44, vec![17, 0, 0, 0, 0, 0, 0, 7], Ok(Upper { offset: 8, ..whole })),
            (
                "last fragment, whose payload looks like options",
                44,
                vec![60, 0, 0, 8, 0, 0, 0, 7],
                Ok(Upper { protocol: 60, offset: 8, fragment: true, first: false, routed: false }),
            ),
            (
                "routing, one to go",
                43,
                vec![6, 0, 4, 1, 0, 0, 0, 0],
                Ok(Upper { protocol: 6, offset: 8, routed: true, ..whole }),
            ),
            (
                "authentication of 12 bytes",
                51,
                vec![6, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
                Ok(Upper { protocol: 6, offset: 12, ..whole }),
            ),
            ("cut short", 0, vec![17, 0, 0, 0], Err(Error::Truncated)),
            ("a chain without end", 60, [60, 0, 0, 0, 0, 0, 0, 0].repeat(9), Err(Error::Malformed)),
        ];
        for (what, next, bytes, expected) in table {
            assert_eq!(upper_layer(&bytes, 0, next), expected, "{what}");
        }
    }
}
