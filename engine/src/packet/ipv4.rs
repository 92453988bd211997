//! IPv4 (RFC 791).

use super::checksum::{Delta, Sum};
use super::{Error, array, array_mut, be16};
use std::net::Ipv4Addr;
use std::ops::{Deref, DerefMut, Range};

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Version and header length in 32-bit words.
    pub const VERSION_IHL: usize = 0;
    /// Type of service: differentiated services and congestion notification.
    pub const TOS: usize = 1;
    /// Length of header and payload, in bytes.
    pub const TOTAL_LENGTH: usize = 2;
    /// Identification, which a packet's fragments share.
    pub const ID: usize = 4;
    /// Flags and the fragment's offset in 8-byte units.
    pub const FRAGMENT: usize = 6;
    /// Time to live.
    pub const TTL: usize = 8;
    /// Protocol of the payload.
    pub const PROTOCOL: usize = 9;
    /// The header's checksum.
    pub const CHECKSUM: Range<usize> = 10..12;
    /// Source and destination address.
    pub const ADDRESSES: Range<usize> = 12..20;
}

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

/// A view of a header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Ipv4<B>(B);

impl<'a> Ipv4<&'a [u8; HEADER_LEN]> {
    /// Views these bytes, whatever they say.
    #[inline]
    pub fn view(bytes: &'a [u8; HEADER_LEN]) -> Self {
        Ipv4(bytes)
    }

    /// Views the header at `bytes[offset..]`. Version and header length are valid, the options lie within `bytes`, and
    /// the total length covers the header. Whether the payload is there is the caller's to check: `bytes` may be only
    /// the first part of the packet.
    #[inline]
    pub fn parse(bytes: &'a [u8], offset: usize) -> Result<Self, Error> {
        let view = Ipv4(array(bytes, offset)?);
        let header = view.header_len();
        if view.0[field::VERSION_IHL] >> 4 != 4 || header < HEADER_LEN || view.total_len() < header {
            return Err(Error::Malformed);
        }
        if header > bytes.len() - offset { Err(Error::Truncated) } else { Ok(view) }
    }
}

impl<'a> Ipv4<&'a mut [u8; HEADER_LEN]> {
    /// Views the fixed header at `bytes[offset..]`, to write. Checks no more than that the bytes are there.
    #[inline]
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Ipv4)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Ipv4<B> {
    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[field::VERSION_IHL] & 0xf) * 4
    }

    /// Length of header and payload, in bytes.
    #[inline]
    pub fn total_len(&self) -> usize {
        usize::from(be16(&self.0, field::TOTAL_LENGTH))
    }

    /// Type of service: DSCP and, in the lowest two bits, ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.0[field::TOS]
    }

    /// Whether no router may fragment the packet.
    #[inline]
    pub fn dont_fragment(&self) -> bool {
        be16(&self.0, field::FRAGMENT) & DONT_FRAGMENT != 0
    }

    /// Whether this is one of several fragments.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        be16(&self.0, field::FRAGMENT) & (MORE_FRAGMENTS | OFFSET) != 0
    }

    /// Whether this is the fragment, or the whole, that starts with the transport header.
    #[inline]
    pub fn is_first(&self) -> bool {
        be16(&self.0, field::FRAGMENT) & OFFSET == 0
    }

    /// Whether the checksum of a header without options is right: a sum over all of it is all ones (RFC 791 §3.1).
    #[inline]
    pub fn is_intact(&self) -> bool {
        Sum::of_header(&self.0).fold() == Sum::WHOLE
    }

    /// Whether fragments of the same packet follow.
    #[inline]
    pub fn more_fragments(&self) -> bool {
        be16(&self.0, field::FRAGMENT) & MORE_FRAGMENTS != 0
    }

    /// Where in its packet's payload the fragment's lies, in bytes.
    #[inline]
    pub fn fragment_offset(&self) -> usize {
        usize::from(be16(&self.0, field::FRAGMENT) & OFFSET) * 8
    }

    /// Identification, which a packet's fragments share.
    #[inline]
    pub fn id(&self) -> u16 {
        be16(&self.0, field::ID)
    }

    /// Time to live.
    #[inline]
    pub fn ttl(&self) -> u8 {
        self.0[field::TTL]
    }

    /// Protocol of the payload.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.0[field::PROTOCOL]
    }

    /// Source and destination as one word, as it lies in memory.
    #[inline]
    pub fn addresses(&self) -> u64 {
        let [.., a, b, c, d, e, f, g, h] = *self.0;
        u64::from_ne_bytes([a, b, c, d, e, f, g, h])
    }

    /// Source address.
    pub fn source(&self) -> Ipv4Addr {
        let [.., a, b, c, d, _, _, _, _] = *self.0;
        Ipv4Addr::new(a, b, c, d)
    }

    /// Destination address.
    pub fn destination(&self) -> Ipv4Addr {
        let [.., a, b, c, d] = *self.0;
        Ipv4Addr::new(a, b, c, d)
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Ipv4<B> {
    /// One hop less, of which there must be one, and new addresses, which change sums by `delta`; the checksum follows.
    #[inline]
    pub fn forward(&mut self, addresses: u64, delta: Delta) {
        self.0[field::ADDRESSES].copy_from_slice(&addresses.to_ne_bytes());
        self.0[field::TTL] = self.0[field::TTL].wrapping_sub(1);
        let hop = Delta::default().word16(u16::from_ne_bytes([1, 0]), 0);
        let old = u16::from_ne_bytes([self.0[10], self.0[11]]);
        self.0[field::CHECKSUM].copy_from_slice(&delta.plus(hop).apply(old).to_ne_bytes());
    }

    /// Gives the header, which an ICMP error quotes, other addresses: its checksum follows, its age stays. Returns what
    /// that adds to a checksum over the whole header.
    pub fn readdress(&mut self, addresses: u64) -> Delta {
        let moved = Delta::default().word64(self.addresses(), addresses);
        let old = u16::from_ne_bytes([self.0[10], self.0[11]]);
        let new = moved.apply(old);
        self.0[field::ADDRESSES].copy_from_slice(&addresses.to_ne_bytes());
        self.0[field::CHECKSUM].copy_from_slice(&new.to_ne_bytes());
        moved.word16(old, new)
    }

    /// Sets the type of service; the checksum follows.
    pub fn set_tos(&mut self, tos: u8) {
        let delta = Delta::default().word16(
            u16::from_ne_bytes([self.0[0], self.0[field::TOS]]),
            u16::from_ne_bytes([self.0[0], tos]),
        );
        let old = u16::from_ne_bytes([self.0[10], self.0[11]]);
        self.0[field::TOS] = tos;
        self.0[field::CHECKSUM].copy_from_slice(&delta.apply(old).to_ne_bytes());
    }

    /// Makes the payload longer by so many bytes; the checksum follows. `false`, and nothing changed, when a packet cannot be
    /// that long.
    #[must_use]
    pub fn lengthen(&mut self, bytes: usize) -> bool {
        let old = be16(&self.0, field::TOTAL_LENGTH);
        let Ok(new) = u16::try_from(usize::from(old) + bytes) else { return false };
        let delta = Delta::default().word16(old.to_be(), new.to_be());
        let checksum = delta.apply(u16::from_ne_bytes([self.0[10], self.0[11]]));
        self.set_total_len(new);
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
        true
    }

    /// Lets routers fragment the packet; the checksum follows.
    pub fn let_fragment(&mut self) {
        let old = be16(&self.0, field::FRAGMENT);
        let new = old & !DONT_FRAGMENT;
        let delta = Delta::default().word16(old.to_be(), new.to_be());
        let checksum = delta.apply(u16::from_ne_bytes([self.0[10], self.0[11]]));
        self.0[field::FRAGMENT..field::FRAGMENT + 2].copy_from_slice(&new.to_be_bytes());
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }

    /// Sets the length of header and payload, in bytes. The checksum is for [`finish`] to set.
    pub fn set_total_len(&mut self, length: u16) {
        self.0[field::TOTAL_LENGTH..field::TOTAL_LENGTH + 2].copy_from_slice(&length.to_be_bytes());
    }

    /// Sets the identification. The checksum is for [`finish`] to set.
    pub fn set_id(&mut self, id: u16) {
        self.0[field::ID..field::ID + 2].copy_from_slice(&id.to_be_bytes());
    }

    /// Makes it a fragment whose payload lies `offset` bytes (a multiple of eight, below 2^16) into its packet's. The
    /// checksum is for [`finish`] to set.
    pub fn set_fragment(&mut self, offset: usize, more: bool) {
        let units = u16::try_from(offset / 8).unwrap_or(OFFSET) & OFFSET;
        let word = units | if more { MORE_FRAGMENTS } else { 0 };
        self.0[field::FRAGMENT..field::FRAGMENT + 2].copy_from_slice(&word.to_be_bytes());
    }

    /// Writes a whole header without options for a packet of `payload` bytes, not to be fragmented.
    pub fn emit(&mut self, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, ttl: u8, payload: u16) {
        let (tos, id, dont_fragment) = (0, 0, true);
        self.write(&Header { tos, id, dont_fragment, ttl, protocol, source, destination, payload });
    }

    /// Writes what of a header without options the packets of one path share, the rest zero. Returns its sum, for
    /// [`Ipv4::complete`].
    pub fn prepare(&mut self, source: Ipv4Addr, destination: Ipv4Addr, protocol: u8) -> Sum {
        let ([s0, s1, s2, s3], [d0, d1, d2, d3]) = (source.octets(), destination.octets());
        *self.0 = [0x45, 0, 0, 0, 0, 0, 0, 0, 0, protocol, 0, 0, s0, s1, s2, s3, d0, d1, d2, d3];
        Sum::of_header(&self.0)
    }

    /// Writes the rest of a header whose sum was `prepared`.
    #[inline]
    pub fn complete(&mut self, prepared: Sum, of: &OfPacket) {
        let fragment = if of.dont_fragment { DONT_FRAGMENT } else { 0 };
        let (length, id, fragment) = (of.length.to_be(), of.id.to_be(), fragment.to_be());
        self.0[field::TOS] = of.tos;
        self.0[field::TOTAL_LENGTH..field::ID].copy_from_slice(&length.to_ne_bytes());
        self.0[field::ID..field::FRAGMENT].copy_from_slice(&id.to_ne_bytes());
        self.0[field::FRAGMENT..field::TTL].copy_from_slice(&fragment.to_ne_bytes());
        self.0[field::TTL] = of.ttl;
        let sum = prepared
            .plus_word(u16::from_ne_bytes([0, of.tos]))
            .plus_word(length)
            .plus_word(id)
            .plus_word(fragment)
            .plus_word(u16::from_ne_bytes([of.ttl, 0]));
        self.0[field::CHECKSUM].copy_from_slice(&sum.checksum().to_ne_bytes());
    }

    /// Writes a whole header without options.
    pub fn write(&mut self, header: &Header) {
        let [total0, total1] = header.payload.saturating_add(20).to_be_bytes();
        let [id0, id1] = header.id.to_be_bytes();
        let [fragment, _] = if header.dont_fragment { DONT_FRAGMENT } else { 0 }.to_be_bytes();
        let [s0, s1, s2, s3] = header.source.octets();
        let [d0, d1, d2, d3] = header.destination.octets();
        let (ttl, protocol) = (header.ttl, header.protocol);
        *self.0 = [
            0x45, header.tos, total0, total1, id0, id1, fragment, 0, ttl, protocol, 0, 0, s0, s1, s2, s3, d0,
            d1, d2, d3,
        ];
        let checksum = Sum::of(&self.0[..]).checksum();
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }
}

/// Computes the checksum of the header at `bytes[offset..]`, options included. None: it is not there.
pub fn finish(bytes: &mut [u8], offset: usize) -> Option<()> {
    let length = usize::from(bytes.get(offset)? & 0xf) * 4;
    let header = bytes.get_mut(offset..offset + length)?;
    let field = header.get_mut(field::CHECKSUM)?;
    field.fill(0);
    let checksum = Sum::of(header).checksum();
    header[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    Some(())
}

/// Puts nothing in the place of those options of the header at `bytes[offset..]` that only the first fragment carries (RFC 791
/// §3.1: the copied flag), as the kernel does. None: it is not there.
pub fn drop_first_options(bytes: &mut [u8], offset: usize) -> Option<()> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const COPIED: u8 = 0x80;
    let length = usize::from(bytes.get(offset)? & 0xf) * 4;
    let mut options = bytes.get_mut(offset + HEADER_LEN..offset + length)?;
    while let Some(&kind) = options.first().filter(|kind| **kind != END) {
        let length = if kind == NOTHING { 1 } else { usize::from(*options.get(1)?) };
        let (option, rest) = options.split_at_mut_checked(length).filter(|(option, _)| !option.is_empty())?;
        if kind & COPIED == 0 {
            option.fill(NOTHING);
        }
        options = rest;
    }
    Some(())
}

/// What a header without options says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Type of service: DSCP and, in the lowest two bits, ECN.
    pub tos: u8,
    /// What the fragments of one packet have in common.
    pub id: u16,
    /// Whether no router may fragment the packet.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Source address.
    pub source: Ipv4Addr,
    /// Destination address.
    pub destination: Ipv4Addr,
    /// Length of the payload in bytes.
    pub payload: u16,
}

/// What an IPv4 header says of its own packet alone.
#[derive(Clone, Copy, Debug)]
pub struct OfPacket {
    /// Type of service.
    pub tos: u8,
    /// Length of header and payload, in bytes.
    pub length: u16,
    /// Identification.
    pub id: u16,
    /// Whether no router may fragment the packet.
    pub dont_fragment: bool,
    /// Time to live.
    pub ttl: u8,
}

/// Whether the options after a header have the packet travel the way its sender chose (RFC 791 §3.1: LSRR, SSRR). Malformed:
/// one has no length, or goes on behind the header.
pub fn is_source_routed(mut options: &[u8]) -> Result<bool, Error> {
    const END: u8 = 0;
    const NOTHING: u8 = 1;
    const LOOSE: u8 = 131;
    const STRICT: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return Ok(false),
            [NOTHING, rest @ ..] => rest,
            [LOOSE | STRICT, ..] => return Ok(true),
            [_, length, ..] if *length >= 2 => options.get(usize::from(*length)..).ok_or(Error::Malformed)?,
            _ => return Err(Error::Malformed),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 192.0.2.1 → 198.51.100.2, TCP, 40 bytes in all.
    const HEADER: [u8; 20] =
        [0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0x4e, 0x98, 192, 0, 2, 1, 198, 51, 100, 2];

    fn with(offset: usize, value: u8) -> [u8; 20] {
        let mut header = HEADER;
        header[offset] = value;
        header
    }

    #[test]
    fn reads() {
        let view = Ipv4::parse(&HEADER, 0).unwrap();
        assert_eq!((view.header_len(), view.total_len(), view.ttl(), view.protocol()), (20, 40, 64, 6));
        assert_eq!(view.source(), Ipv4Addr::new(192, 0, 2, 1));
        assert_eq!(view.destination(), Ipv4Addr::new(198, 51, 100, 2));
        assert_eq!(view.addresses().to_ne_bytes(), [192, 0, 2, 1, 198, 51, 100, 2]);
        assert!(!view.is_fragment() && view.is_first());
        assert_eq!(Sum::of(&HEADER).fold(), Sum::WHOLE, "the example's own checksum");
        assert!(view.is_intact());
        for (at, byte) in HEADER.iter().enumerate() {
            assert!(!Ipv4::view(&with(at, byte ^ 0x10)).is_intact(), "byte {at}");
        }
    }

    #[test]
    fn refuses_contradictions() {
        let refused = [
            ("version 5", with(0, 0x55), Error::Malformed),
            ("a header of four words", with(0, 0x44), Error::Malformed),
            ("a total length within the header", with(3, 19), Error::Malformed),
            ("options beyond the bytes", with(0, 0x46), Error::Truncated),
        ];
        for (what, header, error) in refused {
            assert_eq!(Ipv4::parse(&header, 0).err(), Some(error), "{what}");
        }
        for len in 0..20 {
            assert_eq!(Ipv4::parse(&HEADER[..len], 0).err(), Some(Error::Truncated), "{len}");
        }
    }

    #[test]
    fn tells_fragments() {
        for (what, flags, fragment, first) in [
            ("don't fragment", [0x40, 0], false, true),
            ("more fragments", [0x20, 0], true, true),
            ("a later one", [0x20, 1], true, false),
            ("the last one", [0x1f, 0xff], true, false),
        ] {
            let mut header = HEADER;
            header[6..8].copy_from_slice(&flags);
            let view = Ipv4::parse(&header, 0).unwrap();
            assert_eq!((view.is_fragment(), view.is_first()), (fragment, first), "{what}");
        }
    }

    #[test]
    fn tells_source_routes() {
        for (what, options, expected) in [
            ("none", &[][..], Ok(false)),
            ("loose", &[131, 7, 4, 10, 0, 0, 1, 0], Ok(true)),
            ("strict, after nothing", &[1, 137, 7, 4, 10, 0, 0, 1], Ok(true)),
            ("after another", &[7, 3, 4, 131, 3, 4, 0, 0], Ok(true)),
            ("after the end", &[0, 131, 3, 4], Ok(false)),
            ("within another", &[7, 4, 131, 3], Ok(false)),
            ("after one without an end", &[7, 200, 131, 3], Err(Error::Malformed)),
            ("after one without a length", &[7, 0, 131, 3], Err(Error::Malformed)),
            ("cut off", &[7], Err(Error::Malformed)),
        ] {
            assert_eq!(is_source_routed(options), expected, "{what}");
        }
    }

    #[test]
    fn forwards_with_the_checksum() {
        let mut header = HEADER;
        let to = u64::from_ne_bytes([192, 0, 2, 1, 10, 0, 0, 9]);
        let delta = Delta::default().word64(Ipv4::parse(&HEADER, 0).unwrap().addresses(), to);
        Ipv4::parse_mut(&mut header, 0).unwrap().forward(to, delta);
        let view = Ipv4::parse(&header, 0).unwrap();
        assert_eq!((view.ttl(), view.destination()), (63, Ipv4Addr::new(10, 0, 0, 9)));
        assert_eq!(Sum::of(&header).fold(), 0xffff);
    }

    #[test]
    fn a_quoted_header_gets_other_addresses_and_keeps_its_age() {
        let mut header = HEADER;
        let to = u64::from_ne_bytes([192, 0, 2, 1, 10, 0, 0, 9]);
        let delta = Ipv4::parse_mut(&mut header, 0).unwrap().readdress(to);
        let view = Ipv4::parse(&header, 0).unwrap();
        assert_eq!((view.ttl(), view.addresses()), (64, to));
        assert_eq!(Sum::of(&header).fold(), 0xffff);
        assert_eq!(delta.apply(Sum::of(&HEADER).checksum()), Sum::of(&header).checksum());
    }

    #[test]
    fn sets_the_type_of_service() {
        let mut header = HEADER;
        Ipv4::parse_mut(&mut header, 0).unwrap().set_tos(0xc0);
        assert_eq!((header[1], Sum::of(&header).fold()), (0xc0, 0xffff));
    }

    #[test]
    fn emits() {
        let mut header = [0xff; 20];
        let (a, b) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(198, 51, 100, 2));
        Ipv4::parse_mut(&mut header, 0).unwrap().emit(a, b, 1, 64, 36);
        let view = Ipv4::parse(&header, 0).unwrap();
        assert_eq!((view.source(), view.destination(), view.total_len(), view.protocol()), (a, b, 56, 1));
        assert_eq!(Sum::of(&header).fold(), 0xffff);
    }
}
