//! Options of TCP (RFC 9293 §3.2), changed in place.

use super::checksum::Delta;
use arrayvec::ArrayVec;

/// Fills the room between options (RFC 9293).
const NOP: u8 = 1;
/// The options end here (RFC 9293).
const END: u8 = 0;
/// The longest segment that the sender of a SYN takes (RFC 9293 §3.7.1).
pub const MAX_SEGMENT_SIZE: u8 = 2;
/// Selective acknowledgement (RFC 2018).
pub const SACK: u8 = 5;
/// Fast open (RFC 7413).
pub const FAST_OPEN: u8 = 34;
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

/// Makes the maximum segment size what `lower` makes of it, if there is one and that is less. Returns what that changes in the
/// checksum, if it is.
pub fn lower_segment_size(options: &mut [u8], lower: impl FnOnce(u16) -> u16) -> Option<Delta> {
    let value = find(options, MAX_SEGMENT_SIZE).filter(|range| range.len() == 4)?.start + 2;
    let old = u16::from_be_bytes([options[value], options[value + 1]]);
    let new = Some(lower(old)).filter(|new| *new < old)?;
    Some(change(options, |options| options[value..value + 2].copy_from_slice(&new.to_be_bytes())))
}

/// `options` with another one before them, in whole words. Where that leaves too little room, what only fills room gives way.
/// `None`: there is no room.
pub fn with(options: &[u8], option: &[u8]) -> Option<ArrayVec<u8, MAX_LEN>> {
    let mut all = ArrayVec::new();
    all.try_extend_from_slice(option).ok()?;
    if all.len() + options.len() <= MAX_LEN {
        all.try_extend_from_slice(options).ok()?;
    } else {
        let mut at = 0;
        while let Some(kind) = options.get(at).filter(|kind| **kind != END) {
            let length = if *kind == NOP { 1 } else { usize::from(*options.get(at + 1)?) };
            if *kind != NOP {
                let option = options.get(at..at + length).filter(|option| option.len() >= 2)?;
                all.try_extend_from_slice(option).ok()?;
            }
            at += length;
        }
    }
    // The header does not get shorter: what follows it stays where it is.
    let length = all.len().next_multiple_of(4).max(options.len());
    (all.len()..length).for_each(|_| all.push(NOP));
    Some(all)
}

/// Makes each edge of a selective acknowledgement what `map` makes of it. Returns what that changes in the checksum.
pub fn map_sack(options: &mut [u8], map: impl Fn(u32) -> u32) -> Delta {
    change(options, |options| {
        let Some(range) = find(options, SACK) else { return };
        let (edges, _) = options[range.start + 2..range.end].as_chunks_mut::<4>();
        for edge in edges {
            *edge = map(u32::from_be_bytes(*edge)).to_be_bytes();
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

    #[test]
    fn segment_sizes_only_shrink() {
        for (options, to, expected) in [
            (&[2, 4, 5, 0xb4][..], 1400, Some(&[2, 4, 5, 0x78][..])),
            (&[1, 2, 4, 5, 0xb4, 1, 1, 1], 1459, Some(&[1, 2, 4, 5, 0xb3, 1, 1, 1])),
            (&[2, 4, 5, 0xb4], 1460, None),
            (&[2, 4, 5, 0xb4], 9000, None),
            (&[1, 3, 3, 7], 1400, None),
            (&[2, 3, 5, 1], 1, None),
            (&[2, 6, 5, 0xb4, 0, 0, 1, 1], 1, None),
            (&[], 1, None),
        ] {
            let mut changed = options.to_vec();
            let delta = lower_segment_size(&mut changed, |_| to);
            assert_eq!(delta.is_some(), expected.is_some(), "{options:?}");
            assert_eq!(changed, expected.unwrap_or(options), "{options:?}");
            if let Some(delta) = delta {
                assert_eq!(delta.apply(Sum::of(options).checksum()), Sum::of(&changed).checksum());
            }
        }
    }

    #[test]
    fn another_option_finds_room_where_there_is_some() {
        let toa = [254, 8, 1, 2, 3, 4, 5, 6];
        let filled = |length: usize, option: &[u8]| {
            let mut options = vec![NOP; length - option.len()];
            options.extend(option);
            options
        };
        let long = [9; 40];
        let unknown = |length: u8| {
            let mut option = long[..length.into()].to_vec();
            (option[0], option[1]) = (77, length);
            option
        };
        for (what, options, expected) in [
            ("none", vec![], Some(8)),
            ("padding that may stay", filled(32, &[]), Some(40)),
            ("padding that must not", filled(40, &[]), Some(40)),
            ("padding before others", filled(40, &[2, 4, 5, 0xb4]), Some(40)),
            ("just as much as fits", filled(40, &unknown(32)), Some(40)),
            ("one byte too much", filled(40, &unknown(33)), None),
            ("full", unknown(40), None),
            ("an end, and nothing behind it", filled(40, &[0, 77, 3, 5]), Some(40)),
            ("options that contradict themselves", filled(40, &[77, 0]), None),
            ("options beyond the end", filled(40, &[77, 3]), None),
            ("half an option", filled(40, &[77]), None),
        ] {
            let with = with(&options, &toa);
            assert_eq!(with.as_ref().map(ArrayVec::len), expected, "{what}");
            let Some(with) = with else { continue };
            assert_eq!(with[..8], toa, "{what}");
            for kind in [2, 77] {
                let before = find(&options, kind).map(|range| &options[range]);
                assert_eq!(find(&with, kind).map(|range| &with[range]), before, "{what}");
            }
        }
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
            let changed = map_sack(&mut options, |edge| edge.wrapping_add(delta));
            prop_assert_eq!(changed.apply(before), sum(&options));
            let at = find(&options, SACK).unwrap().start + 2;
            let (found, _) = options[at..at + 4 * edges.len()].as_chunks::<4>();
            let found: Vec<u32> = found.iter().map(|edge| u32::from_be_bytes(*edge)).collect();
            let expected: Vec<u32> = edges.iter().map(|edge| edge.wrapping_add(delta)).collect();
            prop_assert_eq!(found, expected);
        }
    }
}
