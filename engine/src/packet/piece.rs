//! What a frame is cut into: headers of its own, and a stretch of the frame's bytes behind them.

use super::ethernet;
use crate::verdict::Reason;
use arrayvec::ArrayVec;
use std::ops::Range;

/// Longest headers of a frame that can be cut, in bytes: all of them with all their options, and extension headers.
pub const MAX_HEADERS: usize = 256;

/// One of the frames that a frame is cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Its first bytes: the link, network and transport headers that it needs.
    pub headers: ArrayVec<u8, MAX_HEADERS>,
    /// The bytes that follow them, by their place in the frame that was cut.
    pub payload: Range<usize>,
}

impl Piece {
    /// Length of the piece, in bytes.
    pub fn len(&self) -> usize {
        self.headers.len() + self.payload.len()
    }

    /// Always false: a piece has headers.
    pub fn is_empty(&self) -> bool {
        self.headers.is_empty()
    }
}

/// The bytes of `range` of a frame in `parts`, as the parts' own slices. Ends with the frame.
pub fn stretch<'a>(parts: &[&'a [u8]], range: Range<usize>) -> impl Iterator<Item = &'a [u8]> {
    let Range { mut start, end } = range;
    let mut left = end.saturating_sub(start);
    parts.iter().filter_map(move |part| {
        let skipped = start.min(part.len());
        start -= skipped;
        let part = &part[skipped..];
        let part = &part[..part.len().min(left)];
        left -= part.len();
        (!part.is_empty()).then_some(part)
    })
}

/// The first `len` bytes of a frame, which lie in its first part.
pub(super) fn headers(head: &[u8], len: usize) -> Result<ArrayVec<u8, MAX_HEADERS>, Reason> {
    let bytes = head.get(..len).ok_or(Reason::Truncated)?;
    ArrayVec::try_from(bytes).map_err(|_| Reason::TooBig)
}

/// What a frame carries, where that starts, and the frame's length.
pub(super) fn look(parts: &[&[u8]]) -> Result<(u16, usize, usize), Reason> {
    let head = parts.first().ok_or(Reason::Truncated)?;
    let (ethertype, network) = ethernet::payload(head)?;
    Ok((ethertype, network, parts.iter().map(|part| part.len()).sum()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_cross_parts() {
        let parts: [&[u8]; 4] = [&[0, 1, 2], &[], &[3, 4], &[5]];
        let bytes = |range| stretch(&parts, range).flatten().copied().collect::<Vec<u8>>();
        let table = [(0..6, 0..6), (2..4, 2..4), (3..5, 3..5), (5..9, 5..6), (1..1, 1..1), (7..9, 6..6)];
        for (range, expected) in table {
            assert_eq!(bytes(range), expected.collect::<Vec<u8>>());
        }
    }
}
