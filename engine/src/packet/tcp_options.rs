//! Options of TCP (RFC 9293 §3.2), changed in place.

use super::checksum::Delta;

/// Fills the room between options (RFC 9293).
const NOP: u8 = 1;
/// The options end here (RFC 9293).
const END: u8 = 0;
/// Selective acknowledgement (RFC 2018).
pub const SACK: u8 = 5;
/// Timestamps (RFC 7323).
pub const TIMESTAMPS: u8 = 8;

/// The most bytes of options a header can have.
pub const MAX_LEN: usize = 40;

/// Where the option of this kind lies among `options`, kind and length octets included. Options that contradict themselves end
/// the search.
pub fn find(options: &[u8], kind: u8) -> Option<std::ops::Range<usize>> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END => return None,
            NOP => at += 1,
            found => {
                let length = usize::from(*options.get(at + 1)?);
                if length < 2 || at + length > options.len() {
                    return None;
                }
                if found == kind {
                    return Some(at..at + length);
                }
                at += length;
            }
        }
    }
}

/// Overwrites the option of this kind, if there is one. Returns what that changes in the checksum.
pub fn blank(options: &mut [u8], kind: u8) -> Delta {
    change(options, |options| {
        if let Some(range) = find(options, kind) {
            options[range].fill(NOP);
        }
    })
}

/// Adds `delta` to each edge of a selective acknowledgement, wrapping. Returns what that changes in the checksum.
pub fn shift_sack(options: &mut [u8], delta: u32) -> Delta {
    change(options, |options| {
        let Some(range) = find(options, SACK) else { return };
        let (edges, _) = options[range.start + 2..range.end].as_chunks_mut::<4>();
        for edge in edges {
            *edge = u32::from_be_bytes(*edge).wrapping_add(delta).to_be_bytes();
        }
    })
}

/// Makes a change and tells what it does to the checksum, wherever in a word it lies. `options` begin a word.
fn change(options: &mut [u8], make: impl FnOnce(&mut [u8])) -> Delta {
    let mut before = [0; MAX_LEN];
    let length = options.len().min(MAX_LEN);
    before[..length].copy_from_slice(&options[..length]);
    make(options);
    let mut after = [0; MAX_LEN];
    after[..length].copy_from_slice(&options[..length]);
    let words = |bytes: &[u8; MAX_LEN]| {
        let (words, _) = bytes.as_chunks::<4>();
        <[[u8; 4]; MAX_LEN / 4]>::try_from(words).unwrap_or_default().map(u32::from_ne_bytes)
    };
    let pairs = words(&before).into_iter().zip(words(&after));
    pairs.filter(|(old, new)| old != new).fold(Delta::default(), |delta, (old, new)| delta.word32(old, new))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::checksum::Sum;
    use proptest::prelude::*;

    #[test]
    fn options_are_found_where_they_are() {
        for (options, kind, expected) in [
            (&[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7][..], TIMESTAMPS, Some(6..16)),
            (&[1, 1, 5, 10, 0, 0, 0, 1, 0, 0, 0, 2], SACK, Some(2..12)),
            (&[2, 4, 5, 0xb4], SACK, None),
            (&[0, 0, 5, 2], SACK, None),
            (&[3, 0, 5, 2], SACK, None),
            (&[1, 1, 1, 5], SACK, None),
            (&[1, 1, 5, 10], SACK, None),
            (&[], SACK, None),
        ] {
            assert_eq!(find(options, kind), expected, "{options:?}");
        }
    }

    #[test]
    fn timestamps_give_way_to_padding() {
        let mut options = [2, 4, 5, 0xb4, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1];
        blank(&mut options, TIMESTAMPS);
        assert_eq!(options, [2, 4, 5, 0xb4, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]);
    }

    proptest! {
        #[test]
        fn the_checksum_follows(
            mut options in prop::collection::vec(any::<u8>(), 0..11),
            edges in prop::collection::vec(any::<u32>(), 0..3),
            padding in 0_usize..4,
            delta: u32,
        ) {
            options.iter_mut().for_each(|byte| *byte = NOP);
            options.resize(options.len() + padding, NOP);
            options.extend([SACK, 2 + 4 * u8::try_from(edges.len()).unwrap()]);
            edges.iter().for_each(|edge| options.extend(edge.to_be_bytes()));
            options.resize(options.len().next_multiple_of(4), END);
            let filler = [1, 2, 3, 4];
            let sum = |options: &[u8]| Sum::of(&filler).plus(Sum::of(options)).checksum();
            let before = sum(&options);
            let changed = shift_sack(&mut options, delta);
            prop_assert_eq!(changed.apply(before), sum(&options));
            let at = find(&options, SACK).unwrap().start + 2;
            let (found, _) = options[at..at + 4 * edges.len()].as_chunks::<4>();
            let found: Vec<u32> = found.iter().map(|edge| u32::from_be_bytes(*edge)).collect();
            let expected: Vec<u32> = edges.iter().map(|edge| edge.wrapping_add(delta)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
