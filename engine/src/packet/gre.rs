//! Generic routing encapsulation, version 0 (RFC 2784).

use super::{Error, array, array_mut, be16};
use std::ops::{Deref, Range};

/// Length of the header without a checksum, in bytes.
pub const HEADER_LEN: usize = 4;
/// Length of the checksum and what is reserved behind it, in bytes.
pub const CHECKSUM_LEN: usize = 4;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Flags and version.
    pub const FLAGS: usize = 0;
    /// EtherType of the payload.
    pub const PROTOCOL: usize = 2;
    /// The checksum over header and payload, if the flags say that there is one.
    pub const CHECKSUM: Range<usize> = 4..6;
}

/// The flag that announces a checksum.
const CHECKSUM_PRESENT: u16 = 0x8000;

/// A view of a header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Gre<B>(B);

impl<'a> Gre<&'a [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`. The version is 0, and there is nothing in the header but, perhaps, a checksum,
    /// which lies within `bytes`: keys, sequence numbers (RFC 2890) and routing are refused.
    pub fn parse(bytes: &'a [u8], offset: usize) -> Result<Self, Error> {
        let view = Gre(array(bytes, offset)?);
        if be16(view.0, field::FLAGS) & !CHECKSUM_PRESENT != 0 {
            return Err(Error::Malformed);
        }
        if view.header_len() > bytes.len() - offset { Err(Error::Truncated) } else { Ok(view) }
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Gre<B> {
    /// Length of the header with its checksum, in bytes.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + if self.has_checksum() { CHECKSUM_LEN } else { 0 }
    }

    /// Whether there is a checksum.
    pub fn has_checksum(&self) -> bool {
        be16(&self.0, field::FLAGS) & CHECKSUM_PRESENT != 0
    }

    /// EtherType of the payload.
    pub fn protocol(&self) -> u16 {
        be16(&self.0, field::PROTOCOL)
    }
}

/// Writes the header of a packet that carries `protocol`, an EtherType, at `bytes[offset..]`; its checksum, if there is to be
/// one, is zero until [`set_checksum`].
pub fn emit(bytes: &mut [u8], offset: usize, protocol: u16, checksum: bool) -> Result<(), Error> {
    let [f0, f1] = if checksum { CHECKSUM_PRESENT } else { 0 }.to_be_bytes();
    let [p0, p1] = protocol.to_be_bytes();
    *array_mut(bytes, offset)? = [f0, f1, p0, p1];
    if checksum {
        *array_mut(bytes, offset + HEADER_LEN)? = [0; CHECKSUM_LEN];
    }
    Ok(())
}

/// Sets the checksum of the header at `bytes[offset..]`, as it lies in memory.
pub fn set_checksum(bytes: &mut [u8], offset: usize, checksum: u16) -> Result<(), Error> {
    let header: &mut [u8; HEADER_LEN + CHECKSUM_LEN] = array_mut(bytes, offset)?;
    header[field::CHECKSUM].copy_from_slice(&checksum.to_ne_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads() {
        for (checksum, bytes, length) in [(false, [0, 0, 8, 0], 4), (true, [0x80, 0, 8, 0], 8)] {
            let mut header = [0xff; 8];
            emit(&mut header, 0, 0x0800, checksum).unwrap();
            assert_eq!(header[..4], bytes);
            let view = Gre::parse(&header, 0).unwrap();
            assert_eq!((view.has_checksum(), view.header_len(), view.protocol()), (checksum, length, 0x0800));
        }
    }

    #[test]
    fn refuses() {
        for (what, bytes, error) in [
            ("a key", &[0x20, 0, 8, 0, 0, 0, 0, 0][..], Error::Malformed),
            ("a sequence number", &[0x10, 0, 8, 0, 0, 0, 0, 0], Error::Malformed),
            ("routing", &[0x40, 0, 8, 0, 0, 0, 0, 0], Error::Malformed),
            ("version 1", &[0, 1, 8, 0], Error::Malformed),
            ("no room for the checksum", &[0x80, 0, 8, 0, 1, 2, 0], Error::Truncated),
            ("half a header", &[0, 0, 8], Error::Truncated),
        ] {
            assert_eq!(Gre::parse(bytes, 0).err(), Some(error), "{what}");
        }
    }
}
