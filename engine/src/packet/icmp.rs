//! ICMP (RFC 792) and ICMPv6 (RFC 4443): the eight bytes that every error starts with.

use super::checksum::Delta;
use super::{Error, array, array_mut};
use std::ops::{Deref, DerefMut, Range};

/// Length of an error's header, before the packet it quotes, in bytes.
pub const HEADER_LEN: usize = 8;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// The message's type.
    pub const TYPE: usize = 0;
    /// The message's code.
    pub const CODE: usize = 1;
    /// The message's checksum.
    pub const CHECKSUM: Range<usize> = 2..4;
}

/// A type and a code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The message's type.
    pub kind: u8,
    /// The message's code.
    pub code: u8,
}

/// Messages of ICMP.
pub mod v4 {
    use super::Kind;
    /// Destination unreachable: port unreachable.
    pub const PORT_UNREACHABLE: Kind = Kind { kind: 3, code: 3 };
    /// Destination unreachable: host unreachable.
    pub const HOST_UNREACHABLE: Kind = Kind { kind: 3, code: 1 };
    /// Destination unreachable: fragmentation needed (RFC 1191 gives it the MTU).
    pub const FRAGMENTATION_NEEDED: Kind = Kind { kind: 3, code: 4 };
    /// Time to live exceeded in transit.
    pub const TIME_EXCEEDED: Kind = Kind { kind: 11, code: 0 };

    /// Whether messages of this type report an error and quote the packet that caused it. Redirects are not forwarded
    /// by anybody and do not count.
    pub fn is_error(kind: u8) -> bool {
        matches!(kind, 3 | 4 | 11 | 12)
    }
}

/// Messages of ICMPv6.
pub mod v6 {
    use super::Kind;
    /// Destination unreachable: port unreachable.
    pub const PORT_UNREACHABLE: Kind = Kind { kind: 1, code: 4 };
    /// Destination unreachable: address unreachable.
    pub const ADDRESS_UNREACHABLE: Kind = Kind { kind: 1, code: 3 };
    /// Packet too big, with the MTU.
    pub const PACKET_TOO_BIG: Kind = Kind { kind: 2, code: 0 };
    /// Hop limit exceeded in transit.
    pub const TIME_EXCEEDED: Kind = Kind { kind: 3, code: 0 };

    /// Whether messages of this type report an error and quote the packet that caused it.
    pub fn is_error(kind: u8) -> bool {
        kind < 128
    }
}

/// A view of an error's header.
#[derive(Clone, Copy, Debug)]
pub struct Icmp<B>(B);

impl<'a> Icmp<&'a [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`. The eight bytes are there.
    #[inline]
    pub fn parse(bytes: &'a [u8], offset: usize) -> Result<Self, Error> {
        array(bytes, offset).map(Icmp)
    }
}

impl<'a> Icmp<&'a mut [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`, to write.
    #[inline]
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Icmp)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Icmp<B> {
    /// Type and code.
    pub fn kind(&self) -> Kind {
        Kind { kind: self.0[field::TYPE], code: self.0[field::CODE] }
    }

    /// The four bytes behind the checksum: an MTU, a pointer, or nothing.
    pub fn word(&self) -> u32 {
        let [.., a, b, c, d] = *self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// The checksum field, as it lies in memory.
    pub fn checksum(&self) -> u16 {
        u16::from_ne_bytes([self.0[2], self.0[3]])
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Icmp<B> {
    /// Sets the four bytes behind the checksum, which follows.
    pub fn set_word(&mut self, word: u32) {
        let delta = Delta::default().word32(self.word().to_be(), word.to_be());
        let checksum = delta.apply(self.checksum());
        self.0[4..].copy_from_slice(&word.to_be_bytes());
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }

    /// Writes an error's header with a checksum of zero. `word` is the four bytes behind that: where both versions have an MTU,
    /// zero where there is nothing.
    pub fn emit(&mut self, message: Kind, word: u32) {
        let [a, b, c, d] = word.to_be_bytes();
        *self.0 = [message.kind, message.code, 0, 0, a, b, c, d];
    }

    /// Corrects the checksum for a message some of whose words changed by `delta`.
    pub fn correct(&mut self, delta: Delta) {
        let checksum = delta.apply(self.checksum());
        self.set_checksum(checksum);
    }

    /// Sets the checksum field.
    pub fn set_checksum(&mut self, checksum: u16) {
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes() {
        let mut bytes = [0xff; 9];
        let mut view = Icmp::parse_mut(&mut bytes, 1).unwrap();
        view.emit(v4::FRAGMENTATION_NEEDED, 1400);
        view.set_checksum(0x1234_u16.to_be());
        assert_eq!(bytes, [0xff, 3, 4, 0x12, 0x34, 0, 0, 5, 0x78]);
        let view = Icmp::parse(&bytes, 1).unwrap();
        assert_eq!((view.kind(), view.checksum().to_be()), (v4::FRAGMENTATION_NEEDED, 0x1234));
        assert_eq!(Icmp::parse(&bytes, 2).err(), Some(Error::Truncated));
    }

    #[test]
    fn errors_quote() {
        let errors: Vec<u8> = (0..=255).filter(|kind| v4::is_error(*kind)).collect();
        assert_eq!(errors, [3, 4, 11, 12]);
        assert!(v6::is_error(1) && v6::is_error(127) && !v6::is_error(128));
    }
}
