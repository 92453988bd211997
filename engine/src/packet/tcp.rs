//! TCP (RFC 9293).

use super::checksum::Delta;
use super::{Error, array, array_mut};
use std::ops::{Deref, DerefMut, Range};

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 20;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Source and destination port.
    pub const PORTS: Range<usize> = 0..4;
    /// Number of the first byte, or of SYN.
    pub const SEQUENCE: Range<usize> = 4..8;
    /// Number of the byte that is expected next.
    pub const ACKNOWLEDGEMENT: Range<usize> = 8..12;
    /// Length of the header in 32-bit words, in the upper half.
    pub const DATA_OFFSET: usize = 12;
    /// Control bits.
    pub const FLAGS: usize = 13;
    /// The segment's checksum.
    pub const CHECKSUM: Range<usize> = 16..18;
    /// Where urgent data end, from the sequence number on.
    pub const URGENT: Range<usize> = 18..20;
}

/// Control bits.
pub mod flag {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Give the data to the application.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field counts.
    pub const ACK: u8 = 0x10;
    /// The urgent pointer counts.
    pub const URG: u8 = 0x20;
    /// The sender has slowed down (RFC 3168).
    pub const CWR: u8 = 0x80;
}

/// A view of a header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Tcp<B>(B);

impl<'a> Tcp<&'a [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]` of a segment of `length` bytes. The data offset is at least five words and
    /// lies within the segment.
    #[inline]
    pub fn parse(bytes: &'a [u8], offset: usize, length: usize) -> Result<Self, Error> {
        if length < HEADER_LEN {
            return Err(Error::Truncated);
        }
        let view = Tcp(array(bytes, offset)?);
        let header = view.header_len();
        if header < HEADER_LEN || header > length { Err(Error::Malformed) } else { Ok(view) }
    }
}

impl<'a> Tcp<&'a mut [u8; HEADER_LEN]> {
    /// Views the fixed header at `bytes[offset..]`, to write. Checks no more than that the bytes are there.
    #[inline]
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Tcp)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Tcp<B> {
    /// Both ports as one word, as it lies in memory.
    #[inline]
    pub fn ports(&self) -> u32 {
        let [a, b, c, d, ..] = *self.0;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Number of the first byte, or of SYN.
    #[inline]
    pub fn sequence(&self) -> u32 {
        let [_, _, _, _, a, b, c, d, ..] = *self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Number of the byte that is expected next, when [`flag::ACK`] is set.
    #[inline]
    pub fn acknowledgement(&self) -> u32 {
        let [_, _, _, _, _, _, _, _, a, b, c, d, ..] = *self.0;
        u32::from_be_bytes([a, b, c, d])
    }

    /// Length of the header with its options, in bytes.
    #[inline]
    pub fn header_len(&self) -> usize {
        usize::from(self.0[field::DATA_OFFSET] >> 4) * 4
    }

    /// Control bits, see [`flag`].
    #[inline]
    pub fn flags(&self) -> u8 {
        self.0[field::FLAGS]
    }

    /// The checksum field, as it lies in memory.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_ne_bytes([self.0[16], self.0[17]])
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Tcp<B> {
    /// New ports, and a checksum that accounts for `delta`: what changed in the pseudo-header and in the ports.
    #[inline]
    pub fn translate(&mut self, ports: u32, delta: Delta) {
        let checksum = delta.apply(self.checksum());
        self.0[field::PORTS].copy_from_slice(&ports.to_ne_bytes());
        self.set_checksum(checksum);
    }

    /// Adds to the sequence number, wrapping. Returns what that changes in the checksum.
    #[inline]
    pub fn add_to_sequence(&mut self, delta: u32) -> Delta {
        let old = self.sequence();
        let new = old.wrapping_add(delta);
        self.0[field::SEQUENCE].copy_from_slice(&new.to_be_bytes());
        Delta::default().word32(old.to_be(), new.to_be())
    }

    /// Adds to the acknowledgement number, wrapping. Returns what that changes in the checksum.
    #[inline]
    pub fn add_to_acknowledgement(&mut self, delta: u32) -> Delta {
        let old = self.acknowledgement();
        let new = old.wrapping_add(delta);
        self.0[field::ACKNOWLEDGEMENT].copy_from_slice(&new.to_be_bytes());
        Delta::default().word32(old.to_be(), new.to_be())
    }

    /// Lets the checksum account for what changed.
    #[inline]
    pub fn adjust(&mut self, delta: Delta) {
        let checksum = delta.apply(self.checksum());
        self.set_checksum(checksum);
    }

    /// Writes a whole header without options, its window and its checksum zero. `ports` lie as they do in a packet.
    pub fn emit(&mut self, ports: u32, sequence: u32, acknowledgement: u32, flags: u8) {
        let header = &mut *self.0;
        header.fill(0);
        header[field::PORTS].copy_from_slice(&ports.to_ne_bytes());
        header[field::SEQUENCE].copy_from_slice(&sequence.to_be_bytes());
        header[field::ACKNOWLEDGEMENT].copy_from_slice(&acknowledgement.to_be_bytes());
        (header[field::DATA_OFFSET], header[field::FLAGS]) = (5 << 4, flags);
    }

    /// Adds to the urgent pointer, as far as it goes. Returns what that changes in the checksum.
    pub fn add_to_urgent(&mut self, more: u16) -> Delta {
        let field = &mut self.0[field::URGENT];
        let old = u16::from_be_bytes([field[0], field[1]]);
        let new = old.saturating_add(more);
        field.copy_from_slice(&new.to_be_bytes());
        Delta::default().word16(old.to_be(), new.to_be())
    }

    /// Sets the length of the header with its options in bytes, a multiple of four below 64. Returns what that changes in the
    /// checksum.
    pub fn set_header_len(&mut self, length: usize) -> Delta {
        let word = |tcp: &Self| u16::from_ne_bytes([tcp.0[field::DATA_OFFSET], tcp.0[field::FLAGS]]);
        let old = word(self);
        let words = u8::try_from(length / 4).unwrap_or(0xf) & 0xf;
        self.0[field::DATA_OFFSET] = words << 4 | self.0[field::DATA_OFFSET] & 0xf;
        Delta::default().word16(old, word(self))
    }

    /// Sets the control bits, and nothing else.
    pub fn set_flags(&mut self, flags: u8) {
        self.0[field::FLAGS] = flags;
    }

    /// Sets the checksum field.
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40000 → 80, SYN, no options.
    const HEADER: [u8; 20] =
        [0x9c, 0x40, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0x12, 0x34, 0, 0];

    #[test]
    fn reads_and_writes() {
        let view = Tcp::parse(&HEADER, 0, 20).unwrap();
        assert_eq!(view.ports().to_ne_bytes(), [0x9c, 0x40, 0, 80]);
        assert_eq!((view.header_len(), view.flags(), view.checksum().to_be()), (20, flag::SYN, 0x1234));
        let mut bytes = HEADER;
        let ports = u32::from_ne_bytes([0x9c, 0x40, 0, 81]);
        Tcp::parse_mut(&mut bytes, 0).unwrap().translate(ports, Delta::default().word32(view.ports(), ports));
        assert_eq!(&bytes[..4], &[0x9c, 0x40, 0, 81]);
        assert_eq!(bytes[16..18], [0x12, 0x33], "one more in a port is one less in the checksum");
    }

    #[test]
    fn refuses() {
        let offset = |words: u8| {
            let mut bytes = HEADER.to_vec();
            bytes[12] = words << 4;
            bytes.resize(60, 0);
            bytes
        };
        for (what, words, length, expected) in [
            ("four words", 4, 60, Some(Error::Malformed)),
            ("options beyond the segment", 15, 59, Some(Error::Malformed)),
            ("options to the end", 15, 60, None),
            ("a segment shorter than a header", 5, 19, Some(Error::Truncated)),
        ] {
            assert_eq!(Tcp::parse(&offset(words), 0, length).err(), expected, "{what}");
        }
        for len in 0..20 {
            assert_eq!(Tcp::parse(&HEADER[..len], 0, 20).err(), Some(Error::Truncated), "{len}");
        }
    }
}
