//! UDP (RFC 768).

use super::checksum::Delta;
use super::{Error, array, array_mut, be16};
use std::ops::{Deref, DerefMut, Range};

/// Length of the header, in bytes.
pub const HEADER_LEN: usize = 8;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Source and destination port.
    pub const PORTS: Range<usize> = 0..4;
    /// Length of header and data, in bytes.
    pub const LENGTH: usize = 4;
    /// The datagram's checksum; zero: there is none.
    pub const CHECKSUM: Range<usize> = 6..8;
}

/// A view of a header.
#[derive(Clone, Copy, Debug)]
pub struct Udp<B>(B);

impl<'a> Udp<&'a [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]` of an IP payload of `length` bytes. The datagram's own length covers its
    /// header and lies within the payload.
    #[inline]
    pub fn parse(bytes: &'a [u8], offset: usize, length: usize) -> Result<Self, Error> {
        let view = Udp(array(bytes, offset)?);
        if view.len() < HEADER_LEN || view.len() > length { Err(Error::Malformed) } else { Ok(view) }
    }
}

impl<'a> Udp<&'a mut [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`, to write. Checks no more than that the bytes are there.
    #[inline]
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Udp)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Udp<B> {
    /// Both ports as one word, as it lies in memory.
    #[inline]
    pub fn ports(&self) -> u32 {
        let [a, b, c, d, ..] = *self.0;
        u32::from_ne_bytes([a, b, c, d])
    }

    /// Length of header and data, in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a datagram has a header at least")]
    pub fn len(&self) -> usize {
        usize::from(be16(&self.0, field::LENGTH))
    }

    /// The checksum field, as it lies in memory; zero: there is none.
    #[inline]
    pub fn checksum(&self) -> u16 {
        u16::from_ne_bytes([self.0[6], self.0[7]])
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Udp<B> {
    /// New ports, and a checksum that accounts for `delta`: what changed in the pseudo-header and in the ports. No
    /// checksum stays none.
    #[inline]
    pub fn translate(&mut self, ports: u32, delta: Delta) {
        let old = self.checksum();
        self.0[field::PORTS].copy_from_slice(&ports.to_ne_bytes());
        if old != 0 {
            self.set_checksum(delta.apply(old));
        }
    }

    /// Sets the length of header and payload in bytes, and lets the checksum account for `delta`: all that changed. No checksum
    /// stays none.
    pub fn set_len(&mut self, length: u16, delta: Delta) {
        let old = self.checksum();
        self.0[field::LENGTH..field::LENGTH + 2].copy_from_slice(&length.to_be_bytes());
        if old != 0 {
            self.set_checksum(delta.apply(old));
        }
    }

    /// Sets the length of header and payload in bytes, and no checksum.
    pub fn begin(&mut self, length: u16) {
        self.0[field::LENGTH..field::LENGTH + 2].copy_from_slice(&length.to_be_bytes());
        self.0[field::CHECKSUM].fill(0);
    }

    /// Writes a whole header without a checksum, for a datagram of `length` bytes, this header included.
    pub fn emit(&mut self, source: u16, destination: u16, length: u16) {
        let [s0, s1] = source.to_be_bytes();
        let [d0, d1] = destination.to_be_bytes();
        let [l0, l1] = length.to_be_bytes();
        *self.0 = [s0, s1, d0, d1, l0, l1, 0, 0];
    }

    /// Sets the checksum field. A computed zero is sent as its other representation, since zero means "none".
    #[inline]
    pub fn set_checksum(&mut self, checksum: u16) {
        let checksum = if checksum == 0 { 0xffff } else { checksum };
        self.0[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40000 → 53, 4 bytes of data.
    const DATAGRAM: [u8; 12] = [0x9c, 0x40, 0, 53, 0, 12, 0x12, 0x34, 1, 2, 3, 4];

    #[test]
    fn reads() {
        let view = Udp::parse(&DATAGRAM, 0, 12).unwrap();
        assert_eq!(view.ports().to_ne_bytes(), [0x9c, 0x40, 0, 53]);
        assert_eq!((view.len(), view.checksum().to_be()), (12, 0x1234));
    }

    #[test]
    fn refuses() {
        let length = |value: u8| {
            let mut bytes = DATAGRAM;
            bytes[5] = value;
            bytes
        };
        for (what, value, expected) in [
            ("shorter than the header", 7, Some(Error::Malformed)),
            ("longer than the payload", 13, Some(Error::Malformed)),
            ("no data", 8, None),
        ] {
            assert_eq!(Udp::parse(&length(value), 0, 12).err(), expected, "{what}");
        }
        for len in 0..8 {
            assert_eq!(Udp::parse(&DATAGRAM[..len], 0, 12).err(), Some(Error::Truncated), "{len}");
        }
    }

    #[test]
    fn none_stays_none_and_zero_is_written_otherwise() {
        let ports = u32::from_ne_bytes([0x9c, 0x40, 0, 54]);
        let delta = Delta::default().word16(53_u16.to_be(), 54_u16.to_be());
        for (what, before, after) in [
            ("none", [0, 0], [0, 0]),
            ("updated", [0x12, 0x34], [0x12, 0x33]),
            ("a computed zero", [0, 1], [0xff, 0xff]),
        ] {
            let mut bytes = DATAGRAM;
            bytes[6..8].copy_from_slice(&before);
            Udp::parse_mut(&mut bytes, 0).unwrap().translate(ports, delta);
            assert_eq!(bytes[6..8], after, "{what}");
            assert_eq!(bytes[..4], [0x9c, 0x40, 0, 54], "{what}");
        }
    }
}
