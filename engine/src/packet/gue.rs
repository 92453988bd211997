//! Generic UDP encapsulation, variant 0 (draft-ietf-intarea-gue-09), as the kernel's `fou` device and IPVS speak it.

use super::{Error, array, array_mut, be16};
use std::ops::{Deref, DerefMut};

/// Length of the header without options, in bytes.
pub const HEADER_LEN: usize = 4;

/// Byte ranges of the header.
pub mod field {
    /// Variant, control bit, length of the options in 32-bit words.
    pub const VARIANT: usize = 0;
    /// IP protocol of the payload.
    pub const PROTOCOL: usize = 1;
    /// What options there are.
    pub const FLAGS: usize = 2;
}

/// The flag of private flags, which are a word of their own (`GUE_FLAG_PRIV`).
const PRIVATE: u16 = 1;
/// The private flag of remote checksum offload (`GUE_PFLAG_REMCSUM`).
const REMOTE_CHECKSUM: u32 = 1 << 31;

/// A checksum that the sender left for the receiver to finish (draft-herbert-remotecsumoffload-02).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteChecksum {
    /// Where in the payload the sum begins.
    pub start: usize,
    /// Where in the payload the checksum field is.
    pub field: usize,
}

/// A view of a header's fixed part.
#[derive(Clone, Copy, Debug)]
pub struct Gue<B>(B);

impl<'a> Gue<&'a [u8; HEADER_LEN]> {
    /// Views the header at `bytes[offset..]`. The variant is 0, it is no control message, and its options lie within `bytes`.
    pub fn parse(bytes: &'a [u8], offset: usize) -> Result<Self, Error> {
        let view = Gue(array(bytes, offset)?);
        if view.0[field::VARIANT] & 0xe0 != 0 {
            return Err(Error::Malformed);
        }
        if view.header_len() > bytes.len() - offset { Err(Error::Truncated) } else { Ok(view) }
    }
}

impl<'a> Gue<&'a mut [u8; HEADER_LEN]> {
    /// Views the fixed header at `bytes[offset..]`, to write. Checks no more than that the bytes are there.
    pub fn parse_mut(bytes: &'a mut [u8], offset: usize) -> Result<Self, Error> {
        array_mut(bytes, offset).map(Gue)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Gue<B> {
    /// Length of the header with its options, in bytes.
    pub fn header_len(&self) -> usize {
        HEADER_LEN + usize::from(self.0[field::VARIANT] & 0x1f) * 4
    }

    /// IP protocol of the payload.
    pub fn protocol(&self) -> u8 {
        self.0[field::PROTOCOL]
    }

    /// Reads the options, which lie behind the fixed header. Remote checksum offload is all that is understood; a packet with
    /// any other must be dropped.
    pub fn remote_checksum(&self, options: &[u8]) -> Result<Option<RemoteChecksum>, Error> {
        match be16(&self.0, field::FLAGS) {
            0 => return Ok(None),
            PRIVATE => {}
            _ => return Err(Error::Malformed),
        }
        match u32::from_be_bytes(*array(options, 0)?) {
            0 => Ok(None),
            REMOTE_CHECKSUM => {
                let words: &[u8; 4] = array(options, 4)?;
                Ok(Some(RemoteChecksum { start: be16(words, 0).into(), field: be16(words, 2).into() }))
            }
            _ => Err(Error::Malformed),
        }
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Gue<B> {
    /// Writes the header of a packet that carries `protocol`, without options.
    pub fn emit(&mut self, protocol: u8) {
        *self.0 = [0, protocol, 0, 0];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_and_reads() {
        let mut header = [0xff; 4];
        Gue::parse_mut(&mut header, 0).unwrap().emit(41);
        assert_eq!(header, [0, 41, 0, 0]);
        let view = Gue::parse(&header, 0).unwrap();
        assert_eq!((view.header_len(), view.protocol(), view.remote_checksum(&[])), (4, 41, Ok(None)));
    }

    #[test]
    fn reads_a_remote_checksum() {
        let bytes = [2, 4, 0, 1, 0x80, 0, 0, 0, 0, 20, 0, 36];
        let view = Gue::parse(&bytes, 0).unwrap();
        assert_eq!(view.header_len(), 12);
        let expected = RemoteChecksum { start: 20, field: 36 };
        assert_eq!(view.remote_checksum(&bytes[4..12]), Ok(Some(expected)));
    }

    #[test]
    fn refuses() {
        for (what, bytes, error) in [
            ("another variant", &[0x40, 4, 0, 0][..], Error::Malformed),
            ("a control message", &[0x20, 4, 0, 0], Error::Malformed),
            ("options beyond the end", &[1, 4, 0, 1, 0, 0, 0], Error::Truncated),
            ("half a header", &[0, 4, 0], Error::Truncated),
        ] {
            assert_eq!(Gue::parse(bytes, 0).err(), Some(error), "{what}");
        }
        for (what, bytes, error) in [
            ("an unknown flag", [2, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0], Error::Malformed),
            ("an unknown private flag", [2, 4, 0, 1, 0x40, 0, 0, 0, 0, 0, 0, 0], Error::Malformed),
        ] {
            let options = &bytes[4..];
            assert_eq!(Gue::parse(&bytes, 0).unwrap().remote_checksum(options), Err(error), "{what}");
        }
        let cut = [1, 4, 0, 1, 0x80, 0, 0, 0];
        assert_eq!(Gue::parse(&cut, 0).unwrap().remote_checksum(&cut[4..]), Err(Error::Truncated));
    }
}
