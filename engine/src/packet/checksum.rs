//! The Internet checksum (RFC 1071), its incremental update (RFC 1624), and sums left unfinished by offloads.
//!
//! All sums here are over 16-bit words *as they lie in memory*: the one's complement sum does not care about byte order
//! as long as one order is kept (RFC 1071 §2B), and so no word is ever swapped. A [`Sum`] is not inverted; what a header
//! carries is [`Sum::checksum`].

use std::net::{Ipv4Addr, Ipv6Addr};

/// A one's complement sum in the making: 64 bits wide, folded when it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// The sum of `bytes`, the first of which is the first of a 16-bit word. A last odd byte counts as followed by zero.
    pub fn of(bytes: &[u8]) -> Sum {
        const LANES: usize = 8;
        let mut lanes = [0_u64; LANES];
        let (blocks, tail) = bytes.as_chunks::<{ 4 * LANES }>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (words, odd) = tail.as_chunks::<2>();
        let mut sum: u64 = words.iter().map(|word| u64::from(u16::from_ne_bytes(*word))).sum();
        if let [last] = odd {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        // A lane holds less than 2^32 × (bytes / 32): no sum of eight can overflow before 2^34 bytes.
        Sum(lanes.iter().sum::<u64>() + sum)
    }

    /// The folded sum of all that a right checksum covers, itself included.
    pub const WHOLE: u16 = 0xffff;

    /// The sum of an IPv4 header without options, in three loads.
    #[inline]
    pub fn of_header(header: &[u8; 20]) -> Sum {
        let (words, rest) = header.as_chunks::<8>();
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        let rest = rest.first_chunk().map_or(0, |rest| u32::from_ne_bytes(*rest));
        Sum(words.iter().fold(u64::from(rest), |sum, word| sum + halves(u64::from_ne_bytes(*word))))
    }

    /// The sum of the concatenation of `parts`, whatever the parity of their lengths.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Sum {
        let mut total = Sum::default();
        let mut odd = false;
        for part in parts {
            let sum = Sum::of(part);
            // A part that starts in the middle of a word has its bytes in each other's place: swap its sum (RFC 1071 §2B).
            total = total.plus(if odd { sum.swapped() } else { sum });
            odd ^= part.len() % 2 == 1;
        }
        total
    }

    /// The pseudo-header of IPv4 (RFC 9293 §3.1), with the addresses as two words loaded from the packet. `length` is
    /// that of the upper-layer packet, header included.
    #[inline]
    pub fn pseudo4(source: u32, destination: u32, protocol: u8, length: u16) -> Sum {
        Sum(u64::from(source)
            + u64::from(destination)
            + u64::from(u16::from_ne_bytes([0, protocol]))
            + u64::from(length.to_be()))
    }

    /// The pseudo-header of IPv6 (RFC 8200 §8.1), with the addresses as words loaded from the packet.
    #[inline]
    pub fn pseudo6(addresses: &[u64; 4], protocol: u8, length: u32) -> Sum {
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        let [a, b, c, d] = *addresses;
        let rest = u64::from(u16::from_ne_bytes([0, protocol])) + u64::from(length.to_be());
        Sum(rest + halves(a) + halves(b) + halves(c) + halves(d))
    }

    /// The pseudo-header of IPv4 for addresses that do not come from a packet.
    pub fn pseudo4_of(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, length: u16) -> Sum {
        let word = |address: Ipv4Addr| u32::from_ne_bytes(address.octets());
        Sum::pseudo4(word(source), word(destination), protocol, length)
    }

    /// The pseudo-header of IPv6 for addresses that do not come from a packet.
    pub fn pseudo6_of(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, length: u32) -> Sum {
        Sum::of(&source.octets())
            .plus(Sum::of(&destination.octets()))
            .plus(Sum::pseudo6(&[0; 4], protocol, length))
    }

    /// Both sums together.
    #[inline]
    #[must_use]
    pub fn plus(self, other: Sum) -> Sum {
        Sum(self.0 + other.0)
    }

    /// What is left when the other sum is taken away.
    #[must_use]
    pub fn without(self, other: Sum) -> Sum {
        self.plus_word(!other.fold())
    }

    /// The sum of the same bytes beginning in the middle of a word.
    #[must_use]
    pub fn swapped(self) -> Sum {
        Sum(u64::from(self.fold().swap_bytes()))
    }

    /// With a 16-bit word, as it lies in memory, added.
    #[inline]
    #[must_use]
    pub fn plus_word(self, word: u16) -> Sum {
        Sum(self.0 + u64::from(word))
    }

    /// Folded to 16 bits, as it lies in memory.
    #[inline]
    pub fn fold(self) -> u16 {
        // Added to itself with its halves exchanged, a number has in its upper half their sum and the carry out of the lower.
        let sum = (self.0.wrapping_add(self.0.rotate_left(32)) >> 32) as u32;
        (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
    }

    /// What a header's checksum field holds for this sum, as it lies in memory.
    #[inline]
    pub fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// What a rewrite of header fields adds to a checksum: the sum of `~old + new` over every word changed (RFC 1624, eqn. 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Delta(Sum);

impl Delta {
    /// A 32-bit word, as it lies in memory, became another one.
    #[inline]
    #[must_use]
    pub fn word32(self, old: u32, new: u32) -> Delta {
        Delta(Sum(self.0.0 + u64::from(!old) + u64::from(new)))
    }

    /// A 16-bit word, as it lies in memory, became another one.
    #[inline]
    #[must_use]
    pub fn word16(self, old: u16, new: u16) -> Delta {
        Delta(Sum(self.0.0 + u64::from(!old) + u64::from(new)))
    }

    /// Two 32-bit words in one became others.
    #[inline]
    #[must_use]
    pub fn word64(self, old: u64, new: u64) -> Delta {
        let halves = |word: u64| (word & 0xffff_ffff) + (word >> 32);
        Delta(Sum(self.0.0 + halves(!old) + halves(new)))
    }

    /// Both rewrites together.
    #[inline]
    #[must_use]
    pub fn plus(self, other: Delta) -> Delta {
        Delta(self.0.plus(other.0))
    }

    /// The checksum field after the rewrite of a header whose field held `old`, both as they lie in memory.
    #[inline]
    #[must_use]
    pub fn apply(self, old: u16) -> u16 {
        self.0.plus_word(!old).checksum()
    }
}

/// Whether a transport checksum field holds only the pseudo-header's sum, not inverted, which is how a local socket's
/// packet looks over veth or virtio before "hardware" completes it. A complete checksum has that value once in 65,535
/// packets; completing it again changes nothing.
#[inline]
pub fn is_partial(field: u16, pseudo: Sum) -> bool {
    field == pseudo.fold()
}

/// The complete checksum of a transport packet: `pseudo` and `parts`, in whose first the checksum field holds `field`.
pub fn complete<'a>(pseudo: Sum, field: u16, parts: impl IntoIterator<Item = &'a [u8]>) -> u16 {
    pseudo.plus(Sum::of_parts(parts)).plus_word(!field).checksum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071's own words: sixteen bits at a time, in network order.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        }
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    #[test]
    fn rfc_1071_example() {
        let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
        assert_eq!(u16::from_be(Sum::of(&bytes).fold()), 0xddf2);
        assert_eq!(u16::from_be(Sum::of(&bytes).checksum()), !0xddf2);
    }

    #[test]
    fn rfc_1624_example_keeps_the_zero_that_rfc_1141_got_wrong() {
        // §4: checksum DD2F, a field 5555 becomes 3285: the checksum is 0000, not FFFF.
        let delta = Delta::default().word16(0x5555_u16.to_be(), 0x3285_u16.to_be());
        assert_eq!(delta.apply(0xdd2f_u16.to_be()), 0);
    }

    #[test]
    fn the_wildest_sum_folds() {
        assert_eq!(Sum(u64::MAX).fold(), 0xffff);
        assert_eq!(Sum(0xffff_0000_0001_ffff).fold(), 1);
        assert_eq!(Sum(0).fold(), 0);
    }

    proptest! {
        #[test]
        fn any_length_and_alignment(bytes in prop::collection::vec(any::<u8>(), 0..300), skip in 0_usize..9) {
            let bytes = &bytes[skip.min(bytes.len())..];
            prop_assert_eq!(u16::from_be(Sum::of(bytes).fold()), reference(bytes));
        }

        #[test]
        fn parts_sum_to_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..300), cuts in prop::array::uniform3(0_usize..301)) {
            let mut cuts = cuts.map(|cut| cut.min(bytes.len()));
            cuts.sort_unstable();
            let parts = [&bytes[..cuts[0]], &bytes[cuts[0]..cuts[1]], &bytes[cuts[1]..cuts[2]], &bytes[cuts[2]..]];
            prop_assert_eq!(Sum::of_parts(parts).fold(), Sum::of(&bytes).fold());
        }

        #[test]
        fn incremental_equals_full(mut bytes in prop::collection::vec(any::<u8>(), 16..80), new in any::<[u8; 14]>()) {
            bytes[0] |= 1; // a packet is never all zero
            let before = Sum::of(&bytes).checksum();
            let old: [u8; 14] = bytes[2..16].try_into().unwrap();
            bytes[2..16].copy_from_slice(&new);
            let w64 = |b: &[u8; 14]| u64::from_ne_bytes(b[..8].try_into().unwrap());
            let w32 = |b: &[u8; 14]| u32::from_ne_bytes(b[8..12].try_into().unwrap());
            let w16 = |b: &[u8; 14]| u16::from_ne_bytes(b[12..].try_into().unwrap());
            let delta = Delta::default()
                .word64(w64(&old), w64(&new))
                .word32(w32(&old), w32(&new))
                .word16(w16(&old), w16(&new));
            prop_assert_eq!(delta.apply(before), Sum::of(&bytes).checksum());
        }

        #[test]
        fn completing_makes_the_whole_sum_to_zero(mut bytes in prop::collection::vec(any::<u8>(), 20..80), source: u32, destination: u32) {
            let pseudo = Sum::pseudo4(source, destination, 6, u16::try_from(bytes.len()).unwrap());
            bytes[16..18].copy_from_slice(&pseudo.fold().to_ne_bytes());
            prop_assert!(is_partial(pseudo.fold(), pseudo));
            let checksum = complete(pseudo, pseudo.fold(), [&bytes[..19], &bytes[19..]]);
            bytes[16..18].copy_from_slice(&checksum.to_ne_bytes());
            prop_assert_eq!(pseudo.plus(Sum::of(&bytes)).fold(), 0xffff);
        }
    }
}
