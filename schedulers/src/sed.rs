//! sed, shortest expected delay: the destination with the least active connections per weight, the new one counted in.

use crate::least::{Least, Measure};
use crate::pool::Destination;
use crate::wlc::quotient;

pub(crate) type ShortestExpectedDelay = Least<ExpectedDelay>;

#[derive(Debug, Default)]
pub(crate) struct ExpectedDelay;

impl Measure for ExpectedDelay {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        Some(quotient(u64::from(destination.active) + 1, destination.weight))
    }
}
