//! Ethernet II frames, without a tag or with IEEE 802.1Q tags, two at most.

use super::{Error, array, array_mut, be16};
use std::ops::{Deref, DerefMut, Range};

/// A link-layer address.
pub type Mac = [u8; 6];

/// Length of the header without a tag, in bytes.
pub const HEADER_LEN: usize = 14;
/// Length of a tag, in bytes.
pub const TAG_LEN: usize = 4;

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of an IEEE 802.1Q tag.
pub const VLAN: u16 = 0x8100;
/// EtherType of a service provider's tag, before a customer's (IEEE 802.1ad).
pub const SERVICE_VLAN: u16 = 0x88a8;

/// Tags that a frame may have.
pub const MAX_TAGS: usize = 2;
/// Length of the header with as many, in bytes.
pub const MAX_LEN: usize = HEADER_LEN + MAX_TAGS * TAG_LEN;

/// Byte ranges of the header.
pub mod field {
    use super::Range;
    /// Destination address.
    pub const DESTINATION: Range<usize> = 0..6;
    /// Source address.
    pub const SOURCE: Range<usize> = 6..12;
    /// EtherType, or the tag's.
    pub const ETHERTYPE: usize = 12;
    /// What the tag says of priority and VLAN.
    pub const TAG_CONTROL: usize = 14;
}

/// A view of an untagged header, or of the part of a tagged one before the tag.
#[derive(Clone, Copy, Debug)]
pub struct Ethernet<B>(B);

impl<'a> Ethernet<&'a [u8; HEADER_LEN]> {
    /// Views the start of `frame`. The whole fixed header is there.
    #[inline]
    pub fn parse(frame: &'a [u8]) -> Result<Self, Error> {
        array(frame, 0).map(Ethernet)
    }
}

impl<'a> Ethernet<&'a mut [u8; HEADER_LEN]> {
    /// Views the start of `frame`, to write.
    #[inline]
    pub fn parse_mut(frame: &'a mut [u8]) -> Result<Self, Error> {
        array_mut(frame, 0).map(Ethernet)
    }
}

impl<B: Deref<Target = [u8; HEADER_LEN]>> Ethernet<B> {
    /// Whom the frame is for.
    #[inline]
    pub fn destination(&self) -> Mac {
        let [a, b, c, d, e, f, ..] = *self.0;
        [a, b, c, d, e, f]
    }

    /// Who sent it.
    #[inline]
    pub fn source(&self) -> Mac {
        let [_, _, _, _, _, _, a, b, c, d, e, f, ..] = *self.0;
        [a, b, c, d, e, f]
    }

    /// The EtherType; [`VLAN`] for a tagged frame.
    #[inline]
    pub fn ethertype(&self) -> u16 {
        be16(&self.0, field::ETHERTYPE)
    }
}

impl<B: DerefMut<Target = [u8; HEADER_LEN]>> Ethernet<B> {
    /// Sets both addresses.
    #[inline]
    pub fn set_addresses(&mut self, destination: Mac, source: Mac) {
        self.0[field::DESTINATION].copy_from_slice(&destination);
        self.0[field::SOURCE].copy_from_slice(&source);
    }
}

/// The EtherType of what `frame` carries and where that starts, looking through two tags at most.
#[inline]
pub fn payload(frame: &[u8]) -> Result<(u16, usize), Error> {
    let mut ethertype = Ethernet::parse(frame)?.ethertype();
    let mut start = HEADER_LEN;
    while matches!(ethertype, VLAN | SERVICE_VLAN) && start < HEADER_LEN + MAX_TAGS * TAG_LEN {
        let tag: &[u8; TAG_LEN] = array(frame, start)?;
        ethertype = be16(tag, TAG_LEN - 2);
        start += TAG_LEN;
    }
    Ok((ethertype, start))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNTAGGED: [u8; 15] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00, 0x45];
    const TAGGED: [u8; 19] = [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0x00, 0x20, 0x07, 0x86, 0xdd, 0x60];

    #[test]
    fn reads_and_writes() {
        let view = Ethernet::parse(&UNTAGGED).unwrap();
        assert_eq!(view.destination(), [2, 0, 0, 0, 0, 1]);
        assert_eq!(view.source(), [2, 0, 0, 0, 0, 2]);
        assert_eq!(view.ethertype(), IPV4);
        let mut frame = UNTAGGED;
        Ethernet::parse_mut(&mut frame).unwrap().set_addresses([3; 6], [4; 6]);
        assert_eq!(&frame[..14], &[3, 3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 8, 0]);
    }

    #[test]
    fn looks_through_two_tags() {
        assert_eq!(payload(&UNTAGGED), Ok((IPV4, 14)));
        assert_eq!(payload(&TAGGED), Ok((IPV6, 18)));
        let mut twice = TAGGED;
        twice[16..18].copy_from_slice(&[0x81, 0]);
        assert_eq!(payload(&twice), Err(Error::Truncated));
        let outer = [&TAGGED[..12], &[0x88, 0xa8, 0, 1], &TAGGED[12..]].concat();
        assert_eq!(payload(&outer), Ok((IPV6, 22)));
        let thrice = [&outer[..16], &[0x81, 0, 0, 1], &outer[16..]].concat();
        assert_eq!(payload(&thrice), Ok((VLAN, 22)), "a third is not ours to take");
    }

    #[test]
    fn refuses_what_is_cut_short() {
        for len in 0..14 {
            assert_eq!(payload(&UNTAGGED[..len]), Err(Error::Truncated), "{len}");
        }
        for len in 14..18 {
            assert_eq!(payload(&TAGGED[..len]), Err(Error::Truncated), "{len}");
        }
    }
}
