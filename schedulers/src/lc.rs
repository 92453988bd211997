//! lc, least-connection: the destination with the least overhead; weights other than 0 do not matter.

use crate::least::{Least, Measure};
use crate::pool::Destination;

pub(crate) type LeastConnection = Least<Overhead>;

#[derive(Debug, Default)]
pub(crate) struct Overhead;

impl Measure for Overhead {
    #[inline]
    fn of(destination: &Destination) -> Option<u128> {
        Some(u128::from(destination.overhead()))
    }
}
