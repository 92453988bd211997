//! Laying out in frames of our own what a longer frame is cut into.

use crate::batch::PortId;
use crate::link::memory::HEADROOM;
use crate::link::{MAX_PARTS, Part, Parts, Pool, Region};
use crate::packet::piece::{self, Piece};
use crate::verdict::Reason;
use arrayvec::ArrayVec;

/// A frame's parts as slices.
pub(crate) fn slices<'a>(frame: &'a Parts, region: &'a Region) -> ArrayVec<&'a [u8], MAX_PARTS> {
    frame.iter().map(|part| part.bytes(region)).collect()
}

/// Copies a piece of the frame in `parts` into free frames of `pool`, as if it had come in by device `port`.
///
/// # Errors
/// [`Reason::NoFrames`] when not enough frames are free, [`Reason::TooManyParts`] when the piece is longer than a frame may be.
pub(crate) fn lay(pool: &mut Pool, parts: &[&[u8]], piece: &Piece, port: PortId) -> Result<Parts, Reason> {
    let region = pool.region().clone();
    let mut laid = Parts::new();
    let mut done = Ok(());
    let stretch = piece::stretch(parts, piece.payload.clone());
    for bytes in std::iter::once(&piece.headers[..]).chain(stretch) {
        done = append(pool, &region, &mut laid, bytes, port);
        if done.is_err() {
            break;
        }
    }
    match done {
        Ok(()) => Ok(laid),
        Err(reason) => {
            pool.give_all(&mut laid);
            Err(reason)
        }
    }
}

/// Appends `bytes` to the frame laid out so far.
fn append(
    pool: &mut Pool,
    region: &Region,
    laid: &mut Parts,
    mut bytes: &[u8],
    port: PortId,
) -> Result<(), Reason> {
    while !bytes.is_empty() {
        let full =
            laid.last().is_none_or(|part| u32::from(part.start) + u32::from(part.len) == region.chunk());
        if full {
            let frame = pool.take().ok_or(Reason::NoFrames)?;
            if let Some(last) = laid.last_mut() {
                last.more = true;
            }
            #[expect(clippy::cast_possible_truncation, reason = "256")]
            let part = Part { frame, start: HEADROOM as u16, len: 0, port, more: false };
            if let Err(refused) = laid.try_push(part) {
                pool.give(refused.element().frame);
                return Err(Reason::TooManyParts);
            }
        }
        let Some(part) = laid.last_mut() else { return Ok(()) };
        let end = usize::from(part.start) + usize::from(part.len);
        let room = &mut region.bytes(&mut part.frame)[end..];
        let (now, later) = bytes.split_at(room.len().min(bytes.len()));
        room[..now.len()].copy_from_slice(now);
        part.len += u16::try_from(now.len()).unwrap_or(0);
        bytes = later;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_piece_is_laid_out_as_it_is(
            headers in prop::collection::vec(any::<u8>(), 1..200),
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..4),
            from in 0_usize..500,
            free in 1_u32..8,
        ) {
            let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
            let payload = from..parts.iter().map(|part| part.len()).sum::<usize>().max(from);
            let mut expected = headers.clone();
            expected.extend(piece::stretch(&parts, payload.clone()).flatten());
            let piece = Piece { headers: headers.iter().copied().collect(), payload };
            let mut pool = Pool::new(free, 2048).unwrap();
            let region = pool.region().clone();
            let needed = expected.len().div_ceil(2048 - 256);
            match lay(&mut pool, &parts, &piece, PortId(3)) {
                Ok(mut laid) => {
                    prop_assert_eq!(slices(&laid, &region).concat(), expected);
                    prop_assert_eq!(laid.len(), needed);
                    let more: Vec<bool> = laid.iter().map(|part| part.more).collect();
                    prop_assert!(more.iter().enumerate().all(|(at, more)| *more == (at + 1 < needed)));
                    prop_assert!(laid.iter().all(|part| part.port == PortId(3)));
                    pool.give_all(&mut laid);
                }
                Err(reason) => {
                    prop_assert_eq!(reason, Reason::NoFrames);
                    prop_assert!(needed > pool.len());
                }
            }
            prop_assert_eq!(pool.len(), free as usize);
        }
    }
}
