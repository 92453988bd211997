//! fo, weighted fail-over: the destination with the greatest weight takes everything.

use crate::least::{Least, Measure};
use crate::pool::Destination;

pub(crate) type FailOver = Least<Inferiority>;

/// How far a weight is from the greatest that there can be.
#[derive(Debug, Default)]
pub(crate) struct Inferiority;

impl Measure for Inferiority {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        Some(u128::from(u32::MAX - destination.weight))
    }
}
