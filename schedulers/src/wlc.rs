//! wlc, weighted least-connection: the destination with the least overhead per weight.

use crate::least::{Least, Measure};
use crate::pool::Destination;

pub(crate) type WeightedLeastConnection = Least<OverheadPerWeight>;

#[derive(Debug, Default)]
pub(crate) struct OverheadPerWeight;

impl Measure for OverheadPerWeight {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        Some(quotient(destination.overhead(), destination.weight))
    }
}

/// `overhead / weight` as a number that compares exactly as the fraction does, so that no two need be cross-multiplied.
///
/// Two different fractions with denominators below 2³¹ (see [`Destination::weight`]) lie more than 2⁻⁶² apart: 62 binary places tell them apart, and
/// equal fractions have equal places.
#[inline]
pub(crate) fn quotient(overhead: u64, weight: u32) -> u128 {
    (u128::from(overhead) << 62) / u128::from(weight.max(1))
}

#[cfg(test)]
mod tests {
    use super::quotient;
    use proptest::prelude::*;

    proptest! {
        /// IPVS: `d` beats `l` when overhead(l) · weight(d) > overhead(d) · weight(l).
        #[test]
        fn compares_as_cross_multiplication_does(
            overheads in (0_u64..258 << 32, 0_u64..258 << 32),
            weights in (1_u32..=0x7fff_ffff, 1_u32..=0x7fff_ffff),
            factor in 1_u32..=0x7fff,
        ) {
            let cross = |(a, v): (u64, u32), (b, w): (u64, u32)|
                (u128::from(a) * u128::from(w)).cmp(&(u128::from(b) * u128::from(v)));
            let (one, other) = ((overheads.0, weights.0), (overheads.1, weights.1));
            prop_assert_eq!(quotient(one.0, one.1).cmp(&quotient(other.0, other.1)), cross(one, other));
            let (small, near) = ((one.0 % 4096, one.1 % 65536 + 1), (one.0 % 4096 + 1, one.1 % 65536 + 2));
            prop_assert_eq!(quotient(small.0, small.1).cmp(&quotient(near.0, near.1)), cross(small, near));
            let times = (small.0 * u64::from(factor), small.1.saturating_mul(factor));
            prop_assert_eq!(quotient(small.0, small.1).cmp(&quotient(times.0, times.1)), cross(small, times));
            prop_assert!(quotient(one.0, one.1) < 1 << 104);
        }
    }
}
